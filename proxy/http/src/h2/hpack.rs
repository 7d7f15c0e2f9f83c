//! Reads along in received header blocks for what the `h2` library takes out before it shows a head: pseudo-headers among trailers, and
//! fragments of `:path`. Follows the dynamic table by sizes and kinds only and decodes no text, so that it costs little beside the
//! library's own decoder. Called by the guard of one connection, on its worker. Source: RFC 7541.

use std::collections::VecDeque;

/// What an entry or a field is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Field,
    /// What no message of HTTP/2 may have: `connection`, `transfer-encoding`, `upgrade`, `keep-alive`, `proxy-connection`.
    Banned,
    Te,
    Authority,
    Method,
    Path,
    Scheme,
    Protocol,
    Status,
    /// Another name with a colon, which the library refuses.
    Unknown,
}

/// An entry of the dynamic table: what it is, and lengths in bytes after decoding.
#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    /// Of its value: a `:path` with a `#`, a `:status` of 1xx, a `te` that is not `trailers`.
    odd: bool,
    /// Its name or value is longer on the wire than a peer may send.
    too_long: bool,
    name: u32,
    value: u32,
}

impl Entry {
    /// RFC 7541, section 4.1.
    fn size(&self) -> usize {
        self.name as usize + self.value as usize + 32
    }
}

/// What is in a header block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// A pseudo-header of any name.
    pub pseudo: bool,
    /// A pseudo-header of requests.
    pub request: bool,
    /// A `:path` with a `#`.
    pub fragment: bool,
    /// A `:status` of 1xx.
    pub informational: bool,
    /// A pseudo-header that comes twice or after other fields, or a field that HTTP/2 forbids. The library sees that too, but forgets
    /// it when the frame that has it ends within the next field.
    pub malformed: bool,
    /// A name or a value that is longer than allowed.
    pub too_long: bool,
}

/// The block does not decode: the library ends the connection for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecodable;

/// Names of the static table (RFC 7541, appendix A).
#[rustfmt::skip]
const STATIC: [&str; 61] = [
    ":authority", ":method", ":method", ":path", ":path", ":scheme", ":scheme", ":status", ":status", ":status", ":status", ":status",
    ":status", ":status", "accept-charset", "accept-encoding", "accept-language", "accept-ranges", "accept", "access-control-allow-origin",
    "age", "allow", "authorization", "cache-control", "content-disposition", "content-encoding", "content-language", "content-length",
    "content-location", "content-range", "content-type", "cookie", "date", "etag", "expect", "expires", "from", "host", "if-match",
    "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified", "link", "location", "max-forwards",
    "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh", "retry-after", "server", "set-cookie",
    "strict-transport-security", "transfer-encoding", "user-agent", "vary", "via", "www-authenticate",
];
/// So many entries of [`STATIC`] are pseudo-headers.
const PSEUDO: usize = 14;
/// Where in [`STATIC`] the one field is that HTTP/2 forbids.
const TRANSFER_ENCODING: usize = 56;

/// Bits of the Huffman codes that begin with this byte, if that settles it; 0: longer than 8 bits (RFC 7541, appendix B).
const SHORT: [u8; 256] = {
    let mut lengths = [0; 256];
    let mut top = 0;
    while top < 256 {
        lengths[top] = match top {
            0..0x50 => 5,
            0x50..0xb8 => 6,
            0xb8..0xf8 => 7,
            0xf8..0xfe => 8,
            _ => 0,
        };
        top += 1;
    }
    lengths
};

/// Longer codes: below this (aligned to the left), so many bits. Codes grow with their length, so that the first match is right.
const LONG: [(u32, u32); 17] = [
    (0xff40_0000, 10),
    (0xffa0_0000, 11),
    (0xffc0_0000, 12),
    (0xfff0_0000, 13),
    (0xfff8_0000, 14),
    (0xfffe_0000, 15),
    (0xfffe_6000, 19),
    (0xfffe_e000, 20),
    (0xffff_4800, 21),
    (0xffff_b000, 22),
    (0xffff_ea00, 23),
    (0xffff_f600, 24),
    (0xffff_f800, 25),
    (0xffff_fbc0, 26),
    (0xffff_fe20, 27),
    (0xffff_fff0, 28),
    (0xffff_ffff, 30),
];
/// `#`, 12 bits.
const HASH: u32 = 0xffa;

