//! The server of a datagram service.
//!
//! Datagrams are taken and answered by one future for each socket, one after the
//! other and without an allocation. An answer that has to wait is moved into a
//! task of its own, future and buffers and all, and another future takes the
//! next datagram: what is quick stays cheap, and what is slow holds nobody up.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::handle::{ServerHandle, Stopped};
use crate::net::admission::Source;
use crate::net::datagram::{DatagramSocket, ReplyTo};
use crate::net::endpoint::Peer;
use crate::net::limits::{BUFFER_BYTES, DATAGRAM_BYTES_MAX, Limits};
use crate::net::listen::UnixFile;
use crate::net::rate::Rates;
use crate::net::service::{Answer, DatagramService, ServiceError, TimedOut};

/// A datagram service and its sockets.
pub struct DatagramServer<S> {
    shared: Arc<Shared<S>>,
    sockets: Vec<(DatagramSocket, UnixFile)>,
    stop_within: Duration,
    timeout: Option<Duration>,
}

struct Shared<S> {
    service: S,
    limits: Limits,
    handle: ServerHandle,
    begun: Instant,
    rates: Option<Mutex<Rates>>,
    /// When the last datagram came, where somebody wants to know.
    last_came: Option<Mutex<Instant>>,
}

impl<S> fmt::Debug for DatagramServer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.handle.fmt(f)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: DatagramService> DatagramServer<S> {
    pub(super) fn new(
        handle: ServerHandle,
        sockets: Vec<(DatagramSocket, UnixFile)>,
        service: S,
        limits: Limits,
        (stop_within, timeout): (Duration, Option<Duration>),
    ) -> Self {
        let begun = Instant::now();
        let rates = limits
            .datagram_rate
            .map(|rate| Mutex::new(Rates::new(rate)));
        Self {
            sockets,
            stop_within,
            timeout,
            shared: Arc::new(Shared {
                service,
                limits,
                handle,
                begun,
                rates,
                last_came: timeout.map(|_| Mutex::new(begun)),
            }),
        }
    }

    /// Watches and stops this server, also while it serves.
    pub fn handle(&self) -> ServerHandle {
        self.shared.handle.clone()
    }

    /// Serves until [`ServerHandle::stop`] is called.
    ///
    /// # Cancel safety
    /// Dropping the future drops the answers that are under way.
    pub async fn serve(self) -> Stopped {
        let shared = self.shared.clone();
        let (sockets, _files): (Vec<_>, Vec<_>) = self.sockets.into_iter().unzip();
        let mut takers: Vec<Taker> = sockets
            .into_iter()
            .map(|socket| Taker::new(&shared, Arc::new(socket)))
            .collect();
        let mut answers = Answers::default();
        let mut stopped = pin!(shared.handle.stop.token().cancelled());
        let mut actions = pin!(shared.service.service_actions());
        let mut acting = true;
        let mut quiet_from = shared.begun;
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => break,
                () = &mut actions, if acting => acting = false,
                () = answers.next_ended(&shared), if !answers.is_empty() => {}
                at = poll_fn(|cx| poll_takers(&mut takers, cx)),
                    if answers.len() < shared.limits.datagrams_in_flight_max.max(1) => {
                    if let Some(taker) = takers.get_mut(at) {
                        taker.hand_over(&shared, &mut answers);
                    }
                }
                time = shared.quiet(quiet_from, self.timeout) => {
                    // Somebody may have come since the timer was set.
                    quiet_from = shared.last_came(quiet_from);
                    if quiet_from + time <= Instant::now() {
                        quiet_from = Instant::now();
                        shared.service.handle_timeout(TimedOut::NobodyCame(time));
                    }
                }
            }
        }
        drop(takers);
        let drained = async {
            while !answers.is_empty() {
                answers.next_ended(&shared).await;
            }
        };
        let _ = timeout(self.stop_within, drained).await;
        let cut_off = answers.len();
        answers.tasks.shutdown().await;
        Stopped { cut_off }
    }
}

impl<S: DatagramService> Shared<S> {
    async fn quiet(&self, from: Instant, timeout: Option<Duration>) -> Duration {
        match timeout {
            Some(time) => {
                sleep_until(from + time).await;
                time
            }
            None => std::future::pending().await,
        }
    }

    /// When somebody came last, at or after `from`.
    fn last_came(&self, from: Instant) -> Instant {
        let last = self.last_came.as_ref().map(|last| *lock(last));
        last.map_or(from, |last| last.max(from))
    }

