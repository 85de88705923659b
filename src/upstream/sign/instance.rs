//! Temporary credentials of the role of a cloud instance, from its metadata service. Only version 2 of the protocol is
//! spoken (IMDSv2), whose session token keeps requests that something else was tricked into making out:
//!
//! ```text
//!  PUT /latest/api/token ──▶ session token
//!  GET /latest/meta-data/iam/security-credentials/      (with the token) ──▶ the role
//!  GET /latest/meta-data/iam/security-credentials/ROLE  (with the token) ──▶ keys, and when they expire
//! ```
//!
//! Blocking, and for the background only. Each request has a connection of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::credentials::Credentials;

/// Credentials that expire.
pub(super) struct InstanceCredentials {
    pub(super) credentials: Credentials,
    pub(super) expire: SystemTime,
}

/// Asks the metadata service at `endpoint`.
///
/// # Errors
/// The request that failed, and why.
pub(super) fn fetch(endpoint: SocketAddr) -> Result<InstanceCredentials, String> {
    let deadline = Instant::now() + TIME_MAX;
    let ask = |method: &str, path: &str, field: &str| {
        let text = exchange(endpoint, method, path, field, deadline);
        text.map_err(|error| format!("{method} http://{endpoint}{path}: {error}"))
    };
    let token = ask("PUT", TOKEN_PATH, &format!("{TTL_FIELD}: {TOKEN_TTL_S}"))?;
    let token = word(&token).ok_or("the session token is not one line of visible characters")?;
    let with_token = format!("{TOKEN_FIELD}: {token}");
    let roles = ask("GET", ROLES_PATH, &with_token)?;
    let role = roles.lines().next().unwrap_or_default().trim();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
    if role.is_empty() || !role.bytes().all(is_name) {
        return Err("the instance has no role: attach an instance profile to it".to_owned());
    }
    parse(&ask("GET", &format!("{ROLES_PATH}{role}"), &with_token)?)
        .map_err(|error| format!("the credentials of role {role}: {error}"))
}

/// The document of a role's credentials. No error quotes it.
fn parse(text: &str) -> Result<InstanceCredentials, String> {
    let document: Value = serde_json::from_str(text).map_err(|_| "expected JSON".to_owned())?;
    let text = |name: &str| document[name].as_str().map(str::to_owned);
    let code = text("Code").unwrap_or_default();
    if code != "Success" {
        return Err(format!("Code is {code:?}: expected \"Success\""));
    }
    let expire = text("Expiration").and_then(|time| humantime::parse_rfc3339(&time).ok());
    let expire = expire.ok_or("Expiration: expected a time such as 2026-01-01T00:00:00Z")?;
    let [key_id, secret_key, token] = ["AccessKeyId", "SecretAccessKey", "Token"].map(text);
    let credentials = Credentials::new(
        ("AccessKeyId", key_id),
        ("SecretAccessKey", secret_key),
        ("Token", token),
    )?;
    Ok(InstanceCredentials { credentials, expire })
}

/// The content of the response to a request without content.
fn exchange(
    endpoint: SocketAddr,
    method: &str,
    path: &str,
    field: &str,
    deadline: Instant,
) -> Result<String, String> {
    let left = || deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    let late = || format!("no response within {TIME_MAX:?}");
    let text = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => late(),
        _ => error.to_string(),
    };
    let time = left().ok_or_else(late)?;
    let mut stream = TcpStream::connect_timeout(&endpoint, time).map_err(text)?;
    stream.set_write_timeout(Some(time)).map_err(text)?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {endpoint}\r\n{field}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(text)?;
    let mut received = Vec::new();
    loop {
        if let Some(content) = content(&received)? {
            return Ok(content);
        }
        stream.set_read_timeout(Some(left().ok_or_else(late)?)).map_err(text)?;
        let mut piece = [0; 4096];
        let bytes = stream.read(&mut piece).map_err(text)?;
        if bytes == 0 {
            return Err("the response ended early".to_owned());
        }
        received.extend_from_slice(&piece[..bytes]);
        if received.len() > RESPONSE_BYTES_MAX {
            return Err(format!("the response is larger than {} KiB", RESPONSE_BYTES_MAX >> 10));
        }
    }
}

/// The content of a response with status 200. `None`: more bytes are needed.
fn content(received: &[u8]) -> Result<Option<String>, String> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(received).map_err(|_| "the response is not HTTP/1.1".to_owned())?;
    let httparse::Status::Complete(head) = parsed else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    if status != 200 {
        return Err(format!("status {status}: expected 200"));
    }
    let length = response.headers.iter().find(|it| it.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|it| std::str::from_utf8(it.value).ok()?.trim().parse().ok());
    let length: usize = length.ok_or("the response has no Content-Length")?;
    let content = received[head..].get(..length);
    let text = content.map(|content| String::from_utf8(content.to_vec()));
    text.transpose().map_err(|_| "the response is not UTF-8 text".to_owned())
}

