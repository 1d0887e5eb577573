//! REQ: a request, its reply, the next request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::hub::{LastEnd, Link, Owner, SocketEvent, SocketEvents};
use super::outbox::Refused;
use super::{Endpoint, Multipart, SocketOptions};
use crate::zmtp::{Limited, MessageLimits, SocketType, Violation};
use crate::{Error, ErrorKind, Result};

/// The longest pause before a request is sent again over a new connection.
const RESEND_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A socket that sends requests to one REP or ROUTER peer, one after another, and hands out their replies.
/// Clones share it: requests of several tasks queue, first come, first served.
///
/// A request that times out, or whose future is dropped, takes its connection with it, so that a late reply can't be
/// taken for that of the next request, which finds a new connection. A connection that breaks before the reply is made anew, and
/// the request is sent again while there is time: it may be carried out twice, so let it be one that does no harm then.
#[derive(Clone, Debug)]
pub struct Requester {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    options: SocketOptions,
    /// Whose turn it is. Waiting for it is fair.
    turn: Semaphore,
    /// The connection, while nobody has it. Whoever has the turn takes it, and gives it back if it is clean.
    idle: Mutex<Option<Live>>,
    /// What the peer takes, as it told last.
    limits: Mutex<MessageLimits>,
}

impl Inner {
    /// The connection that nobody has, or a new one, which takes what the peer has told last that it takes.
    fn live(&self) -> Live {
        let idle = self.idle().take();
        idle.unwrap_or_else(|| {
            let live = Live::connect(self);
            let known = *self.limits();
            drop(live.link.outbox.limit(known));
            live
        })
    }

    fn limits(&self) -> MutexGuard<'_, MessageLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Option<Live>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requester {
    /// A requester that connects with its first request.
    #[must_use]
    pub fn new(endpoint: Endpoint, options: SocketOptions) -> Self {
        // A connection that is given up has nothing more to say.
        let options = SocketOptions { linger: Duration::ZERO, ..options };
        let limits = Mutex::new(options.send_limits());
        let inner = Inner { endpoint, options, turn: Semaphore::new(1), idle: Mutex::default(), limits };
        Self { inner: Arc::new(inner) }
    }

    /// Sends a request and returns its reply. `timeout` counts from the call: waiting for one's turn and connecting
    /// included. An error of kind [`Timeout`](ErrorKind::Timeout) says that there was no reply in time,
    /// [`Refused`](ErrorKind::Refused) that there was no connection either, [`Closed`](ErrorKind::Closed) that the requester
    /// was closed.
    ///
    /// What is too large is not sent again: [`TooLarge`](ErrorKind::TooLarge) says that the request is above our limits or those that the peer
    /// has told; that a peer that has told none ended the connection twice in the middle of it; or that the reply is above our limits.
    /// A reply that breaks the protocol is one of kind [`Protocol`](ErrorKind::Protocol). After either kind of reply the request may
    /// have been carried out.
    pub async fn request(&self, message: impl Into<Multipart>, timeout: Duration) -> Result<Multipart> {
        let deadline = Instant::now() + timeout;
        let inner = &*self.inner;
        let turn = match tokio::time::timeout_at(deadline, inner.turn.acquire()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(Error::new(ErrorKind::Closed, "the requester is closed")),
            Err(_) => return Err(self.no_reply(timeout, "other requests are waiting before this one", None)),
        };
        let message = message.into();
        if message.frames().is_empty() {
            return Err(Error::new(ErrorKind::InvalidMessage, "a request needs at least one frame"));
        }
        let mut envelope = vec![Bytes::new()];
        envelope.extend_from_slice(message.frames());
        let mut failure = None;
        let mut cuts = 0;
        let mut pause = inner.options.reconnect_min.min(RESEND_PAUSE_MAX);
        let exchange = async {
            loop {
                // Held here, not in `inner`: dropping this future drops the connection.
                let mut live = inner.live();
                let done = live.exchange(&envelope, &mut failure).await;
                *inner.limits() = live.link.outbox.limits();
                match done {
                    Ok(reply) => {
                        *inner.idle() = Some(live);
                        return Ok(reply);
                    }
                    Err(Unanswered::Refused(error)) => {
                        // Nothing was sent, so that the connection is clean.
                        *inner.idle() = Some(live);
                        return Err(error);
                    }
                    Err(Unanswered::Unreadable(violation)) => return Err(self.unreadable(violation)),
                    Err(Unanswered::CutOff) if cuts > 0 => return Err(self.cut_off(&envelope)),
                    Err(Unanswered::CutOff) => cuts += 1,
                    Err(Unanswered::Broken) => {}
                }
                drop(live);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RESEND_PAUSE_MAX);
            }
        };
        let reply = tokio::time::timeout_at(deadline, exchange).await;
        drop(turn);
        reply.unwrap_or_else(|_| Err(self.no_reply(timeout, "is it running there?", failure)))
    }

    /// Where the requests go.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Ends the connection; requests that wait for their turn fail.
    pub async fn close(&self) {
        self.inner.turn.close();
        let idle = self.inner.idle().take();
        if let Some(live) = idle {
            live.hub.close(Duration::ZERO).await;
        }
    }

    fn cut_off(&self, request: &[Bytes]) -> Error {
        let size = crate::zmtp::encoded_len(request);
        let what = format!(
            "{} has ended the connection twice in the middle of a request of {size} bytes: is it above a limit there?",
            self.inner.endpoint
        );
        Error::new(ErrorKind::TooLarge, what)
    }

    fn unreadable(&self, violation: Violation) -> Error {
        let (kind, what) = match &violation {
            Violation::TooLarge { what: Limited::Message | Limited::Frames | Limited::Box, .. } => {
                (ErrorKind::TooLarge, "is larger than this socket takes")
            }
            _ => (ErrorKind::Protocol, "breaks the protocol"),
        };
        let what = format!("the reply from {} {what}: {violation}", self.inner.endpoint);
        Error::new(kind, what).with_source(violation)
    }

    fn no_reply(&self, timeout: Duration, hint: &str, failure: Option<Failure>) -> Error {
        let Inner { endpoint, .. } = &*self.inner;
        let what = format!("no reply from {endpoint} within {} ms: {hint}", timeout.as_millis());
        match failure {
            Some(Failure { connected: false, error }) => Error::new(error.kind(), what).with_source(error),
            Some(Failure { error, .. }) => Error::new(ErrorKind::Timeout, what).with_source(error),
            None => Error::new(ErrorKind::Timeout, what),
        }
    }
}

