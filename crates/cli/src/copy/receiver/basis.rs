//! What of a wanted file is here already: the beginning that an earlier attempt left, and chunks of the old
//! file. It is offered to the sender, and used where the sender says so.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use bowline_proto::copy::{CHUNKS_MAX, CHUNKS_PER_MESSAGE_MAX, Chunks, Hash, Message, chunk_log2};
use rustix::fs::{Mode, OFlags};

use super::super::chunks;
use super::super::tree;
use super::super::{Failure, LARGE_BYTES_MIN, WorkerError};
use super::temporary::Temporary;
use super::{Have, Pending, Receiver};

/// Files that are compared at a time, each with an open descriptor or more.
const FILES_MAX: usize = 64;
/// Chunks that were sent and not used yet, of all files; one file may have more.
const CHUNKS_UNDER_WAY_MAX: usize = 128 * 1024;

/// Chunks of files that are here.
#[derive(Debug, Default)]
pub(super) struct Basis {
    files: Vec<OwnedFd>,
    /// Which file, where, how long.
    chunks: Vec<(u8, u64, u32)>,
    /// Left by earlier attempts: removed when the file is finished.
    left: Vec<Temporary>,
}

impl Basis {
    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The file that a chunk is in, its place there and its length.
    pub(super) fn chunk(&self, index: u64) -> Option<(&OwnedFd, u64, u32)> {
        let (file, offset, len) = self.chunks.get(usize::try_from(index).ok()?)?;
        Some((self.files.get(usize::from(*file))?, *offset, *len))
    }

    pub(super) fn take_left(&mut self) -> Vec<Temporary> {
        std::mem::take(&mut self.left)
    }
}

impl Receiver {
    /// Asks for the files whose turn it is to be compared.
    pub(super) fn compare_next(&mut self) -> Result<(), WorkerError> {
        while let Some(id) = self.to_compare.front().copied() {
            let (files, chunks) = self.comparing;
            if files > 0 && (files >= FILES_MAX || chunks >= CHUNKS_UNDER_WAY_MAX) {
                return Ok(());
            }
            self.to_compare.pop_front();
            if let Some(pending) = self.pending.remove(&id) {
                let pending = self.compare(id, pending)?;
                self.pending.insert(id, pending);
            }
        }
        Ok(())
    }

    /// Offers what is here of one file.
    fn compare(&mut self, id: u64, mut pending: Pending) -> Result<Pending, WorkerError> {
        self.say_skipped()?;
        let mut have = pending.have.take().unwrap_or_default();
        // What cannot be read cannot be used, and is replaced like anything else.
        let _ = self.gather(&pending, &mut have);
        let prefix = have
            .partial
            .as_ref()
            .map(|(_, len, hasher)| (*len, *hasher.finalize().as_bytes()));
        let log2 = (!have.basis.is_empty()).then(|| chunk_log2(pending.size));
        self.output.send(&Message::Want {
            id,
            prefix,
            same: None,
            chunks: log2,
        })?;
        if let Some(log2) = log2 {
            // The sender cuts its own file meanwhile.
            self.output.flush()?;
            let root = self.cut(&mut have.basis, log2)?;
            let root = root.filter(|_| prefix.is_none() && have.basis.files.len() == 1);
            self.output.send(&Message::BasisEnd(root))?;
        }
        self.comparing.0 += 1;
        self.comparing.1 += have.basis.len();
        pending.have = Some(have);
        Ok(pending)
    }

