//! CEL in formats (`%CEL(..)%`), in filters of access logs, which Istio Telemetry writes, and in conditions of filters (RBAC).
//! nuncio-format asks for it by a hook.

use super::{Attributes, Program, Value, typed};
use nuncio_format::{Expression, ExpressionSource, FormatContext};
use serde_json::Value as Json;

/// Compiles an expression for nuncio-format and the filters.
pub fn compile(source: ExpressionSource<'_>) -> Result<Box<dyn Expression>, String> {
    let program = match source {
        ExpressionSource::Text(text) => Program::compile(text).map_err(|e| e.to_string())?,
        ExpressionSource::Parsed(expr) => Program::from_proto(expr)?,
    };
    if !program.unknown().is_empty() {
        // Envoy accepts these and fails at every request; saying so is what is left to do.
        log::warn!("an expression reads what does not exist: {}", program.unknown().join(", "));
    }
    Ok(Box::new(Compiled(program)))
}

#[derive(Debug)]
struct Compiled(Program);

fn attributes<'a>(cx: &FormatContext<'a>) -> Attributes<'a> {
    Attributes { info: cx.info, request: cx.request, response: cx.response, trailers: cx.trailers, route: cx.route, server: None }
}

impl Expression for Compiled {
    fn holds(&self, cx: &FormatContext<'_>) -> bool {
        matches!(self.0.run(&attributes(cx)), Some(Value::Bool(true)))
    }
    fn print(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let mut text = String::new();
        let printed = self.0.print(&attributes(cx), &mut text);
        out.extend_from_slice(text.as_bytes());
        printed
    }
    fn print_typed(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Option<bool> {
        match typed::json(&self.0.run(&attributes(cx))?)? {
            // No value in JSON.
            Json::Null => None,
            Json::String(text) => {
                out.extend_from_slice(text.as_bytes());
                Some(true)
            }
            other => {
                out.extend_from_slice(other.to_string().as_bytes());
                Some(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_core::test_kit as kit;

    #[test]
    fn decides_and_prints() {
        let compile = |text| super::compile(ExpressionSource::Text(text));
        let mut info = kit::stream_info();
        info.response_code = 503;
        let cx = FormatContext::new(&info);
        assert!(compile("response.code >= 400").unwrap().holds(&cx));
        assert!(!compile("request.path == '/'").unwrap().holds(&cx));
        assert!(!compile("response.code").unwrap().holds(&cx));
        let mut out = Vec::new();
        assert!(compile("response.code").unwrap().print(&cx, &mut out));
        assert!(!compile("request.path").unwrap().print(&cx, &mut out));
        assert_eq!(out, b"503");
        assert!(compile("1 +").unwrap_err().contains("offset"));
    }
}
