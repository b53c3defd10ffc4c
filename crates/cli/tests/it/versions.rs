//! This program and an older one: each is the client of the other's server, and this one takes
//! the place of that one under jobs that run.
//!
//! The older one is whichever `BOWLINE_OLD` names, as `tools/versions` does; without that it is
//! this one too. What a version does not know is not asked of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bowline_proto::frame::Kind;

use crate::faults::way::Way;
use crate::hostile::raw::Raw;
use crate::piped::Piped;
use crate::server::{Server, bowline};
use crate::upgrade::Replaceable;

/// A program, and what it knows.
#[derive(Clone, Debug, PartialEq)]
struct Program {
    path: PathBuf,
    /// Its client comes back when the line breaks.
    comes_back: bool,
    copies: bool,
}

impl Program {
    fn new(path: PathBuf) -> Program {
        let help = |command: &str| {
            let done = Command::new(&path).args([command, "--help"]).output();
            String::from_utf8(done.unwrap().stdout).unwrap()
        };
        let comes_back = help("run").contains("--on-disconnect");
        let copies = help("cp").contains("--archive");
        Program {
            path,
            comes_back,
            copies,
        }
    }

    fn new_one() -> Program {
        Program::new(bowline())
    }

    fn old_one() -> Program {
        Program::new(std::env::var_os("BOWLINE_OLD").map_or_else(bowline, PathBuf::from))
    }

    fn serve(&self) -> Server {
        Server::start_with(|command, _| *command = as_program(&self.path, command))
    }

    fn client(&self, server: &Server, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        server.client(&mut command);
        command.args(args);
        command
    }

    fn done(&self, server: &Server, args: &[&str]) -> Output {
        let mut client = self.client(server, args);
        client.stdin(Stdio::null()).output().unwrap()
    }
}

/// The same command of another program.
fn as_program(program: &Path, command: &Command) -> Command {
    let mut other = Command::new(program);
    other.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other
}

/// Each of the two with the other: client and server.
fn pairs() -> [(Program, Program); 2] {
    let (old, new) = (Program::old_one(), Program::new_one());
    [(old.clone(), new.clone()), (new, old)]
}

/// Whether the jobs of a server may outlive their connections: minor 1 (PROTOCOL.md, section 10).
fn keeps(server: &Server) -> bool {
    let hello = Raw::tls(server).expect(Kind::Hello);
    hello.header["minor"]
        .as_u64()
        .is_some_and(|minor| minor >= 1)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn each_serves_the_other() {
    for (client, program) in pairs() {
        let server = program.serve();
        let target = server.target();
        let script = "cat; echo err >&2; exit 7";
        let mut run = client.client(&server, &["run", &target, "--", "sh", "-c", script]);
        run.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut run = run.stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = run.stdin.take().unwrap();
        // More than any window.
        let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 256) as u8).collect();
        let done = std::thread::scope(|scope| {
            scope.spawn(|| {
                stdin.write_all(&data).unwrap();
                drop(stdin);
            });
            run.wait_with_output().unwrap()
        });
        let err = text(&done.stderr);
        assert_eq!((done.status.code(), err.as_str()), (Some(7), "err\n"));
        assert!(done.stdout == data);

        let run = |flags: &[&str], argv: &[&str]| {
            let args = [&["run"], flags, &[&target, "--"], argv].concat();
            client.done(&server, &args).status.code()
        };
        assert_eq!(run(&["--timeout", "50ms"], &["sleep", "1000"]), Some(124));
        assert_eq!(run(&[], &["sh", "-c", "kill -9 $$"]), Some(128 + 9));
        assert_eq!(run(&[], &["/there/is/no/such/program"]), Some(127));
        listed_and_killed(&client, &server);
        if client.copies && program.copies {
            copied(&client, &server);
        }
    }
}

fn listed_and_killed(client: &Program, server: &Server) {
    let target = server.target();
    let script = "echo up; exec sleep 1000";
    let sleep = client.client(server, &["run", &target, "--", "sh", "-c", script]);
    let mut sleep = Piped::start(sleep);
    sleep.hears("up\n");
    let jobs = client.done(server, &["jobs", "--json", &target]);
    let job: serde_json::Value = serde_json::from_slice(&jobs.stdout).unwrap();
    let id = job["job"].as_str().unwrap();
    for args in [&["ping", "-c", "1", &target][..], &["kill", &target, id]] {
        let done = client.done(server, args);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    }
    let (status, _, err) = sleep.end();
    assert_eq!(status.code(), Some(128 + 15), "{err}");
}

