//! Messages of outgoing connections: sent over HTTP, and those that could not be delivered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State as Shared};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use xmsg_connect::definition::{HeaderValue, Properties};
use xmsg_connect::{ErrorKind, Outbound};

use super::refusal::{Refusal, Refusals};
use super::{Answer, Permitted, body, outgoing, read_json, seconds};
use crate::admin::State;
use crate::admin::compose::Composed;

/// How many bytes a request that sends a message may have. Base64 takes a third more than the message.
const SEND_MAX: usize = 24 << 20;
/// How long the peer may take to confirm, unless the request says otherwise.
const CONFIRM_TIME: Duration = Duration::from_secs(30);
/// How many dead letters one answer has, unless the request asks for more, and at most.
const DEAD_DEFAULT: usize = 100;
const DEAD_MAX: usize = 1000;

/// Returns the paths below an entry.
pub(super) fn router() -> OpenApiRouter<Arc<State>> {
    let send = OpenApiRouter::new().routes(routes!(send));
    OpenApiRouter::new()
        .routes(routes!(dead, discard))
        .routes(routes!(revive))
        .merge(send.layer(DefaultBodyLimit::max(SEND_MAX)))
}

/// Whose path it is.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct OutgoingEntry {
    /// `outgoing`
    sort: String,
    /// The name of the outgoing connection
    name: String,
}

/// A message, and how it is to be sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SentMessage)]
struct Send {
    topic: String,
    mime: Option<String>,
    text: Option<String>,
    json: Option<serde_json::Value>,
    base64: Option<String>,
    /// AMQP: another exchange, another routing key than in the definition.
    exchange: Option<String>,
    routing_key: Option<String>,
    /// AMQP: properties and headers, as in docs/connect.md.
    #[serde(default)]
    #[schema(value_type = Object)]
    properties: Properties,
    #[serde(default)]
    #[schema(value_type = Object)]
    headers: BTreeMap<String, HeaderValue>,
    /// Whether the answer waits until the peer has it.
    #[serde(default)]
    confirm: bool,
    /// How long the peer may take: 30 s unless given.
    timeout_s: Option<f64>,
}

