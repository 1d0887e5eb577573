//! A foreign AMQP client, pika, at the other side of the exchange.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use xmsg_connect::Outbound;
use xmsg_connect::definition::{Body, ChannelDefinition, OnReturn, Properties, Target};
use xmsg_core::Message;
use xmsg_tests::next;
use xmsg_tests::peer::Peer;
use xmsg_tests::rabbitmq::Broker;

use common::{LIMIT, Site, broker, message, outgoing};

async fn pika_publishes(rabbit: &Broker, exchange: &str, key: &str, body: &str, properties: Value) {
    let (port, properties) = (rabbit.port().to_string(), properties.to_string());
    let arguments = ["publish", "--port", &port, "--exchange", exchange, "--key", key, "--body", body];
    let mut pika = Peer::python("amqp.py", &[&arguments[..], &["--properties", &properties]].concat());
    pika.expect("published").await;
    pika.finish().await;
}

/// Takes so many messages, and gives them back for good with `reject`.
async fn pika_takes(rabbit: &Broker, queue: &str, count: usize, reject: bool) -> Vec<Value> {
    let (port, count_text) = (rabbit.port().to_string(), count.to_string());
    let mut arguments = vec!["consume", "--port", &port, "--queue", queue, "--count", &count_text];
    if reject {
        arguments.push("--reject");
    }
    let mut pika = Peer::python("amqp.py", &arguments);
    let mut messages = Vec::new();
    for _ in 0..count {
        messages.push(serde_json::from_str(&pika.expect("message").await.join(" ")).unwrap());
    }
    pika.finish().await;
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_foreign_client_publishes_arrives_as_a_message_of_xmsg() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    rabbit.declare_exchange("plant", ExchangeKind::Topic).await;
    rabbit.declare_queue("plant").await;
    rabbit.bind("plant", "plant", "#").await;
    let mut received = site.actor.subscribe("plant").await.unwrap();
    let target = Target::Topic("plant".parse().unwrap());
    site.registry.create(ChannelDefinition::amqp("in", "broker", "plant", target)).await.unwrap();

    let properties = json!({
        "content_type": "application/json",
        "correlation_id": "c-1",
        "message_id": "m-1",
        "reply_to": "answers",
        "priority": 4,
        "headers": { "tenant": "blue", "level": 3, "tags": ["a", 1], "site": { "hall": "B" }, "none": null },
    });
    pika_publishes(rabbit, "plant", "pumps.2", "{\"bar\": 4}", properties).await;
    let got = next(&mut received).await;
    assert_eq!((got.mime_type().unwrap(), &got.data()[..]), ("application/json", &b"{\"bar\": 4}"[..]));
    for (name, value) in [
        ("amqp-content-type", Some("application/json")),
        ("amqp-correlation-id", Some("c-1")),
        ("amqp-message-id", Some("m-1")),
        ("amqp-reply-to", Some("answers")),
        ("amqp-priority", Some("4")),
        ("tenant", Some("blue")),
        ("level", Some("3")),
        ("tags", Some("[\"a\",1]")),
        ("site", Some("{\"hall\":\"B\"}")),
        ("none", None),
    ] {
        assert_eq!(got.header(name).unwrap(), value, "{name}");
    }
    pika_publishes(rabbit, "plant", "pumps.3", "grün", json!({ "content_type": "text/plain" })).await;
    assert_eq!(next(&mut received).await.value::<String>().unwrap(), "grün");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_client_gets_the_properties_and_headers_that_were_set() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    rabbit.declare_queue("for pika").await;
    let mut out = outgoing("out", "");
    out.routing_key = Some("for pika".into());
    out.body = Some(Body::Plain);
    out.properties = Properties { app_id: Some("daq".into()), priority: Some(5), ..Properties::default() };
    out.headers.insert("X-Env".into(), "prod".into());
    site.registry.create(out).await.unwrap();
    let text = Message::of("orders:new", "17 pieces").unwrap().with_header("unit", "none").unwrap();
    let accepted = site.registry.send_confirmed("out", text, LIMIT).await.unwrap();
    let numbers = Outbound::new(Message::of("orders:sizes", vec![1, 2]).unwrap())
        .properties(Properties {
            priority: Some(0),
            correlation_id: Some("c".into()),
            ..Properties::default()
        })
        .header("X-Level", 3);
    site.registry.send_confirmed("out", numbers, LIMIT).await.unwrap();

    let got = pika_takes(rabbit, "for pika", 2, false).await;
    let id = accepted.id.to_string();
    let (first, second) = (&got[0], &got[1]);
    assert_eq!((&first["body"], &second["body"]), (&json!("17 pieces"), &json!("[1,2]")));
    assert_eq!(first["redelivered"], json!(false));
    for (name, value) in [
        ("content_type", json!("text/plain")),
        ("delivery_mode", json!(2)),
        ("priority", json!(5)),
        ("app_id", json!("daq")),
        ("message_id", json!(id)),
    ] {
        assert_eq!(first["properties"][name], value, "{name}");
    }
    assert!(first["properties"]["timestamp"].as_u64().is_some_and(|time| time > 1_600_000_000));
    let headers = &first["properties"]["headers"];
    for (name, value) in [
        ("X-Xmsg-Topic", "orders:new"),
        ("X-Xmsg-Id", &*id),
        ("X-Xmsg-Component", "out"),
        ("X-Xmsg-Body", "plain"),
        ("X-Env", "prod"),
        ("unit", "none"),
    ] {
        assert_eq!(headers[name], json!(value), "{name}");
    }
    assert!(headers["X-Xmsg-Meta"].as_str().is_some_and(|meta| meta.contains("text/string")));
    let properties = &second["properties"];
    assert_eq!((&properties["priority"], &properties["correlation_id"]), (&json!(0), &json!("c")));
    assert_eq!(
        (&properties["content_type"], &properties["headers"]["X-Level"]),
        (&json!("application/json"), &json!(3))
    );
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_foreign_client_has_rejected_can_be_seen_with_its_history() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    rabbit.declare_exchange("rejected", ExchangeKind::Fanout).await;
    rabbit.declare_queue("rejected").await;
    rabbit.bind("rejected", "rejected", "").await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("rejected".into()));
    rabbit.declare_queue_with("work", arguments).await;
    let mut out = outgoing("out", "");
    out.routing_key = Some("work".into());
    site.registry.create(out).await.unwrap();
    let sent = site.registry.send_confirmed("out", message("orders:new", "17 pieces"), LIMIT).await.unwrap();
    pika_takes(rabbit, "work", 1, true).await;

    // What nobody could do ends among the dead letters of a connection that leads nowhere.
    let mut parked = outgoing("parked", "");
    parked.routing_key = Some("no such queue".into());
    parked.on_return = Some(OnReturn::DeadLetter);
    site.registry.create(parked).await.unwrap();
    let target = Target::Outgoing("parked".into());
    site.registry.create(ChannelDefinition::amqp("rejected", "broker", "rejected", target)).await.unwrap();
    site.until("parked", "a dead letter", |report| report.spool.dead_entries == 1).await;
    let letters = site.registry.dead("parked", 0, 10).await.unwrap();
    let letter = &letters[0];
    assert_eq!(
        (letter.id.as_deref(), letter.topic.as_deref()),
        (Some(&*sent.id.to_string()), Some("orders:new"))
    );
    let history: Value = serde_json::from_str(&letter.headers["x-death"]).unwrap();
    assert_eq!(
        (&history[0]["queue"], &history[0]["reason"], &history[0]["count"]),
        (&json!("work"), &json!("rejected"), &json!(1))
    );
    let shown = serde_json::to_value(letter).unwrap();
    assert_eq!(shown["headers"]["x-death"].as_str(), letter.headers.get("x-death").map(String::as_str));
    site.registry.close().await.unwrap();
}
