//! Every framing: the bytes on the wire, any split of them, and each bound.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// What a framing made of bytes that came in these pieces, and how it ended. A
/// pause of the sender is where nothing more has come.
fn story<F: Framing>(mut framing: F, pieces: &[&[u8]]) -> (Vec<F::Message>, Option<String>) {
    let mut messages = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            match framing.decode(rest) {
                Ok((len, message)) => {
                    let is_message = message.is_some();
                    messages.extend(message);
                    assert!(
                        is_message || len == rest.len(),
                        "all is taken or there is one"
                    );
                    rest = &rest[len..];
                    if rest.is_empty() {
                        break;
                    }
                }
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    let last = framing.finish();
    match last {
        Ok(message) => messages.extend(message),
        Err(error) => return (messages, Some(error.to_string())),
    }
    (messages, None)
}

fn wire(framing: &impl Framing, messages: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    for message in messages {
        framing.encode(message, &mut wire).unwrap();
    }
    wire
}

/// The same bytes in pieces that end at these places.
fn cut<'a>(bytes: &'a [u8], at: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = at.iter().map(|at| at.index(bytes.len() + 1)).collect();
    at.sort_unstable();
    at.push(bytes.len());
    let mut begin = 0;
    let mut pieces = Vec::new();
    for end in at {
        pieces.push(&bytes[begin..end]);
        begin = end;
    }
    pieces
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..20)
}

fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..10)
}

fn refs(messages: &[Vec<u8>]) -> Vec<&[u8]> {
    messages.iter().map(Vec::as_slice).collect()
}

fn bodies(messages: Vec<HeadedMessage>) -> Vec<Vec<u8>> {
    messages.into_iter().map(|message| message.body).collect()
}

#[test]
fn on_the_wire_they_are_what_others_write() {
    let little = wire(&Int32::little_endian(9), &[b"hi", b""]);
    assert_eq!(little, b"\x02\0\0\0hi\0\0\0\0");
    let big = wire(&Int32::big_endian(9), &[b"hi"]);
    assert_eq!(big, b"\0\0\0\x02hi");
    assert_eq!(wire(&Delimited::lines(9), &[b"a", b"", b"b"]), b"a\n\nb\n");
    assert_eq!(wire(&Raw::new(9), &[b"a", b"b"]), b"ab");
    assert_eq!(
        wire(&Decimal::new(99), &[b"0123456789ab"]),
        b"120123456789ab"
    );
    let headed = wire(&Headed::little_endian(9), &[b"hi"]);
    assert_eq!(headed, b"\x10\0\0\0{\"total_size\":2}hi");
}

#[test]
fn a_header_says_more_than_the_length() {
    let more = json!({"filename": "a", "md5": null, "deep": {"x": [1, 2]}});
    let more = more.as_object().unwrap();
    let framing = Headed::big_endian(100);
    let mut wire = Vec::new();
    framing.head_with(more, b"body", &mut wire).unwrap();
    wire.extend(b"body");
    // What Python's json.dumps writes has blanks, and may have the length last.
    let by_hand = br#"{"who": "python", "total_size": 3}"#;
    wire.extend(ByteOrder::BigEndian.encode(by_hand.len() as i32));
    wire.extend(by_hand);
    wire.extend(b"abc");
    let (messages, error) = story(framing, &[&wire]);
    assert_eq!(error, None);
    assert_eq!(messages[0].header, *more);
    assert_eq!(messages[0].body, b"body");
    assert_eq!(messages[1].header["who"], json!("python"));
    assert_eq!(messages[1].body, b"abc");
}

fn headed(json: &[u8]) -> Vec<u8> {
    let length = i32::try_from(json.len()).unwrap();
    [&ByteOrder::LittleEndian.encode(length)[..], json].concat()
}

