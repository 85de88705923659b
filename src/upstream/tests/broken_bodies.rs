//! Origins whose bodies break off lose their requests, whatever else they answer.

use std::cell::Cell;

use super::*;
use crate::upstream::exchange::deadline::monotonic_ms;
use crate::upstream::settings::Balance;

/// Two origins, of which the second is asked only if the first is not up.
struct Pair {
    first: Scripted,
    second: Scripted,
    bed: Bed,
}

impl Pair {
    async fn new(change: impl FnOnce(&mut PoolSettings)) -> Self {
        let (first, second) = (Scripted::bind().await, Scripted::bind().await);
        let spare = Origin { priority: 1, ..second.origin() };
        let mut definition = pool(vec![first.origin(), spare]);
        change(&mut definition.settings);
        Self { first, second, bed: Bed::new(definition) }
    }

    /// Runs `test` while the first origin gives these responses by turns and the second one a good one. Each
    /// closes its connection after a response.
    async fn run<T>(&self, responses: [&str; 2], test: impl Future<Output = T>) -> T {
        let turn = Cell::new(0);
        let first = async {
            loop {
                let response = responses[turn.get() % 2];
                let answered = self.first.accept().await.try_answer(response).await;
                turn.set(turn.get() + usize::from(answered));
            }
        };
        let second = async {
            loop {
                self.second.accept().await.try_answer(WHOLE).await;
            }
        };
        tokio::select! { outcome = test => outcome, () = first => unreachable!(), () = second => unreachable!() }
    }

    /// Sends a request and reads its response, whether it is whole or not.
    async fn ask(&self) {
        if let Ok(upstream) = self.bed.send(conditional_request()).await {
            drop(read(upstream).await);
        }
    }

    /// Whether the first origin is up.
    fn is_up(&self) -> bool {
        up(&self.bed.pool)[0]
    }
}

#[tokio::test]
async fn an_origin_whose_bodies_break_off_is_ejected_although_it_confirms_stored_responses() {
    on_core(async {
        for broken in [PASSED_ON, HELD] {
            let pair = Pair::new(|settings| settings.health.consecutive_5xx = 3).await;
            let asked = Cell::new(0);
            let ask = async {
                while pair.is_up() && asked.get() < 20 {
                    pair.ask().await;
                    asked.set(asked.get() + 1);
                }
            };
            pair.run([broken, NOT_MODIFIED], ask).await;
            assert_eq!((pair.is_up(), asked.get()), (false, 5), "three broke off: {broken:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_origin_of_which_every_other_body_breaks_off_is_ejected_by_its_error_rate() {
    on_core(async {
        let pair = Pair::new(|_| {}).await;
        let ask = async {
            for _ in 0..20 {
                pair.ask().await;
            }
            while pair.is_up() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        pair.run([PASSED_ON, WHOLE], ask).await;
    })
    .await;
}

#[tokio::test]
async fn an_origin_does_not_look_fast_by_bodies_that_break_off() {
    on_core(async {
        let pair = Pair::new(|settings| settings.balance = Balance::PeakEwma).await;
        let latency = || {
            let members = pair.bed.pool.members();
            members.at(0).load.latency().expected(monotonic_ms()).expect("a measured latency")
        };
        let ask = async {
            pair.ask().await;
            let before = latency();
            pair.ask().await;
            assert!(latency() > before * 5.0, "{} after {before}", latency());
        };
        pair.run([WHOLE, PASSED_ON], ask).await;
    })
    .await;
}

const WHOLE: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
const NOT_MODIFIED: &str = "HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n";
/// Its body breaks off after the client has some of it.
const PASSED_ON: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
/// The response breaks off while it is held back: another origin is asked.
const HELD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf";
