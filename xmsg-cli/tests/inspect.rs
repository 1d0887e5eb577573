//! `xmsg info`, `connections`, `topics` and `top` for scripts.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use std::time::Duration;

use common::{Running, proxy, within, xmsg};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_asked_without_an_http_server() {
    let (_proxy, address) = proxy().await;
    let _reader = Running::subscribe(&address, &["a"]).await;
    let witness = Running::subscribe(&address, &["a", "-n", "1"]).await;
    let _writer =
        Running::start(&["pub", "a:b", "x", "--rate", "300", "--count", "1000000", "--proxy", &address]);
    witness.end().await.done();

    let info = xmsg(&["info", "--proxy", &address]).await.text();
    let value = |name: &str| {
        let line =
            info.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {info}"));
        line.split('\t').nth(1).unwrap().to_owned()
    };
    assert!(
        value("proxy").contains(&address) && value("proxy").contains(env!("CARGO_PKG_VERSION")),
        "{info}"
    );
    assert_eq!(value("subscribers"), "1, 0 too slow now");
    assert!(value("received").contains("message"), "{info}");
    let document: Value =
        serde_json::from_str(&xmsg(&["info", "--json", "--proxy", &address]).await.text()).unwrap();
    assert!(document["received"]["messages"].as_u64() > Some(0), "{document}");

    let listed = xmsg(&["connections", "--json", "--sort", "messages", "--proxy", &address]).await.text();
    let rows: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        rows.iter().any(|row| row["side"] == "subscriber" && row["queued_messages"].is_u64()),
        "{listed}"
    );
    assert!(rows[0]["messages"].as_u64() > Some(0), "{listed}");

    let topics = xmsg(&["topics", "--for", "1s", "--json", "--proxy", &address]).await.text();
    let row: Value = serde_json::from_str(topics.lines().next().unwrap()).unwrap();
    assert_eq!(row["topic"], "a:b");
    let rate = row["rate"].as_f64().unwrap();
    assert!((30.0..3000.0).contains(&rate), "{topics}");
    assert_eq!(xmsg(&["topics", "b", "--for", "200ms", "--proxy", &address]).await.text(), "");

    let once = xmsg(&["top", "--once", "--proxy", &address]).await.text();
    assert!(once.contains(&address) && once.contains("SLOW FOR") && once.contains("a:b"), "{once}");
    let once: Value =
        serde_json::from_str(&xmsg(&["top", "--once", "--json", "--proxy", &address]).await.text()).unwrap();
    assert!(once["received_per_s"].as_f64() > Some(1.0) && once["topics"][0]["topic"] == "a:b", "{once}");
    let filtered = xmsg(&["top", "--once", "--filter", "nothing like it", "--proxy", &address]).await.text();
    assert!(!filtered.contains("a:b"), "{filtered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_script_reads_goes_on_after_a_restart() {
    let (first, address) = proxy().await;
    let mut top = Running::start(&["top", "--json", "--interval", "200ms", "--proxy", &address]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    within("the end of the proxy", first.stop(Duration::from_secs(5))).await;
    top.said("trying again").await;
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let again = within("another one", async {
        loop {
            match xmsg_proxy::Proxy::bind(&address).start().await {
                Ok(proxy) => return proxy,
                // Another process may have the port for a moment.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await;
    assert_eq!(again.address().publish_port(), port);
    // The command that asks has a connection, too.
    within("a question", async {
        while again.publishers().iter().all(|one| one.received.messages == 0 && again.totals().requests < 4) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    top.signal("TERM");
    let ended = top.end().await;
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
    assert!(ended.stdout.len() > 2, "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_explained() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for command in ["info", "connections", "topics", "top"] {
        xmsg(&[command, "--proxy", &gone]).await.failed(3, &gone);
    }
    xmsg(&["top", "--interval", "1ms"]).await.failed(2, "100ms at least");
    xmsg(&["top", "--sort", "colour"]).await.failed(2, "rate, bytes, queue, drops, name");
}
