//! The paths, what they answer, and who gets an answer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Path, Query, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
#[cfg(not(feature = "connect"))]
use utoipa_axum::router::OpenApiRouter;
use xmsg_zmq::ViolationCounts;

use super::access::{Caller, Denied, Role, is_from_elsewhere};
use super::classic_text::TextFormat;
use super::process::{Process, unix_s};
use super::server::Connection;
use super::{Phase, State, api, metrics, page};
use crate::registrar;
use crate::stats::{DropRow, Kind, Row, SubscriberPart, Sum};
use crate::switch::Ending;

/// How long a task may wait for its turn until the runtime counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// How many entries a list has, unless the request asks for more.
const LIMIT_DEFAULT: usize = 100;
/// How many entries a list has at most.
const LIMIT_MAX: usize = 10_000;
/// How many bytes of prefixes a list has at most. Peers choose the prefixes, and what is not text takes six
/// times as much in an answer.
const PREFIXES_MAX: usize = 512 << 10;
/// Paths with long answers.
const LONG_ANSWER_PATHS: [&str; 6] =
    ["/connz", "/subsz", "/statsz", "/api/v1/connections", "/api/v1/stats", "/api/v1/topics"];
/// Paths with events that are told as they happen. Each takes one of few places for as long as it is read, so
/// that pages of other sites are not to open them, though they could not read them.
const STREAMS: [&str; 3] = ["/api/v1/events", "/api/v1/log", "/api/v1/tap"];
/// Paths for probes, which can't know a token. Their answers say nothing else.
const PUBLIC_PATHS: [&str; 2] = ["/healthz", "/readyz"];

const INDEX: &str = "/healthz\n/readyz\n/metrics\n/varz\n";
const PROXY_INDEX: &str = "/connz?limit=&offset=&sort=&kind=\n/subsz?limit=&prefix=\n/statsz\n\
    POST /connections/{id}/end\n";

type Answer = Result<Response, (StatusCode, String)>;

pub(super) fn router(state: Arc<State>) -> Router {
    let mut router = Router::new()
        .route("/", get(index))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(prometheus))
        .route("/varz", get(varz));
    if state.proxy.is_some() {
        router = router
            .route("/connz", get(connz))
            .route("/subsz", get(subsz))
            .route("/statsz", get(statsz))
            .route("/connections/{id}/end", post(end_connection));
    }
    #[cfg(feature = "connect")]
    let connect = state.connect.as_ref().map(|_| super::connect::router()).unwrap_or_default();
    #[cfg(not(feature = "connect"))]
    let connect = OpenApiRouter::default();
    router = if state.has_page() {
        router.merge(page::router()).merge(api::router(connect))
    } else {
        router.merge(connect.split_for_parts().0)
    };
    router.layer(from_fn_with_state(state.clone(), guard)).with_state(state)
}

/// Proof that a request has brought the operator's token, or a session that was made with it. A handler that
/// changes something needs this proof, since a token that is there now need not have been there when the
/// request was let in.
#[derive(Clone, Debug)]
pub(super) struct Authorized {
    /// The name of the client in the log.
    pub(super) by: String,
}

/// The client that a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requester {
    /// The caller, or `None` for nobody in particular, where everybody may look.
    pub(super) caller: Option<Caller>,
}

/// Returns the text of the error where there is no token at all.
pub(super) fn no_token(daemon: &str) -> String {
    let variable = daemon.replace('-', "_").to_uppercase();
    format!(
        "this can be done with the token only, and there is none: name a file with one (--admin-token-file, \
         {variable}_ADMIN_TOKEN_FILE, or admin.token_file in the settings file)"
    )
}

