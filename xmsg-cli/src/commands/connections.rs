//! `xmsg connections`: who is connected to a proxy, and how to end one of them.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::{Args, Subcommand};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use xmsg_core::text::json_escaped;
use xmsg_core::{Error, ErrorKind};

use crate::admin::{Admin, AdminOptions, Answer};
use crate::exit::{AtAdmin, Exit, Usage};
use crate::output::{Output, grouped, note};
use crate::signals::Interrupt;
use crate::table::{self, size, time};

const COLUMNS: [&str; 8] = ["SIDE", "ID", "PEER", "CONNECTED", "MESSAGES", "QUEUE", "DROPPED", "HELD UP"];
/// Entries that are asked for at a time: as many as there may be.
const PAGE: usize = 10_000;

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
/// For a subscriber, the list has the messages and bytes in its queue, the messages that were dropped for it, and how
/// long publishers have waited for it. For a publisher, it says whether the publisher has already closed its connection
/// while a slow subscriber blocks what it sent.
/// Asks the HTTP server of the proxy (xmsg-proxy --admin).
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// What the list is ordered by: id, peer, or, with the highest ones first, connected, messages, bytes, queue, drops,
    /// subscriptions [default: id]
    #[arg(long, value_name = "BY", hide_possible_values = true,
          value_parser = ["id", "peer", "connected", "messages", "bytes", "queue", "drops", "subscriptions"])]
    sort: Option<String>,

    /// One object of JSON on each line
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// End the connection of a publisher or subscriber; it takes the token (--admin-token-file)
    ///
    /// Nothing else is ended, and publishers that waited for it go on. What was queued for it is lost. A client that connects by
    /// itself comes back; to keep it out, take its rights away.
    #[command(after_help = END_EXAMPLES)]
    End {
        /// Its number, as `xmsg connections` shows it
        id: u32,
    },
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { action, sort, json, admin } = arguments;
    let mut interrupt = Interrupt::new()?;
    let admin = admin.admin()?;
    let work = async {
        match action {
            Some(Action::End { .. }) if sort.is_some() => {
                bail!(Usage("--sort is for the list: it can't be used with `end`".to_owned()))
            }
            Some(Action::End { id }) => end(&admin, id, json).await,
            None => list(&admin, sort.as_deref().unwrap_or("id"), json).await,
        }
    };
    tokio::select! {
        exit = work => exit,
        exit = interrupt.wait() => Ok(exit),
    }
}

async fn end(admin: &Admin, id: u32, as_json: bool) -> anyhow::Result<Exit> {
    let answer = admin.ask(Method::POST, &format!("/connections/{id}/end")).await?;
    if answer.status == StatusCode::NOT_FOUND {
        let text = answer.text();
        // Whoever does not know the path says nothing.
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

async fn list(admin: &Admin, sort: &str, as_json: bool) -> anyhow::Result<Exit> {
    let mut connections = Vec::new();
    // Those who come and go between two pages may move one to the next.
    let mut known = BTreeSet::new();
    for offset in (0..).step_by(PAGE) {
        let path = format!("/connz?sort={sort}&limit={PAGE}&offset={offset}");
        let answer = admin.ask(Method::GET, &path).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return failed(format!("{} lists no connections: is it a registrar?", admin.address()));
        }
        let mut page = read(admin, &answer)?;
        let Value::Array(rows) = page["connections"].take() else { return unreadable(admin) };
        let is_last = rows.len() < PAGE;
        for row in rows {
            let Some(connection) = Connection::read(&row) else { return unreadable(admin) };
            if known.insert(connection.id) {
                connections.push(connection);
            }
        }
        if is_last {
            break;
        }
    }
    if as_json {
        write_json(connections.iter().map(Connection::json))?;
        return Ok(Exit::Done);
    }
    table::write(COLUMNS, connections.iter().map(Connection::row).collect(), "connection")
}

fn read(admin: &Admin, answer: &Answer) -> anyhow::Result<Value> {
    if answer.status != StatusCode::OK {
        return failed(format!("{} answers {}: {}", admin.address(), answer.status, answer.text()));
    }
    serde_json::from_slice(&answer.body).or_else(|_| unreadable(admin))
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
        output.buffer().extend_from_slice(json_escaped(&value.to_string()).as_bytes());
        output.buffer().push(b'\n');
        output.written()?;
    }
    output.flush()
}

