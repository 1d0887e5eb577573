//! How entries end: beside the task that changes what is declared, so that a disk that does not answer holds
//! up no other change.
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

use crate::background::on_a_thread;
use crate::channel::Channel;
use crate::durable::DurableServer;
use crate::error::{Error, ErrorKind, Result};
use crate::outgoing::{Outgoing, is_marked_purged};

/// What the name of a folder begins with whose files are being removed.
const DELETED: &str = ".deleted-";

/// The end of an entry, to be waited for; it goes on when nobody waits.
pub(super) type Ending = BoxFuture<'static, Result<()>>;

/// Entries that are ending. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Endings {
    /// Folders of spools that are still in use, with what says when they are not.
    folders: Arc<Mutex<HashMap<String, CancellationToken>>>,
    tasks: TaskTracker,
}

impl Endings {
    /// When this folder is free; `None` if it is.
    pub(super) fn free(&self, folder: &str) -> Option<CancellationToken> {
        lock(&self.folders).get(folder).cloned()
    }

    /// Ends a channel.
    pub(super) fn channel(&self, channel: Channel) -> Ending {
        self.spawn(async move {
            channel.end().await;
            Ok(())
        })
    }

    /// Ends the sessions of a durable subscription.
    pub(super) fn durable(&self, server: DurableServer) -> Ending {
        self.spawn(async move {
            server.end().await;
            Ok(())
        })
    }

    /// Ends an outgoing connection. The folder of its spool is deleted if it is empty, or to be purged.
    pub(super) fn outgoing(&self, name: String, path: PathBuf, outgoing: Outgoing, purge: bool) -> Ending {
        let folder = outgoing.shared.plan().definition.spool_folder().to_owned();
        let is_free = CancellationToken::new();
        lock(&self.folders).insert(folder.clone(), is_free.clone());
        let folders = self.folders.clone();
        self.spawn(async move {
            let ended = end(&name, path, outgoing, purge).await;
            if let Err(error) = &ended {
                tracing::warn!("outgoing {name:?}: {}", error.with_causes());
            }
            lock(&folders).remove(&folder);
            is_free.cancel();
            ended
        })
    }

    /// Finishes what a crash has cut short: folders in `spool_dir` that were to be deleted, but for those
    /// that entries `use`. Those cannot be taken for spools any more when this returns; their files are
    /// removed after that.
    pub(super) async fn clear(&self, spool_dir: PathBuf, used: BTreeSet<String>) -> Result<()> {
        let looking = move || {
            let Ok(folders) = std::fs::read_dir(&spool_dir) else { return Ok(Vec::new()) };
            let names = folders.filter_map(|folder| folder.ok()?.file_name().into_string().ok());
            let mut deleted = Vec::new();
            for name in names.filter(|name| !used.contains(name)) {
                let path = spool_dir.join(&name);
                if is_deleted(&name) {
                    deleted.push(path);
                } else if is_marked_purged(&path) {
                    deleted.push(put_aside(&path)?);
                }
            }
            Ok(deleted)
        };
        for path in on_a_thread("spools", looking).await? {
            drop(self.spawn(on_a_thread("deleting", move || remove(&path))));
        }
        Ok(())
    }

    /// Waits until all have ended, for at most this time.
    pub(super) async fn wait(&self, limit: Duration) {
        self.tasks.close();
        let _ = Deadline::after(limit).limit(self.tasks.wait()).await;
    }

    fn spawn(&self, ending: impl Future<Output = Result<()>> + Send + 'static) -> Ending {
        let (done, ended) = oneshot::channel();
        self.tasks.spawn(async move {
            // Whoever has changed the definitions may not wait for it.
            let _ = done.send(ending.await);
        });
        let gone = |_| Error::new(ErrorKind::Closed, "the runtime has ended");
        async move { ended.await.map_err(gone)? }.boxed()
    }
}

/// Whether a folder of this name is one whose files are being removed.
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
    on_a_thread("deleting", move || {
        if !path.exists() {
            return Ok(());
        }
        remove(&put_aside(&path)?)
    })
    .await
}

/// Gives a folder a name that is none of a spool.
fn put_aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().display();
    let aside = path.with_file_name(format!("{DELETED}{name}-{}", Uuid::new_v4()));
    std::fs::rename(path, &aside).map_err(|error| not_deleted(path, error))?;
    Ok(aside)
}

fn remove(path: &Path) -> Result<()> {
    // What is no folder is no spool, and was in the place of one.
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        // Somebody was faster.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| not_deleted(path, error)),
    }
}

fn not_deleted(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, format!("the spool {} can't be deleted", path.display()))
        .with_source(error)
}
