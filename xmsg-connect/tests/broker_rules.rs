//! What a broker and those who publish there say of messages, and what of it is believed.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::collections::BTreeSet;

use lapin::message::BasicGetMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use xmsg_connect::definition::{Body, ChannelDefinition, Target};
use xmsg_connect::{LinkState, Outbound, Sort};
use xmsg_core::Message;
use xmsg_tests::next;
use xmsg_tests::rabbitmq::Broker;

use common::{LIMIT, Site, broker, message, outgoing, set_active};

async fn publish(rabbit: &Broker, queue: &str, body: &[u8], properties: BasicProperties) {
    let connection = rabbit.connect().await;
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let sent = channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap();
    assert_eq!(sent.await.unwrap(), lapin::Confirmation::Ack(None));
    connection.close(200, "OK".into()).await.unwrap();
}

fn id(got: &BasicGetMessage) -> String {
    match got.properties.headers().as_ref().unwrap().inner().get("X-Xmsg-Id") {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_passes_through_keeps_the_identity_that_it_has() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    for queue in ["passing", "passed"] {
        rabbit.declare_queue(queue).await;
    }
    // Twice the same, as a publisher does that was not told of the first; and one of another outgoing
    // connection.
    let foreign = || BasicProperties::default().with_message_id("order-17".into());
    publish(rabbit, "passing", b"17", foreign()).await;
    publish(rabbit, "passing", b"17", foreign()).await;
    publish(rabbit, "passing", b"18", BasicProperties::default().with_message_id("order-18".into())).await;
    let mut first = outgoing("first", "");
    first.routing_key = Some("passing".into());
    site.registry.create(first).await.unwrap();
    let sent = site.registry.send_confirmed("first", message("a", "b"), LIMIT).await.unwrap();

    let mut second = outgoing("second", "");
    second.routing_key = Some("passed".into());
    site.registry.create(second).await.unwrap();
    let target = Target::Outgoing("second".into());
    site.registry.create(ChannelDefinition::amqp("through", "broker", "passing", target)).await.unwrap();
    rabbit.queue_reaches("passed", 4).await;
    site.registry.close().await.unwrap();
    let got = rabbit.drain("passed").await;
    let of = |body: &[u8]| got.iter().filter(|got| got.data == body).collect::<Vec<_>>();
    let seventeen = of(b"17");
    assert_eq!(seventeen.len(), 2);
    assert_eq!(id(seventeen[0]), id(seventeen[1]), "receivers see that they are the same");
    assert_ne!(id(seventeen[0]), id(of(b"18")[0]));
    for got in seventeen {
        assert_eq!(got.properties.message_id().as_ref().unwrap().as_str(), "order-17");
    }
    let ours = got.iter().find(|got| id(got) == sent.id.to_string()).expect("ours has its own identifier");
    assert_eq!(ours.properties.message_id().as_ref().unwrap().as_str(), sent.id.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_cannot_say_how_often_its_message_came_back() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    rabbit.declare_queue("forged").await;
    let mut headers = FieldTable::default();
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(1000));
    publish(rabbit, "forged", b"good", BasicProperties::default().with_headers(headers)).await;
    let mut received = site.actor.subscribe("in").await.unwrap();
    let target = Target::Topic("in".parse().unwrap());
    site.registry.create(ChannelDefinition::amqp("in", "broker", "forged", target)).await.unwrap();
    assert_eq!(next(&mut received).await.data(), &b"good"[..]);
    assert_eq!(site.registry.channel("in").unwrap().link.counts.dead, 0);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routing_key_that_is_not_allowed_concerns_its_messages_only() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    let mut as_poet = broker(rabbit.port());
    as_poet.username = "poet".into();
    as_poet.password_file = Some("password".into());
    common::write_secret(&site.folder.path().join("state/password"), "secret");
    rabbit.add_user("poet", "secret").await;
    rabbit.set_permissions("poet", "/", ["", ".*", ""]).await;
    rabbit.declare_exchange("verses", ExchangeKind::Topic).await;
    rabbit.declare_queue("verses").await;
    rabbit.bind("verses", "verses", "#").await;
    rabbit.set_topic_permissions("poet", "/", "verses", ["^good", ".*"]).await;
    site.registry.create(as_poet).await.unwrap();
    site.registry.create(outgoing("out", "verses")).await.unwrap();
    for number in 0..60 {
        let key = if number % 20 == 7 { "bad" } else { "good" };
        let outbound = Outbound::new(message("a", &number.to_string())).routing_key(key);
        site.registry.send("out", outbound).await.unwrap();
    }
    let report = site.until("out", "all", |report| report.spool.entries == 0).await;
    assert_eq!(report.spool.dead_entries, 3);
    let letters = site.registry.dead("out", 0, 10).await.unwrap();
    assert!(letters.iter().all(|letter| letter.reason.contains("access to topic 'bad'")), "{letters:?}");
    let bodies: BTreeSet<_> = rabbit.drain("verses").await.into_iter().map(|got| got.data.clone()).collect();
    assert_eq!(bodies.len(), 57);

    // Where the exchange itself is not allowed, all messages stay. The broker remembers for each channel what
    // it has allowed.
    set_active(&site, Sort::Outgoing, "out", false).await;
    rabbit.set_permissions("poet", "/", ["", "^nothing$", ""]).await;
    site.registry.send("out", Outbound::new(message("a", "kept")).routing_key("good")).await.unwrap();
    set_active(&site, Sort::Outgoing, "out", true).await;
    let report = site.until_state("out", LinkState::Faulted).await;
    assert!(report.link.reason.unwrap().what.contains("access to exchange 'verses'"));
    assert_eq!(site.registry.outgoing("out").unwrap().spool.entries, 1);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_body_can_be_read_by_anybody_and_comes_back_the_same() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    for queue in ["readable", "readable back"] {
        rabbit.declare_queue(queue).await;
    }
    let mut out = outgoing("out", "");
    out.body = Some(Body::Plain);
    site.registry.create(out).await.unwrap();
    let target = Target::Original;
    let mut received = site.actor.subscribe("sensor").await.unwrap();
    site.registry.create(ChannelDefinition::amqp("back", "broker", "readable back", target)).await.unwrap();
    let text = Message::of("sensor:a", "grün").unwrap().with_header("unit", "none").unwrap();
    let numbers = Message::of("sensor:b", vec![1.5, 0.1]).unwrap();
    let bytes = Message::with_mime("sensor:c".parse().unwrap(), "binary/bytes", &b"\xff\x00"[..]);
    for (message, body, content_type) in [
        (text, "grün".as_bytes(), "text/plain"),
        (numbers, b"[1.5,0.1]", "application/json"),
        (bytes, b"\xff\x00", "binary/bytes"),
    ] {
        for queue in ["readable", "readable back"] {
            let outbound = Outbound::new(message.clone()).routing_key(queue);
            site.registry.send_confirmed("out", outbound, LIMIT).await.unwrap();
        }
        let got = &rabbit.drain("readable").await[0];
        assert_eq!(got.data, body);
        assert_eq!(got.properties.content_type().as_ref().unwrap().as_str(), content_type);
        assert_eq!(next(&mut received).await.into_frames(), message.into_frames());
    }
    site.registry.close().await.unwrap();
}
