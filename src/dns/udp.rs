//! A thread that answers by UDP: waits for its sockets, and answers what came in batches.
//!
//! It shares nothing with the workers that serve HTTP: a flood of queries keeps this thread busy, and no other.

use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::batch::Batch;
use super::counts::Counts;
use super::labels::Rcode;
use super::plan::DnsPlan;
use super::rate::{RateVerdict, ResponseRates};
use super::respond::{DnsTransport, Responder, Sender};
use super::server::ServerState;
use crate::clock::{Clock, unix_ms};
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};

/// A UDP thread's own parts.
pub(super) struct UdpThread {
    pub state: Arc<ServerState>,
    pub sockets: Vec<UdpSocket>,
    /// Readable when the server closes.
    pub closing: Arc<OwnedFd>,
    pub responder: Responder,
    pub rates: ResponseRates,
    pub recorder: Recorder,
    pub clock: Clock,
}

impl UdpThread {
    /// Answers until the server closes.
    pub(super) fn run(mut self) {
        let mut batch = Batch::new();
        let mut drops = vec![0; self.sockets.len()];
        loop {
            let ready = match self.wait() {
                Some(ready) => ready,
                None => return,
            };
            for at in ready {
                let handled =
                    catch_unwind(AssertUnwindSafe(|| self.handle(at, &mut batch, &mut drops[at])));
                if handled.is_err() {
                    self.recorder.count(Metric::DnsServerPanics);
                    let notice = Notice { is_error: true, ..Notice::warning(PANIC, "", "") };
                    notices::note(
                        &notice,
                        format_args!("the queries of one batch got no answer; please report this"),
                    );
                }
            }
        }
    }

    /// The sockets that have queries. `None`: the server closes.
    fn wait(&self) -> Option<Vec<usize>> {
        let sockets = self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN));
        let closing = PollFd::from_borrowed_fd(self.closing.as_fd(), PollFlags::IN);
        let mut polled: Vec<PollFd<'_>> = sockets.chain([closing]).collect();
        // Interrupted by a signal: nothing is ready.
        let _ = poll(&mut polled, None);
        let is_ready = |polled: &PollFd<'_>| !polled.revents().is_empty();
        let (closing, sockets) = polled.split_last()?;
        let ready = sockets.iter().enumerate().filter(|(_, socket)| is_ready(socket));
        (!is_ready(closing)).then(|| ready.map(|(at, _)| at).collect())
    }

    /// Answers what waits at a socket, up to a few batches, so that no socket starves another.
    fn handle(&mut self, socket: usize, batch: &mut Batch, drops: &mut u32) {
        for _ in 0..BATCHES_IN_TURN {
            let Ok(received) = batch.receive(self.sockets[socket].as_fd()) else { return };
            let (now, start) = self.clock.both();
            let plan = self.state.plan.load();
            let mut counts = Counts::default();
            let seconds = (unix_ms(now) / 1000) as u32;
            for at in 0..received {
                self.answer(&plan, batch, at, (seconds, start), &mut counts);
            }
            if let Some(total) = received.checked_sub(1).and_then(|last| batch.drops(last)) {
                counts.queue_full = u64::from(total.wrapping_sub(*drops));
                *drops = total;
            }
            counts.not_sent += batch.send(self.sockets[socket].as_fd()) as u64;
            counts.flush(&self.recorder, self.clock.instant().saturating_duration_since(start));
            if received < super::batch::BATCH {
                return;
            }
        }
    }

    fn answer(
        &mut self,
        plan: &DnsPlan,
        batch: &mut Batch,
        at: usize,
        (seconds, now): (u32, Instant),
        counts: &mut Counts,
    ) {
        let Some((peer, query, out)) = batch.exchange(at) else {
            counts.too_long += 1;
            return;
        };
        // A response to such a port would reach a service that answers anything.
        if peer.port() == 0 {
            return;
        }
        let sender = Sender { address: peer.ip(), transport: DnsTransport::Udp, now: seconds };
        let Some(mut response) = self.responder.respond(plan, query, sender, out) else {
            counts.not_queries += 1;
            return;
        };
        if !response.is_verified {
            match self.rates.check(plan.rate, peer.ip(), response.class, now) {
                RateVerdict::Send => {}
                RateVerdict::Truncate if response.rcode != Rcode::FormatError => {
                    response.truncate(out);
                    counts.limited[1] += 1;
                }
                _ => {
                    counts.limited[0] += 1;
                    return;
                }
            }
        }
        counts.response(plan, &response);
        batch.queue(at, response.length);
    }
}

/// A turn of one socket: 256 datagrams.
const BATCHES_IN_TURN: usize = 4;
const PANIC: &str = "the name server panicked";
