//! `xmsg sub`: writes what arrives.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::sync::watch;
use xmsg_core::{Message, Subscription};

use crate::args::{ConnectOptions, TopicOptions, parse_count_from_1, parse_duration};
use crate::exit::Exit;
use crate::output::{Output, counted, grouped, note, note_connection, reader_gone, warn};
use crate::patterns::note_patterns;
use crate::render;
use crate::report::Report;
use crate::rights;
use crate::signals::Interrupt;
use crate::style::{Style, StyleOptions};

/// Messages that are written before others get their turn.
const TURN: u64 = 256;
/// At the end, how long whoever reads our output may take for the rest.
const HASTY_LINGER: Duration = Duration::from_secs(1);
/// What control requests of the protocol start with.
const CONTROL: &[u8] = b"xmsg:control";

const EXAMPLES: &str = "\
Examples:
  xmsg sub report                                    topic and data, one message a line
  xmsg sub report:sports report:weather              several topics
  xmsg sub ''                                        everything
  xmsg sub report -n 1 --timeout 10s                 one message, or exit code 27
  xmsg sub report --json | jq .data
  xmsg sub report --format '%T %t %l bytes: %p\\n'
  xmsg sub report:log --raw > app.log                data and nothing else
  xmsg sub --topic-hex 747261 --json                 topics that are not text
  xmsg sub camera --dump pictures                    each message into a file
  xmsg sub '' --report                               rates
  xmsg sub '' --report --json                        rates of each topic, for a script";

/// Subscribe, and write what arrives to standard output
///
/// A message arrives when its topic starts with one of those given, byte by byte: `a:b` receives `a:b`, `a:b:c` and also
/// `a:bc`; `a:b:` receives only what is below `a:b`. There are no wildcards: where MQTT has `a/#` and NATS `a.>`, it is `a:`
/// here. The empty topic receives everything but control requests; to see those, subscribe to `xmsg:control`.
///
/// Messages of plain ZeroMQ publishers, topic and data in two frames, are shown, too.
///
/// Each message is written on one line: its topic, then its data: as text, as the value if it has one of xMsg's own types,
/// or, if it is binary, its length and first bytes. --raw writes the data byte for byte: after `xmsg pub -l --keep-newline <
/// FILE`, that is FILE again; --raw -l writes a newline after each message.
///
/// Ends after COUNT messages, after DURATION, when nobody reads the output any more, or with Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// What topics of messages start with; '' is everything
    #[arg(value_name = "TOPIC", required = true)]
    topics: Vec<String>,

    #[command(flatten)]
    topic: TopicOptions,

    /// End after this many messages
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = parse_count_from_1)]
    count: Option<u64>,

    /// End after this time in all, such as 500ms, 10s or 2m; exit code 27 if fewer than COUNT messages arrived
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    style: StyleOptions,

    /// Write the data of each message into a file of its own in this directory: 00000001, 00000002, ...
    #[arg(long, value_name = "DIR", group = "how")]
    dump: Option<PathBuf>,

    /// Write how many messages and bytes arrive, once a second, instead of the messages: for all topics and for the
    /// busiest ones; with --json an object for each topic
    #[arg(long, conflicts_with_all = ["format", "raw", "dump"])]
    report: bool,

    #[command(flatten)]
    connect: ConnectOptions,
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let topics = arguments.topic.to_subscribe(&arguments.topics)?;
    let proxy = arguments.connect.proxy()?;
    let connection = arguments.connect.connection()?;
    let writer = Writer::new(&arguments)?;
    if arguments.topic.is_text() {
        note_patterns(&topics);
    }

    let confirmed = async {
        match connection.subscribe(&topics).await {
            Err(error) => Err(rights::explained(&arguments.connect, &topics, error).await),
            subscription => subscription,
        }
    };
    let subscription = tokio::select! {
        subscription = confirmed => subscription?.with_two_frames(),
        exit = interrupt.wait() => return Ok(exit),
    };
    if verbose {
        note(format_args!("subscribed to {} at {proxy}", render::topics_text(&topics)));
    }
    let notes = note_connection(subscription.events(), &proxy);
    let timeout = async {
        match arguments.timeout {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };

    // A task of its own: it may be blocked by whoever reads our output, and signals have to be heard meanwhile.
    let (stop, stopped) = watch::channel(false);
    let show_control = topics.iter().any(|topic| topic.as_bytes().starts_with(CONTROL));
    let receiver = Receiver { subscription, writer, count: arguments.count, show_control, stopped, verbose };
    let mut receiving = tokio::spawn(receiver.run());
    let late = if arguments.count.is_some() { Exit::TimedOut } else { Exit::Done };
    let exit = tokio::select! {
        result = &mut receiving => return result?.map(|_| Exit::Done),
        exit = interrupt.wait() => exit,
        () = timeout => late,
        () = reader_gone() => Exit::Done,
        () = notes => unreachable!("notes never end"),
    };
    stop.send_replace(true);
    let written = tokio::select! {
        result = &mut receiving => result??,
        () = tokio::time::sleep(HASTY_LINGER) => {
            if !exit.is_interrupted() {
                warn("ended while nobody reads what is written: the rest is lost");
            }
            return Ok(exit);
        }
        exit = interrupt.wait() => return Ok(exit),
    };
    if arguments.count == Some(written) {
        // The last one came together with the end of the time.
        return Ok(if exit == Exit::TimedOut { Exit::Done } else { exit });
    }
    if exit == Exit::TimedOut {
        let expected = counted(arguments.count.unwrap_or_default(), "message");
        warn(format_args!("timed out: {} of {expected} arrived", grouped(written)));
    }
    Ok(exit)
}

