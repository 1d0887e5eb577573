//! Outgoing connections: from the spool to the peer.
//!
//! ```text
//!  send ──────────────┐                        ┌─► amqp: an exchange, with confirms
//!                     ├─► spool (fsync) ─► session
//!  feed: what the     │                        └─► zmq: PUSH, PUB, DEALER
//!  proxy delivers ────┘
//! ```
//!
//! | file | answers |
//! |---|---|
//! | `feed.rs` | How do messages get from the proxy into the spool? |
//! | `spool_cell.rs` | Is the spool open, and if not, why? |
//! | `amqp.rs` | How do messages get from the spool to an exchange, and what if they are refused? |
//! | `in_flight.rs` | Which messages has the broker not confirmed yet? |
//! | `zmq.rs` | How do messages get from the spool to a ZeroMQ socket? |

mod amqp;
mod feed;
mod in_flight;
mod spool_cell;
mod zmq;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use xmsg_core::Actor;
use xmsg_zmq::fault::restart;
use xmsg_zmq::lock::lock;

use crate::definition::{
    ConnectionDefinition, Definitions, Destination, OutgoingDefinition, Reconnect, WhenInactive, ZmqOutgoing,
    not_short,
};
use crate::error::{Error, ErrorKind, Result};
use crate::federation::Federation;
use crate::outbound::{Outbound, Stored};
use crate::receive_memory::ReceiveMemory;
use crate::spool::{Entry, Spool, SpoolError, SpoolErrorKind, SpoolOptions, SpoolStatus};
use crate::status::{Counters, LinkState, Status, add};
use crate::supervise::{Plan, supervise};

pub(crate) use amqp::check_exchange;
pub(crate) use spool_cell::{SpoolCell, has_tombstone, remove_tombstone, write_tombstone};

/// The configuration of the session of an outgoing connection: its definition with all that it refers to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutgoingPlan {
    pub(crate) definition: OutgoingDefinition,
    pub(crate) destination: Destination,
    /// The broker, if it leads to one.
    pub(crate) broker: Option<ConnectionDefinition>,
    /// The federation whose messages it takes out.
    pub(crate) federation: Option<Federation>,
}

impl OutgoingPlan {
    /// Makes the plan for one of these definitions, whose files are relative to this folder.
    pub(crate) fn of(definition: &OutgoingDefinition, all: &Definitions, base: &Path) -> Result<Self> {
        let destination = match definition.check(all)? {
            Destination::Zmq(zmq) => {
                Destination::Zmq(ZmqOutgoing { socket: zmq.socket.resolved(base), ..zmq })
            }
            amqp @ Destination::Amqp(_) => amqp,
        };
        let broker = all.broker(definition.connection.as_ref()).map(|broker| broker.resolved(base));
        Ok(Self { definition: definition.clone(), destination, broker, federation: None })
    }

    fn to_plan(&self) -> Plan<Self> {
        if self.definition.is_active { Plan::Active(self.clone()) } else { Plan::Inactive }
    }

    fn reconnect(&self) -> Reconnect {
        self.broker.as_ref().map_or_else(Reconnect::default, |broker| broker.reconnect)
    }

    fn login(&self) -> &str {
        self.broker.as_ref().map_or("", |broker| &broker.username)
    }
}

/// A message that was accepted: it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Accepted {
    /// Its place in the order of the spool. Later messages have larger ones.
    pub sequence: u64,
    /// Its identifier, which the broker gets, too.
    pub id: Uuid,
}

/// An outgoing connection at work. Its tasks end when it is dropped, or [ended](Self::end).
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) shared: Arc<Shared>,
    plans: watch::Sender<Plan<OutgoingPlan>>,
    feed_plan_sender: watch::Sender<Plan<Vec<String>>>,
    tasks: TaskTracker,
}

/// How often in a row the broker has ended a channel while one message alone was in flight.
#[derive(Debug, Default)]
struct ChannelErrors {
    /// The sequence of the message in the spool.
    sequence: u64,
    count: u32,
}

/// The state that the tasks of an outgoing connection share with those who send.
#[derive(Debug)]
pub(crate) struct Shared {
    plan: RwLock<Arc<OutgoingPlan>>,
    pub(crate) spool: SpoolCell,
    pub(crate) status: Status,
    waiters: Mutex<HashMap<Uuid, oneshot::Sender<Result<()>>>>,
    /// AMQP: the broker has ended a channel because of a message. It may have been one up to this sequence.
    suspects_until: AtomicU64,
    /// AMQP: how often the broker has ended the channel while the same message alone was in flight.
    channel_errors: Mutex<ChannelErrors>,
    /// Whether the connection is being deleted, and takes nothing new.
    is_being_deleted: AtomicBool,
    /// Whether nothing is read from the subscription at the proxy, which goes on meanwhile.
    is_feed_paused: watch::Sender<bool>,
    receive_memory: ReceiveMemory,
}

