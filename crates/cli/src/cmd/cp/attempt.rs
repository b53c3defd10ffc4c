//! One attempt at a copy: two workers, here or on other machines, and what goes between them.

use std::sync::Arc;
use std::thread::JoinHandle;

use bowline::client::ClientError;
use bowline_proto::copy::{Options, decode};
use bowline_proto::outcome::Happened;

use super::ledger::Ledger;
use super::line::{Ends, line};
use super::remote::{Piece, Remote};
use crate::cmd::dial::Dialer;
use crate::copy::WorkerError;
use crate::copy::link::{Input, Output, Tap, pipe};
use crate::copy::receiver::{self, Destination};
use crate::copy::sender::{self, Source};

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The worker of this process gave up.
    Here(WorkerError),
    /// No connection, or no longer one; `true` where the worker there had begun.
    Line(ClientError, bool),
    /// The worker there was killed.
    Killed,
    /// The worker there gave up, and said this.
    There(String),
    /// What answered there is no worker.
    NoWorker(&'static str),
}

impl Failed {
    /// Whether another attempt may go on where this one ended; `begun` if a worker there has begun
    /// before.
    pub(super) fn is_passing(&self, begun: bool) -> bool {
        match self {
            Self::Line(error, _) if error.is_broken_line() => true,
            Self::Line(error, _) => {
                begun
                    && matches!(
                        error.code(),
                        "connect_failed" | "connect_timeout" | "keeper_gone" | "draining"
                    )
            }
            Self::Killed => true,
            Self::Here(_) | Self::There(_) | Self::NoWorker(_) => false,
        }
    }

    /// Whether a worker there had begun.
    pub(super) fn had_begun(&self) -> bool {
        !matches!(self, Self::Line(_, false))
    }
}

/// Copies between what is here and what is there.
pub(super) struct Attempt<'a> {
    pub(super) options: &'a Options,
    pub(super) ledger: &'a Arc<Ledger>,
}

type Worker = JoinHandle<Result<(), WorkerError>>;

impl Attempt<'_> {
    fn tap(&self) -> Tap {
        let ledger = self.ledger.clone();
        Arc::new(move |message| ledger.see(message))
    }

    /// Both sides are here.
    pub(super) fn local(&self, sources: Vec<Source>, to: Destination) -> Result<(), Failed> {
        let (to_receiver, from_sender) = pipe();
        let (to_sender, from_receiver) = pipe();
        let options = self.options.clone();
        let input = Input::new(Box::new(from_receiver), None);
        let output = Output::new(Box::new(to_receiver), None);
        let sender = spawn(move || sender::send(sources, options, input, output))?;
        let tap = self.tap();
        let input = Input::new(Box::new(from_sender), Some(tap.clone()));
        let output = Output::new(Box::new(to_sender), Some(tap));
        let options = self.options.clone();
        let receiver = spawn(move || receiver::receive(to, options, input, output))?;
        match (join(receiver), join(sender)) {
            (Ok(()), Ok(())) => Ok(()),
            // The one that did not see its line break knows why.
            (Err(WorkerError::Line(_)), Err(error)) | (Err(error), _) | (Ok(()), Err(error)) => {
                Err(Failed::Here(error))
            }
        }
    }

    /// From here to there.
    pub(super) async fn send(
        &self,
        sources: Vec<Source>,
        dialer: &mut Dialer,
        path: &[u8],
    ) -> Result<(), Failed> {
        let paths = [path.to_vec()];
        let remote = Remote::start(dialer, "receive", &paths, self.options).await;
        let remote = remote.map_err(|error| Failed::Line(error, false))?;
        let (options, tap) = (self.options.clone(), self.tap());
        let ((outgoing, incoming), ends) = line();
        let worker = spawn(move || {
            let input = Input::new(Box::new(incoming), Some(tap.clone()));
            let output = Output::new(Box::new(outgoing), Some(tap));
            sender::send(sources, options, input, output)
        })?;
        between(remote, ends, worker, false).await
    }

    /// From there to here.
    pub(super) async fn receive(
        &self,
        dialer: &mut Dialer,
        paths: &[Vec<u8>],
        to: Destination,
    ) -> Result<(), Failed> {
        let remote = Remote::start(dialer, "send", paths, self.options).await;
        let remote = remote.map_err(|error| Failed::Line(error, false))?;
        let (options, tap) = (self.options.clone(), self.tap());
        let ((outgoing, incoming), ends) = line();
        let to_stream = matches!(to, Destination::Stream(_));
        let worker = spawn(move || {
            let input = Input::new(Box::new(incoming), Some(tap.clone()));
            let output = Output::new(Box::new(outgoing), Some(tap));
            receiver::receive(to, options, input, output)
        })?;
        between(remote, ends, worker, to_stream).await
    }

    /// From there to there, through here.
    pub(super) async fn relay(
        &self,
        from: (&mut Dialer, &[Vec<u8>]),
        to: (&mut Dialer, &[u8]),
    ) -> Result<(), Failed> {
        let failed = |error| Failed::Line(error, false);
        let sender = Remote::start(from.0, "send", from.1, self.options).await;
        let mut sender = sender.map_err(failed)?;
        let paths = [to.1.to_vec()];
        let receiver = Remote::start(to.0, "receive", &paths, self.options).await;
        let mut receiver = receiver.map_err(failed)?;
        let mut seen = (Overheard::default(), Overheard::default());
        loop {
            pass(&mut sender, &mut receiver, &mut seen.0, self.ledger)?;
            pass(&mut receiver, &mut sender, &mut seen.1, self.ledger)?;
            if let (Some(sent), Some(received)) = (sender.outcome(), receiver.outcome()) {
                // The receiver's complaint is the better one: the sender's is often only that it was gone.
                let checked = check(received, &receiver).and(check(sent, &sender));
                for mut remote in [sender, receiver] {
                    remote.connection.bye();
                    let _ = remote.connection.finish().await;
                }
                return checked;
            }
            tokio::select! {
                happening = sender.connection.next(), if sender.outcome().is_none() => {
                    let happened = happening.and_then(|happening| sender.happened(happening));
                    happened.map_err(|error| Failed::Line(error, true))?;
                }
                happening = receiver.connection.next(), if receiver.outcome().is_none() => {
                    let happened = happening.and_then(|happening| receiver.happened(happening));
                    happened.map_err(|error| Failed::Line(error, true))?;
                }
            }
        }
    }
}

