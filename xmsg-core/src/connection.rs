//! A connection to one proxy: publishing, subscribing and control sockets, opened as they are needed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::batch::Kept;
use crate::control::{CONTROL_TOPIC, Request, Unconfirmed};
use crate::security::Security;
use crate::setup::CHECK_INTERVAL;
use crate::socket::{
    Amount, Dealer, Endpoint, Publisher, SHARE_MAX, SocketEvents, SocketOptions, Subscriber,
};
use crate::topic::{IntoTopic, IntoTopics};
use crate::{ConnectionId, Error, ErrorKind, Message, Messages, ProxyAddress, Result, Setup, Topic};

/// The first pause between two checks; it doubles up to [`CHECK_INTERVAL`].
const FIRST_CHECK_INTERVAL: Duration = Duration::from_millis(2);

/// What may come before all topics of a subscription are confirmed, bytes, or the mark of received messages, if that is more.
const EARLY_MAX: usize = 64 << 20;

/// A connection to a proxy. Clones share it.
///
/// The publishing socket is opened, and checked with the proxy, by the first call that needs it. It stays connected by itself:
/// when the proxy restarts, what was accepted is sent to the new one.
///
/// ```no_run
/// # async fn run() -> xmsg_core::Result<()> {
/// use xmsg_core::{Connection, Message};
/// let connection = Connection::new("10.0.0.7".parse()?);
/// let mut reports = connection.subscribe("report:sports").await?;
/// connection.publish(&Message::of("report:sports", "3:1")?).await?;
/// println!("{:?}", reports.next().await);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Connection {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: ConnectionId,
    address: ProxyAddress,
    setup: Setup,
    publisher: OnceCell<Publisher>,
}

impl Connection {
    /// A connection with the default [`Setup`], not opened yet.
    #[must_use]
    pub fn new(address: ProxyAddress) -> Self {
        Self::with_setup(address, Setup::default())
    }

    /// A connection that is set up like this, not opened yet.
    #[must_use]
    pub fn with_setup(address: ProxyAddress, setup: Setup) -> Self {
        let id = ConnectionId::random();
        Self { inner: Arc::new(Inner { id, address, setup, publisher: OnceCell::new() }) }
    }

