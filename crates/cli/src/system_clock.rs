//! This machine's clock as C knows it: strftime(3) and ctime(3) of the local
//! time, and what the kernel says of how well its clock is kept (adjtimex(2)).
//!
//! Times of the caller enter, text and the kernel's state leave. The clock is
//! never set. The program never calls setlocale(3), so the locale is C's.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;

/// What strftime(3) may write for one format; a longer text is none, as in
/// Python, whose own bound for short formats is lower.
const TEXT_BYTES_MAX: usize = 128 * 1024;

/// The local time of a second after 1970, broken down.
fn local(unix: i64) -> Option<libc::tm> {
    // SAFETY: `tm` consists of integers and a pointer, for which zeros are valid values.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid for the call; localtime_r keeps neither. The zone's name that
    // `tm` points to belongs to the C library and is never freed.
    let found = unsafe { libc::localtime_r(&unix, &mut tm) };
    (!found.is_null()).then_some(tm)
}

/// A format of strftime(3) filled in with a local time: every conversion and flag
/// that the C library has, and what it does not know as it stands. `None` where
/// the format holds a NUL or the text would be longer than any that makes sense.
pub(crate) fn strftime(format: &[u8], unix: i64) -> Option<Vec<u8>> {
    let tm = local(unix)?;
    // One byte more, so that an empty text and one that did not fit can be told apart.
    let format = CString::new([b".", format].concat()).ok()?;
    let enough = format.as_bytes().len().saturating_mul(2);
    let mut capacity = enough.max(1024);
    loop {
        let mut text = vec![0_u8; capacity];
        // SAFETY: `text` has `capacity` bytes to write to, the format ends in a NUL, and `tm`
        // came from localtime_r.
        let len =
            unsafe { libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &tm) };
        if len > 0 {
            text.truncate(len);
            text.remove(0);
            return Some(text);
        }
        if capacity >= enough.max(TEXT_BYTES_MAX) {
            return None;
        }
        capacity = capacity.saturating_mul(4);
    }
}

/// As ctime(3), without its line end: `Sun Nov  8 07:05:03 2026`.
pub(crate) fn ctime(unix: i64) -> String {
    let text = strftime(b"%a %b %e %H:%M:%S %Y", unix).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// What the kernel says of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelClock {
    /// Somebody keeps it right; else nothing is known of its error.
    pub(crate) synchronised: bool,
    /// A second will be put in (1) or left out (-1) at the end of the day.
    pub(crate) leap: i8,
    /// A pulse per second disciplines it.
    pub(crate) pulse: bool,
    /// The largest error there can be, in microseconds.
    pub(crate) error_max_us: u64,
    /// The precision in microseconds.
    pub(crate) precision_us: u64,
}

/// Asks the kernel.
///
/// # Errors
/// As adjtimex(2), which may be forbidden to a process in a container.
pub(crate) fn kernel_clock() -> io::Result<KernelClock> {
    // SAFETY: `timex` consists of integers, for which zeros are valid values.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is valid and exclusively borrowed; modes is 0, so nothing is set.
    let state = unsafe { libc::adjtimex(&mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    let unsigned = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
    Ok(KernelClock {
        synchronised: state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0,
        leap: match state {
            libc::TIME_INS => 1,
            libc::TIME_DEL => -1,
            _ => 0,
        },
        pulse: timex.status & libc::STA_PPSSIGNAL != 0,
        error_max_us: unsigned(timex.maxerror),
        precision_us: unsigned(timex.precision).max(1),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Every letter with every flag, width and modifier that C has, and others that it has not.
    fn formats() -> Vec<String> {
        let mut formats: Vec<String> = [
            "",
            "%",
            "%%",
            "plain",
            "100%",
            "%-",
            "%_",
            "%E",
            "%O",
            "%5",
            "%-5",
            "%Z %z",
            "时间 %H:%M",
            "%é",
            "%Y-%m-%d-%X",
            "%+",
            "%:z",
            "%::z",
            "%!",
            "% d",
            "%#Z",
            "%^#a",
        ]
        .map(str::to_owned)
        .into();
        let letters = (b'A'..=b'Z').chain(b'a'..=b'z').map(char::from);
        for letter in letters {
            for flag in [
                "", "-", "_", "0", "^", "#", "E", "O", "5", "-5", "_12", "012", "^8", "+",
            ] {
                formats.push(format!("<%{flag}{letter}>"));
            }
        }
        formats
    }

    #[test]
    fn formats_come_out_as_in_python() {
        // An interpreter takes the formats, one in JSON a line, and gives the texts back so.
        let script = "import json, sys, time\n\
                      now = time.localtime(int(sys.argv[1]))\n\
                      for line in sys.stdin:\n    \
                      print(json.dumps(time.strftime(json.loads(line), now)))\n";
        for unix in [0, 1_794_121_503, 1_782_864_001, 4_102_444_799] {
            let mut python = Command::new("python3")
                .args(["-c", script, &unix.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("python3");
            let formats = formats();
            let lines: String = formats
                .iter()
                .map(|format| serde_json::to_string(format).unwrap() + "\n")
                .collect();
            let mut stdin = python.stdin.take().unwrap();
            let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
            let output = python.wait_with_output().unwrap();
            writer.join().unwrap().unwrap();
            assert!(output.status.success());
            let texts = String::from_utf8(output.stdout).unwrap();
            assert_eq!(texts.lines().count(), formats.len());
            for (format, expected) in formats.iter().zip(texts.lines()) {
                let expected: String = serde_json::from_str(expected).unwrap();
                let text = strftime(format.as_bytes(), unix).unwrap();
                assert_eq!(
                    String::from_utf8(text).unwrap(),
                    expected,
                    "{format:?} at {unix}"
                );
            }
        }
    }

    #[test]
    fn a_text_without_end_is_none() {
        assert_eq!(strftime(b"%999999999d", 0), None);
        assert_eq!(strftime(b"%d\0", 0), None);
        assert_eq!(strftime(b"%2000d", 0).unwrap().len(), 2000);
        let long = "x".repeat(60_000) + "%%";
        assert_eq!(strftime(long.as_bytes(), 0).unwrap().len(), 60_001);
    }

    #[test]
    fn ctime_pads_the_day_with_a_blank() {
        let text = ctime(1_794_121_503);
        let date = Command::new("date")
            .args(["-d", "@1794121503", "+%a %b %e %H:%M:%S %Y"])
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        assert_eq!(text, String::from_utf8(date.stdout).unwrap().trim_end());
        assert_eq!(text.len(), 24);
    }

    #[test]
    fn the_kernel_tells_its_clock_or_why_not() {
        match kernel_clock() {
            Ok(clock) => assert!((-1..=1).contains(&clock.leap) && clock.precision_us > 0),
            Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
        }
    }
}
