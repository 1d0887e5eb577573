//! Load balancing, as PUSH and DEALER do it (RFC 30, RFC 28): each message goes to one of the connected peers
//! that have room, in round robin.
//!
//! When a connection ends, the messages that wait for its peer go to the others. While no peer is connected,
//! messages wait for the first one that connects. If there is just one peer that the socket connects to, they
//! wait in its queue instead, and keep their order.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::select_all;
use tokio::sync::Notify;
use xmsg_zmtp::{SocketType, encoded_len};

use crate::deadline::Deadline;
use crate::hub::Hub;
use crate::link::Link;
use crate::link::refusal::exceeds_limits;
use crate::link::send_queue::{self, Begun, Frame, Refused, Unsent};
use crate::link::wait_queue::{Place, WaitQueue};
use crate::lock::lock;
use crate::role::Role;
use crate::{Error, ErrorKind, Result};

/// How often a flush checks whether the messages of a peer that is gone were sent to another one.
const RETURNED: Duration = Duration::from_millis(10);

/// Chooses the peer for the next message, and keeps messages that wait for a peer.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    /// The index of the link that is next in the round robin.
    next: AtomicUsize,
    waiting: Mutex<Waiting>,
    /// Whether a task is passing waiting messages to peers with room. New messages line up behind them then.
    is_serving: AtomicBool,
    /// Notified when the first in line has given up.
    left: Notify,
    /// The number of messages that went from one peer to another.
    moved: AtomicU64,
    is_closed: AtomicBool,
}

/// Messages that wait until a peer has room.
#[derive(Debug, Default)]
struct Waiting {
    /// Messages of peers that are gone. They were accepted before, so they go first.
    returned: VecDeque<Unsent>,
    /// Messages of senders that wait. When there is room, they are sent without their futures: no message
    /// depends on a future being polled again.
    line: WaitQueue<Unsent>,
    /// Senders that were removed from the line and have not been polled since.
    refused: Vec<(Place, Error)>,
}

/// The result of offering a message to the peers.
enum Offered {
    /// The queue of a link has accepted it. If there is a link here, the sender should yield to its writer.
    Taken(Option<Arc<Link>>),
    /// No peer has room for it.
    NoRoom,
    /// No peer accepts such a message.
    ExceedsLimits(Arc<Link>),
}

/// A sender that waits in line. Dropping it withdraws its message.
struct InLine<'a> {
    balancer: &'a Balancer,
    place: Place,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let was_first = {
            let mut waiting = self.balancer.waiting();
            waiting.refused.retain(|(place, _)| *place != self.place);
            waiting.line.leave(&self.place)
        };
        if was_first {
            self.balancer.left.notify_one();
        }
    }
}

impl Balancer {
    /// Sends a message to one peer. Returns when the queue of that peer has accepted it, and waits while no
    /// peer has room. Messages are accepted in the order of the calls, which is the order in which the
    /// futures were first polled. Cancel safe: if the future is dropped, the message was accepted whole or
    /// not at all.
    pub(crate) async fn send(self: &Arc<Self>, hub: &Arc<Hub>, frames: &[impl Frame]) -> Result<()> {
        Self::check(hub, frames)?;
        if self.is_closed() {
            return Err(closed());
        }
        if !self.is_serving() {
            match Self::begin_alone(hub, frames) {
                None => {}
                Some(Begun::Done(Ok(()))) => return Ok(()),
                Some(Begun::Done(Err(refused))) => return Err(Self::refused_alone(hub, refused, frames)),
                Some(Begun::MustWait(mut sending)) => {
                    let done = sending.finish().await;
                    return done.map_err(|refused| Self::refused_alone(hub, refused, frames));
                }
            }
            match self.offer(hub, frames) {
                Offered::Taken(None) => return Ok(()),
                Offered::Taken(Some(link)) => {
                    link.send_queue.pause().await;
                    return Ok(());
                }
                Offered::ExceedsLimits(link) => return Err(hub.exceeds_limits(&link, frames)),
                Offered::NoRoom => {}
            }
        }
        let message = frames.iter().map(|frame| Borrow::<Bytes>::borrow(frame).clone()).collect();
        let place = self.waiting().line.join(message);
        let waits = InLine { balancer: self, place };
        self.serve(hub);
        // It is boxed, because most calls never wait.
        Box::pin(self.served(hub, &waits.place)).await
    }

