//! The network of a simulation. Every client has its own *line* to the switch, which treats its connections
//! as the seed says. A line also keeps records of what was written into it and what it delivered, and
//! therefore of what was lost in it.

// Longer than 500 lines: one network. Lines, connections and pipes share what the seed decides.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use fastrand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmsg_proxy::switch::Switch;
use xmsg_zmq::link::transport::{Listener, ReadHalf, Stream, WriteHalf};
use xmsg_zmq::{Endpoint, TcpOptions};
use xmsg_zmtp::{GREETING_LEN, Header};

/// Returns a random time. Its limit is two to the power of a random number in `order`, in milliseconds, so
/// that short times are as likely as long ones.
pub(super) fn some_time(rng: &mut Rng, order: std::ops::Range<u32>) -> Duration {
    let most = 1 << rng.u32(order);
    Duration::from_millis(rng.u64(1..=most))
}

/// The identity of a message: the number of its publisher, and its own number, which starts at 0.
pub type Id = (u16, u32);

/// A message at a point in the network.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The identity of the message, or `None` if it is not a message of the simulation, which is a failure.
    pub id: Option<Id>,
    /// The number of bytes that had passed at its end.
    pub end: u64,
    /// The time since the start of the simulation.
    pub at: Duration,
    /// The number of the message among all that came out of any line, or 0 if it did not come out.
    pub order: u64,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Flow {
    /// The messages that were completely written into the line.
    pub taken: Vec<Seen>,
    /// How many of `taken` came out at the other end completely. For these, `at` is the time at which they
    /// came out.
    pub passed: usize,
    /// Whether the line reached the end of the stream after it had delivered everything before it.
    pub ended_well: bool,
    passed_bytes: u64,
    read: u64,
    greeting_left: usize,
    unparsed: BytesMut,
    garbage: bool,
}

impl Flow {
    fn new() -> Self {
        Self { greeting_left: GREETING_LEN, ..Self::default() }
    }

    /// Returns the messages that came out.
    #[must_use]
    pub fn out(&self) -> &[Seen] {
        &self.taken[..self.passed]
    }

    fn take(&mut self, bytes: &[u8], at: Duration) {
        self.read += bytes.len() as u64;
        self.unparsed.extend_from_slice(bytes);
        let greeting = self.greeting_left.min(self.unparsed.len());
        self.greeting_left -= greeting;
        self.unparsed.advance(greeting);
        while !self.garbage {
            match message_at_front(&self.unparsed) {
                Front::Incomplete => break,
                Front::Garbage => {
                    self.garbage = true;
                    self.taken.push(Seen { id: None, end: self.read, at, order: 0 });
                }
                Front::Command(len) => self.unparsed.advance(len),
                Front::Message(len, id) => {
                    self.unparsed.advance(len);
                    self.taken.push(Seen { id, end: self.read - self.unparsed.len() as u64, at, order: 0 });
                }
            }
        }
    }

    fn pass(&mut self, len: usize, at: Duration, order: &mut u64) {
        self.passed_bytes += len as u64;
        while let Some(next) = self.taken.get_mut(self.passed).filter(|next| next.end <= self.passed_bytes) {
            *order += 1;
            (next.at, next.order) = (at, *order);
            self.passed += 1;
        }
    }
}

enum Front {
    Incomplete,
    Garbage,
    Command(usize),
    Message(usize, Option<Id>),
}

fn message_at_front(bytes: &[u8]) -> Front {
    let mut end = 0;
    let mut frames: Vec<&[u8]> = Vec::new();
    loop {
        let header = match bytes.get(end..).map(Header::read) {
            Some(Ok(Some(header))) => header,
            Some(Err(_)) => return Front::Garbage,
            _ => return Front::Incomplete,
        };
        let body = end + header.len;
        end = body + header.body_len as usize;
        let Some(body) = bytes.get(body..end) else { return Front::Incomplete };
        if header.is_command() {
            // No test here sends commands between the frames of a message.
            return if frames.is_empty() { Front::Command(end) } else { Front::Garbage };
        }
        frames.push(body);
        if !header.has_more() {
            return Front::Message(end, id(&frames));
        }
    }
}

