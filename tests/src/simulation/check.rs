//! The invariants that must hold after every simulation, whatever happened in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::net::{Id, Record, Records, Seen};
use super::{CallResult, Outcome, Received, Sent};

macro_rules! ensure {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(format!($($what)*));
        }
    };
}

/// Checks all invariants. Returns a description of the first one that does not hold.
pub(super) fn check(outcome: &Outcome, books: &Records) -> Result<(), String> {
    whole(books)?;
    publishers_write_what_they_accepted(outcome, books)?;
    for (number, received) in outcome.received.iter().enumerate() {
        unaltered(number, received, outcome)?;
        what_comes_out_is_received(number, outcome, books)?;
        order(number, outcome, books)?;
        for record in connections(books, outcome.publishers + number) {
            what_comes_in_goes_out(number, record, outcome, books)?;
        }
    }
    Ok(())
}

fn connections(books: &Records, client: usize) -> impl Iterator<Item = &Record> {
    books.records.iter().filter(move |record| record.client == client)
}

fn ids(seen: &[Seen]) -> impl Iterator<Item = Id> {
    seen.iter().filter_map(|seen| seen.id)
}

/// Checks that the network carries only complete messages of the simulation, even where a connection ends
/// inside a message.
fn whole(books: &Records) -> Result<(), String> {
    for (number, record) in books.records.iter().enumerate() {
        let foreign = record.up.taken.iter().chain(&record.down.taken).any(|seen| seen.id.is_none());
        ensure!(!foreign, "connection {number} carried something that nobody sent");
    }
    Ok(())
}

/// Checks what publishers write. Every accepted message is written completely, once, and in the order of the
/// calls, counted over all connections together. Otherwise it was dropped because of its size, and the
/// publisher reported this. Of the messages whose calls were cancelled, some are written or dropped. Refused
/// messages are never written.
fn publishers_write_what_they_accepted(outcome: &Outcome, books: &Records) -> Result<(), String> {
    // A publisher can't know that a message is too large if it is within the limits of all switches.
    let smallest = outcome.limits.iter().copied().min().unwrap_or_default();
    for (publisher, sent) in outcome.sent.iter().enumerate() {
        let written: Vec<Id> =
            connections(books, publisher).flat_map(|record| ids(&record.up.taken)).collect();
        let may_be_written = |id: &Id| {
            usize::from(id.0) == publisher
                && sent
                    .get(id.1 as usize)
                    .is_some_and(|sent| matches!(sent.call_result, CallResult::Accepted | CallResult::Open))
        };
        ensure!(
            written.iter().all(may_be_written) && written.is_sorted_by(|one, next| one.1 < next.1),
            "publisher {publisher} wrote {written:?}, and should have written, in order, of {sent:?}"
        );
        let written: BTreeSet<usize> = written.iter().map(|id| id.1 as usize).collect();
        let missing: Vec<&Sent> = sent
            .iter()
            .enumerate()
            .filter(|(number, sent)| {
                matches!(sent.call_result, CallResult::Accepted | CallResult::Open)
                    && !written.contains(number)
            })
            .map(|(_, sent)| sent)
            .collect();
        let dropped = &outcome.dropped[publisher];
        ensure!(
            are_told(&missing, dropped),
            "publisher {publisher} did not write {missing:?}, and told that it dropped {dropped:?}"
        );
        if outcome.foreign {
            // A publisher drops a message for this reason only after two connections have ended in the middle
            // of it.
            let broken = connections(books, publisher).filter(|record| !record.up.ended_well).count();
            ensure!(
                dropped.is_empty() || broken >= 2,
                "publisher {publisher} dropped {dropped:?} after {broken} broken connections"
            );
        } else {
            let fits = dropped.iter().find(|(_, size)| *size <= smallest);
            ensure!(
                fits.is_none(),
                "publisher {publisher} dropped {fits:?}; the smallest limit was {smallest}"
            );
        }
        let refused = || sent.iter().filter(|sent| sent.call_result == CallResult::TooLarge);
        let fits = refused().find(|sent| sent.size <= smallest);
        ensure!(fits.is_none(), "publisher {publisher} refused {fits:?}; the smallest limit was {smallest}");
        ensure!(
            !outcome.foreign || refused().next().is_none(),
            "publisher {publisher} refused something as too large without having been told a limit"
        );
    }
    Ok(())
}

/// Returns whether `dropped`, which a publisher has reported, are the `missing` messages in their order. A
/// message whose call was cancelled may be absent from the report.
fn are_told(missing: &[&Sent], dropped: &[(Bytes, usize)]) -> bool {
    // The set of possible counts: how many dropped messages correspond to the missing ones that were compared
    // so far. Messages with equal topic and size allow several counts.
    let mut counts = BTreeSet::from([0]);
    for sent in missing {
        let is_next = |count: &&usize| {
            dropped.get(**count).is_some_and(|(topic, size)| topic == sent.topic && *size == sent.size)
        };
        let with_it: BTreeSet<usize> = counts.iter().filter(is_next).map(|count| count + 1).collect();
        match sent.call_result {
            CallResult::Open => counts.extend(with_it),
            _ => counts = with_it,
        }
    }
    counts.contains(&dropped.len())
}

