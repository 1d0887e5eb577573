//! Tests that each of our ZeroMQ sockets exchanges messages with its counterparts of libzmq.
//!
//! The sockets exchange messages in both directions, bound and connected, before and after a restart of
//! either side, over TCP and Unix sockets, and with each security mechanism. The tests print a table of what
//! was exchanged.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use xmsg_tests::peer::Peer;
use xmsg_tests::within;
use xmsg_zmq::security::{AllowKeys, Authenticator, Credentials, KeyPair, Password, Verdict};
use xmsg_zmq::{
    Dealer, Endpoint, FromSubscriber, Multipart, Notices, Pair, Publisher, Pull, Push, Replier, Requester,
    Router, Security, SocketOptions, Subscriber, XPub, XSub,
};

/// The number of messages in one direction. `ROUND_TRIPS` is the number of requests with answers.
const COUNT: u64 = 2000;
const ROUND_TRIPS: u64 = 200;
/// The identity of the other side, for sockets that need to know it.
const THEIR_IDENTITY: &str = "them";

/// A socket of this project, of any type.
enum Ours {
    Push(Push),
    Pull(Pull),
    Pair(Pair),
    Dealer(Dealer),
    Router(Router),
    Req(Requester),
    Rep(Replier),
    Pub(Publisher),
    Sub(Box<Subscriber>),
    XPub(XPub),
    XSub(XSub),
}

/// Evaluates an expression with the socket of any type.
macro_rules! with_socket {
    ($ours:expr, $socket:ident => $does:expr) => {
        match $ours {
            Ours::Push($socket) => $does,
            Ours::Pull($socket) => $does,
            Ours::Pair($socket) => $does,
            Ours::Dealer($socket) => $does,
            Ours::Router($socket) => $does,
            Ours::Rep($socket) => $does,
            Ours::Pub($socket) => $does,
            Ours::Sub($socket) => $does,
            Ours::XPub($socket) => $does,
            Ours::XSub($socket) => $does,
            Ours::Req($socket) => $does,
        }
    };
}

/// Returns the message with this number.
fn message(number: u64) -> Multipart {
    Multipart::from([number.to_string(), "data".to_owned()])
}

fn framed(first: impl Into<Bytes>, message: &Multipart) -> Multipart {
    std::iter::once(first.into()).chain(message.frames().iter().cloned()).collect()
}

impl Ours {
    fn new(name: &str, security: Security) -> Self {
        let options = SocketOptions::any().security(security).reconnect_min(Duration::from_millis(10));
        match name {
            "PUSH" => Self::Push(Push::new(options.for_socket())),
            "PULL" => Self::Pull(Pull::new(options.for_socket())),
            "PAIR" => Self::Pair(Pair::new(options.for_socket())),
            "DEALER" => Self::Dealer(Dealer::new(options.for_socket())),
            "ROUTER" => Self::Router(Router::new(options.for_socket())),
            "REQ" => Self::Req(Requester::new(options.for_socket())),
            "REP" => Self::Rep(Replier::new(options.for_socket())),
            "PUB" => Self::Pub(Publisher::new(options.for_socket())),
            "SUB" => {
                let socket = Subscriber::new(options.for_socket());
                socket.subscribe("").unwrap();
                Self::Sub(Box::new(socket))
            }
            "XPUB" => Self::XPub(XPub::new(options.for_socket().notices(Notices::Subscriptions))),
            "XSUB" => {
                let socket = XSub::new(options.for_socket());
                socket.subscribe("").unwrap();
                Self::XSub(socket)
            }
            _ => panic!("no socket {name}"),
        }
    }

    async fn bind(&self, endpoint: &Endpoint) -> Endpoint {
        with_socket!(self, socket => socket.bind(endpoint).await).unwrap()
    }

    fn connect(&self, endpoint: Endpoint) {
        with_socket!(self, socket => socket.connect(endpoint));
    }

