//! Fuzz target: a datagram from anybody.

use std::sync::{Arc, LazyLock, Mutex};

use geo::Geo;
use hickory_proto::op::Message;

use super::cookie::Cookies;
use super::edges::Dice;
use super::plan::{DnsPlan, PlanCounters};
use super::query::HEADER;
use super::respond::{DnsTransport, Responder, Sender};
use super::settings::{EdgeNode, EdgeSettings, EdgeState, RegionPolicy, Settings, ZoneSettings};
use super::{name, record};

/// No datagram makes the server panic. A response by UDP is within 1,232 bytes, and within 512 if the query has no
/// OPT record; another implementation can read it; it repeats the id. The response by TCP is the same, or longer.
pub(crate) fn dns_query(data: &[u8]) {
    let server = &mut *SERVER.lock().expect("a property that fails ends the process");
    check(server, data);
    // The same after a valid header and question, so that options are reached more often.
    check(server, &[VALID, data].concat());
}

fn check((plan, responder): &mut (DnsPlan, Responder), query: &[u8]) {
    let respond = |responder: &mut Responder, transport, out: &mut [u8]| {
        responder.dice = Dice(7);
        let address = "192.0.2.53".parse().expect("an address");
        responder.respond(plan, query, Sender { address, transport, now: 1_700_000_000 }, out)
    };
    let mut out = [0; 1232];
    let Some(response) = respond(responder, DnsTransport::Udp, &mut out) else { return };
    let bytes = &out[..response.length];
    assert!(bytes.len() >= HEADER && bytes[..2] == query[..2] && bytes[2] & 0x80 != 0);
    let has_edns = read(bytes).is_none_or(|message| message.edns.is_some());
    assert!(has_edns || bytes.len() <= 512, "{} bytes", bytes.len());
    let mut whole = vec![0; usize::from(u16::MAX)];
    let by_tcp = respond(responder, DnsTransport::Tcp, &mut whole).expect("a response by UDP");
    assert!(by_tcp.length >= response.length && !by_tcp.is_truncated);
    read(&whole[..by_tcp.length]);
    let mut cut = response;
    cut.truncate(&mut out);
    assert!(cut.length <= response.length);
    read(&out[..cut.length]);
}

/// The response as another implementation reads it. `None`: it repeats a client subnet without an address family,
/// which that one does not know.
fn read(bytes: &[u8]) -> Option<Message> {
    match Message::from_vec(bytes) {
        Ok(message) => Some(message),
        Err(error) if format!("{error:?}").contains("UnknownAddressFamily(0)") => None,
        Err(error) => panic!("another implementation cannot read the response: {error:?}"),
    }
}

/// The header of a query with one OPT record, and the question `www.example.org. A`.
const VALID: &[u8] =
    b"\x07\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03www\x07example\x03org\x00\x00\x01\x00\x01";

static SERVER: LazyLock<Mutex<(DnsPlan, Responder)>> = LazyLock::new(|| {
    let records = [
        "www CNAME edge",
        "deleg NS ns.deleg",
        "ns.deleg A 192.0.2.9",
        "*.wild TXT x",
        "loop CNAME loop",
        "a.b.c.d A 192.0.2.1",
        r"deleg DS 1 13 99 4A4A",
        r"generic TYPE65280 \# 4 C0000201",
    ];
    let mut records: Vec<String> = records.map(str::to_owned).into();
    records.extend((0..30).map(|number| format!("large TXT \"{number:0>60}\"")));
    let parsed =
        records.iter().flat_map(|line| record::parse(line, "example.org", 60).expect(line));
    let edge = |name: &str, policy| EdgeSettings {
        name: name::from_text(name).expect("a name"),
        ttl: 30,
        addresses_max: 16,
        policy,
        regions: Vec::new(),
        weights: Vec::new(),
        load_max: 0.9,
        map: Vec::new(),
        https: true,
    };
    let zone = ZoneSettings {
        name: "example.org".to_owned(),
        name_servers: vec!["ns.example.net".to_owned()],
        contact: "hostmaster@example.org".to_owned(),
        ttl: 60,
        negative_ttl: 60,
        serial: 1,
        records: parsed.collect(),
        edges: vec![
            edge("edge.example.org", RegionPolicy::Nearest),
            edge("example.org", RegionPolicy::Weighted),
        ],
    };
    let node = |number: u8| EdgeNode {
        name: format!("n{number}").into(),
        region: format!("r{}", number % 3).into(),
        coordinates: geo::Coordinates::new(f64::from(number), f64::from(number) * 7.0).ok(),
        addresses: vec![[192, 0, 2, number].into(), std::net::Ipv6Addr::from([number; 16]).into()],
        weight: 100,
        load: f32::from(number) / 12.0,
        state: EdgeState::Ready,
    };
    let nodes: Vec<EdgeNode> = (0..12).map(node).collect();
    let settings = Settings { zones: vec![zone], has_https: true, ..Settings::default() };
    let plan = DnsPlan::new(&settings, &nodes, &PlanCounters::default()).expect("a valid zone");
    let geo = Arc::new(Geo::open(&geo::Settings::default()).expect("built in"));
    Mutex::new((plan, Responder { geo, cookies: Cookies::new([7; 16]), dice: Dice(1) }))
});

#[cfg(test)]
mod tests {
    use super::*;

    /// A random number generator (SplitMix64).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((mixed ^ (mixed >> 27)) % bound as u64) as usize
        }
    }

    /// `SKERRY_DNS_QUERIES` sets another number than 20,000.
    #[test]
    fn mutated_queries_get_no_panic_and_no_response_beyond_the_bound() {
        let count = std::env::var("SKERRY_DNS_QUERIES").ok().and_then(|text| text.parse().ok());
        let options = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x1b\x00\x08\x00\x07\x00\x01\x18\x00\x8d\x4c\x02\x00\x0a\x00\x08abcdefgh\x00\x03\x00\x00";
        let seed = [VALID, options].concat();
        let random = &mut Random(11);
        for _ in 0..count.unwrap_or(20_000) {
            let mut query = seed.clone();
            for _ in 0..=random.below(6) {
                let at = random.below(query.len());
                match random.below(4) {
                    0 => query[at] = random.below(256) as u8,
                    1 => query[at] ^= 1 << random.below(8),
                    2 => query.truncate(at.max(1)),
                    _ => query.insert(at, random.below(256) as u8),
                }
            }
            dns_query(&query);
        }
    }
}
