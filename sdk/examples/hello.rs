//! The smallest filter: adds a header to every response.

use selvedge_sdk::prelude::*;

/// No settings, no state.
pub struct Hello;

#[filter]
impl Filter for Hello {
    type Config = ();

    fn new((): ()) -> Result<Self, String> {
        Ok(Self)
    }

    async fn response(&self, response: &mut Response, _: &mut ()) -> Flow {
        response.set_header("x-hello", "from a filter");
        Ok(Next)
    }
}
