//! Bytes of the protocol itself that are written ahead of messages, such as answers to the peer's PINGs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;

use super::{MemoryCounter, SendQueue};

/// The bytes that wait. What the writer has taken and not yet written counts in the memory counter of the
/// queues, too.
#[derive(Debug, Default)]
pub(super) struct Urgent {
    bytes: BytesMut,
    /// The memory of `bytes` that is counted in the counters.
    counted: usize,
    counters: Counters,
}

/// The counters in which the memory of urgent bytes is counted.
#[derive(Clone, Debug, Default)]
struct Counters {
    /// The memory of this queue alone, in bytes.
    held: Arc<AtomicUsize>,
    memory_counter: Option<Arc<MemoryCounter>>,
}

impl Counters {
    fn change(&self, from: usize, to: usize) {
        for count in
            [Some(&*self.held), self.memory_counter.as_deref().map(|memory_counter| &memory_counter.0)]
                .into_iter()
                .flatten()
        {
            if to >= from {
                count.fetch_add(to - from, Ordering::Relaxed);
            } else {
                count.fetch_sub(from - to, Ordering::Relaxed);
            }
        }
    }
}

impl Urgent {
    /// Sets the memory counter. It has to be called before anything is queued.
    pub(super) fn count_in(&mut self, memory_counter: Arc<MemoryCounter>) {
        self.counters.memory_counter = Some(memory_counter);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns a live counter of the memory in bytes.
    pub(super) fn held(&self) -> Arc<AtomicUsize> {
        self.counters.held.clone()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let counted = std::mem::replace(&mut self.counted, self.bytes.capacity());
        self.counters.change(counted, self.counted);
    }

    pub(super) fn clear(&mut self) {
        drop(self.take());
    }

    /// Takes all bytes with their memory, which counts until the result is dropped.
    pub(super) fn take(&mut self) -> Taken {
        Taken {
            bytes: std::mem::take(&mut self.bytes),
            counted: std::mem::take(&mut self.counted),
            counters: self.counters.clone(),
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Urgent bytes that the writer has taken.
#[derive(Debug)]
pub(super) struct Taken {
    bytes: BytesMut,
    counted: usize,
    counters: Counters,
}

impl Taken {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the bytes encrypted.
    pub(super) fn sealed(mut self, seal: impl FnOnce(&[u8]) -> BytesMut) -> Self {
        self.bytes = seal(&self.bytes);
        let counted = std::mem::replace(&mut self.counted, self.bytes.capacity());
        self.counters.change(counted, self.counted);
        self
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.counters.change(self.counted, 0);
    }
}

impl SendQueue {
    /// Queues bytes of the protocol itself, which are whole commands, ahead of all messages. Returns `false`,
    /// and queues nothing, if more than `limit` urgent bytes would then be queued.
    pub fn push_urgent(&self, bytes: &[u8], limit: usize) -> bool {
        let waker = {
            let mut state = self.state();
            if state.urgent.len() + bytes.len() > limit {
                return false;
            }
            state.urgent.push(bytes);
            state.writer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Returns whether urgent bytes wait for the end of a message, and how many bytes the stream has accepted
    /// in all. The second number grows as long as the stream accepts anything.
    #[must_use]
    pub fn urgent_waits_behind(&self) -> (bool, u64) {
        let state = self.state();
        (!state.urgent.is_empty(), state.written.bytes + state.written_of_boxes)
    }

    /// Returns a live counter of the memory of urgent bytes that are not yet written, in bytes.
    #[must_use]
    pub fn urgent_bytes(&self) -> Arc<AtomicUsize> {
        self.state().urgent.held()
    }

    /// Drops urgent bytes: they were meant for a connection that has ended.
    pub fn clear_urgent(&self) {
        self.state().urgent.clear();
    }

    /// Takes the urgent bytes, if there are any.
    pub(super) fn take_urgent(&self) -> Option<Taken> {
        let mut state = self.state();
        (!state.urgent.is_empty()).then(|| state.urgent.take())
    }
}
