//! What is wrong with a configuration text: where, what was found, what is expected.

use std::fmt;

use serde_json::Value;

/// One finding, in the words of `nuncio_core::diag::Diagnostic`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path from the root of the text: `static_resources.clusters[0].connect_timeout`; a line and column if it is no YAML.
    pub path: String,
    /// What was found there.
    pub found: String,
    /// What is expected, or what to do.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}; {}", self.found, self.expected)
    }
}

/// Everything that is wrong with one text; never empty when returned as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    pub items: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.items.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            fmt::Display::fmt(item, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { items: vec![problem] }
    }
}

/// A place in the text, turned into a string only when something is wrong.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Root,
    Field(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
    Key(&'a Place<'a>, &'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, i) => write!(f, "{parent}[{i}]"),
            Self::Key(parent, key) => write!(f, "{parent}[\"{key}\"]"),
        }
    }
}

/// A value as it is shown to people: its kind and a short quotation.
pub(crate) fn shown(value: &Value) -> String {
    const ROOM: usize = 80;
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) if s.len() <= ROOM => format!("{s:?}"),
        Value::String(s) => format!("{:?}...", s.chars().take(ROOM).collect::<String>()),
        Value::Array(items) => format!("a list of {} elements", items.len()),
        Value::Object(fields) => match fields.keys().next() {
            Some(first) => format!("an object with {} fields ({first:?}..)", fields.len()),
            None => "an empty object".to_string(),
        },
    }
}

/// The candidate nearest to `name`, if it is near enough to be what was meant.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 80;
    if name.len() > LONGEST {
        return None;
    }
    let (distance, best) = candidates.filter(|c| c.len() <= LONGEST).map(|c| (distance(name, c), c)).min_by_key(|(d, _)| *d)?;
    (distance <= 1 + name.len() / 5).then_some(best)
}

/// Levenshtein distance of two short strings.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let cost = diagonal + usize::from(x != y);
            diagonal = *cell;
            *cell = cost.min(diagonal + 1).min(left + 1);
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(nearest("conect_timeout", ["connect_timeout", "name"].into_iter()), Some("connect_timeout"));
        assert_eq!(nearest("foo", ["connect_timeout", "name"].into_iter()), None);
    }

    #[test]
    fn places() {
        let root = Place::Root;
        let a = Place::Field(&root, "clusters");
        let b = Place::Index(&a, 3);
        let c = Place::Key(&b, "x.y");
        assert_eq!(Place::Field(&c, "name").to_string(), "clusters[3][\"x.y\"].name");
    }
}