    /// Sends a message to one peer without waiting. Returns [`Full`](ErrorKind::Full) if no peer has room, or
    /// other messages wait for it.
    pub(crate) fn try_send(&self, hub: &Hub, frames: &[impl Frame]) -> Result<()> {
        Self::check(hub, frames)?;
        if self.is_closed() {
            return Err(closed());
        }
        if self.is_serving() {
            return Err(full());
        }
        match self.offer(hub, frames) {
            Offered::Taken(_) => Ok(()),
            Offered::ExceedsLimits(link) => Err(hub.exceeds_limits(&link, frames)),
            Offered::NoRoom if hub.is_dead() => Err(closed()),
            Offered::NoRoom => Err(full()),
        }
    }

    /// Begins to send over the only link of a socket that connects to one endpoint and is not bound.
    /// Everything that such a socket sends waits in that link. Returns `None` for other sockets.
    fn begin_alone(hub: &Hub, frames: &[impl Frame]) -> Option<Begun<Arc<Link>>> {
        // The link is not cloned. Other threads change its reference count, too, which would cost a cache
        // miss for each message.
        match &hub.links()[..] {
            [link] if link.connecting && !hub.is_bound() => Some(send_queue::begin(link, frames)),
            _ => None,
        }
    }

    /// Why the only link refused a message.
    fn refused_alone(hub: &Hub, refused: Refused, frames: &[impl Frame]) -> Error {
        let link = hub.links().first().cloned();
        match (refused, link) {
            (Refused::ExceedsLimits, Some(link)) => hub.exceeds_limits(&link, frames),
            _ => closed(),
        }
    }

    /// Waits until the message is not in line any more.
    async fn served(&self, hub: &Hub, place: &Place) -> Result<()> {
        loop {
            let mut changed = std::pin::pin!(hub.changed.notified());
            changed.as_mut().enable();
            if self.is_closed() || hub.is_dead() {
                return Err(closed());
            }
            let out_of_line = std::future::poll_fn(|cx| {
                let mut waiting = self.waiting();
                if waiting.line.wait(place, cx.waker()) {
                    return Poll::Pending;
                }
                let at = waiting.refused.iter().position(|(refused, _)| refused == place);
                Poll::Ready(at.map_or(Ok(()), |at| Err(waiting.refused.swap_remove(at).1)))
            });
            tokio::select! {
                biased;
                done = out_of_line => return done,
                () = changed => {}
            }
        }
    }

    /// Whether a message may go to this link, which is one of `of` links.
    fn is_candidate(link: &Link, of: usize) -> bool {
        link.is_connected() || of == 1 && link.connecting
    }

    fn candidates(links: &[Arc<Link>]) -> impl Iterator<Item = &Arc<Link>> {
        links.iter().filter(|link| Self::is_candidate(link, links.len()) && !link.send_queue.is_closed())
    }

    /// Offers the message to the links in round robin, until one has room for it.
    fn offer(&self, hub: &Hub, frames: &[impl Frame]) -> Offered {
        let links = hub.links();
        let count = links.len();
        if count == 0 {
            return Offered::NoRoom;
        }
        let start = self.next.load(Ordering::Relaxed) % count;
        let (mut exceeds_limits, mut is_full) = (None, false);
        for step in 0..count {
            let place = (start + step) % count;
            let link = &links[place];
            if !Self::is_candidate(link, count) {
                continue;
            }
            match link.send_queue.offer(frames) {
                Ok(pauses) => {
                    self.next.store(place + 1, Ordering::Relaxed);
                    return Offered::Taken(pauses.then(|| link.clone()));
                }
                Err(Refused::ExceedsLimits) => exceeds_limits = Some(link),
                Err(Refused::Full) => is_full = true,
                Err(Refused::Closed) => {}
            }
        }
        match exceeds_limits {
            // Another peer may connect that accepts it, but the sender must not wait for that.
            Some(link) if !is_full => Offered::ExceedsLimits(link.clone()),
            _ => Offered::NoRoom,
        }
    }

