//! A hostile other side: every way out of the destination, every lie about lengths, in both directions.
//!
//! The worker is spoken to directly, and the client through a server whose grant runs something else
//! instead of the worker.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bowline_proto::copy::{
    Entry, Layout, Message, Node, Options, Permit, Sum, Sums, VERSION, decode, encode,
};

use super::{Bench, names, noise};
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
fn content_must_be_what_was_announced() {
    let field = Field::new();
    let begin = |id| Message::Begin { id, from: 0 };
    let finish = |content: &[u8]| Message::Finish {
        hash: *blake3::hash(content).as_bytes(),
        changed: false,
    };
    let messages = [
        Message::Source(0),
        entry(b"small", FILE),
        Message::Small {
            id: 0,
            hash: [0; 32],
            changed: false,
            bytes: b"evil",
        },
        entry(b"wrong", FILE),
        begin(1),
        Message::Data(b"abc"),
        finish(b"abd"),
        entry(b"hole", FILE),
        begin(2),
        Message::Hole(u64::MAX),
        Message::Hole(5),
        finish(b""),
        entry(b"good", FILE),
        begin(3),
        Message::Data(b"a"),
        Message::Hole(2),
        finish(b"a\0\0"),
        END,
        Message::ScanEnd,
    ];
    let (well, answers, said) = field.receive(&contents(), &messages);
    assert!(well, "{said}");
    let codes: Vec<_> = answers.iter().map(|(_, code)| code.as_str()).collect();
    assert_eq!(codes, ["hash_mismatch", "hash_mismatch", "changed", ""]);
    assert_eq!(names(&field.to()), ["good"]);
    assert_eq!(fs::read(field.to().join("good")).unwrap(), b"a\0\0");
    field.check("content");
}

#[test]
fn who_breaks_the_rules_breaks_only_the_own_copy() {
    let field = Field::new();
    let file = entry(b"file", FILE);
    let from = |from| Message::Begin { id: 0, from };
    let blocks = |first, count| Message::Blocks { first, count };
    let cases: &[&[Message<'_>]] = &[
        &[evil(0)],
        &[from(0)],
        &[Message::Data(b"x")],
        &[blocks(0, 1)],
        &[Message::Same { id: 0, hash: None }],
        &[Message::Redo { id: 7 }],
        &[Message::Source(1)],
        &[Message::Source(0), Message::Source(0)],
        &[Message::Source(0), file.clone(), from(1)],
        &[
            Message::Source(0),
            file.clone(),
            from(0),
            blocks(0, u64::MAX),
        ],
        &[
            Message::Source(0),
            file.clone(),
            from(0),
            blocks(u64::MAX, u64::MAX),
        ],
        &[Message::Source(0), file.clone(), from(0), evil(0)],
        &[Message::Source(0), file.clone(), from(0), from(0)],
        &[Message::Source(0), file.clone(), evil(0), evil(0)],
        &[Message::Source(0), file.clone(), Message::Redo { id: 0 }],
        &[
            Message::Source(0),
            entry(b"d", Node::Folder),
            Message::ScanEnd,
        ],
        &[
            Message::Source(0),
            file.clone(),
            Message::ScanEnd,
            file.clone(),
        ],
        &[Message::Finished],
        &[Message::Skip { first: 0, count: 1 }],
        &[Message::Hello(VERSION)],
        &[Message::Options(Options::default())],
    ];
    for case in cases {
        let (well, _, said) = field.receive(&contents(), case);
        assert!(!well && said.starts_with("bowline: "), "{case:?}: {said}");
        field.check(&format!("{case:?}"));
    }
    // Not one entry without its source, which says what it may be called.
    let messages = [entry(b"x", Node::Folder), END, Message::ScanEnd];
    let (well, answers, _) = field.receive(&contents(), &messages);
    assert_eq!(
        (well, answers),
        (true, vec![(0, "not_asked_for".to_owned())])
    );
    // Folders in each other without end.
    let mut deep = vec![Message::Source(0)];
    deep.extend((0..5000).map(|_| entry(b"d", Node::Folder)));
    let (well, _, said) = field.receive(&contents(), &deep);
    assert!(!well && said.contains("too deep"), "{said}");
    // Files without end, and no content.
    let mut many = vec![Message::Source(0)];
    let name = |index| &*format!("{index}").leak();
    many.extend((0..20_000).map(|index: u32| entry(name(index).as_bytes(), FILE)));
    let (well, _, said) = field.receive(&contents(), &many);
    assert!(!well && said.contains("more entries"), "{said}");
    // Bytes that are no messages, and lengths that are none.
    for bytes in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &[0x02, 0xff, 0xff, 0xff],
        &[0x02, 4, 0, 0, 1],
        b"",
    ] {
        let (well, answers, _) = field.receive_bytes(bytes);
        assert!(!well && answers.is_empty(), "{bytes:?}");
    }
    field.check("bytes");
}

