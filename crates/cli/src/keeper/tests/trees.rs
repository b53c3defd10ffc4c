//! The end of a whole tree, with a cgroup and without.

use rustix::process::{Pid, Signal};

use super::roles::Options;
use super::world::{Running, World, lives, shell, wait_gone};
use crate::ipc::{Cause, Exited, JobSpec, Tree};

/// A program with children that left its group, its session and their parent,
/// one of which also cleared its environment. Says all their numbers.
const TREE: &str = "\
    trap '' TERM; \
    sleep 1000 & echo $!; \
    setsid sh -c 'echo $$; exec sleep 1000' & wait_line() { :; }; \
    (setsid sh -c 'sleep 1000 & echo $!; exit' &); \
    env -i /bin/sh -c 'echo $$; exec /bin/sleep 1000' & \
    sh -c 'trap \"\" TERM HUP INT; echo $$; while :; do sleep 1000; done' & \
    while :; do sleep 1000; done";
const NUMBERS: usize = 5;

fn numbers(job: &Running) -> Vec<Pid> {
    let number = || Pid::from_raw(job.line().parse().unwrap()).unwrap();
    (0..NUMBERS).map(|_| number()).collect()
}

fn ends_whole(mut world: World, expected: Tree) {
    for timeout_ms in [None, Some(300)] {
        let job = world.gate.run(JobSpec {
            timeout_ms,
            ..shell(TREE)
        });
        let pids = numbers(&job);
        assert!(pids.iter().all(|&pid| lives(pid)));
        let cause = match timeout_ms {
            Some(_) => Cause::TimedOut,
            None => Cause::Disconnected,
        };
        if timeout_ms.is_none() {
            world.gate.end(job.id, cause, Signal::HUP);
        }
        let (_, told, tree) = world.gate.ended(job.id);
        assert_eq!((told, tree), (Some(cause), expected));
        pids.into_iter().for_each(wait_gone);
        // Nothing holds the pipes any more.
        job.output();
    }
}

#[test]
fn a_tree_in_a_cgroup_ends_exactly() {
    let world = World::new();
    if world.cgroup().is_none() {
        // No cgroup can be made here; the walk is tested below.
        return;
    }
    ends_whole(world, Tree::Exact);
}

#[test]
fn a_tree_without_a_cgroup_ends_too() {
    ends_whole(World::rootless(Options::default()), Tree::BestEffort);
}

#[test]
fn what_is_left_of_a_tree_ends_after_its_main_process() {
    for mut world in [World::new(), World::rootless(Options::default())] {
        let text = "sleep 1000 & echo $!; (setsid sh -c 'sleep 1000 & echo $!; exit' &); sleep 0.1";
        let job = world.gate.run(shell(text));
        let number = || Pid::from_raw(job.line().parse().unwrap()).unwrap();
        let pids = [number(), number()];
        let ended = world.gate.ended(job.id);
        assert_eq!(ended, (Exited::Code(0), None, Tree::LeftAlone));
        assert!(pids.iter().all(|&pid| lives(pid)));
        world.gate.end(job.id, Cause::Disconnected, Signal::HUP);
        pids.into_iter().for_each(wait_gone);
    }
}

#[test]
fn a_fork_bomb_ends() {
    for mut world in [World::new(), World::rootless(Options::default())] {
        // Each of them forks on when it is asked to end.
        let text = "f() { trap 'f & f &' TERM; while :; do sleep 0.01; done; }; f & f & f & echo up; wait; wait";
        let job = world.gate.run(shell(text));
        assert_eq!(job.line(), "up");
        world.gate.end(job.id, Cause::Cancelled(15), Signal::TERM);
        let (_, cause, tree) = world.gate.ended(job.id);
        assert_eq!(cause, Some(Cause::Cancelled(15)));
        assert_ne!(tree, Tree::LeftAlone);
        // The pipe ends when the last of them is gone.
        job.output();
    }
}

#[test]
fn a_job_does_not_end_with_another() {
    for mut world in [World::new(), World::rootless(Options::default())] {
        let first = world.gate.run(shell("echo up; sleep 1000"));
        let second = world.gate.run(shell(
            "echo up; cat /dev/zero | head -c 1000000000000 >/dev/null",
        ));
        assert_eq!((first.line(), second.line()), ("up".into(), "up".into()));
        world.gate.end(first.id, Cause::Cancelled(9), Signal::KILL);
        world.gate.ended(first.id);
        assert!(lives(second.pid));
        world.gate.end(second.id, Cause::Cancelled(9), Signal::KILL);
        world.gate.ended(second.id);
    }
}

#[test]
fn hundreds_of_trees_end_together() {
    for mut world in [World::new(), World::rootless(Options::default())] {
        let text = "setsid sleep 1000 & trap '' HUP; echo up; while :; do sleep 1000; done";
        let jobs: Vec<_> = (0..200).map(|_| world.gate.run(shell(text))).collect();
        jobs.iter().for_each(|job| assert_eq!(job.line(), "up"));
        for job in &jobs {
            world.gate.end(job.id, Cause::Disconnected, Signal::HUP);
        }
        for job in &jobs {
            let (_, cause, tree) = world.gate.ended(job.id);
            assert_eq!(cause, Some(Cause::Disconnected));
            assert_ne!(tree, Tree::LeftAlone);
        }
        // The pipes end when the last of each tree is gone.
        jobs.iter().for_each(|job| drop(job.output()));
    }
}
