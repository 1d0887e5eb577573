//! Faults of this program: what becomes of a panic.
//!
//! A task that panics ends, and nobody notices it unless somebody waits for the task. So each task is run in
//! one of these ways:
//!
//! - [`catch`] and [`catch_in`] are for what belongs to one input, such as a connection or a request. A panic
//!   ends that input, and the caller counts and logs it.
//! - [`restart`] is for what can begin anew without losing anything. A panic is logged, and the task begins
//!   again after a pause.
//! - [`CriticalTasks`] is for what a service can't go on without. A panic is logged, and whoever runs the
//!   service is told, and ends it.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

/// The pause before a task that panicked begins again, so that one that always panics does not fill the log.
const PAUSE: Duration = Duration::from_secs(1);

/// A panic that was caught. It displays what the panic said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(String);

impl Fault {
    /// Describes the payload of a panic, such as that of a task that was joined.
    #[must_use]
    pub fn of(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Self(text.unwrap_or("no reason given").to_owned())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// Does `work`, and returns a [`Fault`] if it panics.
///
/// What `work` has changed may be half done then: the caller drops it, or knows that it is whole.
///
/// ```
/// use xmsg_zmq::fault::catch;
///
/// assert_eq!(catch(|| 1 + 1), Ok(2));
/// let fault = catch(|| -> u8 { panic!("no reason at all") }).unwrap_err();
/// assert_eq!(fault.to_string(), "no reason at all");
/// ```
///
/// # Errors
///
/// If it panics.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Fault::of(&*payload))
}

/// Waits for `work`, and returns a [`Fault`] if it panics. The future is not polled again then.
///
/// # Errors
///
/// If it panics.
// It is no `async fn`, whose future would have room for `work` twice.
pub fn catch_in<T>(work: impl Future<Output = T>) -> impl Future<Output = Result<T, Fault>> {
    AssertUnwindSafe(work).catch_unwind().map(|result| result.map_err(|payload| Fault::of(&*payload)))
}

/// Runs a task to its end, and runs it anew, after a second, whenever it panics. Each panic is logged at
/// error, with the name of the task.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let mut times = 0;
/// xmsg_zmq::fault::restart("counting to two", || {
///     times += 1;
///     let is_enough = times > 1;
///     async move { assert!(is_enough, "the first time is not enough") }
/// })
/// .await;
/// assert_eq!(times, 2);
/// # }
/// ```
pub async fn restart<F: Future<Output = ()>>(name: impl fmt::Display, mut task: impl FnMut() -> F) {
    while let Err(fault) = catch_in(task()).await {
        pause(&name, &fault).await;
    }
}

/// Logs the panic of a task that begins again, and waits for a second.
pub async fn pause(name: impl fmt::Display, fault: &Fault) {
    tracing::error!(task = %name, "a fault of this program has ended a task, which begins again: {fault}");
    tokio::time::sleep(PAUSE).await;
}

/// The tasks that a service can't go on without. Clones share them: one instance is meant for all tasks of a
/// service.
///
/// Such a task ends only when the service does. If one panics, that is logged at error, with its name, and
/// [`failed`](Self::failed) returns. Whoever runs the service ends it then: a service whose parts are missing
/// would seem to work.
///
/// ```
/// use xmsg_zmq::fault::CriticalTasks;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let tasks = CriticalTasks::default();
/// tokio::spawn(tasks.watch("the table", async { panic!("a bug") }));
/// assert_eq!(tasks.failed().await, "the table has ended by a fault of this program: a bug");
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct CriticalTasks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// What became of the first one that failed.
    failure: OnceLock<String>,
    failed: CancellationToken,
}

impl CriticalTasks {
    /// Returns `task` as a future that reports a panic, and ends then like one that has done its work.
    pub fn watch<N: fmt::Display, F: Future<Output = ()>>(
        &self,
        name: N,
        task: F,
    ) -> impl Future<Output = ()> + use<N, F> {
        let tasks = self.clone();
        async move {
            if let Err(fault) = catch_in(task).await {
                tracing::error!(task = %name, "a fault of this program has ended a critical task: {fault}");
                // The first failure is the one that is told: it may have caused the others.
                let _ = tasks.0.failure.set(format!("{name} has ended by a fault of this program: {fault}"));
                tasks.0.failed.cancel();
            }
        }
    }

    /// Waits until one of the tasks has panicked, and tells which one, and why.
    pub async fn failed(&self) -> &str {
        self.0.failed.cancelled().await;
        self.failure().unwrap_or_default()
    }

    /// The task that has panicked, and why, if one has.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.0.failure.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_critical_task_that_panics_is_told_and_one_that_ends_is_not() {
        let tasks = CriticalTasks::default();
        tasks.watch("one that ends", async {}).await;
        assert_eq!(tasks.failure(), None);
        tasks.watch("the first", async { panic!("number {}", 1) }).await;
        tasks.watch("the second", async { panic!("number 2") }).await;
        let failure = "the first has ended by a fault of this program: number 1";
        assert_eq!((tasks.failure(), tasks.clone().failed().await), (Some(failure), failure));
    }

    #[tokio::test]
    async fn what_a_task_holds_is_dropped_by_its_panic() {
        let held = Arc::new(());
        let task = {
            let held = held.clone();
            async move {
                tokio::task::yield_now().await;
                panic!("on purpose, with {held:?}");
            }
        };
        CriticalTasks::default().watch("a holder", task).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_again_after_a_pause() {
        let begun = tokio::time::Instant::now();
        let mut times = 0;
        restart("a task", || {
            times += 1;
            let is_enough = times > 2;
            async move {
                tokio::task::yield_now().await;
                assert!(is_enough, "not yet");
            }
        })
        .await;
        assert_eq!((times, begun.elapsed()), (3, 2 * PAUSE));
    }
}
