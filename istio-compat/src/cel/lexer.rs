//! Tokens of CEL. Control thread only.

use super::ParseError;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Ident(String),
    Int(i64),
    /// The magnitude of the least integer, which has no positive counterpart.
    LeastInt,
    Uint(u64),
    Double(f64),
    Str(String),
    Bytes(Vec<u8>),
    /// An operator or a bracket.
    Op(&'static str),
}

const OPERATORS: [&str; 27] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]", "{", "}", "=", "|",
    "&",
];

/// The tokens of `source` with their offsets.
pub fn tokens(source: &str) -> Result<Vec<(usize, Token)>, ParseError> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(rest) = source.get(at..).filter(|r| !r.is_empty()) {
        let first = rest.chars().next().unwrap_or_default();
        if first.is_whitespace() {
            at += first.len_utf8();
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if let Some((token, length)) = literal_string(rest, at)? {
            out.push((at, token));
            at += length;
        } else if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            let (token, length) = number(rest, at)?;
            out.push((at, token));
            at += length;
        } else if first.is_ascii_alphabetic() || first == '_' {
            let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            out.push((at, Token::Ident(rest[..length].to_string())));
            at += length;
        } else if let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op)) {
            out.push((at, Token::Op(op)));
            at += op.len();
        } else {
            return Err(ParseError::new(at, format!("unexpected {first:?}")));
        }
    }
    Ok(out)
}

fn number(rest: &str, at: usize) -> Result<(Token, usize), ParseError> {
    let bad = |text: &str| ParseError::new(at, format!("{text:?} is not a number"));
    let (digits, radix, prefix) = match rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
        Some(hex) => (hex, 16, 2),
        None => (rest, 10, 0),
    };
    if radix == 16 {
        let length = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
        let (text, after) = digits.split_at(length);
        let unsigned = after.starts_with(['u', 'U']);
        let value = u64::from_str_radix(text, 16).map_err(|_| bad(text))?;
        let end = prefix + length + usize::from(unsigned);
        return match unsigned {
            true => Ok((Token::Uint(value), end)),
            false => Ok((Token::Int(i64::try_from(value).map_err(|_| bad(text))?), end)),
        };
    }
    let mut length = 0;
    let mut real = false;
    let bytes = rest.as_bytes();
    while let Some(b) = bytes.get(length) {
        match b {
            b'0'..=b'9' => {}
            b'.' if !real && bytes.get(length + 1).is_some_and(u8::is_ascii_digit) => real = true,
            b'e' | b'E' => {
                real = true;
                if bytes.get(length + 1).is_some_and(|b| matches!(b, b'+' | b'-')) {
                    length += 1;
                }
            }
            _ => break,
        }
        length += 1;
    }
    let text = &rest[..length];
    if real {
        return Ok((Token::Double(text.parse().map_err(|_| bad(text))?), length));
    }
    match bytes.get(length) {
        Some(b'u' | b'U') => Ok((Token::Uint(text.parse().map_err(|_| bad(text))?), length + 1)),
        _ if text == "9223372036854775808" => Ok((Token::LeastInt, length)),
        _ => Ok((Token::Int(text.parse().map_err(|_| bad(text))?), length)),
    }
}

fn literal_string(rest: &str, at: usize) -> Result<Option<(Token, usize)>, ParseError> {
    let prefix = rest.find(['"', '\'']).unwrap_or(rest.len());
    let marks = match rest.get(..prefix) {
        Some(marks) if prefix < rest.len() && marks.len() <= 2 && marks.chars().all(|c| matches!(c, 'r' | 'R' | 'b' | 'B')) => {
            marks.to_ascii_lowercase()
        }
        _ => return Ok(None),
    };
    let (raw, bytes) = (marks.contains('r'), marks.contains('b'));
    let body = &rest[prefix..];
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|q| body.starts_with(q)).unwrap_or("\"");
    let mut out = Vec::new();
    let mut chars = body[quote.len()..].char_indices();
    let start = prefix + quote.len();
    while let Some((i, c)) = chars.next() {
        if body[quote.len() + i..].starts_with(quote) {
            let token = if bytes {
                Token::Bytes(out)
            } else {
                Token::Str(String::from_utf8(out).map_err(|_| ParseError::new(at, "a string that is not UTF-8".to_string()))?)
            };
            return Ok(Some((token, start + i + quote.len())));
        }
        if c == '\\' && !raw {
            escape(&mut chars, &mut out, at, bytes)?;
        } else if quote.len() == 1 && c == '\n' {
            break;
        } else {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Err(ParseError::new(at, "a string without end".to_string()))
}

fn escape(chars: &mut std::str::CharIndices<'_>, out: &mut Vec<u8>, at: usize, bytes: bool) -> Result<(), ParseError> {
    let bad = || ParseError::new(at, "an escape sequence that CEL does not know".to_string());
    let mut push = |value: u32, wide: bool| match u8::try_from(value) {
        Ok(byte) if bytes && !wide => {
            out.push(byte);
            Ok(())
        }
        _ => char::from_u32(value).ok_or_else(bad).map(|c| out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes())),
    };
    let Some((_, c)) = chars.next() else { return Err(bad()) };
    let mut code = |first: u32, digits: usize, radix: u32| {
        (0..digits).try_fold(first, |value, _| {
            let digit = chars.next().and_then(|(_, c)| c.to_digit(radix)).ok_or_else(bad)?;
            value.checked_mul(radix).and_then(|v| v.checked_add(digit)).ok_or_else(bad)
        })
    };
    match c {
        'n' => push(10, false),
        't' => push(9, false),
        'r' => push(13, false),
        'a' => push(7, false),
        'b' => push(8, false),
        'f' => push(12, false),
        'v' => push(11, false),
        '\\' | '"' | '\'' | '`' | '?' => push(u32::from(c), false),
        'x' | 'X' => push(code(0, 2, 16)?, false),
        'u' => push(code(0, 4, 16)?, true),
        'U' => push(code(0, 8, 16)?, true),
        '0'..='3' => push(code(c.to_digit(8).unwrap_or_default(), 2, 8)?, false),
        _ => Err(bad()),
    }
}
