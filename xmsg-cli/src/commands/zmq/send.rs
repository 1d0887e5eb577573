//! `xmsg zmq send`: sends messages over one socket.

mod radio;

use std::ffi::OsString;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use xmsg_core::options::CHECK_TIMEOUT;
use xmsg_zmq::{Error, ErrorKind, Multipart};
use xmsg_zmtp::SocketType;

use super::after_help;
use super::endpoints::{End, SocketArguments, Target, attach, names, only_connects};
use super::frames::{FrameOptions, Input};
use super::kind::{self, Kind};
use super::socket::{Socket, publishes};
use super::watch::{OwnSocket, Place, Watch, without_connection};
use crate::args::{parse_count_from_1, parse_duration, parse_rate};
use crate::exit::{AtPeer, Exit, Usage};
use crate::output::{counted, grouped, note, notes_are_seen, warn, with_notes};
use crate::pace::Pace;
use crate::signals::Interrupt;
use crate::source::Split;

/// The number of messages that are sent before other tasks get their turn and signals are checked.
const YIELD_AFTER: u64 = 256;
/// How long subscriptions may still be on the way after the messages were sent.
const SUBSCRIPTIONS: Duration = Duration::from_millis(50);
/// How long to wait for a peer before a note about it is written.
const NOTE_AFTER_WAIT: Duration = Duration::from_secs(1);
/// How long sending the rest may take before a note about it is written.
const NOTE_AFTER_LINGER: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  xmsg zmq send PUSH tcp://localhost:5557 'a task'   one message of one frame
  xmsg zmq send PUB tcp://localhost:5556 weather 'sunny, 21 C'
  xmsg zmq send PUB --bind tcp://*:5556 weather sunny --wait-sub
  xmsg zmq send PUSH --bind tcp://*:5557 -l < tasks  each line is a message
  xmsg zmq send PUB tcp://localhost:5556 log -l < app.log
  xmsg zmq send DEALER tcp://localhost:5555 '' hello a request, as REQ would send it
  xmsg zmq send RADIO udp://127.0.0.1:5558 weather sunny
  xmsg zmq send PUSH tcp://a:5557,tcp://b:5557 'task {{Count}}' --template -n 100 --rate 10";

/// Send messages over a ZeroMQ socket
///
/// Each DATA is a frame of one message. Without any, standard input is its only frame; with -l each line of
/// it is a message, without its newline, and DATA are the frames before it.
///
/// It connects by default, and waits until a peer is there: for a second, or, if it is bound, without limit.
/// PUSH and DEALER give each message to one peer after another, PUB and XPUB to those who subscribed to its
/// first frame, XSUB to all. A bound PUB sends at once, and reports it if nobody subscribed; --wait-sub
/// waits. A PUB that connects does not wait for the subscriptions of its peer: it sends, and the peer drops
/// messages to which it has not subscribed.
///
/// RADIO sends datagrams over `udp://`, each of two frames: a group and the data. It needs no receiver.
///
/// Exit code 3: there is no peer to connect to, or only a socket whose type does not fit. Exit code 27:
/// nobody has connected, or subscribed, in time. Exit code 1: not everything could be sent.
#[derive(Debug, Args)]
#[command(after_help = after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// Type of the socket, in upper or lower case
    #[arg(value_name = "TYPE", ignore_case = true, value_parser = kind::parser(&Socket::SENDING, Kind::Radio))]
    kind: Kind,

    /// Endpoints to connect to, or to bind; separate several with commas
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,

    /// The frames of the message; `-` as the last one: standard input. Write `--` before data that starts
    /// with `-`
    #[arg(value_name = "DATA")]
    data: Vec<OsString>,

    #[command(flatten)]
    frames: FrameOptions,

    /// Each line is a message. Its newline is not part of it; a carriage return is
    #[arg(short, long)]
    lines: bool,

    /// NUL bytes separate messages, and are not part of them
    #[arg(short = '0', long, conflicts_with = "lines")]
    null: bool,

    /// Send the message this many times
    #[arg(short = 'n', long, value_name = "COUNT", conflicts_with_all = ["lines", "null"], value_parser = parse_count_from_1)]
    count: Option<u64>,

    /// Messages per second at most, evenly spaced
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<f64>,

    /// PUB and XPUB: wait until somebody has subscribed to the first message
    #[arg(long)]
    wait_sub: bool,

    /// How long to wait for a peer, or a subscriber, such as 500ms or 10s [default: 1s when connecting, no
    /// limit when bound or with --wait-sub]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// How long to keep sending at the end, if the peer is slow or away
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    linger: Duration,

    #[command(flatten)]
    socket: SocketArguments,
}

