//! The process that has both ends of an `inproc://` connection: one task sends, and another task receives.

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::super::publish::publish;
use super::super::subscribe::{Tally, receive};
use super::super::{Publisher, Subscriber, Threads, attend};
use super::block_on;
use crate::plan::Plan;

/// A connection within the process.
pub(super) trait Inproc: 'static {
    type Sender: Publisher;
    type Receiver: Subscriber;

    fn connect(plan: &Plan) -> impl Future<Output = Result<(Self::Sender, Self::Receiver)>> + Send;
}

/// Runs the process, which understands the commands for publishers and for subscribers. Does not return.
pub(super) fn run<I: Inproc>(plan: Plan, threads: Threads) -> ! {
    let tally = Arc::new(Tally::new(&plan));
    let counted = tally.clone();
    attend(Some(&tally), move |phases| {
        let phases = phases.clone();
        block_on(threads, async move {
            let (sender, receiver) = I::connect(&plan).await.context("the sockets could not connect")?;
            println!("ready");
            let receiving = tokio::spawn(receive(receiver, 0, plan.size, counted));
            let sending = async {
                // The sender is kept, so that everything that it has accepted is sent.
                let (count, measured_from, _sender) = publish(sender, 0, plan, phases).await?;
                println!("published {count} {measured_from}");
                std::future::pending().await
            };
            tokio::select! {
                biased;
                result = sending => result,
                result = receiving => result.context("the receiver panicked")?,
            }
        })
    })
}
