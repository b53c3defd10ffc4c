//! Frames: a 12-byte prelude, a JSON header, a payload.
//!
//! | bytes | field | meaning |
//! | --- | --- | --- |
//! | 0 | kind, u8 | [`Kind`] |
//! | 1 | flags, u8 | bit 0: end of this stream; bit 1: the sender waits for the window |
//! | 2–3 | header_len, u16 little-endian | bytes of JSON that follow, 0 for data |
//! | 4–7 | channel, u32 little-endian | 0 is the connection itself |
//! | 8–11 | payload_len, u32 little-endian | bytes after the header |
//!
//! [`decode`] looks at bytes that the caller holds and takes nothing: it says
//! how long the frame is, so any split of the input gives the same frames. The
//! lengths are checked as soon as the prelude is there, before a byte of the
//! rest has been waited for.

use crate::id::Channel;
use crate::limits::{
    FRAME_BYTES_UNAUTHENTICATED_MAX, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, PRELUDE_BYTES,
};
use crate::wire;

/// One of the three standard streams of a job.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// What the program reads.
    Stdin,
    /// What it writes.
    Stdout,
    /// What it writes to its standard error.
    Stderr,
}

impl Stream {
    /// The word of the wire and of JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stream::Stdin => "stdin",
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal,)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[doc = $doc])* $name = $value,)* }

        impl Kind {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Kind] = &[$(Kind::$name),*];

            fn from_u8(value: u8) -> Option<Self> {
                match value { $($value => Some(Kind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Bytes for the program's standard input.
    Stdin = 0x01,
    /// Bytes of its standard output.
    Stdout = 0x02,
    /// Bytes of its standard error.
    Stderr = 0x03,
    /// The first message of each side.
    Hello = 0x10,
    /// The client's user name and proofs.
    Auth = 0x11,
    /// A proof was good.
    Granted = 0x12,
    /// Something asked for is not done; the code says why.
    Refused = 0x13,
    /// Start a job.
    Start = 0x20,
    /// The program runs.
    Started = 0x21,
    /// Attach to a job that was started before.
    Attach = 0x22,
    /// Send a signal, or end the whole tree.
    Signal = 0x23,
    /// The client's terminal has a new size.
    Resize = 0x24,
    /// How far the receiver of a stream has come and how far the sender may go.
    Window = 0x25,
    /// The outcome, after the last byte of every stream.
    Exit = 0x26,
    /// The client has the outcome; the server may forget the job.
    Forget = 0x27,
    /// Ask for the jobs of this user.
    List = 0x28,
    /// Some of them.
    Jobs = 0x29,
    /// Part of a stream was dropped; it goes on at a later offset. Since minor 1.
    Gap = 0x2a,
    /// Ask for a [`Kind::Pong`].
    Ping = 0x30,
    /// The answer to a [`Kind::Ping`].
    Pong = 0x31,
    /// The sender is about to close, and why.
    Bye = 0x3f,
}

impl Kind {
    /// The stream whose data this kind carries.
    pub const fn stream(self) -> Option<Stream> {
        match self {
            Kind::Stdin => Some(Stream::Stdin),
            Kind::Stdout => Some(Stream::Stdout),
            Kind::Stderr => Some(Stream::Stderr),
            _ => None,
        }
    }

    /// The flags that a frame of this kind may have.
    pub const fn flags(self) -> Flags {
        match self {
            Kind::Stdin | Kind::Stdout | Kind::Stderr => Flags::END.with(Flags::BLOCKED),
            Kind::Start => Flags::END,
            _ => Flags::NONE,
        }
    }

    /// The kind of a stream's data.
    pub const fn data(stream: Stream) -> Self {
        match stream {
            Stream::Stdin => Kind::Stdin,
            Stream::Stdout => Kind::Stdout,
            Stream::Stderr => Kind::Stderr,
        }
    }
}

/// The flags of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Nothing more comes on this stream, or in this `start`.
    pub const END: Self = Self(1);
    /// The sender has more and waits for the window.
    pub const BLOCKED: Self = Self(2);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Nothing more comes on this stream, or in this `start`.
    pub const fn end(self) -> bool {
        self.0 & Self::END.0 != 0
    }

    /// The sender has more and waits for the window.
    pub const fn blocked(self) -> bool {
        self.0 & Self::BLOCKED.0 != 0
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prelude {
    /// What the frame is.
    pub kind: Kind,
    /// Its flags.
    pub flags: Flags,
    /// Bytes of JSON.
    pub header_len: u16,
    /// Whom it is for.
    pub channel: Channel,
    /// Bytes after the header.
    pub payload_len: u32,
}

impl Prelude {
    /// The 12 bytes of the wire.
    pub const fn encode(&self) -> [u8; PRELUDE_BYTES] {
        let [h0, h1] = self.header_len.to_le_bytes();
        let [c0, c1, c2, c3] = self.channel.0.to_le_bytes();
        let [p0, p1, p2, p3] = self.payload_len.to_le_bytes();
        [
            self.kind as u8,
            self.flags.0,
            h0,
            h1,
            c0,
            c1,
            c2,
            c3,
            p0,
            p1,
            p2,
            p3,
        ]
    }

    /// Reads 12 bytes; checks the kind and its flags but no length.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`], [`FrameError::UnknownFlags`].
    pub fn decode(bytes: [u8; PRELUDE_BYTES]) -> Result<Self, FrameError> {
        let [kind, flags, h0, h1, c0, c1, c2, c3, p0, p1, p2, p3] = bytes;
        let kind = Kind::from_u8(kind).ok_or(FrameError::UnknownKind(kind))?;
        // Both together contradict each other: nothing waits behind the end.
        let both = Flags::END.with(Flags::BLOCKED).0;
        if flags & !kind.flags().0 != 0 || flags == both {
            return Err(FrameError::UnknownFlags(flags));
        }
        Ok(Self {
            kind,
            flags: Flags(flags),
            header_len: u16::from_le_bytes([h0, h1]),
            channel: Channel(u32::from_le_bytes([c0, c1, c2, c3])),
            payload_len: u32::from_le_bytes([p0, p1, p2, p3]),
        })
    }
}

/// A whole frame, in the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its flags.
    pub flags: Flags,
    /// Whom it is for.
    pub channel: Channel,
    /// Its JSON.
    pub header: &'a [u8],
    /// What follows the JSON.
    pub payload: &'a [u8],
}

/// How long a frame may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Before authentication.
    Unauthenticated,
    /// After it.
    Authenticated,
}

/// Bytes that are not a frame. The connection cannot go on after one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that this side did not name in its hello.
    #[error("unknown kind of frame {0:#04x}")]
    UnknownKind(u8),
    /// A flag that this kind of frame does not have, or two that contradict each other.
    #[error("unknown flags {0:#04x}")]
    UnknownFlags(u8),
    /// The JSON is longer than allowed, in bytes.
    #[error("a header of {0} bytes is over the limit of {HEADER_BYTES_MAX}")]
    HeaderTooLong(usize),
    /// The payload is longer than allowed, in bytes.
    #[error("a payload of {0} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    PayloadTooLong(usize),
    /// The whole frame is longer than allowed before authentication, in bytes.
    #[error(
        "a frame of {0} bytes before authentication, over the limit of {FRAME_BYTES_UNAUTHENTICATED_MAX}"
    )]
    UnauthenticatedTooLong(usize),
    /// Stream data with a JSON header.
    #[error("stream data with a header")]
    DataWithHeader,
}

