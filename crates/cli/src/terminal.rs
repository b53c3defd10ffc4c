//! Questions to the person at the terminal, and only there.
//!
//! Owns the modes of the terminal while a question stands: they are set before
//! the question is shown, so that no part of a fast answer is shown, and put
//! back however it ends. Where nobody can answer (no terminal, or this process
//! in its background) there is no question and no answer, and nothing waits.
//! Questions enter, lines leave.

use std::fs::File;
use std::io::{Read, Write};

use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use zeroize::Zeroizing;

/// The longest line that a terminal hands over (N_TTY_BUF_SIZE of Linux).
const LINE_BYTES_MAX: usize = 4096;
/// What Ctrl-C sends.
const CTRL_C: u8 = 3;

/// The controlling terminal, with somebody at it.
#[derive(Debug)]
pub(crate) struct Terminal {
    file: File,
}

impl Terminal {
    /// Opens the controlling terminal; `None` where there is none, or where
    /// this process would be stopped for using it (tcsetattr(3), SIGTTOU).
    pub(crate) fn open() -> Option<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .ok()?;
        let foreground = termios::tcgetpgrp(&file).ok()?;
        (foreground == rustix::process::getpgrp()).then_some(Self { file })
    }

    /// Asks; what is typed is shown. `None` at the end of the input.
    pub(crate) fn ask(&self, question: &str) -> Option<Zeroizing<String>> {
        self.answer(question, LocalModes::ISIG)
    }

    /// Asks; nothing of the answer is shown.
    pub(crate) fn ask_secret(&self, question: &str) -> Option<Zeroizing<String>> {
        let answer = self.answer(question, LocalModes::ISIG | LocalModes::ECHO);
        // The answer's own newline was not shown either.
        let _ = (&self.file).write_all(b"\n");
        answer
    }

    fn answer(&self, question: &str, off: LocalModes) -> Option<Zeroizing<String>> {
        let modes = Modes::set(&self.file, off)?;
        (&self.file).write_all(question.as_bytes()).ok()?;
        let mut line = Zeroizing::new(vec![0; LINE_BYTES_MAX]);
        let read = loop {
            match (&self.file).read(&mut line) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        drop(modes);
        line.truncate(read.ok()?);
        match line.last()? {
            &CTRL_C => interrupted(&self.file),
            b'\n' => _ = line.pop(),
            _ => {}
        }
        std::str::from_utf8(&line)
            .ok()
            .map(|text| Zeroizing::new(text.to_owned()))
    }
}

/// Ends this process as SIGINT would: it came as a letter, so that the modes
/// could be put back first.
fn interrupted(mut terminal: &File) -> ! {
    let _ = terminal.write_all(b"\n");
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGINT);
    // Somebody catches the signal, to hand it to a job: there is none yet.
    std::process::exit(128 + libc::SIGINT)
}

/// The modes that a question needs; those from before come back when dropped.
struct Modes<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Modes<'a> {
    fn set(terminal: &'a File, off: LocalModes) -> Option<Self> {
        let before = termios::tcgetattr(terminal).ok()?;
        let mut modes = before.clone();
        modes.local_modes.remove(off);
        modes.local_modes.insert(LocalModes::ICANON);
        // With ISIG off Ctrl-C is a letter, and as VEOL it ends the line.
        modes.special_codes[SpecialCodeIndex::VEOL] = CTRL_C;
        // Flush: what was typed before the question is no answer to it.
        termios::tcsetattr(terminal, OptionalActions::Flush, &modes).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for Modes<'_> {
    fn drop(&mut self) {
        // Not flushed: what is typed behind the answer is the job's input.
        let _ = termios::tcsetattr(self.terminal, OptionalActions::Drain, &self.before);
    }
}
