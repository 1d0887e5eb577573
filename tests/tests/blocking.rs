//! Tests of the API for programs without an async runtime.

use std::sync::mpsc;
use std::time::Duration;

use xmsg_core::blocking::{Actor, Connection};
use xmsg_core::{ErrorKind, Message};
use xmsg_tests::{PATIENCE, patient, proxy};

#[test]
fn a_program_without_a_runtime_publishes_subscribes_and_asks() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(proxy().start()).unwrap();
    let actor =
        |name: &str| Actor::builder(name).proxy(proxy.address()).options(patient()).connect().unwrap();
    let (service, client) = (actor("service"), actor("client"));
    let handle = service
        .subscribe_with("square", 1, |request: Message| {
            let number: f64 = request.value()?;
            request.reply_with(number * number)
        })
        .unwrap();
    let mut numbers = service.subscribe("number").unwrap();
    // The client is used from several threads.
    std::thread::scope(|threads| {
        for thread in 0..4_i32 {
            let client = &client;
            threads.spawn(move || {
                for number in 0..100 {
                    client.publish(&Message::of("number", thread * 100 + number).unwrap()).unwrap();
                    let answer = client.request(&Message::of("square", 3.0).unwrap(), PATIENCE).unwrap();
                    assert!((answer.value::<f64>().unwrap() - 9.0).abs() < 1e-9);
                }
            });
        }
    });
    client.flush(PATIENCE).unwrap();
    assert_eq!(client.unconfirmed(), 0);
    let mut received: Vec<i32> =
        numbers.by_ref().take(400).map(|message| message.unwrap().value().unwrap()).collect();
    received.sort_unstable();
    assert!(received.into_iter().eq(0..400));
    let nothing = numbers.next_within(Duration::from_millis(20)).unwrap();
    assert_eq!(nothing.unwrap_err().kind(), ErrorKind::Timeout);
    client.publish(&Message::of("number", 1).unwrap()).unwrap();
    client.flush(PATIENCE).unwrap();
    numbers.drain();
    assert_eq!(numbers.map(|message| message.unwrap().value::<i32>().unwrap()).collect::<Vec<_>>(), [1]);
    assert!(handle.drain(PATIENCE).unwrap().is_nothing());
    assert!(client.close(PATIENCE).unwrap().is_nothing());
    assert!(service.drain(PATIENCE).unwrap().is_nothing());
}

/// A subscription that waits in vain reports whether it could have received anything.
#[test]
fn waiting_for_messages_of_a_proxy_that_is_gone_is_no_timeout() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(proxy().start()).unwrap();
    let connection = Connection::with_options(proxy.address(), patient()).unwrap();
    let mut messages = connection.subscribe("a").unwrap();
    runtime.block_on(async { drop(proxy) });
    drop(runtime);
    let mut wait = || messages.next_within(Duration::from_millis(100)).unwrap().unwrap_err();
    // The loss of the proxy is detected in the background.
    let mut error = wait();
    while error.kind() == ErrorKind::Timeout {
        error = wait();
    }
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(error.with_causes().to_string().contains("there is no connection to the proxy: "), "{error:?}");
}

/// Publishes 1000 messages over a connection, drops it in this way, and expects all messages.
fn publish_and_drop(drop_it: impl FnOnce(&tokio::runtime::Runtime, Connection)) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(proxy().start()).unwrap();
    let connection = || Connection::with_options(proxy.address(), patient()).unwrap();
    let subscriber = connection();
    let messages = subscriber.subscribe("a").unwrap();
    let publisher = connection();
    for number in 0..1000 {
        publisher.publish(&Message::of("a", number).unwrap()).unwrap();
    }
    drop_it(&runtime, publisher);
    for (number, message) in (0..1000).zip(messages) {
        assert_eq!(message.unwrap().value::<i32>().unwrap(), number);
    }
}

/// When a handle is dropped, the messages that it accepted are still sent.
#[test]
fn a_dropped_connection_sends_what_it_accepted() {
    publish_and_drop(|_, connection| drop(connection));
}

/// A handle that is dropped within an async runtime sends what it accepted, too, although the thread must not
/// wait for that.
#[test]
fn a_connection_dropped_in_an_async_runtime_sends_what_it_accepted() {
    publish_and_drop(|runtime, connection| runtime.block_on(async move { drop(connection) }));
}

/// While a handler blocks, the background thread continues, and so do blocking calls in other handlers.
#[test]
fn a_handler_may_block_and_nothing_else_waits_for_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(proxy().start()).unwrap();
    let actor = Actor::builder("slow").proxy(proxy.address()).options(patient()).connect().unwrap();
    let (begun, has_begun) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    actor
        .subscribe_with("slow", 1, move |_| {
            begun.send(()).unwrap();
            // The handler blocks until the end of the test.
            let _ = may_go.lock().unwrap().recv();
        })
        .unwrap();
    actor.subscribe_with("help", 1, |request: Message| request.reply_with(7)).unwrap();
    let asking = actor.clone();
    let asks = actor
        .subscribe_with("ask", 4, move |request: Message| {
            let answer = asking.request(&Message::of("help", 1)?, PATIENCE)?;
            assert_ne!(request.value::<i32>()?, answer.value::<i32>()?, "it is seven");
            request.reply_with(answer.value::<i32>()?)
        })
        .unwrap();
    actor.publish(&Message::of("slow", 1).unwrap()).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    let answer = actor.request(&Message::of("ask", 1).unwrap(), PATIENCE).unwrap();
    assert_eq!(answer.value::<i32>().unwrap(), 7);
    let error = actor.request(&Message::of("ask", 7).unwrap(), PATIENCE).unwrap_err();
    assert!(error.kind() == ErrorKind::Remote && error.to_string().contains("it is seven"), "{error}");
    assert_eq!((asks.failed(), asks.pending()), (1, 0));
    let started = std::time::Instant::now();
    let left = actor.drain(Duration::from_secs(1)).unwrap();
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    assert_eq!((left.unhandled, left.unconfirmed, left.unsent), (1, 0, 0), "{left}");
    drop(go);
}

/// A handler may end its own actor, which does not wait for it.
#[test]
fn a_blocking_handler_may_end_its_actor() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(proxy().start()).unwrap();
    let actor = Actor::builder("stop").proxy(proxy.address()).options(patient()).connect().unwrap();
    let (told, left) = mpsc::channel();
    let own = actor.clone();
    actor.subscribe_with("stop", 1, move |_| told.send(own.drain(Duration::MAX)).unwrap()).unwrap();
    actor.publish(&Message::of("stop", 1).unwrap()).unwrap();
    assert!(left.recv_timeout(PATIENCE).unwrap().unwrap().is_nothing());
}
