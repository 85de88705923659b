//! Reads `[[listeners]]`, `[tls]` and `[limits]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::super::reader::Section;
use super::super::values::Size;
use crate::clock::Clock;
use crate::fields::TARGET_BYTES_MAX;
use crate::listen::{
    self, CertificateFiles, Limits, Listener, TicketKeys, TlsError, TlsSettings, TlsVersion,
    Transport,
};

pub(crate) fn read_listeners(root: &Section<'_>) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    for section in root.list("listeners") {
        let mut listener = Listener::plain(SocketAddr::from(([0, 0, 0, 0], 0)));
        if !section.read("address", &mut listener.address) {
            section.missing("address", "the listener has no \"address\", such as \"0.0.0.0:443\"");
        }
        listener.name = listener.address.to_string();
        section.read("name", &mut listener.name);
        let mut has_tls = false;
        section.read("tls", &mut has_tls);
        listener.transport = if has_tls { Transport::Tls } else { Transport::Plain };
        section.read("proxy_protocol", &mut listener.proxy_protocol);
        let taken =
            |other: &Listener| other.address == listener.address && listener.address.port() != 0;
        if listeners.iter().any(taken) {
            section.mistake(
                "address",
                format!(
                    "two listeners have the address {}: remove one, or change its port",
                    listener.address
                ),
            );
        }
        if listeners.iter().any(|other| other.name == listener.name) && section.has("name") {
            let name = &listener.name;
            section.mistake(
                "name",
                format!("two listeners have the name {name:?}: choose another one"),
            );
        }
        if let Some(advice) = advice_on_port(&listener) {
            section.warn("address", advice);
        }
        listeners.push(listener);
    }
    listeners
}

/// Browsers speak TLS at port 443, and none at port 80.
fn advice_on_port(listener: &Listener) -> Option<String> {
    match (listener.address.port(), listener.transport) {
        (443, Transport::Plain) => {
            Some("browsers expect TLS at port 443: set tls = true".to_owned())
        }
        (80, Transport::Tls) => {
            Some("browsers expect no TLS at port 80: remove \"tls\", or write port 443".to_owned())
        }
        _ => None,
    }
}

/// Returns the names of all certificates in files.
pub(crate) fn read_tls(section: &Section<'_>, tls: &mut TlsSettings) -> Vec<String> {
    let mut names = Vec::new();
    for section in section.list("certificates") {
        let mut files =
            CertificateFiles { certificate: PathBuf::new(), key: PathBuf::new(), names: None };
        for (name, path) in [("certificate", &mut files.certificate), ("key", &mut files.key)] {
            if !section.read_file(name, path) {
                section.missing(
                    name,
                    &format!("the certificate has no {name:?}: expected the path of a PEM file"),
                );
            }
        }
        section.read("names", &mut files.names);
        if section.has("certificate") && section.has("key") {
            names.extend(check_certificate(&section, &files));
        }
        tls.certificates.push(files);
    }
    section.read("default_certificate", &mut tls.default_certificate);
    if tls.default_certificate > 0 && tls.default_certificate >= tls.certificates.len() {
        let count = tls.certificates.len();
        section.mistake(
            "default_certificate",
            format!("expected the number of a certificate, counted from 0, found {}: [[tls.certificates]] lists {count}", tls.default_certificate),
        );
    }
    section.read("refuse_misdirected", &mut tls.refuse_misdirected);
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    section.choice("version_min", &mut tls.version_min, &versions);
    let mut rotation = Duration::from_secs(12 * 3600);
    let rotates = section.has("ticket_rotation");
    section.read_above_zero("ticket_rotation", &mut rotation, "");
    let mut path = PathBuf::new();
    let mut lifetime = Duration::from_secs(24 * 3600);
    let from_file = section.read_file("ticket_key_file", &mut path);
    let lives = section.has("ticket_lifetime");
    section.read_above_zero("ticket_lifetime", &mut lifetime, "");
    if from_file && rotates {
        section.mistake("ticket_rotation", "\"ticket_rotation\" has no effect with \"ticket_key_file\": rotate keys by changing the file");
    }
    if lives && !from_file {
        section.mistake(
            "ticket_lifetime",
            "\"ticket_lifetime\" has no effect without \"ticket_key_file\": tickets of generated keys are valid for two rotations",
        );
    }
    tls.ticket_keys = if from_file {
        TicketKeys::File { path, lifetime }
    } else {
        TicketKeys::Generated { rotate_every: rotation }
    };
    if let Err(error) = listen::check_ticket_keys(&tls.ticket_keys) {
        section.mistake_in_file("ticket_key_file", error.to_string());
    }
    section.read_above_zero("reload_interval", &mut tls.reload_interval, "");
    names
}

