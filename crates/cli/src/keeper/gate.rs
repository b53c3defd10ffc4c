//! The gate's process and the sockets to it.
//!
//! The gate is this program's own executable, started by its open file so that
//! a moved or replaced path does not matter. It holds its end of the sockets
//! and nothing else: descriptors 3 to 3+N are the workers' sockets, 3+N to
//! 3+2N their signature sockets; 0 and 1 are /dev/null, 2 is the keeper's.
//! This file starts it and queues what it does not take at once; what is said
//! to it is decided elsewhere.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, pidfd_send_signal};

use super::spawn::{self, Ids, Image, Program, Stacks};
use crate::ipc::{ToGate, packet};

/// A worker whose gate has not taken so many packets is not read from any more.
const QUEUE_PAUSE: usize = 256;

/// How a gate is started.
#[derive(Debug)]
pub(crate) struct GateProgram {
    /// The keeper's own executable.
    pub(crate) executable: OwnedFd,
    pub(crate) argv: Vec<CString>,
    pub(crate) envp: Vec<CString>,
    /// The account, where the keeper is root.
    pub(crate) ids: Option<Ids>,
    /// Both limits of descriptors.
    pub(crate) nofile: u64,
    /// Threads that serve connections, with a pair of sockets each.
    pub(crate) workers: u16,
}

/// A running gate.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) born: Instant,
    pub(crate) workers: Vec<Worker>,
    /// Its own hold on the memory it was cloned from; until it has executed.
    pub(crate) pending: Option<spawn::Pending>,
}

/// The keeper's ends of one worker's sockets.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) socket: OwnedFd,
    pub(crate) signer: OwnedFd,
    /// Whether the loop looks at what the gate asks.
    pub(crate) watched: bool,
    queue: VecDeque<(Vec<u8>, Vec<Rc<OwnedFd>>)>,
}

impl Gate {
    /// Starts a gate.
    ///
    /// # Errors
    /// Where descriptors, memory or processes run out.
    pub(crate) fn start(
        program: &GateProgram,
        null: BorrowedFd<'_>,
        stacks: &mut Stacks,
    ) -> io::Result<Self> {
        let mut workers = Vec::new();
        let mut sockets = Vec::new();
        let mut signers = Vec::new();
        let targets = 3 + 2 * i32::from(program.workers);
        for _ in 0..program.workers {
            let (socket, theirs) = pair()?;
            // The numbers that the gate's descriptors get must not be those that they have here.
            sockets.push(rustix::io::fcntl_dupfd_cloexec(theirs, targets)?);
            let (signer, theirs) = pair()?;
            signers.push(rustix::io::fcntl_dupfd_cloexec(theirs, targets)?);
            workers.push(Worker {
                socket,
                signer,
                watched: true,
                queue: VecDeque::new(),
            });
        }
        let null = rustix::io::fcntl_dupfd_cloexec(null, targets)?;
        let errors = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), targets)?;
        let standard = [null.as_fd(), null.as_fd(), errors.as_fd()];
        let passed = sockets.iter().chain(&signers).map(AsFd::as_fd);
        let fds: Vec<_> = standard.into_iter().chain(passed).collect();
        // The status pipe takes the lowest number that is free, which could be one of the targets.
        let low = Reserve::below(targets, null.as_fd())?;
        let started = spawn::spawn(program.prepare(targets)?, &fds, None, stacks)?;
        drop(low);
        Ok(Self {
            pid: started.pid,
            pidfd: started.pidfd,
            born: Instant::now(),
            workers,
            pending: Some(started.pending),
        })
    }

    /// Ends the process at once; that it ended is noticed as always.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl GateProgram {
    fn prepare(&self, targets: i32) -> io::Result<Program> {
        let executable = rustix::io::fcntl_dupfd_cloexec(&self.executable, targets)?;
        Ok(Program {
            image: Image::Open(executable),
            argv: self.argv.clone(),
            envp: self.envp.clone(),
            cwd: vec![c"/".to_owned()],
            ids: self.ids.clone(),
            nofile: (self.nofile, self.nofile),
            umask: 0o077,
            terminal: false,
            no_new_privs: true,
        })
    }
}

/// Fills the free descriptor numbers below a bound for a moment.
struct Reserve {
    _held: Vec<OwnedFd>,
}

impl Reserve {
    fn below(bound: i32, any: BorrowedFd<'_>) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;
        let mut held = Vec::new();
        loop {
            let fd = rustix::io::fcntl_dupfd_cloexec(any, 0)?;
            if fd.as_raw_fd() >= bound {
                return Ok(Self { _held: held });
            }
            held.push(fd);
        }
    }
}

/// Two connected sockets; the first, the keeper's, never blocks.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

impl Worker {
    /// Sends a message, now or when the gate has room. A gate that is gone gets
    /// nothing: what matters of it is told to the next one.
    pub(crate) fn send(&mut self, message: &ToGate, fds: &[Rc<OwnedFd>]) {
        let bytes = match postcard::to_stdvec(message) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "a message to the gate does not encode");
                return;
            }
        };
        if self.queue.is_empty() && self.try_send(&bytes, fds) {
            return;
        }
        self.queue.push_back((bytes, fds.to_vec()));
    }

    /// Sends what waits, as far as the gate takes it.
    pub(crate) fn flush(&mut self) {
        while let Some((bytes, fds)) = self.queue.pop_front() {
            if !self.try_send(&bytes, &fds) {
                return self.queue.push_front((bytes, fds));
            }
        }
    }

    /// Whether something waits to be sent.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether the gate may ask for more.
    pub(crate) fn takes_requests(&self) -> bool {
        self.queue.len() < QUEUE_PAUSE
    }

    /// Whether the packet needs no further try.
    fn try_send(&self, bytes: &[u8], fds: &[Rc<OwnedFd>]) -> bool {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        let Err(error) = packet::send_bytes(&self.socket, bytes, &fds) else {
            return true;
        };
        // Too many descriptors in flight: the gate has not received those of earlier packets.
        let later = [
            Errno::AGAIN,
            Errno::TOOMANYREFS,
            Errno::NOBUFS,
            Errno::NOMEM,
        ];
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        !errno.is_some_and(|errno| later.contains(&errno))
    }
}
