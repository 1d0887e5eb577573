//! `xmsg connections`: lists the connections of a proxy, and ends one of them.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use anyhow::bail;
use clap::{Args, Subcommand};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use xmsg_core::{Error, ErrorKind};

use crate::admin::{Admin, Answer};
use crate::exit::{AtAdmin, Exit, Usage};
use crate::output::{Output, grouped, note};
use crate::received_json;
use crate::signals::Interrupt;
use crate::stats::{Connection, SourceOptions, Stats, Sum, first_rows};
use crate::table::{self, size, time};

const COLUMNS: [&str; 8] = ["SIDE", "ID", "PEER", "CONNECTED", "MESSAGES", "QUEUE", "DROPPED", "HELD UP"];
/// The largest number of entries in one answer.
const PAGE_MAX: usize = 1000;
/// The largest number of entries that are requested in all, and of the bytes of their pages.
const LIST_MAX: usize = 1_000_000;
const LIST_BYTES_MAX: usize = 256 << 20;

const EXAMPLES: &str = "\
Examples:
  xmsg connections                                   of the proxy of this host
  xmsg connections --sort queue                      the slowest subscriber first
  xmsg connections --json | jq .peer
  xmsg connections end 12 --admin-token-file admin-token";

const END_EXAMPLES: &str = "\
Examples:
  xmsg connections end 12 --admin-token-file admin-token";

/// List the connections of a running proxy, or end one of them
///
/// For a subscriber, the list has the messages and bytes in its queue, the messages that were dropped for it,
/// and how long publishers have waited for it. For a publisher, it says whether the publisher has already
/// closed its connection while a slow subscriber blocks what it sent. For an upstream that is not connected,
/// it says how the link stands.
///
/// The proxy itself lists the 1,000 most important connections; its HTTP server (--admin) lists all. Only the
/// HTTP server can end one.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// What to sort by: id, peer, or, with the highest ones first, connected, messages, bytes, queue, drops,
    /// subscriptions [default: id]
    #[arg(long, value_name = "SORT", hide_possible_values = true,
          value_parser = ["id", "peer", "connected", "messages", "bytes", "queue", "drops", "subscriptions"])]
    sort: Option<String>,

    /// One object of JSON on each line
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    source: SourceOptions,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// End the connection of a publisher or subscriber; needs the token (--admin-token-file)
    ///
    /// No other connection is ended, and publishers that waited for this one go on. What was queued for it is
    /// lost. A client that reconnects by itself comes back; to keep it out, take away its rights.
    #[command(after_help = END_EXAMPLES)]
    End {
        /// Its number, as `xmsg connections` shows it
        #[arg(value_parser = parse_id)]
        id: u32,
    },
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { action, sort, json, source } = arguments;
    let mut interrupt = Interrupt::new()?;
    let work = async {
        match action {
            Some(Action::End { .. }) if sort.is_some() => {
                bail!(Usage("--sort is for the list: it can't be used with `end`".to_owned()))
            }
            Some(Action::End { id }) => end(&source.admin.admin()?, id, json).await,
            None => {
                let sort = sort.as_deref().unwrap_or("id");
                let mut connections = if source.admin.is_given()? {
                    all(&source.admin.admin()?).await?
                } else {
                    busiest(&source).await?
                };
                apply(sort, &mut connections);
                show(&connections, json)
            }
        }
    };
    tokio::select! {
        exit = work => exit,
        exit = interrupt.wait() => Ok(exit),
    }
}

fn parse_id(text: &str) -> Result<u32, &'static str> {
    text.parse()
        .map_err(|_| "not the number of a connection: `xmsg connections` lists them with their numbers")
}

async fn end(admin: &Admin, id: u32, as_json: bool) -> anyhow::Result<Exit> {
    let answer = admin.ask(Method::POST, &format!("/api/v1/connections/{id}/end")).await?;
    if answer.status == StatusCode::NOT_FOUND {
        let text = answer.text();
        // A server that does not know the path returns no text.
        let why = if text.is_empty() {
            "it has no such path: is it a registrar, or an older proxy?".to_owned()
        } else {
            text
        };
        return failed(format!("{} ends no connection {id}: {why}", admin.address()));
    }
    let found = read(admin, &answer)?;
    let (Some(side), Some(peer)) = (found["side"].as_str(), found["peer"].as_str()) else {
        return unreadable(admin);
    };
    if as_json {
        write_json([found.clone()])?;
    } else {
        note(format_args!("the connection {id} of the {side} {peer} is being ended"));
    }
    Ok(Exit::Done)
}

