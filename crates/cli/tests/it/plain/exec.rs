//! exec with every framing: stock clients of bowline's server.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::{LONG, Serving, client, python, runs, said, stock, to_end, wait_until};

const TCP: &str = "tcp://127.0.0.1:0";

fn exec(framing: &str, more: &[&str]) -> Serving {
    let words = [&["exec", "--listen", TCP, "--framing", framing], more].concat();
    Serving::bowline(&words)
}

/// Commands that a tutorial tries, and a last one that shows that the talk goes on.
const COMMANDS: &str =
    "echo out\necho err >&2\necho out; echo err >&2\ntrue\nprintf '你好'\nexit 3\ncat\necho end\n";

#[test]
fn stock_clients_are_served_in_every_framing() {
    for framing in ["ready", "len4", "json"] {
        let server = exec(framing, &[]);
        let script = format!("client_{framing}.py");
        let said = stock(&script, server.port(), &[], COMMANDS);
        assert_eq!(
            said, "out\n\nerr\n\nout\nerr\n\n\n你好\n\n\nend\n\n",
            "{framing}"
        );
    }
    let server = exec("raw", &[]);
    // Nothing is one newline there.
    let said = stock("client_raw.py", server.port(), &[], COMMANDS);
    assert_eq!(said, "out\n\nerr\n\nout\nerr\n\n\n\n你好\n\n\n\n\nend\n\n");
    let server = exec("framed", &[]);
    let commands = "echo out; echo err >&2; exit 3\nkill -TERM $$\ntrue\n";
    let said = stock("client_framed.py", server.port(), &[], commands);
    assert_eq!(
        said,
        "out\nerr\n\nexit 3 signal None sizes 4 4\n\nexit None signal 15 sizes 0 0\n\n\
         exit 0 signal None sizes 0 0\n"
    );
}

#[test]
fn either_stream_as_some_servers_reply() {
    let server = exec("len4", &["--reply", "either"]);
    let commands = "echo out; echo err >&2\necho out\ntrue\n";
    let said = stock("client_len4.py", server.port(), &[], commands);
    assert_eq!(said, "err\n\nout\n\n操作成功\n");
    let server = exec("raw", &["--reply", "either", "--when-empty", "ok"]);
    assert_eq!(stock("client_raw.py", server.port(), &[], "true\n"), "ok\n");
}

#[test]
fn long_commands_and_other_encodings_arrive() {
    for framing in ["raw", "ready", "len4", "json", "framed"] {
        let server = exec(framing, &[]);
        let long = format!("echo {} | wc -c\n", "你".repeat(1000));
        let said = stock(&format!("client_{framing}.py"), server.port(), &[], &long);
        assert_eq!(said.lines().next().unwrap().trim(), "3001", "{framing}");
    }
    let server = exec("raw", &[]);
    let said = stock("client_raw.py", server.port(), &["gbk"], "echo 你好\n");
    assert_eq!(said, "你好\n\n");
    let address = &server.addresses[0];
    let words = ["exec", "--framing", "raw", "--encoding", "gbk", address];
    assert_eq!(client(&words, "echo 你好\n"), "你好\n");
}

#[test]
fn five_megabytes_arrive_in_every_framing() {
    let command = "head -c 5000000 /dev/zero | tr '\\0' x\n";
    for framing in ["ready", "len4", "json", "framed"] {
        let server = exec(framing, &[]);
        let said = stock(&format!("client_{framing}.py"), server.port(), &[], command);
        let text = said.lines().next().unwrap();
        assert!(
            text.len() == 5_000_000 && text.bytes().all(|byte| byte == b'x'),
            "{framing}"
        );
    }
    for framing in ["raw", "ready", "len4", "json", "framed"] {
        let server = exec(framing, &[]);
        let words = ["exec", "--framing", framing, "--raw", &server.addresses[0]];
        let said = client(&words, command);
        assert_eq!(said.len(), 5_000_000, "{framing}");
    }
}

