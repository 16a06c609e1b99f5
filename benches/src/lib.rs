//! Micro benches and side-by-side load runs.
