//! A proxy put together: three ports, the switch, the controller.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use xmsg_core::{Error, ErrorKind, ProxyAddress, Result};
use xmsg_zmq::link::memory::MemoryBudget;
use xmsg_zmq::link::transport::Listener;
use xmsg_zmq::{
    Admission, Endpoint, HighWaterMark, IdentityScope, ProxyPorts, Router, SocketOptions, Violations,
};
use xmsg_zmtp::{Limits, MessageLimits};

use crate::config::{Config, PublishersSend};
use crate::control::{ANSWER_MAX, Controller};
use crate::policy::{Policy, TopicPolicy};
use crate::security::{Authority, Mechanism, Rules};
use crate::stats::Documents;
use crate::switch::{Ending, PublisherStats, Side, SubscriberStats, Switch, Totals};
use crate::upstream::{Upstream, UpstreamStats};

/// How often a free block of three ports is looked for.
const PORT_ATTEMPTS: usize = 64;
/// Ports above this are not tried: three must fit.
const LAST_PORT: u16 = xmsg_core::address::MAX_PROXY_PORT;

/// A proxy to be: options, each with a documented default in [`Config`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    address: String,
    config: Config,
}

impl Builder {
    /// All options at once.
    pub fn config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// What happens to messages for a subscriber at its high-water mark.
    pub fn slow_subscriber(mut self, policy: Policy) -> Self {
        self.config.policy = policy;
        self
    }

    /// The same for messages whose topic starts with this prefix. The longest prefix counts.
    pub fn slow_subscriber_for(mut self, prefix: impl Into<Vec<u8>>, policy: Policy) -> Self {
        self.config.policies.push(TopicPolicy::new(prefix, policy));
        self
    }

    /// What may be queued for one subscriber.
    pub fn high_water_mark(mut self, mark: HighWaterMark) -> Self {
        self.config.high_water_mark = mark;
        self
    }

    /// What publishers are told to send.
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

    /// How the ports are secured, and who may do what there.
    pub fn security(mut self, mechanism: Mechanism, rules: Rules) -> Self {
        self.config.security = mechanism;
        self.config.authority = Arc::new(Authority::new(rules));
        self
    }

    /// What one peer may send.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config.limits = limits;
        self
    }

    /// Binds the three ports and goes to work, on the present tokio runtime.
    pub async fn start(self) -> Result<Proxy> {
        Upstream::check(&self.config.upstreams)?;
        let (admission, violations) = (self.config.admission(), Violations::default());
        let router = router(&self.config, &admission, &violations);
        let (address, publishers, subscribers) = bind(&self.address, &self.config, &router).await?;
        violations.know_ports(ports(&address));
        let switch = Switch::start_with(self.config, admission, violations);
        Ok(Proxy::start(address, switch, publishers, subscribers, router))
    }

    /// Goes to work on sockets that listen already, instead of binding its address: those of a service
    /// manager. They have to be at three ports in a row of one address; their order does not matter.
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

/// A proxy at work. It stops with [`stop`](Self::stop), which delivers what is queued. Dropping it stops it
/// at once: its ports are free when that returns, and what was queued is lost.
#[derive(Debug)]
pub struct Proxy {
    address: ProxyAddress,
    switch: Switch,
    router: Arc<Router>,
    controller: JoinHandle<()>,
    authority: Arc<Authority>,
}

/// Watches a proxy from any thread: it reads counts, and changes nothing but by
/// [`end_connection`](Self::end_connection). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Monitor {
    switch: Switch,
    /// Whoever watches does not keep the socket open.
    router: Weak<Router>,
    documents: Arc<Documents>,
}

