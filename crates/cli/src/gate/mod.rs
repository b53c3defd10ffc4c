//! The gate: network, sessions, streams, the record. It holds no power of its
//! own: keys, users and programs are the keeper's, which it asks.
//!
//! `bowline gate --workers N` is started by the keeper alone, with the workers'
//! sockets as descriptors 3 to 3+N and their signature sockets behind those.
//! Each worker is a thread with a runtime, a link to the keeper and connections
//! of its own; they share what [`Shared`] holds. The gate may die at any time:
//! the keeper starts another and hands it what runs.

mod confine;
mod connection;
mod estate;
mod job;
mod limits;
mod link;
mod record;
mod spec;
mod spool;
mod worker;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use bowline_proto::id::JobId;
use nix::sys::signal::{SigSet, Signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::GateConfig;
use crate::inherited;
use crate::ipc::{ToGate, packet};
use estate::{Estate, Will};
use job::{Adoption, Job};
use limits::{Door, Limits};
use record::{Keep, Recorder};
use spool::Spools;
use worker::{Lines, Worker};

/// The first descriptor that the keeper passes.
const FIRST_FD: i32 = 3;

/// What the workers share.
#[derive(Debug)]
struct Shared {
    config: Mutex<Arc<GateConfig>>,
    recorder: Recorder,
    spools: Spools,
    /// Every job that is about to run, runs, or is kept for somebody.
    jobs: Mutex<BTreeMap<JobId, Arc<Job>>>,
    next_connection: AtomicU64,
    door: Door,
    estate: Arc<Estate>,
    /// Has every worker stop at once.
    retire: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The job of this id, or a new one, which is entered; says whether it is new.
    fn enter(&self, id: JobId, new: impl FnOnce() -> Job) -> (Arc<Job>, bool) {
        match lock(&self.jobs).entry(id) {
            Entry::Occupied(known) => (known.get().clone(), false),
            Entry::Vacant(vacant) => (vacant.insert(Arc::new(new())).clone(), true),
        }
    }

    /// Removes a job, if it is still the one of its id.
    fn leave(&self, job: &Arc<Job>) {
        let mut jobs = lock(&self.jobs);
        if jobs
            .get(&job.id)
            .is_some_and(|known| Arc::ptr_eq(known, job))
        {
            jobs.remove(&job.id);
        }
        drop(jobs);
        self.estate.release(job.id);
    }

    /// The job of this id, if it is this user's; a detached one also if it ended long ago.
    fn job(&self, uid: u32, id: JobId) -> Option<Arc<Job>> {
        let known = lock(&self.jobs).get(&id).cloned();
        let job = known.or_else(|| {
            let ended = Job::ended(id, &self.spools);
            let ended = ended.inspect_err(|error| {
                tracing::error!(%error, job = %id, "the job's files cannot be read");
            });
            ended.ok().flatten().map(Arc::new)
        });
        job.filter(|job| job.belongs_to(uid))
    }

    /// A client of this user has a job's outcome: nothing of it needs to be kept.
    fn forget(&self, uid: u32, id: JobId) -> Option<Arc<Job>> {
        let job = self.job(uid, id)?;
        job.forget();
        // Without an owner nobody else would do it.
        let owned = lock(&self.jobs).contains_key(&id);
        if !owned && job.is_detached() {
            self.spools.remove(id);
        }
        Some(job)
    }

    fn pid(&self, id: JobId) -> Option<i32> {
        let job = lock(&self.jobs).get(&id).cloned();
        job.map(|job| job.pid())
    }

    /// A code that says what the output of a job waits for.
    fn waits(&self, id: JobId) -> Option<&'static str> {
        let job = lock(&self.jobs).get(&id).cloned();
        job.and_then(|job| job.waits())
    }

    /// The jobs of this user whose id starts with `name` and that have no outcome yet.
    fn find(&self, uid: u32, name: &str) -> Vec<Arc<Job>> {
        let fits = |job: &&Arc<Job>| {
            job.belongs_to(uid) && !job.is_over() && job.id.to_string().starts_with(name)
        };
        lock(&self.jobs).values().filter(fits).cloned().collect()
    }

    fn connection_id(&self) -> u64 {
        self.next_connection.fetch_add(1, Ordering::Relaxed)
    }
}

