//! Which context a callback is for.
//!
//! Of most streams there is nothing to remember between two callbacks. They are made for a callback, and are kept only when it has left
//! something behind that a later one must find. A host need not even tell of the streams of a filter from which nothing ever remains
//! ([`Stream::MAY_REMAIN`]): no more is known of them than the id in the callback.

mod table;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use self::table::Table;

use crate::filter::Filter;
use crate::runtime::{self, Action, Root, Stream};
use crate::upstream;

/// Without a filter there is no verdict, and letting traffic pass unchecked is the one thing that must not happen.
const UNCONFIGURED: &str = "a stream is opened after the plugin is configured";

/// The contexts of one VM.
pub(crate) struct Contexts<F: Filter> {
    /// By id. There is one per plugin that shares the VM, mostly one.
    roots: RefCell<Vec<(u32, Root<F>)>>,
    /// The root of the streams that are not remembered: made when there was no other, and the first of `roots`. 0: there is none.
    first: Cell<u32>,
    /// The streams of which something is left, and all of other roots.
    streams: RefCell<Table<Stream<F>>>,
}

impl<F: Filter> Contexts<F> {
    pub(crate) const fn new() -> Self {
        Self { roots: RefCell::new(Vec::new()), first: Cell::new(0), streams: RefCell::new(Table::new()) }
    }

    /// A plugin context (no parent) or a stream context.
    pub(crate) fn create(&self, id: u32, parent: u32) {
        if parent == 0 {
            self.create_root(id);
        } else if parent == self.first.get() && self.configured() {
            // What the id stood for before is over.
            self.forget(id);
        } else {
            self.remember(id, parent);
        }
    }

    #[cold]
    #[inline(never)]
    fn create_root(&self, id: u32) {
        let mut roots = self.roots.borrow_mut();
        if roots.is_empty() {
            self.first.set(id);
        }
        roots.push((id, Root::default()));
    }

    /// `false` refuses the configuration.
    pub(crate) fn configure(&self, id: u32, json: &[u8]) -> bool {
        upstream::enter(id);
        let mut roots = self.roots.borrow_mut();
        let root = roots.iter_mut().find(|(root, _)| *root == id);
        root.is_some_and(|(_, root)| root.configure(json))
    }

    pub(crate) fn tick(&self, id: u32) {
        upstream::enter(id);
        if let Some((_, root)) = self.roots.borrow().iter().find(|(root, _)| *root == id) {
            root.tick();
        }
    }

    #[inline(always)]
    pub(crate) fn request_headers(&self, id: u32, end: bool) -> Action {
        if Stream::<F>::MAY_REMAIN {
            self.act(id, |stream| stream.on_request_headers(end))
        } else {
            self.pass(id, |filter| runtime::pass_request(filter, end))
        }
    }

    #[inline(always)]
    pub(crate) fn response_headers(&self, id: u32, end: bool) -> Action {
        if Stream::<F>::MAY_REMAIN {
            self.act(id, |stream| stream.on_response_headers(end))
        } else {
            self.pass(id, |filter| runtime::pass_response(filter, end))
        }
    }

    /// Runs a callback on a stream, and remembers the stream when something remains.
    #[inline(always)]
    pub(crate) fn act(&self, id: u32, callback: impl FnOnce(&mut Stream<F>) -> Action) -> Action {
        upstream::enter(id);
        let mut streams = self.streams.borrow_mut();
        let mut fresh = None;
        let stream = match if streams.is_empty() { None } else { streams.get_mut(id) } {
            Some(stream) => stream,
            None => fresh.insert(Stream::new(self.filter().expect(UNCONFIGURED))),
        };
        let action = callback(stream);
        if let Some(stream) = fresh.filter(Stream::remains) {
            streams.insert(id, stream);
        }
        action
    }

