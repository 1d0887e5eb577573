//! Links to other proxies. This proxy connects to their subscribers' port.
//!
//! To the switch, a link is a publisher: it is sent the wanted subscriptions, and the messages that it brings
//! are matched, queued and counted as those of publishers. Only this module knows that the connection was
//! made from this side.

mod link;
mod token;

use std::sync::{Arc, Mutex};

use xmsg_core::Result;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::lock::lock;

use self::link::Link;
pub(super) use self::link::{Arrival, is_of_one_hop};
pub(super) use self::token::{LEN as TOKEN_LEN, OwnTokens, Token};
use super::Switch;
use crate::upstream::{Upstream, UpstreamStats};

/// The links of a switch.
#[derive(Debug, Default)]
pub(super) struct Links {
    list: Mutex<Vec<Arc<Link>>>,
    /// Limits the log lines about connections of all links together.
    lines: Throttle,
    /// Limits the log lines about loops of all links together.
    loops: Throttle,
}

impl Switch {
    /// Begins with the upstreams of the options, which were checked.
    pub(crate) fn link(&self) {
        let wanted = &self.inner.config.upstreams;
        if let Err(error) = self.set_upstreams(wanted) {
            tracing::error!(%error, "there are no upstreams");
        }
    }

    /// Replaces the upstreams: links to those that are no longer wanted end, and new ones begin. The others
    /// go on unchanged.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`](xmsg_core::ErrorKind::InvalidOption), and nothing changes, if there are
    /// more than [`UPSTREAMS_MAX`](crate::UPSTREAMS_MAX), or two with the same endpoint.
    pub fn set_upstreams(&self, wanted: &[Upstream]) -> Result<()> {
        Upstream::check(wanted)?;
        let mut list = lock(&self.inner.links.list);
        let before = std::mem::take(&mut *list);
        for link in before.iter().filter(|link| !wanted.contains(link.upstream())) {
            link.remove();
        }
        for upstream in wanted {
            let known = before.iter().find(|link| link.upstream() == upstream).cloned();
            list.push(known.unwrap_or_else(|| {
                let link = Arc::new(Link::new(self.id(), upstream.clone()));
                let name = format!("the link to the upstream {upstream}");
                let keep = link.clone().keep(self.clone());
                self.inner.publishers.spawn(self.inner.config.critical.watch(name, keep));
                link
            }));
        }
        Ok(())
    }

    /// Returns the links to all upstreams, in the order in which they were given.
    #[must_use]
    pub fn upstreams(&self) -> Vec<UpstreamStats> {
        let links: Vec<_> = lock(&self.inner.links.list).clone();
        links.iter().map(|link| link.stats()).collect()
    }

    /// Returns how many proxies reach this one over two paths at once. Their subscribers get twice what is
    /// published here.
    #[must_use]
    pub fn double_paths(&self) -> usize {
        self.inner.table.double_paths()
    }
}
