//! Sending to one peer after another, as PUSH and DEALER do (RFC 30, RFC 28): each message goes to one of those that are connected and have
//! room, in turn.
//!
//! What a peer has not been sent when its connection ends goes to the others. While nobody is connected, messages wait for whoever comes
//! first, unless there is just one peer that the socket connects to: then they wait in its queue, and keep their order.

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
use crate::link::line::{Line, Place};
use crate::link::outbox::{self, Begun, Frame, Refused, Unsent};
use crate::link::refusal::unfit;
use crate::lock::lock;
use crate::role::Role;
use crate::{Error, ErrorKind, Result};

/// How often whoever waits until all is written looks whether what a peer has left is on its way to another.
const RETURNED: Duration = Duration::from_millis(10);

/// Who gets the next message, and what waits for somebody who can have it.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    /// The link whose turn it is, by its place.
    next: AtomicUsize,
    waiting: Mutex<Waiting>,
    /// Whether a task gives what waits to those who have room. Newcomers line up then.
    is_serving: AtomicBool,
    /// The first in line has given up.
    left: Notify,
    /// Messages that went from one peer to another.
    moved: AtomicU64,
    is_closed: AtomicBool,
}

/// Messages that wait until a peer has room.
#[derive(Debug, Default)]
struct Waiting {
    /// Those of peers that have gone. They were accepted, and go first.
    returned: VecDeque<Unsent>,
    /// Those of senders that wait. Whoever makes room is served them: no message depends on a future being polled again.
    line: Line<Unsent>,
    /// Senders that were taken out of the line and have yet to find out why.
    refused: Vec<(Place, Error)>,
}

/// What became of a message.
enum Offered {
    /// The queue of this link has it. Whoever sends is to let the writer have its turn, if it says so.
    Taken(Option<Arc<Link>>),
    /// Nobody has room for it.
    NoRoom,
    /// Nobody takes a message like this one.
    Unfit(Arc<Link>),
}

