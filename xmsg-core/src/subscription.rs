//! Subscriptions that the program reads itself.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use crate::batch::RetainedMemory;
use crate::connection::Marker;
use crate::options::CHECK_INTERVAL;
use crate::{ActorId, Message, Messages, Result, Topic};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::{SocketEvents, Subscriber, Unreceived};
use xmsg_zmtp::walk_message;

/// Receives the messages of the topics that were subscribed to, as a [`Stream`](futures::Stream). It stays
/// subscribed when the proxy restarts. Dropping it unsubscribes.
///
/// ```no_run
/// # async fn run(connection: xmsg_core::Connection) -> xmsg_core::Result<()> {
/// let mut reports = connection.subscribe(["report:sports", "report:weather"]).await?;
/// while let Some(report) = reports.next().await {
///     println!("{}", report?.value::<String>()?);
/// }
/// # Ok(()) }
/// ```
pub struct Subscription {
    socket: Subscriber,
    /// The rest of the batch that was received last.
    batch: Messages,
    /// The memory that messages returned one by one keep alive.
    kept: RetainedMemory,
    topics: Vec<Topic>,
    marker: Marker,
    draining: Option<Draining>,
    /// Whether receiving has stopped. Messages in the queue are still returned.
    stopped: bool,
    two_frames: bool,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("topics", &self.topics)
            .field("draining", &self.draining.is_some())
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

/// A subscription that is being drained: the last messages are on their way, and a marker follows them.
struct Draining {
    topic: Topic,
    /// Notified when the proxy has confirmed the subscription to the marker's topic: it then sends nothing of
    /// the other topics any more.
    confirmed: Arc<Notify>,
    /// Sends the marker; `None` when there is no connection left through which it could come.
    sending: Option<BoxFuture<'static, ()>>,
}

impl Subscription {
    pub(crate) fn new(socket: Subscriber, topics: Vec<Topic>, marker: Marker) -> Self {
        Self {
            socket,
            batch: Messages::default(),
            kept: RetainedMemory::default(),
            topics,
            marker,
            draining: None,
            stopped: false,
            two_frames: false,
        }
    }

    /// Makes the subscription return messages of two frames, topic and data, too. Plain ZeroMQ publishers
    /// send them; their metadata is empty. By default they are skipped, because clients of other
    /// implementations have the proxy answer their control requests in this form, and those answers reach
    /// every subscriber of the topic.
    #[must_use]
    pub fn with_two_frames(mut self) -> Self {
        self.two_frames = true;
        self.batch = std::mem::take(&mut self.batch).with_two_frames();
        self
    }

    /// Returns the topics that the subscription was made with.
    #[must_use]
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// Subscribes to these topics from now on, and to none of the former ones that are not among them. The
    /// new ones come first, so that nothing is missed under a topic that both match, and nothing comes twice.
    /// This call does not wait for the proxy.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](crate::ErrorKind::TooLarge) if the proxy or this side allows no more topics. The
    /// subscription is as it was then.
    pub fn set_topics<T: Into<Topic>>(&mut self, topics: impl IntoIterator<Item = T>) -> Result<()> {
        let topics: Vec<Topic> = topics.into_iter().map(Into::into).collect();
        if self.draining.is_some() || self.stopped {
            return Ok(());
        }
        let added: Vec<&Topic> = topics.iter().filter(|topic| !self.topics.contains(topic)).collect();
        for (count, topic) in added.iter().enumerate() {
            if let Err(error) = self.socket.subscribe((*topic).clone().into_bytes()) {
                for topic in &added[..count] {
                    self.socket.unsubscribe((*topic).clone().into_bytes());
                }
                return Err(error);
            }
        }
        for topic in self.topics.iter().filter(|topic| !topics.contains(topic)) {
            self.socket.unsubscribe(topic.clone().into_bytes());
        }
        self.topics = topics;
        Ok(())
    }

    /// Returns the next message, or `None` once the subscription is closed or drained. Dropping the future
    /// loses nothing.
    ///
    /// A message that does not have the three frames of xMsg is an error, after which the next message can be
    /// requested. Messages of two frames are skipped unless they are [enabled](Self::with_two_frames).
    ///
    /// A message can be kept: it keeps alive at most 16 times its own size or 1 KiB of memory, whichever is
    /// more. Only while few messages are being kept, some of them keep alive more: in all 2 MiB for a
    /// subscription, and what one read brought.
    pub async fn next(&mut self) -> Option<Result<Message>> {
        // Most messages are in the batch already: this is the fast path.
        let next = match self.batch.next() {
            None => std::future::poll_fn(|cx| self.poll_next_message(cx)).await,
            message => message,
        };
        taken(next)
    }

    /// Returns the messages that were received together: one if they arrive one by one, or hundreds if they
    /// are many and small. It waits only for the first of them. It returns `None` once the subscription is
    /// closed or drained. Dropping the future loses nothing.
    pub async fn next_batch(&mut self) -> Option<Messages> {
        std::future::poll_fn(|cx| self.poll_next_batch(cx)).await
    }

