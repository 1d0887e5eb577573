//! Publishes messages as fast as possible, with a line of rates each second. No message is lost.

use std::io::{self, IsTerminal};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use xmsg_core::{Connection, ErrorKind, Message, Meta, ProxyAddress, Subscription};
use xmsg_proxy::{Policy, Proxy};
use xmsg_zmq::HighWaterMark;

use super::page::{self, Page};
use super::{print, program};
use crate::exit::Exit;
use crate::output::{counted, grouped, note, per_second};
use crate::pace::Pace;
use crate::signals::Interrupt;

/// The number of messages that a task handles before others get their turn.
const YIELD_AFTER: u64 = 64;
/// The number of bytes that may wait in one place. It is small, so that messages that count as published
/// arrive soon.
const HIGH_WATER_MARK: usize = 4 << 20;
/// The time that publishers may go on sending at the end.
const LINGER: Duration = Duration::from_secs(10);
/// The time that subscribers wait for a next message at the end, before they count the rest as lost.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of digits of the sequence number that each message starts with.
pub(super) const DIGITS: usize = 12;
/// The size of the pieces in which memory for messages is allocated.
const ARENA_LEN: usize = 64 << 10;
/// The filler of messages.
const FILLER: &[u8] = b" hello from xmsg demo";

/// The load: what is published, and to how many subscribers.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) duration: Option<Duration>,
    pub(super) publishers: u16,
    pub(super) subscribers: u16,
    /// The bytes of data in each message.
    pub(super) size: u32,
    /// The messages per second of each publisher.
    pub(super) rate: Option<f64>,
}

/// The counts since the start.
#[derive(Debug, Default)]
struct Counters {
    published: AtomicU64,
    delivered: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    reordered: AtomicU64,
}

