//! A detached job's output on the disk: how it gets there, how it is read, and what is found of it
//! by the next gate, or when the job ended long ago.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use bowline_proto::frame::Stream;
use bowline_proto::id::JobId;

use super::{Job, OUTPUT, Stage, State, ring};
use crate::gate::spool::{Ended, Spools};
use crate::ipc::{Spool, SpoolPolicy, Stdin, Terms};

/// What is copied at once.
const PIECE_BYTES: usize = 128 * 1024;

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
        let mut state = self.state();
        let streams = OUTPUT.into_iter().zip(&self.files);
        for ((stream, place), output) in streams.zip(&mut state.output) {
            let Some(file) = spools.open(self.id, stream)? else {
                continue;
            };
            let end = file.metadata()?.len();
            let _ = place.set(file);
            output.spooled(end);
            // What was in the ring is gone where keeper and gate have died together.
            output.end = output.end.max(end);
            output.reserved = output.end;
        }
        Ok(())
    }

    /// Reads what is at `offset` of a stream: as much as there is space for, or less. The caller
    /// knows that it is there.
    ///
    /// # Errors
    /// As pread(2).
    pub(super) fn read(&self, stream: Stream, offset: u64, space: &mut [u8]) -> io::Result<usize> {
        if self.is_detached() {
            let file = self.files.get(index_of(stream)).and_then(|file| file.get());
            return file.ok_or(io::ErrorKind::NotFound)?.read_at(space, offset);
        }
        let memfd = self.memfd(stream).ok_or(io::ErrorKind::NotFound)?;
        ring::read(memfd, offset, space)
    }

    /// The file of a stream, made where it is missing.
    fn file(&self, stream: Stream, spools: &Spools) -> io::Result<&File> {
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

/// What came of moving output to the disk.
#[derive(Debug)]
pub(super) struct Spilled {
    /// The file has everything before.
    pub(super) end: u64,
    /// Why no more.
    pub(super) error: Option<io::Error>,
}

/// Copies what the ring holds of a stream to its file, from `at` to `end`. Blocks as the disk does.
pub(super) fn spill(job: &Job, spools: &Spools, stream: Stream, at: u64, end: u64) -> Spilled {
    let mut reached = at;
    let error = copy(job, spools, stream, &mut reached, end).err();
    Spilled {
        end: reached,
        error,
    }
}

fn copy(job: &Job, spools: &Spools, stream: Stream, at: &mut u64, end: u64) -> io::Result<()> {
    let file = job.file(stream, spools)?;
    let memfd = job.memfd(stream).ok_or(io::ErrorKind::NotFound)?;
    let whole = usize::try_from(end.saturating_sub(*at)).unwrap_or(usize::MAX);
    let mut buffer = vec![0; whole.min(PIECE_BYTES)];
    while *at < end {
        let want = usize::try_from(end - *at).unwrap_or(usize::MAX);
        let want = want.min(buffer.len());
        let space = buffer.get_mut(..want).unwrap_or_default();
        let len = ring::read(memfd.as_fd(), *at, space)?;
        let mut rest = space.get(..len).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !rest.is_empty() {
            match file.write_at(rest, *at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => {
                    *at += u64::try_from(len).unwrap_or(0);
                    rest = rest.get(len..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn index_of(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}
