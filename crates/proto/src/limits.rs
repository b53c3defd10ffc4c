//! Every limit of the wire, in one place; sizes in bytes unless the name says otherwise.
//!
//! A relation that other code relies on is asserted below, at compile time.

/// The name of the protocol in ALPN, in hello and in what is signed.
pub const PROTOCOL: &str = "bowline/1";

/// What this code can rely on within the protocol: `minor` of its hello (PROTOCOL.md, section 10).
pub const MINOR: u32 = 1;
/// The first minor whose servers know of terminals: `pty` and `login` of `start`.
pub const MINOR_OF_TERMINALS: u32 = 1;
/// The first minor whose jobs may outlive their connections: `on_disconnect`, `detach`, `gap`.
pub const MINOR_OF_ATTACHMENTS: u32 = 1;

/// The fixed part of a frame.
pub const PRELUDE_BYTES: usize = 12;
/// The longest frame before the connection is authenticated, prelude included.
pub const FRAME_BYTES_UNAUTHENTICATED_MAX: usize = 16 * 1024;
/// The longest JSON header.
pub const HEADER_BYTES_MAX: usize = 16 * 1024 - PRELUDE_BYTES;
/// The longest payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// The longest frame once authenticated, prelude included.
pub const FRAME_BYTES_MAX: usize = PRELUDE_BYTES + HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX;

/// The payload of a whole `start`: execve(2) takes no more than 2 MiB of
/// arguments and environment on Linux with the default stack limit.
pub const START_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Arguments and variables of one `start`, each.
pub const START_STRINGS_MAX: usize = 128 * 1024;

/// What may be sent of a stream before the peer has said anything about it, in bytes.
pub const WINDOW_INITIAL: u64 = 256 * 1024;
/// The largest window that a stream grows to. 32 MiB fill 1 Gbit/s over 250 ms.
pub const WINDOW_MAX: u64 = 32 * 1024 * 1024;
/// What the windows of one connection may grow to together, beyond the initial ones.
pub const WINDOW_GROWTH_PER_CONNECTION_MAX: u64 = 64 * 1024 * 1024;

/// Channels in use at once on one connection. A server may permit fewer.
pub const CHANNELS_MAX: usize = 1024;
/// Bytes of answers waiting to be sent at which a session takes no more input:
/// a peer that asks and does not read the answers is made to wait.
pub const CONTROL_OUT_PAUSE: usize = 256 * 1024;
/// At so many the connection ends, where nobody has paused.
pub const CONTROL_OUT_MAX: usize = 4 * CONTROL_OUT_PAUSE;
/// The same for stream data: at so many bytes waiting no more is added.
pub const BULK_OUT_PAUSE: usize = 128 * 1024;

/// Proofs in one `auth`.
pub const PROOFS_MAX: usize = 4;
/// The longest user name; longer than useradd or any directory allows.
pub const USER_BYTES_MAX: usize = 256;
/// Jobs in one `jobs` message; more come in further ones.
pub const JOBS_PER_MESSAGE_MAX: usize = 32;
/// A sentence for a person, in `refused`, `bye` and an outcome. A longer one is cut.
pub const SENTENCE_BYTES_MAX: usize = 1024;
/// A code or a name: of an error, a signal's job, a job's user. A longer one is cut.
pub const NAME_BYTES_MAX: usize = 256;
/// The command of a job as `list` shows it. A longer one is cut.
pub const COMMAND_BYTES_MAX: usize = 512;

const _: () = assert!(FRAME_BYTES_UNAUTHENTICATED_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(HEADER_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(PAYLOAD_BYTES_MAX as u64 <= WINDOW_INITIAL);
const _: () = assert!(WINDOW_INITIAL <= WINDOW_MAX);
const _: () = assert!(PRELUDE_BYTES + HEADER_BYTES_MAX <= FRAME_BYTES_UNAUTHENTICATED_MAX);
// JSON writes a byte as at most six (`\u0001`): what is cut to its limit fits a header.
const _: () = assert!(
    6 * (SENTENCE_BYTES_MAX + COMMAND_BYTES_MAX + 3 * NAME_BYTES_MAX) + 1024 <= HEADER_BYTES_MAX
);
const _: () = assert!(USER_BYTES_MAX <= NAME_BYTES_MAX);
