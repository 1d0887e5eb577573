//! Identities that actors generate: connection IDs, actor IDs and reply topics.

use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, OnceLock};

use uuid::Uuid;

use crate::topic::Topic;
use crate::{Error, ErrorKind, Result};

/// The digit for Rust in connection IDs and reply topics. Java uses 1, C++ 2 and Python 3.
const LANGUAGE: u32 = 4;

/// The number of values that the five random digits of a connection ID have.
const DRAWABLE: u32 = 100_000;

/// The number of serial numbers of reply topics, which have six digits.
const SERIALS: u32 = 1_000_000;

/// The identity of a connection towards the proxy: nine digits `LPPPRRRRR`.
///
/// `L` is the language (4 for Rust), `PPP` is the same for all connections made on one node, and `RRRRR` is
/// random. A process makes 100,000 different IDs before it repeats one, so that its own connections never
/// share one.
///
/// ```
/// use xmsg_core::ConnectionId;
///
/// let id = ConnectionId::random();
/// assert!(id.to_string().starts_with('4'));
/// assert_eq!(id.to_string().parse::<ConnectionId>()?, id);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId([u8; 9]);

impl ConnectionId {
    /// Makes a new ID for a connection made on this node.
    #[must_use]
    pub fn random() -> Self {
        static DRAWS: LazyLock<Draws> = LazyLock::new(Draws::new);
        Self(digits(LANGUAGE * 100_000_000 + u32::from(node()) * DRAWABLE + DRAWS.next()))
    }

    /// Returns the nine digits as they are on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the digit `L`: 1 for Java, 2 for C++, 3 for Python, 4 for Rust.
    #[must_use]
    pub fn language(&self) -> u8 {
        self.0[0] - b'0'
    }

    /// Returns the digits `PPP` of the node, 0 to 999.
    #[must_use]
    pub fn node(&self) -> u16 {
        self.0[1..4].iter().fold(0, |node, digit| node * 10 + u16::from(digit - b'0'))
    }
}

/// Draws the random digits of connection IDs in a random order in which each value comes once in a round.
///
/// Values drawn independently would collide soon: of 64 connections open at a time, two would share an ID in
/// one case of fifty, and a proxy that is asked for the control socket of one would answer the other.
#[derive(Debug)]
struct Draws {
    /// The number of values drawn so far.
    drawn: AtomicU32,
    first: u32,
    /// The distance of one value to the next one. It has no divisor in common with [`DRAWABLE`], so that a
    /// round reaches every value.
    stride: u32,
}

impl Draws {
    fn new() -> Self {
        let stride = loop {
            let stride = fastrand::u32(1..DRAWABLE);
            if !stride.is_multiple_of(2) && !stride.is_multiple_of(5) {
                break stride;
            }
        };
        Self { drawn: AtomicU32::new(0), first: fastrand::u32(..DRAWABLE), stride }
    }

    fn next(&self) -> u32 {
        let drawn = u64::from(self.drawn.fetch_add(1, Ordering::Relaxed));
        ((u64::from(self.first) + drawn * u64::from(self.stride)) % u64::from(DRAWABLE)) as u32
    }
}

/// Fails with [`ErrorKind::Protocol`] unless the bytes are nine digits.
impl TryFrom<&[u8]> for ConnectionId {
    type Error = Error;

    fn try_from(bytes: &[u8]) -> Result<Self> {
        match <[u8; 9]>::try_from(bytes) {
            Ok(digits) if digits.iter().all(u8::is_ascii_digit) => Ok(Self(digits)),
            _ => Err(Error::new(
                ErrorKind::Protocol,
                format!("`{}` is not a connection ID: nine digits are expected", bytes.escape_ascii()),
            )),
        }
    }
}

impl FromStr for ConnectionId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self> {
        id.as_bytes().try_into()
    }
}

impl AsRef<[u8]> for ConnectionId {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({self})")
    }
}

/// The identity of an actor in its reply topics: eight random hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorId(u32);

impl ActorId {
    /// Makes a new ID.
    #[must_use]
    pub fn random() -> Self {
        // The first 32 bits of a version 4 UUID are all random.
        Self(Uuid::new_v4().as_fields().0)
    }
}

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ActorId({self})")
    }
}

/// Generates the topics on which an actor awaits the replies to its requests: `ret:<actor ID>:4DDDDDD`.
///
/// The serial number `DDDDDD` starts at random and wraps around, so that a million requests in flight have
/// different topics. Threads may share the generator.
///
/// ```
/// use xmsg_core::id::{ActorId, ReplyTopics};
///
/// let topics = ReplyTopics::new(ActorId::random());
/// assert!(topics.subscription().is_parent(&topics.next_topic()));
/// assert_ne!(topics.next_topic(), topics.next_topic());
/// ```
#[derive(Debug)]
pub struct ReplyTopics {
    subscription: Topic,
    serial: AtomicU32,
}

