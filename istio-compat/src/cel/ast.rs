//! CEL that arrives parsed (`google.api.expr.v1alpha1.Expr`, conditions of RBAC policies). It becomes the same tree as text does.
//! Control thread only. Source: `google/api/expr/v1alpha1/syntax.proto`, the operator names of the CEL specification.

use super::functions;
use super::macros::Macro;
use super::parser::{Binary, Expr, MAX_DEPTH, has, select, variable};
use super::time;
use nuncio_proto::google::api::expr::v1alpha1 as proto;
use proto::constant::ConstantKind;
use proto::expr::create_struct::entry::KeyKind;
use proto::expr::{Call, Comprehension, ExprKind};

/// The tree of `expr`. Names that nothing defines are added to `unknown`; the error says what is wrong or not supported.
pub fn convert(expr: &proto::Expr, depth: usize, scope: &mut Vec<String>, unknown: &mut Vec<String>) -> Result<Expr, String> {
    if depth > MAX_DEPTH {
        return Err(format!("nesting deeper than {MAX_DEPTH}"));
    }
    match &expr.expr_kind {
        Some(ExprKind::ConstExpr(constant)) => literal(constant),
        Some(ExprKind::IdentExpr(ident)) => Ok(variable(ident.name.trim_start_matches('.').to_string(), scope, unknown)),
        Some(ExprKind::SelectExpr(selection)) => {
            let operand = selection.operand.as_deref().ok_or("a selection of nothing")?;
            let selected = select(convert(operand, depth + 1, scope, unknown)?, selection.field.clone(), unknown);
            match selection.test_only {
                true => has(selected).ok_or_else(|| "has() of what is no selection".to_string()),
                false => Ok(selected),
            }
        }
        Some(ExprKind::CallExpr(function)) => operator(function, depth, scope, unknown),
        Some(ExprKind::ListExpr(list)) if list.optional_indices.is_empty() => {
            Ok(Expr::List(list.elements.iter().map(|e| convert(e, depth + 1, scope, unknown)).collect::<Result<_, _>>()?))
        }
        Some(ExprKind::ListExpr(_)) => Err("a list with optional elements is not supported".to_string()),
        Some(ExprKind::StructExpr(map)) if map.message_name.is_empty() => {
            let mut entries = Vec::with_capacity(map.entries.len());
            for entry in &map.entries {
                let (Some(KeyKind::MapKey(key)), Some(value), false) = (&entry.key_kind, &entry.value, entry.optional_entry) else {
                    return Err("a map entry that is optional, or without key or value, is not supported".to_string());
                };
                entries.push((convert(key, depth + 1, scope, unknown)?, convert(value, depth + 1, scope, unknown)?));
            }
            Ok(Expr::Map(entries))
        }
        Some(ExprKind::StructExpr(_)) => Err("a message literal is not supported".to_string()),
        Some(ExprKind::ComprehensionExpr(fold)) => comprehension(fold, depth, scope, unknown),
        None => Err("an empty expression".to_string()),
    }
}

#[allow(deprecated)]
fn literal(constant: &proto::Constant) -> Result<Expr, String> {
    Ok(match &constant.constant_kind {
        Some(ConstantKind::NullValue(_)) => Expr::Null,
        Some(ConstantKind::BoolValue(v)) => Expr::Bool(*v),
        Some(ConstantKind::Int64Value(v)) => Expr::Int(*v),
        Some(ConstantKind::Uint64Value(v)) => Expr::Uint(*v),
        Some(ConstantKind::DoubleValue(v)) => Expr::Double(*v),
        Some(ConstantKind::StringValue(v)) => Expr::Str(v.clone()),
        Some(ConstantKind::BytesValue(v)) => Expr::Bytes(v.clone()),
        Some(ConstantKind::DurationValue(d)) => {
            Expr::Span(time::valid_span(nanos(d.seconds, d.nanos)).ok_or("a literal duration out of range")?)
        }
        Some(ConstantKind::TimestampValue(t)) => {
            Expr::Time(time::valid_time(nanos(t.seconds, t.nanos)).ok_or("a literal timestamp out of range")?)
        }
        None => return Err("a constant without value".to_string()),
    })
}

