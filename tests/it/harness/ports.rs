//! Ports for servers that tests start as programs. No test process beside this one gets the same port, and the system gives none of them to
//! an outgoing connection, as it does with ports that a socket bound to port 0 had.

use std::fs::{File, create_dir_all};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The locks of the ports that this process has, until it ends.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// An address on loopback that nothing listens at.
pub fn free_address() -> SocketAddr {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = std::env::temp_dir().join("skerry-test-ports");
    create_dir_all(&folder).expect("a folder for locks");
    // Processes start at different ports.
    let first = std::process::id() as usize * 101 + taken.len();
    for number in 0..PORTS.len() {
        let port = PORTS.start + ((first + number) % PORTS.len()) as u16;
        let lock = File::create(folder.join(port.to_string())).expect("a lock");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let is_free = || TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
        if lock.try_lock().is_ok() && is_free() {
            taken.push(lock);
            return address;
        }
    }
    panic!("all ports from {} to {} are taken", PORTS.start, PORTS.end - 1);
}

/// Below those that Linux gives to outgoing connections.
const PORTS: Range<u16> = 10_000..20_000;
