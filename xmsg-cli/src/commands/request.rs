//! `xmsg req`: sends requests and writes the replies.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use xmsg_core::{Actor, Connection, RegistrarAddress, Topic};

use crate::args::{ConnectOptions, TopicOptions, parse_count_from_1, parse_duration};
use crate::exit::{Exit, Usage, is_unanswered, is_without_proxy};
use crate::message_builder::{DataOptions, InputOptions, MessageBuilder};
use crate::output::{Output, counted, grouped, note, output_closed, warn};
use crate::render::topic_text;
use crate::rights;
use crate::signals::Interrupt;
use crate::source::{Source, Split};
use crate::style::{Style, StyleOptions};

/// The shortest time that is left for the first reply after waiting for a subscriber.
const FIRST_REPLY_MIN: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  xmsg req math:square 3 --mime binary/sfixed32      the answer on a line
  xmsg req camera:shot '' --raw > shot.png           its data and nothing else
  xmsg req daq:status '' --json | jq .meta
  xmsg req math:square 3 --timeout 5s -v             and how long it took
  xmsg req math:square 3 --wait-sub --timeout 1m     once somebody is there to answer
  xmsg req echo '{{Count}}' --template -n 100        one after the other
  xmsg req --topic-hex 7472610100 status             a topic that is not text";

/// Publish a request, and write the reply to standard output
///
/// The data of the first reply is written on one line: as text, as the value if it has one of xMsg's own
/// types, or, if it is binary, its length and first bytes. Give the data to send as for `xmsg pub`: byte for
/// byte, or with --mime as a value.
///
/// Exit code 1: the reply is an error, which is shown. Exit code 27: nobody replied in time (to at least one
/// of several requests), or, with --wait-sub, nobody subscribed. Exit code 3: there was no proxy, or it was
/// gone at the end.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Topic: domain[:subject[:type...]]
    topic: String,

    #[command(flatten)]
    topics: TopicOptions,

    #[command(flatten)]
    input: InputOptions,

    #[command(flatten)]
    data: DataOptions,

    /// How long to wait for a reply, such as 500ms or 10s
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    timeout: Duration,

    /// Send the request once somebody has subscribed to the topic. That and the first reply together take no
    /// longer than --timeout
    #[arg(long)]
    wait_sub: bool,

    /// Send this many requests, one after the other
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1, hide_default_value = true,
          value_parser = parse_count_from_1)]
    count: u64,

    #[command(flatten)]
    style: StyleOptions,

    #[command(flatten)]
    connect: ConnectOptions,
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    if arguments.timeout.is_zero() {
        bail!(Usage("--timeout can't be 0: nobody could reply in time".to_owned()));
    }
    let topic = arguments.topics.to_publish(&arguments.topic)?;
    let builder = arguments.data.builder(&topic)?;
    let input = &arguments.input;
    let source = builder.source(input.data.as_deref(), input.file.as_deref(), Split::Whole)?;

    let ready = Arc::new(OnceLock::new());
    let subscribed = ready.clone();
    let options = arguments.connect.options()?.after_subscribe(move |_| {
        // The only subscription is that to replies.
        subscribed.get_or_init(Instant::now);
    });
    let actor = Actor::builder("xmsg")
        .proxy(arguments.connect.proxy()?)
        // The registrar is not used, so the environment must not matter.
        .registrar(RegistrarAddress::default())
        .options(options)
        .build()?;

    let waiter = if arguments.wait_sub { Some(arguments.connect.connection()?) } else { None };

    // The work has its own task, because a slow reader of our output may block it, and signals must be
    // handled in the meantime.
    let asker = RequestTask {
        actor: actor.clone(),
        ready,
        waiter,
        topic: topic.clone(),
        source,
        builder,
        count: arguments.count,
        timeout: arguments.timeout,
        style: arguments.style.style(Style::Data),
        output: Output::stdout()?,
        verbose,
    };
    let asking = async {
        let allowed = rights::may_publish(&arguments.connect, &topic);
        let work = async { tokio::spawn(asker.run()).await? };
        match tokio::try_join!(work, allowed).map(|(exit, ())| exit) {
            // The subscription is to the reply topics of the actor.
            Err(error) => match error.downcast() {
                Ok(error) => {
                    let replies = [Topic::wrap(format!("ret:{}", actor.id()))];
                    Err(rights::explained(&arguments.connect, &replies, error).await.into())
                }
                Err(error) => Err(error),
            },
            exit => exit,
        }
    };
    let result = tokio::select! {
        result = asking => result,
        exit = interrupt.wait() => return Ok(exit),
        () = output_closed() => return Ok(Exit::Done),
    };
    // A request that is not sent by now would get no reply in time.
    let _ = actor.close(Duration::ZERO).await;
    result
}

