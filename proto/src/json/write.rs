//! JSON text as C++ protobuf lays it out: one space per level, `{}` and `[]` for what is empty, its choice of escapes.

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes `text` in quotes, escaped as C++ protobuf does (`<`, `>` and invisible characters too, so that a browser is safe).
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut copied = 0;
    for (i, c) in text.char_indices() {
        if !escaped(c) {
            continue;
        }
        out.extend_from_slice(text.get(copied..i).unwrap_or_default().as_bytes());
        copied = i + c.len_utf8();
        match c {
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '"' => out.extend_from_slice(b"\\\""),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\\' => out.extend_from_slice(b"\\\\"),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(b"\\u");
                    out.extend([12, 8, 4, 0].map(|shift| HEX.get(usize::from(*unit >> shift & 15)).copied().unwrap_or(b'0')));
                }
            }
        }
    }
    out.extend_from_slice(text.get(copied..).unwrap_or_default().as_bytes());
    out.push(b'"');
}

fn escaped(c: char) -> bool {
    matches!(
        u32::from(c),
        0x00..=0x1f | 0x22 | 0x3c | 0x3e | 0x5c | 0x7f..=0x9f | 0xad | 0x600..=0x603 | 0x6dd | 0x70f | 0x17b4 | 0x17b5
            | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x2064 | 0x206a..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe0000..=0xe007f
    )
}

pub(crate) fn newline(out: &mut Vec<u8>, level: usize) {
    out.push(b'\n');
    out.resize(out.len() + level, b' ');
}

/// The outer objects and lists of a document whose inner values a [`super::Renderer`] writes.
#[derive(Debug, Default)]
pub struct Pretty {
    /// Closing bracket of each open container, and whether something is in it.
    open: Vec<(u8, bool)>,
}

impl Pretty {
    /// A document with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of open containers: [`super::Options::indent`] of a value that is written now.
    pub fn level(&self) -> usize {
        self.open.len()
    }

    /// Opens `{`.
    pub fn object(&mut self, out: &mut Vec<u8>) {
        out.push(b'{');
        self.open.push((b'}', false));
    }

    /// Opens `[`.
    pub fn list(&mut self, out: &mut Vec<u8>) {
        out.push(b'[');
        self.open.push((b']', false));
    }

    /// Starts the next element of a list; its value follows.
    pub fn item(&mut self, out: &mut Vec<u8>) {
        if let Some((_, filled)) = self.open.last_mut() {
            if *filled {
                out.push(b',');
            }
            *filled = true;
        }
        newline(out, self.open.len());
    }

    /// Starts the next field of an object; its value follows.
    pub fn key(&mut self, out: &mut Vec<u8>, name: &str) {
        self.item(out);
        write_string(out, name);
        out.extend_from_slice(b": ");
    }

    /// A field with a string.
    pub fn field(&mut self, out: &mut Vec<u8>, name: &str, value: &str) {
        self.key(out, name);
        write_string(out, value);
    }

    /// Closes the innermost container.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if let Some((close, filled)) = self.open.pop() {
            if filled {
                newline(out, self.open.len());
            }
            out.push(close);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let mut out = Vec::new();
        write_string(&mut out, "a\"\\\n<b>\u{7f}\u{2028}\u{e0001}é\u{1}");
        assert_eq!(String::from_utf8(out).unwrap(), "\"a\\\"\\\\\\n\\u003cb\\u003e\\u007f\\u2028\\udb40\\udc01é\\u0001\"");
    }

    #[test]
    fn layout() {
        let (mut p, mut out) = (Pretty::new(), Vec::new());
        p.object(&mut out);
        p.key(&mut out, "configs");
        p.list(&mut out);
        p.item(&mut out);
        p.object(&mut out);
        p.field(&mut out, "a", "b");
        p.end(&mut out);
        p.end(&mut out);
        p.key(&mut out, "none");
        p.list(&mut out);
        p.end(&mut out);
        p.end(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "{\n \"configs\": [\n  {\n   \"a\": \"b\"\n  }\n ],\n \"none\": []\n}");
    }
}
