//! Metrics. A VM keeps the metrics it uses at hand, so that recording takes no lock.

use std::sync::Arc;

use crate::abi::memory::{Guest, read, write_u32, write_u64};
use crate::abi::status::{Called, Status, bad};
use crate::metrics::{Cell, MetricId, MetricKind};

pub(super) fn define(guest: &mut Guest<'_>, kind: u32, name: u32, name_len: u32, out_id: u32) -> Called {
    let kind = MetricKind::from_abi(kind).ok_or_else(|| bad("no such metric type"))?;
    let facts = guest.data().facts.clone();
    let name = std::str::from_utf8(read(guest, name, name_len)?).map_err(|_| bad("metric name is not UTF-8"))?;
    let id = facts
        .host
        .metrics()
        .define(kind, name)
        .map_err(|_| bad("metric name is empty, too long, or of another type"))?;
    write_u32(guest, out_id, id.0)
}

pub(super) fn get(guest: &mut Guest<'_>, id: u32, out: u32) -> Called {
    let value = cell(guest, id)?.read().map_err(|_| bad("a histogram has no single value"))?;
    write_u64(guest, out, value)
}

pub(super) fn record(guest: &mut Guest<'_>, id: u32, value: u64) -> Called {
    cell(guest, id)?.record(value);
    Ok(())
}

pub(super) fn increment(guest: &mut Guest<'_>, id: u32, delta: i64) -> Called {
    cell(guest, id)?.increment(delta).map_err(|_| bad("counters only grow, histograms cannot be incremented"))
}

fn cell<'g>(guest: &'g mut Guest<'_>, id: u32) -> Called<&'g Arc<Cell>> {
    let state = guest.data_mut();
    if !state.metrics.contains_key(&id) {
        let cell = state.facts.host.metrics().cell(MetricId(id)).ok_or(Status::NotFound)?;
        state.metrics.insert(id, cell);
    }
    state.metrics.get(&id).ok_or_else(|| Status::NotFound.into())
}
