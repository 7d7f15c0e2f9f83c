//! Times in formats: `%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%`. The specifiers are those of Envoy (absl::FormatTime and strftime),
//! compiled once; the default form is cached per second and worker.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// A strftime letter.
    Spec(u8),
    /// `%f`, `%3f`: that many digits of the fraction.
    Fraction(usize),
    /// `%E3S`: seconds with that many digits behind the point; none for as many as needed (`%E*S`).
    Seconds(Option<usize>),
    /// `%E*f`: digits of the fraction without trailing zeros.
    FractionShort,
    /// `%Ez`: `+02:00`.
    OffsetColon,
    /// `%s`: seconds since the epoch.
    Epoch,
}

/// A compiled time format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimeFormat {
    /// Empty for the default, `2026-11-21T09:28:01.321Z` (with numeric offset in local time).
    parts: Box<[Part]>,
    local: bool,
}

/// A moment in civil terms.
struct Civil {
    year: i64,
    /// 1 to 12.
    month: u32,
    /// 1 to 31.
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    nanos: u32,
    /// 0 is Sunday.
    weekday: u32,
    /// 0 to 365.
    yearday: u32,
    /// Seconds east of UTC.
    offset: i64,
    epoch: i64,
}

/// Seconds (may be negative) and nanoseconds since the epoch.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(d) => (i64::try_from(d.as_secs()).unwrap_or(i64::MAX), d.subsec_nanos()),
        Err(e) => {
            let before = e.duration();
            let ceil = before + Duration::from_nanos(999_999_999);
            let seconds = i64::try_from(ceil.as_secs()).unwrap_or(i64::MAX);
            (-seconds, (Duration::from_secs(ceil.as_secs()) - before).subsec_nanos())
        }
    }
}

