//! The proxy daemon: arguments, settings, signals, run.

mod daemon;

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use daemon::arguments::Switchable;
#[cfg(feature = "connect")]
use daemon::connect::{self, Connecting};
use daemon::reached_at;
use daemon::{CommonArguments, Daemon, Program, SignalRequest, Signals, print_line, ready, set, stopping};
use tokio::runtime::{Builder, Runtime};
#[cfg(feature = "connect")]
use xmsg_core::ProxyAddress;
use xmsg_proxy::admin::{OwnProxy, Phase, Sources};
use xmsg_proxy::default_memory_limit;
use xmsg_proxy::registrar::{self, Registrar};
use xmsg_proxy::security::Mechanism;
#[cfg(feature = "connect")]
use xmsg_proxy::settings::ConnectSection;
use xmsg_proxy::settings::{
    self, Count, Host, Named, PolicySection, ProxyPort, ProxySettings, UpstreamSection,
};
use xmsg_proxy::{Config, Policy, Proxy, PublishersSend, TopicPolicy};
use xmsg_zmq::memory_budget::MemoryBudget;

/// Forwards messages from publishers to subscribers, and answers control requests.
///
/// Publishers connect to PORT, subscribers to PORT+1, control sockets to PORT+2.
#[derive(Clone, Debug, Parser)]
#[command(name = "xmsg-proxy", version)]
struct Arguments {
    /// Address or name of the interface to listen on; 0.0.0.0 for all of them [default: 127.0.0.1]
    #[arg(long, env = "XMSG_PROXY_HOST")]
    host: Option<Host>,

    /// Publisher port, 1 to 65533; the next two are used, too. 0: any three free ones [default: 7771]
    #[arg(long, short, env = "XMSG_PROXY_PORT")]
    port: Option<ProxyPort>,

    /// What happens to messages for a subscriber whose queue is full: `drop-newest` drops and counts them;
    /// `drop-oldest` drops those that wait longest instead; `conflate` keeps the newest of each topic;
    /// `block` makes publishers wait and disconnects a subscriber that takes less than 64 KiB in 30 s while
    /// they wait (`block:5m`, `block:forever`); `disconnect` disconnects the subscriber at once [default:
    /// drop-newest]
    #[arg(long, value_name = "POLICY", env = "XMSG_PROXY_SLOW_SUBSCRIBER")]
    slow_subscriber: Option<Named<Policy>>,

    /// The same for topics that start with PREFIX; may be given several times, the longest prefix counts
    #[arg(long, value_name = "PREFIX=POLICY")]
    slow_subscriber_for: Vec<TopicPolicy>,

    /// Memory for what waits for one subscriber, in MiB [default: 256]
    #[arg(long, value_name = "MIB", env = "XMSG_PROXY_HIGH_WATER_MARK")]
    high_water_mark: Option<Count<1, { settings::MIB_MAX }>>,

    /// Messages that may wait for one subscriber; 0: any number [default: 0]
    #[arg(long, value_name = "COUNT", env = "XMSG_PROXY_HIGH_WATER_MARK_MESSAGES")]
    high_water_mark_messages: Option<Count<0, { settings::COUNT_MAX }>>,

    /// Memory for what waits for all subscribers together, in MiB [default: 1024]
    #[arg(long, value_name = "MIB", env = "XMSG_PROXY_QUEUE_CEILING")]
    queue_ceiling: Option<Count<1, { settings::MIB_MAX }>>,

    /// Memory for all that peers send and ask for, in MiB; near it, whoever holds most is cut off; 0: half of
    /// what the process can have [default: 0]
    #[arg(long, value_name = "MIB", env = "XMSG_PROXY_MEMORY_LIMIT")]
    memory_limit: Option<Count<0, { settings::MIB_MAX }>>,

    /// The largest message, in MiB [default: 64]
    #[arg(long, value_name = "MIB", env = "XMSG_PROXY_MAX_MESSAGE_SIZE")]
    max_message_size: Option<Count<1, 1024>>,

