//! Keys: every usual file alone, encrypted ones, those of an agent, and those
//! that cannot be used.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Agent, ended, forget_key, let_in, public, ssh_keygen};
use crate::server::Server;
use crate::terminal::Terminal;

/// Every type of key that counts, with the name of its usual file.
const KINDS: [(&str, &[&str]); 6] = [
    ("id_ed25519", &["-t", "ed25519"]),
    ("id_ecdsa", &["-t", "ecdsa", "-b", "256"]),
    ("id_ecdsa", &["-t", "ecdsa", "-b", "384"]),
    ("id_ecdsa", &["-t", "ecdsa", "-b", "521"]),
    ("id_rsa", &["-t", "rsa", "-b", "3072"]),
    ("id_rsa", &["-t", "rsa", "-b", "2048"]),
];

fn ssh_file(server: &Server, name: &str) -> PathBuf {
    server.home().join(".ssh").join(name)
}

/// Makes a key and lets it, and it alone, in.
fn new_key(server: &Server, name: &str, args: &[&str]) -> PathBuf {
    let key = ssh_file(server, name);
    remove(&key);
    ssh_keygen(&key, args);
    let_in(server, &std::fs::read_to_string(public(&key)).unwrap());
    key
}

fn remove(key: &Path) {
    let _ = std::fs::remove_file(key);
    let _ = std::fs::remove_file(public(key));
}

#[test]
fn each_usual_file_alone_is_enough() {
    let server = Server::start();
    forget_key(&server);
    for (name, args) in KINDS {
        let key = new_key(&server, name, args);
        let (out, err) = ended(&server.run(&[], &["echo", "in"]), 0);
        assert_eq!((out.as_str(), err.as_str()), ("in\n", ""), "{args:?}");
        // The same key from elsewhere, by name.
        let elsewhere = server.dir().join("elsewhere");
        std::fs::rename(&key, &elsewhere).unwrap();
        remove(&key);
        let named = ["--identity", elsewhere.to_str().unwrap()];
        assert_eq!(ended(&server.run(&named, &["echo", "in"]), 0).0, "in\n");
        let (_, err) = ended(&server.run(&[], &["echo", "in"]), 2);
        assert!(err.contains("bowline keygen"), "{err}");
    }
}

#[test]
fn a_named_key_is_offered_alone() {
    let server = Server::start();
    let other = server.dir().join("other");
    ssh_keygen(&other, &["-t", "ed25519"]);
    let named = ["--identity", other.to_str().unwrap()];
    // The usual key would be let in, and is not the one that was asked for.
    let (_, err) = ended(&server.run(&named, &["true"]), 255);
    assert!(err.contains("[not_authenticated]"), "{err}");
    let (_, err) = ended(&server.run(&["--identity", "/no/such/key"], &["true"]), 2);
    assert!(err.contains("/no/such/key"), "{err}");
    assert_eq!(ended(&server.run(&[], &["echo", "in"]), 0).0, "in\n");
}

#[test]
fn a_passphrase_is_asked_for_on_the_terminal() {
    let server = Server::start();
    forget_key(&server);
    for kind in [&["-t", "ed25519"][..], &["-t", "rsa", "-b", "2048"]] {
        let args = [kind, &["-a", "4", "-N", "secret phrase"]].concat();
        let key = new_key(&server, "id_rsa", &args);
        let mut terminal = Terminal::start(&server.run(&[], &["echo", "in"]));
        terminal.expect("Passphrase of ");
        terminal.expect(&format!("{}: ", key.display()));
        assert!(!terminal.echoes());
        terminal.type_in("wrong\n");
        terminal.expect("that was not it");
        terminal.type_in("secret phrase\n");
        terminal.expect("in\r\n");
        assert!(terminal.echoes());
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(0), "{shown}");
        assert!(!shown.contains("secret phrase"), "{shown}");
    }

    let mut terminal = Terminal::start(&server.run(&[], &["echo", "in"]));
    for _ in 0..3 {
        terminal.expect("Passphrase of ");
        terminal.expect(": ");
        terminal.type_in("wrong\n");
    }
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(255), "{shown}");
    assert!(shown.contains("the passphrase is wrong"), "{shown}");
    assert!(shown.contains("[key_unusable]"), "{shown}");
}

