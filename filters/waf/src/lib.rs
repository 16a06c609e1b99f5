//! Bundled filter: waf.
