//! Published data arrives byte for byte, however it is split into messages.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Running, proxy, publish, within, xmsg};
use tokio::io::AsyncReadExt;
use xmsg_core::{Connection, Topic};
use xmsg_zmq::{Endpoint, Publisher, SocketOptions};

/// The number of messages, the arguments and the input for publishing, and the data that arrives.
type Case<'a> = (usize, &'a [&'a str], &'a [u8], &'a [u8]);

const ALL: [&str; 3] = ["t", "--raw", "-n"];

/// Returns what a subscriber writes of `count` messages that are published with these arguments.
async fn transferred(count: usize, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &[&ALL, &[count.to_string().as_str()][..]].concat()).await;
    publish(&address, &[&["t"], arguments].concat(), input).await;
    subscriber.end().await.done()
}

/// Makes lines of all lengths with all bytes except newline, without a newline at the end.
fn lines(len: usize) -> Vec<u8> {
    let mut random = 1_u64;
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = random.to_be_bytes();
        if word[0] < 40 {
            data.push(b'\n');
        }
        data.extend(word[1..].iter().map(|byte| if *byte == b'\n' { 0 } else { *byte }));
    }
    data.truncate(len - 1);
    data.push(b'x');
    data
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_lines_arrives_byte_for_byte() {
    let data = lines(50 << 20);
    let count = data.split(|byte| *byte == b'\n').count();
    assert!(count > 500_000);
    let arrived = transferred(count, &["-l", "--keep-newline"], &data).await;
    assert!(arrived == data, "{} bytes of {}", arrived.len(), data.len());
}

