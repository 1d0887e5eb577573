//! DISH: receives the datagrams of the groups that it has joined.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xmsg_zmtp::datagram::{self, Datagram};

use crate::datagrams::{self, Queue};
use crate::link::send_queue::HighWaterMark;
use crate::lock::lock;
use crate::radio::invalid_group;
use crate::{Endpoint, Error, ErrorKind, Result};

/// The maximum size of a datagram in bytes.
const DATAGRAM_MAX: usize = 65_535;
/// The pause after an error of the system, so that a permanent error takes no processor time.
const PAUSE: Duration = Duration::from_millis(100);

/// Options of a [`Dish`].
///
/// ```
/// use xmsg_zmq::{Dish, DishOptions};
/// let dish = Dish::new(DishOptions::default().receive_buffer(4 << 20));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct DishOptions {
    high_water_mark: HighWaterMark,
    receive_buffer: Option<usize>,
}

impl Default for DishOptions {
    fn default() -> Self {
        Self { high_water_mark: HighWaterMark { messages: 1_000, bytes: 8 << 20 }, receive_buffer: None }
    }
}

impl DishOptions {
    /// Sets how much may be queued for one endpoint until it is received. What exceeds this is dropped and
    /// counted. Default 1,000 messages and 8 MiB.
    pub fn high_water_mark(mut self, mark: HighWaterMark) -> Self {
        self.high_water_mark = mark;
        self
    }

    /// Sets the size of the kernel's receive buffer in bytes, which holds datagrams while the program does
    /// not run. If it is full, the kernel drops datagrams and counts them itself (`ss -uam` shows the count
    /// behind `d`). Default: the system decides.
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }
}

/// A message of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMessage {
    /// The group that it was sent to: 0 to 255 bytes.
    pub group: Bytes,
    /// The content of the message.
    pub body: Bytes,
    /// The address that it came from. It is not authenticated.
    pub from: SocketAddr,
}

/// Counts the messages for one endpoint of a [`Dish`] since it was bound.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DishStatistics {
    /// The endpoint, with its actual port.
    pub endpoint: Endpoint,
    /// Messages of groups that the socket has joined, without those that were dropped.
    pub received: u64,
    /// Messages that wait to be received.
    pub queued: usize,
    /// Messages that were dropped because the queue was at its high-water mark.
    pub dropped: u64,
    /// Messages of groups that the socket has not joined.
    pub unwanted: u64,
    /// Datagrams that are not RADIO messages.
    pub malformed: u64,
}

/// A socket that receives the messages of the groups that it has [joined](Self::join), over `udp://` (RFC
/// 48). Clones share the socket: each message is received once.
///
/// What arrives while the queue is at its high-water mark is dropped and counted. See [`Radio`](crate::Radio)
/// for an example, and for what UDP does not guarantee.
#[derive(Clone, Debug)]
pub struct Dish(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: DishOptions,
    receive_queue: Arc<ReceiveQueue>,
    bound: Mutex<Vec<Bound>>,
    /// Ends all tasks.
    ending: CancellationToken,
}

/// One endpoint, and the task that receives what arrives there.
#[derive(Debug)]
struct Bound {
    source: Arc<Source>,
    ending: CancellationToken,
    task: JoinHandle<()>,
}

/// The state that is shared with the tasks.
#[derive(Debug, Default)]
struct ReceiveQueue {
    groups: Mutex<HashSet<Bytes>>,
    sources: Mutex<Sources>,
    /// Notified when there is something to receive, or nothing more will come.
    changed: Notify,
}

/// The endpoints that are bound, or were bound and have messages left.
#[derive(Debug, Default)]
struct Sources {
    all: Vec<Arc<Source>>,
    /// The index of the endpoint that was served last.
    turn: usize,
    is_closed: bool,
}

/// What arrived at one endpoint.
#[derive(Debug)]
struct Source {
    endpoint: Endpoint,
    queue: Mutex<Queue<GroupMessage>>,
    is_bound: AtomicBool,
    received: AtomicU64,
    dropped: AtomicU64,
    unwanted: AtomicU64,
    malformed: AtomicU64,
}

