//! Header mutations from configuration: they compile or are refused, and no value that they write splits a message.

use http::Method;
use nuncio_core::diag::{At, Report};
use nuncio_core::{RequestHead, test_kit};
use nuncio_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use nuncio_proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use nuncio_route::HeaderParser;

/// Lines: even ones are names, odd ones formats; the first byte of a name chooses the action. The rest of each pair is applied in order.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    while let Some(name) = lines.next().filter(|_| add.len() < 8) {
        let value = lines.next().unwrap_or_default();
        let (action, name) = match name.chars().next() {
            Some('-') => {
                remove.push(name.trim_start_matches('-').to_string());
                continue;
            }
            Some('=') => (HeaderAppendAction::OverwriteIfExistsOrAdd, name.trim_start_matches('=')),
            Some('?') => (HeaderAppendAction::AddIfAbsent, name.trim_start_matches('?')),
            _ => (HeaderAppendAction::AppendIfExistsOrAdd, name),
        };
        let header = HeaderValue { key: name.to_string(), value: value.to_string(), ..HeaderValue::default() };
        add.push(HeaderValueOption { header: Some(header), append_action: action.into(), ..HeaderValueOption::default() });
    }
    let mut report = Report::new();
    let Some(parser) = HeaderParser::compile(&add, &At::Root, &remove, &At::Root, &mut report) else {
        assert!(!report.items.is_empty(), "refused without a word");
        return;
    };
    let mut head = RequestHead::new(Method::GET, "a.test", "/p?q");
    parser.apply_request(&mut head, &test_kit::stream_info(), None);
    for (_, value) in head.headers.iter() {
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{value:?}");
    }
    assert!(!head.path.as_str().contains(['\r', '\n', ' ']) && !head.authority.as_str().contains(['\r', '\n', ' ']));
}
