//! A job, as those see it who share it: the task that owns it, on one worker, and
//! the attachments to it, on any connection of any worker.
//!
//! ```text
//!             owner (one task)                        attachments (any number)
//! program ──► pipe ──splice──► memfd ──────pread────► frame ──► client
//! program ◄── pipe ◄─splice─── memfd ◄─────pwrite──── frame ◄── client
//! ```
//!
//! The memfds are the keeper's too, and their file positions say how far the pipes
//! are: so the next gate goes on exactly where this one was killed (`ring`, `input`).
//! What is here beside them can be found out again, or is told again by clients.
//!
//! Output stays in its ring until every attachment has acknowledged it; where the
//! ring is full the pipe is not read, and the program waits. What a detached job writes is moved on
//! to files, and read there (`detached`, `spooled`). [`State`] is behind a lock that is held for a few instructions, or for one write of a frame of input.

mod attachment;
mod begin;
mod detached;
mod input;
mod outcome;
mod output;
mod owner;
mod pipes;
mod ring;
mod spooled;
mod terminal;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Waker};

use bowline_proto::frame::Stream;
use bowline_proto::id::JobId;
use bowline_proto::message::{Attach, AttachFrom, Exit, Signal};
use bowline_proto::outcome::Outcome;

pub(super) use attachment::{Attachment, Done, OUTPUT_LOST};
use outcome::not_started;
use output::{OnDisk, Output};
pub(super) use owner::{Adoption, Owner};
use tokio::sync::oneshot;

use super::connection::order;
use super::link::Link;
use super::lock;
use super::record::Recorder;
use super::spool::{Marks, Spools};
use crate::ipc::{GrantToken, JobSnapshot, JobSpec, Stdin, Stream as KeeperStream, Terms};

/// The streams that come from a job, in the order of every pair of them.
const OUTPUT: [Stream; 2] = [Stream::Stdout, Stream::Stderr];
/// Signals that wait for a job to be started.
const EARLY_SIGNALS_MAX: usize = 16;

/// A job.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) user: String,
    uid: u32,
    fingerprint: u64,
    terms: Terms,
    /// It has a terminal.
    pty: bool,
    memfds: OnceLock<Memfds>,
    /// The master of its terminal.
    master: OnceLock<OwnedFd>,
    /// Of a detached job: the files of its output, once there are some.
    files: [OnceLock<File>; 2],
    /// And what else is known of it.
    marks: OnceLock<Marks>,
    state: Mutex<State>,
}

/// Where the bytes are.
#[derive(Debug)]
struct Memfds {
    stdin: Option<OwnedFd>,
    output: [OwnedFd; 2],
}

impl Memfds {
    /// Takes those that the keeper passes; `None` where one is missing.
    fn from(streams: &[KeeperStream], fds: Vec<OwnedFd>) -> Option<Self> {
        let mut of: BTreeMap<_, _> = streams.iter().map(|&it| it as u8).zip(fds).collect();
        let stdout = of.remove(&(KeeperStream::Stdout as u8))?;
        let stderr = of.remove(&(KeeperStream::Stderr as u8))?;
        Some(Self {
            stdin: of.remove(&(KeeperStream::Stdin as u8)),
            output: [stdout, stderr],
        })
    }

    fn all(&self) -> Vec<(KeeperStream, BorrowedFd<'_>)> {
        let [stdout, stderr] = &self.output;
        let stdin = self
            .stdin
            .as_ref()
            .map(|fd| (KeeperStream::Stdin, fd.as_fd()));
        let output = [
            (KeeperStream::Stdout, stdout.as_fd()),
            (KeeperStream::Stderr, stderr.as_fd()),
        ];
        stdin.into_iter().chain(output).collect()
    }
}

/// How far a job has come.
#[derive(Clone, Debug)]
enum Stage {
    /// It is recorded, and the keeper is asked.
    Starting,
    /// The program runs, or its output is still being read.
    Running,
    /// There is an outcome.
    Over(Arc<Exit>),
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// Who asked for it last; what the keeper is shown when it is started.
    grant: Option<(u64, GrantToken)>,
    /// 0 until the program runs.
    pid: i32,
    unix_ms: u64,
    output: [Output; 2],
    stdin: InputState,
    attachments: BTreeMap<u64, Reader>,
    /// How far somebody has read, from the beginning on.
    read: [u64; 2],
    next_attachment: u64,
    /// The attachment that stdin comes from.
    holder: Option<u64>,
    /// The holder's line broke: what it had not acknowledged stays, until it is back or its
    /// time is over.
    pinned: bool,
    /// The server itself has cut the connections, and nobody has come back yet.
    cut: bool,
    owner: Option<Waker>,
    /// A code that says what its output waits for.
    waits: Option<&'static str>,
    /// The keeper was asked to start it, so that it may be signalled.
    known: bool,
    /// Signals that came before.
    early: Vec<Signal>,
    /// The size that its terminal should have.
    size: Option<(u16, u16)>,
    /// A client has the outcome, or does not want it, and nobody has attached since.
    forgotten: bool,
    /// The server could not keep its input.
    broken: bool,
}

