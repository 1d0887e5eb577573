//! The client of a registrar, which knows who publishes and who subscribes, and where.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::options::with_heartbeats;
use crate::registration::{Action, OwnerType, Query, Registration, Reply, Request, SUCCESS};
use crate::security::Security;
use crate::{Error, ErrorKind, RegistrarAddress, Result};
use xmsg_zmq::lock::lock;
use xmsg_zmq::{Endpoint, Requester, SocketOptions, Unanswered};
use xmsg_zmtp::Limits;

/// How long a registration may take by default (section 5 of the xMsg protocol).
pub const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the answer to a query may take by default.
pub const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(3);
/// How often registrations are renewed by default. A registrar that removes registrations that are not
/// renewed should wait for at least three times as long.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(20);

/// A client of a registrar. Clones share one connection, which is made with the first request, and made again
/// when it breaks. A request that times out never blocks the next one.
///
/// Registrations are renewed as long as at least one clone exists. So a registrar that removes registrations
/// that are not renewed keeps them, and a registrar that was restarted receives them again.
/// [`deregister`](Self::deregister) ends the renewal.
///
/// Changes ([`register`](Self::register), [`deregister`](Self::deregister) and
/// [`remove_all`](Self::remove_all)) and queries fail with these kinds of errors:
/// - [`Remote`](ErrorKind::Remote): the registrar refused the request.
/// - [`Unconfirmed`](ErrorKind::Unconfirmed), of changes only: the request was sent, and no valid answer
///   arrived in time or before the client was closed. It is not known whether the registrar carries out the
///   request. After every other error, it is neither in progress nor carried out later.
/// - [`Timeout`](ErrorKind::Timeout): the registrar did not answer a query, or there was no connection in
///   time.
/// - [`InvalidMessage`](ErrorKind::InvalidMessage) or [`Protocol`](ErrorKind::Protocol), of queries only: the
///   answer is not valid.
/// - [`TooLarge`](ErrorKind::TooLarge): the request is larger than the registrar allows, or the answer to a
///   query is larger than the limits of the client allow.
/// - [`Closed`](ErrorKind::Closed): the client is closed.
/// - If there is no registrar, the kind of the cause, such as [`Refused`](ErrorKind::Refused).
///
/// ```no_run
/// # async fn run() -> xmsg_core::Result<()> {
/// use xmsg_core::{OwnerType, ProxyAddress, Query, Registrar, Registration, Topic};
/// let registrar = Registrar::new("10.0.0.8".parse()?);
/// let topic = Topic::new("report", "sports")?;
/// let proxy: ProxyAddress = "10.0.0.7".parse()?;
/// registrar.register(&Registration::new(OwnerType::Publisher, "reporter", &topic, &proxy)).await?;
/// for found in registrar.find(&Query::topic(OwnerType::Publisher, &topic)).await? {
///     println!("{} publishes at {}:{}", found.name, found.host, found.port);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Registrar {
    inner: Arc<Inner>,
}

/// Builds a [`Registrar`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `build`"]
pub struct RegistrarBuilder {
    address: RegistrarAddress,
    sender: String,
    registration_timeout: Duration,
    discovery_timeout: Duration,
    renewal_interval: Option<Duration>,
    security: Option<Security>,
    socket: SocketOptions<Requester>,
}

impl RegistrarBuilder {
    /// Sets the name of the client in the registrar's log, usually that of the actor. The default is `xmsg`.
    pub fn sender(self, sender: impl Into<String>) -> Self {
        Self { sender: sender.into(), ..self }
    }

    /// Sets how long a registration may take. The default is [`REGISTRATION_TIMEOUT`].
    pub fn registration_timeout(self, timeout: Duration) -> Self {
        Self { registration_timeout: timeout, ..self }
    }

    /// Sets how long the answer to a query may take. The default is [`DISCOVERY_TIMEOUT`].
    pub fn discovery_timeout(self, timeout: Duration) -> Self {
        Self { discovery_timeout: timeout, ..self }
    }

    /// Sets how often registrations are renewed; `None` disables renewal. The default is
    /// [`RENEWAL_INTERVAL`].
    pub fn renewal_interval(self, interval: Option<Duration>) -> Self {
        Self { renewal_interval: interval, ..self }
    }

    /// Sets the security mechanism and our credentials. It takes precedence over that of
    /// [`socket`](Self::socket).
    pub fn security(self, security: Security) -> Self {
        Self { security: Some(security), ..self }
    }

