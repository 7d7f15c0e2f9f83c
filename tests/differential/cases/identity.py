"""Who the client is: x-forwarded-*, trusted hops, internal addresses, x-request-id, x-envoy-* sanitising, via and server."""
from harness.config import LOG, extension
from harness.setup import Setup, reply

LOG_WHO = LOG + " down=[%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%] direct=[%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%] id=[%REQ(X-REQUEST-ID)%]"

HEADERS = {
    "none": [],
    "xff internal": [("x-forwarded-for", "10.0.0.1")],
    "xff external": [("x-forwarded-for", "8.8.8.8")],
    "xff list": [("x-forwarded-for", "8.8.8.8, 10.0.0.1")],
    "xff long list": [("x-forwarded-for", "1.1.1.1,2.2.2.2,3.3.3.3")],
    "xff two headers": [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")],
    "xff garbage": [("x-forwarded-for", "what, ever")],
    "xff v6": [("x-forwarded-for", "2001:db8::1")],
    "xff port": [("x-forwarded-for", "8.8.8.8:80")],
    "xff empty": [("x-forwarded-for", "")],
    "xff spaces": [("x-forwarded-for", "  8.8.8.8 ,  9.9.9.9  ")],
    "proto https": [("x-forwarded-proto", "https")],
    "proto bad": [("x-forwarded-proto", "gopher")],
    "proto list": [("x-forwarded-proto", "https,http")],
    "port": [("x-forwarded-port", "8443")],
    "host": [("x-forwarded-host", "evil.test")],
    "request id": [("x-request-id", "my-own-id")],
    "request id uuid": [("x-request-id", "7b4a5e0e-3d6f-4bd2-9c3c-4c1e2f0f3a11")],
    "envoy headers": [("x-envoy-internal", "true"), ("x-envoy-upstream-rq-timeout-ms", "1000"), ("x-envoy-max-retries", "1"), ("x-envoy-retry-on", "5xx"),
                      ("x-envoy-expected-rq-timeout-ms", "1"), ("x-envoy-force-trace", "true"), ("x-envoy-decorator-operation", "op"),
                      ("x-envoy-downstream-service-cluster", "c"), ("x-envoy-downstream-service-node", "n"), ("x-envoy-ip-tags", "t"), ("x-envoy-original-path", "/evil"),
                      ("x-envoy-external-address", "6.6.6.6"), ("x-envoy-hedge-on-per-try-timeout", "true"), ("x-envoy-upstream-alt-stat-name", "alt"),
                      ("x-envoy-upstream-rq-per-try-timeout-ms", "500"), ("x-envoy-retriable-status-codes", "418"), ("x-envoy-retriable-header-names", "x"),
                      ("x-envoy-attempt-count", "7"), ("x-envoy-original-host", "evil"), ("x-envoy-upstream-rq-timeout-alt-response", "1"), ("x-envoy-unknown", "u")],
    "user agent": [("user-agent", "curl/8")],
    "client trace": [("x-client-trace-id", "trace")],
    "via": [("via", "1.0 proxy")],
    "xfcc": [("x-forwarded-client-cert", "Hash=abc;URI=spiffe://x")],
    "true-client": [("true-client-ip", "5.5.5.5")],
    "forwarded": [("forwarded", "for=4.4.4.4")],
    "b3": [("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")],
}

OPTIONS = {
    "default": {},
    "remote-address": {"use_remote_address": True},
    "one-hop": {"use_remote_address": True, "xff_num_trusted_hops": 1},
    "two-hops": {"use_remote_address": True, "xff_num_trusted_hops": 2},
    "hops-no-remote": {"xff_num_trusted_hops": 1},
    "skip-append": {"use_remote_address": True, "skip_xff_append": True},
    "internal-loopback": {"use_remote_address": True, "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}},
    "internal-unix": {"use_remote_address": True, "internal_address_config": {"unix_sockets": True}},
    "internal-no-remote": {"internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}},
    "preserve-id": {"use_remote_address": True, "preserve_external_request_id": True},
    "id-in-response": {"always_set_request_id_in_response": True},
    "no-id": {"generate_request_id": False},
    "via": {"via": "nuncio"},
    "user-agent": {"use_remote_address": True, "add_user_agent": True},
    "server-name": {"server_name": "mine"},
    "server-absent": {"server_header_transformation": "APPEND_IF_ABSENT"},
    "server-pass": {"server_header_transformation": "PASS_THROUGH"},
    "scheme-overwrite": {"scheme_header_transformation": {"scheme_to_overwrite": "https"}},
    "forwarded-port": {"use_remote_address": True, "append_x_forwarded_port": True},
    "detection-xff": {"original_ip_detection_extensions": [extension("envoy.http.original_ip_detection.xff", "http.original_ip_detection.xff.v3.XffConfig", xff_num_trusted_hops=1)]},
    "detection-xff-cidr": {"original_ip_detection_extensions": [extension("envoy.http.original_ip_detection.xff", "http.original_ip_detection.xff.v3.XffConfig",
                           xff_trusted_cidrs={"cidrs": [{"address_prefix": "127.0.0.0", "prefix_len": 8}, {"address_prefix": "10.0.0.0", "prefix_len": 8}]})]},
    "detection-header": {"original_ip_detection_extensions": [extension("envoy.http.original_ip_detection.custom_header",
                         "http.original_ip_detection.custom_header.v3.CustomHeaderConfig", header_name="true-client-ip", allow_extension_to_set_address_as_trusted=True)]},
    "detection-reject": {"original_ip_detection_extensions": [extension("envoy.http.original_ip_detection.custom_header",
                         "http.original_ip_detection.custom_header.v3.CustomHeaderConfig", header_name="true-client-ip", reject_with_status={"code": 403})]},
    "proxy-100": {"proxy_100_continue": True},
    "xfcc-forward": {"forward_client_cert_details": "FORWARD_ONLY"},
    "xfcc-always": {"forward_client_cert_details": "ALWAYS_FORWARD_ONLY"},
}


def setups():
    made = []
    for name, options in OPTIONS.items():
        setup = Setup(name, hcm=options, log=LOG_WHO)
        for case, headers in HEADERS.items():
            if name in ("default", "remote-address", "internal-loopback", "one-hop") or case in ("none", "xff list", "xff external", "xff internal", "xff long list", "proto https",
                                                                               "request id", "request id uuid", "true-client", "user agent", "via", "xfcc", "envoy headers"):
                setup.get(case, "/p?q", headers)
        setup.get("upstream server", upstream=[reply(200, [("Server", "theirs"), ("Date", "then"), ("Via", "1.1 up"), ("X-Request-Id", "up"), ("X-Envoy-Upstream-Service-Time", "9"),
                                                           ("Connection", "close"), ("Keep-Alive", "x"), ("Proxy-Connection", "x"), ("X-Envoy-Immediate-Health-Check-Fail", "1")], "x")])
        setup.http2("h2", headers=[("x-forwarded-for", "8.8.8.8")])
        setup.http2("h2 https", headers=[], scheme="https")
        made.append(setup)
    suppress = Setup("suppress-envoy-headers", router={"suppress_envoy_headers": True})
    suppress.get("plain", "/")
    suppress.get("with", "/", HEADERS["envoy headers"])
    made.append(suppress)
    return made
