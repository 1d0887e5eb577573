//! `/connect`: outgoing connections and channels, looked at and changed while they are at work.
//!
//! Whoever may ask may look. What changes something, or sends, needs the token.

mod messages;
mod metrics;
mod refusal;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use xmsg_connect::definition::{
    ChannelDefinition, ConnectionDefinition, Definitions, DurableDefinition, FederationDefinition,
    OutgoingDefinition, SpoolDefinition,
};
use xmsg_connect::{Definition, OnDelete, Registry, Sort};
use xmsg_zmq::deadline::Deadline;

use super::State;
use super::routes::{Asked, Authorized};
use refusal::Refusal;

pub(super) use metrics::ConnectSnapshot;

/// Bytes of a request that declares something.
const BODY_MAX: usize = 1 << 20;
/// How long a request's body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// The longest time that a request may have something waited for.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// How long peers may take, unless the request says otherwise.
const PING_TIME: Duration = Duration::from_secs(10);
const DRAIN_TIME: Duration = Duration::from_secs(30);

type Answer = Result<Response, Refusal>;

/// A registry at work that the HTTP server tells of, and changes.
#[derive(Clone, Debug)]
pub struct Connect {
    registry: Registry,
    runtime: Handle,
}

impl Connect {
    /// This registry, on this runtime: what requests ask of it is done there.
    #[must_use]
    pub fn new(registry: Registry, runtime: Handle) -> Self {
        Self { registry, runtime }
    }

    /// The outgoing connections and channels, and how they are.
    pub(super) fn report(&self) -> xmsg_connect::Report {
        self.registry.report()
    }

    /// Where it is at work.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Has it done where the registry is at work. If whoever asked has gone meanwhile, it is given up.
    async fn run<T: Send + 'static>(&self, work: impl AsyncWork<T>) -> Result<T, Refusal> {
        let work = work(self.registry.clone());
        let done = AbortOnDropHandle::new(self.runtime.spawn(work)).await;
        done.map_err(|_| Refusal::ended())?.map_err(Refusal::from)
    }
}

/// Something that is asked of a registry.
trait AsyncWork<T>: FnOnce(Registry) -> Self::Work {
    type Work: Future<Output = xmsg_connect::Result<T>> + Send + 'static;
}

impl<T, W, F> AsyncWork<T> for F
where
    F: FnOnce(Registry) -> W,
    W: Future<Output = xmsg_connect::Result<T>> + Send + 'static,
{
    type Work = W;
}

pub(super) const INDEX: &str = "/connect\n/connect/export\n/connect/{outgoing|channel|connection|federation|durable}/{name}\n\
    /connect/outgoing/{name}/dead?after=&limit=\n";

pub(super) fn router() -> Router<Arc<State>> {
    let entry = "/connect/{sort}/{name}";
    Router::new()
        .route("/connect", get(report))
        .route("/connect/export", get(export))
        .route("/connect/import", post(import))
        .route("/connect/add", post(add))
        .route("/connect/{sort}", post(create))
        .route(entry, get(look).put(update).delete(delete))
        .route(&format!("{entry}/enable"), post(enable))
        .route(&format!("{entry}/disable"), post(disable))
        .route(&format!("{entry}/ping"), post(ping))
        .route(&format!("{entry}/rename"), post(rename))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .merge(messages::router(entry))
}

/// Proof that a request has brought the token, and who it came from.
#[derive(Debug)]
struct Permitted {
    by: String,
}

impl FromRequestParts<Arc<State>> for Permitted {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Refusal> {
        if let Some(Authorized { by }) = parts.extensions.get::<Authorized>() {
            return Ok(Self { by: by.clone() });
        }
        let asked = parts.extensions.get::<Asked>().copied().unwrap_or(Asked { caller: None });
        Err(Refusal::not_allowed(state.what_is_missing(asked)))
    }
}

impl Permitted {
    /// Says in the log who has changed what.
    fn note(&self, what: fmt::Arguments<'_>) {
        tracing::info!(by = self.by, "{what}");
    }
}

impl State {
    /// The registry; there is one where this is called.
    fn connect(&self) -> Result<&Connect, Refusal> {
        self.connect.as_ref().ok_or_else(Refusal::ended)
    }
}

/// The sort that a path names.
fn sort(text: &str) -> Result<Sort, Refusal> {
    text.parse().map_err(Refusal::unknown_path)
}

/// The sort, if it is that of outgoing connections: only they have messages.
fn outgoing(text: &str) -> Result<(), Refusal> {
    match sort(text)? {
        Sort::Outgoing => Ok(()),
        sort => Err(Refusal::unknown_path(format!("a {sort} has no messages: an outgoing connection has"))),
    }
}

