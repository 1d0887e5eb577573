//! The xMsg proxy as a library: publishers on port `P`, subscribers on `P + 1`, control sockets on `P + 2`.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_core::Result<()> {
//! use std::time::Duration;
//! use xmsg_proxy::{Policy, Proxy};
//!
//! let proxy = Proxy::bind("127.0.0.1:0").slow_subscriber(Policy::BLOCK).start().await?;
//! println!("listening at {}", proxy.address());
//! let totals = proxy.stop(Duration::from_secs(5)).await;
//! assert_eq!(totals.undelivered, 0);
//! # Ok(()) }
//! ```
//!
//! The [data plane](switch) forwards, and hands control requests to the [control plane](control), so that a
//! slow answer can't stall a message.
//!
//! | to | use |
//! |---|---|
//! | run a proxy | [`Proxy::bind`], [`Builder`], [`Proxy`], [`Config`] |
//! | choose what happens to slow subscribers | [`Policy`], [`TopicPolicy`] |
//! | watch it | [`Monitor`], [`Totals`], [`PublisherStats`], [`SubscriberStats`], [`Drops`] |
//! | decide who may connect, publish and subscribe | [`security`] |
//! | subscribe at other proxies | [`Upstream`], [`UpstreamStats`] |
//! | run a registrar | [`registrar`] |
//!
//! With the feature `daemon` (on by default) there is also what only the daemons need: their settings and the
//! HTTP server. Nothing of it starts by itself. The feature `descriptors`, which `daemon` brings, too, raises
//! the limit of open descriptors. The feature `connect` (on by default, too) adds outgoing connections and
//! channels to the daemons.

// | file | answers |
// |---|---|
// | `switch/` | How do messages get from publishers to subscribers? |
// | `prefixes/mod.rs` | Who subscribed to a prefix of this topic? |
// | `prefixes/table.rs` | How are prefixes kept, and how are all that a topic starts with found? |
// | `prefixes/arena.rs` | Where are the prefixes themselves kept? |
// | `prefixes/hash_index.rs` | Which number belongs to this hash, in a table that never pauses to grow? |
// | `prefixes/hash.rs` | What are the hashes of all prefixes of a topic? |
// | `policy.rs` | Which policy has a topic when a subscriber is too slow? |
// | `control.rs` | What is answered to a control request? |
// | `control/confirmations.rs` | Whose subscriptions are confirmed next? |
// | `control/pending_answers.rs` | Which answers wait for their receivers to connect? |
// | `proxy.rs` | How are switch and controller put together, and bound to three ports? |
// | `config.rs` | What can be chosen for a proxy? |
// | `upstream.rs` | What is another proxy that this one connects to, and how is the link to it? |
// | `security/` | Who is let in, and what may they do? |
// | `registrar/` | Who publishes and who subscribes, and where? |
// | `stats.rs` | Who is connected and what flows, as a document? |
// | `shown.rs` | How is a message shown as JSON? |
// | `settings/` | What may stand in a settings file? |
// | `admin/` | What is answered over HTTP? |
// | `log.rs` | How does the log get out without anybody waiting for its reader? |
// | `default_memory_limit.rs` | How much memory and how many threads may a process have by default? |
// | `descriptors.rs` | How many descriptors may a process have open? |
// | `duration.rs` | How are durations in settings read? |
// | `fuzzing.rs` | Is this message a control request, as fuzz targets ask? |
// | `bin/xmsg-proxy.rs` | What does the daemon `xmsg-proxy` do from start to end? |
// | `bin/xmsg-registrar.rs` | What does the daemon `xmsg-registrar` do from start to end? |
// | `bin/xmsg-connect.rs` | What does the daemon `xmsg-connect` do from start to end? |
// | `bin/daemon/` | What do the daemons share? |

#![warn(missing_docs)]

#[cfg(feature = "daemon")]
pub mod admin;
mod config;
pub mod control;
pub mod default_memory_limit;
#[cfg(feature = "descriptors")]
pub mod descriptors;
mod duration;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "daemon")]
pub mod log;
mod policy;
pub mod prefixes;
mod proxy;
pub mod registrar;
pub mod security;
#[cfg(feature = "daemon")]
pub mod settings;
pub mod shown;
mod stats;
pub mod switch;
mod upstream;

pub use config::{Config, PublishersSend};
pub use policy::{Policy, TopicPolicy};
pub use proxy::{Builder, Monitor, Proxy};
pub use switch::{Drops, Ending, PublisherStats, SubscriberStats, Totals};
pub use upstream::{UPSTREAMS_MAX, Upstream, UpstreamState, UpstreamStats};

/// What every topic of a control request starts with.
pub const CONTROL_TOPIC: &[u8] = b"xmsg:control";
