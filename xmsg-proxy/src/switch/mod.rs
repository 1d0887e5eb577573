//! The data plane: forwards messages from publishers (XSUB) to subscribers (XPUB).
//!
//! ```text
//!  publisher ─► Session ─► Ingress: match, coalesce ─┬─► SendQueue ─► Session ─► subscriber
//!  publisher ─► Session ─► Ingress ──────────────────┴─► SendQueue ─► Session ─► subscriber
//!                             ▲ looks up, by epoch                     │ subscriptions
//!                             └────────────── Table ◄──────────────────┘
//! ```
//!
//! One task a connection. An *ingress* lives in the task of its publisher. It shares no messages with other
//! ingresses: only the *table*, counters, and the limits of all together (the memory budget, the sizes of the
//! caches). It reads the table only when it meets a topic that it has not seen since subscriptions last
//! changed. Messages are never taken apart: a run of messages for the same subscribers is
//! one slice of the memory that they were read into.

// | file | answers |
// |---|---|
// | `serving.rs` | What happens to one connection from its acceptance to its end? |
// | `ingress.rs` | How do messages get from a publisher into queues, and how long does it wait? |
// | `ingress/cache.rs` | Which subscribers get this topic, as far as an ingress remembers it? |
// | `delivery.rs` | What is queued for one subscriber, and what happens at its high-water mark? |
// | `subscriber.rs` | What is counted and logged of a subscriber? |
// | `disconnect.rs` | Which subscribers are too slow to stay, and how are they disconnected? |
// | `observer.rs` | Who watches messages on the web page, and what is shown of them? |
// | `log_throttles.rs` | How often is a line logged that many peers can cause? |
// | `slow_period.rs` | Since when has a subscriber been too slow? |
// | `stall_clock.rs` | For how long have publishers waited for a subscriber that takes next to nothing? |
// | `publisher.rs` | Which subscriptions is a publisher sent, and is it cut off for not reading? |
// | `connected_peers.rs` | Who is connected, and what did those count that have left? |
// | `peer_stats.rs` | Which statistics has one connection? |
// | `authorization.rs` | Who is a peer, and what may it do? |
// | `requests.rs` | How do control requests get to the controller, and how many may a connection send? |
// | `held_messages.rs` | How many messages are in the hands of publishers that wait? |
// | `paced_log.rs` | When is the next line about one connection logged? |
// | `token_bucket.rs` | May this be done now, or later? |
// | `watch.rs` | Which topics have how much traffic? |
// | `table/` | Who subscribed to what? |
// | `upstream/mod.rs` | Which links to other proxies are there? |
// | `upstream/link.rs` | How is a link kept connected? |
// | `upstream/token.rs` | How is a loop of proxies detected? |

mod authorization;
mod connected_peers;
mod delivery;
mod disconnect;
mod held_messages;
mod ingress;
mod log_throttles;
#[cfg_attr(
    not(any(feature = "daemon", test)),
    allow(dead_code, reason = "only the web page of daemons watches")
)]
mod observer;
mod paced_log;
mod peer_stats;
mod publisher;
mod requests;
mod serving;
mod slow_period;
mod stall_clock;
mod subscriber;
mod table;
mod token_bucket;
mod upstream;
mod watch;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmsg_zmq::fault::CriticalTasks;
use xmsg_zmq::link::session::now;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::link::transport::{Closer, Listener};
use xmsg_zmq::lock::lock;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::security::Principal;
use xmsg_zmq::{Admission, Amount, ViolationCounts, Violations};

use crate::config::Config;
use crate::policy::{Policies, Policy, Rule, TopicPolicy};
use crate::security::Authority;
use connected_peers::ConnectedPeers;
use ingress::Caches;
#[cfg(feature = "daemon")]
pub(crate) use observer::{Observation, Sample, Watcher};
pub use peer_stats::{Drops, PublisherStats, SubscriberStats};
use requests::RequestSender;
pub use requests::{ControlRequests, Request, Requester};
use table::{Change, Table, TableTask};
use upstream::Links;
use watch::Watch;
pub use watch::Watched;
#[cfg(feature = "daemon")]
pub(crate) use watch::{PUBLISHERS_MAX, SAMPLES_PER_S};

