//! Replacing the program while its jobs run: a newer file by rename, SIGHUP, and
//! nothing ends.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bowline_proto::frame::Kind;
use serde_json::{Value, json};

use crate::hostile::raw::{Raw, frame, job, start};
use crate::hostile::witness::gate_of;
use crate::lifecycle::{Client, TREE, Watched, granted, jobs, outcome, until_jobs};
use crate::resume;
use crate::server::{Server, bowline};

const HUP: i32 = 1;
const TERM: i32 = 15;

/// A server whose program lies where a test can replace it, and that says how it does.
pub(crate) struct Replaceable {
    pub(crate) server: Server,
    manager: UnixDatagram,
}

impl Replaceable {
    fn start() -> Replaceable {
        Replaceable::with(|_, _| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Command, &Path)) -> Replaceable {
        Replaceable::of(&bowline(), change)
    }

    /// One that begins as another program.
    pub(crate) fn of(program: &Path, change: impl FnOnce(&mut Command, &Path)) -> Replaceable {
        let mut manager = None;
        let server = Server::start_with(|command, dir| {
            let path = dir.join("notify");
            manager = Some(UnixDatagram::bind(&path).unwrap());
            change(command, dir);
            put(program, &dir.join("bowline"));
            let mut placed = Command::new(dir.join("bowline"));
            placed.args(command.get_args()).env("NOTIFY_SOCKET", path);
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => placed.env(name, value),
                    None => placed.env_remove(name),
                };
            }
            let log = std::fs::File::create(dir.join("log")).unwrap();
            placed.stderr(log);
            *command = placed;
        });
        let manager = manager.unwrap();
        let patience = Some(Duration::from_secs(60));
        manager.set_read_timeout(patience).unwrap();
        let server = Replaceable { server, manager };
        server.until_ready();
        server
    }

    fn until_ready(&self) {
        while self.told() != "READY=1" {}
    }

    fn told(&self) -> String {
        let mut buffer = [0; 1024];
        let count = self
            .manager
            .recv(&mut buffer)
            .expect("the server says how it does");
        String::from_utf8_lossy(&buffer[..count]).trim().to_owned()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.server.dir().join("log")).unwrap()
    }

    fn program(&self) -> PathBuf {
        self.server.dir().join("bowline")
    }

    /// The file that the keeper runs.
    fn runs(&self) -> u64 {
        let exe = format!("/proc/{}/exe", self.server.pid());
        std::fs::metadata(exe).unwrap().ino()
    }

    /// Puts another copy of the program in its place and has the server use it.
    pub(crate) fn upgrade(&self) {
        let gate = gate_of(&self.server);
        assert!(self.try_upgrade(), "{}", self.log());
        assert_ne!(gate_of(&self.server), gate);
    }

    /// The same, and whether the program that runs lets it.
    pub(crate) fn try_upgrade(&self) -> bool {
        put(&bowline(), &self.program());
        let inode = self.program().metadata().unwrap().ino();
        assert_ne!(self.runs(), inode);
        self.server.signal(HUP);
        assert!(self.told().contains("RELOADING=1"));
        self.until_ready();
        self.runs() == inode
    }

    /// What the keeper has open. Cgroups that it keeps for later come and go.
    fn descriptors(&self) -> Vec<String> {
        // It has done with the service manager when it answers somebody else.
        jobs(&self.server);
        let path = format!("/proc/{}/fd", self.server.pid());
        let links = std::fs::read_dir(path).unwrap();
        let links = links.map(|entry| std::fs::read_link(entry.unwrap().path()));
        let mut kinds: Vec<String> = links
            .map(|link| {
                let link = link.unwrap().to_string_lossy().into_owned();
                link.split([':', ' ']).next().unwrap().to_owned()
            })
            .filter(|kind| !kind.starts_with("/sys/fs/cgroup"))
            .collect();
        kinds.sort();
        kinds
    }
}

/// Installs a program as a package manager does: beside the old one, and then by its name.
///
/// A process of its own writes it: what this one has open for writing, a child that
/// another test is just starting has too, and then nobody can execute it (ETXTBSY).
pub(crate) fn put(program: &Path, place: &Path) {
    let fresh = place.with_extension("new");
    let copied = Command::new("cp").arg(program).arg(&fresh).status();
    assert!(copied.unwrap().success());
    std::fs::rename(fresh, place).unwrap();
}

