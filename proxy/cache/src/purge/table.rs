//! The purges that still matter.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::clock::time_of;
use super::{Clock, Mark, Marks, Purge, Scope};
use crate::key::SlotHash;

/// So many purges are told apart; about 100 bytes each. Beyond that the oldest are folded into coarser ones.
const PURGES_MAX: usize = 262_144;
/// A purge is remembered for as long as anything stored before it could be used, and at least so long.
const REMEMBERED_AT_LEAST: Duration = Duration::from_hours(24);
/// Bits of the filter in front of the table: 128 KiB.
const FILTER_BITS: u32 = 20;

/// What becomes of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No purge reaches it.
    Live,
    /// It is stale since then, at the latest.
    StaleSince(SystemTime),
    /// It must not be used again.
    Gone,
}

/// What the table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PurgeUsage {
    /// Purges that are told apart.
    pub entries: u64,
    /// How many scopes were purged since the start, hard.
    pub hard: u64,
    /// The same, soft.
    pub soft: u64,
    /// How many were folded into coarser ones since the start, because there were too many.
    pub folded: u64,
}

/// See the [module](super).
pub struct Purges {
    clock: Clock,
    /// The newest purge of all. What was fetched later is live, whatever the table holds: with an empty table the check is one load.
    newest: AtomicU64,
    all: [AtomicU64; 2],
    filter: Filter,
    table: DashMap<Mark, Entry, SlotHash>,
    /// Every mark of the table once, those purged longest ago first. Whoever writes holds it.
    order: Mutex<VecDeque<(u64, Mark)>>,
    /// The longest time, in seconds, that any stored response could be used after its fetch; a power of two.
    longest: AtomicU64,
    limit: usize,
    purged: [AtomicU64; 2],
    folded: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// When it was last purged hard, and soft; 0 is never.
    at: [u64; 2],
    host: Option<Mark>,
}

impl Entry {
    fn newest(self) -> u64 {
        self.at[0].max(self.at[1])
    }
}

fn place(purge: Purge) -> usize {
    match purge {
        Purge::Hard => 0,
        Purge::Soft => 1,
    }
}

impl Default for Purges {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Purges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Purges").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

impl Purges {
    /// A table without purges.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(PURGES_MAX)
    }

    fn with_limit(limit: usize) -> Self {
        Self {
            clock: Clock::new(),
            newest: AtomicU64::new(0),
            all: Default::default(),
            filter: Filter::new(),
            table: DashMap::default(),
            order: Mutex::default(),
            longest: AtomicU64::new(REMEMBERED_AT_LEAST.as_secs().next_power_of_two()),
            limit,
            purged: Default::default(),
            folded: AtomicU64::new(0),
        }
    }

    /// What purges and fetches are ordered by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Purge all these at once. When it returns, nothing they reach is handed out any more. Gives back their epoch.
    pub fn purge(&self, scopes: &[Scope], purge: Purge) -> u64 {
        let mut order = self.order.lock();
        let epoch = self.clock.tick();
        for scope in scopes {
            self.enter(&mut order, *scope, epoch, purge);
        }
        self.purged[place(purge)].fetch_add(scopes.len() as u64, Ordering::Relaxed);
        // Last, so that whoever sees it sees the entries.
        self.newest.fetch_max(epoch, Ordering::Release);
        self.forget_old(&mut order, epoch);
        epoch
    }

    /// Take over a purge of an earlier run.
    pub fn replay(&self, scope: Scope, epoch: u64, purge: Purge) {
        let mut order = self.order.lock();
        self.clock.observe(epoch);
        self.enter(&mut order, scope, epoch, purge);
        self.newest.fetch_max(epoch, Ordering::Release);
    }

    /// Something was stored that could be used for so long. Says the longest time of all when that has become longer.
    pub fn note_lifetime(&self, lifetime: Duration) -> Option<Duration> {
        let seconds = lifetime.as_secs().min(1 << 62);
        if seconds <= self.longest.load(Ordering::Relaxed) {
            return None;
        }
        let longest = seconds.next_power_of_two();
        let before = self.longest.fetch_max(longest, Ordering::Relaxed);
        (before < longest).then(|| Duration::from_secs(longest))
    }

