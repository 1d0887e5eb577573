//! Tests of `flush`: flushed messages are in the proxy, and messages that may be lost are counted.

use std::time::Duration;

use xmsg_core::{ConnectOptions, Connection, ErrorKind, Message};
use xmsg_tests::peer::Peer;
use xmsg_tests::process::{built, finish};
use xmsg_tests::relay::Relay;
use xmsg_tests::{PATIENCE, connect, next, patient, proxy, within};
use xmsg_zmq::SocketEvent;

async fn publish(connection: &Connection, numbers: std::ops::Range<u64>) {
    for number in numbers {
        connection.publish(&Message::of("a", number).unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_flushed_is_in_the_proxy() {
    let proxy = proxy().start().await.unwrap();
    let connection = connect(&proxy);
    connection.flush(Duration::ZERO).await.unwrap();
    connection.connect().await.unwrap();
    let before = proxy.totals().received.messages;
    let mut published = 0;
    for round in 0..50 {
        publish(&connection, 0..100 * round).await;
        published += 100 * round;
        connection.flush(PATIENCE).await.unwrap();
        assert_eq!(connection.unconfirmed(), 0);
        assert!(proxy.totals().received.messages >= before + published);
    }
    // Several flushes at the same time are allowed, and a flush without new messages costs nothing.
    publish(&connection, 0..1000).await;
    let flushing = (0..10).map(|_| connection.flush(PATIENCE));
    futures::future::try_join_all(flushing).await.unwrap();
    assert!(connection.close(PATIENCE).await.is_nothing());
}

/// The connection accepts everything and forwards nothing, so what was sent over it is unconfirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_half_open_connection_swallowed_is_counted() {
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let connection = Connection::with_options(relay.address(), patient()).unwrap();
    let mut messages = connect(&proxy).subscribe("a").await.unwrap();
    publish(&connection, 0..300).await;
    connection.flush(PATIENCE).await.unwrap();
    relay.swallow();
    publish(&connection, 300..600).await;
    assert_eq!(connection.unconfirmed(), 300);
    let error = connection.flush(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let mut events = connection.events();
    relay.cut();
    within("the end of the connection", async {
        while !matches!(events.next().await, Some(SocketEvent::Disconnected { .. })) {}
    })
    .await;
    publish(&connection, 600..700).await;
    let error = connection.flush(PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unconfirmed);
    assert!(error.to_string().contains("300 messages"), "{error}");
    // They are reported once, and stay counted.
    connection.flush(PATIENCE).await.unwrap();
    assert_eq!(connection.unconfirmed(), 300);
    let left = connection.close(PATIENCE).await;
    assert_eq!((left.unsent, left.unconfirmed), (0, 300), "{left}");
    // All other messages arrive.
    for number in (0..300).chain(600..700) {
        assert_eq!(next(&mut messages).await.value::<u64>().unwrap(), number);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_tells_what_was_not_confirmed() {
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let connection = Connection::with_options(relay.address(), patient()).unwrap();
    connection.connect().await.unwrap();
    relay.swallow();
    publish(&connection, 0..10).await;
    let left = connection.close(Duration::from_millis(300)).await;
    assert_eq!((left.unsent, left.unconfirmed), (0, 10), "{left}");
    assert_eq!(connection.close(Duration::ZERO).await, left);
}

/// Without the connection check, no confirmation is requested.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchecked_connection_is_closed_without_a_confirmation() {
    let proxy = proxy().start().await.unwrap();
    let options = ConnectOptions::new().check_connection(false);
    let connection = Connection::with_options(proxy.address(), options).unwrap();
    let mut messages = connect(&proxy).subscribe("a").await.unwrap();
    publish(&connection, 0..10).await;
    assert!(connection.close(PATIENCE).await.is_nothing());
    for number in 0..10 {
        assert_eq!(next(&mut messages).await.value::<u64>().unwrap(), number);
    }
}

/// A proxy that stops gracefully has read everything, and announces it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_graceful_stop_of_the_proxy_nothing_is_in_doubt() {
    for _ in 0..10 {
        let proxy = proxy().start().await.unwrap();
        let address = proxy.address().clone();
        let connection = connect(&proxy);
        publish(&connection, 0..5000).await;
        let mut events = connection.events();
        proxy.stop(PATIENCE).await;
        within("the end of the connection", events.next()).await;
        let _proxy = xmsg_proxy::Proxy::bind(address.to_string()).start().await.unwrap();
        publish(&connection, 0..10).await;
        connection.flush(PATIENCE).await.unwrap();
        assert!(connection.close(PATIENCE).await.is_nothing());
    }
}

/// A proxy of another implementation answers control requests, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_proxy_confirms_as_well() {
    let mut foreign = Peer::python("old_proxy.py", &[]);
    let port = foreign.expect("listening").await[0].clone();
    let connection = Connection::with_options(format!("127.0.0.1:{port}"), patient()).unwrap();
    let mut messages = connection.subscribe("a").await.unwrap();
    for _ in 0..5 {
        publish(&connection, 0..100).await;
        connection.flush(PATIENCE).await.unwrap();
        assert_eq!(connection.unconfirmed(), 0);
        for number in 0..100 {
            assert_eq!(next(&mut messages).await.value::<u64>().unwrap(), number);
        }
    }
    publish(&connection, 0..100).await;
    assert!(connection.close(PATIENCE).await.is_nothing());
    foreign.finish().await;
}

/// `xmsg pub` exits with 0 only if everything was confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_says_how_many_messages_may_be_lost() {
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let address = relay.address().to_string();
    let command = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(built("xmsg"));
        command.args(["pub", "a", "x", "--proxy", &address, "--linger", "1"]).args(arguments);
        finish(command).await
    };
    let done = within("the command", command(&["-n", "600"])).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // The proxy is reachable, but no message with this topic reaches it.
    relay.swallow_from("a");
    let lost = within("the command", command(&["-n", "600"])).await;
    assert_eq!(lost.status.code(), Some(1));
    let said = String::from_utf8_lossy(&lost.stderr);
    assert!(said.contains("up to 600 of 600 messages may be lost"), "{said}");
}
