//! Actors publish, subscribe, send requests and answer them, by topic.

// | file | answers |
// |---|---|
// | `builder.rs` | How is an actor made? |
// | `service.rs` | How does a subscription with a handler run, and how does it end? |
// | `service/side_by_side.rs` | How do several handlers run at the same time? |
// | `service/lines.rs` | Which lines of the log can a message cause, and how often? |
// | `reply.rs` | What may a handler return? |

// Longer than 500 lines: the public interface of one type, most of it documentation with examples.

mod builder;
mod reply;
pub(crate) mod service;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use builder::ActorBuilder;
pub use reply::{HandlerError, IntoReply};
pub use service::SubscriptionHandle;

use crate::pool::{Pool, PooledConnection};
use crate::registration::{OwnerType, Query, Registration};
use crate::request::Replies;
use crate::shared_attempt::SharedAttempt;
use crate::subscription::Waiting;
use crate::topic::{IntoTopic, IntoTopics};
use crate::{
    ActorId, ConnectOptions, Connection, Error, ErrorKind, Message, ProxyAddress, Registrar,
    RegistrarAddress, Result, Subscription, Topic, Unfinished,
};
use service::Service;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;
use xmsg_zmq::{EventChannel, SocketEvents};

/// An actor has a name, a default proxy and registrar, and opens connections as it needs them.
///
/// Clones share one actor, and any task may use it. When the last clone is dropped, the
/// [handlers](Self::subscribe_with) of the actor end, unless a handler holds a clone of its own.
/// Subscriptions that the program reads itself continue. [`close`](Self::close) and [`drain`](Self::drain)
/// end all of them and return the counts of what is unfinished.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_core::Result<()> {
/// use std::time::Duration;
/// use xmsg_core::{Actor, Message};
///
/// let actor = Actor::connect("reporter").await?; // addresses from the environment, else localhost
/// let mut reports = actor.subscribe("report:sports").await?;
/// actor.publish(&Message::of("report:sports", "3:1")?).await?;
/// if let Some(report) = reports.next().await {
///     println!("{}", report?.value::<String>()?);
/// }
/// let left = actor.drain(Duration::from_secs(5)).await;
/// assert!(left.is_nothing(), "{left}");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Actor {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    id: ActorId,
    registrar: RegistrarAddress,
    registrations: Registrar,
    options: ConnectOptions,
    pool: Pool,
    /// The connection to the default proxy. The actor publishes through one connection for each proxy, so
    /// that its messages stay in order.
    connection: Connection,
    /// The connections to other proxies.
    connections: Mutex<HashMap<ProxyAddress, Connection>>,
    replies: Mutex<HashMap<ProxyAddress, Arc<SharedAttempt<Arc<Replies>>>>>,
    /// Subscriptions that the program reads itself.
    subscriptions: Mutex<Vec<Waiting>>,
    /// Subscriptions with a handler.
    services: Mutex<Services>,
    events: EventChannel,
    closed: AtomicBool,
    /// Ends the handlers when the last clone of the actor is dropped.
    stop_services: CancellationToken,
    /// Ends the tasks that dispatch replies.
    stop_replies: CancellationToken,
    handlers: TaskTracker,
    listeners: TaskTracker,
}

/// Subscriptions with a handler.
#[derive(Default)]
struct Services {
    running: Vec<Arc<service::Shared>>,
    /// The number of unhandled messages of services that have ended and were removed from `running`.
    left: u64,
}

impl Services {
    fn add(&mut self, service: Arc<service::Shared>) {
        let left = &mut self.left;
        self.running.retain(|service| match service.left_behind() {
            None => true,
            Some(unhandled) => {
                *left += unhandled;
                false
            }
        });
        self.running.push(service);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_services.cancel();
        self.stop_replies.cancel();
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor")
            .field("name", &self.inner.name)
            .field("id", &self.inner.id)
            .finish_non_exhaustive()
    }
}

impl Actor {
    /// Makes an actor with the default options and connects it to its proxy, whose address is that of
    /// `XMSG_PROXY`, or localhost.
    ///
    /// # Errors
    /// The error says why no proxy answers there. See [`Connection::connect`].
    pub async fn connect(name: impl Into<String>) -> Result<Self> {
        Self::builder(name).connect().await
    }

