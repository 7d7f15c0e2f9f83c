//! Checks and clean-ups that both codecs share, as Envoy's `HeaderUtility` and `Http::Utility` do them. Pure functions.

use crate::options::{HTTP2_SETTINGS, KEEP_ALIVE, PROXY_CONNECTION};
use http::{HeaderName, HeaderValue, header};
use nuncio_core::Headers;

/// Envoy's limit on the tokens of a `connection` header.
const MAX_NOMINATED: usize = 10;

/// Envoy's response code details.
pub mod details {
    pub const CODEC_ERROR: &str = "http1.codec_error";
    pub const INVALID_CHARACTERS: &str = "http1.invalid_characters";
    pub const INVALID_URL: &str = "http1.invalid_url";
    pub const INVALID_SCHEME: &str = "http1.invalid_scheme";
    pub const INVALID_TRANSFER_ENCODING: &str = "http1.invalid_transfer_encoding";
    pub const CHUNKED_CONTENT_LENGTH: &str = "http1.content_length_and_chunked_not_allowed";
    pub const CONTENT_LENGTH_NOT_ALLOWED: &str = "http1.content_length_not_allowed";
    pub const TRANSFER_ENCODING_NOT_ALLOWED: &str = "http1.transfer_encoding_not_allowed";
    pub const BODY_DISALLOWED: &str = "http1.body_disallowed";
    pub const CONNECTION_HEADER: &str = "http1.connection_header_rejected";
    pub const TOO_MANY_HEADERS: &str = "http1.too_many_headers";
    pub const HEADERS_TOO_LARGE: &str = "http1.headers_too_large";
    pub const UNDERSCORE: &str = "http1.unexpected_underscore";
    pub const INVALID_AUTHORITY: &str = "http.invalid_authority";
    pub const MISSING_HOST: &str = "missing_host_header";
    pub const LOW_VERSION: &str = "low_version";
    pub const REQUEST_HEADER_TIMEOUT: &str = "request_header_timeout";
    pub const H2_TOO_MANY_HEADERS: &str = "http2.too_many_headers";
    pub const H2_TOO_LARGE: &str = "http2.header_list_size_too_large";
    pub const REMOTE_DISCONNECT: &str = "downstream_remote_disconnect";
    pub const H2_UNDERSCORE: &str = "http2.unexpected_underscore";
    pub const H2_INVALID_FIELD: &str = "http2.invalid.header.field";
    pub const H2_MESSAGING: &str = "http2.violation.of.messaging.rule";
    pub const H2_CONNECTION_HEADER: &str = "http2.connection_header_rejected";
}

/// Whether Envoy knows the method (its HTTP/1 parser refuses others unless `allow_custom_methods`).
pub fn is_known_method(method: &[u8]) -> bool {
    const KNOWN: &[&[u8]] = &[
        b"GET",
        b"POST",
        b"HEAD",
        b"PUT",
        b"DELETE",
        b"OPTIONS",
        b"PATCH",
        b"CONNECT",
        b"TRACE",
        b"ACL",
        b"BIND",
        b"CHECKOUT",
        b"COPY",
        b"LINK",
        b"LOCK",
        b"MERGE",
        b"MKACTIVITY",
        b"MKCALENDAR",
        b"MKCOL",
        b"MOVE",
        b"NOTIFY",
        b"PROPFIND",
        b"PROPPATCH",
        b"PURGE",
        b"QUERY",
        b"REBIND",
        b"REPORT",
        b"SEARCH",
        b"SOURCE",
        b"SUBSCRIBE",
        b"UNBIND",
        b"UNLINK",
        b"UNLOCK",
        b"UNSUBSCRIBE",
    ];
    KNOWN.contains(&method)
}

/// Whether every byte may stand in an authority (`HeaderUtility::authorityIsValid`; nghttp2's table).
pub fn is_valid_authority(authority: &[u8]) -> bool {
    authority.iter().all(|b| {
        matches!(b, b'!' | b'$'..=b'.' | b'0'..=b'9' | b':' | b';' | b'=' | b'@' | b'A'..=b'Z' | b'[' | b']' | b'_' | b'a'..=b'z' | b'~')
    })
}

/// Whether every byte may stand in a request target: visible ASCII. Everything else would let one request be read as two.
pub fn is_valid_target(target: &[u8]) -> bool {
    target.iter().all(|b| (0x21..=0x7e).contains(b))
}

/// The tokens of a list header, without white space and empty elements.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

/// Whether `name` of `headers` lists `token`, in any case.
pub fn has_token(headers: &Headers, name: &HeaderName, token: &[u8]) -> bool {
    headers.get_all(name).any(|v| tokens(v.as_bytes()).any(|t| t.eq_ignore_ascii_case(token)))
}

/// Whether the head asks for (or grants) an upgrade: `upgrade` is there and `connection` lists it.
pub fn is_upgrade(headers: &Headers) -> bool {
    headers.contains(&header::UPGRADE) && has_token(headers, &header::CONNECTION, b"upgrade")
}

