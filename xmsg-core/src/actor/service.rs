//! Subscriptions with a handler: the task that runs it, and how it is ended.

mod side_by_side;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::side_by_side::side_by_side;
use super::reply::IntoReply;
use crate::subscription::Waiting;
use crate::{Connection, ErrorKind, Message, MessageRef, Messages, Subscription, Topic, Unfinished};
use xmsg_zmq::SocketEvents;
use xmsg_zmq::deadline::Deadline;

/// Messages that a handler is given in a row before others get their turn.
const TURN: usize = 64;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

tokio::task_local! {
    /// The service in whose handler this is.
    static WITHIN: u64;
}

/// The service in whose handler the caller runs.
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

/// What the task of a service shares with those who end it.
#[derive(Debug)]
pub(super) struct Shared {
    id: u64,
    /// Messages that wait in the socket.
    waiting: Waiting,
    taken: Mutex<Taken>,
    /// Where, in the batch that is [taken](Taken::wire), the first message starts that is not yet handled, or, side by side, that no
    /// worker has.
    at: AtomicUsize,
    /// Messages that workers side by side have, and have not yet handled.
    in_hand: AtomicU64,
    /// Messages whose handler failed, or whose reply could not be sent.
    failed: AtomicU64,
    /// What it has subscribed to, to be named.
    topics: Vec<Topic>,
    /// What was returned when the service was made to end at a deadline: it is returned again.
    told: OnceLock<u64>,
    /// A worker has left.
    work_done: Notify,
    /// Whether no more messages are to be handled.
    stopping: AtomicBool,
    stop: CancellationToken,
    drain: CancellationToken,
    ended: CancellationToken,
    /// Ends everything that runs for it, at its next `await`. The end of the actor does so, too.
    give_up: CancellationToken,
}

