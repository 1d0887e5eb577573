//! After a reconnection, a publisher waits a moment for subscribers to come back, but not longer. The clock
//! of these tests is paused, and only timers advance it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use xmsg_zmq::{Endpoint, Multipart, Publisher, SocketEvent, SocketEvents, SocketOptions, Subscriber};

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(600);

/// Binds a peer that subscribes to these topics, as a proxy does for its subscribers.
async fn peer(endpoint: &Endpoint, topics: &[&'static str]) -> Subscriber {
    let peer = Subscriber::new(SocketOptions::default());
    for topic in topics {
        peer.subscribe(*topic).expect("a short topic");
    }
    peer.bind(endpoint).await.expect("a free name");
    peer
}

/// Makes a publisher that has lost a peer with subscriptions to these topics.
async fn left_alone(
    endpoint: &Endpoint,
    options: SocketOptions<Publisher>,
    topics: &[&'static str],
) -> Publisher {
    let first = peer(endpoint, topics).await;
    let publisher = Publisher::new(options);
    let mut events = publisher.events();
    publisher.connect(endpoint.clone());
    for topic in topics {
        publisher.wait_for_subscriber(topic.as_bytes()).await.expect("it is open");
    }
    first.close().await;
    until(&mut events, |event| matches!(event, SocketEvent::Disconnected { .. })).await;
    publisher
}

async fn until(events: &mut SocketEvents, is_it: impl Fn(&SocketEvent) -> bool) {
    let found = async { while !is_it(&events.next().await.expect("the socket is open")) {} };
    timeout(PATIENCE, found).await.expect("it is told in time");
}

#[tokio::test(start_paused = true)]
async fn however_long_the_peer_was_away_the_wait_is_short() {
    let endpoint = Endpoint::Inproc("away for long".into());
    let publisher = left_alone(&endpoint, SocketOptions::default(), &["t"]).await;
    publisher.publish(["t"]).await.unwrap();
    sleep(60 * SECOND).await;
    let back = Instant::now();
    let mut peer = peer(&endpoint, &["t"]).await;
    assert_eq!(timeout(PATIENCE, peer.recv()).await.unwrap().unwrap(), Multipart::from(["t"]));
    // The time is that of one pause between attempts, and of one pause for subscribers.
    assert!(back.elapsed() < 5 * SECOND / 2, "{:?}", back.elapsed());
}

/// The publisher waits for the subscriptions that the peer had before, but not forever: a subscriber may have
/// left for good.
#[tokio::test(start_paused = true)]
async fn a_peer_that_comes_and_goes_gets_its_messages() {
    let endpoint = Endpoint::Inproc("comes and goes".into());
    for before in [&["t"][..], &["t", "gone"]] {
        let publisher = left_alone(&endpoint, SocketOptions::default(), before).await;
        publisher.publish(["t"]).await.unwrap();
        sleep(3 * SECOND).await;
        let mut visits = 0;
        loop {
            visits += 1;
            assert!(visits < 20, "it gets nothing");
            let mut peer = peer(&endpoint, &["t"]).await;
            if timeout(6 * SECOND / 10, peer.recv()).await.is_ok() {
                break;
            }
            peer.close().await;
            sleep(SECOND / 10).await;
        }
        assert!(visits > 1, "subscribers had no time to come back after three seconds");
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_closed_holds_for_half_of_its_time_at_most() {
    let endpoint = Endpoint::Inproc("closed while held".into());
    let patient = SocketOptions::default().reconnect_max(PATIENCE);
    for closes_before in [false, true] {
        let publisher = left_alone(&endpoint, patient.clone(), &["t"]).await;
        publisher.publish(["t"]).await.unwrap();
        sleep(60 * SECOND).await;
        let mut events = publisher.events();
        let closing = async {
            if closes_before {
                // The peer comes back while the socket is being closed.
                return publisher.close(200 * SECOND).await;
            }
            until(&mut events, |event| matches!(event, SocketEvent::Connected { .. })).await;
            let begun = Instant::now();
            let unsent = publisher.close(10 * SECOND).await;
            let waited = begun.elapsed();
            assert!(waited >= 4 * SECOND && waited < 6 * SECOND, "{waited:?}");
            unsent
        };
        let receiving = async {
            let mut peer = peer(&endpoint, &["t"]).await;
            peer.recv().await
        };
        let (unsent, received) = futures::join!(closing, receiving);
        assert_eq!((unsent, received), (0, Some(Multipart::from(["t"]))));
    }
}
