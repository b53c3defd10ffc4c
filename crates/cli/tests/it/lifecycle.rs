//! The server's life: gates and keepers that are killed, reloading, draining,
//! the record, and what happens when descriptors run out.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bowline_proto::frame::Kind;
use serde_json::{Value, json};

use crate::hostile::raw::{Raw, frame, message, start};
use crate::hostile::witness::gate_of;
use crate::server::{Server, bowline, signal_process};

const KILL: i32 = 9;

/// A server with this configuration file.
fn configured(config: &str) -> Server {
    Server::start_with(|command, dir| {
        std::fs::write(dir.join("server.toml"), config).unwrap();
        command.arg("--config").arg(dir.join("server.toml"));
    })
}

pub(crate) fn granted(server: &Server) -> Raw {
    Raw::tls(server).granted(server)
}

/// A process that must end, and when it has.
pub(crate) struct Watched(rustix::fd::OwnedFd);

impl Watched {
    pub(crate) fn new(pid: u32) -> Watched {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        let flags = rustix::process::PidfdFlags::empty();
        Watched(rustix::process::pidfd_open(pid, flags).unwrap())
    }

    /// Ends a process that nobody else would.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, rustix::process::Signal::KILL);
        self.ends();
    }

    pub(crate) fn ends(&self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let patience = Timespec {
            tv_sec: 30,
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ended, 1, "a process that should have ended is still there");
    }
}

/// A client whose program has said the ids of its processes.
pub(crate) struct Client {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Client {
    pub(crate) fn start(server: &Server, script: &str) -> Client {
        Client::start_with(server, &["-n"], script)
    }