#[test]
fn a_hundred_megabytes_arrive_with_the_right_checksum() {
    let server = exec("json", &["--describe"]);
    let command = "head -c 100000000 /dev/zero";
    let mut stock = python("client_big.py");
    stock.args([&server.port().to_string(), "json", command]);
    let zeros = "0f86d7c5a6180cf9584c1d21144d85b0";
    assert_eq!(
        said(stock.output().unwrap()),
        format!("100000000 {zeros}\n")
    );
    // bowline's client compares the checksum in the header itself.
    let words = ["exec", "--framing", "json", "--raw", &server.addresses[0]];
    assert_eq!(client(&words, &format!("{command}\n")).len(), 100_000_000);
}

#[test]
fn both_pipes_are_read_at_once() {
    let server = exec("framed", &[]);
    let command =
        "head -c 1000000 /dev/zero | tr '\\0' e >&2; head -c 1000000 /dev/zero | tr '\\0' o\n";
    let said = stock("client_framed.py", server.port(), &[], command);
    assert!(said.ends_with("exit 0 signal None sizes 1000000 1000000\n"));
}

#[test]
fn two_and_two_hundred_clients_at_once() {
    let server = exec("json", &[]);
    for count in ["2", "200"] {
        let mut many = python("many.py");
        many.args([&server.port().to_string(), count]);
        assert_eq!(said(many.output().unwrap()), "wrong []\n");
    }
}

#[test]
fn a_background_child_does_not_hold_up_the_reply() {
    let server = exec("len4", &[]);
    let pid = stock(
        "client_len4.py",
        server.port(),
        &[],
        "sleep 1000 & echo $!\n",
    );
    let pid = pid.trim();
    assert!(runs(pid), "it lives on");
    crate::server::signal_process(pid.parse().unwrap(), 9);
}

/// Starts a command that never ends and gives its pid.
fn endless(stream: &mut impl Write, folder: &std::path::Path) -> String {
    let file = folder.join("pid");
    let _ = std::fs::remove_file(&file);
    let command = format!(
        "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
        file.display()
    );
    stream.write_all(command.as_bytes()).unwrap();
    wait_until("the command runs", || file.exists());
    std::fs::read_to_string(&file).unwrap().trim().to_owned()
}

#[test]
fn a_client_that_goes_away_ends_its_commands_tree() {
    let folder = tempfile::tempdir().unwrap();
    let server = exec("raw", &[]);
    let mut other = server.connect();
    let mut stream = server.connect();
    let pid = endless(&mut stream, folder.path());
    drop(stream);
    wait_until("the tree of a closed client ends", || !runs(&pid));
    let mut stream = server.connect();
    let pid = endless(&mut stream, folder.path());
    rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
    drop(stream);
    wait_until("the tree of a client that reset ends", || !runs(&pid));
    other.write_all(b"echo served").unwrap();
    let mut bytes = [0; 64];
    let len = other.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"served\n");
}

#[test]
fn on_a_unix_socket_it_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let address = format!("unix:{}", path.display());
    let server = Serving::bowline(&["exec", "--framing", "raw", "--listen", &address]);
    assert_eq!(server.addresses, [address]);
    let mut stream = UnixStream::connect(&path).unwrap();
    let pid = endless(&mut stream, folder.path());
    drop(stream);
    wait_until("the tree ends", || !runs(&pid));
}

#[test]
fn a_client_that_dies_in_the_middle_of_output_disturbs_nobody() {
    let server = exec("len4", &[]);
    for _ in 0..3 {
        let mut stream = server.connect();
        stream.write_all(b"head -c 20000000 /dev/zero").unwrap();
        let mut bytes = [0; 1024];
        assert!(stream.read(&mut bytes).unwrap() > 0);
    }
    assert_eq!(
        stock("client_len4.py", server.port(), &[], "echo fine\n"),
        "fine\n\n"
    );
}

