//! The registrar: a directory of publishers and subscribers and their addresses (section 5 of the xMsg
//! protocol).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_core::Result<()> {
//! use std::time::Duration;
//! use xmsg_core::registration::{OwnerType, Query, Registration};
//! use xmsg_core::{ProxyAddress, Topic};
//! use xmsg_proxy::registrar::Registrar;
//!
//! let registrar = Registrar::bind("127.0.0.1:0").start().await?;
//! let client = xmsg_core::Registrar::new(registrar.address().clone());
//! let topic = Topic::new("report", "sports")?;
//! let registration = Registration::new(OwnerType::Publisher, "reporter", &topic, &ProxyAddress::default());
//! client.register(&registration).await?;
//! let found = client.find(&Query::topic(OwnerType::Publisher, &topic)).await?;
//! assert_eq!(found, [registration]);
//! registrar.stop(Duration::from_secs(5)).await;
//! # Ok(()) }
//! ```

// | file | answers |
// |---|---|
// | `service.rs` | When is a request answered, and when does a change count? |
// | `store.rs` | What is registered, and what does a search find? |
// | `journal.rs` | How are registrations stored in files, and which of them are in force? |
// | `journal/draft.rs` | How are a snapshot and the next journal written, while the present ones are in use? |
// | `journal/format.rs` | What are the bytes of these files? |

// Longer than 500 lines: the public interface of the registrar, most of it documentation and options.

pub mod journal;
mod service;
pub mod store;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use xmsg_core::options::{HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT};
use xmsg_core::registration::Registration;
use xmsg_core::{Error, ErrorKind, RegistrarAddress, Result};
use xmsg_zmq::fault::CriticalTasks;
use xmsg_zmq::link::transport::Listener;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{
    Admission, AdmissionLimits, Endpoint, HighWaterMark, Replier, SocketOptions, TcpOptions, ViolationCounts,
};
use xmsg_zmtp::{Limits, MessageLimits};

use crate::security::{Authority, Mechanism};
use journal::{Entry, Journal};
use service::{Counters, Question, REPLY_FRAMES, REPLY_SIZE, Service};
pub use service::{Listed, Page, Query};
use store::{Reserved, Store};

/// The options of a registrar.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that stores the registrations. Its journal and its lock file are beside it. By default there
    /// is none, and the registrations end with the process.
    pub snapshot: Option<PathBuf>,
    /// How long a registration lasts if it is not renewed. By default it lasts for ever, because Java, C++
    /// and Python actors don't renew theirs.
    pub ttl: Option<Duration>,
    /// The largest number of registrations. More are refused. Default: 4,000,000.
    pub registrations: usize,
    /// The most memory for all registrations, in bytes, as [`Store::memory`] counts it. Registrations beyond
    /// it are refused. Default: 2 GiB.
    pub registration_memory: usize,
    /// The memory budget for connections and for requests that have been received in part. When it is used
    /// up, the peer that holds the most is disconnected. Default:
    /// [`default_limit`](crate::default_memory_limit::default_limit).
    pub memory: MemoryBudget,
    /// The security mechanism of the port. Default: NULL, that is, no security.
    pub security: Mechanism,
    /// Who may connect, and who may register. Default: everybody, on a port without security.
    pub authority: Arc<Authority>,
    /// The largest number of connections. A connection beyond it is closed at once. Default: 100,000.
    pub connections: usize,
    /// The largest number of connections whose handshake is in progress. A connection beyond it is closed at
    /// once. Default: 4096.
    pub handshakes: usize,
    /// The largest number of connections from one address whose handshake is in progress. A connection beyond
    /// it is closed at once. Default: 256.
    pub handshakes_per_address: usize,
    /// Limits for what one peer may send. By default messages may have up to 16 MiB, but of a request's data
    /// only 4 KiB are read.
    pub limits: Limits,
    /// Options of the TCP transport.
    pub tcp: TcpOptions,
}

