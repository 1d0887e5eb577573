//! Confirmation of published messages: the answer to a control request proves that the proxy has read
//! everything that was sent before it over the same connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Target;
use super::opening::{FIRST_CHECK_INTERVAL, control_socket};
use crate::control::{Request, secret_identity};
use crate::options::CHECK_INTERVAL;
use crate::{Meta, Result, Topic, data::mime};
use xmsg_zmq::lock::lock;
use xmsg_zmq::{Dealer, Multipart, Publisher, Security};

/// The largest number of control requests whose positions in the order of messages are kept.
const PLACES_MAX: usize = 1024;
/// How long messages that may have to be sent again are kept before the proxy is asked to confirm them,
/// unless many of them wait.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// The longest interval between two requests for the same confirmation.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);

/// Counts the confirmed messages of a publishing socket, by their position in the order in which messages
/// were accepted.
///
/// Control requests are messages, too, and are subtracted from every count: only messages of the user are
/// counted.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    known: Mutex<Known>,
    /// Held while a control request is being accepted, so that its count and its position belong together.
    asking: tokio::sync::Mutex<()>,
    /// The socket on which the next confirmation arrives. Whoever holds the lock is confirming.
    control: tokio::sync::Mutex<Option<Control>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// The proxy has all messages up to this position, except those that are counted as doubtful.
    confirmed: Position,
    /// The number of control requests that were accepted.
    requests: u64,
    /// The positions of the control requests that are not confirmed, and of later ones. Of more than
    /// [`PLACES_MAX`], the oldest are removed, and then counted as messages of the user.
    places: VecDeque<u64>,
    /// The number of messages that were written to connections that broke before the messages were confirmed.
    doubtful: u64,
    /// The number of doubtful messages that a flush has reported.
    reported: u64,
}

/// A position in the order of accepted messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// The number of messages up to this position.
    messages: u64,
    /// The number of control requests among them.
    requests: u64,
}

/// A control socket, and the requests whose answers may arrive on it.
#[derive(Debug)]
struct Control {
    identity: Bytes,
    socket: Dealer,
    /// The position that an answer to each request confirms, in the order of the requests. Any answer may be
    /// lost, but answers do not overtake one another: the first answer that arrives confirms at least the
    /// position of the first request.
    asked: VecDeque<Position>,
    is_new: bool,
}

impl Confirmations {
    /// Starts counting for a socket that was opened and checked: what it has accepted so far are control
    /// requests. Some of them may still wait, if the connection broke in the meantime.
    pub(super) fn begin(&self, publisher: &Publisher) {
        let requests = publisher.accepted();
        let confirmed = Position { messages: requests, requests };
        let waiting = publisher.written().max(requests.saturating_sub(PLACES_MAX as u64));
        let places = (waiting + 1..=requests).collect();
        *self.known() = Known { confirmed, requests, places, ..Known::default() };
    }

    /// Returns the number of user messages that were accepted and not confirmed.
    pub(super) fn unconfirmed(&self, publisher: &Publisher) -> u64 {
        let accepted = publisher.accepted();
        let known = self.known();
        let requests = known.requests - known.confirmed.requests;
        accepted.saturating_sub(known.confirmed.messages).saturating_sub(requests) + known.doubtful
    }

    /// Returns the number of user messages that were accepted and not written. Several control requests may
    /// be waiting: a caller may have given up after making one, and others have made new ones.
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

    /// Publishes an ordinary message that is not from the user.
    pub(super) async fn send_marker(&self, publisher: &Publisher, topic: &Topic) -> Result<()> {
        let meta = Meta::new(mime::BYTES).encode();
        let _asking = self.asking.lock().await;
        self.accept(publisher, [topic.clone().into_bytes(), meta, Bytes::new()]).await
    }

    /// Waits until everything that was accepted before the call is confirmed or is known to be doubtful.
    /// Returns the number of doubtful messages that were not returned before. Concurrent calls are served one
    /// after another.
    pub(super) async fn confirm(&self, publisher: &Publisher, target: &Target) -> Result<u64> {
        self.confirm_quietly(publisher, target).await?;
        let mut known = self.known();
        let newly_doubtful = known.doubtful - known.reported;
        known.reported = known.doubtful;
        Ok(newly_doubtful)
    }

