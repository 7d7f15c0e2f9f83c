//! ORIGINAL_DST: every destination is a host, made when it is first asked for and forgotten when nobody asked for a while.
//! Source: Envoy docs "Original destination", `original_dst_cluster.cc`. Hosts are made on workers, forgotten on the control thread.

use crate::context::LbContext;
use crate::host::Host;
use crate::spec::{MetadataPath, OriginalDstSpec};
use crate::stats::TrafficStats;
use hashbrown::HashMap;
use nuncio_core::{Address, StreamInfo};
use prost_types::value::Kind;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// Filter state that names the destination.
const DESTINATION: &str = "envoy.network.transport_socket.original_dst_address";

/// The hosts so far.
#[derive(Debug, Default)]
pub(crate) struct OriginalDstState {
    hosts: Mutex<HashMap<SocketAddr, Arc<Host>, foldhash::fast::RandomState>>,
}

impl OriginalDstState {
    /// The host of `address`, made if there is none.
    pub(crate) fn host(&self, address: SocketAddr, cluster: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(Host::found(Address::Ip(address), format!("{cluster}{address}").into()));
        hosts.entry(address).or_insert_with(made).clone()
    }
    /// Every host.
    pub(crate) fn all(&self) -> Vec<Arc<Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
    /// Takes the hosts of the cluster that this one replaces.
    pub(crate) fn adopt(&self, old: &Self) {
        let theirs = old.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).extend(theirs);
    }
    /// Forgets hosts that were not used since the last call and have no connections; gives their number.
    pub(crate) fn cleanup(&self) -> usize {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = hosts.len();
        hosts.retain(|_, host| {
            let keep = host.take_used() || host.stats.cx_active.load(Ordering::Relaxed) > 0;
            if !keep {
                host.set_removed(true);
            }
            keep
        });
        before - hosts.len()
    }
}

/// Where this stream or connection wants to go; none if nothing says it.
pub(crate) fn destination(spec: &OriginalDstSpec, cx: &LbContext<'_>, stats: &TrafficStats) -> Option<SocketAddr> {
    let parse = |text: &str| -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            stats.original_dst_host_invalid.inc();
        }
        address
    };
    let from_state = || {
        let object = cx.stream.and_then(|s| s.filter_state.get(DESTINATION).map(|o| o.as_string()));
        let object = object.or_else(|| cx.downstream.and_then(|d| d.filter_state.borrow().get(DESTINATION).map(|o| o.as_string())));
        object.flatten().and_then(|text| parse(&text))
    };
    let from_header = || {
        let value = cx.request?.header(spec.header.as_ref()?)?;
        parse(std::str::from_utf8(&value).unwrap_or_default())
    };
    let from_metadata = || parse(metadata_text(cx.stream?, spec.metadata.as_ref()?)?);
    let from_connection = || {
        let connection = cx.downstream.or(cx.stream.map(|s| s.connection.as_ref()))?;
        connection.local.socket()
    };
    let mut address = from_state().or_else(from_header).or_else(from_metadata).or_else(from_connection)?;
    if let Some(port) = spec.port_override {
        address.set_port(port);
    }
    Some(address)
}

/// The string at `path` in the stream's dynamic metadata.
pub(crate) fn metadata_text<'a>(stream: &'a StreamInfo, path: &MetadataPath) -> Option<&'a str> {
    let mut fields = stream.metadata(&path.namespace)?;
    let (last, parents) = path.path.split_last()?;
    for key in parents {
        match &fields.fields.get(key.as_ref())?.kind {
            Some(Kind::StructValue(inner)) => fields = inner,
            _ => return None,
        }
    }
    match &fields.fields.get(last.as_ref())?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}
