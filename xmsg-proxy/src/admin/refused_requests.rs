//! Requests that the HTTP server refuses, such as those without its token or with a wrong one. They are
//! counted and logged, and whoever sends wrong tokens is slowed down. Answers for which there is no room are
//! counted with them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use xmsg_zmq::link::throttle::Throttle;

use super::server::Connection;

/// How long the answer to a wrong token takes. These answers wait one after another, wherever the requests
/// come from, which bounds how many tokens can be tried.
const WRONG_TOKEN_DELAY: Duration = Duration::from_millis(250);

/// The number of refused requests, by reason.
#[derive(Debug)]
pub(super) struct RefusedRequests {
    no_token: AtomicU64,
    wrong_token: AtomicU64,
    no_room: AtomicU64,
    foreign: AtomicU64,
    too_many: AtomicU64,
    delays: Semaphore,
    log: Throttle,
}

impl Default for RefusedRequests {
    fn default() -> Self {
        Self {
            no_token: AtomicU64::new(0),
            wrong_token: AtomicU64::new(0),
            no_room: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            too_many: AtomicU64::new(0),
            delays: Semaphore::new(1),
            log: Throttle::default(),
        }
    }
}

impl RefusedRequests {
    /// Notes a request without a token.
    pub(super) fn no_token(&self, connection: Option<&Connection>) {
        self.no_token.fetch_add(1, Ordering::Relaxed);
        self.note(connection, "no token");
    }

    /// Notes a request with a wrong token, and has whoever sent it wait. Its connection may be ended for
    /// others meanwhile.
    pub(super) async fn wrong_token(&self, connection: Option<&Connection>) {
        self.wrong_token.fetch_add(1, Ordering::Relaxed);
        self.note(connection, "a wrong token");
        if let Some(connection) = connection {
            connection.set_suspect();
        }
        // The semaphore is never closed.
        let _delay = self.delays.acquire().await;
        tokio::time::sleep(WRONG_TOKEN_DELAY).await;
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

    /// Returns how many requests were refused, by reason.
    pub(super) fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("no_token", &self.no_token),
            ("wrong_token", &self.wrong_token),
            ("no_room", &self.no_room),
            ("foreign", &self.foreign),
            ("too_many", &self.too_many),
        ]
        .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}
