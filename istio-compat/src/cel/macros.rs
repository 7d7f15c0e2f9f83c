//! The macros of CEL over lists and the keys of maps. Control thread; run by `eval`. Source: the CEL specification, "Macros".

use super::parser::Expr;

/// A macro over the elements of its first expression, with what is asked or made of each.
#[derive(Debug)]
pub enum Macro {
    All(Expr, Expr),
    Exists(Expr, Expr),
    ExistsOne(Expr, Expr),
    /// Of the elements for which the second expression holds, if there is one.
    Map(Expr, Option<Expr>, Expr),
    Filter(Expr, Expr),
}

impl Macro {
    /// The macro `name`; none if there is none that takes so many arguments after the variable.
    pub fn compile(name: &str, range: Expr, mut arguments: Vec<Expr>) -> Option<Self> {
        let last = arguments.pop()?;
        let filter = arguments.pop();
        match (name, filter, arguments.is_empty()) {
            ("all", None, true) => Some(Self::All(range, last)),
            ("exists", None, true) => Some(Self::Exists(range, last)),
            ("exists_one" | "existsOne", None, true) => Some(Self::ExistsOne(range, last)),
            ("filter", None, true) => Some(Self::Filter(range, last)),
            ("map", filter, true) => Some(Self::Map(range, filter, last)),
            _ => None,
        }
    }
    /// What it goes over.
    pub fn range(&self) -> &Expr {
        let (Self::All(range, _) | Self::Exists(range, _) | Self::ExistsOne(range, _) | Self::Map(range, ..) | Self::Filter(range, _)) =
            self;
        range
    }
}

/// Whether a method of this name may be one.
pub fn is_macro(name: &str) -> bool {
    matches!(name, "all" | "exists" | "exists_one" | "existsOne" | "map" | "filter")
}
