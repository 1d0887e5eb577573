//! Sessions: a browser shows a token, or the code of a link, once, and has a cookie from then on.

use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use xmsg_zmq::deadline::Deadline;

use super::{Operator, Problem};
use crate::admin::State;
use crate::admin::access::{self, Caller, LoginError, Role, is_own_page};
use crate::admin::server::Connection;

/// How many bytes a request to log in may have, and how long it may take to arrive.
const LOGIN_MAX: usize = 8 << 10;
const LOGIN_TIME: Duration = Duration::from_secs(5);

/// Who asks, and what they may do.
#[allow(clippy::struct_excessive_bools, reason = "they answer different questions")]
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Session {
    /// Missing: nobody in particular.
    role: Option<Role>,
    /// What changes with this session have to bring in the header X-Xmsg-Page. Only the answer to the login
    /// has it: pages of this host and port keep it, and nobody else gets to know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// Whether everybody on this machine may look.
    open_to_look: bool,
    /// Whether there is a token with which something can be changed.
    can_log_in: bool,
    /// The daemon, and its version.
    name: &'static str,
    version: &'static str,
    /// Whether it has outgoing connections and channels.
    has_connect: bool,
    /// Whether it has a registrar.
    has_registrar: bool,
    /// Whether it keeps a log that operators can read here.
    has_log: bool,
    /// Whether operators can publish messages here: the proxy has no security, which would ask for an
    /// identity.
    can_publish: bool,
    /// Whether whoever asks may watch messages.
    may_watch: bool,
}

/// What is shown to begin a session: one of both.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    #[serde(default)]
    token: Option<String>,
    /// What stands behind `#code=` in a link, which is good once.
    #[serde(default)]
    code: Option<String>,
}

/// A link that begins a session.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Link {
    /// What stands behind host and port: `/#code=…`.
    path: String,
}

fn session(state: &State, caller: Option<Caller>) -> Session {
    let tokens = state.access.tokens();
    Session {
        role: caller.map(|caller| caller.role),
        secret: None,
        open_to_look: tokens.open_to_look,
        can_log_in: tokens.operator.is_some() || tokens.viewer.is_some(),
        name: state.name,
        version: env!("CARGO_PKG_VERSION"),
        has_connect: state.has_connect(),
        has_registrar: state.registrar.is_some(),
        has_log: state.log.is_some(),
        can_publish: state.client.is_there(),
        may_watch: state.may_watch(caller),
    }
}

/// Who asks. It says nothing else, so that everybody may ask.
#[utoipa::path(get, path = "/api/v1/session", responses((status = 200, body = Session)))]
pub(super) async fn look(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Json<Session> {
    let caller = state.access.caller(&axum::http::Method::GET, &headers).ok().flatten();
    Json(session(&state, caller))
}

/// Makes a link that begins a session of an operator, such as in another browser. It is good once, until the
/// token changes; eight are good at a time.
#[utoipa::path(
    post, path = "/api/v1/session/links",
    responses((status = 200, body = Link), (status = 403, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn make_link(
    Shared(state): Shared<Arc<State>>,
    operator: Operator,
) -> Result<Json<Link>, Problem> {
    let code = state.access.make_link().ok_or_else(|| {
        let what = "the operating system gives no randomness for a link: log in with the token";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no_link", what)
    })?;
    tracing::info!(by = operator.by, "HTTP: a link that begins a session was made");
    Ok(Json(Link { path: link(&code) }))
}

/// Returns what stands behind host and port in the link with this code. The code is in the fragment, which
/// browsers keep to themselves.
pub(in crate::admin) fn link(code: &str) -> String {
    format!("/#code={code}")
}

/// Begins a session with a token, or with a link, which is good once: the answer brings its cookie, and the
/// secret that changes with it have to bring, too. It ends after twelve hours, or when the token changes.
#[utoipa::path(
    post, path = "/api/v1/session", request_body = Login,
    responses((status = 200, body = Session), (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 429, body = Problem))
)]
pub(super) async fn log_in(
    Shared(state): Shared<Arc<State>>,
    connection: Option<Extension<Arc<Connection>>>,
    request: Request,
) -> Result<Response, Problem> {
    let connection = connection.as_ref().map(|Extension(one)| &**one);
    let (head, body) = request.into_parts();
    let headers = head.headers;
    if !is_own_page(&headers) {
        return Err(foreign());
    }
    // It is not known yet who this is, so a client that sends no body may be cut off for others.
    connection.inspect(|one| one.waits_for_body());
    let body = Deadline::after(LOGIN_TIME).limit(to_bytes(body, LOGIN_MAX)).await;
    connection.inspect(|one| one.has_body());
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    let invalid = || {
        let what = "the body is to be {\"token\": \"…\"}, or {\"code\": \"…\"} with the code of a link";
        Problem::new(StatusCode::BAD_REQUEST, "invalid_request", what)
    };
    let login: Login = serde_json::from_slice(&body).map_err(|_| invalid())?;
    // A reverse proxy that speaks TLS says so.
    let is_encrypted = headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes() == b"https");
    let is_link = login.code.is_some();
    let begun = match (login.token, login.code) {
        (Some(token), None) => state.access.log_in(token.trim(), is_encrypted),
        (None, Some(code)) => state.access.follow_link(code.trim(), is_encrypted),
        _ => return Err(invalid()),
    };
    let begun = match begun {
        Ok(begun) => begun,
        Err(LoginError::TooMany) => {
            let what = "too many sessions have begun with this token, or operators have all of them: try again in a few seconds";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many", what));
        }
        Err(LoginError::Wrong) if is_link => {
            state.refused_requests.wrong_token(connection).await;
            let what =
                "This link was used already, or is an old one: each is good once. Log in with the token";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "wrong_code", what).at("code"));
        }
        Err(LoginError::Wrong) => {
            state.refused_requests.wrong_token(connection).await;
            let what = "this is not the token: it stands in the file that the settings name, or the daemon showed it when it started";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "wrong_token", what).at("token"));
        }
    };
    let access::Login { caller, cookie, secret } = begun;
    let peer = connection.map(|one| tracing::field::display(one.peer()));
    let with = if is_link { "a link" } else { "the token" };
    tracing::info!(peer, role = ?caller.role, session = caller.session, with, "HTTP: a session has begun");
    let session_answer = Session { secret: Some(secret), ..session(&state, Some(caller)) };
    Ok(with_cookie(Json(session_answer).into_response(), cookie))
}

/// Ends the session.
#[utoipa::path(
    delete, path = "/api/v1/session", responses((status = 200, body = Session), (status = 403, body = Problem))
)]
pub(super) async fn log_out(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if !is_own_page(&headers) {
        return Err(foreign());
    }
    let response = Json(session(&state, None)).into_response();
    Ok(match state.access.log_out(&headers) {
        Some(cookie) => with_cookie(response, cookie),
        None => response,
    })
}

fn with_cookie(mut response: Response, cookie: HeaderValue) -> Response {
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

fn foreign() -> Problem {
    let what =
        "this comes from another site, or without the header X-Xmsg-Page: only pages of this server do it";
    Problem::new(StatusCode::FORBIDDEN, "foreign", what)
}
