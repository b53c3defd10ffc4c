//! Real keys, real signatures, real files in temporary homes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bowline::credentials::private_key::PrivateKey;
use bowline_proto::auth::{Binding, NAMESPACE};
use bowline_proto::limits::PROTOCOL;
use rustix::process::{Gid, Uid};

use super::*;

const BINDING: Binding = Binding::Exporter([7; 32]);
/// 2026-01-01 00:00:00 UTC.
const NOW: u64 = 1_767_225_600;

/// A server that runs jobs as its own account, whose home is temporary.
struct Server {
    home: tempfile::TempDir,
    policy: Authenticator,
    key: PrivateKey,
}

impl Server {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut own = Account::own().unwrap();
        own.home = home.path().to_owned();
        let policy = Authenticator {
            own,
            accounts: Accounts::Own,
            locked_too: false,
            authorized_keys: PathBuf::from("%h/grants"),
            ssh_authorized_keys: true,
            secrets: Vec::new(),
            warned: RefCell::default(),
            slow_homes: RefCell::default(),
            machine_path: MachinePath::default(),
        };
        let key = PrivateKey::generate().unwrap();
        Self { home, policy, key }
    }

    /// As root, for the accounts in `allow_users`; grant files are `grants-NAME`.
    fn listed(allow_users: &[&str]) -> Self {
        let mut server = Self::new();
        let names = allow_users.iter().map(|name| (*name).to_owned());
        server.policy.accounts = Accounts::Listed(names.collect());
        server.policy.authorized_keys = server.home.path().join("grants-%u");
        server.policy.ssh_authorized_keys = false;
        // Another user's identity must get to the file.
        let passable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(server.home.path(), passable).unwrap();
        server
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A line that lets the key in on the conditions of `options`.
    fn line(&self, options: &str) -> String {
        format!("{options} {}\n", self.key.public())
            .trim_start()
            .to_owned()
    }

    fn proof(&self, user: &str) -> Proof {
        let message = public_key_message(&BINDING, user, PROTOCOL);
        let sshsig = self.key.sign_sshsig(NAMESPACE, &message).unwrap();
        Proof::PublicKey { sshsig }
    }

    fn decide(&self, user: &str, source: Source, proofs: &[Proof]) -> Result<Decision, DenyCode> {
        self.policy.decide(&asked(user, &source, proofs, None))
    }

    fn tcp(&self, user: &str) -> Result<Decision, DenyCode> {
        self.decide(user, tcp(), &[self.proof(user)])
    }
}

fn tcp() -> Source {
    Source::Tcp("192.0.2.7".parse().unwrap(), 50_000)
}

fn asked<'a>(
    user: &'a str,
    source: &'a Source,
    proofs: &'a [Proof],
    peer: Option<u32>,
) -> Asked<'a> {
    Asked {
        user,
        source,
        binding: &BINDING,
        protocol: PROTOCOL,
        proofs,
        peer: peer.map(|uid| (Uid::from_raw(uid), Gid::from_raw(uid))),
        now_unix: NOW,
    }
}

#[test]
fn a_key_in_either_file_lets_its_owner_in() {
    for file in ["grants", ".ssh/authorized_keys"] {
        let server = Server::new();
        assert_eq!(server.tcp(""), Err(DenyCode::NoProof));
        server.write(file, &server.line(""));
        let own = server.policy.own.clone();
        for user in ["", own.name.as_str()] {
            let decision = server.tcp(user).unwrap();
            assert_eq!(decision.account, own);
            assert!(decision.proof.starts_with("SHA256:"));
            assert!(decision.grant.pty);
            assert_eq!(decision.forced_command, None);
        }
    }
}

#[test]
fn the_files_of_ssh_count_only_where_they_are_asked_for() {
    let mut server = Server::new();
    server.write(".ssh/authorized_keys", &server.line(""));
    assert!(server.tcp("").is_ok());
    server.policy.ssh_authorized_keys = false;
    assert_eq!(server.tcp(""), Err(DenyCode::NoProof));
}

#[test]
fn a_server_of_ones_own_runs_jobs_as_nobody_else() {
    let server = Server::new();
    server.write("grants", &server.line(""));
    let other = match server.policy.own.name.as_str() {
        "root" => "nobody",
        _ => "root",
    };
    assert_eq!(server.tcp(other), Err(DenyCode::User));
    assert_eq!(server.tcp("no-such-user"), Err(DenyCode::User));
}

