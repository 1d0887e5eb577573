//! Actors and connections for programs without an async runtime (feature `blocking`).
//!
//! The names are those of the async types; a call returns when it is done. Each [`Actor`] and each [`Connection`] has a runtime of its own
//! with one thread, which sends, receives and reconnects in the background, and ends with the last clone. Handlers are plain functions, which
//! run in threads of their own: they may take their time, and make blocking calls. Handles may be used from several threads.
//!
//! A blocking call would stop the tasks of an async runtime, so within one it fails with [`ErrorKind::WouldBlock`]: use the async types
//! there. That is why [`Actor::close`] and [`Actor::drain`] return a `Result`, too.
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

/// How long a handle that is dropped goes on sending what it accepted; [`Actor::close`] tells what came of it.
const LINGER: Duration = Duration::from_secs(5);

/// The runtime behind blocking handles.
#[derive(Debug)]
struct Background(Option<Runtime>);

impl Background {
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

    /// The output of the future, which runs on the calling thread.
    fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        check_context()?;
        match &self.0 {
            Some(runtime) => Ok(runtime.block_on(future)),
            // It is emptied in `drop` and nowhere else.
            None => Err(Error::new(ErrorKind::Closed, "the runtime of this handle has ended")),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // To wait for its thread is not allowed within another runtime.
            runtime.shutdown_background();
        }
    }
}

thread_local! {
    /// Whether this thread runs a handler of ours: it belongs to a runtime, and may wait all the same.
    static HANDLES: Cell<bool> = const { Cell::new(false) };
}

