//! The way to a broker, beneath the AMQP client: made here, watched over, and ended here.
//!
//! The client has a thread for each connection, which waits for its socket without a time limit: against a
//! broker that accepts and says nothing, each attempt would leave a thread and a socket behind. So the socket
//! is ours: once the [`End`] of a connection is dropped, it is broken, whatever the broker does, and the
//! thread ends.

use std::fmt;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
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
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use xmsg_zmq::lock::lock;

use super::nesting::Nesting;
use crate::background::in_background;
use crate::error::{Error, ErrorKind, Result};

/// Breaks the connection that it belongs to when it is dropped.
#[derive(Debug)]
pub(crate) struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.writer.wake();
    }
}

impl End {
    /// At most this many further bytes are read from the broker; [`UNLIMITED`] lifts the limit.
    pub(super) fn allow(&self, bytes: usize) {
        self.0.allowed.store(bytes, Ordering::Release);
        self.0.reader.wake();
    }
}

/// Any number of bytes may be read.
pub(super) const UNLIMITED: usize = usize::MAX;

#[derive(Debug)]
struct Shared {
    is_over: AtomicBool,
    /// How many bytes may be read from now on.
    allowed: AtomicUsize,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// Connects to this address, with TLS if it says so. `ca_file` has the certificates of those who may vouch
/// for the broker; without it, those of the system may. The deadline is that of the caller: dropping the
/// future ends the attempt.
pub(super) async fn connect(uri: &AMQPUri, ca_file: Option<&Path>, frame_max: u32) -> Result<(Socket, End)> {
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
            let connector = in_background(move || trusting(file.as_deref())).await?;
            let secured = plain.into_rustls(&connector, name).await;
            secured.map_err(|error| untrusted(error, name, port, ca_file))?
        }
    };
    let shared = Arc::new(Shared {
        is_over: AtomicBool::new(false),
        allowed: AtomicUsize::new(UNLIMITED),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
    });
    let socket = Socket { inner, nesting: Nesting::new(frame_max), told: 0, shared: shared.clone() };
    Ok((socket, End(shared)))
}

/// Runs the client over a socket, to the end of the handshake.
pub(super) async fn begin(
    uri: AMQPUri,
    socket: Socket,
    properties: ConnectionProperties,
) -> lapin::Result<Connection> {
    // The client asks once, unless it is told to connect again by itself.
    let socket = Mutex::new(Some(socket));
    let give = async move |_, _| match lock(&socket).take() {
        Some(socket) => Ok(AsyncTcpStream::Plain(socket)),
        None => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
    };
    Connection::connector(uri, Runtime::new(Kit(Tokio::current())), give, properties).await
}

fn trusting(ca_file: Option<&Path>) -> Result<lapin::tcp::RustlsConnector> {
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

/// Why TLS with a broker has failed, with what to do.
fn untrusted(error: io::Error, host: &str, port: u16, ca_file: Option<&Path>) -> Error {
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
    nesting: Nesting,
    /// How many tables that were too deep have been logged.
    told: u64,
    shared: Arc<Shared>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

impl Socket {
    fn check(&self) -> io::Result<()> {
        if self.shared.is_over.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Before it is looked at: whoever ends it later wakes this.
        this.shared.reader.register(cx.waker());
        this.check()?;
        let most = buffer.len().min(this.shared.allowed.load(Ordering::Acquire));
        if most == 0 && !buffer.is_empty() {
            return Poll::Pending;
        }
        let count = std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer[..most]))?;
        // The limit may have been changed meanwhile, which counts then.
        let _ = this.shared.allowed.fetch_update(Ordering::AcqRel, Ordering::Acquire, |allowed| {
            (allowed != UNLIMITED).then(|| allowed.saturating_sub(count))
        });
        this.nesting.read(&mut buffer[..count])?;
        if this.nesting.flattened() > this.told {
            if this.told == 0 {
                tracing::warn!(
                    "a message has tables nested too deeply: what is too deep was taken for bytes"
                );
            }
            this.told = this.nesting.flattened();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.shared.writer.register(cx.waker());
        this.check()?;
        Pin::new(&mut this.inner).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.shared.writer.register(cx.waker());
        this.check()?;
        Pin::new(&mut this.inner).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.shared.writer.register(cx.waker());
        this.check()?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.shared.writer.register(cx.waker());
        this.check()?;
        Pin::new(&mut this.inner).poll_close(cx)
    }
}

/// The runtime that the client is given: tokio, with sockets of our own.
#[derive(Clone, Debug)]
struct Kit(Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
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

impl Reactor for Kit {
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