    /// Polls for the messages that [`next_batch`](Self::next_batch) returns, for hand-written futures.
    pub fn poll_next_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Messages>> {
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            return Poll::Ready(Some(batch));
        }
        if self.draining.is_some() {
            return self.poll_drain(cx).map(|batch| batch.map(|(wire, _)| self.messages(Messages::of(wire))));
        }
        self.socket.poll_recv_batch(cx).map(|batch| batch.map(|wire| self.messages(Messages::of(wire))))
    }

    fn messages(&self, messages: Messages) -> Messages {
        if self.two_frames { messages.with_two_frames() } else { messages }
    }

    /// Returns the events of the connection of the subscription from now on.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.socket.events()
    }

    /// Begins to drain the subscription: it is cancelled at the proxy, and ends after everything that the
    /// proxy had sent for it by then. [`next`](Self::next) returns those messages, and then `None`. This call
    /// itself returns at once.
    ///
    /// A marker that is sent after the last message shows that it has arrived, so this works through every
    /// proxy. Without a connection nothing more can arrive, and only the messages that were received are
    /// returned.
    ///
    /// ```no_run
    /// # async fn run(mut reports: xmsg_core::Subscription) -> xmsg_core::Result<()> {
    /// reports.drain();
    /// while let Some(report) = reports.next().await {
    ///     println!("one of the last: {:?}", report?);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn drain(&mut self) {
        if self.draining.is_some() || self.stopped {
            return;
        }
        // The topic is random, so that no other subscription receives the marker.
        let topic = Topic::wrap(format!("ret:{}{}:drain", ActorId::random(), ActorId::random()));
        // The proxy handles these in order, so when it has confirmed the last one, it has removed the others.
        for topic in &self.topics {
            self.socket.unsubscribe(topic.clone().into_bytes());
        }
        // The topic is short enough for every limit, so this cannot fail.
        let _ = self.socket.subscribe(topic.clone().into_bytes());
        let confirmed = Arc::new(Notify::new());
        let sending = send_marker(self.marker.clone(), topic.clone(), confirmed.clone());
        self.draining = Some(Draining { topic, confirmed, sending: Some(Box::pin(sending)) });
    }

    /// Stops receiving. Messages that were received are still returned.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.draining = None;
        self.socket.stop();
    }

    /// Ends the subscription. Messages that were received and not taken are dropped, and their number is
    /// returned.
    pub async fn close(mut self) -> u64 {
        self.stop();
        self.socket.close().await;
        self.left()
    }

    /// Returns the number of messages that were received and not taken.
    pub(crate) fn left(&self) -> u64 {
        self.batch.iter().count() as u64 + self.waiting().count()
    }

    /// Returns why there is no connection, if that is known; `None` while there is one.
    #[cfg(feature = "blocking")]
    pub(crate) fn failure(&self) -> Option<crate::Error> {
        self.socket.failure()
    }

    /// Returns a counter of the messages that wait in the socket. It works as long as the socket exists.
    pub(crate) fn waiting(&self) -> Waiting {
        Waiting(self.socket.unreceived())
    }

    fn poll_next_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message>>> {
        loop {
            if let Some(message) = self.batch.next() {
                return Poll::Ready(Some(message));
            }
            let next = if self.draining.is_some() { self.poll_drain(cx) } else { self.socket.poll_batch(cx) };
            match next {
                Poll::Ready(Some((wire, memory))) => {
                    self.batch = self.messages(Messages::to_keep(wire, memory, &self.kept));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Polls for the next messages before the marker, and the number of bytes of memory that a slice of them
    /// keeps alive.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, usize)>> {
        loop {
            let Some(draining) = &mut self.draining else { return Poll::Ready(None) };
            if draining.sending.as_mut().is_some_and(|sending| sending.as_mut().poll(cx).is_ready()) {
                draining.sending = None;
            }
            let given_up = draining.sending.is_none() || !self.socket.is_connected();
            match self.socket.poll_batch(cx) {
                Poll::Ready(Some((batch, memory))) => {
                    let (messages, found) = before_marker(&batch, draining.topic.as_bytes());
                    match found {
                        Some(Found::Answer) => draining.confirmed.notify_one(),
                        // The marker may have been sent several times. What is left in the queue can only be
                        // its repetitions, which are nobody's messages.
                        Some(Found::Marker) => {
                            draining.sending = None;
                            self.socket.stop();
                        }
                        None => {}
                    }
                    if !messages.is_empty() {
                        return Poll::Ready(Some((messages, memory)));
                    }
                }
                Poll::Pending if !given_up => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => {
                    self.stop();
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl futures::Stream for Subscription {
    type Item = Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_next_message(cx).map(taken)
    }
}

/// Makes a span of a message that the program takes, if there are spans.
fn taken(next: Option<Result<Message>>) -> Option<Result<Message>> {
    #[cfg(feature = "otel")]
    if let Some(Ok(message)) = &next {
        crate::otel::received(message);
    }
    next
}

/// Counts the messages that wait in the socket of a subscription.
#[derive(Clone, Debug)]
pub(crate) struct Waiting(Unreceived);

impl Waiting {
    pub(crate) fn count(&self) -> u64 {
        self.0.batches().into_iter().map(|batch| Messages::of(batch).iter().count() as u64).sum()
    }

    /// Makes the subscription stop receiving. Messages that wait can still be taken.
    pub(crate) fn stop(&self) {
        self.0.stop();
    }

    /// Returns whether the subscription still exists.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_there()
    }

    pub(crate) fn events(&self) -> Option<SocketEvents> {
        self.0.events()
    }
}

/// Asks the proxy until it confirms the subscription to the marker's topic, and then sends the marker until
/// the future is dropped.
async fn send_marker(marker: Marker, topic: Topic, confirmed: Arc<Notify>) {
    let mut interval = Duration::from_millis(2);
    let mut is_confirmed = false;
    // If our rights do not allow the subscription, the proxy never confirms it, so the time is limited.
    let patience = Deadline::after(marker.subscription_limit());
    while is_confirmed || !patience.has_passed() {
        let sent = if is_confirmed { marker.send(&topic).await } else { marker.ask(&topic).await };
        if !sent {
            return;
        }
        // A request or marker may be lost when the queue of the proxy is full or a connection breaks, so it
        // is repeated.
        let answer = async {
            if is_confirmed {
                std::future::pending::<()>().await;
            } else {
                confirmed.notified().await;
            }
        };
        if tokio::time::timeout(interval, answer).await.is_ok() {
            is_confirmed = true;
        } else {
            interval = (interval * 2).min(CHECK_INTERVAL);
        }
    }
}

enum Found {
    /// The confirmation of the marker's subscription.
    Answer,
    Marker,
}

/// Returns the messages before the marker, and whether the marker or the confirmation of its topic was found.
fn before_marker(wire: &Bytes, topic: &[u8]) -> (Bytes, Option<Found>) {
    let (mut at, mut found) = (0, None);
    while at < wire.len() {
        let (mut first, mut frames) = (0..0, 0);
        let end = walk_message(wire, at, |frame| {
            if frames == 0 {
                first = frame;
            }
            frames += 1;
        });
        let Some(end) = end else { break };
        if wire[first] == *topic {
            if frames != 2 {
                return (wire.slice(..at), Some(Found::Marker));
            }
            // Two frames are an answer to a control request, which is skipped when messages are returned.
            found = Some(Found::Answer);
        }
        at = end;
    }
    (wire.clone(), found)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use xmsg_zmq::{Endpoint, Publisher, SocketOptions};
    use xmsg_zmtp::encode_message;

    fn wire(messages: &[&[&str]]) -> Bytes {
        let mut out = BytesMut::new();
        for frames in messages {
            encode_message(&mut out, frames);
        }
        out.freeze()
    }

    /// On a loaded machine, the marker is repeated before the first one has come back.
    #[tokio::test]
    async fn a_marker_that_comes_several_times_is_no_message() {
        let publisher = Publisher::new(SocketOptions::default());
        let endpoint = publisher.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
        let socket = Subscriber::new(SocketOptions::default());
        socket.subscribe("").unwrap();
        socket.connect(endpoint);
        publisher.wait_for_subscriber(b"a").await.unwrap();
        let mut subscription = Subscription::new(socket, vec![Topic::wrap("a")], Marker::default());
        subscription.drain();
        let marker = subscription.draining.as_ref().unwrap().topic.clone();
        let marker = [marker.as_bytes(), b"", b""].map(Bytes::copy_from_slice);
        let last = ["a", "", "the last one"].map(Bytes::from);
        for (count, frames) in [last, marker.clone(), marker.clone(), marker].into_iter().enumerate() {
            publisher.publish(frames).await.unwrap();
            while subscription.waiting().count() <= count as u64 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(subscription.next().await.unwrap().unwrap().data(), "the last one");
        assert!(subscription.next().await.is_none() && subscription.next().await.is_none());
        assert_eq!(subscription.left(), 0);
    }

    #[test]
    fn what_stands_before_the_marker_is_given_out() {
        let messages: &[&[&str]] = &[&["a", "m", "1"], &["ret:x", "m", ""], &["a", "m", "2"]];
        let (before, found) = before_marker(&wire(messages), b"ret:x");
        assert_eq!(before, wire(&messages[..1]));
        assert!(matches!(found, Some(Found::Marker)));

        let answer = wire(&[&["a", "m", "1"], &["ret:x", "sub"], &["a", "m", "2"]]);
        let (before, found) = before_marker(&answer, b"ret:x");
        assert_eq!(before, answer);
        assert!(matches!(found, Some(Found::Answer)));
        assert_eq!(Messages::of(answer).count(), 2, "the answer is passed over");

        let others = wire(&[&["ret:x:longer", "m", ""], &["ret", "sub"]]);
        let (before, found) = before_marker(&others, b"ret:x");
        assert_eq!(before, others);
        assert!(found.is_none());
    }
}