/// Carries what one machine sent to the other, and shows it to the ledger.
fn pass(
    from: &mut Remote,
    to: &mut Remote,
    overheard: &mut Overheard,
    ledger: &Ledger,
) -> Result<(), Failed> {
    to.pump();
    while to.wants_piece() {
        let Some(piece) = from.take() else {
            if from.has_ended() {
                to.close();
                to.pump();
            }
            return Ok(());
        };
        overheard
            .hear(&piece, ledger)
            .map_err(|()| Failed::NoWorker(NOT_A_WORKER))?;
        to.put(Piece::Bytes(piece));
        to.pump();
    }
    // Nobody takes it any more.
    if to.outcome().is_some() {
        while from.take().is_some() {}
    }
    Ok(())
}

const NOT_A_WORKER: &str = "what answers there is no file worker; is the key bound to a command?";

/// A stream of messages that only passes.
#[derive(Default)]
struct Overheard {
    rest: Vec<u8>,
}

impl Overheard {
    fn hear(&mut self, piece: &[u8], ledger: &Ledger) -> Result<(), ()> {
        self.rest.extend_from_slice(piece);
        let mut at = 0;
        while let Some((message, len)) =
            decode(self.rest.get(at..).unwrap_or_default()).map_err(|_| ())?
        {
            ledger.see(&message);
            at += len;
        }
        self.rest.drain(..at);
        Ok(())
    }
}

fn spawn(
    work: impl FnOnce() -> Result<(), WorkerError> + Send + 'static,
) -> Result<Worker, Failed> {
    let thread = std::thread::Builder::new().name("copy".to_owned());
    thread
        .spawn(work)
        .map_err(|error| Failed::Here(WorkerError::Line(error)))
}

fn join(worker: Worker) -> Result<(), WorkerError> {
    worker
        .join()
        .unwrap_or(Err(WorkerError::Rules("this side panicked")))
}

/// What there is to act on.
enum Next {
    Server(Result<bowline::client::Happening, ClientError>),
    /// The worker has sent a buffer, or has ended.
    Worker(Option<super::line::Full>),
    /// It takes a piece, or has ended.
    Room(bool),
}

