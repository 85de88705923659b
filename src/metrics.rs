//! The metrics of a node, declared in one table.
//!
//! Each worker adds to cells of its own, so that a hit touches no cache line of another core; a scrape sums
//! them. Metrics per site or origin, and rare ones, are families that a room registers with
//! [`Metrics::register`]. Names follow the conventions of Prometheus. docs/reference/metrics.md is generated
//! from [`TABLE`].

mod classic;
mod history;
mod process;
mod rules;
mod scrapes;
mod sites;

pub(crate) use history::{History, Interval};
pub(crate) use process::cpu_seconds;
pub(crate) use scrapes::{ScrapeFormat, Scrapes};
pub(crate) use sites::SiteTotals;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric as RegistryMetric, Registry};

use self::rules::{RuleCounters, RuleMetrics};
use self::sites::{SiteCounters, SiteMetrics};
use crate::labels::{
    CACHE_RESULTS, CoderFailure, Coding, ConnectionRefusal, ConnectionTimeout, CopyOutcome,
    DiscoveryOutcome, FillEnd, GeoRedirectOutcome, HandshakeOutcome, HeadError, HotFormOutcome,
    Http2End, LeftOut, MemberChange, MirrorOutcome, PeerRefusal, ProxyError, QueueRefusal, Refusal,
    RequestProtocol, RequirementOutcome, RetryReason, SplitChoice, StickyOutcome, Uncollapsed,
    Unretried, Unsent,
};

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down. Its value is the sum over all workers.
    Gauge,
    /// Durations in seconds, in buckets with the upper bounds of [`BUCKETS_US`].
    Histogram,
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// The name without the prefix `skerry_` and the suffix that the encoder adds.
    pub name: &'static str,
    /// One sentence for `# HELP`.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// The name of the label, and the list of its values. Empty: no label.
    pub label: (&'static str, &'static [&'static str]),
}

/// Upper bounds of the histogram buckets, in microseconds.
pub(crate) const BUCKETS_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000, 30_000_000,
];

/// The cells of a histogram: one for each bound, one for larger values, and the sum.
const OVERFLOW: usize = BUCKETS_US.len();
const SUM_US: usize = OVERFLOW + 1;

macro_rules! table {
    ($($variant:ident, $kind:ident, $name:literal, $help:literal $(, $label:literal = $values:expr)?;)*) => {
        /// The metrics of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Metric { $(#[doc = $help] $variant,)* }

        /// The rows, in the order of [`Metric`].
        pub const TABLE: &[Row] = &[$(Row {
            name: $name, help: $help, kind: Kind::$kind,
            label: table!(@label $($label = $values)?),
        },)*];
    };
    (@label) => { ("", &[]) };
    (@label $label:literal = $values:expr) => { ($label, $values) };
}

