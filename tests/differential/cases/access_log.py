"""Access logs: operators with their defaults, lengths and forms; JSON; filters."""
from harness.config import LOG_PREFIX, cluster, file_log, route, say, to, typed
from harness.setup import Setup, reply

OPERATORS = """REQ(:METHOD) REQ(:PATH) REQ(:AUTHORITY) REQ(:SCHEME) REQ(X-A) REQ(x-a) REQ(X-NONE) REQ(X-NONE?X-A) REQ(X-NONE?X-NONE) REQ(X-A):2 REQ(X-A):0 REQ(X-A):99 REQ(HOST) REQ(X-TWO) REQ(COOKIE)
RESP(:STATUS) RESP(X-B) RESP(x-none) RESP(X-NONE?X-B) RESP(X-B):1 RESP(CONTENT-TYPE) RESP(SERVER) TRAILER(X-T) TRAILER(NONE)
PROTOCOL UPSTREAM_PROTOCOL RESPONSE_CODE RESPONSE_CODE_DETAILS RESPONSE_FLAGS RESPONSE_FLAGS_LONG CONNECTION_TERMINATION_DETAILS BYTES_RECEIVED BYTES_SENT REQUEST_HEADERS_BYTES
RESPONSE_TRAILERS_BYTES ROUTE_NAME UPSTREAM_CLUSTER UPSTREAM_CLUSTER_RAW UPSTREAM_HOST UPSTREAM_HOST_NAME UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT
UPSTREAM_REMOTE_ADDRESS UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_TLS_VERSION UPSTREAM_TLS_CIPHER UPSTREAM_PEER_SUBJECT
DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_PORT DOWNSTREAM_TRANSPORT_FAILURE_REASON
DOWNSTREAM_TLS_VERSION DOWNSTREAM_TLS_CIPHER DOWNSTREAM_PEER_URI_SAN DOWNSTREAM_PEER_SUBJECT REQUESTED_SERVER_NAME VIRTUAL_CLUSTER_NAME DYNAMIC_METADATA(a:b) CLUSTER_METADATA(meta:key) CLUSTER_METADATA(meta:list)
CLUSTER_METADATA(meta:object) CLUSTER_METADATA(meta) CLUSTER_METADATA(meta:object:inner) CLUSTER_METADATA(meta:number) CLUSTER_METADATA(none:x) UPSTREAM_METADATA(envoy.lb:host) METADATA(ROUTE:meta:r) METADATA(CLUSTER:meta:key)
METADATA(ROUTE:none) METADATA(LISTENER:l:x) FILTER_STATE(none) FILTER_STATE(none:PLAIN) HOSTNAME_NONE GRPC_STATUS GRPC_STATUS(CAMEL_STRING) GRPC_STATUS(SNAKE_STRING) GRPC_STATUS(NUMBER) GRPC_STATUS_NUMBER
ENVIRONMENT(NO_SUCH_THING) ENVIRONMENT(DIFF_VARIABLE) ACCESS_LOG_TYPE CONNECTION_ID_NONE STREAM_ID_NONE DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID UPSTREAM_CONNECTION_POOL_READY_DURATION_NONE JA3_NONE TLS_JA3_FINGERPRINT
UPSTREAM_CONNECTION_ID_NONE TRACE_ID QUERY_PARAM(q) QUERY_PARAM(none) PATH PATH(WQ) PATH(NQ) PATH(WQ:ORIG) PATH(WQ:PATH) PATH(WQ:ORIG_OR_PATH) PATH(NQ:PATH):4 CUSTOM_FLAGS
LOCAL_REPLY_BODY UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_CONNECTION_IDS_ATTEMPTED_NONE COALESCE_NONE
DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_CERT DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_ISSUER DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_PEER_CERT_V_START DOWNSTREAM_PEER_CERT_V_END
FILTER_CHAIN_NAME LISTENER_NAME_NONE VIRTUAL_HOST_NAME_NONE REQUESTED_SERVER_NAME(SNI_ONLY) REQUESTED_SERVER_NAME(HOST_FIRST) REQUESTED_SERVER_NAME(SNI_FIRST:ORIG)""".split()
# Without x-envoy-upstream-service-time, whose digits change.
BYTES = """RESPONSE_HEADERS_BYTES UPSTREAM_WIRE_BYTES_SENT UPSTREAM_WIRE_BYTES_RECEIVED UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HEADER_BYTES_RECEIVED DOWNSTREAM_WIRE_BYTES_SENT DOWNSTREAM_WIRE_BYTES_RECEIVED
DOWNSTREAM_HEADER_BYTES_SENT DOWNSTREAM_HEADER_BYTES_RECEIVED""".split()
OPERATORS = [operator for operator in OPERATORS if not operator.endswith("_NONE")]

