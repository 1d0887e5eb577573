//! A connection to one proxy. Its publishing, subscribing and control sockets are opened when they are
//! needed.

// Longer than 500 lines: the public interface of one type, most of it documentation. What it does is in the
// modules beside it.

mod confirmation;
mod opening;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "otel")]
use tracing::Instrument;

use crate::control::Unconfirmed;
use crate::options::CHECK_INTERVAL;
#[cfg(feature = "otel")]
use crate::otel;
use crate::shared_attempt::SharedAttempt;
use crate::topic::IntoTopics;
use crate::unfinished::Unfinished;
use crate::{
    ConnectOptions, ConnectionId, Error, ErrorKind, Message, ProxyAddress, Result, Subscription, Topic,
};
use confirmation::Confirmations;
use opening::check_intervals;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;
use xmsg_zmq::{Amount, EventChannel, Publisher, SocketEvents, Subscriber};

/// The bytes of messages that may arrive before all topics of a subscription are confirmed; the receive
/// high-water mark holds instead if it is larger.
const EARLY_MAX: usize = 64 << 20;

/// A connection to a proxy. Any task may use it, by reference; to share it between several owners, put it
/// into an [`Arc`] or use an [`Actor`](crate::Actor).
///
/// The first call that needs the publishing socket opens it and checks it with the proxy. It reconnects by
/// itself: when the proxy restarts, messages that were accepted are sent to the new one. A connection that is
/// dropped goes on sending, in the background, what it has accepted, for its [linger](ConnectOptions::linger)
/// time. [`close`](Self::close) waits for that, and returns the counts of what is unfinished.
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

/// The address, options and state that a connection shares with the tasks that open and confirm its socket.
#[derive(Debug)]
struct Target {
    id: ConnectionId,
    address: ProxyAddress,
    options: ConnectOptions,
    events: EventChannel,
    /// Whether the event channel belongs to this connection, and not to its actor.
    owns_events: bool,
    confirmations: Confirmations,
    /// Why the last attempt to open the publishing socket failed.
    failure: Mutex<Option<Error>>,
}

impl Target {
    fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        lock(&self.failure)
    }
}

#[derive(Debug)]
struct Inner {
    target: Arc<Target>,
    publisher: SharedAttempt<Publisher>,
    waiting_callers: WaitingCallers,
    /// Held in turn by callers that publish before the socket is open, so that they publish in the order of
    /// their calls.
    turn: tokio::sync::Mutex<()>,
    closing: CancellationToken,
    /// Cancelled by a `close` that found no open socket: a socket that is opened afterwards is discarded.
    abandoned: CancellationToken,
    /// Cancelled when the publishing socket is closed: nothing more can be confirmed, so nobody needs to wait
    /// for it.
    ended: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Connection {
    /// Makes a connection with the default [`ConnectOptions`], which include those of the environment,
    /// without opening it. `address` is a [`ProxyAddress`], or text such as `"10.0.0.7"` or `"[::1]:7771"`.
    ///
    /// # Errors
    /// The errors of [`with_options`](Self::with_options).
    pub fn new<A: TryInto<ProxyAddress, Error: fmt::Display>>(address: A) -> Result<Self> {
        Self::with_options(address, ConnectOptions::new())
    }

    /// Makes a connection with these options, without opening it.
    ///
    /// # Errors
    /// [`InvalidOption`](ErrorKind::InvalidOption) when an option makes no sense, and
    /// [`InvalidAddress`](ErrorKind::InvalidAddress).
    pub fn with_options<A: TryInto<ProxyAddress, Error: fmt::Display>>(
        address: A,
        options: ConnectOptions,
    ) -> Result<Self> {
        options.check()?;
        let address = address.try_into().map_err(invalid_address)?;
        Ok(Self::checked(address, options))
    }

    /// Makes a connection with options that were checked.
    pub(crate) fn checked(address: ProxyAddress, options: ConnectOptions) -> Self {
        Self::make(address, options, EventChannel::new(), true)
    }

    /// Makes a connection with options that were checked. Its events go to this channel of its actor.
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
            waiting_callers: WaitingCallers::default(),
            turn: tokio::sync::Mutex::default(),
            closing: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Returns another handle of the same connection, for code of this crate that knows how long it may use
    /// it.
    pub(crate) fn share(&self) -> Self {
        Self { inner: self.inner.clone() }
    }

    /// Returns the identity of this connection, which has 9 digits.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.inner.target.id
    }

