//! The log, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};
use xmsg_core::text::{LogLine, LogWriter};
use xmsg_proxy::settings::{Log, LogFormat, log_filter};

/// What is logged, to be changed while the daemon runs.
pub(crate) struct Filter(reload::Handle<Targets, Registry>);

/// Starts to log. The filter has been checked.
pub(crate) fn start(log: &Log) -> Filter {
    let (filter, handle) = reload::Layer::new(log.targets().unwrap_or_default());
    // What peers sent may be in any of its lines.
    let writer = |line| move || LogWriter::new(std::io::stderr(), line);
    let lines = match log.format.0 {
        LogFormat::Text => {
            let is_coloured = std::io::stderr().is_terminal();
            let line = if is_coloured { LogLine::Coloured } else { LogLine::Plain };
            fmt::layer().with_ansi(is_coloured).with_writer(writer(line)).boxed()
        }
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer(LogLine::Json)).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Filter(handle)
}

impl Filter {
    /// Logs what this filter, which has been checked, lets through from now on.
    pub(crate) fn set(&self, filter: &str) {
        if let Err(error) = self.0.reload(log_filter(filter).unwrap_or_default()) {
            tracing::error!(%error, "the log filter can't be changed");
        }
    }
}
