//! TLVs of the PROXY protocol as configuration writes them: a type with bytes, or with a format that is filled in when a connection is
//! made. Compiled on the control thread, written on workers once per connection. Source: `core.v3.TlvEntry`.

use crate::{FormatContext, Formatter};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::TlvEntry;

/// A compiled list of `TlvEntry`.
#[derive(Debug, Default)]
pub struct Tlvs(Box<[(u8, Value)]>);

#[derive(Debug)]
enum Value {
    Fixed(Vec<u8>),
    Format(Formatter),
}

impl Tlvs {
    /// Compiles the list at `list`; none means refused: a type above 255, more than 65535 bytes, or not one of `value` and `format_string`.
    pub fn compile(protos: &[TlvEntry], list: &At<'_>, report: &mut Report) -> Option<Self> {
        let mut entries = Vec::with_capacity(protos.len());
        for (i, proto) in protos.iter().enumerate() {
            let at = list.index(i);
            let Ok(kind) = u8::try_from(proto.r#type) else {
                report.error(&at.field("type"), proto.r#type.to_string(), "0 to 255");
                return None;
            };
            let value = match (&proto.format_string, proto.value.len()) {
                (Some(format), 0) => Value::Format(Formatter::compile(format, &at.field("format_string"), report)?),
                (None, 1..=0xffff) => Value::Fixed(proto.value.clone()),
                (found, length) => {
                    let found = format!("{length} bytes of value {} format_string", if found.is_some() { "and" } else { "without" });
                    report.error(&at, found, "either a value of 1 to 65535 bytes or a format_string");
                    return None;
                }
            };
            entries.push((kind, value));
        }
        Some(Self(entries.into()))
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Whether any value is a format.
    pub fn has_formats(&self) -> bool {
        self.0.iter().any(|(_, value)| matches!(value, Value::Format(_)))
    }
    /// Whether there is one of type `kind`.
    pub fn has(&self, kind: u8) -> bool {
        self.0.iter().any(|(k, _)| *k == kind)
    }
    /// Types and values, in order. `cx` is what formats see; without it they are empty. No value is longer than 65535 bytes.
    pub fn values(&self, cx: Option<&FormatContext<'_>>) -> Vec<(u8, Vec<u8>)> {
        let value = |value: &Value| match (value, cx) {
            (Value::Fixed(bytes), _) => bytes.clone(),
            (Value::Format(_), None) => Vec::new(),
            (Value::Format(format), Some(cx)) => {
                let mut out = Vec::new();
                format.write(cx, &mut out);
                out.truncate(usize::from(u16::MAX));
                out
            }
        };
        self.0.iter().map(|(kind, v)| (*kind, value(v))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::envoy::config::core::v3::SubstitutionFormatString;

    #[test]
    fn one_of_value_and_format() {
        let entry = |kind: u32, value: &str, format: bool| TlvEntry {
            r#type: kind,
            value: value.as_bytes().to_vec(),
            format_string: format.then(SubstitutionFormatString::default),
        };
        for (wrong, why) in [
            (entry(256, "x", false), "type"),
            (entry(1, "", false), "without format_string"),
            (entry(1, "x", true), "and format_string"),
            (entry(1, &"x".repeat(65_536), false), "65536 bytes"),
        ] {
            let mut report = Report::new();
            assert!(Tlvs::compile(&[wrong], &At::Root.field("tlvs"), &mut report).is_none());
            assert!(report.summary().contains(why), "{}", report.summary());
        }
        let tlvs = Tlvs::compile(&[entry(1, "x", false), entry(1, "y", false)], &At::Root, &mut Report::new()).unwrap();
        assert!(tlvs.has(1) && !tlvs.has(2) && !tlvs.has_formats());
        assert_eq!(tlvs.values(None), [(1, b"x".to_vec()), (1, b"y".to_vec())]);
    }
}