/// Follows one direction of one connection.
#[derive(Debug)]
pub struct Watch {
    entries: VecDeque<Entry>,
    size: usize,
    /// As the peer set it; the library checks it against our SETTINGS.
    max_size: usize,
    max_text: usize,
}

impl Watch {
    /// `max_text`: the most bytes that a name or a value may have in the block.
    pub fn new(max_text: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, max_size: 4096, max_text }
    }

    /// Reads one whole header block.
    pub fn block(&mut self, mut block: &[u8]) -> Result<Summary, Undecodable> {
        let mut summary = Summary::default();
        let mut seen = 0_u16;
        let mut fields = false;
        while let Some(first) = block.first().copied() {
            let Entry { kind, odd, too_long, .. } = match first {
                0x80.. => self.at(integer(&mut block, 7)?)?,
                0x40.. => {
                    let entry = self.literal(&mut block, 6)?;
                    self.insert(entry);
                    entry
                }
                0x20.. => {
                    self.max_size = integer(&mut block, 5)?;
                    self.evict(self.max_size);
                    continue;
                }
                _ => self.literal(&mut block, 4)?,
            };
            summary.too_long |= too_long;
            match kind {
                Kind::Field => fields = true,
                Kind::Banned => summary.malformed = true,
                Kind::Te => {
                    fields = true;
                    summary.malformed |= odd;
                }
                pseudo => {
                    let bit = 1 << pseudo as u16;
                    summary.malformed |= fields || seen & bit != 0;
                    seen |= bit;
                    summary.pseudo = true;
                    summary.request |= pseudo != Kind::Status;
                    summary.fragment |= odd && pseudo == Kind::Path;
                    summary.informational |= odd && pseudo == Kind::Status;
                }
            }
        }
        Ok(summary)
    }

    fn at(&self, index: usize) -> Result<Entry, Undecodable> {
        let Some(at) = index.checked_sub(1) else { return Err(Undecodable) };
        match STATIC.get(at) {
            // The values of the static table are of no interest here, and never enter the dynamic one.
            Some(name) => {
                let kind = if at < PSEUDO || at == TRANSFER_ENCODING { plain(name.as_bytes()) } else { Kind::Field };
                Ok(Entry { kind, odd: false, too_long: false, name: u32::try_from(name.len()).unwrap_or(0), value: 0 })
            }
            None => self.entries.get(at - STATIC.len()).copied().ok_or(Undecodable),
        }
    }

    fn literal(&self, block: &mut &[u8], prefix: u8) -> Result<Entry, Undecodable> {
        let index = integer(block, prefix)?;
        let mut too_long = false;
        let (name, kind) = if index == 0 {
            let name = Text::read(block)?;
            too_long |= name.bytes.len() > self.max_text;
            let kind = if name.huffman { coded(name.bytes) } else { plain(name.bytes) };
            (name.len(), kind)
        } else {
            let entry = self.at(index)?;
            (entry.name, entry.kind)
        };
        let value = Text::read(block)?;
        too_long |= value.bytes.len() > self.max_text;
        let odd = match kind {
            Kind::Path => value.has_hash(),
            Kind::Status => value.begins_with_1(),
            Kind::Te => value.bytes != if value.huffman { b"\x4d\x83\x35\x05\xb1\x1f" } else { &b"trailers"[..] },
            _ => false,
        };
        // The length counts only for what enters the table.
        Ok(Entry { kind, odd, too_long, name, value: if prefix == 6 { value.len() } else { 0 } })
    }

    fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.evict(self.max_size.saturating_sub(size));
        if size <= self.max_size {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    fn evict(&mut self, most: usize) {
        while self.size > most {
            let Some(last) = self.entries.pop_back() else { break };
            self.size -= last.size();
        }
    }
}

