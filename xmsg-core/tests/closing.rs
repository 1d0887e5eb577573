//! Closing a socket ends all calls that wait for it. On every transport, another socket can then bind its
//! endpoint.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use xmsg_core::ErrorKind;
use xmsg_zmq::{Dealer, Endpoint, Publisher, Replier, Router, SocketOptions, Subscriber};

const ROUNDS: usize = 50;

fn runtimes() -> [Runtime; 2] {
    let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let several = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    [current, several]
}

#[test]
fn an_endpoint_is_free_when_its_socket_was_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let endpoints = [
        "tcp://127.0.0.1:0".to_owned(),
        format!("ipc://{}/s", folder.path().display()),
        "inproc://free".to_owned(),
    ];
    for (runtime, endpoint) in
        runtimes().iter().flat_map(|runtime| endpoints.iter().map(move |e| (runtime, e)))
    {
        runtime.block_on(async {
            let mut endpoint: Endpoint = endpoint.parse().unwrap();
            for _ in 0..ROUNDS {
                let publisher = Publisher::new(SocketOptions::default());
                endpoint = publisher.bind(&endpoint).await.unwrap();
                // An established connection does not keep the endpoint bound, even while the subscriber lives
                // on.
                let subscriber = Subscriber::new(SocketOptions::default().reconnect_min(Duration::MAX));
                subscriber.connect(endpoint.clone());
                subscriber.connected().await.unwrap();
                drop(publisher);
                let router = Router::new(SocketOptions::default());
                router.bind(&endpoint).await.unwrap();
                router.unbind_all();
                let replier = Replier::new(SocketOptions::default());
                replier.bind(&endpoint).await.unwrap();
                drop(replier);
            }
        });
    }
}

#[test]
fn an_endpoint_is_free_when_its_socket_was_closed_however_long_that_takes() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let publisher = Publisher::new(SocketOptions::default());
            let endpoint = publisher.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
            // This peer connects and never reads.
            let Endpoint::Tcp { port, .. } = endpoint else { unreachable!() };
            let _deaf = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            let mut closing = std::pin::pin!(publisher.close(Duration::MAX));
            // One poll starts closing, which need not be finished.
            let _ = futures::poll!(&mut closing);
            let next = Publisher::new(SocketOptions::default());
            next.bind(&endpoint).await.unwrap();
        });
    }
}

#[tokio::test]
async fn whoever_waits_for_a_peer_ends_with_the_socket() {
    // Nothing listens there.
    let nobody = Endpoint::tcp("127.0.0.1", 1);
    let dealer = Dealer::connecting_to(nobody.clone(), SocketOptions::default());
    let subscriber = Subscriber::new(SocketOptions::default());
    subscriber.connect(nobody.clone());
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(nobody);
    let waiting = async {
        let wanted = publisher.wait_for_subscriber(b"t");
        let (dealer, subscriber, publisher) =
            futures::join!(dealer.connected(), subscriber.connected(), wanted);
        [dealer, subscriber, publisher]
    };
    let closing = async {
        futures::join!(dealer.close(Duration::MAX), subscriber.close(), publisher.close(Duration::MAX))
    };
    let both = async { futures::join!(waiting, closing) };
    let (results, _) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    for result in results {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(
        dealer.connected().await.unwrap_err().kind(),
        ErrorKind::Closed,
        "and whoever comes later, too"
    );
}
