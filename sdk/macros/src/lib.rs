//! Procedural macros of selvedge-sdk. Use them through that crate: `use selvedge_sdk::prelude::*;`.

mod filter;

mod hooks;

mod test;

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

/// Makes a function that takes a `Tester` a test on each host: `name::native` runs the filter in the test's own process, on a fake host;
/// `name::wasm` builds the crate to wasm and runs the very same body on the module, in the shipped host, in process. The manual is the
/// documentation of crate `selvedge-sdk-testing`, which a crate that uses this needs among its `[dev-dependencies]`.
///
/// ```ignore
/// #[selvedge_sdk::test]
/// fn strangers_are_sent_away(tester: Tester<Office>) {
///     let tester = tester.config(json!({ "prefix": "/admin" })).client("203.0.113.9");
///     assert_eq!(tester.get("/admin/users").send().status(), 403);
/// }
/// ```
///
/// - `name::wasm` needs feature `wasm` of selvedge-sdk-testing, which brings the host; without it, the test is listed as ignored.
/// - `#[selvedge_sdk::test(hosts(native))]`, `hosts(wasm)`: on that host only.
/// - `profile = "…"`: the cargo profile that the module is built with. Default: `wasm` where the workspace has such a profile, else
///   `release`.
/// - `example = "…"`: the module is this example of the crate (`crate-type = ["cdylib"]`) in place of its library.
/// - `#[ignore]` and `#[should_panic]` hold for both tests, and the body may return a `Result`.
#[proc_macro_attribute]
pub fn test(attribute: TokenStream, item: TokenStream) -> TokenStream {
    test::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
