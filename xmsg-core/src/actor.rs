//! Actors: publish, subscribe, ask and answer, by topic.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use crate::pool::{Pool, PooledConnection};
use crate::registration::{OwnerType, Query, Registration};
use crate::request::Replies;
use crate::topic::{IntoTopic, IntoTopics};
use crate::{
    ActorId, Connection, Error, ErrorKind, Message, Messages, ProxyAddress, Registrar, RegistrarAddress,
    Result, Setup, Subscription, Topic,
};

/// How long [`Actor::close`] waits for handlers that are at work.
const HANDLERS_TIMEOUT: Duration = Duration::from_secs(30);

/// An actor: a name, a default proxy and registrar, and connections as it needs them. Clones share it; any task may use it.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_core::Result<()> {
/// use std::time::Duration;
/// use xmsg_core::{Actor, Message};
///
/// let actor = Actor::new("reporter").await?; // addresses from the environment, else localhost
/// let mut reports = actor.subscribe("report:sports").await?;
/// actor.publish(&Message::of("report:sports", "3:1")?).await?;
/// if let Some(report) = reports.next().await {
///     println!("{}", report?.value::<String>()?);
/// }
/// actor.close(Duration::from_secs(5)).await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Actor {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    id: ActorId,
    proxy: ProxyAddress,
    registrar: RegistrarAddress,
    registrations: Registrar,
    setup: Setup,
    pool: Pool,
    /// What the actor itself publishes goes through one connection for each proxy, so that it stays in order.
    connections: Mutex<HashMap<ProxyAddress, Arc<OnceCell<Connection>>>>,
    /// The one to the default proxy, once it is open: what most messages go through.
    connection: OnceLock<Connection>,
    replies: Mutex<HashMap<ProxyAddress, Arc<OnceCell<Arc<Replies>>>>>,
    subscriptions: Mutex<HashSet<SubscriptionKey>>,
    /// Ends subscriptions.
    stop: CancellationToken,
    /// Ends the tasks that dispatch replies.
    stop_replies: CancellationToken,
    handlers: TaskTracker,
    listeners: TaskTracker,
}

