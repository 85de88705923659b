//! A thread that answers by UDP: waits for its sockets, and answers what came in batches.
//!
//! The thread shares nothing with the workers that serve HTTP: a flood of queries keeps this thread busy, and no other.

use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::batch::Batch;
use super::counts::Counts;
use super::labels::Rcode;
use super::plan::DnsPlan;
use super::query_log::{LoggedQuery, QueryLogBuffer};
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
    pub log: QueryLogBuffer,
    pub recorder: Recorder,
    pub clock: Clock,
}

impl UdpThread {
    /// Answers until the server closes.
    pub(super) fn run(mut self) {
        let (sockets, closing) = (std::mem::take(&mut self.sockets), self.closing.clone());
        let polled = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN));
        // The last one is readable when the server closes.
        let mut polled: Vec<PollFd<'_>> =
            polled.chain([PollFd::from_borrowed_fd(closing.as_fd(), PollFlags::IN)]).collect();
        let mut batch = Batch::new();
        let mut drops = vec![0; sockets.len()];
        loop {
            if poll(&mut polled, None).is_err() {
                // Interrupted by a signal.
                continue;
            }
            let is_ready = |at: usize| !polled[at].revents().is_empty();
            if is_ready(sockets.len()) {
                return;
            }
            for at in (0..sockets.len()).filter(|at| is_ready(*at)) {
                let socket = sockets[at].as_fd();
                let handle = || self.handle(socket, &mut batch, &mut drops[at]);
                if catch_unwind(AssertUnwindSafe(handle)).is_err() {
                    self.recorder.count(Metric::DnsServerPanics);
                    let notice = Notice { is_error: true, ..Notice::warning(PANIC, "", "") };
                    let example =
                        format_args!("the queries of one batch got no answer; report this");
                    notices::note(&notice, example);
                }
            }
        }
    }

    /// Answers what waits at a socket, up to a few batches, so that no socket starves another.
    fn handle(&mut self, socket: BorrowedFd<'_>, batch: &mut Batch, drops: &mut u32) {
        for _ in 0..BATCHES_IN_TURN {
            let Ok(received) = batch.receive(socket) else { return };
            let (now, start) = self.clock.both();
            let plan = self.state.plan.load();
            let mut counts = Counts::default();
            for at in 0..received {
                self.answer(&plan, batch, at, (unix_ms(now), start), &mut counts);
            }
            if let Some(total) = received.checked_sub(1).and_then(|last| batch.drops(last)) {
                counts.queue_full = u64::from(total.wrapping_sub(*drops));
                *drops = total;
            }
            counts.not_sent += batch.send(socket) as u64;
            self.log.flush(&self.recorder);
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
        (now_ms, now): (u64, Instant),
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
        let transport = DnsTransport::Udp;
        let sender = Sender { address: peer.ip(), transport, now: (now_ms / 1000) as u32 };
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
        let logged = LoggedQuery { query, response: &response, peer, transport, now_ms };
        self.log.add(plan, logged);
        batch.queue(at, response.length);
    }
}

/// A turn of one socket: 256 datagrams.
const BATCHES_IN_TURN: usize = 4;
const PANIC: &str = "the name server panicked";
