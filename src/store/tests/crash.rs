//! Kills a process that writes to a store and purges from it, at moments nobody chose, and looks
//! at what comes back. `SKERRY_CRASH_ROUNDS=200` for the long run; the seed is printed.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use http_body_util::BodyExt;

use super::super::*;
use super::{open, response};
use crate::cache::PurgeScope;
use crate::purge::PurgeBatch;

const DIRECTORY: &str = "SKERRY_CRASH_DIRECTORY";
const VERSION: &str = "SKERRY_CRASH_VERSION";
const ROUNDS: &str = "SKERRY_CRASH_ROUNDS";
const KEYS: u64 = 40;

fn settings(directory: &Path) -> Settings {
    Settings {
        memory_bytes: 4 << 20,
        directories: vec![Directory { path: directory.to_owned(), bytes: 64 << 20 }],
        slice_bytes: 4096,
        admission: Admission::All,
        preallocate: false,
        disk_reserve: DiskReserve::Bytes(0),
        ..Settings::default()
    }
}

fn url(key: u64) -> String {
    format!("https://a/{key}")
}

/// A body that tells which it is, of up to five slices.
fn body(key: u64, version: u64) -> Bytes {
    let length = 16 + ((key * 7919 + version * 104_729) % 20_000) as usize;
    let words = [key, version].into_iter().chain((0..).map(|at| at ^ version ^ (key << 32)));
    let mut bytes: Vec<u8> = words.take(length.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(length);
    bytes.into()
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Not a test: the process that is killed. Says what it did after it was done.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_killed_node_comes_back_warm_and_serves_nothing_purged"]
async fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let mut version: u64 = std::env::var(VERSION).unwrap().parse().unwrap();
    let mut state = version * 2 + 1;
    let store = open(&settings(Path::new(&directory))).await;
    let mut out = std::io::stdout();
    loop {
        version += 1;
        let key = random(&mut state) % KEYS;
        if random(&mut state).is_multiple_of(8) {
            let purge = (PurgeScope::Url(url(key).into()), PurgeKind::Hard);
            let batch = PurgeBatch { purges: vec![purge], ..PurgeBatch::default() };
            store.purges().purge(batch).await.unwrap();
            writeln!(out, "\npurged {key} {version}").unwrap();
        } else {
            let mut writer = store.writer(response(&url(key), store.purges().sequence()));
            writer.push(body(key, version)).await.unwrap();
            let head = writer.finish().await.unwrap();
            while random(&mut state).is_multiple_of(2)
                && head.disk_state.load(Ordering::Acquire) != disk_state::WRITTEN
            {
                tokio::task::yield_now().await;
            }
            writeln!(out, "\nstored {key} {version}").unwrap();
        }
    }
}

/// Lets the child do `deeds` things, kills it, and adds what it managed to say to `purged`.
fn run_and_kill(directory: &Path, version: u64, deeds: u64, purged: &mut HashMap<u64, u64>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "store::tests::crash::child", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(VERSION, version.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut done = 0;
    let mut killed = false;
    while let Some(Ok(line)) = lines.next() {
        let mut words = line.split(' ');
        let deed = words.next();
        if let Some("purged") = deed {
            let mut number = || words.next().unwrap().parse::<u64>().unwrap();
            purged.insert(number(), number());
        }
        done += u64::from(matches!(deed, Some("purged" | "stored")));
        if done >= deeds && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_comes_back_warm_and_serves_nothing_purged() {
    let rounds = std::env::var(ROUNDS).map_or(6, |rounds| rounds.parse().unwrap());
    let mut state = crate::random::random_u64() | 1;
    println!("seed {state}");
    let directory = tempfile::tempdir().unwrap();
    let mut purged = HashMap::new();
    let (mut served, mut hidden, mut missing) = (0, 0, 0);
    for round in 0..rounds {
        let deeds = 20 + random(&mut state) % 300;
        run_and_kill(directory.path(), round * 1_000_000, deeds, &mut purged);
        let store = open(&settings(directory.path())).await;
        for key in 0..KEYS {
            let Some(Record::Response(head)) = store.find(KeyHash::of(url(key).as_bytes())).await
            else {
                missing += 1;
                continue;
            };
            if store.purge_verdict(&head).is_some() {
                hidden += 1;
                continue;
            }
            let Ok(bytes) =
                crate::body::Body::stream(store.body(&head, 0..u64::MAX)).collect().await
            else {
                missing += 1;
                continue;
            };
            let bytes = bytes.to_bytes();
            let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
            assert_eq!(bytes, body(key, version), "key {key}, round {round}");
            let purged_at = purged.get(&key).copied().unwrap_or_default();
            assert!(version > purged_at, "key {key}: {version} was purged at {purged_at}");
            served += 1;
        }
        store.close().await;
        store.purges().close();
    }
    println!("{rounds} kills: {served} served, {hidden} purged, {missing} not there");
    assert!(served > KEYS * rounds / 4, "{served} of {} came back", KEYS * rounds);
}
