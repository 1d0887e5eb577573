//! `xmsg pub`: publishes data from an argument, a file or standard input.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use xmsg_core::{Connection, Delivery, ErrorKind, ProxyAddress, Topic, Unfinished};

use crate::args::{ConnectOptions, TopicOptions, parse_count_from_1, parse_duration, parse_rate};
use crate::exit::Exit;
use crate::message_builder::{DataOptions, InputOptions, MessageBuilder};
use crate::output::{counted, grouped, note, note_connection, notes_are_seen, per_second, warn, with_notes};
use crate::pace::Pace;
use crate::render::topic_text;
use crate::rights;
use crate::signals::Interrupt;
use crate::source::{Source, Split};
use crate::subscriber_watch::SubscriberWatch;

/// The number of messages that are published before other tasks get their turn and signals are checked.
const YIELD_AFTER: u64 = 256;
/// The time after which a run shows a progress bar.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
/// How often the proxy is asked to confirm what was published.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
/// How long sending the rest may take before a note about it is written.
const NOTE_AFTER_LINGER: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  xmsg pub report:sports '3:1'                       one message
  xmsg pub report:log -l < app.log                   each line is a message
  xmsg pub report:log -l --keep-newline < app.log    `xmsg sub --raw` writes the same file
  tail -f app.log | xmsg pub report:log -l           the same, as lines come
  xmsg pub camera:front -f front.png --mime image/png
  xmsg pub daq:temperature 21.5 --mime binary/double
  xmsg pub --topic-hex 7472610100 alarm              a topic that is not text
  xmsg pub test '{{Count}} at {{Time}}' --template --count 100 --rate 10
  xmsg pub report:sports '3:1' --meta author=me --meta status=warning";

/// Publish messages
///
/// Data is published byte for byte as it is given, as `binary/bytes`. A file, or all of standard input, is
/// one message. With -l, each line is a message, without its newline; with -l --keep-newline, the newline is
/// part of it, so that `xmsg sub --raw` writes exactly the same file again.
///
/// With --mime and one of xMsg's own types of values (text/string, binary/sint32, binary/sint64,
/// binary/sfixed32, binary/sfixed64, binary/float, binary/double, and binary/array-... of them), give the
/// value as text: a number, a text, or numbers separated by commas; for binary/array-string a JSON array. It
/// is encoded so that actors in all languages can read it. With any other mime type, and with --hex or
/// --base64, the bytes are sent as they are.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag on the command line")]
pub(crate) struct Arguments {
    /// Topic: domain[:subject[:type...]]
    topic: String,

    #[command(flatten)]
    topics: TopicOptions,

    #[command(flatten)]
    input: InputOptions,

    /// Each line is a message. Its newline is not part of it; a carriage return is
    #[arg(short, long)]
    lines: bool,

    /// With -l: the newline at the end of each line is part of the message (but never part of a value of
    /// --mime)
    #[arg(long, requires = "lines")]
    keep_newline: bool,

    /// What -l does anyway
    // The option is kept for scripts from the time when it was not the default.
    #[arg(long, requires = "lines", conflicts_with = "keep_newline", hide = true)]
    chomp: bool,

    /// Messages are separated by NUL bytes, which are not part of them
    #[arg(short = '0', long, conflicts_with = "lines")]
    null: bool,

    #[command(flatten)]
    data: DataOptions,

    /// Publish the message this many times
    #[arg(short = 'n', long, value_name = "COUNT", conflicts_with_all = ["lines", "null"], value_parser = parse_count_from_1)]
    count: Option<u64>,

    /// Messages per second at most, evenly spaced
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<f64>,

    /// Wait until somebody has subscribed to the topic
    #[arg(long)]
    wait_sub: bool,

    /// How long to keep sending at the end, if the proxy is slow or away
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    linger: Duration,

    /// After a lost connection, send again what the proxy has not confirmed, with the header `repeated`
    #[arg(long)]
    at_least_once: bool,

    #[command(flatten)]
    connect: ConnectOptions,
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let topic = &arguments.topics.to_publish(&arguments.topic)?;
    let mut job = Job::new(&arguments, topic)?;
    let proxy = &arguments.connect.proxy()?;
    let mut options = arguments.connect.options()?;
    if arguments.at_least_once {
        options = options.delivery(Delivery::AtLeastOnce);
    }
    let connection = Connection::with_options(proxy.clone(), options)?;