#[test]
fn a_header_that_is_none_is_an_error() {
    for json in [
        &b""[..],
        b"{}",
        b"[]",
        b"{\"total_size\":-1}",
        b"{\"total_size\":1.5}",
        b"{\"total_size\":\"1\"}",
        b"{\"total_size\":18446744073709551616}",
        b"{\"total_size\":1,\"total_size\":1}",
        b"{\"total_size\":1} x",
        b"{\"total_size\":1,\"x\":\"\xff\"}",
    ] {
        let decoded = Headed::little_endian(100).decode(&headed(json));
        assert!(matches!(decoded, Err(FramingError::Header(_))), "{json:?}");
    }
    let mut header = Map::new();
    header.insert("total_size".to_owned(), Value::from(3));
    let written = Headed::little_endian(9).head_with(&header, b"x", &mut Vec::new());
    assert!(matches!(written, Err(FramingError::Header(_))));
}

/// Decodes and encodes a message of each length around the bound.
fn bound_is_exact<F: Framing<Message = Vec<u8>>>(make: impl Fn(usize) -> F, max: usize) {
    for len in [0, 1, max - 1, max, max + 1, 2 * max + 7] {
        let message = vec![b'x'; len];
        let generous = make(10 * max);
        let bytes = wire(&generous, &[&message]);
        let (received, error) = story(make(max), &[&bytes]);
        let mut out = Vec::new();
        let sent = make(max).encode(&message, &mut out);
        if len <= max {
            assert_eq!((received, error), (vec![message], None), "{len}");
            assert_eq!(out, bytes);
        } else {
            let expected = format!("a message is over the limit of {max} bytes");
            assert_eq!((received, error), (vec![], Some(expected)), "{len}");
            assert!(matches!(sent, Err(FramingError::TooLong { bytes_max }) if bytes_max == max));
            assert!(out.is_empty(), "nothing goes out of what cannot");
        }
    }
}

#[test]
fn each_bound_takes_what_it_says_and_no_byte_more() {
    bound_is_exact(Int32::little_endian, 100);
    bound_is_exact(Int32::big_endian, 100);
    bound_is_exact(Delimited::lines, 100);
    bound_is_exact(|max| Delimited::new(b"\r\n", max).unwrap(), 100);
    for (len, fits) in [(99, true), (100, true), (101, false)] {
        let json = headed(format!("{{\"total_size\":{len}}}").as_bytes());
        let bytes = [&json[..], &[b'x'; 101][..len]].concat();
        let decoded = Headed::little_endian(100).decode(&bytes);
        match decoded {
            Ok((taken, Some(message))) => {
                assert!(fits && taken == bytes.len() && message.body.len() == len)
            }
            Err(FramingError::TooLong { bytes_max: 100 }) => assert!(!fits),
            other => panic!("{len}: {other:?}"),
        }
        let mut framing = Decimal::new(100);
        let read = framing.decode(len.to_string().as_bytes());
        assert_eq!(read.is_ok(), fits);
        let written = framing.head(&[b'x'; 101][..len], &mut Vec::new());
        assert_eq!(written.is_ok(), fits);
    }
}

#[test]
fn a_header_of_the_limit_is_taken_and_one_byte_more_is_not() {
    let of_len = |len: usize| {
        let mut json = b"{\"total_size\":0".to_vec();
        json.resize(len - 1, b' ');
        json.push(b'}');
        headed(&json)
    };
    for len in [HEADER_BYTES_MAX - 1, HEADER_BYTES_MAX] {
        let (_, message) = Headed::little_endian(9).decode(&of_len(len)).unwrap();
        assert_eq!(message, Some(HeadedMessage::default()));
    }
    // The length alone is enough to know it.
    let decoded = Headed::little_endian(9).decode(&of_len(HEADER_BYTES_MAX + 1)[..4]);
    assert!(matches!(decoded, Err(FramingError::HeaderTooLong)));
    let long = json!({"text": "x".repeat(HEADER_BYTES_MAX)});
    let mut out = Vec::new();
    let written = Headed::little_endian(9).head_with(long.as_object().unwrap(), b"", &mut out);
    assert!(matches!(written, Err(FramingError::HeaderTooLong)) && out.is_empty());
}

