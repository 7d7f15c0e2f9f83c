//! From RE2's syntax to that of the `regex` crate, and an estimate of RE2's program size. The two dialects differ in what a
//! brace, a class and an escape may be, and RE2's `\d`, `\w`, `\s`, `\b` are ASCII. Called only while compiling.

use regex_syntax::hir::{Class, ClassUnicode, Hir, HirKind, Look};

/// Rewrites RE2 `pattern` so that the `regex` crate understands the same language.
pub fn translate(pattern: &str) -> Result<String, String> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        match c {
            '\\' => {
                let (what, after) = escape(&chars, at, false)?;
                match what {
                    Escape::Char(c) => push_char(c, &mut out),
                    Escape::Text(text) => out.push_str(&text),
                }
                at = after;
            }
            '[' => at = class(&chars, at, &mut out)?,
            '{' => match repetition(&chars, at)? {
                // Unlike the crate, RE2 takes a brace that is no repetition literally.
                None => {
                    out.push_str(r"\{");
                    at += 1;
                }
                Some(end) => {
                    out.extend(chars.get(at..end).unwrap_or_default());
                    at = end;
                }
            },
            '}' => {
                out.push_str(r"\}");
                at += 1;
            }
            '(' if chars.get(at + 1) == Some(&'?') => {
                group_flags(&chars, at + 2)?;
                out.push(c);
                at += 1;
            }
            _ => {
                out.push(c);
                at += 1;
            }
        }
    }
    Ok(out)
}

/// The end of `{n}`, `{n,}` or `{n,m}` that begins at `at`; none if it is not one.
fn repetition(chars: &[char], at: usize) -> Result<Option<usize>, String> {
    let mut numbers = [String::new(), String::new()];
    let mut field = 0;
    let mut end = at + 1;
    loop {
        match chars.get(end) {
            Some(c) if c.is_ascii_digit() => {
                if let Some(number) = numbers.get_mut(field) {
                    number.push(*c);
                }
            }
            Some(',') if field == 0 => field = 1,
            Some('}') => break,
            _ => return Ok(None),
        }
        end += 1;
    }
    if numbers.first().is_some_and(String::is_empty) {
        return Ok(None);
    }
    if numbers.iter().any(|n| !n.is_empty() && n.parse::<u32>().map_or(true, |n| n > 1000)) {
        return Err("bad repetition operator: RE2 repeats at most 1000 times".to_string());
    }
    Ok(Some(end + 1))
}

/// RE2 knows the flags `imsU`, names and `:`; the crate knows more.
fn group_flags(chars: &[char], at: usize) -> Result<(), String> {
    for c in chars.get(at..).unwrap_or_default() {
        match c {
            'i' | 'm' | 's' | 'U' | '-' => {}
            ':' | ')' | 'P' | '<' => return Ok(()),
            other => return Err(format!("invalid perl operator: (?{other}")),
        }
    }
    Err("missing )".to_string())
}

/// What an escape stands for.
enum Escape {
    Char(char),
    /// Text in the crate's syntax.
    Text(String),
}

