//! Another proxy whose subscribers' port this one connects to, and the state of the link to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::address::DEFAULT_PROXY_PORT;
use xmsg_core::{Error, ErrorKind, ProxyAddress, Result};
use xmsg_zmq::security::{PublicKey, Security};
use xmsg_zmq::{Amount, Endpoint};

/// The largest number of upstreams of a proxy. Each is a task and a connection, and is notified of every
/// change of subscriptions.
pub const UPSTREAMS_MAX: usize = 64;

/// A proxy to whose subscribers' port (XPUB) this one connects: it subscribes there to what its own
/// subscribers want, and passes on to them what comes. The other proxy may be an xMsg proxy, or any ZeroMQ
/// socket of type XPUB.
///
/// An address without `tcp://` is that of an xMsg proxy: its host and the first of its three ports, 7771
/// unless told otherwise. One with `tcp://` or `ipc://` is that of the subscribers' port itself.
///
/// ```
/// use xmsg_proxy::Upstream;
///
/// let upstream: Upstream = "daq.example".parse()?;
/// assert_eq!(upstream.to_string(), "tcp://daq.example:7772");
/// assert_eq!("daq.example:9000".parse::<Upstream>()?.to_string(), "tcp://daq.example:9001");
/// assert_eq!("tcp://daq.example:5556".parse::<Upstream>()?.to_string(), "tcp://daq.example:5556");
/// assert!("daq.example:7772".parse::<Upstream>().is_err(), "7772 is not the first port of a proxy");
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Upstream {
    endpoint: Endpoint,
    security: Security,
    /// Whether its keys were generated, so that others would do as well.
    is_anonymous: bool,
    topics: Vec<Bytes>,
}

impl Upstream {
    /// Creates an upstream at this endpoint: `tcp://host:port`, or `ipc://path`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] for an endpoint to which nobody can connect over a network or a Unix
    /// socket.
    pub fn new(endpoint: Endpoint) -> Result<Self> {
        let wrong = |why: &str| {
            Err(Error::new(ErrorKind::InvalidAddress, format!("{endpoint} can't be an upstream: {why}")))
        };
        match &endpoint {
            Endpoint::Tcp { port: 0, .. } => {
                return wrong("it needs the subscribers' port of the other proxy, such as 7772");
            }
            Endpoint::Tcp { host, .. } if host.is_empty() || host == "*" => {
                return wrong("it needs the host of the other proxy");
            }
            Endpoint::Tcp { .. } | Endpoint::Ipc(_) => {}
            _ => {
                return wrong(
                    "give tcp://HOST:PORT, ipc://PATH, or the address of an xMsg proxy, HOST[:PORT]",
                );
            }
        }
        Ok(Self { endpoint, security: Security::Null, is_anonymous: false, topics: vec![Bytes::new()] })
    }

    /// Connects to it as a client with this security.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for the security of a server.
    pub fn security(self, security: Security) -> Result<Self> {
        if matches!(security, Security::PlainServer(_) | Security::CurveServer { .. }) {
            let what = format!("{self} needs the security of a client: this proxy connects to it");
            return Err(Error::new(ErrorKind::InvalidOption, what));
        }
        Ok(Self { security, is_anonymous: false, ..self })
    }

    /// Connects to it with CURVE and generated keys, for a proxy that admits every key.
    pub fn anonymous(self, server: PublicKey) -> Result<Self> {
        Ok(Self { security: Security::anonymous(server)?, is_anonymous: true, ..self })
    }

    /// Subscribes only to topics with these prefixes, and accepts no others. Default: all topics.
    #[must_use]
    pub fn topics<T: Into<Bytes>>(self, prefixes: impl IntoIterator<Item = T>) -> Self {
        Self { topics: prefixes.into_iter().map(Into::into).collect(), ..self }
    }

    /// Returns its endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn client(&self) -> &Security {
        &self.security
    }

    pub(crate) fn wanted(&self) -> &[Bytes] {
        &self.topics
    }

    /// Refuses more than [`UPSTREAMS_MAX`] upstreams, and two with one endpoint: every message would come
    /// twice.
    pub(crate) fn check(upstreams: &[Self]) -> Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidOption, what));
        if upstreams.len() > UPSTREAMS_MAX {
            return wrong(format!("{} upstreams: there may be {UPSTREAMS_MAX}", upstreams.len()));
        }
        for (number, one) in upstreams.iter().enumerate() {
            if upstreams[..number].iter().any(|other| other.endpoint == one.endpoint) {
                return wrong(format!("the upstream {one} is there twice: its messages would come twice"));
            }
        }
        Ok(())
    }
}

