//! The world: one keeper, gates that come and go, a few jobs and their clients, faults, a clock.

use crate::client::{Client, Errand, Told};
use crate::gate::{Gate, Machine, Stop, nobody_came};
use crate::keeper::{Keeper, Plan};
use crate::network::{Cut, End, Network};
use crate::random::Random;
use bowline_proto::outcome::Happened;

/// A run that takes more turns than this is stuck.
const TURNS_MAX: u64 = 400_000;

/// What must not happen.
#[derive(Debug)]
pub(crate) struct Violation(pub(crate) String);

macro_rules! ensure {
    ($right:expr, $($words:tt)*) => {
        if !$right {
            return Err($crate::world::Violation(format!($($words)*)));
        }
    };
}
pub(crate) use ensure;

/// What is broken on purpose, to show that the simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    None,
    /// The gate acknowledges input that has not reached the program's pipe.
    AcknowledgesEarly,
    /// The gate writes over output that was sent and not acknowledged.
    SentIsArrived,
    /// The keeper does not ask its journal.
    StartsTwice,
    /// The client goes on at another byte than the next.
    ResumesAtTheWrongByte,
    /// The client takes the end of both streams for success.
    UnknownIsSuccess,
    /// The client believes a refusal of its second start that nothing was run.
    RefusedIsBelieved,
}

/// How rough it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Lines break and gates die, and everybody comes back in time: every job's own outcome is told.
    Mild,
    /// Outages longer than the grace time, keepers and clients that die.
    Harsh,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) resumed: u64,
    pub(crate) gates: u64,
    pub(crate) keepers: u64,
    pub(crate) clients: u64,
    pub(crate) unreachable: u64,
    pub(crate) lost: u64,
    pub(crate) cancelled: u64,
    pub(crate) own: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, one) in [
            (&mut self.resumed, other.resumed),
            (&mut self.gates, other.gates),
            (&mut self.keepers, other.keepers),
            (&mut self.clients, other.clients),
            (&mut self.unreachable, other.unreachable),
            (&mut self.lost, other.lost),
            (&mut self.cancelled, other.cancelled),
            (&mut self.own, other.own),
        ] {
            *sum += one;
        }
    }
}

pub(crate) struct World {
    random: Random,
    now: u64,
    weather: Weather,
    defect: Defect,
    network: Network,
    keeper: Keeper,
    gate: Option<Gate>,
    gate_returns: u64,
    plans: Vec<Plan>,
    clients: Vec<(usize, Client)>,
    faults_left: u64,
    tally: Tally,
}

impl World {
    pub(crate) fn new(seed: u64, weather: Weather, defect: Defect) -> Self {
        let mut random = Random::new(seed);
        let grace = match weather {
            Weather::Mild => 3_600_000,
            Weather::Harsh => 2_000 + random.below(40_000),
        };
        let jobs = 1 + random.below(3);
        let plans: Vec<Plan> = (0..jobs)
            .map(|job| Plan::random(job, grace, &mut random))
            .collect();
        let clients = plans.iter().enumerate();
        let clients = clients.map(|(at, plan)| (at, Client::new(plan, Errand::Run, 0, defect)));
        let keeper = Keeper::default();
        Self {
            now: 0,
            weather,
            defect,
            network: Network::default(),
            gate: Some(Gate::new(&keeper, defect)),
            keeper,
            gate_returns: 0,
            clients: clients.collect(),
            plans,
            faults_left: random.below(14),
            tally: Tally::default(),
            random,
        }
    }

    /// Runs until every client has told its user something.
    pub(crate) fn run(mut self) -> Result<Tally, Violation> {
        let mut turns = 0;
        while !self.clients.iter().all(|(_, client)| client.is_over()) {
            turns += 1;
            ensure!(turns < TURNS_MAX, "stuck at {} ms", self.now);
            self.fault();
            let mut moved = self.network.tick(self.now, &mut self.random);
            moved |= self.keeper.step(&mut self.random)?;
            moved |= self.gate_acts()?;
            self.watchers_leave();
            for (_, client) in &mut self.clients {
                moved |= client.turn(self.now, &mut self.network, &mut self.random)?;
            }
            self.now = match moved {
                true => self.now + 1,
                false => self.next_due(),
            };
        }
        self.judge()?;
        Ok(self.tally)
    }

    fn next_due(&self) -> u64 {
        let clients = self
            .clients
            .iter()
            .filter_map(|(_, client)| client.next_due());
        let gate = self.gate.as_ref().and_then(|gate| gate.next_due(self.now));
        let returns = self.gate.is_none().then_some(self.gate_returns);
        let network = self.network.next_due(self.now);
        let dues = clients
            .chain(gate)
            .chain(returns)
            .chain(network)
            .chain(self.keeper.gone_until);
        dues.min().unwrap_or(0).max(self.now + 1)
    }

    fn gate_acts(&mut self) -> Result<bool, Violation> {
        if self
            .keeper
            .gone_until
            .is_some_and(|until| until <= self.now)
        {
            // The next keeper takes the jobs over from the gate that stayed, and lets it go.
            self.keeper.gone_until = None;
            self.end_gate(0);
        }
        if self.gate.is_none() && self.gate_returns <= self.now && self.keeper.gone_until.is_none()
        {
            self.gate = Some(Gate::new(&self.keeper, self.defect));
        }
        let Some(gate) = &mut self.gate else {
            return Ok(false);
        };
        let mut machine = Machine {
            now: self.now,
            network: &mut self.network,
            keeper: &mut self.keeper,
            plans: &self.plans,
            random: &mut self.random,
        };
        match gate.turn(&mut machine) {
            Ok(moved) => Ok(moved),
            Err(Stop::Wrong(violation)) => Err(violation),
            Err(Stop::Killed) => {
                self.tally.gates += 1;
                let pause = self.random.below(300);
                self.end_gate(pause);
                Ok(true)
            }
        }
    }

