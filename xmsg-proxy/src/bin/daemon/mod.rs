//! The common parts of the daemons: from the command line to the settings, signals, reloading, and output.
//!
//! | file | answers |
//! |---|---|
//! | `arguments.rs` | Which options have all daemons, and what do they override? |
//! | `signals.rs` | Which signal asks for what? (`reload.rs` has what SIGHUP does.) |
//! | `reload.rs` | What does SIGHUP change, and what needs a restart? |
//! | `systemd.rs` | What is the service manager told, and which sockets does it pass? |
//! | `log.rs` | Where does the log go? |
//! | `connect.rs` | How does a daemon run outgoing connections and channels? |

pub(crate) mod arguments;
#[cfg(feature = "connect")]
#[allow(dead_code, reason = "each daemon uses its part")]
pub(crate) mod connect;
mod log;
mod reload;
mod signals;
mod systemd;

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, TcpListener};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, bail};
use log::Logging;
use tokio::runtime::Runtime;
use xmsg_core::ProxyAddress;
use xmsg_core::text::escaped;
use xmsg_proxy::admin::{Admin, Sources, Token, Tokens};
use xmsg_proxy::security::{Authority, Mechanism};
use xmsg_proxy::settings::{self, Host, Reloadable, Settings, SettingsError};
use xmsg_proxy::{default_memory_limit, descriptors};
use xmsg_zmq::memory_budget::MemoryBudget;

pub(crate) use arguments::{CommonArguments, Program, set};
pub(crate) use signals::{SignalRequest, Signals};
pub(crate) use systemd::{Sockets, ready, stopping};

/// The number of descriptors that a daemon keeps for its files, its listeners, and some more.
const OWN_DESCRIPTORS: usize = 32;
/// The number of descriptors for connections to its HTTP server.
const HTTP_DESCRIPTORS: usize = 64;
/// The divisor that yields the part of the descriptors for an HTTP server that is on only by default. If that
/// is not enough, the server is not started.
const HTTP_SHARE: usize = 4;
/// A daemon with room for fewer connections does not start: it would seem to work, and turn its clients away.
const CONNECTIONS_MIN: usize = 16;
/// The number of connections from which on the log does not mention their limit.
const MANY_CONNECTIONS: usize = 1000;
/// The time that blocking work, such as reading a file that nobody writes, may go on at the end.
const BLOCKED_MAX: Duration = Duration::from_secs(1);

/// A program with its settings, ready to run.
pub(crate) struct Daemon<P: Program> {
    program: P,
    pub(crate) settings: P::Settings,
    pub(crate) reloadable: Reloadable,
    /// The settings and the reloadable parts, shared with the HTTP server, which reports what a reload would
    /// change.
    in_force: reload::SettingsInForce<P>,
    /// The rules in force.
    authority: Arc<Authority>,
    log: Arc<Logging>,
    /// The sockets that a service manager has passed.
    pub(crate) sockets: Sockets,
    admin: Option<Admin>,
    /// Whether there is no room for an HTTP server that is on only by default.
    goes_without_http: bool,
    /// The token that was generated at the start, if no file was named.
    generated_token: Option<Token>,
}

