//! `bowline plain connect` with stock servers, and at a terminal.

use std::process::Command;

use super::{Serving, client, client_output, python, said};

fn tcp(server: &Serving) -> String {
    format!("tcp://127.0.0.1:{}", server.port())
}

#[test]
fn stock_servers_of_text_are_understood() {
    let server = Serving::python("server_upper.py", &[]);
    assert_eq!(
        client(&["upper", &tcp(&server)], "abc\n\n你好 d\nquit\nnot sent\n"),
        "ABC\n你好 D\n"
    );
    let server = Serving::python("server_stamp.py", &[]);
    let said = client(&["stamp", &tcp(&server)], "你好\n");
    assert!(
        said.starts_with('【') && said.ends_with("】 你好\n"),
        "{said}"
    );
    let mut server = Serving::python("server_greet.py", &[]);
    assert_eq!(
        client(&["greet", &tcp(&server)], "hello\n"),
        "nice to meet you\n"
    );
    assert_eq!(server.line(), "client said b'hello'");
}

#[test]
fn stock_servers_of_datagrams_are_understood() {
    for (kind, lines, expected) in [
        ("upper", "abc\nx\n", "ABC\nX\n"),
        ("time", "%%\nx%%\n", "%\nx%\n"),
    ] {
        let server = Serving::python("server_udp.py", &[kind]);
        let address = format!("udp://127.0.0.1:{}", server.port());
        assert_eq!(client(&[kind, &address], lines), expected);
    }
    let server = Serving::python("server_udp.py", &["time"]);
    let address = format!("udp://127.0.0.1:{}", server.port());
    assert_eq!(
        client(&["time", &address], "\n").len(),
        "2026-11-08-07:05:03\n".len()
    );
}

#[test]
fn stock_servers_of_commands_are_understood_in_every_framing() {
    for framing in ["raw", "ready", "len4", "json"] {
        let server = Serving::python("server_exec.py", &[framing]);
        let lines = "echo out; echo err >&2\nprintf 你好\necho end\n";
        let words = ["exec", "--framing", framing, &tcp(&server)];
        assert_eq!(client(&words, lines), "out\nerr\n你好\nend\n", "{framing}");
        let long = format!("echo {} | wc -c\n", "x".repeat(3000));
        assert_eq!(client(&words, &long).trim(), "3001", "{framing}");
    }
    let server = Serving::python("server_exec.py", &["framed"]);
    let words = ["exec", "--framing", "framed", &tcp(&server)];
    assert_eq!(client(&words, "echo a\ntrue\necho b >&2\n"), "a\nb\n");
}

#[test]
fn replies_of_stock_servers_may_be_large() {
    for framing in ["ready", "len4", "json", "framed"] {
        let server = Serving::python("server_exec.py", &[framing]);
        let words = ["exec", "--framing", framing, "--raw", &tcp(&server)];
        let said = client(&words, "head -c 5000000 /dev/zero | tr '\\0' x\n");
        assert_eq!(said.len(), 5_000_000, "{framing}");
    }
}

#[test]
fn an_empty_output_of_a_stock_raw_server_is_waited_for_no_longer_than_told() {
    let server = Serving::python("server_exec.py", &["raw"]);
    let words = ["exec", "--framing", "raw", "--wait", "1s", &tcp(&server)];
    assert_eq!(client(&words, "true\necho after\n"), "after\n");
}

#[test]
fn a_reply_that_never_comes_over_udp_is_an_error() {
    // Bound, so that nothing answers for it, and never read.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp://{}", nobody.local_addr().unwrap());
    let output = client_output(&["upper", "--wait", "200ms", &address], "a\nb\n");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.matches("no reply within").count(), 2, "{errors}");
}

#[test]
fn it_says_who_closed() {
    let server = Serving::python("server_greet.py", &[]);
    let output = client_output(&["greet", &tcp(&server)], "hello\nmore\n");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        errors.contains("the server closed the connection"),
        "{errors}"
    );
    assert_eq!(said(output), "nice to meet you\n");
    let output = client_output(&["upper", "tcp://127.0.0.1:1"], "a\n");
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot connect"));
}

#[test]
fn bytes_are_shown_as_told() {
    let server = Serving::python("server_exec.py", &["len4"]);
    let address = tcp(&server);
    let gbk = "printf '\\304\\343\\272\\303'\n";
    let words = ["exec", "--framing", "len4", "--encoding", "gbk", &address];
    assert_eq!(client(&words, gbk), "你好\n");
    let words = ["exec", "--framing", "len4", &address];
    assert_eq!(client(&words, "printf 'a\\377b'\n"), "a\u{fffd}b\n");
    let raw = client_output(&["exec", "--framing", "len4", "--raw", &address], gbk);
    assert_eq!(raw.stdout, [0xc4, 0xe3, 0xba, 0xc3]);
}

#[test]
fn a_person_edits_lines_and_goes_back_in_history() {
    let server = Serving::python("server_upper.py", &[]);
    let home = tempfile::tempdir().unwrap();
    let mut terminal = python("terminal.py");
    terminal
        .arg(crate::server::bowline())
        .args(["plain", "connect", "upper", &tcp(&server)])
        .env("HOME", home.path())
        .env_remove("XDG_STATE_HOME");
    assert_eq!(said(terminal.output().unwrap()), "exit 0\n");
    let history = home.path().join(".local/state/bowline/plain_history");
    let history = std::fs::read_to_string(history).unwrap();
    assert!(history.lines().any(|line| line == "abc"), "{history}");
}

#[test]
fn the_demonstration_shows_what_sticks() {
    let output = Command::new(crate::server::bowline())
        .args(["plain", "demo", "sticky"])
        .output()
        .unwrap();
    let told = said(output);
    assert!(
        told.contains("recv(1024) = b'helloworld'   <- two messages, stuck together"),
        "{told}"
    );
    for framing in ["raw:", "ready:", "len4:", "json:"] {
        assert!(
            told.lines().any(|line| line.starts_with(framing)),
            "{framing}"
        );
    }
}
