//! What is in a file, on its way to the receiver.
//!
//! A small file is one message. A larger one is read once, hashed and sent as it comes. Where the receiver
//! has something of it, the file is first cut and compared, and only what is new is read again
//! and sent. Its stamp from before is compared with the one from after, and a difference is said.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bowline_proto::copy::{CHUNK_HASH_BYTES, CHUNKS_MAX, Hash, Message};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::super::chunks::{self, read_at};
use super::super::tree::{self, Folder};
use super::super::{Failure, SMALL_BYTES_MAX, WorkerError};
use super::Sender;
use super::answers::{Answer, Answers, Want};
use super::scan::Stamp;

/// A file in the course of being sent.
struct Content<'a> {
    id: u64,
    file: BorrowedFd<'a>,
    /// From before anything was read.
    stamp: Stamp,
}

/// A run of chunks of a file: what the receiver has, what it has not, and what is not there at all.
enum Run {
    Known { first: u64, count: u64 },
    New { offset: u64, len: u64 },
    Hole { len: u64 },
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
    let opened = open(sender, folder, name);
    let sent = match &opened {
        Ok(file) => one(sender, want, file.as_fd(), scanned, answers)?,
        Err(failure) => Err(failure.clone()),
    };
    let Err(failure) = sent else { return Ok(()) };
    if want.chunks.is_some() && opened.is_err() {
        basis(answers)?;
    }
    sender.abort(want.id, &failure)
}

fn open(sender: &mut Sender, folder: &Rc<Folder>, name: &[u8]) -> Result<OwnedFd, Failure> {
    let fd = sender.tree.fd(folder)?;
    // A pipe that has taken the file's place must not make us wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    Ok(tree::open(fd.as_fd(), name, flags, Mode::empty())?)
}

/// The inner error is the file's; the outer one ends the copy.
type Sent = Result<Result<(), Failure>, WorkerError>;

fn one(
    sender: &mut Sender,
    want: &Want,
    file: BorrowedFd<'_>,
    scanned: Stamp,
    answers: &Answers,
) -> Sent {
    if want.chunks.is_none() && want.prefix.is_none() && scanned.size <= SMALL_BYTES_MAX {
        return small(sender, want, file, scanned);
    }
    let stamp = match stamp(file) {
        Ok(stamp) => stamp,
        Err(failure) => {
            if want.chunks.is_some() {
                basis(answers)?;
            }
            return Ok(Err(failure));
        }
    };
    let content = Content {
        id: want.id,
        file,
        stamp,
    };
    if sender.options.dry_run {
        return compare(sender, want, &content);
    }
    match want.chunks {
        Some(log2) => changes(sender, want, &content, log2, answers),
        None => whole(sender, want, &content),
    }
}

