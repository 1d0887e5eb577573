//! The registry: everything that is declared, at work, and changed while it runs.
//!
//! | file | answers |
//! |---|---|
//! | `reconciler.rs` | Which task changes what is declared, and in which steps? |
//! | `entry.rs` | What sorts of entries are there, and how do they refer to each other? |
//! | `shared.rs` | What do the registry's task and those who use it have in common? |
//! | `teardown.rs` | How does an entry end, and its spool with it? |
//! | `state.rs` | Where is the state file, and who holds its lock? |
//! | `files.rs` | Which files may a change name? |
//! | `report.rs` | What is told of the entries? |

mod entry;
mod files;
mod reconciler;
mod report;
mod shared;
mod state;
mod teardown;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use xmsg_core::{Actor, ConnectOptions, ProxyAddress};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::fault::CriticalTasks;
use xmsg_zmq::lock::lock;
use xmsg_zmq::memory_budget::MemoryBudget;

use self::entry::unknown;
pub use self::entry::{Definition, OnDelete, Sort};
use self::files::FilePolicy;
use self::reconciler::Reconciler;
pub use self::report::{ChannelReport, DurableReport, FederationReport, OutgoingReport, Report};
use self::report::{report_channel, report_durable, report_federation, report_outgoing};
use self::shared::{IntakePause, Shared};
use self::state::{STATE_FILE, absolute, lock_state, read_state};
use self::teardown::{Teardown, Teardowns};
use crate::blocking::{run_blocking, run_on_own_thread};
use crate::channel::{Channel, Targets};
use crate::definition::{Definitions, DurableDefinition};
use crate::durable::DurableServer;
use crate::error::{Error, ErrorKind, Result};
use crate::federation::SPOOL_FOLDER;
use crate::outbound::Outbound;
use crate::outgoing::{Accepted, Outgoing, remove_tombstone, storage, write_tombstone};
use crate::ping;
use crate::receive_memory::ReceiveMemory;
use crate::status::DeadMessage;

/// How many changes may wait for the one before them. At this number, whoever wants another one waits, too.
const CHANGES_MAX: usize = 64;
/// How long whoever adds an outgoing connection waits for its spool, and how long whoever opens a registry
/// waits for all spools.
const OPENED_WITHIN: Duration = Duration::from_secs(5);
const ALL_OPENED_WITHIN: Duration = Duration::from_secs(10);
/// How long the end of the registry waits for entries that were deleted before.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// The options with which a registry is opened.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// The folder of its state: the file `connect.toml` with the definitions, and the spools. It is made if
    /// it is not there. Files that definitions name (passwords, certificates, keys) count from it, unless
    /// they are absolute.
    pub state_dir: PathBuf,
    /// The proxy that outgoing connections subscribe at, and channels publish to.
    pub proxy: ProxyAddress,
    /// How connections to it are made.
    pub connect: ConnectOptions,
    /// What is declared if the state directory has no file yet. After that, the file counts.
    pub initial: Definitions,
    /// The folder of the files that a change may name (passwords, certificates, keys), wherever links lead:
    /// for a registry that others change, who could otherwise have this process read every file of its user.
    /// What `initial` or the state file name is not concerned, nor is anything while this is `None`. The
    /// spools and the state file may never be named.
    pub secrets_dir: Option<PathBuf>,
    /// The memory for messages that were received and are not delivered yet, which the registry may share
    /// with other parts of the process. Default: no limit.
    pub memory: MemoryBudget,
    /// The address space of a thread in bytes, if that is limited, and else 0. Each session of a durable
    /// subscription has a thread; all of them together get half as much address space as there is `memory`,
    /// and further ones are refused. Default: 0.
    pub thread_space: usize,
}

impl RegistryOptions {
    /// Makes options for a registry with its state in this folder, for this proxy, with nothing declared.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>, proxy: ProxyAddress) -> Self {
        Self {
            state_dir: state_dir.into(),
            proxy,
            connect: ConnectOptions::default(),
            initial: Definitions::default(),
            secrets_dir: None,
            memory: MemoryBudget::default(),
            thread_space: 0,
        }
    }
}