/// Runs the gate until the keeper is gone or has it stop.
///
/// # Errors
/// Where the keeper's sockets are not there or say nothing that makes sense.
pub(crate) fn main(workers: u16) -> anyhow::Result<ExitCode> {
    // A worker that is lost would leave its connections hanging: the whole gate ends with it,
    // and the keeper starts another.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        std::process::abort();
    }));
    // Under a limit of the size of files a write is to fail, and not to end everything.
    let mut too_large = SigSet::empty();
    too_large.add(Signal::SIGXFSZ);
    too_large.thread_block().context("SIGXFSZ")?;
    let workers = i32::from(workers.max(1));
    let take = |first: i32| -> anyhow::Result<Vec<OwnedFd>> {
        (first..first + workers)
            .map(|fd| inherited::take(fd).context("only `bowline serve` starts a gate"))
            .collect()
    };
    let mut sockets = take(FIRST_FD)?.into_iter();
    let mut signatures = take(FIRST_FD + workers)?.into_iter();
    let first = sockets.next().context("no worker")?;
    // The keeper takes a closed socket for the end of the gate; a worker that is done earlier than
    // the others must not look like that.
    let mut held = Vec::new();
    let mut start = welcome(&first)?;
    let folders = [&start.config.record_dir, &start.config.spool.dir];
    confine::confine(&folders.map(PathBuf::as_path)).context("the gate cannot be confined")?;
    let keep = Keep {
        jobs_max: start.config.record_jobs_max,
        age_ms: start.config.record_age_ms,
    };
    let (recorder, record_thread) = Recorder::start(&start.config.record_dir, keep)
        .with_context(|| format!("the record in {}", start.config.record_dir.display()))?;
    // Before the first connection: whoever comes back must find its job.
    let spools = Spools::new(&start.config.spool.dir, start.config.spool.bytes_max);
    let mut adoptions = Some(adoptions(&first, &spools)?);
    let jobs = adoptions.iter().flatten();
    let jobs = jobs.map(|adoption| (adoption.job.id, adoption.job.clone()));
    let jobs: BTreeMap<JobId, Arc<Job>> = jobs.collect();
    recorder.known(jobs.keys().copied().collect());
    let spool_thread = spools
        .clean(spool_keep(&start.config), |job| jobs.contains_key(&job))
        .with_context(|| format!("the folder {}", start.config.spool.dir.display()))?;
    let estate = Arc::new(Estate::new(start.will.take()));
    let (noting, noted) = mpsc::channel(1);
    let mut noted = Some(noted);
    let shared = Arc::new(Shared {
        config: Mutex::new(Arc::new(*start.config.clone())),
        recorder,
        spools,
        jobs: Mutex::new(jobs),
        // Connections of earlier gates keep their numbers.
        next_connection: AtomicU64::new(start.generation << 40),
        door: Door::new(Limits::from(&*start.config)),
        estate: estate.clone(),
        retire: CancellationToken::new(),
    });
    let mut threads = Vec::new();
    for (number, socket) in std::iter::once(first).chain(sockets).enumerate() {
        let signature = signatures.next().context("no signature socket")?;
        held.push((socket.try_clone()?, signature.try_clone()?));
        let listeners = start.listeners_for(number)?;
        let certificate = start.certificate.clone();
        let shared = shared.clone();
        let adoptions = adoptions.take().unwrap_or_default();
        let lines = Lines {
            socket,
            signature,
            noting: noting.clone(),
            noted: noted.take(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("worker {number}"))
            .spawn(move || Worker::run(shared, lines, certificate, listeners, adoptions))
            .context("a thread for a worker")?;
        threads.push(thread);
    }
    drop((shared, noting));
    start.listeners.clear();
    for thread in threads {
        match thread.join() {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    drop(held);
    // The last recorder is gone with the workers; what they recorded is written.
    let _ = record_thread.join();
    let _ = spool_thread.join();
    // Whoever took over waits for this: nothing is written after it.
    drop(estate);
    Ok(ExitCode::SUCCESS)
}

/// What the keeper says first.
struct Welcome {
    config: Box<GateConfig>,
    certificate: Vec<u8>,
    listeners: Vec<(String, OwnedFd)>,
    stdio: Option<(OwnedFd, OwnedFd)>,
    generation: u64,
    will: Option<Will>,
}

/// Where connections come from.
enum Incoming {
    /// Sockets that listen, with their addresses.
    Listeners(Vec<(String, OwnedFd)>),
    /// One connection, on these two descriptors.
    Stdio(OwnedFd, OwnedFd),
}

fn spool_keep(config: &GateConfig) -> spool::Keep {
    spool::Keep {
        age_ms: config.spool.keep_ms,
        bytes_max: config.spool.keep_bytes_max,
    }
}

impl Welcome {
    fn listeners_for(&mut self, worker: usize) -> anyhow::Result<Incoming> {
        if worker == 0
            && let Some((input, output)) = self.stdio.take()
        {
            return Ok(Incoming::Stdio(input, output));
        }
        let own = self.listeners.iter().map(|(address, socket)| {
            Ok::<_, std::io::Error>((address.clone(), socket.try_clone()?))
        });
        Ok(Incoming::Listeners(own.collect::<Result<_, _>>()?))
    }
}

fn welcome(first: &OwnedFd) -> anyhow::Result<Welcome> {
    let mut scratch = Vec::new();
    let (message, mut fds) = packet::receive::<ToGate>(first, &mut scratch)
        .context("the keeper's first message")?
        .context("the keeper said nothing")?;
    let ToGate::Welcome {
        version,
        config,
        certificate,
        listeners,
        generation,
        heirs,
    } = message
    else {
        anyhow::bail!("the keeper's first message is no welcome");
    };
    anyhow::ensure!(
        version == crate::ipc::messages::VERSION,
        "the keeper speaks version {version}"
    );
    let socket = heirs.and_then(|owner| Some((owner, fds.pop()?)));
    let stdio = if listeners == ["stdio"] {
        let output = fds.pop().context("no stdout")?;
        Some((fds.pop().context("no stdin")?, output))
    } else {
        anyhow::ensure!(
            fds.len() == listeners.len(),
            "{} sockets for {} addresses",
            fds.len(),
            listeners.len()
        );
        None
    };
    let listeners: Vec<_> = listeners.into_iter().zip(fds).collect();
    let will = socket.map(|(owner, socket)| -> std::io::Result<Will> {
        let copy =
            |(address, socket): &(String, OwnedFd)| Ok((address.clone(), socket.try_clone()?));
        let listeners = listeners
            .iter()
            .map(copy)
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Will {
            socket,
            owner,
            listeners: Mutex::new(listeners),
        })
    });
    Ok(Welcome {
        config,
        certificate: certificate.into_vec(),
        will: will.transpose()?,
        listeners,
        stdio,
        generation,
    })
}

/// The live jobs of earlier gates, which the keeper tells of next.
fn adoptions(first: &OwnedFd, spools: &Spools) -> anyhow::Result<Vec<Adoption>> {
    let (mut adoptions, mut scratch) = (Vec::new(), Vec::new());
    loop {
        let (message, fds) = packet::receive::<ToGate>(first, &mut scratch)
            .context("the keeper's word on jobs")?
            .context("the keeper said nothing about jobs")?;
        match message {
            ToGate::Adopt { snapshot } => adoptions.push(Adoption {
                job: Arc::new(Job::adopted(&snapshot, &fds, spools)),
                snapshot: *snapshot,
                fds,
            }),
            ToGate::AllAdopted => return Ok(adoptions),
            other => anyhow::bail!("the keeper's word on jobs is {other:?}"),
        }
    }
}
