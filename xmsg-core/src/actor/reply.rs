//! What handlers return.

use crate::Message;

/// The error of a handler: anything that is an error, or text.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// What a handler may return: nothing, or a reply; either of them in a `Result`.
///
/// An error goes back to whoever asked: their [`request`](crate::Actor::request) fails with
/// [`ErrorKind::Remote`](crate::ErrorKind::Remote), and says why.
pub trait IntoReply: Send + 'static {
    /// The reply to publish, or why the handler failed.
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
