//! Samples of the statistics of a proxy, and the rates between two of them.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use xmsg_core::Topic;

use crate::args::ConnectOptions;
use crate::exit::is_without_proxy;
use crate::live::LiveSource;
use crate::raw_subscription::RawSubscription;
use crate::stats::{Connection, Source, SourceOptions, Stats, Unknown};
use crate::traffic::Counts;

/// Takes samples of a proxy, one after another.
#[derive(Debug)]
pub(crate) struct Sampler {
    from: SampleSource,
    last: Option<(Instant, Stats)>,
}

/// The source of the samples.
#[derive(Debug)]
enum SampleSource {
    Proxy(Source),
    /// A subscription to everything, for proxies that do not report statistics.
    Subscription(Watcher),
}

/// The result of one sample.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) stats: Stats,
    /// The first of three rates in messages per second: received, delivered and dropped.
    pub(crate) received: f64,
    pub(crate) delivered: f64,
    pub(crate) dropped: f64,
    pub(crate) connections: Vec<ConnectionRates>,
    pub(crate) topics: Vec<TopicRates>,
    pub(crate) topics_left_out: u64,
}

/// A connection, and its rates since the last sample.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionRates {
    pub(crate) connection: Connection,
    pub(crate) rate: f64,
    pub(crate) byte_rate: f64,
    /// Dropped messages of this connection, per second.
    pub(crate) drop_rate: f64,
}

/// A topic, and its rates since the last sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TopicRates {
    pub(crate) name: String,
    pub(crate) rate: f64,
    pub(crate) byte_rate: f64,
}

impl Sampler {
    pub(crate) async fn open(options: &SourceOptions) -> anyhow::Result<Self> {
        let from = match options.open().await {
            Ok(source) => SampleSource::Proxy(source),
            Err(error) if error.is::<Unknown>() => {
                SampleSource::Subscription(Watcher::open(&options.connect).await?)
            }
            Err(error) => return Err(error),
        };
        Ok(Self { from, last: None })
    }

    /// Returns a note about what this source cannot show, if anything.
    pub(crate) fn unseen(&self) -> Option<&'static str> {
        match self.from {
            SampleSource::Proxy(_) => None,
            SampleSource::Subscription(_) => Some(
                "this proxy does not say who is connected: only topics and rates are seen, by subscribing to everything",
            ),
        }
    }
}

impl LiveSource for Sampler {
    type Sample = Rates;

    /// Takes a sample and computes the rates since the last one. The first sample has no rates.
    async fn sample(&mut self) -> anyhow::Result<Rates> {
        let stats = match &mut self.from {
            SampleSource::Proxy(source) => source.ask().await?.0,
            SampleSource::Subscription(watcher) => watcher.look()?,
        };
        let now = Instant::now();
        let last = self.last.replace((now, stats.clone()));
        // A shorter uptime means that the proxy was restarted, so there is no earlier sample.
        let last = last.filter(|(_, last)| last.uptime_s <= stats.uptime_s);
        Ok(rates(stats, last.map(|(at, last)| (now - at, last))))
    }

    fn may_come_back(error: &anyhow::Error) -> bool {
        error.is::<Unknown>()
            || error.downcast_ref::<xmsg_core::Error>().is_some_and(|error| {
                is_without_proxy(error.kind()) || error.kind() == xmsg_core::ErrorKind::Timeout
            })
    }

    fn address(&self) -> String {
        match &self.from {
            SampleSource::Proxy(source) => source.address(),
            SampleSource::Subscription(watcher) => watcher.address.clone(),
        }
    }
}

