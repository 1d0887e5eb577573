//! One module for each command: its options, and what it does.

pub(crate) mod demo;
pub(crate) mod publish;
pub(crate) mod subscribe;
