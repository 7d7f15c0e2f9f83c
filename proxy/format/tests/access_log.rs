//! Access logs: sinks, filters, and what is refused.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{context, exchange, text};
use nuncio_core::ResponseFlags;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self, fields};
use nuncio_format::{AccessLogType, AccessLogs, Files, FormatContext};
use nuncio_proto::Any;
use nuncio_proto::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier as S;
use nuncio_proto::envoy::config::accesslog::v3::{self as proto, AccessLog, AccessLogFilter, access_log::ConfigType};
use nuncio_proto::envoy::config::core::v3::{
    DataSource, RuntimeUInt32, SubstitutionFormatString, data_source::Specifier, substitution_format_string::Format,
};
use nuncio_proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use nuncio_proto::envoy::r#type::matcher::v3 as matcher;
use nuncio_proto::typed::pack;
use std::path::PathBuf;
use std::sync::Arc;

struct Dir(PathBuf);
impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nuncio-format-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }
}
impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn server() -> Arc<Server> {
    test_kit::server(fields([]))
}

fn file(path: &str, format: &str) -> AccessLog {
    let source = DataSource { specifier: Some(Specifier::InlineString(format.to_string())), ..Default::default() };
    let format = SubstitutionFormatString { format: Some(Format::TextFormatSource(source)), ..Default::default() };
    log(pack(&FileAccessLog { path: path.to_string(), access_log_format: Some(AccessLogFormat::LogFormat(format)) }))
}

fn log(any: Any) -> AccessLog {
    AccessLog { name: "log".into(), filter: None, config_type: Some(ConfigType::TypedConfig(any)) }
}

fn compile(logs: &[AccessLog], server: &Arc<Server>) -> Result<AccessLogs, String> {
    let mut report = Report::new();
    AccessLogs::compile(logs, server, &At::Root, &mut report).ok_or_else(|| report.summary())
}

#[test]
fn lines_of_all_workers_reach_one_file() {
    let dir = Dir::new("workers");
    let path = dir.file("a.log");
    let server = server();
    let logs = Arc::new(compile(&[file(&path, "one\n"), file(&path, "two\n")], &server).unwrap());
    let workers: Vec<_> = (0..4)
        .map(|i| {
            let logs = logs.clone();
            std::thread::spawn(move || {
                nuncio_core::stats::set_worker(i);
                let ex = exchange();
                (0..500).for_each(|_| logs.log(&context(&ex)));
            })
        })
        .collect();
    workers.into_iter().for_each(|w| w.join().unwrap());
    Files::flush();
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written.matches("one\n").count(), 2000);
    assert_eq!(written.matches("two\n").count(), 2000);
    assert_eq!(server.stats.value("filesystem.write_buffered"), Some(4000));
    assert_eq!(server.stats.value("filesystem.write_total_buffered"), Some(0));
    assert!(server.stats.value("filesystem.write_completed").unwrap() >= 1);
}

#[test]
fn files_are_opened_again_on_demand() {
    let dir = Dir::new("reopen");
    let path = dir.file("a.log");
    let logs = compile(&[file(&path, "x\n")], &server()).unwrap();
    let ex = exchange();
    logs.log(&context(&ex));
    Files::flush();
    std::fs::rename(&path, dir.file("old.log")).unwrap();
    logs.log(&context(&ex));
    Files::flush();
    Files::reopen();
    logs.log(&context(&ex));
    // What is left is written when the last log of the file goes.
    drop(logs);
    assert_eq!(std::fs::read_to_string(dir.file("old.log")).unwrap(), "x\nx\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n");
}

#[test]
fn a_full_disk_loses_lines_and_nothing_else() {
    let server = server();
    let logs = compile(&[file("/dev/full", "x\n")], &server).unwrap();
    let ex = exchange();
    for _ in 0..3 {
        logs.log(&context(&ex));
        Files::flush();
    }
    assert!(server.stats.value("filesystem.write_failed").unwrap() >= 3);
    assert_eq!(server.stats.value("filesystem.write_total_buffered"), Some(0));
}