    /// Changes options of the connection. Options that `change` does not set stay as they are.
    ///
    /// ```
    /// use std::time::Duration;
    /// use xmsg_core::{Registrar, RegistrarAddress};
    /// let registrar = Registrar::builder(RegistrarAddress::default())
    ///     .socket(|socket| socket.heartbeat_interval(Duration::from_secs(5)))
    ///     .build()?;
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    pub fn socket(self, change: impl FnOnce(SocketOptions<Requester>) -> SocketOptions<Requester>) -> Self {
        Self { socket: change(self.socket), ..self }
    }

    /// Makes the client, which connects with its first request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] when the renewal interval is 0.
    pub fn build(self) -> Result<Registrar> {
        if self.renewal_interval.is_some_and(|interval| interval.is_zero()) {
            let what = "the renewal interval of a registrar's client is 0: give it a time, or none at all";
            return Err(Error::new(ErrorKind::InvalidOption, what));
        }
        Ok(self.unchecked())
    }

    fn unchecked(self) -> Registrar {
        let endpoint = Endpoint::tcp(self.address.host(), self.address.port());
        let security = self.security.unwrap_or_else(|| self.socket.settings().security.clone());
        let requester = Requester::connecting_to(endpoint, self.socket.security(security));
        Registrar {
            inner: Arc::new(Inner {
                address: self.address,
                sender: self.sender.into(),
                requester,
                registration_timeout: self.registration_timeout,
                discovery_timeout: self.discovery_timeout,
                renewal_interval: self.renewal_interval,
                renewals: Mutex::default(),
            }),
        }
    }
}

#[derive(Debug)]
struct Inner {
    address: RegistrarAddress,
    sender: Bytes,
    requester: Requester,
    registration_timeout: Duration,
    discovery_timeout: Duration,
    renewal_interval: Option<Duration>,
    renewals: Mutex<Renewals>,
}

/// The registrations that are renewed, and the task that renews them.
#[derive(Debug, Default)]
struct Renewals {
    registrations: HashSet<Registration>,
    task: Option<JoinHandle<()>>,
    closed: bool,
}

impl Drop for Renewals {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Registrar {
    /// Makes a client of the registrar at this address, with the default time limits.
    #[must_use]
    pub fn new(address: RegistrarAddress) -> Self {
        Self::builder(address).unchecked()
    }

    /// Begins to build a client of the registrar at this address, with options.
    pub fn builder(address: RegistrarAddress) -> RegistrarBuilder {
        // A reply has a frame for each registration, and there may be many.
        let limits = Limits { message_size: 1 << 30, frames: 1 << 24, ..Limits::default() };
        RegistrarBuilder {
            address,
            sender: "xmsg".to_owned(),
            registration_timeout: REGISTRATION_TIMEOUT,
            discovery_timeout: DISCOVERY_TIMEOUT,
            renewal_interval: Some(RENEWAL_INTERVAL),
            security: None,
            socket: with_heartbeats().limits(limits),
        }
    }

    /// Returns the address of the registrar.
    #[must_use]
    pub fn address(&self) -> &RegistrarAddress {
        &self.inner.address
    }

    /// Registers an actor, and renews the registration at regular intervals. Registering the same twice has
    /// no further effect.
    ///
    /// After an error, the registration is not made later. Earlier registrations stay registered.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] when the topic has no domain, and the errors of changes that
    /// [`Registrar`] lists.
    pub async fn register(&self, registration: &Registration) -> Result<()> {
        self.inner.register(registration).await?;
        self.inner.clone().renew(registration);
        Ok(())
    }

    /// Removes every registration with the topic, name and host of this one. It succeeds even if there is
    /// none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] when the topic has no domain, and the errors of changes that
    /// [`Registrar`] lists.
    pub async fn deregister(&self, registration: &Registration) -> Result<()> {
        let topic = registration.topic()?;
        self.inner.renewals().registrations.retain(|other| {
            other.owner != registration.owner
                || other.name != registration.name
                || other.host != registration.host
                || other.topic().ok().as_ref() != Some(&topic)
        });
        self.inner.change(&Request::remove(self.inner.sender.clone(), registration.clone())).await
    }

    /// Removes every registration of a host, of publishers and of subscribers, whoever made it.
    ///
    /// # Errors
    /// The errors of changes that [`Registrar`] lists.
    pub async fn remove_all(&self, host: &str) -> Result<()> {
        self.inner.renewals().registrations.retain(|other| other.host != host);
        self.inner.change(&Request::remove_all(self.inner.sender.clone(), host)).await
    }

    /// Returns publishers whose topic starts with that of the query: those whose messages a
    /// subscriber of the topic would receive. For subscribers, returns those whose topic is a prefix of it:
    /// those that would receive a message with the topic.
    ///
    /// # Errors
    /// The errors of queries that [`Registrar`] lists.
    pub async fn find(&self, query: &Query) -> Result<Vec<Registration>> {
        self.discover(Action::Find, query).await
    }

