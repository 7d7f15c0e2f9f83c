//! Connections to the control plane through a cluster of the bootstrap, so that its TLS, its DNS and its stats apply.
//! Control thread.

use futures_util::future::LocalBoxFuture;
use nuncio_core::ByteStr;
use nuncio_core::filter_state::ApplicationProtocols;
use nuncio_upstream::{ClusterManager, LbContext, OpenOptions, Upstreams};
use nuncio_xds::transport::{Connector, Io};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for a cluster's first hosts (DNS) before an attempt counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to the hosts of a cluster.
pub struct ClusterConnector {
    pub clusters: Arc<ClusterManager>,
    pub name: Arc<str>,
}

impl Connector for ClusterConnector {
    fn connect(&self) -> LocalBoxFuture<'static, io::Result<Box<dyn Io>>> {
        let (clusters, name) = (self.clusters.clone(), self.name.clone());
        Box::pin(async move {
            let upstreams = Upstreams::current();
            let deadline = tokio::time::Instant::now() + PATIENCE;
            loop {
                let found = clusters.get(&name).and_then(|c| upstreams.pick(&c, &LbContext::default()).map(|h| (c, h)));
                if let Some((cluster, host)) = found {
                    let alpn = ApplicationProtocols(vec![ByteStr::from_static("h2")]);
                    let options = OpenOptions { alpn: Some(&alpn), ..OpenOptions::default() };
                    return match upstreams.connect(&cluster, &host, &options).await {
                        Ok(connection) => Ok(Box::new(connection) as Box<dyn Io>),
                        Err(e) => Err(io::Error::other(format!("cluster '{name}': {e}"))),
                    };
                }
                if tokio::time::Instant::now() >= deadline {
                    let what = if clusters.get(&name).is_some() { "has no healthy host" } else { "is unknown or not ready" };
                    return Err(io::Error::other(format!("cluster '{name}' {what}")));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    }
}
