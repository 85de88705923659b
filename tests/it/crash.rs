//! Kills a node at random moments under load and purges, and checks its responses after the restart: no
//! purged response, no wrong byte, and nearly all stored responses are still there.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::victim::Victim;
use crate::harness::{Answer, Origin, exchange, until};

const KEYS: usize = 80;
const CONFIG: &str = "[store]\nmemory = \"32MiB\"\ndisk = \"256MiB\"\nadmission = \"all\"\n\
                      preallocate = false\n[log]\naccess = \"off\"\n";

/// One number for each key.
type Versions = Arc<[AtomicU64; KEYS]>;

fn versions() -> Versions {
    Arc::new(std::array::from_fn(|_| AtomicU64::new(1)))
}

/// A body that tells which it is, of up to three slices.
fn body(key: u64, version: u64) -> Vec<u8> {
    let length = 16 + ((key * 7919 + version * 104_729) % 600_000) as usize;
    let rest = (0_u64..).map(|at| (at ^ (version << 20) ^ (key << 40)).wrapping_mul(0x9e37_79b9));
    let words = [key, version].into_iter().chain(rest);
    let mut bytes: Vec<u8> = words.take(length.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(length);
    bytes
}

fn origin(current: Versions) -> Origin {
    Origin::start(move |request| {
        let key: usize = request.target[3..].parse().expect("a key");
        let version = current[key].load(Ordering::SeqCst);
        let tag = format!("\"{key}-{version}\"");
        Answer::ok(body(key as u64, version)).fresh_for(36_000).header("ETag", &tag)
    })
}

/// The response for a key after a restart.
struct Came {
    version: u64,
    is_hit: bool,
}

/// Fails when the node is gone; panics when a byte is wrong.
fn fetch(node: SocketAddr, key: usize) -> std::io::Result<Came> {
    let mut stream = TcpStream::connect(node)?;
    write!(stream, "GET /o/{key} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut is_hit, mut ok) = (String::new(), None, false, false);
    while reader.read_line(&mut line)? > 2 {
        let lower = line.to_ascii_lowercase();
        ok |= lower.starts_with("http/1.1 200");
        is_hit |= lower.starts_with("cache-status:") && lower.contains("; hit");
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse::<usize>().ok();
        }
        line.clear();
    }
    let Some(length) = length.filter(|_| ok) else { return Err(ErrorKind::UnexpectedEof.into()) };
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    if bytes.len() != length {
        return Err(Error::new(ErrorKind::UnexpectedEof, "cut"));
    }
    let version = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
    assert!(bytes == body(key as u64, version), "a wrong byte in key {key}, version {version}");
    Ok(Came { version, is_hit })
}

/// Whether the node says that it has it, durably.
fn purge(admin: SocketAddr, key: usize) -> std::io::Result<bool> {
    let body = format!("{{\"url\": \"http://a.test/o/{key}\"}}");
    let mut stream = TcpStream::connect(admin)?;
    write!(
        stream,
        "POST /purge HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 20"))
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A gauge of the node's one directory.
fn of_directory(admin: SocketAddr, gauge: &str) -> u64 {
    let metrics = exchange(admin, "localhost", "/metrics", &[]);
    let name = format!("skerry_store_directory_{gauge}{{");
    let line = metrics.text().lines().find(|line| line.starts_with(&name)).expect("a gauge");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// Sends requests and purges until the node is killed. The version increases before each purge, so that a
/// response after the acknowledgement shows whether it is old.
fn load(
    node: &Victim,
    mut state: u64,
    current: &Versions,
    purged: &Versions,
    tried: &Versions,
) -> Vec<JoinHandle<()>> {
    let (address, admin) = (node.address, node.admin);
    let clients = (0..4).map(|worker| {
        state = state.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
        let (mut state, current, purged, tried) =
            (state, current.clone(), purged.clone(), tried.clone());
        std::thread::spawn(move || {
            loop {
                let key = random(&mut state) as usize % KEYS;
                // One purges, so that a key's versions go up one after the other.
                if worker == 0 && random(&mut state).is_multiple_of(4) {
                    let version = current[key].fetch_add(1, Ordering::SeqCst) + 1;
                    tried[key].store(version, Ordering::SeqCst);
                    match purge(admin, key) {
                        Ok(true) => purged[key].store(version, Ordering::SeqCst),
                        Ok(false) | Err(_) => return,
                    }
                } else {
                    let least = purged[key].load(Ordering::SeqCst);
                    let Ok(came) = fetch(address, key) else { return };
                    assert!(came.version >= least, "key {key}: {} < {least}", came.version);
                }
            }
        })
    });
    clients.collect()
}

fn kill_again_and_again(kills: u64) {
    let mut state = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8) | 1;
    if let Some(seed) = std::env::var("SKERRY_CRASH_SEED").ok().and_then(|seed| seed.parse().ok()) {
        state = seed;
    }
    println!("SKERRY_CRASH_SEED={state}");
    let (current, purged, tried) = (versions(), versions(), versions());
    let origin = origin(current.clone());
    let directory = tempfile::tempdir().expect("a directory");
    let mut on_disk: BTreeSet<usize> = BTreeSet::new();
    let (mut expected, mut hits) = (0, 0);
    for round in 0..=kills {
        let node = Victim::start(directory.path(), &origin.url(), CONFIG);
        until("the disk is read back", || of_directory(node.admin, "in_service") == 1);
        for key in 0..KEYS {
            let least = purged[key].load(Ordering::SeqCst);
            let came = fetch(node.address, key).expect("it serves");
            assert!(came.version >= least, "round {round}, key {key}: {} came back", came.version);
            // The response was on disk, but a purge may have removed it since.
            if on_disk.contains(&key) && tried[key].load(Ordering::SeqCst) <= came.version {
                expected += 1;
                hits += usize::from(came.is_hit);
            }
        }
        until("all is written", || of_directory(node.admin, "queued_bytes") == 0);
        let before: Vec<u64> = tried.iter().map(|it| it.load(Ordering::SeqCst)).collect();
        let millis = random(&mut state) % 400;
        let clients = load(&node, random(&mut state), &current, &purged, &tried);
        pause(Duration::from_millis(millis));
        node.kill();
        for client in clients {
            client.join().expect("what it saw was right");
        }
        let untouched = |key: &usize| tried[*key].load(Ordering::SeqCst) == before[*key];
        on_disk = (0..KEYS).filter(untouched).collect();
    }
    println!("{kills} kills: {hits} of {expected} that were on disk hit again");
    assert!(expected > kills as usize, "too few to tell: {expected}");
    assert!(hits * 100 >= expected * 95, "{hits} of {expected}");
}

fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[test]
fn a_killed_node_comes_back_warm_and_serves_nothing_purged() {
    kill_again_and_again(10);
}

#[test]
#[ignore = "some minutes: for the figures in docs"]
fn two_hundred_kills_lose_nothing() {
    kill_again_and_again(200);
}
