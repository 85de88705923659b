//! Great-circle distance, and the nearest of several points. Pure.
//!
//! Distance over the surface is a guess at the distance over the network: good enough to choose
//! between continents, not between two data centres of one city.

/// A point on Earth, in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coordinates {
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
}

/// A latitude beyond ±90° or a longitude beyond ±180°.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "latitude {latitude}, longitude {longitude} is not on Earth: expected -90 to 90 and -180 to 180"
)]
pub struct OutOfRange {
    latitude: f64,
    longitude: f64,
}

impl Coordinates {
    /// Latitude (north positive) within ±90, longitude (east positive) within ±180.
    pub fn new(latitude: f64, longitude: f64) -> Result<Self, OutOfRange> {
        if (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude) {
            Ok(Self { latitude, longitude })
        } else {
            Err(OutOfRange { latitude, longitude })
        }
    }

    /// Degrees north of the equator.
    pub fn latitude(self) -> f64 {
        self.latitude
    }

    /// Degrees east of Greenwich.
    pub fn longitude(self) -> f64 {
        self.longitude
    }

    /// Kilometres over the surface of a sphere (haversine; Earth's flattening makes it wrong by
    /// up to 0.5 %).
    pub fn distance_km(self, other: Self) -> f64 {
        let (from, to) = (self.latitude.to_radians(), other.latitude.to_radians());
        let across = (other.longitude - self.longitude).to_radians();
        let haversine = ((to - from) / 2.0).sin().powi(2)
            + from.cos() * to.cos() * (across / 2.0).sin().powi(2);
        2.0 * EARTH_RADIUS_KM * haversine.clamp(0.0, 1.0).sqrt().asin()
    }
}

/// A point as a vector of length 1 from Earth's centre. Comparing the distances of such vectors
/// costs three multiplications each, where [`Coordinates::distance_km`] costs six sines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitVector([f64; 3]);

impl UnitVector {
    /// The cosine of the angle between the two points: 1 for the same point, -1 for the antipode.
    /// The nearer of two points has the greater value.
    #[inline]
    pub fn closeness(self, other: Self) -> f64 {
        let ([a, b, c], [x, y, z]) = (self.0, other.0);
        a * x + b * y + c * z
    }

    /// As [`Coordinates::distance_km`].
    pub fn distance_km(self, other: Self) -> f64 {
        EARTH_RADIUS_KM * self.closeness(other).clamp(-1.0, 1.0).acos()
    }

    /// The point in the middle of others. `None`: there is none, or they lie opposite each other.
    pub fn middle(points: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut sum = [0.0; 3];
        for UnitVector(point) in points {
            sum.iter_mut().zip(point).for_each(|(sum, part)| *sum += part);
        }
        let length = sum.iter().map(|part| part * part).sum::<f64>().sqrt();
        (length > 1e-9).then(|| Self(sum.map(|part| part / length)))
    }
}

impl From<Coordinates> for UnitVector {
    fn from(point: Coordinates) -> Self {
        let (latitude, longitude) = (point.latitude.to_radians(), point.longitude.to_radians());
        let across = latitude.cos();
        Self([across * longitude.cos(), across * longitude.sin(), latitude.sin()])
    }
}

/// The one that is nearest to `from`, with its distance in kilometres. Of two at the same
/// distance, the first. `None` when there is none to choose from.
pub fn nearest<T>(
    from: Coordinates,
    points: impl IntoIterator<Item = (T, Coordinates)>,
) -> Option<(T, f64)> {
    points
        .into_iter()
        .map(|(name, point)| (name, from.distance_km(point)))
        .min_by(|(_, one), (_, other)| one.total_cmp(other))
}

/// All of them, the nearest first, each with its distance in kilometres: the order in which to
/// try them. Those at the same distance keep their order.
pub fn by_distance<T>(
    from: Coordinates,
    points: impl IntoIterator<Item = (T, Coordinates)>,
) -> Vec<(T, f64)> {
    let mut ordered: Vec<_> =
        points.into_iter().map(|(name, point)| (name, from.distance_km(point))).collect();
    ordered.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    ordered
}

