//! Actors: publish, subscribe, ask and answer, by topic.

mod builder;
mod reply;
pub(crate) mod service;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use xmsg_zmq::{EventChannel, SocketEvents};

/// An actor: a name, a default proxy and registrar, and connections as it needs them. Clones share it; any task may use it.
///
/// When the last clone goes, what its [handlers](Self::subscribe_with) run ends, too, unless a handler holds a clone of its own;
/// subscriptions that somebody reads go on. [`close`](Self::close) and [`drain`](Self::drain) end all of it, and say what is left.
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
    /// What the actor itself publishes goes through one connection for each proxy, so that it stays in order. This one is to the
    /// default proxy.
    connection: Connection,
    /// Those to other proxies.
    connections: Mutex<HashMap<ProxyAddress, Connection>>,
    replies: Mutex<HashMap<ProxyAddress, Arc<SharedAttempt<Arc<Replies>>>>>,
    /// Subscriptions that somebody reads.
    subscriptions: Mutex<Vec<Waiting>>,
    /// Subscriptions with a handler.
    services: Mutex<Services>,
    events: EventChannel,
    closed: AtomicBool,
    /// Ends handlers when the last clone of the actor goes.
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
    /// What those that have ended, and are forgotten, left unhandled.
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
    /// An actor with the defaults, connected to its proxy: that of `XMSG_PROXY`, or of localhost. Its error says why no proxy
    /// answers there.
    pub async fn connect(name: impl Into<String>) -> Result<Self> {
        Self::builder(name).connect().await
    }

    /// Connects to its default proxy, unless it is connected.
    #[cfg(feature = "blocking")]
    pub(crate) async fn connected(&self) -> Result<()> {
        self.inner.connection.connect().await
    }

    /// An actor with other addresses or options.
    pub fn builder(name: impl Into<String>) -> ActorBuilder {
        ActorBuilder::new(name.into())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its identity in reply topics.
    #[must_use]
    pub fn id(&self) -> ActorId {
        self.inner.id
    }

    /// Its default proxy.
    #[must_use]
    pub fn proxy(&self) -> &ProxyAddress {
        self.inner.connection.address()
    }

    /// Its default registrar.
    #[must_use]
    pub fn registrar(&self) -> &RegistrarAddress {
        &self.inner.registrar
    }

    /// A connection of one's own to this proxy, from the pool of the actor, and back to it when it is dropped. The address is
    /// one, or text such as `"10.0.0.7"`.
    pub async fn connection<A: TryInto<ProxyAddress, Error: fmt::Display>>(
        &self,
        address: A,
    ) -> Result<PooledConnection> {
        let address = address.try_into().map_err(crate::connection::invalid_address)?;
        self.inner.pool.take(&address).await
    }

    /// The pool of the actor.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    /// Publishes through the default proxy. Returns when the message was accepted, in the order of the calls; waits while the
    /// connection is full, and never drops. A reply topic is taken off: for that there is [`request`](Self::request).
    pub async fn publish(&self, message: &Message) -> Result<()> {
        self.closed_here(self.inner.connection.publish(&*message.without_reply_to()?).await)
    }

    /// Publishes a message through another proxy, as [`publish`](Self::publish) does through the default one.
    pub async fn publish_to(&self, address: &ProxyAddress, message: &Message) -> Result<()> {
        self.closed_here(self.connection_to(address)?.publish(&*message.without_reply_to()?).await)
    }

    /// Publishes through the default proxy without waiting for room, as [`Connection::try_publish`] does. A reply topic is taken off.
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        self.closed_here(self.inner.connection.try_publish(&*message.without_reply_to()?))
    }

    /// Returns once its proxies have everything that was published before the call, as [`Connection::flush`] does for one.
    pub async fn flush(&self, timeout: Duration) -> Result<()> {
        let connections = self.connections();
        let flushing = connections.iter().map(|connection| connection.flush(timeout));
        self.closed_here(join_all(flushing).await.into_iter().collect())
    }

    /// Messages that were accepted and that the proxies are not known to have; see [`Connection::unconfirmed`].
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.connections().iter().map(Connection::unconfirmed).sum()
    }

    /// Whether it is connected to its default proxy at this moment. After a reconnection it is so for about a second before messages
    /// are sent again: they are held back, so that subscribers can come back first.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.connection.is_connected()
    }

    /// What happens to its connections and subscriptions from now on until it is closed: connected, lost, dropped by the proxy.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.inner.events.observe()
    }

    /// Publishes through the default proxy and waits for the answer. `timeout` bounds the whole call, connecting included.
    /// Dropping the future gives up.
    ///
    /// [`Remote`](ErrorKind::Remote) says that the service failed, and why: whoever answered did so with the status *error*.
    /// [`Timeout`](ErrorKind::Timeout): nobody answered in time. [`Refused`](ErrorKind::Refused), [`NotConnected`](ErrorKind::NotConnected)
    /// and others: the time was up while there was no connection to the proxy; whether the request was carried out is not known.
    /// [`Closed`](ErrorKind::Closed): the actor was closed meanwhile.
    pub async fn request(&self, message: &Message, timeout: Duration) -> Result<Message> {
        self.request_through(&self.inner.connection, message, timeout).await
    }

    /// [`request`](Self::request), by its name in other languages.
    pub async fn sync_publish(&self, message: &Message, timeout: Duration) -> Result<Message> {
        self.request(message, timeout).await
    }

    /// Publishes through another proxy and waits for the answer, as [`request`](Self::request) does with the default one.
    pub async fn request_to(
        &self,
        address: &ProxyAddress,
        message: &Message,
        timeout: Duration,
    ) -> Result<Message> {
        self.request_through(&self.connection_to(address)?, message, timeout).await
    }

    /// Answers that came too late, and were dropped.
    #[must_use]
    pub fn late_replies(&self) -> u64 {
        self.all_replies().iter().map(|replies| replies.late()).sum()
    }

    /// Subscribes through the default proxy: to one topic or many, given as text or as [`Topic`]s. Returns once the proxy has
    /// confirmed it: nothing that is published from then on is missed.
    ///
    /// The same topics may be subscribed to more than once: every subscription gets all of their messages, over a connection of
    /// its own, so that one that is slow holds up no other.
    pub async fn subscribe(&self, topics: impl IntoTopics) -> Result<Subscription> {
        self.subscribe_through(&self.inner.connection, topics).await
    }

    /// Subscribes through another proxy, as [`subscribe`](Self::subscribe) does through the default one.
    pub async fn subscribe_to(
        &self,
        address: &ProxyAddress,
        topics: impl IntoTopics,
    ) -> Result<Subscription> {
        self.subscribe_through(&self.connection_to(address)?, topics).await
    }

    /// Subscribes through the default proxy, and runs `handler` for every message, at most `concurrency` at a time; with 1, in order, and
    /// one after another in the task that receives them, which is fastest.
    ///
    /// What the handler returns, if it is a reply, is published. An error, or a panic, is logged with the topic, and goes back to whoever
    /// asked; the next message is handled. Dropping the handle leaves it running; [`SubscriptionHandle::drain`],
    /// [`close`](Self::close) and dropping the actor end it.
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

    /// Subscribes with a handler through another proxy, as [`subscribe_with`](Self::subscribe_with) does through the default one.
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

    /// Makes known at the default registrar that the actor publishes, or subscribes to, this topic through its default proxy. It is
    /// renewed until [`deregister`](Self::deregister) or the end of the actor.
    pub async fn register(&self, owner: OwnerType, topic: impl IntoTopic, description: &str) -> Result<()> {
        self.check_open()?;
        self.inner
            .registrations
            .register(&self.registration(owner, &topic.into_topic()?).with_description(description))
            .await
    }

    /// Takes a registration back.
    pub async fn deregister(&self, owner: OwnerType, topic: impl IntoTopic) -> Result<()> {
        self.check_open()?;
        self.inner.registrations.deregister(&self.registration(owner, &topic.into_topic()?)).await
    }

    /// Asks the default registrar whom a subscriber of the query's topic would hear: publishers whose topic starts with it. Or who
    /// would hear a message of it: subscribers whose topic it starts with. The parts of a query are compared by
    /// [`discover_filtered`](Self::discover_filtered).
    pub async fn discover(&self, query: &Query) -> Result<Vec<Registration>> {
        self.check_open()?;
        self.inner.registrations.find(query).await
    }

    /// Asks the default registrar for those whose topic has the parts asked for, and whose host and port are those asked for.
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
    pub async fn discover_filtered(&self, query: &Query) -> Result<Vec<Registration>> {
        self.check_open()?;
        self.inner.registrations.filter(query).await
    }

    /// Asks the default registrar for those of exactly the query's topic.
    pub async fn discover_exact(&self, query: &Query) -> Result<Vec<Registration>> {
        self.check_open()?;
        self.inner.registrations.exact(query).await
    }

    /// Asks the default registrar for all publishers, or all subscribers.
    pub async fn discover_all(&self, owner: OwnerType) -> Result<Vec<Registration>> {
        self.check_open()?;
        self.inner.registrations.all(owner).await
    }

    /// Ends the actor within `limit`: handlers finish the messages that they are at, and get no more; then requests that still wait
    /// for an answer end with [`Closed`](ErrorKind::Closed); then its connections send what they accepted, and have it confirmed.
    /// Until they are done, handlers may publish and make requests.
    ///
    /// Returns what is left. Subscriptions that somebody reads end, too: what they had received can still be taken, and is
    /// counted as not handled, but for what is left of the messages that came in together and that they are giving out. Calling it again, also after a call that was given up, returns the same counts. A handler may
    /// close its own actor; its own subscription is then not waited for.
    pub async fn close(&self, limit: Duration) -> Unfinished {
        self.end(limit, false).await
    }

    /// Ends the actor as [`close`](Self::close) does, but first has its handlers handle everything that was sent to them: their
    /// subscriptions are taken back, and what the proxy had passed on by then is handled. It is what a graceful shutdown calls: no
    /// request that the proxy had passed on goes unanswered, unless the time runs out, and then it is counted.
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
            // Meanwhile, and not only when handlers have left time for it.
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

    /// The same result, unless it says that a connection was closed because the actor was.
    fn closed_here<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error.kind() {
            ErrorKind::Closed if self.inner.closed.load(Ordering::Acquire) => closed(),
            _ => error,
        })
    }

    fn registration(&self, owner: OwnerType, topic: &Topic) -> Registration {
        Registration::new(owner, &self.inner.name, topic, self.proxy())
    }

    /// The connection through which the actor itself publishes to this proxy.
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

    /// The connections through which the actor itself publishes.
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
        // Under the lock, so that either this sees that the actor was closed, or closing sees the subscription.
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
        // A handler may ask while its actor closes, so it is the connection, and the replies, that say when it is too late.
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

    /// The replies that come through the proxy of this connection: subscribed to once.
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
                    // The actor may have been closed while it subscribed: whoever asks then must not wait for an answer.
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
