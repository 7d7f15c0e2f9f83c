//! What hmac_auth and signed_url have in common: keys by their names, and the canonical form of what is signed. Workers.

use crate::secret::{Made, Secret};
use aws_lc_rs::hmac;
use nuncio_core::diag::{At, Report};
use nuncio_proto::nuncio::common::v1 as common;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Bytes of a key's name.
const MAX_ID: usize = 128;

/// Live keys by name, each for every hash function.
pub type Keys = HashMap<Arc<str>, [hmac::Key; 3], foldhash::fast::RandomState>;

/// The hash functions, in the order of a key's forms.
pub const HASHES: [hmac::Algorithm; 3] = [hmac::HMAC_SHA256, hmac::HMAC_SHA384, hmac::HMAC_SHA512];

/// Compiles keys: unique names that are not empty, each with a secret. Keys whose secret has not arrived are not there.
pub fn keys<'a>(
    list: impl ExactSizeIterator<Item = (&'a str, Option<&'a common::Secret>)>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Arc<Made<Keys>>> {
    if list.len() == 0 {
        report.error(at, "no key", "give at least one");
        return None;
    }
    let mut all: Vec<(Arc<str>, Secret)> = Vec::new();
    for (i, (id, secret)) in list.enumerate() {
        let at = at.index(i);
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b'&' | b'=' | b'%' | b'+' | b'#');
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(plain) || all.iter().any(|(known, _)| **known == *id) {
            report.error(
                &at.field("id"),
                format!("\"{}\"", id.escape_default()),
                "give every key its own name of visible ASCII without \" , & = % + #",
            );
            return None;
        }
        all.push((id.into(), Secret::compile(secret, &at.field("secret"), report)?));
    }
    Some(Arc::new(Made::new(move || {
        let live = all.iter().filter_map(|(id, secret)| Some((id.clone(), secret.get()?)));
        live.map(|(id, secret)| (id, HASHES.map(|hash| hmac::Key::new(hash, &secret)))).collect()
    })))
}

/// The parameters of `query` in the order of their bytes, without those called `without`; as they were sent.
pub fn sorted_query(query: &str, without: &str) -> String {
    let mut pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && name_of(pair) != without).collect();
    pairs.sort_unstable();
    pairs.join("&")
}

/// The name of a parameter, as it was sent.
pub fn name_of(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

/// The one value of parameter `name`; an error if there are several, because others might read another one.
pub fn only<'a>(query: &'a str, name: &str) -> Result<Option<&'a str>, ()> {
    let mut values = query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(n, _)| *n == name).map(|(_, v)| v);
    let first = values.next();
    if values.next().is_some() { Err(()) } else { Ok(first) }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut all, b| {
        // Writing to a String cannot fail.
        let _written = write!(all, "{b:02x}");
        all
    })
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