/// The largest number of topics that are looked up together for the links between publishers and subscribers.
#[cfg(feature = "daemon")]
const LINKS_AT_ONCE: usize = 64;
/// The share of the linger in which publishers are disconnected in order. The rest is for subscribers.
const PUBLISHERS_SHARE: f64 = 0.7;
/// The time for which a publisher that does not read may delay the confirmation of a subscription.
const SYNCHRONIZE_TIMEOUT: Duration = Duration::from_millis(100);
/// The reason in the log for a connection that [`Switch::end`] ends.
const BY_OPERATOR: &str = "ended by an operator";

/// The side of the switch that a connection is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Publishers connect here: we are their XSUB.
    Publishers,
    /// Subscribers connect here: we are their XPUB.
    Subscribers,
}

impl Side {
    /// Returns the name of the port in the log.
    fn port(self) -> &'static str {
        match self {
            Self::Publishers => "publishers",
            Self::Subscribers => "subscribers",
        }
    }

    /// Returns the name of one peer on this side.
    #[must_use]
    pub fn peer(self) -> &'static str {
        match self {
            Self::Publishers => "publisher",
            Self::Subscribers => "subscriber",
        }
    }
}

/// A connection that is being ended on request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The number of the connection.
    pub id: u32,
    /// The address of the peer.
    pub peer: String,
    /// The side that it is connected to.
    pub side: Side,
}

/// The counts of messages since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The messages from publishers.
    pub received: Amount,
    /// The messages written to subscribers. A message counts once for each of them.
    pub delivered: Amount,
    /// The messages dropped because a subscriber was too slow.
    pub dropped: Amount,
    /// The dropped messages, by the policy that chose them.
    pub drops: Drops,
    /// The number of times that a publisher had to wait for a subscriber.
    pub waits: u64,
    /// The total time that publishers waited for subscribers.
    pub waited: Duration,
    /// The number of subscribers that were disconnected because they were too slow.
    pub disconnected: u64,
    /// The number of messages that a subscriber did not get because a connection ended: they were queued for
    /// the subscriber when it left, or they waited for room in its queue (`block`) when the connection of
    /// their publisher ended.
    pub undelivered: u64,
    /// The number of received messages that wait for room in a subscriber's queue (`block`) now. A publisher
    /// that has to wait holds them, and they are in no queue.
    pub held: u64,
    /// The number of received messages that nobody had subscribed to. Whoever watches messages on the web
    /// page does not count.
    pub unmatched: u64,
    /// The number of connections that were refused in the handshake, or because there were too many.
    pub refused: u64,
    /// The number of publishers that had left before all that they had sent was passed on, and that were
    /// ended because new connections needed their places.
    pub crowded_out: u64,
    /// The number of connections that were ended because new connections from other addresses needed places,
    /// while their own address had more than half of all.
    pub evicted: u64,
    /// The number of messages and subscriptions that the peer's rights did not allow.
    pub denied: u64,
    /// The number of control requests. They do not count as messages.
    pub requests: u64,
    /// The number of control requests that came faster than they could be answered. The client asks again.
    pub requests_lost: u64,
    /// The number of answers to control requests that could not be sent, because the receiver does not read
    /// or is not connected.
    pub answers_lost: u64,
    /// The number of connections, to any port, that were ended because the peer broke a rule or a limit.
    pub violations: ViolationCounts,
}

/// The switch. It is a cheap handle; its tasks end with [`stop`](Self::stop).
#[derive(Clone, Debug)]
pub struct Switch {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    admission: Admission,
    violations: Violations,
    /// Limits the log lines about refused connections.
    refusals: Throttle,
    table: Arc<Table>,
    connected_peers: Arc<ConnectedPeers>,
    caches: Arc<Caches>,
    watch: Arc<Watch>,
    started: Instant,
    /// The number of the next connection.
    next_id: AtomicU64,
    asking: RequestSender,
    requests: Mutex<Option<ControlRequests>>,
    listeners: Mutex<Vec<Closer>>,
    links: Links,
    /// Ends accepting.
    refuse: CancellationToken,
    /// Ends all tasks.
    stop: CancellationToken,
    tasks: TaskTracker,
    publishers: TaskTracker,
    /// The runtime that all tasks run on.
    runtime: Handle,
}

