//! The tokens of links to upstreams, by which loops are found: who subscribed to them, and who receives them.
//!
//! They are no prefixes: nothing is published to them, no rights apply to them, and they are neither listed
//! nor counted as subscriptions. So they are not in the prefix table, and are sent only to peers that pass
//! them on: links to upstreams, and publishers that are forwarders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use xmsg_zmq::link::memory::{Claim, MemoryBudget};
use xmsg_zmq::link::throttle::Throttle;

use super::task::TableTask;
use crate::security::Rights;
use crate::switch::peers::Subscriber;
use crate::switch::publisher::Publisher;
use crate::switch::upstream::Token;

/// The largest number of tokens of one subscriber: one for each link of all proxies that are connected
/// through it.
pub(super) const TOKENS_MAX: usize = 1024;
/// The approximate number of bytes that a token of a subscriber takes.
const TOKEN: usize = 160;
/// Nobody is slowed down for a token that is sent to no more publishers than this.
const FEW: usize = 64;
/// The number of tokens of one proxy that are compared with a new one of it.
const COMPARED: usize = 256;

#[derive(Debug)]
pub(super) struct Tokens {
    /// The subscribers that have each token, by their number.
    held: BTreeMap<Token, BTreeMap<u32, Arc<Subscriber>>>,
    own: BTreeMap<u32, BTreeSet<Token>>,
    /// The publishers that receive tokens.
    receivers: BTreeMap<u32, Arc<Publisher>>,
    /// The proxies whose tokens came over two paths.
    double: BTreeSet<u128>,
    lines: Throttle,
    claim: Claim,
}

impl Tokens {
    pub(super) fn new(memory: &MemoryBudget) -> Self {
        Self {
            held: BTreeMap::new(),
            own: BTreeMap::new(),
            receivers: BTreeMap::new(),
            double: BTreeSet::new(),
            lines: Throttle::default(),
            claim: memory.claim_shared(),
        }
    }

    /// Returns the tokens of one proxy, from the first.
    fn of_proxy(&self, proxy: u128) -> impl Iterator<Item = (&Token, &BTreeMap<u32, Arc<Subscriber>>)> {
        let token = |link, connection| Token { proxy, link, connection };
        self.held.range(token(0, 0)..=token(u32::MAX, u32::MAX)).take(COMPARED)
    }

    /// Returns two subscribers over which tokens of different links of this proxy came.
    fn double_path(&self, proxy: u128) -> Option<(Arc<Subscriber>, Arc<Subscriber>)> {
        let mut links: BTreeMap<u32, BTreeMap<u32, &Arc<Subscriber>>> = BTreeMap::new();
        for (token, subscribers) in self.of_proxy(proxy) {
            // If there is a pair, there is one among two subscribers of each token.
            let some = subscribers.iter().take(2);
            links.entry(token.link).or_default().extend(some.map(|(id, one)| (*id, one)));
        }
        let (_, first) = links.pop_first()?;
        // If there is a pair without the first link, there is one with it, too.
        let others = links.values().flat_map(BTreeMap::iter);
        let pairs =
            others.flat_map(|(id, other)| first.iter().map(move |(own, one)| (own != id, one, other)));
        let pair = pairs.into_iter().find(|(differ, ..)| *differ);
        pair.map(|(_, one, other)| (Arc::clone(one), Arc::clone(other)))
    }
}

impl TableTask {
    /// Adds or removes a token of a subscriber.
    pub(super) fn change_token(&mut self, subscribe: bool, subscriber: &Arc<Subscriber>, token: Token) {
        let tokens = &mut self.tokens;
        if subscribe {
            if !tokens.own.entry(subscriber.id).or_default().insert(token) {
                return;
            }
            let subscribers = tokens.held.entry(token).or_default();
            subscribers.insert(subscriber.id, subscriber.clone());
            let is_first = subscribers.len() == 1;
            tokens.claim.force(tokens.claim.bytes() + TOKEN);
            if is_first {
                self.charge_for_token(subscriber);
                self.tell_token(true, token);
            }
            self.look_for_double_path(token.proxy);
        } else if self.tokens.own.get_mut(&subscriber.id).is_some_and(|own| own.remove(&token)) {
            self.charge_for_token(subscriber);
            self.release_token(subscriber.id, token);
        }
    }

    /// Makes a subscriber wait for its next change, if this one is sent to many publishers.
    fn charge_for_token(&self, subscriber: &Subscriber) {
        let receivers = self.tokens.receivers.len();
        if receivers > FEW {
            subscriber.notified.fetch_add(receivers, Ordering::Relaxed);
        }
    }

    /// Removes the tokens of a subscriber that has left.
    pub(super) fn forget_tokens(&mut self, subscriber: u32) {
        for token in self.tokens.own.remove(&subscriber).unwrap_or_default() {
            self.release_token(subscriber, token);
        }
    }

    fn release_token(&mut self, subscriber: u32, token: Token) {
        let tokens = &mut self.tokens;
        let Some(subscribers) = tokens.held.get_mut(&token) else { return };
        subscribers.remove(&subscriber);
        tokens.claim.force(tokens.claim.bytes().saturating_sub(TOKEN));
        if subscribers.is_empty() {
            tokens.held.remove(&token);
            self.tell_token(false, token);
        }
        if self.tokens.double.contains(&token.proxy) {
            self.look_for_double_path(token.proxy);
        }
    }

