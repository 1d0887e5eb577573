//! Messages that were given to a broker and are not confirmed yet.
//!
//! The client gives a message that the broker returned along with *some* confirmation that comes after it,
//! not always with that of the same message: where one confirmation is for many messages, it completes them
//! in no particular order, and each takes the return that has waited longest. So a confirmation alone does
//! not say that the message has arrived. What can be relied on: a return comes before the confirmation of its
//! message, and it is handed out with the first confirmation that is completed after it. Therefore
//!
//! 1. a message whose confirmation came *without* a return, while everything that had completed by then was
//!    looked at, has arrived, unless one of those carried its return;
//! 2. a message whose confirmation carried the return of *another* one is only decided once nothing is in
//!    flight any more: by then, every return has been handed out.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;
use uuid::Uuid;

use crate::spool::Entry;

/// The answer of the broker to the publishing of one message.
#[derive(Debug)]
pub(super) enum PublishResult {
    /// The message has been confirmed. The answer may carry the return of a message.
    Confirmed(Option<Returned>),
    /// The broker could not take the message. The answer may carry the return of a message.
    Refused(Option<Returned>),
    /// The channel has ended.
    Lost(lapin::Error),
}

/// A message that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Returned {
    /// The identifier of the message, from its header.
    pub(super) id: Option<String>,
    /// Why it came back, in the words of the broker.
    pub(super) reason: String,
}

/// What has become of a message.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is in all queues that are bound for it.
    Arrived,
    /// No queue is bound for it.
    Returned(String),
    /// The broker could not take it.
    Refused,
}

/// A message that was given to the broker.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) entry: Entry,
    pub(super) id: Uuid,
    pub(super) since: Instant,
}

struct Pending {
    sent: Sent,
    answer: BoxFuture<'static, PublishResult>,
}

/// Messages in flight, in the order in which they were sent.
#[derive(Default)]
pub(super) struct InFlight {
    pending: VecDeque<Pending>,
    /// Messages whose confirmation carried the return of another message, by their identifiers.
    undecided: BTreeMap<String, (Sent, bool)>,
    /// Reasons of returned messages that were not confirmed yet, by identifier.
    returned: BTreeMap<String, String>,
    /// The identifiers of all of them.
    ids: HashSet<Uuid>,
    /// Bytes of the bodies of all of them.
    bytes: usize,
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InFlight").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl InFlight {
    /// Returns whether a message of this identifier is among them. Another one must not be added then: a
    /// return would be taken for that of the other.
    pub(super) fn contains(&self, id: Uuid) -> bool {
        self.ids.contains(&id)
    }

    /// Adds a message. `answer` is polled once at once, which sends it: so messages are sent in the order of
    /// these calls.
    pub(super) fn push(&mut self, sent: Sent, mut answer: BoxFuture<'static, PublishResult>) {
        let first = answer.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        let answer = match first {
            Poll::Pending => answer,
            Poll::Ready(answer) => Box::pin(std::future::ready(answer)),
        };
        self.bytes += sent.entry.body.len();
        self.ids.insert(sent.id);
        self.pending.push_back(Pending { sent, answer });
    }

    /// Returns the number of messages that are not decided.
    pub(super) fn len(&self) -> usize {
        self.pending.len() + self.undecided.len()
    }

    /// Returns the bytes of these messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether some messages are undecided, so that none may be sent before all that are in flight
    /// are decided.
    pub(super) fn has_undecided(&self) -> bool {
        !self.undecided.is_empty()
    }

