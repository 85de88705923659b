//! From an address to a place: several databases as one, replaced while in use.
//!
//! A lookup walks each database's tree to a record's offset and takes the place from a small
//! cache by those offsets; only a record not seen lately is decoded. New files are read and
//! checked completely before they take the place of the old ones; on any error the old ones stay.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use crate::Place;
use crate::cache::{Cache, Key, NO_RECORD};
use crate::database::{Database, LoadError, Schema, Source};

/// How many databases can be combined (country, city, ASN and one of one's own).
pub const DATABASES_MAX: usize = 4;

/// The databases to ask. As shipped: the built-in country database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// In order: the first that knows a fact decides it. None: every place is unknown. At most
    /// [`DATABASES_MAX`].
    pub databases: Vec<Source>,
    /// Whether private, loopback, link-local and shared (RFC 6598) addresses are looked up too,
    /// for databases of one's own networks. Otherwise their place is unknown.
    pub locate_private: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { databases: vec![Source::BuiltIn], locate_private: false }
    }
}

/// The databases in use. Shared by all threads.
pub struct Geo {
    loaded: ArcSwap<Loaded>,
    /// The files that could not be used at the last [`Geo::reload`]: they are not read again before they change.
    refused: Mutex<Vec<Option<Stamp>>>,
}

/// A database in use, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where it came from.
    pub source: Source,
    /// The type that it states, such as `GeoLite2-City`.
    pub database_type: Box<str>,
    /// How it names its facts.
    pub schema: Schema,
    /// When its maker made it.
    pub built: Option<SystemTime>,
}

impl Geo {
    /// Loads the databases. Reads files: not for the path.
    pub fn open(settings: &Settings) -> Result<Self, LoadError> {
        let loaded = ArcSwap::from_pointee(Loaded::load(settings)?);
        Ok(Self { loaded, refused: Mutex::default() })
    }

    /// Loads the databases again, or others, and uses them from now on. On an error those in use
    /// stay. Reads files: not for the path.
    pub fn reload(&self, settings: &Settings) -> Result<(), LoadError> {
        let stamps: Vec<_> = settings.databases.iter().map(Stamp::of).collect();
        let loaded = Loaded::load(settings).inspect_err(|error| match error {
            // Its permissions may change, which its stamp does not show.
            LoadError::Unreadable { .. } => {}
            _ => *self.refused() = stamps,
        })?;
        self.loaded.store(loaded.into());
        Ok(())
    }

    /// Whether a file in use was replaced or changed since it was loaded, or found to be unusable: time to
    /// reload. Asks the file system: not for the path.
    pub fn is_outdated(&self) -> bool {
        let loaded = self.loaded.load();
        let sources = loaded.databases.iter().map(|database| &database.source);
        let now: Vec<_> = sources.map(Stamp::of).collect();
        // A file that is being replaced may be away for a moment: wait until it is there.
        let has_changed =
            |(now, stamp): (&Option<Stamp>, &Option<Stamp>)| now.is_some() && now != stamp;
        now.iter().zip(&loaded.stamps).any(has_changed) && now != *self.refused()
    }

    fn refused(&self) -> MutexGuard<'_, Vec<Option<Stamp>>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `address` is. An IPv4 address mapped into IPv6 (`::ffff:192.0.2.1`) is that IPv4
    /// address.
    #[inline]
    pub fn locate(&self, address: IpAddr) -> Place {
        self.loaded.load().locate(address.to_canonical())
    }

    /// Where `address` is, and the length of its network: every address that begins with these bits
    /// is at the same place. 0 says that all addresses of both families are: there is no database.
    pub fn locate_network(&self, address: IpAddr) -> (Place, u8) {
        let canonical = address.to_canonical();
        let (place, prefix) = self.loaded.load().locate_network(canonical);
        let mapped = if canonical.is_ipv4() && address.is_ipv6() { MAPPED_BITS } else { 0 };
        (place, prefix + mapped)
    }

    /// The databases in use, in their order.
    pub fn facts(&self) -> Vec<Facts> {
        self.loaded.load().databases.iter().map(Facts::of).collect()
    }
}

impl fmt::Debug for Geo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Geo").field(&self.facts()).finish()
    }
}

impl Facts {
    fn of(database: &Database) -> Self {
        Self {
            source: database.source.clone(),
            database_type: database.database_type().into(),
            schema: database.schema,
            built: database.built(),
        }
    }
}