/// What last went wrong with the connection.
#[derive(Debug)]
struct Failure {
    connected: bool,
    error: Error,
}

/// A connection, or one in the making.
#[derive(Debug)]
struct Live {
    hub: Owner,
    link: Arc<Link>,
    events: SocketEvents,
}

impl Live {
    fn connect(inner: &Inner) -> Self {
        let hub = Owner::new(SocketType::Req, inner.options.clone());
        let events = hub.events();
        let link = hub.connect(inner.endpoint.clone());
        Self { hub, link, events }
    }

    /// Sends the request and waits for the reply.
    async fn exchange(
        &mut self,
        request: &[Bytes],
        failure: &mut Option<Failure>,
    ) -> Result<Multipart, Unanswered> {
        // Since the last request the connection may have been lost and made anew, and what came unasked is no reply.
        while self.events.next().now_or_never().flatten().is_some() {}
        while receive(&self.hub).now_or_never().flatten().is_some() {}
        self.link.outbox.push(request).await.map_err(|refused| match refused {
            Refused::Unfit => Unanswered::Refused(self.hub.unfit(&self.link, request)),
            Refused::Full | Refused::Closed => Unanswered::Broken,
        })?;
        loop {
            tokio::select! {
                biased;
                message = receive(&self.hub) => {
                    let frames = message.ok_or(Unanswered::Broken)?;
                    // Anything without the envelope is no reply: RFC 28 has it discarded.
                    if let [first, reply @ ..] = frames.frames() && first.is_empty() {
                        return Ok(reply.iter().cloned().collect());
                    }
                }
                event = self.events.next() => match event.ok_or(Unanswered::Broken)? {
                    SocketEvent::Disconnected { error, .. } => {
                        *failure = Some(Failure { connected: true, error });
                        return Err(match std::mem::take(&mut self.link.state().last_end) {
                            LastEnd::Violation(violation) => Unanswered::Unreadable(violation),
                            LastEnd::CutOff => Unanswered::CutOff,
                            LastEnd::Otherwise => Unanswered::Broken,
                        });
                    }
                    SocketEvent::ConnectFailed { error, .. } => {
                        *failure = Some(Failure { connected: false, error });
                    }
                    SocketEvent::Connected { .. } => *failure = None,
                    // The peer has told just now that it takes less.
                    SocketEvent::MessageDropped { .. } => {
                        return Err(Unanswered::Refused(self.hub.unfit(&self.link, request)));
                    }
                    SocketEvent::SubscriptionRefused { .. } => {}
                }
            }
        }
    }
}

/// Why there is no reply.
#[derive(Debug)]
enum Unanswered {
    /// The request was not sent, and is not to be.
    Refused(Error),
    /// What came is nothing that we take. The request may have been carried out.
    Unreadable(Violation),
    /// The peer ended the connection in the middle of the request.
    CutOff,
    /// The connection ended, in some other way.
    Broken,
}

