//! REQ: sends a request, receives its reply, and only then sends the next request. A second request waits for
//! the first, and is not refused.

// Longer than 500 lines: the public interface of one type with its documentation. One request over one
// connection is in a module of its own.

mod exchange;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::exchange::{Accepted, Connection, Envelope, Failure, Live, Outcome};
use crate::deadline::Deadline;
use crate::events::{EventChannel, SocketEvents};
use crate::hub::{Hub, Owner};
use crate::link::Link;
use crate::lock::lock;
use crate::options::{HasIdentity, Receives, Settings};
use crate::role::RoutedRole;
use crate::{Endpoint, Multipart, SocketOptions};
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::{Limited, MessageLimits, SocketType, Violation};

/// The longest pause before a request is sent again over a new connection.
const RESEND_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The options that only a [`Requester`] has.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RequestSettings {
    /// See [`SocketOptions::correlate`].
    pub correlate: bool,
}

/// Options that only REQ has.
impl SocketOptions<Requester> {
    /// Sends a number in front of each request, which its reply returns (`ZMQ_REQ_CORRELATE`). A late reply
    /// is recognized by it, so a request that times out after it was written leaves its connection to the
    /// next request. Every REP peer returns the number; a ROUTER peer has to. Default `false`.
    #[must_use]
    pub fn correlate(self, correlate: bool) -> Self {
        self.with(|settings| settings.request.correlate = correlate)
    }
}

/// A socket that sends requests to REP or ROUTER peers, one after another, and returns their replies. With
/// several peers, requests go to them in round robin. A peer without a connection is skipped, and if a
/// connection breaks, the request goes to another peer. Clones share the socket: requests of several tasks
/// are served in FIFO order.
///
/// A request that times out, or whose future is dropped, ends its connection. What was not written by then is
/// never written, and a late reply can't be mistaken for that of the next request, which uses a new
/// connection. If a connection breaks before the reply, it is re-established, and the request is sent again
/// while there is time. So a request may be carried out twice, and should be idempotent.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use std::time::Duration;
/// use xmsg_zmq::{Replier, Requester, SocketOptions};
/// let replier = Replier::new(SocketOptions::default());
/// let requester = Requester::new(SocketOptions::default());
/// replier.connect(requester.bind(&"tcp://127.0.0.1:0".parse()?).await?); // either side may be the one that binds
/// let answering = async {
///     let (path, request) = replier.recv().await.unwrap();
///     replier.try_reply(&path, request)
/// };
/// let request = requester.request(["ping"], Duration::from_secs(10));
/// let (reply, answered) = futures::join!(request, answering);
/// assert_eq!(reply?.frames(), ["ping"]);
/// answered
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Requester {
    inner: Arc<Inner>,
}

impl Receives for Requester {}

impl HasIdentity for Requester {}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    /// The channel for events of all connections.
    events: EventChannel,
    /// Admits one request at a time. It is fair.
    turn: Semaphore,
    services: Mutex<Services>,
    /// The hub of peers that have connected to this socket, once it is bound.
    bound: OnceLock<Owner>,
    /// The number of the next request.
    number: AtomicU32,
    closed: CancellationToken,
}

/// The endpoints that requests go to in round robin.
#[derive(Debug, Default)]
struct Services {
    all: Vec<Arc<Service>>,
    /// The index of the next target among these endpoints and the peers that have connected.
    next: usize,
}

/// One endpoint that requests go to.
#[derive(Debug)]
struct Service {
    endpoint: Endpoint,
    /// The connection while no request uses it. The present request takes it, and puts it back if no reply is
    /// outstanding.
    idle: Mutex<Option<Live>>,
    /// The limits that the peer has announced last.
    limits: Mutex<MessageLimits>,
}

impl Service {
    fn new(endpoint: Endpoint, settings: &Settings) -> Arc<Self> {
        Arc::new(Self { endpoint, idle: Mutex::default(), limits: Mutex::new(settings.send_limits()) })
    }

    /// Takes the idle connection, or makes a new one with the limits that the peer has announced last.
    fn live(&self, inner: &Inner) -> Live {
        let idle = self.idle().take();
        idle.unwrap_or_else(|| {
            let live = Live::connect(self.endpoint.clone(), inner.settings.clone(), inner.events.clone());
            let known = *self.limits();
            drop(live.link.send_queue.limit(known));
            live
        })
    }

    /// Whether there is a connection, or none was tried yet.
    fn may_answer(&self) -> bool {
        self.idle().as_ref().is_none_or(|live| live.link.is_connected())
    }

