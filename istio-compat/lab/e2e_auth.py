"""Checks of authentication, authorisation and rate limits through a real istiod, and with the real rate limit service. Part of e2e.py."""

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time

from mesh_lab import (STATE, admin, apply, check, curl, delete, envoy_filter, eventually, in_pod, lab, settled, sh, split, virtual_service)

GUARD = '''
import http.server
class Guard(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        allowed = self.headers.get("x-guard") == "open"
        self.send_response(200 if allowed else 403)
        self.send_header("x-guarded" if allowed else "x-why", "yes" if allowed else "no word")
        self.send_header("content-length", "0")
        self.end_headers()
http.server.ThreadingHTTPServer(("", 8000), Guard).serve_forever()
'''


BEFORE_ROUTER = ("{context: GATEWAY, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, "
                 "subFilter: {name: envoy.filters.http.router}}}}}")


@contextlib.contextmanager
def running(pod, *command, **env):
    """A process in a pod while the block runs."""
    process = subprocess.Popen(["ip", "netns", "exec", f"lab-{pod}", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | env)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def url64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """Signs tokens with a key of its own."""

    def __init__(self, directory):
        self.key = f"{directory}/issuer.key"
        sh("openssl", "genrsa", "-out", self.key, "2048")
        modulus = bytes.fromhex(sh("openssl", "rsa", "-in", self.key, "-noout", "-modulus").strip().partition("=")[2])
        self.jwks = json.dumps({"keys": [{"kty": "RSA", "kid": "k1", "alg": "RS256", "use": "sig", "n": url64(modulus), "e": "AQAB"}]})

    def token(self, **claims):
        claims = {"iss": "issuer.example.com", "sub": "ann", "exp": int(time.time()) + 3600} | claims
        text = url64(json.dumps({"alg": "RS256", "kid": "k1"}).encode()) + "." + url64(json.dumps(claims).encode())
        signed = subprocess.run(["openssl", "dgst", "-sha256", "-sign", self.key], input=text.encode(), capture_output=True, check=True).stdout
        return f"Authorization: Bearer {text}.{url64(signed)}"


def policy(name, action, rules, more=""):
    apply(f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: istio-system}}
spec:
  selector: {{matchLabels: {{istio: ingressgateway}}}}
  action: {action}
  {more}
  rules: {rules}
""")


def status(path, *more):
    return curl(path, "shop.example.com", *more).status


def tokens_and_claims():
    """RequestAuthentication, AuthorizationPolicy by claims, and routing by claims."""
    with tempfile.TemporaryDirectory() as directory:
        issuer = Issuer(directory)
        apply(f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: istio-system}}
spec:
  selector: {{matchLabels: {{istio: ingressgateway}}}}
  jwtRules:
  - issuer: issuer.example.com
    audiences: [shop]
    jwks: '{issuer.jwks}'
    forwardOriginalToken: true
    outputClaimToHeaders: [{{header: x-subject, claim: sub}}]
""")
        policy("staff", "DENY", '[{from: [{source: {notRequestPrincipals: ["issuer.example.com/*"]}}], to: [{operation: {paths: ["/staff*"]}}]},'
                                ' {to: [{operation: {paths: ["/staff*"]}}], when: [{key: "request.auth.claims[groups]", notValues: ["staff"]}]}]')
        virtual_service("""
  - name: claims
    match: [{uri: {prefix: /staff}, headers: {"@request.auth.claims.groups": {exact: staff}}}]
    rewrite: {uri: /debug}
    route: [{destination: {host: catalog.shop.svc.cluster.local, subset: v2}}]
  - route: [{destination: {host: catalog.shop.svc.cluster.local, subset: v1}}]
""")
        settled("claims")
        good = issuer.token(aud="shop", groups=["staff", "all"])
        eventually("a token is asked for", lambda: status("/staff") == 403)
        eventually("tokens are checked", lambda: status("/", "-H", "Authorization: Bearer a.b.c") == 401)
        answer = curl("/staff", "shop.example.com", "-H", good, "-H", "x-subject: forged")
        check(answer.status == 200 and "X-Subject: ann" in answer.body and "forged" not in answer.body, f"staff: {answer.status} {answer.body[:400]}")
        routed = curl("/staff/y", "shop.example.com", "-H", good).headers.get("x-pod")
        check(routed == "catalog-v2-1" and curl("/").headers.get("x-pod") == "catalog-v1-1", f"routed by the claim: {routed}")
        check(status("/staff", "-H", issuer.token(aud="shop", groups=["all"])) == 403, "not of the group")
        for what, token, text in [("expired", issuer.token(aud="shop", exp=int(time.time()) - 3600), "Jwt is expired"),
                                  ("of another audience", issuer.token(aud="other"), "Audiences in Jwt are not allowed"),
                                  ("forged", good[:-20] + "A" * 20, "Jwt verification fails")]:
            refused = curl("/", "shop.example.com", "-H", token)
            check(refused.body == text and refused.status in (401, 403), f"{what}: {refused.status} {refused.body!r}")
        check(status("/") == 200, "no token is no wrong token")
    delete("authorizationpolicy", "istio-system", "staff")
    delete("requestauthentication", "istio-system", "tokens")
    eventually("tokens are not checked any more", lambda: status("/", "-H", "Authorization: Bearer a.b.c") == 200)


