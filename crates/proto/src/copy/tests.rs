//! Every message through its bytes and back, names, wildcards.

use super::blocks::{Anchor, Layout, Sum, Sums};
use super::glob::{self, Excludes};
use super::{CopyError, Entry, Fsync, Message, Node, Options, Permit, decode, encode, name};

fn entry(name: &[u8], node: Node<'static>) -> Message<'static> {
    Message::Entry(Entry {
        name: Box::leak(name.to_vec().into_boxed_slice()),
        node,
        mode: 0o4755,
        mtime: -1,
        mtime_ns: 999_999_999,
        uid: 0,
        gid: u32::MAX,
    })
}

fn every() -> Vec<Message<'static>> {
    let mut packed = Vec::new();
    let anchor = Some(Anchor {
        hash: 0x0102_0304,
        offset: 1984,
    });
    for (strong, anchor) in [(0x0807_0605_0403_0201, anchor), (u64::MAX, None)] {
        Sums::push(&mut packed, &Sum { strong, anchor });
    }
    let packed: &'static [u8] = Box::leak(packed.into_boxed_slice());
    let regular = |linked| Node::Regular {
        size: u64::MAX,
        linked,
    };
    vec![
        Message::Hello(2),
        Message::Options(Options {
            archive: true,
            stream: true,
            fsync: Fsync::All,
            origin: 1 << 63,
            excludes: Excludes::new(vec![b"*.o".to_vec(), Vec::new()]),
            permits: vec![Permit::Contents, Permit::Name(b"a*".to_vec())],
            ..Options::default()
        }),
        Message::Source(3),
        entry(b"a", regular(false)),
        entry(b"\xff\n", regular(true)),
        entry(b"s", Node::Stream),
        entry(b"d", Node::Folder),
        entry(b"l", Node::Symlink(b"../x")),
        entry(b"h", Node::HardLink(300)),
        Message::FolderEnd { whole: true },
        Message::ScanEnd,
        Message::Problem {
            path: b"a/b",
            code: b"not_found",
            text: b"",
        },
        Message::Owner {
            group: true,
            id: 5,
            name: b"tty",
        },
        Message::Begin {
            id: 7,
            from: 1 << 40,
        },
        Message::Data(b"x"),
        Message::Hole(u64::MAX),
        Message::Blocks { first: 0, count: 9 },
        Message::Finish {
            hash: [7; 32],
            changed: true,
        },
        Message::Small {
            id: 127,
            hash: [8; 32],
            changed: false,
            bytes: b"",
        },
        Message::Abort {
            id: 128,
            code: b"io",
            text: b"no",
        },
        Message::Same { id: 1, hash: None },
        Message::Same {
            id: 1,
            hash: Some([9; 32]),
        },
        Message::Redo { id: 2 },
        Message::Skip { first: 0, count: 1 },
        Message::Want {
            id: 0,
            prefix: Some((5, [1; 32])),
            same: Some([2; 32]),
            blocks: Some(Layout::new(20, [1 << 31, 300])),
        },
        Message::Basis(Sums::of(packed)),
        Message::BasisEnd,
        Message::Done {
            id: 0,
            code: b"",
            text: b"",
        },
        Message::Removed { path: b"x" },
        Message::Finished,
    ]
}

#[test]
fn every_message_comes_back_from_its_bytes_however_they_are_cut() {
    for message in every() {
        let mut bytes = Vec::new();
        encode(&message, &mut bytes);
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Ok(None), "{message:?}");
        }
        let len = bytes.len();
        bytes.push(0);
        assert_eq!(decode(&bytes), Ok(Some((message.clone(), len))));
        // A byte more in the payload belongs to nothing.
        let open = matches!(
            message,
            Message::Data(_) | Message::Small { .. } | Message::Basis(_)
        );
        if !open {
            bytes[1] += 1;
            let kind = bytes[0];
            assert_eq!(decode(&bytes), Err(CopyError::Malformed(kind)));
        }
    }
}

