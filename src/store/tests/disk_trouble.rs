//! Disks that fail, stall, or have no space.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_in_trouble_is_left_out_and_comes_back() {
    let first = tempfile::tempdir().unwrap();
    let second = tempfile::tempdir().unwrap();
    let mut settings = on_disk(first.path());
    settings.directories.extend(on_disk(second.path()).directories);
    settings.disk_retry = Duration::from_secs(3600);
    let here = open(&settings).await;
    let keys: Vec<_> = (0..64).map(|number| CacheKey::new(format!("https://a/{number}"))).collect();
    for key in &keys {
        written(&store(&here, &key.text, &bytes(100)).await).await;
    }
    here.tiers.memory.evict_all();
    here.tiers.disks.fail(0);
    let mut found_now = 0;
    for key in &keys {
        found_now += usize::from(here.find(key.hash).await.is_some());
    }
    assert!((1..64).contains(&found_now), "{found_now} are on the other disk");
    assert_eq!(here.stat().directories[0].service, Service::Out);
    here.tiers.disks.try_again(0).await;
    assert_eq!(here.stat().directories[0].service, Service::Serving);
    for key in &keys {
        let head = found(here.find(key.hash).await);
        let verdict = here.purge_verdict(&head);
        // The records that a disk missed while it was out are not known.
        assert!(matches!(verdict, None | Some(PurgeKind::Missed)));
    }
    assert_eq!(total(&here, Metric::StoreDiskOuts), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_opened_leaves_the_node_serving() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("blocks"), "a file where a directory should be").unwrap();
    let settings = Settings { disk_retry: Duration::from_millis(50), ..on_disk(&path) };
    let here = open(&settings).await;
    let key = CacheKey::new("https://a/1");
    store(&here, &key.text, &bytes(100)).await;
    assert!(here.find(key.hash).await.is_some());
    assert_eq!(here.stat().directories[0].service, Service::Out);
    std::fs::remove_file(path.join("blocks")).unwrap();
    while here.stat().directories[0].service != Service::Serving {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cut_off_while_it_is_used_gives_misses_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let here = open(&on_disk(directory.path())).await;
    for number in 0..200 {
        written(&store(&here, &format!("https://a/{number}"), &bytes(3_000 + number)).await).await;
    }
    here.tiers.memory.evict_all();
    let data = directory.path().join("blocks/data");
    std::fs::OpenOptions::new().write(true).open(data).unwrap().set_len(300_000).unwrap();
    let (mut whole, mut failed) = (0, 0);
    for number in 0..200 {
        let key = CacheKey::new(format!("https://a/{number}"));
        match here.look_up(key.hash).await {
            Ok(Some(Record::Response(head))) => {
                let length = head.complete_length();
                assert_eq!(read(&here, &head, 0..length).await, bytes(3_000 + number));
                whole += 1;
            }
            found => {
                assert_eq!(found.map(|_| ()), Err(ReadFailed), "told from what is not there");
                assert!(here.look_up(key.hash).await.unwrap().is_none(), "gone from then on");
                failed += 1;
            }
        }
    }
    assert!((1..200).contains(&whole), "{whole}");
    assert_eq!(total(&here, Metric::StoreDiskErrors), failed, "each was told");
    assert_eq!(here.stat().directories[0].service, Service::Serving);
    let again = store(&here, "https://a/199", &bytes(500)).await;
    written(&again).await;
    here.tiers.memory.evict_all();
    assert_eq!(found(here.find(again.hash()).await).complete_length(), 500);
}

/// A disk with a file system of its own, in a file. `None` where mounting is not permitted.
struct LoopDisk {
    mounted: tempfile::TempDir,
    image: tempfile::NamedTempFile,
}

