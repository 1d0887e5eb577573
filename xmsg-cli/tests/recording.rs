//! `xmsg replay` publishes what `xmsg record` has written again, byte for byte and with the same times, even
//! from a damaged file.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Ended, Running, proxy, publish, within, xmsg};
use serde_json::Value;
use xmsg_core::{Connection, Message, Meta, Topic};
use xmsg_proxy::security::settings::{Client, MechanismName, Settings};
use xmsg_zmq::{Endpoint, HighWaterMark, Publisher, SocketOptions};

/// A message of a file: its time and its frames.
type Recorded = (u64, Vec<Vec<u8>>);

/// Reads a whole file as docs/recording.md describes it, with none of the product's code.
fn read(path: &Path) -> Vec<Recorded> {
    fn number(bytes: &[u8]) -> usize {
        bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }
    fn message(body: &[u8]) -> Recorded {
        let frames = number(&body[9..11]);
        let mut at = 11 + 4 * frames;
        let frame = |n: usize| {
            let len = number(&body[11 + 4 * n..15 + 4 * n]);
            at += len;
            body[at - len..at].to_vec()
        };
        (number(&body[1..9]) as u64, (0..frames).map(frame).collect())
    }
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..10], b"\x89XMR\r\n\x1a\n\x01\0", "{}", path.display());
    let salt = number(&bytes[24..28]) as u32;
    let (mut rest, mut messages) = (&bytes[32..], Vec::new());
    loop {
        let body = &rest[8..8 + number(&rest[..4])];
        let mut checksum = crc32fast::Hasher::new_with_initial(salt);
        checksum.update(&rest[..4]);
        checksum.update(body);
        assert_eq!(checksum.finalize() as usize, number(&rest[4..8]));
        match body[0] {
            1 => messages.push(message(body)),
            2 => {
                let raw = zstd::bulk::decompress(&body[5..], number(&body[1..5])).unwrap();
                let mut raw = &raw[..];
                while !raw.is_empty() {
                    let (this, next) = raw[4..].split_at(number(&raw[..4]));
                    messages.push(message(this));
                    raw = next;
                }
            }
            3 => return messages,
            kind => panic!("a block of kind {kind}"),
        }
        rest = &rest[8 + body.len()..];
    }
}

/// Writes a file as docs/recording.md describes it, without an index. Its messages follow every 100 ms from
/// the beginning.
fn write<'a>(path: &Path, messages: &[impl AsRef<[&'a str]>]) {
    const START_NS: u64 = 1_700_000_000_000_000_000;
    let mut bytes = b"\x89XMR\r\n\x1a\n\x01\0\0\0\0\0\0\0".to_vec();
    bytes.extend(START_NS.to_le_bytes());
    bytes.extend(7_u32.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    for (n, frames) in messages.iter().map(AsRef::as_ref).enumerate() {
        let mut body = vec![1];
        body.extend((START_NS + n as u64 * 100_000_000).to_le_bytes());
        body.extend((frames.len() as u16).to_le_bytes());
        for frame in frames {
            body.extend((frame.len() as u32).to_le_bytes());
        }
        body.extend(frames.concat().as_bytes());
        let len = (body.len() as u32).to_le_bytes();
        let mut checksum = crc32fast::Hasher::new_with_initial(7);
        checksum.update(&len);
        checksum.update(&body);
        bytes.extend(len);
        bytes.extend(checksum.finalize().to_le_bytes());
        bytes.extend(body);
    }
    std::fs::write(path, bytes).unwrap();
}

/// Each block of this file has one small message that is published, and a large one that is left out. The
/// small ones that wait do not keep the memory of the large ones.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn small_messages_beside_large_ones_take_little_memory() {
    const BLOCKS: usize = 40;
    let message = |frames: &[&[u8]]| {
        let mut body = vec![1];
        body.extend(1_700_000_000_000_000_000_u64.to_le_bytes());
        body.extend((frames.len() as u16).to_le_bytes());
        for frame in frames {
            body.extend((frame.len() as u32).to_le_bytes());
        }
        body.extend(frames.concat());
        [&(body.len() as u32).to_le_bytes()[..], &body].concat()
    };
    let raw = [message(&[b"a", b"", b"x"]), message(&[b"b", b"", &vec![0; 32 << 20]])].concat();
    let body =
        [&[2][..], &(raw.len() as u32).to_le_bytes(), &zstd::bulk::compress(&raw, 1).unwrap()].concat();
    let len = (body.len() as u32).to_le_bytes();
    let mut checksum = crc32fast::Hasher::new_with_initial(7);
    checksum.update(&len);
    checksum.update(&body);
    let block = [&len[..], &checksum.finalize().to_le_bytes(), &body].concat();
    let mut file = b"\x89XMR\r\n\x1a\n\x01\0\x01\0\0\0\0\0".to_vec();
    file.extend(1_700_000_000_000_000_000_u64.to_le_bytes());
    file.extend(7_u32.to_le_bytes());
    file.extend(crc32fast::hash(&file).to_le_bytes());
    file.extend(block.repeat(BLOCKS));
    let (_folder, path) = folder();
    std::fs::write(path("small.xmr"), file).unwrap();

    let (_proxy, address) = proxy().await;
    // The address space is limited to 800 MiB, and the blocks together have more.
    let limited = r#"ulimit -v 819200; exec "$0" "$@""#;
    let mut replaying = tokio::process::Command::new("sh");
    replaying.args(["-c", limited, env!("CARGO_BIN_EXE_xmsg"), "replay", &path("small.xmr"), "--topic", "a"]);
    replaying.args(["--speed", "max", "--json", "--proxy", &address]).env("XMSG_CONFIG", "/dev/null");
    let ended = within("the replay", replaying.kill_on_drop(true).output()).await.unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{told}");
    let totals: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((&totals["messages"], &totals["damaged"]), (&BLOCKS.into(), &false.into()), "{told}");
}

