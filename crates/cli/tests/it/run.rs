//! `bowline run` as a person meets it: statuses, signals, ends, what is said.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use crate::server::{Server, bowline, is_root, signal_process};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Waits for the end of a process that is not our child, by its pidfd.
pub(crate) fn wait_gone(pid: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        panic!("pid {pid}");
    };
    let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [rustix::event::PollFd::new(
        &fd,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let ended = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
    assert_eq!(ended, 1, "process {pid:?} is still there");
}

/// A client that runs while the test goes on.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> Running {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn pid(&mut self) -> i32 {
        self.line().parse().unwrap()
    }

    fn signal(&self, signal: i32) {
        signal_process(self.child.id(), signal);
    }

    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.lines.read_to_string(&mut out).unwrap();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        (self.child.wait().unwrap().code(), out, err)
    }
}

#[test]
fn statuses_and_sentences() {
    let server = Server::start();
    for (flags, argv, status, said) in [
        (&[][..], &["true"][..], 0, ""),
        (&[], &["sh", "-c", "exit 255"], 255, ""),
        (&[], &["sh", "-c", "kill -SEGV $$"], 139, ""),
        (&[], &["no-such-program"], 127, "[not_found]"),
        (&[], &["/no/such/program"], 127, "[not_found]"),
        (&[], &["/etc"], 126, "[not_executable]"),
        (&[], &["/etc/passwd"], 126, "[not_executable]"),
        (
            &["--cwd", "/no/such/folder"],
            &["true"],
            125,
            "[bad_directory]",
        ),
        (
            &["--timeout", "200ms"],
            &["sleep", "1000"],
            124,
            "[timed_out]",
        ),
        (&["-q"], &["no-such-program"], 127, ""),
    ] {
        let done = output(server.run(flags, argv));
        let err = text(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{argv:?}: {err}");
        assert!(
            err.contains(said) && err.is_empty() == said.is_empty(),
            "{argv:?}: {err:?}"
        );
    }
}

#[test]
fn shell_cwd_env_and_no_stdin() {
    let server = Server::start();
    let mut shell = server.command(&["run", "--shell", "echo $((6*7)) | tr 4 5"]);
    shell.arg(server.target());
    assert_eq!(text(&output(shell).stdout), "52\n");
    let done = output(server.run(&["--cwd", "/usr"], &["pwd"]));
    assert_eq!(text(&done.stdout), "/usr\n");
    let done = output(server.run(
        &["--env", "GREETING=a b", "--env", "EMPTY="],
        &["sh", "-c", "echo \"$GREETING|$EMPTY|\""],
    ));
    assert_eq!(text(&done.stdout), "a b||\n");
    let mut pass = server.run(&["--env", "OURS"], &["printenv", "OURS"]);
    pass.env("OURS", "passed on");
    assert_eq!(text(&output(pass).stdout), "passed on\n");
    let mut unset = server.run(&["--env", "NOT_SET_HERE"], &["true"]);
    unset.env_remove("NOT_SET_HERE");
    assert_eq!(output(unset).status.code(), Some(2));

    let mut child = server
        .run(&["-n"], &["wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(b"not for it");
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "0\n");
}

#[test]
fn a_program_has_three_descriptors_and_a_known_environment() {
    let server = Server::start();
    let show = "import os\nprint(sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1])";
    let done = output(server.run(&[], &["python3", "-c", show]));
    assert_eq!(text(&done.stdout), "[0, 1, 2]\n");
    let mut run = server.run(&[], &["env", "-0"]);
    run.env("LANG", "C.UTF-8").env("SECRET_OF_THE_CLIENT", "x");
    let done = output(run);
    let names: Vec<String> = text(&done.stdout)
        .split_terminator('\0')
        .map(|variable| variable.split_once('=').unwrap().0.to_owned())
        .collect();
    for name in [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "BOWLINE_JOB",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} of {names:?}");
    }
    let known = |name: &str| {
        name.starts_with("LC_")
            || [
                "PATH",
                "HOME",
                "USER",
                "LOGNAME",
                "SHELL",
                "LANG",
                "MAIL",
                "TZ",
                "XDG_RUNTIME_DIR",
                "BOWLINE_JOB",
                "BOWLINE_CONNECTION",
            ]
            .contains(&name)
    };
    assert!(names.iter().all(|name| known(name)), "{names:?}");
}

#[test]
fn json_lines_and_the_outcome_as_the_last() {
    let server = Server::start();
    let done = output(server.run(
        &["--json"],
        &["sh", "-c", "printf 'a\\377'; echo err >&2; exit 3"],
    ));
    assert_eq!(done.status.code(), Some(3));
    let lines: Vec<serde_json::Value> = text(&done.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (outcome, pieces) = lines.split_last().unwrap();
    assert_eq!(outcome["outcome"], "exited");
    assert_eq!(outcome["code"], 3);
    assert_eq!(
        (outcome["stdout"].as_u64(), outcome["stderr"].as_u64()),
        (Some(2), Some(4))
    );
    assert_eq!(outcome["job"].as_str().unwrap().len(), 32);
    assert!(outcome["started_ms"].as_u64() <= outcome["ended_ms"].as_u64());
    assert!(
        pieces
            .iter()
            .any(|piece| piece["base64"] == "Yf8=" && piece["stream"] == "stdout")
    );
    assert!(
        pieces
            .iter()
            .any(|piece| piece["text"] == "err\n" && piece["stream"] == "stderr")
    );
}

#[test]
fn a_reader_that_goes_ends_the_job_as_sigpipe_would() {
    let server = Server::start();
    let mut run = server.run(&[], &["sh", "-c", "echo $$; exec yes"]);
    let mut child = run
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(141));
    wait_gone(line.trim().parse().unwrap());

    let mut pipeline = Command::new("sh");
    pipeline
        .args(["-c", "\"$0\" run \"$1\" -- yes | head -n 2"])
        .arg(bowline())
        .arg(server.target());
    server.client(&mut pipeline);
    let done = output(pipeline);
    assert_eq!(text(&done.stdout), "y\ny\n");
    assert_eq!(text(&done.stderr), "");
}

#[test]
fn a_background_child_does_not_hold_the_client_and_lives_on() {
    let server = Server::start();
    let done = output(server.run(&[], &["sh", "-c", "sleep 1000 & echo $!"]));
    assert_eq!(done.status.code(), Some(0));
    let pid: i32 = text(&done.stdout).trim().parse().unwrap();
    let alive = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(alive, "sleep\n");
    signal_process(pid as u32, 9);
    wait_gone(pid);
}

#[test]
fn output_that_comes_a_moment_after_the_end_is_not_lost() {
    let server = Server::start();
    let late = ["sh", "-c", "(sleep 0.05; echo late) & echo now"];
    assert_eq!(text(&output(server.run(&[], &late)).stdout), "now\nlate\n");
    let later = ["sh", "-c", "(sleep 1; echo late) & echo now"];
    assert_eq!(text(&output(server.run(&[], &later)).stdout), "now\n");
    let waited = server.run(&["--wait-output"], &later);
    assert_eq!(text(&output(waited).stdout), "now\nlate\n");
}

#[test]
fn a_timeout_ends_the_whole_tree_and_children_in_sessions_of_their_own() {
    let server = Server::start();
    let script = "setsid sh -c 'echo $$; exec sleep 1000' & (trap '' TERM HUP; sleep 1000 & echo $!; wait) & wait";
    let done = output(server.run(&["--timeout", "700ms"], &["sh", "-c", script]));
    assert_eq!(done.status.code(), Some(124), "{}", text(&done.stderr));
    let pids: Vec<i32> = text(&done.stdout)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(pids.len(), 2);
    pids.into_iter().for_each(wait_gone);
}

#[test]
fn signals_reach_the_program() {
    let server = Server::start();
    let script = "trap 'echo usr1' USR1; trap 'echo usr2' USR2; trap 'echo hup' HUP; \
                  trap 'echo quit' QUIT; trap 'echo winch' WINCH; trap 'echo term; exit 7' TERM; \
                  echo ready; while :; do sleep 0.02; done";
    let mut running = Running::start(server.run(&[], &["sh", "-c", script]));
    assert_eq!(running.line(), "ready");
    for (signal, word) in [
        (10, "usr1"),
        (12, "usr2"),
        (1, "hup"),
        (3, "quit"),
        (28, "winch"),
    ] {
        running.signal(signal);
        assert_eq!(running.line(), word);
    }
    running.signal(15);
    let (status, out, _) = running.end();
    assert_eq!((status, out.as_str()), (Some(7), "term\n"));

    let mut running = Running::start(server.run(&[], &["sh", "-c", "echo ready; exec sleep 1000"]));
    assert_eq!(running.line(), "ready");
    running.signal(15);
    assert_eq!(running.end().0, Some(143));
}

#[test]
fn the_first_interrupt_is_the_programs_the_second_is_ours() {
    let server = Server::start();
    let script = "trap 'echo no' INT; echo $$; while :; do sleep 0.02; done";
    let mut running = Running::start(server.run(&[], &["sh", "-c", script]));
    let pid = running.pid();
    running.signal(2);
    assert_eq!(running.line(), "no");
    running.signal(2);
    assert_eq!(running.end().0, Some(130));
    wait_gone(pid);

    let mut running = Running::start(server.run(&[], &["sh", "-c", "echo ready; exec sleep 1000"]));
    assert_eq!(running.line(), "ready");
    running.signal(2);
    assert_eq!(
        running.end().0,
        Some(130),
        "128 + SIGINT, from the program itself"
    );
}

#[test]
fn a_client_that_is_killed_takes_its_job_with_it_where_that_is_asked_for() {
    let server = Server::start();
    let script = "setsid sleep 1000 & echo $!; wait";
    let mut running =
        Running::start(server.run(&["--on-disconnect", "kill"], &["sh", "-c", script]));
    let pid = running.pid();
    running.signal(9);
    assert_eq!(running.end().0, None);
    wait_gone(pid);
}

#[test]
fn closed_standard_streams_are_no_disaster() {
    let server = Server::start();
    for (redirect, argv, status) in [
        ("<&-", &["cat"][..], 0),
        (">&-", &["sh", "-c", "echo out; exit 3"], 3),
        ("2>&-", &["sh", "-c", "echo err >&2; exit 4"], 4),
        ("<&- >&- 2>&-", &["sh", "-c", "exit 5"], 5),
    ] {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("\"$@\" {redirect}"))
            .arg("sh");
        command
            .arg(bowline())
            .args(["run", &server.target(), "--"])
            .args(argv);
        server.client(&mut command);
        assert_eq!(output(command).status.code(), Some(status), "{redirect}");
    }
}

