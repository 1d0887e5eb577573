//! Connections through a SOCKS5 proxy (RFC 1928).

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_socks::Error as SocksError;
use tokio_socks::tcp::Socks5Stream;

use super::transport::{Stream, connect_error};
use crate::security::Password;
use crate::{Endpoint, Error, ErrorKind, Result, TcpOptions};

/// A SOCKS5 proxy, through which a socket makes its TCP connections.
///
/// ```
/// use xmsg_zmq::{Push, SocketOptions, SocksProxy};
/// let push = Push::new(SocketOptions::default().socks_proxy(SocksProxy::new("gateway.example", 1080)));
/// ```
#[derive(Clone, Debug)]
pub struct SocksProxy {
    host: String,
    port: u16,
    /// The user name and password of RFC 1929.
    user: Option<(String, Password)>,
}

/// The destination of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

impl SocksProxy {
    /// A proxy at this address, without authentication. The usual port is 1080.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port, user: None }
    }

    /// Sets the name and password for the proxy, which are sent in clear text. Each has 1 to 255 bytes.
    #[must_use]
    pub fn user(self, name: impl Into<String>, password: Password) -> Self {
        Self { user: Some((name.into(), password)), ..self }
    }

    /// Connects once. `limit` covers the connection to the proxy, the connection from there, and the ZeroMQ
    /// handshake; the first may take half of it.
    pub(crate) async fn connect(
        &self,
        target: Target<'_>,
        options: &TcpOptions,
        limit: Duration,
    ) -> Result<Stream> {
        let ours = Endpoint::tcp(self.host.clone(), self.port);
        let to_proxy = Stream::connect(&ours, options, limit / 2).await.map_err(|error| {
            let what = format!("cannot connect to {}: no way to the SOCKS5 proxy", target.endpoint);
            Error::new(error.kind(), what).with_source(error)
        })?;
        let Stream::Tcp(stream) = to_proxy else {
            return Err(Error::new(ErrorKind::Io, "the connection to the SOCKS5 proxy is no TCP connection"));
        };
        let through: std::result::Result<Socks5Stream<TcpStream>, _> = match &self.user {
            None => Socks5Stream::connect_with_socket(stream, (target.host, target.port)).await,
            Some((user, password)) => {
                let to = (target.host, target.port);
                Socks5Stream::connect_with_password_and_socket(stream, to, user, password.expose()).await
            }
        };
        match through {
            Ok(stream) => Ok(Stream::Tcp(stream.into_inner())),
            Err(error) => Err(failed(&ours, target.endpoint, error)),
        }
    }
}

/// Returns the error for a failure that the proxy reports.
fn failed(proxy: &Endpoint, target: &Endpoint, error: SocksError) -> Error {
    let what = format!("cannot connect to {target} through the SOCKS5 proxy {proxy}");
    match error {
        SocksError::ConnectionRefused => connect_error(target, io::ErrorKind::ConnectionRefused.into()),
        SocksError::Io(error) => Error::new(Error::kind_of(&error), what).with_source(error),
        SocksError::HostUnreachable => Error::new(ErrorKind::UnknownHost, what).with_source(error),
        SocksError::NetworkUnreachable | SocksError::TtlExpired => {
            Error::new(ErrorKind::Refused, what).with_source(error)
        }
        SocksError::NoAcceptableAuthMethods
        | SocksError::AuthorizationRequired
        | SocksError::PasswordAuthFailure(_) => {
            let what = format!("{what}: it does not let us in, see SocksProxy::user");
            Error::new(ErrorKind::NotAllowed, what).with_source(error)
        }
        SocksError::ConnectionNotAllowedByRuleset => {
            let what = format!("{what}: its rules do not allow it");
            Error::new(ErrorKind::NotAllowed, what).with_source(error)
        }
        SocksError::InvalidTargetAddress(_) | SocksError::InvalidAuthValues(_) => {
            Error::new(ErrorKind::InvalidOption, what).with_source(error)
        }
        error => Error::new(ErrorKind::Protocol, what).with_source(error),
    }
}