#[derive(Debug, Default)]
struct InputState {
    /// What has come from the client.
    end: u64,
    /// What has reached the pipe.
    taken: u64,
    /// The client has ended it.
    ended: bool,
    /// The pipe is closed, or there never was one.
    closed: bool,
    /// The program has closed it, and whoever sends is to be told.
    refused: bool,
    /// What came before there was a memfd; no more than a first window.
    early: Vec<u8>,
}

/// An attachment, as the others see it.
#[derive(Debug, Default)]
struct Reader {
    /// What it has acknowledged of the streams that it wants.
    acked: [Option<u64>; 2],
    /// It has, or had no need of, everything before.
    counts: bool,
    waker: Option<Waker>,
}

/// Why there is no attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachError {
    /// It is behind what the program has written.
    Offset,
    /// What it asks for was dropped, and its peer cannot be told so.
    Lost,
    /// It is over and forgotten, and only its owner has not heard of that yet.
    Forgotten,
    /// When the output came is not known.
    Time,
}

impl Job {
    /// A job that is to be started.
    pub(super) fn new(
        id: JobId,
        user: String,
        uid: u32,
        spec: &JobSpec,
        grant: (u64, GrantToken),
    ) -> Self {
        let mut state = State::new(spec.stdin, &spec.terms);
        state.grant = Some(grant);
        Self {
            id,
            user,
            uid,
            fingerprint: spec.fingerprint(),
            terms: spec.terms,
            pty: spec.pty.is_some(),
            memfds: OnceLock::new(),
            master: OnceLock::new(),
            files: Default::default(),
            marks: OnceLock::new(),
            state: Mutex::new(state),
        }
    }