impl Dish {
    /// Creates a socket without endpoints and groups.
    #[must_use]
    pub fn new(options: DishOptions) -> Self {
        let ending = CancellationToken::new();
        Self(Arc::new(Shared { options, receive_queue: Arc::default(), bound: Mutex::default(), ending }))
    }

    /// Receives what is sent to this endpoint, too. Returns the endpoint with its actual port. Other sockets
    /// of the host may receive from the same multicast address; any other endpoint belongs to this socket
    /// alone.
    ///
    /// # Errors
    ///
    /// The endpoint cannot be bound, or is not `udp://`. [`Closed`](ErrorKind::Closed) if the socket is
    /// closed.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        if self.0.ending.is_cancelled() {
            return Err(closed());
        }
        let (socket, endpoint) = datagrams::receiver(endpoint, self.0.options.receive_buffer).await?;
        let mut bound = lock(&self.0.bound);
        // The socket may have been closed meanwhile.
        if self.0.ending.is_cancelled() {
            return Err(closed());
        }
        let source = Arc::new(Source::new(endpoint.clone(), self.0.options.high_water_mark));
        lock(&self.0.receive_queue.sources).all.push(source.clone());
        let ending = self.0.ending.child_token();
        let task = {
            let (receive_queue, source, ending) =
                (self.0.receive_queue.clone(), source.clone(), ending.clone());
            tokio::spawn(async move {
                ending.run_until_cancelled(receive_queue.receive_all(&source, &socket)).await;
                source.is_bound.store(false, Ordering::Relaxed);
            })
        };
        bound.push(Bound { source, ending, task });
        Ok(endpoint)
    }

    /// Stops receiving at this endpoint, which is given with its actual port and is free when this returns.
    /// What has arrived can still be received. Returns whether the socket was bound to it.
    pub async fn unbind(&self, endpoint: &Endpoint) -> bool {
        let found = {
            let mut bound = lock(&self.0.bound);
            bound.iter().position(|bound| bound.source.endpoint == *endpoint).map(|index| bound.remove(index))
        };
        let Some(bound) = found else { return false };
        bound.end().await;
        true
    }

    /// Receives the messages of this group from now on.
    ///
    /// # Errors
    ///
    /// [`InvalidTopic`](ErrorKind::InvalidTopic) if the group is invalid or was joined already.
    pub fn join(&self, group: impl AsRef<[u8]>) -> Result<()> {
        let group = group.as_ref();
        datagram::check_group(group).map_err(|error| invalid_group(group, error))?;
        let mut groups = lock(&self.0.receive_queue.groups);
        if groups.insert(Bytes::copy_from_slice(group)) {
            return Ok(());
        }
        let what = format!("the socket has joined the group \"{}\" already", group.escape_ascii());
        Err(Error::new(ErrorKind::InvalidTopic, what))
    }

    /// Stops receiving the messages of this group. Those that have arrived already can still be received.
    ///
    /// # Errors
    ///
    /// [`InvalidTopic`](ErrorKind::InvalidTopic) if the group was not joined.
    pub fn leave(&self, group: impl AsRef<[u8]>) -> Result<()> {
        let group = group.as_ref();
        let mut groups = lock(&self.0.receive_queue.groups);
        if groups.remove(group) {
            return Ok(());
        }
        let shown = group[..group.len().min(datagram::GROUP_MAX)].escape_ascii();
        Err(Error::new(ErrorKind::InvalidTopic, format!("the socket has not joined the group \"{shown}\"")))
    }

    /// Receives the next message, from the endpoints in round robin. Returns `None` once the socket is closed
    /// and everything received was taken. Cancel safe.
    pub async fn recv(&self) -> Option<GroupMessage> {
        let receive_queue = &self.0.receive_queue;
        loop {
            let changed = receive_queue.changed.notified();
            tokio::pin!(changed);
            // From here on, no notification is missed.
            changed.as_mut().enable();
            match receive_queue.take() {
                Ok(None) => changed.await,
                Ok(message) => return message,
                Err(_) => return None,
            }
        }
    }

    /// Receives the next message if there is one already.
    ///
    /// # Errors
    ///
    /// [`Closed`](ErrorKind::Closed) once the socket is closed and everything received was taken.
    pub fn try_recv(&self) -> Result<Option<GroupMessage>> {
        self.0.receive_queue.take()
    }

    /// Returns the messages as a stream, which ends when the socket is closed.
    #[must_use]
    pub fn into_stream(self) -> Pin<Box<dyn futures::Stream<Item = GroupMessage> + Send>> {
        Box::pin(futures::stream::unfold(self, async |dish| dish.recv().await.map(|message| (message, dish))))
    }

    /// Returns the statistics of each endpoint.
    #[must_use]
    pub fn statistics(&self) -> Vec<DishStatistics> {
        let bound = lock(&self.0.bound);
        bound.iter().map(|bound| bound.source.statistics()).collect()
    }

    /// Stops receiving. All endpoints are free when this returns; what has arrived can still be received.
    pub async fn close(&self) {
        let bound = {
            // A concurrent `bind` either comes before this, or finds the socket closed.
            let mut bound = lock(&self.0.bound);
            self.0.ending.cancel();
            std::mem::take(&mut *bound)
        };
        // Receivers are notified even if this future is dropped meanwhile.
        let _closing = Closing(&self.0.receive_queue);
        for bound in bound {
            bound.end().await;
        }
    }
}

