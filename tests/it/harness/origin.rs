//! A scripted HTTP/1.1 origin: a closure returns the response to each request, and all requests are
//! recorded. A response can wait at a gate, end early, or consist of any bytes. Each connection has a
//! thread.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::until;

/// A running origin. It runs until the end of the test process or [`Origin::kill`].
pub struct Origin {
    pub address: SocketAddr,
    received: Arc<(Mutex<Vec<ReceivedRequest>>, Condvar)>,
    connections: Arc<Connections>,
}

/// The open connections, by number.
#[derive(Default)]
struct Connections {
    is_killed: AtomicBool,
    open: Mutex<HashMap<usize, TcpStream>>,
}

/// A request that the origin received.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Number of the connection, from 0.
    pub connection: usize,
}

impl ReceivedRequest {
    /// The value of the first field of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let field = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_str())
    }
}

/// A barrier that opens once and then lets all threads pass.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn is_open(&self) -> bool {
        *self.0.0.lock().unwrap()
    }

    /// Waits until the gate is open.
    ///
    /// # Panics
    /// The gate does not open within 30 s.
    pub fn pass(&self) {
        let is_open = self.0.0.lock().unwrap();
        let (is_open, _) = self.0.1.wait_timeout_while(is_open, LONG, |is_open| !*is_open).unwrap();
        assert!(*is_open, "the gate was not opened within 30 s");
    }
}

/// A response of the origin.
#[derive(Clone, Default)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    is_chunked: bool,
    cut_after: Option<usize>,
    head_gate: Option<Gate>,
    body_gate: Option<(usize, Gate)>,
    raw: Option<Vec<u8>>,
    after_raw: AfterRaw,
}

/// The end of the connection after the bytes of [`Answer::raw`] are sent.
#[derive(Clone, Copy, Default)]
enum AfterRaw {
    #[default]
    Close,
    KeepOpen,
    Echo,
    SendAgain,
}

