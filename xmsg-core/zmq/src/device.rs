//! Devices, which forward what one socket receives to another one, in both directions. They correspond to
//! `zmq_proxy` and `zmq_proxy_steerable` of libzmq.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmsg_zmtp::encoded_len;

use crate::{Dealer, Error, ErrorKind, Multipart, Pair, Publisher, Pull, Push, Result, Router, XPub, XSub};

/// A socket that can be one side of a [`Device`]. Socket types outside this crate cannot.
pub trait DeviceSocket: sealed::Sealed + Clone + Send + Sync + 'static {
    /// Receives the next message for the other side. Returns `None` when nothing more will come. A message of
    /// a ROUTER has the identity of its peer in front. A subscription at an XPUB is a message that begins
    /// with a byte 1, and its end is one that begins with 0.
    #[doc(hidden)]
    fn take(&self) -> impl Future<Output = Option<Multipart>> + Send;

    /// Sends a message of the form that [`take`](Self::take) returns.
    #[doc(hidden)]
    fn give(&self, message: Multipart) -> impl Future<Output = Result<()>> + Send;
}

mod sealed {
    pub trait Sealed {}
}

/// Implements the trait for sockets whose messages are passed on unchanged.
macro_rules! device_sockets {
    ($($socket:ident($this:ident, $message:ident): $take:expr, $give:expr;)+) => {$(
        impl sealed::Sealed for $socket {}

        impl DeviceSocket for $socket {
            async fn take(&self) -> Option<Multipart> {
                let $this = self;
                $take
            }

            async fn give(&self, $message: Multipart) -> Result<()> {
                let $this = self;
                $give
            }
        }
    )+};
}

device_sockets! {
    Pair(socket, message): socket.recv().await, socket.send(message).await;
    Dealer(socket, message): socket.recv().await, socket.send(message).await;
    Pull(socket, _message): socket.recv().await, nothing_goes(socket);
    Push(socket, message): nothing_comes(socket).await, socket.send(message).await;
    Publisher(socket, message): nothing_comes(socket).await, socket.publish(message).await;
}

/// Receives for a socket that only sends.
async fn nothing_comes(_: &impl DeviceSocket) -> Option<Multipart> {
    std::future::pending().await
}

/// Sends for a socket that only receives.
fn nothing_goes(_: &impl DeviceSocket) -> Result<()> {
    Err(Error::new(ErrorKind::InvalidMessage, "this socket only receives"))
}

impl sealed::Sealed for Router {}

impl DeviceSocket for Router {
    async fn take(&self) -> Option<Multipart> {
        let (identity, message) = self.recv().await?;
        Some(std::iter::once(identity).chain(message.frames().iter().cloned()).collect())
    }

    /// Does not wait, since one peer that does not read must not stop all others.
    async fn give(&self, message: Multipart) -> Result<()> {
        let Some((identity, rest)) = message.frames().split_first() else {
            return Err(Error::new(
                ErrorKind::InvalidMessage,
                "a message without frames has no identity in front",
            ));
        };
        self.try_send(identity, rest.iter().cloned().collect::<Multipart>())
    }
}

impl sealed::Sealed for XPub {}

impl DeviceSocket for XPub {
    async fn take(&self) -> Option<Multipart> {
        self.recv_raw().await
    }

    async fn give(&self, message: Multipart) -> Result<()> {
        self.publish(message).await
    }
}

impl sealed::Sealed for XSub {}

impl DeviceSocket for XSub {
    async fn take(&self) -> Option<Multipart> {
        self.recv().await
    }

    async fn give(&self, message: Multipart) -> Result<()> {
        match message.frames() {
            [frame] if matches!(frame.first(), Some(0 | 1)) => {
                self.subscribe_for_others(&frame.slice(1..), frame[0] == 1)
            }
            _ => self.send(message).await,
        }
    }
}

/// What went through a device in one direction since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceTraffic {
    /// The number of messages that the other side has accepted.
    pub messages: u64,
    /// Their size on the wire in bytes.
    pub bytes: u64,
    /// The number of messages that the other side did not accept. They exceed a limit, or are for a peer of a
    /// ROUTER that is gone or does not read.
    pub dropped: u64,
}

/// What went through a device since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatistics {
    /// Messages from the frontend to the backend.
    pub forward: DeviceTraffic,
    /// Messages from the backend to the frontend.
    pub backward: DeviceTraffic,
}

