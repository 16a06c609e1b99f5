//! Which hooks an `impl Filter` overrides, and whether they may read or replace a body.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{FnArg, ImplItem, ImplItemFn, ItemImpl, Pat, Type};

/// The methods of a request or response that need its body callbacks.
const BODY_METHODS: [&str; 12] = [
    "body",
    "body_prefix",
    "bytes",
    "chunk",
    "json",
    "set_body",
    "set_chunk",
    "set_json",
    "set_text",
    "text",
    "trailers",
    "transform",
];

/// Whose body the filter reads or replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bodies {
    pub(crate) request: bool,
    pub(crate) response: bool,
}

/// What the host has to call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    pub(crate) request: bool,
    pub(crate) response: bool,
    pub(crate) done: bool,
    pub(crate) start: bool,
    pub(crate) tick: bool,
    pub(crate) bodies: Bodies,
    /// Which hooks may wait. Hosts that show the body while the headers are held (Envoy, as the SDK asks it to) take a body callback that
    /// is not there for a yes, and let headers and body go: so a hook that waits needs one, to say no.
    pub(crate) waits: Bodies,
    /// The filter keeps something of a stream from one hook to the next.
    pub(crate) keeps: bool,
}

/// Looks at the methods of the impl. `declared` is what the attribute says about bodies; without it the token streams decide.
pub(crate) fn of(item: &ItemImpl, declared: Option<Bodies>) -> Hooks {
    let request = method(item, "request");
    let response = method(item, "response");
    let found = Bodies { request: request.is_some_and(needs_body), response: response.is_some_and(needs_body) };

    Hooks {
        request: request.is_some(),
        response: response.is_some(),
        done: method(item, "done").is_some(),
        start: method(item, "start").is_some(),
        tick: method(item, "tick").is_some(),
        bodies: declared.unwrap_or(found),
        waits: Bodies { request: request.is_some_and(may_wait), response: response.is_some_and(may_wait) },
        keeps: associated_type(item, "Stream").is_some_and(|kept| !is_nothing(kept)),
    }
}

impl Hooks {
    /// The names of the custom section `selvedge.phases`, one per line.
    ///
    /// A body that is followed by trailers ends with the trailers callback (the last body callback says "more to come"), so
    /// whoever waits for a whole body needs that callback as well.
    ///
    /// `stateless` is no callback. It says that the guest has no use for the beginning and the end of streams, nor for an id that lasts
    /// longer than a callback. Other hosts create and delete streams as ever.
    pub(crate) fn phases(self) -> String {
        let phases = [
            ("request_headers", self.request),
            ("request_body", self.request && self.bodies.request),
            ("request_trailers", self.request && self.bodies.request),
            ("response_headers", self.response),
            ("response_body", self.response && self.bodies.response),
            ("response_trailers", self.response && self.bodies.response),
            ("log", self.done),
            ("stateless", self.is_stateless()),
        ];
        phases.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name).collect::<Vec<_>>().join("\n")
    }

    /// Whether nothing remains of a stream between two hooks. The runtime decides the same from `Filter::HOOKS` and the size of
    /// `Filter::Stream` (`MAY_REMAIN`), and keeps nothing where this is true.
    fn is_stateless(self) -> bool {
        let none = Bodies::default();
        (self.request || self.response) && !self.done && !self.keeps && self.bodies == none && self.waits == none
    }
}

pub(crate) fn method<'a>(item: &'a ItemImpl, name: &str) -> Option<&'a ImplItemFn> {
    item.items.iter().find_map(|item| match item {
        ImplItem::Fn(function) if function.sig.ident == name => Some(function),
        _ => None,
    })
}

pub(crate) fn associated_type<'a>(item: &'a ItemImpl, name: &str) -> Option<&'a Type> {
    item.items.iter().find_map(|item| match item {
        ImplItem::Type(alias) if alias.ident == name => Some(&alias.ty),
        _ => None,
    })
}

/// `()`
pub(crate) fn is_nothing(kind: &Type) -> bool {
    matches!(kind, Type::Tuple(tuple) if tuple.elems.is_empty())
}

/// Whether the hook may touch the body of its message. A message that is handed on (`self.check(req)`) may be read by whoever
/// gets it, so that counts: a body callback too many costs a little, one too few would leave the filter waiting for ever.
fn needs_body(function: &ImplItemFn) -> bool {
    let message = function.sig.inputs.iter().find_map(|argument| match argument {
        FnArg::Receiver(_) => None,
        FnArg::Typed(argument) => Some(&*argument.pat),
    });
    match message {
        Some(Pat::Ident(pattern)) => touches_body(function.block.to_token_stream(), &pattern.ident.to_string()),
        Some(Pat::Wild(_)) => false,
        _ => true,
    }
}

