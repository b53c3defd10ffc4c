//! Which keys are offered, with real keys, a real agent and somebody who types passphrases.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bowline::credentials::agent::Agent;
use bowline::credentials::identity::{Identities, IdentityError, Search};
use bowline::credentials::key_file::KeyFileError;
use bowline::credentials::keygen::keygen;
use bowline::credentials::places::Places;
use bowline::credentials::private_file::FileError;
use bowline::credentials::signer::{AskPassphrase, Origin, SignError, Signer, proofs};
use bowline::credentials::ssh_config::{HostConfig, IdentityAgent};
use bowline::credentials::verify::verify_proof;
use bowline_proto::auth::{Binding, Proof, public_key_message};
use bowline_proto::key::PublicKey;
use zeroize::Zeroizing;

use crate::real::{Home, RunningAgent, public};

/// Somebody who answers questions for passphrases in this order and notes what was asked.
#[derive(Clone, Default)]
struct Person {
    answers: Arc<Mutex<Vec<&'static str>>>,
    asked: Arc<Mutex<Vec<(PathBuf, u32)>>>,
}

impl Person {
    fn who_says(answers: &[&'static str]) -> Person {
        let person = Person::default();
        person.answers.lock().unwrap().extend(answers.iter().rev());
        person
    }

    fn ask(&self) -> AskPassphrase {
        let person = self.clone();
        Arc::new(move |path: &Path, attempt| {
            person
                .asked
                .lock()
                .unwrap()
                .push((path.to_owned(), attempt));
            let answer = person.answers.lock().unwrap().pop();
            answer.map(|answer| Zeroizing::new(answer.to_owned()))
        })
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// What a search is made with, beside the home.
#[derive(Default)]
struct With<'a> {
    named: &'a [PathBuf],
    host: HostConfig,
    agent: Option<&'a RunningAgent>,
    person: Person,
}

fn search(home: &Home, with: &With<'_>) -> Result<Identities, IdentityError> {
    Identities::search(Search {
        named: with.named,
        places: &Places::of_home(home.path()),
        host: &with.host,
        agent: with.agent.map(|agent| Agent::at(agent.socket())),
        ask: with.person.ask(),
    })
}

type Rounds = Vec<Vec<Arc<dyn Signer>>>;

fn rounds(home: &Home, with: &With<'_>) -> (Rounds, Identities) {
    let mut identities = search(home, with).unwrap();
    let rounds = std::iter::from_fn(|| identities.next_round()).collect();
    (rounds, identities)
}

/// The keys of each round.
fn keys(rounds: &Rounds) -> Vec<Vec<PublicKey>> {
    let keys = |round: &Vec<Arc<dyn Signer>>| {
        let signers = round.iter();
        signers.map(|signer| signer.public_key().clone()).collect()
    };
    rounds.iter().map(keys).collect()
}

fn ssh_key(home: &Home, name: &str, kind: &str, passphrase: &str) -> (PathBuf, PublicKey) {
    std::fs::create_dir_all(home.join(".ssh")).unwrap();
    let path = home.key(&format!(".ssh/{name}"), (kind, ""), passphrase);
    let key = public(&path);
    (path, key)
}

#[test]
fn keys_are_offered_in_order() {
    let home = Home::new();
    let agent = RunningAgent::start(&home);
    let (_, rsa) = ssh_key(&home, "id_rsa", "rsa", "");
    let (_, ed25519) = ssh_key(&home, "id_ed25519", "ed25519", "");
    let (_, ecdsa) = ssh_key(&home, "id_ecdsa", "ecdsa", "");
    let (path, held) = ssh_key(&home, "held", "ed25519", "");
    agent.add(&home, [&path]);
    let (configured_path, configured) = ssh_key(&home, "configured", "ed25519", "");

    let with = With {
        agent: Some(&agent),
        ..With::default()
    };
    let usual = vec![held.clone(), ed25519, ecdsa, rsa];
    assert_eq!(keys(&rounds(&home, &with).0), vec![usual.clone()]);

    // bowline's own key goes first, and the others are offered if it is refused.
    let own = keygen(&home.join(".config/bowline/id_ed25519"), "", None).unwrap();
    assert_eq!(keys(&rounds(&home, &with).0), [vec![own.clone()], usual]);

    let host = HostConfig {
        identity_files: Some(vec![configured_path.clone(), home.join("missing")]),
        ..HostConfig::default()
    };
    let with = With {
        host: host.clone(),
        agent: Some(&agent),
        ..With::default()
    };
    let expected = [vec![own.clone()], vec![configured.clone(), held]];
    assert_eq!(keys(&rounds(&home, &with).0), expected);

    let with = With {
        host: HostConfig {
            identities_only: true,
            ..host
        },
        agent: Some(&agent),
        ..With::default()
    };
    let expected = [vec![own], vec![configured.clone()]];
    assert_eq!(keys(&rounds(&home, &with).0), expected);

    let with = With {
        named: &[configured_path],
        agent: Some(&agent),
        ..With::default()
    };
    assert_eq!(keys(&rounds(&home, &with).0), [vec![configured]]);
}

#[test]
fn a_key_is_offered_once_wherever_it_lies() {
    let home = Home::new();
    let agent = RunningAgent::start(&home);
    let (path, key) = ssh_key(&home, "key", "ed25519", "");
    agent.add(&home, [&path]);
    std::fs::copy(&path, home.join(".ssh/copy")).unwrap();
    let own = home.join(".config/bowline/id_ed25519");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    std::fs::copy(&path, &own).unwrap();
    let with = With {
        host: HostConfig {
            identity_files: Some(vec![path.clone(), home.join(".ssh/copy")]),
            ..HostConfig::default()
        },
        agent: Some(&agent),
        ..With::default()
    };
    assert_eq!(keys(&rounds(&home, &with).0), [vec![key.clone()]]);
    std::fs::remove_file(own).unwrap();
    assert_eq!(keys(&rounds(&home, &with).0), [vec![key]]);
}

#[test]
fn more_keys_than_fit_go_into_further_rounds() {
    let home = Home::new();
    let agent = RunningAgent::start(&home);
    for number in 0..20 {
        let (path, _) = ssh_key(&home, &format!("key{number}"), "ed25519", "");
        agent.add(&home, [&path]);
    }
    let with = With {
        agent: Some(&agent),
        ..With::default()
    };
    let (rounds, _) = rounds(&home, &with);
    let sizes: Vec<_> = rounds.iter().map(Vec::len).collect();
    assert_eq!(sizes, [4, 4, 4, 4]);
}

#[test]
fn proofs_are_good_for_their_connection_alone() {
    let home = Home::new();
    let agent = RunningAgent::start(&home);
    let (path, held) = ssh_key(&home, "held", "rsa", "");
    agent.add(&home, [&path]);
    let (_, filed) = ssh_key(&home, "id_ecdsa", "ecdsa", "");
    let with = With {
        agent: Some(&agent),
        ..With::default()
    };
    let (rounds, _) = rounds(&home, &with);
    let binding = Binding::Exporter([7; 32]);
    let (made, errors) = proofs(&binding, "root", "bowline/1", &rounds[0]);
    assert!(errors.is_empty());
    let message = public_key_message(&binding, "root", "bowline/1");
    let other = public_key_message(&Binding::Exporter([8; 32]), "root", "bowline/1");
    let verified: Vec<_> = made
        .iter()
        .map(|proof| match proof {
            Proof::PublicKey { sshsig } => {
                assert!(verify_proof(sshsig, &other).is_err());
                verify_proof(sshsig, &message).unwrap()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(verified, [held, filed]);
}

#[test]
fn an_encrypted_key_that_the_agent_holds_asks_nobody() {
    let home = Home::new();
    let agent = RunningAgent::start(&home);
    let (path, key) = ssh_key(&home, "id_ed25519", "ed25519", "");
    agent.add(&home, [&path]);
    home.keygen(["-q", "-p", "-N", "secret", "-f", path.to_str().unwrap()]);
    for named in [&[][..], std::slice::from_ref(&path)] {
        let with = With {
            named,
            agent: Some(&agent),
            ..With::default()
        };
        let (rounds, _) = rounds(&home, &with);
        assert_eq!(keys(&rounds), [vec![key.clone()]]);
        let signer = &rounds[0][0];
        assert_eq!(signer.origin(), Origin::Agent("test@bowline".to_owned()));
        assert!(!signer.asks());
        assert!(signer.sign(b"message").is_ok());
        assert_eq!(with.person.asked(), 0);
    }
}

#[test]
fn a_passphrase_is_asked_for_last_and_once() {
    let home = Home::new();
    let (path, encrypted) = ssh_key(&home, "id_ed25519", "ed25519", "open sesame");
    let (_, plain) = ssh_key(&home, "id_rsa", "rsa", "");
    let with = With {
        person: Person::who_says(&["wrong", "open sesame"]),
        ..With::default()
    };
    let (rounds, _) = rounds(&home, &with);
    assert_eq!(keys(&rounds), [vec![plain], vec![encrypted.clone()]]);
    assert_eq!(with.person.asked(), 0);

    let signer = &rounds[1][0];
    assert!(signer.asks());
    let sshsig = signer.sign(b"message").unwrap();
    assert_eq!(verify_proof(&sshsig, b"message"), Ok(encrypted));
    let asked = with.person.asked.lock().unwrap().clone();
    assert_eq!(asked, [(path.clone(), 1), (path, 2)]);
    // A later connection needs another signature and no passphrase.
    assert!(!signer.asks());
    assert!(signer.sign(b"other").is_ok());
    assert_eq!(with.person.asked(), 2);
}

#[test]
fn nobody_there_and_wrong_passphrases_are_told_apart() {
    let home = Home::new();
    let (path, _) = ssh_key(&home, "encrypted", "ed25519", "open sesame");
    let named = [path];
    let with = |answers: &[&'static str]| With {
        named: &named,
        person: Person::who_says(answers),
        ..With::default()
    };
    let sign = |with: &With<'_>| rounds(&home, with).0[0][0].sign(b"message").unwrap_err();
    let nobody = with(&[]);
    let error = sign(&nobody);
    assert!(matches!(error, SignError::NoPassphrase { .. }));
    assert!(error.to_string().contains("ssh-add"));
    let guesses = with(&["a", "b", "c", "open sesame"]);
    assert!(matches!(
        sign(&guesses),
        SignError::File {
            source: KeyFileError::Passphrase,
            ..
        }
    ));
    assert_eq!(guesses.person.asked(), 3);
}

#[test]
fn an_unusable_file_stops_only_who_named_it() {
    let home = Home::new();
    let (open, _) = ssh_key(&home, "id_ed25519", "ed25519", "");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let pem = home.join(".ssh/id_rsa");
    let file = pem.to_str().unwrap();
    home.keygen(["-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", file]);
    let (_, good) = ssh_key(&home, "id_ecdsa", "ecdsa", "");
    let (rounds, identities) = rounds(&home, &With::default());
    assert_eq!(keys(&rounds), [vec![good]]);
    assert!(matches!(
        identities.problems(),
        [
            IdentityError::File(FileError::OpenToOthers { mode: 0o644, .. }),
            IdentityError::Pem { .. }
        ]
    ));
    let named = |path: &Path| {
        let named = [path.to_owned()];
        let with = With {
            named: &named,
            ..With::default()
        };
        search(&home, &with).unwrap_err()
    };
    assert!(named(&open).to_string().contains("chmod 600"));
    assert_eq!(
        named(&pem).to_string(),
        format!("the key {file} is in PEM format; rewrite it with `ssh-keygen -p -f {file}`")
    );
    assert!(
        matches!(named(&home.join("missing")), IdentityError::File(error) if error.is_not_found())
    );
    let damaged = home.write("damaged", "-----BEGIN OPENSSH PRIVATE KEY-----", 0o600);
    assert!(matches!(named(&damaged), IdentityError::Key { .. }));
    // The hint helps.
    home.keygen(["-q", "-p", "-N", "", "-f", file]);
    let named = [pem];
    let with = With {
        named: &named,
        ..With::default()
    };
    assert!(self::rounds(&home, &with).0[0][0].sign(b"message").is_ok());
}

#[test]
fn a_public_key_chooses_among_the_agents() {
    let home = Home::new();
    let agent = RunningAgent::start(&home);
    for name in ["one", "two"] {
        let (path, _) = ssh_key(&home, name, "ed25519", "");
        agent.add(&home, [&path]);
        std::fs::remove_file(path).unwrap();
    }
    let two = public(&home.join(".ssh/two"));
    for name in [".ssh/two", ".ssh/two.pub"] {
        let named = [home.join(name)];
        let with = With {
            named: &named,
            agent: Some(&agent),
            ..With::default()
        };
        assert_eq!(keys(&rounds(&home, &with).0), [vec![two.clone()]], "{name}");
        let without = With {
            named: &named,
            ..With::default()
        };
        assert!(matches!(
            search(&home, &without),
            Err(IdentityError::OnlyPublic { .. })
        ));
    }
}

#[test]
fn the_configuration_chooses_the_agent() {
    let home = Home::new();
    let agent = RunningAgent::start(&home);
    let (path, key) = ssh_key(&home, "key", "ed25519", "");
    agent.add(&home, [&path]);
    let with = |identity_agent, from_env| With {
        host: HostConfig {
            identity_agent: Some(identity_agent),
            ..HostConfig::default()
        },
        agent: from_env,
        ..With::default()
    };
    let found = |with: With<'_>| keys(&rounds(&home, &with).0);
    let socket = IdentityAgent::Socket(agent.socket().to_owned());
    assert_eq!(found(with(socket, None)), [vec![key.clone()]]);
    let variable = IdentityAgent::Variable("SSH_AUTH_SOCK".to_owned());
    assert_eq!(found(with(variable, Some(&agent))), [vec![key]]);
    assert!(found(with(IdentityAgent::None, Some(&agent))).is_empty());
    let nowhere = with(IdentityAgent::Socket(home.join("nowhere")), None);
    let (rounds, identities) = rounds(&home, &nowhere);
    assert!(rounds.is_empty());
    assert!(matches!(identities.problems(), [IdentityError::Agent(_)]));
}
