//! Access log filters: which streams are logged. Compiled on the control thread, run on workers.
//! Source: `envoy/config/accesslog/v3/accesslog.proto`, Envoy's `access_log/access_log_impl.cc`.

use crate::FormatContext;
use crate::expression::{self, Expression};
use crate::op::grpc_status;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Runtime;
use nuncio_core::{Headers, ResponseFlags};
use nuncio_matcher::metadata::value_at;
use nuncio_matcher::{HeaderMatcher, RuntimeFraction, ValueMatcher};
use nuncio_proto::envoy::config::accesslog::v3 as proto;
use nuncio_proto::envoy::config::core::v3::RuntimeFractionalPercent;
use nuncio_proto::envoy::data::accesslog::v3::AccessLogType;
use nuncio_proto::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use nuncio_proto::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use nuncio_proto::{Message, Name, typed};
use proto::access_log_filter::FilterSpecifier as S;
use proto::comparison_filter::Op;

/// A number compared with a constant that the runtime may override.
#[derive(Debug)]
pub(crate) struct Comparison {
    op: Op,
    default: u64,
    key: Box<str>,
}

impl Comparison {
    fn compile(config: Option<&proto::ComparisonFilter>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(config) = config else {
            report.error(at, "no comparison", "give op and value");
            return None;
        };
        let Ok(op) = Op::try_from(config.op) else {
            report.error(&at.field("op"), format!("{}", config.op), "use EQ, GE, LE or NE");
            return None;
        };
        let value = config.value.clone().unwrap_or_default();
        Some(Self { op, default: u64::from(value.default_value), key: value.runtime_key.into() })
    }
    fn holds(&self, n: u64, runtime: &Runtime) -> bool {
        let value = if self.key.is_empty() { self.default } else { runtime.integer(&self.key, self.default) };
        match self.op {
            Op::Eq => n == value,
            Op::Ge => n >= value,
            Op::Le => n <= value,
            Op::Ne => n != value,
        }
    }
}

/// A compiled access log filter; also what chooses mappers of local replies.
#[derive(Debug)]
pub struct LogFilter(Filter);

impl LogFilter {
    /// Compiles one filter; problems go to `report`. None means refused.
    pub fn compile(config: &proto::AccessLogFilter, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Filter::compile(config, at, report).map(Self)
    }
    /// Whether the stream passes.
    pub fn passes(&self, cx: &FormatContext<'_>, runtime: &Runtime) -> bool {
        self.0.passes(cx, runtime)
    }
}

#[derive(Debug)]
enum Filter {
    Status(Comparison),
    Duration(Comparison),
    NotHealthCheck,
    Traceable,
    Runtime {
        fraction: RuntimeFraction,
        independent: bool,
    },
    And(Box<[Filter]>),
    Or(Box<[Filter]>),
    Header(Box<HeaderMatcher>),
    /// Any of these; any at all if empty.
    Flags(ResponseFlags),
    Grpc {
        statuses: Box<[i64]>,
        exclude: bool,
    },
    Metadata {
        namespace: Box<str>,
        path: Box<[Box<str>]>,
        value: Option<ValueMatcher>,
        if_missing: bool,
    },
    Type {
        types: Box<[AccessLogType]>,
        exclude: bool,
    },
    Expression(Box<dyn Expression>),
}

fn all(filters: &[proto::AccessLogFilter], at: &At<'_>, report: &mut Report) -> Option<Box<[Filter]>> {
    if filters.len() < 2 {
        report.error(&at.field("filters"), format!("{} filters", filters.len()), "give at least two");
        return None;
    }
    nuncio_matcher::compile_all(filters, &at.field("filters"), report, Filter::compile)
}

fn metadata(config: &proto::MetadataFilter, at: &At<'_>, report: &mut Report) -> Option<Filter> {
    let matcher = config.matcher.clone().unwrap_or_default();
    let at = at.field("matcher");
    let path = matcher.path.iter().filter_map(|p| p.segment.as_ref().map(|Segment::Key(key)| key.as_str().into()));
    let value = match &matcher.value {
        Some(value) => Some(ValueMatcher::compile(value, &at.field("value"), report)?),
        None => None,
    };
    let path = path.collect();
    Some(Filter::Metadata { namespace: matcher.filter.into(), path, value, if_missing: config.match_if_key_not_found.unwrap_or(true) })
}

/// `ExpressionFilter` is the one extension that is known.
fn extension(config: &proto::ExtensionFilter, at: &At<'_>, report: &mut Report) -> Option<Filter> {
    let any = config.config_type.as_ref().map(|proto::extension_filter::ConfigType::TypedConfig(any)| any);
    let typed = match any.map(typed::unpack).transpose() {
        Ok(typed) => typed,
        Err(e) => {
            report.error(at, e, "correct the typed_config");
            return None;
        }
    };
    let name = typed.as_ref().map_or("", |t| t.name.as_str());
    let Some(typed) = typed.as_ref().filter(|t| t.name == ExpressionFilter::full_name()) else {
        report.unsupported(at, format_args!("access log filter {:?} ({name})", config.name));
        return None;
    };
    let filter = ExpressionFilter::decode(typed.value.as_ref());
    let compiled = filter.map_err(|e| e.to_string()).and_then(|f| expression::compile(&f.expression));
    compiled.map_err(|e| report.error(&at.field("typed_config"), e, "correct the expression")).ok().map(Filter::Expression)
}

