//! `#[derive(Metrics)]`: the metrics of a filter, one for each field of a struct.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, Ident, LitStr, Result, Token};

/// The impl of `Metrics`. What a field is, its type says; that it has as many labels as its type is checked where it is compiled.
pub(crate) fn expand(input: TokenStream) -> Result<TokenStream> {
    let input: DeriveInput = syn::parse2(input)?;
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(input.ident.span(), "#[derive(Metrics)] is for a struct with a field for each metric"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new(input.ident.span(), "the fields need names: they name the metrics"));
    };

    let settings = Settings::of(&input.attrs)?;
    let metrics: Vec<TokenStream> = fields.named.iter().map(|field| metric(field, &settings)).collect::<Result<_>>()?;
    let name = &input.ident;
    let (generics, arguments, clause) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #generics ::selvedge_sdk::metrics::Metrics for #name #arguments #clause {
            fn define() -> Self {
                Self { #(#metrics),* }
            }
        }
    })
}

fn metric(field: &Field, settings: &Settings) -> Result<TokenStream> {
    let ident = field.ident.as_ref().ok_or_else(|| Error::new(field.span(), "a metric needs a name"))?;
    let given = setting(&field.attrs, "metric", "name")?;
    let name = match given {
        Some(name) => name,
        None => LitStr::new(&format!("{}{}", settings.prefix, ident.unraw()), ident.span()),
    };
    if !is_name(&name.value()) {
        return Err(Error::new(name.span(), "a metric's name is letters, digits and `_`, and begins with no digit"));
    }

    let labels = labels(field)?;
    let (count, ty) = (labels.len(), &field.ty);
    let message = format!("metric `{ident}`: its type has another number of labels than #[labels(…)] names");
    let check = quote_spanned! { ty.span() =>
        const { assert!(<#ty as ::selvedge_sdk::metrics::Handle>::LABELS == #count, #message) }
    };
    Ok(quote! {
        #ident: {
            #check
            <#ty as ::selvedge_sdk::metrics::Handle>::define(#name, &[#(#labels),*])
        }
    })
}

/// The names in `#[labels(…)]`, as strings or as plain words.
fn labels(field: &Field) -> Result<Vec<LitStr>> {
    let Some(attribute) = field.attrs.iter().find(|attribute| attribute.path().is_ident("labels")) else {
        return Ok(Vec::new());
    };
    let given = attribute.parse_args_with(Punctuated::<Word, Token![,]>::parse_terminated)?;
    let labels: Vec<LitStr> = given.into_iter().map(|Word(label)| label).collect();
    for (at, label) in labels.iter().enumerate() {
        let name = label.value();
        if !is_name(&name) || name.starts_with("__") {
            return Err(Error::new(
                label.span(),
                "a label's name is letters, digits and `_`, and begins with no digit",
            ));
        }
        if ["le", "quantile", "metric"].contains(&name.as_str()) {
            return Err(Error::new(label.span(), "this label has a meaning of its own: take another name"));
        }
        if labels[..at].iter().any(|other| other.value() == name) {
            return Err(Error::new(label.span(), "this label is there already"));
        }
    }
    if labels.is_empty() || labels.len() > 8 {
        return Err(Error::new(attribute.span(), "a metric with labels has 1 to 8 of them"));
    }
    Ok(labels)
}

/// A label: `"result"` or `result`.
struct Word(LitStr);

impl Parse for Word {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if input.peek(LitStr) {
            return input.parse().map(Word);
        }
        let ident = input.call(Ident::parse_any)?;
        Ok(Word(LitStr::new(&ident.to_string(), ident.span())))
    }
}

/// What `#[metrics(…)]` says about all of them.
struct Settings {
    prefix: String,
}

impl Settings {
    fn of(attributes: &[Attribute]) -> Result<Self> {
        let prefix = setting(attributes, "metrics", "prefix")?;
        if let Some(prefix) = &prefix
            && !is_name(&prefix.value())
        {
            return Err(Error::new(prefix.span(), "a prefix is letters, digits and `_`, and begins with no digit"));
        }
        Ok(Self { prefix: prefix.map(|prefix| prefix.value()).unwrap_or_default() })
    }
}

/// The text of `key` in `#[attribute(key = "text")]`. Other keys than those there are make an error.
fn setting(attributes: &[Attribute], attribute: &str, key: &str) -> Result<Option<LitStr>> {
    let known: &[&str] = if attribute == "metrics" { &["prefix"] } else { &["name"] };
    let mut found = None;
    for attribute in attributes.iter().filter(|given| given.path().is_ident(attribute)) {
        attribute.parse_nested_meta(|meta| {
            if !known.iter().any(|known| meta.path.is_ident(known)) {
                return Err(meta.error(format!("known here: {}", known.join(", "))));
            }
            let value: LitStr = meta.value()?.parse()?;
            if meta.path.is_ident(key) {
                found = Some(value);
            }
            Ok(())
        })?;
    }
    Ok(found)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_said() {
        let table = [
            ("enum Stats {}", "for a struct"),
            ("struct Stats(Counter);", "need names"),
            ("#[metrics(prefix = \"a-b\")] struct Stats { a: Counter }", "a prefix is letters"),
            ("#[metrics(suffix = \"a\")] struct Stats { a: Counter }", "known here: prefix"),
            ("struct Stats { #[metric(name = \"a b\")] a: Counter }", "a metric's name is letters"),
            ("struct Stats { #[labels(\"1st\")] a: Counter<1> }", "a label's name is letters"),
            ("struct Stats { #[labels(le)] a: Counter<1> }", "a meaning of its own"),
            ("struct Stats { #[labels(a, \"a\")] a: Counter<2> }", "there already"),
            ("struct Stats { #[labels()] a: Counter }", "1 to 8"),
        ];
        for (text, fault) in table {
            let error = expand(text.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }

    #[test]
    fn names_come_from_the_fields_behind_the_prefix() {
        let text =
            "#[metrics(prefix = \"x_\")] struct Stats { hits: Counter, #[metric(name = \"other\")] r#type: Counter }";
        let expanded = expand(text.parse().unwrap()).unwrap().to_string();
        assert!(expanded.contains("\"x_hits\"") && expanded.contains("\"other\""), "{expanded}");
    }
}
