//! What must not be disturbed while somebody attacks: a session that was open
//! before, the gate's process, and the start of new jobs.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::server::{Server, children_of};

/// A server with TCP and a Unix socket, and somebody who uses it.
pub(crate) struct Witness {
    client: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    lines: u64,
    gate: u32,
    // Dropped last.
    pub(crate) server: Server,
}

impl Witness {
    /// With `config` as the server's configuration file.
    pub(crate) fn start(config: &str) -> Witness {
        Witness::start_with(config, |_, _| {})
    }

    /// The same with more flags or files.
    pub(crate) fn start_with(config: &str, change: impl FnOnce(&mut Command, &Path)) -> Witness {
        let server = Server::start_with(|command, dir| {
            std::fs::write(dir.join("server.toml"), config).unwrap();
            command.arg("--config").arg(dir.join("server.toml"));
            let socket = format!("unix:{}", dir.join("socket").display());
            command.args(["--listen", &socket]);
            change(command, dir);
        });
        let mut client = server
            .run(&[], &["cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = client.stdin.take();
        let from = BufReader::new(client.stdout.take().unwrap());
        let mut witness = Witness {
            client,
            to,
            from,
            lines: 0,
            gate: 0,
            server,
        };
        witness.speaks("the start");
        witness.gate = gate_of(&witness.server);
        witness
    }

    fn speaks(&mut self, after: &str) {
        self.lines += 1;
        let line = format!("line {}\n", self.lines);
        let to = self.to.as_mut().unwrap();
        to.write_all(line.as_bytes()).unwrap();
        let mut back = String::new();
        self.from.read_line(&mut back).unwrap();
        assert_eq!(back, line, "the open session, after {after}");
    }

    /// The open session goes on, the gate is the same process, a new job runs.
    pub(crate) fn check(&mut self, after: &str) {
        self.speaks(after);
        let run = self.server.run(&["-n"], &["echo", "new"]).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(
            run.status.success() && run.stdout == b"new\n",
            "a new job after {after}: {said}"
        );
        assert_eq!(gate_of(&self.server), self.gate, "the gate after {after}");
    }

    /// The gate's process id.
    pub(crate) fn gate(&self) -> u32 {
        self.gate
    }

    /// Bytes of memory that the gate has resident.
    pub(crate) fn gate_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.gate)).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // The end of its input is the end of the session.
        self.to = None;
        let status = self.client.wait();
        if !std::thread::panicking() {
            assert!(status.unwrap().success(), "the open session's end");
        }
    }
}

/// The server's gate.
pub(crate) fn gate_of(server: &Server) -> u32 {
    let children = children_of(server.pid());
    let gate = children.iter().find(|(_, line)| line.contains(" gate "));
    gate.unwrap_or_else(|| panic!("no gate among {children:?}"))
        .0
}