impl Arguments {
    fn split(&self) -> Split {
        match (self.lines, self.null) {
            (true, _) => Split::Lines { chomp: true },
            (_, true) => Split::Null,
            _ => Split::Whole,
        }
    }

    /// Returns the name of the unit of input, for errors about a message.
    fn unit(&self) -> &'static str {
        if self.lines { "line" } else { "message" }
    }
}

pub(super) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let kind = match arguments.kind {
        Kind::Connected(kind) => kind,
        Kind::Radio => return radio::run(arguments, verbose).await,
        Kind::Dish => bail!(Usage("DISH only receives: use `xmsg zmq recv DISH`".to_owned())),
    };
    let mut interrupt = Interrupt::new()?;
    let targets = arguments.socket.targets([arguments.endpoint.as_str()], End::Connect)?;
    let options = arguments.socket.options(&targets)?;
    let limits = options.settings().limits.clone();
    let socket = Socket::to_send(kind, &options)?;
    if arguments.wait_sub && !publishes(kind) {
        let kind = kind::with_article(kind.name());
        bail!(Usage(format!("--wait-sub is for PUB and XPUB: nobody subscribes to {kind}")));
    }
    let input = arguments.frames.input(&arguments.data, arguments.split(), &limits)?;
    let ours = OwnSocket { kind, place: Place::Chosen };
    let mut watch = Watch::new(socket.events(), ours, &targets, verbose).without_failures();
    let targets = attach(&socket, targets).await?;
    let mut job = Job {
        input,
        socket: &socket,
        targets: &targets,
        kind,
        count: arguments.count.unwrap_or(1),
        rate: arguments.rate,
        wait_sub: arguments.wait_sub,
        timeout: arguments.timeout,
        unit: arguments.unit(),
        verbose,
        sent: 0,
        bytes: 0,
        refused: 0,
        reached: false,
        unsubscribed_topic: None,
    };
    let result = tokio::select! {
        result = job.run() => result,
        error = watch.run() => Err(error.into()),
        exit = interrupt.wait() => Ok(exit),
        () = socket.drain() => unreachable!("it never ends"),
    };
    let result = match result {
        Ok(Exit::NoConnection) => return Err(nobody_there(&job, &watch).into()),
        result => result,
    };
    let Job { sent, bytes, refused, unsubscribed_topic, .. } = job;

    // Accepted messages are sent, also after an error or an interrupt. A second interrupt ends that, too.
    let is_interrupted = matches!(&result, Ok(exit) if exit.is_interrupted());
    let linger = arguments.linger;
    watch.ends();
    let says_so = async {
        tokio::time::sleep(NOTE_AFTER_LINGER).await;
        let again = if is_interrupted { "interrupted: " } else { "" };
        note(format_args!(
            "{again}waiting up to {} s for {} to take what is left; interrupt to end at once",
            linger.as_secs_f64(),
            names(&targets)
        ));
        std::future::pending::<()>().await;
    };
    let left = tokio::select! {
        left = socket.close(linger) => left as u64,
        error = watch.run() => return Err(error.into()),
        () = says_so => unreachable!("it never ends"),
        exit = interrupt.wait() => {
            warn("interrupted: not everything was sent");
            return Ok(exit);
        }
    };
    let exit = result?;
    let lost = Lost { left, refused, dropped: socket.dropped() };
    if let Some(words) = lost.describe(sent, &names(&targets), linger) {
        // A user who interrupts the command wants it to end, and is told what is missing.
        if !exit.is_interrupted() {
            bail!(words);
        }
        warn(words);
    }
    if let Some(topic) = unsubscribed_topic {
        note(nobody_subscribed(&topic, sent, &targets));
    }
    if verbose {
        note(format_args!(
            "sent {} ({}) to {}",
            counted(sent, "message"),
            counted(bytes, "byte"),
            names(&targets)
        ));
    }
    Ok(exit)
}

