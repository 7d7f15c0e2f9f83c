//! The pump over real sockets of the loopback interface.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::pump::{End, Flow};
use crate::stats::Stats;
use bytes::BytesMut;
use nuncio_core::StreamInfo;
use nuncio_core::network::{NetworkAction, NetworkFilter};
use nuncio_core::test_kit;
use nuncio_listener::Filters;
use nuncio_stats::Store;
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (a.unwrap(), b.unwrap().0)
}

struct Rig {
    store: Store,
    stats: Stats,
    flow: Flow,
    io: TcpStream,
    upstream: TcpStream,
}

/// A flow, the client's end and the server's end.
async fn rig(filters: Vec<Box<dyn NetworkFilter>>) -> (Rig, TcpStream, TcpStream) {
    let store = Store::new();
    let stats = Stats::new(&store.root(), "t");
    let (client, io) = pair().await;
    let (upstream, server) = pair().await;
    let info: StreamInfo = test_kit::stream_info();
    (Rig { store, stats, flow: Flow::new(info, Filters::new(filters)), io, upstream }, client, server)
}

impl Rig {
    async fn run(&mut self) -> End {
        poll_fn(|cx| self.flow.poll(cx, &mut self.io, &mut self.upstream, &self.stats)).await
    }
    fn stat(&self, name: &str) -> i64 {
        self.store.value(&format!("tcp.t.{name}")).unwrap()
    }
}

