//! The commands that send messages by outgoing connections, and that handle dead letters.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::ask::{AdminTarget, Sort, path, refused};
use super::{Change, Dead, Send};
use crate::args::TopicOptions;
use crate::exit::Exit;
use crate::message_builder::MessageBuilder;
use crate::output::{Output, counted, note};
use crate::received_json;
use crate::source::Split;
use crate::table;

/// The number of dead letters in one request: the server returns no more.
const PAGE_MAX: usize = 1000;
/// The maximum number of rows of a table, whose columns are as wide as the longest of all cells, and the
/// maximum number of bytes in them. JSON is written page by page, without an end.
const TABLE_ROWS_MAX: usize = 10_000;
const TABLE_BYTES_MAX: usize = 8 << 20;
/// The maximum number of dead letters that one command sends again.
const REVIVED_MAX: usize = 1_000_000;
/// The properties that are numbers.
const NUMBERS: [&str; 2] = ["priority", "timestamp"];

/// A name and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    key: String,
    value: Value,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("a name and a value with `=` between them")?;
        let (key, value) = match key.strip_suffix(':') {
            Some(key) => {
                let value = serde_json::from_str(value)
                    .ok()
                    .filter(|value: &Value| value.is_number() || value.is_boolean());
                (key, value.ok_or("the value behind `:=` is a number, true or false")?)
            }
            None => (key, value.into()),
        };
        if key.is_empty() {
            return Err("the name is missing in front of `=`".to_owned());
        }
        Ok(Self { key: key.to_owned(), value })
    }
}

/// Returns the properties as the server accepts them.
fn properties(pairs: Vec<Pair>) -> Map<String, Value> {
    let typed = |Pair { key, value }: Pair| {
        let number =
            value.as_str().filter(|_| NUMBERS.contains(&&*key)).and_then(|text| text.parse::<u64>().ok());
        (key, number.map_or(value, Value::from))
    };
    pairs.into_iter().map(typed).collect()
}

pub(super) async fn send(target: &AdminTarget, arguments: Send) -> anyhow::Result<Exit> {
    target.outgoing()?;
    let Send { name, input, topic, mime, exchange, routing_key, property, header, confirm, timeout } =
        arguments;
    let topic = TopicOptions::default().to_publish(topic.as_ref().unwrap_or(&name))?;
    let builder = MessageBuilder::of_mime(&topic, &mime)?;
    let mut source = builder.source(input.data.as_deref(), input.file.as_deref(), Split::Whole)?;
    let data = source.next().await?.unwrap_or_default();
    let [_, _, data] = builder.message(data)?.into_frames();
    let headers: Map<String, Value> = header.into_iter().map(|Pair { key, value }| (key, value)).collect();
    let body = json!({
        "topic": topic.to_string(),
        "mime": mime,
        "base64": BASE64.encode(data),
        "exchange": exchange,
        "routing_key": routing_key,
        "properties": properties(property),
        "headers": headers,
        "confirm": confirm,
        "timeout_s": timeout.as_secs_f64(),
    });
    let waits = if confirm { timeout } else { Duration::ZERO };
    let path = format!("{}/send", path(Sort::Outgoing, &name));
    match target.try_ask(Method::POST, &path, body.to_string().into(), waits).await? {
        Ok(body) => {
            let reply = target.read(&body)?;
            target.json(&reply)?;
            if !target.json {
                let how = if confirm { "was sent, and the peer has it" } else { "was accepted" };
                note(format_args!("the message {} {how}", reply["id"].as_str().unwrap_or_default()));
            }
            Ok(Exit::Done)
        }
        Err(answer) => refused(answer),
    }
}

pub(super) async fn dead(target: &AdminTarget, arguments: Dead) -> anyhow::Result<Exit> {
    target.outgoing()?;
    let Dead { name, change } = arguments;
    let at = format!("{}/dead", path(Sort::Outgoing, &name));
    match change {
        Change { revive: Some(sequence), .. } => {
            revive(target, &at, sequence).await?;
            print_count(target, "revived", 1, &format!("the dead letter {sequence} is sent again"))
        }
        Change { revive_all: true, .. } => revive_all(target, &at).await,
        Change { discard: Some(sequence), .. } => discard(target, &format!("{at}?sequence={sequence}")).await,
        Change { discard_all: true, .. } => discard(target, &at).await,
        Change { .. } if target.json => print(target, &at).await,
        Change { .. } => show(target, &at).await,
    }
}

/// The dead letters of an outgoing connection, the oldest first, in the pages in which the server returns
/// them. There may be any number of them.
struct Pages<'a> {
    target: &'a AdminTarget,
    at: &'a str,
    /// The number after which the next page begins. `None` after the last page.
    after: Option<u64>,
}

impl<'a> Pages<'a> {
    fn new(target: &'a AdminTarget, at: &'a str) -> Self {
        Self { target, at, after: Some(0) }
    }

