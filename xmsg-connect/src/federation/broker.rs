//! What a federation declares at the broker: the exchange that all proxies have in common, and the queue of
//! this one.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::{DELIVERY_LIMIT, Federation};
use crate::amqp::{broker_error, protocol_error, reply_code, short};
use crate::error::{Error, ErrorKind, Result};

/// Declares the exchange, which makes it if it is not there.
pub(crate) async fn declare_exchange(channel: &Channel, exchange: &str) -> Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared =
        channel.exchange_declare(short(exchange), ExchangeKind::Topic, options, FieldTable::default()).await;
    declared.map_err(|error| {
        let what = match protocol_error(&error) {
            Some((reply_code::PRECONDITION_FAILED, _)) => {
                "exists and is no durable topic exchange: choose another name"
            }
            _ => "can't be declared",
        };
        broker_error(error, &format!("the exchange {exchange:?} of the federation {what} (exchange)"))
    })
}

/// Checks that the exchange and the queue are there.
pub(crate) async fn check(channel: &Channel, exchange: &str, queue: &str) -> Result<()> {
    crate::outgoing::check_exchange(channel, exchange).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(queue), passive, FieldTable::default()).await;
    declared.map(drop).map_err(|error| broker_error(error, &format!("the queue {queue:?} can't be used")))
}

impl Federation {
    /// Makes the queue of this proxy if it is not there, binds it, and makes sure that no other proxy has the
    /// name. The connection holds the name until it ends.
    pub(crate) async fn declare_queue(&self, channel: &Channel) -> Result<()> {
        let (exchange, queue) = (&self.definition.exchange, self.definition.queue());
        self.hold_name(channel, &queue).await?;
        declare_exchange(channel, exchange).await?;
        let limits = [
            ("x-delivery-limit", u64::from(DELIVERY_LIMIT)),
            ("x-expires", self.definition.keep.get().as_millis() as u64),
            ("x-max-length-bytes", self.definition.max_queue_bytes.get()),
        ];
        let mut arguments = FieldTable::default();
        arguments.insert(short("x-queue-type"), AMQPValue::LongString("quorum".into()));
        arguments.insert(short("x-overflow"), AMQPValue::LongString("drop-head".into()));
        // What a connection that is about to end still holds is not given to the next one out of order.
        arguments.insert(short("x-single-active-consumer"), AMQPValue::Boolean(true));
        for (name, limit) in limits {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            arguments.insert(short(name), AMQPValue::LongLongInt(limit));
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(short(&queue), options, arguments).await;
        declared.map_err(|error| {
            let what = match protocol_error(&error) {
                Some((reply_code::PRECONDITION_FAILED, _)) => {
                    "exists with other limits: set keep and max_queue_bytes to what they were, or delete the queue at the broker when it is \
                     empty"
                }
                _ => "can't be declared",
            };
            broker_error(error, &format!("the queue {queue:?} of the federation {what}"))
        })?;
        // The queue is bound to everything, since topics of xMsg are prefixes of bytes, which patterns of
        // AMQP can't express.
        let all = short("#");
        let bound = channel
            .queue_bind(
                short(&queue),
                short(exchange),
                all,
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await;
        bound.map_err(|error| {
            broker_error(error, &format!("the queue {queue:?} can't be bound to the exchange {exchange:?}"))
        })
    }

    /// Declares a queue that belongs to this connection alone: a second proxy of the same name can't, for as
    /// long as the first one is there.
    async fn hold_name(&self, channel: &Channel, queue: &str) -> Result<()> {
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let lock = format!("{queue}.lock");
        let declared = channel.queue_declare(short(&lock), exclusive, FieldTable::default()).await;
        declared.map(drop).map_err(|error| match protocol_error(&error) {
            Some((reply_code::RESOURCE_LOCKED, _)) => {
                let what = format!(
                    "a proxy takes part in the federation as {:?} already: if it is another one, give one of the two another name (name); if it \
                     was this one, its former connection is still to end",
                    self.definition.name
                );
                Error::new(ErrorKind::Refused, what).with_source(error)
            }
            _ => broker_error(error, &format!("the queue {lock:?} of the federation can't be declared")),
        })
    }
}