/// One page of the list of the HTTP server.
#[derive(Debug, Deserialize)]
struct Page {
    #[serde(deserialize_with = "first_rows")]
    connections: Vec<Connection>,
}

/// Returns all connections, which the HTTP server lists.
async fn all(admin: &Admin) -> anyhow::Result<Vec<Connection>> {
    let (mut connections, mut received) = (Vec::new(), 0);
    // A connection may move to the next page when others come and go between two requests.
    let mut known = BTreeSet::new();
    for kind in ["upstream", "publisher", "subscriber"] {
        for offset in (0..).step_by(PAGE_MAX) {
            let path = format!("/api/v1/connections?kind={kind}&sort=id&limit={PAGE_MAX}&offset={offset}");
            let answer = admin.ask(Method::GET, &path).await?;
            if answer.status == StatusCode::NOT_FOUND {
                return failed(format!(
                    "{} lists no connections: is it a registrar, or an older proxy?",
                    admin.address()
                ));
            }
            check(admin, &answer)?;
            let Ok(Page { connections: rows }) = serde_json::from_slice(&answer.body) else {
                return unreadable(admin);
            };
            let is_last = rows.len() < PAGE_MAX;
            for connection in rows {
                if connection.kind != kind {
                    return unreadable(admin);
                }
                if known.insert(connection.id) {
                    connections.push(connection);
                }
            }
            if is_last {
                break;
            }
            // A server that only claims to be a proxy may have no last page.
            received += answer.body.len();
            if offset + PAGE_MAX >= LIST_MAX || received >= LIST_BYTES_MAX {
                let listed = grouped(connections.len() as u64);
                note(format_args!("the list ends here, after {listed} entries"));
                return Ok(connections);
            }
        }
    }
    Ok(connections)
}

/// Returns the connections that the proxy reports itself: as many as fit into its answer.
async fn busiest(options: &SourceOptions) -> anyhow::Result<Vec<Connection>> {
    let mut source = options.open().await?;
    let (Stats { connections, connections_left_out, .. }, _) = source.ask().await?;
    if connections_left_out > 0 {
        note(format_args!(
            "{} more are left out: the HTTP server lists all (--admin)",
            grouped(connections_left_out)
        ));
    }
    Ok(connections)
}

/// Sorts them: the highest ones first, names from A to Z, and what is equal by its number.
fn apply(sort: &str, connections: &mut [Connection]) {
    connections.sort_by_key(|one| one.id);
    match sort {
        "peer" => connections.sort_by(|a, b| a.peer.cmp(&b.peer)),
        "connected" => connections.sort_by(|a, b| b.connected_s.total_cmp(&a.connected_s)),
        "messages" => connections.sort_by_key(|one| Reverse(one.messages)),
        "bytes" => connections.sort_by_key(|one| Reverse(one.bytes)),
        "queue" => connections.sort_by_key(|one| Reverse(one.queued.map(|queued| queued.bytes))),
        "drops" => connections.sort_by_key(|one| Reverse(one.dropped.map(|dropped| dropped.messages))),
        "subscriptions" => connections.sort_by_key(|one| Reverse(one.subscriptions)),
        _ => {}
    }
}

fn show(connections: &[Connection], as_json: bool) -> anyhow::Result<Exit> {
    if as_json {
        write_json(connections.iter().map(document))?;
        return Ok(Exit::Done);
    }
    table::write(COLUMNS, connections.iter().map(row).collect(), "connection")
}

fn read(admin: &Admin, answer: &Answer) -> anyhow::Result<Value> {
    check(admin, answer)?;
    received_json::value(&answer.body).or_else(|_| unreadable(admin))
}

