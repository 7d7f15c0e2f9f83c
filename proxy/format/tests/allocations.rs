//! Formatting allocates nothing beyond the output buffer.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used, clippy::panic)]
// Counting allocations needs an allocator of one's own, which Rust calls unsafe; this is a test only.
#![allow(unsafe_code)]

mod common;

use common::{context, exchange, text};
use nuncio_core::diag::{At, Report};
use nuncio_core::test_kit::fields;
use nuncio_format::{DEFAULT_FORMAT, Formatter};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn formatting_allocates_nothing() {
    let mut report = Report::new();
    let mut ex = exchange();
    ex.request.headers.remove(&"x-a".parse().unwrap());
    let cx = context(&ex);
    // The default format of Envoy, and the longer one of Istio.
    let istio = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
        %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% \
        %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
        \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
        %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
    let json = fields([
        ("start", text("%START_TIME%")),
        ("code", text("%RESPONSE_CODE%")),
        ("path", text("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%")),
        ("both", text("%PROTOCOL% %UPSTREAM_HOST%")),
        ("none", text("%REQ(nope)%")),
    ]);
    let formats = [
        Formatter::text(DEFAULT_FORMAT, &At::Root, &mut report).unwrap(),
        Formatter::text(istio, &At::Root, &mut report).unwrap(),
        Formatter::json(&json, &[], false, &At::Root, &mut report).unwrap(),
    ];
    let mut out = Vec::with_capacity(64 * 1024);
    for format in formats {
        let before = COUNT.get();
        for _ in 0..100 {
            out.clear();
            format.write(&cx, &mut out);
        }
        assert_eq!(COUNT.get() - before, 0, "{}", String::from_utf8_lossy(&out));
    }
}