/// Named connections, outgoing connections and channels at work. Clones share it.
///
/// Each change is saved to the state file before it counts, and takes effect at once; it disturbs no other
/// entry. Dropping the last clone ends everything without waiting; [`close`](Self::close) waits.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    changes: mpsc::Sender<Change>,
}

/// An edit of the definitions. Its result is checked after it.
type Edit = Box<dyn FnOnce(&mut Definitions) -> Result<()> + Send>;

/// A change of the definitions.
struct Change {
    edit: Edit,
    /// Outgoing connections whose messages are deleted with them.
    purge: Vec<String>,
    done: oneshot::Sender<Result<Vec<Teardown>>>,
}

impl Registry {
    /// Reads the state directory, opens the spools, and starts everything that is active. Does not wait for
    /// any peer: a broker that is not there is tried again and again, in the background.
    ///
    /// [`ErrorKind::InvalidDefinition`] if the state file can't be understood, [`ErrorKind::InUse`] if
    /// another registry uses the folder, [`ErrorKind::Storage`] if it can't be used.
    pub async fn open(options: RegistryOptions) -> Result<Self> {
        let RegistryOptions { state_dir, proxy, connect, initial, secrets_dir, memory, thread_space } =
            options;
        let reading = move || {
            let locked = lock_state(&state_dir)?;
            let state_dir = absolute(&state_dir)?;
            let secrets_dir = secrets_dir.as_deref().map(absolute).transpose()?;
            let definitions = read_state(&state_dir, initial)?;
            Ok((definitions, state_dir, secrets_dir, locked))
        };
        let (definitions, state_dir, secrets_dir, locked) = run_blocking(reading).await?;
        let actor = Actor::builder("xmsg-connect").proxy(proxy.clone()).options(connect.clone()).build();
        let actor = actor.map_err(|error| {
            Error::new(ErrorKind::InvalidDefinition, "the connection to the proxy can't be made")
                .with_source(error)
        })?;
        let spool_dir = state_dir.join(&definitions.spool.dir);
        let shared = Arc::new(Shared {
            definitions: RwLock::new(Arc::new(Definitions {
                spool: definitions.spool.clone(),
                ..Definitions::default()
            })),
            entries: RwLock::default(),
            state_dir: state_dir.clone(),
            spool_dir,
            targets: Targets::new(proxy, connect),
            teardowns: Teardowns::default(),
            critical: CriticalTasks::default(),
            lock: Mutex::new(Some(locked)),
            is_closed: AtomicBool::new(false),
        });
        let (changes, receiver) = mpsc::channel(CHANGES_MAX);
        let file_policy = secrets_dir.map(|secrets_dir| FilePolicy {
            secrets_dir,
            state_dir: state_dir.clone(),
            spool_dir: shared.spool_dir.clone(),
        });
        let mut reconciler = Reconciler {
            shared: shared.clone(),
            file_policy,
            actor,
            state_file: state_dir.join(STATE_FILE),
            duplicates: Arc::default(),
            receive_memory: ReceiveMemory::new(memory, thread_space),
        };
        let folders = definitions.outgoing.iter().map(|outgoing| outgoing.spool_folder().to_owned());
        let of_federation = definitions.federation.iter().map(|_| SPOOL_FOLDER.to_owned());
        let of_durables = definitions.durables.iter().map(DurableDefinition::spool_folder);
        let used = folders.chain(of_federation).chain(of_durables).collect();
        shared.teardowns.finish_deletions(shared.spool_dir.clone(), used).await?;
        reconciler.apply(definitions, &[])?;
        reconciler.save().await?;
        shared.wait_for_spools(None, ALL_OPENED_WITHIN).await;
        for orphan in shared.orphans() {
            let folder = shared.spool_dir.join(orphan);
            tracing::warn!(
                "{}: no outgoing connection has this spool; messages may be in it",
                folder.display()
            );
        }
        tokio::spawn(shared.critical.watch("the keeper of the registry", reconciler.run(receiver)));
        Ok(Self { shared, changes })
    }

