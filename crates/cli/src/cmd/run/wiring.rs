//! What a command wants of the loop between a job and the client's own streams.

/// What the client's own streams are for.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cmd) struct Wiring {
    /// Our stdin is the job's.
    pub(in crate::cmd) stdin: bool,
    /// Output is written as JSON lines.
    pub(in crate::cmd) json: bool,
    /// The job has a terminal.
    pub(in crate::cmd) pty: bool,
    /// Output may have gaps: the job's policy permits that some of it is dropped.
    pub(in crate::cmd) gaps: bool,
    /// Stdout and stderr, where they are not asked for and so do not come.
    pub(in crate::cmd) unwanted: [bool; 2],
    /// The job is somebody else's: whoever leaves lets it be, and whether it has a terminal is
    /// not known before it is there.
    pub(in crate::cmd) guest: bool,
    /// Output is wanted from its beginning: of what is not kept of it one is told.
    pub(in crate::cmd) whole: bool,
    /// Where it is enough of each stream, and the outcome is not waited for.
    pub(in crate::cmd) until: Option<[u64; 2]>,
    /// Nothing is said of gaps.
    pub(in crate::cmd) quiet: bool,
}
