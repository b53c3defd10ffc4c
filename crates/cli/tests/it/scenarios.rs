//! The same programs here and through bowline: the same bytes on each stream,
//! the same status, the same signal.
//!
//! That the comparison can fail is shown too: the same scenarios through
//! runners with one defect each must be told apart.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use aws_lc_rs::digest::{Context, SHA256};

use crate::server::{Server, bowline};

/// What a program reads.
#[derive(Clone)]
enum Input {
    /// `/dev/null`.
    Nothing,
    /// A pipe that gives these bytes and ends.
    Bytes(Vec<u8>),
    /// A pipe that nobody writes to and nobody closes.
    Open,
}

/// One program.
#[derive(Clone)]
struct Scenario {
    name: String,
    argv: Vec<Vec<u8>>,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    input: Input,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    stdout: Stream,
    stderr: Stream,
    code: Option<i32>,
    signal: Option<i32>,
}

/// A stream, by its length, its hash and how it begins.
#[derive(Clone, PartialEq, Eq)]
struct Stream {
    len: u64,
    hash: Vec<u8>,
    start: Vec<u8>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes, {:?}…",
            self.len,
            String::from_utf8_lossy(&self.start)
        )
    }
}

impl Stream {
    fn read(mut from: impl Read) -> Stream {
        let mut hash = Context::new(&SHA256);
        let (mut len, mut start) = (0, Vec::new());
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap();
            if read == 0 {
                let hash = hash.finish().as_ref().to_vec();
                return Stream { len, hash, start };
            }
            if start.len() < 200 {
                start.extend_from_slice(&buffer[..read.min(200 - start.len())]);
            }
            hash.update(&buffer[..read]);
            len += read as u64;
        }
    }
}

impl Scenario {
    fn new(name: &str, argv: &[&[u8]]) -> Scenario {
        Scenario {
            name: name.to_owned(),
            argv: argv.iter().map(|arg| arg.to_vec()).collect(),
            env: Vec::new(),
            input: Input::Nothing,
        }
    }

    fn sh(name: &str, text: &str) -> Scenario {
        Scenario::new(name, &[b"sh", b"-c", text.as_bytes()])
    }

    fn python(name: &str, text: &str) -> Scenario {
        Scenario::new(name, &[b"python3", b"-c", text.as_bytes()])
    }

    fn input(mut self, input: Input) -> Scenario {
        self.input = input;
        self
    }

    fn args(&self) -> impl Iterator<Item = OsString> {
        self.argv.iter().cloned().map(OsString::from_vec)
    }
}

/// All scenarios.
fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    output(&mut all);
    input(&mut all);
    arguments(&mut all);
    ends(&mut all);
    all
}

fn output(all: &mut Vec<Scenario>) {
    let sh = Scenario::sh;
    all.extend([
        Scenario::new("no output", &[b"true"]),
        sh("output without a newline", "printf abc"),
        sh("only stderr", "printf abc >&2"),
        sh(
            "both streams",
            "echo out; echo err >&2; echo out2; echo err2 >&2",
        ),
        sh(
            "stderr after stdout's end",
            "echo out; exec >&-; echo err >&2; sleep 0.2; echo late >&2",
        ),
        sh(
            "stdout after stderr's end",
            "echo err >&2; exec 2>&-; sleep 0.2; echo late",
        ),
        sh(
            "closes stdout early and goes on",
            "echo out; exec >&- 2>&-; sleep 0.3; exit 4",
        ),
        sh(
            "slow output",
            "for i in 1 2 3 4 5; do echo $i; sleep 0.05; done",
        ),
        sh(
            "many small writes",
            "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done",
        ),
        sh(
            "both streams, much of both",
            "head -c 3000000 /dev/zero & head -c 3000000 /dev/zero >&2; wait",
        ),
        sh("1 MiB", "yes 0123456789abcdef | head -c 1048576"),
        sh("1 GiB", "yes 0123456789abcde | head -c 1073741824"),
        sh("64 KiB, a pipe's capacity", "head -c 65536 /dev/zero"),
        sh(
            "a byte more than a pipe's capacity",
            "head -c 65537 /dev/zero",
        ),
        sh("256 KiB, the first window", "head -c 262144 /dev/zero"),
        sh(
            "a byte more than the first window",
            "head -c 262145 /dev/zero",
        ),
        Scenario::python(
            "every byte",
            "import sys\nfor i in range(300): sys.stdout.buffer.write(bytes(range(256)))",
        ),
        sh("output and then a signal", "echo out; kill -KILL $$"),
        sh(
            "much output and then status 3",
            "head -c 5000000 /dev/zero; exit 3",
        ),
        sh(
            "a child that is waited for",
            "(sleep 0.1; echo child) & wait; echo parent",
        ),
    ]);
}

