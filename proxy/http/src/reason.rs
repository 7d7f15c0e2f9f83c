//! Reason phrases of HTTP/1 status lines, in Envoy's words (`Http::CodeUtility::toString`). Called by the HTTP/1 encoder and by the
//! connection manager for what it answers to malformed requests; any thread.

use http::StatusCode;

/// The phrase of `status`; `Unknown` for codes that Envoy does not name.
pub fn reason_phrase(status: StatusCode) -> &'static str {
    match status.as_u16() {
        203 => "Non-Authoritative Information",
        207 => "Multi-Status",
        226 => "IM Used",
        418 => "Unknown",
        425 => "Too Early",
        451 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}
