//! Limits for the log lines of the switch that many peers can cause at the same time.

use xmsg_zmq::link::throttle::Throttle;

/// The limits. All peers share the limit of each kind of line.
#[derive(Debug, Default)]
pub(super) struct LogThrottles {
    /// Subscribers that are too slow.
    pub(super) slow: Throttle,
    /// Subscribers to which messages above their limits are not sent.
    pub(super) too_large: Throttle,
    /// Subscribers that were disconnected because they are too slow.
    pub(super) disconnected_subscribers: Throttle,
    /// Subscribers that left before all messages had reached them.
    pub(super) left: Throttle,
    /// Publishers that do not read their subscriptions.
    pub(super) not_reading: Throttle,
    /// Publishers that were disconnected because they do not read their subscriptions.
    pub(super) disconnected_publishers: Throttle,
    /// Upstreams that do not accept subscriptions as long as some here.
    pub(super) long_prefixes: Throttle,
    /// Publishers that had left, and whose places were needed.
    pub(super) crowded_out: Throttle,
}
