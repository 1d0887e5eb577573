//! What all sockets are made of: links, the tasks that own them, and the queue of what was received.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::Permit;
use super::inbox::Inbox;
use super::outbox::Outbox;
use super::session::{Batch, Ended, Handler, Session, now};
use super::transport::{Listener, Stream};
use super::{Endpoint, SocketOptions};
use crate::zmtp::{self, Engine, Limits, Peer, Principal, SocketType, Version};
use crate::{Error, ErrorKind, Result};

/// Events that wait for a slow observer; older ones are lost to it.
const EVENTS: usize = 64;
/// How long a reconnected publisher waits at most for the subscriptions that it knew before.
const RESUBSCRIBE_GRACE: Duration = Duration::from_secs(1);
/// Subscriptions of the peer that a connecting publisher keeps. A proxy may have millions: past this, or with one above the limit of
/// prefixes, the publisher takes it that everything is wanted.
const WANTED_MAX: usize = 100_000;
/// Subscriptions and their cancelling that wait to be written, bytes: what a socket subscribes to is its own choice.
const SUBSCRIPTIONS_MAX: usize = 1 << 30;
/// What came in with one read shares its slab only if that is at most so many times as large.
pub(crate) const SHARE_MAX: usize = 16;

/// What happened to a socket's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SocketEvent {
    /// A connection is there, handshake done.
    Connected {
        /// Its other end.
        peer: String,
    },
    /// A connection ended.
    Disconnected {
        /// Its other end.
        peer: String,
        /// Why.
        reason: String,
    },
    /// A connection could not be made; it will be tried again after the pause.
    ConnectFailed {
        /// Its other end.
        peer: String,
        /// What kind of failure: [`NotAllowed`](ErrorKind::NotAllowed) when the other side does not want us.
        kind: ErrorKind,
        /// Why.
        reason: String,
        /// Until the next attempt.
        pause: Duration,
    },
}

/// The [`SocketEvent`]s of one socket from now on. Whoever falls more than 64 events behind misses the oldest.
#[derive(Debug)]
pub struct SocketEvents(broadcast::Receiver<SocketEvent>);

impl SocketEvents {
    /// The next event; `None` when the socket is gone.
    pub async fn next(&mut self) -> Option<SocketEvent> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// One connection, or the place of one that is being made anew.
#[derive(Debug)]
pub(crate) struct Link {
    id: u64,
    pub(crate) outbox: Outbox,
    /// Connecting links outlive their connections.
    pub(crate) connecting: bool,
    pub(crate) state: Mutex<LinkState>,
    /// Ends the connection and, with it, an accepted link.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
pub(crate) struct LinkState {
    /// The version of the peer, while there is one.
    pub(crate) version: Option<Version>,
    /// What the peer of a publisher wants.
    pub(crate) wanted: BTreeSet<Bytes>,
    /// … and how many bytes that is.
    wanted_bytes: usize,
    /// … and more than is kept.
    pub(crate) wants_more: bool,
    /// Who the peer has proved to be.
    pub(crate) principal: Option<Principal>,
}

impl LinkState {
    fn forget_wanted(&mut self) -> BTreeSet<Bytes> {
        self.wanted_bytes = 0;
        self.wants_more = false;
        std::mem::take(&mut self.wanted)
    }
}

impl Link {
    pub(crate) fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the peer of a publisher wants this topic.
    pub(crate) fn wants(&self, topic: &[u8]) -> bool {
        let state = self.state();
        // Every prefix of the topic that is subscribed sorts at or before it.
        state.wants_more || (0..=topic.len()).any(|len| state.wanted.contains(&topic[..len]))
    }
}

/// A socket's hold on its hub: letting go closes it.
#[derive(Debug)]
pub(crate) struct Owner(Arc<Hub>);

impl Owner {
    pub(crate) fn new(socket_type: SocketType, options: SocketOptions) -> Self {
        Self(Hub::new(socket_type, options))
    }
}

impl std::ops::Deref for Owner {
    type Target = Arc<Hub>;

