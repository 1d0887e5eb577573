//! `xmsg zmq recv DISH`: receives the datagrams of groups.

use anyhow::bail;
use xmsg_zmq::{Dish, DishOptions, Multipart};

use super::super::endpoints::{End, bound, datagram_endpoints};
use super::super::socket::Received;
use super::{Arguments, MessageWriter};
use crate::exit::{Exit, Usage};
use crate::output::{Output, counted, note, warn};
use crate::receiving::{Receiver, Source};
use crate::signals::Interrupt;

pub(super) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    if arguments.groups.is_empty() {
        bail!(Usage("a DISH receives what is sent to its groups: add --group GROUP".to_owned()));
    }
    if !arguments.topics.is_empty() {
        bail!(Usage(
            "--topic is for SUB and XSUB: a DISH has --group, which is compared as a whole".to_owned()
        ));
    }
    arguments.socket.check_datagrams("DISH", End::Bind)?;
    let endpoints = datagram_endpoints(arguments.endpoints.iter().map(String::as_str), End::Bind)?;
    let dish = Dish::new(DishOptions::default());
    for group in &arguments.groups {
        dish.join(group.as_encoded_bytes()).map_err(|error| Usage(error.to_string()))?;
    }
    for endpoint in &endpoints {
        let endpoint = bound(dish.bind(endpoint).await)?;
        note(format_args!("bound to {endpoint}"));
    }
    let writer = MessageWriter { output: Output::stdout()?, show: arguments.show };
    let (count, timeout) = (arguments.count, arguments.timeout);
    let receiver = Receiver { source: Groups(dish.clone()), writer, count, timeout, verbose };
    let ended = receiver.run(&mut interrupt, std::future::pending()).await?;
    let lost: u64 = dish.statistics().iter().map(|endpoint| endpoint.dropped).sum();
    dish.close().await;
    if lost > 0 {
        warn(format_args!(
            "{} came faster than the output took them, and were dropped",
            counted(lost, "datagram")
        ));
    }
    Ok(ended.exit())
}

/// A DISH whose messages have two frames: the group and the body.
#[derive(Debug)]
struct Groups(Dish);

impl Source for Groups {
    type Message = Received;

    async fn next(&mut self) -> Option<Received> {
        let message = self.0.recv().await?;
        Some(Received::Message(Multipart::from([message.group, message.body])))
    }
}
