//! What goes out, the time, and the ways in which a connection ends.

use std::task::{Context, Poll};
use std::time::Duration;

use bowline_proto::id::Channel;
use bowline_proto::message::{Bye, Refused};
use bowline_proto::session::Outbox;

use super::{CLOSING, Connection, Phase, Shown};
use crate::ipc::ToKeeper;

/// An outbox that held so much keeps its buffer for [`BUFFER_REST`].
const MUCH_BYTES: usize = 32 * 1024;
/// How long a large buffer is kept that nobody uses.
const BUFFER_REST: Duration = Duration::from_secs(1);

/// What waits to be sent, while there is somebody to send it to.
fn outbox_of(phase: &mut Phase) -> Option<&mut Outbox> {
    match phase {
        Phase::Handshake(handshake) | Phase::Deciding(handshake) | Phase::Delayed(handshake, _) => {
            Some(handshake.outbox())
        }
        Phase::Open(session, _) => Some(session.outbox()),
        Phase::Closing(outbox, _) => Some(outbox),
        Phase::Gone => None,
    }
}

impl Connection {
    pub(super) fn output(&mut self, cx: &mut Context<'_>) -> bool {
        let handshaking = self.wire.is_handshaking();
        let Some(outbox) = outbox_of(&mut self.phase) else {
            return false;
        };
        let waited = !outbox.is_empty();
        let much = outbox.bulk().len() > MUCH_BYTES;
        match self.wire.poll_flush(cx, outbox) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => {
                if much && !self.large {
                    // In the middle of much data the buffer is needed again at once.
                    self.large = true;
                    self.rest();
                } else if !self.large {
                    outbox.shrink();
                }
                // Before TLS is agreed on, last words wait in it.
                if let Phase::Closing(_, false) = self.phase
                    && !handshaking
                {
                    self.wire.close();
                    self.phase = Phase::Closing(Box::default(), true);
                    return true;
                }
                waited
            }
            Poll::Ready(Err(error)) => {
                tracing::debug!(connection = self.id, %error, "the line broke");
                self.gone();
                true
            }
        }
    }

    pub(super) fn time(&mut self, cx: &mut Context<'_>) -> bool {
        if matches!(self.phase, Phase::Gone) || self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::Handshake(handshake) | Phase::Deciding(handshake) => {
                tracing::info!(
                    connection = self.id, source = %Shown(&self.source), "authentication took too long"
                );
                self.phase = Phase::Handshake(handshake);
                self.refuse("auth_timeout", "authentication took too long");
            }
            Phase::Delayed(mut handshake, refused) => {
                handshake.refuse(&refused);
                self.closing(std::mem::take(handshake.outbox()));
            }
            Phase::Open(mut session, authenticated) => {
                let large = std::mem::take(&mut self.large);
                if large {
                    session.outbox().shrink();
                }
                self.phase = Phase::Open(session, authenticated);
                if large {
                    self.rest();
                } else if self.draining && self.jobs.is_empty() {
                    self.leave("draining", "the server is stopping");
                } else if self.jobs.is_empty() && self.worker.config().idle_timeout_ms > 0 {
                    self.leave("idle_timeout", "nothing was asked for a long time");
                } else {
                    self.rest();
                }
            }
            Phase::Closing(..) | Phase::Gone => self.gone(),
        }
        true
    }

    /// The time without anything asked for starts anew.
    pub(super) fn rest(&mut self) {
        if matches!(self.phase, Phase::Open(..)) {
            let idle = match self.worker.config().idle_timeout_ms {
                _ if self.large => BUFFER_REST,
                // The client may still say that it has the outcomes that it was told.
                _ if self.draining && self.jobs.is_empty() => CLOSING,
                0 => Duration::from_secs(24 * 3600),
                idle => Duration::from_millis(idle),
            };
            let at = tokio::time::Instant::now() + idle;
            self.timer.as_mut().reset(at);
        }
    }

    pub(super) fn leave_if_idle(&mut self) {
        let waiting = matches!(self.phase, Phase::Handshake(_) | Phase::Open(..));
        if !waiting || !self.jobs.is_empty() {
            return;
        }
        if self.told.is_empty() {
            self.leave("draining", "the server is stopping");
        } else {
            self.rest();
        }
    }

    /// Says goodbye and closes.
    pub(super) fn leave(&mut self, code: &str, message: &str) {
        if let Phase::Open(session, _) = &mut self.phase {
            session.bye(&Bye {
                code: code.to_owned(),
                message: message.to_owned(),
            });
            self.close();
        } else {
            self.refuse(code, message);
        }
    }

    /// Ends the connection with a reason.
    pub(in crate::gate) fn refuse(&mut self, code: &str, message: &str) {
        let refused = Refused {
            code: code.to_owned(),
            message: message.to_owned(),
        };
        match &mut self.phase {
            Phase::Handshake(handshake)
            | Phase::Deciding(handshake)
            | Phase::Delayed(handshake, _) => handshake.refuse(&refused),
            Phase::Open(session, _) => session.refuse(Channel::CONNECTION, &refused),
            Phase::Closing(..) | Phase::Gone => {}
        }
        self.close();
    }

    /// Sends what waits, and then ends.
    pub(super) fn close(&mut self) {
        let outbox = match &mut self.phase {
            Phase::Handshake(handshake)
            | Phase::Deciding(handshake)
            | Phase::Delayed(handshake, _) => std::mem::take(handshake.outbox()),
            Phase::Open(session, _) => std::mem::take(session.outbox()),
            Phase::Closing(..) | Phase::Gone => return,
        };
        self.closing(outbox);
    }

    pub(super) fn closing(&mut self, outbox: Outbox) {
        self.phase = Phase::Closing(Box::new(outbox), false);
        self.timer = Box::pin(tokio::time::sleep(CLOSING));
        // Who was attached is not any more; the jobs' owners see to the rest.
        self.jobs.clear();
    }

    /// The line is gone.
    pub(super) fn gone(&mut self) {
        self.phase = Phase::Gone;
        self.worker.link.send(&ToKeeper::Disconnected {
            connection: self.id,
        });
        self.jobs.clear();
    }
}