impl Default for Config {
    fn default() -> Self {
        let admission = AdmissionLimits::default();
        Self {
            snapshot: None,
            ttl: None,
            registrations: 4_000_000,
            registration_memory: 2 << 30,
            memory: MemoryBudget::new(crate::default_memory_limit::default_limit()),
            security: Mechanism::default(),
            authority: Arc::default(),
            connections: admission.connections,
            handshakes: admission.handshakes,
            handshakes_per_address: admission.handshakes_per_address,
            limits: Limits { message_size: 16 << 20, ..Limits::default() },
            tcp: TcpOptions::default(),
        }
    }
}

/// A builder for a [`Registrar`]. Each option has a default, which [`Config`] documents.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    address: String,
    config: Config,
    has_thread: bool,
}

impl Builder {
    /// Sets all options at once.
    pub fn config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Sets the file that stores the registrations.
    pub fn snapshot(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.snapshot = Some(path.into());
        self
    }

    /// Sets how long a registration lasts if it is not renewed.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.config.ttl = Some(ttl);
        self
    }

    /// Runs the registrar on a thread and a runtime of its own, so that its work takes no time from the
    /// current runtime. Without this option it runs on the current runtime, and yields after less than a
    /// millisecond of work.
    pub fn on_its_own_thread(self) -> Self {
        Self { has_thread: true, ..self }
    }

    /// Reads the snapshot, binds the port and starts to serve requests.
    ///
    /// # Errors
    ///
    /// If the thread can't be started, the files can't be read or locked, the address is not valid, or the
    /// port can't be bound.
    pub async fn start(self) -> Result<Registrar> {
        let Self { address, config, has_thread } = self;
        Registrar::start_somewhere(config, ListenOn::Address(address), has_thread).await
    }

    /// Starts the registrar on a socket that listens already, for example one from a service manager, instead
    /// of binding the address.
    ///
    /// # Errors
    ///
    /// The same as those of [`start`](Self::start), except that nothing is bound.
    pub async fn start_on(self, socket: TcpListener) -> Result<Registrar> {
        let Self { config, has_thread, .. } = self;
        Registrar::start_somewhere(config, ListenOn::Socket(socket), has_thread).await
    }
}

/// Where a registrar listens: at an address to bind, or on a socket that listens already.
#[derive(Debug)]
enum ListenOn {
    Address(String),
    Socket(TcpListener),
}

impl ListenOn {
    async fn listen(self, replier: &Replier, tcp: TcpOptions) -> Result<RegistrarAddress> {
        match self {
            Self::Address(address) => listen(&address, replier).await,
            Self::Socket(socket) => located(replier.listen(Listener::adopt(socket, tcp)?)),
        }
    }
}

/// The largest number of threads for blocking work in a runtime that runs only a registrar. Blocking work is
/// file access and the decryption of long encrypted requests. See
/// [`blocking_threads`](crate::default_memory_limit::blocking_threads).
pub const BLOCKING_THREADS: usize = 8;

/// Questions of [`Monitor::browse`] that may wait for the registrar. At this number, a question is refused.
const QUESTIONS_MAX: usize = 8;

/// The thread of a registrar that has its own. The thread ends when this value is dropped.
#[derive(Debug)]
struct OwnThread {
    end: DropGuard,
    thread: std::thread::JoinHandle<()>,
}

impl OwnThread {
    /// Starts a registrar on a thread of its own.
    async fn start(config: Config, listen_on: ListenOn) -> Result<Registrar> {
        let failed = |error| Error::new(ErrorKind::Io, "the registrar has no thread").with_source(error);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let blocking = crate::default_memory_limit::blocking_threads(BLOCKING_THREADS);
        let runtime = runtime.enable_all().max_blocking_threads(blocking).build().map_err(failed)?;
        let (started_sender, started) = oneshot::channel();
        let end = CancellationToken::new();
        let ended = end.clone();
        let work = async move {
            // A caller that no longer waits has dropped the receiver. Then this thread ends, too.
            let _ = started_sender.send(Registrar::start(config, listen_on).await);
            ended.cancelled().await;
        };
        let thread = std::thread::Builder::new().name("xmsg-registrar".to_owned());
        let thread = thread.spawn(move || runtime.block_on(work)).map_err(failed)?;
        let own = Self { end: end.drop_guard(), thread };
        let gone = |error| Error::new(ErrorKind::Io, "the registrar's thread has ended").with_source(error);
        let mut registrar = started.await.map_err(gone)??;
        registrar.thread = Some(own);
        Ok(registrar)
    }

