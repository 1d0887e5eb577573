//! What a spool does while nothing is wrong with its disk.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tempfile::tempdir;
use xmsg_connect::spool::{
    DeadCause, ENTRY_OVERHEAD_BYTES, Fsync, OnFull, REMOVALS_WAITING_MAX, Spool, SpoolErrorKind, SpoolOptions,
};

use crate::common::{all, bodies, body, open, poll, until};

/// Returns options with room for so many entries of 100 bytes.
fn room_for(entries: u64) -> SpoolOptions {
    let mut options = SpoolOptions::default();
    options.max_bytes = entries * (100 + ENTRY_OVERHEAD_BYTES);
    options
}

fn hundred_bytes() -> Bytes {
    Bytes::from(vec![7; 100])
}

#[tokio::test]
async fn entries_come_back_in_order_and_survive_a_restart() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    for n in 1..=20_u64 {
        assert_eq!(spool.append(body(&format!("entry {n}"))).await.unwrap(), n);
    }
    spool.remove(&[3, 1, 20, 99]).await.unwrap();
    assert_eq!(
        spool.next_after(0, 2, 1 << 20).await.unwrap()[0].sequence,
        2,
        "what was removed is gone at once"
    );
    spool.close().await.unwrap();

    let spool = open(dir.path());
    let status = spool.status();
    assert_eq!((status.entries, status.newest_sequence), (17, 20));
    let entries = all(&spool).await;
    assert_eq!(entries[0].body, "entry 2");
    assert_eq!(entries[1].body, "entry 4");
    assert_eq!(entries.len(), 17);
    assert_eq!(
        status.bytes,
        entries.iter().map(|entry| entry.body.len() as u64 + ENTRY_OVERHEAD_BYTES).sum::<u64>()
    );
    assert_eq!(status.oldest_accepted_at, Some(entries[0].accepted_at));
    assert_eq!(spool.append(body("later")).await.unwrap(), 21);
}

#[tokio::test]
async fn a_page_has_at_least_one_entry_and_at_most_what_was_asked_for() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    for _ in 0..10 {
        spool.append(hundred_bytes()).await.unwrap();
    }
    let sequences = async |after, entries, bytes| {
        let page = spool.next_after(after, entries, bytes).await.unwrap();
        page.iter().map(|entry| entry.sequence).collect::<Vec<_>>()
    };
    assert_eq!(sequences(0, 3, 1 << 20).await, [1, 2, 3]);
    assert_eq!(sequences(4, 100, 250).await, [5, 6]);
    assert_eq!(sequences(8, 100, 1).await, [9]);
    assert_eq!(sequences(8, 0, 0).await, [9]);
    assert_eq!(sequences(9, 100, 1 << 20).await, [10]);
}

