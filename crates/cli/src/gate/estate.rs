//! What the gate keeps while its keeper is dead: the listening sockets, and the
//! ends of every job's streams with their memfds, so that no program sees SIGPIPE or
//! the end of its input because the keeper is gone, and no output is lost.
//!
//! ```text
//! keeper gone ─► the owner of each job notes it ──► held ─► the next `bowline serve` asks
//!                                                   │           │ sent, and said to be taken
//!                 nothing held any more ◄───────────┘           ▼
//!                          └────────────► the gate ends ◄───────┘
//! ```
//!
//! The socket in the state directory, on which the keeper listened, is how it is
//! found. Descriptors leave through it, to the account that the server runs as
//! and to root alone; what they are worth is for the heir to judge.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::time::Duration;

use bowline_proto::id::JobId;
use tokio::io::Interest;
use tokio::net::{UnixDatagram, UnixListener};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::ipc::{Bequest, Question, Stream, packet};

/// Whoever asks and then says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The wait after accept(2) has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Descriptors in flight are limited; the heir has taken some after this time.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(1);

/// The estate of a keeper that may die.
#[derive(Debug, Default)]
pub(super) struct Estate {
    will: Option<Will>,
    streams: Mutex<BTreeMap<JobId, Streams>>,
    emptied: Notify,
    /// Closed with the process, by which the heir knows that it is gone.
    heir: Mutex<Option<UnixDatagram>>,
}

/// The streams of a job.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// The ends of its pipes that are open.
    pub(super) pipes: Vec<(Stream, OwnedFd)>,
    pub(super) memfds: Vec<(Stream, OwnedFd)>,
    /// The master of its terminal, and the ends of pipes that it is joined to.
    pub(super) terminal: Vec<OwnedFd>,
}

impl Streams {
    /// The same once more.
    fn copy(&self) -> io::Result<Self> {
        let copy = |(stream, fd): &(Stream, OwnedFd)| Ok((*stream, fd.try_clone()?));
        let copies = |all: &[(Stream, OwnedFd)]| all.iter().map(copy).collect::<io::Result<_>>();
        Ok(Self {
            pipes: copies(&self.pipes)?,
            memfds: copies(&self.memfds)?,
            terminal: self
                .terminal
                .iter()
                .map(OwnedFd::try_clone)
                .collect::<io::Result<_>>()?,
        })
    }
}

/// How the next keeper is met.
#[derive(Debug)]
pub(super) struct Will {
    /// The listening socket in the state directory.
    pub(super) socket: OwnedFd,
    /// The uid that the server runs as.
    pub(super) owner: u32,
    /// What the first that asks gets; it may want to listen elsewhere, so
    /// nothing of it stays here.
    pub(super) listeners: Mutex<Vec<(String, OwnedFd)>>,
}

impl Estate {
    pub(super) fn new(will: Option<Will>) -> Self {
        Self {
            will,
            ..Self::default()
        }
    }

    /// Whether the gate outlives its keeper.
    pub(super) fn stays(&self) -> bool {
        self.will.is_some()
    }

    /// Keeps the streams of a job.
    pub(super) fn hold(&self, job: JobId, streams: Streams) {
        if self.stays() {
            lock(&self.streams).insert(job, streams);
        }
    }

    /// A stream is at its end: the program is to notice.
    pub(super) fn close(&self, job: JobId, stream: Stream) {
        if let Some(streams) = lock(&self.streams).get_mut(&job) {
            streams.pipes.retain(|(held, _)| *held != stream);
        }
    }

    /// A job is over.
    pub(super) fn release(&self, job: JobId) {
        let mut streams = lock(&self.streams);
        if streams.remove(&job).is_some() && streams.is_empty() {
            self.emptied.notify_one();
        }
    }

    /// The keeper is gone. Waits for the next one and gives it everything, or
    /// until there is nothing to give; then has every worker stop.
    ///
    /// `noted` ends when every connection has noted its jobs.
    pub(super) async fn bequeath(&self, mut noted: mpsc::Receiver<()>, retire: &CancellationToken) {
        let Some(will) = &self.will else { return };
        while noted.recv().await.is_some() {}
        let served = self.serve(will).await;
        if let Err(error) = served {
            tracing::error!(%error, "the jobs cannot be handed over");
        }
        retire.cancel();
    }

