//! How long a node waits for the acknowledgement of a peer, and how it tells a slow peer from a dead one.
//!
//! A peer that is silent for the deadline, and answers no PING, is dead, and skipped for a while. One that shows signs
//! of life is slow: the request waits a few deadlines, and other requests do not skip the peer. Otherwise all requests
//! of a region that is overloaded would go to the origin. A peer that has acknowledged the request may take as long as its
//! origin, but is watched in the same way until the end of its body: it may die meanwhile.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::super::worker::Worker;
use super::PeerLink;
use crate::labels::HopFailure;
use crate::upstream::Acknowledgement;

/// How long the acknowledgement of a request is waited for.
#[derive(Debug)]
pub(in crate::serve) struct Patience {
    pub deadline: Duration,
    /// Whether the deadline begins again when the request is sent on an open connection; opening one may take as
    /// long again.
    is_far: bool,
    /// The time from sending the request to its acknowledgement, once it has arrived.
    pub round_trip: Option<Duration>,
}

impl Patience {
    /// The deadline covers everything.
    pub(in crate::serve) fn near(deadline: Duration) -> Self {
        Self { deadline, is_far: false, round_trip: None }
    }

    /// The deadline begins again when the request is sent.
    pub(in crate::serve) fn far(deadline: Duration) -> Self {
        Self { is_far: true, ..Self::near(deadline) }
    }
}

/// The signs of life of a peer.
pub(in crate::serve) trait PeerLife {
    /// A number that grows with each sign.
    fn signs(&self) -> u64;

    /// Asks for a sign that a peer gives at once, however long its disk or its origin takes.
    fn ask_for_sign(&self);

    /// Notes an acknowledgement.
    fn note_acknowledgement(&self);
}

/// The signs of life of a peer on its link: in its responses to any worker, and on the connections of this one.
pub(in crate::serve) struct LinkLife<'a> {
    pub link: &'a PeerLink,
    /// The worker that watches.
    pub worker: &'a Worker,
}

impl PeerLife for LinkLife<'_> {
    fn signs(&self) -> u64 {
        self.link.signs_of_life() + self.worker.upstreams.bytes_read(&self.link.pool)
    }

    /// Sends a PING.
    fn ask_for_sign(&self) {
        self.worker.upstreams.ping(&self.link.pool);
    }

    fn note_acknowledgement(&self) {
        self.link.note_answer();
    }
}

/// Waits for the response, but for its acknowledgement only as `patience` says, and as long as the peer seems to live.
///
/// # Errors
/// The peer was silent or slow, see [`LifeWatch::look`] and [`while_alive`].
pub(in crate::serve) async fn in_time<R>(
    sending: impl Future<Output = R>,
    acknowledged: &Acknowledgement,
    life: &impl PeerLife,
    patience: &mut Patience,
) -> Result<R, HopFailure> {
    let mut sending = pin!(sending);
    let sent = until_acknowledged(sending.as_mut(), acknowledged, life, patience).await?;
    patience.round_trip = acknowledged.sent_at().map(|at| at.elapsed());
    match sent {
        Some(sent) => Ok(sent),
        None => {
            life.note_acknowledgement();
            while_alive(sending, life, patience.deadline).await
        }
    }
}

/// Waits for the acknowledgement or the response. `None`: the request is acknowledged, and has no response yet.
///
/// # Errors
/// See [`LifeWatch::look`].
async fn until_acknowledged<R>(
    mut sending: Pin<&mut impl Future<Output = R>>,
    acknowledged: &Acknowledgement,
    life: &impl PeerLife,
    patience: &Patience,
) -> Result<Option<R>, HopFailure> {
    let interval = patience.deadline / LOOKS;
    let mut watch = LifeWatch::begin(life.signs());
    let mut begins_again = patience.is_far;
    loop {
        let due = Instant::now() + interval;
        let mut look = pin!(tokio::time::sleep_until(due));
        let event = poll_fn(|cx| {
            if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                return Poll::Ready(WaitEvent::Sent(sent));
            }
            if acknowledged.has_arrived() {
                return Poll::Ready(WaitEvent::Acknowledged);
            }
            look.as_mut().poll(cx).map(|()| WaitEvent::LookDue)
        });
        match event.await {
            WaitEvent::Sent(sent) => return Ok(Some(sent)),
            WaitEvent::Acknowledged => return Ok(None),
            WaitEvent::LookDue => {}
        }
        if begins_again && acknowledged.sent_at().is_some() {
            begins_again = false;
            watch = LifeWatch::begin(life.signs());
            continue;
        }
        let is_late = Instant::now() > due + interval;
        watch.look(life.signs(), is_late)?;
        if watch.silent_looks == LOOKS / 2 {
            life.ask_for_sign();
        }
    }
}

