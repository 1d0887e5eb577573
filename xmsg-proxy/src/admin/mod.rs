//! HTTP for whoever runs a daemon: is it alive, is it ready, what does it do?
//!
//! | path | |
//! |---|---|
//! | `/healthz` | 200 while the runtimes that move messages and answer for the registrar get their turn |
//! | `/readyz` | 200 while it accepts connections, 503 once it was told to stop, and while what is registered can't be stored |
//! | `/metrics` | counts, for Prometheus |
//! | `/varz` | version, uptime, settings, totals; JSON |
//! | `/connz` | every publisher and subscriber; JSON; `limit`, `offset`, `sort`, `kind` |
//! | `/subsz` | subscribed prefixes; JSON; `limit`, `prefix` |
//! | `/api/v1/…` | what the page shows and does, as JSON and as server-sent events; `/api/v1/openapi.json` describes it |
//! | `/` | the web page, for browsers; of a proxy only |
//! | `POST /connections/{id}/end` | ends the connection of this publisher or subscriber; with the token only |
//! | `/connect…` | outgoing connections and channels; what changes something, or sends, with the token only |
//!
//! The server has a thread of its own: neither a slow client nor a long list takes time from the data plane,
//! which does not know of it. It reads counts through a [`Monitor`], and takes no lock for longer than it
//! takes to read one.

// | file | answers |
// |---|---|
// | `server.rs` | Which connections does the HTTP server have, and when do they end? |
// | `routes.rs` | Which paths are there, and who gets an answer? |
// | `access.rs` | Whose token or session is this, and what may it do? |
// | `token.rs` | What is a token? |
// | `links.rs` | Which links begin a session without the token? |
// | `refused_requests.rs` | Who was turned away, and how often? |
// | `answers.rs` | How much memory do answers take that are not read? |
// | `metrics.rs` | What is on `/metrics`? |
// | `upstreams.rs` | Which metrics has a link to an upstream? |
// | `classic_text.rs` | Which text format of metrics does a client get? |
// | `process.rs` | What does the system say of this process? |
// | `look.rs` | What has changed since the last look at the proxy? |
// | `history.rs` | What has flowed in the last five minutes, hour and day? |
// | `pending.rs` | What would a reload of the settings change? |
// | `tap.rs` | Which messages does somebody see who watches a topic? |
// | `compose.rs` | Which message does a request ask to be published? |
// | `page.rs` | Which files has the web page? |
// | `api/` | What is below `/api/v1`? |
// | `connect/` | What is below `/connect`? |

mod access;
mod answers;
#[allow(unused_qualifications, reason = "the macros of utoipa write whole paths")]
mod api;
mod classic_text;
mod compose;
#[cfg(feature = "connect")]
#[allow(unused_qualifications, reason = "the macros of utoipa write whole paths")]
mod connect;
mod history;
mod links;
mod look;
mod metrics;
mod page;
mod pending;
mod process;
mod refused_requests;
mod routes;
mod server;
mod tap;
mod token;
mod upstreams;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::TcpOptions;
use xmsg_zmq::fault::restart;
use xmsg_zmq::link::transport::{Closer, Listener};

pub use access::Tokens;
#[cfg(feature = "connect")]
pub use connect::Connect;
pub use pending::{Pending, PendingChanges};
pub use tap::OwnProxy;
pub use token::Token;

use crate::log::LogQueue;
use crate::security::Authority;
use crate::{Monitor, registrar};
use access::{Access, Caller};
use answers::UnreadAnswers;
use api::Streams;
use look::Looks;
use refused_requests::RefusedRequests;
use tap::Client;

/// How many bytes the kernel holds of an answer that is not read. By itself it would take some MiB of each,
/// which count nowhere.
const SEND_BUFFER: usize = 128 << 10;

