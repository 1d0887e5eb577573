//! `xmsg bench throughput`: how many messages get through when publishers send as fast as they can.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::{Clock, Header, Sender, Topics};
use super::histogram::Times;
use super::options::{CommonOptions, LoadOptions};
use super::phase::{Outcome, Part, Phase, Published, YIELD_AFTER};
use super::plot::{self, Line};
use super::report::{Report, Spread, Table, megabytes_per_second, per_second, rate, time};
use super::target::Target;
use super::unless_interrupted;
use crate::args::{parse_count_from_1, parse_duration, parse_number};
use crate::output::{counted, grouped};
use crate::signals::Interrupt;

/// One of this many messages carries its time, because reading the clock for each message would be too slow.
const TIMED: u64 = 64;

const EXAMPLES: &str = "\
Examples:
  xmsg bench throughput --embedded                            one to one, with its own proxy
  xmsg bench throughput --publishers 8                        fan-in
  xmsg bench throughput --subscribers 64 --size 1KiB          fan-out
  xmsg bench throughput --count 1000000 --json --plot rate.svg";

/// As fast as it goes: rates, and what was lost (the default mode)
///
/// Each subscriber gets the messages of all publishers, so published × subscribers should be delivered. It
/// checks the sequence numbers of each publisher. Subscriptions are confirmed before publishing begins, and
/// the bench ends when everything has arrived. One message in 64 carries its time: the delay that is shown is
/// the delay under full load, with full queues.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Publishers, each with a connection
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u16>(1..=10_000))]
    publishers: u16,

    /// Subscribers, each with a connection; each gets everything
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u16>(1..=65_535))]
    subscribers: u16,

    /// Topics that each publisher goes through in turn
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u32>(1..=1_000_000))]
    topics: u32,

    /// Publish this many messages in all, shared among the publishers
    #[arg(short = 'n', long, alias = "messages", value_name = "COUNT", conflicts_with = "duration",
          value_parser = parse_count_from_1)]
    count: Option<u64>,

    /// Publish for this long
    #[arg(short, long, visible_alias = "for", value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    duration: Duration,

    #[command(flatten)]
    load: LoadOptions,

    #[command(flatten)]
    pub(super) common: CommonOptions,
}

impl Arguments {
    /// Returns how many messages this publisher sends, if the number is limited.
    fn share(&self, publisher: usize) -> Option<u64> {
        let (publishers, publisher) = (u64::from(self.publishers), publisher as u64);
        self.count.map(|messages| messages / publishers + u64::from(publisher < messages % publishers))
    }

    pub(super) fn title(&self) -> String {
        format!(
            "{} to {}, {}, {} a message",
            counted(self.publishers.into(), "publisher"),
            counted(self.subscribers.into(), "subscriber"),
            counted(self.topics.into(), "topic"),
            counted(self.load.size as u64, "byte"),
        )
    }
}

