//! `xmsg top`: the present state of a proxy: connections and topics by rate, and slow subscribers.

mod view;

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::args::parse_duration;
use crate::exit::Exit;
use crate::live::{self, LiveSource, check_interval};
use crate::output::note;
use crate::sampling::{Rates, Sampler};
use crate::screen::Screen;
use crate::signals::Interrupt;
use crate::stats::SourceOptions;
use view::{View, VisibleRates};

const EXAMPLES: &str = "\
Examples:
  xmsg top
  xmsg top --proxy 10.0.0.7 --sort drops
  xmsg top --once                                    one look, as tables
  xmsg top --json | jq .dropped_per_s                a line each second

Keys: q quits, p pauses, / filters, t shows connections, topics or both, arrows move; r b u d n sort by rate, bytes, queue, drops, name.";

/// Watch a proxy: connections and topics by rate, slow subscribers, and what was lost
///
/// The proxy is asked once a second (over HTTP, if --admin gives its address), which costs it next to
/// nothing. Without security, a proxy answers only clients on its own machine; with security, those with the
/// right `inspect`. If the proxy can't be asked, because it is of another implementation, the command
/// subscribes to everything, and shows only topics.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// How often to ask, such as 500ms or 10s
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,

    /// What to sort by
    #[arg(long, value_name = "SORT", value_enum, default_value_t = Sort::Rate)]
    sort: Sort,

    /// Only connections and topics whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,

    /// Ask once, after one interval, and write tables
    #[arg(long)]
    once: bool,

    /// Write one object of JSON on a line for each interval
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceOptions,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Messages a second
    Rate,
    /// Bytes a second
    Bytes,
    /// Bytes in the queue of a subscriber
    Queue,
    /// Messages that were dropped for a subscriber
    Drops,
    /// Addresses and topics
    Name,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    check_interval(arguments.interval)?;
    let is_live = !arguments.once && !arguments.json && Screen::is_possible();
    let work = async {
        let mut look = Sampler::open(&arguments.source).await?;
        look.sample().await?;
        if is_live {
            let view = View::new(look.address(), look.unseen(), arguments.sort, arguments.filter.clone());
            return live::watch(look, arguments.interval, view).await;
        }
        if let Some(unseen) = look.unseen() {
            note(unseen);
        }
        write(look, &arguments).await.map(|()| Exit::Done)
    };
    tokio::select! {
        exit = work => exit,
        exit = interrupt.wait() => Ok(exit),
    }
}

/// Writes the samples: once, or repeatedly.
async fn write(mut look: Sampler, arguments: &Arguments) -> anyhow::Result<()> {
    let is_repeated = arguments.json && !arguments.once;
    live::write(&mut look, arguments.interval, is_repeated, |look, rates, output| {
        let visible = VisibleRates::of(&rates, arguments.sort, &arguments.filter);
        if arguments.json {
            output.json(&document(&look.address(), &rates, &visible))?;
        } else {
            output.buffer().extend_from_slice(visible.text(&look.address(), &rates).as_bytes());
        }
        Ok(())
    })
    .await
}

/// Returns a sample as JSON. Fields are added, never renamed: docs/slow-subscribers.md lists them.
fn document(address: &str, rates: &Rates, visible: &VisibleRates<'_>) -> Value {
    let connections: Vec<_> = visible
        .connections
        .iter()
        .map(|one| {
            let connection = &one.connection;
            json!({
                "side": connection.kind,
                "id": connection.id,
                "peer": connection.peer,
                "principal": connection.principal,
                "rate": one.rate,
                "bytes_per_s": one.byte_rate,
                "queued_bytes": connection.queued.map(|queued| queued.bytes),
                "dropped_messages": connection.dropped.map(|dropped| dropped.messages),
                "dropped_per_s": one.drop_rate,
                "slow_s": connection.slow_s,
            })
        })
        .collect();
    let topics: Vec<_> = visible
        .topics
        .iter()
        .map(|one| json!({ "topic": one.name, "rate": one.rate, "bytes_per_s": one.byte_rate }))
        .collect();
    json!({
        "proxy": address,
        "uptime_s": rates.stats.uptime_s,
        "publishers": rates.stats.publishers,
        "subscribers": rates.stats.subscribers,
        "received_per_s": rates.received,
        "delivered_per_s": rates.delivered,
        "dropped_per_s": rates.dropped,
        "dropped_messages": rates.stats.dropped.messages,
        "connections": connections,
        "topics": topics,
    })
}
