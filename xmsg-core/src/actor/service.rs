//! Subscriptions with a handler: the task that runs it, and how it is ended.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reply::{HandlerError, IntoReply};
use crate::deadline::Deadline;
use crate::socket::SocketEvents;
use crate::subscription::Waiting;
use crate::{Connection, Message, Subscription, Unfinished};

/// Messages that a handler is given in a row before others get their turn.
const TURN: usize = 64;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

tokio::task_local! {
    /// The service in whose handler this is.
    static WITHIN: u64;
}

/// The service in whose handler the caller runs.
pub(super) fn own() -> Option<u64> {
    WITHIN.try_with(|id| *id).ok()
}

/// What the task of a service shares with those who end it.
#[derive(Debug)]
pub(super) struct Shared {
    id: u64,
    /// Messages that wait in the socket.
    waiting: Waiting,
    /// What waited there when the service ended.
    left: AtomicU64,
    /// Messages that were taken from the socket and are not yet handled.
    in_hand: AtomicU64,
    /// Handlers that are at work in tasks of their own.
    at_work: AtomicU64,
    work_done: Notify,
    /// Whether no more messages are to be handled.
    stopping: AtomicBool,
    stop: CancellationToken,
    drain: CancellationToken,
    ended: CancellationToken,
    /// Everything that runs for it.
    tasks: OnceLock<AbortHandle>,
    give_up: CancellationToken,
}

impl Shared {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Has no more messages received or handled. Handlers that are at work finish.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.waiting.stop();
        self.stop.cancel();
    }

    /// Has what was received handled, and then ends.
    pub(super) fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends handlers that are at work, at their next `await`.
    fn give_up(&self) {
        self.stop();
        self.give_up.cancel();
        if let Some(tasks) = self.tasks.get() {
            tasks.abort();
        }
    }

    /// Whether it has ended, with nothing left.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_cancelled() && self.unhandled(None) == 0
    }

    /// Waits until the service has ended; if the caller is one of its handlers, until the others are done.
    pub(super) async fn ended(&self, own: Option<u64>) {
        if own != Some(self.id) {
            return self.ended.cancelled().await;
        }
        loop {
            let mut done = std::pin::pin!(self.work_done.notified());
            done.as_mut().enable();
            if self.at_work.load(Ordering::Acquire) <= 1 {
                return;
            }
            done.await;
        }
    }

    /// Waits for the end until `deadline`, and does not let it last longer. Returns the number of messages that were not handled.
    pub(super) async fn ended_by(&self, deadline: Deadline, own: Option<u64>) -> u64 {
        let in_time = deadline.limit(self.ended(own)).await.is_ok();
        if own != Some(self.id) && !in_time {
            self.give_up();
        }
        self.unhandled(own)
    }

    /// Messages that were received and not handled; `own` is the service whose handler asks: its message is being handled.
    fn unhandled(&self, own: Option<u64>) -> u64 {
        // What waits in the socket is counted by its end, which comes before the socket goes.
        let waiting = self.waiting.count();
        let waiting = if self.ended.is_cancelled() { self.left.load(Ordering::Acquire) } else { waiting };
        let in_hand = self.in_hand.load(Ordering::Acquire);
        waiting + in_hand.saturating_sub(u64::from(own == Some(self.id)))
    }
}

/// A running [`subscribe_with`](crate::Actor::subscribe_with). Dropping the handle leaves it running.
#[derive(Clone, Debug)]
pub struct SubscriptionHandle {
    shared: Arc<Shared>,
}

impl SubscriptionHandle {
    /// Takes the subscription back, has everything handled that had been sent to it by then, and ends, within `limit`. A request
    /// that the proxy had passed on is answered.
    ///
    /// Returns what is left: messages that were received and not handled in time, those included whose handler was stopped at
    /// its work. Called in one of its own handlers, it waits for the others only.
    pub async fn drain(&self, limit: Duration) -> Unfinished {
        self.shared.drain();
        self.end(limit).await
    }

    /// Ends the subscription: nothing more is handled; handlers that are at work may finish within `limit`. Returns what is left:
    /// messages that were received and not handled.
    pub async fn close(&self, limit: Duration) -> Unfinished {
        self.shared.stop();
        self.end(limit).await
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.ended.is_cancelled()
    }

    /// What happens to its connection from now on; `None` when it has ended.
    #[must_use]
    pub fn events(&self) -> Option<SocketEvents> {
        self.shared.waiting.events()
    }

    async fn end(&self, limit: Duration) -> Unfinished {
        let unhandled = self.shared.ended_by(Deadline::after(limit), own()).await;
        Unfinished { unhandled, ..Unfinished::default() }
    }
}

/// A subscription with a handler, before it runs.
pub(super) struct Service<H> {
    pub(super) subscription: Subscription,
    /// Replies go through it.
    pub(super) connection: Connection,
    pub(super) concurrency: usize,
    pub(super) handler: H,
}

