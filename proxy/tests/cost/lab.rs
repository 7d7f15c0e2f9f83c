//! A connection manager with one filter, asked over a socket by a client on the same thread, with every allocation of the thread counted.
// Counting allocations takes an allocator, and an allocator is unsafe to implement.
#![allow(unsafe_code)]

use bytes::BytesMut;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::{FactoryCx, Registry};
use nuncio_core::test_kit;
use nuncio_hcm::HcmFactory;
use nuncio_listener::{ChainCx, Connection, DrainWatch, Terminal, TerminalFactory};
use nuncio_proto::Message;
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use nuncio_proto::json::{UnknownFields, parse_text};
use nuncio_tls::{SecretStore, Transport};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|c| c.set(c.get() + 1));
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|c| c.set(c.get() + 1));
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests that are looked at, after some that are not: tables and buffers have then found their sizes.
const WARM: usize = 20;
const LOOKED_AT: usize = 40;
/// Bytes of the answer's body: enough to be compressed.
const BODY: usize = 600;

/// The configuration: `filter` is the content of an `HttpFilter` called `filter`, none for the router alone; `route` what the route that
/// is asked for says of filters.
fn manager(filter: &str, route: &str) -> String {
    let filter = if filter.is_empty() { String::new() } else { format!("- {{name: filter, {filter}}}\n") };
    format!(
        r#"
stat_prefix: cost
route_config:
  name: r
  virtual_hosts:
  - name: v
    domains: ['*']
    routes:
    - match: {{prefix: /}}
      direct_response: {{status: 200, body: {{inline_string: '{}'}}}}
      response_headers_to_add: [{{header: {{key: content-type, value: text/plain}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}]
{route}
http_filters:
{filter}- name: envoy.filters.http.router
  typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#,
        "x".repeat(BODY)
    )
}

fn compile(config: &str) -> Arc<dyn Terminal> {
    let proto: HttpConnectionManager = parse_text(config, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}\n{config}")).value;
    let mut registry = Registry::default();
    nuncio_filters::register(&mut registry);
    nuncio_istio::register(&mut registry);
    let server = test_kit::server(Default::default());
    let factory = HcmFactory {
        registry: Arc::new(registry),
        routes: Arc::default(),
        clusters: server.clusters.clone(),
        extensions: Arc::default(),
        discovery: Arc::default(),
    };
    let mut report = Report::new();
    let (secrets, listener, scope) = (SecretStore::new(), Arc::from("l"), server.stats.root().scope("listener.l."));
    let chain = ChainCx {
        listener: &listener,
        chain: "",
        listener_scope: &scope,
        listener_metadata: None,
        chain_metadata: None,
        tls: false,
        buffer_limit: 1 << 20,
        drain_modify_only: false,
        secrets: &secrets,
    };
    let root = server.stats.root();
    let mut cx = FactoryCx { server: &server, scope: &root, direction: TrafficDirection::Unspecified, report: &mut report };
    factory.compile(&proto.encode_to_vec(), &At::Root, &mut cx, &chain).unwrap_or_else(|| panic!("{}\n{config}", report.summary()))
}

/// Sends `request` and reads its answer, whose head and length the first one has shown; gives its status.
async fn ask(io: &mut UnixStream, request: &[u8], room: &mut [u8]) -> u16 {
    let (head, body) = request.split_at(request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4);
    io.write_all(head).await.unwrap();
    if !body.is_empty() {
        // Once the head has been looked at, as it would be over a network.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        io.write_all(body).await.unwrap();
    }
    let mut len = 0;
    loop {
        let n = io.read(&mut room[len..]).await.unwrap();
        assert!(n > 0, "closed");
        len += n;
        let Some(head) = room[..len].windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let text = &room[..head];
        let at = |name: &[u8]| text.windows(name.len()).position(|w| w == name).map(|i| i + name.len());
        let done = match at(b"content-length: ") {
            Some(i) => {
                let digits = text[i..].iter().take_while(|b| b.is_ascii_digit());
                len >= head + 4 + digits.fold(0, |n, d| n * 10 + usize::from(d - b'0'))
            }
            None => room[..len].ends_with(b"0\r\n\r\n"),
        };
        if done {
            return text[9..12].iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'));
        }
    }
}

/// Allocations that a request costs with this filter: the least of many, because a second that begins or a table that grows costs some
/// more now and then. The status is that of every answer.
pub fn allocations(filter: &str, route: &str, request: &[u8]) -> (u16, u64) {
    let terminal = compile(&manager(filter, route));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let info = Rc::new(test_kit::connection());
        let io = Transport::Unix(theirs);
        let connection = Connection { io, info, filters: Vec::new(), leftover: BytesMut::new(), drain: DrainWatch::never() };
        tokio::task::spawn_local(terminal.serve(connection));
        let mut room = vec![0; 16 << 10];
        let status = ask(&mut ours, request, &mut room).await;
        let mut least = u64::MAX;
        for i in 0..WARM + LOOKED_AT {
            let before = COUNT.get();
            let again = ask(&mut ours, request, &mut room).await;
            // What is left to do when the answer is out is part of it.
            tokio::task::yield_now().await;
            if i >= WARM {
                least = least.min(COUNT.get() - before);
            }
            assert_eq!(again, status, "{}", String::from_utf8_lossy(&room[..200]));
        }
        (status, least)
    })
}
