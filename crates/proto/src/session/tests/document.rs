//! PROTOCOL.md says what the code does: its tables against the constants, the
//! kinds, the keys of each header.

use std::collections::BTreeSet;

use super::hostile::full_headers;
use super::vectors::name_of;
use super::*;
use crate::frame::FrameError;
use crate::outcome::{Happened, Outcome};
use crate::session::phase;
use crate::{auth, limits, sshsig};

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../PROTOCOL.md");
    std::fs::read_to_string(path).unwrap()
}

/// The rows of the table whose first header cell is `head`, in the text.
fn table<'a>(text: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| -> Vec<&'a str> {
        let line = line.trim().trim_start_matches('|').trim_end_matches('|');
        line.split('|').map(str::trim).collect()
    };
    text.lines()
        .skip_while(|line| !line.starts_with(&format!("| {head} |")))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect()
}

fn plain(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn kinds_are_those_of_the_table() {
    let document = document();
    let rows = table(&document, "number");
    assert_eq!(rows.len(), Kind::ALL.len());
    for (row, &kind) in rows.iter().zip(Kind::ALL) {
        let &[number, name, direction, _, channel, flags, payload] = row.as_slice() else {
            panic!("{row:?}")
        };
        assert_eq!(number, format!("0x{:02x}", kind as u8));
        assert_eq!(name, name_of(kind));
        let before = kind == Kind::Hello || kind == Kind::Auth;
        let client = phase::client_may_send(kind) || before;
        let server = kind == Kind::Hello
            || phase::server_may_send(kind, true)
            || phase::server_may_send(kind, false);
        let expected = match (client, server) {
            (true, true) => "both",
            (true, false) => "c→s",
            (false, true) => "s→c",
            (false, false) => panic!("nobody may send {kind:?}"),
        };
        assert_eq!(direction, expected, "{kind:?}");
        let has = |flag: Flags| kind.flags().with(flag) == kind.flags();
        let expected = match (has(Flags::END), has(Flags::BLOCKED)) {
            (true, true) => "END, BLOCKED",
            (true, false) => "END",
            _ => "",
        };
        assert_eq!(flags, expected, "{kind:?}");
        assert_eq!(
            !payload.is_empty(),
            kind.stream().is_some() || kind == Kind::Start
        );
        assert!(["conn.", "job", "both"].contains(&channel), "{kind:?}");
    }
}

#[test]
fn kinds_go_where_the_table_says() {
    // What a session accepts on channel 0 and on a channel that runs.
    let document = document();
    for (row, &kind) in table(&document, "number").iter().zip(Kind::ALL) {
        if matches!(kind, Kind::Hello | Kind::Auth | Kind::Granted) {
            assert_eq!(row[4], "conn.");
            continue;
        }
        let takes = |channel| super::permitted::either_takes(kind, channel);
        let expected = match (takes(0), takes(1)) {
            (true, true) => "both",
            (true, false) => "conn.",
            (false, true) => "job",
            (false, false) => panic!("nobody takes {kind:?}"),
        };
        assert_eq!(row[4], expected, "{kind:?}");
    }
}

#[test]
fn limits_are_those_of_the_table() {
    let document = document();
    let rows = table(&document, "limit");
    let found: BTreeSet<(String, u64)> = rows
        .iter()
        .map(|row| (plain(row[0]).to_owned(), row[1].parse().unwrap()))
        .collect();
    let expected = [
        ("PRELUDE_BYTES", limits::PRELUDE_BYTES as u64),
        (
            "FRAME_BYTES_UNAUTHENTICATED_MAX",
            limits::FRAME_BYTES_UNAUTHENTICATED_MAX as u64,
        ),
        ("HEADER_BYTES_MAX", limits::HEADER_BYTES_MAX as u64),
        ("PAYLOAD_BYTES_MAX", limits::PAYLOAD_BYTES_MAX as u64),
        ("START_BYTES_MAX", limits::START_BYTES_MAX as u64),
        ("START_STRINGS_MAX", limits::START_STRINGS_MAX as u64),
        ("WINDOW_INITIAL", limits::WINDOW_INITIAL),
        ("WINDOW_MAX", limits::WINDOW_MAX),
        (
            "WINDOW_GROWTH_PER_CONNECTION_MAX",
            limits::WINDOW_GROWTH_PER_CONNECTION_MAX,
        ),
        ("CHANNELS_MAX", limits::CHANNELS_MAX as u64),
        ("PROOFS_MAX", limits::PROOFS_MAX as u64),
        ("USER_BYTES_MAX", limits::USER_BYTES_MAX as u64),
        ("JOBS_PER_MESSAGE_MAX", limits::JOBS_PER_MESSAGE_MAX as u64),
        ("SENTENCE_BYTES_MAX", limits::SENTENCE_BYTES_MAX as u64),
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX as u64),
        ("COMMAND_BYTES_MAX", limits::COMMAND_BYTES_MAX as u64),
    ];
    let expected: BTreeSet<(String, u64)> = expected
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(auth::PROOFS_MAX, limits::PROOFS_MAX);
    assert_eq!(auth::USER_BYTES_MAX, limits::USER_BYTES_MAX);
    // Numbers that stand in the running text.
    for (number, text) in [
        (limits::WINDOW_INITIAL, "which is 262,144 bytes"),
        (
            limits::FRAME_BYTES_UNAUTHENTICATED_MAX as u64,
            "longer than 16,384 bytes",
        ),
        (sshsig::SSHSIG_BYTES_MAX as u64, "at most 2,560 bytes"),
    ] {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        assert_eq!(digits, number.to_string());
        assert!(document.contains(text), "{text}");
    }
}

