//! The data plane: forwards messages from publishers (XSUB) to subscribers (XPUB).
//!
//! ```text
//!  publisher ─► Session ─► Ingress: match, coalesce ─┬─► SendQueue ─► Session ─► subscriber
//!  publisher ─► Session ─► Ingress ──────────────────┴─► SendQueue ─► Session ─► subscriber
//!                             ▲ looks up, by epoch                     │ subscriptions
//!                             └────────────── Table ◄──────────────────┘
//! ```
//!
//! One task a connection. An *ingress* lives in the task of its publisher and shares nothing with other
//! ingresses but the *table*, which it reads only when it meets a topic that it has not seen since
//! subscriptions last changed. Messages are never taken apart: a run of messages for the same subscribers is
//! one slice of the memory that they were read into.

mod bucket;
mod connected_peers;
mod delivery;
mod grant;
mod held;
mod ingress;
mod peers;
mod publisher;
mod requests;
mod slow;
mod stall;
mod table;
mod upstream;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmsg_zmq::fault::{CriticalTasks, catch_in};
use xmsg_zmq::link::admission::{Leaving, Permit};
use xmsg_zmq::link::dead_peer::{Route, unread};
use xmsg_zmq::link::memory::MemoryBudget;
use xmsg_zmq::link::send_queue::SendQueue;
use xmsg_zmq::link::session::{Ended, Session, now};
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::link::transport::{Closer, Listener, Stream};
use xmsg_zmq::lock::lock;
use xmsg_zmq::security::Principal;
use xmsg_zmq::{Admission, Amount, ProxyPorts, ViolationCounts, Violations};
use xmsg_zmtp::{Engine, MessageLimits, Peer, PeerLimits, SocketType};

use crate::config::Config;
use crate::policy::{Policies, Policy, Rule, TopicPolicy};
use crate::security::Authority;
use connected_peers::ConnectedPeers;
use ingress::{Caches, Ingress};
pub use peers::{Drops, PublisherStats, SubscriberStats};
use peers::{Grant, Subscriber};
use publisher::Publisher;
use requests::{Asking, RequestSender};
pub use requests::{ControlRequests, Request, Requester};
use table::{Change, Table, TableTask};
use upstream::Links;
use watch::Watch;
pub use watch::Watched;
#[cfg(feature = "daemon")]
pub(crate) use watch::{PUBLISHERS_MAX, SAMPLES_PER_S};

/// Topics that are looked up together for whoever looks, at most.
#[cfg(feature = "daemon")]
const LINKS_AT_ONCE: usize = 64;
/// The share of the linger that publishers get to take leave; the rest is for subscribers.
const PUBLISHERS_SHARE: f64 = 0.7;
/// How long a publisher gets to finish its handshake when the switch stops.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(500);
/// How long a publisher that does not read may hold up the confirmation of a subscription.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(100);
/// The reason in the log of a connection that [`Switch::end`] ends.
const BY_OPERATOR: &str = "ended by an operator";
/// The reason for one of an address that has most connections, while others need a place.
const GIVES_WAY: &str = "ended to make room for a new connection: its address has more than half of all";

/// Which side of the switch a connection is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Publishers connect here: we are their XSUB.
    Publishers,
    /// Subscribers connect here: we are their XPUB.
    Subscribers,
}

impl Side {
    /// How it is called in the log.
    fn port(self) -> &'static str {
        match self {
            Self::Publishers => "publishers",
            Self::Subscribers => "subscribers",
        }
    }

    /// What one peer on it is called.
    #[must_use]
    pub fn peer(self) -> &'static str {
        match self {
            Self::Publishers => "publisher",
            Self::Subscribers => "subscriber",
        }
    }
}

/// A connection that is being ended because somebody asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Its number.
    pub id: u32,
    /// The peer's address.
    pub peer: String,
    /// Where it is connected.
    pub side: Side,
}

