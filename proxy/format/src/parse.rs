//! Splits a format into text and commands: `%NAME(ARGUMENT):LENGTH%`. Runs on the control thread.

/// A piece of a format.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    Text(&'a str),
    Command(Command<'a>),
}

/// `%NAME(ARGUMENT):LENGTH%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command<'a> {
    pub name: &'a str,
    /// What is between the parentheses; none without them.
    pub argument: Option<&'a str>,
    /// Longest output in bytes.
    pub length: Option<usize>,
}

/// `:LENGTH%` or `%` at the beginning of `text`: the length, and how many bytes that took.
fn end(text: &str) -> Option<(Option<usize>, usize)> {
    if text.starts_with('%') {
        return Some((None, 1));
    }
    let digits = text.strip_prefix(':')?;
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = digits.split_at(count);
    rest.starts_with('%').then_some(())?;
    Some((Some(number.parse().ok()?), count + 2))
}

/// The command behind a `%`, and how many bytes it took.
fn command(text: &str) -> Option<(Command<'_>, usize)> {
    let count = text.bytes().take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_').count();
    if count == 0 {
        return None;
    }
    let (name, rest) = text.split_at(count);
    let Some(inside) = rest.strip_prefix('(') else {
        let (length, taken) = end(rest)?;
        return Some((Command { name, argument: None, length }, count + taken));
    };
    // The argument ends at the first `)` that ends the command, so that it may hold others.
    for (at, _) in inside.match_indices(')') {
        let (argument, after) = inside.split_at(at);
        if let Some((length, taken)) = end(after.get(1..).unwrap_or_default()) {
            return Some((Command { name, argument: Some(argument), length }, count + 2 + at + taken));
        }
    }
    None
}

/// Splits `format`; the error names the first place that is no command.
pub(crate) fn parse(format: &str) -> Result<Vec<Token<'_>>, String> {
    let mut tokens = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let (text, from) = rest.split_at(at);
        if !text.is_empty() {
            tokens.push(Token::Text(text));
        }
        let behind = from.get(1..).unwrap_or_default();
        if let Some(after) = behind.strip_prefix('%') {
            tokens.push(Token::Text("%"));
            rest = after;
            continue;
        }
        let Some((command, taken)) = command(behind) else {
            let position = format.len() - from.len();
            return Err(format!("no valid command at position {position} of {format:?}"));
        };
        tokens.push(Token::Command(command));
        rest = behind.get(taken..).unwrap_or_default();
    }
    if !rest.is_empty() {
        tokens.push(Token::Text(rest));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let command = |name, argument, length| Token::Command(Command { name, argument, length });
        assert_eq!(parse("a%%b").unwrap(), [Token::Text("a"), Token::Text("%"), Token::Text("b")]);
        assert_eq!(parse("%REQ(X?Y):12%").unwrap(), [command("REQ", Some("X?Y"), Some(12))]);
        assert_eq!(parse("[%DURATION%]").unwrap(), [Token::Text("["), command("DURATION", None, None), Token::Text("]")]);
        assert_eq!(parse("%START_TIME(%H:%M)%").unwrap(), [command("START_TIME", Some("%H:%M"), None)]);
        assert_eq!(parse("%CEL(a(b) + (c))%").unwrap(), [command("CEL", Some("a(b) + (c)"), None)]);
        assert_eq!(parse("%REQ()%").unwrap(), [command("REQ", Some(""), None)]);
        for bad in ["%", "%req%", "100%", "%REQ(X%", "%REQ:a%", "% %", "%REQ(X):99999999999999999999999%"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
