//! Random operations on a spool and on a simple model of it have the same results.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::tempdir;
use xmsg_connect::spool::{ENTRY_OVERHEAD_BYTES, SpoolErrorKind};

use crate::common::{all, open};

#[derive(Clone, Debug)]
enum Operation {
    Append(usize),
    /// The place among the entries, which may be beyond the last one. So below.
    Remove(usize),
    DeadLetter(usize),
    Revive(usize),
    Discard(usize),
    DiscardAll,
    Read(usize, usize),
    Purge,
    Reopen,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        12 => prop_oneof![0..200_usize, 1000..20_000_usize].prop_map(Operation::Append),
        6 => (0..12_usize).prop_map(Operation::Remove),
        3 => (0..12_usize).prop_map(Operation::DeadLetter),
        2 => (0..4_usize).prop_map(Operation::Revive),
        2 => (0..4_usize).prop_map(Operation::Discard),
        1 => Just(Operation::DiscardAll),
        4 => (0..12_usize, 1..5_usize).prop_map(|(after, count)| Operation::Read(after, count)),
        1 => Just(Operation::Purge),
        3 => Just(Operation::Reopen),
    ];
    proptest::collection::vec(operation, 1..60)
}

/// Returns the sequence at this place, or one that never was.
fn at(map: &BTreeMap<u64, Bytes>, place: usize) -> u64 {
    map.keys().nth(place).copied().unwrap_or(1_000_000)
}

async fn check(operations: Vec<Operation>) {
    let dir = tempdir().unwrap();
    let mut spool = open(dir.path());
    let (mut entries, mut dead, mut next) = (BTreeMap::new(), BTreeMap::new(), 1_u64);
    for operation in operations {
        match operation {
            Operation::Append(len) => {
                let body = Bytes::from(vec![next as u8; len]);
                assert_eq!(spool.append(body.clone()).await.unwrap(), next);
                entries.insert(next, body);
                next += 1;
            }
            Operation::Remove(place) => {
                let sequence = at(&entries, place);
                spool.remove(&[sequence]).await.unwrap();
                entries.remove(&sequence);
            }
            Operation::DeadLetter(place) => {
                let sequence = at(&entries, place);
                let body = entries.remove(&sequence);
                assert_eq!(spool.dead_letter(sequence, "why").await.unwrap(), body.is_some());
                dead.extend(body.map(|body| (sequence, body)));
            }
            Operation::Revive(place) => {
                let sequence = at(&dead, place);
                if let Some(body) = dead.remove(&sequence) {
                    assert_eq!(spool.revive(sequence).await.unwrap(), next);
                    entries.insert(next, body);
                    next += 1;
                } else {
                    assert_eq!(spool.revive(sequence).await.unwrap_err().kind(), SpoolErrorKind::NotFound);
                }
            }
            Operation::Discard(place) => {
                let sequence = at(&dead, place);
                let expected = u64::from(dead.remove(&sequence).is_some());
                assert_eq!(spool.discard_dead(&[sequence]).await.unwrap(), expected);
            }
            Operation::DiscardAll => {
                assert_eq!(spool.discard_all_dead().await.unwrap(), dead.len() as u64);
                dead.clear();
            }
            Operation::Read(after, count) => {
                let after = at(&entries, after);
                let expected: Vec<_> = entries.range(after + 1..).take(count).collect();
                if !expected.is_empty() {
                    let page = spool.next_after(after, count, usize::MAX).await.unwrap();
                    assert_eq!(
                        page.iter().map(|entry| (&entry.sequence, &entry.body)).collect::<Vec<_>>(),
                        expected
                    );
                }
            }
            Operation::Purge => {
                spool.sync().await.unwrap();
                assert_eq!(spool.purge().await.unwrap().entries, entries.len() as u64);
                entries.clear();
            }
            Operation::Reopen => {
                spool.close().await.unwrap();
                spool = open(dir.path());
            }
        }
    }
    spool.sync().await.unwrap();
    let charged = |map: &BTreeMap<u64, Bytes>, more: u64| {
        map.values().map(|body| body.len() as u64 + ENTRY_OVERHEAD_BYTES + more).sum::<u64>()
    };
    let status = spool.status();
    assert_eq!((status.entries, status.bytes), (entries.len() as u64, charged(&entries, 0)));
    assert_eq!(
        (status.dead_entries, status.dead_bytes),
        (dead.len() as u64, charged(&dead, "why".len() as u64))
    );
    assert_eq!(status.newest_sequence, next - 1);
    assert_eq!((status.damaged, status.rebuilt, status.failed), (0, 0, 0));
    let found: Vec<_> = all(&spool).await.into_iter().map(|entry| (entry.sequence, entry.body)).collect();
    assert_eq!(found, entries.into_iter().collect::<Vec<_>>());
    let found: Vec<_> =
        spool.dead(0, 1000).await.unwrap().into_iter().map(|letter| (letter.sequence, letter.body)).collect();
    assert_eq!(found, dead.into_iter().collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_spool_does_what_its_model_does(operations in operations()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(check(operations));
    }
}
