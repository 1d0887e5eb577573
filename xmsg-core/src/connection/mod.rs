//! A connection to one proxy: publishing, subscribing and control sockets, opened as they are needed.

mod confirmation;
mod opening;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::control::Unconfirmed;
use crate::options::CHECK_INTERVAL;
use crate::shared_attempt::SharedAttempt;
use crate::topic::IntoTopics;
use crate::unfinished::Unfinished;
use crate::{
    ConnectOptions, ConnectionId, Error, ErrorKind, Message, ProxyAddress, Result, Subscription, Topic,
};
use confirmation::Confirmations;
use opening::check_intervals;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::{Amount, EventChannel, Publisher, SocketEvents, Subscriber};

/// What may come before all topics of a subscription are confirmed, bytes, or the mark of received messages, if that is more.
const EARLY_MAX: usize = 64 << 20;

/// A connection to a proxy. It is used from any task, by reference; to give it to several owners, put it into an
/// [`Arc`], or use an [`Actor`](crate::Actor).
///
/// The publishing socket is opened, and checked with the proxy, by the first call that needs it. It stays connected by itself:
/// when the proxy restarts, what was accepted is sent to the new one. Dropping the connection sends what it accepted, in the
/// background, for its [linger](ConnectOptions::linger); [`close`](Self::close) waits for that, and says what came of it.
///
/// ```no_run
/// # async fn run() -> xmsg_core::Result<()> {
/// use std::time::Duration;
/// use xmsg_core::{Connection, Message};
/// let connection = Connection::new("10.0.0.7")?;
/// let mut reports = connection.subscribe("report:sports").await?;
/// connection.publish(&Message::of("report:sports", "3:1")?).await?;
/// connection.flush(Duration::from_secs(1)).await?; // the proxy has it
/// println!("{:?}", reports.next().await);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Connection {
    inner: Arc<Inner>,
}

/// What a connection is made with.
#[derive(Debug)]
struct Target {
    id: ConnectionId,
    address: ProxyAddress,
    options: ConnectOptions,
    events: EventChannel,
    /// Whether the events are those of this connection, and not of its actor.
    owns_events: bool,
    confirmations: Confirmations,
    /// Why the last attempt to open the publishing socket came to nothing.
    failure: Mutex<Option<Error>>,
}