/// Finds out who asks, and rejects requests that may not be answered.
async fn guard(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let refusal = match admit(&state, &request) {
        Ok(caller) => {
            let peer = connection.as_deref().map(Connection::peer);
            let from = peer.map_or_else(|| "HTTP".to_owned(), |peer| format!("HTTP from {peer}"));
            if let Some(Caller { role: Role::Operator, session, .. }) = caller {
                let by = session.map_or(from.clone(), |number| format!("{from}, session {number}"));
                request.extensions_mut().insert(Authorized { by });
            }
            request.extensions_mut().insert(Requester { caller });
            None
        }
        Err(refusal) => Some(refuse(&state, connection.as_deref(), refusal).await),
    };
    let mut response = match refusal {
        Some(refusal) => refusal,
        None if LONG_ANSWER_PATHS.contains(&request.uri().path()) && !state.answers.has_room() => {
            no_room(&state, connection.as_deref())
        }
        None => {
            let (head, body) = next.run(request).await.into_parts();
            if head.extensions.get::<api::Streamed>().is_some() {
                Response::from_parts(head, body)
            } else {
                // All other answers are made as a whole, and none of them fails. From here on they count.
                let text = to_bytes(body, usize::MAX).await.unwrap_or_default();
                match state.answers.body(text) {
                    Some(body) => Response::from_parts(head, body),
                    None => no_room(&state, connection.as_deref()),
                }
            }
        }
    };
    let headers = response.headers_mut();
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// Why a request is rejected.
enum RejectReason {
    Denied(Denied),
    /// A page of another site, or of another port, would follow what happens here.
    ForeignStream,
    /// The request is for a name that may have been made to lead here.
    Name,
}

/// Returns who asks, or why the request is rejected.
fn admit(state: &State, request: &Request) -> Result<Option<Caller>, RejectReason> {
    let (path, headers) = (request.uri().path(), request.headers());
    // A page in a browser on this machine could ask under a name of its own that leads here (DNS rebinding).
    // Whoever has a token, or a cookie, which is for one name, has shown more than that.
    let is_local = is_local_name(request.uri(), headers);
    let tokens = state.access.tokens();
    let is_page = path.starts_with(page::FOLDER) || (path == "/" && page::is_wanted(headers));
    // Who has no session yet gets the page, which asks for the token. A token that is brought is always
    // looked at: wrong ones count.
    let asks_who = path == api::SESSION && !headers.contains_key(header::AUTHORIZATION);
    if PUBLIC_PATHS.contains(&path) || (state.has_page() && (is_page || asks_who)) {
        return if is_local || !tokens.open_to_look { Ok(None) } else { Err(RejectReason::Name) };
    }
    // Whatever else the request brings: a browser that says where it comes from is believed.
    if is_from_elsewhere(headers) {
        if STREAMS.contains(&path) {
            return Err(RejectReason::ForeignStream);
        }
        if !request.method().is_safe() {
            return Err(RejectReason::Denied(Denied::Foreign));
        }
    }
    match state.access.caller(request.method(), headers).map_err(RejectReason::Denied)? {
        None if !is_local => Err(RejectReason::Name),
        caller => Ok(caller),
    }
}

async fn refuse(state: &State, connection: Option<&Connection>, why: RejectReason) -> Response {
    let text = "send the token: Authorization: Bearer TOKEN\n";
    let unauthorized = (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], text);
    match why {
        RejectReason::Denied(Denied::Nothing) => {
            state.refused_requests.no_token(connection);
            unauthorized.into_response()
        }
        RejectReason::Denied(Denied::WrongToken) => {
            state.refused_requests.wrong_token(connection).await;
            unauthorized.into_response()
        }
        RejectReason::Denied(Denied::Foreign) => {
            state.refused_requests.foreign(connection);
            let text = "a change in a browser has to come from a page of this server, with the header X-Xmsg-Page, which has the secret from the \
                        answer to the login: log in again\n";
            (StatusCode::FORBIDDEN, text).into_response()
        }
        RejectReason::Denied(Denied::TooMany) => {
            state.refused_requests.too_many(connection);
            let text = "more changes in a second than a session may make: wait a moment\n";
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], text).into_response()
        }
        RejectReason::ForeignStream => {
            state.refused_requests.foreign(connection);
            let text = "what happens here is told to pages of this server and to programs, and a browser asked for a page of another site or \
                        port: open the page at this address\n";
            (StatusCode::FORBIDDEN, text).into_response()
        }
        RejectReason::Name => {
            (StatusCode::FORBIDDEN, "ask for localhost, or for an IP address\n").into_response()
        }
    }
}

/// Returns the answer in place of a long one, while others are not read yet.
fn no_room(state: &State, connection: Option<&Connection>) -> Response {
    state.refused_requests.no_room(connection);
    let text = "there is no room for a long answer now: others are not read yet, or the memory for all peers is used up. \
                Ask again, with a smaller limit\n";
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], text).into_response()
}

