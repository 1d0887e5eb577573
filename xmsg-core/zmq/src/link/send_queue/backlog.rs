//! Queued messages make room for newer ones: either the oldest are dropped, or those for which there is a
//! newer message of the same topic.
//!
//! Only whole messages are dropped, and only while they wait: what the writer has taken is on its way. So
//! that something is always left to drop, the writer takes such messages in portions of a quarter of the
//! mark.
//!
//! A chunk that is dropped from between others leaves an empty one in its place, which the writer skips. The
//! last chunk is never empty.
//!
//! A push holds the lock of the queue, so no push searches all queued messages. The numbers of the chunks
//! that can be dropped are known beforehand, and each message is dropped once.

// Longer than 500 lines: one index over the queue, whose operations keep the same invariants.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use bytes::{Buf, Bytes, BytesMut};
use hashbrown::hash_table::OccupiedEntry;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::{Amount, Chunk, HighWaterMark, SendQueue, SendQueueGuard, State};
use xmsg_zmtp::Header;

/// The memory of a message in a chunk of its own, in bytes, besides the message itself: chunk, allocation,
/// and index entry.
const OWN_CHUNK: usize = 192;
/// The memory in bytes that is charged when messages have another [`Keep`] than those before them.
pub const APART: usize = OWN_CHUNK;
/// The mark divided by the portion that the writer takes.
const PORTION: usize = 4;
/// The number of superseded messages that are dropped at once when there is no room, even if fewer would be
/// enough. This way, none of them is left soon.
const SUPERSEDED: usize = 64;
/// How many empty chunks, and index entries of dropped messages, may remain before they are removed.
const LITTER: usize = 64;

/// For how long messages are kept in the queue while they wait to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// They are kept until they are written: none is dropped.
    #[default]
    Always,
    /// They are kept while there is room: the oldest are dropped when newer ones need it.
    WhileRoom,
    /// They are kept while there is room, and only the newest of each topic: when the queue is
    /// [conflated](SendQueueGuard::conflate), a message is also dropped when there is a newer one with the
    /// same first frame.
    Newest,
}

/// What happened to a message, and to others because of it. `bytes` is the size of the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushResult {
    /// Whether the message was queued. If not, no room could be made.
    pub accepted: bool,
    /// Messages that were dropped because there is a newer one of their topic.
    pub outdated: Amount,
    /// Messages that were dropped because they were the oldest.
    pub evicted: Amount,
}

/// An index of the newest queued message of each topic.
#[derive(Debug, Default)]
struct Index {
    hasher: DefaultHashBuilder,
    entries: HashTable<Entry>,
    /// Chunks of this round for whose topics a newer message is queued, too. They are dropped first when
    /// there is no room. Some may have been dropped already.
    superseded: VecDeque<u64>,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    /// The number of the chunk.
    number: u64,
}

#[derive(Debug)]
pub(super) struct Backlog {
    /// For how long the messages in the tail, and those that are pushed next, are kept.
    pub(super) keep: Keep,
    chunks: u64,
    /// The number of empty chunks between the others.
    empty: usize,
    /// No chunk with a smaller number can be dropped, so a search begins here.
    first: u64,
    /// The maximum amount that the writer takes at a time.
    portion: Amount,
    /// The part of the portion that the writer has taken.
    taken: Amount,
    /// Messages in chunks with smaller numbers are not replaced by newer ones any more: they will be written
    /// in this round. Otherwise a topic that always has a newer message would never be sent.
    round: u64,
    /// Set while the queue is conflated.
    index: Option<Box<Index>>,
}

impl Default for Backlog {
    fn default() -> Self {
        let all = Amount { messages: u64::MAX, bytes: u64::MAX };
        Self {
            keep: Keep::Always,
            chunks: 0,
            empty: 0,
            first: 0,
            portion: all,
            taken: Amount::default(),
            round: 0,
            index: None,
        }
    }
}

impl Backlog {
    pub(super) fn next_number(&mut self) -> u64 {
        self.chunks += 1;
        self.chunks
    }
}

impl Chunk {
    fn empty(number: u64) -> Self {
        Self { number, ..Self::copied(Bytes::new(), 0) }
    }

    fn is_empty(&self) -> bool {
        self.messages == 0 && self.bytes.is_empty()
    }

