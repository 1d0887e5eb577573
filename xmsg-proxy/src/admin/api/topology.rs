//! Who publishes what to whom: the busiest of each, or those that have to do with what somebody looks for.
//!
//! It is made of what is known anyway: connections, topics that were sampled, subscriptions, and the
//! definitions of outgoing connections and channels. What one answer takes is bounded by
//! [`TOPICS_LOOKED_AT`] and [`LINKS_MAX`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State as Shared};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::lists::Limit;
use super::{Answer, Problem};
use crate::admin::State;
use crate::admin::look::client;
use crate::stats::{Row, text};
use crate::switch::PUBLISHERS_MAX;

/// How many nodes each column has.
const NODES: Limit = Limit { default: 20, max: 100 };
/// How many topics one answer looks at: those with the highest rates.
const TOPICS_LOOKED_AT: usize = 1000;
/// How many pairs of topic and subscriber one answer looks at.
const LINKS_MAX: usize = 100_000;

/// Which part of it.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct TopologyQuery {
    /// Nodes of each column: 20 unless asked for more, 100 at most.
    limit: Option<usize>,
    /// A part of a topic, of an address or of a name: only what has to do with it.
    #[serde(default)]
    focus: String,
}

/// What a node is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(
    not(feature = "connect"),
    expect(dead_code, reason = "without that feature, there are clients only")
)]
pub(super) enum NodeKind {
    Publisher,
    Channel,
    Subscriber,
    Outgoing,
}

/// Where messages come from, or go to.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Node {
    /// Links name it by this.
    id: String,
    kind: NodeKind,
    /// The address of a publisher or subscriber, the name of a channel or outgoing connection.
    label: String,
    /// Who a client has proved to be; how a channel or an outgoing connection is.
    note: Option<String>,
    /// Missing: it is not known.
    messages_per_s: Option<f32>,
}

impl Node {
    fn has(&self, wanted: &str) -> bool {
        let note = self.note.as_ref().map(|note| note.to_lowercase());
        self.label.to_lowercase().contains(wanted) || note.is_some_and(|note| note.contains(wanted))
    }

    fn rate(&self) -> f32 {
        self.messages_per_s.unwrap_or(0.0)
    }
}

/// The busiest nodes of one column, and how many there are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Column {
    total: usize,
    /// Those that have to do with what is looked for.
    matching: usize,
    shown: Vec<Node>,
}

/// A topic, and its links to nodes that are shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopicNode {
    topic: String,
    messages_per_s: f32,
    /// Nodes that are shown.
    from: Vec<String>,
    to: Vec<String>,
    /// All there are. Of the publishers of a topic, the last eight are known.
    sources: usize,
    has_more_sources: bool,
    targets: usize,
}

/// The topics with the highest rates, and how many there are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopicColumn {
    total: usize,
    matching: usize,
    shown: Vec<TopicNode>,
}

/// Who publishes what to whom.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Topology {
    limit: usize,
    sources: Column,
    topics: TopicColumn,
    targets: Column,
    /// Whether only a part of the topics and links was looked at, because there are too many.
    is_cut: bool,
}

/// All nodes at the ends of links, whether they are shown or not.
#[derive(Default)]
struct Endpoints {
    sources: Vec<Node>,
    targets: Vec<Node>,
    /// Topics that channels publish under, and what outgoing connections subscribe to, with the numbers of
    /// their nodes.
    published: Vec<(String, usize)>,
    subscribed: Vec<(String, usize)>,
}

/// The nodes that a topic is linked to, by their numbers.
#[derive(Clone, Default)]
struct TopicLinks {
    sources: BTreeSet<usize>,
    targets: BTreeSet<usize>,
}

#[cfg(feature = "connect")]
impl Endpoints {
    fn add_connect(&mut self, state: &State) {
        use xmsg_connect::definition::Target;

        let Some(connect) = &state.connect else { return };
        let report = connect.report();
        let node = |kind, letter: char, name: &str, state: String| Node {
            id: format!("{letter}:{name}"),
            kind,
            label: name.to_owned(),
            note: Some(state),
            messages_per_s: None,
        };
        for channel in report.channels {
            if let Target::Topic(topic) = &channel.definition.target {
                self.published.push((topic.to_string(), self.sources.len()));
            }
            let state = channel.link.state.to_string();
            self.sources.push(node(NodeKind::Channel, 'c', &channel.definition.name, state));
        }
        for outgoing in report.outgoing {
            let prefixes = outgoing.definition.subscribe.iter().cloned();
            self.subscribed.extend(prefixes.map(|prefix| (prefix, self.targets.len())));
            let state = outgoing.link.state.to_string();
            self.targets.push(node(NodeKind::Outgoing, 'o', &outgoing.definition.name, state));
        }
    }
}

/// Returns the busiest of these nodes that are wanted.
fn column(nodes: &[Node], wanted: Option<&BTreeSet<usize>>, limit: usize) -> Column {
    let mut chosen: Vec<usize> = match wanted {
        Some(wanted) => wanted.iter().copied().collect(),
        None => (0..nodes.len()).collect(),
    };
    let matching = chosen.len();
    chosen.sort_by(|a, b| nodes[*b].rate().total_cmp(&nodes[*a].rate()).then(a.cmp(b)));
    let shown = chosen.into_iter().take(limit).map(|at| nodes[at].clone()).collect();
    Column { total: nodes.len(), matching, shown }
}

