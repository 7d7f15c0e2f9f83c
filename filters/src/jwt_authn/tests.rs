//! jwt_authn with keys made on the spot.

use super::*;
use crate::jwt_authn::jwks::Jwks;
use crate::jwt_authn::token::{BASE64URL, Jwt};
use aws_lc_rs::hmac as mac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine;
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeRoute, fields, list, object, text};
use nuncio_proto::json::{UnknownFields, parse_text};
use std::sync::LazyLock;

const SECRET: &[u8] = b"a shared secret of thirty-two by";
static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
static EC: LazyLock<[EcdsaKeyPair; 3]> = LazyLock::new(|| {
    [&sig::ECDSA_P256_SHA256_FIXED_SIGNING, &sig::ECDSA_P384_SHA384_FIXED_SIGNING, &sig::ECDSA_P521_SHA512_FIXED_SIGNING]
        .map(|a| EcdsaKeyPair::generate(a).unwrap())
});
static ED: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::generate().unwrap());

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL.encode(bytes)
}

/// The modulus, where it lies in the DER of a 2048 bit key.
fn modulus() -> Vec<u8> {
    RSA.public_key().as_ref()[9..265].to_vec()
}

/// A set with one key of every kind; `kid` is the kind.
fn jwks() -> String {
    let mut keys = vec![
        format!(r#"{{"kty":"RSA","kid":"RSA","n":"{}","e":"AQAB"}}"#, b64(modulus())),
        format!(r#"{{"kty":"oct","kid":"oct","k":"{}"}}"#, b64(SECRET)),
        format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"OKP","x":"{}"}}"#, b64(ED.public_key())),
    ];
    for (pair, crv) in EC.iter().zip(["P-256", "P-384", "P-521"]) {
        let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
        keys.push(format!(r#"{{"kty":"EC","crv":"{crv}","kid":"{crv}","x":"{}","y":"{}"}}"#, b64(x), b64(y)));
    }
    format!(r#"{{"keys":[{}]}}"#, keys.join(","))
}

fn sign(alg: &str, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let hmac = |algorithm| mac::sign(&mac::Key::new(algorithm, SECRET), message).as_ref().to_vec();
    let rsa = |encoding: &'static dyn sig::RsaEncoding| {
        let mut out = vec![0; RSA.public_modulus_len()];
        RSA.sign(encoding, &random, message, &mut out).unwrap();
        out
    };
    let ec = |i: usize| EC[i].sign(&random, message).unwrap().as_ref().to_vec();
    match alg {
        "HS256" => hmac(mac::HMAC_SHA256),
        "HS384" => hmac(mac::HMAC_SHA384),
        "HS512" => hmac(mac::HMAC_SHA512),
        "RS256" => rsa(&sig::RSA_PKCS1_SHA256),
        "RS384" => rsa(&sig::RSA_PKCS1_SHA384),
        "RS512" => rsa(&sig::RSA_PKCS1_SHA512),
        "PS256" => rsa(&sig::RSA_PSS_SHA256),
        "PS384" => rsa(&sig::RSA_PSS_SHA384),
        "PS512" => rsa(&sig::RSA_PSS_SHA512),
        "ES256" => ec(0),
        "ES384" => ec(1),
        "ES512" => ec(2),
        "EdDSA" => ED.sign(message).as_ref().to_vec(),
        _ => b"x".to_vec(),
    }
}

const ALGORITHMS: [(&str, &str); 13] = [
    ("RS256", "RSA"),
    ("RS384", "RSA"),
    ("RS512", "RSA"),
    ("PS256", "RSA"),
    ("PS384", "RSA"),
    ("PS512", "RSA"),
    ("ES256", "P-256"),
    ("ES384", "P-384"),
    ("ES512", "P-521"),
    ("HS256", "oct"),
    ("HS384", "oct"),
    ("HS512", "oct"),
    ("EdDSA", "OKP"),
];

/// A token of alice for the shop, with these claims too.
fn token(alg: &str, kid: &str, claims: &str) -> String {
    let kid = if kid.is_empty() { String::new() } else { format!(r#","kid":"{kid}""#) };
    let body = format!(r#"{{"iss":"https://a.test","sub":"alice","aud":"shop"{claims}}}"#);
    let signed = format!("{}.{}", b64(format!(r#"{{"alg":"{alg}"{kid}}}"#)), b64(body));
    let signature = sign(alg, signed.as_bytes());
    format!("{signed}.{}", b64(signature))
}

fn verify(token: &str) -> Status {
    match Jwt::parse(token) {
        Ok(jwt) => key::verify(&Jwks::parse(jwks().as_bytes()).unwrap().keys, &jwt, token),
        Err(status) => status,
    }
}

#[test]
fn every_algorithm() {
    for (alg, kid) in ALGORITHMS {
        for kid in [kid, ""] {
            let good = token(alg, kid, "");
            assert_eq!(verify(&good), Status::Ok, "{alg} {kid}");
            let (signed, _) = good.rsplit_once('.').unwrap();
            for bad in [format!("{signed}.{}", b64([0; 64])), format!("{signed}.{}", b64(sign(alg, b"something else")))] {
                assert_eq!(verify(&bad), Status::VerificationFail, "{alg} {kid}");
            }
        }
        assert_eq!(verify(&token(alg, "no such key", "")), Status::JwksKidAlgMismatch, "{alg}");
        for (other, _) in ALGORITHMS.iter().filter(|(_, k)| *k != kid) {
            // The right key, a signature by another one, and an algorithm that the key is not for.
            assert_ne!(verify(&token(other, kid, "")), Status::Ok, "{other} by {kid}");
        }
    }
}

#[test]
fn algorithms_are_not_confused() {
    let jwt = |alg: &str, kid: &str, secret: &[u8]| {
        let signed = format!("{}.{}", b64(format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#)), b64(r#"{"iss":"https://a.test"}"#));
        let mac = mac::sign(&mac::Key::new(mac::HMAC_SHA256, secret), signed.as_bytes());
        format!("{signed}.{}", b64(mac))
    };
    // What everybody knows of a public key is no shared secret.
    for (kid, public) in [("RSA", modulus()), ("OKP", ED.public_key().as_ref().to_vec()), ("P-256", EC[0].public_key().as_ref().to_vec())] {
        assert_eq!(verify(&jwt("HS256", kid, &public)), Status::VerificationFail, "{kid}");
    }
    for alg in ["none", "None", "NONE", "hs256", "HS257", ""] {
        assert_eq!(verify(&jwt(alg, "oct", SECRET)), Status::HeaderUnknownAlg, "{alg}");
    }
    assert_eq!(verify(&format!("{}.{}.", b64(r#"{"alg":"none"}"#), b64("{}"))), Status::JwtBadFormat);
    // A key for one algorithm serves no other, though its kind could.
    let set = format!(r#"{{"keys":[{{"kty":"RSA","alg":"RS512","n":"{}","e":"AQAB"}}]}}"#, b64(modulus()));
    let keys = Jwks::parse(set.as_bytes()).unwrap().keys;
    let check = |alg| {
        let token = token(alg, "", "");
        key::verify(&keys, &Jwt::parse(&token).unwrap(), &token)
    };
    assert_eq!((check("RS512"), check("RS256"), check("PS512")), (Status::Ok, Status::JwksKidAlgMismatch, Status::JwksKidAlgMismatch));
}

#[test]
fn key_sets_are_bounded() {
    let error = |text: &str| Jwks::parse(text.as_bytes()).map(|k| format!("{k:?} of {text:.100}")).unwrap_err();
    let oct = format!(r#"{{"kty":"oct","k":"{}"}}"#, b64(SECRET));
    assert!(error(&format!(r#"{{"keys":[{}]}}"#, vec![oct.as_str(); 257].join(","))).contains("257 keys"));
    assert!(error(&format!(r#"{{"keys":[{oct}],"x":"{}"}}"#, "y".repeat(jwks::MAX_BYTES))).contains("bytes"));
    assert!(error(&format!(r#"{{"keys":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000))).contains("JSON"));
    for (bad, why) in [
        ("", "JSON"),
        ("[]", "JSON"),
        ("{}", "[keys]"),
        (r#"{"keys":{}}"#, "not an array"),
        (r#"{"keys":[]}"#, "any valid"),
        (r#"{"keys":[1,{"kty":1},{"kty":"x"}]}"#, "any valid"),
        (r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#, "2048"),
        (r#"{"keys":[{"kty":"oct","k":""}]}"#, "empty"),
        (r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"AA"}]}"#, "[crv]"),
        (r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA"}]}"#, "wrong length"),
        (r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES384","x":"AA","y":"AA"}]}"#, "[crv] or [alg]"),
        (r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#, "parse error"),
    ] {
        assert!(error(bad).contains(why), "{bad}: {}", error(bad));
    }
    // One that is good makes up for those that are not.
    assert_eq!(Jwks::parse(format!(r#"{{"keys":[{{"kty":"x"}},{oct}]}}"#).as_bytes()).unwrap().keys.len(), 1);
    // An exponent that makes every verification slow, and a modulus that is far too long.
    let e = b64([0xff; 256]);
    assert!(error(&format!(r#"{{"keys":[{{"kty":"RSA","n":"{}","e":"{e}"}}]}}"#, b64(modulus()))).contains("2048"));
    assert!(error(&format!(r#"{{"keys":[{{"kty":"RSA","n":"{}","e":"AQAB"}}]}}"#, b64(vec![0xff; 100_000]))).contains("2048"));
    assert!(!format!("{:?}", Jwks::parse(jwks().as_bytes())).contains(&b64(SECRET)));
}

#[test]
fn certificates_by_kid() {
    const PEM: &str = include_str!("testdata/rsa.pem");
    let set = serde_json::json!({ "one": PEM }).to_string();
    let keys = Jwks::parse(set.as_bytes()).unwrap().keys;
    assert_eq!((keys.len(), &*keys[0].kid), (1, "one"));
    assert!(Jwks::parse(serde_json::json!({ "one": PEM, "two": "x" }).to_string().as_bytes()).is_err());
}

fn config(text: &str) -> JwtAuthentication {
    let text = text.replace("@JWKS@", &format!("{{inline_string: {}}}", serde_json::to_string(&jwks()).unwrap()));
    parse_text(&text, UnknownFields::Refuse).unwrap().value
}

fn compiled(text: &str) -> (Arc<dyn HttpFilter>, Arc<Server>) {
    let server = kit::server(Default::default());
    (kit::compile(&Factory, &config(text), &server).unwrap(), server)
}

fn exchange(path: &'static str, headers: &[(&'static str, String)]) -> Exchange {
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop.test", path));
    for (name, value) in headers {
        ex.request.headers.append(HeaderName::from_static(name), HeaderValue::try_from(value.as_str()).unwrap());
    }
    ex
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

/// What istiod makes of a RequestAuthentication with claims to headers and routing by claims.
const ISTIO: &str = r#"
providers:
  origins-0:
    issuer: https://a.test
    audiences: [shop]
    local_jwks: @JWKS@
    forward: true
    from_headers: [{name: Authorization, value_prefix: "Bearer "}]
    payload_in_metadata: payload
    normalize_payload_in_metadata: {space_delimited_claims: [permission, scope]}
    claim_to_headers: [{header_name: x-sub, claim_name: sub}]
    clear_route_cache: true
rules: [{match: {prefix: /}, requires: {requires_any: {requirements: [{provider_name: origins-0}, {allow_missing: {}}]}}}]
bypass_cors_preflight: true
"#;

#[tokio::test]
async fn as_istio_emits_it() {
    let (filter, server) = compiled(ISTIO);
    let good = token("RS256", "RSA", r#","scope":"read  write","groups":["a"],"n":5"#);
    let mut ex = exchange("/", &[bearer(&good), ("x-sub", "root".into())]);
    assert!(kit::request(&*filter, "j", &mut ex).await.is_none());
    assert!(ex.route_cleared);
    assert_eq!(ex.request.headers.get_all(&HeaderName::from_static("x-sub")).collect::<Vec<_>>(), ["alice"]);
    assert!(ex.request.headers.contains(&header::AUTHORIZATION));
    let number = nuncio_proto::Value { kind: Some(prost_types::value::Kind::NumberValue(5.0)) };
    let payload = fields([
        ("iss", text("https://a.test")),
        ("sub", text("alice")),
        ("aud", text("shop")),
        ("scope", list(vec![text("read"), text("write")])),
        ("groups", list(vec![text("a")])),
        ("n", number),
    ]);
    assert_eq!(ex.info.metadata(NAMESPACE), Some(&fields([("payload", object(payload))])));

    // Nobody says who he is without a token.
    let mut ex = exchange("/", &[("x-sub", "root".into())]);
    assert!(kit::request(&*filter, "j", &mut ex).await.is_none());
    assert!(!ex.request.headers.contains(&HeaderName::from_static("x-sub")) && !ex.route_cleared && ex.info.metadata(NAMESPACE).is_none());

    let reply = kit::request(&*filter, "j", &mut exchange("/x?y", &[bearer("a.b")])).await.unwrap();
    assert_eq!(reply.status, 401);
    assert_eq!(reply.details, "jwt_authn_access_denied{Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections}");
    assert_eq!(reply.headers.get_str(&header::WWW_AUTHENTICATE), Some("Bearer realm=\"http://shop.test/x?y\", error=\"invalid_token\""));
    let other = token("RS256", "RSA", "").replace(&b64(""), "");
    let (head, _) = other.split_once('.').unwrap();
    let body = b64(r#"{"iss":"https://a.test","aud":"other"}"#);
    let signed = format!("{head}.{body}");
    let signed = format!("{signed}.{}", b64(sign("RS256", signed.as_bytes())));
    let reply = kit::request(&*filter, "j", &mut exchange("/", &[bearer(&signed)])).await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (403, &b"Audiences in Jwt are not allowed"[..]));

    let preflight = [("origin", "http://x".to_string()), ("access-control-request-method", "GET".into()), bearer("bad")];
    let mut ex = exchange("/", &preflight);
    ex.request.method = Method::OPTIONS;
    assert!(kit::request(&*filter, "j", &mut ex).await.is_none());
    let count = |name: &str| server.stats.root().counter(&format!("http.test.jwt_authn.{name}")).value();
    assert_eq!((count("allowed"), count("denied"), count("cors_preflight_bypassed")), (3, 2, 1));
}

#[tokio::test]
async fn two_credentials_are_none() {
    let (filter, _) = compiled(
        "{providers: {a: {issuer: https://a.test, local_jwks: @JWKS@}}, rules: [{match: {prefix: /}, requires: {provider_name: a}}]}",
    );
    let good = token("HS256", "oct", "");
    for headers in [vec![bearer(&good), bearer(&good)], vec![bearer(&good), bearer("x")], vec![bearer("x"), bearer(&good)]] {
        assert!(kit::request(&*filter, "j", &mut exchange("/", &headers)).await.is_some());
    }
    let mut ex = exchange("/", &[bearer(&good)]);
    assert!(kit::request(&*filter, "j", &mut ex).await.is_none());
    assert!(!ex.request.headers.contains(&header::AUTHORIZATION), "not forwarded");
    // A parameter is looked at too, and must be good as well.
    let mut ex = exchange("/?access_token=x", &[bearer(&good)]);
    assert!(kit::request(&*filter, "j", &mut ex).await.is_some());
}

#[tokio::test]
async fn routes_choose_requirements() {
    let (filter, server) = compiled(
        "{providers: {a: {issuer: https://a.test, local_jwks: @JWKS@}}, requirement_map: {r: {provider_name: a}, free: {allow_missing: {}}},
          rules: [{match: {prefix: /}, requirement_name: r}], strip_failure_response: false}",
    );
    let run = async |specifier: RequirementSpecifier| {
        let route = kit::compile_route(&Factory, &PerRouteConfig { requirement_specifier: Some(specifier) }, &server).unwrap();
        let mut ex = exchange("/", &[]);
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("j", route)));
        kit::request(&*filter, "j", &mut ex).await
    };
    assert!(run(RequirementSpecifier::Disabled(true)).await.is_none());
    assert!(run(RequirementSpecifier::RequirementName("free".into())).await.is_none());
    assert_eq!(run(RequirementSpecifier::RequirementName("r".into())).await.unwrap().status, 401);
    let reply = run(RequirementSpecifier::RequirementName("x".into())).await.unwrap();
    assert_eq!(
        (reply.status, &reply.body[..]),
        (403, &b"Failed JWT authentication: Wrong requirement_name: x. It should be one of [free,r]"[..])
    );
    assert!(
        kit::compile_route(&Factory, &PerRouteConfig { requirement_specifier: Some(RequirementSpecifier::Disabled(false)) }, &server)
            .is_err()
    );
}

#[tokio::test]
async fn filter_state_chooses_a_requirement() {
    let (filter, _) = compiled(
        "{providers: {a: {issuer: https://a.test, local_jwks: @JWKS@}}, filter_state_rules: {name: selector, requires: {strict: {provider_name: a}}}}",
    );
    for (value, refused) in [("strict", true), ("other", false)] {
        let mut ex = exchange("/", &[]);
        ex.info.filter_state.set("selector", Arc::new(StringState(value.into())));
        assert_eq!(kit::request(&*filter, "j", &mut ex).await.is_some(), refused, "{value}");
    }
    assert!(kit::request(&*filter, "j", &mut exchange("/", &[])).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn keys_of_a_file_rotate_and_cached_tokens_go_with_them() {
    let path = std::env::temp_dir().join(format!("nuncio-jwks-{}", std::process::id()));
    std::fs::write(&path, jwks()).unwrap();
    let (filter, server) = compiled(&format!(
        "{{providers: {{a: {{issuer: https://a.test, jwt_cache_config: {{}}, local_jwks: {{filename: {}}}}}}}, rules: [{{match: {{prefix: /}}, requires: {{provider_name: a}}}}]}}",
        path.display()
    ));
    let good = token("ES256", "P-256", "");
    let hits = || server.stats.root().counter("http.test.jwt_authn.jwt_cache_hit").value();
    for expected in [0, 1, 2] {
        assert!(kit::request(&*filter, "j", &mut exchange("/", &[bearer(&good)])).await.is_none());
        assert_eq!(hits(), expected);
    }
    // A file that is no good changes nothing.
    std::fs::write(&path, "{").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(kit::request(&*filter, "j", &mut exchange("/", &[bearer(&good)])).await.is_none());
    std::fs::write(&path, format!(r#"{{"keys":[{{"kty":"oct","kid":"P-256","k":"{}"}}]}}"#, b64(SECRET))).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(kit::request(&*filter, "j", &mut exchange("/", &[bearer(&good)])).await.is_some());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_cannot_be_compiled_is_refused_by_name() {
    let server = kit::server(Default::default());
    for (bad, place) in [
        ("{providers: {a: {}}}", "providers[\"a\"]"),
        ("{providers: {a: {local_jwks: {filename: /no/such}}}}", "providers[\"a\"].local_jwks"),
        ("{providers: {a: {local_jwks: @JWKS@, claim_to_headers: [{header_name: x}]}}}", "claim_to_headers[0]"),
        ("{providers: {a: {local_jwks: @JWKS@, from_headers: [{name: 'a b'}]}}}", "from_headers[0].name"),
        ("{providers: {a: {remote_jwks: {http_uri: {uri: x, timeout: 1s}}}}}", "remote_jwks.http_uri.cluster"),
        ("{rules: [{match: {prefix: /}, requires: {provider_name: x}}]}", "rules[0].requires.provider_name"),
        ("{rules: [{match: {prefix: /}, requires: {requires_any: {requirements: [{allow_missing: {}}]}}}]}", "requires_any.requirements"),
        ("{rules: [{match: {prefix: /}, requirement_name: x}]}", "rules[0].requirement_name"),
        ("{rules: [{requires: {}}]}", "rules[0].match"),
        ("{filter_state_rules: {}}", "filter_state_rules.name"),
    ] {
        let error = kit::compile(&Factory, &config(bad), &server).unwrap_err();
        assert!(error.contains(place), "{bad}: {error}");
    }
}

/// The examples of Envoy's documentation of the filter.
#[tokio::test]
async fn examples_of_the_documentation() {
    for example in [
        "{providers: {provider1: {issuer: https://example.com, audiences: [bookstore_android.apps.googleusercontent.com], remote_jwks: {http_uri: {uri: 'https://example.com/jwks.json', cluster: example_jwks_cluster, timeout: 1s}, cache_duration: {seconds: 300}}}}}",
        "{providers: {provider1: {issuer: https://example.com, remote_jwks: {http_uri: {uri: 'https://example.com/jwks.json', cluster: c, timeout: 1s}, async_fetch: {fast_listener: true}, retry_policy: {retry_back_off: {base_interval: 0.01s, max_interval: 20s}, num_retries: 10}}, from_headers: [{name: x-goog-iap-jwt-assertion}], forward_payload_header: x-jwt-payload}}}",
        "{providers: {provider_name1: {issuer: https://provider1.com, local_jwks: @JWKS@}, provider_name2: {issuer: https://provider2.com, local_jwks: @JWKS@}, provider3: {local_jwks: @JWKS@}},
          rules: [{match: {prefix: /any}, requires: {requires_any: {requirements: [{provider_name: provider_name1}, {provider_name: provider_name2}]}}},
                  {match: {prefix: /all}, requires: {requires_all: {requirements: [{provider_name: provider_name1}, {provider_name: provider_name2}]}}},
                  {match: {prefix: /more}, requires: {requires_all: {requirements: [{provider_name: provider_name1}, {requires_any: {requirements: [{provider_name: provider_name2}, {provider_name: provider3}]}}]}}},
                  {match: {prefix: /audience}, requires: {provider_and_audiences: {provider_name: provider_name1, audiences: [api_audience]}}}]}",
    ] {
        let server = kit::server(Default::default());
        kit::compile(&Factory, &config(example), &server).unwrap();
    }
}

proptest::proptest! {
    /// Whatever comes is judged, and nothing that was made up is good.
    #[test]
    fn anything_may_come(head in ".{0,40}", body in ".{0,60}", signature in proptest::collection::vec(proptest::num::u8::ANY, 0..80), text in ".{0,80}") {
        proptest::prop_assert_ne!(verify(&text), Status::Ok);
        proptest::prop_assert_ne!(verify(&format!("{}.{}.{}", b64(&head), b64(&body), b64(&signature))), Status::Ok);
        let head = serde_json::json!({"alg": "RS256", "kid": head}).to_string();
        let body = serde_json::json!({"iss": body, "exp": signature.len()}).to_string();
        proptest::prop_assert_ne!(verify(&format!("{}.{}.{}", b64(head), b64(body), b64(&signature))), Status::Ok);
    }

    /// Sets of keys from anywhere are read or refused.
    #[test]
    fn any_set_of_keys(n in ".{0,40}", e in "[A-Za-z0-9_-]{0,8}", crv in "(P-256|P-521|Ed25519|.{0,5})", kty in "(RSA|EC|OKP|oct|.{0,5})") {
        let key = serde_json::json!({"kty": kty, "n": n, "e": e, "crv": crv, "x": n, "y": e, "k": n, "kid": n});
        let _judged = Jwks::parse(serde_json::json!({"keys": [key, n]}).to_string().as_bytes());
        let _judged = Jwks::parse(n.as_bytes());
    }

    /// A token is found and taken out wherever it is, whatever stands around it.
    #[test]
    fn any_request(query in "[!-~]{0,60}", value in "[ -~]{0,60}") {
        let provider = nuncio_proto::envoy::extensions::filters::http::jwt_authn::v3::JwtProvider {
            from_params: vec!["t".into()],
            from_cookies: vec!["t".into()],
            from_headers: vec![nuncio_proto::envoy::extensions::filters::http::jwt_authn::v3::JwtHeader { name: "x-t".into(), value_prefix: "T ".into() }],
            ..Default::default()
        };
        let locations = extract::Locations::compile(&provider, &At::Root, &mut nuncio_core::diag::Report::new()).unwrap();
        let mut request = RequestHead::new(Method::GET, "shop", format!("/?{query}"));
        request.headers.append(HeaderName::from_static("x-t"), HeaderValue::try_from(value.as_str()).unwrap());
        request.headers.append(header::COOKIE, HeaderValue::try_from(value.as_str()).unwrap());
        for found in locations.find(&request) {
            locations.remove(&found, &mut request);
        }
        let left = request.query().unwrap_or_default();
        proptest::prop_assert!(left.split('&').all(|pair| pair != "t" && !pair.starts_with("t=")));
    }
}

/// An update of the listener compiles the filter again, before the old one goes.
#[test]
fn fetched_keys_outlive_an_update() {
    use nuncio_callout::test_kit::{HttpServer, cluster, run};
    run(async {
        let keys = jwks();
        let service = HttpServer::start(move |_| Some(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{keys}", keys.len()))).await;
        let server = kit::server(Default::default());
        cluster(&server, "keys-of-an-update", service.address, "");
        let yaml = |extra: &str| {
            format!(
                "{{providers: {{a: {{issuer: https://a.test, audiences: [shop], remote_jwks: {{http_uri: {{uri: 'http://keys.test/jwks', cluster: keys-of-an-update, timeout: 20s}}}}}}}}, \
                 rules: [{{match: {{prefix: /}}, requires: {{provider_name: a}}}}]{extra}}}"
            )
        };
        let compile = |extra: &str| kit::compile(&Factory, &config(&yaml(extra)), &server).unwrap();
        let call = async |filter: &dyn HttpFilter| {
            kit::request(filter, "j", &mut exchange("/", &[bearer(&token("RS256", "RSA", ""))])).await.map(|reply| reply.status)
        };
        let first = compile("");
        assert_eq!((call(&*first).await, service.requests.borrow().len()), (None, 1));
        let second = compile(", bypass_cors_preflight: true");
        drop(first);
        assert_eq!((call(&*second).await, service.requests.borrow().len()), (None, 1), "nobody asks again");
        // A configuration without them lets them go.
        drop(second);
        assert_eq!((call(&*compile("")).await, service.requests.borrow().len()), (None, 2));
    });
}
