//! A pool of connections: idle connections to each proxy are kept and used again.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{ConnectOptions, Connection, Error, ErrorKind, ProxyAddress, Result, Unfinished};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;

/// The largest number of idle connections that are kept for one proxy.
pub const MAX_IDLE: usize = 16;
/// How long an idle connection is kept.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A pool of connections. Clones share one pool.
///
/// A connection that was taken is for its taker alone; the guard returns it to the pool when it is dropped. A
/// connection that has lost its proxy is not kept. It goes on trying, in the background, to send what it had
/// accepted, for its [linger](xmsg_zmq::SocketOptions::linger) time.
///
/// ```no_run
/// # async fn run() -> xmsg_core::Result<()> {
/// use xmsg_core::{ConnectOptions, Message, Pool};
/// let pool = Pool::new(ConnectOptions::new())?;
/// let proxy = "10.0.0.7".parse()?;
/// pool.cache_connection(&proxy).await?; // the next `take` is quick
/// let connection = pool.take(&proxy).await?;
/// connection.publish(&Message::of("report:sports", "3:1")?).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: ConnectOptions,
    max_idle: usize,
    idle_timeout: Duration,
    state: Mutex<State>,
    next_ticket: AtomicU64,
    /// What connections that were closed in the background left unfinished.
    unfinished: Mutex<Unfinished>,
    /// The connections that were open when the pool was closed. A later call of `close` returns their counts
    /// again.
    closed_with: Mutex<Vec<Connection>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    idle: HashMap<ProxyAddress, Vec<(Connection, Instant)>>,
    /// Connections that guards hold, by ticket. Closing the pool closes them, too.
    taken: HashMap<u64, Connection>,
    reaper_runs: bool,
    closed: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Pool {
    /// Makes an empty pool whose connections have these options. It keeps up to 16 idle connections for each
    /// proxy, for five minutes.
    ///
    /// # Errors
    /// [`InvalidOption`](ErrorKind::InvalidOption) when an option makes no sense.
    pub fn new(options: ConnectOptions) -> Result<Self> {
        Self::with_limits(options, MAX_IDLE, IDLE_TIMEOUT)
    }

    /// Makes an empty pool that keeps up to `max_idle` idle connections for each proxy, each of them for
    /// `idle_timeout`.
    ///
    /// # Errors
    /// [`InvalidOption`](ErrorKind::InvalidOption) when an option makes no sense.
    pub fn with_limits(options: ConnectOptions, max_idle: usize, idle_timeout: Duration) -> Result<Self> {
        options.check()?;
        Ok(Self::of(options, max_idle, idle_timeout))
    }

    /// Makes a pool with options that were checked.
    pub(crate) fn with_checked(options: ConnectOptions) -> Self {
        Self::of(options, MAX_IDLE, IDLE_TIMEOUT)
    }

    fn of(options: ConnectOptions, max_idle: usize, idle_timeout: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                max_idle,
                idle_timeout,
                state: Mutex::default(),
                next_ticket: AtomicU64::new(0),
                unfinished: Mutex::default(),
                closed_with: Mutex::default(),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Returns a connection to this proxy for the caller alone: an idle one, or a new one that was opened and
    /// checked.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed) when the pool is closed, and the errors of [`Connection::connect`].
    pub async fn take(&self, address: &ProxyAddress) -> Result<PooledConnection> {
        loop {
            let idle = {
                let mut state = self.inner.open_state()?;
                state.idle.get_mut(address).and_then(Vec::pop)
            };
            let connection = match idle {
                Some((connection, _)) if connection.is_connected() => connection,
                Some((connection, _)) => {
                    self.inner.discard(connection);
                    continue;
                }
                None => {
                    let options = self.inner.options.clone();
                    let connection = Connection::checked(address.clone(), options);
                    connection.connect().await?;
                    connection
                }
            };
            let ticket = self.inner.next_ticket.fetch_add(1, Ordering::Relaxed);
            self.inner.open_state()?.taken.insert(ticket, connection.share());
            return Ok(PooledConnection { pool: self.clone(), connection, ticket });
        }
    }

    /// Returns all connections, those that are taken and those that are idle.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        let state = self.inner.state();
        let idle = state.idle.values().flatten().map(|(connection, _)| connection);
        idle.chain(state.taken.values()).map(Connection::share).collect()
    }

    /// Opens a connection for later, so that the next [`take`](Self::take) is quick.
    ///
    /// # Errors
    /// The errors of [`take`](Self::take).
    pub async fn cache_connection(&self, address: &ProxyAddress) -> Result<()> {
        self.take(address).await.map(drop)
    }

    /// Returns the number of idle connections to this proxy.
    #[must_use]
    pub fn idle(&self, address: &ProxyAddress) -> usize {
        self.inner.state().idle.get(address).map_or(0, Vec::len)
    }

    /// Closes all connections within `limit`, including those that are taken, as [`Connection::close`] does.
    /// Returns the counts of what is unfinished, of these connections and of those that were discarded
    /// before. Calling it again returns the same counts.
    pub async fn close(&self, limit: Duration) -> Unfinished {
        {
            let mut state = self.inner.state();
            state.closed = true;
            let idle =
                std::mem::take(&mut state.idle).into_values().flatten().map(|(connection, _)| connection);
            // The connections are kept, so that the next call returns the same counts if this one is
            // cancelled.
            lock(&self.inner.closed_with).extend(idle.chain(std::mem::take(&mut state.taken).into_values()));
        }
        let deadline = Deadline::after(limit);
        let connections: Vec<_> = lock(&self.inner.closed_with).iter().map(Connection::share).collect();
        let closing = connections.iter().map(|connection| connection.close(limit));
        let left: Unfinished = join_all(closing).await.into_iter().sum();
        self.inner.stop.cancel();
        self.inner.tasks.close();
        if deadline.limit(self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("broken connections of the pool are still being closed");
        }
        left + *lock(&self.inner.unfinished)
    }

    fn give_back(&self, ticket: u64, connection: &Connection) {
        let mut state = self.inner.state();
        // The pool, and with it the connection, was closed in the meantime.
        if state.taken.remove(&ticket).is_none() {
            return;
        }
        let idle = state.idle.entry(connection.address().clone()).or_default();
        if connection.is_connected() && idle.len() < self.inner.max_idle {
            idle.push((connection.share(), Instant::now()));
            if !std::mem::replace(&mut state.reaper_runs, true) {
                let reaper =
                    reap(Arc::downgrade(&self.inner), self.inner.stop.clone(), self.inner.idle_timeout);
                spawn(&self.inner.tasks, reaper);
            }
        } else {
            drop(state);
            self.inner.discard(connection.share());
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.closed {
            Err(Error::new(ErrorKind::Closed, "the connection pool is closed"))
        } else {
            Ok(state)
        }
    }

    /// Closes a connection in the background.
    fn discard(self: &Arc<Self>, connection: Connection) {
        let pool = self.clone();
        spawn(&self.tasks, async move {
            let left = connection.close(pool.options.linger_time()).await;
            *lock(&pool.unfinished) += left;
            if !left.is_nothing() {
                tracing::warn!(proxy = %connection.address(), %left, "a pooled connection was closed before it had sent everything");
            }
        });
    }
}

/// Discards connections that were idle for too long.
async fn reap(pool: std::sync::Weak<Inner>, stop: CancellationToken, timeout: Duration) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(timeout / 2) => {}
        }
        let Some(pool) = pool.upgrade() else { return };
        let mut expired = Vec::new();
        for idle in pool.state().idle.values_mut() {
            let fresh = idle.partition_point(|(_, since)| since.elapsed() >= timeout);
            expired.extend(idle.drain(..fresh).map(|(connection, _)| connection));
        }
        for connection in expired {
            pool.discard(connection);
        }
    }
}

/// Spawns a task, unless the runtime has ended: then nothing can be done any more.
fn spawn(tasks: &TaskTracker, task: impl Future<Output = ()> + Send + 'static) {
    if tokio::runtime::Handle::try_current().is_ok() {
        tasks.spawn(task);
    }
}

/// A [`Connection`] from a pool, which returns to the pool when this guard is dropped. The connection cannot
/// be cloned, so that nobody else has it:
///
/// ```compile_fail,E0308
/// fn keep(pooled: &xmsg_core::PooledConnection) -> xmsg_core::Connection {
///     (**pooled).clone()
/// }
/// ```
#[derive(Debug)]
pub struct PooledConnection {
    pool: Pool,
    connection: Connection,
    ticket: u64,
}

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.pool.give_back(self.ticket, &self.connection);
    }
}
