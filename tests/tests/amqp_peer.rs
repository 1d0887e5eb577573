//! Tests of the scripted AMQP peer: a client sees what the script says.

use futures::StreamExt;
use futures::future::join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions,
    BasicRejectOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Event, ExchangeKind,
    PublisherConfirm,
};
use xmsg_tests::amqp_peer::{Action, Delivery, How, Peer, Publish, Script, What};
use xmsg_tests::within;

async fn connect(peer: &Peer) -> lapin::Result<Connection> {
    let uri = peer.uri();
    within("a connection", Connection::connect(&uri, ConnectionProperties::default())).await
}

/// Returns a connection and a channel with confirms.
async fn publisher(peer: &Peer) -> (Connection, Channel) {
    let connection = connect(peer).await.unwrap();
    let channel = within("a channel", connection.create_channel()).await.unwrap();
    within("confirms", channel.confirm_select(ConfirmSelectOptions::default())).await.unwrap();
    (connection, channel)
}

async fn send(channel: &Channel, body: &[u8]) -> PublisherConfirm {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut headers = FieldTable::default();
    headers.insert("X-Number".into(), AMQPValue::LongInt(7));
    let properties = BasicProperties::default().with_message_id("id".into()).with_headers(headers);
    let publish = channel.basic_publish("orders".into(), "a.b".into(), options, body, properties);
    within("a publish", publish).await.unwrap()
}

/// Sends `count` messages, and waits for the outcome of each.
async fn send_all(channel: &Channel, count: u8) -> Vec<lapin::Result<Confirmation>> {
    let mut confirms = Vec::new();
    for number in 1..=count {
        confirms.push(send(channel, &[number]).await);
    }
    within("all confirms", join_all(confirms)).await
}

/// Describes each outcome by one letter: acknowledged, not acknowledged, not requested, or failed. Capital
/// letters stand for outcomes with a returned message.
fn letters(confirmations: &[lapin::Result<Confirmation>]) -> String {
    let letter = |confirmation: &_| match confirmation {
        Ok(Confirmation::Ack(None)) => 'a',
        Ok(Confirmation::Ack(Some(_))) => 'A',
        Ok(Confirmation::Nack(None)) => 'n',
        Ok(Confirmation::Nack(Some(_))) => 'N',
        Ok(Confirmation::NotRequested) => '-',
        Err(_) => '!',
    };
    confirmations.iter().map(letter).collect()
}

/// Returns the outcomes of three messages, when the peer performs these actions at the third.
async fn third(actions: impl Fn(&[Publish]) -> Vec<Action> + Send + 'static) -> String {
    let mut all = Vec::new();
    let script = Script::confirming().on_publish(move |publish| {
        all.push(publish.clone());
        if all.len() == 3 { actions(&all) } else { Vec::new() }
    });
    let peer = Peer::start(script).await;
    let (_connection, channel) = publisher(&peer).await;
    letters(&send_all(&channel, 3).await)
}

#[tokio::test]
async fn everything_that_came_is_recorded() {
    let peer = Peer::start(Script::confirming()).await;
    let (connection, channel) = publisher(&peer).await;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default;
    channel.exchange_declare("orders".into(), ExchangeKind::Topic, durable, none()).await.unwrap();
    let queue = channel.queue_declare("q".into(), QueueDeclareOptions::durable(), none()).await.unwrap();
    assert_eq!((queue.name().as_str(), queue.message_count()), ("q", 0));
    channel
        .queue_bind("q".into(), "orders".into(), "#".into(), QueueBindOptions::default(), none())
        .await
        .unwrap();
    let large = vec![9; 300_000];
    assert_eq!(send(&channel, &large).await.await.unwrap(), Confirmation::Ack(None));
    assert_eq!(send(&channel, b"").await.await.unwrap(), Confirmation::Ack(None));
    connection.close(200, "OK".into()).await.unwrap();
    peer.ended(1).await;

    let publish = peer.publish(1).await;
    assert_eq!((publish.channel, publish.tag, publish.is_mandatory), (1, 1, true));
    assert_eq!((&*publish.exchange, &*publish.routing_key), ("orders", "a.b"));
    assert_eq!(publish.properties.message_id().as_ref().unwrap().as_str(), "id");
    let headers = publish.properties.headers().clone().unwrap();
    assert_eq!(headers.inner().get("X-Number"), Some(&AMQPValue::LongInt(7)));
    assert_eq!(publish.body, large);
    assert_eq!(peer.publishes().len(), 2);
    let received = peer.received();
    assert_eq!(received.iter().filter(|received| received.is_declaration()).count(), 2);
    let seen: Vec<_> = received.iter().map(|received| &received.what).collect();
    assert!(matches!(seen[..3], [What::Connected, What::Greeting, What::Login { user, password, .. }]
        if user == "guest" && password == "guest"));
    assert!(seen.iter().any(|what| matches!(what, What::Open { virtual_host } if virtual_host == "/")));
    assert!(matches!(seen.last(), Some(What::Ended)));
}

