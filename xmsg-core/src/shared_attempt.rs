//! A value that is made once, by an attempt that all waiting callers share.

use std::sync::{Mutex, MutexGuard, OnceLock};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use crate::Result;
use xmsg_zmq::lock::lock;

type Attempt<T> = BoxFuture<'static, Result<T>>;

/// A value that is made when it is first needed.
///
/// Callers that ask while it is being made wait for the same attempt, and get the same value or the same
/// error. So twenty tasks that need a connection to an unreachable proxy wait for one time limit, not for
/// twenty. A call after a failed attempt starts a new one. An attempt continues as long as at least one
/// caller waits for it, whoever started it. It is dropped when all of them have given up.
pub(crate) struct SharedAttempt<T> {
    value: OnceLock<T>,
    /// The attempt in progress. The waiting callers own it.
    attempt: Mutex<Option<WeakShared<Attempt<T>>>>,
}

impl<T> Default for SharedAttempt<T> {
    fn default() -> Self {
        Self { value: OnceLock::new(), attempt: Mutex::new(None) }
    }
}

impl<T> std::fmt::Debug for SharedAttempt<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedAttempt").field("is_made", &self.value.get().is_some()).finish_non_exhaustive()
    }
}

impl<T: Clone + Send + Sync + 'static> SharedAttempt<T> {
    /// Returns the value, if it has been made.
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// Returns the value; `make` makes it unless it exists or is being made. Dropping the future gives up
    /// waiting.
    pub(crate) async fn get_or_make<F>(&self, make: impl FnOnce() -> F) -> Result<&T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let attempt = self.join(make);
        let value = attempt.await?;
        Ok(self.value.get_or_init(|| value))
    }

    fn join<F>(&self, make: impl FnOnce() -> F) -> Shared<Attempt<T>>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut slot = self.slot();
        // Callers that have not yet seen the result may still hold a failed attempt. New callers do not join
        // it.
        let current = slot.as_ref().and_then(WeakShared::upgrade);
        let current = current.filter(|attempt| attempt.peek().is_none_or(Result::is_ok));
        current.unwrap_or_else(|| {
            let attempt = make().boxed().shared();
            *slot = attempt.downgrade();
            attempt
        })
    }

    fn slot(&self) -> MutexGuard<'_, Option<WeakShared<Attempt<T>>>> {
        lock(&self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Notify;

    use super::*;
    use crate::{Error, ErrorKind};

    #[tokio::test]
    async fn those_who_wait_share_one_attempt_and_its_failure_and_the_next_begins_anew() {
        let (shared, attempts) = (SharedAttempt::<u32>::default(), Arc::new(AtomicUsize::new(0)));
        let go = Arc::new(Notify::new());
        let make = |fails: bool| {
            let (attempts, go) = (attempts.clone(), go.clone());
            move || async move {
                attempts.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                if fails { Err(Error::new(ErrorKind::Refused, "nobody there")) } else { Ok(7) }
            }
        };
        let mut failed = std::pin::pin!(join_all((0..20).map(|_| shared.get_or_make(make(true)))));
        assert!(futures::poll!(&mut failed).is_pending());
        go.notify_one();
        let failed = failed.await;
        assert!(failed.iter().all(|result| result.as_ref().unwrap_err().kind() == ErrorKind::Refused));
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
        let mut values = std::pin::pin!(join_all((0..20).map(|_| shared.get_or_make(make(false)))));
        assert!(futures::poll!(&mut values).is_pending());
        go.notify_one();
        let values = values.await;
        assert!(values.iter().all(|result| **result.as_ref().unwrap() == 7));
        assert_eq!(attempts.load(Ordering::Relaxed), 2);
        assert_eq!(shared.get(), Some(&7));
    }

    #[tokio::test]
    async fn an_attempt_outlives_whoever_began_it_but_not_the_last_who_waits() {
        let (shared, go) = (SharedAttempt::<u32>::default(), Arc::new(Notify::new()));
        let guard = Arc::new(());
        let make = || {
            let (go, guard) = (go.clone(), guard.clone());
            async move {
                go.notified().await;
                drop(guard);
                Ok(1)
            }
        };
        let mut first = Box::pin(shared.get_or_make(make));
        let mut second =
            Box::pin(shared.get_or_make(|| async { unreachable!("the first one's attempt serves") }));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
        drop(first);
        assert_eq!(Arc::strong_count(&guard), 2, "somebody still waits");
        drop(second);
        assert_eq!(Arc::strong_count(&guard), 1, "nobody waits any more");
        let mut third = Box::pin(shared.get_or_make(make));
        assert!(futures::poll!(&mut third).is_pending());
        go.notify_one();
        assert_eq!(*third.await.unwrap(), 1);
    }
}
