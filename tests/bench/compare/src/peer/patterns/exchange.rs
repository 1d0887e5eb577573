//! The process that sends requests, and the one that answers them.

use std::future::Future;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::super::subscribe::write_latencies;
use super::super::{Draft, Phase, Publisher, Subscriber, Threads, attend, now_ns};
use super::block_on;
use crate::plan::{Header, Kind, Plan};

/// The number of round trips for whose latencies memory is allocated at the beginning.
const ROUND_TRIPS: usize = 1 << 18;
/// The clock is read once per this many requests, to check whether the time is up.
const CHECK: u64 = 16;

/// A pattern with replies, which is REQ and REP or DEALER and ROUTER.
pub(super) trait Exchange: 'static {
    /// This side sends requests, and receives the replies in the same order.
    type Asking: Publisher + Subscriber;
    /// This side sends each request back.
    type Answering: Answering;

    fn asking(plan: &Plan) -> impl Future<Output = Result<Self::Asking>> + Send;
    fn answering(plan: &Plan) -> impl Future<Output = Result<Self::Answering>> + Send;
}

pub(super) trait Answering: Send + 'static {
    /// Waits for a request, and sends it back.
    fn answer(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// The report of the process that sends requests.
#[derive(Debug, Deserialize, Serialize)]
pub struct Outcome {
    /// The number of round trips that count.
    pub round_trips: u64,
    /// The time at which the first of them began.
    pub first_ns: u64,
    /// The time at which the last of them ended.
    pub last_ns: u64,
    /// The number of replies that did not belong to the oldest request.
    pub disorder: u64,
}

/// Runs the process that sends requests. Does not return.
pub(super) fn ask<E: Exchange>(plan: Plan, threads: Threads) -> ! {
    attend(None, move |phases| {
        let phases = phases.clone();
        block_on(threads, async move {
            let mut asking = E::asking(&plan).await.context("the side that asks could not connect")?;
            let outcome = ask_all(&mut asking, &plan, phases).await?;
            println!("done {}", serde_json::to_string(&outcome)?);
            std::future::pending().await
        })
    })
}

/// Runs the process that answers. Does not return.
pub(super) fn answer<E: Exchange>(plan: Plan, threads: Threads) -> ! {
    attend(None, move |_| {
        block_on(threads, async move {
            let answering = E::answering(&plan).await.context("the side that answers could not bind")?;
            println!("ready");
            answer_all(answering).await
        })
    })
}

async fn answer_all(mut answering: impl Answering) -> Result<()> {
    loop {
        answering.answer().await.context("the side that answers failed")?;
    }
}

/// Keeps as many requests in progress as the plan says, until there were enough of them or the time is up.
async fn ask_all<A>(asking: &mut A, plan: &Plan, mut phases: watch::Receiver<Phase>) -> Result<Outcome>
where
    A: Publisher + Subscriber,
{
    let template = vec![b'x'; plan.size];
    let draft = |header| Draft { header, template: &template };
    let probe = Header { kind: Kind::Probe, publisher: 0, sequence: 0, due_ns: 0 };
    asking.send(0, &draft(probe)).await.context("the side that asks failed")?;
    asking.receive().await.context("the side that asks failed")?;
    println!("ready");
    phases.wait_for(|phase| *phase == Phase::Go).await?;

    let mut latencies = plan.latencies.as_ref().map(|_| Vec::with_capacity(ROUND_TRIPS));
    let end = now_ns() + plan.limit_ms * 1_000_000;
    let total = plan.warm_up + plan.count;
    let (mut asked, mut answered, mut disorder, mut first_ns, mut is_over) = (0, 0, 0, 0, false);
    loop {
        while !is_over && asked - answered < plan.window {
            is_over = asked == total || asked % CHECK == 0 && now_ns() > end;
            if is_over {
                break;
            }
            if asked == plan.warm_up {
                first_ns = now_ns();
            }
            let due_ns = if latencies.is_some() { now_ns() } else { 0 };
            let header = Header { due_ns, ..request(asked, plan.warm_up) };
            asking.send(0, &draft(header)).await.context("the side that asks failed")?;
            asked += 1;
        }
        if answered == asked {
            break;
        }
        let (length, reply) = asking.receive().await.context("the side that asks failed")?;
        ensure!(length == plan.size, "a reply of {length} bytes came instead of {}", plan.size);
        if reply.kind == Kind::Measured
            && let Some(latencies) = &mut latencies
        {
            latencies.push(now_ns().saturating_sub(reply.due_ns));
        }
        let expected = request(answered, plan.warm_up);
        disorder += u64::from((reply.kind, reply.sequence) != (expected.kind, expected.sequence));
        answered += 1;
    }
    let last_ns = now_ns();
    if let (Some(file), Some(latencies)) = (&plan.latencies, latencies) {
        write_latencies(file, &latencies)?;
    }
    Ok(Outcome { round_trips: answered.saturating_sub(plan.warm_up), first_ns, last_ns, disorder })
}

/// Returns the header of a request by its number, which counts the warm-up.
fn request(number: u64, warm_up: u64) -> Header {
    let (kind, sequence) = match number.checked_sub(warm_up) {
        Some(sequence) => (Kind::Measured, sequence),
        None => (Kind::WarmUp, number),
    };
    Header { kind, publisher: 0, sequence, due_ns: 0 }
}
