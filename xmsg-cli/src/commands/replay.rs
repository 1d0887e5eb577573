//! `xmsg replay`: publishes what `xmsg record` has recorded.

// Longer than 500 lines: one command. A quarter of it is its options with their help.

mod plain_publisher;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use xmsg_core::control::CONTROL_TOPIC;
use xmsg_core::{Connection, ErrorKind, Message, Topic};
use xmsg_zmq::Multipart;
use xmsg_zmq::deadline::Deadline;

use self::plain_publisher::PlainPublisher;
use super::publish::{confirm_now_and_then, end, not_arrived};
use super::record::{gap_words, incomplete_end, open, show_progress, time_text};
use crate::args::{ConnectOptions, TopicOptions, parse_count_from_1, parse_duration, parse_rate};
use crate::exit::{Exit, Usage};
use crate::output::{
    Output, counted, grouped, note, note_connection, notes_are_seen, per_second, warn, with_notes,
};
use crate::pace::Pace;
use crate::recording::block::Record;
use crate::recording::index::TOPICS_MAX;
use crate::recording::reader::End;
use crate::render::topic_text;
use crate::rights;
use crate::signals::Interrupt;
use crate::subscriber_watch::SubscriberWatch;

/// The number of messages that are published before other tasks get their turn.
const YIELD_AFTER: u64 = 256;
/// The number of lists of records that are read ahead. At this number, the reader waits.
const LISTS: usize = 8;
/// The largest number of records of one list, and of the bytes that they keep.
const LIST_RECORDS: usize = 256;
const LIST_BYTES: u64 = 256 << 10;
/// The delay behind the schedule above which a note is written.
const LAG_NOTED: Duration = Duration::from_millis(100);
/// The bytes of messages that are read in advance to find their topics.
const SCANNED_MAX: u64 = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  xmsg replay run7.xmr                               as it was recorded
  xmsg replay run7.xmr --speed 10                    ten times as fast
  xmsg replay run7.xmr --speed max                   as fast as it goes
  xmsg replay run7.xmr --rate 1000 --loop            1000 messages a second, again and again
  xmsg replay run7.xmr --from 10s --to 1m            a part of it
  xmsg replay run7.xmr --topic daq: --rename daq:=test:daq:
  xmsg replay day.*.xmr                              several files, one after another
  xmsg replay run7.xmr --speed max --json | jq .messages";

/// Publish a recording
///
/// Messages are published byte for byte as they were recorded, in the same order and with the same time
/// between them. The time of each is counted from the first message, so that delays do not add up. Messages
/// of plain ZeroMQ publishers, which have no metadata, are sent over a second connection, again without
/// metadata.
///
/// If a topic may not be published, the command ends with exit code 4 before it publishes anything. It takes
/// the topics from the index of the recording, or, without index or for a part of a recording, from its first
/// 64 MiB.
///
/// Damaged parts of a file are skipped and reported, and the exit code is 1. A file that is cut off is
/// published up to there.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The recording; several files are published one after another
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// How many times as fast as it was recorded, such as 10 or 0.5; `max`: without pauses
    #[arg(long, value_name = "FACTOR", default_value = "1", conflicts_with = "rate")]
    speed: Speed,

    /// Messages per second, evenly spaced, instead of the times of the recording
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<f64>,

    /// Repeat, COUNT times in all or until Ctrl-C
    #[arg(
        long = "loop",
        value_name = "COUNT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "18446744073709551615",
        value_parser = parse_count_from_1
    )]
    passes: Option<u64>,

    /// Begin at this time: either the time since the recording began, such as 10s, or a date and time, such
    /// as 2026-03-01T12:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<Position>,

    /// End before this time, given in the same way
    #[arg(long, value_name = "TIME")]
    to: Option<Position>,

    /// Only messages whose topic starts with this, byte by byte. May be given several times
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,

    #[command(flatten)]
    topic: TopicOptions,

    /// Replace OLD at the start of topics by NEW. May be given several times; the first one that matches is
    /// used. With --topic-hex, both are hexadecimal digits
    #[arg(long = "rename", value_name = "OLD=NEW")]
    renames: Vec<String>,

    /// Wait until somebody has subscribed to the topic of the first message
    #[arg(long)]
    wait_sub: bool,

    /// How long to keep sending at the end, if the proxy is slow or away
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    linger: Duration,

    /// Write the totals at the end as one object of JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connect: ConnectOptions,
}

