//! `xmsg device`: forwards messages between two sockets.

use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::{
    Dealer, Device, DeviceSocket, DeviceStatistics, DeviceTraffic, Endpoint, Overflow, Publisher, Pull, Push,
    Router, SocketEvents, SocketOptions, XPub, XSub,
};
use xmsg_zmtp::SocketType;

use super::zmq::endpoints::{End, PeerOptions, Room, Target, bound, read};
use super::zmq::watch::{OwnSocket, Place, Watch};
use crate::args::parse_duration;
use crate::exit::Exit;
use crate::output::{Output, counted, grouped, note, warn};
use crate::signals::Interrupt;

const EXAMPLES: &str = "\
Devices:
  forwarder   publishers at the frontend (XSUB), subscribers at the backend (XPUB)
  streamer    PUSH sockets at the frontend (PULL), workers with PULL at the backend (PUSH)
  queue       clients with REQ at the frontend (ROUTER), workers with REP at the backend (DEALER)

Examples:
  xmsg device forwarder --frontend tcp://*:5556 --backend tcp://*:5557
  xmsg device streamer --frontend tcp://*:5557 --backend tcp://*:5558
  xmsg device queue --frontend tcp://*:5559 --backend tcp://*:5560
  xmsg device forwarder --frontend '>tcp://far:5556' --backend tcp://*:5557
  xmsg device queue --frontend tcp://*:5559 --backend tcp://*:5560 --capture tcp://*:5561
  xmsg zmq recv SUB tcp://localhost:5561             sees what goes through it

Exit codes:
  1    failed: an endpoint is taken
  2    usage: an option or an endpoint that cannot be used
  3    the only socket that an end connects to does not fit it
  4    not let in: keys, user or password are wrong
  130  ended by Ctrl-C
  143  ended by SIGTERM";

/// Run a ZeroMQ device: what comes in at one end goes out at the other
///
/// Both ends bind, and show their addresses on standard error. An endpoint that begins with `>` is connected
/// to (quote it in a shell). Separate several endpoints with commas.
///
/// It runs until Ctrl-C or SIGTERM. At the end it shows what it forwarded, from the frontend to the backend
/// (forward) and back: messages that the other side has taken, their bytes on the wire, and messages that
/// were dropped: too large, for a peer that is gone or does not read, or not forwarded by the end.
/// Subscriptions count as messages.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The type of the device
    #[arg(value_name = "DEVICE", ignore_case = true)]
    kind: Kind,

    /// The end for peers that send messages or requests
    #[arg(id = "device_frontend", long = "frontend", value_name = "ENDPOINT", required = true)]
    frontend: String,

    /// The end for peers that receive messages or reply
    #[arg(long, value_name = "ENDPOINT", required = true)]
    backend: String,

    /// Publish a copy of each message of both directions here, for SUB sockets
    #[arg(long, value_name = "ENDPOINT")]
    capture: Option<String>,

    /// How long to keep sending accepted messages at the end, if the other side is slow
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    linger: Duration,

    /// Write the totals as an object of JSON to standard output
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    peers: PeerOptions,
}

/// The kind of a device, which determines its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Forwarder,
    Streamer,
    Queue,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Forwarder => "forwarder",
            Self::Streamer => "streamer",
            Self::Queue => "queue",
        }
    }

    /// Returns the types of the frontend socket and the backend socket.
    fn sockets(self) -> [SocketType; 2] {
        match self {
            Self::Forwarder => [SocketType::Xsub, SocketType::Xpub],
            Self::Streamer => [SocketType::Pull, SocketType::Push],
            Self::Queue => [SocketType::Router, SocketType::Dealer],
        }
    }
}

impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Forwarder, Self::Streamer, Self::Queue]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// A socket at one end of a device, with the operations to open, watch and close it.
trait DeviceEnd: DeviceSocket {
    fn events(&self) -> SocketEvents;
    async fn bind(&self, endpoint: &Endpoint) -> xmsg_zmq::Result<Endpoint>;
    fn connect(&self, endpoint: Endpoint);
    /// Returns the number of messages that it has accepted and dropped again.
    fn dropped(&self) -> u64;
    /// Sends what it has accepted, and returns the number of messages that were not sent.
    async fn close(&self, linger: Duration) -> usize;
    /// Takes the received messages that nobody has taken, once the socket is closed. Returns their number.
    async fn unread(&self) -> u64;
}

