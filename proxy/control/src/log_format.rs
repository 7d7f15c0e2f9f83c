//! spdlog patterns (`--log-format`, `application_log_config.log_format.text_format`) and Envoy's JSON log lines, compiled once.
//! Used by the logger on every thread.

use crate::logger::Level;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use nuncio_proto::Struct;
use std::fmt::Write;

/// One log line before it is text.
#[derive(Debug)]
pub struct Line<'a> {
    pub level: Level,
    /// Component.
    pub name: &'a str,
    pub message: &'a str,
    /// Source file, empty if unknown.
    pub file: &'a str,
    pub line: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A flag, with the minimal width (negative: left-aligned; spdlog's `%-8l`).
    Flag(char, i32),
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    pieces: Vec<Piece>,
    /// `--log-format-escaped`: C-style escapes in the message.
    escaped: bool,
}

impl Default for Pattern {
    fn default() -> Self {
        Self { pieces: parse("[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v").unwrap_or_default(), escaped: false }
    }
}

const FLAGS: &str = "vnlLtPYmdHMSTefFzEsg#!@yCaAbBcDIprRXxiju_*o";

fn parse(pattern: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let left = chars.next_if_eq(&'-').is_some();
        chars.next_if_eq(&'=');
        let mut width = 0i32;
        while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
            width = (width * 10 + d as i32).min(256);
            chars.next();
        }
        match chars.next() {
            Some('%') => text.push('%'),
            // Where colours would begin and end: there are none.
            Some('^' | '$') => {}
            Some(flag) if FLAGS.contains(flag) => {
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(Piece::Flag(flag, if left { -width } else { width }));
            }
            // spdlog prints what it does not know as it is.
            Some(other) => {
                text.push('%');
                text.push(other);
            }
            None => return Err(format!("log format '{pattern}' ends with %")),
        }
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    Ok(pieces)
}

impl Pattern {
    /// Compiles a spdlog pattern.
    pub fn compile(pattern: &str, escaped: bool) -> Result<Self, String> {
        Ok(Self { pieces: parse(pattern)?, escaped })
    }
    /// Compiles `log_format.json_format`: a JSON object whose string values are patterns. Envoy refuses `%v` and `%_` there, because they are
    /// not escaped; `%j` is the message as JSON text.
    pub fn compile_json(format: &Struct) -> Result<Self, String> {
        let mut template = String::from("{");
        for (i, (key, value)) in format.fields.iter().enumerate() {
            let Some(prost_types::value::Kind::StringValue(value)) = &value.kind else {
                return Err(format!("json_format value of '{key}' is not a string"));
            };
            if value.contains("%v") || value.contains("%_") {
                return Err("%v and %_ cannot be used in json_format; use %j".to_string());
            }
            let _ = write!(template, "{}{}:{}", if i > 0 { "," } else { "" }, quote(key), quote(value));
        }
        template.push('}');
        Self::compile(&template, false)
    }
    /// Appends one line, without newline.
    pub fn format(&self, line: &Line<'_>, out: &mut String) {
        let now = Zoned::now();
        let at = out.len();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Flag(flag, 0) => self.flag(*flag, line, &now, out),
                Piece::Flag(flag, width) => {
                    let start = out.len();
                    self.flag(*flag, line, &now, out);
                    let missing = (width.unsigned_abs() as usize).saturating_sub(out.len() - start);
                    let at = if *width < 0 { out.len() } else { start };
                    out.insert_str(at, &" ".repeat(missing));
                }
            }
        }
        debug_assert!(at <= out.len());
    }
    fn flag(&self, flag: char, line: &Line<'_>, now: &Zoned, out: &mut String) {
        let t: DateTime = now.datetime();
        let nanos = t.subsec_nanosecond();
        let result = match flag {
            'v' if self.escaped => {
                escape(line.message, out);
                Ok(())
            }
            'v' | '*' => out.write_str(line.message),
            // Envoy: new lines become \n, so that a record stays one line.
            '_' => out.write_str(&line.message.replace('\n', "\\n")),
            'j' => {
                let quoted = quote(line.message);
                out.write_str(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default())
            }
            'n' => out.write_str(line.name),
            'l' => out.write_str(line.level.name()),
            'L' => write!(out, "{}", line.level.name().chars().next().unwrap_or('?').to_ascii_uppercase()),
            't' => THREAD.with(|t| out.write_str(t)),
            'P' => write!(out, "{}", std::process::id()),
            'Y' => write!(out, "{:04}", t.year()),
            'y' | 'C' => write!(out, "{:02}", t.year().rem_euclid(100)),
            'm' => write!(out, "{:02}", t.month()),
            'd' => write!(out, "{:02}", t.day()),
            'H' => write!(out, "{:02}", t.hour()),
            'I' => write!(out, "{:02}", hour12(t.hour())),
            'M' => write!(out, "{:02}", t.minute()),
            'S' => write!(out, "{:02}", t.second()),
            'T' | 'X' => write!(out, "{:02}:{:02}:{:02}", t.hour(), t.minute(), t.second()),
            'R' => write!(out, "{:02}:{:02}", t.hour(), t.minute()),
            'r' => write!(out, "{:02}:{:02}:{:02} {}", hour12(t.hour()), t.minute(), t.second(), half(t.hour())),
            'p' => out.write_str(half(t.hour())),
            'D' | 'x' => write!(out, "{:02}/{:02}/{:02}", t.month(), t.day(), t.year().rem_euclid(100)),
            'a' | 'A' | 'b' | 'B' | 'c' => {
                let spec = match flag {
                    'c' => "%a %b %e %H:%M:%S %Y".to_string(),
                    other => format!("%{other}"),
                };
                match jiff::fmt::strtime::format(spec.as_str(), now) {
                    Ok(text) => out.write_str(&text),
                    Err(_) => Ok(()),
                }
            }
            'e' => write!(out, "{:03}", nanos / 1_000_000),
            'f' => write!(out, "{:06}", nanos / 1_000),
            'F' => write!(out, "{nanos:09}"),
            'E' => write!(out, "{}", now.timestamp().as_second()),
            'z' => {
                let seconds = now.offset().seconds();
                let sign = if seconds < 0 { '-' } else { '+' };
                write!(out, "{sign}{:02}:{:02}", seconds.abs() / 3600, seconds.abs() / 60 % 60)
            }
            's' => out.write_str(line.file.rsplit('/').next().unwrap_or_default()),
            'g' => out.write_str(line.file),
            '#' => write!(out, "{}", line.line),
            '@' => write!(out, "{}:{}", line.file, line.line),
            // Function names and elapsed times are not kept.
            _ => Ok(()),
        };
        // Writing to a String does not fail.
        let _ = result;
    }
}

