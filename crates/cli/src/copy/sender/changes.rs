//! A file of which the receiver has blocks: what is in none of them is sent.
//!
//! It is read once, from the front. The receiver's sums come in meanwhile, and what was said of the file's
//! beginning is at work there while its end is still unread. As long as the file may be as it was nothing is said;
//! if that is so to the end, one message says it, and the receiver makes sure.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use bowline_proto::copy::{Layout, Matcher, Message, Step};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::super::WorkerError;
use super::super::buffer::{Buffer, PAGE_BYTES};
use super::super::bytes::read_at;
use super::Sender;
use super::answers::FileSums;
use super::content::{Content, Sent, finish, stamp};

/// Bytes that are read at once: they are hashed twice while they are in the cache.
const READ_BYTES: usize = 128 * 1024;
/// Room for some reads; more is made where much is searched.
const WINDOW_BYTES: usize = 4 * READ_BYTES + PAGE_BYTES;
/// Bytes of blocks that are worth a write, so that the receiver gets to work early.
const BLOCKS_BYTES_WORTH: u64 = 8 * 1024 * 1024;

/// Sends what is new of a file, from an offset on with the hash up to there.
pub(super) fn send(
    sender: &mut Sender,
    content: &Content<'_>,
    (from, hasher): (u64, blake3::Hasher),
    layout: Layout,
    sums: &mut FileSums<'_>,
) -> Sent {
    let mut matcher = Matcher::new(layout, from);
    let mut window = Window::new(content, from, hasher);
    let mut changes = Changes::new(content, from, layout);
    sender.output.flush()?;
    loop {
        while sums.pass_to(&mut matcher, false)? {}
        match matcher.step(window.bytes(), window.ended) {
            Step::Sums => {
                sender.output.flush()?;
                sums.pass_to(&mut matcher, true)?;
            }
            Step::Bytes(len) => {
                if let Err(error) = window.fill(len) {
                    return Ok(Err(error.into()));
                }
            }
            Step::Block { index, len } => {
                changes.block(sender, index, len as u64)?;
                window.start += len;
            }
            Step::New(len) => {
                changes.new_bytes(sender, window.bytes().get(..len).unwrap_or_default())?;
                window.start += len;
            }
            Step::End => return changes.end(sender, content, &window.hasher),
        }
    }
}

/// The part of a file that is looked at.
struct Window<'a> {
    file: BorrowedFd<'a>,
    /// Of everything that was read, and what is before it.
    hasher: blake3::Hasher,
    /// Its offsets in pages are those of the file.
    buffer: Buffer,
    start: usize,
    end: usize,
    /// Where in the file `end` is.
    at: u64,
    /// Where reading ends.
    until: u64,
    ended: bool,
}

impl<'a> Window<'a> {
    fn new(content: &Content<'a>, at: u64, hasher: blake3::Hasher) -> Self {
        Self {
            file: content.file,
            hasher,
            buffer: Buffer::new(WINDOW_BYTES),
            start: in_page(at),
            end: in_page(at),
            at,
            until: content.end(),
            ended: false,
        }
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads until there are so many bytes, or to the end of the file.
    fn fill(&mut self, len: usize) -> io::Result<()> {
        // Reads end where pages and the hash's own blocks end.
        let wanted = len + READ_BYTES;
        let held = self.end - self.start;
        let front = in_page(self.at - held as u64);
        if self.buffer.len() < front + wanted {
            let mut larger = Buffer::new(PAGE_BYTES + wanted);
            let to = larger.get_mut(front..front + held).unwrap_or_default();
            to.copy_from_slice(self.bytes());
            self.buffer = larger;
            (self.start, self.end) = (front, front + held);
        } else if self.buffer.len() - self.start < wanted || held == 0 {
            self.buffer.copy_within(self.start..self.end, front);
            (self.start, self.end) = (front, front + held);
        }
        while self.end - self.start < len && !self.ended {
            let read = READ_BYTES as u64 - self.at % READ_BYTES as u64;
            let read = read.min(self.until.saturating_sub(self.at)) as usize;
            let room = self.buffer.get_mut(self.end..self.end + read);
            let room = room.unwrap_or_default();
            let got = read_at(self.file, room, self.at)?;
            self.hasher.update(room.get(..got).unwrap_or_default());
            self.end += got;
            self.at += got as u64;
            self.ended = got < read || self.at >= self.until;
        }
        Ok(())
    }
}

fn in_page(at: u64) -> usize {
    (at % PAGE_BYTES as u64) as usize
}

/// What was found and not said yet.
struct Changes {
    id: u64,
    /// Where the content begins, and how far it is said.
    from: u64,
    at: u64,
    layout: Layout,
    /// So many blocks lie where they were, and nothing is said yet.
    unchanged: Option<u64>,
    /// It was said that content follows.
    begun: bool,
    /// Blocks that follow each other: the first, how many, and their bytes.
    run: (u64, u64, u64),
    holes: std::iter::Peekable<std::vec::IntoIter<Range<u64>>>,
}

impl Changes {
    fn new(content: &Content<'_>, from: u64, layout: Layout) -> Self {
        let holes = match content.stamp.is_sparse() {
            true => holes(content.file),
            false => Vec::new(),
        };
        Self {
            id: content.id,
            from,
            at: from,
            layout,
            // What is longer or shorter, or has begun already, cannot be as it was.
            unchanged: (from == 0 && layout.sizes() == [content.stamp.size, 0]).then_some(0),
            begun: false,
            run: (0, 0, 0),
            holes: holes.into_iter().peekable(),
        }
    }