/// Takes messages and has them written, until told to stop or the count is reached.
#[derive(Debug)]
struct Receiver {
    subscription: Subscription,
    writer: Writer,
    count: Option<u64>,
    show_control: bool,
    stopped: watch::Receiver<bool>,
    verbose: bool,
}

impl Receiver {
    /// Returns how many messages were written.
    async fn run(mut self) -> anyhow::Result<u64> {
        let (mut messages, mut bytes, mut unreadable) = (0_u64, 0_u64, 0_u64);
        let mut turn = 0_u64;
        while self.count.is_none_or(|count| messages < count) {
            turn += 1;
            if turn.is_multiple_of(TURN) {
                if *self.stopped.borrow() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let polled = futures::poll!(pin!(self.subscription.next()));
            let next = match polled {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    // Nothing more for now: what there is shall be seen.
                    self.writer.flush()?;
                    tokio::select! {
                        biased;
                        next = self.subscription.next() => next,
                        _ = self.stopped.wait_for(|stopped| *stopped) => break,
                        () = self.writer.report_due() => {
                            self.writer.report()?;
                            continue;
                        }
                    }
                }
            };
            let message = match next {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    unreadable += 1;
                    tracing::warn!(%error, "a message that cannot be read");
                    continue;
                }
                None => break,
            };
            if !self.show_control && message.topic().as_bytes().starts_with(CONTROL) {
                continue;
            }
            messages += 1;
            bytes += message.data().len() as u64;
            self.writer.write(&message, messages)?;
        }
        self.writer.finish()?;
        if self.verbose {
            note(format_args!("received {} ({})", counted(messages, "message"), counted(bytes, "byte")));
        }
        if unreadable > 0 {
            let messages = counted(unreadable, "message");
            warn(format_args!("{messages} passed over, not of two or three frames: -v tells more"));
        }
        Ok(messages)
    }
}

/// Writes messages in the way that was asked for.
#[derive(Debug)]
struct Writer {
    output: Output,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Messages(Style),
    Dump(PathBuf),
    Report(Report),
}

impl Writer {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let form = if let Some(dir) = &arguments.dump {
            fs::create_dir_all(dir)
                .with_context(|| format!("cannot make the directory {}", dir.display()))?;
            Form::Dump(dir.clone())
        } else if arguments.report {
            Form::Report(Report::new(arguments.style.is_json()))
        } else {
            Form::Messages(arguments.style.style(Style::Line))
        };
        Ok(Self { output: Output::stdout()?, form })
    }

    fn write(&mut self, message: &Message, number: u64) -> anyhow::Result<()> {
        match &mut self.form {
            Form::Messages(style) => return style.write(&mut self.output, message),
            Form::Dump(dir) => tokio::task::block_in_place(|| dump(dir, number, message.data()))?,
            Form::Report(report) => {
                report.count(message);
                if report.is_due() {
                    report.write(self.output.buffer());
                    return self.output.flush();
                }
            }
        }
        self.output.written()
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.output.flush()
    }

    /// Waits until a report is due; for ever, when none is wanted.
    async fn report_due(&self) {
        match &self.form {
            Form::Report(report) => tokio::time::sleep_until(report.due().into()).await,
            _ => std::future::pending().await,
        }
    }

    fn report(&mut self) -> anyhow::Result<()> {
        if let Form::Report(report) = &mut self.form {
            report.write(self.output.buffer());
        }
        self.output.flush()
    }

    /// Writes what is left.
    fn finish(&mut self) -> anyhow::Result<()> {
        self.report()
    }
}

fn dump(dir: &Path, number: u64, data: &[u8]) -> anyhow::Result<()> {
    let path = dir.join(format!("{number:08}"));
    // What is there already is not overwritten.
    let mut file = File::create_new(&path)
        .with_context(|| format!("cannot make {}: give --dump an empty directory", path.display()))?;
    file.write_all(data).with_context(|| format!("cannot write {}", path.display()))
}