/// Runs a daemon: reads its settings, and starts it.
pub(crate) fn main<P: Program>(
    runtime: impl FnOnce(&P::Settings) -> io::Result<Runtime>,
    run: impl AsyncFnOnce(Daemon<P>) -> anyhow::Result<()>,
) -> ExitCode {
    let program = P::from_command_line();
    let daemon = match prepare(program) {
        Ok(Prepared::Run(daemon)) => daemon,
        Ok(Prepared::Print(text)) => return print::<P>(&text),
        Err(error) => {
            eprintln!("{}: {error}", P::NAME);
            return ExitCode::from(2);
        }
    };
    // It is dropped last, also by a panic.
    let log = daemon.log.clone();
    let result = runtime(&daemon.settings).context("cannot start the runtime").and_then(|runtime| {
        let result = runtime.block_on(run(*daemon));
        // Threads that still wait for a file are not waited for.
        runtime.shutdown_timeout(BLOCKED_MAX);
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("{}: {}\n", P::NAME, escaped(&format!("{error:#}")));
            log.queue.push(line.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// The task of a daemon, once all settings are read and checked.
enum Prepared<P: Program> {
    Run(Box<Daemon<P>>),
    /// It prints this text, and ends.
    Print(String),
}

fn prepare<P: Program>(program: P) -> Result<Prepared<P>, SettingsError> {
    let (settings, reloadable) = load(&program)?;
    if program.common().print_config {
        return Ok(Prepared::Print(settings::print(&settings)?));
    }
    settings.check_files()?;
    if program.common().check_config {
        check_folder(&settings)?;
        return Ok(Prepared::Print(format!("{}: the configuration is good\n", P::NAME)));
    }
    // There is only one thread yet, as this changes the environment.
    let sockets = Sockets::from_environment(P::SOCKETS)?;
    let log = log::start(settings.log(), P::NAME)
        .map_err(|error| SettingsError::new(format!("cannot start the log: {error}")))?;
    let authority = Arc::new(Authority::new(reloadable.rules.clone()));
    let in_force = reload::SettingsInForce::new(&settings, &reloadable);
    let daemon = Daemon {
        program,
        in_force,
        settings,
        reloadable,
        authority,
        log: Arc::new(log),
        sockets,
        admin: None,
        goes_without_http: false,
        generated_token: None,
    };
    Ok(Prepared::Run(Box::new(daemon)))
}

/// Writes the text to standard output. A user who redirects it to a file learns whether it was written.
fn print<P: Program>(text: &str) -> ExitCode {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: cannot write to standard output: {error}", P::NAME);
            ExitCode::FAILURE
        }
    }
}

/// Reads the settings from all their sources, and the files that they refer to.
fn load<P: Program>(program: &P) -> Result<(P::Settings, Reloadable), SettingsError> {
    let mut settings = match &program.common().config {
        Some(path) => settings::read(path)?,
        None => P::Settings::default(),
    };
    program.overlay(&mut settings);
    settings.check()?;
    let reloadable = settings.reloadable()?;
    Ok((settings, reloadable))
}

/// Checks that the folder of the snapshot exists. The snapshot itself need not exist yet.
fn check_folder(settings: &impl Settings) -> Result<(), SettingsError> {
    let Some(folder) = settings.snapshot().and_then(|snapshot| snapshot.parent()) else { return Ok(()) };
    if folder.is_dir() {
        return Ok(());
    }
    Err(SettingsError::new(format!(
        "the folder {} for the registrar's snapshot is not there: make it",
        folder.display()
    )))
}

impl<P: Program> Daemon<P> {
    /// Returns the mechanism of the ports, and the rules.
    pub(crate) fn security(&self) -> (Mechanism, Arc<Authority>) {
        (self.reloadable.mechanism.clone(), self.authority.clone())
    }

    /// Warns if every client that reaches this host has all rights.
    pub(crate) fn warn_if_open(&self, host: &str, what: &str) {
        let is_loopback = host.parse::<Host>().is_ok_and(|host| host.is_loopback());
        match self.reloadable.mechanism {
            _ if is_loopback => {}
            Mechanism::Null => tracing::warn!(host, "open to the network, without security: {what}"),
            Mechanism::Plain => {
                tracing::warn!(
                    host,
                    "open to the network with PLAIN: passwords and messages can be read on the way"
                );
            }
            Mechanism::Curve(_) => {}
        }
    }

    /// Returns the time that stopping may take.
    pub(crate) fn linger(&self) -> Duration {
        self.reloadable.linger
    }

    /// Starts the HTTP server, if there is to be one, and prints its address.
    pub(crate) fn start_admin(&mut self, sources: Sources) -> anyhow::Result<()> {
        let socket = match self.sockets.take("admin").pop() {
            Some(socket) => socket,
            None if !self.has_http() => return Ok(()),
            None => match listen(self.settings.admin())? {
                Some(socket) => socket,
                None => return Ok(()),
            },
        };
        let Reloadable { admin_token, admin_viewer_token, viewer_may_watch, .. } = self.reloadable.clone();
        // The link and the token allow changes, so they are for a terminal only: other users can read
        // standard output where it is kept, such as in the journal. There, a user who wants to make changes
        // names a file.
        let has_page = sources.proxy.is_some()
            && socket.local_addr().is_ok_and(|at| at.ip().to_canonical().is_loopback());
        if has_page && admin_token.is_none() && admin_viewer_token.is_none() && io::stdout().is_terminal() {
            self.generated_token = Some(Token::random()?);
        }
        let tokens = self.tokens(admin_token, admin_viewer_token, viewer_may_watch);
        // Without other ports, nobody logs in.
        let has_ports = sources.proxy.is_some() || sources.registrar.is_some();
        let authority = has_ports.then(|| self.authority.clone());
        let pending = Some(self.pending());
        let sources = Sources { authority, log: Some(self.log.queue.clone()), pending, ..sources };
        let admin = Admin::start(socket, P::NAME, sources, tokens, self.config())?;
        print_line(format_args!("HTTP at http://{}", admin.address()));
        if let Some(token) = &self.generated_token {
            // The link is good once: it stays in the history of the browser.
            if let Some(link) = admin.link() {
                print_line(format_args!(
                    "web page, with the right to change things, by a link that works once: {link}"
                ));
            }
            print_line(format_args!("its token, until this process ends: {}", token.reveal()));
        }
        self.admin = Some(admin);
        Ok(())
    }

    /// Returns the tokens of the HTTP server: those of the settings or, if there are none, the one that was
    /// generated at the start.
    fn tokens(&self, operator: Option<Token>, viewer: Option<Token>, viewer_may_watch: bool) -> Tokens {
        let open_to_look = operator.is_none() && viewer.is_none();
        let generated_token = self.generated_token.clone().filter(|_| open_to_look);
        Tokens { operator: operator.or(generated_token), viewer, open_to_look, viewer_may_watch }
    }

    /// Takes the HTTP server, which has to be notified of the state and ended last.
    pub(crate) fn take_admin(&mut self) -> Option<Admin> {
        self.admin.take()
    }

    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.settings).unwrap_or_default()
    }
}

