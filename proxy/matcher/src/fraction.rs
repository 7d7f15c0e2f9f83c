//! Fractions of requests: `FractionalPercent` and `RuntimeFractionalPercent`. The caller brings the random number, so that one
//! request sees the same decision each time it is matched. Source: `envoy/type/v3/percent.proto`, `core/v3/base.proto`.

use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Runtime;
use nuncio_proto::envoy::config::core::v3 as core;
use nuncio_proto::envoy::r#type::v3 as proto;
use proto::fractional_percent::DenominatorType;

/// A compiled `FractionalPercent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALWAYS: Self = Self { numerator: 100, denominator: 100 };
    /// No request.
    pub const NEVER: Self = Self { numerator: 0, denominator: 100 };
    /// `numerator` of a hundred.
    pub const fn percent(numerator: u32) -> Self {
        Self { numerator, denominator: 100 }
    }
    /// `numerator` of ten thousand: a percentage with two decimals.
    pub const fn ten_thousandths(numerator: u32) -> Self {
        Self { numerator, denominator: 10_000 }
    }
    /// Compiles `FractionalPercent`; an unknown denominator is refused.
    pub fn compile(fraction: &proto::FractionalPercent, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let denominator = match DenominatorType::try_from(fraction.denominator) {
            Ok(DenominatorType::Hundred) => 100,
            Ok(DenominatorType::TenThousand) => 10_000,
            Ok(DenominatorType::Million) => 1_000_000,
            Err(_) => {
                report.error(&at.field("denominator"), fraction.denominator.to_string(), "use HUNDRED, TEN_THOUSAND or MILLION");
                return None;
            }
        };
        Some(Self { numerator: fraction.numerator, denominator })
    }
    /// Whether a request whose random number is `random` is in the fraction.
    pub fn contains(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
    /// Whether every request is in it.
    pub fn is_always(self) -> bool {
        self.numerator >= self.denominator
    }
    /// Whether no request is in it.
    pub fn is_never(self) -> bool {
        self.numerator == 0
    }
    /// As a number from 0 to 1; more if the numerator is larger than the denominator.
    pub fn ratio(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

/// A compiled `RuntimeFractionalPercent`.
#[derive(Clone, Debug)]
pub struct RuntimeFraction {
    default: Fraction,
    key: Box<str>,
}

impl RuntimeFraction {
    /// Compiles `RuntimeFractionalPercent`; without `default_value` the fraction is refused, as in Envoy.
    pub fn compile(fraction: &core::RuntimeFractionalPercent, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(default) = &fraction.default_value else {
            report.error(&at.field("default_value"), "nothing", "set default_value");
            return None;
        };
        let default = Fraction::compile(default, &at.field("default_value"), report)?;
        Some(Self { default, key: fraction.runtime_key.as_str().into() })
    }
    /// A fraction without a runtime key.
    pub fn fixed(default: Fraction) -> Self {
        Self { default, key: "".into() }
    }
    /// What holds now: the runtime's value if there is one, else the default.
    pub fn current(&self, runtime: &Runtime) -> Fraction {
        if self.key.is_empty() {
            return self.default;
        }
        runtime.get(&self.key).and_then(|text| from_runtime(&text)).unwrap_or(self.default)
    }
    /// Whether a request whose random number is `random` is in the fraction.
    pub fn contains(&self, runtime: &Runtime, random: u64) -> bool {
        self.current(runtime).contains(random)
    }
}

/// A runtime value is a percentage, or a `FractionalPercent` in JSON or YAML.
fn from_runtime(text: &str) -> Option<Fraction> {
    let text = text.trim();
    if let Ok(percent) = text.parse::<u32>() {
        return Some(Fraction::percent(percent));
    }
    let field = |name: &str| {
        let (_, rest) = text.split_once(name)?;
        let rest = rest.trim_start_matches(|c: char| c == '"' || c == '\'' || c == ':' || c.is_whitespace());
        Some(rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default())
    };
    let numerator = field("numerator")?.parse().ok()?;
    let denominator = match field("denominator") {
        None => 100,
        Some(name) => match DenominatorType::from_str_name(name)? {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        },
    };
    Some(Fraction { numerator, denominator })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let count = |f: Fraction, n: u64| (0..n).filter(|r| f.contains(*r)).count();
        assert_eq!(count(Fraction::percent(25), 1000), 250);
        assert_eq!(count(Fraction::ALWAYS, 1000), 1000);
        assert_eq!(count(Fraction::NEVER, 1000), 0);
        let million = proto::FractionalPercent { numerator: 3, denominator: DenominatorType::Million as i32 };
        let fraction = Fraction::compile(&million, &At::Root, &mut Report::new()).unwrap();
        assert_eq!(count(fraction, 1_000_000), 3);
        let bad = proto::FractionalPercent { numerator: 3, denominator: 7 };
        assert!(Fraction::compile(&bad, &At::Root, &mut Report::new()).is_none());
    }

    #[test]
    fn the_runtime_overrides() {
        let runtime = Runtime::default();
        let fraction = RuntimeFraction { default: Fraction::percent(10), key: "k".into() };
        assert_eq!(fraction.current(&runtime), Fraction::percent(10));
        for (text, wanted) in [
            ("50", Some((50, 100))),
            (r#"{"numerator":5,"denominator":"TEN_THOUSAND"}"#, Some((5, 10_000))),
            ("numerator: 7\ndenominator: MILLION\n", Some((7, 1_000_000))),
            (r#"{"numerator":5}"#, Some((5, 100))),
            ("what", None),
        ] {
            runtime.set("k", text);
            let wanted = wanted.map_or(Fraction::percent(10), |(numerator, denominator)| Fraction { numerator, denominator });
            assert_eq!(fraction.current(&runtime), wanted, "{text}");
        }
    }
}
