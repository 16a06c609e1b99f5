//! Waiting for several things at once, any number of them.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use crate::join::join;

/// Waits for all three; see [`join`].
pub async fn join3<A: Future, B: Future, C: Future>(
    first: A,
    second: B,
    third: C,
) -> (A::Output, B::Output, C::Output) {
    let (first, (second, third)) = join(first, join(second, third)).await;
    (first, second, third)
}

/// Waits for all of them, and gives what they gave in their order. Nothing to wait for is done at once.
///
/// ```
/// # use selvedge_sdk::prelude::*;
/// # async fn ask(servers: &[&str]) {
/// let answers = join_all(servers.iter().map(|name| upstream(name).get("/").send())).await;
/// let page: Vec<String> = answers.iter().flatten().filter_map(|answer| answer.text().ok()).collect();
/// # }
/// ```
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    let mut outputs: Vec<Option<F::Output>> = pending.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (slot, output) in pending.iter_mut().zip(&mut outputs) {
            if let Some(future) = slot
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
                *slot = None;
            }
        }
        if pending.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// Waits for the first of them that is done, and drops the others: a callout that is dropped is forgotten. Of several that are done at
/// once, the first in their order. `None` when there is nothing to wait for.
pub async fn race<F: Future>(futures: impl IntoIterator<Item = F>) -> Option<F::Output> {
    let mut pending: Vec<_> = futures.into_iter().map(Box::pin).collect();
    if pending.is_empty() {
        return None;
    }
    let first = poll_fn(|context| {
        let ready = pending.iter_mut().find_map(|future| match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    });
    Some(first.await)
}

/// Waits for the first of them that succeeds, and drops the others. When all fail, their errors in the order in which they failed.
///
/// ```
/// # use selvedge_sdk::prelude::*;
/// # async fn ask() -> Result<(), Reply> {
/// let sent = ["east", "west"].map(|name| async move { upstream(name).get("/").send().await?.ok() });
/// let answer = first_ok(sent).await.ok().or_deny(503, "nobody answers")?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of all of them; none when there is nothing to wait for.
pub async fn first_ok<F, T, E>(futures: impl IntoIterator<Item = F>) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut pending: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut errors = Vec::new();
    poll_fn(|context| {
        let mut at = 0;
        while let Some(future) = pending.get_mut(at) {
            match future.as_mut().poll(context) {
                Poll::Ready(Ok(value)) => return Poll::Ready(Ok(value)),
                Poll::Ready(Err(error)) => {
                    errors.push(error);
                    drop(pending.remove(at));
                }
                Poll::Pending => at += 1,
            }
        }
        if pending.is_empty() { Poll::Ready(Err(std::mem::take(&mut errors))) } else { Poll::Pending }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::task::{Context, Waker};

    use super::*;

    /// Done at the `after`th poll, and must not be polled again.
    async fn after<T>(mut polls: u32, value: T) -> T {
        poll_fn(move |_| {
            polls = polls.checked_sub(1).expect("polled after it was done");
            if polls == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        value
    }

    /// Polls until it is done; how often, and what it gave.
    fn run<T>(future: impl Future<Output = T>) -> (u32, T) {
        let mut future = Box::pin(future);
        let mut context = Context::from_waker(Waker::noop());
        for polls in 1..100 {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return (polls, value);
            }
        }
        panic!("it is never done");
    }

    #[test]
    fn all_are_waited_for_and_keep_their_order() {
        assert_eq!(run(join_all([after(3, "a"), after(1, "b"), after(2, "c")])), (3, vec!["a", "b", "c"]));
        assert_eq!(run(join_all(Vec::<std::future::Ready<()>>::new())), (1, vec![]));
        assert_eq!(run(join3(after(2, 1), after(4, 2), after(1, 3))), (4, (1, 2, 3)));
    }

    #[test]
    fn the_first_wins_and_the_others_are_dropped() {
        let dropped = Cell::new(0);
        struct Guard<'c>(&'c Cell<u32>);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let racers = [3, 2, 2].map(|polls| {
            let guard = Guard(&dropped);
            async move {
                let _guard = guard;
                after(polls, polls).await
            }
        });
        assert_eq!((run(race(racers)), dropped.get()), ((2, Some(2)), 3));
        assert_eq!(run(race(Vec::<std::future::Ready<()>>::new())), (1, None));
    }

    #[test]
    fn a_failure_waits_for_a_success() {
        let mixed = [after(1, Err("a")), after(3, Ok(1)), after(2, Err("b"))];
        assert_eq!(run(first_ok(mixed)), (3, Ok(1)));
        let failing = [after(2, Err::<(), _>("a")), after(1, Err("b"))];
        assert_eq!(run(first_ok(failing)), (2, Err(vec!["b", "a"])));
        assert_eq!(run(first_ok(Vec::<std::future::Ready<Result<(), ()>>>::new())), (1, Err(vec![])));
    }
}
