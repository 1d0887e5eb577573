//! The hub, which all sockets are built on: links, the tasks that own them, and the receive queue.

// Longer than 500 lines: one state that all sockets share. Its tasks, links and locks are to be read
// together.

mod connecting;
mod reporting;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::deadline::Deadline;
use crate::events::{EventChannel, SocketEvent, SocketEvents};
use crate::fault::catch_in;
use crate::link::admission::Permit;
use crate::link::drop_counter::DropCounter;
use crate::link::ending::end_some_at_a_time;
use crate::link::hold::{HoldLimit, LostConnection};
use crate::link::receive_queue::ReceiveQueue;
use crate::link::send_queue::SendQueue;
use crate::link::session::{Ended, Session, now};
use crate::link::source::Source;
use crate::link::throttle::Throttle;
use crate::link::transport::{Closer, Listener, Stream};
use crate::link::{LastEnd, Link, Received};
use crate::link_handler::LinkHandler;
use crate::lock::lock;
use crate::options::Overflow;
use crate::role::Role;
use crate::statistics::ConnectionStatistics;
use crate::{Endpoint, Multipart, Settings};
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::{Blame, Engine, Limits, Peer, PeerLimits};

/// A peer that accepts a connection and sends nothing for this time is reported as silent.
const SILENCE: Duration = Duration::from_millis(100);
/// The encoding of a message of one empty frame.
const PROBE: &[u8] = &[0, 0];
/// A received batch shares its slab only if the slab is at most this many times as large.
pub(crate) const SHARE_MAX: usize = 16;

/// The reference of a socket to its hub. Dropping it closes the socket.
#[derive(Debug)]
pub(crate) struct Owner(Arc<Hub>);

impl Owner {
    pub(crate) fn new(role: Arc<dyn Role>, options: Settings) -> Self {
        Self(Hub::new(role, options, None))
    }

    /// Creates the hub of a socket whose events are also sent to `parent`.
    pub(crate) fn with_parent(role: Arc<dyn Role>, options: Settings, parent: EventChannel) -> Self {
        Self(Hub::new(role, options, Some(parent)))
    }

    /// Returns the hub for use within a call.
    pub(crate) fn hub(&self) -> Arc<Hub> {
        self.0.clone()
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
    role: Arc<dyn Role>,
    pub(crate) options: Settings,
    pub(crate) receive_queue: ReceiveQueue,
    links: Mutex<Vec<Arc<Link>>>,
    next_link: AtomicU64,
    /// The endpoints that the socket is bound to.
    listeners: Mutex<Vec<(Endpoint, Closer)>>,
    /// Whether there are listeners. It is read for each message, without the lock.
    is_bound: AtomicBool,
    /// Notified when links, or the subscriptions of their peers, have changed.
    pub(crate) changed: Notify,
    events: EventChannel,
    /// The event channel of the connection or actor that the socket belongs to.
    parent: Option<EventChannel>,
    /// The number of messages that were accepted and then dropped.
    dropped: AtomicU64,
    /// The number of messages that were received and lost because no memory was left for them.
    lost: AtomicU64,
    /// Limits the log lines about dropped messages.
    drop_log: Throttle,
    refusal_log: Throttle,
    /// Limits the log lines about messages to a socket that takes none.
    pub(crate) discard_log: Throttle,
    /// The time until which messages may be held back after a reconnection.
    hold_limit: HoldLimit,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// The runtime in which the first connection was made or awaited.
    runtime: OnceLock<Handle>,
}

impl Hub {
    fn new(role: Arc<dyn Role>, options: Settings, parent: Option<EventChannel>) -> Arc<Self> {
        Arc::new(Self {
            role,
            receive_queue: ReceiveQueue::new(options.receive_high_water_mark)
                .conflating(options.conflate)
                .claiming(&options.memory),
            links: Mutex::default(),
            next_link: AtomicU64::new(1),
            listeners: Mutex::default(),
            is_bound: AtomicBool::new(false),
            changed: Notify::new(),
            events: EventChannel::new(),
            parent,
            dropped: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            drop_log: Throttle::default(),
            refusal_log: Throttle::default(),
            discard_log: Throttle::default(),
            hold_limit: HoldLimit::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: OnceLock::new(),
            options,
        })
    }

