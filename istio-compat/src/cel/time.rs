//! Times and spans of CEL: nanoseconds as integers, since 1970 or as they are, so that both may be negative. How they are read, taken
//! apart and printed. Pure functions, on workers. Source: the CEL specification, RFC 3339, absl's `FormatDuration`.

use std::fmt::Write;
use std::time::SystemTime;

const SECOND: i128 = 1_000_000_000;
const DAY: i128 = 86_400 * SECOND;
/// From the year 1 to the end of the year 9999, the times of protobuf.
const TIMES: std::ops::RangeInclusive<i128> = -62_135_596_800 * SECOND..=253_402_300_799 * SECOND + 999_999_999;
/// Ten thousand years, the spans of protobuf.
const SPAN: i128 = 315_576_000_000 * SECOND;

/// A time that can be told; none if it is out of range.
pub fn valid_time(nanos: i128) -> Option<i128> {
    TIMES.contains(&nanos).then_some(nanos)
}
/// A span that can be told; none if it is out of range.
pub fn valid_span(nanos: i128) -> Option<i128> {
    (nanos.abs() <= SPAN).then_some(nanos)
}

/// Nanoseconds since 1970.
pub fn since_epoch(time: SystemTime) -> i128 {
    let nanos = |d: std::time::Duration| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => nanos(after),
        Err(before) => -nanos(before.duration()),
    }
}

/// Reads `1h30m`, `-1.5s`, `10ms`, `0`.
pub fn parse_span(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let unit: i128 = match unit {
            "h" => 3600 * SECOND,
            "m" => 60 * SECOND,
            "s" => SECOND,
            "ms" => 1_000_000,
            "us" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || whole.len() > 18 || fraction.contains('.') {
            return None;
        }
        // Digits below a nanosecond are of no account.
        let fraction = fraction.get(..fraction.len().min(15))?;
        let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<i128>().ok() };
        let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        total += parse(whole)? * unit + parse(fraction)? * unit / scale;
        rest = tail;
    }
    valid_span(sign * total)
}

/// Days since 1970 of a civil date (proleptic Gregorian), counted in eras of 400 years that begin in March.
fn days(year: i128, month: i128, day: i128) -> i128 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// A moment in the calendar.
struct Civil {
    year: i128,
    month: i128,
    day: i128,
    /// Nanoseconds of the day.
    rest: i128,
}

fn civil(nanos: i128) -> Civil {
    let z = nanos.div_euclid(DAY) + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    Civil {
        year: year_of_era + era * 400 + i128::from(month <= 2),
        month,
        day: of_year - (153 * shifted + 2) / 5 + 1,
        rest: nanos.rem_euclid(DAY),
    }
}

/// Reads RFC 3339: `2024-01-02T03:04:05.678+02:00`.
pub fn parse_time(text: &str) -> Option<i128> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i128>().ok()).flatten()
    };
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if !marks.iter().all(|(at, mark)| bytes.get(*at) == Some(mark)) || !matches!(bytes.get(10), Some(b'T' | b't')) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i128::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix('.') {
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (digits, tail) = after.split_at(end);
        if digits.is_empty() || digits.len() > 9 {
            return None;
        }
        fraction = digits.parse::<i128>().ok()? * 10_i128.pow(9 - u32::try_from(digits.len()).ok()?);
        rest = tail;
    }
    let offset = match rest {
        "Z" | "z" => 0,
        _ => zone(rest).filter(|_| rest.starts_with(['+', '-']))?,
    };
    valid_time(days(year, month, day) * DAY + (hour * 3600 + minute * 60 + second) * SECOND + fraction - offset)
}

/// Nanoseconds that the clock of a time zone is ahead: `UTC`, or an offset such as `+02:00`. None for names: there is no zone database.
pub fn zone(name: &str) -> Option<i128> {
    if matches!(name, "" | "UTC" | "Z" | "GMT") {
        return Some(0);
    }
    let (sign, rest) = match name.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, name.strip_prefix('+').unwrap_or(name)),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let part = |text: &str, limit: i128| {
        let valid = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        valid.then(|| text.parse::<i128>().ok()).flatten().filter(|n| *n <= limit)
    };
    Some(sign * (part(hours, 23)? * 3600 + part(minutes, 59)? * 60) * SECOND)
}

/// What of a time or a span is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    FullYear,
    Month,
    Date,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