impl Target {
    fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Inner {
    target: Arc<Target>,
    publisher: SharedAttempt<Publisher>,
    gate: Gate,
    /// Those who publish before the socket is open do so in the order of their calls.
    turn: tokio::sync::Mutex<()>,
    closing: CancellationToken,
    /// Set by a `close` that found no open socket: one that is opened all the same is to be thrown away.
    abandoned: CancellationToken,
    /// The publishing socket is closed: nothing more can be confirmed, and nobody waits for it.
    ended: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Connection {
    /// A connection with the default [`ConnectOptions`], the environment included; it is not opened yet. The address is one,
    /// or text such as `"10.0.0.7"` or `"[::1]:7771"`.
    pub fn new<A: TryInto<ProxyAddress, Error: fmt::Display>>(address: A) -> Result<Self> {
        Self::with_options(address, ConnectOptions::new())
    }

    /// A connection with these options, not opened yet. [`InvalidOption`](ErrorKind::InvalidOption) when one of them makes no
    /// sense.
    pub fn with_options<A: TryInto<ProxyAddress, Error: fmt::Display>>(
        address: A,
        options: ConnectOptions,
    ) -> Result<Self> {
        options.check()?;
        let address = address.try_into().map_err(invalid_address)?;
        Ok(Self::checked(address, options))
    }

    /// A connection with options that were checked.
    pub(crate) fn checked(address: ProxyAddress, options: ConnectOptions) -> Self {
        Self::make(address, options, EventChannel::new(), true)
    }

    /// A connection with options that were checked, whose events are told to this channel of its actor.
    pub(crate) fn with_events(address: ProxyAddress, options: ConnectOptions, events: EventChannel) -> Self {
        Self::make(address, options, events, false)
    }

    fn make(address: ProxyAddress, options: ConnectOptions, events: EventChannel, owns_events: bool) -> Self {
        let target = Target {
            id: ConnectionId::random(),
            address,
            options,
            events,
            owns_events,
            confirmations: Confirmations::default(),
            failure: Mutex::default(),
        };
        let inner = Inner {
            target: Arc::new(target),
            publisher: SharedAttempt::default(),
            gate: Gate::default(),
            turn: tokio::sync::Mutex::default(),
            closing: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Another handle of the same connection: for those in this crate that know how long it is theirs.
    pub(crate) fn share(&self) -> Self {
        Self { inner: self.inner.clone() }
    }

    /// The 9-digit identity of this connection.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.inner.target.id
    }

    /// The proxy that it connects to.
    #[must_use]
    pub fn address(&self) -> &ProxyAddress {
        &self.inner.target.address
    }

    /// Opens the publishing socket and checks it with the proxy, unless that was done before. Those who call at the same time
    /// share one attempt. Its error says what stood in the way: [`Refused`](ErrorKind::Refused) when nothing listens there,
    /// [`Timeout`](ErrorKind::Timeout) when nothing answers, [`NotAllowed`](ErrorKind::NotAllowed) when the proxy does not let
    /// us in, and others that [`ErrorKind`] lists.
    pub async fn connect(&self) -> Result<()> {
        self.publisher().await.map(drop)
    }

    /// Publishes a message. Returns when it was accepted, in the order of the calls; waits while the connection is at its
    /// high-water mark, and never drops. The order of the calls is that in which their futures are first polled.
    ///
    /// Dropping the future withdraws a message that still waits for room; one that was accepted is sent, also if the future was just
    /// pausing for the sake of others. A message is accepted whole or not at all.
    pub async fn publish(&self, message: &Message) -> Result<()> {
        match self.inner.publisher.get() {
            Some(publisher) if self.inner.gate.is_open_and_free() => {
                publisher.publish_frames(&message.frames()).await
            }
            _ => Box::pin(self.publish_in_turn(message)).await,
        }
    }

    /// Publishes a message without waiting for room: fails with [`Full`](ErrorKind::Full) when there is none, or when others
    /// wait for it. The connection must have been opened, by [`connect`](Self::connect) or another call;
    /// [`NotConnected`](ErrorKind::NotConnected) says that it was not.
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        self.check_open()?;
        let Some(publisher) = self.inner.publisher.get() else {
            let what = format!("the connection to {} is not open: call `connect` first", self.address());
            return Err(Error::new(ErrorKind::NotConnected, what));
        };
        if !self.inner.gate.is_open_and_free() {
            let what = format!("others wait to publish through the connection to {}", self.address());
            return Err(Error::new(ErrorKind::Full, what));
        }
        publisher.try_publish_frames(&message.frames())
    }

    /// Returns once the proxy has everything that was published before the call. A message that was accepted is on its way; one
    /// that was flushed has arrived, and was handed to those who were subscribed to it.
    ///
    /// The proof is the answer to a control request, which travels behind the messages; proxies of other implementations give
    /// it, too. [`Unconfirmed`](ErrorKind::Unconfirmed) says that a connection broke after messages had been written to it and
    /// before they were confirmed: up to so many of them may be lost. They are reported once. [`Timeout`](ErrorKind::Timeout):
    /// the proxy did not answer in time; the messages are still being sent. [`Refused`](ErrorKind::Refused),
    /// [`NotConnected`](ErrorKind::NotConnected) and others: there is no connection at this moment, for the reason in `source()`; the messages
    /// are sent when there is one again. [`Closed`](ErrorKind::Closed): the connection was closed meanwhile.
    pub async fn flush(&self, timeout: Duration) -> Result<()> {
        let Some(publisher) = self.inner.publisher.get() else { return Ok(()) };
        // Closing asks for itself, and must not have to wait for this.
        let confirming = async {
            tokio::select! {
                biased;
                () = self.inner.closing.cancelled() => Err(self.closed()),
                doubtful = self.inner.target.confirmations.confirm(publisher, &self.inner.target) => doubtful,
            }
        };
        let Ok(doubtful) = tokio::time::timeout(timeout, confirming).await else {
            return Err(self.not_flushed(timeout));
        };
        let doubtful = doubtful?;
        if doubtful == 0 {
            return Ok(());
        }
        let what = format!(
            "the connection to the proxy at {} broke before {doubtful} messages were confirmed: up to so many of them may be lost",
            self.address(),
        );
        Err(Error::new(ErrorKind::Unconfirmed, what))
    }

    /// Messages that were accepted and that the proxy is not known to have: those that wait to be written, those that were
    /// written and not yet [flushed](Self::flush), and those that were written to a connection that broke before they were.
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.inner
            .publisher
            .get()
            .map_or(0, |publisher| self.inner.target.confirmations.unconfirmed(publisher))
    }

    /// Subscribes to topics and all that start with them. Returns once the proxy has confirmed all of them: nothing that is
    /// published from then on is missed.
    ///
    /// Every subscription has a socket of its own, so that the same topics may be subscribed to more than once, and a subscriber
    /// that is slow holds up no other.
    pub async fn subscribe(&self, topics: impl IntoTopics) -> Result<Subscription> {
        let topics = topics.into_topics()?;
        self.check_open()?;
        if topics.is_empty() {
            return Err(Error::new(ErrorKind::InvalidTopic, "a subscription needs at least one topic"));
        }
        for topic in topics.iter().filter(|topic| topic.looks_like_a_pattern()) {
            tracing::warn!(%topic, "there are no wildcards: this receives topics that start with it, byte by byte");
        }
        let Target { address, options, .. } = &*self.inner.target;
        let mut socket = Subscriber::with_parent(
            options.subscribing(address).for_socket(),
            self.inner.target.events.clone(),
        );
        let mut early = VecDeque::new();
        for topic in &topics {
            socket.subscribe(topic.clone().into_bytes())?;
        }
        let [_, endpoint, _] = options.endpoints_of(address)?;
        socket.connect(endpoint);
        if options.checks_subscription() {
            let closing = self.inner.closing.clone();
            tokio::select! {
                biased;
                () = closing.cancelled() => return Err(self.closed()),
                checked = self.check_subscription(&mut socket, &topics, &mut early) => checked?,
            }
        }
        options.subscribed(address).await;
        socket.put_back(early.into_iter());
        Ok(Subscription::new(socket, topics, Marker(Arc::downgrade(&self.inner))))
    }

    /// Waits until somebody has subscribed to messages with this topic, as far as the proxy says so; the connection is opened if need
    /// be. [`Closed`](ErrorKind::Closed) when the connection is closed first.
    pub async fn wait_for_subscriber(&self, topic: &Topic) -> Result<()> {
        let publisher = self.publisher().await?;
        tokio::select! {
            biased;
            () = self.inner.closing.cancelled() => Err(self.closed()),
            result = publisher.wait_for_subscriber(topic.as_bytes()) => result,
        }
    }

    /// Whether somebody has subscribed to messages with this topic, as far as the proxy has said so. Of a connection
    /// that is not open, nothing is known, and it is `false`.
    #[must_use]
    pub fn has_subscriber(&self, topic: &Topic) -> bool {
        self.inner.publisher.get().is_some_and(|publisher| publisher.has_subscriber(topic.as_bytes()))
    }

    /// What happens to the publishing socket, and to the subscriptions made through this connection, from now on until it is closed.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.inner.target.events.observe()
    }

