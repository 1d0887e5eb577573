//! Subscribers that are too slow are disconnected if the policy demands it: at the high-water mark
//! (`disconnect`), or when publishers have waited for too long (`block:30s`). This module decides that, and
//! cancels the token [`disconnected`](ConnectedSubscriber::disconnected). [`serving`](super::serving) waits
//! for the token, and ends the connection.

use xmsg_zmq::link::session::now;
use xmsg_zmq::lock::lock;

use super::subscriber::ConnectedSubscriber;
use crate::policy::Policy;

impl ConnectedSubscriber {
    /// Disconnects the subscriber, whose queue had no room for a message under the policy `disconnect`.
    pub(super) fn disconnect_at_mark(&self) {
        self.disconnect(Policy::Disconnect);
    }

    /// Disconnects the subscriber if publishers have waited for the longest time of this policy (`block`)
    /// while it took next to nothing. A publisher that waits calls this whenever it has waited for some time,
    /// and says whether there is room now.
    pub(super) fn disconnect_if_stalled(&self, policy: Policy, has_room: bool) {
        let Policy::Block { longest: Some(longest) } = policy else { return };
        // The clock is asked even if there is room: it has to see every publisher that waits.
        let stalled_for = lock(&self.stall_clock).lasts(now(), self.send_queue.written().bytes);
        if stalled_for >= longest && !has_room {
            self.disconnect(policy);
        }
    }

    /// Ends the connection because the subscriber is too slow for this policy.
    fn disconnect(&self, policy: Policy) {
        if self.disconnected.is_cancelled() {
            return;
        }
        let queued = self.send_queue.queued();
        if let Some(unlogged) =
            self.log_throttles.disconnected_subscribers.pass("subscribers that were cut off")
        {
            tracing::warn!(
                peer = %self.peer,
                queued_messages = queued.messages,
                queued_bytes = queued.bytes,
                policy = policy.to_string(),
                unlogged,
                "slow subscriber: it is cut off. Make it read faster, raise --high-water-mark, or choose another --slow-subscriber"
            );
        }
        self.disconnected.cancel();
        self.send_queue.close();
    }
}
