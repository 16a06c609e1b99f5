//! What the cache's disks hold and do.

use selvedge_cache::disk::{Counts, DiskUsage, State};

use super::Page;

/// A number that is asked of every disk.
type Figure = (&'static str, &'static str, &'static str, fn(&DiskUsage) -> u64);

const FIGURES: [Figure; 7] = [
    ("selvedge_cache_disk_up", "gauge", "1 while the disk is in use.", |disk| u64::from(disk.state == State::On)),
    ("selvedge_cache_disk_objects", "gauge", "Stored responses on the disk.", |disk| disk.objects),
    ("selvedge_cache_disk_bytes", "gauge", "What the cache's files take of the disk.", |disk| disk.bytes),
    ("selvedge_cache_disk_capacity_bytes", "gauge", "What they may take.", |disk| disk.capacity),
    ("selvedge_cache_disk_index_bytes", "gauge", "Memory that the disk's index takes.", |disk| disk.index_bytes),
    ("selvedge_cache_disk_queued_bytes", "gauge", "What waits to be written.", |disk| disk.queued_bytes),
    ("selvedge_cache_disk_written_bytes_total", "counter", "Bytes written.", |disk| disk.counts.written_bytes),
];

/// Something that happens on disks, and how often it did.
type Event = (&'static str, fn(&Counts) -> u64);

const EVENTS: [Event; 12] = [
    ("hit", |counts| counts.hits),
    ("miss", |counts| counts.misses),
    ("written", |counts| counts.written),
    ("dropped_queue_full", |counts| counts.dropped_queue),
    ("dropped_error", |counts| counts.dropped_error),
    ("kept", |counts| counts.kept),
    ("reclaimed", |counts| counts.reclaimed),
    ("io_error", |counts| counts.io_errors),
    ("full", |counts| counts.full),
    ("corrupt", |counts| counts.corrupt),
    ("slow", |counts| counts.slow),
    ("removed", |counts| counts.removed),
];

/// Writes nothing without a disk tier.
pub(super) fn write(page: &mut Page, disks: &[DiskUsage]) {
    if disks.is_empty() {
        return;
    }
    for (name, kind, help, figure) in FIGURES {
        page.family(name, kind, help);
        for disk in disks {
            page.sample(name, &[("disk", &disk.name)], figure(disk));
        }
    }
    let name = "selvedge_cache_disk_events_total";
    page.family(name, "counter", "What happened on the cache's disks; docs/cache-disk.md says what each event is.");
    for disk in disks {
        for (event, count) in EVENTS {
            page.sample(name, &[("disk", &disk.name), ("event", event)], count(&disk.counts));
        }
    }
}