    let publishing = async {
        connection.connect().await?;
        let events = connection.events();
        let publishing = async {
            if arguments.wait_sub {
                if verbose {
                    note(format_args!("waiting for a subscriber of {}", topic_text(topic)));
                }
                connection.wait_for_subscriber(topic).await?;
            }
            job.publish(&connection).await
        };
        // Messages are confirmed regularly, so that only a few are in doubt if the connection breaks.
        let noting =
            async { tokio::join!(note_connection(events, proxy), confirm_now_and_then(&connection)).0 };
        // Rights are checked during publishing: a long run without rights ends soon, and a short one is not
        // delayed.
        let allowed = rights::may_publish(&arguments.connect, topic);
        tokio::try_join!(with_notes(publishing, noting), allowed).map(|(done, ())| done)
    };
    let result = tokio::select! {
        result = publishing => result.map(|()| Exit::Done),
        exit = interrupt.wait() => Ok(exit),
    };
    job.progress.clear();
    let found_no_subscriber = job.subscriber_watch.found_no_subscriber(&connection).await;

    // Accepted messages are sent, also after an error or an interrupt. A second interrupt ends that, too.
    let is_interrupted = matches!(&result, Ok(exit) if exit.is_interrupted());
    let Some(left) = end(&connection, proxy, arguments.linger, is_interrupted, &mut interrupt).await else {
        return Ok(interrupt.exit());
    };
    let exit = result?;
    if let Some(words) = not_arrived(job.sent, &left, proxy, arguments.linger) {
        // A user who interrupts the command wants it to end, and is told what is missing.
        if !exit.is_interrupted() {
            bail!(words);
        }
        warn(words);
    }
    let lost = job.refused + connection.dropped();
    if lost > 0 && exit == Exit::Done {
        bail!(
            "{} refused",
            if lost == 1 { "1 message was".to_owned() } else { format!("{} messages were", grouped(lost)) }
        );
    }
    if found_no_subscriber {
        job.subscriber_watch.report(job.sent, proxy);
    }
    if verbose {
        let messages = counted(job.sent, "message");
        let (bytes, topic) = (counted(job.bytes, "byte"), topic_text(topic));
        note(format_args!("published {messages} ({bytes}) to {topic}"));
    }
    Ok(exit)
}