impl Answer {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    /// A response with status 206; the caller adds `Content-Range`.
    pub fn part(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 206, ..Self::ok(body) }
    }

    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Sends exactly these bytes, then closes the connection.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { raw: Some(bytes.into()), ..Self::default() }
    }

    /// After the raw bytes, echoes all input.
    pub fn echoing(mut self) -> Self {
        self.after_raw = AfterRaw::Echo;
        self
    }

    /// After the raw bytes, keeps the connection open for the next request.
    pub fn kept_open(mut self) -> Self {
        self.after_raw = AfterRaw::KeepOpen;
        self
    }

    /// Repeats the raw bytes until the peer closes the connection.
    pub fn without_end(mut self) -> Self {
        self.after_raw = AfterRaw::SendAgain;
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `Cache-Control: max-age=…`
    pub fn fresh_for(self, seconds: u32) -> Self {
        self.header("Cache-Control", &format!("max-age={seconds}"))
    }

    pub fn chunked(mut self) -> Self {
        self.is_chunked = true;
        self
    }

    /// Closes the connection after this many bytes of the body.
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    /// Sends nothing until the gate is open.
    pub fn behind(mut self, gate: &Gate) -> Self {
        self.head_gate = Some(gate.clone());
        self
    }

    /// Sends the header section and this many bytes of the body, and the rest when the gate is open.
    pub fn pause_at(mut self, bytes: usize, gate: &Gate) -> Self {
        self.body_gate = Some((bytes, gate.clone()));
        self
    }

    /// Writes the response. Returns whether the connection stays open.
    fn write(&self, stream: &mut TcpStream, is_head: bool) -> std::io::Result<bool> {
        if let Some(gate) = &self.head_gate {
            gate.pass();
        }
        if let Some(raw) = &self.raw {
            stream.write_all(raw)?;
            match self.after_raw {
                AfterRaw::Close => {}
                AfterRaw::KeepOpen => return Ok(true),
                AfterRaw::Echo => drop(std::io::copy(&mut stream.try_clone()?, stream)?),
                AfterRaw::SendAgain => loop {
                    stream.write_all(raw)?;
                },
            }
            return Ok(false);
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let has_body = self.status != 304 && self.status != 204;
        if self.is_chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if has_body
            && !self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length"))
        {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        if is_head || !has_body {
            return Ok(true);
        }
        let end = self.cut_after.unwrap_or(self.body.len()).min(self.body.len());
        let pause = self.body_gate.as_ref().map_or(0, |(bytes, _)| (*bytes).min(end));
        self.write_piece(stream, &self.body[..pause])?;
        if let Some((_, gate)) = &self.body_gate {
            gate.pass();
        }
        self.write_piece(stream, &self.body[pause..end])?;
        if self.cut_after.is_some() {
            return Ok(false);
        }
        if self.is_chunked {
            stream.write_all(b"0\r\n\r\n")?;
        }
        Ok(true)
    }

    fn write_piece(&self, stream: &mut TcpStream, piece: &[u8]) -> std::io::Result<()> {
        if piece.is_empty() || !self.is_chunked {
            return stream.write_all(piece);
        }
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
        stream.write_all(piece)?;
        stream.write_all(b"\r\n")
    }
}

impl Origin {
    /// Starts on a free loopback port.
    pub fn start(answer: impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), answer)
    }

    /// Starts at an address, such as that of a killed origin.
    pub fn start_at(
        address: SocketAddr,
        answer: impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let received = Arc::new((Mutex::default(), Condvar::new()));
        let (answer, record) = (Arc::new(answer), received.clone());
        let connections = Arc::new(Connections::default());
        let all = connections.clone();
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { continue };
                if all.is_killed.load(Ordering::SeqCst) {
                    return;
                }
                all.open.lock().unwrap().insert(connection, stream.try_clone().expect("a handle"));
                let (answer, record, all) = (answer.clone(), record.clone(), all.clone());
                std::thread::spawn(move || {
                    // An error is ignored: the node may close the connection at any time.
                    let _ = serve_connection(stream, connection, &*answer, &record);
                    if let Some(ended) = all.open.lock().unwrap().remove(&connection) {
                        let _ = ended.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        Self { address, received, connections }
    }

    /// Closes every connection and refuses new ones.
    pub fn kill(&self) {
        self.connections.is_killed.store(true, Ordering::SeqCst);
        // This connection wakes the accept loop, which then ends.
        drop(TcpStream::connect(self.address));
        until("the origin is gone", || TcpStream::connect(self.address).is_err());
        for stream in self.connections.open.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.connections.open.lock().unwrap().len()
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests received so far.
    pub fn received(&self) -> Vec<ReceivedRequest> {
        self.lock().clone()
    }

    /// The number of requests received so far.
    pub fn request_count(&self) -> usize {
        self.lock().len()
    }

    /// Waits until `count` requests have arrived.
    pub fn wait_for_requests(&self, count: usize) {
        let received = self.lock();
        let (received, _) = self
            .received
            .1
            .wait_timeout_while(received, LONG, |received| received.len() < count)
            .unwrap();
        assert!(received.len() >= count, "{} of {count} requests arrived", received.len());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ReceivedRequest>> {
        self.received.0.lock().unwrap()
    }
}

fn serve_connection(
    mut stream: TcpStream,
    connection: usize,
    answer: &(dyn Fn(&ReceivedRequest) -> Answer + Send + Sync),
    record: &(Mutex<Vec<ReceivedRequest>>, Condvar),
) -> std::io::Result<()> {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader, connection)? {
        record.0.lock().unwrap().push(request.clone());
        record.1.notify_all();
        if !answer(&request).write(&mut stream, request.method == "HEAD")? {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(
    reader: &mut BufReader<TcpStream>,
    connection: usize,
) -> std::io::Result<Option<ReceivedRequest>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers = read_fields(reader)?;
    let mut request = ReceivedRequest { method, target, headers, body: Vec::new(), connection };
    if request.header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16)
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData))?;
            let mut chunk = vec![0; size + 2];
            if size == 0 {
                // Like some real origins, merge trailers into the header fields.
                request.headers.extend(read_fields(reader)?);
                break;
            }
            reader.read_exact(&mut chunk)?;
            request.body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = request.header("content-length") {
        let mut body = vec![0; length.parse().expect("a length")];
        reader.read_exact(&mut body)?;
        request.body = body;
    }
    Ok(Some(request))
}

pub(super) fn read_fields(reader: &mut impl BufRead) -> std::io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(fields) };
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
}

const LONG: Duration = Duration::from_secs(30);