impl Monitor {
    /// Messages since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.switch.totals()
    }

    /// Every connected publisher.
    #[must_use]
    pub fn publishers(&self) -> Vec<PublisherStats> {
        self.switch.publishers()
    }

    /// Every connected subscriber.
    #[must_use]
    pub fn subscribers(&self) -> Vec<SubscriberStats> {
        self.switch.subscribers()
    }

    /// The links to all upstreams.
    #[must_use]
    pub fn upstreams(&self) -> Vec<UpstreamStats> {
        self.switch.upstreams()
    }

    /// How many proxies reach this one over two ways at once: whoever subscribes there gets what is published
    /// here twice.
    #[must_use]
    pub fn double_paths(&self) -> usize {
        self.switch.double_paths()
    }

    /// Ends the connection of the publisher or subscriber with this [`id`](SubscriberStats::id), also while
    /// it waits for somebody, or somebody for it. Whoever waited for it goes on; what was queued for it is
    /// lost, and counted as undelivered. It may connect again.
    ///
    /// `by` says in the log who asked for it. `None`: nobody who is connected has this number.
    #[allow(clippy::must_use_candidate, reason = "it does something")]
    pub fn end_connection(&self, id: u32, by: &str) -> Option<Ending> {
        self.switch.end(id, by)
    }

    /// The memory that all peers together hold, and its limit.
    #[must_use]
    pub fn memory(&self) -> &MemoryBudget {
        self.switch.memory()
    }

    /// Who is connected and what flows, as JSON: what the control request `stats` is answered with. It is
    /// made five times a second at most. For ten seconds from now on, messages are counted by topic, from
    /// samples.
    #[must_use]
    pub fn stats(&self) -> Bytes {
        self.documents.get(&self.switch)
    }

    /// What flows by topic; for ten seconds from now on, more is counted.
    #[cfg(feature = "daemon")]
    pub(crate) fn watch(&self) -> crate::switch::Watched {
        self.switch.watch()
    }

    /// Who publishes these topics, and who subscribes to them: see [`Switch::links`].
    #[cfg(feature = "daemon")]
    pub(crate) fn links(&self, topics: &[&[u8]], most: usize) -> (Vec<Vec<u32>>, Vec<(usize, u32)>) {
        self.switch.links(topics, most)
    }

    /// How long it has been at work.
    #[cfg(feature = "daemon")]
    pub(crate) fn uptime(&self) -> Duration {
        self.switch.uptime()
    }

    /// How many control sockets are connected.
    #[must_use]
    pub fn control_connections(&self) -> usize {
        self.router.upgrade().map_or(0, |router| router.peers())
    }

    /// How many subscriptions there are: pairs of subscriber and prefix.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.switch.subscriptions()
    }

    /// Calls `found` with every prefix that somebody subscribed to, and the number of its subscribers; in no
    /// particular order. It never keeps the switch waiting for long: while it looks, subscriptions may come
    /// and go.
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
    /// A proxy to be at `host:port`; port 0 stands for any three free ports in a row.
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

    /// Where it listens: host and publisher port.
    #[must_use]
    pub fn address(&self) -> &ProxyAddress {
        &self.address
    }

    /// Puts other rules in force, without ending a connection that they still allow.
    pub async fn replace_rules(&self, rules: Rules) {
        self.authority.replace(rules);
        self.enforce_rules().await;
    }

    /// Has everybody keep to the rules of the [`Authority`] as they are now.
    pub async fn enforce_rules(&self) {
        self.router.recheck().await;
        self.switch.enforce().await;
    }

    /// A handle to watch it with, which may outlive it.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor {
            switch: self.switch.clone(),
            router: Arc::downgrade(&self.router),
            documents: Arc::default(),
        }
    }

    /// Messages since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.switch.totals()
    }

    /// Every connected publisher.
    #[must_use]
    pub fn publishers(&self) -> Vec<PublisherStats> {
        self.switch.publishers()
    }

    /// Every connected subscriber.
    #[must_use]
    pub fn subscribers(&self) -> Vec<SubscriberStats> {
        self.switch.subscribers()
    }

    /// The links to all upstreams, in the order in which they were given.
    #[must_use]
    pub fn upstreams(&self) -> Vec<UpstreamStats> {
        self.switch.upstreams()
    }

    /// Replaces the upstreams: links to those that are not wanted any more end, new ones begin, and the
    /// others go on as they are.
    ///
    /// [`ErrorKind::InvalidOption`], and nothing changes, if there are more than
    /// [`UPSTREAMS_MAX`](crate::UPSTREAMS_MAX), or two with the same endpoint.
    pub fn set_upstreams(&self, wanted: &[Upstream]) -> Result<()> {
        self.switch.set_upstreams(wanted)
    }

    /// How many subscriptions there are: pairs of subscriber and prefix.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.switch.subscriptions()
    }

    /// Replaces what happens at a subscriber's mark: in general, and for topics with these prefixes. Nobody
    /// is disconnected for it. What is read from publishers after it returns is treated in the new way; what
    /// is queued already, in the old one.
    pub async fn set_policies(&self, policy: Policy, policies: &[TopicPolicy]) {
        self.switch.set_policies(policy, policies).await;
    }

    /// Waits until a task has panicked that the proxy can't go on without, and tells which one, and why. The
    /// proxy seems to work then, but for what that task did: it should be stopped, and started anew.
    pub async fn failed(&self) -> String {
        self.switch.critical().failed().await.to_owned()
    }

    /// Stops in order, within about `linger`: accepts nobody any more, reads what publishers had already
    /// sent, delivers what is queued. Returns all counts.
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

/// The control socket, not bound yet.
fn router(config: &Config, admission: &Admission, violations: &Violations) -> Router {
    Router::new(
        SocketOptions::default()
            .heartbeat_interval(config.heartbeat_interval)
            .heartbeat_timeout(config.heartbeat_timeout)
            // Answers are a few bytes each, but for documents; one of those goes when no answer waits.
            .send_high_water_mark(HighWaterMark::bytes(64 << 10))
            .send_limits(MessageLimits { size: ANSWER_MAX, ..MessageLimits::default() })
            .receive_high_water_mark(64 << 10)
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

/// Binds the three ports. With port 0 it looks for three free ones in a row.
async fn bind(address: &str, config: &Config, router: &Router) -> Result<(ProxyAddress, Listener, Listener)> {
    let any = address.strip_suffix(":0");
    for attempt in 1.. {
        let (first, wanted) = match any {
            None => {
                let wanted: ProxyAddress = address.parse()?;
                let endpoint = Endpoint::tcp(wanted.host(), wanted.publish_port());
                (Listener::bind(&endpoint, config.accepted_tcp()).await?, wanted)
            }
            Some(host) => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let first = Listener::bind(&Endpoint::tcp(host, 0), config.accepted_tcp()).await?;
                let Endpoint::Tcp { port, .. } = *first.endpoint() else { continue };
                if port > LAST_PORT {
                    continue;
                }
                (first, ProxyAddress::new(host, port)?)
            }
        };
        let rest = async {
            let endpoint = |port| Endpoint::tcp(wanted.host(), port);
            let second = Listener::bind(&endpoint(wanted.subscribe_port()), config.accepted_tcp()).await?;
            router.bind(&endpoint(wanted.control_port())).await?;
            Ok::<_, Error>(second)
        };
        match rest.await {
            Ok(second) => return Ok((wanted, first, second)),
            Err(_) if any.is_some() && attempt < PORT_ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(ErrorKind::InvalidAddress, "no three free ports in a row"))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

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