/// The speed of a replay.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Speed {
    Factor(f64),
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "max" => Ok(Self::Max),
            Ok(factor) if (1e-6..=1e9).contains(&factor) => Ok(Self::Factor(factor)),
            _ => Err("not a speed: expected a factor above 0, such as 10 or 0.5, or `max`".to_owned()),
        }
    }
}

/// A position in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// A time since the beginning of the recording.
    After(Duration),
    At(Timestamp),
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = parse_duration(text) {
            return Ok(Self::After(time));
        }
        text.parse().map(Self::At).map_err(|_| {
            "neither a time since the beginning, such as 10s or 2m, nor a date and time with its zone, such as \
             2026-03-01T12:00:00Z or 2026-03-01T13:00:00+01:00"
                .to_owned()
        })
    }
}

impl Position {
    fn ns(self, start_ns: u64) -> u64 {
        match self {
            Self::After(time) => start_ns.saturating_add(time.as_nanos().try_into().unwrap_or(u64::MAX)),
            // A time before 1970 means the beginning.
            Self::At(time) => time.as_nanosecond().try_into().unwrap_or(0),
        }
    }
}

/// A replacement for the beginning of topics.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rename {
    old: Bytes,
    new: Bytes,
}

impl Rename {
    fn read(topics: TopicOptions, text: &str) -> Result<Self, Usage> {
        let (old, new) = text.split_once('=').ok_or_else(|| {
            let example = if topics.is_text() { "daq:=test:daq:" } else { "646171=74657374" };
            Usage(format!(
                "invalid value '{text}' for '--rename <OLD=NEW>': expected OLD=NEW, such as {example}"
            ))
        })?;
        Ok(Self { old: topics.beginning(old)?, new: topics.beginning(new)? })
    }

    fn of(&self, topic: &[u8]) -> Option<Bytes> {
        let rest = topic.strip_prefix(&self.old[..])?;
        Some([&self.new[..], rest].concat().into())
    }
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let selection = tokio::task::block_in_place(|| Selection::new(&arguments))?;
    let proxy = &arguments.connect.proxy()?;
    let connection = arguments.connect.connection()?;
    let mut replay = Replay::new(&arguments, verbose);
    let counts = replay.counts.clone();

    let publishing = async {
        connection.connect().await?;
        if rights::are_given()? {
            let topics = tokio::task::block_in_place(|| selection.topics())?;
            rights::may_publish_all(&arguments.connect, &topics).await?;
        }
        let events = connection.events();
        let (list, lists) = mpsc::channel(LISTS);
        let passes = arguments.passes.unwrap_or(1);
        let reading = tokio::task::spawn_blocking(move || selection.read(passes, &list));
        let noting =
            async { tokio::join!(note_connection(events, proxy), confirm_now_and_then(&connection)).0 };
        with_notes(replay.publish(&connection, lists, reading), noting).await
    };
    let started = Instant::now();
    let result = tokio::select! {
        result = publishing => result.map(|report| (Exit::Done, report)),
        exit = interrupt.wait() => Ok((exit, Report::default())),
        () = show_progress(|| {
            let sent = counts.sent.load(Ordering::Relaxed);
            let rate = grouped(per_second(sent, started.elapsed()));
            format!("{} messages, {rate}/s", grouped(sent))
        }) => unreachable!("it never ends"),
    };
    let seconds = started.elapsed().as_secs_f64();
    let found_no_subscriber = replay.subscriber_watch.found_no_subscriber(&connection).await;
    let is_interrupted = matches!(&result, Ok((exit, _)) if exit.is_interrupted());
    let closing = replay.plain.take().map(|plain| tokio::spawn(plain.close(arguments.linger)));
    let Some(mut left) = end(&connection, proxy, arguments.linger, is_interrupted, &mut interrupt).await
    else {
        return Ok(interrupt.exit());
    };
    if let Some(closing) = closing {
        tokio::select! {
            unconfirmed = closing => left.unconfirmed += unconfirmed.context("a connection could not be closed")?,
            exit = interrupt.wait() => return Ok(exit),
        }
    }
    let (exit, report) = result?;
    for words in &report.notes {
        warn(words);
    }
    let (sent, bytes) = (counts.sent.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed));
    let refused = replay.refused + connection.dropped();
    if arguments.json {
        // Fields may be added but are never renamed; docs/recording.md lists them.
        let document = json!({
            "messages": sent,
            "bytes": bytes,
            "seconds": seconds,
            "behind_seconds": replay.lag.as_secs_f64(),
            "refused_messages": refused,
            "unsent_messages": left.unsent,
            "unconfirmed_messages": left.unconfirmed,
            "control_requests_left_out": report.control,
            "nobody_subscribed": found_no_subscriber,
            "damaged": report.is_damaged,
            "interrupted": exit.is_interrupted(),
        });
        let mut output = Output::stdout()?;
        output.json(&document)?;
        output.flush()?;
    }
    if let Some(words) = not_arrived(sent, &left, proxy, arguments.linger) {
        // A user who interrupts the command wants it to end, and is told what is missing.
        if !exit.is_interrupted() {
            bail!(words);
        }
        warn(words);
    }
    if replay.lag > LAG_NOTED {
        note(format_args!(
            "up to {:.1} s behind the schedule: it did not go faster",
            replay.lag.as_secs_f64()
        ));
    }
    if found_no_subscriber && notes_are_seen() {
        replay.subscriber_watch.report(sent, proxy);
    }
    if verbose {
        let nobody = if found_no_subscriber { "; nobody subscribed to them" } else { "" };
        let (messages, bytes) = (counted(sent, "message"), counted(bytes, "byte"));
        note(format_args!("published {messages} ({bytes}){nobody}"));
    }
    if exit == Exit::Done && refused > 0 {
        let were = if refused == 1 { "was" } else { "were" };
        bail!("{} {were} refused", counted(refused, "message"));
    }
    if exit == Exit::Done && report.is_damaged {
        bail!("messages are missing, because a recording is damaged");
    }
    Ok(exit)
}

