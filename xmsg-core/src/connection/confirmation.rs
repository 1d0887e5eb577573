//! What is known to have arrived: the answer to a control request proves that the proxy has read everything that was sent
//! before it over the same connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Target;
use super::opening::{FIRST_CHECK_INTERVAL, control_socket};
use crate::control::{Request, secret_identity};
use crate::options::CHECK_INTERVAL;
use crate::{Meta, Result, Topic, data::mime};
use xmsg_zmq::{Dealer, Multipart, Publisher, Security};

/// Control requests whose places are known, in the order of messages.
const PLACES_MAX: usize = 1024;
/// For how long messages that may have to be sent again are kept before the proxy is asked whether it has them, unless there is much of them.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// The longest pause between two requests for the same confirmation.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);

/// Counts what was confirmed of the messages of a publishing socket, by their place in the order in which they were accepted.
///
/// Control requests are messages, too, and are taken off every count: what is counted are messages of the user.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    known: Mutex<Known>,
    /// Held while a control request is being accepted, so that its count and its place belong together.
    asking: tokio::sync::Mutex<()>,
    /// The socket on which the next confirmation arrives. Whoever has it is confirming.
    control: tokio::sync::Mutex<Option<Control>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// The proxy has all messages up to this one, unless they are counted as doubtful.
    confirmed: Mark,
    /// Control requests that were accepted.
    requests: u64,
    /// The places of those that are not confirmed, or later ones. Of more than [`PLACES_MAX`] the oldest are forgotten, and then
    /// counted as messages of the user.
    places: VecDeque<u64>,
    /// Messages that were written to connections that broke before they were confirmed.
    doubtful: u64,
    /// … and those of them that were reported by a flush.
    reported: u64,
}

/// A place in the order of accepted messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    /// Messages up to it.
    messages: u64,
    /// Control requests among them.
    requests: u64,
}

/// A control socket, and the requests whose answers may come.
#[derive(Debug)]
struct Control {
    identity: Bytes,
    socket: Dealer,
    /// What an answer to each request proves, in the order of the requests. Any of them may be lost, but they do not overtake one
    /// another: the first answer that comes proves at least what the first request asked.
    asked: VecDeque<Mark>,
    is_new: bool,
}

impl Confirmations {
    /// Begins with a socket that was opened and checked: what it has accepted so far are control requests. Some of them may still
    /// wait, if the connection broke meanwhile.
    pub(super) fn begin(&self, publisher: &Publisher) {
        let requests = publisher.accepted();
        let confirmed = Mark { messages: requests, requests };
        let waiting = publisher.written().max(requests.saturating_sub(PLACES_MAX as u64));
        let places = (waiting + 1..=requests).collect();
        *self.known() = Known { confirmed, requests, places, ..Known::default() };
    }

    /// Messages of the user that were accepted and not confirmed.
    pub(super) fn unconfirmed(&self, publisher: &Publisher) -> u64 {
        let accepted = publisher.accepted();
        let known = self.known();
        let requests = known.requests - known.confirmed.requests;
        accepted.saturating_sub(known.confirmed.messages).saturating_sub(requests) + known.doubtful
    }

    /// Messages of the user that were accepted and not written. Several control requests may wait: whoever made one may have given
    /// up, and others ask anew.
    pub(super) fn unsent(&self, publisher: &Publisher) -> u64 {
        let (queued, written) = (publisher.queued().messages, publisher.written_once());
        let requests = self.known().places.iter().rev().take_while(|place| **place > written).count();
        queued.saturating_sub(requests as u64)
    }

    /// Publishes a control request.
    pub(super) async fn ask(&self, publisher: &Publisher, request: &Request) -> Result<()> {
        let _asking = self.asking.lock().await;
        self.accept(publisher, request.message()).await
    }

    /// Publishes an ordinary message that is not the user's.
    pub(super) async fn send_marker(&self, publisher: &Publisher, topic: &Topic) -> Result<()> {
        let meta = Meta::new(mime::BYTES).encode();
        let _asking = self.asking.lock().await;
        self.accept(publisher, [topic.clone().into_bytes(), meta, Bytes::new()]).await
    }

    /// Returns once everything that was accepted before the call is confirmed, or is known to be doubtful. Returns the number of
    /// doubtful messages that were not returned before. Those who call at the same time are served one after another.
    pub(super) async fn confirm(&self, publisher: &Publisher, target: &Target) -> Result<u64> {
        self.confirm_quietly(publisher, target).await?;
        let mut known = self.known();
        let news = known.doubtful - known.reported;
        known.reported = known.doubtful;
        Ok(news)
    }

    /// The same until nothing is left to be confirmed, also of what is accepted meanwhile. It ends without an error when there is
    /// nothing more that could be done.
    pub(super) async fn confirm_all(&self, publisher: &Publisher, target: &Target) {
        let mut slot = self.control.lock().await;
        while self.unconfirmed(publisher) > self.known().doubtful {
            if self.confirm_through(&mut slot, publisher, target).await.is_err() {
                return;
            }
        }
    }

    /// Connects the control socket of the next confirmation already, so that it need not wait for that.
    fn prepare(slot: &mut Option<Control>, target: &Target) {
        if slot.is_none() {
            // If that is not possible now, whoever needs it is told why.
            *slot = Control::connect(target).ok();
        }
    }

    /// Gives up the control socket, unless somebody is confirming. Nobody waits for them: they may not be polled for a long time.
    pub(super) fn forget_control(&self) {
        if let Ok(mut control) = self.control.try_lock() {
            *control = None;
        }
    }