/// Reads the escape at `at` and gives the place after it.
fn escape(chars: &[char], at: usize, in_class: bool) -> Result<(Escape, usize), String> {
    let Some(&c) = chars.get(at + 1) else { return Err("trailing \\".to_string()) };
    let after = at + 2;
    let rest = chars.get(after..).unwrap_or_default();
    // A positive set needs no brackets inside a class; the crate's nested classes express a complement.
    let set = |inner: &str| Escape::Text(if in_class { inner.to_string() } else { format!("[{inner}]") });
    let text = |t: &str| Escape::Text(t.to_string());
    let simple = match c {
        'd' => set("0-9"),
        'w' => set("0-9A-Za-z_"),
        's' => set(r"\t\n\f\r "),
        'D' => text("[^0-9]"),
        'W' => text("[^0-9A-Za-z_]"),
        'S' => text(r"[^\t\n\f\r ]"),
        'b' if !in_class => text(r"(?-u:\b)"),
        'B' if !in_class => text(r"(?-u:\B)"),
        'A' if !in_class => text(r"\A"),
        'z' if !in_class => text(r"\z"),
        'E' if !in_class => text(""),
        'a' => Escape::Char('\x07'),
        'f' => Escape::Char('\x0c'),
        't' => Escape::Char('\t'),
        'n' => Escape::Char('\n'),
        'r' => Escape::Char('\r'),
        'v' => Escape::Char('\x0b'),
        'p' | 'P' => {
            // A property is one letter or a name in braces; the name must not be mistaken for a repetition.
            let length = match rest.first() {
                Some('{') => rest.iter().position(|c| *c == '}').ok_or("invalid character class range: missing }")? + 1,
                _ => 1,
            };
            let name: String = rest.get(..length).ok_or("invalid character class range: \\p")?.iter().collect();
            return Ok((Escape::Text(format!("\\{c}{name}")), after + length));
        }
        'x' => {
            let (digits, length) = match rest.first() {
                Some('{') => {
                    let end = rest.iter().position(|c| *c == '}').ok_or("invalid escape sequence: \\x{")?;
                    (rest.get(1..end), end + 1)
                }
                _ => (rest.get(..2), 2),
            };
            let digits: String = digits.unwrap_or_default().iter().collect();
            let value = u32::from_str_radix(&digits, 16)
                .ok()
                .and_then(char::from_u32)
                .ok_or_else(|| format!("invalid escape sequence: \\x{digits}"))?;
            return Ok((Escape::Char(value), after + length));
        }
        'Q' if !in_class => {
            let end = rest.windows(2).position(|w| w == ['\\', 'E']);
            let quoted: String = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default().iter().collect();
            return Ok((Escape::Text(regex_syntax::escape(&quoted)), after + end.map_or(rest.len(), |e| e + 2)));
        }
        '0'..='7' => {
            // Octal: `\0`, or up to three digits; a single other digit would be a back-reference.
            let digits: Vec<u32> = chars.get(at + 1..).unwrap_or_default().iter().take(3).map_while(|c| c.to_digit(8)).collect();
            if c != '0' && digits.len() == 1 {
                return Err(format!("invalid escape sequence: \\{c}"));
            }
            let value = char::from_u32(digits.iter().fold(0, |v, d| v * 8 + d)).unwrap_or_default();
            return Ok((Escape::Char(value), at + 1 + digits.len()));
        }
        c if c.is_ascii_alphanumeric() => return Err(format!("invalid escape sequence: \\{c}")),
        c => Escape::Char(c),
    };
    Ok((simple, after))
}

fn push_char(c: char, out: &mut String) {
    out.push_str(&regex_syntax::escape(c.encode_utf8(&mut [0; 4])));
}

/// Translates the class at `at` and gives the place after it. The crate nests classes and has set operators; RE2 has neither,
/// so every character is written escaped.
fn class(chars: &[char], at: usize, out: &mut String) -> Result<usize, String> {
    let mut at = at + 1;
    out.push('[');
    if chars.get(at) == Some(&'^') {
        out.push('^');
        at += 1;
    }
    let start = at;
    loop {
        let rest = chars.get(at..).unwrap_or_default();
        match rest.first() {
            None => return Err("missing ]".to_string()),
            // The first one is a character.
            Some(']') if at > start => {
                out.push(']');
                return Ok(at + 1);
            }
            Some('[') if rest.get(1) == Some(&':') => {
                if let Some(end) = rest.windows(2).position(|w| w == [':', ']']).filter(|end| *end > 1) {
                    out.extend(rest.get(..end + 2).unwrap_or_default());
                    at += end + 2;
                    continue;
                }
            }
            _ => {}
        }
        let (low, after) = class_item(chars, at)?;
        at = after;
        let Escape::Char(low) = low else {
            if let Escape::Text(text) = low {
                out.push_str(&text);
            }
            continue;
        };
        push_char(low, out);
        if chars.get(at) == Some(&'-') && chars.get(at + 1).is_some_and(|c| *c != ']') {
            let (Escape::Char(high), after) = class_item(chars, at + 1)? else { return Err("invalid character class range".to_string()) };
            out.push('-');
            push_char(high, out);
            at = after;
        }
    }
}

fn class_item(chars: &[char], at: usize) -> Result<(Escape, usize), String> {
    match chars.get(at) {
        None => Err("missing ]".to_string()),
        Some('\\') => escape(chars, at, true),
        Some(c) => Ok((Escape::Char(*c), at + 1)),
    }
}

/// Shortens the crate's many-line message to its last line, which says what is wrong.
pub fn explain(message: &str) -> String {
    message.lines().rev().find_map(|l| l.trim().strip_prefix("error: ")).unwrap_or(message).to_string()
}

/// About as many instructions as RE2 would compile `pattern` to (`RE2::ProgramSize`, measured with Envoy 1.40).
pub fn program_size(pattern: &str) -> Result<u64, String> {
    let translated = translate(pattern)?;
    let hir = regex_syntax::ParserBuilder::new().build().parse(&translated).map_err(|e| explain(&e.to_string()))?;
    let looks = |hir: Option<&Hir>, look| hir.is_some_and(|h| matches!(h.kind(), HirKind::Look(l) if *l == look));
    let (first, last) = match hir.kind() {
        HirKind::Concat(all) => (all.first(), all.last()),
        _ => (Some(&hir), None),
    };
    // A loop in front of an expression that is not anchored; fail and match.
    let frame = if looks(first, Look::Start) { 0 } else { 3 } + u64::from(!looks(last, Look::End));
    Ok(size(&hir).saturating_add(frame))
}

