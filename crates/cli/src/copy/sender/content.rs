//! What is in a file, on its way to the receiver.
//!
//! A small file is one message. A larger one is read once, hashed and sent as it comes; what the receiver has
//! of it already is in `changes`. Its stamp from before is compared with the one from after, and a difference is said.
//! Nothing is read behind the end that it had before: a file that grows for ever is copied all the same.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bowline_proto::copy::Message;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::super::bytes::{self, read_at};
use super::super::tree::{self, Folder};
use super::super::{Failure, SMALL_BYTES_MAX, WorkerError};
use super::Sender;
use super::answers::{Answers, FileSums, Want};
use super::changes;
use super::scan::Stamp;

/// A file in the course of being sent.
pub(super) struct Content<'a> {
    pub(super) id: u64,
    pub(super) file: BorrowedFd<'a>,
    /// From before anything was read.
    pub(super) stamp: Stamp,
}

impl Content<'_> {
    /// Where reading ends.
    pub(super) fn end(&self) -> u64 {
        match self.stamp.size {
            // What is not empty all the same is a file of /proc: it has no size, and an end.
            0 => u64::MAX,
            size => size,
        }
    }
}

/// Sends what is wanted of a file.
pub(super) fn send(
    sender: &mut Sender,
    want: &Want,
    folder: &Rc<Folder>,
    name: &[u8],
    scanned: Stamp,
    is_stream: bool,
    answers: &Answers,
) -> Result<(), WorkerError> {
    if is_stream {
        let fd = sender.tree.fd(folder).map_err(WorkerError::Line)?;
        return stream(sender, want.id, fd.as_fd(), answers);
    }
    let mut sums = FileSums::of(want, answers);
    let sent = match open(sender, folder, name) {
        Ok(file) => one(sender, want, file.as_fd(), scanned, &mut sums)?,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = sent {
        sender.abort(want.id, &failure)?;
    }
    if want.blocks.is_some() {
        // Nobody needs what still comes of the old file: the receiver stops when it has what we have said.
        sender.output.flush()?;
        sums.drain()?;
    }
    Ok(())
}

fn open(sender: &mut Sender, folder: &Rc<Folder>, name: &[u8]) -> Result<OwnedFd, Failure> {
    let fd = sender.tree.fd(folder)?;
    // A pipe that has taken the file's place must not make us wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    Ok(tree::open(fd.as_fd(), name, flags, Mode::empty())?)
}

/// The inner error is the file's; the outer one ends the copy.
pub(super) type Sent = Result<Result<(), Failure>, WorkerError>;

fn one(
    sender: &mut Sender,
    want: &Want,
    file: BorrowedFd<'_>,
    scanned: Stamp,
    sums: &mut FileSums<'_>,
) -> Sent {
    if want.blocks.is_none() && want.prefix.is_none() && scanned.size <= SMALL_BYTES_MAX {
        return small(sender, want, file, scanned);
    }
    let stamp = match stamp(file) {
        Ok(stamp) => stamp,
        Err(failure) => return Ok(Err(failure)),
    };
    let content = Content {
        id: want.id,
        file,
        stamp,
    };
    if sender.options.dry_run {
        return compare(sender, want, &content);
    }
    let mut hasher = blake3::Hasher::new();
    let mut from = 0;
    if let Some((len, hash)) = want.prefix {
        match bytes::hash_prefix(file, len, &mut hasher) {
            Ok(true) if *hasher.finalize().as_bytes() == hash => from = len,
            Ok(_) => return sender.output.send(&Message::Redo { id: want.id }).map(Ok),
            Err(error) => return Ok(Err(error.into())),
        }
    }
    match want.blocks {
        Some(layout) => changes::send(sender, &content, (from, hasher), layout, sums),
        None => whole(sender, &content, (from, hasher)),
    }
}

/// What the file is now, if it is one.
pub(super) fn stamp(file: BorrowedFd<'_>) -> Result<Stamp, Failure> {
    let stat = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Failure::new("changed", "it is no file any more"));
    }
    Ok(Stamp::of(&stat))
}