/// Day number (0 = 1970-01-01) to year, month, day, by the 400-year cycle of the Gregorian calendar counted from March.
fn date(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

impl Civil {
    fn new((epoch, nanos): (i64, u32), offset: i64) -> Self {
        let shifted = epoch.saturating_add(offset);
        let (days, seconds) = (shifted.div_euclid(86_400), shifted.rem_euclid(86_400) as u32);
        let (year, month, day) = date(days);
        const BEFORE: [u32; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let before = BEFORE.get(month as usize - 1).copied().unwrap_or(0) + u32::from(month > 2 && leap(year));
        Self {
            year,
            month,
            day,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            nanos,
            weekday: (days + 4).rem_euclid(7) as u32,
            yearday: before + day - 1,
            offset,
            epoch,
        }
    }
    fn hour12(&self) -> u32 {
        if self.hour.is_multiple_of(12) { 12 } else { self.hour % 12 }
    }
    /// ISO 8601 week and its year.
    fn iso_week(&self) -> (u32, i64) {
        let monday_based = (self.weekday + 6) % 7;
        let week = (i64::from(self.yearday) - i64::from(monday_based) + 10) / 7;
        let weeks_in = |year: i64| {
            let first = (year + (year - 1).div_euclid(4) - (year - 1).div_euclid(100) + (year - 1).div_euclid(400)).rem_euclid(7);
            if first == 4 || (first == 3 && leap(year)) { 53 } else { 52 }
        };
        if week < 1 {
            (weeks_in(self.year - 1), self.year - 1)
        } else if week > i64::from(weeks_in(self.year)) {
            (1, self.year + 1)
        } else {
            (week as u32, self.year)
        }
    }
    fn offset(&self, out: &mut Vec<u8>, colon: &str) {
        let minutes = self.offset.abs() / 60;
        let sign = if self.offset < 0 { '-' } else { '+' };
        let _ = write!(out, "{sign}{:02}{colon}{:02}", minutes / 60, minutes % 60);
    }
    fn spec(&self, spec: u8, out: &mut Vec<u8>) {
        let day = DAYS.get(self.weekday as usize).copied().unwrap_or_default();
        let month = MONTHS.get(self.month as usize - 1).copied().unwrap_or_default();
        let short = |s: &'static str| s.get(..3).unwrap_or(s);
        let half = if self.hour < 12 { "AM" } else { "PM" };
        let all = |specs: &str, out: &mut Vec<u8>| {
            for b in specs.bytes() {
                if b.is_ascii_alphabetic() { self.spec(b, out) } else { out.push(b) }
            }
        };
        let _ = match spec {
            b'Y' => write!(out, "{}", self.year),
            b'C' => write!(out, "{:02}", self.year.div_euclid(100)),
            b'y' => write!(out, "{:02}", self.year.rem_euclid(100)),
            b'm' => write!(out, "{:02}", self.month),
            b'd' => write!(out, "{:02}", self.day),
            b'e' => write!(out, "{:2}", self.day),
            b'H' => write!(out, "{:02}", self.hour),
            b'k' => write!(out, "{:2}", self.hour),
            b'I' => write!(out, "{:02}", self.hour12()),
            b'l' => write!(out, "{:2}", self.hour12()),
            b'M' => write!(out, "{:02}", self.minute),
            b'S' => write!(out, "{:02}", self.second),
            b'j' => write!(out, "{:03}", self.yearday + 1),
            b'a' => write!(out, "{}", short(day)),
            b'A' => write!(out, "{day}"),
            b'b' | b'h' => write!(out, "{}", short(month)),
            b'B' => write!(out, "{month}"),
            b'p' => write!(out, "{half}"),
            b'P' => write!(out, "{}", half.to_ascii_lowercase()),
            b'u' => write!(out, "{}", if self.weekday == 0 { 7 } else { self.weekday }),
            b'w' => write!(out, "{}", self.weekday),
            b'U' => write!(out, "{:02}", (self.yearday + 7 - self.weekday) / 7),
            b'W' => write!(out, "{:02}", (self.yearday + 7 - (self.weekday + 6) % 7) / 7),
            b'V' => write!(out, "{:02}", self.iso_week().0),
            b'G' => write!(out, "{}", self.iso_week().1),
            b'g' => write!(out, "{:02}", self.iso_week().1.rem_euclid(100)),
            b's' => write!(out, "{}", self.epoch),
            b'n' => writeln!(out),
            b't' => write!(out, "\t"),
            b'z' => {
                self.offset(out, "");
                Ok(())
            }
            b'c' => {
                all("a b e H:M:S Y", out);
                Ok(())
            }
            b'D' | b'x' => {
                all("m/d/y", out);
                Ok(())
            }
            b'F' => {
                all("Y-m-d", out);
                Ok(())
            }
            b'T' | b'X' => {
                all("H:M:S", out);
                Ok(())
            }
            b'R' => {
                all("H:M", out);
                Ok(())
            }
            b'r' => {
                all("I:M:S p", out);
                Ok(())
            }
            other => out.write_all(&[b'%', other]),
        };
    }
}

fn digits(out: &mut Vec<u8>, nanos: u32, count: usize) {
    let mut buffer = [b'0'; 9];
    let mut rest = nanos;
    for place in buffer.iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(buffer.get(..count.min(9)).unwrap_or(&buffer));
    out.extend(std::iter::repeat_n(b'0', count.saturating_sub(9)));
}

/// How many digits of the fraction are not trailing zeros.
fn needed(nanos: u32) -> usize {
    (0..9).rev().find(|place| !(nanos / 10_u32.pow(8 - *place as u32)).is_multiple_of(10)).map_or(0, |place| place + 1)
}

thread_local! {
    /// The last second that the default format was asked for, and its text up to the seconds.
    static LAST: Cell<(i64, [u8; 20])> = const { Cell::new((i64::MIN, [0; 20])) };
}

fn default_utc(out: &mut Vec<u8>, (epoch, nanos): (i64, u32)) {
    let (second, mut text) = LAST.get();
    if second != epoch {
        let c = Civil::new((epoch, nanos), 0);
        let mut place = text.as_mut_slice();
        let _ = write!(place, "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.", c.year, c.month, c.day, c.hour, c.minute, c.second);
        if (0..=9999).contains(&c.year) {
            LAST.set((epoch, text));
        }
    }
    out.extend_from_slice(&text);
    digits(out, nanos, 3);
    out.push(b'Z');
}

impl TimeFormat {
    /// Compiles `format`; none or empty is the default. The error says what is wrong.
    pub fn compile(format: Option<&str>, local: bool) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = format.unwrap_or_default();
        if rest.contains('\n') || rest.contains("%n") {
            return Err("a time format must not contain a newline".to_string());
        }
        while let Some(at) = rest.find('%') {
            let (before, from) = rest.split_at(at);
            text.push_str(before);
            let behind = from.get(1..).unwrap_or_default();
            let (part, taken) = Self::spec(behind);
            match part {
                Some(part) => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text).into()));
                    }
                    parts.push(part);
                }
                None => text.push('%'),
            }
            rest = behind.get(taken..).unwrap_or_default();
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        Ok(Self { parts: parts.into(), local })
    }
    /// The specifier behind a `%`, and its length; none for a percent sign that stands for itself.
    fn spec(text: &str) -> (Option<Part>, usize) {
        let bytes = text.as_bytes();
        match bytes {
            [] => (None, 0),
            [b'%', ..] => (None, 1),
            [b's', ..] => (Some(Part::Epoch), 1),
            [b'f', ..] => (Some(Part::Fraction(9)), 1),
            [n @ b'1'..=b'9', b'f', ..] => (Some(Part::Fraction(usize::from(n - b'0'))), 2),
            [b'E', b'z', ..] => (Some(Part::OffsetColon), 2),
            [b'E', b'*', b'S', ..] => (Some(Part::Seconds(None)), 3),
            [b'E', b'*', b'f', ..] => (Some(Part::FractionShort), 3),
            [b'E', n @ b'0'..=b'9', b'S', ..] => (Some(Part::Seconds(Some(usize::from(n - b'0')))), 3),
            [b'E', n @ b'0'..=b'9', b'f', ..] => (Some(Part::Fraction(usize::from(n - b'0'))), 3),
            [b'E', b'4', b'Y', ..] => (Some(Part::Spec(b'Y')), 3),
            [c, ..] if c.is_ascii_alphabetic() => (Some(Part::Spec(*c)), 1),
            _ => (None, 0),
        }
    }
    /// Appends `time`.
    pub fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let moment = since_epoch(time);
        if self.parts.is_empty() && !self.local {
            return default_utc(out, moment);
        }
        let zone = self.local.then(|| zone(moment.0));
        let civil = Civil::new(moment, zone.as_ref().map_or(0, |z| z.0));
        if self.parts.is_empty() {
            let c = &civil;
            let _ = write!(out, "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.", c.year, c.month, c.day, c.hour, c.minute, c.second);
            digits(out, c.nanos, 3);
            return civil.offset(out, "");
        }
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Spec(b'Z') => out.extend_from_slice(zone.as_ref().map_or("UTC", |z| z.1.as_str()).as_bytes()),
                Part::Spec(spec) => civil.spec(*spec, out),
                Part::Fraction(count) => digits(out, civil.nanos, *count),
                Part::FractionShort => digits(out, civil.nanos, needed(civil.nanos).max(1)),
                Part::Seconds(count) => {
                    civil.spec(b'S', out);
                    let count = count.unwrap_or_else(|| needed(civil.nanos));
                    if count > 0 {
                        out.push(b'.');
                        digits(out, civil.nanos, count);
                    }
                }
                Part::OffsetColon => civil.offset(out, ":"),
                Part::Epoch => civil.spec(b's', out),
            }
        }
    }
}