/// Returns whether the request is for `localhost` or an IP address. A request without any name does not come
/// from a browser.
fn is_local_name(uri: &Uri, headers: &HeaderMap) -> bool {
    let named = |text: &str| {
        let host = match text.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => text.split(':').next().unwrap_or_default(),
        };
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
    };
    uri.host().is_none_or(named)
        && headers.get_all(header::HOST).iter().all(|host| host.to_str().is_ok_and(named))
}

async fn index(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Response {
    if state.has_page() && page::is_wanted(&headers) {
        return page::index(&headers);
    }
    let proxy = state.proxy.as_ref().map_or("", |_| PROXY_INDEX);
    #[cfg(feature = "connect")]
    let connect = state.connect.as_ref().map_or("", |_| super::connect::INDEX);
    #[cfg(not(feature = "connect"))]
    let connect = "";
    let api = if state.has_page() { api::INDEX } else { "" };
    format!("{} {}\n\n{INDEX}{proxy}{connect}{api}", state.name, env!("CARGO_PKG_VERSION")).into_response()
}

/// Checks that the runtimes that do the work give a task its turn.
async fn healthz(Shared(state): Shared<Arc<State>>) -> Answer {
    let own = state.registrar.as_ref().map(registrar::Monitor::runtime);
    #[cfg(feature = "connect")]
    let connect = state.connect.as_ref().map(super::connect::Connect::runtime);
    #[cfg(not(feature = "connect"))]
    let connect = None;
    let runtimes = [Some(&state.runtime), own, connect].into_iter().flatten();
    let mut turns: Vec<_> = runtimes.map(|runtime| runtime.spawn(async {})).collect();
    let unavailable = |text| (StatusCode::SERVICE_UNAVAILABLE, text);
    match tokio::time::timeout(STUCK_AFTER, futures::future::try_join_all(turns.iter_mut())).await {
        Ok(Ok(_)) => Ok("ok\n".into_response()),
        Ok(Err(_)) => Err(unavailable("the runtime has ended\n".to_owned())),
        Err(_) => {
            turns.iter().for_each(tokio::task::JoinHandle::abort);
            Err(unavailable(format!("the runtime is stuck: no turn within {STUCK_AFTER:?}\n")))
        }
    }
}

async fn readyz(Shared(state): Shared<Arc<State>>) -> Answer {
    let unavailable = |text: &str| Err((StatusCode::SERVICE_UNAVAILABLE, text.to_owned()));
    match state.phase() {
        Phase::Draining => unavailable("draining\n"),
        Phase::Ready if !state.is_writable() => {
            unavailable("what is registered can't be stored, the log says why; it is tried again\n")
        }
        Phase::Ready => Ok("ready\n".into_response()),
    }
}

async fn prometheus(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Answer {
    let accept: Vec<_> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = TextFormat::wanted(&accept.join(","));
    match metrics::encode(&state) {
        Ok(text) => Ok(([(header::CONTENT_TYPE, format.content_type())], format.write(text)).into_response()),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))),
    }
}