    /// Ends the thread with everything that still runs on it, and waits for its end.
    async fn join(self) {
        let Self { end, thread } = self;
        drop(end);
        // A panic of the thread has been reported where it happened.
        let _ = tokio::task::spawn_blocking(|| thread.join()).await;
    }
}

/// A handle that watches a registrar from any thread. It reads counts and changes nothing. It is cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct Monitor {
    counters: Arc<Counters>,
    /// A weak reference, so that a monitor does not keep the socket open.
    replier: Weak<Replier>,
    runtime: Handle,
    memory_limit: usize,
    memory: MemoryBudget,
    questions: mpsc::Sender<Question>,
}

impl Monitor {
    /// Returns how many registrations there are, and what was counted since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counters.counts()
    }

    /// Returns how many clients are connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.replier.upgrade().map_or(0, |replier| replier.peers())
    }

    /// Returns whether changes can be stored. While they can't, the registrar refuses changes and tries again
    /// from time to time.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.counters.is_unwritable.load(Ordering::Relaxed)
    }

    /// Returns the limit of the memory for all registrations, in bytes.
    #[must_use]
    pub fn memory_limit(&self) -> usize {
        self.memory_limit
    }

    /// Returns the budget of the memory that all clients together hold beside the registrations: requests,
    /// unsent answers, and connections.
    #[must_use]
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    /// Returns some of the registrations: those that match the query, in the order of their topics. The
    /// registrar looks for them in slices of a fraction of a millisecond, between the requests of its
    /// clients. Returns `None` if too many ask at the same time, or if the registrar has ended.
    pub async fn browse(&self, query: Query) -> Option<Page> {
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(Question { query, answer }).ok()?;
        answered.await.ok()
    }

    /// Returns the runtime that the registrar runs on.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

/// How many registrations a registrar has, and what it counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Publishers that are registered now.
    pub publishers: u64,
    /// Subscribers that are registered now.
    pub subscribers: u64,
    /// The memory that the registrations take, in bytes, as [`Store::memory`] counts it.
    pub memory: u64,
    /// Requests that were answered, including those that were refused.
    pub requests: u64,
    /// Requests that were answered with an error.
    pub refused: u64,
    /// Registrations that were refused because of the limit of their number or of their memory.
    pub full: u64,
    /// Failed attempts to write changes to the disk.
    pub write_failures: u64,
    /// Registrations that were removed because they were not renewed in time.
    pub expired: u64,
    /// Connections that were ended because the peer violated the protocol or a limit.
    pub violations: ViolationCounts,
}

impl Counters {
    fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            publishers: read(&self.publishers),
            subscribers: read(&self.subscribers),
            memory: read(&self.memory),
            requests: read(&self.requests),
            refused: read(&self.refused),
            full: read(&self.full),
            write_failures: read(&self.write_failures),
            expired: read(&self.expired),
            violations: self.violations.counts(),
        }
    }
}

/// A running registrar. [`stop`](Self::stop) stops it and writes what is not on the disk yet. Dropping it
/// stops it at once: when the drop returns, its port is free.
#[derive(Debug)]
pub struct Registrar {
    address: RegistrarAddress,
    counters: Arc<Counters>,
    stop: CancellationToken,
    replier: Arc<Replier>,
    service: Option<JoinHandle<()>>,
    critical: CriticalTasks,
    runtime: Handle,
    memory_limit: usize,
    memory: MemoryBudget,
    questions: mpsc::Sender<Question>,
    thread: Option<OwnThread>,
}

impl Drop for Registrar {
    fn drop(&mut self) {
        if let Some(service) = &self.service {
            service.abort();
        }
        self.replier.unbind_all();
    }
}

impl Registrar {
    /// Returns a builder for a registrar at `host:port`. Port 0 stands for any free port.
    pub fn bind(address: impl Into<String>) -> Builder {
        Builder { address: address.into(), config: Config::default(), has_thread: false }
    }