    fn deref(&self) -> &Arc<Hub> {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close_detached();
    }
}

/// The inside of a socket.
#[derive(Debug)]
pub(crate) struct Hub {
    socket_type: SocketType,
    pub(crate) options: SocketOptions,
    pub(crate) inbox: Inbox,
    links: Mutex<Vec<Arc<Link>>>,
    next_link: AtomicU64,
    /// What a subscriber wants, and how often it said so.
    subscriptions: Mutex<BTreeMap<Bytes, usize>>,
    /// The links of a router by identity; those of a replier by a name of ours.
    routes: Mutex<HashMap<Bytes, Arc<Link>>>,
    /// Whether links, or what their peers want, changed.
    pub(crate) changed: Notify,
    events: broadcast::Sender<SocketEvent>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Hub {
    fn new(socket_type: SocketType, options: SocketOptions) -> Arc<Self> {
        Arc::new(Self {
            socket_type,
            inbox: Inbox::new(options.receive_high_water_mark),
            links: Mutex::default(),
            next_link: AtomicU64::new(1),
            subscriptions: Mutex::default(),
            routes: Mutex::default(),
            changed: Notify::new(),
            events: broadcast::channel(EVENTS).0,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            options,
        })
    }

    pub(crate) fn events(&self) -> SocketEvents {
        SocketEvents(self.events.subscribe())
    }

    /// The links there are now.
    pub(crate) fn links(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        lock(&self.links)
    }

    /// The link of a router's peer.
    pub(crate) fn route(&self, identity: &[u8]) -> Option<Arc<Link>> {
        lock(&self.routes).get(identity).cloned()
    }

    /// Connects now and again whenever the connection is lost. Returns at once.
    pub(crate) fn connect(self: &Arc<Self>, endpoint: Endpoint) -> Arc<Link> {
        let link = self.add_link(true);
        self.tasks.spawn(self.clone().keep_connected(endpoint, link.clone()));
        link
    }

    /// Binds and accepts from then on. Returns the endpoint with its actual port.
    pub(crate) async fn bind(self: &Arc<Self>, endpoint: &Endpoint) -> Result<Endpoint> {
        Ok(self.listen(Listener::bind(endpoint, self.options.tcp.clone()).await?))
    }

    /// Accepts from this listener from then on. Returns its endpoint.
    pub(crate) fn listen(self: &Arc<Self>, listener: Listener) -> Endpoint {
        let endpoint = listener.endpoint().clone();
        self.tasks.spawn(self.clone().accept(listener));
        endpoint
    }

    /// Whether there is a connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.links().iter().any(|link| link.state().version.is_some())
    }

    /// Waits until there is a connection.
    pub(crate) async fn connected(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_connected() {
                return;
            }
            changed.await;
        }
    }

    /// Adds to what a subscriber wants (or takes away from it) and tells every peer.
    pub(crate) fn subscribe(&self, prefix: &Bytes, subscribe: bool) {
        let mut subscriptions = lock(&self.subscriptions);
        let count = subscriptions.entry(prefix.clone()).or_default();
        let tell = if subscribe {
            *count += 1;
            *count == 1
        } else {
            let was = *count;
            *count = was.saturating_sub(1);
            if *count == 0 {
                subscriptions.remove(prefix);
            }
            was == 1
        };
        if !tell {
            return;
        }
        // Under the lock, so that a connection that comes up now either finds it in the set or is told here.
        for link in self.links().iter() {
            if let Some(version) = link.state().version {
                let mut bytes = BytesMut::new();
                version.write_subscription(&mut bytes, subscribe, prefix);
                link.outbox.push_urgent(&bytes, SUBSCRIPTIONS_MAX);
            }
        }
    }

