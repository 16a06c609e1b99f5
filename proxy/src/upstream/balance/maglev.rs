//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): a table in which every endpoint has its share of places, filled so that the
//! places of the others stay, nearly, when one comes or goes.

use super::key::{hash, mix};
use crate::upstream::endpoint::Address;
use crate::upstream::schedule::interleave;

/// Places in the table: a prime, so that every step width visits every place, and at least 16 for each of 4096 endpoints.
const PLACES: usize = 65_537;

/// How often a key is led on by a further hash before its way goes along the list of endpoints. Each is led on independently of the
/// others, so that the keys of an endpoint that is left out spread over all.
const HASHES: u64 = 8;

pub(in crate::upstream) struct Maglev {
    places: Box<[u16]>,
    endpoints: usize,
}

impl Maglev {
    pub(super) fn new(endpoints: &[(&Address, u16)]) -> Self {
        let weights: Vec<u32> = endpoints.iter().map(|(_, weight)| u32::from(*weight)).collect();
        let turns = interleave(&weights);
        let mut ways: Vec<Way> = endpoints.iter().map(|(address, _)| Way::of(address)).collect();
        const FREE: u16 = u16::MAX;
        let mut places = vec![FREE; if turns.is_empty() { 0 } else { PLACES }].into_boxed_slice();
        for turn in turns.iter().cycle().take(places.len()) {
            let way = &mut ways[usize::from(*turn)];
            while places[way.place] != FREE {
                way.step();
            }
            places[way.place] = *turn;
        }
        Self { places, endpoints: endpoints.len() }
    }

    pub(super) fn seek(&self, key: u64, acceptable: impl Fn(usize) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut led = key;
        for _ in 0..HASHES {
            let endpoint = usize::from(self.places[within(led, PLACES)]);
            if acceptable(endpoint) {
                return Some(endpoint);
            }
            led = mix(led.wrapping_add(0x9e37_79b9_7f4a_7c15));
        }
        let first = within(led, self.endpoints);
        (first..self.endpoints).chain(0..first).find(|endpoint| acceptable(*endpoint))
    }
}

/// `number` modulo `size`.
fn within(number: u64, size: usize) -> usize {
    usize::try_from(number % size as u64).unwrap_or_default()
}

/// The order in which an endpoint wants places.
struct Way {
    place: usize,
    width: usize,
}

impl Way {
    fn of(address: &Address) -> Self {
        let name = address.to_string();
        let first = hash(name.as_bytes());
        Self { place: within(first, PLACES), width: 1 + within(mix(!first), PLACES - 1) }
    }

    fn step(&mut self) {
        self.place = (self.place + self.width) % PLACES;
    }
}