    /// A job of an earlier gate, with what its owner is given: how far the streams are must be known before
    /// the first connection, and the pipes are the owner's.
    pub(super) fn adopted(snapshot: &JobSnapshot, fds: &[OwnedFd], spools: &Spools) -> Self {
        let mut state = State::new(snapshot.stdin, &snapshot.terms);
        if !snapshot.starting {
            state.stage = Stage::Running;
            state.pid = snapshot.pid;
        }
        state.unix_ms = snapshot.started_unix_ms;
        state.stdin.closed |= !snapshot.open.contains(&KeeperStream::Stdin);
        // Whoever was attached is not, and had not acknowledged everything.
        state.pinned = snapshot.terms.spool.is_none();
        state.cut = snapshot.kept;
        state.known = true;
        let job = Self {
            id: snapshot.job,
            user: snapshot.user.clone(),
            uid: snapshot.uid,
            fingerprint: snapshot.fingerprint,
            terms: snapshot.terms,
            // What belongs to a terminal comes behind the pipes and memfds.
            pty: fds.len() > snapshot.open.len() + snapshot.spools.len(),
            memfds: OnceLock::new(),
            master: OnceLock::new(),
            files: Default::default(),
            marks: OnceLock::new(),
            state: Mutex::new(state),
        };
        let memfds = fds.iter().skip(snapshot.open.len());
        let memfds = memfds.take(snapshot.spools.len());
        let known = memfds
            .map(OwnedFd::try_clone)
            .collect::<io::Result<_>>()
            .and_then(|fds| Memfds::from(&snapshot.spools, fds).map_or(Ok(()), |it| job.know(it)))
            .and_then(|()| job.find_spool(spools));
        if let Err(error) = known {
            // Its owner ends it.
            job.state().broken = true;
            tracing::error!(%error, job = %job.id, "the job's streams cannot be read");
        }
        job
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn memfd(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        let memfds = self.memfds.get()?;
        match stream {
            Stream::Stdin => memfds.stdin.as_ref().map(AsFd::as_fd),
            Stream::Stdout => memfds.output.first().map(AsFd::as_fd),
            Stream::Stderr => memfds.output.last().map(AsFd::as_fd),
        }
    }

    /// The process id, 0 before the program runs.
    pub(super) fn pid(&self) -> i32 {
        self.state().pid
    }

    /// Whether its outcome is kept until somebody has it.
    pub(super) fn is_kept(&self) -> bool {
        self.terms.keep
    }

    /// What its output waits for, as a code.
    pub(super) fn waits(&self) -> Option<&'static str> {
        self.state().waits
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state().stage, Stage::Over(_))
    }

    /// Whether it is this user's.
    pub(super) fn belongs_to(&self, uid: u32) -> bool {
        self.uid == uid
    }

    /// Whether the same user asks for the same.
    pub(super) fn is_same(&self, uid: u32, spec: &JobSpec) -> bool {
        self.uid == uid && self.fingerprint == spec.fingerprint()
    }

    /// Whether it belongs to no connection.
    pub(super) fn is_detached(&self) -> bool {
        self.terms.spool.is_some()
    }

    /// Sends a signal, as soon as there is somebody to get it.
    pub(super) fn signal(&self, signal: &Signal, link: &Link) {
        let mut state = self.state();
        if state.known {
            link.send(&order(self.id, signal));
        } else if state.early.len() < EARLY_SIGNALS_MAX {
            state.early.push(signal.clone());
        }
    }

    /// The client's terminal has a new size. One that comes before the program runs is its first.
    pub(super) fn resize(&self, cols: u16, rows: u16) {
        let mut state = self.state();
        state.size = Some((cols, rows));
        if let Some(master) = self.master.get() {
            terminal::resize(master.as_fd(), (cols, rows));
        }
    }

    /// A client has the outcome, or does not wait for it: nothing needs to be kept once the job is
    /// over, unless somebody attaches until then. One that is detached waits for nobody in particular,
    /// and has to be over.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        if matches!(state.stage, Stage::Over(_)) || !self.is_detached() {
            state.forgotten = true;
            state.wake_owner();
        }
    }

    /// Attaches whoever starts it, or starts it again because the answer was lost. `None` where it
    /// did not come to run: such a job may be started anew.
    pub(super) fn attach_by_start(
        self: &Arc<Self>,
        grant: (u64, GrantToken),
    ) -> Option<Attachment> {
        let mut state = self.state();
        if matches!(state.stage, Stage::Over(_)) && state.pid == 0 {
            return None;
        }
        state.grant = Some(grant);
        let from = state.output.map(|stream| Some(stream.oldest()));
        let id = state.enter(from, true, true);
        Some(Attachment::new(self.clone(), id, from, true, true))
    }

    /// Attaches to a job that was started before.
    ///
    /// # Errors
    /// [`AttachError`].
    pub(super) fn attach(
        self: &Arc<Self>,
        attach: &Attach,
        minor: u32,
    ) -> Result<Attachment, AttachError> {
        let since = match attach.from {
            AttachFrom::Since => {
                let since = self.since(attach.since_ms.unwrap_or(0));
                Some(since.ok().flatten().ok_or(AttachError::Time)?)
            }
            _ => None,
        };
        let mut state = self.state();
        if state.forgotten && matches!(state.stage, Stage::Over(_)) {
            return Err(AttachError::Forgotten);
        }
        let mut from = [attach.stdout, attach.stderr];
        let since = since.unwrap_or_default();
        for ((offset, stream), since) in from.iter_mut().zip(&state.output).zip(since) {
            let Some(offset) = offset else { continue };
            match attach.from {
                AttachFrom::Start => *offset = stream.oldest(),
                AttachFrom::Now => *offset = stream.readable(),
                // What is not kept of it is a gap.
                AttachFrom::Since => *offset = since.min(stream.readable()),
                AttachFrom::Offset if *offset > stream.readable() => {
                    return Err(AttachError::Offset);
                }
                AttachFrom::Offset if *offset < stream.oldest() && minor == 0 => {
                    return Err(AttachError::Lost);
                }
                AttachFrom::Offset => *offset = stream.oldest().max(*offset),
            }
        }
        let counts = matches!(attach.from, AttachFrom::Start | AttachFrom::Offset);
        let id = state.enter(from, attach.stdin, counts);
        Ok(Attachment::new(self.clone(), id, from, attach.stdin, false))
    }

    /// Takes what a client has sent for stdin, at its offset.
    fn input(&self, from: u64, offset: u64, bytes: &[u8], end: bool) {
        let mut state = self.state();
        if state.holder != Some(from) || state.stdin.closed {
            return;
        }
        state.take_input(self.memfd(Stream::Stdin), offset, bytes, end);
        state.wake_owner();
    }
}

impl State {
    fn new(stdin: Stdin, terms: &Terms) -> Self {
        let output = Output {
            disk: terms.spool.map(|_| OnDisk::default()),
            ..Output::default()
        };
        Self {
            stage: Stage::Starting,
            grant: None,
            pid: 0,
            unix_ms: 0,
            output: [output; 2],
            stdin: InputState {
                closed: stdin == Stdin::Null,
                ..InputState::default()
            },
            attachments: BTreeMap::new(),
            read: [0; 2],
            waits: None,
            next_attachment: 0,
            holder: None,
            pinned: false,
            cut: false,
            owner: None,
            known: false,
            early: Vec::new(),
            size: None,
            forgotten: false,
            broken: false,
        }
    }

