//! A client of the library that comes back: it keeps its offsets, and has faults on purpose.

use std::path::{Path, PathBuf};

use bowline::client::{
    Access, ClientError, Connection, Endpoint, Happening, HostKeyError, HostTrust, Options, Proofs,
    ServerProof, StartRequest, connect,
};
use bowline_proto::auth::{Binding, Proof};
use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::message::{Attach, Exit, OnDisconnect, Pty};

use crate::hostile::raw::{job, user};
use crate::hostile::witness::gate_of;
use crate::server::{Server, signal_process};

const KILL: i32 = 9;

/// Whoever is at the other end of the socket.
struct Peer;

impl Proofs for Peer {
    fn proofs(&mut self, _: &Binding, _: &str) -> Vec<Proof> {
        vec![Proof::Peer]
    }

    fn server_proof(&mut self, _: &Binding, _: &str) -> Option<ServerProof> {
        None
    }
}

impl HostTrust for Peer {
    fn check(&mut self, _: &str, _: u16, _: &[u8; 32]) -> Result<(), HostKeyError> {
        Ok(())
    }
}

pub(crate) async fn connected(socket: &Path) -> Result<Connection, ClientError> {
    let access = Access {
        user: user(),
        proofs: &mut Peer,
        trust: &mut Peer,
    };
    let endpoint = Endpoint::Unix(socket.to_owned());
    let mut connection = connect(&endpoint, access, &Options::default()).await?;
    while !connection.is_granted() {
        connection.next().await?;
    }
    assert_eq!(connection.minor(), 1);
    Ok(connection)
}

/// The byte at an offset of a coded stream.
fn coded(at: u64) -> u8 {
    (at / 8).to_le_bytes()[(at % 8) as usize]
}

/// A client that sends a coded stream to a program and checks what comes back on both of its
/// outputs, over as many connections as it takes.
pub(crate) struct Client<'a> {
    server: &'a Server,
    socket: PathBuf,
    job: JobId,
    argv: Vec<Vec<u8>>,
    /// The length of the stream.
    pub(crate) total: u64,
    /// The program has a terminal, and writes the stream by itself.
    pub(crate) terminal: bool,
    pub(crate) detached: bool,
    started: bool,
    pub(crate) got: [u64; 2],
    /// What has become of the connections so far.
    pub(crate) connections: u32,
    /// When the next fault is due, in bytes that have come, and what it is.
    fault_at: u64,
    pub(crate) faults: u32,
    /// Lines that hang.
    stale: Vec<Connection>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(server: &'a Server, argv: &[&str], total: u64) -> Self {
        Self {
            server,
            socket: server.dir().join("socket"),
            job: job(total).parse().unwrap(),
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            total,
            terminal: false,
            detached: false,
            started: false,
            got: [0; 2],
            connections: 0,
            fault_at: u64::MAX,
            faults: 0,
            stale: Vec::new(),
        }
    }

    /// Goes on until there is an outcome.
    pub(crate) async fn run(&mut self, faults: u32) -> Exit {
        let streams = if self.terminal { 1 } else { 2 };
        let step = streams * self.total / u64::from(faults + 1);
        self.fault_at = step;
        loop {
            self.connections += 1;
            assert!(self.connections < 100 * (faults + 1), "it does not go on");
            match self.session(step, faults).await {
                Ok(exit) => return exit,
                Err(ClientError::Refused(refused)) => panic!("{refused:?}"),
                // The gate died, or the test has cut the line.
                Err(_) => {}
            }
        }
    }

    async fn session(&mut self, step: u64, faults: u32) -> Result<Exit, ClientError> {
        let mut connection = connected(&self.socket).await?;
        let channel = if self.started {
            connection.attach(&Attach {
                job: Some(self.job),
                stdout: Some(self.got[0]),
                stderr: Some(self.got[1]),
                ..Attach::default()
            })?
        } else {
            let request = StartRequest {
                argv: self.argv.clone(),
                on_disconnect: OnDisconnect::Keep,
                detach: self.detached,
                null_stdin: self.terminal,
                pty: self.terminal.then(Pty::default),
                ..StartRequest::default()
            };
            connection.start(self.job, &request)?
        };
        loop {
            if !self.terminal {
                self.feed(&mut connection, channel);
            }
            match connection.next().await? {
                Happening::Started(_, started) => {
                    self.started = true;
                    assert_eq!(
                        (started.stdout, started.stderr),
                        match self.got {
                            [0, 0] if started.stdout.is_none() => (None, None),
                            [stdout, stderr] => (Some(stdout), Some(stderr)),
                        }
                    );
                }
                Happening::Output { stream, bytes, .. } => {
                    let got = &mut self.got[usize::from(stream == Stream::Stderr)];
                    for (at, &byte) in (*got..).zip(&bytes) {
                        assert_eq!(byte, coded(at), "{stream:?} at {at}");
                    }
                    *got += bytes.len() as u64;
                    connection.consumed(channel, stream, bytes.len() as u64);
                }
                Happening::Exit(_, exit) => {
                    connection.forget(self.job);
                    connection.flush().await?;
                    return Ok(exit);
                }
                Happening::Refused(_, refused) => panic!("{refused:?}"),
                _ => {}
            }
            if self.got.iter().sum::<u64>() >= self.fault_at && self.faults < faults {
                self.fault_at += step;
                self.faults += 1;
                match self.faults % 3 {
                    0 => return Err(ClientError::Closed),
                    1 => {
                        // Nobody reads it, and the server cannot know.
                        self.stale.push(connection);
                        return Err(ClientError::Closed);
                    }
                    _ => signal_process(gate_of(self.server), KILL),
                }
            }
        }
    }

    /// Puts as much of the stream as may be sent.
    fn feed(&self, connection: &mut Connection, channel: Channel) {
        while connection.room(channel) > 0 {
            let Some((_, mut at)) = connection.stdin_offsets(channel) else {
                return;
            };
            let put = connection.put_with(channel, |space| {
                let len = space.len().min((self.total - at) as usize);
                for byte in &mut space[..len] {
                    *byte = coded(at);
                    at += 1;
                }
                Ok::<_, ()>((len, at == self.total))
            });
            if put.is_err() {
                return;
            }
        }
    }
}