def authorization_policies():
    """ALLOW, DENY, AUDIT and CUSTOM; the client's address behind trusted proxies; what changes takes effect without a lost request."""
    virtual_service(split(50, 50))
    settled("split-50-50")
    policy("deny", "DENY", '[{to: [{operation: {paths: ["/secret*"], methods: [GET]}}]}]')
    eventually("DENY", lambda: curl("/secret").status == 403)
    check(curl("/secret").body == "RBAC: access denied", "the text of a refusal")
    for tricky in ("/./secret", "/%73ecret", "/x/../secret"):
        check(status(tricky, "--path-as-is") == 403, f"{tricky} is the same path")
    check(status("/secret", "-X", "POST") == 200 and status("/") == 200, "others pass")
    policy("allow", "ALLOW", '[{to: [{operation: {paths: ["/open*", "/secret*"]}}]}, {from: [{source: {remoteIpBlocks: ["192.0.2.0/24"]}}]}]')
    eventually("ALLOW", lambda: status("/") == 403)
    check(status("/open") == 200 and status("/secret") == 403, "DENY comes before ALLOW")
    check(status("/", "-H", "X-Forwarded-For: 192.0.2.7") == 403, "x-forwarded-for of a stranger is not believed")
    envoy_filter("hops", """
  - applyTo: NETWORK_FILTER
    match: {context: GATEWAY, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
    patch:
      operation: MERGE
      value:
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          xff_num_trusted_hops: 1
""")
    eventually("a trusted hop", lambda: status("/", "-H", "X-Forwarded-For: 192.0.2.7") == 200)
    check(status("/", "-H", "X-Forwarded-For: 192.0.2.7, 203.0.113.9") == 403, "one hop is trusted, not two")
    policy("audit", "AUDIT", '[{to: [{operation: {paths: ["/open*"]}}]}]')
    eventually("AUDIT", lambda: "rbac" in admin("/config_dump?resource=dynamic_listeners") and '"LOG"' in admin("/config_dump?resource=dynamic_listeners"))
    check(status("/open") == 200, "AUDIT refuses nothing")
    for name in ("deny", "allow", "audit"):
        delete("authorizationpolicy", "istio-system", name)
    delete("envoyfilter", "istio-system", "hops")
    eventually("no policy any more", lambda: status("/secret") == 200)

    apply("""
apiVersion: v1
kind: Service
metadata: {name: guard, namespace: shop}
spec: {selector: {app: catalog, version: v2}, ports: [{name: http, port: 8000, targetPort: 8000}]}
""")
    virtual_service("""
  - name: guarded
    match: [{uri: {prefix: /custom}}]
    rewrite: {uri: /debug}
    route: [{destination: {host: catalog.shop.svc.cluster.local}}]
  - route: [{destination: {host: catalog.shop.svc.cluster.local}}]
""")
    settled("guarded")
    with running("catalog-v2-1", sys.executable, "-c", GUARD):
        policy("custom", "CUSTOM", '[{to: [{operation: {paths: ["/custom*"]}}]}]', "provider: {name: guard}")
        eventually("CUSTOM", lambda: status("/custom") == 403)
        refused = curl("/custom")
        check((refused.status, refused.headers.get("x-why")) == (403, "no word"), f"refused by the guard: {refused.status} {refused.headers}")
        let_in = curl("/custom", "shop.example.com", "-H", "x-guard: open")
        check(let_in.status == 200 and "X-Guarded: yes" in let_in.body, f"let in by the guard: {let_in.status} {let_in.body[:300]}")
        check(status("/") == 200, "other paths are not asked about")
    eventually("the guard is gone: refused", lambda: status("/custom", "-H", "x-guard: open") == 403)
    check(status("/") == 200, "other paths do not need the guard")
    delete("authorizationpolicy", "istio-system", "custom")
    eventually("no guard any more", lambda: status("/custom") == 200)
    delete("service", "shop", "guard")