    fn block(&mut self, sender: &mut Sender, index: u64, len: u64) -> Result<(), WorkerError> {
        match &mut self.unchanged {
            Some(count) if *count == index => {
                *count += 1;
                self.at += len;
                Ok(())
            }
            _ => {
                self.begin(sender)?;
                self.put_block(sender, index, len)
            }
        }
    }

    fn new_bytes(&mut self, sender: &mut Sender, mut bytes: &[u8]) -> Result<(), WorkerError> {
        self.begin(sender)?;
        self.say_run(sender)?;
        while !bytes.is_empty() {
            let (len, is_hole) = match self.hole() {
                Some(hole) if hole.start <= self.at => (hole.end - self.at, true),
                Some(hole) => (hole.start - self.at, false),
                None => (u64::MAX, false),
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            match is_hole {
                true => sender.output.send(&Message::Hole(len as u64))?,
                false => put_data(sender, now)?,
            }
            self.at += len as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Says that content follows, and what was held back of it.
    fn begin(&mut self, sender: &mut Sender) -> Result<(), WorkerError> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        let unchanged = self.unchanged.take().unwrap_or(0);
        let (id, from) = (self.id, self.from);
        sender.output.send(&Message::Begin { id, from })?;
        self.at = from;
        for index in 0..unchanged {
            let place = self.layout.place(index, 1);
            self.put_block(sender, index, place.map_or(0, |place| place.len))?;
        }
        Ok(())
    }

    fn put_block(&mut self, sender: &mut Sender, index: u64, len: u64) -> Result<(), WorkerError> {
        let end = self.at + len;
        let hole = self.hole();
        if hole.is_some_and(|hole| hole.start <= self.at && end <= hole.end) {
            self.say_run(sender)?;
            sender.output.send(&Message::Hole(len))?;
        } else {
            let (first, count, bytes) = self.run;
            let follows = first + count == index && bytes < BLOCKS_BYTES_WORTH;
            if count > 0 && !follows {
                self.say_run(sender)?;
            }
            self.run = match follows && count > 0 {
                true => (first, count + 1, bytes + len),
                false => (index, 1, len),
            };
        }
        self.at = end;
        Ok(())
    }

    fn say_run(&mut self, sender: &mut Sender) -> Result<(), WorkerError> {
        let (first, count, bytes) = std::mem::take(&mut self.run);
        if count > 0 {
            sender.output.send(&Message::Blocks { first, count })?;
            if bytes >= BLOCKS_BYTES_WORTH {
                sender.output.flush()?;
            }
        }
        Ok(())
    }

    /// The next hole that is not behind us.
    fn hole(&mut self) -> Option<Range<u64>> {
        let at = self.at;
        while self.holes.next_if(|hole| hole.end <= at).is_some() {}
        self.holes.peek().cloned()
    }

    fn end(mut self, sender: &mut Sender, content: &Content<'_>, hasher: &blake3::Hasher) -> Sent {
        let unchanged = self.unchanged.is_some() && self.at == content.stamp.size;
        if unchanged && stamp(content.file).is_ok_and(|after| !content.stamp.differs(&after)) {
            let (id, hash) = (self.id, Some(*hasher.finalize().as_bytes()));
            return sender.output.send(&Message::Same { id, hash }).map(Ok);
        }
        self.begin(sender)?;
        self.say_run(sender)?;
        finish(sender, content, hasher)
    }
}

fn put_data(sender: &mut Sender, mut bytes: &[u8]) -> Result<(), WorkerError> {
    while !bytes.is_empty() {
        let put = sender.output.data(bytes.len() as u64, |room| {
            let len = room.len().min(bytes.len());
            let (now, later) = bytes.split_at(len);
            room.get_mut(..len).unwrap_or_default().copy_from_slice(now);
            bytes = later;
            Ok::<_, std::convert::Infallible>(len)
        })?;
        let Ok(_) = put;
    }
    Ok(())
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
