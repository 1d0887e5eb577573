//! A proxy put together: three ports, the switch, the controller.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::task::JoinHandle;
use xmsg_core::socket::transport::Listener;
use xmsg_core::socket::{Endpoint, HighWaterMark, Publisher, Router, SocketOptions, Subscriber};
use xmsg_core::zmtp::Limits;
use xmsg_core::{Error, ErrorKind, ProxyAddress, Result};

use crate::CONTROL_TOPIC;
use crate::config::{Config, Policy, Upstream};
use crate::controller::Controller;
use crate::security::{Authority, Mechanism, Rules};
use crate::switch::{PublisherStats, Side, SubscriberStats, Switch, Totals};

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

    /// What may be queued for one subscriber.
    pub fn high_water_mark(mut self, mark: HighWaterMark) -> Self {
        self.config.high_water_mark = mark;
        self
    }

    /// What publishers are told to send.
    pub fn upstream(mut self, upstream: Upstream) -> Self {
        self.config.upstream = upstream;
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
        Proxy::start(&self.address, self.config).await
    }
}

/// A proxy at work. It stops with [`stop`](Self::stop); dropping it stops it at once.
#[derive(Debug)]
pub struct Proxy {
    address: ProxyAddress,
    switch: Switch,
    router: Router,
    controller: JoinHandle<()>,
    authority: Arc<Authority>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.controller.abort();
        self.switch.abort();
    }
}

impl Proxy {
    /// A proxy to be at `host:port`; port 0 stands for any three free ports in a row.
    pub fn bind(address: impl Into<String>) -> Builder {
        Builder { address: address.into(), config: Config::default() }
    }

    async fn start(address: &str, config: Config) -> Result<Self> {
        let admission = config.admission();
        let router = Router::new(SocketOptions {
            heartbeat_interval: config.heartbeat_interval,
            heartbeat_timeout: config.heartbeat_timeout,
            // Answers are a few bytes each.
            send_high_water_mark: HighWaterMark::bytes(64 << 10),
            receive_high_water_mark: 64 << 10,
            limits: Limits { message_size: 64 << 10, ..config.limits.clone() },
            tcp: config.tcp.clone(),
            admission: admission.clone(),
            security: config.security.security(&config.authority),
            ..SocketOptions::default()
        });
        let authority = config.authority.clone();
        let (address, publishers, subscribers) = bind(address, &config, &router).await?;
        let switch = Switch::start_with(config, admission);

        // The control plane comes first, so that no request is ever missed.
        let name = uuid::Uuid::new_v4();
        let requests_endpoint = Endpoint::Inproc(format!("xmsg-proxy-{name}.sub"));
        let answers_endpoint = Endpoint::Inproc(format!("xmsg-proxy-{name}.pub"));
        let tcp = xmsg_core::socket::TcpOptions::default;
        switch.listen(Listener::bind(&requests_endpoint, tcp()).await?, Side::Requests);
        switch.listen(Listener::bind(&answers_endpoint, tcp()).await?, Side::Answers);
        let requests = Subscriber::new(SocketOptions::default());
        requests.subscribe(CONTROL_TOPIC);
        requests.connect(requests_endpoint);
        let answers = Publisher::new(SocketOptions::default());
        answers.connect(answers_endpoint);
        switch.subscribed(CONTROL_TOPIC).await;

        let ignored = AtomicU64::new(0);
        let controller =
            Controller { switch: switch.clone(), requests, answers, router: router.clone(), ignored };
        let controller = tokio::spawn(controller.run());
        switch.listen(publishers, Side::Publishers);
        switch.listen(subscribers, Side::Subscribers);
        Ok(Self { address, switch, router, controller, authority })
    }

    /// Where it listens: host and publisher port.
    #[must_use]
    pub fn address(&self) -> &ProxyAddress {
        &self.address
    }

    /// Puts other rules in force, without ending a connection that they still allow.
    pub async fn replace_rules(&self, rules: Rules) {
        self.authority.replace(rules);
        self.switch.enforce().await;
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

    /// How many subscriptions there are: pairs of subscriber and prefix.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.switch.subscriptions()
    }

    /// Stops in order, within about `linger`: accepts nobody any more, reads what publishers had already sent, delivers what is
    /// queued. Returns all counts.
    pub async fn stop(self, linger: Duration) -> Totals {
        let totals = self.switch.stop(linger).await;
        self.controller.abort();
        self.router.close(Duration::from_millis(100)).await;
        totals
    }
}

/// Binds the three ports. With port 0 it looks for three free ones in a row.
async fn bind(address: &str, config: &Config, router: &Router) -> Result<(ProxyAddress, Listener, Listener)> {
    let any = address.strip_suffix(":0");
    for attempt in 1.. {
        let (first, wanted) = match any {
            None => {
                let wanted: ProxyAddress = address.parse()?;
                let endpoint = Endpoint::tcp(wanted.host(), wanted.publish_port());
                (Listener::bind(&endpoint, config.tcp.clone()).await?, wanted)
            }
            Some(host) => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let first = Listener::bind(&Endpoint::tcp(host, 0), config.tcp.clone()).await?;
                let Endpoint::Tcp { port, .. } = *first.endpoint() else { continue };
                if port > LAST_PORT {
                    continue;
                }
                (first, ProxyAddress::new(host, port)?)
            }
        };
        let rest = async {
            let endpoint = |port| Endpoint::tcp(wanted.host(), port);
            let second = Listener::bind(&endpoint(wanted.subscribe_port()), config.tcp.clone()).await?;
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
