//! Bundled filter: rate-limit.