    /// Returns registrations whose topic has the parts of the query, and whose host and port are those of the
    /// query.
    ///
    /// # Errors
    /// The errors of queries that [`Registrar`] lists.
    pub async fn filter(&self, query: &Query) -> Result<Vec<Registration>> {
        self.discover(Action::Filter, query).await
    }

    /// Returns registrations whose topic equals that of the query.
    ///
    /// # Errors
    /// The errors of queries that [`Registrar`] lists.
    pub async fn exact(&self, query: &Query) -> Result<Vec<Registration>> {
        self.discover(Action::Exact, query).await
    }

    /// Returns all publishers, or all subscribers.
    ///
    /// # Errors
    /// The errors of queries that [`Registrar`] lists.
    pub async fn all(&self, owner: OwnerType) -> Result<Vec<Registration>> {
        self.discover(Action::All, &Query::any(owner)).await
    }

    /// Ends renewal and closes the connection. Waiting requests fail. Registrations stay until the registrar
    /// removes them.
    pub async fn close(&self) {
        let task = {
            let mut renewals = self.inner.renewals();
            renewals.closed = true;
            renewals.registrations.clear();
            renewals.task.take()
        };
        if let Some(task) = task {
            task.abort();
            // The result does not matter: the task was aborted, or had ended before.
            let _ = task.await;
        }
        self.inner.requester.close().await;
    }

    async fn discover(
        &self,
        action: impl FnOnce(OwnerType) -> Action,
        query: &Query,
    ) -> Result<Vec<Registration>> {
        let request = Request::discover(self.inner.sender.clone(), action, query);
        let answer = self.inner.ask(&request, self.inner.discovery_timeout).await;
        let frames = answer.map_err(|Failed { error, .. }| error)?;
        frames.iter().map(Registration::decode).collect()
    }
}

impl Inner {
    fn renewals(&self) -> MutexGuard<'_, Renewals> {
        lock(&self.renewals)
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        // This check needs no registrar. The Java registrar would not survive such a registration.
        registration.topic()?;
        self.change(&Request::register(self.sender.clone(), registration.clone())).await
    }

    /// Sends a request that changes registrations.
    async fn change(&self, request: &Request) -> Result<()> {
        self.ask(request, self.registration_timeout).await.map(drop).map_err(|Failed { error, in_doubt }| {
            if !in_doubt {
                return error;
            }
            let what = format!(
                "the registrar {} got the request `{}` and did not answer: it may have carried it out, or may do so yet",
                self.address, request.action,
            );
            Error::new(ErrorKind::Unconfirmed, what).with_source(error)
        })
    }

    async fn ask(&self, request: &Request, timeout: Duration) -> Result<Vec<Bytes>, Failed> {
        let asked = || format!("{} at the registrar {}", request.action, self.address);
        let frames = request.frames().into();
        let reply =
            self.requester.try_request(&frames, timeout).await.map_err(|Unanswered { error, sent }| {
                let what = format!("{} failed: is a registrar running there?", asked());
                Failed { error: Error::new(error.kind(), what).with_source(error), in_doubt: sent }
            })?;
        let reply = Reply::read(reply.frames()).map_err(|error| Failed { error, in_doubt: true })?;
        reply.outcome.map_err(|status| {
            let what = format!("{} was refused: it said `{status}` instead of `{SUCCESS}`", asked());
            Failed { error: Error::new(ErrorKind::Remote, what), in_doubt: false }
        })
    }

    /// Adds the registration to those that are renewed.
    fn renew(self: Arc<Self>, registration: &Registration) {
        let Some(interval) = self.renewal_interval else { return };
        let mut renewals = self.renewals();
        if renewals.closed {
            return;
        }
        renewals.registrations.insert(registration.clone());
        if renewals.task.as_ref().is_none_or(JoinHandle::is_finished) {
            renewals.task = Some(tokio::spawn(keep(Arc::downgrade(&self), interval)));
        }
    }
}

/// A request that did not succeed.
#[derive(Debug)]
struct Failed {
    error: Error,
    /// Whether the registrar may have carried it out all the same.
    in_doubt: bool,
}

