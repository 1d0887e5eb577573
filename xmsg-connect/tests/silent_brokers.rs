//! Brokers that accept and say nothing leave nothing behind. This is the only test of its process, whose
//! threads and descriptors it counts.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::time::Duration;

use xmsg_connect::definition::Span;
use xmsg_connect::{OnDelete, Sort};
use xmsg_tests::amqp_peer::{Action, Peer, Script, What};
use xmsg_tests::within;

use common::{Site, broker, outgoing};

const ATTEMPTS: usize = 50;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Counts the threads of the AMQP client.
fn client_threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    // One that ends meanwhile has no name any more.
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("lapin")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_against_brokers_that_say_nothing_leave_no_thread_and_no_descriptor() {
    let site = Site::new().await;
    let before = descriptors();
    assert_eq!(client_threads(), 0);
    // At every stage: nothing is said at all, or no more after the login, or no more after the handshake.
    let silent: [fn(&What) -> bool; 3] = [
        |what| matches!(what, What::Greeting),
        |what| matches!(what, What::Login { .. }),
        |what| matches!(what, What::Method(_)),
    ];
    for stage in silent {
        let script = Script::confirming()
            .instead(move |received| stage(&received.what).then(|| vec![Action::silence()]));
        let peer = Peer::start(script).await;
        let mut nodes = broker(peer.port());
        nodes.reconnect.max = nodes.reconnect.min;
        nodes.connect_timeout = Span::of(Duration::from_millis(20));
        site.registry.create(nodes).await.unwrap();
        site.registry.create(outgoing("out", "e")).await.unwrap();
        peer.find("a connection", ATTEMPTS, |received| {
            matches!(received.what, What::Connected).then_some(())
        })
        .await;
        site.registry.delete(Sort::Outgoing, "out", OnDelete::Purge).await.unwrap();
        site.registry.delete(Sort::Connection, "broker", OnDelete::Refuse).await.unwrap();
        within("the end of the threads", async {
            while client_threads() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        drop(peer);
    }
    within("the end of the descriptors", async {
        while descriptors() > before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    site.registry.close().await.unwrap();
}
