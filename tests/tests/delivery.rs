//! Tests of at-least-once delivery: messages that were not confirmed are sent again after a connection is
//! lost, and are marked.

use std::collections::HashSet;
use std::time::Duration;

use futures::FutureExt;
use xmsg_core::{ConnectOptions, Connection, Delivery, ErrorKind, Message, ProxyAddress, Subscription};
use xmsg_tests::process::{Daemon, built, finish};
use xmsg_tests::relay::Relay;
use xmsg_tests::{PATIENCE, connect, next, patient, proxy, within};
use xmsg_zmq::{Publisher, SocketOptions, Subscriber};

/// Starts a proxy as a process of its own, on this port.
async fn daemon(port: u16) -> (Daemon, ProxyAddress) {
    let port = port.to_string();
    let mut daemon = Daemon::start(built("xmsg-proxy"), &["--port", &port, "--slow-subscriber", "block"]);
    let line = daemon.line().await;
    let address = line.split_whitespace().nth(3).unwrap().trim_end_matches(':');
    (daemon, address.parse().unwrap())
}

/// Returns options for a publisher that reconnects slowly, so that subscribers reconnect first.
fn slow() -> ConnectOptions {
    patient().before_connect(|socket, _| socket.reconnect_min(Duration::from_secs(1)))
}

/// Returns a subscriber that reconnects quickly.
fn subscriber(address: &ProxyAddress) -> Connection {
    let soon = Duration::from_millis(10);
    let options = patient().before_connect(move |socket, _| socket.reconnect_min(soon).reconnect_max(soon));
    Connection::with_options(address, options).unwrap()
}

fn at_least_once(address: &ProxyAddress) -> Connection {
    Connection::with_options(address, slow().delivery(Delivery::AtLeastOnce)).unwrap()
}

async fn publish(connection: &Connection, numbers: std::ops::Range<u64>) {
    for number in numbers {
        connection.publish(&Message::of("a", number).unwrap()).await.unwrap();
    }
}

