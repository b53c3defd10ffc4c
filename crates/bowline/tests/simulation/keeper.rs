//! The keeper, its jobs and the programs: what stays when the gate dies. It is a model of `cli/keeper`
//! and of the kernel's pipes and memfds, with one operation for each of theirs.

use std::collections::BTreeMap;

use bowline_proto::frame::Stream;
use bowline_proto::id::JobId;
use bowline_proto::outcome::{Happened, Outcome};

use crate::random::Random;
use crate::world::{Violation, ensure};

/// What a pipe holds.
const PIPE_BYTES: u64 = 65_536;
/// What the ring of a stream holds: less than a window, so that it is what stops a program.
pub(crate) const RING_BYTES: u64 = 100_000;

/// The byte of a stream at an offset: tells jobs, streams and places apart.
pub(crate) fn byte_at(job: u64, stream: Stream, offset: u64) -> u8 {
    let place = offset.wrapping_add(job * 31 + stream as u64 * 7 + 1);
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 43) as u8
}

/// What a program does.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) number: u64,
    /// What its client has for stdin.
    pub(crate) stdin: u64,
    /// How much of that it reads before it ends.
    pub(crate) reads: u64,
    /// It waits for the end of its input, behind all of it.
    pub(crate) to_the_end: bool,
    pub(crate) output: [u64; 2],
    /// What a step of it moves at most, and how often it takes one.
    pub(crate) step: u64,
    pub(crate) every: u64,
    pub(crate) outcome: Outcome,
    pub(crate) grace: u64,
}

impl Plan {
    pub(crate) fn random(number: u64, grace: u64, random: &mut Random) -> Self {
        let length = |random: &mut Random| match random.below(4) {
            0 => 0,
            1 => random.below(2_000),
            2 => random.below(300_000),
            _ => random.below(700_000),
        };
        let stdin = length(random);
        let to_the_end = random.one_in(2);
        Self {
            number,
            stdin,
            reads: if to_the_end {
                stdin
            } else {
                random.below(stdin + 1)
            },
            to_the_end,
            output: [length(random), length(random)],
            step: random.pick(&[500, 9_000, 70_000]),
            every: 1 + random.below(8),
            outcome: match random.below(3) {
                0 => Outcome {
                    outcome: Happened::Signaled,
                    signal: Some(1 + random.size(15) as i32),
                    ..Outcome::default()
                },
                // Success must be possible, or nobody could claim it wrongly.
                one => Outcome {
                    outcome: Happened::Exited,
                    code: Some(if one == 1 { 0 } else { random.size(256) as i32 }),
                    ..Outcome::default()
                },
            },
            grace,
        }
    }

    pub(crate) fn id(&self) -> JobId {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&self.number.to_le_bytes());
        JobId::from_bytes(id)
    }
}

/// A job as the keeper has it: the process, its pipes, its memfds, the journal.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) plan: Plan,
    /// How often its program was started.
    pub(crate) starts: u32,
    /// What the program has written to its pipes.
    written: [u64; 2],
    /// How far the pipes were emptied: the position of the ring's memfd.
    pub(crate) taken: [u64; 2],
    /// The memfd of stdin, all that ever was in it.
    pub(crate) stdin: Vec<u8>,
    /// Its position: what has reached the pipe.
    pub(crate) stdin_taken: u64,
    stdin_read: u64,
    /// The keeper was told to close its end of the pipe.
    pub(crate) stdin_closed: bool,
    /// The main process is reaped, or was found to be somebody else's child.
    pub(crate) ended: Option<Outcome>,
    /// The process runs.
    alive: bool,
    /// A keeper died under it: its status will go nowhere.
    orphan: bool,
    /// Nothing is kept but the id.
    pub(crate) released: bool,
}

