//! The identity of a peer, and the rights that it has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use xmsg_zmtp::Principal;

use super::paced_log::PacedLog;
use super::subscriber::TOPIC_SHOWN;
use crate::security::{Authority, Rights};
use xmsg_zmq::lock::lock;

/// The name of log lines about denied operations when there are too many of them.
const DENIALS: &str = "peers that were not allowed something";

/// The identity of a peer, and its rights under the rules in force.
#[derive(Debug)]
pub(super) struct Authorization {
    authority: Arc<Authority>,
    principal: Option<Arc<Principal>>,
    known: Mutex<(u64, Option<Arc<Rights>>)>,
    /// The rights that it has whatever the rules say.
    fixed: Option<Arc<Rights>>,
    denied: AtomicU64,
    log: PacedLog<u64>,
    /// Ends its connection because the rules no longer admit it.
    pub(super) revoked: CancellationToken,
    /// Ends its connection because an operator asked for it.
    pub(super) ended_by_operator: CancellationToken,
}

impl Authorization {
    /// Creates the authorization of a peer that came with these credentials, or with none.
    pub(super) fn new(authority: &Arc<Authority>, principal: Option<Principal>) -> Self {
        let generation = authority.generation();
        let rights = authority.rights(principal.as_ref());
        Self {
            authority: authority.clone(),
            principal: principal.map(Arc::new),
            known: Mutex::new((generation, rights)),
            fixed: None,
            denied: AtomicU64::new(0),
            log: PacedLog::default(),
            revoked: CancellationToken::new(),
            ended_by_operator: CancellationToken::new(),
        }
    }

    /// Creates the authorization of a peer that this proxy has connected to, with these rights. The rules
    /// apply to peers that connect to this proxy.
    pub(super) fn fixed(authority: &Arc<Authority>, rights: Rights) -> Self {
        Self { fixed: Some(Arc::new(rights)), ..Self::new(authority, None) }
    }

    /// Returns its rights now, or `None` if the rules no longer admit it.
    pub(super) fn rights(&self) -> Option<Arc<Rights>> {
        if self.fixed.is_some() {
            return self.fixed.clone();
        }
        let mut known = lock(&self.known);
        let generation = self.authority.generation();
        if known.0 != generation {
            *known = (generation, self.authority.rights(self.principal.as_deref()));
        }
        known.1.clone()
    }

    /// Ends the connection if the rules no longer admit the peer. Returns whether it did.
    pub(super) fn revoke_if_not_admitted(&self, peer: &str) -> bool {
        let is_to_be_revoked = !self.revoked.is_cancelled() && self.rights().is_none();
        if is_to_be_revoked {
            // This writes the log line.
            let _ = self.authority.still_admits(peer, self.principal.as_deref());
            self.revoked.cancel();
        }
        is_to_be_revoked
    }

    /// Returns whether it may subscribe to this prefix, which it needs in order to `what`. A denial is
    /// counted.
    pub(super) fn may_subscribe(&self, peer: &str, what: &str, prefix: &[u8]) -> bool {
        let may = self.rights().is_some_and(|rights| rights.may_subscribe(prefix));
        if !may {
            self.deny(peer, what, prefix, 1);
        }
        may
    }

    /// Counts an operation that was denied, and logs denials now and then.
    pub(super) fn deny(&self, peer: &str, what: &str, topic: &[u8], count: u64) {
        let in_all = self.denied.fetch_add(count, Ordering::Relaxed) + count;
        if let Some(before) = self.log.pass(in_all)
            && let Some(unlogged) = self.authority.denials.pass(DENIALS)
        {
            tracing::warn!(
                peer,
                principal = self.principal_text(),
                topic = %topic[..topic.len().min(TOPIC_SHOWN)].escape_ascii(),
                denied = in_all - before,
                denied_in_all = in_all,
                unlogged,
                "not allowed to {what}: see its rights in the configuration"
            );
        }
    }

    /// Logs, at the end of the connection, the denials that were not logged yet.
    pub(super) fn log_rest(&self, peer: &str) {
        let in_all = self.denied();
        let before = self.log.take(in_all);
        if before < in_all
            && let Some(unlogged) = self.authority.denials.pass(DENIALS)
        {
            tracing::warn!(
                peer,
                principal = self.principal_text(),
                denied = in_all - before,
                denied_in_all = in_all,
                unlogged,
                "not allowed, until it left: see its rights in the configuration"
            );
        }
    }

    pub(super) fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    /// Returns the identity that the peer has proved.
    pub(super) fn principal(&self) -> Option<&Arc<Principal>> {
        self.principal.as_ref()
    }

    /// Returns the identity as text, for people.
    pub(super) fn principal_text(&self) -> Option<String> {
        self.principal.as_deref().map(ToString::to_string)
    }
}
