//! Requests about outgoing connections and channels, and the handling of refusals.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde_json::Value;
use xmsg_core::{Error, ErrorKind};

use crate::admin::Admin;
use crate::exit::{AtAdmin, AtPeer, Exit, Usage};
use crate::output::{Output, warn};
use crate::received_json;

/// The time that an answer may take beyond the time that the request asked the server to wait.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The number of bytes of a file with definitions that the server accepts.
const FILE_MAX: u64 = 1 << 20;

/// A sort of entries, by its name in paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    Outgoing,
    Channel,
    Connection,
    Federation,
    Durable,
}

impl Sort {
    pub(super) const ALL: [Self; 5] =
        [Self::Outgoing, Self::Channel, Self::Connection, Self::Federation, Self::Durable];

    /// Returns the key of the entries of this sort in a report.
    pub(super) fn in_report(self) -> &'static str {
        match self {
            Self::Outgoing => "outgoing",
            Self::Channel => "channels",
            Self::Connection => "connections",
            Self::Federation => "federations",
            Self::Durable => "durables",
        }
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outgoing => "outgoing",
            Self::Channel => "channel",
            Self::Connection => "connection",
            Self::Federation => "federation",
            Self::Durable => "durable",
        })
    }
}

/// The server that is asked, and the options of all commands.
#[derive(Debug)]
pub(super) struct AdminTarget {
    pub(super) admin: Admin,
    pub(super) sort: Option<Sort>,
    pub(super) json: bool,
}

/// A refusal of the server, and its reason.
#[derive(Debug)]
pub(super) struct ServerRefusal {
    kind: String,
    message: String,
    at: String,
}

impl fmt::Display for ServerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} says: {}", self.at, self.message)
    }
}

impl std::error::Error for ServerRefusal {}

impl ServerRefusal {
    /// Returns whether the server ran out of time.
    pub(super) fn is_late(&self) -> bool {
        self.kind == "timeout"
    }

    /// Turns the refusal into an error with the exit code that fits.
    fn into_error(self) -> anyhow::Error {
        let text = self.to_string();
        match &*self.kind {
            "unreachable" => AtPeer(Error::new(ErrorKind::NotConnected, text)).into(),
            "not_allowed_by_peer" => AtPeer(Error::new(ErrorKind::NotAllowed, text)).into(),
            _ => AtAdmin(Error::new(ErrorKind::Remote, text)).into(),
        }
    }
}

/// Returns the exit code of a refused request. A request that ran out of time has an exit code of its own.
pub(super) fn refused(refused: ServerRefusal) -> anyhow::Result<Exit> {
    if refused.is_late() {
        warn(&refused);
        return Ok(Exit::TimedOut);
    }
    Err(refused.into_error())
}

