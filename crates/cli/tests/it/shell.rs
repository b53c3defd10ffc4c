//! Jobs with a terminal: `bowline shell` and `run --pty`, in front of a terminal and without one.

mod full_screen;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::faults::way::Way;
use crate::hostile::witness::gate_of;
use crate::openssh::{ended, let_in, public};
use crate::run::wait_gone;
use crate::server::{Server, signal_process};
use crate::terminal::Terminal;

/// `bowline shell TARGET`; nothing of what it is told is remembered.
fn shell(server: &Server) -> Command {
    let mut command = server.command(&["shell", &server.target()]);
    command.args(["-e", "HISTFILE="]);
    command.env("TERM", "dumb").env("LANG", "C.UTF-8");
    command
}

/// `run --pty` of a text for sh(1).
fn with_pty(server: &Server, flags: &[&str], script: &str) -> Command {
    let flags = [&["--pty"], flags].concat();
    let mut command = server.run(&flags, &["sh", "-c", script]);
    command.env("TERM", "vt100").env("LC_ALL", "C.UTF-8");
    command
}

#[test]
fn the_program_has_a_terminal_like_ours() {
    let server = Server::start();
    let script = "test \"$(tty)\" = \"$BOWLINE_TTY\" && test -t 0 -a -t 1 -a -t 2 && \
        echo \"$TERM $LC_ALL\"; stty size; stty -a | grep -o -- '-*iutf8'; \
        ps -o tty= -p $$ >/dev/tty; exit 5";
    let mut at = Terminal::start(&with_pty(&server, &[], &format!("read go; {script}")));
    at.resize(101, 33);
    at.type_in("go\n");
    let (status, shown) = at.end();
    assert_eq!(status.code(), Some(5), "{shown}");
    assert!(
        shown.contains("vt100 C.UTF-8\n33 101\niutf8\npts/"),
        "{shown}"
    );

    // Where the locale is not UTF-8, erasing a byte erases a byte.
    let mut other = with_pty(&server, &[], "stty -a | grep -o -- '-*iutf8'");
    other.env("LC_ALL", "C");
    assert_eq!(Terminal::start(&other).end().1, "-iutf8\n");
}

#[test]
fn without_a_terminal_of_ours_the_program_has_one_of_80_by_24() {
    let server = Server::start();
    let (out, err) = ended(&with_pty(&server, &[], "tty >/dev/null && stty size"), 0);
    assert_eq!((out.as_str(), err.as_str()), ("24 80\r\n", ""));

    // The end of our stdin is not the program's: a terminal has none.
    let script = "stty -echo; echo ready; read a; read b; echo \"$a$b\"";
    let mut command = with_pty(&server, &[], script);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 7];
    stdout.read_exact(&mut ready).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    drop(stdin);
    signal_process(child.id(), 15);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(
        (child.wait().unwrap().code(), rest.as_str()),
        (Some(143), "")
    );
}

#[test]
fn stderr_stays_apart_where_that_is_asked_for() {
    let server = Server::start();
    let script = "tty >/dev/null && echo out; test -t 2 || echo apart >&2";
    let (out, err) = ended(&with_pty(&server, &["--stderr-pipe"], script), 0);
    assert_eq!((out.as_str(), err.as_str()), ("out\r\n", "apart\n"));
    let both = "echo out; test -t 2 && echo too >&2";
    let (out, err) = ended(&with_pty(&server, &[], both), 0);
    assert_eq!((out.as_str(), err.as_str()), ("out\r\ntoo\r\n", ""));
    let (_, err) = ended(&server.run(&["--stderr-pipe"], &["true"]), 2);
    assert!(err.contains("--pty"), "{err}");
}

#[test]
fn all_of_the_output_comes_before_the_outcome() {
    let server = Server::start();
    let (out, _) = ended(&with_pty(&server, &[], "seq 100000; exit 3"), 3);
    assert_eq!(out.lines().count(), 100_000);
    assert!(out.ends_with("100000\r\n"));
}