/// Waits for the response of a peer that has acknowledged the request, as long as the peer seems to live.
///
/// # Errors
/// [`HopFailure::Deadline`] if the peer was silent for [`SILENT_DEADLINES`] deadlines, of which it had one to answer a
/// PING.
async fn while_alive<R>(
    mut sending: Pin<&mut impl Future<Output = R>>,
    life: &impl PeerLife,
    deadline: Duration,
) -> Result<R, HopFailure> {
    let mut watch = LifeWatch::begin(life.signs());
    loop {
        let due = Instant::now() + deadline;
        if let Ok(response) = timeout_at(due, sending.as_mut()).await {
            return Ok(response);
        }
        // Bytes that have arrived meanwhile are read before the look.
        tokio::task::yield_now().await;
        let is_late = Instant::now() > due + deadline;
        match watch.note(life.signs(), is_late) {
            0 => {}
            SILENT_DEADLINES.. => return Err(HopFailure::Deadline),
            _ => life.ask_for_sign(),
        }
    }
}

/// Resolves once a peer that is sending a body has died, as [`while_alive`] tells.
pub(in crate::serve) async fn until_dead(
    link: Arc<PeerLink>,
    worker: Rc<Worker>,
    deadline: Duration,
) -> HopFailure {
    let life = LinkLife { link: &link, worker: &worker };
    let Err(failure) = while_alive(pin!(pending::<Infallible>()), &life, deadline).await;
    failure
}

/// The end of a wait between two looks.
enum WaitEvent<R> {
    /// The request has its response.
    Sent(R),
    Acknowledged,
    LookDue,
}

/// Watches a peer for signs of life, by a look at regular intervals.
struct LifeWatch {
    /// The signs of life at the last look.
    signs: u64,
    /// The looks since the last sign of life.
    silent_looks: u32,
    looks: u32,
}

impl LifeWatch {
    fn begin(signs: u64) -> Self {
        Self { signs, silent_looks: 0, looks: 0 }
    }

    /// Notes a look at the signs of life, and returns how many looks in a row have found no new one. `is_late`: this worker
    /// was held up, so that signs may wait to be read.
    fn note(&mut self, signs: u64, is_late: bool) -> u32 {
        self.looks += 1;
        if signs > self.signs {
            self.silent_looks = 0;
        } else if !is_late {
            self.silent_looks += 1;
        }
        // The bytes of a connection that was closed are not counted any more.
        self.signs = signs;
        self.silent_looks
    }

    /// As [`LifeWatch::note`], for a request that is not acknowledged, with [`LOOKS`] looks in each deadline.
    ///
    /// # Errors
    /// [`HopFailure::Deadline`] if the peer was silent for a deadline, [`HopFailure::Slow`] if it has not
    /// acknowledged the request within [`DEADLINES_MAX`] deadlines.
    fn look(&mut self, signs: u64, is_late: bool) -> Result<(), HopFailure> {
        let silent_looks = self.note(signs, is_late);
        match (silent_looks >= LOOKS, self.looks >= LOOKS * DEADLINES_MAX) {
            (true, _) => Err(HopFailure::Deadline),
            (false, true) => Err(HopFailure::Slow),
            (false, false) => Ok(()),
        }
    }
}