/// Starts a recorder and waits until it has subscribed.
async fn record(address: &str, arguments: &[&str]) -> Running {
    let mut running = Running::start(&[&["-v", "record", "--proxy", address], arguments].concat());
    running.said("recording ").await;
    running
}

async fn replay(address: &str, arguments: &[&str]) -> Ended {
    xmsg(&[&["replay", "--proxy", address], arguments].concat()).await
}

async fn info(path: &str) -> Value {
    serde_json::from_slice(&xmsg(&["record", "--info", path, "--json"]).await.done()).unwrap()
}

/// Waits until the file has this number of messages.
async fn has(path: &str, messages: u64) {
    let there = async {
        while info(path).await["messages"] != messages {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("messages in a file", there).await;
}

fn folder() -> (tempfile::TempDir, impl Fn(&str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    (folder, move |name: &str| path.join(name).to_str().unwrap().to_owned())
}

/// Returns what a subscriber to everything writes of a replay with these arguments, which publishes `count`
/// messages.
async fn replayed(count: usize, arguments: &[&str]) -> String {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["", "-n", &count.to_string()]).await;
    replay(&address, arguments).await.done();
    subscriber.end().await.text()
}

/// Returns the differences between the times of successive messages, in milliseconds.
fn spacing(messages: &[Recorded]) -> Vec<f64> {
    messages.windows(2).map(|pair| (pair[1].0 as f64 - pair[0].0 as f64) / 1e6).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn frames_of(messages: &[Recorded], of_three: bool) -> Vec<&Vec<Vec<u8>>> {
    messages.iter().map(|(_, frames)| frames).filter(|frames| (frames.len() == 3) == of_three).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_is_replayed_byte_for_byte_and_in_time() {
    const COUNT: usize = 60;
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let first = record(&address, &[&path("first"), "-n", &COUNT.to_string()]).await;

    let connection = Connection::new(address.as_str()).unwrap();
    connection.connect().await.unwrap();
    let plain = Publisher::new(SocketOptions::default());
    plain.connect(Endpoint::tcp("127.0.0.1", connection.address().publish_port()));
    within("a subscription", plain.wait_for_subscriber(b"plain")).await.unwrap();
    for n in 0..COUNT {
        match n % 10 {
            3 => plain.publish(["plain", "two frames"]).await.unwrap(),
            7 => plain.publish(["plain", "", "of", "four"]).await.unwrap(),
            9 => {
                let frames = [&b"t:\xff"[..], b"no metadata", b"\0\n"].map(Bytes::from_static);
                let [topic, meta, data] = frames;
                connection.publish(&Message::from_frames(topic, meta, data)).await.unwrap();
            }
            _ => {
                let mut meta = Meta::new("binary/bytes");
                meta.author = Some(format!("author {n}"));
                let message = Message::new(Topic::wrap(format!("t:{n}")), &meta, vec![n as u8; n * 100]);
                connection.publish(&message).await.unwrap();
            }
        }
        tokio::time::sleep(Duration::from_millis(10 + 7 * (n as u64 % 5))).await;
    }
    let ended = first.end().await;
    assert!(ended.stderr.contains("recorded 60 messages"), "{}", ended.stderr);
    ended.done();

    // On a busy machine timers are sometimes late, but not in every attempt.
    let mut off = f64::INFINITY;
    for _ in 0..5 {
        let arguments = [&path("second"), "-n", &COUNT.to_string(), "--zstd", "--force"];
        let second = record(&address, &arguments).await;
        let ended = replay(&address, &[&path("first")]).await;
        assert!(ended.done().is_empty());
        second.end().await.done();

        let files = [read(Path::new(&path("first"))), read(Path::new(&path("second")))];
        for of_three in [true, false] {
            assert_eq!(frames_of(&files[0], of_three), frames_of(&files[1], of_three));
        }
        assert_eq!(frames_of(&files[0], false)[0], &[b"plain".to_vec(), b"two frames".to_vec()]);
        let [one, other] = files.map(|file| spacing(&file));
        off = median(one.iter().zip(&other).map(|(one, other)| (one - other).abs()).collect());
        println!("spacing off by {off:.3} ms at the median");
        if off <= 5.0 {
            break;
        }
    }
    assert!(off <= 5.0, "{off} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_a_recording_in_order() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    for (signal, code, name, arguments) in [("INT", 130, "a", &[][..]), ("TERM", 143, "b", &["--zstd"])] {
        let file = path(name);
        let running = record(&address, &[&[file.as_str(), "t", "u:x"], arguments].concat()).await;
        publish(&address, &["t", "x", "--count", "500"], b"").await;
        publish(&address, &["u:y", "x"], b"").await;
        publish(&address, &["u:x", "last"], b"").await;
        running.signal(signal);
        let ended = running.end().await;
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("recorded 501 messages (") && ended.stderr.contains(&file),
            "{}",
            ended.stderr
        );
        let info = info(&file).await;
        assert_eq!((&info["messages"], &info["index"]), (&501.into(), &true.into()));
        assert_eq!(read(Path::new(&file)).len(), 501);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn info_tells_what_is_in_a_file() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let file = path("run.xmr");
    let running = record(&address, &[&file, "-n", "3"]).await;
    for (topic, data) in [("b:\u{1b}", "12345"), ("a", "1"), ("a", "2")] {
        publish(&address, &[topic, data], b"").await;
    }
    running.end().await.done();
    let text = xmsg(&["record", "--info", &file]).await.text();
    let meta = Meta::new("binary/bytes").encode().len() as u64;
    let bytes = 3 * meta + 1 + 1 + 3 + 5 + 2;
    for row in ["messages  3\n".to_owned(), format!("bytes     {bytes}\n"), "state     whole\n".to_owned()] {
        assert!(text.contains(&row), "{row:?} in {text}");
    }
    let rows: Vec<&str> = text.lines().skip_while(|line| !line.contains("topic")).collect();
    assert!(rows[1].trim_start().starts_with("2 ") && rows[1].ends_with("  a"), "{text}");
    assert!(rows[2].ends_with(r"  b:\u{1b}"), "{text}");

    let json = info(&file).await;
    assert_eq!((&json["messages"], &json["bytes"], &json["version"]), (&3.into(), &bytes.into(), &1.into()));
    assert_eq!(json["topics"][0], serde_json::json!({ "topic": "a", "messages": 2, "bytes": 2 * meta + 4 }));
    assert_eq!(
        (&json["index"], &json["cut_at"], &json["damaged_places"]),
        (&true.into(), &Value::Null, &0.into())
    );
    let times = ["begun", "first", "last"].map(|name| json[name].as_str().unwrap().to_owned());
    assert!(times.is_sorted() && times[2].ends_with('Z'), "{times:?}");
    let checked = xmsg(&["record", "--info", &file, "--check", "--json"]).await.done();
    assert_eq!(serde_json::from_slice::<Value>(&checked).unwrap(), json);
}

/// A recorder that is killed loses what arrived in the last moment, but nothing that was in the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_recorder_that_is_killed_leaves_a_file_that_loads() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    for (name, arguments) in [("plain", &[][..]), ("zstd", &["--zstd"])] {
        let file = path(name);
        let running = record(&address, &[&[file.as_str()], arguments].concat()).await;
        publish(&address, &["t", "{{Count}}", "--template", "--count", "1000"], b"").await;
        has(&file, 1000).await;
        running.signal("KILL");
        assert_eq!(running.end().await.code, None);
        let info = info(&file).await;
        assert_eq!(
            (&info["messages"], &info["index"], &info["cut_at"]),
            (&1000.into(), &false.into(), &Value::Null)
        );
        let subscriber = Running::subscribe(&address, &["t", "-n", "1000", "--raw", "-l"]).await;
        let ended = replay(&address, &[&file, "--speed", "max"]).await;
        assert!(ended.stderr.contains("it has no index"), "{}", ended.stderr);
        ended.done();
        let expected: Vec<String> = (1..=1000).map(|n: u32| n.to_string()).collect();
        assert_eq!(subscriber.end().await.text().lines().collect::<Vec<_>>(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_off_or_damaged_is_replayed_as_far_as_it_goes() {
    let (_folder, path) = folder();
    let file = path("file");
    let messages = ["one", "two", "three", "four"].map(|data| ["t", "", data]);
    write(Path::new(&file), &messages);
    let whole = std::fs::read(&file).unwrap();
    let (_proxy, address) = proxy().await;

    std::fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    let subscriber = Running::subscribe(&address, &["t", "-n", "3"]).await;
    let ended = replay(&address, &[&file, "--speed", "max"]).await;
    assert!(ended.stderr.contains("it is cut off: the last"), "{}", ended.stderr);
    ended.done();
    assert_eq!(subscriber.end().await.text(), "t one\nt two\nt three\n");
    let told = info(&file).await;
    let last_at = whole.len() - (8 + 11 + 12 + "t".len() + "four".len());
    assert_eq!((&told["messages"], &told["cut_at"]), (&3.into(), &last_at.into()));

    let mut damaged = whole.clone();
    let at = damaged.windows(3).position(|bytes| bytes == b"two").unwrap();
    damaged[at] = b'T';
    std::fs::write(&file, &damaged).unwrap();
    let subscriber = Running::subscribe(&address, &["t", "-n", "3"]).await;
    let ended = replay(&address, &[&file, "--speed", "max"]).await;
    assert!(ended.stderr.contains("passed over 1 damaged place"), "{}", ended.stderr);
    ended.failed(1, "a recording is damaged");
    assert_eq!(subscriber.end().await.text(), "t one\nt three\nt four\n");
    assert_eq!(info(&file).await["damaged_places"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_rotated_by_size() {
    let (_proxy, address) = proxy().await;
    let (folder, path) = folder();
    let file = path("day.xmr");
    let arguments = [file.as_str(), "t", "--max-size", "20KiB", "-n", "100"];
    let running = record(&address, &arguments).await;
    let data = "x".repeat(1000);
    publish(&address, &["t", &format!("{{{{Count}}}} {data}"), "--template", "--count", "100"], b"").await;
    let ended = running.end().await;
    assert!(
        ended.stderr.contains("recorded 100 messages (") && ended.stderr.contains("files, "),
        "{}",
        ended.stderr
    );
    ended.done();

    let parts = parts(folder.path());
    assert_eq!(parts[0].file_name().unwrap(), "day.00001.xmr");
    assert!(parts.len() >= 5, "{parts:?}");
    let all: Vec<Recorded> = parts.iter().flat_map(|part| read(part)).collect();
    assert_eq!(all.len(), 100);
    for (n, (_, frames)) in all.iter().enumerate() {
        assert!(frames[2].starts_with(format!("{} ", n + 1).as_bytes()), "in order");
    }
    // The index is added to the size.
    assert!(parts.iter().all(|part| part.metadata().unwrap().len() < (20 << 10) + 500));
    assert_eq!(info(parts[1].to_str().unwrap()).await["part"], 2);

    let mut replay = vec!["--speed", "max", "--topic", "t"];
    replay.extend(parts.iter().map(|part| part.to_str().unwrap()));
    assert_eq!(replayed(100, &replay).await.lines().count(), 100);

    // No file is overwritten without `--force`. With it, none of the old files is left.
    let again = [&["record", "--proxy", &address][..], &arguments].concat();
    xmsg(&again).await.failed(2, "day.00001.xmr is there already");
    let running = record(&address, &[&arguments[..4], &["-n", "1", "--force"]].concat()).await;
    publish(&address, &["t", "x"], b"").await;
    running.end().await.done();
    assert_eq!(self::parts(folder.path()).len(), 1);
}

fn parts(folder: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    parts.sort();
    parts
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_rotated_by_age() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let running = record(&address, &[&path("day"), "--max-age", "300ms"]).await;
    for part in 1..=2 {
        publish(&address, &["t", &part.to_string()], b"").await;
        let file = path(&format!("day.{part:05}"));
        let done = async {
            while !Path::new(&file).exists() || info(&file).await["index"] != true {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the end of a file", done).await;
        assert_eq!(read(Path::new(&file))[0].1[2], part.to_string().as_bytes());
    }
    running.signal("INT");
    let ended = running.end().await;
    assert!(
        ended.stderr.contains("recorded 2 messages (") && ended.stderr.contains("2 files"),
        "{}",
        ended.stderr
    );
}

fn some(path: &str) {
    let messages = [["a:1", "", "0"], ["b", "", "1"], ["a:2", "", "2"], ["ab", "", "3"], ["c", "", "4"]];
    write(Path::new(path), &messages);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_recording_is_replayed() {
    let (_folder, path) = folder();
    let file = path("file");
    some(&file);
    let cases: [(&[&str], &str); 9] = [
        (&[], "a:1 0\nb 1\na:2 2\nab 3\nc 4\n"),
        (&["--from", "100ms", "--to", "300ms"], "b 1\na:2 2\n"),
        (&["--from", "0.25s"], "ab 3\nc 4\n"),
        (&["--from", "2023-11-14T22:13:20.3Z"], "ab 3\nc 4\n"),
        (&["--to", "2023-11-14T23:13:20.1+01:00"], "a:1 0\n"),
        (&["--topic", "a:", "--topic", "c"], "a:1 0\na:2 2\nc 4\n"),
        (&["--topic", "a"], "a:1 0\na:2 2\nab 3\n"),
        (&["--rename", "a:=x:y:", "--rename", "a=z", "--to", "350ms"], "x:y:1 0\nb 1\nx:y:2 2\nzb 3\n"),
        (&["--loop=2", "--topic", "b"], "b 1\nb 1\n"),
    ];
    for (arguments, expected) in cases {
        let count = expected.lines().count();
        let arguments = [&[file.as_str(), "--speed", "max"], arguments].concat();
        assert_eq!(replayed(count, &arguments).await, expected, "{arguments:?}");
    }
    // Several files are published one after another.
    assert_eq!(replayed(10, &[&file, &file, "--speed", "max"]).await.lines().nth(5), Some("a:1 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_has_its_speed() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let file = path("file");
    write(Path::new(&file), &[["t", "", "x"]; 41]);
    for (arguments, interval_ms) in
        [(&["--speed", "10"][..], 10.0), (&["--speed", "5"], 20.0), (&["--rate", "50"], 20.0)]
    {
        let expected_ms = 40.0 * interval_ms;
        // The times are those from the first message to the last. On a busy machine the first or the last is
        // sometimes late, but not in every attempt. Neither half nor twice the speed is near enough.
        let mut spans_ms: Vec<f64> = Vec::new();
        while !spans_ms.last().is_some_and(|span| (0.75..1.5).contains(&(span / expected_ms))) {
            assert!(spans_ms.len() < 10, "{spans_ms:?} for {arguments:?}");
            let again = path("again");
            let running = record(&address, &[&again, "-n", "41", "--force"]).await;
            let started = Instant::now();
            replay(&address, &[&[file.as_str()], arguments].concat()).await.done();
            let taken = started.elapsed();
            running.end().await.done();
            // No message is early, however late others are.
            assert!(taken >= Duration::from_secs_f64(expected_ms / 1e3), "{taken:?} for {arguments:?}");
            spans_ms.push(spacing(&read(Path::new(&again))).into_iter().sum());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_goes_on_until_it_is_interrupted() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let file = path("file");
    some(&file);
    let subscriber = Running::subscribe(&address, &["", "-n", "23"]).await;
    let replay = Running::start(&["replay", &file, "--loop", "--rate", "500", "--proxy", &address]);
    let text = subscriber.end().await.text();
    assert_eq!(text.lines().filter(|line| *line == "a:1 0").count(), 5);
    replay.signal("INT");
    assert_eq!(replay.end().await.code, Some(130));
    // A loop without anything to publish ends.
    xmsg(&["replay", &file, "--loop", "--topic", "none", "--proxy", &address]).await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_waits_for_a_subscriber() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let file = path("file");
    some(&file);
    let arguments =
        ["-v", "replay", &file, "--speed", "max", "--wait-sub", "--rename", "a:=x:", "--proxy", &address];
    let mut replay = Running::start(&arguments);
    replay.said("waiting for a subscriber of x:1").await;
    let subscriber = Running::subscribe(&address, &["x", "-n", "2"]).await;
    assert_eq!(subscriber.end().await.text(), "x:1 0\nx:2 2\n");
    let ended = replay.end().await;
    assert!(ended.stderr.contains("published 5 messages"), "{}", ended.stderr);
    ended.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_any_bytes_are_recorded_and_replayed() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let file = path("file");
    let recorder = record(&address, &[&file, "--topic-hex", "ff00", "61", "-n", "3"]).await;
    for (topic, data) in [("ff0001", "1"), ("02", "left out"), ("61 3a", "2"), ("ff00", "3")] {
        publish(&address, &["--topic-hex", topic, data], b"").await;
    }
    recorder.end().await.done();
    let info = info(&file).await;
    assert_eq!((&info["topics"][0]["topic"], info["topics"][0].get("topic_base64")), (&"a:".into(), None));
    assert_eq!(
        (&info["topics"][2]["topic_base64"], &info["topics"][2]["messages"]),
        (&"/wAB".into(), &1.into())
    );
    let again = [&file, "--speed", "max", "--topic-hex", "--topic", "ff 00", "--rename", "ff0001=623a"];
    assert_eq!(replayed(2, &again).await, "b: 1\n\u{fffd}\\u{0} 3\n");
    for arguments in [
        &["record", &path("new"), "--topic-hex", "a"][..],
        &["replay", &file, "--topic-hex", "--topic", "a:"],
        &["replay", &file, "--topic-hex", "--rename", "a:=61"],
    ] {
        xmsg(arguments).await.failed(2, "it is not hexadecimal, as --topic-hex says");
    }
}

/// The totals for scripts are the numbers that are shown to people.
#[tokio::test(flavor = "multi_thread")]
async fn totals_can_be_had_as_json() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let (file, again) = (path("file"), path("again"));
    some(&file);
    let json = |ended: Ended| -> Value { serde_json::from_slice(&ended.done()).unwrap() };
    let running = record(&address, &[&again, "a", "--json", "-n", "3"]).await;
    let replayed = json(replay(&address, &[&file, "--speed", "max", "--json"]).await);
    let recorded = running.end().await;
    assert!(!recorded.stderr.contains("recorded 3"), "{}", recorded.stderr);
    let recorded = json(recorded);
    let told = info(&again).await;
    for key in ["messages", "bytes"] {
        assert_eq!(recorded[key], told[key], "{recorded} {told}");
    }
    assert_eq!((&recorded["messages"], &recorded["expected_messages"]), (&3.into(), &3.into()));
    assert_eq!((&recorded["files"], &recorded["last_file"]), (&1.into(), &again.as_str().into()));
    assert_eq!((&replayed["messages"], &replayed["bytes"]), (&5.into(), &info(&file).await["bytes"]));
    for (document, numbers) in [
        (&recorded, &["dropped_messages", "too_large_messages", "lost_connections"][..]),
        (&replayed, &["refused_messages", "unsent_messages", "unconfirmed_messages"]),
    ] {
        for number in numbers {
            assert_eq!(document[number], 0, "{number}: {document}");
        }
        assert_eq!(document["interrupted"], false, "{document}");
    }
    assert_eq!(replayed["damaged"], false);

    // A run that failed has totals, too.
    let arguments = ["record", &path("late"), "t", "--json", "-n", "2", "--timeout", "50ms"];
    let late = xmsg(&[&arguments[..], &["--proxy", &address]].concat()).await;
    let totals: Value = serde_json::from_slice(&late.stdout).unwrap();
    assert_eq!((&totals["messages"], &totals["expected_messages"]), (&0.into(), &2.into()));
    late.failed(27, "0 of 2 messages arrived");
    let running = record(&address, &[&path("stopped"), "t", "--json"]).await;
    running.signal("INT");
    let stopped = running.end().await;
    let totals: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert_eq!((stopped.code, &totals["interrupted"]), (Some(130), &true.into()));
}

/// If recorded control requests were published again, the proxy would handle them as requests.
#[tokio::test(flavor = "multi_thread")]
async fn control_requests_are_recorded_if_asked_for_and_never_replayed() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let (all, control) = (path("all"), path("control"));
    let everything = record(&address, &[&all, "-n", "1"]).await;
    let requests = record(&address, &[&control, "xmsg:control", "t", "-n", "2"]).await;
    publish(&address, &["t", "x"], b"").await;
    everything.end().await.done();
    requests.end().await.done();
    assert_eq!(read(Path::new(&all))[0].1[0], b"t");
    assert!(read(Path::new(&control))[0].1[0].starts_with(b"xmsg:control:"));
    let ended = replay(&address, &[&control, "--speed", "max"]).await;
    assert!(ended.stderr.contains("control request"), "{}", ended.stderr);
    ended.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_told_and_what_was_written_can_be_read() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    for (name, option) in [("plain", None), ("zstd", Some("--zstd"))] {
        let file = path(name);
        // Files of this process may have at most 512 KiB.
        let script = "trap '' XFSZ; ulimit -f 512; exec \"$@\"";
        let mut command = tokio::process::Command::new("bash");
        command.args(["-c", script, "bash", env!("CARGO_BIN_EXE_xmsg"), "record", &file, "t"]);
        command.args(["--proxy", &address]).args(option).kill_on_drop(true);
        let mut recorder = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let publisher = Running::start(&[
            "pub",
            "t",
            "{{Count}} {{Random 2000}}",
            "--template",
            "--rate",
            "2000",
            "--count",
            "1000000000",
            "--wait-sub",
            "--proxy",
            &address,
        ]);
        let mut stderr = recorder.stderr.take().unwrap();
        let mut said = String::new();
        within("the end", tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut said)).await.unwrap();
        let code = within("the end", recorder.wait()).await.unwrap().code();
        drop(publisher);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("cannot write {file}: File too large")), "{said}");
        let (_, told) = said.split_once("can be read, ").unwrap();
        let told: u64 = told.split(' ').next().unwrap().replace(',', "").parse().unwrap();
        let messages = info(&file).await["messages"].as_u64().unwrap();
        assert!(told > 100 && messages >= told, "{messages}: {said}");
    }
    let ended = xmsg(&["record", "/dev/full", "--force", "--proxy", &address]).await;
    ended.failed(1, "cannot write /dev/full");
}

/// A recorder that was stopped while many messages arrived continues, and reports what the proxy had to drop
/// for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_proxy_dropped_is_told() {
    let config = xmsg_proxy::Config {
        high_water_mark: HighWaterMark::bytes(64 << 10),
        ..xmsg_proxy::Config::default()
    };
    let proxy = xmsg_proxy::Proxy::bind("127.0.0.1:0").config(config).start().await.unwrap();
    let address = proxy.address().to_string();
    let (_folder, path) = folder();
    let file = path("file");
    let mut running = record(&address, &[&file, "t"]).await;
    running.signal("STOP");
    let dropped =
        || proxy.subscribers().iter().map(|subscriber| subscriber.dropped.messages).sum::<u64>() > 0;
    while !dropped() {
        publish(&address, &["t", "{{Random 1000000}}", "--template", "--count", "40"], b"").await;
    }
    running.signal("CONT");
    running.said("dropped by the proxy").await;
    running.signal("INT");
    running.end().await.failed_late(1, "the recording is not complete. Missing: ");
    assert!(info(&file).await["index"] == true);
}

/// The memory for what waits to be written is limited. At the limit, nothing more is read from the proxy, and
/// everything that was read is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_too_slow_holds_the_recorder_up() {
    let config = xmsg_proxy::Config {
        high_water_mark: HighWaterMark::bytes(64 << 10),
        ..xmsg_proxy::Config::default()
    };
    let proxy = xmsg_proxy::Proxy::bind("127.0.0.1:0").config(config).start().await.unwrap();
    let address = proxy.address().to_string();
    let (_folder, path) = folder();
    let (fifo, copy) = (path("fifo"), path("copy"));
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut running = Running::start(&["-v", "record", &fifo, "t", "--force", "--proxy", &address]);
    let (go, told) = std::sync::mpsc::channel();
    let reading = tokio::task::spawn_blocking(move || {
        let mut from = std::fs::File::open(fifo).unwrap();
        told.recv().unwrap();
        std::io::copy(&mut from, &mut std::fs::File::create(copy).unwrap()).unwrap();
    });
    running.said("recording ").await;
    let connection = Connection::new(address.as_str()).unwrap();
    let message = Message::of("t", vec![7_u8; 100_000]).unwrap();
    let dropped = || proxy.subscribers().iter().map(|subscriber| subscriber.dropped.messages).sum::<u64>();
    let mut published = 0;
    while dropped() == 0 {
        connection.publish(&message).await.unwrap();
        connection.flush(Duration::from_secs(60)).await.unwrap();
        published += 1;
        // The total is 64 MiB that wait, 16 MiB that were received, and what is in between and in buffers of
        // the operating system.
        assert!(published < 2000, "it takes whatever comes");
    }
    go.send(()).unwrap();
    running.said("dropped by the proxy").await;
    running.signal("INT");
    running
        .end()
        .await
        .failed_late(1, "the recording is not complete. Missing: 1 message dropped by the proxy");
    within("the copy", reading).await.unwrap();
    assert_eq!(read(Path::new(&path("copy"))).len(), published - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_nothing_any_more_does_not_hold_up_the_end() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let fifo = path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut pipe = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let running = record(&address, &[fifo.as_str(), "t", "--force", "--linger", "300ms"]).await;
    publish(&address, &["t"], &vec![7; 1 << 20]).await;
    // These bytes are more than the header of the file: the message is being written. The rest of it is more
    // than the pipe takes.
    let begun = tokio::task::spawn_blocking(move || pipe.read_exact(&mut [0; 4096]).map(|()| pipe));
    let pipe = within("the first bytes", begun).await.unwrap().unwrap();
    running.signal("TERM");
    running
        .end()
        .await
        .failed_late(1, "has taken nothing for 300ms (--linger), and what waits to be written is lost");
    drop(pipe);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_lost_is_told() {
    let (proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let mut running = record(&address, &[&path("file"), "t"]).await;
    publish(&address, &["t", "x"], b"").await;
    proxy.stop(Duration::from_secs(5)).await;
    running.said("was lost").await;
    running.signal("INT");
    running.end().await.failed_late(1, "while the connection to the proxy was lost (1 time)");
    assert_eq!(read(Path::new(&path("file"))).len(), 1);
}

trait FailedLate {
    fn failed_late(self, code: i32, says: &str);
}

impl FailedLate for Ended {
    /// Checks a failure as `failed` does, for a process that has written other lines before.
    fn failed_late(self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(self.stderr.contains(says), "expected {says:?} in: {}", self.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_told() {
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    let (file, text) = (path("file"), path("text"));
    some(&file);
    std::fs::write(&text, "some text that is no recording at all").unwrap();
    let cases: [(&[&str], i32, &str); 11] = [
        (&["record", &file], 2, "is there already: name another file, or overwrite it with --force"),
        (&["record", &path("none/file")], 1, "is not there: make it"),
        (&["record", &path("new"), "--max-size", "0"], 2, "not a size"),
        (&["record", "--info", &path("none")], 1, "cannot open "),
        (&["record", "--info", &text], 1, "it is not a recording"),
        (&["replay", &path("none")], 1, "cannot open "),
        (&["replay", &text], 1, "it is not a recording"),
        (&["replay", &file, "--speed", "0"], 2, "not a speed"),
        (&["replay", &file, "--speed", "2", "--rate", "2"], 2, "cannot be used with"),
        (&["replay", &file, "--from", "2s", "--to", "1s"], 2, "nothing lies between"),
        (&["replay", &file, "--rename", "a"], 2, "expected OLD=NEW"),
    ];
    for (arguments, code, says) in cases {
        xmsg(&[arguments, &["--proxy", &address]].concat()).await.failed(code, says);
    }
    for arguments in [["record", &path("new")], ["replay", &file]] {
        xmsg(&[&arguments[..], &["--proxy", "127.0.0.1:9"]].concat())
            .await
            .failed(3, "no answer from a proxy");
    }
    assert!(!Path::new(&path("new")).exists(), "what cannot be recorded leaves no file");
    let ended =
        xmsg(&["record", &path("new"), "t", "-n", "1", "--timeout", "50ms", "--proxy", &address]).await;
    ended.failed(27, "0 of 1 message arrived");
    assert_eq!(read(Path::new(&path("new"))), []);
}

/// If a client may not subscribe to everything, its topics are still confirmed, and both kinds of messages
/// get through.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_is_recorded_and_replayed_encrypted() {
    let (folder, path) = folder();
    let rights = vec!["a".to_owned(), "b:".to_owned()];
    let (proxy, public) = closed_proxy(folder.path(), rights.clone(), rights).await;
    let address = proxy.address().to_string();
    let key_file = path("client.key");
    let security = ["--connect-timeout", "20s", "--server-key", &public, "--key-file", &key_file];

    let file = path("file");
    write(Path::new(&file), &[&["a:1", "", "x"][..], &["b:2", "two frames"]]);
    let again = path("again");
    let running =
        record(&address, &[&[again.as_str(), "a:", "b:2", "-n", "2"], &security[..]].concat()).await;
    replay(&address, &[&[file.as_str(), "--speed", "max"], &security[..]].concat()).await.done();
    running.end().await.done();
    let again = read(Path::new(&again));
    assert_eq!(frames_of(&again, true), [&["a:1", "", "x"].map(|frame| frame.as_bytes().to_vec())]);
    assert_eq!(frames_of(&again, false), [&["b:2", "two frames"].map(|frame| frame.as_bytes().to_vec())]);

    let forbidden =
        [&["record", &path("none"), "", "--proxy", &address, "--connect-timeout", "1s"], &security[2..]];
    xmsg(&forbidden.concat()).await.failed(4, "not allowed to subscribe to everything");
    assert!(!Path::new(&path("none")).exists());
}

/// Starts a proxy with CURVE that knows one client with these rights. The keys are in the folder, as
/// `proxy.key` and `client.key`. Returns also the public key of the proxy.
async fn closed_proxy(
    folder: &Path,
    subscribe: Vec<String>,
    publish: Vec<String>,
) -> (xmsg_proxy::Proxy, String) {
    let key_of = async |name: &str| {
        let file = folder.join(name);
        xmsg(&["keygen", file.to_str().unwrap()]).await.text().trim().to_owned()
    };
    let (public, key) = (key_of("proxy.key").await, Some(key_of("client.key").await));
    let settings = Settings {
        mechanism: MechanismName::Curve,
        key_file: Some("proxy.key".into()),
        clients: vec![Client { key, subscribe, publish, ..Client::default() }],
        ..Settings::default()
    };
    let (mechanism, rules) = settings.load(folder).unwrap();
    let proxy = xmsg_proxy::Proxy::bind("127.0.0.1:0").security(mechanism, rules).start().await.unwrap();
    (proxy, public)
}

/// If a topic of a recording may not be published, the command fails before the first message, with or
/// without an index.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_not_allowed_does_not_begin() {
    let (folder, path) = folder();
    let publish = ["a:", "b:1", "b:2"].map(str::to_owned).to_vec();
    let (closed, public) = closed_proxy(folder.path(), vec![String::new()], publish).await;
    let address = closed.address().to_string();
    let key_file = path("client.key");
    let security = ["--connect-timeout", "50s", "--server-key", &public, "--key-file", &key_file];

    let (without_index, with_index) = (path("without"), path("with"));
    write(
        Path::new(&without_index),
        &[&["a:1", "", "x"][..], &["a:2", "", "x"], &["b:1", "", "x"], &["c:3", "", "x"], &["b:2", "", "x"]],
    );
    let (_open, open) = proxy().await;
    let recorder = record(&open, &[&with_index, "-n", "5"]).await;
    replay(&open, &[&without_index, "--speed", "max"]).await.done();
    recorder.end().await.done();

    let witness = Running::subscribe(&address, &[&["a", "b", "c", "-n", "5"], &security[..]].concat()).await;
    for file in [&without_index, &with_index] {
        let again = |arguments: &[&'static str]| [&[file.as_str()], arguments, &security[..]].concat();
        // At this speed, the replay would take minutes.
        let refused = replay(&address, &again(&["--speed", "0.001"])).await;
        refused.failed(
            4,
            &format!("not allowed to publish to c:3: the proxy at {address} gives us no right to"),
        );
        let refused = replay(&address, &again(&["--rename", "a:=x:"])).await;
        refused.failed(4, "not allowed to publish to c:3");
    }
    // Rights for topics that are left out or renamed are not needed.
    let max = [&[with_index.as_str(), "--speed", "max"], &security[..]].concat();
    replay(&address, &[&max[..], &["--topic", "a:"]].concat()).await.done();
    replay(&address, &[&max[..], &["--topic", "c:", "--rename", "c:=a:"]].concat()).await.done();
    replay(&address, &[&max[..], &["--from", "0", "--to", "1us", "--topic", "c:"]].concat()).await.done();
    replay(&address, &[&max[..], &["--topic", "b:"]].concat()).await.done();
    assert_eq!(witness.end().await.text(), "a:1 x\na:2 x\na:3 x\nb:1 x\nb:2 x\n");
}

/// Runs the commands at the beginning of docs/recording.md as they are.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_document_work() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/recording.md");
    let document = std::fs::read_to_string(document).unwrap();
    let commands: Vec<&str> = document
        .lines()
        .skip_while(|line| *line != "```sh")
        .skip(1)
        .take_while(|line| *line != "```")
        .collect();
    assert_eq!(commands.len(), 4);
    let (_proxy, address) = proxy().await;
    let (folder, path) = folder();
    let binary = Path::new(env!("CARGO_BIN_EXE_xmsg")).parent().unwrap().display().to_string();
    let script = |command: &str| {
        let mut bash = tokio::process::Command::new("bash");
        let path = format!("{binary}:{}", std::env::var("PATH").unwrap());
        bash.args(["-c", &format!("exec {command}")]).env("PATH", path).env("XMSG_PROXY", &address);
        bash.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        bash
    };
    for command in commands {
        let mut running = script(command).spawn().unwrap();
        if command.contains("Ctrl-C") {
            let file = path("run7.xmr");
            while !Path::new(&file).exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            publish(&address, &["weather:oslo", "4 °C", "--count", "10", "--rate", "50"], b"").await;
            let id = running.id().unwrap().to_string();
            assert!(std::process::Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
            assert_eq!(within(command, running.wait()).await.unwrap().code(), Some(130));
            assert_eq!(info(&file).await["messages"], 10);
            continue;
        }
        let status = within(command, running.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0), "{command}");
    }
}

/// No time is checked; docs/recording.md has the measurements with a release build.
#[tokio::test(flavor = "multi_thread")]
async fn many_messages_are_recorded_without_a_loss() {
    const COUNT: u64 = 100_000;
    let (_proxy, address) = proxy().await;
    let (_folder, path) = folder();
    for (name, arguments) in [("plain", &[][..]), ("zstd", &["--zstd"])] {
        let file = path(name);
        let count = COUNT.to_string();
        let running = record(&address, &[&[file.as_str(), "t", "-n", &count], arguments].concat()).await;
        let connection = Connection::new(address.as_str()).unwrap();
        let message = Message::of("t:bench", vec![7_u8; 1000]).unwrap();
        let started = Instant::now();
        for _ in 0..COUNT {
            connection.publish(&message).await.unwrap();
        }
        running.end().await.done();
        let rate = COUNT as f64 / started.elapsed().as_secs_f64();
        let info = info(&file).await;
        println!("{name}: {rate:.0} messages of 1 KiB a second, {} bytes in the file", info["file_bytes"]);
        assert_eq!(info["messages"], COUNT);
    }
}