fn input(all: &mut Vec<Scenario>) {
    let sh = Scenario::sh;
    let bytes = |len: usize| Input::Bytes((0..len).map(|i| (i * 31 % 251) as u8).collect());
    all.extend([
        sh("cat, nothing to read", "cat").input(Input::Nothing),
        sh("cat, empty input", "cat").input(bytes(0)),
        sh("cat, one byte", "cat").input(bytes(1)),
        sh("cat, 100 KiB", "cat").input(bytes(100 << 10)),
        sh("cat, 20 MiB", "cat").input(bytes(20 << 20)),
        sh("the end of the input is seen", "cat >/dev/null; echo over").input(bytes(10)),
        sh("never reads its input", "sleep 0.2; echo done").input(bytes(5 << 20)),
        sh("reads a line and goes", "read line; echo \"$line\"; exit 5")
            .input(Input::Bytes(b"first\nsecond\n".to_vec())),
        sh(
            "closes its input and goes on",
            "exec <&-; sleep 0.2; echo on",
        )
        .input(bytes(5 << 20)),
        sh("input and output at once", "tr a-y b-z").input(bytes(3 << 20)),
        sh("ends while its input stays open", "echo quick; exit 6").input(Input::Open),
        sh("wc counts it all", "wc -c").input(bytes(7_654_321)),
    ]);
}

fn arguments(all: &mut Vec<Scenario>) {
    let show: &[u8] =
        b"import sys,os\nfor a in sys.argv[1:]: os.write(1, os.fsencode(a) + b'|\\n')";
    let args = |name: &str, args: &[&[u8]]| {
        let argv: Vec<&[u8]> = [&b"python3"[..], b"-c", show]
            .iter()
            .chain(args)
            .copied()
            .collect();
        Scenario::new(name, &argv)
    };
    let long = vec![b'x'; 100 << 10];
    let many: Vec<Vec<u8>> = (0..5000)
        .map(|i| format!("argument {i}").into_bytes())
        .collect();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    all.extend([
        args("blanks", &[b"a b", b" c ", b"\t"]),
        args("empty arguments", &[b"", b"", b"x", b""]),
        args("quotes", &[b"it's", b"\"", b"'\"'", b"`id`"]),
        args("newlines", &[b"a\nb", b"\n", b"\r\n"]),
        args("what a shell would expand", &[b"*", b"$HOME", b"~", b"$(id)", b"{a,b}", b"a;b", b"&", b"|", b">x", b"!"]),
        args("backslashes", &[b"\\", b"\\n", b"a\\ b"]),
        args("options of bowline's own", &[b"--json", b"-q", b"--", b"-n"]),
        args("bytes that are no UTF-8", &[b"\xff\xfe", b"a\x80b", b"\xc3"]),
        args("control characters", &[b"\x01\x02\x7f\x1b[0m"]),
        args("100 KiB in one", &[&long]),
        args("5000 of them", &many),
        Scenario::new("a name with blanks", &[b"/bin/sh", b"-c", b"echo \"$0\"", b"my name"]),
        Scenario {
            env: (0..2000)
                .map(|i| (format!("VAR_{i}").into_bytes(), format!("value {i} $HOME\n*").into_bytes()))
                .chain([(b"ODD".to_vec(), b"\xff=\xfe".to_vec())])
                .collect(),
            ..Scenario::python(
                "2000 environment variables",
                "import os\nfor k, v in sorted(os.environb.items()):\n  if k.startswith(b'VAR_') or k == b'ODD': os.write(1, k + b'=' + v + b'|')",
            )
        },
    ]);
}

