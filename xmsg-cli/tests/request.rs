//! Requests and replies, and pings.

mod common;

use std::time::Duration;

use common::{Running, proxy, publish, within, xmsg};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Starts `xmsg reply` and waits until it is ready.
async fn reply(address: &str, arguments: &[&str]) -> Running {
    let mut running = Running::start(&[&["-v", "reply", "--proxy", address], arguments].concat());
    running.said("ready").await;
    running
}

/// Returns the output of a request with these arguments and this input. The request must succeed.
async fn ask(address: &str, arguments: &[&str], input: &[u8]) -> String {
    let mut running = Running::start(&[&["req", "--proxy", address, "--timeout", "30s"], arguments].concat());
    if !input.is_empty() {
        running.type_in(input).await;
    }
    running.end().await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_topics_get_the_same_data() {
    let (_proxy, address) = proxy().await;
    let replier = reply(&address, &["a", "b", "42", "--mime", "binary/sfixed32", "-n", "3"]).await;
    assert_eq!(ask(&address, &["a", "x"], b"").await, "42\n");
    let json: serde_json::Value =
        serde_json::from_str(&ask(&address, &["b:c", "x", "--json"], b"").await).unwrap();
    assert_eq!((&json["value"], &json["mime"]), (&42.into(), &"binary/sfixed32".into()));
    assert_eq!(ask(&address, &["a", "x", "--format", "%m %l\\n"], b"").await, "binary/sfixed32 5\n");
    let ended = replier.end().await;
    assert!(ended.stderr.contains("answered 3 of 3 requests; ignored 0 messages"), "{}", ended.stderr);
    ended.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_replies_comes_from_files_and_templates() {
    let (_proxy, address) = proxy().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{{Count}}\n").unwrap();
    let replier = reply(&address, &["a", "-f", file.path().to_str().unwrap(), "--template", "-n", "2"]).await;
    assert_eq!(ask(&address, &["a", "x", "-n", "2", "--raw"], b"").await, "1\n2\n");
    replier.end().await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_is_what_was_sent() {
    let (_proxy, address) = proxy().await;
    let echo = reply(&address, &["echo", "--echo"]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "of a file").unwrap();
    let cases: [(&[&str], &[u8], &str); 8] = [
        (&["of an argument"], b"", "of an argument\n"),
        (&["-f", file.path().to_str().unwrap()], b"", "of a file\n"),
        (&["-"], b"of input", "of input\n"),
        (&[], b"of input\n", "of input\n"),
        (&["00ff", "--hex"], b"", "<2 bytes: 00 ff>\n"),
        (&["eHl6", "--base64", "--raw"], b"", "xyz"),
        (&["1.5", "--mime", "binary/double", "--format", "%v %m"], b"", "1.5 binary/double"),
        (&["{{Count}}", "--template", "-n", "3", "--raw", "-l"], b"", "1\n2\n3\n"),
    ];
    for (arguments, input, expected) in cases {
        assert_eq!(ask(&address, &[&["echo"], arguments].concat(), input).await, expected, "{arguments:?}");
    }
    let json = ask(&address, &["echo", "x", "--meta", "author=me", "--json"], b"").await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["meta"], serde_json::json!({"author": "me"}));

    echo.signal("INT");
    assert_eq!(echo.end().await.code, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_any_bytes_are_asked_and_answered() {
    let (_proxy, address) = proxy().await;
    let command = "printf '%s %s' \"$XMSG_TOPIC\" $XMSG_TOPIC_HEX";
    let replier = reply(&address, &["--topic-hex", "00ff", "61 3a", "--command", command, "-n", "3"]).await;
    for (topic, answer) in [("00FF 0a", " 00ff0a"), ("613a62", "a:b 613a62")] {
        assert_eq!(ask(&address, &["--topic-hex", topic, ""], b"").await, format!("{answer}\n"));
    }
    assert_eq!(ask(&address, &["a:c", ""], b"").await, "a:c 613a63\n");
    replier.end().await.done();
    for arguments in [&["req", "--topic-hex", "x", ""][..], &["reply", "--topic-hex", "x", "1"]] {
        xmsg(arguments).await.failed(2, "for '<TOPIC>': it is not hexadecimal, as --topic-hex says");
    }
    xmsg(&["req", "--topic-hex", "", "x"]).await.failed(2, "it has no bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_round_trip_is_told() {
    let (_proxy, address) = proxy().await;
    let _echo = reply(&address, &["echo", "--echo"]).await;
    let ended = xmsg(&["-v", "req", "echo", "hello", "--proxy", &address, "--timeout", "30s"]).await;
    assert_eq!(ended.stdout, b"hello\n");
    let time =
        ended.stderr.split_once("reply 1: 5 bytes after ").and_then(|(_, rest)| rest.split_once(" ms"));
    assert!(time.unwrap().0.parse::<f64>().unwrap() > 0.0, "{}", ended.stderr);
    ended.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_makes_the_reply() {
    let (_proxy, address) = proxy().await;
    let upper = reply(&address, &["upper", "--command", "tr a-z A-Z", "-n", "1"]).await;
    assert_eq!(ask(&address, &["upper", "hello"], b"").await, "HELLO\n");
    upper.end().await.done();

    // The command need not read its input.
    let command = r#"printf '%s is %s' "$XMSG_TOPIC" "$XMSG_MIME""#;
    let about = reply(&address, &["about", "--command", command, "--mime", "text/string", "-n", "1"]).await;
    let long = vec![b'x'; 1 << 20];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &long).unwrap();
    let arguments = ["about:me", "-f", file.path().to_str().unwrap(), "--mime", "image/png"];
    assert_eq!(
        ask(&address, &[&arguments[..], &["--format", "%v (%m)"]].concat(), b"").await,
        "about:me is image/png (text/string)"
    );
    about.end().await.done();

    let cat = reply(&address, &["cat", "--command", "cat", "-n", "1"]).await;
    let arguments = ["cat", "-f", file.path().to_str().unwrap(), "--raw"];
    assert_eq!(ask(&address, &arguments, b"").await.as_bytes(), long);
    cat.end().await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_is_an_error_to_whoever_asked() {
    let (_proxy, address) = proxy().await;
    let cases: [(&[&str], &str); 4] = [
        (&["--command", "echo lost; exit 3"], "the command failed: exit status: 3"),
        (&["--command", "kill -KILL $$"], "the command failed: signal: 9"),
        (
            &["--command", "sleep 600", "--command-timeout", "100ms"],
            "the command was killed: not done within",
        ),
        (&["--command", "echo x", "--mime", "binary/sint32"], "not a value of --mime binary/sint32"),
    ];
    for (arguments, why) in cases {
        let replier = reply(&address, &[&["a", "-n", "1"], arguments].concat()).await;
        let ended = xmsg(&["req", "a", "x", "--proxy", &address, "--timeout", "60s"]).await;
        assert!(ended.stdout.is_empty());
        ended.failed(1, &format!("the service at a failed: {why}"));
        let ended = replier.end().await;
        assert!(ended.stderr.contains(&format!("the reply to a is an error: {why}")), "{}", ended.stderr);
        ended.failed(1, "1 of 1 request failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_knows_that_its_proxy_has_gone() {
    let (proxy, address) = proxy().await;
    let mut replier = reply(&address, &["a", "--command", "echo at work >&2; sleep 600"]).await;
    let asker = Running::start(&["req", "a", "x", "--proxy", &address, "--timeout", "5s"]);
    replier.said("at work").await;
    drop(proxy);
    asker.end().await.failed(3, "there is no connection to the proxy");
    replier.signal("INT");
    replier.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_killed_with_all_that_they_started() {
    let (_proxy, address) = proxy().await;
    // A process that survived would keep our standard error open, so that its end would never be reached.
    let command = "echo at work >&2; sleep 600 | cat; true";
    let mut late = reply(&address, &["a", "--command", command, "--command-timeout", "0.3", "-n", "1"]).await;
    let asker = Running::start(&["req", "a", "x", "--proxy", &address, "--timeout", "60s"]);
    late.said("the reply to a is an error: the command was killed: not done within 0.3 s").await;
    late.end().await.failed(1, "1 of 1 request failed");
    asker.end().await.failed(1, "the service at a failed: the command was killed: not done within 0.3 s");

    let mut interrupted = reply(&address, &["a", "--command", command]).await;
    let asker = Running::start(&["req", "a", "x", "--proxy", &address, "--timeout", "60s"]);
    interrupted.said("at work").await;
    interrupted.signal("INT");
    assert_eq!(interrupted.end().await.code, Some(130));
    asker.signal("TERM");
    assert_eq!(asker.end().await.code, Some(143));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_side_by_side_if_they_may() {
    let (_proxy, address) = proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Each command waits until the other one is running.
    let fifo = fifo.to_str().unwrap();
    let command = format!("if [ $XMSG_TOPIC = meet:a ]; then cat '{fifo}'; else echo met | tee '{fifo}'; fi");
    let arguments = ["meet", "--command", &command, "--concurrency", "2", "-n", "2"];
    let replier = reply(&address, &[&arguments[..], &["--command-timeout", "30s"]].concat()).await;
    let (a, b) = tokio::join!(ask(&address, &["meet:a", "x"], b""), ask(&address, &["meet:b", "x"], b""));
    assert_eq!((a.as_str(), b.as_str()), ("met\n", "met\n"));
    replier.end().await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_await_no_reply_are_ignored_and_counted() {
    let (_proxy, address) = proxy().await;
    let replier = reply(&address, &["a", "yes", "-n", "1"]).await;
    // When this subscriber has received the messages, the replier has, too.
    let witness = Running::subscribe(&address, &["a", "-n", "2"]).await;
    publish(&address, &["a", "x", "--count", "2"], b"").await;
    witness.end().await.done();
    assert_eq!(ask(&address, &["a", "x"], b"").await, "yes\n");
    let ended = replier.end().await;
    assert!(ended.stderr.contains("answered 1 of 1 request; ignored 2 messages"), "{}", ended.stderr);
    ended.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_a_subscriber() {
    let (_proxy, address) = proxy().await;
    let arguments = ["-v", "req", "a:b", "x", "--wait-sub", "--timeout", "50s", "--proxy", &address];
    let mut asker = Running::start(&arguments);
    asker.said("waiting for a subscriber of a:b").await;
    let other = Running::subscribe(&address, &["other"]).await;
    let echo = reply(&address, &["a", "--echo", "-n", "2"]).await;
    assert_eq!(asker.end().await.text(), "x\n");
    // A subscriber that already exists is not waited for.
    assert_eq!(ask(&address, &["a", "y", "--wait-sub"], b"").await, "y\n");
    echo.end().await.done();

    let arguments = ["req", "c", "x", "--wait-sub", "--timeout", "200ms", "--proxy", &address];
    xmsg(&arguments).await.failed(27, "timed out: nobody subscribed to c within 200ms");
    drop(other);
    let arguments = ["req", "c", "x", "--wait-sub", "--timeout", "200ms", "--proxy", "127.0.0.1:1"];
    xmsg(&arguments).await.failed(3, "127.0.0.1:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nobody_answers_time_runs_out() {
    let (_proxy, address) = proxy().await;
    let arguments = ["req", "a", "x", "--timeout", "100ms", "-n", "2", "--proxy", &address];
    let ended = xmsg(&arguments).await;
    assert!(ended.stderr.contains("no answer to the request to a within 100ms"), "{}", ended.stderr);
    ended.failed(27, "timed out: 2 of 2 requests got no reply");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_proxy_the_address_is_named() {
    let (proxy, address) = proxy().await;
    within("the end of the proxy", proxy.stop(Duration::from_secs(5))).await;
    for command in [&["req", "a", "x"][..], &["reply", "a", "x"], &["ping"]] {
        let connect = ["--proxy", &address, "--connect-timeout", "300ms"];
        let ended = xmsg(&[command, &connect].concat()).await;
        assert!(ended.stdout.is_empty(), "{command:?}");
        ended.failed(3, &address);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_tell_their_times() {
    let (_proxy, address) = proxy().await;
    let text = xmsg(&["ping", "-n", "3", "--interval", "0", "--proxy", &address]).await.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 7, "{text}");
    for (n, line) in lines[..3].iter().enumerate() {
        let start = format!("{address}: ping {}: handshake ", n + 1);
        assert!(line.starts_with(&start) && line.contains(" ms, round trip "), "{text}");
    }
    assert_eq!(lines[4], "3 pings, 0 lost");
    for line in &lines[5..] {
        let times = line.split_once(" = ").unwrap().1.strip_suffix(" ms").unwrap();
        let times: Vec<f64> = times.split('/').map(|time| time.parse().unwrap()).collect();
        assert!(times[0] > 0.0 && times.is_sorted() && times.len() == 3, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_that_are_lost_are_counted() {
    let (proxy, address) = proxy().await;
    let arguments = ["ping", "-n", "1000000", "--interval", "10ms", "--connect-timeout", "300ms"];
    let (ping, stdout) = Running::start_unread(&[&arguments[..], &["--proxy", &address]].concat());
    let mut lines = BufReader::new(stdout).lines();
    let mut next = async || within("a line", lines.next_line()).await.unwrap().expect("a line");
    assert!(next().await.contains("round trip"));
    within("the end of the proxy", proxy.stop(Duration::from_secs(5))).await;
    while !next().await.contains(": lost: no answer from a proxy") {}
    ping.signal("INT");
    while !next().await.starts_with("---") {}
    assert!(!next().await.ends_with(" 0 lost"));
    assert_eq!(ping.end().await.code, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_errors_say_what_is_wrong() {
    let cases: &[(&[&str], &str)] = &[
        (&["req"], "TOPIC"),
        (&["req", "*:x", "1"], "domain of a topic can't be `*`"),
        (&["req", "a", "xyz", "--hex"], "not hexadecimal"),
        (&["req", "a", "x", "-n", "0"], "0"),
        (&["req", "a", "x", "--timeout", "soon"], "the unit `soon`"),
        (&["req", "a", "x", "--json", "--raw"], "cannot be used with"),
        (&["reply"], "TOPIC"),
        (&["reply", "a"], "what to reply? Give DATA"),
        (&["reply", "a", "--echo", "--command", "cat"], "cannot be used with"),
        (&["reply", "a", "--echo", "--mime", "a/b"], "cannot be used with"),
        (&["reply", "a", "x", "--command-timeout", "1s"], "--command <CMD>"),
        (&["reply", "*:x", "--echo"], "domain of a topic can't be `*`"),
        (&["reply", "a", "xyz", "--hex"], "not hexadecimal"),
        (&["reply", "a", "--echo", "--concurrency", "0"], "0"),
        (&["ping", "-n", "0"], "0"),
        (&["ping", "--proxy", "host:70000"], "no usable port"),
    ];
    for (arguments, says) in cases {
        let ended = xmsg(arguments).await;
        assert!(ended.stdout.is_empty() && ended.code == Some(2), "{arguments:?}: {}", ended.stderr);
        ended.failed(2, says);
    }
}
