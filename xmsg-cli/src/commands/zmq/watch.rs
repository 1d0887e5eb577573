//! Reports what happens to the connections of a socket.

use std::collections::{BTreeSet, HashMap};
use std::iter::successors;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;
use xmsg_zmq::{Error, ErrorKind, SocketEvent, SocketEvents};
use xmsg_zmtp::{Blame, Limited, SocketType, Violation};

use super::endpoints::{End, Target};
use super::kind;
use crate::exit::AtPeer;
use crate::output::{counted, note, warn};

/// How long to wait before a lost connection is reported. A peer that ends together with us is not worth a
/// note.
const LOSS_DELAY: Duration = Duration::from_millis(300);
/// The shortest time between two reports of messages that a peer has lost.
const LOSSES_INTERVAL: Duration = Duration::from_secs(1);
/// The largest number of reports that are remembered, so that nothing is reported twice.
const REPORTS_MAX: usize = 64;
/// How long a report is remembered at least. When all are still remembered, nothing new is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(600);

/// Reports what happens to the connections of a socket while it is used.
#[derive(Debug)]
pub(crate) struct Watch {
    events: SocketEvents,
    ours: OwnSocket,
    /// The endpoints that it connects to.
    endpoints: Vec<String>,
    /// The endpoint without which it can never have a peer, if there is only one.
    only: Option<String>,
    /// Whether failed attempts to connect are reported. They are always retried.
    tells_failures: bool,
    verbose: bool,
    was_connected: bool,
    failure: Option<Error>,
    /// Lost connections: the peer, the reason, and when to report it.
    lost: Vec<(String, String, Instant)>,
    /// Peers whose absence was reported.
    away: BTreeSet<String>,
    recent_reports: RecentReports,
}

/// Our socket, as far as it matters for advice about a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnSocket {
    pub(crate) kind: SocketType,
    pub(crate) place: Place,
}

/// What the user can change about a socket, besides its endpoints.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// The type can be changed.
    Chosen,
    /// Nothing can be changed: the sockets of the command have a fixed type.
    Fixed,
    /// The socket is one end of a device. A peer may belong to the other end, which has this name and type.
    End(&'static str, SocketType),
}

impl OwnSocket {
    /// Returns advice about a peer of this type, which was rejected because the types do not fit.
    fn advice_for_peer(self, theirs: &str) -> Option<String> {
        if let Place::End(other, kind) = self.place {
            let fits = SocketType::from_name(theirs.as_bytes()).is_some_and(|theirs| kind.fits(theirs));
            return fits.then(|| format!("; it has to connect to the {other}"));
        }
        let [this, other] = device_ends(self.kind, theirs)?;
        Some(format!("; a device has its {this} here, and has to connect with its {other}"))
    }

    /// Returns advice about a peer of this type that we have connected to.
    fn advice(self, theirs: &str) -> Option<String> {
        if let Place::End(other, kind) = self.place {
            let fits = SocketType::from_name(theirs.as_bytes()).is_some_and(|theirs| kind.fits(theirs));
            return fits.then(|| format!("; it belongs to the {other}"));
        }
        let [this, other] = device_ends(self.kind, theirs)?;
        let name = kind::with_article(self.kind.name());
        Some(format!("; if that is a device, this is its {this}, and {name} connects to its {other}"))
    }
}

impl Watch {
    /// Makes a watch. `events` are those of the socket, from before it had any endpoints.
    pub(crate) fn new(events: SocketEvents, ours: OwnSocket, targets: &[Target], verbose: bool) -> Self {
        let connects = targets.iter().filter(|target| target.end == End::Connect);
        let only = match targets {
            [target] if target.end == End::Connect => Some(target.to_string()),
            _ => None,
        };
        Self {
            events,
            ours,
            endpoints: connects.map(ToString::to_string).collect(),
            only,
            tells_failures: true,
            verbose,
            was_connected: false,
            failure: None,
            lost: Vec::new(),
            away: BTreeSet::new(),
            recent_reports: RecentReports::default(),
        }
    }

    /// Suppresses reports of failed attempts, for a caller that reports the failure itself when the time is
    /// up.
    pub(super) fn without_failures(self) -> Self {
        Self { tells_failures: self.verbose, ..self }
    }

    /// Suppresses reports of ended connections from now on.
    pub(crate) fn ends(&mut self) {
        self.endpoints.clear();
        self.lost.clear();
        self.away.clear();
        self.tells_failures = false;
    }

    /// Returns whether there ever was a peer.
    pub(super) fn was_connected(&self) -> bool {
        self.was_connected
    }

