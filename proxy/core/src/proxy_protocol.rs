//! PROXY protocol TLVs on their way from a listener (or tcp_proxy) to upstream connections. In the connection's filter state.
//! Source: Envoy's `ProxyProtocolFilterState`.

use crate::filter_state::StateObject;
use std::any::Any;

/// TLVs in order: type and value. A type may come more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyTlvs(pub Vec<(u8, Vec<u8>)>);

impl ProxyTlvs {
    /// Their name in the filter state.
    pub const KEY: &'static str = "envoy.network.proxy_protocol_options";
}

impl StateObject for ProxyTlvs {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Which TLVs are passed on. Source: `ProxyProtocolPassThroughTLVs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassTlvs {
    None,
    All,
    /// These types.
    Only(Box<[u8]>),
}

impl PassTlvs {
    /// Whether TLVs of type `kind` go on.
    pub fn passes(&self, kind: u8) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Only(kinds) => kinds.contains(&kind),
        }
    }
    /// From `pass_through_tlvs`; types above 255 are errors.
    pub fn compile(
        proto: Option<&nuncio_proto::envoy::config::core::v3::ProxyProtocolPassThroughTlVs>,
        at: &crate::diag::At<'_>,
        report: &mut crate::diag::Report,
    ) -> Self {
        use nuncio_proto::envoy::config::core::v3::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType as Match;
        let Some(proto) = proto else { return Self::None };
        if proto.match_type == Match::IncludeAll as i32 {
            return Self::All;
        }
        let list = at.field("tlv_type");
        let mut kinds = Vec::with_capacity(proto.tlv_type.len());
        for (i, kind) in proto.tlv_type.iter().enumerate() {
            match u8::try_from(*kind) {
                Ok(kind) => kinds.push(kind),
                Err(_) => report.error(&list.index(i), kind.to_string(), "0 to 255"),
            }
        }
        Self::Only(kinds.into())
    }
}