/// What the file is now, if it is one.
fn stamp(file: BorrowedFd<'_>) -> Result<Stamp, Failure> {
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
                whole(sender, want, &content)
            }
            Err(failure) => Ok(Err(failure)),
        },
        Ok(Some((len, changed))) => {
            let bytes = buffer.get(..*len).unwrap_or_default();
            let hash = *blake3::hash(bytes).as_bytes();
            let (id, same) = (want.id, want.same == Some(hash));
            let message = match (same, sender.options.dry_run) {
                (true, _) => Message::Same { id },
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
    match chunks::hash_prefix(content.file, content.stamp.size, &mut hasher) {
        Ok(_) if want.same == Some(*hasher.finalize().as_bytes()) => {
            sender.output.send(&Message::Same { id }).map(Ok)
        }
        Ok(_) => sender.output.send(&Message::Redo { id }).map(Ok),
        Err(error) => Ok(Err(error.into())),
    }
}

/// Sends the whole file, or what is behind the part that the receiver has.
fn whole(sender: &mut Sender, want: &Want, content: &Content<'_>) -> Sent {
    let mut hasher = blake3::Hasher::new();
    let mut from = 0;
    if let Some((len, hash)) = want.prefix {
        let read = chunks::hash_prefix(content.file, len, &mut hasher);
        match read {
            Ok(true) if *hasher.finalize().as_bytes() == hash => from = len,
            Ok(_) => {
                return sender
                    .output
                    .send(&Message::Redo { id: content.id })
                    .map(Ok);
            }
            Err(error) => return Ok(Err(error.into())),
        }
    }
    let id = content.id;
    sender.output.send(&Message::Begin { id, from })?;
    let read = if content.stamp.is_sparse() {
        sparse(sender, content.file, from, &mut hasher)?
    } else {
        piece(sender, content.file, from, u64::MAX, Some(&mut hasher))?.map(|_| ())
    };
    match read {
        Ok(()) => finish(sender, content, &hasher),
        Err(error) => Ok(Err(error.into())),
    }
}

fn finish(sender: &mut Sender, content: &Content<'_>, hasher: &blake3::Hasher) -> Sent {
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
    from: u64,
    hasher: &mut blake3::Hasher,
) -> Result<io::Result<()>, WorkerError> {
    let mut at = from;
    loop {
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
        if data > at {
            chunks::zeros(hasher, data - at);
            sender.output.send(&Message::Hole(data - at))?;
            at = data;
        }
        let hole = rustix::fs::seek(file, SeekFrom::Hole(at));
        let len = hole.map_or(u64::MAX, |hole| hole.saturating_sub(at));
        if len == 0 {
            return Ok(Ok(()));
        }
        match piece(sender, file, at, len, Some(&mut *hasher))? {
            Ok(sent) if sent == 0 || sent < len => return Ok(Ok(())),
            Ok(sent) => at += sent,
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Compares by chunks and sends what is new.
fn changes(
    sender: &mut Sender,
    want: &Want,
    content: &Content<'_>,
    log2: u8,
    answers: &Answers,
) -> Sent {
    // The receiver cuts its file at the same time.
    sender.output.flush()?;
    let mut whole = blake3::Hasher::new();
    let cut = cut(content, want, log2, &mut whole);
    let (known, root) = basis(answers)?;
    let (found, from) = match cut {
        Ok(Some(cut)) => cut,
        Ok(None) => {
            return sender
                .output
                .send(&Message::Redo { id: content.id })
                .map(Ok);
        }
        Err(error) => return Ok(Err(error.into())),
    };
    let id = content.id;
    if root.is_some_and(|root| root == found.root()) {
        return sender.output.send(&Message::Same { id }).map(Ok);
    }
    sender.output.send(&Message::Begin { id, from })?;
    let holes = match content.stamp.is_sparse() {
        true => holes(content.file),
        false => Vec::new(),
    };
    for run in found.runs(&known, &holes) {
        match run {
            Run::Hole { len } => sender.output.send(&Message::Hole(len))?,
            Run::Known { first, count } => {
                sender.output.send(&Message::Chunks { first, count })?;
            }
            Run::New { offset, len } => {
                let sent = piece(sender, content.file, offset, len, None)?;
                match sent {
                    Ok(sent) if sent == len => {}
                    Ok(_) => {
                        return Ok(Err(Failure::new(
                            "changed",
                            "it was cut short while it was read",
                        )));
                    }
                    Err(error) => return Ok(Err(error.into())),
                }
            }
        }
    }
    finish(sender, content, &whole)
}

/// Cuts the file; `None` if its beginning is not the one that the receiver has.
fn cut(
    content: &Content<'_>,
    want: &Want,
    log2: u8,
    whole: &mut blake3::Hasher,
) -> io::Result<Option<(Cut, u64)>> {
    let mut from = 0;
    if let Some((len, hash)) = want.prefix {
        let long_enough = chunks::hash_prefix(content.file, len, whole)?;
        if !long_enough || *whole.finalize().as_bytes() != hash {
            return Ok(None);
        }
        from = len;
    }
    let mut cut = Cut {
        root: blake3::Hasher::new(),
        chunks: Vec::new(),
        from,
    };
    chunks::cut(content.file, from, log2, Some(whole), |chunk| {
        cut.root.update(&chunk.hash);
        cut.chunks.push((chunk.len, short(&chunk.hash)));
        Ok(())
    })?;
    Ok(Some((cut, from)))
}

fn short(hash: &Hash) -> [u8; CHUNK_HASH_BYTES] {
    let mut short = [0; CHUNK_HASH_BYTES];
    short
        .iter_mut()
        .zip(hash)
        .for_each(|(to, from)| *to = *from);
    short
}

type Known = Vec<(u32, [u8; CHUNK_HASH_BYTES])>;

/// Takes the receiver's chunks, which follow its `Want`.
fn basis(answers: &Answers) -> Result<(Known, Option<Hash>), WorkerError> {
    let mut known = Known::new();
    loop {
        match answers.next(true)? {
            Some(Answer::Chunks(chunks)) => known.extend(chunks),
            Some(Answer::ChunksEnd(root)) => return Ok((known, root)),
            _ => return Err(WorkerError::Rules("something between the chunks of a file")),
        }
        if known.len() as u64 > CHUNKS_MAX {
            return Err(WorkerError::Rules("more chunks than a file may have"));
        }
    }
}

/// A file in chunks.
struct Cut {
    root: blake3::Hasher,
    chunks: Known,
    from: u64,
}

impl Cut {
    fn root(&self) -> Hash {
        *self.root.finalize().as_bytes()
    }

    /// What of it is known, in order. A chunk that lies in one of the `holes` is a part of it.
    fn runs(&self, known: &Known, holes: &[Range<u64>]) -> Vec<Run> {
        let mut places = HashMap::with_capacity(known.len());
        for (index, chunk) in known.iter().enumerate() {
            places.entry(*chunk).or_insert(index);
        }
        let (mut runs, mut offset) = (Vec::<Run>::new(), self.from);
        // The chunk behind the last one is the likeliest: contents repeat themselves.
        let mut next = usize::MAX;
        let mut holes = holes.iter().peekable();
        for chunk in &self.chunks {
            let end = offset + u64::from(chunk.0);
            while holes.next_if(|hole| hole.end < end).is_some() {}
            if holes.peek().is_some_and(|hole| hole.start <= offset) {
                match runs.last_mut() {
                    Some(Run::Hole { len }) => *len += end - offset,
                    _ => runs.push(Run::Hole { len: end - offset }),
                }
                (next, offset) = (usize::MAX, end);
                continue;
            }
            let follows = known.get(next) == Some(chunk);
            let place = if follows {
                Some(next)
            } else {
                places.get(chunk).copied()
            };
            let len = u64::from(chunk.0);
            match (place, runs.last_mut()) {
                (Some(at), Some(Run::Known { count, .. })) if at == next => *count += 1,
                (Some(at), _) => runs.push(Run::Known {
                    first: at as u64,
                    count: 1,
                }),
                (None, Some(Run::New { len: before, .. })) => *before += len,
                (None, _) => runs.push(Run::New { offset, len }),
            }
            next = place.map_or(usize::MAX, |at| at + 1);
            offset += len;
        }
        runs
    }
}

/// Where nothing is stored of a file; nowhere, where the file system cannot tell.
fn holes(file: BorrowedFd<'_>) -> Vec<Range<u64>> {
    let mut holes = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Hole(at)) {
        match rustix::fs::seek(file, SeekFrom::Data(start)) {
            Ok(end) => holes.push(start..end),
            // Up to the end.
            Err(Errno::NXIO) => holes.push(start..u64::MAX),
            Err(_) => {}
        }
        match holes.last() {
            Some(hole) if hole.start == start && hole.end < u64::MAX => at = hole.end,
            _ => break,
        }
    }
    holes
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
