//! Caching DNS resolvers, one for each country of clients, and the links by which they reach the nodes.
//!
//! A resolver asks the nodes themselves, which are the name servers: the nearest one that has not failed
//! lately. It states the client's /24 (RFC 7871) and keeps an answer for its TTL, for the clients that the
//! answer's scope covers. Messages are written and read by hickory-proto, not by code of the nodes.

use crate::fleet::wan::Link;
use crate::journal::{DnsAnswer, Journal, NodeId};
use anyhow::{Context as _, bail, ensure};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

/// The public address of a node in answers. Nothing is sent to it: clients find the node's port by it.
pub fn address_of_node(node: NodeId) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + node as u32)
}

/// The resolver of the clients in one country.
pub struct Resolver {
    country: usize,
    /// The nodes, the nearest first.
    servers: Vec<NameServer>,
    cache: Mutex<HashMap<String, Vec<CachedAnswer>>>,
    next_id: AtomicU16,
    journal: Journal,
}

struct NameServer {
    node: NodeId,
    /// The port of the link to it.
    port: u16,
    round_trip: Duration,
    /// Asked last until then.
    avoided_until: Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct CachedAnswer {
    /// The clients that it is for, and the number of bits that count.
    network: Ipv4Addr,
    scope: u8,
    nodes: Vec<NodeId>,
    until: Instant,
}

impl Resolver {
    /// A resolver in a country that reaches each node by a link, the nearest first.
    pub fn new(country: usize, links: &[(NodeId, Link)], journal: Journal) -> Self {
        let server = |(node, link): &(NodeId, Link)| NameServer {
            node: *node,
            port: link.port,
            round_trip: link.healthy.round_trip,
            avoided_until: Mutex::default(),
        };
        let mut servers: Vec<NameServer> = links.iter().map(server).collect();
        servers.sort_by_key(|server| server.round_trip);
        Resolver { country, servers, cache: Mutex::default(), next_id: AtomicU16::new(1), journal }
    }

    /// The nodes whose addresses the client gets, in the order of the answer.
    ///
    /// # Errors
    /// No name server has answered.
    pub async fn resolve(&self, host: &str, client: Ipv4Addr) -> anyhow::Result<Vec<NodeId>> {
        if let Some(nodes) = self.cached(host, client) {
            return Ok(nodes);
        }
        let mut failures = Vec::new();
        for server in self.in_order().into_iter().take(ATTEMPTS_MAX) {
            match self.ask(server, host, client).await {
                Ok(answer) => {
                    self.keep(host, answer.clone());
                    return Ok(answer.nodes);
                }
                Err(error) => {
                    *server.avoided_until() = Some(Instant::now() + AVOIDED_FOR);
                    failures.push(format!("node {}: {error:#}", server.node));
                }
            }
        }
        bail!("no name server answers: {}", failures.join("; "))
    }

    fn cached(&self, host: &str, client: Ipv4Addr) -> Option<Vec<NodeId>> {
        let cache = self.cache();
        let now = Instant::now();
        let fits = |answer: &&CachedAnswer| answer.until > now && answer.covers(client);
        Some(cache.get(host)?.iter().find(fits)?.nodes.clone())
    }

    fn keep(&self, host: &str, answer: CachedAnswer) {
        let now = Instant::now();
        let mut cache = self.cache();
        let answers = cache.entry(host.to_owned()).or_default();
        answers.retain(|other| other.until > now);
        answers.push(answer);
    }

    fn in_order(&self) -> Vec<&NameServer> {
        let now = Instant::now();
        let is_avoided = |server: &&NameServer| server.avoided_until().is_some_and(|it| it > now);
        let (avoided, good): (Vec<_>, Vec<_>) = self.servers.iter().partition(is_avoided);
        good.into_iter().chain(avoided).collect()
    }

