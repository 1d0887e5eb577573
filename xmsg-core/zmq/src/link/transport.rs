//! Byte streams behind one type: TCP, Unix sockets, and pipes within the process.

// Longer than 500 lines: one stream and one listener for all transports, with a case for each in every
// method.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{Metadata, symlink_metadata};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, tcp, unix};
use tokio::sync::mpsc;

use crate::files::is_same;
use crate::link::addresses;
use crate::link::dead_peer::Route;
use crate::link::throttle::Throttle;
use crate::lock::lock;
use crate::{Endpoint, TcpOptions};
use crate::{Error, ErrorKind, Result};

/// The default for the number of bytes that an `inproc://` pipe holds in each direction. Each time that a
/// large message fills the pipe, its tasks have to switch.
const INPROC_PIPE_LEN: usize = 1 << 20;
/// The minimum number of bytes that an `inproc://` pipe holds. Both sides send their part of the handshake
/// before they read, as they may where the system has buffers.
const INPROC_PIPE_MIN: usize = 4 << 10;
/// The maximum number of connections to an `inproc://` endpoint that wait to be accepted. At this number,
/// whoever connects waits until one of them has been accepted.
const INPROC_BACKLOG: usize = 128;
/// The number of connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// Evaluates the same expression for each kind of stream.
macro_rules! on_stream {
    ($self:expr, $enum:ident, $stream:ident => $body:expr) => {
        match $self {
            $enum::Tcp($stream) => $body,
            $enum::Unix($stream) => $body,
            $enum::Inproc($stream) => $body,
        }
    };
}

/// An open connection.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// A pipe within the process.
    Inproc(Pipe),
}

/// Both directions of an `inproc://` connection.
#[derive(Debug)]
pub struct Pipe {
    read: tokio::io::ReadHalf<DuplexStream>,
    write: tokio::io::WriteHalf<DuplexStream>,
}

impl Pipe {
    fn new(stream: DuplexStream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self { read, write }
    }
}

