//! What stands in `#[config(…)]`, and doc comments.

use proc_macro2::{Literal, TokenStream};
use quote::quote;
use syn::meta::ParseNestedMeta;
use syn::parse::ParseStream;
use syn::spanned::Spanned as _;
use syn::{Attribute, Error, Expr, ExprLit, ExprUnary, Lit as SynLit, LitInt, LitStr, Meta, Result, Token, UnOp};

/// On a struct or an enum.
#[derive(Default)]
pub(super) struct Container {
    pub(super) docs: Option<String>,
    pub(super) default: bool,
    pub(super) default_json: Option<String>,
    pub(super) serde: bool,
    pub(super) from_str: bool,
    pub(super) schema: Option<String>,
    pub(super) pattern: Option<String>,
    pub(super) tag: Option<String>,
}

impl Container {
    pub(super) fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut container = Self { docs: docs(attributes), ..Self::default() };
        each(attributes, |meta| {
            let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            match name.as_str() {
                "default" if meta.input.peek(Token![=]) => container.default_json = Some(parse_default(&meta)?),
                "default" => container.default = true,
                "serde" => container.serde = true,
                "from_str" => container.from_str = true,
                "schema" => container.schema = Some(object_text(&meta)?),
                "pattern" => container.pattern = Some(text(&meta)?),
                "tag" => container.tag = Some(text(&meta)?),
                _ => return Err(meta.error("a type takes: default, tag, serde, from_str, pattern, schema")),
            }
            Ok(())
        })?;
        Ok(container)
    }
}

fn parse_default(meta: &ParseNestedMeta<'_>) -> Result<String> {
    let expression: Expr = meta.value()?.parse()?;
    let Some(lit) = Lit::of(&expression) else {
        return Err(Error::new(expression.span(), "the default of a type is a literal"));
    };
    Ok(lit.raw_json())
}

/// On a field or a variant.
#[derive(Default)]
pub(super) struct OfField {
    pub(super) docs: Option<String>,
    pub(super) rename: Option<String>,
    pub(super) default: Option<Absence>,
    pub(super) min: Option<Lit>,
    pub(super) max: Option<Lit>,
    pub(super) min_len: Option<usize>,
    pub(super) max_len: Option<usize>,
    pub(super) pattern: Option<String>,
    pub(super) secret: bool,
    pub(super) serde: bool,
    pub(super) schema: Option<String>,
}

/// The value of a key that is not there.
pub(super) enum Absence {
    /// `default`: the type's own.
    OfType,
    /// `default = "5s"`.
    Literal(Lit),
    /// `default = ["GET", "HEAD"]`.
    List(Vec<Lit>),
    /// `default = some::function()`.
    Expression(Box<Expr>),
}

impl OfField {
    pub(super) fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut field = Self { docs: docs(attributes), ..Self::default() };
        each(attributes, |meta| {
            let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            match name.as_str() {
                "rename" => field.rename = Some(text(&meta)?),
                "default" if meta.input.peek(Token![=]) => field.default = Some(Absence::of(meta.value()?)?),
                "default" => field.default = Some(Absence::OfType),
                "min" => field.min = Some(literal(&meta)?),
                "max" => field.max = Some(literal(&meta)?),
                "min_len" => field.min_len = Some(meta.value()?.parse::<LitInt>()?.base10_parse()?),
                "max_len" => field.max_len = Some(meta.value()?.parse::<LitInt>()?.base10_parse()?),
                "pattern" => field.pattern = Some(text(&meta)?),
                "secret" => field.secret = true,
                "serde" => field.serde = true,
                "schema" => field.schema = Some(object_text(&meta)?),
                _ => {
                    return Err(meta.error(
                        "a field takes: default, min, max, min_len, max_len, pattern, secret, rename, serde, schema",
                    ));
                }
            }
            Ok(())
        })?;
        Ok(field)
    }
}

impl Absence {
    fn of(input: ParseStream<'_>) -> Result<Self> {
        let expression: Expr = input.parse()?;
        if let Some(lit) = Lit::of(&expression) {
            return Ok(Self::Literal(lit));
        }
        if let Expr::Array(array) = &expression
            && let Some(list) = array.elems.iter().map(Lit::of).collect()
        {
            return Ok(Self::List(list));
        }
        Ok(Self::Expression(Box::new(expression)))
    }
}

