//! ZeroMQ sockets for async Rust: the [wire engine](xmsg_zmtp), driven by tokio.
//!
//! | socket | sends | receives | binds | connects |
//! |---|---|---|---|---|
//! | [`Publisher`] | to every subscriber | subscriptions | yes | yes |
//! | [`Subscriber`] | subscriptions | what matches them | yes | yes |
//! | [`XPub`] | to every subscriber | subscriptions, and messages of XSUB | yes | yes |
//! | [`XSub`] | to every peer, and subscriptions | what matches them | yes | yes |
//! | [`Push`] | to its peers in round robin | – | yes | yes |
//! | [`Pull`] | – | from every peer | yes | yes |
//! | [`Pair`] | to its only peer | from it | yes | yes |
//! | [`Dealer`] | to its peers in round robin | from every peer | yes | yes |
//! | [`Router`] | to a peer by identity | from every peer | yes | yes |
//! | [`Requester`] | a request | its reply | yes | yes |
//! | [`Replier`] | replies | requests, from every peer | yes | yes |
//! | [`Radio`] | datagrams to groups of listeners | – | – | yes |
//! | [`Dish`] | – | the datagrams of the groups that it has joined | yes | – |
//!
//! A connecting socket reconnects for ever, with growing pauses. It then subscribes again, and sends what it
//! had accepted. Sending waits when the send queue of a connection is full. Only a bound publisher drops
//! messages for a subscriber that is too slow, and counts them ([`Overflow`]): nothing is dropped silently.
//! Every queue has a bound, named in [`SocketOptions`].
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
//! use xmsg_zmq::{Pull, Push, SocketOptions};
//!
//! let (push, pull) = (Push::new(SocketOptions::default()), Pull::new(SocketOptions::default()));
//! push.connect(pull.bind(&"tcp://127.0.0.1:0".parse()?).await?);
//! push.send(["resize", "cat.png"]).await?; // waits while the send queue is full
//! let work = pull.recv().await.expect("the socket is open");
//! assert_eq!(work.frames(), ["resize", "cat.png"]);
//! # Ok(()) }
//! ```
//!
//! | to | use |
//! |---|---|
//! | configure a socket | [`SocketOptions`], [`HighWaterMark`], [`Overflow`], [`TcpOptions`], [`Security`] |
//! | name the other side | [`Endpoint`], [`PeerId`] |
//! | make and read multipart messages | [`Multipart`], [`EncodedFrames`] |
//! | handle errors | [`Error`], [`ErrorKind`] |
//! | watch a socket | [`SocketEvents`], [`SocketEvent`], [`ConnectionStatistics`] |
//! | connect sockets to each other | [`Device`], [`DeviceStatistics`] |
//!
//! The feature `socks` adds connections through a SOCKS5 proxy: `SocketOptions::socks_proxy`.
//!
//! A [`Device`] forwards what one socket receives to another socket. The guide by patterns is
//! `docs/zeromq.md`.
//!
//! All sockets that bind and connect are built on a hub, which has one *link* for every connection. Each link
//! has a [send queue](link::send_queue::SendQueue), and a task that owns it. The parts of a link are
//! [public](link) for programs that forward messages instead of sending and receiving them, such as proxies.

