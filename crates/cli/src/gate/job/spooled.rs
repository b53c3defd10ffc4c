//! A detached job's output on the disk: how it gets there, how it is read, and what is found of it
//! by the next gate, or when the job ended long ago.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use bowline_proto::frame::Stream;
use bowline_proto::id::JobId;
use rustix::fs::FallocateFlags;

use super::output::Output;
use super::ring::{self, Layout};
use super::{Job, OUTPUT, Stage, State};
use crate::clock::unix_ms;
use crate::gate::spool::{Ended, Spools};
use crate::ipc::{Spool, SpoolPolicy, Stdin, Terms};

/// What is copied at once.
const PIECE_BYTES: usize = 128 * 1024;

/// What is given back to the file system at once, and aligned to: no block is smaller, and few are larger.
const PUNCH_BYTES: u64 = 64 * 1024;

/// The terms of a job that has ended; nothing of them matters any more.
const OVER: Terms = Terms {
    keep: false,
    grace_ms: None,
    wait_output: false,
    spool: Some(Spool {
        policy: SpoolPolicy::Block,
        bytes: None,
    }),
};

impl Job {
    /// A detached job that has ended, as its files show it. `None` where there is none.
    ///
    /// # Errors
    /// As open(2) and read(2).
    pub(in crate::gate) fn ended(id: JobId, spools: &Spools) -> io::Result<Option<Self>> {
        let Some(ended) = spools.ended(id)? else {
            return Ok(None);
        };
        let job = Self {
            id,
            user: ended.user.clone(),
            uid: ended.uid,
            fingerprint: ended.fingerprint,
            terms: OVER,
            pty: ended.pty,
            memfds: Default::default(),
            master: Default::default(),
            files: Default::default(),
            marks: Default::default(),
            state: Mutex::new(State::new(Stdin::Null, &OVER)),
        };
        job.find(spools)?;
        job.state().ended(ended);
        Ok(Some(job))
    }

    /// Looks how much of an earlier gate's job is on the disk, and whether that is all. To be
    /// done before anybody attaches.
    ///
    /// # Errors
    /// As open(2) and fstat(2).
    pub(in crate::gate) fn find_spool(&self, spools: &Spools) -> io::Result<()> {
        if !self.is_detached() {
            return Ok(());
        }
        self.find(spools)?;
        if let Some(ended) = spools.ended(self.id)? {
            self.state().ended(ended);
        }
        Ok(())
    }

    fn find(&self, spools: &Spools) -> io::Result<()> {
        let from = match spools.marks(self.id)? {
            Some(marks) => self.marks.get_or_init(|| marks).from()?,
            None => [0; 2],
        };
        let mut state = self.state();
        let streams = OUTPUT.into_iter().zip(&self.files).zip(from);
        for (((stream, place), from), output) in streams.zip(&mut state.output) {
            let Some(file) = spools.open(self.id, stream)? else {
                continue;
            };
            let end = file.metadata()?.len();
            let _ = place.set(file);
            output.spooled(end);
            output.drop_before(from);
            // What was in the ring is gone where keeper and gate have died together.
            output.end = output.end.max(end);
            output.reserved = output.end;
        }
        Ok(())
    }

    /// Reads what is at `offset` of a stream: as much as there is space for, or less. The caller
    /// has seen in its [`Output`] that it is there.
    ///
    /// # Errors
    /// As pread(2).
    pub(super) fn read(
        &self,
        (stream, output): (Stream, &Output),
        offset: u64,
        space: &mut [u8],
    ) -> io::Result<usize> {
        if self.is_detached() {
            let file = self.files.get(index_of(stream)).and_then(|file| file.get());
            return file.ok_or(io::ErrorKind::NotFound)?.read_at(space, offset);
        }
        let memfd = self.memfd(stream).ok_or(io::ErrorKind::NotFound)?;
        ring::read(memfd, output.layout, offset, space)
    }

    /// Where each stream begins that came at `unix_ms` or later; `None` where that is not known.
    ///
    /// # Errors
    /// As pread(2).
    pub(super) fn since(&self, unix_ms: u64) -> io::Result<Option<[u64; 2]>> {
        if !self.is_detached() {
            return Ok(None);
        }
        let known = self.marks.get().map(|marks| marks.since(unix_ms));
        let known = known.transpose()?.flatten();
        Ok(Some(known.unwrap_or([u64::MAX; 2])))
    }

    /// What follows is written now or later.
    fn note_time(&self) -> io::Result<()> {
        let ends = self.state().output.map(|output| output.readable());
        let marks = self.marks.get().ok_or(io::ErrorKind::NotFound)?;
        marks.note(unix_ms(), ends)
    }

