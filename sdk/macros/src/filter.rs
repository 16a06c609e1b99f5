//! `#[filter]`: the entry points and the custom section of a guest.

use proc_macro2::{Literal, TokenStream};
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Ident, ImplItem, ItemImpl, LitStr, Result, Token, parse_quote};

use crate::hooks::{self, Bodies};

/// What stands in the parentheses of the attribute: nothing, or `body = "request" | "response" | "both" | "none"`.
struct Attribute {
    bodies: Option<Bodies>,
}

impl Parse for Attribute {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if input.is_empty() {
            return Ok(Self { bodies: None });
        }

        let key: Ident = input.parse()?;
        if key != "body" {
            return Err(Error::new(key.span(), "the only setting is `body`, as in `#[filter(body = \"request\")]`"));
        }
        input.parse::<Token![=]>()?;
        let value: LitStr = input.parse()?;
        let bodies = match value.value().as_str() {
            "none" => Bodies { request: false, response: false },
            "request" => Bodies { request: true, response: false },
            "response" => Bodies { request: false, response: true },
            "both" => Bodies { request: true, response: true },
            _ => {
                return Err(Error::new(value.span(), "`body` is one of \"none\", \"request\", \"response\", \"both\""));
            }
        };
        Ok(Self { bodies: Some(bodies) })
    }
}

/// The impl with its `HOOKS` (and `Stream`, when it has none), followed by the exports for wasm.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let attribute: Attribute = syn::parse2(attribute)?;
    let mut item: ItemImpl = syn::parse2(item)?;
    if !item.trait_.as_ref().is_some_and(|(_, path, _)| path.segments.last().is_some_and(|last| last.ident == "Filter"))
    {
        return Err(Error::new(item.impl_token.span, "put #[filter] on an `impl Filter for …` block"));
    }
    if !item.generics.params.is_empty() {
        return Err(Error::new(item.impl_token.span, "a filter that is exported to a host cannot be generic"));
    }

    let hooks = hooks::of(&item, attribute.bodies);
    add_associated_items(&mut item, hooks);

    let filter = &item.self_ty;
    let phases = hooks.phases();
    let length = phases.len();
    let phases = Literal::byte_string(phases.as_bytes());
    Ok(quote! {
        #item

        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "a guest is entered through exported symbols")]
        const _: () = {
            #[unsafe(no_mangle)]
            extern "C" fn _initialize() {
                unsafe extern "C" {
                    fn __wasm_call_ctors();
                }
                // SAFETY: the linker makes this function; a host calls `_initialize` once, before anything else.
                unsafe { __wasm_call_ctors() };
                ::selvedge_sdk::guest::start::<#filter>();
            }

            #[used]
            #[unsafe(link_section = "selvedge.phases")]
            static PHASES: [u8; #length] = *#phases;
        };
    })
}

fn add_associated_items(item: &mut ItemImpl, hooks: hooks::Hooks) {
    let has_stream = item.items.iter().any(|item| matches!(item, ImplItem::Type(alias) if alias.ident == "Stream"));
    if !has_stream {
        item.items.push(parse_quote! { type Stream = (); });
    }

    let hooks::Hooks { request, response, done, tick, bodies } = hooks;
    let Bodies { request: request_body, response: response_body } = bodies;
    item.items.push(parse_quote! {
        const HOOKS: ::selvedge_sdk::Hooks = ::selvedge_sdk::Hooks {
            request: #request,
            request_body: #request_body,
            response: #response,
            response_body: #response_body,
            done: #done,
            tick: #tick,
        };
    });
}