/// What was taken from the socket. It is locked while messages are taken, so that none is between the two when they are counted.
#[derive(Debug, Default)]
struct Taken {
    /// The batch whose messages are being handled. They are counted when somebody asks.
    wire: Bytes,
    /// The number of this batch.
    batch: u64,
    /// Tasks that handle messages side by side.
    workers: usize,
    /// The service has ended: what waited in the socket then.
    left: Option<u64>,
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages of the batch that is taken which are not yet handled.
    fn in_batch(&self, taken: &Taken) -> u64 {
        let at = self.at.load(Ordering::Acquire);
        taken.wire.get(at..).map_or(0, |_| Messages::of(taken.wire.slice(at..)).iter().count() as u64)
    }

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
    }

    /// The number of messages that it has not handled, if it has ended.
    pub(super) fn left_behind(&self) -> Option<u64> {
        let is_over = self.ended.is_cancelled();
        is_over.then(|| self.told.get().copied().unwrap_or_else(|| self.unhandled(None)))
    }

    /// Takes the next message of the batch in hand. Returns where it starts.
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

    /// Waits until every message of the batch is in somebody's hands.
    async fn all_taken(&self) {
        self.when(|shared, taken| shared.at.load(Ordering::Acquire) >= taken.wire.len()).await;
        self.taken().wire = Bytes::new();
    }

    /// Waits until no more than so many workers are at work.
    async fn at_most(&self, workers: usize) {
        self.when(|_, taken| taken.workers <= workers).await;
    }

    /// Waits until this holds, which may come to do so when a worker leaves.
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

    /// Waits until the service has ended; if the caller is one of its handlers, until the others are done.
    pub(super) async fn ended(&self, own: Option<u64>) {
        if own != Some(self.id) {
            return self.ended.cancelled().await;
        }
        self.at_most(1).await;
    }

    /// Waits for the end until `deadline`, and does not let it last longer. Returns the number of messages that were not handled. A
    /// handler that is stopped at its work may still come to its next `await`: what was returned first counts.
    pub(super) async fn ended_by(&self, deadline: Deadline, own: Option<u64>) -> u64 {
        let in_time = deadline.limit(self.ended(own)).await.is_ok();
        if own == Some(self.id) {
            return self.unhandled(own);
        }
        if in_time {
            return self.left_behind().unwrap_or_else(|| self.unhandled(own));
        }
        self.give_up();
        *self.told.get_or_init(|| {
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

    /// Messages that were received and not handled; `own` is the service whose handler asks: its message is being handled.
    fn unhandled(&self, own: Option<u64>) -> u64 {
        let taken = self.taken();
        let waiting = taken.left.unwrap_or_else(|| self.waiting.count());
        let in_hand = self.in_batch(&taken) + self.in_hand.load(Ordering::Acquire);
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

    /// Messages that were received and are not yet handled, those at work included: how far the handler is behind.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.shared.unhandled(None)
    }

    /// Messages whose handler failed or panicked, or whose reply could not be sent. Each is logged with its topic and the reason.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
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
    /// Runs it as one of these tasks, until it is ended or `actor_gone` is cancelled.
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
            topics: self.subscription.topics().to_vec(),
            told: OnceLock::new(),
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

/// The receiving side of a service. However the task ends, what is left is counted.
struct Running {
    subscription: Subscription,
    shared: Arc<Shared>,
}

impl Running {
    /// The next messages, which count as taken; `None` at the end.
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
            // The memory of messages that nobody will handle is not kept for the sake of their number.
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
            // Those that are left stay counted.
            if shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            let Some(message) = messages.next() else { break };
            match message {
                Ok(message) => work.answer(message.to_message(), &Lent(message)).await,
                Err(error) => not_a_message(&error),
            }
            // Nobody else writes it.
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
    /// `request` is the same message, for when the handler has used it up and there is something to say about it.
    async fn answer(&self, message: Message, request: &impl Request) {
        // Everything of the handler's runs inside: its closure, its future, and what becomes of the result, so that a panic in
        // any of them is one of the handler.
        let handling = async {
            let result = (self.handler)(message).await.into_reply();
            result.map_err(|error| error.to_string())
        };
        let failure = match AssertUnwindSafe(handling).catch_unwind().await {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(reply))) => match self.connection.publish(&reply).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(topic = %request.message().topic(), error = %error.with_causes(), "a reply was not sent");
                    format!("its reply was not sent: {}", error.with_causes())
                }
            },
            Ok(Err(error)) => {
                tracing::warn!(topic = %request.message().topic(), error, "a handler failed");
                error
            }
            Err(panic) => {
                let panic = panic_text(&*panic);
                tracing::error!(topic = %request.message().topic(), panic, "a handler panicked");
                format!("the handler panicked: {panic}")
            }
        };
        self.shared.failed.fetch_add(1, Ordering::Relaxed);
        self.tell(&request.message(), failure).await;
    }

    /// Tells whoever asked that it failed; if the reason is too long for one message, as much of it as need be.
    async fn tell(&self, request: &Message, mut failure: String) {
        loop {
            let Some(reply) = error_reply(request, failure.clone()) else { return };
            let Err(error) = self.connection.publish(&reply).await else { return };
            if error.kind() != ErrorKind::TooLarge || failure.is_empty() {
                tracing::warn!(topic = %request.topic(), error = %error.with_causes(), "the requester could not be told that a handler failed");
                return;
            }
            let mut len = failure.len() / 2;
            while !failure.is_char_boundary(len) {
                len -= 1;
            }
            failure.truncate(len);
        }
    }
}

/// The message that is being handled, once more.
trait Request: Send + Sync {
    fn message(&self) -> Message;
}

/// A message of a batch that outlives the handling: no reference is counted before it is needed.
struct Lent<'a>(MessageRef<'a>);

impl Request for Lent<'_> {
    fn message(&self) -> Message {
        self.0.to_message()
    }
}

fn not_a_message(error: &crate::Error) {
    tracing::warn!(%error, "ignored a message that is not an xMsg message");
}

/// The answer that tells whoever asked that it failed; `None` if nobody awaits one.
fn error_reply(request: &Message, error: String) -> Option<Message> {
    request.error_reply(error).ok().flatten()
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a text")
}