/// The text without white space around it, if it can be a field's value.
fn word(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
}

const TOKEN_PATH: &str = "/latest/api/token";
const ROLES_PATH: &str = "/latest/meta-data/iam/security-credentials/";
const TTL_FIELD: &str = "X-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_FIELD: &str = "X-aws-ec2-metadata-token";
/// A session token is used for two requests.
const TOKEN_TTL_S: u32 = 60;
/// For all three requests: the service is on the same machine.
const TIME_MAX: Duration = Duration::from_secs(3);
const RESPONSE_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const KEYS: &str = r#"{"Code": "Success", "AccessKeyId": "ASIA1", "SecretAccessKey": "hunter2",
        "Token": "to/ken==", "Expiration": "2026-01-01T00:00:00Z"}"#;

    /// A metadata service that gives these responses one after another, and the requests that it got.
    fn service(responses: Vec<String>) -> (SocketAddr, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let thread = thread::spawn(move || {
            let answer = |response: String| {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("a request");
                    request.push(byte[0]);
                }
                stream.write_all(response.as_bytes()).expect("a response");
                String::from_utf8(request).expect("text")
            };
            responses.into_iter().map(answer).collect()
        });
        (address, thread)
    }

    fn ok(content: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{content}", content.len())
    }

    #[test]
    fn keys_are_asked_for_with_a_session_token() {
        let (address, service) = service(vec![ok("TOKEN==\n"), ok("edge-role\n"), ok(KEYS)]);
        let found = fetch(address).expect("credentials");
        assert_eq!(found.credentials.key_id(), "ASIA1");
        assert_eq!(found.credentials.secret_key(), "hunter2");
        assert_eq!(humantime::format_rfc3339(found.expire).to_string(), "2026-01-01T00:00:00Z");
        let requests = service.join().expect("no panic");
        let starts = [
            "PUT /latest/api/token HTTP/1.1\r\n",
            "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\n",
            "GET /latest/meta-data/iam/security-credentials/edge-role HTTP/1.1\r\n",
        ];
        for (request, start) in requests.iter().zip(starts) {
            assert!(request.starts_with(start), "{request}");
        }
        assert!(requests[0].contains("\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n"));
        for request in &requests[1..] {
            assert!(request.contains("\r\nX-aws-ec2-metadata-token: TOKEN==\r\n"), "{request}");
        }
    }

    #[test]
    fn each_failure_names_its_request_and_quotes_no_secret() {
        let check = |responses: &[String], expected: &str| {
            let (address, service) = service(responses.to_vec());
            let error = fetch(address).err().expect(expected);
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
            service.join().expect("it was asked that often");
        };
        let (token, role) = (ok("TOKEN"), ok("role"));
        let forbidden = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned();
        check(std::slice::from_ref(&forbidden), "/latest/api/token: status 403: expected 200");
        check(&[token.clone(), forbidden], "/security-credentials/: status 403");
        check(&[ok("two words")], "the session token is not one line");
        check(&[token.clone(), ok("")], "attach an instance profile");
        check(&[token.clone(), ok("../../evil\n")], "the instance has no role");
        check(&[token.clone(), role.clone(), ok("hunter2")], "expected JSON");
        let failed = KEYS.replace("Success", "Failed");
        check(&[token.clone(), role.clone(), ok(&failed)], "Code is \"Failed\"");
        let undated = KEYS.replace("2026-", "soon ");
        check(&[token.clone(), role.clone(), ok(&undated)], "Expiration: expected a time");
        let keyless = KEYS.replace("SecretAccessKey", "Secret");
        check(&[token.clone(), role, ok(&keyless)], "SecretAccessKey is not set");
        check(&["hello\r\n\r\n".to_owned()], "not HTTP/1.1");
        check(&["HTTP/1.1 200 OK\r\n\r\n".to_owned()], "no Content-Length");
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nTOK".to_owned();
        check(&[cut], "the response ended early");
    }

    #[test]
    fn a_service_that_is_silent_is_waited_for_a_bounded_time() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let began = Instant::now();
        let error = fetch(listener.local_addr().expect("its address")).err();
        assert!(error.expect("no response").ends_with("no response within 3s"));
        assert!(began.elapsed() >= TIME_MAX);
    }
}
