//! The socket in the state directory over which a keeper is asked about itself
//! by the next `bowline serve`, which finds it alive.
//!
//! Each packet is a [`Question`], answered by an [`Answer`]. Only the keeper's
//! own user and root are answered.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::{Keeper, Token, state};
use crate::ipc::packet;

/// Whoever asks is connected for a moment; more at once get no answer.
const ASKERS_MAX: usize = 8;
/// How long a keeper may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
const SOCKET: &str = "takeover";

/// What a keeper may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Who are you?
    Version,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The version of bowline that it was built from.
    pub(crate) software: String,
    /// The version of its state.
    pub(crate) state: u16,
    pub(crate) pid: i32,
    /// Jobs that are not released.
    pub(crate) jobs: u32,
}

/// The socket and those who ask.
#[derive(Debug)]
pub(super) struct Takeover {
    socket: OwnedFd,
    askers: Vec<(u64, OwnedFd)>,
    asked: u64,
}

impl Takeover {
    /// Listens in the state directory, which this process has locked.
    ///
    /// # Errors
    /// As socket(2), bind(2) and listen(2).
    pub(super) fn listen(folder: &Path) -> io::Result<Self> {
        match std::fs::remove_file(folder.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket(SocketFlags::NONBLOCK)?;
        with_address(folder, |address| rustix::net::bind(&socket, address))?;
        rustix::net::listen(&socket, ASKERS_MAX as i32)?;
        Ok(Self::resume(socket))
    }

    /// Goes on with the socket of an earlier program of this process.
    pub(super) fn resume(socket: OwnedFd) -> Self {
        Self {
            socket,
            askers: Vec::new(),
            asked: 0,
        }
    }

    /// Takes the socket away, at the keeper's end.
    pub(super) fn remove(&self, folder: &Path) {
        let _ = std::fs::remove_file(folder.join(SOCKET));
    }
}

impl AsFd for Takeover {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks the keeper that uses the state directory.
///
/// # Errors
/// Where there is none, or it does not answer in time.
pub(crate) fn ask(folder: &Path, question: Question) -> io::Result<Answer> {
    let socket = socket(SocketFlags::empty())?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    with_address(folder, |address| rustix::net::connect(&socket, address))?;
    packet::send(&socket, &question, &[])?;
    let answered = packet::receive(&socket, &mut Vec::new())?;
    let (answer, _) = answered.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(answer)
}

fn socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// A state directory may have a longer path than an address can hold.
fn with_address(
    folder: &Path,
    with: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    with(&SocketAddrUnix::new(format!(
        "/proc/self/fd/{}/{SOCKET}",
        folder.as_raw_fd()
    ))?)
}

impl Keeper {
    /// Somebody wants to ask.
    pub(super) fn accept_asker(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(asker) = rustix::net::accept_with(&self.takeover.socket, flags) {
            let own = rustix::process::geteuid();
            let known =
                socket_peercred(&asker).is_ok_and(|peer| peer.uid == own || peer.uid.is_root());
            if !known || self.takeover.askers.len() >= ASKERS_MAX {
                continue;
            }
            self.takeover.asked += 1;
            let number = self.takeover.asked;
            if self.watch(asker.as_fd(), Token::Asker(number)).is_ok() {
                self.takeover.askers.push((number, asker));
            }
        }
    }

    /// Somebody asks, or leaves.
    pub(super) fn read_asker(&mut self, number: u64) {
        let found = |(n, _): &(u64, OwnedFd)| *n == number;
        let Some(at) = self.takeover.askers.iter().position(found) else {
            return;
        };
        let asker = &self.takeover.askers[at].1;
        let answered = match packet::receive(asker, &mut self.buffer) {
            Ok(Some((question, _))) => self.answer(asker, question),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(error),
        };
        if answered.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            let (_, asker) = self.takeover.askers.swap_remove(at);
            let _ = epoll::delete(&self.epoll, &asker);
        }
    }

    fn answer(&self, asker: &OwnedFd, question: Question) -> io::Result<()> {
        let answer = Answer {
            software: env!("CARGO_PKG_VERSION").to_owned(),
            state: state::VERSION,
            pid: rustix::process::getpid().as_raw_pid(),
            jobs: self.jobs.by_serial.len() as u32,
        };
        match question {
            Question::Version => packet::send(asker, &answer, &[]),
        }
    }
}
