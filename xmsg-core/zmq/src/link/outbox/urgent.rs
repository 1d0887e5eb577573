//! Bytes of the protocol itself that wait to be written: answers that the peer asked for, and what goes ahead of messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;

use super::{Ledger, Outbox};

/// What waits, and what the writer has taken and not yet written: all of it counts in the ledger of the queues.
#[derive(Debug, Default)]
pub(super) struct Urgent {
    bytes: BytesMut,
    /// Memory that is entered for `bytes`.
    entered: usize,
    account: Account,
}

/// Where it counts.
#[derive(Clone, Debug, Default)]
struct Account {
    /// Of this queue alone.
    held: Arc<AtomicUsize>,
    ledger: Option<Arc<Ledger>>,
}

impl Account {
    fn change(&self, from: usize, to: usize) {
        for count in [Some(&*self.held), self.ledger.as_deref().map(|ledger| &ledger.0)].into_iter().flatten()
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
    /// To be called before anything waits.
    pub(super) fn count_in(&mut self, ledger: Arc<Ledger>) {
        self.account.ledger = Some(ledger);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The memory that it takes, in bytes, now and later: a number that changes by itself.
    pub(super) fn held(&self) -> Arc<AtomicUsize> {
        self.account.held.clone()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let entered = std::mem::replace(&mut self.entered, self.bytes.capacity());
        self.account.change(entered, self.entered);
    }

    pub(super) fn clear(&mut self) {
        drop(self.take());
    }

    /// Takes all of it, with its memory: it counts until that is dropped.
    pub(super) fn take(&mut self) -> Taken {
        Taken {
            bytes: std::mem::take(&mut self.bytes),
            entered: std::mem::take(&mut self.entered),
            account: self.account.clone(),
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What the writer has in its hands.
#[derive(Debug)]
pub(super) struct Taken {
    bytes: BytesMut,
    entered: usize,
    account: Account,
}

impl Taken {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, in boxes.
    pub(super) fn sealed(mut self, seal: impl FnOnce(&[u8]) -> BytesMut) -> Self {
        self.bytes = seal(&self.bytes);
        let entered = std::mem::replace(&mut self.entered, self.bytes.capacity());
        self.account.change(entered, self.entered);
        self
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.account.change(self.entered, 0);
    }
}

impl Outbox {
    /// Queues bytes of the protocol itself ahead of all messages: commands, whole. Returns `false`, and queues
    /// nothing, when more than `limit` bytes of them wait already.
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

    /// Whether something urgent waits, for the end of a message, and how much of all that was to be written the stream has taken: a number
    /// that grows as long as it takes anything.
    #[must_use]
    pub fn urgent_waits_behind(&self) -> (bool, u64) {
        let state = self.state();
        (!state.urgent.is_empty(), state.written.bytes + state.of_boxes)
    }

    /// The memory of what is urgent and not yet written, in bytes, now and later: a number that changes by itself.
    #[must_use]
    pub fn owed(&self) -> Arc<AtomicUsize> {
        self.state().urgent.held()
    }

    /// Forgets what is urgent: it was meant for a connection that has ended.
    pub fn clear_urgent(&self) {
        self.state().urgent.clear();
    }

    /// What is urgent, if anything is.
    pub(super) fn take_urgent(&self) -> Option<Taken> {
        let mut state = self.state();
        (!state.urgent.is_empty()).then(|| state.urgent.take())
    }
}
