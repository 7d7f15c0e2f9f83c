//! `proxy_protocol_tlvs`: TLVs that PROXY protocol upstreams are told, beside or instead of those that the client's own header held.
//! Compiled on the control thread, laid down once per connection. Source: TcpProxy.proxy_protocol_tlvs and its merge policy.

use nuncio_core::StreamInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::proxy_protocol::ProxyTlvs;
use nuncio_format::{FormatContext, Tlvs as Entries};
use nuncio_proto::envoy::config::core::v3::TlvEntry;
use nuncio_proto::envoy::extensions::filters::network::tcp_proxy::v3::ProxyProtocolTlvMergePolicy as Policy;
use std::sync::Arc;

/// The compiled list.
#[derive(Debug)]
pub(crate) struct Tlvs {
    entries: Entries,
    policy: Policy,
}

impl Tlvs {
    /// Compiles the list; the outer none means refused, the inner that there is nothing to tell.
    pub fn compile(protos: &[TlvEntry], policy: i32, at: &At<'_>, report: &mut Report) -> Option<Option<Self>> {
        let entries = Entries::compile(protos, &at.field("proxy_protocol_tlvs"), report)?;
        let Ok(policy) = Policy::try_from(policy) else {
            report.error(&at.field("proxy_protocol_tlv_merge_policy"), policy.to_string(), "a known policy");
            return None;
        };
        Some((!entries.is_empty()).then_some(Self { entries, policy }))
    }
    /// Leaves the TLVs with the connection.
    pub fn apply(&self, info: &StreamInfo) {
        let known = info.connection.filter_state.borrow().get_as::<ProxyTlvs>(ProxyTlvs::KEY).cloned();
        let mine = || self.entries.values(Some(&FormatContext::new(info)));
        let all: Vec<_> = match (known, self.policy) {
            (None, _) => mine(),
            // What the client's header said stands as a whole, as in Envoy.
            (Some(_), Policy::AddIfAbsent) => return,
            (Some(known), Policy::OverwriteByTypeIfExistsOrAdd) => {
                let kept = known.0.into_iter().filter(|(kind, _)| !self.entries.has(*kind));
                mine().into_iter().chain(kept).collect()
            }
            (Some(known), Policy::AppendIfExistsOrAdd) => known.0.into_iter().chain(mine()).collect(),
        };
        info.connection.filter_state.borrow_mut().set(ProxyTlvs::KEY, Arc::new(ProxyTlvs(all)));
    }
}