#[tokio::test]
async fn a_reader_waits_for_the_next_entry() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    spool.append(body("one")).await.unwrap();
    let reader = tokio::spawn({
        let spool = spool.clone();
        async move { spool.next_after(1, 10, 1000).await.unwrap() }
    });
    // Readers that went away leave no trace, however many they are.
    for _ in 0..1000 {
        let mut next = pin!(spool.next_after(u64::MAX, 10, 1000));
        assert!(poll(next.as_mut()).is_pending());
    }
    spool.append(body("two")).await.unwrap();
    let page = reader.await.unwrap();
    assert_eq!((page[0].sequence, &page[0].body), (2, &body("two")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_wait_together_are_written_together() {
    const WRITERS: u64 = 256;
    const EACH: u64 = 20;
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let spool = spool.clone();
            tokio::spawn(async move {
                let mut last = 0;
                for n in 0..EACH {
                    let sequence = spool.append(body(&format!("{writer} {n}"))).await.unwrap();
                    assert!(sequence > last, "the appends of one caller are in order");
                    last = sequence;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let status = spool.status();
    assert_eq!(status.accepted, WRITERS * EACH);
    assert!(status.commits < status.accepted / 10, "{} commits", status.commits);
    let mut next = vec![0; WRITERS as usize];
    for entry in all(&spool).await {
        let text = String::from_utf8(entry.body.to_vec()).unwrap();
        let (writer, n) = text.split_once(' ').unwrap();
        let expected = &mut next[writer.parse::<usize>().unwrap()];
        assert_eq!(n.parse::<u64>().unwrap(), *expected);
        *expected += 1;
    }
    assert!(next.iter().all(|&n| n == EACH));
}

#[tokio::test]
async fn calls_that_wait_at_the_same_time_are_served_in_order() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    // A task is polled for the first time in the order in which it was spawned.
    let appends: Vec<_> = (1..=2000_u64)
        .map(|n| {
            let spool = spool.clone();
            tokio::spawn(async move { assert_eq!(spool.append(hundred_bytes()).await.unwrap(), n) })
        })
        .collect();
    for append in appends {
        append.await.unwrap();
    }
}

#[tokio::test]
async fn entries_that_are_appended_in_one_piece_wait_for_room_together() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), room_for(3)).unwrap();
    assert_eq!(spool.append_many(vec![]).await.unwrap(), 0..0);
    assert_eq!(spool.append_many(vec![hundred_bytes(), hundred_bytes()]).await.unwrap(), 1..3);
    {
        let mut cancelled = pin!(spool.append_many(vec![Bytes::new(); 3]));
        assert!(poll(cancelled.as_mut()).is_pending());
        assert_eq!(spool.status().waiting, 3);
    }
    let mut two = pin!(spool.append_many(vec![hundred_bytes(), body("last")]));
    assert!(poll(two.as_mut()).is_pending());
    spool.remove(&[1]).await.unwrap();
    assert_eq!(two.await.unwrap(), 3..5);
    assert_eq!(bodies(&spool).await.last(), Some(&body("last")));
    let error = spool.append_many(vec![hundred_bytes(); 4]).await.unwrap_err();
    assert_eq!((error.kind(), spool.status().entries), (SpoolErrorKind::TooLarge, 3));
}

#[tokio::test]
async fn every_entry_is_a_commit_of_its_own_if_wanted() {
    let dir = tempdir().unwrap();
    let mut options = SpoolOptions::default();
    options.fsync = Fsync::Always;
    let spool = Spool::open(dir.path(), options).unwrap();
    let appends: Vec<_> = (0..10)
        .map(|_| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.append(body("x")).await.unwrap() })
        })
        .collect();
    for append in appends {
        append.await.unwrap();
    }
    assert_eq!(spool.status().commits, 10);
}

#[tokio::test]
async fn a_full_spool_makes_appends_wait_in_line() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), room_for(2)).unwrap();
    spool.append(hundred_bytes()).await.unwrap();
    spool.append(hundred_bytes()).await.unwrap();
    let mut third = pin!(spool.append(hundred_bytes()));
    assert!(poll(third.as_mut()).is_pending());
    // It would fit, but it came later.
    let mut fourth = pin!(spool.append(Bytes::new()));
    assert!(poll(fourth.as_mut()).is_pending());
    assert_eq!(spool.status().waiting, 2);
    spool.remove(&[1]).await.unwrap();
    assert_eq!(third.await.unwrap(), 3);
    spool.remove(&[2]).await.unwrap();
    assert_eq!(fourth.await.unwrap(), 4);
    assert_eq!(spool.status().refused, 0);
}

#[tokio::test]
async fn a_full_spool_rejects_appends_if_wanted() {
    let dir = tempdir().unwrap();
    let mut options = room_for(1);
    options.on_full = OnFull::Reject;
    let spool = Spool::open(dir.path(), options).unwrap();
    spool.append(hundred_bytes()).await.unwrap();
    let error = spool.append(Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), SpoolErrorKind::Full);
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    assert_eq!(spool.status().refused, 1);
    spool.remove(&[1]).await.unwrap();
    spool.sync().await.unwrap();
    assert_eq!(spool.append(hundred_bytes()).await.unwrap(), 2);
}

