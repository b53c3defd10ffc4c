//! How the bytes of a service are shown to a person, and a person's line becomes bytes.
//!
//! Bytes of any cut enter, text leaves: a character that is split between two reads
//! is not broken, and what is no character in the encoding is replaced visibly.

use std::io::{self, Write};

use encoding_rs::{Decoder, Encoding, UTF_8};

/// Where a reply is shown.
pub(crate) struct Shown<W> {
    out: W,
    encoding: &'static Encoding,
    /// `None` writes the bytes as they are.
    decoder: Option<Decoder>,
    /// The last byte that was written was no line end.
    open: bool,
}

impl<W: Write> Shown<W> {
    /// With `raw` the bytes are written as they are.
    pub(crate) fn new(out: W, encoding: &'static Encoding, raw: bool) -> Self {
        let decoder = (!raw).then(|| encoding.new_decoder_without_bom_handling());
        Self {
            out,
            encoding,
            decoder,
            open: false,
        }
    }

    /// Shows some bytes; half a character waits for its other half.
    ///
    /// # Errors
    /// As write(2).
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.decode(bytes, false)
    }

    /// Ends a message: half a character is one no longer, and the next begins on a
    /// line of its own. Raw bytes stay as they are.
    ///
    /// # Errors
    /// As write(2).
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.decode(&[], true)?;
        if let Some(decoder) = &mut self.decoder {
            *decoder = self.encoding.new_decoder_without_bom_handling();
            if self.open {
                self.out.write_all(b"\n")?;
                self.open = false;
            }
        }
        self.out.flush()
    }

    fn decode(&mut self, bytes: &[u8], last: bool) -> io::Result<()> {
        let Some(decoder) = &mut self.decoder else {
            self.out.write_all(bytes)?;
            return self.out.flush();
        };
        let room = decoder.max_utf8_buffer_length(bytes.len());
        let mut text = String::with_capacity(room.unwrap_or(bytes.len()));
        // There is room for all of it.
        let _ = decoder.decode_to_string(bytes, &mut text, last);
        if let Some(byte) = text.as_bytes().last() {
            self.open = *byte != b'\n';
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

/// The encoding that a name of the WHATWG's list stands for.
pub(crate) fn encoding(name: &str) -> Result<&'static Encoding, String> {
    Encoding::for_label(name.as_bytes())
        .ok_or_else(|| "no such encoding: the names are those of the WHATWG, as utf-8, gbk".into())
}

/// A line in the encoding of the other side. What is not UTF-8 goes as it is, and so
/// does everything where the encoding is UTF-8.
pub(crate) fn encode(line: &[u8], encoding: &'static Encoding) -> Vec<u8> {
    match std::str::from_utf8(line) {
        Ok(text) if encoding != UTF_8 => encoding.encode(text).0.into_owned(),
        _ => line.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str, raw: bool, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut shown = Shown::new(&mut out, encoding(name).unwrap(), raw);
        for part in parts {
            shown.bytes(part).unwrap();
        }
        shown.end().unwrap();
        out
    }

    #[test]
    fn any_cut_gives_the_same_text() {
        let text = "你好,世界 a\n";
        for name in ["utf-8", "gbk", "gb18030", "big5", "shift_jis"] {
            let text = if name == "shift_jis" {
                "日本語 a\n"
            } else {
                text
            };
            let bytes = encode(text.as_bytes(), encoding(name).unwrap());
            for cut in 0..=bytes.len() {
                let (head, tail) = bytes.split_at(cut);
                let shown = shown(name, false, &[head, tail]);
                assert_eq!(String::from_utf8(shown).unwrap(), text, "{name} {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_character_is_seen() {
        assert_eq!(
            shown("utf-8", false, &[b"a\xffb"]),
            "a\u{fffd}b\n".as_bytes()
        );
        assert_eq!(
            shown("utf-8", false, &[b"a\xe4\xbd"]),
            "a\u{fffd}\n".as_bytes()
        );
        assert_eq!(shown("latin1", false, &[b"\xe9\n"]), "é\n".as_bytes());
        assert_eq!(shown("utf-8", true, &[b"a\xff", b"\xe4"]), b"a\xff\xe4");
        assert!(encoding("klingon").is_err());
    }

    #[test]
    fn messages_begin_on_lines_of_their_own() {
        let mut out = Vec::new();
        let mut shown = Shown::new(&mut out, UTF_8, false);
        for message in [&b"a"[..], b"b\n", b"", b"c\xe4"] {
            shown.bytes(message).unwrap();
            shown.end().unwrap();
        }
        shown.bytes(b"\xbd").unwrap();
        shown.end().unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "a\nb\nc\u{fffd}\n\u{fffd}\n"
        );
    }
}
