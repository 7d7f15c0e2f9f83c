//! The elements of `/config_dump`'s sections as messages: which states of a resource make an element of which field.
//! Every section is there even if it is empty, because istioctl takes a missing one for an error.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nuncio_proto::envoy::admin::v3::clusters_config_dump::{DynamicCluster, StaticCluster};
use nuncio_proto::envoy::admin::v3::ecds_config_dump::EcdsFilterConfig;
use nuncio_proto::envoy::admin::v3::endpoints_config_dump::{DynamicEndpointConfig, StaticEndpointConfig};
use nuncio_proto::envoy::admin::v3::listeners_config_dump::{DynamicListener, DynamicListenerState, StaticListener};
use nuncio_proto::envoy::admin::v3::routes_config_dump::{DynamicRouteConfig, StaticRouteConfig};
use nuncio_proto::envoy::admin::v3::scoped_routes_config_dump::{DynamicScopedRouteConfigs, InlineScopedRouteConfigs};
use nuncio_proto::envoy::admin::v3::secrets_config_dump::{DynamicSecret, StaticSecret};
use nuncio_proto::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use nuncio_proto::typed::pack;
use nuncio_proto::{Any, Message, Timestamp};

use crate::{Resource, ResourceKind, UpdateFailure, Version};

/// One section.
pub(crate) struct Section {
    pub kind: ResourceKind,
    /// Full name of its message.
    pub message: &'static str,
    /// It has a `version_info`.
    pub versioned: bool,
    /// Its repeated fields in order.
    pub fields: &'static [Field],
}

/// One repeated field of a section.
pub(crate) struct Field {
    pub name: &'static str,
    /// Full name of the element's message.
    pub element: &'static str,
    /// None if the resource has no such state.
    pub build: fn(&Resource) -> Option<Element>,
}

/// An element's wire bytes, and the type URL of the resource in it.
pub(crate) type Element = (Vec<u8>, Arc<str>);

pub(crate) const BOOTSTRAP: &str = "envoy.admin.v3.BootstrapConfigDump";

/// Sections in Envoy's order; the bootstrap comes before them.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        kind: ResourceKind::Cluster,
        message: "envoy.admin.v3.ClustersConfigDump",
        versioned: true,
        fields: &[
            Field { name: "static_clusters", element: "envoy.admin.v3.ClustersConfigDump.StaticCluster", build: static_cluster },
            Field { name: "dynamic_active_clusters", element: "envoy.admin.v3.ClustersConfigDump.DynamicCluster", build: active_cluster },
            Field { name: "dynamic_warming_clusters", element: "envoy.admin.v3.ClustersConfigDump.DynamicCluster", build: warming_cluster },
        ],
    },
    Section {
        kind: ResourceKind::ExtensionConfig,
        message: "envoy.admin.v3.EcdsConfigDump",
        versioned: false,
        fields: &[Field { name: "ecds_filters", element: "envoy.admin.v3.EcdsConfigDump.EcdsFilterConfig", build: ecds_filter }],
    },
    Section {
        kind: ResourceKind::Endpoint,
        message: "envoy.admin.v3.EndpointsConfigDump",
        versioned: false,
        fields: &[
            Field {
                name: "static_endpoint_configs",
                element: "envoy.admin.v3.EndpointsConfigDump.StaticEndpointConfig",
                build: static_endpoints,
            },
            Field {
                name: "dynamic_endpoint_configs",
                element: "envoy.admin.v3.EndpointsConfigDump.DynamicEndpointConfig",
                build: dynamic_endpoints,
            },
        ],
    },
    Section {
        kind: ResourceKind::Listener,
        message: "envoy.admin.v3.ListenersConfigDump",
        versioned: true,
        fields: &[
            Field { name: "static_listeners", element: "envoy.admin.v3.ListenersConfigDump.StaticListener", build: static_listener },
            Field { name: "dynamic_listeners", element: "envoy.admin.v3.ListenersConfigDump.DynamicListener", build: dynamic_listener },
        ],
    },
    Section {
        kind: ResourceKind::ScopedRoute,
        message: "envoy.admin.v3.ScopedRoutesConfigDump",
        versioned: false,
        fields: &[
            Field {
                name: "inline_scoped_route_configs",
                element: "envoy.admin.v3.ScopedRoutesConfigDump.InlineScopedRouteConfigs",
                build: inline_scopes,
            },
            Field {
                name: "dynamic_scoped_route_configs",
                element: "envoy.admin.v3.ScopedRoutesConfigDump.DynamicScopedRouteConfigs",
                build: dynamic_scopes,
            },
        ],
    },
    Section {
        kind: ResourceKind::Route,
        message: "envoy.admin.v3.RoutesConfigDump",
        versioned: false,
        fields: &[
            Field { name: "static_route_configs", element: "envoy.admin.v3.RoutesConfigDump.StaticRouteConfig", build: static_route },
            Field { name: "dynamic_route_configs", element: "envoy.admin.v3.RoutesConfigDump.DynamicRouteConfig", build: dynamic_route },
        ],
    },
    Section {
        kind: ResourceKind::Secret,
        message: "envoy.admin.v3.SecretsConfigDump",
        versioned: false,
        fields: &[
            Field { name: "static_secrets", element: "envoy.admin.v3.SecretsConfigDump.StaticSecret", build: static_secret },
            Field { name: "dynamic_active_secrets", element: "envoy.admin.v3.SecretsConfigDump.DynamicSecret", build: active_secret },
            Field { name: "dynamic_warming_secrets", element: "envoy.admin.v3.SecretsConfigDump.DynamicSecret", build: warming_secret },
        ],
    },
];

