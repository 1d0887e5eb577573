//! Outgoing connections, as somebody makes, tries, changes and deletes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use xmsg_core::Message;
use xmsg_tests::process::Daemon;
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{next, topic, within};
use xmsg_zmq::{Pull, Push, SocketOptions};

use super::browser::Browser;
use super::site::Site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outgoing_connection_is_made_tried_and_deleted() {
    let site = Site::start().await;
    let pull = Pull::new(SocketOptions::default());
    let bound = pull.bind(&"tcp://127.0.0.1:0".parse().expect("an endpoint")).await.expect("a free port");
    let browser = Browser::start().await;
    browser.open(&site.url("#/connect")).await;
    browser.reads("messages do not leave this proxy").await;
    assert!(browser.all("button", "New outgoing connection").await.is_empty());
    browser.log_in(&site.link()).await;
    browser.click("link", "Outgoing and channels").await;

    browser.click("button", "New outgoing connection").await;
    browser.write("textbox", "Name", "feed").await;
    browser.choose("Kind", "ZeroMQ socket").await;
    browser.write("textbox", "Address", "nonsense").await;
    browser.click("button", "Create").await;
    // What is wrong stands beside its field, which has the focus.
    browser.until("the address is wrong", |text| text.contains("address")).await;
    browser.until_mistake("Address").await;
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

/// Makes an outgoing connection `feed` to a ZeroMQ socket at this address.
async fn create_feed(browser: &Browser, address: &str) {
    browser.click("link", "Outgoing and channels").await;
    browser.click("button", "New outgoing connection").await;
    browser.write("textbox", "Name", "feed").await;
    browser.write("textbox", "Address", address).await;
    browser.click("button", "Create").await;
    browser.reads("feed was created").await;
}

/// What somebody who knows only ZeroMQ writes: it says at which port it listens, and what has come.
const SCRIPT: &str = "
import zmq
socket = zmq.Context().socket(zmq.PULL)
print(socket.bind_to_random_port('tcp://127.0.0.1'), flush=True)
topic, meta, data = socket.recv_multipart()
print(topic.decode(), b'a test message' in data, flush=True)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_message_gets_to_a_python_script() {
    let site = Site::start().await;
    let python = std::env::var("XMSG_TEST_PYTHON").expect("XMSG_TEST_PYTHON: run the tests with ./tests/run");
    let mut script = Daemon::start(python, &["-c", SCRIPT]);
    let port = script.line().await;
    let browser = Browser::start().await;
    browser.log_in(&site.link()).await;
    create_feed(&browser, &format!("tcp://127.0.0.1:{port}")).await;
    browser.click("button", "Send a test message by feed").await;
    browser.write("textbox", "Topic", "feed:python").await;
    browser.click("button", "Send and wait for the peer").await;
    browser.reads("The peer of feed has message").await;
    assert_eq!(script.line().await, "feed:python True");
    assert!(script.end().await.success());
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_is_made_tried_changed_and_deleted() {
    let site = Site::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let address = format!("ipc://{}/in", folder.path().display());
    let reader = xmsg_tests::connect(&site.proxy);
    let topics = [topic("line"), topic("other")];
    let mut messages = within("a subscription", reader.subscribe(topics)).await.expect("it is made");
    let browser = Browser::start().await;
    browser.log_in(&site.link()).await;
    browser.click("link", "Outgoing and channels").await;

    browser.click("button", "New channel").await;
    browser.write("textbox", "Name", "in").await;
    browser.write("textbox", "Target", "topic:line").await;
    browser.write("textbox", "Address", "udp://x").await;
    browser.click("button", "Create").await;
    browser.until_mistake("Address").await;
    browser.check("a new channel with a mistake").await;
    browser.write("textbox", "Address", &address).await;
    browser.click("button", "Create").await;
    browser.reads("in was created").await;
    let push = Push::new(SocketOptions::default());
    push.connect(address.parse().expect("an endpoint"));
    within("it is sent", push.send(["x"])).await.expect("the socket is open");
    assert_eq!(next(&mut messages).await.topic().as_bytes(), b"line");
    let state = "return document.querySelector('td b.good')?.textContent ?? ''";
    browser.until_run("it is connected", state, "connected").await;
    browser.click("button", "Ping in").await;
    browser.reads("The peer of in answered").await;
    browser.check("a channel").await;

    browser.click("button", "Disable in").await;
    browser.reads("inactive").await;
    browser.click("button", "Enable in").await;
    browser.until_run("it is connected again", state, "connected").await;
    browser.click("button", "Change in").await;
    browser.write("textbox", "Target", "topic:other").await;
    browser.click("button", "Save").await;
    browser.reads("in was changed").await;
    browser.reads("topic:other").await;
    let changed = async {
        // Its socket may have been made anew, and a message be on its way to the former one.
        loop {
            push.send(["y"]).await.expect("the socket is open");
            let arrived = tokio::time::timeout(Duration::from_millis(100), next(&mut messages)).await;
            if arrived.is_ok_and(|message| message.topic().as_bytes() == b"other") {
                return;
            }
        }
    };
    within("a message under the other topic", changed).await;
    browser.click("button", "Delete in").await;
    browser.check("the question whether a channel is to be deleted").await;
    browser.click("button", "Delete").await;
    browser.reads("in was deleted").await;
    browser.reads("nothing comes in but from publishers").await;
    assert_eq!(browser.mistakes().await.iter().filter(|line| !line.contains("422")).count(), 0);
    browser.close().await;
}

/// Dead letters may be days old, and whoever reads of them may be far from the proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_have_their_time_in_the_zone_of_the_reader_and_their_date() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    browser.log_in(&site.link()).await;
    browser.zone("Asia/Tokyo").await;
    create_feed(&browser, "tcp://127.0.0.1:1").await;
    // No letter of a test is old enough, so these are made up: one of another day, and one of now.
    let answer = "const asked = window.fetch; \
        const dead = ['2020-01-31T15:03:05Z', new Date(arguments[0] * 1000).toISOString()].map((since, at) => \
            ({ sequence: at + 1, topic: 'a:b', size: 3, dead_since: since, reason: 'no queue' })); \
        const headers = { 'Content-Type': 'application/json' }; \
        window.fetch = (path, options) => String(path).endsWith('/dead') \
            ? Promise.resolve(new Response(JSON.stringify({ dead }), { headers })) : asked(path, options)";
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs();
    browser.run(answer, json!([now])).await;
    browser.click("button", "Dead letters of feed").await;
    browser.reads("2020-02-01 00:03:05").await;
    // Tokyo is nine hours ahead, in all seasons.
    let there = now + 9 * 3600;
    browser.reads(&format!("{:02}:{:02}:{:02}", there / 3600 % 24, there / 60 % 60, there % 60)).await;
    browser.check("dead letters of another day").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}

/// A message that no queue takes becomes a dead letter, is seen, and goes out again once there is a queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_connected_and_dead_letters_are_sent_again_or_deleted() {
    let broker = Broker::shared().await;
    let site = Site::start().await;
    let browser = Browser::start().await;
    browser.log_in(&site.link()).await;
    browser.click("link", "Outgoing and channels").await;

    browser.click("button", "New connection to a broker").await;
    browser.write("textbox", "Name", "broker").await;
    browser.write("textbox", "Addresses of the broker", "amqp://me:sesame@127.0.0.1").await;
    browser.click("button", "Create").await;
    // A password stands in a file, and the page does not repeat it.
    let text = browser.reads("it belongs into `username` and `password_file`").await;
    assert!(!text.contains("sesame"), "{text}");
    browser.check("a connection to a broker with a mistake").await;
    let address = format!("amqp://127.0.0.1:{}", broker.port());
    browser.write("textbox", "Addresses of the broker", &address).await;
    browser.click("button", "Create").await;
    browser.reads("broker was created").await;
    browser.click("button", "Ping broker").await;
    browser.reads("The peer of broker answered").await;

    browser.click("button", "New outgoing connection").await;
    browser.write("textbox", "Name", "orders").await;
    browser.choose("Kind", "RabbitMQ (AMQP)").await;
    browser.write("textbox", "Connection to the broker", "brooker").await;
    browser.write("textbox", "Exchange", "amq.direct").await;
    browser.write("textbox", "Routing key", "page.test").await;
    browser.write("textbox", "Further fields, as JSON", "{\"on_return\": \"dead_letter\"}").await;
    browser.click("button", "Create").await;
    browser.until_mistake("Connection to the broker").await;
    browser.check("a new outgoing connection to a broker with a mistake").await;
    browser.picture("connect-amqp-mistake").await;
    browser.write("textbox", "Connection to the broker", "broker").await;
    browser.click("button", "Create").await;
    browser.reads("orders was created").await;
    browser.reads("connected").await;

    // No queue is bound.
    browser.click("button", "Send a test message by orders").await;
    browser.write("textbox", "Topic", "orders:<b>new</b>").await;
    browser.click("button", "Send and wait for the peer").await;
    browser.reads("no queue").await;
    browser.click("button", "Close").await;
    browser.click("button", "Dead letters of orders").await;
    browser.reads("orders:<b>new</b>").await;
    browser.check("a dead letter").await;
    browser.picture("dead-letters").await;
    let [first] = site.dead("orders").await[..] else { panic!("one dead letter") };
    broker.declare_queue("page.orders").await;
    broker.bind("page.orders", "amq.direct", "page.test").await;
    browser.click("button", &format!("Send again message {first}")).await;
    browser.reads("everything was delivered, or waits in the spool").await;
    browser.click("button", "Close").await;
    broker.queue_reaches("page.orders", 1).await;
    let queued = broker.drain("page.orders").await;
    assert_eq!(queued.len(), 1);

    // And another one, which nobody wants.
    broker.delete_queue("page.orders").await;
    browser.click("button", "Send a test message by orders").await;
    browser.click("button", "Send and wait for the peer").await;
    browser.reads("no queue").await;
    browser.click("button", "Close").await;
    browser.click("button", "Dead letters of orders").await;
    browser.reads("test:page").await;
    let [second] = site.dead("orders").await[..] else { panic!("one dead letter") };
    browser.click("button", &format!("Delete message {second}")).await;
    browser.reads("everything was delivered, or waits in the spool").await;
    browser.click("button", "Close").await;
    assert_eq!(site.dead("orders").await, [0; 0]);

    // What goes out comes in again, by a channel.
    broker.declare_queue("page.back").await;
    broker.bind("page.back", "amq.direct", "page.test").await;
    let reader = xmsg_tests::connect(&site.proxy);
    let mut back = within("a subscription", reader.subscribe([topic("back")])).await.expect("it is made");
    browser.click("button", "New channel").await;
    browser.write("textbox", "Name", "back").await;
    browser.choose("Kind", "RabbitMQ (AMQP)").await;
    browser.write("textbox", "Target", "topic:back").await;
    browser.write("textbox", "Connection to the broker", "broker").await;
    browser.write("textbox", "Queue", "page.back").await;
    browser.click("button", "Create").await;
    browser.reads("back was created").await;
    browser.click("button", "Send a test message by orders").await;
    browser.click("button", "Send and wait for the peer").await;
    browser.reads("The peer of orders has message").await;
    assert_eq!(next(&mut back).await.value::<String>().expect("a text"), "a test message");
    // What others refer to stays.
    browser.click("button", "Delete broker").await;
    browser.click("button", "Delete").await;
    browser.reads("is used by").await;
    browser.click("button", "Cancel").await;
    let expected = |line: &String| ["422", "502", "409"].iter().any(|status| line.contains(status));
    assert_eq!(browser.mistakes().await.iter().filter(|line| !expected(line)).count(), 0);
    browser.close().await;
}