/// The parts of a process that the HTTP server shows.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The proxy.
    pub proxy: Option<Monitor>,
    /// The registrar.
    pub registrar: Option<registrar::Monitor>,
    /// The outgoing connections and channels.
    #[cfg(feature = "connect")]
    pub connect: Option<Connect>,
    /// The rules of who is let in to proxy and registrar.
    pub authority: Option<Arc<Authority>>,
    /// The queue of the log.
    pub log: Option<LogQueue>,
    /// The changes that a reload of the settings would make.
    pub pending: Option<Pending>,
    /// Where the proxy is reached, so that messages can be published.
    pub own_proxy: Option<OwnProxy>,
}

/// The phase of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The daemon accepts connections.
    Ready,
    /// The daemon was told to stop, and delivers what it has.
    Draining,
}

/// The HTTP server at work. It ends with [`stop`](Self::stop), or when it is dropped; its port is free when
/// either returns.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    closer: Closer,
    thread: Option<JoinHandle<()>>,
}

/// The state from which requests are answered.
#[derive(Debug)]
struct State {
    /// The name of the daemon.
    name: &'static str,
    proxy: Option<Monitor>,
    registrar: Option<registrar::Monitor>,
    #[cfg(feature = "connect")]
    connect: Option<Connect>,
    authority: Option<Arc<Authority>>,
    log: Option<LogQueue>,
    pending: Option<pending::Reader>,
    refused_requests: RefusedRequests,
    answers: UnreadAnswers,
    phase: AtomicU8,
    access: Access,
    looks: Looks,
    streams: Streams,
    client: Client,
    /// The settings, as JSON.
    config: RwLock<Arc<serde_json::Value>>,
    started: Instant,
    started_at: SystemTime,
    /// The runtime that moves messages.
    runtime: Handle,
}

impl State {
    fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && self.is_writable()
    }

    /// Returns whether what is registered can be stored.
    fn is_writable(&self) -> bool {
        self.registrar.as_ref().is_none_or(registrar::Monitor::is_writable)
    }

    fn phase(&self) -> Phase {
        if self.phase.load(Ordering::Relaxed) == Phase::Ready as u8 { Phase::Ready } else { Phase::Draining }
    }

    fn phase_name(&self) -> &'static str {
        match self.phase() {
            Phase::Ready => "ready",
            Phase::Draining => "draining",
        }
    }

    /// Returns whether there is a web page, which is about a proxy.
    fn has_page(&self) -> bool {
        self.proxy.is_some()
    }

    #[cfg(feature = "connect")]
    fn has_connect(&self) -> bool {
        self.connect.is_some()
    }

    #[cfg(not(feature = "connect"))]
    #[allow(clippy::unused_self, reason = "with the feature, the state says it")]
    fn has_connect(&self) -> bool {
        false
    }

    /// Whether somebody may see what is in messages. Whoever needs no token here may see what everybody can
    /// subscribe to: of a proxy with security, nothing.
    fn may_watch(&self, caller: Option<Caller>) -> bool {
        let Some(proxy) = &self.proxy else { return false };
        let may = || proxy.rights_of_anybody().is_some_and(|rights| !rights.subscribe.is_empty());
        self.access.may_watch(caller) && (caller.is_some() || may())
    }

    fn config(&self) -> Arc<serde_json::Value> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        self.closer.close();
    }
}