/// One message. The stamp of the walk serves as the one from before.
fn small(sender: &mut Sender, want: &Want, file: BorrowedFd<'_>, scanned: Stamp) -> Sent {
    let mut buffer = std::mem::take(&mut sender.buffer);
    let read = read_small(file, scanned, &mut buffer);
    let sent = match &read {
        Err(failure) => Ok(Err(failure.clone())),
        // It has grown out of this.
        Ok(None) => match stamp(file) {
            Ok(stamp) => {
                let content = Content {
                    id: want.id,
                    file,
                    stamp,
                };
                whole(sender, &content, (0, blake3::Hasher::new()))
            }
            Err(failure) => Ok(Err(failure)),
        },
        Ok(Some((len, changed))) => {
            let bytes = buffer.get(..*len).unwrap_or_default();
            let hash = *blake3::hash(bytes).as_bytes();
            let (id, same) = (want.id, want.same == Some(hash));
            let message = match (same, sender.options.dry_run) {
                (true, _) => Message::Same { id, hash: None },
                (false, true) => Message::Redo { id },
                (false, false) => Message::Small {
                    id,
                    hash,
                    changed: *changed,
                    bytes,
                },
            };
            sender.output.send(&message).map(Ok)
        }
    };
    sender.buffer = buffer;
    sent
}

/// Reads a small file: its length and whether it changed meanwhile; `None` if it is not small any more.
fn read_small(
    file: BorrowedFd<'_>,
    scanned: Stamp,
    buffer: &mut Vec<u8>,
) -> Result<Option<(usize, bool)>, Failure> {
    // One byte more than there should be shows the end without asking for it.
    buffer.resize(SMALL_BYTES_MAX as usize + 1, 0);
    let mut before = scanned;
    for _ in 0..2 {
        let expected = usize::try_from(before.size)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        let room = buffer.get_mut(..expected.min(SMALL_BYTES_MAX as usize + 1));
        let len = read_once(file, room.unwrap_or_default(), before.size)?;
        let after = stamp(file)?;
        if !before.differs(&after) && len as u64 == after.size {
            return Ok(Some((len, false)));
        }
        if after.size > SMALL_BYTES_MAX {
            return Ok(None);
        }
        // It is another one than the walk saw, or it is being written: once more.
        before = after;
    }
    let len = read_at(file, buffer, 0)?;
    let after = stamp(file)?;
    if len as u64 > SMALL_BYTES_MAX {
        return Ok(None);
    }
    Ok(Some((len, before.differs(&after))))
}

/// Reads a file of a known size; the read that finds nothing more is left out.
fn read_once(file: BorrowedFd<'_>, into: &mut [u8], size: u64) -> io::Result<usize> {
    match rustix::io::pread(file, &mut *into, 0) {
        Ok(len) if len as u64 == size => Ok(len),
        Ok(_) | Err(Errno::INTR) => read_at(file, into, 0),
        Err(errno) => Err(errno.into()),
    }
}

/// Says whether the content is the receiver's.
fn compare(sender: &mut Sender, want: &Want, content: &Content<'_>) -> Sent {
    let mut hasher = blake3::Hasher::new();
    let id = content.id;
    match bytes::hash_prefix(content.file, content.stamp.size, &mut hasher) {
        Ok(_) if want.same == Some(*hasher.finalize().as_bytes()) => sender
            .output
            .send(&Message::Same { id, hash: None })
            .map(Ok),
        Ok(_) => sender.output.send(&Message::Redo { id }).map(Ok),
        Err(error) => Ok(Err(error.into())),
    }
}

