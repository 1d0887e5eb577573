//! Handling of what a peer sends.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::events::{DropReason, SocketEvent};
use crate::hub::{Hub, SHARE_MAX};
use crate::link::Link;
use crate::link::receive_queue::PeerQueue;
use crate::link::session::{Batch, Ended, Handler};
use xmsg_zmtp::{DroppedCounts, Span, encode_message};

/// How long a connection is not read from after messages to a socket that takes none. Nobody waits for them,
/// and without a pause, a peer could take any amount of processor time by sending them.
const DISCARD_PAUSE: Duration = Duration::from_millis(10);

/// Handles what the session of one link receives.
pub(crate) struct LinkHandler<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) link: &'a Link,
    /// The identity by which the socket knows the peer.
    pub(crate) identity: Bytes,
    /// The receive queue of the connection.
    pub(crate) queue: PeerQueue<'a>,
}

impl Drop for LinkHandler<'_> {
    fn drop(&mut self) {
        self.hub.note_lost(self.link, self.queue.lost());
        // A `drop` cannot wait. There are no more of these messages than the peer had subscriptions.
        for prefix in self.hub.role().leave(self.link) {
            self.queue.put(&self.identity, notice(false, &prefix));
        }
    }
}

/// Encodes the message that reports a subscription or its cancellation (RFC 29).
fn notice(subscribe: bool, prefix: &Bytes) -> Bytes {
    let mut wire = BytesMut::new();
    let body = [&[u8::from(subscribe)], &prefix[..]].concat();
    encode_message(&mut wire, &[Bytes::from(body)]);
    wire.freeze()
}

impl Handler for LinkHandler<'_> {
    async fn messages(&mut self, batch: Batch<'_>) -> Result<(), Ended> {
        let received = &self.link.received;
        received.messages.fetch_add(batch.spans.len() as u64, Ordering::Relaxed);
        received.bytes.fetch_add(batch.wire.len() as u64, Ordering::Relaxed);
        let role = self.hub.role();
        if !role.receives() {
            if let Some(unlogged) =
                self.hub.discard_log.pass("peers that send messages to a socket that takes none")
            {
                let (peer, socket) = (self.link.state().name.clone(), role.socket_type());
                tracing::warn!(%peer, %socket, messages = batch.spans.len(), unlogged, "messages discarded: this socket only sends");
            }
            tokio::time::sleep(DISCARD_PAUSE).await;
            return Ok(());
        }
        // A peer that we connect to filters for us. A publisher that connects to us need not: our own
        // publisher sends everything.
        if !self.link.connecting {
            let is_wanted = |span: &Span| role.wants(span.first(&batch.wire));
            if !batch.spans.iter().all(is_wanted) {
                let mut wanted = BytesMut::new();
                for span in batch.spans.iter().filter(|span| is_wanted(span)) {
                    wanted.extend_from_slice(&batch.wire[span.start..span.end]);
                }
                if !wanted.is_empty() {
                    self.queue.push(&self.identity, wanted.freeze(), None).await;
                }
                return Ok(());
            }
        }
        // A few bytes must not keep a large slab in memory while they wait.
        let small = batch.wire.len() * SHARE_MAX < batch.slab.size;
        let (wire, slab) =
            if small { (Bytes::copy_from_slice(&batch.wire), None) } else { (batch.wire, Some(batch.slab)) };
        self.queue.push(&self.identity, wire, slab).await;
        Ok(())
    }

    async fn subscription(&mut self, subscribe: bool, prefix: Bytes) -> Result<(), Ended> {
        let is_reported = self.hub.role().subscription(self.link, subscribe, prefix.clone())?;
        self.hub.changed.notify_waiters();
        if is_reported {
            self.queue.push(&self.identity, notice(subscribe, &prefix), None).await;
        }
        Ok(())
    }

    async fn subscriber_message(&mut self, wire: Bytes) -> Result<(), Ended> {
        self.queue.push(&self.identity, wire, None).await;
        Ok(())
    }

    fn dropped(&mut self, counts: DroppedCounts) {
        let (peer, new_drops, total) = {
            let mut state = self.link.state();
            let (before, total) = &mut state.drops;
            // A count that decreases is ignored.
            let new_drops = DroppedCounts {
                too_slow: counts.too_slow.saturating_sub(before.too_slow),
                too_large: counts.too_large.saturating_sub(before.too_large),
            };
            before.too_slow = before.too_slow.max(counts.too_slow);
            before.too_large = before.too_large.max(counts.too_large);
            total.too_slow = total.too_slow.saturating_add(new_drops.too_slow);
            total.too_large = total.too_large.saturating_add(new_drops.too_large);
            (state.name.clone(), new_drops, state.drops.1)
        };
        for (reason, messages, total) in [
            (DropReason::TooSlow, new_drops.too_slow, total.too_slow),
            (DropReason::TooLarge, new_drops.too_large, total.too_large),
        ] {
            if messages > 0 {
                self.hub.emit(SocketEvent::DroppedByPeer { peer: peer.to_string(), reason, messages, total });
            }
        }
    }
}
