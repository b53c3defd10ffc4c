//! What a person types for the client itself: `~` behind a newline, as in ssh(1).
//!
//! Pure: typed bytes enter, those for the program leave, and what was asked of us.
//!
//! ```text
//! Inside ── newline ──► LineStart ── ~ ──► Tilde ── . ? ^Z ~ ──► Inside, LineStart
//!    ▲                     │                 │
//!    └──── any other ──────┴─── any other ◄──┘ (the ~ is the program's too)
//! ```

/// What is shown for `~?`, and what leaving means to the job.
pub(super) fn help(guest: bool) -> String {
    let leave = match guest {
        true => "leave; the job runs on",
        false => "leave, and hang up the job",
    };
    format!(
        "Supported escape sequences, at the beginning of a line:\r\n  \
         ~.   {leave}\r\n  \
         ~^Z  suspend bowline\r\n  \
         ~?   this message\r\n  \
         ~~   send a ~\r\n"
    )
}

const CTRL_Z: u8 = 0x1a;

/// What the person asks of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Leave,
    Suspend,
    Help,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// What comes next is the first of a line.
    #[default]
    LineStart,
    Inside,
    /// A `~` was the first, and is held back.
    Tilde,
}

/// The reader of what is typed.
#[derive(Clone, Debug, Default)]
pub(super) struct Escapes(Place);

impl Escapes {
    /// Appends to `out` what is for the program, up to the first thing that is
    /// asked of us; gives that, and how much of `typed` was taken.
    pub(super) fn read(&mut self, typed: &[u8], out: &mut Vec<u8>) -> (usize, Option<Asked>) {
        for (at, &byte) in typed.iter().enumerate() {
            let asked = match (self.0, byte) {
                (Place::LineStart, b'~') => {
                    self.0 = Place::Tilde;
                    continue;
                }
                (Place::Tilde, b'.') => Some(Asked::Leave),
                (Place::Tilde, CTRL_Z) => Some(Asked::Suspend),
                (Place::Tilde, b'?') => Some(Asked::Help),
                (Place::Tilde, b'~') => None,
                (Place::Tilde, _) => {
                    out.push(b'~');
                    None
                }
                _ => None,
            };
            if asked.is_some() {
                self.0 = Place::LineStart;
                return (at + 1, asked);
            }
            out.push(byte);
            self.0 = match byte {
                b'\r' | b'\n' => Place::LineStart,
                _ => Place::Inside,
            };
        }
        (typed.len(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program gets and what is asked, for a text that comes in pieces.
    fn typed(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Asked>) {
        let (mut escapes, mut out, mut asked) = (Escapes::default(), Vec::new(), Vec::new());
        for mut piece in pieces.iter().copied() {
            while !piece.is_empty() {
                let (taken, question) = escapes.read(piece, &mut out);
                asked.extend(question);
                piece = &piece[taken..];
            }
        }
        (out, asked)
    }

    #[test]
    fn escapes_are_those_of_ssh_however_they_are_cut() {
        let cases: [(&[u8], &[u8], &[Asked]); 10] = [
            (b"~.", b"", &[Asked::Leave]),
            (b"ls\r~.", b"ls\r", &[Asked::Leave]),
            (b"ls\n~?x", b"ls\nx", &[Asked::Help]),
            (b"~?~?", b"", &[Asked::Help, Asked::Help]),
            (b"\r~\x1afg\r", b"\rfg\r", &[Asked::Suspend]),
            (b"a~.", b"a~.", &[]),
            (b"~~.", b"~.", &[]),
            (b"~/bin\r", b"~/bin\r", &[]),
            (b"~\r~.", b"~\r", &[Asked::Leave]),
            (b"cd ~\r", b"cd ~\r", &[]),
        ];
        for (text, program, asked) in cases {
            let expected = (program.to_vec(), asked.to_vec());
            assert_eq!(typed(&[text]), expected, "{text:?}");
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(typed(&bytes), expected, "{text:?}");
        }
    }
}
