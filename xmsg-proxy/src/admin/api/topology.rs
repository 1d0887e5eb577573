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
use crate::admin::look::{Client, client};
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
    /// The numbers of nodes by those of connections.
    publishers: HashMap<u32, usize>,
    subscribers: HashMap<u32, usize>,
    /// Topics that channels publish under, and what outgoing connections subscribe to, with the numbers of
    /// their nodes.
    published: Vec<(String, usize)>,
    subscribed: Vec<(String, usize)>,
}

impl Endpoints {
    fn add_publisher(&mut self, id: u32, node: Node) {
        self.publishers.insert(id, self.sources.len());
        self.sources.push(node);
    }

    fn add_subscriber(&mut self, id: u32, node: Node) {
        self.subscribers.insert(id, self.targets.len());
        self.targets.push(node);
    }
}

#[cfg(feature = "connect")]
impl Endpoints {
    fn add_connect(&mut self, state: &State) {
        use xmsg_connect::definition::Target;

        let Some(connect) = &state.connect else { return };
        let report = connect.report();
        for channel in report.channels {
            let topic = match &channel.definition.target {
                Target::Topic(topic) => Some(topic.to_string()),
                _ => None,
            };
            self.add_channel(&channel.definition.name, topic, channel.link.state.to_string());
        }
        for outgoing in report.outgoing {
            let (name, state) = (&outgoing.definition.name, outgoing.link.state.to_string());
            self.add_outgoing(name, outgoing.definition.subscribe.iter().cloned(), state);
        }
    }

    /// Adds a channel. `topic` is the one that it publishes under, if it does not lead to an outgoing
    /// connection.
    fn add_channel(&mut self, name: &str, topic: Option<String>, state: String) {
        self.published.extend(topic.map(|topic| (topic, self.sources.len())));
        self.sources.push(Node::of_entry(NodeKind::Channel, 'c', name, state));
    }

    fn add_outgoing(&mut self, name: &str, prefixes: impl Iterator<Item = String>, state: String) {
        let at = self.targets.len();
        self.subscribed.extend(prefixes.map(|prefix| (prefix, at)));
        self.targets.push(Node::of_entry(NodeKind::Outgoing, 'o', name, state));
    }
}

#[cfg(feature = "connect")]
impl Node {
    fn of_entry(kind: NodeKind, letter: char, name: &str, state: String) -> Self {
        Self {
            id: format!("{letter}:{name}"),
            kind,
            label: name.to_owned(),
            note: Some(state),
            messages_per_s: None,
        }
    }
}

/// The topics that are looked at, and what is known of each.
struct Topics<'a> {
    /// The topics with the highest rates, and their messages a second.
    names: Vec<&'a [u8]>,
    rates: Vec<f32>,
    /// The numbers of the connections that publish to each.
    by: Vec<Vec<u32>>,
    /// Pairs of a topic and a connection that subscribes to it.
    to: Vec<(usize, u32)>,
    /// How many topics there are, with those that are not looked at.
    total: usize,
    is_cut: bool,
}

/// The nodes that a topic is linked to, by their numbers.
#[derive(Clone, Default)]
struct TopicLinks {
    sources: BTreeSet<usize>,
    targets: BTreeSet<usize>,
}

/// Which nodes of a column are wanted, by their numbers.
#[derive(Default)]
struct Chosen {
    /// Those that were looked for.
    found: BTreeSet<usize>,
    /// Those that have to do with a topic that is shown.
    linked: BTreeSet<usize>,
}

/// Returns the busiest of these nodes that are wanted, after those that were looked for.
fn column(nodes: &[Node], chosen: Option<&Chosen>, limit: usize) -> Column {
    let mut wanted: Vec<usize> = match chosen {
        Some(Chosen { found, linked }) => found.union(linked).copied().collect(),
        None => (0..nodes.len()).collect(),
    };
    let matching = wanted.len();
    let is_found = |at: usize| chosen.is_some_and(|chosen| chosen.found.contains(&at));
    wanted.sort_by(|&a, &b| {
        let by_rate = nodes[b].rate().total_cmp(&nodes[a].rate());
        is_found(b).cmp(&is_found(a)).then(by_rate).then(a.cmp(&b))
    });
    let shown = wanted.into_iter().take(limit).map(|at| nodes[at].clone()).collect();
    Column { total: nodes.len(), matching, shown }
}