/// Whether the hook may be pending: it awaits something, or calls a macro that might (`futures::join!`), or does not show what it does
/// because it gives a future of others, or is rewritten by an attribute.
fn may_wait(function: &ImplItemFn) -> bool {
    fn awaits(tokens: TokenStream) -> bool {
        /// Macros that wait for nothing; what is in their parentheses is looked at.
        const PLAIN: [&str; 14] = [
            "trace",
            "debug",
            "info",
            "warn",
            "error",
            "format",
            "format_args",
            "matches",
            "vec",
            "assert",
            "assert_eq",
            "debug_assert",
            "panic",
            "unreachable",
        ];
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        tokens.iter().enumerate().any(|(at, token)| match token {
            TokenTree::Group(group) => awaits(group.stream()),
            TokenTree::Ident(ident) if *ident == "await" => true,
            TokenTree::Ident(ident) => {
                let is_macro = matches!(tokens.get(at + 1), Some(TokenTree::Punct(mark)) if mark.as_char() == '!')
                    && matches!(tokens.get(at + 2), Some(TokenTree::Group(_)));
                is_macro && !PLAIN.iter().any(|name| ident == name)
            }
            _ => false,
        })
    }
    /// Attributes that leave the code as it is.
    const PLAIN: [&str; 8] = ["allow", "cfg", "deny", "doc", "expect", "inline", "must_use", "warn"];
    let rewritten = function.attrs.iter().any(|attribute| !PLAIN.iter().any(|name| attribute.path().is_ident(name)));
    function.sig.asyncness.is_none() || rewritten || awaits(function.block.to_token_stream())
}

fn touches_body(tokens: TokenStream, message: &str) -> bool {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    tokens.iter().enumerate().any(|(at, token)| match token {
        TokenTree::Group(group) => touches_body(group.stream(), message),
        TokenTree::Ident(ident) if *ident == message => match (tokens.get(at + 1), tokens.get(at + 2)) {
            (Some(TokenTree::Punct(dot)), Some(TokenTree::Ident(method))) if dot.as_char() == '.' => {
                BODY_METHODS.iter().any(|name| method == name)
            }
            _ => !is_shared_borrow(&tokens[..at]),
        },
        _ => false,
    })
}

