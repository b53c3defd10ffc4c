//! The keeper's own life: beginning, reloading, draining, ending, and what the next one finds.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::roles::Options;
use super::world::{Answer, World, job_id, lives, shell, spec, wait_gone};
use crate::ipc::{Cause, Exited, RefuseCode, ToGate, ToKeeper};

#[test]
fn the_end_of_the_lifeline_ends_everything() {
    let mut world = World::new();
    let stubborn = world.gate.run(shell(
        "trap '' TERM HUP INT; echo up; while :; do sleep 1000; done",
    ));
    assert_eq!(stubborn.line(), "up");
    let left = world.gate.run(shell("setsid sleep 1000 & echo $!"));
    let child = rustix::process::Pid::from_raw(left.line().parse().unwrap()).unwrap();
    world.gate.ended(left.id);
    let gate = world.gate.pid;
    let cgroup = world.cgroup();
    assert!(world.cut().success());
    wait_gone(stubborn.pid);
    wait_gone(child);
    wait_gone(gate);
    assert!(cgroup.is_none_or(|folder| !folder.exists()));
}

#[test]
fn draining_lets_jobs_end_and_takes_no_new_ones() {
    let mut world = World::new();
    let job = world.gate.run(shell("echo up; sleep 0.3; exit 4"));
    assert_eq!(job.line(), "up");
    world.signal(Signal::TERM);
    let (deadline_ms, _) = world.gate.expect(|message| match message {
        ToGate::Drain { deadline_ms } => Some(*deadline_ms),
        _ => None,
    });
    assert_eq!(deadline_ms, 60_000);
    let answer = world.gate.start_as("", job_id(), spec(&["true"]));
    assert!(matches!(answer, Answer::Refused(RefuseCode::Draining)));
    assert_eq!(world.gate.ended(job.id).0, Exited::Code(4));
    // The gate ends when it has told its clients, and the keeper with it.
    world.gate.order(&super::roles::GateOrder::Exit(0));
    assert!(world.wait().success());
}

#[test]
fn what_does_not_end_in_time_is_ended() {
    let mut world = World::with(Options {
        drain_ms: 100,
        kill_grace_ms: 100,
        ..Options::default()
    });
    let job = world
        .gate
        .run(shell("trap '' TERM; echo up; while :; do sleep 1000; done"));
    assert_eq!(job.line(), "up");
    world.signal(Signal::INT);
    let (_, cause, _) = world.gate.ended(job.id);
    assert_eq!(cause, Some(Cause::Draining));
    world.gate.order(&super::roles::GateOrder::Exit(0));
    assert!(world.wait().success());
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut world = World::new();
    let job = world
        .gate
        .run(shell("trap '' TERM; echo up; while :; do sleep 1000; done"));
    assert_eq!(job.line(), "up");
    world.signal(Signal::TERM);
    world
        .gate
        .expect(|message| matches!(message, ToGate::Drain { .. }).then_some(()));
    world.signal(Signal::TERM);
    assert!(world.wait().success());
    wait_gone(job.pid);
}

#[test]
fn a_reload_reaches_the_gate_and_ends_nothing() {
    let mut world = World::new();
    let job = world.gate.run(spec(&["sleep", "1000"]));
    world.signal(Signal::HUP);
    let (config, _) = world.gate.expect(|message| match message {
        ToGate::Reload { config } => Some(config.clone()),
        _ => None,
    });
    assert_eq!(config.idle_timeout_ms, 77);
    assert!(lives(job.pid));
    // The next gate begins with it.
    world.gate.kill();
    world.next_gate();
    let ToGate::Welcome { config, .. } = &world.gate.welcome else {
        panic!("{:?}", world.gate.welcome);
    };
    assert_eq!(config.idle_timeout_ms, 77);
}

#[test]
fn two_keepers_do_not_share_a_state_directory() {
    let world = World::new();
    let mut second = world.second_keeper();
    assert_eq!(second.wait().unwrap().code(), Some(3));
    let log = world.log();
    assert!(log.contains("another bowline serve"), "{log}");
    assert!(
        log.contains(&world.keeper().as_raw_pid().to_string()),
        "{log}"
    );
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(world.state()), 0o700);
    assert_eq!(mode(world.state().join("journal")), 0o600);
}

/// Has the journal say that a job's deadline is over, as it is when nobody minded it.
fn let_time_run_out(state: &std::path::Path, job: bowline_proto::id::JobId) {
    use crate::keeper::journal::{Journal, KeeperRecord, Record, VERSION};
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let keeper = KeeperRecord {
        version: VERSION,
        pid: 1,
        boot_id: boot_id.trim().to_owned(),
        unix_ms: 1,
    };
    let mut journal = Journal::open(state, keeper).unwrap();
    let image = journal.job(job).unwrap().clone();
    let (pid, started) = image.pid.unwrap();
    let mut start = image.start;
    start.deadline_unix_ms = Some(start.unix_ms);
    journal.append(Record::Start(start)).unwrap();
    let spawned = Record::Spawned { job, pid, started };
    journal.append(spawned).unwrap();
}

