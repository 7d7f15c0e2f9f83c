//! Configuration text to a tree of values: JSON first, then YAML, of which JSON with trailing commas and comments is a part.
//! Used for bootstraps, `--config-yaml` and file sources on the control thread.

use serde_json::{Map, Number, Value};
use serde_yaml_ng::Value as Yaml;

use super::problem::Problem;

/// Nesting that is followed; deeper text is refused.
const DEPTH: usize = 100;

/// Reads JSON or YAML. Aliases and merge keys (`<<`) are resolved; plain `on`, `off`, `yes` and `no` stay strings, and a field
/// of type bool takes them as what they mean. Empty text is an empty object. The error says line and column.
pub fn to_value(text: &str) -> Result<Value, Problem> {
    if text.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    let mut yaml: Yaml = serde_yaml_ng::from_str(text).map_err(|e| malformed(&e))?;
    yaml.apply_merge().map_err(|e| malformed(&e))?;
    convert(yaml, 0)
}

fn malformed(error: &serde_yaml_ng::Error) -> Problem {
    let path = error.location().map_or_else(String::new, |l| format!("line {} column {}", l.line(), l.column()));
    Problem { path, found: error.to_string(), expected: "write valid YAML or JSON".to_string() }
}

fn convert(yaml: Yaml, depth: usize) -> Result<Value, Problem> {
    if depth > DEPTH {
        return Err(Problem {
            path: String::new(),
            found: format!("values are nested deeper than {DEPTH} levels"),
            expected: "nest them less".to_string(),
        });
    }
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(b) => Value::Bool(b),
        Yaml::Number(n) => number(&n),
        Yaml::String(s) => Value::String(s),
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(|i| convert(i, depth + 1)).collect::<Result<_, _>>()?),
        Yaml::Mapping(fields) => {
            let mut map = Map::with_capacity(fields.len());
            for (key, value) in fields {
                map.insert(key_text(key)?, convert(value, depth + 1)?);
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) => convert(tagged.value, depth + 1)?,
    })
}

/// `.inf` and `.nan` have no JSON number; protobuf JSON writes them as strings.
fn number(n: &serde_yaml_ng::Number) -> Value {
    if let Some(i) = n.as_i64() {
        return Value::Number(i.into());
    }
    if let Some(u) = n.as_u64() {
        return Value::Number(u.into());
    }
    match n.as_f64() {
        Some(f) if f.is_nan() => Value::String("NaN".to_string()),
        Some(f) if f.is_infinite() => Value::String(if f > 0.0 { "Infinity" } else { "-Infinity" }.to_string()),
        Some(f) => Number::from_f64(f).map_or(Value::Null, Value::Number),
        None => Value::Null,
    }
}

fn key_text(key: Yaml) -> Result<String, Problem> {
    match key {
        Yaml::String(s) => Ok(s),
        Yaml::Bool(b) => Ok(b.to_string()),
        Yaml::Number(n) => Ok(n.to_string()),
        Yaml::Tagged(tagged) => key_text(tagged.value),
        Yaml::Null | Yaml::Sequence(_) | Yaml::Mapping(_) => Err(Problem {
            path: String::new(),
            found: "a mapping key is not a plain word".to_string(),
            expected: "use strings as keys".to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_with_trailing_commas_tabs_and_blank_lines() {
        let text = "{\n\t\"a\": [1, 2,],\n\n\t\"b\": {\"c\": \"0.250s\",},\n}\n";
        assert_eq!(to_value(text).unwrap(), json!({"a": [1, 2], "b": {"c": "0.250s"}}));
    }

    #[test]
    fn yaml_anchors_merge_keys_words_and_large_numbers() {
        let text = "base: &b {x: 1, y: on}\nuse:\n  <<: *b\n  y: off\nbig: 18446744073709551615\n200: ok\nf: .inf\nquoted: \"5\"\n";
        assert_eq!(
            to_value(text).unwrap(),
            json!({"base": {"x": 1, "y": "on"}, "use": {"x": 1, "y": "off"}, "big": u64::MAX, "200": "ok", "f": "Infinity", "quoted": "5"})
        );
    }

    #[test]
    fn errors_say_where() {
        let problem = to_value("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(problem.path.starts_with("line "), "{problem}");
        assert!(to_value("a: 1\na: 2\n").is_err(), "duplicate keys");
        assert!(to_value(&format!("{}{}", "[".repeat(5000), "]".repeat(5000))).is_err());
    }
}
