//! The error of this library: what was being done, to which connection, why it failed, and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::definition::DefinitionError;

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a value to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no connection, outgoing connection or channel of this name.
    Unknown,
    /// The name is taken.
    NameTaken,
    /// A definition makes no sense. The text names the field, and the source is a [`DefinitionError`].
    InvalidDefinition,
    /// The outgoing connection is not active, and refuses what is sent to it meanwhile.
    Inactive,
    /// The spool is full, and refuses what is sent to it.
    Full,
    /// The other side can't take a message, a property or a header.
    InvalidMessage,
    /// A message is larger than a limit allows.
    TooLarge,
    /// Something is left that would be lost: a spool with messages, a connection that others use.
    InUse,
    /// The file system refused: a full disk, a folder that can't be written to.
    Storage,
    /// The other side can't be reached.
    Unreachable,
    /// The other side does not accept our login, or we may not do this there.
    NotAllowed,
    /// What is asked for is not there, or is not as asked: an exchange, a queue.
    Refused,
    /// The message was not delivered, and is among the dead letters.
    Undeliverable,
    /// The operation took longer than it may.
    Timeout,
    /// The registry, spool or connection was closed.
    Closed,
}

/// An error of this library. `Display` says what failed, where, and what can be done about it;
/// [`source`](StdError::source) is what the layer below said.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    context: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into().into(), source: None }
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn StdError + Send + Sync + 'static>>,
    ) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// Returns what went wrong, to match on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the error and its causes in one line.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

impl From<DefinitionError> for Error {
    fn from(error: DefinitionError) -> Self {
        Self::new(ErrorKind::InvalidDefinition, error.to_string()).with_source(error)
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
