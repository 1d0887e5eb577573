//! The report of a registry about its entries.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::shared::Entries;
use crate::channel::Channel;
use crate::definition::{
    ChannelDefinition, ConnectionDefinition, DurableDefinition, FederationDefinition, OutgoingDefinition,
};
use crate::durable::{CounterValues, DurableServer};
use crate::federation::Federation;
use crate::outgoing::Outgoing;
use crate::status::{LinkReport, LinkState, SpoolReport};

/// What is known of an outgoing connection.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OutgoingReport {
    /// Its definition.
    pub definition: OutgoingDefinition,
    /// Its link.
    pub link: LinkReport,
    /// Its spool.
    pub spool: SpoolReport,
    /// How long the oldest message in the spool has waited; none if nothing waits.
    #[serde(rename = "oldest_s", serialize_with = "in_seconds")]
    pub oldest: Option<Duration>,
}

#[allow(clippy::ref_option, reason = "serde gives the field as it is")]
fn in_seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

/// What is known of a channel.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ChannelReport {
    /// Its definition.
    pub definition: ChannelDefinition,
    /// Its link.
    pub link: LinkReport,
}

/// What is known of a federation.
///
/// The outgoing connection and the channel that it works by stand among the others, too, under
/// [`outgoing_name`](FederationDefinition::outgoing_name) and
/// [`channel_name`](FederationDefinition::channel_name).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FederationReport {
    /// Its definition.
    pub definition: FederationDefinition,
    /// The link that brings in what others have sent; while that is at work, the one that takes messages out.
    pub link: LinkReport,
    /// The spool of what leaves here.
    pub spool: SpoolReport,
}

/// What is known of a durable subscription.
///
/// The outgoing connection to its queue stands among the others, too, under
/// [`outgoing_name`](DurableDefinition::outgoing_name).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DurableReport {
    /// Its definition.
    pub definition: DurableDefinition,
    /// The link that takes messages to the queue.
    pub link: LinkReport,
    /// The spool on the way there.
    pub spool: SpoolReport,
    /// Sessions of subscribers.
    pub subscribers: u64,
    /// Messages that were given to subscribers since it was started; each time counts.
    pub given_out: u64,
    /// Messages that subscribers have acknowledged since it was started.
    pub acknowledged: u64,
    /// Sessions that have ended because the broker was lost or did not answer; their messages went back.
    pub sessions_lost: u64,
    /// Messages that went to the dead letters: they can't be messages of xMsg, or no answer has room for
    /// them.
    pub rejected: u64,
    /// Sessions that have ended to make room for those of other subscribers, when all places were taken.
    pub gave_way: u64,
    /// Requests that were not answered, because their answers should go to a topic that is not for answers.
    pub ignored: u64,
}

/// Everything that is declared, and how it is.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Connections to brokers.
    pub connections: Vec<ConnectionDefinition>,
    /// Ways out.
    pub outgoing: Vec<OutgoingReport>,
    /// Ways in.
    pub channels: Vec<ChannelReport>,
    /// Federations: one or none.
    pub federations: Vec<FederationReport>,
    /// Durable subscriptions.
    pub durables: Vec<DurableReport>,
    /// Folders in that of the spools that belong to no outgoing connection: messages may be in them.
    pub orphans: Vec<String>,
}

pub(super) fn report_outgoing(outgoing: &Outgoing) -> OutgoingReport {
    let shared = &outgoing.shared;
    let spool = SpoolReport::of(&shared.spool.status(), shared.spool.failure().as_ref());
    OutgoingReport {
        definition: shared.plan().definition.clone(),
        link: shared.status.report(),
        oldest: spool.oldest.map(|accepted| accepted.elapsed().unwrap_or_default()),
        spool,
    }
}

pub(super) fn report_channel(channel: &Channel) -> ChannelReport {
    ChannelReport { definition: channel.plan().definition.clone(), link: channel.status.report() }
}

pub(super) fn report_federation(federation: &Federation, entries: &Entries) -> Option<FederationReport> {
    let outgoing = report_outgoing(entries.outgoing.get(&federation.definition.outgoing_name())?);
    let channel = report_channel(entries.channels.get(&federation.definition.channel_name())?);
    let is_in = channel.link.state != LinkState::Connected;
    Some(FederationReport {
        definition: federation.definition.clone(),
        link: if is_in { channel.link } else { outgoing.link },
        spool: outgoing.spool,
    })
}

pub(super) fn report_durable(server: &DurableServer, entries: &Entries) -> Option<DurableReport> {
    let definition = server.plan.definition.clone();
    let outgoing = report_outgoing(entries.outgoing.get(&definition.outgoing_name())?);
    let CounterValues { subscribers, given_out, acknowledged, sessions_lost, rejected, gave_way, ignored } =
        server.counter_values();
    let OutgoingReport { link, spool, .. } = outgoing;
    Some(DurableReport {
        definition,
        link,
        spool,
        subscribers,
        given_out,
        acknowledged,
        sessions_lost,
        rejected,
        gave_way,
        ignored,
    })
}
