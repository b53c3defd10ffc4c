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
}
