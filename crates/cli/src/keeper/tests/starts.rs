//! How jobs start, and what a program finds itself in.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt;

use serde_bytes::ByteBuf;

use super::roles::{Options, SIGNATURE};
use super::world::{Answer, World, job_id, lives, read_all, sealed, shell, spec};
use crate::ipc::{
    Exited, GrantToken, JobSpec, NotStarted, RefuseCode, SpecPlace, Stdin, ToGate, ToKeeper, Tree,
    packet,
};

#[test]
fn a_program_gets_its_exact_arguments_and_says_how_it_ended() {
    let mut world = World::new();
    let job = world
        .gate
        .run(spec(&["printf", "%s\\n", "a b", "*", "$HOME", "", "'"]));
    assert!(job.non_blocking);
    assert_eq!(job.output(), b"a b\n*\n$HOME\n\n'\n");
    assert_eq!(read_all(job.stderr.as_fd()), b"");
    let ended = world.gate.ended(job.id);
    assert_eq!(ended, (Exited::Code(0), None, Tree::LeftAlone));
}

#[test]
fn every_status_and_every_signal_is_told_as_it_was() {
    let mut world = World::new();
    for status in [0, 1, 2, 126, 127, 128, 137, 254, 255] {
        let job = world.gate.run(shell(&format!("exit {status}")));
        assert_eq!(world.gate.ended(job.id).0, Exited::Code(status));
    }
    // Those that stop, continue or are ignored by default end nothing.
    let ends_nothing = [17, 18, 19, 20, 21, 22, 23, 28];
    for signal in (1..=64).filter(|n| !ends_nothing.contains(n) && ![32, 33].contains(n)) {
        let job = world
            .gate
            .run(shell(&format!("kill -{signal} $$; exit 99")));
        match world.gate.ended(job.id).0 {
            Exited::Signal { signal: found, .. } => assert_eq!(found, signal),
            other => panic!("signal {signal}: {other:?}"),
        }
    }
}

#[test]
fn a_start_that_fails_says_why() {
    let mut world = World::new();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let file = |name: &str, text: &[u8], mode: u32| {
        let path = folder.path().join(name);
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let gate = &mut world.gate;
    let not = |errno| NotStarted::NotExecutable { errno };
    assert_eq!(
        gate.run_not(spec(&["no-such-program"])),
        NotStarted::NotFound
    );
    assert_eq!(gate.run_not(spec(&["/no/such"])), NotStarted::NotFound);
    assert_eq!(gate.run_not(spec(&[""])), NotStarted::NotFound);
    assert_eq!(gate.run_not(spec(&["/etc"])), not(libc::EACCES));
    assert_eq!(gate.run_not(spec(&["/etc/passwd/x"])), NotStarted::NotFound);
    let plain = file("plain", b"text", 0o644);
    assert_eq!(gate.run_not(spec(&[&plain])), not(libc::EACCES));
    let interpreter = file("interpreter", b"#!/no/such\n", 0o755);
    assert_eq!(gate.run_not(spec(&[&interpreter])), NotStarted::NotFound);
    let long = "x".repeat(200_000);
    assert_eq!(gate.run_not(spec(&["echo", &long])), NotStarted::TooLong);
    for (cwd, errno) in [("/no/such", libc::ENOENT), ("/etc/passwd", libc::ENOTDIR)] {
        let mut with = spec(&["true"]);
        with.cwd = Some(ByteBuf::from(cwd));
        assert_eq!(gate.run_not(with), NotStarted::Directory { errno });
    }
    // A text without #! runs in the shell, as execvp(3) has it, with its arguments.
    let script = file("script", b"echo \"$0 $# $1\"\n", 0o755);
    let job = gate.run(spec(&[&script, "a b"]));
    assert_eq!(job.output(), format!("{script} 1 a b\n").into_bytes());
    assert_eq!(gate.ended(job.id).0, Exited::Code(0));
    // One that may be read but not executed does not hide one that may.
    let mut with = spec(&["plain"]);
    with.env.push(ByteBuf::from(format!(
        "PATH={}:/usr/bin",
        folder.path().display()
    )));
    assert_eq!(gate.run_not(with), not(libc::EACCES));
}

#[test]
fn a_program_starts_clean() {
    let mut world = World::new();
    let job = world.gate.run(spec(&["cat", "/proc/self/status"]));
    let text = String::from_utf8(job.output()).unwrap();
    let field = |name: &str| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap().trim().to_owned()
    };
    for name in ["SigBlk", "SigIgn", "SigPnd", "ShdPnd"] {
        assert_eq!(field(name), "0000000000000000", "{name}");
    }
    // A session and a group of its own.
    let pid = job.pid.as_raw_pid().to_string();
    assert_eq!(field("NSsid"), pid);
    assert_eq!(field("NSpgid"), pid);
    assert_eq!(field("Umask"), umask());
    let job = world.gate.run(spec(&["ls", "/proc/self/fd"]));
    // The last is the list itself.
    assert_eq!(job.output(), b"0\n1\n2\n3\n");
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let job = world.gate.run(shell("ulimit -n"));
    assert_eq!(job.output(), format!("{}\n", limit.unwrap()).into_bytes());
}