/// Counts the items until there are no more.
async fn count<T>(mut next: impl AsyncFnMut() -> Option<T>) -> u64 {
    let mut count = 0;
    while next().await.is_some() {
        count += 1;
    }
    count
}

macro_rules! device_ends {
    ($($socket:ident: $this:ident, $linger:ident => $dropped:expr, $close:expr $(, $recv:expr)?;)+) => {$(
        impl DeviceEnd for $socket {
            fn events(&self) -> SocketEvents {
                Self::events(self)
            }

            async fn bind(&self, endpoint: &Endpoint) -> xmsg_zmq::Result<Endpoint> {
                Self::bind(self, endpoint).await
            }

            fn connect(&self, endpoint: Endpoint) {
                Self::connect(self, endpoint);
            }

            fn dropped(&self) -> u64 {
                let $this = self;
                $dropped
            }

            async fn close(&self, $linger: Duration) -> usize {
                let $this = self;
                $close
            }

            async fn unread(&self) -> u64 {
                // A socket that only sends has no received messages.
                [0, $({ let $this = self; count(async || $recv).await })?].iter().sum()
            }
        }
    )+};
}

device_ends! {
    XSub: this, linger => Self::dropped(this), Self::close(this, linger).await, this.recv().await;
    // Subscriptions that were received mean nothing once the subscribers are gone.
    XPub: this, linger => Self::dropped(this), Self::close(this, linger).await;
    Push: this, linger => Self::dropped(this), Self::close(this, linger).await;
    Publisher: this, linger => Self::dropped(this), Self::close(this, linger).await;
    Dealer: this, linger => Self::dropped(this), Self::close(this, linger).await, this.recv().await;
    // These sockets drop nothing that they have accepted, or send nothing.
    Router: _this, linger => 0, Self::close(_this, linger).await, _this.recv().await;
    Pull: _this, _linger => 0, { Self::close(_this).await; 0 }, _this.recv().await;
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let [front, back] = arguments.kind.sockets();
    let room = Room::of_process();
    let front = Side::new("frontend", front, &arguments.frontend, &arguments.peers, &room)?;
    let back = Side::new("backend", back, &arguments.backend, &arguments.peers, &room)?;
    let capture = match &arguments.capture {
        Some(word) => Some(Side::new("capture", SocketType::Pub, word, &arguments.peers, &room)?),
        None => None,
    };
    let job = Job { arguments: &arguments, front: &front, back: &back, capture: capture.as_ref(), verbose };
    let (here, there) = (&front.options, &back.options);
    match arguments.kind {
        Kind::Forwarder => job.run(XSub::new(here.for_socket()), XPub::new(there.for_socket())).await,
        Kind::Streamer => job.run(Pull::new(here.for_socket()), Push::new(there.for_socket())).await,
        Kind::Queue => job.run(Router::new(here.for_socket()), Dealer::new(there.for_socket())).await,
    }
}

/// One end of a device, before it has its socket.
#[derive(Debug)]
struct Side {
    name: &'static str,
    kind: SocketType,
    targets: Vec<Target>,
    options: SocketOptions,
}

impl Side {
    fn new(
        name: &'static str,
        kind: SocketType,
        word: &str,
        peers: &PeerOptions,
        room: &Room,
    ) -> anyhow::Result<Self> {
        let targets = read(word, End::Bind)?;
        let options = peers.options(&targets, room.clone())?;
        Ok(Self { name, kind, targets, options })
    }

    /// Binds and connects the socket, and reports the endpoints.
    async fn attach(&self, socket: &impl DeviceEnd) -> anyhow::Result<()> {
        let (name, kind) = (self.name, self.kind);
        for target in &self.targets {
            if target.end == End::Bind {
                let bound = bound(socket.bind(&target.endpoint).await)?;
                note(format_args!("{name} ({kind}) bound to {bound}"));
            } else {
                note(format_args!("{name} ({kind}) connects to {target}"));
                socket.connect(target.endpoint.clone());
            }
        }
        Ok(())
    }
}

