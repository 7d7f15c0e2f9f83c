//! The `authorization` header of a signed request, and the text that is signed. Workers.

use crate::signing::{hex, sorted_query};
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, header};
use nuncio_core::message::joined;
use nuncio_core::{Headers, RequestHead};

/// Names of the schemes, in the order of `signing::HASHES`.
pub const SCHEMES: [&str; 3] = ["NUNCIO-HMAC-SHA256", "NUNCIO-HMAC-SHA384", "NUNCIO-HMAC-SHA512"];
const DIGESTS: [&digest::Algorithm; 3] = [&digest::SHA256, &digest::SHA384, &digest::SHA512];
/// Bytes of the header that are read.
const MAX_HEADER: usize = 4096;
/// Headers that a signature may cover.
const MAX_HEADERS: usize = 64;
const MAX_NONCE: usize = 128;

/// What the client says of its signature.
#[derive(Debug)]
pub struct Signature {
    /// Index into [`SCHEMES`].
    pub algorithm: usize,
    pub key_id: String,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// Empty if there is none.
    pub nonce: String,
    pub headers: Vec<HeaderName>,
    pub mac: Vec<u8>,
}

impl Signature {
    /// Reads the header. None if it is not there or of another scheme; an error if it cannot be read, or is there twice.
    pub fn parse(headers: &Headers) -> Result<Option<Self>, ()> {
        let mut values = headers.get_all(&header::AUTHORIZATION);
        let Some(value) = values.next() else { return Ok(None) };
        let value = value.to_str().map_err(|_| ())?;
        let (scheme, parameters) = value.split_once(' ').unwrap_or((value, ""));
        let Some(algorithm) = SCHEMES.iter().position(|s| s.eq_ignore_ascii_case(scheme)) else {
            // One credential of another scheme is not for this filter, but two are a trick.
            return if values.next().is_some() { Err(()) } else { Ok(None) };
        };
        if values.next().is_some() || value.len() > MAX_HEADER {
            return Err(());
        }
        let (mut key_id, mut timestamp, mut nonce, mut names, mut mac) = (None, None, None, None, None);
        for parameter in parameters.split(',') {
            let (name, value) = parameter.trim_ascii().split_once('=').ok_or(())?;
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            let place = match name {
                "key_id" => &mut key_id,
                "timestamp" => &mut timestamp,
                "nonce" => &mut nonce,
                "headers" => &mut names,
                "signature" => &mut mac,
                _ => return Err(()),
            };
            if place.replace(value).is_some() {
                return Err(());
            }
        }
        let nonce = nonce.unwrap_or_default();
        if nonce.len() > MAX_NONCE || !nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(());
        }
        let listed = names.unwrap_or_default().split(';').filter(|n| !n.is_empty());
        let headers: Vec<_> = listed.map(|n| HeaderName::from_bytes(n.as_bytes()).map_err(|_| ())).collect::<Result<_, _>>()?;
        if headers.len() > MAX_HEADERS || headers.contains(&header::AUTHORIZATION) {
            return Err(());
        }
        Ok(Some(Self {
            algorithm,
            key_id: key_id.filter(|id| !id.is_empty()).ok_or(())?.to_string(),
            timestamp: timestamp.and_then(|t| t.parse().ok()).ok_or(())?,
            nonce: nonce.to_string(),
            headers,
            mac: STANDARD.decode(mac.ok_or(())?).map_err(|_| ())?,
        }))
    }
    /// The scheme's name.
    pub fn scheme(&self) -> &'static str {
        SCHEMES.get(self.algorithm).copied().unwrap_or_default()
    }
    /// What is signed, line by line: scheme, time, nonce, method, host, path, sorted query, each header that is covered, digest of the body
    /// (or UNSIGNED).
    pub fn canonical(&self, request: &RequestHead, body: Option<&[u8]>) -> Vec<u8> {
        let mut text = [
            self.scheme(),
            &self.timestamp.to_string(),
            &self.nonce,
            request.method.as_str(),
            &request.authority.as_str().to_ascii_lowercase(),
            request.path_only(),
            &sorted_query(request.query().unwrap_or_default(), ""),
            "",
        ]
        .join("\n")
        .into_bytes();
        for name in &self.headers {
            // A header that is not there is signed as empty, so that nobody can add it.
            let value = joined(&request.headers, name).unwrap_or_default();
            text.extend_from_slice(name.as_str().as_bytes());
            text.push(b':');
            text.extend_from_slice(value.trim_ascii());
            text.push(b'\n');
        }
        match (body, DIGESTS.get(self.algorithm)) {
            (Some(body), Some(algorithm)) => text.extend_from_slice(hex(digest::digest(algorithm, body).as_ref()).as_bytes()),
            _ => text.extend_from_slice(b"UNSIGNED"),
        }
        text
    }
}
