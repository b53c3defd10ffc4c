//! The messages between gate and keeper: plain data, no behaviour.

use std::net::IpAddr;

use bowline_proto::id::JobId;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::config::GateConfig;
pub use bowline_proto::auth::{Binding, Proof};

/// The version of this protocol. Keeper and gate are the same binary, except
/// for the moments of an upgrade, so a difference means "start another gate".
pub const VERSION: u16 = 4;
/// The number in an answer that no request of this gate asked for: the job was being started when
/// an earlier gate died.
pub const NO_REQUEST: u64 = u64::MAX;

/// A permission to start jobs as one user for one connection; 128 random bits
/// that the keeper chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GrantToken(pub [u8; 16]);

/// Where a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// An address and port of TCP.
    Tcp(IpAddr, u16),
    /// A Unix socket, which is passed beside the message: the kernel tells the peer's uid.
    Unix,
    /// The standard input and output that `serve --stdio` was started with:
    /// whoever started the process is who is served.
    Stdio,
}

/// Gate to keeper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToKeeper {
    /// The worker is about to accept connections. Sent once on each worker's socket.
    Ready { version: u16 },
    /// Sign the CertificateVerify input of a TLS handshake. Only on a signature
    /// socket; answered there by [`ToGate::Signature`].
    Sign { message: ByteBuf },
    /// Decide the proofs of a connection. With [`Source::Unix`] the connected
    /// socket is passed beside it. Answered by `Granted` or `Denied`.
    Authenticate {
        request: u64,
        connection: u64,
        user: String,
        source: Source,
        binding: Binding,
        protocol: String,
        proofs: Vec<Proof>,
    },
    /// The connection is gone: its grants end. Its jobs do not end by this.
    Disconnected { connection: u64 },
    /// Start a job. Answered by `Started`, `NotStarted` or `Refused`. A spec in
    /// a sealed memfd is passed beside it.
    Start {
        request: u64,
        grant: GrantToken,
        job: JobId,
        spec: SpecPlace,
    },
    /// Send a signal.
    Signal {
        job: JobId,
        signal: i32,
        scope: Scope,
    },
    /// End the job's whole tree: `first` (e.g. SIGTERM or SIGHUP) at once to the
    /// tree, SIGKILL after the grace time or when the main process has gone.
    End {
        job: JobId,
        cause: Cause,
        first: i32,
    },
    /// Close the keeper's duplicate of a stream: for stdin the program sees the
    /// end of its input, for the others it gets SIGPIPE (once the gate has
    /// closed its own).
    CloseStream { job: JobId, stream: Stream },
    /// The outcome is recorded; the keeper may forget the job and close what it
    /// holds of it.
    Released { job: JobId },
}

/// Keeper to gate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToGate {
    /// First message on the first worker's socket: everything that the gate
    /// needs to serve. The listening sockets are passed beside it, in the order
    /// of `listeners`.
    Welcome {
        version: u16,
        config: Box<GateConfig>,
        /// DER of the self-signed certificate that shows the host key.
        certificate: ByteBuf,
        /// The addresses of the listening sockets, e.g. `tcp://127.0.0.1:7322`.
        listeners: Vec<String>,
        /// How many times the gate was started; also a part of fresh ids.
        generation: u64,
        /// The uid that the server runs as, if the gate is to stay when the
        /// keeper dies. Then the socket on which the next keeper asks for the
        /// jobs is passed behind the listening ones.
        heirs: Option<u32>,
    },
    /// The answer to `Sign`; 64 bytes of Ed25519.
    Signature { signature: ByteBuf },
    /// The proofs were good.
    Granted { request: u64, granted: Granted },
    /// They were not, or the user may not.
    Denied { request: u64, code: DenyCode },
    /// The program runs. Beside it: the write end of stdin if the spec asked for
    /// a pipe, then the read ends of stdout and stderr as `open` names them; all non-blocking.
    /// Then the memfds of `spools`: their file positions are shared and mean something, so
    /// only one gate at a time may use them. With a terminal then its master, the end of
    /// stdout's pipe that it is emptied into, and the end of stdin's pipe that it is filled from if there is
    /// one; stderr is open only where it is a pipe. With [`NO_REQUEST`] nothing is beside it.
    Started {
        request: u64,
        job: JobId,
        pid: i32,
        unix_ms: u64,
        open: Vec<Stream>,
        spools: Vec<Stream>,
    },
    /// The program could not be started; this is the job's outcome.
    NotStarted {
        request: u64,
        job: JobId,
        why: NotStarted,
    },
    /// Nothing was tried.
    Refused {
        request: u64,
        job: JobId,
        code: RefuseCode,
    },
    /// The main process was reaped. What its pipes hold is still to be read.
    Ended { job: JobId, end: End },
    /// A live job of an earlier gate, on the first worker's socket after
    /// `Welcome`. Beside it the descriptors as in `Started`.
    Adopt { snapshot: Box<JobSnapshot> },
    /// That was the last of them.
    AllAdopted,
    /// The configuration changed; sessions go on.
    Reload { config: Box<GateConfig> },
    /// Write down what is known and go, at once and without a word to the
    /// clients: another program takes over the jobs and the sockets.
    Retire,
    /// Stop accepting, let what runs end within the time, then close.
    Drain { deadline_ms: u64 },
}

