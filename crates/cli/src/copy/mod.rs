//! The file worker: one side of a copy, the sender or the receiver.
//!
//! It runs as a job of a server (`bowline copy-worker`, started by the keeper as the
//! target user) and on threads of `bowline cp`. Messages ([`bowline_proto::copy`]) enter and leave
//! through a [`link`]; files are only touched relative to open folders, without following links.
//! What the other side says is hostile: it may break its own copy and nothing else.

pub(crate) mod buffer;
pub(crate) mod bytes;
pub(crate) mod link;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod tree;
pub(crate) mod worker;

use std::io;

use bowline_proto::copy::CopyError;
use rustix::io::Errno;

/// Files up to this size travel whole in one message.
pub(crate) const SMALL_BYTES_MAX: u64 = 128 * 1024;
/// Files from this size on are resumed, and compared block by block.
pub(crate) const LARGE_BYTES_MIN: u64 = 128 * 1024 + 1;

/// What a file, folder or link is to be like, beside its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Why one entry could not be copied; the rest goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Stable, for programs.
    pub(crate) code: &'static str,
    /// For a person.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        let code = match errno {
            Some(Errno::NOENT) => "not_found",
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => "permission_denied",
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => "no_space",
            Some(Errno::ISDIR) => "is_a_folder",
            Some(Errno::NOTDIR | Errno::LOOP) => "not_a_folder",
            Some(Errno::NOTEMPTY | Errno::EXIST) => "exists",
            Some(Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ) => "bad_name",
            _ => "io_error",
        };
        // The number behind the sentence helps nobody.
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        Self::new(code, text)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Why a worker gives up the whole copy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    /// The other side broke the rules.
    #[error("the other side is no file worker that this one understands")]
    Peer(#[from] CopyError),
    /// It did what only a broken or hostile one does.
    #[error("the other side broke the rules of the copy: {0}")]
    Rules(&'static str),
    /// It has another version of the protocol.
    #[error("the other side speaks version {0} of the copy protocol")]
    Version(u64),
    /// The line to the other side broke.
    #[error("the line to the other side broke")]
    Line(#[source] io::Error),
    /// The file goes to a stream, and nobody reads that any more (`| head`).
    #[error("nobody reads the output any more")]
    Unread,
    /// Source or destination as a whole cannot be used.
    #[error("{}: {}", bowline_proto::copy::name::shown(path), failure.text)]
    Place {
        /// Which.
        path: Vec<u8>,
        /// Why.
        failure: Failure,
    },
}
