//! What becomes of the connections of a socket, in words.

use std::collections::BTreeSet;

use xmsg_zmq::{Error, ErrorKind, SocketEvent, SocketEvents};
use xmsg_zmtp::{SocketType, Violation};

use super::endpoints::{End, Target};
use super::kind;
use crate::exit::AtPeer;
use crate::output::{counted, note, warn};

/// Tells of a socket's connections while it is at work.
#[derive(Debug)]
pub(crate) struct Watch {
    events: SocketEvents,
    kind: SocketType,
    /// What it connects to.
    endpoints: Vec<String>,
    /// The endpoint without which it will never have a peer, if there is just one.
    only: Option<String>,
    /// Whether it is told that a connection does not come about, which goes on being tried.
    tells_failures: bool,
    verbose: bool,
    was_connected: bool,
    failure: Option<Error>,
    /// Peers that were told to be away.
    away: BTreeSet<String>,
}

impl Watch {
    /// `events` are those of a socket of this type, from before it had any of its endpoints.
    pub(crate) fn new(events: SocketEvents, kind: SocketType, targets: &[Target], verbose: bool) -> Self {
        let connects = targets.iter().filter(|target| target.end == End::Connect);
        let only = match targets {
            [target] if target.end == End::Connect => Some(target.to_string()),
            _ => None,
        };
        Self {
            events,
            kind,
            endpoints: connects.map(ToString::to_string).collect(),
            only,
            tells_failures: true,
            verbose,
            was_connected: false,
            failure: None,
            away: BTreeSet::new(),
        }
    }

    /// For whoever tells it himself when time is up.
    pub(super) fn without_failures(self) -> Self {
        Self { tells_failures: self.verbose, ..self }
    }

    /// From now on, that a connection ends is no news.
    pub(crate) fn ends(&mut self) {
        self.endpoints.clear();
    }

    /// Whether there ever was a peer.
    pub(super) fn was_connected(&self) -> bool {
        self.was_connected
    }

    /// Why there was no connection, as far as that is known.
    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Tells what happens. Ends with why there will never be a peer, if that is so.
    pub(crate) async fn run(&mut self) -> AtPeer {
        while let Some(event) = self.events.next().await {
            if let Some(error) = self.take(event) {
                return error;
            }
        }
        std::future::pending().await
    }

    fn take(&mut self, event: SocketEvent) -> Option<AtPeer> {
        match event {
            SocketEvent::Connected { peer } => {
                self.was_connected = true;
                if self.away.remove(&peer) {
                    note(format_args!("connected to {peer} again"));
                } else if self.verbose {
                    note(format_args!("connected to {peer}"));
                }
            }
            SocketEvent::Disconnected { peer, error } => {
                let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                if self.endpoints.contains(&peer) {
                    note(format_args!(
                        "the connection to {peer} was lost ({reason}): trying to connect again"
                    ));
                    self.away.insert(peer);
                } else if self.verbose {
                    note(format_args!("{peer} has gone ({reason})"));
                }
            }
            SocketEvent::ConnectFailed { peer, error, .. } => {
                let is_hopeless = is_hopeless(error.kind());
                if is_hopeless && self.only.is_some() {
                    return Some(explained(self.kind, &peer, error));
                }
                if (is_hopeless || self.tells_failures) && self.away.insert(peer.clone()) {
                    if is_hopeless {
                        warn(explained(self.kind, &peer, error.clone()).0.with_causes());
                    } else {
                        note(format_args!(
                            "no connection to {peer} yet ({}): trying on",
                            error.with_causes()
                        ));
                    }
                }
                self.failure = Some(error);
            }
            SocketEvent::MessageDropped { topic, size, reason, .. } => {
                let topic = topic.escape_ascii();
                warn(format_args!(
                    "a message that begins with {topic}, of {size} bytes, was dropped: {reason}"
                ));
            }
            SocketEvent::PeerTooSlow { peer, messages, .. } => {
                let messages = counted(messages, "message");
                warn(format_args!("{messages} dropped for {peer}, which is too slow"));
            }
            SocketEvent::SubscriptionRefused { peer, prefix, reason } => {
                let prefix = prefix.escape_ascii();
                warn(format_args!("{peer} does not take the subscription to {prefix}: {reason}"));
            }
            _ => {}
        }
        None
    }
}

/// Whether it stays so, however often it is tried.
pub(super) fn is_hopeless(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotAllowed | ErrorKind::WrongPort)
}

/// Why there is no connection to a peer, in words for a socket of this type.
pub(super) fn explained(kind: SocketType, endpoint: &str, error: Error) -> AtPeer {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(Violation::SocketTypeMismatch { theirs, .. }) = error.downcast_ref() {
            let what = format!(
                "the socket at {endpoint} is a {theirs}, and a {kind} talks to {}: give another type, or another endpoint",
                kind::peers(kind)
            );
            return AtPeer(Error::new(ErrorKind::WrongPort, what));
        }
        cause = error.source();
    }
    AtPeer(error)
}