    async fn start_somewhere(config: Config, listen_on: ListenOn, has_thread: bool) -> Result<Self> {
        if has_thread {
            OwnThread::start(config, listen_on).await
        } else {
            Self::start(config, listen_on).await
        }
    }

    async fn start(config: Config, listen_on: ListenOn) -> Result<Self> {
        let (memory_limit, memory) = (config.registration_memory, config.memory.clone());
        let mut store = Store::new(config.registrations, config.ttl).with_memory_limit(memory_limit);
        let mut journal = match config.snapshot {
            None => None,
            Some(path) => {
                let load = tokio::task::spawn_blocking(move || load(&path, store));
                let (loaded, journal) = load.await.map_err(|error| {
                    Error::new(ErrorKind::Io, "the snapshot could not be loaded").with_source(error)
                })??;
                store = loaded;
                Some(journal)
            }
        };
        if let Some(damaged) = journal.take_if(|journal| journal.is_broken()) {
            journal = Some(service::compact(damaged, &store).await?);
        }

        let counters = Arc::new(Counters::default());
        let critical = CriticalTasks::default();
        let replier = Replier::new(
            SocketOptions::default()
                // Room for thousands of requests. The peers are served in turn, so those that send few
                // requests need not wait for room.
                .receive_high_water_mark(1 << 20)
                // Room for one reply: a REQ peer waits for its reply before it sends the next request.
                .send_high_water_mark(HighWaterMark::bytes(1 << 20))
                // Peers that vanish must not keep their connections.
                .heartbeat_interval(HEARTBEAT_INTERVAL)
                .heartbeat_timeout(HEARTBEAT_TIMEOUT)
                .limits(config.limits)
                // Answers are much longer than requests.
                .send_limits(MessageLimits { size: REPLY_SIZE, frames: REPLY_FRAMES })
                .violations(counters.violations.clone())
                .critical(critical.clone())
                .admission(Admission::with_memory(
                    AdmissionLimits {
                        connections: config.connections,
                        handshakes: config.handshakes,
                        handshakes_per_address: config.handshakes_per_address,
                    },
                    config.memory.clone(),
                ))
                .memory(config.memory.clone())
                .tcp(config.tcp.clone())
                .security(config.security.security(&config.authority))
                .keeps(config.authority.rule()),
        );
        let address = listen_on.listen(&replier, config.tcp).await?;
        let stop = CancellationToken::new();
        let sender = Bytes::from(format!("{}:registrar", address.host()));
        let requires_principal = !matches!(config.security, Mechanism::Null);
        let (questions, question_receiver) = mpsc::channel(QUESTIONS_MAX);
        let service = Service::new(sender, replier.clone(), store, journal, counters.clone(), stop.clone())
            .with_authority(config.authority.clone(), requires_principal)
            .with_memory(config.memory.clone())
            .with_questions(question_receiver);
        let service = Some(tokio::spawn(critical.watch("the service of the registrar", service.run())));
        Ok(Self {
            address,
            counters,
            stop,
            replier: Arc::new(replier),
            service,
            critical,
            runtime: Handle::current(),
            memory_limit,
            memory,
            questions,
            thread: None,
        })
    }

    /// Returns the address on which the registrar listens.
    #[must_use]
    pub fn address(&self) -> &RegistrarAddress {
        &self.address
    }

