//! `config diff`: what would change between two configurations, and what a reload from one to the other would do with what runs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use selvedge_config::{Change, Difference};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Offline, OfflineError};
use crate::control;
use crate::listening::{self, Fate};
use crate::plan::Live;

/// How two configurations differ.
pub(crate) struct Comparison {
    differences: Vec<Difference>,
    reload: Reload,
}

/// What a reload would do.
#[derive(Debug, Serialize)]
struct Reload {
    /// What it is refused for: only a restart can change these.
    refused: Vec<&'static str>,
    /// Every listener, by name.
    listeners: BTreeMap<String, Fate>,
    /// Every filter in use, by name.
    filters: BTreeMap<String, Plugins>,
}

/// What becomes of the running instances of a filter, one for each of its configurations.
#[derive(Debug, Default, Serialize)]
struct Plugins {
    /// They go on, with all that they hold in memory.
    kept: usize,
    started: usize,
    stopped: usize,
}

impl Comparison {
    /// Compares two files, both of which a node would take.
    pub(crate) fn of(old: &Path, new: &Path) -> Result<Self, OfflineError> {
        let old = Offline::load(old)?;
        let new = old.successor(new)?;
        let differences = old.loaded.effective().differences(&new.loaded.effective());
        let (before, after) = (old.current.plan(), new.current.plan());
        let reload = Reload {
            refused: control::fixed(&old.config, &new.config),
            listeners: listening::fates(&old.config, &new.config),
            filters: plugins(&before.plugins, &after.plugins),
        };
        Ok(Self { differences, reload })
    }

    /// Whether nothing is different.
    pub(crate) fn is_same(&self) -> bool {
        self.differences.is_empty()
    }

    /// For machines.
    pub(crate) fn to_json(&self) -> Value {
        let difference = |Difference { key, change }: &Difference| match change {
            Change::Added(new) => json!({ "key": key, "change": "added", "new": new.to_json() }),
            Change::Removed(old) => json!({ "key": key, "change": "removed", "old": old.to_json() }),
            Change::Changed(old, new) => {
                json!({ "key": key, "change": "changed", "old": old.to_json(), "new": new.to_json() })
            }
            Change::Order(old, new) => json!({ "key": key, "change": "order", "old": old, "new": new }),
        };
        json!({ "differences": self.differences.iter().map(difference).collect::<Vec<_>>(), "reload": self.reload })
    }
}

fn plugins(before: &[Live], after: &[Live]) -> BTreeMap<String, Plugins> {
    let mut all: BTreeMap<String, Plugins> = BTreeMap::new();
    let is_in = |set: &[Live], one: &Live| set.iter().any(|other| Arc::ptr_eq(&other.plugin, &one.plugin));
    for live in after {
        let of_name = all.entry(live.plugin.name().to_owned()).or_default();
        *if is_in(before, live) { &mut of_name.kept } else { &mut of_name.started } += 1;
    }
    for live in before.iter().filter(|live| !is_in(after, live)) {
        all.entry(live.plugin.name().to_owned()).or_default().stopped += 1;
    }
    all
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_same() {
            return f.write_str("no difference\n");
        }
        for Difference { key, change } in &self.differences {
            match change {
                Change::Added(new) => writeln!(f, "+ {key}: {}", new.brief())?,
                Change::Removed(old) => writeln!(f, "- {key}: {}", old.brief())?,
                Change::Changed(old, new) => writeln!(f, "~ {key}: {} -> {}", old.brief(), new.brief())?,
                Change::Order(old, new) => writeln!(f, "~ {key}: {} -> {}", old.join(", "), new.join(", "))?,
            }
        }
        self.reload.fmt(f)
    }
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a reload")?;
        for key in &self.refused {
            writeln!(f, "  is refused: {key} needs a restart")?;
        }
        for (name, fate) in &self.listeners {
            let fate = match fate {
                Fate::Kept => "goes on as it is",
                Fate::Rebuilt => {
                    "keeps its socket and is served anew; its connections end after the exchange they are in"
                }
                Fate::Bound => "is bound",
                Fate::Closed => "is closed; its connections end after the exchange they are in",
            };
            writeln!(f, "  listener {name}: {fate}")?;
        }
        for (name, Plugins { kept, started, stopped }) in &self.filters {
            match (kept, started, stopped) {
                (_, 0, 0) => writeln!(f, "  filter {name}: goes on, with what it holds in memory")?,
                (0, _, 0) => writeln!(f, "  filter {name}: is started")?,
                (0, 0, _) => writeln!(f, "  filter {name}: is stopped")?,
                (0, ..) => writeln!(f, "  filter {name}: is started anew, with empty memory")?,
                _ => {
                    writeln!(f, "  filter {name}: {kept} of its configurations go on, {started} start, {stopped} stop")?
                }
            }
        }
        Ok(())
    }
}
