//! Local replies: mapping by configuration, gRPC form for gRPC requests, Envoy's headers. Runs on workers.
//! Source: `LocalReplyConfig`, Envoy's `Http::Utility::sendLocalReply` and `Grpc::Utility::httpToGrpcStatus`.

use crate::names::{GRPC_MESSAGE, GRPC_STATUS};
use http::{HeaderValue, StatusCode, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::exchange::Exchange;
use nuncio_core::grpc::grpc_from_http;
use nuncio_core::registry::Runtime;
use nuncio_core::{Body, ByteStr, LocalReply, ResponseHead};
use nuncio_format::{FormatContext, Formatter, LogFilter};
use nuncio_proto::envoy::config::core::v3::data_source::Specifier;
use nuncio_proto::envoy::config::core::v3::{DataSource, SubstitutionFormatString};
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use nuncio_route::HeaderParser;

/// Compiled `local_reply_config`.
#[derive(Debug, Default)]
pub struct LocalReplyConfig {
    pub mappers: Vec<Mapper>,
    pub format: Option<BodyFormat>,
}

/// How a local reply's body is written.
#[derive(Debug)]
pub struct BodyFormat {
    pub formatter: Formatter,
    pub content_type: HeaderValue,
}

/// One `ResponseMapper`; the first whose filter matches applies.
#[derive(Debug)]
pub struct Mapper {
    pub filter: LogFilter,
    pub status: Option<u16>,
    pub body: Option<bytes::Bytes>,
    pub format: Option<BodyFormat>,
    pub headers: HeaderParser,
}

/// Compiles `local_reply_config`.
pub fn compile(config: &pb::LocalReplyConfig, at: &At<'_>, report: &mut Report) -> Option<LocalReplyConfig> {
    let errors = report.errors();
    let format = config.body_format.as_ref().and_then(|f| body_format(f, &at.field("body_format"), report));
    let mut mappers = Vec::new();
    let list = at.field("mappers");
    for (i, mapper) in config.mappers.iter().enumerate() {
        let here = list.index(i);
        let Some(filter) = &mapper.filter else {
            report.error(&here.field("filter"), "missing", "a filter is required");
            continue;
        };
        let filter = LogFilter::compile(filter, &here.field("filter"), report);
        let body = match mapper.body.as_ref().map(|source| data_source(source, &here.field("body"), report)) {
            Some(None) => continue,
            Some(Some(body)) => Some(body),
            None => None,
        };
        let format = mapper.body_format_override.as_ref().and_then(|f| body_format(f, &here.field("body_format_override"), report));
        let headers = HeaderParser::compile(&mapper.headers_to_add, &here.field("headers_to_add"), &[], &here, report);
        let status = mapper.status_code.map(|code| {
            u16::try_from(code).ok().filter(|c| (200..600).contains(c)).unwrap_or_else(|| {
                report.error(&here.field("status_code"), format!("value {code}"), "200 to 599");
                500
            })
        });
        if let (Some(filter), Some(headers)) = (filter, headers) {
            mappers.push(Mapper { filter, status, body, format, headers });
        }
    }
    (report.errors() == errors).then_some(LocalReplyConfig { mappers, format })
}

/// The bytes of a data source; files are read once, when the configuration is loaded.
fn data_source(source: &DataSource, at: &At<'_>, report: &mut Report) -> Option<bytes::Bytes> {
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Some(text.clone().into()),
        Some(Specifier::InlineBytes(bytes)) => Some(bytes.clone().into()),
        Some(Specifier::Filename(path)) => match std::fs::read(path) {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                report.error(&at.field("filename"), format!("{path}: {error}"), "name a readable file");
                None
            }
        },
        Some(Specifier::EnvironmentVariable(name)) => match std::env::var(name) {
            Ok(text) => Some(text.into()),
            Err(_) => {
                report.error(&at.field("environment_variable"), format!("{name} is not set"), "name a variable of the process");
                None
            }
        },
        None => {
            report.error(at, "no source", "set inline_string, inline_bytes, filename or environment_variable");
            None
        }
    }
}

fn body_format(proto: &SubstitutionFormatString, at: &At<'_>, report: &mut Report) -> Option<BodyFormat> {
    let formatter = Formatter::compile(proto, at, report)?;
    let content_type = HeaderValue::from_str(formatter.content_type()).unwrap_or(HeaderValue::from_static("text/plain"));
    Some(BodyFormat { formatter, content_type })
}

