//! The content of a broker: users, exchanges, queues and messages.
//!
//! What AMQP clients can declare is declared over AMQP. Each call uses a connection of its own, because the
//! shared broker outlives the runtime of each test. Everything else is done by Erlang expressions in the
//! broker.

use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};

use super::Broker;
use crate::within;

impl Broker {
    /// Opens a connection as `guest`. It ends when it is dropped.
    pub async fn connect(&self) -> Connection {
        let uri = self.uri();
        let connection = Connection::connect(&uri, ConnectionProperties::default());
        within("a connection to the broker", connection).await.expect("the broker lets guests in")
    }

    /// Declares a durable queue.
    pub async fn declare_queue(&self, name: &str) {
        self.declare_queue_with(name, FieldTable::default()).await;
    }

    /// Declares a durable replicated queue, and waits until all nodes of the cluster can store its messages.
    pub async fn declare_quorum_queue(&self, name: &str) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
        self.declare_queue_with(name, arguments).await;
        let online = format!(
            "[{{online, Nodes}}] = rabbit_quorum_queue:info({}, [online]), length(Nodes)",
            queue(name)
        );
        let nodes = self.eval("length(rabbit_nodes:all_running())").await;
        self.becomes(&online, &nodes).await;
    }

    /// Declares a durable queue with these arguments, such as `x-dead-letter-exchange`.
    pub async fn declare_queue_with(&self, name: &str, arguments: FieldTable) {
        self.with_channel(async |channel| {
            channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await.map(drop)
        })
        .await;
    }

    /// Declares a durable exchange.
    pub async fn declare_exchange(&self, name: &str, kind: ExchangeKind) {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        self.with_channel(async |channel| {
            channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await
        })
        .await;
    }

    /// Binds a queue to an exchange.
    pub async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) {
        self.with_channel(async |channel| {
            let options = QueueBindOptions::default();
            channel
                .queue_bind(queue.into(), exchange.into(), routing_key.into(), options, FieldTable::default())
                .await
        })
        .await;
    }

    /// Deletes a queue and its messages.
    pub async fn delete_queue(&self, name: &str) {
        self.with_channel(async |channel| {
            channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.map(drop)
        })
        .await;
    }

    /// Takes all waiting messages from a queue, in order.
    pub async fn drain(&self, queue: &str) -> Vec<BasicGetMessage> {
        self.with_channel(async |channel| {
            let mut messages = Vec::new();
            while let Some(message) =
                channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await?
            {
                messages.push(message);
            }
            Ok(messages)
        })
        .await
    }

    /// Returns how many messages wait in a queue. Messages that a consumer has received and not acknowledged
    /// are not included.
    pub async fn queue_len(&self, name: &str) -> u64 {
        self.eval(&queue_stat(name)).await.parse().expect("a number of messages")
    }

    /// Waits until there is a queue of this name.
    pub async fn queue_exists(&self, name: &str) {
        let name = binary(name);
        let exists = format!("rabbit_amqqueue:exists(rabbit_misc:r(<<\"/\">>, queue, {name}))");
        self.becomes(&exists, "true").await;
    }

    /// Waits until `len` messages wait in a queue.
    pub async fn queue_reaches(&self, name: &str, len: u64) {
        self.becomes(&queue_stat(name), &len.to_string()).await;
    }

    /// Adds a user without any permissions.
    pub async fn add_user(&self, name: &str, password: &str) {
        let (user, password) = (binary(name), binary(password));
        let expression = format!("rabbit_auth_backend_internal:add_user({user}, {password}, <<\"tests\">>)");
        assert_eq!(self.eval(&expression).await, "ok", "{name}");
    }

    /// Sets what a user may configure, write to and read from in a virtual host. These are patterns, and `.*`
    /// matches everything.
    pub async fn set_permissions(&self, user: &str, virtual_host: &str, [configure, write, read]: [&str; 3]) {
        let arguments = [user, virtual_host, configure, write, read, "tests"].map(binary).join(", ");
        let expression = format!("rabbit_auth_backend_internal:set_permissions({arguments})");
        assert_eq!(self.eval(&expression).await, "ok", "{user}");
    }

    /// Sets the routing keys with which a user may publish to an exchange (`write`), and those which it may
    /// bind (`read`). Both are regular expressions: `.*` allows all.
    pub async fn set_topic_permissions(
        &self,
        user: &str,
        virtual_host: &str,
        exchange: &str,
        [write, read]: [&str; 2],
    ) {
        let arguments = [user, virtual_host, exchange, write, read, "tests"].map(binary).join(", ");
        let expression = format!("rabbit_auth_backend_internal:set_topic_permissions({arguments})");
        assert_eq!(self.eval(&expression).await, "ok", "{user}");
    }

    /// Adds a virtual host.
    pub async fn add_virtual_host(&self, name: &str) {
        let expression = format!("rabbit_vhost:add({}, <<\"tests\">>)", binary(name));
        assert_eq!(self.eval(&expression).await, "ok", "{name}");
    }

    /// Closes the connections of all clients as an operator does, with code 320 and this reason. Waits first
    /// until there are `count` connections.
    pub async fn close_connections(&mut self, count: usize, reason: &str) {
        self.becomes("length(rabbit_networking:connections())", &count.to_string()).await;
        let close = format!("rabbit_networking:close_connection(C, binary_to_list({}))", binary(reason));
        self.eval(&format!("[{close} || C <- rabbit_networking:connections()]")).await;
    }

    /// Runs a step on a new channel.
    async fn with_channel<T>(&self, step: impl AsyncFnOnce(&Channel) -> lapin::Result<T>) -> T {
        let connection = self.connect().await;
        let all = async {
            let channel = connection.create_channel().await?;
            let value = step(&channel).await?;
            connection.close(200, "OK".into()).await?;
            lapin::Result::Ok(value)
        };
        within("the broker's answer", all).await.unwrap_or_else(|error| panic!("{}: {error}", self.node()))
    }
}

/// Returns an expression for the number of messages that wait in a queue. It gives the result of a passive
/// declaration, without a connection.
fn queue_stat(name: &str) -> String {
    format!("{{ok, Count, _}} = rabbit_amqqueue:stat({}), Count", queue(name))
}

/// Returns an expression for a queue of the virtual host `/`.
fn queue(name: &str) -> String {
    format!(
        "element(2, {{ok, _}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, {})))",
        binary(name)
    )
}

/// Returns an Erlang binary with the bytes of this text.
fn binary(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    format!("<<{}>>", bytes.join(","))
}