/// Mean radius (IUGG).
const EARTH_RADIUS_KM: f64 = 6371.0088;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Country;

    const BERLIN: Coordinates = Coordinates { latitude: 52.52, longitude: 13.405 };
    const NEW_YORK: Coordinates = Coordinates { latitude: 40.7128, longitude: -74.006 };
    const TOKYO: Coordinates = Coordinates { latitude: 35.6762, longitude: 139.6503 };
    const AUCKLAND: Coordinates = Coordinates { latitude: -36.85, longitude: 174.76 };
    const HONOLULU: Coordinates = Coordinates { latitude: 21.31, longitude: -157.86 };

    fn check(one: Coordinates, other: Coordinates, expected_km: f64) {
        let distance = one.distance_km(other);
        assert!((distance - expected_km).abs() < expected_km * 0.005 + 0.001, "{distance}");
        assert!((other.distance_km(one) - distance).abs() < 1e-6);
    }

    #[test]
    fn distances_agree_with_published_ones() {
        check(BERLIN, NEW_YORK, 6385.0);
        check(BERLIN, TOKYO, 8918.0);
        check(BERLIN, BERLIN, 0.0);
    }

    #[test]
    fn the_date_line_is_no_wall_and_the_antipode_is_half_way_round() {
        check(AUCKLAND, HONOLULU, 7075.0);
        let here = Coordinates::new(90.0, 0.0).unwrap();
        check(here, Coordinates::new(-90.0, 180.0).unwrap(), 20015.1);
    }

    #[test]
    fn the_nearest_is_first_and_a_tie_keeps_the_order() {
        let points = || [("us", NEW_YORK), ("eu", BERLIN), ("jp", TOKYO), ("eu2", BERLIN)];
        let from = "FR".parse::<Country>().unwrap().point();
        assert_eq!(nearest(from, points()).unwrap().0, "eu");
        let order: Vec<_> = by_distance(from, points()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["eu", "eu2", "us", "jp"]);
        assert_eq!(nearest::<&str>(from, []), None);
    }

    #[test]
    fn unit_vectors_order_points_as_their_distances_do() {
        let points: Vec<Coordinates> = Country::all().map(Country::point).collect();
        for from in &points {
            let vector = UnitVector::from(*from);
            let mut by_vector = points.clone();
            by_vector.sort_by(|a, b| {
                let closeness = |point: &Coordinates| vector.closeness((*point).into());
                closeness(b).total_cmp(&closeness(a))
            });
            let distances = by_vector.iter().map(|point| from.distance_km(*point));
            let distances: Vec<f64> = distances.collect();
            // A metre is far below the error of either arithmetic at the antipode.
            assert!(distances.is_sorted_by(|a, b| *a <= b + 0.001), "from {from:?}");
        }
    }

    #[test]
    fn the_middle_of_points_is_between_them() {
        let middle =
            |points: &[Coordinates]| UnitVector::middle(points.iter().map(|it| (*it).into()));
        let (auckland, honolulu) = (UnitVector::from(AUCKLAND), UnitVector::from(HONOLULU));
        let between = middle(&[AUCKLAND, HONOLULU]).unwrap();
        let (one, other) = (between.distance_km(auckland), between.distance_km(honolulu));
        assert!((one - other).abs() < 0.01 && (one + other - 7075.0).abs() < 36.0, "{one} {other}");
        assert_eq!(middle(&[]), None);
        let opposite = Coordinates::new(-52.52, 13.405 - 180.0).unwrap();
        assert_eq!(middle(&[BERLIN, opposite]), None);
    }

    #[test]
    fn a_point_beyond_the_poles_or_not_a_number_is_refused() {
        assert!(Coordinates::new(90.1, 0.0).is_err());
        assert!(Coordinates::new(0.0, -180.5).is_err());
        assert!(Coordinates::new(f64::NAN, 0.0).is_err());
    }
}