#[tokio::test]
async fn half_close_is_passed_on_and_the_answer_still_comes() {
    let (mut rig, mut client, mut server) = rig(Vec::new()).await;
    let peer = async {
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let host = async {
        let mut request = String::new();
        server.read_to_string(&mut request).await.unwrap();
        server.write_all(format!("got {request}").as_bytes()).await.unwrap();
        drop(server);
    };
    let (end, answer, ()) = tokio::join!(rig.run(), peer, host);
    assert_eq!((end, answer.as_str()), (End::Done, "got hello"));
    let info = &rig.flow.info;
    let upstream = info.upstream.as_ref().unwrap();
    assert_eq!((info.request_meter.bytes.get(), info.bytes_sent), (5, 9));
    assert_eq!((info.wire_rx_bytes, info.wire_tx_bytes, upstream.wire_tx_bytes, upstream.wire_rx_bytes), (5, 9, 5, 9));
    assert_eq!((info.connection.rx_bytes.get(), info.connection.tx_bytes.get()), (5, 9));
    assert_eq!((rig.stat("downstream_cx_rx_bytes_total"), rig.stat("downstream_cx_tx_bytes_total")), (5, 9));
}

#[tokio::test]
async fn much_data_goes_both_ways_and_gauges_return_to_zero() {
    const SIZE: usize = 6 << 20;
    let (mut rig, client, server) = rig(Vec::new()).await;
    let data: Vec<u8> = (0..SIZE).map(|i| (i * 7 + i / 251) as u8).collect();
    let side = |stream: TcpStream| {
        let data = data.clone();
        async move {
            let (mut read, mut write) = stream.into_split();
            let send = async {
                write.write_all(&data).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let receive = async {
                read.read_to_end(&mut got).await.unwrap();
            };
            tokio::join!(send, receive);
            assert!(got == data);
        }
    };
    let (end, (), ()) = tokio::join!(rig.run(), side(client), side(server));
    assert_eq!(end, End::Done);
    let (paused, resumed) =
        (rig.stat("downstream_flow_control_paused_reading_total"), rig.stat("downstream_flow_control_resumed_reading_total"));
    assert_eq!(paused, resumed);
    assert_eq!((rig.stat("downstream_cx_rx_bytes_buffered"), rig.stat("downstream_cx_tx_bytes_buffered")), (0, 0));
    assert_eq!(rig.stat("downstream_cx_rx_bytes_total") as usize, SIZE);
}

#[tokio::test]
async fn a_slow_upstream_stops_reading() {
    let (mut rig, mut client, server) = rig(Vec::new()).await;
    let buffered = rig.store.root().gauge("tcp.t.downstream_cx_rx_bytes_buffered");
    let fill = async {
        let block = vec![0; 1 << 16];
        while client.write_all(&block).await.is_ok() {}
    };
    let blocked = async {
        while buffered.value() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        end = rig.run() => panic!("{end:?}"),
        () = fill => panic!("the client could not write"),
        () = blocked => {}
    }
    assert!(rig.stat("downstream_cx_rx_bytes_buffered") > 0);
    assert!(rig.stat("downstream_cx_rx_bytes_buffered") <= crate::bypass::CAPACITY as i64);
    rig.flow.release(&rig.stats);
    assert_eq!(rig.stat("downstream_cx_rx_bytes_buffered"), 0);
    drop(server);
}

#[tokio::test]
async fn resets_are_told_apart() {
    let (mut rig1, client, server) = rig(Vec::new()).await;
    server.set_zero_linger().unwrap();
    drop(server);
    assert_eq!(rig1.run().await, End::UpstreamReset);
    drop(client);
    let (mut rig2, client, server) = rig(Vec::new()).await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(rig2.run().await, End::Downstream);
    drop(server);
}

/// Takes a greeting of four bytes before anything goes on, answers it, and upper-cases what goes out.
struct Greeting {
    seen: bool,
}
impl NetworkFilter for Greeting {
    fn on_new(&mut self, _info: &mut StreamInfo, write: &mut BytesMut) -> NetworkAction {
        write.extend_from_slice(b"welcome ");
        NetworkAction::Hold
    }
    fn on_read(&mut self, _info: &mut StreamInfo, data: &mut BytesMut, _end: bool) -> NetworkAction {
        if self.seen {
            return NetworkAction::Continue;
        }
        if data.len() < 4 {
            return NetworkAction::Hold;
        }
        if data.split_to(4) != "hey!" {
            return NetworkAction::Close("no greeting".into());
        }
        self.seen = true;
        NetworkAction::Continue
    }
    fn on_write(&mut self, _info: &mut StreamInfo, data: &mut BytesMut, _end: bool) -> NetworkAction {
        data.make_ascii_uppercase();
        NetworkAction::Continue
    }
}

#[tokio::test]
async fn filters_hold_take_and_change_bytes() {
    let (mut rig, mut client, mut server) = rig(vec![Box::new(Greeting { seen: false })]).await;
    rig.flow.begin();
    let proxy = async {
        poll_fn(|cx| rig.flow.poll_first(cx, &mut rig.io, false, &rig.stats)).await.unwrap();
        rig.run().await
    };
    let peer = async {
        let mut welcome = [0; 8];
        client.read_exact(&mut welcome).await.unwrap();
        assert_eq!(&welcome, b"welcome ");
        client.write_all(b"he").await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(b"y!question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let host = async {
        let mut request = String::new();
        server.read_to_string(&mut request).await.unwrap();
        server.write_all(request.as_bytes()).await.unwrap();
        server.shutdown().await.unwrap();
    };
    let (end, answer, ()) = tokio::join!(proxy, peer, host);
    assert_eq!((end, answer.as_str()), (End::Done, "QUESTION"));
    assert_eq!(rig.flow.info.request_meter.bytes.get(), 8, "the greeting was for the filter");
    assert_eq!(rig.stat("downstream_cx_rx_bytes_total"), 12);
}

#[tokio::test]
async fn a_filter_may_close() {
    let (mut rig, mut client, _server) = rig(vec![Box::new(Greeting { seen: false })]).await;
    rig.flow.begin();
    client.write_all(b"nope").await.unwrap();
    let end = poll_fn(|cx| rig.flow.poll_first(cx, &mut rig.io, false, &rig.stats)).await;
    assert_eq!(end, Err(End::Filter("no greeting".into())));
}