#[tokio::test]
async fn confirms_come_as_the_script_says() {
    assert_eq!(third(|all| vec![all[2].ack_up_to()]).await, "aaa");
    assert_eq!(third(|all| vec![all[2].ack(), all[0].ack(), all[1].ack()]).await, "aaa");
    assert_eq!(third(|all| vec![all[1].nack(), all[0].ack(), all[2].ack()]).await, "ana");
    assert_eq!(third(|all| vec![all[2].nack_up_to()]).await, "nnn");
    assert_eq!(third(|all| vec![all[1].give_back(), all[1].ack(), all[0].ack(), all[2].ack()]).await, "aAa");
    assert_eq!(third(|all| vec![all[0].ack(), Action::drop_connection()]).await, "a!!");
    assert_eq!(third(|all| vec![all[0].ack(), all[2].close_channel(404, "NOT_FOUND")]).await, "a!!");
    assert_eq!(third(|_| vec![Action::close_connection(320, "CONNECTION_FORCED")]).await, "!!!");
}

/// This is the defect of the client that the project works around. The message to which the client assigns
/// the return differs from run to run.
#[tokio::test]
async fn after_a_multiple_ack_the_client_gives_a_returned_message_to_any_of_its_publishes() {
    let seen = third(|all| vec![all[1].give_back(), all[2].ack_up_to()]).await;
    assert_eq!(seen.chars().filter(|letter| *letter == 'A').count(), 1, "{seen}");
    println!("the second of three was returned; the client says {seen}");
}

#[tokio::test]
async fn a_confirm_comes_when_the_test_says_so() {
    let peer = Peer::start(Script::by_hand()).await;
    let (_connection, channel) = publisher(&peer).await;
    let confirm = send(&channel, b"late").await;
    let publish = peer.publish(1).await;
    peer.act(publish.ack()).await;
    assert_eq!(within("a confirm", confirm).await.unwrap(), Confirmation::Ack(None));
}

#[tokio::test]
async fn a_silent_peer_still_reads() {
    let script = Script::confirming().on_publish(|_| vec![Action::silence()]).heartbeat(1);
    let peer = Peer::start(script).await;
    let (connection, channel) = publisher(&peer).await;
    let mut events = Box::pin(connection.events_listener());
    let first = send(&channel, b"1").await;
    let _second = send(&channel, b"2").await;
    assert_eq!(peer.publish(2).await.body, b"2");
    // The client does not get the heartbeats.
    assert!(within("an end", first).await.is_err());
    within("an error", async { while !matches!(events.next().await, Some(Event::Error(_))) {} }).await;
    peer.ended(1).await;
}

#[tokio::test]
async fn heartbeats_keep_a_connection_that_is_asked_for_them() {
    let peer = Peer::start(Script::by_hand().heartbeat(1)).await;
    let (_connection, channel) = publisher(&peer).await;
    let confirm = send(&channel, b"late").await;
    // Four heartbeats of the client take longer than it waits for those of the peer.
    peer.find("a heartbeat", 4, |received| matches!(received.what, What::Heartbeat).then_some(())).await;
    peer.act(peer.publish(1).await.ack()).await;
    assert_eq!(within("a confirm", confirm).await.unwrap(), Confirmation::Ack(None));
}

#[tokio::test]
async fn a_block_and_its_end_are_told() {
    let peer = Peer::start(Script::confirming()).await;
    let (connection, channel) = publisher(&peer).await;
    let mut events = Box::pin(connection.events_listener());
    peer.act(Action::block("low on memory")).await;
    let event = within("an event", events.next()).await;
    assert!(
        matches!(&event, Some(Event::ConnectionBlocked(reason)) if reason == "low on memory"),
        "{event:?}"
    );
    peer.act(Action::unblock()).await;
    assert!(matches!(within("an event", events.next()).await, Some(Event::ConnectionUnblocked)));
    assert_eq!(letters(&send_all(&channel, 2).await), "aa");
}

#[tokio::test]
async fn a_login_and_an_open_are_refused() {
    let peer = Peer::start(Script::confirming().refuse_login()).await;
    let error = connect(&peer).await.unwrap_err().to_string();
    assert!(error.contains("ACCESS"), "{error}");
    let peer = Peer::start(Script::confirming().close_at_open(320, "CONNECTION_FORCED")).await;
    let error = connect(&peer).await.unwrap_err().to_string();
    assert!(error.contains("FORCED"), "{error}");
    let script = Script::confirming()
        .instead(|received| matches!(received.what, What::Greeting).then(|| vec![Action::header()]));
    let peer = Peer::start(script).await;
    assert!(connect(&peer).await.is_err());
}