impl Outgoing {
    /// Starts the tasks of an outgoing connection. They open its spool in this folder first, once that is
    /// `folder_free`.
    pub(crate) fn start(
        plan: &OutgoingPlan,
        path: PathBuf,
        options: SpoolOptions,
        folder_free: Option<CancellationToken>,
        actor: Actor,
        receive_memory: ReceiveMemory,
    ) -> Self {
        let shared = Arc::new(Shared {
            status: Status::new(label(&plan.definition.name)),
            spool: SpoolCell::new(path, options),
            waiters: Mutex::new(HashMap::new()),
            suspects_until: AtomicU64::new(0),
            channel_errors: Mutex::default(),
            is_being_deleted: AtomicBool::new(false),
            is_feed_paused: watch::Sender::new(false),
            plan: RwLock::new(Arc::new(plan.clone())),
            receive_memory,
        });
        let (plans, session_plans) = watch::channel(plan.to_plan());
        let (feed_plan_sender, feed_plans) = watch::channel(feed_plan(plan));
        let tasks = TaskTracker::new();
        let link = shared.clone();
        let name = label(&plan.definition.name);
        let own_name = name.clone();
        tasks.spawn(async move {
            restart(&own_name, || run_sessions(&link, session_plans.clone(), folder_free.clone())).await;
        });
        let link = shared.clone();
        tasks.spawn(async move {
            let feed = || feed::run(&link, &actor, feed_plans.clone());
            restart(format!("the subscription of {name}"), feed).await;
        });
        tasks.close();
        Self { shared, plans, feed_plan_sender, tasks }
    }

    /// Follows this plan from now on. The link is made anew if the plan differs.
    pub(crate) fn change(&self, plan: OutgoingPlan, options: SpoolOptions) {
        self.shared.status.rename(label(&plan.definition.name));
        self.shared.spool.set_options(options);
        send_if_changed(&self.plans, plan.to_plan());
        // A subscription that goes on takes over other topics without a gap.
        send_if_changed(&self.feed_plan_sender, feed_plan(&plan));
        *self.shared.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan);
    }

    /// Takes nothing new from now on, while what is in the spool goes out. If that `takes_long`, the
    /// subscription at the proxy ends, so that nobody waits for it there. If not, what is published waits in
    /// it for the decision, so that nothing is missed if it is not deleted after all.
    pub(crate) fn pause_intake(&self, takes_long: bool) {
        self.shared.is_being_deleted.store(true, Ordering::Relaxed);
        if takes_long {
            send_if_changed(&self.feed_plan_sender, Plan::Inactive);
        } else {
            self.shared.is_feed_paused.send_replace(true);
        }
    }

    /// Takes new messages again, because the connection is not deleted after all.
    pub(crate) fn resume_intake(&self) {
        self.shared.is_being_deleted.store(false, Ordering::Relaxed);
        self.shared.is_feed_paused.send_replace(false);
        send_if_changed(&self.feed_plan_sender, feed_plan(&self.shared.plan()));
    }

    /// Ends the tasks, and waits for them: what is on its way has half a second. Then the spool is closed.
    /// Returns what is left in it, and nothing if it was never open.
    pub(crate) async fn end(self) -> Result<Option<SpoolStatus>> {
        let Self { shared, plans, feed_plan_sender, tasks } = self;
        drop((plans, feed_plan_sender));
        tasks.wait().await;
        shared.fail_waiters();
        shared.spool.close().await?;
        Ok(shared.spool.get().ok().map(Spool::status))
    }
}

/// Opens the spool, and runs sessions that send what is in it, until there are no plans any more.
async fn run_sessions(
    link: &Arc<Shared>,
    mut plans: watch::Receiver<Plan<OutgoingPlan>>,
    folder_free: Option<CancellationToken>,
) {
    // A spool that is open already stays open.
    let is_open = link.spool.get().is_ok();
    if !is_open && !link.spool.open(&link.status, &mut plans, folder_free).await {
        link.status.set(LinkState::Ended);
        return;
    }
    let session = |plan: OutgoingPlan, attempt, stop| {
        let link = link.clone();
        async move {
            match &plan.destination {
                Destination::Amqp(_) => amqp::session(&link, &plan, attempt, stop).await,
                Destination::Zmq(zmq) => zmq::session(&link, &plan, zmq, stop).await,
            }
        }
    };
    supervise(&link.status, plans, OutgoingPlan::reconnect, session).await;
}

fn label(name: &str) -> String {
    format!("outgoing {name:?}")
}

