//! A subscription that keeps all messages of some topics byte for byte: their frames as they were on the
//! wire, whatever their number in a message.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::control::{CONFIRMATION_TOPIC, Request};
use xmsg_core::{Connection, Error, ErrorKind, Message, ProxyAddress, Topic};
use xmsg_zmq::{Multipart, SocketEvents, Subscriber};

use crate::args::{ConnectOptions, SecurityOptions};
use crate::rights;

/// How often an unanswered subscription check is repeated.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// The bytes of messages after which a subscription counts as confirmed without an answer: they prove that it
/// is active.
const UNCONFIRMED_BYTES_MAX: usize = 16 << 20;

/// A subscribing socket whose subscription the proxy has confirmed.
#[derive(Debug)]
pub(crate) struct RawSubscription {
    socket: Subscriber,
    early: VecDeque<Bytes>,
}

impl RawSubscription {
    /// Subscribes to topics, each of which matches all topics that start with it. Nothing that is published
    /// after it has returned is missed.
    pub(crate) async fn open(connect: &ConnectOptions, topics: &[Topic]) -> xmsg_core::Result<Self> {
        let connection = connect.connection()?;
        // This checks whether there is a proxy that accepts us. It makes no subscription to these topics,
        // because a publisher that waits for a subscriber must not start before this one is ready.
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
            // Where rights restrict topics, whoever may subscribe to a topic may subscribe to its private
            // topic, but to no other private topic.
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
                // This call fails with the same errors as in other commands.
                Err(_) => match connection.subscribe(topics).await {
                    Err(error) => return Err(rights::explained(connect, topics, error).await),
                    Ok(_) => return Err(not_confirmed(&proxy, limit)),
                },
            }
        } else {
            drop(confirming);
        }
        // Only control requests were published through this connection.
        let _ = connection.close(Duration::ZERO).await;
        Ok(tap)
    }

    /// Returns the next messages that were received together, as they were on the wire; `None` once the
    /// socket is closed. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        match self.early.pop_front() {
            None => self.socket.recv_batch().await,
            early => early,
        }
    }

    /// Returns the events of the connection from now on.
    pub(crate) fn events(&self) -> SocketEvents {
        self.socket.events()
    }

    /// Checks a private topic, which is subscribed to after all other topics. The proxy handles subscriptions
    /// in order, so its answer confirms them all.
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
                    is_confirmed |= early > UNCONFIRMED_BYTES_MAX;
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

/// Makes a topic that nobody else subscribes to. With `stands_for`, it contains that topic, for which the
/// proxy can then check rights.
fn private_topic(stands_for: Option<&Topic>) -> Bytes {
    let mut name = format!("{CONFIRMATION_TOPIC}{}", uuid::Uuid::new_v4().simple()).into_bytes();
    if let Some(topic) = stands_for {
        name.push(b':');
        name.extend_from_slice(topic.as_bytes());
    }
    name.into()
}

/// Returns whether one of these messages is the answer. The answer stays among them; the recorder skips it.
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