    /// Returns how many registrations there are, and what was counted since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counters.counts()
    }

    /// Returns a handle that watches the registrar and may outlive it.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor {
            counters: self.counters.clone(),
            replier: Arc::downgrade(&self.replier),
            runtime: self.runtime.clone(),
            memory_limit: self.memory_limit,
            memory: self.memory.clone(),
            questions: self.questions.clone(),
        }
    }

    /// Applies the current rules of the [`Authority`] to all connections: peers that are no longer allowed
    /// are disconnected.
    pub async fn enforce_rules(&self) {
        self.replier.recheck().await;
    }

    /// Waits until the registrar has ended without a call of [`stop`](Self::stop), which happens when its
    /// journal was lost, or one of its tasks has panicked. The log states the reason.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            _ = self.critical.failed() => {}
        }
    }

    /// Stops the registrar gracefully: it takes no more requests, writes what is not yet in the journal, and
    /// sends the replies for at most `linger`. Returns all counts.
    pub async fn stop(mut self, linger: Duration) -> Counts {
        self.stop.cancel();
        if let Some(service) = self.service.take() {
            // The task ends by itself. A panic in it has been reported.
            let _ = service.await;
        }
        self.replier.close(linger).await;
        if let Some(thread) = self.thread.take() {
            thread.join().await;
        }
        self.counts()
    }
}

pub(crate) mod fuzzing {
    //! Access for the fuzz targets: see [`crate::fuzzing`].

    use super::{Arc, Bytes, CancellationToken, Duration, Replier, Service, SocketOptions, Store};

    /// A registrar without a port.
    #[derive(Debug)]
    pub struct Registrar(Service);

    impl Default for Registrar {
        fn default() -> Self {
            let replier = Replier::new(SocketOptions::default());
            let store = Store::new(64, Some(Duration::from_secs(60)));
            let stop = CancellationToken::new();
            Self(Service::new(
                Bytes::from_static(b"fuzz:registrar"),
                replier,
                store,
                None,
                Arc::default(),
                stop,
            ))
        }
    }

    impl Registrar {
        /// Returns the frames of the reply to a request with these frames.
        pub fn answer(&mut self, frames: &[Bytes]) -> Vec<Bytes> {
            self.0.reply_to(frames).into_frames()
        }
    }
}

/// Fills the store from its files, and logs what is wrong with them.
fn load(path: &std::path::Path, mut store: Store) -> Result<(Store, Journal)> {
    let mut lost = 0;
    let mut replay = |entry| {
        let done = match entry {
            Entry::Register(owner, frame) => Registration::decode(&frame)
                .ok()
                .and_then(|registration| {
                    store.admit(owner, &registration, Reserved::default(), Duration::ZERO).ok()
                })
                .is_some(),
            Entry::Remove(owner, frame) => Registration::decode(&frame)
                .ok()
                .and_then(|registration| store.remove(owner, &registration).ok())
                .is_some(),
            Entry::RemoveHost(host) => str::from_utf8(&host).map(|host| store.remove_host(host)).is_ok(),
        };
        lost += usize::from(!done);
    };
    let (journal, complaints) = Journal::open(path, &mut replay)?;
    for damage in complaints.damage {
        tracing::error!("{damage}");
    }
    if let Some(torn) = complaints.torn {
        tracing::warn!("{torn}");
    }
    if lost > 0 {
        tracing::error!(lost, "registrations in the files could not be read");
    }
    if store.is_above_its_limits() {
        let (registrations, bytes) = (store.len(), store.memory());
        tracing::warn!(
            registrations,
            bytes,
            "the files have more registrations than max_registrations or max_registration_memory_mib allow: all of them are kept, and new ones are refused"
        );
    }
    tracing::info!(registrations = store.len(), file = %path.display(), "read the snapshot");
    Ok((store, journal))
}

async fn listen(address: &str, replier: &Replier) -> Result<RegistrarAddress> {
    let Some(host) = address.strip_suffix(":0") else {
        let wanted: RegistrarAddress = address.parse()?;
        replier.bind(&Endpoint::tcp(wanted.host(), wanted.port())).await?;
        return Ok(wanted);
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // Port 1 is only a placeholder, because this call checks the host.
    RegistrarAddress::new(host, 1)?;
    let bound = located(replier.bind(&Endpoint::tcp(host, 0)).await?)?;
    RegistrarAddress::new(host, bound.port())
}

/// Returns the address of a listener.
fn located(endpoint: Endpoint) -> Result<RegistrarAddress> {
    match endpoint {
        Endpoint::Tcp { host, port } => RegistrarAddress::new(host, port),
        other => Err(Error::new(ErrorKind::InvalidAddress, format!("{other} is not a TCP endpoint"))),
    }
}
