//! One run of a case with a stack.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cases::{Case, Load};
use crate::plan::{Plan, Side};
use crate::process::{Process, free_ports};
use crate::stacks::{Programs, Ready, Stack};

/// The time limit for connecting and subscribing. Some clients take a while for 100,000 subscriptions.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// The time limit for a subscription to reach the publishers.
pub const IN_FORCE_LIMIT: Duration = Duration::from_secs(15);
/// If nothing is received and no process works for this time after the last message was published, the rest
/// is lost.
const SILENCE: Duration = Duration::from_secs(1);
/// The processor time in [`SILENCE`] from which a process counts as working. Some clients read for seconds
/// before they return a first message.
const WORK: Duration = Duration::from_millis(100);
pub const POLL: Duration = Duration::from_millis(10);

/// The result of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    pub case: String,
    pub stack: String,
    pub round: usize,
    /// The number of measured messages that the publishers sent.
    pub published: u64,
    /// The number of deliveries that there should have been.
    pub expected: u64,
    pub delivered: u64,
    /// The deliveries per second of all subscribers together, from the first publish to the last receipt.
    pub rate: f64,
    /// The rate from the first receipt, if that time was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receiver_rate: Option<f64>,
    pub lost: u64,
    /// Messages that were received after a later one of the same publisher.
    pub disorder: u64,
    /// The processor time of publishers, server and subscribers per published message, in microseconds.
    pub cpu_us: f64,
    pub publisher_cpu_us: f64,
    pub server_cpu_us: f64,
    pub subscriber_cpu_us: f64,
    /// The peak memory of the server.
    pub server_mib: f64,
    pub latency: Option<Latency>,
    /// The reason why figures are missing or incomplete.
    pub failure: Option<String>,
}

/// The time from when a message should have been sent to when it was received, in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// The report of a subscriber process.
#[derive(Debug, Deserialize)]
pub struct Report {
    pub received: u64,
    /// The number of messages that were received by `last_ns`.
    pub timed: u64,
    /// The time at which the first message was received, if the peer reports it.
    #[serde(default)]
    pub first_ns: u64,
    /// The time at which the last message was received. If some were lost, a few more may have been received
    /// after it.
    pub last_ns: u64,
    pub disorder: u64,
}

/// Runs a case. A stack that fails is a result, too.
pub fn run(
    programs: &Programs,
    case: &Case,
    stack: Stack,
    seconds: f64,
    round: usize,
    show_errors: bool,
) -> Run {
    let mut run = Run { case: case.name.into(), stack: stack.name().into(), round, ..Run::default() };
    if let Err(error) = measure(programs, case, stack, seconds, show_errors, &mut run) {
        run.failure = Some(format!("{error:#}"));
    }
    run
}

