//! Tests filters: natively on a fake host, in milliseconds, and as the compiled module on the shipped host, in process.
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib", "rlib"]
//!
//! [features]
//! wasm = ["selvedge-sdk-testing/wasm"]
//!
//! [dev-dependencies]
//! selvedge-sdk-testing = "0.1"
//! ```
//!
//! ```
//! use selvedge_sdk::prelude::*;
//! use selvedge_sdk_testing::Tester;
//!
//! #[derive(Default)]
//! pub struct NoTrace;
//!
//! #[filter]
//! impl Filter for NoTrace {
//!     async fn request(&self, request: &mut Request) -> Flow {
//!         if request.method() == Method::TRACE { Err(Reply::new(405)) } else { Ok(Next) }
//!     }
//! }
//!
//! #[selvedge_sdk::test]
//! fn traces_are_refused(tester: Tester<NoTrace>) {
//!     assert_eq!(tester.request("TRACE", "/").send().status(), 405);
//!     assert_eq!(tester.get("/").send().status(), 200);
//! }
//! # traces_are_refused(Tester::native());
//! # fn traces_are_refused(tester: Tester<NoTrace>) {
//! #     assert_eq!(tester.request("TRACE", "/").send().status(), 405);
//! # }
//! ```
//!
//! `cargo test` runs `traces_are_refused::native`, plain Rust in the test's own process: a debugger stops in the hook. `cargo test
//! --features wasm` also runs `traces_are_refused::wasm`, the same body on the module that the crate compiles to, in the host of the
//! shipped proxy: what passes there passes in a node. The module is built once for each test binary, with cargo, into
//! `target/guests`; that needs `rustup target add wasm32-wasip1`, and says so. See [`selvedge_sdk::test`] for what the attribute takes.
//!
//! # The world of a filter
//!
//! A request goes through the filter's request hook, to an origin, and back through the response hook. What stands around the filter is
//! said first, on the [`Tester`]:
//!
//! ```
//! # use std::time::Duration;
//! # use selvedge_sdk::prelude::*;
//! # use selvedge_sdk_testing::{Answer, Tester};
//! # use serde_json::json;
//! # struct Asks;
//! # #[filter]
//! # impl Filter for Asks {
//! #     type Config = ();
//! #     fn new((): ()) -> Result<Self, String> { Ok(Self) }
//! #     async fn request(&self, request: &mut Request, _: &mut ()) -> Flow {
//! #         let call = upstream("authz").get("/check").timeout(Duration::from_millis(250));
//! #         call.send().await.or_deny(503, "authz unavailable")?.ok().or_deny(403, "no")?;
//! #         request.set_header("x-user", "ann");
//! #         Ok(Next)
//! #     }
//! # }
//! # let tester = Tester::<Asks>::native();
//! let tester = tester
//!     .client("203.0.113.9")
//!     .country("DE")
//!     .tls("shop.example")
//!     .upstream("authz", |seen| if seen.path() == "/check" { Reply::new(200) } else { Reply::new(404) })
//!     .origin(|seen| Reply::new(200).text(&seen["x-user"]));
//!
//! let outcome = tester.get("/cart").header("cookie", "id=1").send();
//! outcome.expect_status(200).expect_body("ann\n").expect_forwarded_header("x-user", "ann");
//! assert_eq!(tester.calls("authz"), 1);
//!
//! // Time passes only when the test says so, or when somebody is slow: nothing here really waits.
//! tester.upstream_slow("authz", Duration::from_secs(2));
//! let outcome = tester.get("/cart").send();
//! outcome.expect_status(503).expect_not_forwarded();
//! assert_eq!(outcome.took(), Duration::from_millis(250));
//!
//! tester.upstream_down("authz");
//! tester.get("/cart").send().expect_status(503);
//! ```
//!
//! | what | how |
//! |---|---|
//! | settings | [`config`](Tester::config); [`start`](Tester::start) gives the error of a filter that refuses them |
//! | upstreams | [`upstream`](Tester::upstream) with a closure, [`upstream_answers`](Tester::upstream_answers) with a list; [`upstream_down`](Tester::upstream_down), [`upstream_slow`](Tester::upstream_slow) later |
//! | how an answer comes | [`Answer`]: late, in pieces, with trailers, never, lost |
//! | who asks | [`client`](Tester::client), [`country`](Tester::country), [`tls`](Tester::tls), [`client_certificate`](Tester::client_certificate), any [`property`](Tester::property) |
//! | time | [`advance`](Tester::advance) runs the ticks that are due, [`tick`](Tester::tick) runs one |
//! | shared data | [`set_shared`](Tester::set_shared), [`shared`](Tester::shared) |
//! | functions beyond the ABI | `selvedge.shared.*` are there; [`foreign`](Tester::foreign) stands in for others |
//! | another filter, just started | [`another`](Tester::another), for tables of cases |
//!
//! # Bodies, and how they arrive
//!
//! A network cuts bodies where it likes, and a filter must not care. [`chunked`](TestRequest::chunked) delivers both bodies in small
//! pieces; [`every_split`](TestRequest::every_split) tries them all, and fails when any of them makes a difference:
//!
//! ```
//! # use selvedge_sdk::prelude::*;
//! # use selvedge_sdk_testing::Tester;
//! # struct Echo;
//! # #[filter]
//! # impl Filter for Echo {
//! #     type Config = ();
//! #     fn new((): ()) -> Result<Self, String> { Ok(Self) }
//! #     async fn request(&self, request: &mut Request, _: &mut ()) -> Flow {
//! #         Err(Reply::new(200).body(request.body(100).await?))
//! #     }
//! # }
//! # let tester = Tester::<Echo>::native();
//! let outcome = tester.post("/echo").body("a body of some length").every_split().send();
//! outcome.expect_body("a body of some length");
//! ```
//!
//! Trailers: [`trailer`](TestRequest::trailer), [`Answer::trailer`]. A client that does not wait for the end:
//! [`client_leaves_after`](TestRequest::client_leaves_after) and its neighbours. Requests that are under way at the same time, on one VM:
//! [`Tester::together`].
//!
//! # What to look at
//!
//! An [`Outcome`] has the response ([`status`](Outcome::status), [`header`](Outcome::header), [`text`](Outcome::text),
//! [`json`](Outcome::json), [`trailer`](Outcome::trailer)), what the origin saw ([`upstream`](Outcome::upstream)), the
//! [`calls`](Outcome::calls) with all that was sent, the [`logs`](Outcome::logs), the properties that were set
//! ([`property`](Outcome::property)) and what the filter wishes of the [`cache`](Outcome::cache). Each `expect_…` shows all of that when it
//! does not hold. The [`Tester`] has what outlives an exchange: [`metric`](Tester::metric), [`metric_with`](Tester::metric_with) labels,
//! [`calls_to`](Tester::calls_to), [`shared`](Tester::shared), [`logs`](Tester::logs).
//!
//! **A filter that panics** is lost with its VM, natively as in a node: the exchange ends with 503, the log has the message and its
//! place, and the next request meets a new one. A test says that it expects this, by [`Outcome::failed`]; otherwise it fails with the
//! panic.
//!
//! # What the hosts promise
//!
//! The fake host keeps the promises of the real one: a held message holds its headers too, a body that is not let go piles up, callouts
//! are answered only after the hook has returned, headers cannot be changed once they have gone, an answer of the filter's own passes
//! through its response hook, response headers set in the request hook are kept until there is a response, and properties are written
//! by the same rules. A hook that holds a message and waits for nothing fails the test, where in production the request would hang until
//! its timeout. The tests of this crate run one table of claims on both hosts, and random exchanges whose outcomes must be the same.
//!
//! gRPC calls are answered by the same fake upstreams: a [`Reply`](selvedge_sdk::Reply) with the message as its body, or
//! [`Answer::grpc_status`]. What is not here: streams of gRPC, the proxy's own routing and cache, several filters in a chain. For these,
//! `selvedge test` takes requests through a whole configuration.
#![allow(clippy::panic, reason = "a failed expectation of a test harness is a panic")]

mod tester;

mod world;

mod fake;

mod grpc;

mod request;

mod driver;

mod exchange;

mod store;

mod guest;

mod native;

#[cfg(feature = "wasm")]
mod wasm;

mod seen;

mod expect;

#[cfg(feature = "wasm")]
mod build;

#[doc(hidden)]
pub mod harness;

pub use crate::fake::Answer;
pub use crate::request::TestRequest;
pub use crate::seen::{CacheWishes, Outcome, Seen};
pub use crate::tester::{Tester, Wasm};

/// The recipes of the documentation, as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/filter-recipes.md")]
mod recipes {}
