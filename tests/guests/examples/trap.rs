//! Panics in the callback that its configuration names.
#![allow(clippy::panic, reason = "its purpose")]

selvedge_test_guests::saboteur!(|| panic!("as configured"));
