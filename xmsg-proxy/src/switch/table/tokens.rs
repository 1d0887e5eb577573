//! Tokens of links to upstreams, by which loops are found: who subscribed to them, and who is told.
//!
//! They are no prefixes: nothing is published to them, nobody's rights matter, and they are neither listed
//! nor counted as subscriptions. So they do not stand in the table, and are told to those alone that pass
//! them on: links to upstreams, and publishers that are forwarders.
//!
//! Everybody can make tokens up. So there are [not many](TOKENS_MAX) in all, and whoever brings many gives
//! way to those who bring few: nobody's token is kept out by tokens of others that are made up.

mod receivers;
mod shares;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use xmsg_zmq::link::source::Source;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::memory_budget::{Claim, MemoryBudget};

use self::receivers::Receivers;
use self::shares::Shares;
use super::task::TableTask;
use crate::switch::subscriber::ConnectedSubscriber;
use crate::switch::upstream::{TOKEN_LEN, Token};

/// Tokens of all subscribers together: the links of all proxies that are connected through this one. As many
/// as a link passes on, the next proxy takes from it.
const TOKENS_MAX: usize = 1024;
/// What a token of a subscriber takes in all maps and sets, bytes, about.
const TOKEN: usize = 400;
/// Tokens of one proxy that are compared with a new one of it.
const COMPARED: usize = 256;

#[derive(Debug)]
pub(super) struct Tokens {
    /// By subscriber.
    held: BTreeMap<Token, BTreeSet<u32>>,
    own: BTreeMap<u32, Own>,
    shares: Shares,
    /// Pairs of a token and a subscriber.
    pairs: usize,
    receivers: Receivers,
    /// Proxies whose tokens came over two ways.
    doubled: BTreeSet<u128>,
    /// Proxies of which it is yet to be looked whether they are among these.
    suspects: BTreeSet<u128>,
    lines: Throttle,
    lines_left_out: Throttle,
    /// Tokens that found no place, or lost it.
    left_out: u64,
}

/// The tokens of one subscriber.
#[derive(Debug)]
struct Own {
    subscriber: Arc<ConnectedSubscriber>,
    source: Source,
    /// In the order in which they came.
    tokens: Vec<Token>,
    claim: Claim,
}

impl Own {
    fn new(subscriber: &Arc<ConnectedSubscriber>, source: Source, memory: &MemoryBudget) -> Self {
        let claim = memory.claim(&subscriber.peer, "tokens of links", subscriber.outsized.clone());
        Self { subscriber: subscriber.clone(), source, tokens: Vec::new(), claim }
    }

