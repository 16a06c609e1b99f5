//! What `#[selvedge_sdk::test]` expands to calls of; nothing here is for use by hand.

use selvedge_sdk::Filter;

use crate::Tester;
#[cfg(feature = "wasm")]
pub use crate::build::Crate;

/// The test, natively.
pub fn native<F: Filter, T>(test: impl FnOnce(Tester<F>) -> T) -> T {
    test(Tester::native())
}

/// The test, with the compiled module of the crate under test.
///
/// # Panics
/// When the crate does not build to wasm: the message says why and what to do.
#[cfg(feature = "wasm")]
pub fn wasm<F: Filter, T>(under_test: &Crate, test: impl FnOnce(Tester<F>) -> T) -> T {
    let module = under_test.module().unwrap_or_else(|error| panic!("{error}"));
    test(Tester::compiled(module.as_ref().clone()))
}

/// Passes a test on a module through where there is a host for it.
#[cfg(feature = "wasm")]
#[doc(hidden)]
#[macro_export]
macro_rules! __wasm_test {
    ($($test:tt)*) => { $($test)* };
}

/// Says of a test on a module that there is no host for it: a test that silently is not there looks like one that passes.
#[cfg(not(feature = "wasm"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __wasm_test {
    ($($test:tt)*) => {
        #[::core::prelude::v1::test]
        #[ignore = "needs feature `wasm` of selvedge-sdk-testing"]
        fn wasm() {
            panic!("needs feature `wasm` of selvedge-sdk-testing");
        }
    };
}
