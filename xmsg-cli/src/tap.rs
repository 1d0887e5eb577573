//! Everything that comes for some topics, byte for byte: a subscription beneath messages, which keeps frames as they
//! were on the wire, however many a message has.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::control::{CONFIRMATION_TOPIC, Request};
use xmsg_core::{Connection, Error, ErrorKind, Message, ProxyAddress, Topic};
use xmsg_zmq::{Multipart, SocketEvents, Subscriber};

use crate::args::{ConnectOptions, SecurityOptions};
use crate::rights;

/// How often the proxy is asked whether it knows the subscription.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// When so much has come before it has answered, bytes, there is no doubt.
const EARLY_MAX: usize = 16 << 20;

/// A subscribing socket that the proxy has confirmed.
#[derive(Debug)]
pub(crate) struct Tap {
    socket: Subscriber,
    early: VecDeque<Bytes>,
}

impl Tap {
    /// Subscribes to topics and all that start with them. Nothing that is published after it has returned is missed.
    pub(crate) async fn open(connect: &ConnectOptions, topics: &[Topic]) -> xmsg_core::Result<Self> {
        let connection = connect.connection()?;
        // Whether there is a proxy that lets us in. Nothing else subscribes to these topics: whoever waits for a subscriber before it
        // publishes waits for this one.
        connection.connect().await?;
        let is_secured = rights::are_given()?;
        let options = SecurityOptions::socket_options()?;
        let mut tap = Self { socket: Subscriber::new(options.for_socket()), early: VecDeque::new() };
        for topic in topics {
            tap.socket.subscribe(topic.clone().into_bytes())?;
        }
        let proxy = connect.proxy()?;
        tap.socket.connect(proxy.subscribe_endpoint().parse()?);
        let confirming = async {
            tap.socket.connected().await?;
            // Where only some topics are allowed, who may subscribe to one may ask after it, and after nothing else.
            let questions: Vec<Bytes> = if is_secured {
                topics.iter().map(|topic| private_topic(Some(topic))).collect()
            } else {
                vec![private_topic(None)]
            };
            for question in questions {
                tap.confirm(&connection, question).await?;
            }
            Ok::<(), Error>(())
        };
        if std::env::var_os("XMSG_NO_CHECK_SUBSCRIPTION").is_none() {
            let limit = connect.timeout();
            match tokio::time::timeout(limit, confirming).await {
                Ok(confirmed) => confirmed?,
                // It says what is wrong as all other commands do.
                Err(_) => match connection.subscribe(topics).await {
                    Err(error) => return Err(rights::explained(connect, topics, error).await),
                    Ok(_) => return Err(not_confirmed(&proxy, limit)),
                },
            }
        } else {
            drop(confirming);
        }
        // It published nothing but questions.
        let _ = connection.close(Duration::ZERO).await;
        Ok(tap)
    }

    /// The next messages that came in together, as they were on the wire; `None` once the socket is closed. Dropping
    /// the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        match self.early.pop_front() {
            None => self.socket.recv_batch().await,
            early => early,
        }
    }

    /// What happens to its connection from now on.
    pub(crate) fn events(&self) -> SocketEvents {
        self.socket.events()
    }

    /// Asks after a topic of our own, which is subscribed to behind all others: the proxy takes subscriptions in
    /// their order.
    async fn confirm(&mut self, connection: &Connection, private: Bytes) -> xmsg_core::Result<()> {
        self.socket.subscribe(private.clone())?;
        let request = Request::Subscription(Topic::wrap(private.clone()));
        let mut is_confirmed = false;
        while !is_confirmed {
            if let Some([topic, kind, argument]) = request.message().into_array() {
                connection.publish(&Message::from_frames(topic, kind, argument)).await?;
            }
            let answer = tokio::time::timeout(ASK_INTERVAL, async {
                while !is_confirmed {
                    let Some(batch) = self.socket.recv_batch().await else {
                        return Err(Error::new(
                            ErrorKind::Closed,
                            "the connection was closed while it subscribed",
                        ));
                    };
                    is_confirmed = holds_answer(&batch, &request);
                    self.early.push_back(batch);
                    let early: usize = self.early.iter().map(Bytes::len).sum();
                    is_confirmed |= early > EARLY_MAX;
                }
                Ok(())
            });
            if let Ok(result) = answer.await {
                result?;
            }
        }
        self.socket.unsubscribe(private);
        Ok(())
    }
}

/// A topic that nobody else subscribes to; it tells which one it stands for, if that is to be judged.
fn private_topic(stands_for: Option<&Topic>) -> Bytes {
    let mut name = format!("{CONFIRMATION_TOPIC}{}", uuid::Uuid::new_v4().simple()).into_bytes();
    if let Some(topic) = stands_for {
        name.push(b':');
        name.extend_from_slice(topic.as_bytes());
    }
    name.into()
}

/// Whether one of these messages is the answer. It stays among them, and is not recorded.
fn holds_answer(wire: &Bytes, request: &Request) -> bool {
    let (mut rest, mut frames) = (&wire[..], Vec::new());
    while crate::recording::recorder::next_message(&mut rest, &mut frames) {
        let message: Multipart = frames.iter().map(|frame| wire.slice_ref(frame)).collect();
        if request.is_answered_by(&message) {
            return true;
        }
    }
    false
}

fn not_confirmed(proxy: &ProxyAddress, limit: Duration) -> Error {
    let what = format!(
        "the proxy at {proxy} did not confirm the subscription within {limit:?}: is it an xMsg proxy, and is its subscriber port {} \
         reachable?",
        proxy.subscribe_port()
    );
    Error::new(ErrorKind::Timeout, what)
}
