//! The control plane: it answers control requests, with which clients check connections and subscriptions and
//! ask for statistics and rights.
//!
//! | request, published | answer |
//! |---|---|
//! | `xmsg:control…` · `pub` · *ID* | on the ROUTER, to *ID*: `pub` |
//! | `xmsg:control…` · `sub` · *topic* | to the subscribers of *topic*: *topic* · `sub` |
//! | `xmsg:control…` · `rep` · *ID* | on the ROUTER, to *ID*: `rep` |
//! | `xmsg:control…` · `stats` · *ID* | on the ROUTER, to *ID*: `stats` · clients and traffic, in JSON |
//! | `xmsg:control…` · `may-pub` or `may-sub` · *ID*`:`*topic* | on the ROUTER, to *ID*: `may` or `may-not` |
//!
//! Everything else is counted and ignored. An answer goes only to connections with the same key or user as
//! the connection that asked. Without security these are all connections, as in every xMsg proxy. A
//! subscription is confirmed only to a peer that may subscribe to it.

mod confirmations;
mod pending_answers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::Instant;
use xmsg_core::ErrorKind;
use xmsg_core::control::RightsRequest;
use xmsg_zmq::deadline::later;
use xmsg_zmq::fault::catch;
use xmsg_zmq::link::session::now;
use xmsg_zmq::link::source::Source;
use xmsg_zmq::security::Principal;
use xmsg_zmq::{Multipart, Router};

use self::confirmations::{Confirmation, Confirmations};
use self::pending_answers::PendingAnswers;
use crate::stats::{DOCUMENT_MAX, Documents};
use crate::switch::{ControlRequests, Request, Requester, Switch};

/// The first frame of an answer that contains a document.
const STATS: &[u8] = b"stats";
/// The longest answer, in bytes on the wire.
pub(crate) const ANSWER_MAX: usize = DOCUMENT_MAX + 64;
/// The most bytes of documents that control sockets have not read yet. The limit is lower if the memory of
/// all peers, divided by `DOCUMENTS_PART`, is less.
const DOCUMENTS_MAX: usize = 64 << 20;
const DOCUMENTS_PART: usize = 16;
/// The document for a peer that may not inspect the proxy.
const NOT_ALLOWED: &[u8] =
    br#"{"error":"not allowed to inspect the proxy: without security it is for its own machine, else for those with the right `inspect`"}"#;
/// Requests that are answered before other events get their turn.
const BATCH: usize = 1024;
/// Confirmations that are queued before the task yields.
const SETTLED: usize = 256;
/// Work units that are spent on confirmations before other events get their turn. A subscriber that is told
/// counts as one.
const RECIPIENTS: usize = 4096;
/// The work units of looking up who receives a confirmation.
const LOOK_UP: usize = 32;
/// How long an answer waits for a control socket to connect. The peers' own time limit is as long.
const EARLY_FOR: Duration = Duration::from_secs(1);
/// The pause after all waiting answers were looked at, for each of them. It is many times what the look
/// takes. Without it, a peer that connects again and again while many answers wait would keep everybody else
/// from being answered.
const REST_OF_EACH: Duration = Duration::from_micros(5);

/// The task that answers control requests until it is dropped.
#[derive(Debug)]
pub struct Controller {
    switch: Switch,
    requests: ControlRequests,
    router: Router,
    /// Requested confirmations that wait until everything subscribed before them is in effect.
    asked: Confirmations,
    /// Confirmations that wait only for their turn.
    ready: Confirmations,
    early: PendingAnswers<Source, Early>,
    documents: Documents,
    /// Bytes of documents that were sent but not written yet.
    unread: Arc<AtomicUsize>,
    /// Whether a control socket has connected since the waiting answers were last looked at.
    has_news: bool,
    /// The earliest time to look at the waiting answers again.
    look_from: Instant,
    ignored: u64,
}

/// An answer whose receiver is not connected yet.
#[derive(Debug)]
struct Early {
    since: Instant,
    principal: Option<Arc<Principal>>,
    identity: Bytes,
    answer: Answer,
}

/// The frames of an answer: the kind of the request, and a document if there is one.
#[derive(Clone, Debug)]
enum Answer {
    Here(&'static [u8]),
    Stats(Bytes),
}

impl Answer {
    /// Returns the frames of the answer, with the document that `sent` returns. Returns `None` if `sent`
    /// does.
    fn frames(&self, sent: impl FnOnce(&Bytes) -> Option<Bytes>) -> Option<Multipart> {
        let (first, second) = match self {
            Self::Here(kind) => (Bytes::from_static(kind), None),
            Self::Stats(document) => (Bytes::from_static(STATS), Some(sent(document)?)),
        };
        Some(std::iter::once(first).chain(second).collect())
    }
}

/// A document that waits to be written to one control socket. It counts in `all` until it is dropped.
#[derive(Debug)]
struct Unread {
    document: Bytes,
    all: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.document
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.all.fetch_sub(self.document.len(), Ordering::Relaxed);
    }
}

