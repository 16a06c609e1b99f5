//! Procedural macros of selvedge-sdk. Use them through that crate: `use selvedge_sdk::prelude::*;`.

mod config;

mod filter;

mod hooks;

mod metrics;

mod test;

use proc_macro::TokenStream;

/// Makes an `impl Filter for …` the filter of this crate: on wasm it adds the entry points, elsewhere nothing is exported.
///
/// **Hooks.** Only the callbacks of the hooks that the impl overrides are exported, and a custom section `selvedge.phases` lists
/// them, one name per line, so that a host does not enter the guest for nothing: `request_headers`, `request_body`,
/// `request_trailers`, `response_headers`, `response_body`, `response_trailers`, `log`. A last word, `stateless`, stands there when streams
/// have nothing of their own: no `type Stream`, no hook that awaits something, none that touches a body, no `done`. A host that knows it calls
/// the hooks for the headers and nothing else.
///
/// **Bodies.** Body callbacks are asked for where the hook may read or replace the body: where `.body(`, `.text(`, `.json(`, `.chunk(`,
/// `.transform(`, `.trailers(`, `.set_body(` and the like are called on its first parameter, or where that parameter is handed on (`self.check(request)`; not `self.check(&*request)`), since whoever gets
/// it may read the body. Trailers come with them: a body that is followed by trailers ends there. The attribute
/// overrides this, for a filter that hands the request on and never reads a body, or to say it aloud:
/// `#[filter(body = "none")]`, `"request"`, `"response"`, `"both"`. A hook that reads a body which the attribute denies panics.
///
/// A hook that waits for something else (a callout) exports them too, so that it can hold the body on hosts that show it nevertheless,
/// and does not list them.
///
/// **Left out.** Without `type Stream` the hooks have no `stream` parameter. With it, those that do not need it may leave the parameter
/// out as well. Without `type Config` there are no settings, and the guest carries no JSON parser; `fn new()` has no parameter then, and
/// may itself be left out for a type that is `Default`.
///
/// **About it.** Two more custom sections of the module: `selvedge.schema` holds the JSON Schema of `type Config`, `selvedge.about` says
/// in JSON which crate it is (`name`, `version`, `description`), which `filter`, and which version of the `sdk` it was made with.
///
/// **Outside of exchanges.** `start` and `tick` may be plain functions where they wait for nothing. `done` takes `exchange: &Exchange`, the
/// stream's state, both in this order, or neither.
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

/// Reads a struct with named fields, or an enum, as settings, and writes their JSON Schema (2020-12) into the module.
///
/// ```
/// use selvedge_sdk::prelude::*;
///
/// /// Who may come in.
/// #[derive(Config)]
/// struct Settings {
///     /// The upstream that knows the keys.
///     authz: Upstream,
///     /// How long to wait for it.
///     #[config(default = "250ms", min = "1ms", max = "5s")]
///     timeout: Duration,
///     /// Requests that need no key.
///     #[config(default = ["GET", "HEAD"], max_len = 10)]
///     open: Vec<Method>,
///     /// What happens when nobody answers.
///     #[config(default)]
///     on_failure: OnFailure,
///     /// Signs what is sent on.
///     #[config(secret, min_len = 32)]
///     secret: Option<String>,
/// }
///
/// #[derive(Config, Default)]
/// enum OnFailure {
///     /// The request is refused.
///     #[default]
///     Deny,
///     /// The request goes on.
///     LetPass,
/// }
/// ```
///
/// **Fields** are of the types that implement `Config`: `bool`, numbers, `String`, `Option`, `Vec`, sets, maps, `Duration` (`250ms`,
/// `5s`, `10m`, `1h`, `1d`), `ByteSize` (`64KiB`), `HeaderName`, `HeaderValue`, `Method`, `StatusCode`, `Uri`, `IpAddr`, `Upstream`,
/// `serde_json::Value`, and what derives it. Their doc comments go into the schema. A key that is none of the fields is an error.
///
/// | on a field | says |
/// |---|---|
/// | (nothing) | the key must be there, unless the field is an `Option` |
/// | `default = "5s"`, `= 3`, `= ["a", "b"]` | the value when the key is not there, as it would be written |
/// | `default = function()` | the same by an expression of the field's type; the schema does not show it |
/// | `default` | `Default::default()` |
/// | `min`, `max` | bounds of a number, or, as text, of a `Duration` or `ByteSize` |
/// | `min_len`, `max_len` | bounds of a length: characters of a `String`, entries of a list, set or map |
/// | `pattern = "^[a-z]+$"` | what a text looks like. For the host and for editors: the guest carries no regular expressions, so `new` checks what must hold |
/// | `secret` | the value is not shown in any message |
/// | `rename = "type"` | the key |
/// | `serde`, with `schema = "{…}"` | the type is read by its `Deserialize`; the schema is given by hand (else: anything) |
///
/// **Enums.** A variant without fields is a word, in `snake_case` (`let_pass`); `rename` says another. A variant with a value or with
/// fields is a map with its name as the only key (`{ header: x-user }`). With `#[config(tag = "kind")]` on the enum the name stands
/// beside the fields instead.
///
/// | on a type | says |
/// |---|---|
/// | `default` | implements `Default` from the fields' defaults |
/// | `from_str` | the type is a text, read by its `FromStr`; also `pattern`, `schema` and `default = "…"` (for the schema) |
/// | `serde` | the type is read by its own `Deserialize`; also `schema` and `default` |
/// | `tag` | see above |
///
/// `Deserialize` is implemented as well (not with `serde`). A type cannot hold itself.
#[proc_macro_derive(Config, attributes(config))]
pub fn derive_config(item: TokenStream) -> TokenStream {
    config::expand(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// The metrics of a filter: see `selvedge_sdk::metrics`.
#[proc_macro_derive(Metrics, attributes(metrics, metric, labels))]
pub fn metrics(input: TokenStream) -> TokenStream {
    metrics::expand(input.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