/// Messages since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// From publishers.
    pub received: Amount,
    /// Written to subscribers, each counted on its own.
    pub delivered: Amount,
    /// Dropped, because a subscriber was too slow.
    pub dropped: Amount,
    /// Dropped messages, by the policy that chose them.
    pub drops: Drops,
    /// How often a publisher had to wait for a subscriber.
    pub waits: u64,
    /// How long publishers waited for subscribers.
    pub waited: Duration,
    /// Subscribers that were cut off because they were too slow.
    pub disconnected: u64,
    /// Messages that a subscriber did not get because a connection ended: they were queued for it when it
    /// went away, or waited for room in its queue (`block`) when the connection of their publisher ended.
    pub undelivered: u64,
    /// Messages that were received and wait for room in a subscriber's queue (`block`) now: in the hands of a
    /// publisher that is held up, and in no queue.
    pub held: u64,
    /// Received messages that nobody had subscribed to.
    pub unmatched: u64,
    /// Connections that were refused: in the handshake, or because there were too many.
    pub refused: u64,
    /// Publishers that had left before all that they had sent was passed on, and were ended because newcomers
    /// needed their places.
    pub crowded_out: u64,
    /// Connections that were ended because newcomers from elsewhere needed places, while their address had
    /// more than half of all.
    pub evicted: u64,
    /// Messages and subscriptions that the peer's rights did not allow.
    pub denied: u64,
    /// Control requests. They are not counted as messages.
    pub requests: u64,
    /// Control requests that came faster than they could be answered: whoever asked asks again.
    pub requests_lost: u64,
    /// Answers to control requests that could not be sent: whoever was to get them does not read, or is not
    /// there.
    pub answers_lost: u64,
    /// Connections, to any port, that were ended because the peer broke a rule or a limit.
    pub violations: ViolationCounts,
}

/// The switch: a cheap handle; its tasks end with [`stop`](Self::stop).
#[derive(Clone, Debug)]
pub struct Switch {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    admission: Admission,
    violations: Violations,
    /// Refused connections in the log.
    refusals: Throttle,
    table: Arc<Table>,
    connected_peers: Arc<ConnectedPeers>,
    caches: Arc<Caches>,
    watch: Arc<Watch>,
    started: Instant,
    /// Connections so far.
    next_id: AtomicU64,
    asking: RequestSender,
    requests: Mutex<Option<ControlRequests>>,
    listeners: Mutex<Vec<Closer>>,
    links: Links,
    /// Ends accepting.
    refuse: CancellationToken,
    /// Ends everything.
    stop: CancellationToken,
    tasks: TaskTracker,
    publishers: TaskTracker,
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

    /// Returns a switch whose connections, and the reasons why they were ended, are counted together with
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

    /// Who is let in, and what they may do.
    pub(crate) fn authority(&self) -> &Arc<Authority> {
        &self.inner.config.authority
    }

    /// The tasks that it can't go on without.
    pub(crate) fn critical(&self) -> &CriticalTasks {
        &self.inner.config.critical
    }

    /// The memory that all peers together hold.
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

    /// Waits until every subscription that was made before is live in the whole switch and was written to
    /// every publisher that reads.
    pub async fn settled(&self) {
        let mut publishers = self.inner.table.synchronize().await;
        publishers.retain(|publisher| !publisher.is_stalled());
        let written = async {
            for publisher in &publishers {
                publisher.send_queue.flushed().await;
            }
        };
        if tokio::time::timeout(SETTLE_TIMEOUT, written).await.is_err() {
            for publisher in publishers.iter().filter(|publisher| publisher.send_queue.queued().messages > 0)
            {
                publisher.holds_up(SETTLE_TIMEOUT);
            }
        }
    }

    /// The control requests that publishers send from now on, for whoever answers them. Only the first call
    /// gets any.
    #[must_use]
    pub fn control_requests(&self) -> ControlRequests {
        let requests = lock(&self.inner.requests).take();
        requests.unwrap_or_else(|| requests::channel().1)
    }

