//! `/api/v1/tap`: messages as they pass, counted whole and shown in part, and who is told of it.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::net::TcpListener;
use std::sync::Arc;

use serde_json::{Value, json};
use xmsg_core::security::{KeyPair, Security};
use xmsg_core::{Connection, Message, ProxyAddress};
use xmsg_proxy::admin::{Admin, Sources, Token, Tokens};
use xmsg_proxy::security::{Mechanism, Rights, Rules};
use xmsg_proxy::{Proxy, UpstreamState};
use xmsg_tests::http::{Events, Response, get_with};
use xmsg_tests::raw::{Raw, message};
use xmsg_tests::{patient, proxy, topic, until, within};
use xmsg_zmq::{Endpoint, Publisher, SocketOptions};
use xmsg_zmtp::Command;

const OPERATOR: &str = "operator-0123456789abcdef";
const VIEWER: &str = "viewer-0123456789abcdef";

/// The HTTP server of a proxy, without a way to publish.
fn serve(proxy: &Proxy, viewer_may_watch: bool) -> (Admin, String) {
    let token = |text| Some(Token::new(text).unwrap());
    let tokens =
        Tokens { operator: token(OPERATOR), viewer: token(VIEWER), open_to_look: true, viewer_may_watch };
    let sources = Sources { proxy: Some(proxy.monitor()), ..Sources::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = Admin::start(listener, "xmsg-proxy", sources, tokens, json!({})).unwrap();
    let address = admin.address().to_string();
    (admin, address)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// Somebody who watches, with all that was told so far.
struct Watching {
    events: Events,
    shown: Vec<Value>,
    messages: u64,
    left_out: u64,
}

impl Watching {
    /// Watches. From then on everything is counted.
    async fn start(address: &str, query: &str, headers: &str) -> Result<Self, Response> {
        let events = Events::open(address, &format!("/api/v1/tap?{query}"), headers).await?;
        let mut watching = Self { events, shown: Vec::new(), messages: 0, left_out: 0 };
        assert!(watching.next().await);
        Ok(watching)
    }

    async fn next(&mut self) -> bool {
        let Some((name, data)) = self.events.next().await else { return false };
        let data: Value = serde_json::from_str(&data).unwrap();
        if name == "message" {
            self.shown.push(data);
        } else {
            assert_eq!(name, "counts");
            let count = |name: &str| data[name].as_u64().unwrap();
            (self.messages, self.left_out) = (count("messages"), count("left_out"));
        }
        true
    }

    /// Reads until so many messages were counted, and all that are shown have come.
    async fn reaches(&mut self, messages: u64) {
        while self.messages < messages || (self.shown.len() as u64) < self.messages - self.left_out {
            assert!(self.next().await, "the stream has ended");
        }
        assert_eq!((self.messages, self.shown.len() as u64), (messages, messages - self.left_out));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_counted_and_some_are_shown() {
    let proxy = proxy().start().await.unwrap();
    let (_admin, address) = serve(&proxy, false);
    let mut few = Watching::start(&address, "topic=a&rate=5", "").await.unwrap();
    let mut all = Watching::start(&address, "", "").await.unwrap();
    let mut other = Watching::start(&address, "topic=b:c", "").await.unwrap();
    let mut publisher = Raw::handshake(proxy.address().publish_port(), "PUB").await;
    let wire: Vec<u8> = (0..2000)
        .flat_map(|number| {
            let topic = if number % 2 == 0 { "a:x" } else { "b" };
            message(&[topic.as_bytes(), b"", number.to_string().as_bytes()])
        })
        .collect();
    publisher.send(&wire).await;
    few.reaches(1000).await;
    assert!(few.shown.len() >= 5 && few.left_out > 0, "{} shown", few.shown.len());
    assert_eq!((&few.shown[0]["topic"], &few.shown[0]["data"]), (&json!("a:x"), &json!("0")));
    assert!(few.shown.iter().all(|message| message["topic"] == "a:x"));
    all.reaches(2000).await;
    // This one is the only one of its topic.
    publisher.send_message(&[&b"b:c:d"[..], b"", b"last"]).await;
    other.reaches(1).await;
    assert_eq!((&other.shown[0]["data"], other.left_out), (&json!("last"), 0));

    // Who watches changes no figure of the traffic.
    let totals = proxy.totals();
    assert_eq!((totals.received.messages, totals.unmatched, totals.delivered.messages), (2001, 2001, 0));
    assert!(proxy.subscribers().is_empty());
    assert_eq!(proxy.subscriptions(), 3);
    drop((few, all, other));
    until("nobody watches", || proxy.subscriptions() == 0).await;
}

/// A message of 1 MiB takes no more than what is shown of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_data_is_cut_and_its_length_is_told() {
    let proxy = proxy().start().await.unwrap();
    let (_admin, address) = serve(&proxy, false);
    let mut watching = Watching::start(&address, "topic=a", "").await.unwrap();
    let mut publisher = Raw::handshake(proxy.address().publish_port(), "PUB").await;
    publisher.send_message(&[&b"a"[..], b"", &vec![b'x'; 1 << 20]]).await;
    // Its topic alone is longer than what is shown.
    publisher.send_message(&[&vec![b'a'; 17 << 10][..], b"", b"x"]).await;
    publisher.send_message(&[&b"a"[..], b"short"]).await;
    watching.reaches(3).await;
    assert_eq!(watching.left_out, 1);
    let [long, short] = &watching.shown[..] else { panic!("{:?}", watching.shown) };
    assert_eq!((&long["length"], &long["shown_bytes"]), (&json!(1 << 20), &json!(16 << 10)));
    assert_eq!(long["data"].as_str().unwrap().len(), 16 << 10);
    assert_eq!((&short["data"], short.get("shown_bytes")), (&json!("short"), None));
}

/// Publishers filter, so that nothing would come if they were not told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_are_told_who_watches_and_when_nobody_does_any_more() {
    let proxy = proxy().start().await.unwrap();
    let (_admin, address) = serve(&proxy, false);
    let mut plain = Raw::handshake(proxy.address().publish_port(), "PUB").await;
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(Endpoint::tcp("127.0.0.1", proxy.address().publish_port()));
    let mut watching = Watching::start(&address, "topic=level:", "").await.unwrap();
    within("a subscriber", publisher.wait_for_subscriber(b"level:tank")).await.unwrap();
    publisher.publish(["level:tank", "", "17"]).await.unwrap();
    watching.reaches(1).await;
    assert_eq!(watching.shown[0]["data"], "17");
    // One more who wants the same changes nothing for publishers, and neither does the end of one of both.
    let second = Watching::start(&address, "topic=level:", "").await.unwrap();
    drop(watching);
    until("one has left", || proxy.subscriptions() == 1).await;
    drop(second);
    let next = async |plain: &mut Raw| {
        loop {
            let (_, body) = plain.next_frame().await.unwrap();
            match Command::read(body).unwrap() {
                Command::Ping { .. } => {}
                // The proxy itself wants these.
                Command::Subscribe(prefix) if prefix == "xmsg:control" => {}
                other => return other,
            }
        }
    };
    assert_eq!(next(&mut plain).await, Command::Subscribe("level:".into()));
    assert_eq!(next(&mut plain).await, Command::Cancel("level:".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstreams_are_told_who_watches_and_messages_come_down() {
    let above = proxy().start().await.unwrap();
    let below = proxy().upstream(above.address().to_string().parse().unwrap()).start().await.unwrap();
    until("the link", || below.upstreams()[0].state == UpstreamState::Connected).await;
    let (_admin, address) = serve(&below, false);
    let mut watching = Watching::start(&address, "topic=level:", "").await.unwrap();
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(Endpoint::tcp("127.0.0.1", above.address().publish_port()));
    within("a subscriber", publisher.wait_for_subscriber(b"level:tank")).await.unwrap();
    publisher.publish(["level:tank", "", "17"]).await.unwrap();
    watching.reaches(1).await;
    assert_eq!(watching.shown[0]["data"], "17");
    drop(watching);
    until("nobody wants it", || above.subscriptions() == 0).await;
}

/// The page needs no key to watch, and the rights of whoever looks stay what they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_proxy_with_security_operators_see_messages_and_nobody_without_credentials_does() {
    let [server, client] = [(); 2].map(|()| KeyPair::generate().unwrap());
    // Rights of those without credentials mean nothing where a key is asked for.
    let rules = Rules { other_keys: Some(Arc::new(Rights::all())), ..Rules::open() };
    let proxy = proxy().security(Mechanism::Curve(server.clone()), rules).start().await.unwrap();
    let security = Security::CurveClient { keys: client, server: *server.public() };
    for (viewer_may_watch, viewers) in [(false, Some(403)), (true, None)] {
        let (_admin, address) = serve(&proxy, viewer_may_watch);
        for (headers, refused) in
            [(String::new(), Some(403)), (bearer(VIEWER), viewers), (bearer(OPERATOR), None)]
        {
            let session = get_with(&address, "/api/v1/session", &headers).await;
            let session: Value = serde_json::from_str(&session.body).unwrap();
            assert_eq!(
                (&session["may_watch"], &session["can_publish"]),
                (&json!(refused.is_none()), &json!(false))
            );
            let mut watching = match Watching::start(&address, "topic=a", &headers).await {
                Ok(watching) => watching,
                Err(Response { status, body, .. }) => {
                    assert_eq!(
                        (Some(status), body.contains("bring the operator's")),
                        (refused, true),
                        "{body}"
                    );
                    continue;
                }
            };
            assert_eq!(refused, None, "{headers}");
            publish(proxy.address(), &security, 17).await;
            watching.reaches(1).await;
            assert_eq!(watching.shown[0]["value"], 17);
        }
    }
}

async fn publish(address: &ProxyAddress, security: &Security, value: i64) {
    let connection = Connection::with_options(address.clone(), patient().security(security.clone())).unwrap();
    connection.publish(&Message::of(topic("a"), value).unwrap()).await.unwrap();
    assert!(connection.close(xmsg_tests::PATIENCE).await.is_nothing());
}

/// Whoever needs no token sees what everybody may subscribe to, for as long as everybody may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_in_particular_sees_what_everybody_may_subscribe_to() {
    let rules = |subscribe: &[&'static str]| {
        let subscribe = subscribe.iter().map(|prefix| (*prefix).into()).collect();
        let rights = Rights { subscribe, ..Rights::all() };
        Rules { anonymous: Some(Arc::new(rights)), ..Rules::default() }
    };
    let proxy = proxy().security(Mechanism::Null, rules(&["a"])).start().await.unwrap();
    let (_admin, address) = serve(&proxy, false);
    let refused = async |topic: &str| {
        let query = format!("topic={topic}");
        Watching::start(&address, &query, "").await.err().map(|refusal| refusal.status)
    };
    assert_eq!((refused("a:b").await, refused("").await, refused("b").await), (None, Some(403), Some(403)));
    let mut watching = Watching::start(&address, "topic=a", "").await.unwrap();
    let mut operator = Watching::start(&address, "", &bearer(OPERATOR)).await.unwrap();
    proxy.replace_rules(rules(&[])).await;
    while watching.next().await {}
    assert_eq!(refused("a").await, Some(403));
    let security = Security::Null;
    publish(proxy.address(), &security, 17).await;
    // The control requests of the client pass, too.
    while !operator.shown.iter().any(|message| message["topic"] == "a") {
        assert!(operator.next().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_watched_is_refused_with_the_reason() {
    let proxy = proxy().start().await.unwrap();
    let (_admin, address) = serve(&proxy, false);
    let long = format!("topic={}", "a".repeat(4097));
    let token = format!("topic=xmsg:loop:{:032x}:{:08x}:{:08x}", 1, 2, 3);
    for (query, says) in [("rate=0", "the rate"), (&long, "4096 bytes"), (&token, "no message")] {
        let refusal = Watching::start(&address, query, "").await.err().unwrap();
        assert_eq!(refusal.status, 400, "{query}");
        assert!(refusal.body.contains(says), "{}", refusal.body);
    }
    assert_eq!(proxy.subscriptions(), 0);
}
