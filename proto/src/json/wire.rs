//! The protobuf wire format, read without a schema and written by hand. Nothing here trusts a length.

/// One field's value as it lies on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Len(&'a [u8]),
}

/// A field as it lies on the wire. `start..end` is the value's place in the buffer (without tag; without length prefix).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    pub number: u32,
    pub raw: Raw<'a>,
    pub start: usize,
    pub end: usize,
}

/// The bytes end early, or are no protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Fields of a message one after the other; groups are skipped. Ends after the first error.
pub(crate) struct Fields<'a> {
    data: &'a [u8],
    pos: usize,
}

/// Nesting of groups that is skipped; nothing that Envoy sends has groups at all.
const GROUP_DEPTH: usize = 32;

impl<'a> Fields<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, pos: 0 }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let end = self.pos.checked_add(n).ok_or(Malformed)?;
        let bytes = self.data.get(self.pos..end).ok_or(Malformed)?;
        self.pos = end;
        Ok(bytes)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let (value, used) = varint(self.data.get(self.pos..).unwrap_or_default()).ok_or(Malformed)?;
        self.pos += used;
        Ok(value)
    }

    fn one(&mut self) -> Result<Option<Field<'a>>, Malformed> {
        let mut groups: usize = 0;
        while self.pos < self.data.len() {
            let tag = self.varint()?;
            let number = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
            if number == 0 {
                return Err(Malformed);
            }
            let mut start = self.pos;
            let raw = match tag & 7 {
                0 => Raw::Varint(self.varint()?),
                1 => Raw::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Malformed)?)),
                2 => {
                    let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                    start = self.pos;
                    Raw::Len(self.take(len)?)
                }
                3 if groups < GROUP_DEPTH => {
                    groups += 1;
                    continue;
                }
                4 if groups > 0 => {
                    groups -= 1;
                    continue;
                }
                5 => Raw::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Malformed)?)),
                _ => return Err(Malformed),
            };
            if groups == 0 {
                return Ok(Some(Field { number, raw, start, end: self.pos }));
            }
        }
        if groups > 0 { Err(Malformed) } else { Ok(None) }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;
    fn next(&mut self) -> Option<Self::Item> {
        let one = self.one();
        if one.is_err() {
            self.pos = self.data.len();
        }
        one.transpose()
    }
}

/// The varint at the start of `data`, and how many bytes it takes.
pub(crate) fn varint(data: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, &byte) in data.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some((value, i + 1));
        }
    }
    None
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

pub(crate) fn put_len(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let mut out = Vec::new();
        put_tag(&mut out, 5, 0);
        put_varint(&mut out, u64::MAX);
        put_len(&mut out, 70000, b"abc");
        let all: Vec<_> = Fields::new(&out).map(|f| f.map(|f| (f.number, f.raw))).collect();
        assert_eq!(all, [Ok((5, Raw::Varint(u64::MAX))), Ok((70000, Raw::Len(b"abc")))]);
        assert_eq!(unzigzag(zigzag(i64::MIN)), i64::MIN);
    }

    #[test]
    fn truncation_is_an_error_and_groups_are_skipped() {
        assert!(Fields::new(&[0x0a, 5, 1]).any(|f| f.is_err()));
        assert!(Fields::new(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).any(|f| f.is_err()));
        assert!(Fields::new(&[0x0b]).any(|f| f.is_err()), "a group that does not end");
        assert!(Fields::new(&[0x00, 0x01]).any(|f| f.is_err()), "field number 0");
        let numbers: Vec<_> = Fields::new(&[0x0b, 0x10, 7, 0x0c, 0x18, 1]).map(|f| f.map(|f| f.number)).collect();
        assert_eq!(numbers, [Ok(3)]);
    }
}