#[tokio::test]
async fn a_limit_that_is_lowered_drops_nothing() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), room_for(10)).unwrap();
    for _ in 0..5 {
        spool.append(hundred_bytes()).await.unwrap();
    }
    spool.set_options(room_for(2));
    let mut waiting = pin!(spool.append(hundred_bytes()));
    assert!(poll(waiting.as_mut()).is_pending());
    spool.remove(&[1, 2, 3]).await.unwrap();
    spool.sync().await.unwrap();
    assert!(poll(waiting.as_mut()).is_pending());
    assert_eq!(spool.status().entries, 2);
    spool.set_options(room_for(3));
    assert_eq!(waiting.await.unwrap(), 6);

    // One that waits when the options begin to reject is rejected.
    let mut waiting = pin!(spool.append(hundred_bytes()));
    assert!(poll(waiting.as_mut()).is_pending());
    let mut options = room_for(3);
    options.on_full = OnFull::Reject;
    spool.set_options(options);
    assert_eq!(waiting.await.unwrap_err().kind(), SpoolErrorKind::Full);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let dir = tempdir().unwrap();
    let mut options = room_for(2);
    options.max_entry_bytes = 99;
    let spool = Spool::open(dir.path(), options).unwrap();
    assert_eq!(spool.append(hundred_bytes()).await.unwrap_err().kind(), SpoolErrorKind::TooLarge);
    spool.set_options(room_for(2));
    assert_eq!(spool.append(Bytes::from(vec![0; 1000])).await.unwrap_err().kind(), SpoolErrorKind::TooLarge);
    spool.append(hundred_bytes()).await.unwrap();
    assert_eq!(spool.status().refused, 2);
}

#[tokio::test]
async fn a_cancelled_append_leaves_the_line() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), room_for(1)).unwrap();
    spool.append(hundred_bytes()).await.unwrap();
    {
        let mut cancelled = pin!(spool.append(hundred_bytes()));
        assert!(poll(cancelled.as_mut()).is_pending());
        assert_eq!(spool.status().waiting, 1);
    }
    assert_eq!(spool.status().waiting, 0);
    let mut next = pin!(spool.append(Bytes::from("next")));
    assert!(poll(next.as_mut()).is_pending());
    spool.remove(&[1]).await.unwrap();
    assert_eq!(next.await.unwrap(), 2);
    assert_eq!(bodies(&spool).await, ["next"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_are_cancelled_at_any_moment_are_there_as_a_whole_or_not_at_all() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    let mut acknowledged = Vec::new();
    for n in 0..300_u32 {
        let append = spool.append(Bytes::from(n.to_le_bytes().repeat(100)));
        let limit = Duration::from_micros(fastrand::u64(..8000));
        if let Ok(sequence) = tokio::time::timeout(limit, append).await {
            acknowledged.push((sequence.unwrap(), n));
        }
    }
    spool.close().await.unwrap();
    let entries = all(&open(dir.path())).await;
    let mut last = None;
    for entry in &entries {
        let n = u32::from_le_bytes(entry.body[..4].try_into().unwrap());
        assert_eq!(entry.body, n.to_le_bytes().repeat(100));
        assert!(last < Some(n), "none is there twice, or in another order");
        last = Some(n);
    }
    for (sequence, n) in acknowledged {
        assert!(entries.iter().any(|entry| entry.sequence == sequence && entry.body[..4] == n.to_le_bytes()));
    }
}

#[tokio::test]
async fn entries_that_are_too_old_become_dead_letters() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    let entries = 3000;
    let appends: Vec<_> = (0..entries)
        .map(|n| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.append(body(&n.to_string())).await.unwrap() })
        })
        .collect();
    for append in appends {
        append.await.unwrap();
    }
    let mut options = SpoolOptions::default();
    options.max_age = Some(Duration::ZERO);
    spool.set_options(options);
    until(|| spool.status().entries == 0).await;
    let status = spool.status();
    assert_eq!((status.expired, status.dead_entries, status.oldest_accepted_at), (entries, entries, None));
    let letters = spool.dead(0, 2).await.unwrap();
    assert_eq!((letters[0].reason.as_str(), letters[0].cause), ("expired", DeadCause::Expired));
    assert_eq!(letters[0].body, "0");
    assert!(letters[0].dead_since >= letters[0].accepted_at);
    // It was on its way, and is confirmed after all.
    spool.remove(&[letters[0].sequence]).await.unwrap();
    spool.sync().await.unwrap();
    assert_eq!(spool.status().dead_entries, entries - 1);
    assert_eq!(spool.dead(0, 1).await.unwrap()[0].sequence, letters[1].sequence);
}

