//! Outgoing connections and channels with a real RabbitMQ.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::collections::BTreeSet;

use bytes::Bytes;
use lapin::ExchangeKind;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable};
use xmsg_connect::definition::{
    AckMode, ChannelDefinition, DeadLetterExchange, DeliveryMode, OnReturn, Properties, QueueDeclare, Span,
    Target, WhenInactive,
};
use xmsg_connect::{ErrorKind, LinkState, OnDelete, Outbound, Sort};
use xmsg_core::Message;
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{next, within};

use common::{LIMIT, Site, broker, message, outgoing, set_active, write_secret};

/// Makes a site with a connection to the shared broker, and an exchange with a queue that gets everything.
async fn site(name: &str) -> (Site, &'static Broker) {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    rabbit.declare_exchange(name, ExchangeKind::Topic).await;
    rabbit.declare_queue(name).await;
    rabbit.bind(name, name, "#").await;
    (site, rabbit)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_went_through_a_broker_comes_out_the_same() {
    let (site, _) = site("round").await;
    let mut out = outgoing("out", "round");
    out.subscribe = vec!["weather".into()];
    site.registry.create(out).await.unwrap();
    let back = ChannelDefinition::amqp("back", "broker", "round", Target::Topic("again".parse().unwrap()));
    site.registry.create(back).await.unwrap();
    let original = ChannelDefinition::amqp("original", "broker", "round", Target::Original);
    site.registry.create(ChannelDefinition { is_active: false, ..original }).await.unwrap();
    site.until_channel("back", "connected", |report| report.link.state == LinkState::Connected).await;

    let mut again = site.actor.subscribe("again").await.unwrap();
    let sent =
        Message::of("weather:oslo:air", vec![1.5, -2.5]).unwrap().with_header("station", "17").unwrap();
    let mut everything = site.actor.subscribe("weather").await.unwrap();
    // The outgoing connection has subscribed once a message of ours has arrived.
    let arrived = async {
        loop {
            site.actor.publish(&sent).await.unwrap();
            next(&mut everything).await;
            if site.registry.outgoing("out").unwrap().link.counts.accepted > 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    within("the subscription of the outgoing connection", arrived).await;
    let received = next(&mut again).await;
    let ([_, meta, data], [_, sent_meta, sent_data]) =
        (received.clone().into_frames(), sent.clone().into_frames());
    assert_eq!((received.topic().as_bytes(), meta, data), (&b"again"[..], sent_meta, sent_data));
    assert_eq!(received.header("station").unwrap(), Some("17"));

    set_active(&site, Sort::Channel, "back", false).await;
    set_active(&site, Sort::Channel, "original", true).await;
    let frames = loop {
        site.registry.send("out", sent.clone()).await.unwrap();
        let message = next(&mut everything).await;
        // What we published ourselves above may be among them.
        if site.registry.channel("original").unwrap().link.counts.delivered > 0 {
            break message.into_frames();
        }
    };
    assert_eq!(frames, sent.into_frames());
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_sets_what_it_likes() {
    let (site, rabbit) = site("sends").await;
    let mut out = outgoing("out", "sends");
    out.routing_key = Some("{domain}.{subject}".into());
    out.properties = Properties {
        priority: Some(5),
        app_id: Some("daq".into()),
        content_type: Some("application/json".into()),
        ..Properties::default()
    };
    out.headers.insert("X-Env".into(), "prod".into());
    out.headers.insert("X-Level".into(), 3.into());
    out.header_compat = Some(xmsg_connect::definition::HeaderCompat::Zato);
    site.registry.create(out).await.unwrap();

    let plain = Message::with_mime("orders:new".parse().unwrap(), "application/json", "{}");
    let accepted = site.registry.send_confirmed("out", plain.clone(), LIMIT).await.unwrap();
    let override_all = Outbound::new(plain.clone())
        .routing_key("urgent")
        .properties(Properties {
            priority: Some(0),
            app_id: Some(String::new()),
            delivery_mode: Some(DeliveryMode::Transient),
            message_id: Some("mine".into()),
            timestamp: Some(7),
            kind: Some("order".into()),
            user_id: Some("guest".into()),
            ..Properties::default()
        })
        .header("X-Env", "test");
    site.registry.send_confirmed("out", override_all, LIMIT).await.unwrap();
    // The default exchange, whose routing keys are names of queues.
    site.registry
        .send_confirmed("out", Outbound::new(plain).exchange("").routing_key("sends"), LIMIT)
        .await
        .unwrap();

    let got = rabbit.drain("sends").await;
    assert_eq!(got.len(), 3);
    let text =
        |value: &Option<lapin::types::ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let (first, second, third) = (&got[0], &got[1], &got[2]);
    assert_eq!(first.routing_key.as_str(), "orders.new");
    assert_eq!(first.data, b"{}");
    let properties = &first.properties;
    assert_eq!((*properties.priority(), *properties.delivery_mode()), (Some(5), Some(2)));
    assert_eq!(text(properties.app_id()).as_deref(), Some("daq"));
    assert_eq!(text(properties.message_id()), Some(accepted.id.to_string()));
    assert!(properties.timestamp().is_some());
    let headers = properties.headers().as_ref().unwrap().inner();
    let long = |name: &str| match headers.get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!((long("X-Env").as_str(), headers.get("X-Level")), ("prod", Some(&AMQPValue::LongLongInt(3))));
    assert_eq!((long("X-Xmsg-Topic").as_str(), long("X-Xmsg-Component").as_str()), ("orders:new", "out"));
    assert_eq!(long("X-Zato-Component"), "out");
    assert!(long("X-Xmsg-Msg-TS").ends_with('Z'), "{}", long("X-Xmsg-Msg-TS"));

    let properties = &second.properties;
    assert_eq!(second.routing_key.as_str(), "urgent");
    assert_eq!(
        (*properties.priority(), *properties.delivery_mode(), *properties.timestamp()),
        (Some(0), Some(1), Some(7))
    );
    assert_eq!(
        (text(properties.app_id()).as_deref(), text(properties.message_id()).as_deref()),
        (Some(""), Some("mine"))
    );
    assert_eq!(third.exchange.as_str(), "");

    for (kind, wrong) in [
        (ErrorKind::InvalidMessage, Outbound::new(message("a", "b")).routing_key("x".repeat(256))),
        (ErrorKind::InvalidMessage, Outbound::new(message("a", "b")).header("x".repeat(256), 1)),
        (
            ErrorKind::InvalidMessage,
            Outbound::new(message("a", "b"))
                .properties(Properties { user_id: Some("root".into()), ..Properties::default() }),
        ),
    ] {
        assert_eq!(site.registry.send("out", wrong).await.unwrap_err().kind(), kind);
    }
    assert_eq!(site.registry.send("nobody", message("a", "b")).await.unwrap_err().kind(), ErrorKind::Unknown);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_queue_is_bound_for_waits_or_goes_to_the_dead_letters() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    rabbit.declare_exchange("nobody bound", ExchangeKind::Topic).await;
    rabbit.declare_queue("bound later").await;
    let retry = outgoing("retry", "nobody bound");
    let mut dead = outgoing("dead", "nobody bound");
    dead.on_return = Some(OnReturn::DeadLetter);
    site.registry.create(retry).await.unwrap();
    site.registry.create(dead).await.unwrap();

    let error = site.registry.send_confirmed("dead", message("a", "b"), LIMIT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Undeliverable, "{error}");
    assert!(error.to_string().contains("NO_ROUTE"), "{error}");
    let letters = site.registry.dead("dead", 0, 10).await.unwrap();
    assert!(letters.len() == 1 && letters[0].reason.contains("NO_ROUTE"), "{letters:?}");

    for number in 0..100 {
        let key = if number % 2 == 0 { "good" } else { "bad" };
        let outbound = Outbound::new(message("a", &number.to_string())).routing_key(key);
        site.registry.send("retry", outbound).await.unwrap();
    }
    site.until("retry", "returns", |report| report.link.counts.returned >= 100).await;
    assert_eq!(site.registry.outgoing("retry").unwrap().spool.entries, 100);
    rabbit.bind("bound later", "nobody bound", "good").await;
    // Those that can be delivered are, in spite of the others.
    site.until("retry", "half of them", |report| report.spool.entries == 50).await;
    rabbit.bind("bound later", "nobody bound", "bad").await;
    site.until("retry", "all", |report| report.spool.entries == 0).await;
    assert_eq!(rabbit.drain("bound later").await.len(), 100, "each once");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_is_a_fault_that_can_be_seen_and_mended() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    site.registry.create(outgoing("missing", "made later")).await.unwrap();
    let report = site.until_state("missing", LinkState::Faulted).await;
    let reason = report.link.reason.unwrap().what;
    assert!(reason.contains("404") && reason.contains("made later"), "{reason}");
    let error = site.registry.ping(Sort::Outgoing, "missing", LIMIT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    site.registry.send("missing", message("a", "kept")).await.unwrap();
    rabbit.declare_exchange("made later", ExchangeKind::Fanout).await;
    rabbit.declare_queue("made later").await;
    rabbit.bind("made later", "made later", "").await;
    site.until("missing", "delivered", |report| report.spool.entries == 0).await;
    assert_eq!(rabbit.queue_len("made later").await, 1);
    site.registry.ping(Sort::Outgoing, "missing", LIMIT).await.unwrap();

    // A password that is wrong, and then right.
    rabbit.add_user("clerk", "secret").await;
    rabbit.set_permissions("clerk", "/", ["", ".*", ""]).await;
    let password = site.folder.path().join("password");
    write_secret(&password, "wrong");
    let mut as_clerk = broker(rabbit.port());
    as_clerk.username = "clerk".into();
    as_clerk.password_file = Some(password.clone());
    site.registry.update("broker", as_clerk).await.unwrap();
    let report = site.until_state("missing", LinkState::Faulted).await;
    let reason = report.link.reason.unwrap().what;
    assert!(reason.contains("does not accept the login \"clerk\""), "{reason}");
    let error = site.registry.ping(Sort::Connection, "broker", LIMIT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
    write_secret(&password, "secret");
    site.until_state("missing", LinkState::Connected).await;

    // A message that the broker means, and not the exchange: it alone goes to the dead letters.
    rabbit.set_permissions("clerk", "/", ["", "^made later$", ""]).await;
    let forbidden = Outbound::new(message("a", "forbidden")).exchange("amq.topic");
    for outbound in [Outbound::new(message("a", "one")), forbidden, Outbound::new(message("a", "two"))] {
        site.registry.send("missing", outbound).await.unwrap();
    }
    site.until("missing", "all", |report| report.spool.entries == 0).await;
    let letters = site.registry.dead("missing", 0, 10).await.unwrap();
    assert!(letters.len() == 1 && letters[0].reason.contains("403"), "{letters:?}");
    let got: BTreeSet<_> = rabbit.drain("made later").await.into_iter().map(|got| got.data.clone()).collect();
    let data = |text| message("a", text).data().to_vec();
    assert!(got.is_superset(&[data("one"), data("two")].into()), "{got:?}");

    // A whole virtual host that is not there.
    let mut elsewhere = broker(rabbit.port());
    elsewhere.vhost = "nowhere".into();
    site.registry.update("broker", elsewhere).await.unwrap();
    let report = site.until_state("missing", LinkState::Faulted).await;
    let reason = report.link.reason.unwrap().what;
    assert!(reason.contains("nowhere"), "{reason}");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_not_active_stores_or_refuses() {
    let (site, rabbit) = site("rest").await;
    let mut store = outgoing("store", "rest");
    store.is_active = false;
    let mut reject = outgoing("reject", "rest");
    reject.is_active = false;
    reject.when_inactive = WhenInactive::Reject;
    site.registry.create(store).await.unwrap();
    site.registry.create(reject).await.unwrap();
    for _ in 0..10 {
        site.registry.send("store", message("a", "b")).await.unwrap();
        let error = site.registry.send("reject", message("a", "b")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Inactive, "{error}");
    }
    let report = site.registry.outgoing("store").unwrap();
    assert_eq!((report.link.state, report.spool.entries), (LinkState::Inactive, 10));
    assert_eq!(site.registry.outgoing("reject").unwrap().link.counts.refused, 10);
    assert_eq!(rabbit.queue_len("rest").await, 0);

    let error = site.registry.delete(Sort::Outgoing, "store", OnDelete::Refuse).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    set_active(&site, Sort::Outgoing, "store", true).await;
    site.registry.delete(Sort::Outgoing, "store", OnDelete::Drain(LIMIT)).await.unwrap();
    assert_eq!(rabbit.queue_len("rest").await, 10);
    assert_eq!(site.registry.outgoing("store").unwrap_err().kind(), ErrorKind::Unknown);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_changed_while_they_are_at_work_and_survive_a_restart() {
    let (mut site, rabbit) = site("changes").await;
    let mut lazy = outgoing("out", "changes");
    lazy.lazy = true;
    site.registry.create(lazy.clone()).await.unwrap();
    site.until_state("out", LinkState::Idle).await;
    let error = site.registry.create(lazy).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NameTaken, "{error}");
    let error = site.registry.create(outgoing("other", "x".repeat(256).as_str())).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidDefinition && error.to_string().contains("exchange"),
        "{error}"
    );
    let error = site.registry.delete(Sort::Connection, "broker", OnDelete::Refuse).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");

    set_active(&site, Sort::Outgoing, "out", false).await;
    site.registry.send("out", message("a", "kept under its old name")).await.unwrap();
    site.registry.rename(Sort::Outgoing, "out", "renamed").await.unwrap();
    site.registry.rename(Sort::Connection, "broker", "rabbit").await.unwrap();
    assert_eq!(site.registry.outgoing("out").unwrap_err().kind(), ErrorKind::Unknown);
    assert_eq!(site.registry.outgoing("renamed").unwrap().definition.connection.as_deref(), Some("rabbit"));
    let exported = site.registry.export();
    let options =
        xmsg_connect::RegistryOptions::new(site.folder.path().join("state"), site.proxy.address().clone());
    let error = xmsg_connect::Registry::open(options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    site.restart().await;
    assert_eq!(site.registry.export(), exported);
    assert_eq!(site.registry.outgoing("renamed").unwrap().spool.entries, 1);
    set_active(&site, Sort::Outgoing, "renamed", true).await;
    site.until("renamed", "delivered", |report| report.spool.entries == 0).await;
    assert_eq!(rabbit.queue_len("changes").await, 1);
    assert_eq!(site.registry.report().orphans, [""; 0]);

    // What is exported can be imported elsewhere.
    let text = exported.to_toml().unwrap();
    let elsewhere = Site::with(xmsg_connect::definition::Definitions::parse(&text).unwrap()).await;
    assert_eq!(elsewhere.registry.export(), exported);
    elsewhere.registry.close().await.unwrap();
    site.registry.import(xmsg_connect::definition::Definitions::default()).await.unwrap();
    assert!(site.registry.report().outgoing.is_empty());
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_ends_in_the_dead_letter_exchange() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    rabbit.declare_exchange("dlx", ExchangeKind::Fanout).await;
    rabbit.declare_queue("dead").await;
    rabbit.bind("dead", "dlx", "").await;
    // Somebody has given it back again and again: a quorum queue counts that.
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("dlx".into()));
    rabbit.declare_queue_with("poison", arguments).await;
    publish(rabbit, "", "poison", b"bad", FieldTable::default()).await;
    let connection = rabbit.connect().await;
    let reader = connection.create_channel().await.unwrap();
    for _ in 0..3 {
        let got = within("the message", async {
            loop {
                if let Some(got) =
                    reader.basic_get("poison".into(), BasicGetOptions::default()).await.unwrap()
                {
                    break got;
                }
            }
        });
        let back = BasicNackOptions { requeue: true, multiple: false };
        got.await.acker.nack(back).await.unwrap();
    }
    connection.close(200, "OK".into()).await.unwrap();
    let mut poison =
        ChannelDefinition::amqp("poison", "broker", "poison", Target::Topic("good".parse().unwrap()));
    poison.delivery_limit = Some(3);
    site.registry.create(poison).await.unwrap();
    rabbit.queue_reaches("dead", 1).await;
    let counts = site.registry.channel("poison").unwrap().link.counts;
    assert_eq!((counts.delivered, counts.dead), (0, 1));

    // One that can't be a message of xMsg for this target goes there at once.
    let mut strict = ChannelDefinition::amqp("strict", "broker", "strict", Target::Original);
    strict.queue_declare = Some(QueueDeclare::Active);
    strict.dead_letter = Some(DeadLetterExchange { exchange: "dlx".into(), routing_key: None });
    site.registry.create(strict).await.unwrap();
    site.until_channel("strict", "connected", |report| report.link.state == LinkState::Connected).await;
    publish(rabbit, "", "strict", b"no topic", FieldTable::default()).await;
    rabbit.queue_reaches("dead", 2).await;

    // A channel that reads dead letters shows what has become of them.
    let mut dead = site.actor.subscribe("dead").await.unwrap();
    site.registry
        .create(ChannelDefinition::amqp("dead", "broker", "dead", Target::Topic("dead".parse().unwrap())))
        .await
        .unwrap();
    let first = next(&mut dead).await;
    let history = first.header("x-death").unwrap().unwrap();
    assert!(history.contains("\"queue\":\"poison\""), "{history}");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_does_not_take_stays_in_the_queue() {
    let (site, rabbit) = site("held").await;
    let mut rests = outgoing("rests", "");
    rests.routing_key = Some("handed over".into());
    rests.is_active = false;
    rests.when_inactive = WhenInactive::Reject;
    site.registry.create(rests).await.unwrap();
    rabbit.declare_queue("handed over").await;
    let mut channel = ChannelDefinition::amqp("held", "broker", "held", Target::Outgoing("rests".into()));
    channel.requeue_delay = Some(Span::of(std::time::Duration::from_millis(10)));
    channel.delivery_limit = Some(1);
    site.registry.create(channel).await.unwrap();
    for _ in 0..20 {
        // All of them look the same.
        publish(rabbit, "held", "k", b"0", FieldTable::default()).await;
    }
    site.until_channel("held", "many attempts", |report| report.link.counts.repeated > 100).await;
    assert_eq!(site.registry.channel("held").unwrap().link.counts.dead, 0);
    set_active(&site, Sort::Outgoing, "rests", true).await;
    rabbit.queue_reaches("handed over", 20).await;
    site.registry.close().await.unwrap();
    rabbit.queue_reaches("held", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_messages_become_messages_of_xmsg() {
    let (site, rabbit) = site("foreign").await;
    let channel = ChannelDefinition::amqp("in", "broker", "foreign", Target::Topic("plant".parse().unwrap()));
    site.registry.create(channel).await.unwrap();
    let mut plant = site.actor.subscribe("plant").await.unwrap();
    for (content_type, body, mime) in [
        (Some("application/json; charset=utf-8"), &b"{\"a\":1}"[..], "application/json"),
        (Some("application/problem+json"), b"[]", "application/json"),
        (Some("text/plain"), b"hello", "text/string"),
        (Some("text/plain"), b"\xff", "binary/bytes"),
        (None, b"raw", "binary/bytes"),
    ] {
        let mut properties = lapin::BasicProperties::default().with_correlation_id("c-1".into());
        if let Some(content_type) = content_type {
            properties = properties.with_content_type(content_type.into());
        }
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("blue".into()));
        headers.insert("level".into(), AMQPValue::LongInt(3));
        publish_with(rabbit, "foreign", "k", body, properties.with_headers(headers)).await;
        let got = next(&mut plant).await;
        assert_eq!(got.mime_type().unwrap(), mime, "{content_type:?}");
        assert_eq!(got.header("tenant").unwrap(), Some("blue"));
        assert_eq!(got.header("level").unwrap(), Some("3"));
        assert_eq!(got.header("amqp-correlation-id").unwrap(), Some("c-1"));
        match mime {
            "text/string" => assert_eq!(got.value::<String>().unwrap(), "hello"),
            _ => assert_eq!(got.data(), &Bytes::copy_from_slice(body)),
        }
    }
    rabbit.queue_reaches("foreign", 0).await;
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_come_as_the_channel_says() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    rabbit.declare_exchange("copies", ExchangeKind::Fanout).await;
    rabbit.declare_queue("copies").await;
    rabbit.bind("copies", "copies", "").await;
    let mut received = site.actor.subscribe("modes").await.unwrap();
    for (name, mode, copies) in [
        ("on-confirm", AckMode::OnConfirm, 0),
        ("ack", AckMode::Ack, 0),
        ("no-ack", AckMode::NoAck, 0),
        ("reject", AckMode::Reject, 5),
    ] {
        let mut channel =
            ChannelDefinition::amqp(name, "broker", name, Target::Topic("modes".parse().unwrap()));
        channel.ack_mode = Some(mode);
        channel.queue_declare = Some(QueueDeclare::Active);
        channel.dead_letter = Some(DeadLetterExchange { exchange: "copies".into(), routing_key: None });
        site.registry.create(channel).await.unwrap();
        site.until_channel(name, "connected", |report| report.link.state == LinkState::Connected).await;
        for _ in 0..5 {
            publish(rabbit, "", name, name.as_bytes(), FieldTable::default()).await;
        }
        for _ in 0..5 {
            assert_eq!(next(&mut received).await.data(), name.as_bytes());
        }
        rabbit.queue_reaches(name, 0).await;
        rabbit.queue_reaches("copies", copies).await;
    }
    site.registry.close().await.unwrap();
}

async fn publish(rabbit: &Broker, exchange: &str, key: &str, body: &[u8], headers: FieldTable) {
    publish_with(rabbit, exchange, key, body, lapin::BasicProperties::default().with_headers(headers)).await;
}

async fn publish_with(
    rabbit: &Broker,
    exchange: &str,
    key: &str,
    body: &[u8],
    properties: lapin::BasicProperties,
) {
    let connection = rabbit.connect().await;
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await.unwrap();
    let options = lapin::options::BasicPublishOptions { mandatory: true, ..Default::default() };
    let sent = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
    assert_eq!(sent.await.unwrap(), lapin::Confirmation::Ack(None));
    connection.close(200, "OK".into()).await.unwrap();
}
