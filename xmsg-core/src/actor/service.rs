//! Subscriptions with a handler: the task that runs the handler, and how it ends.

// Longer than 500 lines: one life cycle. Handles, the task and its end share one state, which is private to
// this file.

mod lines;
mod side_by_side;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lines::Lines;
use self::side_by_side::side_by_side;
use super::reply::IntoReply;
use crate::subscription::Waiting;
use crate::text::floor_char_boundary;
use crate::{Connection, ErrorKind, Message, MessageRef, Messages, Subscription, Topic, Unfinished};
use xmsg_zmq::SocketEvents;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::fault::catch_in;
use xmsg_zmq::lock::lock;

/// The number of messages that a handler handles in a row before other tasks get their turn.
const TURN: usize = 64;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

tokio::task_local! {
    /// The identity of the service whose handler runs in this task.
    static WITHIN: u64;
}

/// Returns the identity of the service whose handler the caller runs in, if there is one.
pub(crate) fn own() -> Option<u64> {
    WITHIN.try_with(|id| *id).ok()
}

/// Calls a handler of this service in another thread than that of its task.
#[cfg(feature = "blocking")]
pub(crate) fn within<T>(own: Option<u64>, handler: impl FnOnce() -> T) -> T {
    match own {
        Some(id) => WITHIN.sync_scope(id, handler),
        None => handler(),
    }
}

/// The state that the task of a service shares with its handles and its actor.
#[derive(Debug)]
pub(super) struct Shared {
    id: u64,
    /// Counts messages that wait in the socket.
    waiting: Waiting,
    taken: Mutex<Taken>,
    /// The offset, in the batch of [`wire`](Taken::wire), of the first message that is not yet handled. With
    /// several workers, it is the first message that no worker has taken.
    at: AtomicUsize,
    /// The number of messages that workers have taken and not yet handled.
    in_hand: AtomicU64,
    /// The number of messages whose handler failed or whose reply could not be sent.
    failed: AtomicU64,
    /// What messages of peers can cause in the log.
    lines: Lines,
    /// The topics of the subscription, for log lines.
    topics: Vec<Topic>,
    /// The count that was returned when the service had not ended by its deadline: later calls return it
    /// again.
    unhandled_at_deadline: OnceLock<u64>,
    /// Notifies waiters when a worker ends.
    work_done: Notify,
    /// Whether no more messages are to be handled.
    stopping: AtomicBool,
    stop: CancellationToken,
    drain: CancellationToken,
    ended: CancellationToken,
    /// Ends all tasks of the service at their next `await`. The end of the actor cancels it, too.
    give_up: CancellationToken,
}

/// What was taken from the socket. It is locked while messages are taken, so that a count finds every message
/// either in the socket or here.
#[derive(Debug, Default)]
struct Taken {
    /// The batch whose messages are being handled. They are counted only on request.
    wire: Bytes,
    /// The serial number of this batch.
    batch: u64,
    /// The number of tasks that handle messages side by side.
    workers: usize,
    /// The number of messages that waited in the socket when the service ended; `None` before.
    left: Option<u64>,
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        lock(&self.taken)
    }

    /// Returns the number of messages of the batch that are not yet handled.
    fn in_batch(&self, taken: &Taken) -> u64 {
        let at = self.at.load(Ordering::Acquire);
        taken.wire.get(at..).map_or(0, |_| Messages::of(taken.wire.slice(at..)).iter().count() as u64)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Stops receiving and handling messages. Handlers that are running finish.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.waiting.stop();
        self.stop.cancel();
    }

    /// Has everything handled that was received, and then ends the service.
    pub(super) fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends handlers that are running, at their next `await`.
    fn give_up(&self) {
        self.stop();
        self.give_up.cancel();
    }

    /// Returns the number of messages that were not handled, if the service has ended.
    pub(super) fn left_behind(&self) -> Option<u64> {
        let is_over = self.ended.is_cancelled();
        is_over.then(|| self.unhandled_at_deadline.get().copied().unwrap_or_else(|| self.unhandled(None)))
    }

    /// Takes the next message of the batch and returns its offset.
    fn take_one(&self, taken: &Taken) -> Option<usize> {
        let at = self.at.load(Ordering::Relaxed);
        let mut messages = Messages::iter_at(&taken.wire, at);
        let found = messages.next().is_some();
        self.at.store(messages.at(), Ordering::Release);
        if found {
            self.in_hand.fetch_add(1, Ordering::AcqRel);
        }
        found.then_some(at)
    }

    /// Waits until workers have taken every message of the batch.
    async fn all_taken(&self) {
        self.when(|shared, taken| shared.at.load(Ordering::Acquire) >= taken.wire.len()).await;
        self.taken().wire = Bytes::new();
    }

    /// Waits until no more than `workers` workers are running.
    async fn at_most(&self, workers: usize) {
        self.when(|_, taken| taken.workers <= workers).await;
    }

    /// Waits until the condition holds. It is checked again whenever a worker ends.
    async fn when(&self, holds: impl Fn(&Self, &Taken) -> bool) {
        loop {
            let mut done = std::pin::pin!(self.work_done.notified());
            done.as_mut().enable();
            if holds(self, &self.taken()) {
                return;
            }
            done.await;
        }
    }

    /// Waits until the service has ended. If the caller is one of its handlers, it waits until the other
    /// handlers are done.
    pub(super) async fn ended(&self, own: Option<u64>) {
        if own != Some(self.id) {
            return self.ended.cancelled().await;
        }
        self.at_most(1).await;
    }

    /// Waits for the end of the service until `deadline`, and then cancels its tasks. Returns the number of
    /// messages that were not handled.
    ///
    /// A cancelled handler may still run until its next `await`, so the count that is returned first is kept.
    pub(super) async fn ended_by(&self, deadline: Deadline, own: Option<u64>) -> u64 {
        let in_time = deadline.limit(self.ended(own)).await.is_ok();
        if own == Some(self.id) {
            return self.unhandled(own);
        }
        if in_time {
            return self.left_behind().unwrap_or_else(|| self.unhandled(own));
        }
        self.give_up();
        *self.unhandled_at_deadline.get_or_init(|| {
            let unhandled = self.unhandled(own);
            let topics = self.topics.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                topics,
                unhandled,
                "a handler did not finish in time: it is cancelled at its next await"
            );
            unhandled
        })
    }

    /// Returns the number of messages that were received and not handled. `own` is the service whose handler
    /// asks, if one does: the message of that handler is not counted.
    fn unhandled(&self, own: Option<u64>) -> u64 {
        let taken = self.taken();
        let waiting = taken.left.unwrap_or_else(|| self.waiting.count());
        let in_hand = self.in_batch(&taken) + self.in_hand.load(Ordering::Acquire);
        waiting + in_hand.saturating_sub(u64::from(own == Some(self.id)))
    }
}

