//! `xmsg bench subscribe`: how fast subscriptions are made and confirmed.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use xmsg_core::{Connection, Error, ErrorKind, Message, Topic};

use super::client::{Receiver, Topics};
use super::live::Live;
use super::options::CommonOptions;
use super::plot::{self, Line};
use super::report::{Report, Table, per_second, rate, time};
use super::setup::set_up;
use super::target::Target;
use super::unless_interrupted;
use crate::args::{parse_count_from_1, parse_duration, parse_number};
use crate::output::{counted, grouped};
use crate::signals::Interrupt;

/// The first and the longest interval between two probes whether the subscriptions are complete.
const PROBE_INTERVALS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(16)];

const EXAMPLES: &str = "\
Examples:
  xmsg bench subscribe --count 1000 --concurrency 16
  xmsg bench subscribe --on-one-connection 1000,10000,100000,1000000 --plot subscriptions.svg";

/// How long it takes to subscribe, until the proxy has confirmed it
///
/// Each subscription has a new connection of its own, and is ended at once. With --on-one-connection, one
/// connection subscribes to many topics; the time ends when a message to the last of them arrives.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// How many subscriptions
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1000, value_parser = parse_count_from_1)]
    count: u64,

    /// How many are made at the same time
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u16>(1..=10_000))]
    concurrency: u16,

    /// Subscribe to this many topics on one connection; several numbers are measured one after another
    #[arg(long, value_name = "COUNT", value_delimiter = ',', conflicts_with_all = ["count", "concurrency"],
          value_parser = parse_number::<u32>(1..=10_000_000))]
    on_one_connection: Vec<u32>,

    /// How long all subscriptions of one connection may take
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration,
          requires = "on_one_connection")]
    timeout: Duration,

    #[command(flatten)]
    pub(super) common: CommonOptions,
}

impl Arguments {
    /// Returns whether this mode also publishes, to find out when all subscriptions of a connection are
    /// active.
    pub(super) fn publishes(&self) -> bool {
        !self.on_one_connection.is_empty()
    }

    pub(super) fn title(&self) -> String {
        if self.on_one_connection.is_empty() {
            return format!("{}, {} at a time", counted(self.count, "subscription"), self.concurrency);
        }
        let counts: Vec<String> =
            self.on_one_connection.iter().map(|count| grouped((*count).into())).collect();
        format!("{} subscriptions on one connection", counts.join(", then "))
    }
}

