//! What the commands other than `run` do: they talk to a running node's admin API.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// An answer of the admin API.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl Answer {
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

/// One call of the admin API at `address`.
///
/// # Errors
/// Nobody listens there, or the answer is not HTTP.
pub fn call(
    address: SocketAddr,
    method: &str,
    target: &str,
    fields: &[String],
    body: &str,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut head = format!("{method} {target} HTTP/1.0\r\nHost: {address}\r\n");
    for field in fields {
        head.push_str(field);
        head.push_str("\r\n");
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other(format!("{address} does not speak HTTP")))
}

/// What a node says of a purge, in words.
pub fn receipt(receipt: &Value) -> String {
    let ms = |name: &str| receipt[name].as_f64();
    match (receipt["state"].as_str(), ms("ms"), ms("durable_ms")) {
        (Some("applied"), Some(in_force), Some(durable)) => {
            format!("in force after {in_force:.1} ms, durable after {durable:.1} ms")
        }
        (Some("applied"), ..) => "applied".to_owned(),
        _ => match ms("heard_ms_ago") {
            Some(ago) => format!("pending, last heard {:.1} s ago", ago / 1e3),
            None => "pending".to_owned(),
        },
    }
}

/// 256 random bits, to be shown as a token.
pub fn new_secret() -> String {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
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
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// `GET /store` as a table for people.
pub fn store_table(stat: &Value) -> String {
    let mut table = String::new();
    let mut line = |words: [&str; 6]| {
        let [name, rest @ ..] = words;
        let rest: Vec<_> = rest.iter().map(|word| format!("{word:>12}")).collect();
        table.push_str(format!("{name:<24}{}", rest.join("")).trim_end());
        table.push('\n');
    };
    let memory = &stat["memory"];
    line(["", "bytes", "of", "pieces", "", ""]);
    let (bytes, max) = (size(&memory["bytes"]), size(&memory["bytes_max"]));
    line(["memory", &bytes, &max, &memory["pieces"].to_string(), "", ""]);
    line([""; 6]);
    line(["directory", "service", "of", "written", "read", "queued"]);
    for it in stat["directories"].as_array().into_iter().flatten() {
        let sizes = ["bytes_max", "written_bytes", "read_bytes", "queued_bytes"];
        let [max, written, read, queued] = sizes.map(|name| size(&it[name]));
        let word = |name: &str| it[name].as_str().unwrap_or("?").to_owned();
        line([&word("path"), &word("service"), &max, &written, &read, &queued]);
    }
    line([""; 6]);
    line(["site", "in memory", "objects", "on disk", "objects", "of"]);
    for it in stat["sites"].as_array().into_iter().flatten() {
        let sizes = ["memory_bytes", "disk_bytes", "disk_bytes_max"];
        let [memory, disk, max] = sizes.map(|name| size(&it[name]));
        let [objects, on_disk] =
            ["memory_objects", "disk_objects"].map(|name| it[name].to_string());
        line([it["site"].as_str().unwrap_or("?"), &memory, &objects, &disk, &on_disk, &max]);
    }
    table
}

/// Three digits and a unit; what is not there is a dash.
fn size(bytes: &Value) -> String {
    let Some(bytes) = bytes.as_u64() else { return "-".to_owned() };
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
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
    fn an_error_of_the_api_is_told_in_its_own_words() {
        let body = r#"{"title":"Bad Request","detail":"an empty tag"}"#;
        let answer = parse(&format!("HTTP/1.0 400 Bad Request\r\na: b\r\n\r\n{body}")).unwrap();
        assert_eq!(answer.json().unwrap_err(), "an empty tag");
    }

    #[test]
    fn a_receipt_is_told_in_words() {
        let told = |text| receipt(&serde_json::from_str(text).unwrap());
        let applied = told(r#"{"state":"applied","ms":0.52,"durable_ms":3.08}"#);
        assert_eq!(applied, "in force after 0.5 ms, durable after 3.1 ms");
        let pending = told(r#"{"state":"pending","heard_ms_ago":1500}"#);
        assert_eq!(pending, "pending, last heard 1.5 s ago");
    }

    #[test]
    fn a_url_survives_a_query_parameter() {
        assert_eq!(percent_encode("https://a/b?c=d&e"), "https%3A%2F%2Fa%2Fb%3Fc%3Dd%26e");
    }
}