#[test]
fn jobs_of_a_killed_keeper_are_found_and_their_outcome_is_lost() {
    let mut world = World::new();
    let polite = "trap 'exit 0' USR1; echo up; while :; do sleep 1000 & wait; done";
    let running = world.gate.run(shell(polite));
    assert_eq!(running.line(), "up");
    let tree = world.gate.run(shell("setsid sleep 1000 & echo $!; wait"));
    let left = rustix::process::Pid::from_raw(tree.line().parse().unwrap()).unwrap();
    let timed = world.gate.run(spec(&["sleep", "1000"]));
    let over = world.gate.run(shell("exit 3"));
    world.gate.ended(over.id);
    let gone = world.gate.run(spec(&["sleep", "1000"]));
    let released = world.gate.run(spec(&["true"]));
    world.gate.ended(released.id);
    world.gate.tell(ToKeeper::Released { job: released.id });
    world.gate.settle();
    let gate = world.gate.pid;
    world.signal(Signal::KILL);
    world.wait();
    // The jobs are not hurt by the death of the keeper: the gate holds their pipes.
    assert!(lives(running.pid) && lives(gate));
    rustix::process::kill_process(gone.pid, Signal::KILL).unwrap();
    wait_gone(gone.pid);
    let_time_run_out(&world.state(), timed.id);
    world.restart();
    world.gate.adopt(5);
    let adopted = std::mem::take(&mut world.gate.adopted);
    let of = |id| {
        let found = adopted.iter().find(|(snapshot, _)| snapshot.job == id);
        let (snapshot, fds) = found.unwrap();
        assert!(fds.is_empty() && snapshot.open.is_empty());
        snapshot
    };
    for job in [&running, &tree] {
        let snapshot = of(job.id);
        assert_eq!((snapshot.pid, snapshot.ended), (job.pid.as_raw_pid(), None));
        assert!(snapshot.kept);
    }
    assert_eq!(of(gone.id).ended.unwrap().exited, Exited::Lost);
    assert_eq!(of(over.id).ended.unwrap().exited, Exited::Code(3));
    // None of them starts again, released or not.
    let refused = |answer| matches!(answer, Answer::Refused(RefuseCode::DuplicateJob));
    for id in [running.id, gone.id, over.id, released.id] {
        assert!(refused(world.gate.start_as("", id, spec(&["true"]))));
        world.gate.tell(ToKeeper::Released { job: id });
        assert!(refused(world.gate.start_as("", id, spec(&["true"]))));
    }
    // They are signalled, timed and ended, and nobody says how they ended.
    let (scope, signal) = (crate::ipc::Scope::Group, Signal::USR1.as_raw());
    world.gate.tell(ToKeeper::Signal {
        job: running.id,
        signal,
        scope,
    });
    assert_eq!(world.gate.ended(running.id).0, Exited::Lost);
    let (exited, cause, _) = world.gate.ended(timed.id);
    assert_eq!((exited, cause), (Exited::Lost, Some(Cause::TimedOut)));
    world.gate.end(tree.id, Cause::Cancelled(15), Signal::TERM);
    assert_eq!(world.gate.ended(tree.id).0, Exited::Lost);
    wait_gone(left);
    for id in [running.id, timed.id, tree.id] {
        world.gate.tell(ToKeeper::Released { job: id });
    }
    world.gate.settle();
    world.cut();
    world.restart();
    world.gate.settle();
    assert_eq!(world.gate.kept_adoptions(), 0);
}

#[test]
fn a_gate_that_dies_at_once_is_started_ever_more_slowly() {
    let mut world = World::broken(Options {
        broken_gate: true,
        ..Options::default()
    });
    let begun = Instant::now();
    let mut starts = 0;
    while starts < 5 {
        starts = world.log().matches("the gate ended").count();
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", world.log());
        std::thread::yield_now();
    }
    // At once, then after 50, 100 and 200 ms.
    assert!(begun.elapsed() >= Duration::from_millis(350));
    assert!(world.cut().success());
}

#[test]
fn the_service_manager_is_told() {
    let mut world = World::notified();
    let told = |world: &World| {
        let mut buffer = [0; 1024];
        let count = world.notify_socket().recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    assert_eq!(told(&world).trim(), "READY=1");
    world.signal(Signal::HUP);
    let reloading = told(&world);
    assert!(reloading.contains("RELOADING=1"), "{reloading}");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert_eq!(told(&world).trim(), "READY=1");
    world
        .gate
        .expect(|message| matches!(message, ToGate::Reload { .. }).then_some(()));
    world.signal(Signal::TERM);
    assert_eq!(told(&world).trim(), "STOPPING=1");
    world.gate.order(&super::roles::GateOrder::Exit(0));
    assert!(world.wait().success());
}

/// The socket of a service manager.
pub(super) fn notify_socket(folder: &std::path::Path) -> UnixDatagram {
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    socket
}

#[test]
fn a_keeper_says_who_it_is() {
    use crate::ipc::Question;
    use crate::keeper::state;
    use crate::keeper::takeover::ask;
    let mut world = World::new();
    world.gate.run(spec(&["sleep", "1000"]));
    let over = world.gate.run(shell("exit 3"));
    world.gate.ended(over.id);
    let answer = ask(&world.state(), Question::Version).unwrap();
    assert_eq!(answer.pid, world.keeper().as_raw_pid());
    assert_eq!((answer.state, answer.jobs), (state::VERSION, 2));
    // Whoever says nothing, or nonsense, holds up nobody.
    let silent: Vec<_> = (0..20).map(|_| world.takeover_socket()).collect();
    let _ = rustix::net::send(&silent[0], b"nonsense", rustix::net::SendFlags::empty());
    world.gate.settle();
    drop(silent);
    world.gate.settle();
    assert_eq!(ask(&world.state(), Question::Version).unwrap(), answer);
}
