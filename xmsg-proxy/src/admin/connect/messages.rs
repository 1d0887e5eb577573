//! Messages of outgoing connections: sent over HTTP, and those that could not be delivered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, Request, State as Shared};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use xmsg_connect::Outbound;
use xmsg_connect::definition::{HeaderValue, Properties};

use super::refusal::Refusal;
use super::{Answer, Permitted, body, outgoing, read_json, seconds};
use crate::admin::State;
use crate::admin::compose::Composed;

/// Bytes of a request that sends a message: base64 takes a third more than the message.
const SEND_MAX: usize = 24 << 20;
/// How long the peer may take to confirm, unless the request says otherwise.
const CONFIRM_TIME: Duration = Duration::from_secs(30);
/// Dead letters in one answer, unless asked for more, and at most.
const DEAD_DEFAULT: usize = 100;
const DEAD_MAX: usize = 1000;

/// What is below an entry.
pub(super) fn router(entry: &str) -> Router<Arc<State>> {
    let send = Router::new().route(&format!("{entry}/send"), post(send));
    Router::new()
        .route(&format!("{entry}/dead"), get(dead).delete(discard))
        .route(&format!("{entry}/dead/{{sequence}}/revive"), post(revive))
        .merge(send.layer(DefaultBodyLimit::max(SEND_MAX)))
}

/// A message, and how it is to be sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Send {
    topic: String,
    mime: Option<String>,
    text: Option<String>,
    json: Option<serde_json::Value>,
    base64: Option<String>,
    exchange: Option<String>,
    routing_key: Option<String>,
    #[serde(default)]
    properties: Properties,
    #[serde(default)]
    headers: BTreeMap<String, HeaderValue>,
    /// Whether the answer waits until the peer has it.
    #[serde(default)]
    confirm: bool,
    timeout_s: Option<f64>,
}

async fn send(
    Shared(state): Shared<Arc<State>>,
    Path((of, name)): Path<(String, String)>,
    _: Permitted,
    request: Request,
) -> Answer {
    let connect = state.connect()?;
    outgoing(&of)?;
    let asked: Send = read_json(&body(request).await?)?;
    let limit = seconds(asked.timeout_s, CONFIRM_TIME)?;
    // Serde would not refuse unknown fields beside a part that is flattened.
    let Send { topic, mime, text, json, base64, .. } = asked;
    let message = Composed { topic, mime, text, json, base64 }.message();
    let message = message.map_err(|(field, what)| Refusal::invalid_message(field, what))?;
    let mut outbound = Outbound::new(message).properties(asked.properties);
    if let Some(exchange) = asked.exchange {
        outbound = outbound.exchange(exchange);
    }
    if let Some(routing_key) = asked.routing_key {
        outbound = outbound.routing_key(routing_key);
    }
    for (header, value) in asked.headers {
        outbound = outbound.header(header, value);
    }
    let confirm = asked.confirm;
    let sending = move |registry: xmsg_connect::Registry| async move {
        if confirm {
            registry.send_confirmed(&name, outbound, limit).await
        } else {
            registry.send(&name, outbound).await
        }
    };
    let accepted = connect.run(sending).await?;
    let told = json!({ "sequence": accepted.sequence, "id": accepted.id.to_string(), "confirmed": confirm });
    Ok(Json(told).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadQuery {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

async fn dead(
    Shared(state): Shared<Arc<State>>,
    Path((of, name)): Path<(String, String)>,
    Query(query): Query<DeadQuery>,
) -> Answer {
    let connect = state.connect()?;
    outgoing(&of)?;
    let limit = query.limit.unwrap_or(DEAD_DEFAULT);
    if limit > DEAD_MAX {
        return Err(Refusal::invalid_request("limit", format!("the limit is at most {DEAD_MAX}")));
    }
    let found = connect.run(move |registry| async move { registry.dead(&name, query.after, limit).await });
    Ok(Json(json!({ "dead": found.await? })).into_response())
}

async fn revive(
    Shared(state): Shared<Arc<State>>,
    Path((of, name, sequence)): Path<(String, String, u64)>,
    permitted: Permitted,
) -> Answer {
    let connect = state.connect()?;
    outgoing(&of)?;
    let revived = name.clone();
    connect.run(move |registry| async move { registry.revive(&name, sequence).await }).await?;
    permitted.note(format_args!("the dead letter {sequence} of outgoing {revived:?} is sent again"));
    Ok(Json(json!({ "revived": sequence })).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiscardQuery {
    /// Numbers with commas between; none: all.
    sequence: Option<String>,
}

async fn discard(
    Shared(state): Shared<Arc<State>>,
    Path((of, name)): Path<(String, String)>,
    permitted: Permitted,
    Query(query): Query<DiscardQuery>,
) -> Answer {
    let connect = state.connect()?;
    outgoing(&of)?;
    let sequences =
        query.sequence.map(|text| text.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>());
    let sequences = sequences.transpose().map_err(|_| {
        Refusal::invalid_request("sequence", "sequence is not numbers with commas between".to_owned())
    })?;
    let of = name.clone();
    let discarding = move |registry: xmsg_connect::Registry| async move {
        registry.discard_dead(&name, sequences.as_deref()).await
    };
    let discarded = connect.run(discarding).await?;
    permitted.note(format_args!("{discarded} dead letters of outgoing {of:?} were deleted"));
    Ok(Json(json!({ "discarded": discarded })).into_response())
}