    /// For how long purges are remembered.
    #[must_use]
    pub fn remembered_for(&self) -> Duration {
        Duration::from_secs(self.longest.load(Ordering::Relaxed))
    }

    /// Whether a response with these marks may be used.
    #[must_use]
    pub fn verdict(&self, marks: &Marks) -> Verdict {
        let reaches = |epoch: u64| epoch >= marks.epoch && epoch != 0;
        if !reaches(self.newest.load(Ordering::Acquire)) {
            return Verdict::Live;
        }
        if reaches(self.all[0].load(Ordering::Acquire)) {
            return Verdict::Gone;
        }
        let mut stale = Some(self.all[1].load(Ordering::Acquire)).filter(|epoch| reaches(*epoch));
        for mark in marks.marks.iter() {
            if !self.filter.may_hold(*mark) {
                continue;
            }
            let Some(entry) = self.table.get(mark).map(|entry| *entry) else { continue };
            if reaches(entry.at[0]) {
                return Verdict::Gone;
            }
            if reaches(entry.at[1]) {
                stale = Some(stale.map_or(entry.at[1], |since| since.min(entry.at[1])));
            }
        }
        match stale {
            None => Verdict::Live,
            // The clock may be ahead of the time of day; what is purged is stale at once all the same.
            Some(epoch) => Verdict::StaleSince(time_of(epoch).min(SystemTime::now())),
        }
    }

    /// Whether there was any purge since `epoch`.
    #[must_use]
    pub fn may_reach(&self, epoch: u64) -> bool {
        let newest = self.newest.load(Ordering::Acquire);
        newest >= epoch && newest != 0
    }

    /// The newest purge of any kind that reaches these marks, whatever their epoch; 0 is none.
    #[must_use]
    pub fn newest_of(&self, marks: &Marks) -> u64 {
        let all = self.all.iter().map(|all| all.load(Ordering::Acquire));
        let known = marks.marks.iter().filter(|mark| self.filter.may_hold(**mark));
        let each = known.filter_map(|mark| self.table.get(mark).map(|entry| entry.newest()));
        all.chain(each).max().unwrap_or(0)
    }

    /// What is remembered, each scope with its epoch and kind: for a log that is written anew. New purges wait meanwhile.
    pub fn each(&self, mut found: impl FnMut(Scope, u64, Purge)) {
        let order = self.order.lock();
        for purge in [Purge::Hard, Purge::Soft] {
            let all = self.all[place(purge)].load(Ordering::Acquire);
            if all != 0 {
                found(Scope::everything(), all, purge);
            }
            for (_, mark) in order.iter() {
                let Some(entry) = self.table.get(mark).map(|entry| *entry) else { continue };
                if entry.at[place(purge)] != 0 {
                    found(Scope { mark: Some(*mark), host: entry.host }, entry.at[place(purge)], purge);
                }
            }
        }
    }

    /// What the table holds.
    #[must_use]
    pub fn usage(&self) -> PurgeUsage {
        PurgeUsage {
            entries: self.order.lock().len() as u64,
            hard: self.purged[0].load(Ordering::Relaxed),
            soft: self.purged[1].load(Ordering::Relaxed),
            folded: self.folded.load(Ordering::Relaxed),
        }
    }

    fn enter(&self, order: &mut VecDeque<(u64, Mark)>, scope: Scope, epoch: u64, purge: Purge) {
        let Some(mark) = scope.mark else {
            self.all[place(purge)].fetch_max(epoch, Ordering::AcqRel);
            return;
        };
        if order.len() >= self.limit && !self.table.contains_key(&mark) {
            self.fold(order);
        }
        self.raise(order, mark, scope.host, epoch, purge);
    }