async fn receive(hub: &Owner) -> Option<Multipart> {
    std::future::poll_fn(|cx| hub.inbox.poll_next(cx)).await.map(|(_, message)| message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::Replier;

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn pair() -> (Replier, Requester) {
        let replier = Replier::new(SocketOptions::default());
        let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        (replier, Requester::new(endpoint, SocketOptions::default()))
    }

    async fn next(replier: &Replier) -> (crate::socket::ReturnPath, Multipart) {
        tokio::time::timeout(PATIENCE, replier.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_late_reply_is_not_taken_for_that_of_the_next_request() {
        let (replier, requester) = pair().await;
        let first = requester.request(["first"], Duration::from_millis(200));
        let (first, (late, _)) = futures::join!(first, next(&replier));
        assert_eq!(first.unwrap_err().kind(), ErrorKind::Timeout);
        let second = requester.request(["second"], PATIENCE);
        let answers = async {
            let (path, request) = next(&replier).await;
            assert_eq!(request, Multipart::from(["second"]));
            let _ = replier.try_reply(&late, ["late"]);
            replier.try_reply(&path, ["in time"]).unwrap();
        };
        assert_eq!(futures::join!(second, answers).0.unwrap(), Multipart::from(["in time"]));
    }

    #[tokio::test]
    async fn a_dropped_request_leaves_the_way_clear() {
        let (replier, requester) = pair().await;
        {
            let first = std::pin::pin!(requester.request(["first"], PATIENCE));
            let arrived = std::pin::pin!(next(&replier));
            assert!(matches!(
                futures::future::select(first, arrived).await,
                futures::future::Either::Right(_)
            ));
        }
        let second = requester.request(["second"], PATIENCE);
        let answer = async {
            let (path, request) = next(&replier).await;
            replier.try_reply(&path, request).unwrap();
        };
        assert_eq!(futures::join!(second, answer).0.unwrap(), Multipart::from(["second"]));
    }

    #[tokio::test]
    async fn requests_of_several_tasks_queue_and_get_their_own_replies() {
        let (replier, requester) = pair().await;
        let echo = tokio::spawn(async move {
            for _ in 0..50 {
                let (path, request) = next(&replier).await;
                replier.try_reply(&path, request).unwrap();
            }
            replier
        });
        let requests = (0..50).map(|number: u32| {
            let requester = requester.clone();
            async move {
                let request = Multipart::from([number.to_string()]);
                assert_eq!(requester.request(request.clone(), PATIENCE).await.unwrap(), request);
            }
        });
        futures::future::join_all(requests).await;
        assert_eq!(echo.await.unwrap().peers(), 1);
    }

    #[tokio::test]
    async fn a_request_survives_a_restart_of_its_peer() {
        let (replier, requester) = pair().await;
        let endpoint = requester.endpoint().clone();
        let request = requester.request(["still there?"], PATIENCE);
        let restart = async move {
            next(&replier).await;
            replier.close(Duration::ZERO).await;
            let replier = Replier::new(SocketOptions::default());
            replier.bind(&endpoint).await.unwrap();
            let (path, request) = next(&replier).await;
            replier.try_reply(&path, request).unwrap();
            replier
        };
        assert_eq!(futures::join!(request, restart).0.unwrap(), Multipart::from(["still there?"]));
    }

    #[tokio::test]
    async fn nobody_there_is_said_and_a_closed_requester_too() {
        let (replier, requester) = pair().await;
        replier.close(Duration::ZERO).await;
        let error = requester.request(["x"], Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(&requester.endpoint().to_string()), "{error}");
        requester.close().await;
        assert_eq!(requester.request(["x"], PATIENCE).await.unwrap_err().kind(), ErrorKind::Closed);
    }

    #[tokio::test]
    async fn peers_with_the_same_identity_are_both_served() {
        let (replier, _) = pair().await;
        let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let same = || {
            let options = SocketOptions { identity: "same".into(), ..SocketOptions::default() };
            Requester::new(endpoint.clone(), options)
        };
        let (one, other) = (same(), same());
        let answers = async {
            let (first, second) = (next(&replier).await, next(&replier).await);
            assert_ne!(first.0.peer(), second.0.peer());
            for (path, request) in [first, second] {
                replier.try_reply(&path, request).unwrap();
            }
        };
        let (a, b, ()) =
            futures::join!(one.request(["one"], PATIENCE), other.request(["other"], PATIENCE), answers);
        assert_eq!((a.unwrap(), b.unwrap()), (Multipart::from(["one"]), Multipart::from(["other"])));
    }
}
