//! `xmsg zmq rep`: answers requests.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::bail;

use clap::Args;
use xmsg_zmq::{Multipart, Replier};
use xmsg_zmtp::SocketType;

use super::endpoints::{End, SocketArguments, bound};
use super::frames::{FrameOptions, Input};
use super::watch::{OwnSocket, Place, Watch};
use super::{after_help, words};
use crate::args::{parse_count_from_1, parse_duration};
use crate::commands::reply::Command;
use crate::exit::{Exit, Usage};
use crate::output::{counted, grouped, note, warn};
use crate::signals::Interrupt;
use crate::source::Split;

/// How long replies are still sent at the end.
const LINGER: Duration = Duration::from_secs(5);
/// How long replies are still sent after an interrupt.
const INTERRUPTED_LINGER: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  xmsg zmq rep tcp://*:5555 --echo                   the frames of the request, sent back
  xmsg zmq rep REP tcp://*:5555 42                   always the same
  xmsg zmq rep ipc:///tmp/upper --command 'tr a-z A-Z'
  xmsg zmq rep --connect tcp://localhost:5560 --echo a worker behind `xmsg device queue`";

/// Answer requests that come over a ZeroMQ socket
///
/// It binds by default. Each DATA is a frame of all replies, unless --echo, --command or --file says what to
/// reply.
///
/// A command is run by `sh -c` for each request, one after another. Its standard input has the frames of the
/// request without anything between them, and `XMSG_FRAMES` in its environment is their number. What it
/// writes to its standard output is the reply, of one frame. If it fails or takes too long, an error is
/// written to standard error, and there is no reply: ZeroMQ has no errors to send.
#[derive(Debug, Args)]
#[command(
    after_help = after_help(EXAMPLES),
    override_usage = "xmsg zmq rep [OPTIONS] [REP] <ENDPOINT> <DATA>...\n       \
                      xmsg zmq rep [OPTIONS] [REP] <ENDPOINT> <--echo|--command <CMD>|--file <FILE>>"
)]
pub(super) struct Arguments {
    /// Endpoints to bind, or to connect to, separated by commas; after them the frames of replies, `-` as the
    /// last one: standard input. Write `--` before data that starts with `-`
    #[arg(value_name = "ENDPOINT", required = true)]
    words: Vec<OsString>,

    #[command(flatten)]
    frames: FrameOptions,

    /// Reply with the frames of the request
    #[arg(long, conflicts_with_all = ["command", "file", "hex", "base64", "template"])]
    echo: bool,

    /// Reply with what this shell command writes to its standard output
    #[arg(long, value_name = "CMD", conflicts_with_all = ["file", "hex", "base64", "template"])]
    command: Option<OsString>,

    /// How long a command may take; after that it is killed, and there is no reply
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration, requires = "command")]
    command_timeout: Duration,

    /// End after this many requests, including those that failed; exit code 1 if any failed
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = parse_count_from_1)]
    count: Option<u64>,

    #[command(flatten)]
    socket: SocketArguments,
}

pub(super) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let (endpoint, data) = words(&arguments.words, SocketType::Rep)?;
    let targets = arguments.socket.targets([endpoint], End::Bind)?;
    let options = arguments.socket.options(&targets)?;
    let elsewhere = arguments.echo || arguments.command.is_some();
    if elsewhere && !data.is_empty() {
        bail!(Usage("DATA and --echo or --command: what to reply? Leave one of them out".to_owned()));
    }
    if !elsewhere && data.is_empty() && arguments.frames.file.is_none() {
        bail!(Usage("what to reply? Give DATA after the endpoint, --echo, --command or --file".to_owned()));
    }
    let mut input = if elsewhere {
        None
    } else {
        Some(arguments.frames.input(data, Split::Whole, &options.settings().limits)?)
    };
    let command = arguments.command.map(|line| Command {
        line,
        timeout: arguments.command_timeout,
        limit: options.settings().limits.message_size,
    });
    let socket = Replier::new(options.for_socket());
    let ours = OwnSocket { kind: SocketType::Rep, place: Place::Fixed };
    let mut watch = Watch::new(socket.events(), ours, &targets, verbose);
    for target in &targets {
        match target.end {
            End::Bind => {
                let bound = bound(socket.bind(&target.endpoint).await)?;
                note(format_args!("bound to {bound}; Ctrl-C ends it"));
            }
            End::Connect => socket.connect(target.endpoint.clone()),
        }
    }
    let mut service = Service { socket: &socket, command, requests: 0, answered: 0 };
    let (result, linger) = tokio::select! {
        result = service.run(input.as_mut(), arguments.count) => (result.map(|()| Exit::Done), LINGER),
        error = watch.run() => (Err(error.into()), LINGER),
        exit = interrupt.wait() => (Ok(exit), INTERRUPTED_LINGER),
    };
    let (requests, answered) = (service.requests, service.answered);
    let left = tokio::select! {
        left = socket.close(linger) => left,
        exit = interrupt.wait() => return Ok(exit),
    };
    if verbose {
        note(format_args!("answered {} of {}", grouped(answered), counted(requests, "request")));
    }
    let exit = result?;
    if left > 0 && exit == Exit::Done {
        bail!("{} not sent: whoever asked does not read", counted(left as u64, "reply"));
    }
    if exit == Exit::Done && answered < requests {
        bail!("{} of {} failed", grouped(requests - answered), counted(requests, "request"));
    }
    Ok(exit)
}

/// Takes requests one after another and sends replies.
#[derive(Debug)]
struct Service<'a> {
    socket: &'a Replier,
    command: Option<Command>,
    requests: u64,
    answered: u64,
}

impl Service<'_> {
    /// Runs until `count` requests were handled.
    async fn run(&mut self, input: Option<&mut Input>, count: Option<u64>) -> anyhow::Result<()> {
        let dish = match input {
            Some(input) => Some(input.only().await?),
            None => None,
        };
        while count.is_none_or(|count| self.requests < count) {
            let Some((path, request)) = self.socket.recv().await else { bail!("the socket was closed") };
            self.requests += 1;
            let reply = match (&dish, &self.command) {
                (Some(dish), _) => dish.message(self.requests).map_err(anyhow::Error::from),
                (None, Some(command)) => output(command, &request).await,
                (None, None) => Ok(request),
            };
            let sent = reply.and_then(|reply| Ok(self.socket.try_reply(&path, reply)?));
            match sent {
                Ok(()) => self.answered += 1,
                Err(error) => warn(format_args!("no reply to request {}: {error:#}", self.requests)),
            }
            tokio::task::consume_budget().await;
        }
        Ok(())
    }
}

/// Runs a command for a request, and returns its output as the reply.
async fn output(command: &Command, request: &Multipart) -> anyhow::Result<Multipart> {
    let count = request.frames().len().to_string();
    let input = request.frames().concat();
    let output = command.run(&input, &[("XMSG_FRAMES", count.as_ref())]).await?;
    Ok(Multipart::from([output]))
}
