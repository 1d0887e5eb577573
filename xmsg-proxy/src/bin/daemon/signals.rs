//! What the daemons are asked by signals.

use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that come so soon after the first one belong to it: whoever sends one to a process and to its
/// group sends two.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// SIGINT, SIGTERM and SIGHUP, noticed from here on.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Stop,
    Reload,
}

impl Signals {
    /// To be called before anything that takes time: a signal during the start must not kill the process
    /// half-way.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            hangup: signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?,
        })
    }

    /// Waits for a signal.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// Waits until it is to stop. What is to be read again meanwhile stays to be asked for.
    pub(crate) async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for another signal to stop, which means: at once. While the process stops, there is nothing to
    /// reload.
    pub(crate) async fn second(&mut self) {
        tokio::time::sleep(SAME_SIGNAL).await;
        let _ = self.interrupt.recv().now_or_never();
        let _ = self.terminate.recv().now_or_never();
        while self.next().await != Asked::Stop {}
    }
}
