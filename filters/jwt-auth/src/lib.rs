//! Bundled filter `jwt-auth`: lets requests pass that carry a valid JSON Web Token, and tells the origin who they are from.
//!
//! ```yaml
//! filters:
//!   auth:
//!     wasm: builtin:jwt-auth
//!     config:
//!       jwks_file: keys/id.example.com.json   # or secret_file (HS256); the host reads the file into jwks / secret
//!       algorithms: [RS256, ES256]            # HS256 with a secret
//!       issuer: https://id.example.com        # one or a list
//!       audience: shop                        # our name(s); without it, tokens addressed to anybody are refused
//!       leeway: 30s
//!       require_exp: true
//!       typ: at+jwt                           # left out: any
//!       required_claims: { scope: [shop.read], tenant: acme }   # or a list of names
//!       cookie: session                       # besides Authorization: Bearer; left out: no
//!       query: access_token                   # left out: no
//!       claims_to_headers: { sub: x-user, /realm_access/roles: x-roles }
//!       forward_token: true
//!       realm: shop
//!       cache_entries: 1024
//! ```
//!
//! A refusal is 401 (400 when there are several tokens) with `WWW-Authenticate` as RFC 6750 has it and a problem document (RFC 9457).
//!
//! **What is checked,** in this order: size (8 KiB), form, `crit` (none is understood), `typ`, algorithm and key, signature, `exp`, `nbf`,
//! `iat`, `iss`, `aud`, required claims, and whether the claims to be forwarded can stand in headers. A key is used with the one
//! algorithm of its type only, so a public key is never taken for a secret (RFC 8725, 3.1); keys in the token (`jwk`, `jku`, `x5c`) are
//! ignored. Duplicate names in header or claims are refused. The signature is computed by the crate `jsonwebtoken` (pure Rust); reading
//! tokens and deciding about them is done here, because that crate leaves `crit` and duplicate claim names to its callers.
//!
//! **Cache.** Verified tokens are remembered by their SHA-256, per worker; times are checked on every request. A change of keys starts
//! the filter anew and so forgets them.
//! Refused tokens are not remembered, and each costs a verification (RS256: about a millisecond): put `rate-limit` before this filter
//! where clients may send many.
//!
//! **Headers to the origin** come from verified claims alone: copies that a client sends, also spelt `x_user`, are removed first.

pub mod config;
pub mod forward;

use std::time::UNIX_EPOCH;

use selvedge_sdk::jwt::source::{self, Found, Sources};
use selvedge_sdk::jwt::{Rejection, TokenVerifier};
use selvedge_sdk::metrics::Counter;
use selvedge_sdk::prelude::*;

use crate::config::Config;
use crate::forward::Forward;

/// The filter.
pub struct JwtAuth {
    /// Gives the headers for the origin.
    verifier: TokenVerifier<Vec<(String, String)>>,
    sources: Sources,
    forward: Forward,
    forward_token: bool,
    realm: String,
    accepted: Counter,
    refused: Counter,
}

#[filter(body = "none")]
impl Filter for JwtAuth {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        let plan = config.check().map_err(|error| error.to_string())?;
        for warning in &plan.warnings {
            warn!("{warning}");
        }
        let forward = plan.forward.clone();
        Ok(Self {
            verifier: TokenVerifier::reading(plan.rules, move |claims| forward.headers(&claims)),
            sources: plan.sources,
            forward: plan.forward,
            forward_token: plan.forward_token,
            realm: plan.realm,
            accepted: metrics::counter("jwt_auth_accepted_total"),
            refused: metrics::counter("jwt_auth_refused_total"),
        })
    }

    async fn request(&self, req: &mut Request, _stream: &mut Self::Stream) -> Flow {
        let headers: Vec<(String, Vec<u8>)> = req.headers().collect();
        for (name, _) in headers.iter().filter(|(name, _)| self.forward.is_forged_by(name)) {
            req.remove_header(name);
        }

        let fields = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let found = self.sources.find(fields, req.query()).map_err(|rejection| self.refuse(rejection))?;
        let now = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let verified = self.verifier.verify(&found.token, now).map_err(|rejection| self.refuse(rejection))?;

        for (name, value) in verified.iter() {
            req.set_header(name, value);
        }
        if !self.forward_token {
            self.take_out(req, &found);
        }
        self.accepted.inc(1);
        Ok(Next)
    }
}

impl JwtAuth {
    fn refuse(&self, rejection: Rejection) -> Reply {
        self.refused.inc(1);
        debug!("refused: {rejection}");
        Reply::new(rejection.status())
            .header("www-authenticate", rejection.challenge(&self.realm))
            .header("content-type", "application/problem+json")
            .header("cache-control", "no-store")
            .body(serde_json::to_vec(&rejection.problem()).unwrap_or_default())
    }

    /// Removes the token from the request, wherever it was found.
    fn take_out(&self, req: &mut Request, found: &Found) {
        if found.in_header {
            req.remove_header("authorization");
        }
        if let Some(name) = self.sources.cookie.as_ref().filter(|_| found.in_cookie) {
            let fields = req.header_values("cookie");
            match source::without_cookie(fields.iter().map(HeaderValue::as_bytes), name) {
                Some(rest) => req.set_header("cookie", rest),
                None => req.remove_header("cookie"),
            }
        }
        if let Some(name) = self.sources.query.as_ref().filter(|_| found.in_query) {
            let target = source::without_parameter(req.path(), req.query(), name);
            req.set_header(":path", target);
        }
    }
}
