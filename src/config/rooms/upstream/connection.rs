//! Reads the options of `[pools.NAME]` for connections to origins and exchanges on them.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::config::names::is_host_name;
use crate::config::reader::{Reader, Section};
use crate::config::remedy;
use crate::config::values::{Value, text, text_or};
use crate::upstream::{self, ClientCertificate, HostHeader, PoolSettings, Protocol, ProxyVersion};

/// Reads the options and tables.
pub(super) fn read_connection(section: &Section<'_>, pool: &mut PoolSettings) {
    let mut host = Host(pool.host_header.clone());
    section.read("host", &mut host);
    pool.host_header = host.0;
    section.choice(
        "protocol",
        &mut pool.protocol,
        &[("auto", Protocol::Auto), ("http1", Protocol::Http1), ("http2", Protocol::Http2)],
    );
    read_proxy(section, pool);
    section.read_within("connections_max", &mut pool.connections_max, 1..);
    section.read("requests_max", &mut pool.requests_max);
    let queue = section.section("queue");
    queue.read_within("length", &mut pool.queue.length, 0..=QUEUE_LENGTH_MAX);
    let waits = Duration::from_millis(1)..=Duration::from_secs(3600);
    queue.read_within("wait_max", &mut pool.queue.wait_max, waits);
    section.read_size_within("header_bytes_max", &mut pool.header_bytes_max, 8 << 10..=1 << 20);
    section.read_within("header_count_max", &mut pool.header_count_max, 8..=1000);
    section.read_within("streams_max", &mut pool.streams_max, 1..=10_000);
    read_origin_tls(&section.section("tls"), pool);

    let deadlines = section.section("deadlines");
    deadlines.read_above_zero("connect", &mut pool.deadlines.connect, "");
    deadlines.read_above_zero("tls", &mut pool.deadlines.tls, "");
    deadlines.read_above_zero("first_byte", &mut pool.deadlines.first_byte, "");
    deadlines.read_above_zero("between_bytes", &mut pool.deadlines.between_bytes, "");
    deadlines.read("total", &mut pool.deadlines.total);
    if pool.deadlines.total.is_some_and(|total| total.is_zero()) {
        deadlines.mistake("total", "expected more than 0s, found 0s: write \"none\" for no limit");
    }
    deadlines.read("expect_continue", &mut pool.deadlines.expect_continue);
    deadlines.read_above_zero("tunnel_idle", &mut pool.deadlines.tunnel_idle, "");

    let keep_alive = section.section("keep_alive");
    let unused = "set idle_max = 0 to reuse no connection";
    keep_alive.read_above_zero("idle", &mut pool.keep_alive.idle, unused);
    keep_alive.read_above_zero("age_max", &mut pool.keep_alive.age_max, unused);
    keep_alive.read("idle_max", &mut pool.keep_alive.idle_max);
}

fn read_proxy(section: &Section<'_>, pool: &mut PoolSettings) {
    let versions = [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];
    let words: Vec<_> = std::iter::once(("none", None))
        .chain(versions.map(|(word, version)| (word, Some(version))))
        .collect();
    section.choice("send_proxy_protocol", &mut pool.send_proxy, &words);
    match (pool.send_proxy, pool.protocol) {
        (Some(_), Protocol::Http2) => section.mistake(
            "send_proxy_protocol",
            "a connection with a PROXY protocol header serves one client, and HTTP/2 is for many: set \
             protocol = \"http1\"",
        ),
        (Some(_), Protocol::Auto) => pool.protocol = Protocol::Http1,
        _ => {}
    }
}

fn read_origin_tls(section: &Section<'_>, pool: &mut PoolSettings) {
    let tls = &mut pool.tls;
    section.read("verify", &mut tls.verify);
    section.read("system_roots", &mut tls.system_roots);
    section.read("ca_files", &mut tls.ca_files);
    let mut server_name = tls.server_name.clone().map(ServerName);
    section.read("server_name", &mut server_name);
    tls.server_name = server_name.map(|name| name.0);
    if tls.verify && !tls.system_roots && !section.has_items("ca_files") {
        let message = "without the system's CA certificates no origin is trusted: set \"ca_files\", or remove \"system_roots\"";
        section.mistake("system_roots", message);
    }
    let mut client = ClientCertificate { chain: PathBuf::new(), key: PathBuf::new() };
    let chain = section.read_file("client_certificate", &mut client.chain);
    let key = section.read_file("client_key", &mut client.key);
    match (chain, key) {
        (true, true) => tls.client_certificate = Some(client),
        (false, false) => {}
        _ => section.mistake(
            "client_certificate",
            "set both \"client_certificate\" and \"client_key\", or neither",
        ),
    }
    for (name, error) in upstream::file_mistakes(pool) {
        section.mistake_in_file(name, error.to_string());
    }
}

/// The name of a server in TLS.
struct ServerName(Arc<str>);

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Value for ServerName {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "the host name that the certificate has, or \"none\"";
        let is_name = |name: &str| is_host_name(name) || name.parse::<IpAddr>().is_ok();
        let parse = |name: &str| is_name(name).then(|| Self(name.into()));
        text_or(value, reader, expected, parse, remedy::host)
    }
}

/// `"preserve"`, `"origin"` or a host.
#[derive(Debug)]
struct Host(HostHeader);

impl Value for Host {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "\"preserve\", \"origin\" or a host";
        text(value, reader, expected, |text| match text {
            "preserve" => Some(Self(HostHeader::Preserve)),
            "origin" => Some(Self(HostHeader::Origin)),
            host => {
                let authority: http::uri::Authority = host.parse().ok()?;
                let field = authority.as_str().parse().ok()?;
                (!host.contains('@')).then_some(Self(HostHeader::Fixed(field)))
            }
        })
    }
}

/// Above it, requests that wait have little hope, and walking over them takes time.
const QUEUE_LENGTH_MAX: usize = 100_000;
