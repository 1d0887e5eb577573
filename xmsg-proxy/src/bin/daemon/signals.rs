//! The signals that ask a daemon to stop or to reload. What SIGHUP reloads, and how, is in `reload.rs`.

use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that follow the first one so soon count as the same: a sender that signals a process and its group
/// sends two.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// A listener for SIGINT, SIGTERM and SIGHUP.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// The request that a signal stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    Stop,
    Reload,
}

impl Signals {
    /// Listens for signals. It has to be called before anything that takes time: a signal during the start
    /// must not kill the process half-way.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            hangup: signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?,
        })
    }

    /// Waits for a signal.
    pub(crate) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => SignalRequest::Stop,
            _ = self.terminate.recv() => SignalRequest::Stop,
            _ = self.hangup.recv() => SignalRequest::Reload,
        }
    }

    /// Waits for a request to stop. Requests to reload are ignored meanwhile.
    pub(crate) async fn stop_requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for another signal to stop, which means: at once. While the process stops, there is nothing to
    /// reload.
    pub(crate) async fn second_stop(&mut self) {
        tokio::time::sleep(SAME_SIGNAL).await;
        let _ = self.interrupt.recv().now_or_never();
        let _ = self.terminate.recv().now_or_never();
        while self.next().await != SignalRequest::Stop {}
    }
}
