//! What this program tells people: lines on stderr.
//!
//! The one way to say something there. `eprintln!` panics where stderr is a full disk or a reader
//! that has gone, and the exit status would be that of the panic instead of the job's. Whoever
//! does not want to hear loses the words and nothing else.

use std::fmt;
use std::io::Write as _;

/// Writes a line to stderr, as `eprintln!` does, where it can be written.
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::stderr::line(::std::format_args!($($text)*))
    };
}
pub(crate) use tell;

/// In one write, so that lines of several processes do not run into each other.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let line = format!("{text}\n");
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}
