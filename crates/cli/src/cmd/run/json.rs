//! Output as JSON lines: `{"stream":"stdout","offset":0,"text":"…"}`, with
//! `base64` instead of `text` where a piece is not UTF-8, and
//! `{"stream":"stdout","gap":{"from":0,"to":9}}` for what was dropped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bowline_proto::frame::Stream;
use bytes::{Bytes, BytesMut};
use serde::Serialize;

#[derive(Serialize)]
struct Line<'a> {
    stream: &'a str,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// What was dropped of a stream: from its first byte to the one behind its last.
#[derive(Serialize)]
struct GapLine<'a> {
    stream: &'a str,
    gap: Range,
}

#[derive(Serialize)]
struct Range {
    from: u64,
    to: u64,
}

/// One stream's pieces. A character that is cut in two by the end of a piece
/// is kept for the next.
#[derive(Debug)]
pub(super) struct Encoder {
    stream: Stream,
    offset: u64,
    cut: BytesMut,
}

impl Encoder {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            offset: 0,
            cut: BytesMut::new(),
        }
    }

    /// The lines for one more piece of output; empty where all of it is kept.
    pub(super) fn piece(&mut self, bytes: &[u8], end: bool) -> Bytes {
        let mut whole = std::mem::take(&mut self.cut);
        whole.extend_from_slice(bytes);
        if !end {
            self.cut = whole.split_off(whole.len() - cut_character(&whole));
        }
        if whole.is_empty() {
            return Bytes::new();
        }
        let text = std::str::from_utf8(&whole).ok();
        let line = Line {
            stream: self.stream.as_str(),
            offset: self.offset,
            text,
            base64: text.is_none().then(|| STANDARD.encode(&whole)),
        };
        self.offset += whole.len() as u64;
        let mut line = serde_json::to_vec(&line).unwrap_or_default();
        line.push(b'\n');
        line.into()
    }

    /// The stream goes on at a later offset; gives what was kept of a character as a line, and
    /// one for what was dropped, where that is to be told.
    pub(super) fn skip_to(&mut self, offset: u64, told: bool) -> Bytes {
        let mut lines = BytesMut::from(&*self.piece(&[], true));
        let from = std::mem::replace(&mut self.offset, offset);
        if told {
            let gap = GapLine {
                stream: self.stream.as_str(),
                gap: Range { from, to: offset },
            };
            lines.extend_from_slice(&serde_json::to_vec(&gap).unwrap_or_default());
            lines.extend_from_slice(b"\n");
        }
        lines.freeze()
    }
}

/// How many bytes at the end are the beginning of a character.
fn cut_character(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<serde_json::Value> {
        let mut encoder = Encoder::new(Stream::Stdout);
        let mut all = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            all.extend_from_slice(&encoder.piece(piece, index + 1 == pieces.len()));
        }
        let lines = all
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    #[test]
    fn a_character_in_two_pieces_stays_text() {
        let text = "aé🦀".as_bytes();
        for cut in 0..text.len() {
            let (one, two) = text.split_at(cut);
            let lines = lines(&[one, two]);
            let joined: String = lines
                .iter()
                .map(|line| line["text"].as_str().unwrap())
                .collect();
            assert_eq!(joined, "aé🦀", "cut at {cut}");
            let last = lines.last().unwrap();
            let offset = last["offset"].as_u64().unwrap() as usize;
            assert_eq!(offset + last["text"].as_str().unwrap().len(), text.len());
        }
    }

    #[test]
    fn what_was_dropped_has_a_line() {
        let mut encoder = Encoder::new(Stream::Stderr);
        assert_eq!(
            encoder.piece(b"ab\xc3", false),
            "{\"stream\":\"stderr\",\"offset\":0,\"text\":\"ab\"}\n"
        );
        let lines = encoder.skip_to(10, true);
        let lines = std::str::from_utf8(&lines).unwrap();
        let cut = "{\"stream\":\"stderr\",\"offset\":2,\"base64\":\"ww==\"}";
        let gap = "{\"stream\":\"stderr\",\"gap\":{\"from\":3,\"to\":10}}";
        assert_eq!(lines.lines().collect::<Vec<_>>(), [cut, gap]);
        assert_eq!(encoder.skip_to(20, false), "");
        assert!(
            encoder
                .piece(b"x", true)
                .starts_with(b"{\"stream\":\"stderr\",\"offset\":20")
        );
    }

    #[test]
    fn bytes_that_are_no_text_travel_as_base64() {
        let lines = lines(&[b"\xff\xfe", b"ok", b"\xc3"]);
        assert_eq!(lines[0]["base64"], "//4=");
        assert_eq!(lines[1]["text"], "ok");
        assert_eq!(lines[2]["base64"], "ww==");
        assert_eq!(lines[2]["offset"], 4);
    }
}