impl Job {
    /// The program does something. Says whether it did.
    fn step(&mut self, random: &mut Random) -> Result<bool, Violation> {
        if !self.alive || !random.one_in(self.plan.every) {
            return Ok(self.alive);
        }
        let mut moved = false;
        for (at, length) in self.plan.output.into_iter().enumerate() {
            let pipe = PIPE_BYTES - (self.written[at] - self.taken[at]);
            let len = (length - self.written[at]).min(pipe).min(self.plan.step);
            self.written[at] += len;
            moved |= len > 0;
        }
        let there = (self.stdin_taken - self.stdin_read).min(self.plan.step);
        let wants = self.plan.reads - self.stdin_read;
        for _ in 0..there.min(wants) {
            let byte = self.stdin[usize::try_from(self.stdin_read).unwrap()];
            let right = byte_at(self.plan.number, Stream::Stdin, self.stdin_read);
            ensure!(
                byte == right,
                "the program reads a wrong byte at {}",
                self.stdin_read
            );
            self.stdin_read += 1;
        }
        moved |= there.min(wants) > 0;
        let eof = self.stdin_closed && self.stdin_read == self.stdin_taken;
        ensure!(
            !eof || !self.plan.to_the_end || self.stdin_read == self.plan.stdin,
            "the end of the input comes at {} of {}",
            self.stdin_read,
            self.plan.stdin
        );
        let read = self.stdin_read == self.plan.reads && (!self.plan.to_the_end || eof);
        if self.written == self.plan.output && read {
            let outcome = self.plan.outcome.clone();
            self.end(outcome);
            moved = true;
        }
        Ok(moved)
    }

    fn end(&mut self, outcome: Outcome) {
        self.alive = false;
        if self.ended.is_none() {
            self.ended = Some(if self.orphan { lost() } else { outcome });
        }
    }

    /// What is in the pipes.
    pub(crate) fn waits(&self) -> [u64; 2] {
        [
            self.written[0] - self.taken[0],
            self.written[1] - self.taken[1],
        ]
    }

    /// Room in the pipe of stdin.
    pub(crate) fn stdin_room(&self) -> u64 {
        match self.alive {
            true => PIPE_BYTES - (self.stdin_taken - self.stdin_read),
            false => 0,
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive
    }

    /// Whether its outcome may be the program's own.
    pub(crate) fn is_orphan(&self) -> bool {
        self.orphan
    }
}

fn lost() -> Outcome {
    Outcome {
        outcome: Happened::Lost,
        ..Outcome::default()
    }
}

/// The answer to a spawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spawned {
    /// The program runs.
    Fresh,
    /// This id was used before.
    Duplicate,
    /// The keeper died over it.
    Died,
}

/// The keeper.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// No keeper runs before then.
    pub(crate) gone_until: Option<u64>,
    /// It dies over its next spawn, between the journal and the program, for so long.
    pub(crate) dies_over_spawn: Option<u64>,
    /// A defect: the journal is not asked.
    pub(crate) forgets: bool,
}

impl Keeper {
    /// Writes the journal, then starts the program.
    pub(crate) fn spawn(&mut self, plan: &Plan, now: u64) -> Spawned {
        if self.gone_until.is_some() {
            return Spawned::Died;
        }
        if let Some(job) = self.jobs.get_mut(&plan.id()) {
            if self.forgets {
                job.starts += 1;
                return Spawned::Fresh;
            }
            return Spawned::Duplicate;
        }
        let dies = self.dies_over_spawn.take();
        let job = Job {
            plan: plan.clone(),
            starts: u32::from(dies.is_none()),
            written: [0; 2],
            taken: [0; 2],
            stdin: Vec::new(),
            stdin_taken: 0,
            stdin_read: 0,
            stdin_closed: false,
            ended: None,
            alive: dies.is_none(),
            orphan: false,
            released: false,
        };
        self.jobs.insert(plan.id(), job);
        match dies {
            Some(ms) => {
                self.die(now + ms);
                Spawned::Died
            }
            None => Spawned::Fresh,
        }
    }

    /// Every program does something.
    pub(crate) fn step(&mut self, random: &mut Random) -> Result<bool, Violation> {
        let mut moved = false;
        for job in self.jobs.values_mut() {
            moved |= job.step(random)?;
        }
        Ok(moved)
    }

    /// It is killed. What it would have reaped nobody reaps.
    pub(crate) fn die(&mut self, until: u64) {
        self.gone_until = Some(until);
        for job in self.jobs.values_mut().filter(|job| job.ended.is_none()) {
            job.orphan = true;
            if !job.alive {
                // The journal has it, and nothing runs.
                job.ended = Some(lost());
            }
        }
    }

    /// Ends a job's tree: nobody came back for it.
    pub(crate) fn kill(&mut self, id: JobId) {
        if self.gone_until.is_none()
            && let Some(job) = self.jobs.get_mut(&id)
            && job.alive
        {
            job.end(Outcome::failed(Happened::Cancelled, "disconnected", ""));
        }
    }
}
