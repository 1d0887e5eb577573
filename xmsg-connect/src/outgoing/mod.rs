//! Outgoing connections: from the spool to the peer.
//!
//! ```text
//!  send ──────────────┐                        ┌─► amqp: an exchange, with confirms
//!                     ├─► spool (fsync) ─► session
//!  feed: what the     │                        └─► zmq: PUSH, PUB, DEALER
//!  proxy delivers ────┘
//! ```

mod amqp;
mod feed;
mod in_flight;
mod slot;
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
    ConnectionDefinition, Definitions, OutgoingDefinition, Reconnect, Way, WhenInactive, ZmqOutgoing,
    not_short,
};
use crate::error::{Error, ErrorKind, Result};
use crate::federation::Federation;
use crate::outbound::{Outbound, Stored};
use crate::room::Room;
use crate::spool::{Entry, Spool, SpoolError, SpoolErrorKind, SpoolOptions, SpoolStatus};
use crate::status::{Counters, LinkState, Status, add};
use crate::supervise::{Plan, supervise};

pub(crate) use amqp::check_exchange;
pub(crate) use slot::{Slot, is_marked_purged, mark_purged, unmark_purged};

/// What the session of an outgoing connection goes by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutgoingPlan {
    pub(crate) definition: OutgoingDefinition,
    pub(crate) way: Way,
    /// The broker, if it leads to one.
    pub(crate) broker: Option<ConnectionDefinition>,
    /// The federation whose messages it takes out.
    pub(crate) federation: Option<Federation>,
}

impl OutgoingPlan {
    /// The plan for one of these definitions, whose files are relative to this folder.
    pub(crate) fn of(definition: &OutgoingDefinition, all: &Definitions, base: &Path) -> Result<Self> {
        let way = match definition.check(all)? {
            Way::Zmq(zmq) => Way::Zmq(ZmqOutgoing { socket: zmq.socket.resolved(base), ..zmq }),
            amqp @ Way::Amqp(_) => amqp,
        };
        let broker = all.broker(definition.connection.as_ref()).map(|broker| broker.resolved(base));
        Ok(Self { definition: definition.clone(), way, broker, federation: None })
    }

    fn as_work(&self) -> Plan<Self> {
        if self.definition.is_active { Plan::Work(self.clone()) } else { Plan::Rest }
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
    /// Its place in the spool; they only grow.
    pub sequence: u64,
    /// Its identifier, which the broker gets, too.
    pub id: Uuid,
}

/// An outgoing connection at work. Its tasks end when it is dropped, or [ended](Self::end).
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) shared: Arc<Shared>,
    plans: watch::Sender<Plan<OutgoingPlan>>,
    feeds: watch::Sender<Plan<Vec<String>>>,
    tasks: TaskTracker,
}

/// What the tasks of an outgoing connection and those who send have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    plan: RwLock<Arc<OutgoingPlan>>,
    pub(crate) spool: Slot,
    pub(crate) status: Status,
    waiters: Mutex<HashMap<Uuid, oneshot::Sender<Result<()>>>>,
    /// AMQP: the broker has ended a channel because of a message, and one up to this place may be the one.
    suspects_until: AtomicU64,
    /// AMQP: the message for which the broker has ended the channel last, while it alone was in flight, and
    /// how often.
    blamed: Mutex<(u64, u32)>,
    /// It is being deleted, and takes nothing new.
    is_leaving: AtomicBool,
    /// What the proxy delivers waits, still subscribed to.
    is_held: watch::Sender<bool>,
    room: Room,
}

impl Outgoing {
    /// Starts the tasks of this one, which open its spool in this folder first, once that is `free`.
    pub(crate) fn start(
        plan: &OutgoingPlan,
        path: PathBuf,
        options: SpoolOptions,
        free: Option<CancellationToken>,
        actor: Actor,
        room: Room,
    ) -> Self {
        let shared = Arc::new(Shared {
            status: Status::new(label(&plan.definition.name)),
            spool: Slot::new(path, options),
            waiters: Mutex::new(HashMap::new()),
            suspects_until: AtomicU64::new(0),
            blamed: Mutex::default(),
            is_leaving: AtomicBool::new(false),
            is_held: watch::Sender::new(false),
            plan: RwLock::new(Arc::new(plan.clone())),
            room,
        });
        let (plans, session_plans) = watch::channel(plan.as_work());
        let (feeds, feed_plans) = watch::channel(feed_plan(plan));
        let tasks = TaskTracker::new();
        let link = shared.clone();
        let name = label(&plan.definition.name);
        let own_name = name.clone();
        tasks.spawn(async move {
            restart(&own_name, || work(&link, session_plans.clone(), free.clone())).await;
        });
        let link = shared.clone();
        tasks.spawn(async move {
            let feed = || feed::run(&link, &actor, feed_plans.clone());
            restart(format!("the subscription of {name}"), feed).await;
        });
        tasks.close();
        Self { shared, plans, feeds, tasks }
    }

