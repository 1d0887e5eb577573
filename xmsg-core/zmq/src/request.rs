//! REQ: a request, its reply, the next request.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::deadline::Deadline;
use crate::events::{SocketEvent, SocketEvents};
use crate::hub::Owner;
use crate::link::outbox::Refused;
use crate::link::{LastEnd, Link};
use crate::lock::lock;
use crate::role::Plain;
use crate::{Endpoint, Multipart, SocketOptions};
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::{Limited, MessageLimits, SocketType, Violation};

/// The longest pause before a request is sent again over a new connection.
const RESEND_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A socket that sends requests to REP or ROUTER peers, one after another, and hands out their replies. With several endpoints each request goes
/// to the next one, and to another one where there is no connection, or it breaks. Clones share it: requests of several tasks queue, first come,
/// first served.
///
/// A request that times out, or whose future is dropped, takes its connection with it: what was not written by then never will
/// be, and a late reply can't be taken for that of the next request, which finds a new connection. A connection that breaks
/// before the reply is made anew, and the request is sent again while there is time: it may be carried out twice, so let it be one
/// that does no harm then.
#[derive(Clone, Debug)]
pub struct Requester {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: SocketOptions,
    /// Whose turn it is. Waiting for it is fair.
    turn: Semaphore,
    services: Mutex<Services>,
    closed: CancellationToken,
}

/// Where requests go, in turn.
#[derive(Debug)]
struct Services {
    all: Vec<Arc<Service>>,
    /// The place of the next one.
    next: usize,
}

/// One endpoint.
#[derive(Debug)]
struct Service {
    endpoint: Endpoint,
    /// The connection, while nobody has it. Whoever has the turn takes it, and gives it back if it is clean.
    idle: Mutex<Option<Live>>,
    /// What the peer takes, as it told last.
    limits: Mutex<MessageLimits>,
}

impl Service {
    fn new(endpoint: Endpoint, options: &SocketOptions) -> Arc<Self> {
        Arc::new(Self { endpoint, idle: Mutex::default(), limits: Mutex::new(options.send_limits()) })
    }

    /// The connection that nobody has, or a new one, which takes what the peer has told last that it takes.
    fn live(&self, options: &SocketOptions) -> Live {
        let idle = self.idle().take();
        idle.unwrap_or_else(|| {
            let live = Live::connect(self.endpoint.clone(), options.clone());
            let known = *self.limits();
            drop(live.link.outbox.limit(known));
            live
        })
    }

    /// Whether there is a connection, or none was tried yet.
    fn may_answer(&self) -> bool {
        self.idle().as_ref().is_none_or(|live| live.link.is_connected())
    }

    fn limits(&self) -> MutexGuard<'_, MessageLimits> {
        lock(&self.limits)
    }

    fn idle(&self) -> MutexGuard<'_, Option<Live>> {
        lock(&self.idle)
    }

    fn cut_off(&self, request: &[Bytes]) -> Error {
        let size = xmsg_zmtp::encoded_len(request);
        let what = format!(
            "{} has ended the connection twice in the middle of a request of {size} bytes: is it above a limit there?",
            self.endpoint
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
        let what = format!("the reply from {} {what}: {violation}", self.endpoint);
        Error::new(kind, what).with_source(violation)
    }
}

impl Inner {
    fn services(&self) -> MutexGuard<'_, Services> {
        lock(&self.services)
    }

    /// The next endpoint, and whether there are others; `None`, if there is none at all. Those to which the connection is being made anew are
    /// passed over while there is another one.
    fn next_service(&self) -> Option<(Arc<Service>, bool)> {
        let mut services = self.services();
        let count = services.all.len();
        let start = services.next.checked_rem(count)?;
        let places = (0..count).map(|step| (start + step) % count);
        let place = places.into_iter().find(|place| services.all[*place].may_answer()).unwrap_or(start);
        services.next = place + 1;
        Some((services.all[place].clone(), count > 1))
    }

    fn put_back(&self, service: &Service, live: Live) {
        *service.idle() = Some(live);
        let is_gone = !self.services().all.iter().any(|other| std::ptr::eq(&raw const **other, service));
        if is_gone || self.closed.is_cancelled() {
            // `close` and `disconnect` may have looked before.
            service.idle().take();
        }
    }
}

