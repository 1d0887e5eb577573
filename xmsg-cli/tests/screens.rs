//! Views on a terminal, through a real pseudo-terminal. What they showed is kept as text in `target/tmp/screens`.

mod common;

use common::terminal::{Terminal, keep};
use common::{Running, within};

/// What the demo shows once it is at work: the slow subscriber has lost something.
fn is_at_work(text: &str) -> bool {
    let dropped =
        text.lines().find(|line| line.starts_with("archive")).and_then(|line| line.split_whitespace().last());
    text.contains("hall:vacuum:pressure")
        && dropped.is_some_and(|dropped| dropped != "0" && dropped.starts_with(|c: char| c.is_ascii_digit()))
}

/// The addresses and commands that the demo tells.
fn told(text: &str, command: &str) -> Vec<String> {
    let line =
        text.lines().find(|line| line.contains(command)).unwrap_or_else(|| panic!("no {command:?}: {text}"));
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_is_a_picture_that_others_take_part_in() {
    for (columns, rows) in [(80, 24), (200, 60)] {
        let mut demo = Terminal::start(columns, rows, &[], &["demo"]);
        let text = demo.shows("losses of the archive", is_at_work).await;
        keep(&format!("demo-{columns}x{rows}"), &text);
        for part in [
            "beam:current",
            " uA",
            " K",
            "detector:event",
            "display",
            "run control",
            "published",
            "q ends the demo",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("xmsg:control"), "{text}");
        assert!(demo.written().contains("\x1b[1"), "there are colours or bold letters");

        let words = told(&text, " pub beam:note 'hello' ");
        let address = words.last().unwrap();
        let publisher = Running::start(&["pub", "beam:note", "\x1b[2Jhello\nsecond", "--proxy", address]);
        publisher.end().await.done();
        demo.shows("what another terminal published", |text| text.contains("beam:note")).await;
        let words = told(&text, " sub beam: ");
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["-n", "3"]).collect();
        let lines = Running::start(&words).end().await.text();
        assert!(lines.lines().count() == 3 && lines.starts_with("beam:"), "{lines}");

        demo.press("q");
        assert_eq!(demo.end().await, Some(0));
        demo.shows("a farewell", |text| text.contains("demo --for 5s")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_follows_the_size_of_its_terminal_and_asks_for_no_colours_where_they_are_unwanted() {
    let mut demo = Terminal::start(80, 24, &[("NO_COLOR", "1")], &["demo"]);
    demo.shows("topics", |text| text.contains("LAST 20 SECONDS")).await;
    demo.resize(200, 60);
    demo.shows("a longer history", |text| text.contains("LAST MINUTE")).await;
    demo.resize(20, 5);
    demo.resize(1, 1);
    demo.resize(80, 24);
    demo.shows("the first size", |text| text.contains("LAST 20 SECONDS") && text.contains("q ends")).await;
    let written = demo.written();
    for colour in 30..38 {
        assert!(
            !written.contains(&format!("\x1b[{colour}m"))
                && !written.contains(&format!("[38;5;{}m", colour - 30))
        );
    }
    // Ctrl-C, which is a key now.
    demo.press("\x03");
    assert_eq!(demo.end().await, Some(130));
    assert!(demo.written().contains("\x1b[?1049l"), "the terminal is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_gives_the_terminal_back() {
    let mut demo = Terminal::start(80, 24, &[], &["demo"]);
    demo.shows("topics", |text| text.contains("beam:current")).await;
    demo.signal("TERM");
    assert_eq!(demo.end().await, Some(143));
    assert!(demo.written().contains("\x1b[?1049l"), "the terminal is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_or_with_a_time_the_demo_writes_lines() {
    let mut demo = Terminal::start(80, 24, &[], &["demo", "--for", "1s"]);
    demo.shows("totals", |text| text.contains("totals after")).await;
    assert_eq!(demo.end().await, Some(0));
    let mut dumb = Terminal::start(80, 24, &[("TERM", "dumb")], &["demo"]);
    dumb.shows("a line", |text| text.contains("published/s")).await;
    dumb.signal("INT");
    assert_eq!(within("the end", dumb.end()).await, Some(130));
}