    fn wake_owner(&mut self) {
        if let Some(waker) = self.owner.take() {
            waker.wake();
        }
    }

    fn wake_readers(&mut self) {
        for reader in self.attachments.values_mut() {
            if let Some(waker) = reader.waker.take() {
                waker.wake();
            }
        }
    }

    /// A new attachment. One that is to be the holder takes the place of the one that was: most
    /// likely the same client's, over a line that it knows to be broken and we do not yet.
    fn enter(&mut self, acked: [Option<u64>; 2], holder: bool, counts: bool) -> u64 {
        let id = self.next_attachment;
        self.next_attachment += 1;
        self.cut = false;
        // Of one that is over it is said for good.
        self.forgotten &= matches!(self.stage, Stage::Over(_));
        if holder {
            if let Some(before) = self.holder.replace(id)
                && let Some(reader) = self.attachments.remove(&before)
                && let Some(waker) = reader.waker
            {
                waker.wake();
            }
            self.pinned = false;
        }
        let reader = Reader {
            acked,
            counts,
            waker: None,
        };
        self.attachments.insert(id, reader);
        for (stream, acked) in self.output.iter_mut().zip(acked) {
            if stream.disk.is_none() {
                stream.floor = stream.floor.min(acked.unwrap_or(u64::MAX));
            }
        }
        self.raise_floors();
        self.wake_owner();
        id
    }

    /// An attachment is no more.
    fn leave(&mut self, id: u64, keep: bool) {
        if self.attachments.remove(&id).is_none() {
            return;
        }
        if self.holder == Some(id) {
            self.holder = None;
            self.pinned = keep;
        }
        self.raise_floors();
        self.wake_owner();
    }

    /// What everybody has acknowledged may be written over. Where nobody reads, all of it stays.
    fn raise_floors(&mut self) {
        if self.pinned {
            return;
        }
        for (index, stream) in self.output.iter_mut().enumerate() {
            let acked = self.attachments.values();
            let acked = acked.filter_map(|reader| reader.acked.get(index).copied().flatten());
            if stream.disk.is_some() {
                // Only its file is read; but the owner may wait until somebody has.
                if stream.starved
                    && let Some(waker) = self.owner.take()
                {
                    waker.wake();
                }
                continue;
            }
            if let Some(lowest) = acked.min()
                && lowest > stream.floor
            {
                stream.floor = lowest;
                if std::mem::take(&mut stream.starved)
                    && let Some(waker) = self.owner.take()
                {
                    waker.wake();
                }
            }
        }
    }

    fn take_input(&mut self, memfd: Option<BorrowedFd<'_>>, offset: u64, bytes: &[u8], end: bool) {
        let stdin = &mut self.stdin;
        let fresh = input::fresh(stdin.end, offset, bytes);
        let taken = match memfd {
            Some(memfd) => input::take(memfd, stdin.end, fresh),
            None => {
                stdin.early.extend_from_slice(fresh);
                Ok(())
            }
        };
        if let Err(error) = taken {
            tracing::error!(%error, "input cannot be kept");
            self.broken = true;
            return;
        }
        let len = u64::try_from(fresh.len()).unwrap_or(u64::MAX);
        stdin.end = stdin.end.saturating_add(len);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        stdin.ended |= end && offset.saturating_add(len) <= stdin.end;
    }

    /// The outcome with the offsets of the streams.
    fn exit(&self, outcome: Outcome) -> Exit {
        let [stdout, stderr] = self.output.map(|stream| stream.readable());
        Exit {
            outcome,
            stdin: self.stdin.taken,
            stdout,
            stderr,
        }
    }

    /// The outcome is known. It is recorded first: who is told of the end finds it there. Gives the record's
    /// answer.
    fn over(&mut self, id: JobId, outcome: Outcome, recorder: &Recorder) -> oneshot::Receiver<()> {
        let exit = self.exit(outcome);
        let written = recorder.ended(id, self.pid, &exit);
        tracing::info!(
            job = %id, outcome = exit.outcome.outcome.as_str(),
            code = exit.outcome.code, signal = exit.outcome.signal, "job ended"
        );
        for stream in &mut self.output {
            stream.closed = true;
        }
        self.stdin.closed = true;
        self.stage = Stage::Over(Arc::new(exit));
        self.wake_readers();
        written
    }
}

/// Remembers whom to wake.
fn remember(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}
