//! Every time limit of a socket may be arbitrarily long or zero, and none causes a panic.

use std::time::Duration;

use xmsg_core::ErrorKind;
use xmsg_zmq::{
    Dealer, Endpoint, Multipart, Publisher, Replier, Requester, Router, Sends, SocketEvent, SocketOptions,
    Subscriber, TcpOptions,
};
use xmsg_zmtp::Limits;

const PATIENCE: Duration = Duration::from_secs(60);

/// Sets all times that can be set.
fn options<S: Sends>(time: Duration) -> SocketOptions<S> {
    SocketOptions::default()
        .linger(time)
        .connect_timeout(Duration::MAX)
        .reconnect_min(time)
        .reconnect_max(time)
        .heartbeat_interval(time)
        .heartbeat_timeout(time)
        .limits(Limits { handshake_timeout: Duration::MAX, ..Limits::default() })
        .tcp(TcpOptions { keepalive: Some(time), keepalive_timeout: time, ..TcpOptions::default() })
}

fn any_port() -> Endpoint {
    Endpoint::tcp("127.0.0.1", 0)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

#[tokio::test]
async fn sockets_work_with_the_longest_and_with_no_times() {
    for time in [Duration::MAX, Duration::ZERO] {
        let publisher = Publisher::new(options(time));
        let mut subscriber = Subscriber::new(options::<Publisher>(time).for_socket());
        subscriber.connect(publisher.bind(&any_port()).await.unwrap());
        subscriber.subscribe("t").unwrap();
        soon(publisher.wait_for_subscriber(b"t")).await.unwrap();
        publisher.publish(["t", "hello"]).await.unwrap();
        assert_eq!(soon(subscriber.recv()).await.unwrap(), Multipart::from(["t", "hello"]));

        let router = Router::new(options(time));
        let dealer = Dealer::connecting_to(router.bind(&any_port()).await.unwrap(), options(time));
        dealer.send(["hello"]).await.unwrap();
        let (who, message) = soon(router.recv()).await.unwrap();
        router.try_send(&who, message).unwrap();
        assert_eq!(soon(dealer.recv()).await.unwrap(), Multipart::from(["hello"]));

        let replier = Replier::new(options(time));
        let requester = Requester::connecting_to(
            replier.bind(&any_port()).await.unwrap(),
            options::<Replier>(time).for_socket(),
        );
        let echo = async {
            let (path, request) = replier.recv().await.unwrap();
            replier.try_reply(&path, request).unwrap();
        };
        let (reply, ()) =
            soon(async { futures::join!(requester.request(["hello"], Duration::MAX), echo) }).await;
        assert_eq!(reply.unwrap(), Multipart::from(["hello"]));

        // Closing with an infinite time limit waits until the peer has left, so both sockets are closed at
        // the same time.
        soon(async { futures::join!(dealer.close(Duration::MAX), router.close(time)) }).await;
        soon(async { futures::join!(publisher.close(time), subscriber.close()) }).await;
        soon(requester.close()).await;
        soon(replier.close(time)).await;
    }
}

#[tokio::test]
async fn a_connection_that_may_take_no_time_is_tried_again() {
    let options = SocketOptions::default()
        .connect_timeout(Duration::ZERO)
        .reconnect_min(Duration::from_millis(1))
        .reconnect_max(Duration::ZERO);
    let dealer = Dealer::connecting_to("tcp://127.0.0.1:1".parse().unwrap(), options);
    let mut events = dealer.events();
    for _ in 0..3 {
        let Some(SocketEvent::ConnectFailed { error, .. }) = soon(events.next()).await else { panic!() };
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Refused), "{error:?}");
    }
}

/// The pause between attempts is between the shortest and the longest pause, even if the shortest is set
/// longer than the longest.
#[tokio::test]
async fn the_shortest_pause_may_be_longer_than_the_longest() {
    let millisecond = Duration::from_millis(1);
    let options = SocketOptions::default().reconnect_min(2 * millisecond).reconnect_max(millisecond);
    let subscriber = Subscriber::new(SocketOptions::default());
    let endpoint = subscriber.bind(&any_port()).await.unwrap();
    subscriber.subscribe("t").unwrap();
    let publisher = Publisher::new(options);
    publisher.connect(endpoint.clone());
    soon(publisher.wait_for_subscriber(b"t")).await.unwrap();
    subscriber.close().await;
    let mut subscriber = Subscriber::new(SocketOptions::default());
    subscriber.bind(&endpoint).await.unwrap();
    subscriber.subscribe("t").unwrap();
    let mut number = 0_u64;
    let received = async {
        loop {
            number += 1;
            publisher.publish(["t"]).await.unwrap();
            tokio::select! {
                message = subscriber.recv() => break message,
                () = tokio::time::sleep(10 * millisecond) => {}
            }
        }
    };
    assert_eq!(soon(received).await.unwrap(), Multipart::from(["t"]));
}
