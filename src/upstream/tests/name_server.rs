//! A name server for tests: hickory-server with one zone in memory, which can be told to fail.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, HeaderCounts, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, MessageResponseBuilder, ZoneType};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::resolve::Resolver;
use super::super::settings::DnsSettings;
use crate::metrics::Recorder;

/// See above. The zone is `internal.`.
pub(super) struct NameServer {
    address: SocketAddr,
    zone: Arc<InMemoryZoneHandler>,
    state: Arc<Mutex<State>>,
    _server: Server<Handler>,
}

/// How the server answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    Zone,
    /// SERVFAIL to questions of this type, or to all.
    ServFail(Option<RecordType>),
    Silence,
}

struct State {
    mode: Mode,
    /// Types and times of the questions.
    asked: Vec<(RecordType, Instant)>,
}

struct Handler {
    catalog: Catalog,
    state: Arc<Mutex<State>>,
}

impl NameServer {
    pub(super) async fn start() -> Self {
        let origin = name("internal.");
        let zone = InMemoryZoneHandler::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny);
        let zone: Arc<InMemoryZoneHandler> = Arc::new(zone);
        let mut catalog = Catalog::new();
        catalog.upsert(origin.into(), vec![zone.clone()]);
        let state = Arc::new(Mutex::new(State { mode: Mode::Zone, asked: Vec::new() }));
        let mut server = Server::new(Handler { catalog, state: state.clone() });
        let (udp, tcp) = sockets().await;
        let address = udp.local_addr().expect("its address");
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(10), 64);
        let server = Self { address, zone, state, _server: server };
        server.set(Vec::new()).await;
        server
    }

    /// Replaces the records of the zone.
    pub(super) async fn set(&self, records: Vec<Record>) {
        self.zone.records_mut().await.clear();
        let root = name("internal.");
        let soa = SOA::new(root.clone(), root.clone(), 1, 60, 60, 60, 1);
        for record in [Record::from_rdata(root, 1, RData::SOA(soa))].into_iter().chain(records) {
            assert!(self.zone.upsert(record, 1).await);
        }
    }

    pub(super) fn answer(&self, mode: Mode) {
        self.state.lock().expect("no panic").mode = mode;
    }

    /// The times of the questions of this type.
    pub(super) fn asked(&self, record: RecordType) -> Vec<Instant> {
        let state = self.state.lock().expect("no panic");
        let of_type = state.asked.iter().filter(|(it, _)| *it == record);
        of_type.map(|(_, at)| *at).collect()
    }

    pub(super) fn resolver(&self, recorder: Recorder) -> Arc<Resolver> {
        self.resolver_with_timeout(recorder, Duration::from_millis(200))
    }

    /// As [`Self::resolver`], for answers that take a busy machine longer to make.
    pub(super) fn resolver_with_timeout(
        &self,
        recorder: Recorder,
        timeout: Duration,
    ) -> Arc<Resolver> {
        let settings = DnsSettings {
            servers: vec![self.address],
            timeout,
            attempts: 1,
            ttl_min: Duration::ZERO,
            negative_ttl: Duration::from_millis(100),
            ..DnsSettings::default()
        };
        Resolver::new(settings, Handle::current(), recorder)
    }
}

/// Sockets for UDP and TCP at one port. Long answers come over TCP: a server without it never gives them.
async fn sockets() -> (UdpSocket, TcpListener) {
    // A port that is free for one protocol may be taken for the other, by any program of the machine.
    for _ in 0..1000 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("its address")).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

/// An address record, A or AAAA.
pub(super) fn address(host: &str, ttl: u32, address: &str) -> Record {
    let data = match address.parse::<IpAddr>().expect("an address") {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name(host), ttl, data)
}

/// An SRV record with priority, weight, port and target.
pub(super) fn srv(
    host: &str,
    ttl: u32,
    (priority, weight, port, target): (u16, u16, u16, &str),
) -> Record {
    let data = SRV::new(priority, weight, port, name(target));
    Record::from_rdata(name(host), ttl, RData::SRV(data))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let asked = request.request_info().expect("one question").query.query_type();
        let mode = {
            let mut state = self.state.lock().expect("no panic");
            state.asked.push((asked, Instant::now()));
            state.mode
        };
        let fails = match mode {
            Mode::Zone => false,
            Mode::ServFail(record) => record.is_none_or(|record| record == asked),
            Mode::Silence => {
                let header = Header { metadata: request.metadata, counts: HeaderCounts::default() };
                return ResponseInfo::from(header);
            }
        };
        if !fails {
            return self.catalog.handle_request::<R, T>(request, response).await;
        }
        let builder = MessageResponseBuilder::from_message_request(request);
        let failure = builder.error_msg(&request.metadata, ResponseCode::ServFail);
        response.send_response(failure).await.expect("a reply")
    }
}