impl LoopDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let (mounted, image) =
            (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        image.as_file().set_len(bytes).unwrap();
        let disk = Self { mounted, image };
        let made = disk.run("mkfs.ext4", &["-q", "-O", "^has_journal", &disk.image()]);
        let is_mounted = made && disk.run("mount", &["-o", "loop", &disk.image(), &disk.path()]);
        if !is_mounted {
            println!("skipped, no loop device can be mounted");
        }
        is_mounted.then_some(disk)
    }

    fn path(&self) -> String {
        self.mounted.path().display().to_string()
    }

    fn image(&self) -> String {
        self.image.path().display().to_string()
    }

    /// Whether every write waits from now on.
    fn freeze(&self, frozen: bool) -> bool {
        self.run("fsfreeze", &[if frozen { "-f" } else { "-u" }, &self.path()])
    }

    fn run(&self, command: &str, arguments: &[&str]) -> bool {
        let ran = std::process::Command::new(command).args(arguments).output();
        ran.is_ok_and(|output| output.status.success())
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        self.freeze(false);
        self.run("umount", &["-l", &self.path()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stalls_is_left_out_and_comes_back() {
    let Some(disk) = LoopDisk::mount(96 << 20) else { return };
    let log = tempfile::tempdir().unwrap();
    let settings = Settings {
        disk_deadline: Duration::from_millis(500),
        disk_retry: Duration::from_millis(20),
        ..on_disk(disk.mounted.path())
    };
    let here = open_with_log(&settings, Some(log.path())).await;
    let before = store(&here, "https://a/before", &bytes(10_000)).await;
    written(&before).await;
    assert!(disk.freeze(true));
    let during = store(&here, "https://a/during", &bytes(10_000)).await;
    while here.stat().directories[0].service != Service::Out {
        tokio::task::yield_now().await;
    }
    assert_eq!(total(&here, Metric::StoreDiskOuts), 1);
    assert!(here.in_memory(during.hash()).is_some(), "the node serves on");
    let more = store(&here, "https://a/more", &bytes(300)).await;
    assert_eq!(found(here.find(more.hash()).await).complete_length(), 300);
    assert!(here.find(KeyHash::of(b"https://a/never")).await.is_none());
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let threads_then = threads();
    tokio::time::sleep(10 * settings.disk_retry).await;
    assert!(threads() < threads_then + 8, "each try holds a thread that the last one holds");

    assert!(disk.freeze(false));
    while here.stat().directories[0].service != Service::Serving {
        tokio::task::yield_now().await;
    }
    written(&store(&here, "https://a/after", &bytes(10_000)).await).await;
    here.tiers.memory.evict_all();
    let head = found(here.find(before.hash()).await);
    assert_eq!(
        here.purge_verdict(&head),
        Some(PurgeKind::Missed),
        "it may have missed a newer one"
    );
    assert_eq!(read(&here, &head, 0..10_000).await, bytes(10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_the_disk_fails_are_misses_and_are_told() {
    let Some(disk) = LoopDisk::mount(96 << 20) else { return };
    let log = tempfile::tempdir().unwrap();
    let settings = on_disk(disk.mounted.path());
    let here = open_with_log(&settings, Some(log.path())).await;
    for number in 0..100 {
        written(&store(&here, &format!("https://a/{number}"), &bytes(3_000)).await).await;
    }
    here.tiers.memory.evict_all();
    // Nothing of the file is left in the page cache, and nothing of the disk beneath it.
    let data = File::open(disk.mounted.path().join("blocks/data")).unwrap();
    rustix::fs::fsync(&data).unwrap();
    rustix::fs::fadvise(&data, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    disk.image.as_file().set_len(1 << 20).unwrap();
    for number in 0..100 {
        let key = CacheKey::new(format!("https://a/{number}"));
        if let Some(Record::Response(head)) = here.find(key.hash).await {
            assert_eq!(read(&here, &head, 0..3_000).await, bytes(3_000));
        }
    }
    assert!(total(&here, Metric::StoreDiskErrors) > 0, "what failed was told");
    let again = store(&here, "https://a/1", &bytes(400)).await;
    assert_eq!(found(here.find(again.hash()).await).complete_length(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_read_only_at_the_start_leaves_the_node_serving() {
    let Some(disk) = SmallDisk::mount(80 << 20) else { return };
    let remount = |how: &str| {
        let mut command = std::process::Command::new("mount");
        let output = command.args(["-o", &format!("remount,{how}")]).arg(disk.0.path()).output();
        assert!(output.unwrap().status.success());
    };
    remount("ro");
    let log = tempfile::tempdir().unwrap();
    let settings = Settings { disk_retry: Duration::from_millis(20), ..on_disk(disk.0.path()) };
    let here = open_with_log(&settings, Some(log.path())).await;
    let head = store(&here, "https://a/1", &bytes(100)).await;
    assert!(here.find(head.hash()).await.is_some());
    assert_eq!(here.stat().directories[0].service, Service::Out);
    assert!(total(&here, Metric::StoreDiskOuts) > 0);
    remount("rw");
    while here.stat().directories[0].service != Service::Serving {
        tokio::task::yield_now().await;
    }
    written(&store(&here, "https://a/2", &bytes(100)).await).await;
}

/// A file system of its own that is soon full. `None` where mounting is not permitted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(directory)),
            other => {
                println!("skipped, no tmpfs can be mounted: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

/// Stores bodies of 60,000 bytes under numbered keys until each is on disk or was dropped.
async fn store_many(here: &Store, numbers: Range<u32>) -> Vec<Arc<StoredHead>> {
    let mut heads = Vec::new();
    let dropped = total(here, Metric::StoreDiskDropped);
    for number in numbers {
        let head = store(here, &format!("https://a/{number}"), &bytes(60_000)).await;
        // A piece that could not be written stays wanted.
        while head.disk_state.load(Ordering::Acquire) == disk_state::QUEUED
            && total(here, Metric::StoreDiskDropped) == dropped
        {
            tokio::task::yield_now().await;
        }
        heads.push(head);
    }
    heads
}

/// How many of them come back whole, from disk alone; no byte is wrong.
async fn whole(here: &Store, heads: &[Arc<StoredHead>]) -> usize {
    here.tiers.memory.evict_all();
    let mut whole = 0;
    for head in heads {
        let Some(Record::Response(head)) = here.find(head.hash()).await else { continue };
        // A piece that leaves memory and is not on disk any more is written, over something else.
        if let Ok(body) =
            crate::body::Body::stream(here.body(&head, 0..head.complete_length())).collect().await
        {
            assert_eq!(body.to_bytes(), bytes(60_000));
            whole += 1;
        }
    }
    whole
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_others_leave_no_room_makes_do_and_grows_again() {
    let Some(disk) = SmallDisk::mount(32 << 20) else { return };
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; 12 << 20]).unwrap();
    let log = tempfile::tempdir().unwrap();
    let settings = Settings {
        // Less than the disk has, so that what memory has is there too.
        memory_bytes: 1 << 20,
        disk_reserve: DiskReserve::Bytes(8 << 20),
        disk_retry: Duration::from_millis(20),
        ..on_disk(disk.0.path())
    };
    let here = open_with_log(&settings, Some(log.path())).await;
    let directory = || here.stat().directories[0].clone();
    assert!(!directory().is_short_of_space);
    let free = || {
        let stat = rustix::fs::statvfs(disk.0.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    store_many(&here, 0..400).await;
    assert_eq!(directory().service, Service::Serving, "a ring that cannot grow still turns");
    assert!(directory().is_short_of_space);
    let bytes_then = directory().bytes;
    assert!((10 << 20..=12 << 20).contains(&bytes_then), "{bytes_then}");
    assert!(free() >= 8 << 20, "the reserve stays free: {}", free());
    let counts = [Metric::StoreDiskDropped, Metric::StoreDiskOuts, Metric::StoreDiskShort];
    assert_eq!(counts.map(|metric| total(&here, metric)), [0, 0, 1], "told once");
    let text = here.tiers.recorder.metrics().encode();
    let gauge =
        format!("skerry_store_directory_bytes{{directory={:?}}} {bytes_then}", disk.0.path());
    assert!(text.contains(&gauge), "{text}");

    std::fs::remove_file(filler).unwrap();
    while directory().is_short_of_space {
        tokio::task::yield_now().await;
    }
    let more = store_many(&here, 1000..1400).await;
    assert!(directory().bytes > bytes_then, "it has grown");
    assert!(free() >= 8 << 20, "the reserve stays free: {}", free());
    let kept = directory().bytes;
    close(&here).await;
    drop(here);
    let here = open_with_log(&settings, Some(log.path())).await;
    assert_eq!(here.stat().directories[0].bytes, kept, "what it had is its own after a start");
    let came = whole(&here, &more).await;
    assert!(came > 250, "{came} of 400 are there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_room_for_one_block_waits_for_it() {
    let Some(disk) = SmallDisk::mount(16 << 20) else { return };
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; 14 << 20]).unwrap();
    let log = tempfile::tempdir().unwrap();
    let settings = Settings {
        disk_retry: Duration::from_millis(20),
        disk_reserve: DiskReserve::Auto,
        preallocate: true,
        ..on_disk(disk.0.path())
    };
    let here = open_with_log(&settings, Some(log.path())).await;
    assert_eq!(here.stat().directories[0].service, Service::Out);
    let head = store(&here, "https://a/1", &bytes(100)).await;
    assert!(here.find(head.hash()).await.is_some(), "the node serves on");
    std::fs::remove_file(filler).unwrap();
    while here.stat().directories[0].service != Service::Serving {
        tokio::task::yield_now().await;
    }
    written(&store(&here, "https://a/2", &bytes(100)).await).await;
    assert!(here.stat().directories[0].is_short_of_space, "16 MiB are no 64");
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_takes_all_at_the_start_and_nobody_takes_it_away() {
    let Some(disk) = SmallDisk::mount(100 << 20) else { return };
    let settings = Settings {
        disk_reserve: DiskReserve::Bytes(1 << 20),
        preallocate: true,
        ..on_disk(disk.0.path())
    };
    let here = open(&settings).await;
    let directory = here.stat().directories[0].clone();
    assert_eq!((directory.bytes, directory.bytes_max), (64 << 20, 64 << 20));
    assert!(!directory.is_short_of_space);
    assert_eq!(misfits(&settings), [], "what it has is its own");
    let larger = Directory { path: disk.0.path().to_owned(), bytes: 128 << 20 };
    let misfit = misfits(&Settings { directories: vec![larger], ..settings }).remove(0);
    assert_eq!((misfit.directories, misfit.is_in_use), (vec![0], false));
    assert!((95 << 20..100 << 20).contains(&misfit.fits_bytes), "{}", misfit.fits_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_directories_of_one_file_system_must_fit_together() {
    let Some(disk) = SmallDisk::mount(100 << 20) else { return };
    let directory = |name: &str, bytes| Directory { path: disk.0.path().join(name), bytes };
    let fits = |one: u64, other: u64| {
        let directories = vec![directory("a/b", one << 20), directory("c", other << 20)];
        misfits(&Settings { directories, disk_reserve: DiskReserve::Auto, ..small() })
    };
    assert_eq!(fits(45, 40), []);
    let misfit = fits(85, 85).remove(0);
    assert_eq!(misfit.directories, [0, 1]);
    assert!(misfit.advice().contains("170.0 MiB of disk cache in 2 directories do not fit"));
    assert!(
        misfit.advice().contains("10.0 MiB are reserved (store.disk_reserve); at most 90.0 MiB")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_fail_are_told_and_the_node_serves_on() {
    let Some(disk) = SmallDisk::mount(24 << 20) else { return };
    let log = tempfile::tempdir().unwrap();
    let settings = Settings { disk_retry: Duration::from_secs(3600), ..on_disk(disk.0.path()) };
    let here = open_with_log(&settings, Some(log.path())).await;
    let mut heads = store_many(&here, 0..100).await;
    // Somebody takes away the space of a block that comes next, and all that is free.
    let data = File::options().write(true).open(layout::data_file(disk.0.path())).unwrap();
    let hole = here.stat().directories[0].bytes - (1 << 20);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&data, punch, hole, 1 << 20).unwrap();
    let filler = disk.0.path().join("filler");
    assert!(std::fs::write(&filler, vec![1; 24 << 20]).is_err(), "it is full");
    heads.extend(store_many(&here, 100..200).await);
    assert!(total(&here, Metric::StoreDiskDropped) > 0);
    assert_eq!(total(&here, Metric::StoreDiskOuts), 1);
    assert_eq!(here.stat().directories[0].service, Service::ReadOnly);
    let text = here.tiers.recorder.metrics().encode();
    assert!(text.contains("skerry_store_directory_in_service{directory="), "{text}");
    let came = whole(&here, &heads).await;
    assert!(came > 20, "{came} were written before the disk was full");
    std::fs::remove_file(filler).unwrap();
    here.tiers.disks.try_again(0).await;
    assert_eq!(here.stat().directories[0].service, Service::Serving);
    written(&store(&here, "https://a/later", &bytes(60_000)).await).await;
}
