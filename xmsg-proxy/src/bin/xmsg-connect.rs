//! The daemon with outgoing connections and channels: arguments, settings, signals, and the main loop.

#[allow(dead_code, reason = "it has no ports of its own that would have to be secured")]
mod daemon;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use daemon::connect::{ConnectPlan, Connecting};
use daemon::{CommonArguments, Daemon, Program, SignalRequest, Signals, print_line, ready, set, stopping};
use xmsg_core::ProxyAddress;
use xmsg_proxy::admin::{Phase, Sources};
use xmsg_proxy::settings::{self, ConnectSettings, Named};

/// Connects an xMsg proxy to ZeroMQ sockets and to RabbitMQ, by outgoing connections and channels that are
/// changed while it runs.
#[derive(Clone, Debug, Parser)]
#[command(name = "xmsg-connect", version)]
struct Arguments {
    /// The proxy: its host and the first of its three ports [default: 127.0.0.1:7771]
    #[arg(long, value_name = "HOST[:PORT]", env = "XMSG_CONNECT_PROXY")]
    proxy: Option<ProxyAddress>,

    /// The folder for what is declared, and for messages that wait; it is made if it is not there
    #[arg(long, value_name = "FOLDER", env = "XMSG_CONNECT_STATE_DIR")]
    state_dir: Option<PathBuf>,

    /// The file with what is declared as long as that folder has nothing yet
    #[arg(long, value_name = "FILE", env = "XMSG_CONNECT_DEFINITIONS")]
    definitions: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArguments,
}

impl Program for Arguments {
    type Settings = ConnectSettings;

    const NAME: &'static str = "xmsg-connect";

    const COMMON_ENV: [(&'static str, &'static str); 5] = [
        ("config", "XMSG_CONNECT_CONFIG"),
        ("linger", "XMSG_CONNECT_LINGER"),
        ("admin", "XMSG_CONNECT_ADMIN"),
        ("admin_token_file", "XMSG_CONNECT_ADMIN_TOKEN_FILE"),
        ("log_format", "XMSG_CONNECT_LOG_FORMAT"),
    ];

    const SOCKETS: &'static [(&'static str, usize)] = &[("admin", 1)];

    fn common(&self) -> &CommonArguments {
        &self.common
    }

    fn overlay(&self, settings: &mut ConnectSettings) {
        let ConnectSettings { admin, log, linger_s, .. } = settings;
        self.common.overlay(log, admin, linger_s, "XMSG_CONNECT_DEBUG");
        set(&mut settings.proxy, self.proxy.clone().map(Named));
        if let Some(path) = &self.state_dir {
            settings.state_dir = Some(settings::absolute(path));
        }
        if let Some(path) = &self.definitions {
            settings.definitions = Some(settings::absolute(path));
        }
    }
}

/// The number of descriptors that are wanted: sockets to peers and to the proxy, files of spools.
const DESCRIPTORS: usize = 1024;

fn main() -> ExitCode {
    daemon::main::<Arguments>(|_| tokio::runtime::Builder::new_current_thread().enable_all().build(), run)
}

async fn run(mut daemon: Daemon<Arguments>) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;

    let settings = daemon.settings.clone();
    let proxy = settings.proxy.0.clone();
    let plan = ConnectPlan {
        // The settings were checked.
        state_dir: settings.state_dir.clone().context("state_dir is missing")?,
        definitions: settings.definitions.clone(),
        secrets_dir: settings.secrets_dir.clone(),
        proxy: proxy.clone(),
        security: settings.security.security()?,
        memory: Daemon::<Arguments>::memory_beside(daemon::connect::threads() + daemon.own_threads()),
    };
    daemon.room_for_connections(DESCRIPTORS)?;
    let connecting = Connecting::start(plan).await?;
    print_line(format_args!(
        "xmsg-connect {} for the proxy {proxy}, with {}",
        env!("CARGO_PKG_VERSION"),
        connecting.summary()
    ));
    daemon.start_admin(Sources { connect: Some(connecting.source()), ..Sources::default() })?;
    let _watchdog = ready(&format!("connecting for {proxy}"));

    loop {
        tokio::select! {
            request = signals.next() => match request {
                // Reading a file may take any time.
                SignalRequest::Reload => tokio::select! {
                    biased;
                    () = daemon.reload() => {}
                    () = signals.stop_requested() => break,
                },
                SignalRequest::Stop => break,
            },
            failure = connecting.failed() => anyhow::bail!("{failure}"),
        }
    }
    let linger = daemon.linger();
    let admin = daemon.take_admin();
    if let Some(admin) = &admin {
        admin.set_phase(Phase::Draining);
    }
    stopping("letting what is on its way arrive");
    tracing::info!(linger_s = linger.as_secs_f64(), "stopping: letting what is on its way arrive");
    tokio::select! {
        ended = xmsg_zmq::deadline::Deadline::after(linger).limit(connecting.close()) => if ended.is_err() {
            tracing::warn!("not all has ended within the time to linger; what was not delivered waits in the spools");
        },
        () = signals.second_stop() => anyhow::bail!("stopped at once by a second signal: what was not delivered waits in the spools"),
    }
    if let Some(admin) = admin {
        admin.stop().await;
    }
    print_line(format_args!("xmsg-connect stopped"));
    Ok(())
}
