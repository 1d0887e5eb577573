//! The commands that list, show, add, change and delete entries.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Map, Value, json};
use xmsg_core::text::escaped;

use super::ask::{AdminTarget, Sort, encoded, entries, path, refused, text_of};
use super::rows;
use crate::exit::Exit;
use crate::output::{Output, counted, note};
use crate::table;

pub(super) async fn list(target: &AdminTarget) -> anyhow::Result<Exit> {
    let report = target.report().await?;
    let sorts = Sort::ALL.into_iter().filter(|sort| target.sort.is_none_or(|only| only == *sort));
    let all: Vec<(Sort, &Value)> =
        sorts.flat_map(|sort| entries(&report, sort).iter().map(move |entry| (sort, entry))).collect();
    if target.json {
        let mut output = Output::stdout()?;
        for (sort, entry) in all {
            output.json(&rows::document(sort, entry))?;
        }
        output.flush()?;
        return Ok(Exit::Done);
    }
    for orphan in report["orphans"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        note(format_args!("the spool {orphan} belongs to no outgoing connection: messages may be in it"));
    }
    let shown = all.into_iter().map(|(sort, entry)| rows::row(sort, entry)).collect();
    table::write(rows::COLUMNS, shown, "definition")
}

pub(super) async fn show(target: &AdminTarget, name: &str) -> anyhow::Result<Exit> {
    let sort = target.sort_of(name).await?;
    let entry = target.ask(Method::GET, &path(sort, name), Bytes::new()).await?;
    if target.json {
        target.json(&rows::document(sort, &entry))?;
        return Ok(Exit::Done);
    }
    let mut output = Output::stdout()?;
    for (key, value) in rows::details(sort, &entry) {
        let line = format!("{:<28} {}\n", escaped(&key), escaped(&value));
        output.write(line.as_bytes())?;
    }
    output.flush()?;
    Ok(Exit::Done)
}

/// Returns the entries of a TOML text in the order in which they can be added: those come first that others
/// refer to.
fn definitions(text: &str, name: &str) -> anyhow::Result<Vec<(Sort, Value)>> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        anyhow::anyhow!("{name}, line {line}: {}", error.message().trim_end().replace('\n', ", "))
    })?;
    let known = |key: &str| Sort::ALL.into_iter().any(|sort| sort.to_string() == key);
    if let Some(key) = table.keys().find(|key| !known(key)) {
        let hint = if key == "spool" { ": `xmsg connect import` changes it" } else { "" };
        bail!(
            "{name}: {key:?} is no sort of entries, which are [[connection]], [[outgoing]], [[channel]], [[durable]] and [federation]{hint}"
        );
    }
    let mut found = Vec::new();
    for sort in [Sort::Connection, Sort::Outgoing, Sort::Channel, Sort::Durable, Sort::Federation] {
        let Some(value) = table.get(&sort.to_string()) else { continue };
        let list = match (sort, value) {
            (Sort::Federation, toml::Value::Table(_)) => std::slice::from_ref(value),
            (Sort::Federation, _) => {
                bail!("{name}: write [federation], with one bracket: a proxy takes part in one at most");
            }
            (_, toml::Value::Array(list)) if list.iter().all(toml::Value::is_table) => &list[..],
            _ => bail!("{name}: write [[{sort}]], with two brackets, in front of each {sort}"),
        };
        for entry in list {
            let entry = serde_json::to_value(entry);
            found.push((sort, entry.with_context(|| format!("{name}: a {sort} can't be sent as JSON"))?));
        }
    }
    if found.is_empty() {
        bail!(
            "{name} has no entry: write [[connection]], [[outgoing]], [[channel]], [[durable]] or [federation]"
        );
    }
    Ok(found)
}

/// Returns the name of an entry in messages.
fn label(sort: Sort, definition: &Value) -> String {
    format!("{sort} {:?}", definition["name"].as_str().unwrap_or_default())
}