    /// Whether this is one message that was copied into memory of its own.
    fn is_alone(&self) -> bool {
        self.messages == 1 && self.slab_charge.is_none() && self.charge == self.bytes.len() + OWN_CHUNK
    }

    /// Splits whole messages off the front. If they lie in a shared slab, it stays charged to the rest.
    fn split_front(&mut self, part: Amount) -> Self {
        let (messages, len) = (part.messages as usize, part.bytes as usize);
        let bytes = self.bytes.split_to(len);
        self.messages -= messages;
        let charge = if self.slab_charge.is_none() { len } else { 0 };
        self.charge -= charge;
        Self { bytes, messages, charge, slab_charge: self.slab_charge.clone(), ..*self }
    }
}

impl State {
    /// Returns the next chunk for the writer, which has already taken `taken` bytes.
    pub(super) fn next_chunk(&mut self, taken: usize) -> Option<Chunk> {
        while self.chunks.front()?.is_empty() {
            self.chunks.pop_front();
            self.backlog.empty -= 1;
        }
        let front = self.chunks.front_mut()?;
        if front.keep == Keep::Always {
            return self.chunks.pop_front();
        }
        let backlog = &mut self.backlog;
        if taken == 0 {
            backlog.taken = Amount::default();
        }
        if front.number >= backlog.round {
            backlog.round = backlog.chunks + 1;
            // All chunks of the previous round have been written or dropped.
            if let Some(index) = &mut backlog.index {
                index.superseded.clear();
            }
        }
        let left = backlog.portion - backlog.taken;
        let memory = if front.slab_charge.is_none() { front.charge } else { front.bytes.len() };
        let whole = Amount::new(front.messages, memory);
        if whole.messages <= left.messages && whole.bytes <= left.bytes {
            backlog.taken += whole;
            return self.chunks.pop_front();
        }
        let mut part = at_most(&front.bytes, left);
        if part.messages == 0 {
            if taken > 0 {
                return None;
            }
            part = Amount::new(1, message_len(&front.bytes));
        }
        backlog.taken += part;
        if part.messages == whole.messages { self.chunks.pop_front() } else { Some(front.split_front(part)) }
    }

    /// Begins a new chunk, in memory of its own, for messages with another `keep` than before. Returns the
    /// number of bytes that this adds to the memory of the queue.
    fn change_keep(&mut self, keep: Keep) -> usize {
        let is_empty = self.tail.is_empty();
        self.flush_tail();
        self.tail = BytesMut::new();
        self.backlog.keep = keep;
        match self.chunks.back_mut() {
            Some(last) if !is_empty => {
                last.charge += OWN_CHUNK;
                self.queued.bytes += OWN_CHUNK as u64;
                OWN_CHUNK
            }
            _ => 0,
        }
    }

    fn shortage(&self, need: Amount, limit: HighWaterMark) -> Amount {
        self.queued + need - Amount::new(limit.messages, limit.bytes)
    }

    /// Drops the oldest messages that may be dropped, until there is room or none of them is left. Returns
    /// them, and how much of their memory was copied.
    fn evict(&mut self, need: Amount, limit: HighWaterMark) -> (Amount, usize) {
        let (mut evicted, mut copied) = (Amount::default(), 0);
        let first = self.backlog.first;
        let mut at = match self.chunks.front() {
            // The writer has put this chunk back.
            Some(front) if front.number < first && front.keep != Keep::Always => 0,
            _ => self.chunks.partition_point(|chunk| chunk.number < first),
        };
        loop {
            let short = self.shortage(need, limit);
            if short == Amount::default() {
                break;
            }
            if at == self.chunks.len() {
                if self.tail.is_empty() || self.backlog.keep == Keep::Always {
                    break;
                }
                self.flush_tail();
            }
            let chunk = &mut self.chunks[at];
            if chunk.is_empty() || chunk.keep == Keep::Always {
                at += 1;
                continue;
            }
            // Dropping a part of a slice frees no memory.
            let part = if chunk.slab_charge.is_some() && short.bytes > 0 {
                None
            } else {
                at_least(&chunk.bytes, short)
            };
            let gone = match part {
                Some(part) if part.bytes < chunk.bytes.len() as u64 => chunk.split_front(part),
                _ => self.remove(at),
            };
            evicted += Amount::new(gone.messages, gone.bytes.len());
            copied += self.discharge(&gone);
            if let Some(index) = &mut self.backlog.index
                && gone.keep == Keep::Newest
            {
                let hash = index.hasher.hash_one(topic_of(&gone.bytes));
                if let Ok(entry) = index.entries.find_entry(hash, |entry| entry.number == gone.number) {
                    entry.remove();
                }
            }
        }
        self.backlog.first = self.chunks.get(at).map_or(self.backlog.chunks, |chunk| chunk.number);
        self.tidy();
        (evicted, copied)
    }

