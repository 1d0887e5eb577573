//! `xmsg connect top`: the present state of outgoing connections and channels.

mod rates;
mod view;

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::ask::AdminTarget;
use crate::args::parse_duration;
use crate::exit::{AtAdmin, Exit};
use crate::live::{self, LiveSource, check_interval};
use crate::screen::Screen;
use rates::{LinkRates, RateSampler};
use view::{View, arranged, text};

pub(super) const EXAMPLES: &str = "\
Examples:
  xmsg connect top
  xmsg connect top --by waiting
  xmsg connect top --once                            one look, as tables
  xmsg connect top --json | jq 'select(.state == \"faulted\") | .incident'

Keys: q quits, p pauses, / filters, arrows move; r w o d s n sort by rate, waiting, oldest, dead, state, name.";

/// Watch outgoing connections and channels: state, rates, spools, dead letters and what went wrong last
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Top {
    /// How often to ask, such as 500ms or 10s
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,

    /// What comes first
    #[arg(long, value_name = "ORDER", value_enum, default_value_t = Order::State)]
    by: Order,

    /// Only those whose names, states or peers contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,

    /// Ask once, after one interval, and write tables
    #[arg(long)]
    once: bool,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Order {
    /// Messages that are delivered in a second
    Rate,
    /// Messages in the spool
    Waiting,
    /// The age of the oldest message in the spool
    Oldest,
    /// Dead letters
    Dead,
    /// Those in trouble
    State,
    /// Names
    Name,
}

pub(super) async fn run(target: AdminTarget, arguments: Top) -> anyhow::Result<Exit> {
    check_interval(arguments.interval)?;
    let is_json = target.json;
    let mut links = Links { target, looks: RateSampler::default() };
    links.sample().await?;
    if !arguments.once && !is_json && Screen::is_possible() {
        let view = View::new(links.address(), arguments.by, arguments.filter);
        return live::watch(links, arguments.interval, view).await;
    }
    live::write(&mut links, arguments.interval, is_json && !arguments.once, |links, found, output| {
        let arranged = arranged(&found, arguments.by, &arguments.filter);
        if is_json {
            for link in arranged {
                output.json(&link.document())?;
            }
        } else {
            output.buffer().extend_from_slice(text(&links.address(), &arranged).as_bytes());
        }
        Ok(())
    })
    .await?;
    Ok(Exit::Done)
}

/// The links of a server, and the samples of their counts.
struct Links {
    target: AdminTarget,
    looks: RateSampler,
}

impl LiveSource for Links {
    type Sample = Vec<LinkRates>;

    async fn sample(&mut self) -> anyhow::Result<Vec<LinkRates>> {
        self.looks.take(&self.target).await
    }

    fn may_come_back(error: &anyhow::Error) -> bool {
        use xmsg_core::ErrorKind;
        let kind = error.downcast_ref::<AtAdmin>().map(|AtAdmin(error)| error.kind());
        matches!(kind, Some(ErrorKind::NotConnected | ErrorKind::Closed | ErrorKind::Timeout))
    }

    fn address(&self) -> String {
        self.target.admin.address().to_string()
    }
}
