//! Many readers on many threads.

use super::*;

/// Readers on four threads come at any moment, read at any pace, some leave. Whoever stays
/// has every byte; the leader never waits for ever.
#[test]
fn readers_on_many_threads_have_every_byte_whatever_the_others_do() {
    let seed = seed();
    for round in 0..10 {
        stress(seed.wrapping_add(round * 2));
    }
}

fn stress(seed: u64) {
    let mut random = Random(seed);
    let length = random.below(40 * SLICE);
    let known = random.below(2) == 0;
    let patience = Duration::from_secs(20); // slow ones are waited for: nobody may lose a byte
    let node = Node::new(Settings { window_bytes: 4 * SLICE, patience, ..Settings::default() });
    let lead = node.lead();
    let own = lead.follower();
    let followers: Vec<Vec<Follower>> =
        (0..4).map(|_| (0..8).map(|_| node.follow()).collect()).collect();
    let node_ref = &node;
    std::thread::scope(|threads| {
        for (number, followers) in followers.into_iter().enumerate() {
            let seed = seed ^ (number as u64 + 1) << 32 | 1;
            threads.spawn(move || on_a_worker(read_at_random(followers, length, Random(seed))));
        }
        on_a_worker(async move {
            let (mut upstream, body) = upstream();
            let done = start(node_ref, lead, known.then_some(length), body);
            let own = spawn_local(all(filling(&own).await.read_all()));
            while upstream.sent < length {
                let frame = random.below(3 * SLICE) + 1;
                upstream.send(frame.min(length - upstream.sent)).await;
            }
            drop(upstream);
            assert_bytes(&own.await.expect("no panic").expect("whole"), 0..length);
            assert!(matches!(done.await.expect("no panic"), FillEnd::Stored));
        });
    });
    assert_eq!(node.gauge(Metric::FillWindowBytes), 0);
    assert_eq!(node.gauge(Metric::FillReaders), 0);
    assert_eq!(node.gauge(Metric::Fills), 0);
}

async fn read_at_random(followers: Vec<Follower>, length: u64, mut random: Random) {
    // All are readers before the first byte is read, as nothing is in a store yet.
    let mut readers = Vec::new();
    for follower in &followers {
        let from = random.below(2) * random.below(length + 1);
        let to = from + random.below(length - from + 1);
        let filling = filling(follower).await;
        let all = from == 0;
        let reader = if all { filling.read_all() } else { filling.read(from..to) };
        let leaves_at = if random.below(4) == 0 { random.below(length + 1) } else { u64::MAX };
        readers.push((reader, from, if all { length } else { to }, leaves_at));
    }
    drop(followers);
    let tasks: Vec<_> = readers
        .into_iter()
        .map(|(mut reader, from, to, leaves_at)| {
            let mut pace = Random(random.below(u64::MAX) | 1);
            spawn_local(async move {
                let mut at = from;
                while at < leaves_at {
                    for _ in 0..pace.below(4) {
                        tokio::task::yield_now().await;
                    }
                    let Some(frame) = next_frame(&mut reader).await else {
                        assert_eq!(at, to);
                        return;
                    };
                    let bytes = frame.expect("no error").into_data().expect("data");
                    assert_bytes(&bytes, at..at + bytes.len() as u64);
                    at += bytes.len() as u64;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
}

/// The brief moment of a cold, popular object.
#[test]
fn ten_thousand_requests_for_one_cold_object_are_one_upstream_request() {
    let node = Node::new(Settings::default());
    let started = std::sync::Barrier::new(2);
    let asked = AtomicUsize::new(0);
    const LENGTH: u64 = 1 << 20;
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                started.wait();
                on_a_worker(async {
                    let mut readers = Vec::new();
                    for _ in 0..5_000 {
                        let follower = match node.join() {
                            Join::Follow(follower) => follower,
                            Join::Lead(lead) => {
                                let follower = lead.follower();
                                match head(&node.store) {
                                    // The fill ended after this request had looked.
                                    Some(_) => lead.stored(),
                                    None => {
                                        asked.fetch_add(1, Ordering::Relaxed);
                                        start(
                                            &node,
                                            lead,
                                            Some(LENGTH),
                                            bytes_of(0..LENGTH).into(),
                                        );
                                    }
                                }
                                follower
                            }
                            Join::Uncollapsed(why) => panic!("{why:?}"),
                        };
                        let store = node.store.clone();
                        readers.push(spawn_local(async move {
                            let mut reader = match follower.outcome().await {
                                FillOutcome::Filling(filling) => Body::stream(filling.read_all()),
                                FillOutcome::Stored => Body::stream(
                                    store.body(&head(&store).expect("stored"), 0..LENGTH),
                                ),
                                other => panic!("{other:?}"),
                            };
                            let mut at = 0;
                            while let Some(frame) = next_frame(&mut reader).await {
                                let bytes = frame.expect("no error").into_data().expect("data");
                                assert_bytes(&bytes, at..at + bytes.len() as u64);
                                at += bytes.len() as u64;
                            }
                            at
                        }));
                    }
                    for reader in readers {
                        assert_eq!(reader.await.expect("no panic"), LENGTH);
                    }
                });
            });
        }
    });
    assert_eq!(asked.into_inner(), 1);
}