    /// The 9-digit identity of this connection.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.inner.id
    }

    /// The proxy that it connects to.
    #[must_use]
    pub fn address(&self) -> &ProxyAddress {
        &self.inner.address
    }

    /// Opens the publishing socket and checks it with the proxy, unless that was done before. Fails with
    /// [`Timeout`](ErrorKind::Timeout) or [`Refused`](ErrorKind::Refused) when the proxy does not answer in time.
    pub async fn connect(&self) -> Result<()> {
        self.publisher().await.map(drop)
    }

    /// Returns when the message was accepted; waits while the connection is at its high-water mark, and never drops.
    /// Dropping the future has the message accepted whole or not at all.
    pub async fn publish(&self, message: &Message) -> Result<()> {
        // Asked first, because nearly always it is there, and a future for it would cost more than the message.
        let publisher = match self.inner.publisher.get() {
            Some(publisher) => publisher,
            None => self.publisher().await?,
        };
        publisher.publish_frames(&message.frames()).await
    }

    /// The same without waiting for room: fails with [`Full`](ErrorKind::Full).
    /// The connection must have been opened, by [`connect`](Self::connect) or another call.
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        let Some(publisher) = self.inner.publisher.get() else {
            let what = format!("the connection to {} is not open: call `connect` first", self.inner.address);
            return Err(Error::new(ErrorKind::Closed, what));
        };
        publisher.try_publish_frames(&message.frames())
    }

    /// Subscribes to topics and all that start with them. Returns once the proxy has confirmed all of them: nothing that is
    /// published from then on is missed.
    pub async fn subscribe(&self, topics: impl IntoTopics) -> Result<Subscription> {
        let topics = topics.into_topics()?;
        if topics.is_empty() {
            return Err(Error::new(ErrorKind::InvalidTopic, "a subscription needs at least one topic"));
        }
        let setup = &self.inner.setup;
        let mut socket = Subscriber::new(setup.subscribing());
        let mut early = VecDeque::new();
        for topic in &topics {
            socket.subscribe(topic.clone().into_bytes());
        }
        socket.connect(endpoint(&self.inner.address.subscribe_endpoint())?);
        if setup.checks_subscription() {
            self.check_subscription(&mut socket, &topics, &mut early).await?;
        }
        setup.subscribed().await;
        Ok(Subscription { socket, early, batch: Messages::default(), kept: Kept::default() })
    }

    /// Waits until somebody has subscribed to messages with this topic, as far as the proxy says so; the connection is opened if need
    /// be.
    pub async fn wait_for_subscriber(&self, topic: impl IntoTopic) -> Result<()> {
        let topic = topic.into_topic()?;
        self.publisher().await?.wait_for_subscriber(topic.as_bytes()).await;
        Ok(())
    }

    /// What happens to the publishing socket from now on; it is opened if need be.
    pub async fn events(&self) -> Result<SocketEvents> {
        Ok(self.publisher().await?.events())
    }

    /// Whether the publishing socket is open and connected at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.publisher.get().is_some_and(Publisher::is_connected)
    }

    /// Messages that were accepted and not yet written to the proxy.
    #[must_use]
    pub fn queued(&self) -> Amount {
        self.inner.publisher.get().map_or_else(Amount::default, Publisher::queued)
    }

    /// Takes no more messages, and sends what was accepted for at most `linger`. Returns how many messages were not sent.
    pub async fn close(&self, linger: Duration) -> usize {
        match self.inner.publisher.get() {
            Some(publisher) => publisher.close(linger).await,
            None => 0,
        }
    }

    async fn publisher(&self) -> Result<&Publisher> {
        self.inner.publisher.get_or_try_init(|| self.open_publisher()).await
    }

    async fn open_publisher(&self) -> Result<Publisher> {
        let Inner { address, setup, .. } = &*self.inner;
        let publisher = Publisher::new(setup.connecting());
        let mut events = publisher.events();
        publisher.connect(endpoint(&address.publish_endpoint())?);
        if setup.checks_connection() {
            let timeout = setup.connection_timeout();
            let mut reason = None;
            let check = async {
                tokio::select! {
                    result = self.check_connection(&publisher) => result,
                    // The sockets go on trying, and so does the check, unless nobody wants us.
                    why = note_failures(&mut events, &mut reason) => Err(self.not_allowed(why)),
                }
            };
            let Ok(result) = tokio::time::timeout(timeout, check).await else {
                publisher.close(Duration::ZERO).await;
                return Err(self.no_proxy(timeout, reason));
            };
            if let Err(error) = result {
                publisher.close(Duration::ZERO).await;
                return Err(error);
            }
        }
        setup.connected().await;
        Ok(publisher)
    }

    /// Asks until the answer comes: at once when the proxy says that it listens for control requests, and every 100 ms.
    async fn check_connection(&self, publisher: &Publisher) -> Result<()> {
        let Inner { id, address, setup, .. } = &*self.inner;
        let identity = Bytes::copy_from_slice(id.as_bytes());
        let options = SocketOptions { identity, ..setup.connecting() };
        let mut control = Dealer::connect(endpoint(&address.control_endpoint())?, options);
        let request = Request::Publisher(*id);
        // The answer goes to our control socket: without it there is nobody to answer.
        control.connected().await;
        let _ = tokio::time::timeout(CHECK_INTERVAL, publisher.wait_for_subscriber(CONTROL_TOPIC.as_bytes()))
            .await;
        for interval in check_intervals() {
            publisher.publish(request.message()).await?;
            let answered = async {
                while let Some(message) = control.recv().await {
                    if request.is_answered_by(&message) {
                        return;
                    }
                }
                std::future::pending::<()>().await;
            };
            if tokio::time::timeout(interval, answered).await.is_ok() {
                break;
            }
        }
        Ok(())
    }

    /// Asks after the topics until all are confirmed. The time limit is for each confirmation, from the one before.
    async fn check_subscription(
        &self,
        socket: &mut Subscriber,
        topics: &[Topic],
        early: &mut VecDeque<Bytes>,
    ) -> Result<()> {
        let timeout = self.inner.setup.subscription_timeout();
        let publisher = self.publisher().await?;
        let (mut early_bytes, limit) = (0, self.inner.setup.subscribing().receive_high_water_mark);
        let mut unconfirmed = Unconfirmed::new(topics);
        let mut deadline = Instant::now() + timeout;
        // An answer that is published before our subscription arrives does not reach us.
        let _ = tokio::time::timeout_at(deadline, socket.connected()).await;
        let (mut intervals, mut repeat_at) = (check_intervals(), Instant::now());
        while let Some(topic) = unconfirmed.first() {
            let now = Instant::now();
            if now >= deadline {
                return Err(self.not_confirmed(topic, timeout));
            }
            let repeat = now >= repeat_at;
            if repeat {
                repeat_at = now + intervals.next().unwrap_or(CHECK_INTERVAL);
            }
            let ask = async {
                for request in unconfirmed.ask(repeat) {
                    publisher.publish(request.message()).await?;
                }
                Ok(socket.recv_batch().await)
            };
            let Ok(batch) = tokio::time::timeout_at(repeat_at.min(deadline), ask).await else { continue };
            let Some(batch) = batch? else {
                return Err(Error::new(ErrorKind::Closed, "the connection was closed while it subscribed"));
            };
            let confirmed = unconfirmed.confirm(batch.clone());
            if confirmed.some {
                deadline = Instant::now() + timeout;
            }
            if confirmed.only_answers {
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
            }
        }
        Ok(())
    }

    fn too_much(&self, topic: Option<&Topic>, bytes: usize) -> Error {
        let topic = topic.map(ToString::to_string).unwrap_or_default();
        let what = format!(
            "{bytes} bytes of messages came from the proxy at {} before it confirmed the subscription to {topic}: subscribe to busy topics \
             apart from others",
            self.inner.address
        );
        Error::new(ErrorKind::Full, what)
    }

    fn not_confirmed(&self, topic: &Topic, timeout: Duration) -> Error {
        let rights = match self.inner.setup.security() {
            Security::Null => "",
            _ => "; do our rights there allow it",
        };
        let what = format!(
            "the proxy at {} did not confirm the subscription to {topic} within {} ms: is it an xMsg proxy, and is its subscriber \
             port {} reachable{rights}?",
            self.inner.address,
            timeout.as_millis(),
            self.inner.address.subscribe_port(),
        );
        Error::new(ErrorKind::Timeout, what)
    }

    fn not_allowed(&self, why: String) -> Error {
        let what = format!(
            "the proxy at {} does not let us in: check the security mechanism, the keys, or name and password, on both sides",
            self.inner.address
        );
        Error::new(ErrorKind::NotAllowed, what).with_source(why)
    }

    fn no_proxy(&self, timeout: Duration, reason: Option<String>) -> Error {
        let address = &self.inner.address;
        let kind = if reason.is_some() { ErrorKind::Refused } else { ErrorKind::Timeout };
        let what = format!(
            "no answer from a proxy at {address} within {} ms: is it running there, with ports {} to {} reachable?",
            timeout.as_millis(),
            address.publish_port(),
            address.control_port(),
        );
        let error = Error::new(kind, what);
        match reason {
            Some(reason) => error.with_source(reason),
            None => error,
        }
    }
}