fn check(admin: &Admin, answer: &Answer) -> anyhow::Result<()> {
    if answer.status != StatusCode::OK {
        return failed(format!("{} answers {}: {}", admin.address(), answer.status, answer.text()));
    }
    Ok(())
}

fn unreadable<T>(admin: &Admin) -> anyhow::Result<T> {
    failed(format!("{} does not answer as a proxy does: is something else there?", admin.address()))
}

fn failed<T>(text: String) -> anyhow::Result<T> {
    Err(AtAdmin(Error::new(ErrorKind::Remote, text)).into())
}

fn write_json(values: impl IntoIterator<Item = Value>) -> anyhow::Result<()> {
    let mut output = Output::stdout()?;
    for value in values {
        output.json(&value)?;
    }
    output.flush()
}

fn document(connection: &Connection) -> Value {
    let Connection { queued, dropped, .. } = connection;
    json!({
        "side": connection.kind,
        "id": connection.id,
        "peer": connection.peer,
        "principal": connection.principal,
        "connected_s": connection.connected_s,
        "left_s": connection.left_s,
        "messages": connection.messages,
        "queued_messages": queued.map(|queued| queued.messages),
        "queued_bytes": queued.map(|queued| queued.bytes),
        "dropped_messages": dropped.map(|dropped| dropped.messages),
        "publisher_wait_s": connection.publisher_wait_s,
        "slow_s": connection.slow_s,
        "state": connection.state,
        "state_s": connection.state_s,
        "reconnections": connection.reconnections,
        "loops": connection.loops,
        "error": connection.error,
    })
}

fn row(connection: &Connection) -> [String; 8] {
    let or_none = |shown: Option<String>| shown.unwrap_or_else(|| "-".to_owned());
    let connected = match (connection.left_s, connection.state.as_deref()) {
        (Some(left), _) => format!("left {} ago", time(left)),
        (None, Some(state)) if state != "connected" => state.to_owned(),
        (None, _) => time(connection.connected_s),
    };
    [
        connection.kind.clone(),
        connection.id.to_string(),
        connection.who(),
        connected,
        grouped(connection.messages),
        or_none(
            connection
                .queued
                .map(|Sum { messages, bytes }| format!("{} ({})", grouped(messages), size(bytes))),
        ),
        or_none(connection.dropped.map(|dropped| grouped(dropped.messages))),
        or_none(connection.publisher_wait_s.map(time)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_there_is() {
        let read = |value: &Value| Connection::deserialize(value).unwrap();
        let publisher = json!({ "kind": "publisher", "id": 7, "peer": "10.0.0.9:1", "connected_s": 93.5,
            "messages": 1200, "principal": null });
        let shown = row(&read(&publisher));
        assert_eq!(shown, ["publisher", "7", "10.0.0.9:1", "1m 33s", "1,200", "-", "-", "-"]);
        let gone = json!({ "kind": "publisher", "id": 9, "peer": "10.0.0.9:3", "connected_s": 93.5, "left_s": 2.04,
            "messages": 0, "principal": null });
        let found = read(&gone);
        assert_eq!(row(&found)[3], "left 2.0s ago");
        assert_eq!(document(&found)["left_s"], 2.04);
        let upstream = json!({ "kind": "upstream", "id": 3, "peer": "tcp://daq:7772", "connected_s": 0.0,
            "messages": 4, "principal": null, "state": "loop", "state_s": 2.5, "loops": 1 });
        let found = read(&upstream);
        assert_eq!(row(&found)[..4], ["upstream", "3", "tcp://daq:7772", "loop"]);
        assert_eq!(document(&found)["loops"], 1);
        let subscriber = json!({ "kind": "subscriber", "id": 8, "peer": "10.0.0.9:2", "connected_s": 90_061.0,
            "messages": 5, "principal": "zoe", "queued": { "messages": 3, "bytes": 3 << 20 },
            "dropped": { "messages": 1, "bytes": 1 }, "publisher_wait_s": 0.26 });
        let shown = row(&read(&subscriber));
        assert_eq!(shown, ["subscriber", "8", "10.0.0.9:2 (zoe)", "1d 1h", "5", "3 (3.0 MiB)", "1", "0.3s"]);
    }
}