    /// Returns the next page, or `None` after the last one.
    async fn next(&mut self) -> anyhow::Result<Option<Vec<Value>>> {
        let Some(after) = self.after.take() else { return Ok(None) };
        let path = format!("{}?after={after}&limit={PAGE_MAX}", self.at);
        let mut answer = self.target.ask(Method::GET, &path, Bytes::new()).await?;
        let Value::Array(page) = answer["dead"].take() else { return Ok(None) };
        // A server that repeats a page is asked no more.
        let last = page.iter().filter_map(sequence_of).max();
        self.after = last.filter(|last| page.len() == PAGE_MAX && *last > after);
        Ok(Some(page))
    }
}

fn sequence_of(letter: &Value) -> Option<u64> {
    letter["sequence"].as_u64()
}

async fn print(target: &AdminTarget, at: &str) -> anyhow::Result<Exit> {
    let (mut output, mut pages) = (Output::stdout()?, Pages::new(target, at));
    while let Some(page) = pages.next().await? {
        for letter in &page {
            output.json(letter)?;
        }
        output.flush()?;
    }
    Ok(Exit::Done)
}

async fn show(target: &AdminTarget, at: &str) -> anyhow::Result<Exit> {
    let (mut rows, mut bytes, mut pages) = (Vec::new(), 0, Pages::new(target, at));
    let is_full = 'pages: {
        while let Some(page) = pages.next().await? {
            for letter in &page {
                let sequence = sequence_of(letter).map(|sequence| sequence.to_string()).unwrap_or_default();
                let reason = letter["reason"].as_str().unwrap_or("-").to_owned();
                let row = [sequence, reason, death_history(letter)];
                bytes += row.iter().map(String::len).sum::<usize>();
                if rows.len() == TABLE_ROWS_MAX || bytes > TABLE_BYTES_MAX {
                    break 'pages true;
                }
                rows.push(row);
            }
        }
        false
    };
    let shown = rows.len();
    let exit = table::write(["SEQUENCE", "REASON", "X-DEATH"], rows, "dead letter")?;
    if is_full {
        note(format_args!("only the oldest {shown} are shown: `--json` prints all of them"));
    }
    Ok(exit)
}

async fn revive_all(target: &AdminTarget, at: &str) -> anyhow::Result<Exit> {
    // All are listed before the first is sent again, because it may come back.
    let (mut sequences, mut pages) = (Vec::new(), Pages::new(target, at));
    while sequences.len() < REVIVED_MAX
        && let Some(page) = pages.next().await?
    {
        sequences.extend(page.iter().filter_map(sequence_of));
    }
    let mut count = 0;
    for sequence in sequences {
        revive(target, at, sequence).await.with_context(|| format!("{count} are sent again, and then"))?;
        count += 1;
    }
    if pages.after.is_some() {
        note("there are more dead letters: run the command again");
    }
    print_count(target, "revived", count, &format!("sent again: {}", counted(count, "dead letter")))
}

/// Describes what a broker did with the message before, from its header `x-death`, if it came from a queue of
/// dead letters.
fn death_history(letter: &Value) -> String {
    let history =
        letter["headers"]["x-death"].as_str().and_then(|text| received_json::value(text.as_bytes()).ok());
    let Some(Value::Array(history)) = history else { return "-".to_owned() };
    let one = |death: &Value| {
        let text = |field: &str| death[field].as_str().unwrap_or("?").to_owned();
        let count = counted(death["count"].as_u64().unwrap_or(1), "time");
        format!("{} in {} ({count})", text("reason"), text("queue"))
    };
    history.iter().map(one).collect::<Vec<_>>().join(", then ")
}

async fn revive(target: &AdminTarget, at: &str, sequence: u64) -> anyhow::Result<()> {
    target.ask(Method::POST, &format!("{at}/{sequence}/revive"), Bytes::new()).await.map(drop)
}

async fn discard(target: &AdminTarget, path: &str) -> anyhow::Result<Exit> {
    let count =
        target.ask(Method::DELETE, path, Bytes::new()).await?["discarded"].as_u64().unwrap_or_default();
    print_count(target, "discarded", count, &format!("deleted: {}", counted(count, "dead letter")))
}

fn print_count(target: &AdminTarget, key: &str, count: u64, what: &str) -> anyhow::Result<Exit> {
    target.json(&json!({ key: count }))?;
    if !target.json {
        note(what);
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_texts_unless_they_say_otherwise() {
        let pair = |text: &str| text.parse::<Pair>().map(|pair| (pair.key, pair.value));
        assert_eq!(pair("X-Env=a=b"), Ok(("X-Env".to_owned(), json!("a=b"))));
        assert_eq!(pair("X-Level:=3"), Ok(("X-Level".to_owned(), json!(3))));
        assert_eq!(pair("X-Test:=true"), Ok(("X-Test".to_owned(), json!(true))));
        assert_eq!(pair("X-Empty="), Ok(("X-Empty".to_owned(), json!(""))));
        for bad in ["", "x", "=x", ":=3", "x:=three", "x:=[1]"] {
            pair(bad).unwrap_err();
        }
        let read = ["priority=9", "app_id=7"].map(|text| text.parse().unwrap());
        assert_eq!(Value::from(properties(read.into())), json!({ "priority": 9, "app_id": "7" }));
    }
}
