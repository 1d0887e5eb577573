//! Messages in the hands of a publisher that waits, counted for as long as it does.

use std::sync::atomic::{AtomicU64, Ordering};

/// Messages that a publisher holds while it waits for a subscriber.
#[derive(Debug)]
pub(super) struct HeldUp<'a> {
    all: &'a AtomicU64,
    messages: u64,
}

impl<'a> HeldUp<'a> {
    /// So many, counted among all.
    pub(super) fn new(all: &'a AtomicU64, messages: u64) -> Self {
        all.fetch_add(messages, Ordering::Relaxed);
        Self { all, messages }
    }

    /// It holds so many from now on.
    pub(super) fn set(&mut self, messages: u64) {
        self.all.fetch_add(messages.wrapping_sub(self.messages), Ordering::Relaxed);
        self.messages = messages;
    }
}

impl Drop for HeldUp<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}