    fn limits(&self) -> MutexGuard<'_, MessageLimits> {
        lock(&self.limits)
    }

    fn idle(&self) -> MutexGuard<'_, Option<Live>> {
        lock(&self.idle)
    }
}

/// The target of a request.
#[derive(Clone, Debug)]
enum Target {
    /// A peer at this endpoint.
    Endpoint(Arc<Service>),
    /// A peer that has connected to us.
    Peer(Arc<Hub>, Arc<Link>),
}

impl Target {
    fn name(&self) -> String {
        match self {
            Self::Endpoint(service) => service.endpoint.to_string(),
            Self::Peer(_, link) => link.state().name.to_string(),
        }
    }

    fn connection(&self, inner: &Inner) -> Connection {
        match self {
            Self::Endpoint(service) => Connection::Ours(service.live(inner)),
            Self::Peer(hub, link) => Connection::Theirs(Accepted::new(hub.clone(), link.clone())),
        }
    }

    fn cut_off(&self, request: &[Bytes]) -> Error {
        let size = xmsg_zmtp::encoded_len(request);
        let what = format!(
            "{} has ended the connection twice in the middle of a request of {size} bytes: is it above a limit there?",
            self.name()
        );
        Error::new(ErrorKind::TooLarge, what)
    }

    fn unreadable(&self, violation: Violation) -> Error {
        let (kind, what) = match &violation {
            Violation::TooLarge { what: Limited::Message | Limited::Frames | Limited::Box, .. } => {
                (ErrorKind::TooLarge, "is larger than this socket takes")
            }
            _ => (ErrorKind::Protocol, "breaks the protocol"),
        };
        let what = format!("the reply from {} {what}: {violation}", self.name());
        Error::new(kind, what).with_source(violation)
    }
}

impl Inner {
    fn services(&self) -> MutexGuard<'_, Services> {
        lock(&self.services)
    }

    /// Returns the next target, and whether there are or may be others. Returns `None` if there is no target.
    /// Endpoints whose connection is being re-established are skipped while there is another peer.
    fn next_target(&self) -> Option<(Target, bool)> {
        let peers: Vec<_> = self.bound.get().into_iter().flat_map(|hub| connected(hub)).collect();
        let mut services = self.services();
        let endpoints = services.all.len();
        let count = endpoints + peers.len();
        let start = services.next.checked_rem(count)?;
        let may_answer = |place: &usize| services.all.get(*place).is_none_or(|service| service.may_answer());
        let place = (0..count).map(|step| (start + step) % count).find(may_answer).unwrap_or(start);
        services.next = place + 1;
        let target = match services.all.get(place) {
            Some(service) => Target::Endpoint(service.clone()),
            None => Target::Peer(self.bound.get()?.hub(), peers[place - endpoints].clone()),
        };
        Some((target, count > 1 || self.bound.get().is_some()))
    }

    /// Leaves a connection to the next request.
    fn put_back(&self, target: &Target, connection: Connection) {
        if let (Target::Endpoint(service), Connection::Ours(live)) = (target, connection) {
            *service.idle() = Some(live);
            let is_gone = !self.services().all.iter().any(|other| Arc::ptr_eq(other, service));
            if is_gone || self.closed.is_cancelled() {
                // `close` and `disconnect` may have looked for the connection before.
                service.idle().take();
            }
        }
    }

    /// Waits for a peer to connect, but no longer than `pause`, since an endpoint may be added, too.
    async fn arrival(&self, pause: Duration) {
        let Some(hub) = self.bound.get() else {
            tokio::time::sleep(pause).await;
            return;
        };
        let somebody = hub.wait_until(|| !connected(hub).is_empty());
        if let Ok(Err(_)) = tokio::time::timeout(pause, somebody).await {
            // The socket is being closed.
            tokio::time::sleep(pause).await;
        }
    }
}

/// Returns the peers that are connected to this hub.
fn connected(hub: &Hub) -> Vec<Arc<Link>> {
    let is_there = |link: &&Arc<Link>| link.is_connected() && !link.stop.is_cancelled();
    hub.links().iter().filter(is_there).cloned().collect()
}

/// The error for a request that got no reply.
#[derive(Debug)]
pub struct Unanswered {
    /// Why there is no reply.
    pub error: Error,
    /// Whether the request was written to a connection, and may have been carried out. If not, it will never
    /// be sent.
    pub sent: bool,
}

impl Requester {
    /// Creates a requester without peers. Requests wait for one.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let inner = Inner {
            // A connection that is given up has nothing more to send.
            settings: Settings { linger: Duration::ZERO, ..options.into_settings() },
            events: EventChannel::new(),
            turn: Semaphore::new(1),
            services: Mutex::default(),
            bound: OnceLock::new(),
            number: AtomicU32::new(fastrand::u32(..)),
            closed: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Creates a requester whose requests go to this endpoint. It connects with the first request.
    #[must_use]
    pub fn connecting_to(endpoint: Endpoint, options: SocketOptions<Self>) -> Self {
        let requester = Self::new(options);
        requester.connect(endpoint);
        requester
    }