    pub(crate) fn start_with(server: &Server, flags: &[&str], script: &str) -> Client {
        let mut child = server
            .run(flags, &["sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Client { child, lines }
    }

    pub(crate) fn process(&mut self) -> Watched {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        Watched::new(line.trim().parse().unwrap())
    }

    /// Its exit status, and what it said on stderr.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        // Its output must be taken, or it could not end.
        std::io::copy(&mut self.lines, &mut std::io::sink()).unwrap();
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

/// A job that does not end by itself and has a child that left its session.
pub(crate) const TREE: &str = "echo $$; setsid sleep 1000 & echo $!; wait";

/// The jobs that the server has a record of.
pub(crate) fn jobs(server: &Server) -> Vec<Value> {
    let target = server.target();
    let done = server
        .command(&["jobs", "--all", "--json", "--count", "10000", &target])
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let text = String::from_utf8(done.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

pub(crate) fn outcome(job: &Value) -> &str {
    job["outcome"]["outcome"].as_str().unwrap_or("none")
}

/// Asks for the jobs until what is looked for is there.
pub(crate) fn until_jobs(server: &Server, right: impl Fn(&[Value]) -> bool) {
    let mut seen = Vec::new();
    for _ in 0..500 {
        seen = jobs(server);
        if right(&seen) {
            return;
        }
    }
    panic!("the record says {seen:?}");
}

#[test]
fn gates_that_are_killed_again_and_again() {
    const THREADS: usize = 6;
    const RUNS: usize = 40;
    let server = Server::start();
    let over = AtomicBool::new(false);
    let connected = AtomicUsize::new(0);
    let (tick, ticks) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // Whoever connects is never refused, whichever gate there is.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let port = server.port().unwrap();
                TcpStream::connect(("127.0.0.1", port)).expect("the keeper holds the socket");
                connected.fetch_add(1, Ordering::Relaxed);
            }
        });
        let server = &server;
        for _ in 0..THREADS {
            let tick = tick.clone();
            scope.spawn(move || {
                for _ in 0..RUNS {
                    let done = server.run(&["-n"], &["echo", "done"]).output().unwrap();
                    let said = String::from_utf8_lossy(&done.stderr).into_owned();
                    assert_eq!(done.status.code(), Some(0), "{said}");
                    assert_eq!(done.stdout, b"done\n", "{said}");
                    tick.send(()).unwrap();
                }
            });
        }
        drop(tick);
        let mut kills = 0;
        for (number, ()) in ticks.iter().enumerate() {
            // After every twentieth client, whatever the others are just doing.
            if number % 20 == 19 {
                let gates = server.children();
                for (pid, _) in gates.iter().filter(|(_, line)| line.contains(" gate ")) {
                    signal_process(*pid, KILL);
                    kills += 1;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(kills >= 8, "{kills} gates were killed");
    });
    assert!(connected.into_inner() > 100);
}

#[test]
fn a_job_whose_gate_is_killed() {
    let server = Server::start();
    let mut client = Client::start_with(&server, &["-n", "--on-disconnect", "kill"], TREE);
    let (shell, sleeper) = (client.process(), client.process());
    signal_process(gate_of(&server), KILL);
    let (status, said) = client.end();
    assert_eq!(status, Some(255), "{said}");
    assert!(said.contains("the job had started"), "{said}");
    shell.ends();
    sleeper.ends();
    // The next gate learns of it and writes down what became of it.
    until_jobs(&server, |jobs| {
        jobs.len() == 1 && outcome(&jobs[0]) == "cancelled"
    });
}

/// The keeper ends it in time, though its gate can tell nobody; the next gate does.
#[test]
fn a_job_times_out_while_its_gate_stands_still() {
    const STOP: i32 = 19;
    let server = Server::start();
    let flags = ["-n", "--timeout", "5s"];
    let mut client = Client::start_with(&server, &flags, "echo $$; exec sleep 1000");
    let process = client.process();
    let gate = gate_of(&server);
    signal_process(gate, STOP);
    process.ends();
    signal_process(gate, KILL);
    let (status, said) = client.end();
    assert_eq!(status, Some(124), "{said}");
    until_jobs(&server, |jobs| {
        jobs.len() == 1 && outcome(&jobs[0]) == "timed_out"
    });
}

#[test]
fn a_reload_changes_a_limit_and_drops_nobody() {
    let server = configured("limits.jobs_per_connection_max = 1\n");
    let mut raw = granted(&server);
    raw.send(&start(1, 1, &["cat"]));
    raw.until(Kind::Started, 1);
    raw.send(&start(2, 2, &["true"]));
    assert_eq!(raw.until(Kind::Refused, 2).text("code"), "too_many_jobs");
    let file = server.dir().join("server.toml");
    // A file with a mistake changes nothing.
    std::fs::write(&file, "limits.jobs_per_connection_max = \"many\"\n").unwrap();
    server.signal(1);
    std::fs::write(&file, "limits.jobs_per_connection_max = 2\n").unwrap();
    server.signal(1);
    let mut channel = 2;
    loop {
        channel += 1;
        raw.send(&start(channel, u64::from(channel), &["true"]));
        let said = raw.next().unwrap();
        if said.kind == Kind::Started {
            break;
        }
        assert_eq!(
            (said.kind, said.text("code")),
            (Kind::Refused, "too_many_jobs")
        );
    }
    raw.send(&frame(Kind::Stdin, 1, 1, b"", b"still here"));
    assert_eq!(raw.until(Kind::Stdout, 1).payload, b"still here");
}

/// Starts jobs until the server says that it is stopping.
fn until_draining(raw: &mut Raw) {
    for number in 1000_u32.. {
        raw.send(&start(number, u64::from(number), &["true"]));
        loop {
            let said = raw.next().expect("closed instead of draining");
            if said.kind == Kind::Exit && said.channel == number {
                break;
            }
            if said.kind == Kind::Refused {
                assert_eq!((said.channel, said.text("code")), (number, "draining"));
                return;
            }
        }
    }
}

#[test]
fn sigterm_lets_what_runs_end_and_starts_nothing() {
    let mut server = Server::start();
    let mut raw = granted(&server);
    raw.send(&start(1, 1, &["cat"]));
    raw.until(Kind::Started, 1);
    let mut idle = granted(&server);
    server.signal(15);
    assert_eq!(idle.refusal(), "draining");
    until_draining(&mut raw);
    raw.send(&frame(Kind::Stdin, 1, 1, b"", b"to the end"));
    assert_eq!(raw.until(Kind::Stdout, 1).payload, b"to the end");
    let exit = raw.until(Kind::Exit, 1);
    assert_eq!(
        (exit.text("outcome"), &exit.header["code"]),
        ("exited", &json!(0))
    );
    assert_eq!(raw.refusal(), "draining");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn the_time_to_drain_ends() {
    let mut server = configured("drain = \"100ms\"\nkill_grace = \"100ms\"\n");
    let mut obeys = Client::start(&server, "echo $$; exec sleep 1000");
    let mut ignores = Client::start(&server, "trap '' TERM; echo $$; while :; do sleep 1; done");
    let processes = [obeys.process(), ignores.process()];
    server.signal(15);
    for client in [obeys, ignores] {
        let (status, said) = client.end();
        assert!(status.is_some_and(|status| status != 0), "{said}");
        assert!(said.contains("[draining]"), "{said}");
    }
    processes.iter().for_each(Watched::ends);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_job_is_in_the_record_before_it_runs() {
    let mut server = Server::start();
    let record: PathBuf = server.dir().join("state/record");
    let marker = format!("marker-{}", std::process::id());
    // The job itself looks for its own command in the file.
    let look = format!("cat {}/jobs.sqlite* | grep -c {marker}", record.display());
    for _ in 0..20 {
        let done = server.run(&["-n"], &["sh", "-c", &look]).output().unwrap();
        assert_eq!(
            done.status.code(),
            Some(0),
            "{:?}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    // Killed as soon as a job says that it runs: it is there, and nothing is claimed about it.
    let mut client = Client::start(&server, "echo $$; exec sleep 1000");
    let process = client.process();
    server.signal(KILL);
    process.kill();
    assert_eq!(client.end().0, Some(255));
    server.restart();
    until_jobs(&server, |jobs| {
        let lost = jobs.iter().filter(|job| outcome(job) == "lost").count();
        let exited = jobs.iter().filter(|job| outcome(job) == "exited").count();
        (lost, exited) == (1, 20)
    });
}

/// Lets a process have this many descriptors more than it has now.
fn limit_descriptors(pid: u32, more: u64) {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let numbers = open.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let highest: u64 = numbers.map(|number| number.parse().unwrap()).max().unwrap();
    let limit = Rlimit {
        current: Some(highest + 1 + more),
        // The server inherited ours; a job gets it back.
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit).unwrap();
}

/// Starts programs until one cannot be, and says which and why.
fn until_exhausted(raw: &mut Raw, first: u32) -> (u32, String) {
    for number in first..first + 400 {
        raw.send(&start(number, u64::from(number), &["cat"]));
        let said = loop {
            let said = raw.next().expect("closed instead of refused");
            if said.channel == number {
                break said;
            }
        };
        match said.kind {
            Kind::Started => {}
            Kind::Refused => return (number, said.text("code").to_owned()),
            // A pipe was missing: it was started and ended, and says so behind `started`.
            Kind::Exit => return (number, said.text("error").to_owned()),
            kind => panic!("{kind:?}"),
        }
    }
    panic!("there is no end to the descriptors");
}

#[test]
fn descriptors_of_the_keeper_run_out() {
    let server = Server::start();
    let mut raw = granted(&server);
    limit_descriptors(server.pid(), 40);
    let (number, code) = until_exhausted(&mut raw, 1);
    assert_eq!(code, "out_of_resources");
    assert!(number > 1, "not one job fits into 40 descriptors");
    // Others still authenticate, and what is left is enough for them or they are told the same.
    let run = server.run(&["-n"], &["true"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        run.status.success() || said.contains("[out_of_resources]"),
        "{said}"
    );
    raw.send(&frame(Kind::Stdin, 1, 1, b"", b"x"));
    raw.until(Kind::Exit, 1);
    for channel in 2..number {
        raw.send(&frame(Kind::Stdin, 1, channel, b"", b""));
        raw.until(Kind::Exit, channel);
    }
    let run = server.run(&["-n"], &["true"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(0), "{said}");
}

/// A server that a shell starts after this.
fn started_after(script: &str) -> Server {
    Server::start_with(|command, _| {
        let mut shell = Command::new("sh");
        let script = format!("{script} && exec \"$@\"");
        shell.args(["-c", &script, "sh"]).arg(bowline());
        shell.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        *command = shell;
    })
}

/// As under nohup(1) and worse: what the server was told to ignore is no business of its jobs.
#[test]
fn signals_that_the_server_ignores() {
    let server = started_after("trap '' HUP INT QUIT PIPE ALRM USR1 TSTP TTOU 40 64");
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let ignored = |status: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    let bits = |signals: &[u32]| {
        signals
            .iter()
            .fold(0, |all, signal| all | 1 << (signal - 1))
    };
    let told = bits(&[1, 2, 3, 10, 13, 14, 20, 22, 40, 64]);
    assert_eq!(ignored(&status) & told, told, "{status}");
    let run = server
        .run(&["-n"], &["cat", "/proc/self/status"])
        .output()
        .unwrap();
    assert_eq!(ignored(&String::from_utf8_lossy(&run.stdout)), 0);
}

/// The gate's: connections wait, jobs whose pipes it cannot take are ended and said to be,
/// and when there is room again all is well.
#[test]
fn descriptors_of_the_gate_run_out() {
    let server = started_after("ulimit -n 64");
    let mut raw = granted(&server);
    raw.send(&start(1, 1, &["cat"]));
    raw.until(Kind::Started, 1);
    let gate = gate_of(&server);
    // More than it can accept; they wait in the kernel and are not refused.
    let crowd: Vec<Raw> = (0..80).map(|_| Raw::tcp(&server)).collect();
    raw.send(&message(Kind::Ping, 0, &json!({"id": 1})));
    raw.until(Kind::Pong, 0);
    let mut failed = 0;
    for number in 2..20 {
        raw.send(&start(number, u64::from(number), &["echo", "heard"]));
        let mut heard = Vec::new();
        let said = loop {
            let said = raw.next().expect("closed instead of refused");
            match said.kind {
                Kind::Exit | Kind::Refused if said.channel == number => break said,
                Kind::Stdout if said.channel == number => heard.extend(said.payload),
                _ => {}
            }
        };
        // No success without its output.
        if said.text("outcome") == "exited" {
            assert_eq!(heard, b"heard\n");
        } else {
            let code = if said.kind == Kind::Exit {
                "error"
            } else {
                "code"
            };
            assert_eq!(said.text(code), "out_of_resources", "{said:?}");
            failed += 1;
        }
    }
    assert!(failed > 0, "there were descriptors enough");
    raw.send(&frame(Kind::Stdin, 1, 1, b"", b"still here"));
    assert_eq!(raw.until(Kind::Stdout, 1).payload, b"still here");
    raw.until(Kind::Exit, 1);
    drop(crowd);
    let run = server.run(&["-n"], &["true"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(0), "{said}");
    assert_eq!(gate_of(&server), gate, "the same gate");
}

#[test]
fn idle_connections_are_closed_and_busy_ones_are_not() {
    let server = configured("limits.idle_timeout = \"200ms\"\n");
    let mut busy = granted(&server);
    busy.send(&start(1, 1, &["cat"]));
    busy.until(Kind::Started, 1);
    for _ in 0..3 {
        assert_eq!(granted(&server).refusal(), "idle_timeout");
    }
    busy.send(&message(Kind::Ping, 0, &json!({"id": 1})));
    busy.until(Kind::Pong, 0);
    busy.send(&frame(Kind::Stdin, 1, 1, b"", b""));
    busy.until(Kind::Exit, 1);
    assert_eq!(busy.refusal(), "idle_timeout");
}

#[test]
fn a_configuration_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let done = Command::new(bowline())
            .args(["serve", "--check", "--config"])
            .arg(&file)
            .env("HOME", dir.path())
            .env_remove("XDG_CONFIG_HOME")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (
            done.status.success(),
            String::from_utf8(done.stdout).unwrap() + &said,
        )
    };
    let (good, said) = check("drain = \"7s\"\n[limits]\nhandshakes_max = 77\n");
    assert!(good && said.contains("77"), "{said}");
    for bad in [
        "drain = 7\n",
        "no_such_key = 1\n",
        "limits.auth_timeout = \"0\"\n",
        "listen = []\n",
        "drain = \n",
    ] {
        let (good, said) = check(bad);
        assert!(!good, "{bad}");
        assert!(
            said.contains("server.toml") || said.contains("listen") || said.contains("limits."),
            "{bad}: {said}"
        );
    }
    // Nothing was made for what was only checked.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
