//! A proxy or registrar that was dropped or stopped leaves its ports free before the call returns.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use xmsg_core::{ProxyAddress, RegistrarAddress};
use xmsg_proxy::Proxy;
use xmsg_proxy::registrar::Registrar;
use xmsg_zmq::{Dealer, Endpoint, Publisher, SocketOptions, Subscriber};

const ROUNDS: usize = 50;

fn runtimes() -> [Runtime; 2] {
    let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let several = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    [current, several]
}

async fn proxy(at: &str) -> Proxy {
    Proxy::bind(at).start().await.unwrap_or_else(|error| panic!("{error:?}"))
}

/// Clients that are connected to all three ports, and stay.
async fn clients(address: &ProxyAddress) -> (Publisher, Subscriber, Dealer) {
    let endpoint = |text: String| text.parse::<Endpoint>().expect("an endpoint");
    // They are not to come back to the next proxy in the middle of the test.
    let options = SocketOptions::any().reconnect_min(Duration::from_secs(60));
    let (publisher, subscriber) =
        (Publisher::new(options.for_socket()), Subscriber::new(options.for_socket()));
    publisher.connect(endpoint(address.publish_endpoint()));
    subscriber.connect(endpoint(address.subscribe_endpoint()));
    let control = Dealer::connecting_to(endpoint(address.control_endpoint()), options.for_socket());
    subscriber.connected().await.expect("a connection");
    control.connected().await.expect("a connection");
    publisher.wait_for_subscriber(b"xmsg:control").await.expect("a connection");
    (publisher, subscriber, control)
}

#[test]
fn the_ports_of_a_dropped_proxy_are_free_at_once() {
    for runtime in runtimes() {
        let address = runtime.block_on(async {
            let mut proxy = proxy("127.0.0.1:0").await;
            let at = proxy.address().to_string();
            let mut clients = clients(proxy.address()).await;
            for round in 0..ROUNDS {
                drop(proxy);
                proxy = self::proxy(&at).await;
                if round % 10 == 0 {
                    clients = self::clients(proxy.address()).await;
                }
            }
            drop(clients);
            at
        });
        // Whoever drops it need not be in the runtime.
        for _ in 0..ROUNDS {
            drop(runtime.block_on(proxy(&address)));
        }
    }
}

#[test]
fn the_ports_of_a_stopped_proxy_are_free() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let mut proxy = proxy("127.0.0.1:0").await;
            let at = proxy.address().to_string();
            for _ in 0..ROUNDS {
                proxy.stop(Duration::ZERO).await;
                proxy = self::proxy(&at).await;
            }
        });
    }
}

#[test]
fn the_port_of_a_dropped_or_stopped_registrar_is_free() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let mut registrar = Registrar::bind("127.0.0.1:0").start().await.unwrap();
            let address: RegistrarAddress = registrar.address().clone();
            for round in 0..ROUNDS {
                if round % 2 == 0 {
                    drop(registrar);
                } else {
                    registrar.stop(Duration::ZERO).await;
                }
                registrar = Registrar::bind(address.to_string()).start().await.unwrap();
            }
        });
    }
}