fn unaltered(number: usize, received: &[Received], outcome: &Outcome) -> Result<(), String> {
    for received in received {
        let sent = outcome.sent[usize::from(received.id.0)].get(received.id.1 as usize);
        ensure!(
            sent.is_some_and(|sent| (sent.topic, sent.len) == (received.topic, received.len)),
            "subscriber {number} got {received:?}; it was sent as {sent:?}"
        );
    }
    Ok(())
}

/// Checks that a subscriber receives everything that came out of its line, in that order.
fn what_comes_out_is_received(number: usize, outcome: &Outcome, books: &Records) -> Result<(), String> {
    let came: Vec<Id> =
        connections(books, outcome.publishers + number).flat_map(|record| ids(record.down.out())).collect();
    let received: Vec<Id> = outcome.received[number].iter().map(|received| received.id).collect();
    ensure!(came == received, "for subscriber {number} came {came:?}, and it received {received:?}");
    Ok(())
}

/// Checks that nothing is received twice, and that messages of one publisher are received in the order in
/// which they arrived at the switch. This is the order of publication, unless the network delivers bytes of
/// an old connection after those of a new one.
fn order(number: usize, outcome: &Outcome, books: &Records) -> Result<(), String> {
    let arrivals: BTreeMap<Id, (u64, usize)> = books
        .records
        .iter()
        .enumerate()
        .filter(|(_, record)| record.client < outcome.publishers)
        .flat_map(|(over, record)| {
            record.up.out().iter().filter_map(move |seen| Some((seen.id?, (seen.order, over))))
        })
        .collect();
    let mut seen = BTreeSet::new();
    let mut latest: BTreeMap<u16, (u64, usize)> = BTreeMap::new();
    let mut latest_over: BTreeMap<usize, u64> = BTreeMap::new();
    for Received { id, .. } in &outcome.received[number] {
        ensure!(seen.insert(id), "subscriber {number} received {id:?} twice");
        let Some(&(order, over)) = arrivals.get(id) else {
            return Err(format!("subscriber {number} received {id:?}, which never came to the switch"));
        };
        let before = latest_over.insert(over, order).unwrap_or_default();
        ensure!(before < order, "subscriber {number} received {id:?} after a later one of connection {over}");
        let (before, over_before) = latest.get(&id.0).copied().unwrap_or_default();
        if order > before {
            latest.insert(id.0, (order, over));
            continue;
        }
        let (old, new) = (&books.records[over], &books.records[over_before]);
        let side_by_side =
            old.generation == new.generation && new.alone_from.is_none_or(|alone| before < alone);
        ensure!(
            side_by_side,
            "subscriber {number} received {id:?} of connection {over} after a later one of connection {over_before}"
        );
    }
    Ok(())
}

/// Checks that what arrived at the switch over a publisher's connection goes to each subscriber without a gap
/// from the time of its subscription. It also goes there up to the end, if neither the switch nor the
/// subscriber's connection was ended by force.
fn what_comes_in_goes_out(
    number: usize,
    to: &Record,
    outcome: &Outcome,
    books: &Records,
) -> Result<(), String> {
    let Some(generation) = to.generation else { return Ok(()) };
    let prefix = outcome.wanted[number];
    let sent = |id: &Id| &outcome.sent[usize::from(id.0)][id.1 as usize];
    let wants = |id: &Id| sent(id).topic.starts_with(prefix) && sent(id).size <= outcome.takes[number];
    // The switch ends a connection on which a message is too large, and does not see what follows it.
    let is_taken = |id: &Id| sent(id).size <= outcome.limits[generation];
    let written: BTreeSet<Id> = ids(&to.down.taken).filter(wants).collect();
    let subscribed =
        to.down.taken.iter().find(|seen| seen.id.as_ref().is_some_and(wants)).map(|seen| seen.at);
    let complete = to.down.ended_well && outcome.ended[generation].orderly;
    for from in books
        .records
        .iter()
        .filter(|from| from.client < outcome.publishers && from.generation == Some(generation))
    {
        let came: Vec<(Id, Duration)> = from
            .up
            .out()
            .iter()
            .filter_map(|seen| seen.id.map(|id| (id, seen.at)))
            .take_while(|(id, _)| is_taken(id))
            .filter(|(id, _)| wants(id))
            .collect();
        let first = came.iter().position(|(id, _)| written.contains(id));
        let last = came.iter().rposition(|(id, _)| written.contains(id));
        if let (Some(first), Some(last)) = (first, last) {
            let missing = came[first..=last].iter().find(|(id, _)| !written.contains(id));
            ensure!(missing.is_none(), "switch {generation} left out {missing:?} for subscriber {number}");
        }
        if !complete {
            continue;
        }
        let missing =
            came.iter().find(|(id, at)| subscribed.is_some_and(|since| *at > since) && !written.contains(id));
        ensure!(
            missing.is_none(),
            "switch {generation} did not deliver {missing:?} to subscriber {number}, subscribed since {subscribed:?} at the latest"
        );
    }
    Ok(())
}
