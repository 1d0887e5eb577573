//! Durable subscriptions: what is published while the subscriber is away arrives when it returns.
//!
//! A program beside the proxy (`xmsg-proxy` with `[connect]`, or `xmsg-connect`) subscribes and keeps the
//! messages in a queue of a broker. A
//! [`DurableSubscription`] asks it for them, with requests through the proxy, and acknowledges them: at least
//! once. Several with the same name share the messages. Each message that was not acknowledged when its
//! subscriber went goes to the next one that asks.
//!
//! ```no_run
//! use xmsg_core::Actor;
//! use xmsg_core::durable::{DurableOptions, DurableSubscription};
//!
//! # #[tokio::main] async fn main() -> xmsg_core::Result<()> {
//! let actor = Actor::connect("billing").await?;
//! let mut orders = DurableSubscription::open(&actor, "billing", DurableOptions::default()).await?;
//! while let Some(order) = orders.next().await? {
//!     println!("{}", order.message.topic()); // do what is to be done with it
//!     orders.acknowledge(order.place); // and with all before it
//! #   break;
//! }
//! orders.close().await?; // tells what was acknowledged last
//! # Ok(()) }
//! ```

pub mod protocol;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::{Actor, Error, ErrorKind, Message, Result, Topic};
use protocol::{Item, Reply, Request, TOPIC};

/// The time that an answer may take beyond the time that the request asks the server to wait.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The pause before a failed request is repeated.
const PAUSE: Duration = Duration::from_millis(500);

/// The options of a durable subscription.
#[derive(Clone, Copy, Debug)]
pub struct DurableOptions {
    /// The largest number of messages in one answer. Twice as many may be unacknowledged. Default: 100.
    pub max: u32,
    /// The time that the server waits for a message before it answers that there is none. Default: 10 s.
    pub wait: Duration,
}

impl Default for DurableOptions {
    fn default() -> Self {
        Self { max: 100, wait: Duration::from_secs(10) }
    }
}

/// The position of a message, by which it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The session that it came in, counted from 1.
    epoch: u64,
    number: u64,
}

/// A message of a durable subscription.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DurableMessage {
    /// The message as it was published.
    pub message: Message,
    /// The position of the message.
    pub place: Place,
    /// The number of times that the message was delivered before without being acknowledged.
    pub returned: u32,
}

/// Acknowledges messages of a durable subscription from another task. Clones acknowledge for the same
/// subscription.
#[derive(Clone, Debug)]
pub struct Acknowledger(watch::Sender<Place>);

impl Acknowledger {
    /// Acknowledges this message and all before it.
    pub fn acknowledge(&self, place: Place) {
        self.0.send_if_modified(|acked| {
            let is_new = place > *acked;
            *acked = place.max(*acked);
            is_new
        });
    }
}

type Answer = BoxFuture<'static, Result<Reply>>;

/// An open durable subscription: see the [module](self).
pub struct DurableSubscription {
    actor: Actor,
    topic: Topic,
    options: DurableOptions,
    topics: Vec<String>,
    /// The session, or `None` if another one has to be opened.
    session: Option<Bytes>,
    epoch: u64,
    /// The number of the last message that was received in this session.
    after: u64,
    received: VecDeque<DurableMessage>,
    acks: Acknowledger,
    acked: watch::Receiver<Place>,
    /// The last acknowledgement that the server has received in this session.
    sent_ack: u64,
    asking: Option<Answer>,
    acking: Option<Answer>,
    trouble: watch::Sender<Option<String>>,
}

