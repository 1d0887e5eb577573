//! The process of subscribers, and what it counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use super::{Stack, Subscriber, Threads, now_ns, runtime};
use crate::plan::{Header, Kind, Plan};

/// The largest number of publishers that a subscriber can distinguish.
pub(super) const MAX_PUBLISHERS: usize = 64;

pub(super) fn run<S: Stack>(plan: &Plan, tally: &Arc<Tally>, threads: Threads) -> Result<()> {
    ensure!(plan.publishers <= MAX_PUBLISHERS, "there are at most {MAX_PUBLISHERS} publishers");
    runtime(threads)?.block_on(async {
        let connected = try_join_all((0..plan.clients).map(|index| S::subscriber(plan, index)));
        let mut subscribers = connected.await.context("a subscriber could not connect")?;
        println!("ready");
        let size = plan.size;
        match subscribers.pop() {
            Some(only) if subscribers.is_empty() && threads != Threads::Tasks => {
                receive(only, 0, size, tally.clone()).await
            }
            last => {
                let tasks =
                    subscribers.into_iter().chain(last).enumerate().map(|(index, subscriber)| {
                        tokio::spawn(receive(subscriber, index, size, tally.clone()))
                    });
                let results = try_join_all(tasks).await.context("a subscriber panicked")?;
                results.into_iter().collect()
            }
        }
    })
}

pub(super) async fn receive(
    mut subscriber: impl Subscriber,
    index: usize,
    size: usize,
    tally: Arc<Tally>,
) -> Result<()> {
    let mut next = [0; MAX_PUBLISHERS];
    loop {
        let (length, header) = subscriber.receive().await.context("a subscriber failed")?;
        ensure!(length == size, "a payload of {length} bytes came instead of {size}");
        tally.note(index, header, &mut next);
    }
}

/// The counts of received messages. Each subscriber writes to a line of its own, and the thread that reads
/// commands adds the lines up.
#[derive(Debug)]
pub(super) struct Tally {
    lines: Vec<Line>,
    target: u64,
    latencies: Option<(PathBuf, Mutex<Vec<u64>>)>,
}

/// The counts of one subscriber, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line {
    /// A bit for each publisher from which a probe was received.
    seen: AtomicU64,
    received: AtomicU64,
    /// Messages that were received after a later one of the same publisher.
    disorder: AtomicU64,
    /// The time at which the first message was received.
    first_ns: AtomicU64,
    /// The time of the latest reading of the clock, which is read for every 16th message, the first few, and
    /// the last one.
    last_ns: AtomicU64,
    /// The number of messages that were received by that time.
    at_last: AtomicU64,
}

impl Tally {
    pub(super) fn new(plan: &Plan) -> Self {
        let room = plan.count as usize;
        Self {
            lines: (0..plan.clients).map(|_| Line::default()).collect(),
            target: plan.count,
            latencies: plan.latencies.clone().map(|file| (file, Mutex::new(Vec::with_capacity(room)))),
        }
    }

    /// Counts a message. `next` has the next expected sequence number of each publisher.
    fn note(&self, subscriber: usize, header: Header, next: &mut [u64; MAX_PUBLISHERS]) {
        let line = &self.lines[subscriber];
        let publisher = usize::from(header.publisher) % MAX_PUBLISHERS;
        match header.kind {
            Kind::WarmUp => return,
            Kind::Probe => {
                line.seen.store(line.seen.load(Relaxed) | 1 << publisher, Relaxed);
                return;
            }
            Kind::Measured => {}
        }
        if header.sequence < next[publisher] {
            line.disorder.store(line.disorder.load(Relaxed) + 1, Relaxed);
        }
        next[publisher] = header.sequence + 1;
        // There is only one writer, so a load and a store are enough. They cost no more than those of a plain
        // number.
        let received = line.received.load(Relaxed) + 1;
        line.received.store(received, Relaxed);
        if let Some((_, latencies)) = &self.latencies {
            latencies.lock().expect("nothing panics with it").push(now_ns().saturating_sub(header.due_ns));
        }
        if received < 64 || received.is_multiple_of(16) || received == self.target {
            let now = now_ns();
            if received == 1 {
                line.first_ns.store(now, Relaxed);
            }
            line.last_ns.store(now, Relaxed);
            line.at_last.store(received, Relaxed);
        }
    }

    /// Returns the answer to `status`.
    pub(super) fn status(&self) -> String {
        let pairs: u32 = self.lines.iter().map(|line| line.seen.load(Relaxed).count_ones()).sum();
        format!("status {pairs} {}", self.sum(|line| &line.received))
    }

    /// Writes the latencies to the file, if there is one. Returns the answer to `stop`.
    pub(super) fn finish(&self) -> Result<String> {
        if let Some((file, latencies)) = &self.latencies {
            write_latencies(file, &latencies.lock().expect("nothing panics with it"))?;
        }
        let times = |field: fn(&Line) -> &AtomicU64| {
            self.lines.iter().map(move |line| field(line).load(Relaxed)).filter(|ns| *ns > 0)
        };
        let first = times(|line| &line.first_ns).min().unwrap_or(0);
        let last = times(|line| &line.last_ns).max().unwrap_or(0);
        Ok(serde_json::json!({
            "received": self.sum(|line| &line.received),
            "timed": self.sum(|line| &line.at_last),
            "first_ns": first,
            "last_ns": last,
            "disorder": self.sum(|line| &line.disorder),
        })
        .to_string())
    }

    fn sum(&self, field: impl Fn(&Line) -> &AtomicU64) -> u64 {
        self.lines.iter().map(|line| field(line).load(Relaxed)).sum()
    }
}

/// Writes latencies to a file, in the format of [`Plan::latencies`].
pub(super) fn write_latencies(file: &Path, latencies: &[u64]) -> Result<()> {
    let bytes: Vec<u8> = latencies.iter().flat_map(|latency| latency.to_le_bytes()).collect();
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}