    /// Goes by this plan from now on; the link is made anew if it differs.
    pub(crate) fn change(&self, plan: OutgoingPlan, options: SpoolOptions) {
        self.shared.status.rename(label(&plan.definition.name));
        self.shared.spool.set_options(options);
        set(&self.plans, plan.as_work());
        // A subscription that goes on takes over other topics without a gap.
        set(&self.feeds, feed_plan(&plan));
        *self.shared.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan);
    }

    /// Takes nothing new from now on: what is in the spool goes out. If that `takes_long`, the subscription
    /// at the proxy ends, so that nobody waits for it there. If not, what is published waits in it for the
    /// decision, so that nothing is missed if it is not deleted after all.
    pub(crate) fn leave(&self, takes_long: bool) {
        self.shared.is_leaving.store(true, Ordering::Relaxed);
        if takes_long {
            set(&self.feeds, Plan::Rest);
        } else {
            self.shared.is_held.send_replace(true);
        }
    }

    /// Takes what is new again: it is not deleted.
    pub(crate) fn stay(&self) {
        self.shared.is_leaving.store(false, Ordering::Relaxed);
        self.shared.is_held.send_replace(false);
        set(&self.feeds, feed_plan(&self.shared.plan()));
    }

    /// Ends the tasks, and waits for them: what is on its way has half a second. Then the spool is closed.
    /// Returns what is left in it; nothing if it was never open.
    pub(crate) async fn end(self) -> Result<Option<SpoolStatus>> {
        let Self { shared, plans, feeds, tasks } = self;
        drop((plans, feeds));
        tasks.wait().await;
        shared.fail_waiters();
        shared.spool.close().await?;
        Ok(shared.spool.get().ok().map(Spool::status))
    }
}

/// Opens the spool, and runs sessions that send what is in it, until there are no plans any more.
async fn work(
    link: &Arc<Shared>,
    mut plans: watch::Receiver<Plan<OutgoingPlan>>,
    free: Option<CancellationToken>,
) {
    // A spool that is open already stays open.
    let is_open = link.spool.get().is_ok();
    if !is_open && !link.spool.open(&link.status, &mut plans, free).await {
        link.status.set(LinkState::Ended);
        return;
    }
    let session = |plan: OutgoingPlan, attempt, stop| {
        let link = link.clone();
        async move {
            match &plan.way {
                Way::Amqp(_) => amqp::session(&link, &plan, attempt, stop).await,
                Way::Zmq(zmq) => zmq::session(&link, &plan, zmq, stop).await,
            }
        }
    };
    supervise(&link.status, plans, OutgoingPlan::reconnect, session).await;
}

fn label(name: &str) -> String {
    format!("outgoing {name:?}")
}

/// Sets a plan, and tells of it if it differs.
fn set<P: PartialEq>(sender: &watch::Sender<Plan<P>>, new: Plan<P>) {
    sender.send_if_modified(|current| {
        let differs = *current != new;
        *current = new;
        differs
    });
}

/// What is subscribed to at the proxy. While the connection is not active and refuses, nothing is.
fn feed_plan(plan: &OutgoingPlan) -> Plan<Vec<String>> {
    let definition = &plan.definition;
    let takes = definition.is_active || definition.when_inactive == WhenInactive::Store;
    if takes && !definition.subscribe.is_empty() {
        Plan::Work(definition.subscribe.clone())
    } else {
        Plan::Rest
    }
}

/// An error of the spool, as one of ours.
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
        // However this future ends, nobody waits any more then.
        let _guard = Waiting { link: self, id: stored.id };
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

    /// Takes a message from a channel, as [`send`](Self::send) does. What AMQP has beside it goes along only
    /// to AMQP.
    pub(crate) async fn relay(&self, mut outbound: Outbound) -> Result<Accepted> {
        if matches!(self.plan().way, Way::Zmq(_)) {
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
        if self.is_leaving.load(Ordering::Relaxed) {
            return Err(self.error(ErrorKind::Closed, "is being deleted, and takes nothing new"));
        }
        let is_internal = match &plan.way {
            Way::Amqp(way) => way.origin.is_some() || way.durable.is_some(),
            Way::Zmq(_) => false,
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
        match &plan.way {
            Way::Zmq(_) => {
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
            Way::Amqp(amqp) => {
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
        let spool = self.spool.opened().await?;
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

    /// The peer has these messages.
    async fn delivered(&self, messages: impl IntoIterator<Item = (u64, Uuid)>) -> Result<()> {
        let (sequences, ids): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
        add(&self.counters().delivered, ids.len() as u64);
        for id in ids {
            self.tell(id, Ok(()));
        }
        self.spool.get()?.remove(&sequences).await.map_err(storage)
    }

    /// This entry can't be delivered, for this reason.
    async fn bury(&self, entry: &Entry, id: Option<Uuid>, reason: &str) -> Result<()> {
        self.spool.get()?.bury(entry.sequence, reason).await.map_err(storage)?;
        add(&self.counters().dead, 1);
        self.status.note(format!("message {} goes to the dead letters: {reason}", shown(id)));
        if let Some(id) = id {
            let what =
                format!("could not deliver the message {id}, which is among the dead letters now: {reason}");
            self.tell(id, Err(self.error(ErrorKind::Undeliverable, &what)));
        }
        Ok(())
    }

    /// The broker has ended the channel while this message alone was in flight. Returns how often that
    /// happened in a row.
    fn blame(&self, sequence: u64) -> u32 {
        let mut blamed = lock(&self.blamed);
        *blamed = if blamed.0 == sequence { (sequence, blamed.1 + 1) } else { (sequence, 1) };
        blamed.1
    }

    fn tell(&self, id: Uuid, outcome: Result<()>) {
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

fn shown(id: Option<Uuid>) -> String {
    id.map_or_else(|| "(unreadable)".to_owned(), |id| id.to_string())
}

/// Takes a waiter out again when whoever waits is dropped.
struct Waiting<'a> {
    link: &'a Shared,
    id: Uuid,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.link.waiters).remove(&self.id);
    }
}
