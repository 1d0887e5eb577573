//! Tests that actors, handlers, pooled connections and runtimes end with what they belong to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use xmsg_core::{Actor, ConnectOptions, Connection, ErrorKind, Message};
use xmsg_proxy::Proxy;
use xmsg_tests::{PATIENCE, next, patient, proxy, within};
use xmsg_zmq::{SocketEvent, SocketEvents};

fn actor(proxy: &Proxy) -> Actor {
    Actor::builder("tester").proxy(proxy.address()).options(patient()).build().unwrap()
}

async fn gone<T>(what: &str, weak: &Weak<T>) {
    within(what, async {
        while weak.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// When every clone of an actor is dropped, the tasks of its handlers and its connections to the proxy end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_end_with_the_last_clone_of_their_actor() {
    let proxy = proxy().start().await.unwrap();
    for concurrency in [1, 4] {
        let held = Arc::new(());
        let weak = Arc::downgrade(&held);
        let actor = actor(&proxy);
        let handle = actor
            .subscribe_with("a", concurrency, move |_| {
                let held = held.clone();
                async move { drop(held) }
            })
            .await
            .unwrap();
        drop((actor.clone(), handle));
        actor.publish(&Message::of("a", 1).unwrap()).await.unwrap();
        actor.flush(PATIENCE).await.unwrap();
        assert_eq!(weak.strong_count(), 1, "the handler runs");
        drop(actor);
        gone("the handler", &weak).await;
    }
    within("the connections", async {
        while !proxy.publishers().is_empty() || !proxy.subscribers().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Handlers that would never end by themselves end with the last clone of their actor, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_hang_end_with_the_last_clone_of_their_actor() {
    let proxy = proxy().start().await.unwrap();
    for concurrency in [1, 4] {
        let held = Arc::new(());
        let weak = Arc::downgrade(&held);
        let started = Arc::new(tokio::sync::Notify::new());
        let actor = actor(&proxy);
        let _handle = actor
            .subscribe_with("a", concurrency, {
                let started = started.clone();
                move |_| {
                    let (started, held) = (started.clone(), held.clone());
                    async move {
                        started.notify_one();
                        std::future::pending::<()>().await;
                        drop(held);
                    }
                }
            })
            .await
            .unwrap();
        actor.publish(&Message::of("a", 1).unwrap()).await.unwrap();
        within("the handler", started.notified()).await;
        drop(actor);
        gone("the handler", &weak).await;
    }
}

/// A subscription that is being read continues without its actor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_the_actor_that_made_it() {
    let proxy = proxy().start().await.unwrap();
    let mut messages = actor(&proxy).subscribe("a").await.unwrap();
    let publisher = actor(&proxy);
    publisher.publish(&Message::of("a", 1).unwrap()).await.unwrap();
    assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), 1);
}

/// A panic of the closure is a panic of the handler: the next message is handled, and the client gets an
/// error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_closure_of_a_handler_is_treated_like_one_in_its_future() {
    let proxy = proxy().start().await.unwrap();
    for concurrency in [1, 4] {
        let (service, client) = (actor(&proxy), actor(&proxy));
        let handle = service
            .subscribe_with("half", concurrency, |request: Message| {
                let number: i32 = request.value().unwrap();
                assert!(number % 2 == 0, "{number} is odd");
                async move {
                    assert!(number >= 0, "{number} is negative");
                    request.reply_with(number / 2)
                }
            })
            .await
            .unwrap();
        for (number, why) in [(3, "3 is odd"), (-2, "-2 is negative")] {
            let error = client.request(&Message::of("half", number).unwrap(), PATIENCE).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Remote);
            assert!(error.to_string().contains(why), "{error}");
        }
        let answer = client.request(&Message::of("half", 4).unwrap(), PATIENCE).await.unwrap();
        assert_eq!(answer.value::<i32>().unwrap(), 2);
        assert!(handle.drain(PATIENCE).await.is_nothing());
    }
}