/// A request that got no reply.
#[derive(Debug)]
pub struct Unanswered {
    /// Why there is none.
    pub error: Error,
    /// Whether it was written to a connection, and may have been carried out. If not, it never will be.
    pub sent: bool,
}

impl Requester {
    /// A requester that connects with its first request.
    #[must_use]
    pub fn new(endpoint: Endpoint, options: SocketOptions) -> Self {
        // A connection that is given up has nothing more to say.
        let options = SocketOptions { linger: Duration::ZERO, ..options };
        let services = Services { all: vec![Service::new(endpoint, &options)], next: 0 };
        let (turn, closed) = (Semaphore::new(1), CancellationToken::new());
        let inner = Inner { options, turn, services: Mutex::new(services), closed };
        Self { inner: Arc::new(inner) }
    }

    /// Has requests go to this endpoint, too, from the next one on. Nothing changes if they do already.
    pub fn connect(&self, endpoint: Endpoint) {
        let mut services = self.inner.services();
        if services.all.iter().all(|service| service.endpoint != endpoint) {
            services.all.push(Service::new(endpoint, &self.inner.options));
        }
    }

    /// Has requests go to this endpoint no more; one that is under way there goes on. Returns whether they did. Without any endpoint, requests
    /// wait for one.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn disconnect(&self, endpoint: &Endpoint) -> bool {
        let mut services = self.inner.services();
        let found = services.all.iter().position(|service| service.endpoint == *endpoint);
        let gone = found.map(|place| services.all.remove(place));
        drop(services);
        gone.map(|service| service.idle().take()).is_some()
    }

    /// Sends a request and returns its reply. `timeout` counts from the call: waiting for one's turn and connecting
    /// included; [`Duration::MAX`] stands for ever. An error of kind [`Timeout`](ErrorKind::Timeout) says that there was no reply
    /// in time, [`Closed`](ErrorKind::Closed) that the requester was closed. If there was no connection either, the kind says
    /// why: [`Refused`](ErrorKind::Refused), [`UnknownHost`](ErrorKind::UnknownHost), …. What does not pass with time is
    /// returned at once: [`NotAllowed`](ErrorKind::NotAllowed) and [`WrongPort`](ErrorKind::WrongPort).
    ///
    /// What is too large is not sent again: [`TooLarge`](ErrorKind::TooLarge) says that the request is above our limits or those that the
    /// peer has told; that a peer that has told none ended the connection twice in the middle of it; or that the reply is above our
    /// limits. A reply that breaks the protocol is an error of kind [`Protocol`](ErrorKind::Protocol). After either kind of reply the
    /// request may have been carried out.
    pub async fn request(&self, message: impl Into<Multipart>, timeout: Duration) -> Result<Multipart> {
        self.try_request(&message.into(), timeout).await.map_err(|unanswered| unanswered.error)
    }

    /// The same for whoever has to know whether a request without a reply may have been carried out.
    pub async fn try_request(&self, message: &Multipart, timeout: Duration) -> Result<Multipart, Unanswered> {
        let deadline = Deadline::after(timeout);
        let inner = &*self.inner;
        if message.frames().is_empty() {
            let error = Error::new(ErrorKind::InvalidMessage, "a request needs at least one frame");
            return Err(Unanswered { error, sent: false });
        }
        let _turn = match deadline.limit(inner.turn.acquire()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(Unanswered { error: closed(), sent: false }),
            Err(_) => {
                let hint = "other requests are waiting before this one";
                return Err(Unanswered { error: self.no_reply(timeout, hint, None), sent: false });
            }
        };
        let mut envelope = vec![Bytes::new()];
        envelope.extend_from_slice(message.frames());
        // Held here, not in `inner`: dropping this future drops the connection.
        let mut live: Option<(Arc<Service>, Live)> = None;
        let (mut failure, mut sent) = (None, false);
        let exchange = async {
            let mut cuts = 0;
            // Endpoints that could not be reached, one after another.
            let mut tried = 0;
            let mut pause = inner.options.reconnect_min.min(RESEND_PAUSE_MAX);
            loop {
                let Some((service, has_others)) = inner.next_service() else {
                    tokio::time::sleep(pause).await;
                    continue;
                };
                let (service, current) = live.insert((service.clone(), service.live(&inner.options)));
                let outcome = current.exchange(&envelope, &mut failure, has_others).await;
                *service.limits() = current.link.outbox.limits();
                match outcome {
                    Outcome::Reply(reply) => return Ok(reply),
                    Outcome::Refused(error) => {
                        // Nothing was sent, so that the connection is clean.
                        if let Some((service, live)) = live.take() {
                            inner.put_back(&service, live);
                        }
                        return Err(Some(error));
                    }
                    Outcome::Unreadable(violation) => {
                        sent = true;
                        return Err(Some(service.unreadable(violation)));
                    }
                    Outcome::CutOff if cuts > 0 => return Err(Some(service.cut_off(&envelope))),
                    Outcome::CutOff => cuts += 1,
                    Outcome::Hopeless(error) => {
                        let what = format!("no request can be made at {}", service.endpoint);
                        let error = Error::new(error.kind(), what).with_source(error);
                        if !has_others {
                            return Err(Some(error));
                        }
                        failure = Some(Failure { connected: false, error });
                    }
                    Outcome::Broken => {}
                    Outcome::Unreachable => {
                        // It goes on trying while another one is asked.
                        if let Some((service, live)) = live.take() {
                            inner.put_back(&service, live);
                        }
                        tried += 1;
                        if tried < inner.services().all.len() {
                            continue;
                        }
                        tried = 0;
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(RESEND_PAUSE_MAX);
                        continue;
                    }
                }
                sent |= current.give_up().await;
                live = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RESEND_PAUSE_MAX);
            }
        };
        let result = tokio::select! {
            biased;
            () = inner.closed.cancelled() => Err(Some(closed())),
            result = deadline.limit(exchange) => result.unwrap_or(Err(None)),
        };
        if let Some((service, mut live)) = live {
            if live.asked {
                sent |= live.give_up().await;
            } else {
                // It is as good as before.
                inner.put_back(&service, live);
            }
        }
        match result {
            Ok(reply) => Ok(reply),
            Err(error) => {
                let hint = if sent { "it was sent" } else { "is it running there?" };
                Err(Unanswered {
                    error: error.unwrap_or_else(|| self.no_reply(timeout, hint, failure)),
                    sent,
                })
            }
        }
    }

    /// Where the requests go.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.inner.services().all.iter().map(|service| service.endpoint.clone()).collect()
    }

    /// Ends the connections. Requests that are under way or wait for their turn fail at once.
    pub async fn close(&self) {
        self.inner.closed.cancel();
        self.inner.turn.close();
        let services = self.inner.services().all.clone();
        for service in services {
            let idle = service.idle().take();
            if let Some(live) = idle {
                live.hub.close(Duration::ZERO).await;
            }
        }
    }

    fn no_reply(&self, timeout: Duration, hint: &str, failure: Option<Failure>) -> Error {
        let endpoints: Vec<String> = self.endpoints().iter().map(ToString::to_string).collect();
        let from = if endpoints.is_empty() { "anywhere".to_owned() } else { endpoints.join(" or ") };
        let what = format!("no reply from {from} within {} ms: {hint}", timeout.as_millis());
        match failure {
            Some(Failure { connected: false, error }) => Error::new(error.kind(), what).with_source(error),
            Some(Failure { error, .. }) => {
                Error::new(Error::kind_without_connection(&error), what).with_source(error)
            }
            None => Error::new(ErrorKind::Timeout, what),
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the requester is closed")
}

/// What last went wrong with the connection.
#[derive(Debug)]
struct Failure {
    connected: bool,
    error: Error,
}

/// How it went with one request on one connection.
#[derive(Debug)]
enum Outcome {
    Reply(Multipart),
    /// The request was not sent, and is not to be.
    Refused(Error),
    /// What came is nothing that we take. The request may have been carried out.
    Unreadable(Violation),
    /// The peer ended the connection in the middle of the request.
    CutOff,
    /// The connection broke in some other way: another one may do.
    Broken,
    /// There is no connection, and others can be asked instead. The request was taken back.
    Unreachable,
    /// No other connection would do better.
    Hopeless(Error),
}

/// A connection, or one in the making.
#[derive(Debug)]
struct Live {
    hub: Owner,
    link: Arc<Link>,
    events: SocketEvents,
    /// Whether it was given a request that has no reply yet.
    asked: bool,
}

impl Live {
    fn connect(endpoint: Endpoint, options: SocketOptions) -> Self {
        let hub = Owner::new(Arc::new(Plain(SocketType::Req)), options);
        let events = hub.events();
        let link = hub.connect(endpoint);
        Self { hub, link, events, asked: false }
    }

    /// Sends the request and waits for the reply.
    async fn exchange(
        &mut self,
        request: &[Bytes],
        failure: &mut Option<Failure>,
        has_others: bool,
    ) -> Outcome {
        if has_others && let Some(outcome) = self.unreachable(failure).await {
            return outcome;
        }
        // Since the last request the connection may have been lost and made anew, and what came unasked is no reply.
        while self.events.next().now_or_never().flatten().is_some() {}
        while self.hub.recv().now_or_never().flatten().is_some() {}
        match self.link.outbox.push(request).await {
            Ok(()) => {}
            Err(Refused::Unfit) => return Outcome::Refused(self.hub.unfit(&self.link, request)),
            Err(Refused::Full | Refused::Closed) => return Outcome::Broken,
        }
        self.asked = true;
        loop {
            tokio::select! {
                biased;
                message = self.hub.recv() => {
                    let Some(frames) = message else { return Outcome::Broken };
                    // Anything without the envelope is no reply: RFC 28 has it discarded.
                    if let [first, reply @ ..] = frames.frames() && first.is_empty() {
                        self.asked = false;
                        return Outcome::Reply(reply.iter().cloned().collect());
                    }
                }
                event = self.events.next() => match event {
                    Some(SocketEvent::ConnectFailed { error, .. }) => {
                        if matches!(error.kind(), ErrorKind::NotAllowed | ErrorKind::WrongPort) {
                            return Outcome::Hopeless(error);
                        }
                        *failure = Some(Failure { connected: false, error });
                    }
                    Some(SocketEvent::Connected { .. }) => *failure = None,
                    Some(SocketEvent::Disconnected { error, .. }) => {
                        *failure = Some(Failure { connected: true, error });
                        return match std::mem::take(&mut self.link.state().last_end) {
                            LastEnd::Violation(violation) => Outcome::Unreadable(violation),
                            LastEnd::CutOff => Outcome::CutOff,
                            LastEnd::Otherwise => Outcome::Broken,
                        };
                    }
                    // The peer has told just now that it takes less.
                    Some(SocketEvent::MessageDropped { .. }) => {
                        self.asked = false;
                        return Outcome::Refused(self.hub.unfit(&self.link, request));
                    }
                    // What a socket that is bound, or publishes or subscribes, tells.
                    Some(_) => {}
                    None => return Outcome::Broken,
                }
            }
        }
    }

    /// Waits for a connection that is being made for the first time. Returns what is wrong if there is none then.
    async fn unreachable(&mut self, failure: &mut Option<Failure>) -> Option<Outcome> {
        while !self.link.is_connected() {
            let known = self.link.state().failure.clone();
            let error = match known {
                Some(error) => error,
                None => match self.events.next().await {
                    Some(SocketEvent::ConnectFailed { error, .. }) => error,
                    Some(_) => continue,
                    None => return Some(Outcome::Broken),
                },
            };
            let is_hopeless = matches!(error.kind(), ErrorKind::NotAllowed | ErrorKind::WrongPort);
            if is_hopeless {
                return Some(Outcome::Hopeless(error));
            }
            *failure = Some(Failure { connected: false, error });
            return Some(Outcome::Unreachable);
        }
        None
    }

    /// Ends the connection. Returns whether the request was written to it: if not, it never will be.
    async fn give_up(&mut self) -> bool {
        let unsent = self.hub.close(Duration::ZERO).await;
        self.asked && unsent == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Replier;

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn pair() -> (Replier, Requester) {
        let replier = Replier::new(SocketOptions::default());
        let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        (replier, Requester::new(endpoint, SocketOptions::default()))
    }

    async fn next(replier: &Replier) -> (crate::ReturnPath, Multipart) {
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
        let endpoint = requester.endpoints().remove(0);
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
    async fn requests_go_to_one_endpoint_after_another_and_around_those_that_are_gone() {
        let (one, requester) = pair().await;
        let (other, spare) = pair().await;
        requester.connect(spare.endpoints().remove(0));
        let echo = |replier: Replier, name: &'static str| {
            tokio::spawn(async move {
                while let Some((path, _)) = replier.recv().await {
                    replier.try_reply(&path, [name]).unwrap();
                }
            })
        };
        let (_one, other_echo) = (echo(one.clone(), "one"), echo(other.clone(), "other"));
        let ask = async || requester.request(["who?"], PATIENCE).await.unwrap().frames()[0].clone();
        assert_eq!([ask().await, ask().await, ask().await, ask().await], ["one", "other", "one", "other"]);
        // One is gone: the requests that it would get go to the other.
        let gone = spare.endpoints().remove(0);
        other.close(Duration::ZERO).await;
        other_echo.await.unwrap();
        for _ in 0..4 {
            assert_eq!(ask().await, "one");
        }
        assert!(requester.disconnect(&gone) && !requester.disconnect(&gone));
        assert_eq!(ask().await, "one");
        // It comes again.
        let again = Replier::new(SocketOptions::default());
        let endpoint = again.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let _again = echo(again, "again");
        requester.connect(endpoint);
        let mut answers = [ask().await, ask().await];
        answers.sort();
        assert_eq!(answers, ["again", "one"]);
        for endpoint in requester.endpoints() {
            requester.disconnect(&endpoint);
        }
        let error = requester.request(["anybody?"], Duration::from_millis(50)).await.unwrap_err();
        assert_eq!((error.kind(), requester.endpoints().len()), (ErrorKind::Timeout, 0));
    }

    #[tokio::test]
    async fn nobody_there_is_said_and_a_closed_requester_too() {
        let (replier, requester) = pair().await;
        replier.close(Duration::ZERO).await;
        let error = requester.request(["x"], Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(&requester.endpoints()[0].to_string()), "{error}");
        requester.close().await;
        assert_eq!(requester.request(["x"], PATIENCE).await.unwrap_err().kind(), ErrorKind::Closed);
    }

    #[tokio::test]
    async fn the_longest_and_the_shortest_time_limit_are_fine() {
        let (replier, requester) = pair().await;
        let error = requester.request(["at once"], Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        // A clock has its ticks, so the first one may have arrived.
        let echo = async {
            loop {
                let (path, request) = next(&replier).await;
                let _ = replier.try_reply(&path, request);
            }
        };
        tokio::select! {
            () = echo => {}
            reply = requester.request(["x"], Duration::MAX) => assert_eq!(reply.unwrap(), Multipart::from(["x"])),
        }
    }

    #[tokio::test]
    async fn closing_ends_a_request_that_is_under_way_and_those_behind_it() {
        let (replier, requester) = pair().await;
        let one = requester.request(["one"], PATIENCE);
        let two = requester.request(["two"], Duration::MAX);
        let close = async {
            next(&replier).await;
            requester.close().await;
        };
        let (one, two, ()) = futures::join!(one, two, close);
        assert_eq!(one.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(two.unwrap_err().kind(), ErrorKind::Closed);
    }

    #[tokio::test]
    async fn an_error_knows_whether_the_request_was_sent() {
        let (replier, requester) = pair().await;
        let request = Multipart::from(["x"]);
        let sent_within = async |requester: &Requester, time| {
            let unanswered = requester.try_request(&request, time).await.unwrap_err();
            (unanswered.error.kind(), unanswered.sent)
        };
        let (sent, ()) = futures::join!(sent_within(&requester, PATIENCE), async {
            next(&replier).await;
            // From here on the clock goes from one deadline to the next.
            tokio::time::pause();
        });
        tokio::time::resume();
        assert_eq!(sent, (ErrorKind::Timeout, true));
        let sent = async |requester| sent_within(requester, Duration::from_millis(300)).await;
        replier.close(Duration::ZERO).await;
        assert_eq!(sent(&requester).await, (ErrorKind::Refused, false));
        // It is there as far as the kernel is concerned, and no more.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requester = Requester::new(Endpoint::tcp("127.0.0.1", port), SocketOptions::default());
        assert_eq!(sent(&requester).await, (ErrorKind::Timeout, false));
        // Its time passes while it waits for its turn.
        let (first, second) = futures::join!(sent(&requester), sent(&requester));
        assert_eq!((first, second), ((ErrorKind::Timeout, false), (ErrorKind::Timeout, false)));
    }

    #[tokio::test]
    async fn what_does_not_pass_with_time_is_returned_at_once() {
        let publisher = crate::Publisher::new(SocketOptions::default());
        let endpoint = publisher.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let requester = Requester::new(endpoint, SocketOptions::default());
        let error = requester.request(["x"], Duration::MAX).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongPort);
        assert!(format!("{error:?}").contains("PUB"), "{error:?}");
    }

    /// As with libzmq's REP: an envelope alone is no request.
    #[tokio::test]
    async fn an_envelope_with_nothing_behind_it_is_no_request() {
        let replier = Replier::new(SocketOptions::default());
        let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let dealer = crate::Dealer::connecting_to(endpoint, SocketOptions::default());
        for frames in [&["", "one"][..], &["", ""], &[""], &["way", ""], &["way", "", "two"], &["", "", ""]] {
            dealer.send(frames.iter().map(|frame| Bytes::from(*frame)).collect::<Multipart>()).await.unwrap();
        }
        let mut requests = Vec::new();
        for _ in 0..4 {
            requests.push(replier.recv().await.unwrap().1);
        }
        let expected = [&["one"][..], &[""], &["two"], &["", ""]];
        assert_eq!(requests, expected.map(|frames| frames.iter().map(|frame| Bytes::from(*frame)).collect()));
    }

    /// RFC 28: an empty frame leads a request, and what has none is no reply.
    #[tokio::test]
    async fn a_message_without_an_envelope_is_no_reply() {
        let router = crate::Router::new(SocketOptions::default());
        let endpoint = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let requester = Requester::new(endpoint, SocketOptions::default());
        let answer = async {
            let (peer, request) = router.recv().await.unwrap();
            assert_eq!(request, Multipart::from(["", "what", ""]));
            router.try_send(&peer, ["this"]).unwrap();
            router.try_send(&peer, ["this", "", "way"]).unwrap();
            router.try_send(&peer, ["", "that", ""]).unwrap();
        };
        let (reply, ()) = futures::join!(requester.request(["what", ""], PATIENCE), answer);
        assert_eq!(reply.unwrap(), Multipart::from(["that", ""]));
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
