//! Tests of actors: publishing, subscribing, requests and replies, the pool of connections, and closing in
//! every state.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Barrier, Semaphore};
use xmsg_core::{Actor, ErrorKind, Message, OwnerType, Pool, Query, Topic};
use xmsg_proxy::Proxy;
use xmsg_tests::log::Log;
use xmsg_tests::{PATIENCE, next, patient, proxy, topic, within};

const LINGER: Duration = Duration::from_secs(30);

fn actor(proxy: &Proxy) -> Actor {
    Actor::builder("tester").proxy(proxy.address().clone()).options(patient()).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_actor_publishes_another_receives() {
    let proxy = proxy().start().await.unwrap();
    let (alice, bob) = (actor(&proxy), actor(&proxy));
    let mut messages = alice.subscribe([topic("greet:")]).await.unwrap();
    for number in 0..1000 {
        bob.publish(&Message::of(topic("greet:alice"), number).unwrap()).await.unwrap();
    }
    for number in 0..1000 {
        let message = within("a message", messages.next()).await.unwrap().unwrap();
        assert_eq!(message.value::<i32>().unwrap(), number);
    }
    assert!((bob.close(LINGER).await + alice.close(LINGER).await).is_nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_takes_the_reply_topic_off() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    let mut messages = actor.subscribe([topic("a")]).await.unwrap();
    let mut message = Message::of(topic("a"), 1).unwrap();
    message.set_reply_to(&topic("ret:x:4000001")).unwrap();
    actor.publish(&message).await.unwrap();
    let received = within("the message", messages.next()).await.unwrap().unwrap();
    assert_eq!(received.reply_to().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_topics_may_be_subscribed_to_twice() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    let mut both = [actor.subscribe(["a", "b"]).await.unwrap(), actor.subscribe(["b", "a"]).await.unwrap()];
    for number in 0..100 {
        actor.publish(&Message::of("b", number).unwrap()).await.unwrap();
    }
    for messages in &mut both {
        for number in 0..100 {
            assert_eq!(next(messages).await.value::<i32>().unwrap(), number);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_by_a_handler() {
    let proxy = proxy().start().await.unwrap();
    let (service, client) = (actor(&proxy), actor(&proxy));
    let handle = service
        .subscribe_with([topic("square")], 8, |request: Message| async move {
            let value: f64 = request.value()?;
            request.reply_with(value * value)
        })
        .await
        .unwrap();
    let answer = client.request(&Message::of(topic("square"), 3.0).unwrap(), PATIENCE).await.unwrap();
    assert!((answer.value::<f64>().unwrap() - 9.0).abs() < f64::EPSILON);
    assert_eq!(answer.reply_to().unwrap(), None);
    assert!(answer.topic().to_string().starts_with(&format!("ret:{}:4", client.id())));
    within("the end of the service", handle.close(PATIENCE)).await;
    let error = client
        .request(&Message::of(topic("square"), 3.0).unwrap(), Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("square"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_in_flight_are_all_answered_and_none_mixed_up() {
    const TASKS: i64 = 100;
    const REQUESTS: i64 = 100;
    let proxy = proxy().start().await.unwrap();
    let (service, client) = (actor(&proxy), actor(&proxy));
    // No request is answered before all have arrived.
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let _handle = service
        .subscribe_with([topic("double")], (TASKS * REQUESTS) as usize, {
            let (asked, go) = (asked.clone(), go.clone());
            move |request: Message| {
                let (asked, go) = (asked.clone(), go.clone());
                async move {
                    if asked.fetch_add(1, Ordering::Relaxed) + 1 == (TASKS * REQUESTS) as usize {
                        go.add_permits(1);
                    }
                    go.acquire().await?.forget();
                    go.add_permits(1);
                    let value: i64 = request.value()?;
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(request.reply_with(value * 2)?)
                }
            }
        })
        .await
        .unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                let requests = (0..REQUESTS).map(|number| {
                    let value = task * REQUESTS + number;
                    let question = Message::of("double", value).unwrap();
                    let client = &client;
                    async move {
                        let answer = client.request(&question, PATIENCE).await.unwrap();
                        assert_eq!(answer.value::<i64>().unwrap(), value * 2);
                    }
                });
                futures::future::join_all(requests).await;
            })
        })
        .collect();
    for task in tasks {
        within("a task", task).await.unwrap();
    }
    assert_eq!(client.late_replies(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_replies_are_counted_and_dropped() {
    let proxy = proxy().start().await.unwrap();
    let (service, client) = (actor(&proxy), actor(&proxy));
    let mut requests = service.subscribe([topic("slow")]).await.unwrap();
    let question = Message::of("slow", 1).unwrap();
    let gave_up = client.request(&question, Duration::from_millis(20));
    assert_eq!(gave_up.await.unwrap_err().kind(), ErrorKind::Timeout);
    // The request arrives, and is answered too late.
    let request = within("the request", requests.next()).await.unwrap().unwrap();
    service.publish(&request.reply_with(1).unwrap().unwrap()).await.unwrap();
    within("the late reply", async {
        while client.late_replies() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// `subscribe` accepts one topic or many, as text or as topics, owned or borrowed. Messages are borrowed
/// everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_can_be_text_and_messages_are_borrowed() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    let text = actor.subscribe("a:text").await.unwrap();
    let several = actor.subscribe(["a:text".to_owned(), "a:topic".to_owned()]).await.unwrap();
    let borrowed = actor.subscribe_to(actor.proxy(), &[topic("a:topic")]).await.unwrap();
    let everything = actor.subscribe(Topic::everything()).await.unwrap();
    for (text, number) in [("a:text", 1), ("a:topic", 2)] {
        let message = Message::of(text, number).unwrap();
        actor.publish(&message).await.unwrap();
        actor.publish_to(actor.proxy(), &message).await.unwrap();
    }
    for (mut messages, numbers) in [
        (text, vec![1, 1]),
        (several, vec![1, 1, 2, 2]),
        (borrowed, vec![2, 2]),
        (everything, vec![1, 1, 2, 2]),
    ] {
        for number in numbers {
            let message = loop {
                let message = within("a message", messages.next()).await.unwrap().unwrap();
                // A subscription to everything also receives the control requests to the proxy.
                if message.topic().domain() != "xmsg" {
                    break message;
                }
            };
            assert_eq!(message.value::<i32>().unwrap(), number);
        }
    }
    for refused in ["", ":a", "*", "*:a"] {
        let error = actor.subscribe(["a", refused]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTopic);
        assert!(error.to_string().contains(&format!("`{refused}`")), "{error}");
    }
}

/// Dropping the future of a request cancels the request: its answer is then late, and the next request gets
/// its own answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_dropped_gives_up_its_place() {
    let proxy = proxy().start().await.unwrap();
    let (service, client) = (actor(&proxy), actor(&proxy));
    let mut requests = service.subscribe([topic("ask")]).await.unwrap();
    for round in 0..20_u64 {
        let question = Message::of("ask", round.cast_signed()).unwrap();
        let dropped = {
            let mut asking = Box::pin(client.request(&question, PATIENCE));
            // The request was sent, and waits for its answer.
            tokio::select! {
                answer = &mut asking => panic!("nobody answered: {answer:?}"),
                request = within("the request", requests.next()) => request.unwrap().unwrap(),
            }
        };
        let answering = async {
            let request = within("the next request", requests.next()).await.unwrap().unwrap();
            service.publish(&dropped.reply_with("late").unwrap().unwrap()).await.unwrap();
            service.publish(&request.reply_with("in time").unwrap().unwrap()).await.unwrap();
        };
        let asking = client.request(&question, PATIENCE);
        let (answer, ()) = futures::join!(asking, answering);
        assert_eq!(answer.unwrap().value::<String>().unwrap(), "in time");
        assert_eq!(client.late_replies(), round + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_fails_or_panics_does_not_end_the_subscription() {
    let proxy = proxy().start().await.unwrap();
    let (service, client) = (actor(&proxy), actor(&proxy));
    let _handle = service
        .subscribe_with([topic("moody")], 1, |request: Message| async move {
            match request.value::<i32>()? {
                0 => panic!("this panic belongs to the test"),
                1 => Err(xmsg_core::Error::new(ErrorKind::Io, "this failure belongs to the test")),
                number => request.reply_with(number),
            }
        })
        .await
        .unwrap();
    for bad in [0, 1, 0] {
        client.publish(&Message::of(topic("moody"), bad).unwrap()).await.unwrap();
    }
    let answer = client.request(&Message::of(topic("moody"), 7).unwrap(), PATIENCE).await.unwrap();
    assert_eq!(answer.value::<i32>().unwrap(), 7);
}

/// The test runs on one thread, so that it gets all log lines of that thread.
#[tokio::test]
async fn a_handler_that_fails_or_panics_is_logged_with_the_topic() {
    let proxy = proxy().start().await.unwrap();
    let (log, _guard) = Log::start();
    let (service, client) = (actor(&proxy), actor(&proxy));
    let handler = |message: Message| async move {
        assert!(message.value::<i32>()? != 0, "this panic belongs to the test");
        message.value::<String>().map(drop)
    };
    let handle = service.subscribe_with([topic("moody")], 1, handler).await.unwrap();
    client.publish(&Message::of(topic("moody:panic"), 0).unwrap()).await.unwrap();
    client.publish(&Message::of(topic("moody:failure"), 1).unwrap()).await.unwrap();
    let lines = || log.text();
    within("both log lines", async {
        while !lines().contains("a handler failed") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("the end", handle.close(PATIENCE)).await;
    let line = |what: &str| lines().lines().find(|line| line.contains(what)).map(str::to_owned);
    let (panicked, failed) = (line("a handler panicked").unwrap(), line("a handler failed").unwrap());
    assert!(panicked.contains("ERROR") && panicked.contains("topic=moody:panic"), "{panicked}");
    assert!(failed.contains("WARN") && failed.contains("topic=moody:failure"), "{failed}");
    assert!(failed.contains("text/string"), "the error is there, too: {failed}");
}

/// The test runs on one thread, so that it gets all log lines of that thread.
#[tokio::test]
async fn messages_that_fail_write_few_lines_and_short_ones() {
    let proxy = proxy().start().await.unwrap();
    let (log, _guard) = Log::start();
    let (service, client) = (actor(&proxy), actor(&proxy));
    let handler = |message: Message| async move { message.value::<String>().map(drop) };
    let handle = service.subscribe_with([topic("moody")], 1, handler).await.unwrap();
    let request = Message::of(topic(&format!("moody:{}", "long".repeat(500))), 1).unwrap();
    for _ in 0..1000 {
        client.publish(&request).await.unwrap();
    }
    within("all failures", async {
        while handle.failed() < 1000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("the end", handle.close(PATIENCE)).await;
    let lines = log.text();
    let failed: Vec<_> = lines.lines().filter(|line| line.contains("a handler failed")).collect();
    // Ten in ten seconds; a loaded machine may need longer than that.
    assert!((1..=100).contains(&failed.len()), "{} lines", failed.len());
    assert!(failed.iter().all(|line| line.len() < 1000), "{}", failed[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_concurrency_of_one_messages_are_handled_in_order() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    let (sender, mut handled) = tokio::sync::mpsc::channel(1000);
    let _handle = actor
        .subscribe_with([topic("a")], 1, move |message: Message| {
            let sender = sender.clone();
            async move {
                tokio::task::yield_now().await;
                sender.send(message.value::<i32>().unwrap()).await.unwrap();
            }
        })
        .await
        .unwrap();
    for number in 0..500 {
        actor.publish(&Message::of(topic("a"), number).unwrap()).await.unwrap();
    }
    for number in 0..500 {
        assert_eq!(within("a message", handled.recv()).await, Some(number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrency_is_bounded() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    let (now, most, barrier) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(3)));
    let _handle = actor
        .subscribe_with([topic("a")], 3, {
            let (now, most, barrier) = (now.clone(), most.clone(), barrier.clone());
            move |_| {
                let (now, most, barrier) = (now.clone(), most.clone(), barrier.clone());
                async move {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    // Three handlers have to run at the same time to pass the barrier.
                    barrier.wait().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                }
            }
        })
        .await
        .unwrap();
    for number in 0..30 {
        actor.publish(&Message::of(topic("a"), number).unwrap()).await.unwrap();
    }
    within("thirty in threes", async {
        while most.load(Ordering::SeqCst) < 3 || now.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

/// Two handlers that keep their threads busy run at the same time, whether their messages arrived in one
/// batch or one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_that_work_without_a_pause_run_side_by_side() {
    let proxy = proxy().start().await.unwrap();
    let (publisher, actor) = (actor(&proxy), actor(&proxy));
    let [inside, met, finished] = std::array::from_fn(|_| Arc::<AtomicUsize>::default());
    let (meetings, done) = (met.clone(), finished.clone());
    // Without a time limit, a handler that waits for the other one could keep the runtime from running that
    // one: a blocked thread does not give away the task that it was to run next.
    let handler = move |_| {
        let (began, mut others) = (std::time::Instant::now(), inside.fetch_add(1, Ordering::SeqCst));
        while others == 0 && began.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
            others = inside.load(Ordering::SeqCst) - 1;
        }
        meetings.fetch_add(others, Ordering::SeqCst);
        inside.fetch_sub(1, Ordering::SeqCst);
        done.fetch_add(1, Ordering::SeqCst);
        async {}
    };
    let handle = actor.subscribe_with("work", 2, handler).await.unwrap();
    let message = Message::of("work", 1).unwrap();
    for one_by_one in [false, true] {
        met.store(0, Ordering::SeqCst);
        finished.store(0, Ordering::SeqCst);
        for _ in 0..50 {
            publisher.publish(&message).await.unwrap();
            if one_by_one {
                publisher.flush(PATIENCE).await.unwrap();
            }
        }
        within("all of them", async {
            while finished.load(Ordering::SeqCst) < 50 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        assert!(
            met.load(Ordering::SeqCst) > 0,
            "two were at work at the same time, one by one: {one_by_one}"
        );
    }
    assert!(handle.drain(PATIENCE).await.is_nothing());
}

/// As many handlers run as are allowed, and a handler that has a place need not wait for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_hangs_keeps_one_place_and_no_message_but_its_own() {
    const MESSAGES: u64 = 10_000;
    let proxy = proxy().start().await.unwrap();
    let (publisher, actor) = (actor(&proxy), actor(&proxy));
    let (done, mut numbers) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |message: Message| {
        let done = done.clone();
        async move {
            let number = message.value::<u64>().unwrap();
            if number < 3 {
                std::future::pending::<()>().await;
            }
            done.send(number).unwrap();
        }
    };
    let handle = actor.subscribe_with("work", 4, handler).await.unwrap();
    for number in 0..MESSAGES {
        publisher.publish(&Message::of("work", number).unwrap()).await.unwrap();
    }
    // One place is left, in which the messages are handled in their order.
    for number in 3..MESSAGES {
        assert_eq!(within("the others", numbers.recv()).await, Some(number));
    }
    let hanging = async {
        while handle.pending() != 3 {
            tokio::task::yield_now().await;
        }
    };
    within("the counts", hanging).await;
    let left = handle.close(Duration::from_millis(100)).await;
    assert_eq!(left.unhandled, 3);
    assert_eq!(actor.close(Duration::ZERO).await.unhandled, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_never_share_a_pooled_connection() {
    let proxy = proxy().start().await.unwrap();
    let pool = Pool::with_limits(patient(), 8, Duration::from_secs(60)).unwrap();
    let in_use = Arc::new(std::sync::Mutex::new(HashSet::new()));
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (pool, in_use, address) = (pool.clone(), in_use.clone(), proxy.address().clone());
            tokio::spawn(async move {
                for _ in 0..10 {
                    let connection = pool.take(&address).await.unwrap();
                    assert!(in_use.lock().unwrap().insert(connection.id()), "it is shared");
                    connection.publish(&Message::of(topic("pool"), 1).unwrap()).await.unwrap();
                    tokio::task::yield_now().await;
                    in_use.lock().unwrap().remove(&connection.id());
                }
            })
        })
        .collect();
    for task in tasks {
        within("a task", task).await.unwrap();
    }
    assert!((1..=8).contains(&pool.idle(proxy.address())), "{} are idle", pool.idle(proxy.address()));
    assert!(within("close", pool.close(LINGER)).await.is_nothing());
    assert_eq!(pool.take(proxy.address()).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_is_used_again_and_a_broken_one_is_not() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    let pool = Pool::new(patient()).unwrap();
    pool.cache_connection(&address).await.unwrap();
    let id = pool.take(&address).await.unwrap().id();
    let connection = pool.take(&address).await.unwrap();
    assert_eq!(connection.id(), id);
    proxy.stop(LINGER).await;
    within("the loss", async {
        while connection.is_connected() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(connection);
    assert_eq!(pool.idle(&address), 0);
    let again = Proxy::bind(address.to_string()).start().await.unwrap();
    assert_ne!(pool.take(&address).await.unwrap().id(), id);
    drop(again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_never_hangs_and_says_what_was_not_sent() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor(&proxy);
    let guard = actor.connection(proxy.address()).await.unwrap();
    let mut messages = actor.subscribe([topic("a")]).await.unwrap();
    let _handle = actor.subscribe_with([topic("b")], 1, |_| async {}).await.unwrap();
    let waiting = {
        let actor = actor.clone();
        tokio::spawn(async move { actor.request(&Message::of(topic("nobody"), 1).unwrap(), PATIENCE).await })
    };
    let mut events = guard.events();
    proxy.stop(LINGER).await;
    within("the loss of the connection", events.next()).await;
    for number in 0..5 {
        guard.publish(&Message::of(topic("a"), number).unwrap()).await.unwrap();
    }
    let unsent = within("close", actor.close(Duration::from_millis(200))).await;
    assert!(unsent.unsent >= 5, "{unsent}");
    assert!(within("the end of the subscription", messages.next()).await.is_none());
    let error = guard.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    drop(guard);
    assert_eq!(
        actor.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actors_find_each_other_through_the_registrar() {
    let proxy = proxy().start().await.unwrap();
    let registrar = xmsg_proxy::registrar::Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let build = |name: &str| {
        Actor::builder(name)
            .proxy(proxy.address().clone())
            .registrar(registrar.address().clone())
            .options(patient())
            .build()
    };
    let (publisher, subscriber) = (build("daq").unwrap(), build("monitor").unwrap());
    let power = Topic::with_types("data", "power", "float").unwrap();
    publisher.register(OwnerType::Publisher, &power, "the power supply").await.unwrap();
    let query = Query::topic(OwnerType::Publisher, &Topic::of_domain("data").unwrap());
    let found = within("discovery", subscriber.discover(&query)).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].name.as_str(), found[0].description(), found[0].topic().unwrap()),
        ("daq", "the power supply", power.clone())
    );
    // The other queries, each also with one that finds nothing.
    let topic = |topic| Query::topic(OwnerType::Publisher, topic);
    assert_eq!(subscriber.discover_exact(&topic(&power)).await.unwrap(), found);
    assert_eq!(subscriber.discover_exact(&query).await.unwrap(), []);
    let parts = |types| Query::parts(OwnerType::Publisher, "*", "*", types);
    let host = proxy.address().host();
    assert_eq!(subscriber.discover_filtered(&parts("float").host(host)).await.unwrap(), found);
    assert_eq!(subscriber.discover_filtered(&parts("double")).await.unwrap(), []);
    assert_eq!(subscriber.discover_all(OwnerType::Publisher).await.unwrap(), found);
    assert_eq!(subscriber.discover_all(OwnerType::Subscriber).await.unwrap(), []);

    publisher.deregister(OwnerType::Publisher, &power).await.unwrap();
    assert_eq!(subscriber.discover(&query).await.unwrap(), []);
    publisher.close(LINGER).await;
    let error = publisher.discover_all(OwnerType::Publisher).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    subscriber.close(LINGER).await;
}