    /// Waits until `count` peers are connected. A REQ socket connects only when it sends a request.
    async fn has_peers(&self, count: usize) {
        if matches!(self, Self::Req(socket) if !socket.endpoints().is_empty()) {
            return;
        }
        let peers = || with_socket!(self, socket => socket.peers());
        within("peers", async {
            while peers() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// Waits until `count` peers have subscribed to an XPUB, or one peer to a PUB.
    async fn has_subscribers(&self, count: usize) {
        match self {
            Self::Pub(socket) => within("a subscription", socket.wait_for_subscriber(b"")).await.unwrap(),
            Self::XPub(socket) => {
                let mut subscribed = 0;
                while subscribed < count {
                    let told = within("a subscription", socket.recv()).await.unwrap();
                    subscribed += usize::from(matches!(told, FromSubscriber::Subscribed { .. }));
                }
            }
            _ => {}
        }
    }

    async fn send(&self, message: Multipart) {
        let sent = async {
            match self {
                Self::Push(socket) => socket.send(message).await,
                Self::Pub(socket) => socket.publish(message).await,
                Self::XPub(socket) => socket.publish(message).await,
                _ => panic!("it does not send"),
            }
        };
        within("room", sent).await.unwrap();
    }

    /// Sends all messages to the peer.
    async fn send_all(&self, peer: &mut Peer) {
        self.has_subscribers(1).await;
        for number in 0..COUNT {
            self.send(message(number)).await;
        }
        peer.expect("done").await;
    }

    /// Sends all messages to each of the peers. A PUSH sends to them in turn, and a publisher to all of them.
    async fn send_to_each(&self, peers: u64) {
        self.has_subscribers(peers as usize).await;
        let turns = if matches!(self, Self::Push(_)) { peers } else { 1 };
        for number in 0..COUNT * turns {
            self.send(message(number / turns)).await;
        }
    }

    async fn receive(&mut self) -> Multipart {
        let next = async {
            match self {
                Self::Pull(socket) => socket.recv().await,
                Self::Sub(socket) => socket.recv().await,
                Self::XSub(socket) => socket.recv().await,
                _ => panic!("it does not receive"),
            }
        };
        within("a message", next).await.unwrap()
    }

    /// Receives all messages from each of the peers.
    async fn receive_from_each(&mut self, peers: u64) {
        let mut counts = vec![0; COUNT as usize];
        for _ in 0..COUNT * peers {
            let next = self.receive().await;
            let number: u64 = std::str::from_utf8(&next.frames()[0]).unwrap().parse().unwrap();
            assert_eq!(next, message(number));
            counts[number as usize] += 1;
        }
        assert_eq!(counts, vec![peers; COUNT as usize]);
    }

    /// Receives all messages from the peer. A publishing peer repeats a greeting until it knows that this
    /// side receives it.
    async fn receive_all(&mut self, peer: &mut Peer) {
        let mut number = 0;
        let mut heard = false;
        while number < COUNT {
            let next = self.receive().await;
            if next == Multipart::from(["hello"]) {
                if !std::mem::replace(&mut heard, true) {
                    peer.say("go").await;
                }
                continue;
            }
            assert_eq!(next, message(number));
            number += 1;
        }
        peer.expect("done").await;
    }

    /// Sends requests, to which the peer answers with the same message.
    async fn ask_all(&mut self, theirs: &str) {
        for number in 0..ROUND_TRIPS {
            let question = message(number);
            let answer = async {
                match self {
                    Self::Pair(socket) => {
                        socket.send(question.clone()).await.unwrap();
                        socket.recv().await.unwrap()
                    }
                    Self::Dealer(socket) if theirs == "REP" => {
                        socket.send(framed("", &question)).await.unwrap();
                        let answer = socket.recv().await.unwrap();
                        assert_eq!(answer.frames()[0], "");
                        answer.frames()[1..].iter().cloned().collect()
                    }
                    Self::Dealer(socket) => {
                        socket.send(question.clone()).await.unwrap();
                        socket.recv().await.unwrap()
                    }
                    Self::Router(socket) => {
                        socket.try_send(THEIR_IDENTITY.as_bytes(), question.clone()).unwrap();
                        let (identity, answer) = socket.recv().await.unwrap();
                        assert_eq!(identity, THEIR_IDENTITY);
                        answer
                    }
                    Self::Req(socket) => socket.request(question.clone(), Duration::MAX).await.unwrap(),
                    _ => panic!("it does not ask"),
                }
            };
            assert_eq!(within("an answer", answer).await, question);
        }
    }

    /// Answers the peer's requests with the same message.
    async fn answer_all(&mut self, peer: &mut Peer) {
        self.answer(ROUND_TRIPS).await;
        peer.expect("done").await;
    }

    async fn answer(&mut self, questions: u64) {
        for _ in 0..questions {
            let answered = async {
                match self {
                    Self::Dealer(socket) => {
                        let question = socket.recv().await.unwrap();
                        socket.send(question).await.unwrap();
                    }
                    Self::Router(socket) => {
                        let (identity, question) = socket.recv().await.unwrap();
                        socket.try_send(&identity, question).unwrap();
                    }
                    Self::Rep(socket) => {
                        let (path, question) = socket.recv().await.unwrap();
                        socket.try_reply(&path, question).unwrap();
                    }
                    _ => panic!("it does not answer"),
                }
            };
            within("a question", answered).await;
        }
    }

    async fn exchange(&mut self, peer: &mut Peer, theirs: &str, way: Way) {
        match way {
            Way::WeSend => self.send_all(peer).await,
            Way::TheySend => self.receive_all(peer).await,
            Way::WeAsk => self.ask_all(theirs).await,
            Way::TheyAsk => self.answer_all(peer).await,
        }
    }
}

/// Which side begins, and whether there are answers.
#[derive(Clone, Copy, Debug)]
enum Way {
    WeSend,
    TheySend,
    WeAsk,
    TheyAsk,
}

impl Way {
    /// Returns the command-line argument for the other side.
    fn theirs(self) -> &'static str {
        match self {
            Self::WeSend => "receive",
            Self::TheySend => "send",
            Self::WeAsk => "echo",
            Self::TheyAsk => "ask",
        }
    }

    fn shown(self) -> String {
        match self {
            Self::WeSend => format!("{COUNT} →"),
            Self::TheySend => format!("{COUNT} ←"),
            Self::WeAsk => format!("{ROUND_TRIPS} ⇄"),
            Self::TheyAsk => format!("{ROUND_TRIPS} ⇆"),
        }
    }
}

/// An authenticator that knows one user, which the other side knows, too.
#[derive(Debug)]
struct OneUser;

impl Authenticator for OneUser {
    fn authenticate(&self, credentials: Credentials, _: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        let is_good = matches!(&credentials, Credentials::Password { user, password }
            if user == "user" && password.as_slice() == b"secret");
        std::future::ready(is_good.into()).boxed()
    }
}

/// Returns our side of the security mechanism, and the arguments for the other side.
fn security(mechanism: &str, we_bind: bool) -> (Security, Vec<String>) {
    let mut told = vec![format!("--security={mechanism}")];
    let ours = match (mechanism, we_bind) {
        ("null", _) => Security::Null,
        ("plain", true) => Security::PlainServer(Arc::new(OneUser)),
        ("plain", false) => {
            Security::PlainClient { user: "user".into(), password: Password::new("secret").unwrap() }
        }
        _ => {
            let (our_keys, their_keys) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
            told.push(format!("--public-key={}", their_keys.public()));
            told.push(format!("--secret-key={}", *their_keys.secret().expose_text()));
            if we_bind {
                told.push(format!("--server-key={}", our_keys.public()));
                let allowed = Arc::new(AllowKeys::new([*their_keys.public()]));
                Security::CurveServer { keys: our_keys, authenticator: allowed }
            } else {
                Security::CurveClient { keys: our_keys, server: *their_keys.public() }
            }
        }
    };
    (ours, told)
}

/// The implementation of the other sockets.
#[derive(Clone, Copy, Debug)]
enum Stack {
    Libzmq,
    /// Debian's JeroMQ, which speaks ZMTP 2.0, without PLAIN and CURVE.
    JeroMq,
}

impl Stack {
    fn start(self, kind: &str, end: &str, endpoint: &str, way: Way, security: &[String]) -> Peer {
        let count = if matches!(way, Way::TheyAsk) { ROUND_TRIPS } else { COUNT }.to_string();
        let mut arguments = vec![kind, end, endpoint, way.theirs(), &count];
        match self {
            Self::Libzmq => {
                arguments.extend(["--rounds", "2", "--identity", THEIR_IDENTITY]);
                arguments.extend(security.iter().map(String::as_str));
                Peer::python("zmq_socket.py", &arguments)
            }
            Self::JeroMq => {
                arguments.push(THEIR_IDENTITY);
                Peer::java("ZmqSocket.java", &arguments)
            }
        }
    }
}

/// A combination of two sockets.
#[derive(Clone, Copy, Debug)]
struct Case<'a> {
    ours: &'a str,
    theirs: &'a str,
    way: Way,
    stack: Stack,
    transport: &'a str,
    mechanism: &'a str,
    we_bind: bool,
}

/// Exchanges messages. With libzmq, repeats this after our side was closed and created again. Repeats it once
/// more after the other side was.
async fn meet(case: Case<'_>) {
    let Case { ours, theirs, way, stack, transport, mechanism, we_bind } = case;
    let folder = tempfile::tempdir().unwrap();
    let anywhere = match transport {
        "tcp" => "tcp://127.0.0.1:*".to_owned(),
        // An abstract socket has no file, and this name is unique to this process.
        "abstract" => format!("ipc://@xmsg-sockets-{}", std::process::id()),
        _ => format!("ipc://{}/socket", folder.path().display()),
    };
    let (security, told) = security(mechanism, we_bind);
    let start = |end: &str, endpoint: &str| stack.start(theirs, end, endpoint, way, &told);
    let new = || Ours::new(ours, security.clone());
    let mut socket = new();
    let (mut peer, endpoint): (Peer, Endpoint) = if we_bind {
        let endpoint = socket.bind(&anywhere.replace('*', "0").parse().unwrap()).await;
        let mut peer = start("connect", &endpoint.to_string());
        peer.expect("ready").await;
        (peer, endpoint)
    } else {
        let mut peer = start("bind", &anywhere);
        let endpoint = peer.expect("ready").await[0].parse::<Endpoint>().unwrap();
        socket.connect(endpoint.clone());
        (peer, endpoint)
    };
    socket.has_peers(1).await;
    socket.exchange(&mut peer, theirs, way).await;
    // Our side closes, and connects again after the other side has noticed: what is sent to a closing socket
    // is lost.
    if matches!(stack, Stack::Libzmq) {
        drop(socket);
        peer.say("again").await;
        peer.expect("settled").await;
        socket = new();
        if we_bind {
            assert_eq!(socket.bind(&endpoint).await, endpoint);
        } else {
            socket.connect(endpoint.clone());
        }
        socket.has_peers(1).await;
        socket.exchange(&mut peer, theirs, way).await;
    }
    // The other side closes, and connects again.
    peer.finish().await;
    socket.has_peers(0).await;
    let mut peer = start(if we_bind { "connect" } else { "bind" }, &endpoint.to_string());
    peer.expect("ready").await;
    socket.has_peers(1).await;
    socket.exchange(&mut peer, theirs, way).await;
    println!(
        "| {ours} {} | {stack:?} {theirs} {} | {transport} | {} | {} | {} |",
        if we_bind { "binds" } else { "connects" },
        if we_bind { "connects" } else { "binds" },
        mechanism.to_uppercase(),
        way.shown(),
        if matches!(stack, Stack::Libzmq) {
            "again after either has gone"
        } else {
            "again after theirs has gone"
        },
    );
    peer.finish().await;
}

/// Tests every transport and mechanism, bound and connected.
async fn meet_everywhere(ours: &str, theirs: &str, way: Way) {
    for (transport, mechanism) in [("tcp", "null"), ("ipc", "null"), ("tcp", "plain"), ("tcp", "curve")] {
        for we_bind in [true, false] {
            // A REQ of libzmq that is a PLAIN server sends no requests, not even to a REP of libzmq.
            if theirs == "REQ" && mechanism == "plain" && !we_bind {
                continue;
            }
            let stack = Stack::Libzmq;
            meet_or_say(Case { ours, theirs, way, stack, transport, mechanism, we_bind }).await;
        }
    }
}

/// Prints the case if it fails.
async fn meet_or_say(case: Case<'_>) {
    let met = std::panic::AssertUnwindSafe(meet(case));
    if let Err(panic) = met.catch_unwind().await {
        println!("{case:?}: failed");
        std::panic::resume_unwind(panic);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_and_pull() {
    meet_everywhere("PUSH", "PULL", Way::WeSend).await;
    meet_everywhere("PULL", "PUSH", Way::TheySend).await;
    if cfg!(target_os = "linux") {
        for we_bind in [true, false] {
            let (transport, stack) = ("abstract", Stack::Libzmq);
            let (ours, theirs, way, mechanism) = ("PUSH", "PULL", Way::WeSend, "null");
            meet_or_say(Case { ours, theirs, way, stack, transport, mechanism, we_bind }).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pair_and_pair() {
    meet_everywhere("PAIR", "PAIR", Way::WeAsk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dealer_with_rep_router_and_dealer() {
    for theirs in ["REP", "ROUTER", "DEALER"] {
        meet_everywhere("DEALER", theirs, Way::WeAsk).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn router_with_req_dealer_and_router() {
    for theirs in ["REQ", "DEALER"] {
        meet_everywhere("ROUTER", theirs, Way::TheyAsk).await;
    }
    meet_everywhere("ROUTER", "ROUTER", Way::WeAsk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn req_and_rep() {
    for theirs in ["REP", "ROUTER"] {
        meet_everywhere("REQ", theirs, Way::WeAsk).await;
    }
    for theirs in ["REQ", "DEALER"] {
        meet_everywhere("REP", theirs, Way::TheyAsk).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pub_and_xpub_with_sub_and_xsub() {
    for ours in ["PUB", "XPUB"] {
        for theirs in ["SUB", "XSUB"] {
            meet_everywhere(ours, theirs, Way::WeSend).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sub_and_xsub_with_pub_and_xpub() {
    for ours in ["SUB", "XSUB"] {
        for theirs in ["PUB", "XPUB"] {
            meet_everywhere(ours, theirs, Way::TheySend).await;
        }
    }
}

#[tokio::test]
async fn a_router_tells_its_peers_apart() {
    let router = Router::new(SocketOptions::default());
    let endpoint = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut peers: Vec<_> = (0..3)
        .map(|_| Peer::python("zmq_socket.py", &["DEALER", "connect", &endpoint.to_string(), "send", "100"]))
        .collect();
    for peer in &mut peers {
        peer.expect("ready").await;
    }
    let mut next = std::collections::BTreeMap::new();
    for _ in 0..300 {
        let (identity, message) = within("a message", router.recv()).await.unwrap();
        let expected = next.entry(identity).or_insert(0);
        assert_eq!(message.frames()[0], expected.to_string(), "each in its order");
        *expected += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [100, 100, 100]);
    for peer in peers {
        peer.finish().await;
    }
}

/// Each of three peers of one socket receives, sends, requests or answers as much as the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_peers_have_their_turns() {
    const PEERS: u64 = 3;
    let cases = [
        ("PUSH", "PULL", Way::WeSend),
        ("PULL", "PUSH", Way::TheySend),
        ("XPUB", "SUB", Way::WeSend),
        ("XPUB", "XSUB", Way::WeSend),
        ("SUB", "XPUB", Way::TheySend),
        ("XSUB", "XPUB", Way::TheySend),
        ("DEALER", "REP", Way::WeAsk),
        ("DEALER", "ROUTER", Way::WeAsk),
        ("DEALER", "DEALER", Way::WeAsk),
        ("REQ", "REP", Way::WeAsk),
        ("REQ", "ROUTER", Way::WeAsk),
        ("ROUTER", "REQ", Way::TheyAsk),
        ("ROUTER", "DEALER", Way::TheyAsk),
        ("REP", "REQ", Way::TheyAsk),
        ("REP", "DEALER", Way::TheyAsk),
    ];
    for (ours, theirs, way) in cases {
        for we_bind in [true, false] {
            let mut socket = Ours::new(ours, Security::Null);
            let count = if matches!(way, Way::TheyAsk) { ROUND_TRIPS } else { COUNT }.to_string();
            let anywhere = "tcp://127.0.0.1:*";
            let endpoint =
                if we_bind { Some(socket.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await) } else { None };
            let mut peers = Vec::new();
            for _ in 0..PEERS {
                let (end, at) =
                    endpoint.as_ref().map_or(("bind", anywhere.to_owned()), |at| ("connect", at.to_string()));
                let mut peer = Peer::python("zmq_socket.py", &[theirs, end, &at, way.theirs(), &count]);
                let ready = peer.expect("ready").await;
                if !we_bind {
                    socket.connect(ready[0].parse().unwrap());
                }
                peers.push(peer);
            }
            socket.has_peers(PEERS as usize).await;
            match way {
                Way::WeSend => socket.send_to_each(PEERS).await,
                Way::TheySend => socket.receive_from_each(PEERS).await,
                Way::WeAsk => socket.ask_all(theirs).await,
                Way::TheyAsk => socket.answer(PEERS * ROUND_TRIPS).await,
            }
            for mut peer in peers {
                if !matches!(way, Way::WeAsk) {
                    peer.expect("done").await;
                }
                peer.finish().await;
            }
            let ours_end = if we_bind { "binds" } else { "connects" };
            println!("| {ours} {ours_end} | {PEERS} {theirs} | {} |", way.shown());
        }
    }
}

/// Each type exchanges messages with its counterpart of JeroMQ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jeromq_has_the_same_types() {
    let cases = [
        ("PUSH", "PULL", Way::WeSend),
        ("PULL", "PUSH", Way::TheySend),
        ("PAIR", "PAIR", Way::WeAsk),
        ("PUB", "SUB", Way::WeSend),
        ("XPUB", "XSUB", Way::WeSend),
        ("SUB", "PUB", Way::TheySend),
        ("XSUB", "XPUB", Way::TheySend),
        ("DEALER", "ROUTER", Way::WeAsk),
        ("ROUTER", "DEALER", Way::TheyAsk),
        ("REQ", "REP", Way::WeAsk),
        ("REP", "REQ", Way::TheyAsk),
    ];
    for (ours, theirs, way) in cases {
        for we_bind in [true, false] {
            let (transport, mechanism, stack) = ("tcp", "null", Stack::JeroMq);
            meet_or_say(Case { ours, theirs, way, stack, transport, mechanism, we_bind }).await;
        }
    }
}
