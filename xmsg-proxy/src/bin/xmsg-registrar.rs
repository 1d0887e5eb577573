//! The registrar daemon: arguments, tracing, signals, run.

mod daemon;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use daemon::{StopSignals, descriptors_for_connections, is_loopback, parse_seconds, say, start_tracing};
use xmsg_proxy::registrar::{Config, Registrar};

/// Keeps who publishes and who subscribes, and where, and answers questions about it.
#[derive(Debug, Parser)]
#[command(name = "xmsg-registrar", version)]
struct Arguments {
    /// Address or name of the interface to listen on; 0.0.0.0 for all of them
    #[arg(long, default_value = "127.0.0.1", env = "XMSG_REGISTRAR_HOST", value_parser = parse_host)]
    host: String,

    /// Port, 1 to 65535; 0: any free one
    #[arg(long, short, default_value_t = xmsg_core::address::DEFAULT_REGISTRAR_PORT, env = "XMSG_REGISTRAR_PORT")]
    port: u16,

    /// Keep registrations in this file, so that a restart loses none; FILE.journal and FILE.lock lie beside it
    #[arg(long, value_name = "FILE", env = "XMSG_REGISTRAR_SNAPSHOT")]
    snapshot: Option<PathBuf>,

    /// Forget registrations that were not made again for so many seconds [default: never]. Clients of this project renew
    /// theirs every 20 seconds, others don't
    #[arg(long, value_name = "SECONDS", value_parser = parse_ttl)]
    ttl: Option<Duration>,

    /// Registrations to keep at most
    #[arg(long, value_name = "COUNT", default_value_t = 4_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_registrations: u32,

    /// Seconds to go on answering after SIGINT or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = parse_seconds)]
    linger: f64,

    /// Log every request that is refused (the same as `XMSG_REGISTRAR_DEBUG=1`; `RUST_LOG` says it in detail)
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_tracing(arguments.verbose || std::env::var_os("XMSG_REGISTRAR_DEBUG").is_some());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(run(arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xmsg-registrar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;

    let kept = arguments
        .snapshot
        .as_ref()
        .map_or("in memory only".to_owned(), |path| format!("in {}", path.display()));
    let limits = Config::default();
    let config = Config {
        connections: limits.connections.min(descriptors_for_connections()),
        snapshot: arguments.snapshot,
        ttl: arguments.ttl,
        registrations: arguments.max_registrations as usize,
        ..limits
    };
    let host =
        if arguments.host.contains(':') { format!("[{}]", arguments.host) } else { arguments.host.clone() };
    let registrar = Registrar::bind(format!("{host}:{}", arguments.port)).config(config).start().await?;
    let counts = registrar.counts();
    say(format_args!(
        "xmsg-registrar {} at {}: {} publishers, {} subscribers; kept {kept}",
        env!("CARGO_PKG_VERSION"),
        registrar.address(),
        counts.publishers,
        counts.subscribers,
    ));
    if !is_loopback(&arguments.host) {
        tracing::warn!(
            host = arguments.host,
            "open to the network: whoever reaches this port can register and remove anybody"
        );
    }

    tokio::select! {
        () = signals.first() => {}
        () = registrar.ended() => anyhow::bail!("it can't go on: see the log"),
    }
    tracing::info!(linger_s = arguments.linger, "stopping: answering what was asked");
    let stop = registrar.stop(Duration::from_secs_f64(arguments.linger));
    tokio::pin!(stop);
    let counts = tokio::select! {
        counts = &mut stop => counts,
        () = signals.second() => anyhow::bail!("stopped at once by a second signal"),
    };
    say(format_args!(
        "xmsg-registrar stopped: publishers {}, subscribers {}, requests {}, refused {}, expired {}",
        counts.publishers, counts.subscribers, counts.requests, counts.refused, counts.expired,
    ));
    Ok(())
}

fn parse_host(text: &str) -> Result<String, String> {
    let host = text.trim_start_matches('[').trim_end_matches(']');
    xmsg_core::RegistrarAddress::new(host, 1).map(|_| host.to_owned()).map_err(|error| error.to_string())
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..1e9).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds above 0".to_owned()),
    }
}
