//! Outgoing connections, as somebody makes, tries, changes and deletes them.

use xmsg_core::Message;
use xmsg_tests::within;
use xmsg_zmq::{Pull, SocketOptions};

use super::browser::Browser;
use super::site::{Site, TOKEN};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outgoing_connection_is_made_tried_and_deleted() {
    let site = Site::start().await;
    let pull = Pull::new(SocketOptions::default());
    let bound = pull.bind(&"tcp://127.0.0.1:0".parse().expect("an endpoint")).await.expect("a free port");
    let browser = Browser::start().await;
    browser.open(&site.url("#/connect")).await;
    browser.reads("messages do not leave this proxy").await;
    assert!(browser.all("button", "New outgoing connection").await.is_empty());
    browser.open(&site.url(&format!("#token={TOKEN}"))).await;
    browser.reads("Log out (operator)").await;
    browser.click("link", "Outgoing and channels").await;

    browser.click("button", "New outgoing connection").await;
    browser.write("textbox", "Name", "feed").await;
    browser.choose("Kind", "ZeroMQ socket").await;
    browser.write("textbox", "Address", "nonsense").await;
    browser.click("button", "Create").await;
    // What is wrong stands beside its field, which has the focus.
    browser.until("the address is wrong", |text| text.contains("address")).await;
    let focused = "return document.activeElement.labels[0].textContent + (document.activeElement.getAttribute('aria-invalid') ?? '')";
    browser.until_run("the field with the mistake", focused, "Addresstrue").await;
    browser.check("a new outgoing connection with a mistake").await;
    browser.picture("connect-mistake").await;
    browser.write("textbox", "Address", &bound.to_string()).await;
    browser.write("textbox", "Topics that begin with", "feed").await;
    browser.click("button", "Create").await;
    browser.reads("feed was created").await;
    browser.reads("connected").await;

    browser.click("button", "Send a test message by feed").await;
    browser.write("textbox", "Topic", "feed:test").await;
    browser.click("button", "Send and wait for the peer").await;
    let message = within("the message", pull.recv()).await.expect("it comes");
    let [topic, meta, data] = <[_; 3]>::try_from(message.frames().to_vec()).expect("three frames");
    let message = Message::from_frames(topic, meta, data);
    let text = message.value::<String>().expect("a text");
    assert_eq!((message.topic().as_bytes(), &*text), (&b"feed:test"[..], "a test message"));
    browser.reads("The peer of feed has message").await;
    browser.click("button", "Ping feed").await;
    browser.reads("The peer of feed answered").await;
    browser.check("outgoing connections").await;
    browser.picture("connect-light").await;
    browser.dark(true).await;
    browser.picture("connect-dark").await;
    browser.dark(false).await;

    browser.click("button", "Disable feed").await;
    browser.reads("inactive").await;
    browser.click("button", "Enable feed").await;
    browser.reads("connected").await;
    browser.click("button", "Dead letters of feed").await;
    browser.reads("everything was delivered").await;
    browser.check("dead letters").await;
    browser.click("button", "Close").await;
    browser.click("button", "Change feed").await;
    browser.write("textbox", "Name", "line").await;
    browser.click("button", "Save").await;
    browser.reads("line was changed").await;
    browser.find("button", "Ping line").await;
    browser.click("button", "Delete line").await;
    browser.click("button", "Delete").await;
    browser.reads("messages do not leave this proxy").await;
    assert_eq!(browser.mistakes().await.iter().filter(|line| !line.contains("422")).count(), 0);
    browser.close().await;
}