    /// Connects to the default proxy, unless the actor is already connected.
    #[cfg(feature = "blocking")]
    pub(crate) async fn connected(&self) -> Result<()> {
        self.inner.connection.connect().await
    }

    /// Begins to build an actor with other addresses or options.
    pub fn builder(name: impl Into<String>) -> ActorBuilder {
        ActorBuilder::new(name.into())
    }

    /// Returns the name of the actor.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Returns the identity of the actor in reply topics.
    #[must_use]
    pub fn id(&self) -> ActorId {
        self.inner.id
    }

    /// Returns the address of the default proxy.
    #[must_use]
    pub fn proxy(&self) -> &ProxyAddress {
        self.inner.connection.address()
    }

    /// Returns the address of the default registrar.
    #[must_use]
    pub fn registrar(&self) -> &RegistrarAddress {
        &self.inner.registrar
    }

    /// Takes a connection to this proxy from the pool of the actor, for the caller alone. The connection
    /// returns to the pool when it is dropped. `address` is a [`ProxyAddress`], or text such as `"10.0.0.7"`.
    ///
    /// # Errors
    /// [`InvalidAddress`](ErrorKind::InvalidAddress), and the errors of [`Pool::take`].
    pub async fn connection<A: TryInto<ProxyAddress, Error: fmt::Display>>(
        &self,
        address: A,
    ) -> Result<PooledConnection> {
        let address = address.try_into().map_err(crate::connection::invalid_address)?;
        self.inner.pool.take(&address).await
    }

    /// Returns the pool of the actor.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    /// Publishes a message through the default proxy.
    ///
    /// It returns when the message is accepted; messages are accepted in the order of the calls. It waits
    /// while the connection is at its high-water mark and never drops a message. A reply topic is removed
    /// from the message: [`request`](Self::request) is the call that sets one.
    ///
    /// # Errors
    /// The errors of [`Connection::publish`]; [`InvalidMessage`](ErrorKind::InvalidMessage) when the metadata
    /// cannot be decoded.
    pub async fn publish(&self, message: &Message) -> Result<()> {
        // Nobody waits for an answer to this message. The search for a reply topic passes over the metadata
        // once.
        self.closed_here(self.inner.connection.publish(&*message.without_reply_to()?).await)
    }

    /// Publishes a message through another proxy, as [`publish`](Self::publish) does through the default one.
    ///
    /// # Errors
    /// The errors of [`publish`](Self::publish).
    pub async fn publish_to(&self, address: &ProxyAddress, message: &Message) -> Result<()> {
        self.closed_here(self.connection_to(address)?.publish(&*message.without_reply_to()?).await)
    }