impl ReplyTopics {
    /// Makes the generator of the reply topics of this actor.
    #[must_use]
    pub fn new(actor: ActorId) -> Self {
        Self {
            subscription: Topic::wrap(format!("ret:{actor}")),
            serial: AtomicU32::new(fastrand::u32(..SERIALS)),
        }
    }

    /// Returns the topic to subscribe to for all replies.
    #[must_use]
    pub fn subscription(&self) -> &Topic {
        &self.subscription
    }

    /// Returns the topic for the reply to the next request.
    #[must_use]
    pub fn next_topic(&self) -> Topic {
        let after = |serial| Some((serial + 1) % SERIALS);
        let (Ok(serial) | Err(serial)) =
            self.serial.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        Topic::wrap(format!("{}:{LANGUAGE}{serial:06}", self.subscription))
    }
}

/// Returns the digits `PPP` of this node, which are determined once per process.
fn node() -> u16 {
    static NODE: OnceLock<u16> = OnceLock::new();
    *NODE.get_or_init(|| {
        let name = local_address().map(|address| address.to_string()).or_else(host_name);
        node_of(name.as_deref().unwrap_or("localhost"))
    })
}

/// Returns the address from which this node reaches others. Connecting a UDP socket chooses a route and sends
/// nothing. The addresses are those that RFC 5737 and RFC 3849 reserve for documentation.
fn local_address() -> Option<IpAddr> {
    let routed = |bind: &str, to: &str| {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    routed("0.0.0.0", "192.0.2.1").or_else(|| routed("::", "2001:db8::1"))
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/etc/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Computes the node digits with the hash of Java's strings, so that they equal those of Java actors. Any
/// stable hash would work.
fn node_of(address: &str) -> u16 {
    let hash =
        address.encode_utf16().fold(0_u32, |hash, unit| hash.wrapping_mul(31).wrapping_add(unit.into()));
    ((hash & 0x7fff_ffff) % 1000) as u16
}

/// Returns the last nine decimal digits of a number.
fn digits(mut number: u32) -> [u8; 9] {
    let mut digits = [b'0'; 9];
    for digit in digits.iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
    digits
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_of_a_node_differ_only_in_the_random_digits() {
        let ids: HashSet<_> = (0..50).map(|_| ConnectionId::random()).collect();
        assert!(ids.len() > 1);
        assert!(ids.iter().all(|id| id.language() == 4 && id.node() == node()));
    }

    #[test]
    fn a_round_of_draws_has_every_value_once() {
        for _ in 0..20 {
            let draws = Draws::new();
            let round: HashSet<_> = (0..DRAWABLE).map(|_| draws.next()).collect();
            assert_eq!(round.len(), DRAWABLE as usize, "{draws:?}");
            assert!(round.iter().all(|value| *value < DRAWABLE));
        }
    }

    #[test]
    fn digits_are_padded_with_zeros() {
        assert_eq!(digits(400_000_007), *b"400000007");
        assert_eq!(digits(0), *b"000000000");
    }

    #[test]
    fn the_node_digits_are_those_of_java() {
        // In Java, "10.0.0.7".hashCode() is 511552172 and "zookeeper-cluster".hashCode() is -1042128775.
        assert_eq!(node_of("10.0.0.7"), 172);
        assert_eq!(node_of("zookeeper-cluster"), 873);
    }

    #[test]
    fn what_is_not_nine_digits_is_refused() {
        for id in ["", "40000000", "4000000000", "40000000a", "-00000000"] {
            assert_eq!(id.parse::<ConnectionId>().unwrap_err().kind(), ErrorKind::Protocol);
        }
        assert_eq!("123456789".parse::<ConnectionId>().unwrap().node(), 234);
    }

    #[test]
    fn an_actor_id_is_eight_hexadecimal_digits() {
        assert_eq!(ActorId(0xab).to_string(), "000000ab");
        assert_ne!(ActorId::random(), ActorId::random());
    }

    #[test]
    fn serials_wrap_after_six_digits() {
        let topics = ReplyTopics::new(ActorId(7));
        topics.serial.store(999_999, Ordering::Relaxed);
        assert_eq!(*topics.subscription(), "ret:00000007");
        assert_eq!(topics.next_topic(), "ret:00000007:4999999");
        assert_eq!(topics.next_topic(), "ret:00000007:4000000");
    }

    #[test]
    fn threads_never_get_the_same_topic() {
        let topics = ReplyTopics::new(ActorId::random());
        let taken: Vec<Topic> = std::thread::scope(|scope| {
            let take = || (0..100).map(|_| topics.next_topic()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(taken.iter().collect::<HashSet<_>>().len(), 400);
    }

    proptest! {
        #[test]
        fn ids_print_as_they_parse(id in "[0-9]{9}") {
            let parsed: ConnectionId = id.parse().unwrap();
            prop_assert_eq!(parsed.to_string(), id.clone());
            prop_assert_eq!(parsed.as_bytes(), id.as_bytes());
        }
    }
}
