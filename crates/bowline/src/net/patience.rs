//! How long a connection waits, and what ends the waiting: the times of
//! [`Limits`](super::Limits) and the server's stop.
//!
//! Both are looked at only when a socket has nothing, so a busy connection pays
//! for neither, and one without limits has no timer at all.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::service::TimedOut;

/// A time that begins again with each wait, or one that has begun for good.
#[derive(Debug, Default)]
pub(super) struct Patience {
    idle: Option<Duration>,
    first: Option<(Instant, Duration)>,
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Patience {
    pub(super) fn new(idle: Option<Duration>) -> Self {
        Self {
            idle,
            ..Self::default()
        }
    }

    /// The first message must be there by then, whatever comes before it.
    pub(super) fn expect_first(&mut self, within: Option<Duration>) {
        self.first = within.map(|within| (Instant::now() + within, within));
        self.waiting = false;
    }

    /// A whole message is there.
    pub(super) fn message_came(&mut self) {
        if self.first.take().is_some() {
            self.waiting = false;
        }
    }

    /// The wait is over.
    pub(super) fn moved(&mut self) {
        self.waiting = false;
    }

    /// Ready when the time is up; else the context's task is woken then.
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<TimedOut> {
        let idle = self.idle.map(|idle| (None, idle, TimedOut::Idle(idle)));
        let first = self
            .first
            .map(|(until, within)| (Some(until), within, TimedOut::FirstMessage(within)));
        let Some((until, within, time)) = first.or(idle) else {
            return Poll::Pending;
        };
        if !self.waiting {
            let until = until.unwrap_or_else(|| Instant::now() + within);
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(until),
                None => self.sleep = Some(Box::pin(tokio::time::sleep_until(until))),
            }
            self.waiting = true;
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(cx).map(|()| time),
            None => Poll::Pending,
        }
    }
}

/// Fails with the time that was up.
pub(super) fn poll_patience<T>(
    patience: &mut Patience,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    patience.poll_up(cx).map(|time| Err(time.into()))
}

/// Whether the server stops; one for all of its connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    // Asked before each wait; the token would take a lock for it.
    stopping: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Stop {
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.token.cancel();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub(super) fn watch(&self) -> StopWatch {
        StopWatch {
            stop: self.clone(),
            stopped: None,
            woken: Waker::noop().clone(),
        }
    }
}

/// One connection's look at a [`Stop`].
#[derive(Debug)]
pub(super) struct StopWatch {
    stop: Stop,
    stopped: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Whom the token wakes. It stays the same task nearly always, so the
    /// token, which has a lock, is told once and not with each wait.
    woken: Waker,
}

impl StopWatch {
    /// Whether the server stops; else the context's task is woken when it does.
    pub(super) fn poll_stopping(&mut self, cx: &mut Context<'_>) -> bool {
        if self.stop.is_stopping() {
            return true;
        }
        if self.stopped.is_some() && self.woken.will_wake(cx.waker()) {
            return false;
        }
        let token = &self.stop.token;
        let stopped = self
            .stopped
            .get_or_insert_with(|| Box::pin(token.clone().cancelled_owned()));
        self.woken.clone_from(cx.waker());
        stopped.as_mut().poll(cx).is_ready()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn up(patience: &mut Patience) -> TimedOut {
        poll_fn(|cx| patience.poll_up(cx)).await
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_begins_again_and_the_first_message_s_does_not() {
        let mut patience = Patience::new(Some(3 * SECOND));
        patience.expect_first(Some(5 * SECOND));
        let begin = Instant::now();
        let within = tokio::time::timeout(4 * SECOND, up(&mut patience)).await;
        assert!(within.is_err());
        // Bytes, but no whole message.
        patience.moved();
        assert_eq!(up(&mut patience).await, TimedOut::FirstMessage(5 * SECOND));
        assert_eq!(begin.elapsed().as_secs(), 5);
        patience.message_came();
        assert_eq!(up(&mut patience).await, TimedOut::Idle(3 * SECOND));
        assert_eq!(begin.elapsed().as_secs(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn without_limits_there_is_no_timer() {
        let mut patience = Patience::new(None);
        patience.expect_first(None);
        let within = tokio::time::timeout(3600 * SECOND, up(&mut patience)).await;
        assert!(within.is_err());
        assert!(patience.sleep.is_none());
    }

    #[tokio::test]
    async fn a_stop_wakes_whoever_asked_last() {
        let stop = Stop::default();
        let mut watch = stop.watch();
        let mut first = Context::from_waker(Waker::noop());
        assert!(!watch.poll_stopping(&mut first));
        let mut set = tokio::task::JoinSet::new();
        let (asked, was_asked) = tokio::sync::oneshot::channel();
        let mut asked = Some(asked);
        set.spawn(poll_fn(move |cx| {
            let stopping = watch.poll_stopping(cx);
            if let Some(asked) = asked.take() {
                let _ = asked.send(());
            }
            if stopping {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
        was_asked.await.unwrap();
        stop.stop();
        assert!(set.join_next().await.unwrap().is_ok());
    }
}