/// Closes the receive queue when it is dropped.
struct Closing<'a>(&'a ReceiveQueue);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        lock(&self.0.sources).is_closed = true;
        self.0.changed.notify_waiters();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

impl Bound {
    /// Returns once the endpoint is free.
    async fn end(self) {
        self.ending.cancel();
        // A task that panicked has freed it as well.
        drop(self.task.await);
    }
}

impl ReceiveQueue {
    /// Receives what arrives at one endpoint, for ever.
    async fn receive_all(&self, source: &Source, socket: &UdpSocket) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((len, from)) => self.receive(source, &buffer[..len], from),
                Err(error) => {
                    tracing::warn!(endpoint = %source.endpoint, %error, "cannot receive datagrams: trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn receive(&self, source: &Source, datagram: &[u8], from: SocketAddr) {
        let Ok(Datagram { group, body }) = Datagram::decode(datagram) else {
            source.malformed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let group = lock(&self.groups).get(group).cloned();
        let Some(group) = group else {
            source.unwanted.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let message = GroupMessage { group, body: Bytes::copy_from_slice(body), from };
        // The memory of the message structure counts, too.
        let bytes = size_of::<GroupMessage>() + body.len();
        if lock(&source.queue).push(message, bytes) {
            source.received.fetch_add(1, Ordering::Relaxed);
            self.changed.notify_one();
        } else {
            source.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the next message of the endpoints in round robin.
    fn take(&self) -> Result<Option<GroupMessage>> {
        let mut sources = lock(&self.sources);
        let Sources { all, turn, is_closed } = &mut *sources;
        // Endpoints that are not bound any more are removed once nothing of them is queued.
        all.retain(|source| source.is_bound.load(Ordering::Relaxed) || lock(&source.queue).len() > 0);
        for _ in 0..all.len() {
            *turn = (*turn + 1) % all.len();
            if let Some(message) = lock(&all[*turn].queue).pop() {
                return Ok(Some(message));
            }
        }
        if *is_closed { Err(closed()) } else { Ok(None) }
    }
}

impl Source {
    fn new(endpoint: Endpoint, mark: HighWaterMark) -> Self {
        Self {
            endpoint,
            queue: Mutex::new(Queue::new(mark)),
            is_bound: AtomicBool::new(true),
            received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            unwanted: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
        }
    }

    fn statistics(&self) -> DishStatistics {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DishStatistics {
            endpoint: self.endpoint.clone(),
            received: number(&self.received),
            queued: lock(&self.queue).len(),
            dropped: number(&self.dropped),
            unwanted: number(&self.unwanted),
            malformed: number(&self.malformed),
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the DISH socket is closed")
}
