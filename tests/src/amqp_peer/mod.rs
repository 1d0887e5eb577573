//! A scripted AMQP peer: it acts as a broker, but does what a test wants, which a well-behaved broker can't
//! be made to do.
//!
//! The peer speaks AMQP 0-9-1 as a server. It stores only a record of what it received, and routes nothing.
//! By default it accepts every login, agrees to every declaration, and confirms each message at once.
//! Everything that it receives is an event. A test waits for events, and can answer them itself at any time.
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
//!
//! | file | answers |
//! |---|---|
//! | `actions.rs` | What can the peer be told to do? |
//! | `answers.rs` | What does it answer by default? |
//! | `link.rs` | What happens on one connection? |
//! | `record.rs` | What has it received? |

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

/// The largest number of actions from a test that wait for one connection. A test with more has to wait.
const ACTIONS: usize = 1024;

/// A rule of a test, which replaces the default answer. It returns `None` for the default.
type Rule = Box<dyn FnMut(&Received) -> Option<Vec<Action>> + Send>;

/// The rules and the parameters of a peer. A rule that panics ends the peer.
pub struct Script {
    confirms: bool,
    heartbeat: u16,
    frame_max: u32,
    rules: Vec<Rule>,
}

impl Script {
    /// Returns the default script: it agrees to everything, and confirms each message at once.
    #[must_use]
    pub fn confirming() -> Self {
        Self { confirms: true, heartbeat: 0, frame_max: 131_072, rules: Vec::new() }
    }

    /// Returns a script that agrees to everything, but does nothing about messages. The test answers them
    /// with [`Peer::act`].
    #[must_use]
    pub fn by_hand() -> Self {
        Self { confirms: false, ..Self::confirming() }
    }

    /// Performs the actions of this rule for each message, instead of confirming it.
    #[must_use]
    pub fn on_publish(self, mut rule: impl FnMut(&Publish) -> Vec<Action> + Send + 'static) -> Self {
        self.instead(move |received| match &received.what {
            What::Publish(publish) => Some(rule(publish)),
            _ => None,
        })
    }

    /// Adds a rule for everything that the peer receives. It replaces the default answer unless it returns
    /// `None`. Rules are asked in the order in which they were added.
    #[must_use]
    pub fn instead(mut self, rule: impl FnMut(&Received) -> Option<Vec<Action>> + Send + 'static) -> Self {
        self.rules.push(Box::new(rule));
        self
    }

    /// Refuses every login as RabbitMQ does, with code 403.
    #[must_use]
    pub fn refuse_login(self) -> Self {
        let text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.";
        self.instead(move |received| match received.what {
            What::Login { .. } => Some(vec![Action::close_connection(403, text)]),
            _ => None,
        })
    }

    /// Closes every connection when it opens its virtual host, for example with code 320 or 530.
    #[must_use]
    pub fn close_at_open(self, code: u16, text: &'static str) -> Self {
        self.instead(move |received| match received.what {
            What::Open { .. } => Some(vec![Action::close_connection(code, text)]),
            _ => None,
        })
    }

    /// Closes every channel that declares a queue or an exchange, for example with code 404 or 406.
    #[must_use]
    pub fn refuse_declarations(self, code: u16, text: &'static str) -> Self {
        self.instead(move |received| {
            let is_one = received.is_declaration();
            is_one.then(|| vec![Action::close_channel(received.channel, code, text)])
        })
    }

    /// Asks for heartbeats at this interval, and sends them. The default is no heartbeats.
    #[must_use]
    pub fn heartbeat(mut self, seconds: u16) -> Self {
        self.heartbeat = seconds;
        self
    }

    /// Sets the largest frame that the peer accepts and sends, in bytes.
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

/// A listening peer. All its connections end when this is dropped.
#[derive(Debug)]
pub struct Peer {
    port: u16,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

/// What all connections of a peer share.
#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    received: watch::Sender<Vec<Received>>,
    /// The senders of actions to the open connections, by connection number.
    links: Mutex<BTreeMap<usize, mpsc::Sender<Action>>>,
}

impl Peer {
    /// Starts a peer on a free port of the loopback interface.
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

    /// Returns the URI for clients. The peer accepts any user.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Returns the port on the loopback interface.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Performs an action now. An action for a message or a consumer goes to its connection, which must be
    /// open. Any other action goes to the latest connection.
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

    /// Returns everything that was received so far, in order.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.borrow().clone()
    }

    /// Returns the messages that were received so far.
    #[must_use]
    pub fn publishes(&self) -> Vec<Publish> {
        self.received().iter().filter_map(Received::publish).cloned().collect()
    }

    /// Returns the acks, nacks and rejects that were received from consumers so far.
    #[must_use]
    pub fn settlements(&self) -> Vec<Settlement> {
        self.received().iter().filter_map(Received::settlement).cloned().collect()
    }

    /// Waits for the message with this number, counted from 1 over all connections.
    pub async fn publish(&self, number: usize) -> Publish {
        self.find("a message", number, |received| received.publish().cloned()).await
    }

    /// Waits for the consumer with this number, counted from 1 over all connections.
    pub async fn consumer(&self, number: usize) -> Consumer {
        self.find("a consumer", number, |received| match &received.what {
            What::Consume(consumer) => Some(consumer.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for the ack, nack or reject with this number, counted from 1 over all connections.
    pub async fn settlement(&self, number: usize) -> Settlement {
        self.find("a settlement", number, |received| received.settlement().cloned()).await
    }

    /// Waits until this many connections have been opened.
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

    /// Waits until `choose` has returned `number` results other than `None`, and returns the last of them.
    /// `what` is for the message of a failed wait.
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