/// A handler that is called in a thread of its own for each message.
async fn call_apart<R: IntoReply>(handler: impl FnOnce() -> R + Send + 'static) -> R {
    let own = service::own();
    let call = move || {
        HANDLES.set(true);
        let _handled = Handled;
        service::within(own, handler)
    };
    match tokio::task::spawn_blocking(call).await {
        Ok(reply) => reply,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The end of a handler: the thread is used for other things, too.
struct Handled;

impl Drop for Handled {
    fn drop(&mut self) {
        HANDLES.set(false);
    }
}

fn check_context() -> Result<()> {
    if HANDLES.get() {
        return Ok(());
    }
    if Handle::try_current().is_ok() {
        let what = "a blocking call within an async runtime would stop its tasks: use the async types of xmsg_core, or `spawn_blocking`";
        return Err(Error::new(ErrorKind::WouldBlock, what));
    }
    Ok(())
}

/// An [actor](crate::Actor) whose calls block. Clones share it.
#[derive(Clone)]
pub struct Actor {
    inner: Arc<ActorInner>,
}

struct ActorInner {
    actor: crate::Actor,
    background: Background,
}

impl Drop for ActorInner {
    fn drop(&mut self) {
        let _ = self.background.wait(self.actor.close(LINGER));
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.actor.fmt(f)
    }
}

impl Actor {
    /// An actor with the defaults, connected to its proxy, as [`crate::Actor::connect`] makes it.
    pub fn connect(name: impl Into<String>) -> Result<Self> {
        Self::builder(name).connect()
    }

    /// An actor with other addresses or options. See [`crate::Actor::builder`].
    pub fn builder(name: impl Into<String>) -> ActorBuilder {
        ActorBuilder(crate::Actor::builder(name))
    }

    /// The async actor behind this one: for what has no call here.
    #[must_use]
    pub fn inner(&self) -> &crate::Actor {
        &self.inner.actor
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.actor.name()
    }

    /// Publishes a message; returns when it was accepted. See [`crate::Actor::publish`].
    pub fn publish(&self, message: &Message) -> Result<()> {
        self.wait(self.inner.actor.publish(message))
    }

    /// Publishes a message without waiting for room. See [`crate::Actor::try_publish`].
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        self.inner.actor.try_publish(message)
    }

    /// Returns once the proxy has everything that was published. See [`crate::Actor::flush`].
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        self.wait(self.inner.actor.flush(timeout))
    }

    /// Messages that the proxy is not known to have. See [`crate::Actor::unconfirmed`].
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.inner.actor.unconfirmed()
    }

    /// Publishes a message and waits for the answer. See [`crate::Actor::request`].
    pub fn request(&self, message: &Message, timeout: Duration) -> Result<Message> {
        self.wait(self.inner.actor.request(message, timeout))
    }

    /// Subscribes; returns once the proxy has confirmed it. See [`crate::Actor::subscribe`].
    pub fn subscribe(&self, topics: impl IntoTopics) -> Result<Subscription> {
        let messages = self.wait(self.inner.actor.subscribe(topics))?;
        Ok(Subscription { messages, owner: Owner::Actor(self.inner.clone()), misused: false })
    }

    /// Subscribes, and calls `handler` for every message, at most `concurrency` at a time, each in a thread of its own; with 1, in order. It
    /// may take its time, and make blocking calls. See [`crate::Actor::subscribe_with`].
    ///
    /// A handler that is not done when the time of [`drain`](Self::drain) or [`close`](Self::close) is over is counted as unhandled, and left
    /// to itself: a thread can't be stopped.
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

    /// Makes known that it publishes, or subscribes to, this topic. See [`crate::Actor::register`].
    pub fn register(&self, owner: OwnerType, topic: impl IntoTopic, description: &str) -> Result<()> {
        self.wait(self.inner.actor.register(owner, topic, description))
    }

    /// Takes a registration back. See [`crate::Actor::deregister`].
    pub fn deregister(&self, owner: OwnerType, topic: impl IntoTopic) -> Result<()> {
        self.wait(self.inner.actor.deregister(owner, topic))
    }

    /// Asks the registrar. See [`crate::Actor::discover`].
    pub fn discover(&self, query: &Query) -> Result<Vec<Registration>> {
        self.wait(self.inner.actor.discover(query))
    }

    /// Whether it is connected to its proxy at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.actor.is_connected()
    }

    /// Ends it within `limit`, and says what is left. See [`crate::Actor::close`].
    pub fn close(&self, limit: Duration) -> Result<Unfinished> {
        self.inner.background.wait(self.inner.actor.close(limit))
    }

    /// Ends it within `limit`, after its handlers have handled what they were sent. See [`crate::Actor::drain`].
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
    /// The default proxy: an address, or text such as `"10.0.0.7"`.
    pub fn proxy<A: TryInto<ProxyAddress, Error: fmt::Display>>(self, address: A) -> Self {
        Self(self.0.proxy(address))
    }

    /// The default registrar: an address, or text such as `"10.0.0.8"`.
    pub fn registrar<A: TryInto<RegistrarAddress, Error: fmt::Display>>(self, address: A) -> Self {
        Self(self.0.registrar(address))
    }

    /// Options of its connections.
    pub fn options(self, options: ConnectOptions) -> Self {
        Self(self.0.options(options))
    }

    /// The actor, if everything makes sense. It connects when it has something to say.
    pub fn build(self) -> Result<Actor> {
        let background = Background::start()?;
        Ok(Actor { inner: Arc::new(ActorInner { actor: self.0.build()?, background }) })
    }

    /// The actor, connected to its default proxy. Its error says why no proxy answers there.
    pub fn connect(self) -> Result<Actor> {
        let actor = self.build()?;
        actor.wait(actor.inner.actor.connected())?;
        Ok(actor)
    }
}

/// A running handler. See [`crate::SubscriptionHandle`].
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
    /// Has everything handled that had been sent, and ends. See [`crate::SubscriptionHandle::drain`].
    pub fn drain(&self, limit: Duration) -> Result<Unfinished> {
        self.actor.background.wait(self.handle.drain(limit))
    }

    /// Messages that were received and are not yet handled. See [`crate::SubscriptionHandle::pending`].
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.handle.pending()
    }

    /// Messages whose handler failed, or whose reply could not be sent. See [`crate::SubscriptionHandle::failed`].
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.handle.failed()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Ends it. See [`crate::SubscriptionHandle::close`].
    pub fn close(&self, limit: Duration) -> Result<Unfinished> {
        self.actor.background.wait(self.handle.close(limit))
    }
}

/// A [connection](crate::Connection) whose calls block. It is used from any thread, by reference.
pub struct Connection {
    inner: Arc<ConnectionInner>,
}

struct ConnectionInner {
    connection: crate::Connection,
    background: Background,
}

