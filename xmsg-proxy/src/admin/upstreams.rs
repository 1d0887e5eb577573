//! The metrics of the links to upstreams, each with its address. There are few links, and whoever sets the
//! proxy up names them.

use std::fmt;

use super::metrics::{BYTES, Families};
use crate::upstream::{UpstreamState, UpstreamStats};

/// Writes the families of all links, and how many proxies reach this one over two ways.
pub(super) fn encode(
    links: &[UpstreamStats],
    double_paths: usize,
    out: &mut Families<'_>,
) -> Result<(), fmt::Error> {
    let help = "Proxies below that have this proxy as their upstream over two ways, so that they get each message twice.";
    out.gauge("xmsg_proxy_double_paths", help, None, double_paths as u64)?;
    if links.is_empty() {
        return Ok(());
    }
    let each = |value: fn(&UpstreamStats) -> u64| {
        links.iter().map(move |link| ([("address", link.address.clone())], value(link)))
    };
    let help = "1 while the link to this upstream is at work, otherwise 0.";
    let is_connected = |link: &UpstreamStats| u64::from(link.state == UpstreamState::Connected);
    out.gauges("xmsg_upstream_connected", help, None, each(is_connected))?;
    let help = "1 while the link to this upstream is not used because it would close a loop, otherwise 0.";
    let is_loop = |link: &UpstreamStats| u64::from(link.state == UpstreamState::Loop);
    out.gauges("xmsg_upstream_loop", help, None, each(is_loop))?;
    let help = "Messages received from this upstream.";
    out.counters("xmsg_upstream_messages_received", help, None, each(|link| link.received.messages))?;
    let help = "Bytes received from this upstream, with their framing.";
    out.counters("xmsg_upstream_received", help, BYTES, each(|link| link.received.bytes))?;
    let help = "How often the link to this upstream was at work again after its connection had ended.";
    out.counters("xmsg_upstream_reconnections", help, None, each(|link| link.reconnections))?;
    let help = "How often the link to this upstream was ended because it would have closed a loop.";
    out.counters("xmsg_upstream_loops", help, None, each(|link| link.loops))?;
    let help = "Control requests and answers from this upstream, which are passed on to nobody.";
    out.counters("xmsg_upstream_control_messages", help, None, each(|link| link.control))?;
    let help = "Messages from this upstream that the topics of the link do not allow.";
    out.counters("xmsg_upstream_denied", help, None, each(|link| link.denied))
}
