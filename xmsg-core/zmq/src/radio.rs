//! RADIO: sends datagrams to groups of listeners.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xmsg_zmtp::datagram;

use crate::datagrams::{self, LIBZMQ_MAX, Multicast, Queue};
use crate::deadline::Deadline;
use crate::link::send_queue::HighWaterMark;
use crate::lock::lock;
use crate::{Endpoint, Error, ErrorKind, Result};

/// Options of a [`Radio`].
///
/// ```
/// use xmsg_zmq::{Radio, RadioOptions};
/// let radio = Radio::new(RadioOptions::default().max_datagram(1_400).multicast_hops(4));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RadioOptions {
    high_water_mark: HighWaterMark,
    max_datagram: usize,
    linger: Duration,
    multicast: Multicast,
    send_buffer: Option<usize>,
}

impl Default for RadioOptions {
    fn default() -> Self {
        Self {
            high_water_mark: HighWaterMark { messages: 1_000, bytes: 8 << 20 },
            max_datagram: LIBZMQ_MAX,
            linger: Duration::from_secs(5),
            multicast: Multicast { is_looped_back: true, hops: 1 },
            send_buffer: None,
        }
    }
}

impl RadioOptions {
    /// Sets how much may be queued for one endpoint. What exceeds this is dropped and counted. Default 1,000
    /// messages and 8 MiB.
    pub fn high_water_mark(mut self, mark: HighWaterMark) -> Self {
        self.high_water_mark = mark;
        self
    }

    /// Sets the maximum size of a datagram in bytes, which is the group, the message and one more byte.
    /// Default 8,192, which is all that libzmq receives. UDP over IPv4 allows 65,507. A datagram that is
    /// larger than the packets of a network (about 1,400 bytes) is lost completely if one of its packets is
    /// lost.
    pub fn max_datagram(mut self, bytes: usize) -> Self {
        self.max_datagram = bytes;
        self
    }

    /// Sets for how long queued messages are still sent after the last clone of the socket was dropped.
    /// Default 5 s.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Sets whether listeners on this host receive what is sent to a multicast address, too. Default `true`.
    pub fn multicast_loop(mut self, is_looped_back: bool) -> Self {
        self.multicast.is_looped_back = is_looped_back;
        self
    }

    /// Sets how many networks a multicast datagram may cross, 0 to 255. Default 1, which means the local
    /// network only.
    pub fn multicast_hops(mut self, hops: u8) -> Self {
        self.multicast.hops = hops.into();
        self
    }

    /// Sets the size of the kernel's send buffer in bytes. Default: the system decides.
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = Some(bytes);
        self
    }
}

/// A socket that sends each message to one group, over `udp://`, to every endpoint that it is connected to
/// (RFC 48). Sockets that are bound there and have [joined](crate::Dish::join) the group receive it. Clones
/// share the socket.
///
/// Sending never waits: a message for which there is no room is dropped and counted. With UDP, messages may
/// be lost, duplicated or reordered on their way without any notice. There is no security: any host that can
/// send to the endpoint can send any message.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use std::time::Duration;
/// use xmsg_zmq::{Dish, DishOptions, Radio, RadioOptions};
/// let dish = Dish::new(DishOptions::default());
/// let endpoint = dish.bind(&"udp://127.0.0.1:0".parse()?).await?;
/// dish.join("weather")?;
///
/// let radio = Radio::new(RadioOptions::default());
/// radio.connect(&endpoint).await?;
/// radio.send("traffic", "a jam on the A3")?; // nobody has joined this group
/// radio.send("weather", "12.5 °C")?;
/// let message = dish.recv().await.unwrap();
/// assert_eq!((&message.group[..], &message.body[..]), (&b"weather"[..], "12.5 °C".as_bytes()));
/// assert_eq!(radio.close(Duration::from_secs(1)).await, 0, "nothing is left");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Radio(Arc<Shared>);

/// Counts the messages for one endpoint of a [`Radio`] since it was connected.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RadioStatistics {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Messages that were passed to the system.
    pub sent: u64,
    /// Messages that wait to be passed to the system.
    pub queued: usize,
    /// Messages that were dropped because the queue was at its high-water mark.
    pub dropped: u64,
    /// Messages that the system refused; see [`last_error`](Self::last_error).
    pub failed: u64,
    /// How often the other host has reported that no socket is bound there. This is never reported for a
    /// multicast address.
    pub refused: u64,
    /// The last error of the system, if it has refused a message.
    pub last_error: Option<String>,
}