#[test]
fn lengths_are_refused_before_anything_of_their_size_is_held() {
    let mut framing = Int32::little_endian(usize::MAX);
    let (len, message) = framing.decode(&i32::MAX.to_le_bytes()).unwrap();
    assert_eq!((len, message), (4, None));
    framing.decode(b"only this has come").unwrap();
    let negative = Int32::little_endian(9).decode(&[0xff; 4]);
    assert!(matches!(negative, Err(FramingError::Negative(-1))));
    let negative = Headed::big_endian(9).decode(&[0x80, 0, 0, 0]);
    assert!(matches!(negative, Err(FramingError::Negative(i32::MIN))));
    let digits = [b'9'; 40];
    assert!(Decimal::new(usize::MAX).decode(&digits[..19]).is_ok());
    assert!(Decimal::new(usize::MAX).decode(&digits).is_err());
    // Zeros in front do not make a length endless.
    assert!(Decimal::new(9).decode(&[b'0'; 20]).is_ok());
    assert!(Decimal::new(9).decode(&[b'0'; 21]).is_err());
}

#[test]
fn a_stream_that_ends_within_a_message_is_cut_off() {
    fn ends_early<F: Framing>(make: impl Fn() -> F, bytes: &[u8]) {
        for end in 0..bytes.len() {
            let mut framing = make();
            framing.decode(&bytes[..end]).unwrap();
            assert_eq!(framing.has_begun(), end > 0);
            assert_eq!(framing.finish().is_err(), end > 0, "{end}");
        }
        let mut framing = make();
        assert!(framing.decode(bytes).unwrap().1.is_some());
        assert!(!framing.has_begun() && framing.finish().unwrap().is_none());
    }
    ends_early(
        || Int32::big_endian(9),
        &wire(&Int32::big_endian(9), &[b"abc"]),
    );
    ends_early(
        || Headed::little_endian(9),
        &wire(&Headed::little_endian(9), &[b"abc"]),
    );
    // The last line may lack its end.
    assert_eq!(
        story(Delimited::lines(9), &[b"a\nb"]),
        (vec![b"a".to_vec(), b"b".to_vec()], None)
    );
    let (_, error) = story(Decimal::new(9), &[b"7"]);
    assert_eq!(error.as_deref(), Some("the stream ended within a message"));
}

#[test]
fn a_delimiter_of_several_bytes_is_found_across_reads() {
    let make = || Delimited::new(b"aab", 100).unwrap();
    let (messages, error) = story(make(), &[b"a", b"a", b"a", b"b", b"xaa", b"b", b"aab"]);
    assert_eq!((refs(&messages), error), (vec![&b"a"[..], b"x", b""], None));
    for message in [&b"aab"[..], b"xaabx"] {
        let encoded = make().encode(message, &mut Vec::new());
        assert!(matches!(encoded, Err(FramingError::HoldsDelimiter)));
    }
    // Together with the delimiter behind it, this would end too early.
    let doubled = Delimited::new(b"aa", 100).unwrap();
    assert!(doubled.encode(b"xa", &mut Vec::new()).is_err());
    assert!(make().encode(b"xa", &mut Vec::new()).is_ok());
    assert!(Delimited::new(b"", 1).is_none());
}

#[test]
fn decimal_waits_for_its_acknowledgement() {
    let mut framing = Decimal::new(100);
    assert!(!framing.pause().unwrap(), "there is no length yet");
    assert_eq!(framing.decode(b"0").unwrap(), (1, None));
    assert!(framing.pause().unwrap());
    assert!(!framing.pause().unwrap(), "it is acknowledged once");
    assert_eq!(framing.decode(b"").unwrap(), (0, Some(Vec::new())));
    // What comes behind a message is the next one's length.
    assert_eq!(framing.decode(b"3").unwrap(), (1, None));
    assert!(framing.pause().unwrap());
    assert_eq!(framing.decode(b"abc2").unwrap(), (3, Some(b"abc".to_vec())));
    assert_eq!(framing.decode(b"2").unwrap(), (1, None));
    assert!(framing.pause().unwrap());
    assert_eq!(framing.decode(b"de").unwrap(), (2, Some(b"de".to_vec())));
    for byte in *b"-+ \nx\0" {
        let decoded = Decimal::new(100).decode(&[b'1', byte]);
        assert!(matches!(decoded, Err(FramingError::NotADigit(found)) if found == byte));
    }
}

