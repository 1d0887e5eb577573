//! The fields of an entry that are shown: a row of the list, and all details.

use serde_json::{Value, json};

use super::ask::{Sort, name_of};
use crate::output::grouped;
use crate::table::size;

pub(super) const COLUMNS: [&str; 7] = ["SORT", "NAME", "STATE", "PEER", "DELIVERED", "WAITING", "DEAD"];

/// Returns an entry as a document with its sort. A connection gets the same form as other entries.
pub(super) fn document(sort: Sort, entry: &Value) -> Value {
    let mut document = json!({ "sort": sort.to_string(), "name": name_of(entry) });
    match entry.as_object() {
        Some(entry) if entry.contains_key("definition") => {
            for (key, value) in entry {
                document[key] = value.clone();
            }
        }
        _ => document["definition"] = entry.clone(),
    }
    document
}

pub(super) fn row(sort: Sort, entry: &Value) -> [String; 7] {
    let none = || "-".to_owned();
    let (link, spool, definition) = (&entry["link"], &entry["spool"], &entry["definition"]);
    let peer = link["peer"].as_str().or_else(|| definition["address"].as_str());
    let peer = peer.or_else(|| definition["connection"].as_str());
    let addresses = || {
        let uris = entry["uris"].as_array()?.iter().filter_map(Value::as_str);
        Some(uris.collect::<Vec<_>>().join(" "))
    };
    let number = |value: &Value| value.as_u64().map_or_else(none, grouped);
    let waiting = match (spool["entries"].as_u64(), spool["bytes"].as_u64()) {
        (Some(entries), Some(bytes)) if entries > 0 => format!("{} ({})", grouped(entries), size(bytes)),
        (Some(entries), _) => grouped(entries),
        _ => none(),
    };
    [
        sort.to_string(),
        name_of(entry).unwrap_or_default().to_owned(),
        link["state"].as_str().map_or_else(none, str::to_owned),
        peer.map(str::to_owned).or_else(addresses).unwrap_or_else(none),
        number(&link["counts"]["delivered"]),
        waiting,
        number(if sort == Sort::Channel { &link["counts"]["dead"] } else { &spool["dead_entries"] }),
    ]
}

/// Returns all details, each with its name.
pub(super) fn details(sort: Sort, entry: &Value) -> Vec<(String, String)> {
    let mut lines = vec![("sort".to_owned(), sort.to_string())];
    let link = &entry["link"];
    for key in ["state", "since", "peer"] {
        if let Some(text) = link[key].as_str() {
            lines.push((key.to_owned(), text.to_owned()));
        }
    }
    if let Some(incident) = incident(&link["reason"]) {
        lines.push(("reason".to_owned(), incident));
    }
    if let Some(in_flight) = link["in_flight"].as_u64() {
        lines.push(("in_flight".to_owned(), grouped(in_flight)));
    }
    for (part, counts) in [("spool", &entry["spool"]), ("counts", &link["counts"])] {
        flat(part, counts, &mut lines);
    }
    for found in link["incidents"].as_array().into_iter().flatten().filter_map(incident) {
        lines.push(("incident".to_owned(), found));
    }
    flat("definition", &document(sort, entry)["definition"], &mut lines);
    lines
}

fn incident(value: &Value) -> Option<String> {
    Some(format!("{} {}", value["at"].as_str()?, value["what"].as_str()?))
}

/// Adds each value of a document under the names that lead to it.
fn flat(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flat(&format!("{name}.{key}"), value, lines);
            }
        }
        Value::Null => {}
        Value::String(text) => lines.push((name.to_owned(), text.clone())),
        Value::Number(number) => {
            let shown = number.as_u64().map_or_else(|| number.to_string(), grouped);
            lines.push((name.to_owned(), shown));
        }
        other => lines.push((name.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_there_is() {
        let outgoing = json!({ "definition": { "name": "feed", "address": "tcp://a:1" },
            "link": { "state": "disconnected", "peer": null, "counts": { "delivered": 1200, "dead": 9 } },
            "spool": { "entries": 3, "bytes": 4096, "dead_entries": 1 } });
        let shown = row(Sort::Outgoing, &outgoing);
        assert_eq!(shown, ["outgoing", "feed", "disconnected", "tcp://a:1", "1,200", "3 (4.0 KiB)", "1"]);
        let connection = json!({ "name": "crm", "uris": ["amqp://a", "amqp://b"] });
        let shown = row(Sort::Connection, &connection);
        assert_eq!(shown, ["connection", "crm", "-", "amqp://a amqp://b", "-", "-", "-"]);
        assert_eq!(document(Sort::Connection, &connection)["definition"]["name"], "crm");
        let lines = details(Sort::Outgoing, &outgoing);
        assert!(lines.contains(&("definition.address".into(), "tcp://a:1".into())), "{lines:?}");
        assert!(lines.contains(&("spool.entries".into(), "3".into())), "{lines:?}");
    }
}
