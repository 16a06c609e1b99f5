//! `#[derive(Config)]`: how a type is read, and its JSON Schema.

mod attributes;
mod case;

use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote};
use syn::punctuated::Punctuated;
use syn::{Data, DataEnum, DeriveInput, Error, Field, Fields, Result, Token, Type, Variant};

use self::attributes::{Absence, Container, OfField};

/// `Config`, `Deserialize`, and `Default` where the attribute asks for it.
pub(crate) fn expand(input: TokenStream) -> Result<TokenStream> {
    let input: DeriveInput = syn::parse2(input)?;
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(&input.generics, "settings cannot be generic"));
    }
    let container = Container::of(&input.attrs)?;
    if container.serde || container.from_str {
        return Ok(read_otherwise(&input, &container));
    }
    match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => of_struct(&input, &container, &fields.named),
            _ => Err(Error::new(
                input.ident.span(),
                "settings have names: give the fields names, or say how the type is read: `#[config(from_str)]`, `#[config(serde)]`",
            )),
        },
        Data::Enum(data) => of_enum(&input, &container, data),
        Data::Union(_) => Err(Error::new(input.ident.span(), "a union cannot be read")),
    }
}

/// A type that says itself how it is read: by `FromStr` or by serde.
fn read_otherwise(input: &DeriveInput, container: &Container) -> TokenStream {
    let ident = &input.ident;
    let own = match &container.schema {
        Some(schema) => quote!(::selvedge_sdk::config::Json::Members(#schema)),
        None => {
            let kind = container.from_str.then(|| member("type", &text("string")));
            let pattern = container.pattern.as_ref().map(|pattern| member("pattern", &text(pattern)));
            let members = kind.into_iter().chain(pattern);
            quote!(::selvedge_sdk::config::Json::Object(&[#(#members),*]))
        }
    };
    let docs: Vec<_> = container.docs.iter().map(|docs| member("description", &text(docs))).collect();
    let schema = with(&own, &docs);
    let default = default_member(container);
    let deserialize = container.from_str.then(|| {
        quote! {
            #[automatically_derived]
            impl<'de> ::selvedge_sdk::serde::Deserialize<'de> for #ident {
                fn deserialize<D: ::selvedge_sdk::serde::Deserializer<'de>>(from: D) -> ::std::result::Result<Self, D::Error> {
                    let text: ::std::string::String = ::selvedge_sdk::config::read(from)?;
                    text.parse().map_err(::selvedge_sdk::serde::de::Error::custom)
                }
            }
        }
    });
    quote! {
        #deserialize

        #[automatically_derived]
        impl ::selvedge_sdk::config::Config for #ident {
            const SCHEMA: ::selvedge_sdk::config::Json = #schema;
            #default

            fn read<'de, D: ::selvedge_sdk::serde::Deserializer<'de>>(from: D) -> ::std::result::Result<Self, D::Error> {
                ::selvedge_sdk::serde::Deserialize::deserialize(from)
            }
        }
    }
}

fn of_struct(input: &DeriveInput, container: &Container, fields: &Punctuated<Field, Token![,]>) -> Result<TokenStream> {
    let ident = &input.ident;
    let fields = fields.iter().map(|field| Setting::of(field, "")).collect::<Result<Vec<_>>>()?;
    let functions = fields.iter().map(|field| &field.functions);
    let readers = fields.iter().map(|field| &field.reader);
    let schema = object(&fields, None, container.docs.as_deref());
    let remote = ident.to_string();

    let default = container.default.then(|| {
        let values = fields.iter().map(|field| {
            let (name, value) = (&field.ident, &field.default);
            match value {
                Some(value) => quote!(#name: #value),
                None => {
                    let message =
                        "with `#[config(default)]` on the type, every field needs a default (or is an Option)";
                    let error = Error::new(field.ident.span(), message).into_compile_error();
                    quote!(#name: #error)
                }
            }
        });
        quote! {
            #[automatically_derived]
            impl ::std::default::Default for #ident {
                fn default() -> Self {
                    Self { #(#values),* }
                }
            }
        }
    });
    let default_json = container.default.then(|| {
        quote!(
            const DEFAULT: ::selvedge_sdk::config::Json = ::selvedge_sdk::config::Json::Object(&[]);
        )
    });

    let reader = quote! {
        #[derive(::selvedge_sdk::serde::Deserialize)]
        #[serde(
            crate = "::selvedge_sdk::serde",
            remote = #remote,
            deny_unknown_fields,
            expecting = "a map of settings"
        )]
        struct Reader {
            #(#readers),*
        }
    };
    Ok(assemble(ident, &quote!(#(#functions)* #reader #default), &schema, default_json.as_ref()))
}

fn of_enum(input: &DeriveInput, container: &Container, data: &DataEnum) -> Result<TokenStream> {
    let ident = &input.ident;
    let variants = data.variants.iter().map(|variant| Choice::of(variant, container)).collect::<Result<Vec<_>>>()?;
    let functions = variants.iter().flat_map(|variant| &variant.fields).map(|field| &field.functions);
    let readers = variants.iter().map(|variant| &variant.reader);
    let remote = ident.to_string();
    let tag = container.tag.as_ref().map(|tag| quote!(, tag = #tag));

    let schema = choices(&variants, container);
    let chosen = variants.iter().find(|variant| variant.chosen).map(|variant| text(&variant.name));
    let default = chosen.map(|name| quote!(const DEFAULT: ::selvedge_sdk::config::Json = #name;));

    let reader = quote! {
        #[derive(::selvedge_sdk::serde::Deserialize)]
        #[serde(crate = "::selvedge_sdk::serde", remote = #remote, deny_unknown_fields #tag)]
        enum Reader {
            #(#readers),*
        }
    };
    Ok(assemble(ident, &quote!(#(#functions)* #reader), &schema, default.as_ref()))
}

/// The impls around what reads the type.
fn assemble(ident: &Ident, reader: &TokenStream, schema: &TokenStream, default: Option<&TokenStream>) -> TokenStream {
    quote! {
        #[allow(clippy::all, clippy::pedantic, clippy::nursery, dead_code, reason = "written by a macro")]
        const _: () = {
            #reader

            #[automatically_derived]
            impl<'de> ::selvedge_sdk::serde::Deserialize<'de> for #ident {
                fn deserialize<D: ::selvedge_sdk::serde::Deserializer<'de>>(from: D) -> ::std::result::Result<Self, D::Error> {
                    Reader::deserialize(from)
                }
            }

            #[automatically_derived]
            impl ::selvedge_sdk::config::Config for #ident {
                const SCHEMA: ::selvedge_sdk::config::Json = #schema;
                #default

                fn read<'de, D: ::selvedge_sdk::serde::Deserializer<'de>>(from: D) -> ::std::result::Result<Self, D::Error> {
                    Reader::deserialize(from)
                }
            }
        };
    }
}

/// One field: how it is read, and what its schema says.
struct Setting {
    ident: Ident,
    name: String,
    /// The field for serde's eyes.
    reader: TokenStream,
    /// The functions that it names.
    functions: TokenStream,
    schema: TokenStream,
    required: bool,
    /// The value of a key that is not there.
    default: Option<TokenStream>,
}

impl Setting {
    /// `prefix` keeps the functions of an enum's variants apart.
    fn of(field: &Field, prefix: &str) -> Result<Self> {
        let attributes = OfField::of(&field.attrs)?;
        // The one field of a tuple has no name, and serde reads it without one.
        let ident = field.ident.clone().unwrap_or_else(|| Ident::new("value", Span::call_site()));
        let name = attributes.rename.clone().unwrap_or_else(|| case::plain(&ident));
        let ty = &field.ty;
        let inner = of_option(ty).unwrap_or(ty);

        let default = match &attributes.default {
            Some(default) => Some(default_value(default, &name, inner, of_option(ty).is_some())),
            None => of_option(ty).map(|_| quote!(::std::option::Option::None)),
        };
        let schema = field_schema(&attributes, ty, inner);

        let plain = ident.to_string();
        let plain = plain.trim_start_matches("r#");
        let (read, make) = (format_ident!("read_{prefix}{plain}"), format_ident!("default_{prefix}{plain}"));
        let checks = checks(&attributes, &name, inner);
        let mut functions = TokenStream::new();
        let deserialize_with = if attributes.serde && checks.is_empty() && !attributes.secret {
            quote!()
        } else if checks.is_empty() && !attributes.secret {
            quote!(, deserialize_with = "::selvedge_sdk::config::read")
        } else {
            let hide = attributes.secret.then(|| quote!(.map_err(::selvedge_sdk::config::secret)));
            let value = if attributes.serde {
                quote!(<#ty as ::selvedge_sdk::serde::Deserialize>::deserialize(from) #hide ?)
            } else {
                quote!(<#ty as ::selvedge_sdk::config::Config>::read(from) #hide ?)
            };
            let checks = if checks.is_empty() {
                quote!()
            } else if of_option(ty).is_some() {
                quote!(if let ::std::option::Option::Some(value) = &value { #checks })
            } else {
                quote!({ let value = &value; #checks })
            };
            functions.extend(quote! {
                fn #read<'de, D: ::selvedge_sdk::serde::Deserializer<'de>>(from: D) -> ::std::result::Result<#ty, D::Error> {
                    let value = #value;
                    #checks
                    ::std::result::Result::Ok(value)
                }
            });
            let read = read.to_string();
            quote!(, deserialize_with = #read)
        };
        let serde_default = default.as_ref().map(|value| {
            functions.extend(quote!(fn #make() -> #ty { #value }));
            let make = make.to_string();
            quote!(, default = #make)
        });
        let reader = match &field.ident {
            Some(ident) => quote!(#[serde(rename = #name #serde_default #deserialize_with)] #ident: #ty),
            None if deserialize_with.is_empty() => quote!(#ty),
            None => {
                // Without the comma that stands before it.
                let with = deserialize_with.into_iter().skip(1);
                quote!(#[serde(#(#with)*)] #ty)
            }
        };
        Ok(Self { ident, name, reader, functions, schema, required: default.is_none(), default })
    }
}

fn default_value(default: &Absence, name: &str, inner: &Type, option: bool) -> TokenStream {
    let value = match default {
        Absence::OfType => return quote!(::std::default::Default::default()),
        Absence::Expression(expression) => return expression.to_token_stream(),
        Absence::Literal(literal) => literal.value(),
        // Whatever it is a list of: there is nothing to read.
        Absence::List(list) if list.is_empty() => quote!(::std::vec::Vec::<bool>::new()),
        Absence::List(list) => {
            let list = list.iter().map(attributes::Lit::value);
            quote!(::std::vec![#(#list),*])
        }
    };
    let value = quote!(::selvedge_sdk::config::literal::<#inner>(#name, #value));
    if option { quote!(::std::option::Option::Some(#value)) } else { value }
}

/// The statements that refuse a value (`value`, a reference) outside its bounds.
fn checks(attributes: &OfField, name: &str, inner: &Type) -> TokenStream {
    let mut checks = TokenStream::new();
    let bounds = [(&attributes.min, quote!(<), "at least"), (&attributes.max, quote!(>), "at most")];
    for (bound, beyond, words) in bounds {
        let Some(bound) = bound else { continue };
        let limit = match bound {
            attributes::Lit::Text(text) => quote!(::selvedge_sdk::config::literal::<#inner>(#name, #text)),
            attributes::Lit::Number(number) if is_float(inner) => quote!((#number as #inner)),
            other => other.tokens(),
        };
        let message = format!("{words} {}", bound.shown());
        checks.extend(quote! {
            if *value #beyond #limit {
                return ::std::result::Result::Err(::selvedge_sdk::config::out_of_bounds(#message));
            }
        });
    }
    let lengths = [(attributes.min_len, quote!(<), "at least"), (attributes.max_len, quote!(>), "at most")];
    for (bound, beyond, words) in lengths {
        let Some(bound) = bound else { continue };
        let message = format!("{words} {bound}");
        let bound = Literal::usize_unsuffixed(bound);
        checks.extend(quote! {
            if ::selvedge_sdk::config::Length::length(value) #beyond #bound {
                return ::std::result::Result::Err(::selvedge_sdk::config::wrong_length::<#inner, D::Error>(#message));
            }
        });
    }
    checks
}

fn field_schema(attributes: &OfField, ty: &Type, inner: &Type) -> TokenStream {
    let own = match (&attributes.schema, attributes.serde) {
        (Some(schema), _) => quote!(::selvedge_sdk::config::Json::Members(#schema)),
        (None, true) => quote!(::selvedge_sdk::config::Json::Object(&[])),
        (None, false) => quote!(<#ty as ::selvedge_sdk::config::Config>::SCHEMA),
    };
    let mut members = Vec::new();
    for (bound, number, of_text) in
        [(&attributes.min, "minimum", "x-minimum"), (&attributes.max, "maximum", "x-maximum")]
    {
        match bound {
            None => {}
            // `minimum` and `maximum` are for numbers only.
            Some(attributes::Lit::Text(bound)) => members.push(member(of_text, &text(bound))),
            Some(bound) => members.push(member(number, &bound.json())),
        }
    }
    for (bound, name) in [(attributes.min_len, quote!(LEAST)), (attributes.max_len, quote!(MOST))] {
        if let Some(bound) = bound {
            let bound = bound.to_string();
            members.push(quote! {
                (<#inner as ::selvedge_sdk::config::Length>::#name, ::selvedge_sdk::config::Json::Raw(#bound))
            });
        }
    }
    if let Some(pattern) = &attributes.pattern {
        members.push(member("pattern", &text(pattern)));
    }
    match &attributes.default {
        None | Some(Absence::Expression(_)) => {}
        Some(Absence::OfType) if attributes.serde => {}
        Some(Absence::OfType) => {
            members.push(member("default", &quote!(<#ty as ::selvedge_sdk::config::Config>::DEFAULT)))
        }
        Some(Absence::Literal(literal)) => members.push(member("default", &literal.json())),
        Some(Absence::List(list)) => {
            let list = list.iter().map(attributes::Lit::json);
            members.push(member("default", &quote!(::selvedge_sdk::config::Json::Array(&[#(#list),*]))));
        }
    }
    if attributes.secret {
        members.push(member("writeOnly", &quote!(::selvedge_sdk::config::Json::Raw("true"))));
    }
    if let Some(docs) = &attributes.docs {
        members.push(member("description", &text(docs)));
    }
    with(&own, &members)
}

/// The schema of named fields. `tag`: the member that says which variant it is.
fn object(fields: &[Setting], tag: Option<(&str, &str)>, docs: Option<&str>) -> TokenStream {
    let mut properties: Vec<_> = fields.iter().map(|field| member(&field.name, &field.schema)).collect();
    let mut required: Vec<_> = fields.iter().filter(|field| field.required).map(|field| text(&field.name)).collect();
    if let Some((tag, name)) = tag {
        let name = text(name);
        let constant = member("const", &name);
        properties.insert(0, member(tag, &quote!(::selvedge_sdk::config::Json::Object(&[#constant]))));
        required.insert(0, text(tag));
    }
    let mut members = vec![
        member("type", &text("object")),
        member("properties", &quote!(::selvedge_sdk::config::Json::Object(&[#(#properties),*]))),
        member("additionalProperties", &quote!(::selvedge_sdk::config::Json::Raw("false"))),
    ];
    if !required.is_empty() {
        members.push(member("required", &quote!(::selvedge_sdk::config::Json::Array(&[#(#required),*]))));
    }
    if let Some(docs) = docs {
        members.push(member("description", &text(docs)));
    }
    quote!(::selvedge_sdk::config::Json::Object(&[#(#members),*]))
}

/// One variant of an enum.
struct Choice {
    name: String,
    docs: Option<String>,
    reader: TokenStream,
    kind: Kind,
    fields: Vec<Setting>,
    /// It is the `#[default]`.
    chosen: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unit,
    Value,
    Struct,
}

impl Choice {
    fn of(variant: &Variant, container: &Container) -> Result<Self> {
        let attributes = OfField::of(&variant.attrs)?;
        let name = attributes.rename.clone().unwrap_or_else(|| case::snake(&variant.ident.to_string()));
        let prefix = format!("{}_", case::snake(&variant.ident.to_string()));
        let fields = variant.fields.iter().map(|field| Setting::of(field, &prefix)).collect::<Result<Vec<_>>>()?;
        let kind = match &variant.fields {
            Fields::Unit => Kind::Unit,
            Fields::Unnamed(unnamed) if unnamed.unnamed.len() == 1 && container.tag.is_none() => Kind::Value,
            Fields::Named(_) => Kind::Struct,
            Fields::Unnamed(_) => {
                let message = "a variant has no field, one without a name (and no `tag` then), or fields with names";
                return Err(Error::new_spanned(&variant.fields, message));
            }
        };

        let ident = &variant.ident;
        let readers = fields.iter().map(|field| &field.reader);
        let reader = match kind {
            // With no fields rather than none: serde then refuses those that stand beside the tag.
            Kind::Unit if container.tag.is_some() => quote!(#[serde(rename = #name)] #ident {}),
            Kind::Unit => quote!(#[serde(rename = #name)] #ident),
            Kind::Value => quote!(#[serde(rename = #name)] #ident(#(#readers),*)),
            Kind::Struct => quote!(#[serde(rename = #name)] #ident { #(#readers),* }),
        };
        let chosen = kind == Kind::Unit && variant.attrs.iter().any(|attribute| attribute.path().is_ident("default"));
        Ok(Self { name, docs: attributes.docs, reader, kind, fields, chosen })
    }

    /// What stands in `oneOf`.
    fn schema(&self, tag: Option<&str>) -> TokenStream {
        let docs = self.docs.as_deref();
        let wrapped = |inner: &TokenStream| {
            let (name, value) = (member(&self.name, inner), text(&self.name));
            let mut members = vec![
                member("type", &text("object")),
                member("properties", &quote!(::selvedge_sdk::config::Json::Object(&[#name]))),
                member("required", &quote!(::selvedge_sdk::config::Json::Array(&[#value]))),
                member("additionalProperties", &quote!(::selvedge_sdk::config::Json::Raw("false"))),
            ];
            members.extend(docs.map(|docs| member("description", &text(docs))));
            quote!(::selvedge_sdk::config::Json::Object(&[#(#members),*]))
        };
        match (tag, self.kind, self.fields.as_slice()) {
            (Some(tag), _, fields) => object(fields, Some((tag, &self.name)), docs),
            (None, Kind::Value, [field]) => wrapped(&field.schema),
            (None, _, fields) => wrapped(&object(fields, None, None)),
        }
    }
}

fn choices(variants: &[Choice], container: &Container) -> TokenStream {
    let docs = container.docs.as_ref().map(|docs| member("description", &text(docs)));
    let words: Vec<_> = variants.iter().filter(|variant| variant.kind == Kind::Unit).collect();
    let names = words.iter().map(|variant| text(&variant.name));
    let told = words.iter().map(|variant| text(variant.docs.as_deref().unwrap_or("")));
    let mut members = vec![
        member("type", &text("string")),
        member("enum", &quote!(::selvedge_sdk::config::Json::Array(&[#(#names),*]))),
        member("enumDescriptions", &quote!(::selvedge_sdk::config::Json::Array(&[#(#told),*]))),
    ];
    if container.tag.is_none() && words.len() == variants.len() {
        members.extend(docs);
        return quote!(::selvedge_sdk::config::Json::Object(&[#(#members),*]));
    }

    let tag = container.tag.as_deref();
    let mut forms = Vec::new();
    if tag.is_none() && !words.is_empty() {
        forms.push(quote!(::selvedge_sdk::config::Json::Object(&[#(#members),*])));
    }
    let others = variants.iter().filter(|variant| tag.is_some() || variant.kind != Kind::Unit);
    forms.extend(others.map(|variant| variant.schema(tag)));
    let mut members = vec![member("oneOf", &quote!(::selvedge_sdk::config::Json::Array(&[#(#forms),*])))];
    members.extend(docs);
    quote!(::selvedge_sdk::config::Json::Object(&[#(#members),*]))
}

fn default_member(container: &Container) -> TokenStream {
    let Some(json) = &container.default_json else { return quote!() };
    quote!(const DEFAULT: ::selvedge_sdk::config::Json = ::selvedge_sdk::config::Json::Raw(#json);)
}

fn with(own: &TokenStream, members: &[TokenStream]) -> TokenStream {
    if members.is_empty() {
        return own.clone();
    }
    quote!(::selvedge_sdk::config::Json::With(&#own, &[#(#members),*]))
}

fn member(name: &str, value: &TokenStream) -> TokenStream {
    quote!((#name, #value))
}

fn text(text: &str) -> TokenStream {
    quote!(::selvedge_sdk::config::Json::Text(#text))
}

/// What an `Option<…>` holds.
fn of_option(ty: &Type) -> Option<&Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first()? {
        syn::GenericArgument::Type(inner) if last.ident == "Option" => Some(inner),
        _ => None,
    }
}

fn is_float(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident("f64") || path.path.is_ident("f32"))
}
