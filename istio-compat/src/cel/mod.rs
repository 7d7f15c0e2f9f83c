//! The Common Expression Language over Envoy's attributes, as Istio Telemetry uses it for labels and metric values: operators,
//! `has`, macros, conversions, times and string functions. Expressions are compiled on the control
//! thread; known attributes become direct reads of the stream, so that workers look up no names.
//! Source: the CEL specification and Envoy's `docs/root/intro/arch_overview/advanced/attributes.rst`.

mod ast;
mod attributes;
mod eval;
mod format;
mod functions;
mod lexer;
mod macros;
mod parser;
mod time;
mod typed;
mod value;

pub use attributes::Attributes;
pub use format::compile as compile_for_formats;
pub use parser::ParseError;
pub use value::Value;

use eval::Cx;
use parser::Expr;
use std::cell::Cell;

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    root: Expr,
    unknown: Vec<String>,
}

impl Program {
    /// Compiles `source`.
    pub fn compile(source: &str) -> Result<Self, ParseError> {
        let mut unknown = Vec::new();
        let root = parser::parse(source, &mut unknown)?;
        Ok(Self { root, unknown })
    }
    /// Compiles what a control plane parsed (`google.api.expr.v1alpha1.Expr`). The error says what is wrong with it.
    pub fn from_proto(expr: &nuncio_proto::google::api::expr::v1alpha1::Expr) -> Result<Self, String> {
        let mut unknown = Vec::new();
        let root = ast::convert(expr, 0, &mut Vec::new(), &mut unknown)?;
        Ok(Self { root, unknown })
    }
    /// Identifiers and attributes that exist neither here nor in Envoy: expressions that reach them fail when they run.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }
    /// Runs it; none if it fails (a missing key, a wrong type).
    pub fn run<'a>(&'a self, attributes: &Attributes<'a>) -> Option<Value<'a>> {
        let left = Cell::new(eval::BUDGET);
        eval::eval(&self.root, Cx { attributes, left: &left, scope: None }).ok()
    }
    /// Runs it and appends the text of the result as Envoy prints it; false, and nothing appended, if it fails.
    pub fn print(&self, attributes: &Attributes<'_>, out: &mut String) -> bool {
        match self.run(attributes) {
            Some(value) => {
                value.print(out);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
