//! The control thread against a control plane over a Unix socket: from the first request to serving, through refusals, removals and
//! the loss of the stream. The control plane is HTTP/2 by hand, so that nothing of ours judges ours.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod kit;

use bytes::Bytes;
use kit::{Folder, Proxy, http, listener};
use nuncio_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use nuncio_proto::json::{UnknownFields, from_json, to_value};
use nuncio_proto::{Any, Message};
use nuncio_xds::types;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// One message of `type_url` out of YAML.
fn resource(type_url: &str, name: &str, yaml: &str) -> Resource {
    let message = type_url.rsplit('/').next().unwrap();
    let value = from_json(message, &to_value(yaml).unwrap(), UnknownFields::Refuse).unwrap().value;
    let resource = Some(Any { type_url: type_url.into(), value });
    Resource { name: name.into(), version: "1".into(), resource, ..Resource::default() }
}

/// What the test tells the control plane.
enum Tell {
    Push(DeltaDiscoveryResponse),
    /// Ends the stream.
    Hang,
    /// Sends a message that is no answer.
    Garbage,
}

/// A control plane that answers subscriptions with what it was given, and reports every request.
struct ControlPlane {
    requests: Receiver<DeltaDiscoveryRequest>,
    tell: tokio::sync::mpsc::UnboundedSender<Tell>,
}

type World = BTreeMap<&'static str, Vec<Resource>>;

impl ControlPlane {
    fn start(socket: PathBuf, world: World) -> Self {
        let (tx, requests) = channel();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            runtime.block_on(local.run_until(async move {
                let listener = tokio::net::UnixListener::bind(socket).unwrap();
                loop {
                    let (io, _) = listener.accept().await.unwrap();
                    stream(io, &world, &tx, &mut told).await;
                }
            }));
        });
        Self { requests, tell }
    }
    /// The next request that `wanted` describes; others are skipped.
    fn request(&self, what: &str, wanted: impl Fn(&DeltaDiscoveryRequest) -> bool) -> DeltaDiscoveryRequest {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match self.requests.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(request) if wanted(&request) => return request,
                Ok(_) => {}
                Err(_) => panic!("no request: {what}"),
            }
        }
    }
    fn push(&self, type_url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        let removed_resources = removed.iter().map(|r| (*r).to_string()).collect();
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: nonce.into(),
            system_version_info: nonce.into(),
            resources,
            removed_resources,
            ..Default::default()
        };
        let _ = self.tell.send(Tell::Push(response));
    }
}

async fn stream(
    io: tokio::net::UnixStream,
    world: &World,
    tx: &Sender<DeltaDiscoveryRequest>,
    told: &mut tokio::sync::mpsc::UnboundedReceiver<Tell>,
) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    let Some(Ok((request, mut respond))) = connection.accept().await else { return };
    let driver = tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
    let mut body = request.into_body();
    let mut buffer = Vec::new();
    let mut out: Option<h2::SendStream<Bytes>> = None;
    let mut nonce = 0;
    let mut send = move |message: Vec<u8>| {
        let stream = out.get_or_insert_with(|| {
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            respond.send_response(head, false).unwrap()
        });
        let mut frame = vec![0];
        frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
        frame.extend_from_slice(&message);
        stream.reserve_capacity(frame.len());
        stream.send_data(frame.into(), false).unwrap();
    };
    loop {
        tokio::select! {
            told = told.recv() => match told {
                Some(Tell::Push(response)) => send(response.encode_to_vec()),
                Some(Tell::Garbage) => send(vec![0xff; 40]),
                Some(Tell::Hang) | None => break,
            },
            data = body.data() => {
                let Some(Ok(data)) = data else { break };
                let _ = body.flow_control().release_capacity(data.len());
                buffer.extend_from_slice(&data);
                while buffer.len() >= 5 {
                    let len = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
                    if buffer.len() < 5 + len { break }
                    let rest = buffer.split_off(5 + len);
                    let request = DeltaDiscoveryRequest::decode(&buffer[5..]).unwrap();
                    buffer = rest;
                    let all = world.get(request.type_url.as_str()).cloned().unwrap_or_default();
                    let names: BTreeSet<_> = request.resource_names_subscribe.iter().cloned().collect();
                    let is_answered = request.response_nonce.is_empty() && request.initial_resource_versions.is_empty();
                    if is_answered && (request.resource_names_unsubscribe.is_empty() || !names.is_empty()) {
                        nonce += 1;
                        let resources = all.into_iter().filter(|r| names.is_empty() || names.contains(&r.name)).collect();
                        let response = DeltaDiscoveryResponse { type_url: request.type_url.clone(), nonce: format!("auto-{nonce}"), system_version_info: "first".into(), resources, ..Default::default() };
                        send(response.encode_to_vec());
                    }
                    let _ = tx.send(request);
                }
            }
        }
    }
    driver.abort();
}