pub(super) async fn run(
    arguments: &Arguments,
    target: &Target,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Report> {
    let topics = Topics::new(&arguments.common.target.topic, arguments.topics as usize);
    let connecting = async {
        let receivers = target.receivers(arguments.subscribers.into(), &topics).await?;
        anyhow::Ok((receivers, target.connections(arguments.publishers.into()).await?))
    };
    let (mut receivers, connections) = unless_interrupted(interrupt, connecting).await?;
    let mut senders: Vec<Sender> = connections
        .into_iter()
        .map(|connection| Sender::new(connection, topics.clone(), arguments.load.size))
        .collect();

    let mut phase = Phase {
        name: "warm-up",
        number: 0,
        limit: Some(arguments.load.warmup),
        patience: arguments.load.patience,
        clock: Clock::new(),
        times: Times::coarse,
    };
    if !arguments.load.warmup.is_zero() {
        let outcome =
            phase.run(senders, receivers, interrupt, |sender, part| publish(sender, part, None)).await?;
        if outcome.interrupted {
            return report(arguments, &outcome.unmeasured());
        }
        (senders, receivers) = outcome.into_clients();
    }
    phase.name = "throughput";
    phase.number = 1;
    phase.limit = arguments.count.is_none().then_some(arguments.duration);
    let measured = phase.run(senders, receivers, interrupt, |sender, part| {
        let share = arguments.share(part.number);
        publish(sender, part, share)
    });
    let outcome = measured.await?;
    let report = report(arguments, &outcome)?;
    let (senders, receivers) = outcome.into_clients();
    super::close(senders, receivers).await;
    Ok(report)
}

/// Publishes `count` messages, or without a count until it is stopped.
async fn publish(mut sender: Sender, part: Part, count: Option<u64>) -> anyhow::Result<Published<Sender>> {
    let Part { number, phase, clock, started, patience, mut signal, counter } = part;
    let mut sequence = 0;
    while count != Some(sequence) {
        if sequence % YIELD_AFTER == 0 {
            if signal.is_stopped() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let time_ns = if sequence % TIMED == 0 { clock.now_ns() } else { 0 };
        let message = sender.message(Header { phase, publisher: number as u32, sequence, time_ns });
        if !sender.try_send(&message)? {
            tokio::select! {
                result = sender.send(&message) => result?,
                () = signal.stopped() => break,
            }
        }
        sequence += 1;
        counter.set(sequence);
    }
    signal.flushed(&sender, patience).await;
    Ok(Published { publisher: sender, number, messages: sequence, time: started.elapsed() })
}

/// A line of the table.
struct Totals {
    messages: u64,
    time: Duration,
    each: Spread,
}

impl Totals {
    fn of(clients: impl Iterator<Item = (u64, Duration)> + Clone) -> Self {
        Self {
            messages: clients.clone().map(|(messages, _)| messages).sum(),
            time: clients.clone().map(|(_, time)| time).max().unwrap_or_default(),
            each: Spread::of(clients.map(|(messages, time)| per_second(messages, time)).collect()),
        }
    }

    fn rate(&self) -> f64 {
        per_second(self.messages, self.time)
    }

    fn row(&self, name: &str, size: usize) -> Vec<String> {
        vec![
            name.to_owned(),
            grouped(self.messages),
            rate(self.rate()),
            format!("{:.1}", megabytes_per_second(self.rate(), size)),
            rate(self.each.min),
            rate(self.each.median),
            rate(self.each.max),
        ]
    }

    fn json(&self, size: usize) -> Value {
        json!({
            "messages": self.messages,
            "seconds": self.time.as_secs_f64(),
            "messages_per_second": self.rate(),
            "megabytes_per_second": megabytes_per_second(self.rate(), size),
            "messages_per_second_each": self.each.json(),
        })
    }
}

fn report(arguments: &Arguments, outcome: &Outcome<Sender>) -> anyhow::Result<Report> {
    let size = arguments.load.size;
    let published = Totals::of(outcome.published.iter().map(|client| (client.messages, client.time)));
    let delivered = Totals::of(outcome.received.iter().map(|client| (client.counts.delivered, client.time)));
    let (counts, lost) = (outcome.counts(), outcome.messages_lost());

    let mut table =
        Table::new(&["", "messages", "messages/s", "MB/s", "each: min", "each: median", "each: max"]);
    table.row(published.row("published", size));
    table.row(delivered.row("delivered", size));
    let delays = &outcome.delays;
    let text = format!(
        "{}lost {}, reordered {}, duplicates {}\ndelay under this load: p50 {}, p99 {}, max {}\n",
        table.text(),
        grouped(lost),
        grouped(counts.reordered),
        grouped(counts.duplicates),
        time(delays.at_quantile(0.5)),
        time(delays.at_quantile(0.99)),
        time(delays.max()),
    );

    let plot = arguments.common.report.plot.is_some().then(|| {
        let line = |name: &str, rate: fn(&super::timeline::Rates) -> f64| Line {
            name: name.to_owned(),
            points: outcome.timeline.rates().map(|rates| (rates.seconds, rate(&rates))).collect(),
        };
        plot::over_time(
            &format!("Throughput: {}", arguments.title()),
            "messages per second",
            &[
                line("published", |rates| rates.published_per_second),
                line("delivered to all subscribers", |rates| rates.delivered_per_second),
            ],
        )
    });
    Ok(Report {
        mode: "throughput",
        settings: json!({
            "publishers": arguments.publishers,
            "subscribers": arguments.subscribers,
            "topics": arguments.topics,
            "size_bytes": size,
            "messages": arguments.count,
            "duration_seconds": arguments.count.is_none().then_some(arguments.duration.as_secs_f64()),
            "warmup_seconds": arguments.load.warmup.as_secs_f64(),
        }),
        result: json!({
            "published": published.json(size),
            "delivered": delivered.json(size),
            "expected_messages": outcome.messages_expected(),
            "lost_messages": lost,
            "reordered_messages": counts.reordered,
            "duplicate_messages": counts.duplicates,
            "delay": delays.json(),
            "timeline": outcome.timeline.json(),
        }),
        text,
        plot: plot.transpose()?,
        interrupted: outcome.interrupted,
        lost,
        failed: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_shared_evenly() {
        let arguments = |option: &str, messages: &str| {
            let words = ["bench", "--publishers", "3", option, messages];
            super::super::tests::parse::<Arguments>(&words)
        };
        // The option has had the name `--messages`.
        for (option, messages, shares) in
            [("--count", "10", [4, 3, 3]), ("-n", "2", [1, 1, 0]), ("--messages", "9", [3, 3, 3])]
        {
            let arguments = arguments(option, messages);
            assert_eq!([0, 1, 2].map(|publisher| arguments.share(publisher).unwrap()), shares, "{option}");
        }
    }

    #[test]
    fn totals_are_over_the_longest_time() {
        let clients = [(100, Duration::from_secs(1)), (300, Duration::from_secs(2))];
        let totals = Totals::of(clients.into_iter());
        assert!((totals.rate() - 200.0).abs() < 1e-9);
        assert_eq!(totals.each, Spread { min: 100.0, median: 125.0, max: 150.0 });
        assert_eq!(totals.row("x", 1_000_000)[..4], ["x", "400", "200", "200.0"]);
    }
}
