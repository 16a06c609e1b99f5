//! Shared queues: process-wide first-in-first-out queues of bytes, named by `vm_id` and name.
//!
//! ```text
//! register -> (enqueue -> told once per item -> dequeue)* -> registered again, by whoever comes: the items stay
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::root_loop::Ticks;

/// Queues in one process. Names come from configured plugins; this bounds what many reloads can leave behind.
const MAX_QUEUES: usize = 4096;
/// Bytes of one name.
const MAX_NAME: usize = 1024;

/// Not the id of any queue, and never will be: a guest that was refused a queue gets it, and `NOT_FOUND` from then on.
pub(crate) const NO_QUEUE: u32 = 0;

/// The queues behind `proxy_register_shared_queue` and its family.
///
/// The VM that registered a queue last is told of its items by `proxy_on_queue_ready`, on the loop of its root context and never during
/// somebody else's guest call: once per item, as in Envoy, but not for items that have been taken by then. When that VM ends, items are
/// kept; whoever registers the queue next is told of all of them.
#[derive(Debug, Default)]
pub struct SharedQueues {
    registry: RwLock<Registry>,
}

/// One queue as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSize {
    /// Whose queue it is.
    pub vm_id: String,
    /// Its name.
    pub name: String,
    /// Items waiting.
    pub items: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Items ever taken in.
    pub enqueued: u64,
    /// Items refused because the queue was full.
    pub refused: u64,
}

/// How much one queue takes, and how many there may be: from the limits of the plugin that registers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueLimits {
    pub(crate) queues: usize,
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

/// Why there is no new queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The name is longer than 1 KiB.
    Name,
    /// The `vm_id` has as many queues as it may, or the process has.
    TooMany,
}

/// Why an item was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EnqueueError {
    NotFound,
    Full,
}

#[derive(Debug, Default)]
struct Registry {
    /// By `vm_id`, then name: an id is the queue's place in `queues`, counted from 1.
    by_name: HashMap<Box<str>, HashMap<Box<str>, u32>>,
    queues: Vec<Arc<Mutex<Queue>>>,
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Bytes>,
    bytes: usize,
    limits: QueueLimits,
    /// Whom to tell, and of how many items it has not been told yet.
    registrant: Weak<Registrant>,
    untold: usize,
    enqueued: u64,
    refused: u64,
}

/// A VM that registers queues: which of them have items it is to be told of.
#[derive(Debug)]
pub(crate) struct Registrant {
    /// Each at most once.
    ready: Mutex<VecDeque<u32>>,
    ticks: Arc<Ticks>,
}

impl Registrant {
    pub(crate) fn new(ticks: Arc<Ticks>) -> Arc<Self> {
        Arc::new(Self { ready: Mutex::default(), ticks })
    }

    fn tell(&self, queue: u32) {
        let mut ready = self.ready.lock();
        if !ready.contains(&queue) {
            ready.push_back(queue);
        }
        drop(ready);
        self.ticks.wake();
    }
}

impl SharedQueues {
    /// No queues yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every queue as it is now, in order of registration.
    #[must_use]
    pub fn sizes(&self) -> Vec<QueueSize> {
        let registry = self.registry.read();
        let names = registry
            .by_name
            .iter()
            .flat_map(|(vm_id, names)| names.iter().map(move |(name, id)| (*id, &**vm_id, &**name)));
        let mut named: Vec<_> = names.collect();
        named.sort_unstable();
        let size = |(id, vm_id, name): (u32, &str, &str)| {
            let queue = registry.queue(id)?.lock();
            Some(QueueSize {
                vm_id: vm_id.to_string(),
                name: name.to_string(),
                items: queue.items.len(),
                bytes: queue.bytes,
                enqueued: queue.enqueued,
                refused: queue.refused,
            })
        };
        named.into_iter().filter_map(size).collect()
    }

    /// The id of a queue, made if there is none. From now on `registrant`, if any, is told of its items, those that wait already included.
    pub(crate) fn register(
        &self,
        vm_id: &str,
        name: &str,
        limits: QueueLimits,
        registrant: Option<&Arc<Registrant>>,
    ) -> Result<u32, Refused> {
        if name.len() > MAX_NAME {
            return Err(Refused::Name);
        }
        let id = self.registry.write().find_or_make(vm_id, name, limits)?;
        if let Some(queue) = self.queue(id) {
            queue.lock().limits = limits;
        }
        if let Some(registrant) = registrant {
            self.claim(id, registrant);
        }
        Ok(id)
    }