#[test]
fn who_is_not_let_in_starts_nothing() {
    let server = Server::start();
    let key = server.dir().join("other");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status()
        .unwrap();
    assert!(made.success());
    let identity = key.to_str().unwrap().to_owned();
    let marker = server.dir().join("marker");
    let touch = ["touch", marker.to_str().unwrap()];
    std::fs::remove_file(server.home().join(".ssh/id_ed25519")).unwrap();
    let done = output(server.run(&["--identity", &identity], &touch));
    assert_eq!(done.status.code(), Some(255));
    assert!(
        text(&done.stderr).contains("[not_authenticated]"),
        "{}",
        text(&done.stderr)
    );
    assert!(!marker.exists());
}

#[test]
fn host_keys_are_believed_only_when_they_are_known() {
    let server = Server::start();
    let known = server.home().join(".config/bowline/known_hosts");
    let pinned = std::fs::read_to_string(&known).unwrap();
    std::fs::remove_file(&known).unwrap();
    let marker = server.dir().join("marker");
    let touch = ["touch", marker.to_str().unwrap()];

    let done = output(server.run(&["--trust", "strict"], &touch));
    assert_eq!(done.status.code(), Some(255));
    assert!(
        text(&done.stderr).contains("[host_key_unknown]"),
        "{}",
        text(&done.stderr)
    );
    // Without a terminal nobody is asked.
    let mut nobody = Command::new("setsid");
    nobody
        .arg("--wait")
        .arg(bowline())
        .args(["run", &server.target(), "--"])
        .args(touch);
    server.client(&mut nobody);
    assert!(text(&output(nobody).stderr).contains("[host_key_unknown]"));
    assert!(!marker.exists() && !known.exists());

    let done = output(server.run(&["--trust", "new"], &["true"]));
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let line = std::fs::read_to_string(&known).unwrap();
    assert_eq!(
        line.split(' ').collect::<Vec<_>>()[..2],
        pinned.split(' ').collect::<Vec<_>>()[..2]
    );

    let other = Server::start();
    let other_key =
        std::fs::read_to_string(other.home().join(".config/bowline/known_hosts")).unwrap();
    let key = other_key.split_once(' ').unwrap().1;
    let name = line.split_once(' ').unwrap().0;
    std::fs::write(&known, format!("{name} {key}")).unwrap();
    for trust in ["ask", "new", "strict"] {
        let done = output(server.run(&["--trust", trust], &touch));
        assert_eq!(done.status.code(), Some(255));
        assert!(
            text(&done.stderr).contains("[host_key_changed]"),
            "{}",
            text(&done.stderr)
        );
    }
    assert!(!marker.exists());
}

