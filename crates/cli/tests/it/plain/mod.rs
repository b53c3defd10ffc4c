//! The plain services with real programs on the other side: Python as a tutorial writes
//! it (`stock/`), chronyd and ntpdig, and bowline's own client.

mod clients;
mod clock;
mod exec;
mod floods;
mod services;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::server::{bowline, is_root, signal_process};

/// Nothing here is waited for longer.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A program that serves, its addresses first on stdout; ended when dropped.
pub(crate) struct Serving {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: BufReader<ChildStdout>,
    pub(crate) addresses: Vec<String>,
    _home: Option<tempfile::TempDir>,
}

impl Serving {
    /// `bowline plain serve` with these words; as root its commands run as root.
    pub(crate) fn bowline(words: &[&str]) -> Serving {
        let home = tempfile::tempdir().unwrap();
        let mut command = plain(home.path());
        command.arg("serve").args(words);
        if is_root() && words[0] == "exec" {
            command.args(["--user", "root"]);
        }
        let listeners = words.iter().filter(|word| **word == "--listen").count();
        let mut serving = Serving::start(command, listeners.max(1));
        serving._home = Some(home);
        serving
    }

    /// A stock server of `stock/`, which says its port.
    pub(crate) fn python(script: &str, args: &[&str]) -> Serving {
        let mut command = python(script);
        command.args(args);
        Serving::start(command, 1)
    }

    pub(crate) fn start(mut command: Command, lines: usize) -> Serving {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let addresses = (0..lines).map(|_| {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert!(line.ends_with('\n'), "{command:?} said {line:?}");
            line.trim_end().to_owned()
        });
        let addresses = addresses.collect();
        Serving {
            child,
            stdin,
            stdout,
            addresses,
            _home: None,
        }
    }

    /// The port of the first address.
    pub(crate) fn port(&self) -> u16 {
        self.addresses[0]
            .rsplit(':')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// What it shows next.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with a signal and gives its exit status.
    pub(crate) fn end(&mut self, signal: i32) -> Option<i32> {
        signal_process(self.child.id(), signal);
        self.wait()
    }

    /// Its exit status, once it has ended.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal_process(self.child.id(), 15);
            let _ = self.child.wait();
        }
    }
}

/// `bowline plain` in a home of its own.
pub(crate) fn plain(home: &Path) -> Command {
    let mut command = Command::new(bowline());
    command
        .arg("plain")
        .env("HOME", home)
        .env_remove("XDG_STATE_HOME");
    command
}

pub(crate) fn python(script: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/plain/stock");
    let mut command = Command::new("python3");
    command
        .arg(folder.join(script))
        .env("PYTHONIOENCODING", "utf-8");
    command
}

/// Runs a program on these lines.
pub(crate) fn feed(mut command: Command, lines: &str) -> Output {
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines = lines.to_owned();
    // It may end without reading them all.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(lines.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// What a stock client of `stock/` says.
#[track_caller]
pub(crate) fn stock(script: &str, port: u16, args: &[&str], lines: &str) -> String {
    let mut command = python(script);
    command.arg(port.to_string()).args(args);
    said(feed(command, lines))
}

/// What bowline's own client says.
#[track_caller]
pub(crate) fn client(words: &[&str], lines: &str) -> String {
    said(client_output(words, lines))
}

pub(crate) fn client_output(words: &[&str], lines: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = plain(home.path());
    command.arg("connect").args(words);
    feed(command, lines)
}

#[track_caller]
pub(crate) fn said(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// All that comes until the other side closes.
pub(crate) fn to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// Waits for something that no descriptor tells, giving the processor away meanwhile.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "{what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Whether a process runs; one that only waits to be reaped does not.
pub(crate) fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