/// Sends the whole file, or what is behind the part that the receiver has, with the hash of that.
fn whole(
    sender: &mut Sender,
    content: &Content<'_>,
    (from, mut hasher): (u64, blake3::Hasher),
) -> Sent {
    let id = content.id;
    sender.output.send(&Message::Begin { id, from })?;
    let (file, end) = (content.file, content.end());
    let read = if content.stamp.is_sparse() {
        sparse(sender, file, from..end, &mut hasher)?
    } else {
        let len = end.saturating_sub(from);
        piece(sender, file, from, len, Some(&mut hasher))?.map(|_| ())
    };
    match read {
        Ok(()) => finish(sender, content, &hasher),
        Err(error) => Ok(Err(error.into())),
    }
}

pub(super) fn finish(sender: &mut Sender, content: &Content<'_>, hasher: &blake3::Hasher) -> Sent {
    let after = match stamp(content.file) {
        Ok(after) => after,
        Err(failure) => return Ok(Err(failure)),
    };
    let finish = Message::Finish {
        hash: *hasher.finalize().as_bytes(),
        changed: content.stamp.differs(&after),
    };
    sender.output.send(&finish).map(Ok)
}

/// Sends up to `len` bytes from `at` on, to the end of the file at most; gives how many.
fn piece(
    sender: &mut Sender,
    file: BorrowedFd<'_>,
    at: u64,
    len: u64,
    mut hasher: Option<&mut blake3::Hasher>,
) -> Result<io::Result<u64>, WorkerError> {
    let mut sent = 0;
    while sent < len {
        let read = sender.output.data(len - sent, |room| {
            let read = read_at(file, room, at + sent)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(room.get(..read).unwrap_or_default());
            }
            io::Result::Ok(read)
        })?;
        match read {
            Ok(0) => break,
            Ok(read) => sent += read as u64,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(sent))
}

/// Sends a file with holes: they are said, not sent.
fn sparse(
    sender: &mut Sender,
    file: BorrowedFd<'_>,
    range: Range<u64>,
    hasher: &mut blake3::Hasher,
) -> Result<io::Result<()>, WorkerError> {
    let mut at = range.start;
    while at < range.end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => match rustix::fs::fstat(file) {
                Ok(stat) => u64::try_from(stat.st_size).unwrap_or(0),
                Err(errno) => return Ok(Err(errno.into())),
            },
            // A file system that cannot tell.
            Err(_) => at,
        };
        let data = data.min(range.end);
        if data > at {
            bytes::zeros(hasher, data - at);
            sender.output.send(&Message::Hole(data - at))?;
            at = data;
        }
        let hole = rustix::fs::seek(file, SeekFrom::Hole(at));
        let end = hole.map_or(range.end, |hole| hole.min(range.end));
        let len = end.saturating_sub(at);
        if len == 0 {
            return Ok(Ok(()));
        }
        match piece(sender, file, at, len, Some(&mut *hasher))? {
            Ok(sent) if sent == 0 || sent < len => return Ok(Ok(())),
            Ok(sent) => at += sent,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

/// Sends what a descriptor gives until its end.
fn stream(
    sender: &mut Sender,
    id: u64,
    fd: BorrowedFd<'_>,
    answers: &Answers,
) -> Result<(), WorkerError> {
    let mut hasher = blake3::Hasher::new();
    sender.output.send(&Message::Begin { id, from: 0 })?;
    sender.output.flush()?;
    loop {
        // Somebody may be typing, and the other side be gone meanwhile.
        if !answers.wait_for(fd).map_err(WorkerError::Line)? {
            let gone = io::ErrorKind::BrokenPipe;
            return Err(WorkerError::Line(gone.into()));
        }
        let read = sender
            .output
            .data(u64::MAX, |room| match rustix::io::read(fd, &mut *room) {
                Ok(len) => {
                    hasher.update(room.get(..len).unwrap_or_default());
                    Ok(len)
                }
                Err(errno) => Err(errno),
            })?;
        match read {
            Ok(0) => break,
            // What comes slowly is sent as it comes.
            Ok(_) => sender.output.flush()?,
            Err(Errno::INTR) => {}
            Err(errno) => return sender.abort(id, &errno.into()),
        }
    }
    sender.output.send(&Message::Finish {
        hash: *hasher.finalize().as_bytes(),
        changed: false,
    })
}
