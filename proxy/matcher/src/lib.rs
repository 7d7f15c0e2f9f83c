//! Compiled string, header, path, query and metadata matchers, CIDR sets, fractions, path templates and match trees.
//!
//! Every matcher is made by `X::compile(&proto, &at, &mut report)` on the control thread, which says in the report what is
//! wrong and gives `None`; it is then immutable and `matches(..)` is called by any worker without allocation.

pub mod cidr;
pub mod filter_state;
pub mod fraction;
pub mod header;
pub mod metadata;
pub mod path;
pub mod query;
mod re2;
pub mod regex;
pub mod string;
pub mod tree;
pub mod tree_input;
pub mod uri_template;
pub mod value;

pub use cidr::{Cidr, IpSet};
pub use filter_state::FilterStateMatcher;
pub use fraction::{Fraction, RuntimeFraction};
pub use header::{HeaderLookup, HeaderMatcher};
pub use metadata::{MetadataMatcher, StructMatcher};
pub use path::PathMatcher;
pub use query::{CookieMatcher, QueryParameterMatcher};
pub use regex::{Regex, RegexRewrite};
pub use string::StringMatcher;
pub use tree::MatchTree;
pub use tree_input::MatchData;
pub use uri_template::{UriTemplate, UriTemplateRewrite};
pub use value::{DoubleMatcher, ListMatcher, ValueMatcher};

use nuncio_core::diag::{At, Report};

/// Compiles every element of a repeated field; `None` if one of them was refused (all of them are looked at).
pub fn compile_all<P, X>(
    protos: &[P],
    at: &At<'_>,
    report: &mut Report,
    compile: impl Fn(&P, &At<'_>, &mut Report) -> Option<X>,
) -> Option<Box<[X]>> {
    let mut all = Vec::with_capacity(protos.len());
    let mut complete = true;
    for (i, proto) in protos.iter().enumerate() {
        match compile(proto, &at.index(i), report) {
            Some(x) => all.push(x),
            None => complete = false,
        }
    }
    complete.then(|| all.into_boxed_slice())
}
