//! A whole proxy: three ports, the switch, and the controller.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use xmsg_core::{Error, ErrorKind, ProxyAddress, Result};
use xmsg_zmq::link::transport::Listener;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{
    Admission, Endpoint, HighWaterMark, IdentityScope, ProxyPorts, Router, SocketOptions, Violations,
};
use xmsg_zmtp::{Limits, MessageLimits};

use crate::config::{Config, PublishersSend};
use crate::control::{ANSWER_MAX, Controller};
use crate::policy::{Policy, TopicPolicy};
#[cfg(feature = "daemon")]
use crate::security::Rights;
use crate::security::{Authority, Mechanism, Rules};
use crate::stats::Documents;
use crate::switch::{Ending, PublisherStats, Side, SubscriberStats, Switch, Totals};
#[cfg(feature = "daemon")]
use crate::switch::{Observation, Watcher};
use crate::upstream::{Upstream, UpstreamStats};

/// The number of attempts to find a free block of three ports.
const PORT_ATTEMPTS: usize = 64;
/// The number of these attempts at random ones of the quiet ports. In the others, the kernel chooses the
/// first.
const QUIET_ATTEMPTS: usize = 48;
/// The ports below those that outgoing connections use by default on Linux. The kernel would choose from the
/// same range as for connections: with thousands of them, a neighbour is nearly always taken, and one of them
/// may take a port of a proxy while it is restarted.
const QUIET_PORTS: std::ops::Range<u16> = 10_240..32_700;

/// A proxy to be: options, each with a documented default in [`Config`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    address: String,
    config: Config,
}

impl Builder {
    /// Sets all options at once.
    pub fn config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Sets the policy for messages to a subscriber at its high-water mark.
    pub fn slow_subscriber(mut self, policy: Policy) -> Self {
        self.config.policy = policy;
        self
    }

    /// Sets the policy for messages whose topic starts with this prefix. The longest prefix counts.
    pub fn slow_subscriber_for(mut self, prefix: impl Into<Vec<u8>>, policy: Policy) -> Self {
        self.config.policies.push(TopicPolicy::new(prefix, policy));
        self
    }

    /// Sets the high-water mark of the queue of one subscriber.
    pub fn high_water_mark(mut self, mark: HighWaterMark) -> Self {
        self.config.high_water_mark = mark;
        self
    }

    /// Sets which messages publishers are asked to send.
    pub fn publishers_send(mut self, what: PublishersSend) -> Self {
        self.config.publishers_send = what;
        self
    }

    /// Another proxy to whose subscribers' port this one connects, for what its own subscribers want. Several
    /// are linked each on its own.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_core::Result<()> {
    /// use xmsg_proxy::Proxy;
    ///
    /// let near_the_source = Proxy::bind("127.0.0.1:0").start().await?;
    /// let upstream = near_the_source.address().to_string().parse()?;
    /// let near_the_subscribers = Proxy::bind("127.0.0.1:0").upstream(upstream).start().await?;
    /// assert_eq!(near_the_subscribers.upstreams().len(), 1);
    /// # Ok(()) }
    /// ```
    pub fn upstream(mut self, upstream: Upstream) -> Self {
        self.config.upstreams.push(upstream);
        self
    }

    /// Sets the security mechanism of the ports, and the rules about rights.
    pub fn security(mut self, mechanism: Mechanism, rules: Rules) -> Self {
        self.config.security = mechanism;
        self.config.authority = Arc::new(Authority::new(rules));
        self
    }

