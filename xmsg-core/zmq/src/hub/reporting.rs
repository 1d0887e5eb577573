//! What a socket reports about its connections and messages: events, counters, and log lines.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Hub;
use crate::events::SocketEvent;
use crate::link::Link;
use crate::link::drop_counter::Report;
use crate::link::refusal::{LimitOwner, exceeds_limits, exceeds_size};
use crate::link::send_queue::{Discarded, Frame};
use crate::link::session::Ended;
use crate::security::Security;
use crate::subscriptions::SubscriptionLimitExceeded;
use crate::{Error, ErrorKind};

impl Hub {
    /// Returns the number of messages that were accepted and then dropped because their peer does not accept
    /// them.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns the number of messages that were received and lost because no memory was left for them.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Counts messages that a connection took with it when it ended, because no memory was left for them.
    pub(crate) fn note_lost(&self, link: &Link, messages: u64) {
        if messages == 0 {
            return;
        }
        let total = self.lost.fetch_add(messages, Ordering::Relaxed) + messages;
        let peer = link.state().name.to_string();
        if let Some(unlogged) = self.drop_log.pass("messages that were received and lost") {
            tracing::warn!(
                peer,
                messages,
                total,
                unlogged,
                "received messages lost: their connection was ended, and no memory is left for them. Receive faster, or raise the memory limit"
            );
        }
        self.emit(SocketEvent::ReceivedLost { peer, messages, total });
    }

    /// The error for a message that the queue of this link refuses.
    pub(crate) fn exceeds_limits(&self, link: &Link, frames: &[impl Frame]) -> Error {
        let peer = link.state().name.clone();
        exceeds_limits(frames, link.send_queue.limits(), self.options.send_limits(), &peer)
    }

    /// The error for a message that the queue of this link refuses, if only its size and number of frames are
    /// known.
    pub(crate) fn exceeds_size(&self, link: &Link, size: usize, frames: usize) -> Error {
        let peer = link.state().name.clone();
        exceeds_size(size, frames, link.send_queue.limits(), self.options.send_limits(), &peer)
    }

    /// Drops a message for one of several peers, because this peer does not accept it.
    pub(crate) fn drop_for(&self, link: &Link, frames: &[impl Frame]) {
        let reason = self.exceeds_limits(link, frames).to_string();
        let gone = Discarded::of(frames);
        let name = link.state().name.clone();
        self.note_dropped(&name, gone, reason);
    }

    /// Counts messages that were dropped for a peer that does not take them in time; `messages` may be 0.
    /// From time to time, it reports those that have not been reported yet.
    #[inline]
    pub(crate) fn note_overflow(&self, link: &Link, messages: u64) {
        if messages > 0 {
            self.dropped.fetch_add(messages, Ordering::Relaxed);
        }
        if let Some(report) = link.overflowed.add(messages) {
            self.report_overflow(link, report);
        }
    }

    #[cold]
    pub(super) fn report_overflow(&self, link: &Link, Report { messages, total }: Report) {
        let peer = link.state().name.to_string();
        if let Some(unlogged) = self.drop_log.pass("messages that were dropped") {
            tracing::warn!(
                peer,
                messages,
                total,
                unlogged,
                "messages dropped: the peer does not take them in time"
            );
        }
        self.emit(SocketEvent::PeerTooSlow { peer, messages, total });
    }

    /// Drops a message that had been accepted for a peer that is gone, and that no other peer accepts.
    pub(crate) fn drop_unsent(&self, frames: &[Bytes], error: &Error) {
        let gone = Discarded::of(frames);
        self.note_dropped("", gone, error.to_string());
    }

    /// Counts a message that was dropped, sends an event, and logs it.
    pub(super) fn note_dropped(&self, peer: &str, gone: Discarded, reason: String) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = self.drop_log.pass("messages that were dropped") {
            let topic = gone.topic.escape_ascii();
            tracing::warn!(peer, %topic, size = gone.size, frames = gone.frames, reason, unlogged, "message dropped");
        }
        let Discarded { topic, size, .. } = gone;
        self.emit(SocketEvent::MessageDropped { peer: peer.to_owned(), topic, size, reason });
    }

    /// Reports subscriptions that a peer refuses. For a peer that has connected to us, only the first one is
    /// reported: such a peer may refuse all subscriptions again and again.
    pub(crate) fn report_refused_subscriptions(
        &self,
        link: &Link,
        refused: Vec<(Bytes, SubscriptionLimitExceeded)>,
    ) {
        let peer = link.state().name.to_string();
        let (most, count) = (if link.connecting { usize::MAX } else { 1 }, refused.len());
        for (prefix, why) in refused.into_iter().take(most) {
            let reason = why.error(LimitOwner::Peer(&peer)).to_string();
            if let Some(unlogged) = self.refusal_log.pass("subscriptions that a peer refuses") {
                let prefix = prefix.escape_ascii();
                tracing::warn!(peer, %prefix, reason, count, unlogged, "subscription refused");
            }
            self.emit(SocketEvent::SubscriptionRefused { peer: peer.clone(), prefix, reason });
        }
    }

    /// The error for a handshake with a peer that has connected to us and that failed.
    pub(super) fn without_handshake(&self, peer: &str, ended: Ended, is_greeted: bool) -> Error {
        // In a NULL handshake, there is nothing else that the peer could reject. It has not sent its own type
        // by then.
        if is_greeted && ended.is_by_peer() && matches!(self.options.security, Security::Null) {
            let what = format!(
                "{peer} closed the connection when it was told that this socket is of type {}: does its own type fit?",
                self.role.socket_type()
            );
            return Error::new(ErrorKind::Refused, what).with_source(ended);
        }
        ended.while_accepting(&peer)
    }

    /// Reports that we have ended a connection, if it still exists.
    pub(super) fn report_ended(&self, link: &Link) {
        if link.is_connected() && !self.stop.is_cancelled() {
            let peer = link.state().name.to_string();
            let error =
                Error::new(ErrorKind::Closed, format!("this side has ended the connection with {peer}"));
            self.emit(SocketEvent::Disconnected { peer, error });
        }
    }

    pub(super) fn report_refused(&self, peer: &str, reason: &'static str) {
        tracing::debug!(peer, reason, "a peer that the socket has no place for");
        let error = Error::new(ErrorKind::Refused, format!("{peer} was not let in: {reason}"));
        self.emit(SocketEvent::HandshakeFailed { peer: peer.to_owned(), error });
    }

    pub(crate) fn emit(&self, event: SocketEvent) {
        if let Some(parent) = &self.parent {
            parent.emit_deduplicated(event.clone());
        }
        self.events.emit(event);
    }
}
