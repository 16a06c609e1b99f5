//! Procedural macros of selvedge-sdk. Use them through that crate: `use selvedge_sdk::prelude::*;`.

mod filter;

mod hooks;

use proc_macro::TokenStream;

/// Makes an `impl Filter for …` the filter of this crate: on wasm it adds the entry points, elsewhere nothing is exported.
///
/// **Hooks.** Only the callbacks of the hooks that the impl overrides are exported, and a custom section `selvedge.phases` lists
/// them, one name per line, so that a host does not enter the guest for nothing: `request_headers`, `request_body`,
/// `request_trailers`, `response_headers`, `response_body`, `response_trailers`, `log`.
///
/// **Bodies.** Body callbacks are asked for where the hook may read or replace the body: where `.body(` or `.set_body(` is called on
/// its first parameter, or where that parameter is handed on (`self.check(request)`; not `self.check(&*request)`), since whoever gets
/// it may read the body. Trailers come with them: a body that is followed by trailers ends there. The attribute
/// overrides this, for a filter that hands the request on and never reads a body, or to say it aloud:
/// `#[filter(body = "none")]`, `"request"`, `"response"`, `"both"`. A hook that reads a body which the attribute denies panics.
///
/// **Left out.** `type Stream` may be left out (`()`). With `type Config = ();` the guest carries no JSON parser.
///
/// There can be one per crate, without type parameters.
#[proc_macro_attribute]
pub fn filter(attribute: TokenStream, item: TokenStream) -> TokenStream {
    filter::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
