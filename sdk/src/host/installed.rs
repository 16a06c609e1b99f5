//! The host of the current thread, outside of wasm.

use std::cell::RefCell;
use std::rc::Rc;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::Host;

thread_local! {
    static HOST: RefCell<Option<Rc<dyn Host>>> = const { RefCell::new(None) };
}

struct Nothing;

impl Host for Nothing {}

/// Keeps a host installed; puts back the previous one when dropped.
#[must_use = "the host is removed when this is dropped"]
pub struct Installed {
    previous: Option<Rc<dyn Host>>,
}

/// Makes `host` the host of this thread, log lines included.
pub fn install(host: Rc<dyn Host>) -> Installed {
    if log::set_logger(&ThreadLogger).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
    #[cfg(feature = "tracing")]
    crate::spans::forward();
    Installed { previous: HOST.with_borrow_mut(|current| current.replace(host)) }
}

impl Drop for Installed {
    fn drop(&mut self) {
        HOST.with_borrow_mut(|current| *current = self.previous.take());
    }
}

pub(crate) fn current() -> Rc<dyn Host> {
    HOST.with_borrow(Clone::clone).unwrap_or_else(|| Rc::new(Nothing))
}

/// A test sees all levels.
#[cfg(feature = "tracing")]
pub(crate) fn wants(level: Level) -> bool {
    level <= log::max_level()
}

/// Tests run in parallel, one per thread: each has its own log.
struct ThreadLogger;

impl Log for ThreadLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Trace
    }

    fn log(&self, record: &Record<'_>) {
        current().log(record.level(), &record.args().to_string());
    }

    fn flush(&self) {}
}