/// One generation of databases with the places decoded from it.
struct Loaded {
    databases: Vec<Database>,
    stamps: Vec<Option<Stamp>>,
    cache: Cache<DATABASES_MAX>,
    locate_private: bool,
}

impl Loaded {
    fn load(settings: &Settings) -> Result<Self, LoadError> {
        let given = settings.databases.len();
        if given > DATABASES_MAX {
            return Err(LoadError::TooMany { given, max: DATABASES_MAX });
        }
        Ok(Self {
            // Before the files are read: a change in between is then seen as one.
            stamps: settings.databases.iter().map(Stamp::of).collect(),
            databases: settings.databases.iter().map(Database::load).collect::<Result<_, _>>()?,
            cache: Cache::new(),
            locate_private: settings.locate_private,
        })
    }

    fn locate(&self, address: IpAddr) -> Place {
        if !self.locate_private && is_private(address) {
            return Place::default();
        }
        let mut key: Key<DATABASES_MAX> = [NO_RECORD; DATABASES_MAX];
        for (offset, database) in key.iter_mut().zip(&self.databases) {
            *offset = database.offset(address);
        }
        if key == [NO_RECORD; DATABASES_MAX] {
            return Place::default();
        }
        self.cache.place(&key, || self.decode(address))
    }

    fn locate_network(&self, address: IpAddr) -> (Place, u8) {
        if !self.locate_private && is_private(address) {
            return (Place::default(), if address.is_ipv4() { 32 } else { 128 });
        }
        let mut key: Key<DATABASES_MAX> = [NO_RECORD; DATABASES_MAX];
        let mut longest = 0;
        for (offset, database) in key.iter_mut().zip(&self.databases) {
            let (found, prefix) = database.offset_and_prefix(address);
            *offset = found;
            longest = longest.max(prefix);
        }
        if key == [NO_RECORD; DATABASES_MAX] {
            return (Place::default(), longest);
        }
        (self.cache.place(&key, || self.decode(address)), longest)
    }

    fn decode(&self, address: IpAddr) -> Place {
        let mut place = Place::default();
        for database in &self.databases {
            place.complete_from(database.record(address));
        }
        place.continent = place.continent.or_else(|| place.country.map(crate::Country::continent));
        place
    }
}

/// The properties of a file that change when it is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
}

impl Stamp {
    fn of(source: &Source) -> Option<Self> {
        let Source::File(path) = source else { return None };
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok()?, bytes: metadata.len() })
    }
}

/// The bits before the IPv4 address in `::ffff:192.0.2.1`.
const MAPPED_BITS: u8 = 96;

/// Addresses that are in no country: RFC 1918, RFC 4193, RFC 6598, loopback, link-local,
/// unspecified.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || is_shared(v4)
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    }
}