def rate_limits():
    """A local limit, and one limit over two gateways by the real rate limit service and Redis, both by EnvoyFilter."""
    virtual_service(split(50, 50))
    settled("split-50-50")
    envoy_filter("limit", f"""
  - applyTo: HTTP_FILTER
    match: {BEFORE_ROUTER}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          "@type": type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          value:
            stat_prefix: local
            token_bucket: {{max_tokens: 6, tokens_per_fill: 6, fill_interval: 3600s}}
            filter_enabled: {{default_value: {{numerator: 100}}}}
            filter_enforced: {{default_value: {{numerator: 100}}}}
            response_headers_to_add: [{{header: {{key: x-limited, value: locally}}}}]
""")
    eventually("the local limit", lambda: "LocalRateLimit" in admin("/config_dump?resource=dynamic_listeners"))
    answers = [curl("/") for _ in range(10)]
    check([a.status for a in answers] == [200] * 6 + [429] * 4, f"six of ten: {[a.status for a in answers]}")
    check(answers[-1].headers.get("x-limited") == "locally", "the header of a refusal")
    delete("envoyfilter", "istio-system", "limit")
    eventually("no local limit", lambda: curl("/").status == 200)

    apply("""
apiVersion: v1
kind: Service
metadata: {name: limits, namespace: shop}
spec: {selector: {app: catalog, version: v2}, ports: [{name: grpc, port: 8081, targetPort: 8091}]}
""")
    lab("pod", "istio-system", "ingress-2", "10.44.0.15", "istio=ingressgateway,app=istio-ingressgateway", "istio-ingressgateway")
    lab("hosts")
    lab("gateway", "ingress-2", BINARY)
    with tempfile.TemporaryDirectory() as directory:
        os.makedirs(f"{directory}/config")
        with open(f"{directory}/config/limits.yaml", "w", encoding="utf-8") as file:
            file.write("domain: shop\ndescriptors:\n- {key: path, value: /limited, rate_limit: {unit: hour, requests_per_unit: 8}}\n")
        settings = {"USE_STATSD": "false", "LOG_LEVEL": "error", "REDIS_SOCKET_TYPE": "tcp", "REDIS_URL": "127.0.0.1:6390", "RUNTIME_ROOT": directory,
                    "RUNTIME_SUBDIRECTORY": "", "RUNTIME_WATCH_ROOT": "false", "PORT": "8090", "GRPC_PORT": "8091", "DEBUG_PORT": "8092", "LIMIT_RESPONSE_HEADERS_ENABLED": "true"}
        with contextlib.ExitStack() as stack:
            stack.enter_context(running("catalog-v2-1", "redis-server", "--port", "6390", "--save", "", "--appendonly", "no"))
            eventually("Redis", lambda: in_pod("catalog-v2-1", "redis-cli", "-p", "6390", "ping").strip() == "PONG")
            stack.enter_context(running("catalog-v2-1", f"{STATE}/bin/ratelimit", **settings))
            eventually("the rate limit service", lambda: in_pod("catalog-v2-1", "curl", "-s", "127.0.0.1:8090/healthcheck") == "OK")
            envoy_filter("limits", f"""
  - applyTo: HTTP_FILTER
    match: {BEFORE_ROUTER}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.ratelimit
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
          domain: shop
          timeout: 2s
          failure_mode_deny: true
          enable_x_ratelimit_headers: DRAFT_VERSION_03
          rate_limit_service:
            transport_api_version: V3
            grpc_service: {{envoy_grpc: {{cluster_name: "outbound|8081||limits.shop.svc.cluster.local", authority: limits.shop.svc.cluster.local}}}}
  - applyTo: VIRTUAL_HOST
    match: {{context: GATEWAY, routeConfiguration: {{vhost: {{name: "shop.example.com:80"}}}}}}
    patch:
      operation: MERGE
      value: {{rate_limits: [{{actions: [{{request_headers: {{header_name: ":path", descriptor_key: path}}}}]}}]}}
""")
            for pod in ("ingress-1", "ingress-2"):
                eventually(f"the limit at {pod}", lambda: "v3.RateLimit" in admin("/config_dump?resource=dynamic_listeners", pod)
                           and '"path"' in admin("/config_dump?resource=dynamic_route_configs", pod))
            ask = lambda ip, path: in_pod("client-1", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %header{x-ratelimit-limit}", "-H", "Host: shop.example.com",
                                          f"http://{ip}:8080{path}").strip()
            eventually("the service answers", lambda: ask("10.44.0.10", "/") == "200" and ask("10.44.0.15", "/") == "200")
            answers = [ask("10.44.0.15" if i % 2 else "10.44.0.10", "/limited") for i in range(14)]
            codes = [a.split()[0] for a in answers]
            check(codes == ["200"] * 8 + ["429"] * 6, f"eight over both gateways: {answers}")
            check("8, 8;w=3600" in answers[0], f"x-ratelimit-limit: {answers[0]!r}")
        eventually("without the service: refused, as configured", lambda: ask("10.44.0.10", "/limited").startswith("500"))
    delete("envoyfilter", "istio-system", "limits")
    delete("service", "shop", "limits")
    lab("unpod", "ingress-2")
    eventually("no limit any more", lambda: curl("/limited").status == 200)


