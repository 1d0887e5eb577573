//! The error of the library: what was being done, to whom, why it failed, and whose fault it is.

use std::fmt;

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a value to match on. New kinds may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing answered within the time given.
    Timeout,
    /// The other side is not there, or does not want us.
    Refused,
    /// The other side does not accept our credentials, or we may not do this.
    NotAllowed,
    /// The peer broke the protocol, or speaks one that does not fit.
    Protocol,
    /// A topic that the rules of xMsg do not allow.
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
    /// The socket, connection or subscription was closed.
    Closed,
    /// The operating system refused.
    Io,
}

/// An error of the library. `Display` says what failed, where, and what can be done about it;
/// [`source`](std::error::Error::source) is what the layer below said.
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync + 'static>>,
}

impl Error {
    /// An error of this kind; `context` says what failed, on what, and what to do.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong, to match on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// An operating-system error; a refused connection keeps its kind.
    pub(crate) fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::ConnectionRefused => ErrorKind::Refused,
            std::io::ErrorKind::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        Self::new(kind, context).with_source(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
