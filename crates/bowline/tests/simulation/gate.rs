//! The gate: real sessions over the lines, and a model of `cli/gate/job` between them and the keeper.
//!
//! It may be killed between any two of its steps. What the next one knows then is what the keeper has.

mod job;

use std::collections::BTreeMap;

use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::limits::{MINOR, PROTOCOL};
use bowline_proto::message::{
    Attach, AttachFrom, Bye, Exit, Granted, Hello, OnDisconnect, Refused, Start,
};
use bowline_proto::outcome::{Happened, Outcome};
use bowline_proto::session::{Event, RecvFlow, ServerEvent, ServerHandshake, Session, Step};

use crate::keeper::{Keeper, Plan, RING_BYTES, Spawned};
use crate::network::{End, Line, Network};
use crate::random::Random;
use crate::world::{Defect, Violation};

use job::{Attached, Job, oldest};

const OUTPUT: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// Why a turn ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The gate was killed at this step.
    Killed,
    /// Something was wrong.
    Wrong(Violation),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Wrong(violation)
    }
}

/// What it all runs on.
pub(crate) struct Machine<'a> {
    pub(crate) now: u64,
    pub(crate) network: &'a mut Network,
    pub(crate) keeper: &'a mut Keeper,
    pub(crate) plans: &'a [Plan],
    pub(crate) random: &'a mut Random,
}

/// A gate.
#[derive(Debug)]
pub(crate) struct Gate {
    defect: Defect,
    connections: BTreeMap<u64, Connection>,
    jobs: BTreeMap<JobId, Job>,
    /// Steps until it is killed.
    pub(crate) fuse: Option<u64>,
}

#[derive(Debug)]
enum Phase {
    Handshake(Option<ServerHandshake>),
    Open(Box<Session>),
}

#[derive(Debug)]
struct Connection {
    phase: Phase,
    attached: BTreeMap<u32, Attached>,
    left: bool,
}

impl Gate {
    /// A gate that takes over what the keeper has.
    pub(crate) fn new(keeper: &Keeper, defect: Defect) -> Self {
        let mut jobs = BTreeMap::new();
        for (&id, job) in keeper.jobs.iter().filter(|(_, job)| !job.released) {
            let adopted = Job {
                floor: job.taken.map(oldest),
                pinned: true,
                ..Job::new()
            };
            jobs.insert(id, adopted);
        }
        Self {
            defect,
            connections: BTreeMap::new(),
            jobs,
            fuse: None,
        }
    }

    /// Its process is gone, and with it its end of every line that it had accepted.
    pub(crate) fn die(&mut self, now: u64, network: &mut Network) {
        for &id in self.connections.keys() {
            network.line(id).close(End::Server, now);
        }
    }