impl fmt::Debug for DurableSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableSubscription").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl DurableSubscription {
    /// Begins to receive the messages of the durable subscription with this name. Returns once its server has
    /// answered.
    ///
    /// [`ErrorKind::Timeout`]: nobody answers, because there is no durable subscription of this name at the
    /// proxy. [`ErrorKind::NotAllowed`]: we may not publish to its topic, `xmsg-durable:NAME`.
    /// [`ErrorKind::Remote`]: the server can't get at the messages, for the reason that it says.
    pub async fn open(actor: &Actor, name: &str, options: DurableOptions) -> Result<Self> {
        let topic: Topic = format!("{TOPIC}{name}").parse()?;
        let (acks, acked) = watch::channel(Place::default());
        let mut subscription = Self {
            actor: actor.clone(),
            topic,
            options,
            topics: Vec::new(),
            session: None,
            epoch: 0,
            after: 0,
            received: VecDeque::new(),
            acks: Acknowledger(acks),
            acked,
            sent_ack: 0,
            asking: None,
            acking: None,
            trouble: watch::Sender::new(None),
        };
        match subscription.ask(&Request::Open, ANSWER_TIME).await? {
            Reply::Opened { session, topics } => subscription.begin(session, topics),
            Reply::Unavailable(text) => return Err(Error::new(ErrorKind::Remote, text)),
            _ => {
                return Err(Error::new(
                    ErrorKind::Remote,
                    "the server of the durable subscription gives another answer",
                ));
            }
        }
        Ok(subscription)
    }

    /// Returns the prefixes that it subscribes to. The definition at the server lists them.
    #[must_use]
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// Returns the reason why no messages arrive at this moment, if there is one. Requests are repeated
    /// meanwhile.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Returns a handle that acknowledges messages from another task, such as the one that writes them.
    #[must_use]
    pub fn acknowledger(&self) -> Acknowledger {
        self.acks.clone()
    }

    /// Acknowledges this message and all before it: they will not come again. The acknowledgement is sent
    /// with the next request, or while [`next`](Self::next) waits.
    pub fn acknowledge(&self, place: Place) {
        self.acks.acknowledge(place);
    }

    /// Returns the next message, and waits for it as long as necessary. Failed requests are repeated, and
    /// [`trouble`](Self::trouble) says why they failed. It returns an error only if repeating makes no sense.
    /// Dropping the future loses nothing. It never returns `Ok(None)` so far.
    pub async fn next(&mut self) -> Result<Option<DurableMessage>> {
        // However slowly messages are taken, the server receives acknowledgements meanwhile, and learns that
        // the subscriber is still there.
        if let Some(worked) = self.work().now_or_never() {
            worked?;
        }
        loop {
            if let Some(message) = self.received.pop_front() {
                return Ok(Some(message));
            }
            self.work().await?;
        }
    }

    /// Sends the last acknowledgement and ends the session. Messages that were not acknowledged go to other
    /// subscribers, or come again.
    pub async fn close(mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let ack = self.acknowledged();
        match self.ask(&Request::End { session, ack }, ANSWER_TIME).await? {
            Reply::UnknownSession if ack > self.sent_ack => {
                let what = "the server of the durable subscription does not know what was acknowledged last: those messages come again";
                Err(Error::new(ErrorKind::Unconfirmed, what))
            }
            Reply::Unavailable(text) => Err(Error::new(ErrorKind::Remote, text)),
            _ => Ok(()),
        }
    }

    /// Returns the last number of this session that was acknowledged.
    fn acknowledged(&self) -> u64 {
        let place = *self.acked.borrow();
        if place.epoch == self.epoch { place.number } else { 0 }
    }

    fn begin(&mut self, session: Bytes, topics: Vec<String>) {
        self.session = Some(session);
        self.topics = topics;
        self.epoch += 1;
        (self.after, self.sent_ack, self.acking) = (0, 0, None);
    }

    async fn ask(&self, request: &Request, limit: Duration) -> Result<Reply> {
        let message = Message::of(&self.topic, request.encode())?;
        let answer = self.actor.request(&message, limit).await?;
        Reply::decode(answer.data().clone())
    }

    /// Begins a request, whose answer is awaited later. If the request before has failed, it begins after a
    /// pause.
    fn later(&self, request: &Request, limit: Duration) -> Result<Answer> {
        let message = Message::of(&self.topic, request.encode())?;
        let actor = self.actor.clone();
        let is_troubled = self.trouble.borrow().is_some();
        Ok(async move {
            if is_troubled {
                tokio::time::sleep(PAUSE).await;
            }
            let answer = actor.request(&message, limit).await?;
            Reply::decode(answer.data().clone())
        }
        .boxed())
    }

    /// Does one step: sends a request, or handles an answer.
    async fn work(&mut self) -> Result<()> {
        if self.asking.is_none() {
            let request = match self.session.clone() {
                None => Request::Open,
                Some(session) => Request::Next {
                    session,
                    after: self.after,
                    ack: self.acknowledged(),
                    max: self.options.max.max(1),
                    wait_ms: u32::try_from(self.options.wait.as_millis()).unwrap_or(u32::MAX),
                },
            };
            if let Request::Next { ack, .. } = request {
                self.sent_ack = ack;
            }
            self.asking = Some(self.later(&request, ANSWER_TIME.saturating_add(self.options.wait))?);
        }
        tokio::select! {
            biased;
            answer = answered(&mut self.asking) => {
                self.asking = None;
                self.take(answer)
            }
            answer = answered(&mut self.acking) => {
                self.acking = None;
                self.take(answer.map(|reply| match reply {
                    Reply::Messages(_) => Reply::Messages(Vec::new()),
                    other => other,
                }))
            }
            changed = self.acked.changed(), if self.acking.is_none() => {
                // This side holds the other end of the channel, so it is open.
                let _ = changed;
                let ack = self.acknowledged();
                if ack > self.sent_ack && let Some(session) = self.session.clone() {
                    self.sent_ack = ack;
                    self.acking = Some(self.later(&Request::Ack { session, ack }, ANSWER_TIME)?);
                }
                Ok(())
            }
        }
    }

    fn take(&mut self, answer: Result<Reply>) -> Result<()> {
        let trouble = match answer {
            Ok(Reply::Messages(items)) => {
                for Item { number, returned, message } in items {
                    // A message that was requested twice comes twice.
                    if number > self.after {
                        self.after = number;
                        let place = Place { epoch: self.epoch, number };
                        self.received.push_back(DurableMessage { message, place, returned });
                    }
                }
                None
            }
            Ok(Reply::Opened { session, topics }) => {
                self.begin(session, topics);
                None
            }
            Ok(Reply::UnknownSession) => {
                self.lose_session();
                None
            }
            Ok(Reply::Unavailable(text)) => {
                self.lose_session();
                Some(text)
            }
            Err(error) => match error.kind() {
                ErrorKind::NotAllowed
                | ErrorKind::InvalidTopic
                | ErrorKind::InvalidMessage
                | ErrorKind::TooLarge
                | ErrorKind::Closed => return Err(error),
                _ => Some(error.with_causes().to_string()),
            },
        };
        self.trouble.send_if_modified(|known| {
            let is_new = *known != trouble;
            *known = trouble;
            is_new
        });
        Ok(())
    }

    /// Gives up the session. Another one is opened, and the messages of this one that were not returned come
    /// again.
    fn lose_session(&mut self) {
        self.session = None;
        self.received.clear();
        (self.asking, self.acking) = (None, None);
    }
}

async fn answered(slot: &mut Option<Answer>) -> Result<Reply> {
    match slot {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}
