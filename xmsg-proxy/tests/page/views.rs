//! Every view with something in it, in light and in dark colours, and on a phone.

use serde_json::json;
use xmsg_core::{OwnerType, ProxyAddress, Registration, Topic};
use xmsg_tests::within;

use super::browser::Browser;
use super::site::Site;

/// How the page is looked at: a name, whether colours are dark, and the width and the height of the window.
const LOOKS: [(&str, bool, u32, u32); 3] =
    [("light", false, 1280, 900), ("dark", true, 1280, 900), ("phone", false, 390, 844)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_can_use_every_view_in_every_look() {
    let site = Site::with_registrar().await;
    let slow = site.stalled_subscriber("flood:").await;
    let flood = site.flood("flood:camera").await;
    let steady = site.flow("level:tank", "level:").await;
    // What is watched is not to change while it is looked at.
    let calm = site.publish_each(&[b"calm:one"], std::time::Duration::from_millis(500)).await;
    let topic = Topic::new("level", "tank").expect("a topic");
    let gauge = Registration::new(OwnerType::Publisher, "gauge", &topic, &ProxyAddress::default());
    within("a registration", site.registrar().register(&gauge)).await.expect("it is registered");
    let nobody = "tcp://127.0.0.1:1";
    for (sort, definition) in [
        ("outgoing", json!({ "name": "feed", "kind": "zmq", "socket_type": "PUSH", "address": nobody })),
        (
            "channel",
            json!({ "name": "in", "kind": "zmq", "socket_type": "PULL", "socket_method": "connect", "address": nobody, "target": "topic:line" }),
        ),
        ("connection", json!({ "name": "broker", "uris": ["amqp://127.0.0.1:1"] })),
    ] {
        site.declare(sort, &definition).await;
    }
    site.log.push(b" WARN slow subscriber peer=127.0.0.1:50000\n");
    site.log.push(b" ERROR the disk is full\n");
    let browser = Browser::start().await;
    browser.log_in(&site.link()).await;
    for (look, is_dark, width, height) in LOOKS {
        browser.resize(width, height).await;
        browser.dark(is_dark).await;
        for (path, title, shown) in [
            ("overview", "Overview", slow.peer()),
            ("connections", "Connections", slow.peer()),
            ("topics", "Topics", "level:tank"),
            ("messages?topic=calm", "Messages", "calm:one"),
            ("topology", "Topology", "level:tank"),
            ("registrations", "Registrations", "gauge"),
            ("connect", "Outgoing and channels", "amqp://127.0.0.1:1"),
            ("settings", "Settings", "tcp.keepalive_s"),
            ("log", "Log", "the disk is full"),
        ] {
            browser.open(&site.url(&format!("#/{path}"))).await;
            browser.find("heading", title).await;
            browser.reads(shown).await;
            let name = path.split('?').next().unwrap_or(path);
            browser.check(&format!("{name}, {look}")).await;
            browser.picture(&format!("{name}-{look}")).await;
        }
    }
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop((slow, flood, steady, calm));
    browser.close().await;
}