/// A file there and back, and once more when a part of it has changed.
fn copied(client: &Program, server: &Server) {
    let target = server.target();
    let [here, there, back] = ["here", "there", "back"].map(|name| server.dir().join(name));
    let over_there = format!("{target}:{}", there.display());
    let mut data: Vec<u8> = (0..5_000_000_u32)
        .map(|at| (at.wrapping_mul(at) >> 8) as u8)
        .collect();
    for changed in [0, 2_500_000] {
        data[changed] ^= 0xff;
        std::fs::write(&here, &data).unwrap();
        for (from, to, copy) in [
            (here.to_str().unwrap(), &*over_there, &there),
            (&over_there, back.to_str().unwrap(), &back),
        ] {
            let done = client.done(server, &["cp", from, to]);
            let said = text(&done.stderr);
            if said.contains("of the copy protocol") {
                // Two that cannot copy to each other say so, and leave nothing.
                assert_ne!(Program::old_one(), Program::new_one(), "{said}");
                assert_eq!(done.status.code(), Some(1), "{said}");
                assert!(!copy.exists());
                eprintln!("no copy between the two: {said}");
                return;
            }
            assert_eq!(done.status.code(), Some(0), "{said}");
        }
        assert!(std::fs::read(&back).unwrap() == data);
    }
}

/// A job goes on where both can do that, and is told as lost where one cannot.
#[test]
fn a_line_between_them_breaks() {
    for (client, program) in pairs() {
        let server = program.serve();
        let way = Way::to(server.port().unwrap());
        let target = way.target();
        let script = "echo up; read x; seq 100000; echo $x; exit 5";
        let args = ["run", "--trust", "new", &target, "--", "sh", "-c", script];
        let mut run = Piped::start(client.client(&server, &args));
        run.says_next("pinned its host key");
        run.hears("up\n");
        way.cut(true);
        if client.comes_back && keeps(&server) {
            run.send("one\n");
            for number in 1..=100_000 {
                run.hears(&format!("{number}\n"));
            }
            run.hears("one\n");
            assert_eq!(run.end().0.code(), Some(5));
        } else {
            let (status, out, err) = run.end();
            assert_eq!((status.code(), out.as_str()), (Some(255), ""), "{err}");
        }
    }
}

/// Whether an older program could be replaced at all is told; its jobs run on in any case.
#[test]
fn the_new_one_takes_the_place_of_the_old_one() {
    const JOBS: usize = 20;
    let (old, new) = (Program::old_one(), Program::new_one());
    let host = Replaceable::of(&old.path, |_, _| {});
    if !keeps(&host.server) {
        eprintln!("the older program is of minor 0, and cannot be replaced while it runs");
        return;
    }
    let target = host.server.target();
    let script = "echo up; read x; seq 10000; echo $x; exit $0";
    let start = |number: usize| {
        let client = match old.comes_back && number.is_multiple_of(2) {
            true => &old,
            false => &new,
        };
        let status = number.to_string();
        let args = ["run", &target, "--", "sh", "-c", script, &status];
        let mut job = Piped::start(client.client(&host.server, &args));
        job.hears("up\n");
        job
    };
    let running: Vec<Piped> = (1..=JOBS).map(start).collect();
    let replaced = host.try_upgrade();
    eprintln!("the older program was replaced: {replaced}");
    if !replaced {
        assert_ne!(old, new, "{}", host.log());
        eprintln!("{}", host.log());
    }
    for (number, mut job) in (1..).zip(running) {
        let typed = format!("job {number}\n");
        job.send(&typed);
        for number in 1..=10_000 {
            job.hears(&format!("{number}\n"));
        }
        job.hears(&typed);
        let (status, out, err) = job.end();
        assert_eq!((status.code(), out.as_str()), (Some(number), ""), "{err}");
    }
    // And it serves.
    for client in [&old, &new] {
        let done = client.done(&host.server, &["run", &target, "--", "true"]);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    }
}
