//! `xmsg bench latency`: the latency of messages at fixed rates.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::{Clock, Receiver, Topics};
use super::histogram::Times;
use super::options::{CommonOptions, LoadOptions};
use super::pacer::{Paced, Pacer, Timetable};
use super::phase::{Outcome, Phase};
use super::plot::{self, Curve};
use super::report::{Report, Table, rate, time};
use super::target::Target;
use super::unless_interrupted;
use crate::args::{parse_duration, parse_number, parse_rate};
use crate::exit::Usage;
use crate::output::{counted, grouped};
use crate::signals::Interrupt;

/// The fraction by which a rate may be missed and still counts as kept, because the last message may be a
/// moment late.
const TOLERANCE: f64 = 0.01;
/// The time that publishers have after the end of the timetable. Messages that are not sent by then are not
/// sent at all.
const GRACE: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Examples:
  xmsg bench latency --rate 1000,10000,100000 --size 100
  xmsg bench latency --rate 10000 --subscribers 8 --duration 30s
  xmsg bench latency --rate 1000,10000 --json --plot latency.svg";

/// At fixed rates: percentiles of the time from when a message should have been sent to its arrival
///
/// Messages are published by a fixed timetable. If the proxy stalls, the latency of the messages that were
/// due meanwhile counts from when they were due. A rate that could not be kept is reported. `sent late` is
/// how late the publishers themselves were; it is part of the latency.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Messages per second of all publishers together; several rates are measured one after another
    #[arg(short, long, value_name = "RATE", value_delimiter = ',', default_value = "1000,10000", value_parser = parse_rate)]
    rate: Vec<f64>,

    /// Publishers, each with a connection and a thread
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u16>(1..=256))]
    publishers: u16,

    /// Subscribers, each with a connection; each gets everything
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u16>(1..=65_535))]
    subscribers: u16,

    /// Publish for this long at each rate
    #[arg(short, long, visible_alias = "for", value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    duration: Duration,

    #[command(flatten)]
    load: LoadOptions,

    #[command(flatten)]
    pub(super) common: CommonOptions,
}

impl Arguments {
    pub(super) fn title(&self) -> String {
        format!(
            "{} to {}, {} a message, {} s at each rate",
            counted(self.publishers.into(), "publisher"),
            counted(self.subscribers.into(), "subscriber"),
            counted(self.load.size as u64, "byte"),
            self.duration.as_secs_f64(),
        )
    }
}