/// Sends a plan to the receivers if it differs from the one before.
fn send_if_changed<P: PartialEq>(sender: &watch::Sender<Plan<P>>, new: Plan<P>) {
    sender.send_if_modified(|current| {
        let differs = *current != new;
        *current = new;
        differs
    });
}

/// Returns what is subscribed to at the proxy. While the connection is not active and refuses messages,
/// nothing is.
fn feed_plan(plan: &OutgoingPlan) -> Plan<Vec<String>> {
    let definition = &plan.definition;
    let takes = definition.is_active || definition.when_inactive == WhenInactive::Store;
    if takes && !definition.subscribe.is_empty() {
        Plan::Active(definition.subscribe.clone())
    } else {
        Plan::Inactive
    }
}

/// Makes an error of this library from one of the spool.
pub(crate) fn storage(error: SpoolError) -> Error {
    let kind = match error.kind() {
        SpoolErrorKind::Full => ErrorKind::Full,
        SpoolErrorKind::TooLarge => ErrorKind::TooLarge,
        SpoolErrorKind::Closed => ErrorKind::Closed,
        SpoolErrorKind::NotFound => ErrorKind::Unknown,
        _ => ErrorKind::Storage,
    };
    Error::new(kind, error.to_string()).with_source(error)
}

impl Shared {
    pub(crate) fn plan(&self) -> Arc<OutgoingPlan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn counters(&self) -> &Counters {
        &self.status.counters
    }

    /// Takes a message from a caller: it is on disk when this returns.
    pub(crate) async fn send(&self, outbound: Outbound) -> Result<Accepted> {
        let stored = self.prepare(outbound)?;
        self.append(&stored).await
    }

    /// Sends a message, and waits until the peer has it, for at most this time. What is not confirmed by then
    /// is still on its way.
    pub(crate) async fn send_confirmed(&self, outbound: Outbound, limit: Duration) -> Result<Accepted> {
        let stored = self.prepare(outbound)?;
        let (sender, confirmed) = oneshot::channel();
        lock(&self.waiters).insert(stored.id, sender);
        // The guard takes the waiter out again, however this future ends.
        let _guard = WaiterGuard { link: self, id: stored.id };
        let waiting = async {
            let accepted = self.append(&stored).await?;
            match confirmed.await {
                Ok(outcome) => outcome.map(|()| accepted),
                Err(_) => Err(self.error(ErrorKind::Closed, "was closed before the message was confirmed")),
            }
        };
        let timed_out = |_| {
            let what = format!("has not confirmed the message {} within {limit:?}", stored.id);
            self.error(ErrorKind::Timeout, &what)
        };
        xmsg_zmq::deadline::Deadline::after(limit).limit(waiting).await.map_err(timed_out)?
    }

    /// Takes a message from a channel, as [`send`](Self::send) does. Properties and headers of AMQP are
    /// dropped unless the peer is AMQP, too.
    pub(crate) async fn relay(&self, mut outbound: Outbound) -> Result<Accepted> {
        if matches!(self.plan().destination, Destination::Zmq(_)) {
            outbound = Outbound { id: outbound.id, ..Outbound::new(outbound.message) };
        }
        self.send(outbound).await
    }

    fn error(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(kind, format!("{} {what}", self.status.label()))
    }

    /// Checks what can be checked before it is accepted.
    fn prepare(&self, outbound: Outbound) -> Result<Stored> {
        let plan = self.plan();
        let definition = &plan.definition;
        if self.is_being_deleted.load(Ordering::Relaxed) {
            return Err(self.error(ErrorKind::Closed, "is being deleted, and takes nothing new"));
        }
        let is_internal = match &plan.destination {
            Destination::Amqp(amqp) => amqp.origin.is_some() || amqp.durable.is_some(),
            Destination::Zmq(_) => false,
        };
        if is_internal {
            let what = "takes what is published at the proxy, and nothing else: publish the message there";
            return Err(self.error(ErrorKind::InvalidMessage, what));
        }
        if !definition.is_active && definition.when_inactive == WhenInactive::Reject {
            add(&self.counters().refused, 1);
            return Err(self.error(
                ErrorKind::Inactive,
                "is not active, and refuses messages meanwhile (when_inactive)",
            ));
        }
        let wrong = |what: &str| self.error(ErrorKind::InvalidMessage, what);
        match &plan.destination {
            Destination::Zmq(_) => {
                let is_plain = outbound.exchange.is_none()
                    && outbound.routing_key.is_none()
                    && outbound.properties == crate::definition::Properties::default()
                    && outbound.headers.is_empty();
                if !is_plain {
                    return Err(wrong(
                        "leads to a ZeroMQ socket, which has no exchange, routing key, properties or headers",
                    ));
                }
            }
            Destination::Amqp(amqp) => {
                let size = outbound.message.data().len() as u64;
                if size > amqp.max_message_size {
                    let what = format!(
                        "takes no body of {size} bytes: the limit is {} (max_message_size)",
                        amqp.max_message_size
                    );
                    return Err(self.error(ErrorKind::TooLarge, &what));
                }
                if let Some((property, what)) = outbound.properties.invalid(plan.login()) {
                    return Err(wrong(&format!("can't send the property {property}, which {what}")));
                }
                let texts = [("exchange", &outbound.exchange), ("routing key", &outbound.routing_key)];
                for (name, text) in texts {
                    if let Some(what) = text.as_deref().and_then(not_short) {
                        return Err(wrong(&format!("can't use this {name}, which {what}")));
                    }
                }
                if let Some((name, what)) =
                    outbound.headers.keys().find_map(|name| Some((name, not_short(name)?)))
                {
                    return Err(wrong(&format!("can't send the header {name:?}, whose name {what}")));
                }
                if outbound.routing_key.is_none()
                    && let Err(what) = amqp.routing_key.fill(outbound.message.topic())
                {
                    return Err(wrong(&format!("can't send the message: {what}")));
                }
            }
        }
        Ok(Stored::new(outbound))
    }

