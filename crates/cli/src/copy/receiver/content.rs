//! The content of files: written under a temporary name, compared with what was read, and only
//! then given its name.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bowline_proto::copy::{Fsync, Hash};

use super::super::buffer::PAGE_BYTES;
use super::super::bytes::{read_at, zeros};
use super::super::{Failure, LARGE_BYTES_MIN, WorkerError};
use super::basis::Basis;
use super::temporary::Temporary;
use super::writer::{BUFFER_BYTES, Writer, write_at};
use super::{Pending, Receiver};
use crate::descriptor;

/// The file that is being written.
pub(super) struct Writing {
    id: u64,
    pending: Pending,
    place: Place,
    hasher: blake3::Hasher,
    at: u64,
    /// What is behind here was not written yet: a hole at the end.
    written: u64,
    /// It has failed; what still comes of it is dropped.
    failed: Option<Failure>,
    /// A part of it goes to the writer, and so does what comes behind.
    behind: bool,
}

enum Place {
    Temporary(Temporary),
    Stream,
    /// There is none, as it has failed before it began.
    None,
}

impl Writing {
    /// Nothing more comes of it for now: the part that is there is good, and the next attempt finds it.
    fn interrupt(&self) {
        if let (Place::Temporary(temporary), None) = (&self.place, &self.failed) {
            // A hole at the end belongs to it.
            let _ = rustix::fs::ftruncate(&temporary.fd, self.at);
        }
    }

    /// Writes at the end of what is there.
    fn write(&mut self, stream: Option<BorrowedFd<'_>>, bytes: &[u8]) -> Result<(), WorkerError> {
        if self.failed.is_some() {
            return Ok(());
        }
        self.hasher.update(bytes);
        let written = match (&self.place, stream) {
            (Place::Temporary(temporary), _) => write_at(temporary.fd.as_fd(), bytes, self.at),
            (Place::Stream, Some(stream)) => write_stream(stream, bytes)?,
            (Place::Stream, None) | (Place::None, _) => Ok(()),
        };
        self.at += bytes.len() as u64;
        self.written = self.at;
        self.failed = written.err().map(Failure::from);
        Ok(())
    }

    /// Writes bytes of a file that is here: by the writer, while the next are read.
    fn take_over(&mut self, from: BorrowedFd<'_>, mut offset: u64, len: u64, writer: &mut Writer) {
        let Place::Temporary(temporary) = &self.place else {
            return;
        };
        self.behind = true;
        let end = offset + len;
        while offset < end && self.failed.is_none() && !writer.has_failed() {
            let mut buffer = writer.buffer();
            // Writes end where pages and the hash's own blocks end.
            let room = BUFFER_BYTES as u64 - self.at % BUFFER_BYTES as u64;
            let room = usize::try_from(room.min(end - offset)).unwrap_or(BUFFER_BYTES);
            let start = (offset % PAGE_BYTES as u64) as usize;
            let bytes = buffer.get_mut(start..start + room).unwrap_or_default();
            match read_at(from, bytes, offset) {
                Ok(0) => {
                    self.failed = Some(Failure::new("changed", "the old file was cut short"));
                }
                Ok(read) => {
                    self.hasher.update(bytes.get(..read).unwrap_or_default());
                    writer.write(&temporary.fd, self.at, buffer, start..start + read);
                    (self.at, offset) = (self.at + read as u64, offset + read as u64);
                    self.written = self.at;
                }
                Err(error) => self.failed = Some(error.into()),
            }
        }
    }

    /// Whether so many bytes more are still within what was announced.
    fn fits(&mut self, len: u64) -> bool {
        let fits = self
            .at
            .checked_add(len)
            .is_some_and(|end| end <= self.pending.size);
        if !fits && self.failed.is_none() {
            self.failed = Some(Failure::new("changed", "it is longer than was announced"));
        }
        fits && self.failed.is_none()
    }
}