#[tokio::test]
async fn a_declaration_is_refused_and_the_next_channel_works() {
    let peer = Peer::start(Script::confirming().refuse_declarations(406, "PRECONDITION_FAILED")).await;
    let (connection, channel) = publisher(&peer).await;
    let declared = channel.queue_declare("q".into(), QueueDeclareOptions::durable(), FieldTable::default());
    let error = within("an answer", declared).await.unwrap_err().to_string();
    assert!(error.contains("PRECONDITION"), "{error}");
    let channel = within("a channel", connection.create_channel()).await.unwrap();
    assert_eq!(letters(&send_all(&channel, 1).await), "-");
}

#[tokio::test]
async fn a_second_connection_is_told_apart() {
    let script = Script::confirming().on_publish(|publish| match publish.connection {
        1 => vec![Action::drop_connection()],
        _ => vec![publish.ack()],
    });
    let peer = Peer::start(script).await;
    let (_first, channel) = publisher(&peer).await;
    assert_eq!(letters(&send_all(&channel, 1).await), "!");
    peer.ended(1).await;
    let (_second, channel) = publisher(&peer).await;
    peer.opened(2).await;
    assert_eq!(letters(&send_all(&channel, 1).await), "a");
    let publishes = peer.publishes();
    assert_eq!((publishes[0].connection, publishes[1].connection), (1, 2));
    assert_eq!((publishes[0].tag, publishes[1].tag), (1, 1));
}

#[tokio::test]
async fn a_consumer_gets_what_the_test_delivers_and_its_answers_are_counted() {
    let peer = Peer::start(Script::confirming()).await;
    let connection = connect(&peer).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(10, BasicQosOptions::default()).await.unwrap();
    let consume = channel.basic_consume(
        "q".into(),
        "xmsg-1".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut deliveries = within("a consumer", consume).await.unwrap();
    let consumer = peer.consumer(1).await;
    assert_eq!((&*consumer.tag, &*consumer.queue, consumer.prefetch_count), ("xmsg-1", "q", 10));
    let mut headers = FieldTable::default();
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(3));
    for tag in 1..=4 {
        let delivery = Delivery {
            tag,
            is_redelivered: tag == 2,
            exchange: "orders".to_owned(),
            routing_key: "a.b".to_owned(),
            properties: BasicProperties::default().with_headers(headers.clone()),
            body: vec![tag as u8; 200_000],
        };
        peer.act(consumer.deliver(delivery)).await;
    }
    for tag in 1..=4 {
        let delivery = within("a delivery", deliveries.next()).await.unwrap().unwrap();
        assert_eq!((delivery.delivery_tag, delivery.redelivered), (tag, tag == 2));
        assert_eq!(delivery.properties.headers().as_ref(), Some(&headers));
        assert_eq!(delivery.data, vec![tag as u8; 200_000]);
        match tag {
            1 => delivery.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap(),
            2 => delivery.acker.nack(BasicNackOptions { multiple: false, requeue: false }).await.unwrap(),
            3 => true,
            _ => delivery.acker.ack(BasicAckOptions { multiple: true }).await.unwrap(),
        };
    }
    peer.settlement(3).await;
    let seen: Vec<_> = peer.settlements().iter().map(|s| (s.tag, s.how, s.is_multiple)).collect();
    let expected = [
        (1, How::Reject { requeue: true }, false),
        (2, How::Nack { requeue: false }, false),
        (4, How::Ack, true),
    ];
    assert_eq!(seen, expected);
    peer.act(consumer.cancel()).await;
    assert!(within("the end of the consumer", deliveries.next()).await.is_none());
}

#[tokio::test]
async fn a_peer_that_stops_reading_fills_what_is_between() {
    let script = Script::confirming().on_publish(|_| vec![Action::stop_reading()]);
    let peer = Peer::start(script).await;
    let (connection, channel) = publisher(&peer).await;
    let confirm = send(&channel, b"1").await;
    peer.publish(1).await;
    // The client's publish ends once everything is written.
    let more = tokio::spawn(async move {
        let (options, body) = (BasicPublishOptions::default(), vec![0; 64 << 20]);
        channel
            .basic_publish("".into(), "q".into(), options, &body, BasicProperties::default())
            .await
            .map(drop)
    });
    // The peer still performs actions of the test.
    peer.act(peer.publish(1).await.ack()).await;
    assert_eq!(within("a confirm", confirm).await.unwrap(), Confirmation::Ack(None));
    assert!(!more.is_finished());
    peer.act(Action::drop_connection()).await;
    peer.ended(1).await;
    assert!(within("the rest", more).await.unwrap().is_err());
    assert_eq!(peer.publishes().len(), 1);
    drop(connection);
}
