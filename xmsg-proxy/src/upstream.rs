//! Another proxy whose subscribers' port this one connects to, and what is known of the link to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::address::DEFAULT_PROXY_PORT;
use xmsg_core::{Error, ErrorKind, ProxyAddress, Result};
use xmsg_zmq::security::{PublicKey, Security};
use xmsg_zmq::{Amount, Endpoint};

/// A proxy has at most so many upstreams: each is a task and a connection, and is told every change of
/// subscriptions.
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
    /// Its keys were made up, and others would do as well.
    is_anonymous: bool,
    topics: Vec<Bytes>,
}

impl Upstream {
    /// The one at this endpoint: `tcp://host:port`, or `ipc://path`.
    ///
    /// [`ErrorKind::InvalidAddress`] for an endpoint that nobody can connect to over a network or a Unix
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
    /// [`ErrorKind::InvalidOption`] for the security of a server.
    pub fn security(self, security: Security) -> Result<Self> {
        if matches!(security, Security::PlainServer(_) | Security::CurveServer { .. }) {
            let what = format!("{self} needs the security of a client: this proxy connects to it");
            return Err(Error::new(ErrorKind::InvalidOption, what));
        }
        Ok(Self { security, is_anonymous: false, ..self })
    }

    /// The same with CURVE, and keys that are made up: for a proxy that lets every key in.
    pub fn anonymous(self, server: PublicKey) -> Result<Self> {
        Ok(Self { security: Security::anonymous(server)?, is_anonymous: true, ..self })
    }

    /// Asks only for topics with these prefixes, and takes no others. Default: all topics.
    #[must_use]
    pub fn topics<T: Into<Bytes>>(self, prefixes: impl IntoIterator<Item = T>) -> Self {
        Self { topics: prefixes.into_iter().map(Into::into).collect(), ..self }
    }

    /// Where it is.
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

    /// Refuses more than [`UPSTREAMS_MAX`], and two with one endpoint: every message would come twice.
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

/// Equal are those of which a link could not tell that one took the other's place.
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

/// How it stands with the link to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamState {
    /// A connection is being made.
    #[default]
    Connecting,
    /// There is a connection, and it is being found out whether it would close a loop. Nothing is subscribed
    /// to yet.
    Checking,
    /// At work.
    Connected,
    /// What it would bring comes from this proxy itself. It is tried again, with growing pauses.
    Loop,
    /// There is no connection. It is tried again, with growing pauses.
    Disconnected,
}

impl UpstreamState {
    /// Its name in documents, metrics and commands.
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

/// A snapshot of the link to one upstream.
#[derive(Clone, Debug)]
pub struct UpstreamStats {
    /// The number of the link, which it keeps through all its connections. No other connection of this proxy
    /// has it.
    pub id: u32,
    /// The endpoint that it connects to.
    pub address: String,
    /// How it stands.
    pub state: UpstreamState,
    /// For how long it has been so.
    pub state_for: Duration,
    /// Messages from there, over all connections.
    pub received: Amount,
    /// How often the link was at work again after it had been once.
    pub reconnections: u64,
    /// How often it was ended because it would have closed a loop.
    pub loops: u64,
    /// Messages that went to the other proxy or its own clients and are passed on to nobody: control
    /// requests, and answers to them.
    pub control: u64,
    /// Messages that the link's topics do not allow.
    pub denied: u64,
    /// Why there is no connection, or why the last one ended.
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
