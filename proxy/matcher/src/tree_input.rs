//! Inputs of match trees: what `TypedExtensionConfig input` picks from a request or a connection.
//! Source: Envoy's `envoy.matching.inputs.*` extensions.

use crate::{metadata, query};
use nuncio_core::diag::{At, Report};
use nuncio_core::{Address, ConnectionInfo, HeaderKey, RequestHead, ResponseHead, StreamInfo};
use nuncio_proto::envoy::extensions::matching::common_inputs::{environment_variable, network::v3 as network};
use nuncio_proto::envoy::r#type::matcher::v3 as http_inputs;
use nuncio_proto::typed;
use nuncio_proto::xds::core::v3::TypedExtensionConfig;
use nuncio_proto::{Any, Value};
use std::borrow::Cow;
use std::net::IpAddr;

/// What a match tree may look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct MatchData<'a> {
    pub request: Option<&'a RequestHead>,
    pub response: Option<&'a ResponseHead>,
    pub info: Option<&'a StreamInfo>,
    pub connection: Option<&'a ConnectionInfo>,
    /// `raw_buffer` or `tls`, as a listener filter found it; without it the connection's TLS says which.
    pub transport_protocol: Option<&'a str>,
    /// Application protocols that the client offered, for listeners.
    pub application_protocols: &'a [&'a str],
}

impl<'a> MatchData<'a> {
    /// A request.
    pub fn request(request: &'a RequestHead, info: &'a StreamInfo) -> Self {
        Self { request: Some(request), info: Some(info), connection: Some(&info.connection), ..Self::default() }
    }
    /// A connection.
    pub fn connection(connection: &'a ConnectionInfo) -> Self {
        Self { connection: Some(connection), ..Self::default() }
    }
}

/// A compiled input.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    RequestHeader(HeaderKey),
    ResponseHeader(HeaderKey),
    QueryParameter(Box<str>),
    StatusCode,
    StatusCodeClass,
    DestinationIp,
    DestinationPort,
    SourceIp,
    SourcePort,
    DirectSourceIp,
    /// `local` for clients on this machine.
    SourceType,
    ServerName,
    TransportProtocol,
    ApplicationProtocol,
    UriSan,
    DnsSan,
    Subject,
    FilterState {
        key: Box<str>,
        field: Box<str>,
    },
    DynamicMetadata {
        filter: Box<str>,
        path: Box<[Box<str>]>,
    },
    /// Read once, as an environment does not change.
    Constant(Option<Box<str>>),
}

const NETWORK: &str = "envoy.extensions.matching.common_inputs.network.v3.";
const SSL: &str = "envoy.extensions.matching.common_inputs.ssl.v3.";
const HTTP: &str = "envoy.type.matcher.v3.";

