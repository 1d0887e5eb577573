//! Endpoints of sockets: `tcp://host:port`, `ipc://path`, `inproc://name`, `udp://host:port`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Error, ErrorKind};

/// An endpoint to bind or to connect to.
///
/// ```
/// use xmsg_zmq::Endpoint;
/// let endpoint: Endpoint = "tcp://[::1]:7771".parse()?;
/// assert_eq!(endpoint, Endpoint::tcp("::1", 7771));
/// assert_eq!(endpoint.to_string(), "tcp://[::1]:7771");
/// # Ok::<(), xmsg_zmq::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A TCP endpoint. To bind, `*` means every interface, and port 0 means any free port.
    Tcp {
        /// A name or address; IPv6 without brackets. To bind, it may also be the name of an interface, such
        /// as `eth0`.
        host: String,
        /// The port, 0 to 65535.
        port: u16,
    },
    /// A Unix socket at this path. On Linux, `@name` is a socket in the abstract namespace, which has no
    /// file.
    Ipc(PathBuf),
    /// A name in the memory of this process.
    Inproc(String),
    /// An endpoint for datagrams, used only by [`Radio`](crate::Radio) and [`Dish`](crate::Dish). Examples
    /// are `udp://239.0.0.1:5555` and `udp://eth0;239.0.0.1:5555`.
    Udp {
        /// The interface for a multicast address, by name or address. `None` means that the system chooses.
        interface: Option<String>,
        /// A host like that of TCP, or a multicast address.
        host: String,
        /// The port, 0 to 65535.
        port: u16,
    },
}

impl Endpoint {
    /// Creates a TCP endpoint.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Tcp { host: host.into(), port }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid =
            |why: &str| Error::new(ErrorKind::InvalidAddress, format!("invalid endpoint {text:?}: {why}"));
        if let Some(path) = text.strip_prefix("ipc://") {
            // The path of a Unix socket has to fit into `sun_path`, with its terminating zero.
            return match path.len() {
                0 => Err(invalid("the path is missing")),
                1 if path == "@" => Err(invalid("the name behind the @ is missing")),
                1..108 => Ok(Self::Ipc(path.into())),
                _ => Err(invalid("the path is longer than 107 bytes")),
            };
        }
        if let Some(name) = text.strip_prefix("inproc://") {
            return if name.is_empty() {
                Err(invalid("the name is missing"))
            } else {
                Ok(Self::Inproc(name.into()))
            };
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            let (host, port) = host_and_port(address).map_err(invalid)?;
            return Ok(Self::Tcp { host, port });
        }
        let Some(address) = text.strip_prefix("udp://") else {
            return Err(invalid("it has to start with tcp://, ipc://, inproc:// or udp://"));
        };
        let (interface, address) = match address.rsplit_once(';') {
            Some(("", _)) => return Err(invalid("the interface before the semicolon is missing")),
            Some((interface, address)) => (Some(interface.to_owned()), address),
            None => (None, address),
        };
        let (host, port) = host_and_port(address).map_err(invalid)?;
        Ok(Self::Udp { interface, host, port })
    }
}

/// Parses `host:port`. The error says what is wrong.
fn host_and_port(address: &str) -> Result<(String, u16), &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("the port is missing")?;
    let port = if port == "*" { 0 } else { port.parse().map_err(|_| "the port is not in 0..=65535")? };
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or("a bracket is missing")?,
        None if host.contains(':') => return Err("an IPv6 address needs brackets: [::1]:7771"),
        None => host,
    };
    if host.is_empty() { Err("the host is missing") } else { Ok((host.to_owned(), port)) }
}

/// Displays `host:port` in the form in which it is parsed.
struct HostAndPort<'a>(&'a str, u16);

impl fmt::Display for HostAndPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp://{}", HostAndPort(host, *port)),
            Self::Udp { interface: None, host, port } => write!(f, "udp://{}", HostAndPort(host, *port)),
            Self::Udp { interface: Some(interface), host, port } => {
                write!(f, "udp://{interface};{}", HostAndPort(host, *port))
            }
            Self::Ipc(path) => write!(f, "ipc://{}", path.display()),
            Self::Inproc(name) => write!(f, "inproc://{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back() {
        for text in [
            "tcp://127.0.0.1:7771",
            "tcp://[::1]:0",
            "tcp://*:1",
            "ipc:///tmp/x.sock",
            "ipc://@abstract",
            "inproc://demo",
            "udp://127.0.0.1:5555",
            "udp://eth0;239.0.0.1:5555",
            "udp://lo;[ff02::1]:5555",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_endpoints_say_why() {
        let long = format!("ipc:///{}", "x".repeat(107));
        for (text, why) in [
            ("127.0.0.1:7771", "tcp://"),
            ("tcp://host", "port"),
            ("tcp://host:70000", "65535"),
            ("tcp://:1", "host"),
            ("tcp://::1:5", "brackets"),
            ("tcp://[::1:5", "bracket"),
            ("ipc://", "path"),
            ("ipc://@", "name"),
            ("udp://host", "port"),
            ("udp://;239.0.0.1:5555", "interface"),
            (&long, "107"),
            ("inproc://", "name"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