#[derive(Debug)]
struct Shared {
    options: RadioOptions,
    /// `None` once the socket is closed.
    targets: Mutex<Option<Vec<Sending>>>,
}

/// One endpoint, and the task that sends to it.
#[derive(Debug)]
struct Sending {
    target: Arc<Target>,
    task: JoinHandle<()>,
}

/// One endpoint, and what is sent to it.
#[derive(Debug)]
struct Target {
    endpoint: Endpoint,
    waiting: Mutex<Waiting>,
    /// Notified when there is something to send, or no more will come.
    changed: Notify,
    ending: CancellationToken,
    sent: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    last_error: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Waiting {
    queue: Queue<Bytes>,
    /// Whether a message is being passed to the system.
    is_sending: bool,
    /// Set when no more messages are accepted. Queued messages are sent until then.
    end: Option<Deadline>,
}

impl Radio {
    /// Creates a socket without endpoints.
    #[must_use]
    pub fn new(options: RadioOptions) -> Self {
        Self(Arc::new(Shared { options, targets: Mutex::new(Some(Vec::new())) }))
    }

    /// Sends all messages from now on to this endpoint, too. Its name is looked up once, in this call.
    ///
    /// # Errors
    ///
    /// The endpoint is not `udp://`, or its network cannot be reached from this host. That no socket is bound
    /// there is not an error. [`Closed`](ErrorKind::Closed) if the socket is closed.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<()> {
        let options = &self.0.options;
        let socket = datagrams::sender(endpoint, options.multicast, options.send_buffer).await?;
        let mut targets = lock(&self.0.targets);
        let targets = targets.as_mut().ok_or_else(closed)?;
        let target = Arc::new(Target::new(endpoint.clone(), options.high_water_mark));
        let sending = target.clone();
        let task = tokio::spawn(async move { sending.send_all(&socket).await });
        targets.push(Sending { target, task });
        Ok(())
    }

