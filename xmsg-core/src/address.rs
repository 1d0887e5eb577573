//! Addresses of proxies and registrars: a host and a port, which are checked when an address is made.

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::Violation;

/// The default port of a proxy for publishers.
pub const DEFAULT_PROXY_PORT: u16 = 7771;

/// The default port of a registrar.
pub const DEFAULT_REGISTRAR_PORT: u16 = 8888;

/// The highest port of a proxy for publishers: the two ports after it must be valid, too.
pub const MAX_PROXY_PORT: u16 = u16::MAX - 2;

const DEFAULT_HOST: &str = "127.0.0.1";

/// The address of a proxy: a host and the first of its three ports, `P`, which is that for publishers.
/// Cloning is cheap.
///
/// Publishers connect to `P`, subscribers to `P + 1` and control sockets to `P + 2`. Two addresses are equal
/// if host and port are equal; names are not resolved. The default is `127.0.0.1:7771`.
///
/// ```
/// use xmsg_core::ProxyAddress;
///
/// let proxy: ProxyAddress = "10.0.0.7".parse()?;
/// assert_eq!(proxy.to_string(), "10.0.0.7:7771");
/// assert_eq!(proxy.subscribe_endpoint(), "tcp://10.0.0.7:7772");
/// assert_eq!("[::1]:9000".parse::<ProxyAddress>()?.control_port(), 9002);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyAddress {
    host: Host,
    port: u16,
}

impl ProxyAddress {
    /// Makes the address of the proxy on this host with this port for publishers. An IPv6 address may have
    /// brackets or not.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidAddress`] unless the host is valid and the port is 1 to [`MAX_PROXY_PORT`].
    pub fn new(host: impl AsRef<str>, port: u16) -> Result<Self> {
        let host = Host::new(host.as_ref())?;
        if port == 0 || port > MAX_PROXY_PORT {
            return Err(invalid(format!(
                "the proxy port {port} on {host} can't be used: a proxy takes three ports P, P+1 and P+2, so \
                 that P has to be 1 to {MAX_PROXY_PORT}"
            )));
        }
        Ok(Self { host, port })
    }

    /// Returns the host: a name or an IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host.0
    }

    /// Returns the port `P`, to which publishers connect.
    #[must_use]
    pub fn publish_port(&self) -> u16 {
        self.port
    }

    /// Returns the port `P + 1`, to which subscribers connect.
    #[must_use]
    pub fn subscribe_port(&self) -> u16 {
        self.port + 1
    }

    /// Returns the port `P + 2`, to which control sockets connect.
    #[must_use]
    pub fn control_port(&self) -> u16 {
        self.port + 2
    }

    /// Returns the address that was probably meant, if the error of a connection shows that another of the
    /// three ports of a proxy was reached. An address with the port for subscribers or the control port leads
    /// to a port that is one or two too high.
    pub(crate) fn meant(&self, error: &Error) -> Option<Self> {
        let mut cause = error.source();
        let (theirs, ours) = loop {
            match cause?.downcast_ref() {
                Some(Violation::SocketTypeMismatch { theirs, ours }) => break (theirs.as_str(), *ours),
                _ => cause = cause?.source(),
            }
        };
        let wanted = ["PUB", "SUB", "DEALER"].into_iter().position(|kind| kind == ours)?;
        let found = ["XSUB", "XPUB", "ROUTER"].into_iter().position(|kind| kind == theirs)?;
        let port = (usize::from(self.port) + wanted).checked_sub(found)?;
        Self::new(self.host(), u16::try_from(port).ok()?).ok()
    }

    /// Returns the endpoint for publishers, as `tcp://host:port`.
    #[must_use]
    pub fn publish_endpoint(&self) -> String {
        self.host.endpoint(self.publish_port())
    }

    /// Returns the endpoint for subscribers, as `tcp://host:port`.
    #[must_use]
    pub fn subscribe_endpoint(&self) -> String {
        self.host.endpoint(self.subscribe_port())
    }

    /// Returns the endpoint for control sockets, as `tcp://host:port`.
    #[must_use]
    pub fn control_endpoint(&self) -> String {
        self.host.endpoint(self.control_port())
    }
}

/// The address of a registrar: a host and its port. Cloning is cheap. The default is `127.0.0.1:8888`.
///
/// ```
/// use xmsg_core::address::RegistrarAddress;
///
/// let registrar: RegistrarAddress = "registrar.example".parse()?;
/// assert_eq!(registrar.endpoint(), "tcp://registrar.example:8888");
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistrarAddress {
    host: Host,
    port: u16,
}

impl RegistrarAddress {
    /// Makes the address of the registrar on this host with this port. An IPv6 address may have brackets or
    /// not.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidAddress`] unless the host is valid and the port is not 0.
    pub fn new(host: impl AsRef<str>, port: u16) -> Result<Self> {
        let host = Host::new(host.as_ref())?;
        if port == 0 {
            return Err(invalid(format!("the registrar port on {host} can't be 0: it has to be 1 to 65535")));
        }
        Ok(Self { host, port })
    }