impl Controller {
    /// Creates a controller that answers the requests of this switch on this router. Only the first
    /// controller of a switch gets its requests.
    #[must_use]
    pub fn new(switch: Switch, router: Router) -> Self {
        Self {
            requests: switch.control_requests(),
            switch,
            router,
            asked: Confirmations::default(),
            ready: Confirmations::default(),
            early: PendingAnswers::default(),
            documents: Documents::default(),
            unread: Arc::default(),
            has_news: false,
            look_from: Instant::now(),
            ignored: 0,
        }
    }

    /// Answers requests until the future is dropped or the router is closed.
    pub async fn run(mut self) {
        let mut arrivals = self.router.events();
        let switch = self.switch.clone();
        // Confirmations that are requested while this waits belong to the next round.
        let mut synchronizing = std::pin::pin!(futures::future::OptionFuture::from(None));
        let mut confirming = Vec::new();
        loop {
            if confirming.is_empty() && !self.asked.is_empty() {
                confirming = self.asked.drain();
                synchronizing.set(Some(switch.synchronize()).into());
            }
            // Confirmations are sent after each event, so that neither has to wait for the end of the other.
            if self.ready.is_ready() {
                self.confirm_some();
                tokio::task::yield_now().await;
            }
            let rested = self.ready.next_ready().map(Instant::from_std);
            let look = self.next_look();
            tokio::select! {
                biased;
                Some(()) = synchronizing.as_mut(), if !confirming.is_empty() => {
                    for (number, confirmation) in std::mem::take(&mut confirming).into_iter().enumerate() {
                        let dropped = self.ready.push(confirmation);
                        self.lose(dropped);
                        if number % SETTLED == SETTLED - 1 {
                            tokio::task::yield_now().await;
                        }
                    }
                }
                event = arrivals.next() => {
                    if event.is_none() {
                        return;
                    }
                    self.somebody_came();
                }
                () = tokio::time::sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                    self.answer_early();
                }
                () = tokio::time::sleep_until(rested.unwrap_or_else(Instant::now)), if rested.is_some() => {
                    self.confirm_some();
                }
                request = self.requests.recv() => {
                    let Some((requester, request)) = request else { return };
                    self.handle_alone(&requester, request);
                    for _ in 1..BATCH {
                        match self.requests.recv().now_or_never() {
                            Some(Some((requester, request))) => self.handle_alone(&requester, request),
                            _ => break,
                        }
                    }
                }
                // The router discards messages of peers, so that this returns when it is closed.
                _ = self.router.recv() => return,
                () = std::future::ready(()), if self.ready.is_ready() => {}
            }
        }
    }

    /// Handles one request. A panic loses this request, and no other.
    fn handle_alone(&mut self, requester: &Requester, request: Option<Request>) {
        if let Err(fault) = catch(|| self.handle(requester, request)) {
            self.switch.lose_request(requester);
            tracing::error!("a control request was lost by a fault of this program: {fault}");
        }
    }

    fn handle(&mut self, requester: &Requester, request: Option<Request>) {
        match request {
            Some(Request::Publisher(identity)) => self.answer(requester, identity, Answer::Here(b"pub")),
            Some(Request::Reply(identity)) => self.answer(requester, identity, Answer::Here(b"rep")),
            Some(Request::Stats(identity)) => {
                let document = if requester.may_inspect() {
                    self.documents.get(&self.switch)
                } else {
                    Bytes::from_static(NOT_ALLOWED)
                };
                self.answer(requester, identity, Answer::Stats(document));
            }
            Some(Request::Subscription(topic)) => {
                if requester.may_subscribe(&topic) {
                    let dropped = self.asked.push(Confirmation { requester: requester.clone(), topic });
                    self.lose(dropped);
                }
            }
            Some(Request::Rights(identity, right, topic)) => {
                let answer = RightsRequest::answer(requester.may(right, &topic));
                self.answer(requester, identity, Answer::Here(answer));
            }
            None => {
                self.ignored += 1;
                tracing::debug!(ignored = self.ignored, "not a control request");
            }
        }
    }

    /// Sends some of the confirmations that are ready.
    fn confirm_some(&mut self) {
        let now = now();
        let mut work = 0;
        while work < RECIPIENTS
            && let Some(next) = self.ready.pop(now)
        {
            let Confirmation { requester, topic } = &next;
            let recipients = self.switch.confirm(topic, requester.principal().map(|who| &**who));
            let pause = requester.charge(recipients, now);
            self.ready.served(&next, (!pause.is_zero()).then(|| later(now, pause)));
            work += LOOK_UP + recipients;
        }
    }

    fn lose(&self, confirmations: Vec<Confirmation>) {
        for Confirmation { requester, .. } in confirmations {
            self.switch.lose_request(&requester);
        }
    }

    fn answer(&mut self, requester: &Requester, identity: Bytes, answer: Answer) {
        let principal = requester.principal().cloned();
        if !self.is_answered(principal.as_deref(), &identity, &answer) {
            let early = Early { since: Instant::now(), principal, identity, answer };
            if self.early.push(requester.source(), early) > 0 {
                self.switch.lose_request(requester);
            }
        }
    }

    fn somebody_came(&mut self) {
        self.has_news = true;
        if Instant::now() >= self.look_from {
            self.answer_early();
        }
    }

    /// Returns when to look at the waiting answers next: when a receiver may have connected, or when the
    /// oldest answer expires. Returns `None` if no answer waits.
    fn next_look(&self) -> Option<Instant> {
        let oldest = self.early.oldest()?.since + EARLY_FOR;
        Some(if self.has_news { self.look_from } else { oldest.max(self.look_from) })
    }

    /// Sends the waiting answers whose receivers have connected, and drops those that have waited too long.
    fn answer_early(&mut self) {
        let mut early = std::mem::take(&mut self.early);
        self.look_from = Instant::now() + REST_OF_EACH * early.len() as u32;
        self.has_news = false;
        early.retain(|Early { since, principal, identity, answer }| {
            if self.is_answered(principal.as_deref(), identity, answer) {
                return false;
            }
            let may_wait = since.elapsed() < EARLY_FOR;
            if !may_wait {
                self.switch.lose_answer(identity, None);
            }
            may_wait
        });
        self.early = early;
    }

    /// Returns whether the answer is done: it was sent or lost. Returns `false` if no socket with this
    /// identity is connected.
    fn is_answered(&self, principal: Option<&Principal>, identity: &[u8], answer: &Answer) -> bool {
        if !self.router.is_connected(identity, principal) {
            return false;
        }
        let Some(frames) = answer.frames(|document| self.sent(document)) else {
            self.switch.lose_answer(identity, Some("too much of what was answered before is not read yet"));
            return true;
        };
        match self.router.try_send_to(identity, principal, frames) {
            Err(error) if error.kind() == ErrorKind::Refused => return false,
            Err(error) => self.switch.lose_answer(identity, Some(&error.to_string())),
            Ok(()) => {}
        }
        true
    }

    /// Returns a copy of a document for one peer, which counts until it is written. Returns `None` if there
    /// is no room for it.
    fn sent(&self, document: &Bytes) -> Option<Bytes> {
        let most = DOCUMENTS_MAX.min(self.switch.memory().limit() / DOCUMENTS_PART);
        let len = document.len();
        if self.unread.fetch_add(len, Ordering::Relaxed) + len > most.max(DOCUMENT_MAX) {
            self.unread.fetch_sub(len, Ordering::Relaxed);
            return None;
        }
        Some(Bytes::from_owner(Unread { document: document.clone(), all: self.unread.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use xmsg_zmq::SocketOptions;

    use super::*;
    use crate::config::Config;

    /// A look takes time for every waiting answer, so the pause depends on their number.
    #[tokio::test(start_paused = true)]
    async fn the_more_answers_wait_the_longer_the_pause_between_two_looks_at_them() {
        let switch = Switch::start(Config::default());
        let mut controller = Controller::new(switch.clone(), Router::new(SocketOptions::default()));
        let wait = |controller: &mut Controller, count: usize| {
            for number in 0..count {
                let source = Source::of(&format!("192.0.2.{}:1", number % 4));
                let identity = Bytes::from(number.to_string());
                let early =
                    Early { since: Instant::now(), principal: None, identity, answer: Answer::Here(b"pub") };
                controller.early.push(&source, early);
            }
        };
        wait(&mut controller, 4_000);
        controller.somebody_came();
        let next = controller.look_from;
        let pause = Duration::from_millis(20);
        assert_eq!(next, Instant::now() + pause);
        for _ in 0..1_000 {
            controller.somebody_came();
        }
        assert_eq!(
            (controller.look_from, controller.next_look()),
            (next, Some(next)),
            "others have their turn"
        );
        tokio::time::advance(pause).await;
        controller.answer_early();
        // The oldest answers expire after a second, whether a socket connects or not.
        assert_eq!(controller.next_look(), Some(Instant::now() - pause + EARLY_FOR));
        tokio::time::advance(EARLY_FOR).await;
        controller.answer_early();
        assert_eq!((controller.early.len(), controller.next_look()), (0, None));
        wait(&mut controller, 3);
        tokio::time::advance(pause).await;
        controller.somebody_came();
        assert!(
            controller.look_from <= Instant::now() + Duration::from_micros(15),
            "few are looked at again at once"
        );
        switch.abort();
    }
}
