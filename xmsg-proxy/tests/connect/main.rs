//! Outgoing connections and channels in the daemons: over HTTP as it is, with real sockets and a real broker
//! at the other end.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which are exact")]

mod site;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use xmsg_core::security::KeyPair;
use xmsg_core::{Connection, Message};
use xmsg_tests::http::{get, post, send};
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::raw::Raw;
use xmsg_tests::{next, patient, topic, within};
use xmsg_zmq::{Push, SocketOptions};

use site::{PROXY, Site, TOKEN, pull, push_to, received, request, served, start_logged, write};

const CONNECT: &str = env!("CARGO_BIN_EXE_xmsg-connect");
/// Messages that are published just before a signal to stop.
const QUEUED: usize = 5_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_added_looked_at_changed_and_deleted() {
    let site = Site::new("").await;
    let (pull, address) = pull().await;
    let mut feed = push_to("feed", &address);
    let (status, created) = site.ask("POST", "/connect/outgoing", &feed.to_string()).await;
    assert_eq!((status, &created["definition"]["name"]), (201, &json!("feed")), "{created}");

    // Each form of data.
    for (body, mime, data) in [
        (json!({ "text": "three" }), "text/string", &b"three"[..]),
        (json!({ "text": "<a/>", "mime": "text/xml" }), "text/xml", b"<a/>"),
        (json!({ "json": { "a": [1] } }), "application/json", br#"{"a":[1]}"#),
        (json!({ "base64": "AP8=" }), "binary/bytes", b"\0\xff"),
    ] {
        let mut body = body;
        (body["topic"], body["confirm"], body["timeout_s"]) = ("orders:new".into(), true.into(), 60.into());
        let told = site.done("POST", "/connect/outgoing/feed/send", &body).await;
        assert!(told["confirmed"] == true && told["sequence"].is_u64() && told["id"].is_string(), "{told}");
        let message = received(&pull).await;
        assert_eq!(message.topic().to_string(), "orders:new");
        assert_eq!(message.mime_type().unwrap(), mime);
        match mime {
            "text/string" => assert_eq!(message.value::<String>().unwrap().as_bytes(), data),
            _ => assert_eq!(&message.data()[..], data),
        }
    }
    let found =
        site.until("/connect/outgoing/feed", "all gone", |found| found["spool"]["entries"] == 0).await;
    assert_eq!(
        (&found["link"]["state"], &found["link"]["counts"]["delivered"]),
        (&"connected".into(), &4.into())
    );
    assert!(site.done("POST", "/connect/outgoing/feed/ping", &Value::Null).await["seconds"].is_f64());

    // Another definition, another name.
    feed["subscribe"] = json!(["feed"]);
    let changed = site.done("PUT", "/connect/outgoing/feed", &feed).await;
    assert_eq!(changed["definition"]["subscribe"], json!(["feed"]));
    site.done("POST", "/connect/outgoing/feed/rename?to=fodder", &Value::Null).await;
    let actor = site.actor();
    let flows = async {
        loop {
            actor.publish(&Message::of("feed:x", 4.5).unwrap()).await.unwrap();
            if let Ok(message) = tokio::time::timeout(Duration::from_millis(50), pull.recv()).await {
                return message.unwrap();
            }
        }
    };
    assert_eq!(&within("what was published", flows).await.frames()[0][..], b"feed:x");
    let rested = site.done("POST", "/connect/outgoing/fodder/disable", &Value::Null).await;
    assert_eq!(rested["definition"]["is_active"], false);
    site.done("POST", "/connect/outgoing/fodder/send", &json!({ "topic": "later", "text": "x" })).await;
    let report =
        site.until("/connect", "it waits", |found| found["outgoing"][0]["spool"]["entries"] != 0).await;
    assert_eq!(report["outgoing"][0]["link"]["state"], "inactive", "{report}");
    let (status, refused) = site.ask("DELETE", "/connect/outgoing/fodder", "").await;
    assert_eq!((status, &refused["kind"]), (409, &"in_use".into()), "{refused}");
    site.done("POST", "/connect/outgoing/fodder/enable", &Value::Null).await;
    site.done("DELETE", "/connect/outgoing/fodder?on_delete=drain&timeout_s=60", &Value::Null).await;
    while received(&pull).await.topic().as_bytes() != b"later" {}
    assert_eq!(site.done("GET", "/connect", &Value::Null).await["outgoing"], json!([]));
    site.daemon.logged(&["outgoing \"fodder\" was deleted", "HTTP from 127.0.0.1:"]).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_with_its_status_kind_and_field() {
    let site = Site::new("").await;
    let (_pull, address) = pull().await;
    site.done("POST", "/connect/outgoing", &push_to("a", &address)).await;
    let mut rejecting = push_to("resting", &address);
    (rejecting["is_active"], rejecting["when_inactive"]) = (false.into(), "reject".into());
    site.done("POST", "/connect/outgoing", &rejecting).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("tcp://{}", silent.local_addr().unwrap());
    site.done("POST", "/connect/outgoing", &push_to("stuck", &nobody)).await;
    let mut used = json!({ "name": "in", "kind": "zmq", "socket_type": "PULL", "socket_method": "bind",
        "address": format!("ipc://{}/in", site.folder.path().display()), "target": "outgoing:stuck" });
    site.done("POST", "/connect/channel", &used).await;
    used["address"] = "udp://x".into();
    let unknown_field = json!({ "name": "b", "prot": 1 });
    for (method, path, body, status, kind, field) in [
        ("GET", "/connect/outgoing/none", json!(null), 404, "unknown", None),
        ("GET", "/connect/connection/none", json!(null), 404, "unknown", None),
        ("GET", "/connect/socket/none", json!(null), 404, "unknown", None),
        ("GET", "/connect/channel/in/dead", json!(null), 404, "unknown", None),
        ("DELETE", "/connect/outgoing/none", json!(null), 404, "unknown", None),
        ("POST", "/connect/channel/none/enable", json!(null), 404, "unknown", None),
        ("POST", "/connect/outgoing/none/send", json!({ "topic": "a", "text": "b" }), 404, "unknown", None),
        ("POST", "/connect/outgoing", push_to("a", &address), 409, "name_taken", None),
        ("POST", "/connect/outgoing/a/rename?to=stuck", json!(null), 409, "name_taken", None),
        ("DELETE", "/connect/outgoing/stuck?on_delete=purge", json!(null), 409, "in_use", None),
        ("POST", "/connect/outgoing", unknown_field, 422, "invalid_definition", Some("prot")),
        ("POST", "/connect/outgoing", json!({}), 422, "invalid_definition", Some("name")),
        ("POST", "/connect/outgoing", push_to("../x", &address), 422, "invalid_definition", Some("name")),
        ("PUT", "/connect/channel/in", used, 422, "invalid_definition", Some("address")),
        ("POST", "/connect/connection/x/enable", json!(null), 422, "invalid_definition", None),
        (
            "POST",
            "/connect/outgoing/a/send",
            json!({ "topic": "*:a", "text": "b" }),
            422,
            "invalid_message",
            Some("topic"),
        ),
        ("POST", "/connect/outgoing/a/send", json!({ "topic": "a" }), 422, "invalid_message", Some("text")),
        (
            "POST",
            "/connect/outgoing/a/send",
            json!({ "topic": "a", "base64": "?" }),
            422,
            "invalid_message",
            Some("base64"),
        ),
        (
            "POST",
            "/connect/outgoing/a/send",
            json!({ "topic": "a", "text": "b", "exchange": "e" }),
            422,
            "invalid_message",
            None,
        ),
        (
            "POST",
            "/connect/outgoing/resting/send",
            json!({ "topic": "a", "text": "b" }),
            503,
            "inactive",
            None,
        ),
        (
            "POST",
            "/connect/outgoing/stuck/send",
            json!({ "topic": "a", "text": "b", "confirm": true, "timeout_s": 0.1 }),
            504,
            "timeout",
            None,
        ),
        ("POST", "/connect/outgoing/stuck/ping?timeout_s=0.1", json!(null), 504, "timeout", None),
        (
            "POST",
            "/connect/outgoing/stuck/ping?timeout_s=-1",
            json!(null),
            400,
            "invalid_request",
            Some("timeout_s"),
        ),
        ("GET", "/connect/outgoing/a/dead?limit=100000", json!(null), 400, "invalid_request", Some("limit")),
        (
            "DELETE",
            "/connect/outgoing/a/dead?sequence=x",
            json!(null),
            400,
            "invalid_request",
            Some("sequence"),
        ),
    ] {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (found, answer) = site.ask(method, path, &text).await;
        assert_eq!((found, &answer["kind"]), (status, &json!(kind)), "{method} {path}: {answer}");
        assert_eq!(answer["field"], json!(field), "{method} {path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|text| text.len() > 10), "{answer}");
    }
    let (status, _) = site.ask("POST", "/connect/outgoing", "{").await;
    assert_eq!(status, 400);
    let (status, answer) = site.ask("POST", "/connect/outgoing", &" ".repeat((1 << 20) + 1)).await;
    assert_eq!((status, &answer["kind"]), (413, &"too_large".into()), "{answer}");
    assert_eq!(site.ask("POST", "/connect/import", "[[outgoing]]\nnam = 1").await.0, 422);
    assert_eq!(site.done("GET", "/connect/outgoing/a/dead", &json!(null)).await, json!({ "dead": [] }));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_or_sends_needs_the_token_and_looking_only_where_there_is_one() {
    let site = Site::new("").await;
    let folder = tempfile::tempdir().unwrap();
    let open = "port = 0\n[connect]\nenabled = true\nstate_dir = \"state\"";
    let mut daemon = start_logged(PROXY, folder.path(), open, &[]);
    daemon.line().await;
    daemon.line().await;
    let without = served(&mut daemon).await;
    let entry = push_to("a", "tcp://127.0.0.1:1").to_string();
    for (method, path, body, changes) in [
        ("GET", "/connect", "", false),
        ("GET", "/connect/export", "", false),
        ("GET", "/connect/outgoing/a", "", false),
        ("GET", "/connect/outgoing/a/dead", "", false),
        ("POST", "/connect/outgoing", &*entry, true),
        ("PUT", "/connect/outgoing/a", &*entry, true),
        ("DELETE", "/connect/outgoing/a", "", true),
        ("POST", "/connect/outgoing/a/enable", "", true),
        ("POST", "/connect/outgoing/a/disable", "", true),
        ("POST", "/connect/outgoing/a/ping", "", true),
        ("POST", "/connect/outgoing/a/rename?to=b", "", true),
        ("POST", "/connect/outgoing/a/send", r#"{"topic":"a","text":"b"}"#, true),
        ("POST", "/connect/outgoing/a/dead/1/revive", "", true),
        ("DELETE", "/connect/outgoing/a/dead", "", true),
        ("POST", "/connect/import", "", true),
    ] {
        for token in [None, Some("another-0123456789abcdef")] {
            let refused = request(&site.admin, token, method, path, body).await;
            assert_eq!(refused.status, 401, "{method} {path}: {}", refused.body);
        }
        // Where there is no token, nobody has shown that they may.
        let answer = request(&without, None, method, path, body).await;
        if changes {
            assert_eq!(answer.status, 403, "{method} {path}: {}", answer.body);
            assert!(answer.body.contains("XMSG_PROXY_ADMIN_TOKEN_FILE"), "{}", answer.body);
        } else {
            assert_ne!(answer.status, 403, "{method} {path}: {}", answer.body);
        }
    }
    assert_eq!(get(&without, "/connect").await.status, 200);
    site.stop().await;
}

/// Whoever reads the log finds out who has changed what, and from where.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_leaves_a_line_in_the_log_that_says_who_made_it() {
    let broker = Broker::shared().await;
    let site = Site::new("").await;
    let (_pull, address) = pull().await;
    let noted = async |what: &str| site.daemon.logged(&[what, "by=\"HTTP from 127.0.0.1:"]).await;
    let mut changed = push_to("feed", &address);
    changed["subscribe"] = json!(["feed"]);
    let mut renamed = push_to("line", &address);
    renamed["lazy"] = true.into();
    let channel = json!({ "name": "in", "kind": "zmq", "socket_type": "PULL", "socket_method": "bind",
        "address": format!("ipc://{}/in", site.folder.path().display()), "target": "topic:feed" });
    let connection = json!({ "name": "broker", "uris": [format!("amqp://127.0.0.1:{}", broker.port())] });
    // No queue is bound to what this is sent to.
    let orders = json!({ "name": "orders", "connection": "broker", "exchange": "amq.direct",
        "routing_key": "log.nowhere", "on_return": "dead_letter" });
    let message = json!({ "topic": "feed:x", "text": "x", "confirm": true, "timeout_s": 60 });
    for (method, path, body, line) in [
        ("POST", "/connect/outgoing", push_to("feed", &address), r#"outgoing "feed" was added"#),
        (
            "POST",
            "/connect/add",
            json!({ "outgoing": [push_to("second", &address)] }),
            r#""second" was added"#,
        ),
        ("POST", "/connect/channel", channel, r#"channel "in" was added"#),
        ("POST", "/connect/connection", connection, r#""broker" was added"#),
        ("POST", "/connect/outgoing", orders, r#"outgoing "orders" was added"#),
        ("PUT", "/connect/outgoing/feed", changed, r#"outgoing "feed" was changed"#),
        ("PUT", "/connect/outgoing/second", renamed, r#""second" was changed, and is "line" now"#),
        ("POST", "/connect/outgoing/feed/rename?to=fodder", Value::Null, r#""feed" is "fodder" now"#),
        ("POST", "/connect/outgoing/fodder/disable", Value::Null, r#""fodder" was disabled"#),
        ("POST", "/connect/outgoing/fodder/enable", Value::Null, r#""fodder" was enabled"#),
        ("POST", "/connect/outgoing/fodder/send", message.clone(), r#"was sent by outgoing "fodder""#),
        ("POST", "/api/v1/publish", json!({ "topic": "a", "text": "b" }), "a message was published"),
        ("POST", "/api/v1/session/links", Value::Null, "a link that begins a session was made"),
        ("DELETE", "/connect/channel/in", Value::Null, r#"channel "in" was deleted"#),
    ] {
        site.done(method, path, &body).await;
        noted(line).await;
    }

    // What was not confirmed was sent all the same.
    let (status, answer) = site.ask("POST", "/connect/outgoing/orders/send", &message.to_string()).await;
    assert_eq!((status, &answer["kind"]), (502, &json!("undeliverable")), "{answer}");
    noted(r#"a message was sent by outgoing "orders", and not confirmed"#).await;
    let has_one = |found: &Value| found["dead"][0]["sequence"].is_u64();
    let found = site.until("/connect/outgoing/orders/dead", "a dead letter", has_one).await;
    let revive = format!("/connect/outgoing/orders/dead/{}/revive", found["dead"][0]["sequence"]);
    site.done("POST", &revive, &Value::Null).await;
    noted(r#"of outgoing "orders" is sent again"#).await;
    site.done("DELETE", "/connect/outgoing/orders/dead", &Value::Null).await;
    noted(r#"dead letters of outgoing "orders" were deleted"#).await;
    site.done("DELETE", "/connect/outgoing/orders?on_delete=purge", &Value::Null).await;
    noted(r#"outgoing "orders" was deleted"#).await;
    let (_, exported) = site.ask("GET", "/connect/export", "").await;
    let (status, answer) = site.ask("POST", "/connect/import", exported.as_str().unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    noted("other definitions were imported").await;

    for path in ["/connections", "/api/v1/connections"] {
        let mut subscriber = Raw::handshake(site.proxy.subscribe_port(), "SUB").await;
        let peer = subscriber.stream.local_addr().unwrap().to_string();
        let row = |found: &Value| {
            let rows = found["connections"].as_array().cloned().unwrap_or_default();
            rows.into_iter().find(|row| row["peer"] == peer.as_str())
        };
        let found =
            site.until("/connz?kind=subscriber", "the subscriber", |found| row(found).is_some()).await;
        let id = row(&found).unwrap()["id"].clone();
        site.done("POST", &format!("{path}/{id}/end"), &Value::Null).await;
        subscriber.closed().await;
        site.daemon.logged(&["an operator ended a connection", &peer, "by=\"HTTP from 127.0.0.1:"]).await;
    }

    // A session has a number, by which what is changed with it is told from what others change.
    let body = json!({ "token": TOKEN }).to_string();
    let begun = send(&site.admin, "POST", "/api/v1/session", "X-Xmsg-Page: 1\r\n", &body).await;
    assert_eq!(begun.status, 200, "{}", begun.body);
    site.daemon.logged(&["a session has begun", "peer=127.0.0.1:", "with=\"the token\""]).await;
    let cookie = begun.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let answer: Value = serde_json::from_str(&begun.body).unwrap();
    let headers = format!(
        "Cookie: {}\r\nX-Xmsg-Page: {}\r\n",
        cookie.split(';').next().unwrap(),
        answer["secret"].as_str().unwrap()
    );
    let disabled = post(&site.admin, "/connect/outgoing/line/disable", &headers).await;
    assert_eq!(disabled.status, 200, "{}", disabled.body);
    let line = noted(r#"outgoing "line" was disabled"#).await;
    assert!(line.contains(", session "), "{line}");
    site.stop().await;
}

/// Paths can't be forgotten in the document: it is made from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_done_is_described() {
    let site = Site::new("").await;
    let document = site.done("GET", "/api/v1/openapi.json", &Value::Null).await;
    let methods = |path: &str| -> BTreeSet<String> {
        document["paths"][path].as_object().unwrap_or_else(|| panic!("{path}")).keys().cloned().collect()
    };
    let set = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<BTreeSet<_>>();
    for (path, all) in [
        ("/connect", &["get"][..]),
        ("/connect/add", &["post"]),
        ("/connect/export", &["get"]),
        ("/connect/import", &["post"]),
        ("/connect/{sort}", &["post"]),
        ("/connect/{sort}/{name}", &["delete", "get", "put"]),
        ("/connect/{sort}/{name}/dead", &["delete", "get"]),
        ("/connect/{sort}/{name}/dead/{sequence}/revive", &["post"]),
        ("/connect/{sort}/{name}/disable", &["post"]),
        ("/connect/{sort}/{name}/enable", &["post"]),
        ("/connect/{sort}/{name}/ping", &["post"]),
        ("/connect/{sort}/{name}/rename", &["post"]),
        ("/connect/{sort}/{name}/send", &["post"]),
        ("/api/v1/overview", &["get"]),
    ] {
        assert_eq!(methods(path), set(all), "{path}");
    }
    let send = &document["components"]["schemas"]["SentMessage"];
    assert!(send["properties"]["routing_key"].is_object() && send["required"] == json!(["topic"]), "{send}");
    let refused = &document["components"]["schemas"]["Refusal"]["properties"];
    assert!(refused["kind"].is_object() && refused["field"].is_object(), "{refused}");
    let queried = document["paths"]["/connect/{sort}/{name}"]["delete"]["parameters"].to_string();
    assert!(queried.contains("on_delete") && queried.contains("purge"), "{queried}");
    site.stop().await;
}

/// Whoever may change definitions is not to read the files of the daemon's user, or have it send them to a
/// broker. What the daemon was started with may name files from anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_named_over_http_are_those_of_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("secrets")).unwrap();
    write(folder.path(), "outside", "hunter2");
    std::os::unix::fs::symlink(folder.path().join("outside"), folder.path().join("secrets/link")).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (outside, link, inside) = (path("outside"), path("secrets/link"), path("secrets/password"));
    let initial = format!(
        "[[connection]]\nname = \"first\"\nuris = [\"amqp://127.0.0.1:1\"]\npassword_file = \"{}\"\n",
        path("from-the-start")
    );
    write(folder.path(), "initial.toml", &initial);
    let broker =
        |field: &str, file: &str| json!({ "name": "crm", "uris": ["amqp://127.0.0.1:1"], field: file });
    let (allowed, settings) = (path("secrets"), "definitions = \"initial.toml\"\nsecrets_dir = \"secrets\"");
    let site = Site::in_folder(folder, settings).await;
    let refused = async |method: &str, path: &str, body: &str, field: &str| {
        let (status, told) = site.ask(method, path, body).await;
        assert_eq!(
            (status, &told["kind"], &told["field"]),
            (422, &json!("invalid_definition"), &json!(field))
        );
        let message = told["message"].as_str().unwrap();
        assert!(message.contains(&allowed) && message.contains("secrets_dir"), "{message}");
    };
    for file in [&*outside, &link, "/etc/passwd", "../outside", "connect.toml"] {
        for field in ["password_file", "ca_file"] {
            refused("POST", "/connect/connection", &broker(field, file).to_string(), field).await;
        }
        let add = json!({ "connection": [broker("ca_file", file)] });
        refused("POST", "/connect/add", &add.to_string(), "ca_file").await;
        let import = initial.replace("from-the-start", "outside");
        refused("POST", "/connect/import", &import, "password_file").await;
    }
    let keys = json!({ "name": "keys", "kind": "zmq", "socket_type": "PUSH", "socket_method": "bind",
        "address": "tcp://127.0.0.1:0", "curve": { "key_file": outside } });
    refused("POST", "/connect/outgoing", &keys.to_string(), "curve").await;
    let spools = format!("[spool]\ndir = \"/tmp\"\n{initial}");
    assert_eq!(site.ask("POST", "/connect/import", &spools).await.0, 409, "spools stay where they are");

    assert_eq!(site.ask("POST", "/connect/connection", &broker("ca_file", &inside).to_string()).await.0, 201);
    refused("PUT", "/connect/connection/crm", &broker("ca_file", &outside).to_string(), "ca_file").await;
    // What was there from the start may stay.
    assert_eq!(site.ask("POST", "/connect/import", &initial).await.0, 200);
    site.stop().await;

    // Unless told otherwise, it is the folder that relative names count from.
    let site = Site::new("").await;
    let added = site.ask("POST", "/connect/connection", &broker("password_file", "crm").to_string()).await;
    assert_eq!(added.0, 201, "{}", added.1);
    let (status, told) =
        site.ask("PUT", "/connect/connection/crm", &broker("ca_file", "/etc/passwd").to_string()).await;
    assert_eq!((status, &told["field"]), (422, &json!("ca_file")), "{told}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_are_kept_exported_and_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (_pull, address) = pull().await;
    let initial = format!(
        "[[outgoing]]\nname = \"first\"\nkind = \"zmq\"\nsocket_type = \"PUSH\"\naddress = \"{address}\"\nlazy = true\n"
    );
    write(folder.path(), "initial.toml", &initial);
    let site = Site::in_folder(folder, "definitions = \"initial.toml\"").await;
    let (status, exported) = site.ask("GET", "/connect/export", "").await;
    let exported = exported.as_str().unwrap().to_owned();
    assert!(
        status == 200 && exported.contains("name = \"first\"") && exported.contains("lazy = true"),
        "{exported}"
    );
    let second = exported.replace("\"first\"", "\"second\"");
    let (status, told) = site.ask("POST", "/connect/import", &second).await;
    assert_eq!((status, &told["outgoing"]), (200, &1.into()), "{told}");
    // What was imported counts, and not what was declared at first.
    let folder = site.stop().await;
    let site = Site::in_folder(folder, "definitions = \"initial.toml\"").await;
    let report = site.done("GET", "/connect", &Value::Null).await;
    assert_eq!(report["outgoing"][0]["definition"]["name"], "second");
    assert_eq!(report["outgoing"].as_array().unwrap().len(), 1);
    let folder = site.stop().await;

    // What is wrong is said before anything starts.
    write(folder.path(), "initial.toml", "[[outgoing]]\nname = \"x\"\n");
    let settings = folder.path().join("settings.toml");
    for arguments in [&["--check-config"][..], &[]] {
        let mut command = Command::new(PROXY);
        command.arg("--config").arg(&settings).args(arguments);
        let output = xmsg_tests::process::finish(command).await;
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("initial.toml: outgoing \"x\": "), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_health_tell_of_them() {
    let site = Site::new("").await;
    let (pull, address) = pull().await;
    site.done("POST", "/connect/outgoing", &push_to("feed", &address)).await;
    let channel = json!({ "name": "in", "kind": "zmq", "socket_type": "PULL", "socket_method": "bind",
        "address": format!("ipc://{}/in", site.folder.path().display()), "target": "outgoing:feed" });
    site.done("POST", "/connect/channel", &channel).await;
    let push = Push::new(SocketOptions::default());
    push.connect(channel["address"].as_str().unwrap().parse().unwrap());
    for _ in 0..3 {
        push.send(["x"]).await.unwrap();
        within("a message", pull.recv()).await.unwrap();
    }
    let is_counted = |found: &Value| found["link"]["counts"]["delivered"] == 3;
    site.until("/connect/outgoing/feed", "all counted", is_counted).await;
    site.until("/connect/channel/in", "all counted", is_counted).await;
    site.done("POST", "/connect/outgoing/feed/disable", &Value::Null).await;
    site.done("POST", "/connect/outgoing/feed/send", &json!({ "topic": "a", "text": "b" })).await;
    site.until("/connect/outgoing/feed", "it rests", |found| found["link"]["state"] == "inactive").await;
    let found = site.metrics().await;
    for (series, value) in [
        (r#"xmsg_outgoing_messages_total{name="feed",result="accepted"}"#, 4.0),
        (r#"xmsg_outgoing_messages_total{name="feed",result="delivered"}"#, 3.0),
        (r#"xmsg_outgoing_messages_total{name="feed",result="dead"}"#, 0.0),
        (r#"xmsg_channel_messages_total{name="in",result="delivered"}"#, 3.0),
        (r#"xmsg_outgoing_connected{name="feed"}"#, 0.0),
        (r#"xmsg_channel_connected{name="in"}"#, 1.0),
        (r#"xmsg_outgoing_in_flight{name="feed"}"#, 0.0),
        (r#"xmsg_spool_entries{name="feed"}"#, 1.0),
        (r#"xmsg_dead_letters{name="feed"}"#, 0.0),
    ] {
        assert_eq!(found.get(series), Some(&value), "{series}: {found:?}");
    }
    assert!(found.contains_key(r#"xmsg_spool_bytes{name="feed"}"#), "{found:?}");
    assert_eq!(get(&site.admin, "/healthz").await.status, 200);
    site.stop().await;
}

/// What the proxy has taken before it is told to stop gets to the peer, or waits in the spool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_loses_nothing_that_was_published() {
    let site = Site::new("").await;
    let (pull, address) = pull().await;
    let mut feed = push_to("feed", &address);
    feed["subscribe"] = json!(["feed"]);
    site.done("POST", "/connect/outgoing", &feed).await;
    let connection = Connection::with_options(site.proxy.clone(), patient()).unwrap();
    within("its subscription", connection.wait_for_subscriber(&topic("feed"))).await.unwrap();
    for number in 0..500 {
        connection.publish(&Message::of("feed", number).unwrap()).await.unwrap();
    }
    within("the proxy has them", connection.flush(xmsg_tests::PATIENCE)).await.unwrap();
    let Site { mut daemon, folder, .. } = site;
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
    assert!(daemon.line().await.contains("undelivered 0"));
    // What could not be handed over in time has waited on disk, and some may come twice.
    let _again = Site::in_folder(folder, "").await;
    let mut arrived = BTreeSet::new();
    while arrived.len() < 500 {
        arrived.insert(received(&pull).await.value::<i32>().unwrap());
    }
    assert_eq!(arrived.last(), Some(&499));
}

/// All that the proxy has confirmed is in the spool at the end, whatever was still on its way there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_proxy_has_queued_for_an_outgoing_connection_gets_to_its_spool() {
    let site = Site::new("").await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut feed = push_to("feed", &format!("tcp://{}", silent.local_addr().unwrap()));
    feed["subscribe"] = json!(["feed"]);
    site.done("POST", "/connect/outgoing", &feed).await;
    let connection = Connection::with_options(site.proxy.clone(), patient()).unwrap();
    within("its subscription", connection.wait_for_subscriber(&topic("feed"))).await.unwrap();
    let message = Message::of("feed", "x".repeat(1000)).unwrap();
    for _ in 0..QUEUED {
        connection.publish(&message).await.unwrap();
    }
    within("the proxy has them", connection.flush(xmsg_tests::PATIENCE)).await.unwrap();
    let mut daemon = site.daemon;
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
    let totals = daemon.line().await;
    assert!(totals.contains("undelivered 0"), "{totals}");
    daemon.logged(&["waits in the spools", &format!("messages={QUEUED}")]).await;
}

/// The proxy lets its own outgoing connections and channels in like others: by a key or a password, with the
/// rights that go with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_with_security_wants_credentials_of_them_too() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = [(); 2].map(|()| KeyPair::generate().unwrap());
    for (name, keys) in [("proxy.key", &ours), ("connect.key", &theirs)] {
        write(folder.path(), name, &format!("secret-key = \"{}\"\n", *keys.secret().expose_text()));
    }
    let more = format!(
        "key_file = \"connect.key\"\n[security]\nmechanism = \"curve\"\nkey_file = \"proxy.key\"\n\
         [[security.client]]\nkey = \"{}\"\n",
        theirs.public()
    );
    let site = Site::in_folder(folder, &more).await;
    let (pull, address) = pull().await;
    let mut feed = push_to("feed", &address);
    feed["subscribe"] = json!(["feed"]);
    site.done("POST", "/connect/outgoing", &feed).await;
    let channel = json!({ "name": "in", "kind": "zmq", "socket_type": "PULL", "socket_method": "bind",
        "address": format!("ipc://{}/in", site.folder.path().display()), "target": "topic:feed" });
    site.done("POST", "/connect/channel", &channel).await;
    let push = Push::new(SocketOptions::default());
    push.connect(channel["address"].as_str().unwrap().parse().unwrap());
    // Both ways through the proxy.
    let flows = async {
        loop {
            push.send(["x"]).await.unwrap();
            if let Ok(message) = tokio::time::timeout(Duration::from_millis(100), pull.recv()).await {
                return message.unwrap();
            }
        }
    };
    assert_eq!(&within("a message", flows).await.frames()[0][..], b"feed");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_rabbitmq_is_filled_and_emptied() {
    let broker = Broker::shared().await;
    let site = Site::new("").await;
    let uri = format!("amqp://127.0.0.1:{}", broker.port());
    site.done("POST", "/connect/connection", &json!({ "name": "broker", "uris": [uri] })).await;
    let channel = json!({ "name": "back", "connection": "broker", "queue": "daemon.test", "queue_declare": "active",
        "target": "topic:back" });
    site.done("POST", "/connect/channel", &channel).await;
    let out = json!({ "name": "out", "connection": "broker", "exchange": "", "routing_key": "daemon.test" });
    site.done("POST", "/connect/outgoing", &out).await;
    let actor = site.actor();
    let mut back = actor.subscribe("back").await.unwrap();
    site.until("/connect/channel/back", "it consumes", |found| found["link"]["state"] == "connected").await;
    let message = json!({ "topic": "orders:new", "text": "17 pieces", "mime": "text/plain", "confirm": true, "timeout_s": 60,
        "properties": { "priority": 3 }, "headers": { "X-Env": "test" } });
    site.done("POST", "/connect/outgoing/out/send", &message).await;
    assert_eq!(&next(&mut back).await.data()[..], b"17 pieces");
    for sort in ["connection/broker", "outgoing/out", "channel/back"] {
        site.done("POST", &format!("/connect/{sort}/ping"), &Value::Null).await;
    }
    let (status, answer) = site.ask("DELETE", "/connect/connection/broker", "").await;
    assert_eq!((status, &answer["kind"]), (409, &"in_use".into()), "{answer}");
    // Where nothing is bound, the broker gives it back.
    let lost =
        json!({ "topic": "a", "text": "b", "routing_key": "nowhere", "confirm": true, "timeout_s": 0.5 });
    assert_eq!(site.ask("POST", "/connect/outgoing/out/send", &lost.to_string()).await.0, 504);
    assert!(site.metrics().await[r#"xmsg_outgoing_messages_total{name="out",result="returned"}"#] >= 1.0);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_have_a_daemon_of_their_own() {
    let proxy = xmsg_tests::proxy().start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (pull, address) = pull().await;
    let definitions = format!(
        "[[outgoing]]\nname = \"feed\"\nkind = \"zmq\"\nsocket_type = \"PUSH\"\naddress = \"{address}\"\nsubscribe = [\"feed\"]\n"
    );
    write(folder.path(), "initial.toml", &definitions);
    let settings = format!(
        "proxy = \"{}\"\nstate_dir = \"state\"\ndefinitions = \"initial.toml\"\n[admin]\ntoken_file = \"token\"\n",
        proxy.address()
    );
    let mut daemon = start_logged(CONNECT, folder.path(), &settings, &[]);
    let line = daemon.line().await;
    assert!(line.ends_with("with 1 outgoing connection, 0 channels"), "{line}");
    let admin = served(&mut daemon).await;
    let site = Site { daemon, proxy: proxy.address().clone(), admin, folder };
    let connection = Connection::with_options(site.proxy.clone(), patient()).unwrap();
    within("its subscription", connection.wait_for_subscriber(&topic("feed"))).await.unwrap();
    connection.publish(&Message::of("feed", "x").unwrap()).await.unwrap();
    assert_eq!(received(&pull).await.value::<String>().unwrap(), "x");
    site.done("POST", "/connect/outgoing/feed/send", &json!({ "topic": "a", "text": "b", "confirm": true }))
        .await;
    assert_eq!(received(&pull).await.value::<String>().unwrap(), "b");
    let found = site.metrics().await;
    assert_eq!((found["xmsg_connect_ready"], found[r#"xmsg_outgoing_connected{name="feed"}"#]), (1.0, 1.0));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(&site.admin, path).await.status, 200);
    }
    let mut daemon = site.daemon;
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
    assert_eq!(daemon.line().await, "xmsg-connect stopped");
    let output = xmsg_tests::process::run(CONNECT, &[]).await;
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.starts_with("xmsg-connect: ") && told.contains("--state-dir"), "{told}");
}
