//! The proxy daemon: arguments, tracing, signals, run.

mod daemon;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use daemon::{StopSignals, descriptors_for_connections, is_loopback, parse_seconds, say, start_tracing};
use xmsg_core::socket::HighWaterMark;
use xmsg_proxy::registrar::{self, Registrar};
use xmsg_proxy::{Config, Policy, Proxy, Upstream};

/// Forwards messages from publishers to subscribers, and answers control requests.
///
/// Publishers connect to PORT, subscribers to PORT+1, control sockets to PORT+2.
#[derive(Debug, Parser)]
#[command(name = "xmsg-proxy", version)]
struct Arguments {
    /// Address or name of the interface to listen on; 0.0.0.0 for all of them
    #[arg(long, default_value = "127.0.0.1", env = "XMSG_PROXY_HOST", value_parser = parse_host)]
    host: String,

    /// Publisher port, 1 to 65533; the next two are used, too. 0: any three free ones
    #[arg(long, short, default_value_t = xmsg_core::address::DEFAULT_PROXY_PORT, env = "XMSG_PROXY_PORT", value_parser = parse_port)]
    port: u16,

    /// What happens to messages for a subscriber whose queue is full: `drop-newest` drops and counts them, `block` makes
    /// publishers wait
    #[arg(long, value_name = "POLICY", default_value_t, env = "XMSG_PROXY_SLOW_SUBSCRIBER")]
    slow_subscriber: Policy,

    /// Memory for what waits for one subscriber, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    high_water_mark: u32,

    /// Messages that may wait for one subscriber [default: any number]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    high_water_mark_messages: Option<u64>,

    /// Memory for what waits for all subscribers together, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    queue_ceiling: u32,

    /// The largest message, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_message_size: u32,

    /// Have publishers send everything, not just what somebody subscribed to
    #[arg(long)]
    upstream_all: bool,

    /// Run a registrar on the same host, too, on this port; 0: any free one
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "8888")]
    registrar: Option<u16>,

    /// Keep what is registered in this file, so that a restart loses nothing
    #[arg(long, value_name = "FILE", requires = "registrar")]
    registrar_snapshot: Option<std::path::PathBuf>,

    /// Seconds to go on delivering after SIGINT or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = parse_seconds)]
    linger: f64,

    /// Threads that move messages; 0: one for each core
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    threads: usize,

    /// Log every connection (the same as `XMSG_PROXY_DEBUG=1`; `RUST_LOG` says it in detail)
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_tracing(arguments.verbose || std::env::var_os("XMSG_PROXY_DEBUG").is_some());
    let runtime = match arguments.threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        0 => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
        count => tokio::runtime::Builder::new_multi_thread().worker_threads(count).enable_all().build(),
    };
    let result =
        runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(run(&arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xmsg-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;

    let mib = |count: u32| count as usize * (1 << 20);
    let mut config = Config {
        policy: arguments.slow_subscriber,
        high_water_mark: HighWaterMark {
            bytes: mib(arguments.high_water_mark),
            messages: arguments.high_water_mark_messages.map_or(usize::MAX, |count| count as usize),
        },
        queue_ceiling: mib(arguments.queue_ceiling),
        upstream: if arguments.upstream_all { Upstream::All } else { Upstream::Subscribed },
        ..Config::default()
    };
    let descriptors = descriptors_for_connections();
    // So many that a registrar in the same process never runs out of them.
    let registrar_share = if arguments.registrar.is_some() { descriptors / 4 } else { 0 };
    config.connections = config.connections.min(descriptors - registrar_share);
    config.limits.message_size = mib(arguments.max_message_size);
    let host =
        if arguments.host.contains(':') { format!("[{}]", arguments.host) } else { arguments.host.clone() };
    let proxy = Proxy::bind(format!("{host}:{}", arguments.port)).config(config).start().await?;
    let address = proxy.address();
    say(format_args!(
        "xmsg-proxy {} at {address}: publishers {}, subscribers {}, control {}; slow subscribers: {}",
        env!("CARGO_PKG_VERSION"),
        address.publish_port(),
        address.subscribe_port(),
        address.control_port(),
        arguments.slow_subscriber,
    ));
    let registrar = match arguments.registrar {
        None => None,
        Some(port) => {
            let snapshot = arguments.registrar_snapshot.clone();
            let mut config = registrar::Config { snapshot, ..registrar::Config::default() };
            config.connections = config.connections.min(registrar_share);
            let registrar = Registrar::bind(format!("{host}:{port}")).config(config).start().await?;
            say(format_args!("xmsg-registrar at {}", registrar.address()));
            Some(registrar)
        }
    };
    if !is_loopback(&arguments.host) {
        tracing::warn!(
            host = arguments.host,
            "open to the network: whoever reaches these ports can publish and subscribe"
        );
    }

    tokio::select! {
        () = signals.first() => {}
        () = ended(registrar.as_ref()) => anyhow::bail!("the registrar can't go on: see the log"),
    }
    tracing::info!(linger_s = arguments.linger, "stopping: delivering what is queued");
    let linger = Duration::from_secs_f64(arguments.linger);
    let stop = async {
        let registrar = async {
            if let Some(registrar) = registrar {
                registrar.stop(linger).await;
            }
        };
        tokio::join!(proxy.stop(linger), registrar).0
    };
    tokio::pin!(stop);
    let totals = tokio::select! {
        totals = &mut stop => totals,
        () = signals.second() => anyhow::bail!("stopped at once by a second signal: queued messages are lost"),
    };
    say(format_args!(
        "xmsg-proxy stopped: received {}, delivered {}, dropped {}, undelivered {}",
        totals.received.messages, totals.delivered.messages, totals.dropped.messages, totals.undelivered,
    ));
    Ok(())
}

/// When a registrar ends without being told to; never, if there is none.
async fn ended(registrar: Option<&Registrar>) {
    match registrar {
        Some(registrar) => registrar.ended().await,
        None => std::future::pending().await,
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port @ 0..=xmsg_core::address::MAX_PROXY_PORT) => Ok(port),
        Ok(port) => Err(format!("{port} leaves no room for three ports: the highest is 65533")),
        Err(_) => Err("not a port: 1 to 65533, or 0 for any".to_owned()),
    }
}

fn parse_host(text: &str) -> Result<String, String> {
    let host = text.trim_start_matches('[').trim_end_matches(']');
    xmsg_core::ProxyAddress::new(host, 1).map(|_| host.to_owned()).map_err(|error| error.to_string())
}
