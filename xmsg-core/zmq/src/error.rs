//! The error of the library: what was being done, to whom, why it failed, and whose fault it is.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a value to match on. New kinds may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing answered within the time given. A call that was waiting for a peer whose connection is lost has one of the other kinds, such
    /// as [`Refused`](Self::Refused) and [`NotConnected`](Self::NotConnected).
    Timeout,
    /// The other side is not there, or does not want us.
    Refused,
    /// No address was found for the name of the host.
    UnknownHost,
    /// Something else listens there than what was expected: another port of the proxy, or no ZeroMQ socket at all.
    WrongPort,
    /// The other side does not accept our credentials, or we may not do this.
    NotAllowed,
    /// The peer broke the protocol, or speaks one that does not fit.
    Protocol,
    /// The other side got the request, and answered that it failed.
    Remote,
    /// A topic, or the group of a datagram, that the rules for them do not allow.
    InvalidTopic,
    /// An address, host or port that cannot be used.
    InvalidAddress,
    /// A message whose metadata or data cannot be read as asked.
    InvalidMessage,
    /// An option with a value that makes no sense.
    InvalidOption,
    /// Larger than a limit allows: it was not accepted, and will not be.
    TooLarge,
    /// There is no room now: the queue is at its high-water mark.
    Full,
    /// There is no connection at this moment, or there was none yet.
    NotConnected,
    /// It was sent, but nobody confirmed that it arrived.
    Unconfirmed,
    /// The socket, connection or subscription was closed.
    Closed,
    /// A blocking call where none may be made: within an async runtime.
    WouldBlock,
    /// The system has no more of something that was needed: file descriptors, ports, memory.
    NoResources,
    /// The operating system refused.
    Io,
}

/// An error of the library. `Display` says what failed, where, and what can be done about it;
/// [`source`](StdError::source) is what the layer below said. Clones share both.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    context: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error of this kind; `context` says what failed, on what, and what to do.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into().into(), source: None }
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// The same error as one of another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// What went wrong, to match on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error and what it came from, step by step, in one line: for logs, and for people.
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

    /// An operating-system error, with the kind that its cause has.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::new(Self::kind_of(&source), context).with_source(source)
    }

    /// The kind of an error of the operating system.
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

    /// The kind of the error of a call whose time ran out while there was no connection, for this reason, where there had been
    /// one. It is never [`Timeout`](ErrorKind::Timeout), which is left for a peer that is connected and does not answer.
    #[must_use]
    pub fn kind_without_connection(reason: &Self) -> ErrorKind {
        use ErrorKind::{NoResources, NotAllowed, NotConnected, Refused, Timeout, UnknownHost, WrongPort};
        match reason.kind {
            kind @ (UnknownHost | WrongPort | NoResources | NotAllowed) => kind,
            // It has vanished, or does not answer those who connect.
            Timeout => NotConnected,
            _ => Refused,
        }
    }

    /// Whether the system has no more descriptors or buffers. The standard library has no kinds for these.
    #[must_use]
    pub fn is_used_up(error: &io::Error) -> bool {
        /// The same numbers on every Unix.
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