    fn count_memory(&mut self) {
        self.claim.force(self.tokens.len() * TOKEN);
    }
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            own: BTreeMap::new(),
            shares: Shares::default(),
            pairs: 0,
            receivers: Receivers::default(),
            doubled: BTreeSet::new(),
            suspects: BTreeSet::new(),
            lines: Throttle::default(),
            lines_left_out: Throttle::default(),
            left_out: 0,
        }
    }

    fn add(&mut self, subscriber: &Arc<ConnectedSubscriber>, token: Token, memory: &MemoryBudget) {
        if self.held.get(&token).is_some_and(|subscribers| subscribers.contains(&subscriber.id)) {
            return;
        }
        let source = Source::of(&subscriber.peer);
        if self.pairs >= TOKENS_MAX && !self.make_room(subscriber, &source) {
            return;
        }
        self.held.entry(token).or_default().insert(subscriber.id);
        let new = || Own::new(subscriber, source.clone(), memory);
        let own = self.own.entry(subscriber.id).or_insert_with(new);
        own.tokens.push(token);
        self.shares.change(&source, subscriber.id, own.tokens.len() - 1, own.tokens.len());
        own.count_memory();
        self.pairs += 1;
        self.note(token);
    }

    fn remove(&mut self, subscriber: u32, token: Token) {
        let Some(own) = self.own.get_mut(&subscriber) else { return };
        let Some(place) = own.tokens.iter().rposition(|one| *one == token) else { return };
        own.tokens.remove(place);
        own.count_memory();
        self.shares.change(&own.source, subscriber, own.tokens.len() + 1, own.tokens.len());
        if own.tokens.is_empty() {
            self.own.remove(&subscriber);
        }
        self.release(subscriber, [token]);
    }

    /// A subscriber has gone.
    fn remove_all(&mut self, subscriber: u32) {
        if let Some(Own { source, tokens, .. }) = self.own.remove(&subscriber) {
            self.shares.change(&source, subscriber, tokens.len(), 0);
            self.release(subscriber, tokens);
        }
    }

    /// Takes tokens that a subscriber has no more out of what all have.
    fn release(&mut self, subscriber: u32, tokens: impl IntoIterator<Item = Token>) {
        for token in tokens {
            self.pairs -= 1;
            if let Some(subscribers) = self.held.get_mut(&token) {
                subscribers.remove(&subscriber);
                if subscribers.is_empty() {
                    self.held.remove(&token);
                }
            }
            self.note(token);
        }
    }

    /// Who wants a token has changed.
    fn note(&mut self, token: Token) {
        self.receivers.note(token, self.held.contains_key(&token));
        if self.of_proxy(token.proxy).next().is_some() || self.doubled.contains(&token.proxy) {
            self.suspects.insert(token.proxy);
        } else {
            self.suspects.remove(&token.proxy);
        }
    }

    /// Where all places are taken: [who has most](Shares::victim) gives its newest token up, which may be
    /// this subscriber itself. So the oldest tokens of a link stay; but also one that comes late, behind many
    /// that are made up, is told on its way to the proxy that knows it. `false`: there is no place.
    fn make_room(&mut self, subscriber: &ConnectedSubscriber, source: &Source) -> bool {
        let own = self.own.get(&subscriber.id).map_or(0, |own| own.tokens.len());
        let victim = self.shares.victim(source, own).unwrap_or(subscriber.id);
        let newest =
            self.own.get(&victim).and_then(|own| Some((own.subscriber.clone(), *own.tokens.last()?)));
        let peer = newest.as_ref().map_or(&subscriber.peer, |(subscriber, _)| &subscriber.peer);
        self.left_out += 1;
        if let Some(unlogged) = self.lines_left_out.pass("tokens of links that found no place") {
            tracing::warn!(
                peer = %peer,
                left_out_in_all = self.left_out,
                most = TOKENS_MAX,
                unlogged,
                "subscribers pass on tokens of more links than there are places: loops through the others may not be found. A real proxy has \
                 one token for each of its upstreams; the peer may make them up"
            );
        }
        let Some((_, newest)) = newest else { return false };
        self.remove(victim, newest);
        true
    }

    /// Returns these tokens in the order in which they are sent: the first ones of all subscribers before the
    /// second ones, and so on. A receiver that takes only some of them has not only those of one subscriber.
    fn in_turn(&self, tokens: &BTreeSet<Token>) -> Vec<Token> {
        let of_each = |(id, own): (&u32, &Own)| {
            let id = *id;
            own.tokens.clone().into_iter().enumerate().map(move |(rank, token)| (rank, id, token))
        };
        let mut ranked: Vec<_> = self.own.iter().flat_map(of_each).collect();
        ranked.sort_unstable();
        let mut left = tokens.clone();
        let mut all: Vec<_> =
            ranked.into_iter().map(|(.., token)| token).filter(|token| left.remove(token)).collect();
        all.extend(left);
        all
    }

    /// The tokens of one proxy, from the first.
    fn of_proxy(&self, proxy: u128) -> impl Iterator<Item = (&Token, &BTreeSet<u32>)> {
        let token = |link, connection| Token { proxy, link, connection };
        self.held.range(token(0, 0)..=token(u32::MAX, u32::MAX)).take(COMPARED)
    }

    /// Two subscribers over which tokens of different links of this proxy came.
    fn double_path(&self, proxy: u128) -> Option<[Arc<ConnectedSubscriber>; 2]> {
        let mut links: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (token, subscribers) in self.of_proxy(proxy) {
            // If there is a pair, there is one among two of each.
            links.entry(token.link).or_default().extend(subscribers.iter().take(2));
        }
        let (_, first) = links.pop_first()?;
        // If there is a pair without the first link, there is one with it, too; and if there is one, there is
        // one among two of each.
        let others: BTreeSet<u32> = links.into_values().flatten().collect();
        let mut pairs =
            first.iter().take(2).flat_map(|one| others.iter().take(2).map(move |other| [*one, *other]));
        let pair = pairs.find(|[one, other]| one != other)?;
        let [one, other] = pair.map(|id| self.own.get(&id).map(|own| own.subscriber.clone()));
        Some([one?, other?])
    }
}

impl TableTask {
    /// A subscriber wants a token, or does not want it any more.
    pub(super) fn change_token(
        &mut self,
        subscribe: bool,
        subscriber: &Arc<ConnectedSubscriber>,
        token: Token,
    ) {
        if subscribe {
            self.tokens.add(subscriber, token, &self.memory);
        } else {
            self.tokens.remove(subscriber.id, token);
        }
        subscriber.notified_bytes.fetch_add(TOKEN_LEN * self.tokens.receivers(), Ordering::Relaxed);
    }

    /// A subscriber has gone.
    pub(super) fn forget_tokens(&mut self, subscriber: u32) {
        self.tokens.remove_all(subscriber);
    }

    /// Looks at the proxies whose tokens have changed since the last time: once at each, however many of its
    /// tokens those were.
    fn look_for_double_paths(&mut self) {
        for proxy in std::mem::take(&mut self.tokens.suspects) {
            let tokens = &mut self.tokens;
            let found = tokens.double_path(proxy);
            let is_there = found.is_some();
            let was_there =
                if is_there { !tokens.doubled.insert(proxy) } else { tokens.doubled.remove(&proxy) };
            if let Some([one, other]) = found.filter(|_| !was_there)
                && let Some(unlogged) = tokens.lines.pass("proxies that reach this one over two ways")
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
        self.table.double_paths.store(self.tokens.doubled.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