/// Runs the demo. With `as_json`, only the totals are written to standard output.
pub(super) async fn run(load: Load, as_json: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let proxy = Proxy::bind("127.0.0.1:0")
        .slow_subscriber(Policy::BLOCK)
        .high_water_mark(HighWaterMark::bytes(HIGH_WATER_MARK))
        .start()
        .await
        .context("cannot start a proxy")?;
    let mut page = if as_json { None } else { page::open(&proxy)? };
    if as_json {
        note(format_args!("proxy listening at {}", proxy.address()));
    } else {
        greet(&load, proxy.address(), page.as_mut())?;
    }

    let mut demo = tokio::select! {
        demo = Demo::start(&load, proxy.address()) => demo?,
        exit = interrupt.wait() => return Ok(exit),
    };
    let end = async {
        match load.duration {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    let (started, counters) = (demo.started, demo.counters.clone());
    let exit = tokio::select! {
        error = show_rates(started, counters), if !as_json => return Err(error),
        error = demo.failure() => return Err(error),
        exit = interrupt.wait() => exit,
        () = end => Exit::Done,
    };
    let seconds = demo.started.elapsed().as_secs_f64();
    let totals = tokio::select! {
        totals = demo.stop() => totals?,
        exit = interrupt.wait() => return Ok(exit),
    };
    let address = proxy.address().clone();
    drop::<Option<Page>>(page);
    proxy.stop(Duration::from_secs(1)).await;

    let Totals { sent, received, lost, reordered } = totals;
    if as_json {
        // Fields are added, never renamed: docs/command-line.md lists them.
        print(format_args!(
            "{}",
            json!({
                "proxy": address.to_string(),
                "seconds": seconds,
                "publishers": load.publishers,
                "subscribers": load.subscribers,
                "size_bytes": load.size,
                "sent_messages": sent,
                "received_messages": received,
                "lost_messages": lost,
                "reordered_messages": reordered,
                "interrupted": exit.is_interrupted(),
            })
        ))?;
    } else {
        print(format_args!(
            "totals after {seconds:.1} s: sent {}, received {} by {}, lost {}, reordered {}",
            grouped(sent),
            grouped(received),
            counted(load.subscribers.into(), "subscriber"),
            grouped(lost),
            grouped(reordered),
        ))?;
    }
    if lost > 0 {
        bail!("{} lost: see whether a subscriber in another terminal was stopped", counted(lost, "message"));
    }
    Ok(exit)
}

fn greet(load: &Load, address: &ProxyAddress, served: Option<&mut Page>) -> anyhow::Result<()> {
    let pace = match load.rate {
        Some(rate) => format!("at {rate} messages/s each"),
        None => "as fast as it goes".to_owned(),
    };
    // The user of this terminal runs the proxy, and may also make changes.
    let is_seen = io::stdout().is_terminal();
    let page_line = match served {
        Some(served) if is_seen => format!("\nweb page, by a link that works once: {}", served.link()),
        Some(served) => format!("\nweb page: {}", served.address()),
        None => String::new(),
    };
    print(format_args!(
        "proxy listening at {address}{page_line}\n\
         {} to {}, {} bytes a message, {pace}; a slow subscriber slows all down, nothing is lost\n\
         try in another terminal: {} sub demo: --proxy {address} --report\n",
        counted(load.publishers.into(), "publisher"),
        counted(load.subscribers.into(), "subscriber"),
        load.size,
        program(),
    ))
}

/// Prints a line each second. It returns only when that is no longer possible.
async fn show_rates(started: Instant, counters: Arc<Counters>) -> anyhow::Error {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut last = (0, 0, 0);
    let mut last_time = started;
    let mut ticks =
        tokio::time::interval_at((started + Duration::from_secs(1)).into(), Duration::from_secs(1));
    let header = print(format_args!(
        "{:>8} {:>14} {:>14} {:>10} {:>8}",
        "seconds", "published/s", "delivered/s", "MB/s", "lost"
    ));
    if let Err(error) = header {
        return error;
    }
    loop {
        ticks.tick().await;
        let now = (of(&counters.published), of(&counters.delivered), of(&counters.bytes));
        let time = last_time.elapsed();
        let rate = |now: u64, last: u64| per_second(now - last, time);
        let result = print(format_args!(
            "{:>8.0} {:>14} {:>14} {:>10.1} {:>8}",
            started.elapsed().as_secs_f64(),
            grouped(rate(now.0, last.0)),
            grouped(rate(now.1, last.1)),
            rate(now.2, last.2) as f64 / 1e6,
            grouped(of(&counters.lost)),
        ));
        if let Err(error) = result {
            return error;
        }
        (last, last_time) = (now, Instant::now());
    }
}

/// The running publishers and subscribers.
#[derive(Debug)]
struct Demo {
    started: Instant,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    /// Each task returns its number and the number of messages that it has sent.
    publishers: JoinSet<anyhow::Result<(usize, u64)>>,
    /// The number of messages of each publisher, once that is known.
    sent: watch::Sender<Option<Arc<[u64]>>>,
    subscribers: JoinSet<anyhow::Result<()>>,
}

struct Totals {
    sent: u64,
    received: u64,
    lost: u64,
    reordered: u64,
}

impl Demo {
    async fn start(load: &Load, address: &ProxyAddress) -> anyhow::Result<Self> {
        let options = xmsg_core::ConnectOptions::new()
            .high_water_mark(HIGH_WATER_MARK)
            .before_subscribe(|socket, _| socket.receive_high_water_mark(HIGH_WATER_MARK))
            .connection_timeout(Duration::from_secs(10))
            .subscription_timeout(Duration::from_secs(10));
        let connection = || Connection::with_options(address.clone(), options.clone());
        let counters = Arc::new(Counters::default());
        let (sent, sent_known) = watch::channel(None);
        let mut subscribers = JoinSet::new();
        for _ in 0..load.subscribers {
            let connection = connection()?;
            let subscription = connection.subscribe("demo:").await?;
            let check = Check::new(load.publishers.into(), counters.clone());
            subscribers.spawn(receive(subscription, check, sent_known.clone()));
        }

        let (stop, stopped) = watch::channel(false);
        let mut connections = Vec::new();
        for _ in 0..load.publishers {
            let connection = connection()?;
            connection.connect().await?;
            connections.push(connection);
        }
        let started = Instant::now();
        let mut publishers = JoinSet::new();
        for (number, connection) in connections.into_iter().enumerate() {
            let publisher = Publisher {
                number,
                connection,
                frame: Frame::new(load.size as usize),
                pace: load.rate.map(Pace::new),
                stopped: stopped.clone(),
                counters: counters.clone(),
            };
            publishers.spawn(publisher.run());
        }
        Ok(Self { started, counters, stop, publishers, sent, subscribers })
    }

    /// Waits until a publisher or subscriber has failed.
    async fn failure(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            Some(result) = self.publishers.join_next() => result.map(|result| result.map(drop)),
            Some(result) = self.subscribers.join_next() => result,
        };
        match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => anyhow::anyhow!("a publisher or subscriber ended before its time"),
            Err(error) => error.into(),
        }
    }

    /// Stops publishing, waits until all messages have arrived, and counts.
    async fn stop(mut self) -> anyhow::Result<Totals> {
        self.stop.send_replace(true);
        let mut sent = vec![0; self.publishers.len()];
        while let Some(result) = self.publishers.join_next().await {
            let (number, count) = result??;
            sent[number] = count;
        }
        let total = sent.iter().sum();
        self.sent.send_replace(Some(sent.into()));
        while let Some(result) = self.subscribers.join_next().await {
            result??;
        }
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { delivered, lost, reordered, .. } = &*self.counters;
        Ok(Totals { sent: total, received: of(delivered), lost: of(lost), reordered: of(reordered) })
    }
}