impl Inner {
    fn listeners(&self) -> MutexGuard<'_, Vec<Closer>> {
        lock(&self.listeners)
    }

    fn unbind(&self) {
        for listener in self.listeners().drain(..) {
            listener.close();
        }
    }
}

impl Switch {
    /// Starts a switch without connections on the present runtime.
    #[must_use]
    pub fn start(config: Config) -> Self {
        let admission = config.admission();
        Self::start_with(config, admission, Violations::default())
    }

    /// Starts a switch whose connections, and the reasons why they were ended, are counted together with
    /// those of other ports.
    pub(crate) fn start_with(config: Config, admission: Admission, violations: Violations) -> Self {
        let stop = CancellationToken::new();
        let default = Rule { policy: config.policy, mark: config.high_water_mark };
        let policies = Policies::new(default, &config.policies);
        let (table, task) = Table::new(config.publishers_send, policies, config.memory.clone());
        let (asking, requests) = requests::channel();
        let inner = Arc::new(Inner {
            asking,
            requests: Mutex::new(Some(requests)),
            table,
            connected_peers: Arc::default(),
            caches: Arc::new(Caches::new(&config.memory)),
            watch: Arc::default(),
            started: now(),
            next_id: AtomicU64::new(1),
            listeners: Mutex::default(),
            links: Links::default(),
            refuse: stop.child_token(),
            tasks: TaskTracker::new(),
            publishers: TaskTracker::new(),
            runtime: Handle::current(),
            stop,
            config,
            admission,
            violations,
            refusals: Throttle::default(),
        });
        let table = run_table(task, inner.stop.clone());
        inner.tasks.spawn(inner.config.critical.watch("the table of subscriptions", table));
        Self { inner }
    }

    /// Returns the rules: who is admitted, with which rights.
    pub(crate) fn authority(&self) -> &Arc<Authority> {
        &self.inner.config.authority
    }

    /// Returns the tasks that the switch can't go on without.
    pub(crate) fn critical(&self) -> &CriticalTasks {
        &self.inner.config.critical
    }

    /// Returns the budget for the memory that all peers hold together.
    #[must_use]
    pub fn memory(&self) -> &MemoryBudget {
        &self.inner.config.memory
    }

    /// Accepts connections from this listener until the switch stops.
    pub fn listen(&self, listener: Listener, side: Side) {
        self.inner.listeners().push(listener.closer());
        let name = format!("accepting connections of {}", side.port());
        self.inner.tasks.spawn(self.inner.config.critical.watch(name, self.clone().accept(listener, side)));
    }

    /// Waits until every subscription that was made before the call is live in the whole switch, and was
    /// written to every publisher that reads.
    pub async fn synchronize(&self) {
        let mut publishers = self.inner.table.synchronize().await;
        publishers.retain(|publisher| !publisher.is_stalled());
        let written = async {
            for publisher in &publishers {
                publisher.send_queue.flushed().await;
            }
        };
        if tokio::time::timeout(SYNCHRONIZE_TIMEOUT, written).await.is_err() {
            for publisher in publishers.iter().filter(|publisher| publisher.send_queue.queued().messages > 0)
            {
                publisher.note_stall(SYNCHRONIZE_TIMEOUT);
            }
        }
    }

    /// Returns the control requests that publishers send from now on. Only the first call gets any.
    #[must_use]
    pub fn control_requests(&self) -> ControlRequests {
        let requests = lock(&self.inner.requests).take();
        requests.unwrap_or_else(|| requests::channel().1)
    }