impl Drop for ConnectionInner {
    fn drop(&mut self) {
        let _ = self.background.wait(self.connection.close(LINGER));
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.connection.fmt(f)
    }
}

impl Connection {
    /// A connection with the default options, not opened yet. See [`crate::Connection::new`].
    pub fn new<A: TryInto<ProxyAddress, Error: fmt::Display>>(address: A) -> Result<Self> {
        Self::with_options(address, ConnectOptions::new())
    }

    /// A connection with these options, not opened yet. See [`crate::Connection::with_options`].
    pub fn with_options<A: TryInto<ProxyAddress, Error: fmt::Display>>(
        address: A,
        options: ConnectOptions,
    ) -> Result<Self> {
        let connection = crate::Connection::with_options(address, options)?;
        Ok(Self { inner: Arc::new(ConnectionInner { connection, background: Background::start()? }) })
    }

    /// Opens it and has the proxy confirm it. See [`crate::Connection::connect`].
    pub fn connect(&self) -> Result<()> {
        self.wait(self.inner.connection.connect())
    }

    /// Publishes a message; returns when it was accepted. See [`crate::Connection::publish`].
    pub fn publish(&self, message: &Message) -> Result<()> {
        self.wait(self.inner.connection.publish(message))
    }

    /// Publishes a message without waiting for room. See [`crate::Connection::try_publish`].
    pub fn try_publish(&self, message: &Message) -> Result<()> {
        self.inner.connection.try_publish(message)
    }

    /// Returns once the proxy has everything that was published. See [`crate::Connection::flush`].
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        self.wait(self.inner.connection.flush(timeout))
    }

    /// Messages that the proxy is not known to have. See [`crate::Connection::unconfirmed`].
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.inner.connection.unconfirmed()
    }

    /// Subscribes; returns once the proxy has confirmed it. See [`crate::Connection::subscribe`].
    pub fn subscribe(&self, topics: impl IntoTopics) -> Result<Subscription> {
        let messages = self.wait(self.inner.connection.subscribe(topics))?;
        Ok(Subscription { messages, owner: Owner::Connection(self.inner.clone()), misused: false })
    }

    /// Whether it is open and connected at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.connection.is_connected()
    }

    /// Ends it within `limit`, and says what is left. See [`crate::Connection::close`].
    pub fn close(&self, limit: Duration) -> Result<Unfinished> {
        self.inner.background.wait(self.inner.connection.close(limit))
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.inner.background.wait(call)?
    }
}

/// Whose runtime a subscription uses. It is kept for as long as the subscription.
enum Owner {
    Actor(Arc<ActorInner>),
    Connection(Arc<ConnectionInner>),
}

impl Owner {
    fn background(&self) -> &Background {
        match self {
            Self::Actor(actor) => &actor.background,
            Self::Connection(connection) => &connection.background,
        }
    }
}

/// Messages of the topics that were subscribed to: an [`Iterator`] that waits for each of them. Dropping it unsubscribes.
pub struct Subscription {
    messages: crate::Subscription,
    owner: Owner,
    /// It was used where it can't be, which was told.
    misused: bool,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.messages.fmt(f)
    }
}

impl Subscription {
    /// The next message, if one comes within `timeout`: [`Timeout`](ErrorKind::Timeout) says that none did. If there is no connection to
    /// the proxy either, the kind is that of the reason, such as [`Refused`](ErrorKind::Refused) or
    /// [`NotConnected`](ErrorKind::NotConnected); the subscription is made again as soon as there is one. `None` once the subscription
    /// has ended.
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

    /// The next messages, all that came in together. See [`crate::Subscription::next_batch`].
    pub fn next_batch(&mut self) -> Result<Option<Messages>> {
        self.owner.background().wait(self.messages.next_batch())
    }

    /// Ends it behind the last message that the proxy had sent. See [`crate::Subscription::drain`].
    pub fn drain(&mut self) {
        self.messages.drain();
    }
}

impl Iterator for Subscription {
    type Item = Result<Message>;

    fn next(&mut self) -> Option<Result<Message>> {
        match self.owner.background().wait(self.messages.next()) {
            Ok(message) => message,
            // Told once: a loop over the messages has to end.
            Err(error) => (!std::mem::replace(&mut self.misused, true)).then_some(Err(error)),
        }
    }
}
