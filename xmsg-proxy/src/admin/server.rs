//! The connections of the HTTP server: few, short-lived, and none of them worth waiting for.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::fault::{catch_in, pause};
use xmsg_zmq::link::transport::{Listener, Stream};

use super::api::Streamed;

/// Connections at a time. Above it, the oldest one that has sent a wrong token gives way to a new one; else
/// the oldest that is not being answered and has had its time to ask.
pub(super) const CONNECTIONS: usize = 64;
/// The time that everybody has to ask, from when nothing of a request was there to be read: nobody gives way
/// before, so that a crowd of newcomers cuts off nobody who is about to ask, or has asked.
const GRACE: Duration = Duration::from_millis(250);
/// How long a request may take to arrive, and a connection may be silent between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may read nothing of its answer. Then its connection ends, and what the answer takes is
/// free.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's line and headers.
const HEADER_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS: usize = 64;

/// An open connection.
#[derive(Debug)]
struct Open {
    /// It is served by this task.
    task: task::Id,
    shared: Arc<Connection>,
}

impl Open {
    /// When it is one that gives way to others; `None`: not before something changes.
    fn gives_way_at(&self) -> Option<Instant> {
        if self.is_suspect() {
            return Some(self.shared.since);
        }
        let waiting = self.shared.waiting.get().filter(|_| !self.shared.is_busy.load(Ordering::Relaxed))?;
        Some(Deadline::since(*waiting, GRACE).instant())
    }

    fn is_stream(&self) -> bool {
        self.shared.is_stream.load(Ordering::Relaxed)
    }

    fn is_suspect(&self) -> bool {
        self.shared.is_suspect.load(Ordering::Relaxed)
    }
}

/// What the server and the task of a connection both know. Every request brings it.
#[derive(Debug)]
pub(super) struct Connection {
    peer: SocketAddr,
    /// An answer is being worked out. While it is only written, a client that does not read must not count as
    /// busy.
    is_busy: AtomicBool,
    /// Events are sent to it without end, and it reads them.
    is_stream: AtomicBool,
    /// It has sent a wrong token.
    is_suspect: AtomicBool,
    since: Instant,
    /// When there was nothing to read for the first time.
    waiting: OnceLock<Instant>,
    /// Tells the server that one of these has changed.
    changed: Arc<Notify>,
    cut: CancellationToken,
}

impl Connection {
    /// Whose it is.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Notes that there was nothing to read.
    fn waits(&self) {
        if self.waiting.set(Instant::now()).is_ok() {
            self.changed.notify_one();
        }
    }

    /// Notes that the rest of its request is waited for: meanwhile it gives way to others as one that has yet
    /// to ask.
    pub(super) fn awaits_rest(&self) {
        self.is_busy.store(false, Ordering::Relaxed);
        self.waits();
        self.changed.notify_one();
    }

    /// Notes that its request is there.
    pub(super) fn has_rest(&self) {
        self.is_busy.store(true, Ordering::Relaxed);
    }

    /// Notes that it has sent a wrong token: its answer waits, and it gives way to others before any of them
    /// does.
    pub(super) fn suspect(&self) {
        self.is_suspect.store(true, Ordering::Relaxed);
        self.is_busy.store(false, Ordering::Relaxed);
        self.changed.notify_one();
    }
}

/// Serves until it is told to stop. Messages flow without it, and nothing of it has to last, so that a panic
/// is no reason to end the process: its connections end, and it begins again.
pub(super) async fn run(mut listener: Listener, router: Router, stop: CancellationToken) {
    while let Err(fault) = catch_in(accept(&mut listener, &router, &stop)).await {
        pause("the HTTP server", &fault).await;
    }
}

