//! Istio Telemetry's changes to metrics: dropped metrics, removed and computed labels, metrics of one's own.
//! Compiled on the control thread. Source: `stats.PluginConfig` metrics and definitions.

use super::labels::{Label, STANDARD};
use crate::cel::{Attributes, Program};
use nuncio_core::diag::{At, Report};
use nuncio_proto::stats::{MetricType, PluginConfig};

/// A standard metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Metric {
    Requests,
    Duration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    TcpOpened,
    TcpClosed,
    TcpSent,
    TcpReceived,
}

/// Every standard metric: name in configuration (`istio_` in front when shown).
pub const METRICS: [(Metric, &str); 10] = [
    (Metric::Requests, "requests_total"),
    (Metric::Duration, "request_duration_milliseconds"),
    (Metric::RequestBytes, "request_bytes"),
    (Metric::ResponseBytes, "response_bytes"),
    (Metric::RequestMessages, "request_messages_total"),
    (Metric::ResponseMessages, "response_messages_total"),
    (Metric::TcpOpened, "tcp_connections_opened_total"),
    (Metric::TcpClosed, "tcp_connections_closed_total"),
    (Metric::TcpSent, "tcp_sent_bytes_total"),
    (Metric::TcpReceived, "tcp_received_bytes_total"),
];

