//! One request and its reply over one connection, which either this socket or its peer has made.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;

use crate::events::{EventChannel, SocketEvent, SocketEvents};
use crate::hub::{Hub, Owner};
use crate::link::send_queue::Refused;
use crate::link::{LastEnd, Link};
use crate::role::Plain;
use crate::{Endpoint, Error, ErrorKind, Multipart, Settings};
use xmsg_zmtp::{SocketType, Violation};

/// A request with the frames in front of it.
#[derive(Debug)]
pub(super) struct Envelope {
    /// The number of frames in front of the request and its reply: the number of the request, if there is
    /// one, and an empty frame.
    head: usize,
    frames: Vec<Bytes>,
}

impl Envelope {
    /// Creates the envelope of a request, with a number if replies are identified by it.
    pub(super) fn new(number: Option<u32>, request: &[Bytes]) -> Self {
        let number = number.map(|number| Bytes::copy_from_slice(&number.to_be_bytes()));
        let mut frames: Vec<_> = number.into_iter().chain([Bytes::new()]).collect();
        let head = frames.len();
        frames.extend_from_slice(request);
        Self { head, frames }
    }

    pub(super) fn frames(&self) -> &[Bytes] {
        &self.frames
    }

    /// Returns the reply in a message. Any other message is discarded (RFC 28).
    fn reply(&self, message: &Multipart) -> Option<Multipart> {
        let reply = message.frames().strip_prefix(&self.frames[..self.head])?;
        Some(reply.iter().cloned().collect())
    }
}

/// The last failure of the connection.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) connected: bool,
    pub(super) error: Error,
}

/// The outcome of one request on one connection.
#[derive(Debug)]
pub(super) enum Outcome {
    Reply(Multipart),
    /// The request was not sent, and will not be.
    Refused(Error),
    /// The reply cannot be accepted. The request may have been carried out.
    Unreadable(Violation),
    /// The peer ended the connection in the middle of the request.
    CutOff,
    /// The connection broke in some other way. Another connection may work.
    Broken,
    /// There is no connection, and other peers can be asked instead. Nothing was sent.
    Unreachable,
    /// Another connection would not work either.
    Hopeless(Error),
}

impl Outcome {
    /// The outcome after the connection of this link has ended.
    fn after_end(link: &Link) -> Self {
        match std::mem::take(&mut link.state().last_end) {
            LastEnd::Violation(violation) => Self::Unreadable(violation),
            LastEnd::CutOff => Self::CutOff,
            LastEnd::Otherwise => Self::Broken,
        }
    }
}

/// Queues the request. Messages that any peer has sent before are not replies to it, and are dropped.
async fn queue(hub: &Hub, link: &Link, request: &Envelope) -> Result<(), Outcome> {
    while hub.recv().now_or_never().flatten().is_some() {
        // A peer that sends many unrequested messages must not delay the time limit.
        tokio::task::consume_budget().await;
    }
    // The queue is empty, so there is room. There is no `await` between queueing and the note of the caller,
    // so a request that is cancelled is known to be queued.
    link.send_queue.try_push(request.frames()).map_err(|refused| match refused {
        Refused::ExceedsLimits => Outcome::Refused(hub.exceeds_limits(link, request.frames())),
        Refused::Full | Refused::Closed => Outcome::Broken,
    })
}

/// A connection that this socket makes or is making.
#[derive(Debug)]
pub(super) struct Live {
    hub: Owner,
    pub(super) link: Arc<Link>,
    events: SocketEvents,
    /// Whether a request was queued that has no reply yet.
    asked: bool,
}

impl Live {
    pub(super) fn connect(endpoint: Endpoint, settings: Settings, parent: EventChannel) -> Self {
        let hub = Owner::with_parent(Arc::new(Plain(SocketType::Req)), settings, parent);
        let events = hub.events();
        let link = hub.connect(endpoint);
        Self { hub, link, events, asked: false }
    }

    pub(super) async fn close(&self) {
        self.hub.close(Duration::ZERO).await;
    }

    /// Sends the request and waits for the reply.
    async fn exchange(
        &mut self,
        request: &Envelope,
        failure: &mut Option<Failure>,
        has_others: bool,
    ) -> Outcome {
        if has_others && let Some(outcome) = self.unreachable(failure).await {
            return outcome;
        }
        // The connection may have been lost and re-established since the last request.
        while self.events.next().now_or_never().flatten().is_some() {}
        if let Err(outcome) = queue(&self.hub, &self.link, request).await {
            return outcome;
        }
        self.asked = true;
        loop {
            tokio::select! {
                biased;
                message = self.hub.recv() => {
                    let Some(message) = message else { return Outcome::Broken };
                    if let Some(reply) = request.reply(&message) {
                        self.asked = false;
                        return Outcome::Reply(reply);
                    }
                    tokio::task::consume_budget().await;
                }
                event = self.events.next() => match event {
                    Some(SocketEvent::ConnectFailed { error, .. }) => {
                        if is_hopeless(&error) {
                            return Outcome::Hopeless(error);
                        }
                        *failure = Some(Failure { connected: false, error });
                    }
                    Some(SocketEvent::Connected { .. }) => *failure = None,
                    Some(SocketEvent::Disconnected { error, .. }) => {
                        *failure = Some(Failure { connected: true, error });
                        return Outcome::after_end(&self.link);
                    }
                    // The peer has just announced lower limits.
                    Some(SocketEvent::MessageDropped { .. }) => {
                        self.asked = false;
                        return Outcome::Refused(self.hub.exceeds_limits(&self.link, request.frames()));
                    }
                    // These are events of a socket that is bound, publishes or subscribes.
                    Some(_) => {}
                    None => return Outcome::Broken,
                }
            }
        }
    }