impl Receiver {
    /// A file that came whole.
    pub(super) fn small(&mut self, id: u64, hash: &Hash, bytes: &[u8]) -> Result<(), WorkerError> {
        if self.options.dry_run {
            return Err(DRY_RUN);
        }
        let pending = self.wanted(id)?;
        let good = blake3::hash(bytes).as_bytes() == hash;
        let result = match &self.root.stream {
            _ if !good => Err(mismatch()),
            Some(stream) => write_stream(stream.as_fd(), bytes)?.map_err(Failure::from),
            None => self.put_small(&pending, bytes),
        };
        self.finished(id, pending, result)
    }

    fn put_small(&mut self, pending: &Pending, bytes: &[u8]) -> Result<(), Failure> {
        let folder = self.tree.fd(&pending.folder)?;
        let mode = self.mode(&pending.attributes);
        let origin = self.options.origin;
        let temporary = Temporary::create(folder.as_fd(), &pending.name, origin, mode, &[])?;
        let put = write_at(temporary.fd.as_fd(), bytes, 0).map_err(Failure::from);
        let put = put.and_then(|()| self.name(&temporary, folder.as_fd(), pending));
        if put.is_err() {
            temporary.remove(folder.as_fd());
        }
        put
    }

    /// The file is whole: what it is like, and its name.
    fn name(
        &self,
        temporary: &Temporary,
        folder: BorrowedFd<'_>,
        pending: &Pending,
    ) -> Result<(), Failure> {
        let now = rustix::fs::fstat(&temporary.fd)?.st_mode;
        self.apply(temporary.fd.as_fd(), &pending.attributes, now)?;
        if self.options.fsync != Fsync::None {
            rustix::fs::fsync(&temporary.fd)?;
        }
        Ok(temporary.rename(folder, &pending.name)?)
    }

    /// A file's content begins.
    pub(super) fn begin(&mut self, id: u64, from: u64) -> Result<(), WorkerError> {
        if self.writing.is_some() {
            return Err(WorkerError::Rules("a file within a file"));
        }
        if self.options.dry_run {
            return Err(DRY_RUN);
        }
        let mut pending = self.wanted(id)?;
        let partial = pending.have.as_mut().and_then(|have| have.partial.take());
        let offered = partial.as_ref().map_or(0, |(_, len, _)| *len);
        if from != 0 && from != offered {
            return Err(WorkerError::Rules("a beginning that nobody has"));
        }
        let opened = self.place_of(&pending, partial, from);
        let (place, hasher, failed) = match opened {
            Ok((place, hasher)) => (place, hasher, None),
            Err(failure) => (Place::None, blake3::Hasher::new(), Some(failure)),
        };
        self.writing = Some(Writing {
            id,
            pending,
            place,
            hasher,
            at: from,
            written: from,
            failed,
            behind: false,
        });
        Ok(())
    }

    fn place_of(
        &mut self,
        pending: &Pending,
        partial: Option<(Temporary, u64, blake3::Hasher)>,
        from: u64,
    ) -> Result<(Place, blake3::Hasher), Failure> {
        if self.root.stream.is_some() {
            return Ok((Place::Stream, blake3::Hasher::new()));
        }
        match partial {
            Some((partial, _, hasher)) if from > 0 => Ok((Place::Temporary(partial), hasher)),
            partial => {
                let folder = self.tree.fd(&pending.folder)?;
                if let Some((partial, ..)) = partial {
                    partial.remove(folder.as_fd());
                }
                let mode = self.mode(&pending.attributes);
                let origin = self.options.origin;
                let held = pending
                    .have
                    .as_ref()
                    .map_or(&[][..], |have| have.basis.left());
                let made = Temporary::create(folder.as_fd(), &pending.name, origin, mode, held)?;
                Ok((Place::Temporary(made), blake3::Hasher::new()))
            }
        }
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<(), WorkerError> {
        let stream = self.root.stream.as_ref().map(OwnedFd::as_fd);
        let writing = self.writing.as_mut().ok_or(NO_FILE)?;
        if std::mem::take(&mut writing.behind) {
            settle(&mut self.writer, writing);
        }
        writing.write(stream, bytes)
    }

    pub(super) fn hole(&mut self, len: u64) -> Result<(), WorkerError> {
        let stream = self.root.stream.as_ref().map(OwnedFd::as_fd);
        let writing = self.writing.as_mut().ok_or(NO_FILE)?;
        if !writing.fits(len) {
            return Ok(());
        }
        if let Place::Stream = writing.place {
            let zeros = [0; 16 * 1024];
            let mut left = len;
            while left > 0 && writing.failed.is_none() {
                let now = left.min(zeros.len() as u64);
                writing.write(stream, zeros.get(..now as usize).unwrap_or_default())?;
                left -= now;
            }
        } else {
            zeros(&mut writing.hasher, len);
            writing.at += len;
        }
        Ok(())
    }

    /// Blocks that are here already.
    pub(super) fn blocks(&mut self, first: u64, count: u64) -> Result<(), WorkerError> {
        let writing = self.writing.as_mut().ok_or(NO_FILE)?;
        let have = writing.pending.have.take().ok_or(NO_BLOCK)?;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(Writer::new().map_err(WorkerError::Line)?),
        };
        let taken = take_blocks(writing, &have.basis, first, count, writer);
        writing.pending.have = Some(have);
        taken
    }

