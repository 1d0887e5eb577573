//! A phase of a bench: publishers publish, subscribers receive everything, and counts show when it is
//! complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use xmsg_core::Messages;
use xmsg_zmq::deadline::Deadline;

use super::check::{Check, Counts};
use super::client::{Clock, Header, Receiver, Sender};
use super::histogram::Times;
use super::live::Live;
use super::timeline::Timeline;
use crate::signals::Interrupt;

/// The number of messages that a task handles before other tasks get their turn.
pub(super) const YIELD_AFTER: u64 = 64;
/// The interval at which the counters are read.
const TICK: Duration = Duration::from_millis(100);
/// How often a publisher checks whether everything is written.
const FLUSH_CHECK: Duration = Duration::from_millis(1);

/// The stage of a phase, as its clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Publishing,
    /// Publishing has ended, and messages still arrive.
    Draining,
    /// A second interrupt has ended the wait for messages.
    Ended,
}

/// A client's view of a phase.
#[derive(Clone, Debug)]
pub(super) struct Signal {
    stage: watch::Receiver<Stage>,
}

impl Signal {
    /// Returns whether publishing must stop.
    pub(super) fn is_stopped(&self) -> bool {
        *self.stage.borrow() > Stage::Publishing
    }

    /// Waits until publishing must stop.
    pub(super) async fn stopped(&mut self) {
        // The sender exists as long as the phase, so this cannot fail.
        let _ = self.stage.wait_for(|stage| *stage > Stage::Publishing).await;
    }

    async fn ended(&mut self) {
        let _ = self.stage.wait_for(|stage| *stage == Stage::Ended).await;
    }

    /// Waits until everything that was published is written, for at most `patience`.
    pub(super) async fn flushed(&mut self, sender: &Sender, patience: Duration) {
        let flush = async {
            while sender.queued() > 0 {
                tokio::time::sleep(FLUSH_CHECK).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(patience, flush) => {}
            () = self.ended() => {}
        }
    }
}

/// The number of messages that one client has handled. Only this client writes it, for each message, so it
/// has its own cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn counters(count: usize) -> Vec<Arc<Counter>> {
    (0..count).map(|_| Arc::default()).collect()
}

/// The result of one publisher.
#[derive(Debug)]
pub(super) struct Published<P> {
    pub(super) publisher: P,
    pub(super) number: usize,
    pub(super) messages: u64,
    /// The time from the start of the phase until everything was written.
    pub(super) time: Duration,
}

/// The result of one subscriber.
#[derive(Debug)]
pub(super) struct Received {
    receiver: Receiver,
    number: usize,
    pub(super) counts: Counts,
    /// The time from the start of the phase to the last message.
    pub(super) time: Duration,
    delays: Times,
}

/// The results of all publishers and subscribers.
#[derive(Debug)]
pub(super) struct Outcome<P> {
    /// The publishers, by their numbers.
    pub(super) published: Vec<Published<P>>,
    pub(super) received: Vec<Received>,
    /// The latencies of messages that carry a time.
    pub(super) delays: Times,
    pub(super) timeline: Timeline,
    pub(super) interrupted: bool,
}

impl<P> Outcome<P> {
    pub(super) fn messages_published(&self) -> u64 {
        self.published.iter().map(|publisher| publisher.messages).sum()
    }

    /// Returns how many messages all subscribers together should have received.
    pub(super) fn messages_expected(&self) -> u64 {
        self.messages_published() * self.received.len() as u64
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.received.iter().for_each(|subscriber| counts.add(subscriber.counts));
        counts
    }

    pub(super) fn messages_lost(&self) -> u64 {
        self.messages_expected().saturating_sub(self.counts().delivered)
    }

    /// Replaces the results of a bench that was stopped before the measurement began.
    pub(super) fn unmeasured(mut self) -> Self {
        for publisher in &mut self.published {
            (publisher.messages, publisher.time) = (0, Duration::ZERO);
        }
        for subscriber in &mut self.received {
            (subscriber.counts, subscriber.time) = (Counts::default(), Duration::ZERO);
        }
        Self { delays: Times::fine(), timeline: Timeline::new(TICK), ..self }
    }