/// The part of the files that is to be published.
#[derive(Debug)]
struct Selection {
    files: Vec<PathBuf>,
    from_ns: u64,
    to_ns: u64,
    topics: Vec<Topic>,
    renames: Vec<Rename>,
}

/// What was wrong with the files.
#[derive(Debug, Default)]
struct Report {
    notes: Vec<String>,
    /// Whether messages are missing in a file, or it could not be read to its end.
    is_damaged: bool,
    control: u64,
}

/// An item that was read ahead.
#[derive(Debug)]
enum List {
    Records(Vec<Record>),
    /// The recording starts again.
    Anew,
}

impl Selection {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let topics = arguments.topic.to_subscribe(&arguments.topics)?;
        let renames = arguments.renames.iter().map(|text| Rename::read(arguments.topic, text));
        let renames = renames.collect::<Result<_, _>>()?;
        let mut start_ns = None;
        for file in &arguments.files {
            // All files are opened now, so that a missing one is reported before anything is published.
            let begun = open(file)?.header().start_ns;
            start_ns.get_or_insert(begun);
        }
        let start_ns = start_ns.unwrap_or_default();
        let from_ns = arguments.from.map_or(0, |place| place.ns(start_ns));
        let to_ns = arguments.to.map_or(u64::MAX, |place| place.ns(start_ns));
        if from_ns >= to_ns {
            let (from, to) = (time_text(from_ns), time_text(to_ns));
            return Err(Usage(format!("nothing lies between --from ({from}) and --to ({to})")).into());
        }
        Ok(Self { files: arguments.files.clone(), from_ns, to_ns, topics, renames })
    }

    /// Reads what is to be published, `passes` times. It also ends when the receiver is dropped.
    fn read(&self, passes: u64, out: &mpsc::Sender<List>) -> anyhow::Result<Report> {
        let mut report = Report::default();
        for pass in 0..passes {
            if pass > 0 && out.blocking_send(List::Anew).is_err() {
                break;
            }
            let mut found = 0;
            for file in &self.files {
                let first_report = if pass == 0 { Some(&mut report) } else { None };
                let Some(records) = self.read_file(file, first_report, out)? else { return Ok(report) };
                found += records;
            }
            if found == 0 {
                break;
            }
        }
        if report.control > 0 {
            let requests = counted(report.control, "control request");
            report.notes.push(format!("{requests} left out: they are for the proxy that they were sent to"));
        }
        Ok(report)
    }

    /// Returns the number of records that were found; `None` when the receiver was dropped.
    fn read_file(
        &self,
        path: &Path,
        mut report: Option<&mut Report>,
        out: &mpsc::Sender<List>,
    ) -> anyhow::Result<Option<u64>> {
        let cannot_read = || format!("cannot read {}", path.display());
        let mut reader = open(path)?;
        if self.from_ns > 0
            && let Some(index) = reader.index().with_context(cannot_read)?
        {
            reader.seek(&index, self.from_ns).with_context(cannot_read)?;
        }
        let (mut list, mut bytes, mut found) = (Vec::new(), 0, 0);
        while let Some(mut record) = reader.next().with_context(cannot_read)? {
            if record.time_ns >= self.to_ns {
                break;
            }
            let topic = record.topic();
            if record.time_ns < self.from_ns || !self.is_wanted(topic) {
                continue;
            }
            if let Some(topic) = self.renamed(topic) {
                record.frames[0] = topic;
            }
            if record.topic().starts_with(CONTROL_TOPIC.as_bytes()) {
                if let Some(report) = &mut report {
                    report.control += 1;
                }
                continue;
            }
            found += 1;
            bytes += record.memory();
            list.push(record);
            if list.len() >= LIST_RECORDS || bytes >= LIST_BYTES {
                if out.blocking_send(List::Records(std::mem::take(&mut list))).is_err() {
                    return Ok(None);
                }
                bytes = 0;
            }
        }
        if !list.is_empty() && out.blocking_send(List::Records(list)).is_err() {
            return Ok(None);
        }
        if let Some(report) = report {
            let file = path.display();
            let (gaps, count) = reader.gaps();
            let end = reader.end();
            report.is_damaged |= count > 0 || matches!(end, Some(End::Unreadable { .. }));
            if let Some(words) = gap_words(gaps, count) {
                report.notes.push(format!("{file}: {words}"));
            }
            if let Some(words) = incomplete_end(end, reader.len()) {
                report.notes.push(format!("{file}: {words}"));
            }
        }
        Ok(Some(found))
    }

    /// Returns the topics that will be published to, as far as they can be found without reading too much.
    fn topics(&self) -> anyhow::Result<BTreeSet<Bytes>> {
        let mut topics = BTreeSet::new();
        let mut take = |topic: &[u8]| {
            if self.is_wanted(topic) {
                let topic = self.renamed(topic).unwrap_or_else(|| Bytes::copy_from_slice(topic));
                if !topic.starts_with(CONTROL_TOPIC.as_bytes()) {
                    topics.insert(topic);
                }
            }
            topics.len()
        };
        let mut scanned = 0;
        for path in &self.files {
            let cannot_read = || format!("cannot read {}", path.display());
            let mut reader = open(path)?;
            if let Some(index) = reader.index().with_context(cannot_read)? {
                if self.from_ns == 0 && self.to_ns == u64::MAX {
                    for topic in index.topics.keys() {
                        take(topic);
                    }
                    continue;
                }
                // The index does not say which topics a part of the recording has.
                reader.seek(&index, self.from_ns).with_context(cannot_read)?;
            }
            while scanned < SCANNED_MAX
                && let Some(record) = reader.next().with_context(cannot_read)?
                && record.time_ns < self.to_ns
            {
                scanned += record.size();
                if record.time_ns >= self.from_ns && take(record.topic()) >= TOPICS_MAX {
                    return Ok(topics);
                }
            }
        }
        Ok(topics)
    }

    fn renamed(&self, topic: &[u8]) -> Option<Bytes> {
        self.renames.iter().find_map(|rename| rename.of(topic))
    }

    fn is_wanted(&self, topic: &[u8]) -> bool {
        self.topics.is_empty() || self.topics.iter().any(|wanted| topic.starts_with(wanted.as_bytes()))
    }
}