#[tokio::test]
async fn dead_letters_are_kept_and_revived_and_dropped() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    for n in 1..=4 {
        spool.append(body(&n.to_string())).await.unwrap();
    }
    assert!(spool.dead_letter(2, "no such queue").await.unwrap());
    assert!(!spool.dead_letter(2, "again").await.unwrap());
    assert!(spool.dead_letter(3, "too long").await.unwrap());
    spool.close().await.unwrap();

    let spool = open(dir.path());
    let letters = spool.dead(0, 10).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.sequence).collect::<Vec<_>>(), [2, 3]);
    assert_eq!((letters[0].reason.as_str(), &letters[0].body), ("no such queue", &body("2")));
    assert_eq!(spool.dead(2, 10).await.unwrap().len(), 1);
    assert_eq!(spool.revive(2).await.unwrap(), 5);
    assert_eq!(spool.revive(2).await.unwrap_err().kind(), SpoolErrorKind::NotFound);
    assert_eq!(bodies(&spool).await, ["1", "4", "2"]);
    assert_eq!(spool.discard_dead(&[2, 3]).await.unwrap(), 1);
    assert_eq!((spool.status().dead_entries, spool.status().dead_bytes), (0, 0));
    spool.dead_letter(1, "").await.unwrap();
    spool.dead_letter(4, "").await.unwrap();
    assert_eq!(spool.discard_all_dead().await.unwrap(), 2);
    assert_eq!((spool.status().entries, spool.status().dead_entries), (1, 0));
}

#[tokio::test]
async fn dead_letters_have_a_bound_and_the_oldest_make_room() {
    let dir = tempdir().unwrap();
    let mut options = room_for(3);
    options.max_dead_bytes = 2 * (100 + ENTRY_OVERHEAD_BYTES);
    let spool = Spool::open(dir.path(), options).unwrap();
    for n in 1..=3 {
        spool.append(hundred_bytes()).await.unwrap();
        spool.dead_letter(n, "").await.unwrap();
    }
    assert_eq!((spool.status().dead_entries, spool.status().dead_dropped), (2, 1));
    assert_eq!(spool.dead(0, 10).await.unwrap()[0].sequence, 2);
    // A revived letter needs room like any other entry.
    for _ in 0..3 {
        spool.append(hundred_bytes()).await.unwrap();
    }
    assert_eq!(spool.revive(2).await.unwrap_err().kind(), SpoolErrorKind::Full);
    assert_eq!(spool.status().dead_entries, 2);
}

#[tokio::test]
async fn a_purge_takes_all_entries_and_no_sequence_comes_again() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    for _ in 0..3 {
        spool.append(hundred_bytes()).await.unwrap();
    }
    spool.dead_letter(2, "").await.unwrap();
    let purged = spool.purge().await.unwrap();
    assert_eq!((purged.entries, purged.bytes), (2, 2 * (100 + ENTRY_OVERHEAD_BYTES)));
    let status = spool.status();
    assert_eq!((status.entries, status.bytes, status.dead_entries), (0, 0, 1));
    spool.close().await.unwrap();
    let spool = open(dir.path());
    assert_eq!(spool.append(hundred_bytes()).await.unwrap(), 4);
}

#[tokio::test]
async fn a_directory_is_open_once() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    let error = Spool::open(dir.path(), SpoolOptions::default()).unwrap_err();
    assert_eq!(error.kind(), SpoolErrorKind::InUse);
    spool.close().await.unwrap();
    open(dir.path()).close().await.unwrap();
}

