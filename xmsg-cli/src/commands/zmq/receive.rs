//! `xmsg zmq recv`: writes what a socket receives.

mod dish;

use std::ffi::OsString;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;

use super::after_help;
use super::endpoints::{End, SocketArguments, attach, names, only_connects};
use super::kind::{self, Kind};
use super::show::ShowOptions;
use super::socket::{Received, Socket};
use super::watch::{OwnSocket, Place, Watch, without_connection};
use crate::args::{parse_count_from_1, parse_duration};
use crate::exit::{Exit, Usage};
use crate::output::Output;
use crate::patterns::note_prefix_patterns;
use crate::receiving::{Receiver, Source, Writer};
use crate::signals::Interrupt;

const EXAMPLES: &str = "\
Examples:
  xmsg zmq recv PULL tcp://localhost:5557            frames between tabs, one message a line
  xmsg zmq recv PULL --bind tcp://*:5557 -n 1 --timeout 10s
  xmsg zmq recv SUB tcp://localhost:5556 --topic weather --topic news
  xmsg zmq recv SUB tcp://localhost:5556 --json | jq '.frames[1]'
  xmsg zmq recv PULL tcp://a:5557 tcp://b:5557 --raw -l > tasks
  xmsg zmq recv ROUTER --bind tcp://*:5555           the identity of the sender is the first frame
  xmsg zmq recv XPUB --bind tcp://*:5556             who subscribes to what
  xmsg zmq recv DISH udp://*:5558 --group weather    datagrams of a group";

/// Receive messages from a ZeroMQ socket, and write them to standard output
///
/// One message is written on each line: its frames, with a tab between them. A frame of text is shown with
/// tabs and line ends escaped. A frame of binary data is shown as its length and first bytes. --json and
/// --raw write every byte.
///
/// SUB and XSUB subscribe to everything, or to --topic. XPUB shows subscriptions: `<subscribe>`, a tab and
/// the topic.
///
/// DISH binds to `udp://`, and receives datagrams of each --group: the group, a tab, and the data.
///
/// It connects by default, and retries while no peer is there. It ends after COUNT messages, after DURATION,
/// when nobody reads the output any more, or with Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// Type of the socket, in upper or lower case
    #[arg(value_name = "TYPE", ignore_case = true, value_parser = kind::parser(&Socket::RECEIVING, Kind::Dish))]
    kind: Kind,

    /// Endpoints to connect to, or to bind
    #[arg(value_name = "ENDPOINT", required = true)]
    endpoints: Vec<String>,

    /// SUB and XSUB: the prefix of the first frame of messages, byte by byte, without wildcards; can be given
    /// more than once [default: everything]
    #[arg(id = "prefixes", long = "topic", value_name = "TOPIC")]
    topics: Vec<OsString>,

    /// DISH: receive the messages of this group; can be given more than once
    #[arg(id = "group", long = "group", value_name = "GROUP")]
    groups: Vec<OsString>,

    /// End after this many messages
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = parse_count_from_1)]
    count: Option<u64>,

    /// End after this time in all, such as 500ms, 10s or 2m; exit code 27 if fewer than COUNT messages
    /// arrived, 3 if there was no peer to connect to
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    show: ShowOptions,

    #[command(flatten)]
    socket: SocketArguments,
}

pub(super) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let kind = match arguments.kind {
        Kind::Connected(kind) => kind,
        Kind::Dish => return dish::run(arguments, verbose).await,
        Kind::Radio => bail!(Usage("RADIO only sends: use `xmsg zmq send RADIO`".to_owned())),
    };
    if !arguments.groups.is_empty() {
        bail!(Usage(format!("--group is for DISH: {kind} has none (SUB and XSUB have --topic)")));
    }
    let mut interrupt = Interrupt::new()?;
    let targets = arguments.socket.targets(arguments.endpoints.iter().map(String::as_str), End::Connect)?;
    let topics: Vec<_> =
        arguments.topics.iter().map(|topic| Bytes::copy_from_slice(topic.as_encoded_bytes())).collect();
    let socket = Socket::to_receive(kind, &topics, &arguments.socket.options(&targets)?)?;
    let output = Output::stdout()?;
    note_prefix_patterns(&topics);
    let mut watch = Watch::new(socket.events(), OwnSocket { kind, place: Place::Chosen }, &targets, verbose);
    let targets = attach(&socket, targets).await?;

    let writer = MessageWriter { output, show: arguments.show };
    let (count, timeout) = (arguments.count, arguments.timeout);
    let receiver = Receiver { source: socket, writer, count, timeout, verbose };
    let ended = receiver.run(&mut interrupt, async { watch.run().await.into() }).await?;
    let failure = ended.source.as_ref().and_then(Socket::failure);
    if let Some(socket) = &ended.source {
        socket.close(Duration::ZERO).await;
    }
    // A peer that accepts connections but completes no handshake does not count.
    if ended.is_late && only_connects(&targets) && !watch.was_connected() {
        let what = format!("no connection to {} within {:?}", names(&targets), timeout.unwrap_or_default());
        return Err(without_connection(what, watch.failure().cloned().or(failure)).into());
    }
    Ok(ended.exit())
}

impl Source for Socket {
    type Message = Received;

    async fn next(&mut self) -> Option<Received> {
        self.recv().await
    }
}

/// Writes received messages.
#[derive(Debug)]
struct MessageWriter {
    output: Output,
    show: ShowOptions,
}

impl Writer<Received> for MessageWriter {
    fn write(&mut self, received: Received, _: u64) -> anyhow::Result<Option<u64>> {
        self.show.write(&mut self.output, &received)?;
        Ok(Some(match received {
            Received::Message(message) => message.frames().iter().map(|frame| frame.len() as u64).sum(),
            Received::Subscribed(_) | Received::Unsubscribed(_) => 0,
        }))
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.output.flush()
    }
}
