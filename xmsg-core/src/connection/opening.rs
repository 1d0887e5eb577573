//! Opening the publishing socket of a connection, and the check of it with the proxy (section 2 of the xMsg protocol).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::Target;
use crate::address::DEFAULT_PROXY_PORT;
use crate::control::{CONTROL_TOPIC, Request};
use crate::options::CHECK_INTERVAL;
use crate::socket::{Dealer, Publisher, SocketEvent, SocketEvents, SocketOptions};
use crate::{ConnectionId, Error, ErrorKind, Result};

/// The first pause between two checks; it doubles up to [`CHECK_INTERVAL`].
pub(super) const FIRST_CHECK_INTERVAL: Duration = Duration::from_millis(2);

/// A publishing socket that is connected to the proxy, and checked unless the options say otherwise. It ends with
/// [`Closed`](ErrorKind::Closed) as soon as `closing` is cancelled, and leaves no socket behind when it fails or is dropped.
pub(super) async fn open(target: Arc<Target>, closing: CancellationToken) -> Result<Publisher> {
    tokio::select! {
        biased;
        () = closing.cancelled() => Err(closed(&target)),
        opened = try_open(&target) => opened,
    }
}

pub(super) fn closed(target: &Target) -> Error {
    Error::new(ErrorKind::Closed, format!("the connection to {} is closed", target.address))
}

async fn try_open(target: &Target) -> Result<Publisher> {
    let Target { address, options, events, .. } = target;
    let publisher = Publisher::with_parent(options.connecting(address), events.clone());
    // Whatever ends this before the socket is handed over ends the socket.
    let unchecked = Unchecked(Some(publisher.clone()));
    let mut failures = publisher.events();
    let [endpoint, _, _] = options.endpoints_of(address)?;
    publisher.connect(endpoint);
    if options.checks_connection() {
        let mut failure = None;
        let check = async {
            tokio::select! {
                biased;
                result = check(target, &publisher) => result,
                // The sockets go on trying, and so does the check, unless nobody wants us.
                why = note_failures(&mut failures, &mut failure) => Err(not_allowed(target, why)),
            }
        };
        let timeout = options.connection_limit();
        match tokio::time::timeout(timeout, check).await {
            Ok(result) => result?,
            Err(_) => return Err(no_proxy(target, timeout, failure)),
        }
    }
    options.connected(address).await;
    target.confirmations.begin(&publisher);
    unchecked.keep();
    Ok(publisher)
}

/// Ends a socket that was not found good.
struct Unchecked(Option<Publisher>);

impl Unchecked {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unchecked {
    fn drop(&mut self) {
        if let Some(publisher) = &self.0 {
            publisher.abort();
        }
    }
}

/// Asks until the answer comes: at once when the proxy says that it listens for control requests, and every 100 ms.
async fn check(target: &Target, publisher: &Publisher) -> Result<()> {
    let mut control = control_socket(target, target.id)?;
    let request = Request::Publisher(target.id);
    // The answer goes to our control socket: without it there is nobody to answer.
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

/// A control socket with this identity: answers to requests that carry it arrive there.
pub(super) fn control_socket(target: &Target, id: ConnectionId) -> Result<Dealer> {
    let identity = Bytes::copy_from_slice(id.as_bytes());
    let options = SocketOptions { identity, ..target.options.connecting(&target.address) };
    let [_, _, endpoint] = target.options.endpoints_of(&target.address)?;
    Ok(Dealer::connect(endpoint, options))
}

/// For how long an answer is waited for before the question is repeated: other implementations wait for 100 ms every time; the first
/// question may just have come too early, so we ask again soon, and settle down to the same. Endless: a time limit ends the check.
pub(super) fn check_intervals() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FIRST_CHECK_INTERVAL), |interval| Some((*interval * 2).min(CHECK_INTERVAL)))
}

/// Notes why there is no connection. Ends when the other side does not want us, and says why.
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

fn no_proxy(target: &Target, timeout: Duration, failure: Option<Error>) -> Error {
    let address = &target.address;
    let kind = match failure.as_ref().map(Error::kind) {
        None => ErrorKind::Timeout,
        Some(kind @ (ErrorKind::UnknownHost | ErrorKind::WrongPort | ErrorKind::NoResources)) => kind,
        Some(_) => ErrorKind::Refused,
    };
    let hint = match kind {
        ErrorKind::UnknownHost => "is the name of the host right?".to_owned(),
        ErrorKind::WrongPort => match failure.as_ref().and_then(|failure| address.meant(failure)) {
            Some(meant) => format!("that is another port of a proxy; is {meant} meant?"),
            None => format!(
                "give the port for publishers, the lowest of the proxy's three, default {DEFAULT_PROXY_PORT}"
            ),
        },
        ErrorKind::NoResources => {
            "this process has no file descriptors left: raise its limit (ulimit -n)".to_owned()
        }
        _ => format!(
            "is it running there, with ports {} to {} reachable?",
            address.publish_port(),
            address.control_port()
        ),
    };
    let error = Error::new(kind, format!("no answer from a proxy at {address} within {timeout:?}: {hint}"));
    match failure {
        Some(failure) => error.with_source(failure),
        None => error,
    }
}