/// Renews the registrations of a client until the client is dropped.
async fn keep(client: Weak<Inner>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(inner) = client.upgrade() else { return };
        let registrations: Vec<_> = inner.renewals().registrations.iter().cloned().collect();
        drop(inner);
        for registration in registrations {
            let Some(inner) = client.upgrade() else { return };
            if !inner.renewals().registrations.contains(&registration) {
                continue;
            }
            if let Err(error) = inner.register(&registration).await {
                // The next round tries again.
                tracing::warn!(error = %error.with_causes(), name = registration.name, "a registration was not renewed");
                if error.kind() != ErrorKind::Remote {
                    // A registrar that does not answer is not asked to renew the others in this round.
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::registration::Argument;
    use crate::{ProxyAddress, Topic};
    use xmsg_zmq::link::transport::Listener;
    use xmsg_zmq::{Replier, TcpOptions};

    fn registration(name: &str) -> Registration {
        let topic = Topic::new("a", "b").unwrap();
        Registration::new(OwnerType::Subscriber, name, &topic, &ProxyAddress::default())
    }

    /// Makes a client that renews often.
    fn client(port: u16) -> RegistrarBuilder {
        Registrar::builder(RegistrarAddress::new("127.0.0.1", port).unwrap())
            .renewal_interval(Some(Duration::from_millis(20)))
    }

    /// Receives the next request, and answers it with success.
    async fn answer(replier: &Replier) -> Request {
        let (path, request) = replier.recv().await.unwrap();
        let request = Request::read(request.frames(), &Bytes::from("r")).unwrap();
        let reply = request.reply(&Bytes::from("r"), Ok(Vec::new()));
        replier.try_reply(&path, reply.into_frames()).unwrap();
        request
    }

    /// Registers another actor and waits until it was renewed several times. Returns the names in all
    /// requests of that time.
    async fn asked_from_now_on(client: &Registrar, replier: &Replier) -> BTreeSet<String> {
        let other = registration("other");
        let (registered, names) = futures::join!(client.register(&other), async {
            let mut names = BTreeSet::new();
            let mut renewed = 0;
            while renewed < 4 {
                let Argument::Registration(registration) = answer(replier).await.argument else { continue };
                renewed += usize::from(registration.name == "other");
                names.insert(registration.name);
            }
            names
        });
        registered.unwrap();
        names
    }

    #[tokio::test]
    async fn a_registration_that_failed_is_not_made_later() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        let with_limit = |time| client(port).registration_timeout(time).build().unwrap();
        let failed = async |client: &Registrar| client.register(&registration("failed")).await.unwrap_err();
        let only_other = BTreeSet::from(["other".to_owned()]);

        let client = with_limit(Duration::from_millis(300));
        assert_eq!(failed(&client).await.kind(), ErrorKind::Refused, "nobody listens");
        socket.listen(8).unwrap();
        assert_eq!(failed(&client).await.kind(), ErrorKind::Timeout, "nobody shakes hands");
        let replier = Replier::new(SocketOptions::default());
        replier.listen(Listener::adopt(socket.into(), TcpOptions::default()).unwrap());
        assert_eq!(asked_from_now_on(&client, &replier).await, only_other);
        client.close().await;

        let client = with_limit(Duration::from_secs(60));
        let (error, ()) = futures::join!(failed(&client), async {
            replier.recv().await.unwrap();
            // From here on, the paused clock jumps from one deadline to the next.
            tokio::time::pause();
        });
        tokio::time::resume();
        assert_eq!(error.kind(), ErrorKind::Unconfirmed, "nobody answers");
        assert!(error.to_string().contains("may have carried it out"), "{error}");
        assert_eq!(asked_from_now_on(&client, &replier).await, only_other);
        client.close().await;
    }

    #[tokio::test]
    async fn what_was_registered_is_registered_again_until_it_is_taken_back() {
        let replier = Replier::new(SocketOptions::default());
        let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let Endpoint::Tcp { port, .. } = endpoint else { unreachable!() };
        let client = client(port).build().unwrap();
        let registration = registration("n");
        let answers = async |count: usize, name: &str| {
            for _ in 0..count {
                assert_eq!(answer(&replier).await.action.name(), name);
            }
        };
        let (registered, ()) =
            futures::join!(client.register(&registration), answers(4, "registerSubscriber"));
        registered.unwrap();
        // A renewal may be in progress.
        let taken_back = client.deregister(&registration);
        let answers =
            async { while answer(&replier).await.action != Action::Remove(OwnerType::Subscriber) {} };
        let (taken_back, ()) = futures::join!(taken_back, answers);
        taken_back.unwrap();
        assert!(client.inner.renewals().registrations.is_empty());
        client.close().await;
    }

    #[test]
    fn a_renewal_interval_of_nothing_is_refused() {
        let client = Registrar::builder(RegistrarAddress::default()).renewal_interval(Some(Duration::ZERO));
        assert_eq!(client.build().unwrap_err().kind(), ErrorKind::InvalidOption);
    }
}
