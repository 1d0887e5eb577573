//! The outgoing connections and channels of a daemon. They run on a thread of their own, so that brokers,
//! disks and TLS do not delay messages.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use tokio::runtime::{Builder, Handle, Runtime};
use xmsg_connect::{Registry, RegistryOptions};
use xmsg_core::security::Security;
use xmsg_core::{ConnectOptions, ProxyAddress};
use xmsg_proxy::admin::Connect;
use xmsg_proxy::{default_memory_limit, settings};
use xmsg_zmq::memory_budget::MemoryBudget;

/// The largest number of threads for blocking work: the disk, and look-ups of names.
const BLOCKING_THREADS: usize = 32;

/// Returns the number of all threads for outgoing connections and channels.
pub(crate) fn threads() -> usize {
    1 + default_memory_limit::blocking_threads(BLOCKING_THREADS)
}

/// The settings of outgoing connections and channels.
pub(crate) struct ConnectPlan {
    pub(crate) state_dir: PathBuf,
    pub(crate) definitions: Option<PathBuf>,
    pub(crate) secrets_dir: Option<PathBuf>,
    pub(crate) proxy: ProxyAddress,
    pub(crate) security: Security,
    /// The memory budget of all parts of the process.
    pub(crate) memory: MemoryBudget,
}

/// A running registry. Its thread ends with [`close`](Self::close).
pub(crate) struct Connecting {
    registry: Registry,
    runtime: OwnRuntime,
}

impl Connecting {
    /// Starts all definitions, without waiting for a peer.
    pub(crate) async fn start(plan: ConnectPlan) -> anyhow::Result<Self> {
        let ConnectPlan { state_dir, definitions, secrets_dir, proxy, security, memory: budget } = plan;
        let options = RegistryOptions {
            connect: ConnectOptions::new().security(security),
            initial: settings::read_definitions(definitions.as_deref())?,
            // Changes at run time come over HTTP.
            secrets_dir: Some(secrets_dir.unwrap_or_else(|| state_dir.clone())),
            memory: budget,
            thread_space: default_memory_limit::thread_space(),
            ..RegistryOptions::new(&state_dir, proxy)
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(default_memory_limit::blocking_threads(BLOCKING_THREADS))
            .thread_name("xmsg-connect")
            .enable_all()
            .build()
            .context("outgoing connections and channels get no thread")?;
        let runtime = OwnRuntime::new(runtime);
        let opened = runtime.handle().spawn(Registry::open(options)).await;
        let opened = opened.context("outgoing connections and channels can't start")?;
        let registry = opened.map_err(|error| {
            anyhow!(
                "outgoing connections and channels can't start with {}: {}",
                state_dir.display(),
                error.with_causes()
            )
        })?;
        let report = registry.report();
        tracing::info!(
            outgoing = report.outgoing.len(),
            channels = report.channels.len(),
            state = %state_dir.display(),
            "outgoing connections and channels are at work"
        );
        Ok(Self { registry, runtime })
    }

    /// Returns the access for the HTTP server.
    pub(crate) fn source(&self) -> Connect {
        Connect::new(self.registry.clone(), self.runtime.handle().clone())
    }

    /// Returns a text such as `3 outgoing connections, 1 channel`, for the line at the start.
    pub(crate) fn summary(&self) -> String {
        let report = self.registry.report();
        let count_of =
            |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        format!(
            "{}, {}",
            count_of(report.outgoing.len(), "outgoing connection"),
            count_of(report.channels.len(), "channel")
        )
    }

    /// Waits until a task has panicked that the registry can't go on without, and returns its name and the
    /// reason.
    pub(crate) async fn failed(&self) -> String {
        self.registry.failed().await
    }

    /// Ends the channels, so that no more messages come in by them.
    pub(crate) async fn end_channels(&self) {
        self.run(|registry| async move { registry.end_channels().await }).await;
    }

    /// Ends all. Messages that are not delivered stay in the spools, and the log says so.
    pub(crate) async fn close(self) {
        self.run(|registry| async move {
            if let Err(error) = registry.close().await {
                tracing::error!("a spool was not closed as it should: {}", error.with_causes());
            }
        })
        .await;
    }

    async fn run<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Registry) -> F) {
        // A panic of the task has been reported where it happened.
        let _ = self.runtime.handle().spawn(work(self.registry.clone())).await;
    }
}

/// A runtime that ends without being waited for when this is dropped: on a thread of another runtime, it must
/// not be waited for.
struct OwnRuntime(Option<Runtime>, Handle);

impl OwnRuntime {
    fn new(runtime: Runtime) -> Self {
        let handle = runtime.handle().clone();
        Self(Some(runtime), handle)
    }

    fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