impl Part {
    /// By the name of its function.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "getFullYear" => Self::FullYear,
            "getMonth" => Self::Month,
            "getDate" => Self::Date,
            "getDayOfMonth" => Self::DayOfMonth,
            "getDayOfWeek" => Self::DayOfWeek,
            "getDayOfYear" => Self::DayOfYear,
            "getHours" => Self::Hours,
            "getMinutes" => Self::Minutes,
            "getSeconds" => Self::Seconds,
            "getMilliseconds" => Self::Milliseconds,
            _ => return None,
        })
    }
    /// Of a time, in the zone that is `ahead`.
    pub fn of_time(self, nanos: i128, ahead: i128) -> Option<i64> {
        let nanos = nanos.checked_add(ahead)?;
        let at = civil(nanos);
        i64::try_from(match self {
            Self::FullYear => at.year,
            Self::Month => at.month - 1,
            Self::Date => at.day,
            Self::DayOfMonth => at.day - 1,
            // The first of January 1970 was a Thursday.
            Self::DayOfWeek => (nanos.div_euclid(DAY) + 4).rem_euclid(7),
            Self::DayOfYear => nanos.div_euclid(DAY) - days(at.year, 1, 1),
            Self::Hours => at.rest / (3600 * SECOND),
            Self::Minutes => at.rest / (60 * SECOND) % 60,
            Self::Seconds => at.rest / SECOND % 60,
            Self::Milliseconds => at.rest / 1_000_000 % 1000,
        })
        .ok()
    }
    /// Of a span: the whole of it, but milliseconds beyond seconds. None for what a span has not.
    pub fn of_span(self, nanos: i128) -> Option<i64> {
        i64::try_from(match self {
            Self::Hours => nanos / (3600 * SECOND),
            Self::Minutes => nanos / (60 * SECOND),
            Self::Seconds => nanos / SECOND,
            Self::Milliseconds => nanos / 1_000_000 % 1000,
            _ => return None,
        })
        .ok()
    }
}

/// As absl's `FormatDuration`: `1h2m3.5s`, `-10ms`, `0`.
pub fn print_span(nanos: i128) -> String {
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let part = |unit: u128, name: &str| {
        let text = format!("{}.{:09}", nanos / unit, (nanos % unit) * 1_000_000_000 / unit);
        format!("{sign}{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match nanos {
        0 => "0".to_string(),
        1..1_000 => part(1, "ns"),
        1_000..1_000_000 => part(1_000, "us"),
        1_000_000..1_000_000_000 => part(1_000_000, "ms"),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let mut out = sign.to_string();
            if seconds >= 3600 {
                let _ = write!(out, "{}h", seconds / 3600);
            }
            if seconds % 3600 >= 60 {
                let _ = write!(out, "{}m", seconds % 3600 / 60);
            }
            let (seconds, rest) = (seconds % 60, nanos % 1_000_000_000);
            if seconds > 0 || rest > 0 {
                let text = format!("{seconds}.{rest:09}");
                let _ = write!(out, "{}s", text.trim_end_matches('0').trim_end_matches('.'));
            }
            out
        }
    }
}

/// RFC 3339 in UTC with as many fractional digits as there are, the year as absl prints it: without zeros in front.
pub fn print_time(nanos: i128) -> String {
    let Civil { year, month, day, rest } = civil(nanos);
    let (seconds, rest) = (rest / SECOND, rest % SECOND);
    let fraction = format!(".{rest:09}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}+00:00", seconds / 3600, seconds % 3600 / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_printed() {
        for (text, printed) in [
            ("10ms", "10ms"),
            ("3661.5s", "1h1m1.5s"),
            ("1h", "1h"),
            ("0", "0"),
            ("-1.5s", "-1.5s"),
            ("1h30m", "1h30m"),
            ("24h", "24h"),
            ("1500us", "1.5ms"),
            ("7ns", "7ns"),
        ] {
            assert_eq!(parse_span(text).map(print_span).as_deref(), Some(printed), "{text}");
        }
        for text in ["", "1d", "5", "s", "-", "1.2.3s", "99999999999999999999h", "9999999999999h", "1s2"] {
            assert_eq!(parse_span(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_read_and_printed() {
        for (text, printed) in [
            ("2024-02-29T12:34:56.25Z", "2024-02-29T12:34:56.25+00:00"),
            ("2024-01-02T03:04:05+02:00", "2024-01-02T01:04:05+00:00"),
            ("1969-12-31T23:59:59Z", "1969-12-31T23:59:59+00:00"),
            ("0001-01-01T00:00:00Z", "1-01-01T00:00:00+00:00"),
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999+00:00"),
        ] {
            assert_eq!(parse_time(text).map(print_time).as_deref(), Some(printed), "{text}");
        }
        for text in [
            "",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-01-02",
            "2024-01-02T03:04:05",
            "2024-01-02T24:00:00Z",
            "0001-01-01T00:00:00+01:00",
            "é024-01-02T03:04:05Z",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn parts_are_told() {
        let at = parse_time("2024-01-02T03:04:05.678Z").unwrap();
        let zone = zone("-08:30").unwrap();
        let parts =
            [("getFullYear", 2024), ("getMonth", 0), ("getDate", 2), ("getDayOfMonth", 1), ("getDayOfWeek", 2), ("getDayOfYear", 1)];
        for (name, value) in parts.into_iter().chain([("getHours", 3), ("getMinutes", 4), ("getSeconds", 5), ("getMilliseconds", 678)]) {
            assert_eq!(Part::named(name).unwrap().of_time(at, 0), Some(value), "{name}");
        }
        assert_eq!((Part::Hours.of_time(at, zone), Part::DayOfYear.of_time(at, zone)), (Some(18), Some(0)));
        assert_eq!(Part::DayOfWeek.of_time(-SECOND, 0), Some(3));
        let span = parse_span("-3661.5s").unwrap();
        assert_eq!(
            (Part::Minutes.of_span(span), Part::Milliseconds.of_span(span), Part::Month.of_span(span)),
            (Some(-61), Some(-500), None)
        );
        assert_eq!((super::zone("Europe/Zurich"), super::zone("+25:00"), super::zone("UTC")), (None, None, Some(0)));
    }
}
