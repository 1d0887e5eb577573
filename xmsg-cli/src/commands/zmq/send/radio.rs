//! `xmsg zmq send RADIO`: sends datagrams to a group.

use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use xmsg_zmq::{Endpoint, ErrorKind, Radio, RadioOptions};
use xmsg_zmtp::Limits;

use super::super::endpoints::{End, datagram_endpoints};
use super::{Arguments, YIELD_AFTER};
use crate::exit::{Exit, Usage};
use crate::output::{counted, grouped, note, warn};
use crate::pace::Pace;
use crate::signals::Interrupt;

/// The number of datagrams that may wait for the operating system before the next one is taken from the
/// input.
const UNSENT_MAX: usize = 256;
/// How long to wait for the operating system to send some of them.
const UNSENT_POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How long to wait at the end for replies of the other host that nothing listens there.
const REFUSALS: Duration = Duration::from_millis(50);

pub(super) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    if arguments.wait_sub {
        bail!(Usage("--wait-sub is for PUB and XPUB: nobody tells a RADIO what it listens to".to_owned()));
    }
    if arguments.timeout.is_some() {
        bail!(Usage("--timeout is for sockets with connections: a RADIO waits for nobody".to_owned()));
    }
    arguments.socket.check_datagrams("RADIO", End::Connect)?;
    let endpoints = datagram_endpoints([arguments.endpoint.as_str()], End::Connect)?;
    let radio = Radio::new(RadioOptions::default());
    for endpoint in &endpoints {
        radio.connect(endpoint).await?;
    }
    let mut sender = Sender { radio: &radio, arguments: &arguments, sent: 0, refused: 0, bytes: 0 };
    let result = tokio::select! {
        result = sender.run() => result.map(|()| Exit::Done),
        exit = interrupt.wait() => Ok(exit),
    };
    let Sender { sent, refused, bytes, .. } = sender;
    let sending = async {
        while radio.statistics().iter().any(|endpoint| endpoint.queued > 0) {
            tokio::time::sleep(UNSENT_POLL_INTERVAL).await;
        }
        // The last datagrams may also be refused.
        tokio::time::sleep(REFUSALS).await;
    };
    tokio::select! {
        _ = tokio::time::timeout(arguments.linger, sending) => {}
        _ = interrupt.wait() => warn("interrupted: not everything was sent"),
    }
    let statistics = radio.statistics();
    let unsent = radio.close(Duration::ZERO).await as u64;
    let exit = result?;
    let failed: u64 = statistics.iter().map(|endpoint| endpoint.failed + endpoint.dropped).sum();
    if failed + unsent + refused > 0 {
        let why = statistics.iter().find_map(|endpoint| endpoint.last_error.clone());
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let all = counted(refused + sent, "datagram");
        let words = format!("not sent: {} of {all}{why}", grouped(failed + unsent + refused));
        if !exit.is_interrupted() {
            bail!(words);
        }
        warn(words);
    }
    for endpoint in statistics.iter().filter(|endpoint| endpoint.refused > 0) {
        note(format_args!("nobody listens at {}: the datagrams went nowhere", endpoint.endpoint));
    }
    if verbose {
        let names: Vec<_> = endpoints.iter().map(Endpoint::to_string).collect();
        let (sent, bytes) = (counted(sent, "datagram"), counted(bytes, "byte"));
        note(format_args!("sent {sent} ({bytes}) to {}", names.join(" and ")));
    }
    Ok(exit)
}

struct Sender<'a> {
    radio: &'a Radio,
    arguments: &'a Arguments,
    sent: u64,
    /// The number of messages that are too large for a datagram.
    refused: u64,
    bytes: u64,
}

impl Sender<'_> {
    async fn run(&mut self) -> anyhow::Result<()> {
        let arguments = self.arguments;
        let mut input = arguments.frames.input(&arguments.data, arguments.split(), &Limits::default())?;
        let mut pace = arguments.rate.map(Pace::new);
        let count = arguments.count.unwrap_or(1);
        while let Some(next) = input.next().await? {
            for _ in 0..count {
                if let Some(pace) = &mut pace {
                    pace.wait().await;
                }
                while self.radio.statistics().iter().any(|endpoint| endpoint.queued >= UNSENT_MAX) {
                    tokio::time::sleep(UNSENT_POLL_INTERVAL).await;
                }
                let number = 1 + self.refused + self.sent;
                let message = next.message(number)?;
                let [group, body] = message.frames() else {
                    let what = "a RADIO sends two frames: the group, and what is for it, such as \
                                `xmsg zmq send RADIO udp://127.0.0.1:5558 weather sunny`";
                    bail!(Usage(what.to_owned()));
                };
                if !self.send(group, body, number)? {
                    break;
                }
                if self.sent.is_multiple_of(YIELD_AFTER) {
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }

    /// Sends a datagram. Returns `false` for one that is too large, which is reported and skipped.
    fn send(&mut self, group: &Bytes, body: &Bytes, number: u64) -> anyhow::Result<bool> {
        match self.radio.send(group, body) {
            Ok(_) => {
                self.sent += 1;
                self.bytes += body.len() as u64;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                warn(format_args!("{} {number} was not sent: {error}", self.arguments.unit()));
                self.refused += 1;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}
