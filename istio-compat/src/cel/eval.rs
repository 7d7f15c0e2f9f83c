//! Evaluation of CEL. Workers only; errors are values of the language: `&&` and `||` absorb them as the specification says.

use super::attributes::Attributes;
use super::parser::{Binary, Expr, Function};
use super::value::{Failed, Value};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::time::Duration;

pub fn eval<'a>(expr: &'a Expr, cx: &Attributes<'a>) -> Result<Value<'a>, Failed> {
    Ok(match expr {
        Expr::Null => Value::Null,
        Expr::Bool(v) => Value::Bool(*v),
        Expr::Int(v) => Value::Int(*v),
        Expr::Uint(v) => Value::Uint(*v),
        Expr::Double(v) => Value::Double(*v),
        Expr::Str(v) => Value::text(v),
        Expr::Bytes(v) => Value::Bytes(Cow::Borrowed(v)),
        Expr::Attribute(attribute) => return cx.get(*attribute),
        Expr::Root(root) => return cx.root(*root),
        Expr::Unknown => return Err(Failed),
        Expr::Select(of, name) => return select(eval(of, cx)?, name, cx),
        Expr::Has(of, name) if name.is_empty() => Value::Bool(eval(of, cx).is_ok()),
        Expr::Has(of, name) => match eval(of, cx)? {
            Value::Map(map) => Value::Bool(map.get(name, cx).is_ok()),
            _ => return Err(Failed),
        },
        Expr::Index(of, index) => match (eval(of, cx)?, eval(index, cx)?) {
            (map @ Value::Map(_), Value::Str(name)) => return select(map, &name, cx),
            (Value::List(list), Value::Int(index)) => {
                let index = usize::try_from(index).map_err(|_| Failed)?;
                return list.into_iter().nth(index).ok_or(Failed);
            }
            _ => return Err(Failed),
        },
        Expr::Not(inner) => Value::Bool(!truth(eval(inner, cx)?)?),
        Expr::Negate(inner) => match eval(inner, cx)? {
            Value::Int(v) => Value::Int(v.checked_neg().ok_or(Failed)?),
            Value::Double(v) => Value::Double(-v),
            _ => return Err(Failed),
        },
        Expr::Binary(Binary::And, left, right) => Value::Bool(logic(left, right, false, cx)?),
        Expr::Binary(Binary::Or, left, right) => Value::Bool(logic(left, right, true, cx)?),
        Expr::Binary(operator, left, right) => return binary(*operator, eval(left, cx)?, eval(right, cx)?, cx),
        Expr::Conditional(condition, yes, no) => return if truth(eval(condition, cx)?)? { eval(yes, cx) } else { eval(no, cx) },
        Expr::List(items) => Value::List(items.iter().map(|i| eval(i, cx)).collect::<Result<_, _>>()?),
        Expr::Matches(of, regex) => match eval(of, cx)? {
            Value::Str(s) => Value::Bool(regex.is_match(&s)),
            _ => return Err(Failed),
        },
        Expr::Call(function, arguments) => return call(*function, arguments, cx),
    })
}

fn truth(value: Value<'_>) -> Result<bool, Failed> {
    match value {
        Value::Bool(b) => Ok(b),
        _ => Err(Failed),
    }
}

/// `decisive` alone decides, on either side and whatever the other side does.
fn logic<'a>(left: &'a Expr, right: &'a Expr, decisive: bool, cx: &Attributes<'a>) -> Result<bool, Failed> {
    let left = eval(left, cx).and_then(truth);
    if matches!(left, Ok(v) if v == decisive) {
        return Ok(decisive);
    }
    match eval(right, cx).and_then(truth)? {
        v if v == decisive => Ok(decisive),
        v => left.map(|_| v),
    }
}

fn select<'a>(value: Value<'a>, name: &str, cx: &Attributes<'a>) -> Result<Value<'a>, Failed> {
    match value {
        Value::Map(map) => map.get(name, cx),
        _ => Err(Failed),
    }
}

fn binary<'a>(operator: Binary, left: Value<'a>, right: Value<'a>, cx: &Attributes<'a>) -> Result<Value<'a>, Failed> {
    let compare = |accept: fn(Ordering) -> bool| left.order(&right).map(|o| Value::Bool(accept(o))).ok_or(Failed);
    match operator {
        Binary::Eq => Ok(Value::Bool(left.equals(&right))),
        Binary::Ne => Ok(Value::Bool(!left.equals(&right))),
        Binary::Lt => compare(Ordering::is_lt),
        Binary::Le => compare(Ordering::is_le),
        Binary::Gt => compare(Ordering::is_gt),
        Binary::Ge => compare(Ordering::is_ge),
        Binary::In => match (left, right) {
            (left, Value::List(list)) => Ok(Value::Bool(list.iter().any(|v| v.equals(&left)))),
            (Value::Str(key), Value::Map(map)) => Ok(Value::Bool(map.get(&key, cx).is_ok())),
            _ => Err(Failed),
        },
        Binary::And | Binary::Or => Err(Failed),
        Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Rem => arithmetic(operator, left, right).ok_or(Failed),
    }
}

