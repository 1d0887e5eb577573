//! Plain ZeroMQ sockets and devices, tested with each other and with libzmq.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::terminal::Terminal;
use common::{Ended, Running, within, xmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use xmsg_tests::raw::Raw;

const ANYWHERE: &str = "tcp://127.0.0.1:0";

/// Starts `xmsg zmq` with these arguments, which bind a socket, and returns the endpoint.
async fn bound(arguments: &[&str]) -> (Running, String) {
    let mut running = Running::start(&[&["zmq"], arguments].concat());
    let endpoint = endpoint(&mut running, "bound to ").await;
    (running, endpoint)
}

/// Returns the endpoint that follows these words on standard error.
async fn endpoint(running: &mut Running, words: &str) -> String {
    let line = running.said(words).await;
    let (_, rest) = line.split_once(words).unwrap_or_else(|| panic!("{words:?} in {line:?}"));
    rest.trim_end_matches("; Ctrl-C ends it").to_owned()
}

async fn zmq(arguments: &[&str]) -> Ended {
    xmsg(&[&["zmq"], arguments].concat()).await
}

/// A socket of libzmq, run by `tests/peers/zmq_socket.py`. It is killed when dropped.
struct Peer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    endpoint: String,
}

impl Peer {
    async fn start(arguments: &[&str]) -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
        let python = std::env::var_os("XMSG_TEST_PYTHON");
        let python = python.map_or_else(|| tests.join(".venv/bin/python"), PathBuf::from);
        assert!(python.exists(), "there is no {}: run the tests with ./tests/run", python.display());
        let mut child = Command::new(python)
            .arg(tests.join("peers/zmq_socket.py"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut peer = Self { child, lines, endpoint: String::new() };
        peer.endpoint = peer.says("ready").await;
        peer
    }

    /// Waits for a line that begins with this word, and returns the rest of the line.
    async fn says(&mut self, word: &str) -> String {
        let line = within(word, self.lines.next_line()).await.unwrap().expect("it goes on");
        line.strip_prefix(word).unwrap_or_else(|| panic!("{word:?} in {line:?}")).trim().to_owned()
    }

    async fn hear(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    }
}

/// Returns the messages that `zmq_socket.py` sends and receives, as lines.
fn numbered(count: usize) -> String {
    (0..count).flat_map(|number| [number.to_string(), "\tdata\n".to_owned()]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_from_one_socket_to_another() {
    for (sender, receiver) in [("PUSH", "PULL"), ("dealer", "Dealer"), ("pair", "PAIR")] {
        let (receiving, endpoint) = bound(&["recv", receiver, "--bind", ANYWHERE, "-n", "2"]).await;
        assert_eq!(zmq(&["send", sender, &endpoint, "a", "", "two\twords\n", "-n", "2"]).await.text(), "");
        assert_eq!(receiving.end().await.text(), "a\t\ttwo\\twords\na\t\ttwo\\twords\n");
    }
    // Here the sender binds.
    let (sending, endpoint) = bound(&["send", "PUSH", "--bind", ANYWHERE, "x"]).await;
    assert_eq!(zmq(&["recv", "PULL", &endpoint, "-n", "1"]).await.text(), "x\n");
    sending.end().await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn input_becomes_messages() {
    let lines: &[(&[&str], &[u8], &str)] = &[
        (&["-l"], b"one\ntwo\r\n\nthree", "one\ntwo\\r\n\nthree\n"),
        (&["topic", "-l"], b"one\ntwo\n", "topic\tone\ntopic\ttwo\n"),
        (&["-0"], b"a\nb\0c", "a\\nb\nc\n"),
        (&[], b"whole\ninput", "whole\\ninput\n"),
        (&["a", "-"], b"whole", "a\twhole\n"),
        (&["--hex", "00ff", "61 62"], b"", "<2 bytes: 00 ff>\tab\n"),
        (&["--base64", "/w=="], b"", "<1 bytes: ff>\n"),
        (&["n {{Count}}", "--template", "-n", "2"], b"", "n 1\nn 2\n"),
    ];
    for (arguments, input, output) in lines {
        let count = output.lines().count().to_string();
        let (receiving, endpoint) = bound(&["recv", "PULL", "--bind", ANYWHERE, "-n", &count]).await;
        let mut sending = Running::start(&[&["zmq", "send", "PUSH", &endpoint], *arguments].concat());
        // A command that needs no input may have ended before.
        let _ = sending.stdin.as_mut().unwrap().write_all(input).await;
        sending.end().await.done();
        assert_eq!(receiving.end().await.text(), *output, "{arguments:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"\0\xff").unwrap();
    let (receiving, endpoint) = bound(&["recv", "PULL", "--bind", ANYWHERE, "-n", "1", "--raw"]).await;
    zmq(&["send", "PUSH", &endpoint, "<", "-f", file.to_str().unwrap()]).await.done();
    assert_eq!(receiving.end().await.done(), b"<\0\xff");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_written_as_asked_for() {
    let cases: &[(&[&str], &[u8])] = &[
        (&["--raw"], b"a\xffa\xff"),
        (&["--raw", "-l"], b"a\xff\na\xff\n"),
        (&["--raw", "-0"], b"a\xff\0a\xff\0"),
    ];
    for (arguments, output) in cases {
        let (receiving, endpoint) =
            bound(&[&["recv", "PULL", "--bind", ANYWHERE, "-n", "2"], *arguments].concat()).await;
        zmq(&["send", "PUSH", &endpoint, "--hex", "61", "ff", "-n", "2"]).await.done();
        assert_eq!(receiving.end().await.done(), *output, "{arguments:?}");
    }
    let (receiving, endpoint) = bound(&["recv", "PULL", "--bind", ANYWHERE, "-n", "1", "--json"]).await;
    zmq(&["send", "PUSH", &endpoint, "--hex", "61", "ff"]).await.done();
    let mut value: Value = serde_json::from_str(&receiving.end().await.text()).unwrap();
    assert!(value["time"].take().is_string());
    let expected =
        json!({"time": null, "length": 2, "frames": ["a", "/w=="], "encodings": ["utf-8", "base64"]});
    assert_eq!(value, expected);
    // A ROUTER adds the identity of the peer as the first frame.
    let (receiving, endpoint) = bound(&["recv", "ROUTER", "--bind", ANYWHERE, "-n", "1"]).await;
    zmq(&["send", "DEALER", &endpoint, "--identity", "me", "", "hello"]).await.done();
    assert_eq!(receiving.end().await.text(), "me\t\thello\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_to_a_group() {
    let (receiving, endpoint) =
        bound(&["recv", "DISH", "udp://127.0.0.1:0", "--group", "weather", "--group", "news", "-n", "3"])
            .await;
    zmq(&["send", "RADIO", &endpoint, "traffic", "a jam"]).await.done();
    zmq(&["send", "RADIO", &endpoint, "weather", "sunny\tand warm"]).await.done();
    zmq(&["send", "RADIO", &endpoint, "news", "{{Count}}", "--template", "-n", "2"]).await.done();
    assert_eq!(receiving.end().await.text(), "weather\tsunny\\tand warm\nnews\t1\nnews\t2\n");

    let ended = zmq(&["send", "RADIO", &endpoint, "weather", "sunny"]).await;
    assert!(ended.code == Some(0) && ended.stderr.contains("nobody listens"), "{}", ended.stderr);
    let large = "x".repeat(9_000);
    let ended = zmq(&["send", "RADIO", &endpoint, "weather", &large]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("1 of 1 datagram"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_bound_socket_waits_for_somebody_who_connects() {
    let (asking, endpoint) = bound(&["req", "--bind", ANYWHERE, "hello", "--timeout", "1m"]).await;
    let replying = Running::start(&["zmq", "rep", &endpoint, "--connect", "--echo", "-n", "1"]);
    assert_eq!(asking.end().await.text(), "hello\n");
    replying.end().await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_wait_for_subscribers_or_say_that_there_are_none() {
    let (publisher, endpoint) =
        bound(&["-v", "send", "PUB", "--bind", ANYWHERE, "weather", "sunny", "--wait-sub"]).await;
    let subscriber =
        Running::start(&["zmq", "recv", "SUB", &endpoint, "--topic", "news", "--topic", "weath", "-n", "1"]);
    assert_eq!(subscriber.end().await.text(), "weather\tsunny\n");
    publisher.end().await.done();

    let ended = zmq(&["send", "PUB", "--bind", ANYWHERE, "weather", "sunny"]).await;
    assert!(ended.stderr.contains("nobody subscribes") && ended.code == Some(0), "{}", ended.stderr);
    let ended = zmq(&["send", "PUB", "--bind", ANYWHERE, "a", "--wait-sub", "--timeout", "50ms"]).await;
    ended.failed_after_notes(27, "nobody subscribed to a within 50ms");

    // Here the subscriber binds and the publisher connects.
    let (subscriber, endpoint) = bound(&["recv", "SUB", "--bind", ANYWHERE, "-n", "1"]).await;
    let ended = zmq(&["send", "XPUB", &endpoint, "a", "b", "--wait-sub"]).await;
    assert!(!ended.stderr.contains("nobody") && ended.code == Some(0), "{}", ended.stderr);
    assert_eq!(subscriber.end().await.text(), "a\tb\n");
}

impl Ended {
    /// Checks a failure as [`failed`](Self::failed) does, for a process that has written notes before.
    #[track_caller]
    fn failed_after_notes(self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(self.stderr.contains(says), "expected {says:?} in: {}", self.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_xpub_shows_subscriptions() {
    for (arguments, lines) in [
        (&[][..], ["<subscribe>\ta\\tb", "<unsubscribe>\ta\\tb"]),
        (
            &["--json"],
            [r#"{"encoding":"utf-8","subscribe":"a\tb"}"#, r#"{"encoding":"utf-8","unsubscribe":"a\tb"}"#],
        ),
    ] {
        let (watching, endpoint) =
            bound(&[&["recv", "XPUB", "--bind", ANYWHERE, "-n", "2"], arguments].concat()).await;
        let mut subscriber = Running::start(&["-v", "zmq", "recv", "SUB", &endpoint, "--topic", "a\tb"]);
        subscriber.said("connected to").await;
        // The subscription exists as soon as it is connected, and ends when the subscriber disconnects.
        subscriber.signal("INT");
        assert_eq!(subscriber.end().await.code, Some(130));
        assert_eq!(watching.end().await.text().lines().collect::<Vec<_>>(), lines);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered() {
    let (echo, endpoint) = bound(&["rep", "-v", ANYWHERE, "--echo", "-n", "4"]).await;
    assert_eq!(zmq(&["req", &endpoint, "a", "b"]).await.text(), "a\tb\n");
    let ended = zmq(&["req", "-v", "REQ", &endpoint, "x{{Count}}", "--template", "-n", "2"]).await;
    assert!(ended.stderr.contains("reply 2: 2 bytes after"), "{}", ended.stderr);
    assert_eq!(ended.text(), "x1\nx2\n");
    let json = zmq(&["req", &endpoint, "a", "--json"]).await.text();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["frames"], json!(["a"]));
    let ended = echo.end().await;
    assert!(ended.stderr.contains("answered 4 of 4 requests") && ended.code == Some(0), "{}", ended.stderr);

    let (always, endpoint) = bound(&["rep", "rep", ANYWHERE, "the", "same", "-n", "1"]).await;
    assert_eq!(zmq(&["req", &endpoint, "a"]).await.text(), "the\tsame\n");
    always.end().await.done();

    let command = "printf '%s ' \"$XMSG_FRAMES\"; tr a-z A-Z; [ \"$XMSG_FRAMES\" = 2 ]";
    let (upper, endpoint) = bound(&["rep", ANYWHERE, "--command", command, "-n", "3"]).await;
    assert_eq!(zmq(&["req", &endpoint, "a", "b"]).await.text(), "2 AB\n");
    zmq(&["req", &endpoint, "a", "--timeout", "500ms"]).await.failed(27, "no reply from tcp://127.0.0.1:");
    assert_eq!(zmq(&["req", &endpoint, "c", "d"]).await.text(), "2 CD\n");
    upper.end().await.failed_after_notes(1, "no reply to request 2: the command failed: exit status: 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_there_is_told() {
    let nowhere = "tcp://127.0.0.1:1";
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["send", "PUSH", nowhere, "x", "--timeout", "100ms"],
            3,
            "no connection to tcp://127.0.0.1:1 within 100ms",
        ),
        (&["send", "PUB", nowhere, "x", "--timeout", "100ms"], 3, "no connection to tcp://127.0.0.1:1"),
        (&["req", nowhere, "x", "--timeout", "300ms"], 3, "no reply from tcp://127.0.0.1:1"),
        (&["recv", "PULL", nowhere, "--timeout", "300ms"], 3, "no connection to tcp://127.0.0.1:1"),
        (&["send", "PUSH", "--bind", ANYWHERE, "x", "--timeout", "50ms"], 27, "nobody connected to"),
        (
            &["recv", "PULL", "--bind", ANYWHERE, "-n", "3", "--timeout", "50ms"],
            27,
            "timed out: 0 of 3 messages",
        ),
        (&["recv", "PULL", "--bind", ANYWHERE, "--timeout", "50ms"], 0, ""),
        (&["recv", "PULL", "--bind", "tcp://192.0.2.1:5557"], 2, "192.0.2.1"),
    ];
    for (arguments, code, says) in cases {
        let ended = zmq(arguments).await;
        assert!(!ended.stderr.contains("xmsg-proxy"), "{}", ended.stderr);
        ended.failed_after_notes(*code, says);
    }
    // A peer that starts later is found.
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("ipc://{}/a,b", folder.path().display());
    let mut receiving = Running::start(&["zmq", "recv", "PULL", &endpoint, "-n", "1"]);
    receiving.said("yet").await;
    let sending = Running::start(&["zmq", "send", "PUSH", "--bind", &endpoint, "late"]);
    assert_eq!(receiving.end().await.text(), "late\n");
    sending.end().await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_does_not_fit_the_peer_is_told() {
    let (_pull, endpoint) = bound(&["recv", "PULL", "--bind", ANYWHERE]).await;
    let says =
        |other: &str, ours: &str| format!("is a PULL, and a {ours} talks to {other}: give another type");
    zmq(&["send", "PUB", &endpoint, "x"]).await.failed(3, &says("SUB or XSUB", "PUB"));
    zmq(&["recv", "SUB", &endpoint]).await.failed(3, &says("PUB or XPUB", "SUB"));
    // The type of a request socket is fixed.
    let says = "is a PULL, and a REQ talks to REP or ROUTER: give another endpoint";
    zmq(&["req", &endpoint, "x"]).await.failed(3, says);
}

/// The same mismatch is reported by the bound socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_bound_socket_tells_once_of_a_peer_that_does_not_fit() {
    let (mut receiving, endpoint) = bound(&["recv", "PULL", "--bind", ANYWHERE]).await;
    let says = "was not let in: it is an XPUB, and a PULL talks to PUSH";
    zmq(&["send", "XPUB", &endpoint, "x"]).await.failed(3, "is a PULL, and an XPUB talks to SUB or XSUB");
    receiving.said(says).await;
    zmq(&["send", "XPUB", &endpoint, "x"]).await.failed(3, "is a PULL");
    // libzmq disconnects before it has announced its own type.
    let _peer = Peer::start(&["PUB", "connect", &endpoint, "send", "1"]).await;
    receiving
        .said("closed the connection when it was told that this socket is of type PULL: does its own")
        .await;
    zmq(&["send", "PUB", &endpoint, "x"]).await.failed(3, "is a PULL");
    receiving.said("was not let in: it is a PUB, and a PULL talks to PUSH").await;
    receiving.signal("INT");
    let ended = receiving.end().await;
    assert_eq!(ended.stderr.matches(says).count(), 1, "{}", ended.stderr);

    // Here the socket connects to the wrong end of a device.
    let (mut device, [front, back, _]) = device("queue", &[]).await;
    let says = "this is its frontend, and a REP connects to its backend";
    zmq(&["rep", "--connect", &front, "--echo"]).await.failed_after_notes(3, says);
    device
        .said("it is a REP, and a ROUTER talks to REQ, DEALER or ROUTER; it has to connect to the backend")
        .await;
    let says = "this is its backend, and a REQ connects to its frontend";
    zmq(&["req", &back, "x"]).await.failed(3, says);
    device
        .said("it is a REQ, and a DEALER talks to REP, DEALER or ROUTER; it has to connect to the frontend")
        .await;
    let (mut replying, endpoint) = bound(&["rep", ANYWHERE, "--echo"]).await;
    let frontend = format!(">{endpoint}");
    let other = xmsg(&["device", "queue", "--frontend", &frontend, "--backend", ANYWHERE]).await;
    other.failed_after_notes(
        3,
        "is a REP, and a ROUTER talks to REQ, DEALER or ROUTER: give another endpoint; it belongs to",
    );
    replying.said("a device has its frontend here, and has to connect with its backend").await;
}

/// The messages of the script have nine bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_above_the_limit_is_told_with_the_option_that_raises_it() {
    let small = ["--max-message-size", "5"];
    let says =
        "what it was sending is lost: a message with 9 bytes: the limit is 5 (--max-message-size raises it)";
    let (mut receiving, endpoint) =
        bound(&[&["recv", "PULL", "--bind", ANYWHERE][..], &small].concat()).await;
    let _peer = Peer::start(&["PUSH", "connect", &endpoint, "send", "1"]).await;
    receiving.said(says).await;
    let peer = Peer::start(&["PUSH", "bind", "tcp://127.0.0.1:*", "send", "1"]).await;
    let mut receiving =
        Running::start(&[&["-q", "zmq", "recv", "PULL", &peer.endpoint][..], &small].concat());
    receiving.said(&format!("{says}; trying to connect again")).await;
    let peer = Peer::start(&["PUSH", "bind", "tcp://127.0.0.1:*", "send", "1"]).await;
    let receiving = ["recv", "PULL", &peer.endpoint, "-n", "1", "--max-message-size", "9"];
    assert_eq!(zmq(&receiving).await.text(), numbered(1));
    // The peer sends the request back as its reply; a request has an additional empty frame.
    let peer = Peer::start(&["REP", "bind", "tcp://127.0.0.1:*", "echo"]).await;
    let asked = zmq(&["req", &peer.endpoint, "12345678", "--max-message-size", "10"]).await;
    assert!(asked.code == Some(1) && asked.stderr.contains("above the limit"), "{}", asked.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_above_the_limit_is_not_sent() {
    let small = ["--max-message-size", "5"];
    let (sending, says) =
        (["send", "PUB", "--bind", ANYWHERE], "a message of 13 bytes is above the limit of 5 bytes: --max");
    let ended = zmq(&[&sending[..], &["hello world"], &small].concat()).await;
    assert!(ended.stderr.contains("1 of 1 message not delivered: 1 too large"), "{}", ended.stderr);
    ended.failed_after_notes(1, says);
    let mut running = Running::start(&[&["zmq"], &sending[..], &small].concat());
    running.type_in(b"hello world").await;
    let ended = running.end().await;
    assert!(!ended.stderr.contains("publish") && !ended.stderr.contains("metadata"), "{}", ended.stderr);
    let says = "cannot send standard input: the data is longer than a message may be, 5 bytes: --max-message-size raises";
    ended.failed_after_notes(1, says);
}

/// libzmq sends its subscriptions only when the program uses the socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_is_busy_gets_what_was_sent_to_it() {
    let mut peer = Peer::start(&["SUB", "bind", "tcp://127.0.0.1:*", "receive", "1", "--late"]).await;
    let ended = zmq(&["send", "PUB", &peer.endpoint, "0", "data"]).await;
    let says = format!(
        "{} has not told of a subscription to 0 by now: without one it drops the message",
        peer.endpoint
    );
    assert!(!ended.stderr.contains("nowhere"), "{}", ended.stderr);
    ended.failed_after_notes(0, &says);
    peer.hear().await;
    peer.says("done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_subscriber_did_not_get_is_told_in_total() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let sending =
        ["send", "PUB", "--bind", ANYWHERE, "--wait-sub", "a", "-n", "150", "--linger", "200ms", "-f"];
    let (sending, endpoint) = bound(&[&sending[..], &[file.to_str().unwrap()]].concat()).await;
    let (_slow, _unread) = Running::start_unread(&["zmq", "recv", "SUB", &endpoint, "--raw"]);
    let ended = sending.end().await;
    let said = ended.stderr.clone();
    ended.failed_after_notes(1, " of 150 messages not delivered: ");
    let (total, reasons) =
        said.lines().last().unwrap().split_once(" of 150 messages not delivered: ").unwrap();
    let [(dropped, _), (left, _)] = ["dropped for peers that are too slow", "not taken by "]
        .map(|why| reasons.split(", ").find_map(|reason| reason.split_once(why)).unwrap());
    let [total, dropped, left] = [total.trim_start_matches("xmsg: "), dropped, left]
        .map(|number| number.trim().parse::<u64>().unwrap());
    assert!(total == dropped + left && dropped > 1, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_connections_and_says_nothing_is_no_peer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    for arguments in [
        &["recv", "SUB", &endpoint, "--timeout", "500ms"][..],
        &["recv", "PULL", &endpoint, "--timeout", "500ms", "-n", "1"],
        &["send", "PUSH", &endpoint, "x", "--timeout", "500ms"],
    ] {
        let ended = zmq(arguments).await;
        assert!(ended.stderr.contains("takes connections and says nothing"), "{}", ended.stderr);
        ended.failed(3, &format!("no connection to {endpoint} within 500ms"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bound_socket_waits_for_is_told_once() {
    let (mut sending, endpoint) = bound(&["-v", "send", "PUSH", "--bind", ANYWHERE, "x"]).await;
    let says = format!("waiting for a PULL to connect to {endpoint}");
    sending.said(&says).await;
    assert_eq!(zmq(&["recv", "PULL", &endpoint, "-n", "1"]).await.text(), "x\n");
    assert_eq!(sending.end().await.stderr.matches(&says).count(), 1);
    // Without a terminal, no note about waiting is written.
    let ended = zmq(&["send", "PUSH", "--bind", ANYWHERE, "x", "--timeout", "1500ms"]).await;
    assert!(!ended.stderr.contains("waiting"), "{}", ended.stderr);
    let sending = ["zmq", "send", "PUB", "--bind", ANYWHERE, "x", "--wait-sub"];
    let terminal = Terminal::start(100, 10, &[("XMSG_CONFIG", "/dev/null")], &sending);
    let says = "waiting for a subscriber of x at tcp://127.0.0.1:";
    terminal.shows(says, |text| text.contains(says)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_a_wildcard_is_told_to_be_none() {
    let receiving =
        ["recv", "SUB", "--bind", ANYWHERE, "--topic", "weather/#", "--topic", "a", "--timeout", "50ms"];
    let ended = zmq(&receiving).await;
    let says = "`weather/#` is no pattern: ZeroMQ has no wildcards";
    assert!(ended.stderr.contains("; --topic 'weather/' is all that is below it"), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("no pattern").count(), 1, "{}", ended.stderr);
    ended.failed_after_notes(0, says);
}

/// A peer that ends together with the command is not reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_with_the_command_is_not_told() {
    for _ in 0..3 {
        let (sending, endpoint) = bound(&["send", "PUB", "--bind", ANYWHERE, "a", "--wait-sub"]).await;
        let ended = zmq(&["recv", "SUB", &endpoint, "-n", "1"]).await;
        assert_eq!(ended.stderr, "");
        assert_eq!(ended.text(), "a\n");
        sending.end().await.done();
    }
    // A peer that ends while the command continues is reported.
    let (sending, endpoint) = bound(&["send", "PUSH", "--bind", ANYWHERE, "a"]).await;
    let mut receiving = Running::start(&["zmq", "recv", "PULL", &endpoint]);
    sending.end().await.done();
    receiving.said("was lost (closed by the peer): trying to connect again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_help_has_every_exit_code() {
    for command in
        [&["zmq"][..], &["zmq", "send"], &["zmq", "recv"], &["zmq", "req"], &["zmq", "rep"], &["device"]]
    {
        let text = xmsg(&[&["help"], command].concat()).await.text();
        let (_, codes) = text.split_once("\nExit codes:\n").unwrap_or_else(|| panic!("{command:?}: {text}"));
        let codes: Vec<_> = codes.lines().filter_map(|line| line.split_whitespace().next()).collect();
        for code in ["1", "2", "3", "4", "130", "143"] {
            assert!(codes.contains(&code), "{command:?}: {code} in {codes:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_endpoints_are_one_word() {
    let (one, first) = bound(&["recv", "PULL", "--bind", ANYWHERE, "-n", "5"]).await;
    let (other, second) = bound(&["recv", "PULL", &format!("@{ANYWHERE}"), "-n", "5"]).await;
    let both = format!("{first},>{second}");
    let mut sending = Running::start(&["-v", "zmq", "send", "PUSH", &both, "-l"]);
    for _ in 0..2 {
        sending.said_next("connected to tcp").await;
    }
    sending.type_in(&b"a\n".repeat(10)).await;
    let ended = sending.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    // Messages are distributed round robin.
    assert_eq!(one.end().await.text() + &other.end().await.text(), "a\n".repeat(10));
    let ended = zmq(&["send", "PUSH", &first, &second, "--timeout", "1ms"]).await;
    assert!(ended.stderr.contains("is sent as data: several endpoints are one word"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_command_lines_say_what_is_wrong() {
    let cases: &[(&[&str], &str)] = &[
        (&["zmq", "send", "PUSHH", "tcp://a:1", "x"], "'PUSHH' for '<TYPE>'"),
        (&["zmq", "send", "PUSHH", "tcp://a:1", "x"], "PUSH, PUB"),
        (&["zmq", "send", "PULL", "tcp://a:1", "x"], "PULL only receives: use `xmsg zmq recv PULL`"),
        (
            &["zmq", "send", "ROUTER", "tcp://a:1", "x"],
            "ROUTER sends to peers that have made themselves known",
        ),
        (&["zmq", "send", "req", "tcp://a:1", "x"], "use `xmsg zmq req`"),
        (&["zmq", "recv", "PUSH", "tcp://a:1"], "PUSH only sends"),
        (&["zmq", "recv", "REP", "tcp://a:1"], "use `xmsg zmq rep`"),
        (&["zmq", "recv", "PULL"], "<ENDPOINT>"),
        (&["zmq", "send", "PUSH"], "<ENDPOINT>"),
        (&["zmq", "recv", "PULL", "tcp://a:1", "--topic", "a"], "--topic is for SUB and XSUB"),
        (&["zmq", "send", "PUSH", "localhost:1", "x"], "has to start with tcp://"),
        (&["zmq", "send", "PUSH", "tcp://localhost", "x"], "the port is missing"),
        (&["zmq", "send", "PUSH", "tcp://a:99999", "x"], "0..=65535"),
        (&["zmq", "send", "PUSH", "tcp://*:1", "x"], "are for binding: add --bind"),
        (&["zmq", "recv", "PULL", "inproc://a"], "within one process"),
        (&["zmq", "send", "PUSH", "tcp://a:1", "x", "--wait-sub"], "--wait-sub is for PUB and XPUB"),
        (&["zmq", "send", "PUSH", "tcp://a:1", "x", "--hex"], "not hexadecimal"),
        (&["zmq", "send", "PUSH", "tcp://a:1", "x", "-l", "-n", "2"], "cannot be used with"),
        (&["zmq", "send", "PUSH", "tcp://a:1", "x", "--bind", "--connect"], "cannot be used with"),
        (&["zmq", "send", "DEALER", "tcp://a:1", "x", "--identity="], "1 to 255 bytes"),
        (&["zmq", "req"], "<ENDPOINT>"),
        (&["zmq", "req", "REQ"], "REQ needs an endpoint"),
        (&["zmq", "req", "PUSH", "tcp://a:1", "x"], "`xmsg zmq req` is for REQ, not for PUSH"),
        (&["zmq", "recv", "SUB", "tcp://a:1", "--identity", "me"], "SUB has none"),
        (&["zmq", "recv", "RADIO", "udp://127.0.0.1:1"], "use `xmsg zmq send RADIO`"),
        (&["zmq", "send", "DISH", "udp://127.0.0.1:1", "a", "b"], "use `xmsg zmq recv DISH`"),
        (&["zmq", "recv", "DISH", "udp://127.0.0.1:1"], "--group"),
        (&["zmq", "recv", "DISH", "tcp://127.0.0.1:1", "--group", "a"], "udp://"),
        (&["zmq", "recv", "DISH", "udp://127.0.0.1:1", "--group", "a", "--connect"], "a DISH binds"),
        (&["zmq", "recv", "SUB", "tcp://a:1", "--group", "a"], "--group is for DISH"),
        (&["zmq", "send", "RADIO", "udp://127.0.0.1:1", "weather"], "two frames"),
        (&["zmq", "send", "RADIO", "@udp://127.0.0.1:1", "a", "b"], "a RADIO connects"),
        (&["zmq", "send", "RADIO", "udp://127.0.0.1:1", "a", "b", "--identity", "me"], "has datagrams"),
        (&["zmq", "req", "tcp://a:1", "x", "--timeout", "0"], "--timeout can't be 0"),
        (&["zmq", "rep", "tcp://*:0"], "what to reply?"),
        (&["zmq", "rep", "tcp://*:0", "x", "--echo"], "what to reply?"),
        (&["zmq", "rep", "tcp://*:0", "--echo", "--command", "cat"], "cannot be used with"),
        (&["zmq", "recv", "PULL", "@tcp://*:0", "--user", "me"], "--user is given without --password-file"),
        (&["zmq", "recv", "PULL", "@tcp://*:0", "--server-key", "x"], "whoever binds is the server"),
        (&["zmq", "recv", "PULL", "tcp://a:1", "--server-key", "x"], "--server-key: "),
        (&["zmq", "recv", "PULL", "tcp://a:1", "--client-key", "x"], "'x' for '--client-key"),
        (&["device", "forward", "--frontend", "a", "--backend", "b"], "'forward' for '<DEVICE>'"),
        (&["device", "queue", "--frontend", "tcp://*:0"], "--backend <ENDPOINT>"),
        (&["device", "queue", "--frontend", "a", "--backend", "b"], "has to start with tcp://"),
    ];
    for (arguments, says) in cases {
        let ended = xmsg(arguments).await;
        assert!(ended.stdout.is_empty() && ended.code == Some(2), "{arguments:?}: {}", ended.stderr);
        ended.failed(2, says);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_passwords_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut public = Vec::new();
    for name in ["server", "client"] {
        public.push(xmsg(&["keygen", &path(name)]).await.text().trim().to_owned());
    }
    let (server, client) = (path("server"), path("client"));
    let client_key = format!("--client-key={}", public[1]);
    let serving = ["recv", "PULL", "--bind", ANYWHERE, "-n", "1", "--key-file", &server, &client_key];
    let (receiving, endpoint) = bound(&serving).await;
    zmq(&["send", "PUSH", &endpoint, "x"]).await.failed(4, "it wants security CURVE, not NULL");
    let server_key = format!("--server-key={}", public[0]);
    zmq(&["send", "PUSH", &endpoint, "x", &server_key, "--timeout", "30s"]).await.failed(4, "no handshake");
    zmq(&["send", "PUSH", &endpoint, "hidden", &server_key, "--key-file", &client, "--timeout", "30s"])
        .await
        .done();
    assert_eq!(receiving.end().await.text(), "hidden\n");

    let password = path("password");
    std::fs::write(&password, "sesame\n").unwrap();
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let plain = ["--user", "me", "--password-file", &password];
    let (echo, endpoint) = bound(&[&["rep", ANYWHERE, "--echo", "-n", "1"][..], &plain].concat()).await;
    let asking = ["req", &endpoint, "x", "--timeout", "30s"];
    zmq(&[&asking[..], &["--user", "you", "--password-file", &password]].concat()).await.failed(4, "");
    assert_eq!(zmq(&[&asking[..], &plain].concat()).await.text(), "x\n");
    echo.end().await.done();
}

/// Our sockets send what the script receives, and receive what it sends.
#[tokio::test(flavor = "multi_thread")]
async fn libzmq_understands_all_of_it() {
    for (ours, theirs) in [("PUSH", "PULL"), ("PAIR", "PAIR"), ("DEALER", "DEALER")] {
        let mut peer = Peer::start(&[theirs, "bind", "tcp://127.0.0.1:*", "receive", "1"]).await;
        zmq(&["send", ours, &peer.endpoint, "0", "data"]).await.done();
        peer.says("done").await;
        let (sending, endpoint) = bound(&["send", ours, "--bind", ANYWHERE, "0", "data"]).await;
        Peer::start(&[theirs, "connect", &endpoint, "receive", "1"]).await.says("done").await;
        sending.end().await.done();
    }
    for (ours, theirs) in [("PULL", "PUSH"), ("PAIR", "PAIR"), ("DEALER", "DEALER")] {
        let peer = Peer::start(&[theirs, "bind", "tcp://127.0.0.1:*", "send", "3"]).await;
        assert_eq!(zmq(&["recv", ours, &peer.endpoint, "-n", "3"]).await.text(), numbered(3));
        let (receiving, endpoint) = bound(&["recv", ours, "--bind", ANYWHERE, "-n", "3"]).await;
        let _peer = Peer::start(&[theirs, "connect", &endpoint, "send", "3"]).await;
        assert_eq!(receiving.end().await.text(), numbered(3));
    }
    for ours in ["PUB", "XPUB"] {
        for theirs in ["SUB", "XSUB"] {
            let (publisher, endpoint) =
                bound(&["send", ours, "--bind", ANYWHERE, "--wait-sub", "0", "data"]).await;
            Peer::start(&[theirs, "connect", &endpoint, "receive", "1"]).await.says("done").await;
            publisher.end().await.done();
        }
    }
    for ours in ["SUB", "XSUB"] {
        let peer = Peer::start(&["XPUB", "bind", "tcp://127.0.0.1:*", "send", "3"]).await;
        assert_eq!(zmq(&["recv", ours, &peer.endpoint, "-n", "3"]).await.text(), numbered(3));
        let mut peer = Peer::start(&["PUB", "bind", "tcp://127.0.0.1:*", "send", "3"]).await;
        let first = zmq(&["recv", ours, &peer.endpoint, "-n", "1"]).await;
        assert_eq!(first.text(), "hello\n");
        peer.hear().await;
        peer.says("done").await;
    }
    let peer = Peer::start(&["REP", "bind", "tcp://127.0.0.1:*", "echo"]).await;
    assert_eq!(zmq(&["req", &peer.endpoint, "a", "", "b", "--timeout", "30s"]).await.text(), "a\t\tb\n");
    let (echo, endpoint) = bound(&["rep", ANYWHERE, "--echo", "-n", "6"]).await;
    for theirs in ["REQ", "DEALER"] {
        Peer::start(&[theirs, "connect", &endpoint, "ask", "3"]).await.says("done").await;
    }
    echo.end().await.done();
}

/// Starts a device, and returns its frontend, its backend, and the endpoint for copies of its messages.
async fn device(kind: &str, more: &[&str]) -> (Running, [String; 3]) {
    let ends = ["--frontend", ANYWHERE, "--backend", ANYWHERE, "--capture", ANYWHERE];
    let mut running = Running::start(&[&["device", kind], &ends[..], more].concat());
    let capture = endpoint(&mut running, "capture (PUB) bound to ").await;
    let front = running.said(") bound to ").await;
    let back = running.said_next(") bound to ").await;
    running.said("is running").await;
    let [front, back] = [front, back].map(|line| line.split(' ').next_back().unwrap().to_owned());
    (running, [front, back, capture])
}

/// Interrupts a device and returns its counts.
async fn counts(running: Running, signal: &str, code: i32) -> Value {
    running.signal(signal);
    let ended = running.end().await;
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    serde_json::from_str(&String::from_utf8(ended.stdout).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_passes_publications_and_subscriptions_on() {
    let (running, [front, back, _]) = device("forwarder", &["--json"]).await;
    let subscriber = Running::start(&["zmq", "recv", "SUB", &back, "--topic", "weather", "-n", "3"]);
    let publishing = ["send", "PUB", &front, "weather", "sunny", "--wait-sub", "--timeout", "30s", "-n", "3"];
    zmq(&publishing).await.done();
    assert_eq!(subscriber.end().await.text(), "weather\tsunny\n".repeat(3));
    let counts = counts(running, "INT", 130).await;
    assert_eq!(counts["device"], "forwarder");
    assert_eq!(counts["forward"], json!({"messages": 3, "bytes": 48, "dropped": 0}));
    assert!(counts["backward"]["messages"].as_u64() >= Some(1), "{counts}");

    // Here both peers are sockets of libzmq.
    let (_running, [front, back, _]) = device("forwarder", &[]).await;
    let mut subscriber = Peer::start(&["SUB", "connect", &back, "receive", "5"]).await;
    let _publisher = Peer::start(&["XPUB", "connect", &front, "send", "5"]).await;
    subscriber.says("done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamer_hands_out_tasks() {
    let (running, [front, back, _]) = device("streamer", &["--json"]).await;
    let worker = Running::start(&["zmq", "recv", "PULL", &back, "-n", "100"]);
    zmq(&["send", "PUSH", &front, "task {{Count}}", "--template", "-n", "100"]).await.done();
    assert_eq!(worker.end().await.text().lines().last(), Some("task 100"));
    let counts = counts(running, "TERM", 143).await;
    assert_eq!((&counts["forward"]["messages"], &counts["forward"]["dropped"]), (&json!(100), &json!(0)));

    let (_running, [front, back, _]) = device("streamer", &[]).await;
    let mut worker = Peer::start(&["PULL", "connect", &back, "receive", "5"]).await;
    let _ventilator = Peer::start(&["PUSH", "connect", &front, "send", "5"]).await;
    worker.says("done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_passes_requests_and_replies_on() {
    let (running, [front, back, _]) = device("queue", &[]).await;
    let worker = Running::start(&["zmq", "rep", "--connect", &back, "--command", "tr a-z A-Z", "-n", "2"]);
    let asked = zmq(&["req", &front, "hello", "-n", "2", "--timeout", "30s"]).await;
    assert_eq!(asked.text(), "HELLO\nHELLO\n");
    worker.end().await.done();
    running.signal("INT");
    let ended = running.end().await;
    assert!(ended.stdout.is_empty() && ended.code == Some(130), "{}", ended.stderr);
    for says in ["frontend to backend: 2 messages, ", "backend to frontend: 2 messages, ", " 0 dropped"] {
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }

    let (_running, [front, back, _]) = device("queue", &[]).await;
    let _worker = Peer::start(&["REP", "connect", &back, "echo"]).await;
    Peer::start(&["REQ", "connect", &front, "ask", "5"]).await.says("done").await;
}

/// An observer gets a copy of every message.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_through_a_device_can_be_watched() {
    let (running, [front, back, capture]) = device("streamer", &["--json"]).await;
    let _worker = Running::start(&["zmq", "recv", "PULL", &back]);
    let _ventilator =
        Running::start(&["zmq", "send", "PUSH", &front, "a", "task", "-n", "1e9", "--rate", "100"]);
    assert_eq!(
        zmq(&["recv", "SUB", &capture, "--topic", "a", "-n", "2"]).await.text(),
        "a\ttask\n".repeat(2)
    );
    let counts = counts(running, "INT", 130).await;
    assert!(counts["forward"]["messages"].as_u64() >= Some(2), "{counts}");
}

/// Messages that the device has received count as dropped at its end, if there is no peer to send them to.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_a_device_at_its_end_counts_as_dropped() {
    let (mut running, [front, ..]) = device("streamer", &["--json", "-v", "--linger", "100ms"]).await;
    zmq(&["send", "PUSH", &front, "task", "-n", "10"]).await.done();
    // The device has read all messages.
    running.said("has gone").await;
    let counts = counts(running, "INT", 130).await;
    assert_eq!(counts["forward"], json!({"messages": 0, "bytes": 0, "dropped": 10}));
}

/// Each end of a device may connect instead of binding.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_connects_where_it_is_told_to() {
    let (worker, there) = bound(&["recv", "PULL", "--bind", ANYWHERE, "-n", "1"]).await;
    let ends = ["--frontend", ANYWHERE, "--backend", &format!(">{there}")];
    let mut running = Running::start(&[&["device", "Streamer"], &ends[..]].concat());
    let front = endpoint(&mut running, "frontend (PULL) bound to ").await;
    zmq(&["send", "PUSH", &front, "x"]).await.done();
    assert_eq!(worker.end().await.text(), "x\n");
    running.signal("INT");
    assert_eq!(running.end().await.code, Some(130));
    let taken = ["device", "streamer", "--frontend", ANYWHERE, "--backend", "tcp://192.0.2.1:5557"];
    xmsg(&taken).await.failed_after_notes(2, "192.0.2.1");
}

/// A command of an example, run by a shell. Dropping it kills all of its processes.
struct Shell {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    /// Starts the command. Its files are in this folder, and its ports are replaced by Unix sockets there,
    /// because other processes may use the ports.
    fn start(line: &str, folder: &Path) -> Self {
        let mut line = line.to_owned();
        for host in ["*", "localhost", "a", "far"] {
            line = line.replace(&format!("tcp://{host}:"), "ipc://./");
        }
        let line = line.replace("tcp://b:", "ipc://./b");
        let binaries = Path::new(env!("CARGO_BIN_EXE_xmsg")).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        let mut child = Command::new("sh")
            .args(["-c", &line])
            .current_dir(folder)
            .env("PATH", format!("{}:{}:{path}", folder.display(), binaries.display()))
            .env("XMSG_CONFIG", "/dev/null")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(id) = self.child.id() {
            let _ = std::process::Command::new("kill").args(["-s", "KILL", "--", &format!("-{id}")]).status();
        }
    }
}

/// Waits until a socket is bound in this folder.
async fn a_socket_in(folder: &Path) {
    loop {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut kinds = entries.map(|entry| entry.unwrap().file_type().unwrap());
        if kinds.any(|kind| std::os::unix::fs::FileTypeExt::is_socket(&kind)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// All examples of the help: the example, the command that is run beside it, and the first line that one of
/// them writes. `<` means the example, and `>` the other command.
const EXAMPLES: &[(&str, &str, &str)] = &[
    ("xmsg zmq recv PULL --bind tcp://*:5557", "xmsg zmq send PUSH tcp://*:5557 x --timeout 1m", "<x"),
    ("xmsg zmq send PUSH tcp://localhost:5557 'a task'", "xmsg zmq recv PULL --bind tcp://*:5557", ">a task"),
    (
        "xmsg zmq recv SUB tcp://localhost:5556 --topic weather",
        "xmsg zmq send PUB @tcp://*:5556 weather --wait-sub",
        "<weather",
    ),
    ("xmsg zmq rep tcp://*:5555 --echo", "xmsg zmq req tcp://*:5555 a --timeout 1m", ">a"),
    ("xmsg zmq req tcp://localhost:5555 hello", "xmsg zmq rep tcp://*:5555 --echo", "<hello"),
    (
        "xmsg zmq send PUB tcp://localhost:5556 weather 'sunny, 21 C'",
        "xmsg zmq recv SUB --bind tcp://*:5556",
        ">weather\tsunny, 21 C",
    ),
    (
        "xmsg zmq send PUB --bind tcp://*:5556 weather sunny --wait-sub",
        "xmsg zmq recv SUB tcp://*:5556",
        ">weather\tsunny",
    ),
    ("xmsg zmq send PUSH --bind tcp://*:5557 -l < tasks", "xmsg zmq recv PULL tcp://*:5557", ">one"),
    (
        "xmsg zmq send PUB tcp://localhost:5556 log -l < app.log",
        "xmsg zmq recv SUB --bind tcp://*:5556",
        ">log\tone",
    ),
    ("xmsg zmq send DEALER tcp://localhost:5555 '' hello", "xmsg zmq recv ROUTER --bind tcp://*:5555", ">"),
    (
        "xmsg zmq send PUSH tcp://a:5557,tcp://b:5557 'task {{Count}}' --template -n 100 --rate 10",
        "xmsg zmq recv PULL --bind tcp://a:5557",
        ">task 1",
    ),
    ("xmsg zmq recv PULL tcp://localhost:5557", "xmsg zmq send PUSH --bind tcp://*:5557 a b", "<a\tb"),
    (
        "xmsg zmq recv PULL --bind tcp://*:5557 -n 1 --timeout 10s",
        "xmsg zmq send PUSH tcp://*:5557 a --timeout 1m",
        "<a",
    ),
    (
        "xmsg zmq recv SUB tcp://localhost:5556 --topic weather --topic news",
        "xmsg zmq send PUB @tcp://*:5556 news --wait-sub",
        "<news",
    ),
    (
        "xmsg zmq recv SUB tcp://localhost:5556 --json | jq '.frames[1]'",
        "xmsg zmq send PUB @tcp://*:5556 a b --wait-sub",
        "<.frames[1]",
    ),
    (
        "xmsg zmq recv PULL tcp://a:5557 tcp://b:5557 --raw -l > tasks",
        "xmsg zmq send PUSH --bind tcp://b:5557 x && tail -n +0 -f tasks",
        ">x",
    ),
    (
        "xmsg zmq recv ROUTER --bind tcp://*:5555",
        "xmsg zmq send DEALER tcp://*:5555 --identity me hi --timeout 1m",
        "<me\thi",
    ),
    (
        "xmsg zmq send RADIO udp://127.0.0.1:5558 weather sunny",
        "xmsg zmq recv DISH udp://*:5558 --group weather",
        ">weather\tsunny",
    ),
    (
        "xmsg zmq recv DISH udp://*:5558 --group weather",
        "xmsg zmq send RADIO udp://127.0.0.1:5558 weather sunny -n 6000 --rate 100",
        "<weather\tsunny",
    ),
    ("xmsg zmq req tcp://*:5555 hello --bind", "xmsg zmq rep tcp://*:5555 --connect --echo", "<hello"),
    ("xmsg zmq recv XPUB --bind tcp://*:5556", "xmsg zmq recv SUB tcp://*:5556 --topic a", "<<subscribe>\ta"),
    ("xmsg zmq req REQ tcp://localhost:5555 hello", "xmsg zmq rep tcp://*:5555 --echo", "<hello"),
    (
        "xmsg zmq req tcp://localhost:5555 get key --json | jq '.frames[0]'",
        "xmsg zmq rep tcp://*:5555 --echo",
        "<.frames[0]",
    ),
    (
        "xmsg zmq req tcp://localhost:5555 -f question --raw > answer",
        "xmsg zmq rep tcp://*:5555 --echo & tail -n +0 -F answer",
        ">one",
    ),
    (
        "xmsg zmq req tcp://a:5555,tcp://b:5555 hello --timeout 5s -v",
        "xmsg zmq rep tcp://b:5555 --echo",
        "<hello",
    ),
    ("xmsg zmq rep REP tcp://*:5555 42", "xmsg zmq req tcp://*:5555 a --timeout 1m", ">42"),
    (
        "xmsg zmq rep ipc:///tmp/upper --command 'tr a-z A-Z'",
        "xmsg zmq req ipc:///tmp/upper a --timeout 1m",
        ">A",
    ),
    (
        "xmsg zmq rep --connect tcp://localhost:5560 --echo",
        "xmsg device queue --frontend tcp://*:5559 --backend tcp://*:5560 & xmsg zmq req tcp://*:5559 a --timeout 1m",
        ">a",
    ),
    (
        "xmsg device forwarder --frontend tcp://*:5556 --backend tcp://*:5557",
        "xmsg zmq send PUB tcp://*:5556 a --wait-sub --timeout 1m & xmsg zmq recv SUB tcp://*:5557",
        ">a",
    ),
    (
        "xmsg device streamer --frontend tcp://*:5557 --backend tcp://*:5558",
        "xmsg zmq send PUSH tcp://*:5557 a --timeout 1m & xmsg zmq recv PULL tcp://*:5558",
        ">a",
    ),
    (
        "xmsg device queue --frontend tcp://*:5559 --backend tcp://*:5560",
        "xmsg zmq rep --connect tcp://*:5560 b & xmsg zmq req tcp://*:5559 a --timeout 1m",
        ">b",
    ),
    (
        "xmsg device forwarder --frontend '>tcp://far:5556' --backend tcp://*:5557",
        "xmsg zmq send PUB --bind tcp://far:5556 a --wait-sub & xmsg zmq recv SUB tcp://*:5557",
        ">a",
    ),
    (
        "xmsg device queue --frontend tcp://*:5559 --backend tcp://*:5560 --capture tcp://*:5561",
        "xmsg zmq rep --connect tcp://*:5560 b & xmsg zmq req tcp://*:5559 a --timeout 1m",
        ">b",
    ),
    ("xmsg zmq recv SUB tcp://localhost:5561", "xmsg zmq send PUB --bind tcp://*:5561 a --wait-sub", "<a"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_example_does_what_it_says() {
    let mut shown = Vec::new();
    for command in
        [&["zmq"][..], &["zmq", "send"], &["zmq", "recv"], &["zmq", "req"], &["zmq", "rep"], &["device"]]
    {
        let text = xmsg(&[&["help"], command].concat()).await.text();
        let (_, examples) = text.split_once("\nExamples:\n").unwrap();
        shown.extend(examples.lines().map_while(|line| line.strip_prefix("  ")).map(str::to_owned));
    }
    for line in &shown {
        let known = EXAMPLES.iter().any(|(example, ..)| line.starts_with(example));
        assert!(known, "an example that is not tested: {line}");
    }
    for (example, beside, first) in EXAMPLES {
        assert!(shown.iter().any(|line| line.starts_with(example)), "no example: {example}");
        let folder = tempfile::tempdir().unwrap();
        for file in ["tasks", "app.log", "question"] {
            std::fs::write(folder.path().join(file), "one\n").unwrap();
        }
        // This script replaces `jq`: it writes its argument and then its input.
        let jq = folder.path().join("jq");
        std::fs::write(&jq, "#!/bin/sh\necho \"$1\"\nexec cat\n").unwrap();
        std::fs::set_permissions(&jq, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let unique = format!("ipc://{}/upper", folder.path().display());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let [mut example, beside] = [example, beside].map(|line| {
            let line = line.replace("ipc:///tmp/upper", &unique);
            line.replace("127.0.0.1:5558", &udp).replace("udp://*:5558", &format!("udp://{udp}"))
        });
        let has_datagrams = example.contains("udp://");
        if has_datagrams && example.contains("RADIO") {
            // A RADIO does not wait for a DISH, so it is repeated.
            example = format!("while :; do {example}; sleep 0.02; done");
        }
        let mut other = Shell::start(&beside, folder.path());
        // Examples that soon give up must find their peer ready.
        if (example.starts_with("xmsg zmq send") || example.starts_with("xmsg zmq req"))
            && !example.contains("--bind")
            && !has_datagrams
        {
            within(&beside, a_socket_in(folder.path())).await;
        }
        let mut one = Shell::start(&example, folder.path());
        let (lines, text) = match first.split_at(1) {
            ("<", text) => (&mut one.lines, text),
            (_, text) => (&mut other.lines, text),
        };
        let line = within(&example, lines.next_line()).await.unwrap();
        let line = line.unwrap_or_else(|| panic!("{example}: no output"));
        assert!(line.starts_with(text) || line == text, "{example}: {line:?} for {text:?}");
    }
}

/// Starts a streamer with this limit of the shell's `ulimit`, and returns it with its frontend and backend.
async fn limited_streamer(limit: &str) -> (Child, [String; 2]) {
    let limited = format!(r#"ulimit {limit}; exec "$0" "$@""#);
    let ends = ["--frontend", ANYWHERE, "--backend", ANYWHERE];
    let mut command = Command::new("sh");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_xmsg"), "device", "streamer"]).args(ends);
    command.env("XMSG_CONFIG", "/dev/null").stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut device = command.spawn().unwrap();
    let mut lines = BufReader::new(device.stderr.take().unwrap()).lines();
    let mut bound = async |words: &str| loop {
        let line = within("the device", lines.next_line()).await.unwrap().unwrap();
        if let Some((_, endpoint)) = line.split_once(words) {
            return endpoint.to_owned();
        }
    };
    let front = bound("frontend (PULL) bound to ").await;
    let back = bound("backend (PUSH) bound to ").await;
    (device, [front, back])
}

/// Idle connections of one address never use up the descriptors of both ends of a device: others still get
/// in.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_of_one_address_keep_nobody_out_of_a_device() {
    let (mut device, ends) = limited_streamer("-n 96").await;
    let [front, back] = ends.map(|end| end.rsplit(':').next().unwrap().parse::<u16>().unwrap());
    let mut idle = Vec::new();
    for _ in 0..120 {
        idle.extend(Raw::handshake_from(2, front, "PUSH").await);
    }
    assert!((32..=96).contains(&idle.len()), "{} were let in", idle.len());
    let mut others = Vec::new();
    for host in 3..8 {
        others.push(Raw::handshake_from(host, front, "PUSH").await.expect("another address gets in"));
        others.push(Raw::handshake_from(host, back, "PULL").await.expect("the other end has room, too"));
    }
    assert!(device.try_wait().unwrap().is_none(), "the device goes on");
}

/// Unfinished messages of any number of peers never use more memory than the process may have: the peer that
/// uses the most is disconnected.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_messages_do_not_end_a_device() {
    large_messages_do_not_end_a_device(59).await;
}

/// Whole messages that no worker takes count as well.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn whole_messages_that_nobody_takes_do_not_end_a_device() {
    large_messages_do_not_end_a_device(60).await;
}

/// Sends this many MiB of messages of 60 MiB to a device without workers, over 16 connections.
#[cfg(target_os = "linux")]
async fn large_messages_do_not_end_a_device(sent: usize) {
    const MIB: usize = 1 << 20;
    // The address space is limited to 800 MiB, and peers may use half of it.
    let (mut device, [front, back]) = limited_streamer("-v 819200").await;

    let mut greeting = [&[0xff][..], &[0; 8], &[0x7f, 3, 0], b"NULL"].concat();
    greeting.resize(64, 0);
    let ready = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH";
    let header = [&[2][..], &(60 * MIB as u64).to_be_bytes()].concat();
    let mut peers = Vec::new();
    for _ in 0..16 {
        let mut peer = tokio::net::TcpStream::connect(front.trim_start_matches("tcp://")).await.unwrap();
        let sending = async {
            peer.write_all(&[&greeting[..], ready, &header].concat()).await?;
            for _ in 0..sent {
                peer.write_all(&vec![b'x'; MIB]).await?;
            }
            std::io::Result::Ok(())
        };
        // This peer may be one of those that are disconnected.
        let _ = within("the message", sending).await;
        peers.push(peer);
    }
    if sent < 60 {
        let worker = Running::start(&["zmq", "recv", "PULL", &back, "--connect", "-n", "1"]);
        zmq(&["send", "PUSH", &front, "still here", "--timeout", "30s"]).await.done();
        assert_eq!(worker.end().await.text(), "still here\n");
    } else {
        // The device has ended a connection, whose peer notices it.
        let left = peers.iter_mut().map(|peer| {
            Box::pin(async move {
                let mut bytes = vec![0; 1 << 10];
                while peer.read(&mut bytes).await.is_ok_and(|len| len > 0) {}
            })
        });
        within("the end of a connection", futures::future::select_all(left)).await;
    }
    assert!(device.try_wait().unwrap().is_none(), "the device goes on");
    let status = std::fs::read_to_string(format!("/proc/{}/status", device.id().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 600 << 10, "{peak} KiB");
}
