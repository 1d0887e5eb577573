//! Control requests on their way from ingresses to the controller that answers them.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use xmsg_core::control::{Right, RightsRequest};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::link::session::now;
use xmsg_zmq::link::source::Source;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::lock::lock;
use xmsg_zmq::security::Principal;

use super::publisher::ConnectedPublisher;
use super::token_bucket::TokenBucket;
use crate::CONTROL_TOPIC;

/// The length in bytes of the longest identity that a ROUTER can know (RFC 28).
const IDENTITY_MAX: usize = 255;
/// The length in bytes of the longest topic that is confirmed.
const TOPIC_MAX: usize = 4096;
/// The number of requests that wait. A client whose request finds no room in a flood asks again.
const WAITING: usize = 4096;
/// The number of requests of one connection that wait. Its next one waits for a place before it is passed on,
/// so that a few hundred connections that ask without a pause leave room for the first request of another.
const WAITING_OF_CONNECTION: usize = 8;
/// The longest time for which a request waits for a place. Then it is dropped.
const PLACE_PATIENCE: Duration = Duration::from_secs(1);
/// The number of confirmations of subscriptions that one connection may ask for in a second. Each is sent to
/// all who subscribed to the topic.
const CONFIRMATIONS_PER_SECOND: f64 = 5_000.0;
/// The number of other requests in a second. A client that has each message confirmed asks often.
const OTHERS_PER_SECOND: f64 = 50_000.0;
/// The number of requests for statistics in a second. Their answers may be long.
const LOOKS_PER_SECOND: f64 = 10.0;
/// The longest time for which a client that asks for statistics too often has to wait.
const LOOKS_PAUSE: Duration = Duration::from_secs(1);

/// A control request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A publisher asks whether it is connected. The value is its identity.
    Publisher(Bytes),
    /// A subscriber asks whether its subscription is live. The value is the topic.
    Subscription(Bytes),
    /// A client asks whether a right of it applies to a topic. The values are the identity that waits for the
    /// answer, the right, and the topic.
    Rights(Bytes, Right, Bytes),
    /// The third kind of the protocol, which peers know and do not use. The value is an identity.
    Reply(Bytes),
    /// A client asks for the statistics of the proxy. The value is its identity.
    Stats(Bytes),
}

impl Request {
    /// Reads the frames of a message to the control topic.
    pub(crate) fn read(frames: impl IntoIterator<Item = Bytes>) -> Option<Self> {
        let mut frames = frames.into_iter().skip(1);
        let (kind, argument) = (frames.next()?, frames.next()?);
        if frames.next().is_some() {
            return None;
        }
        match &kind[..] {
            b"pub" => is_identity(&argument).then_some(Self::Publisher(argument)),
            b"rep" => is_identity(&argument).then_some(Self::Reply(argument)),
            b"stats" => is_identity(&argument).then_some(Self::Stats(argument)),
            b"sub" => (argument.len() <= TOPIC_MAX).then_some(Self::Subscription(argument)),
            _ => {
                let (identity, right, topic) = RightsRequest::read(&kind, &argument)?;
                let is_good = is_identity(&identity) && topic.len() <= TOPIC_MAX;
                is_good.then_some(Self::Rights(identity, right, topic))
            }
        }
    }
}

fn is_identity(id: &[u8]) -> bool {
    (1..=IDENTITY_MAX).contains(&id.len())
}

/// A connection that sent a request.
#[derive(Clone, Debug)]
pub struct Requester(Arc<ConnectedPublisher>);

impl Requester {
    /// Returns the identity that it has proved.
    #[must_use]
    pub fn principal(&self) -> Option<&Arc<Principal>> {
        self.0.authorization.principal()
    }

    /// Returns the number of the connection.
    pub(crate) fn id(&self) -> u32 {
        self.0.id
    }

    /// Returns the source of the connection.
    pub(crate) fn source(&self) -> &Source {
        &self.0.source
    }

    /// Charges the connection for an answer to this many subscribers. Returns how long it has to wait before
    /// its next request.
    pub(crate) fn charge(&self, recipients: usize, now: Instant) -> Duration {
        lock(&self.0.recipients).take(recipients as f64, now)
    }

    /// Returns whether it may see who is connected and what flows. Without credentials, clients of this
    /// machine may.
    #[must_use]
    pub fn may_inspect(&self) -> bool {
        let ConnectedPublisher { authorization, peer, .. } = &*self.0;
        let may = authorization.rights().is_some_and(|rights| rights.inspect)
            && (authorization.principal().is_some() || is_of_this_machine(peer));
        if !may {
            authorization.deny(peer, "inspect", CONTROL_TOPIC, 1);
        }
        may
    }

