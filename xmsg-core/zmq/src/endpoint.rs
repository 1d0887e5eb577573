//! Where sockets meet: `tcp://host:port`, `ipc://path`, `inproc://name`.

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
    /// TCP. To bind, `*` means every interface and port 0 any free port.
    Tcp {
        /// A name or address; IPv6 without brackets.
        host: String,
        /// 0 to 65535.
        port: u16,
    },
    /// A Unix socket at this path.
    Ipc(PathBuf),
    /// In the memory of this process, under this name.
    Inproc(String),
}

impl Endpoint {
    /// A TCP endpoint.
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
            // A path of a Unix socket has to fit into `sun_path`, with its closing zero.
            return match path.len() {
                0 => Err(invalid("the path is missing")),
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
        let Some(address) = text.strip_prefix("tcp://") else {
            return Err(invalid("it has to start with tcp://, ipc:// or inproc://"));
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(|| invalid("the port is missing"))?;
        let port = if port == "*" {
            0
        } else {
            port.parse().map_err(|_| invalid("the port is not in 0..=65535"))?
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(|| invalid("a bracket is missing"))?,
            None if host.contains(':') => {
                return Err(invalid("an IPv6 address needs brackets: tcp://[::1]:7771"));
            }
            None => host,
        };
        if host.is_empty() { Err(invalid("the host is missing")) } else { Ok(Self::tcp(host, port)) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
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
        for text in
            ["tcp://127.0.0.1:7771", "tcp://[::1]:0", "tcp://*:1", "ipc:///tmp/x.sock", "inproc://demo"]
        {
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
            (&long, "107"),
            ("inproc://", "name"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
