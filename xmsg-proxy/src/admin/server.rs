//! The connections of the HTTP server: few, short-lived, and none of them worth waiting for.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
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
use xmsg_zmq::link::source::Source;
use xmsg_zmq::link::transport::{Listener, Stream};

use super::api::Streamed;

/// How many connections there may be. Above it, the oldest one that has sent a wrong token is ended for a new
/// one. If there is none, it is one that is not being answered and has had its time to ask: one that only
/// waits, before one that follows events; one of the address with the most, if that has more than `FEW`; and
/// then the oldest.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// The time that every client has to ask, from when nothing of a request was there to be read. No connection
/// is ended for others before, so that a crowd of newcomers cuts off nobody who is about to ask, or has
/// asked.
const GRACE: Duration = Duration::from_millis(250);
/// How many connections an address may have with the full time to ask. A browser opens six.
const FEW: usize = 8;
/// The time to ask of an address that has more connections than `FEW`. Newcomers are accepted in turn, so
/// that all behind a crowd wait for as long as its connections have.
const CROWD_GRACE: Duration = Duration::from_millis(10);
/// How long a request may take to arrive, and a connection may be silent between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may read nothing of its answer. Then its connection ends, and the memory of the answer
/// is free.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How many bytes the line and the headers of a request may have.
const HEADER_MAX: usize = 16 << 10;
/// How many headers a request may have.
const HEADERS_MAX: usize = 64;

/// An open connection.
#[derive(Debug)]
struct OpenConnection {
    /// The task that serves the connection.
    task: task::Id,
    shared: Arc<Connection>,
}

impl OpenConnection {
    /// Returns when it may be ended for others, and `None` if not before something changes. `of_address` is
    /// the number of connections that its address has.
    fn gives_way_at(&self, of_address: usize) -> Option<Instant> {
        if self.is_suspect() {
            return Some(self.shared.since);
        }
        let waiting = self.shared.waiting.get().filter(|_| !self.shared.is_busy.load(Ordering::Relaxed))?;
        let grace = if of_address > FEW { CROWD_GRACE } else { GRACE };
        Some(Deadline::since(*waiting, grace).instant())
    }

    fn is_stream(&self) -> bool {
        self.shared.is_stream.load(Ordering::Relaxed)
    }

    fn is_suspect(&self) -> bool {
        self.shared.is_suspect.load(Ordering::Relaxed)
    }
}

/// Returns each open connection with the number of those that its address has, the oldest first.
fn with_crowds(open: &VecDeque<OpenConnection>) -> impl Iterator<Item = (&OpenConnection, usize)> {
    let mut crowds: HashMap<&Source, usize> = HashMap::new();
    for one in open {
        *crowds.entry(&one.shared.source).or_default() += 1;
    }
    open.iter().map(move |one| (one, crowds.get(&one.shared.source).copied().unwrap_or_default()))
}

/// Returns when the first of these connections may be ended for a new one.
fn room_at(open: &VecDeque<OpenConnection>) -> Option<Instant> {
    with_crowds(open).filter_map(|(one, of_address)| one.gives_way_at(of_address)).min()
}

/// Returns the place of the connection that is to be ended for a new one.
fn first_to_end(open: &VecDeque<OpenConnection>) -> Option<usize> {
    let now = Instant::now();
    let rank = |one: &OpenConnection, of_address: usize| {
        let crowd = if of_address > FEW { of_address } else { 0 };
        (!one.is_suspect()).then_some((one.is_stream(), Reverse(crowd)))
    };
    with_crowds(open)
        .enumerate()
        .filter(|(_, (one, of_address))| one.gives_way_at(*of_address).is_some_and(|at| at <= now))
        .min_by_key(|(_, (one, of_address))| rank(one, *of_address))
        .map(|(place, _)| place)
}

/// The state that the server shares with the task of a connection. Every request has it among its extensions.
#[derive(Debug)]
pub(super) struct Connection {
    peer: SocketAddr,
    source: Source,
    /// Whether an answer is being made. While an answer is only written, the connection is not busy, since
    /// the client may not read.
    is_busy: AtomicBool,
    /// Whether events are sent to the client without end.
    is_stream: AtomicBool,
    /// Whether the client has sent a wrong token.
    is_suspect: AtomicBool,
    since: Instant,
    /// When there was nothing to read for the first time.
    waiting: OnceLock<Instant>,
    /// Notifies the server when one of these has changed.
    changed: Arc<Notify>,
    cut: CancellationToken,
}

