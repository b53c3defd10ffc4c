//! Many detached jobs through kill -9 of the gate and an upgrade: each tells its true outcome.
//!
//! A seed says what each one writes, when it ends and how. `tools/detached --jobs N --seed N` runs more of them.

use std::fs::File;
use std::io::Write as _;

use bowline_proto::frame::Kind;
use serde_json::{Value, json};

use super::{KILL, detach};
use crate::faults::Random;
use crate::hostile::raw::{Raw, job, message};
use crate::hostile::witness::gate_of;
use crate::lifecycle::{jobs, outcome, until_jobs};
use crate::resume::{attach, raw, start};
use crate::server::{Server, signal_process};
use crate::upgrade::{Replaceable, Signal};

/// Jobs of one connection.
const PER_CONNECTION: usize = 250;
/// Lines of each stream; a window holds them all.
const LINES_MAX: u64 = 10_000;

/// When a job ends.
const MOMENTS: [&str; 4] = ["at once", "at the kill", "at the upgrade", "behind both"];

/// What a job does.
#[derive(Debug)]
struct Plan {
    number: u64,
    moment: usize,
    /// Lines on stdout, the second time behind the signal, and then on stderr.
    lines: [u64; 3],
    /// Its status, or the signal that it ends itself with.
    ending: Result<u64, u64>,
}

/// The lines that a part of a stream has.
fn lines(from: u64, count: u64) -> String {
    (from..from + count).map(|n| format!("{n}\n")).collect()
}

impl Plan {
    fn new(number: u64, random: &mut Random) -> Plan {
        Plan {
            number,
            moment: random.below(MOMENTS.len() as u64) as usize,
            lines: std::array::from_fn(|_| 1 + random.below(LINES_MAX)),
            ending: match random.below(5) {
                0 => Err([1, 9, 10, 15][random.below(4) as usize]),
                1 => Ok(0),
                _ => Ok(random.below(256)),
            },
        }
    }

    fn stdout(&self) -> String {
        let [before, behind, _] = self.lines;
        lines(self.number, before) + &lines(self.number, behind)
    }

    fn stderr(&self) -> String {
        lines(self.number, self.lines[2])
    }

    fn script(&self, signals: &[Signal]) -> String {
        let seq = |count| format!("seq {} {}", self.number, self.number + count - 1);
        let [before, behind, errors] = self.lines.map(seq);
        let wait = signals[self.moment].0.display();
        let end = match self.ending {
            Ok(code) => format!("exit {code}"),
            Err(signal) => format!("kill -{signal} $$"),
        };
        format!("{before}; read x < {wait}; {behind}; {errors} >&2; {end}")
    }

    /// Requires that this is what became of it.
    fn check(&self, told: &Value) {
        let (word, code, signal) = match self.ending {
            Ok(code) => ("exited", json!(code), Value::Null),
            Err(signal) => ("signaled", Value::Null, json!(signal)),
        };
        let found = (&told["outcome"], &told["code"], &told["signal"]);
        assert_eq!(found, (&json!(word), &code, &signal), "{self:?}");
        assert_eq!(told.get("error"), None, "{self:?}");
    }
}

/// As many as wait for a signal go on, also those that come to it a moment later, as long as this lives.
fn let_go(signals: &[Signal], plans: &[Plan], moment: usize) -> File {
    let waiting = plans.iter().filter(|plan| plan.moment == moment).count();
    let mut pipe = File::options()
        .read(true)
        .write(true)
        .open(&signals[moment].0)
        .unwrap();
    // The shell takes byte by byte, so each of them takes one.
    pipe.write_all(&vec![b'\n'; waiting]).unwrap();
    pipe
}

/// Starts them, and leaves.
fn leave_all(server: &Server, plans: &[Plan], signals: &[Signal]) {
    for plans in plans.chunks(PER_CONNECTION) {
        let mut raw = raw(server);
        for plan in plans {
            let channel = plan.number as u32;
            raw.send(&start(
                channel,
                plan.number,
                &plan.script(signals),
                &detach(),
            ));
            raw.until(Kind::Started, channel);
        }
        raw.send(&message(Kind::Bye, 0, &json!({})));
        raw.until_closed();
    }
}

