//! The link to one upstream. It is kept connected as long as it is wanted, and checked for loops each time.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;
use xmsg_core::text::escaped;
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::Amount;
use xmsg_zmq::link::admission::Place;
use xmsg_zmq::link::reconnect::Backoff;
use xmsg_zmq::link::session::{Ended, Session, now};
use xmsg_zmq::link::transport::Stream;
use xmsg_zmq::lock::lock;
use xmsg_zmtp::{Engine, Peer};

use super::super::authorization::Authorization;
use super::super::ingress::Ingress;
use super::super::publisher::ConnectedPublisher;
use super::super::requests::RequestRates;
use super::super::table::Change;
use super::super::{BY_OPERATOR, Side, Switch};
use super::token::AwaitedToken;
use crate::CONTROL_TOPIC;
use crate::security::Rights;
use crate::upstream::{Upstream, UpstreamState, UpstreamStats};

/// The longest time in which a connection has to be made, including its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest first pause after a connection that failed or ended.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause after connections that failed or ended. A whole site of proxies may wait for one
/// upstream, so pauses grow, and differ.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The longest first pause after a connection that closed a loop. The loop stays until somebody changes
/// settings.
const LOOP_PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause after connections that closed a loop.
const LOOP_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A link that was up for this long was part of no loop. If it closes one after that, the pauses begin with
/// the first one.
const LOOP_FORGOTTEN: Duration = Duration::from_secs(60);
/// The time for which a link waits for its own token before it passes on those of others. It is cut by up to
/// half at random: of the links that close a loop together, one then goes on before the others, and these
/// find the loop.
const FIRST_WAIT: Duration = Duration::from_millis(600);
/// The time for which a link waits between the tokens of others and all other subscriptions. Several links
/// may have passed on tokens at once, and each of them then finds the loop in this time. A token that takes
/// longer ends a link that is up.
const SECOND_WAIT: Duration = Duration::from_millis(300);
/// The number of bytes of an error that are kept for statistics.
const ERROR_MAX: usize = 512;

/// The properties of a publisher to which this proxy has connected, instead of the other way round.
#[derive(Debug)]
pub(in crate::switch) struct Arrival {
    /// The length in bytes of the longest prefix that the other side takes.
    pub(in crate::switch) subscription_len: usize,
    /// The number of messages that were for the other proxy, or for its own clients.
    pub(in crate::switch) control: AtomicU64,
}

/// Returns whether a message belongs to the proxy that it comes from: a control request, or the confirmation
/// of a subscription to a client that asked there. A subscriber here would take the latter for its own.
/// `topic` may be cut, but not within the name of control requests.
pub(in crate::switch) fn is_of_one_hop(topic: &[u8], message: &[u8]) -> bool {
    /// The last frame of a confirmation. It is short, and no frame follows.
    const CONFIRMED: &[u8] = &[0, 3, b's', b'u', b'b'];
    if topic.starts_with(CONTROL_TOPIC) {
        return true;
    }
    let Some(first) = message.strip_suffix(CONFIRMED) else { return false };
    // There is one more frame, which fills the rest.
    match first {
        [1, len, body @ ..] => body.len() == usize::from(*len),
        [3, rest @ ..] => rest
            .split_first_chunk::<8>()
            .is_some_and(|(len, body)| u64::from_be_bytes(*len) == body.len() as u64),
        _ => false,
    }
}

/// The link to one upstream.
#[derive(Debug)]
pub(super) struct Link {
    id: u32,
    upstream: Upstream,
    name: Box<str>,
    connections: AtomicU32,
    /// Cancelled when the upstream is no longer in the settings.
    removed: CancellationToken,
    status: Mutex<Status>,
}

#[derive(Debug)]
struct Status {
    state: UpstreamState,
    since: Instant,
    /// The number of times that the link was up.
    times: u64,
    loops: u64,
    error: Option<String>,
    /// The reason of the last line in the log.
    logged: Option<String>,
    /// The time when it was last up.
    lost: Option<Instant>,
    /// The publisher of the present connection.
    publisher: Option<Arc<ConnectedPublisher>>,
    /// The traffic of earlier connections.
    before: Counted,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    received: Amount,
    control: u64,
    denied: u64,
}