/// Bytes that do not repeat.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let words = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes());
    words.take(len).collect()
}

/// Its variant, as PROTOCOL.md and the vectors call it.
fn name_of(message: &Message<'_>) -> String {
    let text = format!("{message:?}");
    let name = text.split(|c: char| !c.is_ascii_alphanumeric()).next();
    name.unwrap().to_owned()
}

#[test]
fn the_document_names_every_message() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../PROTOCOL.md");
    let document = std::fs::read_to_string(path).unwrap();
    let rows = document
        .lines()
        .skip_while(|line| !line.starts_with("| message | kind |"));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let (name, kind) = (cells.next().unwrap(), cells.next().unwrap());
        (name.to_owned(), kind.to_owned())
    };
    let written: Vec<_> = rows.map(cells).collect();
    let mut expected: Vec<_> = every()
        .iter()
        .map(|message| {
            let mut bytes = Vec::new();
            encode(message, &mut bytes);
            (name_of(message), format!("{:#04x}", bytes[0]))
        })
        .collect();
    expected.sort_by(|a, b| a.1.cmp(&b.1));
    expected.dedup();
    assert_eq!(written, expected);
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    messages: Vec<Vector>,
    errors: Vec<Vector>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    hex: String,
}

#[test]
fn vectors_are_what_is_read_and_written() {
    let text = include_str!("../../vectors/copy.json");
    let vectors: Vectors = serde_json::from_str(text).unwrap();
    let written: Vec<_> = every()
        .iter()
        .map(|message| {
            let mut bytes = Vec::new();
            encode(message, &mut bytes);
            (name_of(message), hex::encode(bytes))
        })
        .collect();
    let kept = vectors.messages.iter();
    let kept: Vec<_> = kept.map(|v| (v.name.clone(), v.hex.clone())).collect();
    assert_eq!(kept, written);
    for vector in &vectors.errors {
        let bytes = hex::decode(&vector.hex).unwrap();
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.to_string(), vector.name);
    }
}

#[test]
fn lies_about_lengths_cost_nothing() {
    assert_eq!(decode(&[0x21, 0xff, 0xff, 0xff]), Err(CopyError::TooLong));
    assert_eq!(decode(&[0x77, 0, 0, 0]), Err(CopyError::Kind(0x77)));
    // Options with 2^63 patterns, a name of 2^40 bytes, a number of eleven bytes.
    let many = [&[0x02, 12, 0, 0, 0, 0, 0][..], &[0xff; 8], &[0x7f]].concat();
    assert_eq!(decode(&many), Err(CopyError::Malformed(2)));
    let long = [&[0x11, 7, 0, 0, 3][..], &[0x80; 5], &[1]].concat();
    assert_eq!(decode(&long), Err(CopyError::Malformed(0x11)));
    let number = [&[0x22, 11, 0, 0][..], &[0xff; 10], &[1]].concat();
    assert_eq!(decode(&number), Err(CopyError::Malformed(0x22)));
    // A number has one form only.
    assert_eq!(
        decode(&[0x22, 2, 0, 0, 0x80, 0]),
        Err(CopyError::Malformed(0x22))
    );
    let empty = [0x21, 0, 0, 0];
    assert_eq!(decode(&empty), Err(CopyError::Malformed(0x21)));
    // Sums that are cut, and an anchor behind its block's beginning; blocks of no file, and of a size that there is not.
    let sum = |len: u8, offset: [u8; 2]| [&[0x32, len, 0, 0][..], &[0; 12], &offset].concat();
    assert!(decode(&sum(14, [0xc0, 7])).is_ok());
    for bad in [sum(14, [0xc1, 7]), sum(13, [0; 2]), vec![0x32, 0, 0, 0]] {
        assert_eq!(decode(&bad), Err(CopyError::Malformed(0x32)), "{bad:?}");
    }
    for blocks in [[10, 1, 0], [21, 1, 0], [12, 0, 1]] {
        let want = [&[0x31, 6, 0, 0, 0, 0, 0][..], &blocks].concat();
        assert_eq!(decode(&want), Err(CopyError::Malformed(0x31)), "{blocks:?}");
    }
}

