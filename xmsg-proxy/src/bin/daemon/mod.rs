//! What the daemons share: when to stop.

use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that come so soon after the first one belong to it: whoever sends one to a process and to its group sends two.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

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