/// An upstream that answers every request with 200 and its name, one request a connection.
fn upstream(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for io in listener.incoming() {
            let mut io = io.unwrap();
            let mut seen = Vec::new();
            let mut piece = [0; 1024];
            while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
                match io.read(&mut piece) {
                    Ok(n) if n > 0 => seen.extend_from_slice(&piece[..n]),
                    _ => break,
                }
            }
            let _ = write!(io, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}", name.len());
        }
    });
    port
}

fn web() -> Resource {
    let routes = "rds: {route_config_name: r, config_source: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}}";
    resource(types::LISTENER, "web", &format!("{{{}}}", listener("web", 0, routes, "")))
}
fn cluster(name: &str) -> Resource {
    let yaml = format!(
        "{{name: {name}, type: EDS, connect_timeout: 1s, eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}}}}}"
    );
    resource(types::CLUSTER, name, &yaml)
}
fn endpoints(name: &str, port: u16) -> Resource {
    let yaml = format!(
        "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
    );
    resource(types::ENDPOINT, name, &yaml)
}
fn routes(cluster: &str) -> Resource {
    let yaml = format!(
        "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}"
    );
    resource(types::ROUTE, "r", &yaml)
}

/// A bootstrap that takes everything from the control plane at `socket`.
fn bootstrap(socket: &std::path::Path) -> String {
    format!(
        r#"{{node: {{id: me, cluster: test}}, admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}},
        dynamic_resources: {{lds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}, cds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}},
          ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}}},
        static_resources: {{clusters: [{{name: xds, type: STATIC, connect_timeout: 1s,
          typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http2_protocol_options: {{}}}}}}}},
          load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: "{}"}}}}}}}}]}}]}}}}]}}}}"#,
        socket.display()
    )
}

/// A control plane that knows `world`, and a proxy that asks it.
fn start(dir: &Folder, world: World) -> (ControlPlane, Proxy) {
    let socket = dir.0.join("xds");
    let plane = ControlPlane::start(socket.clone(), world);
    (plane, Proxy::start(&dir.0, bootstrap(&socket)))
}

/// Two clusters, and a listener whose routes go to the first.
fn two_clusters() -> World {
    World::from([
        (types::CLUSTER, vec![cluster("a"), cluster("b")]),
        (types::ENDPOINT, vec![endpoints("a", upstream("a")), endpoints("b", upstream("b"))]),
        (types::LISTENER, vec![web()]),
        (types::ROUTE, vec![routes("a")]),
    ])
}

