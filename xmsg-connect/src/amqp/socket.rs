//! The socket to a broker, beneath the AMQP client. It is made, watched and ended here.
//!
//! The client has a thread for each connection, which waits for its socket without a time limit: against a
//! broker that accepts and says nothing, each attempt would leave a thread and a socket behind. So the socket
//! is ours: once the [`SocketGuard`] of a connection is dropped, it is broken, whatever the broker does, and
//! the thread ends.

use std::fmt;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures::Stream;
use futures::io::{AsyncRead, AsyncWrite};
use futures::task::AtomicWaker;
use lapin::tcp::{AsyncTcpStream, RustlsConnectorConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;

use super::frame_inspector::FrameInspector;
use crate::blocking::run_blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::receive_memory::ConsumerMemory;

/// What is read at a time, at most, in bytes: little enough that messages which come in the same piece need
/// no room of their own.
const READ_MAX: usize = 256 << 10;
/// What is read at a time, in bytes, while there is no room: enough for the client to know that the broker is
/// there.
pub(super) const TRICKLE_BYTES: usize = 1024;
/// How often it is checked whether others have made room.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A guard that breaks its connection when it is dropped.
#[derive(Debug)]
pub(crate) struct SocketGuard(Arc<Shared>);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.0.is_closed.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.writer.wake();
    }
}

impl SocketGuard {
    /// Allows at most this many further bytes to be read from the broker. [`UNLIMITED`] lifts the limit.
    pub(super) fn allow(&self, bytes: usize) {
        self.0.allowed.store(bytes, Ordering::Release);
        self.0.reader.wake();
    }

    /// Reads, from now on, only messages for which `consumer_memory` has room. While there is none, a few
    /// bytes are read in each interval of this length.
    pub(super) fn limit_reads_to(&self, consumer_memory: Arc<ConsumerMemory>, interval: Duration) {
        // A link has one consumer.
        let _ = self.0.consumer_memory.set((consumer_memory, interval));
        self.0.reader.wake();
    }
}

/// Any number of bytes may be read.
pub(super) const UNLIMITED: usize = usize::MAX;

#[derive(Debug)]
struct Shared {
    is_closed: AtomicBool,
    /// How many bytes may be read from now on.
    allowed: AtomicUsize,
    /// The memory that bounds the messages that are read, and the interval in which a few bytes are read
    /// while there is no room.
    consumer_memory: OnceLock<(Arc<ConsumerMemory>, Duration)>,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// Connects to this address, with TLS if it says so. `ca_file` has the certificates of those who may vouch
/// for the broker; without it, those of the system may. The deadline is that of the caller: dropping the
/// future ends the attempt.
pub(super) async fn connect(
    uri: &AMQPUri,
    ca_file: Option<&Path>,
    frame_max: u32,
) -> Result<(Socket, SocketGuard)> {
    let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
    let unreachable = |error: io::Error| {
        Error::new(ErrorKind::Unreachable, format!("{host}:{port} can't be reached")).with_source(error)
    };
    // An address of IPv6 stands in brackets.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let plain = TcpStream::connect((name, port)).await.map_err(unreachable)?;
    plain.set_nodelay(true).map_err(unreachable)?;
    let plain = AsyncTcpStream::Plain(plain.compat());
    let inner = match uri.scheme {
        AMQPScheme::AMQP => plain,
        AMQPScheme::AMQPS => {
            let file = ca_file.map(Path::to_owned);
            let connector = run_blocking(move || tls_connector(file.as_deref())).await?;
            let secured = plain.into_rustls(&connector, name).await;
            secured.map_err(|error| tls_error(error, name, port, ca_file))?
        }
    };
    let shared = Arc::new(Shared {
        is_closed: AtomicBool::new(false),
        allowed: AtomicUsize::new(UNLIMITED),
        consumer_memory: OnceLock::new(),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
    });
    let socket = Socket {
        inner,
        frame_inspector: FrameInspector::new(frame_max),
        logged: 0,
        shared: shared.clone(),
        pause: Box::pin(tokio::time::sleep(Duration::ZERO)),
        trickles_at: None,
    };
    Ok((socket, SocketGuard(shared)))
}

/// Runs the client over a socket to the end of the handshake.
pub(super) async fn handshake(
    uri: AMQPUri,
    socket: Socket,
    properties: ConnectionProperties,
) -> lapin::Result<Connection> {
    // The client asks once, unless it is told to connect again by itself.
    let socket = Mutex::new(Some(socket));
    let provide = async move |_, _| match lock(&socket).take() {
        Some(socket) => Ok(AsyncTcpStream::Plain(socket)),
        None => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
    };
    Connection::connector(uri, Runtime::new(SocketRuntime(Tokio::current())), provide, properties).await
}

fn tls_connector(ca_file: Option<&Path>) -> Result<lapin::tcp::RustlsConnector> {
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Storage, "the certificates of the system can't be read: name a ca_file")
            .with_source(error)
    };
    let Some(file) = ca_file else {
        return RustlsConnectorConfig::new_with_native_certs()
            .and_then(RustlsConnectorConfig::connector_with_no_client_auth)
            .map_err(failed);
    };
    let what = |what: &str| format!("the certificates in {} {what} (ca_file)", file.display());
    let text = std::fs::read(file)
        .map_err(|error| Error::new(ErrorKind::Storage, what("can't be read")).with_source(error))?;
    let certificates: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates
        .map_err(|error| Error::new(ErrorKind::InvalidDefinition, what("are no PEM")).with_source(error))?;
    if certificates.is_empty() {
        return Err(Error::new(ErrorKind::InvalidDefinition, what("are none: it needs one in PEM")));
    }
    let mut config = RustlsConnectorConfig::default();
    config.add_parsable_certificates(certificates);
    config.connector_with_no_client_auth().map_err(failed)
}

