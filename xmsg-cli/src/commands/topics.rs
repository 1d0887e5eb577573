//! `xmsg topics`: lists topics with their rates.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::args::parse_duration;
use crate::exit::Exit;
use crate::live::LiveSource;
use crate::output::{Output, grouped, note, rounded};
use crate::sampling::{Rates, Sampler};
use crate::signals::Interrupt;
use crate::stats::SourceOptions;
use crate::table::{self, size};

const EXAMPLES: &str = "\
Examples:
  xmsg topics
  xmsg topics daq: --for 10s                         the mean of ten seconds
  xmsg topics --json | jq 'select(.rate > 100)'";

/// List the topics that are published to, with their rates
///
/// Messages are counted for DURATION before the list is written. The proxy counts them from samples: rates
/// above 500 messages a second are estimates. If the proxy can't be asked, because it is of
/// another implementation, the command subscribes to everything and counts by itself.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only topics that start with this
    #[arg(value_name = "PREFIX", default_value = "")]
    prefix: String,

    /// How long to count, such as 500ms or 10s
    #[arg(short, long, visible_alias = "for", value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    duration: Duration,

    /// One object of JSON on each line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceOptions,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let work = async {
        let mut look = Sampler::open(&arguments.source).await?;
        look.sample().await?;
        tokio::time::sleep(arguments.duration).await;
        let rates = look.sample().await?;
        if let Some(unseen) = look.unseen() {
            note(unseen);
        }
        show(&rates, &arguments)
    };
    tokio::select! {
        exit = work => exit,
        exit = interrupt.wait() => Ok(exit),
    }
}

fn show(rates: &Rates, arguments: &Arguments) -> anyhow::Result<Exit> {
    let topics =
        rates.topics.iter().filter(|topic| topic.name.starts_with(&arguments.prefix) && topic.rate > 0.0);
    if arguments.json {
        let mut output = Output::stdout()?;
        for topic in topics {
            let line = json!({ "topic": topic.name, "rate": topic.rate, "bytes_per_s": topic.byte_rate });
            output.json(&line)?;
        }
        output.flush()?;
        return Ok(Exit::Done);
    }
    if rates.topics_left_out > 0 {
        note(format_args!("{} more are left out", grouped(rates.topics_left_out)));
    }
    let shown = |rate: f64| if rate < 10.0 { format!("{rate:.1}") } else { rounded(rate) };
    let rows = topics
        .map(|topic| {
            let bytes = topic.byte_rate.max(0.0);
            [shown(topic.rate), format!("{}/s", size_of(bytes)), topic.name.clone()]
        })
        .collect();
    table::write(["PER S", "BYTES", "TOPIC"], rows, "topic")
}

/// Formats a number of bytes that may have decimals.
fn size_of(bytes: f64) -> String {
    #[allow(clippy::cast_sign_loss, reason = "it is not negative")]
    size(bytes.round() as u64)
}