type SubscriptionKey = (ProxyAddress, BTreeSet<Topic>);

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
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
    /// An actor with the defaults: the proxy of `XMSG_PROXY` and the registrar of `XMSG_REGISTRAR`, or those of localhost.
    /// Connections are made when they are needed.
    pub async fn new(name: impl Into<String>) -> Result<Self> {
        Self::builder(name).build().await
    }

    /// An actor with other addresses or another setup.
    pub fn builder(name: impl Into<String>) -> ActorBuilder {
        ActorBuilder { name: name.into(), proxy: None, registrar: None, setup: None }
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
        &self.inner.proxy
    }

    /// Its default registrar.
    #[must_use]
    pub fn registrar(&self) -> &RegistrarAddress {
        &self.inner.registrar
    }

    /// A connection of one's own to this proxy, from the pool of the actor.
    pub async fn connection(&self, address: &ProxyAddress) -> Result<PooledConnection> {
        self.inner.pool.take(address).await
    }

    /// The pool of the actor.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    /// Publishes through the default proxy. Returns when the message was accepted, in the order of the calls; waits while the
    /// connection is full. A reply topic is taken off: for that there is [`request`](Self::request).
    pub async fn publish(&self, message: &Message) -> Result<()> {
        let message = message.without_reply_to()?;
        self.own_connection().await?.publish(&message).await
    }

    /// The same through another proxy.
    pub async fn publish_to(&self, address: &ProxyAddress, message: &Message) -> Result<()> {
        let message = message.without_reply_to()?;
        self.shared_connection(address).await?.publish(&message).await
    }

    /// Publishes through the default proxy and waits for the answer, for at most `timeout`. Dropping the future gives up.
    pub async fn request(&self, message: &Message, timeout: Duration) -> Result<Message> {
        self.request_to(&self.inner.proxy, message, timeout).await
    }

    /// [`request`](Self::request), by its name in other languages.
    pub async fn sync_publish(&self, message: &Message, timeout: Duration) -> Result<Message> {
        self.request(message, timeout).await
    }

    /// The same through another proxy.
    pub async fn request_to(
        &self,
        address: &ProxyAddress,
        message: &Message,
        timeout: Duration,
    ) -> Result<Message> {
        let mut message = message.clone();
        let replies = self.replies(address).await?;
        let mut expected = replies.expect();
        message.set_reply_to(expected.topic())?;
        let connection = self.shared_connection(address).await?;
        let topic = message.topic().clone();
        let ask = async {
            connection.publish(&message).await?;
            expected.answer().await.ok_or_else(closed)
        };
        tokio::time::timeout(timeout, ask).await.unwrap_or_else(|_| {
            let what = format!(
                "no answer to the request to {topic} within {} ms: does anybody answer there, through the proxy at {address}?",
                timeout.as_millis()
            );
            Err(Error::new(ErrorKind::Timeout, what))
        })
    }

    /// Answers that came too late, and were dropped.
    #[must_use]
    pub fn late_replies(&self) -> u64 {
        let listeners = lock(&self.inner.replies);
        listeners.values().filter_map(|cell| cell.get()).map(|replies| replies.late()).sum()
    }

    /// Subscribes through the default proxy, to one topic or to several. Returns once the proxy has confirmed it. Fails when the actor is already subscribed to just these
    /// topics there.
    ///
    /// ```no_run
    /// # async fn run(actor: xmsg_core::Actor) -> xmsg_core::Result<()> {
    /// use xmsg_core::Topic;
    ///
    /// let sports = actor.subscribe("report:sports").await?;
    /// let both = actor.subscribe(["report:sports", "report:weather"]).await?;
    /// let everything = actor.subscribe(Topic::everything()).await?;
    /// # Ok(()) }
    /// ```
    pub async fn subscribe(&self, topics: impl IntoTopics) -> Result<ActorSubscription> {
        self.subscribe_to(&self.inner.proxy, topics).await
    }

    /// The same through another proxy.
    pub async fn subscribe_to(
        &self,
        address: &ProxyAddress,
        topics: impl IntoTopics,
    ) -> Result<ActorSubscription> {
        self.check_open()?;
        let topics: BTreeSet<Topic> = topics.into_topics()?.into_iter().collect();
        let key = (address.clone(), topics.clone());
        if !lock(&self.inner.subscriptions).insert(key.clone()) {
            let names: Vec<_> = topics.iter().map(ToString::to_string).collect();
            let what = format!(
                "already subscribed to {} at {address}: end that subscription first",
                names.join(", ")
            );
            return Err(Error::new(ErrorKind::InvalidTopic, what));
        }
        let entry = Entry { actor: self.inner.clone(), key };
        let connection = self.shared_connection(address).await?;
        let messages = connection.subscribe(Vec::from_iter(topics)).await?;
        let stopped = Box::pin(self.inner.stop.clone().cancelled_owned());
        Ok(ActorSubscription { messages, stopped, _entry: entry })
    }

    /// Subscribes through the default proxy, and runs `handler` for every message, at most `concurrency` at a time; with 1, in order. What it
    /// returns, if it is a reply, is published. A handler that fails or panics is logged with the topic, and the next message is handled.
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
        let address = self.inner.proxy.clone();
        self.subscribe_with_to(&address, topics, concurrency, handler).await
    }

    /// The same through another proxy.
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
        let subscription = self.subscribe_to(address, topics).await?;
        let connection = self.shared_connection(address).await?.clone();
        let stop = self.inner.stop.child_token();
        let service = Service { subscription, connection, concurrency: concurrency.max(1), handler };
        let done = self.inner.handlers.spawn(service.run(stop.clone()));
        Ok(SubscriptionHandle { stop, done })
    }

    /// Makes known at the default registrar that the actor publishes, or subscribes to, this topic through its default proxy. It is
    /// renewed until [`deregister`](Self::deregister) or the end of the actor.
    pub async fn register(&self, owner: OwnerType, topic: impl IntoTopic, description: &str) -> Result<()> {
        self.check_open()?;
        let registration = self.registration(owner, &topic.into_topic()?).with_description(description);
        self.inner.registrations.register(&registration).await
    }

    /// Takes that back.
    pub async fn deregister(&self, owner: OwnerType, topic: impl IntoTopic) -> Result<()> {
        self.check_open()?;
        let registration = self.registration(owner, &topic.into_topic()?);
        self.inner.registrations.deregister(&registration).await
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

    fn registration(&self, owner: OwnerType, topic: &Topic) -> Registration {
        Registration::new(owner, &self.inner.name, topic, &self.inner.proxy)
    }

    /// Ends the actor: its subscriptions, then its handlers (for at most 30 s), then the dispatching of replies, then its connections, which
    /// send what they accepted for at most `linger`. Returns how many messages were not sent. It never hangs.
    pub async fn close(&self, linger: Duration) -> usize {
        let inner = &self.inner;
        inner.stop.cancel();
        inner.handlers.close();
        if tokio::time::timeout(HANDLERS_TIMEOUT, inner.handlers.wait()).await.is_err() {
            tracing::warn!(actor = inner.name, "closing although handlers are still at work");
        }
        inner.stop_replies.cancel();
        inner.listeners.close();
        inner.listeners.wait().await;
        inner.registrations.close().await;
        let connections: Vec<_> = std::mem::take(&mut *lock(&inner.connections)).into_values().collect();
        let closing =
            connections.iter().filter_map(|cell| cell.get()).map(|connection| connection.close(linger));
        let (unsent, of_pool) = tokio::join!(futures::future::join_all(closing), inner.pool.close(linger));
        unsent.into_iter().sum::<usize>() + of_pool
    }

    fn check_open(&self) -> Result<()> {
        if self.inner.stop.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    /// The connection through which the actor itself publishes, opened and checked once.
    async fn shared_connection(&self, address: &ProxyAddress) -> Result<Connection> {
        self.check_open()?;
        let cell = {
            let mut connections = lock(&self.inner.connections);
            match connections.get(address) {
                Some(cell) => cell.clone(),
                None => connections.entry(address.clone()).or_default().clone(),
            }
        };
        let connection = cell
            .get_or_try_init(|| async {
                let connection = Connection::with_setup(address.clone(), self.inner.setup.clone());
                connection.connect().await.map(|()| connection)
            })
            .await?;
        Ok(connection.clone())
    }

    /// The same with the default proxy, looked up once.
    async fn own_connection(&self) -> Result<&Connection> {
        self.check_open()?;
        if let Some(connection) = self.inner.connection.get() {
            return Ok(connection);
        }
        let connection = self.shared_connection(&self.inner.proxy).await?;
        Ok(self.inner.connection.get_or_init(|| connection))
    }

    /// The replies that come through this proxy: subscribed to once.
    async fn replies(&self, address: &ProxyAddress) -> Result<Arc<Replies>> {
        self.check_open()?;
        let cell = lock(&self.inner.replies).entry(address.clone()).or_default().clone();
        let replies = cell
            .get_or_try_init(|| async {
                let connection = self.shared_connection(address).await?;
                let replies = Replies::new(self.inner.id);
                let subscription = connection.subscribe(replies.subscription()).await?;
                let (listening, stop) =
                    (replies.clone().listen(subscription), self.inner.stop_replies.clone());
                self.inner.listeners.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = listening => {}
                    }
                });
                Ok::<_, Error>(replies)
            })
            .await?;
        Ok(replies.clone())
    }
}

