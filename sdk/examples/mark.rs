//! What a small real filter does: reads a header of the request and sets one on either side.

use selvedge_sdk::prelude::*;

/// No settings, no state.
#[derive(Default)]
pub struct Mark;

#[filter]
impl Filter for Mark {
    async fn request(&self, request: &mut Request) -> Flow {
        let long = request.path().len() > 9;
        request.set_header("x-path-length", if long { "long" } else { "short" });
        Ok(Next)
    }

    async fn response(&self, response: &mut Response) -> Flow {
        response.set_header("x-marked", "yes");
        Ok(Next)
    }
}