/// A handle of a running [`subscribe_with`](crate::Actor::subscribe_with). The service continues when the
/// handle is dropped.
#[derive(Clone, Debug)]
pub struct SubscriptionHandle {
    shared: Arc<Shared>,
}

impl SubscriptionHandle {
    /// Cancels the subscription at the proxy, has everything handled that the proxy had sent by then, and
    /// ends the service, within `limit`. Every request that the proxy had forwarded is answered.
    ///
    /// Returns the counts of what is unfinished: messages that were received and not handled in time,
    /// including those whose handler was cancelled. If one of the handlers of the service calls it, it waits
    /// for the other handlers only.
    pub async fn drain(&self, limit: Duration) -> Unfinished {
        self.shared.drain();
        self.end(limit).await
    }

    /// Ends the service within `limit`: no more messages are handled, and handlers that are running may
    /// finish. Returns the counts of what is unfinished: messages that were received and not handled.
    pub async fn close(&self, limit: Duration) -> Unfinished {
        self.shared.stop();
        self.end(limit).await
    }

    /// Returns the number of messages that were received and are not yet handled, including those whose
    /// handler is running. It says how far the handler lags behind.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.shared.unhandled(None)
    }

    /// Returns the number of messages whose handler failed or panicked, or whose reply could not be sent.
    /// They are logged with topic and reason: at most ten of a kind in ten seconds, with the count of the
    /// rest.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Returns whether the service has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.ended.is_cancelled()
    }

    /// Returns the events of the connection of the service from now on, or `None` if the service has ended.
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
    /// The connection through which replies are sent.
    pub(super) connection: Connection,
    pub(super) concurrency: usize,
    pub(super) handler: H,
}

impl<H, F> Service<H>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    /// Spawns the service on this tracker. It runs until it is ended or `actor_gone` is cancelled.
    pub(super) fn start(
        self,
        tasks: &TaskTracker,
        actor_gone: &CancellationToken,
    ) -> (Arc<Shared>, SubscriptionHandle) {
        let shared = Arc::new(Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            waiting: self.subscription.waiting(),
            taken: Mutex::default(),
            at: AtomicUsize::new(0),
            in_hand: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            lines: Lines::default(),
            topics: self.subscription.topics().to_vec(),
            unhandled_at_deadline: OnceLock::new(),
            work_done: Notify::new(),
            stopping: AtomicBool::new(false),
            stop: actor_gone.child_token(),
            drain: CancellationToken::new(),
            ended: CancellationToken::new(),
            give_up: actor_gone.child_token(),
        });
        let (running, tracker) = (shared.clone(), tasks.clone());
        tasks.spawn(WITHIN.scope(shared.id, async move {
            let give_up = running.give_up.clone();
            tokio::select! {
                biased;
                () = give_up.cancelled() => {}
                () = self.run(running, tracker) => {}
            }
        }));
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

/// The receiving side of a service. However the task ends, the messages that are left are counted.
struct Running {
    subscription: Subscription,
    shared: Arc<Shared>,
}

