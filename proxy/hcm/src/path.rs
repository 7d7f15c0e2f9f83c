//! Path normalisation of the connection manager: escaped slashes, RFC 3986 dot segments, merged slashes.
//! Called once per request on a worker; a path that needs nothing costs one scan and no allocation.
//! Source: HttpConnectionManager.normalize_path, merge_slashes, path_with_escaped_slashes_action.

use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::PathWithEscapedSlashesAction as Escaped;

/// What is done to paths.
#[derive(Clone, Copy, Debug)]
pub struct PathPolicy {
    pub normalize: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: Escaped,
}

/// Outcome of [`PathPolicy::apply`].
#[derive(Debug, PartialEq, Eq)]
pub enum Normalized {
    /// The path stays as it is.
    Same,
    /// The path to use instead.
    Changed(String),
    /// Refuse with 400 `path_normalization_failed`; logs show this path.
    Reject(Option<String>),
    /// Redirect with 307 to this path.
    Redirect(String),
}

impl PathPolicy {
    /// Applies the policy to `path` (with query). Only the part before `?` and `#` is looked at.
    pub fn apply(&self, path: &str) -> Normalized {
        if !path.starts_with('/') {
            return Normalized::Same;
        }
        let split = path.find(['?', '#']).unwrap_or(path.len());
        let (only, rest) = path.split_at(split);
        let mut redirect = false;
        let mut current = std::borrow::Cow::Borrowed(only);
        if self.escaped_slashes != Escaped::KeepUnchanged
            && self.escaped_slashes != Escaped::ImplementationSpecificDefault
            && has_escaped_slash(only)
        {
            match self.escaped_slashes {
                Escaped::RejectRequest => return Normalized::Reject(Some(unescape_slashes(only) + rest)),
                Escaped::UnescapeAndRedirect => redirect = true,
                _ => {}
            }
            current = unescape_slashes(only).into();
        }
        if self.normalize && needs_canonical(&current) {
            match canonical(&current) {
                Some(path) => current = path.into(),
                None => return Normalized::Reject(None),
            }
        }
        if self.merge_slashes && current.contains("//") {
            current = merge(&current).into();
        }
        match current {
            _ if redirect => Normalized::Redirect(format!("{current}{rest}")),
            std::borrow::Cow::Borrowed(_) => Normalized::Same,
            std::borrow::Cow::Owned(path) if path == only => Normalized::Same,
            std::borrow::Cow::Owned(path) => Normalized::Changed(path + rest),
        }
    }
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(|w| w[0] == b'%' && is_slash_code(w[1], w[2]))
}

fn is_slash_code(high: u8, low: u8) -> bool {
    (high == b'2' && low.eq_ignore_ascii_case(&b'f')) || (high == b'5' && low.eq_ignore_ascii_case(&b'c'))
}

