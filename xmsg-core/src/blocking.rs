//! Actors and connections for programs without an async runtime (feature `blocking`).
//!
//! The names are those of the async types; a call returns when it is done. Each [`Actor`] and each
//! [`Connection`] has its own runtime with one thread, which sends, receives and reconnects in the
//! background, and ends with the last clone. Handlers are plain functions that run in their own threads: they
//! may take long and make blocking calls. Several threads may use a handle.
//!
//! A blocking call within an async runtime would block its tasks, so it fails with [`ErrorKind::WouldBlock`]:
//! use the async types there. For this reason [`Actor::close`] and [`Actor::drain`] also return a `Result`.
//!
//! A handle that is dropped goes on sending what it has accepted, for its
//! [linger](crate::ConnectOptions::linger) at most, and `drop` waits for that. Within an async runtime,
//! `drop` returns at once, and a thread of its own waits.
//!
//! # Errors
//! A call returns the errors of the async call that its documentation names. If it waits, it also returns
//! [`ErrorKind::WouldBlock`]. Calls that make an actor or a connection start a thread, and fail when the
//! system cannot start it.
//!
//! ```no_run
//! # fn main() -> xmsg_core::Result<()> {
//! use std::time::Duration;
//! use xmsg_core::Message;
//! use xmsg_core::blocking::Actor;
//!
//! let actor = Actor::connect("reporter")?;
//! let reports = actor.subscribe("report:sports")?;
//! actor.publish(&Message::of("report:sports", "3:1")?)?;
//! actor.flush(Duration::from_secs(1))?;
//! for report in reports.take(1) {
//!     println!("{}", report?.value::<String>()?);
//! }
//! let left = actor.drain(Duration::from_secs(5))?;
//! assert!(left.is_nothing(), "{left}");
//! # Ok(()) }
//! ```

// Longer than 500 lines: a mirror of the async interface. Each method is one call, with its documentation.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};

use crate::actor::{self, IntoReply, service};
use crate::topic::{IntoTopic, IntoTopics};
use crate::{
    ConnectOptions, Error, ErrorKind, Message, Messages, OwnerType, ProxyAddress, Query, RegistrarAddress,
    Registration, Result, Unfinished,
};
use xmsg_zmq::deadline::Deadline;

/// The runtime of blocking handles.
#[derive(Debug)]
struct OwnedRuntime(Option<Runtime>);

impl OwnedRuntime {
    fn start() -> Result<Self> {
        check_context()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("xmsg")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::io(
                    "the runtime of a blocking handle can't start: are there descriptors and threads left?",
                    error,
                )
            })?;
        Ok(Self(Some(runtime)))
    }

    /// Runs the future on the calling thread and returns its output.
    fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        check_context()?;
        match &self.0 {
            Some(runtime) => Ok(runtime.block_on(future)),
            // Only `drop` takes the runtime, so this does not happen.
            None => Err(Error::new(ErrorKind::Closed, "the runtime of this handle has ended")),
        }
    }
}

impl OwnedRuntime {
    /// Runs the last future of a handle that is being dropped, and ends the runtime. Within an async runtime,
    /// whose threads must not block, a thread of its own waits for that.
    fn finish(&mut self, last: impl Future<Output = ()> + Send + 'static) {
        let background = Self(self.0.take());
        if check_context().is_ok() {
            let _ = background.wait(last);
            return;
        }
        let finish = move || {
            let _ = background.wait(last);
        };
        if let Err(error) = std::thread::Builder::new().name("xmsg-close".into()).spawn(finish) {
            tracing::warn!(%error, "a blocking handle was dropped, and its last messages could not be sent");
        }
    }
}

impl Drop for OwnedRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for the thread of a runtime is not allowed within another runtime.
            runtime.shutdown_background();
        }
    }
}

thread_local! {
    /// Whether this thread runs one of our handlers. It then belongs to a runtime, but may block.
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
}