impl Admin {
    /// Serves on this socket, on a thread of its own; to be called on the runtime that moves messages. `name`
    /// is that of the daemon, `config` its settings.
    ///
    /// An error of kind [`Refused`](ErrorKind::Refused) says that others than this machine can reach the
    /// socket, and that there is no token.
    pub fn start(
        socket: TcpListener,
        name: &'static str,
        sources: Sources,
        tokens: impl Into<Tokens>,
        config: serde_json::Value,
    ) -> Result<Self> {
        let mut tokens = tokens.into();
        let failed = |error| Error::new(ErrorKind::Io, "cannot serve HTTP").with_source(error);
        let address = socket.local_addr().map_err(failed)?;
        permitted(address, &mut tokens)?;
        // A registrar has no long answers.
        let memory = sources.proxy.as_ref().map(|proxy| proxy.memory().clone());
        let state = Arc::new(State {
            name,
            answers: UnreadAnswers::new(memory.unwrap_or_default()),
            proxy: sources.proxy,
            registrar: sources.registrar,
            #[cfg(feature = "connect")]
            connect: sources.connect,
            authority: sources.authority,
            log: sources.log,
            pending: sources.pending.map(pending::Reader::new),
            refused_requests: RefusedRequests::default(),
            phase: AtomicU8::new(Phase::Ready as u8),
            access: Access::new(tokens, address.port()),
            looks: Looks::default(),
            streams: Streams::default(),
            client: Client::new(sources.own_proxy),
            config: RwLock::new(Arc::new(config)),
            started: Instant::now(),
            started_at: SystemTime::now(),
            runtime: Handle::current(),
        });
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        // Nothing on this runtime blocks.
        let runtime = runtime.enable_all().max_blocking_threads(1).build().map_err(failed)?;
        let listener = {
            let _entered = runtime.enter();
            Listener::adopt(socket, TcpOptions { send_buffer: Some(SEND_BUFFER), ..TcpOptions::default() })?
        };
        let closer = listener.closer();
        let stop = CancellationToken::new();
        let serve = {
            let (state, stop) = (state.clone(), stop.clone());
            async move {
                let ended = state.streams.stop.clone();
                let look = async {
                    if let Some(proxy) = state.proxy.clone() {
                        let look = || state.looks.run(proxy.clone(), || state.phase_name(), stop.clone());
                        restart("the looks at the proxy for its web page", look).await;
                    }
                };
                let serve = async {
                    server::run(listener, routes::router(state.clone()), stop.clone()).await;
                    ended.cancel();
                    state.client.close().await;
                };
                tokio::join!(serve, look);
            }
        };
        let thread = std::thread::Builder::new()
            .name("xmsg-admin".to_owned())
            .spawn(move || runtime.block_on(serve))
            .map_err(failed)?;
        Ok(Self { address, state, stop, closer, thread: Some(thread) })
    }

    /// Returns the address at which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a link to the web page that begins a session: whoever opens it first may change what can be
    /// changed, as with the operator's token. It is good once, and until the tokens change; eight links are
    /// good at a time, and a further one takes the place of the oldest. Returns `None` if there is no
    /// operator's token, or if the operating system gives no randomness.
    #[must_use]
    pub fn link(&self) -> Option<String> {
        let code = self.state.access.make_link()?;
        Some(format!("http://{}{}", self.address, api::link(&code)))
    }

    /// Returns whether nobody has used this link yet, and it would begin a session.
    #[must_use]
    pub fn is_unused(&self, link: &str) -> bool {
        link.rsplit_once("#code=").is_some_and(|(_, code)| self.state.access.is_unused(code))
    }

    /// Sets the phase of the daemon.
    pub fn set_phase(&self, phase: Phase) {
        self.state.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Replaces the tokens that requests have to bring, and ends all sessions. This is refused as in
    /// [`start`](Self::start).
    pub fn set_tokens(&self, tokens: impl Into<Tokens>) -> Result<()> {
        let mut tokens = tokens.into();
        permitted(self.address, &mut tokens)?;
        self.state.access.replace(tokens);
        Ok(())
    }

    /// Replaces the settings that are shown.
    pub fn set_config(&self, config: serde_json::Value) {
        *self.state.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Ends it with all its connections, and waits for that.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of it has been reported where it happened.
            let _ = tokio::task::spawn_blocking(|| thread.join()).await;
        }
    }
}

/// Checks that a server that others can reach has a token. Without one, only this machine may look.
fn permitted(address: SocketAddr, tokens: &mut Tokens) -> Result<()> {
    if address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    tokens.open_to_look = false;
    if tokens.operator.is_some() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Refused,
        format!(
            "HTTP at {address} can be reached by others, and there is no token: name a file with one, or listen on the \
             loopback"
        ),
    ))
}
