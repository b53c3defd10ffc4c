//! known_hosts files: verdicts, hashed by ssh-keygen, pinned by us and found by ssh-keygen.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use bowline::credentials::private_file::FileError;
use bowline::credentials::trust::{HostDatabase, TrustError, Verdict};
use bowline_proto::key::PublicKey;
use bowline_proto::known_hosts::LineError;

use crate::real::{Home, public};

const PORT: u16 = 7322;

fn key(number: u8) -> PublicKey {
    PublicKey::from_ed25519(&[number; 32])
}

/// Reads a database of two files with these contents.
fn database(home: &Home, own: &str, ssh: &str) -> HostDatabase {
    let own = home.write("bowline/known_hosts", own, 0o600);
    let ssh = home.write(".ssh/known_hosts", ssh, 0o644);
    HostDatabase::load(&own, &[ssh, home.join("missing")]).unwrap()
}

/// The line of a verdict, and which it is.
fn verdict(database: &HostDatabase, host: &str, port: u16, number: u8) -> (&'static str, usize) {
    match database.check(host, port, &key(number)) {
        Verdict::Known(place) => ("known", place.line),
        Verdict::Unknown => ("unknown", 0),
        Verdict::Changed { place, .. } => ("changed", place.line),
        Verdict::Revoked(place) => ("revoked", place.line),
    }
}

#[test]
fn the_own_file_decides() {
    let home = Home::new();
    let (one, two) = (key(1), key(2));
    let own = format!(
        "# mine\nhost {one}\n[host]:9000 {two}\n*.lab,!bad.lab {one}\nboth {two}\nboth {one}\n\
         @revoked gone {one}\ngone {one}\n@cert-authority ca {one}\n"
    );
    let database = database(&home, &own, "");
    for (host, port, number, expected) in [
        ("host", PORT, 1, ("known", 2)),
        ("HOST", PORT, 1, ("known", 2)),
        ("host", PORT, 2, ("changed", 2)),
        ("host", 9000, 2, ("known", 3)),
        ("host", 9000, 1, ("changed", 3)),
        ("host", 22, 1, ("unknown", 0)),
        ("a.lab", PORT, 1, ("known", 4)),
        ("bad.lab", PORT, 1, ("unknown", 0)),
        ("both", PORT, 1, ("known", 6)),
        ("both", PORT, 2, ("known", 5)),
        ("both", PORT, 3, ("changed", 5)),
        ("gone", PORT, 1, ("revoked", 7)),
        ("gone", PORT, 2, ("changed", 8)),
        ("ca", PORT, 1, ("unknown", 0)),
        ("other", PORT, 1, ("unknown", 0)),
    ] {
        assert_eq!(
            verdict(&database, host, port, number),
            expected,
            "{host} {port} {number}"
        );
    }
    let Verdict::Changed { place, expected } = database.check("host", PORT, &two) else {
        panic!("not changed")
    };
    assert_eq!(expected, one);
    assert_eq!(place.file, home.join("bowline/known_hosts"));
}

#[test]
fn sshs_file_confirms_and_never_contradicts() {
    let home = Home::new();
    let (one, two) = (key(1), key(2));
    let ssh = format!(
        "host,10.0.0.1 {one}\n[port]:9000 {one}\n@revoked * {}\n",
        key(9)
    );
    let database = database(&home, &format!("pinned {two}\n"), &ssh);
    for (host, port, number, expected) in [
        ("host", PORT, 1, ("known", 1)),
        ("host", 9000, 1, ("known", 1)),
        ("10.0.0.1", PORT, 1, ("known", 1)),
        ("host", PORT, 2, ("unknown", 0)),
        // That is another service of the host, which may have a key of its own.
        ("port", PORT, 1, ("unknown", 0)),
        ("port", 9000, 1, ("unknown", 0)),
        ("host", PORT, 9, ("revoked", 3)),
        ("pinned", PORT, 9, ("revoked", 3)),
        ("pinned", PORT, 2, ("known", 1)),
    ] {
        assert_eq!(
            verdict(&database, host, port, number),
            expected,
            "{host} {port} {number}"
        );
    }
}

#[test]
fn what_bowline_pinned_outweighs_what_ssh_knows() {
    let home = Home::new();
    let database = database(
        &home,
        &format!("host {}\n", key(2)),
        &format!("host {}\n", key(1)),
    );
    assert_eq!(verdict(&database, "host", PORT, 1), ("changed", 1));
    assert_eq!(verdict(&database, "host", PORT, 2), ("known", 1));
}

#[test]
fn a_key_of_another_type_contradicts_nothing() {
    let home = Home::new();
    let rsa = public(&home.key("rsa", ("rsa", "2048"), ""));
    let database = database(&home, &format!("host {rsa}\nhost ssh-dss AAAA\n"), "");
    assert_eq!(verdict(&database, "host", PORT, 1), ("unknown", 0));
}

#[test]
fn names_hashed_by_ssh_keygen_are_found() {
    let home = Home::new();
    let (one, two) = (key(1), key(2));
    let content = format!("host,10.0.0.1 {one}\n[host]:9000 {two}\n");
    let path = home.write("hashed", &content, 0o600);
    home.keygen(["-q", "-H", "-f", "hashed"]);
    let hashed = std::fs::read_to_string(&path).unwrap();
    assert!(hashed.lines().count() == 3 && hashed.lines().all(|line| line.starts_with("|1|")));
    let database = database(&home, &hashed, "");
    for (host, port, number, expected) in [
        ("Host", PORT, 1, ("known", 1)),
        ("10.0.0.1", PORT, 1, ("known", 2)),
        ("host", PORT, 2, ("changed", 1)),
        ("host", 9000, 2, ("known", 3)),
        ("host2", PORT, 1, ("unknown", 0)),
    ] {
        assert_eq!(verdict(&database, host, port, number), expected, "{host}");
    }
    let confirming = self::database(&home, "", &hashed);
    assert_eq!(verdict(&confirming, "host", PORT, 1).0, "known");
}

