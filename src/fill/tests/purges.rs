//! Fills and purges that come while they run.

use super::*;

#[test]
fn no_request_follows_a_fill_that_a_purge_has_overtaken() {
    on_a_worker(async {
        let node = Node::new(small());
        let old = node.lead();
        let before = node.follow();
        let unrelated = node.fills.join(
            KEY,
            None,
            || PurgeSequence(1),
            |response, since| {
                assert!(response.is_none() && since == PurgeSequence(0));
                false
            },
        );
        assert!(matches!(unrelated, Join::Follow(_)), "a purge of something else");
        let Join::Lead(new) = node.fills.join(KEY, None, || PurgeSequence(2), |_, _| true) else {
            panic!("followed a purged fill");
        };
        assert_eq!(new.sequence(), PurgeSequence(2));
        let (mut upstream, body) = upstream();
        let done = start(&node, old, Some(4), body);
        let reader = filling(&before).await.read_all();
        upstream.send(4).await;
        drop(upstream);
        assert_bytes(&all(reader).await.expect("whole"), 0..4);
        done.await.expect("no panic");
        let after =
            node.fills.join(KEY, None, || PurgeSequence(2), |_, _| unreachable!("none since"));
        assert!(matches!(after, Join::Follow(_)), "the old one's end leaves the new one in place");
    });
}

#[test]
fn a_purge_is_matched_against_the_head_once_it_is_there() {
    on_a_worker(async {
        let Begun { node, own, upstream: _upstream, .. } = begin(Some(4));
        filling(&own).await;
        let joined = node.fills.join(
            KEY,
            None,
            || PurgeSequence(1),
            |response, _| response.expect("the head is known").site.eq_ignore_ascii_case("another"),
        );
        assert!(matches!(joined, Join::Follow(_)));
    });
}

/// Rule of purges across hops: the fill may have begun before a purge that is in force at the asker.
#[test]
fn a_request_with_an_unmet_requirement_follows_only_a_fill_that_carries_it() {
    on_a_worker(async {
        let node = Node::new(small());
        let entries = |number| {
            let entry = EntryId(number, 0);
            Requirement::Entries(vec![StreamPosition { history: "h".into(), number, entry }])
        };
        let join = |unmet: Option<&Requirement>| {
            node.fills.join(KEY, unmet, || PurgeSequence(0), |_, _| false)
        };
        let Join::Lead(plain) = join(None) else { panic!("the first one leads") };
        let Join::Lead(carrying) = join(Some(&entries(7))) else { panic!("joined any fill") };
        assert!(matches!(join(Some(&entries(7))), Join::Follow(_)));
        assert!(matches!(join(None), Join::Follow(_)), "it began later than the request needs");
        let Join::Lead(later) = join(Some(&entries(8))) else { panic!("joined an older fill") };
        let origin_only = Requirement::OriginOnly;
        let Join::Lead(_first) = join(Some(&origin_only)) else { panic!("joined an older fill") };
        assert!(matches!(join(Some(&origin_only)), Join::Lead(_)), "it began earlier");
        drop((plain, carrying, later));
    });
}

/// Invariant 1: nothing whose upstream request began before a purge is fresh after it.
#[test]
fn a_purge_in_the_middle_of_a_fill_reaches_newcomers_and_what_is_stored() {
    on_a_worker(async {
        let node = Node::new(small());
        let join = || {
            let url = "https://www.example.org/a";
            let asked = PurgeTarget { site: "example", url, tags: &[] };
            let overtaken = |response: Option<&_>, since| {
                node.store.purges().overtaken(&asked, response, since)
            };
            node.fills.join(KEY, None, || node.store.purges().sequence(), overtaken)
        };
        let purge = async |scope| {
            let purges = vec![(scope, PurgeKind::Hard)];
            let batch = PurgeBatch { purges, ..PurgeBatch::default() };
            node.store.purges().purge(batch).await.expect("purged");
        };
        let Join::Lead(mut lead) = join() else { panic!("the first one leads") };
        assert!(matches!(join(), Join::Follow(_)), "nothing was purged");
        purge(PurgeScope::Url("https://www.example.org/b".into())).await;
        assert!(matches!(join(), Join::Follow(_)), "another URL, before the head is there");
        let (own, stored_at_sequence) = (lead.follower(), lead.sequence());
        let response =
            StoredResponse { stored_at_sequence, ..StoredResponse::clone(&response(None)) };
        let (mut upstream, body) = upstream();
        let store = node.store.clone();
        let done = spawn_local(async move { lead.fill(&store, Arc::new(response), body).await });
        let reader = filling(&own).await.read_all();
        purge(PurgeScope::Site("another".into())).await;
        assert!(matches!(join(), Join::Follow(_)), "a purge of something else");
        purge(PurgeScope::Url("https://www.example.org/a".into())).await;
        let Join::Lead(after) = join() else { panic!("followed a purged fill") };
        assert!(after.sequence() > stored_at_sequence);
        upstream.send(3).await;
        drop(upstream);
        assert_bytes(&all(reader).await.expect("whole"), 0..3);
        assert_eq!(done.await.expect("no panic"), FillEnd::Stored);
        let (head, _) = node.stored().await.expect("its bytes are there");
        assert_eq!(node.store.purge_verdict(&head), Some(PurgeKind::Hard));
        let unknown = join();
        assert!(matches!(unknown, Join::Follow(_)), "it began after the purge");
        purge(PurgeScope::Tag("any".into())).await;
        assert!(matches!(join(), Join::Lead(_)), "its tags are not known yet");
    });
}
