//! Parser of CEL into a tree whose attributes are resolved. Control thread only.

use super::attributes::{self, Attribute, Root};
use super::functions::{self, Function};
use super::lexer::{Token, tokens};
use super::macros::{Macro, is_macro};
use regex::Regex;
use std::fmt;

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Byte offset.
    pub at: usize,
    pub what: String,
    /// Valid CEL that is not supported here; Envoy would take it.
    pub unsupported: bool,
}

impl ParseError {
    pub(super) fn new(at: usize, what: String) -> Self {
        Self { at, what, unsupported: false }
    }
    pub(super) fn unsupported(at: usize, what: String) -> Self {
        Self { at, what, unsupported: true }
    }
}
impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.what, self.at)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    And,
    Or,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    Add,
    Sub,
    Mul,
    Div,
    Rem,
}

#[derive(Debug)]
pub enum Expr {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(String),
    Bytes(Vec<u8>),
    /// Nanoseconds, and nanoseconds since 1970: only a control plane writes these as literals.
    Span(i128),
    Time(i128),
    Attribute(Attribute),
    /// A group of attributes as a map, for computed names.
    Root(Root),
    /// An identifier that nothing defines.
    Unknown,
    /// A type, by its name.
    Type(&'static str),
    /// The variable of the macro that is so many macros further out.
    Variable(usize),
    Select(Box<Expr>, String),
    Has(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    Conditional(Box<Expr>, Box<Expr>, Box<Expr>),
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    Macro(Box<Macro>),
    Call(Function, Vec<Expr>),
    /// `matches` with a constant pattern.
    Matches(Box<Expr>, Regex),
}

/// Deeper nesting is refused: the tree is walked by recursion.
pub(super) const MAX_DEPTH: usize = 64;

pub fn parse(source: &str, unknown: &mut Vec<String>) -> Result<Expr, ParseError> {
    let mut parser = Parser { tokens: tokens(source)?, next: 0, end: source.len(), depth: 0, scope: Vec::new(), unknown };
    let expr = parser.expression()?;
    match parser.peek() {
        None => Ok(expr),
        Some(token) => Err(parser.error(format!("unexpected {token:?}"))),
    }
}

struct Parser<'a> {
    tokens: Vec<(usize, Token)>,
    next: usize,
    end: usize,
    depth: usize,
    /// Variables of macros, the innermost last.
    scope: Vec<String>,
    unknown: &'a mut Vec<String>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, t)| t)
    }
    fn position(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }
    fn error(&self, what: String) -> ParseError {
        ParseError::new(self.position(), what)
    }
    fn take(&mut self, op: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Op(o)) if *o == op);
        self.next += usize::from(found);
        found
    }
    fn expect(&mut self, op: &str) -> Result<(), ParseError> {
        if self.take(op) { Ok(()) } else { Err(self.error(format!("{op:?} is missing"))) }
    }
    fn ident(&mut self) -> Result<String, ParseError> {
        match self.peek() {
            Some(Token::Ident(name)) => {
                let name = name.clone();
                self.next += 1;
                Ok(name)
            }
            _ => Err(self.error("a name is missing".to_string())),
        }
    }
    fn expression(&mut self) -> Result<Expr, ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ParseError::unsupported(self.position(), format!("nesting deeper than {MAX_DEPTH}")));
        }
        let condition = self.binary(0)?;
        let expr = if self.take("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            Expr::Conditional(Box::new(condition), Box::new(yes), Box::new(self.expression()?))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expr)
    }
    fn binary(&mut self, level: usize) -> Result<Expr, ParseError> {
        const LEVELS: [&[(&str, Binary)]; 5] = [
            &[("||", Binary::Or)],
            &[("&&", Binary::And)],
            &[
                ("==", Binary::Eq),
                ("!=", Binary::Ne),
                ("<=", Binary::Le),
                (">=", Binary::Ge),
                ("<", Binary::Lt),
                (">", Binary::Gt),
                ("in", Binary::In),
            ],
            &[("+", Binary::Add), ("-", Binary::Sub)],
            &[("*", Binary::Mul), ("/", Binary::Div), ("%", Binary::Rem)],
        ];
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        let mut count = 0;
        loop {
            let operator = match self.peek() {
                Some(Token::Op(op)) => operators.iter().find(|(o, _)| o == op),
                Some(Token::Ident(name)) => operators.iter().find(|(o, _)| o == name),
                _ => None,
            };
            let Some((_, operator)) = operator else { return Ok(left) };
            count += 1;
            // A chain leans to the left, and is walked by recursion like nesting.
            if count > MAX_DEPTH {
                return Err(ParseError::unsupported(self.position(), format!("a chain of more than {MAX_DEPTH} operators")));
            }
            self.next += 1;
            let right = self.binary(level + 1)?;
            left = Expr::Binary(*operator, Box::new(left), Box::new(right));
        }
    }
    fn unary(&mut self) -> Result<Expr, ParseError> {
        if self.take("!") || self.take("-") {
            let not = matches!(self.tokens.get(self.next - 1), Some((_, Token::Op("!"))));
            if !not && self.peek() == Some(&Token::LeastInt) {
                self.next += 1;
                return Ok(Expr::Int(i64::MIN));
            }
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(ParseError::unsupported(self.position(), format!("nesting deeper than {MAX_DEPTH}")));
            }
            let inner = Box::new(self.unary()?);
            self.depth -= 1;
            return Ok(if not { Expr::Not(inner) } else { Expr::Negate(inner) });
        }
        self.member()
    }
    fn member(&mut self) -> Result<Expr, ParseError> {
        let mut expr = self.primary()?;
        let mut count = 0;
        loop {
            count += 1;
            if count > MAX_DEPTH {
                return Err(ParseError::unsupported(self.position(), format!("a chain of more than {MAX_DEPTH} selections")));
            }
            if self.take(".") {
                let at = self.position();
                let name = self.ident()?;
                if self.take("(") {
                    expr = self.method(at, expr, &name)?;
                } else {
                    expr = select(expr, name, self.unknown);
                }
            } else if self.take("[") {
                let index = self.expression()?;
                self.expect("]")?;
                expr = match index {
                    Expr::Str(name) => select(expr, name, self.unknown),
                    index => Expr::Index(Box::new(expr), Box::new(index)),
                };
            } else {
                return Ok(expr);
            }
        }
    }
    /// `of.name(..`
    fn method(&mut self, at: usize, of: Expr, name: &str) -> Result<Expr, ParseError> {
        let variable = match (self.peek(), self.tokens.get(self.next + 1)) {
            (Some(Token::Ident(variable)), Some((_, Token::Op(",")))) if is_macro(name) => variable.clone(),
            _ => {
                let mut arguments = vec![of];
                arguments.extend(self.arguments(")")?);
                return functions::compile(at, name, arguments, true);
            }
        };
        self.next += 2;
        self.scope.push(variable);
        let arguments = self.arguments(")");
        self.scope.pop();
        let wrong = || ParseError::new(at, format!("{name}() takes a variable and an expression"));
        Macro::compile(name, of, arguments?).map(|m| Expr::Macro(Box::new(m))).ok_or_else(wrong)
    }
    fn entries(&mut self) -> Result<Expr, ParseError> {
        let mut out = Vec::new();
        while !self.take("}") {
            let key = self.expression()?;
            self.expect(":")?;
            out.push((key, self.expression()?));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr::Map(out))
    }
    fn arguments(&mut self, close: &str) -> Result<Vec<Expr>, ParseError> {
        let mut out = Vec::new();
        while !self.take(close) {
            out.push(self.expression()?);
            if !self.take(",") {
                self.expect(close)?;
                break;
            }
        }
        Ok(out)
    }
    fn primary(&mut self) -> Result<Expr, ParseError> {
        let at = self.position();
        if self.take("(") {
            let expr = self.expression()?;
            self.expect(")")?;
            return Ok(expr);
        }
        if self.take("[") {
            return Ok(Expr::List(self.arguments("]")?));
        }
        if self.take("{") {
            return self.entries();
        }
        let token = self.peek().cloned();
        let expr = match token {
            Some(Token::Int(v)) => Expr::Int(v),
            Some(Token::Uint(v)) => Expr::Uint(v),
            Some(Token::Double(v)) => Expr::Double(v),
            Some(Token::Str(v)) => Expr::Str(v),
            Some(Token::Bytes(v)) => Expr::Bytes(v),
            Some(Token::Ident(name)) => {
                self.next += 1;
                return self.named(at, name, false);
            }
            // An absolute name: there are no others, but for variables of macros.
            Some(Token::Op(".")) => {
                self.next += 1;
                let name = self.ident()?;
                return self.named(at, name, true);
            }
            Some(token) => return Err(self.error(format!("unexpected {token:?}"))),
            None => return Err(self.error("unexpected end".to_string())),
        };
        self.next += 1;
        Ok(expr)
    }
    fn named(&mut self, at: usize, name: String, absolute: bool) -> Result<Expr, ParseError> {
        if self.take("(") {
            let mut arguments = self.arguments(")")?;
            if name != "has" {
                return functions::compile(at, &name, arguments, false);
            }
            return match (arguments.pop().and_then(has), arguments.is_empty()) {
                (Some(has), true) => Ok(has),
                _ => Err(ParseError::new(at, "has() takes one selection such as request.headers.name".to_string())),
            };
        }
        Ok(match name.as_str() {
            "true" => Expr::Bool(true),
            "false" => Expr::Bool(false),
            "null" => Expr::Null,
            _ => variable(name, if absolute { &[] } else { &self.scope }, self.unknown),
        })
    }
}

