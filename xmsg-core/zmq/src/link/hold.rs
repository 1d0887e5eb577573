//! After a reconnection, what waits is held back for a moment: subscribers have lost their connections, too, and would miss what is
//! sent before they are back.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::Settings;
use crate::link::Link;
use crate::publishing::WANTED_MAX;

/// Subscribers that were there before are waited for until the connection is so old.
const HOLD: Duration = Duration::from_secs(1);
/// … and for so long at least, if the pause itself took all of that time.
const GRACE_MIN: Duration = Duration::from_millis(250);

/// What a connecting link knows of the connection that it has lost.
#[derive(Debug)]
pub(crate) struct Lost {
    /// When it was lost.
    since: Instant,
    /// What the peer wanted then, or before, if that connection was too short for subscribers to come back.
    wanted: BTreeSet<Bytes>,
    /// Since when subscribers are waited for, on the connection that there is now.
    waiting: Option<Instant>,
    /// How long subscribers have been waited for on earlier connections. A peer that comes and goes does not get more time,
    /// however short its connections are: a subscriber may never come back.
    spent: Duration,
}

impl Lost {
    /// A connection was lost, to a peer that wanted this; `before` it another one may have been, and subscribers were not back.
    pub(crate) fn again(before: Option<Self>, wanted: BTreeSet<Bytes>) -> Self {
        let since = Instant::now();
        let Some(mut before) = before else {
            return Self { since, wanted, waiting: None, spent: Duration::ZERO };
        };
        // A peer that comes and goes, and wants something else each time, is not remembered for ever.
        if before.wanted.len() + wanted.len() <= WANTED_MAX {
            before.wanted.extend(wanted);
        }
        let spent = before.waiting.map_or(Duration::ZERO, |start| start.elapsed());
        Self { since, waiting: None, spent: before.spent + spent, ..before }
    }

    /// Whether somebody had subscribed who may come back.
    pub(crate) fn had_subscribers(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Waits until subscribers had time to come back. They retry within about as long as the connection was away, and in pauses of
    /// `reconnect_max` at most. `changed` tells when the peer wants something else.
    pub(crate) async fn settle(&mut self, link: &Link, options: &Settings, changed: &Notify) {
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

/// Until when a socket may hold messages back: one that is being closed needs time to send them.
#[derive(Debug, Default)]
pub(crate) struct HoldLimit(watch::Sender<Option<Instant>>);

impl HoldLimit {
    /// Nothing is held back from this time on.
    pub(crate) fn set(&self, until: Instant) {
        self.0.send_if_modified(|limit| {
            let is_earlier = limit.is_none_or(|limit| until < limit);
            if is_earlier {
                *limit = Some(until);
            }
            is_earlier
        });
    }

    /// Returns when that time has come.
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
                // The sender lives as long as this.
                _ = limit.changed() => {}
            }
        }
    }
}
