//! Servers of each minor that there was, in Python and from PROTOCOL.md alone: this client
//! uses of each what it has, and asks no more of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use crate::server::bowline;

/// One of them, which ends with its test.
struct OldServer {
    child: Child,
    out: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
}

impl OldServer {
    /// `args` are its minor, and where its first connection breaks if it does.
    fn start(args: &[&str]) -> OldServer {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/stranger_server.py");
        let child = Command::new("python3")
            .arg(script)
            .arg(dir.path().join("socket"))
            .args(args)
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.expect("python3");
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut server = OldServer { child, out, dir };
        assert_eq!(server.line(), "listening\n");
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    fn target(&self) -> String {
        format!("unix:{}", self.dir.path().join("socket").display())
    }

    /// A client of it: `TARGET` among its arguments stands for the server.
    fn client(&self, args: &[&str]) -> Command {
        let target = self.target();
        let mut command = Command::new(bowline());
        command.args(args.iter().map(|arg| match *arg {
            "TARGET" => &*target,
            other => other,
        }));
        command.env("HOME", self.dir.path());
        command.env_remove("SSH_AUTH_SOCK");
        command.env_remove("XDG_CONFIG_HOME");
        command
    }

    fn done(&self, args: &[&str]) -> Output {
        let mut client = self.client(args);
        client.stdin(Stdio::null()).output().unwrap()
    }

    /// What it has said since it began to listen.
    fn said(mut self) -> String {
        self.child.kill().unwrap();
        let mut said = String::new();
        self.out.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for OldServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn jobs_of_an_old_server_run_to_their_ends() {
    for (minor, asked) in [("0", "start kill\n"), ("1", "start keep\n")] {
        let server = OldServer::start(&[minor]);
        let done = server.done(&["run", "TARGET", "--", "sh", "-c", "echo err >&2; exit 7"]);
        let (status, err) = (done.status.code(), text(&done.stderr));
        assert_eq!((status, err.as_str()), (Some(7), "err\n"), "minor {minor}");

        // More than any window.
        let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 256) as u8).collect();
        let mut tee = server.client(&["run", "TARGET", "--", "tee", "/dev/stderr"]);
        tee.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut tee = tee.stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = tee.stdin.take().unwrap();
        let done = std::thread::scope(|scope| {
            scope.spawn(|| {
                stdin.write_all(&data).unwrap();
                drop(stdin);
            });
            tee.wait_with_output().unwrap()
        });
        assert!(done.stdout == data && done.stderr == data, "minor {minor}");

        let mut sleep = server.client(&["run", "TARGET", "--", "sleep", "1000"]);
        let sleep = sleep.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let id = loop {
            let jobs = server.done(&["jobs", "--json", "TARGET"]);
            let said = text(&jobs.stderr);
            assert_eq!(jobs.status.code(), Some(0), "minor {minor}: {said}");
            if let Ok(job) = serde_json::from_slice::<serde_json::Value>(&jobs.stdout) {
                break job["job"].as_str().unwrap().to_owned();
            }
        };
        for args in [&["ping", "-c", "1", "TARGET"][..], &["kill", "TARGET", &id]] {
            let done = server.done(args);
            let said = text(&done.stderr);
            assert_eq!(done.status.code(), Some(0), "minor {minor}: {said}");
        }
        let killed = sleep.unwrap().wait_with_output().unwrap();
        assert_eq!(killed.status.code(), Some(128 + 15), "minor {minor}");
        assert_eq!(server.said(), asked.repeat(3), "minor {minor}");
    }
}

#[test]
fn what_an_old_server_does_not_know_is_not_asked_of_it() {
    let mut server = OldServer::start(&["0"]);
    let mut job = server.client(&["run", "TARGET", "--", "cat"]);
    let mut job = job.stdin(Stdio::piped()).spawn().unwrap();
    assert_eq!(server.line(), "start kill\n");
    let jobs = server.done(&["jobs", "--json", "TARGET"]);
    let id: serde_json::Value = serde_json::from_slice(&jobs.stdout).unwrap();
    let id = id["job"].as_str().unwrap();
    let no_terminals = [
        &["run", "--pty", "TARGET", "--", "true"][..],
        &["shell", "TARGET"],
    ];
    let no_attachments = [
        &["run", "--detach", "TARGET", "--", "true"][..],
        &["attach", "TARGET", id],
        &["logs", "TARGET", id],
        &["wait", "TARGET", id],
    ];
    let no_terminals = no_terminals.map(|args| (args, "[no_terminals]"));
    let no_attachments = no_attachments.map(|args| (args, "[no_attachments]"));
    for (args, code) in no_terminals.into_iter().chain(no_attachments) {
        let done = server.done(args);
        let said = text(&done.stderr);
        assert!(said.contains(code), "{args:?}: {said}");
        assert_eq!(done.status.code(), Some(255), "{args:?}");
    }
    // What is there already has not noticed.
    drop(job.stdin.take());
    assert_eq!(job.wait().unwrap().code(), Some(0));
    assert_eq!(server.said(), "");
}

#[test]
fn a_line_to_an_old_server_that_breaks_is_as_that_server_has_it() {
    let whole: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    let seq = ["run", "TARGET", "--", "seq", "100000"];
    let server = OldServer::start(&["0", "100000"]);
    let done = server.done(&seq);
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(255), "{err}");
    assert!(err.contains("what became of it is not known"), "{err}");
    assert!(whole.as_bytes().starts_with(&done.stdout));
    assert_eq!(server.said(), "start kill\ncut\n");

    let server = OldServer::start(&["1", "100000"]);
    let done = server.done(&seq);
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{err}");
    assert!(whole.as_bytes() == done.stdout);
    let said = server.said();
    let attach = said.strip_prefix("start keep\ncut\nattach ").unwrap();
    let from: usize = attach.split(' ').next().unwrap().parse().unwrap();
    assert!((1..whole.len()).contains(&from), "{said}");
    assert_eq!(said.lines().count(), 3, "{said}");
}