    /// Returns the clients, for another phase.
    pub(super) fn into_clients(self) -> (Vec<P>, Vec<Receiver>) {
        let publishers = self.published.into_iter().map(|published| published.publisher).collect();
        (publishers, self.received.into_iter().map(|received| received.receiver).collect())
    }
}

/// The description of a phase.
#[derive(Debug)]
pub(super) struct Phase<'a> {
    pub(super) name: &'a str,
    /// The number of the phase; messages carry it modulo 16.
    pub(super) number: u8,
    /// The time after which publishers are stopped.
    pub(super) limit: Option<Duration>,
    pub(super) patience: Duration,
    pub(super) clock: Clock,
    /// Makes the histograms of latencies.
    pub(super) times: fn() -> Times,
}

/// The part of one publisher in a phase.
#[derive(Debug)]
pub(super) struct Part {
    /// The number of this publisher.
    pub(super) number: usize,
    pub(super) phase: u8,
    pub(super) clock: Clock,
    pub(super) started: Instant,
    pub(super) patience: Duration,
    pub(super) signal: Signal,
    pub(super) counter: Arc<Counter>,
}

impl Phase<'_> {
    /// Runs the phase. `publish` is the work of each publisher. The first interrupt stops publishing; a
    /// second one ends the wait for messages that have not arrived.
    pub(super) async fn run<I, P, F>(
        &self,
        publishers: Vec<I>,
        receivers: Vec<Receiver>,
        interrupt: &mut Interrupt,
        publish: impl Fn(I, Part) -> F,
    ) -> anyhow::Result<Outcome<P>>
    where
        P: Send + 'static,
        F: Future<Output = anyhow::Result<Published<P>>> + Send + 'static,
    {
        let (stage, stage_seen) = watch::channel(Stage::Publishing);
        let signal = Signal { stage: stage_seen };
        let (sent, sent_known) = watch::channel(None);
        let (publisher_counters, receiver_counters) = (counters(publishers.len()), counters(receivers.len()));
        let publisher_count = publishers.len();
        let started = Instant::now();

        let mut receiving = JoinSet::new();
        for (number, (receiver, counter)) in receivers.into_iter().zip(&receiver_counters).enumerate() {
            let intake = SubscriberTask {
                receiver,
                number,
                phase: self.number,
                clock: self.clock,
                started,
                patience: self.patience,
                signal: signal.clone(),
                counter: counter.clone(),
                check: Check::new(publisher_count),
                delays: (self.times)(),
                last: started,
            };
            receiving.spawn(intake.run(sent_known.clone()));
        }
        let mut publishing = JoinSet::new();
        for (number, (publisher, counter)) in publishers.into_iter().zip(&publisher_counters).enumerate() {
            let part = Part {
                number,
                phase: self.number,
                clock: self.clock,
                started,
                patience: self.patience,
                signal: signal.clone(),
                counter: counter.clone(),
            };
            publishing.spawn(publish(publisher, part));
        }

        let live = Live::new(self.name);
        let mut timeline = Timeline::new(TICK);
        let mut ticks = tokio::time::interval_at((started + TICK).into(), TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut published = Vec::with_capacity(publisher_count);
        let mut received: Vec<Received> = Vec::with_capacity(receiver_counters.len());
        let sum = |counters: &[Arc<Counter>]| counters.iter().map(|counter| counter.load()).sum();
        let limit = async {
            match self.limit {
                Some(limit) => Deadline::since(started.into(), limit).passed().await,
                None => std::future::pending().await,
            }
        };
        let mut limit = std::pin::pin!(limit);
        let (mut limited, mut interrupted) = (false, false);
        while !(publishing.is_empty() && receiving.is_empty()) {
            tokio::select! {
                Some(ended) = publishing.join_next() => {
                    published.push(ended.context("a publisher failed")??);
                    if publishing.is_empty() {
                        let messages: u64 = published.iter().map(|publisher| publisher.messages).sum();
                        sent.send_replace(Some(messages));
                    }
                }
                Some(ended) = receiving.join_next() => {
                    received.push(ended.context("a subscriber failed")??);
                }
                _ = ticks.tick() => {
                    timeline.add(started.elapsed(), sum(&publisher_counters), sum(&receiver_counters));
                    live.show(&timeline);
                }
                () = &mut limit, if !limited => {
                    limited = true;
                    stage.send_if_modified(|stage| advance(stage, Stage::Draining));
                }
                _ = interrupt.wait() => {
                    let next = if interrupted { Stage::Ended } else { Stage::Draining };
                    interrupted = true;
                    stage.send_if_modified(|stage| advance(stage, next));
                }
            }
        }
        timeline.finish(started.elapsed(), sum(&publisher_counters), sum(&receiver_counters));
        published.sort_by_key(|publisher| publisher.number);
        received.sort_by_key(|subscriber| subscriber.number);
        let mut delays = Times::fine();
        for subscriber in &received {
            delays.add(&subscriber.delays);
        }
        Ok(Outcome { published, received, delays, timeline, interrupted })
    }
}