fn arithmetic<'a>(operator: Binary, left: Value<'a>, right: Value<'a>) -> Option<Value<'a>> {
    Some(match (operator, left, right) {
        (Binary::Add, Value::Str(a), Value::Str(b)) => Value::Str(Cow::Owned(a.into_owned() + &b)),
        (Binary::Add, Value::Bytes(a), Value::Bytes(b)) => Value::Bytes(Cow::Owned([a.as_ref(), b.as_ref()].concat())),
        (Binary::Add, Value::List(mut a), Value::List(b)) => {
            a.extend(b);
            Value::List(a)
        }
        (Binary::Add, Value::Duration(a), Value::Duration(b)) => Value::Duration(a.checked_add(b)?),
        (Binary::Sub, Value::Duration(a), Value::Duration(b)) => Value::Duration(a.checked_sub(b)?),
        (Binary::Add, Value::Time(a), Value::Duration(b)) => Value::Time(a.checked_add(b)?),
        (Binary::Sub, Value::Time(a), Value::Duration(b)) => Value::Time(a.checked_sub(b)?),
        (Binary::Sub, Value::Time(a), Value::Time(b)) => Value::Duration(a.duration_since(b).ok()?),
        (Binary::Add, Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(b)?),
        (Binary::Sub, Value::Int(a), Value::Int(b)) => Value::Int(a.checked_sub(b)?),
        (Binary::Mul, Value::Int(a), Value::Int(b)) => Value::Int(a.checked_mul(b)?),
        (Binary::Div, Value::Int(a), Value::Int(b)) => Value::Int(a.checked_div(b)?),
        (Binary::Rem, Value::Int(a), Value::Int(b)) => Value::Int(a.checked_rem(b)?),
        (Binary::Add, Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_add(b)?),
        (Binary::Sub, Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_sub(b)?),
        (Binary::Mul, Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_mul(b)?),
        (Binary::Div, Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_div(b)?),
        (Binary::Rem, Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_rem(b)?),
        (Binary::Add, Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Binary::Sub, Value::Double(a), Value::Double(b)) => Value::Double(a - b),
        (Binary::Mul, Value::Double(a), Value::Double(b)) => Value::Double(a * b),
        (Binary::Div, Value::Double(a), Value::Double(b)) => Value::Double(a / b),
        _ => return None,
    })
}

fn call<'a>(function: Function, arguments: &'a [Expr], cx: &Attributes<'a>) -> Result<Value<'a>, Failed> {
    let mut values = arguments.iter().map(|a| eval(a, cx));
    let first = values.next().ok_or(Failed)??;
    let second = values.next().transpose()?;
    let result = match (function, first, second) {
        (Function::Size, Value::Str(s), None) => i64::try_from(s.chars().count()).ok().map(Value::Int),
        (Function::Size, Value::Bytes(b), None) => i64::try_from(b.len()).ok().map(Value::Int),
        (Function::Size, Value::List(l), None) => i64::try_from(l.len()).ok().map(Value::Int),
        (Function::Size, Value::Map(m), None) => m.size().and_then(|n| i64::try_from(n).ok()).map(Value::Int),
        (Function::Contains, Value::Str(a), Some(Value::Str(b))) => Some(Value::Bool(a.contains(&*b))),
        (Function::StartsWith, Value::Str(a), Some(Value::Str(b))) => Some(Value::Bool(a.starts_with(&*b))),
        (Function::EndsWith, Value::Str(a), Some(Value::Str(b))) => Some(Value::Bool(a.ends_with(&*b))),
        (Function::String, v @ (Value::List(_) | Value::Map(_) | Value::Null), None) => {
            drop(v);
            None
        }
        (Function::String, v @ Value::Str(_), None) => Some(v),
        (Function::String, Value::Bytes(b), None) => String::from_utf8(b.into_owned()).ok().map(|s| Value::Str(Cow::Owned(s))),
        (Function::String, v, None) => {
            let mut out = String::new();
            v.print(&mut out);
            Some(Value::Str(Cow::Owned(out)))
        }
        (Function::Bytes, Value::Str(s), None) => Some(Value::Bytes(Cow::Owned(s.into_owned().into_bytes()))),
        (Function::Bytes, v @ Value::Bytes(_), None) => Some(v),
        (Function::Int, v @ Value::Int(_), None)
        | (Function::Uint, v @ Value::Uint(_), None)
        | (Function::Double, v @ Value::Double(_), None) => Some(v),
        (Function::Int, Value::Uint(v), None) => i64::try_from(v).ok().map(Value::Int),
        (Function::Int, Value::Double(v), None) if v.is_finite() && v.abs() < 9.2e18 => Some(Value::Int(v as i64)),
        (Function::Int, Value::Str(s), None) => s.parse().ok().map(Value::Int),
        (Function::Uint, Value::Int(v), None) => u64::try_from(v).ok().map(Value::Uint),
        (Function::Uint, Value::Double(v), None) if (0.0..1.8e19).contains(&v) => Some(Value::Uint(v as u64)),
        (Function::Uint, Value::Str(s), None) => s.parse().ok().map(Value::Uint),
        (Function::Double, Value::Int(v), None) => Some(Value::Double(v as f64)),
        (Function::Double, Value::Uint(v), None) => Some(Value::Double(v as f64)),
        (Function::Double, Value::Str(s), None) => s.parse().ok().map(Value::Double),
        (Function::Duration, v @ Value::Duration(_), None) => Some(v),
        (Function::Duration, Value::Str(s), None) => duration(&s).map(Value::Duration),
        _ => None,
    };
    result.ok_or(Failed)
}

/// `1h30m`, `1.5s`, `10ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}