fn nanos(seconds: i64, nanos: i32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

/// The macro that `fold` was made from. Other folds are not supported: they may do what no macro does, such as double a text with every
/// element.
fn comprehension(fold: &Comprehension, depth: usize, scope: &mut Vec<String>, unknown: &mut Vec<String>) -> Result<Expr, String> {
    const OTHER: &str = "a comprehension that no macro makes is not supported";
    let part = |part: &Option<Box<proto::Expr>>| part.as_deref().cloned().ok_or("a comprehension without its parts");
    let (range, init, step, result) = (part(&fold.iter_range)?, part(&fold.accu_init)?, part(&fold.loop_step)?, part(&fold.result)?);
    let accu = |e: &proto::Expr| matches!(&e.expr_kind, Some(ExprKind::IdentExpr(i)) if i.name == fold.accu_var);
    let item = |e: &proto::Expr| matches!(&e.expr_kind, Some(ExprKind::IdentExpr(i)) if i.name == fold.iter_var);
    // The arguments of a call of `name` whose first is the accumulator, without it.
    let after = |e: &proto::Expr, name: &str| match &e.expr_kind {
        Some(ExprKind::CallExpr(call)) if call.function == name => match call.args.as_slice() {
            [first, rest] if accu(first) => Some(rest.clone()),
            _ => None,
        },
        _ => None,
    };
    let single = |e: &proto::Expr| match &e.expr_kind {
        Some(ExprKind::ListExpr(list)) => <[proto::Expr; 1]>::try_from(list.elements.clone()).ok().map(|[only]| only),
        _ => None,
    };
    // `test ? step : accu`, or the step alone.
    let (test, step) = match &step.expr_kind {
        Some(ExprKind::CallExpr(call)) if call.function == "_?_:_" => match call.args.as_slice() {
            [test, step, unchanged] if accu(unchanged) => (Some(test.clone()), step.clone()),
            _ => return Err(OTHER.to_string()),
        },
        _ => (None, step),
    };
    let range = convert(&range, depth + 1, scope, unknown)?;
    if fold.accu_var == fold.iter_var || !fold.iter_var2.is_empty() {
        return Err(OTHER.to_string());
    }
    scope.push(fold.iter_var.clone());
    let mut inner = |e: &proto::Expr| convert(e, depth + 1, scope, unknown);
    let found = match literal_of(&init) {
        Some(ConstantKind::BoolValue(true)) if test.is_none() && accu(&result) => {
            after(&step, "_&&_").map(|e| Ok(Macro::All(range, inner(&e)?)))
        }
        Some(ConstantKind::BoolValue(false)) if test.is_none() && accu(&result) => {
            after(&step, "_||_").map(|e| Ok(Macro::Exists(range, inner(&e)?)))
        }
        Some(ConstantKind::Int64Value(0)) => {
            let is_one = |e: Option<proto::Expr>| e.is_some_and(|e| literal_of(&e) == Some(&ConstantKind::Int64Value(1)));
            let counts = is_one(after(&step, "_+_")) && is_one(after(&result, "_==_"));
            test.filter(|_| counts).map(|e| Ok(Macro::ExistsOne(range, inner(&e)?)))
        }
        None if matches!(&init.expr_kind, Some(ExprKind::ListExpr(list)) if list.elements.is_empty()) && accu(&result) => {
            let made = after(&step, "_+_").and_then(|list| single(&list));
            made.map(|made| match test {
                Some(test) if item(&made) => Ok(Macro::Filter(range, inner(&test)?)),
                test => Ok(Macro::Map(range, test.map(|t| inner(&t)).transpose()?, inner(&made)?)),
            })
        }
        _ => None,
    };
    scope.pop();
    found.unwrap_or_else(|| Err(OTHER.to_string())).map(|m| Expr::Macro(Box::new(m)))
}

fn literal_of(expr: &proto::Expr) -> Option<&ConstantKind> {
    match &expr.expr_kind {
        Some(ExprKind::ConstExpr(constant)) => constant.constant_kind.as_ref(),
        _ => None,
    }
}

fn operator(function: &Call, depth: usize, scope: &mut Vec<String>, unknown: &mut Vec<String>) -> Result<Expr, String> {
    let name = function.function.as_str();
    let method = function.target.is_some();
    let all = function.target.as_deref().into_iter().chain(&function.args);
    let mut arguments = all.map(|a| convert(a, depth + 1, scope, unknown)).collect::<Result<Vec<_>, _>>()?;
    let binary = match name {
        "_&&_" => Some(Binary::And),
        "_||_" => Some(Binary::Or),
        "_==_" => Some(Binary::Eq),
        "_!=_" => Some(Binary::Ne),
        "_<_" => Some(Binary::Lt),
        "_<=_" => Some(Binary::Le),
        "_>_" => Some(Binary::Gt),
        "_>=_" => Some(Binary::Ge),
        "@in" | "_in_" | "in" => Some(Binary::In),
        "_+_" => Some(Binary::Add),
        "_-_" => Some(Binary::Sub),
        "_*_" => Some(Binary::Mul),
        "_/_" => Some(Binary::Div),
        "_%_" => Some(Binary::Rem),
        _ => None,
    };
    let wrong = |count: usize| format!("{name} takes {count} argument(s)");
    if let Some(binary) = binary {
        let [left, right] = <[Expr; 2]>::try_from(arguments).map_err(|_| wrong(2))?;
        return Ok(Expr::Binary(binary, Box::new(left), Box::new(right)));
    }
    match name {
        "_?_:_" => {
            let [condition, yes, no] = <[Expr; 3]>::try_from(arguments).map_err(|_| wrong(3))?;
            Ok(Expr::Conditional(Box::new(condition), Box::new(yes), Box::new(no)))
        }
        "_[_]" => {
            let [of, index] = <[Expr; 2]>::try_from(arguments).map_err(|_| wrong(2))?;
            Ok(match index {
                Expr::Str(name) => select(of, name, unknown),
                index => Expr::Index(Box::new(of), Box::new(index)),
            })
        }
        "!_" | "-_" => match (arguments.pop(), arguments.is_empty()) {
            (Some(inner), true) if name == "!_" => Ok(Expr::Not(Box::new(inner))),
            (Some(inner), true) => Ok(Expr::Negate(Box::new(inner))),
            _ => Err(wrong(1)),
        },
        _ => functions::compile(0, name, arguments, method).map_err(|e| match e.unsupported {
            true => format!("{} is not supported", e.what),
            false => e.what,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::{Attributes, Program, Value};
    use nuncio_core::test_kit as kit;
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn program(yaml: &str) -> Result<Program, String> {
        let expr: proto::Expr = parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value;
        Program::from_proto(&expr)
    }
    fn holds(yaml: &str) -> bool {
        let mut request = nuncio_core::RequestHead::new(http::Method::GET, "shop.example", "/admin/x?q");
        request.headers.append(http::HeaderName::from_static("x-team"), http::HeaderValue::from_static("blue"));
        let info = kit::stream_info();
        let attributes = Attributes { info: &info, request: Some(&request), response: None, trailers: None, route: None, server: None };
        matches!(program(yaml).unwrap().run(&attributes), Some(Value::Bool(true)))
    }
    const TEAM: &str = "{call_expr: {function: '_[_]', args: [{select_expr: {operand: {ident_expr: {name: request}}, field: headers}},
        {const_expr: {string_value: x-team}}]}}";

    #[test]
    fn parsed_conditions_decide() {
        let path = "{select_expr: {operand: {ident_expr: {name: request}}, field: url_path}}";
        let starts = |with: &str| {
            format!("{{call_expr: {{target: {path}, function: startsWith, args: [{{const_expr: {{string_value: {with}}}}}]}}}}")
        };
        let team = |name: &str| format!("{{call_expr: {{function: _==_, args: [{TEAM}, {{const_expr: {{string_value: {name}}}}}]}}}}");
        let both = |op: &str, a: &str, b: &str| format!("{{call_expr: {{function: '{op}', args: [{a}, {b}]}}}}");
        assert!(holds(&starts("/admin")));
        assert!(!holds(&starts("/user")));
        assert!(holds(&both("_&&_", &starts("/admin"), &team("blue"))));
        assert!(!holds(&both("_&&_", &starts("/admin"), &team("red"))));
        assert!(holds(&both("_||_", &starts("/user"), &team("blue"))));
        assert!(holds(&format!("{{call_expr: {{function: '!_', args: [{}]}}}}", team("red"))));
        assert!(holds(&format!(
            "{{call_expr: {{function: '@in', args: [{TEAM}, {{list_expr: {{elements: [{{const_expr: {{string_value: blue}}}}]}}}}]}}}}"
        )));
        let tested = "{select_expr: {operand: {select_expr: {operand: {ident_expr: {name: request}}, field: headers}}, field: x-team, test_only: true}}";
        assert!(holds(tested));
        // What fails is not true.
        assert!(!holds(&path.replace("url_path", "nothing")));
    }

    /// As cel-go parses the macros over [1, 2].
    fn fold(init: &str, step: &str, result: &str) -> String {
        format!(
            "{{comprehension_expr: {{iter_var: x, iter_range: {{list_expr: {{elements: [{{const_expr: {{int64_value: '1'}}}}, {{const_expr: {{int64_value: '2'}}}}]}}}}, accu_var: __result__,
             accu_init: {init}, loop_condition: {{const_expr: {{bool_value: true}}}}, loop_step: {step}, result: {result}}}}}"
        )
    }

    #[test]
    fn macros_that_were_parsed_are_macros_again() {
        let (accu, x) = ("{ident_expr: {name: __result__}}", "{ident_expr: {name: x}}");
        let bool = |v: bool| format!("{{const_expr: {{bool_value: {v}}}}}");
        let int = |v: i64| format!("{{const_expr: {{int64_value: '{v}'}}}}");
        let call = |name: &str, args: &[&str]| format!("{{call_expr: {{function: '{name}', args: [{}]}}}}", args.join(", "));
        let list = |of: &str| format!("{{list_expr: {{elements: [{of}]}}}}");
        let over = |n: i64| call("_>_", &[x, &int(n)]);
        let all = |n| fold(&bool(true), &call("_&&_", &[accu, &over(n)]), accu);
        assert!(holds(&all(0)) && !holds(&all(1)));
        let exists = |n| fold(&bool(false), &call("_||_", &[accu, &over(n)]), accu);
        assert!(holds(&exists(1)) && !holds(&exists(2)));
        let one = |n| fold(&int(0), &call("_?_:_", &[&over(n), &call("_+_", &[accu, &int(1)]), accu]), &call("_==_", &[accu, &int(1)]));
        assert!(holds(&one(1)) && !holds(&one(0)));
        let map = fold("{list_expr: {}}", &call("_+_", &[accu, &list(&call("_*_", &[x, &int(2)]))]), accu);
        assert!(holds(&call("@in", &[&int(4), &map])) && !holds(&call("@in", &[&int(1), &map])));
        let filter = fold("{list_expr: {}}", &call("_?_:_", &[&over(1), &call("_+_", &[accu, &list(x)]), accu]), accu);
        assert!(holds(&call("_==_", &[&filter, &list(&int(2))])));
    }

    #[test]
    fn literals_of_every_kind() {
        let equal = |a: &str, b: &str| format!("{{call_expr: {{function: _==_, args: [{a}, {b}]}}}}");
        let made = |function: &str, text: &str| {
            format!("{{call_expr: {{function: {function}, args: [{{const_expr: {{string_value: '{text}'}}}}]}}}}")
        };
        assert!(holds(&equal("{const_expr: {duration_value: '-1.5s'}}", &made("duration", "-1.5s"))));
        assert!(holds(&equal("{const_expr: {timestamp_value: '2024-01-02T03:04:05Z'}}", &made("timestamp", "2024-01-02T03:04:05Z"))));
        let map = "{struct_expr: {entries: [{map_key: {const_expr: {string_value: a}}, value: {const_expr: {bool_value: true}}}]}}";
        assert!(holds(&format!("{{select_expr: {{operand: {map}, field: a}}}}")));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (yaml, what) in [
            ("{}", "empty"),
            ("{const_expr: {}}", "without value"),
            ("{struct_expr: {message_name: m}}", "message literal"),
            ("{comprehension_expr: {iter_var: x}}", "without its parts"),
            ("{call_expr: {function: frobnicate}}", "frobnicate"),
            ("{call_expr: {function: _&&_, args: [{const_expr: {bool_value: true}}]}}", "takes 2"),
        ] {
            assert!(program(yaml).unwrap_err().contains(what), "{yaml}");
        }
        let twice = "{comprehension_expr: {iter_var: x, iter_range: {list_expr: {elements: [{const_expr: {int64_value: '1'}}]}}, accu_var: r, accu_init: {const_expr: {string_value: ab}},
            loop_condition: {const_expr: {bool_value: true}}, loop_step: {call_expr: {function: _+_, args: [{ident_expr: {name: r}}, {ident_expr: {name: r}}]}}, result: {ident_expr: {name: r}}}}";
        assert!(program(twice).unwrap_err().contains("no macro"), "a text that doubles");
        let mut deep = proto::Expr {
            id: 1,
            expr_kind: Some(ExprKind::ConstExpr(proto::Constant { constant_kind: Some(ConstantKind::BoolValue(true)) })),
        };
        for _ in 0..MAX_DEPTH + 1 {
            let call = Call { target: None, function: "!_".into(), args: vec![deep] };
            deep = proto::Expr { id: 1, expr_kind: Some(ExprKind::CallExpr(Box::new(call))) };
        }
        assert!(Program::from_proto(&deep).unwrap_err().contains("nesting"));
    }
}