    /// Takes no more messages, writes what was accepted for at most `linger`, and ends every task.
    /// Returns how many messages were not sent.
    pub(crate) async fn close(&self, linger: Duration) -> usize {
        // Whoever drops this future half-way gives up: nothing of the socket stays behind.
        let _stop = self.stop.clone().drop_guard();
        self.tasks.close();
        let links: Vec<_> = self.links().iter().cloned().collect();
        for link in &links {
            link.outbox.close();
        }
        self.inbox.close();
        let sends = !matches!(self.socket_type, SocketType::Sub | SocketType::Req);
        if sends
            && links.iter().any(|link| link.outbox.queued().messages > 0 || link.state().version.is_some())
        {
            let flushed = async {
                for link in &links {
                    link.stop.cancelled().await;
                }
            };
            let _ = tokio::time::timeout(linger, flushed).await;
        }
        self.stop.cancel();
        self.tasks.wait().await;
        links.iter().map(|link| link.outbox.queued().messages as usize).sum()
    }

    /// Closes in the background, for a socket that was dropped.
    fn close_detached(self: &Arc<Self>) {
        if self.tasks.is_closed() {
            return;
        }
        let hub = self.clone();
        // Without a runtime there is nobody left who could send: the tasks went with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let unsent = hub.close(hub.options.linger).await;
                if unsent > 0 {
                    tracing::warn!(unsent, socket = %hub.socket_type, "a dropped socket could not send everything");
                }
            });
        } else {
            self.stop.cancel();
        }
    }

    fn add_link(&self, connecting: bool) -> Arc<Link> {
        let mark = self.options.send_high_water_mark;
        let link = Arc::new(Link {
            id: self.next_link.fetch_add(1, Ordering::Relaxed),
            outbox: if connecting { Outbox::recycling(mark) } else { Outbox::new(mark) },
            connecting,
            state: Mutex::default(),
            stop: self.stop.child_token(),
        });
        self.links().push(link.clone());
        link
    }

    async fn keep_connected(self: Arc<Self>, endpoint: Endpoint, link: Arc<Link>) {
        let peer = endpoint.to_string();
        let mut backoff = Backoff::new(&self.options);
        let mut lost: Option<(Instant, BTreeSet<Bytes>)> = None;
        let work = async {
            loop {
                let begun = Instant::now();
                let attempt = self.open(&endpoint);
                let reason = match tokio::time::timeout(self.options.connect_timeout, attempt).await {
                    Ok(Ok((session, found))) => {
                        backoff.reset();
                        self.run(&peer, session, found, &link, &mut lost).await;
                        let wanted = link.state().forget_wanted();
                        // If the last connection was too short to settle, what was wanted before it still counts.
                        let (_, lost) = lost.get_or_insert_with(|| (Instant::now(), BTreeSet::new()));
                        lost.extend(wanted);
                        None
                    }
                    Ok(Err(error)) => Some((error.kind(), with_cause(&error))),
                    Err(_) => Some((
                        ErrorKind::Timeout,
                        "no answer within the time limit for connecting".to_owned(),
                    )),
                };
                if link.outbox.is_closed() && link.outbox.queued().messages == 0 {
                    return;
                }
                let mut pause = backoff.next();
                if let Some((kind, reason)) = reason {
                    // From the beginning of one attempt to that of the next: time that went by in vain was a pause, too.
                    let least = pause.min(self.options.reconnect_min);
                    pause = pause.saturating_sub(begun.elapsed()).max(least);
                    tracing::debug!(peer, reason, ?pause, "cannot connect");
                    self.tell(SocketEvent::ConnectFailed { peer: peer.clone(), kind, reason, pause });
                }
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = work => {}
        }
        link.state().version = None;
        link.stop.cancel();
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<(Session, Peer)> {
        let stream = Stream::connect(endpoint, &self.options.tcp, self.options.connect_timeout).await?;
        let mut limits = self.options.limits.clone();
        // What others subscribe to at a proxy is no reason to leave it.
        limits.subscription_len = limits.subscription_len.max(limits.command_size);
        let mut session = self.session(stream, limits);
        let peer = session.handshake().await.map_err(|ended| {
            let kind = match &ended {
                Ended::Violation(violation) if violation.is_refusal() => ErrorKind::NotAllowed,
                _ => ErrorKind::Protocol,
            };
            Error::new(kind, format!("no handshake with {endpoint}: {ended}"))
        })?;
        Ok((session, peer))
    }

    async fn accept(self: Arc<Self>, mut listener: Listener) {
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Some(permit) = self.options.admission.admit(stream.address(), &peer) else { continue };
            self.tasks.spawn(self.clone().serve(stream, peer, permit));
        }
    }

    /// One accepted connection.
    async fn serve(self: Arc<Self>, stream: Stream, peer: String, mut permit: Permit) {
        let authenticator = permit.in_turn(self.options.security.authenticator());
        let mut session = self.session(stream, self.options.limits.clone()).with_authenticator(authenticator);
        let found = tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            result = session.handshake() => match result {
                Ok(found) => found,
                Err(ended) => {
                    tracing::debug!(peer, reason = %ended, "handshake failed");
                    return;
                }
            },
        };
        permit.established();
        let link = self.add_link(false);
        let mut lost = None;
        tokio::select! {
            biased;
            () = link.stop.cancelled() => {}
            _ = self.run(&peer, session, found, &link, &mut lost) => {}
        }
        // Whoever waits for room here waits in vain.
        link.outbox.close();
        link.state().version = None;
        link.stop.cancel();
        self.links().retain(|other| other.id != link.id);
        lock(&self.routes).retain(|_, other| other.id != link.id);
        self.changed.notify_waiters();
    }

    /// Runs a session to its end. `lost` tells a connecting link since when it was without a connection, and
    /// what its peer wanted then.
    async fn run(
        &self,
        name: &str,
        session: Session,
        peer: Peer,
        link: &Arc<Link>,
        lost: &mut Option<(Instant, BTreeSet<Bytes>)>,
    ) -> Ended {
        let (version, principal) = (peer.version, peer.principal.clone());
        let identity = match (self.socket_type, peer.identity.first()) {
            // RFC 28: a peer without an identity gets a name of ours, which starts with a zero byte; nobody may choose one that
            // does, or it could take over somebody else's. To a REP socket identities mean nothing: there every peer gets a name.
            (SocketType::Router, None | Some(0)) | (SocketType::Rep, _) => {
                Bytes::from([&[0][..], &(link.id as u32).to_be_bytes()].concat())
            }
            // A copy: it must not keep alive all that came with it.
            _ => Bytes::copy_from_slice(&peer.identity),
        };
        // What else it announced is not kept.
        drop(peer);
        if matches!(self.socket_type, SocketType::Router | SocketType::Rep) {
            link.state().principal.clone_from(&principal);
            let mut routes = lock(&self.routes);
            // The newcomer takes over the identity: its owner may have lost its old connection unnoticed. Where
            // peers prove who they are, somebody else may not.
            if let Some(old) = routes.get(&identity) {
                if old.state().principal != principal {
                    return Ended::ByUs("somebody else has this identity");
                }
                old.stop.cancel();
            }
            routes.insert(identity.clone(), link.clone());
        }
        {
            let subscriptions = lock(&self.subscriptions);
            // What was meant for an earlier connection.
            link.outbox.clear_urgent();
            let mut bytes = BytesMut::new();
            for prefix in subscriptions.keys() {
                version.write_subscription(&mut bytes, true, prefix);
            }
            if !bytes.is_empty() {
                link.outbox.push_urgent(&bytes, SUBSCRIPTIONS_MAX);
            }
            link.state().version = Some(version);
        }
        tracing::debug!(peer = name, socket = %self.socket_type, ?version, "connected");
        self.tell(SocketEvent::Connected { peer: name.to_owned() });
        self.changed.notify_waiters();

        let mut handler = LinkHandler { hub: self, link, identity };
        let ended = {
            let settle = async {
                if let Some((since, wanted)) = lost {
                    if !wanted.is_empty() {
                        link.outbox.hold(true);
                        self.settle(link, *since, wanted).await;
                    }
                    link.outbox.hold(false);
                }
                *lost = None;
                std::future::pending().await
            };
            tokio::select! {
                biased;
                ended = settle => ended,
                // The linger of `close` bounds the farewell: a proxy may still be reading what we wrote.
                ended = session.run(&link.outbox, &mut handler, Duration::MAX) => ended,
            }
        };
        link.outbox.hold(false);
        link.state().version = None;
        tracing::debug!(peer = name, socket = %self.socket_type, reason = %ended, "disconnected");
        self.tell(SocketEvent::Disconnected { peer: name.to_owned(), reason: ended.to_string() });
        ended
    }

    /// After a reconnection: waits until subscribers had time to come back, too, so that what they would miss is not
    /// sent before. They retry within about as long as the connection was away.
    async fn settle(&self, link: &Link, since: Instant, wanted: &BTreeSet<Bytes>) {
        let away = since.elapsed();
        tokio::time::sleep(away.clamp(self.options.reconnect_min, self.options.reconnect_max)).await;
        let back = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if wanted.is_subset(&link.state().wanted) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(RESUBSCRIBE_GRACE, back).await;
    }

    fn session(&self, stream: Stream, limits: Limits) -> Session {
        let security = &self.options.security;
        let options = zmtp::Options { limits, ..self.options.engine(self.socket_type) };
        let engine = Engine::with_mechanism(options, security.mechanism(), now());
        Session::new(stream, engine)
            .with_authenticator(security.authenticator())
            .watched(self.options.heartbeat_interval, self.options.heartbeat_timeout)
    }

    fn tell(&self, event: SocketEvent) {
        // Nobody has to listen.
        let _ = self.events.send(event);
    }
}

