//! istio.stats for TCP: a network filter beside tcp_proxy. Workers; touches no byte.

use super::Config;
use super::facts::Group;
use super::gather::{End, Gathered, peer_key};
use super::overrides::Metric;
use super::series::{Series, series};
use crate::cel::Attributes;
use crate::peer::Peer;
use nuncio_core::network::{NetworkFilter, NetworkFilterConfig};
use nuncio_core::{ConnectionInfo, StreamInfo};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub struct FilterConfig(pub Arc<Config>);

impl NetworkFilterConfig for FilterConfig {
    fn create(&self, _connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter { config: self.0.clone(), open: None, sent: 0, received: 0 }))
    }
}

struct Filter {
    config: Arc<Config>,
    /// Handles, once the connection was reported as open: its labels do not change afterwards.
    open: Option<Arc<Series>>,
    sent: u64,
    received: u64,
}

impl NetworkFilter for Filter {
    fn wants_data(&self) -> bool {
        false
    }
    fn report_interval(&self) -> Option<Duration> {
        self.config.interval
    }
    fn on_report(&mut self, info: &mut StreamInfo) {
        // Who the peer is may still be on its way in the metadata exchange.
        if self.open.is_some() || Peer::settled(info, peer_key(self.config.reporter)) {
            self.report(info);
        }
    }
    fn on_close(&mut self, info: &mut StreamInfo) {
        let series = self.report(info);
        series.add(Metric::TcpClosed, 1);
        series.report_custom(&self.config, &self.attributes(info));
    }
}

impl Filter {
    fn attributes<'a>(&'a self, info: &'a StreamInfo) -> Attributes<'a> {
        Attributes { info, request: None, response: None, trailers: None, route: None, server: Some(&self.config.server) }
    }
    fn find(&self, info: &StreamInfo) -> Arc<Series> {
        let peer = Peer::find(info, peer_key(self.config.reporter));
        let values = self.config.overrides.values(&self.attributes(info));
        let end = End { flags: info.flags, ..End::default() };
        series(&self.config, &Gathered::read(&self.config, info, None, None, peer).facts(Group::Tcp, end, &values))
    }
    fn report(&mut self, info: &StreamInfo) -> Arc<Series> {
        let series = match &self.open {
            Some(series) if !series.evicted() => series.clone(),
            Some(_) => self.find(info),
            None => {
                let series = self.find(info);
                series.add(Metric::TcpOpened, 1);
                series
            }
        };
        self.open = Some(series.clone());
        let (sent, received) = (info.connection.tx_bytes.get(), info.connection.rx_bytes.get());
        series.add(Metric::TcpSent, sent.saturating_sub(self.sent));
        series.add(Metric::TcpReceived, received.saturating_sub(self.received));
        (self.sent, self.received) = (sent, received);
        series
    }
}
