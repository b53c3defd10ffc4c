//! A client's process that goes on while the test does, with pipes on all of its streams.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

/// It, and what comes out of it.
pub(crate) struct Piped {
    pub(crate) child: Child,
    /// Until the test has had enough.
    pub(crate) out: Option<BufReader<ChildStdout>>,
    pub(crate) err: BufReader<ChildStderr>,
}

impl Piped {
    pub(crate) fn start(mut command: Command) -> Piped {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().map(BufReader::new);
        let err = BufReader::new(child.stderr.take().unwrap());
        Piped { child, out, err }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn hears(&mut self, line: &str) {
        assert_eq!(self.line(), line);
    }

    /// The next line of what bowline itself says.
    pub(crate) fn says_next(&mut self, what: &str) -> String {
        let mut said = String::new();
        self.err.read_line(&mut said).unwrap();
        assert!(said.contains(what), "{said}");
        said
    }

    /// Waits until bowline itself says this.
    pub(crate) fn says(&mut self, what: &str) {
        let mut said = String::new();
        while !said.contains(what) {
            let from = said.len();
            self.err.read_line(&mut said).unwrap();
            assert!(said.len() > from, "{said}");
        }
    }

    pub(crate) fn send(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }

    /// How it ends, and what else comes on its stdout and stderr.
    pub(crate) fn end(mut self) -> (ExitStatus, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        if let Some(stdout) = &mut self.out {
            stdout.read_to_string(&mut out).unwrap();
        }
        self.err.read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap(), out, err)
    }
}
