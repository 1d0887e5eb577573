//! Who subscribed to a prefix of this topic? A trie with compressed edges, refcounted by subscriber.
//!
//! Matching walks the topic once, whatever the number of subscriptions. The nodes lie in one arena, so that a
//! subscriber can name its subscriptions by [`NodeId`] instead of keeping their text a second time.

use std::collections::BTreeMap;
use std::ops::Range;

use smallvec::SmallVec;

/// A node that holds a subscription. It stays valid until its last key is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

const ROOT: usize = 0;

/// A set of (prefix, key) pairs that finds all keys whose prefix starts a topic. Keys are small and ordered:
/// the number of a subscriber.
///
/// ```
/// let mut trie = xmsg_core::trie::Trie::new();
/// trie.insert(b"data:", 1_u32);
/// trie.insert(b"", 2);
/// let mut found = Vec::new();
/// trie.find(b"data:power", |keys| found.extend_from_slice(keys));
/// assert_eq!(found, [2, 1]);
/// ```
#[derive(Debug)]
pub struct Trie<K> {
    nodes: Vec<Node<K>>,
    free: Vec<u32>,
    /// How many prefixes there are of each length, so that the longest is known.
    lengths: BTreeMap<usize, usize>,
    pairs: usize,
}

/// What an insertion changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// Where the prefix lives.
    pub node: NodeId,
    /// The pair was not there before.
    pub is_new: bool,
    /// The prefix had no key before: 0 → 1.
    pub is_first: bool,
}

#[derive(Debug)]
struct Node<K> {
    /// The bytes between the parent and this node; empty at the root only.
    edge: SmallVec<[u8; 16]>,
    parent: u32,
    /// First byte of the child's edge, and the child; sorted.
    children: Vec<(u8, u32)>,
    /// Sorted.
    keys: SmallVec<[K; 4]>,
}

impl<K> Node<K> {
    fn new(edge: &[u8], parent: u32) -> Self {
        Self { edge: SmallVec::from_slice(edge), parent, children: Vec::new(), keys: SmallVec::new() }
    }

    fn child(&self, byte: u8) -> Option<usize> {
        let at = self.children.binary_search_by_key(&byte, |child| child.0).ok()?;
        Some(self.children[at].1 as usize)
    }
}

impl<K: Copy + Ord> Default for Trie<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Copy + Ord> Trie<K> {
    /// An empty trie.
    #[must_use]
    pub fn new() -> Self {
        Self { nodes: vec![Node::new(b"", 0)], free: Vec::new(), lengths: BTreeMap::new(), pairs: 0 }
    }