/// Sends accepted messages and has them confirmed. Returns `None` after an interrupt, or after a second one
/// if the first one caused the end; the rest is then abandoned.
pub(super) async fn end(
    connection: &Connection,
    proxy: &ProxyAddress,
    linger: Duration,
    is_interrupted: bool,
    interrupt: &mut Interrupt,
) -> Option<Unfinished> {
    let says_so = async {
        tokio::time::sleep(NOTE_AFTER_LINGER).await;
        let waiting = counted(connection.unconfirmed(), "message");
        let linger = linger.as_secs_f64();
        let waiting = format!("waiting up to {linger} s for {proxy} to take {waiting}");
        if is_interrupted {
            note(format_args!("interrupted: {waiting}; interrupt again to end at once"));
        } else {
            note(format_args!("{waiting}; interrupt to end at once"));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        left = connection.close(linger) => Some(left),
        () = says_so => unreachable!("it never ends"),
        _ = interrupt.wait() => {
            warn(format_args!("interrupted: {} not sent", counted(connection.queued().messages, "message")));
            None
        }
    }
}

/// Returns a text about messages that may not have arrived, if there are any.
pub(super) fn not_arrived(
    sent: u64,
    left: &Unfinished,
    proxy: &ProxyAddress,
    linger: Duration,
) -> Option<String> {
    let published = counted(sent, "message");
    if left.unsent > 0 {
        return Some(format!(
            "{} of {published} could not be sent to {proxy} within {} s: see whether the proxy runs, or give it more time \
             with --linger",
            left.unsent,
            linger.as_secs_f64(),
        ));
    }
    (left.unconfirmed > 0).then(|| {
        format!(
            "up to {} of {published} may be lost: {proxy} did not confirm them, or the connection broke before it did",
            left.unconfirmed
        )
    })
}

/// Has the proxy confirm published messages once a second. It never returns.
pub(super) async fn confirm_now_and_then(connection: &Connection) {
    loop {
        tokio::time::sleep(CONFIRM_INTERVAL).await;
        // Messages that were not confirmed stay counted, and are reported at the end.
        let _ = connection.flush(Duration::MAX).await;
    }
}

/// What is to be published, and the progress so far.
#[derive(Debug)]
struct Job {
    source: Source,
    builder: MessageBuilder,
    count: u64,
    pace: Option<Pace>,
    progress: Progress,
    sent: u64,
    bytes: u64,
    /// The number of messages that were too large.
    refused: u64,
    subscriber_watch: SubscriberWatch,
    /// The name of the unit of input, and the topic, for errors about a message.
    unit: &'static str,
    topic: Topic,
}

impl Job {
    fn new(arguments: &Arguments, topic: &Topic) -> anyhow::Result<Self> {
        let builder = arguments.data.builder(topic)?;
        let split = match (arguments.lines, arguments.null) {
            (true, _) => Split::Lines { chomp: !arguments.keep_newline || builder.is_typed() },
            (_, true) => Split::Null,
            _ => Split::Whole,
        };
        let input = &arguments.input;
        let source = builder.source(input.data.as_deref(), input.file.as_deref(), split)?;
        Ok(Self {
            source,
            builder,
            count: arguments.count.unwrap_or(1),
            pace: None,
            progress: Progress::new(arguments),
            sent: 0,
            bytes: 0,
            refused: 0,
            subscriber_watch: SubscriberWatch::new(notes_are_seen()),
            unit: if arguments.lines { "line" } else { "message" },
            topic: topic.clone(),
        }
        .paced(arguments.rate))
    }

    fn paced(self, rate: Option<f64>) -> Self {
        Self { pace: rate.map(Pace::new), ..self }
    }

    async fn publish(&mut self, connection: &Connection) -> anyhow::Result<()> {
        loop {
            let mut prepared = match self.source.next().await {
                Ok(None) => return Ok(()),
                Ok(Some(data)) => match self.builder.prepare(data) {
                    Ok(prepared) => prepared,
                    Err(error) => {
                        self.refuse(error.context(format!("message {}", self.number())))?;
                        continue;
                    }
                },
                Err(error) => {
                    self.refuse(error)?;
                    continue;
                }
            };
            for _ in 0..self.count {
                if let Some(pace) = &mut self.pace {
                    pace.wait().await;
                }
                let message = match prepared.message(&self.builder, self.number()) {
                    Ok(message) => message,
                    Err(error) => {
                        self.refuse(error)?;
                        break;
                    }
                };
                let len = message.data().len() as u64;
                self.subscriber_watch.check(connection, &self.topic);
                if let Err(error) = connection.publish(message).await {
                    self.refuse(error.into())?;
                    break;
                }
                self.bytes += len;
                self.sent += 1;
                self.subscriber_watch.check(connection, &self.topic);
                self.progress.update(self.sent, self.bytes);
                if self.sent.is_multiple_of(YIELD_AFTER) {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Returns the number of the next message, starting at 1.
    fn number(&self) -> u64 {
        1 + self.refused + self.sent
    }

    /// Reports a message that is too large, and continues with the others. Any other error ends the run.
    fn refuse(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        let kind = error.downcast_ref::<xmsg_core::Error>().map(xmsg_core::Error::kind);
        if kind != Some(ErrorKind::TooLarge) {
            return Err(error);
        }
        let (number, topic) = (self.number(), topic_text(&self.topic));
        warn(format_args!("{} {number} was not published to {topic}: {error:#}", self.unit));
        self.refused += 1;
        Ok(())
    }
}

/// A progress bar on a terminal, which appears only in a long run.
#[derive(Debug)]
struct Progress {
    started: Instant,
    wanted: bool,
    /// Whether to read the clock for each message. Otherwise it is read only now and then.
    slow: bool,
    total: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(arguments: &Arguments) -> Self {
        Self {
            started: Instant::now(),
            // Without a bar, the terminal is free for a user who types the messages.
            wanted: io::stderr().is_terminal()
                && (arguments.input.data.is_some()
                    || arguments.input.file.is_some()
                    || !io::stdin().is_terminal()),
            slow: arguments.rate.is_some_and(|rate| rate < 1000.0),
            total: arguments.count,
            bar: None,
        }
    }

    fn update(&mut self, sent: u64, bytes: u64) {
        if !self.wanted || !self.slow && !sent.is_multiple_of(YIELD_AFTER) {
            return;
        }
        if self.bar.is_none() && self.started.elapsed() >= PROGRESS_AFTER {
            self.bar = Some(self.start());
        }
        if let Some(bar) = &self.bar {
            // The rate is that of the whole run; the bar itself knows only the time since it appeared.
            let rate = grouped(per_second(sent, self.started.elapsed()));
            bar.set_message(format!("{rate} messages/s, {:.1} MB", bytes as f64 / 1e6));
            bar.set_position(sent);
        }
    }

    fn start(&self) -> ProgressBar {
        let target = ProgressDrawTarget::stderr_with_hz(8);
        let bar = ProgressBar::with_draw_target(self.total, target).with_elapsed(self.started.elapsed());
        let template = if self.total.is_some() {
            "{bar:30} {human_pos} of {human_len}, {msg}"
        } else {
            "{elapsed} {human_pos} messages, {msg}"
        };
        // An invalid template must not prevent publishing.
        bar.with_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        )
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