    async fn serve(&self, will: &Will) -> io::Result<()> {
        // Seqpacket sockets, both this one and what it accepts; tokio has no types of its own for
        // them, and waits for them alike.
        let socket = UnixListener::from_std(will.socket.try_clone()?.into())?;
        tracing::warn!(
            jobs = lock(&self.streams).len(),
            "the keeper is gone; the jobs wait for the next `bowline serve`"
        );
        loop {
            if lock(&self.streams).is_empty() {
                return Ok(());
            }
            let heir = tokio::select! {
                () = self.emptied.notified() => continue,
                heir = accept(&socket, will.owner) => heir,
            };
            let settled = tokio::time::timeout(PATIENCE, self.hand_over(will, &heir)).await;
            match settled {
                Ok(Ok(true)) => {
                    *lock(&self.heir) = Some(heir);
                    return Ok(());
                }
                Ok(Ok(false)) | Err(_) => tracing::warn!("whoever asked has not taken the jobs"),
                Ok(Err(error)) => tracing::warn!(%error, "the jobs could not be handed over"),
            }
        }
    }

    /// Answers one that asks. Says whether it has taken everything.
    async fn hand_over(&self, will: &Will, heir: &UnixDatagram) -> io::Result<bool> {
        loop {
            match receive(heir).await? {
                Some(Question::HandOver) => {}
                Some(Question::Taken) => return Ok(true),
                Some(Question::Version) | None => return Ok(false),
            }
            let listeners = std::mem::take(&mut *lock(&will.listeners));
            for (address, socket) in listeners {
                send(heir, &Bequest::Listener { address }, &[socket.as_fd()]).await?;
            }
            for (job, streams) in self.copies()? {
                let (open, pipes): (_, Vec<OwnedFd>) = streams.pipes.into_iter().unzip();
                let (spools, memfds): (_, Vec<OwnedFd>) = streams.memfds.into_iter().unzip();
                let fds = pipes.iter().chain(&memfds).chain(&streams.terminal);
                let fds: Vec<_> = fds.map(AsFd::as_fd).collect();
                send(heir, &Bequest::Job { job, open, spools }, &fds).await?;
            }
            send(heir, &Bequest::End, &[]).await?;
        }
    }

    /// All that is held, as it is now: connections go on while it is sent.
    fn copies(&self) -> io::Result<Vec<(JobId, Streams)>> {
        let streams = lock(&self.streams);
        let copies = streams.iter().map(|(&job, held)| Ok((job, held.copy()?)));
        copies.collect()
    }
}

/// The next one who may ask.
async fn accept(socket: &UnixListener, owner: u32) -> UnixDatagram {
    loop {
        match asker(socket).await {
            Ok((asker, uid)) if is_heir(uid, owner) => return asker,
            Ok((_, uid)) => tracing::warn!(uid, "somebody else asks for the jobs"),
            Err(error) => {
                tracing::warn!(%error, "whoever asks for the jobs cannot be heard");
                // Descriptors are back when a connection ends; the jobs are worth the wait.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn asker(socket: &UnixListener) -> io::Result<(UnixDatagram, u32)> {
    let (asker, _) = socket.accept().await?;
    let uid = asker.peer_cred()?.uid();
    let asker = UnixDatagram::from_std(OwnedFd::from(asker.into_std()?).into())?;
    Ok((asker, uid))
}

fn is_heir(uid: u32, owner: u32) -> bool {
    uid == owner || uid == 0
}

async fn receive(heir: &UnixDatagram) -> io::Result<Option<Question>> {
    let mut buffer = Vec::new();
    let read = || packet::receive::<Question>(heir, &mut buffer);
    let received = heir.async_io(Interest::READABLE, read).await?;
    Ok(received.map(|(question, _)| question))
}

async fn send(heir: &UnixDatagram, bequest: &Bequest, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    loop {
        let write = || packet::send(heir, bequest, fds);
        match heir.async_io(Interest::WRITABLE, write).await {
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                tokio::time::sleep(IN_FLIGHT_PAUSE).await;
            }
            sent => return sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_account_and_root_inherit() {
        assert!(is_heir(1000, 1000));
        assert!(is_heir(0, 1000));
        assert!(!is_heir(1001, 1000));
        // What another user namespace's uid looks like.
        assert!(!is_heir(65534, 0));
    }

    #[test]
    fn nothing_is_held_for_a_keeper_that_nobody_follows() {
        let estate = Estate::new(None);
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let pipes = vec![(Stream::Stdout, reader)];
        let streams = Streams {
            pipes,
            ..Streams::default()
        };
        estate.hold(JobId::from_bytes([1; 16]), streams);
        assert!(lock(&estate.streams).is_empty());
    }
}