/// For how long an answer is waited for before the question is repeated: other implementations wait for 100 ms every time; the first
/// question may just have come too early, so we ask again soon, and settle down to the same. Endless: a time limit ends the check.
fn check_intervals() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FIRST_CHECK_INTERVAL), |interval| Some((*interval * 2).min(CHECK_INTERVAL)))
}

/// Notes why there is no connection. Ends when the other side does not want us, and says why.
async fn note_failures(events: &mut SocketEvents, reason: &mut Option<String>) -> String {
    use crate::socket::SocketEvent::{ConnectFailed, Disconnected};
    while let Some(event) = events.next().await {
        match event {
            ConnectFailed { kind: ErrorKind::NotAllowed, reason: why, .. } => return why,
            ConnectFailed { reason: why, .. } | Disconnected { reason: why, .. } => *reason = Some(why),
            _ => {}
        }
    }
    std::future::pending().await
}

fn endpoint(text: &str) -> Result<Endpoint> {
    text.parse()
}

/// Messages of the topics that were subscribed to: a [`Stream`](futures::Stream). It stays subscribed through restarts of the
/// proxy; dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    socket: Subscriber,
    /// What came before the subscription was confirmed.
    early: VecDeque<Bytes>,
    /// What is left of the messages that came in last.
    batch: Messages,
    /// What those that were given out one by one hold.
    kept: Kept,
}

impl Subscription {
    /// The next message. A message that has not the three frames of xMsg is an error, and the next one can be asked for;
    /// answers to control requests (two frames) are passed over. `None` once the subscription is closed.
    /// Dropping the future loses nothing.
    ///
    /// A message can be kept: it holds 16 times its own size or 1 KiB of memory at most, whatever is more. Only of messages that
    /// come when little is being kept, some hold more, 2 MiB in all for a subscription and what one read brought.
    pub async fn next(&mut self) -> Option<Result<Message>> {
        match self.batch.next() {
            None => std::future::poll_fn(|cx| self.poll_next_message(cx)).await,
            message => message,
        }
    }

    /// The next messages, all that came in together: one if they come one by one, hundreds if they are many and small. It waits for the
    /// first of them only. `None` once the subscription is closed. Dropping the future loses nothing.
    ///
    /// They share the memory that they came in, so that one that is kept holds all of it: see [`Messages`].
    pub async fn next_batch(&mut self) -> Option<Messages> {
        std::future::poll_fn(|cx| self.poll_next_batch(cx)).await
    }

    /// [`next_batch`](Self::next_batch) for hand-written futures.
    pub fn poll_next_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Messages>> {
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            return Poll::Ready(Some(batch));
        }
        self.poll_wire(cx).map(|batch| batch.map(|(wire, _)| Messages::of(wire)))
    }

    /// What happens to its connection from now on.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.socket.events()
    }

    /// Ends the subscription.
    pub async fn close(self) {
        self.socket.close().await;
    }

    /// Whether messages of the last batch are left.
    pub(crate) fn is_in_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// The next messages as they are on the wire, and how much memory a slice of them keeps alive, at most.
    fn poll_wire(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, usize)>> {
        match self.early.pop_front() {
            Some(wire) => {
                let memory = wire.len() * SHARE_MAX;
                Poll::Ready(Some((wire, memory)))
            }
            None => self.socket.poll_batch(cx),
        }
    }

    fn poll_next_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message>>> {
        loop {
            if let Some(message) = self.batch.next() {
                return Poll::Ready(Some(message));
            }
            match self.poll_wire(cx) {
                Poll::Ready(Some((wire, memory))) => self.batch = Messages::to_keep(wire, memory, &self.kept),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl futures::Stream for Subscription {
    type Item = Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_next_message(cx)
    }
}