/// Calls a handler in another thread, and waits for its result.
async fn call_apart<R: IntoReply>(handler: impl FnOnce() -> R + Send + 'static) -> R {
    let own = service::own();
    let call = move || {
        IN_HANDLER.set(true);
        let _handled = ResetInHandler;
        service::within(own, handler)
    };
    match tokio::task::spawn_blocking(call).await {
        Ok(reply) => reply,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this task ends with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Resets the flag when a handler ends, because the thread is used for other tasks, too.
struct ResetInHandler;

impl Drop for ResetInHandler {
    fn drop(&mut self) {
        IN_HANDLER.set(false);
    }
}

fn check_context() -> Result<()> {
    if IN_HANDLER.get() {
        return Ok(());
    }
    if Handle::try_current().is_ok() {
        let what = "a blocking call within an async runtime would stop its tasks: use the async types of xmsg_core, or `spawn_blocking`";
        return Err(Error::new(ErrorKind::WouldBlock, what));
    }
    Ok(())
}

/// An [actor](crate::Actor) whose calls block. Clones share one actor.
#[derive(Clone)]
pub struct Actor {
    inner: Arc<ActorInner>,
}

struct ActorInner {
    actor: crate::Actor,
    background: OwnedRuntime,
}

impl Drop for ActorInner {
    fn drop(&mut self) {
        let actor = self.actor.clone();
        self.background.finish(async move {
            let linger = actor.linger();
            let _ = actor.close(linger).await;
        });
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.actor.fmt(f)
    }
}

impl Actor {
    /// Makes an actor with the default options and connects it to its proxy. See [`crate::Actor::connect`].
    pub fn connect(name: impl Into<String>) -> Result<Self> {
        Self::builder(name).connect()
    }

    /// Begins to build an actor with other addresses or options. See [`crate::Actor::builder`].
    pub fn builder(name: impl Into<String>) -> ActorBuilder {
        ActorBuilder(crate::Actor::builder(name))
    }

    /// Returns the async actor behind this one, for calls that this type does not have.
    #[must_use]
    pub fn inner(&self) -> &crate::Actor {
        &self.inner.actor
    }

    /// Returns the name of the actor.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.actor.name()
    }

    /// Publishes a message and returns when it is accepted. See [`crate::Actor::publish`].
    pub fn publish(&self, message: &Message) -> Result<()> {
        self.wait(self.inner.actor.publish(message))
    }

    /// Publishes a message without waiting for room in the queue. See [`crate::Actor::try_publish`].
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        self.inner.actor.try_publish(message)
    }

    /// Waits until the proxies have confirmed everything that was published. See [`crate::Actor::flush`].
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        self.wait(self.inner.actor.flush(timeout))
    }

    /// Returns the number of messages that the proxies have not confirmed. See [`crate::Actor::unconfirmed`].
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.inner.actor.unconfirmed()
    }

    /// Publishes a request and waits for the reply. See [`crate::Actor::request`].
    pub fn request(&self, message: &Message, timeout: Duration) -> Result<Message> {
        self.wait(self.inner.actor.request(message, timeout))
    }

    /// Subscribes to topics and returns once the proxy has confirmed the subscription. See
    /// [`crate::Actor::subscribe`].
    pub fn subscribe(&self, topics: impl IntoTopics) -> Result<Subscription> {
        let messages = self.wait(self.inner.actor.subscribe(topics))?;
        Ok(Subscription { messages, owner: Owner::Actor(self.inner.clone()), misused: false })
    }

    /// Subscribes and calls `handler` for every message, for at most `concurrency` messages at the same time,
    /// each in a thread of its own. With a `concurrency` of 1, messages are handled in order. Handlers may
    /// take long and make blocking calls. See [`crate::Actor::subscribe_with`].
    ///
    /// A handler that is still running when the time limit of [`drain`](Self::drain) or
    /// [`close`](Self::close) has passed is counted as unhandled. It runs on, because a thread cannot be
    /// stopped.
    pub fn subscribe_with<H, R>(
        &self,
        topics: impl IntoTopics,
        concurrency: usize,
        handler: H,
    ) -> Result<SubscriptionHandle>
    where
        H: Fn(Message) -> R + Send + Sync + 'static,
        R: IntoReply,
    {
        let handler = Arc::new(handler);
        let apart = move |message| {
            let handler = handler.clone();
            call_apart(move || handler(message))
        };
        let handle = self.wait(self.inner.actor.subscribe_with(topics, concurrency, apart))?;
        Ok(SubscriptionHandle { handle, actor: self.inner.clone() })
    }

    /// Registers the actor as a publisher of this topic, or a subscriber to it. See
    /// [`crate::Actor::register`].
    pub fn register(&self, owner: OwnerType, topic: impl IntoTopic, description: &str) -> Result<()> {
        self.wait(self.inner.actor.register(owner, topic, description))
    }

    /// Removes a registration of the actor. See [`crate::Actor::deregister`].
    pub fn deregister(&self, owner: OwnerType, topic: impl IntoTopic) -> Result<()> {
        self.wait(self.inner.actor.deregister(owner, topic))
    }

    /// Asks the default registrar for registrations. See [`crate::Actor::discover`].
    pub fn discover(&self, query: &Query) -> Result<Vec<Registration>> {
        self.wait(self.inner.actor.discover(query))
    }

    /// Returns whether the actor is connected to its default proxy at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.actor.is_connected()
    }

    /// Ends the actor within `limit` and returns the counts of what is unfinished. See
    /// [`crate::Actor::close`].
    pub fn close(&self, limit: Duration) -> Result<Unfinished> {
        self.inner.background.wait(self.inner.actor.close(limit))
    }

    /// Ends the actor within `limit`, after its handlers have handled what was sent to them. See
    /// [`crate::Actor::drain`].
    pub fn drain(&self, limit: Duration) -> Result<Unfinished> {
        self.inner.background.wait(self.inner.actor.drain(limit))
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.inner.background.wait(call)?
    }
}

