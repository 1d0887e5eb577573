//! What the daemons say over HTTP, to whom, and that nobody who asks can hold up messages.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which are exact")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;
use xmsg_core::{
    Connection, Message, OwnerType, ProxyAddress, Registrar, RegistrarAddress, Registration, Topic,
};
use xmsg_tests::http::{ask, get, get_with, post, samples};
use xmsg_tests::process::Daemon;
use xmsg_tests::raw::{Raw, command};
use xmsg_tests::{PATIENCE, next, patient, topic, within};
use xmsg_zmtp::Command as ZmtpCommand;

const PROXY: &str = env!("CARGO_BIN_EXE_xmsg-proxy");
const REGISTRAR: &str = env!("CARGO_BIN_EXE_xmsg-registrar");

/// Starts a proxy, and reads where it and its HTTP server are.
async fn start(arguments: &[&str]) -> (Daemon, ProxyAddress, String) {
    let mut command = Command::new(PROXY);
    command.args(["--port", "0", "--admin", "127.0.0.1:0"]).args(arguments).env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    let line = daemon.line().await;
    let proxy = line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    let admin = served(&mut daemon).await;
    (daemon, proxy, admin)
}

/// Where it serves HTTP, from its next line.
async fn served(daemon: &mut Daemon) -> String {
    daemon.line().await.strip_prefix("HTTP at http://").unwrap().to_owned()
}

async fn metrics(admin: &str) -> BTreeMap<String, f64> {
    let response = get(admin, "/metrics").await;
    assert_eq!(response.status, 200);
    assert!(
        response.head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{}",
        response.head
    );
    let found = samples(&response.body);
    let documented = include_str!("../../docs/metrics.md");
    for series in found.keys() {
        let name = series.split('{').next().unwrap();
        assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
    }
    found
}

async fn json(admin: &str, path: &str) -> Value {
    json_with(admin, path, "").await
}

async fn json_with(admin: &str, path: &str, headers: &str) -> Value {
    let response = get_with(admin, path, headers).await;
    assert_eq!(response.status, 200, "{path}: {}", response.body);
    assert!(response.head.contains("content-type: application/json"), "{}", response.head);
    serde_json::from_str(&response.body).unwrap()
}

/// Asks again until the answer is as it has to become.
async fn until<T>(what: &str, ask: impl AsyncFn() -> T, good: impl Fn(&T) -> bool) -> T {
    within(what, async {
        loop {
            let answer = ask().await;
            if good(&answer) {
                return answer;
            }
        }
    })
    .await
}

/// A subscriber that the switch knows.
async fn subscriber(proxy: &ProxyAddress, admin: &str, prefix: &'static str) -> Raw {
    let mut subscriber = Raw::handshake(proxy.subscribe_port(), "SUB").await;
    subscriber.send(&command(&ZmtpCommand::Subscribe(prefix.into()))).await;
    let path = format!("/subsz?prefix={prefix}");
    until("the subscription", async || json(admin, &path).await, |found| found["total"] == 1).await;
    subscriber
}

/// A collector that reads the classic format only says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let (_daemon, _proxy, admin) = start(&[]).await;
    let classic = get_with(&admin, "/metrics", "Accept: text/plain;version=0.0.4, */*;q=0.1\r\n").await;
    assert_eq!(classic.status, 200);
    assert!(classic.head.contains("content-type: text/plain; version=0.0.4"), "{}", classic.head);
    let types = "# TYPE xmsg_proxy_messages_received_total counter\nxmsg_proxy_messages_received_total 0\n";
    assert!(classic.body.contains(types), "{}", classic.body);
    assert!(!classic.body.contains("# EOF") && !classic.body.contains("# UNIT"), "{}", classic.body);
    // The same series as without the header, which `metrics` has in the other format.
    let series: BTreeSet<_> = classic
        .body
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let open = metrics(&admin).await;
    assert_eq!(series.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), open.keys().collect::<Vec<_>>());
}

/// Whoever asks for long lists and does not read them takes a bounded part of the memory, which is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_answers_that_nobody_reads_are_bounded() {
    const UNREAD: usize = 20;
    let (_daemon, proxy, admin) = start(&["--memory-limit", "80"]).await;
    // 200 prefixes of 2.5 KiB that are no text: an answer has 2.5 MiB.
    let mut subscriber = Raw::handshake(proxy.subscribe_port(), "SUB").await;
    for number in 0..200_u8 {
        let prefix = [&[0xff, number, 0xfe][..], &[0xff; 2500]].concat();
        subscriber.send(&command(&ZmtpCommand::Subscribe(prefix.into()))).await;
    }
    let subscriptions = async || json(&admin, "/varz").await["proxy"]["subscriptions"].clone();
    until("the subscriptions", subscriptions, |count| *count == 200).await;
    let refused = "xmsg_proxy_admin_refused_requests_total{reason=\"no_room\"}";
    let before = metrics(&admin).await;
    assert_eq!(before[refused], 0.0);

    let mut clients = Vec::new();
    for _ in 0..UNREAD {
        // The kernel is not to take the whole answer.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = within("connect", socket.connect(admin.parse().unwrap())).await.unwrap();
        client.write_all(b"GET /subsz?limit=10000 HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        within("an answer", client.readable()).await.unwrap();
        clients.push(client);
    }
    let found = metrics(&admin).await;
    assert!(found[refused] >= 1.0, "{found:?}");
    let unread = found["xmsg_proxy_memory_used_bytes"] - before["xmsg_proxy_memory_used_bytes"];
    let mib = f64::from(1 << 20);
    assert!((mib..6.0 * mib).contains(&unread), "{unread} bytes are not read");
    let response = get(&admin, "/subsz?limit=10000").await;
    assert_eq!(response.status, 503);
    assert!(response.body.contains("others are not read yet"), "{}", response.body);
    // As soon as they are gone there is room again.
    drop(clients);
    let long = async || get(&admin, "/subsz?limit=10000").await;
    let answer = until("a long answer", long, |answer| answer.status == 200).await;
    assert!(answer.body.len() > 2 << 20);
    let length = format!("content-length: {}", answer.body.len());
    assert!(answer.head.contains(&length), "{}", answer.head);
}

