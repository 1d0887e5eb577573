//! The queues of a durable subscription: one for its messages, and one for its dead letters.

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use crate::amqp::{broker_error, protocol_error, reply_code, short};
use crate::definition::DurableDefinition;
use crate::error::Result;

/// Declares the queues, which makes those that are not there.
pub(crate) async fn declare(channel: &Channel, durable: &DurableDefinition) -> Result<()> {
    let queue = durable.queue();
    let mut arguments = quorum(durable, "reject-publish");
    // The broker counts how often a message came back. Ours is the number of times that it is tried.
    let limit = i64::from(durable.delivery_limit - 1);
    arguments.insert(short("x-delivery-limit"), AMQPValue::LongLongInt(limit));
    let (exchange, key) = if let Some(dead) = &durable.dead_letter {
        (dead.exchange.clone(), dead.routing_key.clone())
    } else {
        let dead = format!("{queue}.dead");
        declare_one(channel, &dead, quorum(durable, "drop-head")).await?;
        (String::new(), Some(dead))
    };
    arguments.insert(short("x-dead-letter-exchange"), AMQPValue::LongString(exchange.into()));
    if let Some(key) = key {
        arguments.insert(short("x-dead-letter-routing-key"), AMQPValue::LongString(key.into()));
    }
    declare_one(channel, &queue, arguments).await
}

fn quorum(durable: &DurableDefinition, overflow: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(short("x-queue-type"), AMQPValue::LongString("quorum".into()));
    arguments.insert(short("x-overflow"), AMQPValue::LongString(overflow.into()));
    let most = i64::try_from(durable.max_queue_bytes.get()).unwrap_or(i64::MAX);
    arguments.insert(short("x-max-length-bytes"), AMQPValue::LongLongInt(most));
    arguments
}

async fn declare_one(channel: &Channel, queue: &str, arguments: FieldTable) -> Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(queue), options, arguments).await;
    declared.map(drop).map_err(|error| {
        let what = match protocol_error(&error) {
            Some((reply_code::PRECONDITION_FAILED, _)) => {
                "exists with other limits: set delivery_limit, dead_letter and max_queue_bytes to what they were, or delete the queue at the \
                 broker when it is empty"
            }
            _ => "can't be declared",
        };
        broker_error(error, &format!("the queue {queue:?} of the durable subscription {what}"))
    })
}

/// Checks that the queue is there.
pub(crate) async fn check(channel: &Channel, durable: &DurableDefinition) -> Result<()> {
    let queue = durable.queue();
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(&queue), passive, FieldTable::default()).await;
    declared.map(drop).map_err(|error| broker_error(error, &format!("the queue {queue:?} can't be used")))
}
