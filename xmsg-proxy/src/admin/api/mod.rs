//! The paths `/api/v1`: what the page shows and does, for programs, too. Answers are JSON, and what changes
//! all the time is sent as server-sent events. The types are those of the document `/api/v1/openapi.json`,
//! which is made from them.
//!
//! | file | answers |
//! |---|---|
//! | `session.rs` | How does a browser get a cookie for a token, or for a link that is good once? |
//! | `overview.rs` | How does the proxy do: now, each second, and in the last five minutes, hour and day? |
//! | `changes.rs` | What would a reload of the settings change? |
//! | `lists.rs` | Which connections and topics are there, sorted, filtered, page by page? |
//! | `registrations.rs` | What is registered at the registrar? |
//! | `topology.rs` | Who publishes what to whom? |
//! | `messages.rs` | Which messages come, and which are published over HTTP? |
//! | `log.rs` | What was logged last? |
//! | `events.rs` | How many streams of events are there, and what if somebody reads slowly? |

mod changes;
mod events;
mod lists;
mod log;
mod messages;
mod overview;
mod registrations;
mod session;
mod topology;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::State;
use super::routes::{Authorized, Requester};

pub(super) use events::{Streamed, Streams, event};
pub(super) use session::link;

/// The path at which whoever has no session begins one.
pub(super) const SESSION: &str = "/api/v1/session";
/// The line of the index for these paths.
pub(super) const INDEX: &str = "/api/v1/openapi.json\n";

/// The part of the document that does not depend on the types.
#[derive(OpenApi)]
#[openapi(info(
    title = "xmsg-proxy",
    description = "What the web page of the proxy shows and does, and outgoing connections and channels, if it has them. Requests bring the token (Authorization: Bearer TOKEN), or the cookie of a session; \
                   with the cookie, whatever changes something needs the header X-Xmsg-Page, too, with the secret from the answer to the login."
))]
struct Document;

/// Why a request is not fulfilled.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    #[serde(skip)]
    status: StatusCode,
    /// The kind of the problem, as a word to match on.
    kind: &'static str,
    /// The field of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    /// What is wrong, and what to do.
    message: String,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, field: None, message: message.into() }
    }

    fn at(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    fn no_proxy() -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown", "there is no proxy in this process")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}

type Answer<T> = Result<Json<T>, Problem>;

/// Proof that whoever asks may change something. It says who that is, for the log.
#[derive(Debug)]
struct Operator {
    by: String,
}

impl FromRequestParts<Arc<State>> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Problem> {
        if let Some(Authorized { by }) = parts.extensions.get::<Authorized>() {
            return Ok(Self { by: by.clone() });
        }
        let requester = Requester::from_request_parts(parts, state).await?;
        Err(Problem::new(StatusCode::FORBIDDEN, "not_allowed", state.missing_right(requester)))
    }
}

impl State {
    /// Says what somebody lacks who may look and not change.
    pub(super) fn missing_right(&self, requester: Requester) -> String {
        if requester.caller.is_some() {
            "this token is for looking only: bring the operator's".to_owned()
        } else if self.access.tokens().operator.is_some() {
            "bring the token: the page asks for it under \"Log in\", curl sends it with -H \"Authorization: Bearer TOKEN\"".to_owned()
        } else {
            super::routes::no_token(self.name)
        }
    }

    fn monitor(&self) -> Result<&crate::Monitor, Problem> {
        self.proxy.as_ref().ok_or_else(Problem::no_proxy)
    }
}

/// Takes who asks from the request, as the guard has found it out.
impl FromRequestParts<Arc<State>> for Requester {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Problem> {
        let nobody = || Problem::new(StatusCode::UNAUTHORIZED, "not_allowed", "nobody has said who asks");
        parts.extensions.get::<Self>().copied().ok_or_else(nobody)
    }
}

/// Returns all paths, and the document that describes them.
///
/// `beside` has paths of other modules, which are described with these.
pub(super) fn router(beside: OpenApiRouter<Arc<State>>) -> Router<Arc<State>> {
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(session::look, session::log_in, session::log_out))
        .routes(routes!(session::make_link))
        .routes(routes!(overview::overview))
        .routes(routes!(overview::stats))
        .routes(routes!(overview::history))
        .routes(routes!(overview::events))
        .routes(routes!(overview::settings))
        .routes(routes!(changes::changes))
        .routes(routes!(lists::connections))
        .routes(routes!(lists::end))
        .routes(routes!(lists::topics))
        .routes(routes!(registrations::registrations))
        .routes(routes!(topology::topology))
        .routes(routes!(messages::tap))
        .routes(routes!(messages::publish))
        .routes(routes!(log::tail))
        .merge(beside)
        .split_for_parts();
    let text: Arc<str> = document.to_json().unwrap_or_default().into();
    let shown = move || {
        let text = text.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], text.to_string()) }
    };
    router.route("/api/v1/openapi.json", get(shown))
}
