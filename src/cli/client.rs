//! A client of the admin API, with or without TLS, and the command-line arguments that select the node.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use super::CommandError;

/// The node whose admin API a command calls, and the credentials for it.
#[derive(Debug, Args)]
pub(crate) struct AdminArguments {
    /// Admin API address of the node, HOST:PORT.
    #[arg(
        long = "admin",
        default_value = "127.0.0.1:9180",
        env = "SKERRY_ADMIN",
        value_parser = parse_address
    )]
    pub(super) address: String,
    /// Admin API token, if the node requires one.
    #[arg(long, env = "SKERRY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Use TLS and verify the node's certificate against this CA certificate (PEM).
    #[arg(long, value_name = "FILE", env = "SKERRY_CA")]
    ca: Option<PathBuf>,
    /// Client certificate (PEM), if the node requires one.
    #[arg(long, value_name = "FILE", env = "SKERRY_CERTIFICATE", requires_all = ["ca", "key"])]
    certificate: Option<PathBuf>,
    /// Private key of the client certificate (PEM).
    #[arg(long, value_name = "FILE", env = "SKERRY_KEY", requires = "certificate")]
    key: Option<PathBuf>,
}

/// A call of the admin API.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdminCall<'a> {
    /// GET or POST.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Header field lines, `Name: value`.
    pub fields: &'a [String],
    /// The JSON body; empty for GET.
    pub body: &'a str,
    /// How long the node may take for its response.
    pub timeout: Duration,
}

impl<'a> AdminCall<'a> {
    /// A GET.
    pub(super) fn get(target: &'a str) -> Self {
        Self { method: "GET", target, fields: &[], body: "", timeout: RESPONSE_TIMEOUT }
    }

    /// A POST.
    pub(super) fn post(target: &'a str, body: &'a str) -> Self {
        Self { method: "POST", target, fields: &[], body, timeout: RESPONSE_TIMEOUT }
    }
}

/// A response of the admin API.
#[derive(Debug)]
pub(super) struct AdminReply {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl AdminArguments {
    /// Makes a call and returns the JSON of its response.
    ///
    /// # Errors
    /// One line: why the call failed, and what to do about it.
    pub(super) fn call_json(&self, call: &AdminCall<'_>) -> Result<Value, CommandError> {
        self.json(&self.call(call)?)
    }

    /// The JSON of a successful response.
    ///
    /// # Errors
    /// One line: why the call failed, and what to do about it.
    pub(super) fn json(&self, reply: &AdminReply) -> Result<Value, CommandError> {
        let (address, status) = (&self.address, reply.status);
        let value: Value = serde_json::from_str(&reply.body).map_err(|_| {
            CommandError::Unreachable(format!(
                "{address} is not an admin API: it responded with status {status} and without JSON; give the node's admin.address with --admin"
            ))
        })?;
        let detail = value["detail"].as_str().unwrap_or(&reply.body);
        match status {
            0..=399 => Ok(value),
            401 => Err(CommandError::Refused(format!(
                "admin API at {address}: {detail}; {}",
                self.credentials_advice(detail)
            ))),
            _ => Err(CommandError::Refused(detail.to_owned())),
        }
    }

    /// The token; an empty one counts as not given.
    fn token(&self) -> Option<&str> {
        self.token.as_deref().filter(|token| !token.is_empty())
    }

    fn credentials_advice(&self, detail: &str) -> &'static str {
        if self.token().is_some() {
            "check --token or SKERRY_TOKEN"
        } else if detail.starts_with("a client certificate signed by") {
            "give --certificate and --key"
        } else {
            "give --token or set SKERRY_TOKEN, or give --certificate and --key"
        }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// One line: why there is no HTTP response, and what to do about it.
    pub(super) fn call(&self, call: &AdminCall<'_>) -> Result<AdminReply, CommandError> {
        let mut response = Vec::new();
        self.exchange(call, |part| {
            response.extend_from_slice(part);
            Ok(!is_complete(&response))
        })?;
        let advice = "check that --admin is the admin address, and give --ca if it uses TLS";
        let address = &self.address;
        parse(&String::from_utf8_lossy(&response)).ok_or_else(|| {
            let message = format!("admin API at {address}: the response is not HTTP; {advice}");
            CommandError::Unreachable(message)
        })
    }

