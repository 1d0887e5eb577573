//! How messages are written, and the content that `xmsg pub` gives them.

mod common;

use std::time::{Duration, Instant};

use common::{Running, proxy, publish, within, xmsg};
use serde_json::{Value, json};
use xmsg_core::data::mime;
use xmsg_core::{Connection, Message, Topic};

/// Returns what a subscriber of `t` writes of messages that are published with these arguments.
async fn written(sub: &[&str], messages: &[&[&str]]) -> String {
    let (_proxy, address) = proxy().await;
    let count = messages.len().to_string();
    let subscriber = Running::subscribe(&address, &[&["t", "-n", &count], sub].concat()).await;
    for arguments in messages {
        publish(&address, arguments, b"").await;
    }
    subscriber.end().await.text()
}

/// The data of this message would take a gigabyte as values, and many times that as a tree of JSON.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_millions_of_values_ends_no_subscriber() {
    let (_proxy, address) = proxy().await;
    // The address space is limited to 800 MiB.
    let limited = r#"ulimit -v 819200; exec "$0" "$@""#;
    let mut subscribing = tokio::process::Command::new("sh");
    subscribing.args(["-c", limited, env!("CARGO_BIN_EXE_xmsg"), "sub", "a", "--json", "-n", "1"]);
    subscribing.args(["--proxy", &address]).env("XMSG_CONFIG", "/dev/null").kill_on_drop(true);
    let publishing = async {
        let publisher = Connection::new(address.as_str()).unwrap();
        publisher.wait_for_subscriber(&Topic::wrap("a")).await.unwrap();
        let data = b"\x7a\0".repeat(20 << 20);
        publisher.publish(&Message::with_mime(Topic::wrap("a"), mime::ARRAY_STRING, data)).await.unwrap();
        publisher
    };
    let (ended, _publisher) =
        within("the subscriber", async { tokio::join!(subscribing.output(), publishing) }).await;
    let ended = ended.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    let (begin, end) = (&ended.stdout[..100], &ended.stdout[ended.stdout.len() - 100..]);
    let shown = [begin, end].map(String::from_utf8_lossy);
    assert!(shown[0].contains(r#""length":41943040"#), "{shown:?}");
    assert!(shown[1].contains(r#""value_error":"the values are too many"#), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_shows_topic_and_data() {
    let messages: [&[&str]; 7] = [
        &["t:a", "hello"],
        &["t:b", "line\n"],
        &["t:c", "--hex", "00ff"],
        &["t", "1.5", "--mime", "binary/double"],
        &["t", "zoë", "--mime", "text/string"],
        &["t", "1,2,3", "--mime", "binary/array-sint32"],
        &["t", ""],
    ];
    let expected = "t:a hello\nt:b line\nt:c <2 bytes: 00 ff>\nt 1.5\nt zoë\nt [1, 2, 3]\nt\n";
    assert_eq!(written(&[], &messages).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_format_says_what_is_written() {
    let format = r"%t|%m|%l|%x|%p|%v%%\t\0\n";
    let text = written(&["--format", format], &[&["t:a", "h\n"]]).await;
    assert_eq!(text, "t:a|binary/bytes|2|680a|h\n|h%\t\0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_one_object_a_line() {
    let messages: [&[&str]; 3] = [
        &["t", "a\"b", "--meta", "author=me", "--meta", "status=warning", "--meta", "severity-id=-1"],
        &["t", "--hex", "ff", "--mime", "image/png"],
        &["t", "[1,2]", "--mime", "binary/array-double"],
    ];
    let text = written(&["--json"], &messages).await;
    let mut objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for object in &mut objects {
        let time = object.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }
    let meta = json!({"author": "me", "status": "warning", "severityId": -1});
    let expected = json!({"topic": "t", "mime": "binary/bytes", "length": 3, "data": "a\"b", "encoding": "utf-8",
        "meta": meta});
    assert_eq!(objects[0], expected);
    let expected =
        json!({"topic": "t", "mime": "image/png", "length": 1, "data": "/w==", "encoding": "base64"});
    assert_eq!(objects[1], expected);
    assert_eq!(objects[2]["value"], json!([1.0, 2.0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_one_file_a_message() {
    let (_proxy, address) = proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let dumps = dir.path().join("new/dumps");
    let subscriber = Running::subscribe(&address, &["t", "-n", "2", "--dump", dumps.to_str().unwrap()]).await;
    publish(&address, &["t", "-0"], b"a\n\0\0").await;
    assert!(subscriber.end().await.done().is_empty());
    assert_eq!(std::fs::read(dumps.join("00000001")).unwrap(), b"a\n");
    assert_eq!(std::fs::read(dumps.join("00000002")).unwrap(), b"");

    // No file is overwritten.
    let subscriber = Running::subscribe(&address, &["t", "--dump", dumps.to_str().unwrap()]).await;
    publish(&address, &["t", "x"], b"").await;
    subscriber.end().await.failed(1, "give --dump an empty directory");
    assert_eq!(std::fs::read(dumps.join("00000001")).unwrap(), b"a\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_counts_each_topic() {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["t", "--report", "-n", "33"]).await;
    let json = Running::subscribe(&address, &["t", "--report", "--json", "-n", "33"]).await;
    publish(&address, &["t:a", "x", "--count", "3"], b"").await;
    publish(&address, &["t:b", "xy", "--count", "2"], b"").await;
    for n in 0..28 {
        publish(&address, &[&format!("t:c:{n:02}"), "x"], b"").await;
    }
    let text = subscriber.end().await.text();
    assert_eq!(text.lines().next().unwrap().split_whitespace().last(), Some("TOPIC"), "{text}");
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let all = lines.iter().rposition(|line| line[3] == "all,").unwrap();
    assert_eq!(lines[all][2], "33", "{text}");
    // There are 20 topics and a line about the rest.
    assert_eq!(lines[all + 1..].len(), 21, "{text}");
    assert_eq!(lines.last().unwrap()[3..], ["10", "more", "topics"], "{text}");

    let text = json.end().await.text();
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum = |topic: &str, what: &str| -> u64 {
        objects.iter().filter(|o| o["topic"] == topic).map(|object| object[what].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("t:a", "messages"), sum("t:a", "bytes")), (3, 3), "{text}");
    assert_eq!((sum("t:b", "messages"), sum("t:b", "bytes"), sum("t:c:27", "messages")), (2, 4, 1), "{text}");
    let last = objects.iter().rfind(|object| object["topic"] == "t:b").unwrap();
    assert_eq!(last["total_messages"], 2);
    assert!(last["seconds"].as_f64().unwrap() >= 0.0 && last["time"].is_string(), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_are_filled_in_when_asked_for() {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["t", "--raw", "-l", "-n", "4"]).await;
    publish(&address, &["t", "{{Count}} {{Random 5}}", "--template", "--count", "3"], b"").await;
    publish(&address, &["t", "{{Count}}"], b"").await;
    let text = subscriber.end().await.text();
    let lines: Vec<_> = text.lines().collect();
    for (n, line) in lines[..3].iter().enumerate() {
        assert_eq!((line.len(), &line[..2]), (7, format!("{} ", n + 1).as_str()));
    }
    assert_ne!(lines[0][2..], lines[1][2..]);
    assert_eq!(lines[3], "{{Count}}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_empty_topic_is_everything() {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["", "-n", "2"]).await;
    publish(&address, &["a:b", "1"], b"").await;
    publish(&address, &["c", "2"], b"").await;
    assert_eq!(subscriber.end().await.text(), "a:b 1\nc 2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_subscribed_to_at_once() {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["a:", "c:d:", "-n", "2"]).await;
    for topic in ["a", "b", "c:d", "a:x", "c:d:e"] {
        publish(&address, &[topic, "1"], b"").await;
    }
    assert_eq!(subscriber.end().await.text(), "a:x 1\nc:d:e 1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_waits_for_a_subscriber() {
    let (_proxy, address) = proxy().await;
    let mut publisher = Running::start(&["-v", "pub", "t:x", "hello", "--wait-sub", "--proxy", &address]);
    publisher.said("waiting for a subscriber of t:x").await;
    let other = Running::subscribe(&address, &["other"]).await;
    let subscriber = Running::subscribe(&address, &["t", "-n", "1"]).await;
    publisher.said("published 1 message (5 bytes) to t:x").await;
    publisher.end().await.done();
    assert_eq!(subscriber.end().await.text(), "t:x hello\n");
    other.signal("INT");
    assert_eq!(other.end().await.code, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept() {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["t", "--raw", "-n", "21"]).await;
    let started = Instant::now();
    publish(&address, &["t", "x", "--count", "21", "--rate", "40"], b"").await;
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert_eq!(subscriber.end().await.done(), [b'x'; 21]);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_any_bytes_are_given_as_hexadecimal_digits() {
    let (_proxy, address) = proxy().await;
    let binary = Running::subscribe(&address, &["--topic-hex", "00FF", "61 3a", "-n", "3", "--json"]).await;
    let everything = Running::subscribe(&address, &["--topic-hex", "", "-n", "4", "--raw"]).await;
    for (topic, data) in [("00ff01", "1"), ("01", "2"), ("00ff", "3"), ("613a62", "4")] {
        publish(&address, &["--topic-hex", topic, data], b"").await;
    }
    let text = binary.end().await.text();
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let arrived: Vec<_> = objects.iter().map(|object| (&object["topic_base64"], &object["data"])).collect();
    let expected =
        [(&json!("AP8B"), &json!("1")), (&json!("AP8="), &json!("3")), (&Value::Null, &json!("4"))];
    assert_eq!(arrived, expected);
    assert_eq!(objects[2]["topic"], "a:b");
    assert_eq!(everything.end().await.text(), "1234");

    for arguments in [&["pub", "--topic-hex", "0", "x"][..], &["sub", "--topic-hex", "a", "xyz"]] {
        xmsg(arguments).await.failed(2, "for '<TOPIC>': it is not hexadecimal, as --topic-hex says");
    }
    xmsg(&["pub", "--topic-hex", "", "x"]).await.failed(2, "it has no bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn wildcards_of_other_systems_get_a_hint_and_are_subscribed_to() {
    let (_proxy, address) = proxy().await;
    for (pattern, instead) in [("weather/#", "`weather:`"), ("a.>", "`a:`"), ("a/b/+", "`a:b:`")] {
        let mut subscriber = Running::start(&["sub", "--proxy", &address, pattern, "-n", "1"]);
        let hint = subscriber.said("is no pattern").await;
        assert!(hint.starts_with(&format!("xmsg: `{pattern}` is no pattern: ")), "{hint}");
        assert!(hint.contains(&format!("subscribe to {instead}")), "{hint}");
        publish(&address, &[pattern, "it", "--wait-sub"], b"").await;
        assert_eq!(subscriber.end().await.text(), format!("{pattern} it\n"));
    }
    let mut replier = Running::start(&["reply", "--proxy", &address, "a/#", "x", "-n", "1"]);
    replier.said("`a/#` is no pattern").await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.xmr");
    let mut recorder = Running::start(&["record", "--proxy", &address, file.to_str().unwrap(), "a/#"]);
    recorder.said("`a/#` is no pattern").await;

    let quiet: [(&str, &[&str]); 2] =
        [("a:b", &["sub", "a:b", "a/b", "c++", "-n", "1"]), ("c:d", &["-q", "sub", "a/#", "c:d", "-n", "1"])];
    for (topic, arguments) in quiet {
        let subscriber = Running::start(&[arguments, &["--proxy", &address]].concat());
        publish(&address, &[topic, "it", "--wait-sub"], b"").await;
        let ended = subscriber.end().await;
        assert_eq!((ended.stderr.as_str(), ended.stdout), ("", format!("{topic} it\n").into_bytes()));
    }
}