fn unescape_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        match rest.as_bytes().get(at + 1..at + 3) {
            Some(&[high, low]) if is_slash_code(high, low) => {
                out.push(if high == b'2' { '/' } else { '\\' });
                rest = &rest[at + 3..];
            }
            _ => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn merge(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut last = ' ';
    for c in path.chars() {
        if c != '/' || last != '/' {
            out.push(c);
        }
        last = c;
    }
    out
}

/// Whether the canonical form can differ: dots after slashes, escapes, backslashes or characters that must be escaped.
fn needs_canonical(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.iter().any(|b| matches!(b, b'%' | b'\\' | b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'|' | b'^') || *b <= b' ' || *b >= 0x7f)
        || bytes.windows(2).any(|w| w == b"/.")
}

/// The canonical path as the URL standard has it and Envoy's canonicaliser does: backslash is slash, unreserved characters
/// are unescaped, unsafe ones escaped, dot segments resolved, broken escapes kept. What is unescaped never completes a broken escape:
/// servers behind us would take `%2e%2e` for a way up. None for an escaped NUL.
fn canonical(path: &str) -> Option<String> {
    let mut flat: Vec<u8> = Vec::with_capacity(path.len());
    let bytes = path.as_bytes();
    // Percent signs of broken escapes, by their place in `flat`.
    let mut loose: Vec<usize> = Vec::new();
    let mut i = 0;
    while let Some(&b) = bytes.get(i) {
        match b {
            b'%' => {
                let code = bytes.get(i + 1..).and_then(escaped);
                match code {
                    Some(0) => return None,
                    Some(c) if c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~') => flat.push(c),
                    Some(_) => flat.extend_from_slice(bytes.get(i..i + 3).unwrap_or_default()),
                    None => {
                        loose.push(flat.len());
                        flat.push(b);
                    }
                }
                i += if code.is_some() { 2 } else { 0 };
            }
            b'\\' => flat.push(b'/'),
            b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'|' | b'^' | b' ' => escape(b, &mut flat),
            _ if !(b' '..0x7f).contains(&b) => escape(b, &mut flat),
            _ => flat.push(b),
        }
        i += 1;
    }
    for at in loose.into_iter().rev() {
        if flat.get(at + 1..).and_then(escaped).is_some() {
            flat.splice(at + 1..at + 1, *b"25");
        }
    }
    let mut out: Vec<&[u8]> = Vec::new();
    let mut segments = flat.split(|b| *b == b'/').skip(1).peekable();
    let mut directory = false;
    while let Some(segment) = segments.next() {
        directory = false;
        match segment {
            b"." => directory = true,
            b".." => {
                out.pop();
                directory = true;
            }
            _ => out.push(segment),
        }
        if segments.peek().is_none() && directory {
            out.push(b"");
        }
    }
    let mut text = String::with_capacity(flat.len());
    for segment in out {
        text.push('/');
        text.push_str(std::str::from_utf8(segment).ok()?);
    }
    if text.is_empty() {
        text.push('/');
    }
    let _ = directory;
    Some(text)
}

/// The byte that the two hexadecimal digits at the start of `digits` stand for.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| digits.get(at).and_then(|b| char::from(*b).to_digit(16)).and_then(|n| u8::try_from(n).ok());
    Some(digit(0)? << 4 | digit(1)?)
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push(b'%');
    out.extend([byte >> 4, byte & 15].iter().filter_map(|n| HEX.get(usize::from(*n))));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: PathPolicy = PathPolicy { normalize: true, merge_slashes: true, escaped_slashes: Escaped::KeepUnchanged };

    fn changed(path: &str) -> Normalized {
        Normalized::Changed(path.to_string())
    }

    #[test]
    fn plain_paths_stay() {
        for path in ["/", "/a/b", "/a?x=/../y", "/a/b.c/d..e", "*", "/..a", "/a%2Fb"] {
            assert_eq!(ALL.apply(path), Normalized::Same, "{path}");
        }
    }

    #[test]
    fn dot_segments_resolve() {
        for (from, to) in [
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/../../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/%2e%2E/b", "/b"),
            ("/a\\..\\b", "/b"),
            ("/a//../b", "/a/b"),
            ("/%61?%61", "/a?%61"),
            ("/a//b?x", "/a/b?x"),
        ] {
            assert_eq!(ALL.apply(from), changed(to), "{from}");
        }
    }

    #[test]
    fn broken_escapes_stay_and_nul_is_refused() {
        for path in ["/%", "/%zz", "/a%0"] {
            assert_eq!(ALL.apply(path), Normalized::Same, "{path}");
        }
        assert_eq!(ALL.apply("/%00"), Normalized::Reject(None));
        assert_eq!(ALL.apply("/|^"), changed("/%7C%5E"));
    }

    #[test]
    fn escaped_slashes_follow_the_action() {
        let with = |escaped_slashes| PathPolicy { normalize: false, merge_slashes: false, escaped_slashes };
        assert_eq!(with(Escaped::KeepUnchanged).apply("/a%2fb"), Normalized::Same);
        assert_eq!(with(Escaped::RejectRequest).apply("/a%5Cb"), Normalized::Reject(Some("/a\\b".to_string())));
        assert_eq!(with(Escaped::UnescapeAndForward).apply("/a%2fb%5c?%2f"), changed("/a/b\\?%2f"));
        assert_eq!(with(Escaped::UnescapeAndRedirect).apply("/a%2Fb"), Normalized::Redirect("/a/b".to_string()));
    }

    /// As Envoy answers.
    #[test]
    fn what_is_unescaped_completes_no_broken_escape() {
        for (path, wanted) in [
            ("/a%2%46b", "/a%252Fb"),
            ("/a/%%32e%%32e/b", "/a/%252e%252e/b"),
            ("/%2%65%2%65/b", "/%252e%252e/b"),
            ("/a/%%32%46x", "/a/%252Fx"),
            ("/a/%%35%63b", "/a/%255cb"),
            ("/a/.%%32e/b", "/a/.%252e/b"),
            ("/%%41", "/%A"),
            ("/%%%32e", "/%%252e"),
            ("/%%30%30", "/%2500"),
        ] {
            assert_eq!(ALL.apply(path), changed_to(path, wanted), "{path}");
        }
        for path in ["/a/%+0", "/a/%+1", "/%%25", "/%g0", "/%2", "/b%3"] {
            assert_eq!(ALL.apply(path), Normalized::Same, "{path}");
        }
    }

    fn changed_to(path: &str, wanted: &str) -> Normalized {
        if path == wanted { Normalized::Same } else { Normalized::Changed(wanted.to_string()) }
    }

    proptest! {
        /// Whoever normalizes what we send finds nothing to do: no dot segment, escaped or not, no second reading.
        #[test]
        fn what_is_normalized_stays(path in "/([a-c./\\\\%]|%2[efEF]|%5[cC]|%4[1-3]|%3[0-9]|%6[0-9a-f]|[ \"ü]){0,12}", action in 1..=4i32) {
            let policy = PathPolicy { escaped_slashes: Escaped::try_from(action).unwrap(), ..ALL };
            let once = match policy.apply(&path) {
                Normalized::Same => path.clone(),
                Normalized::Changed(once) | Normalized::Redirect(once) => once,
                Normalized::Reject(_) => return Ok(()),
            };
            prop_assert_eq!(policy.apply(&once), Normalized::Same, "{} gave {}", path, once);
            prop_assert!(once.starts_with('/') && !once.contains("//"), "{} gave {}", path, once);
            let decoded = once.replace("%2e", ".").replace("%2E", ".");
            let keeps = action == Escaped::KeepUnchanged as i32;
            prop_assert!(!decoded.split('/').any(|s| s == "." || s == ".."), "{} gave {}", path, once);
            prop_assert!(keeps || !has_escaped_slash(&once), "{} gave {}", path, once);
        }
    }
}