/// Returns the identity of a message, or `None` if it is not a complete message of the simulation.
#[must_use]
pub fn id<F: AsRef<[u8]>>(frames: &[F]) -> Option<Id> {
    let [_, id, _] = frames else { return None };
    let (publisher, number) = id.as_ref().split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*publisher), u32::from_be_bytes(number.try_into().ok()?)))
}

/// One connection through a line.
#[derive(Debug)]
pub struct Record {
    /// The client of the line.
    pub client: usize,
    /// The number of the switch at the other end, or `None` if there was no switch.
    pub generation: Option<usize>,
    /// The direction from the client.
    pub up: Flow,
    /// The direction to the client.
    pub down: Flow,
    /// Whether the connection is still open.
    pub open: bool,
    /// From this number on (see [`Seen::order`]), the switch had finished the publisher's older connections
    /// before messages of this one came out. Before it, messages of old and new connections may overtake each
    /// other, because a switch does not know that both belong to one publisher.
    pub alone_from: Option<u64>,
    /// The time at which the first message of the connection came out.
    first_out: Option<Duration>,
}

/// An entry of the trace: the time, what happened, and two numbers with details.
pub type TraceEntry = (Duration, &'static str, u64, u64);

/// The records of a whole simulation.
#[derive(Debug, Default)]
pub struct Records {
    /// All connections, in the order in which they were made.
    pub records: Vec<Record>,
    /// The trace, in order. The same seed must give the same trace.
    pub trace: Vec<TraceEntry>,
    order: u64,
    /// The current switch, with its number and the endpoint for each client.
    pub switch: Option<(usize, Switch, Vec<Endpoint>)>,
}

impl Records {
    fn pass(&mut self, number: usize, way: Direction, len: usize, now: Duration) {
        let record = &mut self.records[number];
        way.flow(record).pass(len, now, &mut self.order);
        if record.alone_from.is_some() || record.up.passed == 0 {
            return;
        }
        // When the clock has advanced, the switch has noticed this connection.
        let noticed = *record.first_out.get_or_insert(now) < now;
        if let Some((_, switch, endpoints)) = self.switch.as_ref().filter(|_| noticed) {
            let name = endpoints[record.client].to_string();
            if switch.publishers().iter().filter(|publisher| publisher.peer == name).count() == 1 {
                record.alone_from = Some(self.order + 1);
            }
        }
    }
}

/// Shared access to the records.
#[derive(Clone, Debug)]
pub struct SharedRecords {
    books: Arc<Mutex<Records>>,
    start: tokio::time::Instant,
    /// A token that is cancelled when the network becomes good.
    pub healed: CancellationToken,
}

impl SharedRecords {
    /// Creates empty records.
    #[must_use]
    pub fn new() -> Self {
        Self { books: Arc::default(), start: tokio::time::Instant::now(), healed: CancellationToken::new() }
    }

    /// Locks the records. No task awaits anything while it holds the lock.
    pub fn books(&self) -> MutexGuard<'_, Records> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time since the start of the simulation.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds an entry to the trace.
    pub fn note(&self, what: &'static str, a: u64, b: u64) {
        let now = self.now();
        self.books().trace.push((now, what, a, b));
    }
}

impl Default for SharedRecords {
    fn default() -> Self {
        Self::new()
    }
}

/// How bad a line is until the network is healed.
#[derive(Clone, Debug)]
pub struct Quality {
    /// The percentage of connections that are refused.
    pub refusals: u8,
    /// The percentage of connections that are cut.
    pub cuts: u8,
    /// The percentage of connections that stop for a while in one direction.
    pub stalls: u8,
    /// The most bytes that pass in one piece.
    pub grain: usize,
    /// The percentage of pieces that are late.
    pub delays: u8,
}

/// The way from a client to the switch.
#[derive(Debug)]
pub struct Line {
    /// The number of the client.
    pub client: usize,
    /// How bad the line is.
    pub quality: Quality,
    /// Whether the switch looks like a foreign one to the client: it does not announce its limits.
    pub foreign: bool,
    /// The source of randomness.
    pub rng: Rng,
    /// The records.
    pub shared_records: SharedRecords,
}

impl Line {
    /// Binds this endpoint for the client, and runs until `stop` is cancelled.
    pub async fn open(mut self, endpoint: &Endpoint, tasks: &TaskTracker, stop: &CancellationToken) {
        let mut listener = Listener::bind(endpoint, TcpOptions::default()).await.expect("a new name");
        let (tracker, stop) = (tasks.clone(), stop.clone());
        tasks.spawn(async move {
            loop {
                let stream = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    (stream, _) = listener.accept() => stream,
                };
                let connection = self.connection();
                tracker.spawn(connection.run(stream, stop.clone()));
            }
        });
    }

    fn connection(&mut self) -> Connection {
        let rng = &mut self.rng;
        let [refuse, cut, stall] = [self.quality.refusals, self.quality.cuts, self.quality.stalls]
            .map(|percent| rng.u8(..100) < percent);
        // The place is early in the handshake, late in the traffic, or anywhere between them.
        let at = |rng: &mut Rng| {
            let most = 1_u64 << rng.u32(3..18);
            rng.u64(0..most)
        };
        let mut ways = [(None, None); 2];
        if cut {
            ways[rng.usize(..2)].0 = Some(at(rng));
        }
        if stall {
            let time = some_time(rng, 4..15);
            ways[rng.usize(..2)].1 = Some((at(rng), time));
        }
        let pieces = |rng: &mut Rng, (cut, stall)| Pipe {
            grain: self.quality.grain,
            delays: self.quality.delays,
            cut,
            stall,
            rng: rng.fork(),
            waiting: BytesMut::new(),
            hide: None,
        };
        let up = pieces(rng, ways[0]);
        let down = Pipe { hide: self.foreign.then_some(0), ..pieces(rng, ways[1]) };
        let mut books = self.shared_records.books();
        let number = books.records.len();
        books.records.push(Record {
            client: self.client,
            generation: None,
            up: Flow::new(),
            down: Flow::new(),
            open: true,
            alone_from: None,
            first_out: None,
        });
        drop(books);
        self.shared_records.note("accepted", self.client as u64, number as u64);
        let pause = some_time(rng, 1..14);
        let refuse = refuse.then_some(if rng.bool() { pause } else { Duration::ZERO });
        Connection {
            number,
            client: self.client,
            refuse,
            up,
            down,
            shared_records: self.shared_records.clone(),
        }
    }
}

