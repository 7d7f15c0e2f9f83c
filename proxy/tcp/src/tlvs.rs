//! `proxy_protocol_tlvs`: TLVs that PROXY protocol upstreams are told, beside or instead of those that the client's own header held.
//! Compiled on the control thread, laid down once per connection. Source: TcpProxy.proxy_protocol_tlvs and its merge policy.

use nuncio_core::StreamInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::proxy_protocol::ProxyTlvs;
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::config::core::v3::TlvEntry;
use nuncio_proto::envoy::extensions::filters::network::tcp_proxy::v3::ProxyProtocolTlvMergePolicy as Policy;
use std::sync::Arc;

#[derive(Debug)]
enum Text {
    Fixed(Vec<u8>),
    Format(Formatter),
}

/// The compiled list.
#[derive(Debug)]
pub(crate) struct Tlvs {
    entries: Box<[(u8, Text)]>,
    policy: Policy,
}

impl Tlvs {
    /// Compiles the list; the outer none means refused, the inner that there is nothing to tell.
    pub fn compile(protos: &[TlvEntry], policy: i32, at: &At<'_>, report: &mut Report) -> Option<Option<Self>> {
        let list = at.field("proxy_protocol_tlvs");
        let mut entries = Vec::with_capacity(protos.len());
        for (i, proto) in protos.iter().enumerate() {
            let at = list.index(i);
            let Ok(kind) = u8::try_from(proto.r#type) else {
                report.error(&at.field("type"), proto.r#type.to_string(), "0 to 255");
                return None;
            };
            let text = match &proto.format_string {
                Some(format) => Text::Format(Formatter::compile(format, &at.field("format_string"), report)?),
                None if proto.value.is_empty() => {
                    report.error(&at, "no value", "set value or format_string");
                    return None;
                }
                None => Text::Fixed(proto.value.clone()),
            };
            entries.push((kind, text));
        }
        let Ok(policy) = Policy::try_from(policy) else {
            report.error(&at.field("proxy_protocol_tlv_merge_policy"), policy.to_string(), "a known policy");
            return None;
        };
        Some((!entries.is_empty()).then_some(Self { entries: entries.into(), policy }))
    }
    /// Leaves the TLVs with the connection.
    pub fn apply(&self, info: &StreamInfo) {
        let known = info.connection.filter_state.borrow().get_as::<ProxyTlvs>(ProxyTlvs::KEY).cloned();
        let value = |text: &Text| match text {
            Text::Fixed(bytes) => bytes.clone(),
            Text::Format(format) => {
                let mut out = Vec::new();
                format.write(&FormatContext::new(info), &mut out);
                out.truncate(usize::from(u16::MAX));
                out
            }
        };
        let mine = || self.entries.iter().map(|(kind, text)| (*kind, value(text)));
        let all: Vec<_> = match (known, self.policy) {
            (None, _) => mine().collect(),
            // What the client's header said stands as a whole, as in Envoy.
            (Some(_), Policy::AddIfAbsent) => return,
            (Some(known), Policy::OverwriteByTypeIfExistsOrAdd) => {
                let kept = known.0.into_iter().filter(|(kind, _)| !self.entries.iter().any(|(k, _)| k == kind));
                mine().chain(kept).collect()
            }
            (Some(known), Policy::AppendIfExistsOrAdd) => known.0.into_iter().chain(mine()).collect(),
        };
        info.connection.filter_state.borrow_mut().set(ProxyTlvs::KEY, Arc::new(ProxyTlvs(all)));
    }
}