    pub(crate) fn events(&self) -> SocketEvents {
        self.events.observe()
    }

    pub(crate) fn role(&self) -> &dyn Role {
        &*self.role
    }

    /// Locks and returns the present links.
    pub(crate) fn links(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        lock(&self.links)
    }

    /// Connects in the background, and reconnects whenever the connection is lost.
    pub(crate) fn connect(self: &Arc<Self>, endpoint: Endpoint) -> Arc<Link> {
        let link = self.add_link(true);
        {
            let mut state = link.state();
            state.endpoint = endpoint.to_string().into();
            state.name = state.endpoint.clone();
        }
        let _ = self.runtime.get_or_init(Handle::current);
        let name = format!("keeping the connection to {endpoint}");
        self.tasks
            .spawn(self.options.critical.watch(name, self.clone().keep_connected(endpoint, link.clone())));
        link
    }

    /// Binds the socket and accepts connections from then on. Returns the endpoint with its actual port.
    pub(crate) async fn bind(self: &Arc<Self>, endpoint: &Endpoint) -> Result<Endpoint> {
        self.options.check_identity()?;
        Ok(self.listen(Listener::bind(endpoint, self.options.tcp.clone()).await?))
    }

    /// Accepts connections from this listener from then on. Returns its endpoint.
    pub(crate) fn listen(self: &Arc<Self>, listener: Listener) -> Endpoint {
        let endpoint = listener.endpoint().clone();
        self.change_listeners(|all| all.push((endpoint.clone(), listener.closer())));
        self.emit(SocketEvent::Listening { endpoint: endpoint.to_string() });
        let _ = self.runtime.get_or_init(Handle::current);
        let name = format!("accepting connections at {endpoint}");
        self.tasks.spawn(self.options.critical.watch(name, self.clone().accept(listener)));
        endpoint
    }

    /// Returns statistics for each connection, including those that are being made.
    pub(crate) fn connections(&self) -> Vec<ConnectionStatistics> {
        self.links().iter().map(|link| ConnectionStatistics::of(link)).collect()
    }

    /// Whether there is a connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.links().iter().any(|link| link.is_connected())
    }

