//! Connections that are made once and used again, a queue of idle ones for each proxy.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Connection, Error, ErrorKind, ProxyAddress, Result, Setup};

/// Idle connections kept for one proxy.
pub const MAX_IDLE: usize = 16;
/// How long an idle connection is kept.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A pool of connections. Clones share it.
///
/// A connection that was taken belongs to its taker alone; the guard gives it back when it is dropped. One that has lost its
/// proxy is not kept: it goes on trying to send what it had accepted for its [linger](crate::socket::SocketOptions::linger), in the
/// background.
///
/// ```no_run
/// # async fn run() -> xmsg_core::Result<()> {
/// use xmsg_core::{Message, Setup, pool::Pool};
/// let pool = Pool::new(Setup::default());
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
    setup: Setup,
    max_idle: usize,
    idle_timeout: Duration,
    state: Mutex<State>,
    next_ticket: AtomicU64,
    /// Messages that connections closed in the background could not send.
    unsent: AtomicUsize,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    idle: HashMap<ProxyAddress, Vec<(Connection, Instant)>>,
    /// Connections that guards hold, by ticket: closing the pool closes them, too.
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
    /// An empty pool whose connections are set up like this; 16 idle ones are kept for a proxy, for five minutes.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self::with_limits(setup, MAX_IDLE, IDLE_TIMEOUT)
    }

    /// The same with limits of its own.
    #[must_use]
    pub fn with_limits(setup: Setup, max_idle: usize, idle_timeout: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                setup,
                max_idle,
                idle_timeout,
                state: Mutex::default(),
                next_ticket: AtomicU64::new(0),
                unsent: AtomicUsize::new(0),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// A connection to this proxy that nobody else has: an idle one, or a new one, opened and checked.
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
                    let connection = Connection::with_setup(address.clone(), self.inner.setup.clone());
                    connection.connect().await?;
                    connection
                }
            };
            let ticket = self.inner.next_ticket.fetch_add(1, Ordering::Relaxed);
            self.inner.open_state()?.taken.insert(ticket, connection.clone());
            return Ok(PooledConnection { pool: self.clone(), connection, ticket });
        }
    }

    /// Makes a connection for later.
    pub async fn cache_connection(&self, address: &ProxyAddress) -> Result<()> {
        self.take(address).await.map(drop)
    }

    /// How many idle connections there are to this proxy.
    #[must_use]
    pub fn idle(&self, address: &ProxyAddress) -> usize {
        self.inner.state().idle.get(address).map_or(0, Vec::len)
    }

    /// Closes every connection, also those that are taken; they send what they accepted for at most `linger`. Returns how many
    /// messages were not sent, by these or by connections that were discarded before.
    pub async fn close(&self, linger: Duration) -> usize {
        let connections: Vec<Connection> = {
            let mut state = self.inner.state();
            state.closed = true;
            let idle =
                std::mem::take(&mut state.idle).into_values().flatten().map(|(connection, _)| connection);
            idle.chain(std::mem::take(&mut state.taken).into_values()).collect()
        };
        let closing = connections.iter().map(|connection| connection.close(linger));
        let unsent: usize = join_all(closing).await.into_iter().sum();
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        unsent + self.inner.unsent.swap(0, Ordering::Relaxed)
    }

    fn give_back(&self, ticket: u64, connection: &Connection) {
        let mut state = self.inner.state();
        // The pool was closed meanwhile, and the connection with it.
        if state.taken.remove(&ticket).is_none() {
            return;
        }
        let idle = state.idle.entry(connection.address().clone()).or_default();
        if connection.is_connected() && idle.len() < self.inner.max_idle {
            idle.push((connection.clone(), Instant::now()));
            if !std::mem::replace(&mut state.reaper_runs, true) {
                let reaper =
                    reap(Arc::downgrade(&self.inner), self.inner.stop.clone(), self.inner.idle_timeout);
                spawn(&self.inner.tasks, reaper);
            }
        } else {
            drop(state);
            self.inner.discard(connection.clone());
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            let unsent = connection.close(pool.setup.linger()).await;
            pool.unsent.fetch_add(unsent, Ordering::Relaxed);
            if unsent > 0 {
                tracing::warn!(proxy = %connection.address(), unsent, "a connection of the pool could not send everything");
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

/// Spawns unless the runtime has ended, and with it everything that could be done.
fn spawn(tasks: &TaskTracker, task: impl Future<Output = ()> + Send + 'static) {
    if tokio::runtime::Handle::try_current().is_ok() {
        tasks.spawn(task);
    }
}

/// A [`Connection`] from a pool; dropping it gives it back.
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