#[test]
fn trust_shows_and_pins() {
    let server = Server::start();
    let known = server.home().join(".config/bowline/known_hosts");
    std::fs::remove_file(&known).unwrap();
    let lf = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(server.dir().join("host_key"))
        .output()
        .unwrap();
    let fingerprint = text(&lf.stdout).split(' ').nth(1).unwrap().to_owned();

    let wrong = server.command(&["trust", &server.target(), "--fingerprint", "SHA256:wrong"]);
    assert_eq!(output(wrong).status.code(), Some(255));
    assert!(!known.exists());
    let right = server.command(&["trust", &server.target(), "--fingerprint", &fingerprint]);
    let done = output(right);
    assert!(
        text(&done.stdout).contains(&fingerprint),
        "{}",
        text(&done.stderr)
    );
    assert_eq!(
        output(server.run(&["--trust", "strict"], &["true"]))
            .status
            .code(),
        Some(0)
    );
    let again = output(server.command(&["trust", &server.target(), "--yes"]));
    assert!(text(&again.stdout).contains("(known)"));
}

#[test]
fn nobody_there_is_unreachable_and_never_zero() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let server = Server::start();
    let mut command =
        server.command(&["run", "--json", &format!("127.0.0.1:{port}"), "--", "true"]);
    command.stdin(Stdio::null());
    let done = command.output().unwrap();
    assert_eq!(done.status.code(), Some(255));
    let outcome: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(outcome["outcome"], "unreachable");
    assert_eq!(outcome["error"], "connect_failed");
}