fn ends(all: &mut Vec<Scenario>) {
    let sh = Scenario::sh;
    all.extend([
        Scenario::new("false", &[b"false"]),
        sh("ignores SIGTERM and ends anyway", "trap '' TERM; kill -TERM $$; echo alive; exit 8"),
        sh("catches a signal", "trap 'echo caught; exit 9' USR1; kill -USR1 $$; sleep 1"),
        sh("a child dies of a signal", "sh -c 'kill -9 $$'; exit 11"),
        sh("ends in a session of its own", "setsid sh -c 'echo inner; exit 12'; exit $?"),
        sh("execs", "exec sh -c 'echo exec; exit 13'"),
        sh("is the leader of its own group", "ps -o pgid= -p $$ | tr -d ' ' | grep -qx $$ && echo leader"),
        Scenario::python(
            "sees its default signals",
            "import signal\nprint([s for s in (1,2,3,13,15) if signal.getsignal(s) == signal.SIG_IGN])",
        ),
        Scenario::python("has an empty signal mask", "import signal\nprint(signal.pthread_sigmask(0, []))"),
    ]);
    let statuses =
        (0..=255).map(|status| sh(&format!("status {status}"), &format!("exit {status}")));
    all.extend(statuses);
    // Those that end a process, but for SIGSTOP and its kind, which do not.
    let signals = (1..=31).filter(|signal| ![17, 18, 19, 20, 21, 22, 23, 28].contains(signal));
    let signals = signals.chain([34, 50, 64]);
    all.extend(signals.map(|signal| {
        Scenario::python(
            &format!("signal {signal}"),
            &format!("import os,signal,resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nsignal.signal({signal}, signal.SIG_DFL) if {signal} != 9 else 0\nos.kill(os.getpid(), {signal})"),
        )
    }));
}

/// Runs a command with a scenario's input and sees what comes of it.
fn see(mut command: Command, input: &Input) -> (Seen, std::process::ExitStatus) {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(match input {
            Input::Nothing => Stdio::null(),
            Input::Bytes(_) | Input::Open => Stdio::piped(),
        });
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    std::thread::scope(|scope| {
        let writer = match input {
            Input::Bytes(bytes) => {
                let mut stdin = stdin.unwrap();
                scope.spawn(move || {
                    // A program that does not read all of it is part of the scenario.
                    let _ = stdin.write_all(bytes);
                });
                None
            }
            Input::Nothing | Input::Open => stdin,
        };
        let stderr = scope.spawn(|| Stream::read(stderr));
        let stdout = Stream::read(stdout);
        let stderr = stderr.join().unwrap();
        let status = child.wait().unwrap();
        drop(writer);
        let seen = Seen {
            stdout,
            stderr,
            code: status.code(),
            signal: status.signal(),
        };
        (seen, status)
    })
}

/// Here, as a shell would start it.
fn directly(scenario: &Scenario, home: &Path) -> Seen {
    let mut args = scenario.args();
    let mut command = Command::new(args.next().unwrap());
    command.args(args).env_clear().current_dir(home);
    command.env("PATH", std::env::var_os("PATH").unwrap());
    for (name, value) in &scenario.env {
        command.env(
            OsString::from_vec(name.clone()),
            OsString::from_vec(value.clone()),
        );
    }
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    see(command, &scenario.input).0
}