    /// Sets the limits of what one peer may send.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config.limits = limits;
        self
    }

    /// Binds the three ports and starts the proxy on the present tokio runtime.
    pub async fn start(self) -> Result<Proxy> {
        Upstream::check(&self.config.upstreams)?;
        let (admission, violations) = (self.config.admission(), Violations::default());
        let router = router(&self.config, &admission, &violations);
        let (address, publishers, subscribers) = bind(&self.address, &self.config, &router).await?;
        violations.know_ports(ports(&address));
        let switch = Switch::start_with(self.config, admission, violations);
        Ok(Proxy::start(address, switch, publishers, subscribers, router))
    }

    /// Starts the proxy on sockets that listen already, such as those of a service manager, instead of
    /// binding its address. They have to be at three consecutive ports of one address, in any order.
    #[allow(clippy::unused_async, reason = "it has to be called in a runtime, as `start` does")]
    pub async fn start_on(self, mut sockets: [TcpListener; 3]) -> Result<Proxy> {
        Upstream::check(&self.config.upstreams)?;
        let unusable = |error| {
            Error::new(ErrorKind::Io, "cannot use the listening sockets that were handed over")
                .with_source(error)
        };
        let mut addresses = Vec::new();
        for socket in &sockets {
            addresses.push(socket.local_addr().map_err(unusable)?);
        }
        addresses.sort_unstable();
        sockets.sort_by_key(|socket| socket.local_addr().map_or(0, |address| address.port()));
        let (ip, port) = (addresses[0].ip(), addresses[0].port());
        let address = ProxyAddress::new(ip.to_string(), port)?;
        let wanted = [port, address.subscribe_port(), address.control_port()];
        if addresses.iter().zip(wanted).any(|(found, port)| *found != SocketAddr::new(ip, port)) {
            return Err(Error::new(
                ErrorKind::InvalidAddress,
                format!(
                    "the listening sockets that were handed over are not at three ports in a row: {addresses:?}"
                ),
            ));
        }
        let (admission, violations) = (self.config.admission(), Violations::default());
        let router = router(&self.config, &admission, &violations);
        let [publishers, subscribers, control] = sockets;
        let adopt = |socket| Listener::adopt(socket, self.config.accepted_tcp());
        let (publishers, subscribers) = (adopt(publishers)?, adopt(subscribers)?);
        router.listen(adopt(control)?);
        violations.know_ports(ports(&address));
        let switch = Switch::start_with(self.config, admission, violations);
        Ok(Proxy::start(address, switch, publishers, subscribers, router))
    }
}

/// A running proxy. It stops with [`stop`](Self::stop), which delivers what is queued. Dropping it stops it
/// at once: its ports are free when that returns, and what was queued is lost.
#[derive(Debug)]
pub struct Proxy {
    address: ProxyAddress,
    switch: Switch,
    router: Arc<Router>,
    controller: JoinHandle<()>,
    authority: Arc<Authority>,
}

/// Watches a proxy from any thread. It reads counts, and changes nothing except by
/// [`end_connection`](Self::end_connection). It is cheap to clone.
#[derive(Clone, Debug)]
pub struct Monitor {
    switch: Switch,
    /// The reference is weak: a monitor does not keep the socket open.
    router: Weak<Router>,
    documents: Arc<Documents>,
}

impl Monitor {
    /// Returns the counts of messages since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.switch.totals()
    }

    /// Returns the statistics of every connected publisher.
    #[must_use]
    pub fn publishers(&self) -> Vec<PublisherStats> {
        self.switch.publishers()
    }

    /// Returns the statistics of every connected subscriber.
    #[must_use]
    pub fn subscribers(&self) -> Vec<SubscriberStats> {
        self.switch.subscribers()
    }

    /// Returns the links to all upstreams.
    #[must_use]
    pub fn upstreams(&self) -> Vec<UpstreamStats> {
        self.switch.upstreams()
    }

    /// Returns how many proxies reach this one over two paths at once. Their subscribers get twice what is
    /// published here.
    #[must_use]
    pub fn double_paths(&self) -> usize {
        self.switch.double_paths()
    }

    /// Ends the connection of the publisher or subscriber with this [`id`](SubscriberStats::id), even while
    /// it waits for another peer or another peer for it. Peers that waited for it go on. What was queued for
    /// it is lost, and counts as undelivered. It may connect again.
    ///
    /// `by` says in the log who asked for it. Returns `None` if no connected peer has this number.
    #[allow(clippy::must_use_candidate, reason = "it does something")]
    pub fn end_connection(&self, id: u32, by: &str) -> Option<Ending> {
        self.switch.end(id, by)
    }

    /// Returns the budget for the memory that all peers hold together, with its limit.
    #[must_use]
    pub fn memory(&self) -> &MemoryBudget {
        self.switch.memory()
    }

    /// Returns the connections and the traffic as JSON: the answer to the control request `stats`. It is made
    /// at most five times a second. For ten seconds after the call, messages are counted by topic, from
    /// samples.
    #[must_use]
    pub fn stats(&self) -> Bytes {
        self.documents.get(&self.switch)
    }

    /// Returns the traffic by topic. For ten seconds after the call, it is counted on.
    #[cfg(feature = "daemon")]
    pub(crate) fn watch(&self) -> crate::switch::Watched {
        self.switch.watch()
    }

    /// Returns the publishers and the subscribers of these topics: see [`Switch::links`].
    #[cfg(feature = "daemon")]
    pub(crate) fn links(&self, topics: &[&[u8]], most: usize) -> (Vec<Vec<u32>>, Vec<(usize, u32)>) {
        self.switch.links(topics, most)
    }

    /// Returns the rights of whoever has no credentials: see [`Switch::rights_of_anybody`].
    #[cfg(feature = "daemon")]
    pub(crate) fn rights_of_anybody(&self) -> Option<Arc<Rights>> {
        self.switch.rights_of_anybody()
    }

    /// Watches messages as they pass: see [`Switch::observe`].
    #[cfg(feature = "daemon")]
    pub(crate) async fn observe(&self, prefix: Bytes, rate: u32, watcher: Watcher) -> Result<Observation> {
        self.switch.observe(prefix, rate, watcher).await
    }

    /// Returns the time since the start.
    #[cfg(feature = "daemon")]
    pub(crate) fn uptime(&self) -> Duration {
        self.switch.uptime()
    }

    /// Returns the number of connected control sockets.
    #[must_use]
    pub fn control_connections(&self) -> usize {
        self.router.upgrade().map_or(0, |router| router.peers())
    }

    /// Returns the number of subscriptions, which are pairs of a subscriber and a prefix.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.switch.subscriptions()
    }

    /// Calls `found` with every prefix that has a subscriber, and the number of its subscribers, in no
    /// particular order. It never makes the switch wait for long, so subscriptions may change meanwhile.
    pub fn prefixes(&self, found: impl FnMut(Vec<u8>, usize)) {
        self.switch.prefixes(found);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.controller.abort();
        self.switch.abort();
        self.router.unbind_all();
    }
}

