//! The one task that changes what is declared.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use futures::future::join_all;
use tokio::sync::mpsc;
use xmsg_core::Actor;

use super::state::{remove_folder, replace_file};
use super::{Change, Make, Shared};
use crate::background::in_background;
use crate::channel::{Channel, ChannelPlan};
use crate::definition::{Definitions, Fsync, OnFull, OutgoingDefinition, SpoolDefinition};
use crate::error::{Error, ErrorKind, Result};
use crate::outgoing::{Outgoing, OutgoingPlan, storage};
use crate::spool::{Spool, SpoolOptions};

/// The one task that changes definitions: one change after another, each saved before it counts.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) actor: Actor,
    pub(super) state_file: PathBuf,
}

impl Keeper {
    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        while let Some(Change { make, purge, done }) = changes.recv().await {
            let outcome = self.change(make, &purge).await;
            let _ = done.send(outcome);
        }
    }

    async fn change(&mut self, make: Make, purge: &[String]) -> Result<()> {
        if self.shared.is_closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the registry was closed"));
        }
        let before = self.shared.definitions();
        let mut definitions = (*before).clone();
        make(&mut definitions)?;
        definitions.check()?;
        if let Err(error) = self.write(&definitions).await {
            // It may have got there all the same: what was refused must not count after a restart.
            let _ = self.save().await;
            return Err(error);
        }
        let applied = self.apply(definitions, purge).await;
        if applied.is_err() {
            // The file says again what is at work.
            self.save().await?;
        }
        applied
    }

    pub(super) async fn save(&self) -> Result<()> {
        let definitions = self.shared.definitions();
        self.write(&definitions).await
    }

    async fn write(&self, definitions: &Definitions) -> Result<()> {
        let text = format!(
            "# Written by xmsg-connect whenever a definition changes. Edit it while that does not run; comments are not kept.\n{}",
            definitions.to_toml()?
        );
        let file = self.state_file.clone();
        in_background(move || replace_file(&file, &text)).await
    }

    /// Makes what is at work what these say. What can fail is done first.
    pub(super) async fn apply(&mut self, definitions: Definitions, purge: &[String]) -> Result<()> {
        let outgoing_plans =
            definitions.outgoing.iter().map(|outgoing| OutgoingPlan::of(outgoing, &definitions));
        let outgoing_plans = outgoing_plans.collect::<Result<Vec<_>>>()?;
        let channel_plans = definitions.channels.iter().map(|channel| ChannelPlan::of(channel, &definitions));
        let channel_plans = channel_plans.collect::<Result<Vec<_>>>()?;
        let mut opened = HashMap::new();
        for plan in &outgoing_plans {
            let folder = plan.definition.spool_folder();
            if !self.has_spool(folder) {
                let path = self.shared.spool_dir.join(folder);
                let options = spool_options(&definitions.spool, &plan.definition);
                let spool = in_background(move || Spool::open(&path, options).map_err(storage)).await?;
                opened.insert(folder.to_owned(), spool);
            }
        }

        let (ended_channels, ended_outgoing) = {
            let mut entries = self.shared.entries.write().unwrap_or_else(PoisonError::into_inner);
            let mut channels = std::mem::take(&mut entries.channels);
            let mut outgoing: HashMap<String, (String, Outgoing)> = std::mem::take(&mut entries.outgoing)
                .into_iter()
                .map(|(name, outgoing)| {
                    let folder = outgoing.shared.plan().definition.spool_folder().to_owned();
                    (folder, (name, outgoing))
                })
                .collect();
            for plan in outgoing_plans {
                let name = plan.definition.name.clone();
                let folder = plan.definition.spool_folder().to_owned();
                let options = spool_options(&definitions.spool, &plan.definition);
                if let Some((_, there)) = outgoing.remove(&folder) {
                    there.change(plan, options);
                    entries.outgoing.insert(name, there);
                } else if let Some(spool) = opened.remove(&folder) {
                    entries.outgoing.insert(name, Outgoing::start(&plan, spool, self.actor.clone()));
                }
            }
            let shared =
                entries.outgoing.iter().map(|(name, outgoing)| (name.clone(), outgoing.shared.clone()));
            self.shared.targets.set(shared.collect());
            for plan in channel_plans {
                let name = plan.definition.name.clone();
                let channel = match channels.remove(&name) {
                    Some(there) => {
                        there.change(plan);
                        there
                    }
                    None => Channel::start(plan, self.shared.targets.clone()),
                };
                entries.channels.insert(name, channel);
            }
            *self.shared.definitions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(definitions);
            (channels, outgoing)
        };
        join_all(ended_channels.into_values().map(Channel::end)).await;
        for (folder, (name, outgoing)) in ended_outgoing {
            let left = outgoing.end().await?.status();
            let path = self.shared.spool_dir.join(&folder);
            let is_empty = left.entries == 0 && left.dead_entries == 0;
            if !is_empty {
                let (messages, dead) = (left.entries, left.dead_entries);
                let fate = if purge.contains(&name) {
                    "are deleted with it"
                } else {
                    "came at the last moment, and stay in its folder"
                };
                tracing::warn!(
                    "outgoing {name:?}: {messages} messages and {dead} dead letters {fate} ({})",
                    path.display()
                );
            }
            if is_empty || purge.contains(&name) {
                in_background(move || remove_folder(&path)).await?;
            }
        }
        Ok(())
    }

    fn has_spool(&self, folder: &str) -> bool {
        let entries = self.shared.entries();
        entries.outgoing.values().any(|outgoing| outgoing.shared.plan().definition.spool_folder() == folder)
    }
}

fn spool_options(spool: &SpoolDefinition, outgoing: &OutgoingDefinition) -> SpoolOptions {
    SpoolOptions {
        max_bytes: outgoing.max_bytes.unwrap_or(spool.max_bytes).get(),
        max_dead_bytes: spool.max_dead_bytes.get(),
        max_age: outgoing.max_age.or(spool.max_age).map(crate::definition::Span::get),
        on_full: match outgoing.on_full.unwrap_or(spool.on_full) {
            OnFull::Block => crate::spool::OnFull::Block,
            OnFull::Reject => crate::spool::OnFull::Reject,
        },
        fsync: match spool.fsync {
            Fsync::Batch => crate::spool::Fsync::Batch,
            Fsync::Always => crate::spool::Fsync::Always,
        },
        ..SpoolOptions::default()
    }
}
