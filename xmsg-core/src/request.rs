//! Synchronous publishing: requests wait for the message to their reply topic, without polling.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::id::ReplyTopics;
use crate::{ActorId, Message, Subscription, Topic};

/// The requests of an actor that wait for their answers on one proxy.
#[derive(Debug)]
pub(crate) struct Replies {
    topics: ReplyTopics,
    waiting: Mutex<HashMap<Bytes, oneshot::Sender<Message>>>,
    late: AtomicU64,
}

impl Replies {
    pub(crate) fn new(actor: ActorId) -> Arc<Self> {
        Arc::new(Self { topics: ReplyTopics::new(actor), waiting: Mutex::default(), late: AtomicU64::new(0) })
    }

    /// The topic that all replies start with.
    pub(crate) fn subscription(&self) -> &Topic {
        self.topics.subscription()
    }

    /// Answers that came when nobody waited for them any more.
    pub(crate) fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// A place for the answer to one request. Dropping it gives the place up.
    pub(crate) fn expect(self: &Arc<Self>) -> Expected {
        let (sender, receiver) = oneshot::channel();
        let topic = {
            let mut waiting = self.waiting();
            // With a million requests in flight serials come round: then the next free one is taken.
            let mut topic = self.topics.next_topic();
            while waiting.contains_key(topic.as_bytes()) {
                topic = self.topics.next_topic();
            }
            waiting.insert(topic.clone().into_bytes(), sender);
            topic
        };
        Expected { replies: self.clone(), topic, receiver }
    }

    /// Hands answers to whoever waits for them, for as long as the subscription lives.
    pub(crate) async fn listen(self: Arc<Self>, mut subscription: Subscription) {
        while let Some(reply) = subscription.next().await {
            let Ok(reply) = reply else { continue };
            let sender = self.waiting().remove(reply.topic().as_bytes());
            // The receiver goes with its place, but it may go at this very moment.
            if sender.is_none_or(|sender| sender.send(reply).is_err()) {
                let late = self.late.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::debug!(late, "a reply came that nobody waits for");
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Bytes, oneshot::Sender<Message>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place among those that wait.
#[derive(Debug)]
pub(crate) struct Expected {
    replies: Arc<Replies>,
    topic: Topic,
    receiver: oneshot::Receiver<Message>,
}

impl Expected {
    /// Where the answer is to go.
    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The answer; `None` when the actor was closed.
    pub(crate) async fn answer(&mut self) -> Option<Message> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.replies.waiting().remove(self.topic.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_request_frees_its_place() {
        let replies = Replies::new(ActorId::random());
        let first = replies.expect();
        let second = replies.expect();
        assert_ne!(first.topic(), second.topic());
        drop(first);
        assert_eq!(replies.waiting().len(), 1);
        drop(second);
        assert!(replies.waiting().is_empty());
    }
}
