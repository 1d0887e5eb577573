//! A durable subscription that is made when a client subscribes.

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::ask::{AdminTarget, Sort, entries, name_of};
use crate::exit::Usage;
use crate::output::note;

/// Makes the durable subscription of this name to these topics, unless it exists.
pub(super) async fn ensure(
    target: &AdminTarget,
    name: &str,
    connection: Option<&str>,
    topics: &[String],
) -> anyhow::Result<()> {
    let report = target.report().await?;
    if entries(&report, Sort::Durable).iter().any(|entry| name_of(entry) == Some(name)) {
        return Ok(());
    }
    let brokers: Vec<&str> = entries(&report, Sort::Connection).iter().filter_map(name_of).collect();
    let connection = match (connection, &brokers[..]) {
        (Some(connection), _) => connection,
        (None, [only]) => only,
        (None, []) => {
            let what =
                "there is no connection to a broker yet: add a [[connection]] with `xmsg connect add` first";
            return Err(Usage(what.to_owned()).into());
        }
        (None, several) => {
            let several = several.join(", ");
            let what = format!("there are several brokers: choose one with --durable-connection: {several}");
            return Err(Usage(what).into());
        }
    };
    let definition: Value = json!({ "name": name, "connection": connection, "topics": topics });
    target.ask(Method::POST, "/connect/durable", Bytes::from(definition.to_string())).await?;
    note(format_args!("the durable subscription {name:?} was made"));
    Ok(())
}
