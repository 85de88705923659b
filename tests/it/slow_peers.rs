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
        "deadline = \"{}ms\"\nskip_for = \"100ms\"\ncopy_after = 0\n",
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
    let [slow, never, fast] =
        ["/slow", "/never", "/fast"].map(|it| pair.owned(it).next().expect("a target"));
    open_connections(&pair, &fast);
    let (is_over, silences) = (AtomicBool::new(false), pair.failures("deadline"));
    let others = AtomicUsize::new(0);
    std::thread::scope(|scope| {
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
        assert_eq!(pair.edge.get(&slow).text(), "peer");
        let began = Instant::now();
        assert_eq!(pair.edge.get(&never).text(), "origin");
        assert!(began.elapsed() >= 4 * DEADLINE, "after {:?}", began.elapsed());
        assert!(pair.is_up(), "it is asked on");
    });
    assert_eq!((pair.failures("slow"), pair.failures("deadline")), (1.0, silences));
    assert!(others.load(Ordering::Relaxed) > 20);
}

#[test]
fn a_peer_that_answers_pings_is_waited_for() {
    let pair = pair();
    let [slow, fast] = ["/slow", "/fast"].map(|it| pair.owned(it).next().expect("a target"));
    open_connections(&pair, &fast);
    let silences = pair.failures("deadline");
    assert_eq!(pair.edge.get(&slow).text(), "peer");
    assert_eq!((pair.failures("slow"), pair.failures("deadline")), (0.0, silences));
    assert!(pair.is_up());
}

/// Ends the clients, also when the test fails.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
