//! Answers the requests of subscribers: which session each is for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use xmsg_core::durable::protocol::{Reply, Request, TOPIC};
use xmsg_core::{Actor, Message};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::fault::{catch_in, restart};
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::lock::lock;

use super::DurablePlan;
use super::session::{ASKED, Ask, Session, charge_of};
use crate::amqp::buffers;
use crate::room::Room;

/// Sessions of one durable subscription at a time.
const SESSIONS: usize = 64;
/// Requests that are answered at the same time; of each session, one waits for messages and one acknowledges.
const CONCURRENCY: usize = 256;
/// Requests of one session that wait for the one before.
const ASKS: usize = 8;
/// A longer topic for answers is no reason to give up a message that does not fit beside it.
const REPLY_TOPIC: usize = 1 << 10;
/// The pause before the proxy is asked again for a subscription that it has not confirmed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long answers on their way may take at the end.
const GRACE: Duration = Duration::from_millis(500);

/// What the sessions of a durable subscription have in common: what was counted since it was started, and
/// what was learned.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(super) given_out: AtomicU64,
    pub(super) acknowledged: AtomicU64,
    /// Sessions that have ended because the broker was lost, or said nothing.
    pub(super) sessions_lost: AtomicU64,
    /// Messages that went to the dead letters: they can't be messages of xMsg, or no answer has room for
    /// them.
    pub(super) rejected: AtomicU64,
    /// The longest message that a session has held, in bytes.
    pub(super) longest: AtomicUsize,
    /// The node of the broker that worked last: its place in the list.
    pub(super) node: AtomicUsize,
}

/// The counters of a durable subscription, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) subscribers: u64,
    pub(crate) given_out: u64,
    pub(crate) acknowledged: u64,
    pub(crate) sessions_lost: u64,
    pub(crate) rejected: u64,
}