#[test]
fn raw_takes_each_piece_as_it_came() {
    let (messages, _) = story(Raw::new(3), &[b"ab", b"", b"cdefg"]);
    assert_eq!(refs(&messages), [&b"ab"[..], b"cde", b"fg"]);
    assert_eq!(refs(&story(Raw::new(0), &[b"ab"]).0), [b"a", b"b"]);
}

proptest! {
    #[test]
    fn any_split_of_int32_gives_the_same(sent in messages(), at in cuts(), big: bool) {
        let order = if big { ByteOrder::BigEndian } else { ByteOrder::LittleEndian };
        let framing = Int32::new(order, 100);
        let bytes = wire(&framing, &refs(&sent));
        prop_assert_eq!(story(framing, &cut(&bytes, &at)), (sent, None));
    }

    #[test]
    fn any_split_of_headed_gives_the_same(sent in messages(), at in cuts()) {
        let framing = Headed::little_endian(100);
        let bytes = wire(&framing, &refs(&sent));
        let (messages, error) = story(framing, &cut(&bytes, &at));
        prop_assert_eq!((bodies(messages), error), (sent, None));
    }

    #[test]
    fn any_split_of_lines_gives_the_same(text in "[a\r\n]{0,60}", at in cuts(), delimiter in "[a\r\n]{1,4}") {
        let make = || Delimited::new(delimiter.as_bytes(), 20).unwrap();
        let whole = story(make(), &[text.as_bytes()]);
        prop_assert_eq!(story(make(), &cut(text.as_bytes(), &at)), whole.clone());
        if whole.1.is_none() {
            // Nothing is lost: the messages and their delimiters are the text.
            let mut joined = whole.0.join(delimiter.as_bytes());
            if text.ends_with(&delimiter) && joined.len() < text.len() {
                joined.extend(delimiter.as_bytes());
            }
            prop_assert_eq!(joined, text.as_bytes());
        }
    }

    #[test]
    fn any_split_of_decimal_gives_the_same(sent in messages(), at in cuts()) {
        let mut framing = Decimal::new(100);
        let mut came = Vec::new();
        for message in &sent {
            let mut head = Vec::new();
            framing.head(message, &mut head).unwrap();
            for piece in cut(&head, &at) {
                let (len, none) = framing.decode(piece).unwrap();
                prop_assert!(len == piece.len() && none.is_none());
            }
            prop_assert!(framing.pause().unwrap());
            for piece in cut(message, &at) {
                let (len, message) = framing.decode(piece).unwrap();
                prop_assert_eq!(len, piece.len());
                if message.is_some() {
                    came.extend(message);
                    break;
                }
            }
        }
        prop_assert_eq!(came, sent);
        prop_assert!(!framing.has_begun());
    }

    #[test]
    fn any_split_of_raw_loses_nothing(bytes in prop::collection::vec(any::<u8>(), 0..80), at in cuts()) {
        let (messages, error) = story(Raw::new(7), &cut(&bytes, &at));
        prop_assert!(error.is_none() && messages.iter().all(|message| (1..=7).contains(&message.len())));
        prop_assert_eq!(messages.concat(), bytes);
    }

    #[test]
    fn any_split_of_any_bytes_gives_the_same(
        bytes in prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..80), at in cuts()
    ) {
        let pieces = cut(&bytes, &at);
        prop_assert_eq!(story(Int32::little_endian(9), &pieces), story(Int32::little_endian(9), &[&bytes]));
        prop_assert_eq!(story(Headed::big_endian(9), &pieces), story(Headed::big_endian(9), &[&bytes]));
        prop_assert_eq!(story(Decimal::new(9), &pieces), story(Decimal::new(9), &[&bytes]));
    }
}