pub(super) async fn run(
    arguments: &Arguments,
    target: &Target,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Report> {
    if arguments.on_one_connection.is_empty() {
        each_its_connection(arguments, target, interrupt).await
    } else {
        on_one_connection(arguments, target, interrupt).await
    }
}

async fn each_its_connection(
    arguments: &Arguments,
    target: &Target,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Report> {
    // The connection for confirmations is opened before, and is shared.
    let connection = target.connection()?;
    unless_interrupted(interrupt, async { Ok(connection.connect().await?) }).await?;
    let topics = Topics::new(&arguments.common.target.topic, 1);
    let base = topics.all();
    let up = async |number| connection.subscribe(Topic::wrap(format!("{base}{number}"))).await;
    let down = async |subscription| Receiver::new(subscription).close().await;
    let made = set_up("subscriptions", arguments.count, arguments.concurrency, interrupt, up, down).await?;
    // Nothing was published through this connection.
    let _ = connection.close(Duration::ZERO).await;
    let title = format!("Subscribing: {}", arguments.title());
    let plot = arguments.common.report.plot.is_some().then_some([&*title, "time to confirmation"]);
    let settings = json!({ "count": arguments.count, "concurrency": arguments.concurrency });
    made.report("subscribe", "subscription", settings, plot)
}

async fn on_one_connection(
    arguments: &Arguments,
    target: &Target,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Report> {
    let publisher = target.connection()?;
    unless_interrupted(interrupt, async { Ok(publisher.connect().await?) }).await?;
    let live = Live::new("subscriptions");
    let mut results: Vec<(u32, Duration)> = Vec::new();
    let mut interrupted = false;
    for count in &arguments.on_one_connection {
        live.done(results.iter().map(|(count, _)| u64::from(*count)).sum(), None);
        let topics = Topics::new(&arguments.common.target.topic, *count as usize);
        tokio::select! {
            time = confirm(target, &publisher, &topics, arguments.timeout) => results.push((*count, time?)),
            _ = interrupt.wait() => {
                interrupted = true;
                break;
            }
        }
    }
    drop(live);
    // Only probes were published through this connection.
    let _ = publisher.close(Duration::ZERO).await;
    report(arguments, &results, interrupted)
}

/// Measures how long it takes until all subscriptions are active. They arrive in order, so a message to the
/// last topic proves it. Confirming each of them would measure round trips instead.
async fn confirm(
    target: &Target,
    publisher: &Connection,
    topics: &Topics,
    timeout: Duration,
) -> anyhow::Result<Duration> {
    let last = topics.iter().last().context("no topics")?;
    let names: Vec<Topic> = topics.iter().collect();
    let connection = target.unchecked_connection()?;
    let probe = Message::of(last, "probe")?;
    let started = Instant::now();
    let subscribing = async {
        let mut receiver = Receiver::new(connection.subscribe(names).await?);
        let [mut interval, longest] = PROBE_INTERVALS;
        loop {
            publisher.publish(&probe).await?;
            match tokio::time::timeout(interval, receiver.next()).await {
                Ok(messages) => break drop(messages?),
                Err(_) => interval = (interval * 2).min(longest),
            }
        }
        let time = started.elapsed();
        receiver.close().await;
        anyhow::Ok(time)
    };
    tokio::time::timeout(timeout, subscribing).await.unwrap_or_else(|_| {
        let what = format!(
            "the proxy at {} did not confirm {} within {} s: do its limits, and our rights, allow so many? Give it more \
             time with --timeout",
            target.address(),
            counted(topics.iter().count() as u64, "subscription"),
            timeout.as_secs_f64()
        );
        Err(Error::new(ErrorKind::Timeout, what).into())
    })
}

fn report(arguments: &Arguments, results: &[(u32, Duration)], interrupted: bool) -> anyhow::Result<Report> {
    let mut table = Table::new(&["subscriptions", "confirmed after", "per second"]);
    for (count, after) in results {
        let count = u64::from(*count);
        table.row(vec![grouped(count), time(*after), rate(per_second(count, *after))]);
    }
    let plot = arguments.common.report.plot.is_some().then(|| {
        let points = results.iter().map(|(count, time)| (f64::from(*count), time.as_secs_f64())).collect();
        let line = Line { name: "until the last one is confirmed".to_owned(), points };
        plot::times_by_count("Subscriptions on one connection", "subscriptions", &[line])
    });
    let results: Value = results
        .iter()
        .map(|(count, time)| {
            json!({
                "subscriptions": count,
                "seconds": time.as_secs_f64(),
                "subscriptions_per_second": per_second((*count).into(), *time),
            })
        })
        .collect();
    Ok(Report {
        mode: "subscribe",
        settings: json!({ "on_one_connection": arguments.on_one_connection }),
        result: json!({ "on_one_connection": results }),
        text: table.text(),
        plot: plot.transpose()?,
        interrupted,
        lost: 0,
        failed: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_on_one_connection_are_a_list() {
        let words = ["bench", "--on-one-connection", "1000,100000"];
        let arguments = super::super::tests::parse::<Arguments>(&words);
        assert_eq!(arguments.title(), "1,000, then 100,000 subscriptions on one connection");
        let report = report(&arguments, &[(1000, Duration::from_millis(10))], true).unwrap();
        assert!(report.text.contains("10.0 ms") && report.text.contains("100,000"), "{}", report.text);
        assert_eq!(report.result["on_one_connection"][0]["subscriptions"], 1000);
    }
}
