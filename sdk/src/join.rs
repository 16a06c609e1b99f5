//! Waiting for two things at once.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Waits for both, for instance two callouts that were sent one after the other. More than two: nest it, or use the `futures`
/// crate, whose combinators all work here.
pub async fn join<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let mut first = pin!(first);
    let mut second = pin!(second);
    let mut ready = (None, None);
    poll_fn(|context| {
        if ready.0.is_none()
            && let Poll::Ready(output) = first.as_mut().poll(context)
        {
            ready.0 = Some(output);
        }
        if ready.1.is_none()
            && let Poll::Ready(output) = second.as_mut().poll(context)
        {
            ready.1 = Some(output);
        }
        match (ready.0.take(), ready.1.take()) {
            (Some(first), Some(second)) => Poll::Ready((first, second)),
            pending => {
                ready = pending;
                Poll::Pending
            }
        }
    })
    .await
}
