//! Who may do what on a real server, and what it is told from outside.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::server::{Server, bowline, is_root};

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Starts a server with this configuration file beside the usual flags.
fn with_config(config: &str) -> Server {
    Server::start_with(|command, dir| {
        let path = dir.join("server.toml");
        std::fs::write(&path, config).unwrap();
        command.arg("--config").arg(path);
    })
}

/// Puts options in front of the one key that the server knows.
fn options(server: &Server, options: &str) {
    let path = server.dir().join("authorized_keys");
    let key = std::fs::read_to_string(server.home().join(".ssh/id_ed25519.pub")).unwrap();
    std::fs::write(path, format!("{options} {key}")).unwrap();
}

#[test]
fn a_full_server_says_so_and_lives_on() {
    let server = with_config("[limits]\nconnections_max = 1\n");
    let mut first = server.run(&[], &["cat"]);
    let mut first = first
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line comes back, so it is connected.
    let mut stdin = first.stdin.take().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(first.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "hello\n");
    let second = output(&mut server.run(&[], &["true"]));
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(255), "{said}");
    assert!(said.contains("too_many_connections"), "{said}");
    drop(stdin);
    assert!(first.wait().unwrap().success());
    // The client has its outcome a moment before the server is done with the connection.
    let third = (0..100).find(|_| output(&mut server.run(&[], &["true"])).status.success());
    assert!(third.is_some(), "its room is not given back");
}

#[test]
fn as_root_jobs_run_as_the_user_asked_for_and_no_other() {
    let server = Server::start_with(|command, _| {
        command.args(["--allow-user", "sync"]);
    });
    let script = "id -u; id -g; pwd; echo $HOME $USER $LOGNAME; cat /etc/shadow | wc -c";
    let job = output(&mut server.run(&["--user", "sync"], &["/bin/sh", "-c", script]));
    if !is_root() {
        // The server is not root's: it runs jobs as its own account alone.
        assert_eq!(job.status.code(), Some(255));
        return;
    }
    let lines: Vec<String> = text(&job.stdout).lines().map(str::to_owned).collect();
    let sync = nix_like_passwd("sync");
    let expected = [
        sync.0.as_str(),
        sync.1.as_str(),
        sync.2.as_str(),
        &format!("{} sync sync", sync.2),
        "0",
    ];
    let real = |path: &str| std::fs::canonicalize(path).unwrap();
    assert_eq!(lines.len(), 5, "{}", text(&job.stderr));
    assert_eq!(real(&lines[2]), real(expected[2]));
    for at in [0, 1, 3, 4] {
        assert_eq!(lines[at], expected[at]);
    }
    for nobody in ["daemon", "nobody", "no-such-user"] {
        let refused = output(&mut server.run(&["--user", nobody], &["true"]));
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(255), "{nobody}: {said}");
        // One answer for every reason.
        assert!(said.contains("not_authenticated"), "{nobody}: {said}");
    }
}

/// uid, gid and home of an account.
fn nix_like_passwd(name: &str) -> (String, String, String) {
    let printed = output(Command::new("getent").args(["passwd", name]));
    let line = text(&printed.stdout);
    let fields: Vec<&str> = line.trim().split(':').collect();
    (fields[2].into(), fields[3].into(), fields[5].into())
}

#[test]
fn a_forced_command_is_all_that_a_key_can_do() {
    let server = Server::start();
    options(&server, "command=\"env\",environment=\"ROLE=reader\"");
    let flags = [
        "--env",
        "LD_PRELOAD=/nonexistent.so",
        "--env",
        "BASH_ENV=/nonexistent",
        "--env",
        "ROLE=writer",
        "--env",
        "LC_ALL=C",
    ];
    let job = output(&mut server.run(&flags, &["rm", "-rf", "a b"]));
    let said = text(&job.stdout);
    assert!(job.status.success(), "{said}{}", text(&job.stderr));
    let has = |line: &str| said.lines().any(|said| said == line);
    assert!(has("SSH_ORIGINAL_COMMAND=rm -rf 'a b'"), "{said}");
    assert!(has("ROLE=reader") && has("LC_ALL=C"), "{said}");
    assert!(
        !said.contains("nonexistent") && !said.contains("writer"),
        "{said}"
    );
}

#[test]
fn conditions_of_a_key_hold_and_are_not_told() {
    let server = Server::start();
    let status = |wanted: &str| {
        options(&server, wanted);
        output(&mut server.run(&[], &["true"]))
    };
    assert!(status("from=\"127.0.0.0/8\"").status.success());
    for denied in [
        "from=\"192.0.2.0/24\"",
        "expiry-time=\"20200101\"",
        "no-such-option",
    ] {
        let refused = status(denied);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(255), "{denied}");
        assert!(said.contains("not_authenticated"), "{denied}: {said}");
        assert!(!said.contains("from") && !said.contains("expir"), "{said}");
    }
    assert!(status("").status.success());
    // A file that others may write lets nobody in.
    let file = server.dir().join("authorized_keys");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let refused = output(&mut server.run(&[], &["true"]));
    assert_eq!(refused.status.code(), Some(255));
}

#[test]
fn a_configuration_is_checked_and_its_mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.toml");
    let check = |config: &str| {
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(bowline());
        command
            .env("HOME", folder.path())
            .args(["serve", "--check"]);
        output(command.arg("--config").arg(&path))
    };
    let good = check("listen = [\"127.0.0.1:1\"]\ndrain = \"90s\"\n");
    assert!(good.status.success(), "{}", text(&good.stderr));
    let printed = text(&good.stdout);
    assert!(
        printed.contains("listen = [\"tcp://127.0.0.1:1\"]"),
        "{printed}"
    );
    assert!(printed.contains("drain = \"90s\""), "{printed}");
    // What is printed is itself a configuration, and says the same.
    assert_eq!(text(&check(&printed).stdout), printed);
    let bad = check("\nlisten = []\ndrian = \"1s\"\n");
    assert_eq!(bad.status.code(), Some(2));
    let hint = format!(
        "{}:3: there is no key `drian`; did you mean `drain`?",
        path.display()
    );
    assert!(text(&bad.stderr).contains(&hint), "{}", text(&bad.stderr));
    assert!(!Path::new(&folder.path().join(".config")).exists());
}
