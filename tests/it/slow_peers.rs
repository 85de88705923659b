//! A peer that does not acknowledge a request in time, and lives: it answers others, or PINGs. The peer that does not is
//! in `peers_region`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::pair::Pair;
use crate::harness::peer::PeerReply;
use crate::harness::until;

/// `peers.deadline`.
const DEADLINE: Duration = Duration::from_secs(1);

/// A peer that answers at once, but the paths `/slow…` after two and a half deadlines, and `/never…` not within a test.
fn pair() -> Pair {
    let lines = format!(
        "deadline = \"{}ms\"\nskip_for = \"100ms\"\ncopy_after = 0\ncheck_interval = \"2s\"\n",
        DEADLINE.as_millis()
    );
    Pair::start(&lines, |request| {
        let reply = PeerReply::hit("peer");
        match request.uri().path() {
            path if path.starts_with("/slow") => reply.after(DEADLINE * 5 / 2),
            path if path.starts_with("/never") => reply.after(DEADLINE * 200),
            _ => reply,
        }
    })
}

/// Waits until a number of the peer's answers have come.
fn open_connections(pair: &Pair, target: &str) {
    let mut answers = 0;
    until("connections are open", || {
        answers += usize::from(pair.edge.get(target).text() == "peer");
        answers > 20
    });
}

#[test]
fn a_slow_peer_that_answers_others_is_waited_for_and_not_skipped() {
    let pair = pair();
    let fast = pair.owned("/fast").next().expect("a target");
    open_connections(&pair, &fast);
    until_undisturbed(&pair, |attempt| {
        let [slow, never] = ["/slow", "/never"]
            .map(|kind| pair.owned(&format!("{kind}-{attempt}")).next().expect("a target"));
        let (is_over, slow_ones) = (AtomicBool::new(false), pair.failures("slow"));
        let others = AtomicUsize::new(0);
        let (of_slow, of_never, waited) = std::thread::scope(|scope| {
            let _end = SetAtEnd(&is_over);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        if pair.edge.get(&fast).text() == "peer" {
                            others.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let of_slow = pair.edge.get(&slow);
            let began = Instant::now();
            (of_slow, pair.edge.get(&never), began.elapsed())
        });
        let (is_up, slow_ones) = (pair.is_up(), pair.failures("slow") - slow_ones);
        let others = others.load(Ordering::Relaxed);
        move || {
            assert_eq!((of_slow.text(), of_never.text()), ("peer", "origin"));
            assert!(waited >= 4 * DEADLINE, "after {waited:?}");
            assert!(is_up, "it is asked on");
            assert!(slow_ones == 1.0 && others > 20, "{slow_ones} slow, {others} others");
        }
    });
}

#[test]
fn a_peer_that_answers_pings_is_waited_for() {
    let pair = pair();
    let fast = pair.owned("/fast").next().expect("a target");
    open_connections(&pair, &fast);
    until_undisturbed(&pair, |attempt| {
        let slow = pair.owned(&format!("/slow-{attempt}")).next().expect("a target");
        let (of_slow, is_up) = (pair.edge.get(&slow), pair.is_up());
        let slow_ones = pair.failures("slow");
        move || assert_eq!((of_slow.text(), is_up, slow_ones), ("peer", true, 0.0))
    });
}

/// Makes attempts, with their numbers, until the machine has held up the peer in none of its requests for a deadline, nor
/// for as long as a PING of a connection waits, and checks the last one. If the node takes a peer that is slow for a dead one,
/// all attempts look so.
fn until_undisturbed<C: FnOnce()>(pair: &Pair, attempt: impl Fn(usize) -> C) {
    let silences = || pair.failures("deadline") + pair.failures("connection");
    for number in 0..ATTEMPTS {
        let before = silences();
        let check = attempt(number);
        if silences() == before {
            return check();
        }
    }
    panic!("the peer was silent in each of {ATTEMPTS} attempts");
}

/// Attempts that may find the machine busy.
const ATTEMPTS: usize = 6;

/// Ends the clients, also when the test fails.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
