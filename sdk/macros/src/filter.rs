//! `#[filter]`: the entry points and the custom section of a guest.

use proc_macro2::{Literal, TokenStream};
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{Error, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, LitStr, Result, Token, Type, parse_quote};

use crate::hooks::{self, Bodies, Hooks};

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

/// The impl with its `HOOKS` and what was left out, followed by the exports for wasm.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let attribute: Attribute = syn::parse2(attribute)?;
    let mut item: ItemImpl = syn::parse2(item)?;
    let name = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
    if name.is_none_or(|name| name.ident != "Filter") {
        return Err(Error::new(item.impl_token.span, "put #[filter] on an `impl Filter for …` block"));
    }
    if !item.generics.params.is_empty() {
        return Err(Error::new(item.impl_token.span, "a filter that is exported to a host cannot be generic"));
    }

    let hooks = hooks::of(&item, attribute.bodies);
    add_associated_items(&mut item, hooks);

    let exports = exports(&item.self_ty, hooks);
    Ok(quote! {
        #item
        #exports
    })
}

/// The entry points for wasm: those that every guest has, and those that this filter's hooks need.
fn exports(filter: &Type, hooks: Hooks) -> TokenStream {
    let phases = hooks.phases();
    let length = phases.len();
    let phases = Literal::byte_string(phases.as_bytes());

    let request = hooks.request.then(|| {
        quote! {
            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_headers(id: u32, _count: usize, end: u32) -> u32 {
                GUEST.with(|guest| guest.on_request_headers(id, end))
            }
        }
    });
    let request_body = (hooks.request && (hooks.bodies.request || hooks.waits.request)).then(|| {
        quote! {
            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_body(id: u32, held: usize, end: u32) -> u32 {
                GUEST.with(|guest| guest.on_request_body(id, held, end))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_trailers(id: u32, _count: usize) -> u32 {
                GUEST.with(|guest| guest.on_request_trailers(id))
            }
        }
    });
    let response = hooks.response.then(|| {
        quote! {
            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_headers(id: u32, _count: usize, end: u32) -> u32 {
                GUEST.with(|guest| guest.on_response_headers(id, end))
            }
        }
    });
    let response_body = (hooks.response && (hooks.bodies.response || hooks.waits.response)).then(|| {
        quote! {
            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_body(id: u32, held: usize, end: u32) -> u32 {
                GUEST.with(|guest| guest.on_response_body(id, held, end))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_trailers(id: u32, _count: usize) -> u32 {
                GUEST.with(|guest| guest.on_response_trailers(id))
            }
        }
    });
    let done = hooks.done.then(|| {
        quote! {
            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_log(id: u32) {
                GUEST.with(|guest| guest.on_log(id));
            }
        }
    });
    let tick = hooks.tick.then(|| {
        quote! {
            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_tick(id: u32) {
                GUEST.with(|guest| guest.on_tick(id));
            }
        }
    });

    quote! {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "a guest is entered through exported symbols")]
        const _: () = {
            ::std::thread_local! {
                static GUEST: ::selvedge_sdk::guest::Guest<#filter> = const { ::selvedge_sdk::guest::Guest::new() };
            }

            #[used]
            #[unsafe(link_section = "selvedge.phases")]
            static PHASES: [u8; #length] = *#phases;

            const SCHEMA: ::selvedge_sdk::config::Json =
                ::selvedge_sdk::config::Root::<<#filter as ::selvedge_sdk::Filter>::Config>::SCHEMA;

            #[used]
            #[unsafe(link_section = "selvedge.schema")]
            static SCHEMA_SECTION: [u8; SCHEMA.length()] = SCHEMA.bytes();

            const ABOUT: ::selvedge_sdk::config::Json = ::selvedge_sdk::config::Json::Object(&[
                ("name", ::selvedge_sdk::config::Json::Text(::std::env!("CARGO_PKG_NAME"))),
                ("version", ::selvedge_sdk::config::Json::Text(::std::env!("CARGO_PKG_VERSION"))),
                ("description", ::selvedge_sdk::config::Json::Text(::std::env!("CARGO_PKG_DESCRIPTION"))),
                ("filter", ::selvedge_sdk::config::Json::Text(::std::stringify!(#filter))),
                ("sdk", ::selvedge_sdk::config::Json::Text(::selvedge_sdk::VERSION)),
            ]);

            #[used]
            #[unsafe(link_section = "selvedge.about")]
            static ABOUT_SECTION: [u8; ABOUT.length()] = ABOUT.bytes();

            #[unsafe(no_mangle)]
            extern "C" fn _initialize() {
                unsafe extern "C" {
                    fn __wasm_call_ctors();
                }
                // SAFETY: the linker makes this function; a host calls `_initialize` once, before anything else.
                unsafe { __wasm_call_ctors() };
                ::selvedge_sdk::guest::initialize();
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_vm_start(_id: u32, _size: usize) -> u32 {
                1
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_configure(id: u32, _size: usize) -> u32 {
                GUEST.with(|guest| guest.on_configure(id))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_context_create(id: u32, parent: u32) {
                GUEST.with(|guest| guest.on_context_create(id, parent));
            }

            #request
            #request_body
            #response
            #response_body

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_http_call_response(_id: u32, token: u32, headers: usize, body: usize, _trailers: usize) {
                GUEST.with(|guest| guest.on_http_call_response(token, headers, body));
            }

            // The answer to a gRPC call: a message of this length.
            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_grpc_receive(_id: u32, token: u32, size: usize) {
                GUEST.with(|guest| guest.on_http_call_response(token, 1, size));
            }

            // … or the status with which it has failed.
            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_grpc_close(_id: u32, token: u32, status: usize) {
                GUEST.with(|guest| guest.on_http_call_response(token, 0, status));
            }

            #tick

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_done(_id: u32) -> u32 {
                1
            }

            #done

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_delete(id: u32) {
                GUEST.with(|guest| guest.on_delete(id));
            }
        };
    }
}

fn add_associated_items(item: &mut ItemImpl, hooks: Hooks) {
    if hooks::associated_type(item, "Stream").is_none() {
        item.items.push(parse_quote! { type Stream = (); });
    }
    let config = hooks::associated_type(item, "Config");
    let without = config.is_none();
    let nothing = config.is_some_and(hooks::is_nothing);
    if without {
        item.items.push(parse_quote! { type Config = (); });
    }
    if without && hooks::method(item, "new").is_none() {
        item.items.push(parse_quote! {
            fn new((): ()) -> ::std::result::Result<Self, ::std::string::String> {
                ::std::result::Result::Ok(<Self as ::std::default::Default>::default())
            }
        });
    }
    if without || nothing {
        item.items.push(parse_quote! {
            fn configure(json: &[u8]) -> ::std::result::Result<Self, ::std::string::String> {
                ::selvedge_sdk::config::parse_nothing(json).and_then(<Self as ::selvedge_sdk::Filter>::new)
            }
        });
    }
    for item in &mut item.items {
        if let ImplItem::Fn(function) = item {
            add_parameters(function);
        }
    }

    let Hooks { request, response, done, start, tick, bodies, waits, keeps: _ } = hooks;
    let Bodies { request: request_body, response: response_body } = bodies;
    let Bodies { request: request_waits, response: response_waits } = waits;
    item.items.push(parse_quote! {
        const HOOKS: ::selvedge_sdk::Hooks = ::selvedge_sdk::Hooks {
            request: #request,
            request_body: #request_body,
            request_waits: #request_waits,
            response: #response,
            response_body: #response_body,
            response_waits: #response_waits,
            done: #done,
            start: #start,
            tick: #tick,
        };
    });
}

/// The parameters that a filter without settings, or a hook without use for the stream's state, leaves out.
fn add_parameters(function: &mut ImplItemFn) {
    let inputs = &mut function.sig.inputs;
    match function.sig.ident.to_string().as_str() {
        "new" if inputs.is_empty() => inputs.push(parse_quote! { (): () }),
        "request" | "response" if inputs.len() == 2 => {
            inputs.push(parse_quote! { _: &mut <Self as ::selvedge_sdk::Filter>::Stream });
        }
        "done" => {
            if !inputs.iter().any(is_exchange) {
                inputs.insert(1, parse_quote! { _: &::selvedge_sdk::Exchange });
            }
            if inputs.len() == 2 {
                inputs.push(parse_quote! { _: &<Self as ::selvedge_sdk::Filter>::Stream });
            }
        }
        // One that waits for nothing.
        "start" | "tick" if function.sig.asyncness.is_none() => function.sig.asyncness = Some(parse_quote!(async)),
        _ => {}
    }
}

/// `exchange: &Exchange`
fn is_exchange(argument: &FnArg) -> bool {
    let FnArg::Typed(argument) = argument else { return false };
    let Type::Reference(reference) = &*argument.ty else { return false };
    matches!(&*reference.elem, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Exchange"))
}
