//! Where the messages of a channel go: to the proxy, as those of an ordinary publisher, or into the spool of
//! an outgoing connection.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use xmsg_core::{ConnectOptions, Connection, Delivery, Message, ProxyAddress};

use crate::definition::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::outbound::Outbound;
use crate::outgoing;

/// How long the proxy may take to confirm that it has what a channel has published.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// All targets. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    proxy: ProxyAddress,
    options: ConnectOptions,
    outgoing: Arc<RwLock<HashMap<String, Arc<outgoing::Shared>>>>,
}

impl Targets {
    pub(crate) fn new(proxy: ProxyAddress, options: ConnectOptions) -> Self {
        // What is not confirmed when the connection to the proxy breaks is sent again, and marked so.
        let options = options.delivery(Delivery::AtLeastOnce);
        Self { proxy, options, outgoing: Arc::default() }
    }

    /// Sets the outgoing connections.
    pub(crate) fn set(&self, outgoing: HashMap<String, Arc<outgoing::Shared>>) {
        *self.outgoing.write().unwrap_or_else(PoisonError::into_inner) = outgoing;
    }

    pub(crate) fn outgoing(&self, name: &str) -> Option<Arc<outgoing::Shared>> {
        self.outgoing.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Opens this target.
    pub(super) fn open(&self, target: &Target) -> Result<OpenTarget> {
        match target {
            Target::Topic(_) | Target::Original => {
                let connection = Connection::with_options(self.proxy.clone(), self.options.clone());
                let connection = connection.map_err(|error| {
                    Error::new(ErrorKind::InvalidDefinition, "the connection to the proxy can't be made")
                        .with_source(error)
                })?;
                Ok(OpenTarget::Proxy(Box::new(connection)))
            }
            Target::Outgoing(name) => Ok(OpenTarget::Outgoing(Box::new((name.clone(), self.clone())))),
        }
    }
}

/// A target that was opened for one channel, so that a target that waits holds up no other channel.
#[derive(Debug)]
pub(super) enum OpenTarget {
    Proxy(Box<Connection>),
    Outgoing(Box<(String, Targets)>),
}

impl OpenTarget {
    /// Gives these messages to the target, in their order. Returns for each whether it has been taken; it is
    /// safe once it is [confirmed](Self::confirm).
    pub(super) async fn send(&self, messages: &[Outbound]) -> Vec<Result<()>> {
        match self {
            Self::Proxy(connection) => {
                let mut outcomes = Vec::with_capacity(messages.len());
                for Outbound { message, .. } in messages {
                    outcomes.push(
                        connection.publish(message).await.map_err(|error| publish_error(message, error)),
                    );
                }
                outcomes
            }
            Self::Outgoing(target) => {
                let (name, targets) = &**target;
                let Some(outgoing) = targets.outgoing(name) else {
                    let what = format!("the outgoing connection {name:?} is not there any more (target)");
                    return messages
                        .iter()
                        .map(|_| Err(Error::new(ErrorKind::Unknown, what.clone())))
                        .collect();
                };
                // The sends are in the order of the messages, since that is the order in which futures are
                // polled for the first time.
                let sends = messages.iter().map(|message| outgoing.relay(message.clone()));
                join_all(sends).await.into_iter().map(|sent| sent.map(drop)).collect()
            }
        }
    }

    /// Returns whether what was taken is safe only after a [confirmation](Self::confirm).
    pub(super) fn needs_confirmation(&self) -> bool {
        matches!(self, Self::Proxy(_))
    }

    /// Returns once all that was taken is safe: the proxy has confirmed that it has it. What is in a spool is
    /// safe already. After an error the messages are still on their way: to be asked again, not to be handed
    /// over again.
    pub(super) async fn confirm(&self) -> Result<()> {
        match self {
            Self::Proxy(connection) => connection.flush(CONFIRM_TIMEOUT).await.map_err(|error| {
                let what = "the proxy has not confirmed that it has the messages";
                Error::new(ErrorKind::Unreachable, what).with_source(error)
            }),
            Self::Outgoing(_) => Ok(()),
        }
    }
}

fn publish_error(message: &Message, error: xmsg_core::Error) -> Error {
    let kind = match error.kind() {
        xmsg_core::ErrorKind::TooLarge => ErrorKind::TooLarge,
        xmsg_core::ErrorKind::NotAllowed => ErrorKind::NotAllowed,
        xmsg_core::ErrorKind::InvalidMessage | xmsg_core::ErrorKind::InvalidTopic => {
            ErrorKind::InvalidMessage
        }
        _ => ErrorKind::Unreachable,
    };
    Error::new(kind, format!("the message can't be published under {}", message.topic())).with_source(error)
}

/// Returns whether another attempt may succeed, because the message itself is not the cause.
pub(super) fn is_retryable(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::InvalidMessage | ErrorKind::NotAllowed)
}
