//! One module for each command, with its options and its implementation.
//!
//! | file | answers |
//! |---|---|
//! | `publish.rs` | `xmsg pub` |
//! | `subscribe.rs` | `xmsg sub` |
//! | `durable.rs` | `xmsg sub --durable` |
//! | `request.rs` | `xmsg req` |
//! | `reply.rs` | `xmsg reply` |
//! | `ping.rs` | `xmsg ping` |
//! | `info.rs` | `xmsg info` |
//! | `topics.rs` | `xmsg topics` |
//! | `connections.rs` | `xmsg connections` |
//! | `top/mod.rs` | `xmsg top` |
//! | `top/view.rs` | What does `xmsg top` show, and in which order? |
//! | `record.rs` | `xmsg record` |
//! | `replay.rs` | `xmsg replay` |
//! | `replay/plain_publisher.rs` | How are messages without metadata replayed? |
//! | `registrar.rs` | `xmsg registrar` |
//! | `discover.rs` | `xmsg registrar find` and `xmsg registrar list` |
//! | `register.rs` | `xmsg registrar register` and `xmsg registrar deregister` |
//! | `connect/` | `xmsg connect` |
//! | `device.rs` | `xmsg device` |
//! | `zmq/` | `xmsg zmq` |
//! | `context.rs` | `xmsg context` |
//! | `keys.rs` | `xmsg keygen` and `xmsg passwd` |
//! | `doctor/` | `xmsg doctor` |
//! | `demo/` | `xmsg demo` |
//! | `bench/` | `xmsg bench` |
//! | `completions.rs` | `xmsg completions` and `xmsg man` |

#[cfg(feature = "bench")]
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod connect;
pub(crate) mod connections;
pub(crate) mod context;
pub(crate) mod demo;
pub(crate) mod device;
pub(crate) mod discover;
pub(crate) mod doctor;
pub(crate) mod durable;
pub(crate) mod info;
pub(crate) mod keys;
pub(crate) mod ping;
pub(crate) mod publish;
pub(crate) mod record;
pub(crate) mod register;
pub(crate) mod registrar;
pub(crate) mod replay;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod subscribe;
pub(crate) mod top;
pub(crate) mod topics;
pub(crate) mod zmq;