    /// Takes a chunk out and leaves an empty one.
    fn remove(&mut self, at: usize) -> Chunk {
        self.backlog.empty += 1;
        let empty = Chunk::empty(self.chunks[at].number);
        std::mem::replace(&mut self.chunks[at], empty)
    }

    /// Subtracts a dropped chunk from the totals. Returns how much of its memory was copied.
    fn discharge(&mut self, chunk: &Chunk) -> usize {
        self.queued -= Amount::new(chunk.messages, chunk.charge);
        if chunk.slab_charge.is_none() { chunk.charge } else { 0 }
    }

    /// Removes empty chunks.
    fn tidy(&mut self) {
        while self.chunks.back().is_some_and(Chunk::is_empty) {
            self.chunks.pop_back();
            self.backlog.empty -= 1;
        }
        while self.chunks.front().is_some_and(Chunk::is_empty) {
            self.chunks.pop_front();
            self.backlog.empty -= 1;
        }
        if self.backlog.empty > LITTER + self.chunks.len() / 2 {
            self.chunks.retain(|chunk| !chunk.is_empty());
            self.backlog.empty = 0;
        }
    }

    /// Finds the newest queued message of this topic. Returns the index of its chunk, and its entry.
    fn newest(&mut self, topic: &[u8]) -> Option<(usize, OccupiedEntry<'_, Entry>)> {
        let index = self.backlog.index.as_mut()?;
        let (chunks, hash) = (&self.chunks, index.hasher.hash_one(topic));
        let mut at = 0;
        let found = index.entries.find_entry(hash, |entry| {
            if entry.hash != hash {
                return false;
            }
            at = chunks.partition_point(|chunk| chunk.number < entry.number);
            let chunk = chunks.get(at).filter(|chunk| chunk.number == entry.number);
            chunk.is_some_and(|chunk| topic_of(&chunk.bytes) == topic)
        });
        found.ok().map(|entry| (at, entry))
    }

    /// Drops the queued message of this topic because there is a newer one. Without `must`, it stays if it
    /// will be written in this round. Returns it, and how much of its memory was copied.
    fn outdate(&mut self, topic: &[u8], must: bool) -> (Amount, usize) {
        let round = self.backlog.round;
        let Some((at, entry)) = self.newest(topic) else { return Default::default() };
        if entry.get().number < round && !must {
            return Default::default();
        }
        entry.remove();
        let gone = self.take_out(at);
        self.tidy();
        gone
    }

    /// Drops messages of this round for whose topics a newer one is queued: at least a few, and more until
    /// there is room or none of them is left. Returns them, and how much of their memory was copied.
    fn outdate_superseded(&mut self, need: Amount, limit: HighWaterMark) -> (Amount, usize) {
        let (mut outdated, mut copied) = (Amount::default(), 0);
        let mut few = SUPERSEDED;
        while few > 0 || self.shortage(need, limit) != Amount::default() {
            few = few.saturating_sub(1);
            let superseded = self.backlog.index.as_mut().and_then(|index| index.superseded.pop_front());
            let Some(number) = superseded else { break };
            let at = self.chunks.partition_point(|chunk| chunk.number < number);
            if self.chunks.get(at).is_some_and(|chunk| chunk.number == number && !chunk.is_empty()) {
                let (gone, of_it) = self.take_out(at);
                outdated += gone;
                copied += of_it;
            }
        }
        self.tidy();
        (outdated, copied)
    }

    /// Drops the only message of a chunk. Returns it, and how much of its memory was copied.
    fn take_out(&mut self, at: usize) -> (Amount, usize) {
        let gone = self.remove(at);
        let copied = self.discharge(&gone);
        (Amount::new(gone.messages, gone.bytes.len()), copied)
    }

