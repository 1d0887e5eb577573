//! Tests from the test suites of the other implementations about synchronous publishing: Java
//! `SubscriptionsTest`, `PublishersTest` and `SyncPublishTest`, C++ `subscription_test`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use xmsg_core::{Actor, ErrorKind, Message, OwnerType, ProxyAddress, Query, Topic};
use xmsg_proxy::Proxy;
use xmsg_proxy::registrar::Registrar;
use xmsg_tests::{PATIENCE, patient, proxy, topic, within};

const LINGER: Duration = Duration::from_secs(30);

fn actor(name: &str, proxy: &Proxy) -> Actor {
    Actor::builder(name).proxy(proxy.address().clone()).options(patient()).build().unwrap()
}

/// Sends a request for each of these numbers in turn, and expects the same number in the reply.
async fn ask(actor: &Actor, topic: &Topic, numbers: std::ops::Range<i32>) {
    for number in numbers {
        let answer =
            actor.sync_publish(&Message::of(topic.clone(), number).unwrap(), PATIENCE).await.unwrap();
        assert_eq!(answer.value::<i32>().unwrap(), number);
    }
}

/// Corresponds to Java `SubscriptionsTest.syncPublicationReceivesAllResponses`, C++
/// `syncPublishReceivesAllResponses`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_in_turn_gets_its_own_response() {
    let proxy = proxy().start().await.unwrap();
    let (service, client) = (actor("service", &proxy), actor("client", &proxy));
    let echo = |request: Message| async move { request.reply_with(request.value::<i32>()?) };
    let _handle = service.subscribe_with([topic("echo")], 1, echo).await.unwrap();
    ask(&client, &topic("echo"), 0..100).await;
    assert_eq!(client.late_replies(), 0);
}

/// Corresponds to Java `PublishersTest.syncSuscribeReceivesAllMessages`, with the same number of publishers.
/// The handler corresponds to `createResponse(msg)`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_four_publishers_gets_its_own_response() {
    let proxy = proxy().start().await.unwrap();
    let service = actor("service", &proxy);
    let _handle = service
        .subscribe_with([topic("echo")], 4, |request: Message| async move { request.reply() })
        .await
        .unwrap();
    let mut tasks = Vec::new();
    for publisher in 0..4 {
        let client = actor("client", &proxy);
        tasks.push(tokio::spawn(async move {
            let topic = Topic::new("echo", publisher.to_string()).unwrap();
            ask(&client, &topic, publisher * 250..(publisher + 1) * 250).await;
            assert!(client.close(LINGER).await.is_nothing());
        }));
    }
    for task in tasks {
        within("a publisher", task).await.unwrap();
    }
}

/// Corresponds to Java `SubscriptionsTest.syncPublicationThrowsOnTimeout`: the request arrives, and is
/// answered too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_times_out_and_its_late_response_is_not_taken_for_another() {
    let proxy = proxy().start().await.unwrap();
    let (service, client) = (actor("service", &proxy), actor("client", &proxy));
    let (received, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let _handle = service
        .subscribe_with([topic("slow")], 1, {
            let (received, go) = (received.clone(), go.clone());
            move |request: Message| {
                let (received, go) = (received.clone(), go.clone());
                async move {
                    received.add_permits(1);
                    go.acquire().await.unwrap().forget();
                    request.reply()
                }
            }
        })
        .await
        .unwrap();
    let error = client
        .sync_publish(&Message::of(topic("slow"), 1).unwrap(), Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    within("the request", received.acquire()).await.unwrap().forget();
    // Both requests are answered, in their order.
    go.add_permits(2);
    ask(&client, &topic("slow"), 2..3).await;
    assert_eq!(client.late_replies(), 1);
}

/// Corresponds to Java `SyncPublishTest`: services register, and a client finds all services of a domain and
/// sends a request to each at its own proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_of_several_proxies_are_found_and_asked() {
    let registrar = Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let mut services = Vec::new();
    for name in ["one", "two", "three"] {
        let proxy = proxy().start().await.unwrap();
        let service = Actor::builder(name)
            .proxy(proxy.address().clone())
            .registrar(registrar.address().clone())
            .options(patient())
            .build()
            .unwrap();
        let topic = Topic::new("echo", name).unwrap();
        let echo = |request: Message| async move { request.reply() };
        let handle = service.subscribe_with([topic.clone()], 2, echo).await.unwrap();
        service.register(OwnerType::Subscriber, &topic, "answers").await.unwrap();
        services.push((proxy, service, handle));
    }
    let client =
        Actor::builder("client").registrar(registrar.address().clone()).options(patient()).build().unwrap();
    let query = Query::parts(OwnerType::Subscriber, "echo", "*", "*");
    let found = client.discover_filtered(&query).await.unwrap();
    assert_eq!(found.len(), 3);
    let mut requests = Vec::new();
    for number in 0..50 {
        for service in &found {
            let proxy = ProxyAddress::new(&service.host, service.port.try_into().unwrap()).unwrap();
            let (client, topic) = (client.clone(), service.topic().unwrap());
            requests.push(tokio::spawn(async move {
                let answer =
                    client.request_to(&proxy, &Message::of(topic, number).unwrap(), PATIENCE).await.unwrap();
                assert_eq!(answer.value::<i32>().unwrap(), number);
            }));
        }
    }
    for request in requests {
        within("a request", request).await.unwrap();
    }
    assert!(client.close(LINGER).await.is_nothing());
}
