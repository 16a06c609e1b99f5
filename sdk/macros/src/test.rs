//! `#[selvedge_sdk::test]`: one test body, a test on each host.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Attribute, Error, FnArg, ItemFn, LitStr, Result, ReturnType, Token, parenthesized};

/// What stands in the parentheses: `hosts(native, wasm)`, `profile = "release"`, `example = "name"`, in any order.
struct Settings {
    native: bool,
    wasm: bool,
    profile: Option<LitStr>,
    example: Option<LitStr>,
}

impl Parse for Settings {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut settings = Self { native: true, wasm: true, profile: None, example: None };
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            match key.to_string().as_str() {
                "hosts" => settings.hosts(input, key.span())?,
                "profile" => settings.profile = Some(text(input)?),
                "example" => settings.example = Some(text(input)?),
                _ => return Err(Error::new(key.span(), "the settings are `hosts(..)`, `profile` and `example`")),
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(settings)
    }
}

impl Settings {
    fn hosts(&mut self, input: ParseStream<'_>, at: Span) -> Result<()> {
        let content;
        parenthesized!(content in input);
        let hosts = Punctuated::<Ident, Token![,]>::parse_terminated(&content)?;
        (self.native, self.wasm) = (false, false);
        for host in hosts {
            match host.to_string().as_str() {
                "native" => self.native = true,
                "wasm" => self.wasm = true,
                _ => return Err(Error::new(host.span(), "the hosts are `native` and `wasm`")),
            }
        }
        if self.native || self.wasm {
            Ok(())
        } else {
            Err(Error::new(at, "a test without a host never runs: name `native`, `wasm` or both"))
        }
    }
}

fn text(input: ParseStream<'_>) -> Result<LitStr> {
    input.parse::<Token![=]>()?;
    input.parse()
}

/// The function as it is, and beside it a module of its name with the tests that call it.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let settings: Settings = syn::parse2(attribute)?;
    let mut body: ItemFn = syn::parse2(item)?;
    let signature = &body.sig;
    if let Some(keyword) = &signature.asyncness {
        return Err(Error::new(keyword.span, "a test is a plain function: the tester runs the filter's hooks itself"));
    }
    let takes_a_tester = matches!(signature.inputs.first(), Some(FnArg::Typed(_))) && signature.inputs.len() == 1;
    if !takes_a_tester || !signature.generics.params.is_empty() {
        let message = "a test takes the tester of its filter and nothing else: `fn name(tester: Tester<MyFilter>)`";
        return Err(Error::new_spanned(signature, message));
    }

    let (for_tests, for_both, own) = sort(std::mem::take(&mut body.attrs));
    body.attrs = for_both.iter().cloned().chain(own).collect();
    let name = &body.sig.ident;
    let (output, end) = match &body.sig.output {
        ReturnType::Default => (None, Some(quote! { ; })),
        ReturnType::Type(..) => (Some(quote! { -> impl ::std::process::Termination }), None),
    };
    let profile = optional(settings.profile.as_ref());
    let example = optional(settings.example.as_ref());

    let native = settings.native.then(|| {
        quote! {
            #[::core::prelude::v1::test]
            #(#for_tests)*
            fn native() #output {
                ::selvedge_sdk_testing::harness::native(super::#name) #end
            }
        }
    });
    let wasm = settings.wasm.then(|| {
        quote! {
            ::selvedge_sdk_testing::__wasm_test! {
                #[::core::prelude::v1::test]
                #(#for_tests)*
                fn wasm() #output {
                    const UNDER_TEST: ::selvedge_sdk_testing::harness::Crate = ::selvedge_sdk_testing::harness::Crate {
                        folder: env!("CARGO_MANIFEST_DIR"),
                        package: env!("CARGO_PKG_NAME"),
                        profile: #profile,
                        example: #example,
                    };
                    ::selvedge_sdk_testing::harness::wasm(&UNDER_TEST, super::#name) #end
                }
            }
        }
    });
    // A function and a module may have the same name: the tests are `name::native` and `name::wasm`.
    Ok(quote! {
        #[cfg(test)]
        #body

        #(#for_both)*
        #[cfg(test)]
        mod #name {
            #native
            #wasm
        }
    })
}

/// What belongs to the tests, to everything, and to the function alone.
fn sort(attributes: Vec<Attribute>) -> (Vec<Attribute>, Vec<Attribute>, Vec<Attribute>) {
    let (for_tests, rest): (Vec<_>, Vec<_>) = attributes
        .into_iter()
        .partition(|attribute| attribute.path().is_ident("ignore") || attribute.path().is_ident("should_panic"));
    let (for_both, own) = rest.into_iter().partition(|attribute| attribute.path().is_ident("cfg"));
    (for_tests, for_both, own)
}

fn optional(text: Option<&LitStr>) -> TokenStream {
    match text.map(LitStr::to_token_stream) {
        Some(text) => quote! { ::core::option::Option::Some(#text) },
        None => quote! { ::core::option::Option::None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(attribute: &str, item: &str) -> std::result::Result<String, String> {
        let expanded = expand(attribute.parse().unwrap(), item.parse().unwrap());
        expanded.map(|tokens| tokens.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_body_becomes_a_test_on_each_host_that_is_named() {
        for (attribute, native, wasm) in [
            ("", true, true),
            ("hosts(native, wasm)", true, true),
            ("hosts(native)", true, false),
            ("profile = \"dev\", hosts(wasm)", false, true),
        ] {
            let tests = expanded(attribute, "fn a(tester: Tester<F>) {}").unwrap();
            assert_eq!(tests.contains("fn native ()"), native, "{attribute}");
            assert_eq!(tests.contains("fn wasm ()"), wasm, "{attribute}");
        }
    }

    #[test]
    fn what_is_said_of_a_test_is_said_of_both_and_not_of_the_body() {
        let tests = expanded("", "#[should_panic] #[cfg(unix)] /// Why.\n fn a(tester: Tester<F>) {}").unwrap();
        assert_eq!(tests.matches("should_panic").count(), 2);
        assert_eq!(tests.matches("cfg (unix)").count(), 2);
        assert_eq!(tests.matches("Why.").count(), 1);
    }

    #[test]
    fn what_cannot_be_a_test_is_refused() {
        for (attribute, item, reason) in [
            ("", "async fn a(tester: Tester<F>) {}", "plain function"),
            ("", "fn a() {}", "takes the tester"),
            ("", "fn a(tester: Tester<F>, other: u8) {}", "takes the tester"),
            ("", "fn a<F>(tester: Tester<F>) {}", "takes the tester"),
            ("hosts()", "fn a(tester: Tester<F>) {}", "never runs"),
            ("hosts(envoy)", "fn a(tester: Tester<F>) {}", "`native` and `wasm`"),
            ("host(wasm)", "fn a(tester: Tester<F>) {}", "`hosts(..)`"),
        ] {
            let error = expanded(attribute, item).unwrap_err();
            assert!(error.contains(reason), "{attribute} {item}: {error}");
        }
    }
}