/// Changes to the labels of one metric.
#[derive(Clone, Debug, Default)]
struct Changes {
    dropped: bool,
    /// Standard labels: removed, or with the value of an expression.
    replaced: Vec<(&'static str, Option<usize>)>,
    /// Labels behind the standard ones.
    added: Vec<(String, usize)>,
}

impl Changes {
    fn replace(&mut self, label: &'static str, expression: Option<usize>) {
        match self.replaced.iter_mut().find(|(l, _)| *l == label) {
            Some(entry) => entry.1 = expression,
            None => self.replaced.push((label, expression)),
        }
    }
    fn add(&mut self, label: &str, expression: usize) {
        match self.added.iter_mut().find(|(l, _)| l == label) {
            Some(entry) => entry.1 = expression,
            None => self.added.push((label.to_string(), expression)),
        }
    }
}

/// A metric of the user's own.
#[derive(Debug)]
pub struct Custom {
    /// Name with `istio_` in front.
    pub name: String,
    pub kind: MetricType,
    value: Program,
    changes: Changes,
}

/// Compiled changes.
#[derive(Debug, Default)]
pub struct Overrides {
    expressions: Vec<(String, Program)>,
    standard: [Changes; METRICS.len()],
    pub custom: Vec<Custom>,
}

impl Overrides {
    /// Compiles `config`; none if something in it is not supported. What Envoy would skip is skipped with a warning.
    pub fn compile(config: &PluginConfig, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let errors = report.errors();
        let mut out = Self::default();
        let definitions = at.field("definitions");
        for (i, definition) in config.definitions.iter().enumerate() {
            let at = definitions.index(i);
            if METRICS.iter().any(|(_, name)| *name == definition.name) {
                report.warning(&at.field("name"), format!("{:?}", definition.name), "standard metrics cannot be redefined; ignored");
                continue;
            }
            let Some(value) = program(&definition.value, &at.field("value"), report) else { continue };
            if out.custom.iter().any(|c| c.name.strip_prefix("istio_") == Some(&definition.name)) {
                report.warning(&at.field("name"), format!("{:?}", definition.name), "it is defined twice; the first counts");
                continue;
            }
            let kind = MetricType::try_from(definition.r#type).unwrap_or(MetricType::Counter);
            out.custom.push(Custom { name: format!("istio_{}", definition.name), kind, value, changes: Changes::default() });
        }
        let metrics = at.field("metrics");
        for (i, metric) in config.metrics.iter().enumerate() {
            let at = metrics.index(i);
            let known = |c: &Custom| c.name.strip_prefix("istio_") == Some(&metric.name);
            if !metric.name.is_empty() && !METRICS.iter().any(|(_, n)| *n == metric.name) && !out.custom.iter().any(known) {
                report.warning(&at.field("name"), format!("{:?}", metric.name), "no such metric; ignored");
            }
            if !metric.r#match.is_empty() {
                report.warning(&at.field("match"), format!("{:?}", metric.r#match), "Envoy ignores it, and so does Nuncio");
            }
            if metric.drop {
                out.each(&metric.name, |changes, standard| changes.dropped |= standard && !metric.name.is_empty());
                continue;
            }
            for label in &metric.tags_to_remove {
                match STANDARD.iter().find(|s| *s == label) {
                    Some(standard_label) => out.each(&metric.name, |changes, standard| {
                        if standard {
                            changes.replace(standard_label, None);
                        }
                    }),
                    None => report.warning(&at.field("tags_to_remove"), format!("{label:?}"), "not a standard label; ignored"),
                }
            }
            // A sorted map: the order of labels does not depend on that of the configuration.
            for (label, source) in &metric.dimensions {
                let dimensions = at.field("dimensions");
                let expression = out.expression(source, &dimensions.key(label), report);
                let standard_label = STANDARD.iter().find(|s| *s == label);
                out.each(&metric.name, |changes, standard| match (standard_label, expression) {
                    (Some(standard_label), expression) if standard => changes.replace(standard_label, expression),
                    (_, Some(expression)) => changes.add(label, expression),
                    (_, None) => {}
                });
            }
        }
        (report.errors() == errors).then_some(out)
    }
    /// Calls `change` for the metric `name`, or for all if it is empty; its flag tells standard metrics from custom ones.
    fn each(&mut self, name: &str, mut change: impl FnMut(&mut Changes, bool)) {
        for ((_, n), changes) in METRICS.iter().zip(&mut self.standard) {
            if name.is_empty() || *n == name {
                change(changes, true);
            }
        }
        for custom in &mut self.custom {
            if name.is_empty() || custom.name.strip_prefix("istio_") == Some(name) {
                change(&mut custom.changes, false);
            }
        }
    }
    fn expression(&mut self, source: &str, at: &At<'_>, report: &mut Report) -> Option<usize> {
        if let Some(existing) = self.expressions.iter().position(|(s, _)| s == source) {
            return Some(existing);
        }
        let program = program(source, at, report)?;
        self.expressions.push((source.to_string(), program));
        Some(self.expressions.len() - 1)
    }
    /// Values of every label expression, `unknown` where one fails. Empty, and free, if there are none.
    pub fn values(&self, attributes: &Attributes<'_>) -> Vec<String> {
        let value = |(_, program): &(String, Program)| {
            let mut out = String::new();
            if !program.print(attributes, &mut out) {
                out.push_str("unknown");
            }
            out
        };
        self.expressions.iter().map(value).collect()
    }
    /// Whether `metric` is not reported.
    pub fn dropped(&self, metric: Metric) -> bool {
        self.standard.get(metric as usize).is_some_and(|c| c.dropped)
    }
    /// Labels of a standard metric.
    pub fn labels<'a>(&'a self, metric: Metric, standard: &'a [Label], values: &'a [String]) -> Vec<(&'a str, &'a str)> {
        match self.standard.get(metric as usize) {
            Some(changes) => change(changes, standard, values),
            None => Vec::new(),
        }
    }
}

impl Custom {
    /// Labels: none but the configured ones.
    pub fn labels<'a>(&'a self, values: &'a [String]) -> Vec<(&'a str, &'a str)> {
        change(&self.changes, &[], values)
    }
    /// The amount to add, record or set; 0 if the expression fails or is not a number.
    pub fn amount(&self, attributes: &Attributes<'_>) -> u64 {
        let mut text = String::new();
        self.value.print(attributes, &mut text);
        text.parse().unwrap_or(0)
    }
}

fn change<'a>(changes: &'a Changes, standard: &'a [Label], values: &'a [String]) -> Vec<(&'a str, &'a str)> {
    let value = |index: usize| values.get(index).map_or("unknown", String::as_str);
    let mut out = Vec::with_capacity(standard.len() + changes.added.len());
    for (label, text) in standard {
        match changes.replaced.iter().find(|(l, _)| l == label) {
            None => out.push((*label, text.as_str())),
            Some((_, Some(expression))) => out.push((*label, value(*expression))),
            Some((_, None)) => {}
        }
    }
    out.extend(changes.added.iter().map(|(label, expression)| (label.as_str(), value(*expression))));
    out
}

/// Compiles an expression: wrong ones are skipped with a warning, as in Envoy; those that Envoy would take and we do not are refused.
fn program(source: &str, at: &At<'_>, report: &mut Report) -> Option<Program> {
    match Program::compile(source) {
        Ok(program) => {
            for name in program.unknown() {
                report.warning(
                    at,
                    format!("{name} in {source:?}"),
                    "no such attribute: the expression fails where it reaches it, as in Envoy",
                );
            }
            Some(program)
        }
        Err(e) if e.unsupported => {
            report.unsupported(at, format!("CEL expression {source:?}: {e}"));
            None
        }
        Err(e) => {
            report.warning(at, format!("{source:?} ({e})"), "not a CEL expression; ignored, as in Envoy");
            None
        }
    }
}
