//! Connections and topics: sorted, filtered, page by page.

use std::cmp::Reverse;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Answer, Operator, Problem};
use crate::admin::State;
use crate::admin::look::{Client, TopicRate, client, topic_rate};
use crate::stats::{Kind, Row, SubscriberPart, text};
use crate::switch::Ending;

/// How many entries an answer has, unless asked for others, and at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) default: usize,
    pub(super) max: usize,
}

/// Rows of an answer.
pub(super) const ROWS: Limit = Limit { default: 100, max: 1000 };

impl Limit {
    /// Returns the number of entries for a request that asks for so many.
    pub(super) fn of(self, requested: Option<usize>) -> Result<usize, Problem> {
        let limit = requested.unwrap_or(self.default);
        if limit <= self.max {
            return Ok(limit);
        }
        let what = format!("the limit is at most {}", self.max);
        Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_request", what).at("limit"))
    }
}

/// Which connections, and in what order.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectionQuery {
    /// Rows: 100 unless asked for more, 1000 at most.
    limit: Option<usize>,
    /// Rows that are passed over.
    #[serde(default)]
    offset: usize,
    /// `trouble` (slow ones first), `id`, `peer`, `connected`, `messages`, `bytes`, `rate`, `queue`, `drops`
    /// or `subscriptions`.
    #[serde(default)]
    #[param(inline)]
    sort: Sort,
    /// `publisher` or `subscriber`; both unless given. `upstream`: the links to other proxies.
    #[param(inline)]
    kind: Option<Kind>,
    /// A part of the address, of the name that was proved, or the number.
    #[serde(default)]
    filter: String,
}

/// By what they are sorted: the largest first, names from A to Z.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Sort {
    #[default]
    Trouble,
    Id,
    Peer,
    Connected,
    Messages,
    Bytes,
    Rate,
    Queue,
    Drops,
    Subscriptions,
}

impl Sort {
    fn apply(self, rows: &mut [Client]) {
        let part =
            |row: &Client, value: fn(&SubscriberPart) -> u64| row.row.subscriber.as_ref().map_or(0, value);
        let dropped = |row: &Client| part(row, |own| own.dropped.messages);
        let queued = |row: &Client| part(row, |own| own.queued.bytes);
        let subscriptions = |row: &Client| part(row, |own| own.subscriptions as u64);
        let rate = |row: &Client| row.messages_per_s.unwrap_or(0.0);
        rows.sort_by_key(|row| row.row.id);
        match self {
            Self::Id => {}
            Self::Trouble => rows.sort_by_key(|row| {
                let is_slow = row.row.subscriber.as_ref().is_some_and(|own| own.slow_s.is_some());
                (Reverse(is_slow), Reverse(dropped(row)), Reverse(queued(row)), Reverse(row.row.messages))
            }),
            Self::Peer => rows.sort_by(|a, b| a.row.peer.cmp(&b.row.peer)),
            Self::Connected => rows.sort_by(|a, b| b.row.connected_s.total_cmp(&a.row.connected_s)),
            Self::Messages => rows.sort_by_key(|row| Reverse(row.row.messages)),
            Self::Bytes => rows.sort_by_key(|row| Reverse(row.row.bytes)),
            Self::Rate => rows.sort_by(|a, b| rate(b).total_cmp(&rate(a))),
            Self::Queue => rows.sort_by_key(|row| Reverse(queued(row))),
            Self::Drops => rows.sort_by_key(|row| Reverse(dropped(row))),
            Self::Subscriptions => rows.sort_by_key(|row| Reverse(subscriptions(row))),
        }
    }
}

/// Some connections of all.
#[allow(clippy::struct_field_names, reason = "it is the name in JSON")]
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connections {
    /// Connections there are, and those that fit.
    total: usize,
    matching: usize,
    offset: usize,
    limit: usize,
    connections: Vec<Client>,
}

