//! `xmsg reply`: answers requests.

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::task::JoinSet;
use xmsg_core::control::CONTROL_TOPIC;
use xmsg_core::{Connection, ErrorKind, Message, Subscription, Topic};

use crate::args::{ConnectOptions, TopicOptions, parse_count_from_1, parse_duration, parse_number};
use crate::exit::{Exit, Usage};
use crate::message_builder::{DataOptions, MessageBuilder, PreparedMessage};
use crate::output::{counted, grouped, note, note_connection, warn, with_notes};
use crate::patterns::note_patterns;
use crate::render::{topic_text, topics_text};
use crate::rights;
use crate::signals::Interrupt;
use crate::source::Split;

/// The number of messages that are taken before other tasks get their turn and signals are checked.
const YIELD_AFTER: u64 = 256;
/// How long replies are still sent at the end.
const LINGER: Duration = Duration::from_secs(5);
/// How long replies are still sent after an interrupt.
const INTERRUPTED_LINGER: Duration = Duration::from_secs(1);
/// A topic of the usual length that a recipe gets instead of the reply topic, which becomes known only with
/// the request.
const PLACEHOLDER: &str = "ret:00000000:1000000";

const EXAMPLES: &str = "\
Examples:
  xmsg reply math:answer 42 --mime binary/sfixed32   always the same
  xmsg reply math:answer -f answer.json --mime application/json
  xmsg reply echo --echo                             the data of the request, sent back
  xmsg reply text:upper --command 'tr a-z A-Z'       what the command makes of it
  xmsg reply daq: --command 'echo \"you asked $XMSG_TOPIC\"' --concurrency 4
  xmsg reply --topic-hex 7472610100 --echo           topics that are not text";

/// Answer the requests to topics
///
/// A request is a message that says where its sender expects the reply; `xmsg req` and the synchronous
/// publish of actors send requests. Other messages to the topics are ignored; -v shows how many there were.
/// As with `xmsg sub`, a topic stands for all topics that start with it.
///
/// The last argument is the data of all replies, unless --echo, --command or --file says what to reply.
///
/// A command is run by `sh -c` for each request, with the data of the request on its standard input, and
/// `XMSG_TOPIC`, `XMSG_TOPIC_HEX` (the topic in hexadecimal digits) and `XMSG_MIME` in its environment. Its
/// standard output is the data of the reply, byte for byte; with --mime and one of xMsg's own types, it is
/// text that is turned into a value. If the command fails, takes too long, or writes something that can't be
/// sent, the reply is an error with the reason, which is also written to standard error.
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "xmsg reply [OPTIONS] <TOPIC>... <DATA>\n       \
                      xmsg reply [OPTIONS] <TOPIC>... <--echo|--command <CMD>|--file <FILE>>"
)]
pub(crate) struct Arguments {
    /// Topics to answer, and after them the data of the replies; `-` is standard input. Write `--` before
    /// data that starts with `-`
    #[arg(value_name = "TOPIC", required = true)]
    words: Vec<OsString>,

    #[command(flatten)]
    topics: TopicOptions,

    /// Reply with the content of this file; `-` is standard input
    #[arg(short, long, value_name = "FILE", group = "answer")]
    file: Option<PathBuf>,

    /// Reply with the data and metadata of the request
    #[arg(long, group = "answer", conflicts_with_all = ["hex", "base64", "template", "mime", "meta"])]
    echo: bool,

    /// Reply with what this shell command writes to its standard output
    #[arg(long, value_name = "CMD", group = "answer", conflicts_with = "template")]
    command: Option<OsString>,

    /// How long a command may take; after that it is killed, and the reply is an error
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration, requires = "command")]
    command_timeout: Duration,

    /// How many commands may run at a time; with 1, replies are in the order of requests
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = parse_number::<u16>(1..=65_535))]
    concurrency: u16,

    #[command(flatten)]
    data: DataOptions,

    /// End after this many requests, including those that failed; exit code 1 if any failed
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = parse_count_from_1)]
    count: Option<u64>,

    #[command(flatten)]
    connect: ConnectOptions,
}

impl Arguments {
    /// Returns the topics, and the data if it is given as an argument.
    fn topics_and_data(&self) -> anyhow::Result<(Vec<Topic>, Option<&OsStr>)> {
        let elsewhere = self.echo || self.command.is_some() || self.file.is_some();
        let (topics, data) = match &self.words[..] {
            topics if elsewhere => (topics, None),
            [topics @ .., data] if !topics.is_empty() => (topics, Some(data.as_os_str())),
            _ => {
                bail!(Usage(
                    "what to reply? Give DATA after the topics, --echo, --command or --file".to_owned()
                ))
            }
        };
        let text = |word: &OsString| {
            let text = word.to_str().map(str::to_owned);
            text.with_context(|| Usage(format!("the topic {} is not UTF-8", word.display())))
        };
        let words = topics.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        Ok((self.topics.to_subscribe(&words)?, data))
    }
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let (topics, data) = arguments.topics_and_data()?;
    if arguments.topics.is_text() {
        note_patterns(&topics);
    }
    let builder = arguments.data.builder(&Topic::wrap(PLACEHOLDER))?;
    let mut source = if data.is_some() || arguments.file.is_some() {
        Some(builder.source(data, arguments.file.as_deref(), Split::Whole)?)
    } else {
        None
    };
    let proxy = arguments.connect.proxy()?;
    let connection = arguments.connect.connection()?;
    let mut counts = Counts::default();
    let mut working = JoinSet::new();