    /// Makes a call whose response has no end, and passes on each line of it until `on_line` returns
    /// false or the node closes the connection.
    ///
    /// # Errors
    /// As [`AdminArguments::call`]; the response is an error; or an error of `on_line`.
    pub(super) fn stream(
        &self,
        call: &AdminCall<'_>,
        mut on_line: impl FnMut(&str) -> Result<bool, CommandError>,
    ) -> Result<(), CommandError> {
        let call = AdminCall { timeout: STREAM_TIMEOUT, ..*call };
        let mut received = Vec::new();
        let mut has_head = false;
        self.exchange(&call, |part| {
            received.extend_from_slice(part);
            if !has_head {
                let Some(end) = end_of_head(&received) else { return Ok(true) };
                has_head = received.starts_with(b"HTTP/1.") && received[8..].starts_with(b" 200");
                if !has_head {
                    return Ok(!is_complete(&received));
                }
                received.drain(..end);
            }
            while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = received.drain(..=end).collect();
                if !on_line(String::from_utf8_lossy(&line).trim_end())? {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        if has_head {
            return Ok(());
        }
        match parse(&String::from_utf8_lossy(&received)) {
            Some(reply) => self.json(&reply).map(drop),
            None => Err(CommandError::Unreachable(format!(
                "admin API at {}: the response is not HTTP",
                self.address
            ))),
        }
    }

    /// Sends a request and passes the bytes of the response to `on_part`, until it returns false or the
    /// connection ends.
    fn exchange(
        &self,
        call: &AdminCall<'_>,
        on_part: impl FnMut(&[u8]) -> Result<bool, CommandError>,
    ) -> Result<(), CommandError> {
        let address = &self.address;
        check_token(self.token())?;
        let request = self.request(call);
        let failure = |why: &dyn Display, advice: &str| {
            CommandError::Unreachable(format!("admin API at {address}: {why}; {advice}"))
        };
        let explain = |error: ExchangeError, advice: &str| match error {
            ExchangeError::Command(error) => error,
            ExchangeError::Io(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                failure(
                    &format!("no complete response within {} s", call.timeout.as_secs()),
                    "check that --admin is the node's admin.address",
                )
            }
            ExchangeError::Io(error) => failure(&error, advice),
        };
        let stream = connect(address, call.timeout).map_err(|error| {
            explain(error.into(), "is the node running, and does --admin match its admin.address?")
        })?;
        match &self.ca {
            None => exchange(stream, &request, on_part).map_err(|error| {
                explain(error, "if the admin API uses TLS, give its CA certificate with --ca")
            }),
            Some(ca) => exchange(self.tls(stream, ca)?, &request, on_part).map_err(|error| {
                let advice = match &error {
                    ExchangeError::Io(error) => tls_advice(error),
                    ExchangeError::Command(_) => "",
                };
                explain(error, advice)
            }),
        }
    }

    fn request(&self, call: &AdminCall<'_>) -> String {
        let AdminCall { method, target, body, .. } = call;
        let mut request = format!("{method} {target} HTTP/1.0\r\nHost: {}\r\n", self.address);
        let token = self.token().into_iter().map(|token| format!("Authorization: Bearer {token}"));
        for field in call.fields.iter().cloned().chain(token) {
            request.push_str(&field);
            request.push_str("\r\n");
        }
        request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        request
    }

    fn tls(
        &self,
        stream: TcpStream,
        ca: &Path,
    ) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("--ca", ca)? {
            roots.add(certificate).map_err(|error| in_file("--ca", ca, &error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider's suites cover all versions")
            .with_root_certificates(roots);
        let config = match (&self.certificate, &self.key) {
            (Some(chain), Some(key)) => {
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                    in_file("--key", key, &format!("expected a private key in PEM: {error}"))
                })?;
                builder
                    .with_client_auth_cert(certificates("--certificate", chain)?, secret)
                    .map_err(|error| match error {
                        rustls::Error::InconsistentKeys(_) => {
                            format!(
                                "--certificate {} and --key {} do not match",
                                chain.display(),
                                key.display()
                            )
                        }
                        error => in_file("--certificate", chain, &error),
                    })?
            }
            _ => builder.with_no_client_auth(),
        };
        let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|error| format!("--admin: {error}"))?;
        let connection = ClientConnection::new(Arc::new(config), name)
            .map_err(|error| format!("TLS connection to {}: {error}", self.address))?;
        Ok(StreamOwned::new(connection, stream))
    }
}

fn parse_address(text: &str) -> Result<String, &'static str> {
    let expected = "expected HOST:PORT, such as 127.0.0.1:9180";
    // As the node prints it at its start.
    let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let (host, port) = text.rsplit_once(':').ok_or(expected)?;
    let is_valid = !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok();
    if is_valid { Ok(text.to_owned()) } else { Err(expected) }
}

/// Parses an IP address.
pub(super) fn parse_ip(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "expected an IP address, such as 192.0.2.1")
}

/// Refuses a token that cannot stand in a header field, without showing it.
fn check_token(token: Option<&str>) -> Result<(), String> {
    let expected =
        "--token or SKERRY_TOKEN: expected visible ASCII characters, without spaces and line ends";
    let is_visible = |token: &str| token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.is_none_or(is_visible) { Ok(()) } else { Err(expected.to_owned()) }
}

fn connect(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Why an exchange ended early.
enum ExchangeError {
    Io(io::Error),
    /// The reader of the response has failed.
    Command(CommandError),
}

impl From<io::Error> for ExchangeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Sends a request and passes on its response, until `on_part` returns false or the connection ends.
fn exchange(
    mut stream: impl Read + Write,
    request: &str,
    mut on_part: impl FnMut(&[u8]) -> Result<bool, CommandError>,
) -> Result<(), ExchangeError> {
    stream.write_all(request.as_bytes())?;
    let mut part = [0; 16 << 10];
    loop {
        match stream.read(&mut part) {
            // A peer that closes without TLS close_notify has still sent its whole response.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(()),
            Ok(length) if on_part(&part[..length]).map_err(ExchangeError::Command)? => {}
            Ok(_) => return Ok(()),
        }
    }
}

/// The offset after the head of a response.
fn end_of_head(response: &[u8]) -> Option<usize> {
    response.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|head| head + 4)
}

fn is_complete(response: &[u8]) -> bool {
    let Some(end) = end_of_head(response) else { return false };
    let text = String::from_utf8_lossy(&response[..end]);
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| response.len() >= end + length)
}

