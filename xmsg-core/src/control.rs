//! Control requests and answers, as values (section 2 of the xMsg protocol).

use bytes::Bytes;

use crate::socket::Multipart;
use crate::{ConnectionId, Topic};

/// What every control topic starts with, and what proxies subscribe to.
pub const CONTROL_TOPIC: &str = "xmsg:control";
/// The topic of a connection check. Java's form: proxies match by prefix.
const CONNECTION_CHECK: &str = "xmsg:control:con";
/// The topic of a subscription check.
const SUBSCRIPTION_CHECK: &str = "xmsg:control:sub";

/// What a connection asks of its proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// "Do my messages reach you?" Answered on the control socket of this identity.
    Publisher(ConnectionId),
    /// "Is this subscription live?" Answered by a message to the topic.
    Subscription(Topic),
}

impl Request {
    /// The request as a message to be published.
    #[must_use]
    pub fn message(&self) -> Multipart {
        let (topic, kind, argument) = match self {
            Self::Publisher(id) => (CONNECTION_CHECK, "pub", Bytes::copy_from_slice(id.as_bytes())),
            Self::Subscription(topic) => (SUBSCRIPTION_CHECK, "sub", topic.clone().into_bytes()),
        };
        Multipart::from([Bytes::from(topic), Bytes::from(kind), argument])
    }

    /// Whether this is the answer to the request.
    #[must_use]
    pub fn is_answered_by(&self, message: &Multipart) -> bool {
        match (self, message.frames()) {
            (Self::Publisher(_), [kind]) => kind == "pub",
            (Self::Subscription(asked), [topic, kind]) => kind == "sub" && topic == asked.as_bytes(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_frames_of_the_contract() {
        let id: ConnectionId = "412300042".parse().unwrap();
        let request = Request::Publisher(id);
        assert_eq!(request.message(), Multipart::from(["xmsg:control:con", "pub", "412300042"]));
        assert!(request.is_answered_by(&Multipart::from(["pub"])));
        assert!(!request.is_answered_by(&Multipart::from(["412300042", "pub"])));

        let request = Request::Subscription(Topic::wrap("a:b"));
        assert_eq!(request.message(), Multipart::from(["xmsg:control:sub", "sub", "a:b"]));
        assert!(request.is_answered_by(&Multipart::from(["a:b", "sub"])));
        assert!(!request.is_answered_by(&Multipart::from(["a:bc", "sub"])));
    }
}