    let serving = async {
        let answer = if let Some(source) = &mut source {
            let data = source.next().await?.unwrap_or_default();
            let mut prepared = builder.prepare(data)?;
            // Errors in the data are found before a request arrives.
            prepared.message(&builder, 1)?;
            Answer::Data(prepared)
        } else if let Some(line) = arguments.command {
            let limit = builder.input_limit();
            Answer::Command(Arc::new(Command { line, timeout: arguments.command_timeout, limit }))
        } else {
            Answer::Echo
        };
        connection.connect().await?;
        let subscription = match connection.subscribe(&topics).await {
            Err(error) => return Err(rights::explained(&arguments.connect, &topics, error).await.into()),
            subscription => subscription?,
        };
        let notes = note_connection(subscription.events(), &proxy);
        if verbose {
            note(format_args!("ready: subscribed to {} at {proxy}", topics_text(&topics)));
        }
        let mut service = Service {
            connection: &connection,
            subscription,
            builder: &builder,
            answer,
            working: &mut working,
            counts: &mut counts,
        };
        with_notes(service.run(arguments.count, arguments.concurrency.into()), notes).await
    };
    let (result, linger) = tokio::select! {
        result = serving => (result.map(|()| Exit::Done), LINGER),
        exit = interrupt.wait() => (Ok(exit), INTERRUPTED_LINGER),
    };
    // Commands that are still running are killed.
    working.shutdown().await;
    let left = tokio::select! {
        left = connection.close(linger) => left,
        exit = interrupt.wait() => return Ok(exit),
    };
    if verbose {
        note(format_args!(
            "answered {} of {}; ignored {} that await no reply",
            grouped(counts.answered),
            counted(counts.requests, "request"),
            counted(counts.ignored, "message"),
        ));
    }
    let exit = result?;
    if !left.is_nothing() {
        bail!("{left}, by {proxy}: does the proxy run?");
    }
    if exit == Exit::Done && counts.answered < counts.requests {
        let requests = counted(counts.requests, "request");
        bail!("{} of {requests} failed", grouped(counts.requests - counts.answered));
    }
    Ok(exit)
}

#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    answered: u64,
    ignored: u64,
}

/// What is replied.
#[derive(Debug)]
enum Answer {
    Echo,
    Data(PreparedMessage),
    Command(Arc<Command>),
}

/// Takes requests and publishes replies.
#[derive(Debug)]
struct Service<'a> {
    connection: &'a Connection,
    subscription: Subscription,
    builder: &'a MessageBuilder,
    answer: Answer,
    /// Running commands, each with the request that it is for.
    working: &'a mut JoinSet<(Message, anyhow::Result<Bytes>)>,
    counts: &'a mut Counts,
}

