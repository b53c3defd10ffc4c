//! Copies from one machine to another, through the client: honest ones, and with one that lies.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bowline_proto::copy::{Message, Options, VERSION};

use super::hostile::client::{liar, more_than_asked};
use super::hostile::{END, FILE, entry};
use super::{Bench, names, noise};

/// Lets a client of the first in at the second, on the same terms as that one's own.
fn introduce(client: &Bench, other: &Bench) {
    let public = |bench: &Bench| {
        let key = bench.server.home().join(".ssh/id_ed25519.pub");
        fs::read_to_string(key).unwrap().trim().to_owned()
    };
    let keys = other.server.dir().join("authorized_keys");
    let own = fs::read_to_string(&keys).unwrap();
    let its = own.replace(&public(other), &public(client));
    assert_ne!(own, its);
    fs::write(&keys, own + &its).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    let known = |bench: &Bench| bench.server.home().join(".config/bowline/known_hosts");
    let both = [client, other].map(|bench| fs::read_to_string(known(bench)).unwrap());
    fs::write(known(client), both.concat()).unwrap();
}

#[test]
fn a_tree_goes_from_one_machine_to_another_and_back() {
    let (bench, other) = (Bench::new(), Bench::new());
    introduce(&bench, &other);
    let big = noise(1, 3_000_000);
    other.write("src/big", &big);
    other.write("src/sub/small", "small");
    bench.well(&["-a", &other.there("src/."), &bench.there("to")]);
    bench.well(&[&bench.there("to"), &other.there("back")]);
    for path in [bench.path("to"), other.path("back")] {
        assert_eq!(names(&path), ["big", "sub"]);
        assert!(fs::read(path.join("big")).unwrap() == big);
        assert_eq!(fs::read(path.join("sub/small")).unwrap(), b"small");
    }
    let args = ["-a", &other.there("src/."), &bench.there("to")];
    let (status, _, summary) = bench.json(&args);
    let moved = (&summary["copied"], &summary["sent_bytes"]);
    assert_eq!((status, moved), (Some(0), (&0.into(), &0.into())));
}

#[test]
fn a_lying_sender_writes_only_what_was_asked_for() {
    let bench = Bench::new();
    let other = liar(&more_than_asked());
    introduce(&bench, &other);
    fs::create_dir(bench.path("to")).unwrap();
    let output = bench.cp(&[&other.there("asked"), &bench.there("to/")]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains(['\u{1b}', '\u{9b}', '\u{7}']), "{said:?}");
    assert_eq!(said.matches("[not_asked_for]").count(), 2, "{said}");
    assert_eq!(output.status.code(), Some(23), "{said}");
    assert_eq!(names(&bench.path("to")), ["asked"]);
    assert_eq!(names(bench.dir.path()), ["to"]);
}

#[test]
fn a_lying_sender_changes_no_options() {
    let delete = Message::Options(Options {
        delete: true,
        ..Options::default()
    });
    let hello = Message::Hello(VERSION);
    for first in [[delete.clone(), hello.clone()], [hello, delete]] {
        let bench = Bench::new();
        let lies = [&first[..], &[Message::Source(0), END, Message::ScanEnd]].concat();
        let other = liar(&lies);
        introduce(&bench, &other);
        bench.write("to/mine", "mine");
        let output = bench.cp(&[&other.there("src/."), &bench.there("to")]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("[copy_failed]"), "{said}");
        assert_eq!(bench.read("to/mine"), "mine");
    }
}

#[test]
fn a_lying_receiver_gets_only_what_was_offered() {
    let want = |id| Message::Want {
        id,
        prefix: None,
        same: None,
        blocks: None,
    };
    let hello = Message::Hello(VERSION);
    for case in [
        &[hello.clone(), want(7)][..],
        &[hello.clone(), Message::BasisEnd],
        &[hello.clone(), Message::ScanEnd],
        &[hello.clone(), Message::Source(0), entry(b"x", FILE)],
        &[hello.clone(), hello.clone()],
        &[want(0)],
    ] {
        let (bench, other) = (Bench::new(), liar(case));
        introduce(&bench, &other);
        bench.write("a", "a");
        bench.write("secret", "secret");
        let output = bench.cp(&[&bench.there("a"), &other.there("to")]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{case:?}: {said}");
        assert!(said.contains("[copy_failed]"), "{case:?}: {said}");
        assert!(!other.path("to").exists());
    }
}
