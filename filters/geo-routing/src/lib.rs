//! Bundled filter: geo-routing.
