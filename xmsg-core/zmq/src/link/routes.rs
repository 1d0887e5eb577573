//! The links of a socket that knows its peers by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::link::Link;
use crate::lock::lock;
use xmsg_zmtp::Principal;

/// Whom an identity belongs to, where that matters, and the identity.
pub(crate) type RouteKey = (Option<Principal>, Bytes);

/// Links by the names of their peers.
#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<HashMap<RouteKey, Arc<Link>>>);

impl Routes {
    fn links(&self) -> MutexGuard<'_, HashMap<RouteKey, Arc<Link>>> {
        lock(&self.0)
    }

    /// The link of this peer.
    pub(crate) fn get(&self, key: &RouteKey) -> Option<Arc<Link>> {
        self.links().get(key).cloned()
    }

    /// Gives a name to a newcomer until what is returned is dropped. Whoever has it loses it, and the connection: its owner may have lost its old
    /// one unnoticed. `None`: where peers prove who they are, somebody else has it; or it is that of a peer that we connect to, from which nobody
    /// takes it.
    pub(crate) fn take_over(&self, key: RouteKey, link: &Arc<Link>) -> Option<Route<'_>> {
        let principal = link.state().principal.clone();
        let mut links = self.links();
        if let Some(old) = links.get(&key) {
            if old.connecting || old.state().principal != principal {
                return None;
            }
            // An accepted link has one connection, and ends with it.
            old.stop.cancel();
        }
        Some(self.give(&mut links, key, link))
    }

    /// Gives a name that nobody has to a newcomer until what is returned is dropped. `None`: somebody has it.
    pub(crate) fn take(&self, key: RouteKey, link: &Arc<Link>) -> Option<Route<'_>> {
        let mut links = self.links();
        (!links.contains_key(&key)).then(|| self.give(&mut links, key, link))
    }

    fn give(&self, links: &mut HashMap<RouteKey, Arc<Link>>, key: RouteKey, link: &Arc<Link>) -> Route<'_> {
        links.insert(key.clone(), link.clone());
        Route { routes: self, key, id: link.id }
    }
}

/// A link's entry. It goes with the connection, unless another one has taken the name over.
#[derive(Debug)]
pub(crate) struct Route<'a> {
    routes: &'a Routes,
    key: RouteKey,
    id: u64,
}

impl Drop for Route<'_> {
    fn drop(&mut self) {
        let mut links = self.routes.links();
        if links.get(&self.key).is_some_and(|link| link.id == self.id) {
            links.remove(&self.key);
        }
    }
}
