//! Federation: proxies that share messages over a topic exchange of a broker.
//!
//! ```text
//!  local proxy ─► federation-out:NAME ─► spool ─► topic exchange ─┬─► queue of NAME ────► federation-in:NAME ─► local proxy
//!                 (what was not taken in)                         └─► queues of the others   (what others have sent)
//! ```
//!
//! Both ends are an outgoing connection and a channel like any other, with what is different kept here: which
//! messages go which way, so that none goes in a circle and none arrives twice.

mod broker;
mod mark;
mod memory;

use std::path::Path;
use std::sync::Arc;

use lapin::message::Delivery;
use xmsg_core::Message;

use crate::amqp::headers;
use crate::channel::ChannelPlan;
use crate::definition::{
    AckMode, AmqpChannel, AmqpOutgoing, ChannelDefinition, Definitions, FederationDefinition, OnError,
    Origin, OutgoingDefinition, QueueDeclare, Target, Way, WhenInactive,
};
use crate::outgoing::OutgoingPlan;
use crate::status::{Status, add};

pub(crate) use broker::{check, declare_exchange};
pub(crate) use mark::routing_key;
pub(crate) use memory::{Id, Memory, Unsettled};

/// The header of the metadata that marks a message as one that came from another proxy of the federation.
pub(crate) const MARK: &str = "xmsg-origin";
/// The folder of the spool, in that of all spools: no outgoing connection of a definition can have it.
pub(crate) const SPOOL_FOLDER: &str = ".federation";
/// Messages on their way to the broker that are not confirmed yet.
const IN_FLIGHT: usize = 1000;
/// Messages of the queue that are not acknowledged yet.
const PREFETCH: u16 = 256;
/// How often a message may come back to the queue before it is given up. It is far more than connections
/// break in a row, and keeps a message that ends the process whenever it comes from doing so for ever.
const DELIVERIES: u32 = 1000;

/// A federation at work: its definition, and what its outgoing connection and its channel have in common.
#[derive(Clone, Debug)]
pub(crate) struct Federation {
    pub(crate) definition: FederationDefinition,
    imported: Vec<String>,
    memory: Arc<Memory>,
}

/// What is remembered makes no other plan.
impl PartialEq for Federation {
    fn eq(&self, other: &Self) -> bool {
        self.definition == other.definition
    }
}

/// What becomes of a message of the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is published here. The identifier, if it has one, tells it when it comes again.
    Take(Arc<str>, Option<Id>),
    /// It is our own, or has a topic that is not taken in.
    PassOver,
    /// It was taken in before.
    Repeated,
}

impl Federation {
    pub(crate) fn new(definition: &FederationDefinition, memory: &Arc<Memory>) -> Self {
        Self { definition: definition.clone(), imported: definition.imported(), memory: memory.clone() }
    }

