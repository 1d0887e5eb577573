//! `xmsg zmq recv`: writes what a socket receives.

use std::ffi::OsString;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use tokio::sync::watch;
use xmsg_zmq::Error;
use xmsg_zmtp::SocketType;

use super::endpoints::{End, SocketArguments, attach, names, only_connects};
use super::kind;
use super::show::ShowOptions;
use super::socket::{Received, Socket};
use super::watch::Watch;
use crate::args::{parse_count_from_1, parse_duration};
use crate::exit::{AtPeer, Exit};
use crate::output::{Output, counted, grouped, note, reader_gone, warn};
use crate::signals::Interrupt;

/// Messages that are written before others get their turn.
const TURN: u64 = 256;
/// At the end, how long whoever reads our output may take for the rest.
const HASTY_LINGER: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  xmsg zmq recv PULL tcp://localhost:5557            frames between tabs, one message a line
  xmsg zmq recv PULL --bind tcp://*:5557 -n 1 --timeout 10s
  xmsg zmq recv SUB tcp://localhost:5556 --topic weather --topic news
  xmsg zmq recv SUB tcp://localhost:5556 --json | jq '.frames[1]'
  xmsg zmq recv PULL tcp://a:5557 tcp://b:5557 --raw -l > tasks
  xmsg zmq recv ROUTER --bind tcp://*:5555           the identity of the sender is the first frame
  xmsg zmq recv XPUB --bind tcp://*:5556             who subscribes to what";

/// Receive messages from a ZeroMQ socket, and write them to standard output
///
/// One message a line is written: its frames, with a tab between them. A frame is shown as text, with tabs and whatever
/// ends a line escaped, or, of binary data, by its length and first bytes. --json and --raw have every byte.
///
/// SUB and XSUB subscribe to everything, or to --topic. XPUB shows subscriptions: `<subscribe>`, a tab and the topic.
///
/// It connects unless told otherwise, and goes on trying when nobody is there yet. It ends after COUNT messages, after
/// DURATION, when nobody reads the output any more, or with Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Type of the socket, in letters of any case
    #[arg(value_name = "TYPE", ignore_case = true, value_parser = kind::parser(&Socket::RECEIVING))]
    kind: SocketType,

    /// Where to connect to, or what to bind
    #[arg(value_name = "ENDPOINT", required = true)]
    endpoints: Vec<String>,

    /// SUB and XSUB: the start of the first frame of messages; can be given more than once [default: everything]
    #[arg(id = "prefixes", long = "topic", value_name = "TOPIC")]
    topics: Vec<OsString>,

    /// End after so many messages
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = parse_count_from_1)]
    count: Option<u64>,

    /// End after this time in all, such as 500ms, 10s or 2m; exit code 27 when fewer than COUNT messages had arrived, 3
    /// when there was nobody to connect to
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    show: ShowOptions,

    #[command(flatten)]
    socket: SocketArguments,
}

pub(super) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let kind = arguments.kind;
    let targets = arguments.socket.targets(arguments.endpoints.iter().map(String::as_str), End::Connect)?;
    let topics: Vec<_> =
        arguments.topics.iter().map(|topic| Bytes::copy_from_slice(topic.as_encoded_bytes())).collect();
    let socket = Socket::to_receive(kind, &topics, arguments.socket.options(&targets)?)?;
    let output = Output::stdout()?;
    let mut watch = Watch::new(socket.events(), kind, &targets, verbose);
    attach(&socket, &targets).await?;

    let timeout = async {
        match arguments.timeout {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    // A task of its own: it may be blocked by whoever reads our output, and signals have to be heard meanwhile.
    let (stop, stopped) = watch::channel(false);
    let receiver =
        Receiver { socket, output, show: arguments.show, count: arguments.count, stopped, verbose };
    let mut receiving = tokio::spawn(receiver.run());
    let late = if arguments.count.is_some() { Exit::TimedOut } else { Exit::Done };
    let mut is_late = false;
    let exit = tokio::select! {
        result = &mut receiving => return result?.map(|_| Exit::Done),
        error = watch.run() => return Err(error.into()),
        exit = interrupt.wait() => exit,
        () = timeout => {
            is_late = true;
            late
        }
        () = reader_gone() => Exit::Done,
    };
    stop.send_replace(true);
    let written = tokio::select! {
        result = &mut receiving => result??,
        () = tokio::time::sleep(HASTY_LINGER) => {
            if !exit.is_interrupted() {
                warn("ended while nobody reads what is written: the rest is lost");
            }
            return Ok(exit);
        }
        exit = interrupt.wait() => return Ok(exit),
    };
    if arguments.count == Some(written) {
        // The last one came together with the end of the time.
        return Ok(if exit == Exit::TimedOut { Exit::Done } else { exit });
    }
    if is_late
        && only_connects(&targets)
        && !watch.was_connected()
        && let Some(failure) = watch.failure()
    {
        let time = arguments.timeout.unwrap_or_default();
        let what = format!("no connection to {} within {time:?}", names(&targets));
        let error = Error::new(Error::kind_without_connection(failure), what);
        return Err(AtPeer(error.with_source(failure.clone())).into());
    }
    if exit == Exit::TimedOut {
        let expected = counted(arguments.count.unwrap_or_default(), "message");
        warn(format_args!("timed out: {} of {expected} arrived", grouped(written)));
    }
    Ok(exit)
}

/// Takes messages and writes them, until told to stop or the count is reached.
#[derive(Debug)]
struct Receiver {
    socket: Socket,
    output: Output,
    show: ShowOptions,
    count: Option<u64>,
    stopped: watch::Receiver<bool>,
    verbose: bool,
}

impl Receiver {
    /// Returns how many messages were written.
    async fn run(mut self) -> anyhow::Result<u64> {
        let (mut messages, mut bytes, mut turn) = (0_u64, 0_u64, 0_u64);
        while self.count.is_none_or(|count| messages < count) {
            turn += 1;
            if turn.is_multiple_of(TURN) {
                if *self.stopped.borrow() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let polled = futures::poll!(pin!(self.socket.recv()));
            let next = match polled {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    // Nothing more for now: what there is shall be seen.
                    self.output.flush()?;
                    tokio::select! {
                        biased;
                        next = self.socket.recv() => next,
                        _ = self.stopped.wait_for(|stopped| *stopped) => break,
                    }
                }
            };
            let Some(received) = next else { break };
            messages += 1;
            if let Received::Message(message) = &received {
                bytes += message.frames().iter().map(|frame| frame.len() as u64).sum::<u64>();
            }
            self.show.write(&mut self.output, &received)?;
        }
        self.output.flush()?;
        self.socket.close(Duration::ZERO).await;
        if self.verbose {
            note(format_args!("received {} ({})", counted(messages, "message"), counted(bytes, "byte")));
        }
        Ok(messages)
    }
}
