//! envoy.filters.network.ext_authz: a service decides whether a connection may go on, when its first bytes arrive. The connection waits for
//! the answer on its worker. Source: `envoy/extensions/filters/network/ext_authz/v3/ext_authz.proto`, Envoy's network `ext_authz.cc`.

use super::call::{Call, call_stats, snapshot};
use crate::config::decode;
use crate::ext_authz::check::{self, Attributes};
use crate::ext_authz::verdict::{Status, Verdict};
use crate::ext_authz::{grpc, settings};
use bytes::BytesMut;
use nuncio_callout::GrpcClient;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter_state::StateObject;
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory};
use nuncio_core::stats::{Counter, Gauge, Scope};
use nuncio_core::{ConnectionInfo, ResponseFlags, StreamInfo};
use nuncio_format::FormatContext;
use nuncio_matcher::MetadataMatcher;
use nuncio_proto::Value;
use nuncio_proto::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz;
use prost_types::value::Kind;
use std::any::Any;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

/// The filter's name, under which its metadata and, in shadow mode, its decision are found.
const NAME: &str = "envoy.filters.network.ext_authz";

/// Factory of `envoy.extensions.filters.network.ext_authz.v3.ExtAuthz`.
#[derive(Debug)]
pub struct Factory;

impl NetworkFilterFactory for Factory {
    fn name(&self) -> &'static str {
        NAME
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        Some(Arc::new(Config(Arc::new(Settings::compile(&decode(config, at, cx.report)?, at, cx)?))))
    }
}

#[derive(Debug)]
struct Config(Arc<Settings>);

impl NetworkFilterConfig for Config {
    fn create(&self, _connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter { settings: self.0.clone(), state: State::Fresh }))
    }
}

call_stats!(total, ok, denied, error, failure_mode_allowed, cx_closed, disabled);

#[derive(Debug)]
struct Settings {
    client: Arc<GrpcClient>,
    attributes: Attributes,
    failure_mode_allow: bool,
    enabled_metadata: Option<MetadataMatcher>,
    shadow: bool,
    stats: Stats,
}