    /// Have publishers send everything, not just what somebody subscribed to
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "XMSG_PROXY_PUBLISHERS_SEND_ALL")]
    publishers_send_all: Option<bool>,

    /// Connect to the subscribers' port of another proxy, too, for what subscribers here want: its
    /// HOST[:PORT] with the first of its three ports, or tcp://HOST:PORT with the subscribers' port itself;
    /// may be given several times
    #[arg(long, value_name = "ADDRESS", env = "XMSG_PROXY_UPSTREAM", value_delimiter = ',')]
    upstream: Vec<UpstreamSection>,

    /// Run a registrar on the same host, too, on this port [default: 8888]; 0: any free one; `off`: don't
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "on", env = "XMSG_PROXY_REGISTRAR")]
    registrar: Option<Switchable<u16>>,

    /// Keep what is registered in this file, so that a restart loses nothing
    #[arg(long, value_name = "FILE", env = "XMSG_PROXY_REGISTRAR_SNAPSHOT")]
    registrar_snapshot: Option<PathBuf>,

    /// Threads that move messages; 0: one for each core [default: 1]
    #[arg(long, value_name = "COUNT", env = "XMSG_PROXY_THREADS")]
    threads: Option<Count<0, 1024>>,

    #[command(flatten)]
    common: CommonArguments,
}

impl Program for Arguments {
    type Settings = ProxySettings;

    const NAME: &'static str = "xmsg-proxy";

    const COMMON_ENV: [(&'static str, &'static str); 5] = [
        ("config", "XMSG_PROXY_CONFIG"),
        ("linger", "XMSG_PROXY_LINGER"),
        ("admin", "XMSG_PROXY_ADMIN"),
        ("admin_token_file", "XMSG_PROXY_ADMIN_TOKEN_FILE"),
        ("log_format", "XMSG_PROXY_LOG_FORMAT"),
    ];

    const SOCKETS: &'static [(&'static str, usize)] = &[("proxy", 3), ("registrar", 1), ("admin", 1)];

    fn common(&self) -> &CommonArguments {
        &self.common
    }

    fn overlay(&self, settings: &mut ProxySettings) {
        let ProxySettings { admin, log, linger_s, registrar, .. } = settings;
        self.common.overlay(log, admin, linger_s, "XMSG_PROXY_DEBUG");
        if let Some(choice) = &self.registrar {
            set(&mut registrar.port, choice.clone().apply(&mut registrar.enabled));
        }
        if let Some(path) = &self.registrar_snapshot {
            registrar.snapshot = Some(settings::absolute(path));
        }
        set(&mut settings.host, self.host.clone());
        set(&mut settings.port, self.port);
        set(&mut settings.slow_subscriber, self.slow_subscriber);
        settings.policies.extend(self.slow_subscriber_for.iter().map(PolicySection::from));
        set(&mut settings.high_water_mark_mib, self.high_water_mark);
        set(&mut settings.high_water_mark_messages, self.high_water_mark_messages);
        set(&mut settings.queue_ceiling_mib, self.queue_ceiling);
        set(&mut settings.memory_limit_mib, self.memory_limit);
        set(&mut settings.max_message_size_mib, self.max_message_size);
        let sent = |all| Named(if all { PublishersSend::All } else { PublishersSend::Subscribed });
        set(&mut settings.publishers_send, self.publishers_send_all.map(sent));
        settings.upstreams.extend(self.upstream.iter().cloned());
        set(&mut settings.threads, self.threads);
    }
}

fn main() -> ExitCode {
    daemon::main::<Arguments>(runtime, run)
}

/// The largest number of threads for blocking work: decrypting long frames, checking passwords, reading
/// files.
const BLOCKING_THREADS: usize = 32;
/// The number of descriptors for outgoing connections and channels: sockets to peers and to the proxy, files
/// of spools.
const CONNECT_DESCRIPTORS: usize = 1024;

