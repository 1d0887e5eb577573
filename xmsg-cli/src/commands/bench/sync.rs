//! `xmsg bench sync`: the round trips of synchronous publishing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;
use xmsg_core::{Actor, Error, Message, Topic};

use super::LINGER;
use super::client::Topics;
use super::histogram::Times;
use super::live::Live;
use super::options::{CommonOptions, LoadOptions};
use super::plot::{self, Curve};
use super::report::{Report, Table, per_second, rate, time};
use super::target::Target;
use super::unless_interrupted;
use crate::args::{parse_count_from_1, parse_duration, parse_number};
use crate::exit::is_unanswered;
use crate::output::{counted, grouped};
use crate::signals::Interrupt;

const TICK: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  xmsg bench sync                          one request at a time
  xmsg bench sync --in-flight 64 --duration 10s --plot sync.svg";

/// Synchronous publishing: the time from a request to its reply
///
/// One actor sends requests, and another one replies with the same data, both in this process; a round trip
/// goes through the proxy twice. The next request is sent when a reply has arrived, so a proxy that stalls
/// gets fewer requests: for times at a fixed rate see `xmsg bench latency`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// How many requests wait for their replies at the same time
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u16>(1..=10_000))]
    in_flight: u16,

    /// Send this many requests
    #[arg(short = 'n', long, alias = "messages", value_name = "COUNT", conflicts_with = "duration",
          value_parser = parse_count_from_1)]
    count: Option<u64>,

    /// Send requests for this long
    #[arg(short, long, visible_alias = "for", value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    duration: Duration,

    #[command(flatten)]
    load: LoadOptions,

    #[command(flatten)]
    pub(super) common: CommonOptions,
}

impl Arguments {
    pub(super) fn title(&self) -> String {
        let size = counted(self.load.size as u64, "byte");
        format!("{} in flight, {size} a message", counted(self.in_flight.into(), "request"))
    }
}