    /// The outgoing connection that takes messages to the exchange.
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
        let way = AmqpOutgoing {
            is_mandatory: false,
            max_in_flight: IN_FLIGHT,
            origin: Some(federation.name.clone()),
            ..AmqpOutgoing::new(federation.exchange.clone(), crate::routing::Template::topic())
        };
        OutgoingPlan {
            broker: all.broker(Some(&federation.connection)).map(|broker| broker.resolved(base)),
            definition,
            way: Way::Amqp(Box::new(way)),
            federation: Some(self.clone()),
        }
    }

    /// The channel that brings messages of the queue in.
    pub(crate) fn channel_plan(&self, all: &Definitions, base: &Path) -> ChannelPlan {
        let federation = &self.definition;
        let (name, queue) = (federation.channel_name(), federation.queue());
        let mut definition = ChannelDefinition::amqp(name, &federation.connection, &queue, Target::Original);
        definition.is_active = federation.is_active;
        definition.prefetch_count = Some(PREFETCH);
        definition.delivery_limit = Some(DELIVERIES);
        let way = AmqpChannel {
            queue,
            ack_mode: AckMode::OnConfirm,
            prefetch: PREFETCH,
            consumer_tag_prefix: "xmsg".to_owned(),
            on_error: OnError::Requeue,
            requeue_delay: std::time::Duration::from_secs(1),
            delivery_limit: DELIVERIES,
            queue_declare: QueueDeclare::None,
            dead_letter: None,
        };
        ChannelPlan {
            broker: all.broker(Some(&federation.connection)).map(|broker| broker.resolved(base)),
            definition,
            origin: Origin::Amqp(way),
            federation: Some(self.clone()),
        }
    }

    /// Waits, right after the start of this program, so that subscribers can come back before anything is
    /// taken in.
    pub(crate) async fn hold(&self) {
        self.memory.hold(self.definition.hold.get()).await;
    }

    /// Whether a message of the local proxy leaves: not if it was taken in by the federation, or is one that
    /// proxies use among themselves.
    pub(crate) fn leaves(&self, message: &Message, status: &Status) -> bool {
        // Requests to a durable subscription are for the one at this proxy.
        let topic = message.topic().as_bytes();
        let leaves = !topic.starts_with(b"xmsg:")
            && !topic.starts_with(xmsg_core::durable::protocol::TOPIC.as_bytes())
            && mark::origin_of(message).is_none()
            && !self.memory.was_expected(message);
        if !leaves {
            add(&status.counters.passed_over, 1);
        }
        leaves
    }

    /// What becomes of a message of the queue.
    pub(crate) fn judge(&self, delivery: &Delivery) -> Verdict {
        let origin = headers::origin_of(&delivery.properties).unwrap_or_default();
        if origin == self.definition.name {
            return Verdict::PassOver;
        }
        if let Some(topic) = headers::topic_of(&delivery.properties)
            && !begins_with_any(&topic, &self.imported)
        {
            return Verdict::PassOver;
        }
        let id = headers::id_of(&delivery.properties).and_then(|id| id.parse::<uuid::Uuid>().ok());
        match id.map(|id| id.as_u128()) {
            Some(id) if self.memory.has_seen(&origin, id) => Verdict::Repeated,
            id => Verdict::Take(origin.into(), id),
        }
    }

    /// A message on its way to the local proxy, from this origin: marked, so that it is known when it comes
    /// back.
    pub(crate) fn taken_in(&self, message: Message, origin: &str) -> Message {
        let (message, is_marked) = mark::marked(message, origin);
        if !is_marked && begins_with_any(message.topic().as_bytes(), &self.definition.exported()) {
            self.memory.expect(&message);
        }
        message
    }

    /// The local proxy has these messages.
    pub(crate) fn remember<'a>(&self, messages: impl IntoIterator<Item = &'a (Arc<str>, Id)>) {
        self.memory.remember(messages);
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
        assert!(federation.leaves(&own, &status));
        let theirs = federation.taken_in(own, "hall-a");
        assert!(!federation.leaves(&theirs, &status));

        let [topic, meta, data] = [&b"orders"[..], b"\xff", b"data"].map(Bytes::from_static);
        let unreadable = Message::from_frames(topic, meta, data);
        let theirs = federation.taken_in(unreadable.clone(), "hall-a");
        assert_eq!(theirs.clone().into_frames(), unreadable.into_frames(), "it can't be marked");
        assert!(!federation.leaves(&theirs, &status), "it has come back");
        assert!(federation.leaves(&theirs, &status), "this one was published here");
        let control = Message::of("xmsg:control", 1).unwrap();
        assert!(!federation.leaves(&control, &status));
        assert_eq!(status.counters.read().passed_over, 3);
    }

    #[test]
    fn a_message_that_can_not_come_back_is_not_expected() {
        let federation = federation();
        let [topic, meta, data] = [&b"sensors:hall-a"[..], b"\xff", b"data"].map(Bytes::from_static);
        let theirs = federation.taken_in(Message::from_frames(topic, meta, data), "hall-a");
        assert!(!federation.memory.was_expected(&theirs));
    }
}
