//! Which endpoint answers what. Texts and statuses are Envoy's.

use nuncio_proto::Message;
use nuncio_proto::envoy::admin::v3::{Certificates, UnreadyTargetsDumps, unready_targets_dumps::UnreadyTargetsDump};
use nuncio_proto::json::{Descriptors, Options, Pretty, Renderer};

use crate::help::{ENDPOINTS, help, home};
use crate::reply::{HTML, JSON, PLAIN, Reply, Stop, TEXT};
use crate::request::Request;
use crate::{Backend, Drain, State, clusters, config_dump, logging, stats};

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    AllocProfiler,
    Certs,
    Clusters,
    ConfigDump,
    Contention,
    CpuProfiler,
    DrainListeners,
    HealthcheckFail,
    HealthcheckOk,
    HeapDump,
    HeapProfiler,
    Help,
    Home,
    HotRestartVersion,
    InitDump,
    Listeners,
    Logging,
    Memory,
    MemoryTcmalloc,
    Prometheus,
    Quit,
    Ready,
    RecentLookups,
    RecentLookupsChange,
    ReopenLogs,
    ResetCounters,
    Runtime,
    RuntimeModify,
    ServerInfo,
    Stats,
}

/// Answers one request; the caller finishes the reply.
pub(crate) async fn answer(backend: &dyn Backend, request: &Request, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let path = request.path();
    let Some(endpoint) = ENDPOINTS.iter().find(|e| e.path == path) else {
        reply.start(404, TEXT);
        reply.out.extend_from_slice(b"invalid path. ");
        help(&mut reply.out);
        return Ok(());
    };
    if endpoint.mutates && request.method != "POST" {
        reply.text(405, &format!("Method {} not allowed, POST required.", request.method));
        return Ok(());
    }
    match endpoint.action {
        Action::Home => {
            reply.start(200, HTML);
            home(&mut reply.out);
        }
        Action::Help => help(&mut reply.out),
        Action::ConfigDump => return config_dump::answer(backend, request, reply).await,
        Action::Clusters => return clusters::clusters(backend, request, reply).await,
        Action::Listeners => return clusters::listeners(backend, request, reply).await,
        Action::Stats => return stats::answer(backend, request, reply, false).await,
        Action::Prometheus => return stats::answer(backend, request, reply, true).await,
        Action::Logging => logging::answer(backend, request, reply),
        Action::Ready => {
            let state = backend.state();
            let mut text = format!("{}\n", state.name());
            if state != State::Live {
                backend.not_ready_because().iter().for_each(|reason| text.push_str(&format!("{reason}\n")));
            }
            reply.text(if state == State::Live { 200 } else { 503 }, &text);
        }
        Action::ServerInfo => return message(reply, "envoy.admin.v3.ServerInfo", backend.server_info().encode_to_vec(), true).await,
        Action::Certs => {
            let all = Certificates { certificates: backend.certificates() };
            return message(reply, "envoy.admin.v3.Certificates", all.encode_to_vec(), true).await;
        }
        Action::Memory => return message(reply, "envoy.admin.v3.Memory", backend.memory().encode_to_vec(), true).await,
        Action::InitDump => {
            let only_listeners = request.value("mask") == Some("listener");
            let unready = backend.unready_targets().into_iter().filter(|u| u.listener || !only_listeners);
            let dumps = unready.map(|u| UnreadyTargetsDump { name: u.name, target_names: u.targets }).collect();
            let all = UnreadyTargetsDumps { unready_targets_dumps: dumps };
            return message(reply, "envoy.admin.v3.UnreadyTargetsDumps", all.encode_to_vec(), false).await;
        }
        Action::HotRestartVersion => reply.text(200, "disabled"),
        Action::Contention => {
            reply.text(200, "Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing.\n");
        }
        Action::Runtime => return runtime(backend, reply).await,
        Action::RuntimeModify => runtime_modify(backend, request, reply),
        Action::DrainListeners => {
            backend.drain_listeners(Drain {
                graceful: request.has("graceful"),
                inbound_only: request.has("inboundonly"),
                skip_exit: request.has("skip_exit"),
            });
            reply.text(200, "OK\n");
        }
        Action::HealthcheckFail => {
            backend.fail_health_checks(true);
            reply.text(200, "OK\n");
        }
        Action::HealthcheckOk => {
            backend.fail_health_checks(false);
            reply.text(200, "OK\n");
        }
        Action::ReopenLogs => {
            backend.reopen_logs();
            reply.text(200, "OK\n");
        }
        Action::ResetCounters => {
            backend.stats().reset_counters();
            reply.text(200, "OK\n");
        }
        Action::Quit => {
            reply.text(200, "OK\n");
            let written = reply.finish().await;
            backend.quit();
            return written;
        }
        Action::RecentLookups => {
            // Names are resolved when configuration is compiled: there are no lookups to record.
            reply.text(200, "Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n\ntotal: 0\n");
        }
        Action::RecentLookupsChange => reply.text(200, "OK\n"),
        Action::CpuProfiler => profiler(request, reply, "cpu profiler"),
        Action::AllocProfiler => profiler(request, reply, "allocation profiler"),
        Action::HeapProfiler => reply.text(501, "The current build does not support heap profiler\n"),
        Action::HeapDump => reply.text(501, "The current build does not support heap dumps\n"),
        Action::MemoryTcmalloc => {
            reply.start(501, PLAIN);
            reply.out.extend_from_slice(b"The current build does not use tcmalloc; see /memory\n");
        }
    }
    Ok(())
}

