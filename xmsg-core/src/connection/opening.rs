//! Opening of the publishing socket of a connection, and its check with the proxy (section 2 of the xMsg
//! protocol).

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::Target;
use super::confirmation::keep_confirming;
use crate::address::DEFAULT_PROXY_PORT;
use crate::control::{CONTROL_TOPIC, Request};
use crate::options::CHECK_INTERVAL;
use crate::{Error, ErrorKind, Result, meta};
use xmsg_zmq::link::send_queue::RedeliveredFrames;
use xmsg_zmq::{Dealer, Publisher, SocketEvent, SocketEvents, TcpOptions};

/// The first interval between two checks. It doubles up to [`CHECK_INTERVAL`].
pub(super) const FIRST_CHECK_INTERVAL: Duration = Duration::from_millis(2);

/// Opens a publishing socket, connects it to the proxy, and checks it unless the options disable the check.
///
/// It fails with [`Closed`](ErrorKind::Closed) as soon as `closing` is cancelled. When it fails or is
/// dropped, it leaves no socket behind.
pub(super) async fn open(target: Arc<Target>, closing: CancellationToken) -> Result<Publisher> {
    tokio::select! {
        biased;
        () = closing.cancelled() => Err(closed(&target)),
        opened = try_open(&target, &closing) => opened,
    }
}

pub(super) fn closed(target: &Target) -> Error {
    Error::new(ErrorKind::Closed, format!("the connection to {} was closed here", target.address))
}

async fn try_open(target: &Arc<Target>, closing: &CancellationToken) -> Result<Publisher> {
    let Target { address, options, events, .. } = &**target;
    let publisher = Publisher::with_parent(options.connecting(address).for_socket(), events.clone());
    // Whatever ends this function before the socket is returned also closes the socket.
    let unchecked = CloseOnDrop { publisher: Some(publisher.clone()), target };
    let mut failures = publisher.events();
    let [endpoint, _, _] = options.endpoints_of(address)?;
    publisher.connect(endpoint);
    let due = if options.repeats() { publisher.retain(again) } else { None };
    if options.checks_connection() {
        let identity = Bytes::copy_from_slice(target.id.as_bytes());
        let (mut control, mut failure) = (control_socket(target, identity)?, None);
        let checked = async {
            tokio::select! {
                biased;
                result = check(target, &publisher, &mut control) => result,
                // The sockets retry, and so does the check, unless the proxy rejects us.
                why = note_failures(&mut failures, &mut failure) => Err(not_allowed(target, why)),
            }
        };
        let timeout = options.connection_limit();
        let checked = tokio::time::timeout(timeout, checked).await;
        let late =
            |_| no_proxy(target, timeout, publisher.failure().or_else(|| control.failure()).or(failure));
        checked.map_err(late)??;
    }
    options.connected(address).await;
    target.confirmations.begin(&publisher);
    if let Some(due) = due {
        tokio::spawn(keep_confirming(target.clone(), publisher.clone(), due, closing.clone()));
    }
    unchecked.keep();
    Ok(publisher)
}

/// Closes a socket that did not pass the check.
struct CloseOnDrop<'a> {
    publisher: Option<Publisher>,
    target: &'a Target,
}

impl CloseOnDrop<'_> {
    fn keep(mut self) {
        self.publisher = None;
    }
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(publisher) = &self.publisher {
            // The reason is kept for callers whose time limit has passed.
            *self.target.failure() = publisher.failure();
            publisher.abort();
        }
    }
}

/// Prepares a message that may have arrived to be sent again. `None` for control requests: whoever waits for
/// the answer makes a new one.
fn again(frames: &RedeliveredFrames) -> Option<RedeliveredFrames> {
    let [topic, meta, data] = &frames[..] else { return Some(frames.clone()) };
    if topic.starts_with(CONTROL_TOPIC.as_bytes()) {
        return None;
    }
    // A frame that is not xMsg metadata, or has no room for another header, is left unchanged.
    let meta = meta::with_header(meta, meta::REPEATED, Some("possibly")).unwrap_or_else(|_| meta.clone());
    Some([topic.clone(), meta, data.clone()].into())
}

/// Sends the connection check until the proxy answers. It starts as soon as the proxy has subscribed to
/// control requests, or after 100 ms, and repeats at the [`check_intervals`].
async fn check(target: &Target, publisher: &Publisher, control: &mut Dealer) -> Result<()> {
    let request = Request::of_connection(target.id);
    // The answer goes to our control socket: the proxy cannot answer before that is connected.
    control.connected().await?;
    let _ =
        tokio::time::timeout(CHECK_INTERVAL, publisher.wait_for_subscriber(CONTROL_TOPIC.as_bytes())).await;
    for interval in check_intervals() {
        publisher.publish(request.message()).await?;
        let answered = async {
            while let Some(message) = control.recv().await {
                if request.is_answered_by(&message) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        if tokio::time::timeout(interval, answered).await.is_ok() {
            break;
        }
    }
    Ok(())
}

/// Makes a control socket with this identity. It receives the answers to requests that carry the identity.
pub(super) fn control_socket(target: &Target, identity: Bytes) -> Result<Dealer> {
    let options = target.options.connecting(&target.address);
    // Such a socket is made for one answer, perhaps a thousand times a second: the reset keeps it from using
    // up the ports with connections in TIME_WAIT.
    let tcp = TcpOptions { reset_on_close: true, ..options.settings().tcp.clone() };
    let [_, _, endpoint] = target.options.endpoints_of(&target.address)?;
    Ok(Dealer::connecting_to(endpoint, options.for_socket().identity(identity).tcp(tcp)))
}

/// Returns how long to wait for an answer each time before the request is repeated.
///
/// Other implementations wait for 100 ms every time. The first request may have come just too early, so the
/// first intervals are shorter. The iterator is endless: a time limit ends the check.
pub(super) fn check_intervals() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FIRST_CHECK_INTERVAL), |interval| Some((*interval * 2).min(CHECK_INTERVAL)))
}

