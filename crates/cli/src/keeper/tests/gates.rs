//! Gates that die, hang or misbehave, and the jobs that live on.

use std::net::TcpStream;
use std::os::fd::AsFd as _;

use rustix::fs::SeekFrom;
use rustix::process::Signal;

use super::roles::{GateOrder, Options};
use super::world::{Answer, World, job_id, lives, read_all, shell, spec, wait_gone};
use crate::ipc::{Cause, End, Exited, JobSpec, RefuseCode, Stdin, Stream, ToGate, ToKeeper, Tree};

fn address(world: &World) -> (String, u64) {
    let ToGate::Welcome {
        listeners,
        generation,
        certificate,
        ..
    } = &world.gate.welcome
    else {
        panic!("{:?}", world.gate.welcome);
    };
    assert_eq!(**certificate, *b"certificate");
    assert_eq!(listeners.len(), world.gate.listeners.len());
    let address = listeners[0].strip_prefix("tcp://").unwrap();
    (address.to_owned(), *generation)
}

#[test]
fn a_gate_holds_its_sockets_and_nothing_else() {
    for world in [
        World::with(Options {
            workers: 3,
            ..Options::default()
        }),
        World::rootless(Options::default()),
    ] {
        let inherited = &world.gate.inherited;
        assert_eq!(inherited.unexpected, [] as [&str; 0]);
        assert!(inherited.no_new_privs);
        assert_ne!(inherited.uid, 0);
        assert!(!inherited.groups.contains(&0));
    }
}

#[test]
fn a_killed_gate_is_replaced_with_the_same_sockets_and_jobs() {
    let mut world = World::new();
    let (address, generation) = address(&world);
    let mut piped = shell("read line; echo \"$line\" >&2; exit 5");
    piped.stdin = Stdin::Pipe;
    let waiting = world.gate.run(piped);
    let position = SeekFrom::Start(123);
    rustix::fs::seek(&waiting.spools[1], position).unwrap();
    let over = world.gate.run(shell("echo said; exit 3"));
    world.gate.ended(over.id);
    let closed = world.gate.run(spec(&["sleep", "1000"]));
    world.gate.tell(ToKeeper::CloseStream {
        job: closed.id,
        stream: Stream::Stdout,
    });
    world.gate.settle();
    for _ in 0..3 {
        world.gate.kill();
        // A connection in between waits in the backlog.
        TcpStream::connect(&address).unwrap();
        world.next_gate();
        world.gate.adopt(3);
    }
    assert_eq!(self::address(&world), (address, generation + 3));
    let adopted = std::mem::take(&mut world.gate.adopted);
    let of = |id| {
        adopted
            .iter()
            .find(|(snapshot, _)| snapshot.job == id)
            .unwrap()
    };
    let (snapshot, fds) = of(waiting.id);
    assert_eq!(
        snapshot.open,
        [Stream::Stdin, Stream::Stdout, Stream::Stderr]
    );
    assert_eq!(snapshot.spools, snapshot.open);
    // The position is the memfd's, not a gate's.
    let here = SeekFrom::Current(0);
    assert_eq!(rustix::fs::seek(&fds[4], here).unwrap(), 123);
    assert_eq!(
        (snapshot.pid, snapshot.ended),
        (waiting.pid.as_raw_pid(), None)
    );
    assert_eq!(
        (snapshot.uid, snapshot.connection),
        (rustix::process::geteuid().as_raw(), 1)
    );
    // What the first gate never read is there for this one.
    let (snapshot, fds_over) = of(over.id);
    let End {
        exited,
        cause,
        tree,
        ..
    } = snapshot.ended.unwrap();
    assert_eq!(
        (exited, cause, tree),
        (Exited::Code(3), None, Tree::LeftAlone)
    );
    assert_eq!(snapshot.open, [Stream::Stdout, Stream::Stderr]);
    assert_eq!(read_all(fds_over[0].as_fd()), b"said\n");
    assert_eq!(of(closed.id).0.open, [Stream::Stderr]);
    assert_eq!(of(closed.id).0.spools, [Stream::Stdout, Stream::Stderr]);
    assert_eq!(of(closed.id).1.len(), 3);
    // The job goes on with the new gate.
    rustix::io::write(&fds[0], b"hello\n").unwrap();
    assert_eq!(world.gate.ended(waiting.id).0, Exited::Code(5));
    assert_eq!(read_all(fds[2].as_fd()), b"hello\n");
    // A released job is not told of again.
    world.gate.tell(ToKeeper::Released { job: over.id });
    world.gate.tell(ToKeeper::Released { job: waiting.id });
    world.gate.settle();
    world.gate.kill();
    world.next_gate();
    world.gate.adopt(1);
    assert_eq!(world.gate.adopted[0].0.job, closed.id);
    world.gate.end(closed.id, Cause::Disconnected, Signal::KILL);
    world.gate.ended(closed.id);
}