fn runtime(settings: &ProxySettings) -> std::io::Result<Runtime> {
    let mut builder = match settings.threads.get() {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if settings.threads.get() > 1 {
        builder.worker_threads(settings.threads.get());
    }
    builder
        .enable_all()
        .max_blocking_threads(default_memory_limit::blocking_threads(BLOCKING_THREADS))
        .build()
}

/// Returns the largest number of threads beside the first one.
fn threads(daemon: &Daemon<Arguments>, has_registrar: bool) -> usize {
    let workers = match daemon.settings.threads.get() {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        1 => 0,
        threads => threads,
    };
    let registrar = if has_registrar {
        1 + default_memory_limit::blocking_threads(registrar::BLOCKING_THREADS)
    } else {
        0
    };
    #[cfg(feature = "connect")]
    let connect = if daemon.settings.connect.enabled { connect::threads() } else { 0 };
    #[cfg(not(feature = "connect"))]
    let connect = 0;
    workers
        + default_memory_limit::blocking_threads(BLOCKING_THREADS)
        + registrar
        + connect
        + daemon.own_threads()
}

async fn run(mut daemon: Daemon<Arguments>) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;

    let settings = daemon.settings.clone();
    let host = &settings.host;
    let (security, authority) = daemon.security();
    let name = security.name();
    let upstreams = daemon.reloadable.upstreams.clone();
    let mut config = Config { security, authority, upstreams, ..settings.config() };
    let has_registrar = settings.registrar.enabled || daemon.sockets.has("registrar");
    let wanted = registrar::Config::default().connections;
    let for_connect = if settings.connect.enabled { CONNECT_DESCRIPTORS } else { 0 };
    let all = daemon.room_for_connections(
        config.connections + for_connect + config.upstreams.len() + if has_registrar { wanted } else { 0 },
    )?;
    // The registrar gets so many that other parts of the process never run out of them.
    let for_registrar = if has_registrar { wanted.min(all / 4) } else { 0 };
    if settings.memory_limit_mib.get() == 0 {
        config.memory = Daemon::<Arguments>::memory_beside(threads(&daemon, has_registrar));
    }
    let for_connect = for_connect.min(all / 4);
    let for_upstreams = config.upstreams.len().min(all / 4);
    let memory = config.memory.clone();
    config.connections = config.connections.min(all - for_registrar - for_connect - for_upstreams);
    let builder = Proxy::bind(host.with_port(settings.port.get())).config(config);
    let proxy = match <[_; 3]>::try_from(daemon.sockets.take("proxy")) {
        Ok(sockets) => builder.start_on(sockets).await?,
        Err(_) => builder.start().await?,
    };
    let address = proxy.address().clone();
    let mut slow_subscribers = settings.slow_subscriber.0.to_string();
    for own in settings.config().policies {
        slow_subscribers = format!("{slow_subscribers}, {own}");
    }
    print_line(format_args!(
        "xmsg-proxy {} at {address}: publishers {}, subscribers {}, control {}; slow subscribers: {slow_subscribers}; security: {name}",
        env!("CARGO_PKG_VERSION"),
        address.publish_port(),
        address.subscribe_port(),
        address.control_port(),
    ));
    let registrar = start_registrar(&mut daemon, for_registrar, memory.clone()).await?;
    if let Some(registrar) = &registrar {
        print_line(format_args!("xmsg-registrar at {}", registrar.address()));
    }
    #[cfg(feature = "connect")]
    let connecting = start_connecting(&daemon, &address, memory).await?;
    #[cfg(not(feature = "connect"))]
    let connecting: Option<()> = None;
    daemon.start_admin(Sources {
        proxy: Some(proxy.monitor()),
        registrar: registrar.as_ref().map(Registrar::monitor),
        #[cfg(feature = "connect")]
        connect: connecting.as_ref().map(Connecting::source),
        // Under security, the page has no identity of its own that clients would have to be told apart from.
        own_proxy: match daemon.security().0 {
            Mechanism::Null => Some(OwnProxy::new(reached_at(&address)?)),
            _ => None,
        },
        ..Sources::default()
    })?;
    daemon.warn_if_open(address.host(), "whoever reaches these ports can publish and subscribe");
    let _watchdog = ready(&format!("forwarding at {address}"));

    loop {
        tokio::select! {
            request = signals.next() => match request {
                // Reading a file may take any time, and so may ending thousands of connections.
                SignalRequest::Reload => tokio::select! {
                    biased;
                    () = reload(&mut daemon, &proxy, registrar.as_ref()) => {}
                    () = signals.stop_requested() => break,
                },
                SignalRequest::Stop => break,
            },
            () = ended(registrar.as_ref()) => anyhow::bail!("the registrar can't go on: see the log"),
            // Without one of its tasks the proxy would seem to work: the service manager restarts it.
            failure = proxy.failed() => anyhow::bail!("{failure}"),
            failure = failed(connecting.as_ref()) => anyhow::bail!("outgoing connections can't go on: {failure}"),
        }
    }
    let linger = daemon.linger();
    let admin = daemon.take_admin();
    if let Some(admin) = &admin {
        admin.set_phase(Phase::Draining);
    }
    stopping("delivering what is queued");
    tracing::info!(linger_s = linger.as_secs_f64(), "stopping: delivering what is queued");
    let stop = async {
        // The channels end first, so that no more messages come in, and what was published gets into the
        // spools.
        #[cfg(feature = "connect")]
        if let Some(connecting) = &connecting {
            connecting.end_channels().await;
        }
        let registrar = async {
            if let Some(registrar) = registrar {
                registrar.stop(linger).await;
            }
        };
        let totals = tokio::join!(proxy.stop(linger), registrar).0;
        #[cfg(feature = "connect")]
        if let Some(connecting) = connecting {
            connecting.close().await;
        }
        totals
    };
    tokio::pin!(stop);
    let totals = tokio::select! {
        totals = &mut stop => totals,
        () = signals.second_stop() => anyhow::bail!("stopped at once by a second signal: queued messages are lost"),
    };
    if let Some(admin) = admin {
        admin.stop().await;
    }
    print_line(format_args!(
        "xmsg-proxy stopped: received {}, delivered {}, dropped {}, undelivered {}",
        totals.received.messages, totals.delivered.messages, totals.dropped.messages, totals.undelivered,
    ));
    Ok(())
}