thread_local! {
    static THREAD: String = std::fs::read_link("/proc/thread-self")
        .ok()
        .and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        .unwrap_or_else(|| std::process::id().to_string());
}

fn hour12(hour: i8) -> i8 {
    if hour % 12 == 0 { 12 } else { hour % 12 }
}
fn half(hour: i8) -> &'static str {
    if hour < 12 { "AM" } else { "PM" }
}

fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_string())
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
}

/// An RFC 3339 timestamp of now, for `last_updated`.
pub fn now_rfc3339() -> String {
    Timestamp::now().to_zoned(TimeZone::UTC).timestamp().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::Value;
    use prost_types::value::Kind;

    fn text(pattern: &str) -> String {
        let mut out = String::new();
        let line = Line { level: Level::Warning, name: "config", message: "a \"b\"\nc", file: "src/x/y.rs", line: 7 };
        Pattern::compile(pattern, false).unwrap().format(&line, &mut out);
        out
    }

    #[test]
    fn flags_of_envoy_and_istio() {
        assert_eq!(text("[%l][%n] [%g:%#] %v"), "[warning][config] [src/x/y.rs:7] a \"b\"\nc");
        assert_eq!(text("%L %s %_ 100%% %^%$"), "W y.rs a \"b\"\\nc 100% ");
        assert_eq!(text("%j|%9l|%-9l|"), "a \\\"b\\\"\\nc|  warning|warning  |");
        let stamp = text("%Y-%m-%dT%T.%fZ");
        assert!(stamp.len() == 27 && stamp.parse::<Timestamp>().is_ok(), "{stamp}");
    }

    #[test]
    fn json_lines_are_json() {
        let field = |k: &str, v: &str| (k.to_string(), Value { kind: Some(Kind::StringValue(v.to_string())) });
        let format = Struct { fields: [field("level", "%l"), field("msg", "%j"), field("time", "%Y-%m-%dT%T.%fZ")].into() };
        let mut out = String::new();
        let line = Line { level: Level::Info, name: "main", message: "say \"hi\"", file: "", line: 0 };
        Pattern::compile_json(&format).unwrap().format(&line, &mut out);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((json["level"].as_str(), json["msg"].as_str()), (Some("info"), Some("say \"hi\"")));
        let bad = Struct { fields: [field("msg", "%v")].into() };
        assert!(Pattern::compile_json(&bad).is_err());
    }
}