#[test]
fn a_buffer_that_nobody_writes_out_is_bounded() {
    let server = server();
    let logs = compile(&[file("/dev/null", &"x".repeat(1000))], &server).unwrap();
    let ex = exchange();
    (0..3000).for_each(|_| logs.log(&context(&ex)));
    // Another test of this process may flush at any time, so only the sum is certain.
    let count = |name: &str| server.stats.value(&format!("filesystem.{name}")).unwrap();
    assert_eq!(count("write_buffered") + count("write_dropped"), 3000);
    assert!(count("write_total_buffered") <= 1024 * 1024 + 1000);
}

#[test]
fn the_default_format_is_used_without_one() {
    let dir = Dir::new("default");
    let path = dir.file("a.log");
    let logs = compile(&[log(pack(&FileAccessLog { path: path.clone(), access_log_format: None }))], &server()).unwrap();
    logs.log(&context(&exchange()));
    drop(logs);
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("[2026-11-21T09:28:01.321Z] \"GET /p%20ath?a=1%2b2&b=x HTTP/1.1\" 200 - "));
}

#[test]
fn what_is_refused() {
    let server = server();
    let refused = |log: AccessLog, words: &str| {
        let said = compile(&[log], &server).unwrap_err();
        assert!(said.contains(words), "{said}");
    };
    refused(file("/no/such/directory/a.log", "x"), "\"/no/such/directory/a.log\" cannot be opened");
    refused(file("/dev/null", "%NOPE%"), "[0].typed_config.log_format.text_format_source: Not supported field in StreamInfo: NOPE");
    let otel = nuncio_proto::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig::default();
    refused(log(pack(&otel)), "OpenTelemetryAccessLogConfig");
    refused(AccessLog { name: "n".into(), ..Default::default() }, "without typed_config");
    let mut bad = file("/dev/null", "x");
    bad.filter = Some(AccessLogFilter { filter_specifier: None });
    refused(bad.clone(), "[0].filter: an empty filter");
    let flags = proto::ResponseFlagFilter { flags: vec!["XX".into()] };
    bad.filter = Some(AccessLogFilter { filter_specifier: Some(S::ResponseFlagFilter(flags)) });
    refused(bad.clone(), "response_flag_filter.flags[0]: \"XX\"");
    bad.filter = Some(AccessLogFilter { filter_specifier: Some(S::AndFilter(proto::AndFilter { filters: vec![] })) });
    refused(bad, "and_filter.filters");
}

fn comparison(op: proto::comparison_filter::Op, value: u32, key: &str) -> Option<proto::ComparisonFilter> {
    Some(proto::ComparisonFilter { op: op as i32, value: Some(RuntimeUInt32 { default_value: value, runtime_key: key.into() }) })
}

