//! Runs the commands of `exec` services over one connection to their keeper.
//!
//! Texts for the shell enter, what they wrote and what became of them leaves. Any
//! number of services and clients share a [`Runner`]; one task, [`Driver::drive`],
//! owns the connection. A call of [`Runner::run`] that is dropped, as when its client
//! goes away, ends the command's whole process tree.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bowline::client::{ClientError, Connection, Happening, StartRequest};
use bowline_proto::frame::Stream;
use bowline_proto::id::Channel;
use bowline_proto::message::Signal;
use bowline_proto::outcome::Outcome;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::keeper::Address;
use crate::exit;

/// Commands at once, of all services of the process: one connection carries them,
/// and a gate lets 256 run on it.
pub(crate) const COMMANDS_MAX: usize = 256;
/// What all commands together may have written that is not sent yet, as a multiple of
/// what one may write.
const OUTPUT_TIMES: u64 = 4;
/// The first signal to a command whose client has gone, as at the end of a session.
const HANGUP: i32 = libc::SIGHUP;
/// The first signal to a command that wrote too much.
const TERMINATE: i32 = libc::SIGTERM;

/// What a command may use.
#[derive(Clone, Debug)]
pub(crate) struct Allowance {
    /// Bytes of both streams together.
    pub(crate) output_bytes_max: u64,
    /// Its tree is ended after that.
    pub(crate) time: Option<Duration>,
    /// The working directory; the account's home where there is none.
    pub(crate) cwd: Option<Vec<u8>>,
}

/// What a command wrote, and what became of it.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) outcome: Outcome,
    /// It wrote more than it may and was ended; what is here is the beginning.
    pub(crate) cut: bool,
    held: Held,
}

/// Counts output for as long as it is in memory.
#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    total: Arc<AtomicU64>,
}

impl Held {
    /// Counts more, if all together stay within `total_max`.
    fn add(&mut self, bytes: u64, total_max: u64) -> bool {
        let before = self.total.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > total_max {
            self.total.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why a command did not run to an end that anybody saw.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The keeper or the session says no.
    #[error("the command was not run: {0}")]
    NotRun(String),
    /// What became of the command is not known.
    #[error("what became of the command cannot be known: the connection to its keeper broke")]
    Lost,
}

/// A handle to the one connection; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    orders: Arc<Mutex<Orders>>,
    places: Arc<Semaphore>,
    held: Arc<AtomicU64>,
}

/// What is asked of the task that owns the connection. A start holds one of
/// [`COMMANDS_MAX`] places and asks for one end at most, so both lists are short.
#[derive(Debug, Default)]
struct Orders {
    starts: Vec<Start>,
    ends: Vec<u64>,
    next: u64,
    driver: Option<Waker>,
}

#[derive(Debug)]
struct Start {
    text: Vec<u8>,
    job: Running,
}

/// A command under way.
#[derive(Debug)]
struct Running {
    key: u64,
    allowance: Arc<Allowance>,
    finished: Finished,
    /// `None` once nobody waits any more.
    answer: Option<oneshot::Sender<Result<Finished, RunError>>>,
    _place: OwnedSemaphorePermit,
}

impl Runner {
    /// Gives the handle and the task's work, which is to connect first.
    pub(crate) fn new(address: Address) -> (Self, Driver) {
        let runner = Self {
            orders: Arc::default(),
            places: Arc::new(Semaphore::new(COMMANDS_MAX)),
            held: Arc::default(),
        };
        let driver = Driver {
            line: None,
            address,
            runner: runner.clone(),
        };
        (runner, driver)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a text in `/bin/sh`, with nothing to read.
    ///
    /// # Errors
    /// [`RunError`]; a command that fails is none.
    ///
    /// # Cancel safety
    /// Dropping the future ends the command's tree.
    pub(crate) async fn run(
        &self,
        text: &[u8],
        allowance: &Arc<Allowance>,
    ) -> Result<Finished, RunError> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| RunError::Lost)?;
        let (answer, waiting) = oneshot::channel();
        let mut finished = Finished::default();
        finished.held.total = Arc::clone(&self.held);
        let mut end = {
            let mut orders = self.orders();
            let key = orders.next;
            orders.next += 1;
            orders.starts.push(Start {
                text: text.to_owned(),
                job: Running {
                    key,
                    allowance: Arc::clone(allowance),
                    finished,
                    answer: Some(answer),
                    _place: place,
                },
            });
            orders.wake();
            EndIfDropped {
                runner: self,
                key: Some(key),
            }
        };
        let finished = waiting.await.unwrap_or(Err(RunError::Lost));
        end.key = None;
        finished
    }
}