#[test]
fn serves_what_the_control_plane_says_and_refuses_by_name() {
    let dir = Folder::new("ads");
    let (plane, proxy) = start(&dir, two_clusters());

    let first = plane.request("CDS", |r| r.type_url == types::CLUSTER);
    assert_eq!(first.node.as_ref().map(|n| n.id.as_str()), Some("me"));
    assert!(first.resource_names_subscribe.is_empty());
    let eds = plane.request("EDS", |r| r.type_url == types::ENDPOINT && !r.resource_names_subscribe.is_empty());
    assert_eq!(eds.resource_names_subscribe, ["a", "b"]);
    plane.request("RDS", |r| r.type_url == types::ROUTE && r.resource_names_subscribe == ["r"]);
    plane.request("ACK of RDS", |r| r.type_url == types::ROUTE && !r.response_nonce.is_empty() && r.error_detail.is_none());

    proxy.wait_live();
    let stat = |name: &str| proxy.stat(name);
    assert_eq!(stat("server.state").as_deref(), Some("0"));
    assert_eq!(stat("listener_manager.workers_started").as_deref(), Some("1"));
    assert_eq!(stat("cluster_manager.cds.update_success").as_deref(), Some("1"));
    assert_eq!(stat("listener_manager.lds.update_success").as_deref(), Some("1"));
    assert_eq!(stat("control_plane.connected_state").as_deref(), Some("1"));
    let web = proxy.listener("web").unwrap();
    assert_eq!(http(&web, "GET", "/").unwrap(), (200, "a".to_string()));

    // A new route serves the next request; a bad cluster is refused alone, by name, and the good one beside it is used.
    plane.push(types::ROUTE, "r2", vec![routes("b")], &[]);
    plane.request("ACK of r2", |r| r.response_nonce == "r2" && r.error_detail.is_none());
    assert_eq!(http(&web, "GET", "/").unwrap().1, "b");
    let bad =
        resource(types::CLUSTER, "bad", "{name: bad, type: EDS, eds_cluster_config: {eds_config: {api_config_source: {api_type: REST}}}}");
    plane.push(types::CLUSTER, "c2", vec![bad, cluster("c")], &[]);
    let nack = plane.request("NACK of c2", |r| r.response_nonce == "c2").error_detail.unwrap().message;
    assert!(nack.starts_with("bad: eds_cluster_config.eds_config.api_config_source.api_type") && !nack.contains('\n'), "{nack}");
    plane.request("EDS of c", |r| r.type_url == types::ENDPOINT && r.resource_names_subscribe == ["c"]);
    let dump = proxy.get("/config_dump");
    assert!(dump.contains("\"error_state\"") && dump.contains("xDS by REST"), "{dump}");
    assert_eq!(stat("cluster_manager.cds.update_rejected").as_deref(), Some("1"));

    // The control plane goes away: traffic goes on, and the next stream begins with what is held.
    let _ = plane.tell.send(Tell::Hang);
    let again = plane.request("CDS again", |r| r.type_url == types::CLUSTER && r.node.is_some());
    assert_eq!(again.initial_resource_versions.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(http(&web, "GET", "/").unwrap(), (200, "b".to_string()));

    // A removed listener is gone; what it needed is not subscribed to any more.
    plane.push(types::LISTENER, "l2", vec![], &["web"]);
    let gone = plane.request("unsubscription", |r| r.type_url == types::ROUTE && !r.resource_names_unsubscribe.is_empty());
    assert_eq!(gone.resource_names_unsubscribe, ["r"]);

    assert_eq!(proxy.quit(), 0);
}

/// What Istio and other control planes do on bad days, under constant requests: streams that end before, between and after answers,
/// answers that nobody asked for, that hold nothing, that name what is not subscribed, and bytes that are no answer. Nothing is lost,
/// and the last change is in force.
#[test]
fn a_control_plane_that_comes_and_goes_loses_no_request() {
    let dir = Folder::new("ads-outage");
    let (plane, proxy) = start(&dir, two_clusters());
    proxy.wait_live();
    let web = proxy.listener("web").unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let (web, stop) = (web.clone(), stop.clone());
        move || {
            let (mut served, mut failed) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                match http(&web, "GET", "/") {
                    Some((200, _)) => served += 1,
                    other => failed.push(other),
                }
            }
            (served, failed)
        }
    });
    for round in 0..4 {
        let _ = plane.tell.send(Tell::Hang);
        plane.request("CDS of a new stream", |r| {
            r.type_url == types::CLUSTER && r.node.is_some() && !r.initial_resource_versions.is_empty()
        });
        // Nothing at all, for each type; something nobody asked for; the removal of what never was.
        for kind in [types::CLUSTER, types::ENDPOINT, types::LISTENER, types::ROUTE] {
            plane.push(kind, &format!("empty{round}{kind}"), vec![], &["never-was"]);
        }
        plane.push(types::ENDPOINT, &format!("stray{round}"), vec![endpoints("stranger", 9)], &[]);
        plane.push("type.googleapis.com/no.such.Type", &format!("unknown{round}"), vec![], &[]);
        if round % 2 == 1 {
            let _ = plane.tell.send(Tell::Garbage);
            plane.request("CDS after garbage", |r| r.type_url == types::CLUSTER && r.node.is_some());
        }
        let target = if round % 2 == 0 { "b" } else { "a" };
        let nonce = format!("turn{round}");
        plane.push(types::ROUTE, &nonce, vec![routes(target)], &[]);
        plane.request("ACK of the turn", |r| r.response_nonce == nonce && r.error_detail.is_none());
        assert_eq!(http(&web, "GET", "/").unwrap(), (200, target.to_string()), "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    let (served, failed) = load.join().unwrap();
    assert!(failed.is_empty() && served > 0, "{served} served, lost: {failed:?}");
    assert_eq!(proxy.stat("control_plane.connected_state").as_deref(), Some("1"));
    assert_eq!(proxy.quit(), 0);
}

fn scoped() -> Resource {
    let routes = r#"scoped_routes: {name: scopes,
        scope_key_builder: {fragments: [{header_value_extractor: {name: ":path", element_separator: /, index: 1}}]},
        rds_config_source: {ads: {}, resource_api_version: V3},
        scoped_rds: {scoped_rds_config_source: {ads: {}, resource_api_version: V3}}}"#;
    let on_demand = r#"{name: envoy.filters.http.on_demand,
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand}}, "#;
    resource(types::LISTENER, "web", &format!("{{{}}}", listener("web", 0, routes, on_demand)))
}