    /// Publishes a message through the default proxy without waiting for room in the queue, as
    /// [`Connection::try_publish`] does. A reply topic is removed from the message.
    ///
    /// # Errors
    /// The errors of [`Connection::try_publish`].
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        self.closed_here(self.inner.connection.try_publish(&*message.without_reply_to()?))
    }

    /// Waits until the proxies have confirmed everything that was published before the call, as
    /// [`Connection::flush`] does for one proxy. `timeout` applies to each connection; all of them are
    /// flushed at the same time.
    ///
    /// # Errors
    /// The errors of [`Connection::flush`], of the first proxy that fails.
    pub async fn flush(&self, timeout: Duration) -> Result<()> {
        let connections = self.connections();
        let flushing = connections.iter().map(|connection| connection.flush(timeout));
        self.closed_here(join_all(flushing).await.into_iter().collect())
    }

    /// Returns the number of accepted messages that the proxies have not confirmed. See
    /// [`Connection::unconfirmed`].
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.connections().iter().map(Connection::unconfirmed).sum()
    }

    /// Returns whether the actor is connected to its default proxy at this moment. After a reconnection it is
    /// connected for about a second before messages are sent again: they are held back, so that subscribers
    /// can reconnect first.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.connection.is_connected()
    }

    /// Returns the events of the actor's connections and subscriptions from now on, until the actor is
    /// closed. Examples are a connection that was made or lost, and messages that the proxy dropped.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.inner.events.observe()
    }

    /// Publishes a request through the default proxy and waits for the reply. `timeout` limits the whole
    /// call, including the time to connect. Dropping the future cancels the request.
    ///
    /// # Errors
    /// - [`Remote`](ErrorKind::Remote): the service failed; its reply has the status *error*, and the message
    ///   of the error says why.
    /// - [`Timeout`](ErrorKind::Timeout): no reply came in time.
    /// - [`Refused`](ErrorKind::Refused), [`NotConnected`](ErrorKind::NotConnected) and others: there was no
    ///   connection to the proxy when the time limit passed. It is not known whether the request was carried
    ///   out.
    /// - [`Closed`](ErrorKind::Closed): the actor was closed during the call.
    pub async fn request(&self, message: &Message, timeout: Duration) -> Result<Message> {
        self.request_through(&self.inner.connection, message, timeout).await
    }

    /// Does the same as [`request`](Self::request). This is the name of the call in xMsg for other languages.
    ///
    /// # Errors
    /// The errors of [`request`](Self::request).
    pub async fn sync_publish(&self, message: &Message, timeout: Duration) -> Result<Message> {
        self.request(message, timeout).await
    }

    /// Publishes a request through another proxy and waits for the reply, as [`request`](Self::request) does
    /// through the default one.
    ///
    /// # Errors
    /// The errors of [`request`](Self::request).
    pub async fn request_to(
        &self,
        address: &ProxyAddress,
        message: &Message,
        timeout: Duration,
    ) -> Result<Message> {
        self.request_through(&self.connection_to(address)?, message, timeout).await
    }

    /// Returns the number of replies that were dropped because they came too late.
    #[must_use]
    pub fn late_replies(&self) -> u64 {
        self.all_replies().iter().map(|replies| replies.late()).sum()
    }

    /// Subscribes through the default proxy to one or more topics, given as text or as [`Topic`]s. It returns
    /// once the proxy has confirmed the subscription: no matching message that is published from then on is
    /// missed.
    ///
    /// The same topics may be subscribed to more than once. Every subscription receives all of their messages
    /// over its own connection, so that a slow subscription delays no other.
    ///
    /// # Errors
    /// The errors of [`Connection::subscribe`].
    pub async fn subscribe(&self, topics: impl IntoTopics) -> Result<Subscription> {
        self.subscribe_through(&self.inner.connection, topics).await
    }

    /// Subscribes through another proxy, as [`subscribe`](Self::subscribe) does through the default one.
    ///
    /// # Errors
    /// The errors of [`Connection::subscribe`].
    pub async fn subscribe_to(
        &self,
        address: &ProxyAddress,
        topics: impl IntoTopics,
    ) -> Result<Subscription> {
        self.subscribe_through(&self.connection_to(address)?, topics).await
    }

    /// Subscribes through the default proxy and calls `handler` for every message, for at most `concurrency`
    /// messages at the same time. With a `concurrency` of 1, messages are handled in order, one after
    /// another, in the task that receives them, which is the fastest.
    ///
    /// A reply that the handler returns is published. If the handler returns an error or panics, this is
    /// logged with the topic and sent to the requester, and the next message is handled. The subscription
    /// continues when the handle is dropped; [`SubscriptionHandle::close`], [`SubscriptionHandle::drain`],
    /// [`close`](Self::close), [`drain`](Self::drain) and dropping the actor end it.
    ///
    /// # Errors
    /// The errors of [`Connection::subscribe`].
    pub async fn subscribe_with<H, F>(
        &self,
        topics: impl IntoTopics,
        concurrency: usize,
        handler: H,
    ) -> Result<SubscriptionHandle>
    where
        H: Fn(Message) -> F + Send + Sync + 'static,
        F: Future<Output: IntoReply> + Send + 'static,
    {
        self.serve_through(&self.inner.connection, topics, concurrency, handler).await
    }

    /// Subscribes with a handler through another proxy, as [`subscribe_with`](Self::subscribe_with) does
    /// through the default one.
    ///
    /// # Errors
    /// The errors of [`Connection::subscribe`].
    pub async fn subscribe_with_to<H, F>(
        &self,
        address: &ProxyAddress,
        topics: impl IntoTopics,
        concurrency: usize,
        handler: H,
    ) -> Result<SubscriptionHandle>
    where
        H: Fn(Message) -> F + Send + Sync + 'static,
        F: Future<Output: IntoReply> + Send + 'static,
    {
        self.serve_through(&self.connection_to(address)?, topics, concurrency, handler).await
    }

    /// Registers the actor at the default registrar as a publisher of this topic, or a subscriber to it,
    /// through its default proxy. The registration is renewed until [`deregister`](Self::deregister) is
    /// called or the actor ends.
    ///
    /// # Errors
    /// The errors of [`Registrar`], and [`Closed`](ErrorKind::Closed) when the actor is closed.
    pub async fn register(&self, owner: OwnerType, topic: impl IntoTopic, description: &str) -> Result<()> {
        self.check_open()?;
        self.inner
            .registrations
            .register(&self.registration(owner, &topic.into_topic()?).with_description(description))
            .await
    }

    /// Removes a registration of the actor from the default registrar.
    ///
    /// # Errors
    /// The errors of [`Registrar`], and [`Closed`](ErrorKind::Closed) when the actor is closed.
    pub async fn deregister(&self, owner: OwnerType, topic: impl IntoTopic) -> Result<()> {
        self.check_open()?;
        self.inner.registrations.deregister(&self.registration(owner, &topic.into_topic()?)).await
    }

    /// Asks the default registrar for the publishers or subscribers that match the query's topic. A query for
    /// publishers finds those whose topic starts with it: the publishers whose messages a subscriber of the
    /// topic would receive. A query for subscribers finds those whose topic is a prefix of it: the
    /// subscribers that would receive a message with the topic. To compare the parts of a topic, use
    /// [`discover_filtered`](Self::discover_filtered).
    ///
    /// # Errors
    /// The errors of [`Registrar`], and [`Closed`](ErrorKind::Closed) when the actor is closed.
    pub async fn discover(&self, query: &Query) -> Result<Vec<Registration>> {
        self.check_open()?;
        self.inner.registrations.find(query).await
    }

    /// Asks the default registrar for registrations whose topic has the parts of the query, and whose host
    /// and port are those of the query.
    ///
    /// ```no_run
    /// # async fn run(actor: xmsg_core::Actor) -> xmsg_core::Result<()> {
    /// use xmsg_core::{OwnerType, Query, Topic};
    ///
    /// // Every subject `oslo`, in whatever domain, published through proxies of that host.
    /// let query = Query::parts(OwnerType::Publisher, "*", "oslo", "*").host("10.0.0.7");
    /// let of_oslo = actor.discover_filtered(&query).await?;
    ///
    /// let query = Query::topic(OwnerType::Publisher, &Topic::new("weather", "oslo")?);
    /// let below_it_too = actor.discover(&query).await?;
    /// let just_this_topic = actor.discover_exact(&query).await?;
    /// let everybody = actor.discover_all(OwnerType::Publisher).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Registrar`], and [`Closed`](ErrorKind::Closed) when the actor is closed.
    pub async fn discover_filtered(&self, query: &Query) -> Result<Vec<Registration>> {
        self.check_open()?;
        self.inner.registrations.filter(query).await
    }

    /// Asks the default registrar for registrations whose topic equals that of the query.
    ///
    /// # Errors
    /// The errors of [`Registrar`], and [`Closed`](ErrorKind::Closed) when the actor is closed.
    pub async fn discover_exact(&self, query: &Query) -> Result<Vec<Registration>> {
        self.check_open()?;
        self.inner.registrations.exact(query).await
    }

    /// Asks the default registrar for all publishers, or for all subscribers.
    ///
    /// # Errors
    /// The errors of [`Registrar`], and [`Closed`](ErrorKind::Closed) when the actor is closed.
    pub async fn discover_all(&self, owner: OwnerType) -> Result<Vec<Registration>> {
        self.check_open()?;
        self.inner.registrations.all(owner).await
    }

    /// Ends the actor within `limit` and returns the counts of what is unfinished.
    ///
    /// Handlers finish their current messages and receive no more. Then requests that still wait for a reply
    /// end with [`Closed`](ErrorKind::Closed). Then the connections send what they have accepted and have it
    /// confirmed. Handlers may publish and send requests until they are done.
    ///
    /// Subscriptions that the program reads itself end, too. Messages that they have received can still be
    /// taken, and are counted as not handled. The rest of a batch that a subscription has begun to return is
    /// not counted.
    ///
    /// Calling it again returns the same counts, also after a call whose future was dropped. A handler may
    /// close its own actor; the call then does not wait for the subscription of this handler.
    pub async fn close(&self, limit: Duration) -> Unfinished {
        self.end(limit, false).await
    }

    /// Ends the actor as [`close`](Self::close) does, after its handlers have handled everything that was
    /// sent to them.
    ///
    /// The subscriptions of the handlers are cancelled at the proxy, and the handlers handle what the proxy
    /// had forwarded by then. Call it for a graceful shutdown: every request that the proxy had forwarded is
    /// answered, or is counted if the time limit passes first.
    pub async fn drain(&self, limit: Duration) -> Unfinished {
        self.end(limit, true).await
    }

    async fn end(&self, limit: Duration, drains: bool) -> Unfinished {
        let inner = &*self.inner;
        let (deadline, own) = (Deadline::after(limit), service::own());
        inner.closed.store(true, Ordering::Release);
        let connections: Vec<_> = self.connections().into_iter().chain(inner.pool.connections()).collect();
        for connection in &connections {
            connection.limit_hold(limit);
        }
        for subscription in lock(&inner.subscriptions).iter() {
            subscription.stop();
        }
        let (services, left_before) = {
            let services = lock(&inner.services);
            (services.running.clone(), services.left)
        };
        for service in &services {
            if drains && own != Some(service.id()) { service.drain() } else { service.stop() }
        }
        let handled = {
            let handling = join_all(services.iter().map(|service| service.ended_by(deadline, own)));
            // Confirming goes on while the handlers work, so that it does not depend on the time that they
            // leave.
            let confirming = async {
                join_all(connections.iter().map(Connection::keep_confirming)).await;
                std::future::pending().await
            };
            tokio::select! {
                biased;
                handled = handling => handled,
                never = confirming => never,
            }
        };
        drop(connections);
        let unhandled = left_before + handled.into_iter().sum::<u64>();
        let mut left = Unfinished { unhandled, ..Unfinished::default() };
        left.unhandled += lock(&inner.subscriptions).iter().map(Waiting::count).sum::<u64>();
        left.unanswered = self.all_replies().iter().map(|replies| replies.close()).sum();
        inner.stop_replies.cancel();
        inner.listeners.close();
        let _ = deadline.limit(inner.listeners.wait()).await;
        let _ = deadline.limit(inner.registrations.close()).await;
        let connections = self.connections();
        let closing = connections.iter().map(|connection| connection.close(deadline.left()));
        let (closed, of_pool) = tokio::join!(join_all(closing), inner.pool.close(deadline.left()));
        inner.events.end();
        left + closed.into_iter().sum() + of_pool
    }

    fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    /// Replaces the error of a connection that was closed because the actor was closed.
    fn closed_here<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error.kind() {
            ErrorKind::Closed if self.inner.closed.load(Ordering::Acquire) => closed(),
            _ => error,
        })
    }

    fn registration(&self, owner: OwnerType, topic: &Topic) -> Registration {
        Registration::new(owner, &self.inner.name, topic, self.proxy())
    }

    /// Returns how long a handle that is dropped goes on sending.
    #[cfg(feature = "blocking")]
    pub(crate) fn linger(&self) -> Duration {
        self.inner.options.linger_time()
    }

    /// Returns the connection through which the actor publishes to this proxy.
    fn connection_to(&self, address: &ProxyAddress) -> Result<Connection> {
        if address == self.proxy() {
            return Ok(self.inner.connection.share());
        }
        let mut connections = lock(&self.inner.connections);
        if let Some(connection) = connections.get(address) {
            return Ok(connection.share());
        }
        self.check_open()?;
        let connection =
            Connection::with_events(address.clone(), self.inner.options.clone(), self.inner.events.clone());
        connections.insert(address.clone(), connection.share());
        Ok(connection)
    }

    /// Returns the connections through which the actor publishes.
    fn connections(&self) -> Vec<Connection> {
        let others = lock(&self.inner.connections);
        std::iter::once(&self.inner.connection).chain(others.values()).map(Connection::share).collect()
    }

    async fn subscribe_through(
        &self,
        connection: &Connection,
        topics: impl IntoTopics,
    ) -> Result<Subscription> {
        self.check_open()?;
        let subscription = self.closed_here(connection.subscribe(topics).await)?;
        let mut subscriptions = lock(&self.inner.subscriptions);
        // This check is made under the lock, so that either it sees that the actor was closed, or `end` sees
        // the subscription.
        self.check_open()?;
        subscriptions.retain(Waiting::is_there);
        subscriptions.push(subscription.waiting());
        Ok(subscription)
    }

    async fn serve_through<H, F>(
        &self,
        connection: &Connection,
        topics: impl IntoTopics,
        concurrency: usize,
        handler: H,
    ) -> Result<SubscriptionHandle>
    where
        H: Fn(Message) -> F + Send + Sync + 'static,
        F: Future<Output: IntoReply> + Send + 'static,
    {
        self.check_open()?;
        let subscription = self.closed_here(connection.subscribe(topics).await)?;
        let service = Service { subscription, connection: connection.share(), concurrency, handler };
        let mut services = lock(&self.inner.services);
        self.check_open()?;
        let (shared, handle) = service.start(&self.inner.handlers, &self.inner.stop_services);
        services.add(shared);
        Ok(handle)
    }

    async fn request_through(
        &self,
        connection: &Connection,
        message: &Message,
        timeout: Duration,
    ) -> Result<Message> {
        #[cfg(feature = "otel")]
        {
            let span = crate::otel::requesting(message, connection.address());
            let answered = self.answer_to(connection, message, timeout);
            let answered = tracing::Instrument::instrument(answered, span.clone()).await;
            crate::otel::ended(&span, answered)
        }
        #[cfg(not(feature = "otel"))]
        self.answer_to(connection, message, timeout).await
    }

    async fn answer_to(
        &self,
        connection: &Connection,
        message: &Message,
        timeout: Duration,
    ) -> Result<Message> {
        // A handler may send a request while its actor closes, so the connection and the replies decide when
        // it is too late.
        let ask = async {
            let replies = self.replies(connection).await?;
            let mut expected = replies.expect().ok_or_else(closed)?;
            let mut request = message.clone();
            request.set_reply_to(expected.topic())?;
            connection.publish(&request).await?;
            expected.answer().await.ok_or_else(closed)
        };
        let Ok(answer) = Deadline::after(timeout).limit(ask).await else {
            let what = format!("no answer to the request to {} within {timeout:?}", message.topic());
            let hint = format!("does anybody answer there, through the proxy at {}?", connection.address());
            return Err(connection.late(&what, &hint));
        };
        let answer = self.closed_here(answer)?;
        match answer.error_text().ok().flatten() {
            None => Ok(answer),
            Some(text) => {
                let what = format!("the service at {} failed: {text}", message.topic());
                Err(Error::new(ErrorKind::Remote, what))
            }
        }
    }

    /// Returns the replies that come through the proxy of this connection. They are subscribed to once for
    /// each proxy.
    async fn replies(&self, connection: &Connection) -> Result<Arc<Replies>> {
        let shared = lock(&self.inner.replies).entry(connection.address().clone()).or_default().clone();
        let make = || {
            let (connection, id) = (connection.share(), self.inner.id);
            let (listeners, stop) = (self.inner.listeners.clone(), self.inner.stop_replies.clone());
            async move {
                let replies = Replies::new(id);
                let subscription = connection.subscribe(replies.subscription()).await?;
                let listening = replies.clone().listen(subscription);
                let listened_to = replies.clone();
                listeners.spawn(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = listening => {}
                    }
                    // The actor may have been closed during the subscription: a request that is made then
                    // must not wait for a reply.
                    listened_to.close();
                });
                Ok(replies)
            }
        };
        shared.get_or_make(make).await.cloned()
    }

    fn all_replies(&self) -> Vec<Arc<Replies>> {
        lock(&self.inner.replies).values().filter_map(|shared| shared.get().cloned()).collect()
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the actor was closed here")
}
