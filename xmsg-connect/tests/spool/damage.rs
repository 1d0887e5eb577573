//! What becomes of a spool whose file is damaged, or whose disk is full.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use tempfile::tempdir;
use xmsg_connect::spool::{DeadCause, Spool, SpoolErrorKind, SpoolOptions};

use crate::common::{all, body, open, until};

/// Returns the path of the file of a spool.
fn file(dir: &Path) -> PathBuf {
    dir.join("spool.redb")
}

/// Returns a kibibyte that is found again in the file, and differs from entry to entry.
fn kibibyte(n: u64) -> Bytes {
    Bytes::from(format!("<{n:08}>").repeat(1024 / 10))
}

/// Fills a spool with so many entries, and closes it.
async fn fill(dir: &Path, entries: u64) {
    let spool = open(dir);
    let appends: Vec<_> = (1..=entries)
        .map(|n| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.append(kibibyte(n)).await.unwrap() })
        })
        .collect();
    for append in appends {
        append.await.unwrap();
    }
    spool.close().await.unwrap();
}

fn asides(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".damaged-")).count()
}

#[tokio::test]
async fn a_damaged_record_is_lost_alone_and_kept_as_a_dead_letter() {
    let dir = tempdir().unwrap();
    fill(dir.path(), 500).await;
    let mut bytes = fs::read(file(dir.path())).unwrap();
    let mut flipped = 0;
    // Old copies of a page may lie about: all are damaged.
    for at in 0..bytes.len() - 10 {
        if &bytes[at..at + 10] == b"<00000123>" {
            bytes[at + 4] ^= 1;
            flipped += 1;
        }
    }
    assert!(flipped > 0);
    fs::write(file(dir.path()), bytes).unwrap();

    let spool = open(dir.path());
    let entries = all(&spool).await;
    assert_eq!(entries.len(), 499);
    assert!(entries.iter().all(|entry| entry.body == kibibyte(entry.sequence) && entry.sequence != 123));
    until(|| spool.status().damaged == 1).await;
    let status = spool.status();
    assert_eq!((status.entries, status.rebuilt, status.dead_entries), (499, 0, 1));
    let letter = spool.dead(0, 10).await.unwrap().remove(0);
    assert_eq!((letter.sequence, letter.cause), (123, DeadCause::Damaged));
    assert_eq!(letter.body.len(), kibibyte(123).len());
    assert_eq!(spool.revive(123).await.unwrap_err().kind(), SpoolErrorKind::Damaged);
    assert_eq!(spool.append(body("on")).await.unwrap(), 501);
}

#[tokio::test]
async fn whatever_is_damaged_nothing_wrong_comes_out_and_the_spool_goes_on() {
    const ENTRIES: u64 = 300;
    let pristine = tempdir().unwrap();
    fill(pristine.path(), ENTRIES).await;
    let bytes = fs::read(file(pristine.path())).unwrap();
    let (mut lost, mut rebuilt) = (0, 0);
    for run in 0..60 {
        let dir = tempdir().unwrap();
        let mut bytes = bytes.clone();
        // Every third time in the first pages, where the roots are.
        let len = if run % 3 == 0 { 8192 } else { bytes.len() };
        let at = fastrand::usize(..len);
        for byte in bytes.iter_mut().skip(at).take(1 << fastrand::u32(..12)) {
            *byte = fastrand::u8(..);
        }
        fs::write(file(dir.path()), bytes).unwrap();
        let spool = open(dir.path());
        let found = all(&spool).await;
        for entry in &found {
            assert_eq!(entry.body, kibibyte(entry.sequence), "run {run}, damage at {at}");
        }
        let sequence = spool.append(body("on")).await.unwrap();
        assert!(sequence > ENTRIES, "run {run}: {sequence}");
        let sequences: Vec<u64> = found.iter().map(|entry| entry.sequence).collect();
        spool.remove(&sequences).await.unwrap();
        spool.sync().await.unwrap();
        let left = all(&spool).await;
        assert_eq!(
            left.last().map(|entry| entry.body.clone()),
            Some(body("on")),
            "run {run}, damage at {at}"
        );
        let sequences: Vec<u64> = left.iter().map(|entry| entry.sequence).collect();
        spool.remove(&sequences).await.unwrap();
        spool.sync().await.unwrap();
        let status = spool.status();
        assert_eq!(
            (status.entries, status.bytes),
            (0, 0),
            "run {run}, damage at {at}: what vanished takes no room"
        );
        if status.rebuilt == 0 {
            let lost = ENTRIES - found.len() as u64;
            assert_eq!(status.damaged + status.lost, lost, "run {run}, damage at {at}: each loss is counted");
        }
        lost += ENTRIES - found.len() as u64;
        rebuilt += status.rebuilt;
        spool.close().await.unwrap();
        open(dir.path()).close().await.unwrap();
    }
    println!("{lost} entries of {} were lost, {rebuilt} files rebuilt", 60 * ENTRIES);
}

