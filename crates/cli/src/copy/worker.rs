//! The worker as a process of its own: a job whose stdin and stdout are the line.
//!
//! The keeper starts it as the target user. What it is to copy stands in its arguments, where the record
//! of jobs shows it; how, it is told by the client's first message.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

use bowline_proto::copy::{Message, Options};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Resource, Rlimit};

use super::WorkerError;
use super::link::{Input, Output};
use super::receiver::{self, Destination};
use super::sender::{self, Source};
use crate::stderr::tell;

/// Descriptors that a worker has use for.
const DESCRIPTORS: u64 = 4096;

/// What a worker is.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Role {
    /// The side that has the files
    Send {
        /// What to copy; wildcards are expanded here
        paths: Vec<OsString>,
    },
    /// The side that gets them
    Receive {
        /// Where to
        path: OsString,
    },
    /// Frees the file that is its stdin, by ending
    Free,
}

/// Works until the copy is over; what went wrong as a whole is said on stderr.
pub(crate) fn main(role: Role) -> ExitCode {
    match work(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("bowline: {}", crate::exit::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn work(role: Role) -> Result<(), WorkerError> {
    match role {
        Role::Send { paths } => {
            let (options, input, output) = begin()?;
            let paths = paths.into_iter().map(OsString::into_vec).enumerate();
            let sources = paths.flat_map(|(index, path)| {
                let index = index as u64;
                let paths = sender::expand(&path).into_iter();
                paths.map(move |path| Source::Path(index, path))
            });
            sender::send(sources.collect(), options, input, output)
        }
        Role::Receive { path } => {
            let (options, input, output) = begin()?;
            let path = sender::expand_home(&path.into_vec());
            receiver::receive(Destination::Path(path), options, input, output)
        }
        Role::Free => Ok(()),
    }
}

/// The line to the client, and its first message.
fn begin() -> Result<(Options, Input, Output), WorkerError> {
    raise_descriptors();
    let (stdin, stdout) = (dup(rustix::stdio::stdin())?, dup(rustix::stdio::stdout())?);
    let line = Line::new(stdin).map_err(WorkerError::Line)?;
    let mut input = Input::new(Box::new(line), None);
    let output = Output::new(Box::new(stdout), None);
    match input.next()? {
        Some(Message::Options(options)) => Ok((options, input, output)),
        _ => Err(WorkerError::Rules("no options")),
    }
}

/// Stdin, which also ends with SIGHUP: the client is gone and the server's gate keeps the pipe for another. So a worker
/// ends between two files and not within one, and before the next attempt has to wait for it.
struct Line {
    stdin: OwnedFd,
    hangup: SignalFd,
}

impl Line {
    /// Before there is another thread.
    fn new(stdin: OwnedFd) -> io::Result<Self> {
        let hangup: SigSet = [Signal::SIGHUP].into_iter().collect();
        hangup.thread_block()?;
        let hangup = SignalFd::with_flags(&hangup, SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { stdin, hangup })
    }
}

impl Read for Line {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let fds = [self.stdin.as_fd(), self.hangup.as_fd()];
        let mut both = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
        rustix::event::poll(&mut both, None)?;
        let [_, hung_up] = both.map(|fd| !fd.revents().is_empty());
        match hung_up {
            true => Ok(0),
            false => Ok(rustix::io::read(&self.stdin, into)?),
        }
    }
}

/// Has a process keep as many descriptors open as a copy has use for.
pub(crate) fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            ..limit
        };
        let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    }
}

/// Has this thread, and no other, make files with the modes that it asks for.
///
/// # Errors
/// As unshare(2).
pub(crate) fn own_umask() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

fn dup(fd: std::os::fd::BorrowedFd<'_>) -> Result<OwnedFd, WorkerError> {
    let dup = rustix::io::fcntl_dupfd_cloexec(fd, 3);
    dup.map_err(|errno| WorkerError::Line(io::Error::from(errno)))
}
