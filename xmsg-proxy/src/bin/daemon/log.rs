//! The log, on standard error. A slow reader of it makes nobody wait: see [`LogQueue`].

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::time::Duration;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};
use xmsg_core::text::{LogLine, LogWriter};
use xmsg_proxy::log::LogQueue;
use xmsg_proxy::settings::{Log, LogFormat, log_filter};

/// The time for which the end of a process may wait for the reader of its log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The log while it is written. When it is dropped, waiting lines are written, if they are read.
pub(crate) struct Logging {
    filter: reload::Handle<Targets, Registry>,
    pub(crate) queue: LogQueue,
}

/// Starts to log. The filter has been checked.
pub(crate) fn start(log: &Log, name: &'static str) -> io::Result<Logging> {
    let (filter, handle) = reload::Layer::new(log.targets().unwrap_or_default());
    let queue = LogQueue::start(io::stderr())?;
    // Any line may contain text of peers.
    let writer = |line| {
        let queue = queue.clone();
        move || LogWriter::new(queue.clone(), line)
    };
    let lines = match log.format.0 {
        LogFormat::Text => {
            let is_coloured = io::stderr().is_terminal();
            let line = if is_coloured { LogLine::Coloured } else { LogLine::Plain };
            fmt::layer().with_ansi(is_coloured).with_writer(writer(line)).boxed()
        }
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer(LogLine::Json)).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    let panics = queue.clone();
    // The standard library writes panics to standard error itself, and would wait for the reader.
    std::panic::set_hook(Box::new(move |panic| {
        let trace = Backtrace::capture();
        let trace =
            if trace.status() == BacktraceStatus::Captured { format!("\n{trace}") } else { String::new() };
        panics.push(format!("{name}: {panic}{trace}\n").as_bytes());
    }));
    Ok(Logging { filter: handle, queue })
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.queue.flush_within(FLUSH_TIMEOUT);
    }
}

impl Logging {
    /// Sets the filter, which has been checked.
    pub(crate) fn set(&self, filter: &str) {
        if let Err(error) = self.filter.reload(log_filter(filter).unwrap_or_default()) {
            tracing::error!(%error, "the log filter can't be changed");
        }
    }
}