    /// Stops sending to this endpoint. What is queued for it is sent within the time of
    /// [`linger`](RadioOptions::linger). Returns whether the socket was connected to it.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn disconnect(&self, endpoint: &Endpoint) -> bool {
        let mut targets = lock(&self.0.targets);
        let Some(targets) = targets.as_mut() else { return false };
        let before = targets.len();
        targets.retain(|Sending { target, .. }| {
            let stays = target.endpoint != *endpoint;
            if !stays {
                target.end_by(Deadline::after(self.0.options.linger));
            }
            stays
        });
        targets.len() < before
    }

    /// Sends a message to a group, without waiting. Returns the number of endpoints that it is queued for.
    /// Endpoints without room for it drop and count it.
    ///
    /// # Errors
    ///
    /// - [`InvalidTopic`](ErrorKind::InvalidTopic): the group is longer than 255 bytes or contains a zero
    ///   byte.
    /// - [`TooLarge`](ErrorKind::TooLarge): the message does not fit into a datagram.
    /// - [`Closed`](ErrorKind::Closed): the socket is closed.
    pub fn send(&self, group: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Result<usize> {
        let (group, body) = (group.as_ref(), body.as_ref());
        let (size, limit) = (1 + group.len() + body.len(), self.0.options.max_datagram);
        // If the group is invalid, `encode` returns the error.
        if size > limit && datagram::check_group(group).is_ok() {
            let what = format!(
                "a message of {} bytes for a group of {} bytes does not fit into a datagram of {limit} bytes \
                 (max_datagram)",
                body.len(),
                group.len()
            );
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        let bytes = datagram::encode(group, body).map_err(|error| invalid_group(group, error))?;
        let targets = lock(&self.0.targets);
        let targets = targets.as_ref().ok_or_else(closed)?;
        Ok(targets.iter().filter(|sending| sending.target.push(&bytes)).count())
    }

    /// Returns the statistics of each endpoint.
    #[must_use]
    pub fn statistics(&self) -> Vec<RadioStatistics> {
        lock(&self.0.targets).iter().flatten().map(|sending| sending.target.statistics()).collect()
    }

    /// Accepts no more messages, and sends what was accepted for at most `linger`. Returns how many messages
    /// were not sent.
    pub async fn close(&self, linger: Duration) -> usize {
        let end = Deadline::after(linger);
        let mut unsent = 0;
        for Sending { target, mut task } in self.0.close(end) {
            if end.limit(&mut task).await.is_err() {
                // A message that is counted as not sent must not be sent later.
                task.abort();
                drop(task.await);
            }
            unsent += target.unsent();
        }
        unsent
    }
}

impl Shared {
    /// Accepts no more messages, and sends what is queued until `end`.
    fn close(&self, end: Deadline) -> Vec<Sending> {
        let targets = lock(&self.targets).take().unwrap_or_default();
        for Sending { target, .. } in &targets {
            target.end_by(end);
        }
        targets
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close(Deadline::after(self.options.linger));
    }
}

impl Target {
    fn new(endpoint: Endpoint, mark: HighWaterMark) -> Self {
        Self {
            endpoint,
            waiting: Mutex::new(Waiting { queue: Queue::new(mark), is_sending: false, end: None }),
            ending: CancellationToken::new(),
            changed: Notify::new(),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }

    /// Queues a message. Returns whether there was room.
    fn push(&self, datagram: &Bytes) -> bool {
        let has_room = lock(&self.waiting).queue.push(datagram.clone(), datagram.len());
        if has_room {
            self.changed.notify_one();
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    fn end_by(&self, end: Deadline) {
        lock(&self.waiting).end = Some(end);
        self.changed.notify_one();
        self.ending.cancel();
    }

    /// Sends queued messages until all are sent or the end has come.
    async fn send_all(&self, socket: &UdpSocket) {
        let each = async {
            loop {
                tokio::select! {
                    biased;
                    next = self.next() => match next {
                        Some(datagram) => self.send(socket, &datagram).await,
                        None => return,
                    },
                    () = refusal(socket) => {
                        self.refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = each => {}
            () = self.end_has_come() => {}
        }
    }

    /// Returns the next message to send, or `None` when all are sent and no more are accepted.
    async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut waiting = lock(&self.waiting);
                let next = waiting.queue.pop();
                waiting.is_sending = next.is_some();
                if next.is_some() || waiting.end.is_some() {
                    return next;
                }
            }
            self.changed.notified().await;
        }
    }

    async fn end_has_come(&self) {
        self.ending.cancelled().await;
        let end = lock(&self.waiting).end;
        if let Some(end) = end {
            end.passed().await;
        }
    }

    async fn send(&self, socket: &UdpSocket, datagram: &[u8]) {
        let result = match socket.send(datagram).await {
            // This error is the answer to an earlier datagram. It is returned instead of sending this one.
            Err(error) if Error::kind_of(&error) == ErrorKind::Refused => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                socket.send(datagram).await
            }
            result => result,
        };
        match result {
            Ok(_) => {
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(endpoint = %self.endpoint, %error, "a datagram was not sent");
                *lock(&self.last_error) = Some(error.to_string());
            }
        }
        lock(&self.waiting).is_sending = false;
    }

    /// Returns the number of messages that are not sent yet.
    fn unsent(&self) -> usize {
        let waiting = lock(&self.waiting);
        waiting.queue.len() + usize::from(waiting.is_sending)
    }

    fn statistics(&self) -> RadioStatistics {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RadioStatistics {
            endpoint: self.endpoint.clone(),
            sent: number(&self.sent),
            queued: self.unsent(),
            dropped: number(&self.dropped),
            failed: number(&self.failed),
            refused: number(&self.refused),
            last_error: lock(&self.last_error).clone(),
        }
    }
}

/// The error for an invalid group.
pub(crate) fn invalid_group(group: &[u8], error: datagram::Malformed) -> Error {
    let shown = group[..group.len().min(32)].escape_ascii();
    Error::new(ErrorKind::InvalidTopic, format!("the group \"{shown}\" is not allowed: {error}"))
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the RADIO socket is closed")
}

/// Waits until the other host reports that no socket is bound there.
async fn refusal(socket: &UdpSocket) {
    let said = socket.async_io(tokio::io::Interest::ERROR, || match socket.take_error() {
        Ok(Some(error)) => Ok(error),
        _ => Err(std::io::ErrorKind::WouldBlock.into()),
    });
    if !said.await.is_ok_and(|error| Error::kind_of(&error) == ErrorKind::Refused) {
        // Any other error is reported again when the next datagram is sent.
        std::future::pending::<()>().await;
    }
}