/// Both streams of a job and its outcome.
fn read_all(raw: &mut Raw, number: u64) -> ([Vec<u8>; 2], Value) {
    let channel = number as u32;
    raw.send(&attach(channel, number, &json!({"stdin": false})));
    let mut streams = [Vec::new(), Vec::new()];
    loop {
        let said = raw.next().expect("closed before the outcome");
        match said.kind {
            _ if said.channel != channel => {}
            Kind::Stdout => streams[0].extend(&said.payload),
            Kind::Stderr => streams[1].extend(&said.payload),
            Kind::Exit => return (streams, said.header),
            Kind::Refused => panic!("job {number}: {said:?}"),
            _ => {}
        }
    }
}

fn check_all(server: &Server, plans: &[Plan]) {
    for plans in plans.chunks(PER_CONNECTION) {
        let mut raw = raw(server);
        for plan in plans {
            let ([stdout, stderr], exit) = read_all(&mut raw, plan.number);
            assert!(stdout == plan.stdout().as_bytes(), "{plan:?}");
            assert!(stderr == plan.stderr().as_bytes(), "{plan:?}");
            let len = |stream: &[u8]| json!(stream.len());
            assert_eq!(exit["stdout"], len(&stdout), "{plan:?}");
            assert_eq!(exit["stderr"], len(&stderr), "{plan:?}");
            plan.check(&exit);
        }
    }
}

/// The record says the same, and has each of them once.
fn check_record(server: &Server, plans: &[Plan]) {
    until_jobs(server, |rows| rows.iter().all(|row| outcome(row) != "none"));
    let rows = jobs(server);
    assert_eq!(rows.len(), plans.len());
    for plan in plans {
        let id = json!(job(plan.number));
        let mut of_it = rows.iter().filter(|row| row["job"] == id);
        plan.check(&of_it.next().unwrap()["outcome"]);
        assert_eq!(of_it.next(), None);
    }
}

fn running(server: &Server) -> usize {
    let rows = jobs(server);
    rows.iter().filter(|row| outcome(row) == "none").count()
}

#[test]
fn each_of_many_tells_its_true_outcome() {
    let number = |name, default| {
        let given = std::env::var(name).ok().and_then(|it| it.parse().ok());
        given.unwrap_or(default)
    };
    let (count, seed) = (
        number("BOWLINE_DETACHED_JOBS", 60),
        number("BOWLINE_SEED", 1),
    );
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let plans: Vec<_> = (1..=count).map(|n| Plan::new(n, &mut random)).collect();
    let at = |moment| plans.iter().filter(|plan| plan.moment == moment).count();
    let host = Replaceable::with(|command, dir| {
        let socket = format!("unix:{}", dir.join("socket").display());
        command.args(["--listen", &socket]);
    });
    let server = &host.server;
    let signals = MOMENTS.map(|name| Signal::new(server, name.split(' ').next_back().unwrap()));
    let mut held = vec![let_go(&signals, &plans, 0)];
    leave_all(server, &plans, &signals);
    let before = running(server);
    assert!(before >= at(1) + at(2) + at(3));
    held.push(let_go(&signals, &plans, 1));
    signal_process(gate_of(server), KILL);
    // There is a gate again when it answers.
    let behind_kill = running(server);
    assert!(behind_kill >= at(2) + at(3));
    held.push(let_go(&signals, &plans, 2));
    host.upgrade();
    let behind_upgrade = running(server);
    assert!(behind_upgrade >= at(3));
    held.push(let_go(&signals, &plans, 3));
    check_all(server, &plans);
    check_record(server, &plans);
    // And once more, long after, to another gate.
    signal_process(gate_of(server), KILL);
    check_all(server, &plans);
    let bytes: usize = plans
        .iter()
        .map(|plan| plan.stdout().len() + plan.stderr().len())
        .sum();
    eprintln!(
        "{count} jobs, {bytes} bytes: {before} ran before the kill, {behind_kill} behind it, {behind_upgrade} behind the upgrade; all outcomes are true"
    );
}