    /// Passes messages that wait for peers which are gone to others, as soon as there are any.
    pub(crate) fn reassign(self: &Arc<Self>, hub: &Arc<Hub>) {
        let mut found = Vec::new();
        {
            let links = hub.links();
            // The only link keeps its messages while it reconnects, unless it was disconnected.
            let is_alone = links.len() == 1 && links[0].connecting && !links[0].stop.is_cancelled();
            if !is_alone {
                for link in links.iter().filter(|link| !link.is_connected()) {
                    found.extend(link.send_queue.take_unsent());
                }
            }
        }
        if found.is_empty() && self.returned_messages() == 0 {
            return;
        }
        self.moved.fetch_add(found.len() as u64, Ordering::Relaxed);
        {
            let mut waiting = self.waiting();
            // They go in front of the messages of peers that went before: those were to be sent later.
            for message in found.into_iter().rev() {
                waiting.returned.push_front(message);
            }
        }
        self.serve(hub);
    }

    /// Starts a task that passes waiting messages, in order, to peers with room, unless there is one already.
    fn serve(self: &Arc<Self>, hub: &Arc<Hub>) {
        {
            // This happens under the lock under which that task finds that nothing waits any more.
            let _waiting = self.waiting();
            if self.is_serving.swap(true, Ordering::AcqRel) {
                return;
            }
        }
        let (balancer, hub_of_task) = (self.clone(), hub.clone());
        hub.spawn(async move {
            balancer.serve_all(&hub_of_task).await;
            // `close` may wait for that.
            hub_of_task.changed.notify_waiters();
        });
    }

    async fn serve_all(&self, hub: &Hub) {
        loop {
            let mut changed = std::pin::pin!(hub.changed.notified());
            changed.as_mut().enable();
            let mut served = Vec::new();
            let next = self.serve_some(hub, &mut served);
            served.into_iter().for_each(Waker::wake);
            let Some((len, frames)) = next else { return };
            // A link that does not accept the message would always report room for it, so it is left out.
            let takes = |link: &Arc<Link>| link.send_queue.limits().allow(len, frames);
            let links: Vec<_> = Self::candidates(&hub.links()).filter(|link| takes(link)).cloned().collect();
            let rooms =
                links.iter().map(|link| Box::pin(link.send_queue.wait_for_room(|queue| queue.is_full(len))));
            tokio::select! {
                biased;
                () = changed => {}
                () = self.left.notified() => {}
                () = any(rooms) => {}
            }
        }
    }

    /// Passes on what it can. Returns the length and the number of frames of the message that has to wait, or
    /// `None` if nothing waits any more.
    fn serve_some(&self, hub: &Hub, served: &mut Vec<Waker>) -> Option<(usize, usize)> {
        let mut waiting = self.waiting();
        // The messages before `at` wait for a peer that accepts them.
        let mut at = 0;
        loop {
            let is_returned = at < waiting.returned.len();
            // Once the socket is closed, senders in line get an error; what was accepted is still sent.
            let in_line = waiting.line.first().filter(|_| !self.is_closed());
            let Some(frames) = waiting.returned.get(at).or(in_line) else {
                self.is_serving.store(false, Ordering::Release);
                return None;
            };
            let refused = match self.offer(hub, frames) {
                // Another peer has accepted this message before, and may come back. So a peer that accepts
                // nothing neither makes it lost nor blocks the messages behind it.
                Offered::ExceedsLimits(link) if is_returned && !link.connecting => {
                    at += 1;
                    continue;
                }
                Offered::NoRoom => return Some((encoded_len(frames), frames.len())),
                Offered::Taken(_) => None,
                Offered::ExceedsLimits(link) => Some(hub.exceeds_limits(&link, frames)),
            };
            match (is_returned, refused) {
                (true, refused) => {
                    let message = waiting.returned.remove(at);
                    if let (Some(message), Some(error)) = (message, refused) {
                        hub.drop_unsent(&message, &error);
                    }
                }
                (false, None) => served.extend(waiting.line.take_first().and_then(|(_, waker)| waker)),
                (false, Some(error)) => {
                    if let Some((place, waker)) = waiting.line.refuse_first() {
                        waiting.refused.push((place, error));
                        served.extend(waker);
                    }
                }
            }
        }
    }