/// What a field of this name is.
fn plain(name: &[u8]) -> Kind {
    match name {
        b"connection" | b"transfer-encoding" | b"upgrade" | b"keep-alive" | b"proxy-connection" => Kind::Banned,
        b"te" => Kind::Te,
        b":authority" => Kind::Authority,
        b":method" => Kind::Method,
        b":path" => Kind::Path,
        b":scheme" => Kind::Scheme,
        b":protocol" => Kind::Protocol,
        b":status" => Kind::Status,
        [b':', ..] => Kind::Unknown,
        _ => Kind::Field,
    }
}

/// As [`plain`], of a name in Huffman code. A text has one coding: the library refuses other padding.
fn coded(name: &[u8]) -> Kind {
    match name {
        b"\x21\xea\xa8\xa4\x49\x8f\x57"
        | b"\x4d\x83\xa9\x12\x96\xc5\x8b\x51\x0f\x21\xaa\x9b"
        | b"\xb6\xb9\xac\x1c\x85"
        | b"\xea\x52\xd6\xb0\xe8\x37\x72\xff"
        | b"\xae\xc3\xf9\xf4\xb1\x0f\x55\x45\x22\x4c\x7a\xbf" => Kind::Banned,
        b"\x49\x7f" => Kind::Te,
        b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f" => Kind::Authority,
        b"\xb9\x49\x53\x39\xe4" => Kind::Method,
        b"\xb9\x58\xd3\x3f" => Kind::Path,
        b"\xb8\x82\x4e\x5a\x4b" => Kind::Scheme,
        b"\xb9\x5d\x87\x49\xc8\x7a\x3f" => Kind::Protocol,
        b"\xb8\x84\x8d\x36\xa3" => Kind::Status,
        // A colon is 1011100.
        [0xb8 | 0xb9, ..] => Kind::Unknown,
        _ => Kind::Field,
    }
}

/// A string as it stands in the block.
#[derive(Clone, Copy, Debug)]
struct Text<'a> {
    bytes: &'a [u8],
    huffman: bool,
}

impl<'a> Text<'a> {
    fn read(block: &mut &'a [u8]) -> Result<Self, Undecodable> {
        let huffman = block.first().is_some_and(|b| *b >= 0x80);
        let len = integer(block, 7)?;
        let (bytes, rest) = block.split_at_checked(len).ok_or(Undecodable)?;
        *block = rest;
        Ok(Self { bytes, huffman })
    }
    fn codes(self) -> Codes<'a> {
        Codes { bytes: self.bytes, window: 0, bits: 0 }
    }
    /// Bytes after decoding.
    fn len(self) -> u32 {
        let len = if self.huffman { self.codes().count() } else { self.bytes.len() };
        u32::try_from(len).unwrap_or(u32::MAX)
    }
    fn has_hash(self) -> bool {
        if self.huffman { self.codes().any(|code| code == (12, HASH)) } else { memchr::memchr(b'#', self.bytes).is_some() }
    }
    fn begins_with_1(self) -> bool {
        if self.huffman { self.codes().next() == Some((5, 1)) } else { self.bytes.first() == Some(&b'1') }
    }
}

/// The codes of a Huffman-coded string: their bits, and how many. Ends at the padding.
struct Codes<'a> {
    bytes: &'a [u8],
    /// Bits that were taken and not yet given, at the top.
    window: u64,
    bits: u32,
}

impl Iterator for Codes<'_> {
    type Item = (u32, u32);

    fn next(&mut self) -> Option<(u32, u32)> {
        // 30 bits are the longest code.
        while self.bits <= 32 {
            let Some((byte, rest)) = self.bytes.split_first() else { break };
            self.window |= u64::from(*byte) << (56 - self.bits);
            self.bits += 8;
            self.bytes = rest;
        }
        let top = u32::try_from(self.window >> 32).unwrap_or(0);
        let length = match SHORT.get((top >> 24) as usize) {
            Some(0) | None => LONG.iter().find(|(below, _)| top < *below).map_or(30, |(_, length)| *length),
            Some(length) => u32::from(*length),
        };
        // Padding is the beginning of the longest code, and shorter than any.
        if length > self.bits {
            return None;
        }
        self.window <<= length;
        self.bits -= length;
        Some((length, top >> (32 - length)))
    }
}

