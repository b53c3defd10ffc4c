//! known_hosts and ssh_config: what ssh knows of a host.

use std::path::PathBuf;
use std::process::Command;

use super::{ended, public, ssh_keygen, text};
use crate::server::{Server, is_root};
use crate::terminal::Terminal;

/// A server that the client's home knows nothing of, and its host key.
struct Unknown {
    server: Server,
    key: String,
}

impl Unknown {
    fn start() -> Unknown {
        let server = Server::start();
        std::fs::remove_file(own(&server)).unwrap();
        let show = Command::new("ssh-keygen")
            .arg("-yf")
            .arg(server.dir().join("host_key"))
            .output()
            .unwrap();
        let key = text(&show.stdout);
        let mut fields = key.split(' ').map(str::trim);
        let key = format!("{} {}", fields.next().unwrap(), fields.next().unwrap());
        Unknown { server, key }
    }

    fn fingerprint(&self) -> String {
        let file = self.server.dir().join("fingerprint");
        std::fs::write(&file, &self.key).unwrap();
        let show = Command::new("ssh-keygen")
            .arg("-lf")
            .arg(file)
            .output()
            .unwrap();
        text(&show.stdout).split(' ').nth(1).unwrap().to_owned()
    }

    /// Writes ssh's own file.
    fn ssh_knows(&self, lines: &str) -> PathBuf {
        let file = self.server.home().join(".ssh/known_hosts");
        std::fs::write(&file, lines).unwrap();
        file
    }

    #[track_caller]
    fn refused(&self, trust: &str, code: &str) -> String {
        let marker = self.server.dir().join("marker");
        let touch = ["touch", marker.to_str().unwrap()];
        let (_, err) = ended(&self.server.run(&["--trust", trust], &touch), 255);
        assert!(err.contains(code), "{err}");
        assert!(!marker.exists());
        err
    }

    #[track_caller]
    fn let_in(&self, trust: &str) -> String {
        let (out, err) = ended(&self.server.run(&["--trust", trust], &["echo", "in"]), 0);
        assert_eq!(out, "in\n");
        err
    }
}

/// bowline's own file.
fn own(server: &Server) -> PathBuf {
    server.home().join(".config/bowline/known_hosts")
}

#[test]
fn a_host_that_ssh_knows_by_its_plain_name_is_known() {
    let host = Unknown::start();
    let other = host.server.dir().join("other");
    ssh_keygen(&other, &["-t", "ed25519"]);
    let other = std::fs::read_to_string(public(&other)).unwrap();
    for trust in ["ask", "strict"] {
        host.refused(trust, "[host_key_unknown]");
    }
    let key = &host.key;
    for line in [
        format!("127.0.0.1 {key} a comment\n"),
        format!("somebody,127.0.0.1 {key}\n"),
        format!("127.0.0.* {key}\n"),
        format!("# first\n\n127.0.0.1 {other}127.0.0.1 {key}\n"),
    ] {
        host.ssh_knows(&line);
        assert_eq!(host.let_in("strict"), "", "{line}");
    }
    // As `HashKnownHosts yes` would have it.
    let file = host.ssh_knows(&format!("127.0.0.1 {key}\n"));
    let hashed = Command::new("ssh-keygen")
        .arg("-Hf")
        .arg(&file)
        .output()
        .unwrap();
    assert!(hashed.status.success(), "{}", text(&hashed.stderr));
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("|1|"));
    assert_eq!(host.let_in("strict"), "");
    assert!(
        !own(&host.server).exists(),
        "nothing needs a pin of its own"
    );
}

#[test]
fn what_ssh_knows_never_contradicts() {
    let host = Unknown::start();
    let other = host.server.dir().join("other");
    ssh_keygen(&other, &["-t", "ed25519"]);
    let other = std::fs::read_to_string(public(&other)).unwrap();
    host.ssh_knows(&format!("127.0.0.1 {other}"));
    host.refused("strict", "[host_key_unknown]");
    assert!(host.let_in("new").contains("pinned its host key SHA256:"));
    assert_eq!(host.let_in("strict"), "");
    // bowline's own pin does.
    let port = host.server.port().unwrap();
    std::fs::write(own(&host.server), format!("[127.0.0.1]:{port} {other}")).unwrap();
    for trust in ["ask", "new", "strict"] {
        let err = host.refused(trust, "[host_key_changed]");
        assert!(err.contains("known_hosts, line 1"), "{err}");
    }
}

