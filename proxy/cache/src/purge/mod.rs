//! Purges by epochs: nothing is searched for when something is purged, and nothing purged is ever handed out.
//!
//! Every stored response carries the [epoch](Clock) at which its fetch began, and [marks](Mark) of what it belongs to: its URL, its host,
//! each prefix of its path, each of its tags. A purge is one entry `mark -> epoch` in a [table](Purges). A response whose epoch is not
//! later than the entry of one of its marks is [purged](Verdict); one whose fetch began afterwards is not. So a purge costs the same
//! whatever it reaches, and wins against fetches that are under way.
//!
//! What is doubtful counts as purged: a table that is full folds its oldest entries into coarser ones (the host's, else everything), and
//! a response with more tags than are kept counts as having every tag.
//!
//! The [log](PurgeLog) keeps purges over the end of the process. Nothing here names Pingora or opens a socket.

mod clock;
mod log;
mod mark;
mod table;
mod tags;

pub use self::clock::Clock;
pub use self::log::{LogError, OpenError, Position, PurgeLog, Record};
pub use self::mark::{Mark, Marks, Scope};
pub use self::table::{PurgeUsage, Purges, Verdict};
pub use self::tags::{TAG_MAX, TAGS_MAX, TagHeader, TagPolicy, Tags};

/// How thoroughly a purge works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purge {
    /// What is stored is not used again: the next request is a miss.
    Hard,
    /// What is stored is stale since the purge: the next request validates, and the stale windows apply.
    Soft,
}
