//! The client of a job, from its start until it ends or is killed, and the next one that takes
//! its place: what goes into it, what comes out, and what it says.

use std::io::BufReader;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};

use super::coded::{self, Reader};
use super::way::Way;

/// What a client is asked to do.
pub(super) enum Errand<'a> {
    /// To run this program, as a new job.
    Run(&'a [String]),
    /// To attach to the job with this id, and show all that is kept of its output.
    Attach(&'a str),
}

/// How much goes into the program of a job, and under which key.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub(super) key: u64,
    pub(super) words: u64,
}

/// A client's process and whatever stands around it; killed when dropped.
struct Process(Child);

impl Process {
    fn kill(&self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}

/// One that runs.
pub(super) struct Client<'scope> {
    process: Process,
    output: ScopedJoinHandle<'scope, (Reader, Result<(), u64>)>,
    said: ScopedJoinHandle<'scope, String>,
}

/// One that is over.
pub(super) struct Ended {
    pub(super) status: Option<i32>,
    pub(super) reader: Reader,
    /// Where its output was wrong.
    pub(super) output: Result<(), u64>,
    pub(super) said: String,
}

impl<'scope> Client<'scope> {
    /// `reader` has read what the clients before it have shown.
    pub(super) fn begin<'env>(
        scope: &'scope Scope<'scope, 'env>,
        mut command: Command,
        (mut reader, input): (Reader, Input),
        (first, way): (bool, &'env Way),
    ) -> Client<'scope> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let (tell, told) = channel();
        if first {
            tell.send(0).unwrap();
        }
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        scope.spawn(move || feed(stdin, &told, input));
        let said = scope.spawn(move || listen(stderr, &tell));
        let output = scope.spawn(move || {
            let came = reader.read(stdout, first);
            way.done();
            (reader, came)
        });
        Client {
            process: Process(child),
            output,
            said,
        }
    }

    /// Whether all of its output has come.
    pub(super) fn is_read(&self) -> bool {
        self.output.is_finished()
    }

    /// Kills it.
    pub(super) fn kill(self) -> Ended {
        self.process.kill();
        self.end()
    }

    /// Waits for its end.
    pub(super) fn end(mut self) -> Ended {
        let (reader, output) = self.output.join().unwrap();
        let status = self.process.0.wait().unwrap().code();
        let said = self.said.join().unwrap();
        Ended {
            status,
            reader,
            output,
            said,
        }
    }
}

/// Gives it the job's input from where the server goes on; nothing where it never says.
fn feed(to: impl std::io::Write, told: &Receiver<u64>, input: Input) {
    if let Ok(from) = told.recv() {
        coded::write(to, input.key, from, input.words);
    }
}

/// Collects what it says. With `-v` that is also how much of the input has arrived.
fn listen(from: impl std::io::BufRead, tell: &Sender<u64>) -> String {
    let mut said = String::new();
    for line in from.lines() {
        let line = line.unwrap();
        let arrived = line.split_once(" stdin=").map(|(_, rest)| rest);
        let arrived = arrived.and_then(|rest| rest.split(' ').next()?.parse().ok());
        if let Some(arrived) = arrived.filter(|_| line.contains(" started ")) {
            // Only the first is waited for.
            let _ = tell.send(arrived);
        }
        said.push_str(&line);
        said.push('\n');
    }
    said
}