/// What is asked over the socket in a server's state directory. The keeper
/// answers while it lives; the gate that it leaves behind does after that.
///
/// Both sides may be of different versions, so these types stay as they are:
/// what is new goes to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Who are you? Answered by an [`Answer`].
    Version,
    /// To the gate: everything that the dead keeper's jobs and clients need.
    /// Answered by [`Bequest`]s, the last of them [`Bequest::End`].
    HandOver,
    /// To the gate: it is taken over; go. Answered by the end of the process.
    Taken,
}

/// Who a keeper is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The version of bowline that it was built from.
    pub software: String,
    /// The version of its state.
    pub state: u16,
    pub pid: i32,
    /// Jobs that are not released.
    pub jobs: u32,
}

/// What a gate has kept for the next keeper, with the descriptors beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bequest {
    /// A listening socket.
    Listener { address: String },
    /// The ends of a job's pipes that are open, in this order, then the memfds of its streams,
    /// then what belongs to its terminal.
    Job {
        job: JobId,
        open: Vec<Stream>,
        spools: Vec<Stream>,
    },
    /// That was all.
    End,
}

/// What a connection may do once it has been let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The permission to name in `Start`.
    pub token: GrantToken,
    /// The account the jobs run as.
    pub user: String,
    /// Its uid.
    pub uid: u32,
    /// What proved it, for the record: `SHA256:…`, `secret` or `peer`.
    pub proof: String,
    /// The options of the grant line that matter to the gate.
    pub grant: Grant,
    /// For the shared secret: the server's own proof.
    pub server_mac: Option<[u8; 32]>,
}

/// The options of a grant that the gate needs to know; the keeper enforces
/// `command=` and `environment=` itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The grant has `command=`: what the client asked for is only told to it.
    pub forced_command: bool,
    /// A terminal may be asked for.
    pub pty: bool,
}

/// Why authentication failed. The peer is told only "not authenticated"; the
/// code is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DenyCode {
    /// No proof was good.
    NoProof,
    /// No such user, or the user may not log in (nologin, locked, expired, not
    /// in `allow_users`, not the user that a rootless server runs as).
    User,
    /// A key was good but its grant line does not hold: source, expiry.
    Grant,
    /// The keeper failed: descriptors, unreadable files.
    Internal,
}

/// Where a spec is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SpecPlace {
    /// In the message.
    Inline(JobSpec),
    /// postcard of a [`JobSpec`] in a sealed memfd beside the message.
    Memfd,
}

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The arguments, the program first. With `shell`, exactly one: the text.
    pub argv: Vec<ByteBuf>,
    /// Additions to the environment, each `NAME=value`.
    pub env: Vec<ByteBuf>,
    /// The working directory; the user's home where there is none.
    pub cwd: Option<ByteBuf>,
    /// The one argument is a text for the user's shell.
    pub shell: bool,
    /// What the program reads.
    pub stdin: Stdin,
    /// The keeper ends the tree after this time.
    pub timeout_ms: Option<u64>,
    /// A terminal of its own.
    pub pty: Option<Pty>,
    /// The user's shell as a login shell; `argv` is empty then.
    pub login: bool,
    /// Where the client is, for SSH_CLIENT-like variables and the journal.
    pub source: Source,
    /// The connection that started it, as the gate counts them.
    pub connection: u64,
    /// What else was asked for.
    pub terms: Terms,
}

impl JobSpec {
    /// Tells two specs apart, and is the same in every version: what two starts of one job must
    /// have in common. Of the connection only the terms count.
    pub fn fingerprint(&self) -> u64 {
        let rest = (self.shell, self.stdin, self.timeout_ms, &self.terms);
        let rest = (rest, &self.pty, self.login);
        let rest = postcard::to_stdvec(&rest).unwrap_or_default();
        let lists = [&self.argv, &self.env];
        let counts = lists.map(|list| list.len().to_le_bytes());
        let strings = lists.into_iter().flatten().chain(&self.cwd);
        let ended = strings.flat_map(|string| string.iter().chain(&[0]));
        // FNV-1a, 64 bits.
        let bytes = counts.as_flattened().iter().chain(ended).chain(&rest);
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// What a client asks for beside the program: what happens to the job when nobody is attached.
/// The gate's business; the keeper keeps it for the next gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The job outlives its connections, for the grace time.
    pub keep: bool,
    /// That time, if the client named one.
    pub grace_ms: Option<u64>,
    /// The outcome waits for the end of the output.
    pub wait_output: bool,
    /// The job is detached: it belongs to no connection, and its output goes to the disk.
    pub spool: Option<Spool>,
}

/// What a client asks for of the output of a detached job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spool {
    /// What happens when there is no room left.
    pub policy: SpoolPolicy,
    /// That room, in bytes of each stream, if the client named one.
    pub bytes: Option<u64>,
}

