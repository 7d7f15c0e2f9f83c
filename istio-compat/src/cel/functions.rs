//! The functions of CEL: found by name when an expression is compiled, called on workers.
//! Source: the CEL specification's standard definitions and the string functions of Envoy's `cel_config`.

use super::eval::{Cx, eval};
use super::parser::{Expr, ParseError};
use super::time::{self, Part};
use super::value::{Failed, Value};
use std::borrow::Cow;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Size,
    String,
    Int,
    Uint,
    Double,
    Bool,
    Bytes,
    Duration,
    Timestamp,
    Type,
    Dyn,
    Contains,
    StartsWith,
    EndsWith,
    Matches,
    Part(Part),
    LowerAscii,
    UpperAscii,
    Trim,
    Reverse,
    CharAt,
    Split,
    Join,
    Replace,
    Substring,
    IndexOf,
    LastIndexOf,
}

/// The function `name` and how many arguments it takes, a method's object included.
fn find(name: &str, method: bool) -> Option<(Function, std::ops::RangeInclusive<usize>)> {
    let free = match name {
        "size" => Function::Size,
        "matches" => return Some((Function::Matches, 2..=2)),
        _ if method => return find_method(name),
        "string" => Function::String,
        "int" => Function::Int,
        "uint" => Function::Uint,
        "double" => Function::Double,
        "bool" => Function::Bool,
        "bytes" => Function::Bytes,
        "duration" => Function::Duration,
        "timestamp" => Function::Timestamp,
        "type" => Function::Type,
        "dyn" => Function::Dyn,
        _ => return None,
    };
    Some((free, 1..=1))
}

fn find_method(name: &str) -> Option<(Function, std::ops::RangeInclusive<usize>)> {
    Some(match name {
        "contains" => (Function::Contains, 2..=2),
        "startsWith" => (Function::StartsWith, 2..=2),
        "endsWith" => (Function::EndsWith, 2..=2),
        "lowerAscii" => (Function::LowerAscii, 1..=1),
        "upperAscii" => (Function::UpperAscii, 1..=1),
        "trim" => (Function::Trim, 1..=1),
        "reverse" => (Function::Reverse, 1..=1),
        "charAt" => (Function::CharAt, 2..=2),
        "split" => (Function::Split, 2..=3),
        "join" => (Function::Join, 1..=2),
        "replace" => (Function::Replace, 3..=4),
        "substring" => (Function::Substring, 2..=3),
        "indexOf" => (Function::IndexOf, 2..=3),
        "lastIndexOf" => (Function::LastIndexOf, 2..=3),
        _ => (Function::Part(Part::named(name)?), 1..=2),
    })
}

/// A call of `name`; `arguments` begin with the object if it is a method.
pub fn compile(at: usize, name: &str, mut arguments: Vec<Expr>, method: bool) -> Result<Expr, ParseError> {
    let Some((function, count)) = find(name, method) else {
        return Err(ParseError::unsupported(at, format!("function {name}()")));
    };
    if !count.contains(&arguments.len()) {
        let own = usize::from(method);
        let (least, most) = (count.start().saturating_sub(own), count.end().saturating_sub(own));
        let wanted = if least == most { least.to_string() } else { format!("{least} or {most}") };
        return Err(ParseError::new(at, format!("{name}() takes {wanted} argument(s)")));
    }
    if let (Function::Part(_), Some(Expr::Str(zone))) = (function, arguments.get(1))
        && time::zone(zone).is_none()
    {
        return Err(ParseError::unsupported(
            at,
            format!("the time zone {zone:?} (there is no zone database: use an offset such as +02:00)"),
        ));
    }
    if function == Function::Matches {
        let Some(Expr::Str(pattern)) = arguments.pop() else {
            return Err(ParseError::unsupported(at, "matches() with a pattern that is not a constant".to_string()));
        };
        let regex = regex::Regex::new(&pattern).map_err(|e| ParseError::new(at, format!("the pattern {pattern:?} ({e})")))?;
        let of = arguments.pop().unwrap_or(Expr::Null);
        return Ok(Expr::Matches(Box::new(of), regex));
    }
    Ok(Expr::Call(function, arguments))
}

/// Calls a function; `cx` pays for the length of texts, so that no nesting of macros makes them large.
pub fn call<'a>(function: Function, arguments: &'a [Expr], cx: Cx<'_, 'a>) -> Result<Value<'a>, Failed> {
    let mut values = arguments.iter().map(|a| eval(a, cx));
    let mut next = || values.next().transpose();
    let first = next()?.ok_or(Failed)?;
    cx.pay(first.length())?;
    let value = match (function, next()?, next()?, next()?) {
        (Function::Part(part), zone, None, None) => part_of(part, &first, zone),
        (_, None, None, None) => convert(function, first),
        (_, Some(second), third, fourth) => text(function, &first, &second, third, fourth, cx)?,
        _ => None,
    };
    value.ok_or(Failed)
}

