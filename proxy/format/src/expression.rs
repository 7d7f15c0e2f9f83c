//! Expressions (CEL) in formats, log filters and conditions of filters. This crate knows no expression language: `main` says once
//! who compiles them.

use crate::FormatContext;
use nuncio_proto::google::api::expr::v1alpha1::Expr;
use std::fmt::Debug;
use std::sync::OnceLock;

/// A compiled expression; shared by all workers.
pub trait Expression: Debug + Send + Sync {
    /// Whether it is true of the stream; an error is false.
    fn holds(&self, cx: &FormatContext<'_>) -> bool;
    /// Appends its value as Envoy's `%CEL%` writes it; false, and nothing appended, if there is none.
    fn print(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool;
    /// Appends its value as `%TYPED_CEL%` has it in JSON: true if that is text, to be escaped and quoted; false if it is JSON. None, and
    /// nothing appended, if there is no value.
    fn print_typed(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Option<bool> {
        self.print(cx, out).then_some(true)
    }
}

/// What an expression is compiled from.
#[derive(Clone, Copy, Debug)]
pub enum ExpressionSource<'a> {
    /// CEL.
    Text(&'a str),
    /// CEL that a control plane has parsed already.
    Parsed(&'a Expr),
}

/// Compiles an expression; the error says what is wrong with it.
pub type ExpressionCompiler = Box<dyn Fn(ExpressionSource<'_>) -> Result<Box<dyn Expression>, String> + Send + Sync>;

static COMPILER: OnceLock<ExpressionCompiler> = OnceLock::new();

/// Says who compiles expressions, before any configuration is compiled. The first call counts.
pub fn set_expressions(compiler: ExpressionCompiler) {
    let _ = COMPILER.set(compiler);
}

/// Compiles `source`; expressions are refused if nobody compiles them.
pub fn compile_expression(source: ExpressionSource<'_>) -> Result<Box<dyn Expression>, String> {
    match COMPILER.get() {
        Some(compiler) => compiler(source),
        None => Err("CEL is not supported by this build of Nuncio".to_string()),
    }
}

/// Compiles `text`.
pub(crate) fn compile(text: &str) -> Result<Box<dyn Expression>, String> {
    compile_expression(ExpressionSource::Text(text)).map_err(|e| format!("expression {text:?}: {e}"))
}