    /// Waits until a task has panicked that the registry can't go on without, and tells which one, and why.
    /// What is at work goes on then, but nothing can be changed: it should be closed, and opened anew.
    pub async fn failed(&self) -> String {
        self.shared.critical.failed().await.to_owned()
    }

    /// Adds an entry: it is at work when this returns, if it is active. Where its spool can't be opened, it
    /// is [`Faulted`](crate::LinkState::Faulted), and tried again.
    ///
    /// [`ErrorKind::NameTaken`]; [`ErrorKind::InvalidDefinition`], with the field.
    pub async fn create(&self, definition: impl Into<Definition>) -> Result<()> {
        self.create_all([definition.into()]).await
    }

    /// Adds several entries, which may refer to each other: all of them, or none if one can't be added.
    ///
    /// ```no_run
    /// # async fn add(registry: xmsg_connect::Registry) -> xmsg_connect::Result<()> {
    /// use xmsg_connect::definition::{ConnectionDefinition, OutgoingDefinition};
    ///
    /// let broker = ConnectionDefinition::amqp("crm", "amqp://127.0.0.1:5672");
    /// let orders = OutgoingDefinition::amqp("orders", "crm", "orders.exchange");
    /// registry.create_all([broker.into(), orders.into()]).await?;
    /// # Ok(()) }
    /// ```
    pub async fn create_all(&self, definitions: impl IntoIterator<Item = Definition>) -> Result<()> {
        let definitions: Vec<Definition> = definitions.into_iter().collect();
        let new = definitions.iter().filter(|definition| definition.sort() == Sort::Outgoing);
        let new: Vec<String> = new.map(|definition| definition.name().to_owned()).collect();
        let created = self.change(Vec::new(), move |all| {
            definitions.into_iter().try_for_each(|definition| all.add(definition))
        });
        created.await?;
        self.shared.wait_for_spools(Some(&new), OPENED_WITHIN).await;
        Ok(())
    }

    /// Puts another definition in the place of the one of this name. Its link is made anew if anything of it
    /// has changed. A new name renames it, and what refers to it; its spool stays.
    pub async fn update(&self, name: &str, definition: impl Into<Definition>) -> Result<()> {
        let (name, definition) = (name.to_owned(), definition.into());
        self.change(Vec::new(), move |all| all.replace(&name, definition)).await
    }

    /// Renames an entry, and what refers to it. The spool of an outgoing connection stays.
    pub async fn rename(&self, sort: Sort, name: &str, to: &str) -> Result<()> {
        let (name, to) = (name.to_owned(), to.to_owned());
        self.change(Vec::new(), move |all| {
            let mut definition = all.find(sort, &name).ok_or_else(|| unknown(sort, &name))?;
            match &mut definition {
                Definition::Connection(definition) => definition.name = to,
                Definition::Outgoing(definition) => definition.name = to,
                Definition::Channel(definition) => definition.name = to,
                Definition::Federation(definition) => definition.name = to,
                Definition::Durable(definition) => definition.name = to,
            }
            all.replace(&name, definition)
        })
        .await
    }

    /// Sets an outgoing connection or a channel to work, or to rest.
    pub async fn set_active(&self, sort: Sort, name: &str, is_active: bool) -> Result<()> {
        let name = name.to_owned();
        self.change(Vec::new(), move |all| {
            match sort {
                Sort::Connection => {
                    return Err(Error::new(
                        ErrorKind::InvalidDefinition,
                        "a connection is at work where it is used",
                    ));
                }
                Sort::Outgoing => all.outgoing_mut(&name)?.is_active = is_active,
                Sort::Channel => all.channel_mut(&name)?.is_active = is_active,
                Sort::Federation => all.federation_mut(&name)?.is_active = is_active,
                Sort::Durable => all.durable_mut(&name)?.is_active = is_active,
            }
            Ok(())
        })
        .await
    }