impl AdminTarget {
    /// Sends one request. Returns a refusal apart from other failures.
    pub(super) async fn try_ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        waits: Duration,
    ) -> anyhow::Result<Result<Bytes, ServerRefusal>> {
        let time = waits.saturating_add(ANSWER_TIME);
        let answer = self.admin.ask_with(method, path, body, time).await?;
        if answer.status.is_success() {
            return Ok(Ok(answer.body.into()));
        }
        let said = received_json::value(&answer.body).unwrap_or_default();
        let at = self.admin.address().to_string();
        let (Some(kind), Some(message)) = (said["kind"].as_str(), said["message"].as_str()) else {
            if answer.status == StatusCode::NOT_FOUND || answer.status == StatusCode::METHOD_NOT_ALLOWED {
                let what = format!(
                    "{at} has no outgoing connections and channels: enable them in the settings of the proxy ([connect]), or name \
                     the HTTP of another with --admin"
                );
                return Err(AtAdmin(Error::new(ErrorKind::Remote, what)).into());
            }
            let what = format!("{at} answers {}: {}", answer.status, answer.text());
            return Err(AtAdmin(Error::new(ErrorKind::Remote, what)).into());
        };
        let (kind, message) = (kind.to_owned(), message.to_owned());
        Ok(Err(ServerRefusal { kind, message, at }))
    }

    /// Sends one request, whose answer is JSON.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
        match self.try_ask(method, path, body, Duration::ZERO).await? {
            Ok(body) => self.read(&body),
            Err(refused) => Err(refused.into_error()),
        }
    }

    pub(super) fn read(&self, body: &[u8]) -> anyhow::Result<Value> {
        let unreadable = |error: serde_json::Error| {
            let what =
                format!("{} does not answer as it should: is something else there?", self.admin.address());
            AtAdmin(Error::new(ErrorKind::Remote, what).with_source(error))
        };
        Ok(received_json::value(body).map_err(unreadable)?)
    }

    /// Returns the report about all entries.
    pub(super) async fn report(&self) -> anyhow::Result<Value> {
        self.ask(Method::GET, "/connect", Bytes::new()).await
    }

    /// Returns the sort that has an entry of this name: the given one, or the only one.
    pub(super) async fn sort_of(&self, name: &str) -> anyhow::Result<Sort> {
        if let Some(sort) = self.sort {
            return Ok(sort);
        }
        let report = self.report().await?;
        let has = |sort: &Sort| entries(&report, *sort).iter().any(|entry| name_of(entry) == Some(name));
        let found: Vec<Sort> = Sort::ALL.into_iter().filter(has).collect();
        match found[..] {
            [sort] => Ok(sort),
            [] => {
                let at = self.admin.address();
                let what = format!("{at} has no entry {name:?}: `xmsg connect list` shows what there is");
                Err(AtAdmin(Error::new(ErrorKind::Remote, what)).into())
            }
            _ => {
                let sorts: Vec<_> = found.iter().map(ToString::to_string).collect();
                bail!(Usage(format!(
                    "{name:?} is the name of several entries: choose one with --sort: {}",
                    sorts.join(", ")
                )))
            }
        }
    }

    /// Checks that an outgoing connection is meant: other entries have no messages.
    pub(super) fn outgoing(&self) -> anyhow::Result<()> {
        match self.sort {
            None | Some(Sort::Outgoing) => Ok(()),
            Some(sort) => bail!(Usage(format!("a {sort} has no messages: leave out --sort"))),
        }
    }

    /// Writes the answer if JSON is wanted.
    pub(super) fn json(&self, value: &Value) -> anyhow::Result<()> {
        if self.json {
            let mut output = Output::stdout()?;
            output.json(value)?;
            output.flush()?;
        }
        Ok(())
    }
}

/// Returns the entries of one sort in a report.
pub(super) fn entries(report: &Value, sort: Sort) -> &[Value] {
    report[sort.in_report()].as_array().map_or(&[], Vec::as_slice)
}

/// Returns the name of an entry of a report. In reports, connections have no state beside their definition.
pub(super) fn name_of(entry: &Value) -> Option<&str> {
    entry["definition"]["name"].as_str().or_else(|| entry["name"].as_str())
}

/// Returns the path of an entry.
pub(super) fn path(sort: Sort, name: &str) -> String {
    format!("/connect/{sort}/{}", encoded(name))
}

/// Encodes a part of a path or a query. Bytes that have a meaning there are escaped.
pub(super) fn encoded(text: &str) -> String {
    use fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to memory cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Reads a file with definitions, or standard input. Returns the text, and a name for messages.
pub(super) fn text_of(file: &Path) -> anyhow::Result<(String, String)> {
    let (input, name): (Box<dyn Read>, _) = if file.as_os_str() == "-" {
        (Box::new(std::io::stdin()), "standard input".to_owned())
    } else {
        let name = file.display().to_string();
        (Box::new(std::fs::File::open(file).with_context(|| format!("cannot open {name}"))?), name)
    };
    let mut text = String::new();
    let read = tokio::task::block_in_place(|| input.take(FILE_MAX + 1).read_to_string(&mut text));
    read.with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > FILE_MAX {
        bail!("{name} is too long: definitions have 1 MiB at most");
    }
    Ok((text, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_leave_their_part_of_a_path() {
        assert_eq!(path(Sort::Outgoing, "CRM-1_a.b"), "/connect/outgoing/CRM-1_a.b");
        assert_eq!(path(Sort::Channel, "../x?y=\u{e9} "), "/connect/channel/..%2Fx%3Fy%3D%C3%A9%20");
    }
}
