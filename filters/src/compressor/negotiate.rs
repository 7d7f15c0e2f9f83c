//! Which encoding the client gets: one decision for all compressors of a chain.

use super::Inner;
use nuncio_core::filter_state::{FilterState, StateObject};
use std::any::Any;
use std::sync::Arc;

const KEY: &str = "envoy.filters.http.compressor";

/// The compressors of a chain that a request passed, in their order.
#[derive(Clone, Default)]
pub struct Registry(Vec<Arc<Inner>>);

impl StateObject for Registry {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Registry {
    /// Adds a compressor to those of the stream.
    pub fn add(state: &mut FilterState, inner: &Arc<Inner>) {
        let mut registry = state.get_as::<Self>(KEY).cloned().unwrap_or_default();
        registry.0.push(inner.clone());
        state.set(KEY, Arc::new(registry));
    }
    /// The compressors of the stream.
    pub fn of(state: &FilterState) -> &[Arc<Inner>] {
        state.get_as::<Self>(KEY).map_or(&[], |r| &r.0)
    }
}

/// A decision.
#[derive(Debug, PartialEq)]
pub enum Decision<'a> {
    /// `Accept-Encoding` names nothing that can be had.
    NotValid,
    Identity,
    /// Anything goes: the first compressor.
    Wildcard(&'a [u8]),
    Compressor(&'a [u8]),
}

/// Chooses by the client's preference (q); among equals the first that it names, or the first of the chain if `choose_first`.
pub fn choose<'a>(accept: &[u8], usable: impl Iterator<Item = &'a [u8]>, choose_first: bool) -> Decision<'a> {
    let mut allowed: Vec<&[u8]> = Vec::new();
    for encoding in usable {
        if !allowed.contains(&encoding) {
            allowed.push(encoding);
        }
    }
    let accept = std::str::from_utf8(accept).unwrap_or_default();
    let mut pairs = Vec::new();
    for token in accept.split(',').filter(|t| !t.is_empty()) {
        let (name, parameters) = token.split_once(';').unwrap_or((token, ""));
        let (name, mut q) = (name.trim(), 1.0_f32);
        if let Some((key, value)) = parameters.split_once('=')
            && key.trim().eq_ignore_ascii_case("q")
        {
            match value.trim().parse::<f32>() {
                Ok(value) if value.is_finite() => q = value,
                _ => continue,
            }
        }
        if q == 0.0 {
            allowed.retain(|e| *e != name.as_bytes());
        }
        pairs.push((name, q));
    }
    if allowed.is_empty() {
        return Decision::NotValid;
    }
    let place = |name: &str| allowed.iter().position(|e| *e == name.as_bytes());
    let mut best: Option<(&str, f32)> = None;
    for (name, q) in pairs.into_iter().filter(|(name, q)| *q > 0.0 && (place(name).is_some() || matches!(*name, "identity" | "*"))) {
        let better = match best {
            None => true,
            Some((_, best)) if q > best => true,
            Some((chosen, best)) if choose_first && q == best => matches!((place(name), place(chosen)), (Some(a), Some(b)) if a < b),
            Some(_) => false,
        };
        if better {
            best = Some((name, q));
        }
    }
    match best {
        None => Decision::NotValid,
        Some(("identity", _)) => Decision::Identity,
        Some(("*", _)) => allowed.first().map_or(Decision::NotValid, |e| Decision::Wildcard(e)),
        Some((name, _)) => place(name).and_then(|i| allowed.get(i)).map_or(Decision::NotValid, |e| Decision::Compressor(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(accept: &str, first: bool) -> Decision<'static> {
        choose(accept.as_bytes(), [b"br".as_slice(), b"zstd", b"gzip", b"gzip"].into_iter(), first)
    }

    #[test]
    fn preferences() {
        let with = |e: &'static str| Decision::Compressor(e.as_bytes());
        for (accept, decision) in [
            ("gzip", with("gzip")),
            ("gzip, br", with("gzip")),
            ("gzip;q=0.5, br;q=0.8", with("br")),
            ("deflate, gzip;q=.1", with("gzip")),
            ("identity, gzip;q=0.9", Decision::Identity),
            ("*", Decision::Wildcard(b"br")),
            ("br;q=0, *", Decision::Wildcard(b"zstd")),
            ("br;q=0, zstd;q=0, gzip;q=0, *", Decision::NotValid),
            ("deflate", Decision::NotValid),
            ("gzip;q=x", Decision::NotValid),
            ("gzip;q=0", Decision::NotValid),
            ("", Decision::NotValid),
            (" GZIP ;q=1", Decision::NotValid),
        ] {
            assert_eq!(of(accept, false), decision, "{accept}");
        }
        assert_eq!(of("gzip, br", true), with("br"));
        assert_eq!(of("gzip, br;q=0.9", true), with("gzip"));
    }

    proptest! {
        #[test]
        fn hostile_headers(accept in "[ -~]{0,60}") {
            let _ = of(&accept, true);
        }
    }
}
