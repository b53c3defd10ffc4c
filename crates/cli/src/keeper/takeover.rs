//! The socket in the state directory, both ends of it: a keeper is asked about
//! itself by the next `bowline serve`, which finds it alive; and the gate of one
//! that died, which holds the same socket, hands over what it has kept.
//!
//! Each packet is a [`Question`]. Only the keeper's own user and root are
//! answered. What comes from a gate is what a process may have made up that reads
//! the network: descriptors are looked at, and jobs are those of the journal.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bowline_proto::id::JobId;
use rustix::event::epoll;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::jobs::Pipes;
use super::{Keeper, Token, state, terminal};
use crate::ipc::{Answer, Bequest, Question, Stream, packet};

/// A terminal's master and the pipes that it is joined to.
const TERMINAL_FDS_MAX: usize = 3;
/// Whoever asks is connected for a moment; more at once get no answer.
const ASKERS_MAX: usize = 8;
/// How long a keeper may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a gate may take for each answer, and to write its record down and go.
const HANDING_OVER: Duration = Duration::from_secs(10);
/// A gate that hands over more than this makes it up.
const JOBS_MAX: usize = 100_000;
const LISTENERS_MAX: usize = 1_000;
const SOCKET: &str = "takeover";

/// The socket and those who ask.
#[derive(Debug)]
pub(super) struct Takeover {
    socket: Rc<OwnedFd>,
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
            socket: Rc::new(socket),
            askers: Vec::new(),
            asked: 0,
        }
    }

    /// For the gate, which answers here when the keeper is dead.
    pub(super) fn shared(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.socket)
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

/// Whether a keeper uses the state directory. The gate of a dead one says no to
/// this; whoever does not answer in time lives and is slow.
pub(crate) fn is_served(folder: &Path) -> bool {
    match ask(folder, Question::Version) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// What the gate of a dead keeper has handed over.
#[derive(Debug)]
pub(super) struct Estate {
    /// The gate; it stays until it is told that everything is taken.
    gate: OwnedFd,
    pub(super) listeners: Vec<(String, OwnedFd)>,
    pub(super) jobs: HashMap<JobId, Pipes>,
}

impl Estate {
    /// Asks whether a gate is left behind in the state directory, which this
    /// process has locked: so nobody else answers there.
    ///
    /// # Errors
    /// Where there is one and it does not do what it should.
    pub(super) fn find(folder: &Path) -> io::Result<Option<Self>> {
        let gate = socket(SocketFlags::empty())?;
        set_socket_timeout(&gate, Timeout::Recv, Some(HANDING_OVER))?;
        match with_address(folder, |address| rustix::net::connect(&gate, address)) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        packet::send(&gate, &Question::HandOver, &[])?;
        let mut estate = Self {
            gate,
            listeners: Vec::new(),
            jobs: HashMap::new(),
        };
        let mut buffer = Vec::new();
        loop {
            match packet::receive(&estate.gate, &mut buffer)? {
                Some((Bequest::Listener { address }, fds)) => {
                    let sockets = fds.into_iter().map(|fd| (address.clone(), fd));
                    estate.listeners.extend(sockets.take(1));
                }
                Some((Bequest::Job { job, open, spools }, fds)) => {
                    estate.jobs.insert(job, pipes(&open, &spools, fds));
                }
                Some((Bequest::End, _)) => return Ok(Some(estate)),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            if estate.listeners.len() > LISTENERS_MAX || estate.jobs.len() > JOBS_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }

    /// Everything is in good hands: the gate goes, and this waits for it, because
    /// only one gate may read a job's output.
    pub(super) fn relieve(self) {
        let gone = packet::send(&self.gate, &Question::Taken, &[])
            .and_then(|()| packet::receive::<Bequest>(&self.gate, &mut Vec::new()));
        if let Err(error) = gone {
            tracing::error!(%error, "the gate of the dead keeper does not go");
        }
    }
}

/// The pipes and memfds of a job, of those that are pipes and open in the right direction, or
/// files that can be read and written; and its terminal, if it is one.
fn pipes(open: &[Stream], spools: &[Stream], fds: Vec<OwnedFd>) -> Pipes {
    let mut pipes = Pipes::default();
    let mut fds = fds.into_iter();
    for (&stream, fd) in open.iter().zip(fds.by_ref()) {
        let wanted = match stream {
            Stream::Stdin => OFlags::WRONLY,
            Stream::Stdout | Stream::Stderr => OFlags::RDONLY,
        };
        if is(&fd, FileType::Fifo, wanted) && rustix::io::ioctl_fionbio(&fd, true).is_ok() {
            *pipes.of(stream) = Some(Rc::new(fd));
        }
    }
    let memfds = spools.iter().copied().zip(fds.by_ref());
    let memfds = memfds.filter(|(_, fd)| is(fd, FileType::RegularFile, OFlags::RDWR));
    pipes.spools = memfds.map(|(stream, fd)| (stream, Rc::new(fd))).collect();
    let terminal: Vec<_> = fds.take(TERMINAL_FDS_MAX).map(Rc::new).collect();
    if terminal.first().is_some_and(terminal::is_master) {
        pipes.terminal = terminal;
    }
    pipes
}

fn is(fd: &OwnedFd, kind: FileType, mode: OFlags) -> bool {
    let of_kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode) == kind);
    let in_mode = rustix::fs::fcntl_getfl(fd).map(|flags| flags & OFlags::RWMODE == mode);
    of_kind == Ok(true) && in_mode == Ok(true)
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
            // It lives, and keeps what it has.
            Question::HandOver | Question::Taken => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
