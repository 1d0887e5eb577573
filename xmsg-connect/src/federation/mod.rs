//! Federation: proxies that share messages over a topic exchange of a broker.
//!
//! ```text
//!  local proxy ─► federation-out:NAME ─► spool ─► topic exchange ─┬─► queue of NAME ────► federation-in:NAME ─► local proxy
//!                 (what was not taken in)                         └─► queues of the others   (what others have sent)
//! ```
//!
//! Both ends are an outgoing connection and a channel like any other, with what is different kept here: which
//! messages go which way, so that none goes in a circle and none arrives twice.
//!
//! | file | answers |
//! |---|---|
//! | `origin_header.rs` | Which proxy does a message come from? |
//! | `duplicates.rs` | Has this message been here before? |
//! | `broker.rs` | Which exchange and which queue does a federation declare? |

mod broker;
mod duplicates;
mod origin_header;

use std::path::Path;
use std::sync::Arc;

use lapin::message::Delivery;
use xmsg_core::Message;

use crate::amqp::headers;
use crate::channel::ChannelPlan;
use crate::definition::{
    AckMode, AmqpChannel, AmqpOutgoing, ChannelDefinition, Definitions, Destination, FederationDefinition,
    OnError, OutgoingDefinition, QueueDeclare, Source, Target, WhenInactive,
};
use crate::outgoing::OutgoingPlan;
use crate::status::{Status, add};

pub(crate) use broker::{check, declare_exchange};
pub(crate) use duplicates::{DuplicateFilter, Id, Unconfirmed};
pub(crate) use origin_header::routing_key;

/// The header of the metadata that a message has if it came from another proxy of the federation.
pub(crate) const ORIGIN_HEADER: &str = "xmsg-origin";
/// The folder of the spool, in that of all spools: no outgoing connection of a definition can have it.
pub(crate) const SPOOL_FOLDER: &str = ".federation";
/// How many messages may be on their way to the broker without a confirmation.
const IN_FLIGHT: usize = 1000;
/// How many messages of the queue may be without an acknowledgement.
const PREFETCH: u16 = 256;
/// How often a message may come back to the queue before it is given up. It is far more than connections
/// break in a row, and keeps a message that ends the process whenever it comes from doing so for ever.
const DELIVERY_LIMIT: u32 = 1000;

/// A federation at work: its definition, and what its outgoing connection and its channel have in common.
#[derive(Clone, Debug)]
pub(crate) struct Federation {
    pub(crate) definition: FederationDefinition,
    imported: Vec<String>,
    duplicates: Arc<DuplicateFilter>,
}

/// Plans are compared by their definitions only, since what is remembered is no reason to begin anew.
impl PartialEq for Federation {
    fn eq(&self, other: &Self) -> bool {
        self.definition == other.definition
    }
}

/// What becomes of a message of the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is published here. By its origin and its identifier, if it has one, it is known when it comes
    /// again.
    Import(Arc<str>, Option<Id>),
    /// It is our own, or has a topic that is not taken in.
    PassOver,
    /// It was taken in before.
    Duplicate,
}

impl Federation {
    pub(crate) fn new(definition: &FederationDefinition, duplicates: &Arc<DuplicateFilter>) -> Self {
        Self {
            definition: definition.clone(),
            imported: definition.imported(),
            duplicates: duplicates.clone(),
        }
    }

    /// Makes the plan of the outgoing connection that takes messages to the exchange.
    pub(crate) fn outgoing_plan(&self, all: &Definitions, base: &Path) -> OutgoingPlan {
        let federation = &self.definition;
        let name = federation.outgoing_name();
        let mut definition = OutgoingDefinition::amqp(name, &federation.connection, &federation.exchange);
        definition.subscribe = federation.exported();
        definition.is_active = federation.is_active;
        definition.when_inactive = WhenInactive::Store;
        definition.spool_dir = Some(SPOOL_FOLDER.to_owned());
        definition.max_bytes = federation.max_bytes;
        definition.mandatory = Some(false);
        let amqp = AmqpOutgoing {
            is_mandatory: false,
            max_in_flight: IN_FLIGHT,
            origin: Some(federation.name.clone()),
            ..AmqpOutgoing::new(federation.exchange.clone(), crate::routing::Template::topic())
        };
        OutgoingPlan {
            broker: all.broker(Some(&federation.connection)).map(|broker| broker.resolved(base)),
            definition,
            destination: Destination::Amqp(Box::new(amqp)),
            federation: Some(self.clone()),
        }
    }

