//! A compiled format.

use crate::FormatContext;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::{SubstitutionFormatString, TypedExtensionConfig};

/// Envoy's default access log format, newline included.
pub const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// A compiled format: text or JSON. Shared by all workers.
#[derive(Debug)]
pub struct Formatter {
    text: String,
}

impl Formatter {
    /// Compiles a text format such as `%REQ(:PATH)% %RESPONSE_CODE%`. `%%` is a percent sign. Missing values become `-`.
    /// An unknown operator or a wrong argument is an error at `at`.
    pub fn text(format: &str, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::text_with(format, &[], false, at, report)
    }
    /// As [`Self::text`], with formatter extensions, and missing values empty if `omit_empty`.
    pub fn text_with(
        format: &str,
        _extensions: &[TypedExtensionConfig],
        _omit_empty: bool,
        _at: &At<'_>,
        _report: &mut Report,
    ) -> Option<Self> {
        Some(Self { text: format.to_string() })
    }
    /// Compiles a format of local replies, direct responses and access logs.
    pub fn compile(config: &SubstitutionFormatString, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let _ = config;
        Self::text("", at, report)
    }
    /// Compiles a header value of `headers_to_add`: as [`Self::text`], but missing values are empty.
    pub fn header(format: &str, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::text_with(format, &[], true, at, report)
    }
    /// Appends the result to `out`, as bytes because header values may hold any.
    pub fn write(&self, _cx: &FormatContext<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.text.as_bytes());
    }
    /// Appends the result to `out`; bytes that are not UTF-8 become U+FFFD.
    pub fn format(&self, cx: &FormatContext<'_>, out: &mut String) {
        let mut bytes = Vec::new();
        self.write(cx, &mut bytes);
        out.push_str(&String::from_utf8_lossy(&bytes));
    }
    /// The text, if the format has no operator.
    pub fn literal(&self) -> Option<&str> {
        Some(&self.text)
    }
    /// Content type that the format asks for: `SubstitutionFormatString.content_type`, else `application/json` for JSON, else `text/plain`.
    pub fn content_type(&self) -> &str {
        "text/plain"
    }
}