    /// The number of messages that went to others because the connection of their peer ended.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Accepts no more messages, and waits for at most `linger` until all that were accepted are written.
    /// Until then, the messages of peers that go away still go to others. Returns how much of that time is
    /// left.
    pub(crate) async fn finish(&self, hub: &Hub, linger: Duration) -> Duration {
        let deadline = Deadline::after(linger);
        self.is_closed.store(true, Ordering::Release);
        hub.changed.notify_waiters();
        // When the last link is gone, no peer is left that could take its messages.
        let _ = deadline.limit(self.written(hub, <[Arc<Link>]>::is_empty)).await;
        deadline.left()
    }

    /// Waits for at most `limit` until all messages that were accepted are written.
    pub(crate) async fn flush(&self, hub: &Hub, limit: Duration) -> Result<()> {
        let written = self.written(hub, |_| false);
        let late = |_| {
            let links = hub.links().iter().map(|link| link.send_queue.queued().messages).sum::<u64>();
            let left = links + self.returned_messages() as u64;
            Error::new(
                ErrorKind::Timeout,
                format!("{left} messages were not written to a peer within {limit:?}"),
            )
        };
        Deadline::after(limit).limit(written).await.map_err(late)
    }

    /// Waits until all messages that were accepted are written. Messages of peers that are gone wait for
    /// other peers, unless `hopeless` returns `true` for the present links.
    async fn written(&self, hub: &Hub, hopeless: impl Fn(&[Arc<Link>]) -> bool) {
        loop {
            let mut changed = std::pin::pin!(hub.changed.notified());
            changed.as_mut().enable();
            let links: Vec<_> = hub.links().iter().cloned().collect();
            let busy = links.iter().filter(|link| link.send_queue.queued().messages > 0);
            let flushes: Vec<_> = busy.map(|link| Box::pin(link.send_queue.flushed())).collect();
            let returned = self.returned_messages();
            if flushes.is_empty() && (returned == 0 || hopeless(&links)) {
                return;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = any(flushes) => {}
                // There is no notification when such a message goes to a peer that was connected already and
                // now has room.
                () = tokio::time::sleep(RETURNED), if returned > 0 => {}
            }
        }
    }

    /// The number of messages of peers that are gone which no other peer has accepted yet.
    pub(crate) fn returned_messages(&self) -> usize {
        self.waiting().returned.len()
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn is_serving(&self) -> bool {
        self.is_serving.load(Ordering::Acquire)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }

    /// Checks whether the message is within our limits.
    fn check(hub: &Hub, frames: &[impl Frame]) -> Result<()> {
        let limits = hub.options.send_limits();
        if limits.allow(encoded_len(frames), frames.len()) {
            return Ok(());
        }
        Err(exceeds_limits(frames, limits, limits, ""))
    }
}

/// Returns when one of the futures does, and never if there are none.
async fn any(futures: impl IntoIterator<Item = impl Future<Output = ()> + Unpin>) {
    let futures: Vec<_> = futures.into_iter().collect();
    if futures.is_empty() {
        std::future::pending::<()>().await;
    }
    select_all(futures).await;
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the socket is closed")
}

fn full() -> Error {
    Error::new(ErrorKind::Full, "no peer has room: wait with `send`, or send less")
}

/// The role of sockets that balance messages over their peers.
#[derive(Debug)]
pub(crate) struct Balanced {
    socket_type: SocketType,
    balancer: Arc<Balancer>,
}

impl Balanced {
    /// Creates the role, and the balancer that sends messages.
    pub(crate) fn new(socket_type: SocketType) -> (Arc<Self>, Arc<Balancer>) {
        let balancer = Arc::<Balancer>::default();
        (Arc::new(Self { socket_type, balancer: balancer.clone() }), balancer)
    }
}

impl Role for Balanced {
    fn socket_type(&self) -> SocketType {
        self.socket_type
    }

    fn balancer(&self) -> Option<&Arc<Balancer>> {
        Some(&self.balancer)
    }

    fn receives(&self) -> bool {
        self.socket_type != SocketType::Push
    }
}