impl Counted {
    fn with(self, publisher: &ConnectedPublisher) -> Self {
        let control = publisher.arrival.as_ref().map_or(0, |own| own.control.load(Ordering::Relaxed));
        Self {
            received: self.received + publisher.received.amount(),
            control: self.control + control,
            denied: self.denied + publisher.authorization.denied(),
        }
    }
}

/// How a connection ended.
enum End {
    Loop,
    Other(Ended),
}

impl Link {
    pub(super) fn new(id: u32, upstream: Upstream) -> Self {
        let status = Status {
            state: UpstreamState::Connecting,
            since: now(),
            times: 0,
            loops: 0,
            error: None,
            logged: None,
            lost: None,
            publisher: None,
            before: Counted::default(),
        };
        Self {
            id,
            name: upstream.to_string().into(),
            upstream,
            connections: AtomicU32::new(0),
            removed: CancellationToken::new(),
            status: Mutex::new(status),
        }
    }

    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Ends the link.
    pub(super) fn remove(&self) {
        self.removed.cancel();
    }

    pub(super) fn stats(&self) -> UpstreamStats {
        let status = lock(&self.status);
        let counted = match &status.publisher {
            Some(publisher) => status.before.with(publisher),
            None => status.before,
        };
        UpstreamStats {
            id: self.id,
            address: self.name.to_string(),
            state: status.state,
            state_for: now().saturating_duration_since(status.since),
            received: counted.received,
            reconnections: status.times.saturating_sub(1),
            loops: status.loops,
            control: counted.control,
            denied: counted.denied,
            error: status.error.clone(),
        }
    }

    fn enter(&self, state: UpstreamState) {
        let mut status = lock(&self.status);
        // A loop lasts until the link is up, or something else is wrong.
        let is_attempt = matches!(state, UpstreamState::Connecting | UpstreamState::Checking);
        if status.state != state && !(is_attempt && status.state == UpstreamState::Loop) {
            (status.state, status.since) = (state, now());
        }
    }

