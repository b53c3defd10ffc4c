//! `expiry-time=`: the moment at which a grant ends.
//!
//! Owns the forms `YYYYMMDD`, `YYYYMMDDHHMM` and `YYYYMMDDHHMMSS`, each with or without `Z` (or `UTC`). Without
//! it the time is the server's local time, and this crate knows no time zone: the caller converts.

/// Which clock a time is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// UTC.
    Utc,
    /// The local time of the machine that reads the file.
    Local,
}

/// A date and time as it is written; every field is within its range, February has its days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// 1 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

/// The moment after which a grant does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// As it is written.
    pub civil: Civil,
    /// What it is meant for.
    pub zone: Zone,
}

impl Expiry {
    /// Reads a time; `None` if it is malformed or no date.
    pub fn parse(text: &[u8]) -> Option<Expiry> {
        let text = std::str::from_utf8(text).ok()?;
        let upper = text.to_ascii_uppercase();
        let (digits, zone) = match upper.strip_suffix('Z').or(upper.strip_suffix("UTC")) {
            Some(digits) => (digits, Zone::Utc),
            None => (upper.as_str(), Zone::Local),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) || ![8, 12, 14].contains(&digits.len())
        {
            return None;
        }
        let field = |from: usize, to: usize| match digits.get(from..to) {
            Some(text) => text.parse::<u16>().ok(),
            None => Some(0),
        };
        let small = |from: usize| u8::try_from(field(from, from + 2)?).ok();
        let civil = Civil {
            year: field(0, 4)?,
            month: small(4)?,
            day: small(6)?,
            hour: small(8)?,
            minute: small(10)?,
            second: small(12)?,
        };
        civil.is_valid().then_some(Expiry { civil, zone })
    }

    /// The moment in seconds since 1970, UTC; `local_to_unix` is asked for local times.
    pub fn unix(&self, local_to_unix: impl Fn(&Civil) -> Option<i64>) -> Option<i64> {
        match self.zone {
            Zone::Utc => Some(self.civil.utc_to_unix()),
            Zone::Local => local_to_unix(&self.civil),
        }
    }
}

impl Civil {
    /// Seconds since 1970 if it is meant as UTC, without leap seconds as time(2) counts.
    pub fn utc_to_unix(&self) -> i64 {
        let year = i64::from(self.year);
        let before = year - 1;
        let leap_days = before / 4 - before / 100 + before / 400;
        let months: i64 = (1..self.month)
            .map(|month| i64::from(days_in(self.year, month)))
            .sum();
        // 719,162 days lie between the first day of the year 1 and that of 1970.
        let days = before * 365 + leap_days + months + i64::from(self.day) - 1 - 719_162;
        let minutes = (days * 24 + i64::from(self.hour)) * 60 + i64::from(self.minute);
        minutes * 60 + i64::from(self.second)
    }

    fn is_valid(&self) -> bool {
        self.year >= 1
            && (1..=12).contains(&self.month)
            && (1..=days_in(self.year, self.month)).contains(&self.day)
            && self.hour <= 23
            && self.minute <= 59
            && self.second <= 59
    }
}

fn days_in(year: u16, month: u8) -> u8 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    }
}