    /// The line broke.
    pub(super) fn interrupt(&mut self) {
        if let Some(mut writing) = self.writing.take() {
            settle(&mut self.writer, &mut writing);
            writing.interrupt();
        }
    }

    /// The end of a file's content, and the hash of what was read.
    pub(super) fn finish(&mut self, hash: &Hash) -> Result<(), WorkerError> {
        let mut writing = self.writing.take().ok_or(NO_FILE)?;
        settle(&mut self.writer, &mut writing);
        let id = writing.id;
        let good = writing.hasher.finalize().as_bytes() == hash;
        let result = match (&writing.failed, good) {
            (Some(failure), _) => Err(failure.clone()),
            (None, false) => Err(mismatch()),
            (None, true) => self.put(&writing),
        };
        if result.is_err() {
            self.throw_away(&writing);
        }
        // Blocks may have been taken for others, or be of a file that has changed meanwhile: then all of it, once.
        let from_blocks = writing.pending.have.is_some() && !writing.pending.again;
        if result.is_err() && !good && from_blocks && writing.failed.is_none() {
            return self.want_all(id, writing.pending);
        }
        self.finished(id, writing.pending, result)
    }

    fn put(&mut self, writing: &Writing) -> Result<(), Failure> {
        let Place::Temporary(temporary) = &writing.place else {
            return Ok(());
        };
        if writing.at != writing.written {
            rustix::fs::ftruncate(&temporary.fd, writing.at)?;
        }
        let folder = self.tree.fd(&writing.pending.folder)?;
        self.name(temporary, folder.as_fd(), &writing.pending)
    }

    fn throw_away(&mut self, writing: &Writing) {
        if let (Place::Temporary(temporary), Ok(folder)) =
            (&writing.place, self.tree.fd(&writing.pending.folder))
        {
            temporary.remove(folder.as_fd());
        }
    }

    /// Asks for all of a file: what was offered of it was no good.
    fn want_all(&mut self, id: u64, mut pending: Pending) -> Result<(), WorkerError> {
        let _ = self.tidy(&mut pending);
        pending.again = true;
        if let Some(have) = pending.have.take() {
            self.compared(&have)?;
        }
        self.pending.insert(id, pending);
        self.want(id)
    }

    /// The sender cannot give a file, or not all of it.
    pub(super) fn abort(&mut self, id: u64) -> Result<(), WorkerError> {
        match self.writing.take() {
            Some(mut writing) if writing.id == id => {
                settle(&mut self.writer, &mut writing);
                // What was read of a large one is good; it may be read again.
                match writing.at >= LARGE_BYTES_MIN {
                    true => writing.interrupt(),
                    false => self.throw_away(&writing),
                }
                self.finished(id, writing.pending, Err(not_read()))
            }
            Some(_) => Err(WorkerError::Rules("a file within a file")),
            None => {
                let pending = self.wanted(id)?;
                self.finished(id, pending, Err(not_read()))
            }
        }
    }