/// Whether what comes next is borrowed as `&` or `&*`: then nobody can read the body, which takes `&mut`.
fn is_shared_borrow(before: &[TokenTree]) -> bool {
    let is = |token: &TokenTree, sign| matches!(token, TokenTree::Punct(punct) if punct.as_char() == sign);
    match before {
        [.., ampersand, star] if is(star, '*') => is(ampersand, '&'),
        [.., ampersand] => is(ampersand, '&'),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn lists_only_the_hooks_that_are_overridden() {
        let item = parse_quote! {
            impl Filter for Hello {
                fn new(_: ()) -> Result<Self, String> { Ok(Hello) }
                async fn response(&self, res: &mut Response, _: &mut ()) -> Flow { res.set_header("x", "y"); Ok(Next) }
            }
        };
        assert_eq!(of(&item, None).phases(), "response_headers\nstateless");
    }

    #[test]
    fn a_filter_is_stateless_whose_streams_have_nothing_of_their_own() {
        let request =
            "async fn request(&self, request: &mut Request) -> Flow { request.set_header(\"x\", \"y\"); Ok(Next) }";
        let response = "async fn response(&self, response: &mut Response) -> Flow { Ok(Next) }";
        let table = [
            (format!("{request} {response}"), true),
            (response.to_owned(), true),
            (format!("type Stream = (); {request}"), true),
            (format!("{request} async fn start(&self) {{ fetch().await; }} fn tick(&self) {{}}"), true),
            (format!("type Stream = u32; {request}"), false),
            (format!("{request} fn done(&self) {{}}"), false),
            (
                format!(
                    "{response} async fn request(&self, request: &mut Request) -> Flow {{ ask().await?; Ok(Next) }}"
                ),
                false,
            ),
            ("async fn request(&self, request: &mut Request) -> Flow { self.ask(request) }".to_owned(), false),
            (
                "async fn request(&self, request: &mut Request) -> Flow { request.set_body(\"x\"); Ok(Next) }"
                    .to_owned(),
                false,
            ),
            ("fn request(&self, request: &mut Request) -> impl Future<Output = Flow> { ask() }".to_owned(), false),
            ("#[rewritten] async fn request(&self, request: &mut Request) -> Flow { Ok(Next) }".to_owned(), false),
            // There are no callbacks that could do without streams.
            ("fn tick(&self) {}".to_owned(), false),
        ];
        for (items, stateless) in table {
            let item = syn::parse_str(&format!("impl Filter for X {{ {items} }}")).unwrap();
            let phases = of(&item, None).phases();
            assert_eq!(phases.lines().any(|name| name == "stateless"), stateless, "{items}: {phases}");
        }
    }

    #[test]
    fn a_body_call_lists_body_and_trailers() {
        let item = parse_quote! {
            impl Filter for Waf {
                async fn request(&self, req: &mut Request, _: &mut ()) -> Flow { let body = req.body(10).await?; Ok(Next) }
                fn done(&self, _: &()) {}
            }
        };
        assert_eq!(of(&item, None).phases(), "request_headers\nrequest_body\nrequest_trailers\nlog");
    }

    #[test]
    fn the_start_of_a_body_needs_the_callbacks_of_the_whole() {
        let item = parse_quote! {
            impl Filter for Sniff {
                async fn response(&self, res: &mut Response, _: &mut ()) -> Flow {
                    let start = res.body_prefix(8).await?;
                    Ok(Next)
                }
            }
        };
        assert_eq!(of(&item, None).phases(), "response_headers\nresponse_body\nresponse_trailers");
    }

    #[test]
    fn the_body_of_a_reply_or_a_callout_does_not_count() {
        let function = parse_quote! {
            async fn request(&self, req: &mut Request, _: &mut ()) -> Flow {
                upstream("a").post(req.path()).body("x").send().await;
                Err(Reply::new(403).body("no"))
            }
        };
        assert!(!needs_body(&function));
    }

    #[test]
    fn a_request_that_is_handed_on_counts_as_read() {
        let function = parse_quote! {
            async fn request(&self, req: &mut Request, _: &mut ()) -> Flow { self.check(req).await }
        };
        assert!(needs_body(&function));
    }

    #[test]
    fn a_hook_waits_that_awaits_or_calls_a_macro_that_might() {
        let table = [
            ("{ Ok(Next) }", false),
            ("{ info!(\"{}\", request.path()); if x != (1) { return Err(reply) } Ok(Next) }", false),
            ("{ if x { upstream(\"a\").get(\"/\").send().await; } Ok(Next) }", true),
            ("{ info!(\"{:?}\", call.await); Ok(Next) }", true),
            ("{ futures::join!(a, b); Ok(Next) }", true),
        ];
        for (block, expected) in table {
            let block: syn::Block = syn::parse_str(block).unwrap();
            let function = parse_quote! { async fn request(&self, request: &mut Request) -> Flow #block };
            assert_eq!(may_wait(&function), expected, "{}", block.to_token_stream());
        }
    }

    #[test]
    fn a_shared_borrow_cannot_read_the_body() {
        let table = [
            ("{ self.check(&req); self.check(&*req) }", false),
            ("{ self.check(&mut *req) }", true),
            ("{ self.check(&mut req) }", true),
            ("{ let body = &req.body(1).await?; }", true),
            ("{ let prefix = &req.body_prefix(1).await?; }", true),
            ("{ let path = &req.path(); }", false),
        ];
        for (block, expected) in table {
            assert_eq!(touches_body(block.parse().unwrap(), "req"), expected, "{block}");
        }
    }

    #[test]
    fn a_body_call_inside_a_macro_is_seen() {
        let function = parse_quote! {
            async fn request(&self, req: &mut Request, _: &mut ()) -> Flow { info!("{:?}", req.body(1).await); Ok(Next) }
        };
        assert!(needs_body(&function));
    }

    #[test]
    fn the_attribute_overrides_what_the_code_looks_like() {
        let item = parse_quote! {
            impl Filter for X { async fn request(&self, req: &mut Request, _: &mut ()) -> Flow { self.check(req) } }
        };
        assert_eq!(of(&item, Some(Bodies::default())).phases(), "request_headers\nstateless");
    }

    #[test]
    fn an_ignored_message_is_not_read() {
        let function = parse_quote! { async fn request(&self, _: &mut Request, _: &mut ()) -> Flow { Ok(Next) } };
        assert!(!needs_body(&function));
    }
}
