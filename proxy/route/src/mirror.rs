//! Request mirroring policies. Source: RouteAction.RequestMirrorPolicy, Envoy's `router/shadow_writer_impl.cc`.

use crate::HeaderMutations;
use crate::cx::RouteCx;
use crate::domains::split_port;
use crate::target::ClusterRef;
use nuncio_core::diag::At;
use nuncio_core::registry::Runtime;
use nuncio_core::views::{ClusterSlot, ClusterSlots};
use nuncio_core::{ByteStr, RequestHead, StreamInfo};
use nuncio_matcher::{Fraction, RuntimeFraction};
use nuncio_proto::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use std::sync::Arc;

/// A compiled mirror policy.
#[derive(Debug)]
pub struct MirrorPolicy {
    cluster: ClusterRef,
    clusters: Arc<ClusterSlots>,
    fraction: RuntimeFraction,
    /// Whether mirrored requests are traced; none inherits.
    pub trace_sampled: Option<bool>,
    append_suffix: bool,
    host: Option<ByteStr>,
    mutations: HeaderMutations,
}

impl MirrorPolicy {
    /// Compiles a repeated `RequestMirrorPolicy`.
    pub(crate) fn compile_list(policies: &[RequestMirrorPolicy], at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Arc<[Arc<Self>]>> {
        let mut all = Vec::with_capacity(policies.len());
        for (i, policy) in policies.iter().enumerate() {
            all.push(Arc::new(Self::compile(policy, &at.index(i), cx)?));
        }
        Some(all.into())
    }
    fn compile(policy: &RequestMirrorPolicy, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        let cluster = match (policy.cluster.as_str(), policy.cluster_header.as_str()) {
            ("", "") => return cx.refuse(at, "neither cluster nor cluster_header", "set one of them"),
            // Envoy never validates these: a mirror to an unknown cluster is not sent.
            (name, "") => ClusterRef::Slot(cx.clusters.slot(name)),
            ("", header) => ClusterRef::header(header, &at.field("cluster_header"), cx)?,
            _ => return cx.refuse(at, "cluster and cluster_header", "set one of them"),
        };
        let fraction = match &policy.runtime_fraction {
            Some(fraction) => RuntimeFraction::compile(fraction, &at.field("runtime_fraction"), cx.report)?,
            None => RuntimeFraction::fixed(Fraction::ALWAYS),
        };
        Some(Self {
            cluster,
            clusters: cx.clusters.clone(),
            fraction,
            trace_sampled: policy.trace_sampled,
            append_suffix: !policy.disable_shadow_host_suffix_append,
            host: crate::rewrite::literal(&policy.host_rewrite_literal, &at.field("host_rewrite_literal"), cx.report)?,
            mutations: HeaderMutations::compile(&policy.request_headers_mutations, &at.field("request_headers_mutations"), cx.report)?,
        })
    }
    /// Whether a request whose random number is `random` is mirrored.
    pub fn selects(&self, runtime: &Runtime, random: u64) -> bool {
        self.fraction.contains(runtime, random)
    }
    /// The cluster that the copy goes to.
    pub fn cluster(&self, request: &RequestHead) -> Option<Arc<ClusterSlot>> {
        self.cluster.resolve(&self.clusters, request, None)
    }
    /// Changes the copy's head: header mutations, then host (`-shadow` before the port, unless switched off).
    pub fn finalize(&self, request: &mut RequestHead, info: &StreamInfo) {
        self.mutations.apply_request(request, info, None);
        if let Some(host) = &self.host {
            request.authority = host.clone();
        } else if self.append_suffix {
            let host = request.authority.as_str();
            let bare = split_port(host).0;
            let port = host.get(bare.len()..).unwrap_or_default();
            request.authority = ByteStr::from(format!("{bare}-shadow{port}"));
        }
    }
}