    /// Returns the host: a name or an IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host.0
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the endpoint, as `tcp://host:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.host.endpoint(self.port)
    }
}

/// Implements for both kinds of address: a default, `host[:port]` as text, and conversions from text.
macro_rules! text_form {
    ($address:ident, $default_port:expr) => {
        impl Default for $address {
            fn default() -> Self {
                Self { host: Host(DEFAULT_HOST.into()), port: $default_port }
            }
        }

        /// Parses `host`, `host:port`, `[IPv6]` or `[IPv6]:port`. Without a port, the default port is used.
        impl FromStr for $address {
            type Err = Error;

            fn from_str(address: &str) -> Result<Self> {
                let (host, port) = split(address)?;
                Self::new(host, port.unwrap_or($default_port))
            }
        }

        impl From<&$address> for $address {
            fn from(address: &$address) -> Self {
                address.clone()
            }
        }

        impl TryFrom<String> for $address {
            type Error = Error;

            fn try_from(address: String) -> Result<Self> {
                address.parse()
            }
        }

        impl TryFrom<&String> for $address {
            type Error = Error;

            fn try_from(address: &String) -> Result<Self> {
                address.parse()
            }
        }

        impl TryFrom<&str> for $address {
            type Error = Error;

            fn try_from(address: &str) -> Result<Self> {
                address.parse()
            }
        }

        impl fmt::Display for $address {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!("{}:{}", self.host, self.port))
            }
        }
    };
}

text_form!(ProxyAddress, DEFAULT_PROXY_PORT);
text_form!(RegistrarAddress, DEFAULT_REGISTRAR_PORT);

/// A host that can be part of an endpoint: a name, an IPv4 address, or an IPv6 address without brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Host(Arc<str>);

impl Host {
    fn new(host: &str) -> Result<Self> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let name = bare.unwrap_or(host);
        if name.is_empty() {
            return Err(invalid("the address has no host: give a name or an IP address".into()));
        }
        if is_ipv6(name) {
            return Ok(Self(name.into()));
        }
        if bare.is_some() || name.contains(':') {
            return Err(invalid(format!(
                "`{host}` is not a host: `:` and brackets are for IPv6 addresses, `[::1]`"
            )));
        }
        let misplaced = |c: char| c.is_whitespace() || c.is_control() || "/\\[]@?#*".contains(c);
        if let Some(character) = name.chars().find(|c| misplaced(*c)) {
            return Err(invalid(format!(
                "`{}` is not a host: {character:?} can't be in a name or an IP address",
                host.escape_debug()
            )));
        }
        Ok(Self(name.into()))
    }

    fn endpoint(&self, port: u16) -> String {
        format!("tcp://{self}:{port}")
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bracketed(&self.0))
    }
}

/// Returns a host as it is written in front of a port: an IPv6 address in brackets, so that its colons are
/// not taken for that of the port.
///
/// ```
/// use xmsg_core::address::bracketed;
///
/// assert_eq!(format!("{}:7771", bracketed("::1")), "[::1]:7771");
/// assert_eq!(format!("{}:7771", bracketed("localhost")), "localhost:7771");
/// ```
#[must_use]
pub fn bracketed(host: &str) -> Cow<'_, str> {
    if host.contains(':') { format!("[{host}]").into() } else { host.into() }
}

/// Returns whether this is an IPv6 address, which may have a zone as in `fe80::1%eth0`.
fn is_ipv6(host: &str) -> bool {
    let (address, zone) = host.split_once('%').unwrap_or((host, "0"));
    let zone_fits = !zone.is_empty() && zone.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    zone_fits && address.parse::<Ipv6Addr>().is_ok()
}

