"""Keys and passwords: basic_auth and api_key_auth, and the filters that prepare what others decide by: header_to_metadata and ip_tagging."""
import base64

from harness.config import LOG, cluster, extension, route, to, typed
from harness.setup import Setup

from cases.filters import http, per_route

# user1:test1, user2:test2
USERS = "user1:{SHA}tESsBmE/yNY3lb6a0L6vVQEZNqw=\nuser2:{SHA}EJ9LPFDXsN9ynSmbxvjp75Bmlx8=\n"


def encoded(text):
    return base64.b64encode(text.encode("latin-1")).decode()


def basic():
    def inline(text):
        return {"users": {"inline_string": text}}
    values = {"right": ["Basic " + encoded("user1:test1")], "second user": ["Basic " + encoded("user2:test2")], "unpadded": ["Basic " + encoded("user1:test1").rstrip("=")], "wrong": ["Basic " + encoded("user1:test2")],
              "unknown": ["Basic " + encoded("nobody:test1")], "no colon": ["Basic " + encoded("user1")], "empty password": ["Basic " + encoded("user1:")], "empty name": ["Basic " + encoded(":test1")], "empty": ["Basic "],
              "no base64": ["Basic !!!!"], "url alphabet": ["Basic " + encoded("user1:test1").replace("+", "-") + "_"], "lower scheme": ["basic " + encoded("user1:test1")], "bearer": ["Bearer x"], "two spaces": ["Basic  " + encoded("user1:test1")],
              "trailing": ["Basic " + encoded("user1:test1") + " x"], "none": [], "twice": ["Basic " + encoded("user1:test1")] * 2, "right then wrong": ["Basic " + encoded("user1:test1"), "Basic x"],
              "wrong then right": ["Basic x", "Basic " + encoded("user1:test1")], "long": ["Basic " + "QUFB" * 3000], "colon in password": ["Basic " + encoded("user1:test1:x")], "nul": ["Basic " + encoded("user1\0:test1")],
              "high bytes": ["Basic " + encoded("us\xe9r:x")], "case of name": ["Basic " + encoded("USER1:test1")]}
    made = []
    for name, fields in {"plain": {}, "forward": {"forward_username_header": "x-user"}, "other-header": {"authentication_header": "x-auth"}, "missing": {"allow_missing": True}, "realm": {"realm": "my realm"},
                         "metadata": {"emit_dynamic_metadata": True}}.items():
        setup = Setup(f"basic-{name}", filters=[http("basic_auth", "BasicAuth", **inline(USERS), **fields)], stats=["basic_auth"], log=LOG + " meta=[%DYNAMIC_METADATA(envoy.filters.http.basic_auth)%]", routes=[
            route("/own", to(), **per_route("basic_auth", "BasicAuthPerRoute", **inline("user1:{SHA}EJ9LPFDXsN9ynSmbxvjp75Bmlx8="))),
            route("/realm", to(), **per_route("basic_auth", "BasicAuthPerRoute", **inline("user1:{SHA}EJ9LPFDXsN9ynSmbxvjp75Bmlx8="), realm="route's")),
            route("/off", to(), typed_per_filter_config={"envoy.filters.http.basic_auth": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}}), route("/", to())])
        header = "x-auth" if name == "other-header" else "authorization"
        for case, sent in values.items():
            # Envoy passes several fields of this name on joined.
            setup.get(case, "/", [(header, value) for value in sent], ignore=("upstream",) if len(sent) > 1 else ())
        setup.get("forged user", "/", [(header, values["right"][0]), ("x-user", "root")])
        for path in ("/own", "/realm", "/off"):
            setup.get(f"{path} listener's", path, [(header, values["right"][0])])
            setup.get(f"{path} route's", path, [(header, "Basic " + encoded("user1:test2"))])
        setup.get("long path", "/" + "p" * 400)
        setup.get("query", "/p?q=1")
        setup.get("quote in path", '/a"b')
        setup.get("original path", "/x", [("x-envoy-original-path", "/original")])
        setup.get("grpc", "/", [("content-type", "application/grpc")], method="POST")
        setup.http2("h2", "/")
        made.append(setup)
    return made