/// Makes the error of a socket that found no peer to connect to.
fn nobody_there(job: &Job<'_>, watch: &Watch) -> AtPeer {
    let (targets, time) = (names(job.targets), job.limit().unwrap_or_default());
    let what = format!(
        "no connection to {targets} within {time:?} (--timeout waits longer, --bind lets peers connect to us)"
    );
    without_connection(what, watch.failure().cloned().or_else(|| job.socket.failure()))
}

/// Returns a note about messages without subscribers, as far as the socket has received subscriptions.
fn nobody_subscribed(topic: &[u8], sent: u64, targets: &[Target]) -> String {
    let what = if sent == 1 { "message".to_owned() } else { counted(sent, "message") };
    let (topic, names) = (topic.escape_ascii(), names(targets));
    if targets.iter().any(|target| target.end == End::Connect) {
        // A peer that we connect to receives the messages and drops those that it does not want. If it is
        // busy, its subscriptions become known late.
        return format!(
            "{names} has not told of a subscription to {topic} by now: without one it drops the {what} (--wait-sub waits for a \
             subscriber)"
        );
    }
    format!(
        "nobody subscribes to {topic} at {names}: the {what} went nowhere (--wait-sub waits for a subscriber)"
    )
}

/// The counts of messages that were not delivered.
#[derive(Clone, Copy, Debug)]
struct Lost {
    /// Messages that were not sent when the time was up.
    left: u64,
    /// Messages that were too large.
    refused: u64,
    /// Messages that were dropped because a peer is too slow or does not accept them. Each peer counts.
    dropped: u64,
}

impl Lost {
    /// Returns a text with numbers and reasons, if any of `sent` messages to these endpoints were not
    /// delivered.
    fn describe(self, sent: u64, names: &str, linger: Duration) -> Option<String> {
        let Self { left, refused, dropped } = self;
        let total = left + refused + dropped;
        let reasons = [
            (refused, "too large".to_owned()),
            (dropped, "dropped for peers that are too slow or don't take them".to_owned()),
            (
                left,
                format!(
                    "not taken by {names} within {} s: see whether it reads, or give it more time with --linger",
                    linger.as_secs_f64()
                ),
            ),
        ];
        let reasons = reasons.iter().filter(|(count, _)| *count > 0);
        let reasons: Vec<_> = reasons.map(|(count, why)| format!("{} {why}", grouped(*count))).collect();
        let of = counted(refused.saturating_add(sent), "message");
        (total > 0).then(|| format!("{} of {of} not delivered: {}", grouped(total), reasons.join(", ")))
    }
}

/// What is to be sent, and the progress so far.
#[derive(Debug)]
struct Job<'a> {
    input: Input,
    socket: &'a Socket,
    targets: &'a [Target],
    kind: SocketType,
    count: u64,
    rate: Option<f64>,
    wait_sub: bool,
    timeout: Option<Duration>,
    /// The name of the unit of input, for errors about a message.
    unit: &'static str,
    verbose: bool,
    sent: u64,
    bytes: u64,
    /// The number of messages that were too large.
    refused: u64,
    /// Whether somebody has subscribed to one of the messages.
    reached: bool,
    /// The topic of the last message, if nobody has subscribed to any of them.
    unsubscribed_topic: Option<Bytes>,
}

