//! The paths `/connect`, by which outgoing connections and channels are shown and changed while they are at
//! work.
//!
//! Whoever may ask may look. What changes something, or sends, needs the token.
//!
//! | file | answers |
//! |---|---|
//! | `messages.rs` | How are messages sent over HTTP, and dead letters handled? |
//! | `metrics.rs` | What is on `/metrics` of outgoing connections and channels? |
//! | `refusal.rs` | What is answered to a request that is refused? |

mod messages;
mod metrics;
mod refusal;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use utoipa::{IntoParams, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use xmsg_connect::definition::{
    ChannelDefinition, ConnectionDefinition, Definitions, DurableDefinition, FederationDefinition,
    OutgoingDefinition, SpoolDefinition,
};
use xmsg_connect::{Definition, OnDelete, Registry, Sort};
use xmsg_zmq::deadline::Deadline;

use super::State;
use super::routes::{Authorized, Requester};
use refusal::{Refusal, RefusalBody, Refusals};

pub(super) use metrics::ConnectSnapshot;

/// How many bytes a request that declares something may have.
const BODY_MAX: usize = 1 << 20;
/// How long a request's body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// The longest time that a request may have something waited for.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// How long peers may take, unless the request says otherwise.
const PING_TIME: Duration = Duration::from_secs(10);
const DRAIN_TIME: Duration = Duration::from_secs(30);

type Answer = Result<Response, Refusal>;

/// A registry at work that the HTTP server shows and changes.
#[derive(Clone, Debug)]
pub struct Connect {
    registry: Registry,
    runtime: Handle,
}

impl Connect {
    /// Makes the access to this registry. What requests ask of it is done on this runtime, on which it runs.
    #[must_use]
    pub fn new(registry: Registry, runtime: Handle) -> Self {
        Self { registry, runtime }
    }

    /// Returns the outgoing connections and channels, and how they are.
    pub(super) fn report(&self) -> xmsg_connect::Report {
        self.registry.report()
    }

    /// Returns the runtime on which the registry runs.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs `work` on the runtime of the registry. It is cancelled if the client has gone meanwhile.
    async fn run<T: Send + 'static>(&self, work: impl AsyncWork<T>) -> Result<T, Refusal> {
        let work = work(self.registry.clone());
        let done = AbortOnDropHandle::new(self.runtime.spawn(work)).await;
        done.map_err(|_| Refusal::ended())?.map_err(Refusal::from)
    }
}

/// Asynchronous work with a registry.
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

/// Whose path it is.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Entry {
    /// `outgoing`, `channel`, `connection`, `federation` or `durable`
    sort: String,
    /// The name of the entry
    name: String,
}

/// What the paths below refer to. It is not found through [`Refusals`].
#[derive(OpenApi)]
#[openapi(components(schemas(RefusalBody)))]
struct Document;

/// Returns all paths with their descriptions.
pub(super) fn router() -> OpenApiRouter<Arc<State>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(report))
        .routes(routes!(export))
        .routes(routes!(import))
        .routes(routes!(add))
        .routes(routes!(create))
        .routes(routes!(look, update, delete))
        .routes(routes!(enable))
        .routes(routes!(disable))
        .routes(routes!(ping))
        .routes(routes!(rename))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .merge(messages::router())
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
        let requester = parts.extensions.get::<Requester>().copied().unwrap_or(Requester { caller: None });
        Err(Refusal::not_allowed(state.missing_right(requester)))
    }
}

impl Permitted {
    /// Logs who has changed what.
    fn note(&self, what: fmt::Arguments<'_>) {
        tracing::info!(by = self.by, "{what}");
    }
}

impl State {
    /// Returns the registry. There is one where this is called.
    fn connect(&self) -> Result<&Connect, Refusal> {
        self.connect.as_ref().ok_or_else(Refusal::ended)
    }
}

/// Parses the sort that a path names.
fn sort(text: &str) -> Result<Sort, Refusal> {
    text.parse().map_err(Refusal::unknown_path)
}

/// Checks that a path names outgoing connections, since only they have messages.
fn outgoing(text: &str) -> Result<(), Refusal> {
    match sort(text)? {
        Sort::Outgoing => Ok(()),
        sort => Err(Refusal::unknown_path(format!("a {sort} has no messages: an outgoing connection has"))),
    }
}

/// Reads the body of a request. Its client has shown the token before.
async fn body(request: Request) -> Result<Bytes, Refusal> {
    let read = Deadline::after(BODY_TIME).limit(Bytes::from_request(request, &())).await;
    let read = read.map_err(|_| Refusal::late_body(BODY_TIME))?;
    read.map_err(|rejection| Refusal::unreadable(rejection.status(), rejection.body_text()))
}

fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::invalid_json(&error))
}

/// Parses a length of time in a query, in seconds.
fn seconds(requested: Option<f64>, default: Duration) -> Result<Duration, Refusal> {
    let Some(seconds) = requested else { return Ok(default) };
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= WAIT_MAX);
    let what = || format!("timeout_s is not a number of seconds from 0 to {}", WAIT_MAX.as_secs());
    time.ok_or_else(|| Refusal::invalid_request("timeout_s", what()))
}

/// Parses the definition of this sort that a request brings.
fn definition(sort: Sort, body: &[u8]) -> Result<Definition, Refusal> {
    Ok(match sort {
        Sort::Connection => read_json::<ConnectionDefinition>(body)?.into(),
        Sort::Outgoing => read_json::<OutgoingDefinition>(body)?.into(),
        Sort::Channel => read_json::<ChannelDefinition>(body)?.into(),
        Sort::Federation => read_json::<FederationDefinition>(body)?.into(),
        Sort::Durable => read_json::<DurableDefinition>(body)?.into(),
    })
}

/// Everything that is declared, and how it is.
#[utoipa::path(
    get, path = "/connect", tag = "connect",
    responses((status = 200, body = serde_json::Value), Refusals)
)]
async fn report(Shared(state): Shared<Arc<State>>) -> Answer {
    let connect = state.connect()?;
    Ok(Json(connect.registry.report()).into_response())
}

/// Returns one entry, and how it is.
fn entry_answer(registry: &Registry, sort: Sort, name: &str) -> Answer {
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

/// One entry, and how it is.
#[utoipa::path(
    get, path = "/connect/{sort}/{name}", params(Entry), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "The entry: its definition, and how it is"), Refusals)
)]
async fn look(
    Shared(state): Shared<Arc<State>>,
    Path(Entry { sort: sort_name, name }): Path<Entry>,
) -> Answer {
    entry_answer(&state.connect()?.registry, sort(&sort_name)?, &name)
}

/// Adds an entry.
#[utoipa::path(
    post, path = "/connect/{sort}", params(("sort" = String, Path, description = "`outgoing`, `channel`, `connection`, `federation` or `durable`")), request_body(content = serde_json::Value, description = "A definition, as in docs/connect.md"), tag = "connect",
    responses((status = 201, body = serde_json::Value, description = "What was added: definitions, and how they are"), Refusals)
)]
async fn create(
    Shared(state): Shared<Arc<State>>,
    Path(sort_name): Path<String>,
    permitted: Permitted,
    request: Request,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&sort_name)?);
    let definition = definition(sort, &body(request).await?)?;
    let name = definition.name().to_owned();
    connect.run(|registry| async move { registry.create(definition).await }).await?;
    permitted.note(format_args!("{sort} {name:?} was added"));
    Ok((StatusCode::CREATED, entry_answer(&connect.registry, sort, &name)?).into_response())
}

/// Adds several entries at once: all of them, or none.
#[utoipa::path(
    post, path = "/connect/add", request_body(content = serde_json::Value, description = "Lists of definitions: connection, outgoing, channel"), tag = "connect",
    responses((status = 201, body = serde_json::Value, description = "What was added: definitions, and how they are"), Refusals)
)]
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
    let mut answers = Vec::new();
    for (sort, name) in added {
        permitted.note(format_args!("{sort} {name:?} was added"));
        answers.push(json!({ "sort": sort, "entry": value(&connect.registry, sort, &name)? }));
    }
    Ok((StatusCode::CREATED, Json(answers)).into_response())
}

/// Puts another definition in the place of an entry, with another name, too.
#[utoipa::path(
    put, path = "/connect/{sort}/{name}", params(Entry), request_body(content = serde_json::Value, description = "A definition, as in docs/connect.md"), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "The entry: its definition, and how it is"), Refusals)
)]
async fn update(
    Shared(state): Shared<Arc<State>>,
    Path(Entry { sort: sort_name, name }): Path<Entry>,
    permitted: Permitted,
    request: Request,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&sort_name)?);
    let definition = definition(sort, &body(request).await?)?;
    let (old, new) = (name.clone(), definition.name().to_owned());
    connect.run(|registry| async move { registry.update(&name, definition).await }).await?;
    if old == new {
        permitted.note(format_args!("{sort} {old:?} was changed"));
    } else {
        permitted.note(format_args!("{sort} {old:?} was changed, and is {new:?} now"));
    }
    entry_answer(&connect.registry, sort, &new)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DeleteQuery {
    /// What becomes of messages that wait. `refuse`: then it is not deleted; `drain`: they are delivered
    /// first; `purge`: they are lost.
    #[serde(default)]
    #[param(inline)]
    on_delete: OnDeleteName,
    /// How long draining may take: 30 s unless given.
    timeout_s: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum OnDeleteName {
    #[default]
    Refuse,
    Drain,
    Purge,
}

/// Deletes an entry, unless others refer to it or messages would be lost.
#[utoipa::path(
    delete, path = "/connect/{sort}/{name}", params(Entry, DeleteQuery), tag = "connect",
    responses((status = 200, body = serde_json::Value), Refusals)
)]
async fn delete(
    Shared(state): Shared<Arc<State>>,
    Path(Entry { sort: sort_name, name }): Path<Entry>,
    permitted: Permitted,
    Query(query): Query<DeleteQuery>,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&sort_name)?);
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

