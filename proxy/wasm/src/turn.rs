//! How long a guest call may go on, and what happens when it goes on for long.
//!
//! ```text
//! call --returns--> (nearly every call: no clock is read)
//!   \--tick--> counted --tick--> aside: the worker's other requests go on, on another thread --tick--> ... --> returns, or interrupted
//! ```
//!
//! The engine's epoch ticks every few milliseconds. A call that sees a first tick gets its clocks started, and the ticks become finer
//! while it lasts. At the second it steps aside: its worker's other tasks move to another thread, so that they wait for no guest longer
//! than two ticks. Calls that run aside take turns in one lane, so that they cannot take the machine either.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::runtime::{Handle, RuntimeFlavor};
use wasmtime::UpdateDeadline;

use crate::engine::{Engine, Hurry};

/// Calls that may run aside at once, over all workers: each holds a thread. One more is interrupted.
const ASIDE_MAX: usize = 32;

/// How long a call that steps aside waits for the new thread to take over, at each tick until one has. Threads start in microseconds, but on
/// a machine that is busy they may have to wait for a core.
const TAKE_OVER: Duration = Duration::from_millis(5);

/// The budget of the call that is running.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    cpu: Duration,
    wall: Duration,
    /// Set by the first tick.
    counted: Option<Counted>,
    /// What an interrupted call had used up.
    pub(crate) overrun: Option<Overrun>,
}

#[derive(Debug)]
struct Counted {
    cpu_before: Duration,
    since: Instant,
    place: Option<Place>,
    _hurry: Hurry,
}

/// Why a call was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overrun {
    /// [`crate::Limits::cpu`]
    Cpu,
    /// [`crate::Limits::deadline`]
    Deadline,
    /// Too many calls ran aside.
    Crowded,
}

impl Turn {
    /// Before a call.
    pub(crate) fn begin(&mut self, (cpu, wall): (Duration, Duration)) {
        *self = Self { cpu, wall, counted: None, overrun: None };
    }

    /// CPU time the call may use.
    pub(crate) fn cpu(&self) -> Duration {
        self.cpu
    }

    /// Time the call may take.
    pub(crate) fn wall(&self) -> Duration {
        self.wall
    }

    /// After a call.
    pub(crate) fn end(&mut self) {
        if self.counted.is_some() {
            self.counted = None;
        }
    }

    /// The epoch has ticked while the guest runs.
    pub(crate) fn tick(&mut self, engine: &Arc<Engine>) -> UpdateDeadline {
        let Some(counted) = &mut self.counted else {
            let (cpu_before, since) = (thread_cpu(), Instant::now());
            self.counted = Some(Counted { cpu_before, since, place: None, _hurry: engine.hurry() });
            return UpdateDeadline::Continue(1);
        };

        let used = thread_cpu().saturating_sub(counted.cpu_before);
        let left = self.wall.saturating_sub(counted.since.elapsed());
        let over = if used >= self.cpu {
            Some(Overrun::Cpu)
        } else if left.is_zero() {
            Some(Overrun::Deadline)
        } else {
            match &mut counted.place {
                Some(place) => (!place.rotate(left)).then_some(Overrun::Deadline),
                none => match step_aside(left) {
                    Aside::Taken(place) => {
                        *none = Some(place);
                        None
                    }
                    Aside::NoWorker => None,
                    Aside::Crowded => Some(Overrun::Crowded),
                    Aside::TooLate => Some(Overrun::Deadline),
                },
            }
        };
        match over {
            None => UpdateDeadline::Continue(1),
            over => {
                self.overrun = over;
                UpdateDeadline::Interrupt
            }
        }
    }
}

/// What came of stepping aside.
enum Aside {
    /// This thread goes on with the guest, another one with the worker's tasks.
    Taken(Place),
    /// This is not a worker whose tasks could wait: a start, or a test.
    NoWorker,
    Crowded,
    TooLate,
}

/// Hands the worker's other tasks to another thread, and queues for the lane.
fn step_aside(left: Duration) -> Aside {
    let Ok(worker) = Handle::try_current() else { return Aside::NoWorker };
    if worker.runtime_flavor() != RuntimeFlavor::MultiThread {
        return Aside::NoWorker;
    }
    let Some(seat) = Seat::take() else { return Aside::Crowded };
    let handed_on = hand_on(&worker);
    match LANE.enter(left) {
        true => Aside::Taken(Place { handed_on, in_lane: true, _seat: seat }),
        false => Aside::TooLate,
    }
}

