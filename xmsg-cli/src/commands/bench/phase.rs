//! A phase of a bench: publishers publish, subscribers take everything, and the end is known by counts.

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

/// Messages that a task handles before others get their turn.
pub(super) const TURN: u64 = 64;
/// How often the counters are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often a publisher looks whether everything is written.
const FLUSH_CHECK: Duration = Duration::from_millis(1);

/// How far a phase has come, as those who publish and take messages see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Publishing,
    /// No more is to be published; what is under way arrives.
    Draining,
    /// Nothing is waited for any more: a second interrupt.
    Ended,
}

/// A client's view of a phase.
#[derive(Clone, Debug)]
pub(super) struct Signal {
    stage: watch::Receiver<Stage>,
}

impl Signal {
    /// Whether to stop publishing.
    pub(super) fn is_stopped(&self) -> bool {
        *self.stage.borrow() > Stage::Publishing
    }

    /// Returns when publishing is to stop.
    pub(super) async fn stopped(&mut self) {
        // The sender lives as long as the phase.
        let _ = self.stage.wait_for(|stage| *stage > Stage::Publishing).await;
    }

    async fn ended(&mut self) {
        let _ = self.stage.wait_for(|stage| *stage == Stage::Ended).await;
    }

    /// Waits until everything that was published is written, unless that takes too long.
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

/// How many messages one client has handled: written by it alone, for each message, and so on a cache line of its own.
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

/// What one publisher has done.
#[derive(Debug)]
pub(super) struct Published<P> {
    pub(super) publisher: P,
    pub(super) number: usize,
    pub(super) messages: u64,
    /// From the start of the phase until all was written.
    pub(super) time: Duration,
}

/// What one subscriber has done.
#[derive(Debug)]
pub(super) struct Received {
    receiver: Receiver,
    number: usize,
    pub(super) counts: Counts,
    /// From the start of the phase to the last message.
    pub(super) time: Duration,
    delays: Times,
}

/// Both, of all.
#[derive(Debug)]
pub(super) struct Outcome<P> {
    /// By their numbers.
    pub(super) published: Vec<Published<P>>,
    pub(super) received: Vec<Received>,
    /// Of the messages with a time.
    pub(super) delays: Times,
    pub(super) timeline: Timeline,
    pub(super) interrupted: bool,
}

impl<P> Outcome<P> {
    pub(super) fn messages_published(&self) -> u64 {
        self.published.iter().map(|publisher| publisher.messages).sum()
    }

    /// What all subscribers together should have got.
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

    /// What is told of a bench that was stopped before anything was measured.
    pub(super) fn unmeasured(mut self) -> Self {
        for publisher in &mut self.published {
            (publisher.messages, publisher.time) = (0, Duration::ZERO);
        }
        for subscriber in &mut self.received {
            (subscriber.counts, subscriber.time) = (Counts::default(), Duration::ZERO);
        }
        Self { delays: Times::fine(), timeline: Timeline::new(TICK), ..self }
    }

    /// The clients, for another phase.
    pub(super) fn into_clients(self) -> (Vec<P>, Vec<Receiver>) {
        let publishers = self.published.into_iter().map(|published| published.publisher).collect();
        (publishers, self.received.into_iter().map(|received| received.receiver).collect())
    }
}

/// What a phase is like.
#[derive(Debug)]
pub(super) struct Phase<'a> {
    pub(super) name: &'a str,
    /// Its number, modulo 16.
    pub(super) number: u8,
    /// After this, publishers are told to stop.
    pub(super) limit: Option<Duration>,
    pub(super) patience: Duration,
    pub(super) clock: Clock,
    /// How to make histograms of delays.
    pub(super) times: fn() -> Times,
}

/// The part of one publisher in a phase.
#[derive(Debug)]
pub(super) struct Part {
    /// Among the publishers.
    pub(super) number: usize,
    pub(super) phase: u8,
    pub(super) clock: Clock,
    pub(super) started: Instant,
    pub(super) patience: Duration,
    pub(super) signal: Signal,
    pub(super) counter: Arc<Counter>,
}

impl Phase<'_> {
    /// Runs it: `publish` is what each publisher does. The first interrupt stops publishing, a second one the wait for what
    /// is under way.
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
            let intake = Intake {
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

/// A subscriber at work.
struct Intake {
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

impl Intake {
    /// Takes messages until all that were sent have come, or no more do.
    async fn run(mut self, mut sent: watch::Receiver<Option<u64>>) -> anyhow::Result<Received> {
        let mut total = None;
        let mut turn = 0;
        loop {
            if turn >= TURN {
                turn = 0;
                self.note();
                tokio::task::yield_now().await;
            }
            if let Some(messages) = self.receiver.try_next().await {
                turn += self.take_all(&messages?)?;
                continue;
            }
            // All that was there has been taken: the last of it came about now.
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

    /// Returns how many there were.
    fn take_all(&mut self, messages: &Messages) -> anyhow::Result<u64> {
        let mut count = 0;
        for message in messages {
            self.take(message?.data());
            count += 1;
        }
        Ok(count)
    }

    fn take(&mut self, data: &[u8]) {
        // What is left of the phase before does not count.
        let Some(header) = Header::decode(data).filter(|header| header.phase == self.phase & 0xf) else {
            return;
        };
        if header.time_ns > 0 {
            self.delays.record_ns(self.clock.now_ns().saturating_sub(header.time_ns));
        }
        self.check.take(header.publisher as usize, header.sequence);
    }

    /// Notes the time and the count, which need not be done for each message.
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
