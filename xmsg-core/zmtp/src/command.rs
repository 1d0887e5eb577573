//! Commands: READY, ERROR, SUBSCRIBE, CANCEL, PING and PONG (RFC 37), and X-DRAIN, X-DRAINED and X-DROPPED,
//! which are extensions of ours.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::encode_command;
use super::{Limited, Violation};

/// The maximum length in bytes of a PING context that is echoed (RFC 37, "Connection Heartbeating").
const PING_CONTEXT_MAX: usize = 16;

/// The maximum number of properties in one handshake. Each takes many times the memory of the six bytes that
/// announce it.
const PROPERTIES_MAX: usize = 128;

/// A command, which is the body of a command frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The last command of a handshake, with the properties of the peer.
    Ready(Properties),
    /// The peer ends the connection for this reason.
    Error(String),
    /// Subscribes to a prefix (ZMTP 3.1).
    Subscribe(Bytes),
    /// Cancels a subscription (ZMTP 3.1).
    Cancel(Bytes),
    /// Asks whether the peer is alive.
    Ping {
        /// The maximum time of silence that the sender announces. Zero means that it announces none.
        ttl: Duration,
        /// The context to be echoed.
        context: Bytes,
    },
    /// Answers a PING.
    Pong {
        /// The context of the PING.
        context: Bytes,
    },
    /// Announces that the sender is about to stop, and asks the peer to send nothing more and to close its
    /// direction. It is an extension of ours, for peers that have announced that they understand it.
    Drain,
    /// Confirms that the sender has read everything that the peer sent before it closed its direction. It
    /// answers the end of the stream that [`Drain`](Self::Drain) asked for.
    Drained,
    /// Reports how many messages that the peer subscribed to were dropped since it connected. It is an
    /// extension of ours, for peers that have announced that they understand it.
    Dropped(DroppedCounts),
    /// A command that this engine does not know. It has to be ignored.
    Unknown(Bytes),
}

impl Command {
    /// Decodes the body of a command frame.
    ///
    /// # Errors
    ///
    /// The body is malformed, or has too many properties.
    pub fn read(mut body: Bytes) -> Result<Self, Violation> {
        let name = take_short(&mut body).ok_or(Violation::Malformed("command name"))?;
        Ok(match &name[..] {
            b"READY" => Self::Ready(Properties::read(body)?),
            b"ERROR" => {
                let reason = take_short(&mut body).ok_or(Violation::Malformed("ERROR command"))?;
                Self::Error(String::from_utf8_lossy(&reason).into_owned())
            }
            b"SUBSCRIBE" => Self::Subscribe(body),
            b"CANCEL" => Self::Cancel(body),
            b"PING" => {
                if body.len() < 2 {
                    return Err(Violation::Malformed("PING command"));
                }
                let ttl = body.split_to(2);
                let deciseconds = u64::from(u16::from_be_bytes([ttl[0], ttl[1]]));
                body.truncate(PING_CONTEXT_MAX);
                Self::Ping { ttl: Duration::from_millis(deciseconds * 100), context: body }
            }
            b"PONG" => Self::Pong { context: body },
            b"X-DRAIN" => Self::Drain,
            b"X-DRAINED" => Self::Drained,
            b"X-DROPPED" => Self::Dropped(DroppedCounts::read(&body)?),
            _ => Self::Unknown(name),
        })
    }

    /// Encodes the command as a frame.
    pub fn write(&self, out: &mut BytesMut) {
        encode_command(out, &self.body());
    }

    /// Encodes the body of the frame.
    pub(super) fn body(&self) -> Bytes {
        let mut body = BytesMut::new();
        match self {
            Self::Ready(properties) => {
                put_short(&mut body, b"READY");
                properties.write(&mut body);
            }
            Self::Error(reason) => {
                put_short(&mut body, b"ERROR");
                put_short(&mut body, &reason.as_bytes()[..reason.len().min(255)]);
            }
            Self::Subscribe(prefix) => {
                put_short(&mut body, b"SUBSCRIBE");
                body.put_slice(prefix);
            }
            Self::Cancel(prefix) => {
                put_short(&mut body, b"CANCEL");
                body.put_slice(prefix);
            }
            Self::Ping { ttl, context } => {
                put_short(&mut body, b"PING");
                body.put_u16(u16::try_from(ttl.as_millis() / 100).unwrap_or(u16::MAX));
                body.put_slice(context);
            }
            Self::Pong { context } => {
                put_short(&mut body, b"PONG");
                body.put_slice(context);
            }
            Self::Drain => put_short(&mut body, b"X-DRAIN"),
            Self::Drained => put_short(&mut body, b"X-DRAINED"),
            Self::Dropped(counts) => {
                put_short(&mut body, b"X-DROPPED");
                body.put_u64(counts.too_slow);
                body.put_u64(counts.too_large);
            }
            Self::Unknown(name) => put_short(&mut body, &name[..name.len().min(255)]),
        }
        body.freeze()
    }
}

/// How many messages a sender has dropped for one subscriber since the connection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedCounts {
    /// Messages that were dropped because the subscriber did not read them in time.
    pub too_slow: u64,
    /// Messages that were dropped because they exceed the limits that the subscriber has announced.
    pub too_large: u64,
}