/// The reading direction of a [`Stream`].
#[derive(Debug)]
pub enum ReadHalf<'a> {
    /// The reading direction of a TCP connection.
    Tcp(tcp::ReadHalf<'a>),
    /// The reading direction of a Unix socket.
    Unix(unix::ReadHalf<'a>),
    /// The reading direction of a pipe within the process.
    Inproc(&'a mut tokio::io::ReadHalf<DuplexStream>),
}

/// The writing direction of a [`Stream`].
#[derive(Debug)]
pub enum WriteHalf<'a> {
    /// The writing direction of a TCP connection.
    Tcp(tcp::WriteHalf<'a>),
    /// The writing direction of a Unix socket.
    Unix(unix::WriteHalf<'a>),
    /// The writing direction of a pipe within the process.
    Inproc(&'a mut tokio::io::WriteHalf<DuplexStream>),
}

impl Stream {
    /// Connects once. `limit` is the time that the caller allows for connection and handshake together. For
    /// TCP, each address of a host name gets an equal share of it, and so does the handshake; otherwise it is
    /// not used.
    ///
    /// # Errors
    ///
    /// The name has no address, or no connection could be made. The error is that of the last address.
    pub async fn connect(endpoint: &Endpoint, options: &TcpOptions, limit: Duration) -> Result<Self> {
        let failed = |error| connect_error(endpoint, error);
        match endpoint {
            Endpoint::Tcp { host, port } => {
                let addresses = addresses::look_up(endpoint, host, *port).await?;
                let stream = connect_tcp(addresses, limit).await.map_err(failed)?;
                options.apply(&stream);
                Ok(Self::Tcp(stream))
            }
            Endpoint::Ipc(path) => {
                Ok(Self::Unix(UnixStream::connect(system_name(path)).await.map_err(failed)?))
            }
            Endpoint::Inproc(name) => {
                let listener = inproc().get(name).cloned();
                let refused = || failed(io::ErrorKind::ConnectionRefused.into());
                let len = options.send_buffer.unwrap_or(INPROC_PIPE_LEN).max(INPROC_PIPE_MIN);
                let (ours, theirs) = tokio::io::duplex(len);
                listener.ok_or_else(refused)?.send(theirs).await.map_err(|_| refused())?;
                Ok(Self::Inproc(Pipe::new(ours)))
            }
            Endpoint::Udp { .. } => Err(datagrams(endpoint)),
        }
    }

    /// Returns the address of the peer if it is connected over TCP.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.route().map(|route| route.peer.ip())
    }

    /// Returns the addresses of both ends of a TCP connection.
    #[must_use]
    pub fn route(&self) -> Option<Route> {
        let Self::Tcp(stream) = self else { return None };
        Some(Route { local: stream.local_addr().ok()?, peer: stream.peer_addr().ok()? })
    }

    /// Splits the stream into both directions, which can be used at the same time.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Unix(stream) => {
                let (read, write) = stream.split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
            Self::Inproc(pipe) => (ReadHalf::Inproc(&mut pipe.read), WriteHalf::Inproc(&mut pipe.write)),
        }
    }
}

/// Is ready when the peer has closed its direction, or the connection is broken, whether there are bytes to
/// be read or not. `READABLE` would be ready all the time while there are. Urgent TCP data is not reported,
/// because tokio does not register its streams for it. On other systems than Linux, a graceful end is noticed
/// only when it is read.
#[cfg(any(target_os = "linux", target_os = "android"))]
const LEFT: Interest = Interest::PRIORITY.add(Interest::ERROR);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const LEFT: Interest = Interest::ERROR;

impl ReadHalf<'_> {
    /// Waits until the peer has closed its direction, or the connection is broken. Nothing is read: what the
    /// peer sent before is still there. For a pipe within the process, it never returns.
    pub(crate) async fn left(&self) {
        let ready = match self {
            Self::Tcp(stream) => stream.ready(LEFT).await,
            Self::Unix(stream) => stream.ready(LEFT).await,
            Self::Inproc(_) => std::future::pending().await,
        };
        // It fails when the runtime ends, and then nothing is read any more.
        drop(ready);
    }
}

impl AsyncRead for ReadHalf<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), Self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for WriteHalf<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self.get_mut(), Self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self.get_mut(), Self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        on_stream!(self, Self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), Self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), Self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl TcpOptions {
    /// Sets the options. None of them is worth losing a connection: what the system refuses is only logged.
    fn apply(&self, stream: &TcpStream) {
        let socket = SockRef::from(stream);
        let mut result = socket.set_tcp_nodelay(true);
        if let Some(idle) = self.keepalive {
            // The kernel takes whole seconds, and 0 is an error.
            let second = Duration::from_secs(1);
            let keepalive = TcpKeepalive::new()
                .with_time(idle.max(second))
                .with_interval((self.keepalive_timeout / 3).max(second))
                .with_retries(3);
            result = result.and(socket.set_tcp_keepalive(&keepalive));
        }
        if let Some(bytes) = self.send_buffer {
            result = result.and(socket.set_send_buffer_size(bytes));
        }
        if let Some(bytes) = self.receive_buffer {
            result = result.and(socket.set_recv_buffer_size(bytes));
        }
        if self.reset_on_close {
            result = result.and(socket.set_linger(Some(Duration::ZERO)));
        }
        if let Err(error) = result {
            tracing::debug!(%error, "a TCP option was refused");
        }
    }
}

/// A bound endpoint. Dropping it frees the endpoint.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    accepting: Shared,
    options: TcpOptions,
    log: Throttle,
}

/// `None` once the listener is closed.
type Shared = Arc<Mutex<Option<Accepting>>>;

/// Closes a [`Listener`] that another task owns, such as the one that accepts connections.
#[derive(Clone, Debug)]
pub struct Closer(Shared);