    fn end_gate(&mut self, pause: u64) {
        if let Some(mut gate) = self.gate.take() {
            gate.die(self.now, &mut self.network);
        }
        self.gate_returns = self.now + pause;
    }

    // ---- faults ---------------------------------------------------------------

    fn fault(&mut self) {
        if self.faults_left == 0 || !self.random.one_in(25) {
            return;
        }
        self.faults_left -= 1;
        let rough = self.weather == Weather::Harsh;
        match self.random.below(if rough { 12 } else { 8 }) {
            0..=2 => self.cut(),
            3..=6 => {
                let steps = self.random.below(60);
                if let Some(gate) = &mut self.gate {
                    gate.fuse = Some(steps);
                }
            }
            7 => {
                let ms = self.random.below(if rough { 60_000 } else { 20_000 });
                self.network.go_down(self.now, ms, &mut self.random);
            }
            8 if self.keeper.gone_until.is_none() => {
                self.tally.keepers += 1;
                let until = self.now + self.random.below(5_000);
                self.keeper.die(until);
            }
            9 => self.keeper.dies_over_spawn = Some(self.random.below(5_000)),
            10 => {
                let at = self.random.size(self.clients.len());
                self.clients[at].1.die(self.now, &mut self.network);
                self.tally.clients += 1;
            }
            _ => self.watch(),
        }
    }

    fn cut(&mut self) {
        let lines: Vec<u64> = self
            .clients
            .iter()
            .filter_map(|(_, client)| client.line())
            .collect();
        if lines.is_empty() {
            return;
        }
        let line = self.random.pick(&lines);
        let cut = match self.random.below(6) {
            0 | 1 => Cut::Reset,
            2 => Cut::Swallow(End::Client),
            3 => Cut::Swallow(End::Server),
            4 => Cut::SwallowBoth,
            _ => Cut::Stall(self.random.below(12_000)),
        };
        self.network.cut(line, self.now, cut, &mut self.random);
    }

    /// Somebody else looks at a job that runs.
    fn watch(&mut self) {
        let at = self.random.size(self.plans.len());
        let plan = &self.plans[at];
        if self
            .keeper
            .jobs
            .get(&plan.id())
            .is_some_and(|job| job.is_alive())
        {
            self.clients
                .push((at, Client::new(plan, Errand::Watch, self.now, self.defect)));
        }
    }

    /// Whoever only watches does not wait for a program whose input will never come.
    fn watchers_leave(&mut self) {
        let alive = |client: &Client| client.errand == Errand::Run && !client.is_over();
        let served: Vec<usize> = self
            .clients
            .iter()
            .filter(|(_, client)| alive(client))
            .map(|(at, _)| *at)
            .collect();
        let watchers = self
            .clients
            .iter_mut()
            .filter(|(_, client)| client.errand == Errand::Watch);
        for (_, watcher) in watchers.filter(|(at, _)| !served.contains(at)) {
            if !watcher.is_over() && self.random.one_in(2_000) {
                watcher.die(self.now, &mut self.network);
            }
        }
    }

    // ---- what must hold ---------------------------------------------------------

    fn judge(&mut self) -> Result<(), Violation> {
        let truths = self
            .keeper
            .jobs
            .values()
            .filter_map(|job| job.ended.as_ref());
        self.tally.cancelled = truths.filter(|outcome| nobody_came(outcome)).count() as u64;
        for (at, client) in &self.clients {
            let plan = &self.plans[*at];
            let job = self.keeper.jobs.get(&plan.id());
            let starts = job.map_or(0, |job| job.starts);
            ensure!(starts <= 1, "job {at} was started {starts} times");
            self.tally.resumed += client.lost;
            match &client.told {
                // Its process was killed.
                None => {}
                Some(Told::Refused(code)) => {
                    ensure!(starts == 0, "refused with {code}, and it was run");
                    ensure!(self.weather == Weather::Harsh, "refused with {code}");
                }
                Some(Told::Unreachable(why)) => {
                    self.tally.unreachable += 1;
                    ensure!(self.weather == Weather::Harsh, "{why} in mild weather");
                }
                Some(Told::Outcome(outcome)) => {
                    let truth = job.and_then(|job| job.ended.as_ref());
                    ensure!(
                        truth == Some(outcome),
                        "told {outcome:?}, and the truth is {truth:?}"
                    );
                    let orphan = job.is_some_and(|job| job.is_orphan());
                    let lost = outcome.outcome == Happened::Lost;
                    ensure!(
                        lost == (orphan || starts == 0),
                        "{outcome:?} with a keeper that died: {orphan}"
                    );
                    self.tally.lost += u64::from(lost);
                    if !lost && !nobody_came(outcome) {
                        self.tally.own += 1;
                        ensure!(*outcome == plan.outcome, "another program's outcome");
                        let came = client.came();
                        ensure!(
                            came.map(|(_, to)| to) == plan.output,
                            "{came:?} came of {:?}",
                            plan.output
                        );
                        let whole =
                            client.errand == Errand::Watch || came.map(|(from, _)| from) == [0; 2];
                        ensure!(whole, "the beginning is missing: {came:?}");
                    }
                }
            }
        }
        Ok(())
    }
}
