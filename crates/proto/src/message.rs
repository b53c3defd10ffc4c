//! Messages: the typed JSON headers of control frames.
//!
//! Unknown keys are ignored, so that a header can grow; a known key given
//! twice is an error, so that two readers cannot see two meanings. argv,
//! environment and paths are bytes and travel in the payload as NUL-terminated
//! strings, never in JSON.

mod job_id;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::auth::ProofJson;
use crate::frame::{Kind, Stream};
use crate::id::JobId;
use crate::limits::{
    COMMAND_BYTES_MAX, NAME_BYTES_MAX, SENTENCE_BYTES_MAX, START_BYTES_MAX, START_STRINGS_MAX,
};
use crate::outcome::Outcome;
use crate::wire::{self, cut};

/// A header that is not what its kind asks for.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The JSON does not parse, lacks a key or has one twice.
    #[error("the header of {kind:?} is malformed")]
    Header {
        /// Whose header.
        kind: Kind,
        /// What the JSON parser found.
        source: serde_json::Error,
    },
    /// The strings of a `start` are not as its header counts them.
    #[error("the payload of start is not the strings that its header announces")]
    StartPayload,
    /// A `start` announces more than execve(2) would take.
    #[error("start announces {0} bytes, over the limit of {START_BYTES_MAX}")]
    StartTooLong(u64),
}

