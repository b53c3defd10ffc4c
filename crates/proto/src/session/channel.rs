//! One channel: how far an attachment to a job has come, and its three streams.
//!
//! Owns which of the streams this side sends and which it receives, so that
//! neither data nor credit can go the wrong way. It sees no frames: the session
//! hands in what they said.

use super::flow::{RecvFlow, SendFlow};
use super::phase::Role;
use crate::frame::Stream;
use crate::message::Started;

/// How far a channel has come.
///
/// ```text
///            start's last frame            started
/// Starting ──────────────────────► Asked ───────────► Running
///                        attach ───►│                    │
///                                   └── exit, refused ───┴──► closed: not in the session's map
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A server: more frames of the `start` are to come, and nothing else may.
    Starting,
    /// The client has asked and the server has not answered.
    Asked,
    /// The server has said `started`.
    Running,
}

/// What a channel was opened by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// `start`: every stream begins at 0, and stdin may be sent at once.
    ByStart,
    /// `attach`: output goes on at these offsets of stdout and stderr, or at those that
    /// `started` tells, and stdin at the one that `started` tells. A stream without an
    /// offset is not wanted.
    ByAttach([Option<u64>; 2]),
}

/// A channel that is in use.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) stage: Stage,
    attached: bool,
    /// Whether stdout and stderr are wanted.
    wanted: [bool; 2],
    streams: Streams,
}

/// The streams of a channel, as this side sees them.
#[derive(Debug)]
enum Streams {
    Client {
        stdin: SendFlow,
        output: [RecvFlow; 2],
    },
    Server {
        stdin: RecvFlow,
        output: [SendFlow; 2],
    },
}

impl Attachment {
    pub(super) fn new(role: Role, opened: Opened, stage: Stage) -> Self {
        let (attached, offsets) = match opened {
            Opened::ByStart => (false, [Some(0); 2]),
            Opened::ByAttach(offsets) => (true, offsets),
        };
        let streams = match role {
            Role::Client => Streams::Client {
                stdin: if attached {
                    SendFlow::closed_until_told()
                } else {
                    SendFlow::default()
                },
                output: offsets.map(|it| it.map_or(RecvFlow::never(), RecvFlow::from_offset)),
            },
            Role::Server => Streams::Server {
                stdin: RecvFlow::default(),
                output: offsets.map(|it| it.map_or(SendFlow::never(), SendFlow::from_offset)),
            },
        };
        Self {
            stage,
            attached,
            wanted: offsets.map(|offset| offset.is_some()),
            streams,
        }
    }

    /// The program runs, and its streams go on where `started` says. False where that is before
    /// what was asked for: those bytes are there already.
    pub(super) fn run(&mut self, started: &Started) -> bool {
        let [stdout, stderr] = self.wanted;
        let told = [
            started.stdout.filter(|_| stdout),
            started.stderr.filter(|_| stderr),
        ];
        self.stage = Stage::Running;
        match &mut self.streams {
            Streams::Client { stdin, output } => {
                if self.attached {
                    *stdin = SendFlow::from_offset(started.stdin);
                }
                for (flow, offset) in output.iter_mut().zip(told) {
                    match offset {
                        Some(offset) if offset < flow.received() => return false,
                        Some(offset) => *flow = RecvFlow::from_offset(offset),
                        None => {}
                    }
                }
            }
            Streams::Server { stdin, output } => {
                if self.attached {
                    *stdin = RecvFlow::from_offset(started.stdin);
                }
                for (flow, offset) in output.iter_mut().zip(told) {
                    if let Some(offset) = offset {
                        *flow = SendFlow::from_offset(offset);
                    }
                }
            }
        }
        if started.stdin_closed {
            self.without_stdin();
        }
        true
    }

    /// Whether a stream of output is wanted on this channel.
    pub(super) fn wants(&self, stream: Stream) -> bool {
        let [stdout, stderr] = self.wanted;
        match stream {
            Stream::Stdin => true,
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        }
    }

    /// The program reads `/dev/null`.
    pub(super) fn without_stdin(&mut self) {
        match &mut self.streams {
            Streams::Client { stdin, .. } => *stdin = SendFlow::never(),
            Streams::Server { stdin, .. } => *stdin = RecvFlow::never(),
        }
    }

    /// Whether it is known at which offset stdin goes on.
    pub(super) fn stdin_is_open(&self) -> bool {
        self.stage == Stage::Running || !self.attached
    }

    /// A stream that this side sends.
    pub(super) fn send(&self, stream: Stream) -> Option<&SendFlow> {
        match (&self.streams, stream) {
            (Streams::Client { stdin, .. }, Stream::Stdin) => Some(stdin),
            (Streams::Server { output, .. }, Stream::Stdout) => output.first(),
            (Streams::Server { output, .. }, Stream::Stderr) => output.last(),
            _ => None,
        }
    }

    /// The same, to change it.
    pub(super) fn send_mut(&mut self, stream: Stream) -> Option<&mut SendFlow> {
        match (&mut self.streams, stream) {
            (Streams::Client { stdin, .. }, Stream::Stdin) => Some(stdin),
            (Streams::Server { output, .. }, Stream::Stdout) => output.first_mut(),
            (Streams::Server { output, .. }, Stream::Stderr) => output.last_mut(),
            _ => None,
        }
    }

    /// A stream that this side receives.
    pub(super) fn recv(&self, stream: Stream) -> Option<&RecvFlow> {
        match (&self.streams, stream) {
            (Streams::Server { stdin, .. }, Stream::Stdin) => Some(stdin),
            (Streams::Client { output, .. }, Stream::Stdout) => output.first(),
            (Streams::Client { output, .. }, Stream::Stderr) => output.last(),
            _ => None,
        }
    }

    /// The same, to change it.
    pub(super) fn recv_mut(&mut self, stream: Stream) -> Option<&mut RecvFlow> {
        match (&mut self.streams, stream) {
            (Streams::Server { stdin, .. }, Stream::Stdin) => Some(stdin),
            (Streams::Client { output, .. }, Stream::Stdout) => output.first_mut(),
            (Streams::Client { output, .. }, Stream::Stderr) => output.last_mut(),
            _ => None,
        }
    }

    /// What the windows of this channel have grown by.
    pub(super) fn growth(&self) -> u64 {
        match &self.streams {
            Streams::Server { stdin, .. } => stdin.growth(),
            Streams::Client { output, .. } => output.iter().map(RecvFlow::growth).sum(),
        }
    }
}