    fn raise(&self, order: &mut VecDeque<(u64, Mark)>, mark: Mark, host: Option<Mark>, epoch: u64, purge: Purge) {
        self.filter.add(mark);
        let mut entry = self.table.entry(mark).or_insert_with(|| {
            order.push_back((epoch, mark));
            Entry { host, ..Entry::default() }
        });
        let at = &mut entry.at[place(purge)];
        *at = (*at).max(epoch);
    }

    /// Let go of purges that nothing stored can be reached by any more; a few at a time, so that no purge pays for all.
    fn forget_old(&self, order: &mut VecDeque<(u64, Mark)>, now: u64) {
        let remembered = u64::try_from(self.remembered_for().as_micros()).unwrap_or(u64::MAX);
        for _ in 0..2 {
            match order.front() {
                Some((epoch, _)) if epoch.saturating_add(remembered) < now => {}
                _ => return,
            }
            self.take_oldest(order, |_, _| {});
        }
    }

    /// Make room: the oldest quarter goes into what is coarser, the hosts' entries first, and if there are too many hosts, everything.
    fn fold(&self, order: &mut VecDeque<(u64, Mark)>) {
        let batch = (self.limit / 4).max(1);
        let before = order.len();
        for by_host in [true, false] {
            let mut left = batch;
            while left > 0 && !order.is_empty() && order.len() > self.limit - batch {
                left -= 1;
                let mut coarser = None;
                self.take_oldest(order, |mark, entry| match entry.host.filter(|host| by_host && *host != mark) {
                    Some(host) => coarser = Some((host, entry)),
                    None => {
                        for (all, at) in self.all.iter().zip(entry.at) {
                            all.fetch_max(at, Ordering::AcqRel);
                        }
                    }
                });
                if let Some((host, entry)) = coarser {
                    for purge in [Purge::Hard, Purge::Soft] {
                        let at = entry.at[place(purge)];
                        if at != 0 {
                            self.raise(order, host, Some(host), at, purge);
                        }
                    }
                }
            }
        }
        self.folded.fetch_add(before.saturating_sub(order.len()) as u64, Ordering::Relaxed);
        self.filter.rebuild(order.iter().map(|(_, mark)| *mark));
        tracing::warn!(
            kept = order.len(),
            "there are too many purges to tell apart: the oldest now hold for their whole hosts, or for everything"
        );
    }

    /// Take away the entry that was purged longest ago. `instead` comes first, so that there is no moment without either.
    fn take_oldest(&self, order: &mut VecDeque<(u64, Mark)>, instead: impl FnOnce(Mark, Entry)) {
        while let Some((epoch, mark)) = order.pop_front() {
            let Some(entry) = self.table.get(&mark).map(|entry| *entry) else { continue };
            if entry.newest() > epoch {
                // Purged again meanwhile: its turn comes later.
                order.push_back((entry.newest(), mark));
                continue;
            }
            instead(mark, entry);
            self.table.remove(&mark);
            return;
        }
    }
}

/// Says of most marks that the table does not hold them, without looking into it.
struct Filter(Box<[AtomicU64]>);

impl Filter {
    fn new() -> Self {
        Self((0..1usize << (FILTER_BITS - 6)).map(|_| AtomicU64::new(0)).collect())
    }

    /// The word and the bit of a mark: of its upper bits, since the table goes by the lower ones.
    fn position(mark: Mark) -> (usize, u64) {
        let bits = mark.get() >> (64 - FILTER_BITS);
        (usize::try_from(bits >> 6).unwrap_or_default(), 1 << (bits & 63))
    }

    fn add(&self, mark: Mark) {
        let (word, bit) = Self::position(mark);
        self.0[word].fetch_or(bit, Ordering::AcqRel);
    }

    fn may_hold(&self, mark: Mark) -> bool {
        let (word, bit) = Self::position(mark);
        self.0[word].load(Ordering::Acquire) & bit != 0
    }

