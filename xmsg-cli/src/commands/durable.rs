//! `xmsg sub --durable`: receives the messages that were kept, and acknowledges them once they are written.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use xmsg_core::durable::{Acknowledger, DurableMessage, DurableOptions, DurableSubscription, Place};
use xmsg_core::text::escaped;
use xmsg_core::{Actor, Error, ErrorKind, Message, RegistrarAddress, Topic};

use super::connect;
use crate::admin::AdminOptions;
use crate::args::ConnectOptions;
use crate::exit::{Exit, Usage};
use crate::output::{note, warn};
use crate::receiving::{Receiver, Source, Writer};
use crate::signals::Interrupt;

/// The number of attempts to open a durable subscription that was just made: its server may still be
/// connecting to the proxy.
const ATTEMPTS: u32 = 3;

/// What `xmsg sub` is told of a durable subscription.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Receive the messages of this durable subscription: also those that came while nobody was there; each
    /// is acknowledged once it is written. With TOPICs and a token for the HTTP server, it is made if it is
    /// not there
    #[arg(long, value_name = "NAME")]
    durable: Option<String>,

    /// The `[[connection]]` to the broker, for a durable subscription that is made
    #[arg(long, value_name = "NAME", requires = "durable")]
    durable_connection: Option<String>,

    #[command(flatten)]
    admin: AdminOptions,
}

impl Options {
    /// Returns the name, if the subscription is durable.
    pub(crate) fn name(&self) -> Option<&str> {
        self.durable.as_deref()
    }
}

/// Receives until there are enough messages, the time is up, or it is interrupted.
pub(crate) async fn run<W: Writer<xmsg_core::Result<Message>> + Sync>(
    options: Options,
    topics: &[Topic],
    connect: &ConnectOptions,
    writer: W,
    (count, timeout, verbose): (Option<u64>, Option<Duration>, bool),
) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let Some(name) = options.durable.clone() else { bail!("no name") };
    let topics = topics.iter().map(|topic| topic.to_str().map(str::to_owned));
    let topics: Vec<String> = topics.collect::<Result<_, _>>().map_err(|_| {
        Usage("a durable subscription has topics that are text: leave out --topic-hex".to_owned())
    })?;
    let actor = Actor::builder("xmsg")
        .proxy(connect.proxy()?)
        .registrar(RegistrarAddress::default())
        .options(connect.options()?)
        .build()?;
    // More messages than are written would be returned by the server in vain.
    let most = DurableOptions::default().max;
    let max = count.and_then(|count| u32::try_from(count).ok()).map_or(most, |count| count.clamp(1, most));
    let asking = DurableOptions { max, ..DurableOptions::default() };
    let opened = tokio::select! {
        opened = open(&actor, &name, &topics, options, connect, asking) => opened?,
        exit = interrupt.wait() => return Ok(exit),
    };
    let wanted: BTreeSet<_> = topics.iter().map(String::as_str).collect();
    let has: BTreeSet<_> = opened.topics().iter().map(String::as_str).collect();
    if !wanted.is_empty() && wanted != has {
        let shown = |topics: BTreeSet<&str>| {
            topics.into_iter().map(|topic| format!("{topic:?}")).collect::<Vec<_>>().join(", ")
        };
        let what = format!(
            "the durable subscription {name:?} subscribes to {}, and not to {}: leave the topics out, choose another name, or change it \
             with `xmsg connect edit`",
            shown(has),
            shown(wanted)
        );
        // Its session would keep messages from others until its lease has expired.
        let _ = opened.close().await;
        bail!(Usage(what));
    }
    if verbose {
        note(format_args!("receives from the durable subscription {name:?}"));
    }
    let mut trouble = opened.trouble();
    let watching = async {
        while trouble.changed().await.is_ok() {
            let latest = trouble.borrow_and_update().clone();
            match latest {
                Some(what) => warn(format_args!("no messages for now: {}", escaped(&what))),
                None => note(format_args!("messages can come again")),
            }
        }
        std::future::pending().await
    };
    let acks = opened.acknowledger();
    let source = Durable { subscription: opened, has_failed: false };
    let writer = Acknowledging { writer, acks, written: None };
    let receiver = Receiver { source, writer, count, timeout, verbose };
    let mut ended = receiver.run(&mut interrupt, watching).await?;
    // Messages that were not written were not acknowledged, and come again.
    if let Some(source) = ended.source.take()
        && let Err(error) = source.subscription.close().await
    {
        warn(format_args!("what was written last may come again: {}", error.with_causes()));
    }
    let _ = actor.close(Duration::ZERO).await;
    Ok(ended.exit())
}

async fn open(
    actor: &Actor,
    name: &str,
    topics: &[String],
    options: Options,
    connect: &ConnectOptions,
    asking: DurableOptions,
) -> anyhow::Result<DurableSubscription> {
    let may_make = !topics.is_empty() && options.admin.has_token()?;
    if may_make {
        let connection = options.durable_connection.as_deref();
        connect::ensure_durable(options.admin, name, connection, topics).await?;
    }
    let attempts = if may_make { ATTEMPTS } else { 1 };
    for attempt in 1.. {
        match DurableSubscription::open(actor, name, asking).await {
            Err(error) if error.kind() == ErrorKind::Timeout && attempt < attempts => {}
            Err(error) if error.kind() == ErrorKind::Timeout => {
                let topics = if topics.is_empty() { "TOPIC" } else { &*topics.join(" ") };
                let what = format!(
                    "nobody answers for a durable subscription {name:?} at {}: to make one, run `xmsg sub --durable {name} {topics}` with \
                     --admin-token-file (and --admin) of a proxy with [connect], or add [[durable]] with `xmsg connect add`",
                    connect.proxy()?
                );
                return Err(Error::new(ErrorKind::Timeout, what).with_source(error).into());
            }
            opened => return Ok(opened?),
        }
    }
    bail!("nobody answers")
}

/// The source of the messages.
struct Durable {
    subscription: DurableSubscription,
    has_failed: bool,
}

impl Source for Durable {
    type Message = xmsg_core::Result<DurableMessage>;

    async fn next(&mut self) -> Option<Self::Message> {
        if self.has_failed {
            return None;
        }
        let next = self.subscription.next().await.transpose();
        self.has_failed = matches!(next, Some(Err(_)));
        next
    }
}

/// Acknowledges what has been written and flushed.
struct Acknowledging<W> {
    writer: W,
    acks: Acknowledger,
    written: Option<Place>,
}

impl<W> Acknowledging<W> {
    fn acknowledge(&mut self) {
        if let Some(place) = self.written.take() {
            self.acks.acknowledge(place);
        }
    }
}

impl<W: Writer<xmsg_core::Result<Message>> + Sync> Writer<xmsg_core::Result<DurableMessage>>
    for Acknowledging<W>
{
    fn write(
        &mut self,
        message: xmsg_core::Result<DurableMessage>,
        number: u64,
    ) -> anyhow::Result<Option<u64>> {
        let DurableMessage { message, place, .. } = message?;
        let written = self.writer.write(Ok(message), number)?;
        self.written = Some(place);
        Ok(written)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.writer.flush()?;
        self.acknowledge();
        Ok(())
    }

    async fn due(&self) {
        self.writer.due().await;
    }

    fn write_due(&mut self) -> anyhow::Result<()> {
        self.writer.write_due()?;
        self.acknowledge();
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.writer.finish()?;
        self.acknowledge();
        Ok(())
    }
}