    async fn ask(
        &self,
        server: &NameServer,
        host: &str,
        client: Ipv4Addr,
    ) -> anyhow::Result<CachedAnswer> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let query = query(id, host, client)?;
        let socket = UdpSocket::bind("127.0.0.1:0").await.context("socket")?;
        socket.connect(("127.0.0.1", server.port)).await?;
        let asked_at = Instant::now();
        socket.send(&query.to_vec()?).await?;
        let mut buffer = [0; 1232];
        let patience = 2 * server.round_trip + PATIENCE;
        let length = timeout(patience, socket.recv(&mut buffer)).await.context("no answer")??;
        let (at, response) = (self.journal.now(), Message::from_vec(&buffer[..length])?);
        let (answer, ttl) = read_answer(&response, id, client)?;
        self.journal.facts().dns_answers.push(DnsAnswer {
            at,
            country: self.country,
            server: server.node,
            nodes: answer.clone(),
            took: asked_at.elapsed().as_micros() as u64,
        });
        let scope = scope(&response);
        Ok(CachedAnswer { network: client, scope, nodes: answer, until: Instant::now() + ttl })
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<String, Vec<CachedAnswer>>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NameServer {
    fn avoided_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.avoided_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CachedAnswer {
    fn covers(&self, client: Ipv4Addr) -> bool {
        let differs = self.network.to_bits() ^ client.to_bits();
        differs.leading_zeros() >= u32::from(self.scope)
    }
}

fn query(id: u16, host: &str, client: Ipv4Addr) -> anyhow::Result<Message> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_str(&format!("{host}."))?, RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    let [a, b, c, _] = client.octets();
    let network = IpAddr::V4(Ipv4Addr::new(a, b, c, 0));
    let subnet = ClientSubnet::new(network, SOURCE_BITS, 0);
    edns.options_mut().insert(EdnsOption::Subnet(subnet));
    message.edns = Some(edns);
    Ok(message)
}

/// The nodes of an answer and its TTL.
fn read_answer(
    response: &Message,
    id: u16,
    client: Ipv4Addr,
) -> anyhow::Result<(Vec<NodeId>, Duration)> {
    let code = response.metadata.response_code;
    ensure!(response.metadata.id == id, "the answer has another id");
    ensure!(code == ResponseCode::NoError, "{code} for {client}");
    ensure!(response.metadata.authoritative, "the answer has no authority");
    let mut nodes = Vec::new();
    for record in &response.answers {
        let RData::A(address) = &record.data else { continue };
        let node = address.0.to_bits().checked_sub(FIRST_ADDRESS.to_bits());
        nodes.push(node.with_context(|| format!("{} is no node", address.0))? as NodeId);
    }
    let ttl = response.answers.iter().map(|record| record.ttl).min();
    let ttl = ttl.filter(|_| !nodes.is_empty()).context("the answer has no address")?;
    Ok((nodes, Duration::from_secs(ttl.into())))
}

/// The bits of the client's address that the answer depends on, at most those that were stated
/// (RFC 7871 §7.3.1).
fn scope(response: &Message) -> u8 {
    let option = response.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Subnet));
    match option {
        Some(EdnsOption::Subnet(subnet)) => subnet.scope_prefix().min(SOURCE_BITS),
        _ => 0,
    }
}

const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Bits of a client's address that a resolver states.
const SOURCE_BITS: u8 = 24;
/// How long a resolver waits for an answer beyond two round trips.
const PATIENCE: Duration = Duration::from_millis(400);
/// Name servers that are asked for one answer.
const ATTEMPTS_MAX: usize = 4;
/// How long a name server that has not answered is asked last.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Record, rdata::A};

    fn client(text: &str) -> Ipv4Addr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_answer_is_kept_for_the_clients_that_its_scope_covers() {
        let mut answer = CachedAnswer {
            network: client("141.20.3.1"),
            scope: 16,
            nodes: Vec::new(),
            until: Instant::now(),
        };
        assert!(answer.covers(client("141.20.200.7")) && !answer.covers(client("141.21.0.1")));
        answer.scope = 0;
        assert!(answer.covers(client("8.8.8.8")));
    }

    #[test]
    fn an_answer_names_nodes_by_their_addresses() {
        let (name, host) = (Name::from_str("shop.test.").expect("a name"), client("141.20.3.1"));
        let mut response = query(7, "shop.test", host).expect("a query");
        response.metadata.authoritative = true;
        assert!(read_answer(&response, 7, host).is_err(), "no address");
        for (node, ttl) in [(4, 9), (2, 3)] {
            let address = RData::A(A(address_of_node(node)));
            response.add_answer(Record::from_rdata(name.clone(), ttl, address));
        }
        let answer = read_answer(&response, 7, host).expect("an answer");
        assert_eq!(answer, (vec![4, 2], Duration::from_secs(3)));
        assert!(read_answer(&response, 8, host).is_err(), "another id");
    }
}
