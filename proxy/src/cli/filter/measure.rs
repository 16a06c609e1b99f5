//! A steady way to measure: warm up, run in batches, take the CPU time of this thread, so that a busy machine changes little.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Batches of what is quick.
const BATCHES: usize = 41;

/// A batch takes about this long.
const BATCH: Duration = Duration::from_millis(4);

/// Runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(150);

/// Of several measurements, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Figures {
    pub(super) fn of(mut measured: Vec<f64>) -> Self {
        measured.sort_by(f64::total_cmp);
        let at = |index: usize| measured.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(measured.len() / 2), max: at(measured.len().saturating_sub(1)) }
    }

    pub(super) fn json(self) -> Value {
        let rounded = |number: f64| (number * 1000.0).round() / 1000.0;
        json!({ "min": rounded(self.min), "median": rounded(self.median), "max": rounded(self.max) })
    }
}

/// CPU time of this thread.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Something slow, measured one by one.
pub(super) fn slow<T, E>(times: usize, mut run: impl FnMut() -> Result<T, E>) -> Result<Figures, E> {
    let mut measured = Vec::with_capacity(times);
    for _ in 0..times {
        let before = cpu_time();
        let made = black_box(run()?);
        measured.push((cpu_time() - before).as_secs_f64() * 1e6);
        drop(made);
    }
    Ok(Figures::of(measured))
}

/// Something quick, measured in batches of equal size.
pub(super) fn quick<E>(mut run: impl FnMut() -> Result<(), E>) -> Result<Figures, E> {
    let began = Instant::now();
    let mut runs = 0_u32;
    while began.elapsed() < WARM_UP || runs < 3 {
        run()?;
        runs = runs.saturating_add(1);
    }
    let one = began.elapsed() / runs;
    let size = u32::try_from(BATCH.as_nanos() / one.as_nanos().max(1)).unwrap_or(u32::MAX).clamp(1, 100_000);
    let mut measured = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let before = cpu_time();
        for _ in 0..size {
            run()?;
        }
        measured.push((cpu_time() - before).as_secs_f64() * 1e6 / f64::from(size));
    }
    Ok(Figures::of(measured))
}

/// The machine, as its kernel calls it.
pub(super) fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}, {cores} cores, {} {}", model.unwrap_or(std::env::consts::ARCH), std::env::consts::OS, kernel.trim())
}

/// How busy it was: `None` where nobody says.
pub(super) fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}