fn size(hir: &Hir) -> u64 {
    match hir.kind() {
        HirKind::Empty => 1,
        HirKind::Literal(l) => l.0.len() as u64,
        HirKind::Look(Look::Start | Look::End) => 0,
        HirKind::Look(_) | HirKind::Class(Class::Bytes(_)) => 1,
        HirKind::Class(Class::Unicode(c)) => class_size(c),
        HirKind::Capture(c) => size(&c.sub).saturating_add(2),
        HirKind::Concat(all) | HirKind::Alternation(all) => all.iter().map(size).fold(0, u64::saturating_add),
        HirKind::Repetition(r) => {
            let one = size(&r.sub);
            let (min, max) = (u64::from(r.min), r.max.map(u64::from));
            let required = one.saturating_mul(min);
            match max {
                Some(max) => required.saturating_add(one.saturating_add(1).saturating_mul(max.saturating_sub(min))),
                None if min == 0 => one,
                None => required.saturating_add(1),
            }
        }
    }
}

/// One instruction for each range; many ranges beyond ASCII share theirs, and a letter in both cases is one.
fn class_size(class: &ClassUnicode) -> u64 {
    if let [upper, lower] = class.ranges() {
        let single = upper.start() == upper.end() && lower.start() == lower.end();
        if single && upper.start().eq_ignore_ascii_case(&lower.start()) {
            return 1;
        }
    }
    let ascii = class.ranges().iter().filter(|r| r.start().is_ascii()).count();
    let beyond = class.ranges().len() - ascii;
    (ascii + beyond.min(5)).max(1) as u64
}

#[cfg(test)]
mod tests {
    use crate::Regex;

    #[test]
    fn speaks_re2() {
        for (pattern, value, wanted) in [
            (r"\d+", "12", true),
            (r"\d", "\u{0663}", false),
            (r"\w+", "a_1", true),
            (r"\w", "\u{e9}", false),
            (r"[\w-]+", "a-b", true),
            (r"[^\d]", "a", true),
            (r"[\D]", "a", true),
            (r"[\D]", "1", false),
            (r"\s", "\u{b}", false),
            (r"a{,3}", "a{,3}", true),
            (r"a{2}", "aa", true),
            (r"/users/{id}", "/users/{id}", true),
            (r"[[]", "[", true),
            (r"[]a]+", "]a", true),
            (r"[a&&b]+", "&a", true),
            (r"[[:alpha:]]+", "ab", true),
            (r"\Q.*\E", ".*", true),
            (r"\Q.*", ".*", true),
            (r"\<a\>", "<a>", true),
            (r"\/a\-b\_", "/a-b_", true),
            (r"\101", "A", true),
            (r"\x41\x{42}", "AB", true),
            (r"\pL+", "ab", true),
            (r"\p{Greek}", "\u{3b1}", true),
            (r"(?P<n>a)(?:b)(?i:C)", "abc", true),
            (r"[a-]+", "a-", true),
            (r"[+--]+", "+,-", true),
            (r"\bfoo\b", "foo", true),
        ] {
            let re = Regex::new(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
            assert_eq!(re.matches(value), wanted, "{pattern} on {value}");
        }
        for bad in [r"a{1001}", r"(?x)a", r"\1", r"a\", r"[a", r"(", r"*", r"\y", r"(?=a)"] {
            assert!(Regex::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn program_sizes_are_about_re2s() {
        // Sizes as Envoy 1.40 names them when it refuses an expression.
        for (pattern, wanted) in [
            ("a", 5),
            ("abc", 7),
            ("a*", 5),
            ("a+", 6),
            (".*", 6),
            ("/api/.*", 11),
            ("/api/v[0-9]+", 12),
            ("(a|b|c)", 7),
            ("[a-zA-Z0-9_-]+", 9),
            ("(?i)abc", 7),
            ("a{10}", 14),
            ("a{2,5}", 12),
            ("a{3,}", 8),
            ("(a{100}){10}", 1024),
            ("/users/([^/]+)/posts", 22),
            ("^/foo$", 4),
            ("[^/]+", 7),
            ("/a(/.*)?", 12),
            ("x{0,100}", 204),
            ("(abc|def){5}", 44),
            ("a.b.c", 11),
        ] {
            let found = super::program_size(pattern).unwrap();
            assert!(found.abs_diff(wanted) <= 1, "{pattern}: {found}, RE2 {wanted}");
        }
    }
}