#[test]
fn a_file_of_ssh_that_others_may_write_is_named_and_left_out() {
    use std::os::unix::fs::PermissionsExt;
    let host = Unknown::start();
    let file = host.ssh_knows(&format!("127.0.0.1 {}\n", host.key));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let err = host.refused("strict", "[host_key_unknown]");
    let hint = format!("run `chmod go-w {}` [known_hosts_unusable]", file.display());
    assert!(err.contains(&hint), "{err}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(host.let_in("strict"), "");
    // bowline's own file must be good: its pins must not be forgotten.
    std::fs::write(own(&host.server), "").unwrap();
    std::fs::set_permissions(own(&host.server), std::fs::Permissions::from_mode(0o666)).unwrap();
    host.refused("new", "[known_hosts_unusable]");
    // As with ssh, so is its configuration.
    let config = host.server.home().join(".ssh/config");
    std::fs::write(&config, "Host x\n").unwrap();
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (_, err) = ended(&host.server.run(&[], &["true"]), 2);
    assert!(err.contains(config.to_str().unwrap()), "{err}");
}

#[test]
fn a_revoked_key_is_refused_whoever_says_so() {
    let host = Unknown::start();
    let key = &host.key;
    host.ssh_knows(&format!("127.0.0.1 {key}\n@revoked * {key}\n"));
    for trust in ["ask", "new", "strict"] {
        let err = host.refused(trust, "[host_key_revoked]");
        assert!(err.contains(".ssh/known_hosts, line 2"), "{err}");
    }
    host.ssh_knows("");
    let port = host.server.port().unwrap();
    let lines = format!("[127.0.0.1]:{port} {key}\n@revoked [127.0.0.1]:{port} {key}\n");
    std::fs::write(own(&host.server), lines).unwrap();
    host.refused("new", "[host_key_revoked]");
}

#[test]
fn a_person_is_asked_about_an_unknown_key() {
    let host = Unknown::start();
    let fingerprint = host.fingerprint();
    let ask = || {
        let mut terminal = Terminal::start(&host.server.run(&[], &["echo", "in"]));
        terminal.expect("is not known.");
        terminal.expect(&format!("ssh-ed25519 {fingerprint}\r\n"));
        terminal.expect("(yes, no, or the fingerprint) ");
        terminal
    };
    // No, and whatever is not yes.
    for answers in [
        &["no\n"][..],
        &["\u{4}"],
        &["maybe\n", "no\n"],
        &["SHA256:abc\n", "\u{4}"],
    ] {
        let mut terminal = ask();
        answer(&mut terminal, answers);
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(255), "{shown}");
        assert!(shown.contains("[host_key_unknown]"), "{shown}");
        assert!(shown.contains("hint: compare the fingerprint"), "{shown}");
        assert!(!own(&host.server).exists(), "{answers:?} is no yes");
    }
    let mut terminal = ask();
    terminal.type_in("\u{3}");
    let (status, shown) = terminal.end();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(2),
        "{shown}"
    );
    assert!(!own(&host.server).exists());

    for answers in [
        &["yes\n"][..],
        &[&format!("{fingerprint}\n")],
        &["y\n", "yes\n"],
    ] {
        let mut terminal = ask();
        answer(&mut terminal, answers);
        terminal.expect("in\r\n");
        assert_eq!(terminal.end().0.code(), Some(0));
        let pinned = std::fs::read_to_string(own(&host.server)).unwrap();
        let port = host.server.port().unwrap();
        assert_eq!(pinned, format!("[127.0.0.1]:{port} {}\n", host.key));
        // From now on nobody is asked.
        assert_eq!(host.let_in("ask"), "");
        std::fs::remove_file(own(&host.server)).unwrap();
    }
}

/// Types one answer after the other; all but the last are asked about again.
fn answer(terminal: &mut Terminal, answers: &[&str]) {
    for (index, answer) in answers.iter().enumerate() {
        if index > 0 {
            terminal.expect("Please type yes, no or the fingerprint: ");
        }
        terminal.type_in(answer);
    }
}