    /// Tells subscribers of this topic that their subscription is live: all of those who have proved to be
    /// `principal`. The confirmation goes ahead of what is queued for them, and is no message that counts.
    /// Returns how many they are.
    #[allow(clippy::must_use_candidate, reason = "it does something")]
    pub fn confirm(&self, topic: &[u8], principal: Option<&Principal>) -> usize {
        let mut answer = BytesMut::new();
        xmsg_zmtp::encode_message(&mut answer, &[topic, b"sub"]);
        let routes = self.inner.table.routes();
        let found = routes.find_each(&[topic]);
        for (_, number) in &found {
            let Some(subscriber) = routes.subscriber(*number) else { continue };
            if subscriber.grant.who().map(|who| &**who) == principal && !subscriber.confirm(&answer) {
                self.inner.asking.lose_answer(&subscriber.peer, Some("it does not read its confirmations"));
            }
        }
        found.len()
    }

    /// Counts a control request that is not answered, because too many wait already, and says so in the log
    /// now and then.
    pub(crate) fn lose_request(&self, requester: &Requester) {
        self.inner.asking.lose(requester);
    }

    /// Counts an answer that can't be sent to the control socket with this identity, and says so and why in
    /// the log now and then; `None`: it is not there, which is no fault of ours.
    pub(crate) fn lose_answer(&self, identity: &[u8], why: Option<&str>) {
        self.inner.asking.lose_answer(&identity.escape_ascii(), why);
    }

    /// Has everybody keep to the rules that are in force now: whoever may not be here any more is cut off,
    /// and subscriptions that are not allowed any more are taken away.
    pub async fn enforce(&self) {
        // First: whoever waits to be cut off has no rights any more.
        self.inner.table.change(Change::Enforce).await;
        self.inner.connected_peers.cut_strangers().await;
        // Publishers are told what they may publish now.
        self.settled().await;
    }

    /// Replaces what happens at a subscriber's mark: in general, and for topics with these prefixes. Nobody
    /// is disconnected for it. What is read from publishers after it returns is treated in the new way; what
    /// is queued already, in the old one.
    pub async fn set_policies(&self, policy: Policy, policies: &[TopicPolicy]) {
        let inner = &self.inner;
        let default = Rule { policy, mark: inner.config.high_water_mark };
        inner.table.change(Change::Policies(Arc::new(Policies::new(default, policies)))).await;
        inner.table.synchronize().await;
        // A publisher that waits need perhaps not wait any more.
        inner.connected_peers.reconsider();
    }

    /// Ends all tasks without waiting for them. What it listened to is free when this returns.
    pub fn abort(&self) {
        self.inner.stop.cancel();
        self.inner.unbind();
    }

    /// Everything since the start.
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

    /// Every connected publisher.
    #[must_use]
    pub fn publishers(&self) -> Vec<PublisherStats> {
        self.inner.connected_peers.publishers()
    }

    /// Every connected subscriber.
    #[must_use]
    pub fn subscribers(&self) -> Vec<SubscriberStats> {
        let default = self.inner.table.routes().policies().default_rule();
        self.inner.connected_peers.subscribers(default)
    }

    /// Ends the connection of the publisher or subscriber with this number, whatever it waits for; nothing
    /// else is ended. `by` says in the log who asked for it. `None`: there is no such connection.
    pub fn end(&self, id: u32, by: &str) -> Option<Ending> {
        let found = self.inner.connected_peers.find(id);
        let (side, peer, grant) = match &found {
            (Some(one), _) => (Side::Publishers, &one.peer, &one.grant),
            (None, Some(one)) => (Side::Subscribers, &one.peer, &one.grant),
            (None, None) => return None,
        };
        if !grant.unwanted.is_cancelled() {
            let principal = grant.principal();
            tracing::warn!(id, %peer, side = side.peer(), principal, by, "an operator ended a connection");
            grant.unwanted.cancel();
        }
        Some(Ending { id, peer: peer.to_string(), side })
    }

