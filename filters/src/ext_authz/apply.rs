//! Applies what the service wants changed: request headers and query on the way in, response headers on the way out. On a worker.
//! Source: Envoy's `ext_authz.cc`, `Filter::onComplete` and `encodeHeaders`.

use super::verdict::{Pair, ResponseHeaders, Verdict};
use http::{HeaderName, HeaderValue, Method};
use nuncio_core::message::joined;
use nuncio_core::{ByteStr, HeaderKey, Headers, RequestHead};
use nuncio_route::{MutationRules, Permit};

/// The answer is not acceptable.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid;

/// How answers are checked.
#[derive(Debug, Default)]
pub struct Checks {
    /// `validate_mutations`: a wrong header fails the request; without it, it is left out.
    pub validate: bool,
    /// `decoder_header_mutation_rules`.
    pub rules: Option<MutationRules>,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Set,
    Add,
    AppendIfThere,
}

/// A header that can be written, if its name and value are valid.
pub fn parsed((name, value): &Pair) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_maybe_shared(value.clone()).ok()?))
}

impl Checks {
    /// Changes the request.
    pub fn apply(&self, verdict: &Verdict, head: &mut RequestHead) -> Result<(), Invalid> {
        for (list, how) in [(&verdict.set, How::Set), (&verdict.add, How::Add), (&verdict.append, How::AppendIfThere)] {
            for pair in list {
                self.change(pair, how, head)?;
            }
        }
        for name in &verdict.remove {
            self.remove(name, head)?;
        }
        if self.validate && verdict.response.all().any(|pair| parsed(pair).is_none()) {
            return Err(Invalid);
        }
        self.query(verdict, head)
    }

    fn change(&self, pair: &Pair, how: How, head: &mut RequestHead) -> Result<(), Invalid> {
        let key = HeaderKey::parse(&pair.0);
        let value = HeaderValue::from_maybe_shared(pair.1.clone());
        let (Some(key), Ok(value)) = (key, value) else {
            return if self.validate { Err(Invalid) } else { Ok(()) };
        };
        match self.rules.as_ref().map_or(Permit::Allowed, |r| r.set(key.as_str())) {
            Permit::Allowed => {}
            Permit::Ignored => return Ok(()),
            Permit::Failed => return Err(Invalid),
        }
        let HeaderKey::Name(name) = key else {
            pseudo(head, &key, &pair.1);
            return Ok(());
        };
        match how {
            // What is set comes last.
            How::Set => {
                head.headers.remove(&name);
                head.headers.append(name, value);
            }
            How::Add => head.headers.append(name, value),
            How::AppendIfThere => {
                if let Some(old) = joined(&head.headers, &name)
                    && let Ok(value) = HeaderValue::from_bytes(&[old.as_ref(), b",", value.as_bytes()].concat())
                {
                    head.headers.insert(name, value);
                }
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str, head: &mut RequestHead) -> Result<(), Invalid> {
        // What no request can have need not be removed, and a request needs its pseudo-headers.
        let Some(HeaderKey::Name(name)) = HeaderKey::parse(name) else { return Ok(()) };
        match self.rules.as_ref().map_or(Permit::Allowed, |r| r.remove(name.as_str())) {
            Permit::Allowed => head.headers.retain(|n, _| *n != name),
            Permit::Ignored => {}
            Permit::Failed => return Err(Invalid),
        }
        Ok(())
    }

    fn query(&self, verdict: &Verdict, head: &mut RequestHead) -> Result<(), Invalid> {
        if verdict.query_set.is_empty() && verdict.query_remove.is_empty() {
            return Ok(());
        }
        let path = head.path.as_str();
        let (path, fragment) = path.split_once('#').map_or((path, None), |(p, f)| (p, Some(f)));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let split = |pair: &str| pair.split_once('=').map_or((pair.to_string(), String::new()), |(k, v)| (k.to_string(), v.to_string()));
        let mut all: Vec<(String, String)> = query.split('&').filter(|p| !p.is_empty()).map(split).collect();
        for (key, value) in &verdict.query_set {
            if self.validate && !(is_encoded(key) && is_encoded(value)) {
                return Err(Invalid);
            }
            match all.iter().position(|(k, _)| k == key) {
                Some(first) => {
                    let mut seen = 0;
                    all.retain(|(k, _)| {
                        seen += 1;
                        k != key || seen == first + 1
                    });
                    if let Some(pair) = all.get_mut(first) {
                        pair.1.clone_from(value);
                    }
                }
                None => all.push((key.clone(), value.clone())),
            }
        }
        all.retain(|(key, _)| !verdict.query_remove.contains(key));
        // Envoy keeps parameters in a sorted map, each with its values in order.
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let mut text = path.to_string();
        for (i, (key, value)) in all.iter().enumerate() {
            text.push(if i == 0 { '?' } else { '&' });
            text.push_str(key);
            text.push('=');
            text.push_str(value);
        }
        if let Some(fragment) = fragment {
            text.push('#');
            text.push_str(fragment);
        }
        if text.bytes().all(|b| b > b' ' && b != 0x7f) {
            head.path = text.into();
        } else if self.validate {
            return Err(Invalid);
        }
        Ok(())
    }
}

/// Sets a pseudo-header; a value that it cannot have is left out.
fn pseudo(head: &mut RequestHead, key: &HeaderKey, value: &bytes::Bytes) {
    let Ok(text) = ByteStr::from_utf8(value.clone()) else { return };
    match key {
        HeaderKey::Path if text.as_str().starts_with('/') && !text.as_str().contains(' ') => head.path = text,
        HeaderKey::Authority if text.as_str().parse::<http::uri::Authority>().is_ok() => head.authority = text,
        HeaderKey::Scheme if matches!(text.as_str(), "http" | "https") => head.scheme = text,
        HeaderKey::Method => {
            if let Ok(method) = Method::from_bytes(text.as_bytes()) {
                head.method = method;
            }
        }
        _ => {}
    }
}

/// Whether text can stand in a query as it is: unreserved characters and percent escapes.
fn is_encoded(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [a, b, tail @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => tail,
            (b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'+', _) => after,
            _ => return false,
        };
    }
    true
}

/// Adds headers to a response. `limit`: most headers that it may have; true if some were left out.
pub fn respond(headers: &ResponseHeaders, to: &mut Headers, limit: Option<usize>) -> bool {
    let mut left_out = false;
    let mut room = |to: &Headers| {
        let room = limit.is_none_or(|limit| to.len() < limit);
        left_out |= !room;
        room
    };
    for (name, value) in headers.add.iter().filter_map(parsed) {
        if room(to) {
            to.append(name, value);
        }
    }
    for (name, value) in headers.set.iter().filter_map(parsed) {
        if to.contains(&name) || room(to) {
            to.insert(name, value);
        }
    }
    for (name, value) in headers.add_if_absent.iter().filter_map(parsed) {
        if !to.contains(&name) && room(to) {
            to.append(name, value);
        }
    }
    for (name, value) in headers.overwrite_if_exists.iter().filter_map(parsed) {
        if to.contains(&name) {
            to.insert(name, value);
        }
    }
    left_out
}
