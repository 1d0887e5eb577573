//! A publisher that follows a fixed timetable, whatever happens (an open loop).
//!
//! Message `n` is due at `start + n / rate`, and its latency counts from then. If the measured system stalls,
//! messages are sent late, and their waiting time is a part of the latency. To ignore it is what Gil Tene
//! calls "coordinated omission".
//!
//! The timers of tokio have a resolution of a millisecond, which is much longer than the latencies to be
//! measured. Therefore each publisher has a thread with its own runtime. The thread sleeps until the next
//! message is due, and then writes it without waking another thread.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use xmsg_core::{ConnectOptions, Connection, ProxyAddress};
use xmsg_zmq::deadline::later;

use super::LINGER;
use super::client::{Header, Sender, Topics};
use super::histogram::Times;
use super::phase::{Part, Published, Signal, YIELD_AFTER};
use super::report::whole;

/// If the next message is due later than this, the runtime waits and serves the connection. Its timers may be
/// a millisecond late.
const SLEEP_MARGIN: Duration = Duration::from_millis(3);
/// The time from the start of a phase to the first message, which is long enough for all publishers to learn
/// of the phase.
const START_DELAY: Duration = Duration::from_millis(20);
/// The timer slack for which the kernel may delay timers. The usual 50 µs would be half of what is measured.
const TIMER_SLACK: NonZeroU64 = NonZeroU64::MIN;

/// The timetable of the messages of a phase.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timetable {
    /// The rate of all publishers together, in messages per second.
    pub(super) rate: f64,
    pub(super) publishers: usize,
    pub(super) time: Duration,
}

impl Timetable {
    /// Returns how long after the start this message is due. The publishers take turns.
    fn due(&self, publisher: usize, sequence: u64) -> Duration {
        let number = sequence as f64 * self.publishers as f64 + publisher as f64;
        Duration::try_from_secs_f64(number / self.rate).unwrap_or(Duration::MAX)
    }

    /// Returns how many messages all publishers together should send.
    pub(super) fn messages(&self) -> u64 {
        (0..self.publishers).map(|publisher| self.share(publisher)).sum()
    }

    fn share(&self, publisher: usize) -> u64 {
        let all = self.time.as_secs_f64() * self.rate;
        let about = (all - publisher as f64) / self.publishers as f64;
        let about = whole(about.ceil());
        // The exact number must not depend on rounding: the last message is due before the end, and the next
        // one is not.
        let is_due = |sequence: &u64| self.due(publisher, *sequence) < self.time;
        (about.saturating_sub(1)..=about + 1).find(|sequence| !is_due(sequence)).unwrap_or(about)
    }
}

/// The result of a publisher.
#[derive(Debug)]
pub(super) struct Paced {
    pub(super) pacer: Pacer,
    /// How late messages were published, compared with the timetable.
    pub(super) lateness: Times,
    /// The time from when the first message was due until the last one was published.
    pub(super) time: Duration,
}

/// A handle of a thread that publishes.
#[derive(Debug)]
pub(super) struct Pacer {
    orders: mpsc::Sender<PublishOrder>,
}

struct PublishOrder {
    timetable: Timetable,
    part: Part,
    answer: oneshot::Sender<anyhow::Result<Done>>,
}

struct Done {
    messages: u64,
    lateness: Times,
    sending: Duration,
    time: Duration,
}

impl Pacer {
    /// Starts the thread and waits until it is connected. The thread ends when the handle is dropped.
    pub(super) async fn start(
        address: ProxyAddress,
        options: ConnectOptions,
        topics: Topics,
        size: usize,
    ) -> anyhow::Result<Self> {
        let (orders, inbox) = mpsc::channel(1);
        let (ready, connected) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start: the system gives no more descriptors")?;
        let work = move || {
            #[cfg(target_os = "linux")]
            // If this is not permitted, messages are slightly late, and the report shows it.
            let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK));
            runtime.block_on(async {
                let connected = async {
                    let connection = Connection::with_options(address, options)?;
                    connection.connect().await.map(|()| connection)
                };
                let (connection, result) = match connected.await {
                    Ok(connection) => (Some(connection), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                // The receiver may be gone, because the caller gave up.
                if ready.send(result).is_ok()
                    && let Some(connection) = connection
                {
                    serve(Sender::new(connection, topics, size), inbox).await;
                }
            });
        };
        std::thread::Builder::new()
            .name("publisher".to_owned())
            .spawn(work)
            .context("cannot start: the system gives no more threads")?;
        connected.await.context("a publisher failed")??;
        Ok(Self { orders })
    }

