//! How the proxy does, on the whole.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State as Shared};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Answer, Problem};
use crate::admin::State;
use crate::admin::history::{Sample, Span};
use crate::admin::look::Overview;
use crate::admin::routes::Requester;

/// How it does: as of the last second while somebody watches, else as of now, without rates.
#[utoipa::path(get, path = "/api/v1/overview", responses((status = 200, body = Overview)))]
pub(super) async fn overview(Shared(state): Shared<Arc<State>>) -> Answer<Overview> {
    let proxy = state.monitor()?;
    Ok(Json(state.looks.overview(proxy, state.phase_name())))
}

/// The same once a second, as server-sent events `overview`. Whoever reads slowly misses some of them.
#[utoipa::path(
    get, path = "/api/v1/events",
    responses((status = 200, content_type = "text/event-stream", body = Overview), (status = 503, body = Problem))
)]
pub(super) async fn events(
    Shared(state): Shared<Arc<State>>,
    requester: Requester,
) -> Result<Response, Problem> {
    state.monitor()?;
    state.streams.overview(&state, requester.caller)
}

/// Totals, the 1,000 most important connections, and the topics with the most messages, all of the same
/// moment, as the control request `stats` is answered: what `xmsg top`, `xmsg topics` and `xmsg info` show.
#[utoipa::path(get, path = "/api/v1/stats", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn stats(Shared(state): Shared<Arc<State>>) -> Result<Response, Problem> {
    let document = state.monitor()?.stats();
    Ok(([(header::CONTENT_TYPE, "application/json")], document).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    /// `5m`, `1h` or `24h`.
    #[serde(default)]
    #[param(inline)]
    span: Span,
}

/// What has flowed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HistoryAnswer {
    /// From one sample to the next, seconds.
    step_s: usize,
    /// The oldest first; the last one has just ended.
    samples: Vec<Sample>,
}

/// What has flowed in the last five minutes, hour or day.
#[utoipa::path(get, path = "/api/v1/history", params(HistoryQuery), responses((status = 200, body = HistoryAnswer)))]
pub(super) async fn history(
    Shared(state): Shared<Arc<State>>,
    Query(query): Query<HistoryQuery>,
) -> Answer<HistoryAnswer> {
    let (step_s, samples) = state.looks.history(query.span);
    Ok(Json(HistoryAnswer { step_s, samples }))
}

/// The settings in force.
#[utoipa::path(get, path = "/api/v1/settings", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn settings(Shared(state): Shared<Arc<State>>) -> Json<serde_json::Value> {
    Json((*state.config()).clone())
}
