//! What the gate asks for, and what it is answered.
//!
//! Every packet is judged by what the keeper knows: a start by its grant, a
//! signal by the job's number. A packet that is no message, or that does not
//! belong on its socket, ends the gate: another one starts clean.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use bowline_proto::id::JobId;
use bowline_proto::limits::{START_BYTES_MAX, START_STRINGS_MAX};
use rustix::event::epoll;
use rustix::fs::SealFlags;

use super::peer::peer;
use super::policy::{Asked, Decision};
use super::{Keeper, program, shutdown, sign};
use crate::ipc::messages::{Proof, VERSION};
use crate::ipc::{
    Binding, DenyCode, GrantToken, Granted, JobSpec, RefuseCode, Source, SpecPlace, ToGate,
    ToKeeper, packet,
};

/// Packets taken from one socket before the others get their turn.
const PACKETS_AT_ONCE: usize = 32;
/// A spec in a memfd: its strings, and for each of them at most a length of 4 bytes.
const SPEC_BYTES_MAX: usize = START_BYTES_MAX + 2 * 4 * START_STRINGS_MAX + 4096;

/// An `Authenticate` without its number.
struct Claim {
    connection: u64,
    user: String,
    source: Source,
    binding: Binding,
    protocol: String,
    proofs: Vec<Proof>,
}

/// A `Start` that has been checked.
pub(super) struct Start {
    pub(super) worker: usize,
    pub(super) request: u64,
    pub(super) job: JobId,
    pub(super) spec: JobSpec,
    pub(super) decision: Rc<Decision>,
    /// Tells two specs apart.
    pub(super) fingerprint: u64,
}

