//! A client whose other side is no worker, when it fetches and when it sends.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bowline_proto::copy::{Layout, Message, Node, Sum, Sums, VERSION, encode};

use super::super::{Bench, names};
use super::{END, FILE, entry, evil};

/// A server whose grant answers with these bytes instead of a worker.
pub(in crate::cp) fn liar(messages: &[Message<'_>]) -> Bench {
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
pub(in crate::cp) fn more_than_asked() -> [Message<'static>; 8] {
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
    // So many words may be more than stderr takes, the last of them too.
    let told = ["[copy_failed]", "[words_left_out]"];
    assert!(told.iter().any(|code| said.contains(code)), "{said:.400}");
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