/// Reads the settings again, and applies them to all connections.
async fn reload(daemon: &mut Daemon<Arguments>, proxy: &Proxy, registrar: Option<&Registrar>) {
    let (_, authority) = daemon.security();
    let (generation, before) = (authority.generation(), daemon.settings.config());
    let upstreams = daemon.reloadable.upstreams.clone();
    daemon.reload().await;
    if daemon.reloadable.upstreams != upstreams
        && let Err(error) = proxy.set_upstreams(&daemon.reloadable.upstreams)
    {
        tracing::error!("the former upstreams stay: {error}");
    }
    // Either change makes every ingress look up all topics again.
    if authority.generation() != generation {
        proxy.enforce_rules().await;
        if let Some(registrar) = registrar {
            registrar.enforce_rules().await;
        }
    }
    let now = daemon.settings.config();
    if (now.policy, &now.policies) != (before.policy, &before.policies) {
        proxy.set_policies(now.policy, &now.policies).await;
    }
}

/// Starts the registrar in this process, if there is to be one.
async fn start_registrar(
    daemon: &mut Daemon<Arguments>,
    connections: usize,
    memory: MemoryBudget,
) -> anyhow::Result<Option<Registrar>> {
    let ProxySettings { host, registrar, .. } = &daemon.settings;
    let (security, authority) = daemon.security();
    let snapshot = registrar.snapshot.clone();
    let limits = registrar::Config::default();
    let config = registrar::Config {
        snapshot,
        registrations: registrar.max_registrations.get(),
        // Half of what the process can have is for peers. Registrations get no more than the other half
        // leaves.
        registration_memory: registrar.max_registration_memory_mib.mib().min(memory.limit() / 2),
        memory,
        security,
        authority,
        connections,
        ..limits
    };
    // Long answers and large snapshots must not delay messages.
    let builder = Registrar::bind(host.with_port(registrar.port)).config(config).on_its_own_thread();
    let started = match daemon.sockets.take("registrar").pop() {
        Some(socket) => builder.start_on(socket).await,
        None if registrar.enabled => builder.start().await,
        None => return Ok(None),
    };
    started.map(Some).context("the registrar can't start")
}

/// Starts outgoing connections and channels in this process, if there are to be any.
#[cfg(feature = "connect")]
async fn start_connecting(
    daemon: &Daemon<Arguments>,
    proxy: &ProxyAddress,
    memory: MemoryBudget,
) -> anyhow::Result<Option<Connecting>> {
    let ConnectSection { enabled: true, state_dir: Some(state_dir), definitions, secrets_dir, .. } =
        &daemon.settings.connect
    else {
        return Ok(None);
    };
    let (mechanism, _) = daemon.security();
    let plan = connect::ConnectPlan {
        state_dir: state_dir.clone(),
        definitions: definitions.clone(),
        secrets_dir: secrets_dir.clone(),
        proxy: reached_at(proxy)?,
        security: daemon.settings.connect.security(&mechanism)?,
        memory,
    };
    let connecting = Connecting::start(plan).await?;
    print_line(format_args!("xmsg-connect with {}", connecting.summary()));
    Ok(Some(connecting))
}

/// Waits until outgoing connections and channels can't go on, and returns the reason. It waits for ever if
/// there are none.
#[cfg(feature = "connect")]
async fn failed(connecting: Option<&Connecting>) -> String {
    match connecting {
        Some(connecting) => connecting.failed().await,
        None => std::future::pending().await,
    }
}

#[cfg(not(feature = "connect"))]
async fn failed(_: Option<&()>) -> String {
    std::future::pending().await
}

/// Waits until the registrar ends by itself. It waits for ever if there is none.
async fn ended(registrar: Option<&Registrar>) {
    match registrar {
        Some(registrar) => registrar.ended().await,
        None => std::future::pending().await,
    }
}
