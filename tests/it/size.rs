//! Bodies larger than memory, and more connections than a thread-per-connection server could have.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Answer, Origin, Process, until};

const LARGE: u64 = 2 << 30;
const MEMORY_MAX: u64 = 300 << 20;

/// Bytes that tell where they stand: the block's length divides no power of two.
fn block() -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..999_983).map(|_| next()).collect()
}

/// An origin of one large body, made as it goes.
fn large_origin(cache_control: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\nCache-Control: {cache_control}\r\n\
                 Content-Type: application/octet-stream\r\nConnection: close\r\n\r\n"
            );
            let block = block();
            let mut left = LARGE as usize;
            let mut went_well = stream.write_all(head.as_bytes()).is_ok();
            while went_well && left > 0 {
                let length = block.len().min(left);
                went_well = stream.write_all(&block[..length]).is_ok();
                left -= length;
            }
        }
    });
    address
}

/// Reads the body and compares it, byte by byte.
fn read_large(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("the node listens");
    stream
        .write_all(b"GET /large HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n")
        .expect("it reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    let block = block();
    let mut buffer = vec![0; 1 << 20];
    let (mut at, mut read) = (0, 0);
    loop {
        let length = stream.read(&mut buffer).expect("the body comes");
        if length == 0 {
            break;
        }
        let mut bytes = &buffer[..length];
        while !bytes.is_empty() {
            let length = bytes.len().min(block.len() - at);
            assert!(bytes[..length] == block[at..at + length], "other bytes near {read}");
            (bytes, at) = (&bytes[length..], (at + length) % block.len());
            read += length as u64;
        }
    }
    assert_eq!(read, LARGE);
}

fn check_large(cache_control: &'static str) {
    let origin = large_origin(cache_control);
    let node = Process::start(&format!(
        "[log]\naccess = \"off\"\n[store]\nmemory = \"32MiB\"\ndisk = \"256MiB\"\n\
         [pools.main]\norigins = \"http://{origin}\"\n[sites.all]\nhosts = \"*\"\n"
    ));
    read_large(node.http);
    let most = node.memory("VmHWM");
    println!("{cache_control}: at most {} MiB resident", most >> 20);
    assert!(most <= MEMORY_MAX, "{} MiB", most >> 20);
}

#[test]
#[ignore = "takes a minute; tests/run asks for it"]
fn two_gibibytes_pass_through_the_cache_in_little_memory() {
    check_large("max-age=60");
}

#[test]
#[ignore = "takes a minute; tests/run asks for it"]
fn two_gibibytes_pass_by_the_cache_in_little_memory() {
    check_large("no-store");
}

#[test]
fn ten_thousand_idle_connections_take_little_memory_each() {
    // In a process of its own: the other tests of this one have thousands of files open.
    let own = std::env::current_exe().expect("a path");
    let test = "size::ten_thousand_idle_connections_in_a_process_of_their_own";
    let output = Command::new(own).args(["--exact", test, "--ignored", "--nocapture"]).output();
    let output = output.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "the test above runs it, in a process of its own"]
fn ten_thousand_idle_connections_in_a_process_of_their_own() {
    let wanted = CONNECTIONS as u64 + 500;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < wanted) {
        println!("skipped: this machine allows only {:?} descriptors", limit.maximum);
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("within the maximum");
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(600));
    let node = Process::start(&format!(
        "[limits]\nconnections_per_address_max = 20000\nheader_timeout = \"10m\"\nidle_timeout = \"10m\"\n\
         [log]\naccess = \"off\"\n[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n\
         [pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    let get = |stream: &mut TcpStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n").expect("it reads");
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer).expect("an answer");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{length} bytes");
    };
    get(&mut TcpStream::connect(node.http).expect("it listens"));
    let before = node.memory("VmRSS");
    let mut clients: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(node.http).expect("it takes another one"))
        .collect();
    // Every other one has asked something; the rest only stand there.
    clients.iter_mut().step_by(2).for_each(get);
    let each = || node.memory("VmRSS").saturating_sub(before) / CONNECTIONS as u64;
    until("idle connections are small", || each() <= EACH_BYTES_MAX);
    println!("{} bytes each", each());
    // None of them was dropped for another.
    clients.iter_mut().step_by(997).for_each(get);
    assert_eq!(origin.request_count(), 1);
}

const CONNECTIONS: usize = 10_000;
const EACH_BYTES_MAX: u64 = 24 << 10;
