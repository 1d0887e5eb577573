//! Tests of closing and draining. Nothing is lost silently: what is left is counted, within one deadline, in
//! every state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::{Notify, Semaphore};
use xmsg_core::{Actor, ConnectOptions, Connection, ErrorKind, Message, OwnerType, Unfinished};
use xmsg_proxy::Proxy;
use xmsg_tests::{PATIENCE, connect, patient, proxy, topic, until, within};

fn actor(proxy: &Proxy) -> Actor {
    Actor::builder("tester").proxy(proxy.address()).options(patient()).build().unwrap()
}

/// Publishes `count` numbers, and waits until the proxy has confirmed them.
async fn publish(proxy: &Proxy, name: &str, count: u64) {
    let publisher = connect(proxy);
    for number in 0..count {
        publisher.publish(&Message::of(name, number).unwrap()).await.unwrap();
    }
    publisher.flush(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_handles_everything_that_the_proxy_had_passed_on() {
    for concurrency in [1, 16] {
        let proxy = proxy().start().await.unwrap();
        let actor = actor(&proxy);
        let (handled, go) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let handle = actor
            .subscribe_with("work", concurrency, {
                let (handled, go) = (handled.clone(), go.clone());
                move |_| {
                    let (handled, go) = (handled.clone(), go.clone());
                    async move {
                        let _turn = go.acquire().await;
                        handled.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
            .await
            .unwrap();
        publish(&proxy, "work", 1000).await;
        let drained = tokio::spawn(async move { handle.drain(PATIENCE).await });
        go.add_permits(1);
        let left = within("the end", drained).await.unwrap();
        assert!(left.is_nothing(), "{left}");
        assert_eq!(handled.load(Ordering::Relaxed), 1000, "concurrency {concurrency}");
        // The actor continues without that subscription.
        publish(&proxy, "work", 1).await;
        assert!(actor.drain(PATIENCE).await.is_nothing());
        assert_eq!(handled.load(Ordering::Relaxed), 1000);
    }
}

/// Each request that was forwarded before the service was drained gets its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_an_actor_answers_every_request_that_was_received() {
    const REQUESTS: u64 = 50;
    for concurrency in [1, 4] {
        let proxy = proxy().start().await.unwrap();
        let (service, helper, client) = (actor(&proxy), actor(&proxy), actor(&proxy));
        let _helping = helper
            .subscribe_with("help", 1, |request: Message| async move { request.reply_with(1_u8) })
            .await
            .unwrap();
        let go = Arc::new(Semaphore::new(0));
        let handle = service
            .subscribe_with("work", concurrency, {
                let (service, go) = (service.clone(), go.clone());
                move |request: Message| {
                    let (service, go) = (service.clone(), go.clone());
                    async move {
                        let _turn = go.acquire().await?;
                        // Handlers may send requests until they are done.
                        service.request(&Message::of("help", 1)?, PATIENCE).await?;
                        Ok::<_, xmsg_core::HandlerError>(request.reply_with(request.data().clone())?)
                    }
                }
            })
            .await
            .unwrap();
        let requests: Vec<_> = (0..REQUESTS)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(
                    async move { client.request(&Message::of("work", number).unwrap(), PATIENCE).await },
                )
            })
            .collect();
        until("all requests", || handle.pending() == REQUESTS).await;
        let draining = tokio::spawn({
            let service = service.clone();
            async move { service.drain(PATIENCE).await }
        });
        go.add_permits(1);
        for answer in join_all(requests).await {
            answer.unwrap().unwrap();
        }
        let left = within("the end", draining).await.unwrap();
        assert!(left.is_nothing(), "{left}");
        let error = service.publish(&Message::of("a", 1).unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_counts_what_was_received_and_not_handled_and_tells_it_again() {
    for concurrency in [1, 4] {
        let proxy = proxy().start().await.unwrap();
        let actor = actor(&proxy);
        let handled = Arc::new(AtomicU64::new(0));
        let handle = actor
            .subscribe_with("work", concurrency, {
                let handled = handled.clone();
                move |message: Message| {
                    let handled = handled.clone();
                    async move {
                        if message.value::<u64>().unwrap() >= 94 {
                            std::future::pending::<()>().await;
                        }
                        handled.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
            .await
            .unwrap();
        publish(&proxy, "work", 1000).await;
        until("all messages", || handle.pending() == 906).await;
        // The deadline limits the whole call, even if handlers hang.
        let started = Instant::now();
        let left = within("the end", actor.close(Duration::from_millis(100))).await;
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert_eq!((left.unhandled, handled.load(Ordering::Relaxed)), (906, 94));
        assert_eq!(actor.close(Duration::from_secs(1)).await, left);
        assert_eq!(actor.drain(Duration::ZERO).await, left);
    }
}

/// A handler that hangs uses up the whole time. Nevertheless, it is certain what of the published messages
/// was confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_is_confirmed_while_handlers_take_all_the_time() {
    for (concurrency, drains) in [(1, true), (4, true), (1, false)] {
        let proxy = proxy().start().await.unwrap();
        let actor = actor(&proxy);
        let begun = Arc::new(Notify::new());
        let _handle = actor
            .subscribe_with("work", concurrency, {
                let begun = begun.clone();
                move |_| {
                    let begun = begun.clone();
                    async move {
                        begun.notify_one();
                        std::future::pending::<()>().await;
                    }
                }
            })
            .await
            .unwrap();
        for number in 0..4 {
            actor.publish(&Message::of("work", number).unwrap()).await.unwrap();
        }
        actor
            .connection(proxy.address())
            .await
            .unwrap()
            .publish(&Message::of("a", 1).unwrap())
            .await
            .unwrap();
        within("the handler", begun.notified()).await;
        let limit = Duration::from_secs(2);
        let left = if drains { actor.drain(limit).await } else { actor.close(limit).await };
        assert_eq!((left.unsent, left.unconfirmed), (0, 0), "{left}");
        assert!(left.unhandled > 0, "{left}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_still_gives_out_what_was_received_and_closing_counts_it() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    let mut stream = actor.subscribe("work").await.unwrap();
    publish(&proxy, "work", 100).await;
    assert_eq!(within("the first", stream.next()).await.unwrap().unwrap().value::<u64>().unwrap(), 0);
    let left = actor.close(PATIENCE).await;
    let mut taken = 1;
    while let Some(message) = within("the rest", stream.next()).await {
        assert_eq!(message.unwrap().value::<u64>().unwrap(), taken);
        taken += 1;
    }
    assert!(left.unhandled < taken, "{left} of {taken}");
}

/// A stream can be drained, too: it yields everything that was forwarded, and ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_stream_ends_behind_the_last_message_that_was_passed_on() {
    let proxy = proxy().start().await.unwrap();
    let connection = connect(&proxy);
    for _ in 0..20 {
        let mut stream = connection.subscribe(["work", "other"]).await.unwrap();
        publish(&proxy, "work", 1000).await;
        stream.drain();
        for number in 0..1000 {
            let message = within("a message", stream.next()).await.unwrap().unwrap();
            assert_eq!(message.value::<u64>().unwrap(), number);
        }
        assert!(within("the end", stream.next()).await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_proxy_is_drained_at_once() {
    let proxy = proxy().start().await.unwrap();
    let connection = connect(&proxy);
    let mut stream = connection.subscribe("work").await.unwrap();
    let mut events = stream.events();
    proxy.stop(PATIENCE).await;
    within("the loss", events.next()).await;
    stream.drain();
    assert!(within("the end", stream.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_ends_when_its_actor_is_closed() {
    let proxy = proxy().start().await.unwrap();
    let (client, service) = (actor(&proxy), actor(&proxy));
    let mut asked = service.subscribe("nobody:answers").await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.request(&Message::of("nobody:answers", 1).unwrap(), Duration::MAX).await }
    });
    within("the request", asked.next()).await.unwrap().unwrap();
    let left = client.close(PATIENCE).await;
    assert_eq!(left, client.close(PATIENCE).await);
    assert_eq!(left.unanswered, 1);
    let asked = within("the end of the request", waiting).await.unwrap().unwrap_err();
    let message = Message::of("a", 1).unwrap();
    for error in [
        asked,
        client.publish(&message).await.unwrap_err(),
        client.try_publish(&message).unwrap_err(),
        client.request(&message, PATIENCE).await.unwrap_err(),
        client.subscribe("a").await.unwrap_err(),
        client.register(OwnerType::Publisher, "a", "").await.unwrap_err(),
    ] {
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Closed, "the actor was closed here")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_close_its_own_actor() {
    for concurrency in [1, 4] {
        let proxy = proxy().start().await.unwrap();
        let (service, client) = (actor(&proxy), actor(&proxy));
        let closed = Arc::new(Notify::new());
        let handle = service
            .subscribe_with("stop", concurrency, {
                let (service, closed) = (service.clone(), closed.clone());
                move |_| {
                    let (service, closed) = (service.clone(), closed.clone());
                    async move {
                        let left = service.drain(Duration::MAX).await;
                        assert!(left.is_nothing(), "{left}");
                        closed.notify_one();
                    }
                }
            })
            .await
            .unwrap();
        client.publish(&Message::of("stop", 1).unwrap()).await.unwrap();
        within("the end", closed.notified()).await;
        until("the end of its subscription", || handle.is_closed()).await;
    }
}

/// A close that was cancelled has ended the connections, and the next one reports what had been lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_was_given_up_is_told_again() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    actor.publish(&Message::of("a", 0).unwrap()).await.unwrap();
    actor.flush(PATIENCE).await.unwrap();
    let mut events = actor.events();
    proxy.stop(PATIENCE).await;
    within("the loss", events.next()).await;
    for number in 0..10 {
        actor.publish(&Message::of("a", number).unwrap()).await.unwrap();
    }
    {
        let closing = std::pin::pin!(actor.close(PATIENCE));
        assert!(futures::poll!(closing).is_pending());
    }
    let left = within("the second close", actor.close(Duration::ZERO)).await;
    assert_eq!((left.unsent, left.unconfirmed), (10, 0), "{left}");
    assert_eq!(actor.close(Duration::ZERO).await, left);
}

/// Returns a listener that never sends anything.
async fn silence() -> (tokio::net::TcpListener, u16) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_while_the_first_connection_is_made_leaves_nothing_behind() {
    let (listener, port) = silence().await;
    let connection = Arc::new(Connection::with_options(format!("127.0.0.1:{port}"), patient()).unwrap());
    let publishing = tokio::spawn({
        let connection = connection.clone();
        async move { connection.publish(&Message::of("a", 1).unwrap()).await }
    });
    let (mut accepted, _) = within("the attempt", listener.accept()).await.unwrap();
    assert!(within("close", connection.close(PATIENCE)).await.is_nothing());
    let error = within("the publisher", publishing).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    // The socket of the attempt is closed.
    within("the end of the connection", async {
        use tokio::io::AsyncReadExt;
        let mut rest = Vec::new();
        let _ = accepted.read_to_end(&mut rest).await;
    })
    .await;
    for _ in 0..3 {
        let error = connection.publish(&Message::of("a", 1).unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert_eq!(connection.connect().await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(connection.subscribe("a").await.unwrap_err().kind(), ErrorKind::Closed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_a_subscriber_ends_with_the_connection() {
    let proxy = proxy().start().await.unwrap();
    let connection = Arc::new(connect(&proxy));
    let waiting = tokio::spawn({
        let connection = connection.clone();
        async move { connection.wait_for_subscriber(&topic("nobody")).await }
    });
    until("a connection", || connection.is_connected()).await;
    assert!(connection.close(PATIENCE).await.is_nothing());
    assert_eq!(within("the end", waiting).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
}

/// Twenty simultaneous calls share one attempt to connect. Every time limit limits the whole call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_find_no_proxy_wait_for_one_time_limit_together() {
    let (_listener, port) = silence().await;
    let limit = Duration::from_millis(500);
    let options = ConnectOptions::new().connection_timeout(limit);
    let actor = Actor::builder("a").proxy(format!("127.0.0.1:{port}")).options(options).build().unwrap();
    let started = Instant::now();
    let calls = (0..20).map(|number| {
        let actor = actor.clone();
        async move {
            let message = Message::of("a", number).unwrap();
            match number % 3 {
                0 => actor.publish(&message).await.unwrap_err(),
                1 => actor.request(&message, PATIENCE).await.unwrap_err(),
                _ => actor.subscribe("a").await.unwrap_err(),
            }
        }
    });
    for error in within("twenty errors", join_all(calls)).await {
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    }
    // One after another, the calls would take twenty times the limit.
    assert!(started.elapsed() < 10 * limit, "{:?}", started.elapsed());

    // A request also has its own limit.
    let options = ConnectOptions::new().connection_timeout(PATIENCE);
    let actor = Actor::builder("a").proxy(format!("127.0.0.1:{port}")).options(options).build().unwrap();
    let message = Message::of("a", 1).unwrap();
    let asking = actor.request(&message, Duration::from_millis(100));
    let error = within("the time limit", asking).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(actor.close(Duration::ZERO).await, Unfinished::default());
}

/// Messages that are published before there is a connection are sent in the order of the calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_messages_go_out_in_the_order_of_their_calls() {
    let proxy = proxy().start().await.unwrap();
    let mut messages = connect(&proxy).subscribe("a").await.unwrap();
    for _ in 0..20 {
        let connection = connect(&proxy);
        let publishing: futures::stream::FuturesUnordered<_> = (0..200_u64)
            .map(|number| {
                let connection = &connection;
                async move { connection.publish(&Message::of("a", number).unwrap()).await.unwrap() }
            })
            .collect();
        within("publishing", futures::StreamExt::collect::<()>(publishing)).await;
        for number in 0..200 {
            let message = within("a message", messages.next()).await.unwrap().unwrap();
            assert_eq!(message.value::<u64>().unwrap(), number);
        }
    }
}

/// A flush that waits for a lost proxy does not delay `close`, whether the flush is polled or not. The flush
/// ends with the close, and closing again takes no time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_waits_does_not_hold_up_closing() {
    let proxy = proxy().start().await.unwrap();
    let connections = [connect(&proxy), connect(&proxy)];
    for connection in &connections {
        connection.publish(&Message::of("a", 0).unwrap()).await.unwrap();
        connection.flush(PATIENCE).await.unwrap();
    }
    let mut events = connections.each_ref().map(Connection::events);
    proxy.stop(PATIENCE).await;
    for events in &mut events {
        within("the loss", events.next()).await;
    }
    for (connection, polled) in connections.iter().zip([true, false]) {
        for number in 0..3 {
            connection.publish(&Message::of("a", number).unwrap()).await.unwrap();
        }
        let mut flushing = std::pin::pin!(connection.flush(Duration::MAX));
        assert!(futures::poll!(&mut flushing).is_pending());
        let mut patient = std::pin::pin!(connection.close(Duration::MAX));
        assert!(futures::poll!(&mut patient).is_pending());
        let closing = connection.close(Duration::from_millis(50));
        let left = if polled {
            let all = async { tokio::join!(closing, flushing, patient) };
            let (left, flushed, told) = within("the end of all three", all).await;
            assert_eq!(flushed.unwrap_err().kind(), ErrorKind::Closed);
            assert_eq!(told, left);
            left
        } else {
            within("the end", closing).await
        };
        assert_eq!((left.unsent, left.unconfirmed), (3, 0), "{left}");
        assert_eq!(within("closing again", connection.close(Duration::MAX)).await, left);
    }
}

/// A result of a handler that can't be converted to a reply.
struct Spoilt;

impl xmsg_core::IntoReply for Spoilt {
    fn into_reply(self) -> Result<Option<Message>, xmsg_core::HandlerError> {
        panic!("this is no reply")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_making_the_reply_is_one_of_the_handler() {
    for concurrency in [1, 4] {
        let proxy = proxy().start().await.unwrap();
        let (service, client) = (actor(&proxy), actor(&proxy));
        let handle = service.subscribe_with("work", concurrency, |_| async { Spoilt }).await.unwrap();
        for _ in 0..3 {
            let request = Message::of("work", 1).unwrap();
            let error = within("an answer", client.request(&request, PATIENCE)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Remote);
            assert!(error.to_string().contains("panicked"), "{error}");
        }
        let left = handle.drain(PATIENCE).await;
        assert!(left.is_nothing(), "{left}");
    }
}

/// A handler that can't be cancelled may finish later. The result of `close` does not change then.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_close_has_told_stays_true_when_a_handler_finishes_late() {
    for concurrency in [1, 4] {
        let proxy = proxy().start().await.unwrap();
        let actor = actor(&proxy);
        let (started, finished) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = Arc::new(std::sync::Mutex::new(gone));
        let handle = actor
            .subscribe_with("work", concurrency, {
                let (started, finished) = (started.clone(), finished.clone());
                move |_| {
                    let (started, finished, gone) = (started.clone(), finished.clone(), gone.clone());
                    async move {
                        started.notify_one();
                        tokio::task::block_in_place(|| gone.lock().unwrap().recv().unwrap_err());
                        finished.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
            .await
            .unwrap();
        publish(&proxy, "work", 1).await;
        within("the handler", started.notified()).await;
        let left = handle.close(Duration::from_millis(20)).await;
        assert_eq!(left.unhandled, 1);
        drop(go);
        until("its end", || finished.load(Ordering::Relaxed) == 1 && handle.is_closed()).await;
        assert_eq!(handle.close(PATIENCE).await, left);
        assert_eq!(actor.close(PATIENCE).await.unhandled, 1);
    }
}

/// What an ended subscription has left is counted once, and keeps nothing alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_earlier_subscriptions_left_behind_is_counted_with_the_rest() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    let held = Arc::new(());
    for round in 1..=5 {
        let handle = actor
            .subscribe_with("work", 1, {
                let held = held.clone();
                move |_| {
                    let held = held.clone();
                    async move {
                        std::future::pending::<()>().await;
                        drop(held);
                    }
                }
            })
            .await
            .unwrap();
        publish(&proxy, "work", 3).await;
        until("the messages", || handle.pending() == 3).await;
        assert_eq!(handle.close(Duration::ZERO).await.unhandled, 3, "round {round}");
        until("its end", || Arc::strong_count(&held) == 1).await;
    }
    assert_eq!(actor.close(PATIENCE).await.unhandled, 15);
    assert_eq!(actor.drain(PATIENCE).await.unhandled, 15);
}
