//! Collecting decoder.