impl Running {
    /// Takes the next batch of messages; `None` at the end.
    async fn next_batch(&mut self) -> Option<Messages> {
        let mut draining = false;
        loop {
            let Self { subscription, shared } = self;
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return None,
                () = shared.drain.cancelled(), if !draining => {
                    draining = true;
                    subscription.drain();
                }
                batch = std::future::poll_fn(|cx| take(subscription, shared, cx)) => return batch,
            }
        }
    }
}

fn take(subscription: &mut Subscription, shared: &Shared, cx: &mut Context<'_>) -> Poll<Option<Messages>> {
    let mut taken = shared.taken();
    let batch = subscription.poll_next_batch(cx);
    if let Poll::Ready(Some(batch)) = &batch {
        let (wire, at) = batch.place();
        taken.wire = wire.clone();
        taken.batch += 1;
        shared.at.store(at, Ordering::Release);
    }
    batch
}

impl Drop for Running {
    fn drop(&mut self) {
        self.subscription.stop();
        {
            let mut taken = self.shared.taken();
            taken.left = Some(self.shared.waiting.count());
            // Keeps only the number of these messages: nobody will handle them, so their memory can be freed.
            self.shared.in_hand.fetch_add(self.shared.in_batch(&taken), Ordering::AcqRel);
            taken.wire = Bytes::new();
        }
        self.shared.ended.cancel();
    }
}

/// Handles messages in their order, in the task that receives them.
async fn one_by_one<H, F>(running: &mut Running, work: &Work<H>)
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    let shared = &work.shared;
    while let Some(batch) = running.next_batch().await {
        let mut messages = batch.iter();
        let mut turn = 0;
        loop {
            // The messages that are left stay counted as not handled.
            if shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            let Some(message) = messages.next() else { break };
            match message {
                Ok(message) => work.answer(message.to_message(), &Lent(message)).await,
                Err(error) => shared.lines.unreadable(&error),
            }
            // No other task writes this offset.
            shared.at.store(messages.at(), Ordering::Release);
            turn += 1;
            if turn == TURN {
                turn = 0;
                tokio::task::coop::consume_budget().await;
            }
        }
        shared.taken().wire = Bytes::new();
    }
}

/// What is needed to handle one message.
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
    /// Handles a message, in a span of its own if there are spans.
    async fn answer(&self, message: Message, request: &impl Request) {
        #[cfg(feature = "otel")]
        {
            let span = crate::otel::process_span(&message);
            tracing::Instrument::instrument(self.handle(message, request), span).await;
        }
        #[cfg(not(feature = "otel"))]
        self.handle(message, request).await;
    }

    /// Handles a message and publishes the reply, if there is one.
    ///
    /// `request` is the same message: the handler consumes its own, and errors are logged and sent with the
    /// topic of the request.
    async fn handle(&self, message: Message, request: &impl Request) {
        // The closure of the handler, its future and the conversion of the result all run inside, so that a
        // panic in any of them is counted as one of the handler.
        let handling = async {
            let result = (self.handler)(message).await.into_reply();
            result.map_err(|error| error.to_string())
        };
        let lines = &self.shared.lines;
        let failure = match catch_in(handling).await {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(reply))) => match self.connection.publish(&reply).await {
                Ok(()) => return,
                Err(error) => {
                    let error = error.with_causes().to_string();
                    lines.unsent(request.message().topic(), &error);
                    format!("its reply was not sent: {error}")
                }
            },
            Ok(Err(error)) => {
                lines.failed(request.message().topic(), &error);
                error
            }
            Err(fault) => {
                let panic = fault.to_string();
                lines.panicked(request.message().topic(), &panic);
                format!("the handler panicked: {panic}")
            }
        };
        self.shared.failed.fetch_add(1, Ordering::Relaxed);
        self.tell(&request.message(), failure).await;
    }

    /// Sends an error reply to the requester. If the text is too long for a message, it is shortened until it
    /// fits.
    async fn tell(&self, request: &Message, mut failure: String) {
        loop {
            let Some(reply) = error_reply(request, failure.clone()) else { return };
            let Err(error) = self.connection.publish(&reply).await else { return };
            if error.kind() != ErrorKind::TooLarge || failure.is_empty() {
                self.shared.lines.report_failed(request.topic(), &error.with_causes().to_string());
                return;
            }
            failure.truncate(floor_char_boundary(&failure, failure.len() / 2));
        }
    }
}

/// Gives access to the message that is being handled, after the handler has consumed it.
trait Request: Send + Sync {
    fn message(&self) -> Message;
}

/// A borrowed message of a batch that outlives the handling: no reference is counted unless the message is
/// needed.
struct Lent<'a>(MessageRef<'a>);

impl Request for Lent<'_> {
    fn message(&self) -> Message {
        self.0.to_message()
    }
}

/// Makes the error reply to a request; `None` if no reply is expected.
fn error_reply(request: &Message, error: String) -> Option<Message> {
    request.error_reply(error).ok().flatten()
}
