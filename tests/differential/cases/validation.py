"""Configurations that both must refuse, and some that both must accept."""
from harness.config import cluster, endpoint, extension, route, say, to, typed
from harness.validate import Validation


def setups():
    table = Validation("refused")
    ok = [route("/", direct_response=say("x"))]

    def routes(name, *entries):
        table.offer(name, routes=list(entries))
    table.offer("fine", routes=ok)
    routes("no action", {"match": {"prefix": "/"}})
    routes("no match", {"match": {}, "direct_response": say("x")})
    routes("bad regex", route({"safe_regex": {"regex": "("}}, direct_response=say("x")))
    routes("lookahead", route({"safe_regex": {"regex": "(?=a)"}}, direct_response=say("x")))
    routes("backreference", route({"safe_regex": {"regex": "(a)\\1"}}, direct_response=say("x")))
    routes("unknown cluster", route("/", to("nope")))
    routes("status 99", route("/", direct_response={"status": 99}))
    routes("status 600", route("/", direct_response={"status": 600}))
    routes("weights zero", route("/", {"weighted_clusters": {"clusters": [{"name": "a", "weight": 0}]}}))
    routes("weights empty", route("/", {"weighted_clusters": {"clusters": []}}))
    routes("two host rewrites", route("/", to(host_rewrite_literal="a", host_rewrite_header="b")))
    routes("prefix and regex rewrite", route("/", to(prefix_rewrite="/a", regex_rewrite={"pattern": {"regex": "a"}, "substitution": "b"})))
    routes("separated ends with slash", route({"path_separated_prefix": "/a/"}, direct_response=say("x")))
    routes("separated with query", route({"path_separated_prefix": "/a?b"}, direct_response=say("x")))
    routes("bad header name", route("/", direct_response=say("x"), response_headers_to_add=[{"header": {"key": "a b", "value": "x"}}]))
    routes("pseudo header added", route("/", direct_response=say("x"), request_headers_to_add=[{"header": {"key": ":path", "value": "x"}}]))
    routes("host header added", route("/", to(), request_headers_to_add=[{"header": {"key": "host", "value": "x"}}]))
    routes("host header removed", route("/", to(), request_headers_to_remove=["host"]))
    routes("header value newline", route("/", direct_response=say("x"), response_headers_to_add=[{"header": {"key": "a", "value": "x\ny"}}]))
    routes("unknown operator", route("/", direct_response=say("x"), response_headers_to_add=[{"header": {"key": "a", "value": "%NOPE%"}}]))
    routes("lone percent", route("/", direct_response=say("x"), response_headers_to_add=[{"header": {"key": "a", "value": "50%"}}]))
    routes("bad template", route({"path_match_policy": extension("t", "path.match.uri_template.v3.UriTemplateMatchConfig", path_template="/{a}/{a}")}, direct_response=say("x")))
    routes("template star star first", route({"path_match_policy": extension("t", "path.match.uri_template.v3.UriTemplateMatchConfig", path_template="/**/{a}")}, direct_response=say("x")))
    routes("retry interval order", route("/", to(retry_policy={"retry_on": "5xx", "retry_back_off": {"base_interval": "2s", "max_interval": "1s"}})))
    routes("negative timeout", route("/", to(timeout="-1s")))
    routes("fraction too large", route({"prefix": "/", "runtime_fraction": {"default_value": {"numerator": 200}}}, direct_response=say("x")))
    routes("unknown field", {**ok[0], "nonsense": 1})
    routes("unknown extension", route("/", direct_response=say("x"), typed_per_filter_config={"envoy.filters.http.nope": {"@type": "type.googleapis.com/google.protobuf.Struct"}}))
    for name, domains in {"duplicate domain": [["a"], ["a"]], "duplicate star": [["*"], ["*"]], "empty domain": [[""]], "star inside": [["a*b"]], "two stars": [["*a*"]], "case duplicate": [["A"], ["a"]], "no domains": [[]]}.items():
        table.offer(name, vhosts=[{"name": f"v{number}", "domains": names, "routes": ok} for number, names in enumerate(domains)])
    table.offer("duplicate vhost name", vhosts=[{"name": "v", "domains": ["a"], "routes": ok}, {"name": "v", "domains": ["b"], "routes": ok}])
    for name, hcm in {"no stat prefix": {"stat_prefix": ""}, "bad codec": {"codec_type": "NOPE"}, "kb zero": {"max_request_headers_kb": 0}, "kb large": {"max_request_headers_kb": 9000}, "headers zero": {"common_http_protocol_options": {"max_headers_count": 0}},
                      "both port strips": {"strip_any_host_port": True, "strip_matching_host_port": True}, "server name newline": {"server_name": "a\nb"}, "unknown": {"nope": True}, "via newline": {"via": "a\nb"}, "bad scheme": {"scheme_header_transformation": {"scheme_to_overwrite": "ftp"}},
                      "ip detection and remote": {"use_remote_address": True, "original_ip_detection_extensions": [extension("envoy.http.original_ip_detection.xff", "http.original_ip_detection.xff.v3.XffConfig")]},
                      "window small": {"http2_protocol_options": {"initial_stream_window_size": 1}}, "streams zero": {"http2_protocol_options": {"max_concurrent_streams": 0}}, "upgrade twice": {"upgrade_configs": [{"upgrade_type": "a"}, {"upgrade_type": "a"}]},
                      "http2 ping short": {"http2_protocol_options": {"connection_keepalive": {"interval": "0s", "timeout": "1s"}}}}.items():
        table.offer(f"manager {name}", routes=ok, hcm=hcm)
    for operator in ("NOPE", "REQ()", "REQ", "REQ(A", "REQ(A):x", "REQ_WITHOUT_QUERY(:PATH)", "PATH(XX)", "PATH(WQ:XX)", "REQUESTED_SERVER_NAME(HOST_ONLY)", "START_TIME(%s)", "DURATION(1)", "RESP(A?B?C)", "DYNAMIC_METADATA()", "METADATA(X:y)", "FILTER_STATE()", "FILTER_STATE(a:XX)",
                     "ENVIRONMENT()", "GRPC_STATUS(XX)", "COMMON_DURATION(A:B:ms)", "COMMON_DURATION(DS_RX_BEG:DS_TX_END:ms)", "COMMON_DURATION(DS_RX_BEG:DS_TX_END:xx)", "req(:path)", "QUERY_PARAM()", "PROTOCOL(1)", "PROTOCOL:3", "START_TIME(%Y/%m/%dT%H:%M:%S%z %s)"):
        table.offer(f"operator {operator}", routes=ok, log=f"%{operator}%")
    table.offer("operator unclosed", routes=ok, log="%REQ(:PATH)")
    clusters = {"no name": {**cluster("a"), "name": ""}, "no address": {"name": "a", "type": "STATIC", "load_assignment": {"cluster_name": "a", "endpoints": [{"lb_endpoints": [{"endpoint": {}}]}]}},
                "hostname in static": {"name": "a", "type": "STATIC", "load_assignment": {"cluster_name": "a", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "not-an-ip", "port_value": 1}}}}]}]}},
                "ring too small": cluster("a", lb_policy="RING_HASH", ring_hash_lb_config={"minimum_ring_size": 10, "maximum_ring_size": 5}), "maglev not prime": cluster("a", lb_policy="MAGLEV", maglev_lb_config={"table_size": 10}),
                "weight zero": cluster("a", localities=[{"lb_endpoints": [endpoint("a", load_balancing_weight=0)]}]), "priority gap": cluster("a", localities=[{"priority": 2, "lb_endpoints": [endpoint("a")]}]),
                "connect timeout zero": cluster("a", connect_timeout="0s"), "unknown field": cluster("a", nonsense=1), "bad lb": cluster("a", lb_policy="NOPE"), "eds without config": {"name": "a", "type": "EDS"},
                "provided": cluster("a", lb_policy="CLUSTER_PROVIDED"), "outlier percent": cluster("a", outlier_detection={"max_ejection_percent": 200}), "health check no timeout": cluster("a", health_checks=[{"interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1, "tcp_health_check": {}}])}
    for name, entry in clusters.items():
        table.offer(f"cluster {name}", routes=ok, clusters=[entry])
    table.offer("duplicate cluster", routes=ok, clusters=[cluster("a"), cluster("a")])
    for name, filters in {"unknown filter": [extension("x", "filters.http.nope.v3.Nope")], "router twice": [extension("envoy.filters.http.router", "filters.http.router.v3.Router")], "no typed config": [{"name": "envoy.filters.http.cors"}],
                          "wrong type": [{"name": "envoy.filters.http.cors", "typed_config": typed("filters.http.nope.v3.Cors")}], "bad buffer": [extension("envoy.filters.http.buffer", "filters.http.buffer.v3.Buffer")]}.items():
        table.offer(name, routes=ok, filters=filters)
    table.offer("header fine", routes=[route("/", direct_response=say("x"), response_headers_to_add=[{"header": {"key": "a", "value": "%% %REQ(x)%"}}])])
    table.offer("no routes", vhosts=[{"name": "v", "domains": ["*"], "routes": []}])
    return [table]