/// Classes of status codes: the label of [`Metric::Responses`].
pub(crate) const STATUS_CLASSES: &[&str] = &["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The connections to the purge bus: the label of [`Metric::BusDisconnects`].
pub(crate) const BUS_CONNECTIONS: &[&str] = &["read", "talk"];

/// Statuses of refused calls of the admin API: the label of [`Metric::AdminRefused`].
pub(crate) const ADMIN_REFUSALS: &[&str] = &["401", "403", "421", "429"];

/// Outcomes of prefetches: the label of [`Metric::Prefetches`].
pub(crate) const PREFETCH_OUTCOMES: &[&str] = &["fetched", "failed", "dropped"];

/// Types of queries to the name server that are told apart: the label of [`Metric::DnsServerQueries`].
pub(crate) const DNS_TYPES: &[&str] = &[
    "A", "AAAA", "HTTPS", "CNAME", "NS", "SOA", "TXT", "MX", "CAA", "SVCB", "SRV", "PTR", "DS",
    "ANY", "other",
];

/// Response codes of the name server: the label of [`Metric::DnsServerResponses`].
pub(crate) const DNS_RCODES: &[&str] =
    &["noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "badvers"];

/// Why a node may have missed purges: the label of [`Metric::BusGaps`], explained at
/// `bus::Gap`.
pub(crate) const BUS_GAPS: &[&str] = &["new", "trimmed", "backwards", "replaced", "unreadable"];

table! {
    Connections, Gauge, "connections", "Open connections of clients and peers.";
    ConnectionsAccepted, Counter, "connections_accepted", "Connections of clients and peers accepted.";
    ConnectionsRefused, Counter, "connections_refused", "Connections of clients and peers closed at once because a limit was reached.",
        "limit" = ConnectionRefusal::WORDS;
    ConnectionsTimedOut, Counter, "connections_timed_out", "Client connections closed because the client took too long.",
        "waited_for" = ConnectionTimeout::WORDS;
    AcceptErrors, Counter, "accept_errors", "Connections that the system could not accept because file descriptors or memory ran out.";
    HandshakesReplaced, Counter, "tls_handshakes_replaced", "TLS handshakes closed for a new one, because limits.handshakes_max were in progress and they had waited longest. They also count as timed out.";
    Handshakes, Counter, "tls_handshakes", "TLS handshakes, by outcome.",
        "outcome" = HandshakeOutcome::WORDS;
    BytesReceived, Counter, "received_bytes", "Bytes read from client connections, inside TLS.";
    BytesSent, Counter, "sent_bytes", "Bytes written to client connections, inside TLS.";
    RequestsByProtocol, Counter, "requests_by_protocol", "Requests whose header section was read, by protocol.",
        "protocol" = RequestProtocol::WORDS;
    RequestsUnread, Counter, "requests_unread", "Requests refused because they could not be parsed.",
        "reason" = HeadError::WORDS;
    RequestBodiesTimedOut, Counter, "request_bodies_timed_out", "Request bodies that arrived more slowly than the limits allow.";
    ResponseBodiesTimedOut, Counter, "response_bodies_timed_out", "HTTP/2 responses whose client opened its window too slowly.";
    Http2Resets, Counter, "http2_resets", "HTTP/2 requests that the client cancelled before their end.";
    Http2Ended, Counter, "http2_connections_ended", "HTTP/2 connections closed by the node because of the client's behaviour.",
        "reason" = Http2End::WORDS;
    Requests, Counter, "requests", "Requests received.";
    Responses, Counter, "responses", "Responses sent, by class of status.", "class" = STATUS_CLASSES;
    ResponseBytes, Counter, "response_body_bytes", "Body bytes passed to client connections.";
    ForwardedBytes, Counter, "forwarded_body_bytes", "Body bytes of responses that were not hits, passed to client connections.";
    CacheRequests, Counter, "cache_requests", "Requests, by how the cache handled them: hit, or the reason for not being a hit, as in the access log.",
        "result" = CACHE_RESULTS;
    RequestSeconds, Histogram, "request_duration_seconds", "Time from the request's header section to the response's (time to first byte).";
    Fills, Gauge, "fills", "Upstream responses on their way to their readers and into the store.";
    FillsEnded, Counter, "fills_ended", "Fills that ended, by outcome.",
        "end" = FillEnd::WORDS;
    FillWindowsReduced, Counter, "fill_windows_reduced", "Fills that got the minimum window because all windows together reached half of their limit.";
    FillsUnstoredForMemory, Counter, "fills_unstored_for_memory", "Fills of slow readers that are no longer stored because all windows together reached their limit.";
    FillReadsBehind, Counter, "fill_reads_behind", "Slices read from the store by readers that fell behind their fill.";
    FillReadersLost, Counter, "fill_readers_lost", "Readers of a fill that fell so far behind that their next bytes were neither in memory nor stored.";
    BodiesMended, Counter, "bodies_mended", "Bodies continued with range requests to upstream, because their reader had fallen behind the fill, the fill had failed, or the store had lost a slice.";
    RangeRequests, Counter, "range_requests", "Sub-requests to upstream for slices that were not stored.";
    RangeObjectsChanged, Counter, "range_objects_changed", "Objects found to have changed at the origin while ranges of them were being fetched.";
    FillReaders, Gauge, "fill_readers", "Clients that read a body as it comes from upstream.";
    FillWindowBytes, Gauge, "fill_window_bytes", "Body bytes held in memory for readers of fills.";
    RequestsCollapsed, Counter, "requests_collapsed", "Requests collapsed into another request's upstream request.";
    RequestsUncollapsed, Counter, "requests_uncollapsed", "Requests forwarded without collapsing although they might have been collapsed.",
        "reason" = Uncollapsed::WORDS;
    UncacheableForgotten, Counter, "uncacheable_forgotten", "Keys not remembered as uncacheable because the limit was reached.";
    VariantsDropped, Counter, "variants_dropped", "Variants removed because their key reached the limit of variants.";
    SplitRequests, Counter, "split_requests", "Requests under rules that split their visitors, by how the visitor's group was found.",
        "by" = SplitChoice::WORDS;
    UpstreamRequests, Counter, "upstream_requests", "Requests sent to origins, not counting retries.";
    UpstreamUnsent, Counter, "upstream_unsent", "Requests that were sent to no origin of their pool, by reason.",
        "reason" = Unsent::WORDS;
    MirroredRequests, Counter, "mirrored_requests", "Copies of requests that rules mirror to another pool, by outcome.",
        "outcome" = MirrorOutcome::WORDS;
    GeoRedirects, Counter, "geo_redirects", "Requests under rules that redirect to the nearest region, by where the client is served.",
        "outcome" = GeoRedirectOutcome::WORDS;
    UpstreamSticky, Counter, "upstream_sticky_requests", "Requests to sticky pools, by whether the visitor is kept at its origin.",
        "outcome" = StickyOutcome::WORDS;
    InterimResponses, Counter, "interim_responses", "Interim responses (1xx) of origins, by outcome.",
        "outcome" = &["passed_on", "dropped"];
    UpstreamConnections, Gauge, "upstream_connections", "Open connections to origins.";
    UpstreamIdle, Gauge, "upstream_connections_idle", "Idle connections to origins.";
    UpstreamActive, Gauge, "upstream_active", "Exchanges with origins in flight.";
    UpstreamConnects, Counter, "upstream_connects", "Connection attempts to origins.";
    UpstreamReuses, Counter, "upstream_reuses", "Requests sent over a reused connection.";
    UpstreamIdleClosed, Counter, "upstream_idle_closed", "Idle connections to origins that were closed, by reason.",
        "reason" = &["expired", "limit", "origin", "removed", "wanted"];
    UpstreamRetries, Counter, "upstream_retries", "Further tries of requests to origins, by the reason for them.",
        "reason" = RetryReason::WORDS;
    UpstreamUnretried, Counter, "upstream_unretried", "Requests that were not sent again although their exchange failed, by reason.",
        "reason" = Unretried::WORDS;
    UpstreamHedges, Counter, "upstream_hedges", "Requests that were sent to a second origin because the first was slower than usual (hedge.after), by outcome: the second responded first, did not, or was not asked because of hedge.percent_max.",
        "outcome" = &["won", "lost", "refused"];
    UpstreamResumptions, Counter, "upstream_resumptions", "Response bodies that broke off and whose rest was requested from an origin, by outcome.",
        "outcome" = &["resumed", "failed"];
    UpstreamUnheld, Counter, "upstream_unheld", "Small responses that were passed on before they were whole, because retry.kept_bytes_max or retry.hold_time was reached.",
        "reason" = &["bytes", "time"];
    UpstreamFailures, Counter, "upstream_failures", "Attempts without a complete response, by error type of RFC 9209.",
        "error" = ProxyError::WORDS;
    UpstreamMarkedDown, Counter, "upstream_marked_down", "Times that an origin went down or was ejected, failed trials included.";
    UpstreamEjectionsRefused, Counter, "upstream_ejections_refused", "Times that a faulty origin was not ejected because too few would be left (health.eject_percent_max).";
    UpstreamChecks, Counter, "upstream_checks", "Active health checks of origins, by outcome.",
        "outcome" = &["passed", "failed"];
    UpstreamFirstByte, Histogram, "upstream_first_byte_seconds", "Time from sending a request to an origin to the header section of its response.";
    UpstreamCredentialsUnreadable, Counter, "upstream_credentials_unreadable", "Times that changed credentials of a pool could not be read; the ones of before stayed in use.";
    UpstreamQueue, Gauge, "upstream_queue", "Requests that wait for an origin because each has its maximum of requests in flight or of connections (requests_max, connections_max).";
    UpstreamQueueWait, Histogram, "upstream_queue_wait_seconds", "Time that requests waited in a queue for an origin until one was free.";
    UpstreamQueueRefused, Counter, "upstream_queue_refused", "Requests refused because each origin had its maximum of requests in flight, by reason.",
        "reason" = QueueRefusal::WORDS;
    UpstreamDiscoveries, Counter, "upstream_discoveries", "Replies of sources of origins (DNS, files, HTTP), by outcome.",
        "outcome" = DiscoveryOutcome::WORDS;
    UpstreamOriginsChanged, Counter, "upstream_origins_changed", "Origins that sources have added to pools and removed from them.",
        "change" = MemberChange::WORDS;
    UpstreamOriginsLeftOut, Counter, "upstream_origins_left_out", "Origins of sources that a pool did not use, by reason.",
        "reason" = LeftOut::WORDS;
    DnsQuestions, Counter, "dns_questions", "DNS lookups of origin names.";
    DnsFailures, Counter, "dns_failures", "DNS lookups that returned no address.";
    DnsStale, Counter, "dns_stale", "DNS lookups answered with an expired address because DNS failed.";
    DnsForgotten, Counter, "dns_forgotten", "Names removed from the DNS cache because it was full.";
    DnsServerQueries, Counter, "dns_server_queries", "Queries that the name server answered, by type.", "type" = DNS_TYPES;
    DnsServerResponses, Counter, "dns_server_responses", "Responses of the name server, by code.", "rcode" = DNS_RCODES;
    DnsServerSeconds, Histogram, "dns_server_duration_seconds", "Time from the receipt of a batch of queries until its responses were sent, for each query.";
    DnsServerTruncated, Counter, "dns_server_truncated", "Responses by UDP without records because they did not fit or were above the rate.";
    DnsServerLimited, Counter, "dns_server_rate_limited", "Responses by UDP above dns.server.rate_per_second, by outcome.", "outcome" = &["dropped", "truncated"];
    DnsServerDropped, Counter, "dns_server_dropped", "Datagrams without a response: the socket's queue was full, longer than a query, no query, or the response was not sent.",
        "reason" = &["queue-full", "too-long", "not-a-query", "not-sent"];
    DnsServerNotReady, Counter, "dns_server_not_ready", "Answers that name nodes which are not ready, because none is.";
    DnsServerTcpConnections, Gauge, "dns_server_tcp_connections", "Open TCP connections of the name server.";
    DnsServerTcpRefused, Counter, "dns_server_tcp_refused", "TCP connections of the name server closed at once because a limit was reached.";
    DnsServerTcpReplaced, Counter, "dns_server_tcp_replaced", "TCP connections of the name server closed for a new one, because all were in use and they had waited longest for their clients.";
    DnsServerLogDropped, Counter, "dns_server_query_log_dropped", "Lines of the query log dropped because the writer fell behind.";
    DnsServerPanics, Counter, "dns_server_panics", "Batches of queries without responses because of an error in the name server.";
    PeerConnections, Gauge, "peer_connections", "Open connections of other nodes of the fleet.";
    PeerConnectionsAged, Counter, "peer_connections_aged", "Connections of other nodes of the fleet that were closed at the age peers.connection_age.";
    PeerRequests, Gauge, "peer_requests_in_flight", "Requests of other nodes of the fleet that are being answered.";
    PeerChecks, Counter, "peer_checks", "Checks whether a node lives that the bus says nothing of, by outcome.",
        "outcome" = &["passed", "failed"];
    PeerRefusals, Counter, "peer_refusals", "Connections and requests on the peer listener that were refused, by reason.",
        "reason" = PeerRefusal::WORDS;
    PeerCopies, Counter, "peer_copies", "Responses of the owners of hot keys that were or were not copied into memory, by outcome.",
        "outcome" = CopyOutcome::WORDS;
    PeerCopyHits, Counter, "peer_copy_hits", "Requests answered from copies of other nodes' responses.";
    PeerCopiesDisplaced, Counter, "peer_copies_displaced", "Copies of other nodes' responses that left memory because copies had reached their sixteenth of it.";
    Refused, Counter, "requests_refused", "Requests refused by the guard, by reason.", "reason" = Refusal::WORDS;
    UpgradesIgnored, Counter, "upgrades_ignored", "Upgrade fields ignored because no protocol in them is allowed or the request has content.";
    RateTableFull, Counter, "rate_table_full", "Clients not rate-limited because the table of clients was full.";
    BodiesEncoded, Counter, "bodies_encoded", "Bodies compressed for clients, by coding.", "coding" = Coding::WORDS;
    BodiesDecoded, Counter, "bodies_decoded", "Bodies decompressed for clients that lack the coding.", "coding" = Coding::WORDS;
    CoderBytesIn, Counter, "coder_input_bytes", "Bytes that went into encoders and decoders.";
    CoderBytesOut, Counter, "coder_output_bytes", "Bytes that came out of encoders and decoders.";
    CoderFailures, Counter, "coder_failures", "Bodies that failed in an encoder or decoder, by reason.",
        "reason" = CoderFailure::WORDS;
    CoderTurnSeconds, Histogram, "coder_turn_cpu_seconds", "CPU time of an encoder or decoder between two moments at which other requests of its worker may run.";
    HotForms, Counter, "hot_forms", "Forms of often requested responses that were to be coded again at a higher level, by outcome.",
        "outcome" = HotFormOutcome::WORDS;
    HotFormBytesSaved, Counter, "hot_form_saved_bytes", "Bytes by which forms became shorter because they were coded again.";
    HotFormSeconds, Histogram, "hot_form_cpu_seconds", "CPU time of coding a form again, with reading and decoding its content.";
    LogDropped, Counter, "access_log_dropped", "Access log lines dropped because the writer fell behind.";
    Purges, Counter, "purges", "Purges applied.";
    PurgesRefused, Counter, "purges_refused", "Purges refused because the outbox was full.";
    PurgeDeliveries, Counter, "purge_deliveries", "Calls that bring purges to another node over the peer link, or ask for its position, by outcome.", "outcome" = &["taken", "failed"];
    DeliveriesDropped, Counter, "purge_deliveries_dropped", "Purges not kept any more for peers that have not taken them, because there were too many: such a peer purges everything softly.";
    PurgesWidened, Counter, "purges_widened", "Purges merged into a soft purge of everything because the purge table was full.";
    PurgesPruned, Counter, "purges_pruned", "Purges removed from the table because no stored response can be older.";
    PurgeLogSyncs, Counter, "purge_log_syncs", "Writes of the purge log, each with one fsync for all purges that waited.";
    PurgeLogErrors, Counter, "purge_log_errors", "Writes of the purge log that failed.";
    PurgeLogTornBytes, Counter, "purge_log_torn_bytes", "Bytes of an incomplete write found at the end of the purge log at start.";
    PurgeLogDamaged, Counter, "purge_log_damaged", "Damaged purge logs found at start: everything stored is validated.";
    PurgePropagation, Histogram, "purge_propagation_seconds", "Time from the order of a purge on another node until it is applied on this one, by both nodes' clocks.";
    PurgeRequirements, Counter, "purge_requirements", "Requests of other nodes by whether this node had applied the purges that they require; otherwise the origin was asked.", "outcome" = RequirementOutcome::WORDS;
    AuditLost, Counter, "audit_lines_lost", "Audit log lines that could not be written.";
    AdminRefused, Counter, "admin_refused", "Calls of the admin API refused, by status.", "status" = ADMIN_REFUSALS;
    Prefetches, Counter, "prefetches", "URLs fetched ahead, or again after a purge, by outcome; dropped: the queue was full.", "outcome" = PREFETCH_OUTCOMES;
    BusGaps, Counter, "bus_gaps", "Times that everything was purged softly because purges may have been missed.", "reason" = BUS_GAPS;
    BusDisconnects, Counter, "bus_disconnects", "Connections to the purge bus that broke or could not be made.", "connection" = BUS_CONNECTIONS;
    BusWakesDropped, Counter, "bus_wakes_dropped", "Wake-up messages dropped because their queue was full; the stream has their content.";
    BusWaitsRefused, Counter, "bus_waits_refused", "Purge calls that returned without waiting for other nodes because 512 callers were waiting.";
    FleetRowsRead, Counter, "fleet_rows_read", "Rows of the node table read because they had changed, or because the whole table was read.";
    BusPurgesLost, Counter, "bus_purges_lost", "Purges that Redis confirmed or sent as wake-ups and then lost; this node published them again.";
    BusReceiptsDropped, Counter, "bus_receipts_dropped", "Receipts not sent because their queue was full; they are sent again from the stream.";
    StoreSlicesMissing, Counter, "store_slices_missing", "Stored bodies cut short because a slice was missing.";
    StoreForgotten, Counter, "store_forgotten", "Pieces evicted from memory that are not on disk.";
    StoreDiskReads, Counter, "store_disk_reads", "Pieces read from disk.";
    StoreDiskWrites, Counter, "store_disk_writes", "Pieces written to disk.";
    StoreDiskDropped, Counter, "store_disk_dropped", "Pieces not written to disk because the queue was full, or the directory was out of service or failed.";
    StoreDiskOverShare, Counter, "store_disk_over_share", "Pieces not written to disk because their site has reached its share.";
    StoreDiskErrors, Counter, "store_disk_errors", "Pieces on disk that could not be read or decoded.";
    StoreDiskOuts, Counter, "store_disk_outs", "Times that a store directory went out of service.";
    StoreDiskShort, Counter, "store_disk_short_of_space", "Times that a store directory stopped growing because its file system had no free space beyond the reserve.";
}

const fn cells_of(row: &Row) -> usize {
    let series = if row.label.1.is_empty() { 1 } else { row.label.1.len() };
    match row.kind {
        Kind::Histogram => SUM_US + 1,
        Kind::Counter | Kind::Gauge => series,
    }
}

const OFFSETS: [usize; TABLE.len() + 1] = {
    let mut offsets = [0; TABLE.len() + 1];
    let mut at = 0;
    while at < TABLE.len() {
        offsets[at + 1] = offsets[at] + cells_of(&TABLE[at]);
        at += 1;
    }
    offsets
};
const CELLS: usize = OFFSETS[TABLE.len()];

/// The cells of one worker, on cache lines of their own.
#[repr(align(128))]
struct Cells([AtomicU64; CELLS]);

impl Default for Cells {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// All metrics of a node.
pub(crate) struct Metrics {
    slots: Arc<[Cells]>,
    sites: Arc<SiteCounters>,
    rules: Arc<RuleCounters>,
    registry: Mutex<Registry>,
    /// Metrics without the prefix `skerry_`.
    process: Registry,
}

impl Metrics {
    /// Metrics with cells for `workers` workers, and one more slot for all other threads.
    pub(crate) fn new(workers: usize) -> Arc<Self> {
        let slots: Arc<[Cells]> = (0..=workers).map(|_| Cells::default()).collect();
        let mut registry = Registry::with_prefix("skerry");
        registry.register_collector(Box::new(Sum(slots.clone())));
        let sites = SiteCounters::new(workers + 1);
        registry.register_collector(Box::new(SiteMetrics(sites.clone())));
        let rules = RuleCounters::new(workers + 1);
        registry.register_collector(Box::new(RuleMetrics(rules.clone())));
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What this node runs", build);
        let mut process = Registry::default();
        process.register_collector(Box::new(process::Process));
        Arc::new(Self { slots, sites, rules, registry: Mutex::new(registry), process })
    }

    /// The recorder of a worker, counted from zero.
    pub(crate) fn worker(self: &Arc<Self>, worker: usize) -> Recorder {
        assert!(worker + 1 < self.slots.len(), "worker {worker} has no cells");
        Recorder { metrics: self.clone(), slot: worker + 1 }
    }

    /// The recorder of all threads that are not workers.
    pub(crate) fn background(self: &Arc<Self>) -> Recorder {
        Recorder { metrics: self.clone(), slot: 0 }
    }

    /// Adds a family of metrics that a room maintains itself. Not for the path of a hit.
    pub(crate) fn register(&self, name: &str, help: &str, metric: impl RegistryMetric) {
        self.lock().register(name, help, metric);
    }

    /// Adds a collector that is called at each scrape.
    pub(crate) fn register_collector(&self, collector: Box<dyn Collector>) {
        self.lock().register_collector(collector);
    }

    /// The sum over all workers. Of a histogram, the number of observations.
    #[cfg(test)]
    pub(crate) fn total(&self, metric: Metric, label: usize) -> u64 {
        let row = &TABLE[metric as usize];
        let first = OFFSETS[metric as usize];
        match row.kind {
            Kind::Counter | Kind::Gauge => sum(&self.slots, first + label),
            Kind::Histogram => (first..=first + OVERFLOW).map(|cell| sum(&self.slots, cell)).sum(),
        }
    }

    /// The sums over all workers: of a counter or gauge a value for each of its series; of a histogram the number
    /// of observations in each bucket of [`BUCKETS_US`], then those above, then the sum in microseconds.
    pub(crate) fn sums(&self, metric: Metric) -> Vec<u64> {
        let first = OFFSETS[metric as usize];
        let cells = first..first + cells_of(&TABLE[metric as usize]);
        cells.map(|cell| sum(&self.slots, cell)).collect()
    }

    /// The text of a scrape (OpenMetrics 1.0). [`Scrapes`] writes it on a thread of its own.
    pub(crate) fn encode(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        text::encode_registry(&mut out, &self.process)
            .and_then(|()| text::encode(&mut out, &self.lock()))
            .expect("writing to a String does not fail");
        out
    }

    /// The counters of each site since the start.
    pub(crate) fn site_totals(&self) -> Vec<SiteTotals> {
        self.sites.totals()
    }

    /// The requests since the start that a rule matched. `None`: it has no counter of its own.
    pub(crate) fn rule_matches(&self, site: &str, rule: &str) -> Option<u64> {
        self.rules.matches(site, rule)
    }

    /// As [`Metrics::encode`], in the text format 0.0.4 of Prometheus.
    pub(crate) fn encode_classic(&self) -> String {
        classic::to_classic(&self.encode())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Adds to the cells of one slot. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    metrics: Arc<Metrics>,
    slot: usize,
}

impl Recorder {
    /// Adds one.
    pub(crate) fn count(&self, metric: Metric) {
        self.add(metric, 1);
    }

    /// Adds `amount`.
    pub(crate) fn add(&self, metric: Metric, amount: u64) {
        self.cell(metric, 0).fetch_add(amount, Ordering::Relaxed);
    }

    /// Adds one to the series with the label's value of index `label`.
    pub(crate) fn count_labelled(&self, metric: Metric, label: usize) {
        self.cell(metric, label).fetch_add(1, Ordering::Relaxed);
    }

    /// Adds `amount` to the series with the label's value of index `label`.
    pub(crate) fn add_labelled(&self, metric: Metric, label: usize, amount: u64) {
        self.cell(metric, label).fetch_add(amount, Ordering::Relaxed);
    }

    /// Subtracts from a gauge. A gauge may rise on one worker and fall on another.
    pub(crate) fn subtract(&self, metric: Metric, amount: u64) {
        self.cell(metric, 0).fetch_sub(amount, Ordering::Relaxed);
    }

    /// Adds one observation to a histogram.
    pub(crate) fn observe(&self, metric: Metric, elapsed: Duration) {
        self.observe_many(metric, elapsed, 1);
    }

    /// Adds `count` equal observations to a histogram.
    pub(crate) fn observe_many(&self, metric: Metric, elapsed: Duration, count: u64) {
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.iter().position(|bound| us <= *bound).unwrap_or(OVERFLOW);
        let cells = &self.metrics.slots[self.slot].0[OFFSETS[metric as usize]..];
        cells[bucket].fetch_add(count, Ordering::Relaxed);
        cells[SUM_US].fetch_add(us.saturating_mul(count), Ordering::Relaxed);
    }

    /// The number of a site in [`Recorder::count_site`]: the same for a name as long as the process runs.
    pub(crate) fn site_number(&self, name: &str) -> u32 {
        self.metrics.sites.number(name)
    }

    /// Counts a response of a site. Only for the recorders of workers. `class`: index in [`STATUS_CLASSES`].
    pub(crate) fn count_site(&self, site: u32, class: usize, is_hit: bool) {
        self.metrics.sites.count(self.slot, site, class, is_hit);
    }

    /// Counts bytes of a site's response. Only for the recorders of workers.
    pub(crate) fn add_site_bytes(&self, site: u32, bytes: u64, is_hit: bool) {
        self.metrics.sites.add_bytes(self.slot, site, bytes, is_hit);
    }

    /// The number of a rule in [`Recorder::count_rule`]: the same for a name as long as the process runs.
    pub(crate) fn rule_number(&self, site: &Arc<str>, rule: &Arc<str>) -> u32 {
        self.metrics.rules.number(site, rule)
    }

    /// Counts a request that a rule matched. Only for the recorders of workers.
    pub(crate) fn count_rule(&self, rule: u32) {
        self.metrics.rules.count(self.slot, rule);
    }

    /// The metrics of this recorder.
    #[cfg(test)]
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn cell(&self, metric: Metric, label: usize) -> &AtomicU64 {
        let row = &TABLE[metric as usize];
        debug_assert!(row.kind != Kind::Histogram, "{} is a histogram: observe", row.name);
        debug_assert!(label < row.label.1.len().max(1), "{} has no label {label}", row.name);
        &self.metrics.slots[self.slot].0[OFFSETS[metric as usize] + label]
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder({})", self.slot)
    }
}

/// Sums the workers' cells at each scrape.
struct Sum(Arc<[Cells]>);

impl Collector for Sum {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (row, first) in TABLE.iter().zip(OFFSETS) {
            encode_row(&mut encoder, row, |cell| sum(&self.0, first + cell))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sum")
    }
}

fn encode_row(
    encoder: &mut DescriptorEncoder<'_>,
    row: &Row,
    cell: impl Fn(usize) -> u64,
) -> Result<(), fmt::Error> {
    let metric_type = match row.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    let mut encoder = encoder.encode_descriptor(row.name, row.help, None, metric_type)?;
    let (label, values) = row.label;
    match row.kind {
        Kind::Histogram => {
            let bounds = BUCKETS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> =
                bounds.enumerate().map(|(at, bound)| (bound, cell(at))).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(cell(SUM_US) as f64 / 1e6, count, &buckets, None)
        }
        // A worker that only takes away holds a negative number; the sum does not.
        Kind::Gauge => ConstGauge::new(cell(0) as i64).encode(encoder),
        Kind::Counter if values.is_empty() => ConstCounter::new(cell(0)).encode(encoder),
        Kind::Counter => values.iter().enumerate().try_for_each(|(at, value)| {
            let labels = [(label, *value)];
            ConstCounter::new(cell(at)).encode(encoder.encode_family(&labels)?)
        }),
    }
}

fn sum(slots: &[Cells], cell: usize) -> u64 {
    slots.iter().fold(0, |sum, cells| sum.wrapping_add(cells.0[cell].load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_sums_what_all_workers_counted() {
        let metrics = Metrics::new(2);
        metrics.worker(0).count(Metric::Requests);
        metrics.worker(1).add(Metric::Requests, 2);
        metrics.background().count_labelled(Metric::Responses, 1);
        let text = metrics.encode();
        assert!(text.contains("skerry_requests_total 3\n"), "{text}");
        assert!(text.contains("skerry_responses_total{class=\"2xx\"} 1\n"), "{text}");
    }

    #[test]
    fn a_gauge_may_rise_on_one_worker_and_fall_on_another() {
        let metrics = Metrics::new(2);
        metrics.worker(0).add(Metric::Connections, 3);
        metrics.worker(1).subtract(Metric::Connections, 1);
        assert!(metrics.encode().contains("skerry_connections 2\n"));
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        let metrics = Metrics::new(1);
        metrics.worker(0).observe(Metric::RequestSeconds, Duration::from_micros(80));
        metrics.worker(0).observe(Metric::RequestSeconds, Duration::from_secs(60));
        let text = metrics.encode();
        assert!(
            text.contains("skerry_request_duration_seconds_bucket{le=\"0.0001\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("skerry_request_duration_seconds_bucket{le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.contains("skerry_request_duration_seconds_count 2\n"), "{text}");
        assert_eq!(metrics.total(Metric::RequestSeconds, 0), 2);
    }
}