impl Service<'_> {
    /// Runs until `count` requests were handled.
    async fn run(&mut self, count: Option<u64>, concurrency: usize) -> anyhow::Result<()> {
        let mut turn = 0_u64;
        loop {
            turn += 1;
            if turn.is_multiple_of(YIELD_AFTER) {
                tokio::task::yield_now().await;
            }
            let enough = count.is_some_and(|count| self.counts.requests >= count);
            if enough && self.working.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some(done) = self.working.join_next() => {
                    let (request, output) = done.context("a command was given up")?;
                    let reply = output.and_then(|output| self.builder.message(output));
                    self.finish(&request, reply.and_then(|reply| addressed(reply, &request))).await?;
                }
                next = self.subscription.next(), if !enough && self.working.len() < concurrency => {
                    match next {
                        Some(Ok(message)) => self.take(message).await?,
                        Some(Err(error)) => tracing::warn!(%error, "a message that cannot be read"),
                        None => bail!("the subscription has ended"),
                    }
                }
            }
        }
    }

    async fn take(&mut self, message: Message) -> anyhow::Result<()> {
        if message.topic().as_bytes().starts_with(CONTROL_TOPIC.as_bytes()) {
            return Ok(());
        }
        if !matches!(message.reply_to(), Ok(Some(_))) {
            self.counts.ignored += 1;
            tracing::debug!(topic = %message.topic(), "a message that awaits no reply");
            return Ok(());
        }
        self.counts.requests += 1;
        let reply = match &mut self.answer {
            Answer::Echo => message.reply().map_err(Into::into).and_then(|reply| reply.context("no request")),
            Answer::Data(prepared) => prepared
                .message(self.builder, self.counts.requests)
                .cloned()
                .and_then(|reply| addressed(reply, &message)),
            Answer::Command(command) => {
                let command = command.clone();
                self.working.spawn(async move {
                    let topic = message.topic().as_bytes();
                    // An environment variable cannot contain a NUL byte.
                    let text = if topic.contains(&0) { b"" } else { topic };
                    let (hex, mime) = (hex::encode(topic), message.mime_type().unwrap_or_default());
                    let variables = [
                        ("XMSG_TOPIC", OsStr::from_bytes(text)),
                        ("XMSG_TOPIC_HEX", hex.as_ref()),
                        ("XMSG_MIME", mime.as_ref()),
                    ];
                    let output = command.run(message.data(), &variables).await;
                    (message, output)
                });
                return Ok(());
            }
        };
        self.finish(&message, reply).await
    }

    /// Publishes the reply. If there is none, or it cannot be sent, publishes an error reply that says why.
    /// Fails when nothing more can be published.
    async fn finish(&mut self, request: &Message, reply: anyhow::Result<Message>) -> anyhow::Result<()> {
        let sent = match reply {
            Ok(reply) => self.publish(&reply).await?,
            Err(error) => Err(error),
        };
        let Err(error) = sent else {
            self.counts.answered += 1;
            return Ok(());
        };
        let topic = topic_text(request.topic());
        let error_reply = match request.error_reply(format_args!("{error:#}")) {
            Ok(Some(reply)) => self.publish(&reply).await?,
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        match error_reply {
            Ok(()) => warn(format_args!("the reply to {topic} is an error: {error:#}")),
            Err(why) => warn(format_args!("no reply to {topic}: {error:#}; nor can that be told: {why:#}")),
        }
        Ok(())
    }

    /// Publishes a message. The outer error means that nothing more can be published, and the inner one that
    /// this message cannot.
    async fn publish(&self, message: &Message) -> anyhow::Result<anyhow::Result<()>> {
        match self.connection.publish(message).await {
            Err(error) if error.kind() == ErrorKind::Closed => Err(error.into()),
            sent => Ok(sent.map_err(Into::into)),
        }
    }
}

/// Addresses a message as the reply to this request.
fn addressed(reply: Message, request: &Message) -> anyhow::Result<Message> {
    let topic = request.reply_topic()?.context("no request")?;
    let [_, meta, data] = reply.into_frames();
    Ok(Message::from_frames(topic.into_bytes(), meta, data))
}

/// A shell command.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) line: OsString,
    pub(crate) timeout: Duration,
    /// The largest number of bytes of its output.
    pub(crate) limit: usize,
}

impl Command {
    /// Runs the command with this input and these environment variables, and returns its output. Dropping the
    /// future kills it.
    pub(crate) async fn run(&self, input: &[u8], variables: &[(&str, &OsStr)]) -> anyhow::Result<Bytes> {
        let mut child = tokio::process::Command::new("sh")
            .arg("-c")
            .arg(&self.line)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run the command with `sh`")?;
        let mut group = Group::of(&child);
        let work = pin!(self.exchange_lines(&mut child, input));
        match tokio::time::timeout(self.timeout, work).await {
            Ok(output) => {
                let (output, status) = output?;
                group.ended();
                if status.success() { Ok(output) } else { bail!("the command failed: {status}") }
            }
            Err(_) => bail!("the command was killed: not done within {} s", self.timeout.as_secs_f64()),
        }
    }

    async fn exchange_lines(
        &self,
        child: &mut Child,
        input: &[u8],
    ) -> anyhow::Result<(Bytes, std::process::ExitStatus)> {
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (mut stdin, stdout) = (stdin.context("no input")?, stdout.context("no output")?);
        let feed = async {
            // The error is ignored, because a command need not read its input.
            let _ = stdin.write_all(input).await;
            drop(stdin);
            Ok(())
        };
        let read = async {
            let mut output = Vec::new();
            let mut stdout = stdout.take(self.limit as u64 + 1);
            stdout.read_to_end(&mut output).await.context("cannot read what the command writes")?;
            if output.len() > self.limit {
                bail!("the command was killed: it writes more than fits into a message");
            }
            Ok(output)
        };
        let ((), output) = both(feed, read).await?;
        let status = child.wait().await.context("cannot wait for the command")?;
        Ok((output.into(), status))
    }
}

/// Returns both results, or the first error.
async fn both<A, B>(
    one: impl Future<Output = anyhow::Result<A>>,
    other: impl Future<Output = anyhow::Result<B>>,
) -> anyhow::Result<(A, B)> {
    tokio::try_join!(one, other)
}

/// The processes of a command, including those that its shell has started. Dropping it kills all of them.
#[derive(Debug)]
struct Group(Option<u32>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id())
    }

    /// Notes that the shell has ended. Processes that it left running in the background may continue.
    fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(id) = self.0 else { return };
        // std and tokio send signals to single processes only. The shell, which is needed anyway, has a
        // built-in `kill`, which takes a millisecond. If it fails, tokio still kills the shell of the
        // command.
        let _ = std::process::Command::new("sh")
            .args(["-c", &format!("kill -s KILL -- -{id}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}