    /// Takes datagrams and answers them until it is in a task of its own.
    async fn take(self: Arc<Self>, socket: Arc<DatagramSocket>, turn: Arc<Turn>) {
        let mut datagram = vec![0; BUFFER_BYTES];
        let mut reply = Vec::new();
        while !turn.is_over() {
            let receive = poll_fn(|cx| socket.poll_receive_from(cx, &mut datagram));
            let (len, from) = match receive.await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "a datagram cannot be taken");
                    continue;
                }
            };
            let peer = from.peer();
            if let Some(request) = self.look_at(&datagram, len, &peer) {
                turn.begin(&peer);
                reply.clear();
                let answered = self
                    .answer(&socket, request, &from, &peer, &mut reply)
                    .await;
                if let Err(error) = answered {
                    self.service.handle_error(&peer, &error);
                }
                turn.end();
            }
        }
    }

    /// The datagram, if it is one to be answered.
    fn look_at<'a>(&self, datagram: &'a [u8], len: usize, peer: &Peer) -> Option<&'a [u8]> {
        if let Some(last) = &self.last_came {
            *lock(last) = Instant::now();
        }
        if let Some(rates) = &self.rates
            && !lock(rates).permits(Source::of(peer), self.begun.elapsed())
        {
            return None;
        }
        let bytes_max = self.limits.message_bytes_max.min(DATAGRAM_BYTES_MAX);
        if len > bytes_max {
            let error = ServiceError::TooLong { bytes_max };
            self.service.handle_error(peer, &error);
            return None;
        }
        let request = datagram.get(..len)?;
        self.service
            .verify_request(request, peer)
            .then_some(request)
    }

    async fn answer(
        &self,
        socket: &DatagramSocket,
        request: &[u8],
        from: &ReplyTo,
        peer: &Peer,
        reply: &mut Vec<u8>,
    ) -> Result<(), ServiceError> {
        match self.service.answer(request, peer, reply).await? {
            Answer::Reply => Ok(socket.send_to(reply, from).await?),
            Answer::Nothing => Ok(()),
        }
    }
}

type Taking = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The future that takes a socket's datagrams now.
struct Taker {
    socket: Arc<DatagramSocket>,
    turn: Arc<Turn>,
    taking: Taking,
    panicked: Option<ServiceError>,
}

/// Where such a future is.
#[derive(Default)]
struct Turn(Mutex<TurnState>);

#[derive(Default)]
struct TurnState {
    answering: Option<Peer>,
    over: bool,
}

impl Turn {
    fn begin(&self, peer: &Peer) {
        lock(&self.0).answering = Some(peer.clone());
    }

    fn end(&self) {
        lock(&self.0).answering = None;
    }

    fn is_over(&self) -> bool {
        lock(&self.0).over
    }
}

impl Taker {
    fn new<S: DatagramService>(shared: &Arc<Shared<S>>, socket: Arc<DatagramSocket>) -> Self {
        let turn = Arc::<Turn>::default();
        let taking = Box::pin(shared.clone().take(socket.clone(), turn.clone()));
        Self {
            socket,
            turn,
            taking,
            panicked: None,
        }
    }

    /// Ready when it answers something and waits for it, or broke down.
    fn poll_waits(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let taking = self.taking.as_mut();
        // A service that panics must not take the server with it.
        match catch_unwind(AssertUnwindSafe(|| taking.poll(cx))) {
            Ok(Poll::Ready(())) => Poll::Ready(()),
            Ok(Poll::Pending) if lock(&self.turn.0).answering.is_some() => Poll::Ready(()),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => {
                self.panicked = Some(ServiceError::panicked(panic.as_ref()));
                Poll::Ready(())
            }
        }
    }

    /// Has the rest of the answer done in a task, and begins with the next datagram.
    fn hand_over<S: DatagramService>(&mut self, shared: &Arc<Shared<S>>, answers: &mut Answers) {
        let next = Self::new(shared, self.socket.clone());
        let taker = std::mem::replace(self, next);
        let mut turn = lock(&taker.turn.0);
        turn.over = true;
        let Some(peer) = turn.answering.clone() else {
            return;
        };
        drop(turn);
        match taker.panicked {
            Some(error) => shared.service.handle_error(&peer, &error),
            None => answers.spawn(peer, taker.taking),
        }
    }
}

/// Ready with the place of a taker that cannot go on by itself.
fn poll_takers(takers: &mut [Taker], cx: &mut Context<'_>) -> Poll<usize> {
    for (at, taker) in takers.iter_mut().enumerate() {
        if taker.poll_waits(cx).is_ready() {
            return Poll::Ready(at);
        }
    }
    Poll::Pending
}

/// The answers that wait for something, and whose they are.
#[derive(Default)]
struct Answers {
    tasks: JoinSet<()>,
    peers: HashMap<Id, Peer>,
}

impl Answers {
    fn spawn(&mut self, peer: Peer, taking: Taking) {
        let task = self.tasks.spawn(taking);
        self.peers.insert(task.id(), peer);
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn len(&self) -> usize {
        self.tasks.len()
    }

    async fn next_ended<S: DatagramService>(&mut self, shared: &Shared<S>) {
        let Some(ended) = self.tasks.join_next_with_id().await else {
            return;
        };
        let (id, error) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        let peer = self.peers.remove(&id);
        if let (Some(peer), Some(error)) = (peer, error)
            && error.is_panic()
        {
            let error = ServiceError::panicked(error.into_panic().as_ref());
            shared.service.handle_error(&peer, &error);
        }
    }
}