/// What happens when the output of a detached job has no room left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpoolPolicy {
    /// The program waits.
    Block,
    /// The oldest output is dropped.
    DropOldest,
    /// The whole tree is ended.
    Kill,
}

/// The terminal that a program gets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pty {
    /// For TERM; empty for none.
    pub term: String,
    pub cols: u16,
    pub rows: u16,
    /// Stderr is a pipe of its own.
    pub stderr_pipe: bool,
}

/// What a program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// `/dev/null`.
    Null,
    /// A pipe.
    Pipe,
}

/// One of the three standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The job's main process group.
    Group,
    /// Every process of the job, also those that left the group or session.
    Tree,
}

/// Why a job was made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Its own `timeout_ms`.
    TimedOut,
    /// The client or an operator asked for it; with the signal asked for.
    Cancelled(i32),
    /// Its connection dropped and its policy is to end then.
    Disconnected,
    /// The server is stopping.
    Draining,
}

/// How a job ended, as the keeper saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub exited: Exited,
    /// Set if the job was made to end.
    pub cause: Option<Cause>,
    pub tree: Tree,
    pub unix_ms: u64,
}

/// How the main process ended, as wait(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exited {
    Code(i32),
    Signal {
        signal: i32,
        core_dumped: bool,
    },
    /// The status cannot be known: another keeper was its parent.
    Lost,
}

/// How the rest of the tree was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tree {
    /// Nothing was to be ended; survivors run on.
    LeftAlone,
    /// Every process was in a cgroup that was killed.
    Exact,
    /// The descendants were found by walking; a process that hid may have escaped.
    BestEffort,
}

/// Why a program could not be started; exit status 125, 126 or 127.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStarted {
    /// ENOENT for the program (127).
    NotFound,
    /// Found, but it cannot be executed: errno of execve(2) (126).
    NotExecutable { errno: i32 },
    /// The working directory (125).
    Directory { errno: i32 },
    /// The user's account or groups (125).
    User { errno: i32 },
    /// Descriptors, processes, memory (125).
    Resources { errno: i32 },
    /// The arguments and environment are too long for execve(2) (126).
    TooLong,
}

/// Why a start was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefuseCode {
    /// No such grant, or it is of another connection.
    NoGrant,
    /// The grant permits no terminal.
    NoTerminal,
    /// The user has as many jobs as a user may have.
    TooManyJobs,
    /// The job id is known already and belongs to somebody else, or its start
    /// differs.
    DuplicateJob,
    /// The spec is malformed: NUL bytes, empty argv, over a limit.
    BadSpec,
    /// The server is stopping.
    Draining,
    /// The keeper cannot write its journal or has no descriptors left.
    OutOfResources,
}

/// A live job, as the next gate needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSnapshot {
    pub job: JobId,
    pub user: String,
    pub uid: u32,
    pub pid: i32,
    pub started_unix_ms: u64,
    pub source: Source,
    pub connection: u64,
    pub fingerprint: u64,
    pub terms: Terms,
    /// Its program is about to be executed: whether it can be is told by `Started` or `NotStarted`.
    pub starting: bool,
    /// Whether it was started with a pipe as its stdin.
    pub stdin: Stdin,
    /// Which pipes come beside it, in this order.
    pub open: Vec<Stream>,
    /// Which memfds come behind them, in this order.
    pub spools: Vec<Stream>,
    /// It goes on although nobody is connected to it: the server itself cut the connection.
    pub kept: bool,
    /// Set if the main process has ended already.
    pub ended: Option<End>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gate that a dead keeper left may be of an older release than the next keeper.
    #[test]
    fn what_two_releases_say_to_each_other_stays_as_it_is() {
        fn bytes(message: &impl Serialize) -> String {
            hex::encode(postcard::to_stdvec(message).unwrap())
        }
        assert_eq!(bytes(&Question::Version), "00");
        assert_eq!(bytes(&Question::HandOver), "01");
        assert_eq!(bytes(&Question::Taken), "02");
        let answer = Answer {
            software: "1".to_owned(),
            state: 2,
            pid: 3,
            jobs: 4,
        };
        assert_eq!(bytes(&answer), "0131020604");
        let address = "x".to_owned();
        assert_eq!(bytes(&Bequest::Listener { address }), "000178");
        let job = JobId::from_bytes([5; 16]);
        let open = vec![Stream::Stdin, Stream::Stdout, Stream::Stderr];
        let spools = vec![Stream::Stdout, Stream::Stderr];
        let told = format!("01{}03000102020102", "05".repeat(16));
        assert_eq!(bytes(&Bequest::Job { job, open, spools }), told);
        assert_eq!(bytes(&Bequest::End), "02");
    }
}