struct Connection {
    number: usize,
    client: usize,
    /// If set, the connection leads nowhere, and ends after this time.
    refuse: Option<Duration>,
    up: Pipe,
    down: Pipe,
    shared_records: SharedRecords,
}

/// How the bytes of one direction pass.
struct Pipe {
    grain: usize,
    delays: u8,
    cut: Option<u64>,
    stall: Option<(u64, Duration)>,
    rng: Rng,
    /// Bytes that were read and are not delivered yet.
    waiting: BytesMut,
    /// If limits are to be hidden, the number of latest bytes that match the beginning of `TOLD`.
    hide: Option<usize>,
}

/// The beginning of the names of properties that announce limits.
const TOLD: &[u8] = b"X-Max-";
/// The names are within this many bytes at the beginning of a connection.
const HANDSHAKE_LEN: u64 = 512;

/// The reason why a connection ended before both directions had reached their ends.
#[derive(Clone, Copy, Debug)]
enum Lost {
    Cut,
    Broken,
}

impl Connection {
    async fn run(mut self, mut client: Stream, stop: CancellationToken) {
        let healed = self.shared_records.healed.is_cancelled();
        if let Some(pause) = self.refuse.filter(|_| !healed) {
            tokio::time::sleep(pause).await;
            self.end("refused", 0);
            return;
        }
        let target = self.shared_records.books().switch.clone();
        let switch = match &target {
            Some((_, _, endpoints)) => {
                Stream::connect(&endpoints[self.client], &TcpOptions::default(), Duration::MAX).await.ok()
            }
            None => None,
        };
        let (Some((generation, ..)), Some(mut switch)) = (target, switch) else {
            self.end("nobody there", 0);
            return;
        };
        self.shared_records.books().records[self.number].generation = Some(generation);
        let (mut client_read, mut client_write) = client.split();
        let (mut switch_read, mut switch_write) = switch.split();
        let (shared_records, number) = (&self.shared_records, self.number);
        let lost = {
            let up = self.up.pump(&mut client_read, &mut switch_write, shared_records, number, Direction::Up);
            let down =
                self.down.pump(&mut switch_read, &mut client_write, shared_records, number, Direction::Down);
            tokio::select! {
                biased;
                () = stop.cancelled() => Some(Lost::Cut),
                ended = futures::future::try_join(up, down) => ended.err(),
            }
        };
        // What the ends had written counts as written, although nobody will ever read it.
        drain(&mut client_read, shared_records, number, Direction::Up).await;
        drain(&mut switch_read, shared_records, number, Direction::Down).await;
        let what = match lost {
            None => "closed",
            Some(Lost::Cut) => "cut",
            Some(Lost::Broken) => "broken",
        };
        let bytes = shared_records.books().records[number].up.passed_bytes;
        self.end(what, bytes);
    }