/// Sends a message by an outgoing connection. It is on disk when this is answered.
#[utoipa::path(
    post, path = "/connect/{sort}/{name}/send", params(OutgoingEntry), request_body = Send, tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "`sequence`, `id`, `confirmed`"), Refusals)
)]
async fn send(
    Shared(state): Shared<Arc<State>>,
    Path(OutgoingEntry { sort: sort_name, name }): Path<OutgoingEntry>,
    permitted: Permitted,
    request: Request,
) -> Answer {
    let connect = state.connect()?;
    outgoing(&sort_name)?;
    let send_request: Send = read_json(&body(request).await?)?;
    let limit = seconds(send_request.timeout_s, CONFIRM_TIME)?;
    // Serde would not refuse unknown fields beside a part that is flattened.
    let Send { topic, mime, text, json, base64, .. } = send_request;
    let message = Composed { topic, mime, text, json, base64 }.message();
    let message = message.map_err(|(field, what)| Refusal::invalid_message(field, what))?;
    let mut outbound = Outbound::new(message).properties(send_request.properties);
    if let Some(exchange) = send_request.exchange {
        outbound = outbound.exchange(exchange);
    }
    if let Some(routing_key) = send_request.routing_key {
        outbound = outbound.routing_key(routing_key);
    }
    for (header, value) in send_request.headers {
        outbound = outbound.header(header, value);
    }
    let confirm = send_request.confirm;
    let outgoing_name = name.clone();
    let sending = move |registry: xmsg_connect::Registry| async move {
        let sent = if confirm {
            registry.send_confirmed(&name, outbound, limit).await
        } else {
            registry.send(&name, outbound).await
        };
        Ok::<_, xmsg_connect::Error>(sent)
    };
    let sent = connect.run(sending).await?;
    match &sent {
        Ok(accepted) => {
            let number = accepted.sequence;
            permitted.note(format_args!("message {number} was sent by outgoing {outgoing_name:?}"));
        }
        // It was accepted nevertheless, and is on its way or among the dead letters.
        Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Undeliverable) => {
            let what = "a message was sent by outgoing";
            permitted.note(format_args!("{what} {outgoing_name:?}, and not confirmed: {error}"));
        }
        Err(_) => {}
    }
    let accepted = sent?;
    let answer =
        json!({ "sequence": accepted.sequence, "id": accepted.id.to_string(), "confirmed": confirm });
    Ok(Json(answer).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DeadQuery {
    /// Those behind this number.
    #[serde(default)]
    after: u64,
    /// 100 unless given, 1000 at most.
    limit: Option<usize>,
}

/// Dead letters of an outgoing connection, the oldest first.
#[utoipa::path(
    get, path = "/connect/{sort}/{name}/dead", params(OutgoingEntry, DeadQuery), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "`dead`: each with its number, topic, size and reason"), Refusals)
)]
async fn dead(
    Shared(state): Shared<Arc<State>>,
    Path(OutgoingEntry { sort: sort_name, name }): Path<OutgoingEntry>,
    Query(query): Query<DeadQuery>,
) -> Answer {
    let connect = state.connect()?;
    outgoing(&sort_name)?;
    let limit = query.limit.unwrap_or(DEAD_DEFAULT);
    if limit > DEAD_MAX {
        return Err(Refusal::invalid_request("limit", format!("the limit is at most {DEAD_MAX}")));
    }
    let found = connect.run(move |registry| async move { registry.dead(&name, query.after, limit).await });
    Ok(Json(json!({ "dead": found.await? })).into_response())
}

/// Sends a dead letter again.
#[utoipa::path(
    post, path = "/connect/{sort}/{name}/dead/{sequence}/revive", params(OutgoingEntry, ("sequence" = u64, Path, description = "Its number")), tag = "connect",
    responses((status = 200, body = serde_json::Value), Refusals)
)]
async fn revive(
    Shared(state): Shared<Arc<State>>,
    Path((sort_name, name, sequence)): Path<(String, String, u64)>,
    permitted: Permitted,
) -> Answer {
    let connect = state.connect()?;
    outgoing(&sort_name)?;
    let revived = name.clone();
    connect.run(move |registry| async move { registry.revive(&name, sequence).await }).await?;
    permitted.note(format_args!("the dead letter {sequence} of outgoing {revived:?} is sent again"));
    Ok(Json(json!({ "revived": sequence })).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DiscardQuery {
    /// Numbers with commas between; none: all.
    sequence: Option<String>,
}

/// Deletes dead letters.
#[utoipa::path(
    delete, path = "/connect/{sort}/{name}/dead", params(OutgoingEntry, DiscardQuery), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "`discarded`: how many there were"), Refusals)
)]
async fn discard(
    Shared(state): Shared<Arc<State>>,
    Path(OutgoingEntry { sort: sort_name, name }): Path<OutgoingEntry>,
    permitted: Permitted,
    Query(query): Query<DiscardQuery>,
) -> Answer {
    let connect = state.connect()?;
    outgoing(&sort_name)?;
    let sequences =
        query.sequence.map(|text| text.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>());
    let sequences = sequences.transpose().map_err(|_| {
        Refusal::invalid_request("sequence", "sequence is not numbers with commas between".to_owned())
    })?;
    let outgoing_name = name.clone();
    let discarding = move |registry: xmsg_connect::Registry| async move {
        registry.discard_dead(&name, sequences.as_deref()).await
    };
    let discarded = connect.run(discarding).await?;
    permitted.note(format_args!("{discarded} dead letters of outgoing {outgoing_name:?} were deleted"));
    Ok(Json(json!({ "discarded": discarded })).into_response())
}