    async fn append(&self, stored: &Stored) -> Result<Accepted> {
        let spool = self.spool.get_or_wait().await?;
        let body = stored.encode();
        let most = spool.options().max_entry_bytes;
        if body.len() > most {
            add(&self.counters().refused, 1);
            let what = format!(
                "takes no message of {} bytes with its topic, metadata and headers: the limit is {most}, 1 MiB more than max_message_size",
                body.len()
            );
            return Err(self.error(ErrorKind::TooLarge, &what));
        }
        match spool.append(body).await {
            Ok(sequence) => {
                add(&self.counters().accepted, 1);
                Ok(Accepted { sequence, id: stored.id })
            }
            Err(error) => {
                add(&self.counters().refused, 1);
                let error = storage(error);
                Err(Error::new(error.kind(), format!("{}: {error}", self.status.label())).with_source(error))
            }
        }
    }

    /// Removes messages from the spool because the peer has them, and wakes those who wait for that.
    async fn delivered(&self, messages: impl IntoIterator<Item = (u64, Uuid)>) -> Result<()> {
        let (sequences, ids): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
        add(&self.counters().delivered, ids.len() as u64);
        for id in ids {
            self.complete_waiter(id, Ok(()));
        }
        self.spool.get()?.remove(&sequences).await.map_err(storage)
    }

    /// Moves an entry that can't be delivered to the dead letters, with this reason.
    async fn dead_letter(&self, entry: &Entry, id: Option<Uuid>, reason: &str) -> Result<()> {
        self.spool.get()?.dead_letter(entry.sequence, reason).await.map_err(storage)?;
        add(&self.counters().dead, 1);
        self.status.note(format!("message {} goes to the dead letters: {reason}", display_id(id)));
        if let Some(id) = id {
            let what =
                format!("could not deliver the message {id}, which is among the dead letters now: {reason}");
            self.complete_waiter(id, Err(self.error(ErrorKind::Undeliverable, &what)));
        }
        Ok(())
    }

    /// Counts that the broker has ended the channel while this message alone was in flight. Returns how often
    /// that happened in a row.
    fn count_channel_error(&self, sequence: u64) -> u32 {
        let mut errors = lock(&self.channel_errors);
        if errors.sequence != sequence {
            *errors = ChannelErrors { sequence, count: 0 };
        }
        errors.count += 1;
        errors.count
    }

    fn complete_waiter(&self, id: Uuid, outcome: Result<()>) {
        let waiter = lock(&self.waiters).remove(&id);
        if let Some(waiter) = waiter {
            let _ = waiter.send(outcome);
        }
    }

    fn fail_waiters(&self) {
        // Dropping a sender tells whoever waits.
        lock(&self.waiters).clear();
    }

    /// Waits until there is something to send, for a connection that is lazy.
    async fn wait_for_work(&self) -> Result<()> {
        if self.plan().definition.lazy && self.spool.status().entries == 0 {
            self.status.set(LinkState::Idle);
            self.spool.get()?.next_after(0, 1, 1).await.map_err(storage)?;
        }
        self.status.set(LinkState::Connecting);
        Ok(())
    }
}

fn display_id(id: Option<Uuid>) -> String {
    id.map_or_else(|| "(unreadable)".to_owned(), |id| id.to_string())
}

/// A guard that takes a waiter out again when whoever waits is dropped.
struct WaiterGuard<'a> {
    link: &'a Shared,
    id: Uuid,
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        lock(&self.link.waiters).remove(&self.id);
    }
}
