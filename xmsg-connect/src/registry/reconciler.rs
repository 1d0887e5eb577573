//! The task that changes what is declared, and makes what is at work follow it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc;
use xmsg_core::Actor;

use super::files::FilePolicy;
use super::state::replace_file;
use super::teardown::Teardown;
use super::{Change, Edit, Shared};
use crate::blocking::run_blocking;
use crate::channel::{Channel, ChannelPlan};
use crate::definition::{Definitions, Fsync, OnFull, OutgoingDefinition, SpoolDefinition};
use crate::durable::{DurablePlan, DurableServer};
use crate::error::{Error, ErrorKind, Result};
use crate::federation::{DuplicateFilter, Federation};
use crate::outgoing::{Outgoing, OutgoingPlan};
use crate::receive_memory::ReceiveMemory;
use crate::spool::SpoolOptions;

/// Bytes of a message beside its body in the spool: topic, metadata, headers, properties.
const BESIDE_BODY: usize = 1 << 20;

/// The task that changes definitions. It makes one change after another, and saves each before it counts.
pub(super) struct Reconciler {
    pub(super) shared: Arc<Shared>,
    pub(super) actor: Actor,
    pub(super) state_file: PathBuf,
    /// Which files a change may name, or `None` if it may name any.
    pub(super) file_policy: Option<FilePolicy>,
    /// The filter of the federation, which outlives each definition of it.
    pub(super) duplicates: Arc<DuplicateFilter>,
    pub(super) receive_memory: ReceiveMemory,
}

impl Reconciler {
    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        while let Some(Change { edit, purge, done }) = changes.recv().await {
            let outcome = self.change(edit, &purge).await;
            let _ = done.send(outcome);
        }
    }

    async fn change(&mut self, edit: Edit, purge: &[String]) -> Result<Vec<Teardown>> {
        if self.shared.is_closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the registry was closed"));
        }
        let before = self.shared.definitions();
        let mut definitions = (*before).clone();
        edit(&mut definitions)?;
        definitions.check()?;
        definitions.check_new_names(&before)?;
        if let Some(file_policy) = self.file_policy.clone() {
            let after = definitions.clone();
            run_blocking(move || file_policy.check(&before, &after)).await?;
        }
        if let Err(error) = self.write(&definitions).await {
            // The file may have been written all the same, and what was refused must not count after a
            // restart.
            let _ = self.save().await;
            return Err(error);
        }
        let applied = self.apply(definitions, purge);
        if applied.is_err() {
            // The file has to say again what is at work.
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
        run_blocking(move || replace_file(&file, &text)).await
    }

    /// Makes what is at work follow these definitions. What can fail is done first, and nothing is waited
    /// for. Returns the teardowns of what ends.
    pub(super) fn apply(&mut self, definitions: Definitions, purge: &[String]) -> Result<Vec<Teardown>> {
        let base = &self.shared.state_dir;
        let outgoing_plans =
            definitions.outgoing.iter().map(|outgoing| OutgoingPlan::of(outgoing, &definitions, base));
        let mut outgoing_plans = outgoing_plans.collect::<Result<Vec<_>>>()?;
        let channel_plans =
            definitions.channels.iter().map(|channel| ChannelPlan::of(channel, &definitions, base));
        let mut channel_plans = channel_plans.collect::<Result<Vec<_>>>()?;
        let federation = definitions.federation.as_ref().map(|one| Federation::new(one, &self.duplicates));
        outgoing_plans.extend(federation.iter().map(|one| one.outgoing_plan(&definitions, base)));
        let durable_plans: Vec<_> =
            definitions.durables.iter().map(|durable| DurablePlan::of(durable, &definitions, base)).collect();
        outgoing_plans.extend(durable_plans.iter().map(DurablePlan::outgoing_plan));
        channel_plans.extend(federation.iter().map(|one| one.channel_plan(&definitions, base)));
        let (ended_channels, ended_outgoing, ended_durables) = {
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
                let folder = plan.definition.spool_folder();
                let options = spool_options(&definitions.spool, &plan.definition);
                let running = if let Some((_, existing)) = outgoing.remove(folder) {
                    existing.change(plan, options);
                    existing
                } else {
                    let (path, free) =
                        (self.shared.spool_dir.join(folder), self.shared.teardowns.free(folder));
                    Outgoing::start(
                        &plan,
                        path,
                        options,
                        free,
                        self.actor.clone(),
                        self.receive_memory.clone(),
                    )
                };
                entries.outgoing.insert(name, running);
            }
            let shared =
                entries.outgoing.iter().map(|(name, outgoing)| (name.clone(), outgoing.shared.clone()));
            self.shared.targets.set(shared.collect());
            for plan in channel_plans {
                let name = plan.definition.name.clone();
                let channel = match channels.remove(&name) {
                    Some(existing) => {
                        existing.change(plan);
                        existing
                    }
                    None => Channel::start(plan, self.shared.targets.clone(), self.receive_memory.clone()),
                };
                entries.channels.insert(name, channel);
            }
            entries.federation = federation;
            *self.shared.definitions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(definitions);
            let mut durables = std::mem::take(&mut entries.durables);
            for plan in durable_plans {
                let name = plan.definition.name.clone();
                // Another definition ends the sessions: what was not acknowledged comes again in the next
                // ones.
                let server = match durables.remove(&name) {
                    Some(existing) if existing.plan == plan => existing,
                    former => {
                        durables.extend(former.map(|former| (name.clone(), former)));
                        DurableServer::start(plan, self.actor.clone(), self.receive_memory.clone())
                    }
                };
                entries.durables.insert(name, server);
            }
            (channels, outgoing, durables)
        };
        let teardowns = &self.shared.teardowns;
        let mut ended: Vec<_> =
            ended_channels.into_values().map(|channel| teardowns.channel(channel)).collect();
        ended.extend(ended_durables.into_values().map(|server| teardowns.durable(server)));
        ended.extend(ended_outgoing.into_iter().map(|(folder, (name, outgoing))| {
            let purge = purge.contains(&name);
            teardowns.outgoing(name, self.shared.spool_dir.join(folder), outgoing, purge)
        }));
        Ok(ended)
    }
}

/// Returns how many bytes an entry of the spool may have: the longest body, and what is beside it.
fn entry_max(outgoing: &OutgoingDefinition) -> usize {
    let body = usize::try_from(outgoing.message_max()).unwrap_or(usize::MAX);
    body.saturating_add(BESIDE_BODY)
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
        max_entry_bytes: entry_max(outgoing),
        ..SpoolOptions::default()
    }
}
