//! The host from outside: small text guests for the edges of the ABI, and the test guests for whole filters.
#![allow(missing_docs, reason = "tests")]

mod fakes;

mod abi;
mod bench;
mod callouts;
mod filters;
mod limits;
mod loading;
