//! `xmsg zmq`: plain ZeroMQ sockets, for peers of any kind.
//!
//! | file | answers |
//! |---|---|
//! | `send.rs` | `xmsg zmq send` |
//! | `send/radio.rs` | `xmsg zmq send RADIO` |
//! | `receive.rs` | `xmsg zmq recv` |
//! | `receive/dish.rs` | `xmsg zmq recv DISH` |
//! | `request.rs` | `xmsg zmq req` |
//! | `reply.rs` | `xmsg zmq rep` |
//! | `socket.rs` | What can one socket of any type do? |
//! | `kind.rs` | Which types of sockets are there? |
//! | `endpoints.rs` | Where does a socket bind and connect, and with which security? |
//! | `frames.rs` | Which messages are sent? |
//! | `show.rs` | How is a received message written? |
//! | `watch.rs` | What happens to the connections of a socket, in words? |

pub(crate) mod endpoints;
mod frames;
mod kind;
mod receive;
mod reply;
mod request;
mod send;
mod show;
mod socket;
pub(crate) mod watch;

use std::ffi::OsString;

use anyhow::bail;
use clap::{Args, Subcommand};
use xmsg_zmtp::SocketType;

use crate::exit::{Exit, Usage};
use socket::Socket;

const EXAMPLES: &str = "\
Examples:
  xmsg zmq recv PULL --bind tcp://*:5557             a worker of whoever pushes
  xmsg zmq send PUSH tcp://localhost:5557 'a task'   one message for it
  xmsg zmq recv SUB tcp://localhost:5556 --topic weather
  xmsg zmq rep tcp://*:5555 --echo                   answers requests
  xmsg zmq req tcp://localhost:5555 hello            asks, and writes the reply";

/// The exit codes of these commands.
const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed: not everything was delivered, a request could not be answered, or an endpoint is taken
  2    usage: an option, a type or an endpoint that cannot be used
  3    nobody to connect to in time, or a socket whose type does not fit
  4    not let in: keys, user or password are wrong
  27   timed out: nobody connected, subscribed or replied, or fewer messages came than COUNT
  130  interrupted
  143  asked to end by SIGTERM";

/// Makes the end of the help of a command.
fn after_help(examples: &str) -> String {
    format!("{examples}\n\n{EXIT_CODES}")
}

/// Talk to ZeroMQ sockets of any program: libzmq, JeroMQ, pyzmq and others
///
/// These are plain ZeroMQ sockets, without a proxy and without what xMsg adds to messages. Endpoints are
/// `tcp://HOST:PORT` and `ipc://PATH`; separate several with commas. An endpoint that begins with `@` is
/// bound, and one that begins with `>` is connected to (quote that one in a shell); --bind and --connect
/// apply to all endpoints.
///
/// Security has the options of other commands: --server-key, --key-file, --user, --password-file. A socket
/// that binds is the server: with --key-file it requires CURVE, and accepts every client or only those of
/// --client-key; with --user and --password-file it requires PLAIN, and accepts this user.
#[derive(Debug, Args)]
#[command(after_help = after_help(EXAMPLES))]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Send(Box<send::Arguments>),
    Recv(Box<receive::Arguments>),
    Req(Box<request::Arguments>),
    Rep(Box<reply::Arguments>),
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    match arguments.action {
        Action::Send(arguments) => send::run(*arguments, verbose).await,
        Action::Recv(arguments) => receive::run(*arguments, verbose).await,
        Action::Req(arguments) => request::run(*arguments, verbose).await,
        Action::Rep(arguments) => reply::run(*arguments, verbose).await,
    }
}

/// Splits the words of a command whose socket has a fixed type into the endpoint and the data. As with other
/// commands, the type may be the first word; it is never treated as an endpoint.
fn words(words: &[OsString], kind: SocketType) -> anyhow::Result<(&str, &[OsString])> {
    let (first, rest) = match words {
        [first, rest @ ..] => (endpoints::text(first)?, rest),
        [] => bail!(Usage("an endpoint is missing, such as tcp://localhost:5555".to_owned())),
    };
    match kind::named(first) {
        None => Ok((first, rest)),
        Some(given) if given == kind => words_behind(kind, rest),
        Some(given) => {
            let name = kind.name().to_lowercase();
            bail!(Usage(format!(
                "`xmsg zmq {name}` is for {kind}, not for {given}: see xmsg zmq send and recv"
            )))
        }
    }
}

fn words_behind(kind: SocketType, rest: &[OsString]) -> anyhow::Result<(&str, &[OsString])> {
    match rest {
        [endpoint, data @ ..] => Ok((endpoints::text(endpoint)?, data)),
        [] => bail!(Usage(format!("{kind} needs an endpoint, such as tcp://localhost:5555"))),
    }
}