/// This process's mask.
fn umask() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.unwrap().trim().to_owned()
}

#[test]
fn the_environment_is_what_the_policy_says_and_the_cookie() {
    let mut world = World::new();
    let id = job_id();
    let mut with = spec(&["env", "-0"]);
    with.env.push(ByteBuf::from("A=b\nc"));
    let Answer::Started(job) = world.gate.start_as("", id, with) else {
        panic!("not started");
    };
    let output = String::from_utf8(job.output()).unwrap();
    let found: BTreeMap<_, _> = output
        .split_terminator('\0')
        .filter_map(|var| var.split_once('='))
        .collect();
    let id = id.to_string();
    let expected = [
        ("PATH", "/usr/bin:/bin"),
        ("BOWLINE_JOB", &*id),
        ("A", "b\nc"),
    ];
    assert_eq!(found, BTreeMap::from(expected));
    world.gate.ended(job.id);
}

#[test]
fn another_account_is_taken_on_whole() {
    let mut world = World::new();
    if !rustix::process::geteuid().is_root() {
        // Only root can; the same start must fail for everybody else.
        let answer = world.gate.start_as("54322:54323", job_id(), spec(&["id"]));
        assert!(
            matches!(answer, Answer::NotStarted(NotStarted::User { .. })),
            "{answer:?}"
        );
        return;
    }
    let script = "id -u; id -g; id -G; grep -E '^(Uid|Gid|CapEff|CapPrm):' /proc/self/status";
    let Answer::Started(job) = world.gate.start_as("54322:54323", job_id(), shell(script)) else {
        panic!("not started");
    };
    let output = String::from_utf8(job.output()).unwrap();
    let expected = "54322\n54323\n54323 54324\n\
        Uid:\t54322\t54322\t54322\t54322\nGid:\t54323\t54323\t54323\t54323\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n";
    assert_eq!(output, expected);
    world.gate.ended(job.id);
    // What that account may not enter is no working directory.
    let mut with = spec(&["true"]);
    with.cwd = Some(ByteBuf::from("/root"));
    if std::fs::metadata("/root").is_ok_and(|meta| meta.permissions().mode() & 0o1 == 0) {
        let answer = world.gate.start_as("54322:54323", job_id(), with);
        let errno = libc::EACCES;
        assert!(
            matches!(answer, Answer::NotStarted(NotStarted::Directory { errno: e }) if e == errno),
            "{answer:?}"
        );
    }
}

#[test]
fn a_forced_command_runs_instead_and_knows_what_was_asked() {
    let mut world = World::new();
    let user = "forced printf '%s|' \"$SSH_ORIGINAL_COMMAND\" \"$#\"";
    let Answer::Started(job) = world.gate.start_as(user, job_id(), spec(&["ls", "a b"])) else {
        panic!("not started");
    };
    assert_eq!(job.output(), b"ls 'a b'|0|");
    world.gate.ended(job.id);
    let Answer::Started(job) = world.gate.start_as(user, job_id(), shell("a; b 'c")) else {
        panic!("not started");
    };
    assert_eq!(job.output(), b"a; b 'c|0|");
}