    /// One of the steps between which it may be killed.
    fn step(&mut self) -> Result<(), Stop> {
        match &mut self.fuse {
            Some(0) => Err(Stop::Killed),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Looks at everything once. Says whether anything moved.
    pub(crate) fn turn(&mut self, machine: &mut Machine<'_>) -> Result<bool, Stop> {
        let mut moved = self.accept(machine)?;
        for line in self.connections.keys().copied().collect::<Vec<_>>() {
            moved |= self.hear(machine, line)?;
        }
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            moved |= self.move_streams(machine, id)?;
            moved |= self.finish(machine, id)?;
            moved |= self.absence(machine, id)?;
        }
        for line in self.connections.keys().copied().collect::<Vec<_>>() {
            moved |= self.say(machine, line)?;
        }
        Ok(moved)
    }

    fn accept(&mut self, machine: &mut Machine<'_>) -> Result<bool, Stop> {
        if machine.keeper.gone_until.is_some() {
            // A gate without a keeper leaves them in the queue.
            return Ok(false);
        }
        let mut moved = false;
        for id in machine.network.ids() {
            let line = machine.network.line(id);
            let known = self.connections.contains_key(&id) || line.is_taken;
            if !known && line.is_acceptable(machine.now) {
                self.step()?;
                line.is_taken = true;
                self.connections.insert(id, Connection::new());
                moved = true;
            }
        }
        Ok(moved)
    }

    // ---- what comes -----------------------------------------------------------

    fn hear(&mut self, machine: &mut Machine<'_>, line_id: u64) -> Result<bool, Stop> {
        self.step()?;
        let line = machine.network.line(line_id);
        let over = line.is_over(End::Server, machine.now);
        let input = std::mem::take(line.arrived(End::Server));
        let mut at = 0;
        let Some(mut connection) = self.connections.remove(&line_id) else {
            return Ok(false);
        };
        let heard = loop {
            let step = self.hear_one(machine, &mut connection, &input[at..]);
            match step {
                Ok(0) => break Ok(()),
                Ok(len) => at += len,
                Err(stop) => break Err(stop),
            }
        };
        machine
            .network
            .line(line_id)
            .arrived(End::Server)
            .extend(&input[at..]);
        if (over && at == 0) || connection.left {
            for attached in connection.attached.values() {
                self.leave(attached);
            }
            machine
                .network
                .line(line_id)
                .close(End::Server, machine.now);
        } else {
            self.connections.insert(line_id, connection);
        }
        heard?;
        Ok(at > 0 || over)
    }

    /// Takes one message. Gives how many bytes it was, 0 where there is no whole one.
    fn hear_one(
        &mut self,
        machine: &mut Machine<'_>,
        connection: &mut Connection,
        input: &[u8],
    ) -> Result<usize, Stop> {
        let session = match &mut connection.phase {
            Phase::Handshake(handshake) => {
                let Some(deciding) = handshake else {
                    return Ok(0);
                };
                let (len, event) = deciding
                    .next(input)
                    .map_err(|error| Violation(format!("handshake: {error}")))?;
                if matches!(event, ServerEvent::Auth(_))
                    && let Some(handshake) = handshake.take()
                {
                    let session = handshake.granted(&Granted::default(), &());
                    connection.phase = Phase::Open(Box::new(session));
                }
                return Ok(len);
            }
            Phase::Open(session) => session,
        };
        if connection.left || session.outbox().control_is_full() {
            return Ok(0);
        }
        let step = session.next(input);
        let step = step.map_err(|error| Violation(format!("the gate hears: {error}")))?;
        let (len, channel, event) = match step {
            Step::NeedMore => return Ok(0),
            Step::Taken(len) => return Ok(len),
            Step::Event(len, channel, event) => (len, channel, event),
        };
        match event {
            Event::Start(start, _) => {
                self.step()?;
                let attached = self.start(machine, &start);
                self.step()?;
                connection.enter(channel, attached);
            }
            Event::Attach(attach) => {
                let attached = self.attach(machine, &attach);
                connection.enter(channel, attached);
            }
            Event::Data { bytes, end, .. } => {
                let received = session
                    .receiving(channel, Stream::Stdin)
                    .map_or(0, RecvFlow::received);
                if let Some(attached) = connection.attached.get(&channel.0) {
                    self.step()?;
                    self.input(machine, attached, received - bytes.len() as u64, bytes, end);
                }
            }
            Event::Forget(forget) => {
                let job = forget.job.and_then(|id| self.jobs.get_mut(&id));
                if let Some(job) = job.filter(|job| job.over.is_some()) {
                    job.forgotten = true;
                }
            }
            Event::Bye(Bye { .. }) => connection.left = true,
            _ => {}
        }
        Ok(len)
    }

    fn start(
        &mut self,
        machine: &mut Machine<'_>,
        start: &Start,
    ) -> Result<Attached, &'static str> {
        let id = start.job.ok_or("bad_start")?;
        if start.on_disconnect != OnDisconnect::Keep {
            return Err("bad_start");
        }
        if !self.jobs.contains_key(&id) || self.defect == Defect::StartsTwice {
            let plan = machine.plans.iter().find(|plan| plan.id() == id);
            machine.keeper.forgets = self.defect == Defect::StartsTwice;
            match machine.keeper.spawn(plan.ok_or("bad_start")?, machine.now) {
                Spawned::Fresh => _ = self.jobs.entry(id).or_insert_with(Job::new),
                Spawned::Duplicate => return Err("duplicate_job"),
                Spawned::Died => return Err("keeper_gone"),
            }
        }
        let taken = machine.keeper.jobs[&id].taken;
        let from = taken.map(|taken| Some(oldest(taken)));
        let job = self.jobs.get_mut(&id).ok_or("no_such_job")?;
        Ok(job.enter(id, from, true, true))
    }

