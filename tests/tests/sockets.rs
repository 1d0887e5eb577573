//! Our ZeroMQ sockets with those of libzmq, type by type: both ways, bound and connected, before and after a restart of the
//! other side. The tests print a table of what they have exchanged.

use std::time::Duration;

use futures::StreamExt;
use xmsg_tests::peer::Peer;
use xmsg_tests::within;
use xmsg_zmq::{Dealer, Endpoint, Multipart, Pair, Pull, Push, Router, SocketOptions};

/// Messages of one exchange.
const COUNT: u64 = 2000;

fn options() -> SocketOptions {
    SocketOptions { reconnect_min: Duration::from_millis(10), ..SocketOptions::default() }
}

/// One of our sockets, whichever it is.
enum Ours {
    Push(Push),
    Pull(Pull),
    Pair(Pair),
    Dealer(Dealer),
}

/// Does the same with whichever socket it is.
macro_rules! with_socket {
    ($ours:expr, $socket:ident => $does:expr) => {
        match $ours {
            Ours::Push($socket) => $does,
            Ours::Pull($socket) => $does,
            Ours::Pair($socket) => $does,
            Ours::Dealer($socket) => $does,
        }
    };
}

impl Ours {
    fn new(name: &str) -> Self {
        match name {
            "PUSH" => Self::Push(Push::new(options())),
            "PULL" => Self::Pull(Pull::new(options())),
            "PAIR" => Self::Pair(Pair::new(options())),
            "DEALER" => Self::Dealer(Dealer::new(options())),
            _ => panic!("no socket {name}"),
        }
    }

    async fn bind(&self, endpoint: &Endpoint) -> Endpoint {
        with_socket!(self, socket => socket.bind(endpoint).await).unwrap()
    }

    fn connect(&self, endpoint: Endpoint) {
        with_socket!(self, socket => socket.connect(endpoint));
    }

    fn peers(&self) -> usize {
        with_socket!(self, socket => socket.peers())
    }

    async fn send(&self, message: Multipart) {
        let sent = match self {
            Self::Push(socket) => socket.send(message).await,
            Self::Pair(socket) => socket.send(message).await,
            Self::Dealer(socket) => socket.send(message).await,
            Self::Pull(_) => panic!("PULL does not send"),
        };
        sent.unwrap();
    }

    async fn recv(&mut self) -> Multipart {
        let message = match self {
            Self::Pull(socket) => socket.next().await,
            Self::Pair(socket) => socket.next().await,
            Self::Dealer(socket) => socket.next().await,
            Self::Push(_) => panic!("PUSH does not receive"),
        };
        message.unwrap()
    }

    /// What passes between the two, in the direction that these types have.
    async fn exchange(&mut self, peer: &mut Peer, action: &str, delimiter: bool) {
        let message = |number: u64| {
            let data = ["data".into(), number.to_string().into()].into_iter().rev();
            let frames = delimiter.then(bytes::Bytes::new).into_iter().chain(data);
            frames.collect::<Multipart>()
        };
        match action {
            "receive" => {
                for number in 0..COUNT {
                    within("room", self.send(message(number))).await;
                }
                peer.expect("done").await;
            }
            "send" => {
                for number in 0..COUNT {
                    assert_eq!(within("a message", self.recv()).await, message(number));
                }
                peer.expect("done").await;
            }
            _ => {
                // Some are on their way in both directions at a time.
                for round in 0..COUNT / 20 {
                    for number in 0..20 {
                        within("room", self.send(message(20 * round + number))).await;
                    }
                    for number in 0..20 {
                        assert_eq!(within("an answer", self.recv()).await, message(20 * round + number));
                    }
                }
            }
        }
    }
}

async fn has_peers(ours: &Ours, count: usize) {
    within("peers", async {
        while ours.peers() != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Exchanges messages, and again after the other side has been ended and started anew.
async fn meet(ours: &str, theirs: &str, action: &str, transport: &str, we_bind: bool) {
    let folder = tempfile::tempdir().unwrap();
    let anywhere = match transport {
        "tcp" => "tcp://127.0.0.1:*".to_owned(),
        _ => format!("ipc://{}/socket", folder.path().display()),
    };
    let count = COUNT.to_string();
    let start =
        |end: &str, endpoint: &str| Peer::python("zmq_socket.py", &[theirs, end, endpoint, action, &count]);
    let delimiter = theirs == "REP";
    let mut socket = Ours::new(ours);
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
    has_peers(&socket, 1).await;
    socket.exchange(&mut peer, action, delimiter).await;
    // The other side goes, and comes again.
    peer.finish().await;
    has_peers(&socket, 0).await;
    let mut peer = start(if we_bind { "connect" } else { "bind" }, &endpoint.to_string());
    peer.expect("ready").await;
    has_peers(&socket, 1).await;
    socket.exchange(&mut peer, action, delimiter).await;
    println!(
        "| {ours} | {theirs} | {transport} | {} | {COUNT}, and {COUNT} after a restart |",
        if we_bind { "ours" } else { "theirs" }
    );
    peer.finish().await;
}

async fn meet_everywhere(ours: &str, theirs: &str, action: &str) {
    for transport in ["tcp", "ipc"] {
        for we_bind in [true, false] {
            meet(ours, theirs, action, transport, we_bind).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_and_pull() {
    meet_everywhere("PUSH", "PULL", "receive").await;
    meet_everywhere("PULL", "PUSH", "send").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pair_and_pair() {
    meet_everywhere("PAIR", "PAIR", "echo").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dealer_with_rep_router_and_dealer() {
    for theirs in ["REP", "ROUTER", "DEALER"] {
        meet_everywhere("DEALER", theirs, "echo").await;
    }
}

#[tokio::test]
async fn a_router_tells_its_peers_apart() {
    let router = Router::new(options());
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
