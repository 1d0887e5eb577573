//! `xmsg find` and `xmsg list`: who publishes and who subscribes.

use std::io::{self, IsTerminal};

use clap::Args;
use serde_json::json;
use xmsg_core::text::{escaped, json_escaped};
use xmsg_core::{OwnerType, Query, Registration, Topic};

use crate::args::RegistrarOptions;
use crate::exit::{AtRegistrar, Exit};
use crate::output::{Output, counted, note};
use crate::signals::Interrupt;

const COLUMNS: [&str; 5] = ["ROLE", "TOPIC", "NAME", "PROXY", "DESCRIPTION"];

/// Find who publishes what a subscriber of a topic would receive, or who subscribes to it
///
/// Publishers are found when their topic starts with TOPIC, subscribers when TOPIC starts with theirs.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "they are flags of a command line")]
pub(crate) struct FindArguments {
    /// The topic: domain[:subject[:type...]]; with --filter, * stands for any part, the domain, too
    topic: String,

    /// Find subscribers instead of publishers
    #[arg(short, long)]
    subscribers: bool,

    /// Only those of exactly this topic
    #[arg(long, conflicts_with = "filter")]
    exact: bool,

    /// Those whose topic has the same parts, as far as they are given
    #[arg(long)]
    filter: bool,

    /// With --filter: only those of this host
    #[arg(long, requires = "filter")]
    host: Option<String>,

    /// With --filter: only those of this port
    #[arg(long, requires = "filter", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// One object of JSON on each line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    registrar: RegistrarOptions,
}

/// List all publishers and subscribers
#[derive(Debug, Args)]
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
        if arguments.filter {
            registrar.filter(&query).await
        } else if arguments.exact {
            registrar.exact(&query).await
        } else {
            registrar.find(&query).await
        }
    };
    let found = tokio::select! {
        found = question => found.map_err(AtRegistrar)?,
        () = interrupt.wait() => return Ok(Exit::Interrupted),
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
    for owner in owners {
        let some = tokio::select! {
            some = registrar.all(*owner) => some.map_err(AtRegistrar)?,
            () = interrupt.wait() => return Ok(Exit::Interrupted),
        };
        found.extend(some.into_iter().map(|registration| (*owner, registration)));
    }
    show(found.iter().map(|(owner, registration)| (*owner, registration)), arguments.json)
}

/// Writes a table on a terminal; elsewhere, lines with tabs between their columns.
fn show<'a>(
    found: impl Iterator<Item = (OwnerType, &'a Registration)>,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let mut output = Output::stdout()?;
    if as_json {
        for (owner, registration) in found {
            let line = json!({
                "role": owner.name(),
                "topic": topic(registration),
                "name": registration.name,
                "host": registration.host,
                "port": registration.port,
                "description": registration.description,
            });
            output.buffer().extend_from_slice(json_escaped(&line.to_string()).as_bytes());
            output.buffer().push(b'\n');
            output.written()?;
        }
        output.flush()?;
        return Ok(Exit::Done);
    }
    let rows: Vec<[String; 5]> = found.map(|(owner, registration)| row(owner, registration)).collect();
    let on_terminal = io::stdout().is_terminal();
    for line in if on_terminal { table(&rows) } else { rows.iter().map(|row| row.join("\t")).collect() } {
        output.buffer().extend_from_slice(line.as_bytes());
        output.buffer().push(b'\n');
        output.written()?;
    }
    output.flush()?;
    if on_terminal {
        note(counted(rows.len() as u64, "registration"));
    }
    Ok(Exit::Done)
}

fn topic(registration: &Registration) -> String {
    registration.topic().map_or_else(|_| registration.domain.clone(), |topic| topic.to_string())
}

/// What peers sent may hold anything: control characters would play tricks with a terminal, tabs with columns.
fn row(owner: OwnerType, registration: &Registration) -> [String; 5] {
    let proxy = format!("{}:{}", registration.host, registration.port);
    [
        owner.name().to_owned(),
        topic(registration),
        registration.name.clone(),
        proxy,
        registration.description.clone().unwrap_or_default(),
    ]
    .map(|cell| escaped(&cell).into_owned())
}

fn table(rows: &[[String; 5]]) -> Vec<String> {
    let header = COLUMNS.map(str::to_owned);
    let all = || std::iter::once(&header).chain(rows);
    let widths: [usize; 5] =
        std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0));
    all()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let topic = Topic::new("rock", "metal").unwrap();
        let registration =
            Registration::new(OwnerType::Publisher, "bass", &topic, &"10.0.0.7".parse().unwrap())
                .with_description("plays\x1b[2J");
        let lines = table(&[row(OwnerType::Publisher, &registration)]);
        assert_eq!(
            lines,
            [
                "ROLE       TOPIC       NAME  PROXY          DESCRIPTION",
                "publisher  rock:metal  bass  10.0.0.7:7771  plays\\u{1b}[2J",
            ]
        );
    }
}
