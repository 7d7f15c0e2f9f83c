//! Direct responses. Source: DirectResponseAction.

use crate::cx::RouteCx;
use bytes::Bytes;
use nuncio_core::diag::At;
use nuncio_core::{RequestHead, StreamInfo};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::config::core::v3::DataSource;
use nuncio_proto::envoy::config::core::v3::data_source::Specifier;
use nuncio_proto::envoy::config::route::v3 as proto;

/// A compiled direct response.
#[derive(Debug)]
pub struct DirectResponse {
    status: u16,
    body: Bytes,
    /// The body as text, for `%LOCAL_REPLY_BODY%`.
    text: Box<str>,
    format: Option<Formatter>,
}

impl DirectResponse {
    /// Compiles `DirectResponseAction`. A body of more than `limit` bytes is refused.
    pub(crate) fn compile(action: &proto::DirectResponseAction, limit: u32, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        let Some(status) = u16::try_from(action.status).ok().filter(|s| (200..600).contains(s)) else {
            return cx.refuse(&at.field("status"), action.status.to_string(), "give a status from 200 to 599");
        };
        let at_body = at.field("body");
        let body = match &action.body {
            Some(source) => read(source, limit, &at_body, cx)?,
            None => Bytes::new(),
        };
        if body.len() > limit as usize {
            let found = format!("a body of {} bytes", body.len());
            return cx.refuse(
                &at_body,
                found,
                format!("the limit is {limit} bytes: raise max_direct_response_body_size_bytes of the route configuration"),
            );
        }
        let format = match &action.body_format {
            Some(format) => Some(Formatter::compile(format, &at.field("body_format"), cx.report)?),
            None => None,
        };
        let text = if format.is_some() { String::from_utf8_lossy(&body).into() } else { Box::default() };
        Some(Self { status, body, text, format })
    }
    /// 200 to 599.
    pub fn status(&self) -> u16 {
        self.status
    }
    /// The body for this request; without a format it is shared, not copied.
    pub fn body(&self, request: &RequestHead, info: &StreamInfo) -> Bytes {
        match &self.format {
            None => self.body.clone(),
            Some(format) => {
                let mut out = Vec::new();
                format.write(&FormatContext { local_reply_body: &self.text, ..FormatContext::request(info, request) }, &mut out);
                out.into()
            }
        }
    }
    /// Whether a body format makes the body.
    pub fn is_formatted(&self) -> bool {
        self.format.is_some()
    }
    /// Content type of the body.
    pub fn content_type(&self) -> &str {
        self.format.as_ref().map_or("text/plain", Formatter::content_type)
    }
}

/// Reads a data source, at most a little more than `limit` bytes of a file.
fn read(source: &DataSource, limit: u32, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Bytes> {
    use std::io::Read;
    if source.watched_directory.is_some() {
        cx.report.warning(&at.field("watched_directory"), "watched_directory", "ignored: the file is read when the route is loaded");
    }
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Some(Bytes::copy_from_slice(text.as_bytes())),
        Some(Specifier::InlineBytes(bytes)) => Some(Bytes::copy_from_slice(bytes)),
        Some(Specifier::Filename(name)) => {
            let mut body = Vec::new();
            match std::fs::File::open(name).and_then(|file| file.take(u64::from(limit) + 1).read_to_end(&mut body)) {
                Ok(_) => Some(body.into()),
                Err(why) => cx.refuse(&at.field("filename"), format!("\"{name}\": {why}"), "give a file that can be read"),
            }
        }
        Some(Specifier::EnvironmentVariable(name)) => match std::env::var(name) {
            Ok(text) => Some(text.into()),
            Err(_) => cx.refuse(&at.field("environment_variable"), format!("\"{name}\" is not set"), "set it, or give the body inline"),
        },
        None => cx.refuse(at, "an empty body source", "set inline_string, inline_bytes, filename or environment_variable"),
    }
}
