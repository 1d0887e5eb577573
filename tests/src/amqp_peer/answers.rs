//! The default answers of the scripted AMQP peer, which are those of a broker.

use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, connection, exchange, queue};
use amq_protocol::types::{AMQPValue, FieldTable};

use super::Script;
use super::actions::Action;
use super::record::{Received, What};

impl Script {
    /// Returns the actions for something received: those of the first rule that has some, or the default.
    pub(super) fn answer(&mut self, received: &Received) -> Vec<Action> {
        if let Some(actions) = self.rules.iter_mut().find_map(|rule| rule(received)) {
            return actions;
        }
        let on_channel = |method| vec![Action::method(received.channel, method)];
        match &received.what {
            What::Greeting => on_channel(start()),
            What::Login { .. } => on_channel(self.tune()),
            What::Open { .. } => {
                on_channel(AMQPClass::Connection(connection::AMQPMethod::OpenOk(connection::OpenOk {})))
            }
            What::Publish(publish) if self.confirms && publish.tag > 0 => vec![publish.ack()],
            What::Consume(consumer) if !consumer.is_nowait => {
                let consumer_tag = consumer.tag.as_str().into();
                on_channel(AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(basic::ConsumeOk { consumer_tag })))
            }
            What::Method(method) => usual(method).map(on_channel).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn tune(&self) -> AMQPClass {
        AMQPClass::Connection(connection::AMQPMethod::Tune(connection::Tune {
            channel_max: 2047,
            frame_max: self.frame_max,
            heartbeat: self.heartbeat,
        }))
    }
}

/// Returns the first step of the handshake, with the capabilities that RabbitMQ announces.
fn start() -> AMQPClass {
    let mut capabilities = FieldTable::default();
    for name in [
        "publisher_confirms",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "authentication_failure_close",
        "exchange_exchange_bindings",
        "per_consumer_qos",
    ] {
        capabilities.insert(name.into(), AMQPValue::Boolean(true));
    }
    let mut server_properties = FieldTable::default();
    server_properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    server_properties.insert("product".into(), AMQPValue::LongString("a peer that keeps to a script".into()));
    AMQPClass::Connection(connection::AMQPMethod::Start(connection::Start {
        version_major: 0,
        version_minor: 9,
        server_properties,
        mechanisms: "PLAIN".into(),
        locales: "en_US".into(),
    }))
}

/// Returns the answer of a broker in which everything exists and is empty, or `None` if the method has no
/// answer.
fn usual(method: &AMQPClass) -> Option<AMQPClass> {
    let answer = match method {
        AMQPClass::Connection(connection::AMQPMethod::Close(_)) => {
            AMQPClass::Connection(connection::AMQPMethod::CloseOk(connection::CloseOk {}))
        }
        AMQPClass::Connection(connection::AMQPMethod::UpdateSecret(_)) => {
            AMQPClass::Connection(connection::AMQPMethod::UpdateSecretOk(connection::UpdateSecretOk {}))
        }
        AMQPClass::Channel(channel::AMQPMethod::Open(_)) => {
            AMQPClass::Channel(channel::AMQPMethod::OpenOk(channel::OpenOk {}))
        }
        AMQPClass::Channel(channel::AMQPMethod::Close(_)) => {
            AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {}))
        }
        AMQPClass::Channel(channel::AMQPMethod::Flow(flow)) => {
            AMQPClass::Channel(channel::AMQPMethod::FlowOk(channel::FlowOk { active: flow.active }))
        }
        AMQPClass::Confirm(confirm::AMQPMethod::Select(select)) if !select.nowait => {
            AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(confirm::SelectOk {}))
        }
        AMQPClass::Exchange(method) => AMQPClass::Exchange(of_exchange(method)?),
        AMQPClass::Queue(method) => AMQPClass::Queue(of_queue(method)?),
        AMQPClass::Basic(method) => AMQPClass::Basic(of_basic(method)?),
        // The connection is closed, so that a client does not wait for an answer that the peer does not
        // support.
        AMQPClass::Tx(_) | AMQPClass::Access(_) => {
            AMQPClass::Connection(connection::AMQPMethod::Close(connection::Close {
                reply_code: 540,
                reply_text: "NOT_IMPLEMENTED".into(),
                class_id: method.get_amqp_class_id(),
                method_id: method.get_amqp_method_id(),
            }))
        }
        _ => return None,
    };
    Some(answer)
}

fn of_exchange(method: &exchange::AMQPMethod) -> Option<exchange::AMQPMethod> {
    use exchange::AMQPMethod as Method;
    Some(match method {
        Method::Declare(method) if !method.nowait => Method::DeclareOk(exchange::DeclareOk {}),
        Method::Delete(method) if !method.nowait => Method::DeleteOk(exchange::DeleteOk {}),
        Method::Bind(method) if !method.nowait => Method::BindOk(exchange::BindOk {}),
        Method::Unbind(method) if !method.nowait => Method::UnbindOk(exchange::UnbindOk {}),
        _ => return None,
    })
}

fn of_queue(method: &queue::AMQPMethod) -> Option<queue::AMQPMethod> {
    use queue::AMQPMethod as Method;
    Some(match method {
        Method::Declare(method) if !method.nowait => {
            let named = !method.queue.as_str().is_empty();
            let queue = if named { method.queue.clone() } else { "amq.gen-peer".into() };
            Method::DeclareOk(queue::DeclareOk { queue, message_count: 0, consumer_count: 0 })
        }
        Method::Delete(method) if !method.nowait => Method::DeleteOk(queue::DeleteOk { message_count: 0 }),
        Method::Purge(method) if !method.nowait => Method::PurgeOk(queue::PurgeOk { message_count: 0 }),
        Method::Bind(method) if !method.nowait => Method::BindOk(queue::BindOk {}),
        Method::Unbind(_) => Method::UnbindOk(queue::UnbindOk {}),
        _ => return None,
    })
}

fn of_basic(method: &basic::AMQPMethod) -> Option<basic::AMQPMethod> {
    use basic::AMQPMethod as Method;
    Some(match method {
        Method::Qos(_) => Method::QosOk(basic::QosOk {}),
        Method::Cancel(method) if !method.nowait => {
            Method::CancelOk(basic::CancelOk { consumer_tag: method.consumer_tag.clone() })
        }
        Method::Get(_) => Method::GetEmpty(basic::GetEmpty {}),
        Method::Recover(_) => Method::RecoverOk(basic::RecoverOk {}),
        _ => return None,
    })
}