    /// Confirms to the subscribers of this topic that their subscription is live, if they have proved to be
    /// `principal`. The confirmation is sent ahead of what is queued for them, and does not count as a
    /// message. Returns the number of subscribers.
    #[allow(clippy::must_use_candidate, reason = "it does something")]
    pub fn confirm(&self, topic: &[u8], principal: Option<&Principal>) -> usize {
        let mut answer = BytesMut::new();
        xmsg_zmtp::encode_message(&mut answer, &[topic, b"sub"]);
        let routes = self.inner.table.routes();
        let found = routes.find_each(&[topic]);
        let mut subscribers = 0;
        for (_, number) in found {
            let Some(subscriber) = routes.subscriber(number).filter(|one| one.observer.is_none()) else {
                continue;
            };
            subscribers += 1;
            if subscriber.authorization.principal().map(|who| &**who) == principal
                && !subscriber.confirm(&answer)
            {
                self.inner.asking.lose_answer(&subscriber.peer, Some("it does not read its confirmations"));
            }
        }
        subscribers
    }

    /// Counts a control request that is not answered because too many wait already, and logs that now and
    /// then.
    pub(crate) fn lose_request(&self, requester: &Requester) {
        self.inner.asking.lose(requester);
    }

    /// Counts an answer that can't be sent to the control socket with this identity, and logs the reason now
    /// and then. `None` as the reason means that the socket is not connected, which is no fault of the proxy.
    pub(crate) fn lose_answer(&self, identity: &[u8], why: Option<&str>) {
        self.inner.asking.lose_answer(&identity.escape_ascii(), why);
    }

    /// Applies the rules that are in force now to all connections: peers that are no longer admitted are
    /// disconnected, and subscriptions that are no longer allowed are removed.
    pub async fn enforce(&self) {
        // This comes first: a peer that is about to be disconnected has no rights any more.
        self.inner.table.change(Change::Enforce).await;
        self.inner.connected_peers.revoke_not_admitted().await;
        // Publishers learn here which of the topics that they may publish now are wanted.
        self.synchronize().await;
    }

    /// Replaces the policy at a subscriber's high-water mark: the general one, and those for topics with
    /// these prefixes. Nobody is disconnected for it. The new policies apply to what is read from publishers
    /// after this returns, and the old ones to what is queued already.
    pub async fn set_policies(&self, policy: Policy, policies: &[TopicPolicy]) {
        let inner = &self.inner;
        let default = Rule { policy, mark: inner.config.high_water_mark };
        inner.table.change(Change::Policies(Arc::new(Policies::new(default, policies)))).await;
        inner.table.synchronize().await;
        // A publisher that waits may not have to wait any more.
        inner.connected_peers.reconsider();
    }

    /// Ends all tasks without waiting for them. The addresses that it listened to are free when this returns.
    pub fn abort(&self) {
        self.inner.stop.cancel();
        self.inner.unbind();
    }

