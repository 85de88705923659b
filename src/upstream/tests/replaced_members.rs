//! Pools whose set of members is replaced while they are in use.

use super::*;

#[tokio::test]
async fn an_origin_that_stays_in_a_changed_pool_keeps_its_connection_and_its_health() {
    on_core(async {
        let origin = Scripted::bind().await;
        let down = closed_port().await;
        let mut settings = pool(vec![down.clone(), origin.origin()]);
        settings.settings.health.connect_failures = 1;
        let mut bed = Bed::new(settings.clone());
        let serve = async {
            let mut peer = origin.accept().await;
            loop {
                peer.answer(OK).await;
            }
        };
        let ask = async {
            for _ in 0..2 {
                bed.fetch().await;
            }
            settings.origins.insert(0, Origin { weight: 0, ..closed_port().await });
            settings.settings.retry.attempts_max = Some(7);
            bed.pool = Pool::new(&settings, Some(&bed.pool)).expect("a good pool");
            for _ in 0..4 {
                bed.fetch().await;
            }
        };
        tokio::select! { () = ask => {}, () = serve => {} }
        // `serve` accepts one connection: a second one would wait without an answer.
        assert_eq!(up(&bed.pool), [true, false, true]);
        assert_eq!(bed.total(Metric::UpstreamMarkedDown), 1);

        settings.settings.host_header = HostHeader::Origin;
        let other = Pool::new(&settings, Some(&bed.pool)).expect("a good pool");
        assert!(up(&other) == [true; 3], "other ways to speak make other members");
    })
    .await;
}

/// Answers every request on every connection, with the number of connections counted.
pub(super) async fn serve(origin: &Scripted, accepted: &Cell<usize>) {
    let mut peers = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            mut peer = origin.accept() => {
                accepted.set(accepted.get() + 1);
                peers.spawn_local(async move { while peer.try_answer(OK).await {} });
            }
            Some(_) = peers.join_next() => {}
        }
    }
}

pub(super) fn replace_members(pool: &Pool, origins: &[Origin]) {
    let definition = PoolDefinition::new("test", origins.to_vec());
    let members = pool.members_for(&definition).expect("good origins");
    pool.redefine(&definition, members);
}

