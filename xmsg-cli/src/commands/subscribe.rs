//! `xmsg sub`: writes what arrives.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use xmsg_core::{Message, Subscription, Topic};

use super::durable;
use crate::args::{ConnectOptions, TopicOptions, parse_count_from_1, parse_duration};
use crate::exit::Exit;
use crate::output::{Output, counted, note, note_connection, warn};
use crate::patterns::note_patterns;
use crate::receiving::{Receiver, Source, Writer};
use crate::render;
use crate::report::Report;
use crate::rights;
use crate::signals::Interrupt;
use crate::style::{Style, StyleOptions};

/// What control requests of the protocol start with.
const CONTROL: &[u8] = b"xmsg:control";

const EXAMPLES: &str = "\
Examples:
  xmsg sub report                                    topic and data, one message a line
  xmsg sub report:sports report:weather              several topics
  xmsg sub ''                                        everything
  xmsg sub report -n 1 --timeout 10s                 one message, or exit code 27
  xmsg sub report --json | jq .data
  xmsg sub report --format '%T %t %l bytes: %v\\n'
  xmsg sub report:log --raw > app.log                data and nothing else
  xmsg sub --topic-hex 747261 --json                 topics that are not text
  xmsg sub camera --dump pictures                    each message into a file
  xmsg sub --durable billing orders                  also what came while nobody was there
  xmsg sub '' --report                               rates
  xmsg sub '' --report --json                        rates of each topic, for a script";

/// Subscribe, and write what arrives to standard output
///
/// A message arrives when its topic starts with one of those given, byte by byte: `a:b` receives `a:b`,
/// `a:b:c` and also `a:bc`; `a:b:` receives only what is below `a:b`. There are no wildcards: where MQTT has
/// `a/#` and NATS `a.>`, it is `a:` here. The empty topic receives everything but control requests; to see
/// those, subscribe to `xmsg:control`.
///
/// Messages of plain ZeroMQ publishers, topic and data in two frames, are shown, too.
///
/// Each message is written on one line: its topic, then its data: as text, as the value if it has one of
/// xMsg's own types, or, if it is binary, its length and first bytes. --raw writes the data byte for byte:
/// after `xmsg pub -l --keep-newline < FILE`, that is FILE again; --raw -l writes a newline after each
/// message.
///
/// With --durable, what is published while this command does not run waits at a broker. A message is
/// acknowledged once it is written and flushed: what was not, because the command was killed, comes again.
/// Several commands with one NAME share the messages. Rates (--report) can't be had of it.
///
/// Ends after COUNT messages, after DURATION, when nobody reads the output any more, or with Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// What topics of messages start with; '' is everything
    #[arg(value_name = "TOPIC", required_unless_present = "durable")]
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

    #[command(flatten)]
    style: StyleOptions,

    /// Write the data of each message into a file of its own in this directory: 00000001, 00000002, ...
    #[arg(long, value_name = "DIR", group = "how")]
    dump: Option<PathBuf>,

    /// Write how many messages and bytes arrive, once a second, instead of the messages: for all topics and
    /// for the busiest ones; with --json an object for each topic
    #[arg(long, conflicts_with_all = ["format", "raw", "dump", "durable"])]
    report: bool,

    #[command(flatten)]
    durable: durable::Options,

    #[command(flatten)]
    connect: ConnectOptions,
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    if arguments.durable.name().is_some() {
        let topics = arguments.topic.to_subscribe(&arguments.topics)?;
        let writer = MessageWriter::new(&arguments, &topics)?;
        let limits = (arguments.count, arguments.timeout, verbose);
        return durable::run(arguments.durable, &topics, &arguments.connect, writer, limits).await;
    }
    let mut interrupt = Interrupt::new()?;
    let topics = arguments.topic.to_subscribe(&arguments.topics)?;
    let proxy = arguments.connect.proxy()?;
    let connection = arguments.connect.connection()?;
    let writer = MessageWriter::new(&arguments, &topics)?;
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
    let events = subscription.events();
    let watching = async {
        note_connection(events, &proxy).await;
        std::future::pending().await
    };
    let (count, timeout) = (arguments.count, arguments.timeout);
    let receiver = Receiver { source: subscription, writer, count, timeout, verbose };
    Ok(receiver.run(&mut interrupt, watching).await?.exit())
}

impl Source for Subscription {
    type Message = xmsg_core::Result<Message>;

    async fn next(&mut self) -> Option<Self::Message> {
        Self::next(self).await
    }
}

/// Writes messages in the way that was asked for.
#[derive(Debug)]
struct MessageWriter {
    output: Output,
    form: Form,
    /// Whether control requests are messages like others.
    show_control: bool,
    /// Messages that are none of xMsg.
    unreadable: u64,
}

#[derive(Debug)]
enum Form {
    Messages(Style),
    Dump(PathBuf),
    Report(Report),
}

impl MessageWriter {
    fn new(arguments: &Arguments, topics: &[Topic]) -> anyhow::Result<Self> {
        let form = if let Some(dir) = &arguments.dump {
            fs::create_dir_all(dir)
                .with_context(|| format!("cannot make the directory {}", dir.display()))?;
            Form::Dump(dir.clone())
        } else if arguments.report {
            Form::Report(Report::new(arguments.style.is_json()))
        } else {
            Form::Messages(arguments.style.style(Style::Line))
        };
        let show_control = topics.iter().any(|topic| topic.as_bytes().starts_with(CONTROL));
        Ok(Self { output: Output::stdout()?, form, show_control, unreadable: 0 })
    }

    fn show(&mut self, message: &Message, number: u64) -> anyhow::Result<()> {
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
}

impl Writer<xmsg_core::Result<Message>> for MessageWriter {
    fn write(&mut self, message: xmsg_core::Result<Message>, number: u64) -> anyhow::Result<Option<u64>> {
        match message {
            Ok(message) if !self.show_control && message.topic().as_bytes().starts_with(CONTROL) => Ok(None),
            Ok(message) => {
                self.show(&message, number)?;
                Ok(Some(message.data().len() as u64))
            }
            Err(error) => {
                self.unreadable += 1;
                tracing::warn!(%error, "a message that cannot be read");
                Ok(None)
            }
        }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.output.flush()
    }

    /// Waits until a report is due; for ever, when none is wanted.
    async fn due(&self) {
        match &self.form {
            Form::Report(report) => tokio::time::sleep_until(report.due().into()).await,
            _ => std::future::pending().await,
        }
    }

    fn write_due(&mut self) -> anyhow::Result<()> {
        if let Form::Report(report) = &mut self.form {
            report.write(self.output.buffer());
        }
        self.output.flush()
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.write_due()?;
        if self.unreadable > 0 {
            let messages = counted(self.unreadable, "message");
            warn(format_args!("{messages} passed over, not of two or three frames: -v tells more"));
        }
        Ok(())
    }
}

fn dump(dir: &Path, number: u64, data: &[u8]) -> anyhow::Result<()> {
    let path = dir.join(format!("{number:08}"));
    // What is there already is not overwritten.
    let mut file = File::create_new(&path)
        .with_context(|| format!("cannot make {}: give --dump an empty directory", path.display()))?;
    file.write_all(data).with_context(|| format!("cannot write {}", path.display()))
}