pub(super) async fn run(
    arguments: &Arguments,
    target: &Target,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Report> {
    let topics = Topics::new(&arguments.common.target.topic, 1);
    let topic = topics.iter().next().context("no topic")?;
    let actor =
        |name| Actor::builder(name).proxy(target.address().clone()).options(target.options().clone()).build();
    let starting = async {
        let (requester, replier) = (actor("bench-requester")?, actor("bench-replier")?);
        // One handler answers in order, because its work takes no time.
        let service = replier
            .subscribe_with(&topic, 1, async |request: Message| request.reply_with(request.data().to_vec()));
        let service = service.await?;
        // The first request opens the connections and subscriptions that requests need.
        requester.request(&Message::of(&topic, "first")?, target.timeout()).await?;
        anyhow::Ok((requester, replier, service))
    };
    let (requester, replier, _service) = unless_interrupted(interrupt, starting).await?;

    let mut load = Load {
        requester: requester.clone(),
        topic,
        data: vec![b'x'; arguments.load.size].into(),
        timeout: arguments.load.patience,
        end: End::Time(arguments.load.warmup),
    };
    let mut results = RequestResults::default();
    if !arguments.load.warmup.is_zero() {
        results.interrupted = load.run("warm-up", arguments.in_flight, interrupt).await?.interrupted;
    }
    if !results.interrupted {
        load.end = arguments.count.map_or(End::Time(arguments.duration), End::Count);
        results = load.run("synchronous publishing", arguments.in_flight, interrupt).await?;
    }
    // Requests and replies are already counted.
    let _ = requester.close(LINGER).await;
    let _ = replier.close(LINGER).await;
    report(arguments, &results)
}

#[derive(Clone, Copy, Debug)]
enum End {
    Time(Duration),
    Count(u64),
}

/// The load: the requests, and how many of them or how long.
#[derive(Clone, Debug)]
struct Load {
    requester: Actor,
    topic: Topic,
    data: Bytes,
    timeout: Duration,
    end: End,
}

/// The results of the requests.
#[derive(Debug)]
struct RequestResults {
    times: Times,
    time: Duration,
    unanswered: u64,
    reason: Option<Error>,
    interrupted: bool,
}

impl Default for RequestResults {
    fn default() -> Self {
        Self { times: Times::fine(), time: Duration::ZERO, unanswered: 0, reason: None, interrupted: false }
    }
}

impl Load {
    async fn run(
        &self,
        name: &str,
        in_flight: u16,
        interrupt: &mut Interrupt,
    ) -> anyhow::Result<RequestResults> {
        let started = Instant::now();
        let (requests, left) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
        let mut total = None;
        if let End::Count(count) = self.end {
            left.store(count, Ordering::Relaxed);
            total = Some(count);
        }
        let mut tasks = JoinSet::new();
        for _ in 0..in_flight {
            tasks.spawn(self.clone().ask(started, left.clone(), requests.clone()));
        }
        let live = Live::new(name);
        let mut ticks = tokio::time::interval(TICK);
        let mut result = RequestResults::default();
        while !tasks.is_empty() {
            tokio::select! {
                Some(ended) = tasks.join_next() => {
                    let (times, unanswered, reason) = ended.context("a requester failed")??;
                    result.times.add(&times);
                    result.unanswered += unanswered;
                    result.reason = reason.or(result.reason);
                }
                _ = ticks.tick() => live.done(requests.load(Ordering::Relaxed), total),
                _ = interrupt.wait() => {
                    // A second interrupt does not wait for the last replies.
                    if std::mem::replace(&mut result.interrupted, true) {
                        break;
                    }
                    left.store(0, Ordering::Relaxed);
                }
            }
        }
        result.time = started.elapsed();
        Ok(result)
    }

    /// Sends one request after another.
    async fn ask(
        self,
        started: Instant,
        left: Arc<AtomicU64>,
        requests: Arc<AtomicU64>,
    ) -> xmsg_core::Result<(Times, u64, Option<Error>)> {
        let mut times = Times::fine();
        let (mut unanswered, mut reason) = (0, None);
        let more = |left: u64| left.checked_sub(1);
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            let before = Instant::now();
            if matches!(self.end, End::Time(time) if before - started >= time) {
                break;
            }
            let request = Message::of(&self.topic, self.data.clone())?;
            match self.requester.request(&request, self.timeout).await {
                Ok(_) => times.record(before.elapsed()),
                Err(error) if is_unanswered(&error) => {
                    unanswered += 1;
                    reason = Some(error);
                }
                Err(error) => return Err(error),
            }
            requests.fetch_add(1, Ordering::Relaxed);
        }
        Ok((times, unanswered, reason))
    }
}

fn report(arguments: &Arguments, results: &RequestResults) -> anyhow::Result<Report> {
    let columns = results.times.columns();
    let mut headings = vec!["", "replies", "per second"];
    headings.extend(columns.iter().map(|(heading, _)| *heading));
    let mut table = Table::new(&headings);
    let replies = per_second(results.times.count(), results.time);
    let mut cells = vec!["round trip".to_owned(), grouped(results.times.count()), rate(replies)];
    cells.extend(columns.iter().map(|(_, value)| time(*value)));
    table.row(cells);

    let plot = arguments.common.report.plot.is_some().then(|| {
        let name = counted(arguments.in_flight.into(), "request") + " in flight";
        let curves = [Curve { name, times: &results.times }];
        plot::percentiles(&format!("Synchronous publishing: {}", arguments.title()), "round trip", &curves)
    });
    Ok(Report {
        mode: "sync",
        settings: json!({
            "in_flight": arguments.in_flight,
            "size_bytes": arguments.load.size,
            "messages": arguments.count,
            "duration_seconds": arguments.count.is_none().then_some(arguments.duration.as_secs_f64()),
            "warmup_seconds": arguments.load.warmup.as_secs_f64(),
        }),
        result: json!({
            "replies": results.times.count(),
            "unanswered": results.unanswered,
            "seconds": results.time.as_secs_f64(),
            "replies_per_second": replies,
            "round_trip": results.times.json(),
        }),
        text: format!("{}unanswered {}\n", table.text(), grouped(results.unanswered)),
        plot: plot.transpose()?,
        interrupted: results.interrupted,
        lost: results.unanswered,
        failed: None,
    })
}
