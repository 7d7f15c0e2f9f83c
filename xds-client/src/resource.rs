//! Resources, updates and refusals: what sessions hand to the control plane's consumer and what it answers.

use bytes::Bytes;
use nuncio_proto::Message;
use std::sync::Arc;

/// Type URLs of the resources that have a discovery service of their own.
pub mod types {
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    pub const SCOPED_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
    pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
    pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
    /// The wrapper that state-of-the-world servers may put around a resource.
    pub const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";
}

/// One resource as it came from the control plane; `value` is unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub name: Arc<str>,
    /// Version of this resource (delta), or of the whole response (state of the world).
    pub version: Arc<str>,
    /// The protobuf message behind the update's type URL.
    pub value: Bytes,
}

/// Why one resource was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub name: Arc<str>,
    pub reason: String,
}

/// What one response changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    pub type_url: Arc<str>,
    /// `version_info`, or `system_version_info` in delta.
    pub version: Arc<str>,
    pub resources: Vec<Resource>,
    /// Names that no longer exist. In state of the world, computed for wildcard types only.
    pub removed: Vec<Arc<str>>,
    /// Names and aliases that the response speaks of, whether there is a resource or not; of virtual hosts only.
    pub answered: Vec<Arc<str>>,
    /// Resources that the session itself could not read; they are part of the NACK already.
    pub refused: Vec<Refused>,
    /// Errors that the server reported for single resources (`resource_errors`); informational.
    pub server_errors: Vec<Refused>,
    /// `control_plane.identifier`, empty if none.
    pub control_plane: String,
}

/// What the session needs to know again when the consumer is done with an update.
#[derive(Debug)]
#[must_use = "an update that is not finished is never acknowledged"]
pub struct Receipt {
    pub(crate) type_url: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) nonce: String,
    pub(crate) stream: u64,
    /// Name and version of each resource in the update.
    pub(crate) versions: Vec<(Arc<str>, Arc<str>)>,
    pub(crate) removed: Vec<Arc<str>>,
    pub(crate) refused: Vec<Refused>,
}

/// The name field, which is number 1 in every resource type of xDS (`cluster_name` in ClusterLoadAssignment).
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

/// The name inside an encoded resource; an error for bytes that are no protobuf message.
pub fn resource_name(value: &[u8]) -> Result<Arc<str>, String> {
    Named::decode(value).map(|n| n.name.into()).map_err(|e| e.to_string())
}

/// Text of a NACK: each refused resource and why. Bounded, because a push may refuse thousands.
pub(crate) fn error_detail(refused: &[Refused]) -> String {
    const LIMIT: usize = 16 * 1024;
    let mut text = String::new();
    for (i, r) in refused.iter().enumerate() {
        if text.len() + r.name.len() + r.reason.len() > LIMIT && i > 0 {
            text.push_str(&format!("\n... and {} more", refused.len() - i));
            break;
        }
        if i > 0 {
            text.push('\n');
        }
        text.push_str(&format!("{}: {}", r.name, r.reason));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_field_one_and_garbage_is_an_error() {
        let cluster =
            nuncio_proto::envoy::config::cluster::v3::Cluster { name: "a".into(), alt_stat_name: "b".into(), ..Default::default() };
        assert_eq!(resource_name(&cluster.encode_to_vec()).as_deref(), Ok("a"));
        assert!(resource_name(&[0x0a, 0xff]).is_err());
    }

    #[test]
    fn error_detail_is_bounded_but_says_how_many_are_missing() {
        let refused: Vec<_> = (0..10_000).map(|i| Refused { name: format!("cluster-{i}").into(), reason: "bad".into() }).collect();
        let text = error_detail(&refused);
        assert!(text.len() < 17 * 1024 && text.contains("cluster-0: bad") && text.contains(" more"));
    }
}