#[test]
fn stdin_ends_when_both_ends_of_it_are_closed() {
    let mut world = World::new();
    let piped = |argv: &[&str]| JobSpec {
        stdin: Stdin::Pipe,
        ..spec(argv)
    };
    let mut job = world.gate.run(piped(&["cat"]));
    assert!(job.non_blocking);
    let stdin = job.stdin.take().unwrap();
    rustix::io::write(&stdin, b"text").unwrap();
    drop(stdin);
    // The keeper still holds its own: only its closing is the end.
    world.gate.tell(ToKeeper::CloseStream {
        job: job.id,
        stream: crate::ipc::Stream::Stdin,
    });
    assert_eq!(job.output(), b"text");
    assert_eq!(world.gate.ended(job.id).0, Exited::Code(0));
    let job = world.gate.run(spec(&["cat"]));
    assert_eq!(job.output(), b"");
    assert_eq!(world.gate.ended(job.id).0, Exited::Code(0));
}

#[test]
fn closing_stdout_on_both_sides_is_a_broken_pipe() {
    let mut world = World::new();
    let job = world.gate.run(spec(&["yes"]));
    let id = job.id;
    drop(job);
    world.gate.tell(ToKeeper::CloseStream {
        job: id,
        stream: crate::ipc::Stream::Stdout,
    });
    let expected = Exited::Signal {
        signal: libc::SIGPIPE,
        core_dumped: false,
    };
    assert_eq!(world.gate.ended(id).0, expected);
}

#[test]
fn nothing_starts_without_a_grant_of_its_connection() {
    let mut world = World::new();
    let gate = &mut world.gate;
    let granted = gate.authenticate(1, "").unwrap();
    assert!(gate.authenticate(3, "deny").is_none());
    let mut start = |grant, connection| {
        let request = gate.request();
        let mut spec = spec(&["true"]);
        spec.connection = connection;
        gate.tell(ToKeeper::Start {
            request,
            grant,
            job: job_id(),
            spec: SpecPlace::Inline(spec),
        });
        gate.answer(request, false)
    };
    let refused = |answer| matches!(answer, Answer::Refused(RefuseCode::NoGrant));
    assert!(refused(start(GrantToken([0; 16]), 1)));
    assert!(refused(start(granted.token, 2)));
    assert!(matches!(start(granted.token, 1), Answer::Started(_)));
    world.gate.tell(ToKeeper::Disconnected { connection: 1 });
    let answer = world.gate.start_as("", job_id(), spec(&["true"]));
    assert!(refused(answer));
}

#[test]
fn the_peer_of_a_unix_socket_is_asked_of_the_kernel() {
    let mut world = World::new();
    let _theirs =
        std::os::unix::net::UnixStream::connect(world.state().with_file_name("listener")).unwrap();
    let ours = rustix::net::accept(&world.gate.listeners[1]).unwrap();
    let (pair, _end) = std::os::unix::net::UnixStream::pair().unwrap();
    let authenticate = |request, source| ToKeeper::Authenticate {
        request,
        connection: 9,
        user: String::new(),
        source,
        binding: crate::ipc::Binding::Nonce([0; 32]),
        protocol: "bowline/1".to_owned(),
        proofs: Vec::new(),
    };
    let gate = &mut world.gate;
    gate.tell_with(&authenticate(70, crate::ipc::Source::Unix), &[ours.as_fd()]);
    let (proof, _) = gate.expect(|message| match message {
        ToGate::Granted {
            request: 70,
            granted,
        } => Some(granted.proof.clone()),
        _ => None,
    });
    assert_eq!(proof, "peer");
    // A pair that somebody made is no connection to this server.
    gate.tell_with(&authenticate(73, crate::ipc::Source::Unix), &[pair.as_fd()]);
    gate.expect(|message| matches!(message, ToGate::Denied { request: 73, .. }).then_some(()));
    // Without the socket, and for a session that this keeper was not started for.
    for (request, source) in [
        (71, crate::ipc::Source::Unix),
        (72, crate::ipc::Source::Stdio),
    ] {
        gate.tell(authenticate(request, source));
        gate.expect(|message| {
            matches!(message, ToGate::Denied { request: r, .. } if *r == request).then_some(())
        });
    }
}