#[test]
fn without_a_terminal_nobody_is_asked() {
    let server = Server::start();
    forget_key(&server);
    let key = new_key(&server, "id_ed25519", &["-a", "4", "-N", "phrase"]);
    for flags in [&[][..], &["--identity", key.to_str().unwrap()]] {
        let (out, err) = ended(&server.run(flags, &["echo", "in"]), 255);
        assert_eq!(out, "");
        assert!(err.contains("is encrypted"), "{err}");
        assert!(err.contains("ssh-add"), "{err}");
        assert!(err.contains("[not_authenticated]"), "{err}");
    }
}

#[test]
fn a_key_that_needs_no_question_goes_first() {
    let server = Server::start();
    let usual = std::fs::read_to_string(ssh_file(&server, "id_ed25519.pub")).unwrap();
    ssh_keygen(
        &ssh_file(&server, "id_ecdsa"),
        &["-t", "ecdsa", "-a", "4", "-N", "phrase"],
    );
    let terminal = Terminal::start(&server.run(&[], &["echo", "in"]));
    let (status, shown) = terminal.end();
    assert_eq!((status.code(), shown.as_str()), (Some(0), "in\n"));
    // Only where no other is let in is a person asked.
    let encrypted = std::fs::read_to_string(ssh_file(&server, "id_ecdsa.pub")).unwrap();
    let_in(&server, &encrypted);
    let mut terminal = Terminal::start(&server.run(&[], &["echo", "in"]));
    terminal.expect("Passphrase of ");
    terminal.expect("id_ecdsa: ");
    terminal.type_in("phrase\n");
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(0), "{shown}");
    let_in(&server, &usual);
}

#[test]
fn keys_that_an_agent_holds() {
    let server = Server::start();
    forget_key(&server);
    for (name, args) in KINDS {
        let agent = Agent::start();
        let key = new_key(&server, name, args);
        agent.add(&key, None);
        remove(&key);
        let run = agent.with(server.run(&[], &["echo", "in"]));
        let (out, err) = ended(&run, 0);
        assert_eq!((out.as_str(), err.as_str()), ("in\n", ""), "{args:?}");
    }
    // The file is encrypted and the agent has it open: nobody is asked.
    let agent = Agent::start();
    let key = new_key(&server, "id_ed25519", &["-a", "4", "-N", "phrase"]);
    agent.add(&key, Some("phrase"));
    let named = ["--identity", key.to_str().unwrap()];
    let public_half = public(&key);
    let named_public = ["--identity", public_half.to_str().unwrap()];
    for flags in [&[][..], &named, &named_public] {
        let run = agent.with(server.run(flags, &["echo", "in"]));
        let (out, err) = ended(&run, 0);
        assert_eq!((out.as_str(), err.as_str()), ("in\n", ""), "{flags:?}");
    }
}

#[test]
fn more_keys_than_one_attempt_carries() {
    let server = Server::start();
    forget_key(&server);
    let agent = Agent::start();
    for index in 0..9 {
        let key = server.dir().join(format!("key{index}"));
        ssh_keygen(&key, &["-t", "ed25519"]);
        agent.add(&key, None);
    }
    for index in [0, 5, 8] {
        let key = server.dir().join(format!("key{index}.pub"));
        let_in(&server, &std::fs::read_to_string(key).unwrap());
        let run = agent.with(server.run(&[], &["echo", "in"]));
        let (out, err) = ended(&run, 0);
        assert_eq!((out.as_str(), err.as_str()), ("in\n", ""), "key {index}");
    }
}

#[test]
fn an_agent_that_will_not_is_no_obstacle() {
    let server = Server::start();
    let usual = std::fs::read_to_string(ssh_file(&server, "id_ed25519.pub")).unwrap();
    // It holds another key, which must be confirmed, and nobody is there to do that.
    let agent = Agent::start();
    let other = server.dir().join("other");
    ssh_keygen(&other, &["-t", "ed25519"]);
    agent.add_with(&["-c"], &other);
    let run = agent.with(server.run(&[], &["echo", "in"]));
    let (out, err) = ended(&run, 0);
    assert_eq!(out, "in\n", "{err}");
    let_in(&server, &std::fs::read_to_string(public(&other)).unwrap());
    let (_, err) = ended(&run, 255);
    assert!(err.contains("refused to sign"), "{err}");
    let_in(&server, &usual);
}