fn part_of<'a>(part: Part, of: &Value<'a>, zone: Option<Value<'a>>) -> Option<Value<'a>> {
    match (of, zone) {
        (Value::Time(nanos), None) => part.of_time(*nanos, 0),
        (Value::Time(nanos), Some(Value::Str(zone))) => part.of_time(*nanos, time::zone(&zone)?),
        (Value::Duration(nanos), None) => part.of_span(*nanos),
        _ => None,
    }
    .map(Value::Int)
}

fn owned<'a>(text: impl Into<String>) -> Option<Value<'a>> {
    Some(Value::Str(Cow::Owned(text.into())))
}

/// Functions of one argument.
fn convert(function: Function, value: Value<'_>) -> Option<Value<'_>> {
    use Value::{Bool, Bytes, Double, Duration, Int, List, Map, Null, Str, Time, Type, Uint};
    match (function, value) {
        (Function::Dyn, v) => Some(v),
        (Function::Type, v) => Some(Type(v.type_name())),
        (Function::Size, Str(s)) => i64::try_from(s.chars().count()).ok().map(Int),
        (Function::Size, Bytes(b)) => i64::try_from(b.len()).ok().map(Int),
        (Function::Size, List(l)) => i64::try_from(l.len()).ok().map(Int),
        (Function::Size, Map(m)) => m.size().and_then(|n| i64::try_from(n).ok()).map(Int),
        (Function::String, List(_) | Map(_) | Null | Type(_)) => None,
        (Function::String, Bytes(b)) => String::from_utf8(b.into_owned()).ok().and_then(owned),
        (Function::String, v @ Str(_))
        | (Function::Bytes, v @ Bytes(_))
        | (Function::Bool, v @ Bool(_))
        | (Function::Int, v @ Int(_))
        | (Function::Uint, v @ Uint(_))
        | (Function::Double, v @ Double(_))
        | (Function::Duration, v @ Duration(_))
        | (Function::Timestamp, v @ Time(_)) => Some(v),
        (Function::String, v) => {
            let mut out = String::new();
            v.print(&mut out);
            owned(out)
        }
        (Function::Bytes, Str(s)) => Some(Bytes(Cow::Owned(s.into_owned().into_bytes()))),
        (Function::Bool, Str(s)) => match s.as_ref() {
            "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(Bool(true)),
            "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(Bool(false)),
            _ => None,
        },
        (Function::Int, Uint(v)) => i64::try_from(v).ok().map(Int),
        (Function::Int, Double(v)) if v.is_finite() && v.abs() < 9.2e18 => Some(Int(v as i64)),
        (Function::Int, Str(s)) => s.parse().ok().map(Int),
        (Function::Int, Time(nanos)) => i64::try_from(nanos.div_euclid(1_000_000_000)).ok().map(Int),
        (Function::Uint, Int(v)) => u64::try_from(v).ok().map(Uint),
        (Function::Uint, Double(v)) if (0.0..1.8e19).contains(&v) => Some(Uint(v as u64)),
        (Function::Uint, Str(s)) => s.parse().ok().map(Uint),
        (Function::Double, Int(v)) => Some(Double(v as f64)),
        (Function::Double, Uint(v)) => Some(Double(v as f64)),
        (Function::Double, Str(s)) => s.parse().ok().map(Double),
        (Function::Duration, Str(s)) => time::parse_span(&s).map(Duration),
        (Function::Timestamp, Str(s)) => time::parse_time(&s).map(Time),
        (Function::Timestamp, Int(seconds)) => time::valid_time(i128::from(seconds) * 1_000_000_000).map(Time),
        (Function::LowerAscii, Str(s)) => owned(s.to_ascii_lowercase()),
        (Function::UpperAscii, Str(s)) => owned(s.to_ascii_uppercase()),
        (Function::Trim, Str(s)) => owned(s.trim()),
        (Function::Reverse, Str(s)) => owned(s.chars().rev().collect::<String>()),
        (Function::Join, List(l)) => join(&l, ""),
        _ => None,
    }
}

fn join<'a>(list: &[Value<'_>], between: &str) -> Option<Value<'a>> {
    let texts: Option<Vec<&str>> = list.iter().map(|v| if let Value::Str(s) = v { Some(s.as_ref()) } else { None }).collect();
    owned(texts?.join(between))
}

