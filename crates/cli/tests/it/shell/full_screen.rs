//! Full-screen programs in a real terminal emulator (tmux), over a line of 200 ms.

use std::process::Command;
use std::time::Duration;

use crate::hostile::witness::gate_of;
use crate::server::{Server, signal_process};
use crate::slow_line::slow_line;
use crate::terminal::Terminal;

/// Half of what a round trip takes.
const DELAY: Duration = Duration::from_millis(100);

/// tmux with one window, in which a client runs, at a terminal of the test.
struct Screen {
    at: Terminal,
    socket: std::path::PathBuf,
}

impl Screen {
    fn start(server: &Server, argv: &[&str]) -> Screen {
        let port = slow_line(server.port().unwrap(), DELAY);
        let target = format!("127.0.0.1:{port}");
        // The line's end has another port, and the same host key.
        let known_hosts = server.home().join(".config/bowline/known_hosts");
        let line = std::fs::read_to_string(&known_hosts).unwrap();
        let key = line.split_once(' ').unwrap().1;
        std::fs::write(&known_hosts, format!("{line}\n[127.0.0.1]:{port} {key}")).unwrap();
        let socket = server.dir().join("tmux");
        let mut command = Command::new("sh");
        let script = "stty cols 90 rows 30; exec tmux -S \"$0\" -f /dev/null -u new-session \"$@\"";
        command.args(["-c", script]).arg(&socket);
        command.arg(crate::server::bowline());
        command.args(["run", "--pty", &target, "--"]).args(argv);
        server.client(&mut command);
        command.env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
        command.env_remove("TMUX");
        let at = Terminal::start(&command);
        Screen { at, socket }
    }

    /// What tmux, as a terminal, shows now.
    fn shown(&self) -> String {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S")
            .arg(&self.socket)
            .args(["capture-pane", "-p"]);
        String::from_utf8(tmux.output().unwrap().stdout).unwrap()
    }

    /// Waits until the screen is as it should be. Whenever it changes, tmux
    /// writes to the test's terminal, and it is looked at again.
    fn wait(&mut self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        loop {
            let shown = self.shown();
            if is_so(&shown) {
                return shown;
            }
            assert!(self.at.more(), "{what}: {shown}");
        }
    }
}

fn first_line(shown: &str) -> &str {
    shown.lines().next().unwrap_or_default().trim_end()
}

#[test]
fn an_editor_works_on_a_slow_line() {
    let server = Server::start();
    let file = server.dir().join("text");
    let vim = ["vim", "-u", "NONE", "-i", "NONE", "-n", "--noplugin"];
    let argv = [&vim[..], &[file.to_str().unwrap()]].concat();
    let mut screen = Screen::start(&server, &argv);
    screen.wait("an empty page", |shown| {
        shown.lines().filter(|line| *line == "~").count() > 20
    });
    screen.at.type_in("ione\rzwölf");
    screen.wait("what was typed", |shown| shown.starts_with("one\nzwölf\n"));
    screen.at.type_in("\u{1b}");
    screen.at.type_in("kdd");
    screen.wait("a line less", |shown| first_line(shown) == "zwölf");
    // A window of another size is drawn anew by the program over there.
    screen
        .at
        .type_in(":set laststatus=2 statusline=%{&columns}x%{&lines}\r");
    screen.wait("the size", |shown| shown.contains("\n90x29"));
    screen.at.resize(70, 20);
    // The last row of the test's terminal is tmux's own.
    screen.wait("the new size", |shown| shown.contains("\n70x19"));
    screen.at.type_in(":wq\r");
    let (status, shown) = screen.at.end();
    assert!(status.success(), "{shown}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "zwölf\n");
}

/// What the client says about it stands on the screen for a moment; the program draws it anew.
#[test]
fn an_editor_goes_on_over_another_line() {
    let server = Server::start();
    let file = server.dir().join("text");
    let vim = ["vim", "-u", "NONE", "-i", "NONE", "-n", "--noplugin"];
    let argv = [&vim[..], &[file.to_str().unwrap()]].concat();
    let mut screen = Screen::start(&server, &argv);
    screen.wait("an empty page", |shown| {
        shown.lines().filter(|line| *line == "~").count() > 20
    });
    screen.at.type_in("ione\r");
    screen.wait("what was typed", |shown| shown.starts_with("one\n"));
    for (number, line) in ["two", "three"].iter().enumerate() {
        signal_process(gate_of(&server), 9);
        screen.at.type_in(&format!("{line}\r"));
        let page = |shown: &str| {
            let right = ["one", "two", "three"].into_iter().take(number + 2);
            let empty = shown.lines().filter(|line| *line == "~").count();
            shown.lines().take(number + 2).eq(right) && empty > 20 && !shown.contains("bowline")
        };
        screen.wait("a clean page", page);
    }
    screen.at.type_in("\u{1b}:wq\r");
    let (status, shown) = screen.at.end();
    assert!(status.success(), "{shown}");
    assert_eq!(
        std::fs::read_to_string(file).unwrap(),
        "one\ntwo\nthree\n\n"
    );
}

#[test]
fn a_pager_and_a_process_viewer_work_on_a_slow_line() {
    let server = Server::start();
    let file = server.dir().join("numbers");
    let numbers: String = (1..=1000)
        .map(|number| format!("line {number}\n"))
        .collect();
    std::fs::write(&file, numbers).unwrap();
    let mut screen = Screen::start(&server, &["less", file.to_str().unwrap()]);
    screen.wait("the first page", |shown| first_line(shown) == "line 1");
    screen.at.type_in("G");
    screen.wait("the last page", |shown| shown.contains("line 1000"));
    screen.at.type_in("/line 50$\r");
    screen.at.type_in("g");
    screen.at.type_in("/line 500$\r");
    screen.wait("what was looked for", |shown| {
        first_line(shown) == "line 500"
    });
    screen.at.type_in("q");
    assert!(screen.at.end().0.success());

    let mut screen = Screen::start(&server, &["htop", "--no-color"]);
    screen.wait("the processes", |shown| {
        shown.contains("Load average") && shown.contains("F10")
    });
    screen.at.type_in("q");
    assert!(screen.at.end().0.success());
}
