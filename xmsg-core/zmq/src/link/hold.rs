//! Messages that are held back for a moment after a reconnection. Subscribers have lost their connections,
//! too, and would miss what is sent before they are back.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::Settings;
use crate::link::Link;
use crate::publishing::WANTED_MAX;

/// Messages are held back until the former subscribers are back, but no longer than until the connection is
/// this old.
const HOLD: Duration = Duration::from_secs(1);
/// The minimum time for subscribers to come back, even if the pause before the reconnection took all of
/// [`HOLD`].
const GRACE_MIN: Duration = Duration::from_millis(250);

/// What a connecting link remembers about the connection that it has lost.
#[derive(Debug)]
pub(crate) struct LostConnection {
    /// When the connection was lost.
    since: Instant,
    /// What the peer had subscribed to by then. If that connection was too short for subscribers to come
    /// back, this includes what was wanted before it.
    wanted: BTreeSet<Bytes>,
    /// Since when subscribers are waited for on the present connection.
    waiting: Option<Instant>,
    /// How long subscribers were waited for on earlier connections. A peer that comes and goes does not get
    /// more time, however short its connections are: a subscriber may never come back.
    spent: Duration,
}

impl LostConnection {
    /// Records that a connection was lost whose peer had subscribed to `wanted`. `before` is the connection
    /// lost before it, if its subscribers had not come back.
    pub(crate) fn again(before: Option<Self>, wanted: BTreeSet<Bytes>) -> Self {
        let since = Instant::now();
        let Some(mut before) = before else {
            return Self { since, wanted, waiting: None, spent: Duration::ZERO };
        };
        // This bounds the memory for a peer that comes and goes, and subscribes to something else each time.
        if before.wanted.len() + wanted.len() <= WANTED_MAX {
            before.wanted.extend(wanted);
        }
        let spent = before.waiting.map_or(Duration::ZERO, |start| start.elapsed());
        Self { since, waiting: None, spent: before.spent + spent, ..before }
    }

    /// Whether there were subscribers that may come back.
    pub(crate) fn had_subscribers(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Waits until the subscribers had time to come back. They retry within about as long as the connection
    /// was lost, with pauses of at most `reconnect_max`. `changed` is notified when the subscriptions of the
    /// peer change.
    pub(crate) async fn wait_for_subscribers(&mut self, link: &Link, options: &Settings, changed: &Notify) {
        let pause = self.since.elapsed().min(options.reconnect_max).max(options.reconnect_min);
        let grace = HOLD.saturating_sub(pause).max(GRACE_MIN);
        let left = (pause + grace).saturating_sub(self.spent);
        self.waiting = Some(Instant::now());
        tokio::time::sleep(pause.min(left)).await;
        let grace = grace.min(left.saturating_sub(pause));
        let back = async {
            loop {
                let mut changed = std::pin::pin!(changed.notified());
                changed.as_mut().enable();
                if self.wanted.is_subset(&link.state().wanted) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(grace, back).await;
    }
}

/// The time limit until which a socket may hold messages back. A socket that is being closed needs time to
/// send them.
#[derive(Debug, Default)]
pub(crate) struct HoldLimit(watch::Sender<Option<Instant>>);

impl HoldLimit {
    /// Ends all holding back at this time. Only an earlier time changes the limit.
    pub(crate) fn set(&self, until: Instant) {
        self.0.send_if_modified(|limit| {
            let is_earlier = limit.is_none_or(|limit| until < limit);
            if is_earlier {
                *limit = Some(until);
            }
            is_earlier
        });
    }

    /// Returns when the limit has passed.
    pub(crate) async fn reached(&self) {
        let mut limit = self.0.subscribe();
        loop {
            let until = *limit.borrow_and_update();
            let reached = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = reached => return,
                // The sender lives as long as `self`, so this cannot fail.
                _ = limit.changed() => {}
            }
        }
    }
}
