//! A client's talk with a plain service: one message there, its reply back.
//!
//! A line enters, the bytes of its reply leave as they come. Where the wire marks the
//! end of a reply it is read exactly; where not, a reply is what comes until a pause.

use std::io;
use std::time::Duration;

use bowline_proto::framing::{
    ACKNOWLEDGEMENT, Framing as _, FramingError, HEADER_BYTES_MAX, Headed,
};
use serde::Deserialize;

use super::Service;
use super::challenge::{self, Secret};
use super::link::{Came, Link};
use super::reply::Framing;

/// A reply without a mark is over when nothing more comes for so long.
const PAUSE: Duration = Duration::from_millis(100);
/// The most digits of a length: those of `u64::MAX`.
const DIGITS_MAX: usize = 20;

/// Why a talk cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TalkError {
    #[error("the server closed the connection before {0}")]
    Closed(&'static str),
    #[error("no reply within {0:?}")]
    Late(Duration),
    #[error("the server's reply is not as this framing has it: {0}")]
    Malformed(&'static str),
    #[error("the message does not fit this framing")]
    Framing(#[from] FramingError),
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// How a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is whole, or what can be told of it is.
    Whole,
    /// The server closed behind it.
    Closed,
    /// Nothing came at all, which some servers mean by an empty reply.
    Nothing,
    /// The checksum in the header is another than that of the bytes.
    WrongChecksum,
}

/// Takes the bytes of a reply as they come.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// One connection to a service.
pub(crate) struct Talk {
    link: Link,
    service: Service,
    framing: Framing,
    wait: Option<Duration>,
    /// Read already, and part of what comes next.
    ahead: Vec<u8>,
}

/// The keys of a JSON header that count.
#[derive(Debug, Deserialize)]
struct Header {
    total_size: u64,
    #[serde(default)]
    md5: Option<serde_json::Value>,
}

impl Talk {
    pub(crate) fn new(
        link: Link,
        service: Service,
        framing: Framing,
        wait: Option<Duration>,
    ) -> Self {
        Self {
            link,
            service,
            framing,
            wait,
            ahead: Vec::new(),
        }
    }

    pub(crate) fn is_datagram(&self) -> bool {
        self.link.is_datagram()
    }

    /// Answers the server's challenge.
    ///
    /// # Errors
    /// [`TalkError`]; a wrong secret shows only in the server's closing afterwards.
    pub(crate) fn prove(&mut self, secret: &Secret) -> Result<(), TalkError> {
        let challenge = self.exactly(challenge::CHALLENGE_BYTES, "its challenge")?;
        let answer = secret.answer(&challenge);
        debug_assert_eq!(answer.len(), secret.answer_len());
        Ok(self.link.send(&answer)?)
    }

    /// Sends a message and hands its reply to `sink`.
    ///
    /// # Errors
    /// [`TalkError`].
    pub(crate) fn ask(&mut self, message: &[u8], sink: &mut Sink<'_>) -> Result<Ended, TalkError> {
        let framed = self.service == Service::Exec && self.framing == Framing::Framed;
        if framed {
            let mut whole = Vec::new();
            Headed::little_endian(usize::MAX).encode(message, &mut whole)?;
            self.send(&whole)?;
        } else {
            self.send(message)?;
        }
        match (self.service, self.framing) {
            (Service::Show, _) => Ok(Ended::Whole),
            _ if self.link.is_datagram() => self.datagram(sink),
            (Service::Upper, _) => self.as_long_as(message.len(), sink),
            (Service::Greet, _) => self.until_closed(sink),
            (Service::Exec, Framing::Ready) => self.counted(sink),
            (Service::Exec, Framing::Len4) => self.measured(sink),
            (Service::Exec, Framing::Json | Framing::Framed) => self.described(sink),
            _ => self.until_pause(sink),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), TalkError> {
        self.link.send(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                if !self.link.is_datagram() =>
            {
                TalkError::Closed("the message was sent")
            }
            _ => TalkError::Io(error),
        })
    }

    /// Says that nothing more comes, and hands over what the server still says.
    ///
    /// # Errors
    /// [`TalkError`].
    pub(crate) fn finish(mut self, sink: &mut Sink<'_>) -> Result<(), TalkError> {
        if self.link.is_datagram() {
            return Ok(());
        }
        self.link.shut_down();
        if self.service == Service::Show {
            return Ok(());
        }
        self.until_closed(sink).map(|_| ())
    }

    /// What comes next, first what was read already.
    fn next(&mut self, wait: Option<Duration>) -> io::Result<Came> {
        if self.ahead.is_empty() {
            return self.link.read(wait);
        }
        Ok(Came::Bytes(std::mem::take(&mut self.ahead)))
    }

    /// Bytes that must come.
    fn must(&mut self, what: &'static str) -> Result<Vec<u8>, TalkError> {
        match self.next(self.wait)? {
            Came::Bytes(bytes) => Ok(bytes),
            Came::Closed => Err(TalkError::Closed(what)),
            Came::Nothing => Err(TalkError::Late(self.wait.unwrap_or_default())),
        }
    }

    fn exactly(&mut self, len: usize, what: &'static str) -> Result<Vec<u8>, TalkError> {
        let mut gathered = Vec::new();
        self.body(len as u64, what, &mut |bytes| {
            gathered.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(gathered)
    }

    /// Hands over exactly `len` bytes; what comes behind them is kept.
    fn body(&mut self, len: u64, what: &'static str, sink: &mut Sink<'_>) -> Result<(), TalkError> {
        let mut left = len;
        while left > 0 {
            let mut bytes = self.must(what)?;
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            self.ahead = bytes.split_off(part);
            left -= part as u64;
            sink(&bytes)?;
        }
        Ok(())
    }

    fn datagram(&mut self, sink: &mut Sink<'_>) -> Result<Ended, TalkError> {
        let bytes = self.must("its answer")?;
        sink(&bytes)?;
        Ok(Ended::Whole)
    }

    /// A reply that has as many bytes as the message; what a server that says more, or
    /// less, sends is shown too.
    fn as_long_as(&mut self, len: usize, sink: &mut Sink<'_>) -> Result<Ended, TalkError> {
        let mut left = len;
        while left > 0 {
            match self.next(self.wait)? {
                Came::Bytes(bytes) => {
                    left = left.saturating_sub(bytes.len());
                    sink(&bytes)?;
                }
                Came::Closed => return Ok(Ended::Closed),
                Came::Nothing => return Err(TalkError::Late(self.wait.unwrap_or_default())),
            }
        }
        Ok(Ended::Whole)
    }

    fn until_closed(&mut self, sink: &mut Sink<'_>) -> Result<Ended, TalkError> {
        loop {
            match self.next(self.wait)? {
                Came::Bytes(bytes) => sink(&bytes)?,
                Came::Closed => return Ok(Ended::Closed),
                Came::Nothing => return Ok(Ended::Whole),
            }
        }
    }

    fn until_pause(&mut self, sink: &mut Sink<'_>) -> Result<Ended, TalkError> {
        let mut wait = self.wait;
        let mut ended = Ended::Nothing;
        loop {
            match self.next(wait)? {
                Came::Bytes(bytes) => sink(&bytes)?,
                Came::Closed => return Ok(Ended::Closed),
                Came::Nothing => return Ok(ended),
            }
            wait = Some(PAUSE);
            ended = Ended::Whole;
        }
    }

    /// Digits, our `ready`, and so many bytes. The digits are sent at once and nothing
    /// behind them before our answer, so they end where the read does.
    fn counted(&mut self, sink: &mut Sink<'_>) -> Result<Ended, TalkError> {
        let digits = self.must("the length of its reply")?;
        let length = Some(&digits)
            .filter(|digits| digits.len() <= DIGITS_MAX && digits.iter().all(u8::is_ascii_digit))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .ok_or(TalkError::Malformed("there is no length in digits"))?;
        self.send(ACKNOWLEDGEMENT)?;
        self.body(length, "the end of its reply", sink)?;
        Ok(Ended::Whole)
    }

    fn int32(&mut self, what: &'static str) -> Result<u64, TalkError> {
        let bytes = self.exactly(4, what)?;
        let bytes = <[u8; 4]>::try_from(bytes).unwrap_or_default();
        u64::try_from(i32::from_le_bytes(bytes))
            .map_err(|_| TalkError::Malformed("a length is negative"))
    }

    fn measured(&mut self, sink: &mut Sink<'_>) -> Result<Ended, TalkError> {
        let length = self.int32("the length of its reply")?;
        self.body(length, "the end of its reply", sink)?;
        Ok(Ended::Whole)
    }

    fn described(&mut self, sink: &mut Sink<'_>) -> Result<Ended, TalkError> {
        let length = self.int32("the header of its reply")?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > HEADER_BYTES_MAX {
            return Err(TalkError::Malformed("its header is too long"));
        }
        let header = self.exactly(length, "the end of its header")?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|_| TalkError::Malformed("its header is not JSON with a total_size"))?;
        // Programs of a tutorial put anything there; only a real checksum counts.
        let announced = header.md5.as_ref().and_then(serde_json::Value::as_str);
        let announced = announced.filter(|text| is_md5(text)).map(str::to_owned);
        let mut checksum = announced.as_ref().map(|_| challenge::Checksum::default());
        self.body(header.total_size, "the end of its reply", &mut |bytes| {
            if let Some(checksum) = &mut checksum {
                checksum.add(bytes);
            }
            sink(bytes)
        })?;
        let found = checksum.map(challenge::Checksum::hex);
        let same = found
            .zip(announced)
            .is_none_or(|(found, announced)| found.eq_ignore_ascii_case(&announced));
        Ok(if same {
            Ended::Whole
        } else {
            Ended::WrongChecksum
        })
    }
}

fn is_md5(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