struct Publisher {
    number: usize,
    connection: Connection,
    frame: Frame,
    pace: Option<Pace>,
    stopped: watch::Receiver<bool>,
    counters: Arc<Counters>,
}

impl Publisher {
    async fn run(mut self) -> anyhow::Result<(usize, u64)> {
        let topic = Bytes::from(format!("demo:{}", self.number));
        let meta = Meta::new("binary/bytes").encode();
        let mut sent = 0;
        loop {
            if sent % YIELD_AFTER == 0 {
                if *self.stopped.borrow() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            if let Some(pace) = &mut self.pace {
                tokio::select! {
                    () = pace.wait() => {}
                    _ = self.stopped.wait_for(|stopped| *stopped) => break,
                }
            }
            let message = Message::from_frames(topic.clone(), meta.clone(), self.frame.next());
            match self.connection.try_publish(&message) {
                Err(error) if error.kind() == ErrorKind::Full => {
                    let mut publishing = std::pin::pin!(self.connection.publish(&message));
                    let published = tokio::select! {
                        result = &mut publishing => Some(result),
                        _ = self.stopped.wait_for(|stopped| *stopped) => None,
                    };
                    match published {
                        Some(result) => result?,
                        // If it gave up at once, it would not be known whether the message was accepted.
                        None => match tokio::time::timeout(LINGER, publishing).await {
                            Ok(result) => result?,
                            Err(_) => break,
                        },
                    }
                }
                result => result?,
            }
            sent += 1;
            self.counters.published.fetch_add(1, Ordering::Relaxed);
        }
        // Messages that are not sent within this time count as lost.
        self.connection.close(LINGER).await;
        Ok((self.number, sent))
    }
}

/// The data of one message after another: a sequence number in digits, and filler.
#[derive(Debug)]
struct Frame {
    data: Vec<u8>,
    arena: BytesMut,
}

impl Frame {
    fn new(size: usize) -> Self {
        let mut data = vec![b'0'; DIGITS.min(size)];
        data.extend(FILLER.iter().cycle().take(size.saturating_sub(DIGITS)));
        Self { data, arena: BytesMut::new() }
    }

    fn next(&mut self) -> Bytes {
        if self.arena.capacity() < self.data.len() {
            self.arena.reserve(self.data.len().max(ARENA_LEN));
        }
        self.arena.extend_from_slice(&self.data);
        // This adds one, digit by digit.
        for digit in self.data[..DIGITS].iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                break;
            }
            *digit = b'0';
        }
        self.arena.split().freeze()
    }
}

/// Takes messages until all that were sent have arrived, or no more come.
async fn receive(
    mut subscription: Subscription,
    mut check: Check,
    mut sent: watch::Receiver<Option<Arc<[u64]>>>,
) -> anyhow::Result<()> {
    let mut turn = 0_u64;
    let sent = loop {
        turn += 1;
        if turn.is_multiple_of(YIELD_AFTER) {
            tokio::task::yield_now().await;
        }
        let polled = futures::poll!(pin!(subscription.next()));
        let next = match polled {
            Poll::Ready(next) => next,
            Poll::Pending => {
                check.show();
                tokio::select! {
                    biased;
                    next = subscription.next() => next,
                    known = sent.wait_for(Option::is_some) => {
                        break known.context("the demo has ended")?.clone().unwrap_or_default();
                    }
                }
            }
        };
        check.take(&next.context("the subscription has ended")??);
    };
    while !check.is_complete(&sent) {
        match tokio::time::timeout(LAST_MESSAGE_TIMEOUT, subscription.next()).await {
            Ok(next) => check.take(&next.context("the subscription has ended")??),
            Err(_) => break,
        }
    }
    check.finish(&sent);
    Ok(())
}

