//! The part of `/metrics` about outgoing connections and channels.

use std::fmt;

use xmsg_connect::{Counts, LinkState, Report};

use super::Connect;
use crate::admin::metrics::{BYTES, Families, SECONDS};

/// The counts of all outgoing connections and channels at one time.
#[derive(Debug)]
pub(in crate::admin) struct ConnectSnapshot(Report);

impl ConnectSnapshot {
    pub(in crate::admin) fn take(connect: &Connect) -> Self {
        Self(connect.registry.report())
    }

    pub(in crate::admin) fn encode(&self, out: &mut Families<'_>) -> Result<(), fmt::Error> {
        let Report { outgoing, channels, durables, .. } = &self.0;
        let name = |name: &str| ("name", name.to_owned());
        let of_outgoing = |counts: Counts| {
            [
                ("accepted", counts.accepted),
                ("delivered", counts.delivered),
                ("repeated", counts.repeated),
                ("returned", counts.returned),
                ("refused_by_peer", counts.refused_by_peer),
                ("dead", counts.dead),
                ("refused", counts.refused),
                ("lost_before", counts.lost_before),
                ("ignored", counts.ignored),
                ("passed_over", counts.passed_over),
                ("too_large_for_peer", counts.too_large_for_peer),
            ]
        };
        let help = "Messages of an outgoing connection, by what became of them.";
        let values = outgoing.iter().flat_map(|one| {
            of_outgoing(one.link.counts)
                .map(|(result, count)| ([name(&one.definition.name), ("result", result.to_owned())], count))
        });
        out.counters("xmsg_outgoing_messages", help, None, values)?;
        let help = "Connections of subscribers of a PUB that were ended, because others waited for them.";
        let values = outgoing.iter().map(|one| ([name(&one.definition.name)], one.link.counts.peers_ended));
        out.counters("xmsg_outgoing_peers_ended", help, None, values)?;
        let of_channel = |counts: Counts| {
            [
                ("accepted", counts.accepted),
                ("delivered", counts.delivered),
                ("repeated", counts.repeated),
                ("dead", counts.dead),
                ("refused", counts.refused),
                ("passed_over", counts.passed_over),
                ("duplicates", counts.duplicates),
            ]
        };
        let help = "Messages of a channel, by what became of them.";
        let values = channels.iter().flat_map(|one| {
            of_channel(one.link.counts)
                .map(|(result, count)| ([name(&one.definition.name), ("result", result.to_owned())], count))
        });
        out.counters("xmsg_channel_messages", help, None, values)?;

        let help = "Messages of a durable subscription, by what became of them.";
        let values = durables.iter().flat_map(|one| {
            [("given_out", one.given_out), ("acknowledged", one.acknowledged), ("rejected", one.rejected)]
                .map(|(result, count)| ([name(&one.definition.name), ("result", result.to_owned())], count))
        });
        out.counters("xmsg_durable_messages", help, None, values)?;
        let help = "Sessions of subscribers of a durable subscription.";
        let subscribers = durables.iter().map(|one| ([name(&one.definition.name)], one.subscribers));
        out.gauges("xmsg_durable_subscribers", help, None, subscribers)?;
        let help = "Sessions of a durable subscription that ended because the broker was lost or silent.";
        let lost = durables.iter().map(|one| ([name(&one.definition.name)], one.sessions_lost));
        out.counters("xmsg_durable_sessions_lost", help, None, lost)?;
        let help =
            "Sessions of a durable subscription that ended to make room for those of other subscribers.";
        let gave_way = durables.iter().map(|one| ([name(&one.definition.name)], one.gave_way));
        out.counters("xmsg_durable_sessions_gave_way", help, None, gave_way)?;
        let help =
            "Requests for a durable subscription whose answers should go to a topic that is not for answers.";
        let ignored = durables.iter().map(|one| ([name(&one.definition.name)], one.ignored));
        out.counters("xmsg_durable_requests_ignored", help, None, ignored)?;

        let is_connected = |state| u64::from(matches!(state, LinkState::Connected | LinkState::Blocked));
        let help = "1 while an outgoing connection is connected to its peer, otherwise 0.";
        let connected =
            outgoing.iter().map(|one| ([name(&one.definition.name)], is_connected(one.link.state)));
        out.gauges("xmsg_outgoing_connected", help, None, connected)?;
        let help = "1 while a channel is connected to its peer, otherwise 0.";
        let connected =
            channels.iter().map(|one| ([name(&one.definition.name)], is_connected(one.link.state)));
        out.gauges("xmsg_channel_connected", help, None, connected)?;
        let help = "Messages that are on their way to the peer, and not confirmed yet.";
        let in_flight = outgoing.iter().map(|one| ([name(&one.definition.name)], one.link.in_flight));
        out.gauges("xmsg_outgoing_in_flight", help, None, in_flight)?;

        let help = "Messages in the spool of an outgoing connection.";
        let entries = outgoing.iter().map(|one| ([name(&one.definition.name)], one.spool.entries));
        out.gauges("xmsg_spool_entries", help, None, entries)?;
        let help = "Bytes of the messages in the spool of an outgoing connection.";
        let bytes = outgoing.iter().map(|one| ([name(&one.definition.name)], one.spool.bytes));
        out.gauges("xmsg_spool", help, BYTES, bytes)?;
        let help = "How long the oldest message has been in the spool of an outgoing connection.";
        let oldest = outgoing.iter().filter_map(|one| {
            let seconds = one.oldest.map(|time| time.as_secs())?;
            Some(([name(&one.definition.name)], seconds))
        });
        out.gauges("xmsg_spool_oldest", help, SECONDS, oldest)?;
        let help = "Messages of an outgoing connection that could not be delivered, and are kept.";
        let dead = outgoing.iter().map(|one| ([name(&one.definition.name)], one.spool.dead_entries));
        out.gauges("xmsg_dead_letters", help, None, dead)
    }
}