    /// Keeps the link connected until it is no longer wanted, or the switch stops.
    pub(super) async fn keep(self: Arc<Self>, switch: Switch) {
        let refuse = switch.inner.refuse.clone();
        let is_over = || refuse.is_cancelled() || self.removed.is_cancelled();
        let over = async {
            tokio::select! {
                () = refuse.cancelled() => {}
                () = self.removed.cancelled() => {}
            }
        };
        let mut over = std::pin::pin!(over);
        let mut pauses = Backoff::between(PAUSE_MIN, PAUSE_MAX);
        let mut loop_pauses = Backoff::between(LOOP_PAUSE_MIN, LOOP_PAUSE_MAX);
        while !is_over() {
            self.enter(UpstreamState::Connecting);
            let opened = tokio::select! {
                biased;
                () = &mut over => return,
                opened = self.open(&switch) => opened,
            };
            let pause = match opened {
                Err(error) => {
                    let pause = pauses.next_pause();
                    self.failed(&switch, &error, pause);
                    pause
                }
                Ok((session, peer)) => {
                    let since = now();
                    let (end, was_at_work) = self.serve(&switch, session, peer).await;
                    if was_at_work {
                        pauses.reset();
                        if now().saturating_duration_since(since) > LOOP_FORGOTTEN {
                            loop_pauses.reset();
                        }
                    }
                    if is_over() {
                        tracing::info!(address = %self.name, "an upstream was left");
                        return;
                    }
                    match end {
                        End::Loop => {
                            let pause = loop_pauses.next_pause();
                            self.looped(&switch, pause);
                            pause
                        }
                        End::Other(ended) => {
                            let pause = pauses.next_pause();
                            self.ended(&switch, &ended, was_at_work, pause);
                            pause
                        }
                    }
                }
            };
            tokio::select! {
                biased;
                () = &mut over => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn open(&self, switch: &Switch) -> Result<(Session, Peer)> {
        let config = &switch.inner.config;
        let endpoint = self.upstream.endpoint();
        let opening = async {
            let stream = Stream::connect(endpoint, &config.accepted_tcp(), CONNECT_TIMEOUT).await?;
            let mechanism = self.upstream.client().mechanism();
            let engine = Engine::with_mechanism(switch.engine_options(Side::Publishers), mechanism, now());
            let mut session = Session::new(stream, engine)
                .watched(config.heartbeat_interval, config.heartbeat_timeout)
                .with_memory(&config.memory, &self.name);
            let peer = session.handshake().await.map_err(|ended| ended.while_connecting(endpoint))?;
            Ok((session, peer))
        };
        if let Ok(opened) = tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            return opened;
        }
        let what = format!(
            "no answer from {endpoint} within {CONNECT_TIMEOUT:?}: is it a ZeroMQ socket, and does it run?"
        );
        Err(Error::new(ErrorKind::Timeout, what))
    }

    /// Serves a connection to its end. Returns also whether the link was up.
    async fn serve(&self, switch: &Switch, session: Session, peer: Peer) -> (End, bool) {
        let inner = &switch.inner;
        let config = &inner.config;
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let AwaitedToken { token, returned, .. } = &inner.table.own_tokens().await_token(self.id, connection);
        let disconnected = CancellationToken::new();
        let rights = Rights { publish: self.upstream.wanted().to_vec(), ..Rights::default() };
        let authorization = Authorization::fixed(&config.authority, rights);
        let place = Place::of_our_own(disconnected.clone());
        let subscription_len = peer.limits.subscription_len.unwrap_or(usize::MAX);
        let publisher =
            ConnectedPublisher::new(self.id, &self.name, peer.version, authorization, place, disconnected)
                .counting(&config.memory)
                .logging(&inner.connected_peers.log_throttles)
                .arriving(Arrival { subscription_len, control: AtomicU64::new(0) });
        let publisher = Arc::new(publisher);
        let mut first = BytesMut::new();
        publisher.version.write_subscription(&mut first, true, &token.topic());
        publisher.send_snapshot(&first.freeze());
        let asking = RequestRates::new(inner.asking.clone());
        let (table, connected_peers, caches) = (&inner.table, &inner.connected_peers, &inner.caches);
        let mut ingress =
            Ingress::new(&publisher, table, connected_peers, asking, caches, &inner.watch, config);
        connected_peers.add_publisher(&publisher);
        lock(&self.status).publisher = Some(publisher.clone());
        self.enter(UpstreamState::Checking);
        if inner.refuse.is_cancelled() {
            publisher.send_queue.close();
        }
        let ended = tokio::select! {
            biased;
            () = inner.stop.cancelled() => End::Other(Ended::ByUs("stopped")),
            () = returned.cancelled() => End::Loop,
            () = self.removed.cancelled() => End::Other(Ended::ByUs("no upstream any more")),
            () = publisher.disconnected.cancelled() => End::Other(Ended::ByUs("cut off: it does not read what is subscribed to")),
            () = publisher.outsized.cancelled() => End::Other(Ended::OutOfMemory),
            () = publisher.authorization.ended_by_operator.cancelled() => End::Other(Ended::ByUs(BY_OPERATOR)),
            never = self.join(switch, &publisher) => match never {},
            ended = session.run(&publisher.send_queue, &mut ingress, Duration::MAX) => End::Other(ended),
        };
        drop(ingress);
        publisher.send_queue.close();
        connected_peers.remove_publisher(&publisher);
        publisher.authorization.log_rest(&publisher.peer);
        {
            let mut status = lock(&self.status);
            status.before = status.before.with(&publisher);
            status.publisher = None;
        }
        table.change(Change::PublisherGone(publisher.id)).await;
        let was_at_work = lock(&self.status).state == UpstreamState::Connected;
        (ended, was_at_work)
    }

    /// Joins the publishers, once it is known that this closes no loop.
    async fn join(&self, switch: &Switch, publisher: &Arc<ConnectedPublisher>) -> Infallible {
        let table = &switch.inner.table;
        tokio::time::sleep(Backoff::between(FIRST_WAIT, FIRST_WAIT).next_pause()).await;
        table.change(Change::TokensWanted(publisher.clone())).await;
        tokio::time::sleep(SECOND_WAIT).await;
        table.change(Change::PublisherJoined(publisher.clone())).await;
        self.enter(UpstreamState::Connected);
        let away = {
            let mut status = lock(&self.status);
            status.times += 1;
            status.error = None;
            status.logged = None;
            status.lost.take().map(|lost| now().saturating_duration_since(lost).as_secs_f64())
        };
        if let Some(unlogged) = switch.inner.links.lines.pass("upstreams that were connected") {
            tracing::info!(address = %self.name, version = ?publisher.version, away_s = away, unlogged, "an upstream is connected");
        }
        std::future::pending().await
    }

    /// Notes that no connection was made.
    fn failed(&self, switch: &Switch, error: &Error, pause: Duration) {
        self.enter(UpstreamState::Disconnected);
        let reason = shortened(&error.with_causes().to_string());
        if self.is_new_reason(&reason)
            && let Some(unlogged) = switch.inner.links.lines.pass("upstreams that can't be connected to")
        {
            // An error of the peer's side says itself what is wrong.
            let hint = (error.kind() == ErrorKind::NotAllowed)
                .then_some("see server_key, key_file, user and password_file of its [[upstream]]");
            tracing::warn!(address = %self.name, %reason, hint, ?pause, unlogged, "cannot connect to an upstream; it is tried again");
        } else {
            tracing::debug!(address = %self.name, %reason, ?pause, "cannot connect to an upstream");
        }
    }

    /// Notes that a connection has ended.
    fn ended(&self, switch: &Switch, ended: &Ended, was_at_work: bool, pause: Duration) {
        self.enter(UpstreamState::Disconnected);
        let reason = shortened(&ended.to_string());
        if was_at_work {
            lock(&self.status).lost = Some(now());
        }
        if self.is_new_reason(&reason)
            && let Some(unlogged) = switch.inner.links.lines.pass("upstreams whose connection ended")
        {
            tracing::warn!(
                address = %self.name,
                %reason,
                ?pause,
                unlogged,
                "the connection to an upstream has ended: what is published there is missed until it is back"
            );
        }
    }

    /// Notes that the connection would close a loop.
    fn looped(&self, switch: &Switch, pause: Duration) {
        self.enter(UpstreamState::Loop);
        {
            let mut status = lock(&self.status);
            status.loops += 1;
            status.error = Some("what it would bring comes from this proxy itself".to_owned());
        }
        if let Some(unlogged) = switch.inner.links.loops.pass("upstreams that close a loop") {
            tracing::warn!(
                address = %self.name,
                ?pause,
                unlogged,
                "an upstream gets its messages, directly or over others, from this proxy: the link is not used, so that nothing goes round for \
                 ever. Take one of the upstreams of the loop out of the settings"
            );
        }
    }

    /// Notes the reason why there is no connection. Returns `false` if the log has said so already.
    fn is_new_reason(&self, reason: &str) -> bool {
        let mut status = lock(&self.status);
        status.error = Some(reason.to_owned());
        status.logged.replace(reason.to_owned()).is_none_or(|logged| logged != reason)
    }
}

/// Returns an error as it is shown. It may contain text from the other side.
fn shortened(text: &str) -> String {
    escaped(text).chars().take(ERROR_MAX / 4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(frames: &[&[u8]]) -> BytesMut {
        let mut wire = BytesMut::new();
        xmsg_zmtp::encode_message(&mut wire, frames);
        wire
    }

    #[test]
    fn requests_and_confirmations_of_the_other_proxy_go_no_further() {
        let long = vec![b'x'; 300];
        for (frames, expected) in [
            (&[&b"xmsg:control:sub"[..], b"sub", b"a"][..], true),
            (&[b"a", b"sub"], true),
            (&[b"", b"sub"], true),
            (&[&long, b"sub"], true),
            (&[b"a", b"sub", b""], false),
            (&[b"a", b"meta", b"sub"], false),
            (&[b"a", b"su"], false),
            (&[b"sub"], false),
            (&[b"a\x00\x03sub"], false),
            (&[&long, &long, b"sub"], false),
        ] {
            let wire = message(frames);
            assert_eq!(is_of_one_hop(frames[0], &wire), expected, "{frames:?}");
        }
    }

    #[test]
    fn a_loop_is_shown_until_the_link_is_at_work() {
        let link = Link::new(1, "daq".parse().unwrap());
        let states = [
            (UpstreamState::Loop, UpstreamState::Loop),
            (UpstreamState::Connecting, UpstreamState::Loop),
            (UpstreamState::Checking, UpstreamState::Loop),
            (UpstreamState::Disconnected, UpstreamState::Disconnected),
            (UpstreamState::Checking, UpstreamState::Checking),
            (UpstreamState::Connected, UpstreamState::Connected),
        ];
        for (entered, shown) in states {
            link.enter(entered);
            assert_eq!(link.stats().state, shown);
        }
    }
}