fn rates(stats: Stats, last: Option<(Duration, Stats)>) -> Rates {
    let Some((time, last)) = last else { return Rates { stats, ..Rates::default() } };
    let per_s = |now: u64, before: u64| now.saturating_sub(before) as f64 / time.as_secs_f64().max(1e-3);
    let known: HashMap<_, _> = last.connections.iter().map(|one| (one.id, one)).collect();
    let connections = stats.connections.iter().map(|one| {
        let fresh = Connection::default();
        let before = known.get(&one.id).copied().unwrap_or(&fresh);
        // A connection may be older and appear for the first time, because the list has only the most
        // important ones. Its counts are then not those of the last interval.
        let is_new = known.contains_key(&one.id) || one.connected_s <= time.as_secs_f64() * 1.5;
        let rate = |now, before| if is_new { per_s(now, before) } else { 0.0 };
        ConnectionRates {
            rate: rate(one.messages, before.messages),
            byte_rate: rate(one.bytes, before.bytes),
            drop_rate: rate(one.dropped_messages(), before.dropped_messages()),
            connection: one.clone(),
        }
    });
    let known: HashMap<_, _> = last.topics.iter().map(|one| (&one.name, one)).collect();
    // The proxy restarts its counts of topics when nobody has asked for them for some time.
    let is_anew = stats.topics_watched_s < last.topics_watched_s;
    // The list has only the topics with the most messages. One that is in it for the first time may have been
    // counted all the time: then the mean since the proxy began to count is what is known.
    let may_be_older = last.topics_left_out > 0 && !is_anew;
    let mean_per_s = |count: u64| count as f64 / stats.topics_watched_s.max(time.as_secs_f64()).max(1e-3);
    let mut topics: Vec<_> = stats
        .topics
        .iter()
        .map(|one| {
            let before = known.get(&one.name).filter(|_| !is_anew);
            let rate = |count, before: Option<u64>| match before {
                None if may_be_older => mean_per_s(count),
                before => per_s(count, before.unwrap_or(0)),
            };
            TopicRates {
                name: one.name.clone(),
                rate: rate(one.messages, before.map(|before| before.messages)),
                byte_rate: rate(one.bytes, before.map(|before| before.bytes)),
            }
        })
        .collect();
    topics.sort_by(|a, b| b.rate.total_cmp(&a.rate).then_with(|| a.name.cmp(&b.name)));
    Rates {
        received: per_s(stats.received.messages, last.received.messages),
        delivered: per_s(stats.delivered.messages, last.delivered.messages),
        dropped: per_s(stats.dropped.messages, last.dropped.messages),
        connections: connections.collect(),
        topics,
        topics_left_out: stats.topics_left_out,
        stats,
    }
}

/// Counts all messages of a subscription to everything.
#[derive(Debug)]
struct Watcher {
    address: String,
    started: Instant,
    counts: watch::Receiver<Counts>,
    task: JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    async fn open(connect: &ConnectOptions) -> anyhow::Result<Self> {
        let address = connect.proxy()?.to_string();
        let mut tap = RawSubscription::open(connect, &[Topic::everything()]).await?;
        let (sender, counts) = watch::channel(Counts::default());
        let task = tokio::spawn(async move {
            while let Some(wire) = tap.next().await {
                sender.send_modify(|counts| counts.take(&wire));
            }
        });
        Ok(Self { address, started: Instant::now(), counts, task })
    }

    fn look(&self) -> anyhow::Result<Stats> {
        anyhow::ensure!(!self.task.is_finished(), "the subscription has ended");
        let uptime_s = self.started.elapsed().as_secs_f64();
        Ok(self.counts.borrow().stats(uptime_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Sum, Topic as TopicStats};

    fn stats(uptime_s: f64, messages: u64) -> Stats {
        let sum = Sum { messages, bytes: 10 * messages };
        let connection = |id, connected_s| Connection {
            kind: "subscriber".to_owned(),
            id,
            connected_s,
            messages,
            bytes: 10 * messages,
            dropped: Some(sum),
            ..Connection::default()
        };
        Stats {
            uptime_s,
            received: sum,
            connections: vec![connection(1, uptime_s)],
            topics: vec![TopicStats { name: "a".into(), messages, bytes: messages }],
            topics_watched_s: uptime_s,
            ..Stats::default()
        }
    }

    #[test]
    fn rates_are_those_since_the_last_look() {
        let second = Duration::from_secs(1);
        let first = rates(stats(10.0, 100), None);
        assert!(first.connections.is_empty() && first.received == 0.0);
        let next = rates(stats(11.0, 150), Some((second, stats(10.0, 100))));
        assert_eq!(
            (next.received, next.connections[0].rate, next.connections[0].drop_rate),
            (50.0, 50.0, 50.0)
        );
        assert_eq!((next.topics[0].rate, next.topics[0].byte_rate), (50.0, 50.0));
        // The proxy had discarded the counts of topics in the meantime.
        let anew = Stats { topics_watched_s: 0.5, ..stats(20.0, 30) };
        let anew = rates(anew, Some((second, stats(10.0, 100))));
        assert_eq!((&*anew.topics[0].name, anew.topics[0].rate), ("a", 30.0));
        // A topic that was there all the time and is listed for the first time.
        let before = Stats { topics: Vec::new(), topics_left_out: 1, ..stats(10.0, 100) };
        let listed = rates(stats(11.0, 110), Some((second, before)));
        assert_eq!((listed.topics[0].rate, listed.topics[0].byte_rate), (10.0, 10.0), "the mean of 11 s");
        // A connection that existed all the time and is listed for the first time.
        let mut before = stats(10.0, 100);
        before.connections.clear();
        let shown = rates(stats(11.0, 150), Some((second, before)));
        assert_eq!((shown.connections[0].connection.id, shown.connections[0].rate), (1, 0.0));
    }
}