/// A file that is there, large enough for its blocks to be offered.
const OLD: Node<'static> = Node::Regular {
    size: 300_000,
    linked: false,
};

fn finish(content: &[u8]) -> Message<'static> {
    Message::Finish {
        hash: *blake3::hash(content).as_bytes(),
        changed: false,
    }
}

/// How many blocks are offered of it, and how long they are.
fn blocks_of(old: &[u8]) -> (u64, usize) {
    let layout = Layout::of([old.len() as u64, 0]);
    (layout.count(), layout.block())
}

#[test]
fn blocks_are_only_those_that_were_offered() {
    let old = noise(20, 300_000);
    let (count, block) = blocks_of(&old);
    let begin = Message::Begin { id: 0, from: 0 };
    let blocks = |first, count| Message::Blocks { first, count };
    for (first, count) in [
        (count, 1),
        (0, count + 1),
        (count - 1, 2),
        (1, u64::MAX),
        (u64::MAX, 1),
        (u64::MAX - 1, 1),
    ] {
        let field = Field::new();
        fs::write(field.to().join("old"), &old).unwrap();
        let messages = [
            Message::Source(0),
            entry(b"old", OLD),
            begin.clone(),
            blocks(first, count),
        ];
        let (well, _, said) = field.receive(&contents(), &messages);
        assert!(!well && said.contains("rules"), "{first} {count}: {said}");
        assert_eq!(fs::read(field.to().join("old")).unwrap(), old);
        field.check("blocks");
    }
    // Again and again the same one, but no more than was announced.
    let field = Field::new();
    fs::write(field.to().join("old"), &old).unwrap();
    let twice = [&old[..block], &old[..block]].concat();
    let mut messages = vec![Message::Source(0), entry(b"old", OLD), begin.clone()];
    messages.extend((0..2 * count).map(|_| blocks(0, 1)));
    messages.extend([finish(b""), entry(b"new", OLD), END, Message::ScanEnd]);
    messages.extend([
        Message::Begin { id: 1, from: 0 },
        Message::Data(&twice),
        finish(&twice),
    ]);
    let (well, answers, said) = field.receive(&contents(), &messages);
    assert!(well, "{said}");
    assert_eq!(
        answers,
        [(0, "changed".to_owned()), (1, String::new())],
        "{said}"
    );
    assert_eq!(fs::read(field.to().join("old")).unwrap(), old);
    assert_eq!(names(&field.to()), ["new", "old"]);
}

/// Blocks that are taken for others, whoever lied about them, do not become a file: all of it is asked for.
#[test]
fn what_blocks_come_to_must_be_what_was_read() {
    let old = noise(21, 300_000);
    let (count, block) = blocks_of(&old);
    let mut new = old.clone();
    new[..block].copy_from_slice(&old[block..2 * block]);
    let begin = Message::Begin { id: 0, from: 0 };
    let lies = [
        vec![
            begin.clone(),
            Message::Blocks { first: 0, count },
            finish(&new),
        ],
        vec![Message::Same {
            id: 0,
            hash: Some(*blake3::hash(&new).as_bytes()),
        }],
    ];
    for lie in lies {
        let field = Field::new();
        fs::write(field.to().join("old"), &old).unwrap();
        let truth = [begin.clone(), Message::Data(&new), finish(&new)];
        let first = [Message::Source(0), entry(b"old", OLD)];
        let last = [END, Message::ScanEnd];
        let messages = [&first[..], &lie, &truth, &last].concat();
        let mut split = Vec::new();
        for message in messages {
            // No more in one message than may be.
            match message {
                Message::Data(bytes) => split.extend(bytes.chunks(100_000).map(Message::Data)),
                message => split.push(message),
            }
        }
        let (well, answers, said) = field.receive(&contents(), &split);
        assert!(well, "{said}");
        assert_eq!(answers, [(0, String::new())], "{lie:?}");
        assert!(fs::read(field.to().join("old")).unwrap() == new);
        // Once only: then the file has failed.
        let messages = [&first[..], &lie, &[begin.clone(), finish(&new)], &last].concat();
        fs::write(field.to().join("old"), &old).unwrap();
        let (well, answers, said) = field.receive(&contents(), &messages);
        assert!(well, "{said}");
        assert_eq!(answers, [(0, "hash_mismatch".to_owned())], "{lie:?}");
        assert!(fs::read(field.to().join("old")).unwrap() == old);
        assert_eq!(names(&field.to()), ["old"]);
    }
}

#[test]
fn a_dry_run_takes_no_content() {
    let field = Field::new();
    let options = Options {
        dry_run: true,
        ..contents()
    };
    fs::write(field.to().join("file"), "abcd").unwrap();
    let messages = [Message::Source(0), entry(b"file", FILE), evil(0)];
    let (well, _, said) = field.receive(&options, &messages);
    assert!(!well, "{said}");
    assert_eq!(fs::read(field.to().join("file")).unwrap(), b"abcd");
    assert_eq!(names(&field.to()), ["file"]);
}