/// The error of a handler is sent back to the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_fails_with_the_error_of_its_handler() {
    let proxy = proxy().start().await.unwrap();
    let (service, client) = (actor(&proxy), actor(&proxy));
    let _handle = service
        .subscribe_with("root", 1, |request: Message| async move {
            let number: f64 = request.value()?;
            if number < 0.0 {
                return Err("a negative number has no root".into());
            }
            Ok::<_, xmsg_core::HandlerError>(request.reply_with(number.sqrt())?)
        })
        .await
        .unwrap();
    let error = client.request(&Message::of("root", -1.0).unwrap(), PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(error.to_string().contains("root") && error.to_string().contains("a negative number"), "{error}");
    // A request with a value that is not a number is the client's mistake, and is reported in the same way.
    let error = client.request(&Message::of("root", "text").unwrap(), PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(client.request(&Message::of("root", 4.0).unwrap(), PATIENCE).await.is_ok());
}

/// A connection belongs to the runtime in which it was made. When that has ended, calls return an error
/// instead of an `Ok` without effect.
#[test]
fn after_the_end_of_its_runtime_a_connection_fails() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (servers, first, second) = (runtime(), runtime(), runtime());
    let proxy = servers.block_on(proxy().start()).unwrap();
    let (actor, connection) = first.block_on(async {
        let actor = actor(&proxy);
        actor.publish(&Message::of("a", 1).unwrap()).await.unwrap();
        let connection = Connection::with_options(proxy.address(), patient()).unwrap();
        connection.publish(&Message::of("a", 1).unwrap()).await.unwrap();
        (actor, connection)
    });
    drop(first);
    second.block_on(async {
        let message = Message::of("a", 2).unwrap();
        for error in [
            actor.publish(&message).await.unwrap_err(),
            connection.publish(&message).await.unwrap_err(),
            connection.try_publish(&message).unwrap_err(),
            within("a request", actor.request(&message, PATIENCE)).await.unwrap_err(),
            within("a subscription", actor.subscribe("a")).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        }
        within("the end", actor.close(Duration::from_secs(1))).await;
    });
}

/// A handler is not called any more after its subscription was closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_handled_after_the_end() {
    let proxy = proxy().start().await.unwrap();
    let (actor, publisher) = (actor(&proxy), actor(&proxy));
    let handled = Arc::new(AtomicU64::new(0));
    let handle = actor
        .subscribe_with("a", 1, {
            let handled = handled.clone();
            move |_| {
                let handled = handled.clone();
                async move {
                    handled.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
        .await
        .unwrap();
    publisher.publish(&Message::of("a", 1).unwrap()).await.unwrap();
    publisher.flush(PATIENCE).await.unwrap();
    let left = handle.close(PATIENCE).await;
    let total = handled.load(Ordering::Relaxed) + left.unhandled;
    assert!(total <= 1, "{total}");
    publisher.publish(&Message::of("a", 2).unwrap()).await.unwrap();
    publisher.flush(PATIENCE).await.unwrap();
    assert_eq!(handled.load(Ordering::Relaxed) + left.unhandled, total);
}

/// Returns all events until the stream ends.
async fn rest(mut events: SocketEvents) -> Vec<SocketEvent> {
    let mut told = Vec::new();
    while let Some(event) = within("the end of the events", events.next()).await {
        told.push(event);
    }
    told
}

/// The streams also end if the actor is still held. The end of the actor itself is not reported as a loss
/// that the other side caused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_events_end_with_what_they_tell_of() {
    let proxy = proxy().start().await.unwrap();
    for drains in [true, false] {
        let actor = actor(&proxy);
        let events = actor.events();
        let subscription = actor.subscribe("a").await.unwrap();
        let of_subscription = subscription.events();
        actor.publish(&Message::of("a", 1).unwrap()).await.unwrap();
        let left = if drains { actor.drain(PATIENCE).await } else { actor.close(PATIENCE).await };
        assert_eq!((left.unsent, left.unconfirmed), (0, 0));
        let ends = rest(events).await.into_iter().filter_map(|event| match event {
            SocketEvent::Disconnected { error, .. } => Some(error.with_causes().to_string()),
            _ => None,
        });
        let ends: Vec<_> = ends.collect();
        assert!(!ends.is_empty() && ends.iter().all(|end| end.contains("closed here")), "{ends:?}");
        rest(of_subscription).await;
        rest(actor.events()).await;
        drop(subscription);
    }
    let connection = Connection::with_options(proxy.address(), patient()).unwrap();
    let events = connection.events();
    connection.connect().await.unwrap();
    connection.close(PATIENCE).await;
    assert!(!rest(events).await.is_empty());
}

/// Each failed call has its own sockets. If each of them repeated its events, these would hide all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_peer_can_t_be_reached_is_told_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = ConnectOptions::new().connection_timeout(Duration::from_millis(20));
    let actor = Actor::builder("a").proxy(&*address).options(options).build().unwrap();
    let events = actor.events();
    for _ in 0..50 {
        actor.publish(&Message::of("a", 1).unwrap()).await.unwrap_err();
    }
    actor.close(PATIENCE).await;
    let told = rest(events).await;
    assert!((1..10).contains(&told.len()), "{told:?}");
}