/// 100.64.0.0/10, between customers and a provider's address translation (RFC 6598).
fn is_shared(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    a == 100 && b & 0b1100_0000 == 64
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::write::{Value, Writer, flat_country, map};
    use crate::{Continent, Details};

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn country_of(geo: &Geo, text: &str) -> Option<String> {
        geo.locate(address(text)).country.map(|country| country.to_string())
    }

    fn flat(entries: &[(&str, u8, &str)]) -> Vec<u8> {
        let mut writer = Writer::new("country ipvAll");
        for (network, prefix, code) in entries {
            writer.insert(address(network), *prefix, &flat_country(code));
        }
        writer.finish()
    }

    fn geoip2_city() -> Vec<u8> {
        let named = |name: &str| map([("de", "?".into()), ("en", name.into())]);
        let munich = map([
            ("city", map([("geoname_id", 2867714.into()), ("names", named("Munich"))])),
            ("continent", map([("code", "EU".into()), ("names", named("Europe"))])),
            ("country", map([("iso_code", "DE".into()), ("names", named("Germany"))])),
            (
                "location",
                map([
                    ("accuracy_radius", 20.into()),
                    ("latitude", 48.14.into()),
                    ("longitude", 11.58.into()),
                ]),
            ),
            (
                "subdivisions",
                Value::List(vec![map([("iso_code", "BY".into()), ("names", named("Bavaria"))])]),
            ),
        ]);
        let somewhere_in_asia = map([("continent", map([("code", "AS".into())]))]);
        Writer::new("GeoLite2-City")
            .insert(address("203.0.113.0"), 24, &munich)
            .insert(address("198.51.100.0"), 24, &somewhere_in_asia)
            .finish()
    }

    #[test]
    fn a_place_comes_with_the_length_of_its_network() {
        let folder = tempfile::tempdir().unwrap();
        let country = flat(&[("203.0.112.0", 20, "DE"), ("2001:db8::", 32, "FR")]);
        let country = written(folder.path(), "country.mmdb", &country);
        let asn = written(folder.path(), "asn.mmdb", &asn());
        let check = |geo: &Geo, text: &str, country: Option<&str>, prefix| {
            let (place, found) = geo.locate_network(address(text));
            assert_eq!(place, geo.locate(address(text)));
            assert_eq!(place.country.map(|it| it.to_string()).as_deref(), country, "{text}");
            assert_eq!(found, prefix, "{text}");
        };
        let geo = Geo::open(&files([country.clone()])).unwrap();
        check(&geo, "203.0.113.9", Some("DE"), 20);
        check(&geo, "2001:db8::1", Some("FR"), 32);
        check(&geo, "::ffff:203.0.113.9", Some("DE"), 116);
        check(&geo, "10.0.0.1", None, 32);
        check(&geo, "203.0.128.0", None, 17);
        let ipv6 = written(folder.path(), "ipv6.mmdb", &flat(&[("2001:db8::", 32, "FR")]));
        let ipv6 = Geo::open(&files([ipv6])).unwrap();
        check(&ipv6, "2001:db8::1", Some("FR"), 32);
        check(&ipv6, "203.0.113.9", None, 1);
        let ipv4 = written(folder.path(), "ipv4.mmdb", &ipv4_alone());
        let ipv4 = Geo::open(&files([ipv4])).unwrap();
        check(&ipv4, "203.0.113.9", Some("DE"), 1);
        check(&ipv4, "2001:db8::1", None, 1);
        let none = Geo::open(&files([])).unwrap();
        check(&none, "203.0.113.9", None, 0);
        let both = Geo::open(&files([country, asn])).unwrap();
        check(&both, "203.0.113.9", Some("DE"), 25);
        check(&both, "203.0.120.1", Some("DE"), 21);
    }

    /// A database of IPv4 addresses alone, with one record for half of them. Its tree has one level.
    fn ipv4_alone() -> Vec<u8> {
        let mut bytes = Writer::new("GeoLite2-Country")
            .insert(address("8000::"), 1, &flat_country("DE"))
            .finish();
        let version = b"ip_version\xa1";
        let at = bytes.windows(version.len()).position(|part| part == version).unwrap();
        bytes[at + version.len()] = 4;
        bytes
    }

    fn asn() -> Vec<u8> {
        let record = map([
            ("autonomous_system_number", 64500.into()),
            ("autonomous_system_organization", "Example Networks".into()),
        ]);
        Writer::new("GeoLite2-ASN").insert(address("203.0.113.0"), 25, &record).finish()
    }

    fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn files(paths: impl IntoIterator<Item = PathBuf>) -> Settings {
        let databases = paths.into_iter().map(Source::File).collect();
        Settings { databases, ..Settings::default() }
    }

    fn open_one(bytes: &[u8]) -> Result<Geo, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        Geo::open(&files([written(folder.path(), "test.mmdb", bytes)]))
    }

    /// The error and what caused it, as an operator sees them.
    fn message(error: &LoadError) -> String {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        format!("{error}{}", cause.unwrap_or_default())
    }

    #[test]
    fn the_built_in_database_is_whole_and_knows_well_known_addresses() {
        let geo = Geo::open(&Settings::default()).unwrap();
        crate::database::verify_built_in();
        // Networks of national institutions, in their own countries for decades.
        let check = |text, expected: &str| {
            assert_eq!(country_of(&geo, text).as_deref(), Some(expected), "{text}");
        };
        check("18.7.22.69", "US"); // MIT
        check("141.76.2.4", "DE"); // TU Dresden, in DFN
        check("133.11.0.1", "JP"); // University of Tokyo
        check("130.59.31.80", "CH"); // SWITCH
        check("200.160.2.3", "BR"); // NIC.br
        check("155.232.0.1", "ZA"); // TENET, the network of its universities
        check("202.12.29.1", "AU"); // APNIC
        check("2001:638::1", "DE"); // DFN
        check("2001:620::1", "CH"); // SWITCH
        check("2001:200::1", "JP"); // WIDE
        let facts = geo.facts();
        assert_eq!(facts[0].schema, Schema::Flat);
        assert_eq!(facts[0].source, Source::BuiltIn);
    }

    #[test]
    fn private_addresses_have_no_place_unless_asked_for() {
        let bytes = flat(&[("10.0.0.0", 8, "DE"), ("127.1.0.0", 16, "FR"), ("fd00::", 8, "JP")]);
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), "private.mmdb", &bytes);
        let geo = Geo::open(&files([path.clone()])).unwrap();
        let private = [
            "10.1.2.3",
            "127.1.0.1",
            "::ffff:10.1.2.3",
            "fd00::1",
            "::1",
            "0.0.0.0",
            "100.64.0.1",
            "169.254.0.1",
            "192.168.1.1",
            "fe80::1",
            "::",
        ];
        for text in private {
            assert_eq!(geo.locate(address(text)), Place::default(), "{text}");
        }
        let own = Settings { locate_private: true, ..files([path]) };
        geo.reload(&own).unwrap();
        assert_eq!(country_of(&geo, "10.1.2.3").as_deref(), Some("DE"));
        assert_eq!(country_of(&geo, "127.1.0.1").as_deref(), Some("FR"));
        assert_eq!(country_of(&geo, "fd00::1").as_deref(), Some("JP"));
        assert_eq!(country_of(&geo, "192.168.1.1"), None);
    }

    #[test]
    fn the_flat_schema_gives_a_country_and_its_continent() {
        let geo = open_one(&flat(&[
            ("198.51.0.0", 16, "AU"),
            ("198.51.100.0", 24, "KE"),
            ("203.0.113.0", 24, "EU"),
            ("2001:db8::", 32, "CA"),
        ]))
        .unwrap();
        assert_eq!(geo.facts()[0].schema, Schema::Flat);
        let kenya = geo.locate(address("198.51.100.7"));
        assert_eq!(kenya, Place::in_country("KE".parse().unwrap()));
        assert_eq!(kenya.continent, Some(Continent::Africa));
        assert_eq!(country_of(&geo, "198.51.99.7").as_deref(), Some("AU"));
        assert_eq!(country_of(&geo, "2001:db8::1").as_deref(), Some("CA"));
        assert_eq!(country_of(&geo, "::ffff:198.51.100.7").as_deref(), Some("KE"));
        // A code that is no country's, and an address that no network has.
        assert_eq!(geo.locate(address("203.0.113.1")), Place::default());
        assert_eq!(geo.locate(address("192.0.2.1")), Place::default());
    }

    #[test]
    fn the_geoip2_schema_gives_region_city_and_coordinates() {
        let geo = open_one(&geoip2_city()).unwrap();
        assert_eq!(geo.facts()[0].schema, Schema::GeoIp2);
        let place = geo.locate(address("203.0.113.9"));
        assert_eq!(place.country, "DE".parse().ok());
        assert_eq!(place.continent, Some(Continent::Europe));
        assert_eq!(place.region(), Some("Bavaria"));
        assert_eq!(place.city(), Some("Munich"));
        let details: &Details = place.details.as_ref().unwrap();
        assert_eq!(details.region_code.as_deref(), Some("BY"));
        assert_eq!(place.point().unwrap().latitude(), 48.14);
        let asia = geo.locate(address("198.51.100.9"));
        assert_eq!((asia.country, asia.continent), (None, Some(Continent::Asia)));
        assert_eq!(asia.point(), Some(Continent::Asia.point()));
    }

    #[test]
    fn databases_complete_each_other_and_the_first_decides() {
        let folder = tempfile::tempdir().unwrap();
        let own = flat(&[("203.0.113.128", 25, "AT")]);
        let paths = [
            written(folder.path(), "own.mmdb", &own),
            written(folder.path(), "city.mmdb", &geoip2_city()),
            written(folder.path(), "asn.mmdb", &asn()),
        ];
        let geo = Geo::open(&files(paths)).unwrap();
        for _ in 0..2 {
            let lower = geo.locate(address("203.0.113.1"));
            assert_eq!(lower.country, "DE".parse().ok());
            assert_eq!((lower.city(), lower.asn()), (Some("Munich"), Some(64500)));
            let upper = geo.locate(address("203.0.113.200"));
            assert_eq!(upper.country, "AT".parse().ok());
            assert_eq!((upper.city(), upper.asn()), (Some("Munich"), None));
        }
    }

    #[test]
    fn a_replaced_file_is_noticed_and_used_after_a_reload() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), "db.mmdb", &flat(&[("192.0.2.0", 24, "SE")]));
        let settings = files([path.clone()]);
        let geo = Geo::open(&settings).unwrap();
        assert!(!geo.is_outdated());
        assert_eq!(country_of(&geo, "192.0.2.1").as_deref(), Some("SE"));
        let next = flat(&[("192.0.2.0", 24, "NO"), ("198.51.100.0", 24, "NO")]);
        std::fs::rename(written(folder.path(), "new.mmdb", &next), &path).unwrap();
        assert!(geo.is_outdated());
        geo.reload(&settings).unwrap();
        assert!(!geo.is_outdated());
        assert_eq!(country_of(&geo, "192.0.2.1").as_deref(), Some("NO"));
        std::fs::remove_file(&path).unwrap();
        assert!(!geo.is_outdated());
    }

    /// Each look at a large database takes seconds.
    #[test]
    fn a_bad_file_in_the_place_of_a_good_one_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let good = flat(&[("192.0.2.0", 24, "SE")]);
        let path = written(folder.path(), "db.mmdb", &good);
        let settings = files([path.clone()]);
        let geo = Geo::open(&settings).unwrap();
        written(folder.path(), "db.mmdb", &good[..good.len() / 2]);
        assert!(geo.is_outdated());
        geo.reload(&settings).unwrap_err();
        assert!(!geo.is_outdated(), "it has not changed");
        let next = flat(&[("192.0.2.0", 24, "NO"), ("198.51.100.0", 24, "NO")]);
        written(folder.path(), "db.mmdb", &next);
        assert!(geo.is_outdated());
        geo.reload(&settings).unwrap();
        assert!(!geo.is_outdated());
        assert_eq!(country_of(&geo, "192.0.2.1").as_deref(), Some("NO"));
    }

    #[test]
    fn a_bad_file_says_what_is_wrong_and_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let good = files([written(folder.path(), "good.mmdb", &flat(&[("192.0.2.0", 24, "SE")]))]);
        let geo = Geo::open(&good).unwrap();
        let check = |name: &str, bytes: &[u8], expected: &str| {
            let path = written(folder.path(), name, bytes);
            let message = message(&geo.reload(&files([path])).unwrap_err());
            assert!(message.contains(name) && message.contains(expected), "{message}");
            assert_eq!(country_of(&geo, "192.0.2.1").as_deref(), Some("SE"));
        };
        check("page.mmdb", b"<html>404 Not Found</html>", "not an mmdb database");
        check("empty.mmdb", b"", "not an mmdb database");
        let mut damaged = geoip2_city();
        // The first child of the root now points far behind the data.
        damaged[0..3].copy_from_slice(&[0x7f, 0xff, 0xff]);
        check("damaged.mmdb", &damaged, "damaged or incomplete");
        let about_domains = Writer::new("GeoIP2-Domain")
            .insert(address("192.0.2.0"), 24, &map([("domain", "example.net".into())]))
            .finish();
        check(
            "domains.mmdb",
            &about_domains,
            "whose records hold `domain`; expected `country_code`",
        );
        let missing = geo.reload(&files([folder.path().join("missing.mmdb")])).unwrap_err();
        assert!(message(&missing).contains("missing.mmdb: cannot be read: No such file"));
        let five = geo.reload(&Settings { databases: vec![Source::BuiltIn; 5], ..good });
        assert_eq!(
            five.unwrap_err().to_string(),
            "5 databases are named: at most 4 can be combined"
        );
    }

    #[test]
    fn without_databases_every_place_is_unknown() {
        let geo = Geo::open(&files([])).unwrap();
        assert_eq!(geo.locate(address("18.7.22.69")), Place::default());
    }

    #[test]
    fn a_truncated_or_garbled_database_never_panics() {
        let whole = geoip2_city();
        for length in 0..whole.len() {
            let _ = open_one(&whole[..length]).map(|geo| geo.locate(address("203.0.113.9")));
        }
        for at in 0..whole.len() {
            let mut garbled = whole.clone();
            garbled[at] ^= 0xff;
            let _ = open_one(&garbled).map(|geo| geo.locate(address("203.0.113.9")));
        }
    }
}
