//! A hostile other side: every way out of the destination, every lie about lengths, in both directions.
//!
//! The worker is spoken to directly, and the client through a server whose grant runs something else
//! instead of the worker.

pub(super) mod client;
mod content;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bowline_proto::copy::{Entry, Message, Node, Options, Permit, VERSION, decode, encode};

use super::names;
use crate::server::bowline;

/// A destination, and beside it what nobody may touch.
struct Field {
    dir: tempfile::TempDir,
}

impl Field {
    fn new() -> Field {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("to")).unwrap();
        fs::create_dir_all(dir.path().join("outside/folder")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Field { dir }
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// Nothing outside has changed.
    #[track_caller]
    fn check(&self, about: &str) {
        assert_eq!(names(self.dir.path()), ["outside", "to"], "{about}");
        assert_eq!(names(&self.outside()), ["folder", "secret"], "{about}");
        assert_eq!(names(&self.outside().join("folder")), [""; 0], "{about}");
        let secret = fs::read_to_string(self.outside().join("secret")).unwrap();
        assert_eq!(secret, "secret", "{about}");
    }

    /// What a receiver makes of these messages: whether it ended well, what it answered to each
    /// entry, and what it said.
    fn receive(
        &self,
        options: &Options,
        messages: &[Message<'_>],
    ) -> (bool, Vec<(u64, String)>, String) {
        let mut bytes = Vec::new();
        encode(&Message::Options(options.clone()), &mut bytes);
        encode(&Message::Hello(VERSION), &mut bytes);
        for message in messages {
            encode(message, &mut bytes);
        }
        self.receive_bytes(&bytes)
    }

    fn receive_bytes(&self, bytes: &[u8]) -> (bool, Vec<(u64, String)>, String) {
        let mut child = Command::new(bowline())
            .args(["copy-worker", "receive", "--"])
            .arg(self.to())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            // It may end before it has read everything.
            scope.spawn(move || stdin.write_all(bytes));
            child.wait_with_output().unwrap()
        });
        let (mut answers, mut at) = (Vec::new(), 0);
        while let Some((message, len)) = decode(&output.stdout[at..]).unwrap() {
            at += len;
            if let Message::Done { id, code, .. } = message {
                answers.push((id, String::from_utf8(code.to_vec()).unwrap()));
            }
        }
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), answers, said)
    }
}

fn contents() -> Options {
    Options {
        permits: vec![Permit::Contents],
        ..Options::default()
    }
}

pub(super) fn entry<'a>(name: &'a [u8], node: Node<'a>) -> Message<'a> {
    Message::Entry(Entry {
        name,
        node,
        mode: 0o6755,
        mtime: 0,
        mtime_ns: 0,
        uid: 0,
        gid: 0,
    })
}

pub(super) const FILE: Node<'static> = Node::Regular {
    size: 4,
    linked: true,
};

fn evil(id: u64) -> Message<'static> {
    Message::Small {
        id,
        hash: *blake3::hash(b"evil").as_bytes(),
        changed: false,
        bytes: b"evil",
    }
}

pub(super) const END: Message<'static> = Message::FolderEnd { whole: true };

#[test]
fn no_name_leads_out_of_the_destination() {
    let field = Field::new();
    let long = [b'x'; 255];
    let absolute = field.outside().join("new");
    let absolute = absolute.to_str().unwrap().as_bytes();
    for name in [
        &b".."[..],
        b".",
        b"",
        b"../outside/new",
        b"a/b",
        b"/tmp/x",
        absolute,
        b"a\0b",
        b".a.bowline-0123456789abcdef",
    ] {
        let messages = [
            Message::Source(0),
            entry(name, FILE),
            entry(name, Node::Folder),
            entry(b"inside", FILE),
            END,
            entry(name, Node::Symlink(b"/etc")),
            entry(name, Node::HardLink(0)),
            entry(&long, FILE),
            evil(6 - 1),
            END,
            Message::ScanEnd,
        ];
        let (well, answers, said) = field.receive(&contents(), &messages);
        assert!(well, "{name:?}: {said}");
        assert_eq!(answers.len(), 6, "{name:?}");
        for (id, code) in answers {
            let expected: &[&str] = match id {
                2 => &["no_folder"],
                5 => &[""],
                _ => &["bad_name", "reserved_name"],
            };
            assert!(expected.contains(&code.as_str()), "{name:?} {id} {code}");
        }
        field.check(&format!("{name:?}"));
        assert_eq!(names(&field.to()).len(), 1);
    }
}