async fn written(connection: &Connection) {
    within("the writing", async {
        while connection.queued().messages > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Expects these messages next, marked as possibly repeated or not.
async fn come(messages: &mut Subscription, numbers: std::ops::Range<u64>, repeated: bool) {
    for number in numbers {
        let message = next(messages).await;
        assert_eq!(message.value::<u64>().unwrap(), number);
        assert_eq!(message.may_be_repeated(), repeated, "{number}");
    }
}

/// Publishes 2,000 messages through two proxies on the same port. The first proxy is stopped and then killed
/// while 500 of the messages are unread in its socket. The second one takes its place.
async fn through_a_proxy_that_is_killed(
    connect: impl Fn(&ProxyAddress) -> Connection,
) -> (Daemon, Connection, Subscription) {
    let (mut first, address) = daemon(0).await;
    let mut messages = subscriber(&address).subscribe("a").await.unwrap();
    let connection = connect(&address);
    publish(&connection, 0..1000).await;
    connection.flush(PATIENCE).await.unwrap();
    come(&mut messages, 0..1000, false).await;
    first.signal("STOP").await;
    publish(&connection, 1000..1500).await;
    written(&connection).await;
    assert_eq!(connection.unconfirmed(), 500);
    first.signal("KILL").await;
    first.end().await;
    within("the loss", async {
        while connection.is_connected() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    publish(&connection, 1500..2000).await;
    let (second, _) = daemon(address.publish_port()).await;
    (second, connection, messages)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_proxy_had_not_confirmed_comes_again_and_is_marked() {
    let (_proxy, connection, mut messages) = through_a_proxy_that_is_killed(at_least_once).await;
    assert_eq!(connection.unconfirmed(), 1000);
    come(&mut messages, 1000..1500, true).await;
    come(&mut messages, 1500..2000, false).await;
    connection.flush(PATIENCE).await.unwrap();
    assert_eq!(connection.unconfirmed(), 0);
    publish(&connection, 2000..2010).await;
    come(&mut messages, 2000..2010, false).await;
    let left = connection.close(PATIENCE).await;
    assert!(left.is_nothing(), "{left}");
}

/// By default nothing is sent twice, and what may be lost is reported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_once_nothing_comes_again() {
    let plain = |address: &ProxyAddress| Connection::with_options(address, slow()).unwrap();
    let (_proxy, connection, mut messages) = through_a_proxy_that_is_killed(plain).await;
    come(&mut messages, 1500..2000, false).await;
    let error = connection.flush(PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unconfirmed);
    assert!(error.to_string().contains("500 messages"), "{error}");
}

/// Messages that are kept until they are confirmed count for the high-water mark. A confirmation makes room,
/// also for publishers that wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_is_bounded_and_makes_room_when_it_is_confirmed() {
    const MARK: usize = 64 << 10;
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let options = patient().delivery(Delivery::AtLeastOnce).high_water_mark(MARK);
    let connection = Connection::with_options(relay.address(), options).unwrap();
    let mut messages = connect(&proxy).subscribe("a").await.unwrap();
    let publishing = publish(&connection, 0..20_000);
    tokio::join!(publishing, come(&mut messages, 0..20_000, false));
    connection.flush(PATIENCE).await.unwrap();
    // Nothing is confirmed any more from here on.
    relay.swallow();
    let mut published = 20_000;
    let full = async {
        loop {
            match connection.try_publish(&Message::of("a", published).unwrap()) {
                Ok(()) => published += 1,
                // Some messages may still wait to be written. When they are written, there is room again.
                Err(error) if connection.queued().messages == 0 => return error,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(within("a full queue", full).await.kind(), ErrorKind::Full);
    let kept = connection.unconfirmed();
    assert_eq!(kept, published - 20_000, "{:?}", connection.queued());
    assert!((MARK / 2..2 * MARK).contains(&(kept as usize * 40)), "{kept}");
    within("the loss", relay.has_swallowed()).await;
    relay.cut();
    come(&mut messages, 20_000..published, true).await;
    publish(&connection, published..published + 5000).await;
    come(&mut messages, published..published + 5000, false).await;
    assert!(connection.close(PATIENCE).await.is_nothing());
}

/// Closing also sends unconfirmed messages again. A proxy that stops gracefully has confirmed everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_sends_again_what_was_not_confirmed() {
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let mut messages = subscriber(proxy.address()).subscribe("a").await.unwrap();
    let connection = at_least_once(relay.address());
    connection.connect().await.unwrap();
    relay.swallow();
    publish(&connection, 0..100).await;
    within("the loss", relay.has_swallowed()).await;
    written(&connection).await;
    let (left, ()) = tokio::join!(connection.close(PATIENCE), async {
        relay.cut();
        come(&mut messages, 0..100, true).await;
    });
    assert!(left.is_nothing(), "{left}");

    let connection = at_least_once(proxy.address());
    publish(&connection, 0..100).await;
    come(&mut messages, 0..100, false).await;
    let address = proxy.address().to_string();
    proxy.stop(PATIENCE).await;
    let proxy = xmsg_proxy::Proxy::bind(address).start().await.unwrap();
    // A subscriber that reconnects late misses what was published before.
    within("the subscriber", async {
        while !proxy.subscribers().iter().any(|subscriber| subscriber.subscriptions > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    publish(&connection, 100..200).await;
    come(&mut messages, 100..200, false).await;
    assert!(connection.close(PATIENCE).await.is_nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_publishes_at_least_once() {
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let mut messages = connect(&proxy).subscribe("a").await.unwrap();
    relay.swallow_from("a");
    let mut command = tokio::process::Command::new(built("xmsg"));
    command.args(["pub", "a", "{{Count}}", "--template", "-n", "600", "--at-least-once"]);
    command.args(["--proxy", &relay.address().to_string(), "--linger", "60"]);
    let publishing = tokio::spawn(finish(command));
    within("the loss", relay.has_swallowed()).await;
    relay.cut();
    let (mut come, mut repeated) = (HashSet::new(), 0);
    while come.len() < 600 {
        let message = next(&mut messages).await;
        repeated += u32::from(message.may_be_repeated());
        come.insert(message.data().clone());
    }
    assert!(repeated > 0);
    let done = publishing.await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Without security, anybody can ask the proxy to send an answer to somebody else's control socket before the
/// proxy has read the messages in question. The answer counts only for an identity that nobody else can know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_can_have_messages_confirmed() {
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let mut messages = subscriber(proxy.address()).subscribe("a").await.unwrap();
    let mut spy = Subscriber::new(SocketOptions::default());
    spy.subscribe("xmsg:control:con").unwrap();
    spy.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    within("the spy", async {
        while proxy.subscriptions() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let connection = at_least_once(relay.address());
    let mut seen = HashSet::new();
    for number in 0..20 {
        publish(&connection, number..number + 1).await;
        connection.flush(PATIENCE).await.unwrap();
    }
    come(&mut messages, 0..20, false).await;
    // Each flush uses a new identity.
    while seen.len() < 20 {
        let request = within("a request", spy.recv()).await.unwrap();
        seen.insert(request.frames()[2].clone());
    }

    relay.swallow();
    publish(&connection, 20..30).await;
    let stranger = Publisher::new(SocketOptions::default());
    stranger.connect(proxy.address().publish_endpoint().parse().unwrap());
    let forge = async {
        loop {
            while let Some(Some(request)) = spy.recv().now_or_never() {
                seen.insert(request.frames()[2].clone());
            }
            for identity in &seen {
                let request = ["xmsg:control:con".into(), "pub".into(), identity.clone()];
                stranger.publish(request).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // The second flush meets what the first one has left behind.
    let flushes = async {
        for _ in 0..2 {
            connection.flush(Duration::from_millis(800)).await.unwrap_err();
        }
    };
    tokio::select! {
        () = flushes => {}
        () = forge => {}
    }
    assert_eq!(connection.unconfirmed(), 10);
    relay.cut();
    come(&mut messages, 20..30, true).await;
    assert!(connection.close(PATIENCE).await.is_nothing());
}