impl DroppedCounts {
    /// Decodes two numbers of eight bytes. Bytes behind them, which a later version may add, are ignored.
    fn read(body: &[u8]) -> Result<Self, Violation> {
        let number = |at: usize| Some(u64::from_be_bytes(body.get(at..at + 8)?.try_into().ok()?));
        let counts = number(0).zip(number(8)).map(|(too_slow, too_large)| Self { too_slow, too_large });
        counts.ok_or(Violation::Malformed("X-DROPPED command"))
    }
}

/// The properties of a READY command: names, which are compared case-insensitively, and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(Vec<(Bytes, Bytes)>);

impl Properties {
    /// Returns the value of a property.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// Adds a property. Names have 1 to 255 bytes.
    pub fn push(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.0.push((Bytes::from_static(name.as_bytes()), value.into()));
    }

    pub(super) fn read(mut body: Bytes) -> Result<Self, Violation> {
        const MALFORMED: Violation = Violation::Malformed("properties in the handshake");
        let mut properties = Vec::new();
        while !body.is_empty() {
            let name = take_short(&mut body).filter(|name| !name.is_empty()).ok_or(MALFORMED)?;
            let Some(len) = body.get(..4).and_then(|len| <[u8; 4]>::try_from(len).ok()) else {
                return Err(MALFORMED);
            };
            let len = u32::from_be_bytes(len) as usize;
            let _ = body.split_to(4);
            if len > body.len() {
                return Err(MALFORMED);
            }
            if properties.len() == PROPERTIES_MAX {
                let (size, limit) = (PROPERTIES_MAX as u64 + 1, PROPERTIES_MAX as u64);
                return Err(Violation::TooLarge { what: Limited::Properties, size, limit });
            }
            properties.push((name, body.split_to(len)));
        }
        Ok(Self(properties))
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        for (name, value) in &self.0 {
            put_short(out, name);
            out.put_u32(value.len() as u32);
            out.put_slice(value);
        }
    }
}

/// Takes a string that is preceded by its length in one byte.
pub(super) fn take_short(body: &mut Bytes) -> Option<Bytes> {
    let len = usize::from(*body.first()?);
    if body.len() < 1 + len {
        return None;
    }
    let _ = body.split_to(1);
    Some(body.split_to(len))
}

/// Returns what follows the name of a command, if it is `name`.
pub(super) fn named(body: &Bytes, name: &[u8]) -> Option<Bytes> {
    let mut rest = body.clone();
    (take_short(&mut rest)? == name).then_some(rest)
}

pub(super) fn put_short(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u8(bytes.len() as u8);
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(command: &Command) -> Bytes {
        let mut out = BytesMut::new();
        command.write(&mut out);
        out.freeze().slice(2..)
    }

    #[test]
    fn commands_read_back() {
        let mut properties = Properties::default();
        properties.push("Socket-Type", "XPUB");
        properties.push("Identity", "");
        for command in [
            Command::Ready(properties),
            Command::Error("no".into()),
            Command::Subscribe(Bytes::from_static(b"a:b")),
            Command::Cancel(Bytes::new()),
            Command::Ping {
                ttl: Duration::from_millis(1500),
                context: Bytes::from_static(b"0123456789abcdef"),
            },
            Command::Pong { context: Bytes::from_static(b"x") },
            Command::Drain,
            Command::Drained,
            Command::Dropped(DroppedCounts { too_slow: u64::MAX, too_large: 1 }),
        ] {
            assert_eq!(Command::read(body_of(&command)), Ok(command));
        }
    }

    #[test]
    fn properties_are_counted() {
        let body = |count| Bytes::from([&b"\x05READY"[..], &b"\x01x\0\0\0\0".repeat(count)].concat());
        assert!(Command::read(body(PROPERTIES_MAX)).is_ok());
        assert!(matches!(Command::read(body(PROPERTIES_MAX + 1)), Err(Violation::TooLarge { .. })));
    }

    #[test]
    fn golden_bytes() {
        let mut out = BytesMut::new();
        Command::Subscribe(Bytes::from_static(b"ab")).write(&mut out);
        assert_eq!(&out[..], b"\x04\x0c\x09SUBSCRIBEab");
        out.clear();
        Command::Ping { ttl: Duration::from_secs(1), context: Bytes::new() }.write(&mut out);
        assert_eq!(&out[..], b"\x04\x07\x04PING\x00\x0a");
    }

    #[test]
    fn a_long_ping_context_is_cut() {
        let body = Bytes::from_static(b"\x04PING\x00\x000123456789abcdefXYZ");
        let Ok(Command::Ping { context, .. }) = Command::read(body) else { panic!("no PING") };
        assert_eq!(context, &b"0123456789abcdef"[..]);
    }

    #[test]
    fn malformed_commands_are_told() {
        for body in [
            &b""[..],
            b"\x09SUB",
            b"\x04PING\x00",
            b"\x05READY\x00",
            b"\x05READY\x01a\xff\xff\xff\xff",
            b"\x05ERROR",
        ] {
            assert!(Command::read(Bytes::from_static(body)).is_err(), "{body:?}");
        }
    }
}