impl Connection {
    /// Returns the address of the client.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Notes that there was nothing to read.
    fn note_waiting(&self) {
        if self.waiting.set(Instant::now()).is_ok() {
            self.changed.notify_one();
        }
    }

    /// Notes that the body of its request is awaited. Meanwhile it may be ended for others like one that has
    /// yet to ask.
    pub(super) fn waits_for_body(&self) {
        self.is_busy.store(false, Ordering::Relaxed);
        self.note_waiting();
        self.changed.notify_one();
    }

    /// Notes that the body of its request has arrived.
    pub(super) fn has_body(&self) {
        self.is_busy.store(true, Ordering::Relaxed);
    }

    /// Notes that it has sent a wrong token. Its answer waits, and it is the first to be ended for others.
    pub(super) fn set_suspect(&self) {
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
    // The open connections, the oldest first.
    let mut open: VecDeque<OpenConnection> = VecDeque::new();
    let changed = Arc::new(Notify::new());
    loop {
        let is_full = open.len() >= CONNECTIONS_MAX;
        let room_at = if is_full { room_at(&open) } else { Some(Instant::now()) };
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
        // The listener has TCP connections only.
        let (Stream::Tcp(stream), _) = accepted else { continue };
        if is_full
            && let Some(first) = first_to_end(&open)
            && let Some(ended) = open.remove(first)
        {
            ended.shared.cut.cancel();
        }
        // A client that has gone already has nothing to ask.
        let Ok(peer) = stream.peer_addr() else { continue };
        let shared = Arc::new(Connection {
            peer,
            source: Source::of(&peer.to_string()),
            is_busy: false.into(),
            is_stream: false.into(),
            is_suspect: false.into(),
            since: Instant::now(),
            waiting: OnceLock::new(),
            changed: changed.clone(),
            cut: CancellationToken::new(),
        });
        let task = tasks.spawn(serve(stream, router.clone(), shared.clone())).id();
        open.push_back(OpenConnection { task, shared });
        // Whoever has asked already is to be read before it is looked at again who gives way: a request that
        // has come makes its connection busy, and one with a wrong token a suspect.
        task::yield_now().await;
    }
    tasks.shutdown().await;
}

/// The stream of a connection, which notes when its client is waited for, and gives up one that does not
/// read.
struct WatchedStream<'a> {
    stream: TcpStream,
    shared: &'a Connection,
    /// Ends the wait for the client to read.
    unread: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for WatchedStream<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() {
            self.shared.note_waiting();
        }
        read
    }
}

impl AsyncWrite for WatchedStream<'_> {
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
            // From here on the client is awaited, to read the answer and to ask again.
            shared.note_waiting();
            shared.changed.notify_one();
            response
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(WatchedStream { stream, shared: &shared, unread: None }), service);
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

    /// How many times as many connections come as there may be.
    const CROWDS: usize = 8;

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

    #[tokio::test]
    async fn a_crowd_of_one_address_gives_way_soon_and_before_others() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::adopt(socket, TcpOptions::default()).unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/", axum::routing::get(|| std::future::ready("here")));
        let server = tokio::spawn(run(listener, router, stop.clone()));
        let ask = async |client: &mut TcpStream| {
            let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        };
        // It has the first place, and is idle for longest.
        let other = tokio::net::TcpSocket::new_v4().unwrap();
        other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = other.connect(address).await.unwrap();
        let started = Instant::now();
        let mut crowd = Vec::new();
        for _ in 0..CROWDS * CONNECTIONS_MAX {
            crowd.push(TcpStream::connect(address).await.unwrap());
        }
        // It comes behind all of the crowd.
        ask(&mut TcpStream::connect(address).await.unwrap()).await;
        let waited = started.elapsed();
        // With the full time to ask, each but the first of these crowds would have had it.
        let in_full = GRACE * (u32::try_from(CROWDS).unwrap() - 1);
        assert!(waited < in_full / 2, "{waited:?}");
        ask(&mut other).await;
        stop.cancel();
        server.await.unwrap();
    }
}