    /// Waits until no message is left to be confirmed, including those accepted in the meantime. It ends
    /// without an error when a confirmation fails.
    pub(super) async fn confirm_all(&self, publisher: &Publisher, target: &Target) {
        let mut slot = self.control.lock().await;
        while self.unconfirmed(publisher) > self.known().doubtful {
            if self.confirm_through(&mut slot, publisher, target).await.is_err() {
                return;
            }
        }
    }

    /// Connects the control socket of the next confirmation in advance, so that this need not wait for it.
    fn prepare(slot: &mut Option<Control>, target: &Target) {
        if slot.is_none() {
            // An error is ignored here: the next confirmation tries again, and returns its error.
            *slot = Control::connect(target).ok();
        }
    }

    /// Closes the control socket, unless somebody is confirming. It does not wait for them, because they may
    /// not be polled for a long time.
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
        // The proxy knows the identity of the socket, and others may have seen it there: without security
        // they can send requests in our place.
        let is_known = matches!(target.options.mechanism(), Security::Null);
        // An earlier caller sent requests and gave up.
        if is_known && slot.as_ref().is_some_and(|control| !control.asked.is_empty()) {
            *slot = None;
        }
        if slot.is_none() {
            *slot = Some(Control::connect(target)?);
        }
        let Some(control) = slot else { return Ok(()) };
        // The answer goes to the control socket: the proxy cannot answer before that is connected.
        control.socket.connected().await?;
        let goal = publisher.accepted();
        // The first answer to a new socket may be lost, because the proxy may learn of the socket a little
        // later.
        let mut interval = if control.is_new { FIRST_CHECK_INTERVAL } else { CHECK_INTERVAL };
        loop {
            let asked_at = self.ask_through(control, publisher).await?;
            let mut answered = std::pin::pin!(control.answered(goal, |mark| self.note(publisher, mark)));
            let is_answered = loop {
                match tokio::time::timeout(interval, &mut answered).await {
                    Ok(()) => break true,
                    // A request that still waits to be written cannot have been lost, so repeating it would
                    // be useless.
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
        // Answers that are still to come would be taken for answers to later requests, and confirm less than
        // these ask for.
        if is_known || !control.asked.is_empty() {
            *slot = None;
        }
        Ok(())
    }

    /// Publishes a request for a confirmation. Returns its position in the order of messages, or a later one.
    async fn ask_through(&self, control: &mut Control, publisher: &Publisher) -> Result<u64> {
        let _asking = self.asking.lock().await;
        let mark = Position { messages: publisher.accepted(), requests: self.known().requests };
        self.accept(publisher, Request::Publisher(control.identity.clone()).message()).await?;
        control.asked.push_back(mark);
        Ok(publisher.accepted())
    }

    /// Publishes a message that is not from the user. The caller holds `asking`.
    async fn accept(&self, publisher: &Publisher, message: impl Into<Multipart>) -> Result<()> {
        if publisher.retains() {
            // The queue gets room only when something is confirmed, and nothing is confirmed without this
            // request.
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

    /// Waits as [`confirm`](Self::confirm) does, without marking doubtful messages as reported.
    async fn confirm_quietly(&self, publisher: &Publisher, target: &Target) -> Result<()> {
        let mut slot = self.control.lock().await;
        if self.unconfirmed(publisher) > self.known().doubtful {
            self.confirm_through(&mut slot, publisher, target).await?;
            Self::prepare(&mut slot, target);
        }
        Ok(())
    }

    /// Records that the proxy has everything up to this position that was written over the present
    /// connection.
    fn note(&self, publisher: &Publisher, mark: Position) {
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
        lock(&self.known)
    }
}

/// Has published messages confirmed once a second, and whenever `due` is notified, until `closing` is
/// cancelled: confirmed messages need not be kept any longer.
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
            // Errors are ignored: it is tried again until the connection is closed.
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

    /// Waits for an answer that confirms the messages up to `goal`. Calls `note` for each answer.
    async fn answered(&mut self, goal: u64, note: impl Fn(Position)) {
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
