//! A stderr that takes nothing: words are lost there, statuses and services are not.

use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::faults::way::Way;
use crate::hostile::witness::gate_of;
use crate::lifecycle::jobs;
use crate::server::{Server, bowline, signal_process};

const HUP: i32 = 1;
const KILL: i32 = 9;

/// The disk that is always full.
pub(crate) fn full() -> Stdio {
    Stdio::from(File::options().write(true).open("/dev/full").unwrap())
}

/// A pipe whose reader has gone.
fn gone() -> Stdio {
    Stdio::from(std::io::pipe().unwrap().1)
}

/// A pipe that holds as much as it can, and whose reader does nothing.
fn stuffed() -> (PipeReader, Stdio) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    writer.write_all(&vec![b'x'; room]).unwrap();
    (reader, writer.into())
}

/// A client that says much and is not heard.
struct Unheard {
    child: Child,
    out: BufReader<ChildStdout>,
    _reader: PipeReader,
}

impl Unheard {
    fn start(mut command: Command) -> Unheard {
        let (reader, stderr) = stuffed();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(stderr).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Unheard {
            child,
            out,
            _reader: reader,
        }
    }

    fn hears(&mut self, expected: &str) {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
    }

    fn answers(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        self.hears(text);
    }
}

#[test]
fn a_stderr_that_is_full_stops_nothing() {
    let server = Server::start();
    let way = Way::to(server.port().unwrap());
    let target = way.target();
    let script = "echo up; while read x; do echo $x; done; exit 5";
    let args = ["run", "-vv", "--trust", "new", &target, "--"];
    let mut run = Unheard::start(server.command(&[&args[..], &["sh", "-c", script]].concat()));
    run.hears("up\n");
    let job = jobs(&server)[0]["job"].clone();
    let job = job.as_str().unwrap();
    for break_it in [
        &(|| _ = way.cut(false)) as &dyn Fn(),
        &|| _ = way.cut(true),
        &|| signal_process(gate_of(&server), KILL),
    ] {
        break_it();
        run.answers("one\n");
        run.answers("two\n");
    }
    // So it is for one who takes over, and for one who looks.
    let command = |args: &[&str]| server.command(&[args, &["-vv", &target, job]].concat());
    let mut logs = Unheard::start(command(&["logs", "-f"]));
    logs.hears("up\n");
    let mut attach = Unheard::start(command(&["attach"]));
    // To wait would close it, and end the job.
    let stdin = run.child.stdin.take();
    assert_eq!(run.child.wait().unwrap().code(), Some(255));
    drop(stdin);
    way.cut(true);
    attach.answers("three\n");
    drop(attach.child.stdin.take());
    assert_eq!(attach.child.wait().unwrap().code(), Some(5));
    for line in ["one\n", "two\n"].repeat(3) {
        logs.hears(line);
    }
    logs.hears("three\n");
    assert_eq!(logs.child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_is_said_at_the_end_is_not_waited_for_long() {
    let server = Server::start();
    for (flags, argv, status) in [
        (&["--timeout", "50ms"][..], &["sleep", "1000"][..], 124),
        (&[], &["/there/is/no/such/program"], 127),
        (&["--cwd", "/there/is/no/such/folder"], &["true"], 125),
    ] {
        let (_reader, stderr) = stuffed();
        let ended = server.run(flags, argv).stderr(stderr).status().unwrap();
        assert_eq!(ended.code(), Some(status), "{argv:?}");
    }
}

#[test]
fn what_cannot_be_said_changes_no_status() {
    let server = Server::start();
    let target = server.target();
    let nowhere = "unix:/there/is/no/such/socket";
    let cases: [(&[&str], i32); 6] = [
        (&["ping", nowhere], 255),
        (&["jobs", nowhere], 255),
        (&["jobs", "host:port"], 2),
        (&["kill", &target, "abcdef"], 1),
        (&["plain", "connect", "upper", nowhere], 255),
        (&["cp", "/there/is/no/such/file", "/tmp/bowline-none"], 1),
    ];
    for (args, status) in cases {
        for stderr in [full(), gone()] {
            let mut command = server.command(args);
            let ended = command.stdin(Stdio::null()).stderr(stderr).status();
            assert_eq!(ended.unwrap().code(), Some(status), "{args:?}");
        }
    }
}

#[test]
fn a_server_whose_log_has_no_room_serves() {
    let server = Server::start_with(|command, _| {
        command.arg("-vv").stderr(full());
    });
    let run = server.run(&[], &["echo", "served"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&run.stdout), "served\n");
    assert_eq!(run.status.code(), Some(0));
    let mut local = Command::new(bowline());
    server.client(&mut local);
    let local = local.args(["-vv", "run", "local", "--", "true"]);
    assert_eq!(local.stderr(full()).status().unwrap().code(), Some(0));
}

/// The log of keeper and gate, whose reader has stopped and then goes on.
#[test]
fn a_server_whose_log_nobody_reads_serves() {
    let (mut reader, stderr) = stuffed();
    let server = Server::start_with(|command, _| {
        command.arg("-vv").stderr(stderr);
    });
    let serves = || {
        let mut run = server.run(&[], &["sh", "-c", "echo served; exit 4"]);
        let run = run.output().unwrap();
        let status = run.status.code();
        assert_eq!((&run.stdout[..], status), (&b"served\n"[..], Some(4)));
    };
    for _ in 0..10 {
        serves();
    }
    signal_process(gate_of(&server), KILL);
    serves();
    server.signal(HUP);
    serves();
    let room = rustix::pipe::fcntl_getpipe_size(&reader).unwrap();
    let mut stuff = vec![0; room];
    reader.read_exact(&mut stuff).unwrap();
    assert!(stuff.iter().all(|byte| *byte == b'x'), "somebody waited");
    serves();
    drop(server);
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    let mut notes = 0;
    for line in log.lines() {
        match line.strip_suffix(" messages are left out here [words_left_out]") {
            Some(_) => notes += 1,
            None => assert!(line.contains("DEBUG") || line.contains("INFO"), "{line}"),
        }
    }
    // Of the keeper and of the second gate.
    assert_eq!(notes, 2, "{log}");
}
