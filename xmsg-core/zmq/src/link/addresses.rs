//! Resolution of the names in endpoints to addresses: names of hosts, and of the interfaces of this machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::link::transport::connect_error;
use crate::{Endpoint, Error, ErrorKind, Result};

/// Returns the addresses of a host name, at least one.
pub(crate) async fn look_up(endpoint: &Endpoint, host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let error = match tokio::net::lookup_host((host, port)).await {
        Ok(addresses) => {
            let addresses: Vec<_> = addresses.collect();
            if !addresses.is_empty() {
                return Ok(addresses);
            }
            io::Error::new(io::ErrorKind::NotFound, "the name has no address")
        }
        Err(error) => error,
    };
    // Without free descriptors, the resolver can't open its files and sockets, and the system reports that
    // the name is unknown.
    let error = std::fs::File::open("/dev/null").err().filter(Error::is_used_up).unwrap_or(error);
    if Error::is_used_up(&error) {
        return Err(connect_error(endpoint, error));
    }
    let what = format!(
        "cannot find an address for the host {host:?} of {endpoint}: is its name right, and known here?"
    );
    Err(Error::new(ErrorKind::UnknownHost, what).with_source(error))
}

/// Returns the addresses to bind to for this host, at least one. `*` means every interface, and the name of
/// an interface means its addresses.
pub(crate) async fn to_bind(endpoint: &Endpoint, host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    if host == "*" {
        return Ok(vec![(Ipv4Addr::UNSPECIFIED, port).into()]);
    }
    // A literal address needs no list of interfaces, which may be long.
    if host.parse::<IpAddr>().is_err() {
        let addresses: Vec<_> = interface(host).into_iter().map(|(ip, _)| (ip, port).into()).collect();
        if !addresses.is_empty() {
            return Ok(addresses);
        }
    }
    look_up(endpoint, host, port).await
}

/// Returns the result of `make` for the first address for which it succeeds, or the last error.
pub(crate) fn first_that_does<T>(
    addresses: Vec<SocketAddr>,
    make: impl Fn(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match make(address) {
            Ok(first) => return Ok(first),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Returns the addresses of the interface with this name and the index of the interface, IPv4 first. The list
/// is empty if there is no such interface or the system does not list its interfaces.
pub(crate) fn interface(name: &str) -> Vec<(IpAddr, u32)> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    let named = all.into_iter().filter(|interface| interface.name == name);
    let mut found: Vec<_> = named.map(|found| (found.ip(), found.index.unwrap_or_default())).collect();
    found.sort_by_key(|(ip, _)| ip.is_ipv6());
    found
}

/// Returns the index of the interface that has this address.
pub(crate) fn interface_with(address: IpAddr) -> Option<u32> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    all.into_iter().find(|interface| interface.ip() == address).and_then(|found| found.index)
}
