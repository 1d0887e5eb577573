//! `xmsg record`: writes received messages to a file that `xmsg replay` publishes again. It also shows what
//! such a file contains.

// Longer than 500 lines: one command. A third of it is its options with their help.

use std::fs::File;
use std::io::{self, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde_json::json;
use xmsg_core::Topic;
use xmsg_core::control::CONTROL_TOPIC;
use xmsg_zmq::{DropReason, SocketEvent, SocketEvents};

use crate::args::{ConnectOptions, TopicOptions, parse_bytes, parse_count_from_1, parse_duration};
use crate::exit::Exit;
use crate::output::{Output, check_folder, counted, grouped, note, note_connection, per_second, warn};
use crate::patterns::note_patterns;
use crate::raw_subscription::RawSubscription;
use crate::recording::block::VERSION;
use crate::recording::index::Index;
use crate::recording::reader::{End, Gap, Reader};
use crate::recording::recorder::{Files, Outcome, Progress, RecordOptions, Recorded, Recorder};
use crate::render;
use crate::signals::Interrupt;

/// How often progress is shown. It appears after four times this interval.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// How long to wait at the end for the last report of dropped messages. The proxy sends such reports only at
/// intervals.
const LAST_WORD: Duration = Duration::from_millis(150);
/// The largest number of topics that `--info` lists: those with the most messages.
const TOPICS_SHOWN: usize = 1000;

const EXAMPLES: &str = "\
Examples:
  xmsg record night.xmr                              everything, until Ctrl-C
  xmsg record run7.xmr daq: slow-control             two branches of topics
  xmsg record run7.xmr daq: --zstd --timeout 10m     compressed, ten minutes
  xmsg record day.xmr --max-size 1GB --max-age 1h    day.00001.xmr, day.00002.xmr, ...
  xmsg record run8.xmr --topic-hex 747261            topics that are not text
  xmsg record --info run7.xmr                        what is in it
  xmsg record --info run7.xmr --json | jq .messages
  xmsg record run7.xmr daq: --timeout 1m --json | jq .dropped_messages
  xmsg replay run7.xmr --speed 10                    publish it again

Exit codes:
  0    COUNT or DURATION was reached, and the file is complete
  130  interrupted, and the file is complete
  1    messages are missing, because the proxy dropped them or the connection was lost; or the file
       could not be written. What was written before can be read";

/// Record messages into a file
///
/// Messages are recorded as they are on the wire (topic, metadata, data), with the time at which they
/// arrived. Topics work as for `xmsg sub`; without any, everything is recorded but control requests.
///
/// Messages are in the file 100 ms after they arrived: a recorder that is killed loses no more than that, and
/// the file can be read up to there. If the disk is too slow, nothing more is read from the proxy, and its
/// policy for slow subscribers decides what happens; what it drops is reported at the end.
///
/// The format of the file is described in docs/recording.md.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag on the command line")]
pub(crate) struct Arguments {
    /// The file to write. A file that exists is overwritten only with --force
    file: PathBuf,

    /// What the topics of messages start with [default: everything]
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,

    #[command(flatten)]
    topic: TopicOptions,

    /// End after this many messages
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = parse_count_from_1)]
    count: Option<u64>,

    /// End after this time in all, such as 500ms, 10s or 2m; exit code 27 if fewer than COUNT messages
    /// arrived
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// Once the recording ends: how long to wait while the disk takes nothing, such as 10s or 5m. Then what
    /// still waits to be written is lost, and the exit code is 1
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1m")]
    linger: Duration,

    /// Compress with zstd
    #[arg(long)]
    zstd: bool,

    /// Begin a new file before one gets larger than this, such as 100MB or 1GiB. FILE gets a number:
    /// day.00001.xmr
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_size: Option<u64>,

    /// Begin a new file when one is this old, such as 10m or 1h. FILE gets a number
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_age: Option<Duration>,

    /// Overwrite FILE if it exists; with --max-size or --max-age, first remove all of its numbered files
    #[arg(long)]
    force: bool,

    /// Record nothing, but show what is in FILE: messages, bytes, topics, times, and whether it is complete
    #[arg(long, conflicts_with_all = ["topics", "topic_hex", "count", "timeout", "zstd", "max_size", "max_age", "force", "linger"])]
    info: bool,

    /// With --info: read and check all of FILE, instead of trusting its index
    #[arg(long, requires = "info")]
    check: bool,

    /// Write the totals at the end, or with --info what is in FILE, as one object of JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connect: ConnectOptions,
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    if arguments.info {
        return tokio::task::block_in_place(|| info(&arguments));
    }
    let mut interrupt = Interrupt::new()?;
    let topics = arguments.topic.to_subscribe(&arguments.topics)?;
    let files = Files {
        path: arguments.file.clone(),
        force: arguments.force,
        max_size: arguments.max_size,
        max_age: arguments.max_age,
        is_compressed: arguments.zstd,
    };
    files.check()?;
    check_folder(&arguments.file)?;
    let proxy = arguments.connect.proxy()?;
    let topics = if topics.is_empty() { vec![Topic::everything()] } else { topics };
    if arguments.topic.is_text() {
        note_patterns(&topics);
    }
    let tap = tokio::select! {
        tap = RawSubscription::open(&arguments.connect, &topics) => tap?,
        exit = interrupt.wait() => return Ok(exit),
    };
    let notes = note_connection(tap.events(), &proxy);
    let mut losses = Losses::of(tap.events());
    let clock = Clock::start()?;
    let control = topics.iter().any(|topic| topic.as_bytes().starts_with(CONTROL_TOPIC.as_bytes()));
    let wanted = RecordOptions { count: arguments.count, control };
    let (recorder, mut outcome) = Recorder::start(files, clock.start_ns, wanted)?;
    let progress = recorder.progress();
    if verbose {
        let file = arguments.file.display();
        note(format_args!("recording {} at {proxy} to {file}", render::topics_text(&topics)));
    }

    let started = Instant::now();
    let mut feed = Feed { tap, recorder, clock };
    let timeout = async {
        match arguments.timeout {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    let late = if arguments.count.is_some() { Exit::TimedOut } else { Exit::Done };
    let exit = tokio::select! {
        // It ends when COUNT messages were recorded, or with an error of the thread that writes.
        result = &mut outcome => return print_result(result.context("the thread that writes has ended")??, &arguments, Exit::Done, losses).await,
        () = feed.run() => Exit::Done,
        exit = interrupt.wait() => exit,
        () = timeout => late,
        () = losses.watch() => unreachable!("it never ends"),
        () = notes => unreachable!("notes never end"),
        () = show_progress(|| {
            let count = progress.count();
            let rate = grouped(per_second(count.messages, started.elapsed()));
            format!("{} messages, {rate}/s, {:.1} MB", grouped(count.messages), count.bytes as f64 / 1e6)
        }) => unreachable!("it never ends"),
    };
    let written = tokio::select! {
        written = feed.end(&mut outcome) => written?,
        exit = interrupt.wait() => {
            warn("interrupted again: what waits to be written is lost");
            return Ok(exit);
        }
        () = no_progress(&progress, arguments.linger) => bail!(
            "{} has taken nothing for {:?} (--linger), and what waits to be written is lost. What was written \
             can be read, {} at most",
            arguments.file.display(),
            arguments.linger,
            counted(progress.count().messages, "message"),
        ),
    };
    let exit = match arguments.count {
        // The last message arrived together with the end of the time.
        Some(count) if written.total.messages == count && exit == Exit::TimedOut => Exit::Done,
        _ => exit,
    };
    print_result(written, &arguments, exit, losses).await
}

/// Waits until no message was written for this time.
async fn no_progress(progress: &Progress, time: Duration) {
    loop {
        let before = progress.count();
        tokio::time::sleep(time).await;
        if progress.count() == before {
            return;
        }
    }
}

/// Reports what was recorded and what is missing.
async fn print_result(
    recorded: Recorded,
    arguments: &Arguments,
    exit: Exit,
    mut losses: Losses,
) -> anyhow::Result<Exit> {
    let total = recorded.total;
    if !arguments.json {
        let files = match recorded.files {
            1 => recorded.last.display().to_string(),
            files => format!(
                "{} files, {} to {}",
                grouped(files.into()),
                recorded.first.display(),
                recorded.last.display()
            ),
        };
        note(format_args!(
            "recorded {} ({}) to {files}",
            counted(total.messages, "message"),
            counted(total.bytes, "byte")
        ));
    }
    if exit == Exit::TimedOut {
        let expected = counted(arguments.count.unwrap_or_default(), "message");
        warn(format_args!("timed out: {} of {expected} arrived", grouped(total.messages)));
    }
    losses.drain_notices().await;
    if arguments.json {
        // Fields may be added but are never renamed; docs/recording.md lists them.
        let document = json!({
            "messages": total.messages,
            "bytes": total.bytes,
            "files": recorded.files,
            "first_file": recorded.first.display().to_string(),
            "last_file": recorded.last.display().to_string(),
            "expected_messages": arguments.count,
            "dropped_messages": losses.slow,
            "too_large_messages": losses.large,
            "lost_connections": losses.gaps,
            "interrupted": exit.is_interrupted(),
        });
        let mut output = Output::stdout()?;
        output.json(&document)?;
        output.flush()?;
    }
    match losses.describe() {
        Some(words) => bail!(words),
        None => Ok(exit),
    }
}

/// Receives messages and hands them to the thread that writes.
#[derive(Debug)]
struct Feed {
    tap: RawSubscription,
    recorder: Recorder,
    clock: Clock,
}

impl Feed {
    /// Runs until the subscription ends. Dropping the future loses nothing.
    async fn run(&mut self) {
        while self.recorder.flush_batch().await {
            let Some(wire) = self.tap.next().await else { return };
            self.recorder.take(wire, self.clock.now_ns());
        }
        // The thread has ended, and its result says why.
        std::future::pending::<()>().await;
    }

    /// Writes what was received before this call.
    async fn end(mut self, outcome: &mut Outcome) -> anyhow::Result<Recorded> {
        let until = self.clock.now_ns();
        while self.recorder.flush_batch().await && self.clock.now_ns() < until.saturating_add(1_000_000_000) {
            let Poll::Ready(Some(wire)) = futures::poll!(std::pin::pin!(self.tap.next())) else { break };
            self.recorder.take(wire, self.clock.now_ns());
        }
        drop(self);
        outcome.await.context("the thread that writes has ended")?
    }
}

/// A clock that never goes back, even if the system clock is set in the meantime.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    start_ns: u64,
}