/// How many jobs the test moves.
fn count() -> u64 {
    let asked = std::env::var("BOWLINE_UPGRADE_JOBS");
    asked.map_or(100, |count| count.parse().unwrap())
}

/// A pipe with a name: whoever reads it waits until the test opens it.
pub(crate) struct Signal(pub(crate) PathBuf);

impl Signal {
    pub(crate) fn new(server: &Server, name: &str) -> Signal {
        let path = server.dir().join(name);
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from(0o644));
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        Signal(path)
    }

    pub(crate) fn give(&self) {
        drop(std::fs::File::options().write(true).open(&self.0).unwrap());
    }
}

/// Connections with so many jobs; each waits for its signal and then ends as `ending` says.
fn many(server: &Server, count: u64, signals: [&Signal; 2], ending: fn(u64) -> String) -> Vec<Raw> {
    const PER_CONNECTION: u64 = 250;
    let mut connections = Vec::new();
    for number in 1..=count {
        if (number - 1) % PER_CONNECTION == 0 {
            connections.push(granted(server));
        }
        let raw = connections.last_mut().unwrap();
        let signal = signals[(number % 2) as usize].0.display();
        let script = format!("echo up; read x < {signal}; {}", ending(number));
        raw.send(&start(number as u32, number, &["sh", "-c", &script]));
        raw.until(Kind::Stdout, number as u32);
    }
    connections
}

fn by_id(jobs: &[Value], number: u64) -> &Value {
    let wanted = job(number);
    jobs.iter()
        .find(|job| job["job"] == wanted.as_str())
        .unwrap_or_else(|| panic!("job {number} is not in the record"))
}

/// Requires that every job is recorded as it ended.
fn ended_as_they_did(server: &Server, count: u64) {
    let ended = jobs(server);
    for number in 1..=count {
        let told = &by_id(&ended, number)["outcome"];
        let right = match number % 5 {
            0 => told["outcome"] == "signaled" && told["signal"] == 9,
            _ => told["outcome"] == "exited" && told["code"] == number % 200,
        };
        assert!(right, "job {number}: {told}");
    }
}

/// Half of the jobs end while the program is replaced, half of them later. Every one
/// is recorded as it ended.
#[test]
fn a_newer_program_takes_over_with_every_job() {
    let mut host = Replaceable::start();
    let count = count();
    let signals = ["now", "later"].map(|name| Signal::new(&host.server, name));
    let connections = many(
        &host.server,
        count,
        [&signals[0], &signals[1]],
        |number| match number % 5 {
            0 => "kill -9 $$".to_owned(),
            _ => format!("exit {}", number % 200),
        },
    );
    std::thread::scope(|scope| {
        scope.spawn(|| signals[0].give());
        host.upgrade();
    });
    drop(connections);
    let live = jobs(&host.server);
    let running = live.iter().filter(|job| outcome(job) == "none").count() as u64;
    assert!(running >= count / 2, "{running} of {count} run on");
    host.upgrade();
    signals[1].give();
    until_jobs(&host.server, |jobs| {
        jobs.len() as u64 == count && jobs.iter().all(|job| outcome(job) != "none")
    });
    ended_as_they_did(&host.server, count);
    // The journal knows no other end than the record: the next keeper has nothing to add.
    host.server.signal(TERM);
    host.server.restart();
    ended_as_they_did(&host.server, count);
    assert!(!host.log().contains("lost"), "{}", host.log());
    let run = host.server.run(&["-n"], &["true"]).status().unwrap();
    assert!(run.success());
}

/// What a server is given in place of its program, and what it must say about it.
fn unfit(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let script = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let mut cut = std::fs::read(bowline()).unwrap();
    cut.truncate(100_000);
    let truncated = script("truncated", "");
    std::fs::write(&truncated, cut).unwrap();
    let mute = script("mute", "");
    std::fs::copy(bowline(), &mute).unwrap();
    std::fs::set_permissions(&mute, PermissionsExt::from_mode(0o644)).unwrap();
    let answer = "#!/bin/sh\necho bowline can take over\n";
    vec![
        ("exit status 1", PathBuf::from("/bin/false")),
        ("exit status 0", PathBuf::from("/bin/true")),
        ("cannot be executed", script("liar", answer)),
        ("cannot be executed", script("garbage", "no program")),
        ("the new program is not used", truncated),
        ("cannot be executed", mute),
    ]
}

