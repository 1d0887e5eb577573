//! SIGINT (`Ctrl-C`) and SIGTERM.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;

/// Receives SIGINT and SIGTERM. Once it exists, they no longer kill the process.
#[derive(Debug)]
pub(crate) struct Interrupt {
    sigint: Signal,
    sigterm: Signal,
    last: Option<Exit>,
}

impl Interrupt {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let of = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { sigint: of(SignalKind::interrupt())?, sigterm: of(SignalKind::terminate())?, last: None })
    }

    /// Waits for the next signal, and returns its exit code.
    pub(crate) async fn wait(&mut self) -> Exit {
        let exit = tokio::select! {
            _ = self.sigint.recv() => Exit::Interrupted,
            _ = self.sigterm.recv() => Exit::Terminated,
        };
        self.last = Some(exit);
        exit
    }

    /// Returns the exit code of the last signal.
    pub(crate) fn exit(&self) -> Exit {
        self.last.unwrap_or(Exit::Interrupted)
    }
}
