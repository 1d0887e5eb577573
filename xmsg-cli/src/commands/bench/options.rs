//! Options that several modes share, and the parsing of their values.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use xmsg_core::Topic;
use xmsg_proxy::Policy;

use super::client::HEADER_LEN;
use crate::args::{ConnectOptions, parse_duration, parse_number};

/// The options of all modes: what is measured, and how it is reported.
#[derive(Debug, clap::Args)]
pub(crate) struct CommonOptions {
    #[command(flatten)]
    pub(super) report: ReportOptions,

    #[command(flatten)]
    pub(super) target: TargetOptions,

    #[command(flatten)]
    pub(super) connect: ConnectOptions,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Report")]
pub(super) struct ReportOptions {
    /// Write the results as one JSON document
    #[arg(long)]
    pub(super) json: bool,

    /// Draw the results into this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub(super) plot: Option<PathBuf>,

    /// End with exit code 1 if a message was lost
    #[arg(long)]
    pub(super) fail_on_loss: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What is measured")]
pub(super) struct TargetOptions {
    /// Start a proxy in this process and measure that, instead of the one at --proxy
    #[arg(long)]
    pub(super) embedded: bool,

    /// What the embedded proxy does when a subscriber is too slow: drop-newest, drop-oldest, conflate, block,
    /// disconnect
    #[arg(long, value_name = "POLICY", default_value_t = Policy::BLOCK, requires = "embedded")]
    pub(super) slow_subscriber: Policy,

    /// Threads that the clients share, and the embedded proxy with them [default: one for each core]
    #[arg(long, value_name = "COUNT", value_parser = parse_threads)]
    pub(super) threads: Option<NonZeroUsize>,

    /// The first part of all topics; each run appends a part of its own to it
    #[arg(long, value_name = "TOPIC", default_value = "bench")]
    pub(super) topic: Topic,
}

/// The options for the amount that is published.
#[derive(Debug, clap::Args)]
pub(super) struct LoadOptions {
    /// Bytes of data in each message, such as 100, 1KiB or 1MB; 16 at least
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = parse_size)]
    pub(super) size: usize,

    /// Publish for this long before anything is counted; 0: not at all
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub(super) warmup: Duration,

    /// At the end: when nothing has arrived for this long, messages that are missing count as lost
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_duration)]
    pub(super) patience: Duration,
}

fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    parse_number::<usize>(1..=1024)(text)
        .map(|threads| NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN))
}

/// Parses the size of a message, which begins with a header.
fn parse_size(text: &str) -> Result<usize, String> {
    crate::args::parse_size(text, HEADER_LEN as u64).map(|size| size as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, size) in [
            ("100", 100),
            ("16", 16),
            ("1KiB", 1024),
            ("64k", 65536),
            ("1MB", 1_000_000),
            ("2 kB", 2000),
            ("32MiB", 32 << 20),
            ("20b", 20),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in
            ["", "15", "1GiB", "-1", "33MiB", "k", "1.5k", "99999999999999999999", "99999999999999999M"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