impl Clock {
    fn start() -> anyhow::Result<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let start_ns = since.ok().and_then(|since| u64::try_from(since.as_nanos()).ok());
        let start_ns = start_ns.context("the clock of this computer is wrong: it is before 1970")?;
        Ok(Self { start: Instant::now(), start_ns })
    }

    fn now_ns(self) -> u64 {
        self.start_ns.saturating_add(self.start.elapsed().as_nanos() as u64)
    }
}

/// What is missing in a recording, as far as it is known.
#[derive(Debug)]
struct Losses {
    events: SocketEvents,
    slow: u64,
    large: u64,
    gaps: u64,
}

impl Losses {
    fn of(events: SocketEvents) -> Self {
        Self { events, slow: 0, large: 0, gaps: 0 }
    }

    /// Counts losses. It never returns. Dropping the future loses nothing.
    async fn watch(&mut self) {
        while let Some(event) = self.events.next().await {
            self.take(&event);
        }
        std::future::pending::<()>().await;
    }

    async fn drain_notices(&mut self) {
        if self.slow + self.large > 0 {
            let _ = tokio::time::timeout(LAST_WORD, self.watch()).await;
        }
        loop {
            let Poll::Ready(Some(event)) = futures::poll!(std::pin::pin!(self.events.next())) else { return };
            self.take(&event);
        }
    }

