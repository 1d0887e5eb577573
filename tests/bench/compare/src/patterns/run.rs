//! A run of one case: it starts the processes of a stack, and measures them.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::cases::{Case, Pattern};
use super::stacks::{Programs, Stack};
use crate::peer::Threads;
use crate::peer::patterns::Outcome;
use crate::plan::{Interest, Plan, Side};
use crate::process::{Process, free_ports};
use crate::run::{
    CONNECT_LIMIT, IN_FORCE_LIMIT, POLL, Report, Run, await_deliveries, read_latencies, status, two_numbers,
};

/// Runs a case once with a stack. A failure is a result, too.
pub fn run(
    programs: &Programs,
    case: &Case,
    stack: Stack,
    threads: Threads,
    seconds: f64,
    round: usize,
) -> Run {
    let mut run = Run { case: case.name.into(), stack: stack.name().into(), round, ..Run::default() };
    let parts = Parts { programs, case, stack, threads, seconds };
    let result = match case.pattern {
        Pattern::ReqRep => parts.exchange("req", "rep", &mut run),
        Pattern::DealerRouter => parts.exchange("dealer", "router", &mut run),
        Pattern::PushPull => parts.one_way("push", Some("pull"), &mut run),
        Pattern::Pair => parts.one_way("pair-send", Some("pair-receive"), &mut run),
        Pattern::InprocPair => parts.one_way("inproc", None, &mut run),
    };
    if let Err(error) = result {
        run.failure = Some(format!("{error:#}"));
    }
    run
}

/// The parameters of a run.
struct Parts<'a> {
    programs: &'a Programs,
    case: &'a Case,
    stack: Stack,
    threads: Threads,
    seconds: f64,
}

