//! Views on a terminal, tested with a real pseudo-terminal. What they showed is kept as text in
//! `target/tmp/screens`.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::terminal::{Terminal, keep};
use common::{Running, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xmsg_proxy::Proxy;

/// Returns whether the demo is running: the slow subscriber has lost messages.
fn is_at_work(text: &str) -> bool {
    let dropped =
        text.lines().find(|line| line.starts_with("archive")).and_then(|line| line.split_whitespace().last());
    text.contains("detector:event")
        && dropped.is_some_and(|dropped| dropped != "0" && dropped.starts_with(|c: char| c.is_ascii_digit()))
}

/// Returns the words of a command that the demo shows.
fn told(text: &str, command: &str) -> Vec<String> {
    // A command that does not fit continues in the next line, as a shell accepts it.
    let text = text.replace("\\\n", "");
    let line =
        text.lines().find(|line| line.contains(command)).unwrap_or_else(|| panic!("no {command:?}: {text}"));
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_is_a_picture_that_others_take_part_in() {
    // The commands that are shown can be pasted, even if the path of the program is longer than a line.
    let directory = tempfile::tempdir().unwrap();
    let program_of = |length: usize| {
        let missing = length.saturating_sub(directory.path().as_os_str().len() + "//xmsg".len());
        let folder = directory.path().join("d".repeat(missing.max(1)));
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("xmsg");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_xmsg"), &program).unwrap();
        program
    };
    for (columns, rows, length) in [(80, 24, 20), (80, 24, 36), (80, 24, 70), (200, 60, 40), (80, 40, 135)] {
        let mut demo = Terminal::start_at(&program_of(length), columns, rows, &[], &["demo"]);
        let text = demo.shows("losses of the archive", is_at_work).await;
        keep(&format!("demo-{columns}x{rows}-{length}"), &text);
        for part in [
            "beam:current",
            " uA",
            "detector:event",
            "display",
            "run control",
            "published",
            "q ends the demo",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Commands that need another line take it from the list of topics, and the screen says so.
        assert!(text.contains(" K") || rows == 24 && text.contains(" more"), "{text}");
        assert!(!text.contains("xmsg:control"), "{text}");
        assert!(demo.written().contains("\x1b[1"), "there are colours or bold letters");
        assert!(demo.written().contains("\x1b[?2026h"), "terminals that can show a drawing all at once");

        // The link in the picture leads to the web page.
        let link = text.lines().find_map(|line| line.split_once("In a browser: http://")).unwrap().1.trim();
        let (page, code) = link.split_once("/#code=").unwrap();
        assert!(code.len() == 32 && code.bytes().all(|byte| byte.is_ascii_hexdigit()), "{link}");
        let mut browser = within("connect", tokio::net::TcpStream::connect(page)).await.unwrap();
        let request =
            format!("GET / HTTP/1.1\r\nHost: {page}\r\nAccept: text/html\r\nConnection: close\r\n\r\n");
        browser.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("the page", browser.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("/page/js/app.js"), "{answer}");

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

/// The words of a screen that are there in each run: without numbers, addresses, values and what is drawn.
fn lasting_words(screen: &str) -> BTreeSet<String> {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "code"];
    let mut words = BTreeSet::new();
    for line in screen.lines() {
        // Behind a plot are the latest values; behind a sign of its own is the code of a link.
        let line = line.split(|c| ('▁'..='█').contains(&c)).next().unwrap_or_default();
        let line = line.split("#code=").next().unwrap_or_default();
        let letters = line.split(|c: char| !c.is_alphabetic()).filter(|word| word.chars().count() >= 3);
        words.extend(letters.filter(|word| !UNITS.contains(word)).map(str::to_owned));
    }
    words
}

/// The lines of a screen that was drawn as a picture.
fn text_of(svg: &str) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    for element in svg.split("<text ").skip(1) {
        let (attributes, rest) = element.split_once('>').unwrap();
        let y = attributes.split("y=\"").nth(1).unwrap().split('"').next().unwrap();
        let text = rest.split("</text>").next().unwrap();
        let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        match lines.last_mut().filter(|(last, _)| last == y) {
            Some((_, line)) => line.push_str(&text),
            None => lines.push((y.to_owned(), text)),
        }
    }
    lines.into_iter().map(|(_, line)| line + "\n").collect()
}

/// Draws a picture of the documents, after this time, if `XMSG_TEST_PICTURES` names their folder, as
/// `tests/pictures` does; otherwise compares the words in it with those that are shown now.
async fn draw_or_compare(terminal: &Terminal, name: &str, after: Duration) {
    let folder = std::env::var_os("XMSG_TEST_PICTURES");
    if let Some(folder) = folder {
        tokio::time::sleep(after).await;
        std::fs::write(std::path::Path::new(&folder).join(name), terminal.svg()).unwrap();
        return;
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pictures").join(name);
    let words = lasting_words(&text_of(&std::fs::read_to_string(&path).unwrap()));
    assert!(words.len() > 10, "{words:?}");
    let what = format!("what docs/pictures/{name} shows (tests/pictures draws it anew): {words:?}");
    terminal
        .shows(&what, |text| lasting_words(&text.replace(env!("CARGO_BIN_EXE_xmsg"), "xmsg")) == words)
        .await;
}

/// The picture of the README shows the demo as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_screen_can_be_drawn_as_a_picture() {
    let mut demo = Terminal::start(100, 26, &[], &["demo"]);
    demo.shows("losses of the archive", is_at_work).await;
    draw_or_compare(&demo, "demo.svg", Duration::from_secs(62)).await;
    let svg = demo.svg();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert!(svg.contains(">beam:current ") && svg.contains("fill=\"#e3b341\""), "{svg}");
    // All tags are closed, and no text between them looks like a tag.
    assert_eq!(svg.matches("<text ").count(), svg.matches("</text>").count());
    assert!(text_of(&svg).contains("PER S") && svg.len() < 150 << 10, "{}", text_of(&svg));
    demo.press("q");
    assert_eq!(demo.end().await, Some(0));
}

/// Starts a proxy whose queues hold 100 KB for each subscriber.
async fn proxy_with_little_room() -> Proxy {
    let proxy = Proxy::bind("127.0.0.1:0").high_water_mark(xmsg_zmq::HighWaterMark::bytes(100_000));
    proxy.start().await.unwrap()
}

/// The picture of `xmsg top`, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_picture_of_top_shows_it_as_it_is() {
    let proxy = proxy_with_little_room().await;
    let address = proxy.address().to_string();
    let (stalled, stdout) = Running::start_unread(&["sub", "camera", "--raw", "--proxy", &address]);
    let reader = Running::subscribe(&address, &["beam"]).await;
    let publish = |topic: &str, text: &str, rate: &str| {
        let more = ["--template", "--rate", rate, "--count", "1000000", "--wait-sub", "--proxy", &address];
        Running::start(&[&["pub", topic, text], &more[..]].concat())
    };
    let writers = [
        publish("camera:hall", "{{Random 100000}}", "200"),
        publish("beam:current", "{{Random 20}}", "50"),
        publish("beam:energy", "{{Random 20}}", "20"),
    ];
    let mut top = Terminal::start(100, 22, &[], &["top", "--sort", "drops", "--proxy", &address]);
    let is_complete = |text: &str| {
        let is_slow =
            |line: &str| line.starts_with("subscriber") && line.split_whitespace().last() != Some("-");
        text.lines().any(is_slow)
            && ["camera:hall", "beam:current", "beam:energy"].iter().all(|one| text.contains(one))
    };
    top.shows("a slow subscriber and all topics", is_complete).await;
    draw_or_compare(&top, "top.svg", Duration::from_secs(15)).await;
    top.press("q");
    assert_eq!(top.end().await, Some(0));
    drop((stalled, stdout, reader));
    for mut writer in writers {
        writer.signal("KILL");
        writer.stdin.take();
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
    // In raw mode, Ctrl-C is a key.
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

/// Publishes repeatedly: once to each of `count` topics, and a hundred times as often to number 7.
fn publish_to_many(address: &str, count: u32) -> tokio::task::JoinHandle<()> {
    let connection = xmsg_core::Connection::new(address).unwrap();
    tokio::spawn(async move {
        connection.connect().await.unwrap();
        loop {
            for number in
                (0..count).flat_map(|number| [Some(number), (number % 100 == 0).then_some(7)]).flatten()
            {
                let message = xmsg_core::Message::of(format!("many:{number:05}"), "x").unwrap();
                connection.publish(&message).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_a_proxy_with_ten_thousand_topics_and_keys_choose_what() {
    let (_proxy, address) = proxy().await;
    let publisher = publish_to_many(&address, 10_000);
    let reader = Running::subscribe(&address, &["many:0000"]).await;
    for (columns, rows) in [(80, 24), (200, 60)] {
        let mut top =
            Terminal::start(columns, rows, &[], &["top", "--interval", "300ms", "--proxy", &address]);
        let is_full = |text: &str| {
            text.contains("subscriber") && text.contains("many:") && text.contains("Connections: ")
        };
        let text = top.shows("connections and topics", is_full).await;
        keep(&format!("top-{columns}x{rows}"), &text);
        assert!(text.contains("q quits") && text.lines().count() <= rows.into(), "{text}");
        let totals = text.lines().nth(1).unwrap();
        assert!(totals.starts_with("dropped ") && totals.contains(" in all; in "), "{text}");
        top.press("/many:00007\r");
        let is_alone = |text: &str| text.contains("Topics: 1 of the first") && text.contains("many:00007 ");
        top.shows("one topic alone", is_alone).await;
        top.press("\x1bt");
        top.shows("connections alone", |text| !text.contains("Topics:")).await;
        top.press("t");
        top.shows("topics alone", |text| !text.contains("Connections:")).await;
        top.press("n");
        top.shows("them by name", |text| text.contains("(name)")).await;
        top.press("p");
        top.shows("that it is paused", |text| text.contains("paused")).await;
        top.press("q");
        assert_eq!(top.end().await, Some(0));
        assert!(top.written().contains("\x1b[?1049l"), "the terminal is as it was");
    }
    publisher.abort();
    drop(reader);
}

#[tokio::test(flavor = "multi_thread")]
async fn top_names_who_is_slow_and_outlives_a_restart_of_the_proxy() {
    let proxy = proxy_with_little_room().await;
    let address = proxy.address().to_string();
    let (stalled, stdout) = Running::start_unread(&["sub", "big", "--raw", "--proxy", &address]);
    let mut writer = Running::start(&[
        "pub",
        "big",
        "{{Random 100000}}",
        "--template",
        "--rate",
        "500",
        "--count",
        "1000000",
        "--wait-sub",
        "--proxy",
        &address,
    ]);
    let mut top = Terminal::start(
        120,
        30,
        &[("NO_COLOR", "1")],
        &["top", "--interval", "300ms", "--sort", "drops", "--proxy", &address],
    );
    let is_slow = |text: &str| {
        text.lines().any(|line| line.starts_with("subscriber") && line.split_whitespace().last() != Some("-"))
    };
    let text = top.shows("a slow subscriber", is_slow).await;
    keep("top-slow-subscriber", &text);
    drop((stalled, stdout));

    within("the end of the proxy", proxy.stop(Duration::from_secs(1))).await;
    top.shows("that the proxy is away", |text| text.contains("does not answer: trying again")).await;
    let again = within("another one", async {
        loop {
            if let Ok(proxy) = Proxy::bind(&address).start().await {
                return proxy;
            }
            // Another process may have the port for a moment.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    top.shows("that it is back", |text| !text.contains("trying again") && text.contains("; in ")).await;
    let written = top.written();
    assert!((30..38).all(|colour| !written.contains(&format!("\x1b[{colour}m"))), "no colours were wanted");
    top.press("\x03");
    assert_eq!(top.end().await, Some(130));
    writer.signal("KILL");
    writer.stdin.take();
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_peers_chose_do_nothing_to_a_terminal() {
    let (_proxy, address) = proxy().await;
    let hostile = "evil\x1b[2J\x1b]0;gotcha\x07\u{202e}\u{9b}2J\r\ntwo";
    let connection = xmsg_core::Connection::new(&*address).unwrap();
    connection.connect().await.unwrap();
    let topic = xmsg_core::Topic::wrap(hostile.as_bytes().to_vec());
    let publisher = tokio::spawn(async move {
        loop {
            connection.publish(&xmsg_core::Message::of(topic.clone(), "x").unwrap()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut top = Terminal::start(120, 24, &[], &["top", "--interval", "300ms", "--proxy", &address]);
    let text = top.shows("the topic", |text| text.contains("evil")).await;
    keep("top-hostile-topic", &text);
    assert!(text.contains(r"evil\u{1b}[2J"), "{text}");
    let written = top.written();
    assert!(
        !written.contains("\x1b]0;gotcha") && !written.contains('\u{202e}') && !written.contains('\u{9b}')
    );
    top.press("q");
    assert_eq!(top.end().await, Some(0));
    publisher.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_to_nobody_is_told_on_a_terminal() {
    let (_proxy, address) = proxy().await;
    let on_terminal = async |arguments: &[&str]| {
        let arguments = [arguments, &["--proxy", &address]].concat();
        let mut publisher = Terminal::start(200, 24, &[("XMSG_CONFIG", "/dev/null")], &arguments);
        assert_eq!(publisher.end().await, Some(0), "{}", publisher.text());
        publisher.text().trim().to_owned()
    };
    let said = |topic: &str, what: &str| {
        format!(
            "xmsg: nobody subscribes to {topic} at {address}: the {what} went nowhere \
             (--wait-sub waits for a subscriber)"
        )
    };
    let other = Running::subscribe(&address, &["other"]).await;
    assert_eq!(on_terminal(&["pub", "t:x", "hello"]).await, said("t:x", "message"));
    assert_eq!(on_terminal(&["pub", "t", "hello", "-n", "3"]).await, said("t", "3 messages"));
    assert_eq!(on_terminal(&["-q", "pub", "t:x", "hello"]).await, "");
    // A program that captures standard error gets no such note, because it comes too late for its user to
    // react.
    let ended = common::xmsg(&["pub", "t:x", "hello", "--proxy", &address]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));

    let subscriber = Running::subscribe(&address, &["t", "-n", "2"]).await;
    assert_eq!(on_terminal(&["pub", "t:x", "hello"]).await, "");
    assert_eq!(on_terminal(&["pub", "t:x", "hello", "--wait-sub"]).await, "");
    assert_eq!(subscriber.end().await.text(), "t:x hello\nt:x hello\n");
    // The topics lie before and after those that the proxy itself subscribes to. The subscriber leaves as
    // soon as it has its message.
    for topic in ["a", "zz"] {
        let subscriber = Running::subscribe(&address, &[topic, "-n", "1"]).await;
        assert_eq!(on_terminal(&["pub", topic, "hello"]).await, "");
        subscriber.end().await.done();
    }
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_to_nobody_is_told_on_a_terminal_and_in_its_totals() {
    let (_proxy, address) = proxy().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.xmr").display().to_string();
    let topics = ["t:1", "t:2", "t:3", "t:4", "t:5"];
    let mut recorder = Running::start(&["-v", "record", &path, "-n", "6", "--proxy", &address]);
    recorder.said("recording ").await;
    for topic in [&topics[..], &["t:1"]].concat() {
        common::publish(&address, &[topic, "hello"], b"").await;
    }
    recorder.end().await.done();

    let arguments = |more: &[&'static str]| {
        [&["replay", path.as_str(), "--speed", "max", "--proxy", &address][..], more].concat()
    };
    let on_terminal = async |more: &[&'static str]| {
        let mut replay = Terminal::start(200, 24, &[("XMSG_CONFIG", "/dev/null")], &arguments(more));
        assert_eq!(replay.end().await, Some(0), "{}", replay.text());
        replay.text().trim().to_owned()
    };
    let said = |topics: &str, what: &str| {
        format!(
            "xmsg: nobody subscribes to {topics} at {address}: the {what} went nowhere \
             (--wait-sub waits for a subscriber)"
        )
    };
    let totals = async |more: &[&'static str]| {
        let ended = common::xmsg(&arguments(more)).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        (String::from_utf8(ended.stdout).unwrap(), ended.stderr)
    };
    assert_eq!(on_terminal(&[]).await, said("t:1, t:2, t:3, nor to 2 more", "6 messages"));
    assert_eq!(on_terminal(&["--topic", "t:2"]).await, said("t:2", "message"));
    assert_eq!(on_terminal(&["-q"]).await, "");
    assert_eq!(on_terminal(&["--topic", "none"]).await, "");
    // A program that captures standard error gets no such note, because it comes too late for its user to
    // react.
    assert_eq!(totals(&[]).await, (String::new(), String::new()));
    let (_, noted) = totals(&["-v"]).await;
    assert!(noted.ends_with(" bytes); nobody subscribed to them\n"), "{noted}");
    assert!(totals(&["--json"]).await.0.contains("\"nobody_subscribed\":true"));

    // One subscriber of one topic is enough, and it may leave as soon as it has its message.
    let subscriber = Running::subscribe(&address, &["t:5", "-n", "3"]).await;
    assert_eq!(on_terminal(&[]).await, "");
    let (_, noted) = totals(&["-v"]).await;
    assert!(noted.ends_with(" bytes)\n"), "{noted}");
    assert!(totals(&["--json"]).await.0.contains("\"nobody_subscribed\":false"));
    subscriber.end().await.done();
}
