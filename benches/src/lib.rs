//! Micro benches and side-by-side load runs.
//!
//! - `benches/*.rs`: criterion benches of the parts every request goes through (`make bench-micro`).
//! - `load/run.py`: the node and its peers under load, each with one worker, in front of the same origin (`make bench`).
