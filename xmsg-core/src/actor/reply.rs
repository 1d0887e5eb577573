//! Return values of handlers.

use crate::Message;

/// The error of a handler: any error type, or text.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// A type that a handler may return: nothing or a reply, alone or in a `Result`.
///
/// An error is sent to the requester, whose [`request`](crate::Actor::request) fails with
/// [`ErrorKind::Remote`](crate::ErrorKind::Remote) and says why.
pub trait IntoReply: Send + 'static {
    /// Returns the reply to publish, if there is one, or the reason why the handler failed.
    fn into_reply(self) -> Result<Option<Message>, HandlerError>;
}

impl IntoReply for () {
    fn into_reply(self) -> Result<Option<Message>, HandlerError> {
        Ok(None)
    }
}

impl IntoReply for Message {
    fn into_reply(self) -> Result<Option<Message>, HandlerError> {
        Ok(Some(self))
    }
}

impl IntoReply for Option<Message> {
    fn into_reply(self) -> Result<Option<Message>, HandlerError> {
        Ok(self)
    }
}

impl<R: IntoReply, E: Into<HandlerError> + Send + 'static> IntoReply for Result<R, E> {
    fn into_reply(self) -> Result<Option<Message>, HandlerError> {
        self.map_err(Into::into)?.into_reply()
    }
}
