//! Requests that wait for the message to their reply topic, without polling (the synchronous publishing of
//! xMsg).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::id::ReplyTopics;
use crate::{ActorId, Message, Subscription, Topic};
use xmsg_zmq::lock::lock;

/// After this many replies that no request waits for, a line is logged, and after as many more another one.
const MANY_LATE: u64 = 10_000;

/// The requests of an actor that wait for their replies through one proxy.
#[derive(Debug)]
pub(crate) struct Replies {
    topics: ReplyTopics,
    waiting: Mutex<Waiting>,
    late: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: HashMap<Bytes, oneshot::Sender<Message>>,
    /// The number of requests that waited when the actor was closed; `None` before that.
    given_up: Option<u64>,
}

impl Replies {
    pub(crate) fn new(actor: ActorId) -> Arc<Self> {
        Arc::new(Self { topics: ReplyTopics::new(actor), waiting: Mutex::default(), late: AtomicU64::new(0) })
    }

    /// Returns the topic that all replies start with.
    pub(crate) fn subscription(&self) -> &Topic {
        self.topics.subscription()
    }

    /// Returns the number of replies that came when no request waited for them any more.
    pub(crate) fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// Registers a request that will wait for its reply. Dropping the result unregisters it. `None` when no
    /// more replies come.
    pub(crate) fn expect(self: &Arc<Self>) -> Option<PendingReply> {
        let (sender, receiver) = oneshot::channel();
        let topic = {
            let mut waiting = self.waiting();
            if waiting.given_up.is_some() {
                return None;
            }
            let waiting = &mut waiting.requests;
            // Serial numbers repeat after a million requests: a number that is still in use is skipped.
            let mut topic = self.topics.next_topic();
            while waiting.contains_key(topic.as_bytes()) {
                topic = self.topics.next_topic();
            }
            waiting.insert(topic.clone().into_bytes(), sender);
            topic
        };
        Some(PendingReply { replies: self.clone(), topic, receiver })
    }

    /// Ends all waiting requests at once. Returns how many there were; a later call returns the same number.
    pub(crate) fn close(&self) -> u64 {
        let (given_up, requests) = {
            let mut waiting = self.waiting();
            let waiting = &mut *waiting;
            let count = waiting.requests.len() as u64;
            (*waiting.given_up.get_or_insert(count), std::mem::take(&mut waiting.requests))
        };
        // The waiting tasks are woken only now, when the lock is free again.
        drop(requests);
        given_up
    }

    /// Delivers replies to the requests that wait for them, until the subscription ends.
    pub(crate) async fn listen(self: Arc<Self>, mut subscription: Subscription) {
        while let Some(reply) = subscription.next().await {
            let Ok(reply) = reply else { continue };
            let sender = self.waiting().requests.remove(reply.topic().as_bytes());
            // The receiver is dropped together with its registration, but this can happen at this very
            // moment.
            if sender.is_none_or(|sender| sender.send(reply).is_err()) {
                let late = self.late.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::debug!(late, "a reply came that nobody waits for");
                if late.is_multiple_of(MANY_LATE) {
                    tracing::warn!(
                        late,
                        topics = %self.topics.subscription(),
                        "many replies came that no request waits for: somebody may be guessing the topics of replies"
                    );
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

/// A registered request that waits for its reply.
#[derive(Debug)]
pub(crate) struct PendingReply {
    replies: Arc<Replies>,
    topic: Topic,
    receiver: oneshot::Receiver<Message>,
}

impl PendingReply {
    /// Returns the topic that the reply is sent to.
    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Waits for the reply; `None` when the actor was closed.
    pub(crate) async fn answer(&mut self) -> Option<Message> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        self.replies.waiting().requests.remove(self.topic.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_request_frees_its_place() {
        let replies = Replies::new(ActorId::random());
        let first = replies.expect().unwrap();
        let second = replies.expect().unwrap();
        assert_ne!(first.topic(), second.topic());
        drop(first);
        assert_eq!(replies.waiting().requests.len(), 1);
        drop(second);
        assert!(replies.waiting().requests.is_empty());
    }

    #[tokio::test]
    async fn closing_ends_the_waiting_and_counts_it_once() {
        let replies = Replies::new(ActorId::random());
        let mut first = replies.expect().unwrap();
        let _second = replies.expect().unwrap();
        assert_eq!(replies.close(), 2);
        assert!(first.answer().await.is_none());
        assert!(replies.expect().is_none());
        assert_eq!(replies.close(), 2);
    }
}
