//! How far a copy is, on a terminal and only there.

use bowline_proto::copy::name::shown;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::stderr::tell;

/// Bytes, rate and time left, then what is worked on.
const TEMPLATE: &str = "{bytes}/{total_bytes} {binary_bytes_per_sec} {eta} {prefix} {wide_msg}";

/// The display; nothing where there is no terminal.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    entries: u64,
}

impl Progress {
    /// On stderr, if `wanted` and if that is a terminal.
    pub(super) fn new(wanted: bool) -> Self {
        use std::io::IsTerminal as _;
        let bar = (wanted && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(TEMPLATE);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
        });
        Self { bar, entries: 0 }
    }

    pub(super) fn length(&mut self, bytes: u64, entries: u64) {
        self.entries = entries;
        if let Some(bar) = &self.bar {
            bar.set_length(bytes);
        }
    }

    pub(super) fn file(&self, path: &[u8]) {
        if let Some(bar) = &self.bar {
            bar.set_message(shown(path));
        }
    }

    pub(super) fn position(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    pub(super) fn settled(&self, entries: u64, bytes: u64, path: &[u8]) {
        self.position(bytes);
        self.count(entries);
        self.file(path);
    }

    pub(super) fn count(&self, settled: u64) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("{settled}/{} entries", self.entries));
        }
    }

    /// A line for stdout, which may be the same terminal.
    pub(super) fn line(&self, text: &str) {
        let print = || crate::exit::print(&format!("{text}\n"));
        let _ = match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        };
    }

    /// A line for stderr.
    pub(super) fn complain(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell!("{text}")),
            None => tell!("{text}"),
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
