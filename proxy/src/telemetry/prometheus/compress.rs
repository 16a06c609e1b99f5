//! What is compressed on its way out.

use std::sync::atomic::Ordering::Relaxed;

use super::Page;
use crate::telemetry::counters::{Compressed, Counters};

/// Of any node.
pub(super) fn write(page: &mut Page, counters: &Counters) {
    let Compressed { encoded, stored, bytes_in, bytes_out } = &counters.compressed;
    let name = "selvedge_compress_responses_total";
    page.family(name, "counter", "Responses that left compressed: on their way, or as they were stored.");
    for (source, count) in [("encoded", encoded), ("stored", stored)] {
        page.sample(name, &[("source", source)], count.load(Relaxed));
    }
    let name = "selvedge_compress_bytes_total";
    page.family(name, "counter", "Bytes of bodies that were compressed on their way, before and after.");
    for (direction, count) in [("in", bytes_in), ("out", bytes_out)] {
        page.sample(name, &[("direction", direction)], count.load(Relaxed));
    }
}