    /// Deletes an entry. [`ErrorKind::InUse`] if others refer to it, or messages would be lost: everything is
    /// as it was then, but that what is published while it is drained is not received.
    pub async fn delete(&self, sort: Sort, name: &str, on_delete: OnDelete) -> Result<()> {
        let mut purge = Vec::new();
        let outgoing_name = self.shared.outgoing_name_of(sort, name)?;
        // What is refused anyway changes nothing.
        self.shared.definitions().check_unused(sort, name)?;
        let takes_long = matches!(on_delete, OnDelete::Drain(_));
        if let Some(name) = outgoing_name.as_deref().filter(|_| on_delete != OnDelete::Purge) {
            let spool = self.shared.outgoing(name)?.spool.status();
            if !takes_long || spool.dead_entries > 0 {
                self.check_empty(name)?;
            }
        }
        // Nothing new is taken from here on, or else it would never be empty. If it is not deleted after all,
        // it goes on.
        let begin = |name| IntakePause::begin(&self.shared, name, takes_long);
        let intake_pause = outgoing_name.as_deref().map(begin).transpose()?;
        if let Some(name) = &outgoing_name {
            match on_delete {
                OnDelete::Refuse => self.check_empty(name)?,
                OnDelete::Drain(limit) => self.drain(name, limit).await?,
                OnDelete::Purge => {
                    let path = self.shared.spool_path(name)?;
                    run_on_own_thread("marking a spool", move || write_tombstone(&path)).await?;
                    purge.push(name.clone());
                }
            }
        }
        let path = purge.first().and_then(|name| self.shared.spool_path(name).ok());
        let name = name.to_owned();
        let checked = outgoing_name.clone().filter(|_| on_delete != OnDelete::Purge);
        let shared = self.shared.clone();
        let deleted = self.change(purge, move |all| {
            all.find(sort, &name).ok_or_else(|| unknown(sort, &name))?;
            // Something may have come since.
            if let Some(name) = &checked {
                shared.check_empty(name)?;
            }
            all.check_unused(sort, &name)?;
            all.connections.retain(|entry| sort != Sort::Connection || entry.name != name);
            all.outgoing.retain(|entry| sort != Sort::Outgoing || entry.name != name);
            all.channels.retain(|entry| sort != Sort::Channel || entry.name != name);
            all.federation.take_if(|_| sort == Sort::Federation);
            all.durables.retain(|entry| sort != Sort::Durable || entry.name != name);
            Ok(())
        });
        let deleted = deleted.await;
        // What was not deleted after all keeps its messages.
        if let Some(path) = path
            && outgoing_name.as_deref().is_some_and(|name| self.shared.spool_path(name).is_ok())
        {
            run_on_own_thread("marking a spool", move || {
                remove_tombstone(&path);
                Ok(())
            })
            .await?;
        }
        drop(intake_pause);
        deleted
    }

    /// Puts other definitions in the place of all. Those that are not among them are deleted, unless messages
    /// would be lost.
    pub async fn import(&self, definitions: Definitions) -> Result<()> {
        definitions.check()?;
        let shared = self.shared.clone();
        self.change(Vec::new(), move |all| {
            // Spools are told apart by their folders, whatever the connections are called.
            let is_kept =
                |folder: &str| definitions.outgoing.iter().any(|other| other.spool_folder() == folder);
            for outgoing in all.outgoing.iter().filter(|outgoing| !is_kept(outgoing.spool_folder())) {
                shared.check_empty(&outgoing.name)?;
            }
            if let (Some(federation), None) = (&all.federation, &definitions.federation) {
                shared.check_empty(&federation.outgoing_name())?;
            }
            for durable in &all.durables {
                if !definitions.durables.iter().any(|other| other.name == durable.name) {
                    shared.check_empty(&durable.outgoing_name())?;
                }
            }
            if definitions.spool.dir != all.spool.dir {
                let what = "the folder of the spools can't change while they are at work (spool.dir)";
                return Err(Error::new(ErrorKind::InUse, what));
            }
            *all = definitions;
            Ok(())
        })
        .await
    }

