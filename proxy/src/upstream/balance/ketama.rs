//! A ring on which each endpoint has 160 points for each unit of weight.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};

use pingora_ketama::{Bucket, Continuum};

use super::key::hash;
use crate::upstream::endpoint::Address;

/// The most weight a ring bears; beyond, weights are scaled down to fit, to 1 at least. It keeps a ring below 2 MiB or so.
const WEIGHT_MAX: u64 = 2048;

/// How many points a key is led on over before its way goes along the list of endpoints.
const POINTS: usize = 1024;

pub(in crate::upstream) struct Ketama {
    ring: Continuum,
    endpoints: HashMap<SocketAddr, usize>,
}

impl Ketama {
    pub(super) fn new(endpoints: &[(&Address, u16)]) -> Self {
        let total: u64 = endpoints.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let scaled = |weight: u16| match u64::from(weight) {
            weight if total <= WEIGHT_MAX => weight,
            weight => (weight * WEIGHT_MAX / total).max(1),
        };
        let buckets: Vec<Bucket> = endpoints
            .iter()
            .map(|(address, weight)| Bucket::new(point(address), u32::try_from(scaled(*weight)).unwrap_or(1)))
            .collect();
        let indices = endpoints.iter().enumerate().map(|(index, (address, _))| (point(address), index));
        Self { ring: Continuum::new(&buckets), endpoints: indices.collect() }
    }

    pub(super) fn seek(&self, key: u64, acceptable: impl Fn(usize) -> bool) -> Option<usize> {
        let on_the_way = self.ring.node_iter(&key.to_le_bytes()).take(POINTS);
        let mut found = on_the_way.filter_map(|address| self.endpoints.get(address).copied());
        found
            .find(|endpoint| acceptable(*endpoint))
            .or_else(|| (0..self.endpoints.len()).find(|index| acceptable(*index)))
    }
}

/// The ring knows addresses only: other endpoints get one of their own, from the range for documentation (RFC 3849).
fn point(address: &Address) -> SocketAddr {
    match address.as_inet() {
        Some(address) => address,
        None => {
            let name = hash(address.to_string().as_bytes());
            SocketAddr::from((Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(name)), 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::maglev::Maglev;
    use super::*;
    use crate::upstream::balance::Table;

    fn addresses(count: u8) -> Vec<Address> {
        (1..=count).map(|last| Address::Inet(SocketAddr::from(([10, 0, 0, last], 80)))).collect()
    }

    fn tables(endpoints: &[(&Address, u16)]) -> [(&'static str, Table, f64); 2] {
        [
            ("maglev", Table::Maglev(Maglev::new(endpoints)), 0.03),
            ("ketama", Table::Ketama(Ketama::new(endpoints)), 0.35),
        ]
    }

    const KEYS: u64 = 40_000;

    fn keys() -> impl Iterator<Item = u64> {
        (0..KEYS).map(|key| hash(&key.to_le_bytes()))
    }

    #[test]
    fn shares_follow_weights() {
        let addresses = addresses(10);
        let weighted: Vec<(&Address, u16)> = addresses.iter().zip([1, 1, 1, 1, 1, 2, 2, 3, 4, 4]).collect();
        for (name, table, uneven) in tables(&weighted) {
            let mut counts: HashMap<usize, u64> = HashMap::new();
            for key in keys() {
                *counts.entry(table.seek(key, |_| true).unwrap()).or_default() += 1;
            }
            for (index, (_, weight)) in weighted.iter().enumerate() {
                let share = KEYS as f64 * f64::from(*weight) / 20.0;
                let off = (counts[&index] as f64 - share).abs() / share;
                // What the table itself is off, and four deviations of the draw.
                assert!(off < uneven + 4.0 / share.sqrt(), "{name}: {index} has {} of {share}", counts[&index]);
            }
        }
    }

    #[test]
    fn only_about_the_share_of_an_endpoint_moves_when_it_comes_or_goes() {
        let all = addresses(20);
        let with: Vec<(&Address, u16)> = all.iter().map(|address| (address, 1)).collect();
        let without: Vec<(&Address, u16)> = with.iter().copied().filter(|(address, _)| **address != all[7]).collect();
        for ((name, before, _), (_, after, _)) in tables(&with).into_iter().zip(tables(&without)) {
            let moved = keys().filter(|key| {
                let old = before.seek(*key, |_| true).unwrap();
                let new = after.seek(*key, |_| true).unwrap();
                with[old].0 != without[new].0
            });
            let moved = moved.count() as f64 / KEYS as f64;
            assert!((0.02..0.09).contains(&moved), "{name}: {moved} of the keys moved, one of 20 endpoints did");
        }
    }

    #[test]
    fn an_endpoint_that_is_left_out_costs_its_own_keys_only_and_they_spread() {
        let all = addresses(10);
        let named: Vec<(&Address, u16)> = all.iter().map(|address| (address, 1)).collect();
        for (name, table, _) in tables(&named) {
            let mut heirs: HashMap<usize, u32> = HashMap::new();
            for key in keys() {
                let first = table.seek(key, |_| true).unwrap();
                let now = table.seek(key, |endpoint| endpoint != 3).unwrap();
                assert!(first == 3 || first == now, "{name}: a key moved from {first} to {now}");
                if first == 3 {
                    *heirs.entry(now).or_default() += 1;
                }
            }
            assert_eq!(heirs.len(), 9, "{name}: {heirs:?}");
        }
    }

    #[test]
    fn the_last_acceptable_endpoint_is_found_and_none_is_said() {
        let all = addresses(200);
        let named: Vec<(&Address, u16)> = all.iter().map(|address| (address, 1)).collect();
        for (name, table, _) in tables(&named) {
            assert!(keys().take(200).all(|key| table.seek(key, |endpoint| endpoint == 150) == Some(150)), "{name}");
            assert_eq!(table.seek(7, |_| false), None, "{name}");
        }
        for (name, table, _) in tables(&[]) {
            assert_eq!(table.seek(7, |_| true), None, "{name}");
        }
    }

    #[test]
    fn heavy_weights_do_not_make_a_huge_ring() {
        let all = addresses(100);
        let named: Vec<(&Address, u16)> = all.iter().zip((0..100).map(|index| 1000 - index)).collect();
        assert!(tables(&named).iter().all(|(_, table, _)| table.seek(1, |_| true).is_some()));
    }
}
