//! Reads from the kernel the state of the sockets of a port, including closed ones.

use std::net::SocketAddr;

/// A line of `/proc/net/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The TCP state, such as [`ESTABLISHED`].
    pub state: u8,
    /// Bytes that were written but not acknowledged.
    pub send_queue: usize,
}

pub const ESTABLISHED: u8 = 0x01;
pub const FIN_WAIT_1: u8 = 0x04;
pub const LAST_ACK: u8 = 0x09;

/// The connections with this local port. IPv4 only.
pub fn connections(address: SocketAddr) -> Vec<Socket> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table of sockets");
    let sockets = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (_, port) = fields.next()?.split_once(':')?;
        let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
        let (send_queue, _) = fields.next()?.split_once(':')?;
        let send_queue = usize::from_str_radix(send_queue, 16).ok()?;
        let is_connection = u16::from_str_radix(port, 16) == Ok(address.port()) && state != LISTEN;
        is_connection.then_some(Socket { state, send_queue })
    });
    sockets.collect()
}

const LISTEN: u8 = 0x0a;
