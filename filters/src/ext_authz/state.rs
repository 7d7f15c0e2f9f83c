//! What ext_authz leaves in filter state for access logs: what a call took (`emit_filter_state_stats`), and what would have become of
//! the request (`shadow_mode`). Made on workers, read by formats and CEL. Source: Envoy's `ExtAuthzLoggingInfo` and `ExtAuthzDecision`.

use super::verdict::Pair;
use nuncio_core::filter_state::StateObject;
use serde_json::{Map, Value, json};
use std::any::Any;
use std::time::Duration;

/// A call that was made; under the filter's name.
#[derive(Debug)]
pub struct Call {
    pub latency: Duration,
    /// Bytes on the wire, there and back; none over HTTP, as in Envoy.
    pub bytes: Option<(u64, u64)>,
}

impl StateObject for Call {
    fn field(&self, name: &str) -> Option<String> {
        match name {
            "latency_us" => Some(self.latency.as_micros().to_string()),
            "bytesSent" => self.bytes.map(|(sent, _)| sent.to_string()),
            "bytesReceived" => self.bytes.map(|(_, received)| received.to_string()),
            _ => None,
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What the filter would have done; under the filter's name and `.shadow`.
#[derive(Debug)]
pub struct Decision {
    /// `OK`, `DENIED` or `ERROR`.
    pub result: &'static str,
    pub status: u16,
    /// Headers that the response of a denial would have had.
    pub headers: Vec<Pair>,
}

impl Decision {
    fn json(&self, names: [&str; 3]) -> String {
        let [result, status, headers] = names;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let pair = |(name, value): &Pair| match value.is_empty() {
            true => json!({"key": name}),
            false => json!({"key": name, "value": text(value)}),
        };
        let mut out = Map::new();
        out.insert(result.to_string(), json!(self.result));
        out.insert(status.to_string(), json!(self.status));
        if !self.headers.is_empty() {
            out.insert(headers.to_string(), Value::Array(self.headers.iter().map(pair).collect()));
        }
        Value::Object(out).to_string()
    }
}

impl StateObject for Decision {
    fn field(&self, name: &str) -> Option<String> {
        match name {
            "check_result" => Some(self.result.to_string()),
            "status_code" => Some(self.status.to_string()),
            _ => None,
        }
    }
    fn as_string(&self) -> Option<String> {
        Some(self.json(["check_result", "status_code", "response_headers"]))
    }
    fn as_json(&self) -> Option<String> {
        Some(self.json(["checkResult", "statusCode", "responseHeaders"]))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
