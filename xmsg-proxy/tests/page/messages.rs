//! Messages that are watched as they come, and published.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use xmsg_core::Message;
use xmsg_tests::raw::Raw;
use xmsg_tests::{next, topic, within};

use super::browser::Browser;
use super::site::Site;

/// What somebody who knows only ZeroMQ writes: it waits until it is subscribed to, and sends one message.
const SCRIPT: &str = "
import sys, zmq
socket = zmq.Context().socket(zmq.XPUB)
socket.connect(sys.argv[1])
while not socket.recv().startswith(b'\\x01level:'):
    pass
socket.send_multipart([b'level:tank', b'', b'17.5 from Python'])
socket.close()
zmq.Context.instance().term()
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_a_python_script_is_seen() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/messages")).await;
    browser.reads("Nothing is watched yet").await;
    browser.check("messages, empty").await;
    browser.write("textbox", "Topics that begin with", "level:").await;
    browser.click("button", "Watch").await;
    browser.reads("Messages so far: 0").await;
    let python = std::env::var("XMSG_TEST_PYTHON").expect("XMSG_TEST_PYTHON: run the tests with ./tests/run");
    let publishers = format!("tcp://127.0.0.1:{}", site.proxy.address().publish_port());
    let script = Command::new(python).args(["-c", SCRIPT, &publishers]).kill_on_drop(true).status();
    assert!(within("the script", script).await.expect("Python runs").success());
    browser.reads("17.5 from Python").await;
    browser.reads("Messages so far: 1").await;
    browser.click("button", "Stop").await;
    browser.find("button", "Watch").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_are_text_and_a_pause_holds_them_back() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/messages?topic=evil")).await;
    browser.reads("Messages so far: 0").await;
    let mut raw = Raw::handshake(site.proxy.address().publish_port(), "PUB").await;
    let long = vec![b'x'; 1 << 20];
    for data in [
        &b"<img src=x onerror=\"document.title='owned'\">"[..],
        "\u{202e}turned".as_bytes(),
        b"\xff\xfe\xfd",
        &long,
    ] {
        raw.send_message(&[&b"evil:<b>topic</b>"[..], b"\xff no metadata", data]).await;
    }
    let text = browser.until("all four", |text| text.contains("Messages so far: 4")).await;
    for part in [
        "<img src=x onerror",
        "\\u{202e}turned",
        "shown as base64",
        "only the first 16 KiB are shown",
        "evil:<b>topic</b>",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(
        browser
            .run("return document.querySelectorAll('main img, main pre *, main b *').length", json!([]))
            .await,
        0
    );
    browser.check("messages").await;
    browser.dark(true).await;
    browser.picture("messages-hostile-dark").await;
    browser.resize(390, 844).await;
    browser.check("messages, on a phone").await;
    browser.picture("messages-hostile-phone").await;
    browser.click("button", "Pause").await;
    raw.send_message(&[&b"evil:late"[..], b"", b"while it is paused"]).await;
    let text = browser.reads("1 wait").await;
    assert!(!text.contains("while it is paused"), "{text}");
    browser.click("button", "Go on").await;
    browser.reads("while it is paused").await;
    browser.write("searchbox", "Keep only those with", "paused").await;
    browser.until("one", |text| !text.contains("turned") && text.contains("while it is paused")).await;
    browser.click("button", "Clear").await;
    browser.until("none", |text| !text.contains("while it is paused")).await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_publishes_and_mistakes_are_said_beside_the_field() {
    let site = Site::start().await;
    let reader = xmsg_tests::connect(&site.proxy);
    let mut subscription =
        within("a subscription", reader.subscribe([topic("page:")])).await.expect("it is made");
    let browser = Browser::start().await;
    browser.open(&site.url("#/messages")).await;
    browser.reads("To publish, log in").await;
    browser.log_in(&site.link()).await;
    browser.click("link", "Messages").await;
    browser.write("textbox", "Topic", "page:test").await;
    browser.choose("The data is", "JSON").await;
    browser.write("textbox", "Data", "{\"pieces\": }").await;
    browser.click("button", "Publish").await;
    browser.reads("This is no JSON").await;
    browser.write("textbox", "Data", "{\"pieces\": 17}").await;
    browser.write("textbox", "Topic", ":").await;
    browser.click("button", "Publish").await;
    browser.reads("the topic `:` has no domain").await;
    browser.check("a mistake in a field").await;
    browser.write("textbox", "Topic", "page:test").await;
    browser.click("button", "Publish").await;
    browser.reads("Published to page:test").await;
    let message = next(&mut subscription).await;
    assert_eq!(
        (message.mime_type().unwrap(), &message.data()[..]),
        ("application/json", &b"{\"pieces\":17}"[..])
    );
    browser.close().await;
}

/// Somebody who sees a topic looks at its messages, at who has sent one, and takes it along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_watched_from_its_row_and_a_message_is_looked_at_and_downloaded() {
    let site = Site::start().await;
    let publisher = xmsg_tests::connect(&site.proxy);
    within("a connection", publisher.connect()).await.unwrap();
    let flow = site.publish_each(&[b"level:tank"], Duration::from_millis(500)).await;
    let downloads = tempfile::tempdir().unwrap();
    let browser = Browser::start().await;
    browser.download_to(downloads.path()).await;
    browser.open(&site.url("#/topics")).await;
    browser.click("link", "Watch level:tank").await;
    browser.reads("Messages so far:").await;
    within("the tap", publisher.wait_for_subscriber(&topic("level:tank"))).await.unwrap();
    let mut message = Message::of("level:tank", 8_675_309.25).unwrap();
    message.edit_meta(|meta| meta.author = Some("daq".to_owned())).unwrap();
    publisher.publish(&message).await.unwrap();
    // It is decoded, and its metadata are there for whoever wants to see them.
    let text = browser.reads("8675309.25").await;
    assert!(text.contains("Metadata") && !text.contains("\"author\""), "{text}");
    browser.click("button", "Stop").await;
    browser.find("button", "Watch").await;
    browser.click_first(".message summary").await;
    browser.reads("\"author\": \"daq\"").await;
    browser.check("a message with its metadata").await;
    browser.picture("messages-metadata").await;

    browser.write("searchbox", "Keep only those with", "8675309.25").await;
    let shown = "return String(document.querySelectorAll('.message').length)";
    browser.until_run("one message", shown, "1").await;
    browser.click("button", "Download").await;
    let path = downloads.path().join("messages.ndjson");
    let text = within("the download", async {
        loop {
            if let Ok(text) = std::fs::read_to_string(&path)
                && text.ends_with('\n')
            {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(text.lines().count(), 1, "{text}");
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&told["topic"], &told["value"]), (&json!("level:tank"), &json!(8_675_309.25)), "{told}");
    assert_eq!(told["meta"]["author"], "daq", "{told}");
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop(flow);
    browser.close().await;
}