impl<H, F> Service<H>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    /// Runs it as one of these tasks, until it is ended or `stop` is cancelled.
    pub(super) fn start(
        self,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> (Arc<Shared>, SubscriptionHandle) {
        let shared = Arc::new(Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            waiting: self.subscription.waiting(),
            left: AtomicU64::new(0),
            in_hand: AtomicU64::new(0),
            at_work: AtomicU64::new(0),
            work_done: Notify::new(),
            stopping: AtomicBool::new(false),
            stop,
            drain: CancellationToken::new(),
            ended: CancellationToken::new(),
            tasks: OnceLock::new(),
            give_up: CancellationToken::new(),
        });
        let task = tasks.spawn(WITHIN.scope(shared.id, self.run(shared.clone(), tasks.clone())));
        // Nobody else sets it.
        let _ = shared.tasks.set(task.abort_handle());
        (shared.clone(), SubscriptionHandle { shared })
    }

    async fn run(self, shared: Arc<Shared>, tasks: TaskTracker) {
        let Self { subscription, connection, concurrency, handler } = self;
        let mut running = Running { subscription, shared: shared.clone() };
        let work = Work { handler, connection, shared: shared.clone() };
        if concurrency <= 1 {
            one_by_one(&mut running, &work).await;
        } else {
            side_by_side(&mut running, Arc::new(work), concurrency, &tasks).await;
        }
    }
}

/// The receiving side of a service. However the task ends, what is left is counted.
struct Running {
    subscription: Subscription,
    shared: Arc<Shared>,
}

impl Running {
    /// The next messages; `None` at the end.
    async fn next_batch(&mut self) -> Option<crate::Messages> {
        let mut draining = false;
        loop {
            let batch = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => None,
                () = self.shared.drain.cancelled(), if !draining => {
                    draining = true;
                    self.subscription.drain();
                    continue;
                }
                batch = self.subscription.next_batch() => batch,
            };
            let count = batch.as_ref().map_or(0, |batch| batch.iter().count());
            self.shared.in_hand.fetch_add(count as u64, Ordering::AcqRel);
            return batch;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.subscription.stop();
        self.shared.left.store(self.shared.waiting.count(), Ordering::Release);
        self.shared.ended.cancel();
    }
}

/// Handles messages in their order, in the task that receives them.
async fn one_by_one<H, F>(running: &mut Running, work: &Work<H>)
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    while let Some(batch) = running.next_batch().await {
        for (index, message) in batch.enumerate() {
            // Those that are left stay counted.
            if work.shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            work.handle(message).await;
            if index % TURN == TURN - 1 {
                tokio::task::coop::consume_budget().await;
            }
        }
    }
}

/// Handles up to `concurrency` messages at the same time, each in a task of its own.
async fn side_by_side<H, F>(
    running: &mut Running,
    work: Arc<Work<H>>,
    concurrency: usize,
    tasks: &TaskTracker,
) where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS)));
    let shared = work.shared.clone();
    'receiving: while let Some(batch) = running.next_batch().await {
        for message in batch {
            let place = tokio::select! {
                biased;
                () = shared.stop.cancelled() => break 'receiving,
                place = places.clone().acquire_owned() => place,
            };
            // It is never closed.
            let Ok(place) = place else { break 'receiving };
            tasks.spawn(WITHIN.scope(shared.id, handle_apart(work.clone(), message, place)));
        }
    }
    running.subscription.stop();
    // All places are free when all work is done.
    let _ = places.acquire_many(concurrency.min(u32::MAX as usize) as u32).await;
}

async fn handle_apart<H, F>(work: Arc<Work<H>>, message: crate::Result<Message>, _place: OwnedSemaphorePermit)
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    work.shared.at_work.fetch_add(1, Ordering::AcqRel);
    let done = AtWork(&work.shared);
    tokio::select! {
        biased;
        () = work.shared.give_up.cancelled() => {}
        () = work.handle(message) => {}
    }
    drop(done);
}

struct AtWork<'a>(&'a Shared);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Ordering::AcqRel);
        self.0.work_done.notify_waiters();
    }
}

/// What is done with each message.
struct Work<H> {
    handler: H,
    connection: Connection,
    shared: Arc<Shared>,
}

impl<H, F> Work<H>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    /// Handles a message to its end. If this is dropped, the message stays counted as not handled.
    async fn handle(&self, message: crate::Result<Message>) {
        match message {
            Ok(message) => self.answer(message).await,
            Err(error) => tracing::warn!(%error, "not a message of xMsg: passed over"),
        }
        self.shared.in_hand.fetch_sub(1, Ordering::AcqRel);
    }

    async fn answer(&self, message: Message) {
        let request = message.clone();
        // The closure runs inside, so that its panic is one of the handler, too.
        let handling = AssertUnwindSafe(async { (self.handler)(message).await }).catch_unwind().await;
        let reply = match handling.map(IntoReply::into_reply) {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                tracing::warn!(topic = %request.topic(), %error, "a handler failed");
                error_reply(&request, &error)
            }
            Err(panic) => {
                let panic = panic_text(&*panic);
                tracing::error!(topic = %request.topic(), panic, "a handler panicked");
                error_reply(&request, &format!("the handler panicked: {panic}").into())
            }
        };
        if let Some(reply) = reply
            && let Err(error) = self.connection.publish(&reply).await
        {
            tracing::warn!(topic = %request.topic(), %error, "a reply was not sent");
        }
    }
}

/// The answer that tells whoever asked that it failed; `None` if nobody awaits one.
fn error_reply(request: &Message, error: &HandlerError) -> Option<Message> {
    request.error_reply(error).ok().flatten()
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a text")
}
