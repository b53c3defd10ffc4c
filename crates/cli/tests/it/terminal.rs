//! `bowline` on a terminal: a pseudo-terminal that is the controlling one of a
//! session of its own, as a person's is.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

/// How long anything may take to show up on a terminal.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program on a terminal, and the person in front of it.
pub(crate) struct Terminal {
    child: Child,
    master: File,
    seen: Vec<u8>,
    /// What was expected already, in bytes of `seen`.
    passed: usize,
}

impl Terminal {
    /// Starts a command on a new terminal, which is its stdin, stdout and stderr.
    pub(crate) fn start(command: &Command) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let stdio = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let mut on_terminal = Command::new("setsid");
        on_terminal
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(name, value),
                None => on_terminal.env_remove(name),
            };
        }
        let child = on_terminal
            .stdin(stdio(&slave))
            .stdout(stdio(&slave))
            .stderr(stdio(&slave))
            .spawn()
            .unwrap();
        Terminal {
            child,
            master: File::from(master),
            seen: Vec::new(),
            passed: 0,
        }
    }

    /// Waits until a text is shown, behind what was expected before, and gives
    /// what stood in front of it.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rest = &self.seen[self.passed..];
            let found = rest
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let before = String::from_utf8_lossy(&rest[..at]).into_owned();
                self.passed += at + text.len();
                return before;
            }
            let more = self.read(deadline);
            assert!(more, "no {text:?} in {:?}", self.shown());
        }
    }

    /// Types, as if at the keyboard.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Whether what is typed is shown.
    pub(crate) fn echoes(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.master).unwrap();
        modes
            .local_modes
            .contains(rustix::termios::LocalModes::ECHO)
    }

    /// Whether a line is edited before a program gets it.
    pub(crate) fn is_cooked(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.master).unwrap();
        modes
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    }

    /// Sets the modes of a shell, whoever has it.
    pub(crate) fn cook(&self) {
        let mut modes = rustix::termios::tcgetattr(&self.master).unwrap();
        modes.local_modes |=
            rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO;
        rustix::termios::tcsetattr(&self.master, rustix::termios::OptionalActions::Now, &modes)
            .unwrap();
    }

    /// Makes its window another size, in characters.
    pub(crate) fn resize(&self, cols: u16, rows: u16) {
        let size = rustix::termios::Winsize {
            ws_col: cols,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
    }

    /// Waits until something more is shown; `false` where nothing is for long.
    pub(crate) fn more(&mut self) -> bool {
        self.read(Instant::now() + PATIENCE)
    }

    /// The same as [`Terminal::end`], and the terminal's modes are those of a shell.
    pub(crate) fn end_cooked(self) -> (ExitStatus, String) {
        let master = self.master.try_clone().unwrap();
        let ended = self.end();
        let modes = rustix::termios::tcgetattr(&master).unwrap();
        let cooked = rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO;
        assert!(modes.local_modes.contains(cooked), "{modes:?}");
        ended
    }

    /// Waits for the end; gives the status and all that was shown.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        self.wait_end();
        let status = self.child.wait().unwrap();
        (status, self.shown())
    }

    /// Waits until nobody has the terminal open any more.
    pub(crate) fn wait_end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.read(deadline) {}
        assert!(
            Instant::now() < deadline,
            "still something on the terminal: {:?}",
            self.shown()
        );
    }

    /// Everything that was shown, with plain newlines.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.seen).replace("\r\n", "\n")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads what there is; `false` at the end, when nobody has the terminal
    /// open any more, and at the deadline.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&left)).unwrap() == 0 {
            return false;
        }
        let mut bytes = [0; 4096];
        match self.master.read(&mut bytes) {
            // EIO is how a pseudo-terminal says that nobody is left.
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.seen.extend_from_slice(&bytes[..read]);
                true
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::Command;

    use super::Terminal;
    use crate::openssh::{forget_key, let_in, public, ssh_keygen};
    use crate::run::wait_gone;
    use crate::server::{Server, bowline, children_of};

    const CTRL_C: &str = "\u{3}";
    const CTRL_D: &str = "\u{4}";

    #[test]
    fn what_a_program_says_is_shown_and_nothing_else() {
        let server = Server::start();
        let terminal = Terminal::start(&server.run(&[], &["sh", "-c", "echo out; echo err >&2"]));
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(0));
        assert!(shown == "out\nerr\n" || shown == "err\nout\n", "{shown:?}");
    }

    #[test]
    fn what_is_typed_reaches_the_program() {
        let server = Server::start();
        let script = "echo ready; read line; echo \"got $line\"; cat; echo end";
        let mut terminal = Terminal::start(&server.run(&[], &["sh", "-c", script]));
        terminal.expect("ready\r\n");
        terminal.type_in("one line\n");
        terminal.expect("got one line\r\n");
        terminal.type_in("more\n");
        terminal.expect("more\r\nmore\r\n");
        terminal.type_in(CTRL_D);
        terminal.expect("end\r\n");
        assert_eq!(terminal.end().0.code(), Some(0));
    }

    #[test]
    fn ctrl_c_once_is_the_programs_and_twice_is_ours() {
        let server = Server::start();
        // A program that dies of it: as if it were here.
        let sleep = ["sh", "-c", "echo $$; exec sleep 1000"];
        let mut terminal = Terminal::start(&server.run(&[], &sleep));
        let pid = pid(&mut terminal);
        terminal.type_in(CTRL_C);
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(130), "{shown}");
        assert!(!shown.contains("bowline:"), "{shown}");
        wait_gone(pid);

        // One that has its own mind about it, and goes on.
        let script = "trap 'echo caught' INT; echo $$; while :; do sleep 0.02; done";
        let mut terminal = Terminal::start(&server.run(&[], &["sh", "-c", script]));
        let pid = self::pid(&mut terminal);
        terminal.type_in(CTRL_C);
        terminal.expect("caught\r\n");
        terminal.type_in(CTRL_C);
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(130), "{shown}");
        wait_gone(pid);

        // One that catches it and ends in its own way: its status counts.
        let script = "trap 'echo bye; exit 3' INT; echo $$; while :; do sleep 0.02; done";
        let mut terminal = Terminal::start(&server.run(&[], &["sh", "-c", script]));
        terminal.expect("\r\n");
        terminal.type_in(CTRL_C);
        terminal.expect("bye\r\n");
        assert_eq!(terminal.end().0.code(), Some(3));
    }

    /// The number on the next line.
    fn pid(terminal: &mut Terminal) -> i32 {
        terminal.expect("\r\n").trim().parse().unwrap()
    }

    #[test]
    fn ctrl_c_at_a_question_leaves_the_terminal_as_it_was() {
        let server = Server::start();
        forget_key(&server);
        let key = server.home().join(".ssh/id_ed25519");
        ssh_keygen(&key, &["-t", "ed25519", "-a", "4", "-N", "phrase"]);
        let_in(&server, &std::fs::read_to_string(public(&key)).unwrap());
        let mut terminal = Terminal::start(&server.run(&[], &["true"]));
        terminal.expect("id_ed25519: ");
        assert!(!terminal.echoes());
        terminal.type_in("half of the phr");
        terminal.type_in(CTRL_C);
        terminal.expect("\r\n");
        assert!(terminal.echoes());
        let (status, shown) = terminal.end();
        assert_eq!(status.signal(), Some(2), "{shown}");
        assert!(!shown.contains("half"), "{shown}");

        // Also where another key was refused before, so that signals are caught already.
        ssh_keygen(&server.home().join(".ssh/id_ecdsa"), &["-t", "ecdsa"]);
        let mut terminal = Terminal::start(&server.run(&[], &["true"]));
        terminal.expect("id_ed25519: ");
        terminal.type_in(CTRL_C);
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(130), "{shown}");
    }

    #[test]
    fn a_person_may_think_for_longer_than_the_server_waits() {
        let (said, says) = std::io::pipe().unwrap();
        let server = Server::start_with(|command, dir| {
            let config = dir.join("server.toml");
            std::fs::write(&config, "[limits]\nauth_timeout = \"500ms\"\n").unwrap();
            command.arg("-v").arg("--config").arg(config).stderr(says);
        });
        let mut said = BufReader::new(said).lines();
        let mut gave_up = || {
            let mut lines = said.by_ref().map(Result::unwrap);
            assert!(lines.any(|line| line.contains("authentication took too long")));
        };
        std::fs::remove_file(server.home().join(".config/bowline/known_hosts")).unwrap();
        forget_key(&server);
        let key = server.home().join(".ssh/id_ed25519");
        ssh_keygen(&key, &["-t", "ed25519", "-a", "4", "-N", "phrase"]);
        let_in(&server, &std::fs::read_to_string(public(&key)).unwrap());
        let mut terminal = Terminal::start(&server.run(&[], &["echo", "in"]));
        terminal.expect("the fingerprint) ");
        gave_up();
        terminal.type_in("yes\n");
        terminal.expect("id_ed25519: ");
        terminal.type_in("phrase\n");
        terminal.expect("in\r\n");
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(0), "{shown}");
        assert!(!shown.contains("bowline:"), "{shown}");
        let mut terminal = Terminal::start(&server.run(&[], &["echo", "in"]));
        terminal.expect("id_ed25519: ");
        gave_up();
        terminal.type_in("phrase\n");
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(0), "{shown}");
    }

    #[test]
    fn nobody_is_asked_in_the_background() {
        let server = Server::start();
        std::fs::remove_file(server.home().join(".config/bowline/known_hosts")).unwrap();
        // With job control the shell gives it a process group of its own.
        let mut shell = Command::new("sh");
        shell
            .args([
                "-c",
                "set -m; \"$0\" run \"$1\" -- true & wait $!; echo status $?",
            ])
            .arg(bowline())
            .arg(server.target());
        server.client(&mut shell);
        let mut terminal = Terminal::start(&shell);
        let shown = terminal.expect("status 255");
        assert!(shown.contains("[host_key_unknown]"), "{shown}");
        drop(terminal.end());
    }

    #[test]
    fn an_error_has_a_place_a_code_and_a_hint() {
        let server = Server::start();
        let show = |flags: &[&str], argv: &[&str], color: Option<&str>| {
            let mut command = server.run(flags, argv);
            command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
            if let Some(value) = color {
                command.env("NO_COLOR", value);
            }
            Terminal::start(&command).end()
        };
        for color in [None, Some("1")] {
            let (status, shown) = show(&[], &["no-such-program"], color);
            assert_eq!(status.code(), Some(127));
            let target = server.target();
            assert!(shown.starts_with("bowline: "), "{shown}");
            assert!(
                shown.contains(&target) || shown.contains("no-such-program"),
                "{shown}"
            );
            assert!(shown.contains("[not_found]\n  hint: "), "{shown}");
            assert!(!shown.contains('\u{1b}'), "{shown:?}");
        }
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = closed.local_addr().unwrap().to_string();
        drop(closed);
        let run = server.command(&["run", &nobody, "--", "true"]);
        let (status, shown) = Terminal::start(&run).end();
        assert_eq!(status.code(), Some(255));
        assert!(shown.contains(&nobody), "{shown}");
        assert!(shown.contains("[connect_failed]\n  hint: "), "{shown}");
        let run = server.command(&["run", "no such host", "--", "true"]);
        let (status, shown) = Terminal::start(&run).end();
        assert_eq!(status.code(), Some(2), "{shown}");
    }

    #[test]
    fn keygen_asks_twice() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let mut keygen = Command::new(bowline());
        keygen.args(["keygen", "--passphrase"]).arg(&file);
        let mut terminal = Terminal::start(&keygen);
        terminal.expect("Passphrase: ");
        terminal.type_in("one phrase\n");
        terminal.expect("Again: ");
        terminal.type_in("another\n");
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(2), "{shown}");
        assert!(!file.exists());
        let mut terminal = Terminal::start(&keygen);
        terminal.expect("Passphrase: ");
        terminal.type_in("one phrase\n");
        terminal.expect("Again: ");
        terminal.type_in("one phrase\n");
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(0), "{shown}");
        // ssh-keygen opens it with the passphrase, and only with it.
        let open = |passphrase| {
            let mut open = Command::new("ssh-keygen");
            open.args(["-y", "-P", passphrase, "-f"]).arg(&file);
            open.output().unwrap().status.success()
        };
        assert!(open("one phrase") && !open("another"));
    }

    /// What the target `local` has in a temporary folder.
    fn traces(tmp: &Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(tmp).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn the_target_local_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        crate::openssh::passable(dir.path());
        let tmp = dir.path().join("tmp");
        std::fs::create_dir(&tmp).unwrap();
        crate::openssh::passable(&tmp);
        let local = |argv: &[&str]| {
            let mut command = Command::new(bowline());
            command.args(["run", "local", "--"]).args(argv);
            command.env("HOME", dir.path()).env("TMPDIR", &tmp);
            command
        };
        let terminal = Terminal::start(&local(&["echo", "here"]));
        let (status, shown) = terminal.end();
        assert_eq!((status.code(), shown.as_str()), (Some(0), "here\n"));
        assert_eq!(traces(&tmp), [] as [&Path; 0]);

        let script = "trap 'echo caught' INT; echo $$; while :; do sleep 0.02; done";
        for (argv, presses) in [
            (&["sh", "-c", "echo $$; exec sleep 1000"][..], 1),
            (&["sh", "-c", script], 2),
        ] {
            let mut terminal = Terminal::start(&local(argv));
            let job = pid(&mut terminal);
            assert_eq!(traces(&tmp).len(), 1);
            let server = children_of(terminal.pid());
            assert_eq!(server.len(), 1, "{server:?}");
            let keeper = server[0].0;
            let gate = children_of(keeper);
            for press in 0..presses {
                if press > 0 {
                    terminal.expect("caught\r\n");
                }
                terminal.type_in(CTRL_C);
            }
            let (status, shown) = terminal.end();
            assert_eq!(status.code(), Some(130), "{shown}");
            assert!(!shown.contains("bowline:"), "{shown}");
            wait_gone(job);
            for (pid, _) in gate {
                wait_gone(pid as i32);
            }
            wait_gone(keeper as i32);
            assert_eq!(traces(&tmp), [] as [&Path; 0]);
        }

        // Whoever closes the window, or kills the client, leaves none either.
        for signal in [1, 15, 9] {
            let mut terminal = Terminal::start(&local(&["sh", "-c", "echo $$; exec sleep 1000"]));
            let job = pid(&mut terminal);
            let keeper = children_of(terminal.pid())[0].0;
            crate::server::signal_process(terminal.pid(), signal);
            let (_, shown) = terminal.end();
            wait_gone(job);
            wait_gone(keeper as i32);
            assert_eq!(traces(&tmp), [] as [&Path; 0], "{shown}");
        }
    }
}
