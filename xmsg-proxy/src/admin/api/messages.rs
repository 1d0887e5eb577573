//! Messages: watched as they come, and published.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use xmsg_core::{Error, ErrorKind};

use super::events::{Follow, Place, event};
use super::{Answer, Operator, Problem};
use crate::admin::State;
use crate::admin::access::Caller;
use crate::admin::compose::Composed;
use crate::admin::routes::Requester;
use crate::admin::tap::{Counts, RATE_DEFAULT, RATE_MAX, Tap, TapEvent};
use crate::switch::Watcher;

/// Which messages, and how many.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct TapQuery {
    /// What the topics start with; empty: all.
    #[serde(default)]
    topic: String,
    /// Messages that are shown in a second: 20 unless given, 200 at most. The others are counted.
    rate: Option<u32>,
}

fn no_identity() -> Problem {
    let what = "this proxy has security, and its page no identity of its own to publish with: use xmsg pub with your keys";
    Problem::new(StatusCode::FORBIDDEN, "not_allowed", what)
}

/// Says why somebody may not see messages who may look at the rest.
fn refused_to_watch(caller: Option<Caller>) -> Problem {
    let what = if caller.is_some() {
        "this token is for looking, and not at what is in messages: bring the operator's, or have the settings allow it \
         (admin.viewer_may_watch)"
    } else {
        "nobody sees messages of this proxy without credentials: bring the operator's token"
    };
    Problem::new(StatusCode::FORBIDDEN, "not_allowed", what)
}

fn client_problem(error: &Error) -> Problem {
    let (status, kind) = match error.kind() {
        ErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        ErrorKind::NotAllowed => (StatusCode::FORBIDDEN, "not_allowed"),
        ErrorKind::InvalidTopic | ErrorKind::TooLarge => (StatusCode::BAD_REQUEST, "invalid_request"),
        ErrorKind::Full => (StatusCode::SERVICE_UNAVAILABLE, "full"),
        _ => (StatusCode::BAD_GATEWAY, "failed"),
    };
    Problem::new(status, kind, error.to_string())
}

/// Messages as they come, as server-sent events: `message` has what `xmsg sub --json` writes, with `time` in
/// seconds since 1970, and with `shown_bytes` if only the beginning of its data is shown; `counts`, once a
/// second, says how many came and how many of them were left out.
#[utoipa::path(
    get, path = "/api/v1/tap", params(TapQuery),
    responses((status = 200, content_type = "text/event-stream", body = Counts), (status = 400, body = Problem), (status = 403, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn tap(
    Shared(state): Shared<Arc<State>>,
    requester: Requester,
    Query(query): Query<TapQuery>,
) -> Result<Response, Problem> {
    let rate = query.rate.unwrap_or(RATE_DEFAULT);
    if !(1..=RATE_MAX).contains(&rate) {
        let what = format!("the rate is from 1 to {RATE_MAX} messages a second");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_request", what).at("rate"));
    }
    if !state.may_watch(requester.caller) {
        return Err(refused_to_watch(requester.caller));
    }
    let place = state.streams.place(requester.caller)?;
    let watcher = if requester.caller.is_some() { Watcher::Trusted } else { Watcher::Anybody };
    let observation = state.monitor()?.observe(query.topic.into(), rate, watcher).await;
    let tap = Tap::new(observation.map_err(|error| client_problem(&error).at("topic"))?);
    Ok(Follower { tap, state, caller: requester.caller, is_first: true, _place: place }.stream())
}

/// A client that watches messages.
struct Follower {
    tap: Tap,
    state: Arc<State>,
    caller: Option<Caller>,
    is_first: bool,
    _place: Place,
}

impl Follow for Follower {
    async fn next(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.is_first) {
            // The publishers know of it, so whatever is published from now on comes.
            return Some(event("counts", b"{\"messages\":0,\"left_out\":0}"));
        }
        let event_of_tap = tokio::select! {
            () = self.state.streams.stop.cancelled() => return None,
            event = self.tap.next() => event?,
        };
        if !self.state.access.still(self.caller) || !self.state.may_watch(self.caller) {
            return None;
        }
        Some(match event_of_tap {
            TapEvent::Message(json) => event("message", &json),
            TapEvent::Counts(json) => event("counts", &json),
        })
    }
}

/// A message that the proxy has.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Published {
    topic: String,
    /// Bytes of its data.
    length: usize,
}

/// Publishes a message. The answer comes once the proxy has it.
#[utoipa::path(
    post, path = "/api/v1/publish", request_body = Composed,
    responses((status = 200, body = Published), (status = 403, body = Problem), (status = 422, body = Problem), (status = 504, body = Problem))
)]
pub(super) async fn publish(
    Shared(state): Shared<Arc<State>>,
    operator: Operator,
    body: Bytes,
) -> Answer<Published> {
    let composed: Composed = serde_json::from_slice(&body).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_request", format!("the body is no message: {error}"))
    })?;
    let message = composed.message().map_err(|(field, what)| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_message", what).at(field)
    })?;
    let published = state.client.publish(&message).await.ok_or_else(no_identity)?;
    published.map_err(|error| client_problem(&error))?;
    let length = message.data().len();
    tracing::info!(by = operator.by, topic = composed.topic, length, "HTTP: a message was published");
    Ok(Json(Published { topic: composed.topic, length }))
}
