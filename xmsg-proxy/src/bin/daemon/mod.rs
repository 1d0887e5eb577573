//! What the daemons share: when to stop, what they say, and options that both have.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that come so soon after the first one belong to it: whoever sends one to a process and to its group sends two.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// Descriptors that a daemon keeps for itself: its files, its listeners, and whatever else it opens.
const OWN_DESCRIPTORS: usize = 24;

/// SIGINT and SIGTERM, noticed from here on.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// To be called before anything that takes time: a signal during the start must not kill the process half-way.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
        })
    }

    /// Waits for a signal to stop.
    pub(crate) async fn first(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for another one, which means: at once.
    pub(crate) async fn second(&mut self) {
        tokio::time::sleep(SAME_SIGNAL).await;
        let _ = self.interrupt.recv().now_or_never();
        let _ = self.terminate.recv().now_or_never();
        self.first().await;
    }
}

/// Raises the limit of open descriptors as far as this user may, and returns how many of them there are for connections. What is
/// usual, 1024, is soon used up: every connection takes one.
pub(crate) fn descriptors_for_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::info!(%error, "the limit of open descriptors stays as it is");
            limit.current
        }
    };
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    limit.saturating_sub(OWN_DESCRIPTORS).max(1)
}

/// A line on standard output. Nobody has to listen there.
pub(crate) fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Logs on standard error: what `RUST_LOG` says, else everything with `verbose`, else what matters.
pub(crate) fn start_tracing(verbose: bool) {
    let default = if verbose { "debug" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// The value of an option in seconds.
pub(crate) fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..1e6).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds from 0 to 1000000".to_owned()),
    }
}

/// Whether only this machine reaches what listens there.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