/// One who waits in line. Dropped, it gives up.
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
    /// Returns when the queue of one peer has the message; waits while none has room. Messages are accepted in the order of the calls: that in
    /// which the futures were first polled. Dropping the future has the message accepted whole or not at all.
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
                Some(Begun::Open(mut sending)) => {
                    let done = sending.finish().await;
                    return done.map_err(|refused| Self::refused_alone(hub, refused, frames));
                }
            }
            match self.offer(hub, frames) {
                Offered::Taken(None) => return Ok(()),
                Offered::Taken(Some(link)) => {
                    link.outbox.pause().await;
                    return Ok(());
                }
                Offered::Unfit(link) => return Err(hub.unfit(&link, frames)),
                Offered::NoRoom => {}
            }
        }
        let message = frames.iter().map(|frame| Borrow::<Bytes>::borrow(frame).clone()).collect();
        let place = self.waiting().line.join(message);
        let waits = InLine { balancer: self, place };
        self.serve(hub);
        // In memory of its own: most calls never wait.
        Box::pin(self.served(hub, &waits.place)).await
    }

    /// The same without waiting: [`Full`](ErrorKind::Full) if nobody has room, or others wait for it.
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
            Offered::Unfit(link) => Err(hub.unfit(&link, frames)),
            Offered::NoRoom if hub.is_dead() => Err(closed()),
            Offered::NoRoom => Err(full()),
        }
    }

    /// Begins to send over the only link of a socket that connects to one endpoint and is not bound: everything that it sends
    /// waits in that link. `None` for other sockets.
    fn begin_alone(hub: &Hub, frames: &[impl Frame]) -> Option<Begun<Arc<Link>>> {
        // The link is not cloned: other threads change its reference count, too, which would cost a cache miss for each message.
        match &hub.links()[..] {
            [link] if link.connecting && !hub.is_bound() => Some(outbox::begin(link, frames)),
            _ => None,
        }
    }

    /// Why the only link did not take a message.
    fn refused_alone(hub: &Hub, refused: Refused, frames: &[impl Frame]) -> Error {
        let link = hub.links().first().cloned();
        match (refused, link) {
            (Refused::Unfit, Some(link)) => hub.unfit(&link, frames),
            _ => closed(),
        }
    }

    /// Waits until the message is no more in line.
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

    /// Whether a message may go to this one, of so many.
    fn is_candidate(link: &Link, of: usize) -> bool {
        link.is_connected() || of == 1 && link.connecting
    }

    fn candidates(links: &[Arc<Link>]) -> impl Iterator<Item = &Arc<Link>> {
        links.iter().filter(|link| Self::is_candidate(link, links.len()) && !link.outbox.is_closed())
    }

    /// Gives the message to the next one that has room for it.
    fn offer(&self, hub: &Hub, frames: &[impl Frame]) -> Offered {
        let links = hub.links();
        let count = links.len();
        if count == 0 {
            return Offered::NoRoom;
        }
        let start = self.next.load(Ordering::Relaxed) % count;
        let (mut unfit, mut is_full) = (None, false);
        for step in 0..count {
            let place = (start + step) % count;
            let link = &links[place];
            if !Self::is_candidate(link, count) {
                continue;
            }
            match link.outbox.offer(frames) {
                Ok(pauses) => {
                    self.next.store(place + 1, Ordering::Relaxed);
                    return Offered::Taken(pauses.then(|| link.clone()));
                }
                Err(Refused::Unfit) => unfit = Some(link),
                Err(Refused::Full) => is_full = true,
                Err(Refused::Closed) => {}
            }
        }
        match unfit {
            // Others may come that take it, but whoever sends is not to wait for that.
            Some(link) if !is_full => Offered::Unfit(link.clone()),
            _ => Offered::NoRoom,
        }
    }

    /// Gives to others what waits for peers that are not there, as soon as somebody is there to have it.
    pub(crate) fn reassign(self: &Arc<Self>, hub: &Arc<Hub>) {
        let mut found = Vec::new();
        {
            let links = hub.links();
            // It has been told to disconnect, or comes again.
            let is_alone = links.len() == 1 && links[0].connecting && !links[0].stop.is_cancelled();
            if !is_alone {
                for link in links.iter().filter(|link| !link.is_connected()) {
                    found.extend(link.outbox.take_unsent());
                }
            }
        }
        if found.is_empty() && self.returned_messages() == 0 {
            return;
        }
        self.moved.fetch_add(found.len() as u64, Ordering::Relaxed);
        {
            let mut waiting = self.waiting();
            // In front of what a peer that went before has left: that was to be sent later.
            for message in found.into_iter().rev() {
                waiting.returned.push_front(message);
            }
        }
        self.serve(hub);
    }

    /// Has a task give what waits to those who have room, in its order, unless one does so already.
    fn serve(self: &Arc<Self>, hub: &Arc<Hub>) {
        {
            // Under the lock, under which that task finds that nothing waits any more.
            let _waiting = self.waiting();
            if self.is_serving.swap(true, Ordering::AcqRel) {
                return;
            }
        }
        let (balancer, hub_of_task) = (self.clone(), hub.clone());
        hub.spawn(async move {
            balancer.serve_all(&hub_of_task).await;
            // Somebody may wait for that to close the socket.
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
            // Where it is not taken there is always room for it.
            let takes = |link: &Arc<Link>| link.outbox.limits().allow(len, frames);
            let links: Vec<_> = Self::candidates(&hub.links()).filter(|link| takes(link)).cloned().collect();
            let rooms =
                links.iter().map(|link| Box::pin(link.outbox.wait_for_room(|queue| queue.is_full(len))));
            tokio::select! {
                biased;
                () = changed => {}
                () = self.left.notified() => {}
                () = any(rooms) => {}
            }
        }
    }

    /// Gives away what it can. Returns the length of the message that has to wait, and how many frames it has; `None`: nothing waits any more.
    fn serve_some(&self, hub: &Hub, served: &mut Vec<Waker>) -> Option<(usize, usize)> {
        let mut waiting = self.waiting();
        // Those before it wait for somebody who takes them.
        let mut at = 0;
        loop {
            let is_returned = at < waiting.returned.len();
            // Once the socket is closed, whoever waits in line is told so; what was accepted is still sent.
            let in_line = waiting.line.first().filter(|_| !self.is_closed());
            let Some(frames) = waiting.returned.get(at).or(in_line) else {
                self.is_serving.store(false, Ordering::Release);
                return None;
            };
            let refused = match self.offer(hub, frames) {
                // Somebody has taken it before, and may come back: a stranger that takes nothing has others lose nothing, and holds up
                // nothing that is behind it.
                Offered::Unfit(link) if is_returned && !link.connecting => {
                    at += 1;
                    continue;
                }
                Offered::NoRoom => return Some((encoded_len(frames), frames.len())),
                Offered::Taken(_) => None,
                Offered::Unfit(link) => Some(hub.unfit(&link, frames)),
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

    /// Messages that went to others because the connection of the one that was to get them ended.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Takes no more messages, and waits until all that were accepted are written, for at most so long: until then, what a peer leaves goes to
    /// others. Returns how much of that time is left.
    pub(crate) async fn finish(&self, hub: &Hub, linger: Duration) -> Duration {
        let deadline = Deadline::after(linger);
        self.is_closed.store(true, Ordering::Release);
        hub.changed.notify_waiters();
        // Where the last link has gone, nobody is left who could take what it has left.
        let _ = deadline.limit(self.written(hub, <[Arc<Link>]>::is_empty)).await;
        deadline.left()
    }

    /// Waits until all that were accepted are written, for at most so long.
    pub(crate) async fn flush(&self, hub: &Hub, limit: Duration) -> Result<()> {
        let written = self.written(hub, |_| false);
        let late = |_| {
            let links = hub.links().iter().map(|link| link.outbox.queued().messages).sum::<u64>();
            let left = links + self.returned_messages() as u64;
            Error::new(
                ErrorKind::Timeout,
                format!("{left} messages were not written to a peer within {limit:?}"),
            )
        };
        Deadline::after(limit).limit(written).await.map_err(late)
    }

    /// Waits until all that were accepted are written. What a peer has left waits for another one, unless that is `hopeless` with these links.
    async fn written(&self, hub: &Hub, hopeless: impl Fn(&[Arc<Link>]) -> bool) {
        loop {
            let mut changed = std::pin::pin!(hub.changed.notified());
            changed.as_mut().enable();
            let links: Vec<_> = hub.links().iter().cloned().collect();
            let busy = links.iter().filter(|link| link.outbox.queued().messages > 0);
            let flushes: Vec<_> = busy.map(|link| Box::pin(link.outbox.flushed())).collect();
            let returned = self.returned_messages();
            if flushes.is_empty() && (returned == 0 || hopeless(&links)) {
                return;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = any(flushes) => {}
                // Nobody tells when what was left goes to a peer that was there already and has room now.
                () = tokio::time::sleep(RETURNED), if returned > 0 => {}
            }
        }
    }

    /// Messages of peers that have gone, and that nobody else has got.
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

    /// Whether the message can be sent at all, whoever the peer is.
    fn check(hub: &Hub, frames: &[impl Frame]) -> Result<()> {
        let limits = hub.options.send_limits();
        if limits.allow(encoded_len(frames), frames.len()) {
            return Ok(());
        }
        Err(unfit(frames, limits, limits, ""))
    }
}

/// Returns when one of these does; never, if there is none.
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

/// The role of sockets that send to one peer after another.
#[derive(Debug)]
pub(crate) struct Balanced {
    socket_type: SocketType,
    balancer: Arc<Balancer>,
}

impl Balanced {
    /// The role, and what messages are sent with.
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
