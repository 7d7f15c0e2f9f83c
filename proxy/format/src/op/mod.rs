//! Operators: what stands between two percent signs, compiled. Each appends its value to the output and says what it was.
//! Compiled on the control thread, run on workers.

mod address;
mod compile;
mod duration;
mod fields;
mod hosts;
mod metadata;
mod names;
mod request;
mod tls;
mod xfcc;

use crate::FormatContext;
use crate::time::TimeFormat;
use address::{AddressForm, AddressOf};
use duration::{DurationOf, Point, Precision};
use fields::{NumberOf, TextOf};
use hosts::HostsOf;
use metadata::{MetadataOf, StateForm};
use request::{Headers, HostChoice, PathSource};
use std::time::SystemTime;
use tls::{CertField, Side};
use xfcc::XfccKey;

pub(crate) use compile::{Extensions, compile};
pub(crate) use fields::grpc_status;

/// What an operator appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing: there is no value.
    Missing,
    /// Text, which JSON puts in quotes; may be empty.
    Text,
    /// A number, a boolean, or other text that is JSON as it is.
    Json,
}

impl Written {
    fn text(found: bool) -> Self {
        if found { Self::Text } else { Self::Missing }
    }
}

/// A moment that an operator shows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TimeOf {
    Start,
    Emit,
    NotBefore(Side),
    NotAfter(Side),
}

/// A compiled operator.
#[derive(Debug)]
pub(crate) enum Op {
    Time(TimeOf, TimeFormat),
    Header(Headers),
    Number(NumberOf),
    Duration(DurationOf),
    CommonDuration(Point, Point, Precision),
    Text(TextOf),
    Address(AddressOf, AddressForm),
    Cert(Side, CertField),
    Metadata {
        of: MetadataOf,
        namespace: Box<str>,
        path: Box<[Box<str>]>,
    },
    FilterState {
        upstream: bool,
        key: Box<str>,
        form: StateForm,
    },
    ServerName(HostChoice),
    GrpcStatus(fields::GrpcForm),
    Path {
        query: bool,
        source: PathSource,
    },
    QueryParam(Box<str>),
    QueryParams {
        decoded: bool,
    },
    Hosts(HostsOf),
    Xfcc(XfccKey),
    /// `%CEL(...)%`, and `%TYPED_CEL(...)%`, whose value keeps its type in JSON.
    Expression {
        expression: Box<dyn crate::Expression>,
        typed: bool,
    },
    /// An operator of a formatter extension that another crate compiled.
    Value(Box<dyn crate::OpValue>),
    /// Text that was known when the format was compiled.
    Constant(Box<str>),
    /// The first of these that has a value.
    Coalesce(Box<[Limited]>),
    /// Things that no stream here has (QUIC).
    Absent,
}

/// An operator and the most bytes of text that it may give.
#[derive(Debug)]
pub(crate) struct Limited {
    pub op: Op,
    pub length: Option<usize>,
}

impl Limited {
    /// Appends the value.
    pub fn write(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        let start = out.len();
        let written = self.op.write(cx, out);
        self.limit(start, written, out)
    }
    /// Appends the value as one of JSON: text without its quotes and not escaped, all else as it is.
    pub fn write_json(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        let start = out.len();
        let written = self.op.write_json(cx, out);
        self.limit(start, written, out)
    }
    fn limit(&self, start: usize, written: Written, out: &mut Vec<u8>) -> Written {
        if let Some(length) = self.length
            && written == Written::Text
        {
            out.truncate(start.saturating_add(length).min(out.len()));
        }
        written
    }
}

impl Op {
    fn write(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        match self {
            Self::Time(of, format) => {
                let time = match of {
                    TimeOf::Start => Some(cx.info.start),
                    TimeOf::Emit => Some(SystemTime::now()),
                    TimeOf::NotBefore(side) => tls::peer(cx, *side).and_then(|c| c.not_before),
                    TimeOf::NotAfter(side) => tls::peer(cx, *side).and_then(|c| c.not_after),
                };
                let Some(time) = time else { return Written::Missing };
                format.write(time, out);
                Written::Text
            }
            Self::Header(headers) => Written::text(headers.write(cx, out)),
            Self::Number(of) => of.write(cx, out),
            Self::Duration(of) => of.write(cx, out),
            Self::CommonDuration(from, to, precision) => duration::between(cx, *from, *to, *precision, out),
            Self::Text(of) => Written::text(of.write(cx, out)),
            Self::Address(of, form) => of.write(cx, *form, out),
            Self::Cert(side, field) => Written::text(field.write(cx, *side, out)),
            Self::Metadata { of, namespace, path } => of.write(cx, namespace, path, out),
            Self::FilterState { upstream, key, form } => form.write(cx, *upstream, key, out),
            Self::ServerName(choice) => Written::text(choice.write(cx, out)),
            Self::GrpcStatus(form) => form.write(cx, out),
            Self::Path { query, source } => Written::text(source.write(cx, *query, out)),
            Self::QueryParam(name) => Written::text(request::query_param(cx, name, out)),
            Self::QueryParams { decoded } => Written::text(request::query_params(cx, *decoded, out)),
            Self::Hosts(of) => Written::text(of.write(cx, out)),
            Self::Xfcc(key) => Written::text(key.write(cx, out)),
            Self::Expression { expression, .. } => Written::text(expression.print(cx, out)),
            Self::Value(value) => Written::text(value.write(out)),
            Self::Constant(text) => {
                out.extend_from_slice(text.as_bytes());
                Written::Text
            }
            Self::Coalesce(all) => {
                let start = out.len();
                for op in all {
                    let written = op.write(cx, out);
                    if written != Written::Missing && out.len() > start {
                        return written;
                    }
                    out.truncate(start);
                }
                Written::Missing
            }
            Self::Absent => Written::Missing,
        }
    }
    /// Appends the value for a JSON format, where it may differ from that for text.
    fn write_json(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        match self {
            Self::Expression { expression, typed: true } => match expression.print_typed(cx, out) {
                Some(true) => Written::Text,
                Some(false) => Written::Json,
                None => Written::Missing,
            },
            _ => self.write(cx, out),
        }
    }
    /// The text, if it is always the same.
    pub fn constant(&self) -> Option<&str> {
        match self {
            Self::Constant(text) => Some(text),
            _ => None,
        }
    }
}

/// Appends a decimal number.
pub(crate) fn decimal(out: &mut Vec<u8>, n: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// Appends items joined by commas; false if there are none.
pub(crate) fn joined<'a>(out: &mut Vec<u8>, items: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut any = false;
    for item in items {
        if std::mem::replace(&mut any, true) {
            out.push(b',');
        }
        out.extend_from_slice(item);
    }
    any
}
