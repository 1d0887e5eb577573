//! `xmsg demo`: a proxy, publishers and subscribers in one process, through TCP.
//!
//! | file | answers |
//! |---|---|
//! | `picture.rs` | What does a terminal show, again and again? |
//! | `experiment.rs` | Which sensors are there, which detector, and who listens to them? |
//! | `page.rs` | By which link is the web page of the proxy reached? |
//! | `rates.rs` | How fast is it elsewhere than on a terminal, or for a given time? |

mod experiment;
mod page;
mod picture;
mod rates;

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::args::{parse_duration, parse_number, parse_rate, parse_size};
use crate::exit::Exit;
use crate::screen::Screen;

const EXAMPLES: &str = "\
Examples:
  xmsg demo                                     on a terminal: a live picture, until q
  xmsg demo --for 5s                            as fast as it goes for five seconds, then totals
  xmsg demo --for 5s --json | jq .lost_messages
  xmsg demo --rate 1000                         1000 a second from each publisher, until Ctrl-C
  xmsg demo --publishers 4 --subscribers 8 --size 1024";

/// See xmsg at work: a proxy, publishers and subscribers in one process, through TCP
///
/// On a terminal this shows a small experiment: its topics with their rates, the last minute and the latest
/// values, who publishes and who subscribes, and one subscriber that is slow on purpose, with its queue and
/// what is dropped for it. Other terminals can join in, and a link leads to a web page that shows the same
/// proxy in a browser.
///
/// With any option, or without a terminal, messages flow as fast as they can. Once a second a line says how
/// many were published and delivered, and whether any was lost: each subscriber checks the sequence numbers
/// of each publisher. The web page is there, too, except with --json. At the end, publishers stop, everything
/// under way arrives, and totals are printed; the exit code is 1 if anything was lost.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Run for this long, such as 5s [default: until Ctrl-C]
    #[arg(short, long, visible_alias = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Publishers [default: 2]
    #[arg(long, value_name = "COUNT", value_parser = parse_number::<u16>(1..=1000))]
    publishers: Option<u16>,

    /// Subscribers; each gets the messages of all publishers [default: 2]
    #[arg(long, value_name = "COUNT", value_parser = parse_number::<u16>(1..=1000))]
    subscribers: Option<u16>,

    /// Bytes of data in each message, such as 100, 1KiB or 1MB; 12 at least [default: 128]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_size(text, rates::DIGITS as u64).map(|size| size as u32))]
    size: Option<u32>,

    /// Messages per second of each publisher [default: as fast as it goes]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<f64>,

    /// Write only the totals, as one object of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { duration, publishers, subscribers, size, rate, json } = arguments;
    let is_plain = publishers.is_none() && subscribers.is_none() && size.is_none() && rate.is_none();
    if is_plain && duration.is_none() && !json && Screen::is_possible() {
        return picture::run().await;
    }
    let load = rates::Load {
        duration,
        publishers: publishers.unwrap_or(2),
        subscribers: subscribers.unwrap_or(2),
        size: size.unwrap_or(128),
        rate,
    };
    rates::run(load, json).await
}

/// Returns the command line by which this program was called.
fn program() -> String {
    let name = std::env::args().next().unwrap_or_default();
    let is_good = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if name.is_empty() || !name.chars().all(is_good) { "xmsg".to_owned() } else { name }
}

fn print(text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write to standard output")
}
