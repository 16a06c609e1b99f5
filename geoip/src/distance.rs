//! How far apart two places are.

/// The mean radius of the Earth in kilometres (IUGG, R1).
const EARTH_RADIUS_KM: f64 = 6371.0088;

/// The great-circle distance between two places in kilometres, by the haversine formula.
///
/// Places are `(latitude, longitude)` in degrees, as [`Location::coordinates`](crate::Location::coordinates) has them. The Earth
/// is taken as a sphere: up to 0.5 % off, far less than what an address says about where its user is. The result lies
/// between 0 and 20,016 km; it is NaN only if an input is.
#[must_use]
pub fn distance_km(from: (f64, f64), to: (f64, f64)) -> f64 {
    let (latitude_a, latitude_b) = (from.0.to_radians(), to.0.to_radians());
    let half_latitude = ((latitude_b - latitude_a) / 2.0).sin();
    let half_longitude = ((to.1 - from.1).to_radians() / 2.0).sin();

    let haversine = half_latitude.powi(2) + latitude_a.cos() * latitude_b.cos() * half_longitude.powi(2);
    // Rounding may carry antipodes just over 1, where asin has no value.
    2.0 * EARTH_RADIUS_KM * haversine.clamp(0.0, 1.0).sqrt().asin()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_distances() {
        let (berlin, paris, tokyo) = ((52.52, 13.405), (48.8566, 2.3522), (35.6895, 139.6917));
        for (from, to, km) in [
            (berlin, berlin, 0.0),
            (berlin, paris, 877.5),
            (berlin, tokyo, 8918.0),
            ((0.0, 179.5), (0.0, -179.5), 111.2), // across the date line
            ((90.0, 0.0), (-90.0, 0.0), 20_015.1),
            ((0.0, 0.0), (0.0, 180.0), 20_015.1),
        ] {
            let found = distance_km(from, to);
            assert!((found - km).abs() <= km * 0.001 + 0.1, "{from:?} to {to:?}: {found}, not {km}");
        }
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_and_bounded(a in place(), b in place()) {
            let there = distance_km(a, b);
            prop_assert!((0.0..=20_016.0).contains(&there));
            prop_assert!((there - distance_km(b, a)).abs() < 1e-6);
        }
    }

    fn place() -> impl Strategy<Value = (f64, f64)> {
        (-90.0..=90.0, -180.0..=180.0)
    }
}
