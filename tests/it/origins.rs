//! The choice of the origin of a pool for a request: by place, by priority, and by the balance.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use geo::write::{Writer, map};
use serde_json::Value;

use crate::harness::{Answer, Client, Edge, Gate, Origin};

/// Origins on six continents: name, latitude, longitude.
const PLACES: [(&str, f64, f64); 6] = [
    ("frankfurt", 50.11, 8.68),
    ("virginia", 39.04, -77.49),
    ("sao-paulo", -23.55, -46.63),
    ("johannesburg", -26.20, 28.05),
    ("singapore", 1.35, 103.82),
    ("sydney", -33.87, 151.21),
];

/// Networks of national institutions, in their own countries for decades: address, country,
/// nearest origin, next nearest.
const CLIENTS: [(&str, &str, &str, &str); 16] = [
    ("18.7.22.69", "US", "virginia", "frankfurt"),
    ("142.1.0.1", "CA", "virginia", "frankfurt"),
    ("132.248.10.2", "MX", "virginia", "sao-paulo"),
    ("200.160.2.3", "BR", "sao-paulo", "johannesburg"),
    ("200.16.16.1", "AR", "sao-paulo", "johannesburg"),
    ("141.76.2.4", "DE", "frankfurt", "virginia"),
    ("193.51.0.1", "FR", "frankfurt", "virginia"),
    ("155.232.0.1", "ZA", "johannesburg", "sao-paulo"),
    ("197.136.0.1", "KE", "johannesburg", "frankfurt"),
    ("193.227.1.1", "EG", "frankfurt", "johannesburg"),
    ("133.11.0.1", "JP", "singapore", "sydney"),
    ("143.248.1.1", "KR", "singapore", "sydney"),
    ("14.139.1.1", "IN", "singapore", "frankfurt"),
    ("137.132.0.1", "SG", "singapore", "sydney"),
    ("202.12.29.1", "AU", "sydney", "singapore"),
    ("130.216.0.1", "NZ", "sydney", "singapore"),
];

fn named(name: &'static str) -> Origin {
    Origin::start(move |_| Answer::ok(name).header("Cache-Control", "no-store"))
}

/// One pool for all hosts, behind a proxy that states the client's address.
fn config(pool: &str) -> String {
    format!(
        "[guard]\ntrusted_proxies = [\"127.0.0.1\"]\n[pools.main]\n{pool}\n\
         [sites.all]\nhosts = \"*\"\npool = \"main\"\n"
    )
}

fn at(url: &str, latitude: f64, longitude: f64) -> String {
    format!("{{ url = {url:?}, latitude = {latitude}, longitude = {longitude} }}")
}

fn answered(edge: &Edge, client: &str) -> String {
    edge.get_with("/", &[&format!("X-Forwarded-For: {client}")]).text().to_owned()
}

#[test]
fn clients_on_six_continents_reach_the_nearest_live_origin() {
    let origins = PLACES.map(|(name, ..)| named(name));
    let dead = named("dead");
    dead.kill();
    let pool = |down: Option<&str>| {
        let listed = PLACES.iter().zip(&origins).map(|((name, latitude, longitude), origin)| {
            let url = if down == Some(*name) { dead.url() } else { origin.url() };
            at(&url, *latitude, *longitude)
        });
        let listed: Vec<String> = listed.collect();
        config(&format!("policy = \"nearest\"\norigins = [{}]", listed.join(", ")))
    };
    let edge = Edge::with(&pool(None));
    for (client, country, nearest, _) in CLIENTS {
        assert_eq!(answered(&edge, client), nearest, "{country}");
    }
    for (down, ..) in PLACES {
        edge.reload(&pool(Some(down))).expect("a good configuration");
        for (client, country, nearest, next) in CLIENTS {
            let expected = if nearest == down { next } else { nearest };
            assert_eq!(answered(&edge, client), expected, "{country} without {down}");
        }
    }
    edge.reload(&pool(None)).expect("a good configuration");
    assert_eq!(answered(&edge, "141.76.2.4"), "frankfurt", "it is back");
    let names = PLACES.map(|(name, ..)| name).into_iter().zip(&origins);
    let names: BTreeMap<String, &str> =
        names.map(|(name, origin)| (origin.address.to_string(), name)).collect();
    for (client, country, nearest, next) in CLIENTS {
        let target = format!("/explain?url=http://edge.test/&client={client}");
        let explained: Value =
            serde_json::from_str(edge.admin("GET", &target, "").text()).expect("JSON");
        let tier = |at: usize| names[explained["pool_tiers"][at][0].as_str().expect("a name")];
        assert_eq!((tier(0), tier(1)), (nearest, next), "{country}: {explained}");
    }
}

