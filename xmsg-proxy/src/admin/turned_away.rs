//! Those who ask the HTTP server without its token, or with a wrong one: they are counted, logged, and slowed
//! down. Answers for which there is no room are counted with them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use xmsg_zmq::link::throttle::Throttle;

use super::server::Connection;

/// How long a wrong token takes. They take it one after another, wherever they come from: that bounds how
/// many can be tried.
const PAUSE: Duration = Duration::from_millis(250);

/// How many there were.
#[derive(Debug)]
pub(super) struct TurnedAway {
    without: AtomicU64,
    wrong: AtomicU64,
    no_room: AtomicU64,
    foreign: AtomicU64,
    too_many: AtomicU64,
    turn: Semaphore,
    log: Throttle,
}

impl Default for TurnedAway {
    fn default() -> Self {
        Self {
            without: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            no_room: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            too_many: AtomicU64::new(0),
            turn: Semaphore::new(1),
            log: Throttle::default(),
        }
    }
}

impl TurnedAway {
    /// Notes a request without a token.
    pub(super) fn without(&self, connection: Option<&Connection>) {
        self.without.fetch_add(1, Ordering::Relaxed);
        self.note(connection, "no token");
    }

    /// Notes a request with a wrong token, and has whoever sent it wait. Its connection gives way to others
    /// meanwhile.
    pub(super) async fn wrong(&self, connection: Option<&Connection>) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
        self.note(connection, "a wrong token");
        if let Some(connection) = connection {
            connection.suspect();
        }
        // It is never closed.
        let _turn = self.turn.acquire().await;
        tokio::time::sleep(PAUSE).await;
    }

    /// Notes a request that is not answered because there is no room for the answer.
    pub(super) fn no_room(&self, connection: Option<&Connection>) {
        self.no_room.fetch_add(1, Ordering::Relaxed);
        self.note(connection, "an answer for which there is no room");
    }

    /// Notes a change that may come from a page of another site.
    pub(super) fn foreign(&self, connection: Option<&Connection>) {
        self.foreign.fetch_add(1, Ordering::Relaxed);
        self.note(connection, "a change, which did not come from a page of ours,");
    }

    /// Notes a change by a session that makes too many of them.
    pub(super) fn too_many(&self, connection: Option<&Connection>) {
        self.too_many.fetch_add(1, Ordering::Relaxed);
        self.note(connection, "a session that changes too much in a second");
    }

    fn note(&self, connection: Option<&Connection>, what: &str) {
        if let Some(unlogged) = self.log.pass("HTTP requests that were refused") {
            let peer = connection.map(|connection| tracing::field::display(connection.peer()));
            tracing::warn!(peer, unlogged, "HTTP: a request with {what} was refused");
        }
    }

    /// Requests that were refused, by reason.
    pub(super) fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("no_token", &self.without),
            ("wrong_token", &self.wrong),
            ("no_room", &self.no_room),
            ("foreign", &self.foreign),
            ("too_many", &self.too_many),
        ]
        .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}
