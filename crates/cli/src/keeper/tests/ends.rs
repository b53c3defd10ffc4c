//! How jobs end: their outcome against what they leave behind.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::roles::Options;
use super::world::{World, lives, shell, spec, wait_gone};
use crate::ipc::{Cause, Exited, JobSpec, Scope, ToKeeper, Tree};

fn killed(signal: Signal) -> Exited {
    Exited::Signal {
        signal: signal.as_raw(),
        core_dumped: false,
    }
}

#[test]
fn a_background_child_that_holds_stdout_does_not_hold_the_outcome() {
    let mut world = World::new();
    let job = world.gate.run(shell("sleep 1000 & echo $!"));
    let child = rustix::process::Pid::from_raw(job.line().parse().unwrap()).unwrap();
    let ended = world.gate.ended(job.id);
    assert_eq!(ended, (Exited::Code(0), None, Tree::LeftAlone));
    assert!(lives(child));
    // Asked for afterwards, the rest of the tree ends too.
    world.gate.end(job.id, Cause::Cancelled(2), Signal::INT);
    wait_gone(child);
    assert_eq!(job.output(), b"");
}

#[test]
fn a_timeout_ends_a_program_that_listens_to_sigterm() {
    let mut world = World::with(Options {
        kill_grace_ms: 60_000,
        ..Options::default()
    });
    let job = world.gate.run(JobSpec {
        timeout_ms: Some(100),
        ..shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done")
    });
    assert_eq!(job.line(), "up");
    let (exited, cause, _) = world.gate.ended(job.id);
    assert_eq!((exited, cause), (Exited::Code(7), Some(Cause::TimedOut)));
}

#[test]
fn a_program_that_ignores_sigterm_is_killed_after_the_grace_time() {
    let mut world = World::with(Options {
        kill_grace_ms: 200,
        ..Options::default()
    });
    let job = world
        .gate
        .run(shell("trap '' TERM; echo up; while :; do sleep 1000; done"));
    assert_eq!(job.line(), "up");
    let begun = Instant::now();
    world.gate.end(job.id, Cause::Cancelled(15), Signal::TERM);
    let (exited, cause, _) = world.gate.ended(job.id);
    assert_eq!(
        (exited, cause),
        (killed(Signal::KILL), Some(Cause::Cancelled(15)))
    );
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

#[test]
fn the_first_cause_is_the_one_that_is_told() {
    let mut world = World::with(Options {
        kill_grace_ms: 60_000,
        ..Options::default()
    });
    let job = world
        .gate
        .run(shell("trap '' TERM; echo up; while :; do sleep 1000; done"));
    assert_eq!(job.line(), "up");
    world.gate.end(job.id, Cause::Cancelled(15), Signal::TERM);
    world.gate.end(job.id, Cause::Disconnected, Signal::KILL);
    let (exited, cause, _) = world.gate.ended(job.id);
    assert_eq!(
        (exited, cause),
        (killed(Signal::KILL), Some(Cause::Cancelled(15)))
    );
}

#[test]
fn a_program_that_was_stopped_can_still_be_ended() {
    let mut world = World::with(Options {
        kill_grace_ms: 60_000,
        ..Options::default()
    });
    let job = world.gate.run(spec(&["sleep", "1000"]));
    world.gate.tell(ToKeeper::Signal {
        job: job.id,
        signal: libc::SIGSTOP,
        scope: Scope::Group,
    });
    world.gate.end(job.id, Cause::Disconnected, Signal::TERM);
    assert_eq!(world.gate.ended(job.id).0, killed(Signal::TERM));
}

#[test]
fn signals_go_to_the_group_or_to_the_whole_tree() {
    for mut world in [World::new(), World::rootless(Options::default())] {
        // The child in a session of its own only hears what the whole tree hears.
        let text = "trap 'echo main' USR1; \
            setsid sh -c 'trap \"echo other\" USR1; echo up; while :; do sleep 0.02; done' & \
            while :; do sleep 0.02; done";
        let job = world.gate.run(shell(text));
        assert_eq!(job.line(), "up");
        let signal = |scope| ToKeeper::Signal {
            job: job.id,
            signal: libc::SIGUSR1,
            scope,
        };
        world.gate.tell(signal(Scope::Group));
        assert_eq!(job.line(), "main");
        world.gate.tell(signal(Scope::Tree));
        let mut heard = [job.line(), job.line()];
        heard.sort();
        assert_eq!(heard, ["main", "other"]);
        world.gate.end(job.id, Cause::Cancelled(9), Signal::KILL);
        world.gate.ended(job.id);
    }
}

#[test]
fn real_time_signals_arrive_under_their_number() {
    let mut world = World::new();
    let job = world.gate.run(spec(&["sleep", "1000"]));
    world.gate.tell(ToKeeper::Signal {
        job: job.id,
        signal: 40,
        scope: Scope::Group,
    });
    let expected = Exited::Signal {
        signal: 40,
        core_dumped: false,
    };
    assert_eq!(world.gate.ended(job.id).0, expected);
    // Numbers that are no signals do nothing, and so do jobs that are not known.
    for signal in [0, -1, 65, i32::MAX] {
        let (job, scope) = (job.id, Scope::Tree);
        world.gate.tell(ToKeeper::Signal { job, signal, scope });
    }
    let nobody = super::world::job_id();
    world.gate.end(nobody, Cause::Disconnected, Signal::KILL);
    world.gate.tell(ToKeeper::Released { job: nobody });
    world.gate.settle();
}

#[test]
fn orphans_are_reaped_whatever_ended_them() {
    let mut world = World::new();
    let ways = ["exit 0", "kill -9 $$", "kill -40 $$"];
    let orphans = ways.map(|way| {
        let text = format!("setsid sh -c 'sleep 0.05; {way}' & echo $!");
        let job = world.gate.run(shell(&text));
        assert_eq!(world.gate.ended(job.id).0, Exited::Code(0));
        rustix::process::Pid::from_raw(job.line().parse().unwrap()).unwrap()
    });
    orphans.into_iter().for_each(wait_gone);
    // A zombie would still be there; it is the keeper's from the moment that its parent ended.
    let deadline = Instant::now() + Duration::from_secs(20);
    while orphans.into_iter().any(lives) {
        assert!(Instant::now() < deadline, "an orphan stays a zombie");
        std::thread::yield_now();
    }
}

#[test]
fn what_ended_by_itself_was_not_made_to() {
    let mut world = World::new();
    for _ in 0..50 {
        let job = world.gate.run(shell("exit 6"));
        wait_gone(job.pid);
        world.gate.end(job.id, Cause::Cancelled(15), Signal::TERM);
        let ended = world.gate.ended(job.id);
        assert_eq!(ended, (Exited::Code(6), None, Tree::LeftAlone));
    }
}
