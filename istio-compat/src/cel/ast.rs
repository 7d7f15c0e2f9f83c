//! CEL that arrives parsed (`google.api.expr.v1alpha1.Expr`, conditions of RBAC policies). It becomes the same tree as text does.
//! Control thread only. Source: `google/api/expr/v1alpha1/syntax.proto`, the operator names of the CEL specification.

use super::parser::{Binary, Expr, MAX_DEPTH, call, has, select, variable};
use nuncio_proto::google::api::expr::v1alpha1 as proto;
use proto::constant::ConstantKind;
use proto::expr::{Call, ExprKind};

/// The tree of `expr`. Names that nothing defines are added to `unknown`; the error says what is wrong or not supported.
pub fn convert(expr: &proto::Expr, depth: usize, unknown: &mut Vec<String>) -> Result<Expr, String> {
    if depth > MAX_DEPTH {
        return Err(format!("nesting deeper than {MAX_DEPTH}"));
    }
    match &expr.expr_kind {
        Some(ExprKind::ConstExpr(constant)) => literal(constant),
        Some(ExprKind::IdentExpr(ident)) => Ok(variable(ident.name.clone(), unknown)),
        Some(ExprKind::SelectExpr(selection)) => {
            let operand = selection.operand.as_deref().ok_or("a selection of nothing")?;
            let selected = select(convert(operand, depth + 1, unknown)?, selection.field.clone(), unknown);
            match selection.test_only {
                true => has(selected).ok_or_else(|| "has() of what is no selection".to_string()),
                false => Ok(selected),
            }
        }
        Some(ExprKind::CallExpr(function)) => operator(function, depth, unknown),
        Some(ExprKind::ListExpr(list)) if list.optional_indices.is_empty() => {
            Ok(Expr::List(list.elements.iter().map(|e| convert(e, depth + 1, unknown)).collect::<Result<_, _>>()?))
        }
        Some(ExprKind::ListExpr(_)) => Err("a list with optional elements is not supported".to_string()),
        Some(ExprKind::StructExpr(_)) => Err("a map or message literal is not supported".to_string()),
        Some(ExprKind::ComprehensionExpr(_)) => Err("a comprehension (a macro such as exists()) is not supported".to_string()),
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
        Some(ConstantKind::DurationValue(_) | ConstantKind::TimestampValue(_)) => {
            return Err("a literal duration or timestamp is not supported: write duration(\"1s\")".to_string());
        }
        None => return Err("a constant without value".to_string()),
    })
}

fn operator(function: &Call, depth: usize, unknown: &mut Vec<String>) -> Result<Expr, String> {
    let name = function.function.as_str();
    let method = function.target.is_some();
    let all = function.target.as_deref().into_iter().chain(&function.args);
    let mut arguments = all.map(|a| convert(a, depth + 1, unknown)).collect::<Result<Vec<_>, _>>()?;
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
        _ => call(0, name, arguments, method).map_err(|e| match e.unsupported {
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

    #[test]
    fn what_is_not_supported_is_named() {
        for (yaml, what) in [
            ("{}", "empty"),
            ("{const_expr: {}}", "without value"),
            ("{struct_expr: {}}", "map or message"),
            ("{comprehension_expr: {iter_var: x}}", "comprehension"),
            ("{call_expr: {function: frobnicate}}", "frobnicate"),
            ("{call_expr: {function: _&&_, args: [{const_expr: {bool_value: true}}]}}", "takes 2"),
        ] {
            assert!(program(yaml).unwrap_err().contains(what), "{yaml}");
        }
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