impl Proxy {
    /// Returns a builder of a proxy at `host:port`. Port 0 means any three consecutive free ports.
    pub fn bind(address: impl Into<String>) -> Builder {
        Builder { address: address.into(), config: Config::default() }
    }

    fn start(
        address: ProxyAddress,
        switch: Switch,
        publishers: Listener,
        subscribers: Listener,
        router: Router,
    ) -> Self {
        let authority = switch.authority().clone();

        // The control plane comes first, so that no request is ever missed.
        let controller = Controller::new(switch.clone(), router.clone());
        let controller =
            tokio::spawn(switch.critical().watch("answering control requests", controller.run()));
        switch.listen(publishers, Side::Publishers);
        switch.listen(subscribers, Side::Subscribers);
        switch.link();
        Self { address, switch, router: Arc::new(router), controller, authority }
    }

    /// Returns the address that it listens at: the host and the publisher port.
    #[must_use]
    pub fn address(&self) -> &ProxyAddress {
        &self.address
    }

    /// Replaces the rules, without ending a connection that the new ones still allow.
    pub async fn replace_rules(&self, rules: Rules) {
        self.authority.replace(rules);
        self.enforce_rules().await;
    }

    /// Applies the present rules of the [`Authority`] to all peers.
    pub async fn enforce_rules(&self) {
        self.router.recheck().await;
        self.switch.enforce().await;
    }

    /// Returns a handle that watches the proxy, and that may outlive it.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor {
            switch: self.switch.clone(),
            router: Arc::downgrade(&self.router),
            documents: Arc::default(),
        }
    }

    /// Returns the counts of messages since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.switch.totals()
    }

    /// Returns the statistics of every connected publisher.
    #[must_use]
    pub fn publishers(&self) -> Vec<PublisherStats> {
        self.switch.publishers()
    }

    /// Returns the statistics of every connected subscriber.
    #[must_use]
    pub fn subscribers(&self) -> Vec<SubscriberStats> {
        self.switch.subscribers()
    }

    /// Returns the links to all upstreams, in the order in which they were given.
    #[must_use]
    pub fn upstreams(&self) -> Vec<UpstreamStats> {
        self.switch.upstreams()
    }

    /// Replaces the upstreams: links to those that are no longer wanted end, and new ones begin. The others
    /// go on unchanged.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`], and nothing changes, if there are more than
    /// [`UPSTREAMS_MAX`](crate::UPSTREAMS_MAX), or two with the same endpoint.
    pub fn set_upstreams(&self, wanted: &[Upstream]) -> Result<()> {
        self.switch.set_upstreams(wanted)
    }

    /// Returns the number of subscriptions, which are pairs of a subscriber and a prefix.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.switch.subscriptions()
    }

    /// Replaces the policy at a subscriber's high-water mark: the general one, and those for topics with
    /// these prefixes. Nobody is disconnected for it. The new policies apply to what is read from publishers
    /// after this returns, and the old ones to what is queued already.
    pub async fn set_policies(&self, policy: Policy, policies: &[TopicPolicy]) {
        self.switch.set_policies(policy, policies).await;
    }

    /// Waits until a task has panicked that the proxy can't go on without, and returns its name and the
    /// reason. The proxy seems to work then, except for what that task did: it should be stopped and started
    /// again.
    pub async fn failed(&self) -> String {
        self.switch.critical().failed().await.to_owned()
    }

    /// Stops in order, within about `linger`: accepts no more connections, reads what publishers had already
    /// sent, and delivers what is queued. Returns all counts.
    pub async fn stop(self, linger: Duration) -> Totals {
        let totals = self.switch.stop(linger).await;
        self.controller.abort();
        self.router.close(Duration::from_millis(100)).await;
        totals
    }
}