/// The bootstrap section. Written by hand, so that the bootstrap is not decoded.
pub(crate) fn bootstrap((wire, loaded): (Bytes, SystemTime)) -> Vec<u8> {
    use prost::encoding::{encode_varint, message};
    let mut out = Vec::with_capacity(wire.len() + 32);
    out.push(1 << 3 | 2);
    encode_varint(wire.len() as u64, &mut out);
    out.extend_from_slice(&wire);
    if let Some(at) = timestamp(loaded) {
        message::encode(2, &at, &mut out);
    }
    out
}

/// Envoy shows milliseconds.
fn timestamp(at: SystemTime) -> Option<Timestamp> {
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp { seconds: i64::try_from(since.as_secs()).ok()?, nanos: since.subsec_millis() as i32 * 1_000_000 })
}

fn any(version: &Version) -> Option<Any> {
    (!version.type_url.is_empty()).then(|| Any { type_url: version.type_url.to_string(), value: version.value.to_vec() })
}

fn error_state(error: Option<&UpdateFailure>) -> Option<UpdateFailureState> {
    let error = error?;
    Some(UpdateFailureState {
        failed_configuration: error.configuration.as_ref().map(|(url, value)| Any { type_url: url.to_string(), value: value.to_vec() }),
        last_update_attempt: timestamp(error.at),
        details: error.details.clone(),
        version_info: error.version_info.clone(),
    })
}

/// Envoy leaves the status out, except that here a refused update is said to be one.
fn client_status(resource: &Resource) -> i32 {
    if resource.error.is_some() { ClientResourceStatus::Nacked.into() } else { ClientResourceStatus::Unknown.into() }
}

/// What elements are made of.
struct Shown {
    version_info: String,
    /// None if every update so far was refused.
    resource: Option<Any>,
    last_updated: Option<Timestamp>,
    error_state: Option<UpdateFailureState>,
    client_status: i32,
}

fn element<M: Message>(r: &Resource, version: Option<&Version>, with_error: bool, make: impl FnOnce(Shown) -> M) -> Element {
    let shown = Shown {
        version_info: version.map(|v| v.version_info.to_string()).unwrap_or_default(),
        resource: version.and_then(any),
        last_updated: version.and_then(|v| timestamp(v.last_updated)),
        error_state: if with_error { error_state(r.error.as_ref()) } else { None },
        client_status: if with_error { client_status(r) } else { 0 },
    };
    (make(shown).encode_to_vec(), type_of(version))
}

fn type_of(version: Option<&Version>) -> Arc<str> {
    version.map(|v| v.type_url.clone()).unwrap_or_default()
}

/// What a static resource shows: the state that it is in.
fn fixed(resource: &Resource) -> Option<&Version> {
    if resource.is_static { resource.active.as_ref().or(resource.warming.as_ref()) } else { None }
}

/// What a dynamic resource shows where active and warming are not told apart. `Some(None)` if there is only an error.
fn dynamic(resource: &Resource) -> Option<Option<&Version>> {
    let version = resource.active.as_ref().or(resource.warming.as_ref());
    (!resource.is_static && (version.is_some() || resource.error.is_some())).then_some(version)
}

fn fixed_element<M: Message>(r: &Resource, make: impl FnOnce(Shown) -> M) -> Option<Element> {
    Some(element(r, Some(fixed(r)?), false, make))
}

fn dynamic_element<M: Message>(r: &Resource, make: impl FnOnce(Shown) -> M) -> Option<Element> {
    Some(element(r, dynamic(r)?, true, make))
}

fn active_element<M: Message>(r: &Resource, make: impl FnOnce(Shown) -> M) -> Option<Element> {
    let version = if r.is_static { None } else { r.active.as_ref() };
    Some(element(r, Some(version?), true, make))
}

/// What is warming, or a resource of which there is only a refused update. An error is shown once.
fn warming_element<M: Message>(r: &Resource, make: impl FnOnce(Shown) -> M) -> Option<Element> {
    let only_error = r.active.is_none() && r.error.is_some();
    let shown = !r.is_static && (r.warming.is_some() || only_error);
    shown.then(|| element(r, r.warming.as_ref(), r.active.is_none(), make))
}