/// Returns the nodes that each topic is linked to.
fn topic_links(ends: &Endpoints, topics: &Topics<'_>) -> Vec<TopicLinks> {
    let mut links = vec![TopicLinks::default(); topics.names.len()];
    for ((name, by), link) in topics.names.iter().zip(&topics.by).zip(&mut links) {
        link.sources.extend(by.iter().filter_map(|id| ends.publishers.get(id)));
        let is_own = |topic: &str| topic.as_bytes() == *name;
        link.sources.extend(ends.published.iter().filter(|(topic, _)| is_own(topic)).map(|(_, node)| node));
        let fits = |prefix: &str| name.starts_with(prefix.as_bytes());
        link.targets.extend(ends.subscribed.iter().filter(|(prefix, _)| fits(prefix)).map(|(_, node)| node));
    }
    for (at, id) in &topics.to {
        links[*at].targets.extend(ends.subscribers.get(id));
    }
    links
}

/// Makes the answer: the busiest of each, or what has to do with `wanted`, which is in lower case.
fn answer(ends: &Endpoints, topics: &Topics<'_>, wanted: &str, limit: usize) -> Topology {
    let links = topic_links(ends, topics);
    let fit = |nodes: &[Node]| -> BTreeSet<usize> {
        nodes.iter().enumerate().filter(|(_, node)| node.has(wanted)).map(|(at, _)| at).collect()
    };
    let mut matching: Vec<usize> = (0..topics.names.len()).collect();
    let mut chosen = None;
    if !wanted.is_empty() {
        let mut sources = Chosen { found: fit(&ends.sources), ..Chosen::default() };
        let mut targets = Chosen { found: fit(&ends.targets), ..Chosen::default() };
        matching.retain(|at| {
            let TopicLinks { sources: from, targets: to } = &links[*at];
            text(topics.names[*at]).to_lowercase().contains(wanted)
                || !from.is_disjoint(&sources.found)
                || !to.is_disjoint(&targets.found)
        });
        for at in matching.iter().take(limit) {
            sources.linked.extend(&links[*at].sources);
            targets.linked.extend(&links[*at].targets);
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
            topic: text(topics.names[at]),
            messages_per_s: topics.rates[at],
            from: names_of(from, &ends.sources, &shown_sources),
            to: names_of(to, &ends.targets, &shown_targets),
            sources: from.len(),
            has_more_sources: topics.by[at].len() >= PUBLISHERS_MAX,
            targets: to.len(),
        }
    };
    // Without something to look for, those beyond the ones that were looked at fit, too.
    let fitting = if wanted.is_empty() { topics.total } else { matching.len() };
    let shown = matching.into_iter().take(limit).map(topic).collect();
    let column_of_topics = TopicColumn { total: topics.total, matching: fitting, shown };
    Topology { limit, sources, topics: column_of_topics, targets, is_cut: topics.is_cut }
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
        let one: Client = match &found {
            Some(found) => found.client(row),
            None => client(row, None),
        };
        let id = one.row.id;
        let (label, note) = (one.row.peer, one.row.principal);
        (id, Node { id: id.to_string(), kind, label, note, messages_per_s: one.messages_per_s })
    };
    for stats in proxy.publishers() {
        let (id, node) = node(Row::from(stats), NodeKind::Publisher);
        ends.add_publisher(id, node);
    }
    for stats in proxy.subscribers() {
        let (id, node) = node(Row::from(stats), NodeKind::Subscriber);
        ends.add_subscriber(id, node);
    }

    let all = found.as_ref().map_or(&[][..], |found| &found.topics);
    let looked_at = &all[..all.len().min(TOPICS_LOOKED_AT)];
    let names: Vec<&[u8]> = looked_at.iter().map(|found| &*found.topic).collect();
    let (by, to) = proxy.links(&names, LINKS_MAX);
    let rates = looked_at.iter().map(|found| found.rates.messages_per_s).collect();
    let is_cut = all.len() > looked_at.len() || to.len() >= LINKS_MAX;
    let topics = Topics { names, rates, by, to, total: all.len(), is_cut };
    Ok(Json(answer(&ends, &topics, &query.focus.trim().to_lowercase(), limit)))
}

#[cfg(all(test, feature = "connect"))]
mod tests {
    use super::*;

    /// How many there are of each.
    const MANY: usize = 1000;
    /// The number of the first subscriber.
    const SUBSCRIBERS: u32 = 10_000;