/// A server whose grant answers with these bytes instead of a worker.
pub(super) fn liar(messages: &[Message<'_>]) -> Bench {
    let bench = Bench::new();
    let mut bytes = Vec::new();
    for message in messages {
        encode(message, &mut bytes);
    }
    let lies = bench.write("lies", bytes);
    let keys = bench.server.dir().join("authorized_keys");
    let key = fs::read_to_string(&keys).unwrap();
    // It reads what it is sent, so that nobody waits for it.
    let command = format!("command=\"cat {}; cat >/dev/null\" {key}", lies.display());
    fs::write(&keys, command).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    bench
}

/// What a sender says that was asked for `asked` and gives more, with characters for a terminal.
pub(super) fn more_than_asked() -> [Message<'static>; 8] {
    [
        Message::Hello(VERSION),
        Message::Source(0),
        entry(b"../evil", FILE),
        entry(b"evil\x1b[2J", FILE),
        entry(b"asked", FILE),
        evil(2),
        Message::Problem {
            path: b"x\x1b]0;title\x07",
            code: b"c\n",
            text: b"t\x9b2J\n",
        },
        Message::ScanEnd,
    ]
}

#[test]
fn a_client_that_fetches_is_as_careful() {
    let bench = liar(&more_than_asked());
    fs::create_dir(bench.path("to")).unwrap();
    let mut command = bench.command(&[&bench.there("asked"), &bench.here("to/")]);
    // The liar ends when the client has; it is the client that says so.
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !said.contains('\u{1b}') && !said.contains('\u{9b}'),
        "{said:?}"
    );
    assert_eq!(said.matches("[not_asked_for]").count(), 2, "{said}");
    assert!(
        said.contains("x\\u{1b}]0;title\\u{7}: t\\x9b2J\\n [c\\n]"),
        "{said}"
    );
    assert_eq!(names(&bench.path("to")), ["asked"]);
    assert_eq!(output.status.code(), Some(23), "{said}");
}

/// A worker that was killed while both sides had much to say: its output is there to be read, and nobody reads
/// the answers.
#[test]
fn a_client_whose_answers_nobody_reads_gets_to_the_end() {
    let bench = liar(&[]);
    let lies = [
        Message::Hello(VERSION),
        Message::Source(0),
        entry(b"folder", Node::Folder),
    ];
    let mut bytes = Vec::new();
    lies.iter().for_each(|message| encode(message, &mut bytes));
    // More than can be under way: the names are bad, and each is answered.
    let mut one = Vec::new();
    encode(&entry(b"not/a/name/of/a/file", Node::Folder), &mut one);
    encode(&END, &mut one);
    (0..400_000).for_each(|_| bytes.extend_from_slice(&one));
    assert!(bytes.len() > 12 << 20, "{}", bytes.len());
    bench.write("lies", bytes);
    let keys = bench.server.dir().join("authorized_keys");
    let deaf = fs::read_to_string(&keys).unwrap();
    fs::write(&keys, deaf.replace("cat ", "exec 0<&-; cat ")).unwrap();
    let output = bench.cp(&[&bench.there("asked"), &bench.here("to")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said:.400}");
    assert!(said.contains("[copy_failed]"), "{said:.400}");
}

#[test]
fn a_client_that_sends_gives_only_what_it_offered() {
    let want = |id, size: Option<u64>| Message::Want {
        id,
        prefix: None,
        same: None,
        blocks: size.map(|size| Layout::new(11, [size, 0])),
    };
    let mut packed = Vec::new();
    Sums::push(&mut packed, &Sum::of(b"x"));
    let basis = Message::Basis(Sums::of(&packed));
    let hello = Message::Hello(VERSION);
    let cases: &[&[Message<'_>]] = &[
        &[hello.clone(), want(7, None)],
        &[hello.clone(), basis.clone()],
        &[hello.clone(), Message::BasisEnd],
        // More sums than blocks, after their end, and without an end.
        &[
            hello.clone(),
            want(0, Some(9)),
            basis.clone(),
            basis.clone(),
        ],
        &[
            hello.clone(),
            want(0, Some(9)),
            Message::BasisEnd,
            basis.clone(),
        ],
        &[
            hello.clone(),
            want(0, Some(9)),
            basis.clone(),
            Message::Hello(VERSION),
        ],
        &[
            hello.clone(),
            Message::Skip {
                first: 0,
                count: u64::MAX,
            },
        ],
        &[
            hello.clone(),
            Message::Skip {
                first: u64::MAX,
                count: 1,
            },
        ],
        &[hello.clone(), Message::ScanEnd],
        &[hello.clone(), hello.clone()],
        &[Message::Hello(99)],
        &[want(0, None)],
    ];
    for case in cases {
        let bench = liar(case);
        bench.write("a", "a");
        let output = bench.cp(&[&bench.here("a"), &bench.there("to")]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{case:?}: {said}");
        assert!(said.contains("[copy_failed]"), "{case:?}: {said}");
    }
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
