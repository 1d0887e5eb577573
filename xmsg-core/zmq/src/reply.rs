//! REP: receives requests, and sends each reply over the connection of its request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::hub::Owner;
use crate::link::send_queue::Refused;
use crate::link::source::Source;
use crate::methods::endpoint_methods;
use crate::options::{KnowsPeers, Receives, Sends};
use crate::role::{Role, RoutedRole};
use crate::{EncodedFrames, Multipart, SocketOptions};
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::{Principal, SocketType, encoded_len};

/// The maximum size in bytes of the addresses of devices in front of a request, with [`ADDRESS`] for each.
/// They are kept until the request is answered.
const ENVELOPE_MAX: usize = 4 << 10;
/// The approximate memory of an address beside its text, in bytes.
const ADDRESS: usize = 32;

/// The return path to the sender of a request: its connection, and the addresses that devices in between have
/// added.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReturnPath {
    /// The routing identity of the connection.
    link: Bytes,
    /// The frames in front of the request, including the empty one that ends them.
    envelope: Vec<Bytes>,
}

impl ReturnPath {
    /// Returns an identifier of the connection. It is the same for all paths over one connection.
    #[must_use]
    pub fn peer(&self) -> &Bytes {
        &self.link
    }

    /// Creates the path of a request with these frames in front of it. They are copied, so that a request
    /// that waits for its reply does not keep the memory that it arrived in.
    fn new(link: &Bytes, envelope: &[Bytes]) -> Self {
        let envelope = envelope.iter().map(|frame| Bytes::copy_from_slice(frame));
        Self { link: link.clone(), envelope: envelope.collect() }
    }

    /// Returns the approximate memory of the path in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        envelope_memory(&self.envelope) + size_of::<Self>()
    }
}

/// Returns the approximate memory of these frames in bytes.
fn envelope_memory(envelope: &[Bytes]) -> usize {
    envelope.iter().map(|frame| ADDRESS + frame.len()).sum()
}

/// A socket that answers requests of REQ and DEALER peers. Unlike libzmq's REP, it need not alternate:
/// several requests may be in progress at a time, also of one peer. The identities of peers have no meaning
/// here, so two peers with the same one are both served. Clones share the socket; dropping the last one
/// closes it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use std::time::Duration;
/// use xmsg_zmq::{Replier, Requester, SocketOptions};
/// let replier = Replier::new(SocketOptions::default());
/// let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let requester = Requester::connecting_to(endpoint, SocketOptions::default());
/// let answering = async {
///     let (path, request) = replier.recv().await.unwrap();
///     replier.try_reply(&path, request)
/// };
/// let request = requester.request(["ping"], Duration::from_secs(10));
/// let (reply, answered) = futures::join!(request, answering);
/// assert_eq!(reply?.frames(), ["ping"]);
/// answered
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Replier {
    hub: Arc<Owner>,
    role: Arc<RoutedRole>,
}

impl Sends for Replier {}

impl Receives for Replier {}

impl KnowsPeers for Replier {}

