//! The registrar daemon: arguments, settings, signals, run.

mod daemon;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use daemon::{CommonArguments, Daemon, Program, SignalRequest, Signals, print_line, ready, set, stopping};
use tokio::runtime::{Builder, Runtime};
use xmsg_proxy::admin::{Phase, Sources};
use xmsg_proxy::default_memory_limit;
use xmsg_proxy::registrar::{BLOCKING_THREADS, Config, Registrar};
use xmsg_proxy::settings::{self, Count, Host, RegistrarSettings, Seconds};

/// Keeps who publishes and who subscribes, and where, and answers questions about it.
#[derive(Clone, Debug, Parser)]
#[command(name = "xmsg-registrar", version)]
struct Arguments {
    /// Address or name of the interface to listen on; 0.0.0.0 for all of them [default: 127.0.0.1]
    #[arg(long, env = "XMSG_REGISTRAR_HOST")]
    host: Option<Host>,

    /// Port, 1 to 65535; 0: any free one [default: 8888]
    #[arg(long, short, env = "XMSG_REGISTRAR_PORT")]
    port: Option<u16>,

    /// Keep registrations in this file, so that a restart loses none; FILE.journal and FILE.lock lie beside
    /// it
    #[arg(long, value_name = "FILE", env = "XMSG_REGISTRAR_SNAPSHOT")]
    snapshot: Option<PathBuf>,

    /// Forget registrations that were not made again for so long, such as 60s; 0: never [default: 0]. Clients
    /// of this project renew theirs every 20 seconds, others don't
    #[arg(long, value_name = "DURATION", env = "XMSG_REGISTRAR_TTL")]
    ttl: Option<Seconds>,

    /// Registrations to keep at most [default: 4000000]
    #[arg(long, value_name = "COUNT", env = "XMSG_REGISTRAR_MAX_REGISTRATIONS")]
    max_registrations: Option<Count<1, 4_294_967_295>>,

    /// Memory for all registrations, in MiB [default: 2048]
    #[arg(long, value_name = "MIB", env = "XMSG_REGISTRAR_MAX_REGISTRATION_MEMORY")]
    max_registration_memory: Option<Count<1, { settings::MIB_MAX }>>,

    #[command(flatten)]
    common: CommonArguments,
}

impl Program for Arguments {
    type Settings = RegistrarSettings;

    const NAME: &'static str = "xmsg-registrar";

    const COMMON_ENV: [(&'static str, &'static str); 5] = [
        ("config", "XMSG_REGISTRAR_CONFIG"),
        ("linger", "XMSG_REGISTRAR_LINGER"),
        ("admin", "XMSG_REGISTRAR_ADMIN"),
        ("admin_token_file", "XMSG_REGISTRAR_ADMIN_TOKEN_FILE"),
        ("log_format", "XMSG_REGISTRAR_LOG_FORMAT"),
    ];

    const SOCKETS: &'static [(&'static str, usize)] = &[("registrar", 1), ("admin", 1)];

    fn common(&self) -> &CommonArguments {
        &self.common
    }

    fn overlay(&self, settings: &mut RegistrarSettings) {
        let RegistrarSettings { admin, log, linger_s, .. } = settings;
        self.common.overlay(log, admin, linger_s, "XMSG_REGISTRAR_DEBUG");
        if let Some(path) = &self.snapshot {
            settings.snapshot = Some(settings::absolute(path));
        }
        set(&mut settings.host, self.host.clone());
        set(&mut settings.port, self.port);
        set(&mut settings.ttl_s, self.ttl);
        set(&mut settings.max_registrations, self.max_registrations);
        set(&mut settings.max_registration_memory_mib, self.max_registration_memory);
    }
}

fn main() -> ExitCode {
    daemon::main::<Arguments>(|_| runtime(), run)
}

fn runtime() -> std::io::Result<Runtime> {
    let blocking = default_memory_limit::blocking_threads(BLOCKING_THREADS);
    Builder::new_current_thread().enable_all().max_blocking_threads(blocking).build()
}

async fn run(mut daemon: Daemon<Arguments>) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;

    let settings = daemon.settings.clone();
    let kept = settings
        .snapshot
        .as_ref()
        .map_or("in memory only".to_owned(), |path| format!("in {}", path.display()));
    let (security, authority) = daemon.security();
    let name = security.name();
    let mut config = Config { security, authority, ..settings.config() };
    let threads = default_memory_limit::blocking_threads(BLOCKING_THREADS) + daemon.own_threads();
    config.memory = Daemon::<Arguments>::memory_beside(threads);
    config.connections = daemon.room_for_connections(config.connections)?;
    // Half of what the process can have is for peers. Registrations get no more than half of the other half.
    config.registration_memory = config.registration_memory.min(config.memory.limit() / 2);
    let builder = Registrar::bind(settings.host.with_port(settings.port)).config(config);
    let registrar = match daemon.sockets.take("registrar").pop() {
        Some(socket) => builder.start_on(socket).await?,
        None => builder.start().await?,
    };
    let (counts, address) = (registrar.counts(), registrar.address().clone());
    print_line(format_args!(
        "xmsg-registrar {} at {address}: {} publishers, {} subscribers; kept {kept}; security: {name}",
        env!("CARGO_PKG_VERSION"),
        counts.publishers,
        counts.subscribers,
    ));
    daemon.start_admin(Sources { registrar: Some(registrar.monitor()), ..Sources::default() })?;
    daemon.warn_if_open(address.host(), "whoever reaches this port can register and remove anybody");
    let _watchdog = ready(&format!("answering at {address}"));

    loop {
        tokio::select! {
            request = signals.next() => match request {
                // Reading a file may take any time, and so may ending thousands of connections.
                SignalRequest::Reload => tokio::select! {
                    biased;
                    () = async { daemon.reload().await; registrar.enforce_rules().await } => {}
                    () = signals.stop_requested() => break,
                },
                SignalRequest::Stop => break,
            },
            () = registrar.ended() => anyhow::bail!("it can't go on: see the log"),
        }
    }
    let linger = daemon.linger();
    let admin = daemon.take_admin();
    if let Some(admin) = &admin {
        admin.set_phase(Phase::Draining);
    }
    stopping("answering the requests received so far");
    tracing::info!(linger_s = linger.as_secs_f64(), "stopping: answering the requests received so far");
    let stop = registrar.stop(linger);
    tokio::pin!(stop);
    let counts = tokio::select! {
        counts = &mut stop => counts,
        () = signals.second_stop() => anyhow::bail!("stopped at once by a second signal"),
    };
    if let Some(admin) = admin {
        admin.stop().await;
    }
    print_line(format_args!(
        "xmsg-registrar stopped: publishers {}, subscribers {}, requests {}, refused {}, expired {}",
        counts.publishers, counts.subscribers, counts.requests, counts.refused, counts.expired,
    ));
    Ok(())
}