/// An integer with a prefix of that many bits (RFC 7541, section 5.1); as the library, of five bytes at most.
fn integer(block: &mut &[u8], prefix: u8) -> Result<usize, Undecodable> {
    let (first, mut rest) = block.split_first().ok_or(Undecodable)?;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        for shift in [0, 7, 14, 21] {
            let (byte, after) = rest.split_first().ok_or(Undecodable)?;
            rest = after;
            value += usize::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                *block = rest;
                return Ok(value);
            }
        }
        return Err(Undecodable);
    }
    *block = rest;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(blocks: &[&[u8]]) -> Result<Summary, Undecodable> {
        let mut watch = Watch::new(65536);
        let mut last = Ok(Summary::default());
        for block in blocks {
            last = watch.block(block);
        }
        last
    }

    #[test]
    fn strings_of_the_specification_have_their_lengths() {
        // RFC 7541, appendix C: www.example.com, no-cache, custom-key, custom-value, Mon, 21 Oct 2013 20:13:21 GMT, a cookie.
        for (coded, len) in [
            (&b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..], 15),
            (b"\xa8\xeb\x10\x64\x9c\xbf", 8),
            (b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f", 10),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", 12),
            (b"\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff", 29),
            (
                b"\x94\xe7\x82\x1d\xd7\xf2\xe6\xc7\xb3\x35\xdf\xdf\xcd\x5b\x39\x60\xd5\xaf\x27\x08\x7f\x36\x72\xc1\xab\x27\x0f\xb5\x29\x1f\x95\x87\x31\x60\x65\xc0\x03\xed\x4e\xe5\xb1\x06\x3d\x50\x07",
                56,
            ),
            (b"", 0),
        ] {
            assert_eq!(Text { bytes: coded, huffman: true }.len(), len);
        }
    }

    #[test]
    fn pseudo_headers_show_in_every_form() {
        let yes: &[&[u8]] = &[
            b"\x84",                          // :path /
            b"\x04\x02/x",                    // name of the static table
            b"\x00\x05:path\x01/",            // by name
            b"\x00\x84\xb9\x58\xd3\x3f\x01/", // by name, Huffman
            b"\x00\x05:what\x01x",
            b"\x10\x07:method\x03GET", // never indexed
            b"\x40\x05:path\x01/",     // indexed
        ];
        for block in yes {
            assert!(watch(&[block]).unwrap().pseudo, "{block:x?}");
        }
        for block in [&b"\x00\x04path\x01/"[..], b"\x00\x83\xac\x69\x9f\x01/", b"\x0f\x0d\x010", b"\x90"] {
            assert!(!watch(&[block]).unwrap().pseudo, "{block:x?}");
        }
        // From the dynamic table, after others were inserted.
        let s = watch(&[b"\x44\x02/x", b"\x40\x01a\x01b", b"\xbf"]).unwrap();
        assert!(s.pseudo && !s.fragment);
        assert!(!watch(&[b"\x44\x02/x", b"\x40\x01a\x01b", b"\xbe"]).unwrap().pseudo);
        // A name of the dynamic table.
        assert!(watch(&[b"\x44\x02/x", b"\x7e\x02/y"]).unwrap().pseudo);
    }

    #[test]
    fn what_no_head_may_have_shows() {
        let te = b"\x00\x82\x49\x7f\x86\x4d\x83\x35\x05\xb1\x1f";
        for block in [&b"\x82\x84\x86"[..], b"\x82\x40\x01a\x01b", b"\x00\x02te\x08trailers", te] {
            assert!(!watch(&[block]).unwrap().malformed, "{block:x?}");
        }
        for block in [
            &b"\x82\x83"[..],
            b"\x84\x84",
            b"\x40\x01a\x01b\x82",
            b"\x00\x0aconnection\x01x",
            b"\x00\x87\x21\xea\xa8\xa4\x49\x8f\x57\x01x",
            b"\xb9",
            b"\x0f\x2a\x01x",
            b"\x00\x02te\x04gzip",
            b"\x00\x82\x49\x7f\x04gzip",
        ] {
            assert!(watch(&[block]).unwrap().malformed, "{block:x?}");
        }
        assert!(watch(&[b"\x40\x02te\x04gzip", b"\xbe"]).unwrap().malformed);
        assert!(!watch(&[b"\x40\x02te\x04gzip", b"\x7e\x08trailers"]).unwrap().malformed);
    }

    #[test]
    fn fragments_show_in_every_form() {
        let huffman = b"\x04\x83\x63\xfe\xbf"; // "/#"
        for block in [&b"\x04\x03/#x"[..], b"\x44\x02/#", b"\x00\x05:path\x02/#", huffman] {
            assert!(watch(&[block]).unwrap().fragment, "{block:x?}");
        }
        assert!(watch(&[b"\x44\x03/#x", b"\x40\x01a\x01b", b"\xbf"]).unwrap().fragment);
        assert!(!watch(&[b"\x44\x03/#x", b"\x7e\x02/y"]).unwrap().fragment, "a name takes no fragment along");
        assert!(!watch(&[b"\x04\x02/x\x00\x01a\x01#"]).unwrap().fragment);
        assert!(!watch(&[b"\x04\x82\x63\xcf"]).unwrap().fragment);
    }

    #[test]
    fn interim_answers_show() {
        for (block, informational) in [
            (&b"\x88"[..], false),
            (b"\x08\x03103", true),
            (b"\x08\x82\x08\x19", true),
            (b"\x48\x03100", true),
            (b"\x08\x03200", false),
            (b"\x08\x82\x10\x01", false),
        ] {
            assert_eq!(watch(&[block]).unwrap().informational, informational, "{block:x?}");
        }
        assert!(watch(&[b"\x48\x03100", b"\xbe"]).unwrap().informational);
    }

    #[test]
    fn the_table_loses_what_does_not_fit() {
        let mut watch = Watch::new(65536);
        watch.block(b"\x44\x02/#").unwrap();
        // 39 bytes for the path; another field of 4000 leaves room for 96.
        let mut big = b"\x40\x01a\x7f".to_vec();
        let more = 4000_usize - 33 - 127;
        big.extend([0x80 | u8::try_from(more & 0x7f).unwrap(), u8::try_from(more >> 7).unwrap()]);
        big.extend(vec![b'x'; 4000 - 33]);
        watch.block(&big).unwrap();
        assert!(watch.block(b"\xbf").unwrap().fragment);
        watch.block(b"\x40\x01b\x18xxxxxxxxxxxxxxxxxxxxxxxx").unwrap();
        assert_eq!(watch.entries.len(), 3, "57 more are just enough: 39 + 4000 + 57 = 4096");
        watch.block(b"\x40\x01c\x01d").unwrap();
        assert_eq!(watch.entries.len(), 3, "and the path is gone");
        assert!(watch.entries.iter().all(|e| e.kind != Kind::Path));
        watch.block(b"\x20").unwrap();
        assert!(watch.entries.is_empty() && watch.size == 0);
        assert_eq!(watch.block(b"\xbe"), Err(Undecodable));
        watch.block(b"\x40\x01c\x01d").unwrap();
        assert!(watch.entries.is_empty(), "nothing fits a table of no size");
    }

    #[test]
    fn long_texts_show() {
        let block = |name: usize, value: usize| {
            let mut block = vec![0];
            for len in [name, value] {
                block.push(u8::try_from(len).unwrap());
                block.extend(vec![b'x'; len]);
            }
            Watch::new(100).block(&block).unwrap().too_long
        };
        assert_eq!([block(100, 100), block(101, 1), block(1, 101)], [false, true, true]);
    }

    #[test]
    fn broken_blocks_are_told() {
        for block in [&b"\x80"[..], b"\xff", b"\xff\xff\xff\xff\xff\xff", b"\x00", b"\x00\x05a", b"\x04\x05ab", b"\xbe", b"\x7f"] {
            assert_eq!(watch(&[block]), Err(Undecodable), "{block:x?}");
        }
    }
}
