//! How the switch serves one connection: the handshake, and then the publisher or the subscriber, to the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xmsg_zmq::ProxyPorts;
use xmsg_zmq::fault::catch_in;
use xmsg_zmq::link::admission::{Leaving, Permit};
use xmsg_zmq::link::dead_peer::{Route, unread};
use xmsg_zmq::link::send_queue::SendQueue;
use xmsg_zmq::link::session::{Ended, Session, now};
use xmsg_zmq::link::transport::{Listener, Stream};
use xmsg_zmq::security::Principal;
use xmsg_zmtp::{Engine, MessageLimits, Peer, PeerLimits, SocketType};

use super::authorization::Authorization;
use super::ingress::Ingress;
use super::publisher::ConnectedPublisher;
use super::requests::RequestRates;
use super::subscriber::ConnectedSubscriber;
use super::table::{Change, SubscriberHandler};
use super::{BY_OPERATOR, Side, Switch};
use crate::config::Config;

/// The time that a publisher gets to finish its handshake when the switch stops.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(500);
/// The reason in the log for a connection of the address that has most connections, while others need a
/// place.
const GIVES_WAY: &str = "ended to make room for a new connection: its address has more than half of all";

impl Switch {
    pub(super) async fn accept(self, mut listener: Listener, side: Side) {
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = self.inner.refuse.cancelled() => return,
                next = listener.accept_making_room(|| self.inner.admission.make_room()) => next,
            };
            let Some(permit) = self.inner.admission.admit(stream.address(), &peer) else { continue };
            let serve = self.clone().serve_alone(stream, peer, side, permit);
            match side {
                Side::Publishers => drop(self.inner.publishers.spawn(serve)),
                Side::Subscribers => drop(self.inner.tasks.spawn(serve)),
            }
        }
    }

    /// Serves one connection. A panic ends this connection only, and is counted and logged.
    async fn serve_alone(self, stream: Stream, peer: String, side: Side, permit: Permit) {
        let serve = self.clone().serve(stream, peer.clone(), side, permit);
        if let Err(fault) = Box::pin(catch_in(serve)).await {
            self.inner.violations.note(&peer, side.port(), &Ended::Fault(fault));
        }
    }

    async fn serve(self, stream: Stream, peer: String, side: Side, mut permit: Permit) {
        let stop = self.inner.stop.clone();
        let refuse = self.inner.refuse.clone();
        let Config { security, authority, heartbeat_interval, heartbeat_timeout, .. } = &self.inner.config;
        let security = security.security(authority);
        let engine = Engine::with_mechanism(self.engine_options(side), security.mechanism(), now());
        let authenticator = permit.in_turn(security.authenticator());
        let mut session = Session::new(stream, engine)
            .with_authenticator(authenticator)
            .watched(*heartbeat_interval, *heartbeat_timeout)
            .with_memory(&self.inner.config.memory, &peer)
            .with_activity(permit.activity());
        // A publisher may have sent messages before this side has read the end of the handshake.
        let grace = if side == Side::Publishers { HANDSHAKE_GRACE } else { Duration::ZERO };
        let refused = async {
            refuse.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        let gives_way = permit.gives_way();
        let found = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = refused => return,
            () = gives_way.cancelled() => return tracing::debug!(peer, ?side, reason = GIVES_WAY, "disconnected"),
            result = session.handshake() => match result {
                Ok(found) => found,
                Err(ended) => {
                    self.inner.connected_peers.refused();
                    if self.inner.violations.note(&peer, side.port(), &ended).is_none()
                        && let Some(unlogged) = self.inner.refusals.pass("connections that were refused in the handshake")
                    {
                        // A peer that learns that the type of this socket does not fit its own closes before
                        // it has announced its type.
                        let ports = self.inner.violations.ports().filter(|_| ended.is_by_peer());
                        let hint = ports.map(|ports| {
                            let ProxyPorts { publishers, subscribers, .. } = ports;
                            format!("publishers connect to {publishers}, subscribers to {subscribers}")
                        });
                        tracing::info!(peer, ?side, reason = %ended, hint, unlogged, "connection refused");
                    }
                    return;
                }
            },
        };
        permit.established();
        // Other properties that it announced are dropped here, and not only when the connection ends.
        let accepts_drop_reports = found.accepts_drop_reports;
        let is_forwarder = found.socket_type == SocketType::Xpub;
        let (version, principal, limits) = essentials(found);
        tracing::debug!(peer, ?side, ?version, "connected");
        let authorization = Authorization::new(authority, principal);
        let ended = match side {
            Side::Subscribers => {
                let hearing = (limits, accepts_drop_reports);
                self.serve_subscriber(session, &peer, hearing, authorization, stop, gives_way).await
            }
            Side::Publishers => {
                let disconnected = CancellationToken::new();
                let publisher = ConnectedPublisher::new(
                    self.id(),
                    &peer,
                    version,
                    authorization,
                    permit.place(disconnected.clone()),
                    disconnected,
                );
                let publisher = publisher.forwarding(is_forwarder);
                self.serve_publisher(session, publisher, stop, gives_way).await
            }
        };
        if self.inner.violations.note(&peer, side.port(), &ended).is_none() {
            tracing::debug!(peer, ?side, reason = %ended, "disconnected");
        }
    }

    async fn serve_publisher(
        &self,
        session: Session,
        publisher: ConnectedPublisher,
        stop: CancellationToken,
        gives_way: CancellationToken,
    ) -> Ended {
        let inner = &self.inner;
        let publisher =
            Arc::new(publisher.counting(&inner.config.memory).logging(&inner.connected_peers.log_throttles));
        let route = session.route();
        let session = session.with_departure(Arc::new(Leaving(publisher.place.clone())));
        let asking = RequestRates::new(inner.asking.clone());
        let (table, connected_peers, caches) = (&inner.table, &inner.connected_peers, &inner.caches);
        let mut ingress =
            Ingress::new(&publisher, table, connected_peers, asking, caches, &inner.watch, &inner.config);
        inner.connected_peers.add_publisher(&publisher);
        inner.table.change(Change::PublisherJoined(publisher.clone())).await;
        if inner.refuse.is_cancelled() {
            publisher.send_queue.close();
        }
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ended::ByUs("stopped"),
            ended = self.until_disconnected(&publisher, route) => ended,
            () = publisher.outsized.cancelled() => Ended::OutOfMemory,
            () = publisher.authorization.revoked.cancelled() => Ended::ByUs("not allowed any more"),
            () = publisher.authorization.ended_by_operator.cancelled() => Ended::ByUs(BY_OPERATOR),
            () = gives_way.cancelled() => Ended::ByUs(GIVES_WAY),
            ended = session.run(&publisher.send_queue, &mut ingress, Duration::MAX) => ended,
        };
        publisher.send_queue.close();
        inner.connected_peers.remove_publisher(&publisher);
        publisher.authorization.log_rest(&publisher.peer);
        inner.table.change(Change::PublisherGone(publisher.id)).await;
        ended
    }

    /// Waits until this publisher is disconnected, and returns the reason. Its connection is still open then.
    async fn until_disconnected(&self, publisher: &ConnectedPublisher, route: Option<Route>) -> Ended {
        publisher.disconnected.cancelled().await;
        if !publisher.place.is_given_away() {
            return Ended::ByUs("cut off");
        }
        if let Some(unlogged) =
            self.inner.connected_peers.log_throttles.crowded_out.pass("publishers whose places were needed")
        {
            tracing::warn!(
                peer = %publisher.peer,
                principal = publisher.authorization.principal_text(),
                left_s = publisher.place.left_for().unwrap_or_default().as_secs_f64(),
                unread_bytes = route.and_then(unread),
                unlogged,
                "a publisher has left while a subscriber held it up (block), and a newcomer needs its place: what it had sent last is lost. \
                 Raise the limit of connections or descriptors, or find out why the subscriber is slow"
            );
        }
        Ended::ByUs("it has left, and its place was needed")
    }

    async fn serve_subscriber(
        &self,
        session: Session,
        peer: &str,
        (limits, accepts_drop_reports): (PeerLimits, bool),
        authorization: Authorization,
        stop: CancellationToken,
        gives_way: CancellationToken,
    ) -> Ended {
        let inner = &self.inner;
        let config = &inner.config;
        let send_queue =
            SendQueue::with_memory_counter(config.high_water_mark, config.memory.queues().clone());
        // All forwarded messages are within the limits of this proxy. Only a subscriber with lower limits has
        // to be checked.
        let ours = MessageLimits::from(&config.limits);
        let takes = Some(ours.within(&limits)).filter(|takes| *takes != ours);
        let subscriber =
            ConnectedSubscriber::new(self.id(), peer, send_queue, authorization).counting(&config.memory);
        let subscriber = Arc::new(
            subscriber
                .taking(takes)
                .with_drop_reports(accepts_drop_reports)
                .logging(&inner.connected_peers.log_throttles),
        );
        inner.connected_peers.add_subscriber(&subscriber);
        if inner.refuse.is_cancelled() {
            subscriber.send_queue.close();
        }
        let mut handler = SubscriberHandler::new(&inner.table, &subscriber, &config.limits);
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ended::ByUs("stopped"),
            () = subscriber.disconnected.cancelled() => Ended::ByUs("too slow: cut off"),
            () = subscriber.outsized.cancelled() => Ended::OutOfMemory,
            () = subscriber.authorization.revoked.cancelled() => Ended::ByUs("not allowed any more"),
            () = subscriber.authorization.ended_by_operator.cancelled() => Ended::ByUs(BY_OPERATOR),
            () = gives_way.cancelled() => Ended::ByUs(GIVES_WAY),
            never = subscriber.keep_reporting_drops() => match never {},
            never = subscriber.keep_logging() => match never {},
            ended = session.run(&subscriber.send_queue, &mut handler, Duration::from_secs(1)) => ended,
        };
        subscriber.send_queue.close();
        inner.table.change(Change::SubscriberGone(subscriber.id)).await;
        inner.connected_peers.remove_subscriber(&subscriber);
        subscriber.authorization.log_rest(peer);
        ended
    }

    pub(super) fn engine_options(&self, side: Side) -> xmsg_zmtp::Options {
        let config = &self.inner.config;
        let mut limits = config.limits.clone();
        // A subscriber that is busy, or paused, reads nothing and therefore answers no heartbeat. Its
        // slowness is a matter of the policy. A host that is gone is detected by keepalive, or by the session
        // while data is on its way to it.
        let (socket_type, heartbeat_interval) = match side {
            Side::Publishers => (SocketType::Xsub, config.heartbeat_interval),
            Side::Subscribers => (SocketType::Xpub, None),
        };
        if socket_type == SocketType::Xpub {
            // Only subscriptions come from there.
            limits.message_size = limits.subscription_len + 64;
        }
        xmsg_zmtp::Options {
            heartbeat_interval,
            heartbeat_timeout: config.heartbeat_timeout,
            limits,
            ..xmsg_zmtp::Options::new(socket_type)
        }
    }

    /// Returns a number that no connection has. None had it before, unless there were four billion.
    pub(super) fn id(&self) -> u32 {
        loop {
            let number = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
            // The table stores numbers of 32 bits.
            let id = number as u32;
            let is_free = || {
                matches!(self.inner.connected_peers.find(id), (None, None))
                    && self.inner.table.routes().subscriber(id).is_none()
            };
            if u32::try_from(number).is_ok() || (id > 0 && is_free()) {
                return id;
            }
        }
    }
}

fn essentials(peer: Peer) -> (xmsg_zmtp::Version, Option<Principal>, PeerLimits) {
    (peer.version, peer.principal, peer.limits)
}