#[test]
fn flags_that_make_no_sense_are_told_before_anything_is_asked() {
    let server = Server::start();
    for args in [
        &["run", "local"][..],
        &["run", "local", "true"],
        &["run", "--timeout", "5", "local", "--", "true"],
        &["run", "--env", "=x", "local", "--", "true"],
        &["run", "--status-fd", "77", "local", "--", "true"],
        &["run", "", "--", "true"],
        &["run", "a b", "--", "true"],
        &["kill", "local", "xyz"],
        &["ping", "--parallel", "0", "local"],
    ] {
        let done = output(server.command(args));
        assert_eq!(
            done.status.code(),
            Some(2),
            "{args:?}: {}",
            text(&done.stderr)
        );
        assert!(!done.stderr.is_empty(), "{args:?}");
        let codes = text(&done.stderr).matches("[bad_target]").count();
        let is_bad = ["", "a b"].contains(&args[1]);
        assert_eq!(codes, usize::from(is_bad), "{args:?}");
    }
}

#[test]
fn the_target_local_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut command = Command::new(bowline());
    command.args(["run", "local", "--", "sh", "-c", "echo $PPID; exit 9"]);
    command.env("HOME", dir.path()).env("TMPDIR", dir.path());
    let done = output(command);
    assert_eq!(done.status.code(), Some(9), "{}", text(&done.stderr));
    assert_eq!(text(&done.stderr), "");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    wait_gone(text(&done.stdout).trim().parse().unwrap());
}