#[test]
fn a_name_is_one_part_of_a_path() {
    for good in [&b"a"[..], b"...", b"-rf", b"\xff\n\x1b[2J", &[b'x'; 255]] {
        assert_eq!(name::check(good), Ok(()), "{good:?}");
    }
    for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
        assert_eq!(name::check(bad), Err(name::NameError::Bad), "{bad:?}");
    }
    for long in [&b"a"[..], &[b'x'; 255]] {
        let temporary = name::temporary(long, 0xab);
        assert!(temporary.len() <= 255);
        assert_eq!(name::check(&temporary), Err(name::NameError::Reserved));
        assert!(long.starts_with(name::stem(&temporary).unwrap()));
    }
    assert_ne!(name::temporary(b"a", 1), name::temporary(b"a", 2));
}

#[test]
fn a_terminal_is_steered_by_no_name() {
    assert_eq!(
        name::shown("a\\ü \u{1b}[2J\n\u{202e}".as_bytes()),
        "a\\\\ü \\u{1b}[2J\\n\\u{202e}"
    );
    assert_eq!(name::shown(b"\xff\x9b"), "\\xff\\x9b");
    assert_eq!(name::shown("\u{9b}".as_bytes()), "\\u{9b}");
}

#[test]
fn wildcards() {
    for (pattern, text, yes) in [
        ("*", "a", true),
        ("*", "a/b", false),
        ("**", "a/b", true),
        ("a**c", "a/b/c", true),
        ("a*c", "a/c", false),
        ("*/b", "a/b", true),
        ("*.c", "x.c.c", true),
        ("?", "/", false),
        ("[a-c]x", "bx", true),
        ("[!a-c]x", "bx", false),
        ("[]]", "]", true),
        ("[]", "[]", true),
        ("[a", "[a", true),
        ("[\\]]", "]", true),
        ("[a-]", "-", true),
        ("\\*", "*", true),
        ("\\*", "a", false),
        ("a**b*c", "a/x/b/b_c", true),
        ("", "", true),
        ("", "a", false),
    ] {
        let found = glob::matches(pattern.as_bytes(), text.as_bytes());
        assert_eq!(found, yes, "{pattern} {text}");
    }
    let stars = "*a".repeat(40);
    assert!(!glob::matches(
        stars.as_bytes(),
        "a".repeat(200).replace('a', "ab").as_bytes()
    ));
    assert!(!glob::matches_name(b"*", b".x") && glob::matches_name(b".*", b".x"));
    assert!(glob::is_pattern(b"a*") && !glob::is_pattern(b"a\\*"));
    assert_eq!(glob::literal(b"a\\*\\"), b"a*\\");
}

#[test]
fn excludes_are_those_of_rsync() {
    let out = |pattern: &str, path: &str, folder| {
        Excludes::new(vec![pattern.into()]).leave_out(path.as_bytes(), folder)
    };
    assert!(out("*.o", "a/b.o", false) && !out("*.o", "a.o/b", false));
    assert!(out("/a", "a", false) && !out("/a", "b/a", false));
    assert!(out("a/b", "x/a/b", false) && !out("a/b", "xa/b", false));
    assert!(out("dir/", "x/dir", true) && !out("dir/", "x/dir", false));
    assert!(out("/x/**.c", "x/y/z.c", false));
}

#[test]
fn a_permit_allows_what_was_asked_for() {
    let named = |pattern: &str| Permit::Name(pattern.into());
    assert!(named("a").allows(b"a") && !named("a").allows(b"b"));
    assert!(named("*.c").allows(b"x.c") && !named("*").allows(b".bashrc"));
    assert!(named("a\\*").allows(b"a*") && !named("a\\*").allows(b"ab"));
    assert!(Permit::Contents.allows(b".x"));
}
