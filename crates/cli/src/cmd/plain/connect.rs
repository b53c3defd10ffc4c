//! `bowline plain connect`: talks to a plain service, line by line.
//!
//! Lines enter from a person at a prompt or from stdin; replies leave on stdout, and
//! words about the connection on stderr.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bowline::net::Endpoint;
use encoding_rs::Encoding;

use super::prompt::Lines;
use crate::plain::Service;
use crate::plain::challenge::{Digest, Secret};
use crate::plain::client::{Ended, Talk, TalkError};
use crate::plain::link::Link;
use crate::plain::reply::Framing;
use crate::plain::shown::{self, Shown};
use crate::stderr::tell;
use crate::{duration, exit};

/// How long a reply over UDP is waited for: it may have been lost.
const WAIT_DATAGRAM: Duration = Duration::from_secs(3);
/// How long a reply without a mark is waited for: it may be one that is empty.
const WAIT_UNMARKED: Duration = Duration::from_secs(10);
/// The line that ends the talk.
const QUIT: &[u8] = b"quit";

/// Talk to a plain service; each line is a message, `quit` ends
#[derive(Debug, clap::Args)]
pub(crate) struct ConnectFlags {
    /// Which service is there
    service: Service,
    /// Where: tcp://HOST:PORT, udp://HOST:PORT, unix:PATH or unixgram:PATH
    addr: Endpoint,
    /// How `exec` marks the end of a message
    #[arg(long, value_enum, default_value = "raw")]
    framing: Framing,
    /// How long to wait for a reply (3s over UDP, 10s where nothing marks a reply's end, else for ever)
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    wait: Option<Duration>,
    /// The encoding of the other side, by its WHATWG name
    #[arg(long, value_name = "NAME", default_value = "utf-8", value_parser = shown::encoding)]
    encoding: &'static Encoding,
    /// Write the bytes of replies as they are
    #[arg(long)]
    raw: bool,
    /// Answer the server's challenge with the secret in this file
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The hash function of that answer
    #[arg(long, value_enum, default_value = "sha256")]
    digest: Digest,
}

impl ConnectFlags {
    fn wait(&self) -> Option<Duration> {
        if self.wait.is_some() {
            return self.wait;
        }
        match (self.service, self.framing) {
            _ if self.addr.is_datagram() => Some(WAIT_DATAGRAM),
            (Service::Exec, Framing::Raw) | (Service::Stamp | Service::Upper, _) => {
                Some(WAIT_UNMARKED)
            }
            // A person answers when they answer; a marked reply comes when it is there.
            _ => None,
        }
    }
}

/// # Errors
/// Where the secret cannot be read or stdout not written.
pub(crate) fn connect(flags: &ConnectFlags) -> anyhow::Result<ExitCode> {
    let secret = flags.secret_file.as_deref();
    let secret = secret.map(|path| Secret::load(path, flags.digest));
    let secret = secret.transpose()?;
    let link = match Link::connect(&flags.addr) {
        Ok(link) => link,
        Err(error) => {
            tell!("bowline: {}: cannot connect: {error}", flags.addr);
            return Ok(ExitCode::from(u8::MAX));
        }
    };
    let mut session = Session {
        flags,
        talk: Talk::new(link, flags.service, flags.framing, flags.wait()),
        shown: Shown::new(io::stdout(), flags.encoding, flags.raw),
        status: ExitCode::SUCCESS,
    };
    if let Some(secret) = secret
        && let Err(error) = session.talk.prove(&secret)
    {
        return Ok(session.failed(&error));
    }
    let mut lines = Lines::open().context("the history")?;
    session.run(&mut lines)
}

struct Session<'a> {
    flags: &'a ConnectFlags,
    talk: Talk,
    shown: Shown<io::Stdout>,
    status: ExitCode,
}

impl Session<'_> {
    fn run(mut self, lines: &mut Lines) -> anyhow::Result<ExitCode> {
        while let Some(line) = lines.next()? {
            if line == QUIT {
                break;
            }
            if line.is_empty() && !self.talk.is_datagram() {
                continue;
            }
            let message = shown::encode(&line, self.flags.encoding);
            if message.is_empty() && !line.is_empty() {
                continue;
            }
            match self.ask(&message) {
                Ok(Ended::Closed) => {
                    self.say("the server closed the connection");
                    return Ok(self.status);
                }
                Ok(Ended::WrongChecksum) => {
                    self.say("the reply is not the one its checksum was made of");
                    self.status = ExitCode::FAILURE;
                }
                Ok(Ended::Whole | Ended::Nothing) => {}
                Err(error) => {
                    let lost = self.talk.is_datagram();
                    let status = self.failed(&error);
                    if !lost {
                        return Ok(status);
                    }
                    // The next one may get through.
                    self.status = status;
                }
            }
        }
        self.finish()
    }

    fn ask(&mut self, message: &[u8]) -> Result<Ended, TalkError> {
        let shown = &mut self.shown;
        let ended = self.talk.ask(message, &mut |bytes| shown.bytes(bytes))?;
        shown.end()?;
        Ok(ended)
    }

    /// What the server still says after the last line is shown too.
    fn finish(mut self) -> anyhow::Result<ExitCode> {
        let shown = &mut self.shown;
        let finished = self.talk.finish(&mut |bytes| shown.bytes(bytes));
        shown.end().context("stdout")?;
        match finished {
            // We ended it ourselves; how the server takes it does not matter any more.
            Ok(()) | Err(TalkError::Closed(_)) => Ok(self.status),
            Err(error) => Err(error.into()),
        }
    }

    fn say(&self, words: &str) {
        tell!("bowline: {}: {words}", self.flags.addr);
    }

    fn failed(&mut self, error: &TalkError) -> ExitCode {
        // What came of the reply is worth seeing.
        let _ = self.shown.end();
        self.say(&exit::chain(error));
        ExitCode::FAILURE
    }
}
