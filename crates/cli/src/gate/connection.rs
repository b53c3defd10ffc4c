//! One connection of the gate: from the first byte to the last outcome.
//!
//! ```text
//! Handshake ─► Deciding ─► Open ─► Closing ─► Gone
//!     └────────────┴─► Closing
//! ```
//!
//! The whole connection is one value that is polled: what is half done is in
//! it, nothing is in a future. One turn looks at everything once; turns go on
//! until nothing moves.

mod client;
mod end;
mod jobs;
mod keeper;
mod lists;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bowline::driver::Wire;
use bowline_proto::id::JobId;
use bowline_proto::limits::{MINOR, PROTOCOL};
use bowline_proto::message::{Hello, JobRow, Refused, Signal};
use bowline_proto::session::{Outbox, ServerHandshake, Session};
use tokio::time::Sleep;

pub(super) use self::keeper::KEEPER_GONE;
use self::lists::Lists;
use super::job::{Attachment, Job};
use super::limits::Admitted;
use super::link::Mail;
use super::record::Row;
use super::{Worker, spec};
use crate::ipc::{Cause, Granted, RefuseCode, Scope, Source, ToKeeper};

/// Turns before other connections of the worker get theirs.
const TURNS_MAX: u32 = 32;
/// How long the last words may take, and how long the peer is waited for behind them.
const CLOSING: Duration = Duration::from_secs(2);
/// The longest command in a list, as JSON.
const ROW_COMMAND_BYTES_MAX: usize = 256;

/// Proof that the keeper has let this connection in. Only [`Connection::decided`]
/// makes one, and starting a job takes it.
#[derive(Debug)]
struct Authenticated(Granted);

#[derive(Debug)]
enum Phase {
    Handshake(Box<ServerHandshake>),
    Deciding(Box<ServerHandshake>),
    /// A failed authentication is answered a little later.
    Delayed(Box<ServerHandshake>, Refused),
    Open(Box<Session>, Rc<Authenticated>),
    /// The last words are on their way; nothing more is taken in.
    Closing(Box<Outbox>, bool),
    Gone,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    source: Source,
    worker: Rc<Worker>,
    wire: Wire,
    mail: Rc<Mail>,
    phase: Phase,
    nonce: Option<[u8; 32]>,
    /// The attachments to jobs, by their channels.
    jobs: BTreeMap<u32, Attachment>,
    /// Jobs whose outcome was sent and that the client has not told to forget.
    told: Vec<Arc<Job>>,
    lists: Lists,
    /// Until authenticated: its deadline. Then the idle time. At the end: the last words'.
    timer: Pin<Box<Sleep>>,
    draining: bool,
    /// Its outbox has held much, and keeps its buffer for a moment.
    large: bool,
    /// Its room; given back with the connection.
    admitted: Admitted,
    /// When its proofs arrived.
    asked_at: tokio::time::Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.worker.link.forget_box(self.id);
        self.worker.link.send(&ToKeeper::Disconnected {
            connection: self.id,
        });
    }
}

impl Connection {
    /// Takes over an accepted connection. `nonce` is what proofs are bound to
    /// where there is no TLS.
    pub(super) fn new(
        worker: Rc<Worker>,
        id: u64,
        source: Source,
        wire: Wire,
        nonce: Option<[u8; 32]>,
        admitted: Admitted,
    ) -> Self {
        let hello = Hello {
            protocol: PROTOCOL.to_owned(),
            minor: MINOR,
            software: concat!("bowline/", env!("CARGO_PKG_VERSION")).to_owned(),
            nonce: nonce.map(hex::encode),
            ..Hello::default()
        };
        let timeout = Duration::from_millis(worker.config().auth_timeout_ms);
        Self {
            id,
            source,
            mail: worker.link.open_box(id),
            wire,
            phase: Phase::Handshake(Box::new(ServerHandshake::new(&hello))),
            nonce,
            jobs: BTreeMap::new(),
            told: Vec::new(),
            lists: Lists::default(),
            timer: Box::pin(tokio::time::sleep(timeout)),
            draining: false,
            large: false,
            admitted,
            asked_at: tokio::time::Instant::now(),
            worker,
        }
    }

    /// Serves the connection to its end. Its jobs end with it, or wait for another one.
    pub(super) async fn serve(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..TURNS_MAX {
            let progress = self.turn(cx);
            if matches!(self.phase, Phase::Gone) {
                return Poll::Ready(());
            }
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks at everything once. Says whether anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = self.letters(cx);
        progress |= self.input(cx);
        progress |= self.attachments(cx);
        progress |= self.answers(cx);
        progress |= self.output(cx);
        progress | self.time(cx)
    }
}

/// What the keeper is told for a client's signal.
pub(super) fn order(job: JobId, signal: &Signal) -> ToKeeper {
    if signal.tree {
        ToKeeper::End {
            job,
            cause: Cause::Cancelled(signal.signal),
            first: signal.signal,
        }
    } else {
        ToKeeper::Signal {
            job,
            signal: signal.signal,
            scope: Scope::Group,
        }
    }
}

fn refused(code: &str, message: &str) -> Refused {
    Refused {
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

/// What a client is told for the keeper's refusal.
pub(super) fn refusal(code: RefuseCode) -> (&'static str, &'static str) {
    match code {
        RefuseCode::NoGrant => ("not_permitted", "this connection may start nothing"),
        RefuseCode::NoTerminal => ("not_permitted", "this key may have no terminal"),
        RefuseCode::TooManyJobs => ("too_many_jobs", "as many jobs run as may run at once"),
        RefuseCode::DuplicateJob => ("duplicate_job", "a job of this id was started already"),
        RefuseCode::BadSpec => ("bad_start", "the start message is malformed"),
        RefuseCode::Draining => ("draining", "the server is stopping"),
        RefuseCode::OutOfResources => (
            "out_of_resources",
            "the server has no descriptors, processes or disk left for another job",
        ),
    }
}

/// A row of the record as the wire shows it.
fn job_row(row: Row, live: &super::Shared) -> JobRow {
    let mut command = row.asked.command;
    let mut max = ROW_COMMAND_BYTES_MAX;
    // Escapes make JSON longer than the text; a header has a limit.
    while serde_json::to_string(&command).map_or(0, |json| json.len()) > ROW_COMMAND_BYTES_MAX + 2 {
        spec::cut(&mut command, max);
        max /= 2;
    }
    let pid = match row.outcome {
        None => live.pid(row.asked.job).unwrap_or(row.pid),
        Some(_) => row.pid,
    };
    JobRow {
        job: Some(row.asked.job),
        user: row.asked.user,
        source: row.asked.source,
        pid,
        unix_ms: row.asked.unix_ms,
        command,
        waits: match row.outcome {
            None => live.waits(row.asked.job).map(str::to_owned),
            Some(_) => None,
        },
        outcome: row.outcome,
    }
}

/// A source as the record and the log show it.
pub(super) struct Shown<'a>(pub(super) &'a Source);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Source::Tcp(address, port) => std::net::SocketAddr::new(*address, *port).fmt(f),
            Source::Unix => f.write_str("unix"),
            Source::Stdio => f.write_str("stdio"),
        }
    }
}