    /// Whether the publishing socket is open and connected at this moment. After a reconnection it is so for about a second before
    /// messages are sent again: they are held back, so that subscribers can come back first.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.publisher.get().is_some_and(Publisher::is_connected)
    }

    /// Messages that were accepted and not yet written to the proxy.
    #[must_use]
    pub fn queued(&self) -> Amount {
        self.inner.publisher.get().map_or_else(Amount::default, Publisher::queued)
    }

    /// Messages that were accepted and dropped again, because the proxy does not take them: see
    /// [`SocketEvent::MessageDropped`](xmsg_zmq::SocketEvent::MessageDropped).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.inner.publisher.get().map_or(0, Publisher::dropped)
    }

    /// Takes no more messages, sends what was accepted and has the proxy confirm it, all within `limit`. Returns what is left:
    /// messages that were not sent, and messages that were sent and not confirmed. Calling it again returns the same counts.
    /// Its subscriptions go on.
    ///
    /// Without the [check of connections](ConnectOptions::check_connection) nobody is asked, and nothing is counted as
    /// unconfirmed.
    pub async fn close(&self, limit: Duration) -> Unfinished {
        let left = self.end(limit).await;
        if self.inner.target.owns_events {
            self.inner.target.events.end();
        }
        left
    }

    async fn end(&self, limit: Duration) -> Unfinished {
        let inner = &*self.inner;
        let end = Deadline::after(limit);
        inner.gate.close();
        inner.closing.cancel();
        self.limit_hold(limit);
        if inner.publisher.get().is_none() {
            inner.abandoned.cancel();
        }
        let Some(publisher) = inner.publisher.get() else { return Unfinished::default() };
        let confirms = inner.target.options.checks_connection();
        if confirms {
            let confirmed = inner.target.confirmations.confirm_all(publisher, &inner.target);
            // Another call that has less time may end the connection first.
            tokio::select! {
                biased;
                () = inner.ended.cancelled() => {}
                _ = end.limit(confirmed) => {}
            }
        }
        {
            // Also when this is given up half-way, which ends the socket.
            let _ended = inner.ended.clone().drop_guard();
            publisher.close(end.left()).await;
        }
        inner.target.confirmations.forget_control();
        let unsent = inner.target.confirmations.unsent(publisher);
        let unconfirmed = if confirms {
            inner.target.confirmations.unconfirmed(publisher).saturating_sub(unsent)
        } else {
            0
        };
        Unfinished { unsent, unconfirmed, ..Unfinished::default() }
    }

    /// It will be closed within this time: not more than half of it goes by while messages are held back after a reconnection.
    pub(crate) fn limit_hold(&self, left: Duration) {
        if let Some(publisher) = self.inner.publisher.get() {
            publisher.limit_hold(left);
        }
    }

    /// Has the proxy confirm what was published, and what is still being published, for as long as it is polled: when handlers take all the
    /// time of an end, only what they published last is in doubt.
    pub(crate) async fn keep_confirming(&self) {
        let inner = &*self.inner;
        loop {
            if let Some(publisher) =
                inner.publisher.get().filter(|_| inner.target.options.checks_connection())
            {
                inner.target.confirmations.confirm_all(publisher, &inner.target).await;
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    /// The error of a call whose time ran out before it was done, as `what` says, for a reason that is known here, or else `otherwise`.
    pub(crate) fn late(&self, what: &str, otherwise: &str) -> Error {
        let (publisher, address) = (self.inner.publisher.get(), self.address());
        if let Some(held) = publisher.and_then(Publisher::held_for) {
            let why = format!(
                "messages have been held back for {held:.0?} after a reconnection, so that subscribers can come back first"
            );
            return Error::new(ErrorKind::Timeout, format!("{what}: {why}"));
        }
        let is_lost = publisher.is_some_and(|publisher| !publisher.is_connected());
        let failure = publisher.map_or_else(|| self.inner.target.failure().clone(), Publisher::failure);
        let without = || format!("{what}: there is no connection to the proxy at {address}");
        match failure {
            None if is_lost => Error::new(ErrorKind::NotConnected, without()),
            None => Error::new(ErrorKind::Timeout, format!("{what}: {otherwise}")),
            Some(failure) => {
                let kind = match publisher {
                    Some(_) => Error::kind_without_connection(&failure),
                    None => opening::kind_of(Some(&failure)),
                };
                Error::new(kind, without()).with_source(failure)
            }
        }
    }

    fn not_flushed(&self, timeout: Duration) -> Error {
        let what = format!(
            "the proxy at {} did not confirm {} of the messages sent to it within {timeout:?}",
            self.address(),
            self.unconfirmed(),
        );
        self.late(&what, "they are still being sent")
    }

    /// Waits for the socket together with those who called before, and publishes when they have.
    async fn publish_in_turn(&self, message: &Message) -> Result<()> {
        let inner = &*self.inner;
        let _waiting = inner.gate.wait().ok_or_else(|| self.closed())?;
        // Both at once: the place in the order is that of the call, and so is the attempt that is waited for.
        let (_turn, publisher) = tokio::try_join!(async { Ok(inner.turn.lock().await) }, self.publisher())?;
        publisher.publish_frames(&message.frames()).await
    }

    async fn publisher(&self) -> Result<&Publisher> {
        let inner = &*self.inner;
        self.check_open()?;
        let make = || opening::open(inner.target.clone(), inner.closing.clone());
        let publisher = inner.publisher.get_or_make(make).await?;
        if inner.abandoned.is_cancelled() {
            publisher.abort();
            return Err(self.closed());
        }
        Ok(publisher)
    }

    fn check_open(&self) -> Result<()> {
        if self.inner.closing.is_cancelled() { Err(self.closed()) } else { Ok(()) }
    }

    fn closed(&self) -> Error {
        opening::closed(&self.inner.target)
    }

    /// Asks after the topics until all are confirmed. The time limit is for each confirmation, from the one before.
    async fn check_subscription(
        &self,
        socket: &mut Subscriber,
        topics: &[Topic],
        early: &mut VecDeque<Bytes>,
    ) -> Result<()> {
        let Target { address, options, .. } = &*self.inner.target;
        let timeout = options.subscription_limit();
        let publisher = self.publisher().await?;
        let (mut early_bytes, limit) = (0, options.subscribing(address).settings().receive_high_water_mark);
        let mut unconfirmed = match options.mechanism() {
            crate::Security::Null => Unconfirmed::together(topics),
            _ => Unconfirmed::each(topics),
        };
        let mut end = Deadline::after(timeout);
        // An answer that is published before our subscription arrives does not reach us.
        let _ = end.limit(socket.connected()).await;
        if let Some(error) = socket.refused() {
            return Err(error);
        }
        let (mut intervals, mut repeat_at) = (check_intervals(), Instant::now());
        while let Some(topic) = unconfirmed.first() {
            let now = Instant::now();
            if end.has_passed() {
                return Err(self.not_confirmed(
                    topic,
                    timeout,
                    socket.failure().or_else(|| publisher.failure()),
                ));
            }
            let repeat = now >= repeat_at;
            if repeat {
                repeat_at = Deadline::since(now, intervals.next().unwrap_or(CHECK_INTERVAL)).instant();
            }
            let ask = async {
                for request in unconfirmed.ask(repeat, |private| socket.subscribe_last(private).is_ok()) {
                    self.inner.target.confirmations.ask(publisher, &request).await?;
                }
                Ok::<_, Error>(socket.recv_batch().await)
            };
            let Ok(batch) = tokio::time::timeout_at(repeat_at.min(end.instant()), ask).await else {
                continue;
            };
            let Some(batch) = batch? else {
                return Err(Error::new(ErrorKind::Closed, "the connection was closed while it subscribed"));
            };
            let confirmed = unconfirmed.confirm(&batch);
            if confirmed.some {
                end = Deadline::after(timeout);
            }
            for private in unconfirmed.take_settled() {
                socket.unsubscribe(private);
            }
            let batch = confirmed.rest;
            if batch.is_empty() {
                continue;
            }
            early_bytes += batch.len();
            early.push_back(batch.clone());
            if early_bytes > EARLY_MAX.max(limit) {
                return Err(self.too_much(unconfirmed.first(), early_bytes));
            }
            if early_bytes > limit {
                // For topics of which so much has come, there is no doubt.
                unconfirmed.concede(batch);
                for private in unconfirmed.take_settled() {
                    socket.unsubscribe(private);
                }
            }
        }
        Ok(())
    }

    fn too_much(&self, topic: Option<&Topic>, bytes: usize) -> Error {
        let topic = topic.map(ToString::to_string).unwrap_or_default();
        let what = format!(
            "{bytes} bytes of messages came from the proxy at {} before it confirmed the subscription to {topic}: subscribe to busy topics \
             apart from others",
            self.address()
        );
        Error::new(ErrorKind::Full, what)
    }

    fn not_confirmed(&self, topic: &Topic, timeout: Duration, failure: Option<Error>) -> Error {
        let address = self.address();
        let what =
            format!("the proxy at {address} did not confirm the subscription to {topic} within {timeout:?}");
        if let Some(failure) = failure {
            let what = format!("{what}: there is no connection to it");
            return Error::new(Error::kind_without_connection(&failure), what).with_source(failure);
        }
        let rights = match self.inner.target.options.mechanism() {
            crate::Security::Null => "",
            _ => "; do our rights there allow it",
        };
        let port = address.subscribe_port();
        let hint = format!("is it an xMsg proxy, and is its subscriber port {port} reachable{rights}?");
        Error::new(ErrorKind::Timeout, format!("{what}: {hint}"))
    }
}

/// Publishes a marker of a subscription that is being drained.
#[derive(Clone, Debug)]
pub(crate) struct Marker(std::sync::Weak<Inner>);

impl Marker {
    /// How long the proxy has to confirm a subscription.
    pub(crate) fn subscription_limit(&self) -> Duration {
        self.0.upgrade().map_or(Duration::ZERO, |inner| inner.target.options.subscription_limit())
    }

    /// Asks the proxy whether this topic is subscribed to. `false`: there is nobody to ask through any more.
    pub(crate) async fn ask(&self, topic: &Topic) -> bool {
        let Some(inner) = self.0.upgrade() else { return false };
        let Some(publisher) = inner.publisher.get() else { return false };
        let request = crate::control::Request::Subscription(topic.clone());
        inner.target.confirmations.ask(publisher, &request).await.is_ok()
    }

    /// Publishes a message to this topic, which travels behind everything that was published before.
    pub(crate) async fn send(&self, topic: &Topic) -> bool {
        let Some(inner) = self.0.upgrade() else { return false };
        let Some(publisher) = inner.publisher.get() else { return false };
        inner.target.confirmations.send_marker(publisher, topic).await.is_ok()
    }
}

/// Counts those who wait to publish until the socket is open, and says when it is closed.
#[derive(Debug, Default)]
struct Gate(AtomicUsize);

impl Gate {
    const CLOSED: usize = 1;
    const ONE: usize = 2;

    fn is_open_and_free(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    fn close(&self) {
        self.0.fetch_or(Self::CLOSED, Ordering::AcqRel);
    }

    /// `None` when it is closed.
    fn wait(&self) -> Option<Waiting<'_>> {
        let waiting = Waiting(self);
        if self.0.fetch_add(Self::ONE, Ordering::AcqRel) & Self::CLOSED != 0 { None } else { Some(waiting) }
    }
}

struct Waiting<'a>(&'a Gate);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(Gate::ONE, Ordering::AcqRel);
    }
}

pub(crate) fn invalid_address(error: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidAddress, error.to_string())
}
