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

/// How long an answer may take beyond what the server was asked to wait.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The pause before something that failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// How a durable subscription asks.
#[derive(Clone, Copy, Debug)]
pub struct DurableOptions {
    /// Messages in one answer, at most; twice as many may be out without an acknowledgement. Default: 100.
    pub max: u32,
    /// How long the server waits for a message before it answers that there is none. Default: 10 s.
    pub wait: Duration,
}

impl Default for DurableOptions {
    fn default() -> Self {
        Self { max: 100, wait: Duration::from_secs(10) }
    }
}

/// Where a message stands, to be acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which session it came in, counted from 1.
    epoch: u64,
    number: u64,
}

/// A message of a durable subscription.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DurableMessage {
    /// The message as it was published.
    pub message: Message,
    /// Where it stands.
    pub place: Place,
    /// How often it had been given to a subscriber that did not acknowledge it.
    pub returned: u32,
}

/// Acknowledges messages of a durable subscription from elsewhere. Clones are the same.
#[derive(Clone, Debug)]
pub struct Acknowledger(watch::Sender<Place>);

impl Acknowledger {
    /// This message and all before it are done with.
    pub fn acknowledge(&self, place: Place) {
        self.0.send_if_modified(|acked| {
            let is_news = place > *acked;
            *acked = place.max(*acked);
            is_news
        });
    }
}

type Answer = BoxFuture<'static, Result<Reply>>;

/// A durable subscription at work: see the [module](self).
pub struct DurableSubscription {
    actor: Actor,
    topic: Topic,
    options: DurableOptions,
    topics: Vec<String>,
    /// None while there is none: another one is opened.
    session: Option<Bytes>,
    epoch: u64,
    /// The number of the last message that has come in this session.
    after: u64,
    received: VecDeque<DurableMessage>,
    acks: Acknowledger,
    acked: watch::Receiver<Place>,
    /// What the server was told to be acknowledged in this session.
    told: u64,
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
            told: 0,
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

    /// What it subscribes to, as prefixes: the definition says it, at the server.
    #[must_use]
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// What keeps messages from coming at this moment, in words; it is tried again meanwhile.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// What acknowledges messages from elsewhere, such as from where they are written.
    #[must_use]
    pub fn acknowledger(&self) -> Acknowledger {
        self.acks.clone()
    }

    /// This message and all before it are done with: they will not come again. The server is told with the
    /// next request, or while
    /// [`next`](Self::next) waits.
    pub fn acknowledge(&self, place: Place) {
        self.acks.acknowledge(place);
    }

    /// The next message. Waits for it for as long as it takes; what goes wrong meanwhile is tried again, and
    /// told by [`trouble`](Self::trouble). Dropping the future loses nothing. An error is one that would not
    /// go away. It never returns `Ok(None)` so far.
    pub async fn next(&mut self) -> Result<Option<DurableMessage>> {
        // However slowly messages are taken, the server is told meanwhile what was acknowledged, and that
        // somebody is there.
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

    /// Tells the server what was acknowledged, and ends: what was not acknowledged goes to others, or comes
    /// again.
    pub async fn close(mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let ack = self.acknowledged();
        match self.ask(&Request::End { session, ack }, ANSWER_TIME).await? {
            Reply::UnknownSession if ack > self.told => {
                let what = "the server of the durable subscription does not know what was acknowledged last: those messages come again";
                Err(Error::new(ErrorKind::Unconfirmed, what))
            }
            Reply::Unavailable(text) => Err(Error::new(ErrorKind::Remote, text)),
            _ => Ok(()),
        }
    }

    /// The last number of this session that was acknowledged.
    fn acknowledged(&self) -> u64 {
        let place = *self.acked.borrow();
        if place.epoch == self.epoch { place.number } else { 0 }
    }

    fn begin(&mut self, session: Bytes, topics: Vec<String>) {
        self.session = Some(session);
        self.topics = topics;
        self.epoch += 1;
        (self.after, self.told, self.acking) = (0, 0, None);
    }

    async fn ask(&self, request: &Request, limit: Duration) -> Result<Reply> {
        let message = Message::of(&self.topic, request.encode())?;
        let answer = self.actor.request(&message, limit).await?;
        Reply::decode(answer.data().clone())
    }

    /// Begins a request, whose answer is waited for later. If the request before has failed, it begins after
    /// a pause.
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

    /// One step: something is asked, answered, or acknowledged.
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
                self.told = ack;
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
                // This end of it is ours, so that it is there.
                let _ = changed;
                let ack = self.acknowledged();
                if ack > self.told && let Some(session) = self.session.clone() {
                    self.told = ack;
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
                    // One that was asked for twice comes twice.
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
        self.trouble.send_if_modified(|told| {
            let is_news = *told != trouble;
            *told = trouble;
            is_news
        });
        Ok(())
    }

    /// Another session is opened. What has come in this one and was not given out comes again in that.
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
