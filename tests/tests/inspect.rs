//! Tests of the control request `stats`: the content of its answer, which clients may send it, and the
//! behaviour of `xmsg` with proxies that do not know it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use xmsg_core::security::KeyPair;
use xmsg_core::{ProxyAddress, Security};
use xmsg_proxy::Policy;
use xmsg_proxy::security::{Mechanism, Rights, Rules};
use xmsg_tests::peer::Peer;
use xmsg_tests::process::{built, finish};
use xmsg_tests::raw::Raw;
use xmsg_tests::{PATIENCE, proxy, within};
use xmsg_zmq::{Dealer, Publisher, SocketOptions};
use xmsg_zmtp::Limits;

/// Returns the answer of the proxy to one request of a new client.
async fn ask(address: &ProxyAddress, security: Security) -> Value {
    // Each client has its own identity. An answer to an identity that is used again could go to the
    // connection of the earlier client, which is just ending.
    static CLIENTS: AtomicU32 = AtomicU32::new(0);
    let identity = Bytes::from(format!("client-{}", CLIENTS.fetch_add(1, Ordering::Relaxed)));
    let options = SocketOptions::any().security(security);
    let named = options.for_socket().identity(identity.clone());
    let answers = Dealer::connecting_to(address.control_endpoint().parse().unwrap(), named);
    let publisher = Publisher::new(options.for_socket());
    publisher.connect(address.publish_endpoint().parse().unwrap());
    let answer = async {
        answers.connected().await.unwrap();
        publisher.wait_for_subscriber(b"xmsg:control:stats").await.unwrap();
        let question = [Bytes::from("xmsg:control:stats"), "stats".into(), identity];
        publisher.publish(question).await.unwrap();
        answers.recv().await.unwrap()
    };
    let answer = within("the answer", answer).await;
    let [kind, document] = answer.into_array().expect("two frames");
    assert_eq!(kind, "stats");
    serde_json::from_slice(&document).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_who_is_connected_what_flows_and_who_is_slow() {
    let proxy = proxy().slow_subscriber(Policy::DropNewest).start().await.unwrap();
    let address = proxy.address().clone();
    let mut reader = xmsg_core::Connection::new(address.clone()).unwrap().subscribe("a").await.unwrap();
    let writer = xmsg_core::Connection::new(address.clone()).unwrap();
    writer.connect().await.unwrap();
    let first = ask(&address, Security::Null).await;
    assert_eq!((&first["received"]["messages"], &first["topics"]), (&0.into(), &Value::Array(vec![])));
    assert_eq!(first["subscribers"], 1);
    for number in 0..1000_u64 {
        writer.publish(&xmsg_core::Message::of("a:b", number).unwrap()).await.unwrap();
    }
    writer.flush(PATIENCE).await.unwrap();
    within("the last one", async {
        while reader.next().await.unwrap().unwrap().value::<u64>().unwrap() != 999 {}
    })
    .await;
    // An answer is reused for 200 ms.
    let second = within("the next document", async {
        loop {
            let document = ask(&address, Security::Null).await;
            if document["received"]["messages"] == 1000 {
                return document;
            }
        }
    })
    .await;
    assert_eq!(second["topics"][0]["topic"], "a:b", "{second}");
    // This is an estimate if the messages came faster than samples are taken.
    let estimate = second["topics"][0]["messages"].as_u64().unwrap();
    assert!((1..=1000).contains(&estimate), "{second}");
    let subscriber = second["connections"].as_array().unwrap().iter().find(|one| one["kind"] == "subscriber");
    assert_eq!(subscriber.unwrap()["messages"], 1000, "{second}");
    assert!(second["memory"]["limit"].as_u64() > Some(0) && second["uptime_s"].as_f64() > Some(0.0));
}

/// The limit of messages to the control socket is small, but its answers may be long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_of_many_connections() {
    const MANY: usize = 300;
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    let mut subscribers = Vec::new();
    for _ in 0..MANY {
        subscribers.push(Raw::handshake(address.subscribe_port(), "SUB").await);
    }
    let document = ask(&address, Security::Null).await;
    assert!(document.to_string().len() > 64 << 10);
    assert!(document["connections"].as_array().unwrap().len() > MANY, "{document}");
    assert_eq!((&document["connections_left_out"], proxy.totals().answers_lost), (&0.into(), 0));
}