/// The state of one subscriber for each publisher.
#[derive(Debug)]
struct Check {
    /// The next sequence numbers.
    next: Vec<u64>,
    counters: Arc<Counters>,
    /// The number of messages that are not in the counters yet. The counters are shared, so they are not
    /// updated for each message.
    delivered: u64,
    /// The bytes of these messages.
    bytes: u64,
}

impl Check {
    fn new(publishers: usize, counters: Arc<Counters>) -> Self {
        Self { next: vec![0; publishers], counters, delivered: 0, bytes: 0 }
    }

    fn take(&mut self, message: &Message) {
        // Other programs may publish here, too.
        let Some((publisher, number)) = parse(message).filter(|(publisher, _)| *publisher < self.next.len())
        else {
            return;
        };
        self.delivered += 1;
        self.bytes += message.data().len() as u64;
        if self.delivered >= YIELD_AFTER {
            self.show();
        }
        let next = &mut self.next[publisher];
        if number >= *next {
            if number > *next {
                self.counters.lost.fetch_add(number - *next, Ordering::Relaxed);
            }
            *next = number + 1;
        } else {
            // The message counted as lost.
            self.counters.reordered.fetch_add(1, Ordering::Relaxed);
            let less = |lost: u64| lost.checked_sub(1);
            let _ = self.counters.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    fn is_complete(&self, sent: &[u64]) -> bool {
        self.next.iter().zip(sent).all(|(next, sent)| next >= sent)
    }

    fn show(&mut self) {
        self.counters.delivered.fetch_add(std::mem::take(&mut self.delivered), Ordering::Relaxed);
        self.counters.bytes.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }

    /// Counts the missing messages as lost.
    fn finish(mut self, sent: &[u64]) {
        self.show();
        let missing = self.next.iter().zip(sent).map(|(next, sent)| sent.saturating_sub(*next)).sum();
        self.counters.lost.fetch_add(missing, Ordering::Relaxed);
    }
}

/// Parses the publisher and the sequence number of a message.
fn parse(message: &Message) -> Option<(usize, u64)> {
    let publisher = digits(message.topic().as_bytes().strip_prefix(b"demo:")?)?;
    Some((publisher as usize, digits(message.data().get(..DIGITS)?)?))
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > DIGITS {
        return None;
    }
    text.iter()
        .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u64) -> Message {
        Message::of("demo:1", format!("{number:012} x").into_bytes()).unwrap()
    }

    fn counts(numbers: &[u64], sent: u64) -> (u64, u64, u64) {
        let counters = Arc::new(Counters::default());
        let mut check = Check::new(2, counters.clone());
        for number in numbers {
            check.take(&message(*number));
        }
        check.finish(&[0, sent]);
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&counters.delivered), of(&counters.lost), of(&counters.reordered))
    }

    #[test]
    fn what_is_missing_is_counted() {
        assert_eq!(counts(&[0, 1, 2], 3), (3, 0, 0));
        assert_eq!(counts(&[0, 2], 3), (2, 1, 0));
        assert_eq!(counts(&[0, 2, 1], 3), (3, 0, 1));
        assert_eq!(counts(&[0], 3), (1, 2, 0));
        assert_eq!(counts(&[], 3), (0, 3, 0));
    }

    #[test]
    fn messages_of_others_do_not_count() {
        let counters = Arc::new(Counters::default());
        let mut check = Check::new(2, counters);
        for (topic, data) in [("demo:2", "000000000000"), ("demo:1", "hello"), ("demo:x", "000000000000")] {
            check.take(&Message::of(topic, data.as_bytes().to_vec()).unwrap());
        }
        assert_eq!(check.delivered, 0);
    }

    #[test]
    fn frames_are_numbered() {
        let mut frame = Frame::new(20);
        for number in 0..1001 {
            let data = frame.next();
            assert_eq!(data.len(), 20);
            assert_eq!(digits(&data[..DIGITS]), Some(number));
        }
        assert_eq!(Frame::new(DIGITS).next(), "000000000000");
    }
}