    /// From now on `registrant` is told of this queue's items, those that wait already included.
    pub(crate) fn claim(&self, id: u32, registrant: &Arc<Registrant>) {
        let Some(queue) = self.queue(id) else { return };
        let mut queue = queue.lock();
        queue.registrant = Arc::downgrade(registrant);
        queue.untold = queue.items.len();
        if queue.untold > 0 {
            registrant.tell(id);
        }
    }

    /// The id of a queue that somebody has registered.
    pub(crate) fn resolve(&self, vm_id: &str, name: &str) -> Option<u32> {
        self.registry.read().by_name.get(vm_id)?.get(name).copied()
    }

    /// Appends an item. Whoever registered the queue is told of it later.
    pub(crate) fn enqueue(&self, id: u32, item: &[u8]) -> Result<(), EnqueueError> {
        let queue = self.queue(id).ok_or(EnqueueError::NotFound)?;
        let mut queue = queue.lock();
        if queue.items.len() >= queue.limits.items || queue.bytes.saturating_add(item.len()) > queue.limits.bytes {
            queue.refused += 1;
            return Err(EnqueueError::Full);
        }
        queue.bytes += item.len();
        queue.enqueued += 1;
        queue.items.push_back(Bytes::copy_from_slice(item));
        if let Some(registrant) = queue.registrant.upgrade() {
            queue.untold += 1;
            registrant.tell(id);
        }
        Ok(())
    }

    /// Takes the oldest item: `None` when there is no such queue, `Some(None)` when it is empty.
    pub(crate) fn dequeue(&self, id: u32) -> Option<Option<Bytes>> {
        let queue = self.queue(id)?;
        let mut queue = queue.lock();
        let item = queue.items.pop_front();
        queue.bytes -= item.as_ref().map_or(0, Bytes::len);
        Some(item)
    }

    /// The next queue that `registrant` is to be told of, once per item. Queues take turns.
    pub(crate) fn next_ready(&self, registrant: &Arc<Registrant>) -> Option<u32> {
        loop {
            let id = registrant.ready.lock().pop_front()?;
            let Some(queue) = self.queue(id) else { continue };
            let mut queue = queue.lock();
            if !std::ptr::eq(queue.registrant.as_ptr(), Arc::as_ptr(registrant)) {
                continue; // somebody else has registered it since
            }
            queue.untold = queue.untold.min(queue.items.len());
            let Some(left) = queue.untold.checked_sub(1) else { continue };
            queue.untold = left;
            if left > 0 {
                registrant.ready.lock().push_back(id);
            }
            return Some(id);
        }
    }

    fn queue(&self, id: u32) -> Option<Arc<Mutex<Queue>>> {
        self.registry.read().queue(id).cloned()
    }
}

impl Registry {
    fn queue(&self, id: u32) -> Option<&Arc<Mutex<Queue>>> {
        self.queues.get(usize::try_from(id.checked_sub(1)?).ok()?)
    }

