//! `xmsg info`: shows version and state of a proxy.

use clap::Args;

use crate::exit::Exit;
use crate::output::{Output, counted, grouped};
use crate::signals::Interrupt;
use crate::stats::{Connection, SourceOptions, Stats};
use crate::table::{self, size, time};

const EXAMPLES: &str = "\
Examples:
  xmsg info
  xmsg info --proxy 10.0.0.7 --json | jq .dropped.messages";

/// Show version, connections, totals, losses and memory of a proxy
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Write everything that the proxy reports as one object of JSON, including connections and topics
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceOptions,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let work = async {
        let mut source = arguments.source.open().await?;
        let (stats, document) = source.ask().await?;
        if arguments.json {
            let mut output = Output::stdout()?;
            output.json_text(&document)?;
            output.flush()?;
            return Ok(Exit::Done);
        }
        table::write(["WHAT", "VALUE"], rows(&stats, &source.address()), "value")
    };
    tokio::select! {
        exit = work => exit,
        exit = interrupt.wait() => Ok(exit),
    }
}

fn rows(stats: &Stats, address: &str) -> Vec<[String; 2]> {
    let sum = |sum: crate::stats::Sum| format!("{} ({})", counted(sum.messages, "message"), size(sum.bytes));
    let slow = stats.connections.iter().filter(|one| one.slow_s.is_some()).count() as u64;
    let mut rows: Vec<[String; 2]> = [
        ("proxy", format!("{} {} at {address}", stats.name, stats.version)),
        ("up for", time(stats.uptime_s)),
        ("publishers", grouped(stats.publishers)),
        ("subscribers", format!("{}, {} too slow now", grouped(stats.subscribers), grouped(slow))),
        ("subscriptions", grouped(stats.subscriptions)),
        ("received", sum(stats.received)),
        ("delivered", sum(stats.delivered)),
        ("waiting", sum(stats.queued)),
        ("dropped", sum(stats.dropped)),
        ("wanted by nobody", counted(stats.unmatched_messages, "message")),
        ("not allowed", grouped(stats.denied)),
        ("slow subscribers cut off", grouped(stats.subscribers_disconnected)),
        ("memory of peers", format!("{} of {}", size(stats.memory.used), size(stats.memory.limit))),
    ]
    .map(|(what, value)| [what.to_owned(), value])
    .into();
    rows.extend(stats.connections.iter().filter(|one| one.kind == "upstream").map(upstream));
    if stats.double_paths > 0 {
        rows.push(["proxies that get all twice".to_owned(), grouped(stats.double_paths)]);
    }
    rows
}

/// Returns the lines about one upstream: its state, since when, and what it has brought.
fn upstream(link: &Connection) -> [String; 2] {
    let state = link.state.as_deref().unwrap_or("unknown");
    let since = link.state_s.map_or(String::new(), |state_s| format!(" for {}", time(state_s)));
    let messages = counted(link.messages, "message");
    let why = link.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    [format!("upstream {}", link.peer), format!("{state}{since}, {messages}{why}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_has_a_row_of_its_own() {
        let link = Connection {
            peer: "tcp://daq:7772".to_owned(),
            state: Some("disconnected".to_owned()),
            state_s: Some(62.0),
            messages: 1200,
            error: Some("nobody listens there".to_owned()),
            ..Connection::default()
        };
        let row = ["upstream tcp://daq:7772", "disconnected for 1m 2s, 1,200 messages: nobody listens there"];
        assert_eq!(upstream(&link), row);
    }
}
