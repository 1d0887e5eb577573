//! `xmsg connect top`: outgoing connections and channels as they are now.

mod rates;
mod view;

use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use crossterm::event::KeyCode;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ask::Asked;
use crate::args::parse_duration;
use crate::exit::{AtAdmin, Exit, Usage};
use crate::output::{Output, note};
use crate::screen::{self, Input, Screen};
use rates::{LinkRates, Looks};
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

/// What was found in the end, or why nothing was.
type Found = Result<Vec<LinkRates>, String>;

pub(super) async fn run(asked: Asked, arguments: Top) -> anyhow::Result<Exit> {
    if arguments.interval < Duration::from_millis(100) {
        bail!(Usage("--interval is 100ms at least".to_owned()));
    }
    let mut looks = Looks::default();
    looks.take(&asked).await?;
    if !arguments.once && !asked.json && Screen::is_possible() {
        return watch(asked, looks, arguments).await;
    }
    write(&asked, looks, &arguments).await
}

/// Writes what is found: once, or again and again.
async fn write(asked: &Asked, mut looks: Looks, arguments: &Top) -> anyhow::Result<Exit> {
    let is_repeated = asked.json && !arguments.once;
    let mut output = Output::stdout()?;
    loop {
        tokio::time::sleep(arguments.interval).await;
        let links = match looks.take(asked).await {
            Err(error) if is_repeated && may_come_back(&error) => {
                note(format_args!("{error:#}: trying again"));
                continue;
            }
            links => links?,
        };
        let arranged = arranged(&links, arguments.by, &arguments.filter);
        if asked.json {
            for link in arranged {
                output.json(&link.document())?;
            }
        } else {
            let address = asked.admin.address().to_string();
            output.buffer().extend_from_slice(text(&address, &arranged).as_bytes());
        }
        output.flush()?;
        if !is_repeated {
            return Ok(Exit::Done);
        }
    }
}

/// Whether asking again may end otherwise: the server is away for now.
fn may_come_back(error: &anyhow::Error) -> bool {
    use xmsg_core::ErrorKind;
    let kind = error.downcast_ref::<AtAdmin>().map(|AtAdmin(error)| error.kind());
    matches!(kind, Some(ErrorKind::NotConnected | ErrorKind::Closed | ErrorKind::Timeout))
}

/// Shows what is found until a key or a signal ends it.
async fn watch(asked: Asked, looks: Looks, arguments: Top) -> anyhow::Result<Exit> {
    let address = asked.admin.address().to_string();
    let mut view = View::new(address, arguments.by, arguments.filter);
    let (sender, mut found) = watch::channel(Found::Ok(Vec::new()));
    let mut tasks = JoinSet::new();
    // On its own, so that keys are heard while the server is away.
    tasks.spawn(look_again_and_again(asked, looks, arguments.interval, sender));
    let mut screen = Screen::open()?;
    let style = screen::Look::of_environment();
    screen.draw(|frame| view.draw(frame, style))?;
    loop {
        tokio::select! {
            biased;
            input = screen.input() => match input {
                Input::Interrupt => return Ok(Exit::Interrupted),
                Input::Gone => return Ok(Exit::Done),
                Input::Key(KeyCode::Char('q' | 'Q')) if !view.is_typing() => return Ok(Exit::Done),
                Input::Key(key) => view.press(key),
                Input::Resized => {}
            },
            changed = found.changed() => {
                if changed.is_err() {
                    drop(screen);
                    return match tasks.join_next().await {
                        Some(Ok(error)) => Err(error),
                        _ => Err(anyhow::anyhow!("the server can't be asked any more")),
                    };
                }
                view.show(found.borrow_and_update().clone());
            }
        }
        screen.draw(|frame| view.draw(frame, style))?;
    }
}

/// Returns when it makes no sense to go on.
async fn look_again_and_again(
    asked: Asked,
    mut looks: Looks,
    interval: Duration,
    found: watch::Sender<Found>,
) -> anyhow::Error {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        match looks.take(&asked).await {
            Ok(links) => drop(found.send(Ok(links))),
            Err(error) if may_come_back(&error) => {
                let text = format!("{} does not answer: trying again", asked.admin.address());
                drop(found.send(Err(text)));
            }
            Err(error) => return error,
        }
    }
}
