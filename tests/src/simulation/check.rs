//! What has to hold after a simulation, whatever happened in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::net::{Books, Id, Record, Seen};
use super::{Outcome, Received, Told};

macro_rules! ensure {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(format!($($what)*));
        }
    };
}

/// Says what does not hold.
pub(super) fn check(outcome: &Outcome, books: &Books) -> Result<(), String> {
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

fn connections(books: &Books, client: usize) -> impl Iterator<Item = &Record> {
    books.records.iter().filter(move |record| record.client == client)
}

fn ids(seen: &[Seen]) -> impl Iterator<Item = Id> {
    seen.iter().filter_map(|seen| seen.id)
}

/// What goes over the network is whole messages of ours, even where a connection ends inside of one.
fn whole(books: &Books) -> Result<(), String> {
    for (number, record) in books.records.iter().enumerate() {
        let foreign = record.up.taken.iter().chain(&record.down.taken).any(|seen| seen.id.is_none());
        ensure!(!foreign, "connection {number} carried something that nobody sent");
    }
    Ok(())
}

/// Every message that was accepted is written whole once, in the order of the calls, over all connections
/// together; of those that nobody waited for, some; of those that were refused, none.
fn publishers_write_what_they_accepted(outcome: &Outcome, books: &Books) -> Result<(), String> {
    for (publisher, sent) in outcome.sent.iter().enumerate() {
        let written: Vec<Id> =
            connections(books, publisher).flat_map(|record| ids(&record.up.taken)).collect();
        let expected = sent.iter().enumerate().filter(|(number, sent)| match sent.told {
            Told::Accepted => true,
            Told::Refused => false,
            Told::Open => written.contains(&(publisher as u16, *number as u32)),
        });
        let expected: Vec<Id> = expected.map(|(number, _)| (publisher as u16, number as u32)).collect();
        ensure!(
            written == expected,
            "publisher {publisher} wrote {written:?}, and should have written {expected:?}"
        );
    }
    Ok(())
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

/// A subscriber receives what came out of its line, all of it, in that order.
fn what_comes_out_is_received(number: usize, outcome: &Outcome, books: &Books) -> Result<(), String> {
    let came: Vec<Id> =
        connections(books, outcome.publishers + number).flat_map(|record| ids(record.down.out())).collect();
    let received: Vec<Id> = outcome.received[number].iter().map(|received| received.id).collect();
    ensure!(came == received, "for subscriber {number} came {came:?}, and it received {received:?}");
    Ok(())
}

/// Nothing comes twice; and what one publisher sent comes in the order in which it came to the switch. That is the order in which
/// it was published, unless the network gives out an old connection's bytes after a new one's.
fn order(number: usize, outcome: &Outcome, books: &Books) -> Result<(), String> {
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

/// What came into the switch over a connection of a publisher goes to each subscriber without a gap, from the time when it has
/// subscribed; and up to the end, if neither the switch nor the connection of the subscriber met with violence.
fn what_comes_in_goes_out(
    number: usize,
    to: &Record,
    outcome: &Outcome,
    books: &Books,
) -> Result<(), String> {
    let Some(generation) = to.generation else { return Ok(()) };
    let prefix = outcome.wanted[number];
    let wants = |id: &Id| outcome.sent[usize::from(id.0)][id.1 as usize].topic.starts_with(prefix);
    let written: BTreeSet<Id> = ids(&to.down.taken).filter(wants).collect();
    let subscribed =
        to.down.taken.iter().find(|seen| seen.id.as_ref().is_some_and(wants)).map(|seen| seen.at);
    let complete = to.down.ended_well && outcome.ended[generation].orderly;
    for from in books
        .records
        .iter()
        .filter(|from| from.client < outcome.publishers && from.generation == Some(generation))
    {
        let came: Vec<(Id, Duration)> =
            from.up.out().iter().filter_map(|seen| seen.id.filter(wants).map(|id| (id, seen.at))).collect();
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
