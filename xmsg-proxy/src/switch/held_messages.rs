//! Messages in the hands of a publisher that waits. They are counted for as long as it waits.

use std::sync::atomic::{AtomicU64, Ordering};

/// Messages that a publisher holds while it waits for a subscriber.
#[derive(Debug)]
pub(super) struct HeldMessages<'a> {
    all: &'a AtomicU64,
    messages: u64,
}

impl<'a> HeldMessages<'a> {
    /// Adds this number of messages to the count of all.
    pub(super) fn new(all: &'a AtomicU64, messages: u64) -> Self {
        all.fetch_add(messages, Ordering::Relaxed);
        Self { all, messages }
    }

    /// Sets the number of messages that the publisher holds from now on.
    pub(super) fn set(&mut self, messages: u64) {
        self.all.fetch_add(messages.wrapping_sub(self.messages), Ordering::Relaxed);
        self.messages = messages;
    }
}

impl Drop for HeldMessages<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}