#[tokio::test]
async fn a_spool_that_is_closed_says_so_to_everybody() {
    let dir = tempdir().unwrap();
    let spool = Spool::open(dir.path(), room_for(1)).unwrap();
    spool.append(hundred_bytes()).await.unwrap();
    let mut blocked = pin!(spool.append(hundred_bytes()));
    let mut reader = pin!(spool.next_after(1, 10, 1000));
    assert!(poll(blocked.as_mut()).is_pending());
    assert!(poll(reader.as_mut()).is_pending());
    spool.close().await.unwrap();
    spool.close().await.unwrap();
    assert_eq!(blocked.await.unwrap_err().kind(), SpoolErrorKind::Closed);
    assert_eq!(reader.await.unwrap_err().kind(), SpoolErrorKind::Closed);
    assert_eq!(spool.append(Bytes::new()).await.unwrap_err().kind(), SpoolErrorKind::Closed);
    assert_eq!(spool.remove(&[1]).await.unwrap_err().kind(), SpoolErrorKind::Closed);
    assert_eq!(spool.purge().await.unwrap_err().kind(), SpoolErrorKind::Closed);
    assert_eq!(spool.status().entries, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_or_confirmed_before_closing_is_on_disk() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    let appends: Vec<_> = (0..500)
        .map(|_| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.append(hundred_bytes()).await })
        })
        .collect();
    until(|| spool.status().accepted > 0).await;
    spool.remove(&[1]).await.unwrap();
    spool.close().await.unwrap();
    let mut accepted = 0;
    for append in appends {
        match append.await.unwrap() {
            Ok(_) => accepted += 1,
            Err(error) => assert_eq!(error.kind(), SpoolErrorKind::Closed),
        }
    }
    assert_eq!(open(dir.path()).status().entries, accepted - 1);
}

#[tokio::test]
async fn the_last_handle_that_is_dropped_closes_the_spool() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    spool.append(hundred_bytes()).await.unwrap();
    drop(spool);
    let mut spool = None;
    while spool.is_none() {
        spool = Spool::open(dir.path(), SpoolOptions::default()).ok();
        tokio::task::yield_now().await;
    }
    assert_eq!(spool.map(|spool| spool.status().entries), Some(1));
}

#[tokio::test]
async fn removals_wait_for_the_disk_beyond_their_bound_and_reach_it_in_the_end() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    spool.append(hundred_bytes()).await.unwrap();
    let many: Vec<u64> = (1..=3 * REMOVALS_WAITING_MAX as u64).collect();
    spool.remove(&many).await.unwrap();
    spool.sync().await.unwrap();
    let status = spool.status();
    assert_eq!((status.entries, status.unsynced_removals), (0, 0));
}

#[tokio::test]
async fn space_that_is_free_goes_back_to_the_disk_when_nothing_happens() {
    let dir = tempdir().unwrap();
    let spool = open(dir.path());
    spool.append(Bytes::from(vec![1; 66 << 20].split_off(4 << 20))).await.unwrap();
    spool.append(Bytes::from(vec![1; 60 << 20])).await.unwrap();
    assert!(spool.status().file_bytes > 100 << 20);
    spool.remove(&[1, 2]).await.unwrap();
    until(|| spool.status().file_bytes < 10 << 20).await;
    spool.append(body("and on")).await.unwrap();
    assert_eq!(bodies(&spool).await, ["and on"]);
}

#[tokio::test]
async fn a_hundred_spools_do_not_wait_for_each_other() {
    let dir = tempdir().unwrap();
    let spools: Vec<_> = (0..100).map(|n| Arc::new(open(&dir.path().join(n.to_string())))).collect();
    let mut blocked: Vec<_> = spools.iter().map(|spool| Box::pin(spool.append(body("x")))).collect();
    for append in &mut blocked {
        match poll(append.as_mut()) {
            Poll::Ready(result) => drop(result.unwrap()),
            Poll::Pending => {}
        }
    }
    drop(blocked);
    for spool in &spools {
        spool.append(body("y")).await.unwrap();
    }
}
