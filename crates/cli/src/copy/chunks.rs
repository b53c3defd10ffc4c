//! Content-defined chunks: where a file is cut depends on the bytes around the cut, so most cuts
//! stay where they are when something is inserted or removed elsewhere.

use std::io;
use std::os::fd::BorrowedFd;

use bowline_proto::copy::Hash;
use fastcdc::v2020::FastCDC;

/// Bytes of the file that are looked at together.
const WINDOW_BYTES: usize = 4 * 1024 * 1024;

/// One chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) hash: Hash,
}

/// Cuts a file from `offset` on into chunks of the average 2^`log2`; `whole` gets all of its bytes too.
/// Stops where `each` fails.
///
/// # Errors
/// As pread(2), or `each`'s.
pub(crate) fn cut(
    file: BorrowedFd<'_>,
    offset: u64,
    log2: u8,
    mut whole: Option<&mut blake3::Hasher>,
    mut each: impl FnMut(Chunk) -> io::Result<()>,
) -> io::Result<()> {
    let average = 1usize << log2;
    let (min, max) = (average / 4, average * 4);
    let mut buffer = vec![0; WINDOW_BYTES.max(max * 2)];
    let (mut filled, mut at, mut ended) = (0, offset, false);
    loop {
        while filled < buffer.len() && !ended {
            let room = buffer.get_mut(filled..).unwrap_or_default();
            let len = read_at(file, room, at + filled as u64)?;
            let new = buffer.get(filled..filled + len).unwrap_or_default();
            if let Some(whole) = &mut whole {
                whole.update(new);
            }
            filled += len;
            ended = len == 0;
        }
        let here = buffer.get(..filled).unwrap_or_default();
        let chunker = FastCDC::new(here, min, average, max);
        let mut start = 0;
        // Near the end of the buffer a cut may only look like one.
        while start < filled && (ended || filled - start >= max) {
            let (_, end) = chunker.cut(start, filled - start);
            let bytes = here.get(start..end).unwrap_or_default();
            each(Chunk {
                offset: at + start as u64,
                len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                hash: *blake3::hash(bytes).as_bytes(),
            })?;
            start = end;
        }
        if ended {
            return Ok(());
        }
        buffer.copy_within(start..filled, 0);
        (at, filled) = (at + start as u64, filled - start);
    }
}

/// Reads at an offset; less than asked for only at the end of the file.
///
/// # Errors
/// As pread(2).
pub(crate) fn read_at(file: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = into.get_mut(filled..).filter(|room| !room.is_empty()) {
        match rustix::io::pread(file, room, offset + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(filled)
}

/// Feeds the first `len` bytes of a file to a hasher; false if it has less.
///
/// # Errors
/// As pread(2).
pub(crate) fn hash_prefix(
    file: BorrowedFd<'_>,
    len: u64,
    hasher: &mut blake3::Hasher,
) -> io::Result<bool> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    while at < len {
        let want = usize::try_from(len - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let room = buffer.get_mut(..want).unwrap_or_default();
        let read = read_at(file, room, at)?;
        hasher.update(room.get(..read).unwrap_or_default());
        at += read as u64;
        if read < want {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Feeds zeros to a hasher.
pub(crate) fn zeros(hasher: &mut blake3::Hasher, mut len: u64) {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        hasher.update(ZEROS.get(..now as usize).unwrap_or_default());
        len -= now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    fn chunks(bytes: &[u8], log2: u8) -> (Vec<Chunk>, Hash) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let (mut found, mut whole) = (Vec::new(), blake3::Hasher::new());
        let each = |chunk| {
            found.push(chunk);
            Ok(())
        };
        cut(file.as_fd(), 0, log2, Some(&mut whole), each).unwrap();
        (found, *whole.finalize().as_bytes())
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn chunks_cover_the_file_and_survive_an_insertion() {
        let mut bytes = noise(9 * 1024 * 1024 + 17);
        let (before, whole) = chunks(&bytes, 16);
        assert_eq!(whole, *blake3::hash(&bytes).as_bytes());
        let mut at = 0;
        for chunk in &before {
            assert_eq!(chunk.offset, at);
            let part = &bytes[at as usize..][..chunk.len as usize];
            assert_eq!(chunk.hash, *blake3::hash(part).as_bytes());
            at += u64::from(chunk.len);
        }
        assert_eq!(at, bytes.len() as u64);
        bytes.insert(0, 1);
        let (after, _) = chunks(&bytes, 16);
        let known: std::collections::HashSet<_> = before.iter().map(|c| c.hash).collect();
        let new = after.iter().filter(|chunk| !known.contains(&chunk.hash));
        assert!(new.count() <= 3);
        assert!(chunks(b"", 12).0.is_empty());
    }
}