#[test]
fn every_key_of_every_header_is_documented_and_no_other() {
    let document = document();
    let headers = full_headers();
    for &kind in Kind::ALL {
        let heading = format!("### `{}` 0x{:02x}\n", name_of(kind), kind as u8);
        let Some((_, header)) = headers.iter().find(|header| header.0 == kind) else {
            assert!(!document.contains(&heading));
            continue;
        };
        let (_, rest) = document.split_once(&heading).expect(&heading);
        let section = rest.split("\n#").next().unwrap();
        let rows = table(section, "key");
        let documented: BTreeSet<&str> = rows.iter().map(|row| plain(row[0])).collect();
        let written = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(
            documented,
            written(header).iter().map(String::as_str).collect(),
            "{kind:?}"
        );
        // A key without a default must be there, and one with a default need not.
        for row in &rows {
            let mut less = header.as_object().unwrap().clone();
            less.remove(plain(row[0]));
            let text = serde_json::Value::Object(less).to_string();
            assert_eq!(
                super::hostile::reads(kind, &text),
                !row[2].is_empty(),
                "{kind:?} {}",
                row[0]
            );
        }
        if kind == Kind::Jobs {
            let rows = table(section, "key of a row");
            let documented: BTreeSet<&str> = rows.iter().map(|row| plain(row[0])).collect();
            let row = written(&header["jobs"][0]);
            assert_eq!(documented, row.iter().map(String::as_str).collect());
        }
    }
}

#[test]
fn outcomes_are_those_of_the_table() {
    let document = document();
    let rows = table(&document, "outcome");
    let words: Vec<&str> = rows.iter().map(|row| plain(row[0])).collect();
    let all = [
        Happened::Exited,
        Happened::Signaled,
        Happened::TimedOut,
        Happened::Cancelled,
        Happened::NotStarted,
        Happened::Refused,
        Happened::Unreachable,
        Happened::Lost,
    ];
    assert_eq!(words, all.map(Happened::as_str));
    for (row, outcome) in rows.iter().zip(all) {
        let word = serde_json::to_value(outcome).unwrap();
        assert_eq!(word, outcome.as_str());
        let with = |code, signal| {
            Outcome {
                outcome,
                code,
                signal,
                ..Outcome::default()
            }
            .exit_status()
        };
        match row[2] {
            "its status" => assert_eq!(with(Some(7), None), 7),
            "128 + signal" => assert_eq!(with(None, Some(9)), 137),
            "130, or 128 + signal sent" => {
                assert_eq!((with(None, None), with(None, Some(15))), (130, 143));
            }
            "that code" => assert_eq!(with(Some(126), None), 126),
            number => assert_eq!(number, with(None, None).to_string()),
        }
    }
}

#[test]
fn bytes_of_authentication_are_those_of_the_document() {
    let document = document();
    for text in [
        auth::NAMESPACE,
        limits::PROTOCOL,
        "tls-exporter",
        "server-nonce",
    ] {
        assert!(document.contains(&format!("`{text}`")), "{text}");
    }
    let label = std::str::from_utf8(auth::EXPORTER_LABEL).unwrap();
    assert!(document.contains(&format!("`{label}`")));
    for proof in [
        r#"{"type":"publickey","sshsig":"#,
        r#"{"type":"secret","mac":"#,
    ] {
        assert!(document.contains(proof));
    }
    // The errors of frames are named in the vectors; a new one needs a vector.
    let error = FrameError::DataWithHeader;
    match error {
        FrameError::UnknownKind(_)
        | FrameError::UnknownFlags(_)
        | FrameError::HeaderTooLong(_)
        | FrameError::PayloadTooLong(_)
        | FrameError::UnauthenticatedTooLong(_)
        | FrameError::DataWithHeader => {}
    }
}