    /// Returns why there was no connection, as far as that is known.
    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Reports what happens. It returns only when there can never be a peer, with the reason.
    pub(crate) async fn run(&mut self) -> AtPeer {
        loop {
            let due = self.lost.first().map(|(_, _, due)| *due);
            let loss_is_due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                event = self.events.next() => event,
                () = loss_is_due => {
                    self.tell_loss();
                    continue;
                }
            };
            let Some(event) = event else { break };
            if let Some(error) = self.take(event) {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Reports the connection that was lost first.
    fn tell_loss(&mut self) {
        let (peer, reason, _) = self.lost.remove(0);
        note(format_args!("the connection to {peer} was lost ({reason}): trying to connect again"));
        self.away.insert(peer);
    }

    fn take(&mut self, event: SocketEvent) -> Option<AtPeer> {
        match event {
            SocketEvent::Connected { peer } => {
                self.was_connected = true;
                self.lost.retain(|(lost, ..)| *lost != peer);
                if self.away.remove(&peer) {
                    note(format_args!("connected to {peer} again"));
                } else if self.verbose {
                    note(format_args!("connected to {peer}"));
                }
            }
            SocketEvent::Disconnected { peer, error } => self.disconnected(peer, &error),
            SocketEvent::HandshakeFailed { peer, error } => self.refused_by_peer(&peer, &error),
            SocketEvent::ConnectFailed { peer, error, .. } => {
                let is_hopeless = is_hopeless(error.kind());
                if is_hopeless && self.only.is_some() {
                    return Some(explained(self.ours, &peer, error));
                }
                let is_lost = self.lost.iter().any(|(lost, ..)| *lost == peer);
                if (is_hopeless || self.tells_failures && !is_lost) && self.away.insert(peer.clone()) {
                    if is_hopeless {
                        warn(explained(self.ours, &peer, error.clone()).0.with_causes());
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

    /// Handles a connection that has ended.
    fn disconnected(&mut self, peer: String, error: &Error) {
        let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        let comes_again = self.endpoints.contains(&peer);
        if let Some(violation) = violation(error).filter(|it| it.blame() == Blame::PeerMisbehaved) {
            // The data that the peer was sending is lost.
            if self.recent_reports.is_due(format!("lost {}", host(&peer)), LOSSES_INTERVAL, Instant::now()) {
                let again = if comes_again { "; trying to connect again" } else { "" };
                let option = option_for(violation);
                warn(format_args!(
                    "the connection to {peer} was ended, and what it was sending is lost: {reason}{option}{again}"
                ));
            }
            if comes_again {
                self.away.insert(peer);
            }
        } else if comes_again {
            self.lost.push((peer, reason, Instant::now() + LOSS_DELAY));
        } else if self.verbose {
            note(format_args!("{peer} has gone ({reason})"));
        }
    }

    /// Reports a peer that has connected to us and was rejected.
    fn refused_by_peer(&mut self, peer: &str, error: &Error) {
        let why = match violation(error) {
            Some(Violation::SocketTypeMismatch { theirs, .. }) => {
                let (ours, talks_to) =
                    (kind::with_article(self.ours.kind.name()), kind::peers(self.ours.kind));
                let advice = self.ours.advice_for_peer(theirs).unwrap_or_default();
                let theirs = kind::with_article(theirs);
                format!("was not let in: it is {theirs}, and {ours} talks to {talks_to}{advice}")
            }
            Some(violation @ (Violation::NotZmtp | Violation::VersionTooOld)) => {
                format!("was not let in: {violation}")
            }
            Some(violation) if violation.is_refusal() && !matches!(violation, Violation::ClosedByPeer(_)) => {
                format!("was not let in: {violation}")
            }
            // There is no room for another connection, or the peer rejects us.
            None if error.kind() == ErrorKind::Refused => {
                let text = error.to_string();
                text.strip_prefix(peer).unwrap_or(&text).trim_start().to_owned()
            }
            // A program that only checks whether something listens disconnects without a handshake.
            _ if self.verbose => format!("was not let in: {}", error.with_causes()),
            _ => return,
        };
        if self.recent_reports.is_due(format!("{} {why}", host(peer)), REPORT_INTERVAL, Instant::now()) {
            warn(format_args!("{peer} {why}"));
        }
    }
}

/// What was reported about peers that connect repeatedly.
#[derive(Debug, Default)]
struct RecentReports(HashMap<String, Instant>);

impl RecentReports {
    /// Returns whether to report this now: it was not reported before, or at least `interval` ago.
    fn is_due(&mut self, what: String, interval: Duration, now: Instant) -> bool {
        let last = self.0.get(&what);
        if last.is_some_and(|last| now.duration_since(*last) < interval) {
            return false;
        }
        if last.is_none() && self.0.len() >= REPORTS_MAX {
            self.0.retain(|_, last| now.duration_since(*last) < REPORT_INTERVAL);
            if self.0.len() >= REPORTS_MAX {
                return false;
            }
        }
        self.0.insert(what, now);
        true
    }
}

/// Returns a peer without its port, which differs for each connection.
fn host(peer: &str) -> String {
    peer.parse().map_or_else(|_| peer.to_owned(), |address: SocketAddr| address.ip().to_string())
}

/// Returns the protocol violation that an error comes from, if there is one.
pub(super) fn violation(error: &Error) -> Option<&Violation> {
    let first: &(dyn std::error::Error + 'static) = error;
    successors(Some(first), |error| error.source()).find_map(|error| error.downcast_ref())
}

/// Returns the option that raises a limit, as text to append.
pub(super) fn option_for(violation: &Violation) -> &'static str {
    match violation {
        Violation::TooLarge { what: Limited::Message | Limited::Box, .. } => {
            " (--max-message-size raises it)"
        }
        _ => "",
    }
}

/// Makes the error of a socket that had no peer in time, with the reason as far as it is known.
pub(super) fn without_connection(what: String, failure: Option<Error>) -> AtPeer {
    AtPeer(match failure {
        Some(failure) => Error::new(Error::kind_without_connection(&failure), what).with_source(failure),
        None => Error::new(ErrorKind::NotConnected, what),
    })
}

/// Returns whether retrying cannot help.
pub(super) fn is_hopeless(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotAllowed | ErrorKind::WrongPort)
}

/// Explains why there is no connection to a peer, in terms of our socket.
pub(super) fn explained(ours: OwnSocket, endpoint: &str, error: Error) -> AtPeer {
    let Some(Violation::SocketTypeMismatch { theirs, .. }) = violation(&error) else { return AtPeer(error) };
    let give = match ours.place {
        Place::Chosen => "give another type, or another endpoint",
        Place::Fixed | Place::End(..) => "give another endpoint",
    };
    let what = format!(
        "the socket at {endpoint} is {}, and {} talks to {}: {give}{}",
        kind::with_article(theirs),
        kind::with_article(ours.kind.name()),
        kind::peers(ours.kind),
        ours.advice(theirs).unwrap_or_default()
    );
    AtPeer(Error::new(ErrorKind::WrongPort, what))
}

/// Returns which end of a device a socket of this type may be, if it does not fit ours, and the end that
/// would fit.
fn device_ends(ours: SocketType, theirs: &str) -> Option<[&'static str; 2]> {
    use SocketType::{Pub, Pull, Push, Rep, Req, Sub, Xpub, Xsub};
    match (ours, theirs) {
        (Rep, "ROUTER") | (Sub | Xsub, "XSUB") | (Pull, "PULL") => Some(["frontend", "backend"]),
        (Req, "DEALER") | (Pub | Xpub, "XPUB") | (Push, "PUSH") => Some(["backend", "frontend"]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_and_again_is_told_once() {
        let mut recent_reports = RecentReports::default();
        let start = Instant::now();
        let mut is_due = |what: &str, after: u64| {
            let now = start + Duration::from_secs(after);
            recent_reports.is_due(what.to_owned(), Duration::from_secs(60), now)
        };
        assert!(is_due("a", 0));
        assert!(!is_due("a", 59) && is_due("b", 59));
        assert!(is_due("a", 60) && !is_due("a", 61));
        // The number of reports is limited.
        let due = (0..1000).filter(|number| is_due(&number.to_string(), 61)).count();
        assert_eq!(due, REPORTS_MAX - 2);
        assert!(is_due("c", 61 + REPORT_INTERVAL.as_secs()));
    }

    #[test]
    fn a_peer_is_known_by_its_host() {
        for (peer, known) in
            [("127.0.0.1:5", "127.0.0.1"), ("[::1]:5", "::1"), ("/run/app.sock", "/run/app.sock")]
        {
            assert_eq!(host(peer), known);
        }
    }

    #[test]
    fn the_wrong_end_of_a_device_is_told() {
        let backend = Place::End("backend", SocketType::Dealer);
        for (kind, place, theirs, says) in [
            (SocketType::Rep, Place::Fixed, "ROUTER", "a REP connects to its backend"),
            (SocketType::Req, Place::Fixed, "DEALER", "its backend, and a REQ connects to its frontend"),
            (SocketType::Xsub, Place::Chosen, "XSUB", "is an XSUB, and an XSUB talks to PUB or XPUB"),
            (
                SocketType::Router,
                backend,
                "REP",
                "REQ, DEALER or ROUTER: give another endpoint; it belongs to the backend",
            ),
            (
                SocketType::Router,
                backend,
                "PUB",
                "is a PUB, and a ROUTER talks to REQ, DEALER or ROUTER: give",
            ),
        ] {
            let ours = OwnSocket { kind, place };
            let violation = Violation::SocketTypeMismatch { theirs: theirs.to_owned(), ours: kind.name() };
            let error = Error::new(ErrorKind::WrongPort, "no handshake").with_source(violation);
            let text = explained(ours, "tcp://a:1", error).to_string();
            assert!(text.contains(says), "{text}");
            assert_eq!(text.contains("another type"), matches!(place, Place::Chosen), "{text}");
        }
        let advice = |ours: OwnSocket, theirs| ours.advice_for_peer(theirs).unwrap_or_default();
        let rep = OwnSocket { kind: SocketType::Rep, place: Place::Fixed };
        assert!(advice(rep, "ROUTER").contains("has to connect with its backend"));
        let frontend = OwnSocket { kind: SocketType::Pull, place: Place::End("backend", SocketType::Push) };
        for (theirs, says) in [("PULL", "; it has to connect to the backend"), ("PUB", ""), ("?", "")] {
            assert_eq!(advice(frontend, theirs), says);
        }
    }
}
