//! From what a command came to, to the bytes of its reply.
//!
//! Pure: a [`Finished`] command enters, a header and a body leave. A reply is whole
//! before its first byte is sent, so what a header announces always comes.

use bowline_proto::framing::{Decimal, Framing as _, FramingError, Headed, Int32};
use bowline_proto::outcome::Happened;
use serde::Serialize;
use serde_json::{Map, Value};

use super::challenge::md5_hex;
use super::runner::{Finished, RunError};

/// How the end of a message is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Framing {
    /// Not at all: a message is what one read gives
    Raw,
    /// The reply's length in digits; the client answers `ready`; the reply
    Ready,
    /// The reply behind its length, four bytes little-endian
    Len4,
    /// The reply behind a JSON header, behind that one's length
    Json,
    /// The same, of the command too
    Framed,
}

/// Which of a command's two streams the reply holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Streams {
    /// stdout, then stderr
    #[default]
    Both,
    /// stderr if there is any, else stdout
    Either,
}

/// What the usual servers of [`Streams::Either`] say where a command wrote nothing.
const NOTHING: &str = "操作成功";
/// What a header calls the output.
const FILE_NAME: &str = "output.txt";
/// The most that the length of `len4` can say.
const LEN4_MAX: usize = i32::MAX as usize;

/// How replies are made.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    pub(crate) framing: Framing,
    pub(crate) streams: Streams,
    pub(crate) when_empty: Option<String>,
    /// Name and checksum in the header.
    pub(crate) describe: bool,
    /// A longer reply is refused.
    pub(crate) bytes_max: Option<u64>,
}

/// A reply: what goes before the body, and the body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) header: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// What `framed` adds.
#[derive(Debug, Serialize)]
struct End {
    /// The exit status; null where there is none.
    exit: Option<i32>,
    /// The signal that ended the command; null where none did.
    signal: Option<i32>,
    /// Bytes of each stream that the command wrote and that are here.
    stdout_size: usize,
    stderr_size: usize,
    /// What happened, in one word.
    outcome: &'static str,
}

impl Style {
    /// The reply to a command that was run, or that could not be.
    pub(crate) fn reply(&self, ran: Result<Finished, RunError>) -> Reply {
        let mut finished = ran.unwrap_or_else(|error| {
            let mut finished = Finished::default();
            finished.outcome.outcome = match error {
                RunError::NotRun(_) => Happened::Refused,
                RunError::Lost => Happened::Unreachable,
            };
            finished.stderr = format!("bowline: {error}\n").into_bytes();
            finished
        });
        if let Some(sentence) = sentence(&finished) {
            let stderr = &mut finished.stderr;
            if !stderr.is_empty() && !stderr.ends_with(b"\n") {
                stderr.push(b'\n');
            }
            stderr.extend_from_slice(format!("bowline: {sentence}\n").as_bytes());
        }
        let mut end = End {
            exit: finished.outcome.code,
            signal: finished.outcome.signal,
            stdout_size: finished.stdout.len(),
            stderr_size: finished.stderr.len(),
            outcome: finished.outcome.outcome.as_str(),
        };
        let mut body = self.body(&mut finished);
        let over = self
            .bytes_max
            .filter(|max| u64::try_from(body.len()).is_ok_and(|len| len > *max));
        if let Some(max) = over {
            let len = body.len();
            body = format!("bowline: the reply has {len} bytes, over the limit of {max}\n").into();
            (end.stdout_size, end.stderr_size) = (0, body.len());
            end.outcome = Happened::Refused.as_str();
        }
        if self.framing == Framing::Len4 && body.len() > LEN4_MAX {
            tracing::warn!(
                bytes = body.len(),
                "a reply was cut: len4 can say no more than 2 GiB"
            );
            body.truncate(LEN4_MAX);
        }
        let header = self.header(&body, end).unwrap_or_else(|error| {
            tracing::error!(%error, "a reply has no header");
            Vec::new()
        });
        Reply { header, body }
    }

    fn body(&self, finished: &mut Finished) -> Vec<u8> {
        let mut stdout = std::mem::take(&mut finished.stdout);
        let mut stderr = std::mem::take(&mut finished.stderr);
        let body = match self.streams {
            Streams::Either if stderr.is_empty() => stdout,
            Streams::Either => stderr,
            Streams::Both if stdout.is_empty() => stderr,
            Streams::Both => {
                stdout.append(&mut stderr);
                stdout
            }
        };
        if !body.is_empty() {
            return body;
        }
        let text = match (&self.when_empty, self.streams, self.framing) {
            (Some(text), _, _) => text.as_str(),
            (None, Streams::Either, _) => NOTHING,
            // Nothing cannot be said on that wire.
            (None, Streams::Both, Framing::Raw) => "\n",
            (None, Streams::Both, _) => "",
        };
        text.as_bytes().to_vec()
    }

    fn header(&self, body: &[u8], end: End) -> Result<Vec<u8>, FramingError> {
        let mut header = Vec::new();
        match self.framing {
            Framing::Raw => {}
            Framing::Ready => Decimal::new(usize::MAX).head(body, &mut header)?,
            Framing::Len4 => Int32::little_endian(LEN4_MAX).head(body, &mut header)?,
            Framing::Json | Framing::Framed => {
                let said = self.described(body, end).map_err(FramingError::Header)?;
                Headed::little_endian(usize::MAX).head_with(&said, body, &mut header)?;
            }
        }
        Ok(header)
    }