/// The progress of a replay.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    bytes: AtomicU64,
}

/// Publishes messages at their times.
#[derive(Debug)]
struct Replay<'a> {
    arguments: &'a Arguments,
    verbose: bool,
    pace: Option<Pace>,
    /// When the first message was published, and its time in the recording.
    schedule: Option<(Instant, u64)>,
    /// The longest delay of a message.
    lag: Duration,
    counts: std::sync::Arc<Counts>,
    /// The number of messages that were too large for this proxy.
    refused: u64,
    subscriber_watch: SubscriberWatch,
    plain: Option<PlainPublisher>,
}

impl<'a> Replay<'a> {
    fn new(arguments: &'a Arguments, verbose: bool) -> Self {
        Self {
            arguments,
            verbose,
            pace: None,
            schedule: None,
            lag: Duration::ZERO,
            counts: std::sync::Arc::default(),
            refused: 0,
            subscriber_watch: SubscriberWatch::new(notes_are_seen() || verbose || arguments.json),
            plain: None,
        }
    }

    async fn publish(
        &mut self,
        connection: &Connection,
        mut lists: mpsc::Receiver<List>,
        reading: JoinHandle<anyhow::Result<Report>>,
    ) -> anyhow::Result<Report> {
        let mut is_first = true;
        while let Some(list) = lists.recv().await {
            let records = match list {
                List::Records(records) => records,
                List::Anew => {
                    self.schedule = None;
                    continue;
                }
            };
            for record in records {
                if std::mem::take(&mut is_first) && self.arguments.wait_sub {
                    let topic = Topic::wrap(record.topic().to_vec());
                    if self.verbose {
                        note(format_args!("waiting for a subscriber of {}", topic_text(&topic)));
                    }
                    connection.wait_for_subscriber(&topic).await?;
                }
                self.wait(record.time_ns).await;
                self.send(connection, record).await?;
            }
        }
        reading.await.context("the thread that reads has ended")?
    }