    /// A callout is answered, or has failed (no headers). `enter`: makes a stream the one that the next host calls are about; `false` when
    /// it is gone.
    pub(crate) fn call_response(&self, token: u32, headers: usize, body: usize, enter: impl FnOnce(u32) -> bool) {
        let Some(sender) = upstream::sender(token) else { return };
        if let Some(stream) = self.streams.borrow_mut().get_mut(sender) {
            if enter(sender) {
                upstream::enter(sender);
                stream.on_call_response(token, headers, body);
            }
            return;
        }
        if let Some((_, root)) = self.roots.borrow().iter().find(|(root, _)| *root == sender) {
            if F::HOOKS.start || F::HOOKS.tick {
                upstream::enter(sender);
                root.on_call_response(token, headers, body);
            }
            return;
        }
        // Of a stream whose hooks are done. The filter has kept the call for later, and nothing is polled now that would be about the stream.
        upstream::answered(token, headers, body);
    }

    /// A context is over. A plugin's is logged too when the VM ends; it has nothing to say.
    pub(crate) fn log(&self, id: u32) {
        upstream::enter(id);
        if let Some(stream) = self.streams.borrow_mut().get_mut(id) {
            stream.on_log();
            return;
        }
        let of_plugin = self.roots.borrow().iter().any(|(root, _)| *root == id);
        if !of_plugin && let Some(filter) = self.filter() {
            Stream::new(filter).on_log();
        }
    }

    /// A context is gone.
    #[inline(always)]
    pub(crate) fn delete(&self, id: u32) {
        self.forget(id);
        // With one root, which is the first, nothing else is one.
        let first = self.first.get();
        if id == first || first == 0 || self.roots.borrow().len() > 1 {
            self.delete_root(id);
        }
    }

    /// Runs a hook of a filter from which nothing remains, without a stream.
    #[inline(always)]
    fn pass(&self, id: u32, hook: impl FnOnce(&F) -> Action) -> Action {
        upstream::enter(id);
        let elsewhere = if self.streams.borrow().is_empty() { None } else { self.elsewhere(id) };
        let roots = self.roots.borrow();
        let first = || roots.first().filter(|(root, _)| *root == self.first.get())?.1.filter();
        hook(elsewhere.as_ref().or_else(first).expect(UNCONFIGURED))
    }

    fn configured(&self) -> bool {
        self.roots.borrow().first().is_some_and(|(_, root)| root.filter().is_some())
    }

    /// The filter of streams that are not remembered; `None` before a valid configuration.
    fn filter(&self) -> Option<Rc<F>> {
        let roots = self.roots.borrow();
        let (id, root) = roots.first()?;
        if *id == self.first.get() { root.filter().cloned() } else { None }
    }

    /// The filter of a stream that belongs to another root than the first one.
    #[cold]
    #[inline(never)]
    fn elsewhere(&self, id: u32) -> Option<Rc<F>> {
        self.streams.borrow().get(id).map(|stream| stream.filter().clone())
    }

    /// Opens a stream of another root than the first one.
    #[cold]
    #[inline(never)]
    fn remember(&self, id: u32, parent: u32) {
        let stream = self.roots.borrow().iter().find(|(root, _)| *root == parent).and_then(|(_, root)| root.open());
        self.streams.borrow_mut().insert(id, stream.expect(UNCONFIGURED));
    }

    /// Whatever has remained of a stream.
    #[inline(always)]
    fn forget(&self, id: u32) {
        if !self.streams.borrow().is_empty() {
            self.remove(id);
        }
    }

    #[inline(never)]
    fn remove(&self, id: u32) {
        let stream = self.streams.borrow_mut().remove(id);
        // Not borrowed meanwhile: what the filter kept of it may call the host.
        drop(stream);
    }

    #[cold]
    #[inline(never)]
    fn delete_root(&self, id: u32) {
        if id == self.first.get() {
            self.first.set(0);
        }
        let mut roots = self.roots.borrow_mut();
        if let Some(at) = roots.iter().position(|(root, _)| *root == id) {
            drop(roots.remove(at));
        }
    }
}

#[cfg(test)]
mod tests;