struct LinkHandler<'a> {
    hub: &'a Hub,
    link: &'a Link,
    identity: Bytes,
}

impl Handler for LinkHandler<'_> {
    async fn messages(&mut self, batch: Batch<'_>) -> Result<(), Ended> {
        // A few bytes must not keep a large slab alive while they wait.
        let small = batch.wire.len() * SHARE_MAX < batch.slab.size;
        let (wire, memory) = if small {
            (Bytes::copy_from_slice(&batch.wire), batch.wire.len())
        } else {
            (batch.wire, batch.slab.size)
        };
        self.hub.inbox.push(&self.identity, wire, memory).await;
        Ok(())
    }

    async fn subscription(&mut self, subscribe: bool, prefix: Bytes) -> Result<(), Ended> {
        {
            let mut state = self.link.state();
            if subscribe {
                let limits = &self.hub.options.limits;
                let len = prefix.len();
                if self.link.connecting && (state.wanted.len() >= WANTED_MAX || len > limits.subscription_len)
                {
                    state.wants_more = true;
                } else if state.wanted.len() >= limits.subscriptions
                    || state.wanted_bytes + len > limits.subscription_bytes
                {
                    return Err(Ended::ByUs("too many subscriptions"));
                } else if state.wanted.insert(prefix) {
                    state.wanted_bytes += len;
                }
            } else if state.wanted.remove(&prefix) {
                state.wanted_bytes -= prefix.len();
            }
        }
        self.hub.changed.notify_waiters();
        Ok(())
    }
}

/// Pauses between attempts: doubling, each cut by up to half at random, so that peers do not come in step.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    fn new(options: &SocketOptions) -> Self {
        Self { min: options.reconnect_min, max: options.reconnect_max, next: options.reconnect_min }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The error and what the system said, in one line.
fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_over() {
        let mut backoff = Backoff::new(&SocketOptions::default());
        for expected in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let pause = backoff.next().as_millis();
            assert!((expected / 2..=expected).contains(&pause), "{pause} ms instead of {expected}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
