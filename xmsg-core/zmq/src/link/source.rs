//! The source of a connection. Where something is shared fairly, connections from one source count together.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// A source of connections. Connections from the same source count together.
///
/// ```
/// use xmsg_zmq::link::source::Source;
///
/// assert_eq!(Source::of("192.0.2.1:50000"), Source::of("192.0.2.1:50001"));
/// assert_eq!(Source::of("[2001:db8::1]:1"), Source::of("[2001:db8::2]:1"));
/// assert_ne!(Source::of("[2001:db8::1]:1"), Source::of("[2001:db8:0:1::1]:1"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An IPv4 address, or an IPv6 network of 64 bits: whoever has one address of such a network has 2⁶⁴ of
    /// them.
    Network(IpAddr),
    /// A peer that has no IP address.
    Other(Arc<str>),
}

impl Source {
    /// The source of a peer with this name, which is an address with a port or anything else.
    #[must_use]
    pub fn of(peer: &str) -> Self {
        match peer.parse::<SocketAddr>() {
            Ok(address) => Self::Network(network(address.ip())),
            Err(_) => Self::Other(peer.into()),
        }
    }
}

/// The part of an address that identifies its source.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}