impl Replier {
    /// Creates a replier without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let role = Arc::new(RoutedRole::new(SocketType::Rep));
        Self { hub: Arc::new(Owner::new(role.clone(), options.into_settings())), role }
    }

    endpoint_methods!();

    /// Stops accepting connections at all endpoints. They are free when this returns; existing connections
    /// stay.
    pub fn unbind_all(&self) {
        self.hub.unbind();
    }

    /// Receives the next request and its return path. Returns `None` once the socket is closed. Cancel safe.
    ///
    /// A message without an envelope, or with nothing behind it, is not a request and is ignored. A request
    /// with an envelope of more than about 4 KiB is ignored, too, and counts as a
    /// [violation](SocketOptions::violations).
    pub async fn recv(&self) -> Option<(ReturnPath, Multipart)> {
        loop {
            let (link, message) = std::future::poll_fn(|cx| self.hub.receive_queue.poll_next(cx)).await?;
            let frames = message.frames();
            let end = frames.iter().position(Bytes::is_empty);
            // There has to be a frame behind the one that ends the envelope. libzmq drops other messages,
            // too.
            if let Some((envelope, request)) = end.map(|end| frames.split_at(end + 1))
                && !request.is_empty()
            {
                let size = envelope_memory(envelope);
                if size <= ENVELOPE_MAX {
                    return Some((ReturnPath::new(&link, envelope), request.iter().cloned().collect()));
                }
                self.note_long_envelope(&link, size);
                continue;
            }
            tracing::debug!(
                frames = frames.len(),
                "a message without an envelope, and something behind it, is no request"
            );
        }
    }

    fn note_long_envelope(&self, link: &Bytes, size: usize) {
        let link = self.role.find(link);
        // The peer may have gone since.
        let peer = link.map_or_else(|| "".into(), |link| link.state().name.clone());
        let port = self.role.socket_type();
        self.hub.options.violations.note_long_envelope(&peer, port, size, ENVELOPE_MAX);
    }

    /// Sends a reply without waiting.
    ///
    /// # Errors
    ///
    /// - [`Refused`](ErrorKind::Refused): the peer is gone.
    /// - [`Full`](ErrorKind::Full): the send queue of the peer is full.
    /// - [`TooLarge`](ErrorKind::TooLarge): the reply exceeds our limits, or those that the peer has
    ///   announced. The peer still waits for a reply, so send one that says so.
    /// - [`InvalidMessage`](ErrorKind::InvalidMessage): the reply has no frames.
    pub fn try_reply(&self, path: &ReturnPath, reply: impl Into<Multipart>) -> Result<()> {
        let Some(link) = self.role.find(&path.link) else {
            return Err(Error::new(ErrorKind::Refused, "whoever asked is gone"));
        };
        let reply = reply.into();
        if reply.frames().is_empty() {
            return Err(Error::new(ErrorKind::InvalidMessage, "a reply needs at least one frame"));
        }
        let mut message = path.envelope.clone();
        message.extend_from_slice(reply.frames());
        link.send_queue.try_push(&message).map_err(|refused| match refused {
            Refused::ExceedsLimits => self.hub.exceeds_limits(&link, &message),
            Refused::Full => Error::new(ErrorKind::Full, "whoever asked does not read the replies"),
            Refused::Closed => Error::new(ErrorKind::Refused, "whoever asked is gone"),
        })
    }

    /// Sends a long reply that was encoded step by step, like [`try_reply`](Self::try_reply). Queueing it
    /// takes very little time.
    ///
    /// # Errors
    ///
    /// The same as for [`try_reply`](Self::try_reply).
    pub fn try_reply_encoded(&self, path: &ReturnPath, reply: EncodedFrames) -> Result<()> {
        let Some(link) = self.role.find(&path.link) else {
            return Err(Error::new(ErrorKind::Refused, "whoever asked is gone"));
        };
        if reply.frames() == 0 {
            return Err(Error::new(ErrorKind::InvalidMessage, "a reply needs at least one frame"));
        }
        let size = encoded_len(&path.envelope) + reply.encoded_len();
        let frames = path.envelope.len() + reply.frames();
        link.send_queue.try_push_encoded(&path.envelope, reply).map_err(|refused| match refused {
            Refused::ExceedsLimits => self.hub.exceeds_size(&link, size, frames),
            Refused::Full => Error::new(ErrorKind::Full, "whoever asked does not read the replies"),
            Refused::Closed => Error::new(ErrorKind::Refused, "whoever asked is gone"),
        })
    }

    /// Returns whether the sender of the request is still connected.
    #[must_use]
    pub fn is_connected(&self, path: &ReturnPath) -> bool {
        self.role.find(&path.link).is_some()
    }

    /// Returns the authenticated principal of the sender of the request. Returns `None` without security, or
    /// when the peer is gone.
    #[must_use]
    pub fn principal(&self, path: &ReturnPath) -> Option<Principal> {
        self.role.find(&path.link).and_then(|link| link.state().principal.clone())
    }

    /// Returns the source of the connection of the sender of the request, or `None` if the peer is gone.
    #[must_use]
    pub fn source(&self, path: &ReturnPath) -> Option<Source> {
        self.role.find(&path.link).map(|link| Source::of(&link.state().name))
    }

    /// Ends the connections of peers that the rule in [`SocketOptions::keeps`] does not allow any more. It
    /// ends a few at a time, so that other connections are not delayed. All of them are ending when this
    /// returns.
    pub async fn recheck(&self) {
        self.hub.recheck().await;
    }

    /// Ends the connection of the sender of the request, if it still exists.
    pub fn end_connection(&self, path: &ReturnPath) {
        if let Some(link) = self.role.find(&path.link) {
            link.stop.cancel();
        }
    }

    /// Returns the size in bytes of the replies to all peers that wait to be written.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.hub.links().iter().map(|link| link.send_queue.queued().bytes).sum()
    }

    /// Accepts no more replies, and sends what was accepted for at most `linger`. Returns how many replies
    /// were not sent.
    pub async fn close(&self, linger: Duration) -> usize {
        self.hub.close(linger).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dealer, Reason, Violations};

    #[tokio::test]
    async fn requests_with_long_envelopes_are_passed_over_and_counted() {
        let violations = Violations::default();
        let replier = Replier::new(SocketOptions::default().violations(violations.clone()));
        let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let dealer = Dealer::new(SocketOptions::default());
        dealer.connect(endpoint);
        let addresses = |number: usize, len: usize| vec![Bytes::from(vec![7; len]); number];
        let longest = addresses(1, ENVELOPE_MAX - 2 * ADDRESS);
        for (envelope, text) in [
            (addresses(1, ENVELOPE_MAX), "long"),
            (addresses(ENVELOPE_MAX / ADDRESS, 1), "many"),
            (longest.clone(), "good"),
        ] {
            let message: Vec<_> =
                envelope.into_iter().chain([Bytes::new(), Bytes::from_static(text.as_bytes())]).collect();
            dealer.send(message).await.unwrap();
        }
        let next = tokio::time::timeout(Duration::from_secs(60), replier.recv());
        let (path, request) = next.await.expect("a request").unwrap();
        assert_eq!((&path.envelope[..1], request.frames()), (&longest[..], &[Bytes::from("good")][..]));
        let counts = violations.counts();
        assert_eq!((counts.of(Reason::EnvelopeTooLong), counts.total()), (2, 2));
    }

    /// The envelope of a request is kept, and put in front of its reply (RFC 28).
    #[tokio::test]
    async fn a_reply_goes_back_behind_the_envelope_of_its_request() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let replier = Replier::new(SocketOptions::default());
        let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let dealer = Dealer::connecting_to(endpoint, SocketOptions::default());
        dealer.send(["two", "devices", "", "what", "", "else"]).await.unwrap();
        let (path, request) = tokio::time::timeout(PATIENCE, replier.recv()).await.unwrap().unwrap();
        assert_eq!(request, Multipart::from(["what", "", "else"]));
        replier.try_reply(&path, ["nothing"]).unwrap();
        let reply = tokio::time::timeout(PATIENCE, dealer.recv()).await.unwrap().unwrap();
        assert_eq!(reply, Multipart::from(["two", "devices", "", "nothing"]));
        // The sender of the request may be gone.
        dealer.close(Duration::ZERO).await;
        while replier.peers() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(replier.try_reply(&path, ["late"]).unwrap_err().kind(), ErrorKind::Refused);
    }
}
