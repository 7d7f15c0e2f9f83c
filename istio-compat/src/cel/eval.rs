//! Evaluation of CEL. Workers only; errors are values of the language: `&&` and `||` absorb them as the specification says.
//! Every step is paid for from a budget, as macros may nest: an expression that uses it up fails.

use super::attributes::Attributes;
use super::functions::call;
use super::macros::Macro;
use super::parser::{Binary, Expr};
use super::time::{valid_span, valid_time};
use super::value::{Failed, Map, Value};
use std::borrow::Cow;
use std::cell::Cell;
use std::cmp::Ordering;
use std::rc::Rc;

/// Steps that one run may take: a few milliseconds.
pub const BUDGET: u32 = 100_000;

/// What an evaluation reads: the stream, variables of macros around it, and how many steps are left.
#[derive(Clone, Copy)]
pub struct Cx<'r, 'a> {
    pub attributes: &'r Attributes<'a>,
    pub left: &'r Cell<u32>,
    pub scope: Option<&'r Scope<'r, 'a>>,
}

/// The variable of a macro.
pub struct Scope<'r, 'a> {
    value: Value<'a>,
    outer: Option<&'r Scope<'r, 'a>>,
}

impl<'a> Cx<'_, 'a> {
    /// Pays for steps; a failure if there are not so many left.
    pub fn charge(&self, steps: u32) -> Result<(), Failed> {
        let left = self.left.get().checked_sub(steps);
        self.left.set(left.unwrap_or(0));
        left.map(|_| ()).ok_or(Failed)
    }
    /// Pays for work on so many bytes.
    pub fn pay(&self, bytes: usize) -> Result<(), Failed> {
        self.charge(u32::try_from(bytes / 64).unwrap_or(u32::MAX))
    }
    /// The variable of the macro that is `depth` macros further out.
    fn variable(&self, depth: usize) -> Result<&Value<'a>, Failed> {
        let mut scope = self.scope.ok_or(Failed)?;
        for _ in 0..depth {
            scope = scope.outer.ok_or(Failed)?;
        }
        Ok(&scope.value)
    }
}

pub fn eval<'a>(expr: &'a Expr, cx: Cx<'_, 'a>) -> Result<Value<'a>, Failed> {
    cx.charge(1)?;
    Ok(match expr {
        Expr::Null => Value::Null,
        Expr::Bool(v) => Value::Bool(*v),
        Expr::Int(v) => Value::Int(*v),
        Expr::Uint(v) => Value::Uint(*v),
        Expr::Double(v) => Value::Double(*v),
        Expr::Str(v) => Value::text(v),
        Expr::Bytes(v) => Value::Bytes(Cow::Borrowed(v)),
        Expr::Span(nanos) => Value::Duration(*nanos),
        Expr::Time(nanos) => Value::Time(*nanos),
        Expr::Attribute(attribute) => return cx.attributes.get(*attribute),
        Expr::Root(root) => return cx.attributes.root(*root),
        Expr::Unknown => return Err(Failed),
        Expr::Type(name) => Value::Type(name),
        Expr::Variable(depth) => {
            let value = cx.variable(*depth)?;
            cx.pay(value.length())?;
            value.clone()
        }
        Expr::Map(entries) => return map(entries, cx),
        Expr::Macro(call) => return fold(call, cx),
        Expr::Select(of, name) => return select(eval(of, cx)?, name, cx),
        Expr::Has(of, name) if name.is_empty() => Value::Bool(eval(of, cx).is_ok()),
        Expr::Has(of, name) => match eval(of, cx)? {
            Value::Map(map) => Value::Bool(map.get(name, cx.attributes).is_ok()),
            _ => return Err(Failed),
        },
        Expr::Index(of, index) => match (eval(of, cx)?, eval(index, cx)?) {
            (Value::Map(map), key) => return map.find(&key, cx.attributes),
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
            Value::Duration(v) => Value::Duration(-v),
            _ => return Err(Failed),
        },
        Expr::Binary(Binary::And, left, right) => Value::Bool(logic(left, right, false, cx)?),
        Expr::Binary(Binary::Or, left, right) => Value::Bool(logic(left, right, true, cx)?),
        Expr::Binary(operator, left, right) => return binary(*operator, eval(left, cx)?, eval(right, cx)?, cx),
        Expr::Conditional(condition, yes, no) => return if truth(eval(condition, cx)?)? { eval(yes, cx) } else { eval(no, cx) },
        Expr::List(items) => Value::List(items.iter().map(|i| eval(i, cx)).collect::<Result<_, _>>()?),
        Expr::Matches(of, regex) => match eval(of, cx)? {
            Value::Str(s) => {
                cx.pay(s.len())?;
                Value::Bool(regex.is_match(&s))
            }
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
fn logic<'a>(left: &'a Expr, right: &'a Expr, decisive: bool, cx: Cx<'_, 'a>) -> Result<bool, Failed> {
    let left = eval(left, cx).and_then(truth);
    if matches!(left, Ok(v) if v == decisive) {
        return Ok(decisive);
    }
    match eval(right, cx).and_then(truth)? {
        v if v == decisive => Ok(decisive),
        v => left.map(|_| v),
    }
}

fn select<'a>(value: Value<'a>, name: &str, cx: Cx<'_, 'a>) -> Result<Value<'a>, Failed> {
    match value {
        Value::Map(map) => map.get(name, cx.attributes),
        _ => Err(Failed),
    }
}