/// Finds the frame at the start of `input`.
///
/// Gives the frame and its whole length in bytes, or `None` where more bytes
/// are needed.
///
/// # Errors
/// [`FrameError`], as soon as the prelude shows it.
pub fn decode(input: &[u8], bound: Bound) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((prelude, rest)) = wire::array::<PRELUDE_BYTES>(input) else {
        // A kind that is unknown is worth knowing before eleven more bytes come.
        if let Some(&kind) = input.first() {
            Kind::from_u8(kind).ok_or(FrameError::UnknownKind(kind))?;
        }
        return Ok(None);
    };
    let prelude = Prelude::decode(prelude)?;
    let (header_len, payload_len) = check_lengths(&prelude, bound)?;
    let frame = wire::bytes(rest, header_len).and_then(|(header, rest)| {
        let (payload, _) = wire::bytes(rest, payload_len)?;
        Some((header, payload))
    });
    Ok(frame.map(|(header, payload)| {
        let frame = Frame {
            kind: prelude.kind,
            flags: prelude.flags,
            channel: prelude.channel,
            header,
            payload,
        };
        (frame, PRELUDE_BYTES + header_len + payload_len)
    }))
}

fn check_lengths(prelude: &Prelude, bound: Bound) -> Result<(usize, usize), FrameError> {
    let header = usize::from(prelude.header_len);
    let payload = usize::try_from(prelude.payload_len).unwrap_or(usize::MAX);
    if header > HEADER_BYTES_MAX {
        return Err(FrameError::HeaderTooLong(header));
    }
    if payload > PAYLOAD_BYTES_MAX {
        return Err(FrameError::PayloadTooLong(payload));
    }
    if header > 0 && prelude.kind.stream().is_some() {
        return Err(FrameError::DataWithHeader);
    }
    let whole = PRELUDE_BYTES + header + payload;
    if bound == Bound::Unauthenticated && whole > FRAME_BYTES_UNAUTHENTICATED_MAX {
        return Err(FrameError::UnauthenticatedTooLong(whole));
    }
    Ok((header, payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(kind: Kind, flags: Flags, channel: u32, header: &[u8], payload: &[u8]) -> Vec<u8> {
        let prelude = Prelude {
            kind,
            flags,
            header_len: header.len() as u16,
            channel: Channel(channel),
            payload_len: payload.len() as u32,
        };
        [&prelude.encode()[..], header, payload].concat()
    }

    #[test]
    fn lengths_at_and_past_every_limit() {
        let prelude = |kind, header_len, payload_len| {
            Prelude {
                kind,
                flags: Flags::NONE,
                header_len,
                channel: Channel(1),
                payload_len,
            }
            .encode()
        };
        let check = |bytes: [u8; 12], bound| decode(&bytes, bound).map(|_| ());
        let open = Bound::Authenticated;
        assert_eq!(check(prelude(Kind::Stdin, 0, 65_536), open), Ok(()));
        assert_eq!(
            check(prelude(Kind::Stdin, 0, 65_537), open),
            Err(FrameError::PayloadTooLong(65_537))
        );
        assert_eq!(
            check(prelude(Kind::Stdin, 0, u32::MAX), open),
            Err(FrameError::PayloadTooLong(u32::MAX as usize))
        );
        assert_eq!(check(prelude(Kind::Start, 16_372, 0), open), Ok(()));
        assert_eq!(
            check(prelude(Kind::Start, 16_373, 0), open),
            Err(FrameError::HeaderTooLong(16_373))
        );
        assert_eq!(
            check(prelude(Kind::Stdin, 1, 0), open),
            Err(FrameError::DataWithHeader)
        );
        let shut = Bound::Unauthenticated;
        assert_eq!(check(prelude(Kind::Auth, 16_372, 0), shut), Ok(()));
        assert_eq!(
            check(prelude(Kind::Auth, 16_372, 1), shut),
            Err(FrameError::UnauthenticatedTooLong(16_385))
        );
    }

    #[test]
    fn reserved_flags_and_kinds_are_errors() {
        assert_eq!(
            decode(&[0xff], Bound::Authenticated),
            Err(FrameError::UnknownKind(0xff))
        );
        let mut bytes = encoded(Kind::Ping, Flags::NONE, 0, b"{}", b"");
        bytes[1] = 4;
        assert_eq!(
            decode(&bytes, Bound::Authenticated),
            Err(FrameError::UnknownFlags(4))
        );
        // Each kind has its own; none has both.
        for &kind in Kind::ALL {
            for flags in 0..=u8::MAX {
                let mut bytes = encoded(kind, Flags::NONE, 1, b"", b"");
                bytes[1] = flags;
                let data = kind.stream().is_some();
                let right = flags == 0
                    || (flags == 1 && (data || kind == Kind::Start))
                    || (flags == 2 && data);
                let got = decode(&bytes, Bound::Authenticated).map(|_| ());
                let expected = right.then_some(()).ok_or(FrameError::UnknownFlags(flags));
                assert_eq!(got, expected, "{kind:?} {flags}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frame(
            kind in prop::sample::select(Kind::ALL),
            flags in prop::sample::select(&[Flags::NONE, Flags::END, Flags::BLOCKED][..]),
            channel: u32,
            header in prop::collection::vec(any::<u8>(), 0..300),
            payload in prop::collection::vec(any::<u8>(), 0..3000),
            cut in any::<prop::sample::Index>(),
        ) {
            let header = if kind.stream().is_some() { Vec::new() } else { header };
            let flags = Flags(flags.0 & kind.flags().0);
            let bytes = encoded(kind, flags, channel, &header, &payload);
            let cut = cut.index(bytes.len());
            prop_assert_eq!(decode(&bytes[..cut], Bound::Authenticated), Ok(None));
            let (frame, len) = decode(&bytes, Bound::Authenticated).unwrap().unwrap();
            prop_assert_eq!(len, bytes.len());
            prop_assert_eq!(frame, Frame { kind, flags, channel: Channel(channel), header: &header, payload: &payload });
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes, Bound::Authenticated);
            let _ = decode(&bytes, Bound::Unauthenticated);
        }
    }
}