impl FromStr for Upstream {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.contains("://") {
            return Self::new(text.parse()?);
        }
        let proxy: ProxyAddress = text.parse()?;
        let port = proxy.publish_port();
        if port == DEFAULT_PROXY_PORT + 1 || port == DEFAULT_PROXY_PORT + 2 {
            let host = proxy.host();
            let what = format!(
                "the upstream {text}: the address of an xMsg proxy has the first of its three ports, usually {DEFAULT_PROXY_PORT}. \
                 Write {host}, or, for exactly this port, tcp://{host}:{port}"
            );
            return Err(Error::new(ErrorKind::InvalidAddress, what));
        }
        Self::new(proxy.subscribe_endpoint().parse()?)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

/// Two upstreams are equal if a link could not tell that one had replaced the other.
impl PartialEq for Upstream {
    fn eq(&self, other: &Self) -> bool {
        let has_same_security = match (&self.security, &other.security) {
            (Security::Null, Security::Null) => true,
            (
                Security::PlainClient { user, password },
                Security::PlainClient { user: name, password: word },
            ) => user == name && password.expose() == word.expose(),
            (Security::CurveClient { keys, server }, Security::CurveClient { keys: own, server: theirs }) => {
                (keys == own || (self.is_anonymous && other.is_anonymous)) && server == theirs
            }
            _ => false,
        };
        has_same_security && self.endpoint == other.endpoint && self.topics == other.topics
    }
}

impl Eq for Upstream {}

/// The state of the link to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamState {
    /// A connection is being made.
    #[default]
    Connecting,
    /// There is a connection, and the link checks whether it would close a loop. It has not subscribed to
    /// anything yet.
    Checking,
    /// The link is up.
    Connected,
    /// The messages that it would bring come from this proxy itself. The link tries again, with growing
    /// pauses.
    Loop,
    /// There is no connection. The link tries again, with growing pauses.
    Disconnected,
}

impl UpstreamState {
    /// Returns its name in documents, metrics and commands.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Checking => "checking",
            Self::Connected => "connected",
            Self::Loop => "loop",
            Self::Disconnected => "disconnected",
        }
    }
}

/// The statistics of the link to one upstream.
#[derive(Clone, Debug)]
pub struct UpstreamStats {
    /// The number of the link, which it keeps through all its connections. No other connection of this proxy
    /// has it.
    pub id: u32,
    /// The endpoint that it connects to.
    pub address: String,
    /// The state of the link.
    pub state: UpstreamState,
    /// The time that it has been in this state.
    pub state_for: Duration,
    /// The messages from there, over all connections.
    pub received: Amount,
    /// The number of times that the link was up again after it had been up once.
    pub reconnections: u64,
    /// The number of times that it was ended because it would have closed a loop.
    pub loops: u64,
    /// The number of messages for the other proxy or its own clients, which are passed on to nobody: control
    /// requests, and answers to them.
    pub control: u64,
    /// The number of messages that the link's topics do not allow.
    pub denied: u64,
    /// The reason why there is no connection, or why the last one ended.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use xmsg_zmq::security::KeyPair;

    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_do() {
        for (text, says) in [
            ("daq:7772", "tcp://daq:7772"),
            ("daq:7773", "Write daq"),
            ("tcp://daq", "port"),
            ("tcp://daq:0", "7772"),
            ("tcp://*:7772", "host"),
            ("inproc://x", "tcp://HOST:PORT"),
            ("udp://daq:7772", "tcp://HOST:PORT"),
            ("", "host"),
        ] {
            let error = text.parse::<Upstream>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!("[::1]".parse::<Upstream>().unwrap().to_string(), "tcp://[::1]:7772");
        assert_eq!("ipc:///run/daq".parse::<Upstream>().unwrap().to_string(), "ipc:///run/daq");
    }

    #[test]
    fn two_with_one_endpoint_are_one_too_many() {
        let upstream = |text: &str| text.parse::<Upstream>().unwrap();
        let error = Upstream::check(&[upstream("daq"), upstream("tcp://daq:7772")]).unwrap_err().to_string();
        assert!(error.contains("twice"), "{error}");
        let many: Vec<_> = (1..=65).map(|port| upstream(&format!("tcp://daq:{port}"))).collect();
        assert!(Upstream::check(&many).unwrap_err().to_string().contains("64"));
        Upstream::check(&many[1..]).unwrap();
    }

    #[test]
    fn other_keys_or_topics_make_another_upstream() {
        let plain: Upstream = "daq".parse().unwrap();
        let keys = KeyPair::generate().unwrap();
        let server = *keys.public();
        let curve = Security::CurveClient { server, keys };
        let secured = plain.clone().security(curve).unwrap();
        let anonymous = || plain.clone().anonymous(server).unwrap();
        assert_eq!(anonymous(), anonymous());
        assert_ne!(anonymous(), secured);
        assert_eq!(secured, secured.clone());
        assert_ne!(secured, plain);
        assert_ne!(plain, plain.clone().topics(["daq:"]));
    }
}