impl Keeper {
    /// Takes what a worker has sent.
    pub(super) fn read_worker(&mut self, index: usize) {
        for _ in 0..PACKETS_AT_ONCE {
            let Some(worker) = self.gate.as_ref().and_then(|gate| gate.workers.get(index)) else {
                return;
            };
            if !worker.takes_requests() {
                return;
            }
            match packet::receive(&worker.socket, &mut self.buffer) {
                Ok(Some((message, fds))) => self.request(index, message, fds),
                Ok(None) => {
                    // Its process is ending, or should.
                    let _ = epoll::delete(&self.epoll, &worker.socket);
                    return self.kill_gate();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.gate_misbehaves(&error.to_string()),
            }
        }
    }

    /// Takes what a gate that is gone has said about the jobs; what it asked for
    /// itself, nobody would be answered.
    pub(super) fn hear_out_gate(&mut self) {
        let workers = self.gate.as_ref().map_or(0, |gate| gate.workers.len());
        for index in 0..workers {
            while let Some(worker) = self.gate.as_ref().and_then(|gate| gate.workers.get(index))
                && let Ok(Some((message, _))) = packet::receive(&worker.socket, &mut self.buffer)
            {
                match message {
                    ToKeeper::Start { .. } | ToKeeper::Authenticate { .. } => {}
                    about_jobs => self.request(index, about_jobs, Vec::new()),
                }
            }
        }
    }

    /// Signs what a worker has sent for it.
    pub(super) fn read_signer(&mut self, index: usize) {
        let Some(worker) = self.gate.as_ref().and_then(|gate| gate.workers.get(index)) else {
            return;
        };
        let message = match packet::receive(&worker.signer, &mut self.buffer) {
            Ok(Some((ToKeeper::Sign { message }, _))) => message,
            Ok(Some(_)) => return self.gate_misbehaves("a request on a signature socket"),
            Ok(None) => {
                let _ = epoll::delete(&self.epoll, &worker.signer);
                return self.kill_gate();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return self.gate_misbehaves(&error.to_string()),
        };
        if !sign::is_certificate_verify(&message) {
            return self.gate_misbehaves("something other than a handshake to sign");
        }
        let signature = (self.host_key.sign)(&message).to_vec().into();
        // A worker waits for its answer, so there is room; one that does not has itself to blame.
        let _ = packet::send(&worker.signer, &ToGate::Signature { signature }, &[]);
    }

    fn gate_misbehaves(&mut self, what: &str) {
        tracing::error!(what, "the gate broke the protocol and is ended");
        self.kill_gate();
    }

    fn request(&mut self, worker: usize, message: ToKeeper, fds: Vec<OwnedFd>) {
        match message {
            // Its client will ask the next gate; a refusal would tell it not to.
            ToKeeper::Start { .. } | ToKeeper::Authenticate { .. } if self.is_retiring() => {}
            ToKeeper::Ready { version } if version == VERSION => self.gate_ready(),
            ToKeeper::Ready { version } => {
                self.gate_misbehaves(&format!("protocol version {version}"));
            }
            ToKeeper::Sign { .. } => self.gate_misbehaves("a handshake on a worker's socket"),
            ToKeeper::Authenticate {
                request,
                connection,
                user,
                source,
                binding,
                protocol,
                proofs,
            } => {
                let claim = Claim {
                    connection,
                    user,
                    source,
                    binding,
                    protocol,
                    proofs,
                };
                let answer = match self.authenticate(&claim, fds.first()) {
                    Ok(granted) => ToGate::Granted { request, granted },
                    Err(code) => ToGate::Denied { request, code },
                };
                self.send(worker, &answer, &[]);
            }
            ToKeeper::Disconnected { connection } => self.grants.disconnected(connection),
            ToKeeper::Start {
                request,
                grant,
                job,
                spec,
            } => match self.check_start(worker, request, grant, job, spec, fds) {
                Ok(start) => self.start_job(start),
                Err(code) => self.refuse(worker, request, job, code),
            },
            ToKeeper::Signal { job, signal, scope } => self.signal_job(job, signal, scope),
            ToKeeper::End { job, cause, first } => self.end_job_by_id(job, cause, first),
            ToKeeper::CloseStream { job, stream } => self.close_stream(job, stream),
            ToKeeper::Released { job } => self.release_job(job),
        }
    }

    pub(super) fn refuse(&mut self, worker: usize, request: u64, job: JobId, code: RefuseCode) {
        let refused = ToGate::Refused { request, job, code };
        self.send(worker, &refused, &[]);
    }

    fn gate_ready(&mut self) {
        // It speaks, so it has left the memory that it was cloned in.
        if let Some(mut pending) = self.gate.as_mut().and_then(|gate| gate.pending.take()) {
            pending.progress();
            self.stacks.give_back(pending);
        }
        if !self.ready_told {
            self.ready_told = true;
            shutdown::notify(&[sd_notify::NotifyState::Ready]);
        }
    }

    fn authenticate(
        &mut self,
        claim: &Claim,
        socket: Option<&OwnedFd>,
    ) -> Result<Granted, DenyCode> {
        let peer = match claim.source {
            Source::Tcp(..) => None,
            Source::Unix => {
                let socket = socket.ok_or(DenyCode::Internal)?;
                let listeners = self.listeners.iter().map(|(_, socket)| socket.as_fd());
                let peer = peer(socket.as_fd(), listeners);
                Some(peer.map_err(|_| DenyCode::Internal)?)
            }
            Source::Stdio if self.stdio => {
                Some((rustix::process::getuid(), rustix::process::getgid()))
            }
            // The gate has no such connection to show.
            Source::Stdio => return Err(DenyCode::Internal),
        };
        let asked = Asked {
            user: &claim.user,
            source: &claim.source,
            binding: &claim.binding,
            protocol: &claim.protocol,
            proofs: &claim.proofs,
            peer,
            now_unix: crate::clock::unix_ms() / 1000,
        };
        let decision = self.policy.decide(&asked)?;
        let granted = |token| Granted {
            token,
            user: decision.account.name.clone(),
            uid: decision.account.uid,
            proof: decision.proof.clone(),
            grant: decision.grant.clone(),
            server_mac: decision.server_mac,
        };
        let grants_max = self.config.gate.connections_max as usize;
        let token = self
            .grants
            .give(claim.connection, decision.clone(), grants_max);
        token.map(granted).map_err(|error| {
            tracing::error!(%error, "an authenticated connection gets no grant");
            DenyCode::Internal
        })
    }

    fn check_start(
        &mut self,
        worker: usize,
        request: u64,
        grant: GrantToken,
        job: JobId,
        place: SpecPlace,
        fds: Vec<OwnedFd>,
    ) -> Result<Start, RefuseCode> {
        if self.phase != shutdown::Phase::Serving {
            return Err(RefuseCode::Draining);
        }
        let spec = match place {
            SpecPlace::Inline(spec) => spec,
            SpecPlace::Memfd => {
                let memfd = fds.into_iter().next().ok_or(RefuseCode::BadSpec)?;
                read_spec(memfd).map_err(|_| RefuseCode::BadSpec)?
            }
        };
        let decision = self.grants.check(grant, spec.connection);
        let start = Start {
            worker,
            request,
            job,
            fingerprint: spec.fingerprint(),
            decision: decision.ok_or(RefuseCode::NoGrant)?,
            spec,
        };
        if start.spec.pty.is_some() && !start.decision.grant.pty {
            return Err(RefuseCode::NoTerminal);
        }
        let uid = start.decision.account.uid;
        let limits = (self.config.jobs_max, self.config.gate.jobs_per_user_max);
        if self.jobs.by_id(job).is_none() {
            if self.journal.is_recent(uid, job) || self.journal.job(job).is_some() {
                return Err(RefuseCode::DuplicateJob);
            }
            self.jobs.check_limits(uid, limits)?;
        }
        Ok(start)
    }

    /// Prepares the program of a start.
    pub(super) fn prepare(&self, start: &Start) -> Result<super::spawn::Program, RefuseCode> {
        let (policy, decision) = (self.policy.as_ref(), &start.decision);
        // Above the numbers that the child's own descriptors get.
        let own_file = || rustix::io::fcntl_dupfd_cloexec(&self.gate_program.executable, 3);
        let worker = program::copy_worker(&start.spec).map(|_| own_file());
        let worker = worker.transpose();
        let worker = worker.map_err(|_| RefuseCode::OutOfResources)?;
        program::prepare(policy, decision, &start.spec, start.job, &self.own, worker)
            .map_err(|program::BadSpec| RefuseCode::BadSpec)
    }
}

/// Reads a spec that nobody can change any more.
fn read_spec(memfd: OwnedFd) -> io::Result<JobSpec> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let seals = rustix::fs::fcntl_get_seals(&memfd)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
        return Err(invalid());
    }
    let bytes = usize::try_from(rustix::fs::fstat(&memfd)?.st_size).map_err(|_| invalid())?;
    if bytes > SPEC_BYTES_MAX {
        return Err(invalid());
    }
    let mut buffer = vec![0; bytes];
    std::fs::File::from(memfd).read_exact_at(&mut buffer, 0)?;
    postcard::from_bytes(&buffer).map_err(|_| invalid())
}
