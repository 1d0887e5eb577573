//! The error of the library. It says what was being done, to which peer, why it failed, and whose fault it
//! is.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error, to match on. New kinds may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing answered within the time limit. A call that was waiting for a peer whose connection is lost
    /// fails with one of the other kinds, such as [`Refused`](Self::Refused) and
    /// [`NotConnected`](Self::NotConnected).
    Timeout,
    /// The other side is not there, or rejects us.
    Refused,
    /// No address was found for the name of the host.
    UnknownHost,
    /// Another port of the proxy, or something that is not a ZeroMQ socket, listens there.
    WrongPort,
    /// The other side does not accept our credentials, or we are not permitted to do this.
    NotAllowed,
    /// The peer violated the protocol, or speaks one that is not supported.
    Protocol,
    /// The other side received the request, and answered that it failed.
    Remote,
    /// A topic, or the group of a datagram, violates the rules for it.
    InvalidTopic,
    /// An address, host or port cannot be used.
    InvalidAddress,
    /// A message has metadata or data that cannot be decoded as requested.
    InvalidMessage,
    /// An option has an invalid value.
    InvalidOption,
    /// Something exceeds a limit. It was not accepted, and will not be.
    TooLarge,
    /// There is no room at the moment: the queue is at its high-water mark.
    Full,
    /// There is no connection at the moment, or there was none yet.
    NotConnected,
    /// A message was sent, but its arrival was not confirmed.
    Unconfirmed,
    /// The socket, connection or subscription was closed.
    Closed,
    /// A blocking call was made where it is not allowed: within an async runtime.
    WouldBlock,
    /// The system has run out of something that was needed: file descriptors, ports, or memory.
    NoResources,
    /// The operating system reported an error.
    Io,
}

/// An error of the library. `Display` says what failed, where, and what can be done about it.
/// [`source`](StdError::source) is the error of the layer below. Clones share both.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    context: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// Creates an error of this kind. `context` says what failed, on what, and what to do.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into().into(), source: None }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// Changes the kind of the error.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Returns the kind of the error, to match on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Displays the error and its chain of causes in one line.
    ///
    /// ```
    /// use xmsg_zmq::{Error, ErrorKind};
    /// let error = Error::new(ErrorKind::Refused, "no answer from 10.0.0.7").with_source("connection refused");
    /// assert_eq!(error.with_causes().to_string(), "no answer from 10.0.0.7: connection refused");
    /// ```
    #[must_use]
    pub fn with_causes(&self) -> impl fmt::Display + '_ {
        WithCauses(self)
    }

    /// Creates an error for an error of the operating system. Its kind is determined by
    /// [`kind_of`](Self::kind_of).
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::new(Self::kind_of(&source), context).with_source(source)
    }

    /// Returns the kind of an error of the operating system.
    #[must_use]
    pub fn kind_of(error: &io::Error) -> ErrorKind {
        match error.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => ErrorKind::Refused,
            io::ErrorKind::TimedOut => ErrorKind::Timeout,
            io::ErrorKind::PermissionDenied => ErrorKind::NotAllowed,
            io::ErrorKind::OutOfMemory => ErrorKind::NoResources,
            _ if Self::is_used_up(error) => ErrorKind::NoResources,
            _ => ErrorKind::Io,
        }
    }

    /// Returns the error kind for a call whose time ran out while a connection was lost for `reason`. It is
    /// never [`Timeout`](ErrorKind::Timeout), which is reserved for a peer that is connected and does not
    /// answer.
    #[must_use]
    pub fn kind_without_connection(reason: &Self) -> ErrorKind {
        use ErrorKind::{NoResources, NotAllowed, NotConnected, Refused, Timeout, UnknownHost, WrongPort};
        match reason.kind {
            kind @ (UnknownHost | WrongPort | NoResources | NotAllowed) => kind,
            // The peer has vanished, or does not answer connection attempts.
            Timeout => NotConnected,
            _ => Refused,
        }
    }

    /// Returns whether the system has no more descriptors or buffers. The standard library has no kinds for
    /// these errors.
    #[must_use]
    pub fn is_used_up(error: &io::Error) -> bool {
        /// `ENFILE` and `EMFILE` have the same numbers on every Unix.
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        const ENOBUFS: i32 = if cfg!(target_os = "linux") { 105 } else { 55 };
        matches!(error.raw_os_error(), Some(ENFILE | EMFILE | ENOBUFS))
    }
}

impl From<xmsg_zmtp::curve::KeyError> for Error {
    fn from(error: xmsg_zmtp::curve::KeyError) -> Self {
        let source = error.source().map(ToString::to_string);
        let error = Self::new(ErrorKind::InvalidOption, error.to_string());
        match source {
            Some(source) => Self { kind: ErrorKind::Io, ..error }.with_source(source),
            None => error,
        }
    }
}

struct WithCauses<'a>(&'a Error);

impl fmt::Display for WithCauses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.with_causes())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_what_the_error_came_from() {
        let cause = io::Error::from_raw_os_error(24);
        let error = Error::io("cannot connect", cause);
        let clone = error.clone();
        assert_eq!(clone.kind(), ErrorKind::NoResources);
        let source = |error: &Error| std::ptr::from_ref(error.source().unwrap()).cast::<u8>();
        assert_eq!(source(&error), source(&clone));
        let found = clone.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(found.raw_os_error(), Some(24));
    }

    #[test]
    fn without_a_connection_nothing_is_a_timeout() {
        use ErrorKind::{Closed, Io, NoResources, NotConnected, Refused, Timeout, UnknownHost};
        for (reason, kind) in [
            (Closed, Refused),
            (Refused, Refused),
            (Io, Refused),
            (Timeout, NotConnected),
            (UnknownHost, UnknownHost),
            (NoResources, NoResources),
        ] {
            assert_eq!(Error::kind_without_connection(&Error::new(reason, "gone")), kind, "{reason:?}");
        }
    }

    #[test]
    fn every_step_down_is_shown() {
        let inner = Error::new(ErrorKind::Io, "inside").with_source("deep down");
        let outer = Error::new(ErrorKind::Refused, "outside").with_source(inner);
        assert_eq!(outer.with_causes().to_string(), "outside: inside: deep down");
        assert_eq!(format!("{outer:?}"), "Refused: outside: inside: deep down");
        assert_eq!(outer.to_string(), "outside");
    }
}
