//! One module for each command, with its options and its implementation.

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