#[test]
fn a_program_that_cannot_take_over_changes_nothing() {
    let host = Replaceable::start();
    let server = &host.server;
    let (gate, inode) = (gate_of(server), host.runs());
    let mut raw = granted(server);
    raw.send(&start(1, 1, &["cat"]));
    raw.until(Kind::Started, 1);
    let before = host.descriptors();
    let mut said = 0;
    for (why, candidate) in unfit(server.dir()) {
        put(&candidate, &host.program());
        server.signal(HUP);
        host.until_ready();
        let log = host.log();
        let fresh = &log[said..];
        assert!(fresh.contains("the new program is not used"), "{log}");
        assert!(
            fresh.contains(why),
            "{why} of {}: {fresh}",
            candidate.display()
        );
        said = log.len();
        assert_eq!((gate_of(server), host.runs()), (gate, inode));
        raw.send(&frame(Kind::Stdin, 0, 1, b"", b"still here"));
        assert_eq!(raw.until(Kind::Stdout, 1).payload, b"still here");
    }
    std::fs::remove_file(host.program()).unwrap();
    server.signal(HUP);
    host.until_ready();
    assert!(host.log()[said..].contains("cannot be looked at"));
    assert_eq!(host.descriptors(), before);
    // And then one that can.
    put(&bowline(), &host.program());
    server.signal(HUP);
    host.until_ready();
    assert_ne!(host.runs(), inode);
    until_jobs(server, |jobs| {
        jobs.len() == 1 && outcome(&jobs[0]) == "none"
    });
}

/// A configuration that the new program would not start with keeps the old one.
#[test]
fn a_configuration_with_a_mistake_stops_the_upgrade() {
    let host = Replaceable::with(|command, dir| {
        let file = dir.join("server.toml");
        std::fs::write(&file, "").unwrap();
        command.arg("--config").arg(file);
    });
    let file = host.server.dir().join("server.toml");
    let inode = host.runs();
    std::fs::write(&file, "limits.jobs_max = \"many\"\n").unwrap();
    put(&bowline(), &host.program());
    host.server.signal(HUP);
    host.until_ready();
    assert_eq!(host.runs(), inode);
    assert!(host.log().contains("invalid type"), "{}", host.log());
    // The new program begins with what the file says now.
    std::fs::write(&file, "limits.jobs_per_connection_max = 1\n").unwrap();
    host.upgrade();
    let mut raw = granted(&host.server);
    raw.send(&start(1, 1, &["cat"]));
    raw.until(Kind::Started, 1);
    raw.send(&start(2, 2, &["true"]));
    assert_eq!(raw.until(Kind::Refused, 2).text("code"), "too_many_jobs");
}

#[test]
fn what_was_moved_can_be_ended_and_times_out() {
    let host = Replaceable::start();
    let server = &host.server;
    let mut client = Client::start(server, TREE);
    let (shell, sleeper) = (client.process(), client.process());
    let mut timed = Client::start_with(
        server,
        &["-n", "--timeout", "2s"],
        "echo $$; exec sleep 1000",
    );
    let sleeps = timed.process();
    let target = server.target();
    let id = |jobs: &[Value], command: &str| {
        let named = |job: &&Value| job["command"].as_str().unwrap().contains(command);
        jobs.iter().find(named).unwrap()["job"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    host.upgrade();
    let (status, said) = timed.end();
    assert_eq!(status, Some(124), "{said}");
    sleeps.ends();
    until_jobs(server, |jobs| {
        jobs.iter().any(|job| outcome(job) == "timed_out")
    });
    let tree = id(&jobs(server), "setsid");
    let kill = server.command(&["kill", &target, &tree]).output().unwrap();
    assert!(kill.status.success(), "{kill:?}");
    shell.ends();
    sleeper.ends();
    let (status, said) = client.end();
    assert_eq!(status, Some(143), "{said}");
    until_jobs(server, |jobs| {
        jobs.iter().all(|job| outcome(job) != "none")
            && jobs.iter().any(|job| outcome(job) == "cancelled")
    });
}

/// Nothing is lost on the way, and nothing stays behind: descriptors, limits, the
/// sockets and their files.
#[test]
fn the_process_stays_as_it_was() {
    let mut host = Replaceable::with(|command, dir| {
        let socket = format!("unix:{}", dir.join("socket").display());
        command.args(["--listen", &socket]);
    });
    let look = [
        "sh",
        "-c",
        "ulimit -n; umask; ls /proc/self/fd; ls -l /proc/self/fd | grep -c memfd",
    ];
    let seen = |host: &Replaceable| {
        let done = host.server.run(&["-n"], &look).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    let (first, before) = (seen(&host), host.descriptors());
    for _ in 0..3 {
        // Whoever connects meanwhile waits and is served.
        let crowd: Vec<Raw> = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| (0..20).map(|_| Raw::tcp(&host.server)).collect());
            host.upgrade();
            connecting.join().unwrap()
        });
        drop(crowd);
        assert_eq!(seen(&host), first);
        assert_eq!(host.descriptors(), before);
    }
    let socket = host.server.dir().join("socket");
    UnixStream::connect(&socket).unwrap();
    host.server.signal(TERM);
    assert_eq!(host.server.wait().code(), Some(0));
    assert!(!socket.exists(), "the file of the socket is left");
}