    /// Each topic has a publisher, a channel, a subscriber and an outgoing connection with its number. The
    /// first subscriber and the first outgoing connection have all topics.
    fn with_many(check: impl Fn(&Endpoints, &Topics<'_>)) {
        let mut ends = Endpoints::default();
        let names: Vec<String> = (0..MANY).map(|number| format!("line:{number:04}")).collect();
        for (number, name) in names.iter().enumerate() {
            ends.add_channel(&format!("in-{number:04}"), Some(name.clone()), "connected".to_owned());
            let prefix = if number == 0 { "line:" } else { name.as_str() };
            let prefixes = std::iter::once(prefix.to_owned());
            ends.add_outgoing(&format!("out-{number:04}"), prefixes, "connected".to_owned());
        }
        let rate = |number: usize| (MANY - number) as f32;
        let client = |id: u32, kind, number| Node {
            id: id.to_string(),
            kind,
            label: format!("10.0.0.9:{id}"),
            note: None,
            messages_per_s: Some(rate(number)),
        };
        let (mut by, mut to) = (Vec::new(), Vec::new());
        for number in 0..MANY {
            let (publisher, subscriber) = (number as u32, SUBSCRIBERS + number as u32);
            ends.add_publisher(publisher, client(publisher, NodeKind::Publisher, number));
            ends.add_subscriber(subscriber, client(subscriber, NodeKind::Subscriber, number));
            by.push(vec![publisher]);
            to.extend([(number, SUBSCRIBERS), (number, subscriber)]);
        }
        let topics = Topics {
            names: names.iter().map(String::as_bytes).collect(),
            rates: (0..MANY).map(rate).collect(),
            by,
            to,
            total: MANY,
            is_cut: false,
        };
        check(&ends, &topics);
    }

    fn labels(column: &Column) -> Vec<&str> {
        column.shown.iter().map(|node| &*node.label).collect()
    }

    #[test]
    fn of_a_thousand_of_each_the_busiest_are_shown_and_all_are_counted() {
        with_many(|ends, topics| {
            let Topology { sources, topics, targets, is_cut, .. } = answer(ends, topics, "", NODES.max);
            assert!(!is_cut);
            for column in [&sources, &targets] {
                let counts = (column.total, column.matching, column.shown.len());
                assert_eq!(counts, (2 * MANY, 2 * MANY, NODES.max));
            }
            assert_eq!((topics.total, topics.matching, topics.shown.len()), (MANY, MANY, NODES.max));
            assert_eq!((labels(&sources)[0], labels(&sources)[99]), ("10.0.0.9:0", "10.0.0.9:99"));
            // What is not shown is counted, and not named.
            let topic = &topics.shown[7];
            assert_eq!((&*topic.topic, topic.messages_per_s), ("line:0007", 993.0));
            assert_eq!(topic.from, ["7"]);
            assert_eq!(topic.to, ["10000", "10007"]);
            assert_eq!((topic.sources, topic.targets), (2, 4));
            // Each but the first has another subscriber beside it.
            assert_eq!(topics.shown[0].targets, 2);
        });
    }

    #[test]
    fn one_of_a_thousand_is_found_with_what_belongs_to_it() {
        with_many(|ends, topics| {
            for wanted in ["in-0512", "line:0512", "out-0512", "10.0.0.9:10512"] {
                let found = answer(ends, topics, wanted, 20);
                let [topic] = &found.topics.shown[..] else { panic!("{wanted}: {:?}", found.topics) };
                assert_eq!((found.topics.matching, &*topic.topic), (1, "line:0512"), "{wanted}");
                assert_eq!((found.sources.matching, found.targets.matching), (2, 4), "{wanted}");
                assert_eq!(topic.from, ["c:in-0512", "512"], "{wanted}");
                assert_eq!(topic.to, ["o:out-0000", "o:out-0512", "10000", "10512"], "{wanted}");
            }
            // Who has all topics is shown, though others with them are busier.
            let found = answer(ends, topics, "out-0000", 20);
            assert_eq!((found.topics.matching, found.topics.shown.len()), (MANY, 20));
            assert_eq!((found.sources.matching, found.sources.shown.len()), (40, 20));
            assert_eq!((found.targets.matching, found.targets.shown.len()), (40, 20));
            assert_eq!(labels(&found.targets)[0], "out-0000");
            assert!(found.topics.shown.iter().all(|topic| topic.to.contains(&"o:out-0000".to_owned())));
            let nothing = answer(ends, topics, "nobody at all", 20);
            let matching = [nothing.sources.matching, nothing.topics.matching, nothing.targets.matching];
            assert_eq!(matching, [0; 3]);
        });
    }
}