    /// Returns everything that is declared, as it stands in the state file. Secrets are in files of their
    /// own.
    #[must_use]
    pub fn export(&self) -> Definitions {
        (*self.shared.definitions()).clone()
    }

    /// Returns everything that is declared, and how it is.
    #[must_use]
    pub fn report(&self) -> Report {
        let definitions = self.shared.definitions();
        let entries = self.shared.entries();
        Report {
            connections: definitions.connections.clone(),
            outgoing: entries.outgoing.values().map(report_outgoing).collect(),
            channels: entries.channels.values().map(report_channel).collect(),
            durables: entries.durables.values().filter_map(|one| report_durable(one, &entries)).collect(),
            federations: entries
                .federation
                .iter()
                .filter_map(|one| report_federation(one, &entries))
                .collect(),
            orphans: self.shared.orphans(),
        }
    }

    /// Returns how one outgoing connection is.
    pub fn outgoing(&self, name: &str) -> Result<OutgoingReport> {
        let entries = self.shared.entries();
        entries.outgoing.get(name).map(report_outgoing).ok_or_else(|| unknown(Sort::Outgoing, name))
    }

    /// Returns how one channel is.
    pub fn channel(&self, name: &str) -> Result<ChannelReport> {
        let entries = self.shared.entries();
        entries.channels.get(name).map(report_channel).ok_or_else(|| unknown(Sort::Channel, name))
    }

    /// Returns how the federation is that the proxy takes part in under this name.
    pub fn federation(&self, name: &str) -> Result<FederationReport> {
        let entries = self.shared.entries();
        let found = entries.federation.as_ref().filter(|one| one.definition.name == name);
        let report = found.and_then(|one| report_federation(one, &entries));
        report.ok_or_else(|| unknown(Sort::Federation, name))
    }

    /// Returns how one durable subscription is.
    pub fn durable(&self, name: &str) -> Result<DurableReport> {
        let entries = self.shared.entries();
        let report = entries.durables.get(name).and_then(|one| report_durable(one, &entries));
        report.ok_or_else(|| unknown(Sort::Durable, name))
    }