/// Sets an entry to work.
#[utoipa::path(
    post, path = "/connect/{sort}/{name}/enable", params(Entry), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "The entry: its definition, and how it is"), Refusals)
)]
async fn enable(state: Shared<Arc<State>>, path: Path<Entry>, permitted: Permitted) -> Answer {
    set_active(state, path, &permitted, true).await
}

/// Sets an entry to rest.
#[utoipa::path(
    post, path = "/connect/{sort}/{name}/disable", params(Entry), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "The entry: its definition, and how it is"), Refusals)
)]
async fn disable(state: Shared<Arc<State>>, path: Path<Entry>, permitted: Permitted) -> Answer {
    set_active(state, path, &permitted, false).await
}

async fn set_active(
    Shared(state): Shared<Arc<State>>,
    Path(Entry { sort: sort_name, name }): Path<Entry>,
    permitted: &Permitted,
    is_active: bool,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&sort_name)?);
    let set = name.clone();
    connect.run(move |registry| async move { registry.set_active(sort, &name, is_active).await }).await?;
    let how = if is_active { "enabled" } else { "disabled" };
    permitted.note(format_args!("{sort} {set:?} was {how}"));
    entry_answer(&connect.registry, sort, &set)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PingQuery {
    /// How long the peer may take: 10 s unless given.
    timeout_s: Option<f64>,
}

/// Looks whether the peer can be reached, and is as it is declared. It makes a connection, so that it is
/// not for everybody.
#[utoipa::path(
    post, path = "/connect/{sort}/{name}/ping", params(Entry, PingQuery), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "`seconds`: how long that took"), Refusals)
)]
async fn ping(
    Shared(state): Shared<Arc<State>>,
    Path(Entry { sort: sort_name, name }): Path<Entry>,
    _: Permitted,
    Query(query): Query<PingQuery>,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&sort_name)?);
    let limit = seconds(query.timeout_s, PING_TIME)?;
    let took = connect.run(move |registry| async move { registry.ping(sort, &name, limit).await }).await?;
    Ok(Json(json!({ "seconds": took.as_secs_f64() })).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct RenameQuery {
    /// The new name.
    to: String,
}

/// Renames an entry, and what refers to it.
#[utoipa::path(
    post, path = "/connect/{sort}/{name}/rename", params(Entry, RenameQuery), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "The entry: its definition, and how it is"), Refusals)
)]
async fn rename(
    Shared(state): Shared<Arc<State>>,
    Path(Entry { sort: sort_name, name }): Path<Entry>,
    permitted: Permitted,
    Query(RenameQuery { to }): Query<RenameQuery>,
) -> Answer {
    let (connect, sort) = (state.connect()?, sort(&sort_name)?);
    let (old, new) = (name.clone(), to.clone());
    connect.run(move |registry| async move { registry.rename(sort, &name, &to).await }).await?;
    permitted.note(format_args!("{sort} {old:?} is {new:?} now"));
    entry_answer(&connect.registry, sort, &new)
}

/// All definitions, as a file. Secrets are in files of their own.
#[utoipa::path(
    get, path = "/connect/export", tag = "connect",
    responses((status = 200, body = String, content_type = "application/toml"), Refusals)
)]
async fn export(Shared(state): Shared<Arc<State>>) -> Answer {
    let text = state.connect()?.registry.export().to_toml().map_err(xmsg_connect::Error::from)?;
    Ok(([(header::CONTENT_TYPE, "application/toml")], text).into_response())
}

/// Puts other definitions in the place of all.
#[utoipa::path(
    post, path = "/connect/import", request_body(content = String, content_type = "application/toml", description = "As in docs/connect.md"), tag = "connect",
    responses((status = 200, body = serde_json::Value, description = "How many there are of each sort"), Refusals)
)]
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