/// Whether another thread has the worker's other tasks now. The runtime takes them back when none has come for them in time.
fn hand_on(worker: &Handle) -> bool {
    tokio::task::block_in_place(|| {
        // That a task has run says it.
        let (running, ran) = std::sync::mpsc::sync_channel(1);
        worker.spawn(async move { running.send(()) });
        ran.recv_timeout(TAKE_OVER).is_ok()
    })
}

/// One of [`ASIDE_MAX`].
#[derive(Debug)]
struct Seat;

static SEATS_TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Seat {
    fn take() -> Option<Self> {
        let more = |taken| (taken < ASIDE_MAX).then_some(taken + 1);
        SEATS_TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        SEATS_TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call's place in the lane; leaves it when dropped.
#[derive(Debug)]
struct Place {
    handed_on: bool,
    in_lane: bool,
    _seat: Seat,
}

impl Place {
    /// Tries again to hand the worker on, if nobody has taken it yet. Lets the next one run, if somebody waits, and waits for its own turn
    /// again. False when that did not come in time.
    fn rotate(&mut self, left: Duration) -> bool {
        if !self.handed_on {
            self.handed_on = Handle::try_current().is_ok_and(|worker| hand_on(&worker));
        }
        if LANE.is_wanted() {
            self.in_lane = false;
            LANE.leave();
            self.in_lane = LANE.enter(left);
        }
        self.in_lane
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.in_lane {
            LANE.leave();
        }
    }
}

/// Lets one of the calls that run aside run at a time, first come, first served: whatever their number, they take one core.
struct Lane {
    queue: Mutex<Queue>,
    moved: Condvar,
}

struct Queue {
    occupied: bool,
    waiting: VecDeque<u64>,
    next_ticket: u64,
}

static LANE: Lane = Lane {
    queue: Mutex::new(Queue { occupied: false, waiting: VecDeque::new(), next_ticket: 0 }),
    moved: Condvar::new(),
};

impl Lane {
    /// Waits for its turn, at most so long.
    fn enter(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut queue = self.queue.lock();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.waiting.push_back(ticket);
        while queue.occupied || queue.waiting.front() != Some(&ticket) {
            if self.moved.wait_until(&mut queue, until).timed_out() {
                queue.waiting.retain(|waiting| *waiting != ticket);
                self.moved.notify_all();
                return false;
            }
        }
        queue.waiting.pop_front();
        queue.occupied = true;
        true
    }

    fn leave(&self) {
        self.queue.lock().occupied = false;
        self.moved.notify_all();
    }

    fn is_wanted(&self) -> bool {
        !self.queue.lock().waiting.is_empty()
    }
}

/// CPU time this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live `timespec`, which the call fills or leaves as it is.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0;
    if failed {
        return Duration::ZERO; // cannot be on Linux; the wall clock bounds the call all the same
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_clock_counts_work_and_not_waiting() {
        let before = thread_cpu();
        let (never, waiting) = std::sync::mpsc::channel::<()>();
        let _ = waiting.recv_timeout(Duration::from_millis(30));
        drop(never);
        assert!(thread_cpu() - before < Duration::from_millis(20));
        let mut sum = 0u64;
        while thread_cpu() - before < Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }

    #[test]
    fn the_lane_holds_one_and_serves_in_order() {
        let lane = Lane {
            queue: Mutex::new(Queue { occupied: false, waiting: VecDeque::new(), next_ticket: 0 }),
            moved: Condvar::new(),
        };
        assert!(lane.enter(Duration::from_secs(5)));
        assert!(!lane.enter(Duration::from_millis(1)), "occupied");
        assert!(!lane.is_wanted(), "who gave up does not wait");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lane.enter(Duration::from_secs(5)));
            while !lane.is_wanted() {
                std::thread::yield_now();
            }
            lane.leave();
            assert!(waiter.join().unwrap());
        });
        assert!(!lane.enter(Duration::ZERO));
        lane.leave();
        assert!(lane.enter(Duration::ZERO));
    }
}