    /// Returns whether it has this right. Asking alone does not count as a denial.
    pub(crate) fn may(&self, right: Right, topic: &[u8]) -> bool {
        let rights = self.0.authorization.rights();
        rights.is_some_and(|rights| match right {
            Right::Publish => rights.may_publish(topic),
            Right::Subscribe => rights.may_subscribe(topic),
        })
    }

    /// Returns whether it may subscribe to this prefix. A denial is counted, and logged now and then.
    #[must_use]
    pub fn may_subscribe(&self, prefix: &[u8]) -> bool {
        self.0.authorization.may_subscribe(&self.0.peer, "have a subscription confirmed", prefix)
    }
}

/// Returns whether a peer with this name runs on this machine. Clients come over TCP, so that their names are
/// addresses. Another name is that of an upstream, which may be anywhere.
fn is_of_this_machine(peer: &str) -> bool {
    peer.parse::<SocketAddr>().is_ok_and(|peer| peer.ip().to_canonical().is_loopback())
}

#[cfg(test)]
impl Requester {
    /// Creates a requester with this number and address, for tests.
    pub(crate) fn of_test(id: u32, peer: &str) -> Self {
        Self(Arc::new(ConnectedPublisher::of_test(id, peer)))
    }
}

/// Control requests in the order in which they came.
#[derive(Debug)]
pub struct ControlRequests(mpsc::Receiver<WaitingRequest>);

impl ControlRequests {
    /// Returns the next request and who sent it, or `None` once the switch has ended. The request is `None`
    /// for a message to the control topic that is none. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<(Requester, Option<Request>)> {
        let WaitingRequest { requester, request, place } = self.0.recv().await?;
        drop(place);
        Some((requester, request))
    }
}

/// A request that waits for the controller.
#[derive(Debug)]
struct WaitingRequest {
    requester: Requester,
    request: Option<Request>,
    /// One of the places of its connection, which is free again once the controller takes the request.
    place: OwnedSemaphorePermit,
}

/// The end of the channel into which ingresses put control requests.
#[derive(Clone, Debug)]
pub(super) struct RequestSender {
    sender: mpsc::Sender<WaitingRequest>,
    counts: Arc<Counts>,
}

/// The number of requests so far, and of those that found no room.
#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    lost: AtomicU64,
    log: Throttle,
    /// The number of answers that could not be sent.
    unsent: AtomicU64,
    unsent_log: Throttle,
}

pub(super) fn channel() -> (RequestSender, ControlRequests) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (RequestSender { sender, counts: Arc::default() }, ControlRequests(receiver))
}

impl RequestSender {
    /// Returns how many requests came, and how many of these were lost.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.counts.asked.load(Ordering::Relaxed), self.counts.lost.load(Ordering::Relaxed))
    }

    /// Returns how many answers could not be sent.
    pub(super) fn answers_lost(&self) -> u64 {
        self.counts.unsent.load(Ordering::Relaxed)
    }

    fn send(
        &self,
        publisher: &Arc<ConnectedPublisher>,
        request: Option<Request>,
        place: Option<OwnedSemaphorePermit>,
    ) {
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
        let requester = Requester(publisher.clone());
        let Some(place) = place else { return self.lose(&requester) };
        if let Err(unsent) = self.sender.try_send(WaitingRequest { requester, request, place }) {
            self.lose(&unsent.into_inner().requester);
        }
    }

    /// Counts a request that is not answered.
    pub(super) fn lose(&self, requester: &Requester) {
        let lost_in_all = self.counts.lost.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(unlogged) = self.counts.log.pass("control requests that were dropped") {
            tracing::warn!(
                peer = %requester.0.peer,
                lost_in_all,
                unlogged,
                "control requests come faster than they can be answered: one was dropped. Clients ask again; do many connect at once?"
            );
        }
    }
}

impl RequestSender {
    /// Counts an answer that can't be sent. `to` is the receiver. If it is not connected, `why` is `None`,
    /// and nothing is logged.
    pub(super) fn lose_answer(&self, to: &dyn Display, why: Option<&str>) {
        let lost_in_all = self.counts.unsent.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(why) = why else {
            return tracing::debug!(%to, lost_in_all, "an answer to a control request found nobody");
        };
        if let Some(unlogged) =
            self.counts.unsent_log.pass("answers to control requests that could not be sent")
        {
            tracing::warn!(%to, why, lost_in_all, unlogged, "an answer to a control request could not be sent");
        }
    }
}