    fn take(&mut self, event: &SocketEvent) {
        match event {
            // These counts are totals, because events may be missed.
            SocketEvent::DroppedByPeer { reason: DropReason::TooLarge, total, .. } => self.large = *total,
            SocketEvent::DroppedByPeer { total, .. } => self.slow = *total,
            SocketEvent::Disconnected { .. } => self.gaps += 1,
            _ => {}
        }
    }

    fn describe(&self) -> Option<String> {
        let mut words = Vec::new();
        for (count, why) in [
            (self.slow, "dropped by the proxy, because they were not taken in time"),
            (self.large, "dropped by the proxy, because they are above the limits here"),
        ] {
            if count > 0 {
                words.push(format!("{} {why}", counted(count, "message")));
            }
        }
        if self.gaps > 0 {
            let times = counted(self.gaps, "time");
            words.push(format!("what was published while the connection to the proxy was lost ({times})"));
        }
        (!words.is_empty()).then(|| format!("the recording is not complete. Missing: {}", words.join("; ")))
    }
}

/// Shows progress on a terminal, once the run turns out to be long. It never returns; dropping the future
/// clears the line.
pub(super) async fn show_progress(text: impl Fn() -> String) {
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    tokio::time::sleep(PROGRESS_INTERVAL * 4).await;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8))
        .with_elapsed(PROGRESS_INTERVAL * 4)
        .with_style(
            // An invalid template must not end the run.
            ProgressStyle::with_template("{elapsed} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        )
        .with_finish(indicatif::ProgressFinish::AndClear);
    loop {
        bar.set_message(text());
        bar.tick();
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

/// Opens a recording.
pub(super) fn open(path: &Path) -> anyhow::Result<Reader<File>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Reader::new(file).with_context(|| format!("cannot read {}", path.display()))
}

/// Formats a time as RFC 3339, in UTC.
pub(super) fn time_text(ns: u64) -> String {
    let time = i128::from(ns);
    Timestamp::from_nanosecond(time).map_or_else(|_| format!("{ns} ns"), |time| format!("{time:.6}"))
}

/// Returns a text about the end of a file that was read, if the file is not complete.
pub(super) fn incomplete_end(end: Option<End>, len: u64) -> Option<String> {
    match end? {
        End::Whole => None,
        End::WithoutIndex => {
            Some("it has no index, because its recorder was killed or is still at work; no message in it is damaged".to_owned())
        }
        End::Cut { at } => {
            let left = counted(len.saturating_sub(at), "byte");
            Some(format!("it is cut off: the last {left}, from byte {at} on, are the beginning of a block"))
        }
        End::Unreadable { at } => Some(format!("nothing could be read from byte {at} on: the file is damaged there")),
    }
}

/// Returns a text about damaged ranges, if there are any.
pub(super) fn gap_words(gaps: &[Gap], count: u64) -> Option<String> {
    let first = gaps.first()?;
    let places = counted(count, "damaged place");
    Some(format!("passed over {places}, the first one at byte {} ({})", first.at, counted(first.len, "byte")))
}

/// The result of `--info`.
#[derive(Debug)]
struct Info {
    index: Index,
    /// How the file ends; `None` if only its index was read.
    end: Option<End>,
    gaps: Vec<Gap>,
    gap_count: u64,
}

fn info(arguments: &Arguments) -> anyhow::Result<Exit> {
    let path = &arguments.file;
    let mut reader = open(path)?;
    let info =
        read_info(&mut reader, arguments.check).with_context(|| format!("cannot read {}", path.display()))?;
    let mut output = Output::stdout()?;
    let text = if arguments.json { json_text(path, &reader, &info) } else { info_text(path, &reader, &info) };
    output.buffer().extend_from_slice(text.as_bytes());
    output.flush()?;
    Ok(Exit::Done)
}

fn read_info(reader: &mut Reader<File>, check: bool) -> io::Result<Info> {
    let index = if check { None } else { reader.index()? };
    if let Some(index) = index {
        return Ok(Info { index, end: None, gaps: Vec::new(), gap_count: 0 });
    }
    let mut index = Index::default();
    while let Some(record) = reader.next()? {
        index.count(record.time_ns, record.topic(), record.size());
    }
    let (gaps, gap_count) = reader.gaps();
    Ok(Info { index, end: reader.end(), gaps: gaps.to_vec(), gap_count })
}

fn info_text(path: &Path, reader: &Reader<File>, info: &Info) -> String {
    let mut out = Vec::new();
    let header = reader.header();
    let index = &info.index;
    let mut row = |name: &str, value: String| {
        // Writing to memory cannot fail.
        let _ = writeln!(out, "{name:<9} {value}");
    };
    row("file", render::topic_text(&Topic::wrap(path.display().to_string())).into_owned());
    let compressed = if header.is_compressed { ", zstd" } else { "" };
    row("format", format!("version {VERSION}{compressed}, {}", counted(reader.len(), "byte")));
    if header.part > 0 {
        row("part", header.part.to_string());
    }
    row("begun", time_text(header.start_ns));
    if index.total.messages > 0 {
        row("first", time_text(index.first_ns));
        let span = Duration::from_nanos(index.last_ns.saturating_sub(index.first_ns));
        row("last", format!("{} ({:.3} s later)", time_text(index.last_ns), span.as_secs_f64()));
    }
    row("messages", grouped(index.total.messages));
    row("bytes", grouped(index.total.bytes));
    let mut states = Vec::from_iter(incomplete_end(info.end, reader.len()));
    states.extend(gap_words(&info.gaps, info.gap_count));
    row("state", if states.is_empty() { "whole".to_owned() } else { states.join("; ") });
    let mut topics = index.sorted();
    topics.sort_by_key(|(_, count)| std::cmp::Reverse(count.messages));
    let others = index.others.messages
        + topics.iter().skip(TOPICS_SHOWN).map(|(_, count)| count.messages).sum::<u64>();
    if !topics.is_empty() {
        let _ = writeln!(out, "\n{:>14} {:>18}  topic", "messages", "bytes");
    }
    for (name, count) in topics.iter().take(TOPICS_SHOWN) {
        let topic = Topic::wrap(name.to_vec());
        let name = render::topic_text(&topic);
        let _ = writeln!(out, "{:>14} {:>18}  {name}", grouped(count.messages), grouped(count.bytes));
    }
    if others > 0 {
        let _ = writeln!(out, "{:>14} {:>18}  all other topics", grouped(others), "");
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn json_text(path: &Path, reader: &Reader<File>, info: &Info) -> String {
    let (header, index) = (reader.header(), &info.index);
    let time = |ns: u64| (index.total.messages > 0).then(|| time_text(ns));
    let topics: Vec<_> = index
        .sorted()
        .into_iter()
        .map(|(name, count)| {
            let topic = String::from_utf8_lossy(name);
            let mut row = json!({ "topic": topic, "messages": count.messages, "bytes": count.bytes });
            if str::from_utf8(name).is_err() {
                row["topic_base64"] = BASE64.encode(name).into();
            }
            row
        })
        .collect();
    let (cut_at, unreadable_from) = match info.end {
        Some(End::Cut { at }) => (Some(at), None),
        Some(End::Unreadable { at }) => (None, Some(at)),
        _ => (None, None),
    };
    let gaps: Vec<_> = info.gaps.iter().map(|gap| json!({ "at": gap.at, "bytes": gap.len })).collect();
    let value = json!({
        "file": path.display().to_string(),
        "file_bytes": reader.len(),
        "version": VERSION,
        "zstd": header.is_compressed,
        "part": header.part,
        "begun": time_text(header.start_ns),
        "first": time(index.first_ns),
        "last": time(index.last_ns),
        "messages": index.total.messages,
        "bytes": index.total.bytes,
        "topics": topics,
        "other_topics": { "messages": index.others.messages, "bytes": index.others.bytes },
        "index": matches!(info.end, None | Some(End::Whole)),
        "cut_at": cut_at,
        "unreadable_from": unreadable_from,
        "damaged": gaps,
        "damaged_places": info.gap_count,
    });
    // Topics may contain characters that could harm a terminal, so they are escaped.
    format!("{}\n", xmsg_core::text::json_escaped(&value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_rfc_3339() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time_text(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123456Z");
        assert_eq!(time_text(u64::MAX), "2554-07-21T23:34:33.709551Z");
    }
}
