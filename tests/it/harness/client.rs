//! An HTTP/1.1 client with one blocking connection. It sends requests as given, valid or not, and returns
//! responses as received.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::origin::read_fields;

/// The five parts of a request; `Content-Length` is added if it has a body.
pub struct Request<'a> {
    pub method: &'a str,
    pub host: &'a str,
    pub target: &'a str,
    /// Further field lines.
    pub fields: &'a [&'a str],
    pub body: &'a [u8],
}

/// A client with one persistent connection.
pub struct Client {
    reader: BufReader<TcpStream>,
}

/// A response with its body.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body ended as its framing states; false if the connection ended before.
    pub is_complete: bool,
}

impl Response {
    /// The values of all fields of this name, joined with `, `; empty if there is none.
    pub fn header(&self, name: &str) -> String {
        let fields = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        fields.map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text body")
    }

    pub fn is_hit(&self) -> bool {
        self.header("cache-status").contains("; hit")
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the node listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { reader: BufReader::new(stream) }
    }

    pub fn local_address(&self) -> SocketAddr {
        self.reader.get_ref().local_addr().expect("a connected socket")
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).expect("the node reads");
    }

    /// Sends a `GET` request. Each of `fields` is a field line.
    pub fn get(&mut self, host: &str, target: &str, fields: &[&str]) -> Response {
        self.request(Request { method: "GET", host, target, fields, body: b"" })
    }

    /// Sends a request and reads the response.
    pub fn request(&mut self, request: Request) -> Response {
        let Request { method, host, target, fields, body } = request;
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
        for field in fields {
            head.push_str(field);
            head.push_str("\r\n");
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
        self.send(body);
        self.read(method == "HEAD")
    }

    /// Reads the next final response and skips interim ones.
    pub fn read(&mut self, is_head: bool) -> Response {
        loop {
            let response = self.read_any(is_head);
            if response.status >= 200 || response.status == 101 {
                return response;
            }
        }
    }

    /// Reads a line and returns it without its end.
    pub fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line");
        line.truncate(line.trim_end().len());
        line
    }

    /// Reads exactly `count` bytes.
    pub fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).expect("as many bytes");
        bytes
    }

    /// Reads until the node closes the connection.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset ends the input as well.
        let _ = self.reader.read_to_end(&mut bytes);
        bytes
    }

    /// Closes the connection for writing.
    pub fn finish(&mut self) {
        self.reader.get_mut().shutdown(std::net::Shutdown::Write).expect("an open connection");
    }

    /// Waits for input or the end of the connection. Returns whether it is closed.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok([]) | Err(_))
    }

    /// Reads the next response, interim or final.
    pub fn read_any(&mut self, is_head: bool) -> Response {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a status line");
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let headers = read_fields(&mut self.reader).expect("a header section");
        let mut response = Response { status, headers, body: Vec::new(), is_complete: true };
        if !is_head && status >= 200 && status != 204 && status != 304 {
            response.is_complete = self.read_body(&mut response).is_ok();
        }
        response
    }

    fn read_body(&mut self, response: &mut Response) -> std::io::Result<()> {
        if response.header("transfer-encoding") == "chunked" {
            return self.read_chunks(&mut response.body);
        }
        match response.header("content-length").parse::<u64>() {
            Ok(length) => {
                let read = (&mut self.reader).take(length).read_to_end(&mut response.body)?;
                if read as u64 == length { Ok(()) } else { Err(truncated()) }
            }
            Err(_) => self.reader.read_to_end(&mut response.body).map(drop),
        }
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) -> std::io::Result<()> {
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(|_| truncated())?;
            if size == 0 {
                read_fields(&mut self.reader)?;
                return Ok(());
            }
            let read = (&mut self.reader).take(size as u64).read_to_end(body)?;
            if read != size {
                return Err(truncated());
            }
            self.reader.read_line(&mut line)?;
        }
    }
}

/// Sends bytes on a new connection and reads the reply until the node closes the connection.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut client = Client::connect(address);
    // An error is ignored: a node that refuses a request early does not read all of it.
    let _ = client.reader.get_mut().write_all(bytes);
    String::from_utf8_lossy(&client.read_to_end()).into_owned()
}

/// Sends a `GET` request on a new connection.
pub fn exchange(address: SocketAddr, host: &str, target: &str, fields: &[&str]) -> Response {
    Client::connect(address).get(host, target, fields)
}

fn truncated() -> std::io::Error {
    std::io::ErrorKind::UnexpectedEof.into()
}

/// The current value of a metric in `/metrics` of the admin API, summed over its labels. `name` may restrict the first
/// labels: `skerry_x_total{kind="a"`.
pub fn metric(admin: SocketAddr, name: &str) -> f64 {
    let metrics = exchange(admin, "localhost", "/metrics", &[]);
    let text = metrics.text();
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ', ',', '}']))
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