    async fn confirm_through(
        &self,
        slot: &mut Option<Control>,
        publisher: &Publisher,
        target: &Target,
    ) -> Result<()> {
        // Its identity was told to the proxy, and others may have seen it there: without security they can ask in our place.
        let is_known = matches!(target.options.mechanism(), Security::Null);
        // Somebody has asked before, and given up.
        if is_known && slot.as_ref().is_some_and(|control| !control.asked.is_empty()) {
            *slot = None;
        }
        if slot.is_none() {
            *slot = Some(Control::connect(target)?);
        }
        let Some(control) = slot else { return Ok(()) };
        // The answer goes to the control socket: without it there is nobody to answer.
        control.socket.connected().await?;
        let goal = publisher.accepted();
        // To a socket that has just connected the first answer may be lost: the proxy may come to know of it a little later.
        let mut interval = if control.is_new { FIRST_CHECK_INTERVAL } else { CHECK_INTERVAL };
        loop {
            let asked_at = self.ask_through(control, publisher).await?;
            let mut answered = std::pin::pin!(control.answered(goal, |mark| self.note(publisher, mark)));
            let is_answered = loop {
                match tokio::time::timeout(interval, &mut answered).await {
                    Ok(()) => break true,
                    // A request that still waits to be written can't have been lost: no use in asking again.
                    Err(_) if publisher.written() >= asked_at => break false,
                    Err(_) => {}
                }
            };
            if is_answered {
                break;
            }
            interval = (interval * 2).min(LONGEST_INTERVAL);
        }
        control.is_new = false;
        // Answers that are still to come would be taken for those to later requests, and prove less than these ask for.
        if is_known || !control.asked.is_empty() {
            *slot = None;
        }
        Ok(())
    }

    /// Returns the place of the request in the order of messages, or a later one.
    async fn ask_through(&self, control: &mut Control, publisher: &Publisher) -> Result<u64> {
        let _asking = self.asking.lock().await;
        let mark = Mark { messages: publisher.accepted(), requests: self.known().requests };
        self.accept(publisher, Request::Publisher(control.identity.clone()).message()).await?;
        control.asked.push_back(mark);
        Ok(publisher.accepted())
    }

    /// Publishes a message that is not the user's; the caller holds `asking`.
    async fn accept(&self, publisher: &Publisher, message: impl Into<Multipart>) -> Result<()> {
        if publisher.retains() {
            // There is room once something is known to have arrived, which it is not before it was asked.
            publisher.publish_past_mark(message)?;
        } else {
            publisher.publish_promptly(message).await?;
        }
        let accepted = publisher.accepted();
        let mut known = self.known();
        known.requests += 1;
        if known.places.len() == PLACES_MAX {
            known.places.pop_front();
        }
        known.places.push_back(accepted);
        Ok(())
    }

    /// The same without taking doubtful messages as returned.
    async fn confirm_quietly(&self, publisher: &Publisher, target: &Target) -> Result<()> {
        let mut slot = self.control.lock().await;
        if self.unconfirmed(publisher) > self.known().doubtful {
            self.confirm_through(&mut slot, publisher, target).await?;
            Self::prepare(&mut slot, target);
        }
        Ok(())
    }

    /// Takes note that the proxy has everything up to this mark that was written over the present connection.
    fn note(&self, publisher: &Publisher, mark: Mark) {
        publisher.arrived(mark.messages);
        let broken_at = publisher.broken_at();
        let mut known = self.known();
        let confirmed = known.confirmed;
        if mark.messages <= confirmed.messages {
            return;
        }
        let of_user = (mark.messages - confirmed.messages) - (mark.requests - confirmed.requests);
        let broken_at = broken_at.min(mark.messages);
        let is_new = |place: &&u64| **place > confirmed.messages && **place <= broken_at;
        let requests = known.places.iter().filter(is_new).count() as u64;
        let on_broken = broken_at.saturating_sub(confirmed.messages).saturating_sub(requests);
        known.doubtful += on_broken.min(of_user);
        known.confirmed = mark;
        while known.places.front().is_some_and(|place| *place <= mark.messages) {
            known.places.pop_front();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has what is published confirmed once a second, and when it is due, until `closing` is cancelled: what is confirmed need not be kept.
pub(super) async fn keep_confirming(
    target: Arc<Target>,
    publisher: Publisher,
    due: Arc<Notify>,
    closing: CancellationToken,
) {
    loop {
        let confirming = async {
            let _ = tokio::time::timeout(KEPT_FOR, due.notified()).await;
            target.confirmations.confirm_quietly(&publisher, &target).await
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => return,
            // Closing is the only thing that keeps it from being confirmed at last.
            _ = confirming => {}
        }
    }
}

impl Control {
    fn connect(target: &Target) -> Result<Self> {
        let identity = secret_identity();
        let socket = control_socket(target, identity.clone())?;
        Ok(Self { identity, socket, asked: VecDeque::new(), is_new: true })
    }

    /// Returns once an answer has come that proves that messages up to `goal` have arrived; `note` is told of each answer.
    async fn answered(&mut self, goal: u64, note: impl Fn(Mark)) {
        while let Some(answer) = self.socket.recv().await {
            if !Request::Publisher(self.identity.clone()).is_answered_by(&answer) {
                continue;
            }
            let Some(mark) = self.asked.pop_front() else { continue };
            note(mark);
            if mark.messages >= goal {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}