    /// Distinct subscriptions: pairs of subscriber and prefix.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.inner.table.subscriptions()
    }

    /// Calls `found` with every prefix that somebody subscribed to, and the number of its subscribers; in no
    /// particular order.
    pub fn prefixes(&self, found: impl FnMut(Vec<u8>, usize)) {
        self.inner.table.prefixes(found);
    }

    /// How long it has run.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        now().saturating_duration_since(self.inner.started)
    }

    /// What flows by topic since somebody began to look; from now on, for ten seconds, it goes on to be
    /// counted.
    #[must_use]
    pub fn watch(&self) -> Watched {
        self.inner.watch.look()
    }

    /// Who publishes each of these topics, and who subscribes to them: the number of the topic, and that of
    /// the subscriber. At most `most` of these are found; after that topics have none.
    #[cfg(feature = "daemon")]
    pub(crate) fn links(&self, topics: &[&[u8]], most: usize) -> (Vec<Vec<u32>>, Vec<(usize, u32)>) {
        let mut subscribers = Vec::new();
        let mut at = 0;
        while at < topics.len() && subscribers.len() < most {
            // Changes of the table get their turn in between.
            let routes = self.inner.table.routes();
            let end = (at + routes.together(LINKS_AT_ONCE)).min(topics.len());
            let found = routes.find_each(&topics[at..end]);
            subscribers.extend(found.into_iter().map(|(topic, subscriber)| (at + topic, subscriber)));
            at = end;
        }
        (self.inner.watch.publishers_of(topics), subscribers)
    }

    /// Stops in order: accepts nobody any more; takes leave of the publishers and reads what they had already
    /// sent; writes what is queued; takes leave of the subscribers. After `linger` it stops as it is.
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
                inner.connected_peers.cut_publishers();
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

    async fn accept(self, mut listener: Listener, side: Side) {
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = self.inner.refuse.cancelled() => return,
                next = listener.accept_making_room(|| self.inner.admission.make_room()) => next,
            };
            let Some(permit) = self.inner.admission.admit(stream.address(), &peer) else { continue };
            let serve = self.clone().serve_alone(stream, peer, side, permit);
            match side {
                Side::Publishers => drop(self.inner.publishers.spawn(serve)),
                Side::Subscribers => drop(self.inner.tasks.spawn(serve)),
            }
        }
    }

    /// Serves one connection. A panic, wherever it happens, ends this connection and is counted and logged.
    async fn serve_alone(self, stream: Stream, peer: String, side: Side, permit: Permit) {
        let serve = self.clone().serve(stream, peer.clone(), side, permit);
        if let Err(fault) = Box::pin(catch_in(serve)).await {
            self.inner.violations.note(&peer, side.port(), &Ended::Fault(fault));
        }
    }

    async fn serve(self, stream: Stream, peer: String, side: Side, mut permit: Permit) {
        let stop = self.inner.stop.clone();
        let refuse = self.inner.refuse.clone();
        let Config { security, authority, heartbeat_interval, heartbeat_timeout, .. } = &self.inner.config;
        let security = security.security(authority);
        let engine = Engine::with_mechanism(self.engine_options(side), security.mechanism(), now());
        let authenticator = permit.in_turn(security.authenticator());
        let mut session = Session::new(stream, engine)
            .with_authenticator(authenticator)
            .watched(*heartbeat_interval, *heartbeat_timeout)
            .with_memory(&self.inner.config.memory, &peer)
            .with_activity(permit.activity());
        // A publisher may have sent messages before we have read the end of its side of the handshake.
        let grace = if side == Side::Publishers { HANDSHAKE_GRACE } else { Duration::ZERO };
        let refused = async {
            refuse.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        let gives_way = permit.gives_way();
        let found = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = refused => return,
            () = gives_way.cancelled() => return tracing::debug!(peer, ?side, reason = GIVES_WAY, "disconnected"),
            result = session.handshake() => match result {
                Ok(found) => found,
                Err(ended) => {
                    self.inner.connected_peers.refused();
                    if self.inner.violations.note(&peer, side.port(), &ended).is_none()
                        && let Some(unlogged) = self.inner.refusals.pass("connections that were refused in the handshake")
                    {
                        // A peer that learns that our socket does not fit its own closes before it has said
                        // what that is.
                        let ports = self.inner.violations.ports().filter(|_| ended.is_by_peer());
                        let hint = ports.map(|ports| {
                            let ProxyPorts { publishers, subscribers, .. } = ports;
                            format!("publishers connect to {publishers}, subscribers to {subscribers}")
                        });
                        tracing::info!(peer, ?side, reason = %ended, hint, unlogged, "connection refused");
                    }
                    return;
                }
            },
        };
        permit.established();
        // What else it announced is dropped here, and not when the connection ends.
        let accepts_drop_reports = found.accepts_drop_reports;
        let is_forwarder = found.socket_type == SocketType::Xpub;
        let (version, principal, limits) = essentials(found);
        tracing::debug!(peer, ?side, ?version, "connected");
        let grant = Grant::new(authority, principal);
        let ended = match side {
            Side::Subscribers => {
                let hearing = (limits, accepts_drop_reports);
                self.serve_subscriber(session, &peer, hearing, grant, stop, gives_way).await
            }
            Side::Publishers => {
                let cut = CancellationToken::new();
                let publisher =
                    Publisher::new(self.id(), &peer, version, grant, permit.place(cut.clone()), cut);
                let publisher = publisher.forwarding(is_forwarder);
                self.serve_publisher(session, publisher, stop, gives_way).await
            }
        };
        if self.inner.violations.note(&peer, side.port(), &ended).is_none() {
            tracing::debug!(peer, ?side, reason = %ended, "disconnected");
        }
    }

    async fn serve_publisher(
        &self,
        session: Session,
        publisher: Publisher,
        stop: CancellationToken,
        gives_way: CancellationToken,
    ) -> Ended {
        let inner = &self.inner;
        let publisher =
            Arc::new(publisher.counting(&inner.config.memory).logging(&inner.connected_peers.lines));
        let route = session.route();
        let session = session.with_departure(Arc::new(Leaving(publisher.place.clone())));
        let asking = Asking::new(inner.asking.clone());
        let (table, connected_peers, caches) = (&inner.table, &inner.connected_peers, &inner.caches);
        let mut ingress =
            Ingress::new(&publisher, table, connected_peers, asking, caches, &inner.watch, &inner.config);
        inner.connected_peers.add_publisher(&publisher);
        inner.table.change(Change::PublisherJoined(publisher.clone())).await;
        if inner.refuse.is_cancelled() {
            publisher.send_queue.close();
        }
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ended::ByUs("stopped"),
            ended = self.cut(&publisher, route) => ended,
            () = publisher.outsized.cancelled() => Ended::OutOfMemory,
            () = publisher.grant.revoked.cancelled() => Ended::ByUs("not allowed any more"),
            () = publisher.grant.unwanted.cancelled() => Ended::ByUs(BY_OPERATOR),
            () = gives_way.cancelled() => Ended::ByUs(GIVES_WAY),
            ended = session.run(&publisher.send_queue, &mut ingress, Duration::MAX) => ended,
        };
        publisher.send_queue.close();
        inner.connected_peers.remove_publisher(&publisher);
        publisher.grant.log_rest(&publisher.peer);
        inner.table.change(Change::PublisherGone(publisher.id)).await;
        ended
    }

    /// Waits until this publisher is cut off, and tells why. Its connection is still open then.
    async fn cut(&self, publisher: &Publisher, route: Option<Route>) -> Ended {
        publisher.cut.cancelled().await;
        if !publisher.place.is_given_away() {
            return Ended::ByUs("cut off");
        }
        if let Some(unlogged) =
            self.inner.connected_peers.lines.crowded_out.pass("publishers whose places were needed")
        {
            tracing::warn!(
                peer = %publisher.peer,
                principal = publisher.grant.principal(),
                left_s = publisher.place.left_for().unwrap_or_default().as_secs_f64(),
                unread_bytes = route.and_then(unread),
                unlogged,
                "a publisher has left while a subscriber held it up (block), and a newcomer needs its place: what it had sent last is lost. \
                 Raise the limit of connections or descriptors, or find out why the subscriber is slow"
            );
        }
        Ended::ByUs("it has left, and its place was needed")
    }

    async fn serve_subscriber(
        &self,
        session: Session,
        peer: &str,
        (limits, accepts_drop_reports): (PeerLimits, bool),
        grant: Grant,
        stop: CancellationToken,
        gives_way: CancellationToken,
    ) -> Ended {
        let inner = &self.inner;
        let config = &inner.config;
        let send_queue =
            SendQueue::with_memory_counter(config.high_water_mark, config.memory.queues().clone());
        // Whatever is forwarded is within our own limits: only one that takes less has to be looked after.
        let ours = MessageLimits::from(&config.limits);
        let takes = Some(ours.within(&limits)).filter(|takes| *takes != ours);
        let subscriber = Subscriber::new(self.id(), peer, send_queue, grant).counting(&config.memory);
        let subscriber = Arc::new(
            subscriber.taking(takes).telling(accepts_drop_reports).logging(&inner.connected_peers.lines),
        );
        inner.connected_peers.add_subscriber(&subscriber);
        if inner.refuse.is_cancelled() {
            subscriber.send_queue.close();
        }
        let mut handler = table::Subscriptions::new(&inner.table, &subscriber, &config.limits);
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ended::ByUs("stopped"),
            () = subscriber.cut.cancelled() => Ended::ByUs("too slow: cut off"),
            () = subscriber.outsized.cancelled() => Ended::OutOfMemory,
            () = subscriber.grant.revoked.cancelled() => Ended::ByUs("not allowed any more"),
            () = subscriber.grant.unwanted.cancelled() => Ended::ByUs(BY_OPERATOR),
            () = gives_way.cancelled() => Ended::ByUs(GIVES_WAY),
            never = subscriber.keep_telling() => match never {},
            never = subscriber.keep_logging() => match never {},
            ended = session.run(&subscriber.send_queue, &mut handler, Duration::from_secs(1)) => ended,
        };
        subscriber.send_queue.close();
        inner.table.change(Change::SubscriberGone(subscriber.id)).await;
        inner.connected_peers.remove_subscriber(&subscriber);
        subscriber.grant.log_rest(peer);
        ended
    }

    fn engine_options(&self, side: Side) -> xmsg_zmtp::Options {
        let config = &self.inner.config;
        let mut limits = config.limits.clone();
        // A subscriber that is busy, or paused, reads nothing and so answers no heartbeat: that it is slow is
        // for the policy to judge. A host that is gone is noticed by keepalive, or, with data on its way to
        // it, by the session's watch.
        let (socket_type, heartbeat_interval) = match side {
            Side::Publishers => (SocketType::Xsub, config.heartbeat_interval),
            Side::Subscribers => (SocketType::Xpub, None),
        };
        if socket_type == SocketType::Xpub {
            // Subscriptions are all that comes from there.
            limits.message_size = limits.subscription_len + 64;
        }
        xmsg_zmtp::Options {
            heartbeat_interval,
            heartbeat_timeout: config.heartbeat_timeout,
            limits,
            ..xmsg_zmtp::Options::new(socket_type)
        }
    }

    /// A number that no connection has. None had it before, unless there were four billion.
    fn id(&self) -> u32 {
        loop {
            let number = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
            // The table is made of short numbers.
            let id = number as u32;
            let is_free = || matches!(self.inner.connected_peers.find(id), (None, None));
            if u32::try_from(number).is_ok() || (id > 0 && is_free()) {
                return id;
            }
        }
    }
}

fn essentials(peer: Peer) -> (xmsg_zmtp::Version, Option<Principal>, PeerLimits) {
    (peer.version, peer.principal, peer.limits)
}

/// The table lives until the last connection has told it that it is gone.
async fn run_table(mut task: TableTask, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => task.drain(),
        () = task.run() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numbers_that_begin_anew_leave_out_those_that_are_taken() {
        let switch = Switch::start(Config::default());
        for id in [1, 2, 4] {
            switch.inner.connected_peers.add_publisher(&Arc::new(Publisher::of_test(id, "a publisher")));
        }
        switch.inner.next_id.store(u64::from(u32::MAX), Ordering::Relaxed);
        assert_eq!([switch.id(), switch.id(), switch.id()], [u32::MAX, 3, 5]);
        switch.abort();
    }
}
