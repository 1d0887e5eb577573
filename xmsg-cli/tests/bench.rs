//! `xmsg bench`: what it measures and what it reports.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Running, proxy, within, xmsg};
use serde_json::Value;
use xmsg_proxy::{Policy, Proxy};
use xmsg_zmq::HighWaterMark;

/// A time limit for the proxy that is long enough on a loaded machine.
const PATIENT: [&str; 2] = ["--connect-timeout", "60s"];

/// Runs a bench with `--json`.
async fn bench(arguments: &[&str]) -> Value {
    let ended = xmsg(&[&["bench"], arguments, &["--json"], &PATIENT].concat()).await;
    let document: Value = serde_json::from_slice(&ended.done()).expect("one JSON document");
    assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["interrupted"], false, "{document}");
    document
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no whole number"))
}

fn real(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Checks that these are percentiles of `count` times.
fn assert_percentiles(times: &Value, count: u64) {
    assert_eq!(number(&times["count"]), count, "{times}");
    let names = ["min_us", "p50_us", "p90_us", "p99_us", "p99_9_us", "p99_99_us", "max_us"];
    let values = names.map(|name| real(&times[name]));
    assert!(values[0] > 0.0 && values.is_sorted(), "{times}");
    let mean = real(&times["mean_us"]);
    // The histogram has a precision of one part in a hundred or better.
    assert!(mean >= values[0] * 0.98 && mean <= values[6] * 1.02, "{times}");
}

/// Checks that a file is an SVG with these texts: tags are closed in order, and references are known.
fn assert_svg(path: &Path, texts: &[&str]) {
    let svg = std::fs::read_to_string(path).expect("the plot is there");
    let mut open = Vec::new();
    let mut rest = svg.as_str();
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        for reference in text.split('&').skip(1) {
            assert!(
                ["lt;", "gt;", "amp;", "quot;", "apos;"].iter().any(|name| reference.starts_with(name)),
                "{text}"
            );
        }
        let (tag, after) = rest[start + 1..].split_once('>').expect("a tag ends");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().expect("a tag has a name"));
        }
        rest = after;
    }
    assert_eq!(open, Vec::<&str>::new());
    assert!(svg.starts_with("<svg ") && svg.contains("<polyline "), "{svg}");
    for text in texts {
        assert!(svg.contains(text), "{text}: {svg}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_gets_to_every_subscriber() {
    let proxy = Proxy::bind("127.0.0.1:0").slow_subscriber(Policy::BLOCK).start().await.unwrap();
    let address = proxy.address().to_string();
    for (publishers, subscribers, messages, more) in [
        (1, 1, 20_000, &[][..]),
        (3, 1, 10_001, &["--topics", "100", "--warmup", "0"]),
        (2, 4, 5000, &["--size", "1KiB", "--warmup", "50ms"]),
        (1, 2, 40, &["--size", "4MiB", "--warmup", "0", "--threads", "1"]),
        (1, 1, 1000, &["--size", "16", "--warmup", "0", "--topic", "some:where"]),
    ] {
        let [p, s, n] = [publishers, subscribers, messages].map(|number: u64| number.to_string());
        let counts = ["throughput", "-p", &p, "-s", &s, "-n", &n, "--proxy", &address, "--patience", "50s"];
        let document = bench(&[&counts, more].concat()).await;
        let result = &document["result"];
        assert_eq!(document["mode"], "throughput");
        assert_eq!(document["proxy"], address.as_str());
        assert_eq!(document["settings"]["publishers"], publishers);
        assert_eq!(result["published"]["messages"], messages, "{document}");
        assert_eq!(result["expected_messages"], messages * subscribers);
        assert_eq!(result["delivered"]["messages"], messages * subscribers, "{document}");
        for none in ["lost_messages", "reordered_messages", "duplicate_messages"] {
            assert_eq!(result[none], 0, "{document}");
        }
        let delivered = &result["delivered"];
        let rate = real(&delivered["messages_per_second"]);
        assert!((rate * real(&delivered["seconds"]) / (messages * subscribers) as f64 - 1.0).abs() < 1e-6);
        let size = number(&document["settings"]["size_bytes"]) as f64;
        assert!((real(&delivered["megabytes_per_second"]) / (rate * size / 1e6) - 1.0).abs() < 1e-6);
        let each = ["min", "median", "max"].map(|name| real(&delivered["messages_per_second_each"][name]));
        assert!(each[0] > 0.0 && each.is_sorted(), "{document}");
        let timed: u64 = (0..publishers)
            .map(|publisher| messages / publishers + u64::from(publisher < messages % publishers))
            .map(|share| share.div_ceil(64) * subscribers)
            .sum();
        assert_percentiles(&result["delay"], timed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mode_it_measures_throughput_for_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("rate.svg");
    let words =
        ["bench", "--embedded", "-d", "500ms", "--warmup", "100ms", "--patience", "50s", "--fail-on-loss"];
    let ended = xmsg(&[&words[..], &PATIENT, &["--plot", plot.to_str().unwrap()]].concat()).await;
    let text = ended.text();
    assert!(text.starts_with("throughput: 1 publisher to 1 subscriber"), "{text}");
    assert!(text.contains("an embedded proxy at 127.0.0.1:") && text.contains("lost 0, "), "{text}");
    assert_svg(&plot, &["Throughput", "published", "delivered", "seconds"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let document = bench(&[&words[1..]].concat()).await;
    assert_eq!(document["embedded"], true);
    assert_eq!(document["settings"]["messages"], Value::Null);
    let timeline = document["result"]["timeline"].as_array().unwrap();
    assert!(real(&timeline.last().unwrap()["seconds"]) >= 0.5, "{timeline:?}");
    let published = |rates: &Value| real(&rates["published_messages_per_second"]);
    assert!(timeline.iter().map(published).sum::<f64>() > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_drops_is_counted() {
    // The queue has room for one or two messages, so a publisher that is faster than the subscriber loses
    // most messages.
    let proxy =
        Proxy::bind("127.0.0.1:0").high_water_mark(HighWaterMark::bytes(100_000)).start().await.unwrap();
    let address = proxy.address().to_string();
    let words = [
        "-s",
        "2",
        "-n",
        "2000",
        "--size",
        "64KiB",
        "--warmup",
        "0",
        "--patience",
        "1s",
        "--proxy",
        &address,
    ];
    let document = bench(&words).await;
    let result = &document["result"];
    let (delivered, lost) = (number(&result["delivered"]["messages"]), number(&result["lost_messages"]));
    assert_eq!(delivered + lost, 4000, "{document}");
    assert!(lost > 0, "{document}");
    assert_eq!(result["duplicate_messages"], 0);
    assert_eq!(lost, proxy.totals().dropped.messages, "as the proxy counts");

    let words = [&["bench", "--fail-on-loss"], &words[..], &PATIENT].concat();
    let ended = xmsg(&words).await;
    assert!(String::from_utf8_lossy(&ended.stdout).contains("delivered"));
    ended.failed(1, "messages lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn latency_counts_from_when_a_message_was_due() {
    let (_proxy, address) = proxy().await;
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("latency.svg");
    let words = ["latency", "--rate", "100,2000", "-d", "500ms", "--warmup", "50ms", "-p", "2", "-s", "2"];
    let more = ["--proxy", &address, "--patience", "50s", "--plot", plot.to_str().unwrap()];
    let document = bench(&[&words[..], &more].concat()).await;
    let rates = document["result"]["rates"].as_array().unwrap();
    assert_eq!(rates.len(), 2);
    for (rates, (rate, messages)) in rates.iter().zip([(100.0, 50), (2000.0, 1000)]) {
        assert!((real(&rates["rate_per_second"]) - rate).abs() < 1e-9);
        let published = number(&rates["published_messages"]);
        assert!(published <= messages, "{rates}");
        // On a busy machine the rate may not be kept, and then the report says so.
        assert!(published == messages || rates["rate_kept"] == false, "{rates}");
        assert_eq!(rates["delivered_messages"], 2 * published, "{rates}");
        assert_eq!(rates["lost_messages"], 0);
        assert_percentiles(&rates["latency"], 2 * published);
        assert_eq!(number(&rates["sent_late"]["count"]), published);
        let [latency, late] = ["latency", "sent_late"].map(|name| real(&rates[name]["max_us"]));
        assert!(latency >= late * 0.99, "being late is part of the latency: {rates}");
    }
    assert_svg(&plot, &["Latency", "100/s", "2,000/s", "99 %", "percentile"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_cannot_be_kept_is_told() {
    let words = ["bench", "latency", "--embedded", "--rate", "100000000", "-d", "200ms", "--warmup", "0"];
    let text = xmsg(&[&words[..], &["--patience", "50s"], &PATIENT].concat()).await.text();
    assert!(text.contains("100,000,000/s could not be kept"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_subscriptions_are_timed() {
    let (proxy, address) = proxy().await;
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    let to = ["--proxy", &address, "--plot", plot.to_str().unwrap()];
    for (mode, what) in [("connect", "connections"), ("subscribe", "subscriptions")] {
        for concurrency in ["1", "7"] {
            let document =
                bench(&[&[mode, "-n", "30", "--concurrency", concurrency], &to[..]].concat()).await;
            let result = &document["result"];
            assert_eq!(result[what], 30, "{document}");
            assert_eq!(result["failed"], 0);
            let per_second = real(&result[format!("{what}_per_second")]);
            assert!((per_second * real(&result["seconds"]) - 30.0).abs() < 1e-6, "{document}");
            assert_percentiles(&result["time"], 30);
            assert_svg(&plot, &[what]);
        }
    }
    let words = ["subscribe", "--on-one-connection", "1,100,5000", "--timeout", "50s"];
    let document = bench(&[&words[..], &to].concat()).await;
    let results = document["result"]["on_one_connection"].as_array().unwrap();
    for (result, count) in results.iter().zip([1_u64, 100, 5000]) {
        assert_eq!(result["subscriptions"], count);
        let per_second = real(&result["subscriptions_per_second"]);
        assert!((per_second * real(&result["seconds"]) / count as f64 - 1.0).abs() < 1e-6);
    }
    assert_eq!(results.len(), 3);
    assert_svg(&plot, &["until the last one is confirmed"]);
    within("the end of all subscriptions", async {
        while proxy.subscribers().len() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn synchronous_publishing_is_timed() {
    let (_proxy, address) = proxy().await;
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    let words = ["sync", "-n", "500", "--in-flight", "4", "--warmup", "50ms", "--patience", "50s"];
    let document =
        bench(&[&words[..], &["--proxy", &address, "--plot", plot.to_str().unwrap()]].concat()).await;
    let result = &document["result"];
    assert_eq!(result["replies"], 500, "{document}");
    assert_eq!(result["unanswered"], 0);
    assert_percentiles(&result["round_trip"], 500);
    assert_svg(&plot, &["Synchronous publishing", "4 requests in flight"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_measured_is_told() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--size", "15"], 2, "begins with 16 bytes"),
        (&["--size", "1GB"], 2, "32 MiB at most"),
        (&["--size", "1PB"], 2, "the unit `PB`"),
        (&["--count", "10", "--duration", "1s"], 2, "cannot be used with"),
        (&["--count", "0"], 2, "0"),
        (&["latency", "--rate", "0"], 2, "not a rate"),
        (&["latency", "--duration", "0"], 2, "--duration is 0"),
        (&["subscribe", "--on-one-connection", "5", "--count", "7"], 2, "cannot be used with"),
        (&["--slow-subscriber", "block"], 2, "--embedded"),
        (&["--embedded", "--slow-subscriber", "blocking"], 2, "unknown policy"),
        (&["--embedded", "--server-key", &"a".repeat(40)], 2, "an embedded proxy has no security"),
        (&["--topic", "*:x"], 2, "domain of a topic can't be `*`"),
        (&["speed"], 2, "unrecognized subcommand"),
        (&["--plot", "/does/not/exist/a.svg"], 1, "cannot write /does/not/exist/a.svg"),
    ];
    for (arguments, code, says) in cases {
        let ended = xmsg(&[&["bench"], *arguments].concat()).await;
        assert!(ended.stdout.is_empty(), "{arguments:?}");
        ended.failed(*code, says);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_proxy_the_address_is_named() {
    let (proxy, address) = proxy().await;
    within("the end of the proxy", proxy.stop(Duration::from_secs(5))).await;
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    for mode in ["throughput", "latency", "connect", "subscribe", "sync"] {
        let words = ["bench", mode, "--proxy", &address, "--connect-timeout", "300ms"];
        xmsg(&[&words[..], &["--plot", plot.to_str().unwrap()]].concat()).await.failed(3, &address);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no half of a file is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_tells_what_was_measured() {
    let proxy = Proxy::bind("127.0.0.1:0").slow_subscriber(Policy::BLOCK).start().await.unwrap();
    let address = proxy.address().to_string();
    for (words, count) in [
        (&["throughput", "--duration", "1h", "--warmup", "0"][..], "/delivered/messages"),
        (&["throughput", "--count", "1000000000000", "--warmup", "0"], "/delivered/messages"),
        (&["latency", "--rate", "1000", "--duration", "1h", "--warmup", "0"], "/rates/0/delivered_messages"),
        (&["connect", "--count", "1000000000"], "/connections"),
        (&["subscribe", "--count", "1000000000"], "/subscriptions"),
        (&["sync", "--duration", "1h", "--warmup", "0"], "/replies"),
    ] {
        // Connections and subscriptions are checked with control requests.
        let seen = || proxy.totals().received.messages + proxy.totals().requests;
        let before = seen();
        let more = ["--json", "--proxy", &address];
        let running = Running::start(&[&["bench"], words, &more, &PATIENT].concat());
        within("the first messages", async {
            while seen() < before + 50 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        running.signal("INT");
        let ended = running.end().await;
        assert_eq!(ended.code, Some(130), "{words:?}: {}", ended.stderr);
        let document: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(document["interrupted"], true);
        let count = document["result"].pointer(count).unwrap_or_else(|| panic!("{count} in {document}"));
        assert!(number(count) > 0, "{document}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_of_the_warm_up_leaves_nothing_measured() {
    let (proxy, address) = proxy().await;
    let running = Running::start(&[&["bench", "--warmup", "1h", "--proxy", &address], &PATIENT[..]].concat());
    within("the warm-up", async {
        while proxy.totals().received.messages < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    running.signal("INT");
    let ended = running.end().await;
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(String::from_utf8_lossy(&ended.stdout).contains("stopped early"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_ends_it_quietly() {
    let words = ["bench", "--embedded", "-n", "10", "--warmup", "0"];
    let (running, stdout) = Running::start_unread(&[&words[..], &PATIENT].concat());
    drop(stdout);
    let ended = running.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}
