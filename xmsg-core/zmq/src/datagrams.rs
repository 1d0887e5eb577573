//! UDP sockets for RADIO and DISH, and their queues.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::link::addresses;
use crate::link::send_queue::HighWaterMark;
use crate::link::transport::{bind_error, connect_error};
use crate::{Endpoint, Error, ErrorKind, Result};

/// The largest datagram that libzmq receives, in bytes. It truncates longer ones without notice
/// (`MAX_UDP_MSG`).
pub(crate) const LIBZMQ_MAX: usize = 8_192;

/// How a socket sends to a multicast address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Multicast {
    pub(crate) is_looped_back: bool,
    pub(crate) hops: u32,
}

/// Creates a socket that sends to this endpoint only.
pub(crate) async fn sender(
    endpoint: &Endpoint,
    multicast: Multicast,
    send_buffer: Option<usize>,
) -> Result<UdpSocket> {
    let (interface, host, port) = parts(endpoint)?;
    let connect = |address: SocketAddr| -> io::Result<UdpSocket> {
        let socket = new_socket(address)?;
        if let Some(bytes) = send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        match address.ip() {
            IpAddr::V4(ip) if ip.is_multicast() => {
                socket.set_multicast_loop_v4(multicast.is_looped_back)?;
                socket.set_multicast_ttl_v4(multicast.hops)?;
                if let Some(name) = interface {
                    socket.set_multicast_if_v4(&address_of(name)?)?;
                }
            }
            IpAddr::V6(ip) if ip.is_multicast() => {
                socket.set_multicast_loop_v6(multicast.is_looped_back)?;
                socket.set_multicast_hops_v6(multicast.hops)?;
                if let Some(name) = interface {
                    socket.set_multicast_if_v6(index_of(name)?)?;
                }
            }
            _ => only_for_multicast(interface)?,
        }
        socket.connect(&address.into())?;
        UdpSocket::from_std(socket.into())
    };
    addresses::first_that_does(addresses::look_up(endpoint, host, port).await?, connect)
        .map_err(|error| connect_error(endpoint, error))
}

/// Creates a socket that receives what is sent to this endpoint. Returns it with the endpoint and its actual
/// port.
pub(crate) async fn receiver(
    endpoint: &Endpoint,
    receive_buffer: Option<usize>,
) -> Result<(UdpSocket, Endpoint)> {
    let (interface, host, port) = parts(endpoint)?;
    let bind = |address: SocketAddr| -> io::Result<UdpSocket> {
        let socket = new_socket(address)?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let ip = address.ip();
        if ip.is_multicast() {
            // Every program that listens to the address receives all that is sent to it.
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
        } else {
            only_for_multicast(interface)?;
        }
        socket.bind(&address.into())?;
        match ip {
            IpAddr::V4(ip) if ip.is_multicast() => {
                let from = match interface {
                    Some(name) => InterfaceIndexOrAddress::Address(address_of(name)?),
                    None => InterfaceIndexOrAddress::Index(0),
                };
                socket.join_multicast_v4_n(&ip, &from)?;
            }
            IpAddr::V6(ip) if ip.is_multicast() => {
                socket.join_multicast_v6(&ip, interface.map_or(Ok(0), index_of)?)?;
            }
            _ => {}
        }
        UdpSocket::from_std(socket.into())
    };
    let failed = |error| bind_error(endpoint, error);
    let socket =
        addresses::first_that_does(addresses::to_bind(endpoint, host, port).await?, bind).map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    let endpoint = Endpoint::Udp {
        interface: interface.map(str::to_owned),
        host: bound.ip().to_string(),
        port: bound.port(),
    };
    Ok((socket, endpoint))
}

/// Returns the interface, the host and the port of a `udp://` endpoint.
fn parts(endpoint: &Endpoint) -> Result<(Option<&str>, &str, u16)> {
    match endpoint {
        Endpoint::Udp { interface, host, port } => Ok((interface.as_deref(), host, *port)),
        _ => Err(Error::new(
            ErrorKind::InvalidAddress,
            format!("cannot use {endpoint}: RADIO and DISH sockets take udp:// endpoints only"),
        )),
    }
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))
}

fn only_for_multicast(interface: Option<&str>) -> io::Result<()> {
    match interface {
        None => Ok(()),
        Some(_) => Err(invalid("an interface before the semicolon goes with a multicast address only")),
    }
}

/// Returns the IPv4 address of an interface that is given by name or address. `*` means that the system
/// chooses.
fn address_of(interface: &str) -> io::Result<Ipv4Addr> {
    if interface == "*" {
        return Ok(Ipv4Addr::UNSPECIFIED);
    }
    if let Ok(address) = interface.parse() {
        return Ok(address);
    }
    let found = addresses::interface(interface).into_iter().find_map(|(ip, _)| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    });
    found.ok_or_else(|| invalid("there is no interface of this name with an IPv4 address"))
}

/// Returns the index of an interface that is given by name or address. `*` means that the system chooses.
fn index_of(interface: &str) -> io::Result<u32> {
    if interface == "*" {
        return Ok(0);
    }
    let found = match interface.parse::<Ipv6Addr>() {
        Ok(address) => addresses::interface_with(address.into()),
        Err(_) => addresses::interface(interface).first().map(|(_, index)| *index),
    };
    found.ok_or_else(|| invalid("there is no interface of this name with an address"))
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// A queue of messages up to a high-water mark.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    mark: HighWaterMark,
}

impl<T> Queue<T> {
    pub(crate) fn new(mark: HighWaterMark) -> Self {
        Self { items: VecDeque::new(), bytes: 0, mark }
    }

    /// Adds a message that takes `bytes` bytes. Returns whether there was room. An empty queue accepts a
    /// message of any size.
    pub(crate) fn push(&mut self, item: T, bytes: usize) -> bool {
        let is_full = self.items.len() >= self.mark.messages || self.bytes + bytes > self.mark.bytes;
        if is_full && !self.items.is_empty() {
            return false;
        }
        self.bytes += bytes;
        self.items.push_back((item, bytes));
        true
    }

    /// Takes the oldest message.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (item, bytes) = self.items.pop_front()?;
        self.bytes -= bytes;
        Some(item)
    }

    /// Returns the number of messages.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_bounded_by_messages_and_by_bytes() {
        let mut queue = Queue::new(HighWaterMark { messages: 3, bytes: 10 });
        assert!(queue.push("too large, but alone", 20));
        assert!(!queue.push("b", 1));
        assert_eq!(queue.pop(), Some("too large, but alone"));
        assert!(queue.push("a", 4) && queue.push("b", 6) && !queue.push("c", 1));
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some("a"), Some("b"), None));
        assert!(queue.push("a", 1) && queue.push("b", 1) && queue.push("c", 1) && !queue.push("d", 1));
        assert_eq!(queue.len(), 3);
    }
}