impl<P: Program> Daemon<P> {
    /// Returns the number of threads of the daemon itself: for its log and, if there is one, its HTTP server.
    pub(crate) fn own_threads(&self) -> usize {
        1 + usize::from(self.has_http())
    }

    /// Returns the memory budget for all peers of a process with this number of threads beside the first one.
    pub(crate) fn memory_beside(threads: usize) -> MemoryBudget {
        let limit = default_memory_limit::limit_beside(threads);
        if default_memory_limit::is_crowded_by(threads) {
            tracing::warn!(
                threads,
                memory_limit_mib = limit >> 20,
                "the limit of the address space (ulimit -v, LimitAS= of a unit) is small for so many threads, each of which reserves 66 MiB: \
                 raise it, or have fewer of them"
            );
        }
        MemoryBudget::new(limit)
    }

    fn has_http(&self) -> bool {
        (self.settings.admin().enabled && !self.goes_without_http) || self.sockets.has("admin")
    }

    /// Returns how many of the `wanted` connections there is room for, as each takes a descriptor. It fails
    /// if there are too few to be of use, and logs if there are few.
    pub(crate) fn room_for_connections(&mut self, wanted: usize) -> anyhow::Result<usize> {
        let limit = descriptors::raise_limit();
        // A server that is on only by default takes no more than a part of what clients need.
        let has_few = limit < HTTP_SHARE * HTTP_DESCRIPTORS;
        if self.has_http() && has_few && self.settings.admin().may_move() && !self.sockets.has("admin") {
            self.goes_without_http = true;
            tracing::warn!(
                descriptors = limit,
                "there is no web page, because descriptors are few: raise their limit (ulimit -n, LimitNOFILE= of a unit), or ask for \
                 the page (admin.listen, --admin 127.0.0.1:7775)"
            );
        }
        let http = if self.has_http() { HTTP_DESCRIPTORS } else { 0 };
        let own = OWN_DESCRIPTORS + http;
        let room = limit.saturating_sub(own);
        if room < CONNECTIONS_MIN {
            bail!(
                "the limit of open descriptors is {limit}, and {own} of them are for the daemon itself: that leaves no room for \
                 connections. Raise it to {} or more (ulimit -n, LimitNOFILE= of a unit)",
                own + CONNECTIONS_MIN
            );
        }
        if room < wanted.min(MANY_CONNECTIONS) {
            tracing::warn!(
                connections = room,
                descriptors = limit,
                "room for {room} connections only: raise the limit of open descriptors (ulimit -n, LimitNOFILE= of a unit)"
            );
        }
        Ok(room.min(wanted))
    }
}

/// Listens for HTTP at the address of the settings. A server that is on only by default may use another port
/// if its own is taken. Returns `None` if it can't listen at all.
fn listen(admin: &settings::Admin) -> anyhow::Result<Option<TcpListener>> {
    let at = admin.address();
    let bound = TcpListener::bind((at.host.as_str(), at.port));
    let error = match bound {
        Ok(socket) => return Ok(Some(socket)),
        Err(error) if !admin.may_move() => {
            return Err(error).with_context(|| format!("cannot bind {at} for HTTP (--admin)"));
        }
        Err(error) => error,
    };
    let how = "name a port to have it there or nowhere (admin.listen, --admin), or turn it off (--admin off)";
    let moved =
        TcpListener::bind((at.host.as_str(), 0)).and_then(|socket| Ok((socket.local_addr()?, socket)));
    if let Ok((instead, socket)) = moved {
        tracing::warn!("HTTP is at http://{instead}, because {at} can't be used ({error}): {how}");
        return Ok(Some(socket));
    }
    let host = at.host.as_str();
    tracing::warn!("there is no HTTP, because no port of {host} can be used ({error}): {how}");
    Ok(None)
}

/// Writes a line to standard output. It waits only for a moment, because there may be no reader.
pub(crate) fn print_line(line: std::fmt::Arguments<'_>) {
    let text = format!("{line}\n");
    let (done, is_done) = mpsc::sync_channel(1);
    let writing = std::thread::Builder::new().name("xmsg-say".to_owned()).spawn(move || {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        let _ = done.send(());
    });
    if writing.is_ok() {
        let _ = is_done.recv_timeout(BLOCKED_MAX);
    }
}

/// Returns the address by which clients of its own machine reach a proxy that listens at this address.
#[allow(dead_code, reason = "each daemon uses its part")]
pub(crate) fn reached_at(listening: &ProxyAddress) -> xmsg_core::Result<ProxyAddress> {
    let host = match listening.host().parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1",
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "::1",
        _ => listening.host(),
    };
    ProxyAddress::new(host, listening.publish_port())
}