fn profiler(request: &Request, reply: &mut Reply<'_>, what: &str) {
    match request.param("enable") {
        Some("y" | "n") => reply.text(501, &format!("The current build does not support {what}\n")),
        _ => reply.text(400, "?enable=<y|n>\n"),
    }
}

/// A message of Envoy's admin API as JSON.
pub(crate) async fn message(reply: &mut Reply<'_>, name: &str, wire: Vec<u8>, defaults: bool) -> Result<(), Stop> {
    let options = Options { defaults, ..Options::default() };
    let Some(renderer) = Renderer::message(Descriptors::shared(), name, wire.into(), options) else {
        reply.text(500, &format!("{name} is not known\n"));
        return Ok(());
    };
    reply.start(200, JSON);
    render(renderer, reply).await?;
    reply.out.push(b'\n');
    Ok(())
}

/// Writes a value in pieces.
pub(crate) async fn render(mut renderer: Renderer, reply: &mut Reply<'_>) -> Result<(), Stop> {
    while !renderer.fill(&mut reply.out, crate::reply::PIECE) {
        reply.piece().await?;
    }
    reply.piece().await
}

async fn runtime(backend: &dyn Backend, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let runtime = backend.runtime();
    let mut layout = Pretty::new();
    reply.start(200, JSON);
    layout.object(&mut reply.out);
    layout.key(&mut reply.out, "layers");
    layout.list(&mut reply.out);
    for layer in &runtime.layers {
        layout.item(&mut reply.out);
        nuncio_proto::json::write_string(&mut reply.out, layer);
    }
    layout.end(&mut reply.out);
    layout.key(&mut reply.out, "entries");
    layout.object(&mut reply.out);
    for entry in &runtime.entries {
        layout.key(&mut reply.out, &entry.key);
        layout.object(&mut reply.out);
        layout.key(&mut reply.out, "layer_values");
        layout.list(&mut reply.out);
        for value in &entry.layer_values {
            layout.item(&mut reply.out);
            nuncio_proto::json::write_string(&mut reply.out, value);
        }
        layout.end(&mut reply.out);
        layout.field(&mut reply.out, "final_value", &entry.final_value);
        layout.end(&mut reply.out);
        reply.piece().await?;
    }
    layout.end(&mut reply.out);
    layout.end(&mut reply.out);
    reply.out.push(b'\n');
    Ok(())
}

fn runtime_modify(backend: &dyn Backend, request: &Request, reply: &mut Reply<'_>) {
    if request.params().is_empty() {
        let usage = "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       or send the parameters as form values\nuse an empty value to remove a previously added override\n";
        return reply.text(400, usage);
    }
    match backend.modify_runtime(request.params()) {
        Ok(()) => reply.text(200, "OK\n"),
        Err(why) => reply.text(503, &format!("{why}\n")),
    }
}