/// One connection, as the proxy shows it.
#[derive(Debug)]
struct Connection {
    side: String,
    id: u64,
    peer: String,
    connected_s: f64,
    messages: u64,
    principal: Option<String>,
    /// How long ago a publisher left whose messages a subscriber has yet to take.
    left_s: Option<f64>,
    subscriber: Option<SubscriberPart>,
}

/// What only a subscriber has.
#[derive(Debug)]
struct SubscriberPart {
    queued_messages: u64,
    queued_bytes: u64,
    dropped_messages: u64,
    publisher_wait_s: f64,
}

impl Connection {
    fn read(row: &Value) -> Option<Self> {
        let subscriber = match row.get("queued") {
            None => None,
            Some(queued) => Some(SubscriberPart {
                queued_messages: queued["messages"].as_u64()?,
                queued_bytes: queued["bytes"].as_u64()?,
                dropped_messages: row["dropped"]["messages"].as_u64()?,
                publisher_wait_s: row["publisher_wait_s"].as_f64()?,
            }),
        };
        Some(Self {
            side: row["kind"].as_str()?.to_owned(),
            id: row["id"].as_u64()?,
            peer: row["peer"].as_str()?.to_owned(),
            connected_s: row["connected_s"].as_f64()?,
            messages: row["messages"].as_u64()?,
            principal: row["principal"].as_str().map(str::to_owned),
            left_s: row["left_s"].as_f64(),
            subscriber,
        })
    }

    fn json(&self) -> Value {
        let part = self.subscriber.as_ref();
        json!({
            "side": self.side,
            "id": self.id,
            "peer": self.peer,
            "principal": self.principal,
            "connected_s": self.connected_s,
            "left_s": self.left_s,
            "messages": self.messages,
            "queued_messages": part.map(|part| part.queued_messages),
            "queued_bytes": part.map(|part| part.queued_bytes),
            "dropped_messages": part.map(|part| part.dropped_messages),
            "publisher_wait_s": part.map(|part| part.publisher_wait_s),
        })
    }

    fn row(&self) -> [String; 8] {
        let part = self.subscriber.as_ref();
        let shown = |show: fn(&SubscriberPart) -> String| part.map_or_else(|| "-".to_owned(), show);
        // Who it has proved to be says more than an address.
        let peer = match &self.principal {
            Some(principal) => format!("{} ({principal})", self.peer),
            None => self.peer.clone(),
        };
        let connected = match self.left_s {
            Some(left) => format!("left {} ago", time(left)),
            None => time(self.connected_s),
        };
        [
            self.side.clone(),
            self.id.to_string(),
            peer,
            connected,
            grouped(self.messages),
            shown(|part| format!("{} ({})", grouped(part.queued_messages), size(part.queued_bytes))),
            shown(|part| grouped(part.dropped_messages)),
            shown(|part| time(part.publisher_wait_s)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_there_is() {
        let publisher = json!({ "kind": "publisher", "id": 7, "peer": "10.0.0.9:1", "connected_s": 93.5,
            "messages": 1200, "principal": null });
        let row = Connection::read(&publisher).unwrap().row();
        assert_eq!(row, ["publisher", "7", "10.0.0.9:1", "1m 33s", "1,200", "-", "-", "-"]);
        let gone = json!({ "kind": "publisher", "id": 9, "peer": "10.0.0.9:3", "connected_s": 93.5, "left_s": 2.04,
            "messages": 0, "principal": null });
        let found = Connection::read(&gone).unwrap();
        assert_eq!(found.row()[3], "left 2.0s ago");
        assert_eq!(found.json()["left_s"], 2.04);
        let subscriber = json!({ "kind": "subscriber", "id": 8, "peer": "10.0.0.9:2", "connected_s": 90_061.0,
            "messages": 5, "principal": "zoe", "queued": { "messages": 3, "bytes": 3 << 20 },
            "dropped": { "messages": 1, "bytes": 1 }, "publisher_wait_s": 0.26 });
        let row = Connection::read(&subscriber).unwrap().row();
        assert_eq!(row, ["subscriber", "8", "10.0.0.9:2 (zoe)", "1d 1h", "5", "3 (3.0 MiB)", "1", "0.3s"]);
        assert!(Connection::read(&json!({ "id": 1 })).is_none());
    }
}