// | file | answers |
// |---|---|
// | `hub.rs` | What do all sockets share: which links and tasks do they have, and how do they end? |
// | `hub/connecting.rs` | How is a connection made, and made again after it was lost? |
// | `hub/reporting.rs` | Which events, counts and log lines come from what happens to a connection? |
// | `role.rs` | In what does one type of socket differ from another? |
// | `link/` | What belongs to one connection? |
// | `memory_budget.rs` | How much memory do all peers together take, and which connection ends at the limit? |
// | `memory_budget/connections.rs` | How much memory does one connection claim? |
// | `link_handler.rs` | What happens to what a peer sends? |
// | `publisher.rs` | What can a PUB socket do? |
// | `subscriber.rs` | What can a SUB socket do? |
// | `xpub.rs` | What can an XPUB socket do? |
// | `xsub.rs` | What can an XSUB socket do? |
// | `push.rs` | What can a PUSH socket do? |
// | `pull.rs` | What can a PULL socket do? |
// | `pair.rs` | What can a PAIR socket do? |
// | `dealer.rs` | What can a DEALER socket do? |
// | `router.rs` | What can a ROUTER socket do, and which peer has which identity? |
// | `request.rs` | What can a REQ socket do, which peer gets a request, and what waits for it? |
// | `request/exchange.rs` | How does one request get its reply over one connection? |
// | `reply.rs` | What can a REP socket do, and over which connection does a reply go? |
// | `radio.rs` | What can a RADIO socket do? |
// | `dish.rs` | What can a DISH socket do? |
// | `datagrams.rs` | How are datagrams sent, received and queued? |
// | `methods.rs` | Which methods do most sockets have? |
// | `publishing.rs` | Which messages has the peer of a PUB or XPUB socket subscribed to? |
// | `subscriptions.rs` | What do we subscribe to, which peer has been sent that, and what did it not accept? |
// | `fan_out.rs` | How does a message get to all peers that it is for? |
// | `balance.rs` | Which peer gets the next message of a PUSH or DEALER socket? |
// | `device.rs` | How does what one socket receives get to another socket? |
// | `multipart.rs` | What is a message of several frames? |
// | `endpoint.rs` | What is an address such as `tcp://host:port`? |
// | `options.rs` | What can be chosen for a socket, and which type has which option? |
// | `security.rs` | Which mechanism does a socket use, who judges credentials, and how is a key file read? |
// | `events.rs` | Which events does a program see? |
// | `statistics.rs` | What is known of each connection, in numbers? |
// | `error.rs` | What failed, and which kind of error is it? |
// | `fault.rs` | What becomes of a panic? |
// | `deadline.rs` | When is a time limit over, however long it is? |
// | `lock.rs` | How are mutexes locked, and files against other processes? |
// | `files.rs` | How is a file opened at a name that others may have prepared? |

#![warn(missing_docs)]

mod balance;
mod datagrams;
pub mod deadline;
mod dealer;
mod device;
mod dish;
mod endpoint;
mod error;
mod events;
mod fan_out;
pub mod fault;
pub mod files;
mod hub;
pub mod link;
mod link_handler;
pub mod lock;
pub mod memory_budget;
mod methods;
mod multipart;
mod options;
mod pair;
mod publisher;
mod publishing;
mod pull;
mod push;
mod radio;
mod reply;
mod request;
mod role;
mod router;
pub mod security;
mod statistics;
mod subscriber;
mod subscriptions;
mod xpub;
mod xsub;

/// Crates whose types are used in public signatures of this one.
#[doc(no_inline)]
pub use {bytes, futures, xmsg_zmtp, zeroize};

pub use dealer::Dealer;
pub use device::{Device, DeviceSocket, DeviceStatistics, DeviceTraffic};
pub use dish::{Dish, DishOptions, DishStatistics, GroupMessage};
pub use endpoint::Endpoint;
pub use error::{Error, ErrorKind, Result};
pub use events::{DropReason, EventChannel, SocketEvent, SocketEvents};
pub use link::admission::{Admission, AdmissionLimits};
pub use link::encoded::EncodedFrames;
pub use link::send_queue::{Amount, HighWaterMark};
#[cfg(feature = "socks")]
pub use link::socks::SocksProxy;
pub use link::violations::{ProxyPorts, Reason, ViolationCounts, Violations};
pub use multipart::Multipart;
pub use options::{
    AnySocket, Conflates, FansOut, HasIdentity, KnowsPeers, Overflow, PeerRule, Receives, Sends, Settings,
    SocketOptions, TcpOptions,
};
pub use pair::Pair;
pub use publisher::Publisher;
pub use pull::Pull;
pub use push::Push;
pub use radio::{Radio, RadioOptions, RadioStatistics};
pub use reply::{Replier, ReturnPath};
pub use request::{RequestSettings, Requester, Unanswered};
pub use router::{IdentityScope, Router, RouterSettings};
pub use security::Security;
pub use statistics::ConnectionStatistics;
pub use subscriber::{Subscriber, Unreceived};
pub use xpub::{FromSubscriber, Notices, PeerId, XPub, XPubSettings};
pub use xsub::XSub;