fn scope(name: &str, key: &str, more: &str) -> Resource {
    resource(types::SCOPED_ROUTE, name, &format!("{{name: {name}, key: {{fragments: [{{string_key: '{key}'}}]}}, {more}}}"))
}
fn saying(text: &str) -> String {
    format!(
        "name: {text}, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {text}}}}}}}]"
    )
}
fn saying_table(name: &str) -> Resource {
    resource(types::ROUTE, name, &format!("{{name: {name}, virtual_hosts: [{{{}}}]}}", saying(name)))
}

#[test]
fn scopes_choose_tables_and_what_is_missing_is_fetched_while_the_request_waits() {
    let dir = Folder::new("scopes");
    let growing = "{name: growing, vhds: {config_source: {ads: {}, resource_api_version: V3}}}";
    let world = World::from([
        (types::LISTENER, vec![scoped()]),
        (
            types::SCOPED_ROUTE,
            vec![
                scope("one", "1", "route_configuration_name: plain"),
                scope("two", "2", "route_configuration_name: growing"),
                scope("three", "3", "route_configuration_name: late, on_demand: true"),
            ],
        ),
        (types::ROUTE, vec![saying_table("plain"), saying_table("late"), resource(types::ROUTE, "growing", growing)]),
        (types::VIRTUAL_HOST, vec![resource(types::VIRTUAL_HOST, "growing/test", &format!("{{{}}}", saying("found")))]),
    ]);
    let (plane, proxy) = start(&dir, world);
    let rds = plane.request("RDS", |r| r.type_url == types::ROUTE && !r.resource_names_subscribe.is_empty());
    assert_eq!(rds.resource_names_subscribe, ["growing", "plain"]);
    plane.request("VHDS", |r| r.type_url == types::VIRTUAL_HOST && r.resource_names_subscribe == ["growing"]);
    proxy.wait_live();
    let web = proxy.listener("web").unwrap();
    assert_eq!(http(&web, "GET", "/1/").unwrap(), (200, "plain".to_string()));
    assert_eq!(http(&web, "GET", "/9/").unwrap().0, 404);
    // Asked for while the request waits, and there for the next one.
    assert_eq!(http(&web, "GET", "/2/").unwrap(), (200, "found".to_string()));
    plane.request("VHDS of a host", |r| r.resource_names_subscribe == ["growing/test"]);
    assert_eq!(http(&web, "GET", "/2/").unwrap(), (200, "found".to_string()));
    assert_eq!(http(&web, "GET", "/3/").unwrap(), (200, "late".to_string()));
    plane.request("RDS of a scope", |r| r.resource_names_subscribe == ["late"]);
    let dump = proxy.get("/config_dump");
    for text in ["\"name\": \"found\"", "dynamic_scoped_route_configs", "\"name\": \"three\"", "\"string_key\": \"3\""] {
        assert!(dump.contains(text), "{text} in {dump}");
    }
    assert_eq!(proxy.stat("http.web.scoped_rds.scopes.all_scopes").as_deref(), Some("3"));
    assert_eq!(proxy.stat("http.web.scoped_rds.scopes.update_success").as_deref(), Some("1"));

    // A host that nobody has ends the wait; a scope that takes another's key is refused by name.
    plane.push(types::VIRTUAL_HOST, "v2", vec![], &["growing/test"]);
    plane.request("ACK of v2", |r| r.response_nonce == "v2" && r.error_detail.is_none());
    plane.push(types::SCOPED_ROUTE, "s2", vec![scope("four", "1", "route_configuration_name: late")], &["three"]);
    let nack = plane.request("NACK of s2", |r| r.response_nonce == "s2").error_detail.unwrap().message;
    assert!(nack.starts_with("four: key") && nack.contains("'one'"), "{nack}");
    assert_eq!(http(&web, "GET", "/3/").unwrap().0, 404);
    assert_eq!(http(&web, "GET", "/1/").unwrap().1, "plain");
    assert_eq!(proxy.quit(), 0);
}
