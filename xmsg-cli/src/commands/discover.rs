//! `xmsg registrar find` and `xmsg registrar list`: find publishers and subscribers.

use clap::Args;
use serde_json::json;
use xmsg_core::{OwnerType, Query, Registration, Topic};

use crate::args::{RegistrarOptions, parse_number};
use crate::exit::{AtRegistrar, Exit};
use crate::output::Output;
use crate::signals::Interrupt;
use crate::table;

const COLUMNS: [&str; 5] = ["ROLE", "TOPIC", "NAME", "PROXY", "DESCRIPTION"];

const FIND_EXAMPLES: &str = "\
Examples:
  xmsg registrar find report:sports                  its publishers
  xmsg registrar find report:sports --subscribers
  xmsg registrar find '*:sports' --filter --json";

const LIST_EXAMPLES: &str = "\
Examples:
  xmsg registrar list
  xmsg registrar list --publishers --json | jq -r .topic";

/// Find who publishes what a subscriber of a topic would receive, or who subscribes to it
///
/// Publishers are found when their topic starts with TOPIC, subscribers when TOPIC starts with theirs.
#[derive(Debug, Args)]
#[command(after_help = FIND_EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "they are flags of a command line")]
pub(crate) struct FindArguments {
    /// The topic: domain[:subject[:type...]]; with --filter, * stands for any part, the domain, too
    topic: String,

    /// Find subscribers instead of publishers
    #[arg(short, long)]
    subscribers: bool,

    /// Only publishers or subscribers of exactly this topic
    #[arg(long, conflicts_with = "filter")]
    exact: bool,

    /// Only those whose topic has the same parts, as far as parts are given
    #[arg(long)]
    filter: bool,

    /// With --filter: only those on this host
    #[arg(long, requires = "filter")]
    host: Option<String>,

    /// With --filter: only those on this port
    #[arg(long, requires = "filter", value_parser = parse_number::<u16>(1..=65_535))]
    port: Option<u16>,

    /// One object of JSON on each line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    registrar: RegistrarOptions,
}

/// List all publishers and subscribers
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct ListArguments {
    /// Only publishers
    #[arg(short, long, conflicts_with = "subscribers")]
    publishers: bool,

    /// Only subscribers
    #[arg(short, long)]
    subscribers: bool,

    /// One object of JSON on each line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    registrar: RegistrarOptions,
}

pub(crate) async fn find(arguments: FindArguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let registrar = arguments.registrar.client()?;
    let owner = if arguments.subscribers { OwnerType::Subscriber } else { OwnerType::Publisher };
    let query = if arguments.filter {
        let mut parts = arguments.topic.splitn(3, ':');
        let mut part = || parts.next().unwrap_or("*");
        let mut query = Query::parts(owner, part(), part(), part());
        if let Some(host) = arguments.host {
            query = query.host(host);
        }
        query.port(arguments.port.unwrap_or_default())
    } else {
        Query::topic(owner, &arguments.topic.parse::<Topic>()?)
    };
    let question = async {
        arguments.registrar.find(&registrar).await?;
        let found = if arguments.filter {
            registrar.filter(&query).await
        } else if arguments.exact {
            registrar.exact(&query).await
        } else {
            registrar.find(&query).await
        };
        found.map_err(AtRegistrar)
    };
    let found = tokio::select! {
        found = question => found?,
        exit = interrupt.wait() => return Ok(exit),
    };
    show(found.iter().map(|registration| (owner, registration)), arguments.json)
}

pub(crate) async fn list(arguments: ListArguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let registrar = arguments.registrar.client()?;
    let owners = match (arguments.publishers, arguments.subscribers) {
        (true, _) => &[OwnerType::Publisher][..],
        (_, true) => &[OwnerType::Subscriber],
        _ => &OwnerType::ALL,
    };
    let mut found = Vec::new();
    tokio::select! {
        there = arguments.registrar.find(&registrar) => there?,
        exit = interrupt.wait() => return Ok(exit),
    }
    for owner in owners {
        let some = tokio::select! {
            some = registrar.all(*owner) => some.map_err(AtRegistrar)?,
            exit = interrupt.wait() => return Ok(exit),
        };
        found.extend(some.into_iter().map(|registration| (*owner, registration)));
    }
    show(found.iter().map(|(owner, registration)| (*owner, registration)), arguments.json)
}

/// Writes a table or JSON objects.
fn show<'a>(
    found: impl Iterator<Item = (OwnerType, &'a Registration)>,
    as_json: bool,
) -> anyhow::Result<Exit> {
    if as_json {
        let mut output = Output::stdout()?;
        for (owner, registration) in found {
            let line = json!({
                "role": owner.name(),
                "topic": topic(registration),
                "name": registration.name,
                "host": registration.host,
                "port": registration.port,
                "description": registration.description,
            });
            output.json(&line)?;
        }
        output.flush()?;
        return Ok(Exit::Done);
    }
    let rows = found.map(|(owner, registration)| row(owner, registration));
    table::write(COLUMNS, rows.collect(), "registration")
}

fn topic(registration: &Registration) -> String {
    registration.topic().map_or_else(|_| registration.domain.clone(), |topic| topic.to_string())
}

fn row(owner: OwnerType, registration: &Registration) -> [String; 5] {
    let proxy = format!("{}:{}", registration.host, registration.port);
    [
        owner.name().to_owned(),
        topic(registration),
        registration.name.clone(),
        proxy,
        registration.description.clone().unwrap_or_default(),
    ]
}