fn ports(address: &ProxyAddress) -> ProxyPorts {
    ProxyPorts {
        publishers: address.publish_port(),
        subscribers: address.subscribe_port(),
        control: address.control_port(),
    }
}

/// Makes the control socket, which is not bound yet.
fn router(config: &Config, admission: &Admission, violations: &Violations) -> Router {
    Router::new(
        SocketOptions::default()
            .heartbeat_interval(config.heartbeat_interval)
            .heartbeat_timeout(config.heartbeat_timeout)
            // Answers have a few bytes each, except documents. A document is sent only when no answer waits.
            .send_high_water_mark(HighWaterMark::bytes(64 << 10))
            .send_limits(MessageLimits { size: ANSWER_MAX, ..MessageLimits::default() })
            // Messages of peers mean nothing here: what the control port carries are answers.
            .discard_received(true)
            .limits(Limits { message_size: 64 << 10, ..config.limits.clone() })
            .tcp(config.accepted_tcp())
            .admission(admission.clone())
            .violations(violations.clone())
            .critical(config.critical.clone())
            .security(config.security.security(&config.authority))
            .identity_scope(IdentityScope::Principal)
            .keeps(config.authority.rule())
            .memory(config.memory.clone()),
    )
}

/// Binds the three ports. With port 0, searches for three free ones in a row.
async fn bind(address: &str, config: &Config, router: &Router) -> Result<(ProxyAddress, Listener, Listener)> {
    let Some(host) = address.strip_suffix(":0") else {
        let wanted: ProxyAddress = address.parse()?;
        let endpoint = Endpoint::tcp(wanted.host(), wanted.publish_port());
        let first = Listener::bind(&endpoint, config.accepted_tcp()).await?;
        let second = bind_others(&wanted, config, router).await?;
        return Ok((wanted, first, second));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut failure = None;
    for attempt in 0..PORT_ATTEMPTS {
        let port = if attempt < QUIET_ATTEMPTS { quiet_port() } else { 0 };
        let first = match Listener::bind(&Endpoint::tcp(host, port), config.accepted_tcp()).await {
            Ok(first) => first,
            Err(error) if is_in_use(&error) => {
                failure = Some(error);
                continue;
            }
            // No other port helps: the host is unknown, or is none of this machine.
            Err(error) => return Err(error),
        };
        let Endpoint::Tcp { port, .. } = *first.endpoint() else { continue };
        let others = async {
            let chosen = ProxyAddress::new(host, port)?;
            let second = bind_others(&chosen, config, router).await?;
            Ok((chosen, second))
        };
        match others.await {
            Ok((chosen, second)) => return Ok((chosen, first, second)),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new(ErrorKind::InvalidAddress, "no three free ports in a row")))
}

/// Binds the second and the third port.
async fn bind_others(wanted: &ProxyAddress, config: &Config, router: &Router) -> Result<Listener> {
    let endpoint = |port| Endpoint::tcp(wanted.host(), port);
    let second = Listener::bind(&endpoint(wanted.subscribe_port()), config.accepted_tcp()).await?;
    router.bind(&endpoint(wanted.control_port())).await?;
    Ok(second)
}

/// Returns whether a port could not be bound because another socket has it.
fn is_in_use(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::AddrInUse)
}

/// Returns a random one of the quiet ports.
fn quiet_port() -> u16 {
    fastrand::u16(QUIET_PORTS)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const _: () = assert!(QUIET_PORTS.end <= xmsg_core::address::MAX_PROXY_PORT);

    #[test]
    fn quiet_ports_differ_and_leave_room_for_three() {
        let ports: std::collections::BTreeSet<u16> = (0..100).map(|_| quiet_port()).collect();
        assert!(ports.len() > 50 && ports.iter().all(|port| QUIET_PORTS.contains(port)));
    }

    #[tokio::test]
    async fn the_end_of_a_critical_task_is_told() {
        let config = Config::default();
        let critical = config.critical.clone();
        let proxy = Proxy::bind("127.0.0.1:0").config(config).start().await.unwrap();
        assert_eq!(proxy.failed().now_or_never(), None);
        tokio::spawn(critical.watch("a task", async { panic!("on purpose") }));
        assert_eq!(proxy.failed().await, "a task has ended by a fault of this program: on purpose");
        proxy.stop(Duration::ZERO).await;
    }
}
