//! Control requests on their way from ingresses to whoever answers them.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use xmsg_core::control::{Right, RightsRequest};
use xmsg_zmq::link::session::now;
use xmsg_zmq::link::source::Source;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::lock::lock;
use xmsg_zmq::security::Principal;

use super::bucket::Bucket;
use super::publisher::Publisher;
use crate::CONTROL_TOPIC;

/// The longest identity that a ROUTER can know (RFC 28).
const IDENTITY_MAX: usize = 255;
/// The longest topic that is confirmed.
const TOPIC_MAX: usize = 4096;
/// Requests that wait. One that comes in a flood and finds no room is asked again.
const WAITING: usize = 4096;
/// Confirmations of subscriptions that one connection may ask for in a second: each is sent to everybody who
/// is subscribed.
const CONFIRMATIONS_PER_SECOND: f64 = 5_000.0;
/// Other requests in a second: whoever has each message confirmed asks often.
const OTHERS_PER_SECOND: f64 = 50_000.0;
/// Looks at the proxy in a second: an answer may be long.
const LOOKS_PER_SECOND: f64 = 10.0;
/// How long whoever looks too often has to wait at most.
const LOOKS_PAUSE: Duration = Duration::from_secs(1);

/// A control request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A publisher asks whether it is connected: its identity.
    Publisher(Bytes),
    /// Somebody asks whether a subscription is live: its topic.
    Subscription(Bytes),
    /// Somebody asks whether it may do this: the identity that waits for the answer, and the topic.
    Rights(Bytes, Right, Bytes),
    /// The third kind, which peers know and do not use: an identity.
    Reply(Bytes),
    /// Somebody asks who is connected and what flows: its identity.
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

/// A connection that asked.
#[derive(Clone, Debug)]
pub struct Requester(Arc<Publisher>);

impl Requester {
    /// Who it has proved to be.
    #[must_use]
    pub fn principal(&self) -> Option<&Arc<Principal>> {
        self.0.grant.who()
    }

    /// The number of the connection.
    pub(crate) fn id(&self) -> u32 {
        self.0.id
    }

    /// Where it comes from.
    pub(crate) fn source(&self) -> &Source {
        &self.0.source
    }

    /// So many subscribers were told what it had asked for. Returns how long it has to wait for the next
    /// time.
    pub(crate) fn charge(&self, recipients: usize, now: Instant) -> Duration {
        lock(&self.0.recipients).take(recipients as f64, now)
    }

    /// Whether it may see who is connected and what flows. Without credentials, those on this machine may.
    #[must_use]
    pub fn may_inspect(&self) -> bool {
        let Publisher { grant, peer, .. } = &*self.0;
        let is_near =
            || peer.parse::<SocketAddr>().map_or(true, |peer| peer.ip().to_canonical().is_loopback());
        let may = grant.rights().is_some_and(|rights| rights.inspect) && (grant.who().is_some() || is_near());
        if !may {
            grant.deny(peer, "inspect", CONTROL_TOPIC, 1);
        }
        may
    }

    /// Whether it may do this, as far as it only asks.
    pub(crate) fn may(&self, right: Right, topic: &[u8]) -> bool {
        let rights = self.0.grant.rights();
        rights.is_some_and(|rights| match right {
            Right::Publish => rights.may_publish(topic),
            Right::Subscribe => rights.may_subscribe(topic),
        })
    }

    /// Whether it may subscribe to this prefix. That it may not is counted, and written into the log now and
    /// then.
    #[must_use]
    pub fn may_subscribe(&self, prefix: &[u8]) -> bool {
        self.0.grant.may_subscribe(&self.0.peer, "have a subscription confirmed", prefix)
    }
}

#[cfg(test)]
impl Requester {
    /// One with this number and address, for a test.
    pub(crate) fn of_test(id: u32, peer: &str) -> Self {
        Self(Arc::new(Publisher::of_test(id, peer)))
    }
}

/// Requests in the order in which they came; `None` for what is none.
pub type ControlRequests = mpsc::Receiver<(Requester, Option<Request>)>;

/// Where ingresses put control requests in.
#[derive(Clone, Debug)]
pub(super) struct RequestSender {
    sender: mpsc::Sender<(Requester, Option<Request>)>,
    counts: Arc<Counts>,
}

/// Requests so far, and those that found no room.
#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    lost: AtomicU64,
    log: Throttle,
    /// Answers that could not be sent.
    unsent: AtomicU64,
    unsent_log: Throttle,
}

pub(super) fn channel() -> (RequestSender, ControlRequests) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (RequestSender { sender, counts: Arc::default() }, receiver)
}

impl RequestSender {
    /// How many came, and how many of these were lost.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.counts.asked.load(Ordering::Relaxed), self.counts.lost.load(Ordering::Relaxed))
    }

    /// How many answers could not be sent.
    pub(super) fn answers_lost(&self) -> u64 {
        self.counts.unsent.load(Ordering::Relaxed)
    }

    fn send(&self, publisher: &Arc<Publisher>, request: Option<Request>) {
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
        if let Err(unsent) = self.sender.try_send((Requester(publisher.clone()), request)) {
            let (requester, _) = unsent.into_inner();
            self.lose(&requester);
        }
    }

    /// Counts one that is not answered.
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
    /// Counts an answer that can't be sent. `to` is whoever was to get it, `None`: it is not there, and
    /// nobody is told.
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

/// How fast one connection may ask: by a token bucket for each kind, which holds what a second brings.
/// Whoever asks faster is read from more slowly.
#[derive(Debug)]
pub(super) struct Asking {
    sender: RequestSender,
    confirmations: Bucket,
    others: Bucket,
    looks: Bucket,
}

impl Asking {
    pub(super) fn new(sender: RequestSender) -> Self {
        Self {
            sender,
            confirmations: Bucket::new(CONFIRMATIONS_PER_SECOND),
            others: Bucket::new(OTHERS_PER_SECOND),
            looks: Bucket::new(LOOKS_PER_SECOND),
        }
    }

    /// Passes on what the frames of a message ask for. Returns how long the connection is to wait.
    pub(super) fn ask(
        &mut self,
        publisher: &Arc<Publisher>,
        frames: impl IntoIterator<Item = Bytes>,
    ) -> Duration {
        // Copies: what waits is not to keep the slab that it came in.
        let copies = frames.into_iter().map(|frame| Bytes::copy_from_slice(&frame));
        let request = Request::read(copies);
        let bucket = match request {
            Some(Request::Subscription(_)) => &mut self.confirmations,
            Some(Request::Stats(_)) => &mut self.looks,
            _ => &mut self.others,
        };
        let wait = bucket.take(1.0, now());
        if matches!(request, Some(Request::Stats(_))) && !wait.is_zero() {
            // Its answer may be long, and would be no other than the last one.
            self.sender.lose(&Requester(publisher.clone()));
            return wait.min(LOOKS_PAUSE);
        }
        self.sender.send(publisher, request);
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
