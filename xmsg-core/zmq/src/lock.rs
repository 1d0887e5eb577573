//! Locks that a panic of another thread doesn't close.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks it. What another thread left behind that panicked is used as it is: every change under our locks is whole.
#[inline]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
