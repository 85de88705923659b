//! The shares of sites.

use super::*;

async fn store_for(here: &Store, site: &str, url: &str, body: &Bytes) -> Arc<StoredHead> {
    let of_site = StoredResponse { site: site.into(), ..response(url, here.purges().sequence()) };
    let mut writer = here.writer(of_site);
    writer.push(body.clone()).await.unwrap();
    writer.finish().await.unwrap()
}

fn site(here: &Store, name: &str) -> SiteStat {
    here.stat().sites.into_iter().find(|site| &*site.site == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_are_counted_in_memory_and_on_disk_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { sites_max: 2, ..on_disk(directory.path()) };
    let here = open(&settings).await;
    for number in 0..10 {
        for (name, length) in [("large", 10_000), ("small", 100)] {
            let url = format!("https://{name}/{number}");
            written(&store_for(&here, name, &url, &bytes(length)).await).await;
        }
    }
    store_for(&here, "third", "https://third/", &bytes(10)).await;
    store_for(&here, "fourth", "https://fourth/", &bytes(10)).await;
    let (large, small, others) =
        (site(&here, "large"), site(&here, "small"), site(&here, "(others)"));
    assert_eq!((large.memory_objects, small.memory_objects, others.memory_objects), (10, 10, 2));
    assert!((100_000..130_000).contains(&large.memory_bytes), "{large:?}");
    let total = large.memory_bytes + small.memory_bytes + others.memory_bytes;
    assert_eq!(total, here.stat().memory_bytes, "nothing is counted twice, or not at all");
    here.forget(KeyHash::of(b"https://large/0"));
    assert_eq!(site(&here, "large").memory_objects, 9);
    close(&here).await;
    assert_eq!(site(&here, "large").memory_bytes, 0, "a stop empties memory");
    drop(here);
    let here = open(&settings).await;
    here.tiers.disks.count_sites(false).await;
    let (large, small) = (site(&here, "large"), site(&here, "small"));
    assert!((9..=10).contains(&large.disk_objects) && small.disk_objects == 10, "{large:?}");
    // A head and three slices, each with its header.
    assert!(large.disk_bytes >= 9 * 10_000 && small.disk_bytes >= 10 * 100, "{large:?}");
    let text = here.tiers.recorder.metrics().encode();
    assert!(text.contains("skerry_store_site_disk_bytes{site=\"large\"}"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_over_its_share_loses_its_own_oldest_and_writes_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let share = SiteShare { site: "greedy".to_owned(), percent_max: 10 };
    let settings =
        Settings { memory_bytes: 4 << 20, site_shares: vec![share], ..on_disk(directory.path()) };
    let here = open(&settings).await;
    let modest = store_for(&here, "modest", "https://modest/", &bytes(4000)).await;
    for number in 0..2000 {
        let url = format!("https://greedy/{number}");
        store_for(&here, "greedy", &url, &bytes(4000)).await;
    }
    let greedy = site(&here, "greedy");
    let max = greedy.memory_bytes_max.unwrap();
    assert!(greedy.memory_bytes <= max && greedy.memory_bytes > max / 2, "{greedy:?}");
    assert!(here.in_memory(modest.hash()).is_some(), "the others lose nothing");
    assert!(here.in_memory(KeyHash::of(b"https://greedy/1999")).is_some(), "the newest stays");
    let disk_max = greedy.disk_bytes_max.unwrap();
    while total(&here, Metric::StoreDiskOverShare) == 0 {
        for number in 0..1000 {
            let url = format!("https://greedy/more/{number}");
            store_for(&here, "greedy", &url, &bytes(16_000)).await;
        }
    }
    let queued_at_most = settings.write_queue_bytes as u64;
    assert!(site(&here, "greedy").disk_bytes <= disk_max + queued_at_most);
    written(&store_for(&here, "modest", "https://modest/2", &bytes(4000)).await).await;
}