#[test]
fn a_job_starts_once_however_often_it_is_asked_for() {
    let mut world = World::new();
    let id = job_id();
    let Answer::Started(job) = world.gate.start_as("", id, spec(&["sleep", "1000"])) else {
        panic!("not started");
    };
    // The gate that has its descriptors answers a start that comes again; there are no others.
    let refused = |answer| matches!(answer, Answer::Refused(RefuseCode::DuplicateJob));
    let again = world.gate.start_as("", id, spec(&["sleep", "1000"]));
    assert!(refused(again) && lives(job.pid));
    assert!(refused(world.gate.start_as(
        "",
        id,
        spec(&["sleep", "1001"])
    )));
    let mut elsewhere = spec(&["sleep", "1000"]);
    elsewhere.connection = 2;
    assert!(refused(world.gate.start_as("", id, elsewhere)));
    world.gate.end(
        id,
        crate::ipc::Cause::Cancelled(9),
        rustix::process::Signal::KILL,
    );
    world.gate.ended(id);
    assert!(refused(world.gate.start_as(
        "",
        id,
        spec(&["sleep", "1000"])
    )));
    world.gate.tell(ToKeeper::Released { job: id });
    assert!(refused(world.gate.start_as(
        "",
        id,
        spec(&["sleep", "1000"])
    )));
    // What never ran may be tried again.
    let id = job_id();
    for _ in 0..2 {
        let answer = world.gate.start_as("", id, spec(&["/no/such"]));
        let expected = matches!(answer, Answer::NotStarted(NotStarted::NotFound));
        assert!(expected, "{answer:?}");
    }
}

#[test]
fn jobs_are_counted_for_each_user_and_in_all() {
    let mut world = World::with(Options {
        jobs_max: 3,
        jobs_per_user_max: 2,
        ..Options::default()
    });
    let sleep = || spec(&["sleep", "1000"]);
    let first = world.gate.run(sleep());
    world.gate.run(sleep());
    let refused = |answer| matches!(answer, Answer::Refused(RefuseCode::TooManyJobs));
    assert!(refused(world.gate.start_as("", job_id(), sleep())));
    if rustix::process::geteuid().is_root() {
        let other = || JobSpec {
            connection: 2,
            ..sleep()
        };
        let answer = world.gate.start_as("54322:54322", job_id(), other());
        assert!(matches!(answer, Answer::Started(_)));
        let answer = world.gate.start_as("54322:54322", job_id(), other());
        assert!(refused(answer));
    }
    world.gate.end(
        first.id,
        crate::ipc::Cause::Cancelled(9),
        rustix::process::Signal::KILL,
    );
    world.gate.ended(first.id);
    world.gate.tell(ToKeeper::Released { job: first.id });
    world.gate.run(sleep());
}