/// Puts `reply` into the exchange as its response. `headed`: there is a request that formats may show.
pub fn install(config: &LocalReplyConfig, runtime: &Runtime, ex: &mut Exchange, reply: LocalReply, headed: bool) {
    let LocalReply { mut status, mut body, details, flags, headers, grpc_status } = reply;
    ex.info.flags.set(flags);
    ex.info.details = Some(details);
    ex.info.response_code = status;
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    head.headers = headers;
    let mapper = config.mappers.iter().find(|m| m.filter.passes(&context(ex, &head, &body, headed), runtime));
    let mut content_type = HeaderValue::from_static("text/plain");
    let before = body.clone();
    if let Some(mapper) = mapper {
        let mut added = std::mem::take(&mut head.headers);
        mapper.headers.apply(&mut added, &context(ex, &head, &body, headed));
        head.headers = added;
        if let Some(mapped) = mapper.status {
            status = mapped;
            ex.info.response_code = mapped;
            head.status = StatusCode::from_u16(mapped).unwrap_or(head.status);
        }
        if let Some(mapped) = &mapper.body {
            body = mapped.clone();
        }
    }
    if let Some(format) = mapper.and_then(|m| m.format.as_ref()).or(config.format.as_ref()) {
        let mut text = String::new();
        format.formatter.format(&context(ex, &head, &body, headed), &mut text);
        body = text.into();
        content_type = format.content_type.clone();
    }
    // A service that wrote the headers may have told the length of another body.
    if body.is_empty() || ex.info.grpc_request {
        head.headers.remove(&header::CONTENT_LENGTH);
    }
    if ex.info.grpc_request {
        grpc_form(&mut head, &body, grpc_status.unwrap_or_else(|| grpc_from_http(status)));
        ex.response_body = Body::Empty;
    } else {
        if body.is_empty() {
            head.headers.remove(&header::CONTENT_TYPE);
        } else {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            // A body that was rewritten is no longer what the type was said of.
            if !head.headers.contains(&header::CONTENT_TYPE) || body != before {
                head.headers.insert(header::CONTENT_TYPE, content_type);
            }
        }
        // HEAD announces the length and sends nothing; the codec knows.
        ex.response_body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
    }
    ex.response = Some(head);
}

/// A gRPC response without body: 200 with `grpc-status` and percent-encoded `grpc-message`.
fn grpc_form(head: &mut ResponseHead, message: &[u8], status: u32) {
    head.status = StatusCode::OK;
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(GRPC_STATUS.clone(), HeaderValue::from(status));
    if !message.is_empty()
        && let Some(text) = nuncio_core::headers::value(percent_encode(message))
    {
        head.headers.insert(GRPC_MESSAGE.clone(), text);
    }
}

fn percent_encode(message: &[u8]) -> ByteStr {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(message.len());
    for &b in message {
        if (b' '..=b'~').contains(&b) && b != b'%' {
            out.push(char::from(b));
        } else {
            out.push('%');
            for n in [b >> 4, b & 15] {
                out.push(char::from(HEX.get(usize::from(n)).copied().unwrap_or(b'0')));
            }
        }
    }
    out.into()
}

fn context<'a>(ex: &'a Exchange, head: &'a ResponseHead, body: &'a [u8], headed: bool) -> FormatContext<'a> {
    FormatContext {
        request: headed.then_some(&ex.request),
        response: Some(head),
        local_reply_body: std::str::from_utf8(body).unwrap_or_default(),
        ..FormatContext::new(&ex.info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use nuncio_core::RequestHead;
    use nuncio_core::test_kit as kit;

    #[test]
    fn a_length_that_is_not_the_bodys_is_not_said() {
        let server = kit::server(Default::default());
        for (body, grpc, length) in [("", false, None), ("abc", true, None), ("abc", false, Some("3"))] {
            let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
            ex.info.grpc_request = grpc;
            let mut reply = LocalReply::new(403, body, "ext_authz_denied");
            reply.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("10"));
            install(&LocalReplyConfig::default(), &server.runtime, &mut ex, reply, true);
            assert_eq!(ex.response.unwrap().headers.get_str(&header::CONTENT_LENGTH), length, "{body} {grpc}");
        }
    }
}