#[tokio::test]
async fn a_set_that_changes_under_load_keeps_the_connections_of_a_member_that_stays() {
    on_core(async {
        let (stays, other) = (Scripted::bind().await, Scripted::bind().await);
        let accepted = [Cell::new(0), Cell::new(0)];
        let bed = Bed::new(pool(vec![stays.origin()]));
        let requests = async {
            let stream = async || {
                for _ in 0..100 {
                    assert_eq!(bed.fetch().await, "ok");
                    tokio::task::yield_now().await;
                }
            };
            tokio::join!(stream(), stream(), stream(), stream());
        };
        let changes = async {
            let sets = [vec![other.origin(), stays.origin()], vec![stays.origin()]];
            for origins in sets.iter().cycle() {
                replace_members(&bed.pool, origins);
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::select! {
            () = requests => {}
            () = changes => {}
            () = serve(&stays, &accepted[0]) => {}
            () = serve(&other, &accepted[1]) => {}
        }
        assert!(accepted[1].get() > 0, "the set never had both");
        // Four requests at a time need four connections.
        assert!((1..=4).contains(&accepted[0].get()), "{} connections", accepted[0].get());
        assert_eq!(bed.total(Metric::UpstreamRequests), 400);
        assert_eq!(up(&bed.pool).first(), Some(&true));
    })
    .await;
}

#[tokio::test]
async fn a_removed_member_finishes_its_exchange_and_gets_no_other() {
    on_core(async {
        let (removed, stays) = (Scripted::bind().await, Scripted::bind().await);
        let bed = Bed::new(pool(vec![removed.origin()]));
        // One exchange in flight, and one idle connection beside it.
        let (first, second, (mut busy, mut idle)) = tokio::join!(bed.get(), bed.fetch(), async {
            let (mut busy, mut idle) = (removed.accept().await, removed.accept().await);
            busy.answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n").await;
            idle.answer(OK).await;
            (busy, idle)
        });
        assert_eq!((second, bed.total(Metric::UpstreamIdle)), ("ok".into(), 1));

        replace_members(&bed.pool, &[stays.origin()]);
        let (body, ()) = tokio::join!(bed.fetch(), async {
            stays.accept().await.answer(OK).await;
        });
        assert_eq!(body, "ok");
        idle.closed().await;

        busy.say("2\r\ncd\r\n0\r\n\r\n").await;
        assert_eq!(read(first.expect("a response")).await.expect("a body"), "abcd");
        busy.closed().await;
        assert_eq!(bed.metrics.total(Metric::UpstreamIdleClosed, 3), 1);
        assert_eq!(bed.total(Metric::UpstreamConnects), 3);
    })
    .await;
}

#[tokio::test]
async fn a_retry_goes_to_the_members_of_now() {
    on_core(async {
        let (removed, added) = (Scripted::bind().await, Scripted::bind().await);
        let bed = Bed::new(pool(vec![removed.origin()]));
        let (body, ()) = tokio::join!(bed.fetch(), async {
            let mut peer = removed.accept().await;
            peer.head().await;
            replace_members(&bed.pool, &[added.origin()]);
            drop(peer);
            added.accept().await.answer(OK).await;
        });
        assert_eq!(body, "ok");
    })
    .await;
}

#[tokio::test]
async fn health_survives_a_change_of_a_hundred_members() {
    on_core(async {
        let origin = Scripted::bind().await;
        let unused = |port| Origin { weight: 0, ..Origin::http("unused.example", port) };
        let with = |range: std::ops::Range<u16>, more: [Origin; 2]| -> Vec<Origin> {
            range.map(unused).chain(more).collect()
        };
        let both = [closed_port().await, origin.origin()];
        let mut settings = pool(with(1..99, both.clone()));
        settings.settings.health.connect_failures = 1;
        let bed = Bed::new(settings);
        let accepted = Cell::new(0);
        let ask = async {
            for _ in 0..2 {
                bed.fetch().await;
            }
            assert_eq!(bed.total(Metric::UpstreamMarkedDown), 1);
            replace_members(&bed.pool, &with(50..148, both));
            for _ in 0..10 {
                bed.fetch().await;
            }
        };
        tokio::select! { () = ask => {}, () = serve(&origin, &accepted) => {} }
        assert_eq!(bed.total(Metric::UpstreamMarkedDown), 1, "it was asked again");
        assert_eq!(up(&bed.pool), [vec![true; 98], vec![false, true]].concat());
        assert_eq!(accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_reload_of_origins_alone_changes_the_members_of_the_same_pool() {
    let pool = |name: &str, ports: &[u16]| {
        let origins = ports.iter().map(|port| Origin::http("127.0.0.1", *port)).collect();
        PoolDefinition::new(name, origins)
    };
    let before = Pools::new(&[pool("a", &[1, 2]), pool("b", &[1])]).expect("good pools");
    let (a, b) = (before.named("a").expect("a pool"), before.named("b").expect("a pool"));
    let (a_members, b_members) = (a.members().clone(), b.members().clone());

    let mistaken = before.reload(&[pool("a", &[2, 3]), pool("b", &[])]).expect_err("no origin");
    assert_eq!(mistaken.len(), 1);
    let (after, mut changes) = before.reload(&[pool("a", &[2, 3])]).expect("good pools");
    assert!(Arc::ptr_eq(a, after.named("a").expect("a pool")));
    assert!(Arc::ptr_eq(&a.members(), &a_members), "a reload that fails later changes nothing");
    changes.apply();
    changes.close_pools();
    assert!(Arc::ptr_eq(a.members().at(0), a_members.at(1)));
    let removed = |members: &Arc<super::super::pool::members::Members>| -> Vec<bool> {
        members.iter().map(|member| member.is_removed()).collect()
    };
    assert_eq!(removed(&a_members), [true, false]);
    assert_eq!(removed(&a.members()), [false, false]);
    assert_eq!(removed(&b_members), [true], "its pool is gone");
}