    fn attach(&mut self, machine: &Machine<'_>, attach: &Attach) -> Result<Attached, &'static str> {
        let id = attach.job.ok_or("no_such_job")?;
        let job = self.jobs.get_mut(&id).ok_or("no_such_job")?;
        let taken = machine.keeper.jobs[&id].taken;
        let mut from = [attach.stdout, attach.stderr];
        for (offset, taken) in from.iter_mut().zip(taken) {
            match (attach.from, offset) {
                (AttachFrom::Start, Some(offset)) => *offset = oldest(taken),
                (AttachFrom::Offset, Some(offset)) if *offset > taken => return Err("bad_offset"),
                (_, Some(offset)) => *offset = (*offset).max(oldest(taken)),
                (_, None) => {}
            }
        }
        Ok(job.enter(id, from, attach.stdin, false))
    }

    fn input(
        &mut self,
        machine: &mut Machine<'_>,
        of: &Attached,
        offset: u64,
        bytes: &[u8],
        end: bool,
    ) {
        let (Some(job), Some(kept)) = (
            self.jobs.get_mut(&of.job),
            machine.keeper.jobs.get_mut(&of.job),
        ) else {
            return;
        };
        if job.holder != Some(of.id) || kept.stdin_closed {
            return;
        }
        let there = kept.stdin.len() as u64;
        let known = there.saturating_sub(offset).min(bytes.len() as u64);
        if offset <= there && self.defect == Defect::AcknowledgesEarly {
            // Only this gate has it; the next will not.
            job.held = (
                offset + known,
                bytes[usize::try_from(known).unwrap()..].to_vec(),
            );
        } else if offset <= there {
            kept.stdin.extend(&bytes[usize::try_from(known).unwrap()..]);
        }
        job.stdin_ended |= end && offset + bytes.len() as u64 <= kept.stdin.len() as u64;
    }

    fn leave(&mut self, attached: &Attached) {
        if let Some(job) = self.jobs.get_mut(&attached.job) {
            job.leave(attached);
        }
    }

    // ---- the jobs -----------------------------------------------------------

    fn move_streams(&mut self, machine: &mut Machine<'_>, id: JobId) -> Result<bool, Stop> {
        let mut moved = false;
        for at in 0..OUTPUT.len() {
            self.step()?;
            let (Some(job), Some(kept)) = (self.jobs.get(&id), machine.keeper.jobs.get_mut(&id))
            else {
                return Ok(moved);
            };
            let room = (job.floor[at] + RING_BYTES).saturating_sub(kept.taken[at]);
            let len = kept.waits()[at]
                .min(room)
                .min(1 + machine.random.below(70_000));
            kept.taken[at] += len;
            moved |= len > 0;
        }
        self.step()?;
        let (Some(job), Some(kept)) = (self.jobs.get_mut(&id), machine.keeper.jobs.get_mut(&id))
        else {
            return Ok(moved);
        };
        let (at, held) = std::mem::take(&mut job.held);
        if at == kept.stdin.len() as u64 {
            kept.stdin.extend(held);
        }
        let waits = kept.stdin.len() as u64 - kept.stdin_taken;
        let len = waits.min(kept.stdin_room());
        kept.stdin_taken += len;
        if !kept.stdin_closed && job.stdin_ended && kept.stdin_taken == kept.stdin.len() as u64 {
            kept.stdin_closed = true;
            moved = true;
        }
        Ok(moved || len > 0)
    }

    /// The outcome, once the program has ended and its output is in the rings.
    fn finish(&mut self, machine: &mut Machine<'_>, id: JobId) -> Result<bool, Stop> {
        self.step()?;
        let (Some(job), Some(kept)) = (self.jobs.get_mut(&id), machine.keeper.jobs.get(&id)) else {
            return Ok(false);
        };
        let Some(outcome) = kept.ended.clone().filter(|_| !kept.is_alive()) else {
            return Ok(false);
        };
        if kept.waits() != [0, 0] && outcome.outcome != Happened::Cancelled || job.over.is_some() {
            return Ok(false);
        }
        let [stdout, stderr] = kept.taken;
        job.over = Some(Exit {
            outcome,
            stdin: kept.stdin_taken,
            stdout,
            stderr,
        });
        Ok(true)
    }

    /// What happens while nobody is attached, and when the outcome is not wanted any more.
    fn absence(&mut self, machine: &mut Machine<'_>, id: JobId) -> Result<bool, Stop> {
        self.step()?;
        let (Some(job), Some(kept)) = (self.jobs.get_mut(&id), machine.keeper.jobs.get_mut(&id))
        else {
            return Ok(false);
        };
        let nobody = job.readers.is_empty();
        if !nobody && !job.pinned {
            job.grace_until = None;
        } else {
            let until = *job.grace_until.get_or_insert(machine.now + kept.plan.grace);
            if machine.now >= until {
                job.pinned = false;
                job.raise_floors();
                if nobody && kept.is_alive() && machine.keeper.gone_until.is_none() {
                    machine.keeper.kill(id);
                    return Ok(true);
                }
                job.forgotten |= nobody && job.over.is_some();
            }
        }
        let wanted = !job.forgotten || job.over.is_none();
        if wanted || machine.keeper.gone_until.is_some() || !nobody {
            return Ok(false);
        }
        self.jobs.remove(&id);
        self.step()?;
        machine
            .keeper
            .jobs
            .entry(id)
            .and_modify(|kept| kept.released = true);
        Ok(true)
    }

    /// When something is due that nothing else brings about.
    pub(crate) fn next_due(&self, now: u64) -> Option<u64> {
        let dues = self.jobs.values().filter_map(|job| job.grace_until);
        dues.filter(|&due| due > now).min()
    }

    // ---- what goes out --------------------------------------------------------

    fn say(&mut self, machine: &mut Machine<'_>, line_id: u64) -> Result<bool, Stop> {
        self.step()?;
        let Some(connection) = self.connections.get_mut(&line_id) else {
            return Ok(false);
        };
        let line = machine.network.line(line_id);
        let mut moved = false;
        if let Phase::Open(session) = &mut connection.phase {
            let mut over = Vec::new();
            for (&channel, attached) in &mut connection.attached {
                let Some(job) = self.jobs.get_mut(&attached.job) else {
                    continue;
                };
                let Some(kept) = machine.keeper.jobs.get(&attached.job) else {
                    continue;
                };
                let (progress, done) = attached.pump(
                    session,
                    Channel(channel),
                    job,
                    kept,
                    self.defect,
                    line.has_room(End::Server),
                )?;
                moved |= progress;
                over.extend(done.then_some(channel));
            }
            // It was told to the end: what it had not acknowledged is not lost by this.
            for attached in over
                .into_iter()
                .filter_map(|channel| connection.attached.remove(&channel))
            {
                if let Some(job) = self.jobs.get_mut(&attached.job) {
                    job.leave(&attached);
                }
            }
        }
        self.step()?;
        let Some(connection) = self.connections.get_mut(&line_id) else {
            return Ok(moved);
        };
        Ok(connection.flush(line, machine.now) || moved)
    }
}

impl Connection {
    fn new() -> Self {
        let hello = Hello {
            protocol: PROTOCOL.to_owned(),
            minor: MINOR,
            ..Hello::default()
        };
        Self {
            phase: Phase::Handshake(Some(ServerHandshake::new(&hello))),
            attached: BTreeMap::new(),
            left: false,
        }
    }

    fn enter(&mut self, channel: Channel, attached: Result<Attached, &'static str>) {
        match (attached, &mut self.phase) {
            (Ok(attached), _) => _ = self.attached.insert(channel.0, attached),
            (Err(code), Phase::Open(session)) => session.refuse(channel, &refused(code)),
            (Err(_), Phase::Handshake(_)) => {}
        }
    }

    fn flush(&mut self, line: &mut Line, now: u64) -> bool {
        let outbox = match &mut self.phase {
            Phase::Handshake(Some(handshake)) => handshake.outbox(),
            Phase::Handshake(None) => return false,
            Phase::Open(session) => session.outbox(),
        };
        let moved = !outbox.is_empty() && line.has_room(End::Server);
        if moved {
            line.send(End::Server, now, outbox.control());
            line.send(End::Server, now, outbox.bulk());
            outbox.control_sent();
            outbox.bulk_sent();
        }
        moved
    }
}

fn refused(code: &str) -> Refused {
    Refused {
        code: code.to_owned(),
        message: String::new(),
    }
}

/// The outcome that says that nobody came back.
pub(crate) fn nobody_came(outcome: &Outcome) -> bool {
    outcome.outcome == Happened::Cancelled && outcome.error.as_deref() == Some("disconnected")
}