#[test]
fn two_clients_of_one_country_reach_different_origins_by_their_coordinates() {
    let folder = tempfile::tempdir().expect("a directory");
    let database = folder.path().join("city.mmdb");
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let city = |latitude: f64, longitude: f64| {
        map([
            ("country", map([("iso_code", "US".into())])),
            ("location", map([("latitude", latitude.into()), ("longitude", longitude.into())])),
        ])
    };
    let bytes = Writer::new("GeoLite2-City")
        .insert(address("8.8.4.0"), 24, &city(37.77, -122.42))
        .insert(address("8.8.8.0"), 24, &city(40.71, -74.01))
        .finish();
    std::fs::write(&database, bytes).expect("a file");
    let (oregon, virginia) = (named("oregon"), named("virginia"));
    let origins =
        [at(&oregon.url(), 45.84, -119.70), at(&virginia.url(), 39.04, -77.49)].join(", ");
    let edge = Edge::with(&format!(
        "[geo]\ndatabases = [{database:?}, \"built-in\"]\n{}",
        config(&format!("policy = \"nearest\"\norigins = [{origins}]"))
    ));
    assert_eq!(answered(&edge, "8.8.4.4"), "oregon", "San Francisco");
    assert_eq!(answered(&edge, "8.8.8.8"), "virginia", "New York");
    // Known by its country alone: Chicago stands for it.
    assert_eq!(answered(&edge, "18.7.22.69"), "virginia");
    assert_eq!(answered(&edge, "200.16.16.1"), "virginia", "Argentina");
    assert_eq!(answered(&edge, "133.11.0.1"), "oregon", "Japan");
}

#[test]
fn a_client_of_unknown_place_is_served_from_the_node_s_place_or_by_priority() {
    let (frankfurt, sydney) = (named("frankfurt"), named("sydney"));
    let pool = |policy: &str| {
        let (frankfurt, sydney) = (frankfurt.url(), sydney.url());
        let origins = format!(
            "{{ url = {frankfurt:?}, priority = 1, latitude = 50.11, longitude = 8.68 }}, {}",
            at(&sydney, -33.87, 151.21)
        );
        config(&format!("policy = {policy:?}\norigins = [{origins}]"))
    };
    let node = "[node]\nlatitude = 48.14\nlongitude = 11.58\n";
    let edge = Edge::with(&pool("nearest"));
    let check = |unknown: &str, australian: &str| {
        assert_eq!(answered(&edge, "10.1.2.3"), unknown);
        assert_eq!(answered(&edge, "202.12.29.1"), australian);
    };
    check("sydney", "sydney");
    edge.reload(&format!("{node}{}", pool("nearest"))).expect("a good configuration");
    check("frankfurt", "sydney");
    edge.reload(&format!("{node}{}", pool("nearest-to-node"))).expect("a good configuration");
    check("frankfurt", "frankfurt");
    edge.reload(&pool("failover")).expect("a good configuration");
    check("sydney", "sydney");
}

#[test]
fn the_next_priority_is_used_while_the_first_is_down() {
    let (first, second) = (named("first"), named("second"));
    let (one, other) = (first.url(), second.url());
    let edge = Edge::with(&config(&format!(
        "origins = [{{ url = {other:?}, priority = 1 }}, {{ url = {one:?}, weight = 1 }}]"
    )));
    for _ in 0..10 {
        assert_eq!(answered(&edge, "10.1.2.3"), "first");
    }
    first.kill();
    for _ in 0..10 {
        assert_eq!(answered(&edge, "10.1.2.3"), "second");
    }
}

#[test]
fn rules_by_client_come_before_the_tables_of_places() {
    let (main, europe, office) = (named("main"), named("europe"), named("office"));
    let edge = Edge::with(&format!(
        "{}\
         pools_by = [{{ networks = [\"10.0.0.0/8\", \"141.76.0.0/16\"], pool = \"office\" }},\n\
         {{ countries = [\"FR\"], continents = [\"AS\"], pool = \"europe\" }}]\n\
         pools_by_country = {{ DE = \"europe\", FR = \"main\" }}\n\
         [[sites.all.rules]]\npath_prefix = \"/none\"\npools_by = []\n\
         [pools.europe]\norigins = {:?}\n[pools.office]\norigins = {:?}\n",
        config(&format!("origins = {:?}", main.url())),
        europe.url(),
        office.url()
    ));
    for (client, expected) in [
        ("141.76.2.4", "office"),
        ("80.128.0.1", "europe"),
        ("193.51.0.1", "europe"),
        ("133.11.0.1", "europe"),
        ("18.7.22.69", "main"),
        ("10.1.2.3", "office"),
    ] {
        assert_eq!(answered(&edge, client), expected, "{client}");
    }
    let french = edge.get_with("/none", &["X-Forwarded-For: 193.51.0.1"]);
    assert_eq!(french.text(), "main", "the rule has an empty list of its own");
    let explained = edge.admin("GET", "/explain?url=http://edge.test/&client=141.76.2.4", "");
    let explained: Value = serde_json::from_str(explained.text()).expect("JSON");
    assert_eq!(explained["pool"], "office");
    assert_eq!(explained["pool_policy"], "failover");
}

