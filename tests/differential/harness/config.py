"""Builds static configurations as plain dictionaries. Values such as `@port:a@` are filled in per proxy when it starts (see `proxy.py`)."""

TYPE = "type.googleapis.com/"
V3 = TYPE + "envoy.extensions."

# What every access-log line of every setup says; `port` ties a line to the connection that the harness made.
LOG_FIELDS = {
    "code": "RESPONSE_CODE", "details": "RESPONSE_CODE_DETAILS", "flags": "RESPONSE_FLAGS", "long": "RESPONSE_FLAGS_LONG",
    "term": "CONNECTION_TERMINATION_DETAILS", "upfail": "UPSTREAM_TRANSPORT_FAILURE_REASON", "route": "ROUTE_NAME",
    "cluster": "UPSTREAM_CLUSTER", "vc": "VIRTUAL_CLUSTER_NAME", "rx": "BYTES_RECEIVED", "tx": "BYTES_SENT", "proto": "PROTOCOL",
    "uproto": "UPSTREAM_PROTOCOL", "attempts": "UPSTREAM_REQUEST_ATTEMPT_COUNT", "method": "REQ(:METHOD)",
    "path": "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)", "authority": "REQ(:AUTHORITY)", "uhost": "UPSTREAM_HOST",
}
LOG = " ".join(f"{name}=[%{operator}%]" for name, operator in LOG_FIELDS.items())
LOG_PREFIX = "@@%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%@@ "


def typed(kind, /, **fields):
    """A typed_config: `kind` is the message's full name, without `envoy.extensions.` if it starts so."""
    return {"@type": (V3 if not kind.startswith("envoy.") else TYPE) + kind, **fields}


def extension(name, kind, /, **fields):
    """An extension in the shape of name and typed_config."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def router(**fields):
    return extension("envoy.filters.http.router", "filters.http.router.v3.Router", **fields)


def file_log(text, **fields):
    """A file access log with a text format; the line starts with the client's address."""
    return {"name": "envoy.access_loggers.file", **fields, "typed_config": typed(
        "access_loggers.file.v3.FileAccessLog", path="@log@",
        log_format={"text_format_source": {"inline_string": LOG_PREFIX + text + "\n"}})}


def endpoint(name, **fields):
    """A load-balancing endpoint: the upstream of that name in the harness."""
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": f"@port:{name}@"}}}, **fields}


def cluster(name, hosts=None, localities=None, **fields):
    """A static cluster; `hosts` are names of upstreams (its own name if not given), `localities` complete locality entries."""
    assignment = localities or [{"lb_endpoints": [host if isinstance(host, dict) else endpoint(host) for host in hosts or [name]]}]
    return {"name": name, "connect_timeout": "2s", "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": assignment}, **fields}


def http2_options(**fields):
    """typed_extension_protocol_options that make a cluster speak HTTP/2."""
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
        "upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": fields})}


def to(name="a", **fields):
    """A route action towards a cluster."""
    return {"cluster": name, **fields}


def route(match, action=None, **fields):
    """A route: `match` a prefix or a RouteMatch; `action` a RouteAction (cluster "a" if not given), unless `fields` has another."""
    entry = {"match": {"prefix": match} if isinstance(match, str) else match, **fields}
    if not ({"redirect", "direct_response", "non_forwarding_action", "filter_action"} & set(fields)):
        entry["route"] = action or to()
    return entry


def say(text, status=200):
    """A direct response."""
    return {"status": status, "body": {"inline_string": text}}


def manager(setup):
    """The HttpConnectionManager of a setup."""
    config = {
        "stat_prefix": "test",
        # Short, so that the fate of a connection is known soon; the default is one second.
        "delayed_close_timeout": "0.05s",
        "route_config": setup.route_config or {"name": "table", "virtual_hosts": setup.vhosts or [
            {"name": "all", "domains": ["*"], "routes": setup.routes or [route("/")]}]},
        "http_filters": [*setup.filters, router(**setup.router)],
        "access_log": [file_log(setup.log)] if setup.log else [],
        **setup.hcm,
    }
    return extension("envoy.filters.network.http_connection_manager",
                     "filters.network.http_connection_manager.v3.HttpConnectionManager", **config)


def bootstrap(setup):
    """The whole bootstrap of a setup."""
    chain = {"filters": [*setup.network_filters, manager(setup)] if setup.manager else setup.network_filters, **setup.chain}
    listener = {"name": "main", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}, "filter_chains": [chain],
                **setup.listener}
    config = {
        "node": {"id": "node", "cluster": "test", "locality": {"region": "r", "zone": "z", "sub_zone": "s"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": [listener], "clusters": setup.clusters},
    }
    config.update(setup.bootstrap)
    return config
