//! Who a peer is, and what it may do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use xmsg_zmtp::Principal;

use super::peers::{Spaced, TOPIC_SHOWN};
use crate::security::{Authority, Rights};
use xmsg_zmq::lock::lock;

/// What lines about them are called when there are too many.
const DENIALS: &str = "peers that were not allowed something";

/// Who a peer is, and what it may do under the rules in force.
#[derive(Debug)]
pub(super) struct Grant {
    authority: Arc<Authority>,
    principal: Option<Arc<Principal>>,
    known: Mutex<(u64, Option<Arc<Rights>>)>,
    /// What it may do whatever the rules say.
    fixed: Option<Arc<Rights>>,
    denied: AtomicU64,
    log: Spaced<u64>,
    /// Ends its connection because the rules do not admit it any more.
    pub(super) revoked: CancellationToken,
    /// Ends its connection because an operator wants that.
    pub(super) unwanted: CancellationToken,
}

impl Grant {
    /// Of a peer that came with these credentials, or with none.
    pub(super) fn new(authority: &Arc<Authority>, principal: Option<Principal>) -> Self {
        let generation = authority.generation();
        let rights = authority.rights(principal.as_ref());
        Self {
            authority: authority.clone(),
            principal: principal.map(Arc::new),
            known: Mutex::new((generation, rights)),
            fixed: None,
            denied: AtomicU64::new(0),
            log: Spaced::default(),
            revoked: CancellationToken::new(),
            unwanted: CancellationToken::new(),
        }
    }

    /// Of a peer that we have connected to: it may do this. The rules are for those who connect to us.
    pub(super) fn fixed(authority: &Arc<Authority>, rights: Rights) -> Self {
        Self { fixed: Some(Arc::new(rights)), ..Self::new(authority, None) }
    }

    /// What it may do now; `None`: it is not to be here any more.
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

    /// Has its connection ended if it is not let in any more. Returns whether it has.
    pub(super) fn leave_if_strange(&self, peer: &str) -> bool {
        let is_strange = !self.revoked.is_cancelled() && self.rights().is_none();
        if is_strange {
            // Says so in the log.
            let _ = self.authority.lets_stay(peer, self.principal.as_deref());
            self.revoked.cancel();
        }
        is_strange
    }

    /// Whether it may subscribe to this prefix, which it wants in order to `what`. That it may not is
    /// counted.
    pub(super) fn may_subscribe(&self, peer: &str, what: &str, prefix: &[u8]) -> bool {
        let may = self.rights().is_some_and(|rights| rights.may_subscribe(prefix));
        if !may {
            self.deny(peer, what, prefix, 1);
        }
        may
    }

    /// Counts what it wanted and may not, and says so in the log now and then.
    pub(super) fn deny(&self, peer: &str, what: &str, topic: &[u8], count: u64) {
        let in_all = self.denied.fetch_add(count, Ordering::Relaxed) + count;
        if let Some(before) = self.log.pass(in_all)
            && let Some(unlogged) = self.authority.denials.pass(DENIALS)
        {
            tracing::warn!(
                peer,
                principal = self.principal(),
                topic = %topic[..topic.len().min(TOPIC_SHOWN)].escape_ascii(),
                denied = in_all - before,
                denied_in_all = in_all,
                unlogged,
                "not allowed to {what}: see its rights in the configuration"
            );
        }
    }

    /// Says in the log, at the end of its connection, what it has not said yet.
    pub(super) fn log_rest(&self, peer: &str) {
        let in_all = self.denied();
        let before = self.log.take(in_all);
        if before < in_all
            && let Some(unlogged) = self.authority.denials.pass(DENIALS)
        {
            tracing::warn!(
                peer,
                principal = self.principal(),
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

    /// Who it has proved to be.
    pub(super) fn who(&self) -> Option<&Arc<Principal>> {
        self.principal.as_ref()
    }

    /// Returns its name as text, for people.
    pub(super) fn principal(&self) -> Option<String> {
        self.principal.as_deref().map(ToString::to_string)
    }
}