    /// Sends a message by an outgoing connection. It is on disk when this returns, and goes out as soon as
    /// its peer is there.
    ///
    /// ```no_run
    /// # async fn send(registry: xmsg_connect::Registry) -> Result<(), Box<dyn std::error::Error>> {
    /// use xmsg_connect::Outbound;
    /// use xmsg_core::Message;
    ///
    /// let order = Message::of("orders:new", "17 pieces")?;
    /// let accepted = registry.send("CRM1", Outbound::new(order).routing_key("urgent")).await?;
    /// println!("{}", accepted.id);
    /// # Ok(()) }
    /// ```
    ///
    /// [`ErrorKind::Unknown`], [`ErrorKind::Inactive`], [`ErrorKind::Full`], [`ErrorKind::InvalidMessage`],
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Storage`]: it was not accepted. Messages are accepted in the
    /// order of the calls. Dropping the future has it accepted whole or not at all.
    pub async fn send(&self, outgoing: &str, message: impl Into<Outbound>) -> Result<Accepted> {
        self.shared.outgoing(outgoing)?.send(message.into()).await
    }

    /// Sends a message, and waits until the peer has it: until the broker has confirmed it, or until it was
    /// written to the ZeroMQ peer.
    ///
    /// [`ErrorKind::Timeout`]: it was accepted, and is still on its way. [`ErrorKind::Undeliverable`]: it is
    /// among the dead letters.
    pub async fn send_confirmed(
        &self,
        outgoing: &str,
        message: impl Into<Outbound>,
        limit: Duration,
    ) -> Result<Accepted> {
        self.shared.outgoing(outgoing)?.send_confirmed(message.into(), limit).await
    }

    /// Checks that the peer of an entry can be reached, and is as it is declared. A broker has to accept the
    /// login, and to have the exchange or queue. With a ZeroMQ socket there has to be a handshake. Returns
    /// how long that took.
    pub async fn ping(&self, sort: Sort, name: &str, limit: Duration) -> Result<Duration> {
        let definitions = self.shared.definitions();
        let definition = definitions.find(sort, name).ok_or_else(|| unknown(sort, name))?;
        ping::ping(
            &definition,
            &definitions,
            &self.shared.state_dir,
            self.shared.link_report(sort, name).as_ref(),
            limit,
        )
        .await
    }

    /// Returns the dead letters of an outgoing connection with sequences above `after`, oldest first.
    pub async fn dead(&self, outgoing: &str, after: u64, limit: usize) -> Result<Vec<DeadMessage>> {
        let letters = self.shared.spool(outgoing)?.dead(after, limit).await.map_err(storage)?;
        Ok(letters.into_iter().map(DeadMessage::of).collect())
    }

    /// Sends a dead letter again. It goes to the end of the spool.
    pub async fn revive(&self, outgoing: &str, sequence: u64) -> Result<()> {
        self.shared.spool(outgoing)?.revive(sequence).await.map(drop).map_err(storage)
    }

    /// Deletes the dead letters with these sequences, or all if there are none given. Returns how many there
    /// were.
    pub async fn discard_dead(&self, outgoing: &str, sequences: Option<&[u64]>) -> Result<u64> {
        let spool = self.shared.spool(outgoing)?;
        let discarded = match sequences {
            Some(sequences) => spool.discard_dead(sequences).await,
            None => spool.discard_all_dead().await,
        };
        discarded.map_err(storage)
    }

    /// Ends the channels, and waits for that: nothing more comes in by them. Whoever is about to stop the
    /// proxy does this first, lets the proxy deliver what it has, and then [closes](Self::close) the rest: so
    /// what was published gets to the spools.
    pub async fn end_channels(&self) {
        self.shared.is_closed.store(true, Ordering::Release);
        let (channels, durables) = {
            let mut entries = self.shared.entries.write().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut entries.channels), std::mem::take(&mut entries.durables))
        };
        join_all(durables.into_values().map(DurableServer::end)).await;
        join_all(channels.into_values().map(Channel::end)).await;
    }

    /// Ends everything: what is on its way has half a second to arrive; the rest stays in the spools.
    pub async fn close(&self) -> Result<()> {
        // Channels first: what they have received goes to the spools.
        self.end_channels().await;
        let outgoing = {
            let mut entries = self.shared.entries.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut entries.outgoing)
        };
        self.shared.targets.set(HashMap::new());
        let ended = join_all(outgoing.into_values().map(Outgoing::end)).await;
        self.shared.teardowns.wait(ENDED_WITHIN).await;
        // Whoever opens the folder next finds the spools closed.
        drop(lock(&self.shared.lock).take());
        let left: u64 = ended.iter().flatten().flatten().map(|left| left.entries).sum();
        if left > 0 {
            tracing::info!(messages = left, "what was not delivered waits in the spools");
        }
        ended.into_iter().try_for_each(|left| left.map(drop))
    }

    async fn change(
        &self,
        purge: Vec<String>,
        edit: impl FnOnce(&mut Definitions) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let closed = || Error::new(ErrorKind::Closed, "the registry has ended");
        let (done, outcome) = oneshot::channel();
        let change = Change { edit: Box::new(edit), purge, done };
        self.changes.send(change).await.map_err(|_| closed())?;
        let teardowns = outcome.await.map_err(|_| closed())??;
        // They go on without us, and the next change does not wait for them.
        join_all(teardowns).await.into_iter().collect()
    }

    fn check_empty(&self, name: &str) -> Result<()> {
        self.shared.check_empty(name)
    }

    /// Waits until everything is delivered.
    async fn drain(&self, name: &str, limit: Duration) -> Result<()> {
        let outgoing = self.shared.outgoing(name)?;
        let drained = async {
            while outgoing.spool.status().entries > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = Deadline::after(limit).limit(drained).await;
        self.check_empty(name)
    }
}