/// A message with a JSON header.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind of frame that carries it.
    const KIND: Kind;

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Header`].
    fn from_header(header: &[u8]) -> Result<Self, MessageError> {
        // serde reads an array as a struct too: a second way to write each header,
        // that no other reader would know.
        let blank = |byte: &&u8| b" \t\r\n".contains(byte);
        let message = if header.iter().find(|byte| !blank(byte)) == Some(&b'{') {
            // The whole of it: serde_json looks at no string of a key that is ignored.
            std::str::from_utf8(header)
                .map_err(serde::de::Error::custom)
                .and_then(serde_json::from_str)
        } else {
            Err(serde::de::Error::custom("not a JSON object"))
        };
        message.map_err(|source| MessageError::Header {
            kind: Self::KIND,
            source,
        })
    }
}

macro_rules! messages {
    ($($name:ident),* $(,)?) => {
        $(impl Message for $name { const KIND: Kind = Kind::$name; })*
    };
}

messages!(
    Hello, Auth, Granted, Refused, Start, Started, Attach, Signal, Resize, Window, Exit, Forget,
    List, Jobs, Gap, Ping, Pong, Bye
);

/// The first message of each side, on channel 0. The server's is half-RTT data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// `bowline/1`.
    pub protocol: String,
    /// What may be relied on within the protocol; grows with each release that adds something.
    #[serde(default)]
    pub minor: u32,
    /// Name and version of the program, for the log.
    #[serde(default)]
    pub software: String,
    /// Where there is no TLS: 64 hex digits that proofs are bound to. Only the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Numbers of the kinds beyond those of `bowline/1` that the sender understands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<u8>,
}

/// Who the client is, and up to four proofs of it; the first that is granted counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auth {
    /// The account that jobs are to run as.
    pub user: String,
    /// See [`crate::auth`].
    pub proofs: Vec<ProofJson>,
}

/// A proof was good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The account that jobs run as.
    pub user: String,
    /// With the shared secret: the server's own proof, 64 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// What was asked for is not done. On channel 0 the connection ends with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A stable code: see PROTOCOL.md.
    pub code: String,
    /// A sentence for a person.
    pub message: String,
}

/// Start a job on a fresh channel. The payload, perhaps over several frames,
/// holds `args` arguments, then `vars` variables `NAME=value`, then the working
/// directory if `cwd`, each ending in NUL. The last frame has the end flag;
/// those after the first have no header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Chosen by the client at random.
    #[serde(with = "job_id")]
    pub job: Option<JobId>,
    /// How many arguments.
    pub args: u32,
    /// How many variables.
    #[serde(default)]
    pub vars: u32,
    /// Whether a working directory follows.
    #[serde(default)]
    pub cwd: bool,
    /// Bytes of the whole payload.
    pub bytes: u32,
    /// The one argument is a text for the user's shell.
    #[serde(default, skip_serializing_if = "is_default")]
    pub shell: bool,
    /// The program reads `/dev/null`; no stdin data may follow.
    #[serde(default, skip_serializing_if = "is_default")]
    pub null_stdin: bool,
    /// The server ends the tree after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Wait for the end of the output as long as it takes, not only a moment.
    #[serde(default, skip_serializing_if = "is_default")]
    pub wait_output: bool,
    /// What the server does when no connection is attached any more. Since minor 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_disconnect: OnDisconnect,
    /// With `keep`: how long nobody may be attached; the server's own time where there is
    /// none. Since minor 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// The job belongs to no connection, and its output is kept on disk. Since minor 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub detach: bool,
    /// With `detach`: what happens when the output has no room left. Since minor 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub spool: SpoolPolicy,
    /// With `detach`: that room, in bytes of each stream; the server's own limit where there
    /// is none, or where that is less. Since minor 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_bytes: Option<u64>,
    /// The program gets a terminal of its own. Since minor 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
    /// The account's shell as a login shell, without arguments. Since minor 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub login: bool,
}

/// What becomes of a job when the last connection that was attached to it is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// Its whole tree is ended.
    #[default]
    Kill,
    /// It goes on for the grace time, as far as its output finds room.
    Keep,
}

/// What becomes of a detached job whose output has no room left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpoolPolicy {
    /// The program waits.
    #[default]
    Block,
    /// The oldest output is dropped; readers see the gap.
    DropOldest,
    /// The whole tree is ended.
    Kill,
}

/// The terminal that a job is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// Its kind, for TERM; empty where the client has none.
    #[serde(default)]
    pub term: String,
    /// Width, in character cells.
    #[serde(default)]
    pub cols: u16,
    /// Height.
    #[serde(default)]
    pub rows: u16,
    /// Stderr is a pipe of its own instead of the terminal.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stderr_pipe: bool,
}

impl Start {
    /// Checks the announced sizes, before anything is allocated for them.
    ///
    /// # Errors
    /// [`MessageError::StartTooLong`], [`MessageError::StartPayload`].
    pub fn check(&self) -> Result<(), MessageError> {
        let bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        if bytes > START_BYTES_MAX {
            return Err(MessageError::StartTooLong(u64::from(self.bytes)));
        }
        let strings = u64::from(self.args) + u64::from(self.vars) + u64::from(self.cwd);
        // A login shell has no arguments, and everything else has its own name at least.
        let counts = (self.args == 0) == self.login && !(self.login && self.shell);
        if self.job.is_none() || !counts || strings > START_STRINGS_MAX as u64 {
            return Err(MessageError::StartPayload);
        }
        let named = |pty: &Pty| pty.term.len() <= NAME_BYTES_MAX && !pty.term.contains('\0');
        if !self.pty.as_ref().is_none_or(named) {
            return Err(MessageError::StartPayload);
        }
        Ok(())
    }

    /// Takes the payload apart.
    ///
    /// # Errors
    /// [`MessageError::StartPayload`].
    pub fn strings<'a>(&self, payload: &'a [u8]) -> Result<StartStrings<'a>, MessageError> {
        let take = |input: &'a [u8], count: u32| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            wire::c_strings(input, count).ok_or(MessageError::StartPayload)
        };
        let (argv, rest) = take(payload, self.args)?;
        let (env, rest) = take(rest, self.vars)?;
        let (cwd, rest) = take(rest, u32::from(self.cwd))?;
        // A variable has a name, and a `=` behind it.
        let named = |var: &&[u8]| var.iter().position(|&byte| byte == b'=') > Some(0);
        if !rest.is_empty() || !env.iter().all(named) {
            return Err(MessageError::StartPayload);
        }
        Ok(StartStrings {
            argv,
            env,
            cwd: cwd.first().copied(),
        })
    }
}

/// The strings of a `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartStrings<'a> {
    /// The program and its arguments.
    pub argv: Vec<&'a [u8]>,
    /// `NAME=value`.
    pub env: Vec<&'a [u8]>,
    /// The working directory.
    pub cwd: Option<&'a [u8]>,
}

/// The program runs, or has run: also the answer to `attach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process id on the server.
    pub pid: i32,
    /// When it was started, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The offset of stdin that the server expects next. After `attach`, stdin goes on here.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: u64,
    /// Stdin is not to be sent on this channel: it has ended, the program has none, or it was not
    /// asked for. Since minor 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin_closed: bool,
    /// Where stdout goes on, if that is not where it was asked for: what is before was dropped,
    /// or nobody named an offset. Since minor 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<u64>,
    /// The same for stderr. Since minor 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<u64>,
    /// The job has a terminal. Since minor 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pty: bool,
}