/// Builds an [`Actor`].
#[derive(Debug)]
#[must_use = "nothing is made before `build`"]
pub struct ActorBuilder {
    name: String,
    proxy: Option<Result<ProxyAddress>>,
    registrar: Option<Result<RegistrarAddress>>,
    setup: Option<Setup>,
}

impl ActorBuilder {
    /// The default proxy: an address, or text such as `"10.0.0.7"`.
    pub fn proxy<A: TryInto<ProxyAddress, Error: fmt::Display>>(mut self, address: A) -> Self {
        self.proxy = Some(address.try_into().map_err(invalid));
        self
    }

    /// The default registrar: an address, or text such as `"10.0.0.8"`.
    pub fn registrar<A: TryInto<RegistrarAddress, Error: fmt::Display>>(mut self, address: A) -> Self {
        self.registrar = Some(address.try_into().map_err(invalid));
        self
    }

    /// How connections are set up.
    pub fn setup(mut self, setup: Setup) -> Self {
        self.setup = Some(setup);
        self
    }

    /// The actor, if everything makes sense. It connects when it has something to say.
    #[allow(clippy::unused_async, reason = "an actor may come to connect here")]
    pub async fn build(self) -> Result<Actor> {
        let variable = |name| std::env::var(name).ok();
        let proxy = match (self.proxy, variable("XMSG_PROXY")) {
            (Some(address), _) => address?,
            (None, Some(text)) => text.parse()?,
            (None, None) => ProxyAddress::default(),
        };
        let registrar = match (self.registrar, variable("XMSG_REGISTRAR")) {
            (Some(address), _) => address?,
            (None, Some(text)) => text.parse()?,
            (None, None) => RegistrarAddress::default(),
        };
        let setup = match self.setup {
            Some(setup) => setup,
            None => Setup::builder().build()?,
        };
        let stop = CancellationToken::new();
        let inner = Inner {
            registrations: Registrar::builder(registrar.clone())
                .sender(&self.name)
                .security(setup.security().clone())
                .build()?,
            name: self.name,
            id: ActorId::random(),
            proxy,
            registrar,
            pool: Pool::new(setup.clone()),
            setup,
            connections: Mutex::default(),
            connection: OnceLock::new(),
            replies: Mutex::default(),
            subscriptions: Mutex::default(),
            stop,
            stop_replies: CancellationToken::new(),
            handlers: TaskTracker::new(),
            listeners: TaskTracker::new(),
        };
        Ok(Actor { inner: Arc::new(inner) })
    }
}