/// Carries messages between the worker here and the one there until both are done, or with `to_stream`
/// until the one here takes no more: what is written to a stream is never gone on with.
async fn between(
    mut remote: Remote,
    mut ends: Ends,
    worker: Worker,
    to_stream: bool,
) -> Result<(), Failed> {
    let carried = carry(&mut remote, &mut ends, to_stream).await;
    // Without its line the worker here ends too, if it has not.
    drop(ends);
    let here = join(worker);
    if let Err(error) = carried {
        // The server refuses nothing once the worker has begun: then the line broke.
        let begun = !matches!(error, ClientError::Refused(_));
        return match here {
            Err(
                error @ (WorkerError::Place { .. } | WorkerError::Rules(_) | WorkerError::Unread),
            ) => Err(Failed::Here(error)),
            _ => Err(Failed::Line(error, begun)),
        };
    }
    let there = match remote.outcome() {
        Some(exit) => check(exit, &remote),
        // It sends what nobody wants; without its connection it ends.
        None => Err(Failed::NoWorker(NOT_A_WORKER)),
    };
    if remote.outcome().is_some() {
        remote.connection.bye();
        let _ = remote.connection.finish().await;
    }
    match (here, there) {
        (Ok(()), there) => there,
        (Err(WorkerError::Peer(_)), Err(Failed::NoWorker(why))) => Err(Failed::NoWorker(why)),
        (Err(WorkerError::Peer(_)), _) => Err(Failed::NoWorker(NOT_A_WORKER)),
        (Err(WorkerError::Line(_)), Err(there)) => Err(there),
        // It ended well and said nothing, or not enough.
        (Err(WorkerError::Line(_)), Ok(())) => Err(Failed::NoWorker(NOT_A_WORKER)),
        (Err(here), _) => Err(Failed::Here(here)),
    }
}

async fn carry(remote: &mut Remote, ends: &mut Ends, to_stream: bool) -> Result<(), ClientError> {
    loop {
        remote.pump();
        if remote.has_ended() {
            ends.to_worker = None;
        }
        if remote.outcome().is_some() {
            return Ok(());
        }
        match next(remote, ends).await {
            Next::Server(happening) => remote.happened(happening?)?,
            Next::Worker(Some((buffer, len))) => {
                if let Some(empty) = remote.put(Piece::Buffer(buffer, 0, len)) {
                    let _ = ends.give_back.try_send(empty);
                }
            }
            Next::Worker(None) => remote.close(),
            Next::Room(true) => {}
            Next::Room(false) if to_stream => return Ok(()),
            // Whatever still comes is for nobody.
            Next::Room(false) => ends.to_worker = None,
        }
        if ends.to_worker.is_none() {
            while remote.take().is_some() {}
        }
    }
}

async fn next(remote: &mut Remote, ends: &mut Ends) -> Next {
    let (takes, gives) = (remote.wants_piece(), remote.has_piece());
    let to_worker = ends.to_worker.clone().filter(|_| gives);
    let room = async {
        match &to_worker {
            Some(to_worker) => to_worker.reserve().await.ok(),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        permit = room => match permit {
            Some(permit) => {
                permit.send(remote.take().unwrap_or_default());
                Next::Room(true)
            }
            None => Next::Room(false),
        },
        full = ends.from_worker.recv(), if takes => Next::Worker(full),
        happening = remote.connection.next() => Next::Server(happening),
    }
}

/// What the outcome of a remote worker's job means.
fn check(exit: &bowline_proto::message::Exit, remote: &Remote) -> Result<(), Failed> {
    let outcome = &exit.outcome;
    match (outcome.outcome, outcome.code) {
        (Happened::Exited, Some(0)) => Ok(()),
        (Happened::NotStarted, _) if outcome.error.as_deref() == Some("not_found") => Err(
            Failed::NoWorker("the bowline there is too old to copy files"),
        ),
        (Happened::Signaled | Happened::Lost, _) => Err(Failed::Killed),
        _ => Err(match remote.complaint() {
            Some(complaint) => Failed::There(complaint),
            None => Failed::There(format!(
                "the file worker there came to {}",
                outcome.outcome.as_str()
            )),
        }),
    }
}
