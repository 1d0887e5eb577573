//! The plan of a process of any stack, which is its command line.
//!
//! `peers/libzmq.c` and `peers/patterns.c` read the same options. A message has three frames: a topic and
//! metadata of 20 bytes each, and a payload that starts with a [`Header`].

use std::fmt::Display;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The metadata of every message: 20 bytes that are valid metadata of xMsg (field 14, the data type).
pub const METADATA: &[u8; 20] = b"r\x12binary/data-packet";

/// The topics to which a subscriber subscribes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Interest {
    /// Each subscriber subscribes to one prefix that all topics have.
    All,
    /// Subscriber number n subscribes to the whole topic number n.
    Own,
    /// Each subscriber subscribes to every topic, one by one.
    Every,
}

/// How a socket meets its peer if no server is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    Connect,
    Bind,
}

/// The options of a process with clients.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The port for publishers. Subscribers connect to the next one.
    #[arg(long)]
    pub port: u16,
    /// The number of connections that this process makes.
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// The total number of publishers.
    #[arg(long, default_value_t = 1)]
    pub publishers: usize,
    /// The number of measured messages that each client sends, or receives if nothing is lost.
    #[arg(long, default_value_t = 0)]
    pub count: u64,
    /// The number of messages that each publisher sends before these, in the same stream.
    #[arg(long, default_value_t = 0)]
    pub warm_up: u64,
    /// The size of the payload in bytes.
    #[arg(long, default_value_t = Header::LEN)]
    pub size: usize,
    /// The number of topics. Message number i has topic number i × stride modulo this.
    #[arg(long, default_value_t = 1)]
    pub topics: usize,
    #[arg(long, default_value_t = 1)]
    pub stride: usize,
    #[arg(long, value_enum, default_value_t = Interest::All)]
    pub interest: Interest,
    /// The number of messages per second at fixed times, or 0 for as fast as the stack accepts them.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// The time after which a publisher stops, in milliseconds.
    #[arg(long, default_value_t = 60_000)]
    pub limit_ms: u64,
    /// The file for the latency of each message: nanoseconds, in 8 bytes each, little-endian.
    #[arg(long)]
    pub latencies: Option<PathBuf>,
    /// Without a server in between: whether the sockets of the process bind or connect.
    #[arg(long, value_enum, default_value_t = Side::Connect)]
    pub side: Side,
    /// Without a server in between: the number of requests that may wait for their replies at the same time.
    #[arg(long, default_value_t = 1)]
    pub window: u64,
    /// Without a server in between: high-water marks, in messages, instead of those that the stack has by
    /// default.
    #[arg(long)]
    pub hwm: Option<u32>,
}

impl Plan {
    /// Returns the command line for this plan.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut option =
            |name: &str, value: &dyn Display| args.extend([format!("--{name}"), value.to_string()]);
        option("port", &self.port);
        option("clients", &self.clients);
        option("publishers", &self.publishers);
        option("count", &self.count);
        option("warm-up", &self.warm_up);
        option("size", &self.size);
        option("topics", &self.topics);
        option("stride", &self.stride);
        option("interest", &format!("{:?}", self.interest).to_lowercase());
        option("rate", &self.rate);
        option("limit-ms", &self.limit_ms);
        if let Some(file) = &self.latencies {
            option("latencies", &file.display());
        }
        // Peers with a server in between do not know these options.
        if self.side == Side::Bind {
            option("side", &"bind");
        }
        if self.window > 1 {
            option("window", &self.window);
        }
        if let Some(messages) = self.hwm {
            option("hwm", &messages);
        }
        args
    }

    /// Returns all topics, with 20 bytes each. `separator` is between the two parts: a dot for NATS, and a
    /// colon for all others.
    pub fn topics(&self, separator: char) -> Vec<String> {
        (0..self.topics).map(|number| format!("bench{separator}{number:014}")).collect()
    }

    /// Returns the number of the topic of message number `sequence` of a publisher.
    pub fn topic_of(&self, sequence: u64) -> usize {
        (sequence as usize * self.stride) % self.topics
    }

    /// Returns the topics to which a publisher sends probes, which show that every subscription is active.
    /// Subscriptions of one client are sent in order, so the last one is enough for all.
    pub fn probed(&self) -> std::ops::Range<usize> {
        match self.interest {
            Interest::All => 0..1,
            Interest::Own => 0..self.topics,
            Interest::Every => self.topics - 1..self.topics,
        }
    }
}

/// The purpose of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Probe = 1,
    WarmUp = 2,
    Measured = 3,
}

/// The first bytes of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub publisher: u16,
    /// The number among the messages of this kind and publisher.
    pub sequence: u64,
    /// The time at which it should have been sent (monotonic clock, in nanoseconds), or 0 without a fixed
    /// rate.
    pub due_ns: u64,
}

impl Header {
    pub const LEN: usize = 16;

    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let first = u64::from(self.kind as u8) << 56 | u64::from(self.publisher) << 40 | self.sequence;
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..].copy_from_slice(&self.due_ns.to_le_bytes());
        bytes
    }

    /// Returns the header of a payload, if it has one.
    pub fn of(payload: &[u8]) -> Option<Self> {
        let (first, rest) = payload.split_first_chunk::<8>()?;
        let first = u64::from_le_bytes(*first);
        let kind = match first >> 56 {
            1 => Kind::Probe,
            2 => Kind::WarmUp,
            3 => Kind::Measured,
            _ => return None,
        };
        let due_ns = u64::from_le_bytes(*rest.first_chunk()?);
        Some(Self { kind, publisher: (first >> 40) as u16, sequence: first & 0xff_ffff_ffff, due_ns })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    #[test]
    fn a_header_comes_back_from_the_payload_it_was_written_to() {
        let header = Header { kind: Kind::Measured, publisher: 7, sequence: 123_456_789, due_ns: u64::MAX };
        let mut payload = header.to_bytes().to_vec();
        payload.extend([0; 84]);
        assert_eq!(Header::of(&payload), Some(header));
        assert_eq!(Header::of(&payload[..15]), None);
        assert_eq!(Header::of(&[0; 16]), None);
    }

    #[test]
    fn topics_and_metadata_are_twenty_bytes_each() {
        let line = Line::parse_from(["peer", "--port", "1", "--topics", "100000"]);
        assert!(line.plan.topics(':').iter().all(|topic| topic.len() == 20));
        assert_eq!(METADATA.len(), 20);
    }

    #[test]
    fn a_plan_survives_its_command_line() {
        let args = [
            "peer",
            "--port",
            "7000",
            "--interest",
            "every",
            "--topics",
            "9",
            "--stride",
            "7",
            "--rate",
            "10",
            "--side",
            "bind",
            "--window",
            "100",
            "--hwm",
            "5",
        ];
        let plan = Line::parse_from(args).plan;
        let again = Line::parse_from(std::iter::once("peer".to_owned()).chain(plan.to_args())).plan;
        assert_eq!(again.to_args(), plan.to_args());
        assert_eq!((again.topic_of(2), again.probed()), (5, 8..9));
        assert_eq!((again.side, again.window, again.hwm), (Side::Bind, 100, Some(5)));
    }
}
