//! Expressions, with a compiler that knows one word. A process has one compiler, so this is a test binary of its own.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{context, exchange, shown};
use nuncio_core::diag::{At, Report};
use nuncio_format::{Expression, ExpressionSource, FormatContext, LogFilter, set_expressions};
use nuncio_proto::envoy::config::accesslog::v3::{AccessLogFilter, ExtensionFilter, access_log_filter::FilterSpecifier, extension_filter};
use nuncio_proto::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use nuncio_proto::typed::pack;

#[derive(Debug)]
struct Code;
impl Expression for Code {
    fn holds(&self, cx: &FormatContext<'_>) -> bool {
        cx.info.response_code >= 400
    }
    fn print(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(cx.info.response_code.to_string().as_bytes());
        cx.info.response_code > 0
    }
}

#[test]
fn expressions_print_and_filter() {
    set_expressions(Box::new(|source| match source {
        ExpressionSource::Text("code") => Ok(Box::new(Code)),
        ExpressionSource::Text(other) => Err(format!("unknown {other}")),
        ExpressionSource::Parsed(_) => Err("parsed".into()),
    }));
    let mut ex = exchange();
    assert_eq!(shown("%CEL(code)% %CEL(code):1%", &context(&ex)), "200 2");
    let filter = |text: &str, report: &mut Report| {
        let config_type =
            Some(extension_filter::ConfigType::TypedConfig(pack(&ExpressionFilter { expression: text.into(), cel_config: None })));
        let extension = FilterSpecifier::ExtensionFilter(ExtensionFilter { name: "cel".into(), config_type });
        LogFilter::compile(&AccessLogFilter { filter_specifier: Some(extension) }, &At::Root, report)
    };
    let mut report = Report::new();
    let errors = filter("code", &mut report).unwrap();
    let runtime = nuncio_core::registry::Runtime::default();
    assert!(!errors.passes(&context(&ex), &runtime));
    ex.info.response_code = 503;
    assert!(errors.passes(&context(&ex), &runtime));
    assert!(filter("nope", &mut report).is_none());
    assert!(report.summary().contains("expression \"nope\": unknown nope"), "{}", report.summary());
}
