//! The host from outside: small text guests for the edges of the ABI, and the test guests for whole filters.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code too")]

mod fakes;

mod abi;
mod abi_0_1_0;
mod bench;
mod callouts;
mod explain;
mod filters;
mod grpc;
mod guests;
mod isolation;
mod limits;
mod loading;
mod many;
mod queues;
mod shared;
mod tcp;
mod wasi;
