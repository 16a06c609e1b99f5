//! How often a path was asked for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use http::StatusCode;

use crate::answer::Refusal;

/// More paths than this are not counted, so that a scan cannot fill the memory.
const MOST_PATHS: usize = 10_000;
/// Nor are longer ones.
const LONGEST_PATH: usize = 512;

/// Requests by path, without the query.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<HashMap<String, u64>>);

impl Counts {
    /// Counts one request for the path and says how many there have been, this one included.
    pub(crate) fn count(&self, path: &str) -> Result<u64, Refusal> {
        if path.len() > LONGEST_PATH {
            return Err(Refusal::new(
                StatusCode::URI_TOO_LONG,
                format!("Paths that are counted have at most {LONGEST_PATH} bytes."),
            ));
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= MOST_PATHS && !counts.contains_key(path) {
            let sentence = format!("This origin counts at most {MOST_PATHS} paths; start it anew.");
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, sentence));
        }
        let count = counts.entry(path.to_owned()).or_insert(0);
        *count += 1;
        Ok(*count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_counted_apart_and_bounded() {
        let counts = Counts::default();
        for path in 0..MOST_PATHS {
            assert_eq!(counts.count(&format!("/{path}")).unwrap(), 1);
        }
        assert_eq!(counts.count("/7").unwrap(), 2);
        assert!(counts.count("/new").is_err());
        assert!(counts.count(&"x".repeat(LONGEST_PATH + 1)).is_err());
    }
}