    fn gather(&mut self, pending: &Pending, have: &mut Have) -> io::Result<()> {
        let folder = self.tree.fd(&pending.folder)?;
        if have.basis.left.is_empty() && have.partial.is_none() {
            let found = Temporary::find(folder.as_fd(), &pending.name, self.options.origin)?;
            match found {
                Some((partial, len)) if len > 0 && len <= pending.size => {
                    let mut hasher = blake3::Hasher::new();
                    if chunks::hash_prefix(partial.fd.as_fd(), len, &mut hasher)? {
                        have.partial = Some((partial, len, hasher));
                    }
                }
                Some((other, _)) => other.remove(folder.as_fd()),
                None => {}
            }
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Ok(old) = tree::open(folder.as_fd(), &pending.name, flags, Mode::empty()) else {
            return Ok(());
        };
        let stat = rustix::fs::fstat(&old)?;
        let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        if regular && u64::try_from(stat.st_size).unwrap_or(0) >= LARGE_BYTES_MIN {
            have.basis.files.push(old);
        }
        Ok(())
    }

    /// Cuts the files of a basis and says their chunks; gives the hash over all of them.
    fn cut(&mut self, basis: &mut Basis, log2: u8) -> Result<Option<Hash>, WorkerError> {
        let (mut packed, mut count) = (Vec::new(), 0);
        let mut root = blake3::Hasher::new();
        let mut broken = None;
        let Basis { files, chunks, .. } = basis;
        let mut readable = true;
        for (index, file) in files.iter().enumerate() {
            let file_index = u8::try_from(index).unwrap_or(u8::MAX);
            let read = chunks::cut(file.as_fd(), 0, log2, None, |chunk| {
                if chunks.len() as u64 >= CHUNKS_MAX {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                chunks.push((file_index, chunk.offset, chunk.len));
                root.update(&chunk.hash);
                Chunks::push(&mut packed, chunk.len, &chunk.hash);
                count += 1;
                if count == CHUNKS_PER_MESSAGE_MAX {
                    count = 0;
                    let sent = self.output.send(&Message::Basis(Chunks::of(&packed)));
                    packed.clear();
                    if let Err(error) = sent {
                        broken = Some(error);
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                }
                Ok(())
            });
            readable &= read.is_ok();
            if let Some(error) = broken.take() {
                return Err(error);
            }
        }
        if count > 0 {
            self.output.send(&Message::Basis(Chunks::of(&packed)))?;
        }
        Ok(readable.then(|| *root.finalize().as_bytes()))
    }

    /// A file that was compared needs its descriptors no more.
    pub(super) fn compared(&mut self, have: &Have) -> Result<(), WorkerError> {
        self.comparing.0 = self.comparing.0.saturating_sub(1);
        self.comparing.1 = self.comparing.1.saturating_sub(have.basis.len());
        self.compare_next()
    }

    /// What was offered as the beginning of a file is not: its chunks may serve.
    pub(super) fn redo(&mut self, id: u64) -> Result<(), WorkerError> {
        let Some(mut pending) = self.pending.remove(&id) else {
            return Err(WorkerError::Rules("a file again that is not under way"));
        };
        if self.options.dry_run {
            self.release(&Rc::clone(&pending.folder))?;
            return self.done(id, Ok(()));
        }
        let Some(mut have) = pending.have.take() else {
            return Err(WorkerError::Rules(
                "a file again that nothing was offered of",
            ));
        };
        let Some((partial, ..)) = have.partial.take() else {
            return Err(WorkerError::Rules(
                "a file again that nothing was offered of",
            ));
        };
        self.compared(&have)?;
        let mut basis = Basis::default();
        let same = rustix::io::fcntl_dupfd_cloexec(&partial.fd, 0);
        basis.files.extend(same);
        basis.left.push(partial);
        pending.have = Some(Box::new(Have {
            partial: None,
            basis,
        }));
        self.pending.insert(id, pending);
        self.to_compare.push_back(id);
        self.compare_next()
    }

    /// Takes away what earlier attempts have left of a file that is finished now.
    pub(super) fn tidy(&mut self, pending: &mut Pending) -> Result<(), Failure> {
        let Some(have) = &mut pending.have else {
            return Ok(());
        };
        let partial = have.partial.take().map(|(partial, ..)| partial);
        let left = have.basis.take_left().into_iter().chain(partial);
        let folder = self.tree.fd(&pending.folder)?;
        left.for_each(|left| left.remove(folder.as_fd()));
        Ok(())
    }
}