/// A device that is to be run.
struct Job<'a> {
    arguments: &'a Arguments,
    front: &'a Side,
    back: &'a Side,
    capture: Option<&'a Side>,
    verbose: bool,
}

impl Job<'_> {
    /// Runs the device between these sockets until it is interrupted.
    async fn run(self, front: impl DeviceEnd, back: impl DeviceEnd) -> anyhow::Result<Exit> {
        let mut interrupt = Interrupt::new()?;
        let watch = |side: &Side, other: &Side, events| {
            let ours = OwnSocket { kind: side.kind, place: Place::End(other.name, other.kind) };
            Watch::new(events, ours, &side.targets, self.verbose)
        };
        let mut watches =
            [watch(self.front, self.back, front.events()), watch(self.back, self.front, back.events())];
        let capture = match self.capture {
            Some(side) => {
                // Captured messages are dropped if necessary: a slow observer must not delay the others.
                let options = side.options.for_socket().overflow(Overflow::DropNewest);
                let socket = Publisher::new(options);
                side.attach(&socket).await?;
                Some(socket)
            }
            None => None,
        };
        self.front.attach(&front).await?;
        self.back.attach(&back).await?;
        let device = match &capture {
            Some(capture) => Device::start_with_capture(&front, &back, capture),
            None => Device::start(&front, &back),
        };
        note(format_args!("the {} is running; Ctrl-C ends it", self.arguments.kind.name()));
        let [watch_front, watch_back] = &mut watches;
        let result = tokio::select! {
            exit = interrupt.wait() => Ok(exit),
            error = watch_front.run() => Err(error),
            error = watch_back.run() => Err(error),
        };

        watches.iter_mut().for_each(Watch::ends);
        let linger = Deadline::after(self.arguments.linger);
        let ending = async {
            let statistics = device.stop(linger.left()).await;
            let left = linger.left();
            let captured = async {
                match &capture {
                    Some(capture) => DeviceEnd::close(capture, left).await,
                    None => 0,
                }
            };
            let (unsent_back, unsent_forth, _) = tokio::join!(front.close(left), back.close(left), captured);
            let (waiting_forth, waiting_back) = tokio::join!(front.unread(), back.unread());
            (statistics, [unsent_forth as u64 + waiting_forth, unsent_back as u64 + waiting_back])
        };
        let (mut statistics, [left_forth, left_back]) = tokio::select! {
            ended = ending => ended,
            exit = interrupt.wait() => return Ok(exit),
        };
        // This adds messages that the other end dropped after they were forwarded, and those that were still
        // on their way.
        statistics.forward.dropped += back.dropped() + left_forth;
        statistics.backward.dropped += front.dropped() + left_back;
        if left_forth + left_back > 0 {
            let (what, time) = (counted(left_forth + left_back, "message"), self.arguments.linger);
            warn(format_args!(
                "{what} could not be passed on within {time:?}: see whether the other side reads; --linger gives more time"
            ));
        }
        self.report(statistics)?;
        Ok(result?)
    }

    /// Reports what was forwarded.
    fn report(&self, statistics: DeviceStatistics) -> anyhow::Result<()> {
        if self.arguments.json {
            let mut output = Output::stdout()?;
            output.json(&json!({
                "device": self.arguments.kind.name(),
                "forward": object(statistics.forward),
                "backward": object(statistics.backward),
            }))?;
            return output.flush();
        }
        for (way, traffic) in
            [("frontend to backend", statistics.forward), ("backend to frontend", statistics.backward)]
        {
            let DeviceTraffic { messages, bytes, dropped } = traffic;
            note(format_args!(
                "{way}: {}, {}, {} dropped",
                counted(messages, "message"),
                counted(bytes, "byte"),
                grouped(dropped)
            ));
        }
        Ok(())
    }
}

fn object(traffic: DeviceTraffic) -> Value {
    let DeviceTraffic { messages, bytes, dropped } = traffic;
    json!({ "messages": messages, "bytes": bytes, "dropped": dropped })
}