#[test]
fn no_link_is_written_through() {
    let field = Field::new();
    let outside = field.outside();
    let target = outside.to_str().unwrap().as_bytes();
    let secret = outside.join("secret");
    // Planted by the sender, then used as a folder, then as a file.
    let messages = [
        Message::Source(0),
        entry(b"link", Node::Symlink(target)),
        entry(b"link", Node::Folder),
        entry(b"secret", FILE),
        END,
        entry(b"file", Node::Symlink(secret.to_str().unwrap().as_bytes())),
        entry(b"file", FILE),
        END,
        Message::ScanEnd,
    ];
    let (well, answers, said) = field.receive(&contents(), &messages);
    assert!(well, "{said}");
    let codes: Vec<_> = answers.iter().map(|(_, code)| code.as_str()).collect();
    assert_eq!(codes, ["", "name_twice", "no_folder", "", "name_twice"]);
    field.check("planted");
    // There before, and met by a second copy, also in disguise of a file with two names.
    symlink(&outside, field.to().join("old")).unwrap();
    fs::hard_link(&secret, field.to().join("twin")).unwrap();
    let messages = [
        Message::Source(0),
        entry(b"link", Node::Folder),
        entry(b"secret", FILE),
        END,
        entry(b"old", Node::Folder),
        entry(b"secret", FILE),
        END,
        entry(b"file", FILE),
        evil(4),
        entry(b"twin", FILE),
        evil(5),
        END,
        Message::ScanEnd,
    ];
    let (well, answers, said) = field.receive(&contents(), &messages);
    assert!(well, "{said}");
    let codes: Vec<_> = answers.iter().map(|(_, code)| code.as_str()).collect();
    assert_eq!(
        codes,
        [
            "not_a_folder",
            "no_folder",
            "not_a_folder",
            "no_folder",
            "",
            ""
        ]
    );
    field.check("met");
    for name in ["file", "twin"] {
        let meta = field.to().join(name).symlink_metadata().unwrap();
        assert!(
            meta.is_file() && meta.nlink() == 1 && meta.mode() & 0o7777 == 0o755,
            "{name}"
        );
    }
    // Nor does `--delete` follow one.
    let options = Options {
        delete: true,
        ..contents()
    };
    let (well, _, said) = field.receive(&options, &[Message::Source(0), END, Message::ScanEnd]);
    assert!(well, "{said}");
    field.check("removed");
    assert_eq!(names(&field.to()), [""; 0]);
}

#[test]
fn a_hard_link_names_only_what_this_copy_made() {
    let field = Field::new();
    fs::write(field.to().join("mine"), "mine").unwrap();
    let messages = [
        Message::Source(0),
        entry(b"folder", Node::Folder),
        END,
        entry(b"link", Node::Symlink(b"../outside/secret")),
        entry(b"a", Node::HardLink(0)),
        entry(b"b", Node::HardLink(1)),
        entry(b"file", FILE),
        entry(b"c", Node::HardLink(4)),
        Message::Abort {
            id: 4,
            code: b"x",
            text: b"",
        },
        END,
        Message::ScanEnd,
    ];
    let (well, answers, said) = field.receive(&contents(), &messages);
    assert!(well, "{said}");
    let failed: Vec<_> = answers
        .iter()
        .filter(|(_, code)| code == "bad_link")
        .map(|a| a.0)
        .collect();
    assert_eq!(failed, [2, 3, 5]);
    let messages = [Message::Source(0), entry(b"d", Node::HardLink(0))];
    let (well, _, said) = field.receive(&contents(), &messages);
    assert!(!well && said.contains("rules"), "{said}");
    field.check("hard links");
}

#[test]
fn only_what_was_asked_for_gets_a_name() {
    let field = Field::new();
    let options = Options {
        permits: vec![Permit::Name(b"*.c".to_vec()), Permit::Name(b"x".to_vec())],
        into_folder: true,
        ..Options::default()
    };
    let messages = [
        Message::Source(0),
        entry(b".bashrc", FILE),
        entry(b".hidden.c", FILE),
        entry(b"x", FILE),
        entry(b"a.c", FILE),
        evil(3),
        Message::Source(1),
        entry(b"b.c", FILE),
        entry(b"x", Node::Folder),
        END,
        Message::ScanEnd,
    ];
    let (well, answers, said) = field.receive(&options, &messages);
    assert!(well, "{said}");
    let codes: Vec<_> = answers.iter().map(|(_, code)| code.as_str()).collect();
    let no = "not_asked_for";
    assert_eq!(codes, [no, no, no, "", no, ""]);
    assert_eq!(names(&field.to()), ["a.c", "x"]);
    field.check("names");
}

#[test]
fn a_worker_ends_with_its_line() {
    let mut child = Command::new(bowline())
        .args(["copy-worker", "send", "--", "/"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut bytes = Vec::new();
    encode(&Message::Options(contents()), &mut bytes);
    child.stdin.as_mut().unwrap().write_all(&bytes).unwrap();
    let mut first = [0; 1];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    drop((child.stdin.take(), child.stdout.take()));
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