    fn find_or_make(&mut self, vm_id: &str, name: &str, limits: QueueLimits) -> Result<u32, Refused> {
        let names = self.by_name.get(vm_id);
        if let Some(&id) = names.and_then(|names| names.get(name)) {
            return Ok(id);
        }
        if names.map_or(0, HashMap::len) >= limits.queues || self.queues.len() >= MAX_QUEUES {
            return Err(Refused::TooMany);
        }
        let id = u32::try_from(self.queues.len() + 1).map_err(|_| Refused::TooMany)?;
        self.queues.push(Arc::new(Mutex::new(Queue {
            items: VecDeque::new(),
            bytes: 0,
            limits,
            registrant: Weak::new(),
            untold: 0,
            enqueued: 0,
            refused: 0,
        })));
        self.by_name.entry(vm_id.into()).or_default().insert(name.into(), id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { queues: 4, items: 3, bytes: 10 };

    fn registrant() -> Arc<Registrant> {
        Registrant::new(Arc::default())
    }

    fn told(queues: &SharedQueues, registrant: &Arc<Registrant>) -> Vec<u32> {
        std::iter::from_fn(|| queues.next_ready(registrant)).collect()
    }

    #[test]
    fn a_name_is_one_queue_in_its_vm_id_and_another_one_elsewhere() {
        let (queues, one) = (SharedQueues::new(), registrant());
        let id = queues.register("a", "q", LIMITS, Some(&one)).unwrap();
        assert_ne!(id, NO_QUEUE);
        assert_eq!(queues.register("a", "q", LIMITS, Some(&one)), Ok(id));
        assert_ne!(queues.register("b", "q", LIMITS, Some(&one)), Ok(id));
        assert_eq!(
            (queues.resolve("a", "q"), queues.resolve("a", "r"), queues.resolve("c", "q")),
            (Some(id), None, None)
        );
    }

    #[test]
    fn items_leave_in_the_order_they_came_and_each_is_told_of_once() {
        let (queues, one) = (SharedQueues::new(), registrant());
        let id = queues.register("a", "q", LIMITS, Some(&one)).unwrap();
        for item in ["1", "", "3"] {
            queues.enqueue(id, item.as_bytes()).unwrap();
        }
        assert_eq!(told(&queues, &one), [id, id, id]);
        let items: Vec<Bytes> = std::iter::from_fn(|| queues.dequeue(id).unwrap()).collect();
        assert_eq!(items, ["1", "", "3"]);
        assert_eq!((queues.dequeue(NO_QUEUE), queues.dequeue(id + 1)), (None, None));
        assert_eq!(queues.enqueue(NO_QUEUE, b""), Err(EnqueueError::NotFound));
    }

    #[test]
    fn nobody_is_told_of_what_has_been_taken() {
        let (queues, one) = (SharedQueues::new(), registrant());
        let id = queues.register("a", "q", LIMITS, Some(&one)).unwrap();
        queues.enqueue(id, b"1").unwrap();
        queues.enqueue(id, b"2").unwrap();
        queues.dequeue(id).unwrap();
        assert_eq!(told(&queues, &one), [id]);
    }

    #[test]
    fn queues_take_turns() {
        let (queues, one) = (SharedQueues::new(), registrant());
        let [a, b] = ["a", "b"].map(|name| queues.register("vm", name, LIMITS, Some(&one)).unwrap());
        for id in [a, a, a, b] {
            queues.enqueue(id, b"").unwrap();
        }
        assert_eq!(told(&queues, &one), [a, b, a, a]);
    }

    #[test]
    fn the_last_to_register_is_told_of_everything_that_waits() {
        let (queues, one, two) = (SharedQueues::new(), registrant(), registrant());
        let id = queues.register("a", "q", LIMITS, Some(&one)).unwrap();
        queues.enqueue(id, b"1").unwrap();
        queues.enqueue(id, b"2").unwrap();
        assert_eq!(queues.next_ready(&one), Some(id));
        assert_eq!(queues.register("a", "q", LIMITS, Some(&two)), Ok(id));
        queues.enqueue(id, b"3").unwrap();
        assert_eq!((told(&queues, &one), told(&queues, &two)), (vec![], vec![id, id, id]));
    }

    #[test]
    fn items_outlive_their_registrant() {
        let (queues, one, two) = (SharedQueues::new(), registrant(), registrant());
        let id = queues.register("a", "q", LIMITS, Some(&one)).unwrap();
        queues.enqueue(id, b"1").unwrap();
        drop(one);
        queues.enqueue(id, b"2").unwrap();
        queues.register("a", "q", LIMITS, Some(&two)).unwrap();
        assert_eq!(told(&queues, &two), [id, id]);
        assert_eq!(queues.dequeue(id), Some(Some(Bytes::from("1"))));
    }

    #[test]
    fn everything_is_bounded() {
        let (queues, one) = (SharedQueues::new(), registrant());
        let id = queues.register("a", "q", LIMITS, Some(&one)).unwrap();
        assert_eq!(queues.enqueue(id, &[0; 11]), Err(EnqueueError::Full));
        for item in [[0; 3]; 3] {
            queues.enqueue(id, &item).unwrap();
        }
        assert_eq!(queues.enqueue(id, b""), Err(EnqueueError::Full), "a fourth item");
        queues.dequeue(id).unwrap();
        assert_eq!(queues.enqueue(id, &[0; 5]), Err(EnqueueError::Full), "an eleventh byte");
        queues.enqueue(id, &[0; 4]).unwrap();

        for name in ["r", "s", "t"] {
            queues.register("a", name, LIMITS, Some(&one)).unwrap();
        }
        assert_eq!(queues.register("a", "u", LIMITS, Some(&one)), Err(Refused::TooMany));
        assert!(queues.register("b", "u", LIMITS, Some(&one)).is_ok());
        assert_eq!(queues.register("b", &"n".repeat(MAX_NAME + 1), LIMITS, Some(&one)), Err(Refused::Name));

        let QueueSize { vm_id, name, items, bytes, enqueued, refused } = queues.sizes().swap_remove(0);
        assert_eq!((&*vm_id, &*name, items, bytes, enqueued, refused), ("a", "q", 3, 10, 4, 3));
    }
}
