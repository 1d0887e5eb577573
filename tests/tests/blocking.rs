//! Programs without an async runtime.

use std::time::Duration;

use xmsg_core::blocking::{Actor, Connection};
use xmsg_core::{ErrorKind, Message};
use xmsg_tests::{PATIENCE, patient, proxy};

#[test]
fn a_program_without_a_runtime_publishes_subscribes_and_asks() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(proxy().start()).unwrap();
    let actor = |name: &str| {
        Actor::build(xmsg_core::Actor::builder(name).proxy(proxy.address()).options(patient())).unwrap()
    };
    let (service, client) = (actor("service"), actor("client"));
    let handle = service
        .subscribe_with("square", 1, |request: Message| async move {
            let number: f64 = request.value()?;
            request.reply_with(number * number)
        })
        .unwrap();
    let mut numbers = service.subscribe("number").unwrap();
    // From several threads.
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

/// What a handle that is dropped had accepted is sent.
#[test]
fn a_dropped_connection_sends_what_it_accepted() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(proxy().start()).unwrap();
    let connection = || Connection::with_options(proxy.address(), patient()).unwrap();
    let subscriber = connection();
    let messages = subscriber.subscribe("a").unwrap();
    let publisher = connection();
    for number in 0..1000 {
        publisher.publish(&Message::of("a", number).unwrap()).unwrap();
    }
    drop(publisher);
    for (number, message) in (0..1000).zip(messages) {
        assert_eq!(message.unwrap().value::<i32>().unwrap(), number);
    }
}
