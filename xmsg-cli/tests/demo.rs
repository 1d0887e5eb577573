//! `xmsg demo` loses no message.

mod common;

use common::{Running, within, xmsg};
use tokio::io::{AsyncBufReadExt, BufReader};
use xmsg_tests::http;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost() {
    let cases: [&[&str]; 3] = [
        &[],
        &["--publishers", "3", "--subscribers", "1", "--size", "100000"],
        &["--publishers", "1", "--subscribers", "3", "--size", "12", "--rate", "500"],
    ];
    for arguments in cases {
        let text = xmsg(&[&["demo", "--for", "1s"], arguments].concat()).await.text();
        let totals = text.lines().last().unwrap();
        assert!(totals.starts_with("totals after ") && totals.contains("lost 0, reordered 0"), "{text}");
        let number = |after: &str| -> u64 {
            let rest = &totals[totals.find(after).unwrap() + after.len()..];
            let digits = rest.chars().take_while(|c| *c == ',' || c.is_ascii_digit()).filter(|c| *c != ',');
            digits.collect::<String>().parse().unwrap()
        };
        let subscribers = number(" by ");
        assert!(number("sent ") > 0);
        assert_eq!(number("received "), number("sent ") * subscribers, "{text}");
    }
}

/// A script reads the same totals that are shown to people.
#[tokio::test(flavor = "multi_thread")]
async fn totals_can_be_had_as_json() {
    let ended = xmsg(&["demo", "--for", "300ms", "--json", "--subscribers", "3", "--rate", "500"]).await;
    assert!(ended.stderr.starts_with("xmsg: proxy listening at 127.0.0.1:"), "{}", ended.stderr);
    let totals: serde_json::Value = serde_json::from_slice(&ended.done()).unwrap();
    let sent = totals["sent_messages"].as_u64().unwrap();
    assert!(sent > 0 && totals["seconds"].as_f64() >= Some(0.3), "{totals}");
    assert_eq!(totals["received_messages"], sent * 3);
    assert_eq!((&totals["lost_messages"], &totals["reordered_messages"]), (&0.into(), &0.into()));
    assert_eq!((&totals["publishers"], &totals["subscribers"]), (&2.into(), &3.into()));
    assert_eq!((&totals["size_bytes"], &totals["interrupted"]), (&128.into(), &false.into()));

    let mut endless = Running::start(&["demo", "--json", "--rate", "100"]);
    endless.said("proxy listening at").await;
    endless.signal("INT");
    let ended = endless.end().await;
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    // An interrupt before the demo has started leaves nothing to report.
    if !ended.stdout.is_empty() {
        let totals: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(totals["interrupted"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_can_take_part_and_an_interrupt_ends_it() {
    let (demo, stdout) = Running::start_unread(&["demo", "--rate", "100"]);
    let mut lines = BufReader::new(stdout).lines();
    let first = within("the first line", lines.next_line()).await.unwrap().unwrap();
    let address = first.strip_prefix("proxy listening at ").unwrap();
    // What is read by a program holds no token: with this link one may look.
    let second = within("the second line", lines.next_line()).await.unwrap().unwrap();
    let page = second.strip_prefix("web page: http://").unwrap().strip_suffix('/').unwrap();
    let overview = http::get(page, "/api/v1/overview").await;
    assert_eq!(overview.status, 200, "{}", overview.body);
    assert!(http::get_with(page, "/", "Accept: text/html\r\n").await.body.contains("<html"));
    let subscriber = Running::subscribe(address, &["demo:", "-n", "5"]).await;
    let text = subscriber.end().await.text();
    assert!(
        text.lines().all(|line| line.starts_with("demo:") && line.contains("hello from xmsg demo")),
        "{text}"
    );

    demo.signal("INT");
    let mut last = String::new();
    while let Some(line) = within("totals", lines.next_line()).await.unwrap() {
        last = line;
    }
    assert!(last.contains("lost 0"), "{last}");
    assert_eq!(demo.end().await.code, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_ends_it_quietly() {
    let (demo, stdout) = Running::start_unread(&["demo", "--rate", "10"]);
    drop(stdout);
    let ended = demo.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}