pub(super) async fn run(
    arguments: &Arguments,
    target: &Target,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Report> {
    if arguments.duration.is_zero() {
        return Err(Usage("--duration is 0: nothing would be measured".to_owned()).into());
    }
    let topics = Topics::new(&arguments.common.target.topic, 1);
    let starting = async {
        let receivers = target.receivers(arguments.subscribers.into(), &topics).await?;
        let mut pacers = Vec::new();
        for _ in 0..arguments.publishers {
            let (address, options) = (target.address().clone(), target.options().clone());
            pacers.push(Pacer::start(address, options, topics.clone(), arguments.load.size).await?);
        }
        anyhow::Ok((pacers, receivers))
    };
    let mut clients = unless_interrupted(interrupt, starting).await?;

    let clock = Clock::new();
    let mut phases = 0;
    let mut results = Vec::new();
    let mut interrupted = false;
    for rate in &arguments.rate {
        let timetable = |time| Timetable { rate: *rate, publishers: arguments.publishers.into(), time };
        let warmup = arguments.load.warmup;
        if !warmup.is_zero() {
            let name = format!("warm-up at {rate}/s");
            let outcome =
                phase(arguments, &name, &mut phases, clock, timetable(warmup), clients, interrupt).await?;
            interrupted = outcome.interrupted;
            clients = into_clients(outcome);
            if interrupted {
                break;
            }
        }
        let name = format!("latency at {rate}/s");
        let timetable = timetable(arguments.duration);
        let outcome = phase(arguments, &name, &mut phases, clock, timetable, clients, interrupt).await?;
        results.push(Measured::of(&outcome, timetable));
        interrupted = outcome.interrupted;
        clients = into_clients(outcome);
        if interrupted {
            break;
        }
    }
    let (pacers, receivers) = clients;
    drop(pacers);
    super::close(Vec::new(), receivers).await;
    report(arguments, &results, interrupted)
}

type Clients = (Vec<Pacer>, Vec<Receiver>);

async fn phase(
    arguments: &Arguments,
    name: &str,
    number: &mut u8,
    clock: Clock,
    timetable: Timetable,
    (pacers, receivers): Clients,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Outcome<Paced>> {
    *number = number.wrapping_add(1);
    let phase = Phase {
        name,
        number: *number,
        limit: Some(timetable.time.saturating_add(GRACE)),
        patience: arguments.load.patience,
        clock,
        times: Times::fine,
    };
    phase.run(pacers, receivers, interrupt, |pacer, part| pacer.publish(part, timetable)).await
}

fn into_clients(outcome: Outcome<Paced>) -> Clients {
    let (paced, receivers) = outcome.into_clients();
    (paced.into_iter().map(|paced| paced.pacer).collect(), receivers)
}

/// The results at one rate.
#[derive(Debug)]
struct Measured {
    rate: f64,
    reached: f64,
    kept: bool,
    published: u64,
    expected: u64,
    delivered: u64,
    lost: u64,
    reordered: u64,
    duplicates: u64,
    latency: Times,
    lateness: Times,
}

impl Measured {
    fn of(outcome: &Outcome<Paced>, timetable: Timetable) -> Self {
        let mut lateness = Times::fine();
        outcome.published.iter().for_each(|published| lateness.add(&published.publisher.lateness));
        let counts = outcome.counts();
        let published = outcome.messages_published();
        // The time is that from the first message to the last one, and until the next one would be due.
        let time = outcome.published.iter().map(|published| published.publisher.time).max();
        let reached = published as f64 / (time.unwrap_or_default().as_secs_f64() + 1.0 / timetable.rate);
        let complete = published == timetable.messages() || outcome.interrupted;
        Self {
            rate: timetable.rate,
            reached,
            kept: complete && reached >= (1.0 - TOLERANCE) * timetable.rate,
            published,
            expected: outcome.messages_expected(),
            delivered: counts.delivered,
            lost: outcome.messages_lost(),
            reordered: counts.reordered,
            duplicates: counts.duplicates,
            latency: outcome.delays.clone(),
            lateness,
        }
    }

    fn name(&self) -> String {
        format!("{}/s", rate(self.rate))
    }

    fn json(&self) -> Value {
        json!({
            "rate_per_second": self.rate,
            "rate_reached_per_second": self.reached,
            "rate_kept": self.kept,
            "published_messages": self.published,
            "expected_messages": self.expected,
            "delivered_messages": self.delivered,
            "lost_messages": self.lost,
            "reordered_messages": self.reordered,
            "duplicate_messages": self.duplicates,
            "latency": self.latency.json(),
            "sent_late": self.lateness.json(),
        })
    }
}

fn report(arguments: &Arguments, results: &[Measured], interrupted: bool) -> anyhow::Result<Report> {
    let mut table = Table::new(&[
        "rate",
        "reached",
        "min",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
        "sent late p99",
        "lost",
    ]);
    for result in results {
        let mut cells = vec![result.name(), format!("{}/s", rate(result.reached))];
        cells.extend(result.latency.columns().map(|(_, value)| time(value)));
        cells.extend([time(result.lateness.at_quantile(0.99)), grouped(result.lost)]);
        table.row(cells);
    }
    let mut text = table.text();
    let sum = |count: fn(&Measured) -> u64| results.iter().map(count).sum::<u64>();
    let (reordered, duplicates) = (sum(|result| result.reordered), sum(|result| result.duplicates));
    // Writing to a string cannot fail.
    let _ = writeln!(text, "reordered {}, duplicates {}", grouped(reordered), grouped(duplicates));
    for result in results.iter().filter(|result| !result.kept) {
        let _ = writeln!(
            text,
            "{} could not be kept: {}/s were reached, and the latency there is that of a queue that grows",
            result.name(),
            rate(result.reached)
        );
    }
    let plot = arguments.common.report.plot.is_some().then(|| {
        let curves: Vec<Curve<'_>> =
            results.iter().map(|result| Curve { name: result.name(), times: &result.latency }).collect();
        plot::percentiles(&format!("Latency: {}", arguments.title()), "latency", &curves)
    });
    Ok(Report {
        mode: "latency",
        settings: json!({
            "rates_per_second": arguments.rate,
            "publishers": arguments.publishers,
            "subscribers": arguments.subscribers,
            "size_bytes": arguments.load.size,
            "duration_seconds": arguments.duration.as_secs_f64(),
            "warmup_seconds": arguments.load.warmup.as_secs_f64(),
        }),
        result: json!({ "rates": results.iter().map(Measured::json).collect::<Value>() }),
        text,
        plot: plot.transpose()?,
        interrupted,
        lost: sum(|result| result.lost),
        failed: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(reached: f64, kept: bool) -> Measured {
        let mut latency = Times::fine();
        latency.record(Duration::from_micros(150));
        Measured {
            rate: 100_000.0,
            reached,
            kept,
            published: 10,
            expected: 20,
            delivered: 18,
            lost: 2,
            reordered: 0,
            duplicates: 0,
            latency,
            lateness: Times::fine(),
        }
    }

    #[test]
    fn a_rate_that_was_not_kept_is_told() {
        let arguments = super::super::tests::parse::<Arguments>(&["bench", "--rate", "1,1e5"]);
        let report = |measured| report(&arguments, &[measured], false).unwrap();
        let kept = report(measured(99_900.0, true));
        assert!(!kept.text.contains("could not be kept"), "{}", kept.text);
        assert!(kept.text.contains("150 µs"), "{}", kept.text);
        assert_eq!(kept.lost, 2);
        let missed = report(measured(63_000.0, false));
        assert!(missed.text.contains("100,000/s could not be kept: 63,000/s"), "{}", missed.text);
        assert_eq!(missed.result["rates"][0]["rate_kept"], false);
    }
}
