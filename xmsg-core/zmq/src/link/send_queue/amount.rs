//! How much waits in a queue, and how much may wait.

use std::ops::{Add, AddAssign, Sub, SubAssign};

/// A number of messages and their size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// The number of messages.
    pub messages: u64,
    /// The size in bytes on the wire, headers included.
    pub bytes: u64,
}

impl Amount {
    /// Creates an amount of `messages` messages with `bytes` bytes in all.
    #[must_use]
    pub fn new(messages: usize, bytes: usize) -> Self {
        Self { messages: messages as u64, bytes: bytes as u64 }
    }
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { messages: self.messages + other.messages, bytes: self.bytes + other.bytes }
    }
}

impl Sub for Amount {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// A high-water mark: how much a queue may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HighWaterMark {
    /// The limit in bytes of memory.
    pub bytes: usize,
    /// The limit in messages. `usize::MAX` means no limit.
    pub messages: usize,
}

impl HighWaterMark {
    /// Creates a mark in bytes only.
    #[must_use]
    pub fn bytes(bytes: usize) -> Self {
        Self { bytes, messages: usize::MAX }
    }

    /// Creates a mark in messages only, however large each of them is.
    #[must_use]
    pub const fn messages(messages: usize) -> Self {
        Self { bytes: usize::MAX, messages }
    }
}
