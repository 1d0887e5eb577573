//! Locks: of mutexes, without poisoning, and of files, against other processes.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::files::open_itself;

/// Locks a mutex. If another thread panicked while it held the lock, the value is used as it is: every change
/// under our locks is complete at any point where a panic is possible.
#[inline]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that is locked against other processes, and against others in this one, until the value is dropped.
///
/// A child process that is being started has a copy of every open file for a moment, and a lock that is only
/// closed lasts until all copies are closed. So dropping this unlocks the file first.
#[derive(Debug)]
pub struct LockedFile(File);

impl LockedFile {
    /// Locks the file at this path. The file is created if it does not exist; what is in it stays. A symbolic
    /// link is not followed.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](TryLockError::WouldBlock) if somebody else has locked it;
    /// [`Error`](TryLockError::Error) if it can't be opened or locked.
    pub fn open(path: &Path) -> Result<Self, TryLockError> {
        let file = open_itself(path, OpenOptions::new().write(true)).map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(Self(file))
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // If this fails, closing the file unlocks it.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_free_once_the_lock_is_dropped_even_if_a_copy_of_the_descriptor_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let locked = LockedFile::open(&path).unwrap();
        assert!(matches!(LockedFile::open(&path), Err(TryLockError::WouldBlock)));
        let copy = locked.0.try_clone().unwrap();
        drop(locked);
        LockedFile::open(&path).unwrap();
        drop(copy);
        let missing = LockedFile::open(&folder.path().join("missing/lock"));
        assert!(
            matches!(missing, Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::NotFound)
        );
    }
}