/// The variable `name`: of the macros in `scope`, the innermost last, else of the stream, else a type.
pub(super) fn variable(name: String, scope: &[String], unknown: &mut Vec<String>) -> Expr {
    const TYPES: [&str; 10] = ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];
    if let Some(depth) = scope.iter().rev().position(|s| *s == name) {
        return Expr::Variable(depth);
    }
    if let Some(name) = TYPES.iter().find(|t| **t == name) {
        return Expr::Type(name);
    }
    match attributes::root(&name) {
        Some(root) => Expr::Root(root),
        None => {
            unknown.push(name);
            Expr::Unknown
        }
    }
}

/// `a.name` and `a["name"]` are the same for maps, which is all that attributes have.
pub(super) fn select(expr: Expr, name: String, unknown: &mut Vec<String>) -> Expr {
    let Expr::Root(root) = expr else { return Expr::Select(Box::new(expr), name) };
    if let Some(attribute) = attributes::attribute(root, &name) {
        return Expr::Attribute(attribute);
    }
    if attributes::is_open(root) {
        return Expr::Select(Box::new(Expr::Root(root)), name);
    }
    unknown.push(format!("{}.{name}", attributes::name(root)));
    Expr::Unknown
}

/// `has()` of a selection; none if it is no selection.
pub(super) fn has(selection: Expr) -> Option<Expr> {
    match selection {
        Expr::Select(of, field) => Some(Expr::Has(of, field)),
        attribute @ Expr::Attribute(_) => Some(Expr::Has(Box::new(attribute), String::new())),
        Expr::Unknown => Some(Expr::Unknown),
        _ => None,
    }
}
