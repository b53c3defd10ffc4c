//! The commands, a file each: what their flags are and what they do.

pub(crate) mod dial;
pub(crate) mod run;
pub(crate) mod serve;
