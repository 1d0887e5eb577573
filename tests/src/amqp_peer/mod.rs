//! A broker that does what a test says: for what no well-behaved broker could be made to do.
//!
//! It speaks AMQP 0-9-1 as a server, keeps nothing but a record of what came, and routes nothing. Unless its script
//! says otherwise, it lets everybody in, says yes to every declaration, and confirms each message at once. Every
//! moment is an event: a test waits for what came, and answers by hand when it likes to.
//!
//! ```no_run
//! # use xmsg_tests::amqp_peer::{Action, Peer, Script};
//! # async fn example() {
//! // The third message ends the connection, before it is confirmed.
//! let script = Script::confirming().on_publish(|publish| match publish.tag {
//!     3 => vec![Action::drop_connection()],
//!     _ => vec![publish.ack()],
//! });
//! let peer = Peer::start(script).await;
//! // A client publishes to `peer.uri()` here.
//! assert_eq!(peer.publish(3).await.body, b"the third");
//! peer.ended(1).await;
//! # }
//! ```

mod actions;
mod answers;
mod link;
mod record;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use actions::{Action, Delivery};
pub use record::{Consumer, How, Publish, Received, Settlement, What};

use crate::within;

/// Actions by hand that a connection has not taken yet; whoever has more waits.
const ACTIONS: usize = 1024;

/// What a test has the peer do in place of the usual; `None`: the usual.
type Rule = Box<dyn FnMut(&Received) -> Option<Vec<Action>> + Send>;

/// What the peer does. A rule that panics ends the peer.
pub struct Script {
    confirms: bool,
    heartbeat: u16,
    frame_max: u32,
    rules: Vec<Rule>,
}

impl Script {
    /// Does the usual: says yes to all, and confirms each message at once.
    #[must_use]
    pub fn confirming() -> Self {
        Self { confirms: true, heartbeat: 0, frame_max: 131_072, rules: Vec::new() }
    }

    /// Says yes to all, but does nothing about messages: the test does, with [`Peer::act`].
    #[must_use]
    pub fn by_hand() -> Self {
        Self { confirms: false, ..Self::confirming() }
    }

    /// Does this about each message, instead of confirming it.
    #[must_use]
    pub fn on_publish(self, mut rule: impl FnMut(&Publish) -> Vec<Action> + Send + 'static) -> Self {
        self.instead(move |received| match &received.what {
            What::Publish(publish) => Some(rule(publish)),
            _ => None,
        })
    }

    /// Does this instead of the usual, whatever came, unless it is `None`. The rule that was given first goes first.
    #[must_use]
    pub fn instead(mut self, rule: impl FnMut(&Received) -> Option<Vec<Action>> + Send + 'static) -> Self {
        self.rules.push(Box::new(rule));
        self
    }

    /// Refuses every login as RabbitMQ does, with 403.
    #[must_use]
    pub fn refuse_login(self) -> Self {
        let text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.";
        self.instead(move |received| match received.what {
            What::Login { .. } => Some(vec![Action::close_connection(403, text)]),
            _ => None,
        })
    }

    /// Closes every connection when it opens its virtual host, such as with 320 or 530.
    #[must_use]
    pub fn close_at_open(self, code: u16, text: &'static str) -> Self {
        self.instead(move |received| match received.what {
            What::Open { .. } => Some(vec![Action::close_connection(code, text)]),
            _ => None,
        })
    }

    /// Closes every channel that declares a queue or an exchange, such as with 404 or 406.
    #[must_use]
    pub fn refuse_declarations(self, code: u16, text: &'static str) -> Self {
        self.instead(move |received| {
            let is_one = received.is_declaration();
            is_one.then(|| vec![Action::close_channel(received.channel, code, text)])
        })
    }

    /// Asks for heartbeats, and sends them. Without, it asks for none.
    #[must_use]
    pub fn heartbeat(mut self, seconds: u16) -> Self {
        self.heartbeat = seconds;
        self
    }

