//! The host from outside: small text guests for the edges of the ABI, and the test guests for whole filters.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code too")]

mod fakes;

mod abi;
mod bench;
mod callouts;
mod filters;
mod limits;
mod loading;
