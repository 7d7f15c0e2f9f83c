//! Substitution formatter (`%REQ(:PATH)%` and the other operators of Envoy 1.40) and access logs. Formats are compiled on the
//! control thread into segments; workers run them without allocation beyond the output buffer.
//! Source: Envoy's `docs/root/configuration/observability/access_log/usage.rst` and `envoy/config/core/v3/substitution_format_string.proto`.

mod access_log;
mod context;
mod formatter;

pub use access_log::{AccessLogs, Files};
pub use context::{AccessLogType, FormatContext};
pub use formatter::{DEFAULT_FORMAT, Formatter};