#[test]
fn a_shell_is_a_login_shell_with_job_control() {
    let server = Server::start();
    let mut at = Terminal::start(&shell(&server));
    // What is awaited stands so in no command that the terminal echoes.
    at.type_in("echo \"<${0%%[!-]*}>\"; set -m; PS1='rea''dy> '\r");
    at.expect("<->");
    let program = "trap \"echo ba\"\"ck\" CONT; echo in-\"\"front; while :; do read x; done";
    at.type_in(&format!("sh -c '{program}'\r"));
    at.expect("in-front");
    at.type_in("\u{1a}");
    at.expect("topped");
    at.expect("ready> ");
    at.type_in("fg\r");
    at.expect("back");
    // It discards what is typed ahead, as on every terminal.
    at.type_in("\u{3}");
    at.expect("ready> ");
    at.type_in("echo al\"\"ive; exit 7\r");
    at.expect("alive");
    let (status, shown) = at.end();
    assert_eq!(status.code(), Some(7), "{shown}");
}

#[test]
fn a_new_size_reaches_the_program() {
    let server = Server::start();
    let script = "trap 'stty size' WINCH; echo ready; while :; do read line && exit; done";
    let mut at = Terminal::start(&with_pty(&server, &[], script));
    at.expect("ready");
    at.resize(123, 45);
    at.expect("45 123");
    at.type_in("go\r");
    assert_eq!(at.end().0.code(), Some(0));
}

#[test]
fn signals_go_to_the_program_in_front() {
    let server = Server::start();
    // The shell has job control, so the program in front is in a group of its own.
    let script = "set -m; trap 'echo wrong' USR1; \
        sh -c 'trap \"echo right; exit 4\" USR1; echo ready; while :; do read x; done'; exit $?";
    let mut at = Terminal::start(&with_pty(&server, &[], script));
    at.expect("ready");
    signal_process(at.pid(), libc::SIGUSR1);
    at.expect("right");
    let (status, shown) = at.end();
    assert_eq!(status.code(), Some(4), "{shown}");
    assert!(!shown.contains("wrong"), "{shown}");
}

#[test]
fn the_modes_come_back_however_it_ends() {
    let script = "echo $$ in; exec sleep 1000";
    let begin = |server: &Server, flags: &[&str]| {
        let mut at = Terminal::start(&with_pty(server, flags, script));
        let pid: i32 = at.expect(" in\r\n").trim().parse().unwrap();
        assert!(!at.echoes() && !at.is_cooked());
        (at, pid)
    };
    let server = Server::start();
    // As ssh: what ends the client hangs up the terminal.
    let asked = [libc::SIGTERM, libc::SIGHUP];
    let others = [libc::SIGALRM, libc::SIGXCPU, libc::SIGIO, libc::SIGPWR];
    for signal in asked.into_iter().chain(others) {
        let (at, pid) = begin(&server, &[]);
        signal_process(at.pid(), signal);
        let (status, shown) = at.end_cooked();
        assert_eq!(status.code(), Some(128 + signal), "{shown}");
        wait_gone(pid);
    }
    let (mut at, pid) = begin(&server, &[]);
    at.type_in("\r~.");
    let (status, shown) = at.end_cooked();
    assert_eq!(status.code(), Some(130), "{shown}");
    assert!(shown.contains("[left]"), "{shown}");
    wait_gone(pid);
    // The line breaks.
    let (at, pid) = begin(&server, &["--on-disconnect", "kill"]);
    signal_process(gate_of(&server), 9);
    let (status, shown) = at.end_cooked();
    assert_eq!(status.code(), Some(255), "{shown}");
    assert!(shown.contains("bowline: "), "{shown}");
    wait_gone(pid);
}

#[test]
fn a_terminal_goes_on_over_another_line() {
    let server = Server::start();
    let script = "trap 'stty size' WINCH; echo ready; \
        while :; do read line || continue; [ $line = go ] && exit 6; echo \"<$line>\"; done";
    let mut at = Terminal::start(&with_pty(&server, &[], &format!("read x; {script}")));
    at.resize(101, 33);
    at.type_in("x\r");
    at.expect("ready");
    signal_process(gate_of(&server), 9);
    // Before or after it is noticed.
    at.type_in("one\r");
    at.expect("the connection is lost");
    at.expect("connected again after");
    // Its window changes and changes back, so that it draws anew.
    at.expect("33 101");
    at.type_in("two\r");
    at.expect("<two>");
    at.type_in("go\r");
    let (status, shown) = at.end_cooked();
    assert_eq!(status.code(), Some(6), "{shown}");
    assert!(shown.contains("<one>"), "{shown}");
}

