//! What a server shows to whoever started it: lines on stdout, written by a thread of
//! their own, so that a reader who pauses holds up only those that have something to
//! show.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Context as _;
use tokio::sync::mpsc;

/// Lines that may wait for the reader of stdout.
const LINES_MAX: usize = 256;

/// A handle to stdout.
#[derive(Clone, Debug)]
pub(crate) struct Screen(mpsc::Sender<String>);

impl Screen {
    /// Starts the thread. It ends with the last handle, or when stdout is closed.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub(crate) fn start() -> anyhow::Result<(Self, std::thread::JoinHandle<()>)> {
        let (sender, mut lines) = mpsc::channel::<String>(LINES_MAX);
        let thread = std::thread::Builder::new()
            .name("screen".to_owned())
            .spawn(move || {
                while let Some(line) = lines.blocking_recv() {
                    let mut stdout = io::stdout().lock();
                    if stdout
                        .write_all(line.as_bytes())
                        .and_then(|()| stdout.flush())
                        .is_err()
                    {
                        return;
                    }
                }
            })
            .context("a thread for stdout")?;
        Ok((Self(sender), thread))
    }

    /// Shows a line. Where nobody reads stdout any more it is lost, and that is all.
    pub(crate) async fn line(&self, line: String) {
        let _ = self.0.send(line + "\n").await;
    }

    /// Shows who said what.
    pub(crate) async fn show(&self, from: &str, bytes: &[u8]) {
        self.line(format!("{from}: {}", visible(bytes))).await;
    }

    /// The same with the number of bytes, for the eye that looks for messages that stick
    /// together.
    pub(crate) async fn show_sized(&self, from: &str, bytes: &[u8]) {
        let len = bytes.len();
        let unit = if len == 1 { "byte" } else { "bytes" };
        self.line(format!("{from}: {len} {unit}: {}", visible(bytes)))
            .await;
    }
}

/// Text of a stranger on one line: what is no character, and what would move the
/// cursor or ring the bell, is shown by its number.
fn visible(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                other if other.is_control() => {
                    let _ = write!(text, "\\x{:02x}", u32::from(other));
                }
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_stays_on_its_line() {
        assert_eq!(
            visible("你好\r\n\t\x1b[2J".as_bytes()),
            "你好\\r\\n\\t\\x1b[2J"
        );
        assert_eq!(visible(b"a\xff\xe4\xbd"), "a\\xff\\xe4\\xbd");
    }
}
