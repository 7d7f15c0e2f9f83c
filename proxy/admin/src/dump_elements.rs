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

/// Version, resource and time of a state that may be missing because every update so far was refused.
type Parts = (String, Option<Any>, Option<Timestamp>);

fn parts(version: Option<&Version>) -> Parts {
    version.map_or_else(Default::default, |v| (v.version_info.to_string(), any(v), timestamp(v.last_updated)))
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

/// What is active.
fn active(resource: &Resource) -> Option<&Version> {
    if resource.is_static { None } else { resource.active.as_ref() }
}

/// What is warming, or `Some(None)` for a resource of which there is only a refused update.
fn warming(resource: &Resource) -> Option<Option<&Version>> {
    let only_error = resource.active.is_none() && resource.error.is_some();
    (!resource.is_static && (resource.warming.is_some() || only_error)).then_some(resource.warming.as_ref())
}

fn static_cluster(r: &Resource) -> Option<Element> {
    let version = fixed(r)?;
    let (_, cluster, last_updated) = parts(Some(version));
    Some((StaticCluster { cluster, last_updated }.encode_to_vec(), version.type_url.clone()))
}

fn cluster(r: &Resource, version: Option<&Version>, with_error: bool) -> Element {
    let (version_info, cluster, last_updated) = parts(version);
    let (error_state, client_status) = if with_error { (error_state(r.error.as_ref()), client_status(r)) } else { (None, 0) };
    (DynamicCluster { version_info, cluster, last_updated, error_state, client_status }.encode_to_vec(), type_of(version))
}

fn active_cluster(r: &Resource) -> Option<Element> {
    Some(cluster(r, Some(active(r)?), true))
}

fn warming_cluster(r: &Resource) -> Option<Element> {
    // An error is shown once.
    Some(cluster(r, warming(r)?, r.active.is_none()))
}

fn ecds_filter(r: &Resource) -> Option<Element> {
    let version = dynamic(r)?;
    let (version_info, ecds_filter, last_updated) = parts(version);
    let (error_state, client_status) = (error_state(r.error.as_ref()), client_status(r));
    Some((EcdsFilterConfig { version_info, ecds_filter, last_updated, error_state, client_status }.encode_to_vec(), type_of(version)))
}

fn static_endpoints(r: &Resource) -> Option<Element> {
    let version = fixed(r)?;
    // Envoy shows no time for endpoints.
    Some((StaticEndpointConfig { endpoint_config: any(version), last_updated: None }.encode_to_vec(), version.type_url.clone()))
}

fn dynamic_endpoints(r: &Resource) -> Option<Element> {
    let version = dynamic(r)?;
    let (error_state, client_status) = (error_state(r.error.as_ref()), client_status(r));
    let element = DynamicEndpointConfig { endpoint_config: version.and_then(any), error_state, client_status, ..Default::default() };
    Some((element.encode_to_vec(), type_of(version)))
}

fn static_listener(r: &Resource) -> Option<Element> {
    let version = fixed(r)?;
    let (_, listener, last_updated) = parts(Some(version));
    Some((StaticListener { listener, last_updated }.encode_to_vec(), version.type_url.clone()))
}

fn dynamic_listener(r: &Resource) -> Option<Element> {
    if r.is_static {
        return None;
    }
    let state = |version: Option<&Version>| {
        let (version_info, listener, last_updated) = parts(Some(version?));
        Some(DynamicListenerState { version_info, listener, last_updated })
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
fn scopes(version: Option<&Version>) -> Vec<Any> {
    let set = version.and_then(|v| DynamicScopedRouteConfigs::decode(v.value.as_ref()).ok());
    set.map(|set| set.scoped_route_configs).unwrap_or_default()
}

fn inline_scopes(r: &Resource) -> Option<Element> {
    let version = fixed(r)?;
    let scoped_route_configs = scopes(Some(version));
    let element =
        InlineScopedRouteConfigs { name: r.name.to_string(), scoped_route_configs, last_updated: timestamp(version.last_updated) };
    Some((element.encode_to_vec(), version.type_url.clone()))
}

fn dynamic_scopes(r: &Resource) -> Option<Element> {
    let version = dynamic(r)?;
    let (version_info, _, last_updated) = parts(version);
    let element = DynamicScopedRouteConfigs {
        name: r.name.to_string(),
        version_info,
        scoped_route_configs: scopes(version),
        last_updated,
        error_state: error_state(r.error.as_ref()),
        client_status: client_status(r),
    };
    Some((element.encode_to_vec(), type_of(version)))
}

fn static_route(r: &Resource) -> Option<Element> {
    let version = fixed(r)?;
    let (_, route_config, last_updated) = parts(Some(version));
    Some((StaticRouteConfig { route_config, last_updated }.encode_to_vec(), version.type_url.clone()))
}

fn dynamic_route(r: &Resource) -> Option<Element> {
    let version = dynamic(r)?;
    let (version_info, route_config, last_updated) = parts(version);
    let (error_state, client_status) = (error_state(r.error.as_ref()), client_status(r));
    Some((DynamicRouteConfig { version_info, route_config, last_updated, error_state, client_status }.encode_to_vec(), type_of(version)))
}

fn static_secret(r: &Resource) -> Option<Element> {
    let version = fixed(r)?;
    let (_, secret, last_updated) = parts(Some(version));
    Some((StaticSecret { name: r.name.to_string(), last_updated, secret }.encode_to_vec(), version.type_url.clone()))
}

fn secret(r: &Resource, version: Option<&Version>, with_error: bool) -> Element {
    let (version_info, secret, last_updated) = parts(version);
    // A secret that is only wanted is shown by its name, as Envoy does; istioctl refuses an element without.
    let secret = secret.or_else(|| Some(pack(&Secret { name: r.name.to_string(), ..Default::default() })));
    let (error_state, client_status) = if with_error { (error_state(r.error.as_ref()), client_status(r)) } else { (None, 0) };
    let element = DynamicSecret { name: r.name.to_string(), version_info, last_updated, secret, error_state, client_status };
    (element.encode_to_vec(), type_of(version))
}

fn active_secret(r: &Resource) -> Option<Element> {
    Some(secret(r, Some(active(r)?), true))
}

fn warming_secret(r: &Resource) -> Option<Element> {
    Some(secret(r, warming(r)?, r.active.is_none()))
}