#[test]
fn keys_are_for_us_also_while_there_is_no_line() {
    let server = Server::start();
    let way = Way::to(server.port().unwrap());
    let target = way.target();
    let mut command = server.command(&["run", "--trust", "new", "--pty", "--silence", "400ms"]);
    command.args([&target, "--", "sh", "-c", "echo $$ in; exec cat"]);
    let mut at = Terminal::start(&command);
    let pid = at.expect(" in\r\n");
    let pid: i32 = pid.lines().last().unwrap().parse().unwrap();
    way.freeze();
    at.expect("the connection is lost");
    at.type_in("typed\r~?");
    at.expect("send a ~");
    way.thaw();
    at.expect("connected again after");
    at.expect("typed\r\n");
    way.freeze();
    at.expect("the connection is lost");
    at.type_in("\r~.");
    let (status, shown) = at.end_cooked();
    assert_eq!(status.code(), Some(130), "{shown}");
    assert!(shown.contains("[left]"), "{shown}");
    // The server has not been told, and keeps it for its time.
    signal_process(pid as u32, 9);
    wait_gone(pid);
}

#[test]
fn one_suspends_the_client_and_goes_on() {
    let server = Server::start();
    let mut at = Terminal::start(&with_pty(
        &server,
        &[],
        "read a; echo \"<$a>\"; read b; stty size",
    ));
    at.type_in("one\r");
    at.expect("<one>");
    for how in ["typed", "sent"] {
        match how {
            "typed" => at.type_in("~\u{1a}"),
            _ => signal_process(at.pid(), libc::SIGTSTP),
        }
        let pid = Pid::from_raw(at.pid() as i32).unwrap();
        let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED)
            .unwrap()
            .unwrap();
        assert!(stopped.stopped(), "{how}");
        assert!(at.echoes() && at.is_cooked(), "{how}");
        at.resize(99, 44);
        signal_process(at.pid(), libc::SIGCONT);
    }
    at.type_in("two\r");
    at.expect("44 99");
    let (status, shown) = at.end_cooked();
    assert_eq!(status.code(), Some(0), "{shown}");
}

/// Who is stopped from elsewhere could not prepare for it, and finds other modes afterwards.
#[test]
fn one_is_stopped_and_goes_on() {
    let server = Server::start();
    let script = "trap 'stty size' WINCH; echo ready; while :; do read line && exit; done";
    let mut at = Terminal::start(&with_pty(&server, &[], script));
    at.expect("ready");
    signal_process(at.pid(), libc::SIGSTOP);
    let pid = Pid::from_raw(at.pid() as i32).unwrap();
    let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
    assert!(stopped.unwrap().stopped());
    at.cook();
    at.resize(123, 45);
    signal_process(at.pid(), libc::SIGCONT);
    at.expect("45 123");
    assert!(!at.echoes() && !at.is_cooked());
    at.type_in("go\r");
    let (status, shown) = at.end();
    assert_eq!(status.code(), Some(0), "{shown}");
}

#[test]
fn escapes_are_explained_and_the_rest_is_the_programs() {
    let server = Server::start();
    let mut at = Terminal::start(&with_pty(&server, &[], "read a; read b; echo \"<$a|$b>\""));
    at.type_in("~?");
    at.expect("send a ~");
    at.type_in("~~.\ra~.\r");
    at.expect("<~.|a~.>");
    assert_eq!(at.end().0.code(), Some(0));
}

#[test]
fn a_key_without_the_right_gets_no_terminal() {
    let server = Server::start();
    let key = public(&server.home().join(".ssh/id_ed25519"));
    let key = std::fs::read_to_string(key).unwrap();
    for (options, permitted) in [
        ("no-pty", false),
        ("restrict", false),
        ("restrict,pty", true),
    ] {
        let_in(&server, &format!("{options} {key}"));
        if permitted {
            ended(&with_pty(&server, &[], "tty"), 0);
        } else {
            let (out, err) = ended(&with_pty(&server, &[], "tty"), 255);
            assert!(
                err.contains("[not_permitted]") && out.is_empty(),
                "{out}{err}"
            );
            let (_, err) = ended(&shell(&server), 255);
            assert!(err.contains("[not_permitted]"), "{err}");
        }
        ended(&server.run(&[], &["true"]), 0);
    }
    // A forced command is that, at a terminal and in place of a login shell.
    let_in(
        &server,
        &format!("command=\"tty && echo ${{SSH_ORIGINAL_COMMAND-none}}\" {key}"),
    );
    let (out, _) = ended(&shell(&server), 0);
    assert!(
        out.starts_with("/dev/") && out.ends_with("\r\nnone\r\n"),
        "{out}"
    );
}