#[test]
fn a_client_that_only_stops_sending_gets_its_reply() {
    let server = exec("raw", &[]);
    let mut stream = server.connect();
    stream.write_all(b"echo hi\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_end(&mut stream), b"hi\n");
}

#[test]
fn framed_commands_may_be_sent_ahead() {
    let server = exec("framed", &[]);
    let mut stream = server.connect();
    let mut ahead = Vec::new();
    for number in 0..50 {
        let command = format!("echo {number}");
        let header = format!("{{\"total_size\": {}}}", command.len());
        ahead.extend((header.len() as i32).to_le_bytes());
        ahead.extend(header.bytes());
        ahead.extend(command.bytes());
    }
    // Any cut of the bytes gives the same commands.
    for part in ahead.chunks(7) {
        stream.write_all(part).unwrap();
    }
    for number in 0..50 {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut header = vec![0; i32::from_le_bytes(length) as usize];
        stream.read_exact(&mut header).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
        let mut body = vec![0; header["total_size"].as_u64().unwrap() as usize];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(body, format!("{number}\n").as_bytes());
    }
}

#[test]
fn several_lines_in_one_send_are_one_command() {
    let server = exec("raw", &[]);
    let mut stream = server.connect();
    stream.write_all(b"echo a\necho b\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_end(&mut stream), b"a\nb\n");
}

#[test]
fn a_command_is_a_text_for_sh_whatever_it_begins_with() {
    let server = exec("raw", &[]);
    let said = stock("client_raw.py", server.port(), &[], "echo $0\n-e x\n");
    let (shell, wrong) = said.split_once("\n\n").unwrap();
    assert_eq!(shell, "/bin/sh");
    assert!(
        wrong.contains("-e") && wrong.contains("not found"),
        "{said}"
    );
}

#[test]
fn a_hostile_message_ends_its_own_connection() {
    let server = exec("framed", &[]);
    let header = |text: &str| {
        let mut bytes = (text.len() as i32).to_le_bytes().to_vec();
        bytes.extend(text.bytes());
        bytes
    };
    let messages = [
        (-1_i32).to_le_bytes().to_vec(),
        (64 * 1024 + 1_i32).to_le_bytes().to_vec(),
        header("{"),
        header("{\"total_size\": -1}"),
        header("{\"total_size\": 1048577}"),
        [header("{\"total_size\": 3}"), b"a\0b".to_vec()].concat(),
    ];
    for message in messages {
        let mut stream = server.connect();
        stream.write_all(&message).unwrap();
        assert_eq!(to_end(&mut stream), b"", "{message:?}");
    }
    let said = stock("client_framed.py", server.port(), &[], "echo fine\n");
    assert!(said.starts_with("fine\n"));
}

#[test]
fn limits_of_a_command_are_kept_and_said() {
    let server = exec("framed", &["--command-time", "300ms"]);
    let said = stock(
        "client_framed.py",
        server.port(),
        &[],
        "echo begun; sleep 1000\n",
    );
    assert!(
        said.contains("begun\nbowline: the time was up; the command was ended"),
        "{said}"
    );
    let server = exec("len4", &["--output-limit", "100000"]);
    let said = stock("client_len4.py", server.port(), &[], "yes\necho fine\n");
    assert!(
        said.contains("bowline: the command wrote more than it may"),
        "{said}"
    );
    assert!(said.len() < 110_000 && said.ends_with("fine\n\n"));
    let server = exec("raw", &["--reply-limit", "10"]);
    let said = stock(
        "client_raw.py",
        server.port(),
        &[],
        "echo 0123456789\necho 1\n",
    );
    assert_eq!(
        said,
        "bowline: the reply has 11 bytes, over the limit of 10\n\n1\n\n"
    );
}

#[test]
fn a_secret_lets_in_and_a_wrong_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "sixteen bytes or more\n").unwrap();
    let file = file.to_str().unwrap();
    for digest in ["md5", "sha256"] {
        let server = exec("raw", &["--secret-file", file, "--digest", digest]);
        let right = ["sixteen bytes or more", digest];
        let said = stock("client_secret.py", server.port(), &right, "echo in\n");
        assert_eq!(said, "in\n\n");
        let said = stock(
            "client_secret.py",
            server.port(),
            &["another one", digest],
            "echo in\n",
        );
        assert_eq!(said, "closed\n");
        let words = [
            "exec",
            "--framing",
            "raw",
            "--secret-file",
            file,
            "--digest",
            digest,
        ];
        let words = [&words[..], &[server.addresses[0].as_str()]].concat();
        assert_eq!(client(&words, "echo in\n"), "in\n");
    }
    // A stock server with the same secret.
    let server = Serving::python("server_exec.py", &["len4", "sixteen bytes or more"]);
    let address = format!("tcp://127.0.0.1:{}", server.port());
    let words = [
        "exec",
        "--framing",
        "len4",
        "--secret-file",
        file,
        "--digest",
        "md5",
        &address,
    ];
    assert_eq!(client(&words, "echo in\n"), "in\n");
}

