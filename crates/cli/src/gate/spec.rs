//! From a `start` of the wire to a spec for the keeper, and its way there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bowline_proto::message::{self, MessageError, OnDisconnect, Start};
use rustix::fs::{MemfdFlags, SealFlags};
use serde_bytes::ByteBuf;

use crate::ipc::packet::INLINE_SPEC_BYTES_MAX;
use crate::ipc::{JobSpec, Pty, Source, SpecPlace, Spool, SpoolPolicy, Stdin, Terms};

/// The longest command that is written down, in bytes.
const COMMAND_BYTES_MAX: usize = 4096;

/// Reads a `start`.
///
/// # Errors
/// Where the payload is not the strings that the header counts.
pub(super) fn read(
    start: &Start,
    payload: &[u8],
    source: Source,
    connection: u64,
) -> Result<JobSpec, MessageError> {
    let strings = start.strings(payload)?;
    if start.shell && strings.argv.len() != 1 {
        return Err(MessageError::StartPayload);
    }
    let owned = |list: &[&[u8]]| list.iter().map(|string| ByteBuf::from(*string)).collect();
    Ok(JobSpec {
        argv: owned(&strings.argv),
        env: owned(&strings.env),
        cwd: strings.cwd.map(ByteBuf::from),
        shell: start.shell,
        stdin: if start.null_stdin {
            Stdin::Null
        } else {
            Stdin::Pipe
        },
        timeout_ms: start.timeout_ms,
        pty: start.pty.as_ref().map(|pty| Pty {
            term: pty.term.clone(),
            cols: pty.cols,
            rows: pty.rows,
            stderr_pipe: pty.stderr_pipe,
        }),
        login: start.login,
        source,
        connection,
        terms: Terms {
            // What is detached belongs to no connection in the first place.
            keep: start.on_disconnect == OnDisconnect::Keep && !start.detach,
            grace_ms: start.grace_ms,
            wait_output: start.wait_output,
            spool: start.detach.then_some(Spool {
                policy: match start.spool {
                    message::SpoolPolicy::Block => SpoolPolicy::Block,
                    message::SpoolPolicy::DropOldest => SpoolPolicy::DropOldest,
                    message::SpoolPolicy::Kill => SpoolPolicy::Kill,
                },
                bytes: start.spool_bytes,
            }),
        },
    })
}

/// Puts a spec where it can travel: in the packet, or in a sealed memfd beside it.
///
/// # Errors
/// As memfd_create(2) and write(2).
pub(super) fn place(spec: JobSpec) -> io::Result<(SpecPlace, Option<OwnedFd>)> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let strings = spec.argv.iter().chain(&spec.env).chain(&spec.cwd);
    // Lengths and the rest of a spec take little beside its strings.
    let bytes: usize = strings.map(|string| string.len() + 5).sum();
    if bytes + 512 <= INLINE_SPEC_BYTES_MAX {
        return Ok((SpecPlace::Inline(spec), None));
    }
    let encoded = postcard::to_stdvec(&spec).map_err(invalid)?;
    let memfd = rustix::fs::memfd_create(
        "bowline-spec",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    let mut rest = encoded.as_slice();
    while !rest.is_empty() {
        let len = rustix::io::write(&memfd, rest)?;
        rest = rest.get(len..).unwrap_or_default();
    }
    rustix::fs::seek(&memfd, rustix::fs::SeekFrom::Start(0))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(memfd.as_fd(), seals)?;
    Ok((SpecPlace::Memfd, Some(memfd)))
}

/// The command for a person to read: words quoted where a shell would need it,
/// bytes that are not text replaced, cut where it is long.
pub(super) fn command(spec: &JobSpec) -> String {
    if spec.login {
        return "(login shell)".to_owned();
    }
    let mut text = String::new();
    for word in &spec.argv {
        if !text.is_empty() {
            text.push(' ');
        }
        let word = String::from_utf8_lossy(word);
        if spec.shell || is_plain(&word) {
            text.push_str(&word);
        } else {
            text.push('\'');
            text.push_str(&word.replace('\'', "'\\''"));
            text.push('\'');
        }
        if text.len() > COMMAND_BYTES_MAX {
            break;
        }
    }
    cut(&mut text, COMMAND_BYTES_MAX);
    text
}

/// A working directory for a person to read, cut where it is longer than any can be.
pub(super) fn place_name(cwd: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(cwd).into_owned();
    cut(&mut text, COMMAND_BYTES_MAX);
    text
}

/// Shortens a text to at most `max` bytes, marked with an ellipsis.
pub(super) fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let mut end = max.saturating_sub('…'.len_utf8());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

fn is_plain(word: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%^".contains(c);
    !word.is_empty() && word.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(argv: &[&str]) -> JobSpec {
        JobSpec {
            argv: argv
                .iter()
                .map(|word| ByteBuf::from(word.as_bytes()))
                .collect(),
            env: Vec::new(),
            cwd: None,
            shell: false,
            stdin: Stdin::Null,
            timeout_ms: None,
            pty: None,
            login: false,
            source: Source::Stdio,
            connection: 0,
            terms: Terms::default(),
        }
    }

    #[test]
    fn a_command_reads_as_one_would_type_it() {
        assert_eq!(command(&spec(&["ls", "-l", "/tmp"])), "ls -l /tmp");
        assert_eq!(
            command(&spec(&["echo", "a b", "", "it's"])),
            r"echo 'a b' '' 'it'\''s'"
        );
        let long = "é".repeat(COMMAND_BYTES_MAX);
        let text = command(&spec(&[&long]));
        assert!(text.len() <= COMMAND_BYTES_MAX && text.ends_with('…'));
    }

    #[test]
    fn a_long_spec_travels_sealed() {
        let long = "x".repeat(INLINE_SPEC_BYTES_MAX);
        let long = spec(&["echo", &long]);
        let (place_, memfd) = place(long.clone()).unwrap();
        assert!(matches!(place_, SpecPlace::Memfd));
        let memfd = memfd.unwrap();
        assert!(rustix::io::write(&memfd, b"x").is_err(), "sealed");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(memfd), &mut bytes).unwrap();
        let back: JobSpec = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(back, long);
        assert!(matches!(
            place(spec(&["true"])).unwrap().0,
            SpecPlace::Inline(_)
        ));
    }
}