/// A durable subscription at work. Its tasks end when it is dropped, or [ended](Self::end).
#[derive(Debug)]
pub(crate) struct DurableServer {
    pub(crate) plan: DurablePlan,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: DurablePlan,
    room: Room,
    sessions: Mutex<HashMap<Bytes, mpsc::Sender<Ask>>>,
    counters: Arc<Counters>,
    /// Lines about requests that can't be answered, and about sessions that are lost.
    log: Throttle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl DurableServer {
    /// Starts to answer.
    pub(crate) fn start(plan: DurablePlan, actor: Actor, room: Room) -> Self {
        let shared = Arc::new(Shared {
            plan: plan.clone(),
            room,
            sessions: Mutex::default(),
            counters: Arc::default(),
            log: Throttle::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let serving = shared.clone();
        shared.tasks.spawn(async move {
            let name = format!("the durable subscription {:?}", serving.plan.definition.name);
            restart(name, || serve(serving.clone(), actor.clone())).await;
        });
        Self { plan, shared }
    }

    pub(crate) fn counted(&self) -> Counted {
        let Counters { given_out, acknowledged, sessions_lost, rejected, .. } = &*self.shared.counters;
        Counted {
            subscribers: lock(&self.shared.sessions).len() as u64,
            given_out: given_out.load(Ordering::Relaxed),
            acknowledged: acknowledged.load(Ordering::Relaxed),
            sessions_lost: sessions_lost.load(Ordering::Relaxed),
            rejected: rejected.load(Ordering::Relaxed),
        }
    }

    /// Ends all sessions, and waits for that: what was not acknowledged is back in the queue then.
    pub(crate) async fn end(self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for DurableServer {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// Subscribes to the requests, until it is told to stop.
async fn serve(shared: Arc<Shared>, actor: Actor) {
    let topic = format!("{TOPIC}{}", shared.plan.definition.name);
    loop {
        let answering = shared.clone();
        let (own, sender) = (topic.clone(), actor.clone());
        let handler = move |message: Message| {
            let (shared, sender) = (answering.clone(), sender.clone());
            // A subscription is a prefix: requests for others, whose names begin with this one's, come, too.
            let is_ours = message.topic().as_bytes() == own.as_bytes();
            async move {
                if is_ours {
                    shared.serve_one(&sender, &message).await;
                }
            }
        };
        let subscribed = tokio::select! {
            () = shared.stop.cancelled() => return,
            subscribed = actor.subscribe_with(&*topic, CONCURRENCY, handler) => subscribed,
        };
        match subscribed {
            Ok(handle) => {
                shared.stop.cancelled().await;
                handle.close(GRACE).await;
                return;
            }
            Err(error) => {
                let name = &shared.plan.definition.name;
                tracing::warn!(
                    "durable {name:?}: requests can't be subscribed to, which is tried again: {}",
                    error.with_causes()
                );
                tokio::select! {
                    () = shared.stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }
}

impl Shared {
    /// Answers one request. What can't be answered is logged at a bounded rate, since whoever may send a
    /// request can bring that about.
    async fn serve_one(self: &Arc<Self>, sender: &Actor, message: &Message) {
        let (reply, session) = match Request::decode(message.data().clone()) {
            Ok(request) => {
                let session = request.session().cloned();
                (self.answer(request).await, session)
            }
            Err(error) => (Reply::Unavailable(error.with_causes().to_string()), None),
        };
        // Each answer has a copy of its messages until it is sent.
        let bytes = charge_of(&reply);
        let answering = self.room.answer(bytes).await;
        let sent = match message.reply_with(reply.encode()) {
            Ok(Some(answer)) => sender.publish(&answer).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        drop(answering);
        let Err(error) = sent else { return };
        let is_short =
            message.reply_topic().ok().flatten().is_some_and(|topic| topic.as_bytes().len() <= REPLY_TOPIC);
        if error.kind() == xmsg_core::ErrorKind::TooLarge
            && is_short
            && let (Some(session), Reply::Messages(items)) = (&session, &reply)
            && let Some(first) = items.first()
        {
            let asks = lock(&self.sessions).get(session).cloned();
            if let Some(asks) = asks {
                // A session that has ended needs to know nothing: its messages are back in the queue.
                let _ = asks.send(Ask::TooLarge { number: first.number, messages: items.len(), bytes }).await;
            }
            // The subscriber asks again at once then.
            if let Ok(Some(answer)) = message.reply_with(Reply::Messages(Vec::new()).encode()) {
                let _ = sender.publish(&answer).await;
            }
        }
        let Some(unlogged) = self.log.pass("answers to requests for durable subscriptions") else { return };
        let name = &self.plan.definition.name;
        tracing::warn!(unlogged, "durable {name:?}: an answer was not sent: {}", error.with_causes());
    }

    async fn answer(self: &Arc<Self>, request: Request) -> Reply {
        let Some(session) = request.session() else { return self.open().await };
        let asks = lock(&self.sessions).get(session).cloned();
        let Some(asks) = asks else { return Reply::UnknownSession };
        let (answer, answered) = oneshot::channel();
        // A session that hangs is about to end; meanwhile it holds up no request to another one.
        match Deadline::after(ASKED).limit(asks.send(Ask::Request { request, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Reply::UnknownSession,
            Err(_) => return Reply::Unavailable("requests before it still wait for the broker".to_owned()),
        }
        answered.await.unwrap_or(Reply::UnknownSession)
    }

    /// Begins a session; the answer comes once it is connected to the broker.
    async fn open(self: &Arc<Self>) -> Reply {
        let definition = &self.plan.definition;
        let name = &definition.name;
        if !definition.is_active {
            return Reply::Unavailable(format!(
                "the durable subscription {name:?} is not active (is_active)"
            ));
        }
        // The client has a thread and buffers for each connection.
        let thread = self.room.thread();
        let has_room = self.room.has_room(self.plan.broker.as_ref().map_or(0, buffers));
        let (Some(thread), true) = (thread, has_room) else {
            return Reply::Unavailable(format!(
                "the durable subscription {name:?} has no memory for another subscriber now (--memory-limit)"
            ));
        };
        let id = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
        let (asks, asked) = mpsc::channel(ASKS);
        {
            let mut sessions = lock(&self.sessions);
            if sessions.len() >= SESSIONS {
                return Reply::Unavailable(format!(
                    "the durable subscription {name:?} has {SESSIONS} subscribers, and no room for more"
                ));
            }
            sessions.insert(id.clone(), asks);
        }
        let (ready, is_ready) = oneshot::channel();
        let (shared, own_id) = (self.clone(), id.clone());
        self.tasks.spawn(async move {
            let run = Session::run(&shared.plan, &shared.counters, &shared.room, &shared.log, asked, ready);
            tokio::select! {
                ran = catch_in(run) => if let Err(fault) = ran {
                    // The subscriber asks for another session: what it has not acknowledged comes again.
                    shared.counters.sessions_lost.fetch_add(1, Ordering::Relaxed);
                    let name = &shared.plan.definition.name;
                    tracing::error!("durable {name:?}: a fault of this program has ended a session: {fault}");
                },
                () = shared.stop.cancelled() => {}
            }
            lock(&shared.sessions).remove(&own_id);
            drop(thread);
        });
        match is_ready.await {
            Ok(Ok(())) => Reply::Opened { session: id, topics: definition.topics.clone() },
            Ok(Err(error)) => Reply::Unavailable(format!(
                "the durable subscription {name:?} can't get at its messages: {}",
                error.with_causes()
            )),
            Err(_) => Reply::Unavailable(format!("the durable subscription {name:?} is ending")),
        }
    }
}