    /// The largest frame that it takes and sends, bytes.
    #[must_use]
    pub fn frame_max(mut self, bytes: u32) -> Self {
        self.frame_max = bytes;
        self
    }
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("rules", &self.rules.len()).finish_non_exhaustive()
    }
}

/// A peer that listens. All its connections end when it is dropped.
#[derive(Debug)]
pub struct Peer {
    port: u16,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

/// What its connections have in common.
#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    received: watch::Sender<Vec<Received>>,
    /// Where the connections that are there take actions by hand.
    links: Mutex<BTreeMap<usize, mpsc::Sender<Action>>>,
}

impl Peer {
    /// Starts one on a free port of the loopback.
    pub async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            received: watch::Sender::default(),
            links: Mutex::default(),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, shared.clone()));
        Self { port, shared, _accepting: accepting }
    }

    /// Where clients connect. Any user will do.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// The port of the loopback that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Does this, now. What belongs to a message, a consumer or a channel goes to its connection, which must be there;
    /// all else to the latest connection.
    pub async fn act(&self, action: Action) {
        let link = {
            let links = self.shared.links.lock().expect("nobody panics with it");
            match action.connection {
                Some(connection) => links.get(&connection).cloned(),
                None => links.values().next_back().cloned(),
            }
        };
        let link = link.unwrap_or_else(|| panic!("no connection for {action:?}"));
        within("an action", link.send(action)).await.expect("the connection is there");
    }

    /// All that came so far, in order.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.borrow().clone()
    }

    /// The messages that came so far.
    #[must_use]
    pub fn publishes(&self) -> Vec<Publish> {
        self.received().iter().filter_map(Received::publish).cloned().collect()
    }

    /// The acks, nacks and rejects of consumers that came so far.
    #[must_use]
    pub fn settlements(&self) -> Vec<Settlement> {
        self.received().iter().filter_map(Received::settlement).cloned().collect()
    }

    /// The message of this number, counted from 1 over all connections; waits for it.
    pub async fn publish(&self, number: usize) -> Publish {
        self.find("a message", number, |received| received.publish().cloned()).await
    }

    /// The consumer of this number, counted from 1 over all connections; waits for it.
    pub async fn consumer(&self, number: usize) -> Consumer {
        self.find("a consumer", number, |received| match &received.what {
            What::Consume(consumer) => Some(consumer.clone()),
            _ => None,
        })
        .await
    }

    /// The ack, nack or reject of this number, counted from 1 over all connections; waits for it.
    pub async fn settlement(&self, number: usize) -> Settlement {
        self.find("a settlement", number, |received| received.settlement().cloned()).await
    }

    /// Waits until so many connections have been opened.
    pub async fn opened(&self, number: usize) {
        self.find("an open connection", number, |received| {
            matches!(received.what, What::Open { .. }).then_some(())
        })
        .await;
    }

    /// Waits until this connection, counted from 1, has ended.
    pub async fn ended(&self, connection: usize) {
        self.find("the end of a connection", 1, |received| {
            (received.connection == connection && matches!(received.what, What::Ended)).then_some(())
        })
        .await;
    }

    /// What `choose` makes of the one of this number, counted from 1, that it makes something of; waits for it. `what`
    /// names it when it does not come.
    pub async fn find<T>(&self, what: &str, number: usize, choose: impl Fn(&Received) -> Option<T>) -> T {
        let nth = |all: &Vec<Received>| all.iter().filter_map(&choose).nth(number - 1);
        let mut received = self.shared.received.subscribe();
        let what = format!("{what}, number {number}");
        let all = within(&what, received.wait_for(|all| nth(all).is_some())).await;
        nth(&all.expect("the peer is here")).expect("it was waited for")
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut links = JoinSet::new();
    for number in 1.. {
        let (stream, _) = listener.accept().await.expect("it listens");
        let (actions, taken) = mpsc::channel(ACTIONS);
        shared.links.lock().expect("nobody panics with it").insert(number, actions);
        links.spawn(link::serve(stream, number, shared.clone(), taken));
        while let Some(ended) = links.try_join_next() {
            ended.expect("no rule panics");
        }
    }
}