def keys():
    credentials = [{"key": "secret1", "client": "one"}, {"key": "secret2", "client": "two"}, {"key": "a b", "client": "blank"}]
    sources = [{"header": "x-key"}, {"query": "key"}, {"cookie": "key"}]
    requests = {"header": ("/", [("x-key", "secret1")]), "bearer": ("/", [("x-key", "Bearer secret2")]), "lower bearer": ("/", [("x-key", "bearer secret2")]), "wrong": ("/", [("x-key", "nope")]), "empty": ("/", [("x-key", "")]),
                "none": ("/", []), "query": ("/?key=secret1", []), "query among": ("/?a=1&key=secret2&b=2", []), "query encoded": ("/?key=secret%31", []), "query plus": ("/?key=a+b", []), "query blank": ("/?key=a%20b", []),
                "query twice": ("/?key=secret1&key=nope", []), "query twice swapped": ("/?key=nope&key=secret1", []), "query case": ("/?KEY=secret1", []), "query name encoded": ("/?%6bey=secret1", []), "query empty": ("/?key=", []),
                "cookie": ("/", [("cookie", "a=b; key=secret1; c=d")]), "cookie quoted": ("/", [("cookie", 'key="secret1"')]), "cookie alone": ("/", [("cookie", "key=secret2")]), "twice": ("/", [("x-key", "secret1"), ("x-key", "nope")]),
                "twice swapped": ("/", [("x-key", "nope"), ("x-key", "secret1")]), "header and query": ("/?key=secret2", [("x-key", "secret1")]), "wrong header right query": ("/?key=secret2", [("x-key", "nope")]), "long": ("/", [("x-key", "k" * 8000)]),
                "trailing blank": ("/", [("x-key", "secret1 ")]), "case": ("/", [("x-key", "SECRET1")]), "forged client": ("/", [("x-key", "secret1"), ("x-client", "root")]), "empty header right query": ("/?key=secret2", [("x-key", "")]),
                "fragment": ("/#key=secret1", [])}
    made = []
    for name, fields in {"plain": {}, "forward": {"forwarding": {"header": "x-client"}}, "hide": {"forwarding": {"header": "x-client", "hide_credentials": True}}}.items():
        setup = Setup(f"keys-{name}", filters=[http("api_key_auth", "ApiKeyAuth", credentials=credentials, key_sources=sources, **fields)], stats=["api_key_auth"], routes=[
            route("/two", to(), **per_route("api_key_auth", "ApiKeyAuthPerRoute", allowed_clients=["two"])), route("/own", to(), **per_route("api_key_auth", "ApiKeyAuthPerRoute", credentials=[{"key": "own", "client": "three"}])),
            route("/source", to(), **per_route("api_key_auth", "ApiKeyAuthPerRoute", key_sources=[{"header": "x-other"}])), route("/forward", to(), **per_route("api_key_auth", "ApiKeyAuthPerRoute", forwarding={"header": "x-route-client"})), route("/", to())])
        for case, (path, headers) in requests.items():
            setup.get(case, path, headers)
        for path in ("/two", "/own", "/source", "/forward"):
            for key in ("secret1", "secret2", "own"):
                # What a route does not say of forwarding the listener says; in Envoy nobody does.
                setup.get(f"{path} {key}", path, [("x-key", key)], ignore=("upstream",) if fields and path != "/forward" else ())
        setup.get("/source other", "/source", [("x-other", "secret1")], ignore=("upstream",) if fields else ())
        setup.get("grpc", "/", [("content-type", "application/grpc")], method="POST")
        setup.http2("h2", "/?key=secret1")
        made.append(setup)
    for name, fields in {"no-keys": {"key_sources": sources}, "no-sources": {"credentials": credentials}}.items():
        setup = Setup(f"keys-{name}", filters=[http("api_key_auth", "ApiKeyAuth", **fields)], stats=["api_key_auth"])
        setup.get("key", "/", [("x-key", "secret1")])
        made.append(setup)
    return made


