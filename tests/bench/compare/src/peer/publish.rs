//! The process of publishers.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use nix::sys::prctl::set_timerslack;
use tokio::sync::watch;

use super::{Draft, Phase, Publisher, Stack, Threads, now_ns, runtime};
use crate::plan::{Header, Kind, Plan};

/// The shortest pause of a publisher at a fixed rate. After it, the publisher sends all messages that are
/// due.
const TICK: Duration = Duration::from_micros(50);
const PROBE_INTERVAL: Duration = Duration::from_millis(10);

pub(super) fn run<S: Stack>(plan: Plan, phases: &watch::Receiver<Phase>, threads: Threads) -> Result<()> {
    // A publisher that sleeps between messages must not block the tasks of its connection.
    let threads = if plan.rate > 0 { Threads::Many } else { threads };
    runtime(threads)?.block_on(async {
        let connected = try_join_all((0..plan.clients).map(|_| S::publisher(&plan)));
        let mut publishers = connected.await.context("a publisher could not connect")?;
        println!("ready");
        // The publishers are kept, so that everything that they have accepted is sent until the process
        // stops.
        let results = match publishers.pop() {
            Some(only) if publishers.is_empty() && threads != Threads::Tasks => {
                vec![publish(only, 0, plan, phases.clone()).await?]
            }
            last => {
                let tasks = publishers.into_iter().chain(last).enumerate().map(|(index, publisher)| {
                    tokio::spawn(publish(publisher, index as u16, plan.clone(), phases.clone()))
                });
                let results = try_join_all(tasks).await.context("a publisher panicked")?;
                results.into_iter().collect::<Result<Vec<_>>>()?
            }
        };
        let total: u64 = results.iter().map(|(count, ..)| count).sum();
        let measured_from = results.iter().map(|(_, from, _)| *from).min().unwrap_or(u64::MAX);
        println!("published {total} {measured_from}");
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// Publishes messages. Returns how many measured messages were sent, when the first one was sent, and the
/// publisher.
pub(super) async fn publish<P: Publisher>(
    mut publisher: P,
    index: u16,
    plan: Plan,
    mut phases: watch::Receiver<Phase>,
) -> Result<(u64, u64, P)> {
    let template = vec![b'x'; plan.size];
    let draft = |kind, sequence, due_ns| Draft {
        header: Header { kind, publisher: index, sequence, due_ns },
        template: &template,
    };
    phases.wait_for(|phase| *phase >= Phase::Probing).await?;
    loop {
        for topic in plan.probed() {
            publisher.send(topic, &draft(Kind::Probe, 0, 0)).await.context("a publisher failed")?;
        }
        let go = phases.wait_for(|phase| *phase == Phase::Go);
        if tokio::time::timeout(PROBE_INTERVAL, go).await.is_ok() {
            break;
        }
    }
    let start = now_ns();
    let end = start + plan.limit_ms * 1_000_000;
    let check = if plan.size < 4096 { 16 } else { 1 };
    if plan.rate > 0 {
        set_timerslack(1)?;
    }
    let (mut sent, mut measured_from) = (0, u64::MAX);
    while sent < plan.warm_up + plan.count {
        let after = (sent * 1_000_000_000).checked_div(plan.rate);
        let due = after.map_or(0, |after| wait_until_due(start + after));
        if sent % check == 0 && now_ns() > end {
            break;
        }
        if sent == plan.warm_up {
            measured_from = now_ns();
        }
        let draft = match sent.checked_sub(plan.warm_up) {
            Some(sequence) => draft(Kind::Measured, sequence, due),
            None => draft(Kind::WarmUp, sent, due),
        };
        publisher.send(plan.topic_of(sent), &draft).await.context("a publisher failed")?;
        sent += 1;
    }
    Ok((sent.saturating_sub(plan.warm_up), measured_from, publisher))
}

/// Sleeps on this thread, because timers of the runtime have a resolution of milliseconds. Returns the time
/// at which the message is due.
fn wait_until_due(due: u64) -> u64 {
    loop {
        let now = now_ns();
        if now >= due {
            return due;
        }
        thread::sleep(Duration::from_nanos(due - now).max(TICK));
    }
}
