//! Clients of the proxy: one pair that behaves well, and many that do not.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xmsg_core::{Message, OwnerType, Query, Registrar, Registration};
use xmsg_tests::process::Daemon;
use xmsg_tests::raw::Raw;
use xmsg_tests::{PATIENCE, topic};
use xmsg_zmq::{Endpoint, SocketOptions, Subscriber};

use crate::{Counts, World};

/// Publishes about a thousand messages per second to one subscriber. Checks that all of them are received, in
/// order.
pub(crate) async fn innocent(world: World, stop: CancellationToken) -> Result<u64, String> {
    let text = |error: xmsg_core::Error| error.to_string();
    let mut messages = world.connection().subscribe([topic("innocent")]).await.map_err(text)?;
    let publisher = world.connection();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let mut number = 0_i64;
    while !stop.is_cancelled() {
        ticks.tick().await;
        for _ in 0..10 {
            let message = Message::of("innocent", number).map_err(text)?;
            publisher.publish(&message).await.map_err(text)?;
            number += 1;
        }
        for expected in number - 10..number {
            let next = tokio::time::timeout(PATIENCE, messages.next()).await;
            let message = next.map_err(|_| format!("message {expected} did not come"))?;
            let message = message.ok_or("the subscription ended")?.map_err(text)?;
            let found = message.value::<i64>().map_err(text)?;
            if found != expected {
                return Err(format!("message {found} came instead of {expected}"));
            }
        }
        Counts::add(&world.counts.innocent, 10);
    }
    Ok(number.cast_unsigned())
}

/// Publishes a steady stream. Subscribers to it come and go.
pub(crate) async fn load(world: World) {
    let publisher = world.connection();
    let data = vec![7; 256];
    world
        .again(
            |counts| &counts.load,
            || async {
                for number in 0..100 {
                    let message = Message::of(topic(&format!("load:{}", number % 10)), data.clone())?;
                    publisher.publish(&message).await?;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(100)
            },
        )
        .await;
    publisher.close(PATIENCE).await;
}

/// Runs publishers that connect, publish something, and leave. Every second one leaves without closing its
/// connection gracefully.
pub(crate) async fn publishers(world: World, number: usize) {
    let mut turn = 0;
    world
        .again(
            |counts| &counts.publishers,
            || {
                turn += 1;
                let (publisher, polite) = (world.connection(), turn % 2 == 0);
                async move {
                    publisher.connect().await?;
                    for _ in 0..100 {
                        let message = Message::of(topic(&format!("load:{number}")), vec![7_i32; 300])?;
                        publisher.publish(&message).await?;
                    }
                    if polite {
                        publisher.close(PATIENCE).await;
                    }
                    Ok(1)
                }
            },
        )
        .await;
}

/// Runs subscribers that connect, receive something, and leave.
pub(crate) async fn subscribers(world: World, number: usize) {
    world
        .again(
            |counts| &counts.subscribers,
            || {
                let connection = world.connection();
                async move {
                    let mut messages =
                        connection.subscribe([topic(&format!("load:{number}")), topic("load:9")]).await?;
                    for _ in 0..50 {
                        let Some(message) = messages.next().await else { break };
                        message?;
                    }
                    Ok(1)
                }
            },
        )
        .await;
}

/// Makes thousands of subscriptions at once, and removes them again.
pub(crate) async fn storms(world: World) {
    let endpoint = Endpoint::tcp(world.proxy.host(), world.proxy.subscribe_port());
    let mut turn = 0;
    world
        .again(
            |counts| &counts.storms,
            || {
                turn += 1;
                let socket = Subscriber::new(SocketOptions::default());
                socket.connect(endpoint.clone());
                async move {
                    socket.connected().await.unwrap();
                    for number in 0..5000 {
                        socket.subscribe(format!("storm:{turn}:{number}")).unwrap();
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    // Half of the subscriptions are removed. The others end with the connection.
                    for number in 0..2500 {
                        socket.unsubscribe(format!("storm:{turn}:{number}"));
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    socket.close().await;
                    Ok(1)
                }
            },
        )
        .await;
}

/// Runs subscribers that subscribe to the whole load and read nothing, until they are reset.
pub(crate) async fn slow(world: World) {
    let port = world.proxy.subscribe_port();
    world
        .again(
            |counts| &counts.slow,
            || async {
                let mut raw = Raw::handshake(port, "SUB").await;
                raw.send_message(&[b"\x01load"]).await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                raw.reset();
                Ok(1)
            },
        )
        .await;
}

/// Runs clients that are killed.
pub(crate) async fn killed(world: World, xmsg: PathBuf) {
    let proxy = world.proxy.to_string();
    world
        .again(
            |counts| &counts.killed,
            || async {
                let daemon = Daemon::start(&xmsg, &["sub", "--proxy", &proxy, "load"]);
                let mut daemon = daemon;
                daemon.line().await;
                daemon.signal("KILL").await;
                daemon.end().await;
                Ok(1)
            },
        )
        .await;
}

/// Makes and removes registrations.
pub(crate) async fn registrations(world: World) {
    let mut turn = 0;
    world
        .again(
            |counts| &counts.registrations,
            || {
                turn += 1;
                let world = &world;
                async move {
                    let builder = Registrar::builder(world.registrar.clone()).registration_timeout(PATIENCE);
                    let client = builder.discovery_timeout(PATIENCE).renewal_interval(None).build()?;
                    let topic = topic(&format!("soak:{}", turn % 100));
                    for number in 0..20 {
                        let name = format!("actor{number}");
                        let registration =
                            Registration::new(OwnerType::Publisher, name, &topic, &world.proxy)
                                .with_description("soak");
                        client.register(&registration).await?;
                    }
                    let query = Query::topic(OwnerType::Publisher, &topic);
                    for registration in client.find(&query).await? {
                        client.deregister(&registration).await?;
                    }
                    client.close().await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(20)
                }
            },
        )
        .await;
}

/// Runs a service that answers requests, and clients that come and go.
pub(crate) async fn requests(world: World) {
    let service = world.actor();
    let handle = service
        .subscribe_with([topic("square")], 8, |request: Message| async move {
            let value: f64 = request.value()?;
            request.reply_with(value * value)
        })
        .await
        .expect("a subscription");
    world
        .again(
            |counts| &counts.requests,
            || async {
                let client = world.actor();
                for _ in 0..20 {
                    client.request(&Message::of(topic("square"), 3.0)?, PATIENCE).await?;
                }
                client.close(PATIENCE).await;
                Ok(20)
            },
        )
        .await;
    handle.close(PATIENCE).await;
    service.close(PATIENCE).await;
}
