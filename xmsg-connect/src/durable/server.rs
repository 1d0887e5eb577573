//! The server of a durable subscription. It hands each request of a subscriber to the session that the
//! request is for.

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
use super::session::{Command, REQUEST_TIMEOUT, Session, charge_of_reply};
use crate::amqp::buffer_bytes;
use crate::receive_memory::ReceiveMemory;

/// How many sessions one durable subscription may have at a time.
const SESSIONS_MAX: usize = 64;
/// How many requests are answered at the same time. Of each session, one waits for messages and one
/// acknowledges.
const CONCURRENCY: usize = 256;
/// The number of commands of one session that wait for the one before. At this number, another one waits for
/// a place, for [`REQUEST_TIMEOUT`] at most, and is then answered that the service is unavailable.
const COMMANDS_MAX: usize = 8;
/// The longest topic for answers that is accepted, in bytes. So whether an answer has room for a message does
/// not depend on who asks.
const REPLY_TOPIC_MAX: usize = 256;
/// The digits of a serial, with that of the language.
const SERIAL_LEN: usize = 7;
/// Characters of a topic in the log.
const LOGGED_CHARS_MAX: usize = 100;
/// How long a session that has asked for nothing since it was opened is safe from being ended for a new one.
const UNUSED_GRACE: Duration = Duration::from_secs(2);
/// The pause before the proxy is asked again for a subscription that it has not confirmed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
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
pub(crate) struct CounterValues {
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
    receive_memory: ReceiveMemory,
    sessions: Mutex<HashMap<Bytes, SessionEntry>>,
    counters: Arc<Counters>,
    /// Limits log lines about requests that can't be answered, and about sessions that are lost.
    log: Throttle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A session as the server knows it.
#[derive(Debug)]
struct SessionEntry {
    commands: mpsc::Sender<Command>,
    /// The client that opened the session, as far as it is known.
    client: Bytes,
    /// When the session was opened, or has received its last request.
    last_request: Instant,
    /// Whether the session has received a request. If so, whoever opened it has received its identifier.
    is_used: bool,
    /// Ends it.
    end: CancellationToken,
}

impl DurableServer {
    /// Starts to answer.
    pub(crate) fn start(plan: DurablePlan, actor: Actor, receive_memory: ReceiveMemory) -> Self {
        let shared = Arc::new(Shared {
            plan: plan.clone(),
            receive_memory,
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

    pub(crate) fn counter_values(&self) -> CounterValues {
        let Counters { given_out, acknowledged, sessions_lost, rejected, gave_way, ignored, .. } =
            &*self.shared.counters;
        CounterValues {
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
        let serving = shared.clone();
        let (own, sender) = (topic.clone(), actor.clone());
        let handler = move |message: Message| {
            let (shared, sender) = (serving.clone(), sender.clone());
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
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
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
        let bytes = charge_of_reply(&reply);
        let answer_permit = self.receive_memory.acquire_answer(bytes).await;
        let sent = match message.reply_with(reply.encode()) {
            Ok(Some(answer)) => sender.publish(&answer).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        drop(answer_permit);
        let Err(error) = sent else { return };
        if error.kind() == xmsg_core::ErrorKind::TooLarge
            && let (Some(session), Reply::Messages(items)) = (&session, &reply)
            && let Some(first) = items.first()
        {
            if let Some(commands) = self.touch(session) {
                // A session that has ended needs to know nothing: its messages are back in the queue.
                let _ = commands
                    .send(Command::TooLarge { number: first.number, messages: items.len(), bytes })
                    .await;
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

    /// Counts and logs a request that is not answered because of the topic of its answer. Whoever may ask
    /// chooses that topic, and it must not be one that means something to others, who would take the answer
    /// for a message of theirs.
    fn ignore(&self, topic: Option<&Topic>) {
        self.counters.ignored.fetch_add(1, Ordering::Relaxed);
        let Some(unlogged) = self.log.pass("requests for durable subscriptions that are not answered") else {
            return;
        };
        let name = &self.plan.definition.name;
        let topic = topic.map(|topic| truncated(&topic.to_string()));
        tracing::warn!(
            unlogged,
            topic,
            "durable {name:?}: a request is not answered: its answer should go to a topic that is not for answers (ret:ID:LDDDDDD, return:N)"
        );
    }

    /// Notes that a request for a session has come. Returns where commands for it go.
    fn touch(&self, session: &Bytes) -> Option<mpsc::Sender<Command>> {
        let mut sessions = lock(&self.sessions);
        let entry = sessions.get_mut(session)?;
        (entry.last_request, entry.is_used) = (Instant::now(), true);
        Some(entry.commands.clone())
    }

    async fn answer(self: &Arc<Self>, request: Request, client: &[u8]) -> Reply {
        let Some(session) = request.session() else { return self.open(client).await };
        let Some(commands) = self.touch(session) else { return Reply::UnknownSession };
        let (answer, answered) = oneshot::channel();
        // A session that hangs is about to end; meanwhile it holds up no request to another one.
        match Deadline::after(REQUEST_TIMEOUT)
            .limit(commands.send(Command::Request { request, answer }))
            .await
        {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Reply::UnknownSession,
            Err(_) => return Reply::Unavailable("requests before it still wait for the broker".to_owned()),
        }
        answered.await.unwrap_or(Reply::UnknownSession)
    }

    /// Begins a session. The answer comes once it is connected to the broker.
    async fn open(self: &Arc<Self>, client: &[u8]) -> Reply {
        let definition = &self.plan.definition;
        let name = &definition.name;
        if !definition.is_active {
            return Reply::Unavailable(format!(
                "the durable subscription {name:?} is not active (is_active)"
            ));
        }
        // The client has a thread and buffers for each connection.
        let thread = self.receive_memory.try_thread();
        let has_room = self.receive_memory.has_room(self.plan.broker.as_ref().map_or(0, buffer_bytes));
        let (Some(thread), true) = (thread, has_room) else {
            return Reply::Unavailable(format!(
                "the durable subscription {name:?} has no memory for another subscriber now (--memory-limit)"
            ));
        };
        let id = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let end = self.stop.child_token();
        let entry = SessionEntry {
            commands,
            client: Bytes::copy_from_slice(client),
            last_request: Instant::now(),
            is_used: false,
            end: end.clone(),
        };
        if !self.try_insert(id.clone(), entry) {
            return Reply::Unavailable(format!(
                "the durable subscription {name:?} has {SESSIONS_MAX} subscribers, and no room for more"
            ));
        }
        let (ready, opened) = oneshot::channel();
        let (shared, own_id) = (self.clone(), id.clone());
        self.tasks.spawn(async move {
            let run = Session::run(
                &shared.plan,
                &shared.counters,
                &shared.receive_memory,
                &shared.log,
                command_queue,
                ready,
            );
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
        match opened.await {
            // It may have had to give way meanwhile.
            Ok(Ok(())) => Reply::Opened { session: id, topics: definition.topics.clone() },
            Ok(Err(error)) => Reply::Unavailable(format!(
                "the durable subscription {name:?} can't get at its messages: {}",
                error.with_causes()
            )),
            Err(_) => Reply::Unavailable(format!("the durable subscription {name:?} is ending")),
        }
    }

    /// Inserts a new session, for which another one may have to end. Returns whether there was room for it.
    fn try_insert(&self, id: Bytes, entry: SessionEntry) -> bool {
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= SESSIONS_MAX {
            let session_to_evict = session_to_evict(&sessions, &entry.client, Instant::now());
            let Some(other) = session_to_evict.and_then(|other| sessions.remove(&other)) else {
                return false;
            };
            other.end.cancel();
            self.counters.gave_way.fetch_add(1, Ordering::Relaxed);
            if let Some(unlogged) = self.log.pass("sessions that gave way to those of others") {
                let name = &self.plan.definition.name;
                tracing::warn!(
                    unlogged,
                    client = truncated(&String::from_utf8_lossy(&other.client)),
                    "durable {name:?}: all {SESSIONS_MAX} places are taken: a session of the subscriber with most of them, or one that was never used, has ended"
                );
            }
        }
        sessions.insert(id, entry);
        true
    }
}

/// Returns the session that is ended for a new one of this client when there are as many as there may be: one
/// that nobody has used, or one of the client that has most, if those are more than this one would have. Of
/// these, it is the one that was silent for longest.
fn session_to_evict(sessions: &HashMap<Bytes, SessionEntry>, client: &Bytes, now: Instant) -> Option<Bytes> {
    let mut counts: HashMap<&Bytes, usize> = HashMap::new();
    for entry in sessions.values() {
        *counts.entry(&entry.client).or_default() += 1;
    }
    let count = |entry: &SessionEntry| counts.get(&entry.client).copied().unwrap_or_default();
    let is_unused = |entry: &SessionEntry| {
        !entry.is_used && now.saturating_duration_since(entry.last_request) >= UNUSED_GRACE
    };
    let own = counts.get(client).copied().unwrap_or_default();
    let may_go = |entry: &SessionEntry| is_unused(entry) || count(entry) > own + 1;
    let silent = |entry: &SessionEntry| now.saturating_duration_since(entry.last_request);
    let going = sessions.iter().filter(|(_, entry)| may_go(entry));
    let going = going.max_by_key(|(_, entry)| (is_unused(entry), count(entry), silent(entry)));
    going.map(|(id, _)| id.clone())
}

/// Returns the client whose answers go to this topic: the part of `ret:ID:LDDDDDD` before the serial, and all
/// of `return:N`, which does not say more. Returns `None` for a topic that is not for answers.
fn client_of(topic: &[u8]) -> Option<&[u8]> {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if topic.len() > REPLY_TOPIC_MAX {
        return None;
    }
    if let Some(number) = topic.strip_prefix(b"return:") {
        return is_number(number).then_some(topic);
    }
    let (client, serial) = topic.split_at_checked(topic.len().checked_sub(1 + SERIAL_LEN)?)?;
    let is_serial = serial.strip_prefix(b":").is_some_and(is_number);
    (is_serial && client.strip_prefix(b"ret:").is_some_and(|id| !id.is_empty())).then_some(client)
}

/// Cuts the text of others to what a line of the log has of it.
fn truncated(text: &str) -> String {
    text.chars().take(LOGGED_CHARS_MAX).collect()
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
        let long = format!("ret:{}:4000007", "x".repeat(REPLY_TOPIC_MAX));
        assert_eq!(client_of(long.as_bytes()), None);
    }

    fn entry(client: &'static str, last_request: Instant, is_used: bool) -> SessionEntry {
        let (commands, _) = mpsc::channel(1);
        let client = Bytes::from_static(client.as_bytes());
        SessionEntry { commands, client, last_request, is_used, end: CancellationToken::new() }
    }

    #[test]
    fn a_client_with_many_sessions_gives_way_to_one_with_few() {
        let start = Instant::now();
        let later = |seconds| Deadline::since(start, Duration::from_secs(seconds)).instant();
        let name = |number: u32| Bytes::from(number.to_string());
        let mut sessions: HashMap<Bytes, SessionEntry> =
            (0..3).map(|number| (name(number), entry("many", later(number.into()), true))).collect();
        sessions.insert(name(3), entry("one", start, true));
        let goes = |sessions: &_, client: &'static str, at| {
            session_to_evict(sessions, &Bytes::from_static(client.as_bytes()), at)
        };
        // The one that was silent for longest.
        assert_eq!(goes(&sessions, "new", later(10)), Some(name(0)));
        assert_eq!(goes(&sessions, "one", later(10)), Some(name(0)));
        assert_eq!(goes(&sessions, "many", later(10)), None);
        // One that nobody has used goes first, once it had the time to be used.
        sessions.insert(name(4), entry("one", later(9), false));
        assert_eq!(goes(&sessions, "new", later(10)), Some(name(0)));
        assert_eq!(goes(&sessions, "many", later(12)), Some(name(4)));
        // Where nobody has more than the new one would have, nobody gives way.
        let sessions = HashMap::from([
            (name(0), entry("a", start, true)),
            (name(1), entry("b", start, true)),
            (name(2), entry("c", start, true)),
        ]);
        assert_eq!(goes(&sessions, "new", later(100)), None);
    }
}