/// Sends requests and writes the replies.
#[derive(Debug)]
struct RequestTask {
    actor: Actor,
    /// The time since which replies can arrive.
    ready: Arc<OnceLock<Instant>>,
    /// The connection that reports subscriptions, if one is to be waited for.
    waiter: Option<Connection>,
    topic: Topic,
    source: Source,
    builder: MessageBuilder,
    count: u64,
    timeout: Duration,
    style: Style,
    output: Output,
    verbose: bool,
}

impl RequestTask {
    /// Returns whether somebody has subscribed in time.
    async fn wait_for_subscriber(&self, waiter: &Connection) -> anyhow::Result<bool> {
        // A missing proxy is a different error than a missing subscriber.
        waiter.connect().await?;
        let topic = topic_text(&self.topic);
        if self.verbose {
            note(format_args!("waiting for a subscriber of {topic}"));
        }
        let subscribed = tokio::time::timeout(self.timeout, waiter.wait_for_subscriber(&self.topic)).await;
        let is_there = subscribed.is_ok();
        if let Ok(subscribed) = subscribed {
            subscribed?;
        } else {
            warn(format_args!(
                "timed out: nobody subscribed to {topic} within {:?}, so nothing was asked: does the service run, with the \
                 proxy at {}?",
                self.timeout,
                waiter.address(),
            ));
        }
        waiter.close(Duration::ZERO).await;
        Ok(is_there)
    }

    async fn run(mut self) -> anyhow::Result<Exit> {
        let data = self.source.next().await?.unwrap_or_default();
        let mut prepared = self.builder.prepare(data).context("the data of the request")?;
        let mut timeout = self.timeout;
        if let Some(waiter) = self.waiter.take() {
            let started = Instant::now();
            if !self.wait_for_subscriber(&waiter).await? {
                return Ok(Exit::TimedOut);
            }
            // A service that answers at once must get the chance to, even if its subscription took nearly all
            // of the time.
            timeout = timeout.saturating_sub(started.elapsed()).max(FIRST_REPLY_MIN);
        }
        let (mut unanswered, mut is_lost) = (0_u64, false);
        for number in 1..=self.count {
            let message = prepared.message(&self.builder, number)?.clone();
            let mut started = Instant::now();
            match self.actor.request(&message, std::mem::replace(&mut timeout, self.timeout)).await {
                Ok(reply) => {
                    // The time to connect is not a part of the round trip.
                    started = self.ready.get().map_or(started, |ready| started.max(*ready));
                    let time = started.elapsed();
                    is_lost = false;
                    self.style.write(&mut self.output, &reply)?;
                    self.output.flush()?;
                    if self.verbose {
                        let bytes = counted(reply.data().len() as u64, "byte");
                        note(format_args!(
                            "reply {number}: {bytes} after {:.3} ms",
                            time.as_secs_f64() * 1e3
                        ));
                    }
                }
                // If the subscription was not confirmed, the proxy did not answer, not the service.
                Err(error) if is_unanswered(&error) && self.ready.get().is_some() => {
                    unanswered += 1;
                    is_lost = is_without_proxy(error.kind());
                    warn(error.with_causes());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(ended(self.count, unanswered, is_lost))
    }
}

/// Returns the exit code of `count` requests, of which `unanswered` got no reply. `is_lost` means that the
/// last one had no connection.
pub(crate) fn ended(count: u64, unanswered: u64, is_lost: bool) -> Exit {
    if unanswered == 0 {
        return Exit::Done;
    }
    if count > 1 {
        let requests = counted(count, "request");
        warn(format_args!("timed out: {} of {requests} got no reply", grouped(unanswered)));
    }
    if is_lost { Exit::NoConnection } else { Exit::TimedOut }
}