impl Filter {
    fn compile(config: &proto::AccessLogFilter, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Some(match &config.filter_specifier {
            Some(S::StatusCodeFilter(f)) => {
                Self::Status(Comparison::compile(f.comparison.as_ref(), &at.field("status_code_filter").field("comparison"), report)?)
            }
            Some(S::DurationFilter(f)) => {
                Self::Duration(Comparison::compile(f.comparison.as_ref(), &at.field("duration_filter").field("comparison"), report)?)
            }
            Some(S::NotHealthCheckFilter(_)) => Self::NotHealthCheck,
            Some(S::TraceableFilter(_)) => Self::Traceable,
            Some(S::RuntimeFilter(f)) => {
                let at = at.field("runtime_filter");
                if f.runtime_key.is_empty() {
                    report.error(&at.field("runtime_key"), "nothing", "set runtime_key");
                    return None;
                }
                let default_value = Some(f.percent_sampled.unwrap_or_default());
                let fraction = RuntimeFractionalPercent { default_value, runtime_key: f.runtime_key.clone() };
                let fraction = RuntimeFraction::compile(&fraction, &at.field("percent_sampled"), report)?;
                Self::Runtime { fraction, independent: f.use_independent_randomness }
            }
            Some(S::AndFilter(f)) => Self::And(all(&f.filters, &at.field("and_filter"), report)?),
            Some(S::OrFilter(f)) => Self::Or(all(&f.filters, &at.field("or_filter"), report)?),
            Some(S::HeaderFilter(f)) => {
                let at = at.field("header_filter");
                let at = at.field("header");
                let Some(header) = &f.header else {
                    report.error(&at, "nothing", "give a header matcher");
                    return None;
                };
                Self::Header(Box::new(HeaderMatcher::compile(header, &at, report)?))
            }
            Some(S::ResponseFlagFilter(f)) => {
                let mut flags = ResponseFlags::default();
                for (i, name) in f.flags.iter().enumerate() {
                    let Some(flag) = ResponseFlags::from_short(name) else {
                        let at = at.field("response_flag_filter");
                        report.error(&at.field("flags").index(i), format!("{name:?}"), "use a short response flag such as UH");
                        return None;
                    };
                    flags.set(flag);
                }
                Self::Flags(flags)
            }
            Some(S::GrpcStatusFilter(f)) => Self::Grpc { statuses: f.statuses.iter().map(|s| i64::from(*s)).collect(), exclude: f.exclude },
            Some(S::MetadataFilter(f)) => return metadata(f, &at.field("metadata_filter"), report),
            Some(S::LogTypeFilter(f)) => {
                let types = f.types.iter().filter_map(|t| AccessLogType::try_from(*t).ok()).collect();
                Self::Type { types, exclude: f.exclude }
            }
            Some(S::ExtensionFilter(f)) => {
                return extension(f, &at.field("extension_filter"), report);
            }
            None => {
                report.error(at, "an empty filter", "give a filter or leave the field out");
                return None;
            }
        })
    }

    fn passes(&self, cx: &FormatContext<'_>, runtime: &Runtime) -> bool {
        let info = cx.info;
        match self {
            Self::Status(comparison) => comparison.holds(u64::from(info.response_code), runtime),
            Self::Duration(comparison) => comparison.holds(info.duration.unwrap_or_else(|| info.elapsed()).as_millis() as u64, runtime),
            Self::NotHealthCheck => !info.health_check,
            Self::Traceable => info.sampled,
            Self::Runtime { fraction, independent } => fraction.contains(runtime, random(cx, *independent)),
            Self::And(all) => all.iter().all(|f| f.passes(cx, runtime)),
            Self::Or(all) => all.iter().any(|f| f.passes(cx, runtime)),
            Self::Header(matcher) => match cx.request {
                Some(request) => matcher.matches(request),
                None => matcher.matches(&Headers::new()),
            },
            Self::Flags(flags) if flags.is_empty() => !info.flags.is_empty(),
            Self::Flags(flags) => info.flags.has(*flags),
            Self::Grpc { statuses, exclude } => statuses.contains(&grpc_status(cx).unwrap_or(2)) != *exclude,
            Self::Metadata { namespace, path, value, if_missing } => {
                let found = info.metadata(namespace).and_then(|s| value_at(s, path));
                let found = found.filter(|v| v.kind.is_some());
                match found {
                    Some(found) => value.as_ref().is_some_and(|v| v.matches(Some(found))),
                    None => *if_missing,
                }
            }
            Self::Expression(expression) => expression.holds(cx),
            Self::Type { types, exclude } => types.contains(&cx.log_type) != *exclude,
        }
    }
}

/// The number that sampling of a stream depends on: the beginning of its request id, so that all proxies agree; a random one
/// if there is none.
fn random(cx: &FormatContext<'_>, independent: bool) -> u64 {
    let stable = || u64::from_str_radix(cx.info.request_id.as_ref()?.get(..8)?, 16).ok();
    if independent { None } else { stable() }.unwrap_or_else(|| fastrand::u64(..))
}