    /// Returns the next message of any peer, or `None` once the socket is closed and everything received was
    /// taken.
    pub(crate) async fn recv(&self) -> Option<Multipart> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    pub(crate) fn try_recv(&self) -> Result<Option<Multipart>> {
        match self.poll_recv(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(message)) => Ok(Some(message)),
            Poll::Ready(None) => Err(Error::new(ErrorKind::Closed, "the socket is closed")),
            Poll::Pending => Ok(None),
        }
    }

    pub(crate) async fn recv_many(&self, messages: &mut Vec<Multipart>, most: usize) -> usize {
        let before = messages.len();
        if most > 0
            && let Some(first) = self.recv().await
        {
            messages.push(first);
        }
        while (1..most).contains(&(messages.len() - before))
            && let Ok(Some(next)) = self.try_recv()
        {
            messages.push(next);
        }
        messages.len() - before
    }

    pub(crate) fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<Multipart>> {
        self.receive_queue.poll_next_as(cx, |_, message| message, |message: Multipart| message.detached())
    }

    /// Why there is no connection to the peer that the socket connects to, if that is known.
    pub(crate) fn failure(&self) -> Option<Error> {
        let links = self.links();
        let state = links.iter().find(|link| link.connecting)?.state();
        let is_silent = state.silent_since.is_some_and(|since| since.elapsed() > SILENCE);
        match &state.failure {
            _ if state.version.is_some() => None,
            None if is_silent => Some(silent(&state.name)),
            failure => failure.clone(),
        }
    }

    /// Waits until there is a connection.
    pub(crate) async fn connected(&self) -> Result<()> {
        self.wait_until(|| self.is_connected()).await
    }

    /// Waits until `holds` returns `true`, which may change whenever a link does. Returns
    /// [`Closed`](ErrorKind::Closed) if the socket is closed before that, since nothing changes any more
    /// then.
    pub(crate) async fn wait_until(&self, holds: impl Fn() -> bool) -> Result<()> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if holds() {
                return Ok(());
            }
            if self.tasks.is_closed() {
                return Err(Error::new(ErrorKind::Closed, "the socket is closed"));
            }
            changed.await;
        }
    }

    /// Called when a connection was made or has ended: messages that wait for peers which are gone may go to
    /// others.
    fn reassign(self: &Arc<Self>) {
        if let Some(balancer) = self.role.balancer() {
            balancer.reassign(self);
        }
    }

    /// Runs a task until the socket is closed. It runs in the runtime of the connections or, if the socket
    /// has none yet, in the present one.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let task = async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        };
        let task =
            self.options.critical.watch(format!("a task of a {} socket", self.role.socket_type()), task);
        match self.runtime.get() {
            Some(runtime) => self.tasks.spawn_on(task, runtime),
            None => self.tasks.spawn(task),
        };
    }

    /// Whether the socket accepts connections.
    pub(crate) fn is_bound(&self) -> bool {
        self.is_bound.load(Ordering::Acquire)
    }

    fn change_listeners<T>(&self, change: impl FnOnce(&mut Vec<(Endpoint, Closer)>) -> T) -> T {
        let mut listeners = lock(&self.listeners);
        let result = change(&mut listeners);
        self.is_bound.store(!listeners.is_empty(), Ordering::Release);
        result
    }

    /// Whether nothing can be sent any more because the runtime of all connections has ended.
    pub(crate) fn is_dead(&self) -> bool {
        let links = self.links();
        !links.is_empty() && links.iter().all(|link| link.connecting && link.send_queue.is_closed())
    }

    /// Stops accepting connections. The endpoints are free when this returns.
    pub(crate) fn unbind(&self) {
        // This happens under the lock, so that a concurrent call also returns only once the endpoints are
        // free.
        self.change_listeners(|all| all.drain(..).for_each(|(_, listener)| listener.close()));
    }

    /// Stops accepting connections at one endpoint, which is given with its actual port. Returns whether the
    /// socket was bound to it.
    pub(crate) fn unbind_from(&self, endpoint: &Endpoint) -> bool {
        self.change_listeners(|all| {
            let found = all.iter().position(|(bound, _)| bound == endpoint);
            found.map(|place| all.swap_remove(place).1.close()).is_some()
        })
    }

    /// Ends the connection to this endpoint, and does not reconnect. Returns whether there was one.
    pub(crate) fn disconnect(&self, endpoint: &Endpoint) -> bool {
        let name = endpoint.to_string();
        let links: Vec<_> = self.links().iter().filter(|link| link.connecting).cloned().collect();
        let found =
            links.into_iter().find(|link| *link.state().endpoint == *name && !link.stop.is_cancelled());
        found.map(|link| link.stop.cancel()).is_some()
    }

    /// Ends the connections of peers that the rule of the socket does not allow any more. Peers that are just
    /// being admitted are checked [afterwards](Self::run).
    pub(crate) async fn recheck(&self) {
        let links: Vec<_> = self.links().iter().filter(|link| link.is_connected()).cloned().collect();
        let end = |link: &Arc<Link>| {
            let is_unwanted = !link.stop.is_cancelled() && !self.keeps(link);
            if is_unwanted {
                link.stop.cancel();
            }
            is_unwanted
        };
        end_some_at_a_time(&links, end, |link| !link.is_connected()).await;
    }

    /// Whether the rule of the socket allows this peer. The rule applies only to peers that have connected to
    /// us.
    fn keeps(&self, link: &Link) -> bool {
        let Some(rule) = self.options.keeps.as_ref().filter(|_| !link.connecting) else { return true };
        let (name, principal) = {
            let state = link.state();
            (state.name.clone(), state.principal.clone())
        };
        rule.keeps(&name, principal.as_ref())
    }

    /// Notes that the socket will be closed within this time. At most half of it may pass while messages are
    /// held back after a reconnection.
    pub(crate) fn limit_hold(&self, left: Duration) {
        self.hold_limit.set(Deadline::after(left / 2).instant());
    }

    /// Returns for how long messages have been held back after a reconnection, if they are.
    pub(crate) fn held_for(&self) -> Option<Duration> {
        self.links().iter().filter_map(|link| link.state().held_since).max().map(|since| since.elapsed())
    }

    /// Accepts no more messages, writes what was accepted for at most `linger`, and ends every task. Returns
    /// how many messages were not sent.
    pub(crate) async fn close(&self, linger: Duration) -> usize {
        // If this future is dropped half-way, all tasks are stopped at once, so that nothing of the socket
        // stays behind.
        let _stop = self.stop.clone().drop_guard();
        self.limit_hold(linger);
        self.unbind();
        let linger = match self.role.balancer() {
            // It is boxed, because the futures of many calls contain this one.
            Some(balancer) => Box::pin(balancer.finish(self, linger)).await,
            None => linger,
        };
        self.tasks.close();
        self.changed.notify_waiters();
        let links: Vec<_> = self.links().iter().cloned().collect();
        for link in &links {
            link.send_queue.close();
        }
        self.receive_queue.close();
        if self.role.lingers()
            && links
                .iter()
                .any(|link| link.send_queue.queued().messages > 0 || link.state().version.is_some())
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
        self.events.end();
        let queued = links.iter().map(|link| link.send_queue.queued().messages as usize).sum::<usize>();
        queued + self.role.balancer().map_or(0, |balancer| balancer.returned_messages())
    }

    /// Ends every task at once, in the background. What was accepted is not sent; what was received can still
    /// be taken.
    pub(crate) fn abort(&self) {
        self.tasks.close();
        self.changed.notify_waiters();
        for link in self.links().iter() {
            link.send_queue.close();
        }
        self.receive_queue.close();
        self.stop.cancel();
        self.events.end();
    }

    /// Closes a dropped socket in the background. Its endpoints are free at once.
    fn close_detached(self: &Arc<Self>) {
        self.unbind();
        if self.tasks.is_closed() {
            return;
        }
        if !self.role.lingers() || self.options.linger.is_zero() {
            // The tasks are stopped immediately. Nothing more is written, not even by a connection that is
            // just being made.
            self.stop.cancel();
        }
        let hub = self.clone();
        // Without a runtime nothing can be sent: the tasks ended with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let unsent = hub.close(hub.options.linger).await;
                if unsent > 0 {
                    tracing::warn!(unsent, socket = %hub.role.socket_type(), "a dropped socket could not send everything");
                }
            });
        } else {
            self.stop.cancel();
        }
    }

    pub(crate) fn add_link(&self, connecting: bool) -> Arc<Link> {
        let mark = self.options.send_high_water_mark;
        let mut links = self.links();
        let link = Arc::new(Link {
            // The number is taken under the lock, so that links are sorted by it.
            id: self.next_link.fetch_add(1, Ordering::Relaxed),
            send_queue: if connecting {
                SendQueue::recycling(mark)
            } else {
                SendQueue::with_memory_counter(mark, self.options.memory.queues().clone())
            }
            .with_limits(self.options.send_limits()),
            connecting,
            overflow: match self.options.overflow {
                Overflow::Usual if connecting => Overflow::Wait,
                Overflow::Usual => Overflow::DropNewest,
                overflow => overflow,
            },
            overflowed: DropCounter::default(),
            received: Received::default(),
            state: Mutex::default(),
            wanted_claim: Mutex::default(),
            is_connected: AtomicBool::new(false),
            stop: self.stop.child_token(),
        });
        links.push(link.clone());
        link
    }

    /// Removes a link. Thousands may end at the same time, so each is found by binary search.
    fn remove_link(&self, link: &Link) {
        let mut links = self.links();
        if let Ok(place) = links.binary_search_by_key(&link.id, |other| other.id) {
            links.remove(place);
        }
    }

    async fn accept(self: Arc<Self>, mut listener: Listener) {
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept_making_room(|| self.options.admission.make_room()) => accepted,
            };
            let Some(permit) = self.options.admission.admit(stream.address(), &peer) else { continue };
            self.emit(SocketEvent::Accepted { peer: peer.clone() });
            self.tasks.spawn(self.clone().serve(stream, peer, permit));
        }
    }

    /// Serves one accepted connection.
    async fn serve(self: Arc<Self>, stream: Stream, peer: String, mut permit: Permit) {
        if let Err(reason) = self.role.has_place() {
            self.report_refused(&peer, reason);
            return;
        }
        let authenticator = permit.in_turn(self.options.security.authenticator());
        let mut session = self
            .session(stream, self.options.limits.clone())
            .with_authenticator(authenticator)
            .with_memory(&self.options.memory, &peer)
            .with_activity(permit.activity());
        let gives_way = permit.gives_way();
        let found = tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            () = gives_way.cancelled() => {
                tracing::debug!(peer, "ended in the handshake to make room for a new connection");
                let what = "its address has more than half of all connections, and a new one needed its place";
                let error = Error::new(ErrorKind::NoResources, what);
                return self.emit(SocketEvent::HandshakeFailed { peer, error });
            }
            result = session.handshake() => match result {
                Ok(found) => found,
                Err(ended) => {
                    if self.options.violations.note(&peer, self.role.socket_type(), &ended).is_none() {
                        tracing::debug!(peer, reason = %ended, "handshake failed");
                    }
                    let error = self.without_handshake(&peer, ended, session.is_greeted());
                    self.emit(SocketEvent::HandshakeFailed { peer, error });
                    return;
                }
            },
        };
        permit.established();
        let link = self.add_link(false);
        // The messages queued for the peer count, so that a peer that does not read them can be found and
        // ended.
        let queue = link.clone();
        let claim = self.options.memory.claim(&peer, "messages that it does not read", link.stop.clone());
        let _claim = claim.weighed_by(move || queue.send_queue.queued().bytes as usize);
        let mut lost = None;
        tokio::select! {
            biased;
            () = link.stop.cancelled() => {}
            () = gives_way.cancelled() => tracing::debug!(peer, "ended to make room for a new connection"),
            ran = catch_in(self.run(&peer, session, found, &link, &mut lost)) => if let Err(fault) = ran {
                self.options.violations.note(&peer, self.role.socket_type(), &Ended::Fault(fault));
            },
        }
        // Senders that wait for room in this queue must not wait any longer.
        link.send_queue.close();
        self.report_ended(&link);
        link.disconnected();
        link.stop.cancel();
        self.remove_link(&link);
        self.changed.notify_waiters();
    }

    /// Runs a session to its end. `lost` is what a connecting link knows about the connection before this
    /// one. It is cleared once subscribers had time to come back.
    async fn run(
        self: &Arc<Self>,
        name: &str,
        session: Session,
        peer: Peer,
        link: &Arc<Link>,
        lost: &mut Option<LostConnection>,
    ) {
        let (version, limits) = (peer.version, peer.limits);
        let slot = match self.role.join(link, &peer) {
            Ok(slot) => slot,
            Err(reason) => {
                self.report_refused(name, reason);
                return;
            }
        };
        // What else the peer announced is not kept in memory.
        drop(peer);
        self.fit(name, link, &limits);
        let refused = self.role.establish(link, version, limits);
        // The rule may have changed since the peer was admitted. A change from here on finds the connection.
        if !self.keeps(link) {
            link.disconnected();
            self.report_refused(name, "the rules have changed meanwhile");
            return;
        }
        if self.options.probe_router {
            link.send_queue.push_urgent(PROBE, usize::MAX);
        }
        tracing::debug!(peer = name, socket = %self.role.socket_type(), ?version, "connected");
        self.emit(SocketEvent::Connected { peer: name.to_owned() });
        self.report_refused_subscriptions(link, refused);
        self.changed.notify_waiters();
        self.reassign();

        // A peer that reconnects with its identity stays behind what it sent before.
        let from = if link.connecting || slot.identity.is_empty() {
            Bytes::copy_from_slice(&link.id.to_be_bytes())
        } else {
            slot.identity.clone()
        };
        let mut queue = self.receive_queue.of_peer(&from, &Source::of(name));
        if link.connecting {
            queue.choose();
        }
        let mut handler = LinkHandler { hub: self, link, identity: slot.identity.clone(), queue };
        let ended = {
            let wait_for_subscribers = async {
                if let Some(lost) = lost.as_mut().filter(|lost| lost.had_subscribers()) {
                    link.hold();
                    tokio::select! {
                        biased;
                        () = self.hold_limit.reached() => {}
                        () = lost.wait_for_subscribers(link, &self.options, &self.changed) => {}
                    }
                    link.release();
                }
                *lost = None;
                std::future::pending().await
            };
            tokio::select! {
                biased;
                ended = wait_for_subscribers => ended,
                // The linger of `close` bounds the time limit here: a proxy may still be reading what we
                // wrote.
                ended = session.run(&link.send_queue, &mut handler, Duration::MAX) => ended,
            }
        };
        link.release();
        if let Some(report) = link.overflowed.rest() {
            self.report_overflow(link, report);
        }
        let last_end = self.classify_end(name, link, &limits, &ended);
        link.state().last_end = last_end;
        link.disconnected();
        tracing::debug!(peer = name, socket = %self.role.socket_type(), reason = %ended, "disconnected");
        if matches!(ended, Ended::Drained | Ended::Finished) {
            link.send_queue.all_arrived();
        } else {
            link.send_queue.note_break();
        }
        if !link.connecting {
            self.options.violations.note(name, self.role.socket_type(), &ended);
        } else if let Ended::Fault(_) = ended {
            tracing::error!(peer = name, socket = %self.role.socket_type(), "connection ended, which is made again: {ended}");
        }
        let error = ended.while_connected(&name);
        link.state().failure = Some(error.clone());
        self.emit(SocketEvent::Disconnected { peer: name.to_owned(), error });
        self.changed.notify_waiters();
        self.reassign();
    }

    /// Applies the limits of the new peer to the link. A message that was accepted before and exceeds them
    /// would make the peer end the connection again and again.
    fn fit(&self, name: &str, link: &Link, limits: &PeerLimits) {
        link.state().name = name.into();
        let limits = self.options.send_limits().within(limits);
        for gone in link.send_queue.limit(limits) {
            let (what, limit) = if gone.size > limits.size {
                (format!("{} bytes", gone.size), limits.size)
            } else {
                (format!("{} frames", gone.frames), limits.frames)
            };
            self.note_dropped(
                name,
                gone,
                format!("the peer takes no {what}: it has told a limit of {limit}"),
            );
        }
    }

    /// Determines what the end of a connection says about the message that was being sent. A peer that
    /// announces no limits, as other implementations do not, ends the connection in the middle of a message
    /// that is too large for it. If it does so twice during the same message, that message is dropped.
    fn classify_end(&self, name: &str, link: &Link, limits: &PeerLimits, ended: &Ended) -> LastEnd {
        if let Ended::Violation(violation) = ended
            && violation.blame() == Blame::PeerMisbehaved
        {
            return LastEnd::Violation(violation.clone());
        }
        // A peer that has announced its limits is sent nothing that exceeds them, so the reason is another
        // one.
        if !ended.is_by_peer() || !link.send_queue.is_cut() || limits.message_size.is_some() {
            return LastEnd::Otherwise;
        }
        if let Some(gone) = link.send_queue.cut_off() {
            let reason =
                "the peer has ended the connection twice in the middle of it: is it above a limit there?";
            self.note_dropped(name, gone, reason.to_owned());
        }
        LastEnd::CutOff
    }

    fn session(&self, stream: Stream, limits: Limits) -> Session {
        let security = &self.options.security;
        let options = xmsg_zmtp::Options { limits, ..self.options.engine(self.role.socket_type()) };
        let engine = Engine::with_mechanism(options, security.mechanism(), now());
        Session::new(stream, engine)
            .with_authenticator(security.authenticator())
            .watched(self.options.heartbeat_interval, self.options.heartbeat_timeout)
    }
}

fn silent(peer: &str) -> Error {
    let what = format!(
        "{peer} takes connections and says nothing: does something else listen there, such as HTTP, or is it suspended?"
    );
    Error::new(ErrorKind::Timeout, what)
}