async fn accept(listener: &mut Listener, router: &Router, stop: &CancellationToken) {
    let mut tasks = JoinSet::new();
    // The oldest first.
    let mut open: VecDeque<Open> = VecDeque::new();
    let changed = Arc::new(Notify::new());
    loop {
        let is_full = open.len() >= CONNECTIONS;
        let room_at =
            if is_full { open.iter().filter_map(Open::gives_way_at).min() } else { Some(Instant::now()) };
        let has_room = room_at.is_some_and(|at| at <= Instant::now());
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next_with_id() => {
                // A panic ends one connection, and has been reported.
                let ended = ended.map_or_else(|error| error.id(), |(task, ())| task);
                open.retain(|one| one.task != ended);
                continue;
            }
            accepted = listener.accept(), if has_room => accepted,
            () = tokio::time::sleep_until(room_at.unwrap_or_else(Instant::now)), if !has_room && room_at.is_some() => continue,
            () = changed.notified(), if is_full => continue,
        };
        // It listens to nothing else.
        let (Stream::Tcp(stream), _) = accepted else { continue };
        let suspect = || open.iter().position(Open::is_suspect);
        let gives_way = |one: &Open| one.gives_way_at().is_some_and(|at| at <= Instant::now());
        let idle = || open.iter().position(|one| gives_way(one) && !one.is_stream());
        // Somebody follows what happens there: one that only waits goes before it.
        let followed = || open.iter().position(gives_way);
        if is_full
            && let Some(idle) = suspect().or_else(idle).or_else(followed)
            && let Some(oldest) = open.remove(idle)
        {
            oldest.shared.cut.cancel();
        }
        // Whoever has gone already has nothing to ask.
        let Ok(peer) = stream.peer_addr() else { continue };
        let shared = Arc::new(Connection {
            peer,
            is_busy: false.into(),
            is_stream: false.into(),
            is_suspect: false.into(),
            since: Instant::now(),
            waiting: OnceLock::new(),
            changed: changed.clone(),
            cut: CancellationToken::new(),
        });
        let task = tasks.spawn(serve(stream, router.clone(), shared.clone())).id();
        open.push_back(Open { task, shared });
        // Whoever has asked already is to be read before it is looked at again who gives way: a request that
        // has come makes its connection busy, and one with a wrong token a suspect.
        task::yield_now().await;
    }
    tasks.shutdown().await;
}

/// The stream of a connection, which notes when its client is waited for, and gives up one that does not
/// read.
struct Watched<'a> {
    stream: TcpStream,
    shared: &'a Connection,
    /// Ends the wait for the client to read.
    unread: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() {
            self.shared.waits();
        }
        read
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(READ_TIMEOUT)));
        std::task::ready!(unread.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn serve(stream: TcpStream, router: Router, shared: Arc<Connection>) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<_>| {
        request.extensions_mut().insert(shared.clone());
        shared.is_busy.store(true, Ordering::Relaxed);
        let response = router.call(request);
        async {
            let response = response.await;
            let is_stream =
                response.as_ref().is_ok_and(|answer| answer.extensions().get::<Streamed>().is_some());
            shared.is_stream.store(is_stream, Ordering::Relaxed);
            shared.is_busy.store(false, Ordering::Relaxed);
            // From here on its client is waited for, to read the answer and to ask again.
            shared.waits();
            shared.changed.notify_one();
            response
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_MAX)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(Watched { stream, shared: &shared, unread: None }), service);
    tokio::select! {
        () = shared.cut.cancelled() => {}
        result = connection => {
            if let Err(error) = result {
                tracing::debug!(%error, "HTTP: a connection has failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use xmsg_zmq::TcpOptions;

    use super::*;

    /// Time passes as soon as everybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_is_given_up() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::adopt(socket, TcpOptions::default()).unwrap();
        let stop = CancellationToken::new();
        let (alive, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
        // An answer without end, which is dropped with its connection.
        let answer = move || {
            let alive = alive.clone();
            let endless = futures::stream::repeat_with(move || {
                let _ = &alive;
                Ok::<_, io::Error>(bytes::Bytes::from(vec![0; 64 << 10]))
            });
            std::future::ready(axum::body::Body::from_stream(endless))
        };
        let router = Router::new().route("/", axum::routing::get(answer));
        let server = tokio::spawn(run(listener, router, stop.clone()));
        let started = Instant::now();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        client.read_u8().await.unwrap();
        // It ends although the client neither reads nor leaves: then nothing more comes than was on its way.
        sleep(READ_TIMEOUT * 2).await;
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert!(started.elapsed() >= READ_TIMEOUT);
        stop.cancel();
        server.await.unwrap();
        assert!(dropped.recv().await.is_none(), "the answer is dropped");
    }

    /// Time passes as soon as everybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_get_on_is_given_up() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::adopt(socket, TcpOptions::default()).unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(run(listener, Router::new(), stop.clone()));
        for sent in ["", "GET / HTTP/1.1\r\nHost: a\r\nSlow", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let started = Instant::now();
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            // After an answer, the connection waits for another request.
            client.read_to_end(&mut Vec::new()).await.unwrap();
            let waited = started.elapsed();
            assert!((HEADER_TIMEOUT..HEADER_TIMEOUT * 2).contains(&waited), "{sent:?}: {waited:?}");
        }
        stop.cancel();
        server.await.unwrap();
    }
}
