//! The links of a socket that addresses its peers by routing identity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::link::Link;
use crate::lock::lock;
use xmsg_zmtp::Principal;

/// A routing identity, with the authenticated principal that it belongs to where that matters.
pub(crate) type RouteKey = (Option<Principal>, Bytes);

/// Links by the routing identities of their peers.
#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<HashMap<RouteKey, Arc<Link>>>);

impl Routes {
    fn links(&self) -> MutexGuard<'_, HashMap<RouteKey, Arc<Link>>> {
        lock(&self.0)
    }

    /// Returns the link of this peer.
    pub(crate) fn get(&self, key: &RouteKey) -> Option<Arc<Link>> {
        self.links().get(key).cloned()
    }

    /// Gives an identity to a new link, until the returned [`Route`] is dropped. A link that has the identity
    /// already loses it, and its connection: the peer may have lost that connection without our noticing.
    ///
    /// Returns `None` if the identity belongs to another principal, or to a peer that we connect to.
    pub(crate) fn take_over(&self, key: RouteKey, link: &Arc<Link>) -> Option<Route<'_>> {
        let principal = link.state().principal.clone();
        let mut links = self.links();
        if let Some(old) = links.get(&key) {
            if old.connecting || old.state().principal != principal {
                return None;
            }
            // An accepted link has one connection and ends with it.
            old.stop.cancel();
        }
        Some(self.give(&mut links, key, link))
    }

    /// Gives an identity that is not in use to a new link, until the returned [`Route`] is dropped. Returns
    /// `None` if it is in use.
    pub(crate) fn take(&self, key: RouteKey, link: &Arc<Link>) -> Option<Route<'_>> {
        let mut links = self.links();
        (!links.contains_key(&key)).then(|| self.give(&mut links, key, link))
    }

    fn give(&self, links: &mut HashMap<RouteKey, Arc<Link>>, key: RouteKey, link: &Arc<Link>) -> Route<'_> {
        links.insert(key.clone(), link.clone());
        Route { routes: self, key, id: link.id }
    }
}

/// The entry of a link. Dropping it removes the entry, unless another link has taken the identity over.
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