/// How many deadlines a request waits for a peer that shows signs of life. Four times the default are a second, after
/// which the origin is the better bet.
pub(crate) const DEADLINES_MAX: u32 = 4;
/// How often signs of life are looked for within a deadline.
const LOOKS: u32 = 4;
/// The deadlines after which a silent peer is dead that has acknowledged a request: one until it is asked for a sign of life, and
/// one for its answer. A node that is held up for so long costs the origin a second request for all that it fetches.
const SILENT_DEADLINES: u32 = 2;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A peer without signs of life.
    struct Silent;

    impl PeerLife for Silent {
        fn signs(&self) -> u64 {
            7
        }

        fn ask_for_sign(&self) {}

        fn note_acknowledgement(&self) {}
    }

    /// The failure of a peer that shows a sign of life before each of these looks, and the number of looks at it.
    fn failure(lives: impl Fn(u32) -> bool) -> (HopFailure, u32) {
        let mut watch = LifeWatch::begin(7);
        let mut signs = 7;
        for look in 1.. {
            signs += u64::from(lives(look));
            if let Err(failure) = watch.look(signs, false) {
                return (failure, look);
            }
        }
        unreachable!("it ends")
    }

    #[test]
    fn a_silent_peer_costs_one_deadline_from_its_last_sign_of_life() {
        assert_eq!(failure(|_| false), (HopFailure::Deadline, LOOKS));
        assert_eq!(failure(|look| look <= 5), (HopFailure::Deadline, 5 + LOOKS));
    }

    #[test]
    fn a_peer_that_lives_is_waited_for_a_few_deadlines() {
        let most = LOOKS * DEADLINES_MAX;
        assert_eq!(failure(|_| true), (HopFailure::Slow, most));
        assert_eq!(failure(|look| look % LOOKS == 0), (HopFailure::Slow, most));
    }

    #[test]
    fn a_connection_that_is_closed_is_no_sign_of_life() {
        let mut watch = LifeWatch::begin(900);
        assert_eq!(watch.look(5, false), Ok(()));
        assert_eq!(watch.silent_looks, 1);
        assert_eq!(watch.look(6, false), Ok(()));
        assert_eq!(watch.silent_looks, 0, "another one is read from");
    }

    #[test]
    fn a_worker_that_is_held_up_itself_takes_no_peer_for_dead() {
        let mut watch = LifeWatch::begin(7);
        let looks = (1..).find(|_| watch.look(7, true).is_err());
        assert_eq!((looks, watch.silent_looks), (Some(LOOKS * DEADLINES_MAX), 0));
    }

    #[tokio::test]
    async fn the_deadline_of_a_far_peer_begins_when_the_request_is_sent() {
        let ms = Duration::from_millis;
        // Opens a connection, and is answered, after these times. Real time passes: the margins are wide.
        let check = async |mut patience: Patience, opening: u64, answer: u64, is_answered| {
            let acknowledged = Acknowledgement::default();
            let sending = async {
                tokio::time::sleep(ms(opening)).await;
                acknowledged.note_sent();
                tokio::time::sleep(ms(answer)).await;
            };
            let answered = in_time(sending, &acknowledged, &Silent, &mut patience).await.is_ok();
            assert_eq!(answered, is_answered, "{opening} ms, {answer} ms");
            let is_measured = patience.round_trip.is_some_and(|it| it >= ms(answer));
            assert_eq!(is_measured, is_answered);
        };
        let (near, far) = (|| Patience::near(ms(1000)), || Patience::far(ms(1000)));
        tokio::join!(
            check(near(), 100, 100, true),
            check(near(), 700, 700, false),
            check(far(), 700, 700, true),
            check(far(), 0, 60_000, false),
            check(far(), 60_000, 0, false),
        );
    }

    /// A peer that answers the first PINGs.
    struct Dying {
        signs: Cell<u64>,
        pings: Cell<u64>,
        answered: u64,
    }

    impl PeerLife for Dying {
        fn signs(&self) -> u64 {
            self.signs.get()
        }

        fn ask_for_sign(&self) {
            self.pings.set(self.pings.get() + 1);
            if self.pings.get() <= self.answered {
                self.signs.set(self.signs.get() + 1);
            }
        }

        fn note_acknowledgement(&self) {}
    }

    #[tokio::test]
    async fn a_peer_that_dies_after_its_acknowledgement_is_given_up() {
        let ms = Duration::from_millis;
        // The origin of the peer takes this long.
        let check = async |origin: Duration, answered: u64, expected: Result<(), HopFailure>| {
            let life = Dying { signs: Cell::new(7), pings: Cell::new(0), answered };
            let sending = pin!(tokio::time::sleep(origin));
            let sent = while_alive(sending, &life, ms(20)).await;
            assert_eq!(sent, expected, "{answered} PINGs answered");
            life.pings.get()
        };
        let long = Duration::from_secs(3600);
        assert_eq!(check(ms(0), 0, Ok(())).await, 0);
        assert_eq!(check(long, 0, Err(HopFailure::Deadline)).await, 1);
        assert_eq!(check(long, 3, Err(HopFailure::Deadline)).await, 4);
        check(ms(400), u64::MAX, Ok(())).await;
    }
}
