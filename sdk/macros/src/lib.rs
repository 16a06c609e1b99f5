//! Procedural macros of selvedge-sdk. Use them through that crate: `use selvedge_sdk::prelude::*;`.

mod filter;

mod hooks;

use proc_macro::TokenStream;

/// Makes an `impl Filter for …` the filter of this crate. See `selvedge_sdk::filter` for the description.
#[proc_macro_attribute]
pub fn filter(attribute: TokenStream, item: TokenStream) -> TokenStream {
    filter::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
