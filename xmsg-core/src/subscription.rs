//! Messages of topics that were subscribed to.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use crate::batch::Kept;
use crate::connection::Marker;
use crate::options::CHECK_INTERVAL;
use crate::{ActorId, Message, Messages, Result, Topic};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::{SocketEvents, Subscriber, Unreceived};
use xmsg_zmtp::walk_message;

/// Messages of the topics that were subscribed to: a [`Stream`](futures::Stream). It stays subscribed through restarts of the
/// proxy; dropping it unsubscribes.
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
    /// What is left of the messages that came in last.
    batch: Messages,
    /// What messages that were given out one by one hold.
    kept: Kept,
    topics: Vec<Topic>,
    marker: Marker,
    draining: Option<Draining>,
    /// Nothing more is received; what is queued is still given out.
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

/// The last messages are on their way, and a marker behind them.
struct Draining {
    topic: Topic,
    /// The proxy has confirmed the subscription to the topic of the marker: it sends nothing of the other topics any more.
    confirmed: Arc<Notify>,
    /// `None`: nobody is there any more through whom the marker could come.
    sending: Option<BoxFuture<'static, ()>>,
}

impl Subscription {
    pub(crate) fn new(socket: Subscriber, topics: Vec<Topic>, marker: Marker) -> Self {
        Self {
            socket,
            batch: Messages::default(),
            kept: Kept::default(),
            topics,
            marker,
            draining: None,
            stopped: false,
            two_frames: false,
        }
    }

    /// The same, which gives out messages of two frames, too, topic and data, as plain ZeroMQ publishers send them; their metadata is
    /// empty. Without this they are passed over: clients of other implementations have the proxy answer their control requests in this form,
    /// and those answers reach everybody who subscribed to the topic.
    #[must_use]
    pub fn with_two_frames(mut self) -> Self {
        self.two_frames = true;
        self.batch = std::mem::take(&mut self.batch).with_two_frames();
        self
    }

    /// The topics that it was made with.
    #[must_use]
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// The next message. A message that has not the three frames of xMsg is an error, and the next one can be asked for;
    /// messages of two frames are passed over unless they are [wanted](Self::with_two_frames). `None` once the subscription is closed or drained.
    /// Dropping the future loses nothing.
    ///
    /// A message can be kept: it holds 16 times its own size or 1 KiB of memory at most, whatever is more. Only of messages that
    /// come when little is being kept, some hold more, 2 MiB in all for a subscription and what one read brought.
    pub async fn next(&mut self) -> Option<Result<Message>> {
        match self.batch.next() {
            None => std::future::poll_fn(|cx| self.poll_next_message(cx)).await,
            message => message,
        }
    }

    /// The next messages, all that came in together: one if they come one by one, hundreds if they are many and small. It waits for the
    /// first of them only. `None` once the subscription is closed or drained. Dropping the future loses nothing.
    pub async fn next_batch(&mut self) -> Option<Messages> {
        std::future::poll_fn(|cx| self.poll_next_batch(cx)).await
    }

    /// [`next_batch`](Self::next_batch) for hand-written futures.
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

    /// What happens to its connection from now on.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.socket.events()
    }

    /// Takes the subscription back at the proxy, and ends once everything that the proxy had sent for it until then was given
    /// out: [`next`](Self::next) returns those messages, and then `None`. It returns at once.
    ///
    /// That the last one has come is known from a marker that travels behind it, so this works through every proxy. While there is
    /// no connection, nothing more can come, and what was received is the rest.
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
        // No other subscription has the topic, so that the marker comes to this one alone.
        let topic = Topic::wrap(format!("ret:{}{}:drain", ActorId::random(), ActorId::random()));
        // The proxy takes these in this order, so whoever knows the last has forgotten the others.
        for topic in &self.topics {
            self.socket.unsubscribe(topic.clone().into_bytes());
        }
        // It is short enough for every limit.
        let _ = self.socket.subscribe(topic.clone().into_bytes());
        let confirmed = Arc::new(Notify::new());
        let sending = send_marker(self.marker.clone(), topic.clone(), confirmed.clone());
        self.draining = Some(Draining { topic, confirmed, sending: Some(Box::pin(sending)) });
    }

    /// Receives nothing more. What was received is still given out.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.draining = None;
        self.socket.stop();
    }

    /// Ends the subscription. Messages that were received and not taken are dropped; their number is returned.
    pub async fn close(mut self) -> u64 {
        self.stop();
        self.socket.close().await;
        self.left()
    }

    /// Messages that were received and not given out.
    pub(crate) fn left(&self) -> u64 {
        self.batch.iter().count() as u64 + self.waiting().count()
    }

    /// Why there is no connection, if that is known; `None` while there is one.
    #[cfg(feature = "blocking")]
    pub(crate) fn failure(&self) -> Option<crate::Error> {
        self.socket.failure()
    }

    /// Counts those of them that wait in the socket, for as long as it exists.
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

    /// The next messages before the marker, and how much memory a slice of them keeps alive, in bytes.
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
                        Some(Found::Marker) => self.stop(),
                        None => {}
                    }
                    if !messages.is_empty() {
                        return Poll::Ready(Some((messages, memory)));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending if given_up => {
                    self.stop();
                    return Poll::Ready(None);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl futures::Stream for Subscription {
    type Item = Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_next_message(cx)
    }
}

/// Counts the messages that wait in the socket of a subscription.
#[derive(Clone, Debug)]
pub(crate) struct Waiting(Unreceived);

impl Waiting {
    pub(crate) fn count(&self) -> u64 {
        self.0.batches().into_iter().map(|batch| Messages::of(batch).iter().count() as u64).sum()
    }

    /// Has the subscription receive nothing more. What waits can still be taken.
    pub(crate) fn stop(&self) {
        self.0.stop();
    }

    /// Whether the subscription is still there.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_there()
    }

    pub(crate) fn events(&self) -> Option<SocketEvents> {
        self.0.events()
    }
}

/// Asks the proxy until it confirms the subscription to the marker's topic, then sends the marker until it is dropped.
async fn send_marker(marker: Marker, topic: Topic, confirmed: Arc<Notify>) {
    let mut interval = Duration::from_millis(2);
    let mut is_confirmed = false;
    // A proxy where we may not subscribe to the topic never confirms it.
    let patience = Deadline::after(marker.subscription_limit());
    while is_confirmed || !patience.has_passed() {
        let sent = if is_confirmed { marker.send(&topic).await } else { marker.ask(&topic).await };
        if !sent {
            return;
        }
        // A proxy whose queue is full may have dropped it, and a connection may have broken.
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

/// What stands in these messages before the marker, and which of its signs was found.
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
            // Two frames are an answer, which is passed over when messages are given out.
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
    use xmsg_zmtp::encode_message;

    fn wire(messages: &[&[&str]]) -> Bytes {
        let mut out = BytesMut::new();
        for frames in messages {
            encode_message(&mut out, frames);
        }
        out.freeze()
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