impl Closer {
    /// Closes the listener. The endpoint can be bound again when this returns. No more connections are
    /// accepted, and [`accept`](Listener::accept) never returns.
    pub fn close(&self) {
        // The value is dropped under the lock, so that a concurrent call also returns only once the endpoint
        // is free.
        let mut accepting = lock(&self.0);
        drop(accepting.take());
    }
}

#[derive(Debug)]
enum Accepting {
    Tcp(TcpListener),
    /// A Unix socket with its name, and its file, or `None` for an abstract socket, which has none.
    Unix(UnixListener, PathBuf, Option<Metadata>),
    Inproc(mpsc::Receiver<DuplexStream>, String),
}

impl Listener {
    /// Binds an endpoint. A Unix socket on which nothing listens any more is replaced; any other file is left
    /// alone.
    ///
    /// # Errors
    ///
    /// The endpoint is in use, not permitted, not an address of this machine, or has no connections
    /// (`udp://`).
    pub async fn bind(endpoint: &Endpoint, options: TcpOptions) -> Result<Self> {
        let failed = |error: io::Error| bind_error(endpoint, error);
        let accepting = match endpoint {
            Endpoint::Tcp { host, port } => {
                Accepting::Tcp(bind_tcp(addresses::to_bind(endpoint, host, *port).await?).map_err(failed)?)
            }
            Endpoint::Ipc(path) if is_abstract(path) => {
                Accepting::Unix(UnixListener::bind(system_name(path)).map_err(failed)?, path.clone(), None)
            }
            Endpoint::Ipc(path) => {
                let is_socket = symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
                // Only this error says that nothing listens. Others come from a socket of somebody else, or
                // of a process that is busy.
                let is_refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
                if is_socket && UnixStream::connect(path).await.is_err_and(is_refused) {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                let listener = UnixListener::bind(path).map_err(failed)?;
                Accepting::Unix(listener, path.clone(), Some(symlink_metadata(path).map_err(failed)?))
            }
            Endpoint::Inproc(name) => {
                let (sender, receiver) = mpsc::channel(INPROC_BACKLOG);
                let mut names = inproc();
                if names.contains_key(name) {
                    return Err(failed(io::ErrorKind::AddrInUse.into()));
                }
                names.insert(name.clone(), sender);
                Accepting::Inproc(receiver, name.clone())
            }
            Endpoint::Udp { .. } => return Err(datagrams(endpoint)),
        };
        let endpoint = match (&accepting, endpoint) {
            (Accepting::Tcp(listener), Endpoint::Tcp { .. }) => {
                let address = listener.local_addr().map_err(failed)?;
                Endpoint::tcp(address.ip().to_string(), address.port())
            }
            _ => endpoint.clone(),
        };
        Ok(Self::new(endpoint, accepting, options))
    }

    fn new(endpoint: Endpoint, accepting: Accepting, options: TcpOptions) -> Self {
        Self { endpoint, accepting: Arc::new(Mutex::new(Some(accepting))), options, log: Throttle::default() }
    }

    /// Takes over a TCP socket that listens already, such as one that a service manager has bound.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use xmsg_zmq::{TcpOptions, link::transport::Listener};
    /// let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let port = socket.local_addr()?.port();
    /// let listener = Listener::adopt(socket, TcpOptions::default())?;
    /// assert_eq!(listener.endpoint().to_string(), format!("tcp://127.0.0.1:{port}"));
    /// # Ok(()) }
    /// ```
    pub fn adopt(socket: std::net::TcpListener, options: TcpOptions) -> Result<Self> {
        let failed = |error| Error::io("cannot use the listening socket that was handed over", error);
        if !SockRef::from(&socket).is_listener().map_err(failed)? {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen")));
        }
        let address = socket.local_addr().map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(socket).map_err(failed)?;
        let endpoint = Endpoint::tcp(address.ip().to_string(), address.port());
        Ok(Self::new(endpoint, Accepting::Tcp(listener), options))
    }

    /// Returns the endpoint that is bound, with the port that the system chose for port 0.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns a handle that closes the listener from elsewhere.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer(self.accepting.clone())
    }