#[test]
fn what_is_not_safe_is_refused() {
    let refused = |words: &[&str]| {
        let home = tempfile::tempdir().unwrap();
        let output = super::plain(home.path())
            .arg("serve")
            .args(words)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let open = refused(&["exec", "--framing", "raw", "--listen", "tcp://0.0.0.0:0"]);
    assert!(open.contains("--secret-file") && open.contains("--anyone-may-run-commands"));
    if crate::server::is_root() {
        let root = refused(&["exec", "--framing", "raw", "--listen", TCP]);
        assert!(root.contains("--user NAME"), "{root}");
    }
    assert!(refused(&["exec", "--listen", TCP]).contains("--framing"));
    assert!(refused(&["time", "--listen", TCP]).contains("not served on"));
    let words = [
        "--framing",
        "raw",
        "--listen",
        "tcp://0.0.0.0:0",
        "--anyone-may-run-commands",
    ];
    let server = Serving::bowline(&[&["exec"], &words[..]].concat());
    assert_eq!(
        stock("client_raw.py", server.port(), &[], "echo open\n"),
        "open\n\n"
    );
}

#[test]
fn root_serves_as_whom_it_is_told() {
    if !crate::server::is_root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let mut command = super::plain(home.path());
    command.args([
        "serve",
        "exec",
        "--framing",
        "raw",
        "--listen",
        TCP,
        "--user",
        "root",
    ]);
    let server = Serving::start(command, 1);
    assert_eq!(
        stock("client_raw.py", server.port(), &[], "id -u\n"),
        "0\n\n"
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    assert!(status.contains("\nUid:\t0\t0\t0\t0\n"));
}

#[test]
fn commands_are_on_record_like_any_job() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let state = state.to_str().unwrap();
    let server = exec("raw", &["--state-dir", state]);
    assert_eq!(
        stock("client_raw.py", server.port(), &[], "echo on record\n"),
        "on record\n\n"
    );
    let jobs = std::process::Command::new(crate::server::bowline())
        .args(["jobs", "--all", &format!("unix:{state}/keeper.sock")])
        .env("HOME", folder.path())
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&jobs.stdout);
    assert!(
        listed.contains("echo on record") && listed.contains("exited 0"),
        "{listed} {jobs:?}"
    );
}

#[test]
fn a_signal_lets_the_reply_in_flight_end() {
    let folder = tempfile::tempdir().unwrap();
    let begun = folder.path().join("begun");
    let mut server = exec("raw", &["--drain", "60s"]);
    let mut stream = server.connect();
    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    assert!(made.success());
    let command = format!(
        "touch {}; cat {}; echo done",
        begun.display(),
        fifo.display()
    );
    stream.write_all(command.as_bytes()).unwrap();
    wait_until("the command runs", || begun.exists());
    crate::server::signal_process(server.pid(), 15);
    // Nobody new comes in; then the command may end.
    wait_until("the listener is closed", || {
        std::net::TcpStream::connect(("127.0.0.1", server.port())).is_err()
    });
    std::fs::write(&fifo, "late ").unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(to_end(&mut stream), b"late done\n");
    assert_eq!(server.wait(), Some(0));
}