#[test]
fn filters() {
    use proto::comparison_filter::Op;
    // A server, and with it a file, of its own: counts of writes are those of this test.
    let server = server();
    let dir = Dir::new("filters");
    let path = dir.file("a.log");
    let mut ex = exchange();
    ex.info.request_id = Some("0000000a-0000-4000-8000-000000000000".into());
    let passes = |filter: S, cx: &FormatContext<'_>| {
        let mut log = file(&path, "x");
        log.filter = Some(AccessLogFilter { filter_specifier: Some(filter) });
        let logs = compile(&[log], &server).unwrap();
        let before = server.stats.value("filesystem.write_buffered").unwrap_or(0);
        logs.log(cx);
        server.stats.value("filesystem.write_buffered").unwrap() > before
    };
    let status = |op, value, key: &str| S::StatusCodeFilter(proto::StatusCodeFilter { comparison: comparison(op, value, key) });
    let wrap = |filter: S| AccessLogFilter { filter_specifier: Some(filter) };
    let cx = context(&ex);
    assert!(passes(status(Op::Ge, 200, ""), &cx) && !passes(status(Op::Ge, 201, ""), &cx));
    assert!(passes(status(Op::Le, 200, ""), &cx) && passes(status(Op::Eq, 200, ""), &cx) && !passes(status(Op::Ne, 200, ""), &cx));
    assert!(!passes(status(Op::Ge, 500, "min"), &cx));
    server.runtime.set("min", "100");
    assert!(passes(status(Op::Ge, 500, "min"), &cx));
    let duration = |op, value| S::DurationFilter(proto::DurationFilter { comparison: comparison(op, value, "") });
    assert!(passes(duration(Op::Ge, 1), &cx) && !passes(duration(Op::Ge, 2), &cx));
    let and = |a: S, b: S| S::AndFilter(proto::AndFilter { filters: vec![wrap(a), wrap(b)] });
    let or = |a: S, b: S| S::OrFilter(proto::OrFilter { filters: vec![wrap(a), wrap(b)] });
    let (yes, no) = (|| status(Op::Eq, 200, ""), || status(Op::Eq, 201, ""));
    assert!(passes(and(yes(), yes()), &cx) && !passes(and(yes(), no()), &cx));
    assert!(passes(or(no(), yes()), &cx) && !passes(or(no(), no()), &cx));
    assert!(passes(S::NotHealthCheckFilter(Default::default()), &cx) && !passes(S::TraceableFilter(Default::default()), &cx));
    let types = |exclude| S::LogTypeFilter(proto::LogTypeFilter { types: vec![AccessLogType::DownstreamEnd as i32], exclude });
    assert!(passes(types(false), &cx) && !passes(types(true), &cx));
    assert!(!passes(types(false), &cx.of_type(AccessLogType::DownstreamStart)));
    let header = nuncio_proto::envoy::config::route::v3::HeaderMatcher {
        name: "x-a".into(),
        header_match_specifier: Some(nuncio_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    };
    let header = || S::HeaderFilter(proto::HeaderFilter { header: Some(header.clone()) });
    assert!(passes(header(), &cx) && !passes(header(), &FormatContext::new(&ex.info)));
    let grpc = |exclude| S::GrpcStatusFilter(proto::GrpcStatusFilter { statuses: vec![2], exclude });
    assert!(passes(grpc(false), &cx) && !passes(grpc(true), &cx));
    let runtime = |percent| {
        let percent_sampled = Some(nuncio_proto::envoy::r#type::v3::FractionalPercent { numerator: percent, denominator: 0 });
        S::RuntimeFilter(proto::RuntimeFilter { runtime_key: "k".into(), percent_sampled, use_independent_randomness: false })
    };
    // The request id begins with 10 in hex.
    assert!(passes(runtime(11), &cx) && !passes(runtime(10), &cx));
    let metadata = |value: &str, if_missing: Option<bool>| {
        let pattern = Some(matcher::string_matcher::MatchPattern::Exact(value.into()));
        let string = matcher::StringMatcher { match_pattern: pattern, ignore_case: false };
        let segment = matcher::metadata_matcher::path_segment::Segment::Key("k".into());
        let m = matcher::MetadataMatcher {
            filter: "ns".into(),
            path: vec![matcher::metadata_matcher::PathSegment { segment: Some(segment) }],
            value: Some(matcher::ValueMatcher { match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(string)) }),
            invert: false,
        };
        S::MetadataFilter(proto::MetadataFilter { matcher: Some(m), match_if_key_not_found: if_missing })
    };
    assert!(passes(metadata("v", None), &cx) && !passes(metadata("v", Some(false)), &cx));
    let flags =
        |names: &[&str]| S::ResponseFlagFilter(proto::ResponseFlagFilter { flags: names.iter().map(ToString::to_string).collect() });
    assert!(!passes(flags(&[]), &cx));
    ex.info.set_metadata("ns", fields([("k", text("v"))]));
    ex.info.flags.set(ResponseFlags::NO_HEALTHY_UPSTREAM);
    ex.info.health_check = true;
    ex.info.sampled = true;
    let cx = context(&ex);
    assert!(passes(metadata("v", Some(false)), &cx) && !passes(metadata("w", Some(true)), &cx));
    assert!(passes(flags(&[]), &cx) && passes(flags(&["UF", "UH"]), &cx) && !passes(flags(&["UF"]), &cx));
    assert!(!passes(S::NotHealthCheckFilter(Default::default()), &cx) && passes(S::TraceableFilter(Default::default()), &cx));
}