/// Builds an [`Actor`]. See [`crate::ActorBuilder`].
///
/// ```
/// use xmsg_core::ConnectOptions;
/// use xmsg_core::blocking::Actor;
/// let options = ConnectOptions::new().high_water_mark(16 << 20);
/// let actor = Actor::builder("daq").proxy("10.0.0.7").options(options).build()?;
/// assert_eq!(actor.name(), "daq");
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is made before `build` or `connect`"]
pub struct ActorBuilder(actor::ActorBuilder);

impl ActorBuilder {
    /// Sets the default proxy: an address, or text such as `"10.0.0.7"`.
    pub fn proxy<A: TryInto<ProxyAddress, Error: fmt::Display>>(self, address: A) -> Self {
        Self(self.0.proxy(address))
    }

    /// Sets the default registrar: an address, or text such as `"10.0.0.8"`.
    pub fn registrar<A: TryInto<RegistrarAddress, Error: fmt::Display>>(self, address: A) -> Self {
        Self(self.0.registrar(address))
    }

    /// Sets the options of the actor's connections.
    pub fn options(self, options: ConnectOptions) -> Self {
        Self(self.0.options(options))
    }

    /// Makes the actor, without connecting it: it connects when it first publishes or subscribes. See
    /// [`crate::ActorBuilder::build`].
    pub fn build(self) -> Result<Actor> {
        let background = OwnedRuntime::start()?;
        Ok(Actor { inner: Arc::new(ActorInner { actor: self.0.build()?, background }) })
    }

    /// Makes the actor and connects it to its default proxy. The error says why no proxy answers.
    pub fn connect(self) -> Result<Actor> {
        let actor = self.build()?;
        actor.wait(actor.inner.actor.connected())?;
        Ok(actor)
    }
}

/// A handle of a running handler. See [`crate::SubscriptionHandle`].
#[derive(Clone)]
pub struct SubscriptionHandle {
    handle: crate::SubscriptionHandle,
    actor: Arc<ActorInner>,
}

impl fmt::Debug for SubscriptionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

impl SubscriptionHandle {
    /// Has everything handled that was sent, and then ends the subscription. See
    /// [`crate::SubscriptionHandle::drain`].
    pub fn drain(&self, limit: Duration) -> Result<Unfinished> {
        self.actor.background.wait(self.handle.drain(limit))
    }

    /// Returns the number of messages that were received and are not yet handled. See
    /// [`crate::SubscriptionHandle::pending`].
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.handle.pending()
    }

    /// Returns the number of messages whose handler failed, or whose reply could not be sent. See
    /// [`crate::SubscriptionHandle::failed`].
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.handle.failed()
    }

    /// Returns whether the subscription has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Ends the subscription. See [`crate::SubscriptionHandle::close`].
    pub fn close(&self, limit: Duration) -> Result<Unfinished> {
        self.actor.background.wait(self.handle.close(limit))
    }
}

/// A [connection](crate::Connection) whose calls block. Any thread may use it, by reference.
pub struct Connection {
    inner: Arc<ConnectionInner>,
}

struct ConnectionInner {
    connection: Arc<crate::Connection>,
    background: OwnedRuntime,
}

impl Drop for ConnectionInner {
    fn drop(&mut self) {
        let connection = self.connection.clone();
        self.background.finish(async move {
            let linger = connection.linger();
            let _ = connection.close(linger).await;
        });
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.connection.fmt(f)
    }
}

impl Connection {
    /// Makes a connection with the default options, without opening it. See [`crate::Connection::new`].
    pub fn new<A: TryInto<ProxyAddress, Error: fmt::Display>>(address: A) -> Result<Self> {
        Self::with_options(address, ConnectOptions::new())
    }