impl Settings {
    fn compile(p: &ExtAuthz, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let errors = cx.report.errors();
        let (server, report) = (cx.server, &mut *cx.report);
        if p.stat_prefix.is_empty() {
            report.error(&at.field("stat_prefix"), "nothing", "name the stats of this filter");
        }
        refuse(p, at, report);
        settings::check_version(p.transport_api_version, at, report);
        let at_service = at.field("grpc_service");
        let Some(service) = &p.grpc_service else {
            report.error(&at_service, "nothing", "name the authorization service");
            return None;
        };
        let client = settings::grpc(service, server, &at_service, report)?;
        let enabled_metadata = match &p.filter_enabled_metadata {
            Some(matcher) => Some(MetadataMatcher::compile(matcher, &at.field("filter_enabled_metadata"), report)?),
            None => None,
        };
        let attributes = Attributes {
            peer_certificate: p.include_peer_certificate,
            tls_session: p.include_tls_session,
            labels: check::labels(server.node_metadata(), &p.bootstrap_metadata_labels_key),
            metadata: p.metadata_context_namespaces.clone(),
            ..Attributes::default()
        };
        (report.errors() == errors).then(|| Self {
            client: Arc::new(client),
            attributes,
            failure_mode_allow: p.failure_mode_allow,
            enabled_metadata,
            shadow: p.shadow_mode,
            stats: Stats::new(&server.stats.root().scope(&format!("ext_authz.{}.", p.stat_prefix))),
        })
    }
    fn is_enabled(&self, info: &StreamInfo) -> bool {
        self.enabled_metadata.as_ref().is_none_or(|matcher| {
            let connection = info.connection.metadata.borrow();
            matcher.matches_namespace(info.metadata(matcher.namespace()).or_else(|| connection.get(matcher.namespace())))
        })
    }
    /// Begins the call.
    fn ask(&self, info: &StreamInfo) -> Call<Verdict> {
        self.stats.total.inc();
        let (client, request, seen) = (self.client.clone(), self.attributes.tcp(info), snapshot(info));
        let answer = async move { grpc::check(&client, &request, &FormatContext::new(&seen), None).await };
        Call::new(answer, &self.stats.active)
    }
    /// What becomes of a connection.
    fn conclude(&self, mut verdict: Verdict, began: Instant, info: &mut StreamInfo) -> NetworkAction {
        let stats = &self.stats;
        match verdict.status {
            Status::Ok => {
                stats.ok.inc();
                let millis = Value { kind: Some(Kind::NumberValue(began.elapsed().as_millis() as f64)) };
                verdict.metadata.fields.insert("ext_authz_duration".to_string(), millis);
            }
            Status::Denied => stats.denied.inc(),
            Status::Error => stats.error.inc(),
        }
        if !verdict.metadata.fields.is_empty() {
            info.set_metadata(NAME, std::mem::take(&mut verdict.metadata));
        }
        if self.shadow {
            let decision = Decision { status: verdict.status, code: verdict.code };
            info.connection.filter_state.borrow_mut().set(NAME, Arc::new(decision));
            return NetworkAction::Continue;
        }
        let details = match verdict.status {
            Status::Ok => return NetworkAction::Continue,
            Status::Error if self.failure_mode_allow => {
                stats.failure_mode_allowed.inc();
                return NetworkAction::Continue;
            }
            Status::Denied => "ext_authz_denied",
            Status::Error => "ext_authz_error",
        };
        stats.cx_closed.inc();
        info.flags.set(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
        info.details = Some(Cow::Borrowed(details));
        info.connection.local_close.set(Some("ext_authz_close"));
        NetworkAction::Close(Cow::Borrowed(""))
    }
}

/// What Envoy has and Nuncio has not.
fn refuse(p: &ExtAuthz, at: &At<'_>, report: &mut Report) {
    if p.send_tls_alert_on_denial {
        report.unsupported(&at.field("send_tls_alert_on_denial"), "a TLS alert on denial");
    }
    if !p.typed_metadata_context_namespaces.is_empty() {
        report.warning(
            &at.field("typed_metadata_context_namespaces"),
            format!("{:?}", p.typed_metadata_context_namespaces),
            "without effect: no filter writes typed metadata",
        );
    }
}

/// What the service decided, for filters and logs that enforce nothing themselves (`shadow_mode`).
#[derive(Debug)]
struct Decision {
    status: Status,
    /// Status that a denial asked for; 0 if none.
    code: u16,
}

impl Decision {
    fn result(&self) -> &'static str {
        match self.status {
            Status::Ok => "OK",
            Status::Denied => "DENIED",
            Status::Error => "ERROR",
        }
    }
    fn json(&self, result: &str, code: &str) -> String {
        match self.code {
            0 => format!("{{\"{result}\":\"{}\"}}", self.result()),
            status => format!("{{\"{result}\":\"{}\",\"{code}\":{status}}}", self.result()),
        }
    }
}

impl StateObject for Decision {
    fn as_string(&self) -> Option<String> {
        Some(self.json("check_result", "status_code"))
    }
    fn field(&self, name: &str) -> Option<String> {
        match name {
            "check_result" => Some(self.result().to_string()),
            "status_code" if self.code != 0 => Some(self.code.to_string()),
            _ => None,
        }
    }
    fn as_json(&self) -> Option<String> {
        Some(self.json("checkResult", "statusCode"))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

enum State {
    /// Nothing arrived yet, or the filter was not enabled for what did.
    Fresh,
    Asking(Call<Verdict>, Instant),
    Done,
}

struct Filter {
    settings: Arc<Settings>,
    state: State,
}

impl NetworkFilter for Filter {
    fn on_read(&mut self, info: &mut StreamInfo, data: &mut BytesMut, end: bool) -> NetworkAction {
        match self.state {
            State::Done => NetworkAction::Continue,
            State::Asking(..) => NetworkAction::Hold,
            State::Fresh if data.is_empty() && !end => NetworkAction::Hold,
            State::Fresh if !self.settings.is_enabled(info) => {
                self.settings.stats.disabled.inc();
                NetworkAction::Continue
            }
            State::Fresh => {
                self.state = State::Asking(self.settings.ask(info), Instant::now());
                NetworkAction::Wait
            }
        }
    }
    fn poll_wait(&mut self, cx: &mut Context<'_>, info: &mut StreamInfo) -> Poll<NetworkAction> {
        let State::Asking(call, began) = &mut self.state else { return Poll::Ready(NetworkAction::Continue) };
        let (verdict, began) = (ready!(call.poll(cx)), *began);
        self.state = State::Done;
        Poll::Ready(self.settings.conclude(verdict, began, info))
    }
    fn wants_data(&self) -> bool {
        !matches!(self.state, State::Done)
    }
    fn on_close(&mut self, _info: &mut StreamInfo) {
        self.state = State::Done;
    }
}
