"""jwt_authn: where tokens come from, what is verified, what is refused with which words, and what is passed on."""
import base64
import hashlib
import hmac
import json
import time

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from harness.config import cluster, extension, route, say, to, typed
from harness.setup import Setup, reply

SECRET = b"a shared secret of thirty-two by"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = {name: ec.generate_private_key(curve()) for name, curve in (("P-256", ec.SECP256R1), ("P-384", ec.SECP384R1), ("P-521", ec.SECP521R1))}
ED = ed25519.Ed25519PrivateKey.generate()
HASHES = {"256": (hashes.SHA256, hashlib.sha256), "384": (hashes.SHA384, hashlib.sha384), "512": (hashes.SHA512, hashlib.sha512)}
FUTURE = int(time.time()) + 3600
LOG = "code=[%RESPONSE_CODE%] details=[%RESPONSE_CODE_DETAILS%] flags=[%RESPONSE_FLAGS%] route=[%ROUTE_NAME%] meta=[%DYNAMIC_METADATA(envoy.filters.http.jwt_authn)%]"


def b64(data):
    return base64.urlsafe_b64encode(data if isinstance(data, bytes) else data.encode()).rstrip(b"=").decode()


def number(value, size=None):
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def sign(alg, signed, key=None):
    digest, plain = HASHES.get(alg[2:], (None, None))
    if alg.startswith("HS"):
        return hmac.new(key or SECRET, signed, plain).digest()
    if alg.startswith("RS"):
        return RSA.sign(signed, padding.PKCS1v15(), digest())
    if alg.startswith("PS"):
        return RSA.sign(signed, padding.PSS(mgf=padding.MGF1(digest()), salt_length=digest.digest_size), digest())
    if alg.startswith("ES"):
        private = EC[{"256": "P-256", "384": "P-384", "512": "P-521"}[alg[2:]]]
        size = (private.curve.key_size + 7) // 8
        r, s = decode_dss_signature(private.sign(signed, ec.ECDSA(digest())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return ED.sign(signed) if alg == "EdDSA" else b"sig"


def token(alg="HS256", kid="oct", key=None, header=None, raw=None, signature=None, **claims):
    head = {"alg": alg, **({"kid": kid} if kid else {}), **(header or {})}
    body = {"iss": "https://a.test", "sub": "alice", "aud": "shop", "exp": FUTURE, **claims}
    body = {name: value for name, value in body.items() if value is not None}
    signed = f"{b64(json.dumps(head))}.{b64(raw if raw is not None else json.dumps(body))}"
    return f"{signed}.{b64(sign(alg, signed.encode(), key) if signature is None else signature)}"


def public():
    n = RSA.public_key().public_numbers()
    keys = [{"kty": "RSA", "kid": "rsa", "n": number(n.n), "e": number(n.e)}, {"kty": "oct", "kid": "oct", "k": b64(SECRET)},
            {"kty": "oct", "kid": "only384", "alg": "HS384", "k": b64(SECRET)}, {"kty": "nonsense"}, {"kty": "RSA", "n": "!", "e": "AQAB"}]
    for name, private in EC.items():
        p, size = private.public_key().public_numbers(), (private.curve.key_size + 7) // 8
        keys.append({"kty": "EC", "crv": name, "kid": name, "x": number(p.x, size), "y": number(p.y, size)})
    # Last: Envoy tries an Ed25519 key for tokens of any algorithm, and gives up if the signature has not its length.
    keys.append({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(ED.public_key().public_bytes_raw())})
    return {"keys": keys}


JWKS = {"inline_string": json.dumps(public())}


def provider(issuer="https://a.test", **fields):
    return {"issuer": issuer, "audiences": ["shop"], "local_jwks": JWKS, "forward": True, **fields}


def jwt(providers, requires=None, rules=None, **fields):
    rules = rules or [{"match": {"prefix": "/"}, "requires": requires or {"provider_name": "a"}}]
    return extension("envoy.filters.http.jwt_authn", "filters.http.jwt_authn.v3.JwtAuthentication", providers=providers, rules=rules, **fields)


def bearer(*tokens):
    return [("authorization", f"Bearer {t}") for t in tokens]


def setup(name, *filters, **fields):
    return Setup(name, filters=list(filters), stats=["jwt_authn"], log=LOG, **fields)


def algorithms():
    s = setup("jwt algorithms", jwt({"a": provider(payload_in_metadata="p", header_in_metadata="h", failed_status_in_metadata="f")}))
    for alg, kid in (("RS256", "rsa"), ("RS384", "rsa"), ("RS512", "rsa"), ("PS256", "rsa"), ("PS384", "rsa"), ("PS512", "rsa"), ("ES256", "P-256"), ("ES384", "P-384"),
                     ("ES512", "P-521"), ("HS256", "oct"), ("HS384", "oct"), ("HS512", "oct"), ("EdDSA", "ed")):
        s.get(f"{alg}", "/", bearer(token(alg, kid)))
        s.get(f"{alg} no kid", "/", bearer(token(alg, None)))
        s.get(f"{alg} other kid", "/", bearer(token(alg, "unknown")))
        s.get(f"{alg} bad signature", "/", bearer(token(alg, kid, signature=b"x" * 64)))
    pem = RSA.public_key().public_numbers().n.to_bytes(256, "big")
    s.get("confusion", "/", bearer(token("HS256", "rsa", pem)))
    s.get("none", "/", bearer(token("none", None, signature=b"x")))
    s.get("none without signature", "/", bearer(token("none", None, signature=b"")))
    s.get("lower case", "/", bearer(token("hs256")))
    s.get("key of one algorithm", "/", bearer(token("HS384", "only384")))
    s.get("key of another algorithm", "/", bearer(token("HS256", "only384")))
    s.get("ed25519 short", "/", bearer(token("EdDSA", "ed", signature=b"x" * 63)))
    s.get("curve of another key", "/", bearer(token("ES256", "P-384")))
    return s


def hostile():
    s = setup("jwt hostile", jwt({"a": provider(failed_status_in_metadata="f", payload_in_metadata="p")}))
    good = token()
    head, body, signature = good.split(".")
    s.get("missing", "/")
    s.get("good", "/", bearer(good))
    for name, bad in (("one section", head), ("two sections", f"{head}.{body}"), ("four sections", f"{good}.x"), ("empty", ""), ("dots", ".."), ("bad header", f"!!.{body}.{signature}"),
                      ("header no json", f"{b64('x')}.{body}.{signature}"), ("header list", f"{b64('[]')}.{body}.{signature}"), ("no alg", f"{b64('{}')}.{body}.{signature}"),
                      ("alg number", token(header={"alg": 1})), ("kid number", token(header={"kid": 1})), ("bad payload", f"{head}.!!.{signature}"), ("payload no json", token(raw="x")),
                      ("payload list", token(raw="[]")), ("payload twice", token(raw='{"iss":"https://a.test","aud":"shop","iss":"https://a.test"}')), ("payload latin-1", token(raw=b'{"iss":"\xff"}')),
                      ("bad signature", f"{head}.{body}.!!"), ("padded", f"{head}==.{body}.{signature}"), ("deep", token(raw='{"a":' + "[" * 90 + "]" * 90 + ',"iss":"https://a.test","aud":"shop"}')),
                      ("too deep", token(raw='{"a":' + "[" * 200 + "]" * 200 + ',"iss":"https://a.test","aud":"shop"}')), ("big", token(big="x" * 8000)), ("comma after", good + ",x")):
        s.get(name, "/", bearer(bad))
    for claim, values in {"iss": (1, None, "https://b.test", ""), "sub": (1, None), "aud": (1, None, "other", [], ["other", "shop"], ["shop", 1], "https://shop/", {}), "jti": (1, "x"),
                          "exp": ("1", -1, 0, 1, FUTURE + 0.5, 1e19, 1e300, None, True), "nbf": ("1", -1, 0, FUTURE, 1e20), "iat": ("1", -1, FUTURE, 1e30)}.items():
        for value in values:
            s.get(f"{claim} {value!r}", "/", bearer(token(**{claim: value})))
    s.get("just expired", "/", bearer(token(exp=int(time.time()) - 15)))
    s.get("nearly valid", "/", bearer(token(nbf=int(time.time()) + 30)))
    s.get("two headers", "/", bearer(good, good))
    s.get("good and bad", "/", bearer(good, "x.y.z"))
    s.get("bad and good", "/", bearer("x.y.z", good))
    s.get("header and parameter", f"/?access_token={good}", bearer(good))
    s.get("header and bad parameter", "/?access_token=x", bearer(good))
    s.get("bad header and parameter", f"/?access_token={good}", bearer("x"))
    s.get("parameter twice", f"/?access_token={good}&access_token=x")
    s.get("encoded parameter", f"/?access_token={good.replace('.', '%2E')}")
    for name, value in (("basic", "Basic eDp5"), ("lower", f"bearer {good}"), ("prefix inside", f"x Bearer {good}"), ("spaces", f"Bearer   {good}"), ("tab", f"Bearer\t{good}"), ("nothing", "Bearer "), ("quotes", f'Bearer "{good}"')):
        s.get(f"authorization {name}", "/", [("authorization", value)])
    s.get("long path", "/" + "x" * 400)
    s.get("original path", "/x", [("x-envoy-original-path", "/original")])
    s.get("head", "/", method="HEAD")
    s.get("grpc", "/", [("content-type", "application/grpc")], method="POST")
    s.http2("http2", "/")
    return s


def locations():
    s = setup("jwt locations", jwt({"a": provider(forward=False, from_headers=[{"name": "x-jwt"}, {"name": "x-pre", "value_prefix": "JWT:"}], from_params=["t"], from_cookies=["c"], payload_in_metadata="p")}))
    good = token()
    s.table([("header", {"headers": [("x-jwt", good)]}), ("prefix", {"headers": [("x-pre", f"JWT:{good}")]}), ("prefix absent", {"headers": [("x-pre", good)]}),
             ("default header", {"headers": bearer(good)}), ("default parameter", {"path": f"/?access_token={good}"}), ("parameter", {"path": f"/p?t={good}"}),
             ("parameter among others", {"path": f"/p?b=2&t={good}&a=1&c"}), ("encoded others", {"path": f"/p?z=%26&t={good}&a=%3D"}), ("cookie", {"headers": [("cookie", f"a=b; c={good}; d=e")]}), ("quoted cookie", {"headers": [("cookie", f'c="{good}"')]}),
             ("two cookies", {"headers": [("cookie", f"c={good}"), ("cookie", "c=x")]}), ("two cookies bad first", {"headers": [("cookie", f"c=x; c={good}")]}), ("everywhere", {"path": f"/?t={good}", "headers": [("x-jwt", good), ("cookie", f"c={good}")]}),
             ("header of bytes", {"headers": [("x-jwt", "\xe9")]}), ("others too", {"headers": [("x-jwt", good), ("x-other", "1")]})], path="/")
    return s


def passing():
    claims = [{"header_name": f"x-{i}", "claim_name": name} for i, name in enumerate(("sub", "n", "f", "neg", "b", "list", "obj", "obj.in.deep", "none", "null", "big", "text", "empty", "obj.in"))]
    s = setup("jwt passing", jwt({"a": provider(forward=False, forward_payload_header="x-payload", claim_to_headers=[*claims, {"header_name": "x-path", "claim_path": [{"key": "a.b"}, {"key": "c"}]}], payload_in_metadata="p", header_in_metadata="h",
                                                normalize_payload_in_metadata={"space_delimited_claims": ["scope", "n", "none", "empty"]}),
                                  "pad": provider("https://pad.test", forward_payload_header="x-payload-pad", pad_forward_payload_header=True)},
                                 rules=[{"match": {"prefix": "/pad"}, "requires": {"provider_name": "pad"}}, {"match": {"prefix": "/free"}}, {"match": {"prefix": "/"}, "requires": {"provider_name": "a"}}]),
              routes=[route("/")])
    rich = dict(n=5, f=1.5, neg=-3, b=True, list=[1, "x", {"y": None}], obj={"in": {"deep": "found"}}, null=None, big=2 ** 60, text="line break", empty="", scope="a b  c ", **{"a.b": {"c": "by path"}})
    s.get("rich", "/", bearer(token(**rich)))
    s.get("null claim", "/", bearer(token(raw=json.dumps({"iss": "https://a.test", "aud": "shop", "null": None, "sub": "x"}))))
    s.get("spoofed", "/", [*bearer(token()), ("x-1", "spoofed"), ("x-payload", "spoofed"), ("x-payload-pad", "spoofed")])
    s.get("spoofed without rule", "/free", [("x-1", "spoofed"), ("x-payload", "spoofed")])
    s.get("spoofed on failure", "/", [("x-1", "spoofed")])
    s.get("unicode", "/", bearer(token(sub="\u00e9")))
    for i in range(3):
        s.get(f"padded {i}", "/pad", bearer(token(iss="https://pad.test", x="y" * i)))
    return s


def requirements():
    a, b, anyone = provider(payload_in_metadata="pa", failed_status_in_metadata="fa"), provider("https://b.test", from_headers=[{"name": "x-b"}], payload_in_metadata="pb", failed_status_in_metadata="fb"), provider("", from_headers=[{"name": "x-any"}], audiences=[], payload_in_metadata="pn")
    name = lambda n: {"provider_name": n}
    any_, all_ = (lambda *r: {"requires_any": {"requirements": list(r)}}), (lambda *r: {"requires_all": {"requirements": list(r)}})
    missing, failed = {"allow_missing": {}}, {"allow_missing_or_failed": {}}
    table = {"a": name("a"), "audience": {"provider_and_audiences": {"provider_name": "a", "audiences": ["other"]}}, "any": any_(name("a"), name("b")), "all": all_(name("a"), name("b")), "missing": missing, "failed": failed,
             "anymissing": any_(name("a"), missing), "anyfailed": any_(name("a"), failed), "both": any_(name("a"), missing, failed), "only": any_(missing, failed), "nested": all_(any_(name("a"), missing), name("b")), "deep": any_(name("b"), all_(name("a"), name("any"))),
             "empty": {}, "anyempty": any_(name("a"), {}), "allmissing": all_(name("a"), missing), "extract": {"extract_only_without_validation": {}}, "extractnamed": {"extract_only_without_validation": {"verification_status_header": "x-seen"}}}
    rules = [{"match": {"path": f"/{key}"}, "requires": value} for key, value in table.items()]
    s = setup("jwt requirements", jwt({"a": a, "b": b, "any": anyone}, rules=rules))
    good, other, bad = token(), token(iss="https://b.test"), token(signature=b"x" * 32)
    for key in table:
        for case, headers in (("none", []), ("a", bearer(good)), ("b", [("x-b", other)]), ("a and b", [*bearer(good), ("x-b", other)]), ("bad", bearer(bad)), ("bad and b", [*bearer(bad), ("x-b", other)]), ("wrong issuer", bearer(other)), ("garbage", bearer("x")),
                              ("expired", bearer(token(exp=1))), ("other audience", bearer(token(aud="other"))), ("any", [("x-any", token(iss="https://c.test"))]), ("two", bearer(good, bad)), ("two turned", bearer(bad, good))):
            # Envoy joins the two fields on their way; both forward two credentials.
            s.get(f"{key} {case}", f"/{key}", headers, ignore=("upstream",) if case.startswith("two") else ())
    s.get("no rule", "/norule")
    return s


def matching():
    rules = [{"match": {"path": "/exact"}, "requires": {"provider_name": "a"}}, {"match": {"path_separated_prefix": "/sep"}, "requires": {"provider_name": "a"}}, {"match": {"safe_regex": {"regex": "/re[0-9]+"}}, "requires": {"provider_name": "a"}},
             {"match": {"prefix": "/case", "case_sensitive": False}, "requires": {"provider_name": "a"}}, {"match": {"prefix": "/head", "headers": [{"name": "x-h", "string_match": {"exact": "1"}}]}, "requires": {"provider_name": "a"}},
             {"match": {"prefix": "/query", "query_parameters": [{"name": "q", "string_match": {"exact": "1"}}]}, "requires": {"provider_name": "a"}}, {"match": {"prefix": "/named"}, "requirement_name": "r"}, {"match": {"prefix": "/open"}}]
    name = "envoy.filters.http.jwt_authn"
    per = lambda **f: {"typed_per_filter_config": {name: typed("filters.http.jwt_authn.v3.PerRouteConfig", **f)}}
    s = setup("jwt matching", jwt({"a": provider()}, rules=rules, requirement_map={"r": {"provider_name": "a"}, "n": {"allow_missing": {}}}, bypass_cors_preflight=True, stat_prefix="mine"),
              routes=[route("/named/off", to(), **per(disabled=True)), route("/route", to(), **per(requirement_name="r")), route("/exactly", to(), **per(requirement_name="n")), route("/wrong", to(), **per(requirement_name="no such")), route("/")])
    for path in ("/exact", "/exact?x", "/exact/", "/exactly", "/EXACT", "/sep", "/sep/a", "/separate", "/sep?x", "/re1", "/re", "/re1/x", "/re1?x", "/case", "/CASE/x", "/head", "/query", "/query?q=1", "/query?q=2", "/named", "/named/off", "/open", "/route", "/wrong", "/other"):
        s.get(path)
        s.get(f"{path} with header", path, [("x-h", "1")])
    preflight = [("origin", "http://x.test"), ("access-control-request-method", "GET")]
    s.get("preflight", "/exact", preflight, method="OPTIONS")
    s.get("no preflight", "/exact", preflight[:1], method="OPTIONS")
    s.get("preflight by get", "/exact", preflight)
    return s


def restrictions():
    now = int(time.time())
    s = setup("jwt restrictions", jwt({"a": provider(subjects={"prefix": "ali"}), "exp": provider(require_expiration=True, from_params=["exp"]), "max": provider(max_lifetime="600s", require_expiration=True, from_params=["max"]), "skew": provider(clock_skew_seconds=1000, from_params=["skew"]),
                                       "cached": provider(jwt_cache_config={"jwt_cache_size": 2}, from_params=["cached"], payload_in_metadata="p", subjects={"exact": "alice"})},
                                      rules=[{"match": {"prefix": f"/{n}"}, "requires": {"provider_name": n}} for n in ("a", "exp", "max", "skew", "cached")], strip_failure_response=True))
    for sub in ("alice", "bob", "", None):
        s.get(f"subject {sub}", "/a", bearer(token(sub=sub)))
    for exp in (None, 0, now + 500, now + 1200, now - 500, now - 1500):
        offset = exp and exp - now
        for name in ("exp", "max", "skew"):
            s.get(f"{name} {offset}", f"/{name}?{name}={token(exp=exp)}")
    good = token()
    for i in range(3):
        s.get(f"cached {i}", f"/cached?cached={good}")
    for i in range(4):
        s.get(f"cached other {i}", f"/cached?cached={token(x=i % 3)}")
    s.get("cached bob", f"/cached?cached={token(sub='bob')}")
    s.get("cached missing", "/cached")
    return s


def routing():
    claim = lambda *path: {"filter": "envoy.filters.http.jwt_authn", "path": [{"key": key} for key in ("payload", *path)], "value": {"string_match": {"exact": "admin"}}}
    rbac = extension("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", rules={"action": "DENY", "policies": {"p": {"permissions": [{"any": True}], "principals": [{"metadata": claim("ban")}]}}})
    origins = provider(audiences=[], payload_in_metadata="payload", clear_route_cache=True, normalize_payload_in_metadata={"space_delimited_claims": ["permission", "scope"]}, from_headers=[{"name": "Authorization", "value_prefix": "Bearer "}], claim_to_headers=[{"header_name": "x-sub", "claim_name": "sub"}])
    s = setup("jwt routing", jwt({"origins-0": origins}, {"requires_any": {"requirements": [{"provider_name": "origins-0"}, {"allow_missing": {}}]}}, bypass_cors_preflight=True), rbac,
              routes=[route({"prefix": "/", "dynamic_metadata": [claim("role")]}, direct_response=say("admin"), name="admin"), route({"prefix": "/", "headers": [{"name": "x-sub", "string_match": {"exact": "bob"}}]}, direct_response=say("bob"), name="bob"), route("/", direct_response=say("rest"), name="rest")])
    for name, headers in (("none", []), ("admin", bearer(token(role="admin"))), ("user", bearer(token(role="user"))), ("bob", bearer(token(sub="bob"))), ("spoofed", [("x-sub", "bob")]), ("spoofed with token", [*bearer(token()), ("x-sub", "bob")]), ("banned", bearer(token(ban="admin"))), ("bad", bearer("x")), ("expired", bearer(token(exp=1)))):
        s.get(name, "/", headers)
    return s


def remote():
    body = json.dumps(public())
    far = lambda uri="http://keys.test/jwks", **f: {"http_uri": {"uri": uri, "cluster": "keys", "timeout": "2s"}, **f}
    p = lambda uri, **f: {k: v for k, v in provider(remote_jwks=far(uri, **f), payload_in_metadata="p").items() if k != "local_jwks"}
    names = {"good": p("http://keys.test/good"), "bad": p("http://keys.test/bad"), "error": p("http://keys.test/error"), "moved": p("http://keys.test/moved")}
    s = setup("jwt remote", jwt(names, rules=[{"match": {"prefix": f"/{n}"}, "requires": {"provider_name": n}} for n in names]), clusters=[cluster("a"), cluster("keys")])
    for name, answer in (("good", reply(200, [], body)), ("bad", reply(200, [], "{}")), ("error", reply(500, [], "")), ("moved", reply(302, [("location", "/good")], ""))):
        s.get(f"{name} expired", f"/{name}", bearer(token(exp=1)))
        s.get(f"{name} first", f"/{name}", bearer(token()), upstream=[answer])
    return s


def setups():
    return [algorithms(), hostile(), locations(), passing(), requirements(), matching(), restrictions(), routing(), remote()]