    /// Accepts the next connection, and returns it with a name for its peer. When descriptors run out, it
    /// waits and tries again: the error never reaches the caller, and the loop takes no processor time
    /// meanwhile.
    pub async fn accept(&mut self) -> (Stream, String) {
        self.accept_making_room(|| false).await
    }

    /// Accepts the next connection like [`accept`](Self::accept). When descriptors run out, it calls
    /// `make_room`, which may end a connection and returns whether it did.
    pub async fn accept_making_room(&mut self, make_room: impl Fn() -> bool) -> (Stream, String) {
        let mut pause = Duration::from_millis(10);
        loop {
            let accepted = std::future::poll_fn(|cx| match &mut *lock(&self.accepting) {
                Some(accepting) => accepting.poll_accept(cx),
                None => Poll::Pending,
            });
            let error = match accepted.await {
                Ok((stream, peer)) => {
                    if let Stream::Tcp(stream) = &stream {
                        self.options.apply(stream);
                    }
                    return (stream, peer);
                }
                Err(error) => error,
            };
            if Error::is_used_up(&error) && make_room() {
                // The descriptor is free once the task of that connection has run.
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            if let Some(unlogged) = self.log.pass("connections that could not be accepted") {
                tracing::warn!(
                    endpoint = %self.endpoint, %error, ?pause, unlogged,
                    "cannot accept a connection; trying again. If descriptors are used up, raise their limit (ulimit -n)"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

impl Accepting {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, String)>> {
        match self {
            Self::Tcp(listener) => {
                listener.poll_accept(cx).map_ok(|(stream, peer)| (Stream::Tcp(stream), peer.to_string()))
            }
            Self::Unix(listener, path, _) => listener
                .poll_accept(cx)
                .map_ok(|(stream, _)| (Stream::Unix(stream), path.display().to_string())),
            Self::Inproc(receiver, name) => match receiver.poll_recv(cx) {
                Poll::Ready(Some(stream)) => {
                    Poll::Ready(Ok((Stream::Inproc(Pipe::new(stream)), format!("inproc://{name}"))))
                }
                // Only dropping the receiver takes its sender out of the registry.
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.closer().close();
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        match self {
            Self::Tcp(_) => {}
            Self::Unix(_, path, file) => {
                // Another process may have put its own file there since then.
                let path = &*path;
                let is_ours =
                    |file: &Metadata| symlink_metadata(path).is_ok_and(|there| is_same(&there, file));
                if file.as_ref().is_some_and(is_ours) {
                    let _ = std::fs::remove_file(path);
                }
            }
            Self::Inproc(_, name) => {
                inproc().remove(name);
            }
        }
    }
}

/// Tries the addresses of the name one after another. It always keeps the order of the system, so that all
/// connections to a proxy reach the same one.
async fn connect_tcp(addresses: Vec<SocketAddr>, limit: Duration) -> io::Result<TcpStream> {
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        last = match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")),
        };
    }
    Err(last)
}

pub(crate) fn connect_error(endpoint: &Endpoint, error: io::Error) -> Error {
    let (kind, hint) = match (error.kind(), endpoint) {
        (io::ErrorKind::ConnectionRefused, _) => (ErrorKind::Refused, ": nobody listens there"),
        (io::ErrorKind::NotFound, Endpoint::Ipc(_)) => (ErrorKind::Refused, ": there is no such socket"),
        (io::ErrorKind::PermissionDenied, Endpoint::Ipc(_)) => {
            (ErrorKind::NotAllowed, ": no permission to write to that socket")
        }
        // No fixed local port is requested, so it is not the address that is wrong.
        (io::ErrorKind::AddrNotAvailable, Endpoint::Tcp { host, port: 1.. })
            if host.parse::<Ipv4Addr>().is_ok() =>
        {
            (ErrorKind::NoResources, ": no local port is left for one more connection")
        }
        _ if Error::is_used_up(&error) => (ErrorKind::NoResources, NO_DESCRIPTOR),
        _ => (Error::kind_of(&error), ""),
    };
    Error::new(kind, format!("cannot connect to {endpoint}{hint}")).with_source(error)
}

/// The hint for the case that no descriptors are left.
const NO_DESCRIPTOR: &str =
    ": no file descriptor is left; close what is not needed, or raise the limit (`ulimit -n`)";

fn bind_tcp(addresses: Vec<SocketAddr>) -> io::Result<TcpListener> {
    addresses::first_that_does(addresses, |address| {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM.nonblocking(), None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    })
}

pub(crate) fn bind_error(endpoint: &Endpoint, error: io::Error) -> Error {
    let (kind, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            (ErrorKind::Io, ": it is in use; choose another one, or stop the process that holds it")
        }
        io::ErrorKind::PermissionDenied => {
            (ErrorKind::NotAllowed, ": no permission; choose a port above 1023, or a path you may write")
        }
        io::ErrorKind::AddrNotAvailable => {
            (ErrorKind::InvalidAddress, ": no interface of this machine has that address")
        }
        _ if Error::is_used_up(&error) => (ErrorKind::NoResources, NO_DESCRIPTOR),
        _ => (Error::kind_of(&error), ""),
    };
    Error::new(kind, format!("cannot bind {endpoint}{hint}")).with_source(error)
}

/// Whether this is the name of a Unix socket in the abstract namespace, which libzmq writes as `@name`.
fn is_abstract(path: &Path) -> bool {
    cfg!(any(target_os = "linux", target_os = "android")) && path.as_os_str().as_bytes().starts_with(b"@")
}

/// The name as the system expects it. The first byte of an abstract name is zero.
fn system_name(path: &Path) -> Cow<'_, Path> {
    if !is_abstract(path) {
        return Cow::Borrowed(path);
    }
    let mut name = path.as_os_str().as_bytes().to_vec();
    name[0] = 0;
    Cow::Owned(OsString::from_vec(name).into())
}

/// The error of a connection-oriented socket for an endpoint without connections.
fn datagrams(endpoint: &Endpoint) -> Error {
    let what = format!("cannot use {endpoint}: only RADIO and DISH sockets send and receive datagrams");
    Error::new(ErrorKind::InvalidAddress, what)
}

type Registry = HashMap<String, mpsc::Sender<DuplexStream>>;

/// Returns the `inproc://` endpoints of this process.
fn inproc() -> MutexGuard<'static, Registry> {
    static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);
    lock(&REGISTRY)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::Barrier;

    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;

    /// A process whose queue of connections is full still listens.
    #[tokio::test]
    async fn the_path_of_a_busy_socket_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("busy");
        let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        busy.listen(0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let peer = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            peer.set_nonblocking(true).unwrap();
            if peer.connect(&SockAddr::unix(&path).unwrap()).is_err() {
                break;
            }
            waiting.push(peer);
        }
        let endpoint = Endpoint::Ipc(path.clone());
        let inode = || symlink_metadata(&path).unwrap().ino();
        let before = inode();
        let error = Listener::bind(&endpoint, TcpOptions::default()).await.unwrap_err();
        assert!(error.to_string().contains("it is in use"), "{error}");
        assert_eq!(inode(), before);
        // Once nothing listens any more, it is replaced.
        drop((busy, waiting));
        let listener = Listener::bind(&endpoint, TcpOptions::default()).await.unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
        // What another process has put there since then stays.
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[test]
    fn the_endpoint_is_free_for_whichever_of_two_closers_returns_first() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        for _ in 0..2_000 {
            let any = Endpoint::tcp("127.0.0.1", 0);
            let listener = runtime.block_on(Listener::bind(&any, TcpOptions::default())).expect("a port");
            let Endpoint::Tcp { port, .. } = *listener.endpoint() else { unreachable!("it is bound to TCP") };
            let closer = listener.closer();
            let start = Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    drop(listener);
                });
                start.wait();
                closer.close();
                std::net::TcpListener::bind(("127.0.0.1", port)).expect("a free port");
            });
        }
    }
}