    /// The content that is here is the sender's. Blocks alone do not show that: the hash of all does.
    pub(super) fn same(&mut self, id: u64, hash: Option<&Hash>) -> Result<(), WorkerError> {
        let mut pending = self.wanted(id)?;
        if let (Some(hash), Some(have)) = (hash, &pending.have)
            && !have.basis.is(hash).unwrap_or(false)
            && !pending.again
        {
            return self.want_all(id, pending);
        }
        let result = self.keep(&pending);
        let _ = self.tidy(&mut pending);
        if let Some(have) = pending.have.take() {
            self.compared(&have)?;
        }
        let good = result.is_ok();
        self.release(&pending.folder)?;
        match result {
            Ok(()) => self.skip(id),
            Err(failure) => self.done(id, Err(failure)),
        }?;
        self.settle(id, good.then_some((&pending.folder, &pending.name)))
    }

    fn keep(&mut self, pending: &Pending) -> Result<(), Failure> {
        if self.options.dry_run {
            return Ok(());
        }
        let folder = self.tree.fd(&pending.folder)?;
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(&folder, pending.name.as_slice(), flags)?;
        self.touch(folder.as_fd(), &pending.name, &pending.attributes, &stat)
    }

    /// Takes a file that was asked for.
    fn wanted(&mut self, id: u64) -> Result<Pending, WorkerError> {
        let wanted = self.pending.remove(&id);
        wanted.ok_or(WorkerError::Rules("a file that nobody asked for"))
    }

    /// A file is over, well or not.
    pub(super) fn finished(
        &mut self,
        id: u64,
        mut pending: Pending,
        result: Result<(), Failure>,
    ) -> Result<(), WorkerError> {
        if result.is_ok() {
            let _ = self.tidy(&mut pending);
        }
        if let Some(have) = pending.have.take() {
            have.basis.free(&mut self.freeing);
            self.compared(&have)?;
        }
        let good = result.is_ok();
        self.release(&pending.folder)?;
        self.done(id, result)?;
        self.settle(id, good.then_some((&pending.folder, &pending.name)))
    }
}

const DRY_RUN: WorkerError = WorkerError::Rules("content in a dry run");
const NO_FILE: WorkerError = WorkerError::Rules("content of no file");
const NO_BLOCK: WorkerError = WorkerError::Rules("a block that there is not");

fn mismatch() -> Failure {
    Failure::new("hash_mismatch", "what was written is not what was read")
}

fn not_read() -> Failure {
    Failure::new("not_read", "it could not be read where it comes from")
}

/// Waits for what is still being written of a file.
fn settle(writer: &mut Option<Writer>, writing: &mut Writing) {
    if let Some(Err(error)) = writer.as_mut().map(Writer::settle) {
        writing.failed.get_or_insert(error.into());
    }
}

/// Puts blocks behind what is there of a file.
fn take_blocks(
    writing: &mut Writing,
    basis: &Basis,
    mut first: u64,
    mut count: u64,
    writer: &mut Writer,
) -> Result<(), WorkerError> {
    first.checked_add(count).ok_or(NO_BLOCK)?;
    while count > 0 {
        let (file, offset, len) = basis.place(first, count).ok_or(NO_BLOCK)?;
        if !writing.fits(len) {
            return Ok(());
        }
        writing.take_over(file.as_fd(), offset, len, writer);
        let taken = len.div_ceil(basis.block());
        (first, count) = (first + taken, count - taken);
    }
    Ok(())
}

/// # Errors
/// [`WorkerError::Unread`]; the inner one as write(2).
fn write_stream(stream: BorrowedFd<'_>, bytes: &[u8]) -> Result<io::Result<()>, WorkerError> {
    match descriptor::write_all(stream, bytes) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(WorkerError::Unread),
        written => Ok(written),
    }
}