    /// Drops what is kept of a stream before `offset`: for readers first, then for the next gate, then
    /// from the disk.
    fn drop_before(&self, stream: Stream, offset: u64) -> io::Result<()> {
        let index = index_of(stream);
        let (from, punched) = {
            let mut state = self.state();
            let output = state.output.get_mut(index).ok_or(io::ErrorKind::NotFound)?;
            let before = output.oldest();
            output.drop_before(offset);
            let from = output.oldest();
            if from == before {
                return Ok(());
            }
            state.wake_readers();
            let disk = state.output.get(index).and_then(|it| it.disk);
            (from, disk.map_or(0, |disk| disk.punched))
        };
        let marks = self.marks.get().ok_or(io::ErrorKind::NotFound)?;
        marks.drop_before(index, from)?;
        let whole = from - from % PUNCH_BYTES;
        let file = self.files.get(index).and_then(|file| file.get());
        if let Some(file) = file.filter(|_| whole > punched) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, flags, punched, whole - punched)?;
            let mut state = self.state();
            if let Some(disk) = state.output.get_mut(index).and_then(|it| it.disk.as_mut()) {
                disk.punched = whole;
            }
        }
        Ok(())
    }

    /// Whether what was read at `offset` of a detached job may have been dropped before.
    pub(super) fn is_dropped(&self, stream: Stream, offset: u64) -> bool {
        let state = self.state();
        let output = state.output.get(index_of(stream));
        self.is_detached() && output.is_some_and(|output| output.oldest() > offset)
    }

    /// The file of a stream, made where it is missing; and before it the one of the marks.
    fn file(&self, stream: Stream, spools: &Spools) -> io::Result<&File> {
        if self.marks.get().is_none() {
            let marks = spools.make_marks(self.id)?;
            self.marks.get_or_init(|| marks);
        }
        let place = self.files.get(index_of(stream));
        let place = place.ok_or(io::ErrorKind::NotFound)?;
        if let Some(file) = place.get() {
            return Ok(file);
        }
        let file = spools.make(self.id, stream)?;
        Ok(place.get_or_init(|| file))
    }
}

impl State {
    /// What of a stream somebody has read, and nobody is still to.
    pub(super) fn read_by_all(&self, index: usize) -> u64 {
        let acked = self.attachments.values();
        let acked = acked.filter_map(|reader| reader.acked.get(index).copied().flatten());
        let read = self.read.get(index).copied().unwrap_or(0);
        acked.fold(read, u64::min)
    }

    /// The outcome stands, and everything of the job is on the disk.
    fn ended(&mut self, ended: Ended) {
        self.pid = ended.pid;
        self.unix_ms = ended.unix_ms;
        for output in &mut self.output {
            output.give_up();
        }
        self.stdin.closed = true;
        self.stdin.taken = ended.exit.stdin;
        self.stdin.end = ended.exit.stdin;
        self.stage = Stage::Over(Arc::new(ended.exit));
    }
}

/// What is to be done to the file of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spill {
    pub(super) stream: Stream,
    /// What is before this offset goes, first of all.
    pub(super) drop_before: u64,
    /// What is copied from the ring.
    pub(super) at: u64,
    pub(super) end: u64,
    pub(super) layout: Layout,
    /// No more than so much stays; where the disk has no room for that, less.
    pub(super) kept_max: Option<u64>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Spilled {
    /// Why not all of it was done.
    pub(super) error: Option<io::Error>,
    /// The disk was full, and older output was dropped for that.
    pub(super) crowded: bool,
}

impl Spill {
    /// Does it. Blocks as the disk does; the job's offsets move with each piece.
    pub(super) fn run(mut self, job: &Job, spools: &Spools) -> Spilled {
        let mut spilled = Spilled::default();
        let dropped = job.drop_before(self.stream, self.drop_before);
        let copied = dropped.and_then(|()| self.copy(job, spools, &mut spilled.crowded));
        spilled.error = copied.err();
        spilled
    }

    fn copy(&mut self, job: &Job, spools: &Spools, crowded: &mut bool) -> io::Result<()> {
        if self.at >= self.end {
            return Ok(());
        }
        let file = job.file(self.stream, spools)?;
        let memfd = job.memfd(self.stream).ok_or(io::ErrorKind::NotFound)?;
        let whole = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let mut buffer = vec![0; whole.min(PIECE_BYTES)];
        while self.at < self.end {
            let want = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            let want = want.min(buffer.len());
            let space = buffer.get_mut(..want).unwrap_or_default();
            let len = ring::read(memfd, self.layout, self.at, space)?;
            let piece = space.get(..len).unwrap_or_default();
            if piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let begins = self.at;
            while let Err(error) = self.put(job, file, piece, begins) {
                // Whoever wants the newest gives up the oldest.
                if self.kept_max.is_none() || !is_full(&error) || !self.make_room(job)? {
                    return Err(error);
                }
                *crowded = true;
            }
            if let Some(kept_max) = self.kept_max {
                job.drop_before(self.stream, self.at.saturating_sub(kept_max))?;
            }
        }
        Ok(())
    }

    /// Writes a piece, and before it when it came.
    fn put(&mut self, job: &Job, file: &File, piece: &[u8], begins: u64) -> io::Result<()> {
        job.note_time()?;
        self.write(job, file, piece, begins)
    }

    /// Writes what is not written yet of a piece of the stream that begins at an offset.
    fn write(&mut self, job: &Job, file: &File, piece: &[u8], begins: u64) -> io::Result<()> {
        let index = index_of(self.stream);
        let written = |at: u64| usize::try_from(at - begins).unwrap_or(usize::MAX);
        let mut at = self.at;
        let result = loop {
            let rest = piece.get(written(at)..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match file.write_at(rest, at) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => at += u64::try_from(len).unwrap_or(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.at = at;
        let mut state = job.state();
        if let Some(output) = state.output.get_mut(index) {
            output.spooled(at);
        }
        state.wake_readers();
        result
    }

    /// Drops a part of what is kept. Says whether there was any.
    fn make_room(&self, job: &Job) -> io::Result<bool> {
        let index = index_of(self.stream);
        let disk = job.state().output.get(index).and_then(|it| it.disk);
        let kept = disk.map_or(0, |disk| disk.kept());
        let from = disk.map_or(0, |disk| disk.from);
        if kept == 0 {
            return Ok(false);
        }
        let part = (kept / 4).max(PUNCH_BYTES).min(kept);
        job.drop_before(self.stream, from + part)?;
        Ok(true)
    }
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind())
}

fn index_of(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}