    /// Publishes messages by this timetable.
    pub(super) async fn publish(self, part: Part, timetable: Timetable) -> anyhow::Result<Published<Paced>> {
        let number = part.number;
        let (answer, done) = oneshot::channel();
        // If the thread has ended, it has dropped the answer, too.
        let _ = self.orders.send(PublishOrder { timetable, part, answer }).await;
        let Done { messages, lateness, sending, time } = done.await.context("a publisher failed")??;
        let publisher = Paced { pacer: self, lateness, time: sending };
        Ok(Published { publisher, number, messages, time })
    }
}

async fn serve(mut sender: Sender, mut orders: mpsc::Receiver<PublishOrder>) {
    while let Some(PublishOrder { timetable, part, answer }) = orders.recv().await {
        let done = publish(&mut sender, part, timetable).await;
        // After a failure elsewhere, nobody receives the answer.
        let _ = answer.send(done);
    }
    sender.close(LINGER).await;
}

async fn publish(sender: &mut Sender, part: Part, timetable: Timetable) -> anyhow::Result<Done> {
    let Part { number, phase, clock, started, patience, mut signal, counter } = part;
    let start = started + START_DELAY;
    let share = timetable.share(number);
    let mut lateness = Times::fine();
    let mut sequence = 0;
    let mut last = start;
    while sequence < share && !signal.is_stopped() {
        let due = later(start, timetable.due(number, sequence));
        let now = Instant::now();
        if due > now {
            wait(due, now, sender, &mut signal).await;
            continue;
        }
        lateness.record(now - due);
        let time_ns = clock.at_ns(due);
        let message = sender.message(Header { phase, publisher: number as u32, sequence, time_ns });
        if !sender.try_send(&message)? {
            tokio::select! {
                result = sender.send(&message) => result?,
                () = signal.stopped() => break,
            }
        }
        sequence += 1;
        last = now;
        counter.set(sequence);
        if sequence % YIELD_AFTER == 0 {
            tokio::task::yield_now().await;
        }
    }
    signal.flushed(sender, patience).await;
    let sending = last.duration_since(start);
    Ok(Done { messages: sequence, lateness, sending, time: started.elapsed() })
}

/// Waits until this time, or for a part of it. Messages in the queue are written first.
async fn wait(due: Instant, now: Instant, sender: &Sender, signal: &mut Signal) {
    if let Some(time) = (due - now).checked_sub(SLEEP_MARGIN) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = signal.stopped() => {}
        }
        return;
    }
    // This lets the tasks of the connection run.
    tokio::task::yield_now().await;
    if sender.queued() == 0 {
        // Sleeping blocks the thread, but no other task needs it.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_take_turns() {
        let timetable = Timetable { rate: 1000.0, publishers: 4, time: Duration::from_secs(1) };
        let due = |publisher, sequence| timetable.due(publisher, sequence).as_micros();
        assert_eq!([due(0, 0), due(1, 0), due(3, 0), due(0, 1), due(2, 10)], [0, 1000, 3000, 4000, 42_000]);
    }

    #[test]
    fn a_rate_and_a_time_make_a_number_of_messages() {
        for (rate, publishers, seconds, messages) in [
            (1000.0, 1, 2.0, 2000),
            (1000.0, 3, 1.0, 1000),
            (10.0, 64, 1.0, 10),
            (0.5, 1, 1.0, 1),
            (0.3, 2, 10.0, 3),
            (1e6, 7, 3.0, 3_000_000),
            (100.0, 1, 0.0, 0),
        ] {
            let timetable = Timetable { rate, publishers, time: Duration::from_secs_f64(seconds) };
            assert_eq!(timetable.messages(), messages, "{timetable:?}");
        }
    }
}