/// Attach to a job; output is wanted from these offsets on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Which job.
    #[serde(with = "job_id")]
    pub job: Option<JobId>,
    /// The first byte of stdout that is wanted; `None`: this stream is not wanted, since minor 1.
    #[serde(default = "beginning")]
    pub stdout: Option<u64>,
    /// The same for stderr.
    #[serde(default = "beginning")]
    pub stderr: Option<u64>,
    /// What the streams that are wanted begin with. Since minor 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub from: AttachFrom,
    /// With `since`: that time, in milliseconds since 1970. Since minor 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Whether this attachment is to be the one that stdin comes from. Since minor 1.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub stdin: bool,
}

impl Attach {
    /// Where each of the two streams begins, as far as the client can say: `None` where it is not
    /// wanted, 0 where only the server knows.
    pub(crate) fn offsets(&self) -> [Option<u64>; 2] {
        let named = self.from == AttachFrom::Offset;
        [self.stdout, self.stderr].map(|offset| offset.map(|offset| if named { offset } else { 0 }))
    }
}

impl Default for Attach {
    fn default() -> Self {
        Self {
            job: None,
            stdout: beginning(),
            stderr: beginning(),
            from: AttachFrom::default(),
            since_ms: None,
            stdin: true,
        }
    }
}

/// Where an attachment's output begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachFrom {
    /// At the offsets that `attach` names.
    #[default]
    Offset,
    /// With the oldest byte that is kept, whatever the offsets say.
    Start,
    /// With the next byte that the program writes.
    Now,
    /// With what the program wrote at [`Attach::since_ms`] or later; only of a detached job.
    Since,
}

/// Send a signal: to the job of the channel, or on channel 0 to the job named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Linux's number of it (signal(7)).
    pub signal: i32,
    /// End the whole tree: this signal first, SIGKILL to what is left.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tree: bool,
    /// Which job, on channel 0: its id or an unambiguous beginning of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

/// The client's terminal has a new size, in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Width.
    pub cols: u16,
    /// Height.
    pub rows: u16,
}

/// Two absolute offsets of a stream, from its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Which stream.
    pub stream: Stream,
    /// Everything before this offset has reached its destination.
    pub acked: u64,
    /// Nothing at or behind this offset may be sent yet.
    pub limit: u64,
    /// Of stdin: the program reads no more of it, and nothing more need be sent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub closed: bool,
}

/// The outcome, sent behind the last byte of the job's output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// What happened.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Bytes of stdin that reached the program's pipe.
    pub stdin: u64,
    /// The end of stdout.
    pub stdout: u64,
    /// The end of stderr.
    pub stderr: u64,
}

/// The client has the outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    /// Which job.
    #[serde(with = "job_id")]
    pub job: Option<JobId>,
}

/// Ask for the jobs of this user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Also those that have ended, the latest first.
    #[serde(default)]
    pub ended: bool,
    /// At most so many; 0 is what the server thinks fit.
    #[serde(default)]
    pub count: u32,
    /// Only those whose ids begin so. A server that does not know the key sends others too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

/// Some of the jobs asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    /// At most [`crate::limits::JOBS_PER_MESSAGE_MAX`].
    pub jobs: Vec<JobRow>,
    /// Another message follows.
    #[serde(default)]
    pub more: bool,
}

/// A job as `list` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    /// Its id.
    #[serde(with = "job_id")]
    pub job: Option<JobId>,
    /// Whom it runs as.
    pub user: String,
    /// Where its client was.
    pub source: String,
    /// Its process id, 0 where there was none.
    pub pid: i32,
    /// When it was asked for, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The command for a person to read, cut where it is long.
    pub command: String,
    /// Absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// A code that says what its output waits for, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

/// Part of a job's output was dropped before this attachment read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Which stream.
    pub stream: Stream,
    /// The offset of the next byte that comes.
    pub offset: u64,
}

/// Ask for a `pong` with the same id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Any number.
    pub id: u64,
}

/// The answer to a `ping`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The `ping`'s number.
    pub id: u64,
}

/// The sender is about to close.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// A stable code; empty where all is well.
    #[serde(default)]
    pub code: String,
    /// A sentence for a person.
    #[serde(default)]
    pub message: String,
}

impl Refused {
    /// The same with its texts cut to their limits.
    pub(crate) fn fitted(&self) -> Self {
        Self {
            code: cut(&self.code, NAME_BYTES_MAX),
            message: cut(&self.message, SENTENCE_BYTES_MAX),
        }
    }
}

