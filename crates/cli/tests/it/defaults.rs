//! The client's configuration: what it sets for a host, or for all, where no flag says otherwise.

use std::net::TcpListener;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::server::Server;

/// Writes the configuration of this server's clients.
fn configure(server: &Server, text: &str) {
    let folder = server.home().join(".config/bowline");
    std::fs::write(folder.join("config.toml"), text).unwrap();
}

fn output(server: &Server, args: &[&str]) -> (Option<i32>, String) {
    let mut command = server.command(args);
    let Output { status, stderr, .. } = command.stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_host_has_its_own_and_flags_win() {
    let server = Server::start();
    let port = server.port().unwrap();
    let config = format!(
        "port = {port}\nspool = \"kill\"\nspool_bytes = 1000
[host.small]\naddress = \"127.0.0.1\"
[host.large]\naddress = \"127.0.0.1\"\nspool = \"block\"\nspool_bytes = 1000000"
    );
    configure(&server, &config);
    // 3,893 bytes.
    let job = ["--", "seq", "1", "1000"];
    for (host, flags, error) in [
        ("small", &[][..], Some("spool_full")),
        ("127.0.0.1", &[], Some("spool_full")),
        ("small", &["--spool-bytes", "4000"], None),
        ("small", &["--spool", "drop-oldest"], None),
        ("large", &[], None),
        ("large", &["--spool", "kill"], None),
        (
            "large",
            &["--spool", "kill", "--spool-bytes", "1"],
            Some("spool_full"),
        ),
    ] {
        let args = [&["run", "--detach"], flags, &[host], &job].concat();
        let run = server.command(&args).output().unwrap();
        assert!(run.status.success(), "{args:?}: {run:?}");
        let id = String::from_utf8(run.stdout).unwrap();
        let mut wait = server.command(&["wait", "--json", host, id.trim_end()]);
        let outcome: Value = serde_json::from_slice(&wait.output().unwrap().stdout).unwrap();
        assert_eq!(
            outcome.get("error").and_then(Value::as_str),
            error,
            "{args:?}"
        );
    }
}

#[test]
fn a_host_that_does_not_answer_is_waited_for_as_long_as_is_set() {
    let server = Server::start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let config = format!(
        "connect_timeout = \"1h\"
[host.deaf]\naddress = \"127.0.0.1\"\nport = {port}\nconnect_timeout = \"150ms\""
    );
    configure(&server, &config);
    let (status, said) = output(&server, &["run", "deaf", "--", "true"]);
    assert_eq!(status, Some(255), "{said}");
    assert!(
        said.contains("150ms") && said.contains("[connect_timeout]"),
        "{said}"
    );
    let args = ["ping", "--connect-timeout", "140ms", "deaf"];
    let (status, said) = output(&server, &args);
    assert_eq!(status, Some(255), "{said}");
    assert!(said.contains("140ms"), "{said}");
}

#[test]
fn what_is_wrong_is_told_with_its_place_before_anything_is_asked() {
    let server = Server::start();
    let target = server.target();
    for (config, what) in [
        (
            "user = \"ann\"\nspool_byte = 1\n",
            "config.toml:2: there is no key `spool_byte`; did you mean `spool_bytes`?",
        ),
        (
            "\n\n[host.x]\nconnect_timeout = \"fast\"\n",
            "config.toml:4: a duration is",
        ),
        ("[host.local]\n", "config.toml:1: the host \"local\""),
    ] {
        configure(&server, config);
        for args in [&["run", &target, "--", "true"][..], &["wait", &target, "a"]] {
            let (status, said) = output(&server, args);
            assert_eq!(status, Some(2), "{said}");
            assert!(said.contains(what), "{said}");
        }
    }
    configure(&server, "");
    assert_eq!(crate::lifecycle::jobs(&server).len(), 0);
}
