//! `xmsg zmq req`: sends requests and writes the replies.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use xmsg_zmq::{Error, Requester};
use xmsg_zmtp::SocketType;

use super::endpoints::{End, SocketArguments, Target, bound, names};
use super::frames::{FrameOptions, Input};
use super::show::ShowOptions;
use super::watch::{OwnSocket, Place, Watch, explained, is_hopeless, option_for, violation};
use super::{after_help, words};
use crate::args::{parse_count_from_1, parse_duration};
use crate::commands::request::ended;
use crate::exit::{Exit, Usage, is_unanswered, is_without_proxy};
use crate::output::{Output, counted, note, output_closed, warn, with_notes};
use crate::signals::Interrupt;
use crate::source::Split;

/// How long to wait for a peer before a note about it is written.
const NOTE_AFTER_WAIT: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  xmsg zmq req tcp://localhost:5555 hello            the reply on a line
  xmsg zmq req REQ tcp://localhost:5555 hello        the same, with the type as elsewhere
  xmsg zmq req tcp://localhost:5555 get key --json | jq '.frames[0]'
  xmsg zmq req tcp://localhost:5555 -f question --raw > answer
  xmsg zmq req tcp://a:5555,tcp://b:5555 hello --timeout 5s -v
  xmsg zmq req tcp://*:5555 hello --bind             asks whoever connects";

/// Send a request over a ZeroMQ socket, and write the reply to standard output
///
/// Each DATA is a frame of the request; without any, standard input is its only one. The frames of the reply
/// are written on a line, with a tab between them. With several endpoints each request goes to one of them,
/// and to another one if no peer is there. A socket that only binds waits for a peer.
///
/// Exit code 27: nobody replied in time (to at least one of several requests). Exit code 3: there is no peer,
/// or only a socket whose type does not fit.
#[derive(Debug, Args)]
#[command(after_help = after_help(EXAMPLES), override_usage = "xmsg zmq req [OPTIONS] [REQ] <ENDPOINT> [DATA]...")]
pub(super) struct Arguments {
    /// Endpoints to connect to, or to bind with `@` in front, separated by commas; after them the frames of
    /// the request, `-` as the last one: standard input. Write `--` before data that starts with `-`
    #[arg(value_name = "ENDPOINT", required = true)]
    words: Vec<OsString>,

    #[command(flatten)]
    frames: FrameOptions,

    /// How long to wait for a reply, such as 500ms or 10s
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    timeout: Duration,

    /// Send this many requests, one after the other
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1, hide_default_value = true,
          value_parser = parse_count_from_1)]
    count: u64,

    #[command(flatten)]
    show: ShowOptions,

    #[command(flatten)]
    socket: SocketArguments,
}

pub(super) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    if arguments.timeout.is_zero() {
        bail!(Usage("--timeout can't be 0: nobody could reply in time".to_owned()));
    }
    let (endpoint, data) = words(&arguments.words, SocketType::Req)?;
    let mut targets = arguments.socket.targets([endpoint], End::Connect)?;
    let options = arguments.socket.options(&targets)?;
    let input = arguments.frames.input(data, Split::Whole, &options.settings().limits)?;
    let requester = Requester::new(options.for_socket());
    let mut events = requester.events();
    for target in &mut targets {
        match target.end {
            End::Bind => {
                target.endpoint = bound(requester.bind(&target.endpoint).await)?;
                note(format_args!("bound to {target}"));
            }
            End::Connect => requester.connect(target.endpoint.clone()),
        }
    }
    if requester.endpoints().is_empty() {
        // The time limit for a reply starts only when there is a peer.
        let somebody = async { while requester.peers() == 0 && events.next().await.is_some() {} };
        let says = async {
            tokio::time::sleep(NOTE_AFTER_WAIT).await;
            note(format_args!("waiting for a REP or ROUTER to connect to {}", names(&targets)));
            std::future::pending::<()>().await;
        };
        let ours = OwnSocket { kind: SocketType::Req, place: Place::Fixed };
        let mut watch = Watch::new(requester.events(), ours, &targets, verbose);
        tokio::select! {
            () = with_notes(somebody, says) => {}
            error = watch.run() => return Err(error.into()),
            exit = interrupt.wait() => return Ok(exit),
        }
    }

    // The work has its own task, because a slow reader of our output may block it, and signals must be
    // handled in the meantime.
    let asker = RequestTask {
        requester: requester.clone(),
        targets,
        input,
        count: arguments.count,
        timeout: arguments.timeout,
        show: arguments.show,
        output: Output::stdout()?,
        verbose,
    };
    let result = tokio::select! {
        result = tokio::spawn(asker.run()) => result?,
        exit = interrupt.wait() => return Ok(exit),
        () = output_closed() => return Ok(Exit::Done),
    };
    requester.close().await;
    result
}

/// Sends requests and writes the replies.
#[derive(Debug)]
struct RequestTask {
    requester: Requester,
    targets: Vec<Target>,
    input: Input,
    count: u64,
    timeout: Duration,
    show: ShowOptions,
    output: Output,
    verbose: bool,
}

impl RequestTask {
    async fn run(mut self) -> anyhow::Result<Exit> {
        let dish = self.input.only().await?;
        let (mut unanswered, mut is_lost) = (0_u64, false);
        for number in 1..=self.count {
            let started = Instant::now();
            match self.requester.request(dish.message(number)?, self.timeout).await {
                Ok(reply) => {
                    let time = started.elapsed();
                    is_lost = false;
                    self.show.message(&mut self.output, &reply)?;
                    self.output.flush()?;
                    if self.verbose {
                        let bytes = reply.frames().iter().map(|frame| frame.len() as u64).sum();
                        let (bytes, ms) = (counted(bytes, "byte"), time.as_secs_f64() * 1e3);
                        note(format_args!("reply {number}: {bytes} after {ms:.3} ms"));
                    }
                }
                Err(error) if is_hopeless(error.kind()) => {
                    let ours = OwnSocket { kind: SocketType::Req, place: Place::Fixed };
                    return Err(explained(ours, &names(&self.targets), error).into());
                }
                Err(error) if is_unanswered(&error) => {
                    unanswered += 1;
                    is_lost = is_without_proxy(error.kind());
                    warn(error.with_causes());
                }
                Err(error) => {
                    // The text of the error already says what is wrong with the reply.
                    return Err(match violation(&error).map(option_for) {
                        Some(option) => Error::new(error.kind(), format!("{error}{option}")).into(),
                        None => error.into(),
                    });
                }
            }
        }
        Ok(ended(self.count, unanswered, is_lost))
    }
}
