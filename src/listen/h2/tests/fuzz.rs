//! Fuzz targets: HTTP/2 frames and header blocks.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame_filter::FrameFilter;
use super::header_blocks::HpackTable;

/// Cutting the frames changes neither the bytes that h2 gets nor the verdict. h2 gets only received bytes,
/// except for header blocks that were replaced. The first byte chooses the cut.
pub(crate) fn h2_frames(data: &[u8]) {
    let Some((&cut, frames)) = data.split_first() else { return };
    let bytes = [PREFACE, frames].concat();
    let whole = filtered(&[&bytes]);
    let (first, second) = bytes.split_at((PREFACE.len() + usize::from(cut)).min(bytes.len()));
    assert_eq!(filtered(&[first, second]), whole, "cut at {}", first.len());
    let singles: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(filtered(&singles), whole, "byte by byte");
    if whole.malformed == 0 {
        assert!(bytes.starts_with(&whole.passed));
    }
    assert!(whole.passed.len() <= 2 * bytes.len() + 64 * whole.malformed as usize);
}

/// The result of filtering the bytes of a connection.
#[derive(Debug, PartialEq)]
struct Filtered {
    passed: Vec<u8>,
    malformed: u32,
    violation: Option<Reason>,
}

fn filtered(pieces: &[&[u8]]) -> Filtered {
    let mut filter = FrameFilter::new();
    let mut passed = Vec::new();
    for piece in pieces {
        let in_place = filter.filter(piece);
        passed.extend_from_slice(&piece[..in_place]);
        passed.extend_from_slice(&filter.passed().split());
        if filter.violation().is_some() {
            break;
        }
    }
    Filtered { passed, malformed: filter.take_malformed(), violation: filter.violation() }
}

/// [`HpackTable`] and h2 agree: h2 accepts no block that the table finds invalid, and a connection whose blocks
/// are all valid survives in h2 once the malformed ones are replaced. One byte before each block is its length.
pub(crate) fn hpack(data: &[u8]) {
    let mut table = HpackTable::new();
    let (mut blocks, mut replaced, mut rest) = (Vec::new(), Vec::new(), data);
    while let Some((&length, after)) = rest.split_first()
        && blocks.len() < BLOCKS_MAX
    {
        let (block, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        let block = [REQUEST, block].concat();
        let read = table.read(&block);
        let is_invalid = read.is_err();
        replaced.push(
            read.ok().and_then(|summary| summary.replacement).unwrap_or_else(|| block.clone()),
        );
        blocks.push(block);
        if is_invalid {
            let (taken, _) = h2_takes(&blocks);
            assert!(taken < blocks.len(), "h2 takes a block that is held to be invalid");
            return;
        }
    }
    if !blocks.is_empty() {
        // Both dynamic tables have the same entries: a request with all of them is accepted, and one
        // with the entry behind them ends the connection.
        let entries = (62..=126).take_while(|index| table.read(&[0x80 | index]).is_ok());
        let entries: Vec<u8> = entries.map(|index| 0x80 | index).collect();
        let all = [REQUEST, &entries].concat();
        let read = table.read(&all).expect("each entry was read before");
        replaced.push(read.replacement.unwrap_or(all));
        replaced.push([REQUEST, b"\x00\x01b\x01c"].concat());
        let (taken, lives) = h2_takes(&replaced);
        assert!(lives && taken > 0, "{taken} of {} blocks were taken", replaced.len());
        if entries.len() < 65 {
            replaced.push([REQUEST, &[0x80 | (62 + entries.len() as u8)]].concat());
            let (_, lives) = h2_takes(&replaced);
            assert!(!lives, "h2 has more than {} entries", entries.len());
        }
    }
}

/// How many requests of one connection h2 takes with these blocks, and whether the connection lives.
fn h2_takes(blocks: &[Vec<u8>]) -> (usize, bool) {
    let frames = blocks.iter().enumerate().map(|(at, block)| {
        let head = (block.len() as u32).to_be_bytes();
        let stream = (2 * at as u32 + 1).to_be_bytes();
        [&head[1..], &[1, 5], &stream, block].concat()
    });
    let bytes = [PREFACE, b"\0\0\0\x04\0\0\0\0\0", &frames.collect::<Vec<_>>().concat()].concat();
    let mut cx = Context::from_waker(Waker::noop());
    let mut handshake = Box::pin(h2::server::handshake(Scripted { input: bytes, at: 0 }));
    let Poll::Ready(connection) = handshake.as_mut().poll(&mut cx) else { return (0, true) };
    let mut connection = connection.expect("a preface");
    let (mut taken, mut pauses) = (Vec::new(), 0);
    // No more bytes will come. h2 returns `Pending` once for every stream that it resets.
    while pauses <= blocks.len() {
        match connection.poll_accept(&mut cx) {
            Poll::Ready(Some(Ok(request))) => taken.push(request),
            Poll::Ready(_) => return (taken.len(), false),
            Poll::Pending => pauses += 1,
        }
    }
    (taken.len(), true)
}

/// A client that sends `input`, then nothing, and keeps the connection open.
struct Scripted {
    input: Vec<u8>,
    at: usize,
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.input[self.at..];
        if left.is_empty() {
            return Poll::Pending;
        }
        let count = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The pseudo-fields of a request.
const REQUEST: &[u8] = b"\x82\x84\x86\x01\x01a";
const BLOCKS_MAX: usize = 6;