/// A subscription's entry in the list of its actor.
struct Entry {
    actor: Arc<Inner>,
    key: SubscriptionKey,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.actor.subscriptions).remove(&self.key);
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

/// Messages of an actor's subscription: a [`Stream`](futures::Stream). It ends when the actor is closed; dropping it unsubscribes.
#[derive(Debug)]
pub struct ActorSubscription {
    messages: Subscription,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    _entry: Entry,
}

impl ActorSubscription {
    /// The next message, or an error for one that has not the three frames of xMsg; `None` once the actor is closed. Dropping the
    /// future loses nothing. A message can be kept, as one of [`Subscription::next`].
    pub async fn next(&mut self) -> Option<Result<Message>> {
        futures::StreamExt::next(self).await
    }

    /// The next messages, all that came in together, as [`Subscription::next_batch`] gives them; `None` once the actor is closed.
    /// Dropping the future loses nothing.
    pub async fn next_batch(&mut self) -> Option<Messages> {
        std::future::poll_fn(|cx| {
            if self.stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            self.messages.poll_next_batch(cx)
        })
        .await
    }
}

impl futures::Stream for ActorSubscription {
    type Item = Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Once for a batch: what came in with the last message is given out with it.
        if !self.messages.is_in_batch() && self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.messages).poll_next(cx)
    }
}

/// A running [`subscribe_with`](Actor::subscribe_with). Dropping the handle leaves it running.
#[derive(Debug)]
pub struct SubscriptionHandle {
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl SubscriptionHandle {
    /// Ends the subscription, and waits for handlers that are at work.
    pub async fn unsubscribe(self) {
        self.stop.cancel();
        // It ends by itself; handlers' panics are caught inside.
        let _ = self.done.await;
    }
}

/// What a handler may return: nothing, or a reply; either of them in a `Result`.
pub trait IntoReply: Send + 'static {
    /// The reply to publish, or why the handler failed.
    fn into_reply(self) -> Result<Option<Message>, Box<dyn std::error::Error + Send + Sync>>;
}

impl IntoReply for () {
    fn into_reply(self) -> Result<Option<Message>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(None)
    }
}

impl IntoReply for Message {
    fn into_reply(self) -> Result<Option<Message>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Some(self))
    }
}

impl IntoReply for Option<Message> {
    fn into_reply(self) -> Result<Option<Message>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self)
    }
}

impl<R: IntoReply, E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static> IntoReply
    for Result<R, E>
{
    fn into_reply(self) -> Result<Option<Message>, Box<dyn std::error::Error + Send + Sync>> {
        self.map_err(Into::into)?.into_reply()
    }
}

/// A subscription with a handler.
struct Service<H> {
    subscription: ActorSubscription,
    connection: Connection,
    concurrency: usize,
    handler: H,
}

impl<H, F> Service<H>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    async fn run(self, stop: CancellationToken) {
        let Self { mut subscription, connection, concurrency, handler } = self;
        let mut working = JoinSet::new();
        loop {
            let message = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                message = subscription.next(), if working.len() < concurrency => message,
                Some(finished) = working.join_next() => {
                    note(finished);
                    continue;
                }
            };
            match message {
                Some(Ok(message)) => {
                    let topic = message.topic().clone();
                    let work = handler(message);
                    let connection = connection.clone();
                    working.spawn(async move {
                        // A panic takes this task only; its topic has to be said outside.
                        let outcome = tokio::spawn(work).await;
                        match outcome.map(IntoReply::into_reply) {
                            Ok(Ok(None)) => {}
                            Ok(Ok(Some(reply))) => {
                                if let Err(error) = connection.publish(&reply).await {
                                    tracing::warn!(%topic, %error, "a reply was not sent");
                                }
                            }
                            Ok(Err(error)) => tracing::warn!(%topic, %error, "a handler failed"),
                            Err(panic) => tracing::error!(%topic, %panic, "a handler panicked"),
                        }
                    });
                }
                Some(Err(error)) => tracing::warn!(%error, "not a message of xMsg: passed over"),
                None => break,
            }
        }
        drop(subscription);
        while let Some(finished) = working.join_next().await {
            note(finished);
        }
    }
}

fn note(finished: Result<(), tokio::task::JoinError>) {
    if let Err(error) = finished {
        tracing::error!(%error, "handling a message ended badly");
    }
}

fn invalid(error: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidAddress, error.to_string())
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the actor is closed")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