/// Through a server; the outcome from `--status-fd`, which must fit the exit status.
fn through(scenario: &Scenario, server: &Server, index: usize) -> Seen {
    let status_file = server.dir().join(format!("status-{index}"));
    let mut command = Command::new("sh");
    // A descriptor for the outcome, as a script would open it.
    command
        .args(["-c", "exec 3>\"$0\"; exec \"$@\""])
        .arg(&status_file);
    command
        .arg(bowline())
        .arg("run")
        .arg("--status-fd")
        .arg("3");
    command.arg("--env").arg("PATH");
    for (name, value) in &scenario.env {
        let variable = [name.as_slice(), b"=", value].concat();
        command.arg("--env").arg(OsString::from_vec(variable));
    }
    server.client(&mut command);
    command.arg(server.target()).arg("--").args(scenario.args());
    let (mut seen, status) = see(command, &scenario.input);
    let outcome = std::fs::read(&status_file).unwrap();
    let outcome: serde_json::Value = serde_json::from_slice(&outcome).unwrap_or_default();
    let number = |key: &str| outcome[key].as_i64().map(|number| number as i32);
    seen.code = number("code");
    seen.signal = number("signal");
    let expected = seen.code.or(seen.signal.map(|signal| 128 + signal));
    assert_eq!(status.code(), expected, "{}: {outcome}", scenario.name);
    seen
}

/// The names of the scenarios that a runner does not get right.
fn differences(
    all: &[Scenario],
    home: &Path,
    runner: impl Fn(&Scenario, usize) -> Seen + Sync,
) -> Vec<String> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let wrong = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(scenario) = all.get(index) else {
                        return;
                    };
                    let (here, there) = (directly(scenario, home), runner(scenario, index));
                    if here != there {
                        let difference = format!("{}: {here:?}, but {there:?}", scenario.name);
                        wrong.lock().unwrap().push(difference);
                    }
                }
            });
        }
    });
    wrong.into_inner().unwrap()
}

#[test]
fn the_same_here_and_through_bowline() {
    let server = Server::start();
    let all = scenarios();
    assert!(all.len() > 300, "{}", all.len());
    let wrong = differences(&all, &server.home(), |scenario, index| {
        through(scenario, &server, index)
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Defects that tools of this kind have had, each put in on purpose.
#[test]
fn the_comparison_can_fail() {
    let server = Server::start();
    let few: Vec<_> = scenarios()
        .into_iter()
        .filter(|scenario| !scenario.name.contains("GiB") && !scenario.name.starts_with("status"))
        .collect();
    let home = server.home();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let parts = few.chunks(few.len().div_ceil(4)).map(|part| {
            let home = &home;
            scope.spawn(move || part.iter().map(|s| directly(s, home)).collect::<Vec<_>>())
        });
        let parts: Vec<_> = parts.collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap())
            .collect()
    });
    let found = |defect: &dyn Fn(&mut Seen)| {
        let broken = seen.iter().filter(|seen| {
            let mut broken = (*seen).clone();
            defect(&mut broken);
            broken != **seen
        });
        broken.count()
    };
    let few_signals = found(&|seen| {
        if let Some(signal) = seen.signal.take() {
            seen.code = Some(128 + signal);
        }
    });
    assert!(few_signals > 10, "a signal told as a status: {few_signals}");
    let cut = found(&|seen| seen.stdout.len = seen.stdout.len.min(65536));
    assert!(cut > 5, "output cut at a limit: {cut}");
    let swapped = found(&|seen| std::mem::swap(&mut seen.stdout, &mut seen.stderr));
    assert!(swapped > 20, "streams swapped: {swapped}");

    // Arguments joined and parsed by a shell, as ssh does: a real run, through bowline.
    let joined = |scenario: &Scenario, index| {
        let text = scenario.argv.join(&b' ');
        let mut shell = scenario.clone();
        shell.argv = vec![b"sh".to_vec(), b"-c".to_vec(), text];
        through(&shell, &server, index)
    };
    let mut quoted = Vec::new();
    arguments(&mut quoted);
    let wrong = differences(&quoted, &server.home(), joined);
    assert!(wrong.len() > 5, "joined arguments: {wrong:?}");
}