/// Runs, in a shell in this directory, the command in README.md that begins with `start`. The shell is
/// replaced by the command.
fn from_readme(start: &str, dir: &Path, address: &str) -> tokio::process::Child {
    let mut commands = include_str!("../../README.md").lines().filter_map(|line| line.strip_prefix("$ "));
    let command = commands.find(|command| command.starts_with(start));
    let command = command.unwrap_or_else(|| panic!("README.md has no command {start:?}"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_xmsg")).parent().expect("a file is in a folder");
    let path = std::env::var("PATH").expect("there is a path");
    tokio::process::Command::new("sh")
        .args(["-c", &format!("exec {}", command.trim_end_matches(" &"))])
        .current_dir(dir)
        .env("PATH", format!("{}:{path}", binaries.display()))
        .envs([("XMSG_PROXY", address), ("XMSG_CONFIG", "/dev/null")])
        .kill_on_drop(true)
        .spawn()
        .expect("there is a shell")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_readme_copy_a_file_byte_for_byte() {
    let (_proxy, address) = proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.txt");
    let log = Topic::wrap("log");
    for data in [lines(3 << 20), b"one\r\n\n\0two\n\n".to_vec()] {
        std::fs::write(dir.path().join("big.txt"), &data).unwrap();
        let connection = Connection::new(&*address).unwrap();
        let mut subscriber = from_readme("xmsg sub --raw", dir.path(), &address);
        within("the subscription", connection.wait_for_subscriber(&log)).await.unwrap();
        let mut publisher = from_readme("xmsg pub --lines", dir.path(), &address);
        assert!(within("all published", publisher.wait()).await.unwrap().success());
        let is_there = || std::fs::metadata(&copy).is_ok_and(|file| file.len() >= data.len() as u64);
        within("the copy", async {
            while !is_there() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let id = subscriber.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
        assert_eq!(within("the end", subscriber.wait()).await.unwrap().code(), Some(130));
        assert!(std::fs::read(&copy).unwrap() == data);
        // The next subscription must be that of the next subscriber.
        let gone = async {
            while connection.has_subscriber(&log) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the end of the subscription", gone).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_file_arrives_as_one_message() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let data: Vec<u8> = (0..20 << 20_u32).map(|n: u32| (n % 251) as u8).collect();
    std::fs::write(file.path(), &data).unwrap();
    let arrived = transferred(1, &["-f", file.path().to_str().unwrap()], b"").await;
    assert!(arrived == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_inputs_arrive_as_they_are() {
    let cases: [Case<'_>; 14] = [
        (1, &[], b"", b""),
        (1, &[], b"a\0\n\0", b"a\0\n\0"),
        (1, &["-"], b"\xff\r\n", b"\xff\r\n"),
        (1, &["hello"], b"not read", b"hello"),
        (1, &["--", "-5"], b"", b"-5"),
        (4, &["-l"], b"a\r\n\n\0\nb", b"a\r\0b"),
        (4, &["-l", "--keep-newline"], b"a\r\n\n\0\nb", b"a\r\n\n\0\nb"),
        // This is the form from before -l alone removed newlines.
        (4, &["-l", "--chomp"], b"a\r\n\n\0\nb", b"a\r\0b"),
        (3, &["-0"], b"a\n\0\0b", b"a\nb"),
        (1, &["--hex", "00 0a FF"], b"", b"\0\n\xff"),
        (2, &["--base64", "-l"], b"AAE=\n/w==\n", b"\0\x01\xff"),
        (3, &["x", "--count", "3"], b"", b"xxx"),
        (2, &["-l", "x\ny"], b"", b"xy"),
        (2, &["-l", "--keep-newline", "x\ny"], b"", b"x\ny"),
    ];
    for (count, arguments, input, expected) in cases {
        assert_eq!(transferred(count, arguments, input).await, expected, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_can_be_told_apart_again() {
    let (_proxy, address) = proxy().await;
    let newlines = Running::subscribe(&address, &["t", "--raw", "-l", "-n", "3"]).await;
    let nulls = Running::subscribe(&address, &["t", "--raw", "-0", "-n", "3"]).await;
    publish(&address, &["t", "-0"], b"a\0\0b").await;
    assert_eq!(newlines.end().await.done(), b"a\n\nb\n");
    assert_eq!(nulls.end().await.done(), b"a\0\0b\0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_is_published_as_soon_as_it_is_there() {
    let (_proxy, address) = proxy().await;
    let (mut subscriber, mut stdout) = Running::start_unread(&["-v", "sub", "t", "--proxy", &address]);
    subscriber.said("subscribed").await;
    let mut publisher = Running::start(&["pub", "t", "-l", "--proxy", &address]);
    for line in ["one", "two"] {
        publisher.type_in(format!("{line}\n").as_bytes()).await;
        let mut arrived = vec![0; 6];
        within("a line", stdout.read_exact(&mut arrived)).await.unwrap();
        assert_eq!(arrived, format!("t {line}\n").as_bytes());
    }
    publisher.end().await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_longer_than_a_message_can_be_is_refused() {
    let (_proxy, address) = proxy().await;
    let data = vec![b'x'; 64 << 20];
    for arguments in [&["-l"][..], &[]] {
        let mut publisher = Running::start(&[&["pub", "t", "--proxy", &address], arguments].concat());
        let mut stdin = publisher.stdin.take().unwrap();
        // The publisher may end before it has read all input.
        let _ = within("input", tokio::io::AsyncWriteExt::write_all(&mut stdin, &data)).await;
        drop(stdin);
        publisher.end().await.failed(1, "is longer than");
    }
}

/// Returns which lines arrive if one of them is too large, and the errors.
async fn with_a_large_line(proxy: xmsg_proxy::Builder, large: usize, unit: &[&str]) -> (Vec<u8>, String) {
    let proxy = proxy.start().await.expect("the ports are free");
    let address = proxy.address().to_string();
    let subscriber = Running::subscribe(&address, &["t", "--raw", "-n", "3"]).await;
    let separator: &[u8] = if unit == ["-0"] { b"\0" } else { b"\n" };
    let input = [&b"one"[..], b"two", &vec![b'x'; large], b"four"].join(separator);
    let mut publisher = Running::start(&[&["pub", "t", "--proxy", &address], unit].concat());
    let mut stdin = publisher.stdin.take().expect("it is piped");
    within("input", tokio::io::AsyncWriteExt::write_all(&mut stdin, &input))
        .await
        .expect("it reads to the end");
    drop(stdin);
    let ended = publisher.end().await;
    let stderr = ended.stderr.clone();
    ended.failed(1, "1 message was refused");
    (subscriber.end().await.done(), stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_that_is_too_large_is_named_and_the_others_arrive() {
    let limits = xmsg_zmtp::Limits { message_size: 1 << 20, ..Default::default() };
    let proxy = || xmsg_proxy::Proxy::bind("127.0.0.1:0").limits(limits.clone());
    for large in [1 << 20, 8 << 20] {
        let (arrived, said) = with_a_large_line(proxy(), large, &["-l"]).await;
        assert_eq!(arrived, b"onetwofour");
        assert!(
            said.contains("line 3 was not published to t: ") && said.contains("limit of 1048576 bytes"),
            "{said}"
        );
    }
    let (arrived, said) = with_a_large_line(proxy(), 2 << 20, &["-0"]).await;
    assert_eq!(arrived, b"onetwofour");
    assert!(said.contains("message 3 was not published to t: "), "{said}");
    // The line is longer than any message may be. It is not even read into memory as a whole.
    let (arrived, said) = with_a_large_line(xmsg_proxy::Proxy::bind("127.0.0.1:0"), 70 << 20, &["-l"]).await;
    assert_eq!(arrived, b"onetwofour");
    assert!(said.contains("line 3 was not published to t: ") && said.contains("is longer than"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_ends_quietly() {
    let (_proxy, address) = proxy().await;
    let (mut idle, stdout) = Running::start_unread(&["-v", "sub", "t", "--proxy", &address]);
    idle.said("subscribed").await;
    // Where a closed pipe cannot be detected, writing the next messages fails.
    let mut busy =
        Running::start(&["pub", "t", "x", "--count", "1000000000", "--rate", "100", "--proxy", &address]);
    drop(stdout);
    let ended = idle.end().await;
    assert_eq!(ended.code, Some(0));
    // Only the notes of -v are written.
    let expected =
        |line: &str| ["xmsg: subscribed", "xmsg: received"].iter().any(|start| line.starts_with(start));
    assert!(ended.stderr.lines().all(expected), "{}", ended.stderr);

    let (flooded, mut stdout) =
        Running::start_unread(&["sub", "t", "--proxy", &address, "--format", "%x%x%x%x\\n"]);
    let mut first = [0; 9];
    within("a message", stdout.read_exact(&mut first)).await.unwrap();
    drop(stdout);
    let ended = flooded.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    drop(busy.stdin.take());
}

#[tokio::test(flavor = "multi_thread")]
async fn help_and_version_go_into_a_closed_pipe_quietly() {
    for arguments in [&["--help"][..], &["pub", "--help"], &["--version"]] {
        let (help, stdout) = Running::start_unread(arguments);
        drop(stdout);
        let ended = help.end().await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    }
    assert!(xmsg(&["pub", "--help"]).await.text().contains("Examples:"));
}

/// Plain ZeroMQ publishers send topic and data, without metadata between them.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_plain_publishers_are_shown_and_confirmations_are_not() {
    let (proxy, address) = proxy().await;
    let everything = Running::subscribe(&address, &["", "-n", "3"]).await;
    let json = Running::subscribe(&address, &["t", "-n", "1", "--json"]).await;
    // This subscriber checks its subscription to `t`, and nobody else may see the answer.
    let raw = Running::subscribe(&address, &["t", "-n", "3", "--raw", "-l"]).await;
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(Endpoint::tcp("127.0.0.1", proxy.address().publish_port()));
    within("a subscription", publisher.wait_for_subscriber(b"t")).await.unwrap();
    for frames in [["t:a", "hello"], ["t", "sub"], ["t:b", "\u{1b}"]] {
        publisher.publish(frames).await.unwrap();
    }
    assert_eq!(everything.end().await.text(), "t:a hello\nt sub\nt:b <1 bytes: 1b>\n");
    assert_eq!(raw.end().await.text(), "hello\nsub\n\u{1b}\n");
    let json: serde_json::Value = serde_json::from_slice(&json.end().await.done()).unwrap();
    assert_eq!((&json["topic"], &json["data"]), (&"t:a".into(), &"hello".into()));
    assert_eq!((json["mime"].is_null(), json.get("meta_error")), (true, None));
}