    /// Waits until a message that was recorded at this time is due.
    async fn wait(&mut self, time_ns: u64) {
        if let Some(rate) = self.arguments.rate {
            return self.pace.get_or_insert_with(|| Pace::new(rate)).wait().await;
        }
        let Speed::Factor(factor) = self.arguments.speed else { return };
        let now = Instant::now();
        let (start, first_ns) = *self.schedule.get_or_insert((now, time_ns));
        let since = Duration::from_nanos(time_ns.saturating_sub(first_ns)).as_secs_f64() / factor;
        let since = Duration::try_from_secs_f64(since).unwrap_or(Duration::MAX);
        let due = Deadline::since(start, since).instant();
        if due > now {
            tokio::time::sleep_until(due).await;
        } else {
            self.lag = self.lag.max(now - due);
        }
    }

    async fn send(&mut self, connection: &Connection, record: Record) -> anyhow::Result<()> {
        let size = record.size();
        let message = Multipart::from(record.frames);
        let topic = Topic::wrap(message.frames().first().cloned().unwrap_or_default());
        self.subscriber_watch.check(connection, &topic);
        let result = if let [topic, meta, data] = message.frames() {
            connection.publish(&Message::from_frames(topic.clone(), meta.clone(), data.clone())).await
        } else {
            let plain = match &mut self.plain {
                Some(plain) => plain,
                plain => plain.insert(PlainPublisher::open(&self.arguments.connect).await?),
            };
            plain.publish(message.clone()).await
        };
        match result {
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                warn(format_args!("a message was not published to {}: {error:#}", topic_text(&topic)));
                self.refused += 1;
                return Ok(());
            }
            result => result?,
        }
        self.subscriber_watch.check(connection, &topic);
        self.counts.bytes.fetch_add(size, Ordering::Relaxed);
        if (1 + self.counts.sent.fetch_add(1, Ordering::Relaxed)).is_multiple_of(YIELD_AFTER) {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn topics(words: &[&str]) -> TopicOptions {
        let command = TopicOptions::augment_args(clap::Command::new("x").no_binary_name(true));
        TopicOptions::from_arg_matches(&command.get_matches_from(words)).unwrap()
    }

    #[test]
    fn speeds_places_and_renames_are_read() {
        assert_eq!("10".parse(), Ok(Speed::Factor(10.0)));
        assert_eq!("0.5".parse(), Ok(Speed::Factor(0.5)));
        assert_eq!("max".parse(), Ok(Speed::Max));
        for text in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(text.parse::<Speed>().is_err(), "{text}");
        }
        let at = |text: &str| text.parse::<Position>().map(|place| place.ns(1_000_000_000));
        assert_eq!(at("1.5s"), Ok(2_500_000_000));
        assert_eq!(at("1970-01-01T00:00:07Z"), Ok(7_000_000_000));
        assert_eq!(at("1970-01-01T01:00:07.5+01:00"), Ok(7_500_000_000));
        assert_eq!(at("1960-01-01T00:00:00Z"), Ok(0));
        for text in ["", "tomorrow", "2026-03-01", "2026-03-01T12:00:00"] {
            assert!(at(text).is_err(), "{text}");
        }
        let (text, hex) = (topics(&[]), topics(&["--topic-hex"]));
        let rename = Rename::read(text, "a:=b:c:").unwrap();
        assert_eq!(rename.of(b"a:x").as_deref(), Some(&b"b:c:x"[..]));
        assert_eq!(rename.of(b"ab:x"), None);
        let rename = Rename::read(hex, "ff 00=01").unwrap();
        assert_eq!(rename.of(b"\xff\0x").as_deref(), Some(&b"\x01x"[..]));
        assert!(Rename::read(text, "a").is_err());
        assert!(Rename::read(hex, "a=b").unwrap_err().to_string().contains("--topic-hex"));
    }
}
