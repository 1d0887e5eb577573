//! The index at the end of a recording: totals, topics, and where to start reading for a time.

use std::collections::HashMap;

use super::block::{Fields, INDEX};

/// The largest number of topics with their own counts. All other topics are counted together.
pub(crate) const TOPICS_MAX: usize = 10_000;
/// The largest length of their names together, in bytes.
const NAMES_MAX: usize = 1 << 20;
/// The largest number of points. When there are more, every second point is removed, and further points are
/// made at twice the distance.
pub(crate) const POINTS_MAX: usize = 8192;
/// The distance between two points at first, in bytes.
const FIRST_SPACING: u64 = 256 << 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) messages: u64,
    /// The length of all frames.
    pub(crate) bytes: u64,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes += bytes;
    }
}

/// The offset of a block, and the time of its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) at: u64,
    pub(crate) time_ns: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) total: Count,
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
    pub(crate) topics: HashMap<Vec<u8>, Count>,
    /// Messages of topics for which there was no room.
    pub(crate) others: Count,
    pub(crate) points: Vec<Point>,
    names: usize,
    /// How often the distance was doubled.
    thinned: u32,
}

impl Index {
    /// Counts a message.
    pub(crate) fn count(&mut self, time_ns: u64, topic: &[u8], bytes: u64) {
        if self.total.messages == 0 {
            self.first_ns = time_ns;
        }
        self.last_ns = time_ns;
        self.total.add(bytes);
        if let Some(count) = self.topics.get_mut(topic) {
            count.add(bytes);
        } else if self.topics.len() < TOPICS_MAX && self.names + topic.len() <= NAMES_MAX {
            self.names += topic.len();
            self.topics.entry(topic.to_vec()).or_default().add(bytes);
        } else {
            self.others.add(bytes);
        }
    }

    /// Adds the point of a block of messages, if it is far enough from the last point.
    pub(crate) fn note(&mut self, point: Point) {
        let spacing = FIRST_SPACING << self.thinned;
        if self.points.last().is_some_and(|last| point.at < last.at.saturating_add(spacing)) {
            return;
        }
        if self.points.len() == POINTS_MAX {
            let mut number = 0_u32;
            self.points.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.thinned += 1;
        }
        self.points.push(point);
    }

    /// Returns the offset to start at for messages of this time and later; `None` means the first block.
    pub(crate) fn place_of(&self, time_ns: u64) -> Option<u64> {
        let later = self.points.partition_point(|point| point.time_ns < time_ns);
        later.checked_sub(1).map(|before| self.points[before].at)
    }

    /// Appends the encoded body of the index.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(INDEX);
        let Count { messages, bytes } = self.total;
        let others = self.others;
        for number in [messages, bytes, self.first_ns, self.last_ns, others.messages, others.bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&(self.points.len() as u32).to_le_bytes());
        for point in &self.points {
            out.extend_from_slice(&point.at.to_le_bytes());
            out.extend_from_slice(&point.time_ns.to_le_bytes());
        }
        out.extend_from_slice(&(self.topics.len() as u32).to_le_bytes());
        for (name, count) in self.sorted() {
            out.extend_from_slice(&count.messages.to_le_bytes());
            out.extend_from_slice(&count.bytes.to_le_bytes());
            out.extend_from_slice(&(name.len() as u32).to_le_bytes());
            out.extend_from_slice(name);
        }
    }

    /// Decodes the index in this body, including the kind.
    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        if fields.u8()? != INDEX {
            return None;
        }
        let total = Count { messages: fields.u64()?, bytes: fields.u64()? };
        let (first_ns, last_ns) = (fields.u64()?, fields.u64()?);
        let others = Count { messages: fields.u64()?, bytes: fields.u64()? };
        let mut index = Self { total, first_ns, last_ns, others, ..Self::default() };
        // No memory is reserved for these numbers: reading stops when the bytes end.
        for _ in 0..fields.u32()? {
            index.points.push(Point { at: fields.u64()?, time_ns: fields.u64()? });
        }
        for _ in 0..fields.u32()? {
            let count = Count { messages: fields.u64()?, bytes: fields.u64()? };
            let len = fields.u32()? as usize;
            let name = fields.take(len)?;
            index.names += len;
            index.topics.insert(name.to_vec(), count);
        }
        fields.0.is_empty().then_some(index)
    }

    /// Returns the topics in alphabetical order.
    pub(crate) fn sorted(&self) -> Vec<(&[u8], Count)> {
        let mut topics: Vec<_> = self.topics.iter().map(|(name, count)| (&name[..], *count)).collect();
        topics.sort_unstable_by_key(|(name, _)| *name);
        topics
    }
}