/// What a request brings. Whoever is to know what it says has shown the token before.
async fn body(request: Request) -> Result<Bytes, Refusal> {
    let read = Deadline::after(BODY_TIME).limit(Bytes::from_request(request, &())).await;
    let read = read.map_err(|_| Refusal::late_body(BODY_TIME))?;
    read.map_err(|rejection| Refusal::unreadable(rejection.status(), rejection.body_text()))
}

fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::invalid_json(&error))
}

/// A length of time in a query, in seconds.
fn seconds(asked: Option<f64>, default: Duration) -> Result<Duration, Refusal> {
    let Some(seconds) = asked else { return Ok(default) };
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= WAIT_MAX);
    let what = || format!("timeout_s is not a number of seconds from 0 to {}", WAIT_MAX.as_secs());
    time.ok_or_else(|| Refusal::invalid_request("timeout_s", what()))
}

/// The definition of this sort that a request brings.
fn definition(sort: Sort, body: &[u8]) -> Result<Definition, Refusal> {
    Ok(match sort {
        Sort::Connection => read_json::<ConnectionDefinition>(body)?.into(),
        Sort::Outgoing => read_json::<OutgoingDefinition>(body)?.into(),
        Sort::Channel => read_json::<ChannelDefinition>(body)?.into(),
        Sort::Federation => read_json::<FederationDefinition>(body)?.into(),
        Sort::Durable => read_json::<DurableDefinition>(body)?.into(),
    })
}

async fn report(Shared(state): Shared<Arc<State>>) -> Answer {
    let connect = state.connect()?;
    Ok(Json(connect.registry.report()).into_response())
}

/// One entry, and how it is.
fn shown(registry: &Registry, sort: Sort, name: &str) -> Answer {
    Ok(Json(value(registry, sort, name)?).into_response())
}

fn value(registry: &Registry, sort: Sort, name: &str) -> Result<serde_json::Value, Refusal> {
    Ok(match sort {
        Sort::Outgoing => json!(registry.outgoing(name)?),
        Sort::Channel => json!(registry.channel(name)?),
        Sort::Federation => json!(registry.federation(name)?),
        Sort::Durable => json!(registry.durable(name)?),
        Sort::Connection => match registry.export().find(sort, name) {
            Some(Definition::Connection(definition)) => json!({ "definition": definition }),
            _ => return Err(Refusal::unknown(sort, name)),
        },
    })
}

async fn look(Shared(state): Shared<Arc<State>>, Path((of, name)): Path<(String, String)>) -> Answer {
    shown(&state.connect()?.registry, sort(&of)?, &name)
}

async fn create(
    Shared(state): Shared<Arc<State>>,
    Path(of): Path<String>,
    permitted: Permitted,
    request: Request,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&of)?);
    let definition = definition(sort, &body(request).await?)?;
    let name = definition.name().to_owned();
    connect.run(|registry| async move { registry.create(definition).await }).await?;
    permitted.note(format_args!("{sort} {name:?} was added"));
    Ok((StatusCode::CREATED, shown(&connect.registry, sort, &name)?).into_response())
}

/// Several entries at once: all of them, or none.
async fn add(Shared(state): Shared<Arc<State>>, permitted: Permitted, request: Request) -> Answer {
    let connect = state.connect()?;
    let definitions: Definitions = read_json(&body(request).await?)?;
    if definitions.spool != SpoolDefinition::default() {
        let what = "[spool] is changed by an import".to_owned();
        return Err(Refusal::invalid_request("spool", what));
    }
    let all: Vec<Definition> = (definitions.connections.into_iter().map(Definition::from))
        .chain(definitions.outgoing.into_iter().map(Definition::from))
        .chain(definitions.channels.into_iter().map(Definition::from))
        .collect();
    let added: Vec<_> = all.iter().map(|entry| (entry.sort(), entry.name().to_owned())).collect();
    connect.run(|registry| async move { registry.create_all(all).await }).await?;
    let mut told = Vec::new();
    for (sort, name) in added {
        permitted.note(format_args!("{sort} {name:?} was added"));
        told.push(json!({ "sort": sort, "entry": value(&connect.registry, sort, &name)? }));
    }
    Ok((StatusCode::CREATED, Json(told)).into_response())
}

