//! The server's local time, for `expiry-time=` without `Z`: mktime(3) behind a safe function.
#![allow(unsafe_code)]

use bowline_proto::grants::Civil;

/// Turns a local time of this machine into seconds since 1970. Of a time that
/// occurs twice, or not at all, when clocks change, mktime(3) picks one.
pub(crate) fn local_to_unix(civil: &Civil) -> Option<i64> {
    // SAFETY: `tm` consists of integers and a pointer, for which zeros are valid values.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    tm.tm_year = i32::from(civil.year) - 1900;
    tm.tm_mon = i32::from(civil.month) - 1;
    tm.tm_mday = i32::from(civil.day);
    tm.tm_hour = i32::from(civil.hour);
    tm.tm_min = i32::from(civil.minute);
    tm.tm_sec = i32::from(civil.second);
    // Whether it is summer time is for mktime to find out.
    tm.tm_isdst = -1;
    // SAFETY: `tm` is a valid, exclusively borrowed value, and mktime keeps no pointer to it.
    let unix = unsafe { libc::mktime(&mut tm) };
    // -1 is the error, and a second of 1969 that no grant ends in.
    (unix != -1).then_some(unix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_date() {
        for text in [
            "1999-12-31 23:59:59",
            "2026-07-01 12:00:00",
            "2026-01-01 00:00:00",
        ] {
            let printed = std::process::Command::new("date")
                .args(["-d", text, "+%s"])
                .output()
                .unwrap();
            let printed = String::from_utf8(printed.stdout).unwrap();
            let number = |from: usize, to: usize| text[from..to].parse::<u16>().unwrap();
            let civil = Civil {
                year: number(0, 4),
                month: number(5, 7) as u8,
                day: number(8, 10) as u8,
                hour: number(11, 13) as u8,
                minute: number(14, 16) as u8,
                second: number(17, 19) as u8,
            };
            let expected: i64 = printed.trim().parse().unwrap();
            assert_eq!(local_to_unix(&civil), Some(expected), "{text}");
        }
    }
}