/// Returns how many connections were ended, by reason.
fn by_reason(counts: ViolationCounts) -> serde_json::Value {
    counts
        .iter()
        .map(|(reason, count)| (reason.to_string(), count.into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

async fn varz(Shared(state): Shared<Arc<State>>) -> Json<serde_json::Value> {
    let process = Process::read_all();
    let mut found = json!({
        "name": state.name,
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "phase": state.phase_name(),
        "started_unix_s": unix_s(state.started_at),
        "uptime_s": state.started.elapsed().as_secs_f64(),
        "cpu_s": process.cpu_s,
        "resident_memory_bytes": process.resident_bytes,
        "open_fds": process.open_fds,
        "config": *state.config(),
    });
    if let Some(proxy) = &state.proxy {
        let (totals, subscribers) = (proxy.totals(), proxy.subscribers());
        found["proxy"] = json!({
            "received": Sum::from(totals.received),
            "delivered": Sum::from(totals.delivered),
            "dropped": Sum::from(totals.dropped),
            "drops": DropRow::from(totals.drops),
            "publisher_waits": totals.waits,
            "publisher_wait_s": totals.waited.as_secs_f64(),
            "subscribers_disconnected": totals.disconnected,
            "publishers_crowded_out": totals.crowded_out,
            "connections_gave_way": totals.evicted,
            "denied": totals.denied,
            "violations": by_reason(totals.violations),
            "undelivered_messages": totals.undelivered,
            "held_messages": totals.held,
            "unmatched_messages": totals.unmatched,
            "handshakes_refused": totals.refused,
            "publishers": proxy.publishers().len(),
            "subscribers": subscribers.len(),
            "upstreams": proxy.upstreams().into_iter().map(Row::from).collect::<Vec<_>>(),
            "double_paths": proxy.double_paths(),
            "control_connections": proxy.control_connections(),
            "subscriptions": proxy.subscriptions(),
            "queue": Sum::from(metrics::queued(&subscribers)),
        });
    }
    found["admin_refused_requests"] = json!(BTreeMap::from(state.refused_requests.counts()));
    if let Some(authority) = &state.authority {
        found["logins"] = json!(BTreeMap::from(metrics::logins(authority.logins())));
    }
    if let Some(log) = &state.log {
        found["log_lines_lost"] = json!(log.lost());
    }
    if let Some(registrar) = &state.registrar {
        let counts = registrar.counts();
        found["registrar"] = json!({
            "publishers": counts.publishers,
            "subscribers": counts.subscribers,
            "requests": counts.requests,
            "refused": counts.refused,
            "refused_full": counts.full,
            "registration_memory_bytes": counts.memory,
            "write_failures": counts.write_failures,
            "is_writable": registrar.is_writable(),
            "expired": counts.expired,
            "violations": by_reason(counts.violations),
            "connections": registrar.connections(),
        });
    }
    Json(found)
}

/// The query of a list of connections: which ones, and in what order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnzQuery {
    limit: Option<usize>,
    #[serde(default)]
    offset: usize,
    #[serde(default)]
    sort: Sort,
    kind: Option<Kind>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sort {
    #[default]
    Id,
    Peer,
    /// The connections that exist longest come first. The sorts below also put the largest first.
    Connected,
    Messages,
    Bytes,
    Queue,
    Drops,
    Subscriptions,
}

impl Sort {
    fn apply(self, rows: &mut [Row]) {
        let part = |row: &Row, value: fn(&SubscriberPart) -> u64| row.subscriber.as_ref().map(value);
        rows.sort_by_key(|row| row.id);
        match self {
            Self::Id => {}
            Self::Peer => rows.sort_by(|a, b| a.peer.cmp(&b.peer)),
            Self::Connected => rows.sort_by(|a, b| b.connected_s.total_cmp(&a.connected_s)),
            Self::Messages => rows.sort_by_key(|row| Reverse(row.messages)),
            Self::Bytes => rows.sort_by_key(|row| Reverse(row.bytes)),
            Self::Queue => rows.sort_by_key(|row| Reverse(part(row, |own| own.queued.bytes))),
            Self::Drops => rows.sort_by_key(|row| Reverse(part(row, |own| own.dropped.messages))),
            Self::Subscriptions => rows.sort_by_key(|row| Reverse(part(row, |own| own.subscriptions as u64))),
        }
    }
}

/// Returns the number of entries that a request may have.
fn limit(requested: Option<usize>) -> Result<usize, (StatusCode, String)> {
    match requested {
        None => Ok(LIMIT_DEFAULT),
        Some(limit) if limit <= LIMIT_MAX => Ok(limit),
        Some(_) => Err((StatusCode::BAD_REQUEST, format!("the limit is at most {LIMIT_MAX}\n"))),
    }
}

async fn connz(Shared(state): Shared<Arc<State>>, Query(query): Query<ConnzQuery>) -> Answer {
    let limit = limit(query.limit)?;
    let proxy = state.proxy.as_ref().ok_or((StatusCode::NOT_FOUND, String::new()))?;
    let mut rows: Vec<Row> = Vec::new();
    let lists = |kind| query.kind.is_none_or(|wanted| wanted == kind);
    if lists(Kind::Upstream) {
        rows.extend(proxy.upstreams().into_iter().map(Row::from));
    }
    if lists(Kind::Publisher) {
        rows.extend(proxy.publishers().into_iter().map(Row::from));
    }
    if lists(Kind::Subscriber) {
        rows.extend(proxy.subscribers().into_iter().map(Row::from));
    }
    let total = rows.len();
    query.sort.apply(&mut rows);
    let connections = rows.into_iter().skip(query.offset).take(limit).collect();
    Ok(Json(ConnzAnswer { total, offset: query.offset, limit, connections }).into_response())
}

/// A list of connections. It is serialized directly, since JSON values would take many times as much memory.
#[derive(Serialize)]
struct ConnzAnswer {
    total: usize,
    offset: usize,
    limit: usize,
    connections: Vec<Row>,
}

/// A list of prefixes.
#[derive(Serialize)]
struct SubszAnswer {
    total: u64,
    subscriptions: u64,
    limit: usize,
    prefixes: Vec<PrefixRow>,
}

#[derive(Serialize)]
struct PrefixRow {
    prefix: String,
    subscribers: usize,
}

/// The query of a list of prefixes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubszQuery {
    limit: Option<usize>,
    /// The start of the prefixes that are listed.
    #[serde(default)]
    prefix: String,
}

/// Lists the prefixes with the most subscribers first, as many as there is room for. Bytes that are no UTF-8
/// are shown as `\xff`.
async fn subsz(Shared(state): Shared<Arc<State>>, Query(query): Query<SubszQuery>) -> Answer {
    let limit = limit(query.limit)?;
    let proxy = state.proxy.as_ref().ok_or((StatusCode::NOT_FOUND, String::new()))?;
    let (mut total, mut subscriptions) = (0_u64, 0_u64);
    let mut first: BTreeSet<(Reverse<usize>, Vec<u8>)> = BTreeSet::new();
    let mut bytes = 0;
    proxy.prefixes(|prefix, subscribers| {
        if prefix.starts_with(query.prefix.as_bytes()) {
            total += 1;
            subscriptions += subscribers as u64;
            bytes += prefix.len();
            first.insert((Reverse(subscribers), prefix));
            while first.len() > limit || bytes > PREFIXES_MAX {
                let Some((_, last)) = first.pop_last() else { break };
                bytes -= last.len();
            }
        }
    });
    let shown = |prefix: Vec<u8>| {
        String::from_utf8(prefix).unwrap_or_else(|error| error.as_bytes().escape_ascii().to_string())
    };
    let prefixes = first
        .into_iter()
        .map(|(Reverse(subscribers), prefix)| PrefixRow { prefix: shown(prefix), subscribers })
        .collect();
    Ok(Json(SubszAnswer { total, subscriptions, limit, prefixes }).into_response())
}

/// Answers as the control request `stats` is answered.
async fn statsz(Shared(state): Shared<Arc<State>>) -> Answer {
    let proxy = state.proxy.as_ref().ok_or((StatusCode::NOT_FOUND, String::new()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], proxy.stats()).into_response())
}

/// Ends one connection.
async fn end_connection(
    Shared(state): Shared<Arc<State>>,
    Path(id): Path<String>,
    authorized: Option<Extension<Authorized>>,
    Extension(requester): Extension<Requester>,
) -> Answer {
    let Some(Extension(Authorized { by })) = authorized else {
        return Err((StatusCode::FORBIDDEN, format!("{}\n", state.missing_right(requester))));
    };
    let ending = id.parse().ok().and_then(|id| state.proxy.as_ref()?.end_connection(id, &by));
    let Some(Ending { id, peer, side }) = ending else {
        let text = "no publisher or subscriber has this ID: /connz lists those who are connected\n";
        return Err((StatusCode::NOT_FOUND, text.to_owned()));
    };
    Ok(Json(json!({ "id": id, "peer": peer, "side": side.peer() })).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_cannot_be_rebound_are_local() {
        let is_local = |host: &str| {
            let headers = [(header::HOST, HeaderValue::from_str(host).unwrap())].into_iter().collect();
            is_local_name(&Uri::from_static("/"), &headers)
        };
        for host in
            ["localhost", "LOCALHOST:7775", "127.0.0.1", "127.0.0.1:1", "[::1]:7775", "[::1]", "192.0.2.1:80"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:7775", "", "127.0.0.1.evil.example", "[evil]:1"]
        {
            assert!(!is_local(host), "{host}");
        }
        assert!(is_local_name(&Uri::from_static("/"), &HeaderMap::new()));
        assert!(!is_local_name(&Uri::from_static("http://evil.example/"), &HeaderMap::new()));
    }
}
