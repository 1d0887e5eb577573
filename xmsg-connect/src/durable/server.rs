//! Answers the requests of subscribers: which session each is for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use xmsg_core::durable::protocol::{Reply, Request, TOPIC};
use xmsg_core::{Actor, Message, Topic};
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
/// The longest topic for answers that is accepted, in bytes. So whether an answer has room for a message does
/// not depend on who asks.
const REPLY_TOPIC: usize = 256;
/// The digits of a serial, with that of the language.
const SERIAL: usize = 7;
/// Characters of a topic in the log.
const SHOWN: usize = 100;
/// When there is no place for another session, one that has asked for nothing since it was opened gives way
/// after this time.
const UNUSED: Duration = Duration::from_secs(2);
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
    /// Sessions that have ended to make room for those of others.
    pub(super) gave_way: AtomicU64,
    /// Requests whose answers should go to a topic that is not for answers.
    pub(super) ignored: AtomicU64,
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
    pub(crate) gave_way: u64,
    pub(crate) ignored: u64,
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
    sessions: Mutex<HashMap<Bytes, Place>>,
    counters: Arc<Counters>,
    /// Lines about requests that can't be answered, and about sessions that are lost.
    log: Throttle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A session as the server knows it.
#[derive(Debug)]
struct Place {
    asks: mpsc::Sender<Ask>,
    /// Whose it is, as far as that is known.
    client: Bytes,
    /// When it was opened, or asked last.
    heard: Instant,
    /// Whether it was asked for something: then whoever opened it has received its identifier.
    is_used: bool,
    /// Ends it.
    end: CancellationToken,
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
        let Counters { given_out, acknowledged, sessions_lost, rejected, gave_way, ignored, .. } =
            &*self.shared.counters;
        Counted {
            subscribers: lock(&self.shared.sessions).len() as u64,
            given_out: given_out.load(Ordering::Relaxed),
            acknowledged: acknowledged.load(Ordering::Relaxed),
            sessions_lost: sessions_lost.load(Ordering::Relaxed),
            rejected: rejected.load(Ordering::Relaxed),
            gave_way: gave_way.load(Ordering::Relaxed),
            ignored: ignored.load(Ordering::Relaxed),
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
        let topic = message.reply_topic().ok().flatten();
        let Some(client) = topic.as_ref().and_then(|topic| client_of(topic.as_bytes())) else {
            return self.ignore(topic.as_ref());
        };
        let (reply, session) = match Request::decode(message.data().clone()) {
            Ok(request) => {
                let session = request.session().cloned();
                (self.answer(request, client).await, session)
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
        if error.kind() == xmsg_core::ErrorKind::TooLarge
            && let (Some(session), Reply::Messages(items)) = (&session, &reply)
            && let Some(first) = items.first()
        {
            if let Some(asks) = self.heard(session) {
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

    /// Whoever may ask chooses the topic of the answer. It is not to be one that means something to others,
    /// who would take the answer for a message of theirs.
    fn ignore(&self, topic: Option<&Topic>) {
        self.counters.ignored.fetch_add(1, Ordering::Relaxed);
        let Some(unlogged) = self.log.pass("requests for durable subscriptions that are not answered") else {
            return;
        };
        let name = &self.plan.definition.name;
        let topic = topic.map(|topic| brief(&topic.to_string()));
        tracing::warn!(
            unlogged,
            topic,
            "durable {name:?}: a request is not answered: its answer should go to a topic that is not for answers (ret:ID:LDDDDDD, return:N)"
        );
    }

    /// Notes that a session is asked for something.
    fn heard(&self, session: &Bytes) -> Option<mpsc::Sender<Ask>> {
        let mut sessions = lock(&self.sessions);
        let place = sessions.get_mut(session)?;
        (place.heard, place.is_used) = (Instant::now(), true);
        Some(place.asks.clone())
    }

    async fn answer(self: &Arc<Self>, request: Request, client: &[u8]) -> Reply {
        let Some(session) = request.session() else { return self.open(client).await };
        let Some(asks) = self.heard(session) else { return Reply::UnknownSession };
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
    async fn open(self: &Arc<Self>, client: &[u8]) -> Reply {
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
        let end = self.stop.child_token();
        let place = Place {
            asks,
            client: Bytes::copy_from_slice(client),
            heard: Instant::now(),
            is_used: false,
            end: end.clone(),
        };
        if !self.enter(id.clone(), place) {
            return Reply::Unavailable(format!(
                "the durable subscription {name:?} has {SESSIONS} subscribers, and no room for more"
            ));
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
                () = end.cancelled() => {}
            }
            lock(&shared.sessions).remove(&own_id);
            drop(thread);
        });
        match is_ready.await {
            // It may have had to give way meanwhile.
            Ok(Ok(())) => Reply::Opened { session: id, topics: definition.topics.clone() },
            Ok(Err(error)) => Reply::Unavailable(format!(
                "the durable subscription {name:?} can't get at its messages: {}",
                error.with_causes()
            )),
            Err(_) => Reply::Unavailable(format!("the durable subscription {name:?} is ending")),
        }
    }

    /// Gives a new session its place. If there is none, another session may have to give way. Returns whether
    /// it has one.
    fn enter(&self, id: Bytes, place: Place) -> bool {
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= SESSIONS {
            let gives_way = gives_way(&sessions, &place.client, Instant::now());
            let Some(other) = gives_way.and_then(|other| sessions.remove(&other)) else { return false };
            other.end.cancel();
            self.counters.gave_way.fetch_add(1, Ordering::Relaxed);
            if let Some(unlogged) = self.log.pass("sessions that gave way to those of others") {
                let name = &self.plan.definition.name;
                tracing::warn!(
                    unlogged,
                    client = brief(&String::from_utf8_lossy(&other.client)),
                    "durable {name:?}: all {SESSIONS} places are taken: a session of the subscriber with most of them, or one that was never used, has ended"
                );
            }
        }
        sessions.insert(id, place);
        true
    }
}

/// Which session gives way to a new one of this client when all places are taken: one that nobody has used,
/// or one of the client that has most, if those are more than this one would have. Of these, it is the one
/// that was silent for longest.
fn gives_way(sessions: &HashMap<Bytes, Place>, client: &Bytes, now: Instant) -> Option<Bytes> {
    let mut counts: HashMap<&Bytes, usize> = HashMap::new();
    for place in sessions.values() {
        *counts.entry(&place.client).or_default() += 1;
    }
    let count = |place: &Place| counts.get(&place.client).copied().unwrap_or_default();
    let is_unused = |place: &Place| !place.is_used && now.saturating_duration_since(place.heard) >= UNUSED;
    let own = counts.get(client).copied().unwrap_or_default();
    let may_go = |place: &Place| is_unused(place) || count(place) > own + 1;
    let silent = |place: &Place| now.saturating_duration_since(place.heard);
    let going = sessions.iter().filter(|(_, place)| may_go(place));
    let going = going.max_by_key(|(_, place)| (is_unused(place), count(place), silent(place)));
    going.map(|(id, _)| id.clone())
}

/// Whose request it is whose answer goes to this topic: of `ret:ID:LDDDDDD`, the part before the serial; of
/// `return:N`, which does not say more, all of it. `None` for a topic that is not for answers.
fn client_of(topic: &[u8]) -> Option<&[u8]> {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if topic.len() > REPLY_TOPIC {
        return None;
    }
    if let Some(number) = topic.strip_prefix(b"return:") {
        return is_number(number).then_some(topic);
    }
    let (client, serial) = topic.split_at_checked(topic.len().checked_sub(1 + SERIAL)?)?;
    let is_serial = serial.strip_prefix(b":").is_some_and(is_number);
    (is_serial && client.strip_prefix(b"ret:").is_some_and(|id| !id.is_empty())).then_some(client)
}

/// Text of others, as much of it as a line of the log has.
fn brief(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_to_topics_for_answers_only() {
        for (topic, client) in [
            ("ret:0a1b2c3d:4000007", Some("ret:0a1b2c3d")),
            ("ret:0a1b2c3d:1999999", Some("ret:0a1b2c3d")),
            ("ret:any:name:2000001", Some("ret:any:name")),
            ("return:17", Some("return:17")),
            ("ret:0a1b2c3d", None),
            ("ret:0a1b2c3d:400000", None),
            ("ret:0a1b2c3d:400000x", None),
            ("ret::4000007", None),
            ("ret:4000007", None),
            ("return:", None),
            ("return:17:x", None),
            ("orders:new:4000007", None),
            ("xmsg-durable:billing", None),
            ("", None),
        ] {
            let found = client_of(topic.as_bytes()).map(|client| std::str::from_utf8(client).unwrap());
            assert_eq!(found, client, "{topic}");
        }
        let long = format!("ret:{}:4000007", "x".repeat(REPLY_TOPIC));
        assert_eq!(client_of(long.as_bytes()), None);
    }

    fn place(client: &'static str, heard: Instant, is_used: bool) -> Place {
        let (asks, _) = mpsc::channel(1);
        let client = Bytes::from_static(client.as_bytes());
        Place { asks, client, heard, is_used, end: CancellationToken::new() }
    }

    #[test]
    fn a_client_with_many_sessions_gives_way_to_one_with_few() {
        let start = Instant::now();
        let later = |seconds| Deadline::since(start, Duration::from_secs(seconds)).instant();
        let name = |number: u32| Bytes::from(number.to_string());
        let mut sessions: HashMap<Bytes, Place> =
            (0..3).map(|number| (name(number), place("many", later(number.into()), true))).collect();
        sessions.insert(name(3), place("one", start, true));
        let goes = |sessions: &_, client: &'static str, at| {
            gives_way(sessions, &Bytes::from_static(client.as_bytes()), at)
        };
        // The one that was silent for longest.
        assert_eq!(goes(&sessions, "new", later(10)), Some(name(0)));
        assert_eq!(goes(&sessions, "one", later(10)), Some(name(0)));
        assert_eq!(goes(&sessions, "many", later(10)), None);
        // One that nobody has used goes first, once it had the time to be used.
        sessions.insert(name(4), place("one", later(9), false));
        assert_eq!(goes(&sessions, "new", later(10)), Some(name(0)));
        assert_eq!(goes(&sessions, "many", later(12)), Some(name(4)));
        // Where nobody has more than the new one would have, nobody gives way.
        let sessions = HashMap::from([
            (name(0), place("a", start, true)),
            (name(1), place("b", start, true)),
            (name(2), place("c", start, true)),
        ]);
        assert_eq!(goes(&sessions, "new", later(100)), None);
    }
}
