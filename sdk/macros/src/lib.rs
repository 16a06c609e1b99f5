//! Procedural macros of selvedge-sdk.