    /// Forget all but these. Only while nobody adds.
    fn rebuild(&self, marks: impl Iterator<Item = Mark>) {
        let mut words = vec![0; self.0.len()];
        for mark in marks {
            let (word, bit) = Self::position(mark);
            words[word] |= bit;
        }
        self.0.iter().zip(words).for_each(|(word, bits)| word.store(bits, Ordering::Release));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Scheme;
    use crate::purge::{TagPolicy, Tags};
    use crate::rules::QueryPolicy;

    fn marks_at(epoch: u64, host: &str, target: &str, tags: &str) -> Marks {
        let mut headers = http::HeaderMap::new();
        headers.insert("cache-tag", tags.parse().expect("a value"));
        let tags = Tags::of(&headers, &TagPolicy::default());
        Marks::new(epoch, Scheme::Http, &QueryPolicy::All, host.as_bytes(), target.as_bytes(), &tags)
    }

    fn fetched(purges: &Purges, host: &str, target: &str, tags: &str) -> Marks {
        marks_at(purges.clock().fetch(), host, target, tags)
    }

    fn is_stale(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::StaleSince(since) if since <= SystemTime::now())
    }

    #[test]
    fn a_purge_reaches_what_belongs_to_its_scope_and_was_fetched_before() {
        let url = |target| Scope::url(&QueryPolicy::All, "a.example", target);
        for (scope, reached) in [
            (Scope::everything(), true),
            (Scope::host("a.example"), true),
            (Scope::host("b.example"), false),
            (Scope::prefix("a.example", "/x"), true),
            (Scope::prefix("a.example", "/y"), false),
            (url("/x/1"), true),
            (url("/x/2"), false),
            (Scope::tag("red"), true),
            (Scope::tag("green"), false),
            (Scope::too_many_tags(), false),
        ] {
            for purge in [Purge::Hard, Purge::Soft] {
                let purges = Purges::new();
                let before = fetched(&purges, "a.example", "/x/1", "red, blue");
                assert_eq!(purges.verdict(&before), Verdict::Live);
                purges.purge(&[scope], purge);
                let verdict = purges.verdict(&before);
                match purge {
                    _ if !reached => assert_eq!(verdict, Verdict::Live, "{scope:?}"),
                    Purge::Hard => assert_eq!(verdict, Verdict::Gone, "{scope:?}"),
                    Purge::Soft => assert!(is_stale(verdict), "{scope:?}"),
                }
                let after = fetched(&purges, "a.example", "/x/1", "red, blue");
                assert_eq!(purges.verdict(&after), Verdict::Live, "{scope:?}");
            }
        }
    }

    #[test]
    fn hard_wins_over_soft_in_either_order() {
        for kinds in [[Purge::Hard, Purge::Soft], [Purge::Soft, Purge::Hard]] {
            let purges = Purges::new();
            let object = fetched(&purges, "a.example", "/", "t");
            for purge in kinds {
                purges.purge(&[Scope::tag("t")], purge);
            }
            assert_eq!(purges.verdict(&object), Verdict::Gone);
        }
    }

    #[test]
    fn what_is_of_unknown_age_is_purged_by_anything() {
        let purges = Purges::new();
        let object = marks_at(0, "a.example", "/", "t");
        assert_eq!(purges.verdict(&object), Verdict::Live);
        purges.purge(&[Scope::tag("t")], Purge::Hard);
        assert_eq!(purges.verdict(&object), Verdict::Gone);
    }

    #[test]
    fn when_there_are_too_many_they_become_coarser_and_none_is_forgotten() {
        let purges = Purges::with_limit(64);
        let mut stored = Vec::new();
        for number in 0..1000 {
            let (host, target) = (format!("{}.example", number % 3), format!("/{number}"));
            stored.push(fetched(&purges, &host, &target, &format!("t{number}")));
            let scope = match number % 3 {
                0 => Scope::url(&QueryPolicy::All, &host, &target),
                1 => Scope::prefix(&host, &target),
                _ => Scope::tag(&format!("t{number}")),
            };
            purges.purge(&[scope], if number % 2 == 0 { Purge::Hard } else { Purge::Soft });
            assert!(purges.usage().entries <= 64);
            assert_eq!(purges.table.len() as u64, purges.usage().entries);
        }
        for (number, object) in stored.iter().enumerate() {
            let verdict = purges.verdict(object);
            assert!(if number % 2 == 0 { verdict == Verdict::Gone } else { verdict != Verdict::Live }, "{number}");
        }
        assert!(purges.usage().folded > 0);
        let fresh = fetched(&purges, "0.example", "/", "t");
        assert_eq!(purges.verdict(&fresh), Verdict::Live);
    }