/// Limits how fast one connection may ask, by a token bucket for each kind of request. A connection that asks
/// faster is read from more slowly.
#[derive(Debug)]
pub(super) struct RequestRates {
    sender: RequestSender,
    confirmations: TokenBucket,
    others: TokenBucket,
    looks: TokenBucket,
    /// The places for requests of this connection that wait.
    places: Arc<Semaphore>,
}

impl RequestRates {
    pub(super) fn new(sender: RequestSender) -> Self {
        Self {
            sender,
            confirmations: TokenBucket::new(CONFIRMATIONS_PER_SECOND),
            others: TokenBucket::new(OTHERS_PER_SECOND),
            looks: TokenBucket::new(LOOKS_PER_SECOND),
            places: Arc::new(Semaphore::new(WAITING_OF_CONNECTION)),
        }
    }

    /// Passes on the request that the frames of a message contain, once fewer than
    /// [`WAITING_OF_CONNECTION`] of this connection wait. Returns how long the connection has to wait before
    /// its next request.
    pub(super) async fn ask(
        &mut self,
        publisher: &Arc<ConnectedPublisher>,
        frames: impl IntoIterator<Item = Bytes>,
    ) -> Duration {
        // These are copies: a request that waits must not keep the slab that it came in.
        let copies = frames.into_iter().map(|frame| Bytes::copy_from_slice(&frame));
        let request = Request::read(copies);
        let bucket = match request {
            Some(Request::Subscription(_)) => &mut self.confirmations,
            Some(Request::Stats(_)) => &mut self.looks,
            _ => &mut self.others,
        };
        let wait = bucket.take(1.0, now());
        if matches!(request, Some(Request::Stats(_))) && !wait.is_zero() {
            // The answer may be long, and would not differ from the last one.
            self.sender.lose(&Requester(publisher.clone()));
            return wait.min(LOOKS_PAUSE);
        }
        let place = Deadline::after(PLACE_PATIENCE).limit(self.places.clone().acquire_owned()).await;
        self.sender.send(publisher, request, place.ok().and_then(Result::ok));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(frames: &[&'static [u8]]) -> Option<Request> {
        Request::read(frames.iter().map(|frame| Bytes::from_static(frame)))
    }

    #[test]
    fn without_security_only_clients_of_this_machine_may_inspect() {
        for (peer, may) in [
            ("127.0.0.1:5", true),
            ("127.9.9.9:5", true),
            ("[::1]:5", true),
            ("[::ffff:127.0.0.1]:5", true),
            ("192.0.2.1:5", false),
            ("[::ffff:192.0.2.1]:5", false),
            ("[2001:db8::1]:5", false),
            ("[fe80::1%2]:5", false),
            ("0.0.0.0:5", false),
            ("localhost:7772", false),
            ("ipc:///run/proxy", false),
            ("/run/proxy", false),
            ("", false),
        ] {
            assert_eq!(Requester::of_test(1, peer).may_inspect(), may, "{peer}");
        }
    }

    #[test]
    fn requests_have_three_frames_and_a_known_type() {
        assert_eq!(
            read(&[b"xmsg:control:con", b"pub", b"412300001"]),
            Some(Request::Publisher(Bytes::from_static(b"412300001")))
        );
        assert_eq!(read(&[b"xmsg:control", b"sub", b""]), Some(Request::Subscription(Bytes::new())));
        assert_eq!(
            read(&[b"xmsg:control", b"rep", &[0xff]]),
            Some(Request::Reply(Bytes::from_static(&[0xff])))
        );
        assert_eq!(
            read(&[b"xmsg:control:stats", b"stats", b"4"]),
            Some(Request::Stats(Bytes::from_static(b"4")))
        );
        let rights = |right| {
            let (id, topic) = (Bytes::from_static(b"412300001"), Bytes::from_static(b"a:b"));
            Some(Request::Rights(id, right, topic))
        };
        assert_eq!(read(&[b"xmsg:control:may", b"may-pub", b"412300001:a:b"]), rights(Right::Publish));
        assert_eq!(read(&[b"xmsg:control:may", b"may-sub", b"412300001:a:b"]), rights(Right::Subscribe));
        for frames in [
            &[&b"xmsg:control"[..]][..],
            &[b"xmsg:control:may", b"may-pub", b"412300001"],
            &[b"xmsg:control:may", b"may-pub", b":a"],
            &[b"xmsg:control:may", b"may-do", b"1:a"],
            &[b"xmsg:control", b"pub"],
            &[b"xmsg:control", b"pub", b"1", b"2"],
            &[b"xmsg:control", b"PUB", b"1"],
            &[b"xmsg:control", b"pub", b""],
            &[b"xmsg:control", b"pub", &[b'9'; 300]],
        ] {
            assert_eq!(read(frames), None, "{frames:?}");
        }
    }
}