/// Offset and abbreviation of the system's time zone at `epoch`.
fn zone(epoch: i64) -> (i64, String) {
    static ZONE: std::sync::OnceLock<jiff::tz::TimeZone> = std::sync::OnceLock::new();
    let Ok(timestamp) = jiff::Timestamp::from_second(epoch) else { return (0, "UTC".to_string()) };
    let info = ZONE.get_or_init(jiff::tz::TimeZone::system).to_offset_info(timestamp);
    (i64::from(info.offset().seconds()), info.abbreviation().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(format: Option<&str>, time: SystemTime) -> String {
        let mut out = Vec::new();
        TimeFormat::compile(format, false).unwrap().write(time, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// The expected text is Envoy 1.40's for the same moment.
    #[test]
    fn specifiers_are_those_of_envoy() {
        let time = UNIX_EPOCH + Duration::new(1_795_253_595, 242_273_000);
        let format =
            "%f %3f %1f %s %e %E3S %Ez %H:%M:%S.%6f %y %a %A %b %B %p %I %j %c %x %X %Z %% %D %F %T %R %u %w %U %V %G %h %C %r %k %l %P";
        let expected = "242273000 242 2 1795253595 21 15.242 +00:00 09:33:15.242273 26 Sat Saturday Nov November AM 09 325 \
            Sat Nov 21 09:33:15 2026 11/21/26 09:33:15 UTC % 11/21/26 2026-11-21 09:33:15 09:33 6 6 46 47 2026 Nov 20 09:33:15 AM  9  9 am";
        assert_eq!(shown(Some(format), time), expected);
        assert_eq!(shown(Some("%E4S|%E*S|%E*f|%9f|%Q"), time), "15.2422|15.242273|242273|242273000|%Q");
        assert_eq!(shown(Some("%Y/%m/%dT%H:%M:%S%z"), time), "2026/11/21T09:33:15+0000");
        for format in [None, Some("")] {
            assert_eq!(shown(format, time), "2026-11-21T09:33:15.242Z");
        }
        assert!(TimeFormat::compile(Some("%n"), false).is_err());
    }

    #[test]
    fn civil_dates_agree_with_jiff() {
        for seconds in (-4_000_000_000_i64..8_000_000_000).step_by(7_654_321) {
            let time = if seconds < 0 {
                UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs())
            } else {
                UNIX_EPOCH + Duration::from_secs(seconds as u64)
            };
            let expected = jiff::Timestamp::from_second(seconds).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
            let format = "%Y-%m-%d %H:%M:%S %j %G-%V %U %W %a";
            assert_eq!(shown(Some(format), time), expected.strftime(format).to_string(), "{seconds}");
        }
        let before = UNIX_EPOCH - Duration::from_millis(1500);
        assert_eq!(shown(None, before), "1969-12-31T23:59:58.500Z");
    }
}