fn measure(
    programs: &Programs,
    case: &Case,
    stack: Stack,
    seconds: f64,
    show_errors: bool,
    run: &mut Run,
) -> Result<()> {
    let port = free_ports()?;
    let (command, ready) = stack.server(programs, port)?;
    let mut server = Process::start("the server", command, show_errors)?;
    match ready {
        Ready::Line => server.expect_ready(CONNECT_LIMIT)?,
        Ready::Ports => server.expect_ports(port..port + stack.ports())?,
    }

    let count = case.count_per_publisher(seconds);
    let latencies = programs.folder.join("latencies");
    let total = count * case.publishers as u64;
    let publishing = Plan {
        port,
        clients: case.publishers,
        publishers: case.publishers,
        count,
        warm_up: count / 20,
        size: case.size,
        topics: case.topics,
        stride: case.stride,
        interest: case.interest,
        rate: if let Load::Rate(rate) = case.load { rate } else { 0 },
        // At a fixed rate, the run ends by itself, unless the stack makes the publisher wait.
        limit_ms: ((if case.is_latency() { 4.0 } else { 2.0 }) * seconds * 1000.0) as u64,
        latencies: None,
        side: Side::Connect,
        window: 1,
        hwm: None,
    };
    let subscribing = Plan {
        clients: case.subscribers,
        count: total * case.copies() / case.subscribers as u64,
        latencies: case.is_latency().then(|| latencies.clone()),
        ..publishing.clone()
    };
    let command = stack.clients(programs, "sub", &subscribing);
    let mut subscribers = Process::start("the subscribers' process", command, show_errors)?;
    subscribers.expect_ready(CONNECT_LIMIT)?;
    let command = stack.clients(programs, "pub", &publishing);
    let mut publishers = Process::start("the publishers' process", command, show_errors)?;
    publishers.expect_ready(CONNECT_LIMIT)?;

    publishers.tell("probe")?;
    let pairs = (case.publishers * case.subscribers) as u64;
    let end = Instant::now() + IN_FORCE_LIMIT;
    while status(&mut subscribers)?.0 < pairs {
        ensure!(Instant::now() < end, "subscriptions were not in force within {IN_FORCE_LIMIT:?}");
        thread::sleep(POLL);
    }

    let before = [publishers.cpu()?, server.cpu()?, subscribers.cpu()?];
    publishers.tell("go")?;
    // A publisher checks the clock between messages. One that waits longer than this is stuck.
    let limit = Duration::from_millis(publishing.limit_ms) + CONNECT_LIMIT;
    let measured_from: u64;
    (run.published, measured_from) = match publishers.expect("published", limit) {
        Ok(answer) => two_numbers(&answer)?,
        Err(error) => {
            run.delivered = status(&mut subscribers).map_or(0, |(_, received)| received);
            return Err(error);
        }
    };
    run.expected = run.published * case.copies();
    let limit = Duration::from_secs_f64(5.0 + 8.0 * seconds);
    if !await_deliveries(&mut subscribers, &[&server, &publishers], run.expected, limit)? {
        run.failure = Some("time was up before all was delivered: some of it was still under way".into());
    }

    if server.is_running() {
        let cpu = [publishers.cpu()?, server.cpu()?, subscribers.cpu()?];
        let messages = (run.published + publishing.warm_up * case.publishers as u64) as f64;
        let used = |part: usize| cpu[part].saturating_sub(before[part]).as_secs_f64() * 1e6 / messages;
        (run.publisher_cpu_us, run.server_cpu_us, run.subscriber_cpu_us) = (used(0), used(1), used(2));
        run.cpu_us = used(0) + used(1) + used(2);
        run.server_mib = server.peak_memory_mib()?;
    } else {
        run.failure = Some("the server ended under load".into());
    }
    subscribers.tell("stop")?;
    let report = subscribers.expect("result", CONNECT_LIMIT)?;
    let report: Report = serde_json::from_str(&report).context("a report was expected")?;
    run.delivered = report.received;
    run.lost = run.expected.saturating_sub(report.received);
    run.disorder = report.disorder;
    // The rate does not start at the first receipt, because clients that buffer messages before they return
    // any would look fast.
    let nanos = report.last_ns.saturating_sub(measured_from);
    run.rate = if nanos > 0 { report.timed as f64 * 1e9 / nanos as f64 } else { 0.0 };
    if case.is_latency() {
        run.latency = Some(read_latencies(&fs::read(&latencies)?)?);
    }
    ensure!(report.received > 0, "nothing was delivered");
    Ok(())
}

/// Returns the number of pairs of clients between which a probe was received, and the number of measured
/// messages.
pub fn status(subscribers: &mut Process) -> Result<(u64, u64)> {
    subscribers.tell("status")?;
    let answer = subscribers.expect("status", CONNECT_LIMIT)?;
    two_numbers(&answer)
}

pub fn two_numbers(answer: &str) -> Result<(u64, u64)> {
    let (first, second) = answer.split_once(' ').context("two numbers were expected")?;
    Ok((first.parse()?, second.parse()?))
}

/// Waits until everything has been received, or nothing more comes. Returns `false` if it took too long.
pub fn await_deliveries(
    subscribers: &mut Process,
    others: &[&Process],
    expected: u64,
    limit: Duration,
) -> Result<bool> {
    let end = Instant::now() + limit;
    // A process that has ended does not work any more.
    let cpu = |subscribers: &Process| -> Duration {
        others.iter().copied().chain([subscribers]).filter_map(|process| process.cpu().ok()).sum()
    };
    let (mut known, mut since, mut cpu_then) = (0, Instant::now(), cpu(subscribers));
    loop {
        let (_, received) = status(subscribers)?;
        if received >= expected {
            return Ok(true);
        }
        if received != known {
            (known, since, cpu_then) = (received, Instant::now(), cpu(subscribers));
        } else if since.elapsed() > SILENCE {
            let cpu_now = cpu(subscribers);
            if cpu_now.saturating_sub(cpu_then) < WORK {
                return Ok(true);
            }
            (since, cpu_then) = (Instant::now(), cpu_now);
        }
        if Instant::now() > end {
            return Ok(false);
        }
        thread::sleep(POLL);
    }
}

pub fn read_latencies(bytes: &[u8]) -> Result<Latency> {
    // Three digits of precision, up to a minute. Longer times count as a minute.
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    for chunk in bytes.chunks_exact(8) {
        histogram
            .saturating_record(chunk.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    }
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: histogram.max() as f64 / 1000.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_read_as_they_were_written() {
        let bytes: Vec<u8> = (1..=1000u64).flat_map(|micros| (micros * 1000).to_le_bytes()).collect();
        let latency = read_latencies(&bytes).unwrap();
        for (found, wanted) in
            [(latency.p50, 500.0), (latency.p99, 990.0), (latency.p999, 999.0), (latency.max, 1000.0)]
        {
            assert!((found - wanted).abs() / wanted < 0.002, "{found} is not {wanted}");
        }
    }
}