#[test]
fn a_long_spec_comes_in_a_sealed_memfd_alone() {
    let mut world = World::new();
    let grant = world.gate.authenticate(1, "").unwrap().token;
    let argument = "x".repeat(100_000);
    let argv: Vec<&str> = ["sh", "-c", "echo $#"]
        .into_iter()
        .chain([&*argument; 19])
        .collect();
    let bytes = postcard::to_stdvec(&spec(&argv)).unwrap();
    let unsealed = || {
        let memfd = rustix::fs::memfd_create("spec", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(memfd.try_clone().unwrap());
        file.write_all(&bytes).unwrap();
        memfd
    };
    let mut start = |fds: &[std::os::fd::BorrowedFd<'_>]| {
        let request = world.gate.request();
        let message = ToKeeper::Start {
            request,
            grant,
            job: job_id(),
            spec: SpecPlace::Memfd,
        };
        world.gate.tell_with(&message, fds);
        world.gate.answer(request, false)
    };
    let bad = |answer| matches!(answer, Answer::Refused(RefuseCode::BadSpec));
    assert!(bad(start(&[])));
    assert!(bad(start(&[unsealed().as_fd()])));
    assert!(bad(start(&[sealed(b"no spec").as_fd()])));
    let pipe = rustix::pipe::pipe().unwrap();
    assert!(bad(start(&[pipe.0.as_fd()])));
    let Answer::Started(job) = start(&[sealed(&bytes).as_fd()]) else {
        panic!("not started");
    };
    assert_eq!(job.output(), b"18\n");
}

#[test]
fn only_handshakes_are_signed_and_only_on_their_socket() {
    let mut world = World::new();
    let mut message = vec![b' '; 64];
    message.extend_from_slice(b"TLS 1.3, server CertificateVerify\0");
    message.extend_from_slice(&[1; 48]);
    let sign = |message: &[u8]| ToKeeper::Sign {
        message: ByteBuf::from(message),
    };
    let signer = &world.gate.signers[0];
    packet::send(signer, &sign(&message), &[]).unwrap();
    let answer = packet::receive(signer, &mut Vec::new()).unwrap().unwrap().0;
    let ToGate::Signature { signature } = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(*signature, SIGNATURE);
    // Anything else is the end of this gate.
    let gate = world.gate.pid;
    packet::send(signer, &sign(b"SSHSIG"), &[]).unwrap();
    super::world::wait_gone(gate);
    world.next_gate();
    assert_ne!(world.gate.pid, gate);
}

#[test]
fn a_thousand_jobs_leave_nothing_behind() {
    let mut world = World::new();
    let once = |world: &mut World| {
        let job = world.gate.run(spec(&["true"]));
        assert_eq!(world.gate.ended(job.id).0, Exited::Code(0));
        world.gate.tell(ToKeeper::Released { job: job.id });
    };
    once(&mut world);
    let missing = |world: &mut World| {
        world.gate.run_not(spec(&["/no/such"]));
        world.gate.settle();
    };
    missing(&mut world);
    world.gate.settle();
    let before = world.open_fds();
    for _ in 0..1000 {
        once(&mut world);
    }
    (0..20).for_each(|_| missing(&mut world));
    // The last child may not be reaped yet.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while world.open_fds() > before {
        assert!(std::time::Instant::now() < deadline, "descriptors leak");
        world.gate.settle();
    }
}

#[test]
fn many_jobs_run_at_once() {
    let mut world = World::new();
    let jobs: Vec<_> = (0..300)
        .map(|_| world.gate.run(spec(&["cat", "/dev/null"])))
        .collect();
    for job in &jobs {
        assert_eq!(world.gate.ended(job.id).0, Exited::Code(0));
    }
}

/// A program that replaces the keeper's while a child has not executed its own yet
/// has nothing of the child but the pipe on which it reports.
#[test]
fn a_child_of_an_earlier_program_reports_too() {
    use crate::keeper::spawn::{Pending, Progress, Stacks, Stage};
    use rustix::pipe::{PipeFlags, pipe_with};
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (status, child) = pipe_with(flags).unwrap();
    let mut pending = Pending::inherited(status, Vec::new());
    assert_eq!(pending.progress(), Progress::Waiting);
    drop(child);
    assert_eq!(pending.progress(), Progress::Running);
    Stacks::default().give_back(pending);
    let (status, child) = pipe_with(flags).unwrap();
    // The first program has read what went wrong, but not that the child is gone.
    let mut pending = Pending::inherited(status, vec![2, 13, 0, 0, 0]);
    assert_eq!(pending.progress(), Progress::Waiting);
    assert_eq!(pending.report(), [2, 13, 0, 0, 0]);
    drop(child);
    assert_eq!(pending.progress(), Progress::Failed(Stage::Directory, 13));
}