    /// Makes the plan of the channel that brings messages of the queue in.
    pub(crate) fn channel_plan(&self, all: &Definitions, base: &Path) -> ChannelPlan {
        let federation = &self.definition;
        let (name, queue) = (federation.channel_name(), federation.queue());
        let mut definition = ChannelDefinition::amqp(name, &federation.connection, &queue, Target::Original);
        definition.is_active = federation.is_active;
        definition.prefetch_count = Some(PREFETCH);
        definition.delivery_limit = Some(DELIVERY_LIMIT);
        let amqp = AmqpChannel {
            queue,
            ack_mode: AckMode::OnConfirm,
            prefetch: PREFETCH,
            consumer_tag_prefix: "xmsg".to_owned(),
            on_error: OnError::Requeue,
            requeue_delay: std::time::Duration::from_secs(1),
            delivery_limit: DELIVERY_LIMIT,
            queue_declare: QueueDeclare::None,
            dead_letter: None,
        };
        ChannelPlan {
            broker: all.broker(Some(&federation.connection)).map(|broker| broker.resolved(base)),
            definition,
            source: Source::Amqp(amqp),
            federation: Some(self.clone()),
        }
    }

    /// Waits, right after the start of this program, so that subscribers can come back before anything is
    /// taken in.
    pub(crate) async fn wait_for_subscribers(&self) {
        self.duplicates.wait_since_start(self.definition.hold.get()).await;
    }

    /// Returns whether a message of the local proxy leaves. It does not if the federation has taken it in, or
    /// if it is one that proxies use among themselves.
    pub(crate) fn should_export(&self, message: &Message, status: &Status) -> bool {
        // Requests to a durable subscription are for the one at this proxy.
        let topic = message.topic().as_bytes();
        let is_exported = !topic.starts_with(b"xmsg:")
            && !topic.starts_with(xmsg_core::durable::protocol::TOPIC.as_bytes())
            && origin_header::origin_of(message).is_none()
            && !self.duplicates.take_echo(message);
        if !is_exported {
            add(&status.counters.passed_over, 1);
        }
        is_exported
    }

    /// Decides what becomes of a message of the queue.
    pub(crate) fn decide(&self, delivery: &Delivery) -> Decision {
        let origin = headers::origin_of(&delivery.properties).unwrap_or_default();
        if origin == self.definition.name {
            return Decision::PassOver;
        }
        if let Some(topic) = headers::topic_of(&delivery.properties)
            && !begins_with_any(&topic, &self.imported)
        {
            return Decision::PassOver;
        }
        let id = headers::id_of(&delivery.properties).and_then(|id| id.parse::<uuid::Uuid>().ok());
        match id.map(|id| id.as_u128()) {
            Some(id) if self.duplicates.is_duplicate(&origin, id) => Decision::Duplicate,
            id => Decision::Import(origin.into(), id),
        }
    }

    /// Gives a message of this origin, on its way to the local proxy, the header by which it is known when it
    /// comes back.
    pub(crate) fn with_origin(&self, message: Message, origin: &str) -> Message {
        let (message, has_header) = origin_header::with_origin_header(message, origin);
        if !has_header && begins_with_any(message.topic().as_bytes(), &self.definition.exported()) {
            self.duplicates.expect_echo(&message);
        }
        message
    }

    /// Remembers that the local proxy has these messages.
    pub(crate) fn remember<'a>(&self, messages: impl IntoIterator<Item = &'a (Arc<str>, Id)>) {
        self.duplicates.remember(messages);
    }
}

fn begins_with_any(topic: &[u8], prefixes: &[String]) -> bool {
    prefixes.iter().any(|prefix| topic.starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn federation() -> Federation {
        let mut definition = FederationDefinition::new("hall-b", "rabbit");
        definition.topics = vec!["orders".into()];
        definition.export = vec!["sensors:hall-b".into()];
        definition.import = vec!["sensors:hall-a".into()];
        Federation::new(&definition, &Arc::default())
    }

    #[test]
    fn what_was_taken_in_does_not_leave_again() {
        let (federation, status) = (federation(), Status::new("outgoing \"x\"".into()));
        let own = Message::of("orders:new", 17).unwrap();
        assert!(federation.should_export(&own, &status));
        let theirs = federation.with_origin(own, "hall-a");
        assert!(!federation.should_export(&theirs, &status));

        let [topic, meta, data] = [&b"orders"[..], b"\xff", b"data"].map(Bytes::from_static);
        let unreadable = Message::from_frames(topic, meta, data);
        let theirs = federation.with_origin(unreadable.clone(), "hall-a");
        assert_eq!(theirs.clone().into_frames(), unreadable.into_frames(), "it can't be marked");
        assert!(!federation.should_export(&theirs, &status), "it has come back");
        assert!(federation.should_export(&theirs, &status), "this one was published here");
        let control = Message::of("xmsg:control", 1).unwrap();
        assert!(!federation.should_export(&control, &status));
        assert_eq!(status.counters.read().passed_over, 3);
    }

    #[test]
    fn a_message_that_can_not_come_back_is_not_expected() {
        let federation = federation();
        let [topic, meta, data] = [&b"sensors:hall-a"[..], b"\xff", b"data"].map(Bytes::from_static);
        let theirs = federation.with_origin(Message::from_frames(topic, meta, data), "hall-a");
        assert!(!federation.duplicates.take_echo(&theirs));
    }
}
