//! What a broker does that can't be asked of a real one: a scripted peer stands in for it.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::types::AMQPValue;
use xmsg_connect::definition::{ChannelDefinition, OnReturn, Span, Target};
use xmsg_connect::{ErrorKind, LinkState, Outbound};
use xmsg_tests::amqp_peer::{Action, Delivery, How, Peer, Publish, Script};
use xmsg_tests::next;

use common::{LIMIT, Site, broker, message, outgoing};

/// Makes a site whose outgoing connection `out` leads to the default exchange of this peer.
async fn site(peer: &Peer) -> Site {
    let site = Site::new().await;
    site.registry.create(broker(peer.port())).await.unwrap();
    site
}

/// Returns the number that a message has as its text.
fn number(publish: &Publish) -> u32 {
    let text = String::from_utf8_lossy(&publish.body).into_owned();
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn id(publish: &Publish) -> String {
    let headers = publish.properties.headers().clone().unwrap();
    match headers.inner().get("X-Xmsg-Id") {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn send(site: &Site, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        site.registry.send("out", message("a", &format!("n{number:05}"))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_confirmed_when_the_connection_broke_is_sent_again_with_the_same_identifier() {
    let mut breaks = 0;
    let script = Script::confirming().on_publish(move |publish| {
        if number(publish) == 3 && breaks < 2 {
            breaks += 1;
            return vec![Action::drop_connection()];
        }
        vec![publish.ack()]
    });
    let peer = Peer::start(script).await;
    let site = site(&peer).await;
    site.registry.create(outgoing("out", "")).await.unwrap();
    send(&site, 1..=5).await;
    site.until("out", "all", |report| report.spool.entries == 0).await;
    let publishes = peer.publishes();
    let of = |wanted: u32| {
        publishes.iter().filter(|publish| number(publish) == wanted).map(id).collect::<Vec<_>>()
    };
    assert!(of(3).len() == 3 && of(3).iter().collect::<BTreeSet<_>>().len() == 1, "{:?}", of(3));
    for wanted in 1..=5 {
        assert!(!of(wanted).is_empty(), "{wanted}");
    }
    let report = site.registry.outgoing("out").unwrap();
    assert_eq!((report.link.counts.delivered, report.link.counts.connections), (5, 3));
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_left_after_the_time_for_confirmations() {
    let mut connections = BTreeSet::new();
    let script = Script::confirming().on_publish(move |publish| {
        let is_first = connections.insert(0) && number(publish) == 1;
        if is_first { vec![Action::silence()] } else { vec![publish.ack()] }
    });
    let peer = Peer::start(script).await;
    let site = site(&peer).await;
    let mut out = outgoing("out", "");
    out.confirm_timeout = Some(Span::of(Duration::from_millis(200)));
    site.registry.create(out).await.unwrap();
    send(&site, 1..=3).await;
    let report = site.until("out", "all", |report| report.spool.entries == 0).await;
    let incidents: Vec<_> = report.link.incidents.into_iter().map(|incident| incident.what).collect();
    assert!(incidents.iter().any(|what| what.contains("confirm_timeout")), "{incidents:?}");
    assert_eq!(report.link.counts.delivered, 3);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_returned_goes_to_the_dead_letters_however_it_is_confirmed() {
    let mut all: Vec<Publish> = Vec::new();
    // The peer returns 7, 19 and 20 of each twenty, and confirms all of them at once.
    let script = Script::confirming().on_publish(move |publish| {
        all.push(publish.clone());
        let place = number(publish) % 20;
        let mut actions = Vec::new();
        if matches!(place, 7 | 19 | 0) {
            actions.push(publish.give_back());
        }
        if place == 0 {
            actions.push(publish.ack_up_to());
        }
        actions
    });
    let peer = Peer::start(script).await;
    let site = site(&peer).await;
    let mut out = outgoing("out", "");
    out.on_return = Some(OnReturn::DeadLetter);
    site.registry.create(out).await.unwrap();
    // The peer confirms nothing before it has twenty; unlike a broker, it would wait for them for ever.
    for group in 0..20 {
        send(&site, group * 20 + 1..=group * 20 + 20).await;
        site.until("out", "a group", |report| report.spool.entries == 0).await;
    }
    let report = site.registry.outgoing("out").unwrap();
    assert_eq!(
        (report.link.counts.delivered, report.link.counts.returned, report.spool.dead_entries),
        (340, 60, 60)
    );
    let letters = site.registry.dead("out", 0, 100).await.unwrap();
    assert!(letters.iter().all(|letter| matches!(letter.sequence % 20, 7 | 19 | 0)), "{letters:?}");
    assert_eq!(peer.publishes().len(), 400, "nothing was sent twice");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_could_not_take_is_sent_again() {
    let mut refused = BTreeSet::new();
    let script = Script::confirming().on_publish(move |publish| {
        let again = refused.insert(number(publish)) && number(publish).is_multiple_of(2);
        vec![if again { publish.nack() } else { publish.ack() }]
    });
    let peer = Peer::start(script).await;
    let site = site(&peer).await;
    site.registry.create(outgoing("out", "")).await.unwrap();
    send(&site, 1..=10).await;
    let report = site.until("out", "all", |report| report.spool.entries == 0).await;
    assert_eq!((report.link.counts.delivered, report.link.counts.refused_by_peer), (10, 5));
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_ends_the_channel_goes_to_the_dead_letters_and_no_other_does() {
    let script = Script::confirming().on_publish(|publish| {
        vec![match number(publish) {
            13 => publish.close_channel(406, "PRECONDITION_FAILED - invalid expiration"),
            14 => Action::close_connection(501, "FRAME_ERROR - too long"),
            _ => publish.ack(),
        }]
    });
    let peer = Peer::start(script).await;
    let site = site(&peer).await;
    site.registry.create(outgoing("out", "")).await.unwrap();
    send(&site, 1..=40).await;
    let report = site.until("out", "all", |report| report.spool.entries == 0).await;
    assert_eq!((report.link.counts.delivered, report.spool.dead_entries), (38, 2));
    let letters = site.registry.dead("out", 0, 10).await.unwrap();
    let reasons: Vec<_> = letters.iter().map(|letter| (letter.sequence, letter.reason.clone())).collect();
    assert!(reasons[0].0 == 13 && reasons[0].1.contains("406"), "{reasons:?}");
    assert!(reasons[1].0 == 14 && reasons[1].1.contains("501"), "{reasons:?}");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_broker_is_waited_for() {
    let peer = Peer::start(Script::by_hand()).await;
    let site = site(&peer).await;
    let mut out = outgoing("out", "");
    out.confirm_timeout = Some(Span::of(Duration::from_millis(300)));
    site.registry.create(out).await.unwrap();
    send(&site, 1..=1).await;
    let first = peer.publish(1).await;
    peer.act(Action::block("low on memory")).await;
    let report = site.until_state("out", LinkState::Blocked).await;
    assert!(report.link.reason.unwrap().what.contains("low on memory"));
    send(&site, 2..=3).await;
    // Longer than the time for confirmations, which does not run meanwhile.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(
        (site.registry.outgoing("out").unwrap().link.state, peer.publishes().len()),
        (LinkState::Blocked, 1)
    );
    peer.act(Action::unblock()).await;
    site.until_state("out", LinkState::Connected).await;
    peer.act(first.ack()).await;
    for number in 2..=3 {
        let publish = peer.publish(number).await;
        peer.act(publish.ack()).await;
    }
    let report = site.until("out", "all", |report| report.spool.entries == 0).await;
    assert_eq!(report.link.counts.connections, 1);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_of_a_broker_are_tried_in_turn() {
    let closing =
        Peer::start(Script::confirming().close_at_open(320, "CONNECTION_FORCED - going down")).await;
    let refusing = Peer::start(Script::confirming().refuse_login()).await;
    let good = Peer::start(Script::confirming()).await;
    let site = Site::new().await;
    let mut nodes = broker(closing.port());
    nodes.uris.extend([
        format!("amqp://127.0.0.1:{}", refusing.port()),
        format!("amqp://127.0.0.1:{}", good.port()),
    ]);
    site.registry.create(nodes).await.unwrap();
    site.registry.create(outgoing("out", "")).await.unwrap();
    site.registry.send_confirmed("out", message("a", "n1"), LIMIT).await.unwrap();
    let report = site.registry.outgoing("out").unwrap();
    assert!(report.link.peer.unwrap().ends_with(&good.port().to_string()));
    let incidents: Vec<_> = report.link.incidents.into_iter().map(|incident| incident.what).collect();
    assert!(
        incidents[0].contains("CONNECTION_FORCED") && incidents[1].contains("ACCESS_REFUSED"),
        "{incidents:?}"
    );
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_a_frame_goes_to_the_dead_letters() {
    let peer = Peer::start(Script::confirming().frame_max(8192)).await;
    let site = site(&peer).await;
    site.registry.create(outgoing("out", "")).await.unwrap();
    let long = Outbound::new(message("a", "n1")).header("X-Long", "x".repeat(9000));
    let error = site.registry.send_confirmed("out", long, LIMIT).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Undeliverable && error.to_string().contains("frame_max"), "{error}");
    // A long body is sent in many frames.
    site.registry.send_confirmed("out", message("a", &"1".repeat(100_000)), LIMIT).await.unwrap();
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_acknowledges_what_its_target_has() {
    let peer = Peer::start(Script::confirming()).await;
    let site = site(&peer).await;
    let mut received = site.actor.subscribe("in").await.unwrap();
    let channel = ChannelDefinition::amqp("in", "broker", "q", Target::Topic("in".parse().unwrap()));
    site.registry.create(channel).await.unwrap();
    let consumer = peer.consumer(1).await;
    assert!(consumer.tag.starts_with("xmsg-"), "{}", consumer.tag);
    for tag in 1..=3 {
        let delivery = Delivery { tag, body: b"hello".to_vec(), ..Delivery::default() };
        peer.act(consumer.deliver(delivery)).await;
    }
    for _ in 0..3 {
        next(&mut received).await;
    }
    let mut acknowledged = 0;
    for place in 1.. {
        let settlement = peer.settlement(place).await;
        assert!(matches!(settlement.how, How::Ack), "{settlement:?}");
        acknowledged = settlement.tag;
        if acknowledged == 3 {
            break;
        }
    }
    assert_eq!(acknowledged, 3);
    // The broker ends the consumer, as when its queue is deleted: the channel comes back.
    peer.act(consumer.cancel()).await;
    peer.consumer(2).await;
    site.registry.close().await.unwrap();
}

/// Returns the payload of a content header whose table has lists within each other, as many as fit into a
/// frame.
fn header_with_nested_lists(body: u64) -> (Vec<u8>, usize) {
    let levels = 26_000;
    let mut fields = Vec::new();
    for level in (0..levels).rev() {
        fields.push(b'A');
        fields.extend((level * 5_u32).to_be_bytes());
    }
    let mut header = vec![0, 60, 0, 0];
    header.extend(body.to_be_bytes());
    header.extend([0x20, 0]);
    header.extend((fields.len() as u32 + 2).to_be_bytes());
    header.extend(b"\x01a");
    header.extend(fields);
    (header, levels as usize)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_tables_nested_as_deeply_as_a_frame_allows_arrives_and_ends_nothing() {
    let peer = Peer::start(Script::confirming()).await;
    let site = site(&peer).await;
    let mut received = site.actor.subscribe("in").await.unwrap();
    let channel = ChannelDefinition::amqp("in", "broker", "q", Target::Topic("in".parse().unwrap()));
    site.registry.create(channel).await.unwrap();
    let consumer = peer.consumer(1).await;
    let (header, _) = header_with_nested_lists(5);
    for tag in 1..=3 {
        for action in consumer.deliver_raw(tag, &header, b"hello") {
            peer.act(action).await;
        }
    }
    for _ in 0..3 {
        assert_eq!(next(&mut received).await.data(), &b"hello"[..]);
    }
    let link = site.registry.channel("in").unwrap().link;
    assert_eq!((link.counts.connections, link.counts.dead), (1, 0), "{link:#?}");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_over_which_the_broker_takes_nothing_any_more_is_made_anew() {
    // As a channel does that was open while the leader of a replicated queue died.
    let script = Script::confirming().on_publish(|publish| {
        vec![if publish.connection == 1 && number(publish) > 3 { publish.nack() } else { publish.ack() }]
    });
    let peer = Peer::start(script).await;
    let site = site(&peer).await;
    site.registry.create(outgoing("out", "")).await.unwrap();
    send(&site, 1..=20).await;
    let report = site.until("out", "all", |report| report.spool.entries == 0).await;
    assert_eq!((report.link.counts.delivered, report.link.counts.connections), (20, 2));
    let incidents: Vec<_> = report.link.incidents.into_iter().map(|incident| incident.what).collect();
    assert!(incidents.iter().any(|what| what.contains("over another connection")), "{incidents:?}");
    site.registry.close().await.unwrap();
}