/// An address of IPv4 in the form of IPv6 is the loopback all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_loopback_needs_no_token() {
    let mut command = Command::new(PROXY);
    command.args(["--port", "0", "--host", "::ffff:127.0.0.1", "--admin", "[::ffff:127.0.0.1]:0"]);
    command.env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    daemon.line().await;
    let admin = served(&mut daemon).await;
    let port = admin.rsplit_once(':').unwrap().1;
    assert_eq!(get(&format!("127.0.0.1:{port}"), "/healthz").await.status, 200);
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
    let log = daemon.log_lines();
    assert!(!log.iter().any(|line| line.contains("open to the network")), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_counts_agree_with_the_traffic() {
    let (_daemon, proxy, admin) = start(&[]).await;
    let mut subscriber = subscriber(&proxy, &admin, "a").await;
    let mut publisher = Raw::handshake(proxy.publish_port(), "PUB").await;
    for _ in 0..300 {
        publisher.send_message(&[&b"a:1"[..], b"meta", b"data"]).await;
        publisher.send_message(&[&b"b"[..], b"", b"x"]).await;
    }
    for _ in 0..900 {
        subscriber.next_frame().await.unwrap();
    }
    // 3, 4 and 4 bytes; 1, 0 and 1. A frame's header has two bytes.
    let (matched, unmatched) = (300 * (3 + 4 + 4 + 6), 300 * (1 + 1 + 6));
    let found = until(
        "all of it is counted",
        async || metrics(&admin).await,
        |found| {
            found["xmsg_proxy_messages_delivered_total"] == 300.0
                && found["xmsg_proxy_messages_received_total"] == 600.0
        },
    )
    .await;
    for (name, value) in [
        ("xmsg_proxy_received_bytes_total", f64::from(matched + unmatched)),
        ("xmsg_proxy_delivered_bytes_total", f64::from(matched)),
        ("xmsg_proxy_messages_unmatched_total", 300.0),
        ("xmsg_proxy_messages_dropped_total{reason=\"drop_newest\"}", 0.0),
        ("xmsg_proxy_messages_dropped_total{reason=\"left\"}", 0.0),
        ("xmsg_proxy_connections{side=\"publisher\"}", 1.0),
        ("xmsg_proxy_connections{side=\"subscriber\"}", 1.0),
        ("xmsg_proxy_connections{side=\"control\"}", 0.0),
        ("xmsg_proxy_subscriptions", 1.0),
        ("xmsg_proxy_subscribers_without_series", 0.0),
        ("xmsg_proxy_ready", 1.0),
        (concat!("xmsg_proxy_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ] {
        assert_eq!(found.get(name), Some(&value), "{name} in {found:#?}");
    }
    assert!(found["process_resident_memory_bytes"] > 1e6 && found["process_open_fds"] > 5.0);
    assert!(found["process_start_time_seconds"] > 1.6e9 && found.contains_key("process_cpu_seconds_total"));

    let connz = json(&admin, "/connz?sort=messages").await;
    assert_eq!((&connz["total"], connz["connections"].as_array().unwrap().len()), (&2.into(), 2));
    let (first, second) = (&connz["connections"][0], &connz["connections"][1]);
    assert_eq!(
        (&first["kind"], &first["messages"]),
        (&"publisher".into(), &600.into()),
        "most messages first"
    );
    assert_eq!((&second["kind"], &second["bytes"]), (&"subscriber".into(), &matched.into()));
    assert_eq!((&second["subscriptions"], &second["dropped"]["messages"]), (&1.into(), &0.into()));
    assert!(
        second["peer"].as_str().unwrap().starts_with("127.0.0.")
            && second["connected_s"].as_f64() > Some(0.0)
    );
    assert_ne!(first["id"], second["id"]);
    let page = json(&admin, "/connz?sort=messages&offset=1&limit=1").await;
    assert_eq!(page["connections"].as_array().unwrap().len(), 1);
    assert_eq!(page["connections"][0]["id"], second["id"]);
    let page = json(&admin, "/connz?kind=publisher").await;
    assert_eq!((&page["total"], &page["connections"][0]["id"]), (&1.into(), &first["id"]));
    assert_eq!(json(&admin, "/connz?limit=0").await["connections"], Value::Array(Vec::new()));

    let varz = json(&admin, "/varz").await;
    assert_eq!(varz["proxy"]["received"]["messages"], 600);
    assert_eq!(varz["config"]["admin"]["listen"], "127.0.0.1:0");
    assert_eq!(varz["phase"], "ready");
    assert!(varz["uptime_s"].as_f64() > Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_for_a_violation_is_logged_and_counted_by_reason() {
    const OTHERS: usize = 20;
    let (daemon, proxy, admin) = start(&["--max-message-size", "1"]).await;
    // A frame of 2 MiB.
    let announced = [&[2][..], &(2_u64 << 20).to_be_bytes()].concat();
    let mut attacker = Raw::handshake(proxy.publish_port(), "PUB").await;
    let peer = attacker.stream.local_addr().unwrap().to_string();
    let began = Instant::now();
    attacker.send(&announced).await;
    attacker.closed().await;
    let line = daemon.logged(&["WARN", "connection ended", &peer, "publishers", "message_too_large"]).await;
    assert!(line.contains("limit=1048576") && line.contains("2097161 bytes"), "{line}");
    for _ in 0..OTHERS {
        let mut attacker = Raw::handshake(proxy.publish_port(), "PUB").await;
        attacker.send(&announced).await;
        attacker.closed().await;
    }
    let mut subscriber = Raw::handshake(proxy.subscribe_port(), "SUB").await;
    subscriber.send(&command(&ZmtpCommand::Subscribe(vec![b'x'; 5000].into()))).await;
    subscriber.closed().await;
    daemon.logged(&["WARN", "subscribers", "subscription_too_long", "limit=4096"]).await;
    let mut stranger = Raw::connect(proxy.control_port()).await;
    stranger.send(b"GET / HTTP/1.1\r\n\r\n").await;
    stranger.closed().await;
    daemon.logged(&["WARN", "ROUTER", "not_zmtp"]).await;

    let too_large = "xmsg_proxy_violations_total{reason=\"message_too_large\"}";
    let all = OTHERS as f64 + 1.0;
    let found =
        until("all are counted", async || metrics(&admin).await, |found| found[too_large] == all).await;
    for (reason, count) in [("subscription_too_long", 1.0), ("not_zmtp", 1.0), ("too_many_frames", 0.0)] {
        assert_eq!(found[&format!("xmsg_proxy_violations_total{{reason=\"{reason}\"}}")], count);
    }
    let varz = json(&admin, "/varz").await;
    assert_eq!(varz["proxy"]["violations"]["message_too_large"].as_f64(), Some(all));
    // Three lines in ten seconds.
    let lines = daemon.log_lines().iter().filter(|line| line.contains("message_too_large")).count();
    let most = 3 * (began.elapsed().as_secs() as usize / 10 + 1);
    assert!(lines <= most, "{lines} lines, {most} at most");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drops_are_counted_by_reason_and_subscriber() {
    const MESSAGES: u64 = 1000;
    let (_daemon, proxy, admin) = start(&["--high-water-mark", "1"]).await;
    let slow = subscriber(&proxy, &admin, "a").await;
    let mut publisher = Raw::handshake(proxy.publish_port(), "PUB").await;
    let data = vec![0; 64 << 10];
    for _ in 0..MESSAGES {
        publisher.send_message(&[&b"a"[..], &data]).await;
    }
    let received = "xmsg_proxy_messages_received_total";
    let all = |found: &BTreeMap<String, f64>| found[received] == MESSAGES as f64;
    until("all is received", async || metrics(&admin).await, all).await;
    // Nothing moves any more: the subscriber reads nothing.
    let connz = json(&admin, "/connz?kind=subscriber&sort=drops").await;
    let row = &connz["connections"][0];
    let found = metrics(&admin).await;
    let dropped = found["xmsg_proxy_messages_dropped_total{reason=\"drop_newest\"}"];
    assert!(dropped > 0.0 && dropped < MESSAGES as f64, "{dropped}");
    assert_eq!(row["dropped"]["messages"].as_f64(), Some(dropped));
    assert!(found["xmsg_proxy_dropped_bytes_total{reason=\"drop_newest\"}"] > dropped * 65536.0);
    let series = format!("{{subscriber=\"{}\",peer=\"{}\"}}", row["id"], row["peer"].as_str().unwrap());
    assert_eq!(found[&format!("xmsg_proxy_subscriber_messages_dropped_total{series}")], dropped);
    assert!(found[&format!("xmsg_proxy_subscriber_queue_bytes{series}")] > 65536.0);
    assert!(found["xmsg_proxy_queue_bytes"] < f64::from(4 << 20));

    drop(slow);
    let gone = "xmsg_proxy_connections{side=\"subscriber\"}";
    let found = until("it is gone", async || metrics(&admin).await, |found| found[gone] == 0.0).await;
    let left = found["xmsg_proxy_messages_dropped_total{reason=\"left\"}"];
    assert!(left > 0.0);
    assert_eq!(
        found["xmsg_proxy_messages_delivered_total"] + dropped + left,
        MESSAGES as f64,
        "none is missing"
    );
    assert!(
        !found.contains_key(&format!("xmsg_proxy_subscriber_queue_bytes{series}")),
        "its series has ended"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_are_listed_the_most_wanted_first() {
    let (_daemon, proxy, admin) = start(&[]).await;
    let mut subscribers = Vec::new();
    for number in 0..3 {
        let mut one = Raw::handshake(proxy.subscribe_port(), "SUB").await;
        for prefix in [&b"all"[..], format!("own:{number}").as_bytes(), b"\xff\"\n"] {
            one.send(&command(&ZmtpCommand::Subscribe(prefix.to_vec().into()))).await;
        }
        subscribers.push(one);
    }
    let found =
        until("all are there", async || json(&admin, "/subsz").await, |found| found["subscriptions"] == 9)
            .await;
    assert_eq!(found["total"], 5);
    let prefixes = |found: &Value| -> Vec<(String, u64)> {
        let shown =
            |one: &Value| (one["prefix"].as_str().unwrap().to_owned(), one["subscribers"].as_u64().unwrap());
        found["prefixes"].as_array().unwrap().iter().map(shown).collect()
    };
    assert_eq!(prefixes(&found)[..2], [("all".to_owned(), 3), ("\\xff\\\"\\n".to_owned(), 3)]);
    let own = json(&admin, "/subsz?prefix=own&limit=2").await;
    assert_eq!(prefixes(&own), [("own:0".to_owned(), 1), ("own:1".to_owned(), 1)]);
    assert_eq!((&own["total"], &own["limit"]), (&3.into(), &2.into()));
}

/// Peers choose how long prefixes are, and of what bytes: whoever lists them is not to have the proxy put
/// together hundreds of megabytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_subscriptions_has_a_bound_in_bytes() {
    const LONG: usize = 300;
    let (_daemon, proxy, admin) = start(&[]).await;
    let mut many = Raw::handshake(proxy.subscribe_port(), "SUB").await;
    for number in 0..LONG {
        let mut prefix = format!("{number:03}").into_bytes();
        prefix.resize(4_000, 0xff);
        many.send(&command(&ZmtpCommand::Subscribe(prefix.into()))).await;
    }
    let mut other = Raw::handshake(proxy.subscribe_port(), "SUB").await;
    for prefix in ["last", "000"] {
        other.send(&command(&ZmtpCommand::Subscribe(prefix.into()))).await;
    }
    let list = async || json(&admin, "/subsz?limit=10000").await;
    let found = until("all are there", list, |found| found["subscriptions"] == LONG as u64 + 2).await;
    assert_eq!((&found["total"], &found["limit"]), (&(LONG as u64 + 2).into(), &10_000.into()));
    let shown = found["prefixes"].as_array().unwrap();
    assert!((100..=(512 << 10) / 4_000 + 2).contains(&shown.len()), "{} are shown", shown.len());
}

/// However many there are, the number of time series has a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_some_subscribers_have_series_of_their_own() {
    let (_daemon, proxy, admin) = start(&[]).await;
    let mut subscribers = Vec::new();
    for _ in 0..120 {
        subscribers.push(Raw::handshake(proxy.subscribe_port(), "SUB").await);
    }
    let count = "xmsg_proxy_connections{side=\"subscriber\"}";
    let found = until("all are there", async || metrics(&admin).await, |found| found[count] == 120.0).await;
    for family in ["queue_bytes", "queue_messages", "messages_delivered_total", "messages_dropped_total"] {
        let prefix = format!("xmsg_proxy_subscriber_{family}{{");
        assert_eq!(found.keys().filter(|name| name.starts_with(&prefix)).count(), 100);
    }
    assert_eq!(found["xmsg_proxy_subscribers_without_series"], 20.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_need_the_token_and_it_can_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = ("first-0123456789abcdef", "second-0123456789abcdef");
    let token = folder.path().join("token");
    std::fs::write(&token, format!("{first}\n")).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = folder.path().join("proxy.toml");
    let text = "port = 0\n[log]\nfilter = \"trace\"\n[admin]\nenabled = true\nlisten = \"0.0.0.0:0\"\n";
    std::fs::write(&config, format!("{text}token_file = \"token\"\n")).unwrap();
    let mut command = Command::new(PROXY);
    command.arg("--config").arg(&config).env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    daemon.line().await;
    let admin = served(&mut daemon).await.replace("0.0.0.0", "127.0.0.1");

    let with = async |token: &str| {
        let response = get_with(&admin, "/metrics", &format!("Authorization: Bearer {token}\r\n")).await;
        response.status
    };
    for path in ["/metrics", "/varz", "/connz", "/subsz", "/", "/nowhere"] {
        let response = get(&admin, path).await;
        assert_eq!(response.status, 401, "{path}");
        assert!(response.head.contains("www-authenticate: bearer"), "{}", response.head);
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(&admin, path).await.status, 200, "{path}");
    }
    assert_eq!((with(first).await, with(second).await, with("").await), (200, 401, 401));
    assert_eq!(get_with(&admin, "/metrics", &format!("Authorization: Basic {first}\r\n")).await.status, 401);
    assert_eq!(
        get_with(&admin, "/metrics", &format!("Authorization: bearer {first}x\r\n")).await.status,
        401
    );

    std::fs::write(&token, second).unwrap();
    daemon.signal("HUP").await;
    daemon.logged(&["the tokens of the HTTP server"]).await;
    assert_eq!((with(first).await, with(second).await), (401, 200));

    // Others on this machine could read it.
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    daemon.signal("HUP").await;
    daemon.logged(&["not reloaded", "chmod 600"]).await;
    assert_eq!(with(second).await, 200);

    // Without one, others could ask.
    std::fs::write(&config, text).unwrap();
    daemon.signal("HUP").await;
    daemon.logged(&["not reloaded", "without a token"]).await;
    assert_eq!((with("").await, with(second).await), (401, 200));

    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
    let log = daemon.log_lines().join("\n");
    assert!(!log.contains(first) && !log.contains(second), "it is not logged");
}

/// A token, the file that it is in, and the header that brings it.
fn token_file() -> (tempfile::NamedTempFile, String) {
    let (file, token) = (tempfile::NamedTempFile::new().unwrap(), "token-0123456789abcdef");
    std::fs::write(&file, token).unwrap();
    (file, format!("Authorization: Bearer {token}\r\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_ends_a_connection_has_to_bring_the_token() {
    let (file, right) = token_file();
    let (daemon, proxy, admin) = start(&["--admin-token-file", file.path().to_str().unwrap()]).await;
    let mut publisher = Raw::handshake(proxy.publish_port(), "PUB").await;
    let peer = publisher.stream.local_addr().unwrap().to_string();
    let connz = async || json_with(&admin, "/connz", &right).await;
    let found = until("the publisher", connz, |found| found["total"] == 1).await;
    let id = found["connections"][0]["id"].as_u64().unwrap();
    let path = format!("/connections/{id}/end");
    for headers in ["", "Authorization: Bearer token-0123456789abcdeX\r\n"] {
        let response = post(&admin, &path, headers).await;
        assert_eq!(response.status, 401, "{headers}");
        assert!(response.head.contains("www-authenticate: bearer"), "{}", response.head);
    }
    for unknown in ["0", "4294967295", "4294967296", "-1", "abc", "%0a", "1%2f2"] {
        let response = post(&admin, &format!("/connections/{unknown}/end"), &right).await;
        assert_eq!(response.status, 404, "{unknown}");
        assert!(response.body.contains("/connz lists"), "{}", response.body);
    }
    assert_eq!(get_with(&admin, &path, &right).await.status, 405, "to look at it ends nothing");
    publisher.is_read().await;
    assert!(!daemon.log_lines().iter().any(|line| line.contains("an operator ended")));

    let response = post(&admin, &path, &right).await;
    assert_eq!(response.status, 200, "{}", response.body);
    let found: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(found, serde_json::json!({ "id": id, "peer": peer, "side": "publisher" }));
    publisher.closed().await;
    let line = daemon
        .logged(&["WARN", "an operator ended a connection", &peer, "publisher", "HTTP from 127.0.0.1"])
        .await;
    assert!(line.contains(&format!("id={id}")), "{line}");
    until("it is gone", connz, |found| found["total"] == 0).await;
    assert_eq!(post(&admin, &path, &right).await.status, 404, "nobody else gets its ID");
}

/// On the loopback, whoever is on the machine may look, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_nobody_ends_a_connection() {
    let (_daemon, proxy, admin) = start(&[]).await;
    let mut publisher = Raw::handshake(proxy.publish_port(), "PUB").await;
    let found =
        until("the publisher", async || json(&admin, "/connz").await, |found| found["total"] == 1).await;
    let id = &found["connections"][0]["id"];
    for path in [format!("/connections/{id}/end"), "/connections/0/end".to_owned()] {
        for headers in ["", "Authorization: Bearer token-0123456789abcdef\r\n"] {
            let response = post(&admin, &path, headers).await;
            assert_eq!(response.status, 403, "{path}: {}", response.body);
            assert!(response.body.contains("--admin-token-file"), "{}", response.body);
        }
    }
    publisher.is_read().await;
}

/// A subscriber that does not read holds a publisher. Whichever of them is ended, nothing else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_publisher_can_be_ended_and_so_can_who_is_held() {
    const MESSAGES: usize = 800;
    let (file, right) = token_file();
    let arguments = ["--slow-subscriber", "block", "--high-water-mark", "1", "--admin-token-file"];
    let (daemon, proxy, admin) = start(&[&arguments[..], &[file.path().to_str().unwrap()]].concat()).await;
    let connz = async |query: &str| json_with(&admin, &format!("/connz?{query}"), &right).await;
    let wanted_by = async |count: usize| {
        let ask = async || json_with(&admin, "/subsz?prefix=a", &right).await;
        until("the subscription", ask, |found| found["subscriptions"] == count).await;
    };
    let reader = Connection::with_options(proxy.clone(), patient()).unwrap();
    let mut messages = reader.subscribe([topic("a")]).await.unwrap();
    let (count, mut counted) = tokio::sync::watch::channel(0);
    // It takes what comes, all the time.
    tokio::spawn(async move {
        while messages.next().await.is_some() {
            count.send_modify(|count| *count += 1);
        }
    });
    let stall = async || {
        let mut subscriber = Raw::handshake(proxy.subscribe_port(), "SUB").await;
        subscriber.send(&command(&ZmtpCommand::Subscribe("a".into()))).await;
        wanted_by(2).await;
        subscriber
    };
    let publish = || {
        let port = proxy.publish_port();
        tokio::spawn(async move {
            let mut publisher = Raw::handshake(port, "PUB").await;
            let data = vec![0; 64 << 10];
            for sent in 0..MESSAGES {
                if !publisher.try_send(&xmsg_tests::raw::message(&[&b"a"[..], b"", &data])).await {
                    return (sent, publisher);
                }
            }
            (MESSAGES, publisher)
        })
    };
    // The subscriber for whom publishers wait.
    let holder = async |stalled: &Raw| {
        let peer = stalled.stream.local_addr().unwrap().to_string();
        daemon.logged(&["publishers wait for it", &peer]).await;
        let found = connz("kind=subscriber").await;
        let found = found["connections"].as_array().unwrap().iter().find(|row| row["peer"] == *peer);
        (found.unwrap()["id"].clone(), peer)
    };
    let end = async |id: &Value| {
        let response = post(&admin, &format!("/connections/{id}/end"), &right).await;
        assert_eq!(response.status, 200, "{}", response.body);
    };

    let mut stalled = stall().await;
    let publishing = publish();
    let (id, peer) = holder(&stalled).await;
    assert!(!publishing.is_finished());
    end(&id).await;
    stalled.closed().await;
    daemon.logged(&["WARN", "an operator ended a connection", &peer, "subscriber"]).await;
    within("all arrives", counted.wait_for(|count| *count == MESSAGES)).await.unwrap();
    let (sent, mut publisher) = within("all is sent", publishing).await.unwrap();
    assert_eq!(sent, MESSAGES);
    publisher.is_read().await;
    assert_eq!(connz("kind=subscriber").await["total"], 1, "the other one has stayed");

    // The other way round: what ends is the publisher, while it is not read.
    let mut stalled = stall().await;
    let publishing = publish();
    holder(&stalled).await;
    let found = connz("kind=publisher&sort=id").await["connections"].clone();
    // The last one that came. Clients of ours that only subscribe have a connection here, too.
    let found = found.as_array().unwrap();
    let waiting = found.last().unwrap();
    end(&waiting["id"]).await;
    let ended = within("the publisher is ended", publishing).await.unwrap();
    assert!(ended.0 < MESSAGES);
    daemon
        .logged(&["WARN", "an operator ended a connection", waiting["peer"].as_str().unwrap(), "publisher"])
        .await;
    let ask = async || connz("kind=publisher").await;
    until("it is gone", ask, |now| now["total"] == found.len() - 1).await;
    publisher.is_read().await;
    assert_eq!(connz("kind=subscriber").await["total"], 2);
    stalled.next_frame().await.unwrap();
    let disconnected = json_with(&admin, "/varz", &right).await["proxy"]["subscribers_disconnected"].clone();
    assert_eq!(disconnected, 0, "nobody was cut off for being slow");
}

/// Whoever has connected has so long to ask, also when others need its place, and its address has many.
const TIME_TO_ASK: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_the_token_is_slow_and_holds_up_nobody_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (token, right) = (folder.path().join("token"), "right-0123456789abcdef");
    std::fs::write(&token, right).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (daemon, _, admin) = start(&["--admin-token-file", token.to_str().unwrap()]).await;
    let guesses = futures::future::join_all((0..200).map(|number| {
        let admin = &admin;
        async move {
            loop {
                // More connections than there may be: whoever waits is cut off for the next one.
                if let Ok(mut stream) = TcpStream::connect(admin).await {
                    let request =
                        format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer guess-{number}\r\n\r\n");
                    let _ = stream.write_all(request.as_bytes()).await;
                    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await;
                }
            }
        }
    }));
    let header = format!("Authorization: Bearer {right}\r\n");
    let wrong = "xmsg_proxy_admin_refused_requests_total{reason=\"wrong_token\"}";
    let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n");
    let ours = {
        let admin = admin.clone();
        async move {
            // Once it goes on, and for a while.
            let mut counted = 0.0;
            while counted < 500.0 {
                let begun = Instant::now();
                let mut stream = TcpStream::connect(&admin).await.unwrap();
                let is_written = stream.write_all(request.as_bytes()).await.is_ok();
                let asked = begun.elapsed();
                let mut answer = String::new();
                let _ = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await;
                if !is_written || answer.is_empty() {
                    assert!(asked >= TIME_TO_ASK, "cut off, although it has asked after {asked:?}");
                    continue;
                }
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                counted = samples(body)[wrong];
            }
        }
    };
    // In a task of its own: it is not to wait while the others are polled.
    let ours = tokio::spawn(ours);
    let done = async {
        tokio::select! {
            _ = guesses => panic!("guessing never ends"),
            done = ours => done,
        }
    };
    within("many guesses", done).await.unwrap();
    daemon.logged(&["was refused", "a wrong token", "127.0.0.1"]).await;
    let lines = daemon.log_lines().iter().filter(|line| line.contains("was refused")).count();
    assert!(lines < 200, "{lines} lines");
    assert!(!daemon.log_lines().iter().any(|line| line.contains("guess-") || line.contains(right)));

    // Whoever is alone waits a moment for its answer, and gets it.
    let response = get_with(&admin, "/metrics", "Authorization: Bearer another\r\n").await;
    assert_eq!(response.status, 401);
    assert_eq!(get(&admin, "/metrics").await.status, 401);
    let found = samples(&get_with(&admin, "/metrics", &header).await.body);
    assert!(found["xmsg_proxy_admin_refused_requests_total{reason=\"no_token\"}"] >= 1.0);
    assert!(
        json_with(&admin, "/varz", &header).await["admin_refused_requests"]["wrong_token"].as_u64()
            >= Some(500)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_counted_by_what_became_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        let mode = PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(folder.path().join(name), mode).unwrap();
    };
    file("passwords", &format!("alice:{}\n", *xmsg_proxy::security::hash_password("sesame").unwrap()));
    file(
        "proxy.toml",
        "[security]\nmechanism = \"plain\"\npassword_file = \"passwords\"\n[[security.client]]\n",
    );
    let config = folder.path().join("proxy.toml");
    let (daemon, proxy, admin) = start(&["--config", config.to_str().unwrap()]).await;
    let connect = async |user: &str, password: &str| {
        let password = xmsg_core::security::Password::new(password).unwrap();
        let security = xmsg_core::security::Security::PlainClient { user: user.into(), password };
        let connection = Connection::with_options(proxy.clone(), patient().security(security)).unwrap();
        within("an answer", connection.connect()).await
    };
    connect("alice", "sesame").await.unwrap();
    connect("alice", "wrong").await.unwrap_err();
    let found = metrics(&admin).await;
    let count = |outcome: &str| found[&format!("xmsg_proxy_logins_total{{outcome=\"{outcome}\"}}")];
    // A connection is of two or three ports: the first is checked, or the first few, if they come together.
    assert!(count("admitted") >= 1.0 && count("admitted") + count("recognized") >= 2.0, "{found:#?}");
    assert!(count("refused") >= 1.0);
    daemon.logged(&["not let in", "alice", "127.0.0.1"]).await;
    assert!(!daemon.log_lines().iter().any(|line| line.contains("sesame") || line.contains("wrong\"")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_stops_it_is_alive_but_not_ready() {
    let (mut daemon, proxy, admin) = start(&["--linger", "60"]).await;
    assert_eq!(get(&admin, "/readyz").await.body, "ready\n");
    // Somebody who does not take leave, so that stopping takes a while.
    let silent = Raw::handshake(proxy.publish_port(), "PUB").await;
    daemon.signal("TERM").await;
    let draining =
        until("it drains", async || get(&admin, "/readyz").await, |found| found.status == 503).await;
    assert_eq!(draining.body, "draining\n");
    assert_eq!(get(&admin, "/healthz").await.status, 200);
    assert_eq!(metrics(&admin).await["xmsg_proxy_ready"], 0.0);
    assert_eq!(json(&admin, "/varz").await["phase"], "draining");
    drop(silent);
    assert!(daemon.line().await.starts_with("xmsg-proxy stopped"));
    assert!(daemon.end().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_nothing_but_its_own_connection() {
    let (daemon, _, admin) = start(&[]).await;
    let long = "x".repeat(100_000);
    let headers = "A: b\r\n".repeat(1000);
    let host = format!("Host: {admin}\r\nConnection: close\r\n");
    for (request, statuses) in [
        (b"\0\xff\x01\x02\r\n\r\n".to_vec(), &[400][..]),
        (xmsg_tests::raw::greeting(3, 1).to_vec(), &[400]),
        (b"GET / HTTP/9.9\r\n\r\n".to_vec(), &[400, 505]),
        (format!("GET /{long} HTTP/1.1\r\n{host}\r\n").into_bytes(), &[400, 414, 431]),
        (format!("GET / HTTP/1.1\r\n{host}A: {long}\r\n\r\n").into_bytes(), &[400, 431]),
        (format!("GET / HTTP/1.1\r\n{host}{headers}\r\n").into_bytes(), &[400, 431]),
        (format!("POST /varz HTTP/1.1\r\n{host}Content-Length: 99999999999\r\n\r\nx").into_bytes(), &[405]),
        (format!("DELETE /connz HTTP/1.1\r\n{host}\r\n").into_bytes(), &[405]),
        (format!("GET /../../etc/passwd HTTP/1.1\r\n{host}\r\n").into_bytes(), &[404]),
        (format!("GET /connz?limit=-1 HTTP/1.1\r\n{host}\r\n").into_bytes(), &[400]),
        (format!("GET /connz?limit=10001 HTTP/1.1\r\n{host}\r\n").into_bytes(), &[400]),
        (format!("GET /connz?offset=18446744073709551615 HTTP/1.1\r\n{host}\r\n").into_bytes(), &[200]),
        (format!("GET /connz?nothing=1 HTTP/1.1\r\n{host}\r\n").into_bytes(), &[400]),
        (format!("GET /subsz?limit=0 HTTP/1.1\r\n{host}\r\n").into_bytes(), &[200]),
        (b"GET /varz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_vec(), &[403]),
        (
            b"GET http://evil.example/varz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
            &[403],
        ),
        (b"GET /varz HTTP/1.0\r\n\r\n".to_vec(), &[200]),
        (format!("HEAD /metrics HTTP/1.1\r\n{host}\r\n").into_bytes(), &[200]),
    ] {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        // A connection that is cut while we still send gives no answer.
        if let Some(response) = ask(&admin, &request).await {
            assert!(statuses.contains(&response.status), "{shown:?}: {}", response.head);
        } else {
            assert!(request.len() > 16 << 10, "{shown:?}: no answer");
        }
        assert_eq!(get(&admin, "/healthz").await.status, 200, "after {shown:?}");
    }
    assert!(daemon.log_lines().is_empty(), "nothing of this is worth a line: {:?}", daemon.log_lines());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_hold_up_nobody() {
    const MESSAGES: i32 = 20_000;
    let (_daemon, proxy, admin) = start(&["--slow-subscriber", "block"]).await;
    let connect = || Connection::with_options(proxy.clone(), patient()).unwrap();
    let (publisher, subscriber) = (connect(), connect());
    let mut messages = subscriber.subscribe([topic("a")]).await.unwrap();
    let idle = async {
        let mut open = std::collections::VecDeque::new();
        for number in 0..1000 {
            let mut stream = within("connect", TcpStream::connect(&admin)).await.unwrap();
            // Some say nothing, some stop in the middle, some ask again and again and read nothing.
            let started = match number % 3 {
                0 => String::new(),
                1 => "GET /metrics HTTP/1.1\r\nHost: ".to_owned(),
                _ => format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\n\r\n").repeat(100),
            };
            // It may have been cut off already.
            let _ = stream.write_all(started.as_bytes()).await;
            open.push_back(stream);
            // This process may have few descriptors.
            if open.len() > 500 {
                open.pop_front();
            }
            if number % 100 == 0 {
                assert_eq!(get(&admin, "/healthz").await.status, 200, "after {number}");
            }
        }
        open
    };
    let traffic = async {
        for number in 0..MESSAGES {
            publisher.publish(&Message::of(topic("a"), number).unwrap()).await.unwrap();
            if number % 100 == 99 {
                for number in number - 99..=number {
                    assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), number);
                }
            }
        }
    };
    let (open, ()) = tokio::join!(idle, traffic);
    let found = metrics(&admin).await;
    assert!(found["xmsg_proxy_messages_received_total"] >= f64::from(MESSAGES));
    assert!(found["process_open_fds"] < 150.0, "few are held: {}", found["process_open_fds"]);
    assert!(open.len() >= 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registrar_says_how_it_is() {
    let mut command = Command::new(REGISTRAR);
    command.args(["--port", "0", "--admin", "0"]).env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    let line = daemon.line().await;
    let address: RegistrarAddress =
        line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    let admin = served(&mut daemon).await;
    let client =
        Registrar::builder(address).registration_timeout(PATIENCE).renewal_interval(None).build().unwrap();
    let topic = Topic::new("a", "b").unwrap();
    for (owner, name) in
        [(OwnerType::Publisher, "p"), (OwnerType::Publisher, "q"), (OwnerType::Subscriber, "s")]
    {
        let registration = Registration::new(owner, name, &topic, &ProxyAddress::default());
        client.register(&registration).await.unwrap();
    }
    // An answer may have arrived before the registrar notes that it is written.
    let found = within("the end of the last answer", async {
        loop {
            let found = metrics(&admin).await;
            if found["xmsg_registrar_queue_bytes"] == 0.0 {
                return found;
            }
        }
    })
    .await;
    for (name, value) in [
        ("xmsg_registrar_registrations{owner=\"publisher\"}", 2.0),
        ("xmsg_registrar_registrations{owner=\"subscriber\"}", 1.0),
        ("xmsg_registrar_requests_total", 3.0),
        ("xmsg_registrar_requests_refused_total", 0.0),
        (concat!("xmsg_registrar_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
        ("xmsg_registrar_ready", 1.0),
        ("xmsg_registrar_memory_ended_total", 0.0),
    ] {
        assert_eq!(found.get(name), Some(&value), "{name} in {found:#?}");
    }
    assert!(found["xmsg_registrar_connections"] >= 1.0);
    let (used, limit) =
        (found["xmsg_registrar_memory_used_bytes"], found["xmsg_registrar_memory_limit_bytes"]);
    assert!(0.0 < used && used < limit, "{used} of {limit}");
    assert_eq!(json(&admin, "/varz").await["registrar"]["publishers"], 2);
    assert_eq!(get(&admin, "/healthz").await.status, 200);
    assert_eq!(get(&admin, "/readyz").await.status, 200);
    assert_eq!(get(&admin, "/connz").await.status, 404, "that is for proxies");
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
}

/// The server answers on its own when the runtime that moves messages does not get on.
#[test]
fn a_stuck_runtime_is_not_healthy() {
    use xmsg_proxy::admin::{Admin, Sources};
    let build = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stuck = build();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = stuck
        .block_on(async { Admin::start(socket, "test", Sources::default(), None, Value::Null).unwrap() });
    let address = admin.address().to_string();
    // From here on nobody drives the runtime.
    let asking = build();
    let response = asking.block_on(get(&address, "/healthz"));
    assert_eq!(response.status, 503);
    assert!(response.body.contains("stuck"), "{}", response.body);
    assert_eq!(asking.block_on(get(&address, "/readyz")).status, 200);
    let served = stuck.block_on(async {
        let address = address.clone();
        let asked = tokio::spawn(async move { get(&address, "/healthz").await.status });
        asked.await.unwrap()
    });
    assert_eq!(served, 200);
    stuck.block_on(admin.stop());
    assert!(std::net::TcpStream::connect(&address).is_err(), "it has ended");
}

/// A port that is taken is named, as are those of messages.
#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = xmsg_tests::process::run(Path::new(PROXY), &["--port", "0", "--admin", &address]).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&address) && error.contains("--admin") && error.contains("in use"), "{error}");
}
