//! A worker's line to the keeper: requests out, answers to whoever waits for them.
//!
//! Everything here is of one thread. A connection has one [`Mail`] box, and so has the
//! owner of a job; the link puts in what the keeper says about their requests and
//! their job, and wakes them.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Waker};

use bowline_proto::id::JobId;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, mpsc};

use crate::ipc::{ToGate, ToKeeper, packet};

/// What a connection, or the owner of a job, is told.
#[derive(Debug)]
pub(super) enum Letter {
    /// The keeper's word, with the descriptors beside it.
    Keeper(ToGate, Vec<OwnedFd>),
    /// No more connections and jobs; end what is idle.
    Drain,
    /// The keeper has died: nothing can be started, and no outcome will come. To
    /// be dropped once the connection has noted its jobs.
    KeeperGone(Option<mpsc::Sender<()>>),
}

/// The letters of one of them.
#[derive(Debug, Default)]
pub(super) struct Mail {
    letters: RefCell<VecDeque<Letter>>,
    waker: RefCell<Option<Waker>>,
}

impl Mail {
    /// The next letter; where there is none, the task is woken when one comes.
    pub(super) fn take(&self, cx: &Context<'_>) -> Option<Letter> {
        let letter = self.letters.borrow_mut().pop_front();
        if letter.is_none() {
            let mut waker = self.waker.borrow_mut();
            match waker.as_mut() {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
        }
        letter
    }

    fn put(&self, letter: Letter) {
        self.letters.borrow_mut().push_back(letter);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// The line itself.
#[derive(Debug)]
pub(super) struct Link {
    /// A seqpacket socket; tokio has no type of its own for it, and waits for it alike.
    socket: UnixDatagram,
    /// Packets that the socket did not take yet.
    waiting: RefCell<VecDeque<(Vec<u8>, Vec<OwnedFd>)>>,
    /// Told when there is something to wait for writing with.
    queued: Notify,
    boxes: RefCell<HashMap<u64, Rc<Mail>>>,
    requests: RefCell<HashMap<u64, Rc<Mail>>>,
    jobs: RefCell<HashMap<JobId, Rc<Mail>>>,
    next_request: Cell<u64>,
    gone: Cell<bool>,
    /// Shared by all that has yet to note that the keeper is gone.
    noting: RefCell<Option<mpsc::Sender<()>>>,
}

impl Link {
    /// `noting` is dropped when every connection has noted that the keeper is gone.
    ///
    /// # Errors
    /// As fcntl(2) and epoll_ctl(2).
    pub(super) fn new(socket: OwnedFd, noting: mpsc::Sender<()>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: UnixDatagram::from_std(socket.into())?,
            waiting: RefCell::default(),
            queued: Notify::new(),
            boxes: RefCell::default(),
            requests: RefCell::default(),
            jobs: RefCell::default(),
            next_request: Cell::new(0),
            gone: Cell::new(false),
            noting: RefCell::new(Some(noting)),
        })
    }

    /// A box of this number; [`Self::forget_box`] gives it back.
    pub(super) fn open_box(&self, number: u64) -> Rc<Mail> {
        let mail = Rc::new(Mail::default());
        if self.gone.get() {
            mail.put(Letter::KeeperGone(None));
        }
        self.boxes.borrow_mut().insert(number, mail.clone());
        mail
    }

    pub(super) fn forget_box(&self, number: u64) {
        self.boxes.borrow_mut().remove(&number);
    }

    /// A fresh number for a request whose answer goes to `mail`.
    pub(super) fn request(&self, mail: &Rc<Mail>) -> u64 {
        let request = self.next_request.get();
        self.next_request.set(request.wrapping_add(1));
        self.requests.borrow_mut().insert(request, mail.clone());
        request
    }

    /// What the keeper says about `job` goes to `mail`.
    pub(super) fn follow(&self, job: JobId, mail: &Rc<Mail>) {
        self.jobs.borrow_mut().insert(job, mail.clone());
    }

    pub(super) fn unfollow(&self, job: JobId) {
        self.jobs.borrow_mut().remove(&job);
    }

    /// Sends now, or as soon as the socket takes it.
    pub(super) fn send(&self, message: &ToKeeper) {
        self.send_with(message, None);
    }

    /// The same with a descriptor beside it.
    pub(super) fn send_with(&self, message: &ToKeeper, fd: Option<BorrowedFd<'_>>) {
        if self.gone.get() {
            return;
        }
        let bytes = match postcard::to_stdvec(message) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "a message to the keeper cannot be encoded");
                return;
            }
        };
        if self.waiting.borrow().is_empty() {
            let fds: Vec<_> = fd.iter().copied().collect();
            match self.put(&bytes, &fds) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "the keeper cannot be told anything");
                    return;
                }
            }
        }
        let fds = fd.iter().filter_map(|fd| fd.try_clone_to_owned().ok());
        self.waiting.borrow_mut().push_back((bytes, fds.collect()));
        self.queued.notify_one();
    }

    /// Moves packets in both directions until the keeper has gone. `other` is
    /// given what concerns no single connection.
    ///
    /// # Errors
    /// As epoll_wait(2) and recvmsg(2).
    pub(super) async fn run(&self, mut other: impl FnMut(ToGate, Vec<OwnedFd>)) -> io::Result<()> {
        let mut scratch = Vec::new();
        loop {
            let interest = if self.waiting.borrow().is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let ready = tokio::select! {
                ready = self.socket.ready(interest) => ready?,
                () = self.queued.notified() => continue,
            };
            if ready.is_writable() {
                self.flush()?;
            }
            if !ready.is_readable() {
                continue;
            }
            let received = self.socket.try_io(Interest::READABLE, || {
                packet::receive::<ToGate>(&self.socket, &mut scratch)
            });
            match received {
                Ok(Some((message, fds))) => self.dispatch(message, fds, &mut other),
                Ok(None) => {
                    self.keeper_gone();
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn put(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket.try_io(Interest::WRITABLE, || {
            packet::send_bytes(&self.socket, bytes, fds)
        })
    }

    /// Sends what waited, as much as the socket takes.
    fn flush(&self) -> io::Result<()> {
        let mut waiting = self.waiting.borrow_mut();
        while let Some((bytes, fds)) = waiting.front() {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match self.put(bytes, &fds) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            waiting.pop_front();
        }
        Ok(())
    }

    fn dispatch(
        &self,
        message: ToGate,
        fds: Vec<OwnedFd>,
        other: &mut impl FnMut(ToGate, Vec<OwnedFd>),
    ) {
        let mail = match &message {
            ToGate::Granted { request, .. }
            | ToGate::Denied { request, .. }
            | ToGate::Refused { request, .. } => self.requests.borrow_mut().remove(request),
            ToGate::Started { request, job, .. } | ToGate::NotStarted { request, job, .. } => {
                self.requests.borrow_mut().remove(request);
                self.jobs.borrow().get(job).cloned()
            }
            ToGate::Ended { job, .. } => self.jobs.borrow().get(job).cloned(),
            ToGate::Drain { .. } => {
                for mail in self.boxes.borrow().values() {
                    mail.put(Letter::Drain);
                }
                None
            }
            ToGate::Welcome { .. }
            | ToGate::Signature { .. }
            | ToGate::Adopt { .. }
            | ToGate::AllAdopted
            | ToGate::Retire
            | ToGate::Reload { .. } => None,
        };
        match mail {
            Some(mail) => mail.put(Letter::Keeper(message, fds)),
            None => other(message, fds),
        }
    }

    /// Whether the keeper has died.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    fn keeper_gone(&self) {
        self.gone.set(true);
        self.requests.borrow_mut().clear();
        let noting = self.noting.borrow_mut().take();
        for mail in self.boxes.borrow().values() {
            mail.put(Letter::KeeperGone(noting.clone()));
        }
    }
}