/// Removes what must not pass a proxy: `connection` and the fields that it names, `keep-alive`, `proxy-connection`,
/// `http2-settings`, `upgrade`, `transfer-encoding`; `te` becomes `trailers` or goes. With `upgrade`, the first `connection` and
/// `upgrade` stay. False: the connection header names what no client may remove (`Utility::sanitizeConnectionHeader`).
pub fn strip_hop_by_hop(headers: &mut Headers, upgrade: bool) -> bool {
    let mut nominated: Vec<HeaderName> = Vec::new();
    let mut seen = 0;
    for value in headers.get_all(&header::CONNECTION) {
        for token in tokens(value.as_bytes()) {
            seen += 1;
            if seen > MAX_NOMINATED || token.first() == Some(&b':') {
                return false;
            }
            let Ok(name) = HeaderName::from_bytes(token) else { continue };
            let known = [header::CONNECTION, header::UPGRADE, header::TE, HTTP2_SETTINGS, KEEP_ALIVE];
            if known.contains(&name) || name == "close" {
                continue;
            }
            if name == "x-forwarded-for" || name == "x-forwarded-host" || name == "x-forwarded-proto" || name == header::HOST {
                return false;
            }
            nominated.push(name);
        }
    }
    let mut kept = upgrade;
    // In this case only, as Envoy.
    let trailers = headers.get_all(&header::TE).any(|v| tokens(v.as_bytes()).any(|t| t == b"trailers"));
    let mut te = false;
    headers.retain(|name, _| {
        if *name == header::TE {
            return trailers && !std::mem::replace(&mut te, true);
        }
        // One of them, with the client's own list: what it names is gone.
        if *name == header::CONNECTION {
            return std::mem::replace(&mut kept, false);
        }
        !(*name == KEEP_ALIVE
            || *name == PROXY_CONNECTION
            || *name == header::TRANSFER_ENCODING
            || *name == HTTP2_SETTINGS
            || (*name == header::UPGRADE && !upgrade)
            || nominated.contains(name))
    });
    if te {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if upgrade && !headers.contains(&header::CONNECTION) {
        headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    true
}

/// Whether a field belongs to one connection or to framing, so that an encoder writes its own and trailers may not hold it.
pub fn is_connection_specific(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == HTTP2_SETTINGS
}

/// Whether a field may stand in trailers (RFC 9110, section 6.5.1): nothing that frames or routes the message.
pub fn is_valid_trailer(name: &HeaderName) -> bool {
    !is_connection_specific(name)
        && *name != header::CONTENT_LENGTH
        && *name != header::HOST
        && *name != header::TE
        && *name != header::TRAILER
}

/// A content length: one run of digits that fits 64 bits.
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |n, b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> Headers {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }
    fn names(headers: &Headers) -> Vec<&str> {
        headers.iter().map(|(n, _)| n.as_str()).collect()
    }

    #[test]
    fn content_length_takes_digits_only() {
        assert_eq!(content_length(b"0"), Some(0));
        assert_eq!(content_length(b"0002"), Some(2));
        assert_eq!(content_length(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "+2", "-2", "0x2", "2, 2", "2 ", "18446744073709551616", "1e3"] {
            assert_eq!(content_length(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn authority_table() {
        for good in ["", "a", "a.b:80", "[::1]:80", "u@a", "a,b", "a_b~", "%20"] {
            assert!(is_valid_authority(good.as_bytes()), "{good}");
        }
        for bad in ["a b", "a/b", "a\\b", "a#b", "a?b", "a\"", "<a>", "a\u{e9}", "a\t"] {
            assert!(!is_valid_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn nominated_fields_go_and_forbidden_ones_refuse() {
        let mut h = headers(&[("connection", "x-a, close"), ("x-a", "1"), ("x-b", "2"), ("keep-alive", "5"), ("proxy-connection", "x")]);
        assert!(strip_hop_by_hop(&mut h, false));
        assert_eq!(names(&h), ["x-b"]);
        for bad in ["host", "x-forwarded-for", "X-Forwarded-Host", "x-forwarded-proto", ":path", "a,b,c,d,e,f,g,h,i,j,k"] {
            let mut h = Headers::new();
            h.append(header::CONNECTION, HeaderValue::from_str(bad).unwrap());
            assert!(!strip_hop_by_hop(&mut h, false), "{bad}");
        }
    }

    #[test]
    fn te_keeps_trailers_only() {
        let mut h = headers(&[("te", "gzip, trailers"), ("te", "deflate")]);
        assert!(strip_hop_by_hop(&mut h, false));
        assert_eq!(h.get_str(&header::TE), Some("trailers"));
        assert_eq!(h.len(), 1);
        let mut h = headers(&[("connection", "te"), ("te", "gzip")]);
        assert!(strip_hop_by_hop(&mut h, false));
        assert!(h.is_empty());
    }

    #[test]
    fn upgrade_survives_only_as_such() {
        let mut h = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(is_upgrade(&h));
        assert!(strip_hop_by_hop(&mut h, true));
        assert_eq!(names(&h), ["connection", "upgrade"]);
        assert_eq!(h.get_str(&header::CONNECTION), Some("keep-alive, Upgrade"));
        assert!(strip_hop_by_hop(&mut h, false));
        assert!(h.is_empty());
    }
}