def own_filters():
    """Nuncio's own filters come through istiod by EnvoyFilter: consumers by key, and a queue; keys are in no dump."""
    virtual_service(split(50, 50))
    settled("split-50-50")
    typed = '"@type": type.googleapis.com/udpa.type.v1.TypedStruct'
    envoy_filter("consumers", f"""
  - applyTo: HTTP_FILTER
    match: {BEFORE_ROUTER}
    patch:
      operation: INSERT_BEFORE
      value:
        name: consumer
        typed_config:
          {typed}
          type_url: type.googleapis.com/nuncio.filters.http.consumer.v1.ConsumerAuth
          value:
            methods: [{{api_key: {{places: [{{header: x-api-key}}]}}}}]
            consumers: [{{name: acme, credentials: [{{api_key: {{data_source: {{inline_string: acme-key-2026}}}}}}]}}]
  - applyTo: HTTP_FILTER
    match: {BEFORE_ROUTER}
    patch:
      operation: INSERT_BEFORE
      value:
        name: queue
        typed_config:
          {typed}
          type_url: type.googleapis.com/nuncio.filters.http.concurrency_queue.v1.ConcurrencyQueue
          value: {{stat_prefix: mesh, max_concurrency: 1, scope: CLUSTER, consumer: {{metadata: {{}}}}}}
""")
    eventually("a key is asked for", lambda: status("/") == 401)
    check(status("/", "-H", "x-api-key: acme-key-2026") == 200 and status("/", "-H", "x-api-key: other") == 401, "the key")
    check("mesh.concurrency_queue.admitted: 0" not in admin("/stats?filter=concurrency_queue.admitted"), "through the queue")
    check("acme-key-2026" not in admin("/config_dump"), "no key in config_dump")
    delete("envoyfilter", "istio-system", "consumers")
    eventually("no key is asked for any more", lambda: status("/") == 200)


BINARY = sys.argv[1] if len(sys.argv) > 1 else ""
CHECKS = [tokens_and_claims, authorization_policies, rate_limits, own_filters]
