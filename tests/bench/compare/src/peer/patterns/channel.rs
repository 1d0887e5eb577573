//! The stack `channel`: a bounded channel of tokio between two tasks, for comparison with PAIR over
//! `inproc://`.

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use xmsg_zmq::Multipart;

use super::super::{Draft, Publisher, Subscriber};
use super::inproc::Inproc;
use super::xmsg::read;
use crate::plan::{Header, Plan};

/// The capacity of the channel, in messages.
const CAPACITY: usize = 1000;

pub(super) struct Channel;

pub(super) struct Sender(mpsc::Sender<Multipart>);

pub(super) struct Receiver(mpsc::Receiver<Multipart>);

impl Inproc for Channel {
    type Sender = Sender;
    type Receiver = Receiver;

    async fn connect(_plan: &Plan) -> Result<(Sender, Receiver)> {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        Ok((Sender(sender), Receiver(receiver)))
    }
}

impl Publisher for Sender {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        self.0.send([draft.payload()].into()).await.context("the receiver is gone")
    }
}

impl Subscriber for Receiver {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        read(self.0.recv().await)
    }
}