    fn tell_token(&self, subscribe: bool, token: Token) {
        for publisher in self.tokens.receivers.values() {
            let mut bytes = BytesMut::new();
            publisher.version.write_subscription(&mut bytes, subscribe, &token.topic());
            publisher.send(&bytes.freeze());
            publisher.count_backlog(&self.memory);
        }
    }

    /// Sends a publisher all tokens, and from now on their changes.
    pub(super) fn tell_tokens(&mut self, publisher: &Arc<Publisher>) {
        if self.tokens.receivers.insert(publisher.id, publisher.clone()).is_some() {
            return;
        }
        let mut bytes = BytesMut::new();
        for token in self.tokens.held.keys() {
            publisher.version.write_subscription(&mut bytes, true, &token.topic());
        }
        publisher.send_snapshot(&self.memory.counted(bytes.freeze()));
        publisher.count_backlog(&self.memory);
    }

    /// Sends all tokens to a publisher that has joined, if it passes them on and may publish everything: the
    /// subscriptions of others elsewhere concern nobody else.
    pub(super) fn tell_forwarder(&mut self, publisher: &Arc<Publisher>) {
        if may_forward(publisher) {
            self.tell_tokens(publisher);
        }
    }

    /// Stops sending tokens to publishers that may no longer receive them under the rules that are in force
    /// now.
    pub(super) fn enforce_on_forwarders(&mut self) {
        self.tokens.receivers.retain(|_, publisher| publisher.arrival.is_some() || may_forward(publisher));
    }

    /// Removes a publisher that has left.
    pub(super) fn tell_no_more_tokens(&mut self, publisher: u32) {
        self.tokens.receivers.remove(&publisher);
    }

    fn look_for_double_path(&mut self, proxy: u128) {
        let found = self.tokens.double_path(proxy);
        let is_there = found.is_some();
        let was_there =
            if is_there { !self.tokens.double.insert(proxy) } else { self.tokens.double.remove(&proxy) };
        self.table.double_paths.store(self.tokens.double.len(), Ordering::Relaxed);
        if let Some((one, other)) = found.filter(|_| !was_there)
            && let Some(unlogged) = self.tokens.lines.pass("proxies that reach this one over two ways")
        {
            tracing::warn!(
                one = %one.peer,
                other = %other.peer,
                unlogged,
                "a proxy has this one as its upstream over two ways: its subscribers get each message twice. Take one of its upstreams out of the \
                 settings"
            );
        }
    }
}

fn may_forward(publisher: &Publisher) -> bool {
    publisher.is_forwarder && publisher.authorization.rights().as_deref().is_some_and(Rights::publishes_all)
}

#[cfg(test)]
mod tests {
    use xmsg_zmq::HighWaterMark;
    use xmsg_zmq::link::send_queue::SendQueue;

    use super::*;
    use crate::config::PublishersSend;
    use crate::policy::{Policies, Policy, Rule};
    use crate::switch::authorization::Authorization;
    use crate::switch::table::Table;

    fn task(memory: &MemoryBudget) -> TableTask {
        let rule = Rule { policy: Policy::BLOCK, mark: HighWaterMark::bytes(1 << 20) };
        Table::new(PublishersSend::Subscribed, Policies::new(rule, &[]), memory.clone()).1
    }

    fn subscriber(id: u32) -> Arc<Subscriber> {
        let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
        Arc::new(Subscriber::new(id, "a subscriber", send_queue, Authorization::new(&Arc::default(), None)))
    }

    #[test]
    fn a_token_is_told_once_and_taken_back_when_nobody_has_it_any_more() {
        let memory = MemoryBudget::default();
        let mut task = task(&memory);
        let receivers = Arc::new(Publisher::of_test(100, "an upstream"));
        let token = Token { proxy: 1, link: 1, connection: 0 };
        let (one, other) = (subscriber(1), subscriber(2));
        task.change_token(true, &one, token);
        task.tell_tokens(&receivers);
        assert_eq!(receivers.send_queue.queued().messages, 1);
        task.tell_tokens(&receivers);
        task.change_token(true, &one, token);
        task.change_token(true, &other, token);
        task.change_token(false, &one, token);
        task.change_token(false, &one, token);
        assert_eq!(receivers.send_queue.queued().messages, 1, "somebody still has it");
        task.forget_tokens(2);
        assert_eq!(receivers.send_queue.queued().messages, 2);
        task.tell_no_more_tokens(100);
        task.change_token(true, &one, token);
        assert_eq!(receivers.send_queue.queued().messages, 2);
        task.forget_tokens(1);
        assert_eq!((task.tokens.held.len(), task.tokens.own.len(), task.tokens.claim.bytes()), (0, 0, 0));
        assert_eq!(task.table.subscriptions(), 0);
    }

    #[test]
    fn two_ways_from_one_proxy_are_found_and_a_connection_made_anew_is_none() {
        let mut task = task(&MemoryBudget::default());
        let token = |link, connection| Token { proxy: 9, link, connection };
        let (one, other) = (subscriber(1), subscriber(2));
        task.change_token(true, &one, token(1, 0));
        task.change_token(true, &other, token(1, 1));
        task.change_token(true, &one, token(2, 0));
        task.change_token(true, &subscriber(3), Token { proxy: 8, link: 2, connection: 0 });
        assert_eq!(
            task.table.double_paths(),
            1,
            "the second link of one and the new connection of the first"
        );
        task.change_token(false, &one, token(2, 0));
        assert_eq!(task.table.double_paths(), 0);
        task.change_token(true, &other, token(2, 0));
        assert_eq!(task.table.double_paths(), 1);
        task.forget_tokens(1);
        assert_eq!(task.table.double_paths(), 0);
    }
}