fn tls_advice(error: &io::Error) -> &'static str {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => "the CA in --ca has not signed the node's certificate (admin.tls.certificate)",
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(reason)))
            if format!("{reason:?}").contains("CaUsedAsEndEntity") =>
        {
            "the node's certificate (admin.tls.certificate) is a CA certificate (basicConstraints CA:TRUE): issue one with CA:FALSE"
        }
        Some(rustls::Error::InvalidCertificate(_)) => {
            "the node's certificate (admin.tls.certificate) must be valid now and include the host of --admin"
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "the other side does not speak TLS: if the admin API uses plain HTTP, leave out --ca"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "the node requires a client certificate (--certificate) signed by its admin.tls.client_ca"
        }
        _ => "check that --admin is the node's admin.address",
    }
}

fn certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| in_file(option, file, &error))?;
    match certificates.is_empty() {
        true => Err(in_file(option, file, &"the file has no certificate")),
        false => Ok(certificates),
    }
}

fn in_file(option: &str, file: &Path, why: &dyn Display) -> String {
    format!("{option} {}: {why}", file.display())
}

fn parse(response: &str) -> Option<AdminReply> {
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(AdminReply { status, body: body.to_owned() })
}

/// Text for a query parameter: everything but unreserved characters percent-encoded.
pub(super) fn percent_encode(text: &str) -> String {
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
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream may say nothing for this long.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> AdminArguments {
        let address = "edge:9180".to_owned();
        AdminArguments { address, token: None, ca: None, certificate: None, key: None }
    }

    #[test]
    fn an_api_error_is_reported_with_its_detail() {
        let check = |status: &str, body: &str, expected: &str| {
            let reply = parse(&format!("HTTP/1.0 {status}\r\na: b\r\n\r\n{body}")).unwrap();
            let error = arguments().json(&reply).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("400 Bad Request", r#"{"detail":"tag must not be empty"}"#, "tag must not be empty");
        check("401 Unauthorized", r#"{"detail":"missing token"}"#, "missing token; give --token");
        check("421 Misdirected Request", "no site", "edge:9180 is not an admin API");
        check("400 Bad Request", "", "edge:9180 is not an admin API: it responded with status 400");
    }

    #[test]
    fn a_response_is_complete_with_its_content_length() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
        assert!(!is_complete(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"));
        assert!(!is_complete(format!("{head}o").as_bytes()));
        assert!(is_complete(format!("{head}ok").as_bytes()));
        assert!(!is_complete(b"HTTP/1.1 200 OK\r\n\r\nok"), "ends with the connection");
    }

    #[test]
    fn addresses_and_tokens_are_checked_before_the_call() {
        for valid in ["127.0.0.1:9180", "[::1]:9180", "edge-1.example.org:1"] {
            assert!(parse_address(valid).is_ok(), "{valid}");
        }
        assert_eq!(parse_address("http://127.0.0.1:9180/"), Ok("127.0.0.1:9180".to_owned()));
        for invalid in ["", "foo", "127.0.0.1", ":9180", "127.0.0.1:99999", "http://a:1/x"] {
            assert!(parse_address(invalid).is_err(), "{invalid}");
        }
        assert!(check_token(None).is_ok() && check_token(Some("abc")).is_ok());
        let error = check_token(Some("a\nb")).unwrap_err();
        assert!(error.starts_with("--token or SKERRY_TOKEN: ") && !error.contains("a\nb"));
    }

    #[test]
    fn a_query_parameter_is_percent_encoded() {
        assert_eq!(percent_encode("https://a/b?c=d&e"), "https%3A%2F%2Fa%2Fb%3Fc%3Dd%26e");
    }
}
