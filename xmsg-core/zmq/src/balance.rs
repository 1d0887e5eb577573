//! Sending to one peer after another, as PUSH and DEALER do (RFC 30, RFC 28): each message goes to one of those that are connected and have
//! room, in turn.
//!
//! What a peer has not been sent when its connection ends goes to the others. While nobody is connected, messages wait for whoever comes
//! first, unless there is just one peer that the socket connects to: then they wait in its queue, and keep their order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::select_all;
use tokio::sync::Semaphore;
use xmsg_zmtp::{SocketType, encoded_len};

use crate::deadline::Deadline;
use crate::hub::Hub;
use crate::link::Link;
use crate::link::outbox::{Frame, Refused, Unsent};
use crate::link::refusal::unfit;
use crate::role::Role;
use crate::{Error, ErrorKind, Result};

/// Who gets the next message, and what waits for somebody who can have it.
#[derive(Debug)]
pub(crate) struct Balancer {
    /// The link whose turn it is, by its place.
    next: AtomicUsize,
    /// Whoever waits for room holds it; others line up behind.
    turn: Semaphore,
    /// How many wait for the turn, or hold it.
    waiting: AtomicUsize,
    returned: Mutex<Returned>,
    /// Messages that went from one peer to another.
    moved: AtomicU64,
    is_closed: AtomicBool,
}

impl Default for Balancer {
    fn default() -> Self {
        Self {
            next: AtomicUsize::new(0),
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            returned: Mutex::default(),
            moved: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        }
    }
}

/// Messages of peers that have gone, for others.
#[derive(Debug, Default)]
struct Returned {
    messages: VecDeque<Unsent>,
    /// Whether a task gives them to others, and may have one in its hand.
    is_in_hand: bool,
}

impl Returned {
    fn is_empty(&self) -> bool {
        self.messages.is_empty() && !self.is_in_hand
    }
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

/// One who waits, for as long as it does.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Balancer {
    /// Returns when the queue of one peer has the message; waits while none has room. Messages are accepted in the order of the calls: that in
    /// which the futures were first polled. Dropping the future has the message accepted whole or not at all.
    pub(crate) async fn send(&self, hub: &Hub, frames: &[impl Frame]) -> Result<()> {
        Self::check(hub, frames)?;
        if self.waiting.load(Ordering::Relaxed) == 0 && !self.is_closed() {
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
        let _waits = Waits::new(&self.waiting);
        let Ok(_turn) = self.turn.acquire().await else { return Err(closed()) };
        // In memory of its own: most calls never wait.
        Box::pin(self.place(hub, frames, || self.is_closed())).await
    }

    /// The same without waiting: [`Full`](ErrorKind::Full) if nobody has room, or others wait for it.
    pub(crate) fn try_send(&self, hub: &Hub, frames: &[impl Frame]) -> Result<()> {
        Self::check(hub, frames)?;
        if self.is_closed() {
            return Err(closed());
        }
        if self.waiting.load(Ordering::Relaxed) > 0 {
            return Err(full());
        }
        match self.offer(hub, frames) {
            Offered::Taken(_) => Ok(()),
            Offered::Unfit(link) => Err(hub.unfit(&link, frames)),
            Offered::NoRoom => Err(full()),
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
        let mut unfit = None;
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
                Err(Refused::Full | Refused::Closed) => {}
            }
        }
        match unfit {
            // Others may come that take it, but whoever sends is not to wait for that.
            Some(link) => Offered::Unfit(link.clone()),
            None => Offered::NoRoom,
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
        if found.is_empty() {
            return;
        }
        self.moved.fetch_add(found.len() as u64, Ordering::Relaxed);
        {
            let mut returned = self.returned();
            // In front of what a peer that went before has left: that was to be sent later.
            for message in found.into_iter().rev() {
                returned.messages.push_front(message);
            }
            if std::mem::replace(&mut returned.is_in_hand, true) {
                return;
            }
        }
        let (balancer, hub_of_task) = (self.clone(), hub.clone());
        hub.spawn(async move { balancer.give_back(&hub_of_task).await });
    }

    /// Gives all that was returned to those who have room, before anybody else gets to send.
    async fn give_back(&self, hub: &Hub) {
        let _waits = Waits::new(&self.waiting);
        let Ok(_turn) = self.turn.acquire().await else { return };
        loop {
            let message = {
                let mut returned = self.returned();
                let Some(message) = returned.messages.pop_front() else {
                    returned.is_in_hand = false;
                    break;
                };
                message
            };
            let mut kept = Kept { balancer: self, message: Some(message) };
            let Some(frames) = &kept.message else { break };
            if let Err(error) = self.place(hub, frames, || false).await {
                hub.drop_unsent(frames, &error);
            }
            kept.message = None;
        }
        // Somebody may wait for that to close the socket.
        hub.changed.notify_waiters();
    }

    /// Waits until somebody has room for the message, and gives it to it. [`Closed`](ErrorKind::Closed) once `ends` says so.
    async fn place(&self, hub: &Hub, frames: &[impl Frame], ends: impl Fn() -> bool) -> Result<()> {
        let len = encoded_len(frames);
        loop {
            let mut changed = std::pin::pin!(hub.changed.notified());
            changed.as_mut().enable();
            if ends() || hub.is_dead() {
                return Err(closed());
            }
            match self.offer(hub, frames) {
                Offered::Taken(_) => return Ok(()),
                Offered::Unfit(link) => return Err(hub.unfit(&link, frames)),
                Offered::NoRoom => {}
            }
            let links: Vec<_> = Self::candidates(&hub.links()).cloned().collect();
            let rooms =
                links.iter().map(|link| Box::pin(link.outbox.wait_for_room(|queue| queue.is_full(len))));
            tokio::select! {
                biased;
                () = changed => {}
                () = any(rooms) => {}
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
        let written = async {
            loop {
                let mut changed = std::pin::pin!(hub.changed.notified());
                changed.as_mut().enable();
                let links: Vec<_> = hub.links().iter().cloned().collect();
                let busy = links.iter().filter(|link| link.outbox.queued().messages > 0);
                let flushes: Vec<_> = busy.map(|link| Box::pin(link.outbox.flushed())).collect();
                if flushes.is_empty() && (self.returned().is_empty() || links.is_empty()) {
                    return;
                }
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = any(flushes) => {}
                }
            }
        };
        let _ = deadline.limit(written).await;
        self.turn.close();
        deadline.left()
    }

    /// Messages of peers that have gone, and that nobody else has got.
    pub(crate) fn returned_messages(&self) -> usize {
        self.returned().messages.len()
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn returned(&self) -> MutexGuard<'_, Returned> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A message on its way to another peer. If the task that gives it back is ended, it is still there.
struct Kept<'a> {
    balancer: &'a Balancer,
    message: Option<Unsent>,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.balancer.returned().messages.push_front(message);
        }
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
}