/// Makes an error that says why TLS with a broker has failed, and what to do.
fn tls_error(error: io::Error, host: &str, port: u16, ca_file: Option<&Path>) -> Error {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let of = |what: String| {
        Error::new(ErrorKind::NotAllowed, format!("the broker {host}:{port} is not trusted: {what}"))
    };
    let said = match cause {
        Some(rustls::Error::InvalidCertificate(wrong)) => match wrong {
            // One of the same name with another key is somebody else.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => of(match ca_file {
                Some(file) => {
                    format!("none of those in {} has signed its certificate (ca_file)", file.display())
                }
                None => "nobody whom this system trusts has signed its certificate: name who has in ca_file"
                    .to_owned(),
            }),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                of(format!("its certificate is for another name than {host:?} (uris)"))
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                of("its certificate has expired".to_owned())
            }
            _ => of("its certificate is not good".to_owned()),
        },
        Some(rustls::Error::InvalidMessage(_)) => {
            let what = format!("{host}:{port} does not speak TLS: is it an address for amqp:// (uris)?");
            Error::new(ErrorKind::Refused, what)
        }
        _ => Error::new(ErrorKind::Unreachable, format!("TLS with {host}:{port} has failed")),
    };
    said.with_source(error)
}

/// A connection to a broker, as the client reads and writes it.
pub(super) struct Socket {
    inner: AsyncTcpStream<Compat<TcpStream>>,
    frame_inspector: FrameInspector,
    /// How many tables that were too deep have been logged.
    logged: u64,
    shared: Arc<Shared>,
    pause: Pin<Box<Sleep>>,
    /// When a few bytes are read next although there is no room.
    trickles_at: Option<tokio::time::Instant>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

impl Socket {
    fn check_open(&self) -> io::Result<()> {
        if self.shared.is_closed.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Returns how many bytes may be read now at most, in view of what the consumer holds. The reader is
    /// woken when that changes.
    fn readable_now(&mut self, cx: &mut Context<'_>) -> usize {
        let Some((consumer_memory, interval)) = self.shared.consumer_memory.get() else { return UNLIMITED };
        if consumer_memory.may_read(cx.waker()) {
            self.trickles_at = None;
            return READ_MAX;
        }
        let next = || Deadline::after(*interval).instant();
        let trickles_at = *self.trickles_at.get_or_insert_with(next);
        if trickles_at <= tokio::time::Instant::now() {
            self.trickles_at = Some(next());
            return TRICKLE_BYTES;
        }
        self.pause.as_mut().reset(Deadline::after(ROOM_CHECK_INTERVAL).instant().min(trickles_at));
        if self.pause.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        0
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Before it is looked at: whoever ends it later wakes this.
        this.shared.reader.register(cx.waker());
        this.check_open()?;
        let allowed = this.shared.allowed.load(Ordering::Acquire);
        let most = buffer.len().min(allowed).min(this.readable_now(cx));
        if most == 0 && !buffer.is_empty() {
            return Poll::Pending;
        }
        let count = std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer[..most]))?;
        // The limit may have been changed meanwhile, which counts then.
        let _ = this.shared.allowed.fetch_update(Ordering::AcqRel, Ordering::Acquire, |allowed| {
            (allowed != UNLIMITED).then(|| allowed.saturating_sub(count))
        });
        this.frame_inspector.read(&mut buffer[..count])?;
        let consumer_memory = this.shared.consumer_memory.get();
        for bytes in this.frame_inspector.announced() {
            if let Some((consumer_memory, _)) = consumer_memory {
                consumer_memory.announce(bytes);
            }
        }
        if this.frame_inspector.flattened() > this.logged {
            if this.logged == 0 {
                tracing::warn!(
                    "a message has tables nested too deeply: what is too deep was taken for bytes"
                );
            }
            this.logged = this.frame_inspector.flattened();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.shared.writer.register(cx.waker());
        this.check_open()?;
        Pin::new(&mut this.inner).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.shared.writer.register(cx.waker());
        this.check_open()?;
        Pin::new(&mut this.inner).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.shared.writer.register(cx.waker());
        this.check_open()?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.shared.writer.register(cx.waker());
        this.check_open()?;
        Pin::new(&mut this.inner).poll_close(cx)
    }
}

/// The runtime that the client is given: tokio, with sockets of our own.
#[derive(Clone, Debug)]
struct SocketRuntime(Tokio);

impl RuntimeKit for SocketRuntime {}

impl Executor for SocketRuntime {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for SocketRuntime {
    type TcpStream = Socket;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Socket, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Socket>> + Send + 'static {
        // The client is given a connection that is there already.
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame};
    use amq_protocol::protocol::{AMQPClass, BasicProperties, basic};
    use futures::{AsyncReadExt, FutureExt};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use xmsg_zmq::memory_budget::MemoryBudget;