#[test]
fn a_proof_holds_for_its_connection_user_and_key_alone() {
    let server = Server::new();
    server.write("grants", &server.line(""));
    let name = server.policy.own.name.clone();
    // Signed for another name, another connection, by another key.
    let of_name = server.proof(&name);
    assert_eq!(server.decide("", tcp(), &[of_name]), Err(DenyCode::NoProof));
    let message = public_key_message(&Binding::Exporter([8; 32]), "", PROTOCOL);
    let sshsig = server.key.sign_sshsig(NAMESPACE, &message).unwrap();
    let elsewhere = Proof::PublicKey { sshsig };
    assert_eq!(
        server.decide("", tcp(), &[elsewhere]),
        Err(DenyCode::NoProof)
    );
    let message = public_key_message(&BINDING, "", PROTOCOL);
    let sshsig = server.key.sign_sshsig("git", &message).unwrap();
    let other_purpose = Proof::PublicKey { sshsig };
    assert_eq!(
        server.decide("", tcp(), &[other_purpose]),
        Err(DenyCode::NoProof)
    );
    let stranger = Server::new().proof("");
    assert_eq!(
        server.decide("", tcp(), &[stranger]),
        Err(DenyCode::NoProof)
    );
    let garbage = Proof::PublicKey {
        sshsig: vec![0; 100],
    };
    assert_eq!(server.decide("", tcp(), &[garbage]), Err(DenyCode::NoProof));
}

#[test]
fn the_first_good_proof_counts_and_no_more_than_four_are_looked_at() {
    let server = Server::new();
    server.write("grants", &server.line(""));
    let bad = || Server::new().proof("");
    let good = || server.proof("");
    let late = [bad(), bad(), bad(), good()];
    assert!(server.decide("", tcp(), &late).is_ok());
    let too_late = [bad(), bad(), bad(), bad(), good()];
    assert_eq!(server.decide("", tcp(), &too_late), Err(DenyCode::NoProof));
    assert_eq!(server.decide("", tcp(), &[]), Err(DenyCode::NoProof));
}

#[test]
fn conditions_of_a_line_are_kept() {
    let server = Server::new();
    let verdict = |options: &str| {
        server.write("grants", &server.line(options));
        server.tcp("")
    };
    let code = |options: &str| verdict(options).map(|_| ()).unwrap_err();
    assert!(verdict("from=\"192.0.2.0/24\"").is_ok());
    assert!(verdict("from=\"192.0.2.*,!192.0.2.8\"").is_ok());
    assert_eq!(code("from=\"198.51.100.1\""), DenyCode::Grant);
    assert_eq!(code("from=\"!192.0.2.7,*\""), DenyCode::Grant);
    assert!(verdict("expiry-time=\"20260102Z\"").is_ok());
    assert_eq!(code("expiry-time=\"20251231Z\""), DenyCode::Grant);
    // Local time is within a day of UTC everywhere.
    assert!(verdict("expiry-time=\"20260103\"").is_ok());
    assert_eq!(code("expiry-time=\"20251230\""), DenyCode::Grant);
    assert!(!verdict("restrict").unwrap().grant.pty);
    assert!(!verdict("no-pty").unwrap().grant.pty);
    assert!(verdict("restrict,pty").unwrap().grant.pty);
    let forced = verdict("command=\"/bin/ls -l\",environment=\"A=b\"").unwrap();
    assert!(forced.grant.forced_command);
    assert_eq!(forced.forced_command, Some(b"/bin/ls -l".to_vec()));
    assert_eq!(forced.environment, [b"A=b".to_vec()]);
    // What bowline does not know is never half-honoured.
    assert_eq!(code("some-later-option"), DenyCode::NoProof);
    assert_eq!(code("cert-authority"), DenyCode::NoProof);
}

#[test]
fn a_later_line_of_the_same_key_may_hold_where_the_first_does_not() {
    let server = Server::new();
    let lines = [
        server.line("from=\"198.51.100.1\""),
        server.line("command=\"second\""),
        server.line(""),
    ];
    server.write("grants", &lines.concat());
    let decision = server.tcp("").unwrap();
    assert_eq!(decision.forced_command, Some(b"second".to_vec()));
}

#[test]
fn from_holds_for_no_connection_without_an_address() {
    let server = Server::new();
    server.write("grants", &server.line("from=\"*\""));
    assert!(server.tcp("").is_ok());
    let proofs = [server.proof("")];
    let unix = server.decide("", Source::Unix, &proofs);
    assert_eq!(unix, Err(DenyCode::Grant));
}

#[test]
fn a_file_that_others_may_write_lets_nobody_in_and_is_warned_about_once() {
    let server = Server::new();
    server.write("grants", &server.line(""));
    let path = server.home.path().join("grants");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    for _ in 0..3 {
        assert_eq!(server.tcp(""), Err(DenyCode::NoProof));
    }
    let warned = server.policy.warned.borrow();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned.iter().all(|text| text.contains("0666")),
        "{warned:?}"
    );
}