/// Lost answers do not go unnoticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_cannot_be_sent_are_counted() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    // One control socket accepts only a few bytes, and another one never connects.
    let limits = Limits { message_size: 1 << 10, ..Limits::default() };
    let options = SocketOptions::any().limits(limits);
    let named = options.for_socket().identity("small");
    let answers = Dealer::connecting_to(address.control_endpoint().parse().unwrap(), named);
    let publisher = Publisher::new(options.for_socket());
    publisher.connect(address.publish_endpoint().parse().unwrap());
    within("the connections", async {
        answers.connected().await.unwrap();
        publisher.wait_for_subscriber(b"xmsg:control:stats").await.unwrap();
    })
    .await;
    let mut subscribers = Vec::new();
    for _ in 0..8 {
        subscribers.push(Raw::handshake(address.subscribe_port(), "SUB").await);
    }
    for identity in ["small", "nobody"] {
        publisher
            .publish([Bytes::from("xmsg:control:stats"), "stats".into(), identity.into()])
            .await
            .unwrap();
    }
    within("both are counted", async {
        while proxy.totals().answers_lost < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((proxy.totals().answers_lost, proxy.totals().requests_lost), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_security_it_takes_the_right_to_it() {
    let [server, may, may_not] = std::array::from_fn(|_| KeyPair::generate().unwrap());
    let may_inspect = |inspect| Arc::new(Rights { inspect, ..Rights::default() });
    let rules = Rules {
        keys: [(*may.public(), may_inspect(true)), (*may_not.public(), may_inspect(false))].into(),
        ..Rules::default()
    };
    let proxy = proxy().security(Mechanism::Curve(server.clone()), rules).start().await.unwrap();
    let of = |keys: &KeyPair| Security::CurveClient { keys: keys.clone(), server: *server.public() };
    let allowed = ask(proxy.address(), of(&may)).await;
    assert!(allowed["connections"].is_array(), "{allowed}");
    let refused = ask(proxy.address(), of(&may_not)).await;
    assert!(refused["connections"].is_null(), "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("not allowed"), "{refused}");
    assert_eq!(proxy.totals().denied, 1);
}

/// A proxy of another implementation ignores the request. The command then subscribes to see its topics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_proxy_is_looked_at_through_a_subscription() {
    let mut foreign = Peer::python("old_proxy.py", &[]);
    let address = format!("127.0.0.1:{}", foreign.expect("listening").await[0]);
    let command = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(built("xmsg"));
        command.args(arguments).args(["--proxy", &address]);
        finish(command).await
    };
    let mut publishing = tokio::process::Command::new(built("xmsg"));
    publishing
        .args(["pub", "a:b", "x", "--rate", "200", "--count", "1000000", "--proxy", &address])
        .kill_on_drop(true);
    let mut publisher = publishing.spawn().unwrap();
    let topics = command(&["topics", "--for", "1s"]).await;
    assert!(topics.status.success(), "{topics:?}");
    let (text, notes) = (String::from_utf8_lossy(&topics.stdout), String::from_utf8_lossy(&topics.stderr));
    assert!(text.ends_with("\ta:b\n"), "{text}");
    assert!(notes.contains("does not say who is connected"), "{notes}");
    let top = command(&["top", "--once"]).await;
    assert!(String::from_utf8_lossy(&top.stdout).contains("a:b"), "{top:?}");
    for arguments in [&["info"][..], &["connections"]] {
        let refused = command(arguments).await;
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("is no xmsg-proxy"), "{refused:?}");
    }
    publisher.kill().await.unwrap();
    foreign.finish().await;
}

/// Requests of a connection are answered ten times a second. A connection that sends more is slowed down, and
/// delays no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_without_end_is_slowed_down() {
    let proxy = proxy().start().await.unwrap();
    let options = SocketOptions::default().identity("greedy");
    let answers = Dealer::connecting_to(proxy.address().control_endpoint().parse().unwrap(), options);
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(proxy.address().publish_endpoint().parse().unwrap());
    answers.connected().await.unwrap();
    publisher.wait_for_subscriber(b"xmsg:control:stats").await.unwrap();
    for _ in 0..1000 {
        publisher.publish([&b"xmsg:control:stats"[..], b"stats", b"greedy"]).await.unwrap();
    }
    let mut count = 0;
    let counting = async {
        while answers.recv().await.is_some() {
            count += 1;
        }
    };
    // This test is about time.
    let _ = tokio::time::timeout(Duration::from_secs(2), counting).await;
    assert!((1..=60).contains(&count), "{count} answers in two seconds");
    let modest = xmsg_core::Connection::new(proxy.address().clone()).unwrap();
    within("another's connection", modest.connect()).await.unwrap();
}