/// Splits `host[:port]` into host and port. The host is not checked here.
fn split(address: &str) -> Result<(&str, Option<u16>)> {
    if let Some((scheme, _)) = address.split_once("://") {
        return Err(invalid(format!(
            "`{}` starts with a scheme: leave out `{}://`, an address is `host` or `host:port`",
            address.escape_debug(),
            scheme.escape_debug()
        )));
    }
    if is_ipv6(address) {
        return Err(invalid(format!("the IPv6 address `{address}` needs brackets: `[{address}]`")));
    }
    if address.starts_with('[') && !address.contains(']') {
        return Err(invalid(format!("`{}` lacks the closing bracket of its host", address.escape_debug())));
    }
    // Within brackets, a `:` belongs to the host.
    let after_brackets = address.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = address[after_brackets..].find(':').map(|at| at + after_brackets) else {
        return Ok((address, None));
    };
    let (host, port) = (&address[..colon], &address[colon + 1..]);
    // The parser of `u16` alone would accept `+1`, too.
    let number = if port.bytes().all(|byte| byte.is_ascii_digit()) { port.parse().ok() } else { None };
    match number {
        Some(port) => Ok((host, Some(port))),
        None => Err(invalid(format!(
            "`{}` has no usable port after its host: expected a number, 1 to 65535, after the `:`",
            address.escape_debug()
        ))),
    }
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::InvalidAddress, context)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn proxy(address: &str) -> ProxyAddress {
        address.parse().unwrap()
    }

    #[test]
    fn addresses_are_read_and_printed() {
        let cases = [
            ("localhost", "localhost:7771"),
            ("localhost:9000", "localhost:9000"),
            ("10.0.0.7:65533", "10.0.0.7:65533"),
            ("my_host-1.example", "my_host-1.example:7771"),
            ("[::1]", "[::1]:7771"),
            ("[::1]:1", "[::1]:1"),
            ("[fe80::1%eth0]:7771", "[fe80::1%eth0]:7771"),
        ];
        for (text, printed) in cases {
            assert_eq!(proxy(text).to_string(), printed);
            assert_eq!(proxy(printed), proxy(text));
        }
        assert_eq!(ProxyAddress::default(), proxy("127.0.0.1"));
        assert_eq!(RegistrarAddress::default().to_string(), "127.0.0.1:8888");
        assert_eq!(ProxyAddress::new("::1", 1).unwrap(), proxy("[::1]:1"));
    }

    #[test]
    fn a_proxy_has_three_ports() {
        let proxy = proxy("[::1]:65533");
        assert_eq!(
            (proxy.publish_port(), proxy.subscribe_port(), proxy.control_port()),
            (65533, 65534, 65535)
        );
        assert_eq!(proxy.publish_endpoint(), "tcp://[::1]:65533");
        assert_eq!(proxy.subscribe_endpoint(), "tcp://[::1]:65534");
        assert_eq!(proxy.control_endpoint(), "tcp://[::1]:65535");
    }

    #[test]
    fn equal_are_host_and_port() {
        let addresses = HashSet::from([proxy("a"), proxy("a:7771"), proxy("a:7772"), proxy("b")]);
        assert_eq!(addresses.len(), 3);
    }

    #[test]
    fn what_is_no_address_is_refused_with_advice() {
        let cases = [
            ("", "no host"),
            (":7771", "no host"),
            ("[]", "no host"),
            ("[]:1", "no host"),
            ("tcp://localhost:7771", "leave out `tcp://`"),
            ("a b", "' ' can't be"),
            (" a", "' ' can't be"),
            ("a\n", "'\\n' can't be"),
            ("a/b", "'/' can't be"),
            ("*:7771", "'*' can't be"),
            ("::1", "`[::1]`"),
            ("[localhost]", "IPv6"),
            ("[::1", "closing bracket"),
            ("[::1:7771", "closing bracket"),
            ("[::1%]", "IPv6"),
            ("[::1]x:1", "brackets are for IPv6"),
            ("a:", "no usable port"),
            ("a:x", "no usable port"),
            ("a:+1", "no usable port"),
            ("a:1:2", "no usable port"),
            ("a:65536", "no usable port"),
            ("a:65534", "three ports P, P+1 and P+2"),
            ("a:0", "1 to 65533"),
        ];
        for (text, advice) in cases {
            let error = text.parse::<ProxyAddress>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(advice), "{text:?}: {error}");
        }
        assert!("a:65535".parse::<RegistrarAddress>().is_ok());
        assert!("a:0".parse::<RegistrarAddress>().unwrap_err().to_string().contains("can't be 0"));
    }

    #[test]
    fn another_port_of_a_proxy_tells_which_one_is_meant() {
        let meant = |text: &str, ours, theirs: &str| {
            let found = Violation::SocketTypeMismatch { theirs: theirs.into(), ours };
            let inner = Error::new(ErrorKind::WrongPort, "no handshake").with_source(found);
            let error = Error::new(ErrorKind::WrongPort, "no proxy").with_source(inner);
            proxy(text).meant(&error).map(|proxy| proxy.to_string())
        };
        // A publishing socket with the port for subscribers reaches the XPUB socket of the proxy, and so on.
        assert_eq!(meant("h:7772", "PUB", "XPUB").unwrap(), "h:7771");
        assert_eq!(meant("h:7773", "PUB", "ROUTER").unwrap(), "h:7771");
        assert_eq!(meant("h:7770", "SUB", "XSUB").unwrap(), "h:7771");
        assert_eq!(meant("h:7770", "DEALER", "XPUB").unwrap(), "h:7771");
        assert_eq!(meant("h:7769", "DEALER", "XSUB").unwrap(), "h:7771");
        assert_eq!(meant("h:1", "PUB", "ROUTER"), None);
        assert_eq!(meant("h:7772", "PUB", "PULL"), None);
        assert_eq!(proxy("h:7772").meant(&Error::new(ErrorKind::Refused, "x").with_source("y")), None);
    }

    proptest! {
        #[test]
        fn what_is_read_prints_as_it_can_be_read_again(text in "[a-c:\\[\\]%./ 0-9ß]{0,12}") {
            if let Ok(address) = text.parse::<ProxyAddress>() {
                prop_assert_eq!(proxy(&address.to_string()), address);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = (text.parse::<ProxyAddress>(), text.parse::<RegistrarAddress>());
        }
    }
}
