//! Devices between sockets: queue, streamer, forwarder.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;
use xmsg_zmq::{
    Dealer, Device, Endpoint, Multipart, Publisher, Pull, Push, Replier, Requester, Router, SocketOptions,
    Subscriber, XPub, XSub,
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("too late: {what}"))
}

fn anywhere() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}

fn options<S>() -> SocketOptions<S> {
    SocketOptions::default()
}

#[tokio::test]
async fn a_queue_shares_the_requests_of_all_clients_among_all_workers() {
    let (frontend, backend) = (Router::new(options()), Dealer::new(options()));
    let for_clients = frontend.bind(&anywhere()).await.unwrap();
    let for_workers = backend.bind(&anywhere()).await.unwrap();
    let queue = Device::start(&frontend, &backend);
    let workers: Vec<_> = (0..3)
        .map(|number: u32| {
            let worker = Replier::new(options());
            worker.connect(for_workers.clone());
            tokio::spawn(async move {
                while let Some((path, request)) = worker.recv().await {
                    let frames = [request.frames()[0].clone(), number.to_string().into()];
                    worker.try_reply(&path, frames).unwrap();
                }
            })
        })
        .collect();
    within("workers", async {
        while backend.peers() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let clients = (0..4).map(|client: u32| {
        let requester = Requester::connecting_to(for_clients.clone(), options());
        async move {
            let mut workers = BTreeSet::new();
            for number in 0..50 {
                let request = format!("{client}: {number}");
                let reply = requester.request([request.clone()], PATIENCE).await.unwrap();
                assert_eq!(reply.frames()[0], request);
                workers.insert(reply.frames()[1].clone());
            }
            workers
        }
    });
    let seen = within("the replies", futures::future::join_all(clients)).await;
    assert_eq!(seen.into_iter().flatten().collect::<BTreeSet<_>>().len(), 3, "every worker had some");
    let statistics = queue.stop(PATIENCE).await;
    assert_eq!((statistics.forward.messages, statistics.backward.messages), (200, 200));
    assert_eq!((statistics.forward.dropped, statistics.backward.dropped), (0, 0));
    for worker in workers {
        worker.abort();
    }
}

#[tokio::test]
async fn a_streamer_waits_while_it_is_paused_and_what_it_passes_is_seen() {
    let (frontend, backend, capture) = (Pull::new(options()), Push::new(options()), Push::new(options()));
    let tasks_in = frontend.bind(&anywhere()).await.unwrap();
    let tasks_out = backend.bind(&anywhere()).await.unwrap();
    let seen_at = capture.bind(&anywhere()).await.unwrap();
    let streamer = Device::start_with_capture(&frontend, &backend, &capture);
    let (ventilator, worker, witness) = (Push::new(options()), Pull::new(options()), Pull::new(options()));
    ventilator.connect(tasks_in);
    worker.connect(tasks_out);
    witness.connect(seen_at);
    let pass = async |number: u64| {
        ventilator.send([number.to_string()]).await.unwrap();
        for socket in [&worker, &witness] {
            let message = within("the task", socket.recv()).await.unwrap();
            assert_eq!(message.frames(), [number.to_string()]);
        }
    };
    for number in 0..100 {
        pass(number).await;
    }
    streamer.pause();
    ventilator.send(["100"]).await.unwrap();
    // Nothing goes through while the device is paused.
    let mut next = Box::pin(worker.recv());
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(next.as_mut().now_or_never().is_none(), "it is paused");
    streamer.resume();
    assert_eq!(within("the task", next).await.unwrap().frames(), ["100"]);
    assert_eq!(within("its copy", witness.recv()).await.unwrap().frames(), ["100"]);
    pass(101).await;
    assert_eq!(streamer.statistics().forward.messages, 102);
    let statistics = streamer.stop(PATIENCE).await;
    assert_eq!((statistics.forward.messages, statistics.forward.dropped), (102, 0));
    assert_eq!(statistics.backward.messages, 0);
}

#[tokio::test]
async fn a_forwarder_passes_what_is_wanted() {
    let (frontend, backend) = (XSub::new(options()), XPub::new(options()));
    let for_publishers = frontend.bind(&anywhere()).await.unwrap();
    let for_subscribers = backend.bind(&anywhere()).await.unwrap();
    let forwarder = Device::start(&frontend, &backend);
    let publisher = Publisher::new(options().filter(true));
    publisher.connect(for_publishers);
    let mut subscriber = Subscriber::new(options());
    subscriber.subscribe("b").unwrap();
    subscriber.connect(for_subscribers);
    within("the subscription", publisher.wait_for_subscriber(b"b")).await.unwrap();
    for topic in ["a", "b", "c", "bb"] {
        publisher.publish([topic]).await.unwrap();
    }
    for topic in ["b", "bb"] {
        assert_eq!(within("a message", subscriber.recv()).await.unwrap(), Multipart::from([topic]));
    }
    drop(subscriber);
    within("the end of the subscription", async {
        while publisher.has_subscriber(b"b") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let statistics = forwarder.stop(PATIENCE).await;
    assert_eq!(
        (statistics.forward.messages, statistics.backward.messages),
        (2, 2),
        "two subscriptions' notices"
    );
}

#[tokio::test]
async fn what_nobody_takes_is_counted_and_stopping_is_bounded() {
    let (frontend, backend) = (Router::new(options()), Dealer::new(options()));
    let for_clients = frontend.bind(&anywhere()).await.unwrap();
    let for_workers = backend.bind(&anywhere()).await.unwrap();
    let queue = Device::start(&frontend, &backend);
    let worker = Dealer::connecting_to(for_workers, options());
    // This is an answer to an unknown client.
    worker.send(["nobody", "", "answer"]).await.unwrap();
    within("the count", async {
        while queue.statistics().backward.dropped == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // When its only worker is gone, a request waits in the device.
    worker.close(PATIENCE).await;
    within("its end", async {
        while backend.peers() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let client = Dealer::connecting_to(for_clients, options());
    client.send(["", "request"]).await.unwrap();
    client.send(["", "request"]).await.unwrap();
    within("both", async {
        while client.close(Duration::ZERO).now_or_never().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let statistics = within("the end", queue.stop(Duration::from_millis(100))).await;
    assert!(statistics.forward.dropped <= 1, "{statistics:?}");
}