/// Records why there is no connection. It returns only when the other side rejects us, with the reason.
async fn note_failures(events: &mut SocketEvents, failure: &mut Option<Error>) -> Error {
    while let Some(event) = events.next().await {
        match event {
            SocketEvent::ConnectFailed { error, .. } if error.kind() == ErrorKind::NotAllowed => {
                return error;
            }
            SocketEvent::ConnectFailed { error, .. } | SocketEvent::Disconnected { error, .. } => {
                *failure = Some(error);
            }
            _ => {}
        }
    }
    std::future::pending().await
}

fn not_allowed(target: &Target, why: Error) -> Error {
    let what = format!(
        "the proxy at {} does not let us in: check the security mechanism, the keys, or name and password, on both sides",
        target.address
    );
    Error::new(ErrorKind::NotAllowed, what).with_source(why)
}

/// Returns the error kind of a connection attempt that failed for this reason.
pub(super) fn kind_of(failure: Option<&Error>) -> ErrorKind {
    use ErrorKind::{NoResources, NotAllowed, Timeout, UnknownHost, WrongPort};
    match failure.map(Error::kind) {
        None => Timeout,
        Some(kind @ (UnknownHost | WrongPort | NoResources | NotAllowed | Timeout)) => kind,
        Some(_) => ErrorKind::Refused,
    }
}

fn no_proxy(target: &Target, timeout: Duration, failure: Option<Error>) -> Error {
    let address = &target.address;
    let kind = kind_of(failure.as_ref());
    let (found, hint) = match kind {
        ErrorKind::UnknownHost => (": there is no such host", "is its name right?".to_owned()),
        ErrorKind::WrongPort => match failure.as_ref().and_then(|failure| address.meant(failure)) {
            Some(meant) => (": that is another port of a proxy", format!("is {meant} meant?")),
            None => (
                ": something else listens there",
                format!(
                    "give the port for publishers, the lowest of the proxy's three, default {DEFAULT_PROXY_PORT}"
                ),
            ),
        },
        ErrorKind::NoResources => {
            ("", "this process has no file descriptors left: raise its limit (ulimit -n)".to_owned())
        }
        ErrorKind::Timeout if failure.is_some() => {
            (": it takes connections and says nothing", "is it another program, or suspended?".to_owned())
        }
        _ => (
            if failure.as_ref().is_some_and(nobody_listens) { ": nobody listens there" } else { "" },
            format!(
                "is it running there, with ports {} to {} reachable?",
                address.publish_port(),
                address.control_port()
            ),
        ),
    };
    let what = format!("no answer from a proxy at {address}{found} (tried for {timeout:?}): {hint}");
    let error = Error::new(kind, what);
    match failure {
        Some(failure) => error.with_source(failure),
        None => error,
    }
}

/// Returns whether the operating system refused the connection, because nothing listens at the address.
fn nobody_listens(failure: &Error) -> bool {
    let cause = failure.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConnectionId, Message, Topic};

    /// The answer to a request that was sent again would be taken for the answer to a later one, and confirm
    /// too much.
    #[test]
    fn what_is_sent_again_is_marked_and_requests_are_not_sent_again() {
        let frames =
            |message: xmsg_zmq::Multipart| message.frames().iter().cloned().collect::<RedeliveredFrames>();
        for request in
            [Request::of_connection(ConnectionId::random()), Request::Subscription(Topic::wrap("a"))]
        {
            assert_eq!(again(&frames(request.message())), None);
        }
        let message = Message::of("a:b", 7).unwrap().with_header("trace", "x").unwrap();
        let repeated = again(&message.clone().into_frames().into_iter().collect()).unwrap();
        let [topic, meta, data] = repeated.into_inner().unwrap();
        let repeated = Message::from_frames(topic, meta, data);
        assert!(repeated.may_be_repeated() && !message.may_be_repeated());
        assert_eq!(repeated.header("trace").unwrap(), Some("x"));
        assert_eq!((repeated.topic(), repeated.value::<i32>().unwrap()), (message.topic(), 7));
        for odd in [&["two", "frames"][..], &["a", "\x00no metadata", "x"]] {
            let odd: RedeliveredFrames =
                odd.iter().map(|frame| Bytes::from_static(frame.as_bytes())).collect();
            assert_eq!(again(&odd).unwrap(), odd);
        }
    }
}
