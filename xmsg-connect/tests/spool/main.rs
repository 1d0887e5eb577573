//! The spool, from outside: one program, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "a test says by a panic what is wrong")]

mod behaviour;
mod common;
mod damage;
mod kill;
mod model;
