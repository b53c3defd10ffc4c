//! Durations as people write them: `500ms`, `1s`, `1.5m`, `2h`, `3d`.

use std::time::Duration;

/// What is wrong with a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a duration is a number with ms, s, m, h or d, such as 500ms or 1.5h")]
pub(crate) struct DurationError;

/// The longest duration: a thousand years, so that no sum overflows.
const SECONDS_MAX: f64 = 1000.0 * 366.0 * 86_400.0;

/// Parses a duration. A bare 0 is allowed; any other number needs its unit.
///
/// # Errors
/// [`DurationError`].
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| DurationError)?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        "" if number == 0.0 => 0.0,
        _ => return Err(DurationError),
    };
    if seconds > SECONDS_MAX {
        return Err(DurationError);
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A duration as a person would write it: the largest unit that it is a whole number of,
/// or what can be seen of it.
pub(crate) fn spoken(time: Duration) -> String {
    let ms = time.as_millis();
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m")] {
        if ms >= unit && ms.is_multiple_of(unit) {
            return format!("{}{name}", ms / unit);
        }
    }
    match ms {
        0..1000 => format!("{ms}ms"),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        1000..60_000 => format!("{:.1}s", time.as_secs_f64()),
        60_000..3_600_000 => format!("{}m{}s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{}h{}m", ms / 3_600_000, ms / 60_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        let ms = |text| parse(text).map(|time| time.as_millis());
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("1s"), Ok(1000));
        assert_eq!(ms("1.5m"), Ok(90_000));
        assert_eq!(ms("2h"), Ok(7_200_000));
        assert_eq!(ms("1d"), Ok(86_400_000));
        assert_eq!(ms("0"), Ok(0));
        for wrong in [
            "",
            "5",
            "s",
            "-1s",
            "1x",
            "1 s",
            "1e9d",
            "99999999999999d",
            "1.2.3s",
            "NaNs",
        ] {
            assert_eq!(parse(wrong), Err(DurationError), "{wrong}");
        }
    }

    #[test]
    fn durations_as_people_say_them() {
        for (text, said) in [
            ("600s", "10m"),
            ("2h", "2h"),
            ("90m", "90m"),
            ("20s", "20s"),
            ("2.34s", "2.3s"),
            ("40ms", "40ms"),
            ("61.5s", "1m1s"),
            ("48h", "2d"),
        ] {
            assert_eq!(spoken(parse(text).unwrap()), said);
        }
    }
}