/// Functions of a text and more.
fn text<'a>(
    function: Function,
    of: &Value<'a>,
    second: &Value<'a>,
    third: Option<Value<'a>>,
    fourth: Option<Value<'a>>,
    cx: Cx<'_, 'a>,
) -> Result<Option<Value<'a>>, Failed> {
    if let (Function::Join, Value::List(list), Value::Str(between)) = (function, of, second) {
        cx.pay(list.iter().map(Value::length).sum::<usize>().saturating_add(list.len().saturating_mul(between.len())))?;
        return Ok(join(list, between));
    }
    let Value::Str(of) = of else { return Ok(None) };
    let limit = |value: &Option<Value<'a>>| match value {
        None => Some(usize::MAX),
        // Negative: without limit.
        Some(Value::Int(n)) => Some(usize::try_from(*n).unwrap_or(usize::MAX)),
        Some(_) => None,
    };
    let at = |value: &Value<'a>| if let Value::Int(n) = value { usize::try_from(*n).ok() } else { None };
    // Positions count characters, not bytes.
    let place = |characters: usize| of.char_indices().map(|(i, _)| i).chain([of.len()]).nth(characters);
    let count = |bytes: usize| of.get(..bytes).and_then(|before| i64::try_from(before.chars().count()).ok());
    Ok(match (function, second) {
        (Function::Contains, Value::Str(b)) => Some(Value::Bool(of.contains(&**b))),
        (Function::StartsWith, Value::Str(b)) => Some(Value::Bool(of.starts_with(&**b))),
        (Function::EndsWith, Value::Str(b)) => Some(Value::Bool(of.ends_with(&**b))),
        (Function::CharAt, n) => {
            at(n).filter(|n| *n <= of.chars().count()).and_then(|n| owned(of.chars().nth(n).map(String::from).unwrap_or_default()))
        }
        (Function::Split, Value::Str(by)) => {
            let Some(limit) = limit(&third) else { return Ok(None) };
            cx.charge(u32::try_from(of.len()).unwrap_or(u32::MAX))?;
            let piece = |s: &str| Value::Str(Cow::Owned(s.to_string()));
            Some(Value::List(match by.is_empty() {
                // Every character by itself; the last piece is what the limit leaves.
                true => {
                    let cut = of.char_indices().map(|(i, _)| i).nth(limit.saturating_sub(1)).unwrap_or(of.len());
                    let (each, rest) = of.split_at(if limit == 0 { 0 } else { cut });
                    let rest = Some(rest).filter(|r| !r.is_empty() && limit > 0).map(piece);
                    each.chars().map(|c| Value::Str(Cow::Owned(c.to_string()))).chain(rest).collect()
                }
                false if limit == 0 => Vec::new(),
                false => of.splitn(limit, &**by).map(piece).collect(),
            }))
        }
        (Function::Replace, Value::Str(from)) => match (&third, limit(&fourth)) {
            (Some(Value::Str(to)), Some(limit)) => {
                let places = if from.is_empty() { of.len() + 1 } else { of.len() / from.len() };
                cx.pay(places.min(limit).saturating_mul(to.len()).saturating_add(of.len()))?;
                owned(of.replacen(&**from, to, limit))
            }
            _ => None,
        },
        (Function::Substring, from) => {
            let range = at(from).and_then(place).zip(match &third {
                None => Some(of.len()),
                Some(end) => at(end).and_then(place),
            });
            range.and_then(|(from, to)| of.get(from..to)).and_then(owned)
        }
        (Function::IndexOf, Value::Str(b)) => {
            let from = third.as_ref().map_or(Some(0), |n| at(n).and_then(place));
            from.and_then(|from| Some((from, of.get(from..)?.find(&**b))))
                .and_then(|(from, found)| match found {
                    Some(found) => count(from + found),
                    None => Some(-1),
                })
                .map(Value::Int)
        }
        (Function::LastIndexOf, Value::Str(b)) => {
            // The last that begins at the given place or before it.
            let until =
                third.as_ref().map_or(Some(of.len()), |n| at(n).and_then(place)).map(|until| until.saturating_add(b.len()).min(of.len()));
            let until = until.map(|until| (until..=of.len()).find(|i| of.is_char_boundary(*i)).unwrap_or(of.len()));
            until.and_then(|until| Some(of.get(..until)?.rfind(&**b))).and_then(|found| found.map_or(Some(-1), count)).map(Value::Int)
        }
        _ => None,
    })
}