/// Who publishes what to whom: the busiest of each, or, with `focus`, what has to do with that.
#[utoipa::path(
    get, path = "/api/v1/topology", params(TopologyQuery),
    responses((status = 200, body = Topology), (status = 400, body = Problem))
)]
pub(super) async fn topology(
    Shared(state): Shared<Arc<State>>,
    Query(query): Query<TopologyQuery>,
) -> Answer<Topology> {
    let limit = NODES.of(query.limit)?;
    let proxy = state.monitor()?;
    let found = state.looks.found();
    let mut ends = Endpoints::default();
    #[cfg(feature = "connect")]
    ends.add_connect(&state);
    let node = |row: Row, kind| {
        let id = row.id;
        let one = match &found {
            Some(found) => found.client(row),
            None => client(row, None),
        };
        let (label, note) = (one.row.peer, one.row.principal);
        Node { id: id.to_string(), kind, label, note, messages_per_s: one.messages_per_s }
    };
    let (mut publishers, mut subscribers) = (HashMap::new(), HashMap::new());
    for stats in proxy.publishers() {
        publishers.insert(stats.id, ends.sources.len());
        ends.sources.push(node(Row::from(stats), NodeKind::Publisher));
    }
    for stats in proxy.subscribers() {
        subscribers.insert(stats.id, ends.targets.len());
        ends.targets.push(node(Row::from(stats), NodeKind::Subscriber));
    }

    let all = found.as_ref().map_or(&[][..], |found| &found.topics);
    let looked_at = &all[..all.len().min(TOPICS_LOOKED_AT)];
    let names: Vec<&[u8]> = looked_at.iter().map(|found| &*found.topic).collect();
    let (by, to) = proxy.links(&names, LINKS_MAX);
    let is_cut = all.len() > looked_at.len() || to.len() >= LINKS_MAX;
    let mut links = vec![TopicLinks::default(); names.len()];
    for (at, by) in by.iter().enumerate() {
        links[at].sources.extend(by.iter().filter_map(|id| publishers.get(id)));
        let is_own = |topic: &str| topic.as_bytes() == names[at];
        links[at]
            .sources
            .extend(ends.published.iter().filter(|(topic, _)| is_own(topic)).map(|(_, node)| node));
        let fits = |prefix: &str| names[at].starts_with(prefix.as_bytes());
        links[at]
            .targets
            .extend(ends.subscribed.iter().filter(|(prefix, _)| fits(prefix)).map(|(_, node)| node));
    }
    for (at, id) in to {
        links[at].targets.extend(subscribers.get(&id));
    }

    let wanted = query.focus.trim().to_lowercase();
    let fit = |nodes: &[Node]| -> BTreeSet<usize> {
        nodes.iter().enumerate().filter(|(_, node)| node.has(&wanted)).map(|(at, _)| at).collect()
    };
    let mut matching: Vec<usize> = (0..names.len()).collect();
    let mut chosen = None;
    if !wanted.is_empty() {
        let (mut sources, mut targets) = (fit(&ends.sources), fit(&ends.targets));
        matching.retain(|at| {
            let TopicLinks { sources: from, targets: to } = &links[*at];
            text(names[*at]).to_lowercase().contains(&wanted)
                || !from.is_disjoint(&sources)
                || !to.is_disjoint(&targets)
        });
        let shown = matching.iter().take(limit);
        for TopicLinks { sources: from, targets: to } in shown.map(|at| &links[*at]) {
            sources.extend(from);
            targets.extend(to);
        }
        chosen = Some((sources, targets));
    }
    let sources = column(&ends.sources, chosen.as_ref().map(|(sources, _)| sources), limit);
    let targets = column(&ends.targets, chosen.as_ref().map(|(_, targets)| targets), limit);
    let ids =
        |column: &Column| -> HashSet<String> { column.shown.iter().map(|node| node.id.clone()).collect() };
    let (shown_sources, shown_targets) = (ids(&sources), ids(&targets));
    let names_of = |at: &BTreeSet<usize>, nodes: &[Node], shown: &HashSet<String>| {
        let ids = at.iter().map(|at| &nodes[*at].id);
        ids.filter(|id| shown.contains(*id)).cloned().collect::<Vec<_>>()
    };
    let topic = |at: usize| {
        let TopicLinks { sources: from, targets: to } = &links[at];
        TopicNode {
            topic: text(names[at]),
            messages_per_s: looked_at[at].rates.messages_per_s,
            from: names_of(from, &ends.sources, &shown_sources),
            to: names_of(to, &ends.targets, &shown_targets),
            sources: from.len(),
            has_more_sources: by[at].len() >= PUBLISHERS_MAX,
            targets: to.len(),
        }
    };
    // Without something to look for, those beyond the ones that were looked at fit, too.
    let fitting = if wanted.is_empty() { all.len() } else { matching.len() };
    let shown = matching.into_iter().take(limit).map(topic).collect();
    let topics = TopicColumn { total: all.len(), matching: fitting, shown };
    Ok(Json(Topology { limit, sources, topics, targets, is_cut }))
}
