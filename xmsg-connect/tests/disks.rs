//! Disks that are broken or do not answer: they concern the entry whose spool is on them, and no other.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use xmsg_connect::definition::{Definitions, OutgoingDefinition, SendingSocket};
use xmsg_connect::{ErrorKind, LinkState, OnDelete, Sort};
use xmsg_tests::within;

use common::{Site, message, set_active};

/// Defines an outgoing connection to an address that nobody listens on, so that messages stay in its spool.
fn waiting(name: &str) -> OutgoingDefinition {
    OutgoingDefinition::zmq(name, SendingSocket::Push, "tcp://127.0.0.1:9")
}

fn spool(site: &Site, name: &str) -> PathBuf {
    site.folder.path().join("state/spool").join(name)
}

/// Makes a spool whose disk does not answer: opening its lock waits until somebody reads from it, which this
/// does when it is dropped.
struct Hanging {
    /// Another name of the lock, which stays when the folder goes.
    lock: PathBuf,
}

impl Hanging {
    fn make(site: &Site, name: &str) -> Self {
        let (folder, lock) = (spool(site, name), site.folder.path().join("hanging"));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success());
        std::fs::hard_link(&lock, folder.join("lock")).unwrap();
        Self { lock }
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // Opening it for both never waits.
        drop(File::options().read(true).write(true).open(&self.lock));
    }
}

/// Waits for a change, which has to be done within this time.
async fn soon<T>(what: &str, change: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(1), change).await;
    done.unwrap_or_else(|_| panic!("{what} has waited for the disk of another entry"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_cannot_be_opened_makes_its_link_faulted_and_no_other() {
    let mut site = Site::new().await;
    for name in ["bad", "good"] {
        site.registry.create(waiting(name)).await.unwrap();
        site.registry.send(name, message("a", "kept")).await.unwrap();
    }
    site.registry.close().await.unwrap();
    let (bad, aside) = (spool(&site, "bad"), site.folder.path().join("aside"));
    std::fs::rename(&bad, &aside).unwrap();
    std::fs::write(&bad, "no folder").unwrap();
    site.restart().await;

    let report = site.until_state("bad", LinkState::Faulted).await;
    let reason = report.link.reason.unwrap().what;
    assert!(reason.contains(bad.to_str().unwrap()), "{reason}");
    assert!(report.spool.last_error.unwrap().contains("spool"), "the spool says so, too");
    let error = site.registry.send("bad", message("a", "refused")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    let error = site.registry.delete(Sort::Outgoing, "bad", OnDelete::Refuse).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    site.registry.send("good", message("a", "taken")).await.unwrap();
    assert_eq!(site.registry.outgoing("good").unwrap().spool.entries, 2);

    // Somebody mends it, and sets it to work again.
    set_active(&site, Sort::Outgoing, "bad", false).await;
    std::fs::remove_file(&bad).unwrap();
    std::fs::rename(&aside, &bad).unwrap();
    set_active(&site, Sort::Outgoing, "bad", true).await;
    site.until("bad", "its message", |report| report.spool.entries == 1).await;
    site.registry.send("bad", message("a", "taken")).await.unwrap();

    // One that can't be mended can be deleted.
    std::fs::create_dir_all(spool(&site, "hopeless").join("lock")).unwrap();
    site.registry.create(waiting("hopeless")).await.unwrap();
    site.until_state("hopeless", LinkState::Faulted).await;
    site.registry.delete(Sort::Outgoing, "hopeless", OnDelete::Purge).await.unwrap();
    assert!(!spool(&site, "hopeless").exists());
    assert_eq!(site.registry.report().orphans, [""; 0]);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_holds_up_no_change_of_another_entry() {
    let site = Site::new().await;
    let answering = Hanging::make(&site, "hanging");
    let registry = site.registry.clone();
    let creating = tokio::spawn(async move { registry.create(waiting("hanging")).await });
    within("the entry", async {
        while site.registry.outgoing("hanging").is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    soon("creating", site.registry.create(waiting("other"))).await.unwrap();
    soon("sending", site.registry.send("other", message("a", "b"))).await.unwrap();
    soon("renaming", site.registry.rename(Sort::Outgoing, "other", "renamed")).await.unwrap();
    soon("resting", site.registry.set_active(Sort::Outgoing, "renamed", false)).await.unwrap();
    soon("deleting", site.registry.delete(Sort::Outgoing, "renamed", OnDelete::Purge)).await.unwrap();
    assert_eq!(soon("reporting", async { site.registry.report() }).await.outgoing.len(), 1);
    // The entry itself can be deleted, and another one be made in its place, which waits for the folder.
    soon("deleting it", site.registry.delete(Sort::Outgoing, "hanging", OnDelete::Purge)).await.unwrap();
    creating.await.unwrap().unwrap();
    soon("the same name", site.registry.create(waiting("hanging"))).await.unwrap();
    site.registry.send("hanging", message("a", "b")).await.unwrap();
    site.registry.close().await.unwrap();
    // Its thread goes on once the disk answers; the file itself is gone.
    drop(answering);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_was_cut_short_is_finished_or_has_not_begun() {
    let mut site = Site::new().await;
    for name in ["undone", "done"] {
        site.registry.create(waiting(name)).await.unwrap();
        site.registry.send(name, message("a", "b")).await.unwrap();
    }
    site.registry.close().await.unwrap();
    // The process was killed before the state file said that the entry is gone, and after that.
    for name in ["undone", "done"] {
        std::fs::write(spool(&site, name).join("purge"), "").unwrap();
    }
    let state = site.folder.path().join("state/connect.toml");
    let mut definitions = Definitions::parse(&std::fs::read_to_string(&state).unwrap()).unwrap();
    definitions.outgoing.retain(|outgoing| outgoing.name == "undone");
    std::fs::write(&state, definitions.to_toml().unwrap()).unwrap();
    // Files of a third one were being removed.
    let half = spool(&site, ".deleted-third-1");
    std::fs::create_dir_all(&half).unwrap();
    site.restart().await;
    assert_eq!(site.registry.outgoing("undone").unwrap().spool.entries, 1);
    assert_eq!(site.registry.report().orphans, [""; 0]);
    site.registry.create(waiting("done")).await.unwrap();
    assert_eq!(site.registry.outgoing("done").unwrap().spool.entries, 0, "no message comes back to life");
    within("the files of the third", async {
        while half.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    site.restart().await;
    assert_eq!(site.registry.outgoing("undone").unwrap().spool.entries, 1, "it is not marked any more");
    site.registry.close().await.unwrap();
}