    /// Returns the address of the proxy.
    #[must_use]
    pub fn address(&self) -> &ProxyAddress {
        &self.inner.target.address
    }

    /// Opens the publishing socket and checks it with the proxy, unless this was done before. Concurrent
    /// calls share one attempt.
    ///
    /// # Errors
    /// - [`Refused`](ErrorKind::Refused): nothing listens at the address.
    /// - [`Timeout`](ErrorKind::Timeout): nothing answers there within the
    ///   [`connection_timeout`](ConnectOptions::connection_timeout).
    /// - [`NotAllowed`](ErrorKind::NotAllowed): the proxy rejected our security mechanism or credentials.
    /// - [`Closed`](ErrorKind::Closed): the connection was closed here.
    /// - Others that [`ErrorKind`] lists.
    pub async fn connect(&self) -> Result<()> {
        self.publisher().await.map(drop)
    }

    /// Publishes a message.
    ///
    /// It returns when the message is accepted; messages are accepted in the order of the calls, which is the
    /// order in which their futures are first polled. It waits while the connection is at its high-water mark
    /// and never drops a message.
    ///
    /// Dropping the future withdraws a message that still waits for room. A message that was accepted is
    /// sent, even if the future is dropped while it only yields to other tasks. A message is accepted whole
    /// or not at all.
    ///
    /// # Errors
    /// [`TooLarge`](ErrorKind::TooLarge) when the message exceeds the size limit,
    /// [`Closed`](ErrorKind::Closed), and the errors of [`connect`](Self::connect) if the connection is not
    /// open yet.
    pub async fn publish(&self, message: &Message) -> Result<()> {
        #[cfg(feature = "otel")]
        if let Some((span, message)) = otel::sending(message, self.address()) {
            let accepted = self.accept(&message).instrument(span.clone()).await;
            return otel::ended(&span, accepted);
        }
        self.accept(message).await
    }

    /// Has the publishing socket accept a message.
    async fn accept(&self, message: &Message) -> Result<()> {
        match self.inner.publisher.get() {
            Some(publisher) if self.inner.waiting_callers.may_publish_at_once() => {
                publisher.publish_frames(&message.frames()).await
            }
            _ => Box::pin(self.publish_in_turn(message)).await,
        }
    }

