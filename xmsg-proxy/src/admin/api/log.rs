//! The end of the log, and what is added to it.

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;

use super::events::{Follow, Place, event};
use super::{Operator, Problem};
use crate::admin::State;
use crate::admin::access::Caller;
use crate::admin::routes::Requester;
use crate::log::Follower;

/// Lines of the log, as server-sent events `lines`, each a list of texts: first the last thousand, then what
/// is added. It may have names and addresses in it, so that the operator alone may read it. Whoever reads
/// slowly misses lines, which a line says.
#[utoipa::path(
    get, path = "/api/v1/log",
    responses((status = 200, content_type = "text/event-stream", body = Vec<String>), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn tail(
    Shared(state): Shared<Arc<State>>,
    _: Operator,
    requester: Requester,
) -> Result<Response, Problem> {
    let log = state.log.as_ref().ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "unknown", "this process keeps no log of its own")
    })?;
    let reader = Reader {
        lines: log.follow(),
        caller: requester.caller,
        _place: state.streams.place(requester.caller)?,
        state: state.clone(),
    };
    Ok(reader.stream())
}

/// A client that reads the log.
struct Reader {
    lines: Follower,
    state: Arc<State>,
    caller: Option<Caller>,
    _place: Place,
}

impl Follow for Reader {
    async fn next(&mut self) -> Option<Bytes> {
        let (mut lines, missed) = tokio::select! {
            () = self.state.streams.stop.cancelled() => return None,
            lines = self.lines.next() => lines,
        };
        if missed > 0 {
            lines.insert(0, format!("({missed} lines before these are not kept any more)"));
        }
        if !self.state.access.still(self.caller) {
            return None;
        }
        Some(event("lines", &serde_json::to_vec(&lines).unwrap_or_default()))
    }
}