    /// Makes a connection with these options, without opening it. See [`crate::Connection::with_options`].
    pub fn with_options<A: TryInto<ProxyAddress, Error: fmt::Display>>(
        address: A,
        options: ConnectOptions,
    ) -> Result<Self> {
        let connection = Arc::new(crate::Connection::with_options(address, options)?);
        Ok(Self { inner: Arc::new(ConnectionInner { connection, background: OwnedRuntime::start()? }) })
    }

    /// Opens the connection and checks it with the proxy. See [`crate::Connection::connect`].
    pub fn connect(&self) -> Result<()> {
        self.wait(self.inner.connection.connect())
    }

    /// Publishes a message and returns when it is accepted. See [`crate::Connection::publish`].
    pub fn publish(&self, message: &Message) -> Result<()> {
        self.wait(self.inner.connection.publish(message))
    }

    /// Publishes a message without waiting for room in the queue. See [`crate::Connection::try_publish`].
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        self.inner.connection.try_publish(message)
    }

    /// Waits until the proxy has confirmed everything that was published. See [`crate::Connection::flush`].
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        self.wait(self.inner.connection.flush(timeout))
    }

    /// Returns the number of messages that the proxy has not confirmed. See
    /// [`crate::Connection::unconfirmed`].
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.inner.connection.unconfirmed()
    }

    /// Subscribes to topics and returns once the proxy has confirmed the subscription. See
    /// [`crate::Connection::subscribe`].
    pub fn subscribe(&self, topics: impl IntoTopics) -> Result<Subscription> {
        let messages = self.wait(self.inner.connection.subscribe(topics))?;
        Ok(Subscription { messages, owner: Owner::Connection(self.inner.clone()), misused: false })
    }

    /// Returns whether the connection is open and connected at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.connection.is_connected()
    }

    /// Closes the connection within `limit` and returns the counts of what is unfinished. See
    /// [`crate::Connection::close`].
    pub fn close(&self, limit: Duration) -> Result<Unfinished> {
        self.inner.background.wait(self.inner.connection.close(limit))
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.inner.background.wait(call)?
    }
}

/// The owner of the runtime that a subscription uses. The subscription keeps the runtime alive.
enum Owner {
    Actor(Arc<ActorInner>),
    Connection(Arc<ConnectionInner>),
}

impl Owner {
    fn background(&self) -> &OwnedRuntime {
        match self {
            Self::Actor(actor) => &actor.background,
            Self::Connection(connection) => &connection.background,
        }
    }
}

/// The messages of the topics that were subscribed to, as an [`Iterator`] that waits for each of them.
/// Dropping it unsubscribes.
pub struct Subscription {
    messages: crate::Subscription,
    owner: Owner,
    /// Whether the iterator was used within an async runtime and has returned that error.
    misused: bool,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.messages.fmt(f)
    }
}

impl Subscription {
    /// Waits for the next message for at most `timeout`. Returns `None` once the subscription has ended.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout) when no message arrives in time. If there is no connection to the
    /// proxy either, the kind is that of the reason, such as [`Refused`](ErrorKind::Refused) or
    /// [`NotConnected`](ErrorKind::NotConnected). The subscription is made again after a reconnection.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Result<Message>> {
        let next = self.owner.background().wait(Deadline::after(timeout).limit(self.messages.next()));
        match next {
            Ok(Ok(message)) => message,
            Ok(Err(_)) => {
                let what = format!("no message came within {timeout:?}");
                Some(Err(match self.messages.failure() {
                    None => Error::new(ErrorKind::Timeout, what),
                    Some(reason) => {
                        let kind = Error::kind_without_connection(&reason);
                        Error::new(kind, format!("{what}: there is no connection to the proxy"))
                            .with_source(reason)
                    }
                }))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Waits for the next messages, all that were received together. See [`crate::Subscription::next_batch`].
    pub fn next_batch(&mut self) -> Result<Option<Messages>> {
        self.owner.background().wait(self.messages.next_batch())
    }

    /// Ends the subscription after the last message that the proxy had sent. See
    /// [`crate::Subscription::drain`].
    pub fn drain(&mut self) {
        self.messages.drain();
    }
}

impl Iterator for Subscription {
    type Item = Result<Message>;

    fn next(&mut self) -> Option<Result<Message>> {
        match self.owner.background().wait(self.messages.next()) {
            Ok(message) => message,
            // The error is returned only once, so that a loop over the messages ends.
            Err(error) => (!std::mem::replace(&mut self.misused, true)).then_some(Err(error)),
        }
    }
}
