//! OCSP responses that secrets bring along: only their time of expiration is read, so that a stale one is not stapled.

use std::time::{Duration, SystemTime};

/// One DER element of `bytes`: tag, contents, what follows. None if it does not fit.
pub(crate) fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // At most four length bytes: a staple is no larger.
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0usize, |n, b| (n << 8) | usize::from(*b)), rest)
        }
        _ => return None,
    };
    let (body, rest) = rest.split_at_checked(len)?;
    Some((tag, body, rest))
}

fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, body, rest) = element(bytes)?;
    (found == tag).then_some((body, rest))
}

const SEQUENCE: u8 = 0x30;
const TIME: u8 = 0x18;

/// When an OCSP response expires (`nextUpdate` of its first single response). Err if it is no successful response; `Ok(None)` if it
/// names no end.
pub(crate) fn expiry(der: &[u8]) -> Result<Option<SystemTime>, &'static str> {
    read(der).ok_or("it is not a successful OCSP response in DER")
}

fn read(der: &[u8]) -> Option<Option<SystemTime>> {
    // RFC 6960: OCSPResponse { status, [0] { type, OCTET STRING { BasicOCSPResponse } } }
    let (response, _) = expect(der, SEQUENCE)?;
    let (status, rest) = expect(response, 0x0a)?;
    if status != [0] {
        return None;
    }
    let (bytes, _) = expect(rest, 0xa0)?;
    let (bytes, _) = expect(bytes, SEQUENCE)?;
    let (_oid, rest) = expect(bytes, 0x06)?;
    let (basic, _) = expect(rest, 0x04)?;
    // BasicOCSPResponse { ResponseData { [0] version?, responder, producedAt, responses, .. }, .. }
    let (basic, _) = expect(basic, SEQUENCE)?;
    let (mut data, _) = expect(basic, SEQUENCE)?;
    if let Some((_, rest)) = expect(data, 0xa0) {
        data = rest;
    }
    let (_tag, _responder, rest) = element(data)?;
    let (_produced, rest) = expect(rest, TIME)?;
    let (responses, _) = expect(rest, SEQUENCE)?;
    // SingleResponse { certID, status, thisUpdate, [0] nextUpdate?, .. }
    let (single, _) = expect(responses, SEQUENCE)?;
    let (_id, rest) = expect(single, SEQUENCE)?;
    let (_tag, _status, rest) = element(rest)?;
    let (_this, rest) = expect(rest, TIME)?;
    match expect(rest, 0xa0) {
        None => Some(None),
        Some((next, _)) => generalized_time(expect(next, TIME)?.0).map(Some),
    }
}

/// `YYYYMMDDHHMMSSZ`.
fn generalized_time(text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if text.len() != 14 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    // Days since 1970 of the proleptic Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + number(8, 10)? * 3600 + number(10, 12)? * 60 + number(12, 14)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn wrap(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag, 0x82, (body.len() >> 8) as u8, body.len() as u8];
        out.extend_from_slice(body);
        out
    }
    /// A response without a real signature, which expires at `next`.
    pub(crate) fn response(next: &str) -> Vec<u8> {
        let time = |t: &str| wrap(TIME, t.as_bytes());
        let single = wrap(SEQUENCE, &[wrap(SEQUENCE, &[]), wrap(0x80, &[]), time("20200101000000Z"), wrap(0xa0, &time(next))].concat());
        let data = wrap(SEQUENCE, &[wrap(0xa2, &[]), time("20200101000000Z"), wrap(SEQUENCE, &single)].concat());
        let bytes = wrap(SEQUENCE, &[wrap(0x06, &[1]), wrap(0x04, &wrap(SEQUENCE, &data))].concat());
        wrap(SEQUENCE, &[vec![0x0a, 1, 0], wrap(0xa0, &bytes)].concat())
    }

    #[test]
    fn reads_the_end() {
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(expiry(&response("20240229120000Z")), Ok(Some(at(1_709_208_000))));
        assert_eq!(expiry(&response("20380119031407Z")), Ok(Some(at(2_147_483_647))));
        assert!(expiry(&response("2024")).is_err());
    }

    #[test]
    fn truncated_anywhere_is_an_error() {
        let whole = response("20240229120000Z");
        for len in 0..whole.len() {
            assert!(expiry(&whole[..len]).is_err(), "{len}");
        }
        assert!(element(&[0x30, 0x85, 1, 1, 1, 1, 1]).is_none());
    }
}
