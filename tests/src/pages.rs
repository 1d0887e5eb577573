//! This module runs the Rust programs of the documentation pages as documentation tests. It is in this
//! package, and not in the crates that the programs use, because the package of a crate includes nothing from
//! outside its folder.

#[doc = include_str!("../../README.md")]
struct Readme;

#[doc = include_str!("../../docs/connect.md")]
struct Connect;

#[doc = include_str!("../../docs/guide.md")]
struct Guide;

#[doc = include_str!("../../docs/security.md")]
struct Security;

#[doc = include_str!("../../docs/zeromq.md")]
struct ZeroMq;

#[doc = include_str!("../../xmsg-core/README.md")]
struct CoreReadme;

#[doc = include_str!("../../xmsg-core/zmq/README.md")]
struct ZmqReadme;

#[doc = include_str!("../../xmsg-proxy/README.md")]
struct ProxyReadme;