    /// Publishes a message without waiting for room in the queue.
    ///
    /// # Errors
    /// - [`Full`](ErrorKind::Full): there is no room, or other callers wait for it.
    /// - [`NotConnected`](ErrorKind::NotConnected): the connection was not opened by
    ///   [`connect`](Self::connect) or another call.
    /// - [`Closed`](ErrorKind::Closed): the connection was closed here.
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        #[cfg(feature = "otel")]
        if let Some((span, message)) = otel::sending(message, self.address()) {
            return otel::ended(&span, span.in_scope(|| self.try_accept(&message)));
        }
        self.try_accept(message)
    }

    fn try_accept(&self, message: &Message) -> Result<()> {
        self.check_open()?;
        let Some(publisher) = self.inner.publisher.get() else {
            let what = format!("the connection to {} is not open: call `connect` first", self.address());
            return Err(Error::new(ErrorKind::NotConnected, what));
        };
        if !self.inner.waiting_callers.may_publish_at_once() {
            let what = format!("others wait to publish through the connection to {}", self.address());
            return Err(Error::new(ErrorKind::Full, what));
        }
        publisher.try_publish_frames(&message.frames())
    }

    /// Waits until the proxy has confirmed everything that was published before the call. A message that was
    /// accepted may still be on its way; a message that was flushed has arrived at the proxy and was
    /// forwarded to its subscribers.
    ///
    /// The confirmation is the answer to a control request that is sent after the messages; proxies of other
    /// implementations give it, too.
    ///
    /// # Errors
    /// - [`Unconfirmed`](ErrorKind::Unconfirmed): a connection broke after messages had been written to it
    ///   and before they were confirmed. The error says how many messages may be lost at most. They are
    ///   reported once.
    /// - [`Timeout`](ErrorKind::Timeout): the proxy did not answer in time. The messages are still being
    ///   sent.
    /// - [`Refused`](ErrorKind::Refused), [`NotConnected`](ErrorKind::NotConnected) and others: there is no
    ///   connection at this moment; `source()` says why. The messages are sent after a reconnection.
    /// - [`Closed`](ErrorKind::Closed): the connection was closed during the call.
    pub async fn flush(&self, timeout: Duration) -> Result<()> {
        let Some(publisher) = self.inner.publisher.get() else { return Ok(()) };
        // `close` does its own confirming, and must not have to wait for this one.
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

    /// Returns the number of accepted messages that the proxy has not confirmed. These are messages that wait
    /// to be written, those that were written and not yet [flushed](Self::flush), and those that were written
    /// to a connection that broke before they were confirmed.
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.inner
            .publisher
            .get()
            .map_or(0, |publisher| self.inner.target.confirmations.unconfirmed(publisher))
    }

    /// Subscribes to topics; each of them matches all topics that start with it. It returns once the proxy
    /// has confirmed all of them: no matching message that is published from then on is missed.
    ///
    /// Every subscription has its own socket. So the same topics may be subscribed to more than once, and a
    /// slow subscription delays no other.
    ///
    /// # Errors
    /// - [`InvalidTopic`](ErrorKind::InvalidTopic): a topic is not valid, or there is none.
    /// - [`Timeout`](ErrorKind::Timeout): the proxy did not confirm a topic within the
    ///   [`subscription_timeout`](ConnectOptions::subscription_timeout).
    /// - [`Full`](ErrorKind::Full): too many messages arrived before all topics were confirmed. The limit is
    ///   64 MiB, or the [receive high-water mark](ConnectOptions::receive_high_water_mark) if that is larger.
    /// - [`Closed`](ErrorKind::Closed): the connection was closed here.
    /// - The errors of [`connect`](Self::connect).
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

    /// Waits until somebody has subscribed to messages with this topic, as far as the proxy reports it. The
    /// connection is opened if necessary.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed) when the connection is closed first, and the errors of
    /// [`connect`](Self::connect).
    pub async fn wait_for_subscriber(&self, topic: &Topic) -> Result<()> {
        let publisher = self.publisher().await?;
        tokio::select! {
            biased;
            () = self.inner.closing.cancelled() => Err(self.closed()),
            result = publisher.wait_for_subscriber(topic.as_bytes()) => result,
        }
    }

    /// Returns whether somebody has subscribed to messages with this topic, as far as the proxy has reported
    /// it. It is `false` for a connection that is not open.
    #[must_use]
    pub fn has_subscriber(&self, topic: &Topic) -> bool {
        self.inner.publisher.get().is_some_and(|publisher| publisher.has_subscriber(topic.as_bytes()))
    }

    /// Returns the events of the publishing socket, and of the subscriptions made through this connection,
    /// from now on until the connection is closed.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.inner.target.events.observe()
    }

    /// Returns whether the publishing socket is open and connected at this moment. After a reconnection it is
    /// connected for about a second before messages are sent again: they are held back, so that subscribers
    /// can reconnect first.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.publisher.get().is_some_and(Publisher::is_connected)
    }

    /// Returns the messages that were accepted and not yet written to the proxy.
    #[must_use]
    pub fn queued(&self) -> Amount {
        self.inner.publisher.get().map_or_else(Amount::default, Publisher::queued)
    }

    /// Returns the number of messages that were accepted and then dropped because the proxy does not accept
    /// them. See [`SocketEvent::MessageDropped`](xmsg_zmq::SocketEvent::MessageDropped).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.inner.publisher.get().map_or(0, Publisher::dropped)
    }

    /// Closes the connection within `limit`: it accepts no more messages, sends those that it has accepted
    /// and has the proxy confirm them.
    ///
    /// Returns the counts of what is unfinished: messages that were not sent, and messages that were sent and
    /// not confirmed. Calling it again returns the same counts. The subscriptions that were made through the
    /// connection continue.
    ///
    /// Without the [check of connections](ConnectOptions::check_connection), no confirmation is requested,
    /// and no message is counted as unconfirmed.
    pub async fn close(&self, limit: Duration) -> Unfinished {
        let left = self.end(limit).await;
        if self.inner.target.owns_events {
            self.inner.target.events.end();
        }
        left
    }

    /// Returns how long a connection that is dropped goes on sending.
    #[cfg(feature = "blocking")]
    pub(crate) fn linger(&self) -> Duration {
        self.inner.target.options.linger_time()
    }

    async fn end(&self, limit: Duration) -> Unfinished {
        let inner = &*self.inner;
        let end = Deadline::after(limit);
        inner.waiting_callers.close();
        inner.closing.cancel();
        self.limit_hold(limit);
        if inner.publisher.get().is_none() {
            inner.abandoned.cancel();
        }
        let Some(publisher) = inner.publisher.get() else { return Unfinished::default() };
        let confirms = inner.target.options.checks_connection();
        if confirms {
            let confirmed = inner.target.confirmations.confirm_all(publisher, &inner.target);
            // Another call with less time may end the connection first.
            tokio::select! {
                biased;
                () = inner.ended.cancelled() => {}
                _ = end.limit(confirmed) => {}
            }
        }
        {
            // The guard also works if this call is cancelled half-way, which ends the socket.
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

    /// Limits how long messages are held back after a reconnection: to half of the time until the connection
    /// will be closed.
    pub(crate) fn limit_hold(&self, left: Duration) {
        if let Some(publisher) = self.inner.publisher.get() {
            publisher.limit_hold(left);
        }
    }

    /// Has the proxy confirm what was published, and what is still being published, as long as this future is
    /// polled. If handlers then use up all the time of a shutdown, only their last messages are unconfirmed.
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

    /// Makes the error of a call that ran out of time. `what` says what was not done. The reason is one that
    /// is known here, or else `otherwise`.
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

    /// Waits for the socket together with earlier callers, and publishes after them.
    async fn publish_in_turn(&self, message: &Message) -> Result<()> {
        let inner = &*self.inner;
        // While somebody waits, later callers wait, too: otherwise they would publish first when the socket
        // has just been opened. The turn keeps the order among those who wait, whoever of them is woken
        // first.
        let _waiting = inner.waiting_callers.wait().ok_or_else(|| self.closed())?;
        // Both are awaited at once: the position in the order is that of the call, and so is the attempt that
        // is waited for.
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

    /// Requests confirmations until all topics are confirmed. The time limit is for each confirmation,
    /// counted from the previous one.
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
        // An answer that the proxy publishes before our subscription arrives does not reach us.
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
            for private in unconfirmed.take_finished() {
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
                // Topics with so many messages count as confirmed: the messages prove that they are
                // subscribed to.
                unconfirmed.concede(batch);
                for private in unconfirmed.take_finished() {
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

/// Publishes the marker of a subscription that is being drained. The default has no connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marker(std::sync::Weak<Inner>);

impl Marker {
    /// Returns how long the proxy has to confirm a subscription.
    pub(crate) fn subscription_limit(&self) -> Duration {
        self.0.upgrade().map_or(Duration::ZERO, |inner| inner.target.options.subscription_limit())
    }

    /// Asks the proxy whether this topic is subscribed to. Returns `false` if there is no connection left to
    /// ask through.
    pub(crate) async fn ask(&self, topic: &Topic) -> bool {
        let Some(inner) = self.0.upgrade() else { return false };
        let Some(publisher) = inner.publisher.get() else { return false };
        let request = crate::control::Request::Subscription(topic.clone());
        inner.target.confirmations.ask(publisher, &request).await.is_ok()
    }

    /// Publishes a message to this topic, after everything that was published before. Returns `false` if
    /// there is no connection left.
    pub(crate) async fn send(&self, topic: &Topic) -> bool {
        let Some(inner) = self.0.upgrade() else { return false };
        let Some(publisher) = inner.publisher.get() else { return false };
        inner.target.confirmations.send_marker(publisher, topic).await.is_ok()
    }
}

/// Counts the callers that wait to publish until the socket is open, and records whether the connection was
/// closed here. Both in one number, so that a call that need not wait looks at it once.
#[derive(Debug, Default)]
struct WaitingCallers(AtomicUsize);

impl WaitingCallers {
    const CLOSED: usize = 1;
    const ONE: usize = 2;

    /// Returns whether a caller need not wait for others: none waits, and the connection was not closed.
    fn may_publish_at_once(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    fn close(&self) {
        self.0.fetch_or(Self::CLOSED, Ordering::AcqRel);
    }

    /// Counts a caller until the result is dropped; `None` when the connection is closed.
    fn wait(&self) -> Option<Waiting<'_>> {
        let waiting = Waiting(self);
        if self.0.fetch_add(Self::ONE, Ordering::AcqRel) & Self::CLOSED != 0 { None } else { Some(waiting) }
    }
}

struct Waiting<'a>(&'a WaitingCallers);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(WaitingCallers::ONE, Ordering::AcqRel);
    }
}

pub(crate) fn invalid_address(error: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidAddress, error.to_string())
}
