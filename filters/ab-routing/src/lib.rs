//! Bundled filter: ab-routing.