#[test]
fn trust_shows_the_key_and_pins_it() {
    let host = Unknown::start();
    let fingerprint = host.fingerprint();
    let target = host.server.target();
    let (_, err) = ended(&host.server.command(&["trust", &target]), 255);
    assert!(
        err.contains(&fingerprint) && err.contains("[host_key_unknown]"),
        "{err}"
    );
    let wrong = ["trust", &target, "--fingerprint", "SHA256:wrong"];
    ended(&host.server.command(&wrong), 255);
    assert!(!own(&host.server).exists());
    let right = ["trust", &target, "--fingerprint", &fingerprint];
    let (out, _) = ended(&host.server.command(&right), 0);
    assert!(
        out.contains(&fingerprint) && out.contains("pinned"),
        "{out}"
    );
    assert_eq!(host.let_in("strict"), "");
    let (out, _) = ended(&host.server.command(&["trust", &target, "--json"]), 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&json["result"], &json["fingerprint"]),
        (&"known".into(), &fingerprint.into())
    );
    // ssh-keygen can read what was written.
    let mut find = Command::new("ssh-keygen");
    find.arg("-F")
        .arg(format!("[127.0.0.1]:{}", host.server.port().unwrap()));
    find.arg("-f").arg(own(&host.server));
    assert!(find.output().unwrap().status.success());
}

#[test]
fn the_configuration_of_ssh_names_host_user_and_key() {
    let server = Server::start();
    let ssh = server.home().join(".ssh");
    std::fs::rename(ssh.join("id_ed25519"), ssh.join("special key")).unwrap();
    std::fs::remove_file(ssh.join("id_ed25519.pub")).unwrap();
    std::fs::create_dir(ssh.join("conf.d")).unwrap();
    std::fs::write(
        ssh.join("config"),
        "Include conf.d/*.conf\nHost *\n  User nobody-at-all\n  Compression yes\n",
    )
    .unwrap();
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap();
    let host = format!(
        "Host box other?box !otherxbox\n  HostName=127.0.0.1\n  User {}\n  \
         IdentityFile \"~/.ssh/special key\"\n  ProxyJump none\n",
        user.name
    );
    std::fs::write(ssh.join("conf.d/box.conf"), host).unwrap();
    let port = server.port().unwrap();
    let run = |target: &str, flags: &[&str]| {
        let mut command = server.command(&["run"]);
        command.args(flags).arg(target).args(["--", "echo", "in"]);
        command
    };
    for name in ["box", "other2box"] {
        let (out, err) = ended(&run(&format!("{name}:{port}"), &[]), 0);
        assert_eq!((out.as_str(), err.as_str()), ("in\n", ""));
    }
    let (_, err) = ended(&run(&format!("otherxbox:{port}"), &[]), 2);
    assert!(err.contains("bowline keygen"), "{err}");
    // What is typed goes before what is configured.
    let (_, err) = ended(&run(&format!("mallory@box:{port}"), &[]), 255);
    assert!(err.contains("[not_authenticated]"), "{err}");
    let (_, err) = ended(&run(&format!("box:{port}"), &["--user", "mallory"]), 255);
    assert!(err.contains("[not_authenticated]"), "{err}");
    // bowline's own configuration has the port, which ssh's cannot hold.
    let config = server.home().join(".config/bowline/config.toml");
    std::fs::write(config, format!("[host.box]\nport = {port}\n")).unwrap();
    assert_eq!(ended(&run("box", &[]), 0).0, "in\n");
    // A mistake in the file is named.
    std::fs::write(ssh.join("conf.d/z.conf"), "Host x\n User \"open\n").unwrap();
    let (_, err) = ended(&run("box", &[]), 2);
    assert!(err.contains("z.conf") && err.contains('2'), "{err}");
}

#[test]
fn as_root_the_host_key_is_sshds() {
    const SSHD_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";
    // Only for root, and only where sshd was installed, is that the default.
    if !is_root() || !std::path::Path::new(SSHD_KEY).exists() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    super::passable(dir.path());
    let key = dir.path().join("key");
    ssh_keygen(&key, &["-t", "ed25519"]);
    let config = dir.path().join("server.toml");
    std::fs::write(
        &config,
        format!(
            "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{0}/state\"\n\
             authorized_keys = \"{0}/key.pub\"\nallow_users = [\"root\"]\n",
            dir.path().display()
        ),
    )
    .unwrap();
    let mut serve = Command::new(crate::server::bowline());
    serve.arg("serve").arg("--config").arg(&config);
    let serving = super::Serving::start(serve, dir.path());
    // ssh knows the machine, so bowline does.
    let home = dir.path().join("home");
    std::fs::create_dir_all(home.join(".ssh")).unwrap();
    let known = std::fs::read_to_string(format!("{SSHD_KEY}.pub")).unwrap();
    std::fs::write(home.join(".ssh/known_hosts"), format!("127.0.0.1 {known}")).unwrap();
    let named = ["--identity", key.to_str().unwrap(), "--trust", "strict"];
    let run = super::run_at(&home, &serving.target, &named, &["echo", "in"]);
    assert_eq!(ended(&run, 0), ("in\n".to_owned(), String::new()));
}