/// Publishers and subscribers.
#[utoipa::path(
    get, path = "/api/v1/connections", params(ConnectionQuery),
    responses((status = 200, body = Connections), (status = 400, body = Problem))
)]
pub(super) async fn connections(
    Shared(state): Shared<Arc<State>>,
    Query(query): Query<ConnectionQuery>,
) -> Answer<Connections> {
    let limit = ROWS.of(query.limit)?;
    let proxy = state.monitor()?;
    let found = state.looks.found();
    let publishers = proxy.publishers().into_iter().map(Row::from);
    let rows = publishers.chain(proxy.subscribers().into_iter().map(Row::from));
    let is_link = query.kind == Some(Kind::Upstream);
    let links = is_link.then(|| proxy.upstreams()).into_iter().flatten();
    let rows = rows.chain(links.map(Row::from));
    let wanted = query.filter.trim().to_lowercase();
    let fits = |row: &Row| {
        let has = |text: &str| text.to_lowercase().contains(&wanted);
        query.kind.is_none_or(|kind| kind == row.kind)
            && (wanted.is_empty()
                || has(&row.peer)
                || row.principal.as_deref().is_some_and(has)
                || row.id.to_string() == wanted)
    };
    let mut total = 0;
    let rows = rows.inspect(|_| total += 1).filter(fits);
    let mut rows: Vec<Client> = rows
        .map(|row| match &found {
            Some(found) => found.client(row),
            None => client(row, None),
        })
        .collect();
    let matching = rows.len();
    query.sort.apply(&mut rows);
    let connections = rows.into_iter().skip(query.offset).take(limit).collect();
    Ok(Json(Connections { total, matching, offset: query.offset, limit, connections }))
}

/// A connection that was ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ended {
    id: u32,
    peer: String,
    /// `publisher` or `subscriber`.
    side: &'static str,
}

/// Ends the connection of a publisher or subscriber. It may connect again.
#[utoipa::path(
    post, path = "/api/v1/connections/{id}/end", params(("id" = u32, Path, description = "Its number")),
    responses((status = 200, body = Ended), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn end(
    Shared(state): Shared<Arc<State>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Answer<Ended> {
    let proxy = state.monitor()?;
    let ending = id.parse().ok().and_then(|id| proxy.end_connection(id, &operator.by));
    let Some(Ending { id, peer, side }) = ending else {
        let what = "no publisher or subscriber has this number any more: it has left";
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown", what));
    };
    Ok(Json(Ended { id, peer, side: side.peer() }))
}

/// Which topics.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicQuery {
    /// Rows: 100 unless asked for more, 1000 at most.
    limit: Option<usize>,
    /// A part of the topic.
    #[serde(default)]
    filter: String,
}

/// Some topics of all.
#[allow(clippy::struct_field_names, reason = "it is the name in JSON")]
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Topics {
    /// Topics that were seen, and those that fit.
    total: usize,
    matching: usize,
    limit: usize,
    /// For how long topics have been watched, seconds. It begins when somebody looks.
    watched_s: f64,
    /// Messages of topics for which there was no room.
    other_messages: u64,
    /// Those with the highest rates first.
    topics: Vec<TopicRate>,
}

/// What flows now, by topic, from samples. The first question begins to count; rates are there from the
/// second second on.
#[utoipa::path(
    get, path = "/api/v1/topics", params(TopicQuery),
    responses((status = 200, body = Topics), (status = 400, body = Problem))
)]
pub(super) async fn topics(
    Shared(state): Shared<Arc<State>>,
    Query(query): Query<TopicQuery>,
) -> Answer<Topics> {
    let limit = ROWS.of(query.limit)?;
    state.monitor()?;
    let Some(found) = state.looks.found() else {
        return Ok(Json(Topics {
            total: 0,
            matching: 0,
            limit,
            watched_s: 0.0,
            other_messages: 0,
            topics: Vec::new(),
        }));
    };
    let wanted = query.filter.trim();
    let mut matching = 0;
    let mut topics = Vec::new();
    for topic in &found.topics {
        if wanted.is_empty() || text(&topic.topic).contains(wanted) {
            matching += 1;
            if topics.len() < limit {
                topics.push(topic_rate(topic));
            }
        }
    }
    Ok(Json(Topics {
        total: found.topics.len(),
        matching,
        limit,
        watched_s: found.watched.as_secs_f64(),
        other_messages: found.others.messages,
        topics,
    }))
}