impl Orders {
    fn wake(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }
}

/// Asks for the end of a command that nobody waits for any more.
struct EndIfDropped<'a> {
    runner: &'a Runner,
    key: Option<u64>,
}

impl Drop for EndIfDropped<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let mut orders = self.runner.orders();
            orders.ends.push(key);
            orders.wake();
        }
    }
}

/// The task's work: it owns the connection, and makes another where that breaks.
#[derive(Debug)]
pub(crate) struct Driver {
    address: Address,
    runner: Runner,
    line: Option<Line>,
}

impl Driver {
    /// Connects to the keeper, which gives its grant to the account that this process
    /// has by now.
    ///
    /// # Errors
    /// [`ClientError`], also where the keeper refuses the account.
    pub(crate) async fn connect(&mut self) -> Result<(), ClientError> {
        self.line = Some(Line::open(&self.address).await?);
        Ok(())
    }

    /// Runs until it is dropped.
    pub(crate) async fn drive(mut self) {
        loop {
            let mut line = match self.line.take() {
                Some(line) => line,
                None => self.connect_when_asked().await,
            };
            let error = poll_fn(|cx| line.poll(cx, &self.runner)).await;
            tracing::warn!(error = exit::chain(&error), "the keeper's connection broke");
            // What waits in `line.jobs` is answered by being dropped.
        }
    }

    /// A keeper starts another gate by itself; so the next command connects again.
    async fn connect_when_asked(&self) -> Line {
        loop {
            poll_fn(|cx| {
                let mut orders = self.runner.orders();
                orders.driver = Some(cx.waker().clone());
                orders.ends.clear();
                match orders.starts.is_empty() {
                    true => Poll::Pending,
                    false => Poll::Ready(()),
                }
            })
            .await;
            match Line::open(&self.address).await {
                Ok(line) => return line,
                Err(error) => {
                    let why = exit::chain(&error);
                    let starts = std::mem::take(&mut self.runner.orders().starts);
                    for start in starts {
                        start.job.fail(RunError::NotRun(why.clone()));
                    }
                }
            }
        }
    }
}

/// One connection and the commands on it.
#[derive(Debug)]
struct Line {
    connection: Connection,
    jobs: HashMap<Channel, Running>,
    channels: HashMap<u64, Channel>,
}

impl Line {
    async fn open(address: &Address) -> Result<Self, ClientError> {
        let mut connection = address.connect().await?;
        while !connection.is_granted() {
            connection.next().await?;
        }
        Ok(Self {
            connection,
            jobs: HashMap::new(),
            channels: HashMap::new(),
        })
    }