fn advance(stage: &mut Stage, next: Stage) -> bool {
    let later = next > *stage;
    *stage = next.max(*stage);
    later
}

/// A running subscriber.
struct SubscriberTask {
    receiver: Receiver,
    number: usize,
    phase: u8,
    clock: Clock,
    started: Instant,
    patience: Duration,
    signal: Signal,
    counter: Arc<Counter>,
    check: Check,
    delays: Times,
    last: Instant,
}

impl SubscriberTask {
    /// Receives messages until all that were sent have arrived, or no more arrive.
    async fn run(mut self, mut sent: watch::Receiver<Option<u64>>) -> anyhow::Result<Received> {
        let mut total = None;
        let mut turn = 0;
        loop {
            if turn >= YIELD_AFTER {
                turn = 0;
                self.note();
                tokio::task::yield_now().await;
            }
            if let Some(messages) = self.receiver.try_next().await {
                turn += self.take_all(&messages?)?;
                continue;
            }
            // All available messages were taken, so the last of them arrived about now.
            self.note();
            if total.is_some_and(|total| self.check.counts().delivered >= total) {
                break;
            }
            tokio::select! {
                biased;
                messages = self.receiver.next() => turn += self.take_all(&messages?)?,
                known = sent.wait_for(Option::is_some), if total.is_none() => {
                    total = *known.map_err(|_| anyhow!("the bench has ended"))?;
                }
                () = tokio::time::sleep(self.patience), if total.is_some() => break,
                () = self.signal.ended(), if total.is_some() => break,
            }
        }
        let Self { receiver, number, check, delays, .. } = self;
        let time = self.last.duration_since(self.started);
        Ok(Received { receiver, number, counts: check.counts(), time, delays })
    }

    /// Takes all messages of a batch and returns their number.
    fn take_all(&mut self, messages: &Messages) -> anyhow::Result<u64> {
        let mut count = 0;
        for message in messages {
            self.take(message?.data());
            count += 1;
        }
        Ok(count)
    }

    fn take(&mut self, data: &[u8]) {
        // Late messages of an earlier phase do not count.
        let Some(header) = Header::decode(data).filter(|header| header.phase == self.phase & 0xf) else {
            return;
        };
        if header.time_ns > 0 {
            self.delays.record_ns(self.clock.now_ns().saturating_sub(header.time_ns));
        }
        self.check.take(header.publisher as usize, header.sequence);
    }

    /// Records time and count. This is not needed for each message.
    fn note(&mut self) {
        let delivered = self.check.counts().delivered;
        if delivered > self.counter.load() {
            self.last = Instant::now();
            self.counter.set(delivered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_goes_forward_only() {
        let mut stage = Stage::Publishing;
        assert!(advance(&mut stage, Stage::Draining));
        assert!(!advance(&mut stage, Stage::Draining));
        assert!(advance(&mut stage, Stage::Ended));
        assert!(!advance(&mut stage, Stage::Draining));
        assert_eq!(stage, Stage::Ended);
    }
}
