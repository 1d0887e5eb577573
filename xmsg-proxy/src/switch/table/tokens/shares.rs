//! How many tokens the subscribers of each source have, and who has most. It takes the same time however many
//! there are: each token that finds no place asks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use xmsg_zmq::link::source::Source;

/// The shares of all sources.
#[derive(Debug, Default)]
pub(super) struct Shares {
    by_source: BTreeMap<Source, Share>,
    /// The sources by their tokens. Of those with as many, the oldest is the last.
    by_tokens: BTreeSet<(usize, Reverse<u64>, Source)>,
    /// The number of sources that have come so far.
    sources_so_far: u64,
}

/// What the subscribers of one source have together.
#[derive(Debug)]
struct Share {
    /// The number of the source in the order in which they came.
    number: u64,
    tokens: usize,
    /// The subscribers by their tokens. Of those with as many, the oldest is the last.
    subscribers: BTreeSet<(usize, Reverse<u32>)>,
}

impl Shares {
    /// Changes the number of tokens that a subscriber has.
    pub(super) fn change(&mut self, source: &Source, subscriber: u32, before: usize, after: usize) {
        let share = self.by_source.entry(source.clone()).or_insert_with(|| {
            self.sources_so_far += 1;
            Share { number: self.sources_so_far, tokens: 0, subscribers: BTreeSet::new() }
        });
        let number = Reverse(share.number);
        share.subscribers.remove(&(before, Reverse(subscriber)));
        self.by_tokens.remove(&(share.tokens, number, source.clone()));
        share.tokens = share.tokens + after - before;
        if after > 0 {
            share.subscribers.insert((after, Reverse(subscriber)));
        }
        if share.tokens > 0 {
            self.by_tokens.insert((share.tokens, number, source.clone()));
        } else {
            self.by_source.remove(source);
        }
    }

    /// Returns the subscriber that gives way where all places are taken and this one, which has `own` tokens,
    /// wants one more. It is of the source with most tokens and, within that, the one with most. Returns
    /// `None` if nobody has more than this one would have then.
    ///
    /// Whoever has none gets a place in any case, from the oldest of those that have most: a token does its
    /// work when it is passed on for the first time, so that an old one has done so.
    pub(super) fn victim(&self, source: &Source, own: usize) -> Option<u32> {
        let gives_way = |most: usize, own: usize| most > own + usize::from(own > 0);
        let tokens = self.by_source.get(source).map_or(0, |share| share.tokens);
        let (most, _, largest) = self.by_tokens.last()?;
        let from = if largest != source && gives_way(*most, tokens) { largest } else { source };
        let own = if from == source { own } else { 0 };
        let (most, Reverse(subscriber)) = self.by_source.get(from)?.subscribers.last()?;
        gives_way(*most, own).then_some(*subscriber)
    }

    #[cfg(test)]
    pub(super) fn sources(&self) -> usize {
        self.by_source.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u32) -> Source {
        Source::of(&format!("192.0.2.{number}:5000"))
    }

    #[test]
    fn whoever_has_most_gives_way_and_of_equals_the_oldest() {
        let mut shares = Shares::default();
        assert_eq!(shares.victim(&source(1), 0), None);
        shares.change(&source(1), 10, 0, 1);
        shares.change(&source(1), 11, 0, 1);
        shares.change(&source(2), 12, 0, 1);
        assert_eq!(shares.victim(&source(3), 0), Some(10), "a new source gets a place");
        assert_eq!(shares.victim(&source(1), 0), Some(10), "so does a new subscriber");
        assert_eq!(shares.victim(&source(1), 1), None, "nobody has more than it would have");
        assert_eq!(shares.victim(&source(2), 1), None);
        shares.change(&source(1), 11, 1, 3);
        assert_eq!([0, 1, 2].map(|own| shares.victim(&source(1), own)), [Some(11), Some(11), None]);
        assert_eq!(shares.victim(&source(2), 1), Some(11));
        shares.change(&source(1), 11, 3, 0);
        shares.change(&source(1), 10, 1, 0);
        assert_eq!(shares.sources(), 1);
        assert_eq!(shares.victim(&source(1), 0), Some(12));
        shares.change(&source(2), 12, 1, 0);
        assert_eq!((shares.sources(), shares.by_tokens.len()), (0, 0));
    }
}