/// A new program begins with a journal of its own, and once it is executed there is no way back.
#[test]
fn without_room_for_the_journal_the_old_program_goes_on() {
    let host = Replaceable::start();
    let mut raw = granted(&host.server);
    raw.send(&start(1, 1, &["cat"]));
    raw.until(Kind::Started, 1);
    let in_the_way = host.server.dir().join("state/journal.check");
    std::fs::create_dir(&in_the_way).unwrap();
    let inode = host.runs();
    put(&bowline(), &host.program());
    host.server.signal(HUP);
    host.until_ready();
    assert_eq!(host.runs(), inode);
    assert!(
        host.log().contains("cannot write a journal"),
        "{}",
        host.log()
    );
    raw.send(&frame(Kind::Stdin, 0, 1, b"", b"still here"));
    assert_eq!(raw.until(Kind::Stdout, 1).payload, b"still here");
    std::fs::remove_dir(&in_the_way).unwrap();
    host.upgrade();
    assert!(!in_the_way.exists());
}

/// What the gate had read and nobody was given yet is there for the next one.
#[test]
fn no_byte_is_lost_on_the_way() {
    let host = Replaceable::with(|command, dir| {
        let socket = format!("unix:{}", dir.join("socket").display());
        command.args(["--listen", &socket]);
    });
    let mut first = resume::raw(&host.server);
    // More than a ring and a pipe hold.
    let keep = json!({"on_disconnect": "keep"});
    first.send(&resume::start(1, 1, "seq 1 2000000", &keep));
    first.until(Kind::Stdout, 1);
    for _ in 0..2 {
        host.upgrade();
    }
    let (bytes, exit) = resume::all_of(&host.server, 1);
    assert_eq!(exit.outcome.code, Some(0));
    assert!(bytes == resume::numbers(2_000_000).as_bytes());
}

/// A terminal is one open file for several streams.
#[test]
fn a_terminal_stays_open() {
    let host = Replaceable::start();
    let server = &host.server;
    let signal = Signal::new(server, "go");
    let script = format!(
        "echo up; read x < {}; test -t 0 -a -t 1 -a -t 2 && echo on && exit 7",
        signal.0.display()
    );
    let mut client = server
        .run(&["--pty"], &["sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 4];
    let stdout = client.stdout.as_mut().unwrap();
    stdout.read_exact(&mut up).unwrap();
    assert_eq!(&up, b"up\r\n");
    let before = host.descriptors();
    for _ in 0..2 {
        host.upgrade();
        assert_eq!(host.descriptors(), before);
    }
    signal.give();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "on\r\n");
    assert_eq!(client.wait().unwrap().code(), Some(7));
    until_jobs(server, |jobs| {
        let told = &jobs[0]["outcome"];
        jobs.len() == 1 && told["outcome"] == "exited" && told["code"] == 7
    });
}

#[test]
fn processes_that_end_in_between_are_noticed() {
    let host = Replaceable::start();
    let mut client = Client::start(&host.server, "echo $$; exec sleep 1000");
    let process: Watched = client.process();
    std::thread::scope(|scope| {
        scope.spawn(|| process.kill());
        host.upgrade();
    });
    drop(client);
    until_jobs(&host.server, |jobs| {
        jobs.len() == 1
            && jobs[0]["outcome"]["outcome"] == "signaled"
            && jobs[0]["outcome"]["signal"] == 9
    });
}