#[test]
fn jobs_are_listed_killed_and_recorded() {
    let server = Server::start();
    let mut running = Running::start(server.run(&[], &["sh", "-c", "echo $$; exec sleep 1000"]));
    let pid = running.pid();
    let list = |all: bool| -> Vec<serde_json::Value> {
        let mut command = server.command(&["jobs", "--json", &server.target()]);
        if all {
            command.arg("--all");
        }
        let done = output(command);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        text(&done.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let live = list(false);
    assert_eq!(live.len(), 1);
    assert_eq!(live[0]["pid"], pid);
    assert_eq!(live[0]["command"], "sh -c 'echo $$; exec sleep 1000'");
    let job = live[0]["job"].as_str().unwrap();

    let none = server.command(&["kill", &server.target(), "0123456789abcdef0123456789abcdef"]);
    assert_eq!(output(none).status.code(), Some(1));
    let killed = output(server.command(&["kill", &server.target(), &job[..8]]));
    assert_eq!(killed.status.code(), Some(0), "{}", text(&killed.stderr));
    assert_eq!(running.end().0, Some(143), "cancelled by SIGTERM");
    wait_gone(pid);
    assert!(list(false).is_empty());
    let all = list(true);
    assert_eq!(all[0]["job"], job);
    assert_eq!(all[0]["outcome"]["outcome"], "cancelled");
}

#[test]
fn ping_measures_sessions_and_jobs() {
    let server = Server::start();
    for flags in [&["-c", "20"][..], &["-c", "20", "--parallel", "8", "--job"]] {
        let mut command = server.command(&["ping", "--json", &server.target()]);
        command.args(flags);
        let done = output(command);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        let figures: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(figures["count"], 20);
        let us = |key: &str| figures[key].as_u64().unwrap();
        assert!(us("min_us") <= us("median_us") && us("median_us") <= us("p99_us"));
        assert!(us("p99_us") <= us("max_us") && us("min_us") > 0);
    }
    let words = output(server.command(&["ping", "-c", "3", &server.target()]));
    assert!(text(&words.stdout).contains("median"));
}

#[test]
fn a_unix_socket_lets_in_by_uid() {
    let server = Server::start_with(|command, dir| {
        command
            .arg("--listen")
            .arg(format!("unix:{}", dir.join("socket").display()));
    });
    let target = format!("unix:{}", server.dir().join("socket").display());
    let mut command = server.command(&["run", &target, "--", "id", "-un"]);
    std::fs::remove_file(server.home().join(".ssh/id_ed25519")).unwrap();
    let done = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    if is_root() {
        assert_eq!(text(&done.stdout), "root\n");
    }
}

/// Without `AWS_LC_SYS_NO_JITTER_ENTROPY` (`.cargo/config.toml`) AWS-LC seeds itself from the jitter of
/// the CPU, which costs every process about 40 ms.
#[test]
fn the_build_leaves_randomness_to_the_kernel() {
    let program = std::fs::read(bowline()).unwrap();
    let names = |name: &[u8]| program.windows(name.len()).any(|window| window == name);
    assert!(names(b"aws_lc_"), "the program has its symbols");
    assert!(!names(b"jent_entropy"), "built with jitter entropy");
}
