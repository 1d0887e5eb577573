//! What the tests of the spool share.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use xmsg_connect::spool::{Entry, Spool, SpoolOptions};

/// A wait that takes longer than this has failed, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn open(dir: &Path) -> Spool {
    Spool::open(dir, SpoolOptions::default()).unwrap()
}

pub(crate) fn body(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Returns all entries, in order.
pub(crate) async fn all(spool: &Spool) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    while (entries.len() as u64) < spool.status().entries {
        let after = entries.last().map_or(0, |entry| entry.sequence);
        // Damaged entries leave the spool while it is read, so that there may be fewer than were counted.
        let (newest, next) = (spool.status().newest_sequence, spool.next_after(after, 1000, 1 << 20));
        tokio::select! {
            page = next => entries.extend(page.unwrap()),
            () = until(|| after >= newest || spool.status().entries <= entries.len() as u64) => break,
        }
    }
    assert!(entries.is_sorted_by(|a, b| a.sequence < b.sequence));
    entries
}

pub(crate) async fn bodies(spool: &Spool) -> Vec<Bytes> {
    all(spool).await.into_iter().map(|entry| entry.body).collect()
}

/// Waits for what is going to happen.
pub(crate) async fn until(is_there: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !is_there() {
        assert!(start.elapsed() < PATIENCE, "it did not happen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Polls once.
pub(crate) fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