    /// Queues a message in a chunk of its own, so that it can be found by its topic.
    fn push_alone(&mut self, message: Bytes) {
        self.flush_tail();
        self.index_newest(topic_of(&message), self.backlog.chunks + 1);
        let charge = message.len() + OWN_CHUNK;
        self.queued += Amount::new(1, charge);
        self.append(Chunk { charge, keep: Keep::Newest, ..Chunk::copied(message, 1) });
    }

    /// Notes in the index that the newest message of this topic will be in the chunk with this number.
    fn index_newest(&mut self, topic: &[u8], number: u64) {
        let older =
            self.newest(topic).map(|(_, mut entry)| std::mem::replace(&mut entry.get_mut().number, number));
        let waiting = self.chunks.len();
        let oldest = self.chunks.front().map_or(number, |chunk| chunk.number);
        let Some(index) = &mut self.backlog.index else { return };
        if let Some(older) = older {
            // The older message will be written in this round. Otherwise it would have been dropped.
            index.superseded.push_back(older);
            return;
        }
        if index.entries.len() > LITTER + 2 * waiting {
            index.entries.retain(|entry| entry.number >= oldest);
        }
        let hash = index.hasher.hash_one(topic);
        index.entries.insert_unique(hash, Entry { hash, number }, |entry| entry.hash);
    }

    /// Drops all queued messages except the newest of each topic, and creates the index, which remains until
    /// the queue is empty. Returns what was dropped, how much was copied for that, and how much copied memory
    /// was freed.
    fn conflate(&mut self) -> (Amount, usize, usize) {
        let (mut outdated, mut copied, mut freed) = (Amount::default(), 0, 0);
        self.flush_tail();
        self.backlog.index = Some(Box::default());
        (self.backlog.empty, self.backlog.round, self.backlog.first) = (0, 0, 0);
        for mut chunk in std::mem::take(&mut self.chunks) {
            if chunk.is_empty() {
                continue;
            }
            if chunk.keep != Keep::Newest {
                self.append(chunk);
                continue;
            }
            freed += self.discharge(&chunk);
            while !chunk.bytes.is_empty() {
                let message = if chunk.is_alone() {
                    std::mem::take(&mut chunk.bytes)
                } else {
                    // A few bytes must not keep a whole slab or chunk in memory.
                    let len = message_len(&chunk.bytes);
                    let message = Bytes::copy_from_slice(&chunk.bytes[..len]);
                    chunk.bytes.advance(len);
                    message
                };
                let (older, of_it) = self.outdate(topic_of(&message), false);
                outdated += older;
                freed += of_it;
                copied += message.len() + OWN_CHUNK;
                self.push_alone(message);
            }
        }
        (outdated, copied, freed)
    }
}

impl SendQueue {
    /// Wakes those who wait for room, so that they check again although no room was made.
    pub fn reconsider(&self) {
        self.room_made.notify_waiters();
    }
}

