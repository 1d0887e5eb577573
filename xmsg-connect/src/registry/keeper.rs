//! The one task that changes what is declared.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc;
use xmsg_core::Actor;

use super::ending::Ending;
use super::files::Allowed;
use super::state::replace_file;
use super::{Change, Make, Shared};
use crate::background::in_background;
use crate::channel::{Channel, ChannelPlan};
use crate::definition::{Definitions, Fsync, OnFull, OutgoingDefinition, SpoolDefinition};
use crate::durable::{DurablePlan, DurableServer};
use crate::error::{Error, ErrorKind, Result};
use crate::federation::{Federation, Memory};
use crate::outgoing::{Outgoing, OutgoingPlan};
use crate::room::Room;
use crate::spool::SpoolOptions;

/// Bytes of a message beside its body in the spool: topic, metadata, headers, properties.
const BESIDE_BODY: usize = 1 << 20;

/// The one task that changes definitions: one change after another, each saved before it counts.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) actor: Actor,
    pub(super) state_file: PathBuf,
    /// Which files a change may name; `None`: any.
    pub(super) allowed: Option<Allowed>,
    /// What the federation remembers; it outlives each definition of it.
    pub(super) memory: Arc<Memory>,
    pub(super) room: Room,
}

impl Keeper {
    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        while let Some(Change { make, purge, done }) = changes.recv().await {
            let outcome = self.change(make, &purge).await;
            let _ = done.send(outcome);
        }
    }

    async fn change(&mut self, make: Make, purge: &[String]) -> Result<Vec<Ending>> {
        if self.shared.is_closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the registry was closed"));
        }
        let before = self.shared.definitions();
        let mut definitions = (*before).clone();
        make(&mut definitions)?;
        definitions.check()?;
        definitions.check_new_names(&before)?;
        if let Some(allowed) = self.allowed.clone() {
            let after = definitions.clone();
            in_background(move || allowed.check(&before, &after)).await?;
        }
        if let Err(error) = self.write(&definitions).await {
            // It may have got there all the same: what was refused must not count after a restart.
            let _ = self.save().await;
            return Err(error);
        }
        let applied = self.apply(definitions, purge);
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

    /// Makes what is at work what these say. What can fail is done first, and nothing is waited for: what
    /// ends is returned.
    pub(super) fn apply(&mut self, definitions: Definitions, purge: &[String]) -> Result<Vec<Ending>> {
        let base = &self.shared.state_dir;
        let outgoing_plans =
            definitions.outgoing.iter().map(|outgoing| OutgoingPlan::of(outgoing, &definitions, base));
        let mut outgoing_plans = outgoing_plans.collect::<Result<Vec<_>>>()?;
        let channel_plans =
            definitions.channels.iter().map(|channel| ChannelPlan::of(channel, &definitions, base));
        let mut channel_plans = channel_plans.collect::<Result<Vec<_>>>()?;
        let federation = definitions.federation.as_ref().map(|one| Federation::new(one, &self.memory));
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
                let at_work = if let Some((_, there)) = outgoing.remove(folder) {
                    there.change(plan, options);
                    there
                } else {
                    let (path, free) = (self.shared.spool_dir.join(folder), self.shared.endings.free(folder));
                    Outgoing::start(&plan, path, options, free, self.actor.clone(), self.room.clone())
                };
                entries.outgoing.insert(name, at_work);
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
                    None => Channel::start(plan, self.shared.targets.clone(), self.room.clone()),
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
                    Some(there) if there.plan == plan => there,
                    former => {
                        durables.extend(former.map(|former| (name.clone(), former)));
                        DurableServer::start(plan, self.actor.clone(), self.room.clone())
                    }
                };
                entries.durables.insert(name, server);
            }
            (channels, outgoing, durables)
        };
        let endings = &self.shared.endings;
        let mut ended: Vec<_> =
            ended_channels.into_values().map(|channel| endings.channel(channel)).collect();
        ended.extend(ended_durables.into_values().map(|server| endings.durable(server)));
        ended.extend(ended_outgoing.into_iter().map(|(folder, (name, outgoing))| {
            let purge = purge.contains(&name);
            endings.outgoing(name, self.shared.spool_dir.join(folder), outgoing, purge)
        }));
        Ok(ended)
    }
}

/// Bytes that an entry of this one's spool may have: the longest body, and what is beside it.
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
