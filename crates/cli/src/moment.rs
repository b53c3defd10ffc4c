//! A moment as people name it: how long ago, a time of RFC 3339, or seconds since 1970.

use std::time::Duration;

use bowline_proto::grants::Expiry;

use crate::{clock, duration};

/// What is wrong with a moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MomentError {
    /// It is in none of the three forms.
    #[error(
        "a moment is how long ago (90s, 1.5h), a time (2026-11-28T17:45:00Z), or seconds since 1970 [bad_time]"
    )]
    Form,
    /// Whose clock it is read from is not said.
    #[error("a time needs its zone behind it, such as Z or +01:00 [bad_time]")]
    Zone,
    /// The form is right, but there is no such day, or hour, or zone.
    #[error("there is no such time [bad_time]")]
    None,
}

/// The moment, in milliseconds since 1970; what is before that is 0.
///
/// # Errors
/// [`MomentError`].
pub(crate) fn parse(text: &str) -> Result<u64, MomentError> {
    parse_at(text, clock::unix_ms())
}

fn parse_at(text: &str, now_ms: u64) -> Result<u64, MomentError> {
    if let Some(ms) = unix(text) {
        return Ok(ms);
    }
    if let Ok(ago) = duration::parse(text) {
        return Ok(now_ms.saturating_sub(milliseconds(ago)));
    }
    rfc_3339(text)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds, and a part of one.
fn unix(text: &str) -> Option<u64> {
    let (seconds, part) = text.split_once('.').unwrap_or((text, "0"));
    digits(seconds)?
        .checked_mul(1000)?
        .checked_add(thousandths(part)?)
}

/// The form of a time without its zone; a 0 stands for any digit.
const CIVIL: &[u8] = b"0000-00-00T00:00:00";

/// As `date-time` of RFC 3339, section 5.6; a space may stand in the place of the T.
fn rfc_3339(text: &str) -> Result<u64, MomentError> {
    let (civil, rest) = text
        .split_at_checked(CIVIL.len())
        .ok_or(MomentError::Form)?;
    let fits = civil.bytes().zip(CIVIL).all(|(byte, form)| match form {
        b'0' => byte.is_ascii_digit(),
        b'T' => b"Tt ".contains(&byte),
        form => byte == *form,
    });
    if !fits {
        return Err(MomentError::Form);
    }
    let (part_ms, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit());
            let (part, zone) = rest.split_at(end.unwrap_or(rest.len()));
            (thousandths(part).ok_or(MomentError::Form)?, zone)
        }
        None => (0, rest),
    };
    let ahead = seconds_ahead(zone)?;
    let digits: String = civil.chars().filter(char::is_ascii_digit).collect();
    // A leap second is the end of the one before it, as for time(2).
    let (digits, leap) = match digits.strip_suffix("60") {
        Some(minutes) => (format!("{minutes}59"), 1),
        None => (digits, 0),
    };
    let utc = Expiry::parse(format!("{digits}Z").as_bytes()).ok_or(MomentError::None)?;
    let seconds = utc.civil.utc_to_unix() + leap - ahead;
    Ok(u64::try_from(seconds).map_or(0, |seconds| seconds * 1000 + part_ms))
}

/// How far a zone's clock is ahead of UTC: `Z`, or `+01:00`.
fn seconds_ahead(zone: &str) -> Result<i64, MomentError> {
    let (sign, clock) = match zone.split_at_checked(1) {
        Some(("Z" | "z", "")) => return Ok(0),
        Some(("+", clock)) => (1, clock),
        Some(("-", clock)) => (-1, clock),
        None if zone.is_empty() => return Err(MomentError::Zone),
        _ => return Err(MomentError::Form),
    };
    let (hours, minutes) = clock.split_once(':').ok_or(MomentError::Form)?;
    let two = |text: &str| digits(text).filter(|_| text.len() == 2);
    match (two(hours), two(minutes)) {
        (Some(hours @ 0..24), Some(minutes @ 0..60)) => {
            Ok(sign * i64::try_from(hours * 3600 + minutes * 60).unwrap_or(0))
        }
        (Some(_), Some(_)) => Err(MomentError::None),
        _ => Err(MomentError::Form),
    }
}

fn digits(text: &str) -> Option<u64> {
    let all = text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

/// The digits behind the point, cut to milliseconds.
fn thousandths(text: &str) -> Option<u64> {
    let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let ms = all.then(|| format!("{text:0<3}"))?;
    digits(ms.get(..3)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_795_887_937_250;

    #[test]
    fn each_form_is_understood() {
        for (text, ms) in [
            ("90s", NOW - 90_000),
            ("1.5h", NOW - 5_400_000),
            ("1d", NOW - 86_400_000),
            ("900d", NOW - 77_760_000_000),
            ("100000d", 0),
            ("0", 0),
            ("1795887937", 1_795_887_937_000),
            ("1795887937.2", 1_795_887_937_200),
            ("1795887937.2509", 1_795_887_937_250),
            ("2026-11-28T17:45:37Z", 1_795_887_937_000),
            ("2026-11-28 17:45:37z", 1_795_887_937_000),
            ("2026-11-28t17:45:37.25Z", NOW),
            ("2026-11-28T18:45:37.250999+01:00", NOW),
            ("2026-11-28T12:15:37-05:30", 1_795_887_937_000),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("1970-01-01T00:00:00+00:01", 0),
            ("0001-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(parse_at(text, NOW), Ok(ms), "{text}");
        }
    }

    #[test]
    fn what_is_none_says_why() {
        for (text, error) in [
            ("", MomentError::Form),
            ("yesterday", MomentError::Form),
            ("-5m", MomentError::Form),
            ("5 m", MomentError::Form),
            ("5.", MomentError::Form),
            (".5", MomentError::Form),
            ("99999999999999999999", MomentError::Form),
            ("2026-11-28", MomentError::Form),
            ("2026-11-28T17:45Z", MomentError::Form),
            ("2026-11-28T17:45:37.Z", MomentError::Form),
            ("2026-11-28T17:45:37+1:00", MomentError::Form),
            ("2026-11-28T17:45:37+0100", MomentError::Form),
            ("2026-11-28T17:45:37 UTC", MomentError::Form),
            ("2026-11-28T17:45:3\u{e9}Z", MomentError::Form),
            ("2026-11-28T17:45:37", MomentError::Zone),
            ("2026-11-28T17:45:37.5", MomentError::Zone),
            ("2026-02-29T00:00:00Z", MomentError::None),
            ("2026-11-28T24:00:00Z", MomentError::None),
            ("2026-11-28T17:45:61Z", MomentError::None),
            ("2026-11-28T17:45:37+24:00", MomentError::None),
        ] {
            assert_eq!(parse_at(text, NOW), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}|[0-9TZ:.+-]{0,40}") {
            let _ = parse_at(&text, NOW);
        }
    }
}
