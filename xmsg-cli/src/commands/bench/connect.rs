//! `xmsg bench connect`: how fast connections are made.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::options::CommonOptions;
use super::report::Report;
use super::setup::set_up;
use super::target::Target;
use crate::args::{parse_count_from_1, parse_number};
use crate::output::counted;
use crate::signals::Interrupt;

const EXAMPLES: &str = "\
Examples:
  xmsg bench connect
  xmsg bench connect --count 10000 --concurrency 64 --connect-timeout 10s";

/// How long it takes to connect, including the check that the proxy answers
///
/// Each connection is new: it opens the publishing port and the control port, and waits for the answer to a
/// control request. It is closed at once.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// How many connections to make
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1000, value_parser = parse_count_from_1)]
    count: u64,

    /// How many connections to make at the same time
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u16>(1..=10_000))]
    concurrency: u16,

    #[command(flatten)]
    pub(super) common: CommonOptions,
}

impl Arguments {
    pub(super) fn title(&self) -> String {
        format!("{}, {} at a time", counted(self.count, "connection"), self.concurrency)
    }
}

pub(super) async fn run(
    arguments: &Arguments,
    target: &Target,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Report> {
    let made = set_up(
        "connections",
        arguments.count,
        arguments.concurrency,
        interrupt,
        async |_| {
            let connection = target.connection()?;
            connection.connect().await?;
            Ok(connection)
        },
        async |connection| {
            // Nothing was published through this connection.
            let _ = connection.close(Duration::ZERO).await;
        },
    );
    let title = format!("Connecting: {}", arguments.title());
    let plot = arguments.common.report.plot.is_some().then_some([&*title, "time to connect"]);
    let settings = json!({ "count": arguments.count, "concurrency": arguments.concurrency });
    made.await?.report("connect", "connection", settings, plot)
}