    /// Returns when the oldest was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.pending.front().map(|pending| pending.sent.since)
    }

    /// Lets all of them begin to wait now, since the time in which the broker took nothing does not count.
    pub(super) fn restart_clocks(&mut self) {
        let now = Instant::now();
        self.pending.iter_mut().for_each(|pending| pending.sent.since = now);
    }

    /// Returns how many have waited longer than this.
    pub(super) fn overdue(&self, limit: Duration) -> usize {
        self.pending.iter().filter(|pending| pending.sent.since.elapsed() >= limit).count()
    }

    /// Returns the last sequence in the spool among those that are not decided.
    pub(super) fn last_sequence(&self) -> Option<u64> {
        self.all().map(|sent| sent.entry.sequence).max()
    }

    /// Returns the message in flight if it is the only one.
    pub(super) fn only_one(&self) -> Option<&Sent> {
        let mut all = self.all();
        all.next().filter(|_| all.next().is_none())
    }

    fn all(&self) -> impl Iterator<Item = &Sent> {
        let pending = self.pending.iter().map(|pending| &pending.sent);
        pending.chain(self.undecided.values().map(|(sent, _)| sent))
    }

    /// Waits until something is decided; for ever if nothing is in flight. An error is what has ended the
    /// channel: nothing is decided any more then.
    pub(super) async fn next_decided(&mut self) -> Result<Vec<(Sent, Outcome)>, lapin::Error> {
        poll_fn(|cx| self.poll_decided(cx)).await
    }

    fn poll_decided(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<(Sent, Outcome)>, lapin::Error>> {
        let mut answered = Vec::new();
        // All are polled until nothing more is found. What had completed before any of those that were found
        // is among them then.
        loop {
            let before = answered.len();
            let mut at = 0;
            while at < self.pending.len() {
                match Pin::new(&mut self.pending[at].answer).poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(PublishResult::Lost(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(answer) => {
                        let pending = self.pending.remove(at).map(|pending| pending.sent);
                        answered.extend(pending.map(|sent| (sent, answer)));
                    }
                }
            }
            if answered.len() == before {
                break;
            }
        }
        if answered.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.decide(answered)))
    }

    /// Decides what can be decided by now, of these answers and of those before them.
    fn decide(&mut self, answered: Vec<(Sent, PublishResult)>) -> Vec<(Sent, Outcome)> {
        let mut unsure = HashSet::new();
        let mut confirmed = Vec::new();
        for (sent, answer) in answered {
            let id = sent.id.to_string();
            let (carried, is_good) = match answer {
                PublishResult::Confirmed(returned) => (returned, true),
                PublishResult::Refused(returned) => (returned, false),
                PublishResult::Lost(_) => continue,
            };
            if let Some(Returned { id: Some(theirs), reason }) = carried {
                if theirs != id {
                    unsure.insert(id.clone());
                }
                self.returned.insert(theirs, reason);
            }
            confirmed.push((id, sent, is_good));
        }
        let mut decided = Vec::new();
        let outcome = |is_good| if is_good { Outcome::Arrived } else { Outcome::Refused };
        for (id, sent, is_good) in confirmed {
            if let Some(reason) = self.returned.remove(&id) {
                decided.push((sent, Outcome::Returned(reason)));
            } else if unsure.contains(&id) {
                self.undecided.insert(id, (sent, is_good));
            } else {
                decided.push((sent, outcome(is_good)));
            }
        }
        let known: Vec<_> =
            self.undecided.keys().filter(|id| self.returned.contains_key(*id)).cloned().collect();
        for id in known {
            if let (Some((sent, _)), Some(reason)) = (self.undecided.remove(&id), self.returned.remove(&id)) {
                decided.push((sent, Outcome::Returned(reason)));
            }
        }
        if self.pending.is_empty() {
            let rest = std::mem::take(&mut self.undecided).into_values();
            decided.extend(rest.map(|(sent, is_good)| (sent, outcome(is_good))));
            self.returned.clear();
        }
        for (sent, _) in &decided {
            self.ids.remove(&sent.id);
        }
        self.bytes -= decided.iter().map(|(sent, _)| sent.entry.body.len()).sum::<usize>();
        decided.sort_by_key(|(sent, _)| sent.entry.sequence);
        decided
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;
    use futures::FutureExt;
    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::*;

    fn sent(sequence: u64) -> Sent {
        let entry = Entry { sequence, accepted_at: SystemTime::UNIX_EPOCH, body: Bytes::new() };
        Sent { entry, id: Uuid::from_u128(u128::from(sequence)), since: Instant::now() }
    }

    fn returned(sequence: u64) -> Returned {
        let id = Some(Uuid::from_u128(u128::from(sequence)).to_string());
        Returned { id, reason: "312 NO_ROUTE".into() }
    }

    /// Makes messages in flight, and what completes them.
    fn in_flight(messages: u64) -> (InFlight, Vec<Option<oneshot::Sender<PublishResult>>>) {
        let mut in_flight = InFlight::default();
        let senders = (0..messages).map(|sequence| {
            let (sender, receiver) = oneshot::channel();
            let answer = async { receiver.await.expect("every message is answered") };
            in_flight.push(sent(sequence), answer.boxed());
            Some(sender)
        });
        let senders = senders.collect();
        (in_flight, senders)
    }

    /// Returns what is decided by now, as sequences with whether the message arrived.
    fn next_decided(in_flight: &mut InFlight) -> Vec<(u64, bool)> {
        let Some(decided) = in_flight.next_decided().now_or_never() else { return Vec::new() };
        let decided = decided.expect("the channel is there");
        decided
            .into_iter()
            .map(|(sent, outcome)| (sent.entry.sequence, matches!(outcome, Outcome::Arrived)))
            .collect()
    }

    #[tokio::test]
    async fn a_return_that_comes_with_the_confirmation_of_another_message_is_that_of_its_own() {
        let (mut in_flight, mut senders) = in_flight(3);
        let mut answer = |place: usize, returned: Option<Returned>| {
            senders[place].take().unwrap().send(PublishResult::Confirmed(returned)).unwrap();
        };
        // The broker has returned message 2, and confirms all three at once.
        answer(0, Some(returned(2)));
        assert_eq!(next_decided(&mut in_flight), [], "message 0 may have been returned, too");
        assert!(in_flight.has_undecided());
        answer(1, None);
        assert_eq!(next_decided(&mut in_flight), [(1, true)]);
        answer(2, None);
        assert_eq!(next_decided(&mut in_flight), [(0, true), (2, false)]);
        assert_eq!(in_flight.len(), 0);
    }

    #[tokio::test]
    async fn messages_are_sent_in_the_order_in_which_they_are_pushed() {
        let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut in_flight = InFlight::default();
        for sequence in 0..10 {
            let order = order.clone();
            let answer = async move {
                order.lock().unwrap().push(sequence);
                std::future::pending().await
            };
            in_flight.push(sent(sequence), answer.boxed());
        }
        assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
    }

    /// What the client does: returns are kept in a queue, and each confirmation that is completed takes the
    /// one that has waited longest.
    #[derive(Debug, Clone)]
    struct Script {
        /// For each message: whether it is returned.
        returned: Vec<bool>,
        /// How many of the oldest messages each confirmation of the broker is for.
        acknowledged: Vec<usize>,
        /// The order in which the messages of one confirmation are completed.
        seed: u64,
    }

    fn script() -> impl Strategy<Value = Script> {
        let returned = proptest::collection::vec(any::<bool>(), 1..40);
        let acknowledged = proptest::collection::vec(1..6_usize, 40);
        (returned, acknowledged, any::<u64>()).prop_map(|(returned, acknowledged, seed)| Script {
            returned,
            acknowledged,
            seed,
        })
    }

    proptest! {
        /// However the client mixes up returns, each message is decided once, and rightly; nobody is told
        /// that a message has arrived that came back.
        #[test]
        fn every_message_is_decided_rightly(script in script()) {
            let mut random = fastrand::Rng::with_seed(script.seed);
            let (mut in_flight, mut senders) = in_flight(script.returned.len() as u64);
            let mut waiting = VecDeque::new();
            let mut all = Vec::new();
            let mut next = 0;
            for count in script.acknowledged {
                let mut group: Vec<usize> = (next..script.returned.len().min(next + count)).collect();
                next += group.len();
                // The broker returns a message before it confirms it, at times long before.
                waiting.extend(group.iter().filter(|place| script.returned[**place]).map(|place| returned(*place as u64)));
                random.shuffle(&mut group);
                for place in group {
                    let answer = PublishResult::Confirmed(waiting.pop_front());
                    senders[place].take().unwrap().send(answer).unwrap();
                    if random.bool() {
                        all.extend(next_decided(&mut in_flight));
                    }
                }
            }
            all.extend(next_decided(&mut in_flight));
            all.sort_unstable();
            let expected: Vec<_> = script.returned.iter().enumerate().map(|(place, came_back)| (place as u64, !came_back)).collect();
            prop_assert_eq!(all, expected);
            prop_assert_eq!(in_flight.len(), 0);
        }
    }
}
