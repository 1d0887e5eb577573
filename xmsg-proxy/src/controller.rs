//! The control plane: answers the requests of connections that check whether they are connected.
//!
//! | request, published | answer |
//! |---|---|
//! | `xmsg:control…` · `pub` · *ID* | on the ROUTER, to *ID*: `pub` |
//! | `xmsg:control…` · `sub` · *topic* | published: *topic* · `sub` |
//! | `xmsg:control…` · `rep` · *ID* | on the ROUTER, to *ID*: `rep` |
//!
//! Everything else is counted and ignored.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use xmsg_core::ErrorKind;
use xmsg_core::socket::{Multipart, Publisher, Router, Subscriber};

use crate::switch::Switch;

/// The longest identity that a ROUTER can know (RFC 28).
const IDENTITY_MAX: usize = 255;

/// The longest topic that is confirmed.
const TOPIC_MAX: usize = 4096;
/// Requests answered between two looks at everything else.
const BATCH: usize = 1024;

/// A control request.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Publisher(Bytes),
    Subscription(Bytes),
    Reply(Bytes),
}

impl Request {
    fn read(message: &Multipart) -> Option<Self> {
        let [_, kind, argument] = message.frames() else { return None };
        let argument = argument.clone();
        match &kind[..] {
            b"pub" => is_identity(&argument).then_some(Self::Publisher(argument)),
            b"rep" => is_identity(&argument).then_some(Self::Reply(argument)),
            b"sub" => (argument.len() <= TOPIC_MAX).then_some(Self::Subscription(argument)),
            _ => None,
        }
    }
}

fn is_identity(id: &[u8]) -> bool {
    (1..=IDENTITY_MAX).contains(&id.len())
}

pub(crate) fn is_request(message: &Multipart) -> bool {
    Request::read(message).is_some()
}

/// Answers control requests until it is dropped.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) switch: Switch,
    pub(crate) requests: Subscriber,
    pub(crate) answers: Publisher,
    pub(crate) router: Router,
    pub(crate) ignored: AtomicU64,
}

impl Controller {
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                request = self.requests.recv() => {
                    let Some(request) = request else { return };
                    let mut subscriptions = BTreeSet::new();
                    self.handle(&request, &mut subscriptions);
                    // One settling serves all that have asked by now.
                    for _ in 1..BATCH {
                        match self.requests.recv().now_or_never() {
                            Some(Some(request)) => self.handle(&request, &mut subscriptions),
                            _ => break,
                        }
                    }
                    self.confirm(subscriptions).await;
                }
                // What peers send on their control sockets means nothing, but must not pile up.
                message = self.router.recv() => {
                    if message.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn handle(&self, message: &Multipart, subscriptions: &mut BTreeSet<Bytes>) {
        match Request::read(message) {
            Some(Request::Publisher(id)) => self.answer(&id, [Bytes::from_static(b"pub")].into()),
            Some(Request::Reply(id)) => self.answer(&id, [Bytes::from_static(b"rep")].into()),
            Some(Request::Subscription(topic)) => drop(subscriptions.insert(topic)),
            None => {
                let ignored = self.ignored.fetch_add(1, Ordering::Relaxed) + 1;
                let frames = message.frames().len();
                tracing::debug!(frames, ignored, "not a control request");
            }
        }
    }

    /// Says that from now on nothing published to these topics is missed.
    async fn confirm(&self, subscriptions: BTreeSet<Bytes>) {
        if subscriptions.is_empty() {
            return;
        }
        self.switch.settled().await;
        for topic in subscriptions {
            if let Err(error) = self.answers.publish([topic, Bytes::from_static(b"sub")]).await {
                tracing::debug!(%error, "a subscription could not be confirmed");
            }
        }
    }

    fn answer(&self, id: &[u8], answer: Multipart) {
        match self.router.try_send(id, answer) {
            Ok(()) => {}
            // Its control socket is not there yet, or no longer: it will ask again.
            Err(error) if error.kind() == ErrorKind::Refused => tracing::debug!(%error, "nobody to answer"),
            Err(error) => tracing::debug!(%error, "a control request was not answered"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(frames: &[&'static [u8]]) -> Option<Request> {
        Request::read(&frames.iter().map(|frame| Bytes::from_static(frame)).collect())
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
        for frames in [
            &[&b"xmsg:control"[..]][..],
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
