//! A server that runs one job, `cat`, in its own memory, and cuts its
//! connections where it is told to.

use std::path::Path;

use bowline::driver::Wire;
use bowline::net::Socket;
use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::limits::PROTOCOL;
use bowline_proto::message::{Exit, Granted, Hello, Started};
use bowline_proto::outcome::{Happened, Outcome};
use bowline_proto::session::{Event, ServerEvent, ServerHandshake, Session, Step};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// Bytes of which every eight say where they are.
pub(crate) fn position_coded(len: u64) -> Vec<u8> {
    let words = (0..len.div_ceil(8)).flat_map(|word| (word * 8).to_le_bytes());
    words.take(len as usize).collect()
}

/// The job, over all connections.
pub(crate) struct Job {
    id: JobId,
    /// How much stdin it reads before it ends.
    len: u64,
    /// The line is cut when stdout has come so far.
    cuts: Vec<u64>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) starts: u32,
    pub(crate) forgotten: bool,
    pub(crate) granted_first: bool,
}

impl Job {
    pub(crate) fn new(id: JobId, len: u64, cuts: Vec<u64>) -> Self {
        Self {
            id,
            len,
            cuts,
            stdin: Vec::new(),
            starts: 0,
            forgotten: false,
            granted_first: false,
        }
    }

    fn answer(&self) -> Started {
        Started {
            pid: 1,
            stdin: self.stdin.len() as u64,
            ..Started::default()
        }
    }

    /// Acts on everything that has come. Says whether the client took leave.
    fn hear(&mut self, session: &mut Session, wire: &mut Wire, on: &mut Option<Channel>) -> bool {
        loop {
            let (len, channel, event) = match session.next(wire.input()).unwrap() {
                Step::NeedMore => return false,
                Step::Taken(len) => {
                    wire.take(len);
                    continue;
                }
                Step::Event(len, channel, event) => (len, channel, event),
            };
            let mut consumed = 0;
            let mut asked = false;
            match event {
                Event::Start(start, _) => {
                    assert_eq!(start.job, Some(self.id));
                    self.starts += 1;
                    asked = true;
                }
                Event::Attach(attach) => {
                    assert_eq!(attach.job, Some(self.id));
                    asked = true;
                }
                Event::Data { bytes, .. } => {
                    self.stdin.extend_from_slice(bytes);
                    consumed = bytes.len() as u64;
                }
                Event::Forget(forget) => self.forgotten = forget.job == Some(self.id),
                Event::Bye(_) => return true,
                _ => {}
            }
            wire.take(len);
            if asked {
                session.started(channel, &self.answer());
                *on = Some(channel);
            }
            session.consumed(channel, Stream::Stdin, consumed);
        }
    }

    /// Writes what the window takes; at the end the outcome. Says whether the line is to be cut.
    fn speak(&mut self, session: &mut Session, on: &mut Option<Channel>) -> bool {
        let Some(channel) = *on else { return false };
        loop {
            let sent = session.sending(channel, Stream::Stdout).unwrap().sent();
            if self.cuts.first().is_some_and(|cut| sent >= *cut) {
                self.cuts.remove(0);
                return true;
            }
            if sent == self.len {
                let _ = session.put_end(channel, Stream::Stdout);
                let _ = session.put_end(channel, Stream::Stderr);
                let exit = Exit {
                    outcome: Outcome {
                        outcome: Happened::Exited,
                        code: Some(0),
                        ..Outcome::default()
                    },
                    stdin: self.len,
                    stdout: self.len,
                    stderr: 0,
                };
                session.exit(channel, &exit);
                *on = None;
                return false;
            }
            let rest = &self.stdin[sent as usize..];
            if rest.is_empty() || session.room(channel, Stream::Stdout) == 0 {
                return false;
            }
            let put = session.put_with(channel, Stream::Stdout, |space| {
                let len = rest.len().min(space.len());
                space[..len].copy_from_slice(&rest[..len]);
                Ok::<_, ()>((len, false))
            });
            put.unwrap();
        }
    }
}

/// Serves one connection after the other until a client takes leave.
pub(crate) fn serve(path: &Path, mut job: Job, secret: Option<[u8; 32]>) -> JoinHandle<Job> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut wire = Wire::plain(Socket::Unix(stream));
            let mut session = let_in(&mut wire, &mut job, secret).await;
            if connection(&mut wire, &mut session, &mut job).await {
                return job;
            }
        }
    })
}

async fn fill(wire: &mut Wire) {
    std::future::poll_fn(|cx| wire.poll_fill(cx)).await.unwrap();
}

async fn let_in(wire: &mut Wire, job: &mut Job, secret: Option<[u8; 32]>) -> Session {
    let mut handshake = ServerHandshake::new(&Hello {
        protocol: PROTOCOL.to_owned(),
        nonce: Some("5a".repeat(32)),
        ..Hello::default()
    });
    loop {
        let _ = std::future::poll_fn(|cx| wire.poll_flush(cx, handshake.outbox())).await;
        let (len, event) = handshake.next(wire.input()).unwrap();
        wire.take(len);
        match event {
            ServerEvent::Auth(_) => break,
            ServerEvent::NeedMore => fill(wire).await,
            ServerEvent::Hello(_) | ServerEvent::Bye(_) => {}
        }
    }
    job.granted_first = wire.input().is_empty();
    let granted = Granted {
        mac: secret.map(hex::encode),
        ..Granted::default()
    };
    handshake.granted(&granted, &())
}

/// Whether the client took leave, and was not cut off.
async fn connection(wire: &mut Wire, session: &mut Session, job: &mut Job) -> bool {
    let mut on = None;
    loop {
        if job.hear(session, wire, &mut on) {
            return true;
        }
        let cut = job.speak(session, &mut on);
        if cut {
            // Some of what was said has left, the rest never will.
            return false;
        }
        let came = std::future::poll_fn(|cx| {
            // What is said goes out while more is waited for.
            let _ = wire.poll_flush(cx, session.outbox());
            wire.poll_fill(cx)
        });
        if came.await.is_err() || wire.ended() {
            return false;
        }
    }
}
