//! The commands other than `run`. Most of them call the admin API of a running node.

mod arguments;
pub mod place;
pub mod top;

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

pub use arguments::arguments;

/// An answer of the admin API.
#[derive(Debug)]
pub struct AdminReply {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl AdminReply {
    /// The body as JSON, or why the call failed, in one line.
    pub fn json(self) -> Result<Value, String> {
        let value: Value = serde_json::from_str(&self.body)
            .map_err(|_| format!("{} {}", self.status, self.body.trim()))?;
        if self.status < 400 {
            return Ok(value);
        }
        Err(value["detail"].as_str().unwrap_or(&self.body).to_owned())
    }
}

/// `1 site`, `2 sites`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The address of a node's admin API, and the TLS files for it.
#[derive(Clone, Debug)]
pub struct AdminClient {
    /// `host:port`.
    pub address: String,
    /// The CA certificate that must have signed the node's certificate. `None`: plain HTTP.
    pub ca: Option<PathBuf>,
    /// The client certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// One call of the admin API.
///
/// # Errors
/// One line: why the call failed, and what to do about it.
pub fn call(
    admin: &AdminClient,
    method: &str,
    target: &str,
    fields: &[String],
    body: &str,
) -> Result<AdminReply, String> {
    let address = &admin.address;
    let mut head = format!("{method} {target} HTTP/1.0\r\nHost: {address}\r\n");
    for field in fields {
        head.push_str(field);
        head.push_str("\r\n");
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    let trouble =
        |why: &dyn Display, advice: &str| format!("admin API at {address}: {why}; {advice}");
    let stream = connect(address).map_err(|error| {
        trouble(&error, "is the node running, and does --admin match its admin.address?")
    })?;
    let answer = match &admin.ca {
        None => exchange(stream, &head).map_err(|error| {
            trouble(&error, "if the admin API uses TLS, give its CA certificate with --ca")
        })?,
        Some(ca) => {
            let stream = tls(stream, ca, admin)?;
            exchange(stream, &head).map_err(|error| trouble(&error, tls_advice(&error)))?
        }
    };
    let advice = "check that --admin is the admin address, and give --ca if it uses TLS";
    parse(&answer).ok_or_else(|| trouble(&"the response is not HTTP", advice))
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("expected HOST:PORT");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A peer that closes without TLS close_notify has still sent its whole response.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        _ => {}
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn tls(
    stream: TcpStream,
    ca: &Path,
    admin: &AdminClient,
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| in_file(ca, &error))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider's suites cover all versions")
        .with_root_certificates(roots);
    let config = match &admin.certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| in_file(key, &error))?;
            builder
                .with_client_auth_cert(certificates(chain)?, secret)
                .map_err(|error| in_file(chain, &error))?
        }
    };
    let host = admin.address.rsplit_once(':').map_or(&*admin.address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|error| format!("--admin: {error}"))?;
    let connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|error| format!("TLS connection to {}: {error}", admin.address))?;
    Ok(StreamOwned::new(connection, stream))
}

fn tls_advice(error: &io::Error) -> &'static str {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => "the CA in --ca has not signed the node's certificate (admin.tls.certificate)",
        Some(rustls::Error::InvalidCertificate(_)) => {
            "the node's certificate (admin.tls.certificate) must be valid now and include the host of --admin"
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "if the admin API uses plain HTTP, leave out --ca"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "the node requires a client certificate (--certificate) signed by its admin.tls.client_ca"
        }
        _ => "check that --admin is the node's admin.address",
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    certificates.map_err(|error| in_file(file, &error))
}

fn in_file(file: &Path, why: &dyn Display) -> String {
    format!("{}: {why}", file.display())
}

/// A node's receipt of a purge, as text.
pub fn receipt(receipt: &Value) -> String {
    let ms = |name: &str| receipt[name].as_f64();
    match (receipt["state"].as_str(), ms("ms"), ms("durable_ms")) {
        (Some("applied"), Some(in_force), Some(durable)) => {
            format!("in force after {in_force:.1} ms, durable after {durable:.1} ms")
        }
        (Some("applied"), ..) => "applied".to_owned(),
        _ => match ms("heard_ms_ago") {
            Some(ago) => format!("pending, last heartbeat {:.1} s ago", ago / 1e3),
            None => "pending".to_owned(),
        },
    }
}