impl Bye {
    /// The same with its texts cut to their limits.
    pub(crate) fn fitted(&self) -> Self {
        Self {
            code: cut(&self.code, NAME_BYTES_MAX),
            message: cut(&self.message, SENTENCE_BYTES_MAX),
        }
    }
}

impl Signal {
    /// The same with its texts cut to their limits.
    pub(crate) fn fitted(&self) -> Self {
        Self {
            job: self.job.as_deref().map(|job| cut(job, NAME_BYTES_MAX)),
            ..self.clone()
        }
    }
}

impl List {
    /// The same with its texts cut to their limits.
    pub(crate) fn fitted(&self) -> Self {
        Self {
            job: self.job.as_deref().map(|job| cut(job, NAME_BYTES_MAX)),
            ..self.clone()
        }
    }
}

impl Exit {
    /// The same with its texts cut to their limits.
    pub(crate) fn fitted(&self) -> Self {
        Self {
            outcome: self.outcome.fitted(),
            ..self.clone()
        }
    }
}

impl JobRow {
    /// The same with its texts cut to their limits: one row always fits a message.
    pub(crate) fn fitted(&self) -> Self {
        Self {
            user: cut(&self.user, NAME_BYTES_MAX),
            source: cut(&self.source, NAME_BYTES_MAX),
            command: cut(&self.command, COMMAND_BYTES_MAX),
            outcome: self.outcome.as_ref().map(Outcome::fitted),
            waits: self.waits.as_deref().map(|code| cut(code, NAME_BYTES_MAX)),
            ..self.clone()
        }
    }
}

fn beginning() -> Option<u64> {
    Some(0)
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_key_twice_is_an_error_and_an_unknown_key_is_not() {
        assert!(Ping::from_header(br#"{"id":1,"id":1}"#).is_err());
        assert_eq!(
            Ping::from_header(br#"{"id":1,"later":[{}]}"#).unwrap(),
            Ping { id: 1 }
        );
        assert!(Ping::from_header(b"").is_err());
        assert!(Ping::from_header(br#"{"id":1} x"#).is_err());
        assert!(Ping::from_header(b"{\"id\":1,\"later\":\"\xff\"}").is_err());
        let auth = br#"{"user":"u","proofs":[{"type":"peer","type":"peer"}]}"#;
        assert!(Auth::from_header(auth).is_err());
    }

    #[test]
    fn a_login_shell_has_no_arguments_and_everything_else_has() {
        let start = |args, login, shell| Start {
            job: Some(JobId::from_bytes([1; 16])),
            args,
            login,
            shell,
            ..Start::default()
        };
        assert!(start(0, true, false).check().is_ok());
        assert!(start(1, false, true).check().is_ok());
        assert!(start(0, false, false).check().is_err());
        assert!(start(1, true, false).check().is_err());
        assert!(start(0, true, true).check().is_err());
        for (term, good) in [("", true), ("xterm", true), ("a\0b", false)] {
            let pty = |term: &str| Start {
                pty: Some(Pty {
                    term: term.to_owned(),
                    ..Pty::default()
                }),
                ..start(1, false, false)
            };
            assert_eq!(pty(term).check().is_ok(), good, "{term:?}");
            assert!(pty(&"x".repeat(NAME_BYTES_MAX + 1)).check().is_err());
        }
    }

    #[test]
    fn a_start_is_checked_before_its_payload_comes() {
        let start = Start {
            job: Some(JobId::from_bytes([7; 16])),
            args: 2,
            vars: 1,
            cwd: true,
            bytes: 12,
            ..Start::default()
        };
        start.check().unwrap();
        let strings = start.strings(b"ls\0-l\0A=b\0/\0").unwrap();
        assert_eq!(strings.argv, [b"ls", b"-l"]);
        assert_eq!(strings.env, [b"A=b"]);
        assert_eq!(strings.cwd, Some(&b"/"[..]));
        for wrong in [
            &b"ls\0-l\0A=b\0/"[..],
            b"ls\0-l\0Ab\0/\0",
            b"ls\0-l\0=b\0/\0",
            b"ls\0-l\0A=b\0/\0x",
            b"",
        ] {
            assert!(start.strings(wrong).is_err());
        }
        let long = Start {
            bytes: START_BYTES_MAX as u32 + 1,
            ..start.clone()
        };
        assert!(matches!(long.check(), Err(MessageError::StartTooLong(_))));
        let many = Start {
            args: u32::MAX,
            ..start.clone()
        };
        assert!(many.check().is_err());
        let none = Start { args: 0, ..start };
        assert!(none.check().is_err());
    }
}
