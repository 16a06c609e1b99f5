//! Bundled filter: jwt-auth.