#[test]
fn a_hash_keeps_a_visitor_at_one_origin() {
    let origins = ["a", "b", "c", "d"].map(named);
    let urls: Vec<String> = origins.iter().map(|origin| format!("{:?}", origin.url())).collect();
    let pool = |hash_by: &str| {
        let urls = urls.join(", ");
        config(&format!("origins = [{urls}]\nbalance = \"hash\"\nhash_by = {hash_by:?}"))
    };
    let edge = Edge::with(&pool("cookie sid"));
    let check = |fields: &dyn Fn(usize) -> String| {
        let mut used = BTreeSet::new();
        for visitor in 0..20 {
            let field = fields(visitor);
            let mut reached = BTreeSet::new();
            for path in ["/", "/a", "/b?c"] {
                reached.insert(edge.get_with(path, &[&field]).text().to_owned());
            }
            assert_eq!(reached.len(), 1, "{field} reached {reached:?}");
            used.extend(reached);
        }
        assert!(used.len() >= 3, "only {used:?} are used");
    };
    check(&|visitor| format!("Cookie: a=b; sid={visitor}"));
    // Without the cookie, the client's address decides.
    check(&|visitor| format!("X-Forwarded-For: 10.0.0.{visitor}"));
    edge.reload(&pool("header X-Tenant")).expect("a good configuration");
    check(&|visitor| format!("X-Tenant: {visitor}"));
    edge.reload(&pool("client")).expect("a good configuration");
    check(&|visitor| format!("X-Forwarded-For: 2001:db8:0:{visitor}::1"));
    // A host changes its IPv6 address within its network.
    let reached: BTreeSet<String> =
        (0..20).map(|host| answered(&edge, &format!("2001:db8::{host}"))).collect();
    assert_eq!(reached.len(), 1, "{reached:?}");
}

#[test]
fn least_connections_counts_the_requests_of_all_workers() {
    let gate = Gate::default();
    let origins = [(); 3].map(|()| {
        let gate = gate.clone();
        Origin::start(move |_| Answer::ok("x").header("Cache-Control", "no-store").behind(&gate))
    });
    let urls: Vec<String> = origins.iter().map(|origin| format!("{:?}", origin.url())).collect();
    let edge = Edge::with(&config(&format!(
        "origins = [{}]\nbalance = \"least-connections\"",
        urls.join(", ")
    )));
    let seen = || origins.iter().map(Origin::request_count).sum::<usize>();
    let mut clients: Vec<Client> = Vec::new();
    for sent in 1..=12 {
        // A connection of its own: the kernel chooses its worker.
        let mut client = edge.connect();
        client.send(format!("GET /{sent} HTTP/1.1\r\nHost: edge.test\r\n\r\n").as_bytes());
        clients.push(client);
        crate::harness::until("the request is at an origin", || seen() == sent);
        let counts: Vec<usize> = origins.iter().map(Origin::request_count).collect();
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(most <= least.map(|least| least + 1).as_ref(), "{counts:?}");
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.read(false).status, 200);
    }
}

#[test]
fn peak_ewma_avoids_an_origin_that_fails_fast() {
    let good = [named("good"), named("good")];
    let bad = Origin::start(|_| Answer::status(500).header("Cache-Control", "no-store"));
    let urls = [&good[0], &bad, &good[1]].map(|origin| format!("{:?}", origin.url()));
    let edge =
        Edge::with(&config(&format!("origins = [{}]\nbalance = \"peak-ewma\"", urls.join(", "))));
    for _ in 0..300 {
        answered(&edge, "10.1.2.3");
    }
    assert!(bad.request_count() < 30, "{} of 300 requests failed", bad.request_count());
    assert!(
        good.iter().all(|origin| origin.request_count() > 60),
        "{:?}",
        good.map(|g| g.request_count())
    );
}
