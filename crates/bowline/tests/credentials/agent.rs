//! A real ssh-agent: it lists, signs and refuses.

use bowline::credentials::agent::{Agent, AgentError};
use bowline::credentials::verify::verify_proof;
use bowline_proto::auth::NAMESPACE;
use bowline_proto::sshsig::SshSig;

use crate::real::{Home, KINDS, RunningAgent, public};

#[test]
fn keys_of_every_kind_are_listed_and_sign() {
    let home = Home::new();
    let running = RunningAgent::start(&home);
    let agent = Agent::at(running.socket());
    assert_eq!(agent.keys().unwrap(), []);
    let mut expected = Vec::new();
    for (kind, bits) in KINDS {
        let path = home.key(&format!("{kind}{bits}"), (kind, bits), "");
        running.add(&home, [&path]);
        expected.push(public(&path));
    }
    let listed = agent.keys().unwrap();
    assert!(listed.iter().all(|key| key.comment == "test@bowline"));
    let keys: Vec<_> = listed.into_iter().map(|key| key.key).collect();
    assert_eq!(keys, expected);
    for key in &keys {
        let sshsig = agent.sign_proof(key, b"message").unwrap();
        assert_eq!(verify_proof(&sshsig, b"message").as_ref(), Ok(key));
        assert!(home.verifies(key, NAMESPACE, &sshsig, b"message"));
        let algorithm = SshSig::decode(&sshsig).unwrap().algorithm;
        match key.algorithm().name() {
            "ssh-rsa" => assert_eq!(algorithm, "rsa-sha2-512"),
            name => assert_eq!(algorithm, name),
        }
    }
}

#[test]
fn a_key_that_is_gone_does_not_sign() {
    let home = Home::new();
    let running = RunningAgent::start(&home);
    let agent = Agent::at(running.socket());
    let path = home.key("key", ("ed25519", ""), "");
    running.add(&home, [&path]);
    assert!(agent.sign_proof(&public(&path), b"message").is_ok());
    running.add(&home, ["-D"]);
    assert!(matches!(
        agent.sign_proof(&public(&path), b"message"),
        Err(AgentError::Refused)
    ));
}

#[test]
fn an_agent_that_is_gone_is_named() {
    let home = Home::new();
    let running = RunningAgent::start(&home);
    let agent = Agent::at(running.socket());
    drop(running);
    let error = agent.keys().unwrap_err();
    assert!(matches!(&error, AgentError::Connect { .. }));
    assert!(error.to_string().contains("agent.socket"));
}