/// A running device. Dropping it ends it.
///
/// | device | frontend | backend |
/// |---|---|---|
/// | forwarder | [`XSub`], for publishers | [`XPub`], for subscribers |
/// | queue | [`Router`], for clients | [`Dealer`], for workers |
/// | streamer | [`Pull`], for ventilators | [`Push`], for workers |
///
/// Other pairs of sockets work as well. If one side is full, the device stops receiving from the other, so
/// nothing is lost between them. The sockets are clones of yours: bind and connect them before or after, and
/// close them when the device has ended.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use std::time::Duration;
/// use xmsg_zmq::{Device, Endpoint, Pull, Push, SocketOptions};
/// let anywhere: Endpoint = "tcp://127.0.0.1:0".parse()?;
/// let (frontend, backend) = (Pull::new(SocketOptions::default()), Push::new(SocketOptions::default()));
/// let (tasks_in, tasks_out) = (frontend.bind(&anywhere).await?, backend.bind(&anywhere).await?);
/// let streamer = Device::start(&frontend, &backend);
///
/// let (ventilator, worker) = (Push::new(SocketOptions::default()), Pull::new(SocketOptions::default()));
/// ventilator.connect(tasks_in);
/// worker.connect(tasks_out);
/// ventilator.send(["a task"]).await?;
/// assert_eq!(worker.recv().await.unwrap().frames(), ["a task"]);
/// assert_eq!(streamer.stop(Duration::from_secs(1)).await.forward.messages, 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Device {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Shared {
    forward: Counts,
    backward: Counts,
    is_paused: watch::Sender<bool>,
    /// Ends receiving.
    stop: CancellationToken,
    /// Also gives up messages that were received and not passed on yet.
    abort: CancellationToken,
}

#[derive(Debug, Default)]
struct Counts {
    messages: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    fn get(&self) -> DeviceTraffic {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        DeviceTraffic { messages: get(&self.messages), bytes: get(&self.bytes), dropped: get(&self.dropped) }
    }
}

/// The type of the capture socket of a device without one.
type NoCapture = Publisher;

impl Device {
    /// Starts a device between two sockets.
    pub fn start(frontend: &impl DeviceSocket, backend: &impl DeviceSocket) -> Self {
        Self::start_tasks(frontend, backend, None::<&NoCapture>)
    }

    /// Starts a device that sends a copy of each message of both directions to a third socket: a
    /// [`Publisher`], [`Push`], [`Dealer`] or [`Pair`]. If that socket is full, the device waits.
    pub fn start_with_capture(
        frontend: &impl DeviceSocket,
        backend: &impl DeviceSocket,
        capture: &impl DeviceSocket,
    ) -> Self {
        Self::start_tasks(frontend, backend, Some(capture))
    }

    fn start_tasks(
        frontend: &impl DeviceSocket,
        backend: &impl DeviceSocket,
        capture: Option<&impl DeviceSocket>,
    ) -> Self {
        let shared = Arc::new(Shared {
            forward: Counts::default(),
            backward: Counts::default(),
            is_paused: watch::Sender::new(false),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(relay(frontend.clone(), backend.clone(), capture.cloned(), shared.clone(), |shared| {
            &shared.forward
        }));
        tasks.spawn(relay(backend.clone(), frontend.clone(), capture.cloned(), shared.clone(), |shared| {
            &shared.backward
        }));
        tasks.close();
        Self { shared, tasks }
    }

    /// Stops receiving until [`resume`](Self::resume). Messages then wait in the sockets, and after that at
    /// their senders.
    pub fn pause(&self) {
        self.shared.is_paused.send_replace(true);
    }

    /// Resumes receiving after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.shared.is_paused.send_replace(false);
    }

    /// Returns the statistics so far.
    #[must_use]
    pub fn statistics(&self) -> DeviceStatistics {
        DeviceStatistics { forward: self.shared.forward.get(), backward: self.shared.backward.get() }
    }

    /// Waits until the device ends because its sockets were closed.
    pub async fn ended(&self) {
        self.tasks.wait().await;
    }

    /// Stops receiving, passes on what was received for at most `linger`, and ends. Messages that the other
    /// side did not accept in time count as dropped.
    pub async fn stop(self, linger: Duration) -> DeviceStatistics {
        self.shared.stop.cancel();
        if tokio::time::timeout(linger, self.tasks.wait()).await.is_err() {
            self.shared.abort.cancel();
            self.tasks.wait().await;
        }
        self.statistics()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.abort.cancel();
    }
}

/// Forwards messages in one direction.
async fn relay(
    from: impl DeviceSocket,
    to: impl DeviceSocket,
    capture: Option<impl DeviceSocket>,
    shared: Arc<Shared>,
    counts: fn(&Shared) -> &Counts,
) {
    let mut paused = shared.is_paused.subscribe();
    let counts = counts(&shared);
    loop {
        let next = async {
            loop {
                // This fails only if the sender is gone, which is held here.
                let _ = paused.wait_for(|is_paused| !is_paused).await;
                tokio::select! {
                    biased;
                    _ = paused.changed() => {}
                    message = from.take() => return message,
                }
            }
        };
        let message = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            message = next => message,
        };
        let Some(message) = message else { return };
        let bytes = encoded_len(message.frames()) as u64;
        let given = async {
            if let Some(capture) = &capture {
                // An error of the capture socket must not affect the device.
                let _ = capture.give(message.clone()).await;
            }
            to.give(message).await
        };
        let given = tokio::select! {
            biased;
            given = given => given.map_err(|error| error.kind()),
            () = shared.abort.cancelled() => Err(ErrorKind::Timeout),
        };
        match given {
            Ok(()) => {
                counts.messages.fetch_add(1, Ordering::Relaxed);
                counts.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(kind) => {
                counts.dropped.fetch_add(1, Ordering::Relaxed);
                if kind == ErrorKind::Closed && shared.stop.is_cancelled() {
                    return;
                }
            }
        }
    }
}
