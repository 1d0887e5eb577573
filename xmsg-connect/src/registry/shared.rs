//! The state that the task of a registry shares with those who use the registry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures::future::join_all;

use super::entry::unknown;
use super::teardown::{Teardowns, is_deleted};
use super::{Definition, Sort};
use crate::channel::{Channel, Targets};
use crate::definition::{Definitions, DurableDefinition};
use crate::durable::DurableServer;
use crate::error::{Error, ErrorKind, Result};
use crate::federation::{Federation, SPOOL_FOLDER};
use crate::outgoing::{self, Outgoing};
use crate::spool::Spool;
use crate::status::LinkReport;
use xmsg_zmq::fault::CriticalTasks;
use xmsg_zmq::lock::LockedFile;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) definitions: RwLock<Arc<Definitions>>,
    pub(super) entries: RwLock<Entries>,
    /// An absolute path, which relative files of definitions count from.
    pub(super) state_dir: PathBuf,
    pub(super) spool_dir: PathBuf,
    pub(super) targets: Targets,
    pub(super) teardowns: Teardowns,
    /// The tasks that the registry can't go on without.
    pub(super) critical: CriticalTasks,
    /// Locked until everything has ended.
    pub(super) lock: Mutex<Option<LockedFile>>,
    /// Whether the registry was closed, so that nothing changes any more.
    pub(super) is_closed: AtomicBool,
}

/// A guard during whose life an outgoing connection takes nothing new.
pub(super) struct IntakePause<'a> {
    shared: &'a Shared,
    name: &'a str,
}

impl<'a> IntakePause<'a> {
    pub(super) fn begin(shared: &'a Shared, name: &'a str, takes_long: bool) -> Result<Self> {
        let entries = shared.entries();
        let outgoing = entries.outgoing.get(name).ok_or_else(|| unknown(Sort::Outgoing, name))?;
        outgoing.pause_intake(takes_long);
        Ok(Self { shared, name })
    }
}

impl Drop for IntakePause<'_> {
    fn drop(&mut self) {
        // The connection is gone if it was deleted.
        if let Some(outgoing) = self.shared.entries().outgoing.get(self.name) {
            outgoing.resume_intake();
        }
    }
}

/// What is at work, by name.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) outgoing: BTreeMap<String, Outgoing>,
    pub(super) channels: BTreeMap<String, Channel>,
    /// The federation. Its outgoing connection and its channel are among the others.
    pub(super) federation: Option<Federation>,
    /// Durable subscriptions. Their outgoing connections are among the others.
    pub(super) durables: BTreeMap<String, DurableServer>,
}

impl Shared {
    pub(super) fn definitions(&self) -> Arc<Definitions> {
        self.definitions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn entries(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn outgoing(&self, name: &str) -> Result<Arc<outgoing::Shared>> {
        self.targets.outgoing(name).ok_or_else(|| unknown(Sort::Outgoing, name))
    }

    pub(super) fn spool(&self, name: &str) -> Result<Spool> {
        self.outgoing(name)?.spool.get().cloned()
    }

    /// Returns the path of the spool of an outgoing connection.
    pub(super) fn spool_path(&self, name: &str) -> Result<PathBuf> {
        let definitions = self.definitions();
        let outgoing = definitions.outgoing.iter().find(|outgoing| outgoing.name == *name);
        let folder = outgoing.map(|outgoing| outgoing.spool_folder().to_owned());
        let federation = definitions.federation.iter().find(|federation| federation.outgoing_name() == name);
        let folder = folder.or_else(|| federation.map(|_| SPOOL_FOLDER.to_owned()));
        let durable = definitions.durables.iter().find(|durable| durable.outgoing_name() == name);
        let folder = folder.or_else(|| durable.map(DurableDefinition::spool_folder));
        folder.map(|folder| self.spool_dir.join(folder)).ok_or_else(|| unknown(Sort::Outgoing, name))
    }

    /// Waits, for at most so long, until the spool of each of these outgoing connections, or of all, is open
    /// or could not be opened.
    pub(super) async fn wait_for_spools(&self, names: Option<&[String]>, limit: Duration) {
        let waited: Vec<_> = {
            let entries = self.entries();
            let wanted =
                entries.outgoing.iter().filter(|(name, _)| names.is_none_or(|names| names.contains(*name)));
            wanted.map(|(_, outgoing)| outgoing.shared.clone()).collect()
        };
        join_all(waited.iter().map(|outgoing| outgoing.spool.wait_for_attempt(limit))).await;
    }

    pub(super) fn link_report(&self, sort: Sort, name: &str) -> Option<LinkReport> {
        let entries = self.entries();
        match sort {
            Sort::Connection | Sort::Federation | Sort::Durable => None,
            Sort::Outgoing => entries.outgoing.get(name).map(|outgoing| outgoing.shared.status.report()),
            Sort::Channel => entries.channels.get(name).map(|channel| channel.status.report()),
        }
    }

    /// Returns the name of the outgoing connection that has the spool of an entry, if there is one.
    pub(super) fn outgoing_name_of(&self, sort: Sort, name: &str) -> Result<Option<String>> {
        let definitions = self.definitions();
        let definition = definitions.find(sort, name).ok_or_else(|| unknown(sort, name))?;
        Ok(match definition {
            Definition::Outgoing(definition) => Some(definition.name),
            Definition::Federation(definition) => Some(definition.outgoing_name()),
            Definition::Durable(definition) => Some(definition.outgoing_name()),
            Definition::Connection(_) | Definition::Channel(_) => None,
        })
    }

    pub(super) fn check_empty(&self, name: &str) -> Result<()> {
        let outgoing = self.outgoing(name)?;
        if let Some(failure) = outgoing.spool.failure() {
            let what = format!(
                "nobody knows what is in the spool of outgoing {name:?}: delete it with that (purge), or mend it: {failure}"
            );
            return Err(Error::new(ErrorKind::InUse, what).with_source(failure));
        }
        let status = outgoing.spool.status();
        if status.entries == 0 && status.dead_entries == 0 {
            return Ok(());
        }
        let what = format!(
            "outgoing {name:?} still has {} messages and {} dead letters: let it deliver them (drain), or delete them with it (purge)",
            status.entries, status.dead_entries
        );
        Err(Error::new(ErrorKind::InUse, what))
    }

    /// Returns the folders of spools that belong to no entry.
    pub(super) fn orphans(&self) -> Vec<String> {
        let definitions = self.definitions();
        let Ok(folders) = std::fs::read_dir(&self.spool_dir) else { return Vec::new() };
        let names = folders.filter_map(|folder| folder.ok()?.file_name().into_string().ok());
        let mut orphans: Vec<_> = names
            .filter(|name| !is_deleted(name) && self.teardowns.free(name).is_none())
            .filter(|name| !definitions.outgoing.iter().any(|outgoing| outgoing.spool_folder() == name))
            .filter(|name| !definitions.durables.iter().any(|durable| durable.spool_folder() == *name))
            .filter(|name| definitions.federation.is_none() || name != SPOOL_FOLDER)
            .collect();
        orphans.sort_unstable();
        orphans
    }
}
