//! The state of links, and their rates between two samples.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::commands::connect::ask::{AdminTarget, Sort, entries, name_of};

/// A link, with its rates since the last sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LinkRates {
    /// `outgoing` or `channel`.
    pub(super) sort: String,
    pub(super) name: String,
    pub(super) state: String,
    /// The time in its present state, in seconds.
    pub(super) state_s: f64,
    pub(super) peer: Option<String>,
    /// The number of messages per second that came in.
    pub(super) accepted_per_s: f64,
    /// The number of messages per second that were delivered.
    pub(super) delivered_per_s: f64,
    /// The messages that wait in the spool. A channel has none.
    pub(super) spool: Option<Waiting>,
    /// The number of dead letters, or of messages that a channel has rejected.
    pub(super) dead: u64,
    /// The last incident, and its time.
    pub(super) incident: Option<(String, String)>,
}

/// The messages that wait in a spool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Waiting {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// The age of the oldest message, in seconds.
    pub(super) oldest_s: Option<f64>,
}

impl LinkRates {
    /// Returns the row as JSON. Fields are added, never renamed: docs/command-line.md lists them.
    pub(super) fn document(&self) -> Value {
        json!({
            "sort": self.sort,
            "name": self.name,
            "state": self.state,
            "state_s": self.state_s,
            "peer": self.peer,
            "accepted_per_s": self.accepted_per_s,
            "delivered_per_s": self.delivered_per_s,
            "spool_entries": self.spool.map(|spool| spool.entries),
            "spool_bytes": self.spool.map(|spool| spool.bytes),
            "oldest_s": self.spool.and_then(|spool| spool.oldest_s),
            "dead": self.dead,
            "incident": self.incident.as_ref().map(|(_, what)| what),
            "incident_at": self.incident.as_ref().map(|(at, _)| at),
        })
    }

    /// Returns a rank of the trouble that the link is in. Links with more trouble come first.
    pub(super) fn severity(&self) -> u8 {
        match &*self.state {
            "faulted" => 4,
            "blocked" | "disconnected" => 3,
            "connecting" => 2,
            "connected" => 1,
            _ => 0,
        }
    }
}

/// The sort and the name of a link.
type Key = (String, String);

/// Takes samples of the links of a server.
#[derive(Debug, Default)]
pub(super) struct RateSampler {
    /// The time of the last sample, and what each link had accepted and delivered by then.
    last: Option<(Instant, HashMap<Key, [u64; 2]>)>,
}

impl RateSampler {
    /// Takes a sample and computes the rates since the last one.
    pub(super) async fn take(&mut self, target: &AdminTarget) -> anyhow::Result<Vec<LinkRates>> {
        let report = target.report().await?;
        let sorts = [Sort::Outgoing, Sort::Channel].into_iter();
        let wanted = sorts.filter(|sort| target.sort.is_none_or(|only| only == *sort));
        Ok(self.links(&report, wanted, Instant::now(), Timestamp::now()))
    }

    fn links(
        &mut self,
        report: &Value,
        sorts: impl Iterator<Item = Sort>,
        now: Instant,
        time: Timestamp,
    ) -> Vec<LinkRates> {
        let passed = self.last.as_ref().map(|(at, _)| now.duration_since(*at));
        let mut counts = HashMap::new();
        let mut links = Vec::new();
        for sort in sorts {
            for entry in entries(report, sort) {
                let key = (sort.to_string(), name_of(entry).unwrap_or_default().to_owned());
                let link = &entry["link"];
                let now =
                    ["accepted", "delivered"].map(|name| link["counts"][name].as_u64().unwrap_or_default());
                let before = self.last.as_ref().and_then(|(_, before)| before.get(&key));
                let rates = [0, 1].map(|place| rate(now[place], before.map(|before| before[place]), passed));
                links.push(link_of(&key, entry, rates, time));
                counts.insert(key, now);
            }
        }
        self.last = Some((now, counts));
        links
    }
}

/// Returns the rate of a count. It is 0 for a link that is new, or was started again.
fn rate(now: u64, before: Option<u64>, passed: Option<Duration>) -> f64 {
    let (Some(before), Some(passed)) = (before, passed) else { return 0.0 };
    now.saturating_sub(before) as f64 / passed.as_secs_f64().max(1e-3)
}

fn link_of(key: &Key, entry: &Value, [accepted, delivered]: [f64; 2], now: Timestamp) -> LinkRates {
    let (link, spool, definition) = (&entry["link"], &entry["spool"], &entry["definition"]);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let since = link["since"].as_str().and_then(|since| since.parse::<Timestamp>().ok());
    let seconds = since.map_or(0.0, |since| now.duration_since(since).as_secs_f64().max(0.0));
    let incident = link["incidents"].as_array().and_then(|incidents| incidents.last());
    LinkRates {
        sort: key.0.clone(),
        name: key.1.clone(),
        state: text(&link["state"]).unwrap_or_default(),
        state_s: seconds,
        peer: text(&link["peer"])
            .or_else(|| text(&definition["address"]))
            .or_else(|| text(&definition["connection"])),
        accepted_per_s: accepted,
        delivered_per_s: delivered,
        spool: spool["entries"].as_u64().map(|entries| Waiting {
            entries,
            bytes: spool["bytes"].as_u64().unwrap_or_default(),
            oldest_s: entry["oldest_s"].as_f64(),
        }),
        dead: spool["dead_entries"].as_u64().or_else(|| link["counts"]["dead"].as_u64()).unwrap_or_default(),
        incident: incident.and_then(|incident| Some((text(&incident["at"])?, text(&incident["what"])?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_between_two_looks_and_a_link_that_was_started_again_has_none() {
        let report = |delivered: u64| {
            json!({ "outgoing": [{ "definition": { "name": "feed", "address": "tcp://a:1" },
                "link": { "state": "connected", "since": "2026-01-02T03:04:05Z", "peer": null,
                    "counts": { "accepted": 2 * delivered, "delivered": delivered },
                    "incidents": [{ "at": "2026-01-02T03:04:00Z", "what": "old" }, { "at": "2026-01-02T03:04:05Z", "what": "new" }] },
                "spool": { "entries": 3, "bytes": 300, "dead_entries": 1 }, "oldest_s": 2.5 }],
              "channels": [] })
        };
        let (start, mut looks) = (Instant::now(), RateSampler::default());
        let time: Timestamp = "2026-01-02T03:05:05Z".parse().unwrap();
        let mut look = |delivered, second| {
            let sorts = [Sort::Outgoing, Sort::Channel].into_iter();
            looks.links(&report(delivered), sorts, start + Duration::from_secs(second), time).remove(0)
        };
        assert!(look(100, 0).delivered_per_s.abs() < 1e-9);
        let link = look(300, 2);
        let is = |number: f64, wanted: f64| (number - wanted).abs() < 1e-6;
        assert!(is(link.accepted_per_s, 200.0) && is(link.delivered_per_s, 100.0), "{link:?}");
        assert!(is(link.state_s, 60.0), "{link:?}");
        assert_eq!(link.spool, Some(Waiting { entries: 3, bytes: 300, oldest_s: Some(2.5) }));
        assert_eq!((link.dead, link.incident.unwrap().1.as_str()), (1, "new"));
        assert!(look(10, 3).delivered_per_s.abs() < 1e-9);
    }
}