impl Job<'_> {
    /// Sends everything. [`Exit::NoConnection`] and [`Exit::TimedOut`] mean that there was no peer or
    /// subscriber in time.
    async fn run(&mut self) -> anyhow::Result<Exit> {
        let is_bound = !only_connects(self.targets);
        // A bound publishing socket does not wait for peers: they may not subscribe to anything.
        if !(publishes(self.kind) && is_bound) {
            let limit = self.limit();
            let peers = kind::with_article(&kind::peers(self.kind));
            let what = format!("waiting for {peers} to connect to {}", names(self.targets));
            // When we connect, the limit is short, so that no note about waiting is needed.
            let connected = note_if_slow(self.verbose, is_bound.then_some(what), self.socket.connected());
            if !in_time(limit, connected).await? {
                if !is_bound {
                    return Ok(Exit::NoConnection);
                }
                warn(format_args!(
                    "timed out: nobody connected to {} within {:?}",
                    names(self.targets),
                    limit.unwrap_or_default()
                ));
                return Ok(Exit::TimedOut);
            }
        }
        let mut waits = self.wait_sub;
        let mut topic = Bytes::new();
        let mut pace = self.rate.map(Pace::new);
        loop {
            // The iterator borrows from the input, and not from `self`, because messages are counted during
            // the loop.
            let number = 1 + self.refused + self.sent;
            let messages: Box<dyn Iterator<Item = xmsg_zmq::Result<Multipart>> + Send + '_> =
                match self.input.next().await {
                    Ok(None) => break,
                    Ok(Some(dish)) => Box::new((0..self.count).map(move |n| dish.message(number + n))),
                    Err(error) => {
                        Self::refuse(&mut self.refused, self.unit, number, error)?;
                        continue;
                    }
                };
            for message in messages {
                let message = match message {
                    Ok(message) => message,
                    Err(error) => {
                        let number = 1 + self.refused + self.sent;
                        Self::refuse(&mut self.refused, self.unit, number, error.into())?;
                        break;
                    }
                };
                topic = message.frames().first().cloned().unwrap_or_default();
                if std::mem::take(&mut waits) {
                    let (text, names) = (topic.escape_ascii(), names(self.targets));
                    let what = format!("waiting for a subscriber of {text} at {names}");
                    let subscribed = note_if_slow(self.verbose, Some(what), self.socket.subscribed(&topic));
                    if !in_time(self.timeout, subscribed).await? {
                        let time = self.timeout.unwrap_or_default();
                        warn(format_args!(
                            "timed out: nobody subscribed to {} within {time:?}, so nothing was sent",
                            topic.escape_ascii()
                        ));
                        return Ok(Exit::TimedOut);
                    }
                }
                if let Some(pace) = &mut pace {
                    pace.wait().await;
                }
                let len = message.frames().iter().map(|frame| frame.len() as u64).sum::<u64>();
                self.reached = self.reached || self.socket.has_subscriber(&topic);
                if let Err(error) = self.socket.send(message).await {
                    let number = 1 + self.refused + self.sent;
                    Self::refuse(&mut self.refused, self.unit, number, error.into())?;
                    break;
                }
                self.bytes += len;
                self.sent += 1;
                if self.sent.is_multiple_of(YIELD_AFTER) {
                    tokio::task::yield_now().await;
                }
            }
        }
        if !self.reached && !is_bound {
            // A peer that we connect to receives the messages, even if its subscriptions are not yet known.
            self.reached = in_time(Some(SUBSCRIPTIONS), self.socket.subscribed(&topic)).await?;
        }
        if !self.reached && self.sent > 0 {
            self.unsubscribed_topic = Some(topic);
        }
        Ok(Exit::Done)
    }

    /// Returns how long to wait for a peer.
    fn limit(&self) -> Option<Duration> {
        self.timeout.or_else(|| only_connects(self.targets).then_some(CHECK_TIMEOUT))
    }

    /// Reports a message that is too large, and continues with the others. Any other error ends the run.
    fn refuse(refused: &mut u64, unit: &str, number: u64, error: anyhow::Error) -> anyhow::Result<()> {
        let kind = error.downcast_ref::<Error>().map(Error::kind);
        if kind != Some(ErrorKind::TooLarge) {
            return Err(error);
        }
        warn(format_args!("{unit} {number} was not sent: {error:#}"));
        *refused += 1;
        Ok(())
    }
}

/// Returns the result of `work`. If it takes long, a note says what it waits for.
async fn note_if_slow<T>(verbose: bool, what: Option<String>, work: impl Future<Output = T>) -> T {
    let says = async {
        tokio::time::sleep(NOTE_AFTER_WAIT).await;
        if let Some(what) = what.filter(|_| verbose || notes_are_seen()) {
            note(what);
        }
        std::future::pending::<()>().await;
    };
    with_notes(work, says).await
}

/// Returns whether the work was done in time.
async fn in_time(
    limit: Option<Duration>,
    work: impl Future<Output = xmsg_zmq::Result<()>>,
) -> xmsg_zmq::Result<bool> {
    match tokio::time::timeout(limit.unwrap_or(Duration::MAX), work).await {
        Ok(done) => done.map(|()| true),
        Err(_) => Ok(false),
    }
}