impl Parts<'_> {
    fn plan(&self) -> Result<Plan> {
        let Case { size, window, rate, warm_up, most, .. } = *self.case;
        let is_latency = self.case.is_latency();
        Ok(Plan {
            port: free_ports()?,
            clients: 1,
            publishers: 1,
            // A run at a fixed rate takes twice as long, because percentiles of a thousand messages per
            // second need it.
            count: if is_latency { (rate as f64 * self.seconds * 2.0) as u64 } else { most },
            warm_up,
            size,
            topics: 1,
            stride: 1,
            interest: Interest::All,
            rate,
            // A run at a fixed rate ends by itself, unless the stack makes the sender wait.
            limit_ms: ((if is_latency { 4.0 } else { 1.0 }) * self.seconds * 1000.0) as u64,
            latencies: None,
            side: Side::Connect,
            window,
            hwm: self.programs.hwm,
        })
    }

    fn start(&self, part: &str, plan: &Plan) -> Result<Process> {
        let command = self.stack.process(self.programs, part, plan, self.threads);
        let process = Process::start(format!("the process `{part}`"), command, self.programs.show_errors)?;
        process.expect_ready(CONNECT_LIMIT)?;
        Ok(process)
    }

    /// Measures messages in one direction, between two processes or within one process that has both sides.
    fn one_way(&self, sending: &str, receiving: Option<&str>, run: &mut Run) -> Result<()> {
        let latencies = self.case.has_latencies().then(|| self.programs.folder.join("latencies"));
        let mut send = self.plan()?;
        let mut receive = Plan { clients: self.case.receivers, latencies: latencies.clone(), ..send.clone() };
        // The side that has one socket binds. If both have one, the receiver does.
        let (mut sender, mut receiver) = match receiving {
            None => (self.start(sending, &send)?, None),
            Some(receiving) if self.case.receivers > 1 => {
                send.side = Side::Bind;
                let sender = self.start(sending, &send)?;
                (sender, Some(self.start(receiving, &receive)?))
            }
            Some(receiving) => {
                receive.side = Side::Bind;
                let receiver = self.start(receiving, &receive)?;
                (self.start(sending, &send)?, Some(receiver))
            }
        };

        sender.tell("probe")?;
        let end = Instant::now() + IN_FORCE_LIMIT;
        while status(receiver.as_mut().unwrap_or(&mut sender))?.0 < self.case.receivers as u64 {
            ensure!(Instant::now() < end, "not all were connected within {IN_FORCE_LIMIT:?}");
            thread::sleep(POLL);
        }

        let before = cpu(&sender, receiver.as_ref())?;
        sender.tell("go")?;
        let limit = Duration::from_millis(send.limit_ms) + CONNECT_LIMIT;
        let (published, measured_from) = two_numbers(&sender.expect("published", limit)?)?;
        (run.published, run.expected) = (published, published);
        let limit = Duration::from_secs_f64(5.0 + 8.0 * self.seconds);
        let is_all = match &mut receiver {
            Some(receiver) => await_deliveries(receiver, &[&sender], published, limit)?,
            None => await_deliveries(&mut sender, &[], published, limit)?,
        };
        if !is_all {
            run.failure = Some("time was up before all was received: some of it was still under way".into());
        }
        let after = cpu(&sender, receiver.as_ref())?;
        charge(run, before, after, published + send.warm_up);

        let receiving = receiver.as_mut().unwrap_or(&mut sender);
        receiving.tell("stop")?;
        let report: Report = serde_json::from_str(&receiving.expect("result", CONNECT_LIMIT)?)
            .context("a report was expected")?;
        run.delivered = report.received;
        run.lost = published.saturating_sub(report.received);
        run.disorder = report.disorder;
        ensure!(report.received > 0, "nothing was received");
        run.rate = rate(report.timed, measured_from, report.last_ns);
        run.receiver_rate = Some(rate(report.timed - 1, report.first_ns, report.last_ns));
        if let Some(file) = latencies {
            run.latency = Some(read_latencies(&fs::read(file)?)?);
        }
        Ok(())
    }

    /// Measures requests and their replies.
    fn exchange(&self, asking: &str, answering: &str, run: &mut Run) -> Result<()> {
        let latencies = self.case.has_latencies().then(|| self.programs.folder.join("latencies"));
        let ask = Plan { latencies: latencies.clone(), ..self.plan()? };
        let answer = Plan { side: Side::Bind, latencies: None, ..ask.clone() };
        let answerer = self.start(answering, &answer)?;
        let mut asker = self.start(asking, &ask)?;

        let before = cpu(&asker, Some(&answerer))?;
        asker.tell("go")?;
        let limit = Duration::from_millis(ask.limit_ms) + CONNECT_LIMIT;
        let outcome: Outcome = serde_json::from_str(&asker.expect("done", limit)?)
            .context("the outcome of round trips was expected")?;
        let after = cpu(&asker, Some(&answerer))?;
        charge(run, before, after, outcome.round_trips + ask.warm_up);

        let round_trips = outcome.round_trips;
        (run.published, run.expected, run.delivered) = (round_trips, round_trips, round_trips);
        run.disorder = outcome.disorder;
        ensure!(round_trips > 0, "there was no time for a round trip that counts");
        run.rate = rate(round_trips, outcome.first_ns, outcome.last_ns);
        if let Some(file) = latencies {
            run.latency = Some(read_latencies(&fs::read(file)?)?);
        }
        Ok(())
    }
}

/// Returns the processor time of the sending process, and of the other one if there is one.
fn cpu(sender: &Process, receiver: Option<&Process>) -> Result<[Duration; 2]> {
    Ok([sender.cpu()?, receiver.map_or(Ok(Duration::ZERO), Process::cpu)?])
}

/// Records the processor time between two moments, divided by the number of messages.
fn charge(run: &mut Run, before: [Duration; 2], after: [Duration; 2], messages: u64) {
    let used =
        |part: usize| after[part].saturating_sub(before[part]).as_secs_f64() * 1e6 / messages.max(1) as f64;
    (run.publisher_cpu_us, run.subscriber_cpu_us) = (used(0), used(1));
    run.cpu_us = used(0) + used(1);
}

/// Returns the rate per second.
fn rate(count: u64, from_ns: u64, to_ns: u64) -> f64 {
    let nanos = to_ns.saturating_sub(from_ns);
    if nanos > 0 { count as f64 * 1e9 / nanos as f64 } else { 0.0 }
}
