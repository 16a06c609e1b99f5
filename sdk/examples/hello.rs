//! The smallest filter: adds a header to every response.

use selvedge_sdk::prelude::*;

/// No settings, no state.
#[derive(Default)]
pub struct Hello;

#[filter]
impl Filter for Hello {
    async fn response(&self, response: &mut Response) -> Flow {
        response.set_header("x-hello", "from a filter");
        Ok(Next)
    }
}