impl Input {
    /// Compiles the configuration of an input.
    pub fn compile(config: Option<&TypedExtensionConfig>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let at = at.field("input");
        let Some(any) = config.and_then(|c| c.typed_config.as_ref()) else {
            report.error(&at, "no input", "say what is matched");
            return None;
        };
        let at = at.field("typed_config");
        match Self::read(any) {
            Ok(Some(input)) => Some(input),
            Ok(None) => {
                let name = any.type_url.rsplit('/').next().unwrap_or_default();
                report.unsupported(&at, format_args!("matching input {name}"));
                None
            }
            Err(why) => {
                report.error(&at, why, "give a valid configuration");
                None
            }
        }
    }
    fn read(any: &Any) -> Result<Option<Self>, String> {
        let name = typed::unpack(any)?.name;
        let header = |name: &str| HeaderKey::parse(name).ok_or_else(|| format!("header name \"{name}\""));
        if let Some(kind) = name.strip_prefix(NETWORK) {
            return Ok(Some(match kind {
                "DestinationIPInput" => Self::DestinationIp,
                "DestinationPortInput" => Self::DestinationPort,
                "SourceIPInput" => Self::SourceIp,
                "SourcePortInput" => Self::SourcePort,
                "DirectSourceIPInput" => Self::DirectSourceIp,
                "SourceTypeInput" => Self::SourceType,
                "ServerNameInput" => Self::ServerName,
                "TransportProtocolInput" => Self::TransportProtocol,
                "ApplicationProtocolInput" => Self::ApplicationProtocol,
                "FilterStateInput" => {
                    let input: network::FilterStateInput = typed::unpack_as(any)?;
                    Self::FilterState { key: input.key.into(), field: input.field.into() }
                }
                "DynamicMetadataInput" => {
                    let input: network::DynamicMetadataInput = typed::unpack_as(any)?;
                    use network::dynamic_metadata_input::path_segment::Segment;
                    let path = input.path.into_iter().filter_map(|s| s.segment.map(|Segment::Key(key)| key.into())).collect();
                    Self::DynamicMetadata { filter: input.filter.into(), path }
                }
                _ => return Ok(None),
            }));
        }
        if let Some(kind) = name.strip_prefix(SSL) {
            return Ok(match kind {
                "UriSanInput" => Some(Self::UriSan),
                "DnsSanInput" => Some(Self::DnsSan),
                "SubjectInput" => Some(Self::Subject),
                _ => None,
            });
        }
        if let Some(kind) = name.strip_prefix(HTTP) {
            return Ok(Some(match kind {
                "HttpRequestHeaderMatchInput" => {
                    Self::RequestHeader(header(&typed::unpack_as::<http_inputs::HttpRequestHeaderMatchInput>(any)?.header_name)?)
                }
                "HttpResponseHeaderMatchInput" => {
                    Self::ResponseHeader(header(&typed::unpack_as::<http_inputs::HttpResponseHeaderMatchInput>(any)?.header_name)?)
                }
                "HttpRequestQueryParamMatchInput" => {
                    Self::QueryParameter(typed::unpack_as::<http_inputs::HttpRequestQueryParamMatchInput>(any)?.query_param.into())
                }
                "HttpResponseStatusCodeMatchInput" => Self::StatusCode,
                "HttpResponseStatusCodeClassMatchInput" => Self::StatusCodeClass,
                _ => return Ok(None),
            }));
        }
        if name == "envoy.extensions.matching.common_inputs.environment_variable.v3.Config" {
            let variable: environment_variable::v3::Config = typed::unpack_as(any)?;
            return Ok(Some(Self::Constant(std::env::var(&variable.name).ok().map(Into::into))));
        }
        Ok(None)
    }
    /// Whether it is part of a request or a response.
    pub fn is_http(&self) -> bool {
        matches!(
            self,
            Self::RequestHeader(_) | Self::ResponseHeader(_) | Self::QueryParameter(_) | Self::StatusCode | Self::StatusCodeClass
        )
    }
    /// The value as text; none if it is not there.
    pub fn text<'a>(&'a self, data: &MatchData<'a>) -> Option<Cow<'a, [u8]>> {
        let owned = |text: String| Cow::Owned(text.into_bytes());
        let connection = data.connection;
        let certificate = || connection?.tls.as_ref()?.peer_cert();
        let port = |address: Option<&Address>| address?.socket().map(|s| owned(s.port().to_string()));
        match self {
            Self::RequestHeader(key) => data.request?.header(key),
            Self::ResponseHeader(key) => data.response?.header(key),
            Self::QueryParameter(name) => query::parameter(data.request?.query()?, name).map(query::decoded),
            Self::StatusCode => Some(owned(data.response?.status.as_str().to_string())),
            Self::StatusCodeClass => Some(owned(format!("{}xx", data.response?.status.as_u16() / 100))),
            Self::DestinationIp | Self::SourceIp | Self::DirectSourceIp => self.ip(data).map(|ip| owned(ip.to_string())),
            Self::DestinationPort => port(connection.map(|c| &c.local)),
            Self::SourcePort => port(connection.map(|c| &c.remote)),
            Self::SourceType => {
                let local = connection.is_some_and(is_local);
                local.then_some(Cow::Borrowed(b"local".as_slice()))
            }
            Self::ServerName => {
                connection?.requested_server_name.as_ref().filter(|n| !n.is_empty()).map(|n| Cow::Borrowed(n.as_bytes().as_ref()))
            }
            Self::TransportProtocol => {
                let found = data.transport_protocol.or(connection.map(|c| if c.tls.is_some() { "tls" } else { "raw_buffer" }))?;
                Some(Cow::Borrowed(found.as_bytes()))
            }
            Self::ApplicationProtocol => match data.application_protocols {
                [] => connection?.tls.as_ref()?.alpn.as_ref().map(|alpn| owned(format!("'{alpn}'"))),
                // Envoy gives the list quoted and joined, for `contains` matchers.
                all => Some(owned(all.iter().map(|p| format!("'{p}'")).collect::<Vec<_>>().join(","))),
            },
            Self::UriSan => joined(&certificate()?.uri_sans),
            Self::DnsSan => joined(&certificate()?.dns_sans),
            Self::Subject => Some(Cow::Borrowed(certificate()?.subject.as_bytes())).filter(|s| !s.is_empty()),
            Self::FilterState { key, field } => {
                let read = |object: &std::sync::Arc<dyn nuncio_core::filter_state::StateObject>| match field.is_empty() {
                    true => object.as_string(),
                    false => object.field(field),
                };
                let stream = data.info.and_then(|i| i.filter_state.get(key)).map(read);
                stream.or_else(|| connection?.filter_state.borrow().get(key).map(read)).flatten().map(owned)
            }
            Self::DynamicMetadata { .. } => match self.with_value(data, |v| v.kind.clone())?? {
                prost_types::value::Kind::StringValue(text) => Some(owned(text)),
                _ => None,
            },
            Self::Constant(value) => value.as_ref().map(|v| Cow::Borrowed(v.as_bytes())),
        }
    }
    /// The value as an address.
    pub fn ip(&self, data: &MatchData<'_>) -> Option<IpAddr> {
        let connection = data.connection?;
        let address = match self {
            Self::DestinationIp => &connection.local,
            Self::SourceIp => data.info.map_or(&connection.remote, |i| &i.remote),
            Self::DirectSourceIp => &connection.direct_remote,
            _ => return std::str::from_utf8(&self.text(data)?).ok()?.parse().ok(),
        };
        address.socket().map(|s| s.ip())
    }
    /// Calls `see` with the metadata value, if this input is one and it is there.
    pub fn with_value<T>(&self, data: &MatchData<'_>, see: impl FnOnce(&Value) -> T) -> Option<T> {
        let Self::DynamicMetadata { filter, path } = self else { return None };
        if let Some(namespace) = data.info.and_then(|i| i.metadata(filter)) {
            return metadata::value_at(namespace, path).map(see);
        }
        let connection = data.connection?.metadata.borrow();
        metadata::value_at(connection.get(filter.as_ref())?, path).map(see)
    }
}

fn is_local(connection: &ConnectionInfo) -> bool {
    match (&connection.remote, &connection.local) {
        (Address::Ip(remote), Address::Ip(local)) => remote.ip().is_loopback() || remote.ip() == local.ip(),
        _ => true,
    }
}

fn joined(names: &[String]) -> Option<Cow<'_, [u8]>> {
    match names {
        [] => None,
        [one] => Some(Cow::Borrowed(one.as_bytes())),
        all => Some(Cow::Owned(all.join(",").into_bytes())),
    }
}