    #[test]
    fn a_table_full_of_hosts_folds_them_too() {
        let purges = Purges::with_limit(8);
        let objects: Vec<_> = (0..100)
            .map(|number| {
                let host = format!("h{number}.example");
                let object = fetched(&purges, &host, "/", "t");
                purges.purge(&[Scope::host(&host)], Purge::Hard);
                object
            })
            .collect();
        assert!(objects.iter().all(|object| purges.verdict(object) == Verdict::Gone));
        assert!(purges.usage().entries <= 8);
    }

    #[test]
    fn a_scope_that_is_purged_again_takes_one_place_and_keeps_it() {
        let purges = Purges::with_limit(4);
        let object = fetched(&purges, "a.example", "/", "often");
        for _ in 0..100 {
            purges.purge(&[Scope::tag("often")], Purge::Soft);
        }
        assert_eq!(purges.usage().entries, 1);
        assert!(is_stale(purges.verdict(&object)));
    }

    #[test]
    fn purges_are_forgotten_once_nothing_stored_is_that_old() {
        let purges = Purges::new();
        assert_eq!(purges.note_lifetime(Duration::from_secs(60)), None, "a day is remembered anyway");
        let ago = |time: Duration| purges.clock().fetch() - u64::try_from(time.as_micros()).expect("in range");
        let (long_ago, lately) = (ago(3 * REMEMBERED_AT_LEAST), ago(REMEMBERED_AT_LEAST / 2));
        for (tag, epoch) in [("old", long_ago), ("new", lately)] {
            purges.replay(Scope::tag(tag), epoch, Purge::Hard);
        }
        purges.purge(&[Scope::tag("now")], Purge::Hard);
        assert_eq!(purges.verdict(&marks_at(long_ago, "a.example", "/", "old")), Verdict::Live);
        assert_eq!(purges.verdict(&marks_at(lately, "a.example", "/", "new")), Verdict::Gone);
        assert_eq!(purges.usage().entries, 2);

        let purges = Purges::new();
        let week = Duration::from_hours(24 * 7);
        let longer = purges.note_lifetime(week).expect("longer than before");
        assert!(longer >= week && purges.note_lifetime(week).is_none());
        purges.replay(Scope::tag("old"), long_ago, Purge::Hard);
        purges.purge(&[Scope::tag("now")], Purge::Hard);
        assert_eq!(purges.verdict(&marks_at(long_ago, "a.example", "/", "old")), Verdict::Gone);
    }

    #[test]
    fn what_is_remembered_can_be_taken_over() {
        let purges = Purges::new();
        let objects = [("a.example", "/x", "t"), ("b.example", "/", "u"), ("b.example", "/", "v")];
        let objects = objects.map(|(host, target, tag)| fetched(&purges, host, target, tag));
        purges.purge(&[Scope::prefix("a.example", "/x"), Scope::tag("u")], Purge::Hard);
        purges.purge(&[Scope::everything()], Purge::Soft);
        let again = Purges::new();
        purges.each(|scope, epoch, purge| {
            let (mark, host) = scope.to_parts();
            again.replay(Scope::from_parts(mark, host), epoch, purge);
        });
        for object in &objects {
            assert_eq!(purges.verdict(object), again.verdict(object));
        }
        assert!(is_stale(again.verdict(&objects[2])));
        assert!(again.clock().fetch() > objects[2].epoch);
    }
}
