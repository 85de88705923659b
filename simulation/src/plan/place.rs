//! Geography: regions, the round-trip times between them, and the countries of clients.
//!
//! Round-trip times are measured: 95th percentile over the 30 days to
//! 2026-07-30 between the named Azure regions, in milliseconds, from Microsoft's "Azure
//! network round-trip latency statistics"
//! (<https://learn.microsoft.com/en-us/azure/networking/azure-network-latency>, CC BY 4.0).
//! The table there is slightly asymmetric; one direction is used for both.

use std::net::Ipv4Addr;
use std::time::Duration;

/// A location of nodes, origins or Redis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// The name in scenarios and node names.
    pub name: &'static str,
    /// The name in reports.
    pub label: &'static str,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

/// Every region that a scenario may name. `--regions N` uses the first N.
pub const REGIONS: [Region; 10] = [
    region("frankfurt", "Frankfurt", 50.11, 8.68), // Germany West Central
    region("virginia", "Virginia", 37.37, -79.82), // East US
    region("tokyo", "Tokyo", 35.68, 139.77),       // Japan East
    region("sydney", "Sydney", -33.86, 151.21),    // Australia East
    region("saopaulo", "São Paulo", -23.55, -46.63), // Brazil South
    region("johannesburg", "Johannesburg", -26.2, 28.05), // South Africa North
    region("pune", "Pune", 18.52, 73.86),          // Central India
    region("california", "California", 37.78, -122.42), // West US
    region("singapore", "Singapore", 1.28, 103.83), // Southeast Asia
    region("london", "London", 51.51, -0.13),      // UK South
];

/// Round trips in milliseconds, upper triangle, rows and columns in the order of [`REGIONS`].
const ROUND_TRIP_MS: [[u16; 10]; 10] = [
    //fra  vir  tok  syd  sao  joh  pun  cal  sin  lon
    [0, 97, 246, 291, 201, 172, 150, 157, 179, 19],
    [0, 0, 165, 207, 119, 226, 214, 74, 229, 80],
    [0, 0, 0, 105, 265, 255, 129, 110, 74, 237],
    [0, 0, 0, 0, 298, 348, 152, 142, 98, 277],
    [0, 0, 0, 0, 0, 327, 320, 171, 337, 184],
    [0, 0, 0, 0, 0, 0, 134, 279, 211, 169],
    [0, 0, 0, 0, 0, 0, 0, 224, 59, 150],
    [0, 0, 0, 0, 0, 0, 0, 0, 172, 144],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 183],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];

/// Round trip within a region: the order of magnitude of the source's figures for zones.
const WITHIN_REGION: Duration = Duration::from_micros(500);

const fn region(name: &'static str, label: &'static str, latitude: f64, longitude: f64) -> Region {
    Region { name, label, latitude, longitude }
}

/// The index in [`REGIONS`] of the region with this name.
pub fn region_by_name(name: &str) -> Option<usize> {
    REGIONS.iter().position(|region| region.name == name)
}

/// The round trip between two regions, given as indexes of [`REGIONS`].
pub fn round_trip(a: usize, b: usize) -> Duration {
    match ROUND_TRIP_MS[a.min(b)][a.max(b)] {
        0 => WITHIN_REGION,
        ms => Duration::from_millis(u64::from(ms)),
    }
}

/// A city of clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct City {
    /// The name in reports.
    pub name: &'static str,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

/// A country that clients come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Country {
    /// ISO 3166-1 alpha-2 code.
    pub code: &'static str,
    /// Two-letter continent code, as in GeoIP databases.
    pub continent: &'static str,
    /// Its capital or largest city, the location of its clients.
    pub city: City,
    /// Percentage of all clients.
    pub weight: u32,
    /// The first two bytes of an IPv4 /16 network in this country: long-held networks of
    /// universities, and one of a mobile carrier in Nigeria, which GeoIP databases agree on.
    pub network: [u8; 2],
}

