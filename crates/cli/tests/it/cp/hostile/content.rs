//! Content that is not what was announced, and blocks of the old file that are not what they are said to be.

use std::fs;

use bowline_proto::copy::{Layout, Message, Node, Options, VERSION};

use super::super::{names, noise};
use super::{END, FILE, Field, contents, entry, evil};

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
