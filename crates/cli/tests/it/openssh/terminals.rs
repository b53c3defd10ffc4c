//! The same at a terminal of `ssh -t` and of `bowline run --pty`: the answers must be the same.

use std::process::Command;

use super::ssh_target::Machine;
use crate::server::{Server, bowline};
use crate::terminal::Terminal;

/// What a person does at a terminal, and what is to be compared of what is shown.
type Dialogue = fn(&mut Terminal) -> String;

/// A command on a terminal as an emulator of today makes it: its text is UTF-8.
fn at_terminal(command: &Command) -> Terminal {
    let mut within = Command::new("sh");
    within.args(["-c", "stty iutf8 cols 91 rows 37; exec \"$0\" \"$@\""]);
    within.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => within.env(name, value),
            None => within.env_remove(name),
        };
    }
    within
        .env("TERM", "screen.xterm-256color")
        .env("LANG", "C.UTF-8")
        .env("LC_MESSAGES", "C")
        .env_remove("LC_ALL");
    Terminal::start(&within)
}

/// Has both run a text with the account's shell, and holds the dialogue with each.
fn same(text: &str, dialogue: Dialogue) -> String {
    let machine = Machine::start();
    let server = Server::start();
    let mut ssh = Command::new(machine.at("client/ssh"));
    ssh.args(["-q", "-t", "box", text]);
    ssh.env_remove("SSH_AUTH_SOCK").env_remove("DISPLAY");
    let mut ours = Command::new(bowline());
    server.client(&mut ours);
    ours.args(["run", "--pty", &server.target(), "--shell", text]);
    let [theirs, ours] = [ssh, ours].map(|command| {
        let mut at = at_terminal(&command);
        let compared = dialogue(&mut at);
        let (status, shown) = at.end_cooked();
        (compared, status.code(), shown)
    });
    assert_eq!(
        (&theirs.0, theirs.1),
        (&ours.0, ours.1),
        "{} / {}",
        theirs.2,
        ours.2
    );
    ours.0
}

#[test]
fn the_terminal_and_the_environment_are_those_of_ssh() {
    // What each says of its own way to the job is its own, and bash reads more where it sees
    // that sshd started it.
    let text = "test \"$(tty)\" = \"${SSH_TTY-$BOWLINE_TTY}\" && test -t 0 -a -t 1 -a -t 2 && echo terminal; \
        stty -a; stty size; umask; ps -o stat= -p $$ | tr -d l; test $$ = $(ps -o sid= -p $$) && echo leader; \
        env | grep -E '^(HOME|LANG|LC_[A-Z]*|LOGNAME|PWD|SHELL|TERM|USER)=' | sort; exit 5";
    let shown = same(text, |at| {
        // All of it: behind the last variable nothing is shown.
        at.wait_end();
        at.shown()
    });
    for part in [
        "terminal\n",
        "\n37 91\n",
        "leader\n",
        "\nTERM=screen.xterm-256color\n",
        "\nLC_MESSAGES=C\n",
        " iutf8",
    ] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
}

#[test]
fn job_control_is_that_of_ssh() {
    let text = "HISTFILE= PS1='rea''dy> ' exec bash --norc --noprofile --noediting -i";
    let shown = same(text, |at| {
        let mut shown = at.expect("ready> ");
        let mut answer = |at: &mut Terminal, typed: &str, until: &str| {
            at.type_in(typed);
            shown.push_str(&at.expect(until));
            shown.push_str(until);
        };
        // The program in front says that it is, so that nothing is typed too early, and what is
        // awaited stands so in no command that the terminal echoes.
        let program =
            |traps: &str| format!("sh -c '{traps}; echo in-\"\"front; while :; do read x; done'\r");
        answer(at, &program("trap \"echo ba\"\"ck\" CONT"), "in-front\r\n");
        answer(at, "\u{1a}", "ready> ");
        answer(at, "jobs\r", "ready> ");
        answer(at, "fg\r", "back\r\n");
        answer(at, "\u{3}", "ready> ");
        answer(at, "echo $?\r", "ready> ");
        answer(
            at,
            &program("trap \"echo qu\"\"it; exit 3\" QUIT"),
            "in-front\r\n",
        );
        answer(at, "\u{1c}", "ready> ");
        answer(at, "echo $?\r", "ready> ");
        answer(at, "cat\r", "cat\r\n");
        // The end of the input is a key too.
        answer(at, "a line\r\u{4}", "ready> ");
        at.type_in("exit 7\r");
        shown
    });
    assert!(
        shown.contains("Stopped") && shown.contains("quit"),
        "{shown}"
    );
}

#[test]
fn a_new_size_arrives_as_with_ssh() {
    let text =
        "exec sh -c 'trap \"stty size\" WINCH; echo ready; while :; do read line && exit 4; done'";
    same(text, |at| {
        at.expect("ready");
        at.resize(123, 45);
        at.expect("45 123");
        at.type_in("go\r");
        at.wait_end();
        at.shown()
    });
}
