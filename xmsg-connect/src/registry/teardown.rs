//! The teardown of entries. It runs beside the task that changes what is declared, so that a disk that does
//! not answer holds up no other change.
//!
//! A spool that is deleted with what is in it goes in steps, each of which a crash may follow: its folder is
//! marked, the state file says that there is no such entry, the spool is closed, the folder gets another
//! name, its files are removed. Before the second step the entry is there with all its messages; after it,
//! whoever opens the registry next finishes the work. At no time do its messages belong to a later entry of
//! the same name.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;

use crate::blocking::run_on_own_thread;
use crate::channel::Channel;
use crate::durable::DurableServer;
use crate::error::{Error, ErrorKind, Result};
use crate::outgoing::{Outgoing, has_tombstone};

/// The prefix of the name of a folder whose files are being removed.
const DELETED: &str = ".deleted-";

/// The teardown of an entry. It can be awaited, and goes on when nobody awaits it.
pub(super) type Teardown = BoxFuture<'static, Result<()>>;

/// The teardowns that are running. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Teardowns {
    /// Folders of spools that are still in use, each with a token that is cancelled when it is free.
    folders: Arc<Mutex<HashMap<String, CancellationToken>>>,
    tasks: TaskTracker,
}

impl Teardowns {
    /// Returns a token that is cancelled when this folder is free, and `None` if it is free.
    pub(super) fn free(&self, folder: &str) -> Option<CancellationToken> {
        lock(&self.folders).get(folder).cloned()
    }

    /// Ends a channel.
    pub(super) fn channel(&self, channel: Channel) -> Teardown {
        self.spawn(async move {
            channel.end().await;
            Ok(())
        })
    }

    /// Ends the sessions of a durable subscription.
    pub(super) fn durable(&self, server: DurableServer) -> Teardown {
        self.spawn(async move {
            server.end().await;
            Ok(())
        })
    }

    /// Ends an outgoing connection. The folder of its spool is deleted if it is empty, or to be purged.
    pub(super) fn outgoing(&self, name: String, path: PathBuf, outgoing: Outgoing, purge: bool) -> Teardown {
        let folder = outgoing.shared.plan().definition.spool_folder().to_owned();
        let folder_free = CancellationToken::new();
        lock(&self.folders).insert(folder.clone(), folder_free.clone());
        let folders = self.folders.clone();
        self.spawn(async move {
            let ended = end(&name, path, outgoing, purge).await;
            if let Err(error) = &ended {
                tracing::warn!("outgoing {name:?}: {}", error.with_causes());
            }
            lock(&folders).remove(&folder);
            folder_free.cancel();
            ended
        })
    }

    /// Finishes deletions that a crash has cut short, of folders in `spool_dir` that no entry uses (`used`).
    /// When this returns, these folders cannot be taken for spools any more. Their files are removed after
    /// that.
    pub(super) async fn finish_deletions(&self, spool_dir: PathBuf, used: BTreeSet<String>) -> Result<()> {
        let looking = move || {
            let Ok(folders) = std::fs::read_dir(&spool_dir) else { return Ok(Vec::new()) };
            let names = folders.filter_map(|folder| folder.ok()?.file_name().into_string().ok());
            let mut deleted = Vec::new();
            for name in names.filter(|name| !used.contains(name)) {
                let path = spool_dir.join(&name);
                if is_deleted(&name) {
                    deleted.push(path);
                } else if has_tombstone(&path) {
                    deleted.push(rename_aside(&path)?);
                }
            }
            Ok(deleted)
        };
        for path in run_on_own_thread("spools", looking).await? {
            drop(self.spawn(run_on_own_thread("deleting", move || remove(&path))));
        }
        Ok(())
    }

    /// Waits until all have ended, for at most this time.
    pub(super) async fn wait(&self, limit: Duration) {
        self.tasks.close();
        let _ = Deadline::after(limit).limit(self.tasks.wait()).await;
    }

    fn spawn(&self, teardown: impl Future<Output = Result<()>> + Send + 'static) -> Teardown {
        let (done, ended) = oneshot::channel();
        self.tasks.spawn(async move {
            // Whoever has changed the definitions may not wait for it.
            let _ = done.send(teardown.await);
        });
        let gone = |_| Error::new(ErrorKind::Closed, "the runtime has ended");
        async move { ended.await.map_err(gone)? }.boxed()
    }
}

/// Returns whether a folder of this name is one whose files are being removed.
pub(super) fn is_deleted(name: &str) -> bool {
    name.starts_with(DELETED)
}

async fn end(name: &str, path: PathBuf, outgoing: Outgoing, purge: bool) -> Result<()> {
    let left = outgoing.end().await?;
    let is_empty = left.as_ref().is_some_and(|left| left.entries == 0 && left.dead_entries == 0);
    if let Some(left) = left.filter(|_| !is_empty) {
        let (messages, dead) = (left.entries, left.dead_entries);
        let fate =
            if purge { "are deleted with it" } else { "came at the last moment, and stay in its folder" };
        tracing::warn!(
            "outgoing {name:?}: {messages} messages and {dead} dead letters {fate} ({})",
            path.display()
        );
    }
    if !is_empty && !purge {
        return Ok(());
    }
    run_on_own_thread("deleting", move || {
        if !path.exists() {
            return Ok(());
        }
        remove(&rename_aside(&path)?)
    })
    .await
}

/// Gives a folder a name that is none of a spool.
fn rename_aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().display();
    let aside = path.with_file_name(format!("{DELETED}{name}-{}", Uuid::new_v4()));
    std::fs::rename(path, &aside).map_err(|error| delete_error(path, error))?;
    Ok(aside)
}

fn remove(path: &Path) -> Result<()> {
    // A path that is no folder was in the place of a spool.
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        // Somebody was faster.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| delete_error(path, error)),
    }
}

fn delete_error(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, format!("the spool {} can't be deleted", path.display()))
        .with_source(error)
}