    use super::*;
    use crate::receive_memory::ReceiveMemory;

    const FRAME_MAX: u32 = 131_072;

    fn bytes_of(frame: &AMQPFrame) -> Vec<u8> {
        gen_frame(frame)(WriteContext::from(Vec::new())).unwrap().into_inner().0
    }

    /// Returns the frames of a message of this length that come before its body.
    fn beginning(body_size: u64) -> Vec<u8> {
        let deliver = basic::AMQPMethod::Deliver(basic::Deliver {
            consumer_tag: "a".into(),
            delivery_tag: 1,
            redelivered: false,
            exchange: "".into(),
            routing_key: "q".into(),
        });
        let properties = BasicProperties::default();
        let header = AMQPContentHeader { class_id: 60, body_size, properties };
        let frames = [AMQPFrame::Method(1, AMQPClass::Basic(deliver)), AMQPFrame::Header(1, header)];
        frames.iter().flat_map(bytes_of).collect()
    }

    /// Whatever comes: a part of a message may stay in the client for long, and there may be many clients.
    #[tokio::test]
    async fn a_long_message_is_not_read_until_there_is_room_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("amqp://{}", listener.local_addr().unwrap()).parse().unwrap();
        let ((mut socket, end), (mut broker, _)) =
            tokio::try_join!(async { Ok(connect(&uri, None, FRAME_MAX).await.unwrap()) }, listener.accept())
                .unwrap();
        let room = ReceiveMemory::new(MemoryBudget::new(64 << 20), 0);
        let [other, consumer_memory] = [room.consumer("other", usize::MAX), room.consumer("a", usize::MAX)];
        other.received(0, 30 << 20);
        end.limit_reads_to(consumer_memory, Duration::from_secs(3600));
        let (message, body) = (beginning(16 << 20), bytes_of(&AMQPFrame::Body(1, vec![b'x'; 100_000])));
        broker.write_all(&message).await.unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut read = 0;
        while read < message.len() {
            read += socket.read(&mut buffer).await.unwrap();
        }
        broker.write_all(&body).await.unwrap();
        for _ in 0..5 {
            assert!(socket.read(&mut buffer).now_or_never().is_none());
            tokio::time::sleep(ROOM_CHECK_INTERVAL).await;
        }
        other.release(30 << 20);
        while read < message.len() + body.len() {
            read += socket.read(&mut buffer).await.unwrap();
        }
        assert_eq!(room.budget().claimed(), 32 << 20);
    }
}