fn binary<'a>(operator: Binary, left: Value<'a>, right: Value<'a>, cx: Cx<'_, 'a>) -> Result<Value<'a>, Failed> {
    cx.pay(left.length().saturating_add(right.length()))?;
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
            (key, Value::Map(map)) => Ok(Value::Bool(map.find(&key, cx.attributes).is_ok())),
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
        (Binary::Add, Value::Duration(a), Value::Duration(b)) => Value::Duration(valid_span(a.checked_add(b)?)?),
        (Binary::Sub, Value::Duration(a), Value::Duration(b)) => Value::Duration(valid_span(a.checked_sub(b)?)?),
        (Binary::Add, Value::Time(a), Value::Duration(b)) | (Binary::Add, Value::Duration(b), Value::Time(a)) => {
            Value::Time(valid_time(a.checked_add(b)?)?)
        }
        (Binary::Sub, Value::Time(a), Value::Duration(b)) => Value::Time(valid_time(a.checked_sub(b)?)?),
        (Binary::Sub, Value::Time(a), Value::Time(b)) => Value::Duration(valid_span(a.checked_sub(b)?)?),
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

/// A map literal; a key that is there twice, or that no map can have, is a failure.
fn map<'a>(entries: &'a [(Expr, Expr)], cx: Cx<'_, 'a>) -> Result<Value<'a>, Failed> {
    let mut out: Vec<(Value<'a>, Value<'a>)> = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let key = eval(key, cx)?;
        let allowed = matches!(key, Value::Str(_) | Value::Int(_) | Value::Uint(_) | Value::Bool(_));
        if !allowed || out.iter().any(|(k, _)| k.equals(&key)) {
            return Err(Failed);
        }
        out.push((key, eval(value, cx)?));
    }
    Ok(Value::Map(Map::Literal(Rc::new(out))))
}

/// Runs a macro over the elements of a list or the keys of a map.
fn fold<'a>(call: &'a Macro, cx: Cx<'_, 'a>) -> Result<Value<'a>, Failed> {
    let items = match eval(call.range(), cx)? {
        Value::List(list) => list,
        Value::Map(map) => map.entries().ok_or(Failed)?.into_iter().map(|(key, _)| key).collect(),
        _ => return Err(Failed),
    };
    let test = |expr: &'a Expr, item: &Value<'a>| each(expr, item, cx).and_then(truth);
    let quantify = |test_of: &'a Expr, decisive: bool| {
        // As for && and ||: what decides, decides, though another element failed.
        let mut failed = false;
        for item in &items {
            match test(test_of, item) {
                Ok(v) if v == decisive => return Ok(Value::Bool(decisive)),
                Ok(_) => {}
                Err(Failed) => failed = true,
            }
            if cx.left.get() == 0 {
                return Err(Failed);
            }
        }
        if failed { Err(Failed) } else { Ok(Value::Bool(!decisive)) }
    };
    match call {
        Macro::All(_, expr) => quantify(expr, false),
        Macro::Exists(_, expr) => quantify(expr, true),
        Macro::ExistsOne(_, expr) => {
            let mut found = 0;
            for item in &items {
                found += usize::from(test(expr, item)?);
            }
            Ok(Value::Bool(found == 1))
        }
        Macro::Map(_, filter, expr) => {
            let mut out = Vec::new();
            for item in &items {
                if let Some(filter) = filter
                    && !test(filter, item)?
                {
                    continue;
                }
                out.push(each(expr, item, cx)?);
            }
            Ok(Value::List(out))
        }
        Macro::Filter(_, expr) => {
            let mut out = Vec::new();
            for item in &items {
                if test(expr, item)? {
                    cx.pay(item.length())?;
                    out.push(item.clone());
                }
            }
            Ok(Value::List(out))
        }
    }
}

/// `expr` for one element.
fn each<'a>(expr: &'a Expr, item: &Value<'a>, cx: Cx<'_, 'a>) -> Result<Value<'a>, Failed> {
    cx.pay(item.length())?;
    let scope = Scope { value: item.clone(), outer: cx.scope };
    eval(expr, Cx { scope: Some(&scope), ..cx })
}