    /// How many (prefix, key) pairs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs
    }

    /// Whether there is no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// Bytes of the longest prefix; 0 when there is none.
    #[must_use]
    pub fn longest_prefix(&self) -> usize {
        self.lengths.last_key_value().map_or(0, |(len, _)| *len)
    }

    /// Adds a pair. A pair is there once, however often it is added.
    pub fn insert(&mut self, prefix: &[u8], key: K) -> Inserted {
        let node = self.node_for(prefix);
        let keys = &mut self.nodes[node].keys;
        let is_first = keys.is_empty();
        let is_new = match keys.binary_search(&key) {
            Ok(_) => false,
            Err(at) => {
                keys.insert(at, key);
                self.pairs += 1;
                true
            }
        };
        if is_first {
            *self.lengths.entry(prefix.len()).or_default() += 1;
        }
        Inserted { node: NodeId(node as u32), is_new, is_first }
    }

    /// The node of this prefix, if it has a key.
    #[must_use]
    pub fn node(&self, prefix: &[u8]) -> Option<NodeId> {
        let (mut node, mut rest) = (ROOT, prefix);
        while let Some(byte) = rest.first() {
            node = self.nodes[node].child(*byte)?;
            rest = rest.strip_prefix(&self.nodes[node].edge[..])?;
        }
        (!self.nodes[node].keys.is_empty()).then_some(NodeId(node as u32))
    }

    /// Removes a pair; returns the prefix when that was its last key: 1 → 0.
    ///
    /// Does nothing when the pair is not there.
    pub fn remove(&mut self, node: NodeId, key: K) -> Option<Vec<u8>> {
        let index = node.0 as usize;
        let keys = &mut self.nodes.get_mut(index)?.keys;
        let at = keys.binary_search(&key).ok()?;
        keys.remove(at);
        self.pairs -= 1;
        if !keys.is_empty() {
            return None;
        }
        keys.shrink_to_fit();
        let prefix = self.prefix(node);
        if let Some(count) = self.lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
        self.prune(index);
        Some(prefix)
    }

    /// The prefix that lives at this node.
    #[must_use]
    pub fn prefix(&self, node: NodeId) -> Vec<u8> {
        let mut edges = Vec::new();
        let mut index = node.0 as usize;
        while index != ROOT {
            edges.push(&self.nodes[index].edge[..]);
            index = self.nodes[index].parent as usize;
        }
        edges.reverse();
        edges.concat()
    }

    /// Calls `found` with the keys of every prefix of `topic`, shortest prefix first. A key that has several
    /// prefixes comes several times.
    pub fn find(&self, topic: &[u8], mut found: impl FnMut(&[K])) {
        let (mut node, mut rest) = (&self.nodes[ROOT], topic);
        loop {
            if !node.keys.is_empty() {
                found(&node.keys);
            }
            let Some(child) = rest.first().and_then(|byte| node.child(*byte)) else { return };
            node = &self.nodes[child];
            let Some(tail) = rest.strip_prefix(&node.edge[..]) else { return };
            rest = tail;
        }
    }

    /// Every prefix that has a key, with its number of keys; in no particular order.
    pub fn prefixes(&self) -> impl Iterator<Item = (Vec<u8>, usize)> + '_ {
        self.prefixes_within(0..self.nodes.len())
    }

    /// How many places for nodes there are: the bound of the ranges for [`prefixes_within`](Self::prefixes_within).
    #[must_use]
    pub fn places(&self) -> usize {
        self.nodes.len()
    }

    /// The [`prefixes`](Self::prefixes) at a range of places, so that a large trie can be looked through a part at a
    /// time. A prefix keeps its place for as long as it has a key: one that is there all the while is met just once.
    pub fn prefixes_within(&self, places: Range<usize>) -> impl Iterator<Item = (Vec<u8>, usize)> + '_ {
        let end = places.end.min(self.nodes.len());
        (places.start.min(end)..end).filter_map(|index| {
            let keys = self.nodes[index].keys.len();
            (keys > 0).then(|| (self.prefix(NodeId(index as u32)), keys))
        })
    }

    /// Finds or makes the node of this prefix.
    fn node_for(&mut self, prefix: &[u8]) -> usize {
        let (mut node, mut rest) = (ROOT, prefix);
        while let Some(&byte) = rest.first() {
            let Some(child) = self.nodes[node].child(byte) else {
                return self.add_child(node, rest);
            };
            let edge = &self.nodes[child].edge;
            let common = edge.iter().zip(rest).take_while(|(a, b)| a == b).count();
            node = if common == edge.len() { child } else { self.split(child, common) };
            rest = &rest[common..];
        }
        node
    }

    fn allocate(&mut self, node: Node<K>) -> usize {
        if let Some(index) = self.free.pop() {
            self.nodes[index as usize] = node;
            return index as usize;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn add_child(&mut self, parent: usize, edge: &[u8]) -> usize {
        let child = self.allocate(Node::new(edge, parent as u32));
        self.link(parent, edge[0], child);
        child
    }

    fn link(&mut self, parent: usize, byte: u8, child: usize) {
        let children = &mut self.nodes[parent].children;
        match children.binary_search_by_key(&byte, |entry| entry.0) {
            Ok(at) => children[at].1 = child as u32,
            Err(at) => children.insert(at, (byte, child as u32)),
        }
        self.nodes[child].parent = parent as u32;
    }

    /// Puts a new node into the edge above `node`, after `at` bytes. `node` keeps its id.
    fn split(&mut self, node: usize, at: usize) -> usize {
        let parent = self.nodes[node].parent as usize;
        let edge = std::mem::take(&mut self.nodes[node].edge);
        let middle = self.allocate(Node::new(&edge[..at], parent as u32));
        self.link(parent, edge[0], middle);
        self.nodes[node].edge = SmallVec::from_slice(&edge[at..]);
        self.link(middle, edge[at], node);
        middle
    }

    /// Takes away nodes that hold nothing any more, and joins edges where a node no longer branches.
    fn prune(&mut self, mut index: usize) {
        while index != ROOT && self.nodes[index].keys.is_empty() {
            let parent = self.nodes[index].parent as usize;
            let byte = self.nodes[index].edge[0];
            match self.nodes[index].children[..] {
                [] => {
                    let children = &mut self.nodes[parent].children;
                    children.retain(|child| child.0 != byte);
                    if children.is_empty() {
                        children.shrink_to_fit();
                    }
                    self.release(index);
                    index = parent;
                }
                [(_, child)] => {
                    let child = child as usize;
                    let mut edge = std::mem::take(&mut self.nodes[index].edge);
                    edge.extend_from_slice(&self.nodes[child].edge);
                    self.nodes[child].edge = edge;
                    self.link(parent, byte, child);
                    self.release(index);
                    return;
                }
                _ => return,
            }
        }
    }

    fn release(&mut self, index: usize) {
        self.nodes[index] = Node::new(b"", 0);
        self.free.push(index as u32);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn found(trie: &Trie<u32>, topic: &[u8]) -> Vec<u32> {
        let mut keys = Vec::new();
        trie.find(topic, |found| keys.extend_from_slice(found));
        keys.sort_unstable();
        keys
    }

    #[test]
    fn matches_by_byte_prefix() {
        let mut trie = Trie::new();
        trie.insert(b"A:B", 1);
        for topic in [&b"A:B"[..], b"A:B:L", b"A:BC"] {
            assert_eq!(found(&trie, topic), [1]);
        }
        assert_eq!(found(&trie, b"A:"), Vec::<u32>::new());
    }

    #[test]
    fn the_empty_prefix_matches_everything() {
        let mut trie = Trie::new();
        trie.insert(b"", 7);
        assert_eq!(found(&trie, b""), [7]);
        assert_eq!(found(&trie, &[0xff, 0]), [7]);
        assert_eq!(trie.longest_prefix(), 0);
    }

    #[test]
    fn tells_first_and_last() {
        let mut trie = Trie::new();
        let first = trie.insert(b"abc", 1);
        assert!(first.is_new && first.is_first);
        assert!(!trie.insert(b"abc", 1).is_new);
        assert!(!trie.insert(b"abc", 2).is_first);
        assert_eq!(trie.remove(first.node, 1), None);
        assert_eq!(trie.remove(first.node, 1), None, "a second time changes nothing");
        assert_eq!(trie.remove(first.node, 2), Some(b"abc".to_vec()));
        assert!(trie.is_empty());
        assert_eq!(trie.nodes.len() - trie.free.len(), 1, "only the root is left");
    }

    proptest! {
        /// The trie agrees with a plain set of pairs through any sequence of changes.
        #[test]
        fn agrees_with_a_set(
            changes in prop::collection::vec((any::<bool>(), "[ab]{0,5}", 0_u32..4), 0..120),
            topic in "[ab]{0,7}",
        ) {
            let mut trie = Trie::new();
            let mut model = BTreeSet::new();
            for (add, prefix, key) in changes {
                let others = |model: &BTreeSet<(String, u32)>| model.iter().any(|(p, _)| *p == prefix);
                if add {
                    let inserted = trie.insert(prefix.as_bytes(), key);
                    prop_assert_eq!(inserted.is_first, !others(&model));
                    prop_assert_eq!(inserted.is_new, model.insert((prefix.clone(), key)));
                    prop_assert_eq!(trie.prefix(inserted.node), prefix.as_bytes());
                } else {
                    let removed = trie.node(prefix.as_bytes()).and_then(|node| trie.remove(node, key));
                    let was = model.remove(&(prefix.clone(), key));
                    prop_assert_eq!(removed.is_some(), was && !others(&model));
                }
                prop_assert_eq!(trie.len(), model.len());
                let longest = model.iter().map(|(p, _)| p.len()).max().unwrap_or(0);
                prop_assert_eq!(trie.longest_prefix(), longest);
                let mut expected: Vec<u32> =
                    model.iter().filter(|(p, _)| topic.starts_with(&**p)).map(|(_, k)| *k).collect();
                expected.sort_unstable();
                prop_assert_eq!(found(&trie, topic.as_bytes()), expected);
            }
            let listed: BTreeSet<Vec<u8>> = trie.prefixes().map(|(prefix, _)| prefix).collect();
            let prefixes: BTreeSet<Vec<u8>> = model.iter().map(|(p, _)| p.as_bytes().to_vec()).collect();
            prop_assert_eq!(&listed, &prefixes);
            let parts: Vec<Vec<u8>> = (0..trie.places())
                .step_by(2)
                .flat_map(|start| trie.prefixes_within(start..start + 2))
                .map(|(prefix, _)| prefix)
                .collect();
            prop_assert_eq!(parts.len(), prefixes.len(), "each once");
            prop_assert_eq!(parts.into_iter().collect::<BTreeSet<_>>(), prefixes);
        }
    }
}