#[test]
fn refused_lines_are_warned_about_with_file_and_line() {
    let server = Server::new();
    let text = format!(
        "# a comment\n{}tunnel=\"1\" {}",
        server.line(""),
        server.line("")
    );
    server.write("grants", &text);
    server.policy.check_files();
    let warned = server.policy.warned.borrow();
    let place = format!("{}:3: ", server.home.path().join("grants").display());
    assert!(
        warned.iter().any(|text| text.starts_with(&place)),
        "{warned:?}"
    );
}

#[test]
fn listed_users_that_cannot_be_let_in_are_warned_about() {
    let server = Server::listed(&["nobody", "no-such-user", "sync"]);
    server.policy.check_files();
    let warned = server.policy.warned.borrow();
    let about = |name: &str| {
        let start = format!("allow_users: {name}: ");
        warned.iter().any(|text| text.starts_with(&start))
    };
    assert!(about("nobody") && about("no-such-user"), "{warned:?}");
    // Without root nobody can say anything for sure, and that is a warning too.
    assert_eq!(about("sync"), !rustix::process::geteuid().is_root());
}

#[test]
fn warnings_are_bounded() {
    let server = Server::new();
    for number in 0..2 * WARNINGS_MAX {
        server.policy.warn(number.to_string());
    }
    assert_eq!(server.policy.warned.borrow().len(), WARNINGS_MAX);
}

#[test]
fn a_shared_secret_is_proven_in_both_directions() {
    let mut server = Server::new();
    let name = server.policy.own.name.clone();
    let folder = tempfile::tempdir().unwrap();
    let secret = |file: &str| Secret::create(&folder.path().join(file)).unwrap();
    let right = secret("right");
    server.policy.secrets = vec![
        ("somebody-else".to_owned(), secret("other")),
        (
            name.clone(),
            Secret::load(&folder.path().join("right")).unwrap(),
        ),
    ];
    let proof = right.proof(&BINDING, &name, PROTOCOL);
    let decision = server
        .decide(&name, tcp(), std::slice::from_ref(&proof))
        .unwrap();
    assert_eq!(decision.proof, "secret");
    let mac = decision.server_mac.unwrap();
    assert!(right.verify(Role::Server, &BINDING, &name, PROTOCOL, &mac));
    assert!(!right.verify(Role::Client, &BINDING, &name, PROTOCOL, &mac));
    // For another name, of another user, of another connection, and echoed.
    assert_eq!(server.decide("", tcp(), &[proof]), Err(DenyCode::NoProof));
    let other = Secret::load(&folder.path().join("other")).unwrap();
    let wrong = [
        other.proof(&BINDING, &name, PROTOCOL),
        right.proof(&Binding::Nonce([7; 32]), &name, PROTOCOL),
        Proof::Secret { mac },
    ];
    for proof in wrong {
        assert_eq!(
            server.decide(&name, tcp(), &[proof]),
            Err(DenyCode::NoProof)
        );
    }
}

#[test]
fn the_uid_of_the_other_end_decides_over_a_unix_socket() {
    let server = Server::new();
    let uid = server.policy.own.uid;
    let verdict = |source: &Source, peer| {
        let proofs = [Proof::Peer];
        let decided = server.policy.decide(&asked("", source, &proofs, peer));
        decided.map(|decision| decision.proof)
    };
    let peer = || Ok("peer".to_owned());
    if uid != OVERFLOW_UID {
        assert_eq!(verdict(&Source::Unix, Some(uid)), peer());
    }
    assert_eq!(verdict(&Source::Stdio, Some(uid)), peer());
    assert_eq!(verdict(&Source::Unix, Some(0)), peer());
    let stranger = Some(uid + 12_345);
    assert_eq!(verdict(&Source::Unix, stranger), Err(DenyCode::NoProof));
    assert_eq!(
        verdict(&Source::Unix, Some(OVERFLOW_UID)),
        Err(DenyCode::NoProof)
    );
    assert_eq!(verdict(&Source::Unix, None), Err(DenyCode::NoProof));
    assert_eq!(verdict(&tcp(), Some(uid)), Err(DenyCode::NoProof));
}

