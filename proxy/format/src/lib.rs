//! Substitution formatter (`%REQ(:PATH)%` and the other operators of Envoy 1.40) and access logs. Formats are compiled on the
//! control thread into segments; workers run them without allocation beyond the output buffer.
//! Source: Envoy's documentation of substitution formatting and `envoy/config/core/v3/substitution_format_string.proto`.

mod access_log;
mod context;
mod expression;
mod file;
mod filter;
mod formatter;
mod json;
mod logger;
mod op;
mod parse;
mod time;
mod tlv;
mod value;

pub use access_log::AccessLogs;
pub use context::{AccessLogType, FormatContext};
pub use expression::{Expression, ExpressionCompiler, ExpressionSource, compile_expression, set_expressions};
pub use file::Files;
pub use filter::LogFilter;
pub use formatter::{DEFAULT_FORMAT, Formatter};
pub use logger::{Logger, LoggerFactory, set_loggers};
pub use tlv::Tlvs;
pub use value::{OpValue, ValueFactory, ValueSource, set_values};