#[test]
fn the_configuration_of_ssh_chooses_the_agent() {
    let server = Server::start();
    forget_key(&server);
    let (agent, empty) = (Agent::start(), Agent::start());
    let key = new_key(&server, "id_ed25519", &["-t", "ed25519"]);
    agent.add(&key, None);
    remove(&key);
    let config = |line: &str| std::fs::write(ssh_file(&server, "config"), line).unwrap();
    config(&format!("IdentityAgent {}\n", agent.socket().display()));
    let run = empty.with(server.run(&[], &["echo", "in"]));
    assert_eq!(ended(&run, 0).0, "in\n");
    config("IdentityAgent none\n");
    ended(&agent.with(server.run(&[], &["echo", "in"])), 2);
    config("IdentitiesOnly yes\n");
    ended(&agent.with(server.run(&[], &["echo", "in"])), 2);
    config("IdentityAgent SSH_AUTH_SOCK\n");
    assert_eq!(
        ended(&agent.with(server.run(&[], &["echo", "in"])), 0).0,
        "in\n"
    );
}

#[test]
fn bowlines_own_key_goes_first() {
    let server = Server::start();
    let (out, _) = ended(&server.command(&["keygen"]), 0);
    let key = server.home().join(".config/bowline/id_ed25519");
    assert!(out.contains(key.to_str().unwrap()), "{out}");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // It is not let in yet: the usual one is, in the second round.
    assert_eq!(ended(&server.run(&[], &["echo", "in"]), 0).0, "in\n");
    forget_key(&server);
    ended(&server.run(&[], &["true"]), 255);
    let file = server.dir().join("authorized_keys");
    let mut authorize = server.command(&["authorize"]);
    authorize
        .arg(public(&key))
        .arg("--authorized-keys")
        .arg(file);
    ended(&authorize, 0);
    assert_eq!(ended(&server.run(&[], &["echo", "in"]), 0).0, "in\n");
    // ssh can use it as well, and it is not replaced.
    let mut show = std::process::Command::new("ssh-keygen");
    show.arg("-yf").arg(&key);
    let shown = ended(&show, 0).0;
    let public_half = std::fs::read_to_string(public(&key)).unwrap();
    assert_eq!(shown.trim(), public_half.trim());
    let (_, err) = ended(&server.command(&["keygen"]), 2);
    assert!(err.contains("is there already"), "{err}");
}

#[test]
fn an_agent_that_is_gone_is_no_obstacle() {
    let server = Server::start();
    let mut run = server.run(&[], &["echo", "in"]);
    run.env("SSH_AUTH_SOCK", server.dir().join("no-agent"));
    assert_eq!(ended(&run, 0), ("in\n".to_owned(), String::new()));
    forget_key(&server);
    let mut run = server.run(&[], &["echo", "in"]);
    run.env("SSH_AUTH_SOCK", server.dir().join("no-agent"));
    let (_, err) = ended(&run, 2);
    assert!(err.contains("cannot reach the ssh-agent"), "{err}");
}

#[test]
fn keys_that_cannot_be_used_are_named_with_the_way_out() {
    let server = Server::start();
    forget_key(&server);
    let pem = new_key(&server, "id_rsa", &["-t", "rsa", "-b", "2048", "-m", "PEM"]);
    let hint = format!("ssh-keygen -p -f {}", pem.display());
    let (_, err) = ended(&server.run(&[], &["true"]), 2);
    assert!(err.contains(&hint), "{err}");
    let named = ["--identity", pem.to_str().unwrap()];
    let (_, err) = ended(&server.run(&named, &["true"]), 2);
    assert!(err.contains(&hint), "{err}");
    // The hint is right.
    let mut rewrite = std::process::Command::new("ssh-keygen");
    rewrite
        .args(["-q", "-p", "-N", "", "-P", "", "-f"])
        .arg(&pem);
    assert!(super::output(&rewrite).status.success());
    assert_eq!(ended(&server.run(&[], &["echo", "in"]), 0).0, "in\n");

    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&pem, open).unwrap();
    for flags in [&[][..], &named] {
        let (_, err) = ended(&server.run(flags, &["true"]), 2);
        let hint = format!("chmod 600 {}", pem.display());
        assert!(err.contains(&hint), "{err}");
    }
    remove(&pem);

    let short = new_key(&server, "id_rsa", &["-t", "rsa", "-b", "1024"]);
    let (_, err) = ended(&server.run(&[], &["true"]), 2);
    assert!(err.contains("1024"), "{err}");
    remove(&short);

    std::fs::write(&short, "no key at all\n").unwrap();
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (_, err) = ended(&server.run(&[], &["true"]), 2);
    assert!(err.contains("not an OpenSSH private key"), "{err}");
}