/// A literal of JSON.
#[derive(Clone)]
pub(super) enum Lit {
    Text(String),
    Bool(bool),
    /// With its sign.
    Number(Literal),
    Float(Literal),
}

impl Lit {
    fn of(expression: &Expr) -> Option<Self> {
        let (expression, minus) = match expression {
            Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => (&**expr, true),
            expression => (expression, false),
        };
        let Expr::Lit(ExprLit { lit, .. }) = expression else { return None };
        Some(match lit {
            SynLit::Str(text) if !minus => Self::Text(text.value()),
            SynLit::Bool(value) if !minus => Self::Bool(value.value),
            SynLit::Int(number) if minus => Self::Number(Literal::i64_unsuffixed(-number.base10_parse::<i64>().ok()?)),
            SynLit::Int(number) => Self::Number(Literal::u64_unsuffixed(number.base10_parse().ok()?)),
            SynLit::Float(number) => {
                let number: f64 = number.base10_parse().ok()?;
                Self::Float(Literal::f64_unsuffixed(if minus { -number } else { number }))
            }
            _ => return None,
        })
    }

    /// As an expression.
    pub(super) fn tokens(&self) -> TokenStream {
        match self {
            Self::Text(text) => quote!(#text),
            Self::Bool(value) => quote!(#value),
            Self::Number(number) | Self::Float(number) => quote!(#number),
        }
    }

    /// As an expression whose type does not depend on where it stands.
    pub(super) fn value(&self) -> TokenStream {
        match self {
            Self::Number(number) if number.to_string().starts_with('-') => quote!((#number as i64)),
            Self::Number(number) => quote!((#number as u64)),
            Self::Float(number) => quote!((#number as f64)),
            other => other.tokens(),
        }
    }

    /// As JSON, for the schema.
    pub(super) fn json(&self) -> TokenStream {
        match self {
            Self::Text(text) => quote!(::selvedge_sdk::config::Json::Text(#text)),
            other => {
                let json = other.shown();
                quote!(::selvedge_sdk::config::Json::Raw(#json))
            }
        }
    }

    fn raw_json(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            other => other.shown(),
        }
    }

    /// For an operator.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Bool(value) => value.to_string(),
            Self::Number(number) | Self::Float(number) => number.to_string(),
        }
    }
}

fn each(attributes: &[Attribute], mut take: impl FnMut(ParseNestedMeta<'_>) -> Result<()>) -> Result<()> {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("config")) {
        attribute.parse_nested_meta(&mut take)?;
    }
    Ok(())
}

fn text(meta: &ParseNestedMeta<'_>) -> Result<String> {
    Ok(meta.value()?.parse::<LitStr>()?.value())
}

/// A schema by hand, without its braces.
fn object_text(meta: &ParseNestedMeta<'_>) -> Result<String> {
    let literal: LitStr = meta.value()?.parse()?;
    let schema = literal.value();
    if let Some(members) = schema.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        return Ok(members.trim().to_owned());
    }
    Err(Error::new(literal.span(), "a schema is a JSON object, as in `{\"type\": \"string\"}`"))
}

fn literal(meta: &ParseNestedMeta<'_>) -> Result<Lit> {
    let expression: Expr = meta.value()?.parse()?;
    Lit::of(&expression).ok_or_else(|| Error::new(expression.span(), "a bound is a literal, as in 5 or \"5s\""))
}

/// The doc comment: lines joined, paragraphs apart.
fn docs(attributes: &[Attribute]) -> Option<String> {
    let mut docs = String::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        let Meta::NameValue(value) = &attribute.meta else { continue };
        let Expr::Lit(ExprLit { lit: SynLit::Str(line), .. }) = &value.value else { continue };
        let line = line.value();
        match line.trim() {
            "" => docs.push_str("\n\n"),
            line => {
                if !docs.is_empty() && !docs.ends_with('\n') {
                    docs.push(' ');
                }
                docs.push_str(line);
            }
        }
    }
    let docs = docs.trim();
    (!docs.is_empty()).then(|| docs.to_owned())
}