    /// Waits for a connection that is being made for the first time. If there is none then, returns the
    /// outcome.
    async fn unreachable(&mut self, failure: &mut Option<Failure>) -> Option<Outcome> {
        while !self.link.is_connected() {
            if self.link.send_queue.is_closed() {
                // The runtime of the connection has ended.
                return Some(Outcome::Broken);
            }
            let known = self.link.state().failure.clone();
            let error = match known {
                Some(error) => error,
                None => match self.events.next().await {
                    Some(SocketEvent::ConnectFailed { error, .. }) => error,
                    Some(_) => continue,
                    None => return Some(Outcome::Broken),
                },
            };
            if is_hopeless(&error) {
                return Some(Outcome::Hopeless(error));
            }
            *failure = Some(Failure { connected: false, error });
            return Some(Outcome::Unreachable);
        }
        None
    }

    /// Ends the connection. Returns whether the request was written. If not, it never will be.
    async fn give_up(&mut self) -> bool {
        let unsent = self.hub.close(Duration::ZERO).await;
        self.asked && unsent == 0
    }
}

fn is_hopeless(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotAllowed | ErrorKind::WrongPort)
}

/// A connection that a peer has made. If it is dropped while a reply is outstanding, the connection ends.
#[derive(Debug)]
pub(super) struct Accepted {
    hub: Arc<Hub>,
    link: Arc<Link>,
    asked: bool,
}

impl Accepted {
    pub(super) fn new(hub: Arc<Hub>, link: Arc<Link>) -> Self {
        Self { hub, link, asked: false }
    }

    async fn exchange(&mut self, request: &Envelope) -> Outcome {
        if let Err(outcome) = queue(&self.hub, &self.link, request).await {
            return outcome;
        }
        self.asked = true;
        let name = self.link.name();
        loop {
            tokio::select! {
                biased;
                message = std::future::poll_fn(|cx| self.hub.receive_queue.poll_next(cx)) => {
                    let Some((from, message)) = message else { return Outcome::Broken };
                    if from == name && let Some(reply) = request.reply(&message) {
                        self.asked = false;
                        return Outcome::Reply(reply);
                    }
                    tokio::task::consume_budget().await;
                }
                () = self.link.stop.cancelled() => return Outcome::after_end(&self.link),
            }
        }
    }

    async fn give_up(&mut self) -> bool {
        self.link.stop.cancel();
        // Something may still be written until the task of the connection has ended.
        let is_gone = || self.hub.links().iter().all(|link| link.id != self.link.id);
        if self.hub.wait_until(is_gone).await.is_err() {
            // The socket is being closed. Once it is, nothing is written any more.
            self.hub.close(Duration::ZERO).await;
        }
        self.asked && self.link.send_queue.queued().messages == 0
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        if self.asked {
            self.link.stop.cancel();
        }
    }
}

/// The connection that a request uses.
#[derive(Debug)]
pub(super) enum Connection {
    Ours(Live),
    Theirs(Accepted),
}

impl Connection {
    pub(super) fn link(&self) -> &Link {
        match self {
            Self::Ours(live) => &live.link,
            Self::Theirs(accepted) => &accepted.link,
        }
    }

    /// Whether a request was queued that has no reply yet.
    pub(super) fn is_asked(&self) -> bool {
        match self {
            Self::Ours(live) => live.asked,
            Self::Theirs(accepted) => accepted.asked,
        }
    }

    /// Whether the request was taken from the queue and written.
    pub(super) fn is_written(&self) -> bool {
        self.link().is_connected() && self.link().send_queue.queued().messages == 0
    }

    /// Notes that no reply is awaited any more. A late one is recognized by its number.
    pub(super) fn forget(&mut self) {
        match self {
            Self::Ours(live) => live.asked = false,
            Self::Theirs(accepted) => accepted.asked = false,
        }
    }

    /// Sends the request and waits for the reply.
    pub(super) async fn exchange(
        &mut self,
        request: &Envelope,
        failure: &mut Option<Failure>,
        has_others: bool,
    ) -> Outcome {
        match self {
            Self::Ours(live) => live.exchange(request, failure, has_others).await,
            Self::Theirs(accepted) => accepted.exchange(request).await,
        }
    }

    /// Ends the connection. Returns whether the request was written. If not, it never will be.
    pub(super) async fn give_up(&mut self) -> bool {
        // It is boxed, because every request contains this future, and few use it.
        Box::pin(async {
            match self {
                Self::Ours(live) => live.give_up().await,
                Self::Theirs(accepted) => accepted.give_up().await,
            }
        })
        .await
    }
}