impl SendQueueGuard<'_> {
    /// Sets for how long messages that are pushed from here on are kept, and the mark that limits the room.
    pub fn set_keep(&mut self, keep: Keep, mark: HighWaterMark) {
        if self.state().backlog.keep != keep {
            let added = self.state_mut().change_keep(keep);
            self.send_queue.count_copied(added);
        }
        if keep != Keep::Always {
            self.set_portion(mark);
        }
    }

    fn set_portion(&mut self, mark: HighWaterMark) {
        let state = self.state_mut();
        let portion = Amount::new(mark.messages.div_ceil(PORTION), mark.bytes / PORTION);
        let before = if state.has_messages() { state.backlog.portion } else { portion };
        state.backlog.portion = Amount {
            messages: portion.messages.min(before.messages),
            bytes: portion.bytes.min(before.bytes),
        };
    }

    /// Returns for how long messages that are pushed now are kept.
    #[must_use]
    pub fn keep(&self) -> Keep {
        self.state().backlog.keep
    }

    /// Makes room for `need` below this mark, as far as queued messages may be dropped. Returns the dropped
    /// messages, with their own size.
    pub fn make_room(&mut self, need: Amount, mark: HighWaterMark) -> Amount {
        let (evicted, copied) = self.state_mut().evict(need, mark);
        self.send_queue.uncount_copied(copied);
        evicted
    }

    /// Drops all queued messages [that allow it](Keep::Newest) except the newest of each topic. From
    /// then on, until the queue is empty, such messages have to be pushed with
    /// [`push_newest`](Self::push_newest). Returns the dropped messages, with their own size.
    pub fn conflate(&mut self) -> Amount {
        let (outdated, copied, freed) = self.state_mut().conflate();
        self.send_queue.count_copied(copied);
        self.send_queue.uncount_copied(freed);
        if std::mem::take(&mut self.state_mut().is_room_awaited) {
            self.send_queue.room_made.notify_waiters();
        }
        outdated
    }

    /// Returns whether the queue is conflated, and has not been empty since.
    pub fn is_conflated(&mut self) -> bool {
        let state = self.state_mut();
        if state.chunks.is_empty() && state.tail.is_empty() {
            state.backlog.index = None;
        }
        state.backlog.index.is_some()
    }

    /// Queues a copy of a message in a conflated queue, and drops the queued message of the same topic. The
    /// new message goes to the end, so that the order is kept. If necessary, more messages are dropped to
    /// stay below this mark.
    pub fn push_newest(&mut self, message: &[u8], mark: HighWaterMark) -> PushResult {
        self.set_portion(mark);
        let topic = topic_of(message);
        let own = message.len() + OWN_CHUNK;
        let apart = if self.state().tail.is_empty() { 0 } else { APART };
        let need = Amount::new(1, own + apart);
        let mut taken = PushResult::default();
        let has_room = |state: &State| state.shortage(need, mark) == Amount::default();
        taken.outdated = self.outdate(topic, false);
        if !has_room(self.state()) {
            // Dropping the older of two messages of one topic is better than dropping the only one of
            // another.
            taken.outdated += self.outdate(topic, true);
            let (outdated, copied) = self.state_mut().outdate_superseded(need, mark);
            self.send_queue.uncount_copied(copied);
            taken.outdated += outdated;
        }
        if !has_room(self.state()) {
            taken.evicted = self.make_room(need, mark);
        }
        taken.accepted = has_room(self.state()) || self.state().queued.messages == 0;
        if taken.accepted {
            let added = self.state_mut().change_keep(Keep::Newest);
            self.send_queue.count_copied(own + added);
            self.state_mut().push_alone(Bytes::copy_from_slice(message));
            self.pushed = true;
        }
        taken
    }

    fn outdate(&mut self, topic: &[u8], must: bool) -> Amount {
        let (outdated, copied) = self.state_mut().outdate(topic, must);
        self.send_queue.uncount_copied(copied);
        outdated
    }
}

/// The length in bytes of the message at the front. Queues contain whole messages; for anything else it
/// returns the whole length.
fn message_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    while let Some(Ok(Some(header))) = bytes.get(len..).map(Header::read) {
        len += header.len + header.body_len as usize;
        if !header.has_more() {
            return len.min(bytes.len());
        }
    }
    bytes.len()
}

/// Returns the first frame of a message.
fn topic_of(message: &[u8]) -> &[u8] {
    let Ok(Some(header)) = Header::read(message) else { return &[] };
    message.get(header.len..header.len + header.body_len as usize).unwrap_or_default()
}

/// Measures the messages at the front that together do not exceed `limit`.
fn at_most(bytes: &[u8], limit: Amount) -> Amount {
    let mut part = Amount::default();
    while part.messages < limit.messages && (part.bytes as usize) < bytes.len() {
        let len = message_len(&bytes[part.bytes as usize..]) as u64;
        if part.bytes + len > limit.bytes {
            break;
        }
        part += Amount { messages: 1, bytes: len };
    }
    part
}

/// Measures the fewest messages at the front that together reach `wanted`. Returns `None` if all of them are
/// less.
fn at_least(bytes: &[u8], wanted: Amount) -> Option<Amount> {
    let mut part = Amount::default();
    while part.messages < wanted.messages || part.bytes < wanted.bytes {
        if part.bytes as usize == bytes.len() {
            return None;
        }
        part += Amount::new(1, message_len(&bytes[part.bytes as usize..]));
    }
    Some(part)
}

#[cfg(test)]
#[path = "backlog_tests.rs"]
mod tests;