/// Reads the files of a certificate in the same way as the listeners. Returns its names.
fn check_certificate(section: &Section<'_>, files: &CertificateFiles) -> Vec<String> {
    let (error, name) = match listen::check_certificate(files) {
        Ok(certificate) => {
            if let Some((from, until)) = certificate.validity {
                warn_of_dates(section, files, from, until);
            }
            return certificate.names;
        }
        Err(error @ TlsError::Pair { .. }) => (error, "key"),
        Err(error) => match &error {
            TlsError::File { path, .. } if *path == files.key => (error, "key"),
            _ => (error, "certificate"),
        },
    };
    section.mistake_in_file(name, error.to_string());
    Vec::new()
}

fn warn_of_dates(
    section: &Section<'_>,
    files: &CertificateFiles,
    from: SystemTime,
    until: SystemTime,
) {
    let now = Clock::system().now();
    let file = files.certificate.display();
    let date = httpdate::fmt_http_date;
    if until <= now {
        let until = date(until);
        let message = format!("{file} has expired on {until}: clients refuse it; renew it");
        section.warn("certificate", message);
    } else if from > now {
        let (from, now) = (date(from), date(now));
        let message = format!(
            "{file} is not valid before {from}, and it is {now} now: clients refuse it; correct this machine's time, or name another certificate"
        );
        section.warn("certificate", message);
    }
}

pub(crate) fn read_limits(section: &Section<'_>, limits: &mut Limits) {
    section.read_within("connections_max", &mut limits.connections_max, 1..);
    section.read_within(
        "connections_per_address_max",
        &mut limits.connections_per_address_max,
        1..,
    );
    section.read_within("handshakes_max", &mut limits.handshakes_max, 1..);
    section.read("requests_per_connection_max", &mut limits.requests_per_connection_max);
    if limits.requests_per_connection_max == Some(0) {
        let message = "expected at least 1, found 0: write \"none\" for no limit";
        section.mistake("requests_per_connection_max", message);
    }
    section.read_size_within("header_bytes_max", &mut limits.header_bytes_max, 8 << 10..=1 << 20);
    section.read_within("headers_max", &mut limits.headers_max, 8..=1000);
    section.read_size_within("uri_bytes_max", &mut limits.uri_bytes_max, 256..=TARGET_BYTES_MAX);
    section.read_above_zero("handshake_timeout", &mut limits.handshake_timeout, "");
    section.read_above_zero("header_timeout", &mut limits.header_timeout, "");
    let each = "set requests_per_connection_max = 1 to close each connection after its response";
    section.read_above_zero("idle_timeout", &mut limits.idle_timeout, each);
    section.read_above_zero("body_idle_timeout", &mut limits.body_idle_timeout, "");
    section.read_size("body_rate_min", &mut limits.body_rate_min);
    let any = "set body_rate_min = 0 to accept any rate";
    section.read_above_zero("body_rate_grace", &mut limits.body_rate_grace, any);
    let mut unsent = Size(limits.unsent_bytes_max.into());
    section.read_within("unsent_bytes_max", &mut unsent, Size(16 << 10)..=Size(4 << 20));
    limits.unsent_bytes_max = unsent.0 as u32;
    let section = section.section("http2");
    section.read_within("streams_max", &mut limits.h2.streams_max, 1..=10_000);
    section.read("requests_per_second_max", &mut limits.h2.requests_per_second_max);
    section.read("resets_per_10s_max", &mut limits.h2.resets_per_10s_max);
    let mut window = Size(limits.h2.window_bytes.into());
    section.read_within("window", &mut window, Size(64 << 10)..=Size(64 << 20));
    limits.h2.window_bytes = window.0 as u32;
}