#[test]
fn grants_end_with_their_gate() {
    let mut world = World::new();
    let grant = world.gate.authenticate(1, "").unwrap().token;
    world.gate.kill();
    world.next_gate();
    let request = world.gate.request();
    world.gate.tell(ToKeeper::Start {
        request,
        grant,
        job: job_id(),
        spec: crate::ipc::SpecPlace::Inline(spec(&["true"])),
    });
    let answer = world.gate.answer(request, false);
    assert!(matches!(answer, Answer::Refused(RefuseCode::NoGrant)));
}

#[test]
fn a_gate_that_ends_by_itself_is_replaced_too() {
    let mut world = World::new();
    let job = world.gate.run(spec(&["sleep", "1000"]));
    for status in [0, 1] {
        world.gate.order(&GateOrder::Exit(status));
        world.next_gate();
        world.gate.adopt(1);
    }
    assert!(lives(job.pid));
}

#[test]
fn a_gate_that_breaks_the_protocol_is_replaced() {
    let mut world = World::new();
    for bytes in [&b"garbage"[..], &[0xff; 100], &[0]] {
        let gate = world.gate.pid;
        rustix::net::send(
            &world.gate.workers[0],
            bytes,
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
        wait_gone(gate);
        world.next_gate();
    }
    let gate = world.gate.pid;
    world.gate.tell(ToKeeper::Sign {
        message: b"x".to_vec().into(),
    });
    wait_gone(gate);
    world.next_gate();
    let gate = world.gate.pid;
    world.gate.tell(ToKeeper::Ready { version: 999 });
    wait_gone(gate);
    world.next_gate();
    let job = world.gate.run(spec(&["true"]));
    assert_eq!(world.gate.ended(job.id).0, Exited::Code(0));
}

#[test]
fn a_gate_that_reads_nothing_holds_up_only_itself() {
    let mut world = World::new();
    world.gate.authenticate(1, "").unwrap();
    let grant = world.gate.authenticate(2, "").unwrap().token;
    // Far more answers than the socket takes, each with descriptors.
    let ids: Vec<_> = (0..600).map(|_| job_id()).collect();
    let mut requests = Vec::new();
    let sender = world.gate.workers[0].try_clone().unwrap();
    for &job in &ids {
        let request = world.gate.request();
        requests.push(request);
        let mut spec = spec(&["true"]);
        spec.connection = 2;
        let start = ToKeeper::Start {
            request,
            grant,
            job,
            spec: crate::ipc::SpecPlace::Inline(spec),
        };
        // The keeper takes some hundred and then waits for its answers to be read.
        rustix::io::ioctl_fionbio(&sender, true).unwrap();
        let sent = crate::ipc::packet::send(&sender, &start, &[]);
        rustix::io::ioctl_fionbio(&sender, false).unwrap();
        if sent.is_err() {
            requests.pop();
            break;
        }
    }
    assert!(requests.len() > 50, "{}", requests.len());
    for (request, id) in requests.into_iter().zip(ids) {
        let answer = world.gate.answer(request, false);
        assert!(matches!(answer, Answer::Started(_)), "{answer:?}");
        assert_eq!(world.gate.ended(id).0, Exited::Code(0));
    }
}

#[test]
fn descriptors_that_run_out_fail_a_start_and_nothing_else() {
    let mut world = World::with(Options {
        nofile: Some(64),
        ..Options::default()
    });
    let mut jobs = Vec::new();
    let failed = loop {
        match world.gate.start_as("", job_id(), spec(&["sleep", "1000"])) {
            Answer::Started(job) => jobs.push(job),
            other => break other,
        }
        assert!(jobs.len() < 64);
    };
    let exhausted = match &failed {
        Answer::NotStarted(why) => {
            matches!(why, crate::ipc::NotStarted::Resources { errno } if *errno == libc::EMFILE)
        }
        Answer::Refused(code) => *code == RefuseCode::OutOfResources,
        Answer::Started(_) => false,
    };
    assert!(exhausted, "{failed:?}");
    assert!(jobs.len() > 3, "{}", jobs.len());
    let first = jobs.remove(0);
    world.gate.end(first.id, Cause::Cancelled(9), Signal::KILL);
    assert_eq!(world.gate.ended(first.id).1, Some(Cause::Cancelled(9)));
    world.gate.tell(ToKeeper::Released { job: first.id });
    let job = world.gate.run(spec(&["true"]));
    assert_eq!(world.gate.ended(job.id).0, Exited::Code(0));
    // A gate can be replaced even now.
    world.gate.tell(ToKeeper::Released { job: job.id });
    world.gate.settle();
    world.gate.kill();
    world.next_gate();
    world.gate.adopt(jobs.len());
}

#[test]
fn a_job_that_started_while_the_gate_died_is_adopted() {
    let mut world = World::new();
    world.gate.authenticate(1, "").unwrap();
    // Each gate that dies soon is followed more slowly.
    for round in 0..6 {
        let grant = world.gate.authenticate(1, "").unwrap().token;
        let job = job_id();
        let request = world.gate.request();
        let spec = JobSpec {
            timeout_ms: Some(60_000),
            ..spec(&["sleep", "1000"])
        };
        world.gate.tell(ToKeeper::Start {
            request,
            grant,
            job,
            spec: crate::ipc::SpecPlace::Inline(spec),
        });
        world.gate.kill();
        world.next_gate();
        // It may never have been read; what was started must be told.
        let found = loop {
            world.gate.settle();
            let count = world.gate.kept_adoptions();
            world.gate.adopt(count);
            if world
                .gate
                .adopted
                .iter()
                .any(|(snapshot, _)| snapshot.job == job)
            {
                break true;
            }
            let journal = std::fs::read(world.state().join("journal")).unwrap();
            let id = job.as_bytes();
            if !journal.windows(16).any(|window| window == id) {
                break false;
            }
        };
        if found {
            world.gate.end(job, Cause::Disconnected, Signal::KILL);
            world.gate.ended(job);
            world.gate.tell(ToKeeper::Released { job });
        }
        assert_eq!(
            world.gate.adopted.len(),
            usize::from(found),
            "round {round}"
        );
        world.gate.settle();
    }
}

#[test]
fn each_worker_hears_of_its_own_jobs() {
    let mut world = World::with(Options {
        workers: 2,
        ..Options::default()
    });
    let grant = world.gate.authenticate(1, "").unwrap().token;
    let start = |request, job| ToKeeper::Start {
        request,
        grant,
        job,
        spec: crate::ipc::SpecPlace::Inline(spec(&["sleep", "1000"])),
    };
    let (first, second) = (job_id(), job_id());
    let send = |world: &World, worker: usize, message: &ToKeeper| {
        crate::ipc::packet::send(&world.gate.workers[worker], message, &[]).unwrap();
    };
    send(&world, 1, &start(5, second));
    let (answer, fds) = world.gate.receive(1);
    assert!(matches!(answer, ToGate::Started { request: 5, job, .. } if job == second));
    assert_eq!(fds.len(), 4);
    send(&world, 0, &start(6, first));
    assert!(matches!(world.gate.answer(6, false), Answer::Started(_)));
    // Whoever asks for its end, the worker that started it is told.
    world.gate.end(second, Cause::Disconnected, Signal::KILL);
    let (ended, _) = world.gate.receive(1);
    assert!(matches!(ended, ToGate::Ended { job, .. } if job == second));
    // After the gate's death all of it is the first worker's.
    world.gate.kill();
    world.next_gate();
    world.gate.adopt(2);
    world.gate.end(first, Cause::Disconnected, Signal::KILL);
    world.gate.ended(first);
}