def metadata():
    def rule(where, key, **fields):
        return {**where, "on_header_present": {"metadata_namespace": "ns", "key": key, **fields}}
    rules = [rule({"header": "x-text"}, "text"), rule({"header": "x-number"}, "number", type="NUMBER"), rule({"header": "x-base"}, "base", encode="BASE64"), rule({"header": "x-proto"}, "proto", type="PROTOBUF_VALUE", encode="BASE64"),
             rule({"header": "x-gone", "remove": True}, "gone"), rule({"header": "x-const"}, "const", value="constant"), {"header": "x-miss", "on_header_missing": {"metadata_namespace": "ns", "key": "miss", "value": "missing"}},
             {"header": "x-both", "on_header_present": {"metadata_namespace": "ns", "key": "both"}, "on_header_missing": {"metadata_namespace": "ns", "key": "both", "value": "none"}}, rule({"cookie": "c"}, "cookie"),
             rule({"header": ":path"}, "path", regex_value_rewrite={"pattern": {"regex": "^/([a-z]+).*$"}, "substitution": "<\\1>"}), {"header": "x-plain", "on_header_present": {"key": "plain"}},
             {"cookie": "d", "on_header_missing": {"metadata_namespace": "ns", "key": "no_cookie", "value": "1"}}]
    log = LOG + " ns=[%DYNAMIC_METADATA(ns)%] own=[%DYNAMIC_METADATA(envoy.filters.http.header_to_metadata)%]"
    response = [{"header": "x-up", "on_header_present": {"metadata_namespace": "ns", "key": "up"}, "remove": True}, {"header": ":status", "on_header_present": {"metadata_namespace": "ns", "key": "status", "type": "NUMBER"}}]
    made = []
    for name, fields in {"plain": {}, "stats": {"stat_prefix": "mine"}}.items():
        setup = Setup(f"metadata-{name}", filters=[http("header_to_metadata", "Config", request_rules=rules, response_rules=response, **fields)], log=log, stats=["mine", "header_to_metadata"], routes=[
            route("/route", to(), **per_route("header_to_metadata", "Config", request_rules=[rule({"header": "x-text"}, "of_route")])), route("/local", direct_response={"status": 404}), route("/", to())])
        for case, headers in {"none": [], "text": [("x-text", "v")], "text twice": [("x-text", "v"), ("x-text", "w")], "empty": [("x-text", ""), ("x-both", "")], "number": [("x-number", "4.25")], "number blank": [("x-number", " 7 ")],
                              "number bad": [("x-number", "seven")], "number hex": [("x-number", "0x10")], "number inf": [("x-number", "1e400")], "number plus": [("x-number", "+5")], "base": [("x-base", "aGVsbG8=")], "base bare": [("x-base", "aGVsbG8")],
                              "base bad": [("x-base", "!!")], "base bytes": [("x-base", "/w==")], "proto": [("x-proto", "GgFh")], "proto bad": [("x-proto", "aGVsbG8=")], "gone": [("x-gone", "1"), ("x-gone", "2")], "const": [("x-const", "anything")],
                              "both": [("x-both", "b"), ("x-miss", "m")], "cookie": [("cookie", "a=b; c=d")], "cookie quoted": [("cookie", 'c="d"')], "cookie empty": [("cookie", "c=")], "long": [("x-text", "l" * 8192)],
                              "almost long": [("x-text", "l" * 8191)], "plain": [("x-plain", "p")]}.items():
            # Infinity has no JSON, and bytes that are no text are replaced where Envoy prints them.
            setup.get(case, "/abc", headers, ignore=("log",) if case in ("number inf", "base bytes") else ())
        setup.get("route", "/route", [("x-text", "v")])
        setup.get("response", "/", upstream=[b"HTTP/1.1 201 Created\r\nx-up: u\r\ncontent-length: 0\r\n\r\n"])
        setup.get("local reply", "/local", [("x-text", "v")])
        setup.get("path of digits", "/123")
        made.append(setup)
    return made


def tagging():
    tags = [{"ip_tag_name": "ten", "ip_list": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}, {"ip_tag_name": "loopback", "ip_list": [{"address_prefix": "127.0.0.0", "prefix_len": 8}, {"address_prefix": "::1", "prefix_len": 128}]}]
    made = []
    for name, fields in {"both": {"request_type": "BOTH"}, "internal": {"request_type": "INTERNAL"}, "external": {"request_type": "EXTERNAL"}, "header": {"ip_tag_header": {"header": "x-tags"}},
                         "header-append": {"ip_tag_header": {"header": "x-tags", "action": "APPEND_IF_EXISTS_OR_ADD"}}}.items():
        for mode, hcm in {"plain": {}, "edge": {"use_remote_address": True, "xff_num_trusted_hops": 1}}.items():
            setup = Setup(f"tags-{name}-{mode}", filters=[http("ip_tagging", "IPTagging", ip_tags=tags, **fields)], hcm=hcm, stats=["ip_tagging"], routes=[
                route({"prefix": "/", "headers": [{"name": "x-envoy-ip-tags", "string_match": {"contains": "ten"}}]}, to("b"), name="tagged"), route("/", to())], clusters=[cluster("a"), cluster("b")])
            for xff in (None, "10.1.2.3", "11.1.2.3", "garbage"):
                for sent in (None, "forged"):
                    headers = ([("x-forwarded-for", xff)] if xff else []) + ([("x-envoy-ip-tags", sent), ("x-tags", sent)] if sent else [])
                    setup.get(f"{xff} {sent}", "/", headers)
            made.append(setup)
    return made


def setups():
    return [*basic(), *keys(), *metadata(), *tagging()]
