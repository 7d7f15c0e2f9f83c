"""TLS on both sides: what handshakes give, client certificates and x-forwarded-client-cert, SNI, ALPN, verification of upstreams."""
import ssl

from harness import tls
from harness.config import LOG, cluster, route, to, typed
from harness.setup import Setup

LOG_TLS = LOG + " tls=[%DOWNSTREAM_TLS_VERSION%] sni=[%REQUESTED_SERVER_NAME%] uri=[%DOWNSTREAM_PEER_URI_SAN%] dns=[%DOWNSTREAM_PEER_DNS_SAN%] subject=[%DOWNSTREAM_PEER_SUBJECT%] issuer=[%DOWNSTREAM_PEER_ISSUER%] " \
    "fp=[%DOWNSTREAM_PEER_FINGERPRINT_256%] serial=[%DOWNSTREAM_PEER_SERIAL%] local=[%DOWNSTREAM_LOCAL_SUBJECT%] lsan=[%DOWNSTREAM_LOCAL_DNS_SAN%] dfail=[%DOWNSTREAM_TRANSPORT_FAILURE_REASON%]"


def socket(client_ca=None, require=False, **common):
    context = {"tls_certificates": [{"certificate_chain": {"filename": tls.path("server.pem")}, "private_key": {"filename": tls.path("server.key")}}], **common}
    if client_ca:
        context["validation_context"] = {"trusted_ca": {"filename": tls.path(client_ca)}}
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context=context, require_client_certificate=require)}}


def upstream_socket(ca="ca.pem", sans=None, **fields):
    validation = {"trusted_ca": {"filename": tls.path(ca)}} if ca else {}
    if sans:
        validation["match_typed_subject_alt_names"] = [{"san_type": "DNS", "matcher": {"exact": san}} for san in sans]
    context = {"validation_context": validation} if validation else {}
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=context, **fields)}}


def setups():
    tls.prepare()
    made = []
    plain = Setup("downstream", chain=socket(alpn_protocols=["h2", "http/1.1"]), log=LOG_TLS, stats=["^listener.*ssl.(handshake|connection_error|no_certificate|fail)"])
    for name, options in {"plain": {"sni": "host.test"}, "no sni": {"sni": None}, "tls12": {"sni": "host.test", "maximum": ssl.TLSVersion.TLSv1_2}, "tls13": {"sni": "x.wild.test", "minimum": ssl.TLSVersion.TLSv1_3},
                          "alpn http1": {"sni": "host.test", "alpn": ["http/1.1"]}, "alpn none known": {"sni": "host.test", "alpn": ["foo"]}, "client cert unasked": {"sni": "host.test", "cert": "client"}}.items():
        plain.get(name, "/", tls=options)
    plain.http2("alpn h2", tls={"sni": "host.test", "alpn": ["h2"]}, scheme="https")
    plain.raw("plaintext", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", wait=1.0)
    made.append(plain)
    for name, require in (("optional-client", False), ("required-client", True)):
        setup = Setup(name, chain=socket("ca.pem", require), log=LOG_TLS, stats=["^listener.*ssl.(handshake|connection_error|no_certificate|fail)"])
        for case, cert in (("none", None), ("client", "client"), ("stranger", "stranger")):
            for version in ("1.2", "1.3"):
                options = {"sni": "host.test", **({"cert": cert} if cert else {}), "maximum": ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3}
                setup.get(f"{case} {version}", "/", tls=options, wait=1.0, ignore=("tls", "fate") if cert == "stranger" or not cert else ())
        made.append(setup)
    details = {"subject": True, "cert": True, "chain": True, "dns": True, "uri": True}
    for mode in ("SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"):
        setup = Setup(f"xfcc-{mode.lower()}", chain=socket("ca.pem"), hcm={"forward_client_cert_details": mode, "set_current_client_cert_details": details})
        for case, cert in (("none", None), ("client", "client")):
            options = {"sni": "host.test", **({"cert": cert} if cert else {})}
            setup.get(f"{case} bare", "/", tls=options)
            setup.get(f"{case} given", "/", [("x-forwarded-client-cert", "By=spiffe://x;Hash=ab")], tls=options)
        made.append(setup)
    partial = Setup("xfcc-uri-only", chain=socket("ca.pem"), hcm={"forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": {"uri": True}})
    partial.get("client", "/", tls={"sni": "host.test", "cert": "client"})
    made.append(partial)
    remote = Setup("identity", chain=socket(), hcm={"use_remote_address": True}, log=LOG_TLS)
    remote.get("proto", "/", [("x-forwarded-proto", "http")], tls={"sni": "host.test"})
    made.append(remote)
    ups = {"good": upstream_socket(), "good-san": upstream_socket(sans=["host.test"]), "wrong-san": upstream_socket(sans=["other.test"]), "wrong-ca": upstream_socket("other-ca.pem"), "unverified": upstream_socket(None), "sni": upstream_socket(sni="host.test")}
    setup = Setup("upstream", clusters=[cluster(name, ["secure"], **fields) for name, fields in ups.items()] + [cluster("plain-server", ["a"], **upstream_socket())], upstreams={"secure": "tls"},
                  routes=[route(f"/{name}", to(name)) for name in [*ups, "plain-server"]], log=LOG + " uv=[%UPSTREAM_TLS_VERSION%] us=[%UPSTREAM_PEER_SUBJECT%]", stats=["^cluster.*(ssl.(handshake|connection_error|fail_verify))"])
    for name in [*ups, "plain-server"]:
        setup.get(name, f"/{name}", wait=3.0)
    made.append(setup)
    return made
