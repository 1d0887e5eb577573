//! What is registered at the registrar of this process, page by page.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use xmsg_core::address::bracketed;
use xmsg_core::registration::{OwnerType, UNDEFINED};
use xmsg_core::text::escaped;
use xmsg_zmq::deadline::Deadline;

use super::lists::ROWS;
use super::{Answer, Problem};
use crate::admin::State;
use crate::registrar::{self, Listed};

/// How long a search may take.
const SEARCH_TIME: Duration = Duration::from_secs(10);

/// Which registrations.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct RegistrationQuery {
    /// Rows: 100 unless asked for more, 1000 at most.
    limit: Option<usize>,
    /// Rows that are passed over.
    #[serde(default)]
    offset: usize,
    /// `publisher` or `subscriber`; both unless given.
    #[param(inline)]
    kind: Option<Side>,
    /// What the topic starts with.
    #[serde(default)]
    topic: String,
    /// A part of the name, of the address, or of the description.
    #[serde(default)]
    filter: String,
}

/// Whether somebody publishes or subscribes.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    Publisher,
    Subscriber,
}

/// One registration. Control characters, and those that turn text around, are shown as `\u{202e}`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RegistrationRow {
    kind: Side,
    /// The name of the actor.
    name: String,
    topic: String,
    /// Host and port of the proxy that it uses.
    address: String,
    /// Missing: it has none.
    description: Option<String>,
    /// How long ago it was registered or renewed, seconds. Missing: registrations do not expire, so that
    /// nobody keeps that time.
    renewed_s: Option<f64>,
}

impl From<Listed> for RegistrationRow {
    fn from(Listed { owner, registration, renewed_for }: Listed) -> Self {
        let topic = registration.topic();
        let topic = topic.map_or_else(|error| error.to_string(), |topic| topic.to_string());
        let text = |text: &str| escaped(text).into_owned();
        let description = registration.description();
        let address = format!("{}:{}", bracketed(&text(&registration.host)), registration.port);
        Self {
            kind: match owner {
                OwnerType::Publisher => Side::Publisher,
                OwnerType::Subscriber => Side::Subscriber,
            },
            name: text(&registration.name),
            topic: text(&topic),
            address,
            description: (description != UNDEFINED).then(|| text(description)),
            renewed_s: renewed_for.map(|time| time.as_secs_f64()),
        }
    }
}

/// Some registrations of all.
#[allow(clippy::struct_field_names, reason = "it is the name in JSON")]
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Registrations {
    /// Whether a registrar runs in this process. Without one, everything else is empty.
    has_registrar: bool,
    /// All that are registered now.
    publishers: u64,
    subscribers: u64,
    offset: usize,
    limit: usize,
    /// Whether further ones fit.
    has_more: bool,
    /// Whether only the first 200,000 registrations were looked at, so that further ones may fit.
    is_cut: bool,
    /// In the order of their topics, publishers first.
    registrations: Vec<RegistrationRow>,
}

/// What is registered at the registrar. It looks for them between the requests of its clients.
#[utoipa::path(
    get, path = "/api/v1/registrations", params(RegistrationQuery),
    responses((status = 200, body = Registrations), (status = 400, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn registrations(
    Shared(state): Shared<Arc<State>>,
    Query(query): Query<RegistrationQuery>,
) -> Answer<Registrations> {
    let limit = ROWS.of(query.limit)?;
    state.monitor()?;
    let offset = query.offset;
    let Some(registrar) = &state.registrar else {
        return Ok(Json(Registrations { offset, limit, ..Registrations::default() }));
    };
    let search = registrar::Query {
        owner: query.kind.map(|side| match side {
            Side::Publisher => OwnerType::Publisher,
            Side::Subscriber => OwnerType::Subscriber,
        }),
        topic: query.topic.trim().to_owned(),
        filter: query.filter.trim().to_owned(),
        offset,
        limit,
    };
    let page = Deadline::after(SEARCH_TIME).limit(registrar.browse(search)).await.ok().flatten();
    let page = page.ok_or_else(|| {
        let what = "the registrar has too much to do to answer now: ask again in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", what)
    })?;
    let counts = registrar.counts();
    Ok(Json(Registrations {
        has_registrar: true,
        publishers: counts.publishers,
        subscribers: counts.subscribers,
        offset,
        limit,
        has_more: page.has_more,
        is_cut: page.is_cut,
        registrations: page.listed.into_iter().map(RegistrationRow::from).collect(),
    }))
}
