//! Durable subscriptions: messages wait in a queue of a broker, and are given out to those who ask for them
//! through the proxy.
//!
//! ```text
//!  proxy ─► durable:NAME ─► spool ─► queue xmsg.durable.NAME ─► session of a subscriber ─► answers to its requests
//! ```
//!
//! Each subscriber has a session with a connection to the broker of its own: what it has not acknowledged
//! when the session ends is back in the queue then.
//!
//! | file | answers |
//! |---|---|
//! | `server.rs` | Which session is a request for? |
//! | `session.rs` | What was given to one subscriber, and what has it acknowledged? |
//! | `broker.rs` | Which queues does a durable subscription have at the broker? |

mod broker;
mod server;
mod session;

use std::path::Path;

use crate::definition::{
    AmqpOutgoing, ConnectionDefinition, Definitions, Destination, DurableDefinition, OutgoingDefinition,
    WhenInactive,
};
use crate::outgoing::OutgoingPlan;

pub(crate) use broker::{check, declare};
pub(crate) use server::{CounterValues, DurableServer};

/// The configuration of a durable subscription: its definition, and the broker that it refers to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DurablePlan {
    pub(crate) definition: DurableDefinition,
    /// The broker. Definitions that were checked have it.
    pub(crate) broker: Option<ConnectionDefinition>,
}

impl DurablePlan {
    /// Makes the plan for one of these definitions, whose files are relative to this folder.
    pub(crate) fn of(definition: &DurableDefinition, all: &Definitions, base: &Path) -> Self {
        let broker = all.broker(Some(&definition.connection)).map(|broker| broker.resolved(base));
        Self { definition: definition.clone(), broker }
    }

    /// Makes the plan of the outgoing connection that takes messages to the queue.
    pub(crate) fn outgoing_plan(&self) -> OutgoingPlan {
        let durable = &self.definition;
        let mut definition = OutgoingDefinition::amqp(durable.outgoing_name(), &durable.connection, "");
        definition.subscribe.clone_from(&durable.topics);
        definition.routing_key = Some(durable.queue());
        definition.is_active = durable.is_active;
        definition.when_inactive = WhenInactive::Store;
        definition.spool_dir = Some(durable.spool_folder());
        definition.max_bytes = durable.max_bytes;
        let amqp = AmqpOutgoing {
            durable: Some(durable.clone()),
            ..AmqpOutgoing::new(String::new(), crate::routing::Template::text(durable.queue()))
        };
        OutgoingPlan {
            definition,
            destination: Destination::Amqp(Box::new(amqp)),
            broker: self.broker.clone(),
            federation: None,
        }
    }
}