REQUESTS = {
    "get": {"path": "/p/a/t/h?q=1&r=2", "headers": [("X-A", "abcdef"), ("X-Two", "1"), ("X-Two", "2"), ("Cookie", "a=b")],
            "upstream": [reply(200, [("X-B", "resp"), ("content-type", "text/html")], "body")]},
    "post": {"path": "/post", "method": "POST", "body": b"hello", "upstream": [[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]]},
    "local": {"path": "/local"}, "missing": {"path": "/missing", "host": "none.test"},
    "fail": {"path": "/fail", "upstream": [["close"]]},
    "grpc": {"path": "/grpc", "method": "POST", "headers": [("content-type", "application/grpc")], "upstream": [reply(200, [("content-type", "application/grpc"), ("grpc-status", "5")])]},
    "quotes": {"path": '/q"uote\\back', "headers": [("x-a", 'say "hi" \\ there')], "upstream": [reply(200, [("x-b", "t\tab")], "x")]},
}
VHOSTS = [{"name": "v", "domains": ["host"], "virtual_clusters": [{"name": "vc-post", "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]}],
           "routes": [route("/local", name="local", direct_response=say("local", 418)), route("/", to("a"), name="the-route", metadata={"filter_metadata": {"meta": {"r": "route value"}}})]}]


def clusters():
    return [cluster("a", metadata={"filter_metadata": {"meta": {"key": "value", "list": [1, "two", None], "object": {"inner": "deep", "a": 1.5}, "number": 3, "flag": True}}})]


def fill(setup):
    for name, fields in REQUESTS.items():
        setup.get(name, **fields)
    setup.http2("h2", "/p?q=1", headers=[("x-a", "abcdef")], body=b"hi")
    setup.http2("h2 grpc", "/g", headers=[("content-type", "application/grpc"), ("te", "trailers")], method="POST", body=b"\0\0\0\0\0")
    return setup


def setups():
    made = []
    # One operator a line group would be slow; several in one line with their names show which one differs.
    for number in range(0, len(OPERATORS), 12):
        group = OPERATORS[number:number + 12]
        made.append(fill(Setup(f"operators-{number // 12}", vhosts=VHOSTS, clusters=clusters(), log=" ".join(f"{operator}=[%{operator}%]" for operator in group))))
    for operator in BYTES:
        made.append(fill(Setup(f"bytes-{operator.lower()}", vhosts=VHOSTS, clusters=clusters(), router={"suppress_envoy_headers": True}, log=f"%{operator}%")))
    typed_json = {"code": "%RESPONSE_CODE%", "bytes": "%BYTES_SENT%", "mixed": "a%RESPONSE_CODE%b", "none": "%REQ(NONE)%", "flags": "%RESPONSE_FLAGS%", "nested": {"method": "%REQ(:METHOD)%", "list": ["%PROTOCOL%", "fixed", 1, True]},
                  "text": "plain", "meta": "%CLUSTER_METADATA(meta)%", "path": "%REQ(:PATH)%", "header": "%REQ(X-A)%", "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "number": 5, "z": "%ROUTE_NAME%", "b": "%DYNAMIC_METADATA(a)%"}
    for name, extra in {"json": {}, "json-omit": {"omit_empty_values": True}, "json-sorted": {"json_format_options": {"sort_properties": True}}}.items():
        setup = Setup(name, vhosts=VHOSTS, clusters=clusters(), log="")
        setup.hcm["access_log"] = [{"name": "f", "typed_config": typed("access_loggers.file.v3.FileAccessLog", path="@dir@/json.log", log_format={"json_format": typed_json, **extra})}]

        def lines(context):
            import time
            for fields in REQUESTS.values():
                from harness.setup import request
                plain = {key: value for key, value in fields.items() if key != "upstream"}
                context.answers.load(fields.get("upstream", []))
                context.exchange(request(**{"headers": (), **plain}))
            time.sleep(0.3)
            with open(context.proxy.directory + "/json.log") as file:
                return [context.names.text(line) for line in file.read().splitlines()]
        setup.script("lines", lines, ignore=("headers*", "body*", "upstream", "status*", "fate*"))
        made.append(setup)
    text_omit = Setup("text-omit", vhosts=VHOSTS, log="")
    text_omit.hcm["access_log"] = [{"name": "f", "typed_config": typed("access_loggers.file.v3.FileAccessLog", path="@log@", log_format={"omit_empty_values": True, "text_format_source": {
        "inline_string": LOG_PREFIX + "a=%REQ(NONE)% b=%REQ(:PATH)% c=%RESPONSE_FLAGS% d=%UPSTREAM_HOST%\n"}})}]
    made.append(fill(text_omit))

    def compare(op, value):
        return {"comparison": {"op": op, "value": {"default_value": value, "runtime_key": "k"}}}
    filters = {
        "status-eq": {"status_code_filter": compare("EQ", 418)}, "status-ge": {"status_code_filter": compare("GE", 400)}, "status-le": {"status_code_filter": compare("LE", 200)}, "status-ne": {"status_code_filter": compare("NE", 200)},
        "duration": {"duration_filter": compare("GE", 0)}, "duration-never": {"duration_filter": compare("GE", 100000)}, "not-health": {"not_health_check_filter": {}}, "traceable": {"traceable_filter": {}},
        "header": {"header_filter": {"header": {"name": "x-a", "present_match": True}}}, "flags": {"response_flag_filter": {"flags": ["UC", "NR"]}}, "any-flag": {"response_flag_filter": {}},
        "grpc": {"grpc_status_filter": {"statuses": ["NOT_FOUND"]}}, "grpc-exclude": {"grpc_status_filter": {"statuses": ["NOT_FOUND"], "exclude": True}},
        "and": {"and_filter": {"filters": [{"status_code_filter": compare("GE", 400)}, {"header_filter": {"header": {"name": ":method", "string_match": {"exact": "GET"}}}}]}},
        "or": {"or_filter": {"filters": [{"status_code_filter": compare("EQ", 418)}, {"header_filter": {"header": {"name": ":method", "string_match": {"exact": "POST"}}}}]}},
        "runtime-all": {"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 100}}}, "runtime-zero": {"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 0}}},
        "log-type": {"log_type_filter": {"types": ["DownstreamEnd"]}}, "log-type-exclude": {"log_type_filter": {"types": ["DownstreamEnd"], "exclude": True}},
        "metadata": {"metadata_filter": {"matcher": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}}},
        "metadata-missing": {"metadata_filter": {"matcher": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}, "match_if_key_not_found": False}},
        "cel": {"extension_filter": {"name": "cel", "typed_config": typed("access_loggers.filters.cel.v3.ExpressionFilter", expression="response.code >= 400 && request.method == 'GET'")}},
    }
    setup = Setup("filters", vhosts=VHOSTS)
    setup.hcm["access_log"] = [{**file_log(f"{name} %RESPONSE_CODE%"), "filter": filter_} for name, filter_ in filters.items()]
    made.append(fill(setup))
    options = Setup("options", hcm={"access_log_options": {"flush_access_log_on_new_request": True}}, log="%ACCESS_LOG_TYPE% %RESPONSE_CODE% %REQ(:PATH)% %UPSTREAM_HOST%")
    options.get("get", "/x")
    options.get("post", "/x", method="POST", body=b"x")
    made.append(options)
    default = Setup("default-format", log="")
    default.hcm["access_log"] = [{"name": "f", "typed_config": typed("access_loggers.file.v3.FileAccessLog", path="@dir@/default.log")}]

    def plain(context):
        import re
        import time
        context.exchange(b"GET /x HTTP/1.1\r\nHost: h\r\nUser-Agent: me\r\n\r\n")
        time.sleep(0.2)
        with open(context.proxy.directory + "/default.log") as file:
            text = context.names.text(file.read())
        return re.sub(r"^\[[0-9TZ:.-]{24}\]", "[<time>]", re.sub(r'" 200 - 0 1 \d+ \d+ "', '" 200 - 0 1 <ms> <ms> "', text))
    default.script("line", plain)
    made.append(default)
    return made