pub(super) async fn add(target: &AdminTarget, file: &Path) -> anyhow::Result<Exit> {
    let (text, name) = text_of(file)?;
    let mut body = Map::new();
    for (sort, definition) in definitions(&text, &name)? {
        let list = body.entry(sort.to_string()).or_insert_with(|| json!([]));
        list.as_array_mut().context("each sort has a list")?.push(definition);
    }
    let body = Value::from(body).to_string().into();
    let added = target.ask(Method::POST, "/connect/add", body).await;
    let mut added = added.with_context(|| format!("nothing of {name} is added"))?;
    for entry in added.as_array_mut().into_iter().flatten() {
        let sort = Sort::ALL.into_iter().find(|sort| entry["sort"].as_str() == Some(&sort.to_string()));
        let sort = sort.context("the server tells of a sort of entries that this program does not know")?;
        let entry = entry["entry"].take();
        target.json(&rows::document(sort, &entry))?;
        if !target.json {
            note(format_args!("{} was added", label(sort, &entry["definition"])));
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn edit(target: &AdminTarget, name: &str, file: &Path) -> anyhow::Result<Exit> {
    let (text, from) = text_of(file)?;
    let found = definitions(&text, &from)?;
    let [(sort, definition)] = &found[..] else {
        bail!("{from} has {} entries: give one", found.len());
    };
    if let Some(other) = target.sort.filter(|other| other != sort) {
        bail!("{from} has one of the sort {sort}, and --sort says {other}");
    }
    let body = definition.to_string().into();
    let changed = target.ask(Method::PUT, &path(*sort, name), body).await?;
    done(target, *sort, &changed, format_args!("{sort} {name:?} was changed"))
}

/// Shows the entry as JSON, or says what was done.
fn done(
    target: &AdminTarget,
    sort: Sort,
    entry: &Value,
    what: std::fmt::Arguments<'_>,
) -> anyhow::Result<Exit> {
    target.json(&rows::document(sort, entry))?;
    if !target.json {
        note(what);
    }
    Ok(Exit::Done)
}

pub(super) async fn remove(
    target: &AdminTarget,
    name: &str,
    drain: Option<Duration>,
    purge: bool,
) -> anyhow::Result<Exit> {
    let sort = target.sort_of(name).await?;
    let query = match drain {
        Some(time) => format!("drain&timeout_s={}", time.as_secs_f64()),
        None if purge => "purge".to_owned(),
        None => "refuse".to_owned(),
    };
    let path = format!("{}?on_delete={query}", path(sort, name));
    match target.try_ask(Method::DELETE, &path, Bytes::new(), drain.unwrap_or_default()).await? {
        Ok(body) => {
            target.json(&target.read(&body)?)?;
            if !target.json {
                note(format_args!("{sort} {name:?} was deleted"));
            }
            Ok(Exit::Done)
        }
        Err(answer) => refused(answer),
    }
}

pub(super) async fn set_active(target: &AdminTarget, name: &str, is_active: bool) -> anyhow::Result<Exit> {
    let sort = target.sort_of(name).await?;
    let (action, what) = if is_active { ("enable", "is at work") } else { ("disable", "rests") };
    let changed = target.ask(Method::POST, &format!("{}/{action}", path(sort, name)), Bytes::new()).await?;
    done(target, sort, &changed, format_args!("{sort} {name:?} {what} now"))
}

pub(super) async fn rename(target: &AdminTarget, name: &str, new: &str) -> anyhow::Result<Exit> {
    let sort = target.sort_of(name).await?;
    let path = format!("{}/rename?to={}", path(sort, name), encoded(new));
    let changed = target.ask(Method::POST, &path, Bytes::new()).await?;
    done(target, sort, &changed, format_args!("{sort} {name:?} is {new:?} now"))
}

pub(super) async fn ping(target: &AdminTarget, name: &str, timeout: Duration) -> anyhow::Result<Exit> {
    let sort = target.sort_of(name).await?;
    let path = format!("{}/ping?timeout_s={}", path(sort, name), timeout.as_secs_f64());
    match target.try_ask(Method::POST, &path, Bytes::new(), timeout).await? {
        Ok(body) => {
            let seconds = target.read(&body)?["seconds"].as_f64().unwrap_or_default();
            if target.json {
                target.json(&json!({ "sort": sort.to_string(), "name": name, "seconds": seconds }))?;
            } else {
                let mut output = Output::stdout()?;
                let line = format!("{sort} {} is reached in {:.1} ms\n", escaped(name), seconds * 1000.0);
                output.write(line.as_bytes())?;
                output.flush()?;
            }
            Ok(Exit::Done)
        }
        Err(answer) => refused(answer),
    }
}

pub(super) async fn export(target: &AdminTarget) -> anyhow::Result<Exit> {
    let answer = target.try_ask(Method::GET, "/connect/export", Bytes::new(), Duration::ZERO).await?;
    let text = match answer {
        Ok(text) => text,
        Err(answer) => return refused(answer),
    };
    let text = String::from_utf8(text.into()).context("the definitions are not UTF-8")?;
    // A text that is no TOML is not from a registry, and is not shown.
    let table: toml::Table =
        toml::from_str(&text).context("what was answered is no TOML: is something else there?")?;
    let mut output = Output::stdout()?;
    if target.json {
        output.json(&serde_json::to_value(table).context("the definitions can't be written as JSON")?)?;
    } else {
        for line in text.lines() {
            output.write(escaped(line).as_bytes())?;
            output.write(b"\n")?;
        }
    }
    output.flush()?;
    Ok(Exit::Done)
}

pub(super) async fn import(target: &AdminTarget, file: &Path) -> anyhow::Result<Exit> {
    let (text, name) = text_of(file)?;
    let imported = target.ask(Method::POST, "/connect/import", text.into()).await;
    let imported = imported.with_context(|| format!("{name} is not imported, and all is as it was"))?;
    target.json(&imported)?;
    if !target.json {
        let count = |key: &str, noun: &str| counted(imported[key].as_u64().unwrap_or_default(), noun);
        note(format_args!(
            "imported: {}, {}, {}, {}, {}",
            count("connections", "connection"),
            count("outgoing", "outgoing connection"),
            count("channels", "channel"),
            count("durables", "durable subscription"),
            count("federations", "federation")
        ));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_refer_to_comes_first() {
        let text = "[[channel]]\nname = \"a\"\ntarget = \"outgoing:b\"\n[[outgoing]]\nname = \"b\"\nconnection = \"c\"\n\
                    [outgoing.headers]\nX-Level = 3\n[federation]\nname = \"d\"\n[[connection]]\nname = \"c\"\n";
        let found = definitions(text, "FILE").unwrap();
        let labels: Vec<_> = found.iter().map(|(sort, value)| label(*sort, value)).collect();
        assert_eq!(labels, ["connection \"c\"", "outgoing \"b\"", "channel \"a\"", "federation \"d\""]);
        assert_eq!(found[1].1["headers"]["X-Level"], 3);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (text, says) in [
            ("", "FILE has no entry"),
            ("[outgoing]\nname = 1", "FILE: write [[outgoing]]"),
            ("[[federation]]\nname = \"a\"", "FILE: write [federation]"),
            ("[[outgoin]]", "FILE: \"outgoin\" is no sort of entries"),
            ("[spool]\nmax_bytes = \"1GiB\"", "import"),
            ("\n[[outgoing]\n", "FILE, line 2: "),
        ] {
            let error = definitions(text, "FILE").unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