    /// Adds an endpoint for requests, from the next one on. It does nothing if the endpoint is known already.
    pub fn connect(&self, endpoint: Endpoint) {
        let mut services = self.inner.services();
        if services.all.iter().all(|service| service.endpoint != endpoint) {
            services.all.push(Service::new(endpoint, &self.inner.settings));
        }
    }

    /// Removes an endpoint for requests. A request that is in progress there continues. Returns whether it
    /// was known. Without any endpoint, requests wait for one.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn disconnect(&self, endpoint: &Endpoint) -> bool {
        let mut services = self.inner.services();
        let found = services.all.iter().position(|service| service.endpoint == *endpoint);
        let gone = found.map(|place| services.all.remove(place));
        drop(services);
        gone.map(|service| service.idle().take()).is_some()
    }

    /// Binds the socket, so that peers can connect, to which requests go, too. Returns the endpoint with its
    /// actual port. A socket may be bound to many endpoints.
    ///
    /// # Errors
    ///
    /// The endpoint cannot be bound, the identity is invalid, or the socket is closed.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        let inner = &self.inner;
        if inner.closed.is_cancelled() {
            return Err(closed());
        }
        let hub = inner.bound.get_or_init(|| {
            let role = Arc::new(RoutedRole::new(SocketType::Req));
            Owner::with_parent(role, inner.settings.clone(), inner.events.clone())
        });
        let bound = hub.bind(endpoint).await?;
        if inner.closed.is_cancelled() {
            hub.close(Duration::ZERO).await;
            return Err(closed());
        }
        Ok(bound)
    }

    /// Stops accepting connections at this endpoint, which is given with its actual port and is free when
    /// this returns. Existing connections stay. Returns whether the socket was bound to it.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn unbind(&self, endpoint: &Endpoint) -> bool {
        self.inner.bound.get().is_some_and(|hub| hub.unbind_from(endpoint))
    }

    /// Returns the number of peers that have connected to this socket.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.inner.bound.get().map_or(0, |hub| connected(hub).len())
    }

    /// Returns a stream of events about the connections from now on.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.inner.events.observe()
    }

    /// Sends a request and returns its reply. `timeout` counts from the call and includes waiting for earlier
    /// requests and connecting. [`Duration::MAX`] means for ever.
    ///
    /// # Errors
    ///
    /// - [`Timeout`](ErrorKind::Timeout): there was no reply in time. If there was no connection either, the
    ///   kind says why, such as [`Refused`](ErrorKind::Refused) or [`UnknownHost`](ErrorKind::UnknownHost).
    /// - [`Closed`](ErrorKind::Closed): the requester was closed.
    /// - [`NotAllowed`](ErrorKind::NotAllowed) and [`WrongPort`](ErrorKind::WrongPort): these are returned at
    ///   once, since waiting does not help.
    /// - [`TooLarge`](ErrorKind::TooLarge): the request exceeds our limits, or those that the peer has
    ///   announced; a peer that has announced none ended the connection twice in the middle of it; or the
    ///   reply exceeds our limits. The request is not sent again.
    /// - [`Protocol`](ErrorKind::Protocol): the reply violates the protocol.
    /// - [`InvalidMessage`](ErrorKind::InvalidMessage): the request has no frames.
    ///
    /// After a reply that is too large or violates the protocol, the request may have been carried out.
    pub async fn request(&self, message: impl Into<Multipart>, timeout: Duration) -> Result<Multipart> {
        self.try_request(&message.into(), timeout).await.map_err(|unanswered| unanswered.error)
    }

    /// Sends a request like [`request`](Self::request). An error also says whether the request may have been
    /// carried out.
    ///
    /// # Errors
    ///
    /// The same as for [`request`](Self::request).
    pub async fn try_request(&self, message: &Multipart, timeout: Duration) -> Result<Multipart, Unanswered> {
        let deadline = Deadline::after(timeout);
        let inner = &*self.inner;
        if message.frames().is_empty() {
            let error = Error::new(ErrorKind::InvalidMessage, "a request needs at least one frame");
            return Err(Unanswered { error, sent: false });
        }
        let _turn = match deadline.limit(inner.turn.acquire()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(Unanswered { error: closed(), sent: false }),
            Err(_) => {
                let hint = "other requests are waiting before this one";
                return Err(Unanswered { error: self.no_reply(timeout, hint, None), sent: false });
            }
        };
        let correlate = inner.settings.request.correlate;
        let number = correlate.then(|| inner.number.fetch_add(1, Ordering::Relaxed));
        let request = Envelope::new(number, message.frames());
        // The connection is held here and not in `inner`, so that dropping this future ends it.
        let mut current: Option<(Target, Connection)> = None;
        let (mut failure, mut sent) = (None, false);
        let exchange = async {
            let mut cuts = 0;
            // The number of endpoints that could not be reached, one after another.
            let mut tried = 0;
            let mut pause = inner.settings.reconnect_min.min(RESEND_PAUSE_MAX);
            loop {
                let Some((target, has_others)) = inner.next_target() else {
                    inner.arrival(pause).await;
                    continue;
                };
                let connection = target.connection(inner);
                let (target, connection) = current.insert((target, connection));
                let outcome = connection.exchange(&request, &mut failure, has_others).await;
                if let Target::Endpoint(service) = target {
                    *service.limits() = connection.link().send_queue.limits();
                }
                match outcome {
                    Outcome::Reply(reply) => return Ok(reply),
                    Outcome::Refused(error) => {
                        // Nothing was sent, so no reply is outstanding.
                        if let Some((target, connection)) = current.take() {
                            inner.put_back(&target, connection);
                        }
                        return Err(Some(error));
                    }
                    Outcome::Unreadable(violation) => {
                        sent = true;
                        return Err(Some(target.unreadable(violation)));
                    }
                    Outcome::CutOff if cuts > 0 => return Err(Some(target.cut_off(request.frames()))),
                    Outcome::CutOff => cuts += 1,
                    Outcome::Hopeless(error) => {
                        let what = format!("no request can be made at {}", target.name());
                        let error = Error::new(error.kind(), what).with_source(error);
                        if !has_others {
                            return Err(Some(error));
                        }
                        failure = Some(Failure { connected: false, error });
                    }
                    Outcome::Broken => {}
                    Outcome::Unreachable => {
                        // This connection goes on reconnecting while another peer is tried.
                        if let Some((target, connection)) = current.take() {
                            inner.put_back(&target, connection);
                        }
                        tried += 1;
                        if tried < inner.services().all.len() {
                            continue;
                        }
                        tried = 0;
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(RESEND_PAUSE_MAX);
                        continue;
                    }
                }
                sent |= connection.give_up().await;
                current = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RESEND_PAUSE_MAX);
            }
        };
        let result = tokio::select! {
            biased;
            () = inner.closed.cancelled() => Err(Some(closed())),
            result = deadline.limit(exchange) => result.unwrap_or(Err(None)),
        };
        if let Some((target, mut connection)) = current {
            if correlate && result.is_err() && connection.is_asked() && connection.is_written() {
                sent = true;
                connection.forget();
            }
            if connection.is_asked() {
                sent |= connection.give_up().await;
            } else {
                // Nothing was sent over it.
                inner.put_back(&target, connection);
            }
        }
        match result {
            Ok(reply) => Ok(reply),
            Err(error) => {
                let hint = if sent { "it was sent" } else { "is it running there?" };
                Err(Unanswered {
                    error: error.unwrap_or_else(|| self.no_reply(timeout, hint, failure)),
                    sent,
                })
            }
        }
    }

    /// Returns the endpoints that requests go to.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.inner.services().all.iter().map(|service| service.endpoint.clone()).collect()
    }

    /// Closes the socket and ends the connections. Requests that are in progress or wait fail at once.
    pub async fn close(&self) {
        self.inner.closed.cancel();
        self.inner.turn.close();
        let services = self.inner.services().all.clone();
        for service in services {
            let idle = service.idle().take();
            if let Some(live) = idle {
                live.close().await;
            }
        }
        if let Some(hub) = self.inner.bound.get() {
            hub.close(Duration::ZERO).await;
        }
        self.inner.events.end();
    }

    fn no_reply(&self, timeout: Duration, hint: &str, failure: Option<Failure>) -> Error {
        let endpoints: Vec<String> = self.endpoints().iter().map(ToString::to_string).collect();
        let from = if endpoints.is_empty() { "anywhere".to_owned() } else { endpoints.join(" or ") };
        let what = format!("no reply from {from} within {} ms: {hint}", timeout.as_millis());
        match failure {
            Some(Failure { connected: false, error }) => Error::new(error.kind(), what).with_source(error),
            Some(Failure { error, .. }) => {
                Error::new(Error::kind_without_connection(&error), what).with_source(error)
            }
            None => Error::new(ErrorKind::Timeout, what),
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the requester is closed")
}