    /// Returns the counts since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = self.inner.connected_peers.totals();
        totals.refused += self.inner.admission.refused();
        totals.evicted = self.inner.admission.evicted();
        totals.violations = self.inner.violations.counts();
        (totals.requests, totals.requests_lost) = self.inner.asking.counts();
        totals.answers_lost = self.inner.asking.answers_lost();
        totals
    }

    /// Returns the statistics of every connected publisher.
    #[must_use]
    pub fn publishers(&self) -> Vec<PublisherStats> {
        self.inner.connected_peers.publishers()
    }

    /// Returns the statistics of every connected subscriber.
    #[must_use]
    pub fn subscribers(&self) -> Vec<SubscriberStats> {
        let default = self.inner.table.routes().policies().default_rule();
        self.inner.connected_peers.subscribers(default)
    }

    /// Ends the connection of the publisher or subscriber with this number, whatever it waits for, and
    /// nothing else. `by` says in the log who asked for it. Returns `None` if there is no such connection.
    pub fn end(&self, id: u32, by: &str) -> Option<Ending> {
        let found = self.inner.connected_peers.find(id);
        let (side, peer, authorization) = match &found {
            (Some(one), _) => (Side::Publishers, &one.peer, &one.authorization),
            (None, Some(one)) => (Side::Subscribers, &one.peer, &one.authorization),
            (None, None) => return None,
        };
        if !authorization.ended_by_operator.is_cancelled() {
            let principal = authorization.principal_text();
            tracing::warn!(id, %peer, side = side.peer(), principal, by, "an operator ended a connection");
            authorization.ended_by_operator.cancel();
        }
        Some(Ending { id, peer: peer.to_string(), side })
    }

    /// Returns the number of subscriptions, which are pairs of a subscriber and a prefix.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.inner.table.subscriptions()
    }

    /// Calls `found` with every prefix that somebody subscribed to, and the number of its subscribers, in no
    /// particular order.
    pub fn prefixes(&self, found: impl FnMut(Vec<u8>, usize)) {
        self.inner.table.prefixes(found);
    }

    /// Returns the time since the start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        now().saturating_duration_since(self.inner.started)
    }

    /// Returns the traffic by topic since somebody began to ask for it. The traffic is counted for ten
    /// seconds more after each call.
    #[must_use]
    pub fn watch(&self) -> Watched {
        self.inner.watch.look()
    }

    /// Returns the links between these topics and their publishers and subscribers, each as the number of the
    /// topic and that of the connection. It finds at most `most` subscribers; further topics have none.
    /// Watchers are no subscribers.
    #[cfg(feature = "daemon")]
    pub(crate) fn links(&self, topics: &[&[u8]], most: usize) -> (Vec<Vec<u32>>, Vec<(usize, u32)>) {
        let mut subscribers = Vec::new();
        let mut at = 0;
        while at < topics.len() && subscribers.len() < most {
            // The lock is released in between, so that changes of the table get their turn.
            let routes = self.inner.table.routes();
            let end = (at + routes.together(LINKS_AT_ONCE)).min(topics.len());
            let mut found = routes.find_each(&topics[at..end]);
            found.retain(|(_, id)| routes.subscriber(*id).is_some_and(|one| one.observer.is_none()));
            subscribers.extend(found.into_iter().map(|(topic, subscriber)| (at + topic, subscriber)));
            at = end;
        }
        (self.inner.watch.publishers_of(topics), subscribers)
    }

    /// Stops in order: accepts no more connections, disconnects the publishers and reads what they had
    /// already sent, writes what is queued, and disconnects the subscribers. After `linger`, it stops without
    /// waiting.
    pub async fn stop(&self, linger: Duration) -> Totals {
        let inner = &self.inner;
        inner.refuse.cancel();
        inner.unbind();
        let orderly = async {
            inner.publishers.close();
            inner.connected_peers.close_publishers();
            let leave = tokio::time::timeout(linger.mul_f64(PUBLISHERS_SHARE), inner.publishers.wait());
            if leave.await.is_err() {
                tracing::warn!("publishers that have not ended their connections in time are disconnected");
                inner.connected_peers.disconnect_publishers();
                inner.publishers.wait().await;
            }
            inner.connected_peers.close_subscribers();
            inner.connected_peers.subscribers_gone().await;
        };
        if tokio::time::timeout(linger, orderly).await.is_err() {
            tracing::warn!(?linger, "stopped before everything was delivered");
        }
        inner.stop.cancel();
        inner.publishers.close();
        inner.publishers.wait().await;
        inner.tasks.close();
        inner.tasks.wait().await;
        self.totals()
    }
}

/// Runs the table until the last connection has reported its end.
async fn run_table(mut task: TableTask, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => task.drain(),
        () = task.run() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::publisher::ConnectedPublisher;
    use super::*;

    #[tokio::test]
    async fn numbers_that_begin_anew_leave_out_those_that_are_taken() {
        let switch = Switch::start(Config::default());
        for id in [1, 2, 4] {
            switch
                .inner
                .connected_peers
                .add_publisher(&Arc::new(ConnectedPublisher::of_test(id, "a publisher")));
        }
        switch.inner.next_id.store(u64::from(u32::MAX), Ordering::Relaxed);
        assert_eq!([switch.id(), switch.id(), switch.id()], [u32::MAX, 3, 5]);
        switch.abort();
    }
}
