//! A line on a terminal that shows the progress.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::rate;
use super::timeline::Timeline;
use crate::output::grouped;

/// The progress line, which is cleared when it is dropped.
#[derive(Debug)]
pub(super) struct Live(Option<ProgressBar>);

impl Live {
    pub(super) fn new(name: &str) -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            // An invalid template must not prevent the measurement.
            let style = ProgressStyle::with_template("{prefix}, {elapsed}: {msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_prefix(name.to_owned())
        }))
    }

    /// Shows the rates of the last interval.
    pub(super) fn show(&self, timeline: &Timeline) {
        if let (Some(bar), Some(rates)) = (&self.0, timeline.rates().last()) {
            bar.set_message(format!(
                "published {} messages/s, delivered {} messages/s",
                rate(rates.published_per_second),
                rate(rates.delivered_per_second)
            ));
        }
    }

    /// Shows how many of a total are done.
    pub(super) fn done(&self, count: u64, total: Option<u64>) {
        if let Some(bar) = &self.0 {
            bar.set_message(match total {
                Some(total) => format!("{} of {}", grouped(count), grouped(total)),
                None => grouped(count),
            });
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