fn static_cluster(r: &Resource) -> Option<Element> {
    fixed_element(r, |s| StaticCluster { cluster: s.resource, last_updated: s.last_updated })
}

fn cluster(s: Shown) -> DynamicCluster {
    let Shown { version_info, resource: cluster, last_updated, error_state, client_status } = s;
    DynamicCluster { version_info, cluster, last_updated, error_state, client_status }
}

fn active_cluster(r: &Resource) -> Option<Element> {
    active_element(r, cluster)
}

fn warming_cluster(r: &Resource) -> Option<Element> {
    warming_element(r, cluster)
}

fn ecds_filter(r: &Resource) -> Option<Element> {
    dynamic_element(r, |s| {
        let Shown { version_info, resource: ecds_filter, last_updated, error_state, client_status } = s;
        EcdsFilterConfig { version_info, ecds_filter, last_updated, error_state, client_status }
    })
}

fn static_endpoints(r: &Resource) -> Option<Element> {
    // Envoy shows no time for endpoints.
    fixed_element(r, |s| StaticEndpointConfig { endpoint_config: s.resource, last_updated: None })
}

fn dynamic_endpoints(r: &Resource) -> Option<Element> {
    dynamic_element(r, |s| {
        let Shown { resource: endpoint_config, error_state, client_status, .. } = s;
        DynamicEndpointConfig { endpoint_config, error_state, client_status, ..Default::default() }
    })
}

fn static_listener(r: &Resource) -> Option<Element> {
    fixed_element(r, |s| StaticListener { listener: s.resource, last_updated: s.last_updated })
}

fn dynamic_listener(r: &Resource) -> Option<Element> {
    if r.is_static {
        return None;
    }
    let state = |version: Option<&Version>| {
        let version = version?;
        let (version_info, last_updated) = (version.version_info.to_string(), timestamp(version.last_updated));
        Some(DynamicListenerState { version_info, listener: any(version), last_updated })
    };
    let element = DynamicListener {
        name: r.name.to_string(),
        active_state: state(r.active.as_ref()),
        warming_state: state(r.warming.as_ref()),
        draining_state: state(r.draining.as_ref()),
        error_state: error_state(r.error.as_ref()),
        client_status: client_status(r),
    };
    Some((element.encode_to_vec(), type_of(r.active.as_ref().or(r.warming.as_ref()))))
}

/// The scopes of one set, see [`ResourceKind::ScopedRoute`].
fn scopes(set: Option<Any>) -> Vec<Any> {
    let set = set.and_then(|set| DynamicScopedRouteConfigs::decode(set.value.as_ref()).ok());
    set.map(|set| set.scoped_route_configs).unwrap_or_default()
}

fn inline_scopes(r: &Resource) -> Option<Element> {
    fixed_element(r, |s| {
        let (name, scoped_route_configs) = (r.name.to_string(), scopes(s.resource));
        InlineScopedRouteConfigs { name, scoped_route_configs, last_updated: s.last_updated }
    })
}

fn dynamic_scopes(r: &Resource) -> Option<Element> {
    dynamic_element(r, |s| {
        let Shown { version_info, resource, last_updated, error_state, client_status } = s;
        let (name, scoped_route_configs) = (r.name.to_string(), scopes(resource));
        DynamicScopedRouteConfigs { name, version_info, scoped_route_configs, last_updated, error_state, client_status }
    })
}

fn static_route(r: &Resource) -> Option<Element> {
    fixed_element(r, |s| StaticRouteConfig { route_config: s.resource, last_updated: s.last_updated })
}

fn dynamic_route(r: &Resource) -> Option<Element> {
    dynamic_element(r, |s| {
        let Shown { version_info, resource: route_config, last_updated, error_state, client_status } = s;
        DynamicRouteConfig { version_info, route_config, last_updated, error_state, client_status }
    })
}

fn static_secret(r: &Resource) -> Option<Element> {
    fixed_element(r, |s| StaticSecret { name: r.name.to_string(), last_updated: s.last_updated, secret: s.resource })
}

fn secret(r: &Resource, s: Shown) -> DynamicSecret {
    let Shown { version_info, resource, last_updated, error_state, client_status } = s;
    // A secret that is only wanted is shown by its name, as Envoy does; istioctl refuses an element without.
    let secret = resource.or_else(|| Some(pack(&Secret { name: r.name.to_string(), ..Default::default() })));
    DynamicSecret { name: r.name.to_string(), version_info, last_updated, secret, error_state, client_status }
}

fn active_secret(r: &Resource) -> Option<Element> {
    active_element(r, |s| secret(r, s))
}

fn warming_secret(r: &Resource) -> Option<Element> {
    warming_element(r, |s| secret(r, s))
}