    /// Ready when the connection has broken.
    fn poll(&mut self, cx: &mut Context<'_>, runner: &Runner) -> Poll<ClientError> {
        loop {
            let (starts, ends) = {
                let mut orders = runner.orders();
                orders.driver = Some(cx.waker().clone());
                let starts = std::mem::take(&mut orders.starts);
                (starts, std::mem::take(&mut orders.ends))
            };
            for start in starts {
                self.start(start);
            }
            for key in ends {
                if let Some(&channel) = self.channels.get(&key) {
                    self.end(channel, HANGUP);
                }
            }
            match self.connection.poll_next(cx) {
                Poll::Ready(Ok(happening)) => self.take(happening),
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn start(&mut self, start: Start) {
        let Start { text, job } = start;
        if job.answer.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return;
        }
        let allowance = &job.allowance;
        let timeout_ms = allowance
            .time
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let request = StartRequest {
            argv: shell_argv(text),
            cwd: allowance.cwd.clone(),
            null_stdin: true,
            timeout_ms,
            ..StartRequest::default()
        };
        let started = exit::fresh_job_id()
            .map_err(|error| error.to_string())
            .and_then(|id| {
                let started = self.connection.start(id, &request);
                started.map_err(|error| exit::chain(&error))
            });
        match started {
            Ok(channel) => {
                self.channels.insert(job.key, channel);
                self.jobs.insert(channel, job);
            }
            Err(why) => job.fail(RunError::NotRun(why)),
        }
    }

    /// Ends a command's tree; what it writes until then is for nobody.
    fn end(&mut self, channel: Channel, first: i32) {
        let signal = Signal {
            signal: first,
            tree: true,
            job: None,
        };
        self.connection.signal(channel, &signal);
        if first == HANGUP
            && let Some(job) = self.jobs.get_mut(&channel)
        {
            job.answer = None;
            job.finished = Finished::default();
        }
    }

    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Output {
                channel,
                stream,
                bytes,
                ..
            } => {
                let fits = self
                    .jobs
                    .get_mut(&channel)
                    .is_none_or(|job| job.gather(stream, &bytes));
                let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                self.connection.consumed(channel, stream, len);
                if !fits {
                    self.end(channel, TERMINATE);
                }
            }
            Happening::Exit(channel, exit) => {
                if let Some(mut job) = self.close(channel) {
                    job.finished.outcome = exit.outcome;
                    job.succeed();
                }
            }
            Happening::Refused(channel, refused) => {
                if let Some(job) = self.close(channel) {
                    job.fail(RunError::NotRun(refused.message));
                }
            }
            _ => {}
        }
    }

    fn close(&mut self, channel: Channel) -> Option<Running> {
        self.connection.close(channel);
        let job = self.jobs.remove(&channel)?;
        self.channels.remove(&job.key);
        Some(job)
    }
}

/// The shell of system(3), as everybody's servers take it: an account's own may start slowly, or
/// speak another language. A text that begins with a dash is a text too.
fn shell_argv(text: Vec<u8>) -> Vec<Vec<u8>> {
    let [shell, option, rest] = ["/bin/sh", "-c", "--"].map(|part| part.as_bytes().to_vec());
    vec![shell, option, rest, text]
}

impl Running {
    /// Keeps output; false where the command must end because of it, once.
    fn gather(&mut self, stream: Stream, bytes: &Bytes) -> bool {
        let bytes_max = self.allowance.output_bytes_max;
        let finished = &mut self.finished;
        if self.answer.is_none() || finished.cut {
            return true;
        }
        let left = bytes_max.saturating_sub(finished.held.bytes);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(left);
        let total_max = bytes_max.saturating_mul(OUTPUT_TIMES);
        let fits = finished.held.add(len, total_max);
        if fits {
            let kept = bytes.get(..usize::try_from(len).unwrap_or(0));
            let gathered = match stream {
                Stream::Stderr => &mut finished.stderr,
                _ => &mut finished.stdout,
            };
            gathered.extend_from_slice(kept.unwrap_or_default());
        }
        finished.cut = !fits || len < bytes.len() as u64;
        !finished.cut
    }

    fn succeed(self) {
        if let Some(answer) = self.answer {
            // Nobody waits any more if it cannot be sent.
            let _ = answer.send(Ok(self.finished));
        }
    }

    fn fail(self, error: RunError) {
        if let Some(answer) = self.answer {
            let _ = answer.send(Err(error));
        }
    }
}