    /// What a JSON header says beside the length.
    fn described(&self, body: &[u8], end: End) -> serde_json::Result<Map<String, Value>> {
        let mut said = Map::new();
        if self.describe {
            said.insert("filename".to_owned(), FILE_NAME.into());
            said.insert("md5".to_owned(), md5_hex(body).into());
        }
        if self.framing == Framing::Framed
            && let Value::Object(end) = serde_json::to_value(end)?
        {
            said.extend(end);
        }
        Ok(said)
    }
}

/// What a person must be told where the output alone would leave them guessing.
fn sentence(finished: &Finished) -> Option<String> {
    let outcome = &finished.outcome;
    if finished.cut {
        let len = finished.stdout.len() + finished.stderr.len();
        return Some(format!(
            "the command wrote more than it may and was ended; this is the beginning, {len} bytes"
        ));
    }
    match outcome.outcome {
        Happened::Exited | Happened::Signaled => None,
        Happened::TimedOut => Some("the time was up; the command was ended".to_owned()),
        // Its own sentence stands in stderr already.
        Happened::Refused | Happened::Unreachable => None,
        other => Some(match &outcome.message {
            Some(message) => message.clone(),
            None => format!("the command was {}", other.as_str().replace('_', " ")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(framing: Framing) -> Style {
        Style {
            framing,
            streams: Streams::Both,
            when_empty: None,
            describe: false,
            bytes_max: None,
        }
    }

    fn finished(stdout: &str, stderr: &str) -> Result<Finished, RunError> {
        let mut finished = Finished::default();
        finished.stdout = stdout.into();
        finished.stderr = stderr.into();
        finished.outcome.outcome = Happened::Exited;
        finished.outcome.code = Some(3);
        Ok(finished)
    }

    fn text(reply: &Reply) -> (String, String) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(&reply.header), text(&reply.body))
    }

    #[test]
    fn one_stream_or_both() {
        let both = style(Framing::Ready);
        assert_eq!(
            text(&both.reply(finished("o", "e"))),
            ("2".into(), "oe".into())
        );
        assert_eq!(
            text(&both.reply(finished("", ""))),
            ("0".into(), String::new())
        );
        let either = Style {
            streams: Streams::Either,
            ..both
        };
        assert_eq!(text(&either.reply(finished("o", "e"))).1, "e");
        assert_eq!(text(&either.reply(finished("o", ""))).1, "o");
        assert_eq!(
            text(&either.reply(finished("", ""))),
            ("12".into(), "操作成功".into())
        );
        let said = Style {
            when_empty: Some("ok".to_owned()),
            ..either
        };
        assert_eq!(text(&said.reply(finished("", ""))).1, "ok");
    }

    #[test]
    fn raw_says_one_newline_for_nothing() {
        let raw = style(Framing::Raw);
        assert_eq!(
            text(&raw.reply(finished("", ""))),
            (String::new(), "\n".into())
        );
        assert_eq!(
            text(&raw.reply(finished("x", "y"))),
            (String::new(), "xy".into())
        );
    }

    #[test]
    fn lengths_are_those_of_struct_pack() {
        let reply = style(Framing::Len4).reply(finished("abc", ""));
        assert_eq!(reply.header, [3, 0, 0, 0]);
        let reply = style(Framing::Json).reply(finished("abc", ""));
        assert_eq!(&reply.header[..4], [16, 0, 0, 0]);
        assert_eq!(&reply.header[4..], br#"{"total_size":3}"#);
    }

    #[test]
    fn headers_describe() {
        let described = Style {
            describe: true,
            ..style(Framing::Json)
        };
        let reply = described.reply(finished("abc", ""));
        let header: serde_json::Value = serde_json::from_slice(&reply.header[4..]).unwrap();
        assert_eq!(header["md5"], "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(header["filename"], "output.txt");
        let reply = style(Framing::Framed).reply(finished("abc", "de"));
        let header: serde_json::Value = serde_json::from_slice(&reply.header[4..]).unwrap();
        assert_eq!(header["exit"], 3);
        assert_eq!(header["signal"], serde_json::Value::Null);
        assert_eq!(
            (&header["stdout_size"], &header["stderr_size"]),
            (&3.into(), &2.into())
        );
        assert_eq!(header["total_size"], 5);
    }

    #[test]
    fn what_went_wrong_stands_in_the_reply() {
        let either = Style {
            streams: Streams::Either,
            ..style(Framing::Framed)
        };
        let reply = either.reply(Err(RunError::NotRun("no place".to_owned())));
        assert_eq!(
            text(&reply).1,
            "bowline: the command was not run: no place\n"
        );
        let mut late = finished("half a line", "").unwrap();
        late.outcome.outcome = Happened::TimedOut;
        let reply = style(Framing::Raw).reply(Ok(late));
        assert!(
            text(&reply)
                .1
                .ends_with("bowline: the time was up; the command was ended\n")
        );
        let mut cut = finished("abc", "").unwrap();
        cut.cut = true;
        assert!(
            text(&style(Framing::Raw).reply(Ok(cut)))
                .1
                .contains("wrote more than it may")
        );
        let limited = Style {
            bytes_max: Some(3),
            ..style(Framing::Raw)
        };
        assert_eq!(text(&limited.reply(finished("abc", ""))).1, "abc");
        assert!(
            text(&limited.reply(finished("abcd", "")))
                .1
                .contains("over the limit of 3")
        );
    }
}