/// The countries of clients, at least one for each inhabited continent.
pub const COUNTRIES: [Country; 16] = [
    country("DE", "EU", city("Berlin", 52.52, 13.40), 8, [141, 20]),
    country("GB", "EU", city("London", 51.51, -0.13), 6, [129, 67]),
    country("FR", "EU", city("Paris", 48.86, 2.35), 5, [134, 157]),
    country("PL", "EU", city("Warsaw", 52.23, 21.01), 3, [150, 254]),
    country("US", "NA", city("New York", 40.71, -74.01), 20, [18, 7]),
    country("CA", "NA", city("Toronto", 43.65, -79.38), 4, [142, 150]),
    country("MX", "NA", city("Mexico City", 19.43, -99.13), 3, [132, 248]),
    country("BR", "SA", city("São Paulo", -23.55, -46.63), 7, [143, 107]),
    country("AR", "SA", city("Buenos Aires", -34.60, -58.38), 2, [157, 92]),
    country("ZA", "AF", city("Johannesburg", -26.20, 28.05), 3, [137, 158]),
    country("NG", "AF", city("Lagos", 6.52, 3.38), 4, [102, 89]),
    country("IN", "AS", city("Mumbai", 19.08, 72.88), 12, [14, 139]),
    country("JP", "AS", city("Tokyo", 35.68, 139.77), 10, [133, 11]),
    country("SG", "AS", city("Singapore", 1.35, 103.82), 4, [137, 132]),
    country("AU", "OC", city("Sydney", -33.87, 151.21), 5, [129, 94]),
    country("NZ", "OC", city("Auckland", -36.85, 174.76), 4, [130, 216]),
];

const fn country(
    code: &'static str,
    continent: &'static str,
    city: City,
    weight: u32,
    network: [u8; 2],
) -> Country {
    Country { code, continent, city, weight, network }
}

const fn city(name: &'static str, latitude: f64, longitude: f64) -> City {
    City { name, latitude, longitude }
}

/// The address of a client in a country. It is only a value of `X-Forwarded-For`; no packet is
/// sent to it.
pub fn address_of(country: usize, client: u32) -> Ipv4Addr {
    let [a, b] = COUNTRIES[country].network;
    let [.., c, d] = client.to_be_bytes();
    Ipv4Addr::new(a, b, c, d.max(1))
}

/// The region in `regions` that is nearest to a country by great-circle distance.
pub fn nearest(country: usize, regions: &[usize]) -> usize {
    let city = COUNTRIES[country].city;
    let from = (city.latitude, city.longitude);
    let distance =
        |region: usize| great_circle(from, (REGIONS[region].latitude, REGIONS[region].longitude));
    let by_distance = |a: &usize, b: &usize| distance(*a).total_cmp(&distance(*b));
    regions.iter().copied().min_by(by_distance).unwrap_or(0)
}

/// The angle between two points on a sphere, in radians (haversine).
fn great_circle((lat_a, lon_a): (f64, f64), (lat_b, lon_b): (f64, f64)) -> f64 {
    let half = |degrees: f64| (degrees.to_radians() / 2.0).sin().powi(2);
    let cosines = lat_a.to_radians().cos() * lat_b.to_radians().cos();
    let h = half(lat_b - lat_a) + cosines * half(lon_b - lon_a);
    2.0 * h.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> usize {
        region_by_name(name).expect(name)
    }

    #[test]
    fn round_trips_are_symmetric_and_known_for_every_pair() {
        for a in 0..REGIONS.len() {
            for b in 0..REGIONS.len() {
                assert_eq!(round_trip(a, b), round_trip(b, a));
                assert!(a == b || round_trip(a, b) >= Duration::from_millis(10), "{a} {b}");
            }
        }
        assert_eq!(round_trip(named("frankfurt"), named("tokyo")), Duration::from_millis(246));
    }

    #[test]
    fn clients_go_to_the_region_on_their_side_of_the_world() {
        let regions = [named("frankfurt"), named("virginia"), named("tokyo")];
        let region_of = |code: &str| {
            let country = COUNTRIES.iter().position(|country| country.code == code);
            REGIONS[nearest(country.expect(code), &regions)].name
        };
        assert_eq!(region_of("FR"), "frankfurt");
        assert_eq!(region_of("BR"), "virginia");
        assert_eq!(region_of("AU"), "tokyo");
    }

    #[test]
    fn every_inhabited_continent_has_a_country_and_clients_keep_their_address() {
        for continent in ["AF", "AS", "EU", "NA", "OC", "SA"] {
            assert!(COUNTRIES.iter().any(|country| country.continent == continent));
        }
        assert_eq!(address_of(0, 1000), Ipv4Addr::new(141, 20, 3, 232));
    }
}
