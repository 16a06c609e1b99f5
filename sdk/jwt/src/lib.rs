//! Verifies JSON Web Tokens (RFC 7519) in filters: the form, the key, the signature, the claims. It has no host and does no I/O, so keys
//! and the time are given to it. Filters use it as `selvedge_sdk::jwt`, which reads settings and fetches keys; the bundled filter
//! `jwt-auth` is made of it.
//!
//! **What is checked,** in this order: size (8 KiB), form, `crit` (none is understood), `typ`, algorithm and key, signature, `exp`, `nbf`,
//! `iat`, `iss`, `aud`, required claims. A key is used with the one algorithm of its type only, so a public key is never taken for a
//! secret (RFC 8725, 3.1); keys in the token (`jwk`, `jku`, `x5c`) are ignored. Duplicate names in header or claims are refused. The
//! signature is computed by the crate `jsonwebtoken` (pure Rust); reading tokens and deciding about them is done here, because that
//! crate leaves `crit` and duplicate claim names to its callers.

pub mod algorithm;

mod cache;

pub mod claims;

pub mod json;

pub mod keys;

#[cfg(any(test, feature = "mint"))]
pub mod mint;

pub mod rejection;

pub mod select;

pub mod source;

pub mod token;

pub mod verify;

pub use algorithm::Algorithm;
pub use claims::{ClaimRules, Claims, Requirement};
pub use keys::{KeyError, KeySet};
pub use rejection::Rejection;
pub use select::Claim;
pub use verify::{Rules, Verified, Verifier};