/// A new token: 256 random bits in hex.
pub fn new_secret() -> String {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(answer: &str) -> Option<AdminReply> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(AdminReply { status, body: body.to_owned() })
}

/// Text for a query parameter: everything but unreserved characters percent-encoded.
pub fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than the longest `--timeout` of a purge (one minute).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);

/// `GET /store` as a table for people.
pub fn store_table(stat: &Value) -> String {
    let mut table = String::new();
    let mut line = |words: [&str; 7]| {
        let [name, rest @ ..] = words;
        let rest: Vec<_> = rest.iter().map(|word| format!("{word:>12}")).collect();
        table.push_str(format!("{name:<24}{}", rest.join("")).trim_end());
        table.push('\n');
    };
    let memory = &stat["memory"];
    line(["", "used", "max", "pieces", "", "", ""]);
    let (bytes, max) = (size(&memory["bytes"]), size(&memory["bytes_max"]));
    line(["memory", &bytes, &max, &memory["pieces"].to_string(), "", "", ""]);
    line([""; 7]);
    line(["directory", "state", "used", "max", "written", "read", "queued"]);
    let directories = || stat["directories"].as_array().into_iter().flatten();
    for it in directories() {
        let sizes = ["bytes", "bytes_max", "written_bytes", "read_bytes", "queued_bytes"];
        let [has, max, written, read, queued] = sizes.map(|name| size(&it[name]));
        let word = |name: &str| it[name].as_str().unwrap_or("?").to_owned();
        line([&word("path"), &word("service"), &has, &max, &written, &read, &queued]);
    }
    for it in directories().filter(|it| it["short_of_space"] == true) {
        let path = it["path"].as_str().unwrap_or("?");
        let why = "cannot grow: its file system has no free space beyond store.disk_reserve";
        line([&format!("{path} {why}"), "", "", "", "", "", ""]);
    }
    line([""; 7]);
    line(["site", "memory", "objects", "disk", "objects", "disk max", ""]);
    for it in stat["sites"].as_array().into_iter().flatten() {
        let sizes = ["memory_bytes", "disk_bytes", "disk_bytes_max"];
        let [memory, disk, max] = sizes.map(|name| size(&it[name]));
        let [objects, on_disk] =
            ["memory_objects", "disk_objects"].map(|name| it[name].to_string());
        line([it["site"].as_str().unwrap_or("?"), &memory, &objects, &disk, &on_disk, &max, ""]);
    }
    table
}

/// Three digits and a unit; `-` for a missing value.
fn size(bytes: &Value) -> String {
    bytes.as_u64().map_or_else(|| "-".to_owned(), |bytes| size_text(bytes as f64))
}

/// `1.5 GiB`: three digits and a unit.
pub fn size_text(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit > 0 && value < 100.0 { 1 } else { 0 };
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_error_is_reported_with_its_detail() {
        let body = r#"{"title":"Bad Request","detail":"an empty tag"}"#;
        let answer = parse(&format!("HTTP/1.0 400 Bad Request\r\na: b\r\n\r\n{body}")).unwrap();
        assert_eq!(answer.json().unwrap_err(), "an empty tag");
    }

    #[test]
    fn a_receipt_is_formatted_as_text() {
        let told = |text| receipt(&serde_json::from_str(text).unwrap());
        let applied = told(r#"{"state":"applied","ms":0.52,"durable_ms":3.08}"#);
        assert_eq!(applied, "in force after 0.5 ms, durable after 3.1 ms");
        let pending = told(r#"{"state":"pending","heard_ms_ago":1500}"#);
        assert_eq!(pending, "pending, last heartbeat 1.5 s ago");
    }

    #[test]
    fn a_directory_that_cannot_grow_says_so_in_the_table() {
        let stat = serde_json::json!({"memory": {}, "sites": [], "directories": [{
            "path": "/cache", "service": "serving", "bytes": 3 << 20, "bytes_max": 1 << 30,
            "short_of_space": true, "written_bytes": 0, "read_bytes": 0, "queued_bytes": 0,
        }]});
        let table = store_table(&stat);
        assert!(table.contains("serving     3.0 MiB     1.0 GiB"), "{table}");
        assert!(table.contains("/cache cannot grow: its file system has no free space"), "{table}");
    }

    #[test]
    fn a_url_survives_a_query_parameter() {
        assert_eq!(percent_encode("https://a/b?c=d&e"), "https%3A%2F%2Fa%2Fb%3Fc%3Dd%26e");
    }
}