#[tokio::test]
async fn a_file_that_is_cut_off_is_kept_aside_and_replaced() {
    let dir = tempdir().unwrap();
    let mut last = 0;
    for (round, per_mille) in [900, 500, 10, 0].into_iter().enumerate() {
        fill(dir.path(), 200).await;
        let len = fs::metadata(file(dir.path())).unwrap().len();
        let cut = fs::OpenOptions::new().write(true).open(file(dir.path())).unwrap();
        cut.set_len(len * per_mille / 1000).unwrap();
        let spool = open(dir.path());
        let sequence = spool.append(body("on")).await.unwrap();
        assert!(sequence > last + 200, "sequences grow");
        last = sequence;
        if per_mille > 0 {
            assert_eq!((spool.status().rebuilt, asides(dir.path())), (1, round + 1));
        }
        spool.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_something_else_is_kept_aside_and_so_are_only_the_latest() {
    let dir = tempdir().unwrap();
    for _ in 0..6 {
        fs::write(file(dir.path()), "this is not a store".repeat(1000)).unwrap();
        let spool = open(dir.path());
        assert_eq!(spool.status().rebuilt, 1);
        spool.append(body("on")).await.unwrap();
        spool.close().await.unwrap();
    }
    assert_eq!(asides(dir.path()), 4);
}

#[tokio::test]
async fn a_rebuild_that_was_cut_short_is_done_again_or_finished() {
    let dir = tempdir().unwrap();
    fill(dir.path(), 10).await;
    let draft = dir.path().join("spool.redb.new");
    // Killed while the draft was written.
    fs::write(&draft, "half a draft").unwrap();
    let spool = open(dir.path());
    assert_eq!((spool.status().entries, draft.exists()), (10, false));
    spool.close().await.unwrap();
    // Killed between the two renames.
    fs::rename(file(dir.path()), &draft).unwrap();
    let spool = open(dir.path());
    assert_eq!((spool.status().entries, spool.status().newest_sequence), (10, 10));
}

/// A file system of so many MiB, as long as this lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u32) -> Self {
        let dir = tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "xmsg-test"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "mounting takes root; XMSG_TEST_NETNS=0 leaves this test out");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazy, so that a spool that is open still holds up nothing.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Appends until the disk is full. Returns what was acknowledged.
async fn fill_disk(spool: &Spool) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    loop {
        let appends: Vec<_> = (0..64)
            .map(|n| {
                let spool = spool.clone();
                tokio::spawn(async move { spool.append(kibibyte(n)).await })
            })
            .collect();
        let mut is_full = false;
        for append in appends {
            match append.await.unwrap() {
                Ok(sequence) => assert!(acknowledged.insert(sequence)),
                Err(error) => {
                    assert_eq!(error.kind(), SpoolErrorKind::DiskFull, "{error:?}");
                    is_full = true;
                }
            }
        }
        if is_full {
            return acknowledged;
        }
    }
}

#[tokio::test]
async fn a_full_disk_fails_appends_until_there_is_room() {
    if std::env::var_os("XMSG_TEST_NETNS").is_none_or(|value| value != "1") {
        eprintln!("left out: XMSG_TEST_NETNS=1 runs the tests that take root");
        return;
    }
    let disk = SmallDisk::mount(32);
    let (dir, ballast) = (disk.path().join("spool"), disk.path().join("ballast"));
    fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let spool = Spool::open(&dir, SpoolOptions::default()).unwrap();
    let mut acknowledged = fill_disk(&spool).await;
    let status = spool.status();
    assert!(status.failed > 0);
    assert_eq!(status.last_error.map(|error| error.kind()), Some(SpoolErrorKind::DiskFull));
    assert_eq!(status.entries, acknowledged.len() as u64);

    // Somebody makes room on the disk.
    fs::remove_file(&ballast).unwrap();
    acknowledged.insert(spool.append(kibibyte(1)).await.unwrap());
    acknowledged.extend(fill_disk(&spool).await);

    // Nobody does, but the spool is drained, and its file used again, while others go on trying to append.
    let (stop, stopped) = tokio::sync::watch::channel(());
    let others = tokio::spawn({
        let spool = spool.clone();
        async move {
            let mut acknowledged = Vec::new();
            while !stopped.has_changed().unwrap_or(true) {
                acknowledged.extend(spool.append(kibibyte(7)).await);
            }
            acknowledged
        }
    });
    let mut after = 0;
    let mut removed = 0;
    while acknowledged.len() - removed > 100 {
        let page = spool.next_after(after, 256, 1 << 20).await.unwrap();
        let sequences: Vec<u64> = page.iter().map(|entry| entry.sequence).collect();
        after = *sequences.last().unwrap();
        removed += sequences.len();
        spool.remove(&sequences).await.unwrap();
        spool.sync().await.unwrap();
    }
    assert_eq!(spool.status().unsynced_removals, 0);
    drop(stop);
    acknowledged.retain(|&sequence| sequence > after);
    acknowledged.extend(others.await.unwrap().into_iter().filter(|&sequence| sequence > after));
    for n in 0..100 {
        acknowledged.insert(spool.append(kibibyte(n)).await.unwrap());
    }
    let found = |entries: Vec<xmsg_connect::spool::Entry>| {
        entries.iter().map(|entry| entry.sequence).collect::<BTreeSet<_>>()
    };
    assert_eq!(found(all(&spool).await), acknowledged);
    acknowledged.extend(fill_disk(&spool).await);
    spool.close().await.unwrap();

    // It opens on a full disk, and has all that was acknowledged.
    let spool = Spool::open(&dir, SpoolOptions::default()).unwrap();
    assert_eq!(found(all(&spool).await), acknowledged);
    // One entry may fit where a group did not.
    acknowledged.extend(fill_disk(&spool).await);
    assert_eq!(found(all(&spool).await), acknowledged);
    spool.close().await.unwrap();
}