async fn update(
    Shared(state): Shared<Arc<State>>,
    Path((of, name)): Path<(String, String)>,
    permitted: Permitted,
    request: Request,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&of)?);
    let definition = definition(sort, &body(request).await?)?;
    let (old, new) = (name.clone(), definition.name().to_owned());
    connect.run(|registry| async move { registry.update(&name, definition).await }).await?;
    if old == new {
        permitted.note(format_args!("{sort} {old:?} was changed"));
    } else {
        permitted.note(format_args!("{sort} {old:?} was changed, and is {new:?} now"));
    }
    shown(&connect.registry, sort, &new)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteQuery {
    #[serde(default)]
    on_delete: OnDeleteName,
    timeout_s: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnDeleteName {
    #[default]
    Refuse,
    Drain,
    Purge,
}

async fn delete(
    Shared(state): Shared<Arc<State>>,
    Path((of, name)): Path<(String, String)>,
    permitted: Permitted,
    Query(query): Query<DeleteQuery>,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&of)?);
    let on_delete = match query.on_delete {
        OnDeleteName::Refuse => OnDelete::Refuse,
        OnDeleteName::Drain => OnDelete::Drain(seconds(query.timeout_s, DRAIN_TIME)?),
        OnDeleteName::Purge => OnDelete::Purge,
    };
    let deleted = name.clone();
    connect.run(move |registry| async move { registry.delete(sort, &name, on_delete).await }).await?;
    permitted.note(format_args!("{sort} {deleted:?} was deleted"));
    Ok(Json(json!({ "sort": sort, "name": deleted })).into_response())
}

async fn enable(state: Shared<Arc<State>>, path: Path<(String, String)>, permitted: Permitted) -> Answer {
    set_active(state, path, &permitted, true).await
}

async fn disable(state: Shared<Arc<State>>, path: Path<(String, String)>, permitted: Permitted) -> Answer {
    set_active(state, path, &permitted, false).await
}

async fn set_active(
    Shared(state): Shared<Arc<State>>,
    Path((of, name)): Path<(String, String)>,
    permitted: &Permitted,
    is_active: bool,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&of)?);
    let set = name.clone();
    connect.run(move |registry| async move { registry.set_active(sort, &name, is_active).await }).await?;
    let how = if is_active { "enabled" } else { "disabled" };
    permitted.note(format_args!("{sort} {set:?} was {how}"));
    shown(&connect.registry, sort, &set)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PingQuery {
    timeout_s: Option<f64>,
}

/// It makes a connection, so that it is not for everybody.
async fn ping(
    Shared(state): Shared<Arc<State>>,
    Path((of, name)): Path<(String, String)>,
    _: Permitted,
    Query(query): Query<PingQuery>,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&of)?);
    let limit = seconds(query.timeout_s, PING_TIME)?;
    let took = connect.run(move |registry| async move { registry.ping(sort, &name, limit).await }).await?;
    Ok(Json(json!({ "seconds": took.as_secs_f64() })).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RenameQuery {
    to: String,
}

async fn rename(
    Shared(state): Shared<Arc<State>>,
    Path((of, name)): Path<(String, String)>,
    permitted: Permitted,
    Query(RenameQuery { to }): Query<RenameQuery>,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&of)?);
    let (old, new) = (name.clone(), to.clone());
    connect.run(move |registry| async move { registry.rename(sort, &name, &to).await }).await?;
    permitted.note(format_args!("{sort} {old:?} is {new:?} now"));
    shown(&connect.registry, sort, &new)
}

async fn export(Shared(state): Shared<Arc<State>>) -> Answer {
    let text = state.connect()?.registry.export().to_toml().map_err(xmsg_connect::Error::from)?;
    Ok(([(header::CONTENT_TYPE, "application/toml")], text).into_response())
}

async fn import(Shared(state): Shared<Arc<State>>, permitted: Permitted, request: Request) -> Answer {
    let connect = state.connect()?;
    let body = body(request).await?;
    let text = str::from_utf8(&body).map_err(|_| {
        Refusal::unreadable(StatusCode::BAD_REQUEST, "the definitions are not UTF-8".to_owned())
    })?;
    let definitions = Definitions::parse(text).map_err(xmsg_connect::Error::from)?;
    let counts = json!({
        "connections": definitions.connections.len(),
        "outgoing": definitions.outgoing.len(),
        "channels": definitions.channels.len(),
        "durables": definitions.durables.len(),
        "federations": usize::from(definitions.federation.is_some()),
    });
    connect.run(|registry| async move { registry.import(definitions).await }).await?;
    permitted.note(format_args!("other definitions were imported: {counts}"));
    Ok(Json(counts).into_response())
}
