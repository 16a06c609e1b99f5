//! Near endpoints first: by zone, or by country and great-circle distance.

use std::sync::Arc;

use selvedge_config::{Place, Prefer, PreferBy};
use selvedge_geoip::{CountryCode, Location, distance_km};

use super::endpoint::Endpoint;
use super::schedule::interleave;

/// Places that are told apart; endpoints of any further ones are taken to stand at the last.
const PLACES_MAX: usize = 64;

/// Where somebody is, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spot {
    country: Option<CountryCode>,
    coordinates: Option<(f64, f64)>,
}

impl Spot {
    pub(super) fn of(location: &Location) -> Self {
        Self { country: location.country, coordinates: location.coordinates }
    }
}

/// The endpoints that may be sent requests, by where they stand.
pub(super) struct Nearby {
    places: Vec<Stand>,
}

/// A place, and the turns of its endpoints.
struct Stand {
    zone: Option<String>,
    spot: Spot,
    turns: Vec<u16>,
}

impl Nearby {
    /// `weights` are those of `all`; 0 for one that is sent no requests.
    pub(super) fn new(prefer: Option<&Prefer>, all: &[Arc<Endpoint>], weights: &[u32]) -> Self {
        let mut places: Vec<(&Place, Vec<u32>)> = Vec::new();
        for (index, (endpoint, weight)) in all.iter().zip(weights).enumerate() {
            if prefer.is_none() || *weight == 0 {
                continue;
            }
            let known = places.iter().position(|(place, _)| *place == endpoint.place());
            if known.is_none() && places.len() < PLACES_MAX {
                places.push((endpoint.place(), vec![0; all.len()]));
            }
            let at = known.unwrap_or(places.len() - 1);
            places[at].1[index] = *weight;
        }
        let stand = |(place, weights): (&Place, Vec<u32>)| Stand {
            zone: place.zone.clone(),
            spot: Spot { country: place.country.as_deref().and_then(CountryCode::parse), coordinates: place.at },
            turns: interleave(&weights),
        };
        Self { places: places.into_iter().map(stand).collect() }
    }

    /// Asks for an endpoint at one place after the other, the nearest first. `None` = no place has one, or nothing is known of the client.
    pub(super) fn find<T>(
        &self,
        by: &PreferBy,
        client: Option<&Spot>,
        mut endpoint: impl FnMut(&[u16]) -> Option<T>,
    ) -> Option<T> {
        if *by == PreferBy::Nearest && client.is_none() {
            return None;
        }
        let mut passed = 0_u64;
        for _ in 0..self.places.len() {
            let open = self.places.iter().enumerate().filter(|(index, _)| passed & (1 << index) == 0);
            let nearest = open.min_by(|(_, one), (_, other)| {
                let (one, other) = (one.distance(by, client), other.distance(by, client));
                one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
            });
            let (index, place) = nearest?;
            if let Some(found) = endpoint(&place.turns) {
                return Some(found);
            }
            passed |= 1 << index;
        }
        None
    }
}

impl Stand {
    /// Whether it is elsewhere (another zone, or country), and how far in kilometres.
    fn distance(&self, by: &PreferBy, client: Option<&Spot>) -> (bool, f64) {
        match by {
            PreferBy::Zone(zone) => (self.zone.as_ref() != Some(zone), 0.0),
            PreferBy::Nearest => {
                let country = client.and_then(|client| client.country);
                let abroad = country.is_none_or(|country| self.spot.country != Some(country));
                let both = client.and_then(|client| client.coordinates).zip(self.spot.coordinates);
                (abroad, both.map_or(f64::INFINITY, |(from, to)| distance_km(from, to)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand(zone: &str, country: &str, at: Option<(f64, f64)>, turn: u16) -> Stand {
        let spot = Spot { country: CountryCode::parse(country), coordinates: at };
        Stand { zone: Some(zone.into()), spot, turns: vec![turn] }
    }

    /// The places as they are asked, when none has an endpoint.
    fn order(nearby: &Nearby, by: &PreferBy, client: Option<Spot>) -> Vec<u16> {
        let mut asked = Vec::new();
        let found: Option<()> = nearby.find(by, client.as_ref(), |turns| {
            asked.extend_from_slice(turns);
            None
        });
        assert_eq!(found, None);
        asked
    }

    #[test]
    fn the_country_comes_first_then_the_distance() {
        let nearby = Nearby {
            places: vec![
                stand("us", "US", Some((40.7, -74.0)), 0),
                stand("paris", "FR", Some((48.9, 2.4)), 1),
                stand("munich", "DE", Some((48.1, 11.6)), 2),
                stand("somewhere", "ZZ", None, 3),
                stand("berlin", "DE", Some((52.5, 13.4)), 4),
            ],
        };
        let spot = |country, at| Some(Spot { country: CountryCode::parse(country), coordinates: at });
        for (client, expected) in [
            (spot("DE", Some((49.4, 6.9))), vec![2, 4, 1, 0, 3]), // The Saar: Paris is nearer than Berlin, but abroad.
            (spot("BE", Some((50.8, 4.4))), vec![1, 2, 4, 0, 3]),
            (spot("FR", None), vec![1, 0, 2, 3, 4]),
            (None, vec![]),
        ] {
            assert_eq!(order(&nearby, &PreferBy::Nearest, client), expected, "{client:?}");
        }
        assert_eq!(order(&nearby, &PreferBy::Zone("munich".into()), None)[0], 2);
        let taken = nearby.find(&PreferBy::Zone("us".into()), None, |turns| Some(turns[0]).filter(|turn| *turn > 0));
        assert_eq!(taken, Some(1), "a place without one is passed over");
    }
}