    fn end(&self, what: &'static str, bytes: u64) {
        self.shared_records.books().records[self.number].open = false;
        self.shared_records.note(what, self.number as u64, bytes);
    }
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Up,
    Down,
}

impl Direction {
    fn flow(self, record: &mut Record) -> &mut Flow {
        match self {
            Self::Up => &mut record.up,
            Self::Down => &mut record.down,
        }
    }
}

impl Pipe {
    /// Changes the names of properties that announce limits to unknown names.
    fn hide(&mut self, bytes: &mut [u8]) {
        let Some(known) = &mut self.hide else { return };
        for byte in bytes {
            *known = if *byte == TOLD[*known] { *known + 1 } else { usize::from(*byte == TOLD[0]) };
            if *known == TOLD.len() {
                (*byte, *known) = (b'_', 0);
            }
        }
    }

    async fn pump(
        &mut self,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
        shared_records: &SharedRecords,
        number: usize,
        way: Direction,
    ) -> Result<(), Lost> {
        let (mut read, mut passed) = (0_u64, 0_u64);
        let mut buffer = vec![0; self.grain];
        loop {
            if self.waiting.is_empty() {
                if let Some((_, time)) = self.stall.filter(|(at, _)| read >= *at) {
                    self.stall = None;
                    shared_records.note("stalled", number as u64, read);
                    let _ = tokio::time::timeout(time, shared_records.healed.cancelled()).await;
                }
                let most = self.rng.usize(1..=self.grain);
                let len = from.read(&mut buffer[..most]).await.map_err(|_| Lost::Broken)?;
                if len == 0 {
                    way.flow(&mut shared_records.books().records[number]).ended_well = true;
                    let _ = to.shutdown().await;
                    return Ok(());
                }
                if read < HANDSHAKE_LEN {
                    self.hide(&mut buffer[..len]);
                }
                let now = shared_records.now();
                way.flow(&mut shared_records.books().records[number]).take(&buffer[..len], now);
                read += len as u64;
                self.waiting.extend_from_slice(&buffer[..len]);
            }
            if self.rng.u8(..100) < self.delays && !shared_records.healed.is_cancelled() {
                tokio::time::sleep(Duration::from_micros(self.rng.u64(1..20_000))).await;
            }
            let mut len = self.rng.usize(1..=self.waiting.len());
            let cut = self.cut.filter(|_| !shared_records.healed.is_cancelled());
            if let Some(cut) = cut {
                len = len.min((cut - passed) as usize);
                if len == 0 {
                    return Err(Lost::Cut);
                }
            }
            let written = to.write(&self.waiting[..len]).await.map_err(|_| Lost::Broken)?;
            let now = shared_records.now();
            shared_records.books().pass(number, way, written, now);
            shared_records.note(
                match way {
                    Direction::Up => "up",
                    Direction::Down => "down",
                },
                number as u64,
                written as u64,
            );
            passed += written as u64;
            self.waiting.advance(written);
        }
    }
}

/// Reads everything that is available, without letting any other task run.
async fn drain(from: &mut ReadHalf<'_>, shared_records: &SharedRecords, number: usize, way: Direction) {
    let mut buffer = [0; 4096];
    loop {
        let mut buf = ReadBuf::new(&mut buffer);
        // This is outside the runtime's budget, which would make the stream look empty.
        let poll = tokio::task::unconstrained(std::future::poll_fn(|cx| {
            Poll::Ready(std::pin::Pin::new(&mut *from).poll_read(cx, &mut buf))
        }));
        match poll.await {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                let now = shared_records.now();
                way.flow(&mut shared_records.books().records[number]).take(buf.filled(), now);
            }
            _ => return,
        }
    }
}