#[test]
fn a_root_server_serves_the_listed_accounts_alone() {
    // `sync` has a shell that is none of the refused ones on every Debian.
    let server = Server::listed(&["root", "nobody", "sync", "no-such-user"]);
    for name in ["root", "nobody", "sync", "no-such-user", "daemon"] {
        server.write(&format!("grants-{name}"), &server.line(""));
    }
    let code = |name: &str| server.tcp(name).map(|decision| decision.account.name);
    if !rustix::process::geteuid().is_root() {
        // Nobody can say whether an account is locked, so it counts as locked.
        assert_eq!(code("sync"), Err(DenyCode::Internal));
        return;
    }
    assert_eq!(code("root"), Ok("root".to_owned()));
    assert_eq!(code("sync"), Ok("sync".to_owned()));
    assert_eq!(code("nobody"), Err(DenyCode::User), "its shell is nologin");
    assert_eq!(code("daemon"), Err(DenyCode::User), "it is not listed");
    assert_eq!(code("no-such-user"), Err(DenyCode::User));
    assert_eq!(code(""), Err(DenyCode::User));
    let decision = server.tcp("sync").unwrap();
    let sync = Account::by_name("sync").unwrap();
    assert_eq!(decision.account, sync);
    // A key of root is no key of sync.
    server.write("grants-sync", "");
    assert_eq!(code("sync"), Err(DenyCode::NoProof));
}

#[test]
fn a_users_own_file_counts_on_a_root_server_that_says_so() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root has other users' files to read.
    }
    let mut server = Server::listed(&["sync"]);
    server.write(".ssh/authorized_keys", &server.line(""));
    let mut sync = Account::by_name("sync").unwrap();
    sync.home = server.home.path().to_owned();
    let key = server.key.public().clone();
    let source = tcp();
    let find = |server: &Server| {
        let asked = asked("sync", &source, &[], None);
        server.policy.find_grant(&key, &sync, &asked).map(|_| ())
    };
    assert_eq!(find(&server), Err(DenyCode::NoProof));
    server.policy.ssh_authorized_keys = true;
    assert_eq!(find(&server), Ok(()));
    // A home that did not answer is left alone for a while.
    let rest = Instant::now() + SLOW_HOME_REST;
    server.policy.slow_homes.borrow_mut().insert(sync.uid, rest);
    assert_eq!(find(&server), Err(DenyCode::NoProof));
    server.policy.slow_homes.borrow_mut().clear();
    let past = Instant::now();
    server.policy.slow_homes.borrow_mut().insert(sync.uid, past);
    assert_eq!(find(&server), Ok(()));
    assert!(server.policy.slow_homes.borrow().is_empty());
}

#[test]
fn an_empty_list_lets_nobody_in() {
    let server = Server::listed(&[]);
    server.write("grants-root", &server.line(""));
    assert_eq!(server.tcp("root"), Err(DenyCode::User));
    let proofs = [Proof::Peer];
    let asked = asked("root", &Source::Unix, &proofs, Some(0));
    assert_eq!(server.policy.decide(&asked), Err(DenyCode::User));
}

#[test]
fn over_a_unix_socket_one_becomes_oneself_and_root_becomes_anybody_listed() {
    if !rustix::process::geteuid().is_root() {
        return; // /etc/shadow decides about every account, and only root can read it.
    }
    let server = Server::listed(&["root", "sync"]);
    let sync = Account::by_name("sync").unwrap();
    let verdict = |user: &str, uid| {
        let proofs = [Proof::Peer];
        let decided = server
            .policy
            .decide(&asked(user, &Source::Unix, &proofs, Some(uid)));
        decided.map(|decision| decision.account.name)
    };
    assert_eq!(verdict("", sync.uid), Ok("sync".to_owned()));
    assert_eq!(verdict("sync", sync.uid), Ok("sync".to_owned()));
    assert_eq!(verdict("sync", 0), Ok("sync".to_owned()));
    assert_eq!(verdict("root", sync.uid), Err(DenyCode::NoProof));
    assert_eq!(verdict("daemon", 0), Err(DenyCode::User));
    let daemon = Account::by_name("daemon").unwrap().uid;
    assert_eq!(verdict("", daemon), Err(DenyCode::User));
}

#[test]
fn an_unknown_user_is_worked_for_as_a_known_one() {
    let server = Server::new();
    server.write("grants", &server.line(""));
    // The proof is good for the own account, and still nothing is given away.
    let proof = server.proof("no-such-user");
    let prove = |account| {
        let source = tcp();
        let asked = asked("no-such-user", &source, &[], None);
        server
            .policy
            .prove(&proof, account, &asked)
            .map(|proven| proven.name)
    };
    assert!(prove(Some(&server.policy.own)).is_ok());
    assert_eq!(prove(None), Err(DenyCode::User));
}

#[test]
fn tokens_of_a_path_are_replaced_once() {
    let account = Account {
        name: "a%h".to_owned(),
        home: PathBuf::from("/home/a"),
        ..Account::own().unwrap()
    };
    let of = |pattern: &str| expand(Path::new(pattern), &account);
    assert_eq!(of("/etc/keys/%u"), Path::new("/etc/keys/a%h"));
    assert_eq!(of("%h/x%%u"), Path::new("/home/a/x%u"));
    assert_eq!(of("/a%"), Path::new("/a%"));
    assert_eq!(of("/a%z"), Path::new("/a%z"));
}