#[test]
fn a_pinned_key_is_found_by_us_and_by_ssh_keygen() {
    let home = Home::new();
    let own = home.join("config/bowline/known_hosts");
    let mut database = HostDatabase::load(&own, &[]).unwrap();
    assert!(database.pin("Host.Example", PORT, &key(1)).unwrap());
    assert!(!database.pin("host.example", PORT, &key(1)).unwrap());
    assert!(database.pin("host.example", 9000, &key(2)).unwrap());
    assert!(database.pin("::1", 9000, &key(2)).unwrap());
    assert_eq!(verdict(&database, "host.example", PORT, 1), ("known", 1));
    assert_eq!(verdict(&database, "::1", 9000, 2), ("known", 3));
    let content = std::fs::read_to_string(&own).unwrap();
    assert_eq!(content.lines().count(), 3);
    assert_eq!(std::fs::metadata(&own).unwrap().mode() & 0o7777, 0o600);
    let folder = std::fs::metadata(own.parent().unwrap()).unwrap();
    assert_eq!(folder.mode() & 0o7777, 0o700);
    for (name, number) in [
        ("host.example", 1),
        ("[host.example]:9000", 2),
        ("[::1]:9000", 2),
    ] {
        let found = home.keygen(["-F".as_ref(), name.as_ref(), "-f".as_ref(), own.as_os_str()]);
        assert!(found.contains(&key(number).to_string()), "{name}: {found}");
    }
}

#[test]
fn a_pin_never_overrules() {
    let home = Home::new();
    let own = home.write("known_hosts", format!("@revoked * {}", key(9)), 0o600);
    let mut ours = HostDatabase::load(&own, &[]).unwrap();
    let mut theirs = HostDatabase::load(&own, &[]).unwrap();
    assert!(theirs.pin("host", PORT, &key(1)).unwrap());
    // `ours` has not seen that pin yet, the file has.
    assert_eq!(verdict(&ours, "host", PORT, 2), ("unknown", 0));
    assert!(matches!(
        ours.pin("host", PORT, &key(2)),
        Err(TrustError::Contradiction(place)) if place.line == 2
    ));
    assert!(!ours.pin("host", PORT, &key(1)).unwrap());
    assert!(matches!(
        ours.pin("new", PORT, &key(9)),
        Err(TrustError::Contradiction(place)) if place.line == 1
    ));
    for name in ["", "a b", "*", "a,b", "x\ny", "@revoked", "#"] {
        assert!(matches!(
            ours.pin(name, PORT, &key(1)),
            Err(TrustError::Name)
        ));
    }
    let content = std::fs::read_to_string(&own).unwrap();
    assert_eq!(content, format!("@revoked * {}\nhost {}\n", key(9), key(1)));
}

#[test]
fn many_pins_at_once_are_all_there_and_whole() {
    let home = Home::new();
    let own = home.join("known_hosts");
    let start = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (own, start) = (&own, &start);
            scope.spawn(move || {
                let mut database = HostDatabase::load(own, &[]).unwrap();
                start.wait();
                assert!(
                    database
                        .pin(&format!("host{number}"), PORT, &key(number))
                        .unwrap()
                );
                database.pin("shared", PORT, &key(99)).unwrap();
            });
        }
    });
    let database = HostDatabase::load(&own, &[]).unwrap();
    for number in 0..8 {
        let host = format!("host{number}");
        assert_eq!(verdict(&database, &host, PORT, number).0, "known");
    }
    let content = std::fs::read_to_string(&own).unwrap();
    assert_eq!(content.lines().count(), 9);
}

#[test]
fn files_that_others_may_change_are_not_relied_on() {
    let home = Home::new();
    let own = home.write("own", format!("host {}\n", key(1)), 0o600);
    let ssh = home.write("ssh", format!("other {}\n", key(1)), 0o666);
    let database = HostDatabase::load(&own, std::slice::from_ref(&ssh)).unwrap();
    assert_eq!(verdict(&database, "other", PORT, 1), ("unknown", 0));
    assert!(matches!(
        database.unusable(),
        [FileError::WritableByOthers { mode: 0o666, path }] if *path == ssh
    ));
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o602)).unwrap();
    assert!(matches!(
        HostDatabase::load(&own, &[]),
        Err(TrustError::File(FileError::WritableByOthers { .. }))
    ));
    assert!(matches!(
        HostDatabase::load(home.path(), &[PathBuf::from("/nowhere")]),
        Err(TrustError::File(FileError::NotRegular { .. }))
    ));
}

#[test]
fn malformed_lines_are_named_and_the_others_count() {
    let home = Home::new();
    let own = format!("nonsense\nhost {}\n@what host {}\n", key(1), key(1));
    let database = database(&home, &own, "|1|x|y ssh-ed25519 AAAA\n");
    assert_eq!(verdict(&database, "host", PORT, 1), ("known", 2));
    let refused: Vec<_> = database
        .refused_lines()
        .into_iter()
        .map(|(place, reason)| (place.line, reason))
        .collect();
    assert_eq!(
        refused,
        [
            (1, LineError::Missing),
            (3, LineError::Marker),
            (1, LineError::Hash)
        ]
    );
}
